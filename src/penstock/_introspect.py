"""What a function is: how it has to be called, how messages name it, and which of the user's functions is running.

Decorators of other people's functions use this. A plain callable may return an awaitable: a bound method of an SDK, a
lambda around an async function. Nothing shows it before the call; `to_be_awaited` tells it of the result.
`_run_inside` decorates functions of all these kinds.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import sys
from collections.abc import Callable, Coroutine
from types import AsyncGeneratorType, FrameType, GeneratorType
from typing import Any, Literal, NoReturn

from penstock._concurrency.parking import loop_running_here
from penstock._text import repr_of

Kind = Literal["async", "stream", "generator", "async context", "context", "sync"]
"""What a function is: see `kind_of`."""

_NOT_THE_USERS = (__file__.removesuffix("_introspect.py"), contextlib.__file__)
"""Our code, and that of exit stacks, which enter what they are given."""

_RUNNERS = {"anyio", "asyncio", "concurrent", "penstock", "threading", "trio"}
"""Whose code calls the functions that it is given: as tasks, or in threads. (Under a greenlet's there is no frame.)"""

_SAMPLE: Any = len  # to see what these two decorators make of a function: it is one code object for all of them
_CONTEXT = contextlib.contextmanager(_SAMPLE).__code__
_ASYNC_CONTEXT = contextlib.asynccontextmanager(_SAMPLE).__code__

GENERATORS = (GeneratorType, AsyncGeneratorType)
CONTEXT_MANAGERS = (contextlib._GeneratorContextManager, contextlib._AsyncGeneratorContextManager)
"""What a call may return that has yet to run: a generator, or a block under `@contextmanager`."""


def kind_of(fn: Callable[..., Any]) -> Kind:
    """Return "async", "stream" (an async generator function), "generator", "async context", "context" or "sync".

    The contexts are functions under `@asynccontextmanager` and `@contextmanager`. Looks through `functools.partial`,
    `functools.wraps` and objects with `__call__`. A "sync" one may still return an awaitable: see `to_be_awaited`.

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
            return "async" if _is_old_coroutine(target) else "generator"
        if isinstance(target, classmethod | staticmethod):
            wrapper = type(target).__name__
            raise TypeError(f"{name_of(target.__func__)} is a {wrapper} already: put the decorator below @{wrapper}")
        if not callable(target):
            raise TypeError(f"{repr_of(target)} is not a function")
        if isinstance(target, functools.partial):
            target = target.func
        elif inspect.isroutine(target) or isinstance(target, type):
            return _kind_of_plain(target)
        else:
            target = type(target).__call__


def _is_old_coroutine(generator_function: Any) -> bool:
    """Whether what it makes is to be awaited: it is decorated by `types.coroutine`."""
    while isinstance(generator_function, functools.partial):
        generator_function = generator_function.func
    return bool(generator_function.__code__.co_flags & inspect.CO_ITERABLE_COROUTINE)


def _kind_of_plain(routine: Callable[..., Any]) -> Kind:
    """Look under the wrappers of a routine that is a plain function itself."""
    while True:
        code = getattr(routine, "__code__", None)
        if code is _CONTEXT:
            return "context"
        if code is _ASYNC_CONTEXT:
            return "async context"
        if inspect.iscoroutinefunction(routine):
            return "async"
        if not hasattr(routine, "__wrapped__"):
            return "sync"
        routine = routine.__wrapped__


def name_of(fn: object) -> str:
    """Return how a function is called in messages."""
    while isinstance(fn, functools.partial):
        fn = fn.func
    name = getattr(fn, "__qualname__", None) or getattr(fn, "__name__", None)
    return name if isinstance(name, str) else type(fn).__qualname__


def users_line() -> tuple[str, int]:
    """Return file and line of the innermost running code that is not part of this package. Takes microseconds.

    A decorated function that runs as a task, or in a thread, is called by no code of the user's: then its own line.
    """
    frame = users_frame()
    if str(frame.f_globals.get("__name__")).partition(".")[0] in _RUNNERS:
        code = getattr(_decorated(frame), "__code__", None)
        if code is not None:
            return code.co_filename, code.co_firstlineno
    return frame.f_code.co_filename, frame.f_lineno


def _decorated(caller: FrameType) -> Any:
    """The function that the innermost of our decorators, between here and its caller, is put around."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        if "fn" in frame.f_code.co_freevars:
            return inspect.unwrap(frame.f_locals["fn"])
        frame = None if frame is caller else frame.f_back
    return None


def users_frame() -> FrameType:
    """The same, as a frame. For functions of this package that others of it call."""
    try:
        frame = sys._getframe(3)  # the caller and its own are of this package; to look at a frame takes time
    except ValueError:
        frame = sys._getframe(2)  # of a thread that runs nothing but a function of ours
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_NOT_THE_USERS):
        frame = frame.f_back
    return frame


def decorable_kind(fn: Any) -> Kind:
    """The kind of a function to decorate.

    Raises:
        TypeError: It is no function; a class, whose place a function would take; or a layer of ours, which is called
            with the function to decorate, so that only that call would be retried or limited.
    """
    if hasattr(type(fn), "_penstock_kind"):
        raise TypeError(
            f"{repr_of(fn)} is a decorator itself, and no function: put both around one function, "
            "as in Pipeline(retry, limiter)(function)"
        )
    if isinstance(fn, type):
        raise TypeError(
            f"{fn.__qualname__} is a class, and a decorator would put a function in its place, "
            "of which nothing can be an instance. Decorate its methods, or a function that makes one"
        )
    return kind_of(fn)


def check_plain(owner: str, option: str, fn: object) -> None:
    """Refuse what cannot be called, and what would have to be awaited: `owner(option=fn)` does not."""
    if not callable(fn):
        raise TypeError(f"{owner}({option}={repr_of(fn)}): a function is needed")
    if why := why_not_plain(fn):
        raise TypeError(f"{owner}({option}={name_of(fn)}): {why}")


def why_not_plain(fn: Callable[..., Any]) -> str:
    """Why a function gives no answer when it is called; empty if it does. A coroutine would be taken for a yes."""
    kind = kind_of(fn.__func__ if isinstance(fn, staticmethod) else fn)
    if kind == "sync":
        return ""
    if kind == "async":
        return "it is called and not awaited; give a plain function"
    what = "generator" if kind in {"stream", "generator"} else "context manager"
    return f"it is called for its answer, and a {what} has none; give a plain function"


def check_answer(owner: str, option: str, answer: object) -> None:
    """Refuse what has yet to run that a function of the user's returned: `owner(option=...)` is called, and no more."""
    if inspect.isawaitable(answer):
        refuse_awaitable(
            answer,
            f"{owner}({option}=...) returned {type(answer).__name__}: "
            "it is called and not awaited; give a plain function",
        )
    if runs_later(answer):
        raise TypeError(
            f"{owner}({option}=...) returned {type(answer).__name__}, which has yet to run: give a plain function"
        )


class _Written(str):
    """A default as one writes it."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def show_defaults(method: Any, **written: str) -> None:
    """Let `help` and editors show these defaults of a method as one writes them, and not as objects at an address."""
    signature = inspect.signature(method)
    parameters = signature.parameters.values()
    method.__signature__ = signature.replace(
        parameters=[p.replace(default=_Written(written[p.name])) if p.name in written else p for p in parameters]
    )


def refuse_awaitable(result: object, message: str) -> NoReturn:
    """Raise a TypeError for an awaitable that would never be awaited."""
    if isinstance(result, Coroutine):
        result.close()  # or it would warn that it was never awaited
    raise TypeError(message)


def to_be_awaited(result: object) -> bool:
    """Whether what a plain callable returned is a call that has yet to run, and its value none yet.

    A coroutine is one everywhere. Any other awaitable is one inside a running event loop. In a thread without a loop it
    is a value: futures of Dask, for example, can be awaited too, and are read by `.result()` there.
    """
    return inspect.isawaitable(result) and (isinstance(result, Coroutine) or loop_running_here())


def runs_later(result: object) -> bool:
    """Whether a plain callable returned code that has yet to run: a generator, or a block under `@contextmanager`."""
    return isinstance(result, (*GENERATORS, *CONTEXT_MANAGERS))
