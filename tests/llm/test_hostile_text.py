"""Text that servers send, of any size and kind: reading it takes linear time, raises nothing, and costs no answer.

`make fuzz` draws 100,000 of each kind instead of some hundreds.
"""

from __future__ import annotations

import json
import math
import os
import random

import pytest

from penstock import Limiter
from penstock._stated_times import duration
from penstock.llm import headers, rate_limit_info, retry_on
from penstock.llm.failures import Action, judge, message_wait
from penstock.llm.usage_reader import UsageReader
from penstock.retry import retry_after
from tests.quiet import is_quick

LONG = 65_536
MANY = int(os.environ.get("PENSTOCK_FUZZ", "300"))
PIECES = [
    *("1", '"', " ", ",", ";", "=", "{", "[", "\\", "%", "\x00", "é", "1 ", "1,", "1.", "1m", "a-", "wait 1m "),
    *(
        "try again in ",
        "try again in 1 ",
        "Limit: ",
        "Limit 1,",
        "a per ",
        "per 1",
        "requests per ",
        "in organization ",
    ),
    *("for model ", "credit ", "spend ", "Mon, 01 Jan 2026 ", "2026-01-01T", '"x";r=1,', "retry after : ", '"usage":'),
    *('{"usage":', '"eval_count": ', '"usage":{"a":', "limit: 0"),
]


class Failed(Exception):  # noqa: N818
    """An error as SDKs make them."""

    def __init__(self, text):
        super().__init__(text)
        self.status_code, self.body, self.headers = 429, text, {"retry-after": text}


def judged(text):
    nested = {"retryDelay": text, "violations": [{"quotaId": text}]}
    body = {"error": {"message": text, "code": text, "type": text, "details": [nested]}}
    return judge(429, body, {"retry-after": text, "date": text, "x-should-retry": text}).info


def read_headers(text):
    names = ("limit-requests", "remaining-requests", "reset-requests", f"limit-{text}", f"remaining-{text}")
    told = {f"x-ratelimit-{name}": text for name in names}
    told |= {"ratelimit": text, "ratelimit-policy": text, "retry-after": text, "date": text}
    return headers.read(told, 429, wall=1e9)


def read_usage(text):
    reader = UsageReader()
    reader.feed(text.encode("utf-8", "surrogatepass"))
    return reader.usage()


def limiter(text):
    try:
        return Limiter(requests=text), Limiter(requests=f"10/min burst {text}")
    except ValueError:
        return None


READERS = {
    "a message": message_wait,
    "a body": lambda text: judge(429, text),
    "an error": judged,
    "headers": read_headers,
    "a duration": duration,
    "usage": read_usage,
    "an SDK's error": lambda text: (retry_on(Failed(text)), rate_limit_info(Failed(text)), retry_after(Failed(text))),
    "a limit": limiter,
}


@pytest.mark.parametrize("reader", READERS.values(), ids=READERS)
@pytest.mark.parametrize("piece", PIECES)
def test_64_kilobytes_of_anything_are_read_in_10_ms(piece, reader):
    text = (piece * LONG)[:LONG]
    assert is_quick(lambda: reader(text), 0.010)


WORDS = [
    *PIECES,
    *("Please try again in ", "6ms", "1m6.779s", "-1", "NaN", "1e400", "inf", "-0", "0", "2026-02-30T25:61:61Z", "Z"),
    *(
        "Wed, 31 Feb 99999 25:61:61 GMT",
        "9" * 400,
        "٣",
        "１",
        "µs",
        "null",
        "true",
        "}",
        "]",
        "\n\n",
        "data: ",
        "\ud800",
    ),
    *("Limit 10000, Requested 11454", "requests per min", "insufficient_quota", "429", "RESOURCE_EXHAUSTED", "\r\n"),
]
NUMBERS = [0, -1, 1.5, math.nan, math.inf, -math.inf, 10**400, True, None, "", "1", [], {}, [[]], {"a": {"b": 1}}]


def text_of(draw):
    return "".join(draw.choice(WORDS) for _ in range(draw.randrange(6)))


@pytest.mark.parametrize("reader", READERS.values(), ids=READERS)
def test_64_kilobytes_of_any_words_are_read_in_linear_time(reader):
    """What took quadratic time took seconds."""
    draw = random.Random(5)
    for _ in range(MANY // 100):
        words = "".join(draw.choice(WORDS)[:20] for _ in range(draw.randrange(1, 5)))
        text = (words * LONG)[:LONG]
        assert is_quick(lambda: reader(text), 0.1), words  # noqa: B023


def value_of(draw, depth=0):
    kind = draw.randrange(4 if depth < 3 else 2)
    if kind == 0:
        return draw.choice(NUMBERS)
    if kind == 1:
        return text_of(draw)
    if kind == 2:
        return [value_of(draw, depth + 1) for _ in range(draw.randrange(3))]
    names = (
        "error",
        "message",
        "code",
        "type",
        "status",
        "details",
        "violations",
        "retryDelay",
        "quotaId",
        "usage",
        "detail",
    )
    return {draw.choice(names): value_of(draw, depth + 1) for _ in range(draw.randrange(4))}


def test_bodies_of_any_kind_are_judged():
    draw = random.Random(1)
    for _ in range(MANY):
        status, body = draw.choice([200, 400, 402, 429, 500, 529]), value_of(draw)
        for given in (body, json.dumps(body), json.dumps(body).encode(), text_of(draw).encode("utf-8", "replace")):
            verdict = judge(status, given, {draw.choice(["retry-after", "x-should-retry"]): text_of(draw)})
            assert isinstance(verdict.action, Action)
            assert verdict.wait is None or (0 < verdict.wait < math.inf)
            assert verdict.info is not None


def test_headers_and_dates_of_any_kind_are_read():
    draw = random.Random(2)
    names = ["retry-after", "retry-after-ms", "date", "ratelimit", "ratelimit-policy", "ratelimit-reset"]
    names += [
        f"x-ratelimit-{part}-{unit}" for part in ("limit", "remaining", "reset") for unit in ("requests", "tokens")
    ]
    names += [f"anthropic-ratelimit-tokens-{part}" for part in ("limit", "remaining", "reset")]
    for _ in range(MANY):
        told = {name: text_of(draw) for name in draw.sample(names, 5)}
        reading = headers.read(told, draw.choice([200, 429]), wall=1e9)
        assert reading.retry_after is None or 0 <= reading.retry_after < math.inf
        for quota in reading.quotas:
            numbers = (quota.limit, quota.remaining, quota.reset, quota.per, quota.resets_in)
            assert all(number is None or (0 <= number < math.inf) for number in numbers)


def test_answers_and_events_of_any_kind_are_read_for_usage():
    draw = random.Random(3)
    for _ in range(MANY):
        reader = UsageReader(draw.choice(["", "gzip", "br", "identity"]))
        for _ in range(draw.randrange(4)):
            usage = {"prompt_tokens": value_of(draw), "output_tokens": value_of(draw), "tokens": value_of(draw)}
            event = f"data: {json.dumps({'usage': usage, 'meta': value_of(draw)})}\n\n{text_of(draw)}"
            reader.feed(event.encode("utf-8", "replace")[: draw.randrange(200)])
        usage = reader.usage()
        if usage is not None:
            assert all(n is None or 0 <= n < math.inf for n in (usage.input, usage.output, usage.total))


def test_errors_of_any_kind_are_sorted():
    draw = random.Random(4)
    for _ in range(MANY):
        error = Failed(value_of(draw))
        error.status_code = draw.choice([value_of(draw), 429, 500])
        error.response = draw.choice(
            [None, {"Error": value_of(draw), "ResponseMetadata": value_of(draw)}, value_of(draw)]
        )
        wait = retry_on(error)
        assert wait in {True, False} or 0 <= wait < math.inf
        rate_limit_info(error)
