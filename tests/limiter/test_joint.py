"""`a & b`: one decision, one queue, whoever was joined with whom."""

from __future__ import annotations

import asyncio
import gc
import itertools

import anyio
import anyio.to_thread
import pytest

import penstock
from penstock import (
    Keyed,
    Limiter,
    RateLimited,
    UnknownUnit,
    Unsatisfiable,
    calendar,
    clock,
    events,
    in_flight,
    per_day,
    per_minute,
    per_second,
)
from penstock._backends.keyed import KeyStates
from penstock._backends.queue import WaitQueue
from penstock.stores.memory import MemoryStore
from penstock.testing import RecordedEvents, run
from tests.limiter.lines import line_up

pytestmark = pytest.mark.anyio


async def test_a_joint_limiter_tells_its_limits_of_one_unit_apart(virtual_time):
    org = Limiter(requests=per_minute(100), tokens=per_minute(1_000))
    alice = Limiter(requests=per_minute(60), tokens=per_day(500))
    both = org & alice
    assert list(both.statistics().limits) == [
        "requests (100/min)",
        "requests (60/min)",
        "tokens (1000/min)",
        "tokens (500/day)",
    ]
    with pytest.raises(Unsatisfiable, match=r'501 tokens can never be granted: "tokens \(500/day\)" holds at most 500'):
        both.acquire_nowait(tokens=501)
    both.acquire_nowait(tokens=500)
    assert both.forecast(tokens=1).blocked_by == "tokens (500/day)"
    with pytest.raises(RateLimited, match=r"for tokens \(500/day\)") as refused:
        both.acquire_nowait(tokens=1)
    assert refused.value.blocked_by == "tokens (500/day)"
    assert alice.forecast(tokens=1).blocked_by == "tokens"  # on its own it has but one


async def test_a_joint_limiter_is_one_decision_and_one_line(virtual_time):
    org = Limiter(requests=per_second(2), tokens=per_second(100))
    alice, bob = (Limiter(requests=per_second(1, burst=1)) for _ in range(2))
    log = []

    async def call(name, limiter):
        async with (org & limiter)(tokens=1):
            log.append((name, clock.now()))

    async with anyio.create_task_group() as group:
        for name, limiter in (("alice", alice), ("alice", alice), ("bob", bob), ("bob", bob)):
            group.start_soon(call, name, limiter)
            await anyio.wait_all_tasks_blocked()
    assert log == [("alice", 0.0), ("bob", 0.0), ("alice", 1.0), ("bob", 1.0)]
    assert org.statistics().limits["requests"].level == 0
    with pytest.raises(UnknownUnit):
        (org & alice).acquire_nowait(tokens=1, images=1)
    assert list((org & alice & bob).statistics().limits) == [
        "requests (2/s)", "requests (1/s)", "requests (1/s)'", "tokens"
    ]  # fmt: skip


async def test_joining_twice_charges_once(virtual_time):
    a, b = Limiter(requests=per_minute(10)), Limiter(tokens=per_minute(10))
    ((a & b) & (b & a)).acquire_nowait(tokens=4)
    assert a.statistics().limits["requests"].level == 9
    assert b.statistics().limits["tokens"].level == 6


async def test_a_rehearsal_is_not_decided_together_with_the_performance(virtual_time):
    """The joint limiter was a rehearsal as a whole, and let through what the other one had promised to hold."""
    org = Limiter(requests=per_minute(1))
    user = Limiter(requests=per_minute(1), enforce=False)
    for one, other in ((org, user), (user, org)):
        with pytest.raises(ValueError, match=r"is a rehearsal \(enforce=False\) and Limiter\(.*\) is not"):
            one & other


@pytest.mark.parametrize("join", [lambda a, b: a & b, lambda a, b: b & a], ids=["left", "right"])
def test_a_call_that_is_cancelled_at_its_grant_gives_back_to_those_that_came_after_a_join(join):
    """The place goes back to a line that has become part of another one in the meantime."""

    async def main():
        calls, other = Limiter(calls=in_flight(1)), Limiter(requests=per_second(10))
        first = await calls.acquire()
        granted = asyncio.create_task(calls.acquire())
        await asyncio.sleep(1)
        later = asyncio.create_task(calls.acquire())  # stands in line before `granted` runs again
        first.close()
        join(calls, other)
        granted.cancel()
        (await asyncio.wait_for(later, 1)).close()
        assert granted.cancelled()

    run(main)


@pytest.mark.parametrize("join", [lambda a, b: a & b, lambda a, b: b & a], ids=["left", "right"])
def test_joining_with_a_new_limiter_for_every_call_leaves_nothing_behind(join):
    ours = Limiter(requests=per_second(1_000_000))
    left = []
    for count in (10, 100):
        for _ in range(count):
            join(ours, Limiter(tokens=per_second(10))).acquire_nowait(tokens=1)
        left.append(sum(isinstance(thing, WaitQueue) for thing in gc.get_objects()))
    assert left[1] <= left[0]


async def test_every_hook_of_a_joint_limiter_hears_an_event_once():
    """However the parts were joined; a hook is the same if it is the same object, or the same method of it."""
    first, second, third = RecordedEvents(), RecordedEvents(), RecordedEvents()
    a = Limiter(a="10/s", on_event=first)
    b = Limiter(b="10/s", on_event=second)
    c = Limiter(c="10/s", on_event=first)
    d = Limiter(d="10/s", on_event=third.append)
    e = Limiter(e="10/s", on_event=third.append)
    quiet = Limiter(requests="10/s")
    for joint in (a & b & c & d & e & quiet & a, quiet & (e & a) & ((b & d) & c)):
        joint.acquire_nowait(**dict.fromkeys("abcde", 1))
        assert [len(heard.of(events.Granted)) for heard in (first, second, third)] == [1, 1, 1]
        for heard in (first, second, third):
            heard.clear()
    (quiet & Limiter(tokens="10/s")).acquire_nowait(tokens=1)
    assert first == second == third == []


async def test_waiters_are_counted_in_full_when_two_queues_become_one(virtual_time):
    org, user = Limiter(requests=per_second(1, burst=1)), Limiter(tokens=per_second(1, burst=1))
    await org.acquire()
    await user.acquire(tokens=1)
    async with anyio.create_task_group() as group:
        for limiter, cost, calls in ((org, {}, 4), (user, {"tokens": 1}, 3)):
            for _ in range(calls):
                group.start_soon(line_up, limiter, [("", cost)], [])
        await anyio.wait_all_tasks_blocked()
        both = org & user
        assert both.forecast(tokens=1) == penstock.Forecast(pytest.approx(5), "requests")
        assert user.forecast(tokens=1) == penstock.Forecast(pytest.approx(4), "tokens")


def test_a_name_that_nobody_holds_may_be_taken_over_with_other_units():
    """What was used of the units that stay is used; the others are gone."""
    store = MemoryStore()
    Limiter({"tokens": "100/min", "images": "10/min"}, name="x", store=store).acquire_nowait(
        {"tokens": 60, "images": 1}
    )
    again = Limiter(name="x", store=store, tokens="100/min")
    again.acquire_nowait(tokens=30)
    with pytest.raises(RateLimited):
        again.acquire_nowait(tokens=30)
    assert set(again.limits) == {"tokens"}


def test_a_name_with_a_limit_of_the_calendar_keeps_its_state_until_the_period_ends(virtual_time):
    store = MemoryStore()

    def left():
        Limiter(name="other", store=store, requests="1/s")  # whatever is looked up, names are looked through
        limiter = Limiter(name="x", store=store, tokens=calendar(10, "day"))
        limiter.acquire_nowait(tokens=1)
        return limiter.statistics().limits["tokens"].level

    assert [left(), left(), left()] == [9, 8, 7]
    virtual_time.advance(86_400)
    assert left() == 9


async def test_flows_keep_their_weights_in_a_joint_limiter(virtual_time):
    """Whichever part has them."""
    for weighed, plain in itertools.permutations(({"flow_weights": {"a": 3}}, {}), 2):
        both = Limiter(requests=per_second(1, burst=1), **weighed) & Limiter(tokens=per_second(1), **plain)
        await both.acquire(tokens=0)
        granted = []

        async def call(flow, both=both, granted=granted):
            await both.acquire(tokens=0, flow=flow)
            granted.append(flow)

        async with anyio.create_task_group() as group:
            for flow in "abababab":
                group.start_soon(call, flow)
        assert granted[:4].count("a") == 3


@pytest.mark.parametrize("join", [lambda a, b: a & b, lambda a, b: b & a], ids=["left", "right"])
def test_a_user_of_one_limiter_may_be_joined_with_another(join):
    """Also where the user's limiter is a joint one already; and each call is charged on all three."""
    org, team, per_user = Limiter(tokens="100/min"), Limiter(tokens="50/min"), Keyed(tokens="10/min")
    for _ in range(3):
        join(org, team & per_user["alice"]).acquire_nowait(tokens=2)
    assert [each.statistics().limits["tokens"].level for each in (org, team, per_user["alice"])] == pytest.approx(
        [94, 44, 4], abs=0.1
    )


def test_a_limiter_that_is_joined_with_new_users_for_ever_remembers_few():
    org, left = Limiter(requests="1000/s"), []
    for count in (10, 200):
        for _ in range(count):
            (org & Keyed(tokens="10/s")["alice"]).acquire_nowait(tokens=1)
        gc.collect()
        left.append(sum(isinstance(thing, KeyStates) for thing in gc.get_objects()))
    assert left[1] - left[0] < 100


def test_limiters_of_two_stores_of_one_process_cannot_be_joined():
    here, there = Limiter(requests="1/s"), Limiter(tokens="1/s", store=MemoryStore())
    per_user = Keyed(tokens="1/s", store=MemoryStore())
    for one, other in ((here, there), (there, here), (here, per_user["alice"]), (per_user["alice"], here)):
        with pytest.raises(ValueError, match="they live in different stores and cannot be decided together"):
            one & other


def test_a_rehearsal_of_users_is_joined_with_that_of_their_organisation():
    org, per_user = Limiter(requests="1/min", enforce=False), Keyed(requests="1/min", enforce=False)
    for _ in range(3):
        (org & per_user["alice"]).acquire_nowait()
    assert org.statistics().limits["requests"].level < -1
    with pytest.raises(ValueError, match="is a rehearsal"):
        org & Keyed(requests="1/min")["alice"]
