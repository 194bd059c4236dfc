"""Calls over a store go when those of a limiter in memory do: nobody keeps a moment that was told to somebody else."""

from __future__ import annotations

import asyncio
import random

import pytest

from penstock import Keyed, Limiter, Rate, RateLimited, calendar, clock, in_flight, sliding, testing, unlimited
from penstock._backends.shared.dispatcher import dispatcher_of
from penstock._concurrency.parking import here
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


@pytest.mark.parametrize("pauses", [(0.01, 0.5, 1.2, 0.01, 0), (0.5, 0.5, 0.5, 0.5, 0)])
def test_the_most_urgent_call_claims_the_moment_that_it_was_told(processes, pauses):
    """Each claimed the first that was due: then the store took the one of priority 10 for one that waits behind it."""
    urgencies = [0, 0, 5, 10, 10]

    async def main():
        limiter = Limiter(requests=Rate(3, 7, burst=1), name="x", store=Rows(hears=False).store())
        await limiter.acquire()
        gone = []

        async def one(priority):
            await limiter.acquire(priority=priority)
            gone.append((priority, clock.now()))

        waiting = []
        for priority, pause in zip(urgencies, pauses, strict=True):
            waiting.append(asyncio.ensure_future(one(priority)))
            await asyncio.sleep(pause)
        await asyncio.gather(*waiting)
        return gone

    gone = run(processes, main)
    assert [priority for priority, _ in gone] == sorted(urgencies, reverse=True)
    assert [at for _, at in gone] == pytest.approx([7 / 3 * turn for turn in range(1, 6)], abs=0.01)


@pytest.mark.parametrize("lease", [None, 1.0], ids=["each asked for", "leased"])
def test_waiters_of_a_closed_loop_use_nothing(processes, lease):
    """Nobody cancels them: they waited in front of the others until the garbage collector came."""
    store = Rows(hears=True).store()
    loop = asyncio.new_event_loop()
    parker = loop.run_until_complete(_parker())
    loop.close()

    async def main():
        limiter = Limiter(requests=Rate(10, 1, burst=20), name="x", store=store, lease=lease)
        for _ in range(10 if lease else 20):
            await limiter.acquire()
        left = [asyncio.ensure_future(limiter.acquire()) for _ in range(20)]
        await asyncio.sleep(0.05)
        (queue,) = dispatcher_of(store).scheduler.state.queues
        for request in [*queue.waiters, *queue.reserved]:
            request.parker = parker
        begun = clock.now()
        await limiter.acquire()
        took = clock.now() - begun
        for task in left:
            task.cancel()
        return took, limiter.statistics().waiting

    took, waiting = run(processes, main)
    assert took <= 0.2
    assert not waiting


async def _parker():
    return here()


@pytest.mark.parametrize("hears", [True, False], ids=["hears", "asks"])
@pytest.mark.parametrize(("count", "most"), [(1, 3), (4, 8)], ids=["one process", "four processes"])
def test_a_place_that_is_given_back_goes_to_the_next_at_once(processes, count, most, hears):
    """Each process asked for it twenty times a second, though nobody else held one, or would have said so."""
    rows = Rows(hears=hears)
    stores = [rows.store() for _ in range(count)]
    idle, freed = [], []

    async def one(limiter):
        async with limiter():
            idle.append(clock.now() - freed[-1] if freed else 0.0)
            await asyncio.sleep(0.5)
            freed.append(clock.now())

    async def main():
        limiters = [Limiter(calls=in_flight(1), name="x", store=store) for store in stores]
        await asyncio.gather(*(one(limiter) for limiter in limiters * 2))

    run(processes, main)
    at_once = hears or count == 1
    assert max(idle) <= (0.001 if at_once else 0.051)
    if at_once:
        assert sum(calls(store) for store in stores) <= most * len(idle)


KINDS = {
    "rate": Rate(1, 1, burst=10),
    "sliding": sliding(10, 30),
    "calendar": calendar(10, 30),
    "places": in_flight(10),
    "unlimited": unlimited,
}
REPLACED = [
    ("rate", "calendar"),
    ("sliding", "rate"),
    ("calendar", "rate"),
    ("places", "sliding"),
    ("sliding", "places"),
    ("rate", "calendar", "rate"),
    ("sliding", "rate", "sliding"),
    ("places", "rate", "places"),
    ("rate", "places", "calendar", "sliding", "rate"),
    ("unlimited", "rate"),
    ("unlimited", "places"),
    ("rate", "unlimited", "rate"),
    ("unlimited", "calendar", "unlimited", "sliding"),
]


@pytest.mark.parametrize("kinds", REPLACED, ids=" ".join)
def test_a_permit_gives_nothing_back_to_the_kind_of_limit_that_took_over(processes, kinds):
    """It gave others' charges or places back, in full; and its true cost was charged to the new limit once more.

    In memory, in the process that replaced the limits, and in one that has heard of the last ones alone.
    """
    before, *after = (KINDS[kind] for kind in kinds)

    async def left(end, mine, others):
        """Seconds until 6 can be had after a permit has ended; None: never."""
        await asyncio.sleep(60 - clock.wall() % 60)  # where a period of the calendar begins
        await others.acquire(tokens=0)
        permit = await mine.acquire(tokens=8)
        for limit in after:
            others.reconfigure(tokens=limit)
            await asyncio.sleep(2)
        theirs = await others.acquire(tokens=9)
        begun = clock.now()
        if end == "cancel":
            permit.cancel()
        elif end != "leave":
            permit.settle(tokens=int(end))
        permit.close()
        await asyncio.sleep(0.1)
        try:
            await others.acquire(tokens=6, max_wait=100)
        except RateLimited:
            return None
        finally:
            theirs.close()
        return clock.now() - begun

    async def over_a_store(end, count):
        stores = [rows.store() for rows in [Rows(hears=False)] for _ in range(count)]
        limiters = [Limiter(tokens=before, name="x", store=store) for store in stores]
        return await left(end, limiters[0], limiters[-1])

    ends = ("cancel", "2", "leave", "9")

    async def main():
        return [await over_a_store(end, 1) for end in ends], [await over_a_store(end, 2) for end in ends[:3]]

    in_memory = []
    for end in ends:
        limiter = Limiter(tokens=before)
        in_memory.append(testing.run(left, end, limiter, limiter))
    found, unheard = run(processes, main)
    assert found == pytest.approx(in_memory, abs=0.3)
    assert unheard == pytest.approx(in_memory[:3], abs=0.3)


@pytest.mark.parametrize("tokens", [Rate(1, 1, burst=10), Rate(1, 1, burst=12), sliding(10, 10)], ids=str)
@pytest.mark.parametrize("later", [{"calls": 0, "tokens": 5}, {"calls": 0, "tokens": 1}], ids=["late", "perhaps"])
def test_no_later_call_takes_what_one_that_waits_for_a_place_needs(processes, tokens, later):
    """It took the tokens, and the one before it waited for them once there was a place."""
    limits = {"calls": in_flight(1), "tokens": tokens}

    async def gone(limiter):
        begun = clock.now()
        place = await limiter.acquire(calls=1, tokens=0)
        moments = []

        async def one(**cost):
            async with limiter(**cost):
                moments.append((cost["tokens"], clock.now() - begun))

        waiting = [asyncio.ensure_future(one(calls=1, tokens=10))]
        await asyncio.sleep(0.2)
        waiting.append(asyncio.ensure_future(one(**later)))
        await asyncio.sleep(2)
        place.close()
        await asyncio.gather(*waiting)
        return moments

    in_memory = testing.run(gone, Limiter(limits))
    found = run(processes, lambda: gone(Limiter(limits, name="x", store=Rows(hears=True).store())))
    assert [cost for cost, _ in found] == [cost for cost, _ in in_memory]
    assert [at for _, at in found] == pytest.approx([at for _, at in in_memory], abs=0.05)


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


HEARD = [pytest.param(True, seed, id=f"hears-{seed}") for seed in range(40)]
ASKED = [pytest.param(False, seed, id=f"asks-{seed}") for seed in (11, 39, 102)]


@pytest.mark.parametrize(("hears", "seed"), HEARD + ASKED)
def test_the_last_call_goes_when_it_does_in_memory(processes, hears, seed):
    """Whatever they cost, however urgent they are, and whoever leaves; but for a call more or less at the edge."""
    limits, acts = script(seed)
    store = Rows(hears=hears).store()
    last, count = testing.run(play, Limiter(limits), acts)
    over_store, gone = run(processes, lambda: play(Limiter(limits, name="x", store=store), acts))
    assert abs(gone - count) <= 3
    rate = limits["tokens"].rate
    assert over_store <= last + 0.6 + (max(0, gone - count) + 2) * max(cost["tokens"] for _, cost, _, _ in acts) / rate
    assert calls(store) <= 20 * len(acts)
