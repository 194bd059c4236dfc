"""What is put together of a call out of its events."""

from __future__ import annotations

import pytest

import penstock
from penstock import Limiter, RateLimited, in_flight, per_minute, per_second
from penstock.events import Answered, Granted, Paused, Settled, Withdrawn
from penstock.usage import entries
from tests.usage.readings import calls_of

pytestmark = pytest.mark.anyio


def answered(status, usage=None, model="gpt-4o-mini", **more):
    return Answered("gpt-4o-mini", model, {"requests": 1, "tokens": 900}, usage or {}, 1.5, 2.5, status, **more)


async def test_a_call_is_one_row_with_its_user_units_wait_and_true_cost(ledger, virtual_time):
    limiter = Limiter(requests=per_second(1, burst=1), tokens=per_minute(1_000), name=str(ledger.path), on_event=ledger)
    async with limiter(tokens=100, flow="alice"):
        pass
    async with limiter(tokens=50, flow="bob") as permit:
        permit.settle(tokens=20)
        permit.settle(tokens=30)
    first, second = calls_of(ledger)
    assert (first.at, first.user, first.limiter, first.outcome) == (
        virtual_time.wall() - 1,
        "alice",
        str(ledger.path),
        "granted",
    )
    assert (first.estimated, first.settled, first.waited) == ({"requests": 1, "tokens": 100}, None, 0)
    assert (second.user, second.estimated, second.waited) == ("bob", {"requests": 1, "tokens": 50}, pytest.approx(1))
    assert second.settled == {"requests": 1, "tokens": 30}


async def test_a_settlement_finds_its_call_long_after_that_was_written(ledger):
    limiter = Limiter(tokens=per_minute(1_000), on_event=ledger)
    permits = [await limiter.acquire(tokens=amount) for amount in (1, 2, 3)]
    assert [call.settled for call in calls_of(ledger)] == [None, None, None]
    permits[1].settle(tokens=7)
    assert [call.settled for call in calls_of(ledger)] == [None, {"tokens": 7}, None]


async def test_the_user_is_that_of_the_block_where_the_call_does_not_say(ledger):
    limiter = Limiter(requests=per_second(100), on_event=ledger)
    with penstock.turn(flow="carol"):
        async with limiter:
            pass
        (await limiter.acquire(flow="dave")).close()
        limiter.acquire_nowait().close()
        with limiter():
            pass
    assert [call.user for call in calls_of(ledger)] == ["carol", "dave", "carol", "carol"]


async def test_what_was_refused_or_taken_back_is_no_call_that_was_sent(ledger):
    limiter = Limiter(requests=per_second(1, burst=1), tokens=per_minute(100), on_event=ledger)
    (await limiter.acquire(tokens=40, flow="alice")).cancel()
    (await limiter.acquire(tokens=40)).close()
    with pytest.raises(RateLimited):
        await limiter.acquire(tokens=40, max_wait=0, flow="bob")
    withdrawn, granted, refused = calls_of(ledger)
    assert (withdrawn.outcome, withdrawn.settled) == ("withdrawn", {"requests": 0, "tokens": 0})
    assert granted.outcome == "granted"
    assert (refused.outcome, refused.user, refused.estimated) == ("refused", "bob", {"requests": 1, "tokens": 40})


@pytest.mark.parametrize(
    ("status", "outcome"), [(200, "answered"), (429, "rejected"), (400, "failed"), (503, "failed"), (0, "lost")]
)
def test_an_answer_says_what_became_of_a_call(ledger, status, outcome):
    ledger(answered(status, flow="alice"))
    (call,) = calls_of(ledger)
    assert (call.outcome, call.status, call.user, call.model) == (outcome, status, "alice", "gpt-4o-mini")
    assert (call.waited, call.elapsed) == (1.5, 2.5)


async def test_a_grant_and_the_answer_to_it_are_one_call(ledger):
    """A ledger may listen to a client and to the limiter below it: nothing is counted twice."""
    limiter = Limiter(requests=per_second(10), tokens=per_minute(10_000), calls=in_flight(5), on_event=ledger)
    permit = await limiter.acquire(tokens=900, flow="alice")
    ledger(answered(200, {"input_tokens": 1_000, "output_tokens": 500}, call=id(permit)))
    permit.close()
    (call,) = calls_of(ledger)
    assert (call.user, call.model, call.outcome) == ("alice", "gpt-4o-mini", "answered")
    assert call.settled == {"requests": 1, "tokens": 1_500, "calls": 1}
    assert call.estimated["tokens"] == 900


@pytest.mark.parametrize(
    ("usage", "model", "status", "dollars"),
    [
        ({"input_tokens": 1_000_000, "output_tokens": 1_000_000}, "gpt-4o-mini", 200, 0.75),
        ({"input_tokens": 1_000_000, "output_tokens": 0}, "gpt-4o-mini-2024-07-18", 200, 0.15),
        ({"input_tokens": 1_000_000, "output_tokens": 0, "cached_tokens": 1_000_000}, "gpt-4o-mini", 200, 0.30),
        ({}, "gpt-4o-mini", 200, 900 * 0.15 / 1e6),
        ({"input_tokens": 1_000}, "no-such-model", 200, None),
        ({}, "gpt-4o-mini", 429, None),
        ({}, None, 200, None),
    ],
)
def test_dollars_are_the_price_of_what_was_used_else_of_what_was_estimated(ledger, usage, model, status, dollars):
    ledger(answered(status, usage, model))
    (call,) = calls_of(ledger)
    assert call.dollars == (None if dollars is None else pytest.approx(dollars))


async def test_a_limiter_of_dollars_says_the_dollars_itself(ledger):
    limiter = Limiter(dollars=per_minute(100), on_event=ledger)
    permit = await limiter.acquire(dollars=2)
    permit.settle(dollars=0.5)
    assert [call.dollars for call in calls_of(ledger)] == [0.5]


MILLION = Granted("api", {"tokens": 1_000_000}, 0.0, "alice", 7)


def test_a_call_that_is_settled_after_its_answer_costs_what_it_is_settled_to(ledger):
    for event in (MILLION, answered(200, call=7), Settled("api", {"tokens": 2_000_000}, 7)):
        ledger(event)
    (call,) = calls_of(ledger)
    assert (call.settled, call.dollars) == ({"tokens": 2_000_000, "requests": 1}, pytest.approx(0.3))


def test_dollars_that_a_limiter_counts_are_those_of_the_call_whatever_the_price_of_its_answer(ledger):
    for event in (Granted("api", {"dollars": 2}, 0.0, "alice", 7), answered(200, {"input_tokens": 9.0}, call=7)):
        ledger(event)
    (call,) = calls_of(ledger)
    assert call.dollars == 2


def test_a_call_that_was_answered_stays_one_when_it_is_given_back(ledger):
    for event in (MILLION, answered(503, call=7), Withdrawn("api", {"tokens": 1_000_000}, 7)):
        ledger(event)
    (call,) = calls_of(ledger)
    assert (call.outcome, call.status) == ("failed", 503)


def test_a_waiter_that_left_is_a_call_that_took_nothing(ledger):
    ledger(Withdrawn("api", {"tokens": 5}))
    (call,) = calls_of(ledger)
    assert (call.outcome, call.estimated, call.settled) == ("withdrawn", {"tokens": 5}, {"tokens": 0})


def test_of_more_calls_than_are_kept_open_the_oldest_are_complete(ledger, monkeypatch):
    monkeypatch.setattr(entries, "_MOST_OPEN", 2)
    for number in (1, 2, 3):
        ledger(Granted("api", {"tokens": 10}, 0.0, call=number))
    for number in (1, 2, 3):
        ledger(Settled("api", {"tokens": number}, number))
    assert [call.settled for call in calls_of(ledger)] == [None, {"tokens": 2}, {"tokens": 3}]


def test_events_that_are_about_no_call_and_strange_ones_are_passed_over(ledger, caplog):
    class Shy:
        def __str__(self):
            raise RuntimeError

    for event in (Paused("api", 5.0, ()), None, "text", answered(200, flow=Shy()), answered(200, flow="\ud800")):
        ledger(event)
    assert [call.user for call in calls_of(ledger)] == ["<Shy>", "\\ud800"]
    assert caplog.text == ""
