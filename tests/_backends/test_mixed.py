"""Our organisation's tokens in a shared store, and so many calls at once in this process: one decision for a caller."""

from __future__ import annotations

import math
import pickle
import random

import anyio
import pytest

from penstock import (
    Limiter,
    QueueFull,
    RateLimited,
    StoreError,
    UnknownUnit,
    WouldBlockEventLoop,
    in_flight,
    per_second,
    unlimited,
)
from penstock.stores import SQLiteStore

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request):
    return request.param


@pytest.fixture
async def store(tmp_path):
    made = SQLiteStore(tmp_path / "x.db")
    yield made
    await anyio.to_thread.run_sync(made.close)


def parts(store, places=2, burst=100, rate=0.001):
    org = Limiter(tokens=per_second(rate, burst=burst), name="org", store=store)
    return org, Limiter(calls=in_flight(places))


async def left(org):
    await org.refresh()
    return round(org.statistics().limits["tokens"].level)


async def given_up(call):
    async with anyio.create_task_group() as group:
        group.start_soon(call)
        await anyio.sleep(0.05)
        group.cancel_scope.cancel()


async def test_giving_up_is_counted_wherever_a_call_waits(store):
    """For its place here, or for the store."""
    org, local = parts(store, places=1, burst=10)
    both = org & local
    async with both(tokens=10):
        await given_up(lambda: both.acquire(tokens=1))
    assert both.statistics().cancelled == 1
    await given_up(lambda: both.acquire(tokens=10))
    await org.refresh()
    assert both.statistics().cancelled == 2


@pytest.mark.parametrize("turned", [False, True], ids=["org & local", "local & org"])
async def test_both_parts_are_charged_and_places_come_back(turned, store):
    org, local = parts(store)
    both = local & org if turned else org & local
    async with both(tokens=10) as permit:
        assert permit.cost == {"calls": 1, "tokens": 10}
        assert local.statistics().in_flight == 1
        permit.settle(tokens=30)
    assert local.statistics().in_flight == 0
    assert await left(org) == 70
    assert both.statistics().granted == 1
    permit.settle(tokens=5)
    assert await left(org) == 95
    permit.cancel()
    permit.cancel()
    assert permit.cost == {}
    assert await left(org) == 100


@pytest.mark.parametrize("kind", ["org", "org & local"])
async def test_a_permit_that_was_acquired_is_entered_and_ends(kind, store):
    org, local = parts(store)
    limiter = org if kind == "org" else org & local
    with await limiter.acquire(tokens=10) as permit:
        permit.settle(tokens=30)
    async with await limiter.acquire(tokens=10):
        assert local.statistics().in_flight == (kind != "org")
    assert local.statistics().in_flight == 0
    assert await left(org) == 60


async def test_a_call_that_waits_for_a_place_has_taken_nothing_of_the_store(store):
    org, local = parts(store, places=1)
    both = org & local
    async with both(tokens=10), anyio.create_task_group() as tasks:
        tasks.start_soon(both.acquire, {"tokens": 10})
        await anyio.sleep(0.1)
        assert await left(org) == 90
        assert both.statistics().waiting == 1
        tasks.cancel_scope.cancel()
    assert await left(org) == 90
    assert local.statistics().in_flight == 0


async def test_a_call_that_the_store_refuses_gives_its_place_back(store):
    org, local = parts(store)
    both = org & local
    with pytest.raises(RateLimited) as caught:
        await both.acquire(tokens=100, max_wait=0)
        await both.acquire(tokens=1, max_wait=0)
    assert caught.value.blocked_by == "tokens"
    assert local.statistics().in_flight == 1
    assert both.statistics().refused == 1


async def test_a_call_that_needs_no_place_is_not_held_up_by_those_that_do(store):
    org, local = parts(store, places=1)
    both = org & local
    async with both(tokens=10), both(tokens=10, calls=0) as permit:
        assert permit.cost == {"tokens": 10}
        assert local.statistics().in_flight == 1
    assert local.statistics().in_flight == 0
    assert await left(org) == 80


async def test_a_permit_may_be_settled_for_its_places_alone(store):
    org, local = parts(store, places=3)
    async with (org & local)(tokens=10) as permit:
        permit.settle(calls=2)
        assert permit.cost == {"calls": 2, "tokens": 10}
        assert local.statistics().in_flight == 2
    assert local.statistics().in_flight == 0
    assert await left(org) == 90


async def test_a_place_that_is_not_there_is_refused_as_one(store):
    org, local = parts(store, places=1)
    both = org & local
    permit = await both.acquire(tokens=1)
    with pytest.raises(RateLimited) as caught:
        await both.acquire(tokens=1, max_wait=0)
    assert (caught.value.blocked_by, caught.value.retry_after) == ("calls", math.inf)
    permit.close()
    await both.acquire(tokens=1, max_wait=0)
    assert await left(org) == 98


async def test_a_call_that_gives_up_at_any_moment_leaves_nothing_behind(store):
    org, local = parts(store, places=3, burst=1000, rate=1000)
    both = org & local
    rng = random.Random(3)
    granted = 0

    async def call():
        nonlocal granted
        with anyio.move_on_after(rng.uniform(0, 0.1)):
            async with both(tokens=5):
                granted += 1
                await anyio.sleep(rng.uniform(0, 0.003))

    async with anyio.create_task_group() as tasks:
        for _ in range(200):
            tasks.start_soon(call)
            await anyio.sleep(0.001)
    assert granted > 20
    await anyio.sleep(0.05)
    assert local.statistics().in_flight == 0
    assert both.statistics().waiting == 0
    async with both(tokens=5), both(tokens=5), both(tokens=5):
        pass


async def test_places_are_shared_with_callers_of_the_local_limiter_alone(store):
    org, local = parts(store, places=2)
    both = org & local
    async with local, local:
        with pytest.raises(RateLimited):
            await both.acquire(tokens=1, max_wait=0)
    async with both(tokens=1):
        assert local.statistics().in_flight == 1


async def test_waits_pauses_and_limits_work_on_the_part_that_knows_them(store):
    org, local = parts(store, places=1)
    both = org & local & Limiter(requests=per_second(100), name="more", store=store)
    assert set(both.limits) == {"tokens", "calls", "requests"}
    both.pause(60, "tokens")
    with pytest.raises(RateLimited) as caught:
        await both.acquire(tokens=1, max_wait=0)
    assert caught.value.blocked_by == "pause"
    both.resume()
    await both.acquire(tokens=1, max_wait=1)
    both.reconfigure(calls=in_flight(2))
    await both.acquire(tokens=1, max_wait=1)
    assert both.forecast(tokens=1).blocked_by == "calls"
    with pytest.raises(UnknownUnit):
        both.pause(1, "images")
    with pytest.raises(ValueError, match="only places"):
        both.reconfigure(calls=per_second(5))
    both.observe(remaining={"tokens": 40})
    assert await left(org) == 40


async def test_the_places_of_a_call_are_settled_as_its_tokens_are(store):
    org, local = parts(store, places=3)
    async with (org & local)(tokens=10, calls=3) as permit:
        permit.settle(calls=1, tokens=5)
        assert (local.statistics().in_flight, await left(org)) == (1, 95)
    assert local.statistics().in_flight == 0


async def test_limits_of_the_store_are_changed_by_the_joint_limiter(store):
    org, local = parts(store)
    both = org & local
    await both.acquire(tokens=10)
    both.reconfigure(tokens=per_second(0.001, burst=200))
    await both.refresh()
    assert await left(org) == 190


async def test_joint_limiters_are_joined_in_any_order(store):
    org, local = parts(store)
    users = Limiter(requests=per_second(0.001, burst=50), name="users", store=store)
    seats = Limiter(seats=in_flight(5))
    for every in (org & local) & (users & seats), seats & (local & org) & users:
        async with every(tokens=10) as permit:
            assert permit.cost == {"tokens": 10, "calls": 1, "requests": 1, "seats": 1}
            assert (local.statistics().in_flight, seats.statistics().in_flight) == (1, 1)
        assert (local.statistics().in_flight, seats.statistics().in_flight) == (0, 0)
    assert await left(org) == 80


async def test_the_queue_is_bounded_in_both_parts(store):
    org, _ = parts(store)
    both = org & Limiter(calls=in_flight(1), max_queue=1)
    async with both(tokens=1), anyio.create_task_group() as tasks:
        tasks.start_soon(both.acquire, {"tokens": 1})
        await anyio.sleep(0.05)
        with pytest.raises(QueueFull):
            await both.acquire(tokens=1)
        tasks.cancel_scope.cancel()


async def test_a_store_that_is_closed_gives_the_places_back(store):
    org, local = parts(store, burst=10)
    both = org & local
    await org.acquire(tokens=10)
    with pytest.raises(BaseExceptionGroup) as caught:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(both.acquire, {"tokens": 10})
            await anyio.sleep(0.05)
            await anyio.to_thread.run_sync(store.close)
    assert caught.group_contains(StoreError)
    assert local.statistics().in_flight == 0


def test_threads_wait_too(tmp_path):
    store = SQLiteStore(tmp_path / "x.db")
    org, local = parts(store)
    both = org & local
    with both(tokens=10) as permit:
        assert permit.cost == {"calls": 1, "tokens": 10}
    assert local.statistics().in_flight == 0
    store.close()


async def test_what_cannot_be_decided_together_is_refused(store, tmp_path):
    org, local = parts(store)
    with pytest.raises(ValueError, match="only places"):
        _ = org & Limiter(requests=per_second(5))
    _ = org & Limiter(requests=unlimited)
    other = Limiter(tokens="5/s", name="y", store=SQLiteStore(tmp_path / "y.db"))
    with pytest.raises(ValueError, match="different stores"):
        _ = (org & local) & other
    with pytest.raises(WouldBlockEventLoop):
        (org & local).acquire_nowait(tokens=1)
    assert local.statistics().in_flight == 0
    with pytest.raises(TypeError, match="memory of one process"):
        pickle.dumps(org & local)
