"""One call under a policy: it counts attempts, and decides after each whether another follows. It does not wait.

A call also knows whether another policy is already in charge of it, so that nested policies do not multiply.
"""

from __future__ import annotations

import math
import sys
from collections import deque
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from types import FrameType
from typing import Any

import anyio

from penstock import _log, clock
from penstock._concurrency.parking import loop_running_here
from penstock._core.backoff import spread
from penstock._interruptions import is_an_interruption
from penstock._numbers import number_of, read_seconds, show_seconds
from penstock._text import repr_of
from penstock._user_errors import NotAwaited, seconds_asked, verdict, verdict_of
from penstock.errors import AttemptTimeout, WouldBlockEventLoop
from penstock.events import AttemptStarted, GaveUp, Reason, RetryScheduled, Succeeded, emit
from penstock.retry.arguments import consumed_argument
from penstock.retry.budget import Budget
from penstock.retry.report import LOGGER, LONGEST_WAIT, annotate, attach_hint, log_gave_up, log_scheduled, why
from penstock.retry.settings import RetrySettings

_ROUNDING = 1e-6  # seconds by which sums of waits may miss a bound that they meet on paper
_REMEMBERED = 20  # attempts told in the notes; a policy without bounds must not fill the memory

Sent = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]
"""What an attempt calls: the function and its arguments."""

fast_attempts: ContextVar[int | None] = ContextVar("penstock_fast_retries", default=None)
"""Set by `penstock.testing.fast_retries`: no waiting, no budgets, and at most so many attempts."""

current: ContextVar[RetriedCall | None] = ContextVar("penstock_current_call", default=None)
"""The innermost call whose attempt the running code may be part of; `calls_in_charge` says whether it is."""


class RetriedCall:
    """One call under a policy.

    In each attempt, in this order: `begin`, the attempt, and `failed`; or `leave`, and `judged` or `succeeded`.

    Attributes:
        running: Whether an attempt is under way.
        doomed: The enclosing scope is cancelled or its deadline has passed. No attempt follows; the cancellation is
            raised.
        previous: The error of the last attempt, while another follows.
        frame: The generator that the attempt's block is in, if the block can yield; see `calls_in_charge`.
    """

    __slots__ = (
        "attempt", "budget", "doomed", "drawn", "fast", "frame", "history", "in_loop", "key", "name", "number", "outer",
        "paid", "policy", "previous", "running", "stands_back", "started",
    )  # fmt: skip

    def __init__(self, policy: RetrySettings, name: str, *, in_loop: bool = True) -> None:
        self.policy: RetrySettings = policy
        self.name: str = name
        self.in_loop: bool = in_loop
        self.stands_back: bool = current.get() is not None and not policy.nested and any(calls_in_charge())
        self.started: float = clock.now()
        self.fast: int | None = fast_attempts.get()
        # Tests that do not wait should neither spend nor be stopped by a budget that outlives them.
        self.budget: Budget | None = None if self.stands_back or self.fast is not None else policy.budget
        self.number: int = 0
        self.running: bool = False
        self.doomed: bool = False
        self.previous: Exception | None = None
        self.paid: float | None = None  # what the last retry cost the budget
        self.drawn: float | None = None  # the last wait that the backoff drew
        self.key: str | None = None
        self.attempt: object = None  # the `Attempt` that shows this one, if it was asked for
        self.history: deque[str] | None = None
        self.outer: RetriedCall | None = None  # whose attempt was under way when this one began
        self.frame: FrameType | None = None
        if self.budget is not None:
            self.budget.called()

    # What the attempt sees

    def begin(self) -> None:
        """Begin an attempt: as `enter`, which a call in between would only slow down."""
        self.number += 1
        self.attempt = None
        if self.policy.on_event is not None:
            emit(self.policy.on_event, AttemptStarted(self.name, self.idempotency_key, self.number))
        self.running = True
        self.outer = current.get()
        current.set(self)

    def enter(self) -> None:
        """Let the running code be part of the attempt, again if it was left before."""
        self.running = True
        self.outer = current.get()
        current.set(self)

    def leave(self) -> None:
        """Let the running code not be part of the attempt any more. May be called twice."""
        self.running = False
        if self.frame is not None:
            self.frame = None  # it holds the block, which holds us
        if current.get() is self:
            # Attempts of a generator and of its consumer may end in any order: skip ended ones.
            outer = self.outer
            while outer is not None and not outer.running:
                outer = outer.outer
            current.set(outer)

    def abandon(self) -> None:
        """End with a cancellation or another BaseException; drop the kept error, whose frames hold us."""
        self.leave()
        self.previous = None

    @property
    def idempotency_key(self) -> str:
        """32 hex digits, made when they are first asked for."""
        if self.key is None:
            import uuid

            self.key = uuid.uuid4().hex
        return self.key

    # How the attempt ended

    def succeeded(self) -> None:
        """End the call: its last attempt succeeded."""
        self.previous = None
        if self.budget is not None:
            self.budget.succeeded(self.paid)
        if self.policy.on_event is not None:
            elapsed = clock.now() - self.started
            emit(self.policy.on_event, Succeeded(self.name, self.idempotency_key, self.number, elapsed))

    def judged(self, result: object, sent: Sent | None = None) -> float | None:
        """Return the wait until the next attempt; None if `result` goes to the caller."""
        on_result = self.policy.on_result
        if on_result is None or (says := self._verdict_on_result(on_result, result)) is False:
            self.succeeded()
            return None
        if self.stands_back:
            return self._give_up("nested", None, None)
        return self._again(None, says, None, sent)

    def failed(self, error: BaseException, sent: Sent | None = None, *, repeatable: bool = True) -> float | None:
        """End an attempt with an error; return the wait until the next one, None if `error` goes to the caller.

        `sent`: the function called, with its arguments; None for a block. `repeatable`: False when a new attempt would
        repeat what the caller already has.
        """
        if not isinstance(error, Exception):  # a cancellation, say
            self.abandon()
            return None
        self.leave()
        policy = self.policy
        says = verdict(self.name, policy.on, error, LOGGER)
        if says is False:
            return self._give_up("unretryable", error, None)
        if self.stands_back:
            return self._give_up("nested", error, None)
        if not repeatable:
            return self._give_up("stream", error, None)
        hint = None if policy.hint is None else seconds_asked(self.name, policy.hint, error, LOGGER)
        return self._again(error, says, hint, sent)

    def _verdict_on_result(self, on_result: Callable[[Any], Any], result: object) -> bool | float:
        try:
            return verdict_of(on_result(result))
        except NotAwaited as answer:
            raise answer.by(f"{self.name}: `on_result`") from None
        except BaseException as raised:  # the result may have been paid for
            if is_an_interruption(raised):
                raise
            _log.broken(LOGGER, "%s: `on_result` raised when asked about a result", self.name, error=raised)
            return False

    # The decision

    def _again(
        self, error: Exception | None, says: bool | float, hint: float | None, sent: Sent | None
    ) -> float | None:
        policy, now = self.policy, clock.now()
        deadline = self._time_to_deadline()
        if deadline <= 0:
            # The scope is cancelled, or about to be: the next await raises that, and it must not come out as the last
            # error.
            self.doomed = True
            return 0.0
        attempts = policy.attempts if self.fast is None else min(self.fast, policy.attempts or self.fast)
        if attempts is not None and self.number >= attempts:
            return self._give_up("attempts", error, hint)
        within: Any = policy.within
        left = math.inf if within is None else within - (now - self.started)
        most: Any = math.inf if policy.max_hint is None else policy.max_hint
        if hint is not None and hint > min(left + _ROUNDING, deadline, most, LONGEST_WAIT):
            return self._give_up("hint", error, hint)
        delay = self._delay(says, hint, min(left, deadline))
        if delay > left + _ROUNDING:
            return self._give_up("within", error, hint)
        if delay >= deadline:
            return self._give_up("deadline", error, hint)
        argument = None if sent is None else consumed_argument(*sent)
        if argument is not None:
            return self._give_up("consumed", error, hint, argument)
        if delay > 0 and not self.in_loop and loop_running_here():
            raise WouldBlockEventLoop(
                f"{self.name}: "
                f"waiting {show_seconds(delay)} for the next attempt would stop the event loop that this thread runs. "
                "Decorate an async function, or call from a worker thread"
            ) from error
        if self.budget is not None:
            self.paid = self.budget.spend(timed_out=issubclass(type(error), TimeoutError))
            if self.paid is None:
                return self._give_up("budget", error, hint)
        self._schedule(error, delay, hint, now)
        return delay

    def _time_to_deadline(self) -> float:
        """Return the seconds until the enclosing cancel scope ends; 0 or less if it has ended."""
        if not self.in_loop:
            return math.inf
        deadline = anyio.current_effective_deadline()
        return deadline - anyio.current_time() if deadline < math.inf else deadline

    def _delay(self, says: bool | float, hint: float | None, left: float) -> float:
        if self.fast is not None:
            return 0.0
        backoff, draw = self.policy.backoff, self.policy.random
        if says is not True:
            delay: float = says
            if hint is None or hint <= delay:
                return min(delay, LONGEST_WAIT)
        if hint is not None and hint > 0:
            return hint if backoff.jitter == "none" else spread(hint, left, draw())
        answer = backoff.delay(self.number - 1, self.drawn, draw())
        drawn = read_seconds(answer)
        if drawn is None or drawn < 0:
            raise ValueError(
                f"{repr_of(backoff)} asked for a wait of {repr_of(answer)} s: a wait is a number of seconds, 0 or more"
            )
        self.drawn = drawn
        return min(drawn, LONGEST_WAIT)

    def _schedule(self, error: Exception | None, delay: float, hint: float | None, now: float) -> None:
        if self.history is None:
            self.history = deque(maxlen=_REMEMBERED)
        self.history.append(
            f"penstock: attempt {self.number} ended at {show_seconds(now - self.started)}: "
            f"{'its result was refused' if error is None else repr_of(error, 200)}; waited {show_seconds(delay)}"
        )
        self.previous = error
        log_scheduled(self.name, lambda: self.idempotency_key, self.number, error, delay, hint)
        if self.policy.on_event is not None:
            key = self.idempotency_key
            emit(self.policy.on_event, RetryScheduled(self.name, key, self.number, error, delay, hint))

    def too_late(self) -> bool:
        """Return whether a wait took so long that no attempt may start any more. If so, the call is over."""
        within: Any = self.policy.within
        if within is None or clock.now() - self.started <= within + _ROUNDING:
            return False
        error = self.previous
        self._give_up("within", error, None)
        self.previous = error
        return True

    def outcome(self, result: object) -> Any:
        """The result of the last attempt, where that did not fail; else raise its error."""
        if self.previous is not None:
            raise self.last_error()
        return result

    def last_error(self) -> Exception:
        """Take the error of the last attempt out of the call, to raise it."""
        error, self.previous = self.previous, None
        assert error is not None, "it failed"
        return error

    def timed_out(self) -> AttemptTimeout:
        """The error of an attempt that was cut."""
        seconds: Any = self.policy.attempt_timeout
        return AttemptTimeout(
            f"attempt {self.number} of {self.name} took longer than attempt_timeout={seconds:g} s", seconds=seconds
        )

    def _give_up(self, reason: Reason, error: Exception | None, hint: float | None, argument: str = "") -> float | None:
        """Tell why the call is over. Return None: there is no wait."""
        elapsed = clock.now() - self.started
        self.previous = None
        if self.number > 1 or reason != "unretryable":
            words = why(self.policy, reason, hint=hint, fast=self.fast, argument=argument)
            if reason != "nested":  # the outer policy will say how the call ended
                log_gave_up(self.name, lambda: self.idempotency_key, self.number, error, reason, elapsed, words)
            if error is not None:
                attempts = number_of(self.number, "attempt")
                first = f"penstock: {self.name} gave up after {attempts} in {show_seconds(elapsed)}: {words}"
                annotate(error, first, self.history or (), self.number)
        if reason == "hint" and error is not None:
            attach_hint(error, hint)
        if self.policy.on_event is not None:
            key = self.idempotency_key
            emit(self.policy.on_event, GaveUp(self.name, key, self.number, error, reason, elapsed, hint))
        return None


def calls_in_charge() -> Iterator[RetriedCall]:
    """Iterate over the calls whose attempt the running code is part of, innermost first.

    Child tasks and threads inherit the attempt that starts them, and are part of it while it runs.

    A block in a generator is special where it can yield: the context variable then stays set while the consumer runs,
    and in each task that the consumer starts. The consumer is not part of the attempt. So such an attempt is in charge
    only of code that runs below the generator on the same stack.
    """
    call = current.get()
    while call is not None:
        if call.running and (call.frame is None or _on_the_stack(call.frame)):
            yield call
        call = call.outer


def _on_the_stack(wanted: FrameType) -> bool:
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame is not wanted:
        frame = frame.f_back
    return frame is wanted
