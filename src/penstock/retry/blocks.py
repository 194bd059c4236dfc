"""The loop form: `async for attempt in retry:` and `for attempt in retry:`."""

from __future__ import annotations

from penstock.retry.attempt import Attempt
from penstock.retry.call import Call
from penstock.retry.waits import last_error, wait, wait_sync

__all__ = ["AsyncAttempts", "Attempts"]


class AsyncAttempts:
    """The attempts of one `async for`."""

    __slots__ = ("_attempt", "_call")

    def __init__(self, call: Call) -> None:
        self._call = call
        self._attempt: Attempt | None = None

    def __aiter__(self) -> AsyncAttempts:
        return self

    async def __anext__(self) -> Attempt:
        delay = _wait_after(self._attempt)
        if delay is None:
            raise StopAsyncIteration
        if self._attempt is not None and not await wait(self._call, delay):
            if self._call.previous is None:
                raise StopAsyncIteration
            raise last_error(self._call)
        self._attempt = Attempt(self._call, self._call.number + 1)
        return self._attempt


class Attempts:
    """The attempts of one `for`."""

    __slots__ = ("_attempt", "_call")

    def __init__(self, call: Call) -> None:
        self._call = call
        self._attempt: Attempt | None = None

    def __iter__(self) -> Attempts:
        return self

    def __next__(self) -> Attempt:
        delay = _wait_after(self._attempt)
        if delay is None:
            raise StopIteration
        if self._attempt is not None and not wait_sync(self._call, delay):
            if self._call.previous is None:
                raise StopIteration
            raise last_error(self._call)
        self._attempt = Attempt(self._call, self._call.number + 1)
        return self._attempt


def _wait_after(last: Attempt | None) -> float | None:
    """Return the wait before the next attempt of a loop; None if the last one was the last."""
    if last is None:
        return 0.0
    if last._state != "done":
        raise RuntimeError(
            f"attempt {last.number} was never made: "
            "put `with attempt:` around what may fail, inside the loop over the policy"
        )
    return last._delay
