"""`Retry`: the policy as users meet it. It decides nothing itself: it starts calls and puts them around functions.

Below it, from the bottom: `settings` (what the policy says) and `budget`; `call` (one call: whether there is another
attempt); `functions`, `streams`, `attempt` and `unfinished` (what makes the attempts, for each form of call).
"""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, ClassVar, ParamSpec, TypeVar, cast, overload

from penstock._introspect import GENERATORS, decorable_kind, kind_of, name_of, refuse_awaitable
from penstock._text import repr_of
from penstock.retry.attempt import Attempt, Attempts
from penstock.retry.call import RetriedCall
from penstock.retry.functions import PLAIN, call_async, call_sync
from penstock.retry.settings import RetrySettings
from penstock.retry.streams import Resume, retried_stream
from penstock.retry.unfinished import finish_later, finish_later_of_async, refuse_manager, refuse_unfinished

_P = ParamSpec("_P")
_T = TypeVar("_T")
_F = TypeVar("_F", bound=Callable[..., Any])


class Retry(RetrySettings):
    """A policy of when to try again: a frozen value, safe to share between any number of tasks and threads.

    Spans of time are numbers of seconds, or `timedelta`s.

    Args:
        on: Which errors are worth another attempt; there is no default. Exception types, or a function of the error
            that returns False (give up), True (retry) or a span of time (retry after exactly that, or after the
            server's hint if that is longer). It sees the error that was raised, not what that was raised `from`. An
            exception group is retried only if every exception in it would be.
        attempts: How many attempts there are at most, the first included, 1 or more; None for any number.
        within: The time from the start of the call after which no attempt starts, and which no wait passes; above 0,
            None for no bound. It does not cut a running attempt: `attempt_timeout` does.
        backoff: How long to wait; see `exponential` and `constant`.
        budget: What bounds the retries of all calls that share it; see `Budget`.
        on_result: The same as `on` for results: a function of the result that returns False (take it), True (try
            again) or a span of time (try again after that). When there are no attempts left, the last result is
            returned. If the function raises, the result is returned.
        hint: A function that finds how long the server asked to wait; None not to ask. A wait is never shorter than the
            hint, and spread over a tenth above it, unless the backoff has jitter "none". Answers that are None,
            negative or NaN count as no hint. So does an error of the function, which is logged.
        max_hint: Give up at once when the server asks for more than this, 0 or more. A call always gives up when the
            server asks for more than the time left, or for more than a year.
        attempt_timeout: The time for one attempt, above 0. `AttemptTimeout` is raised in a longer one, and retried only
            if `on` says so. Async only. Of an async generator, and of a context manager, it bounds the wait for the
            first item: one that keeps a task group or a cancel scope open over that item cannot be bounded so (PEP
            789).
        on_event: Called with each record of `penstock.events` as it happens. If it raises, the error is logged and the
            call goes on.
        nested: Retry even inside another policy's attempt. By default an inner policy makes one attempt and leaves the
            others to the outer one: 3 attempts of 3 attempts each would be 9 calls.
        random: Draws a number from [0, 1), for jitter; by default from the system, whatever the program seeds.

    The deadline of enclosing anyio or trio cancel scopes is obeyed: a wait that would pass it is not begun. (That of
    `asyncio.timeout` cannot be seen beforehand; it cancels the wait.)

    A task that is started inside an attempt counts as part of it while that attempt runs, because its failure is
    usually the attempt's. A task that outlives it retries by itself again.

    Raises:
        TypeError: `on` is neither types of `Exception` nor a function, or an argument is of a wrong type. None of the
            functions may be async.
        ValueError: A number is out of range, or no number.
    """

    # The fields are those of the settings; a second `@dataclass` would only take a millisecond to import.
    __slots__ = ()

    _penstock_kind: ClassVar[str] = "retry"

    @overload
    def __call__(self, fn: _F, /) -> _F: ...
    @overload
    def __call__(self, /, *, resume: Resume) -> Callable[[_F], _F]: ...
    def __call__(self, fn: _F | None = None, /, *, resume: Resume | None = None) -> _F | Callable[[_F], _F]:
        """Decorate an async function, a plain function (its waits block the thread) or an async generator function.

        A plain function that returns an awaitable is retried when it is awaited. A function that returns a context
        manager, as one under `@asynccontextmanager` or `@contextmanager` does, is retried until the context manager was
        entered; errors of the `with` block go to the caller.

        An async generator is retried only until its first item: after that a new attempt would repeat items. With
        `resume(last, *args, **kwargs)`, a function that returns an async iterator over the items after `last`, it is
        retried to its end.

        Raises:
            TypeError: A sync generator function: it fails after its items were handed out, and there is no call to
                repeat.
        """
        if fn is None:
            return lambda fn: self._decorate(fn, resume)
        return self._decorate(fn, resume)

    def _decorate(self, fn: _F, resume: Resume | None) -> _F:
        kind = decorable_kind(fn)
        if kind == "generator":
            raise TypeError(
                f"{name_of(fn)} is a generator function, which cannot be retried: "
                "its items are handed out before it fails. "
                "Retry what it calls, return a list, or make it an async generator"
            )
        if kind == "stream":
            if self.on_result is not None:
                raise TypeError(
                    f"on_result= looks at a result, and {name_of(fn)} is an async generator, which has none"
                )
            return cast("_F", retried_stream(self, fn, resume))
        if resume is not None:
            raise TypeError(f"resume= continues an async generator, which {name_of(fn)} is not")
        if kind == "async":
            return self._decorate_async(fn)
        if kind != "async context":
            self._check_no_timeout(name_of(fn))
        return self._decorate_plain(fn)

    def _decorate_async(self, fn: _F) -> _F:
        name = name_of(fn)

        @functools.wraps(fn)
        async def retried(*args: Any, **kwargs: Any) -> Any:
            result = await call_async(RetriedCall(self, name), fn, args, kwargs)
            return result if type(result) in PLAIN else finish_later_of_async(self, (fn, args, kwargs), result)

        retried.__qualname__ = name  # `wraps` finds none on partials and callable objects
        return cast("_F", retried)

    def _decorate_plain(self, fn: _F) -> _F:
        name = name_of(fn)

        @functools.wraps(fn)
        def retried(*args: Any, **kwargs: Any) -> Any:
            return call_sync(RetriedCall(self, name), fn, args, kwargs, unfinished=finish_later)

        retried.__qualname__ = name
        return cast("_F", retried)

    @overload
    async def call(self, fn: Callable[_P, Awaitable[_T]], /, *args: _P.args, **kwargs: _P.kwargs) -> _T: ...
    @overload
    async def call(self, fn: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> _T: ...
    async def call(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Call an async function under this policy and return its result.

        A plain function that does not block may be called so too: `await retry.call(limiter.acquire_nowait, tokens=5)`.

        Raises:
            TypeError: A generator function of either kind, or one that returns a context manager: decorate it instead.
        """
        _check_callable(fn)
        result = await call_async(RetriedCall(self, name_of(fn)), fn, args, kwargs)
        if isinstance(result, GENERATORS):
            _check_no_generator(fn)
        refuse_manager(fn, result)
        return result

    def call_sync(self, fn: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Call a function under this policy and return its result. Waits block the thread.

        Raises:
            WouldBlockEventLoop: There would be a wait, and this thread runs an event loop, which the wait would stop.
            TypeError: A generator function of either kind, or a function that returns an awaitable or a context
                manager.
        """
        _check_callable(fn)
        self._check_no_timeout(name_of(fn))
        result = call_sync(RetriedCall(self, name_of(fn)), fn, args, kwargs, unfinished=refuse_unfinished)
        if isinstance(result, GENERATORS):
            _check_no_generator(fn)
        return cast("_T", result)

    def __aiter__(self) -> AsyncIterator[Attempt]:
        """Attempts, one after the other: `async for attempt in retry:` with `with attempt:` around what may fail.

        `async with attempt, limiter(tokens=5):` charges each attempt. Each loop is a call of its own. With `on_result`,
        set `attempt.result` inside the `with` block.
        """
        return Attempts(RetriedCall(self, "block"))

    def __iter__(self) -> Iterator[Attempt]:
        """The same as `async for`, for threads: waits block."""
        self._check_no_timeout("a `for` loop over a policy")
        return Attempts(RetriedCall(self, "block", in_loop=False))

    def _check_no_timeout(self, name: str) -> None:
        if self.attempt_timeout is not None:
            raise TypeError(
                f"{name} cannot be cut after attempt_timeout={self.attempt_timeout:g}: nothing can stop a thread in a "
                "blocking call. Give that call a timeout of its own, or use an async function"
            )

    def __repr__(self) -> str:
        return self.shown


def _check_callable(fn: object) -> None:
    if not callable(fn):
        refuse_awaitable(
            fn,
            f"{repr_of(fn)} cannot be called again: give the function and its arguments apart, as "
            "retry.call(fetch, url)",
        )


def _check_no_generator(fn: Callable[..., Any]) -> None:
    """Refuse a generator function. A plain function that returns a generator has done its work, and is welcome."""
    kind = kind_of(fn)
    if kind in {"generator", "stream"}:
        raise TypeError(
            f"{name_of(fn)} is {'an async' if kind == 'stream' else 'a'} generator function: "
            "calling it does nothing yet, so there is nothing to retry. "
            + ("Decorate it, and it is retried until its first item" if kind == "stream" else "Retry what it calls")
        )
