"""A client that is told no limits, against servers of many kinds. Twenty seeds of it: benchmarks/learning.py."""

from __future__ import annotations

import pytest

from benchmarks.learning import COLUMNS, Column, Result, run
from penstock import Rate, sliding
from penstock.simulator import Window

THEIR_OWN = {"four clients", "four, one by one", "no headers, a drop"}


def run_within(name: str, seconds: float, seed: int = 1) -> Result:
    """One run of a column holds what the column promises; one short run varies more than the mean of twenty seeds."""
    column = COLUMNS[name]
    result = run(column, seed=seed, seconds=seconds)
    assert result.refused <= column.most + 2.5
    assert result.used >= column.least - 0.02
    return result


@pytest.mark.parametrize("name", [each for each in COLUMNS if each not in THEIR_OWN])
def test_whatever_the_server_is_its_quota_is_used_and_next_to_nothing_is_refused(name):
    column = COLUMNS[name]  # small requests are many, so less time shows as much
    run_within(name, 450.0 if "changes" in column.simulation else 200.0 if column.mean < 1_000 else 300.0)


def test_four_clients_that_know_nothing_of_each_other_share_evenly():
    assert run_within("four clients", 300.0, seed=3).uneven <= 1.5


def test_clients_that_come_one_by_one_get_as_much_as_those_that_were_first():
    """Those who come find nothing left but what the others leave to them."""
    assert run_within("four, one by one", 480.0).uneven <= 1.5


def test_after_a_drop_the_rate_is_back_within_ten_seconds():
    """Nothing is told, the quota halves for a minute, and comes back at 300 s."""
    result = run_within("no headers, a drop", 330.0)
    assert sum(310 <= at < 320 for at in result.admitted) >= 0.85 * 500


@pytest.mark.parametrize("burst", [5, 40])
@pytest.mark.parametrize("dialect", ["openai", "azure", "anthropic", "groq", "mistral"])
def test_a_burst_far_below_the_limit_is_learned_from_every_services_headers(dialect, burst):
    """600 a minute, of which a few at once; each service tells in its own words when all of those are back."""
    account = {"dialect": dialect, "requests": Rate(600, 60, burst), "tokens": None}
    result = run(Column(account, latency=0.3, tokens=False), seed=1, seconds=14.0)
    first = result.admitted[1]  # until the first answer is there, one request is in flight
    assert result.admitted[burst + 60 - 1] - first <= 1.3 * 6.0
    assert result.refused == 0


@pytest.mark.parametrize("kind", [sliding, Window])
@pytest.mark.parametrize(("amount", "per"), [(20, 2), (10, 5), (50, 10), (100, 30)])
def test_a_window_of_any_length_is_learned_where_its_end_is_told_and_its_length_is_not(amount, per, kind):
    """In OpenAI's headers. Some of what they tell of it, a bucket of another period would tell too."""
    account = {"requests": kind(amount, per), "tokens": None}
    result = run(Column(account, latency=0.03, tokens=False), seed=1, seconds=4.9 * per)
    assert sum(at >= 2 * per for at in result.admitted) >= 0.5 * 3 * amount
    assert result.refused <= 20
