"""What is remembered of costs, and charges that are made from others."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock import CostError, Keyed, Limiter, Rate, in_flight
from penstock._backends import alike
from penstock.testing import manual_clock

LIMITS = {"tokens": [Rate(50, 1.0), Rate(70, 1.0)], "images": Rate(9, 1.0, default=2), "calls": in_flight(5)}
COSTS = st.fixed_dictionaries(
    {"tokens": st.sampled_from([0, 1, 3, 7.5, 49, 50, 51, math.nan, math.inf, -1, 10**400, True, "5", Fraction(1, 2)])},
    optional={"images": st.sampled_from([0, 1, 2.5, 9, 10]), "calls": st.integers(0, 6)},
)


def outcome(limiter, cost):
    """What a call of that cost is charged, or the error that it raises."""
    try:
        with limiter(cost) as permit:
            levels = [now.level for now in limiter.statistics().limits.values()]
        permit.cancel()
    except CostError as error:
        return type(error), str(error)
    return permit.cost, levels


@given(costs=st.lists(COSTS, min_size=2, max_size=8), keyed=st.booleans())
def test_a_cost_is_charged_the_same_whatever_costs_came_before(costs, keyed):
    with manual_clock():
        per_user = Keyed(LIMITS)
        used = Limiter(LIMITS)
        for cost in costs:
            fresh = Limiter(LIMITS, name="alice" if keyed else None)
            mine, theirs = outcome(per_user["alice"] if keyed else used, cost), outcome(fresh, cost)
            assert mine == theirs


def test_a_cost_that_was_never_seen_is_charged_on_the_limits_of_now():
    with manual_clock():
        limiter = Limiter(tokens=Rate(50, 1.0))
        with limiter(tokens=3), limiter(tokens=4):
            pass
        limiter.reconfigure(tokens=Rate(10, 1.0))
        with pytest.raises(CostError):
            limiter(tokens=11)
        assert limiter.forecast(tokens=6).wait == pytest.approx(0.3)


def test_of_very_many_costs_those_that_came_first_are_remembered_for_a_while(monkeypatch):
    monkeypatch.setattr(alike, "_MOST_KNOWN", 3)
    known = {}
    for cost in range(3 + 29):
        alike.remember(known, cost, str(cost))
    assert {0: "0", 1: "1", 2: "2"}.items() <= known.items()
    assert len(known) == 4
    alike.remember(known, 99, "99")
    assert known == {99: "99"}
