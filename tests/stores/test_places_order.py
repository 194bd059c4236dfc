"""Places of a shared store go to those who wait for them, in the order of all queues, whichever process they are in."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from penstock import Limiter, RateLimited, clock, in_flight, per_second
from tests.stores.in_virtual_time import Rows, calls, processes
from tests.stores.test_like_memory import run

__all__ = ["processes"]

TURN = 0.050
"""Seconds for which a call holds its places."""

WAYS = {"announced": {"hears": True}, "shown": {"hears": False, "shows": True}, "asked": {"hears": False}}
"""How processes learn that places came back: as over Redis, as over SQLite, and over a store that does neither."""

EACH_WAY = pytest.mark.parametrize("way", WAYS)


class Crowd:
    """Processes that share four places; each task asks again and again, and holds what it gets for a turn."""

    def __init__(self, way, **limits):
        self.rows, self.limits = Rows(**WAYS[way]), limits or {"calls": in_flight(4)}
        self.limiters, self.turns, self.waits, self.held, self.tasks = [], [], [], [], []

    def process(self, tasks=0, **how):
        """One more, with so many tasks that want the same."""
        limiter = Limiter(name="x", store=self.rows.store(), **self.limits)
        self.limiters.append(limiter)
        self.turns.append(0)
        self.waits.append([])
        self.held.append(0.0)
        self.tasks += [asyncio.ensure_future(self.work(len(self.limiters) - 1, **how)) for _ in range(tasks)]
        return limiter

    async def work(self, number, turn=TURN, **how):
        while True:
            await self.once(number, turn, **how)

    async def once(self, number, turn=TURN, **how):
        asked = clock.now()
        async with self.limiters[number](**how):
            self.waits[number].append(clock.now() - asked)
            await asyncio.sleep(turn)
        self.turns[number] += 1
        self.held[number] += turn * how.get("calls", 1)
        return self.waits[number][-1]

    @property
    def calls_per_grant(self):
        return sum(calls(limiter.store) for limiter in self.limiters) / sum(self.turns)

    async def stop(self):
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


@EACH_WAY
def test_processes_that_want_the_same_have_the_same(processes, way):
    """Before, the process that gave a place back had it again: one had all, and the others hardly any."""

    async def main():
        crowd = Crowd(way)
        for _ in range(4):
            crowd.process(8)
        await asyncio.sleep(4.0)
        await crowd.stop()
        return crowd

    crowd = run(processes, main)
    longest = max(wait for waits in crowd.waits for wait in waits)
    assert max(crowd.turns) - min(crowd.turns) <= 0.15 * sum(crowd.turns) / 4
    assert longest <= 3 * 32 / 4 * TURN
    assert sum(crowd.held) >= 0.95 * 4 * 4.0
    assert crowd.calls_per_grant <= (5 if way == "asked" else 1.3)


@EACH_WAY
def test_a_call_for_two_places_has_its_turn_among_calls_for_one(processes, way):
    """Before, it waited until the others had ended."""

    async def main():
        crowd = Crowd(way)
        for _ in range(3):
            crowd.process(8)
        crowd.process(1, calls=2)
        await asyncio.sleep(2.0)
        await crowd.stop()
        return crowd

    crowd = run(processes, main)
    assert max(crowd.waits[3]) <= 5 * TURN


@EACH_WAY
def test_an_urgent_call_waits_for_the_end_of_a_turn(processes, way):
    async def main():
        crowd = Crowd(way)
        for _ in range(4):
            crowd.process(8)
        crowd.process()
        await asyncio.sleep(1.0)
        waits = []
        for _ in range(20):
            waits.append(await crowd.once(4, priority=10))
            await asyncio.sleep(0.031)
        await crowd.stop()
        return sorted(waits)

    waits = run(processes, main)
    assert waits[10] <= 0.75 * TURN
    assert waits[-1] <= 1.5 * TURN


@EACH_WAY
def test_nobody_passes_one_whose_turn_it_is(processes, way):
    """Two places are free only one after the other: the first is kept, also from a call that does not wait."""

    async def main():
        crowd = Crowd(way, calls=in_flight(2))
        one, two, three = (crowd.process() for _ in range(3))
        first, second = await one.acquire(), await one.acquire()
        large = asyncio.ensure_future(two.acquire(calls=2))
        await asyncio.sleep(0.1)
        first.close()
        await asyncio.sleep(0.1)
        with pytest.raises(RateLimited):
            await three.acquire(max_wait=0)
        second.close()
        await asyncio.sleep(0.1)
        assert large.done()
        large.result().close()
        await three.acquire(max_wait=1)

    run(processes, main)


@EACH_WAY
def test_a_call_that_gives_up_keeps_no_place(processes, way):
    async def main():
        crowd = Crowd(way, calls=in_flight(2))
        one, two, three = (crowd.process() for _ in range(3))
        permits = [await one.acquire(), await one.acquire()]
        large = asyncio.ensure_future(two.acquire(calls=2))
        await asyncio.sleep(0.05)
        small = asyncio.ensure_future(three.acquire())
        await asyncio.sleep(0.05)
        permits[0].close()
        await asyncio.sleep(0.1)
        assert not small.done()
        large.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await large
        begin = clock.now()
        await small
        return clock.now() - begin

    assert run(processes, main) <= 0.06


@EACH_WAY
def test_what_a_dead_process_waited_for_goes_to_the_next_within_a_second(processes, way):
    async def main():
        crowd = Crowd(way, calls=in_flight(1))
        one, two, three = (crowd.process() for _ in range(3))
        permit = await one.acquire()
        dead = asyncio.ensure_future(two.acquire())
        await asyncio.sleep(0.1)
        task = processes._serving[two.store.dispatcher]
        task.cancel()  # it asks no more, and withdraws nothing
        with contextlib.suppress(asyncio.CancelledError):
            await task
        waiting = asyncio.ensure_future(three.acquire())
        await asyncio.sleep(0.1)
        permit.close()
        begin = clock.now()
        await waiting
        waited = clock.now() - begin
        del processes._serving[two.store.dispatcher]
        dead.cancel()
        return waited

    assert run(processes, main) <= 1.0


@EACH_WAY
def test_places_beside_a_rate_are_shared_too(processes, way):
    async def main():
        crowd = Crowd(way, calls=in_flight(4), requests=per_second(1000))
        for _ in range(4):
            crowd.process(8)
        await asyncio.sleep(2.0)
        await crowd.stop()
        return crowd

    crowd = run(processes, main)
    assert max(crowd.turns) - min(crowd.turns) <= 0.15 * sum(crowd.turns) / 4
    assert sum(crowd.held) >= 0.95 * 4 * 2.0
