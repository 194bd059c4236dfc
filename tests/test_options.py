"""What options refuse: each with the option and the value in the message, and before anything was charged."""

from __future__ import annotations

import math
import re
from datetime import timedelta
from decimal import Decimal

import pytest

from penstock import (
    Adaptive,
    Batcher,
    Budget,
    CostError,
    Keyed,
    Limiter,
    Rate,
    Retry,
    UnknownUnit,
    amap,
    calendar,
    circuit_breaker,
    hedge,
    timeout,
)

NOT_NUMBERS = [math.nan, Decimal("nan"), Decimal("sNaN"), "5", None, 1j, [], 10**400, object, timedelta(1)]
NOT_COUNTS = [0, -1, 2.5, math.inf, True, *NOT_NUMBERS[:7], object]  # a count may be as large as it likes
NOT_FLAGS = ["false", "no", "", 2, -1, 0.5, [], object()]


def a_limiter(**options):
    return Limiter(requests="10/s", **options)


FLAGS = {
    "overdraft": lambda flag: Rate(10, 1, overdraft=flag),
    "enforce": lambda flag: a_limiter(enforce=flag),
    "enforce of keys": lambda flag: Keyed(requests="10/s", enforce=flag),
    "block": lambda flag: a_limiter()(block=flag),
    "nested": lambda flag: Retry(on=ValueError, nested=flag),
    "ordered": lambda flag: amap(len, [], in_flight=1, ordered=flag),
    "return_errors": lambda flag: amap(len, [], in_flight=1, return_errors=flag),
}


@pytest.mark.parametrize("given", NOT_FLAGS, ids=repr)
@pytest.mark.parametrize("option", FLAGS)
def test_text_is_no_flag(option, given):
    """Of an environment comes "false", which is true in Python: `enforce="false"` refused calls."""
    with pytest.raises(ValueError, match=f"{option.split()[0]} must be True or False, not "):
        FLAGS[option](given)


@pytest.mark.parametrize("option", FLAGS)
def test_flags_may_be_bools_and_their_numbers(option):
    for given in (True, False, 1, 0):
        FLAGS[option](given)


COUNTS = {
    "max_items": lambda count: Batcher(len, max_items=count),
    "in_flight": lambda count: amap(len, [], in_flight=count),
    "failures": lambda count: circuit_breaker(on=ValueError, failures=count),
    "probes": lambda count: circuit_breaker(on=ValueError, probes=count),
    "samples": lambda count: hedge(samples=count),
}


@pytest.mark.parametrize("given", NOT_COUNTS, ids=repr)
@pytest.mark.parametrize("option", COUNTS)
def test_a_count_is_a_whole_number_from_one(option, given):
    with pytest.raises(ValueError, match=option):
        COUNTS[option](given)


def test_a_retry_counts_attempts_in_whole_numbers():
    for given in [each for each in NOT_COUNTS if each is not None]:
        with pytest.raises(ValueError, match=r"Retry\(attempts=.*: a whole number from 1"):
            Retry(on=ValueError, attempts=given)


NUMBERS = {
    "cut": lambda number: Adaptive(a_limiter(), cut=number),
    "grow": lambda number: Adaptive(a_limiter(), grow=number),
    "floor": lambda number: Adaptive(a_limiter(), floor=number),
    "ratio": lambda number: circuit_breaker(on=ValueError, ratio=number),
    "ratio of a budget": lambda number: Budget(ratio=number),
}


@pytest.mark.parametrize("given", NOT_NUMBERS, ids=repr)
@pytest.mark.parametrize("option", NUMBERS)
def test_what_is_no_number_is_refused_by_its_option(option, given):
    """Some were compared as they are, and raised what Decimal or text raise then."""
    with pytest.raises(ValueError, match=option.split()[0]):
        NUMBERS[option](given)


@pytest.mark.parametrize("given", [None, 5, "openai", len, timeout(1), Keyed(requests="1/s")], ids=repr)
def test_what_needs_a_limiter_says_so(given):
    with pytest.raises(TypeError, match=r"a Limiter is needed"):
        Adaptive(given)
    if given is not None:
        with pytest.raises(TypeError, match=r"Batcher\(limiter=.*: a Limiter is needed, or None"):
            Batcher(len, limiter=given)


def test_a_budget_of_a_hedge_is_a_budget():
    with pytest.raises(TypeError, match=r"hedge\(budget=0.1\): a Budget"):
        hedge(budget=0.1)


def test_units_of_a_pause_are_given_one_by_one():
    """A list of them could not be looked up, and that was all that it said."""
    limiter = a_limiter()
    for call in (lambda: limiter.pause(1, ["requests"]), lambda: limiter.resume(["requests"])):
        with pytest.raises(UnknownUnit, match=r"no limit counts \['requests'\]: this limiter knows requests"):
            call()


def test_what_remains_is_no_span_of_time():
    with pytest.raises(CostError, match="what remains of requests must be a finite number"):
        a_limiter().observe(remaining={"requests": timedelta(seconds=5)})


def test_a_time_zone_is_a_name():
    with pytest.raises(ValueError, match=r"unknown time zone \(1, 2\)"):
        calendar(1, "day", tz=(1, 2))


async def fetch():
    return 1


@pytest.mark.anyio
async def test_a_retry_is_given_a_function_and_not_the_call_of_one():
    """A coroutine can be awaited once."""
    retry = Retry(on=ValueError)
    with pytest.raises(TypeError, match=r"give the function and its arguments apart, as retry.call\(fetch, url\)"):
        await retry.call(fetch())
    with pytest.raises(TypeError, match="give the function and its arguments apart"):
        retry.call_sync(5)


def test_keys_are_shown_with_their_limits():
    assert repr(Keyed(requests=["60/min", "2/s"], tokens="1k/day")) == "Keyed(requests=60/min and 2/s, tokens=1000/day)"
    assert repr(Keyed(a_limiter)) == "Keyed(a_limiter)"


def test_a_limit_that_is_no_keyword_shows_how_it_is_written():
    with pytest.raises(
        ValueError, match=re.escape('as in tokens="90k/min", or as one mapping, {"tokens": "90k/min"}; not')
    ):
        Limiter("3500/min")
