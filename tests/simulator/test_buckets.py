"""The simulated limits are OpenAI's: held against every recorded triple of headers, recorded refusals, and
fractions."""

from __future__ import annotations

import json
import math
import re
from fractions import Fraction
from itertools import accumulate, pairwise
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from penstock.limits import Rate, parse
from penstock.llm import headers as reading
from penstock.simulator import excess, format_duration
from penstock.simulator._buckets import ServerBucket
from penstock.simulator._headers import format_milliseconds, rate_limit_headers, retry_headers

MS = 1_000_000
DAY = 86_400


def recorded_triples():
    """Every distinct (host, unit, limit, remaining, reset) that a service sent, where all three were there."""
    lines = (Path(__file__).parents[1] / "data" / "recorded_ratelimit_headers.jsonl").read_text().splitlines()
    found = set()
    for line in lines:
        record = json.loads(line)
        fields = record["headers"]
        for name in fields:
            unit = name.removeprefix("x-ratelimit-limit-")
            parts = [fields.get(f"x-ratelimit-{part}-{unit}") for part in ("limit", "remaining", "reset")]
            if unit != name and None not in parts:
                found.add((record["host"], unit, *parts))
    return sorted(found)


TRIPLES = recorded_triples()


def milliseconds(host, text):
    """A recorded reset, cut to milliseconds. Azure's are bare milliseconds, Groq's are not cut by the service."""
    return int(text) if host == "azure" else math.floor(Fraction(repr(reading.duration(text))) * 1000)


def test_the_recordings_are_many_and_of_several_services():
    """The claims below are about hundreds of distinct triples, and would be silent if there were none."""
    assert len(TRIPLES) > 200
    assert {host for host, *_ in TRIPLES} == {"api.openai.com", "azure", "api.groq.com", "gateway.pydantic.dev"}


@pytest.mark.parametrize("host", ["api.openai.com", "azure", "api.groq.com", "gateway.pydantic.dev"])
def test_a_bucket_shows_what_was_recorded(host):
    """For every recorded triple there is a level at which our bucket shows the same remaining and the same reset."""
    for _, unit, limit, remaining, reset in (each for each in TRIPLES if each[0] == host):
        wanted = milliseconds(host, reset)
        shown = []
        for per in (60, DAY):
            bucket = ServerBucket.of(Rate(int(limit), per))
            # The highest level with that remaining whose reset is not shorter: if this one does not do, none does.
            level = min((int(remaining) + 1) * bucket.scale - 1, bucket.full - wanted * MS * bucket.refill)
            shown.append((bucket.remaining(level), bucket.reset_ns(level) // MS))
        assert (int(remaining), wanted) in shown, (unit, limit, remaining, reset, shown)


@pytest.mark.parametrize(
    "text", sorted({reset for host, *_, reset in TRIPLES if host in {"api.openai.com", "gateway.pydantic.dev"}})
)
def test_durations_are_spelled_as_recorded(text):
    """Every reset that OpenAI sent is written by us in the same letters."""
    assert format_duration(Fraction(repr(reading.duration(text)))) == text


@pytest.mark.parametrize(
    ("limit", "used", "requested", "wait"),
    [
        ("30k/min", 29_937, 385, "644ms"),
        ("30k/min", 14_567, 24_754, "18.642s"),
        ("10000/day", 10_000, 1, "8.64s"),
        ("1000/day", 1_000, 1, "1m26.4s"),
        ("200/day", 200, 1, "7m12s"),
        ("3/min", 3, 1, "20s"),
    ],
)
def test_a_refusal_announces_the_recorded_wait(limit, used, requested, wait):
    """The waits in refusals that people were given and published follow from the numbers beside them."""
    bucket = ServerBucket.of(parse(limit))
    level = bucket.full - used * bucket.scale
    assert bucket.used(level) == used
    assert format_milliseconds(-(-bucket.announced_wait_ns(level, requested) // MS)) == wait


def test_an_announced_wait_counts_whole_units():
    """Half a unit that is there already does not shorten the wait that is told: `used` is rounded up, as in the
    message."""
    bucket = ServerBucket.of(parse("60/min"))
    level = 11 * bucket.scale // 2
    assert (bucket.used(level), bucket.remaining(level)) == (55, 5)
    assert (bucket.wait_ns(level, 6), bucket.announced_wait_ns(level, 6)) == (500 * MS, 1000 * MS)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (0.0009999, "0s"),
        (0.12, "120ms"),
        (0.999, "999ms"),
        (1, "1s"),
        (8.64, "8.64s"),
        (66.779, "1m6.779s"),
        (360, "6m0s"),
        (3600, "1h0m0s"),
        (83909.144, "23h18m29.144s"),
        (86400 * 3, "72h0m0s"),
    ],
)
def test_a_duration_is_written_like_go_does(seconds, text):
    """Cut to milliseconds; minutes and seconds are named once there is anything above them."""
    assert format_duration(seconds) == text


@given(st.integers(0, 10**10))
@example(59_999)
@example(3_599_999)
def test_a_duration_is_read_back_as_it_was(ms):
    """What the simulator writes, the library's own reader reads, to the millisecond."""
    text = format_duration(Fraction(ms, 1000))
    assert round(reading.duration(text) * 1000) == ms
    assert re.fullmatch(r"(\d+h[0-5]?\dm|[1-5]?\dm)?[1-5]?\d(\.\d{1,3})?s|[1-9]\d{0,2}ms", text)


@given(st.floats(0, 1e6))
@example(0.95)
@example(60.95)
def test_a_duration_is_never_rounded_up(seconds):
    """A float loses less than a millisecond, and never gains one."""
    assert 0 <= Fraction(repr(seconds)) - Fraction(repr(reading.duration(format_duration(seconds)))) < Fraction(1, 1000)


@pytest.mark.parametrize("seconds", [-1, math.inf, math.nan])
def test_what_is_no_duration_is_refused(seconds):
    with pytest.raises(ValueError, match="finite number of seconds, 0 or more"):
        format_duration(seconds)


def test_a_wait_is_told_in_whole_seconds_and_in_milliseconds_rounded_up():
    """`retry-after` is at least 1, and neither header sends anybody too early."""
    assert retry_headers(1) == {"retry-after": "1", "retry-after-ms": "1"}
    assert retry_headers(1_200 * MS) == {"retry-after": "2", "retry-after-ms": "1200"}
    assert retry_headers(5_000 * MS + 1) == {"retry-after": "6", "retry-after-ms": "5001"}


def test_headers_are_what_a_full_bucket_less_one_request_shows():
    """5,000 requests a minute, one taken: 4,999 left, full again in 12 ms."""
    bucket = ServerBucket.of(parse("5000/min"))
    level = bucket.full - bucket.scale
    assert rate_limit_headers("requests", 5000, bucket.remaining(level), bucket.reset_ns(level)) == {
        "x-ratelimit-limit-requests": "5000",
        "x-ratelimit-remaining-requests": "4999",
        "x-ratelimit-reset-requests": "12ms",
    }


rates = st.builds(
    Rate,
    st.one_of(st.integers(1, 10**9), st.floats(1, 1e6)),
    st.one_of(st.integers(1, DAY), st.floats(1e-3, 1e5)),
    st.one_of(st.none(), st.integers(1, 10**6), st.floats(1, 1e6)),
)


@given(rates, st.lists(st.tuples(st.integers(0, 10**12), st.integers(0, 10**6)), max_size=40))
def test_the_bucket_is_exact(rate, moves):
    """After any time and any charges its level is what fractions say it is; not a part of a unit is lost or made."""
    bucket = ServerBucket.of(rate)
    level = bucket.full
    exact = Fraction(rate.burst)
    for elapsed_ns, cost in moves:
        level = bucket.refilled(level, elapsed_ns)
        exact = min(
            Fraction(rate.burst), exact + Fraction(rate.amount) / Fraction(rate.per) * Fraction(elapsed_ns, 10**9)
        )
        assert Fraction(level, bucket.scale) == exact
        assert bucket.holds(level, cost) == (exact >= cost)
        if exact >= cost:
            level -= cost * bucket.scale
            exact -= cost
        assert bucket.remaining(level) == math.floor(exact)
        assert bucket.used(level) == math.ceil(Fraction(rate.burst) - exact)


@given(rates, st.floats(0, 1), st.data())
def test_the_wait_is_the_least(rate, filled, data):
    """After `wait_ns` the cost is there, one nanosecond before it is not; the announced wait is never shorter."""
    bucket = ServerBucket.of(rate)
    cost = data.draw(st.integers(1, math.floor(rate.burst)))
    level = int(bucket.full * filled)
    wait = bucket.wait_ns(level, cost)
    assert bucket.holds(bucket.refilled(level, wait), cost)
    assert wait == 0 or not bucket.holds(bucket.refilled(level, wait - 1), cost)
    assert bucket.announced_wait_ns(level, cost) >= wait


@given(rates, st.lists(st.tuples(st.integers(0, 10**10), st.integers(0, 10**4)), min_size=1, max_size=12))
def test_the_excess_is_that_of_the_worst_interval(rate, moves):
    """The one pass that `excess` makes finds what looking at every interval finds."""
    moments = accumulate(elapsed for elapsed, _ in moves)
    charges = [(at, cost) for at, (_, cost) in zip(moments, moves, strict=True)]
    per_ns = Fraction(rate.amount) / (Fraction(rate.per) * 10**9)
    worst = max(
        sum(cost for _, cost in charges[first : last + 1])
        - per_ns * (charges[last][0] - charges[first][0])
        - Fraction(rate.burst)
        for first in range(len(charges))
        for last in range(first, len(charges))
    )
    assert excess(charges, rate) == max(worst, -Fraction(rate.burst))


@given(
    rates, st.lists(st.tuples(st.integers(0, 10**10), st.integers(0, 10**5)), max_size=40), st.sampled_from([0, 1000])
)
def test_what_a_bucket_admits_never_exceeds_burst_plus_rate(rate, moves, tolerance_ns):
    """In every interval; with a tolerance, by no more than what flows in within it, however often it is used."""
    bucket = ServerBucket.of(rate)
    level, now = bucket.full, 0
    admitted = []
    for elapsed_ns, cost in moves:
        now += elapsed_ns
        level = bucket.refilled(level, elapsed_ns)
        if bucket.holds(level, cost, tolerance_ns):
            level -= cost * bucket.scale
            admitted.append((now, cost))
    assert excess(admitted, rate) <= Fraction(bucket.refill * tolerance_ns, bucket.scale)


@given(rates, st.data())
def test_a_call_that_comes_when_told_uses_all_there_is(rate, data):
    """Requests that each wait exactly `wait_ns` use the limit up: what is left over is less than one wait's
    rounding."""
    bucket = ServerBucket.of(rate)
    costs = data.draw(st.lists(st.integers(1, math.floor(rate.burst)), min_size=1, max_size=30))
    level, now = bucket.full, 0
    moments = []
    for cost in costs:
        wait = bucket.wait_ns(level, cost)
        now += wait
        level = bucket.refilled(level, wait) - cost * bucket.scale
        moments.append(now)
    assert all(before <= after for before, after in pairwise(moments))
    assert excess(zip(moments, costs, strict=True), rate) <= 0
    least = Fraction(sum(costs)) - Fraction(rate.burst)
    assert now <= max(Fraction(0), least * bucket.scale / bucket.refill) + len(costs)
