"""What a function is: how it has to be called, how it is called in messages, and which of the user's is running.

For whoever decorates functions of others. Nothing is called here.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from typing import Any

__all__ = ["check_plain", "kind_of", "name_of", "users_line"]

_OURS = __file__.removesuffix("_functions.py")


def kind_of(fn: Callable[..., Any]) -> str:
    """Return "async", "stream" (an async generator function), "generator" or "sync".

    Looks through `functools.partial`, `functools.wraps` and objects with `__call__`. The methods of some SDKs are plain
    functions around async ones: what they return must be awaited all the same.

    Raises:
        TypeError: `fn` cannot be called, or is a method that was wrapped for its class already.
    """
    target: Any = fn
    while True:
        if inspect.iscoroutinefunction(target):
            return "async"
        if inspect.isasyncgenfunction(target):
            return "stream"
        if inspect.isgeneratorfunction(target):
            return "generator"
        if isinstance(target, classmethod | staticmethod):
            wrapper = type(target).__name__
            raise TypeError(f"{name_of(target.__func__)} is a {wrapper} already: put the decorator below @{wrapper}")
        if not callable(target):
            raise TypeError(f"{target!r} is no function")
        if isinstance(target, functools.partial):
            target = target.func
        elif inspect.isroutine(target) or isinstance(target, type):
            return "async" if inspect.iscoroutinefunction(inspect.unwrap(target)) else "sync"
        else:
            target = type(target).__call__


def name_of(fn: object) -> str:
    """Return how a function is called in messages."""
    while isinstance(fn, functools.partial):
        fn = fn.func
    name = getattr(fn, "__qualname__", None) or getattr(fn, "__name__", None)
    return name if isinstance(name, str) else type(fn).__qualname__


def users_line() -> tuple[str, int]:
    """Return file and line of the innermost running code that is not part of this package. Takes microseconds."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_OURS):
        frame = frame.f_back
    return frame.f_code.co_filename, frame.f_lineno


def check_plain(owner: str, option: str, fn: object) -> None:
    """Refuse what cannot be called, and what would have to be awaited: `owner(option=fn)` does not."""
    if not callable(fn):
        raise TypeError(f"{owner}({option}={fn!r}): a function is needed")
    if kind_of(fn) == "async":
        # What it returns is a coroutine, which is true, and would be taken for a yes.
        raise TypeError(f"{owner}({option}={name_of(fn)}): it is called and not awaited; give a plain function")
