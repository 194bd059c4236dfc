"""Results of plain functions that have done nothing yet: awaitables, and context managers that wait to be entered.

They fail when they are awaited or entered. So these steps are part of the attempt, and each new attempt calls the
function again. The body of the `with` block is not part of it.

A result counts as a context manager to be entered if `@contextmanager` or `@asynccontextmanager` made it, or if `async
with` is the only way into it. Files, locks and permits, which also work with `with`, are results like any other.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Coroutine, Generator
from types import GeneratorType
from typing import Any, Self

from penstock import clock
from penstock._introspect import CONTEXT_MANAGERS, kind_of, name_of, refuse_awaitable
from penstock.retry.call import RetriedCall, Sent
from penstock.retry.functions import call_async, call_sync, is_awaitable
from penstock.retry.settings import RetrySettings

_MANAGER, _ASYNC_MANAGER = CONTEXT_MANAGERS


def finish_later(call: RetriedCall, sent: Sent, result: Any) -> object:
    """Return what does the rest of the attempts when it is awaited or entered; None if `result` is a result."""
    kind = type(result)
    if not (
        hasattr(kind, "__await__") or hasattr(kind, "__exit__") or hasattr(kind, "__aexit__") or kind is GeneratorType
    ):
        return None  # nearly all results; what follows costs a microsecond
    fn, args, kwargs = sent
    enters = _enters_async(result)
    if enters or isinstance(result, _MANAGER):
        _check_no_on_result(call.policy, fn)
    if not is_awaitable(result):
        if enters:
            return _AsyncContext(call.policy, sent, result, call)
        return _SyncContext(call.policy, sent, result, call) if isinstance(result, _MANAGER) else None
    if enters:
        return _AwaitableContext(call.policy, sent, result, call)
    call.in_loop = True
    return call_async(call, _starting_with(result, fn), args, kwargs, begun=True)


def finish_later_of_async(policy: RetrySettings, sent: Sent, result: Any) -> Any:
    """Return the result of an async function; if it is an async context manager, one whose entry is retried."""
    kind = type(result)
    if not (hasattr(kind, "__exit__") or hasattr(kind, "__aexit__")):
        return result
    if isinstance(result, _ASYNC_MANAGER):
        _check_no_on_result(policy, sent[0])
        return _AsyncContext(policy, sent, result)
    if isinstance(result, _MANAGER):
        raise TypeError(
            f"{name_of(sent[0])} is an async function that returns a context manager for `with`: "
            "retrying its entry would block the event loop. "
            "Use @asynccontextmanager, or retry what the context manager calls"
        )
    return result


def refuse_manager(fn: Callable[..., Any], result: Any) -> None:
    """Refuse, for `retry.call` and `retry.call_sync`, a context manager that was not entered: nothing was tried yet."""
    kind = type(result)
    if not (hasattr(kind, "__exit__") or hasattr(kind, "__aexit__")):
        return
    if isinstance(result, _MANAGER | _ASYNC_MANAGER) or (_enters_async(result) and kind_of(fn) != "async"):
        word = "async with" if _enters_async(result) else "with"
        # A class cannot be decorated: a function would stand in its place.
        decorated = f"(lambda: {name_of(fn)}(...))()" if isinstance(fn, type) else f"({name_of(fn)})(...)"
        raise TypeError(
            f"{name_of(fn)} returns a context manager: calling it does nothing yet, so there is nothing to retry. "
            f"Decorate it, and its entry is retried: `{word} retry{decorated}`"
        )


def refuse_unfinished(_call: RetriedCall, sent: Sent, result: Any) -> None:
    """Refuse, for `retry.call_sync`, what would have to be awaited."""
    fn = sent[0]
    if is_awaitable(result):
        refuse_awaitable(
            result,
            f"{name_of(fn)} returns an awaitable, and `call_sync` awaits nothing, so nothing was tried. "
            f"Use `await retry.call({name_of(fn)}, ...)`",
        )
    refuse_manager(fn, result)


def _enters_async(result: Any) -> bool:
    kind = type(result)
    return hasattr(kind, "__aenter__") and hasattr(kind, "__aexit__") and not hasattr(kind, "__enter__")


def _check_no_on_result(policy: RetrySettings, fn: Callable[..., Any]) -> None:
    if policy.on_result is not None:
        raise TypeError(f"on_result= looks at a result, and {name_of(fn)} returns a context manager, which has none")


def _starting_with(first: Any, fn: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that returns `first` when it is called first, and calls `fn` after that."""
    made = [first]

    @functools.wraps(fn)
    def again(*args: Any, **kwargs: Any) -> Any:
        return made.pop() if made else fn(*args, **kwargs)

    return again


class _RetriedContext:
    """What a decorated function returns in place of a context manager: each attempt calls it for a new one."""

    def __init__(self, policy: RetrySettings, sent: Sent, manager: Any, call: RetriedCall | None = None) -> None:
        self._policy = policy
        self._fn, self._args, self._kwargs = sent
        self._first = manager
        self._make = _starting_with(manager, self._fn)
        self._call = call  # whose first attempt made `manager`
        self._entered: list[Any] = []

    def _next_call(self) -> tuple[RetriedCall, bool]:
        """Return the call that an entry is, and whether its first attempt has begun."""
        call, self._call = self._call, None
        if call is None:
            return RetriedCall(self._policy, name_of(self._fn)), False
        call.started = clock.now()  # it may be entered long after it was made
        return call, True

    def _recreate_cm(self) -> Self:
        """Return a fresh one for each call of a function that this decorates, as contextlib's do: calls may overlap."""
        return type(self)(self._policy, (self._fn, self._args, self._kwargs), self._fn(*self._args, **self._kwargs))

    def __repr__(self) -> str:
        return f"<retried entry of {name_of(self._fn)}>"


class _SyncContext(_RetriedContext, contextlib.ContextDecorator):
    """For `with`, and as a decorator."""

    def __enter__(self) -> Any:
        @functools.wraps(self._fn)
        def enter(*args: Any, **kwargs: Any) -> Any:
            manager = self._make(*args, **kwargs)
            value = type(manager).__enter__(manager)
            self._entered.append(manager)
            return value

        call, begun = self._next_call()
        return call_sync(call, enter, self._args, self._kwargs, begun=begun)

    def __exit__(self, *error: Any) -> Any:  # noqa: PYI036 - three, whatever they are
        manager = self._entered.pop()
        try:
            return type(manager).__exit__(manager, *error)
        finally:
            del error  # it refers to this frame if it raises: no cycle


class _AsyncContext(_RetriedContext, contextlib.AsyncContextDecorator):
    """For `async with`, and as a decorator; all else is that of the context manager which the function returned."""

    async def __aenter__(self) -> Any:
        @functools.wraps(self._fn)
        async def enter(*args: Any, **kwargs: Any) -> Any:
            manager = self._make(*args, **kwargs)
            if is_awaitable(manager) and not _enters_async(manager):
                manager = await manager
            value = await type(manager).__aenter__(manager)
            self._entered.append(manager)
            return value

        call, begun = self._next_call()
        call.in_loop = True
        return await call_async(call, enter, self._args, self._kwargs, begun=begun)

    async def __aexit__(self, *error: Any) -> Any:  # noqa: PYI036 - three, whatever they are
        manager = self._entered.pop()
        try:
            return await type(manager).__aexit__(manager, *error)
        finally:
            del error  # it refers to this frame if it raises: no cycle

    def __getattr__(self, name: str) -> Any:
        return getattr(self._first, name)


class _AwaitableContext(_AsyncContext, Coroutine[Any, Any, Any]):
    """For `async with` and `await`, as aiohttp's requests and the connections of asyncpg are: retried either way."""

    _started: Coroutine[Any, Any, Any] | None = None

    def _awaited(self) -> Coroutine[Any, Any, Any]:
        if self._started is None:
            call, begun = self._next_call()
            call.in_loop = True
            self._started = call_async(call, self._make, self._args, self._kwargs, begun=begun)
        return self._started

    def __await__(self) -> Generator[Any, Any, Any]:
        return self._awaited().__await__()

    def send(self, value: Any) -> Any:
        return self._awaited().send(value)

    def throw(self, *error: Any) -> Any:
        return self._awaited().throw(*error)

    def close(self) -> None:
        if isinstance(self._first, Coroutine):
            self._first.close()
        if self._started is not None:
            self._started.close()
