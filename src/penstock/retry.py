"""Trying again: when, how often, and how long to wait in between.

    retry = Retry(on=(ConnectionError, RateLimited), attempts=6, within=300)

    @retry                                        # async functions, sync functions, async generators
    async def fetch(url): ...

    reply = await retry.call(fetch, url)          # or `retry.call_sync(...)` in a thread

    async for attempt in retry:                   # or `for attempt in retry:` in a thread
        with attempt:
            ...

A `Retry` is a frozen value and holds no state: what belongs to one call lives in that call's `_Call`, so any number of tasks
and threads can share a policy. What is shared on purpose is a `Budget`.

Only `Exception` is ever looked at. Cancellation, KeyboardInterrupt and GeneratorExit pass through untouched, also in the
middle of a wait. The last error is raised itself; notes on it tell what came before and which bound ended it.

Elsewhere: the formulas of waits and budgets (`_core`), which errors count (`_classify`), what the server asked for
(`_retry_after`). Here is what reads clocks, waits and calls, in four parts: the budget, the policy, one call under it, and what
drives the attempts of that call. How calls are limited is none of this module's business, but an error that says
`retry_after` is heard, whoever raised it.
"""

from __future__ import annotations

import functools
import math
import random
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextvars import ContextVar, Token
from dataclasses import KW_ONLY, dataclass, field
from types import AsyncGeneratorType, GeneratorType
from typing import TYPE_CHECKING, Any, ClassVar, ParamSpec, Self, SupportsIndex, TypeVar, cast, overload

import anyio

from penstock import clock
from penstock._classify import On, check_on, shown_on, verdict_of, verdict_on
from penstock._concurrency.parking import loop_running_here
from penstock._core.backoff import Backoff, Constant, Exponential, Jitter, constant, exponential, spread
from penstock._core.budget import Credit, RatioCredit, TokenCredit
from penstock._introspect import check_plain, kind_of, name_of
from penstock._retry_after import retry_after
from penstock.errors import AttemptTimeout, WouldBlockEventLoop
from penstock.events import AttemptStarted, GaveUp, Reason, RetryEvent, RetryScheduled, Succeeded, emit

if TYPE_CHECKING:
    from types import TracebackType

__all__ = [
    "Attempt",
    "Backoff",
    "Budget",
    "Constant",
    "Exponential",
    "Jitter",
    "Retry",
    "constant",
    "current_attempt",
    "exponential",
    "retry_after",
]

_P = ParamSpec("_P")
_T = TypeVar("_T")
_F = TypeVar("_F", bound=Callable[..., Any])

_ROUNDING = 1e-6  # seconds by which sums of waits may miss a bound that they meet on paper
_REMEMBERED = 20  # attempts told in the notes; a policy without bounds must not fill the memory
_MOST_NOTES = 40  # on one error, which may be shared by many calls, and raised again and again


# ----------------------------------------------------------------------------------------------------------------------
# Budget


class Budget:
    """How many retries there may be, over all calls and policies that share it. Any thread may use it.

    `Budget(ratio, floor, ttl)` (Finagle's scheme): retries ≤ ratio × calls + floor per second. Each first attempt earns
    `ratio` of a retry; what is not used within `ttl` seconds is lost.

    `Budget.tokens(...)` (the AWS SDKs' scheme): a pot of tokens that retries empty and successes refill.

    Without a budget an outage multiplies the load on the service by `attempts`, right when it can bear it least. When a
    budget is spent, errors go to the caller at once, with a note that says so.

    Args:
        ratio: Retries that each call allows, 0 or more; 0.2 adds at most a fifth to the load.
        floor: Retries per second that are always free, for those who call rarely.
        ttl: Seconds for which what a call earned can be used.

    Raises:
        ValueError: A number is negative or not finite, or `ttl` is 0.
    """

    __slots__ = ("_credit", "_lock", "_shown")

    _credit: Credit

    def __init__(self, ratio: float = 0.2, floor: float = 10, ttl: float = 10) -> None:
        self._credit = RatioCredit(ratio, floor, ttl)
        self._shown = f"Budget(ratio={ratio:g}, floor={floor:g}, ttl={ttl:g})"
        self._lock = threading.Lock()

    @classmethod
    def tokens(cls, capacity: float = 500, retry: float = 5, timeout: float = 10, success: float = 1) -> Budget:
        """A pot of `capacity` tokens, full at first.

        A retry costs `retry`, or `timeout` if what failed was a `TimeoutError`. A call that succeeds puts back what its
        last retry cost, or `success` if it needed none.

        Raises:
            ValueError: A number is not above 0 (`success`: 0 or more), or not finite.
        """
        budget = cls()
        budget._credit = TokenCredit(capacity, retry, timeout, success)
        budget._shown = (
            f"Budget.tokens(capacity={capacity:g}, retry={retry:g}, timeout={timeout:g}, success={success:g})"
        )
        return budget

    def called(self) -> None:
        """Tell that a call begins. `Retry` does."""
        with self._lock:
            self._credit.called(clock.now())

    def spend(self, *, timed_out: bool = False) -> float | None:
        """Take the price of one retry and return it; None, and nothing taken, if there is none left. Never waits."""
        with self._lock:
            return self._credit.spend(clock.now(), timed_out=timed_out)

    def succeeded(self, paid: float | None = None) -> None:
        """Tell that a call succeeded, and what its last retry cost, if it had one."""
        with self._lock:
            self._credit.succeeded(paid)

    @property
    def left(self) -> float:
        """How many retries could be made now."""
        with self._lock:
            return self._credit.left(clock.now())

    def __repr__(self) -> str:
        return self._shown


# ----------------------------------------------------------------------------------------------------------------------
# The policy


def _drawn() -> float:
    # Not `random.random` itself: pickled, it takes the state of its generator along, and all processes that a policy is sent
    # to would draw the same waits.
    return random.random()


@dataclass(frozen=True, slots=True, repr=False)
class Retry:
    """A policy of when to try again: a frozen value, safe to share between any number of tasks and threads.

    Args:
        on: Which errors are worth another attempt; there is no default. Exception types, or a function of the error that
            says False (give up), True (retry) or a number of seconds (retry after exactly that, or after the server's
            hint if that is longer). Of an exception group every leaf must be worth it.
        attempts: How many attempts there are at most, the first included; None for any number.
        within: Seconds from the start of the call after which no attempt starts, and which no wait passes; None for no
            bound. It does not cut a running attempt: `attempt_timeout` does.
        backoff: How long to wait; see `exponential` and `constant`.
        budget: What bounds the retries of all who share it; see `Budget`.
        on_result: The same as `on` for results: a function that says True for one that is to be tried again. When there
            are no attempts left, the last result is returned.
        hint: A function that finds how many seconds the server asked to wait; None not to ask. A wait is never shorter than
            the hint, and spread over a tenth above it, unless the backoff has jitter "none". None, what is below 0 and NaN
            say nothing.
        max_hint: Give up at once when the server asks for more seconds than this. More than the time left always does.
        attempt_timeout: Seconds for one attempt; `AttemptTimeout` is raised in a longer one, and retried only if `on` says
            so. Async only. Of an async generator it bounds the wait for the attempt's first item; one that keeps a task group
            or a cancel scope open over that item cannot be bounded so (PEP 789).
        on_event: Called with each record of `penstock.events` as it happens. What it raises is logged and goes no further.
        nested: Retry even inside another policy's attempt. By default an inner policy makes one attempt and leaves the rest
            to the outer one: 3 attempts of 3 attempts each are 9 calls.
        random: Draws a number from [0, 1), for jitter.

    The deadline of enclosing anyio or trio cancel scopes is obeyed: a wait that would pass it is not begun. (That of
    `asyncio.timeout` cannot be seen beforehand; it cancels the wait.)

    A task that is started inside an attempt counts as part of it while that attempt runs, because its failure is usually
    the attempt's. A task that outlives it retries by itself again.

    Raises:
        TypeError: `on` is neither types of `Exception` nor a function, or an argument is not what it should be. None of the
            functions may be async.
        ValueError: A number is out of range.
    """

    on: On
    _: KW_ONLY
    attempts: int | None = 6
    within: float | None = 300
    backoff: Backoff = field(default_factory=exponential)
    budget: Budget | None = None
    on_result: Callable[[Any], bool | float] | None = None
    hint: Callable[[Exception], float | None] | None = retry_after
    max_hint: float | None = None
    attempt_timeout: float | None = None
    on_event: Callable[[RetryEvent], object] | None = None
    nested: bool = False
    random: Callable[[], float] = _drawn

    _penstock_kind: ClassVar[str] = "retry"

    def __post_init__(self) -> None:
        check_on("Retry", self.on)
        for name in ("on_result", "hint", "on_event", "random"):
            if getattr(self, name) is not None:
                check_plain("Retry", name, getattr(self, name))
        _check_parts(self.backoff, self.budget)
        if self.attempts is not None and not _is_count(self.attempts):
            raise ValueError(
                f"Retry(attempts={self.attempts!r}): a whole number from 1, the first attempt included; or None"
            )
        for name, value in (("within", self.within), ("attempt_timeout", self.attempt_timeout)):
            if value is not None and not value > 0:
                raise ValueError(f"Retry({name}={value!r}): a number of seconds above 0, or None for no bound")
        if self.max_hint is not None and not self.max_hint >= 0:
            raise ValueError(f"Retry(max_hint={self.max_hint!r}): a number of seconds, 0 or more, or None for no bound")

    @overload
    def __call__(self, fn: _F, /) -> _F: ...
    @overload
    def __call__(self, /, *, resume: Callable[..., AsyncIterator[Any]]) -> Callable[[_F], _F]: ...
    def __call__(
        self, fn: _F | None = None, /, *, resume: Callable[..., AsyncIterator[Any]] | None = None
    ) -> _F | Callable[[_F], _F]:
        """Decorate an async function, a sync function (its waits block the thread) or an async generator function.

        An async generator is retried only until its first item: after that a new attempt would repeat items. Unless
        `resume(last, *args, **kwargs)` is given, which returns an async iterator over what comes after the item `last`.

        Raises:
            TypeError: A sync generator function: by the time it fails, its items are used, and there is no call to repeat.
        """
        if fn is None:
            return lambda fn: self._decorate(fn, resume)
        return self._decorate(fn, resume)

    def _decorate(self, fn: _F, resume: Callable[..., AsyncIterator[Any]] | None) -> _F:
        kind = kind_of(fn)
        if kind == "generator":
            raise TypeError(
                f"{name_of(fn)} is a generator function, which cannot be retried: its items are handed out before it fails. "
                "Retry what it calls, return a list, or make it an async generator"
            )
        if kind == "stream":
            if self.on_result is not None:
                raise TypeError(
                    f"on_result= looks at a result, and {name_of(fn)} is an async generator, which has none"
                )
            return cast("_F", _retried_stream(self, fn, resume))
        if resume is not None:
            raise TypeError(f"resume= continues an async generator, which {name_of(fn)} is not")
        name = name_of(fn)
        if kind == "async":

            @functools.wraps(fn)
            async def retried(*args: Any, **kwargs: Any) -> Any:
                return await _drive(_Call(self, name), fn, args, kwargs)

            return cast("_F", retried)
        self._check_no_timeout(name)

        @functools.wraps(fn)
        def retried_sync(*args: Any, **kwargs: Any) -> Any:
            return _drive_sync(_Call(self, name), fn, args, kwargs)

        return cast("_F", retried_sync)

    @overload
    async def call(self, fn: Callable[_P, Awaitable[_T]], /, *args: _P.args, **kwargs: _P.kwargs) -> _T: ...
    @overload
    async def call(self, fn: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> _T: ...
    async def call(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Call an async function under this policy and return its result.

        A plain function that does not block may be called so too: `await retry.call(limiter.acquire_nowait, tokens=5)`.

        Raises:
            TypeError: A generator function of either kind: decorate an async one instead.
        """
        result = await _drive(_Call(self, name_of(fn)), fn, args, kwargs)
        if isinstance(result, _GENERATORS):
            _check_no_generator(fn)
        return result

    def call_sync(self, fn: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Call a function under this policy and return its result. Waits block the thread.

        Raises:
            WouldBlockEventLoop: There would be a wait, and this thread runs an event loop, which the wait would stop.
            TypeError: A generator function of either kind.
        """
        self._check_no_timeout(name_of(fn))
        result = _drive_sync(_Call(self, name_of(fn)), fn, args, kwargs)
        if isinstance(result, _GENERATORS):
            _check_no_generator(fn)
        return cast("_T", result)

    def __aiter__(self) -> AsyncIterator[Attempt]:
        """Attempts, one after the other: `async for attempt in retry:` with `with attempt:` around what may fail.

        Each loop is a call of its own. With `on_result`, set `attempt.result` inside the `with` block.
        """
        return _AsyncLoop(_Call(self, "block"))

    def __iter__(self) -> Iterator[Attempt]:
        """The same as `async for`, for threads: waits block."""
        self._check_no_timeout("a `for` loop over a policy")
        return _Loop(_Call(self, "block", in_loop=False))

    def _check_no_timeout(self, name: str) -> None:
        if self.attempt_timeout is not None:
            raise TypeError(
                f"{name} cannot be cut after attempt_timeout={self.attempt_timeout:g}: nothing can stop a thread in a "
                "blocking call. Give that call a timeout of its own, or use an async function"
            )

    def __repr__(self) -> str:
        shown = [
            f"on={shown_on(self.on)}",
            f"attempts={self.attempts}",
            f"within={self.within}",
            f"backoff={self.backoff!r}",
        ]
        shown += [
            f"{name}={name_of(value) if callable(value) else repr(value)}"
            for name, default in _SHOWN_IF_SET
            if (value := getattr(self, name)) is not default
        ]
        return f"Retry({', '.join(shown)})"


def _check_parts(backoff: object, budget: object) -> None:
    """Refuse what is no backoff and no budget, here and not at the first failure."""
    if not isinstance(backoff, Backoff):
        shown = name_of(backoff) if callable(backoff) else repr(backoff)
        raise TypeError(
            f"Retry(backoff={shown}): exponential(...), constant(...), or an object with `delay` and `jitter`"
        )
    if budget is not None and not isinstance(budget, Budget):
        raise TypeError(f"Retry(budget={budget!r}): a Budget(...), or None")


def _is_count(value: object) -> bool:
    return isinstance(value, SupportsIndex) and value.__index__() >= 1


_GENERATORS = (GeneratorType, AsyncGeneratorType)


def _check_no_generator(fn: Callable[..., Any]) -> None:
    """Refuse a generator function. One that returns a generator has done what it is there for, and is welcome."""
    kind = kind_of(fn)
    if kind in {"generator", "stream"}:
        raise TypeError(
            f"{name_of(fn)} is {'an async' if kind == 'stream' else 'a'} generator function: calling it does nothing yet, "
            "so there is nothing to retry. Decorate an async one, and retry what the other calls"
        )


_SHOWN_IF_SET: tuple[tuple[str, object], ...] = (
    ("budget", None),
    ("on_result", None),
    ("hint", retry_after),
    ("max_hint", None),
    ("attempt_timeout", None),
    ("on_event", None),
    ("nested", False),
)


# ----------------------------------------------------------------------------------------------------------------------
# One call


class _Call:
    """One call under a policy: counts its attempts and decides after each whether there is another. It does not wait.

    In each attempt, in this order: `begin`, the attempt, `leave`, then one of `failed`, `judged` and `succeeded`.
    """

    __slots__ = (
        "attempt",
        "budget",
        "doomed",
        "drawn",
        "fast",
        "history",
        "in_loop",
        "key",
        "name",
        "number",
        "paid",
        "policy",
        "previous",
        "running",
        "stands_back",
        "started",
        "token",
    )

    def __init__(self, policy: Retry, name: str, *, in_loop: bool = True) -> None:
        outer = _current.get()
        self.policy = policy
        self.name = name
        self.in_loop = in_loop
        self.stands_back = outer is not None and outer.running and not policy.nested
        self.started = clock.now()
        self.fast = _fast.get()
        # Tests that do not wait should neither spend nor be stopped by a budget that outlives them.
        self.budget = None if self.stands_back or self.fast is not None else policy.budget
        self.number = 0
        self.running: bool = False
        self.doomed = (
            False  # the enclosing scope is cancelled or its deadline has passed: all that is left is to hear of it
        )
        self.previous: Exception | None = None
        self.paid: float | None = None  # what the last retry cost the budget
        self.drawn: float | None = None  # the last wait that the backoff drew
        self.key: str | None = None
        self.attempt: Attempt | None = None
        self.history: deque[str] | None = None
        self.token: Token[_Call | None] | None = None
        if self.budget is not None:
            self.budget.called()

    # What the attempt sees

    def begin(self) -> None:
        self.number += 1
        self.attempt = None
        if self.policy.on_event is not None:
            emit(self.policy.on_event, AttemptStarted(self.name, self.idempotency_key, self.number))
        self.enter()

    def enter(self) -> None:
        self.running = True
        self.token = _current.set(self)

    def leave(self) -> None:
        self.running = False
        if self.token is not None:
            try:
                _current.reset(self.token)
            except ValueError:
                # Entered in one context and left in another, as a generator can be that is closed by another task. What
                # stays behind is not `running`, and so means nothing.
                pass
            self.token = None

    def abandon(self) -> None:
        """End with cancellation, or what else is no failure. An error that is kept would keep its frames, and they us."""
        self.leave()
        self.previous = None

    @property
    def idempotency_key(self) -> str:
        if self.key is None:
            import uuid

            self.key = uuid.uuid4().hex
        return self.key

    # What the attempt came to

    def succeeded(self) -> None:
        self.previous = None
        if self.budget is not None:
            self.budget.succeeded(self.paid)
        if self.policy.on_event is not None:
            elapsed = clock.now() - self.started
            emit(self.policy.on_event, Succeeded(self.name, self.idempotency_key, self.number, elapsed))

    def judged(self, result: object) -> float | None:
        """Return the wait until the next attempt; None if `result` goes to the caller."""
        on_result = self.policy.on_result
        verdict = False if on_result is None else verdict_of(on_result(result))
        if verdict is False:
            self.succeeded()
            return None
        if self.stands_back:
            return self._give_up("nested", None, None)
        return self._again(None, verdict, None)

    def failed(self, error: Exception, *, repeatable: bool = True) -> float | None:
        """Return the wait until the next attempt; None if `error` goes to the caller.

        Args:
            error: What the attempt raised.
            repeatable: False when a new attempt would repeat what the caller already has.
        """
        verdict = verdict_on(self.policy.on, error)
        if verdict is False:
            return self._give_up("unretryable", error, None)
        if self.stands_back:
            return self._give_up("nested", error, None)
        if not repeatable:
            return self._give_up("stream", error, None)
        hint = None if self.policy.hint is None else self.policy.hint(error)
        if hint is not None and not hint >= 0:  # NaN too
            hint = None
        return self._again(error, verdict, hint)

    def _again(self, error: Exception | None, verdict: bool | float, hint: float | None) -> float | None:
        policy = self.policy
        now = clock.now()
        deadline = math.inf
        if self.in_loop:
            deadline = anyio.current_effective_deadline()
            if deadline < math.inf:
                deadline -= anyio.current_time()
            if deadline <= 0:
                # Cancelled, or about to be: that comes out as what it is, not as the last error.
                self.doomed = True
                return 0.0

        attempts = policy.attempts if self.fast is None else min(self.fast, policy.attempts or self.fast)
        if attempts is not None and self.number >= attempts:
            return self._give_up("attempts", error, hint)
        left = math.inf if policy.within is None else policy.within - (now - self.started)
        if hint is not None and hint > min(
            left + _ROUNDING, deadline, math.inf if policy.max_hint is None else policy.max_hint
        ):
            return self._give_up("hint", error, hint)
        delay = self._delay(verdict, hint, min(left, deadline))
        if delay > left + _ROUNDING:
            return self._give_up("within", error, hint)
        if delay >= deadline:
            return self._give_up("deadline", error, hint)
        if delay > 0 and not self.in_loop and loop_running_here():
            raise WouldBlockEventLoop(
                f"{self.name}: waiting {delay:.3g} s for the next attempt would stop the event loop that this thread runs. "
                "Decorate an async function, or call from a worker thread"
            ) from error
        if self.budget is not None:
            self.paid = self.budget.spend(timed_out=isinstance(error, TimeoutError))
            if self.paid is None:
                return self._give_up("budget", error, hint)

        if self.history is None:
            self.history = deque(maxlen=_REMEMBERED)
        self.history.append(
            f"penstock: attempt {self.number} ended at {now - self.started:.3g} s: {_shown(error)}; waited {delay:.3g} s"
        )
        self.previous = error
        if policy.on_event is not None:
            key = self.idempotency_key
            emit(policy.on_event, RetryScheduled(self.name, key, self.number, error, delay, hint))
        return delay

    def _delay(self, verdict: bool | float, hint: float | None, left: float) -> float:
        if self.fast is not None:
            return 0.0
        backoff, draw = self.policy.backoff, self.policy.random
        if verdict is not True:
            delay: float = verdict
            if hint is None or hint <= delay:
                return delay
        if hint is not None and hint > 0:
            return hint if backoff.jitter == "none" else spread(hint, left, draw())
        self.drawn = backoff.delay(self.number - 1, self.drawn, draw())
        return self.drawn

    def too_late(self) -> bool:
        """Whether a wait took so long that no attempt may start any more. If so, the call is over."""
        within = self.policy.within
        if within is None or clock.now() - self.started <= within + _ROUNDING:
            return False
        error = self.previous
        self._give_up("within", error, None)
        self.previous = error
        return True

    def _give_up(self, reason: Reason, error: Exception | None, hint: float | None) -> float | None:
        """Tell why the call is over; return None, for there is no wait."""
        elapsed = clock.now() - self.started
        self.previous = None
        if error is not None and (self.number > 1 or reason != "unretryable"):
            self._annotate(reason, error, elapsed, hint)
        if reason == "hint" and error is not None and getattr(error, "retry_after", None) is None:
            try:
                error.retry_after = hint  # type: ignore[attr-defined]
            except AttributeError:
                pass  # an exception with slots; the note has the number
        if self.policy.on_event is not None:
            key = self.idempotency_key
            emit(self.policy.on_event, GaveUp(self.name, key, self.number, error, reason, elapsed, hint))
        return None

    def _annotate(self, reason: Reason, error: Exception, elapsed: float, hint: float | None) -> None:
        if len(getattr(error, "__notes__", ())) >= _MOST_NOTES:
            return
        policy = self.policy
        why = {
            "attempts": f"attempts={policy.attempts} allows no more"
            if self.fast is None
            else f"fast_retries(attempts={self.fast}) allows no more",
            "within": f"the next attempt would start after within={policy.within} s",
            "deadline": "the wait would pass the deadline of the enclosing cancel scope",
            "hint": f"the server asks to wait {hint} s, which is more than "
            + (
                "the time left"
                if policy.max_hint is None or (hint or 0) <= policy.max_hint
                else f"max_hint={policy.max_hint} s"
            ),
            "budget": f"{policy.budget!r} has no retry left",
            "unretryable": "`on` says that this error is not worth another attempt",
            "nested": "an outer retry is in charge (nested=True would retry here too)",
            "stream": "items were handed out already, and a new attempt would repeat them (resume= says how to go on)",
        }[reason]
        many = f"{self.number} attempts" if self.number > 1 else "1 attempt"
        notes = [f"penstock: {self.name} gave up after {many} in {elapsed:.3g} s: {why}"]
        if self.history:
            if self.number - 1 > len(self.history):
                notes.append(f"penstock: the first {self.number - 1 - len(self.history)} attempts are not shown")
            notes += self.history
        try:
            for note in notes:
                error.add_note(note)
        except (AttributeError, TypeError):
            pass  # a frozen exception goes without; that must not hide it


_current: ContextVar[_Call | None] = ContextVar("penstock_current_call", default=None)

_fast: ContextVar[int | None] = ContextVar("penstock_fast_retries", default=None)
"""Set by `penstock.testing.fast_retries`: no waiting, no budgets, and at most so many attempts."""


class Attempt:
    """One attempt of a call.

    In the loop form it is a context manager: what fails inside it is retried, as the policy says.

    Attributes:
        number: Which attempt it is, from 1.
        previous: What the attempt before raised; None in the first one, and after a result that was refused.
        result: In the loop form, set this for `on_result` to look at.
    """

    __slots__ = ("_call", "_delay", "_scope", "_state", "number", "previous", "result")

    def __init__(self, call: _Call, number: int) -> None:
        self.number = number
        self.previous = call.previous
        self.result: object = _UNSET
        self._call = call
        self._delay: float | None = None
        self._scope: anyio.CancelScope | None = None
        self._state = "new"

    @property
    def idempotency_key(self) -> str:
        """32 hex digits, the same for all attempts of one call and for no other call."""
        return self._call.idempotency_key

    def __enter__(self) -> Self:
        if self._state != "new":
            raise RuntimeError(f"attempt {self.number} was already made: each turn of the loop gives a new one")
        call = self._call
        self._state = "entered"
        call.begin()
        call.attempt = self
        if call.policy.attempt_timeout is not None:
            self._scope = anyio.move_on_after(call.policy.attempt_timeout)
            self._scope.__enter__()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        call = self._call
        self._state = "done"
        call.leave()
        instead: Exception | None = None
        if self._scope is not None:
            try:
                self._scope.__exit__(exc_type, exc, traceback)
            except Exception as rest:  # noqa: BLE001 - trio takes its cancellation out of a group, and raises the rest
                exc = instead = rest
            else:
                if self._scope.cancelled_caught:
                    exc = instead = _attempt_timeout(call)
        if exc is None:
            if self.result is _UNSET or call.policy.on_result is None:
                call.succeeded()
            else:
                self._delay = call.judged(self.result)
            return False
        if not isinstance(exc, Exception):
            call.abandon()
            return False
        self._delay = call.failed(exc)
        if self._delay is not None:
            return True
        if instead is None:
            return False
        try:
            raise instead from None
        finally:
            del exc, instead  # their traceback refers to this frame: no cycle

    def __repr__(self) -> str:
        return f"<Attempt {self.number} of {self._call.name}>"


_UNSET = object()


def current_attempt() -> Attempt | None:
    """Return the attempt that the running code is part of; None outside of one.

    The way for a decorated function to learn its idempotency key, or that it is not the first try.
    """
    call = _current.get()
    if call is None or not call.running:
        return None
    if call.attempt is None:
        call.attempt = Attempt(call, call.number)
    return call.attempt


# ----------------------------------------------------------------------------------------------------------------------
# What drives the attempts: four forms of one loop


async def _drive(
    call: _Call,
    fn: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    first: Awaitable[Any] | None = None,
) -> Any:
    """Make the attempts of an async function. `first` is what its first call returned, if that was made already."""
    policy = call.policy
    while True:
        if first is None:
            call.begin()
        else:
            call.enter()
        try:
            if policy.attempt_timeout is None:
                result = fn(*args, **kwargs) if first is None else first
                if hasattr(result, "__await__"):
                    result = await result
            else:
                with anyio.move_on_after(policy.attempt_timeout) as scope:
                    result = fn(*args, **kwargs) if first is None else first
                    if hasattr(result, "__await__"):
                        result = await result
                if scope.cancelled_caught:
                    raise _attempt_timeout(call)
        except Exception as error:
            call.leave()
            delay = call.failed(error)
            if delay is None:
                raise
            result = _UNSET
        except BaseException:
            call.abandon()
            raise
        else:
            call.leave()
            if policy.on_result is None:
                call.succeeded()
                return result
            delay = call.judged(result)
            if delay is None:
                return result
        first = None
        if not await _wait(call, delay):
            if call.previous is None:
                return result
            raise _last_error(call)


def _drive_sync(call: _Call, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Make the attempts of a function, in a thread that may block."""
    policy = call.policy
    call.in_loop = False
    while True:
        call.begin()
        try:
            result = fn(*args, **kwargs)
        except Exception as error:
            call.leave()
            delay = call.failed(error)
            if delay is None:
                raise
            result = _UNSET
        except BaseException:
            call.abandon()
            raise
        else:
            call.leave()
            if isinstance(result, Coroutine):
                # A lambda or the like around an async function: nothing has been tried yet.
                call.in_loop = True
                return _drive(call, fn, args, kwargs, result)
            if policy.on_result is None:
                call.succeeded()
                return result
            delay = call.judged(result)
            if delay is None:
                return result
        if not _wait_sync(call, delay):
            if call.previous is None:
                return result
            raise _last_error(call)


def _retried_stream(
    policy: Retry, fn: Callable[..., AsyncGenerator[Any, Any]], resume: Callable[..., AsyncIterator[Any]] | None
) -> Callable[..., AsyncGenerator[Any, Any]]:
    name = name_of(fn)

    @functools.wraps(fn)
    async def retried(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
        call = _Call(policy, name)
        source: AsyncIterator[Any] = fn(*args, **kwargs)
        begun = handed_out = False
        item: Any = None
        sent: Any = None
        try:
            while True:
                # While a failure would be retried here, policies further in stand back; after that they are on their own.
                ours = resume is not None or not handed_out
                if not begun:
                    call.begin()
                elif ours:
                    call.enter()
                try:
                    if begun or policy.attempt_timeout is None:
                        item = await _next(source, sent)
                    else:
                        with anyio.move_on_after(policy.attempt_timeout) as scope:
                            item = await _next(source, sent)
                        if scope.cancelled_caught:
                            raise _attempt_timeout(call)
                except StopAsyncIteration:
                    call.leave()
                    call.succeeded()
                    return
                except Exception as error:
                    call.leave()
                    delay = call.failed(error, repeatable=ours)
                    if delay is None:
                        raise
                except BaseException:
                    call.abandon()
                    raise
                else:
                    call.leave()
                    begun = handed_out = True
                    while True:
                        try:
                            sent = yield item
                            break
                        except GeneratorExit:
                            call.succeeded()  # the caller has what it wanted
                            raise
                        except BaseException as thrown:
                            # Thrown in by the caller, as @asynccontextmanager does with what its block raised: the
                            # source's business, and no failure of ours.
                            if not isinstance(source, AsyncGenerator):
                                raise
                            try:
                                item = await source.athrow(thrown)
                            except StopAsyncIteration:
                                call.succeeded()
                                return
                    continue
                await _close(source)
                if not await _wait(call, delay):
                    raise _last_error(call)
                source = resume(item, *args, **kwargs) if handed_out and resume is not None else fn(*args, **kwargs)
                begun, sent = False, None
        finally:
            call.leave()
            await _close(source)

    return retried


async def _next(source: AsyncIterator[Any], sent: Any) -> Any:
    if sent is not None and isinstance(source, AsyncGenerator):
        return await source.asend(sent)
    return await source.__anext__()


async def _close(source: AsyncIterator[Any]) -> None:
    if isinstance(source, AsyncGenerator):
        await source.aclose()


class _AsyncLoop:
    """The attempts of one `async for`."""

    __slots__ = ("_attempt", "_call")

    def __init__(self, call: _Call) -> None:
        self._call = call
        self._attempt: Attempt | None = None

    def __aiter__(self) -> _AsyncLoop:
        return self

    async def __anext__(self) -> Attempt:
        delay = _due(self._attempt)
        if delay is None:
            raise StopAsyncIteration
        if self._attempt is not None and not await _wait(self._call, delay):
            if self._call.previous is None:
                raise StopAsyncIteration
            raise _last_error(self._call)
        self._attempt = Attempt(self._call, self._call.number + 1)
        return self._attempt


class _Loop:
    """The attempts of one `for`."""

    __slots__ = ("_attempt", "_call")

    def __init__(self, call: _Call) -> None:
        self._call = call
        self._attempt: Attempt | None = None

    def __iter__(self) -> _Loop:
        return self

    def __next__(self) -> Attempt:
        delay = _due(self._attempt)
        if delay is None:
            raise StopIteration
        if self._attempt is not None and not _wait_sync(self._call, delay):
            if self._call.previous is None:
                raise StopIteration
            raise _last_error(self._call)
        self._attempt = Attempt(self._call, self._call.number + 1)
        return self._attempt


def _due(last: Attempt | None) -> float | None:
    """Return the wait before the next attempt of a loop; None if the last one was the last."""
    if last is None:
        return 0.0
    if last._state != "done":
        raise RuntimeError(
            f"attempt {last.number} was never made: put `with attempt:` around what may fail, inside the loop over the policy"
        )
    return last._delay


async def _wait(call: _Call, delay: float) -> bool:
    """Wait; return whether there may be an attempt after it."""
    try:
        if call.doomed:
            # A deadline that is due but has not struck yet strikes while we sleep.
            await anyio.sleep_forever()
        await anyio.sleep(delay)
    except BaseException:
        call.abandon()
        raise
    return not call.too_late()


def _wait_sync(call: _Call, delay: float) -> bool:
    try:
        if delay > 0:
            time.sleep(delay)
    except BaseException:
        call.abandon()
        raise
    return not call.too_late()


def _last_error(call: _Call) -> Exception:
    error, call.previous = call.previous, None
    assert error is not None
    return error


def _attempt_timeout(call: _Call) -> AttemptTimeout:
    seconds = call.policy.attempt_timeout
    assert seconds is not None
    return AttemptTimeout(
        f"attempt {call.number} of {call.name} took longer than attempt_timeout={seconds:g} s", seconds=seconds
    )


def _shown(error: Exception | None) -> str:
    if error is None:
        return "its result was refused"
    shown = repr(error)
    return shown if len(shown) <= 200 else shown[:197] + "..."
