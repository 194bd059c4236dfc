"""What a function is: how it has to be called, how it is called in messages, and which of the user's is running.

For whoever decorates functions of others. What it takes to run an async generator inside something is here too, once.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

__all__ = ["check_plain", "kind_of", "name_of", "stream_inside", "users_line"]

_OURS = __file__.removesuffix("_introspect.py")


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


def stream_inside(
    enter: Callable[[tuple[Any, ...], dict[str, Any]], AbstractAsyncContextManager[Any]],
    fn: Callable[..., AsyncGenerator[Any, Any]],
) -> Callable[..., AsyncGenerator[Any, Any]]:
    """Decorate an async generator function: each of its generators runs inside what `enter(args, kwargs)` returns.

    What is sent or thrown in goes on to the generator itself, as by the `yield from` that async generators lack: it may answer,
    or handle an error, as one does under `@asynccontextmanager`. It has ended before the context does.
    """

    @functools.wraps(fn)
    async def wrapper(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
        async with enter(args, kwargs):
            items = fn(*args, **kwargs)
            try:
                item = await anext(items)
                while True:
                    try:
                        sent = yield item
                    except GeneratorExit:
                        raise
                    except BaseException as thrown:  # noqa: BLE001 - it is the generator's to handle or to raise
                        item = await items.athrow(thrown)
                    else:
                        item = await items.asend(sent)
            except StopAsyncIteration:
                return
            finally:
                await items.aclose()

    return wrapper


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
