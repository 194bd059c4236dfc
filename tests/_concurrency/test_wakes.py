"""What ends in a loop wakes those that wait in it without a call from outside, which writes to a socket of the loop."""

from __future__ import annotations

import asyncio

import pytest

from penstock import Batcher, amap


async def _map():
    async for _ in amap(asyncio.sleep, [0] * 300, in_flight=20):
        pass


async def _batch():
    async def fails(items):
        raise ValueError(f"{len(items)} items")

    batcher = Batcher(fails, max_items=20)
    errors = await asyncio.gather(*[batcher(number) for number in range(100)], return_exceptions=True)
    assert {type(error) for error in errors} == {ValueError}


@pytest.mark.parametrize("work", [_map, _batch])
def test_the_end_of_a_call_is_told_inside_its_loop(work, monkeypatch):
    from_outside = []

    async def run():
        loop = asyncio.get_running_loop()
        call_soon_threadsafe = loop.call_soon_threadsafe
        monkeypatch.setattr(
            loop, "call_soon_threadsafe", lambda *call: from_outside.append(call_soon_threadsafe(*call))
        )
        await work()

    asyncio.run(run())
    assert not from_outside
