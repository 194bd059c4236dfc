"""The waits between attempts, as plain formulas: no clock, no sleep, no luck."""

from __future__ import annotations

import math
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock._core.backoff import HINT_SPREAD, constant, exponential, spread

draws = st.floats(0, 1, exclude_max=True)
seconds = st.floats(0, 1e6)
retries = st.integers(0, 5_000)

NEARLY_ONE = math.nextafter(1, 0)


@pytest.mark.parametrize(
    ("jitter", "lowest", "highest"),
    [
        pytest.param("none", [1, 2, 4, 8, 10, 10], [1, 2, 4, 8, 10, 10], id="none"),
        pytest.param("full", [0, 0, 0, 0, 0, 0], [1, 2, 4, 8, 10, 10], id="full"),
        pytest.param("equal", [0.5, 1, 2, 4, 5, 5], [1, 2, 4, 8, 10, 10], id="equal"),
        pytest.param("decorrelated", [1, 1, 1, 1, 1, 1], [3, 9, 10, 10, 10, 10], id="decorrelated"),
    ],
)
def test_each_jitter_draws_from_the_range_of_its_formula(jitter, lowest, highest):
    """With first 1 and cap 10, each wait is drawn from just this range."""
    backoff = exponential(first=1, cap=10, jitter=jitter)
    previous = None
    for retry, (low, high) in enumerate(zip(lowest, highest, strict=True)):
        assert backoff.delay(retry, previous, 0.0) == low
        previous = backoff.delay(retry, previous, NEARLY_ONE)
        assert previous == pytest.approx(high)


@given(seconds, seconds, st.floats(1, 100), st.sampled_from(["full", "equal", "decorrelated", "none"]), retries, draws)
def test_no_wait_is_below_zero_or_above_the_cap(first, cap, factor, jitter, retry, u):
    """Whatever the numbers, and however many retries there were."""
    backoff = exponential(first, cap, factor, jitter)
    previous = None
    for number in (0, 1, retry):
        previous = backoff.delay(number, previous, u)
        assert 0 <= previous <= cap


@given(st.sampled_from(["full", "equal", "decorrelated"]), retries, draws, draws)
def test_the_cap_comes_first_and_the_draw_after_it(jitter, retry, one, other):
    """At the plateau two draws that differ are two waits that differ: those in step do not stay in step."""
    backoff = exponential(first=1, cap=60, jitter=jitter)
    waits = [backoff.delay(retry + 10, 60.0, u) for u in (one, other)]
    assert (waits[0] < waits[1]) == (one < other) or math.isclose(one, other, abs_tol=1e-12)


@given(seconds, st.sampled_from(["full", "equal", "none"]), retries, draws)
def test_a_constant_wait_does_not_grow(wait, jitter, retry, u):
    backoff = constant(wait, jitter)
    assert backoff.delay(retry, None, u) == backoff.delay(0, 17.0, u)
    assert 0 <= backoff.delay(retry, None, u) <= wait


@given(seconds, seconds | st.just(math.inf), draws)
def test_a_hint_is_spread_upwards_only_and_within_the_time_left(hint, left, u):
    wait = spread(hint, left, u)
    assert hint <= wait <= hint * (1 + HINT_SPREAD) * (1 + 1e-12)
    assert wait <= max(hint, left) * (1 + 1e-12)


def test_backoffs_are_values():
    """Equal when their numbers are, usable as keys, and shown as they are written."""
    assert exponential() == exponential(first=1, cap=60, factor=2, jitter="full")
    assert len({exponential(), exponential(), constant(1)}) == 2
    assert repr(exponential(cap=5)) == "exponential(first=1, cap=5, jitter='full')"
    assert repr(exponential(factor=3)) == "exponential(first=1, cap=60, factor=3, jitter='full')"
    assert repr(constant(0.5)) == "constant(0.5)"
    assert repr(constant(2, jitter="full")) == "constant(2, jitter='full')"
    with pytest.raises(AttributeError):
        exponential().cap = 7


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: exponential(first=-1), "first=-1: a wait is a number of seconds, 0 or more and finite"),
        (lambda: exponential(cap=math.inf), "cap=inf: a wait is a number of seconds, 0 or more and finite"),
        (lambda: constant(math.nan), "seconds=nan: a wait is a number of seconds, 0 or more and finite"),
        (lambda: exponential(factor=0.5), "exponential(factor=0.5): waits must not shrink; give a factor of 1 or more"),
        (
            lambda: exponential(jitter="some"),
            "exponential(jitter='some'): there are 'full', 'equal', 'decorrelated', 'none'",
        ),
        (
            lambda: constant(1, jitter="decorrelated"),
            (
                "constant(jitter='decorrelated'): decorrelated waits grow from one to the next; "
                "use exponential(), or jitter='full' or 'equal'"
            ),
        ),
    ],
    ids=["negative", "infinite", "nan", "shrinking", "jitter", "decorrelated"],
)
def test_a_wrong_number_is_refused_where_it_is_written(make, message):
    with pytest.raises(ValueError) as caught:
        make()
    assert str(caught.value) == message


def test_a_constant_wait_is_drawn_as_its_jitter_says():
    assert [constant(4, jitter).delay(9, None, 0.25) for jitter in ("none", "full", "equal")] == [4, 1, 2.5]


def test_a_first_wait_of_nothing_stays_nothing_however_it_grows():
    """Also where the factor to that power is more than a float holds."""
    for retry in (0, 3, 5_000):
        assert exponential(0, 60, 10, "none").delay(retry, None, 0.5) == 0
    assert exponential(1, 60, 10, "none").delay(5_000, None, 0.5) == 60


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: exponential(factor=math.inf),
            "exponential(factor=inf): waits must not shrink; give a factor of 1 or more",
        ),
        (
            lambda: constant(1, jitter="some"),
            "constant(jitter='some'): there are 'full', 'equal', 'decorrelated', 'none'",
        ),
        (lambda: exponential(first=math.inf), "first=inf: a wait is a number of seconds, 0 or more and finite"),
    ],
    ids=["factor", "jitter", "first"],
)
def test_infinity_and_other_words_are_refused_too(make, message):
    with pytest.raises(ValueError) as caught:
        make()
    assert str(caught.value) == message


def test_waits_may_be_timedeltas():
    assert constant(timedelta(seconds=2)) == constant(2)
    assert exponential(first=timedelta(milliseconds=500), cap=timedelta(minutes=1)) == exponential(0.5, cap=60)
    assert repr(exponential(timedelta(seconds=1), timedelta(minutes=1))) == repr(exponential())


@pytest.mark.parametrize(
    "value", [-1, timedelta(seconds=-1), True, float("nan"), float("inf"), "5", None, 5j], ids=repr
)
@pytest.mark.parametrize(
    ("make", "name"), [(exponential, "first"), (lambda value: exponential(cap=value), "cap"), (constant, "seconds")]
)
def test_what_is_no_wait_is_refused_with_its_name_and_value(make, name, value):
    with pytest.raises(ValueError) as caught:
        make(value)
    assert str(caught.value) == f"{name}={value!r}: a wait is a number of seconds, 0 or more and finite"


@pytest.mark.parametrize("factor", [True, "2", None, float("nan"), 0.5, float("inf"), timedelta(seconds=2)], ids=repr)
def test_what_is_no_factor_is_refused(factor):
    with pytest.raises(ValueError, match=r"exponential\(factor="):
        exponential(factor=factor)
