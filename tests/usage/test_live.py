"""How things stand now: the last minute of a ledger, and how full the limits of a store are."""

from __future__ import annotations

from datetime import timedelta

import pytest

from penstock import Limiter, calendar, in_flight, per_minute, sliding
from penstock.stores import SQLiteStore
from penstock.usage import History, Quotas
from penstock.usage.live import gauges_in, now_in
from tests.usage.recorded import MONDAY, recorded

SECOND = timedelta(seconds=1)


def test_the_last_minute_and_the_twenty_before_it(tmp_path):
    """The oldest first; what is older is not looked at, nor is another model's."""

    def write(recorder):
        recorder.limits(MONDAY, tokens=1_000, requests=10)
        recorder.call(MONDAY - timedelta(minutes=30), tokens=5)
        recorder.call(MONDAY - timedelta(minutes=19), tokens=7)
        recorder.call(MONDAY - timedelta(minutes=2), model="m-2", tokens=0)
        recorder.call(MONDAY, tokens=250, waited=3.0, count=2)
        recorder.call(MONDAY, status=429, tokens=0, user="bob")

    with History(recorded(tmp_path / "usage.db", write)) as history:
        one, other = sorted(now_in(history, (MONDAY + SECOND).timestamp()), key=lambda now: now.subject)
    assert (one.subject, one.totals.requests, one.totals.tokens, one.totals.waited, one.totals.rejected) == (
        "m-1",
        3,
        500,
        6,
        1,
    )
    assert one.trend == (7, *[0] * 18, 500)
    assert {(gauge.unit, gauge.used, gauge.capacity) for gauge in one.gauges} == {
        ("tokens", 500, 1_000),
        ("requests", 3, 10),
    }
    assert other.trend == (*[0] * 17, 1, 0, 0)  # it counts no tokens: requests
    assert (other.totals.calls, other.gauges) == (0, ())


@pytest.mark.anyio
async def test_a_store_shows_each_limit_of_each_kind_and_passes_over_the_rest(tmp_path):
    """And looking changes nothing."""
    store, watched = SQLiteStore(tmp_path / "limits.db"), SQLiteStore(tmp_path / "limits.db")
    limits = {
        "requests": [per_minute(60), calendar(1_000, "day")], "tokens": sliding(500, 3_600), "calls": in_flight(8),
    }  # fmt: skip
    limiter = Limiter(limits, name="chat", store=store)
    permit = await limiter.acquire(tokens=120)
    limiter.pause(30, "tokens")
    await limiter.refresh()
    with Quotas(store, {"requests": "5/day"}) as quotas:
        async with quotas("alice"):
            pass
        found = {(gauge.name, gauge.unit, gauge.limit): gauge for gauge in gauges_in(watched)}
    used = {key: (round(gauge.used), gauge.capacity) for key, gauge in found.items() if key[0] == "chat"}
    assert used == {
        ("chat", "calls", "8 in flight"): (1, 8),
        ("chat", "requests", "60/min"): (1, 60),
        ("chat", "requests", "1000 per calendar day"): (1, 1_000),
        ("chat", "tokens", "500 in any 1 hour"): (120, 500),
    }
    assert 0 < found["chat", "tokens", "500 in any 1 hour"].paused <= 30
    assert found["quota/used/alice", "requests", "5 per calendar day"].used == 1
    permit.close()
    await limiter.refresh()
    assert next(gauge.used for gauge in gauges_in(watched) if gauge.unit == "calls") == 0
    store.close()
    watched.close()


def test_caps_of_users_are_shown_as_they_were_set(tmp_path):
    """A user without a cap was shown one of 1e+15 a month, and of a cap of 0 a billionth was left."""
    store = SQLiteStore(tmp_path / "quotas.db")
    with Quotas(store, {"requests": "5/day"}) as quotas:
        quotas.set("alice", tokens="0/month")
        with quotas("alice", tokens=0), quotas("bob"):
            pass
        found = [(gauge.name.rpartition("/")[2], gauge.unit, gauge.limit, gauge.capacity) for gauge in gauges_in(store)]
    store.close()
    assert found == [
        ("alice", "requests", "5 per calendar day", 5),
        ("alice", "tokens", "0 per calendar month", 0),
        ("bob", "requests", "5 per calendar day", 5),
    ]


def test_a_name_that_is_forgotten_while_a_store_is_looked_at_has_no_limits(tmp_path, monkeypatch):
    store = SQLiteStore(tmp_path / "limits.db")
    monkeypatch.setattr(store, "names", lambda _: ["forgotten"])
    assert gauges_in(store) == []
    store.close()
