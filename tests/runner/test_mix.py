"""The order in which rows are sent, and what a run says of itself afterwards: plain numbers, nobody waits."""

from __future__ import annotations

import itertools
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.limits import Rate
from penstock.runner import mix
from penstock.runner.mix import Level, Mix
from penstock.runner.source import Row
from penstock.runner.summary import Allowance, Counts, optimum, sentences, summarise

REQUESTS, TOKENS = Rate(900, 60, 20), Rate(90_000, 60, 6_000)


def row(number, tokens):
    return Row(number, str(number), "/", "", b"x", {"requests": 1.0, "tokens": float(tokens)})


def makespan(sizes, *, window=500, mixed=True):
    """Seconds until the last grant, with two exact buckets and no latency."""
    limits = {"requests": REQUESTS, "tokens": TOKENS}
    levels = {unit: rate.burst for unit, rate in limits.items()}
    source = (row(number, size) for number, size in enumerate(sizes))
    now, chooser = 0.0, Mix()
    for each in itertools.islice(source, window):
        chooser.add(each)
    while len(chooser):
        told = [Level(unit, rate.burst, rate.rate, levels[unit]) for unit, rate in limits.items()]
        chosen = chooser.take(lambda told=told: told if mixed else [])
        wait = max(0.0, *((chosen.cost[unit] - levels[unit]) / rate.rate for unit, rate in limits.items()))
        now += wait
        for unit, rate in limits.items():
            levels[unit] = min(rate.burst, levels[unit] + rate.rate * wait) - chosen.cost[unit]
        for each in itertools.islice(source, 1):
            chooser.add(each)
    return now


def least(sizes):
    work = {"requests": len(sizes), "tokens": sum(sizes)}
    return max((work["requests"] - REQUESTS.burst) / REQUESTS.rate, (work["tokens"] - TOKENS.burst) / TOKENS.rate)


def stretches(length, count=1_200, low=3.0, high=5.2, seed=1):
    draw = random.Random(seed)
    return [min(5_500, math.exp(draw.gauss(high if number // length % 2 else low, 0.6))) for number in range(count)]


@pytest.mark.parametrize("length", [1, 40, 100, 300])
def test_stretches_of_a_kind_are_mixed(length):
    """Short rows use the requests up while tokens overflow, long ones the other way round: together they use both."""
    sizes = stretches(length)
    assert makespan(sizes) <= least(sizes) / 0.995
    if length >= 100:
        assert makespan(sizes, mixed=False) > least(sizes) / 0.96  # or the test shows nothing


def test_a_few_huge_rows_do_not_hold_the_small_ones_up():
    sizes = [5_900 if number % 40 == 0 else 30 for number in range(800)]
    assert makespan(sizes) <= least(sizes) / 0.999


def test_rows_of_one_size_keep_their_order():
    chooser = Mix()
    for number in range(50):
        chooser.add(row(number, 10))
    levels = [Level("requests", 20, 15, 3), Level("tokens", 6_000, 1_500, 6_000)]
    assert [chooser.take(lambda: levels).line for _ in range(50)] == list(range(50))


def test_no_row_is_passed_for_ever():
    """A row that never suits goes after so many others, whatever it costs."""
    chooser = Mix()
    chooser.add(row(0, 6_000))
    passed = 0
    while True:
        chooser.add(row(1, 1))
        # Tokens are always short, so the huge row always is the worse choice.
        if chooser.take(lambda: [Level("requests", 20, 15, 20), Level("tokens", 6_000, 1_500, 0)]).line == 0:
            break
        passed += 1
    assert passed == mix.PATIENCE


@given(st.lists(st.integers(0, 10_000)), st.integers(-5, 20), st.integers(-5_000, 6_000))
def test_every_row_is_taken_once(sizes, requests, tokens):
    chooser = Mix()
    for number, size in enumerate(sizes):
        chooser.add(row(number, size))
    levels = [Level("requests", 20, 15, requests), Level("tokens", 6_000, 1_500, tokens)]
    taken = [chooser.take(lambda: levels).line for _ in range(len(chooser))]
    assert sorted(taken) == list(range(len(sizes)))
    assert len(chooser) == 0


# The summary


def counts(**more):
    given_counts = Counts(began=10.0, ended=30.0, sent=3, answered=3, rows=3)
    for key, value in more.items():
        setattr(given_counts, key, value)
    return given_counts


LIMITS = {
    "": {
        "requests": (Allowance(REQUESTS, 20),),
        "tokens": (Allowance(TOKENS, 6_000), Allowance(Rate(2_000_000, 86_400), 2_000_000)),
    }
}


def test_the_optimum_is_what_binds():
    """T* = max(max over limits of (work - burst)+ / rate + tail latency, latencies / places)."""
    some = Counts()
    for _ in range(170):
        some.spend("", {"requests": 1.0, "tokens": 10.0}, first=True)
        some.took(some.earliest("", LIMITS[""]), 0.5)
    assert optimum(some, 1_000) == pytest.approx((170 - 20) / 15 + 0.5)  # requests
    some.spend("", {"requests": 1.0, "tokens": 34_300.0}, first=True)
    some.took(some.earliest("", LIMITS[""]), 0.5)
    assert optimum(some, 1_000) == pytest.approx((36_000 - 6_000) / 1_500 + 0.5)  # tokens
    assert optimum(some, 2) == pytest.approx(171 * 0.5 / 2)  # places
    some.took(0.0, 60.0)
    assert optimum(some, 1_000) == 60  # one long answer
    assert optimum(Counts(), 1) == 0


def test_a_limit_that_was_just_used_up_allows_less():
    some = counts(work={("", "requests"): 30.0}, spent={("", "requests"): 30.0}, last_sent=12.0)
    (one,) = summarise(some, {"": {"requests": (Allowance(REQUESTS, 0),)}}, 4)["limits"]["requests"]
    assert (one["shortest"], one["share"]) == (2.0, 1.0)


def test_the_tail_is_what_the_answers_take_beyond_the_limits():
    """A slow answer to an early request is no tail, if the limits take longer anyway."""
    some = counts(work={("", "requests"): 170.0})
    some.took(0.0, 8.0)
    some.took(9.9, 0.7)
    assert summarise(some, LIMITS, 4)["tail_latency"] == 0.6


def test_what_is_sent_again_is_spent_and_is_no_work():
    some = Counts()
    some.spend("", {"tokens": 5.0}, first=True)
    some.spend("", {"tokens": 5.0}, first=False)
    assert (some.work, some.spent) == ({("", "tokens"): 5.0}, {("", "tokens"): 10.0})


def test_the_summary_holds_the_numbers():
    some = counts(
        rows=9, failed=1, skipped=2, retries=1, status_429=1, last_sent=20.0, best_end=10.5,
        work={("", "requests"): 170.0, ("", "tokens"): 7_500.0}, spent={("", "requests"): 171.0, ("", "tokens"): 7_600.0},
    )  # fmt: skip
    summary = summarise(some, LIMITS, 4)
    expected = {
        "rows": 9,
        "answered": 3,
        "failed": 1,
        "skipped": 2,
        "untouched": 3,
        "sent": 3,
        "retries": 1,
        "status_429": 1,
    }
    assert expected.items() <= summary.items()
    assert (summary["makespan"], summary["optimum"], summary["efficiency"]) == (20.0, 10.5, 0.525)
    assert summary["limits"]["requests"] == [
        {
            "limit": "900/min burst 20",
            "models": None,
            "work": 170.0,
            "spent": 171.0,
            "share": 1.005882,
            "shortest": 10.0,
        }
    ]
    assert len(summary["limits"]["tokens"]) == 2
    assert sentences(summary)[:3] == [
        "9 rows: 3 answered, 1 failed, 2 skipped (answered before), 3 untouched",
        "3 requests sent, 1 of them again; 1 answered with 429",
        "20.00 s, 52.5% of the optimum (10.50 s, of which 0.50 s for the last answers)",
    ]


def test_a_run_without_rows_is_a_whole_success():
    summary = summarise(Counts(), {}, 4)
    assert (summary["rows"], summary["makespan"], summary["efficiency"]) == (0, 0.0, 1.0)
    assert sentences(summary) == [
        "0 rows: 0 answered, 0 failed",
        "0 requests sent, 0 of them again; 0 answered with 429",
    ]
