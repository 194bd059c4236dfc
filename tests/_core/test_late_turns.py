"""Leaky buckets whose timer rings late: the next turn makes up for it, never two go at once, and nothing changes for
punctual turns."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock import Rate, in_flight
from penstock._core import turns
from penstock._core.charging import ready_at
from penstock._core.limit_state import LimitState
from penstock._core.queue import Queue, Waiter
from penstock._core.turns import admit


def turns_with(limits, lateness, costs=None, more=0):
    """The moments of the grants to waiters that all came at 0, if the timer of each turn rings so late."""
    states = [LimitState(f"u{i}", limit, f"u{i}") for i, limit in enumerate(limits)]
    costs = costs or [1.0] * len(limits)
    queue, moments = Queue(math.inf), []
    for _ in range(len(lateness) + 1 + more):
        queue.join(Waiter(tuple(zip(states, costs, strict=True))), 0.0)
    now = 0.0
    for late in [*lateness, 0.0]:
        alarm = admit(queue, now, lambda waiter, receipts, at: moments.append(at))
        if alarm == math.inf:
            break
        now = alarm + late
    return moments, states


@given(
    rate=st.sampled_from([0.1, 1.0, 7.0, 500.0]),
    burst=st.sampled_from([1, 1.25, 1.5, 1.9]),
    late=st.lists(st.sampled_from([0.0, 0.0, 0.1, 0.3, 0.74, 0.9, 1.5, 20.0]), max_size=40),
    cost=st.sampled_from([1.0, 1.0, 0.5]),
)
def test_what_late_turns_grant_stays_within_the_bound_in_every_span(rate, burst, late, cost):
    """granted ≤ burst + rate·T + 3/4 · (2 − burst), and of whole units never two at once, except the burst's."""
    moments, _ = turns_with([Rate(rate, 1.0, burst)], [part / rate for part in late], [cost])
    for first in range(len(moments)):
        for last in range(first, len(moments)):
            granted = cost * (last - first + 1)
            assert granted <= burst + rate * (moments[last] - moments[first]) + 0.75 * (2 - burst) + 1e-6
    if cost == 1:
        assert len(set(moments)) == len(moments)


@given(late=st.lists(st.floats(0.0, 0.74), min_size=1, max_size=60))
def test_a_leaky_bucket_loses_no_time_to_timers_that_are_less_than_three_quarters_of_an_interval_late(late):
    moments, _ = turns_with([Rate(100, 1.0, 1)], [part / 100 for part in late])
    for turn, (moment, part) in enumerate(zip(moments[1:], late, strict=True), 1):
        assert moment == pytest.approx((turn + part) / 100, abs=1e-4), "late by its own timer, and not by those before"


@pytest.mark.parametrize("many", [0, 32])
def test_a_turn_that_is_later_than_that_makes_up_for_three_quarters(many, monkeypatch):
    """Of few kinds of calls as of many."""
    monkeypatch.setattr(turns, "MANY", many)
    moments, _ = turns_with([Rate(10, 1.0, 1)], [0.25, 0.0, 0.0])
    assert moments == pytest.approx([0.0, 0.35, 0.375, 0.475])
    moments, _ = turns_with([Rate(10, 1.0, 1.5)], [0.25, 0.0])
    assert moments == pytest.approx([0.0, 0.3, 0.3125])


@pytest.mark.parametrize("burst", [2, 10])
def test_a_bucket_that_holds_two_has_no_need_to_make_up(burst):
    moments, states = turns_with([Rate(10, 1.0, burst)], [0.0] * burst + [5.0], more=20)
    assert states[0].meter.catch_up == 0
    assert len(moments) <= burst + 10 * moments[-1] + 1e-6


def test_punctual_turns_are_spaced_exactly():
    moments, _ = turns_with([Rate(3, 1.0, 1)], [0.0] * 50)
    assert moments == pytest.approx([turn / 3 for turn in range(51)], abs=1e-7)


def one(*limits):
    states = [LimitState(f"u{i}", limit, f"u{i}") for i, limit in enumerate(limits)]
    return Queue(math.inf), states, tuple((state, 1.0) for state in states)


def grants(queue, now):
    granted = []
    alarm = admit(queue, now, lambda waiter, *_: granted.append(waiter.number))
    return granted, alarm


def test_time_before_a_waiter_came_is_not_made_up_for():
    queue, _, charges = one(Rate(10, 1.0, 1))
    queue.join(Waiter(charges), 0.0)
    assert grants(queue, 0.0) == ([1], math.inf)
    queue.join(Waiter(charges), 7.0)
    queue.join(Waiter(charges), 7.0)
    assert grants(queue, 7.0) == ([2], pytest.approx(7.1))


def test_time_of_a_pause_is_not_made_up_for():
    queue, states, charges = one(Rate(10, 1.0, 1))
    for _ in range(3):
        queue.join(Waiter(charges), 0.0)
    assert grants(queue, 0.0) == ([1], pytest.approx(0.1))
    states[0].paused_until = 5.0
    assert grants(queue, 5.0) == ([2], pytest.approx(5.1))
    assert grants(queue, 5.15) == ([3], math.inf)


def test_time_in_which_another_limit_was_not_ready_is_not_made_up_for():
    """A place that comes back is no late timer."""
    queue, states, charges = one(Rate(10, 1.0, 1), in_flight(1))
    for _ in range(3):
        queue.join(Waiter(charges), 0.0)
    held = []
    admit(queue, 0.0, lambda waiter, receipts, now: held.append(receipts))
    states[1].meter.give_back(1.0, held[0][1][1], 4.0)
    admit(queue, 4.0, lambda waiter, receipts, now: held.append(receipts))
    states[1].meter.give_back(1.0, held[1][1][1], 4.01)
    assert grants(queue, 4.01) == ([], pytest.approx(4.1))


@pytest.mark.parametrize("order", [1, -1])
def test_time_in_which_a_slower_limit_was_not_ready_is_not_made_up_for(order):
    limits = [Rate(10, 1.0, 1), Rate(1, 1.0, 1)]
    queue, _, charges = one(*limits[::order])
    for _ in range(3):
        queue.join(Waiter(charges), 0.0)
    assert grants(queue, 0.0) == ([1], pytest.approx(1.0))
    assert grants(queue, 1.02) == ([2], pytest.approx(2.0))
    fast = charges[::order][:1]
    assert ready_at(fast, 1.02)[0] == pytest.approx(1.1), "it was late by 0.02, and not since 0.1"


def test_a_turn_that_was_announced_for_another_call_is_late_only_since_it_could_have_gone():
    queue, _, charges = one(Rate(10, 1.0, 1), Rate(1, 1.0, 1), Rate(10, 1.0, 1))
    for _ in range(2):
        queue.join(Waiter(charges[:2]), 0.0)
        queue.join(Waiter(charges[2:]), 0.0)
    assert grants(queue, 0.0) == ([1, 2], pytest.approx(0.1))
    assert grants(queue, 1.02) == ([3, 4], math.inf)
    assert ready_at(charges[:1], 1.02)[0] == pytest.approx(1.1)


@pytest.mark.parametrize(("late", "made_up_for"), [(5e-7, 0.0), (2e-6, 2e-6)])
def test_a_turn_that_is_late_by_less_than_a_microsecond_counts_as_punctual(late, made_up_for):
    queue, _, charges = one(Rate(10, 1.0, 1))
    for _ in range(3):
        queue.join(Waiter(charges), 0.0)
    now = grants(queue, 0.0)[1] + late
    assert grants(queue, now) == ([2], pytest.approx(now + 0.1 - made_up_for, abs=1e-7))


def test_a_late_turn_can_be_cancelled_and_given_back_like_any_other():
    queue, states, charges = one(Rate(10, 1.0, 1))
    queue.join(Waiter(charges), 0.0)
    queue.join(Waiter(charges), 0.0)
    assert grants(queue, 0.0) == ([1], pytest.approx(0.1))
    held = []
    admit(queue, 0.13, lambda waiter, receipts, now: held.append(receipts))
    meter = states[0].meter
    assert meter.level(0.13) == pytest.approx(0.3)
    meter.undo(1.0, held[0][0][1], 0.13)
    assert meter.level(0.13) == 1
    assert meter.level(0.2) == 1
