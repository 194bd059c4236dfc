"""Calls over a store go when those of a limiter in memory do: nobody keeps a moment that was told to somebody else."""

from __future__ import annotations

import asyncio
import random

import pytest

from penstock import Keyed, Limiter, Rate, RateLimited, clock, sliding, testing
from tests.stores.in_virtual_time import Rows, calls, processes

__all__ = ["processes"]

LIMITS = {"tokens": Rate(100, 100), "requests": Rate(1_000, 100, default=0)}
SMALL = {
    "the same": {},
    "another flow": {"flow": "another"},
    "less urgent": {"priority": -1},
    "another limit, too": {"requests": 1},
}


def run(processes, main):
    async def whole():
        try:
            return await asyncio.wait_for(main(), 10_000)
        finally:
            await processes.end()

    return testing.run(whole)


@pytest.mark.parametrize("hears", [True, False], ids=["hears", "asks"])
@pytest.mark.parametrize("small", SMALL.values(), ids=SMALL.keys())
@pytest.mark.parametrize("others", [False, True], ids=["one process", "two processes"])
def test_a_small_call_goes_when_the_large_one_before_it_leaves(processes, others, small, hears):
    """It was told a moment behind the large one: 80 s later. Where nothing is heard, it asks every second."""
    rows = Rows(hears=hears)

    async def main():
        one = Limiter(**LIMITS, name="x", store=rows.store())
        two = Limiter(**LIMITS, name="x", store=rows.store()) if others else one
        await one.acquire(tokens=80)
        large = asyncio.ensure_future(one.acquire(tokens=100))
        await asyncio.sleep(0.3)
        waiting = asyncio.ensure_future(two.acquire(tokens=5, **small))
        await asyncio.sleep(0.3)
        large.cancel()
        left = clock.now()
        await waiting
        return clock.now() - left

    assert run(processes, main) <= (1.0 if others and not hears else 0.02)


def test_a_call_under_a_joint_limit_goes_when_the_large_one_leaves(processes):
    """Though the two have one limit in common, and each a second one of its own."""

    async def main():
        store = Rows(hears=True).store()
        everyone = Limiter(tokens=Rate(100, 100), name="all", store=store)
        user = Keyed(requests=Rate(1_000, 100), name="user", store=store)
        await everyone.acquire(tokens=80)
        large = asyncio.ensure_future((everyone & user["a"]).acquire(tokens=100))
        await asyncio.sleep(0.3)
        waiting = asyncio.ensure_future((everyone & user["b"]).acquire(tokens=5))
        await asyncio.sleep(0.3)
        large.cancel()
        await waiting
        return clock.now()

    assert run(processes, main) <= 0.65


def test_a_call_of_a_window_and_a_rate_asks_when_it_may_go(processes):
    """There is no booking of a window; so it was asked for again and again, until the rate had enough."""
    store = Rows(hears=True).store()

    async def main():
        limiter = Limiter(requests=sliding(3, 1), tokens=Rate(1, 7, burst=1), name="x", store=store)
        await asyncio.gather(*(limiter.acquire(tokens=1) for _ in range(5)))
        return clock.now()

    assert run(processes, main) == pytest.approx(28, abs=0.01)
    assert calls(store) <= 20


def test_an_urgent_call_that_fits_passes_one_that_waits_for_a_window(processes):
    """The first one is too early for the window, which is no reason to keep a smaller and more urgent one waiting."""

    async def main():
        limiter = Limiter(tokens=sliding(10, 60), name="x", store=Rows(hears=True).store())
        await limiter.acquire(tokens=8)
        large = asyncio.ensure_future(limiter.acquire(tokens=5))
        await asyncio.sleep(1)
        await limiter.acquire(tokens=1, priority=1)
        passed = clock.now()
        await large
        return passed, clock.now()

    passed, gone = run(processes, main)
    assert passed == pytest.approx(1, abs=0.01)
    assert gone == pytest.approx(60, abs=0.1)


def script(seed):
    """Limits, and what is done: at a moment, with a cost, options, and the moment at which it is given up."""
    chance = random.Random(seed)
    limits = {"tokens": Rate(chance.choice([1, 3, 10]), chance.choice([1, 7]), burst=chance.choice([1, 2, 20]))}
    if chance.random() < 0.5:
        limits["calls"] = chance.choice([sliding(3, 1), sliding(10, 7), Rate(10, 1, burst=1), Rate(50, 1, burst=5)])
    most = {unit: min(each.burst if isinstance(each, Rate) else each.amount, 20) for unit, each in limits.items()}
    acts = []
    for _ in range(chance.choice([4, 10, 25])):
        cost = {unit: min(chance.choice([0, 0.5, 1, 1, 2, 5]), room) for unit, room in most.items()}
        options = {"priority": chance.choice([0, 0, 0, 5]), "flow": chance.choice([None, None, "a"])}
        begins = chance.choice([0.0, 0.0, chance.random() * 15])
        leaves = begins + chance.random() * 8 if chance.random() < 0.3 else 10_000
        acts.append((begins, cost, options, leaves - begins))
    return limits, acts


async def play(limiter, acts):
    """When the last call goes, and how many do."""

    async def one(begins, cost, options, patience):
        await asyncio.sleep(begins)
        try:
            async with asyncio.timeout(patience):
                await limiter.acquire(cost, **options)
        except (RateLimited, TimeoutError):
            return None
        return clock.now()

    gone = [at for at in await asyncio.gather(*(one(*act) for act in acts)) if at is not None]
    return max(gone, default=0.0), len(gone)


@pytest.mark.parametrize("seed", range(40))
def test_the_last_call_goes_when_it_does_in_memory(processes, seed):
    """Whatever they cost, however urgent they are, and whoever leaves; but for a call more or less at the edge."""
    limits, acts = script(seed)
    store = Rows(hears=True).store()
    last, count = testing.run(play, Limiter(limits), acts)
    over_store, gone = run(processes, lambda: play(Limiter(limits, name="x", store=store), acts))
    assert abs(gone - count) <= 3
    rate = limits["tokens"].rate
    assert over_store <= last + 0.6 + (max(0, gone - count) + 2) * max(cost["tokens"] for _, cost, _, _ in acts) / rate
    assert calls(store) <= 20 * len(acts)
