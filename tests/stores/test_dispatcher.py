"""What the dispatcher leaves behind."""

from __future__ import annotations

import asyncio
import gc

import pytest

from penstock import Limiter, per_second
from penstock._backends.shared.requests import SharedRequest
from penstock._concurrency.parking import AsyncioParker
from penstock.permit import Permit
from penstock.stores import SQLiteStore


@pytest.mark.parametrize("waits", [False, True], ids=["at once", "in the queue"])
def test_what_was_granted_is_freed_without_the_garbage_collector(waits, tmp_path):
    """Else half of the time of a busy process goes into collections, each of which stops all of its threads for milliseconds."""
    store = SQLiteStore(tmp_path / "x.db")
    limiter = Limiter(requests=per_second(500 if waits else 1e6, burst=1 if waits else None), name="x", store=store)

    async def main():
        await limiter.acquire()
        gc.collect()
        before = {id(thing) for thing in gc.get_objects()}  # some of it is other tests'
        gc.disable()
        try:
            await asyncio.gather(*(limiter.acquire() for _ in range(100)))
            await limiter.refresh()  # the dispatcher is done with them
            return [
                thing
                for thing in gc.get_objects()
                if isinstance(thing, SharedRequest | Permit | AsyncioParker) and id(thing) not in before
            ]
        finally:
            gc.enable()

    left = asyncio.run(main())
    store.close()
    assert len(left) < 60  # of the last ten or so, and not three for each of the hundred
