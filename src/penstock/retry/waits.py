"""The wait between two attempts, in an event loop and in a thread."""

from __future__ import annotations

import time

import anyio

from penstock._concurrency.tasks import sleep
from penstock.errors import AttemptTimeout
from penstock.retry.call import Call

__all__ = ["attempt_timeout", "last_error", "wait", "wait_sync"]


async def wait(call: Call, delay: float) -> bool:
    """Wait `delay` seconds; return whether there may be an attempt after it."""
    try:
        if call.doomed:
            # A deadline that is due but has not struck yet strikes while we sleep.
            await anyio.sleep_forever()
        await sleep(delay)
    except BaseException:
        call.abandon()
        raise
    return not call.too_late()


def wait_sync(call: Call, delay: float) -> bool:
    """Block the thread for `delay` seconds; return whether there may be an attempt after it."""
    try:
        if delay > 0:
            time.sleep(delay)
    except BaseException:
        call.abandon()
        raise
    return not call.too_late()


def last_error(call: Call) -> Exception:
    """Take the error of the last attempt out of the call, to raise it."""
    error, call.previous = call.previous, None
    assert error is not None
    return error


def attempt_timeout(call: Call) -> AttemptTimeout:
    """Make the error of an attempt that was cut."""
    seconds = call.policy.seconds_per_attempt
    assert seconds is not None
    return AttemptTimeout(
        f"attempt {call.number} of {call.name} took longer than attempt_timeout={seconds:g} s", seconds=seconds
    )
