"""The record of a user, from review to review, with plain numbers for moments."""

from __future__ import annotations

import pytest

from penstock.usage.caps import Cap, CapKey
from penstock.usage.quota import Quota, QuotaExceeded
from penstock.usage.reviews import Extra, UserRecord

DAY = CapKey("requests", "day", "UTC")
ENDS = 86_400.0
NEW = UserRecord("alice", {}, {})


def beyond(asked=3.0):
    """The error of a call that asks for so much of a cap of 10 that is used up."""
    return QuotaExceeded.of(Quota("alice", *DAY, 10.0, 10.0, ENDS, 0.0), asked, 0.0, ENDS)


def states(record):
    return [(review.state, review.allowed, review.calls) for review in record.reviews]


def test_calls_that_want_a_review_are_one_review_that_knows_the_last_of_them():
    record = NEW.asked(beyond(3), 1.0).asked(beyond(5), 2.0)
    assert states(record) == [("pending", 0.0, 2)]
    assert (record.reviews[0].asked, record.reviews[0].at, record.reviews[0].until) == (5.0, 1.0, ENDS)


def test_after_a_refusal_no_other_review_is_noted_until_the_period_ends():
    refused = NEW.asked(beyond(), 1.0).decided("requests", None, 0.0, "carol", 2.0)
    assert states(refused.asked(beyond(), 3.0)) == [("refused", 0.0, 2)]
    assert states(refused.asked(beyond(), ENDS)) == [("refused", 0.0, 1), ("pending", 0.0, 1)]


def test_decisions_alike_of_one_function_are_one_review_and_their_units_add_up():
    record = NEW
    for allowed in (2.0, 3.0, 0.0, 4.0):
        record = record.decided_at_once(beyond(), allowed, "boss", 1.0)
    assert states(record) == [("approved", 5.0, 2), ("refused", 0.0, 1), ("approved", 4.0, 1)]
    assert record.extra == {DAY: Extra(9.0, ENDS)}


def test_what_was_allowed_counts_until_the_period_ends_and_is_forgotten_with_the_next_decision():
    record = NEW.decided_at_once(beyond(), 2.0, "boss", 1.0)
    assert (record.extra_at(ENDS - 1), record.changes_at(1.0)) == ({DAY: 2.0}, ENDS)
    assert (record.extra_at(ENDS), record.changes_at(ENDS)) == ({}, float("inf"))
    week = (Cap(70, "week"), 7 * ENDS)
    later = record.decided("requests", week, 1.0, "carol", ENDS)
    assert later.extra == {CapKey("requests", "week", "UTC"): Extra(1.0, 7 * ENDS)}


def test_an_approval_allows_what_was_asked_for_unless_it_says_how_much():
    pending = NEW.asked(beyond(3), 1.0)
    assert states(pending.decided("requests", None, None, "carol", 2.0)) == [("approved", 3.0, 1)]
    assert states(pending.decided("requests", None, 8.0, "carol", 2.0)) == [("approved", 8.0, 1)]


@pytest.mark.parametrize(
    ("cap", "words"),
    [(None, "'alice' has no cap of requests"), ((Cap(10, "day"), ENDS), "no pending review of requests: say how many")],
)
def test_an_approval_of_nothing_that_was_asked_for_needs_a_cap_and_a_number(cap, words):
    with pytest.raises(ValueError, match=words):
        NEW.decided("requests", cap, None, "carol", 1.0)
