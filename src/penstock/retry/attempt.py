"""One attempt as the user sees it: its number, the error before it, its idempotency key.

`call` decides whether another follows.
"""

from __future__ import annotations

import sys
from types import FrameType, TracebackType
from typing import Any, Self

from penstock._concurrency.tasks import cut_after
from penstock.retry.call import RetriedCall, calls_in_charge
from penstock.retry.functions import wait, wait_sync
from penstock.retry.generators import frame_that_yields

_UNSET = object()

# Read by way of BaseException: a subclass may have put a property of its own in their place.
_CAUSE: Any = BaseException.__cause__
_CONTEXT: Any = BaseException.__context__


class Attempt:
    """One attempt of a call.

    In the loop form it is a context manager, for `with` and for `async with`. An error inside it is retried, as the
    policy says.

    Attributes:
        number: Which attempt it is, from 1.
        previous: The error of the attempt before, without its traceback, which would keep your frames alive. None in
            the first attempt, and after a result that was refused.
        result: In the loop form, set this for `on_result` to look at.
    """

    __slots__ = ("_call", "_delay", "_scope", "_state", "number", "previous", "result")

    def __init__(self, call: RetriedCall, number: int) -> None:
        self.number: int = number
        self.previous: Exception | None = call.previous
        self.result: object = _UNSET
        self._call = call
        self._delay: float | None = None
        self._scope: Any = None  # what cuts the attempt after attempt_timeout
        self._state = "new"
        if number > 1:
            _drop_frames(call.previous)

    @property
    def idempotency_key(self) -> str:
        """32 hex digits, the same for all attempts of one call and for no other call."""
        return self._call.idempotency_key

    def __enter__(self) -> Self:
        self._enter(sys._getframe(1))
        return self

    async def __aenter__(self) -> Self:
        self._enter(sys._getframe(1))
        return self

    def __exit__(self, *error: Any) -> bool:  # noqa: PYI036 - three, whatever they are
        try:
            return self._leave(*error)
        finally:
            del error  # it refers to this frame if it raises: no cycle
            if self._call.running:
                self._call.leave()  # a signal handler has raised before

    async def __aexit__(self, *error: Any) -> bool:  # noqa: PYI036
        try:
            return self._leave(*error)
        finally:
            del error
            if self._call.running:
                self._call.leave()  # a signal handler has raised before

    def _enter(self, caller: FrameType) -> None:
        if self._state != "new":
            raise RuntimeError(f"attempt {self.number} was already made: each turn of the loop gives a new one")
        call = self._call
        self._state = "entered"
        try:
            call.begin()
            call.attempt = self
            call.frame = frame_that_yields(caller)
            if call.policy.attempt_timeout is not None:
                self._scope = cut_after(call.policy.seconds_per_attempt)
                self._scope.__enter__()
        except BaseException:
            call.abandon()
            raise

    def _leave(
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
                    exc = instead = call.timed_out()
        if exc is None:
            if self.result is _UNSET or call.policy.on_result is None:
                call.succeeded()
            else:
                self._delay = call.judged(self.result)
            return False
        try:
            self._delay = call.failed(exc)
            if self._delay is not None:
                return True
            if instead is None:
                return False
            raise instead from None
        finally:
            del exc, instead, traceback  # their traceback refers to this frame: no cycle

    def __repr__(self) -> str:
        return f"<Attempt {self.number} of {self._call.name}>"


class Attempts:
    """The loop form: the attempts of one `async for`, or of one `for`."""

    __slots__ = ("_attempt", "_call")

    def __init__(self, call: RetriedCall) -> None:
        self._call = call
        self._attempt: Attempt | None = None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Attempt:
        delay = self._delay()
        if delay is None or not (self._attempt is None or await wait(self._call, delay)):
            raise StopAsyncIteration if self._call.previous is None else self._call.last_error()
        return self._next()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Attempt:
        delay = self._delay()
        if delay is None or not (self._attempt is None or wait_sync(self._call, delay)):
            raise StopIteration if self._call.previous is None else self._call.last_error()
        return self._next()

    def _delay(self) -> float | None:
        """The wait before the next attempt; None if the last one was the last."""
        last = self._attempt
        if last is None:
            return 0.0
        if last._state != "done":
            raise RuntimeError(
                f"attempt {last.number} was never made: "
                "put `with attempt:` around what may fail, inside the loop over the policy"
            )
        return last._delay

    def _next(self) -> Attempt:
        self._attempt = Attempt(self._call, self._call.number + 1)
        return self._attempt


def current_attempt() -> Attempt | None:
    """Return the attempt that the running code is part of; None outside of one.

    A decorated function uses it to learn its idempotency key, or that this is not the first attempt.
    """
    call = next(calls_in_charge(), None)
    if call is None:
        return None
    if call.attempt is None:
        call.attempt = Attempt(call, call.number)
    assert isinstance(call.attempt, Attempt)
    return call.attempt


def _drop_frames(error: BaseException | None) -> None:
    """Take the tracebacks off an error that was retried, and off its causes: their frames hold the attempt."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        BaseException.with_traceback(error, None)
        cause = _CAUSE.__get__(error)
        error = cause if cause is not None else _CONTEXT.__get__(error)
