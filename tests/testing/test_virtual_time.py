"""Virtual time: fast, exact, and moved by hand."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from datetime import UTC, datetime, timedelta

import anyio
import pytest
import trio
import uvloop
from hypothesis import example, given
from hypothesis import strategies as st

from penstock import clock, testing
from penstock.testing import Patience, VirtualTime, manual_clock
from tests.quiet import seconds_without_a_core

# ------------------------------------------------------------------------------------------------ fast


@pytest.mark.anyio
async def test_a_year_passes_in_less_than_a_second(virtual_time):
    began = time.monotonic() - seconds_without_a_core()
    for _ in range(365):
        await anyio.sleep(24 * 3600)
    assert virtual_time.now() == 365 * 24 * 3600
    assert time.monotonic() - seconds_without_a_core() - began < 1


@pytest.mark.anyio
async def test_the_loop_that_was_asked_for_is_the_one_that_runs(virtual_time, anyio_backend):
    """A test that is marked for uvloop says something about uvloop."""
    name, options = anyio_backend
    if name == "trio":
        assert trio.lowlevel.in_trio_task()
    else:
        assert isinstance(asyncio.get_running_loop(), uvloop.Loop) == options["use_uvloop"]


# ----------------------------------------------------------------------------------------------- exact


@pytest.mark.anyio
async def test_ten_sleeps_of_a_tenth_end_at_the_sum(virtual_time):
    for _ in range(10):
        await anyio.sleep(0.1)
    assert virtual_time.now() == 0.1 + 0.1 + 0.1 + 0.1 + 0.1 + 0.1 + 0.1 + 0.1 + 0.1 + 0.1 != 1.0


@given(delays=st.lists(st.floats(min_value=0, max_value=1e9), max_size=20))
@example(delays=[0.3, 0.3999999999999999, 1e9, 1e-9])
def test_every_sleep_ends_at_the_very_moment_that_the_program_computed(loop, delays):
    """To the last bit, also where the distance between the two moments is no float."""

    async def main():
        for delay in delays:
            expected = clock.now() + delay
            await anyio.sleep(delay)
            assert clock.now() == anyio.current_time() == expected

    testing.run(main, **loop)


@given(delays=st.lists(st.floats(min_value=0.001, max_value=1e6), max_size=30))
def test_timers_fire_in_the_order_of_their_moments(loop, delays):
    async def main():
        woken = []

        async def sleeper(delay):
            await anyio.sleep(delay)
            woken.append((delay, clock.now()))

        async with anyio.create_task_group() as tasks:
            for delay in delays:
                tasks.start_soon(sleeper, delay)
        assert woken == [(delay, delay) for delay in sorted(delays)]

    testing.run(main, **loop)


@pytest.mark.anyio
async def test_time_stands_still_while_anybody_runs(virtual_time):
    moments = set()

    async def worker():
        for _ in range(100):
            await anyio.lowlevel.checkpoint()
            moments.add(virtual_time.now())

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(anyio.sleep, 1e-9)
        for _ in range(10):
            tasks.start_soon(worker)
    assert moments == {0.0}


@pytest.mark.anyio
async def test_deadlines_fire_at_their_moment(virtual_time):
    with anyio.move_on_after(0.7) as scope:
        await anyio.sleep_forever()
    assert scope.cancelled_caught
    assert virtual_time.now() == 0.7

    with pytest.raises(TimeoutError), anyio.fail_after(3600):
        await anyio.sleep(3601)
    assert virtual_time.now() == 3600.7


@pytest.mark.anyio
async def test_what_ends_at_the_deadline_or_before_it_is_not_cut(virtual_time):
    with anyio.fail_after(10):
        await anyio.sleep(9.999)
    assert virtual_time.now() == 9.999


@pytest.mark.anyio
async def test_a_cancelled_task_may_take_its_time_to_clean_up(virtual_time):
    async def slow_to_leave():
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(5)

    with anyio.move_on_after(1):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(slow_to_leave)
            tasks.start_soon(slow_to_leave)
    assert virtual_time.now() == 6


@pytest.mark.anyio
async def test_sleep_until_is_exact_where_a_sleep_for_the_difference_is_not(virtual_time):
    await anyio.sleep(0.1)
    await virtual_time.sleep_until(0.7)
    assert virtual_time.now() == 0.7
    await virtual_time.sleep_until(0.5)
    assert virtual_time.now() == 0.7


@pytest.mark.anyio
async def test_waiting_until_all_tasks_are_blocked_takes_no_time(virtual_time):
    arrived = []

    async def worker():
        for _ in range(5):
            await anyio.lowlevel.checkpoint()
        arrived.append(virtual_time.now())
        await anyio.sleep(0.01)
        arrived.append(virtual_time.now())

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(worker)
        await anyio.wait_all_tasks_blocked()
        assert arrived == [0.0]
    assert arrived == [0.0, 0.01]


@pytest.mark.anyio
async def test_waiting_until_all_tasks_are_blocked_can_be_cancelled(virtual_time):
    with anyio.CancelScope() as scope:
        scope.cancel()
        await anyio.wait_all_tasks_blocked()
    assert scope.cancelled_caught
    await anyio.sleep(1)
    await anyio.wait_all_tasks_blocked()
    assert virtual_time.now() == 1


# ------------------------------------------------------------------------------------------ moved by hand


@pytest.mark.anyio
async def test_what_became_due_by_advance_fires_also_while_others_run(virtual_time):
    fired = []

    async def sleeper():
        await anyio.sleep(10)
        fired.append(virtual_time.now())

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(sleeper)
        await anyio.wait_all_tasks_blocked()
        virtual_time.advance(60)
        assert virtual_time.now() == clock.now() == anyio.current_time() == 60
        for _ in range(10):
            await anyio.lowlevel.checkpoint()
        assert fired == [60]


@pytest.mark.anyio
async def test_a_call_that_is_due_is_not_blocked(virtual_time):
    fired = []

    async def sleeper():
        await anyio.sleep(10)
        fired.append(virtual_time.now())

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(sleeper)
        await anyio.wait_all_tasks_blocked()
        virtual_time.advance(10)
        await anyio.wait_all_tasks_blocked()
        assert fired == [10]


def test_a_manual_clock_moves_only_by_hand_and_is_seen_by_every_thread():
    with manual_clock() as by_hand:
        assert clock.now() == 0
        by_hand.advance(5)
        seen = []
        thread = threading.Thread(target=lambda: seen.append(clock.now()))
        thread.start()
        thread.join()
        assert seen == [5]
    assert clock.is_real()
    assert abs(clock.wall() - time.time()) < 60


def test_a_clock_may_be_moved_by_a_timedelta():
    with manual_clock() as by_hand:
        by_hand.advance(timedelta(minutes=2))
        assert clock.now() == 120


@pytest.mark.parametrize("value", [-1, math.inf, math.nan, "1", None, timedelta(seconds=-1)])
def test_a_patience_that_is_no_time_is_refused(value):
    for name in ("threads", "sockets"):
        with pytest.raises(ValueError, match=rf"Patience\({name}=.*\): seconds or a timedelta, 0 or more and finite"):
            Patience(**{name: value})
    assert Patience(threads=timedelta(seconds=2)) == Patience(threads=2)


@pytest.mark.parametrize("seconds", [-1, math.inf, math.nan, "1", None, timedelta(seconds=-1)])
def test_time_never_goes_back_nor_to_the_end(seconds):
    with (
        manual_clock() as by_hand,
        pytest.raises(ValueError, match=r"advance\(.*: seconds or a timedelta, 0 or more and finite"),
    ):
        by_hand.advance(seconds)


@pytest.mark.anyio
async def test_the_calendar_moves_along_and_can_be_set(virtual_time):
    new_year = datetime(2026, 1, 1, tzinfo=UTC)
    assert clock.wall() == new_year.timestamp()
    await anyio.sleep(90)
    assert clock.wall() == virtual_time.wall() == (new_year + timedelta(seconds=90)).timestamp()

    spring = datetime(2026, 3, 29, 0, 59, 59, tzinfo=UTC)
    virtual_time.set_wall(spring)
    assert clock.wall() == spring.timestamp()
    assert clock.now() == 90
    await anyio.sleep(1)
    assert clock.wall() == spring.timestamp() + 1


def test_a_calendar_without_a_time_zone_is_refused():
    with pytest.raises(ValueError, match="give it a tzinfo"):
        VirtualTime(wall=datetime(2026, 1, 1))
    with pytest.raises(ValueError, match="a datetime with a tzinfo, not 1767225600"):
        VirtualTime(wall=1767225600)


def test_a_clock_shows_itself():
    by_hand = testing.ManualClock()
    by_hand.advance(1.5)
    assert repr(by_hand) == "<ManualClock: 1.5 s, 2026-01-01T00:00:01.500+00:00>"
