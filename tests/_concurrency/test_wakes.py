"""What ends in a loop wakes those that wait in it without a call from outside, which writes to a socket of the loop."""

from __future__ import annotations

import asyncio
import math

import pytest

from penstock import Batcher, amap
from penstock._concurrency import parking


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


def test_a_timer_is_set_from_its_own_loop_and_for_a_moment_that_comes():
    async def run():
        parker = parking.here()
        assert parker.set_timer(math.inf, parker.home) is None
        assert parker.set_timer(0.001, None) is None, "the caller may be another thread"
        assert parker.set_timer(0.001, parker.home) is not None
        await parker.park(math.inf)

    asyncio.run(run())
    assert parking.ThreadParker().set_timer(0.001, parking.THREADS) is None


@pytest.mark.parametrize("elsewhere", [False, True], ids=["in its loop", "in another thread"])
def test_a_timer_that_was_stopped_wakes_nobody(elsewhere):
    async def run():
        parker = parking.here()
        timer = parker.set_timer(60, parker.home)
        if elsewhere:
            await asyncio.to_thread(parker.stop_timer, timer)
        else:
            parker.stop_timer(timer)
        while not timer.cancelled():
            await asyncio.sleep(0)
        return parker, timer

    parker, timer = asyncio.run(run())
    parker.stop_timer(timer)  # the loop is closed


def test_where_the_clocks_of_loops_are_frozen_a_parker_sets_its_own_timer(monkeypatch):
    async def run():
        parker = parking.here()
        monkeypatch.setattr(parking.clock, "is_tampered_with", lambda: True)
        return parker.set_timer(0.001, parker.home)

    assert asyncio.run(run()) is None
