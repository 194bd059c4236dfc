"""A key is remembered while its limits are not whole, and costs nothing afterwards."""

from __future__ import annotations

import gc
import random
import sys
import tracemalloc
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial

import anyio
import pytest

from penstock import (
    Keyed,
    Limiter,
    Rate,
    RateLimited,
    calendar,
    clock,
    in_flight,
    per_day,
    per_minute,
    per_second,
    sliding,
    testing,
)
from penstock._backends.limit_set import LimitSet
from tests.keyed.looking import level, look_at_all

pytestmark = pytest.mark.usefixtures("quick_collections")

anyio_test = pytest.mark.anyio

PLACES = {"calls": in_flight(2), "tokens": "60/min"}


@anyio_test
async def test_a_key_vanishes_when_its_limits_are_whole_and_not_before(virtual_time):
    per_user = Keyed(requests=per_second(1, burst=3), tokens=per_second(10))
    per_user["alice"].acquire_nowait(requests=2, tokens=10)
    await anyio.sleep(1.999)
    look_at_all(per_user)
    assert "alice" in per_user._keys._states.known | per_user._keys._states.old
    assert level(per_user["alice"]) == pytest.approx(2.999)
    await anyio.sleep(0.001)
    look_at_all(per_user)
    assert not per_user._keys._states.known | per_user._keys._states.old
    assert set(per_user._keys._states.live) <= {"another"}


@anyio_test
async def test_a_key_that_comes_back_has_just_what_it_would_have_had(virtual_time):
    """Dropped or not, asked for or not: the level is that of a limiter that was held all the time."""
    limits = {"requests": per_minute(60, burst=7), "tokens": [sliding(50, 10), calendar(80, "minute")]}
    per_user, held = Keyed(**limits), Limiter(**limits)
    luck = random.Random(3)
    for step in range(600):
        cost = {"requests": luck.choice([0, 1, 3]), "tokens": luck.choice([0, 1, 20])}
        results = []
        for limiter in (per_user["alice"], held):
            try:
                limiter.acquire_nowait(**cost)
                results.append(None)
            except RateLimited as error:
                results.append((error.retry_after, error.blocked_by))
        del limiter
        assert results[0] == results[1]
        if step % 7 == 0:
            look_at_all(per_user, generation=1)  # a whole collection takes half a second in a test run
        await anyio.sleep(luck.choice([0, 0.3, 1.0, 4.0, 15.0]))
        mine, its = per_user["alice"].statistics().limits, held.statistics().limits
        assert {unit: one.level for unit, one in mine.items()} == pytest.approx(
            {unit: one.level for unit, one in its.items()}
        )


@pytest.mark.parametrize(("rate", "cost"), [(1_000_000, 0.507), (1_500, 0.1)])
def test_fractions_add_up_exactly_however_often_a_key_is_put_away(rate, cost):
    """After days of uptime what one fraction loses to rounding is a hundredth of it, and more of them would fit in."""
    with testing.manual_clock() as time:
        time.advance(1e9)
        per_user = Keyed(dollars=per_second(rate, burst=10))
        granted = 0
        with suppress(RateLimited):
            while True:
                per_user["alice"].acquire_nowait(dollars=cost)
                granted += 1
                look_at_all(per_user, generation=0)
    assert granted == int(10 / cost + 1e-9)


@anyio_test
async def test_a_key_stays_while_somebody_waits_in_its_line(virtual_time):
    """Though nobody holds its limiter but those who wait, and everybody else looks for keys to drop."""
    per_user = Keyed(requests=per_second(1, burst=1))
    log = []

    async def call():
        async with per_user["alice"]():
            log.append(clock.now())

    async with anyio.create_task_group() as group:
        for _ in range(4):
            group.start_soon(call)
        await anyio.wait_all_tasks_blocked()
        for _ in range(6):
            look_at_all(per_user)
            await anyio.sleep(0.45)
            assert per_user["alice"].statistics().waiting == sum(at > clock.now() for at in (0, 1, 2, 3))
    assert log == [0, 1, 2, 3]


@anyio_test
async def test_a_key_stays_while_somebody_holds_a_permit(virtual_time):
    """What is in flight is in flight, and a refund comes to the key that paid."""
    per_user = Keyed(calls=in_flight(2), tokens=per_second(1, burst=100))
    permits = [per_user["alice"].acquire_nowait(tokens=0) for _ in range(2)]
    await anyio.sleep(1_000)
    look_at_all(per_user)
    with pytest.raises(RateLimited):
        per_user["alice"].acquire_nowait(tokens=0)
    permits.pop().close()
    paid = per_user["alice"].acquire_nowait(tokens=80)
    look_at_all(per_user)
    paid.settle(tokens=30)
    assert level(per_user["alice"], "tokens") == 70
    paid.close()
    permits.pop().close()
    del paid
    await anyio.sleep(30)
    look_at_all(per_user)
    assert "alice" not in per_user._keys._states.known | per_user._keys._states.old | per_user._keys._states.live


@anyio_test
async def test_a_paused_key_stays_paused_while_nobody_holds_it(virtual_time):
    """Promise 9: one 429 for alice stops alice, also those of her calls that have not looked her up yet."""
    per_user = Keyed(requests=per_second(10), tokens=per_second(10))
    per_user["alice"].pause(60)
    per_user["bob"].pause(60, "tokens")
    for _ in range(3):
        look_at_all(per_user)
        await anyio.sleep(10)
    with pytest.raises(RateLimited) as refused:
        per_user["alice"].acquire_nowait(tokens=0)
    assert (refused.value.retry_after, refused.value.blocked_by) == (30, "pause")
    per_user["bob"].acquire_nowait(tokens=0)
    async with per_user["alice"](tokens=1):
        assert clock.now() == 60
    await anyio.sleep(1)
    look_at_all(per_user)
    assert not per_user._keys._states.known | per_user._keys._states.old


@pytest.mark.parametrize(
    "per_user",
    [
        partial(Keyed, requests=per_second(10)),
        partial(Keyed, lambda _: {"requests": per_second(10)}),
        partial(Keyed, requests=per_second(10), calls=in_flight(2, ttl=5, default=0)),
        partial(Keyed, requests=sliding(10, 1)),
    ],
    ids=["fixed", "by a function", "places that come back", "window"],
)
@pytest.mark.parametrize("joined", [False, True], ids=["alone", "joined"])
def test_a_paused_key_is_paused_for_the_next_who_looks_it_up(per_user, joined):
    """Whatever its limits are, and however its calls are charged."""
    with testing.manual_clock() as now:
        per_user = per_user()
        per_user["alice"].pause(3)

        def looked_up():
            return per_user["alice"] & Limiter(images=per_second(10, default=0)) if joined else per_user["alice"]

        for _ in range(2):
            with pytest.raises(RateLimited, match="would have to wait 3 s for pause"):
                looked_up().acquire_nowait()
        now.advance(3)
        looked_up().acquire_nowait()


@anyio_test
async def test_a_key_that_was_reconfigured_keeps_its_limits(virtual_time):
    """Its state does not equal absence: it is the one key with these limits."""
    per_user = Keyed(requests=per_second(1))
    per_user["alice"].acquire_nowait()
    per_user["alice"].reconfigure(requests=[per_second(5, burst=9), per_day(1_000)])
    for _ in range(3):
        look_at_all(per_user)
        await anyio.sleep(100_000)
    assert per_user["alice"].limits["requests"] == (per_second(5, burst=9), per_day(1_000))
    per_user["alice"].acquire_nowait(requests=9)
    assert per_user["bob"].limits["requests"] == (per_second(1),)
    per_user["alice"].reconfigure(requests=per_second(1))
    await anyio.sleep(100_000)
    look_at_all(per_user)
    assert not per_user._keys._states.known | per_user._keys._states.old


@anyio_test
@pytest.mark.parametrize("limit", [calendar(10, "day"), [per_day(10), calendar(10, "day")]], ids=["day", "both"])
async def test_keys_with_limits_of_the_calendar_vanish_when_their_day_ends(virtual_time, limit):
    virtual_time.set_wall(datetime(2026, 5, 5, 23, tzinfo=UTC))
    per_user = Keyed(requests=limit)
    for i in range(50):
        per_user[i].acquire_nowait(requests=5)
    await anyio.sleep(3_599)
    look_at_all(per_user)
    assert len(per_user) >= 50
    assert {one.level for one in per_user[7].statistics().limits.values() if one.limit == calendar(10, "day")} == {5}
    await anyio.sleep(12 * 3_600)
    look_at_all(per_user)
    assert len(per_user) <= 1
    assert level(per_user[7], next(iter(per_user[7].statistics().limits))) == 10


def test_a_hundred_thousand_keys_cost_nothing_once_they_are_idle():
    """After they were touched, were idle, and 50,000 uses of another looked at them: not a key, nor the room that they
    had."""
    with testing.manual_clock() as time:
        per_user = Keyed(requests=per_minute(60), tokens=per_minute(1_000))
        per_user[0].acquire_nowait(tokens=1)
        gc.collect()
        objects = len(gc.get_objects())
        for key in range(100_000):
            per_user[key].acquire_nowait(tokens=1)
        assert len(per_user) == 100_000
        time.advance(60)
        for _ in range(50_010):
            per_user["another"]
        gc.collect()
        assert len(gc.get_objects()) - objects < 100
        assert len(per_user) <= 1
        assert (
            sys.getsizeof(per_user._keys._states.known)
            + sys.getsizeof(per_user._keys._states.old)
            + sys.getsizeof(per_user._keys._states.live)
            < 10_000
        )


def test_a_key_costs_at_most_300_bytes_above_the_key_itself():
    """DESIGN §5, with two limits. All of it: the dict, its room to grow, and a number per limit."""
    with testing.manual_clock():
        per_user = Keyed(requests=per_minute(60), tokens=per_minute(1_000))
        keys = [f"user {i}" for i in range(50_000)]
        gc.collect()
        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            for key in keys:
                per_user[key].acquire_nowait(tokens=1)
            gc.collect()
            used = tracemalloc.get_traced_memory()[0] - before
        finally:
            tracemalloc.stop()
        assert len(per_user) == len(keys)
        assert used / len(keys) <= 300


@anyio_test
async def test_looking_costs_the_same_however_many_keys_there_are(virtual_time):
    """A few keys are looked at per use, and all in turn: none is remembered for ever because another is busy."""
    per_user = Keyed(requests=per_second(1, burst=2))
    for i in range(1_000):
        per_user[i].acquire_nowait()
    await anyio.sleep(10)
    for use in range(600):
        before = len(per_user)
        per_user["busy"].acquire_nowait(requests=0)
        assert before - len(per_user) <= 64, use
    assert len(per_user) <= 1


@anyio_test
async def test_a_place_of_a_key_comes_back_after_its_time_to_live_and_not_when_its_permit_is_forgotten(virtual_time):
    """Who forgets the permit may be at work still: as with any limiter, the place is taken until it has outlived
    that."""
    per_user = Keyed(calls=in_flight(1, ttl=10))
    per_user["alice"].acquire_nowait()
    look_at_all(per_user)
    with pytest.raises(RateLimited) as refused:
        per_user["alice"].acquire_nowait()
    assert refused.value.retry_after == 10
    del refused
    await anyio.sleep(10)
    with pytest.warns(RuntimeWarning, match=r"a permit of alice acquired at .*test_forgetting\.py:\d+ was not closed"):
        per_user["alice"].acquire_nowait().close()
    look_at_all(per_user)
    assert "alice" not in per_user._keys._states.known | per_user._keys._states.old | per_user._keys._states.live


@pytest.mark.parametrize("settled", [False, True])
@pytest.mark.parametrize("cost", [10, 10.5])
@anyio_test
async def test_a_late_word_of_the_server_about_a_forgotten_key_does_not_close_it(virtual_time, cost, settled):
    """It was empty for ever: what was charged since the call could not be known, and counted as endless."""
    per_user = Keyed(tokens="60/min")
    late = per_user["alice"].acquire_nowait(tokens=cost)
    per_user["alice"].acquire_nowait(tokens=cost).settle(tokens=1)
    await anyio.sleep(20)
    look_at_all(per_user)
    assert len(per_user) <= 1
    held = per_user["alice"]
    if settled:
        held.forecast(tokens=1)  # its limits are its own while it is held
        late.settle(tokens=12)
    late.observe(remaining={"tokens": 5})
    assert held.forecast(tokens=60).wait <= 60


def test_keys_that_were_given_something_back_are_forgotten_with_what_was_remembered_of_that(virtual_time):
    per_user = Keyed(tokens="60/min")
    for user in range(300):
        permit = per_user[user].acquire_nowait(tokens=30.5)
        permit.settle(tokens=1)
        del permit
        virtual_time.advance(10)
    look_at_all(per_user)
    assert len(per_user) <= 1
    assert len(per_user._keys._states._forgotten) < 40


@pytest.mark.parametrize("count", [1, 6, 7])
def test_a_key_vanishes_however_many_rates_it_has(virtual_time, count):
    per_user = Keyed(tokens=[Rate(10, 60 + number) for number in range(count)])
    for user in range(200):
        per_user[user].acquire_nowait(tokens=1)
    virtual_time.advance(3_600)
    look_at_all(per_user)
    assert len(per_user) <= 1


@pytest.mark.parametrize("limits", [{"tokens": "60/min"}, PLACES], ids=["rates", "places"])
@pytest.mark.parametrize("cost", [30, 30.5])
@pytest.mark.parametrize("end", ["settle", "cancel", "close"])
def test_a_permit_ends_whenever_its_key_was_put_away(virtual_time, end, cost, limits):
    """Some keys are looked at now, and some were put away long ago: of each comes back just what should."""
    per_user, limiter = Keyed(limits), Limiter(limits)
    permits = {user: per_user[user].acquire_nowait(tokens=cost) for user in range(150)}
    for permit in (limiter.acquire_nowait(tokens=cost), *permits.values()):
        if end == "settle":
            permit.settle(tokens=10)
        if end == "cancel":
            permit.cancel()
        permit.close()
    expected = {unit: limit.level for unit, limit in limiter.statistics().limits.items()}
    for user in permits:
        now = per_user[user].statistics().limits
        assert {unit: limit.level for unit, limit in now.items()} == expected


@anyio_test
async def test_a_permit_outlives_a_change_of_how_many_limits_its_key_has(virtual_time):
    per_user = Keyed(tokens=["60/min", "1000/day"])
    permit = per_user["alice"].acquire_nowait(tokens=30)
    per_user["alice"].reconfigure(tokens="60/min")
    permit.settle(tokens=10)
    assert level(per_user["alice"], "tokens") == 50


@pytest.mark.parametrize("key", ["alice", ("alice", 1)], ids=["a plain key", "a key that Python compares"])
@anyio_test
async def test_a_place_of_a_key_is_held_by_its_permit_alone(virtual_time, key):
    """However often keys are put away, and whatever else is asked of it meanwhile."""
    per_user = Keyed(PLACES)
    async with per_user[key](tokens=1):
        look_at_all(per_user)
        with per_user[key].acquire_nowait(tokens=0.5) as second:
            assert per_user[key].statistics().in_flight == 2
            with pytest.raises(RateLimited):
                per_user[key].acquire_nowait(tokens=1)
            second.settle(tokens=0)
        look_at_all(per_user)
        assert per_user[key].statistics().in_flight == 1
    await anyio.sleep(60)
    look_at_all(per_user)
    assert len(per_user) <= 1


@anyio_test
async def test_a_lost_permit_of_a_key_that_nothing_holds_keeps_no_place(virtual_time):
    per_user = Keyed(PLACES)
    for _ in range(5):
        per_user["alice"].acquire_nowait(tokens=1)  # and dropped
        gc.collect()
    assert per_user["alice"].statistics().in_flight == 0


@anyio_test
async def test_a_waiter_gets_the_place_of_a_permit_that_was_granted_without_a_queue(virtual_time):
    per_user = Keyed(calls=in_flight(2))
    log = []

    async def wait():
        async with per_user["alice"]():
            log.append("turn")

    async with anyio.create_task_group() as tasks:
        async with per_user["alice"](), per_user["alice"]():
            tasks.start_soon(wait)
            await anyio.sleep(1)
            assert log == []
        await anyio.sleep(0)
    assert log == ["turn"]
    assert per_user["alice"].statistics().in_flight == 0


@anyio_test
async def test_a_key_that_was_waited_for_goes_without_the_garbage_collector(virtual_time):
    """A waiter that was gone was held by a cycle, and the limits of its key by the waiter."""
    per_user, org = Keyed(requests=per_second(1), calls=in_flight(3)), Limiter(requests=per_second(100))

    async def use(limiter):
        async with limiter():
            await anyio.sleep(0.5)

    gc.collect()
    gc.disable()
    try:
        before = sum(isinstance(each, LimitSet) for each in gc.get_objects())
        for number in range(10):
            async with anyio.create_task_group() as tasks:
                for _ in range(3):
                    tasks.start_soon(use, per_user[f"user {number}"])
                    tasks.start_soon(use, org & per_user[f"member {number}"])
            per_user[f"asked {number}"].forecast()
            with suppress(RateLimited):
                [per_user[f"refused {number}"].acquire_nowait() for _ in range(2)]
        await anyio.sleep(10)
        for _ in range(200):
            per_user["another"]
        assert sum(isinstance(each, LimitSet) for each in gc.get_objects()) - before <= 3
        assert len(per_user) <= 3
    finally:
        gc.enable()
