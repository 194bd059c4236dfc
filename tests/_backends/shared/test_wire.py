"""What a store answers to a batch: it is read as it is meant, or it is no answer, and then nothing was noted."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest

from penstock import Limiter, StoreError, per_second
from penstock._backends.shared.wire import Admitted, BatchInFlight, NotNow, OthersTurn
from penstock._core import operations as codes
from penstock.stores import SQLiteStore
from penstock.stores.contract import Reply

INF = math.inf


@pytest.fixture
def states(tmp_path):
    """Two limits of one name."""
    limiter = Limiter(requests=per_second(10), tokens=per_second(100), name="x", store=SQLiteStore(tmp_path / "x.db"))
    (part,) = limiter._backend.sets
    return part.order


def asked(states, *runs):
    """A batch that asks for runs of requests: how many, and what each takes of both limits."""
    batch = BatchInFlight()
    for times, *amounts in runs:
        charges = tuple(zip(states, map(float, amounts), strict=True))
        batch.acquire_each([SimpleNamespace(charges=charges) for _ in range(times)], charges, 0.02)
    return batch


def said(*verdicts):
    return Reply(1e15, {}, (5.0,), tuple(map(float, verdicts)), (0.0, 0.0, 0.0) * 2)


def test_requests_that_are_alike_are_one_run(states):
    batch = asked(states, (50, 1, 5), (1, 1, 7), (2, 1, 5))
    assert batch.operations == [codes.SERIES, 0.02, 1, 2, 3, 0, 1, 50, 1, 5, 1, 1, 7, 2, 1, 5]
    assert len(batch.asked) == 53


def test_the_receipts_of_a_run_follow_from_the_first(states):
    batch = asked(states, (3, 1, 5), (1, 2, 7))
    assert batch.read(said(3, 11, 105, 1, 15, 122)) == [(11, 105), (12, 110), (13, 115), (15, 122)]


def test_behind_the_first_run_that_is_not_whole_verdicts_stand_one_by_one(states):
    first, second, third, last = asked(states, (3, 1, 5), (1, 2, 7)).read(
        said(1, 11, 105, 0.5, 12, 110, -1.25, 0, -1.02, -1.1)
    )
    assert first == (11, 105)
    assert (type(second), second.wait, second.receipts) == (Admitted, 0.5, (12, 110))
    assert (type(third), third.wait, third.limit) == (NotNow, 0.25, states[0])
    assert (type(last), last.wait, last.ahead) == (OthersTurn, pytest.approx(0.02), pytest.approx(0.1))


NONSENSE = {
    "more than were asked for": (4, 11, 105),
    "a part of one": (1.5, 11, 105, -2, 0),
    "fewer than none": (-1, 11, 105),
    "not a number of them": (math.nan, 11, 105),
    "receipts are missing": (3, 11),
    "verdicts are missing": (1, 11, 105, 0.0, 12, 110),
    "there is too much": (3, 11, 105, 0),
    "a receipt of a run is no number": (3, -INF, 105),
    "a receipt of one is no number": (2, 11, 105, 0.0, 13, -INF),
    "another's turn that never ends": (2, 11, 105, -INF, -1.1),
    "another's turn that is ahead for ever": (2, 11, 105, -1.02, -INF),
    "a booking for never": (2, 11, 105, -INF, codes.BOOKED),
    "a limit that is not there": (2, 11, 105, -1.5, 2),
}


@pytest.mark.parametrize("verdicts", NONSENSE.values(), ids=NONSENSE)
def test_what_makes_no_sense_is_no_answer(verdicts, states):
    """A receipt that is no number would come back to the store with a refund, and damage the row for every process."""
    batch = asked(states, (3, 1, 5))
    with pytest.raises(StoreError, match="makes no sense"):
        batch.read(said(*verdicts))
    assert batch.epochs == {}
