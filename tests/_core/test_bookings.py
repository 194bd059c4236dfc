"""Bookings: an order across processes that holds nothing, so no history of them can break a limit."""

from __future__ import annotations

import math
import random
from itertools import pairwise

import pytest

from penstock._core import bookings
from penstock._core.bookings import NEW
from penstock._core.decision import decide
from penstock._core.operations import ACQUIRE, BOOK, BOOKED, CHARGE, DROP, FLOW, GIVE_BACK, PAUSE, RANK, RENEW
from penstock._core.rows import BUCKET, read_row
from tests.stores.admissions import excess_of_amounts

NOW, SECOND = 1_785_000_000e6, 1e6


class Queue:
    """One row of buckets, and requests that ask it as processes do. Time is in seconds from its beginning."""

    def __init__(self, *buckets, horizon=0.025):
        self.limits = [[BUCKET, rate, burst, 0.0, 0.0] for rate, burst in buckets]
        self.rows, self.now, self.horizon, self.numbers = [None], 0.0, horizon, 0
        self.admitted = []  # moment, amounts

    def do(self, *operations):
        decision = decide(self.rows, [self.limits], [float(x) for x in operations], 1.0, NOW + round(self.now * SECOND))
        self.rows = decision.rows
        return decision

    def ask(
        self, *amounts, number=0, due=NEW, priority=0, waited=0.0, flow=0.0, member=0.0, within=math.inf, horizon=None
    ):
        """Ask as a request that claims the booking `number`, or has none; returns its wait and its booking, or None and
        0."""
        if not number:
            self.numbers += 1
            number = self.numbers
        charges = [x for limit, amount in enumerate(amounts) if amount for x in (limit, amount)]
        ahead = self.horizon if horizon is None else horizon
        decision = self.do(
            *((FLOW, flow, member, 1.0, 0.0, 0.0) if flow else ()), RANK, priority, waited, 30.0, BOOK, number, due,
            within, ACQUIRE, ahead, 1.0, len(charges) // 2, *charges,
        )  # fmt: skip
        wait = decision.verdicts[0]
        if wait >= 0:
            self.admitted.append((self.now + wait, amounts))
            self.receipts, self.epoch = decision.verdicts[1:], decision.epochs[0]
            return wait, 0
        return -1.0 - wait, number if decision.verdicts[1] == BOOKED else None

    @property
    def booked(self):
        return read_row(self.rows[0], NOW + round(self.now * SECOND), self.limits, -1.0).bookings

    @property
    def used(self):
        return read_row(self.rows[0], NOW + round(self.now * SECOND), self.limits, -1.0).used

    def excess(self, limit):
        _, rate, burst, *_ = self.limits[limit]
        return excess_of_amounts([(moment, amounts[limit]) for moment, amounts in self.admitted], rate, burst)


def lined_up(count, *, amount=1.0, rate=50.0, burst=1.0, **who):
    """A bucket that is empty, and so many that were told when to come again: (number, moment)."""
    queue = Queue((rate, burst))
    while queue.ask(amount, **who)[1] == 0:
        pass
    waiting = [(queue.numbers, queue.booked[0][bookings.DUE])]
    for _ in range(count - 1):
        wait, number = queue.ask(amount, **who)
        waiting.append((number, wait))
    return queue, waiting


def test_a_call_that_comes_later_is_told_a_later_moment_and_holds_nothing():
    queue, waiting = lined_up(10)
    moments = [moment for _, moment in waiting]
    assert [after - before for before, after in pairwise(moments)] == pytest.approx([0.02] * 9, abs=1e-6)
    charged = len(queue.admitted)
    assert queue.used == pytest.approx([charged], abs=1e-6)


def test_a_booking_is_charged_at_the_moment_that_was_told():
    queue, waiting = lined_up(10)
    for number, due in waiting:
        queue.now = due - 0.003
        assert queue.ask(1.0, number=number, due=0.003) == (pytest.approx(0.003, abs=2e-6), 0)
    assert not queue.booked
    assert queue.excess(0) <= 1e-3


def test_a_claim_before_its_moment_goes_where_something_was_given_back_and_delays_no_other():
    """Behind another it comes sooner by what was given back: 1 unit, at 1 a second."""
    queue, [(first, its_moment), (second, later)] = lined_up(2, amount=2.0, rate=1.0, burst=3.0)
    queue.do(GIVE_BACK, 1, 0, 1.0, queue.epoch, queue.receipts[0])
    assert queue.ask(2.0, number=second, due=later) == (pytest.approx(later - 1.0), second)
    assert queue.ask(2.0, number=first, due=its_moment) == (0.0, 0)
    assert [booking[bookings.ID] for booking in queue.booked] == [second]


def test_a_claim_before_its_moment_that_cannot_go_keeps_its_place():
    queue, waiting = lined_up(3)
    for number, moment in reversed(waiting):
        assert queue.ask(1.0, number=number, due=moment, horizon=0.0) == (pytest.approx(moment), number)
    assert [booking[bookings.DUE] for booking in sorted(queue.booked)] == pytest.approx([due for _, due in waiting])
    queue.now = waiting[0][1]
    assert queue.ask(1.0, number=waiting[0][0], due=0.0)[1] == 0


@pytest.mark.parametrize("urgent", [{"priority": 1}, {"flow": 9.0, "member": 2.0}], ids=["priority", "flow"])
def test_a_call_that_is_more_urgent_passes_all_that_only_have_a_booking(urgent):
    """However many there are."""
    waits = []
    for count in (5, 50, 200):
        queue, _ = lined_up(count, **({"flow": 5.0, "member": 1.0} if "flow" in urgent else {}))
        queue.ask(1.0, **urgent)
        waits.append(queue.ask(1.0, **urgent)[0])
    assert max(waits) <= 0.11
    assert waits[2] == waits[1]


def test_one_that_was_passed_goes_to_the_end_and_the_next_ones_keep_their_moments():
    queue, waiting = lined_up(10)
    (first, due), *others = waiting
    queue.now = due - 0.003
    while queue.ask(1.0, priority=1)[1] == 0:
        pass
    last = queue.numbers
    queue.do(DROP, last, 0)
    wait, number = queue.ask(1.0, number=first, due=0.003)
    assert (queue.now + wait > others[-1][1], number) == (True, first)
    missing = queue.used[0] / 50 - 0.003
    queue.now = others[2][1] - 0.003
    assert queue.ask(1.0, number=others[2][0], due=0.003)[1] == 0, missing


def test_a_call_that_has_waited_for_long_passes_those_of_a_higher_priority():
    """One level for every 30 seconds."""
    queue, _ = lined_up(10, priority=1)
    behind, _ = queue.ask(1.0)
    as_they, _ = queue.ask(1.0, waited=30.0)
    before, _ = queue.ask(1.0, waited=61.0)
    assert before < 0.1 < behind <= as_they


def test_age_alone_passes_nobody_of_the_same_priority():
    queue, _ = lined_up(10)
    assert queue.ask(1.0, waited=100.0)[0] > 0.2


def test_a_small_request_takes_what_a_large_one_does_not_need_yet():
    """It delays nobody, so it goes at once; one that would is told to come after the large one."""
    queue = Queue((1000.0, 100.0))
    queue.ask(100.0)
    assert queue.ask(100.0, horizon=0.0) == (pytest.approx(0.1), 2)
    queue.now = 0.05
    assert queue.ask(1.0)[1] != 0
    queue.do(DROP, 2, 0)
    assert queue.ask(1.0)[0] == 0.0


def test_a_booking_that_is_dropped_leaves_nothing_behind():
    queue, waiting = lined_up(5)
    used = queue.used
    for number, _ in waiting:
        queue.do(DROP, number, 0)
    assert (queue.used, queue.booked) == (used, [])


def test_a_drop_is_of_the_row_that_it_names_and_the_batch_goes_on_behind_it():
    limits, numbers = [[BUCKET, 50.0, 1.0, 0.0, 0.0]], [5, 6, 7]
    booked = [x for number in numbers for x in (BOOK, number, NEW, math.inf, ACQUIRE, 0.0, 1.0, 1, 0, 1.0)]
    row = decide([None], [limits], [CHARGE, 1, 0, 9.0, RANK, 0, 0.0, 30.0, *booked], 1.0, NOW).rows[0]
    both = decide([row, row], [limits, limits], [DROP, 6, 1, DROP, 5, 0, DROP, 7, 0, DROP, 9, 0], 1.0, NOW).rows
    left = [[one[bookings.ID] for one in read_row(each, NOW, limits, -1.0).bookings] for each in both]
    assert left == [[6.0], [5.0, 7.0]]


def test_a_booking_that_nobody_claims_is_waited_for_for_a_moment_and_then_forgotten():
    """Its process has died."""
    queue, _ = lined_up(1, priority=1)
    due = queue.booked[0][bookings.DUE]
    queue.now = due + 0.9 * bookings.LATE
    _, number = queue.ask(1.0)
    assert number, "the other is about to come"
    queue.do(DROP, number, 0)
    queue.now = due + 1.1 * bookings.LATE
    assert queue.ask(1.0)[1] == 0, "it is late"
    queue.now = due + 1.1 * bookings.EXPIRED
    queue.do(RENEW, 1, 0)
    assert all(booking[bookings.PRIORITY] == 0 for booking in queue.booked)


def test_a_call_that_does_not_wait_so_long_is_told_so_and_has_no_booking():
    queue, _ = lined_up(5)
    before = len(queue.booked)
    assert queue.ask(1.0, within=0.05)[1] is None
    assert len(queue.booked) == before


def test_a_row_keeps_a_bounded_number_of_bookings_and_counts_all():
    """Who comes after four hundred is told the moment after four hundred, and all of them can claim theirs."""
    queue, waiting = lined_up(400)
    assert len(queue.booked) == bookings.MOST
    assert waiting[-1][1] - waiting[0][1] == pytest.approx(399 * 0.02, rel=1e-6)
    granted = 0
    for number, due in waiting:
        queue.now = due - 0.003
        granted += queue.ask(1.0, number=number, due=0.003)[1] == 0
    assert granted == 400
    assert not queue.booked


@pytest.mark.parametrize("seed", range(12))
def test_no_history_of_bookings_breaks_a_limit(seed):
    """Requests that book, come early, late, never or twice, pass, drop and give back, with pauses and two limits: the
    worst interval holds."""
    rng = random.Random(seed)
    queue = Queue(
        (rng.choice([20.0, 100.0]), rng.choice([1.0, 5.0])), (rng.choice([100.0, 1000.0]), rng.choice([20.0, 100.0]))
    )
    known, granted = [], []
    for _ in range(1_000):
        queue.now += rng.choice([0.0, 0.001, 0.005, 0.02, 0.1 if rng.random() < 0.1 else 0.01])
        draw = rng.random()
        who = {
            "priority": rng.choice([0, 0, 0, 2]),
            "flow": rng.choice([0.0, 5.0, 6.0]),
            "waited": rng.choice([0.0, 20.0, 70.0]),
        }
        if known and (draw < 0.5 or len(known) > 12):
            number, due, amounts = min(known, key=lambda one: one[1]) if rng.random() < 0.6 else rng.choice(known)
            queue.now = max(
                queue.now, due + rng.choice([-0.003, -0.003, -0.003, 0.0, 0.1]) if rng.random() < 0.7 else 0.0
            )
            if rng.random() < 0.9:
                known.remove((number, due, amounts))
            wait, number = queue.ask(*amounts, number=number, due=due - queue.now, **who)
        elif draw < 0.55 and known:
            number, *_ = known.pop(rng.randrange(len(known)))
            queue.do(DROP, number, 0)
            continue
        elif 0.55 < draw < 0.554:
            queue.do(PAUSE, rng.choice([0.01, 0.1]), 1, rng.randrange(2))
            continue
        elif draw < 0.65 and granted:
            index, receipts, epoch, amounts = granted.pop(rng.randrange(len(granted)))
            queue.do(*(x for limit in (0, 1) for x in (GIVE_BACK, 1, limit, amounts[limit], epoch, receipts[limit])))
            queue.admitted[index] = (queue.admitted[index][0], (0.0, 0.0))
            continue
        else:
            amounts = (1.0, float(rng.randint(1, 20)))
            wait, number = queue.ask(*amounts, **who)
        if number:
            known.append((number, queue.now + wait, amounts))
        elif number == 0:
            granted.append((len(queue.admitted) - 1, queue.receipts, queue.epoch, amounts))
    assert len(queue.admitted) > 100
    for limit, (_, rate, burst, *_) in enumerate(queue.limits):
        assert queue.excess(limit) <= 1e-6 * rate + 1e-9 * burst


@pytest.mark.parametrize("seed", range(3))
def test_all_that_is_there_is_used_while_somebody_waits(seed):
    """Each process claims in time and asks for its next one: whatever they pass each other, nothing is lost, at one
    question a grant and one more per passing."""
    rng = random.Random(seed)
    queue, asked, passings, span = Queue((50.0, 1.0)), 0, 0, 10.0
    coming = [(0.0, process, 0, 0.0) for process in range((3, 20, 60)[seed])]
    urgent = 0.5
    while queue.now < span:
        if urgent <= min(coming)[0]:
            queue.now, urgent = urgent, urgent + rng.expovariate(4.0)
            wait, _ = queue.ask(1.0, priority=5, horizon=0.1)
            assert wait <= 0.085, "one grant under way, and one that was passed on to"
            asked, passings = asked + 1, passings + 1
            continue
        first = min(coming)
        coming.remove(first)
        queue.now, process, number, due = first
        wait, booking = queue.ask(1.0, number=number, due=due - queue.now if number else NEW)
        asked += 1
        if booking == 0:
            wait, booking = queue.ask(1.0)  # in the same batch
            if booking == 0:
                coming.append((queue.now + wait - 0.001, process, 0, 0.0))
                continue
        coming.append((queue.now + wait - 0.003, process, booking, queue.now + wait))
    assert len(queue.admitted) >= 0.97 * 50 * span
    assert asked <= len(queue.admitted) + 1.6 * passings + 130
