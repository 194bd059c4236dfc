"""How a limit comes back of which an answer tells too little."""

from __future__ import annotations

import itertools
import math

import pytest

from penstock.llm.returns import BucketFormula, Returns


@pytest.mark.parametrize("period", [1.0, 10.0, 60.0, 3_600.0])
def test_the_period_of_a_bucket_follows_from_its_resets(period):
    formula = BucketFormula()
    for used in (1.0, 2.5, 7.25, 20.125):
        formula.hear(100.0, math.floor(100.0 - used), used / 100.0 * period, 0.001)
    assert formula.period == period


def test_the_resets_of_a_window_are_no_buckets():
    """Ever more is used, and the reset becomes shorter."""
    formula = BucketFormula()
    for used, reset in ((1.0, 10.0), (10.0, 9.5), (50.0, 8.0)):
        formula.hear(100.0, 100.0 - used, reset, 0.001)
    assert formula.refuted
    assert formula.period is None


def test_a_window_is_looked_for_when_it_is_said_to_begin():
    returns = Returns(0.0)
    returns.told(10.0)
    returns.looked(0.5)
    returns.looked(1.0)
    assert returns.look_at(1.0, 1.0, empty=False) == pytest.approx(2.0)
    assert returns.look_at(1.0, 1.0, empty=True) == 10.0


def test_a_look_that_came_a_moment_too_early_is_repeated_soon():
    """Moments since 1970 are told in whole seconds."""
    returns = Returns(0.0)
    returns.told(10.0)
    returns.looked(1.0)
    returns.looked(10.0)
    assert returns.look_at(10.0, 1.0, empty=False) == pytest.approx(10.25)


def test_two_returns_tell_the_length_of_a_window():
    returns = Returns(0.0)
    returns.told(10.0)
    returns.jumped(9.8, 10.1)
    returns.jumped(19.9, 20.1)
    assert returns.length == 10.0
    assert 29.0 <= returns.due <= 30.1


def test_without_anything_told_one_looks_at_first_often_and_then_seldom():
    returns, now, looks = Returns(0.0), 0.0, []
    while now < 120.0:
        returns.looked(now)
        now = returns.look_at(now, 1.0, empty=False)
        looks.append(now)
    gaps = [second - first for first, second in itertools.pairwise(looks)]
    assert gaps == sorted(gaps)
    assert gaps[-1] == 30.0
