"""Limits that change while calls are inside, wait, or have gone."""

from __future__ import annotations

import anyio
import anyio.to_thread
import pytest

from penstock import (
    Limiter,
    Rate,
    RateLimited,
    Unsatisfiable,
    clock,
    in_flight,
    per_minute,
    per_second,
    sliding,
)
from penstock.stores.memory import MemoryStore
from tests.limiter.lines import PLAIN, granted_at_once, line_up

pytestmark = pytest.mark.anyio


async def test_reconfiguring_keeps_what_was_used_and_looks_at_the_waiters(virtual_time):
    limiter = Limiter(tokens=per_minute(60))
    limiter.acquire_nowait(tokens=60)
    log = []

    async def change():
        await anyio.sleep(1)  # one token is back
        limiter.reconfigure(tokens=per_second(10, burst=60))

    async with anyio.create_task_group() as group:
        group.start_soon(line_up, limiter, [("a", {"tokens": 21})], log)
        group.start_soon(change)
    assert log == [("a", 3.0)]
    assert limiter.limits["tokens"] == (per_second(10, burst=60),)


async def test_reconfiguring_below_a_waiters_cost_tells_it(virtual_time):
    limiter = Limiter(tokens=per_minute(60))
    limiter.acquire_nowait(tokens=60)
    async with anyio.create_task_group() as group:

        async def wait():
            with pytest.raises(Unsatisfiable):
                await limiter.acquire(tokens=50)

        group.start_soon(wait)
        await anyio.wait_all_tasks_blocked()
        limiter.reconfigure(tokens=per_minute(30))


@pytest.mark.parametrize("limits", [{"tokens": Rate(5, 1.0)}, {"requests": Rate(5, 1.0), "tokens": Rate(5, 1.0)}])
async def test_a_call_that_was_made_before_a_reconfiguration_is_charged_by_the_limits_of_now(limits, virtual_time):
    limiter = Limiter(**limits)
    call = limiter(tokens=2)
    limiter.reconfigure(tokens=sliding(3, 60))
    async with call as permit:
        assert permit.cost["tokens"] == 2
    assert limiter.statistics().limits["tokens"].level == 1
    for unit in set(limits) - {"tokens"}:
        assert limiter.statistics().limits[unit].level == 4


@pytest.mark.parametrize("added", [Rate(100, 2e6), sliding(100, 1e6)])
async def test_a_limit_that_was_added_follows_the_true_cost_of_a_call_from_before(added, virtual_time):
    """The second true cost was charged to it once more, but for what the first had added."""
    limiter = Limiter(tokens=Rate(100, 1e6))
    permit = limiter.acquire_nowait(tokens=8)
    limiter.reconfigure(tokens=[Rate(100, 1e6), added])
    used = []
    for cost in (9, 10, 6, 20):
        permit.settle(tokens=cost)
        used.append([round(100 - limit.level) for limit in limiter.statistics().limits.values()])
    assert used == [[9, 9], [10, 10], [6, 8], [20, 20]]  # what was there before the limit it does not give back
    permit.cancel()
    first, second = limiter.statistics().limits.values()
    assert (round(first.level), round(second.level)) == (100, 92)


async def test_a_reconfiguration_binds_every_limiter_over_these_limits(virtual_time):
    """One that was made under the same name went on with the one bucket that it remembered: 50 in five seconds, not
    20."""
    store = MemoryStore()
    mine, theirs = (Limiter(name="both", store=store, tokens=per_second(10)) for _ in range(2))
    async with mine(tokens=10):
        pass
    await anyio.sleep(1)
    theirs.reconfigure(tokens=[per_second(10), per_minute(20)])
    began = clock.now()
    for _ in range(3):
        async with mine(tokens=10):
            pass
    assert clock.now() - began == pytest.approx(30)
    theirs.reconfigure(tokens=per_second(100, default=50))
    async with mine as permit:
        assert permit.cost == {"tokens": 50}


async def test_a_reconfiguration_through_a_joint_limiter_binds_its_parts(virtual_time):
    org, user = Limiter(requests=per_second(10)), Limiter(tokens=per_second(10))
    (org & user).reconfigure(requests=sliding(2, 60))
    for _ in range(2):
        async with org:
            pass
    with pytest.raises(RateLimited):
        org.acquire_nowait()
    with pytest.raises(RateLimited):
        async with org(max_wait=59):
            pass


@pytest.mark.parametrize("limits", [{"tokens": Rate(10, 1.0)}, {"requests": Rate(10, 1.0), "tokens": Rate(10, 1.0)}])
@pytest.mark.parametrize(
    "changed", [["10/s", "1000/min"], sliding(10, 60), Rate(20, 1.0, default=1)], ids=["more", "kind", "default"]
)
async def test_a_permit_of_before_a_reconfiguration_can_be_settled_and_cancelled_after_it(
    virtual_time, limits, changed
):
    """What a plain permit was charged on was looked up when somebody asked, and was by then something else."""
    limiter = Limiter(**limits)
    async with limiter(tokens=5) as settled, limiter(tokens=2) as cancelled:
        limiter.reconfigure(tokens=changed)
        settled.settle(tokens=3)
        cancelled.cancel()
    assert settled.cost["tokens"] in (3, 5)  # the meter of another kind cannot give back
    assert cancelled.cost == {}
    for limit in limiter.statistics().limits.values():
        assert limit.level <= limit.limit.capacity - 3 or limit.unit == "requests"


async def test_a_waiter_that_is_granted_in_a_reconfiguration_passes_the_timer_on(virtual_time):
    """All is handed over to a new gate: those in line, who is on post, and one that is granted and not awake yet."""
    limiter = Limiter(requests=per_second(1, burst=1))
    await limiter.acquire()
    log = []

    async def call(number):
        async with limiter:
            log.append((number, clock.now() - began))

    began = clock.now()
    async with anyio.create_task_group() as group:
        for number in range(4):
            group.start_soon(call, number)
            await anyio.wait_all_tasks_blocked()
        limiter.reconfigure(requests=[per_second(2, burst=1), per_minute(100)])
        await anyio.sleep(0.1)
        limiter.reconfigure(requests=per_second(1_000, burst=1))
        limiter.reconfigure(requests=[per_second(1, burst=1), per_minute(100)])
    assert [number for number, _ in log] == [0, 1, 2, 3]
    assert log[-1][1] - log[0][1] == pytest.approx(3, abs=0.01)


@pytest.mark.parametrize(
    ("before", "after"),
    [(per_minute(5), in_flight(5)), (in_flight(5), [in_flight(5), in_flight(6, ttl=60)])],
    ids=["from a rate", "one more"],
)
async def test_a_reconfiguration_to_places_holds_none_that_nobody_could_give_back(virtual_time, before, after):
    """What was used of the rate was held ever after, and what was held was held twice and given back once."""
    limiter = Limiter(calls=before)
    with limiter.acquire_nowait(calls=5):
        limiter.reconfigure(calls=after)
    with limiter.acquire_nowait(calls=5):
        assert limiter.statistics().in_flight == 5


@pytest.mark.parametrize(
    "anew", [sliding(2, 60), ["10/s", "2/min"], Rate(2, 60)], ids=["other kind", "one more", "same kind"]
)
@pytest.mark.parametrize("limits", PLAIN.values(), ids=PLAIN)
async def test_limits_that_change_by_one_limiter_hold_for_all_that_share_them(virtual_time, limits, anew):
    """Of one name, or joined: promise 1 does not depend on who was told of the new limits."""
    cost = {unit: 1 for unit in limits if unit != "requests"}
    store = MemoryStore()
    told, other = (Limiter(name="one", store=store, **limits) for _ in range(2))
    assert await granted_at_once(other, **cost) == 10
    await anyio.sleep(10)
    told.reconfigure(requests=anew)
    assert await granted_at_once(other, **cost) == 2
    assert other.limits == told.limits

    part, images = Limiter(**limits), Limiter(images="100/s")
    joint = part & images
    part.reconfigure(requests=anew)
    assert await granted_at_once(joint, images=1, **cost) == 2

    part = Limiter(**limits)
    (part & images).reconfigure(requests=anew)
    assert await granted_at_once(part, **cost) == 2
    part.reconfigure(requests="1000/s")
    await anyio.sleep(60)
    assert await granted_at_once(part, **cost) == 10


@pytest.mark.parametrize(
    "anew", [sliding(10, 1), ["10/s", "20/min"], Rate(10, 1, default=5)], ids=["other kind", "one more", "default"]
)
@pytest.mark.parametrize("limits", PLAIN.values(), ids=PLAIN)
async def test_a_permit_outlives_the_limits_that_it_was_granted_by(virtual_time, limits, anew):
    cost = {unit: 4 for unit in limits if unit != "requests"} or {"requests": 4}
    limiter = Limiter(**limits)
    async with limiter(**cost) as permit:
        limiter.reconfigure(requests=anew)
        assert permit.cost == {"requests": 1, **cost}
        permit.settle(requests=2)
        permit.cancel()
        assert permit.cost == {}
    assert [now.level <= now.capacity for now in limiter.statistics().limits.values()]


async def test_a_block_that_was_entered_when_the_limits_changed_can_end(virtual_time):
    limiter = Limiter(requests=per_second(10))
    async with limiter:
        limiter.reconfigure(requests=in_flight(1))
        with limiter:
            assert limiter.statistics().in_flight == 1
        assert limiter.statistics().in_flight == 0


async def test_what_was_spent_takes_no_place_that_nobody_could_give_back(virtual_time):
    limiter = Limiter(requests=per_minute(2))
    await limiter.acquire(requests=2)
    limiter.reconfigure(requests=in_flight(2))
    assert limiter.statistics().in_flight == 0
    async with limiter:
        limiter.reconfigure(requests=per_minute(2))  # the other way round it counts: it is on its way
        assert limiter.statistics().limits["requests"].level == 1


@pytest.mark.parametrize(
    "changed", [sliding(100, 60), in_flight(100), Rate(100, 60)], ids=["sliding", "places", "rate"]
)
async def test_a_permit_of_before_a_reconfiguration_observes_the_limits_of_now(virtual_time, changed):
    limiter = Limiter(tokens=sliding(100, 60) if isinstance(changed, Rate) else Rate(100, 60))
    permit = limiter.acquire_nowait(tokens=10)
    limiter.reconfigure(tokens=changed)
    permit.observe(remaining={"tokens": 40})
    assert limiter.statistics().limits["tokens"].level == (100 if changed == in_flight(100) else 40)


@pytest.mark.parametrize("limits", [{"tokens": Rate(50, 1)}, {"requests": Rate(50, 1), "tokens": Rate(50, 1)}])
async def test_a_call_of_before_a_reconfiguration_to_places_gives_them_back(virtual_time, limits):
    """It was written for limits that hold nothing, and left without a look: the places were held for ever."""
    limiter = Limiter(**limits)
    call, entered = limiter(tokens=2), limiter(tokens=2)
    async with entered:
        limiter.reconfigure(tokens=[Rate(1_000, 1), in_flight(4)])
        for _ in range(3):
            async with call, call:
                assert limiter.statistics().in_flight == 4
            with call:
                assert limiter.statistics().in_flight == 2
    assert limiter.statistics().in_flight == 0
    async with anyio.create_task_group() as group:
        for _ in range(5):
            group.start_soon(line_up, lambda **_: call, [("", {})] * 2, [])
    assert limiter.statistics().in_flight == 0
    limiter.reconfigure(tokens=Rate(1_000, 1))
    async with call as permit:
        assert permit.cost["tokens"] == 2


async def test_those_in_line_give_back_the_places_that_a_reconfiguration_has_brought(virtual_time):
    """Their calls were plain when they came. One of the limiters does not know of it, as another one was
    reconfigured."""
    store = MemoryStore()
    mine, theirs = (Limiter(name="x", store=store, requests=per_second(1, burst=1)) for _ in range(2))
    await mine.acquire()
    async with anyio.create_task_group() as group:
        for limiter in (mine, theirs, mine, theirs):
            group.start_soon(line_up, limiter, [("", {"requests": 1})], [])
        group.start_soon(line_up, mine, [("", {})], [])
        await anyio.wait_all_tasks_blocked()
        theirs.reconfigure(requests=[per_second(1, burst=1), in_flight(2)])
    for limiter in (mine, theirs):
        assert limiter.statistics().in_flight == 0
