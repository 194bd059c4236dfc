"""The wait between two attempts, in an event loop and in a thread."""

from __future__ import annotations

import time

import anyio

from penstock._concurrency.tasks import sleep
from penstock.retry.call import Call


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
