"""Headers of many services: each row is one that was seen, and what it means."""

from __future__ import annotations

import pytest

from penstock.llm import headers
from tests.quiet import is_quick

WALL = 1_700_000_000.0
DAY = 86_400.0


def read(fields, status=200):
    return headers.read(fields, status, wall=WALL)


ROWS = {
    # name: (headers, quota's name, unit, limit, remaining, per, seconds to the reset)
    "a window of a minute, just begun": (
        {
            "x-ratelimit-limit-requests": "60",
            "x-ratelimit-remaining-requests": "59",
            "x-ratelimit-reset-requests": "60",
        },
        ("requests", "requests", 60, 59, 60, 60),
    ),
    "the same as a duration": (
        {
            "x-ratelimit-limit-requests": "60",
            "x-ratelimit-remaining-requests": "59",
            "x-ratelimit-reset-requests": "1m0s",
        },
        ("requests", "requests", 60, 59, 60, 60),
    ),
    "1440 in a minute": (
        {
            "x-ratelimit-limit-requests": "1440",
            "x-ratelimit-remaining-requests": "1439",
            "x-ratelimit-reset-requests": "60s",
        },
        ("requests", "requests", 1440, 1439, 60, 60),
    ),
    "a window in its middle": (
        {"x-ratelimit-limit": "60", "x-ratelimit-remaining": "10", "x-ratelimit-reset": "20"},
        ("requests", "requests", 60, 10, 60, 20),
    ),
    "a reset that is no minute's": (
        {"x-ratelimit-limit": "1000", "x-ratelimit-remaining": "500", "x-ratelimit-reset": "86000"},
        ("requests", "requests", 1000, 500, DAY, 86_000),
    ),
    "a minute's bucket with one used": (
        {"x-ratelimit-limit": "60", "x-ratelimit-remaining": "59", "x-ratelimit-reset": "1s"},
        ("requests", "requests", 60, 59, 60, 1),
    ),
    "together": (
        {"x-ratelimit-limit": "2", "x-ratelimit-remaining": "1", "x-ratelimit-reset": "1"},
        ("requests", "requests", 2, 1, 1, 1),
    ),
    "IETF, three headers": (
        {"RateLimit-Limit": "100", "RateLimit-Remaining": "50", "RateLimit-Reset": "50"},
        ("requests", "requests", 100, 50, 60, 50),
    ),
    "IETF, with a policy": (
        {"RateLimit": '"default";r=50;t=30', "RateLimit-Policy": '"default";q=100;w=60'},
        ("requests", "requests", 100, 50, 60, 30),
    ),
    "IETF, an older draft": (
        {"RateLimit": "limit=100, remaining=50, reset=30"},
        ("requests", "requests", 100, 50, 60, 30),
    ),
    "github": (
        {"X-RateLimit-Limit": "5000", "X-RateLimit-Remaining": "4000", "X-RateLimit-Reset": "1700001200"},
        ("requests", "requests", 5000, 4000, 3_600, 1_200),
    ),
    "openrouter": (
        {"X-RateLimit-Limit": "20", "X-RateLimit-Remaining": "3", "X-RateLimit-Reset": "1700000030000"},
        ("requests", "requests", 20, 3, 60, 30),
    ),
    "cerebras": (
        {
            "x-ratelimit-limit-tokens-minute": "60000",
            "x-ratelimit-remaining-tokens-minute": "50000",
            "x-ratelimit-reset-tokens-minute": "33.0",
        },
        ("tokens-minute", "tokens", 60_000, 50_000, 60, 33),
    ),
    "cerebras, a day": (
        {"x-ratelimit-limit-requests-day": "14400", "x-ratelimit-remaining-requests-day": "14390"},
        ("requests-day", "requests", 14_400, 14_390, DAY, None),
    ),
    "fireworks": (
        {"x-ratelimit-limit-tokens-prompt": "60000", "x-ratelimit-remaining-tokens-prompt": "59000"},
        ("tokens-prompt", "input-tokens", 60_000, 59_000, None, None),
    ),
    "fireworks, what comes out": (
        {"x-ratelimit-limit-tokens-generated": "6000", "x-ratelimit-remaining-tokens-generated": "5000"},
        ("tokens-generated", "output-tokens", 6_000, 5_000, None, None),
    ),
    "kong": (
        {"X-RateLimit-Limit-Minute": "20", "X-RateLimit-Remaining-Minute": "19"},
        ("minute", "requests", 20, 19, 60, None),
    ),
    "mistral": (
        {"x-ratelimit-limit-req-10-second": "5", "x-ratelimit-remaining-req-10-second": "4"},
        ("req-10-second", "requests", 5, 4, 10, None),
    ),
    "litellm's proxy": (
        {"x-ratelimit-api_key-limit-requests": "60", "x-ratelimit-api_key-remaining-requests": "59"},
        ("requests:api_key", "requests", 60, 59, None, None),
    ),
    "litellm's proxy, tokens": (
        {"x-ratelimit-model_per_key-limit-tokens": "900", "x-ratelimit-model_per_key-remaining-tokens": "650"},
        ("tokens:model_per_key", "tokens", 900, 650, None, None),
    ),
    "two proxies": (
        {"X-RateLimit-Limit": "500, 100", "X-RateLimit-Remaining": "499, 99"},
        ("requests", "requests", 100, 99, None, None),
    ),
    "two proxies with the same limit": (
        {"X-RateLimit-Limit": "500, 500", "X-RateLimit-Remaining": "499, 20"},
        ("requests", "requests", 500, 20, None, None),
    ),
    "two proxies, one of which tells no limit": (
        {"X-RateLimit-Limit": "500", "X-RateLimit-Remaining": "499, 20"},
        ("requests", "requests", 500, 20, None, None),
    ),
    "anthropic, requests": (
        {
            "anthropic-ratelimit-requests-limit": "50",
            "anthropic-ratelimit-requests-remaining": "49",
            "anthropic-ratelimit-requests-reset": "2023-11-14T22:13:21Z",
        },
        ("requests", "requests", 50, 49, 60, 1),
    ),
    "anthropic, what comes out": (
        {
            "anthropic-ratelimit-output-tokens-limit": "8000",
            "anthropic-ratelimit-output-tokens-remaining": "4000",
            "anthropic-ratelimit-output-tokens-reset": "2023-11-14T22:13:50Z",
        },
        ("output-tokens", "output-tokens", 8_000, 4_000, 60, 30),
    ),
    "groq, a day": (
        {
            "x-ratelimit-limit-requests": "14400",
            "x-ratelimit-remaining-requests": "14399",
            "x-ratelimit-reset-requests": "6s",
        },
        ("requests", "requests", 14_400, 14_399, DAY, 6),
    ),
    "groq, nanoseconds": (
        {
            "x-ratelimit-limit-tokens": "6000",
            "x-ratelimit-remaining-tokens": "4260",
            "x-ratelimit-reset-tokens": "17.399999999s",
        },
        ("tokens", "tokens", 6_000, 4_260, 60, 17.4),
    ),
    "azure, milliseconds": (
        {
            "x-ratelimit-limit-requests": "120",
            "x-ratelimit-remaining-requests": "119",
            "x-ratelimit-reset-requests": "500",
            "x-ratelimit-renewalperiod-requests": "60",
        },
        ("requests", "requests", 120, 119, 60, 0.5),
    ),
    "IETF, names that differ": (
        {"RateLimit": '"default";r=50;t=30', "RateLimit-Policy": '"burst";q=100;w=60'},
        ("requests:burst", "requests", 100, 50, 60, 30),
    ),
    "IETF, a name with marks in it": (
        {"RateLimit": '"a,b;c=d"; r=50; t=30', "RateLimit-Policy": '"a,b;c=d"; q=100; w=60; pk=:dHJpYWw=:'},
        ("requests:a,b;c=d", "requests", 100, 50, 60, 30),
    ),
    "IETF, of bytes": (
        {"RateLimit": '"user";r=50;t=5', "RateLimit-Policy": '"user";q=65535;qu="content-bytes";w=10'},
        ("content-bytes:user", "content-bytes", 65_535, 50, 10, 5),
    ),
    "IETF, three headers and policies in the first": (
        {"RateLimit-Limit": "1000, 10;w=1, 1000;w=3600", "RateLimit-Remaining": "900", "RateLimit-Reset": "1800"},
        ("requests", "requests", 1_000, 900, 3_600, 1_800),
    ),
    "IETF, three headers and a policy beside them": (
        {
            "RateLimit-Limit": "100",
            "RateLimit-Remaining": "50",
            "RateLimit-Reset": "30",
            "RateLimit-Policy": "100;w=3600",
        },
        ("requests", "requests", 100, 50, 3_600, 30),
    ),
    "IETF, an older draft and its policy": (
        {"RateLimit": "limit=100, remaining=50, reset=30", "RateLimit-Policy": "100;w=3600"},
        ("requests", "requests", 100, 50, 3_600, 30),
    ),
    "twitter": (
        {"x-rate-limit-limit": "900", "x-rate-limit-remaining": "899", "x-rate-limit-reset": "1700000900"},
        ("requests", "requests", 900, 899, 3_600, 900),
    ),
    "zendesk": (
        {"X-Rate-Limit": "700", "X-Rate-Limit-Remaining": "699"},
        ("requests", "requests", 700, 699, None, None),
    ),
    "discord, which tells the reset twice": (
        {
            "X-RateLimit-Limit": "5",
            "X-RateLimit-Remaining": "0",
            "X-RateLimit-Reset": "1600000000.5",
            "X-RateLimit-Reset-After": "4.57",
        },
        ("requests", "requests", 5, 0, 60, 4.57),
    ),
    "shopify": ({"X-Shopify-Shop-Api-Call-Limit": "32/40"}, ("requests", "requests", 40, 8, 20, None)),
    "gitlab": (
        {
            "RateLimit-Limit": "60",
            "RateLimit-Name": "throttle_authenticated_web",
            "RateLimit-Observed": "67",
            "RateLimit-Remaining": "0",
            "RateLimit-Reset": "1700000030",
            "RateLimit-ResetTime": "Tue, 14 Nov 2023 22:13:50 GMT",
        },
        ("requests", "requests", 60, 0, 60, 30),
    ),
    "reddit": (
        {"x-ratelimit-used": "2", "x-ratelimit-remaining": "598.0", "x-ratelimit-reset": "540"},
        ("requests", "requests", 600, 598, 3_600, 540),
    ),
    "linear": (
        {
            "X-RateLimit-Requests-Limit": "1500",
            "X-RateLimit-Requests-Remaining": "1499",
            "X-RateLimit-Requests-Reset": "1700003600000",
        },
        ("requests", "requests", 1_500, 1_499, 3_600, 3_600),
    ),
    "a moment as HTTP writes it": (
        {
            "X-RateLimit-Limit": "100",
            "X-RateLimit-Remaining": "40",
            "X-RateLimit-Reset": "Tue, 14 Nov 2023 22:13:50 GMT",
        },
        ("requests", "requests", 100, 40, 60, 30),
    ),
    "a moment that no minute reaches": (
        {"X-RateLimit-Limit": "5000", "X-RateLimit-Remaining": "4000", "X-RateLimit-Reset": "2023-11-14T22:33:20Z"},
        ("requests", "requests", 5_000, 4_000, 3_600, 1_200),
    ),
    "two proxies that tell resets": (
        {"X-RateLimit-Limit": "500, 100", "X-RateLimit-Remaining": "499, 99", "X-RateLimit-Reset": "10, 50"},
        ("requests", "requests", 100, 99, 60, 50),
    ),
    "together, tokens": (
        {"x-tokenlimit-limit": "100", "x-tokenlimit-remaining": "40", "x-tokenlimit-reset": "1"},
        ("tokens", "tokens", 100, 40, 1, 1),
    ),
    "cohere, a trial": (
        {"x-trial-endpoint-call-limit": "40", "x-trial-endpoint-call-remaining": "39"},
        ("requests-minute", "requests", 40, 39, 60, None),
    ),
    "anthropic": (
        {"anthropic-ratelimit-input-tokens-limit": "40000", "anthropic-ratelimit-input-tokens-remaining": "39000"},
        ("input-tokens", "input-tokens", 40_000, 39_000, None, None),
    ),
}


@pytest.mark.parametrize(("fields", "meaning"), ROWS.values(), ids=ROWS)
def test_every_dialect_is_understood(fields, meaning):
    (quota,) = read(fields).quotas
    name, unit, limit, remaining, per, resets_in = meaning
    assert (quota.name, quota.unit, quota.limit, quota.remaining, quota.per) == (name, unit, limit, remaining, per)
    assert quota.resets_in == (None if resets_in is None else pytest.approx(resets_in))


def test_each_of_several_policies_keeps_its_own_numbers():
    told = {
        "RateLimit": '"burst";r=10;t=1, "daily";r=900;t=40000',
        "RateLimit-Policy": '"burst";q=20;w=1,"daily";q=1000;w=86400',
    }
    found = [(quota.name, quota.limit, quota.remaining, quota.per) for quota in read(told).quotas]
    assert found == [("requests:burst", 20, 10, 1), ("requests:daily", 1_000, 900, DAY)]


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("5", 5),
        ("5s", 5),
        ("5 seconds", 5),
        ("5, 10", 10),
        ("1m30s", 90),
        ("1700000012", 12),
        ("1700000012000", 12),
        ("Tue, 14 Nov 2023 22:13:25 GMT", 5),
        ("2023-11-14T22:13:25Z", 5),
        ("Tue, 99 Nov 2023 22:13:25 GMT", None),
        ("Tue, 14 Nov 99999 22:13:25 GMT", None),
        ("Mon, 01 Jan 0001 00:00:00 GMT", 0),
        ("9" * 1_000_000, None),
        ("soon", None),
        ("-5", None),
        ("", None),
    ],
)
def test_retry_after_in_every_form(value, seconds):
    assert read({"Retry-After": value}, 429).retry_after == seconds


HOSTILE = [
    "9" * 65_536,
    "1m" * 32_768,
    "1" + ",1" * 32_767,
    '"a";r=1' * 9_000,
    "-1-" * 20_000,
    "Wed, " * 13_000,
    "(" * 65_536,
    "\x00" * 65_536,
]


@pytest.mark.parametrize("name", ["x-ratelimit-limit", "x-ratelimit-reset-tokens", "retry-after", "date", "ratelimit"])
@pytest.mark.parametrize("value", HOSTILE, ids=range(len(HOSTILE)))
def test_no_header_takes_long_or_raises(name, value):
    fields = {"x-ratelimit-remaining": "1", "x-ratelimit-limit-tokens": "5", "x-ratelimit-remaining-tokens": "5"}

    def readings():
        for status in (200, 429):
            read({**fields, name: value}, status)
            read({**fields, f"x-ratelimit-limit-{value}": "5"}, status)

    assert is_quick(readings, 4 * 0.0125)


@pytest.mark.parametrize(
    ("reset", "is_moment"), [("1800000010", True), ("1800000010000", True), ("10", False), ("10s", False)]
)
def test_a_reset_that_is_a_moment_counts_from_when_its_answer_was_read(reset, is_moment):
    """And not from admission, which may be a minute earlier where answers take that long."""
    fields = {"x-ratelimit-limit": "100", "x-ratelimit-remaining": "40", "x-ratelimit-reset": reset}
    assert headers.read(fields, 200, wall=1_800_000_000.0).quotas[0].is_moment is is_moment
