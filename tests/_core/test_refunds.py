"""What a bucket gives back, beside the rule itself: the least that it missed since, remembered charge by charge."""

from __future__ import annotations

import itertools
import math
import random
from heapq import heappop, heappush

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock import Rate
from penstock._core import refunds
from penstock._core.bucket import Bucket
from penstock._core.refunds import Refunds


class Remembered:
    """A bucket beside what it missed right before each charge, which is more than a real one can afford to remember.

    `exactly`: give back just what the rule says.
    """

    def __init__(self, limit: Rate, *, exactly: bool = False) -> None:
        self.bucket = Bucket(limit)
        self.exactly = exactly
        self.before: list[list[float]] = []  # receipt of a charge, and what was missing right before it
        self.given = 0.0

    def charge(self, cost: float, now: float) -> tuple[float, float] | None:
        missed = self.bucket.used(now)
        receipt = self.bucket.charge_if_ready(cost, now)
        if receipt is not None:
            self.before.append([receipt[0], missed])
        return receipt

    def give_back(self, amount: float, receipt: tuple[float, float], now: float) -> None:
        later = list(itertools.takewhile(lambda entry: entry[0] > receipt[0], reversed(self.before)))
        given = exact = max(0.0, min([amount, self.bucket.used(now), *(missed for _, missed in later)]))
        if self.exactly:
            self.bucket.offset += given
        else:
            level = self.bucket.level(now)
            self.bucket.give_back(amount, receipt, now)
            given = self.bucket.level(now) - level
            assert given <= exact + 1e-6
        for entry in later:
            entry[1] -= given
        self.given += given


STEPS = st.lists(
    st.tuples(st.sampled_from(["charge", "charge", "refund"]), st.sampled_from([0, 0, 1, 5, 30, 120]), st.floats(0, 1)),
    max_size=80,
)


@given(st.integers(20, 200), STEPS, st.sampled_from([4, 256]))
def test_it_never_gives_more_than_would_have_been_missed_less_at_every_moment_since(burst, steps, most):
    """However few stretches it tells apart."""
    both, now, out = Remembered(Rate(1, 1.0, burst)), 0.0, []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(refunds, "_MOST", most)
        for kind, gap, share in steps:
            now += gap
            if kind == "charge":
                cost = 1 + int(share * (burst - 1))
                receipt = both.charge(cost, now)
                if receipt is not None:
                    out.append((cost, receipt))
            elif out:
                cost, receipt = out.pop(int(share * (len(out) - 1)))
                both.give_back(int(share * cost), receipt, now)


@pytest.mark.parametrize(
    ("burst", "latency"), [(1_000, 0.2), (1_000, 1), (5_000, 1), (5_000, 5), (60_000, 5), (60_000, 20)]
)
def test_of_calls_that_were_thought_too_expensive_nearly_as_much_comes_back_as_by_the_rule(burst, latency):
    """1,000 tokens a second, charged 100 a call, which turn out to be 30 once the answer is there.

    With all refunds taken for refill, which is safe too, it was 57 % with the last of these, and 27 % where an answer
    takes as long as it takes to fill the bucket.
    """
    totals = []
    for exactly in (True, False):
        both, chance, now, out = Remembered(Rate(1_000, 1.0, burst), exactly=exactly), random.Random(2), 0.0, []
        for _ in range(4_000):
            now += 0.01
            while len(out) < 40 * latency and (receipt := both.charge(100, now)) is not None:
                heappush(out, (now + latency * chance.lognormvariate(0, 0.5), receipt))
            while out and out[0][0] <= now:
                both.give_back(70, heappop(out)[1], now)
        totals.append(both.given)
    assert totals[1] >= 0.88 * totals[0] > 0


@given(
    costs=st.lists(st.integers(1, 50), min_size=1, max_size=40),
    order=st.randoms(use_true_random=False),
    parts=st.lists(st.sampled_from([0.0, 0.1, 0.25, 0.5, 1.0]), min_size=40, max_size=40),
)
def test_what_is_given_back_at_one_moment_comes_back_exactly_in_whatever_order(costs, order, parts):
    """Fifty calls that fail to connect are cancelled as it happens, not the latest first: two thirds came back once."""
    bucket = Bucket(Rate(1, 1.0, 50 * 40))
    out = [(cost, bucket.charge(cost, 0.0)) for cost in costs]
    order.shuffle(out)
    kept = 0
    for (cost, receipt), part in zip(out, parts, strict=False):
        back = round(part * cost)
        kept += cost - back
        bucket.give_back(back // 2, receipt, 0.0)  # in two steps
        bucket.give_back(back - back // 2, receipt, 0.0)
    assert bucket.level(0.0) == bucket.burst - kept


def test_of_very_many_refunds_a_little_is_lost_and_little_is_remembered():
    bucket, order = Bucket(Rate(1, 1.0, 5_000)), random.Random(1)
    out = [bucket.charge(1, 0.0) for _ in range(5_000)]
    order.shuffle(out)
    for receipt in out:
        bucket.give_back(1, receipt, 0.0)
        assert len(bucket.refunds._until) <= 256
    assert 0.94 * 5_000 <= bucket.level(0.0) <= 5_000
    receipt = bucket.charge(1_000, 0.0)
    for _ in range(1_000):  # of one call, bit by bit
        bucket.give_back(1, receipt, 0.0)
    assert len(bucket.refunds._until) <= 256


def test_once_it_was_full_nothing_is_remembered_of_before():
    bucket = Bucket(Rate(1, 1.0, 100))
    for start in (0.0, 1_000.0):
        for _ in range(9):
            bucket.give_back(5, bucket.charge(10, start), start)
        assert len(bucket.refunds._until) == 9


def remembered(of):
    return list(zip(of._until, of._least, of._flowed, of._returned, strict=True))


def test_a_refund_divides_the_stretch_of_its_charge_and_lowers_what_was_missed_after_it():
    of = Refunds()
    assert of.give(1.0, 10.0, 10.0, 5.0) == 1.0
    assert remembered(of) == [(10, -math.inf, 5, 1)]
    assert (of.seen(10.0), of.seen(10.5)) == (True, False)
    assert of.give(0.5, 60.0, 100.0, 6.0) == 0.5
    assert remembered(of) == [(10, -math.inf, 5, 1), (60, 4, 5, 0.5), (100, 3.5, 5, 0)]
    assert of.give(2.0, 60.0, 100.0, 6.5) == 2.0, "of the same charge, with no other in between"
    assert remembered(of) == [(10, -math.inf, 5, 1), (60, 4, 5, 2.5), (100, 1.5, 5, 0)]
    assert of.give(30.0, 60.0, 150.0, 58.5) == 30.0, "by the stretches alone: of its receipt, 1.5 is left"
    assert remembered(of) == [(10, -math.inf, 5, 1), (60, 4, 5, 32.5), (100, -28.5, 5, 0), (150, 11.5, 55, 0)]
    assert of.give(30.0, 60.0, 150.0, 88.5) == 11.5, "as much as was missed at least in the stretches since"
    assert of.give(30.0, 60.0, 150.0, 100.0) == 0
    assert of.give(30.0, 120.0, 150.0, 100.0) == 20.0, "by its receipt, which tells more than the stretch that it is in"
    assert of.give(40.0, 140.0, 160.0, 125.0) == 20.0, "by its receipt in the one stretch, and by the other"
    assert of.give(30.0, 160.0, 160.0, 155.0) == 5.0, "no more than is missed now"


def test_what_was_given_back_of_later_charges_counts_for_the_earlier_ones():
    of = Refunds()
    for receipt, amount in ((20.0, 4.0), (30.0, 5.0), (20.0, 1.0)):
        assert of.give(amount, receipt, 30.0, of._total) == amount
    assert of.give(9.0, 10.0, 30.0, 10.0) == 9.0, "as much as it has flowed in, but all of that came from the others"


def test_what_was_missed_before_a_charge_is_of_no_matter_to_it():
    of = Refunds()
    of.give(1.0, 10.0, 10.0, 0.0)
    of.give(1.0, 20.0, 20.0, 9.5)
    assert of._least == [-math.inf, 0.5]
    of.give(1.0, 30.0, 100.0, 15.0)
    of.give(1.0, 30.0, 150.0, 60.0)
    assert of.give(10.0, 30.0, 160.0, 90.0) == 10.0


def test_once_it_may_have_been_full_nothing_is_remembered_of_before():
    of = Refunds()
    of.give(1.0, 10.0, 10.0, 5.0)
    of.give(1.0, 30.0, 30.0, 10.0)
    assert remembered(of) == [(30, 0, 9, 1)]
    of.give(1.0, 60.0, 60.0, 29.0)
    assert len(remembered(of)) == 2


def test_neighbours_are_taken_together_and_help_fewer(monkeypatch):
    monkeypatch.setattr(refunds, "_MOST", 4)
    of = Refunds()
    for receipt in (10.0, 11.0, 40.0, 90.0):
        of.give(1.0, receipt, 90.0, of._total)
    assert [(until, returned) for until, *_, returned in remembered(of)] == [(10, 1), (11, 1), (40, 1), (90, 1)]
    of.give(1.0, 41.0, 90.0, of._total)
    assert remembered(of) == [(41, -math.inf, 0, 1), (90, -math.inf, 0, 1)], (
        "what came back of 10, 11 and 40 helps nobody"
    )
    for receipt in (60.0, 61.0, 20.0):
        of.give(1.0, receipt, 90.0, of._total)
    assert [(until, returned) for until, *_, returned in remembered(of)] == [(41, 2), (61, 1), (90, 1)], (
        "60 counts as 41"
    )
