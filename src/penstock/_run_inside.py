"""Run each call of a function, of any kind, inside a context manager: a permit, or the watch of a circuit breaker.

A plain callable may turn out to return an awaitable. Its context manager then stays entered until the awaitable is
done, and later calls of that callable are treated as async. The kinds of function are told apart in `_introspect`.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import warnings
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from types import AsyncGeneratorType
from typing import Any, Generic, TypeVar, cast

from penstock._concurrency.parking import loop_running_here
from penstock._introspect import CONTEXT_MANAGERS, GENERATORS, decorable_kind, name_of, refuse_awaitable, to_be_awaited
from penstock.errors import WouldBlockEventLoop

_F = TypeVar("_F", bound=Callable[..., Any])
_Entered = TypeVar("_Entered")


def run_inside(
    fn: _F,
    enter: Callable[[tuple[Any, ...], dict[str, Any]], AbstractContextManager[_Entered]],
    enter_async: Callable[[tuple[Any, ...], dict[str, Any]], AbstractAsyncContextManager[_Entered]] | None = None,
    *,
    seen: Callable[[_Entered, Any], object] | None = None,
) -> _F:
    """Decorate a function of any kind: each of its calls runs inside a context manager, from its beginning to its end.

    A generator's call ends with its last item. A call of a function under `@contextmanager` or `@asynccontextmanager`
    is the whole block. A plain callable's call ends when it returns. If it returns an awaitable, the call ends when
    that has been awaited (or left again, where it is used by `async with`, as HTTP clients allow); if a generator, when
    that ends.

    A plain callable is entered by `enter` at first, as by a thread: in a running event loop that may refuse to wait.
    Once it has returned an awaitable it is known as async, and each call of it in a running event loop uses
    `enter_async`.

    Args:
        fn: What to decorate.
        enter: Makes the context manager for a call with these positional and keyword arguments.
        enter_async: The same for async calls; None: `enter` never waits, and serves these as well.
        seen: Called with what the context manager returned and with the call's result, inside the context manager. Not
            for generators and context managers, which have no result.
    """
    kind = decorable_kind(fn)
    wrapper: Any
    in_loop: Any = enter_async or (lambda args, kwargs: _NeverWaits(enter(args, kwargs)))
    if kind == "async":
        wrapper = _async_inside(fn, in_loop, seen)
    elif kind == "stream":
        return cast("_F", stream_inside(in_loop, fn))
    elif kind == "generator":

        def wrapper(*args: Any, **kwargs: Any) -> Any:
            with enter(args, kwargs):
                return (yield from fn(*args, **kwargs))

    elif kind == "async context":

        async def block(*args: Any, **kwargs: Any) -> AsyncIterator[Any]:
            async with in_loop(args, kwargs), fn(*args, **kwargs) as value:
                yield value

        wrapper = contextlib.asynccontextmanager(block)
    elif kind == "context":

        def plain_block(*args: Any, **kwargs: Any) -> Iterator[Any]:
            with enter(args, kwargs), fn(*args, **kwargs) as value:
                yield value

        wrapper = contextlib.contextmanager(plain_block)
    else:
        wrapper = _plain_inside(fn, enter, enter_async, seen)
    return cast("_F", functools.wraps(fn)(wrapper))


def _async_inside(fn: Any, enter_async: Any, seen: Any) -> Any:
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        async with enter_async(args, kwargs) as inside:
            result = await fn(*args, **kwargs)
            if seen is not None:
                seen(inside, result)
            return result

    return wrapper


def _plain_inside(fn: Any, enter: Any, enter_async: Any, seen: Any) -> Any:
    name = name_of(fn)
    is_async = False  # nothing shows it before it has returned an awaitable

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        nonlocal is_async
        if is_async and enter_async is not None and loop_running_here():
            return _LateCall(name, functools.partial(fn, *args, **kwargs), enter_async(args, kwargs), seen)
        opened = _OpenContext(name, enter(args, kwargs))
        with opened as inside:
            result = fn(*args, **kwargs)
            if to_be_awaited(result):
                is_async = True
                opened.until_later = True
                left = _Left(opened)
                return _LateCall(name, lambda: result, _NeverWaits(left), seen, functools.partial(_close, result, left))
            if isinstance(result, CONTEXT_MANAGERS):
                raise TypeError(
                    f"{name} returned a context manager, whose block would run outside of what decorates {name}. "
                    "Decorate the function below @contextmanager or @asynccontextmanager"
                )
            if seen is not None:
                seen(inside, result)
            if isinstance(result, GENERATORS):
                opened.until_later = True
                return _items_inside(result, opened)
            return result

    return wrapper


def _items_inside(items: Any, opened: _OpenContext[Any]) -> Any:
    """Run the generator that a plain callable returned inside the context manager, until it ends or is collected."""
    if isinstance(items, AsyncGeneratorType):
        left = _NeverWaits(_Left(opened))
        return stream_inside(lambda _args, _kwargs: left, lambda: items)()

    def generate(left: _Left) -> Any:
        with left:
            return (yield from items)

    return generate(_Left(opened))


class _NeverWaits(AbstractAsyncContextManager[_Entered]):
    """A context manager that never waits, for `async with`."""

    __slots__ = ("_manager",)

    def __init__(self, manager: AbstractContextManager[_Entered]) -> None:
        self._manager = manager

    async def __aenter__(self) -> _Entered:
        return self._manager.__enter__()

    async def __aexit__(self, *error: Any) -> bool | None:  # noqa: PYI036 - three, whatever they are
        return self._manager.__exit__(*error)


class _OpenContext(Generic[_Entered]):
    """A context manager that may stay entered when the `with` block of a plain call ends."""

    __slots__ = ("_manager", "_name", "inside", "until_later")

    inside: _Entered  # what it returned

    def __init__(self, name: str, manager: AbstractContextManager[_Entered]) -> None:
        self._name = name
        self._manager = manager
        self.until_later = False

    def __enter__(self) -> _Entered:
        try:
            self.inside = self._manager.__enter__()
            return self.inside
        except WouldBlockEventLoop as error:
            error.add_note(
                f"penstock: {self._name} is a plain callable. "
                "If it returns an awaitable, decorate an async function that awaits it"
            )
            raise

    def __exit__(self, *error: Any) -> bool | None:  # noqa: PYI036
        return None if self.until_later else self._manager.__exit__(*error)

    def leave(self, *error: Any) -> bool | None:
        return self._manager.__exit__(*error)


def _close(result: Any, left: _Left) -> None:
    """What was called will not be awaited."""
    if isinstance(result, Coroutine):
        result.close()
    left.abandon()


class _LateCall(Coroutine[Any, Any, Any]):
    """A call of a plain callable that ends when it is awaited. It is a coroutine, for `create_task` and task groups.

    It can also be entered, if the callable's own result can: `async with get(url) as response`.

    Args:
        name: Of the callable.
        call: Returns what is to be awaited, or entered.
        manager: What it happens inside.
        seen: As of `run_inside`.
        abandon: What there is to do if it will not be awaited.
    """

    __slots__ = ("_abandon", "_call", "_manager", "_name", "_running", "_seen", "_used", "_within")

    def __init__(
        self,
        name: str,
        call: Callable[[], Any],
        manager: AbstractAsyncContextManager[Any],
        seen: Callable[[Any, Any], object] | None,
        abandon: Callable[[], object] = lambda: None,
    ) -> None:
        self._name = name
        self._call = call
        self._manager = manager
        self._seen = seen
        self._abandon = abandon
        self._running: Coroutine[Any, Any, Any] | None = None
        self._within: AbstractAsyncContextManager[Any] | None = None
        self._used = False

    async def _run(self) -> Any:
        async with self._manager as inside:
            result = self._call()
            if inspect.isawaitable(result):
                result = await result
            if self._seen is not None:
                self._seen(inside, result)
            return result

    @contextlib.asynccontextmanager
    async def _entered(self) -> AsyncIterator[Any]:
        async with self._manager as inside, _enterable(self._name, self._call()) as value:
            if self._seen is not None:
                self._seen(inside, value)
            yield value

    def _begun(self) -> Coroutine[Any, Any, Any]:
        if self._running is None:
            if self._used:
                raise RuntimeError(f"the call of {self._name} was used already: it can be awaited once")
            self._used = True
            self._running = self._run()
        return self._running

    def __await__(self) -> Any:
        return self._begun().__await__()

    def send(self, value: Any) -> Any:
        return self._begun().send(value)

    def throw(self, *error: Any) -> Any:
        if self._running is None:  # a task that was cancelled before its first step
            self.close()
            raise error[-1] if isinstance(error[-1], BaseException) else error[0]
        return self._running.throw(*error)

    def close(self) -> None:
        if self._running is not None:
            self._running.close()
        elif not self._used:
            self._used = True
            self._abandon()

    async def __aenter__(self) -> Any:
        if self._used:
            raise RuntimeError(f"the call of {self._name} was used already: it can be entered once")
        self._used = True
        self._within = self._entered()
        return await self._within.__aenter__()

    async def __aexit__(self, *error: Any) -> bool | None:  # noqa: PYI036
        assert self._within is not None
        return await self._within.__aexit__(*error)

    def __del__(self) -> None:
        if not self._used:
            self._used = True
            self._abandon()  # first: a filter may turn the warning into an error
            warnings.warn(f"the call of {self._name} was never awaited", RuntimeWarning, stacklevel=2, source=self)

    def __repr__(self) -> str:
        return f"<call of {self._name}, to be awaited>"


class _Left:
    """Leaves what was entered before, once: at the end of its block, or when it is collected without one."""

    __slots__ = ("_opened",)

    def __init__(self, opened: _OpenContext[Any]) -> None:
        self._opened: _OpenContext[Any] | None = opened

    def __enter__(self) -> Any:
        return None if self._opened is None else self._opened.inside

    def __exit__(self, *error: Any) -> bool | None:  # noqa: PYI036
        opened, self._opened = self._opened, None
        return None if opened is None else opened.leave(*error)

    def abandon(self) -> None:
        """Leave a call that will not be finished."""
        self.__exit__(GeneratorExit, GeneratorExit(), None)

    __del__ = abandon


def _enterable(name: str, result: Awaitable[Any]) -> AbstractAsyncContextManager[Any]:
    if not hasattr(type(result), "__aenter__"):
        refuse_awaitable(result, f"what {name} returns is to be awaited, and no async context manager: await the call")
    return cast("AbstractAsyncContextManager[Any]", result)


def stream_inside(
    enter: Callable[[tuple[Any, ...], dict[str, Any]], AbstractAsyncContextManager[Any]],
    fn: Callable[..., AsyncGenerator[Any, Any]],
) -> Callable[..., AsyncGenerator[Any, Any]]:
    """Decorate an async generator function: each of its generators runs inside what `enter(args, kwargs)` returns.

    What the caller sends or throws in goes on to the generator itself, as by the `yield from` that async generators
    lack. So it may answer, or handle an error, as one does under `@asynccontextmanager`. The generator ends before the
    context does.
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
