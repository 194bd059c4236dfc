"""Headers are read as the services really send them: every recorded one, and the broken ones."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from penstock._stated_times import asked_by, duration
from penstock.llm import headers

RECORDED = [
    json.loads(line)
    for line in (Path(__file__).parents[1] / "data" / "recorded_ratelimit_headers.jsonl").read_text().splitlines()
]


def read(fields, status=200, date=None):
    return headers.read({**fields, **({"date": date} if date else {})}, status, wall=0.0)


def triple(unit, limit, remaining, reset, status=200):
    return read(
        {
            f"x-ratelimit-limit-{unit}": str(limit),
            f"X-RateLimit-Remaining-{unit.title()}": str(remaining),
            f"x-ratelimit-reset-{unit}": reset,
        },
        status,
    ).quota(unit)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0s", 0.0),
        ("12ms", 0.012),
        ("120ms", 0.12),
        ("8.64s", 8.64),
        ("1m6.779s", 66.779),
        ("6m0s", 360.0),
        ("4m12.172s", 252.172),
        ("23h18m29.144s", 83_909.144),
        ("17.399999999s", 17.399999999),
        ("7.44ms", 0.00744),
        ("500µs", 0.0005),
        ("1d2h", 93_600.0),
        (" 5s ", 5.0),
    ],
)
def test_a_duration_is_read_as_go_writes_it(text, seconds):
    assert duration(text) == pytest.approx(seconds, abs=1e-12)


@pytest.mark.parametrize("text", ["", "5", "s", "5x", "5s!", "-5s", "5 s", "1s2", "nan", "1e3s", "\u0665s"])
def test_what_is_no_duration_is_none(text):
    assert duration(text) is None


def test_every_recorded_header_is_understood():
    """549 responses of six services: every limit that comes with a reset is believed, and its period is known."""
    told = 0
    for row in RECORDED:
        reading = read(row["headers"], row["status"], row["date"])
        for name, value in row["headers"].items():
            if name.startswith("x-ratelimit-reset-"):
                quota = reading.quota(name.removeprefix("x-ratelimit-reset-"))
                assert quota.limit == float(row["headers"][name.replace("reset", "limit")])
                assert quota.remaining == float(row["headers"][name.replace("reset", "remaining")])
                assert quota.reset is not None, (name, value)
                assert quota.per is not None
                told += 1
    assert told == 464 + 463 + 5 + 2 * 13 + 2 * 48 + 2 * 2  # openai's three, groq, azure, a gateway


def test_no_recorded_header_about_a_limit_is_read_in_vain():
    """Each says something: without it, less is known."""
    seen, of_no_limit = 0, {"x-ratelimit-tokens-query-cost", "x-ratelimit-abusepenalty-active"}
    for row in RECORDED:
        whole = read(row["headers"], row["status"], row["date"])
        for name in row["headers"].keys() - of_no_limit:
            rest = {other: value for other, value in row["headers"].items() if other != name}
            assert read(rest, row["status"], row["date"]) != whole, (row["host"], name)
            seen += 1
    assert (len(RECORDED), seen) == (549, 3_366)


def test_recorded_triples_obey_the_formula_within_a_millisecond():
    """reset = used / limit x period, with used rounded down to whole units: no counter-example in 1,000 triples."""
    checked = 0
    for row in RECORDED:
        for quota in read(row["headers"], row["status"], row["date"]).quotas:
            if quota.reset is None or quota.per is None or row["host"] == "api.together.xyz":
                continue
            used = quota.limit - quota.remaining
            low, high = (used - 1) / quota.limit * quota.per, used / quota.limit * quota.per
            assert low - 0.001 <= quota.reset <= high + 0.001, (row["host"], quota)
            checked += 1
    assert checked > 1_000


def test_recorded_request_limits_per_day_are_told_from_those_per_minute():
    periods = {}
    for row in RECORDED:
        quota = read(row["headers"], row["status"], row["date"]).quota("requests")
        if quota is not None and quota.per is not None:
            periods.setdefault((row["host"], quota.limit), set()).add(quota.per)
    assert periods["api.groq.com", 14_400] == {86_400.0}
    assert periods["api.openai.com", 10_000] == {60.0, 86_400.0}  # 10,000 a minute for some, a day for others
    assert periods["api.openai.com", 3_000] == {60.0}
    assert periods["azure", 120] == {60.0}


def test_one_request_tells_a_limit_per_day():
    """The period is inferred from any triple with something used, and one request is something."""
    assert triple("requests", 10_000, 9_999, "8.64s").per == 86_400.0
    assert triple("requests", 10_000, 9_999, "6ms").per == 60.0
    assert triple("requests", 14_400, 14_399, "6s").per == 86_400.0


@given(
    limit=st.integers(min_value=1, max_value=10**9),
    used=st.integers(min_value=1, max_value=10**6),
    part=st.floats(min_value=0.0, max_value=0.999),
    per=st.sampled_from([60.0, 86_400.0]),
)
def test_a_true_bucket_is_never_disbelieved(limit, used, part, per):
    """Whatever a bucket's level, its headers give back its reset, and a period that fits them."""
    used = min(used, limit)
    level = limit - max(1, used - part)
    reset_ms = math.floor((limit - level) / limit * per * 1_000)
    quota = triple("tokens", limit, math.floor(level), f"{reset_ms}ms")
    assert quota.reset == pytest.approx(reset_ms / 1_000)
    assert quota.per in headers.PERIODS


@pytest.mark.parametrize(
    ("limit", "remaining", "reset"),
    [
        pytest.param(100, 50, "7s", id="neither a minute's nor a day's"),
        pytest.param(100, 100, "30s", id="nothing used, and half a minute to go"),
        pytest.param(100, 150, "1s", id="more left than there is"),
        pytest.param(100, 50, "soon", id="no duration"),
        pytest.param(100, 50, "-5s", id="negative"),
    ],
)
def test_a_reset_that_violates_the_formula_is_dropped_and_the_rest_kept(limit, remaining, reset):
    quota = triple("requests", limit, remaining, reset)
    assert (quota.limit, quota.remaining, quota.reset) == (limit, remaining, None)


def test_minus_one_means_nothing():
    """Azure's -1/-1/0 is no limit of minus one."""
    assert triple("tokens", -1, -1, "0") is None
    assert triple("tokens", 100, -1, "0") is None
    assert triple("tokens", 0, 0, "0s") is None


def test_a_bare_reset_is_milliseconds_where_only_that_fits_and_seconds_where_only_that_does():
    azure = read(
        {
            "x-ratelimit-limit-requests": "120",
            "x-ratelimit-remaining-requests": "119",
            "x-ratelimit-reset-requests": "500",
            "x-ratelimit-renewalperiod-requests": "60",
        }
    ).quota("requests")
    assert (azure.reset, azure.per) == (0.5, 60.0)
    assert triple("requests", 60, 30, "30").reset == 30.0


def test_a_name_with_a_period_tells_it():
    """Mistral's names say how long the period is, and what is counted."""
    quotas = {q.name: q for row in RECORDED if row["host"] == "api.mistral.ai" for q in read(row["headers"]).quotas}
    assert {name: (q.unit, q.per) for name, q in quotas.items()} == {
        "req-10-second": ("requests", 10.0),
        "tokens-minute": ("tokens", 60.0),
        "tokens-month": ("tokens", 30 * 86_400.0),
    }


def test_moments_are_measured_against_the_responses_own_date():
    """Anthropic's resets are RFC 3339 moments, and a wrong clock here does not change them."""
    quota = read(
        {
            "anthropic-ratelimit-input-tokens-limit": "80000",
            "anthropic-ratelimit-input-tokens-remaining": "74000",
            "anthropic-ratelimit-input-tokens-reset": "2026-03-31T13:28:45Z",
        },
        date="Tue, 31 Mar 2026 13:28:40 GMT",
    ).quota("input-tokens")
    assert (quota.limit, quota.remaining, quota.reset, quota.per) == (80_000, 74_000, 5.0, 60.0)


@pytest.mark.parametrize(
    ("fields", "seconds"),
    [
        ({"Retry-After": "7"}, 7.0),
        ({"retry-after": "1.5"}, 1.5),
        ({"retry-after-ms": "120", "retry-after": "1"}, 0.12),
        ({"retry-after-ms": "x", "retry-after": "2"}, 2.0),
        ({"retry-after": "Tue, 31 Mar 2026 13:28:45 GMT", "date": "Tue, 31 Mar 2026 13:28:40 GMT"}, 5.0),
        ({"retry-after": "Tue, 31 Mar 2026 13:28:45 -0000", "date": "Tue, 31 Mar 2026 13:28:40 GMT"}, 5.0),
        ({"retry-after": "Tue, 31 Mar 2026 13:28:30 GMT", "date": "Tue, 31 Mar 2026 13:28:40 GMT"}, 0.0),
        ({"retry-after": "Thu, 01 Jan 1970 00:01:40 GMT"}, 90.0),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "soon"}, None),
        ({}, None),
    ],
)
def test_retry_after_comes_as_seconds_milliseconds_or_a_date(fields, seconds):
    assert asked_by(fields, wall=10.0) == seconds


def test_retry_after_on_a_success_is_ignored():
    """Anthropic sent Retry-After: 59 on a 200."""
    assert read({"retry-after": "59"}, 200).retry_after is None
    assert read({"retry-after": "59"}, 429).retry_after == 59.0


def test_headers_that_are_none_of_ours_are_left_alone():
    assert read({"content-type": "x", "x-ratelimit-abusepenalty-active": "False"}).quotas == ()
    assert read({"x-ratelimit-limit-requests": "many"}).quotas == ()


def test_a_bare_reset_beside_azures_period_may_be_either_where_no_formula_decides():
    """14 left of 600 a minute: 100 ms until a burst of 15 is back. The IETF's resets are seconds, always."""
    told = {f"x-ratelimit-{field}-requests": text for field, text in (("limit", "600"), ("remaining", "14"))}
    azure = read(told | {"x-ratelimit-reset-requests": "40", "x-ratelimit-renewalperiod-requests": "60"})
    assert (azure.quota("requests").per, azure.quota("requests").bare) == (60.0, 40.0)
    ietf = read({"RateLimit": '"default";r=14;t=40', "RateLimit-Policy": '"default";q=600;w=60'}).quotas[0]
    assert (ietf.per, ietf.resets_in, ietf.bare) == (60.0, 40.0, None)


def test_a_header_that_came_twice_is_read_as_one_with_commas():
    """The mappings of aiohttp, which `penstock run` sends through, and of urllib have it as two items."""
    told = CIMultiDict(
        [
            ("X-RateLimit-Limit", "500"),
            ("X-RateLimit-Remaining", "20"),
            ("Retry-After", "30"),
            ("x-ratelimit-limit", "1000"),
            ("x-ratelimit-remaining", "900"),
            ("retry-after", "5"),
        ]
    )
    reading = headers.read(told, 429, wall=0.0)
    assert [(quota.limit, quota.remaining) for quota in reading.quotas] == [(500, 20)]
    assert reading.retry_after == 30
