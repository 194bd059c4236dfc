"""The arithmetic of shared limits: what is admitted, in any order of reservations, refunds, debts and
reconfigurations."""

from __future__ import annotations

import itertools
import math
import random
import struct

import pytest

from penstock._core import entries
from penstock._core.bookings import NEW
from penstock._core.decision import decide, in_line, reshape
from penstock._core.operations import (
    ACQUIRE,
    BOOK,
    CHARGE,
    FLOW,
    GIVE_BACK,
    IN_LINE,
    LOWER,
    PAUSE,
    RANK,
    RENEW,
    RESUME,
    SERIES,
)
from penstock._core.rows import BUCKET, CALENDAR, LOG, RENEWED, TIMED, WINDOW
from tests.stores.admissions import excess_of_amounts

SECOND = 1e6
START = 1_785_000_000 * SECOND


class Book:
    """One row, and a clock that the test turns."""

    def __init__(self, *limits, now=START):
        self.limits = limits
        self.now = now
        self.row = None
        self.decision = None

    def do(self, *operations, owner=1.0):
        self.decision = decide([self.row], [self.limits], [float(x) for x in operations], owner, self.now)
        (self.row,) = self.decision.rows
        return list(self.decision.verdicts)

    def ask(self, *amounts, horizon=math.inf, stops=1, owner=1.0):
        """Wait and receipts, or −1 − wait and who is to blame."""
        charges = [x for limit, amount in enumerate(amounts) if amount for x in (limit, amount)]
        return self.do(ACQUIRE, horizon, stops, len(charges) // 2, *charges, owner=owner)

    @property
    def epoch(self):
        return self.decision.epochs[0]

    def used(self, limit=0):
        return self.decision.states[3 * limit + 1]


def rate(per_second, burst, overdraft=0):
    return (BUCKET, per_second, burst, overdraft, 0)


def test_a_full_bucket_of_ten_grants_ten_not_nine_and_not_eleven():
    book = Book(rate(1, 10))
    assert [book.ask(1, horizon=0)[0] for _ in range(10)] == [0] * 10
    assert book.ask(1, horizon=0) == [-2, 0]
    book.now += SECOND
    assert book.ask(1, horizon=0)[0] == 0


def test_tenths_add_up_to_the_whole():
    book = Book(rate(1, 1))
    assert [book.ask(0.1, horizon=0)[0] for _ in range(10)] == [0] * 10
    assert book.ask(0.1, horizon=0)[0] < -1


def test_after_the_wait_it_was_told_a_call_is_granted_and_not_before():
    book = Book(rate(3, 5))
    for _ in range(5):
        book.ask(1)
    wait = -1 - book.ask(2, horizon=0)[0]
    book.now += math.floor(wait * SECOND) - 1
    assert book.ask(2, horizon=0)[0] < 0
    book.now += 2
    assert book.ask(2, horizon=0)[0] == 0


def test_a_reservation_moves_the_state_ahead_in_every_limit():
    """Nobody can use in the meantime what is ready already, or it would be refilled before the call is made."""
    book = Book(rate(1, 10), rate(1, 10))
    book.ask(10, 0)
    assert book.ask(10, 10)[0] == 10
    assert book.ask(0, 1, horizon=0)[0] == pytest.approx(-1 - 11)


def test_two_limits_are_charged_both_or_neither():
    book = Book(rate(1, 10), rate(1, 1))
    book.ask(1, 1)
    assert book.ask(5, 1, horizon=0)[0] == -2
    assert (book.used(0), book.used(1)) == (1, 1)


def test_a_refused_waiter_is_not_passed_where_that_could_delay_it():
    book = Book(rate(1, 10), rate(1, 10))
    book.ask(5, 0)
    verdicts = book.do(ACQUIRE, 0.02, 1, 1, 0, 8, ACQUIRE, 0.02, 1, 1, 0, 1, ACQUIRE, 0.02, 1, 1, 1, 1)
    assert verdicts[0] == -4
    assert verdicts[2] < 0
    assert verdicts[4] == 0


SERIES_OF = {
    "all can go": ([rate(1, 100), rate(1, 100)], [(1, 5), (2, 7), (1, 80)], ()),
    "the second must wait": ([rate(1, 10), rate(1, 100)], [(6, 1), (6, 1), (1, 1)], ()),
    "none can go": ([rate(1, 10), rate(1, 100)], [(6, 1), (5, 1)], (CHARGE, 1, 0, 9)),
    "one limit": ([rate(1, 10)], [(4,), (4,), (4,)], ()),
    "all alike": ([rate(1, 100), rate(1, 100)], [(1, 2)] * 50, ()),
    "some of those that are alike": ([rate(1, 100), rate(1, 60)], [(1, 2)] * 50, ()),
    "some of the second run": ([rate(1, 100), rate(1, 60)], [(1, 2)] * 20 + [(1, 3)] * 20 + [(2, 1)] * 3, ()),
    "many runs": ([rate(1, 100), rate(1, 60)], [(1, 1), (2, 2)] * 12, ()),
    "fractions that are alike": ([rate(1, 1), rate(1, 100)], [(0.1, 1.7)] * 12, ()),
    "nothing of a limit": ([rate(1, 1), rate(1, 100)], [(0, 40)] * 3, ()),
    "nothing of what is used up": ([rate(1, 1), rate(1, 100)], [(0, 40)] * 3, (CHARGE, 1, 0, 9)),
    "three limits": ([rate(1, 10), rate(2, 20), rate(3, 30)], [(4, 1, 1), (4, 1, 28)], ()),
    "windows and overdraft": ([rate(1, 10, 1), (WINDOW, 9, 60, 0, 0)], [(4, 1), (12, 1)], ()),
    "paused": ([rate(1, 10), rate(1, 10)], [(1, 1), (1, 1)], (PAUSE, 5, 1, 1)),
    "an earlier one has stopped it": ([rate(1, 10), rate(1, 10)], [(1, 1)], (ACQUIRE, 0, 1, 1, 0, 11)),
    "one that is told its moment": ([rate(1, 10), rate(1, 10)], [(9, 1), (9, 1)], (BOOK, 7, NEW, 60)),
    "the second is told its moment": ([rate(1, 10), rate(1, 10)], [(1, 1)], (CHARGE, 1, 0, 10, BOOK, 7, NEW, 60)),
}


def one_by_one(verdicts, runs):
    """The verdicts on a series as those of its requests."""
    told, at = [], 0
    for times, *amounts in runs:
        granted = verdicts[at]
        at += 1
        if granted:
            for number in range(int(granted)):
                told += [0.0, *(verdicts[at + i] + number * amount for i, amount in enumerate(amounts))]
            at += len(amounts)
        if granted < times:
            break
    return [*told, *verdicts[at:]]


@pytest.mark.parametrize("which", SERIES_OF)
@pytest.mark.parametrize("flow", [(), (FLOW, 3, 4, 2, 0, 0)], ids=["", "of a flow"])
def test_a_series_is_decided_as_its_requests_one_after_the_other(which, flow):
    limits, asked, before = SERIES_OF[which]
    one, other = Book(*limits), Book(*limits)
    numbers = range(len(limits))
    each = [
        x
        for amounts in asked
        for x in (ACQUIRE, 0.02, 1, len(limits), *(y for pair in zip(numbers, amounts, strict=True) for y in pair))
    ]
    runs = [(len([*same]), *amounts) for amounts, same in itertools.groupby(asked)]
    series = (SERIES, 0.02, 1, len(limits), len(runs), *numbers, *(number for run in runs for number in run))
    behind = (CHARGE, 1, 0, 1)
    begin = len(Book(*limits).do(*flow, *before))  # of the verdicts on the series
    verdicts = one.do(*flow, *before, *series, *behind)
    verdicts = [*verdicts[:begin], *one_by_one(verdicts[begin:], runs)]
    assert verdicts == pytest.approx(other.do(*flow, *before, *each, *behind))
    assert one.decision.states == pytest.approx(other.decision.states)
    assert struct.unpack(f">{len(one.row) // 8}d", one.row) == pytest.approx(
        struct.unpack(f">{len(other.row) // 8}d", other.row)
    )


@pytest.mark.parametrize(
    ("spent", "runs", "told"),
    [
        (0, [(4, 1), (9, 1)], [4, 1, 6, 5]),
        (0, [(4, 1), (1, 6)], [4, 1, 1, 10]),
        (0, [(2, 1)] * 4 + [(2, 1.25)], [2, 1, 2, 3, 2, 5, 2, 7, 1, 9.25]),
        (0, [(1, 1)] * 5 + [(9, 1)], [1, 1, 1, 2, 1, 3, 1, 4, 1, 5, 5, 6]),
        (4, [(1, 1)] * 7, [1, 5, 1, 6, 1, 7, 1, 8, 1, 9, 1, 10, 0]),
        (10, [(2, 1)], [0]),
    ],
)
def test_of_each_run_it_is_told_how_many_go_at_once_and_the_receipt_of_the_first(spent, runs, told):
    """All that fit, to the last one; with one limit, with two, and of few runs as of many."""
    for width in (1, 2):
        book = Book(*[rate(1, 10)] * width)
        numbers = [x for times, amount in runs for x in (times, *[amount] * width)]
        book.do(*(x for limit in range(width) for x in (CHARGE, 1, limit, spent)))
        verdicts = book.do(SERIES, 0, 1, width, len(runs), *range(width), *numbers)
        counts = [x for i, x in enumerate(told) for _ in range(width if i % 2 else 1)]
        assert verdicts[: len(counts)] == counts


def test_one_that_does_not_wait_stops_nobody():
    book = Book(rate(1, 10))
    assert book.do(ACQUIRE, 0, 0, 1, 0, 11, ACQUIRE, 0, 1, 1, 0, 1)[2] == 0


def test_overdraft_lets_a_large_one_go_when_the_bucket_is_full_and_pay_afterwards():
    book = Book(rate(1, 10, overdraft=1))
    assert book.ask(25, horizon=0)[0] == 0
    assert book.ask(1, horizon=0)[0] == -17


@pytest.mark.parametrize("order", range(5))
def test_cancelling_at_once_gives_everything_back(order):
    """In whatever order."""
    book = Book(rate(1, 10))
    receipts = [book.ask(2)[1] for _ in range(5)]
    random.Random(order).shuffle(receipts)
    for receipt in receipts:
        book.do(GIVE_BACK, 1, 0, 2, book.epoch, receipt)
    assert book.used() == 0


def test_a_reservation_that_is_given_back_frees_its_slot():
    book = Book(rate(1, 1))
    book.ask(1)
    wait, receipt = book.ask(1)
    assert wait == 1
    book.do(GIVE_BACK, 1, 0, 1, book.epoch, receipt)
    assert book.ask(1)[0] == 1


def test_a_permit_of_a_row_that_was_lost_gives_nothing_to_its_successor():
    book = Book(rate(1, 10))
    _, receipt = book.ask(5)
    epoch = book.epoch
    book.row = None
    book.now += 1
    book.ask(8)
    book.do(GIVE_BACK, 1, 0, 5, epoch, receipt)
    assert book.used() == 8


def test_a_clock_that_steps_back_neither_grants_nor_stalls():
    book = Book(rate(1, 10))
    for _ in range(10):
        book.ask(1)
    book.now -= 3600 * SECOND
    assert book.ask(1, horizon=0) == [-2, 0]
    book.now += SECOND
    assert book.ask(1, horizon=0)[0] == 0


def test_a_pause_is_never_shortened_by_another_but_lifted_at_once():
    """And nothing is reserved beyond it: after it is lifted, that would be a debt that stays."""
    book = Book(rate(1, 10))
    book.do(PAUSE, 7, 1, 0)
    book.do(PAUSE, 3, 1, 0)
    assert book.ask(1, horizon=0)[0] == -8
    assert book.ask(1)[0] == -8
    book.do(RESUME, 1, 0)
    assert book.ask(10)[0] == 0


def test_what_a_server_says_only_ever_lowers_a_level():
    book = Book(rate(1, 10))
    _, receipt = book.ask(2)
    book.do(LOWER, 1, 0, 3, 0, -1, -1)
    assert book.used() == 7
    book.do(LOWER, 1, 0, 9, 0, -1, -1)
    assert book.used() == 7
    book.now += SECOND
    book.ask(1)
    book.do(LOWER, 1, 0, 2, 1, book.epoch, receipt + 5)  # 2 were left a second ago, and 1 went since
    assert book.used() == 10 - (2 + 1 - 1)


def test_a_debt_is_charged_whether_or_not_it_fits():
    book = Book(rate(1, 10))
    book.ask(10)
    (receipt,) = book.do(CHARGE, 1, 0, 5)
    assert receipt == 15
    assert book.ask(1, horizon=0)[0] == -7


def test_a_sliding_window_holds_in_every_window():
    book = Book((WINDOW, 5, 1.0, LOG, 0))
    granted = []
    rng = random.Random(1)
    for _ in range(500):
        book.now += rng.randrange(100_000)
        if book.ask(1, horizon=0)[0] == 0:
            granted.append(book.now)
    assert all(later - earlier >= SECOND for earlier, later in zip(granted, granted[5:], strict=False))
    assert len(granted) > 100


def test_places_come_back_when_they_are_given_back_and_when_their_owner_is_silent():
    book = Book((WINDOW, 2, 60.0, RENEWED, 0))
    _, receipt = book.ask(1, owner=1.0)
    book.ask(1, owner=2.0)
    assert book.ask(1, horizon=0)[0] == -math.inf
    book.do(GIVE_BACK, 1, 0, 1, book.epoch, receipt, owner=1.0)
    assert book.ask(1, horizon=0, owner=1.0)[0] == 0
    for _ in range(5):
        book.now += 50 * SECOND
        book.do(RENEW, 1, 0, owner=1.0)
    assert book.used() == 1, "owner 2 has not been heard of for 250 s"
    book.now += 61 * SECOND
    book.do()
    assert book.used() == 0


def test_a_place_with_a_time_to_live_comes_back_alone():
    book = Book((WINDOW, 1, 5.0, TIMED, 0))
    book.ask(1)
    assert book.ask(1, horizon=math.inf)[0] == -6
    book.now += 5 * SECOND
    assert book.ask(1)[0] == 0


@pytest.mark.parametrize("mode", [LOG, TIMED, RENEWED], ids=["sliding", "timed", "places"])
@pytest.mark.parametrize("order", [*itertools.permutations([0, 1, 2])])
def test_what_was_held_when_the_clock_was_put_back_comes_back_when_its_calls_end(order, mode):
    """It ends earlier then than its receipts say: it was found no more, and stayed taken until it ended by itself."""
    book, receipts = Book((WINDOW, 6, 600, mode, 0)), []
    for amount in (1, 2, 3):
        receipts.append(book.ask(amount, horizon=0)[1])
        book.now += SECOND
    book.now -= 3_600 * SECOND
    assert book.ask(1, horizon=0)[0] < 0
    for index in order:
        book.do(GIVE_BACK, 1, 0, index + 1, book.epoch, receipts[index])
        book.now += SECOND
    assert book.used() == 0


def test_a_later_place_is_kept_for_its_whole_time_where_an_earlier_one_ends_after_a_step_of_the_clock():
    book = Book((WINDOW, 2, 600, TIMED, 0))
    receipt = book.ask(1, horizon=0)[1]
    book.now -= 3_600 * SECOND
    book.do()
    book.now += 100 * SECOND
    book.ask(1, horizon=0)
    book.do(GIVE_BACK, 1, 0, 1, book.epoch, receipt)
    book.now += 599 * SECOND
    book.do()
    assert book.used() == 1


@pytest.mark.parametrize(("name", "mode"), [("a sliding window", 0), ("places with a time to live", 1), ("places", 2)])
def test_calls_of_one_moment_are_all_given_back_whatever_their_sizes(name, mode):
    """They have the same receipt: a large one that found the place of a small one gave back no more than that.

    Also if another process asks in between at that very moment.
    """
    for order, others in itertools.product(itertools.permutations([1, 3, 2]), (0, 1)):
        book = Book((WINDOW, 10, 600, mode, 0))
        receipts = []
        for amount in (1, 2, 3):
            receipts.append(book.ask(amount, horizon=0)[1])
            book.do(CHARGE, 1, 0, others, owner=2.0)
        assert len({*receipts}) == 1
        for amount in order:
            book.do(GIVE_BACK, 1, 0, amount, book.epoch, receipts[0])
        assert book.used() == 3 * others


def test_a_calendar_period_begins_anew_and_one_that_ended_is_not_reopened():
    day = 86_400 * SECOND
    end = START + day
    book = Book((CALENDAR, 3, end, end + day, 0))
    assert [book.ask(1, horizon=0)[0] for _ in range(3)] == [0, 0, 0]
    assert book.ask(1, horizon=math.inf)[0] == -1 - 86_400
    book.now = end
    assert book.ask(3, horizon=0)[0] == 0
    book.now = end - 10
    assert book.ask(1, horizon=0)[0] < 0


def test_a_clock_that_stood_years_ahead_stops_nobody_for_years():
    """What was used meanwhile counts until the end of the day on which it is put back; and in the day that it showed."""
    day = 86_400 * SECOND
    days = [START + number * day for number in range(2, 4_000)]

    def of(end):
        return (CALENDAR, 3, end, end + day, 0)

    book = Book(of(days[3_000]), now=days[3_000] - 10)
    assert book.ask(2, horizon=0)[0] == 0
    book.limits, book.now = (of(days[0]),), days[0] - 10 * SECOND
    assert (book.ask(2, horizon=0)[0], book.used()) == (-11, 2)
    assert book.ask(1, horizon=0)[0] == 0
    for end in days[:3]:
        book.limits, book.now = (of(end + day),), end
        assert [book.ask(1, horizon=0)[0] for _ in range(3)] == [0, 0, 0]
        assert book.ask(1, horizon=0)[0] < 0
    book.limits, book.now = (of(days[3_000]),), days[3_000] - 5
    assert (book.ask(2, horizon=0)[0] < 0, book.used()) == (True, 2)


def test_a_day_that_was_used_up_before_it_came_is_waited_for_too():
    day = 86_400 * SECOND
    book = Book((CALENDAR, 3, START + day, START + 2 * day, 0))
    book.limits, book.now = ((CALENDAR, 3, START + 2 * day, START + 3 * day, 0),), START + day
    assert book.ask(3, horizon=0)[0] == 0
    book.limits, book.now = ((CALENDAR, 3, START + day, START + 2 * day, 0),), START
    assert book.ask(1, horizon=0)[0] == -1 - 2 * 86_400
    book.limits, book.now = ((CALENDAR, 3, START + 2 * day, START + 3 * day, 0),), START + day
    assert book.ask(1, horizon=0)[0] == -1 - 86_400


def test_more_entries_than_a_window_keeps_are_merged_so_that_they_count_longer():
    book = Book((WINDOW, 10_000, 100.0, LOG, 0))
    for _ in range(3_000):
        book.now += 10_000
        assert book.ask(1, horizon=0)[0] == 0
    assert len(book.row) < 8 * (7 + 3 * (entries.LONGEST_LOG + 1))
    assert book.used() == 3_000


def test_reshaping_keeps_what_was_used():
    book = Book(rate(1, 10), (WINDOW, 5, 60.0, RENEWED, 0))
    book.ask(8, 3)
    after = (rate(2, 20), (WINDOW, 4, 60.0, RENEWED, 0), rate(1, 1))
    row, _ = reshape(book.row, book.limits, after, [0, 1, -1], book.now)
    book.row, book.limits = row, after
    book.do()
    assert (book.used(0), book.used(1), book.used(2)) == (8, 3, 0)


@pytest.mark.parametrize("seed", range(150))
def test_never_more_than_promised_however_calls_reserve_cancel_settle_and_owe(seed):
    """In every span of admissions, what was not given back is at most burst + rate × span, in each of the limits."""
    rng = random.Random(seed)
    limits = [rate(rng.choice([1, 7, 1000.5]), rng.randint(5, 60)) for _ in range(rng.choice([1, 2, 3]))]
    book = Book(*limits)
    admitted = []  # moment, amounts as they are now, receipts, epoch
    open_ = []
    for _ in range(rng.randint(5, 80)):
        draw = rng.random()
        if draw < 0.5:
            amounts = [rng.randint(1, max(1, int(limit[2]) // rng.choice([1, 2, 5]))) for limit in limits]
            verdict = book.ask(*amounts, horizon=rng.choice([0, 1, math.inf]))
            if verdict[0] >= 0:
                entry = [book.now / SECOND + verdict[0], amounts, verdict[1:], book.epoch]
                admitted.append(entry)
                open_.append(entry)
        elif draw < 0.75:
            book.now += rng.choice([0, 1e5, 1e6, 5e6, 4e7])
        elif open_:
            entry = open_.pop(rng.randrange(len(open_)))
            cancel = rng.random() < 0.5
            if not cancel and book.now / SECOND < entry[0]:
                continue
            backs = list(entry[1]) if cancel else [rng.randint(0, amount) for amount in entry[1]]
            for limit, (back, receipt) in enumerate(zip(backs, entry[2], strict=True)):
                book.do(GIVE_BACK, 1, limit, back, entry[3], receipt)
            entry[1] = [amount - back for amount, back in zip(entry[1], backs, strict=True)]
    for index, (_, per_second, burst, _, _) in enumerate(limits):
        events = [(entry[0], entry[1][index]) for entry in admitted if entry[1][index]]
        if events:
            assert excess_of_amounts(events, per_second, burst) <= 1e-6 * per_second + 1e-9 * burst


def test_a_row_shows_of_a_booking_for_places_whether_its_claim_would_be_granted():
    """Requests of many priorities, ages, flows and amounts in line, while places end or are given back."""
    counts = {True: 0, False: 0}
    for seed in range(12):
        rng = random.Random(seed)
        book = Book((WINDOW, 4.0, rng.choice([0.2, 60.0]), TIMED, 0), rate(1000, 1000))
        charged, line = [], {}
        for number in range(1, 40):
            book.now += rng.choice([0, 1e3, 2e4])
            asked = _Asked(rng, float(number), book.now)
            told = book.do(*asked.operations(NEW, book.now))
            if told[0] < 0:
                assert told[1] == IN_LINE
                line[asked.number] = asked
            else:
                charged.append((asked.amount, told[1]))
            if charged and rng.random() < 0.5:
                amount, receipt = charged.pop(0)
                book.do(GIVE_BACK, 1, 0, amount, book.epoch, receipt)
            _compare(book, line, counts)
            if line and rng.random() < 0.5:
                asked = line.pop(rng.choice(list(line)))
                told = book.do(*asked.operations(0.0, book.now))
                if told[0] < 0:
                    line[asked.number] = asked
    assert min(counts.values()) > 100, counts


class _Asked:
    """What a request for places says of itself, each time that it asks."""

    def __init__(self, rng, number, now):
        self.number, self.since, self.amount = number, now, float(rng.randint(1, 3))
        self.priority, self.waited = rng.choice([0.0, 0.0, 1.0]), rng.choice([0.0, 0.0, 40.0])
        flow = [FLOW, rng.randint(10, 13), rng.choice([0.0, 1.0, 2.0]), 1, 0, 0]
        self.flow = flow if rng.random() < 0.5 else [FLOW, 100 + number, 0.0, 1, 0, 0]

    def operations(self, due, now):
        age = self.waited + (now - self.since) / SECOND
        words = [*self.flow, RANK, self.priority, age, 30.0, BOOK, self.number, due, 1e9]
        return [*words, ACQUIRE, 0, 1, 2, 0, self.amount, 1, 1]


def _compare(book, line, counts):
    """What the row shows of each that is in line, with what a claim would be told now."""
    for asked, shown in zip(line.values(), in_line(book.row, book.limits, list(line), book.now), strict=True):
        if shown is not None:  # else it was forgotten
            operations = [float(x) for x in asked.operations(0.0, book.now)]
            granted = decide([book.row], [book.limits], operations, 1.0, book.now).verdicts[0] >= 0
            assert shown.ready == granted
            assert shown.ahead >= 0
            counts[granted] += 1
