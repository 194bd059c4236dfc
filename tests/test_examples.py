"""The shipped file of requests is what its README says, and the demo's limits make it worth watching."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest

from penstock import limits

ROOT = Path(__file__).resolve().parent.parent
TEXT = {"messages", "content", "text", "input", "instructions"}


def texts(value):
    """All text content of a body, wherever the format puts it."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for each in value:
            yield from texts(each)
    elif isinstance(value, dict):
        for key in TEXT & value.keys():
            yield from texts(value[key])


@pytest.fixture(scope="module")
def rows():
    return [json.loads(line) for line in (ROOT / "examples/requests.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def costs(rows):
    """Tokens by the service's own rule: a quarter of the bytes of all text, and four more unless it is to be
    embedded."""

    def cost(row):
        size = sum(len(text.encode()) for text in texts(row["body"]))
        return math.ceil(size / 4) + (0 if row["url"] == "/v1/embeddings" else 4)

    return [cost(row) for row in rows]


@pytest.fixture(scope="module")
def demo_limits():
    """Those that `make demo` gives on the command line."""
    line = re.search(r"^DEMO_LIMITS := (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)[1]
    return {unit: limits.parse(rate) for unit, _, rate in (each.partition("=") for each in line.split(","))}


def test_every_row_can_be_told_from_every_other(rows):
    assert len(rows) == len({row["custom_id"] for row in rows}) >= 420


def test_the_rows_spread_over_two_orders_of_magnitude(rows, costs):
    """Short and long, by all three endpoints."""
    assert max(costs) > 100 * min(costs)
    assert {row["url"] for row in rows} == {"/v1/chat/completions", "/v1/responses", "/v1/embeddings"}


def test_the_readme_tells_the_numbers(rows, costs, demo_limits):
    readme = (ROOT / "examples/README.md").read_text(encoding="utf-8")
    numbers = (len(rows), min(costs), max(costs), sum(costs))
    assert [f"{number:,}" for number in numbers if f"{number:,}" not in readme] == []
    assert f"less than {best_time(costs, demo_limits):.1f} seconds" in readme


def best_time(costs, demo_limits):
    """T*: no schedule ends sooner, since what is above the burst has to flow in at the rate."""
    work = {"requests": len(costs), "tokens": sum(costs)}
    return max((work[unit] - rate.burst) / rate.rate for unit, rate in demo_limits.items())


def test_the_demo_is_bound_by_requests_and_by_tokens_in_turn(costs, demo_limits):
    """First come, first served, in plain arithmetic: each limit is waited for at some time, and nothing is lost by
    order."""
    rates = list(demo_limits.values())
    levels = [rate.burst for rate in rates]
    waited = dict.fromkeys(demo_limits, 0.0)
    now = 0.0
    for tokens in costs:
        cost = {"requests": 1, "tokens": tokens}
        waits = {
            unit: max(0.0, (cost[unit] - level) / rate.rate)
            for (unit, rate), level in zip(demo_limits.items(), levels, strict=True)
        }
        slowest = max(waits, key=waits.get)
        waited[slowest] += waits[slowest]
        now += waits[slowest]
        levels = [
            min(rate.burst, level + waits[slowest] * rate.rate) - cost[unit]
            for unit, rate, level in zip(demo_limits, rates, levels, strict=True)
        ]
    assert 25 <= now <= 50
    assert all(waited[unit] > 0.15 * now for unit in demo_limits), waited
    assert best_time(costs, demo_limits) > 0.99 * now
