"""A batch, operation by operation: what each takes, gives back and lowers of every kind of limit, to the number."""

from __future__ import annotations

import math
import struct

import pytest

from penstock._core import bookings
from penstock._core.bookings import NEW
from penstock._core.operations import ACQUIRE, BOOK, BOOKED, CHARGE, FLOW, GIVE_BACK, LOWER, PAUSE, RANK, SERIES
from tests._core.test_decision import NOW, SECOND, asked, bucket, day, used, window


def last_numbers(decision, count):
    """The last numbers of the row: of its flows, if there are any, and else of its bookings."""
    return list(struct.unpack(f">{len(decision.rows[0]) // 8}d", decision.rows[0])[-count:])


def test_what_a_day_has_spent_is_given_back_in_that_day_and_never_more():
    limits = [day(10, 20)]
    first = asked(limits, CHARGE, 1, 0, 5)
    (receipt,), epoch, row = first.verdicts, first.epochs[0], first.rows[0]
    assert used(asked(limits, GIVE_BACK, 1, 0, 2, epoch, receipt, row=row)) == 3
    assert used(asked(limits, GIVE_BACK, 1, 0, 8, epoch, receipt, row=row)) == 0
    later = NOW + 30 * SECOND
    next_day = [day(10, 60, now=NOW + 20 * SECOND)]
    spent = asked(next_day, CHARGE, 1, 0, 4, row=row, now=later)
    assert used(spent) == 4
    assert used(asked(next_day, GIVE_BACK, 1, 0, 5, epoch, receipt, row=spent.rows[0], now=later)) == 4


def test_a_day_of_which_more_is_used_than_a_server_says_stays_as_it_is():
    limits = [day(10)]
    spent = asked(limits, CHARGE, 1, 0, 8)
    assert used(asked(limits, LOWER, 1, 0, 5, 0, -1, -1, row=spent.rows[0])) == 8
    assert used(asked(limits, LOWER, 1, 0, 1, 0, -1, -1, row=spent.rows[0])) == 9


def test_what_has_flowed_in_since_a_server_spoke_is_not_taken_away():
    """It spoke two seconds ago, of a call that was charged before."""
    limits = [bucket(10, 100)]
    first = asked(limits, CHARGE, 1, 0, 30)
    (receipt,), epoch = first.verdicts, first.epochs[0]
    for level, left in ((50, 70), (40, 60), (10, 30)):
        low = asked(limits, LOWER, 1, 0, level, 2, epoch, receipt, row=first.rows[0])
        assert 100 - used(low) == pytest.approx(min(left, 70))


def test_what_comes_back_within_a_second_is_not_had_in_advance_either():
    limits = [window(1, 0.5), bucket(10, 10)]
    spent = asked(limits, CHARGE, 1, 0, 1)
    found = asked(limits, ACQUIRE, 9, 0, 2, 0, 1, 1, 1, row=spent.rows[0])
    assert found.verdicts == [-1.5, 0]
    assert used(found, 1) == 0


def test_a_window_is_waited_for_until_the_last_part_of_a_unit_has_left_it():
    limits = [window(2, 10)]
    first = asked(limits, CHARGE, 1, 0, 1)
    second = asked(limits, CHARGE, 1, 0, 1, row=first.rows[0], now=NOW + 4 * SECOND)
    for amount, wait in ((1, 6), (1.5, 10), (2, 10)):
        found = asked(limits, ACQUIRE, 0, 0, 1, 0, amount, row=second.rows[0], now=NOW + 4 * SECOND)
        assert found.verdicts == [pytest.approx(-1 - wait), 0]


def test_a_series_of_parts_of_a_unit_takes_all_that_fit():
    found = asked([bucket(1, 10), bucket(1, 99)], SERIES, 0, 1, 2, 1, 0, 1, 100, 0.25, 2)
    assert found.verdicts[:3] == [40, 0.25, 2]


def test_a_series_does_not_pass_a_pause_that_began_earlier():
    limits = [bucket(1, 10)]
    paused = asked(limits, PAUSE, 5, 1, 0)
    found = asked(limits, SERIES, 0, 1, 1, 1, 0, 3, 1, row=paused.rows[0])
    assert found.verdicts[:3] == [0, -6, 0]
    assert used(found) == 0


@pytest.mark.parametrize("limits", [[bucket(1, 99), bucket(10, 99)], [bucket(10, 99), bucket(1, 99)]])
def test_of_a_series_a_flow_has_had_what_it_took_of_the_scarcer_limit(limits):
    """In seconds of its throughput, of few runs as of many."""
    for runs in (2, 8):
        each = [x for amount in range(1, runs + 1) for x in (1, amount, amount)]
        found = asked(limits, FLOW, 5, 0, 1, 0, 0, SERIES, 0, 1, 2, runs, 0, 1, *each)
        assert last_numbers(found, 4)[2] == pytest.approx(sum(range(1, runs + 1)))


def test_of_a_window_a_flow_has_had_the_seconds_in_which_that_much_comes_back():
    found = asked([window(10, 5)], FLOW, 5, 0, 1, 0, 0, ACQUIRE, 0, 0, 1, 0, 4)
    assert last_numbers(found, 4)[2] == pytest.approx(4 * 5 / 10)


def test_a_call_of_which_nothing_is_said_has_waited_for_no_time_yet():
    limits = [bucket(1, 10)]
    spent = asked(limits, CHARGE, 1, 0, 10)
    found = asked(limits, BOOK, 7, NEW, 60, ACQUIRE, 0.02, 1, 1, 0, 3, row=spent.rows[0])
    booking = last_numbers(found, bookings.AMOUNTS + 1)
    assert (booking[bookings.PRIORITY], booking[bookings.WAITED], booking[bookings.AGEING]) == (0, 0, 30)


def test_behind_a_booking_a_call_larger_than_the_burst_is_told_the_moment_at_which_the_bucket_is_full():
    """Where the limit lets it go and pay afterwards."""
    limits = [bucket(1, 10, 1.0)]
    spent = asked(limits, CHARGE, 1, 0, 10)
    first = asked(limits, BOOK, 7, NEW, 60, ACQUIRE, 0.02, 1, 1, 0, 3, row=spent.rows[0])
    second = asked(limits, BOOK, 8, NEW, 60, ACQUIRE, 0.02, 1, 1, 0, 25, row=first.rows[0])
    assert first.verdicts[0] == pytest.approx(-1 - 3)
    assert second.verdicts[0] == pytest.approx(-1 - 13)
    assert math.isfinite(second.keep[0])


def test_a_call_that_asks_before_its_moment_keeps_its_booking_and_is_as_urgent_as_it_is_now():
    limits = [bucket(1, 10)]
    spent = asked(limits, CHARGE, 1, 0, 10)
    booked = asked(limits, BOOK, 7, NEW, 60, ACQUIRE, 0.02, 1, 1, 0, 3, row=spent.rows[0])
    again = (RANK, 2, 0.5, 30, BOOK, 7, 3, 60, ACQUIRE, 0.02, 1, 1, 0, 3)
    kept = asked(limits, *again, row=booked.rows[0])
    assert kept.verdicts == [pytest.approx(-1 - 3), BOOKED]
    booking = last_numbers(kept, bookings.AMOUNTS + 1)
    assert (booking[bookings.ID], booking[bookings.PRIORITY], booking[bookings.WAITED]) == (7, 2, 0.5)
    lost = asked(limits, BOOK, 7, 5, 60, ACQUIRE, 0.02, 1, 1, 0, 3, row=spent.rows[0])
    assert lost.verdicts == [pytest.approx(-1 - 3), BOOKED], "though the store has forgotten its booking"
