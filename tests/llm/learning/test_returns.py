"""How a limit comes back of which an answer tells too little."""

from __future__ import annotations

import itertools
import math

import pytest

from penstock.llm.learning.returns import AssumedPeriod, BareResets, BucketFormula, Returns
from penstock.llm.learning.traffic import Traffic


@pytest.mark.parametrize("period", [1.0, 10.0, 60.0, 3_600.0])
def test_the_period_of_a_bucket_follows_from_its_resets(period):
    formula = BucketFormula()
    for used in (1.0, 2.5, 7.25, 20.125):
        formula.hear(100.0, math.floor(100.0 - used), used / 100.0 * period, 0.001)
    assert formula.period == period


def test_bare_resets_that_tell_one_size_of_a_bucket_are_milliseconds():
    """3,000 a minute, 50 at once: 20 ms for each that is gone. Rounded to seconds, they would look like a window's."""
    resets = BareResets()
    assert resets.hear(20.0, 0.0, 3_000.0, 60.0, 49.0) is None  # either may be
    assert resets.hear(40.0, 0.0, 3_000.0, 60.0, 48.0) == 0.04
    assert resets.hear(20.0, 0.5, 3_000.0, 60.0, 49.0) == 0.02


def test_a_bare_reset_that_is_longer_than_its_window_is_milliseconds():
    assert BareResets().hear(100.0, 0.0, 600.0, 60.0, 14.0) == 0.1


@pytest.mark.parametrize("begun", [0.0, 59.0])
def test_bare_resets_that_tell_one_moment_are_seconds(begun):
    """The window's end, or, one window later, the next one's."""
    resets = BareResets()
    assert resets.hear(60.0 - begun, begun, 100.0, 60.0, 90.0) is None
    assert resets.hear(55.0, 65.0, 100.0, 60.0, 70.0) == 55.0


def test_bare_resets_that_are_neither_stay_unknown():
    resets = BareResets()
    resets.hear(20.0, 0.0, 100.0, 60.0, 90.0)
    assert resets.hear(45.0, 1.0, 100.0, 60.0, 30.0) is None


def test_the_resets_of_a_window_are_no_buckets():
    """Ever more is used, and the reset becomes shorter."""
    formula = BucketFormula()
    for used, reset in ((1.0, 10.0), (10.0, 9.5), (50.0, 8.0)):
        formula.hear(100.0, 100.0 - used, reset, 0.001)
    assert formula.refuted
    assert formula.period is None


def test_a_window_is_looked_for_when_it_is_said_to_begin():
    returns = Returns(0.0)
    returns.stated(10.0)
    returns.looked(0.5)
    returns.looked(1.0)
    assert returns.look_at(1.0, 1.0, empty=False) == pytest.approx(2.0)
    assert returns.look_at(1.0, 1.0, empty=True) == 10.0


def test_a_look_that_came_a_moment_too_early_is_repeated_soon():
    """Moments since 1970 are stated in whole seconds."""
    returns = Returns(0.0)
    returns.stated(10.0)
    returns.looked(1.0)
    returns.looked(10.0)
    assert returns.look_at(10.0, 1.0, empty=False) == pytest.approx(10.25)


def test_the_look_at_the_told_moment_counts_however_recent_the_last_look_is():
    """It was taken for one that left together with the last, and the next one came as late as if nothing were due."""
    returns = Returns(0.0)
    returns.stated(10.0)
    for moment in (1.0, 2.0, 4.0, 9.0, 10.0):
        returns.looked(moment)
    assert returns.look_at(10.0, 1.0, empty=False) == pytest.approx(10.25)


def test_two_returns_tell_the_length_of_a_window():
    returns = Returns(0.0)
    returns.stated(10.0)
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


def test_after_requests_that_needed_no_look_one_looks_often_again():
    """What they took may come back as it went: what lies between two looks that found nothing is no reason to wait longer."""
    returns, now = Returns(0.0), 0.0
    for _ in range(6):
        returns.looked(now)
        now = returns.look_at(now, 1.0, empty=False)
    returns.went_by_itself()
    returns.looked(20.0)
    assert returns.look_at(20.0, 1.0, empty=False) <= 22.0


def test_much_that_came_back_at_once_in_a_window_that_slides_is_due_again_a_window_later():
    """It is what was sent at once; the rest came back by and by, so it is not all."""
    returns = Returns(0.0)
    returns.jumped(9.8, 10.1)
    returns.jumped(19.9, 20.1)
    returns.came(3.0, 28.0, 28.5)
    assert returns.due < 30.2
    returns.came(80.0, 30.2, 30.5, much=True)
    assert returns.due == pytest.approx(40.2)


def test_a_wait_longer_than_a_period_refutes_it():
    assumed, traffic = AssumedPeriod(), Traffic()
    refused = traffic.left(1.0, 5.0)
    assert not assumed.is_refuted(refused, 60.0, 60.0, 2.0, traffic)
    assert assumed.is_refuted(refused, 64.0, 60.0, 2.0, traffic)


@pytest.mark.parametrize(("admitted", "refuted"), [(9, True), (10, False), (25, False)])
def test_less_than_half_of_its_refill_between_two_refusals_refutes_a_bucket(admitted, refuted):
    assumed, traffic = AssumedPeriod(), Traffic()

    def refuse_at(moment):
        departure = traffic.left(1.0, moment)
        traffic.refused(departure)
        return assumed.is_refuted(departure, 1.0, 60.0, 2.0, traffic)

    assert not refuse_at(1.0)
    assert not refuse_at(2.4)  # too soon to tell
    for number in range(admitted):
        traffic.left(1.0, 3.0 + number / 10)
    assert refuse_at(12.4) is refuted


def seen_twice(first, last):
    """A limit that came back between two moments, and again ten seconds later, when it takes one look to see that."""
    returns = Returns(0.0)
    for begun in (0.0, 10.0):
        returns.looked(begun + first)
        returns.looked(begun + last)
        returns.jumped(begun + first, begun + last)
    return returns


def test_what_is_left_is_spent_evenly_on_looks_until_it_is_due_but_for_those_that_see_it_come_back():
    """Whatever is left when it comes back is lost."""
    returns = seen_twice(2.0, 2.2)
    now = 12.2
    for left in range(7, 3, -1):
        at = returns.look_at(now, 1.0, empty=False, left=float(left))
        assert now < at < returns.due
        returns.looked(now := at)
    assert returns.look_at(now, 1.0, empty=False, left=3.0) == pytest.approx(returns.due)
    assert returns.look_at(now, 0.0, empty=False, left=9.0) == pytest.approx(returns.due)  # one that takes nothing


def test_it_is_looked_for_at_the_latest_when_it_must_be_back_if_it_takes_as_long_as_before():
    """A window that begins with a request begins with the look that finds the last one over: others find nothing."""
    returns = seen_twice(2.0, 2.2)
    returns.looked(returns.due)
    assert returns.look_at(22.0, 1.0, empty=False) == pytest.approx(22.25)
