"""Budgets at their edges: plain numbers. What they do for a policy is in tests/retry/test_budget.py."""

from __future__ import annotations

import math

import pytest

from penstock._core.budget import RatioCredit, TokenCredit


def test_a_busy_budget_keeps_ten_numbers_and_not_one_per_call():
    credit = RatioCredit(0.1, 0, 10)
    for i in range(5_000):
        credit.called(i * 0.01)
        assert len(credit._steps) <= 11
    assert [credit.left(at) for at in (49.99, 50.0)] == [100, 90], "the oldest tenth leaves at once"
    instant = RatioCredit(1, 0, 10)
    for _ in range(50):
        instant.called(3.0)
    assert len(instant._steps) == 1
    instant.called(4.0)
    assert len(instant._steps) == 2, "a tenth of the ttl later begins the next"


def test_credit_expires_with_its_own_tenth_of_the_ttl():
    credit = RatioCredit(1, 0, 10)
    for at in (0.0, 5.0, 9.0):
        credit.called(at)
    assert [credit.left(at) for at in (9.999, 10.0, 14.999, 15.0, 18.999, 19.0)] == [3, 2, 2, 1, 1, 0]


def test_what_expires_first_is_spent_first():
    credit = RatioCredit(1, 0, 10)
    credit.called(0.0)
    credit.called(5.0)
    assert credit.spend(6.0, timed_out=False) == 1
    assert credit.left(11.0) == 1
    assert credit.spend(11.0, timed_out=False) == 1
    assert credit.spend(11.0, timed_out=False) is None


def test_parts_of_several_calls_make_one_retry():
    credit = RatioCredit(0.4, 0, 10)
    for at in (0.0, 2.0, 4.0):
        credit.called(at)
    assert credit.spend(5.0, timed_out=False) == 1
    assert credit.spend(5.0, timed_out=False) is None
    credit.called(6.0)
    credit.called(8.0)
    assert credit.spend(8.0, timed_out=False) == 1, "the fifth of a retry that was left, and two calls more"


def test_free_retries_cost_one_each_and_come_back_with_time():
    credit = RatioCredit(0, 3, 10)
    assert [credit.spend(0.0, timed_out=False) for _ in range(4)] == [1, 1, 1, None]
    assert [credit.left(at) for at in (0.3, 0.4, 0.7, 1.0, 9.0)] == [0, 1, 2, 3, 3]


def test_a_call_after_the_clock_began_anew_begins_the_budget_anew():
    credit = RatioCredit(1, 0, 10)
    credit.called(1_000.0)
    credit.called(2.0)
    assert credit.left(2.0) == 1


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("ratio", math.inf, "retries per call, 0 or more and finite; 0.2 allows one for five calls"),
        ("ratio", math.nan, "retries per call, 0 or more and finite; 0.2 allows one for five calls"),
        ("floor", -0.1, "free retries per second, 0 or more and finite"),
        ("ttl", math.inf, "seconds for which a call's share can be used, above 0 and finite"),
        ("ttl", 0, "seconds for which a call's share can be used, above 0 and finite"),
    ],
)
def test_ranges_of_a_ratio_end_where_they_say(name, value, said):
    with pytest.raises(ValueError) as caught:
        RatioCredit(**{"ratio": 0.2, "floor": 10, "ttl": 10} | {name: value})
    assert str(caught.value) == f"Budget({name}={value!r}): {said}"


@pytest.mark.parametrize("name", ["capacity", "retry", "timeout", "success"])
def test_ranges_of_a_pot_end_where_they_say(name):
    right = {"capacity": 50, "retry": 5, "timeout": 10, "success": 1}
    said = (
        "tokens that a first success gives back, 0 or more and finite"
        if name == "success"
        else "a number of tokens, above 0 and finite"
    )
    for value in (math.inf, math.nan, -1):
        with pytest.raises(ValueError) as caught:
            TokenCredit(**right | {name: value})
        assert str(caught.value) == f"Budget.tokens({name}={value!r}): {said}"
    for value in (0.5, 1):
        TokenCredit(**right | {name: value})


def test_a_pot_may_give_nothing_back_for_a_first_success():
    credit = TokenCredit(10, 5, 10, 0)
    credit.spend(0.0, timed_out=True)
    for _ in range(100):
        credit.succeeded(None)
    assert credit.left(0.0) == 0
    credit.succeeded(5)
    assert credit.left(0.0) == 1
