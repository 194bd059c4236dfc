"""Sliding and calendar windows at their very ends, to the last bit."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock import calendar, sliding
from penstock._core.windows import CalendarWindow, SlidingWindow
from tests._core.test_windows import GAPS, GRAIN, day_window, in_window, merged_window


def test_a_window_ends_a_grain_early_and_then_nothing_comes_back():
    """So that whoever sleeps `ready − now` finds it ended, though the sum was rounded; to the bit."""
    begin = 0.0 - 10 + GRAIN
    window = SlidingWindow(sliding(5, 10))
    receipt = window.charge(5, begin)
    assert window.glance(0.0) == 5
    assert window.used(0.0) == 0
    window.give_back(5, receipt, 0.0)
    assert window.used(0.0) == 0
    held = SlidingWindow(sliding(5, 10))
    receipt = held.charge(5, begin)
    assert held.used(math.nextafter(0.0, -1)) == 0, "that is less than rounding of the end"
    late = SlidingWindow(sliding(5, 10))
    receipt = late.charge(5, 0.0)
    late.charge(1, 5.0)
    late.give_back(5, receipt, 10.0)
    assert late.used(10.0) == 1, "it has left the window at this moment"
    assert late.used(15.0) == 0


def test_what_rounding_forgives_is_ready():
    """10⁻¹² of the amount, to the bit: six of ten are used, and the rest and that fit."""
    most = 10 * (1 + 1e-12)
    window = SlidingWindow(sliding(10, 60))
    window.charge(6, 0.0)
    assert window.ready_at(most - 6, 1.0) == 1.0
    assert window.ready_at(most - 5.9, 1.0) == 60.0
    day = day_window(10, 2026, 1, 1)
    day.charge(6, 0.0)
    assert day.ready_at(most - 6, 1.0) == 1.0
    assert day.ready_at(most - 5.9, 1.0) == 86_400.0


def test_what_is_given_back_after_merging_leaves_the_log_and_not_only_the_sum():
    """Else it would come back when the sum is worked out anew."""
    window, receipts = merged_window()
    for index in (0, 7, 1_000):
        window.give_back(0.0001, receipts[index], 103.0)
    assert math.fsum(entry.amount for entry in window.log) == pytest.approx(window.used(103.0), abs=1e-12)
    assert window.used(111.5) == pytest.approx(0.0501, abs=0.001)


@pytest.mark.parametrize("period", ["minute", "hour", "day"])
def test_a_sleep_until_the_end_of_a_period_ends_in_the_next_one(period):
    """Wherever the wall clock stands: seconds since 1970 are rounded to 0.24 µs, and so is the sum with a process's."""
    luck = random.Random(1)
    for _ in range(2_000):
        window = CalendarWindow(calendar(1, period))
        now = luck.uniform(0, 1e6)
        window.follow(luck.uniform(1.6e9, 1.9e9))
        window.charge(1, now)
        end = window.ready_at(1, now)
        assert window.charge_if_ready(1, now + (end - now)) is not None
        assert window.ready_at(1, end) > end + 30


def test_without_word_of_the_wall_clock_the_process_began_in_1970():
    window = CalendarWindow(calendar(3, "day"))
    window.charge(3, 10.0)
    assert window.ready_at(1, 10.0) == 86_400.0


def test_a_period_has_ended_though_the_two_clocks_are_read_one_after_the_other():
    """So the wall clock's lead differs a little at every look; whoever was told the end is let in at it."""
    luck, early = random.Random(2), 0
    for _ in range(2_000):
        lead, now = luck.uniform(1.6e9, 1.9e9), luck.uniform(0, 1e5)
        window = CalendarWindow(calendar(1, "minute"))
        window.follow(lead)
        window.charge(1, now)
        later = now + (window.ready_at(1, now) - now)
        window.follow(lead - luck.uniform(0, 0.7e-6))
        early += later + window.offset < window._end
        assert window.charge_if_ready(1, later) is not None
    assert early > 50, "it does happen"


@pytest.mark.parametrize(
    "make",
    [lambda: SlidingWindow(sliding(100, 60)), lambda: CalendarWindow(calendar(100, "day"))],
    ids=["sliding", "calendar"],
)
@pytest.mark.parametrize("cost", [0.0005, 0.001, 0.7])
def test_fractions_add_up_to_the_whole_amount(make, cost):
    """Plainly added, 200,000 costs of 0.0005 are a little more than 100, and the last of them was refused."""
    window = make()
    whole = math.floor(100 / cost + 1e-9)
    assert all(window.charge_if_ready(cost, 0.0) is not None for _ in range(whole))
    assert window.charge_if_ready(cost, 0.0) is None


def test_asking_what_would_be_leaves_a_sum_of_fractions_as_it_was():
    for window in (SlidingWindow(sliding(100, 60)), CalendarWindow(calendar(100, "day"))):
        window.charge(0.1, 0.0)
        for _ in range(1_000):
            window.ready_after(70.3, 0.2, 0.0)
        assert window.used(0.0) == 0.1


@given(
    amount=st.integers(1, 5),
    gaps=st.lists(st.sampled_from([0.0, 7.0, 20.0, 70.0]), max_size=8),
    ahead=st.integers(0, 20),
)
def test_who_stands_in_line_is_ready_when_those_ahead_have_gone_one_by_one(amount, gaps, ahead):
    """Each goes as soon as one may; the wait of one who comes last was taken for up to a window more than that."""
    window, now = SlidingWindow(sliding(amount, 60)), 0.0
    for gap in gaps:
        window.charge_if_ready(1, now)
        now += gap
    ready, moment = window.ready_behind(ahead, 1, now), now
    for _ in range(ahead):
        moment = window.ready_at(1, moment)
        window.charge(1, moment)
    assert ready == pytest.approx(window.ready_at(1, moment))


def test_behind_others_a_call_waits_for_what_was_postponed_too():
    """Three of those ahead go now, one when these three leave; then two are free, until what was postponed leaves."""
    window = SlidingWindow(sliding(5, 60))
    window.postpone(2, window.charge(2, 0.0), 10.0, 0.0)
    assert window.ready_behind(4, 2, 0.0) == 60
    assert window.ready_behind(4, 3, 0.0) == 70


@given(
    amount=st.integers(1, 20),
    steps=st.lists(
        st.tuples(GAPS, st.integers(0, 12), st.sampled_from(["try", "leave", "leave", "back"])), max_size=40
    ),
)
def test_a_call_that_leaves_late_is_counted_from_then_on(amount, steps):
    """It counts as if it had been charged at the moment at which the server counts it, whatever was charged since."""
    window, now = SlidingWindow(sliding(amount, 10)), 0.0
    charges: list[list] = []
    for gap, wanted, kind in steps:
        now += gap
        if kind == "try":
            receipt = window.charge_if_ready(min(wanted, amount), now)
            if receipt is not None:
                charges.append([now, min(wanted, amount), receipt])
        elif charges:
            entry = charges[wanted % len(charges)]
            if kind == "leave":
                entry[0], entry[2] = now + 0.25, window.postpone(entry[1], entry[2], now + 0.25, now)
            elif entry[0] > now - 10 + GRAIN:
                window.give_back(entry[1], entry[2], now)
                entry[1] = 0
        plain = [(at, a) for at, a, _ in charges]
        assert window.used(now) == in_window(plain, 10, now)
        assert [entry.at for entry in window.log] == sorted(entry.at for entry in window.log)
        ready = window.ready_at(1, now)
        assert in_window(plain, 10, ready) + 1 <= amount


def test_a_call_that_leaves_at_the_end_of_a_period_is_counted_in_the_next_one_too():
    """Nobody knows in which of them the server counts it."""
    window = day_window(10, 2026, 3, 28, 12, tz="UTC")
    noon, midnight = 0.0, 12 * 3600.0
    early, late = window.charge(3, noon), window.charge(4, noon)
    assert window.postpone(3, early, noon + 0.25, noon) == early
    assert window.postpone(4, late, midnight + 0.1, midnight - 0.15) == late
    assert window.level(midnight - 0.1) == 3
    assert window.level(midnight) == 6
    assert window.level(midnight + 86_400) == 10
    window.postpone(4, window.charge(4, midnight + 86_400), midnight + 2 * 86_400, midnight + 86_400)
    assert window.level(midnight + 3 * 86_400) == 10, "nobody looked in the period between"


def test_a_call_that_leaves_when_its_period_is_over_is_counted_in_the_one_it_leaves_in():
    window = day_window(10, 2026, 3, 28, 12, tz="UTC")
    receipt = window.charge(3, 0.0)
    receipt = window.postpone(3, receipt, 86_400.25, 86_400.0)
    assert window.level(86_400.0) == 7
    window.give_back(3, receipt, 86_400.0)
    assert window.level(86_400.0) == 10
