"""Rows of a store: what is refused as damaged, what passes while they lie, and a clock that is put back."""

from __future__ import annotations

import math
import struct

import pytest

from penstock._core import bookings
from penstock._core.flows import FLOWS
from penstock._core.rows import BUCKET, CALENDAR, LOG, WINDOW, DamagedRow, new_row, read_row, write_row

SECOND = 1_000_000
NOW = 1_700_000_000 * SECOND
BUCKETS = [(BUCKET, 10.0, 100.0, 0.0, 0.0)]
WINDOWS = [(WINDOW, 100.0, 10.0, LOG, 0.0)]
PERIODS = [(CALENDAR, 100.0, NOW + 60.0 * SECOND, NOW + 120.0 * SECOND, 0.0)]


def written(limits, **what):
    """A row with this in it, as it is written, and for how long it means something."""
    row = new_row(NOW, limits)
    for name, value in what.items():
        setattr(row, name, value)
    return write_row(row, NOW, limits)


def booked(due=1.0, waited=5.0, ageing=30.0, share=0.5, amount=3.0):
    return [7.0, due, 0.0, waited, ageing, 0.0, 0.0, 0.0, share, amount]


def test_a_window_is_never_held_longer_than_from_now_on():
    """The clock was put back by an hour: what was charged leaves after the window, and the last admission, from now."""
    row, _ = written(WINDOWS, entries=[[[NOW + 10.0 * SECOND, 1.0, 5.0]]], last=[2.0])
    before = NOW - 3_600 * SECOND
    assert read_row(row, before, WINDOWS).entries == [[[before + 12.0 * SECOND, 1.0, 5.0]]]


def test_a_booking_waits_while_its_row_lies_and_is_kept_until_it_has_expired():
    row, keep = written(BUCKETS, bookings=[booked(due=1.0, waited=5.0)])
    assert keep == 1.0 + bookings.EXPIRED
    (booking,) = read_row(row, NOW + round((1.0 + bookings.EXPIRED) * SECOND), BUCKETS).bookings
    assert booking[bookings.DUE] == -bookings.EXPIRED
    assert booking[bookings.WAITED] == 5.0 + 1.0 + bookings.EXPIRED
    assert read_row(row, NOW + round((1.001 + bookings.EXPIRED) * SECOND), BUCKETS).bookings == []


def test_a_period_that_a_fast_clock_has_begun_is_kept_for_its_time():
    """Its count goes on meanwhile, as the step back must free nothing; what is older than the present one is gone."""
    ahead = NOW + 600.0 * SECOND
    row, keep = written(PERIODS, what=[ahead], used=[30.0])
    assert keep == 600
    (back,) = [read_row(row, NOW, PERIODS)]
    assert (back.used, back.what) == ([30.0], [NOW + 60.0 * SECOND])
    assert back.entries == [[[ahead, 0.0, 30.0]]]
    again, keep = write_row(back, NOW, PERIODS)
    assert keep == 600  # for the one that is to come
    unused, _ = written(
        PERIODS, what=[ahead], used=[0.0], entries=[[[NOW + 60.0 * SECOND, 0.0, 1.0], [ahead, 0.0, 9.0]]]
    )
    assert read_row(unused, NOW, PERIODS).entries == [[[ahead, 0.0, 9.0]]]

    later = [(CALENDAR, 100.0, ahead, ahead + 60.0 * SECOND, 0.0)]
    there = read_row(again, NOW + 590 * SECOND, later)
    assert (there.used, there.what, there.entries) == ([30.0], [ahead], [[]])


def test_all_that_a_lost_window_may_have_charged_leaves_a_window_after_the_loss():
    born = NOW - 4 * SECOND
    assert new_row(NOW, WINDOWS, born).entries == [[[born + 10.0 * SECOND, 0.0, 100.0]]]


def of_doubles(*numbers):
    return struct.pack(f">{len(numbers)}d", *numbers)


LIMIT = (0.0, 0.0, 5.0, 5.0)  # pause, last, used, what
FLOW = (3.0, 0.0, 1.0, 0.5)


@pytest.mark.parametrize(
    "numbers",
    [
        pytest.param((*LIMIT, 2.0, 1, 0, 1, 2, 0, -1, 0.0), id="an amount below 0 in the second entry"),
        pytest.param((*LIMIT, 0.0, 0.5, 7, 1, 0, 0, 30), id="half a booking"),
        pytest.param((*LIMIT, 0.0, 1.0, 7, 1), id="a booking that ends early"),
        pytest.param((*LIMIT, 0.0, 0.0, *FLOW * (FLOWS + 1)), id="more flows than are kept"),
        pytest.param((*LIMIT, 0.0, 0.0, *FLOW[:3]), id="a flow that ends early"),
        pytest.param((*LIMIT, 0.0, 1.0, *booked(ageing=0.0)), id="no ageing"),
        pytest.param((*LIMIT, 0.0, 1.0, *booked(share=-1.0)), id="a share below 0"),
        pytest.param((*LIMIT, 0.0, 1.0, *booked(amount=-1.0)), id="a booked amount below 0"),
        pytest.param((0.0, 0.0, -5.0, 5.0, 0.0, 0.0), id="a debt below 0"),
        pytest.param((*LIMIT, 0.0, math.inf), id="infinite"),
    ],
)
def test_a_row_that_was_never_written_so_is_damaged(numbers):
    with pytest.raises(DamagedRow):
        read_row(of_doubles(NOW, NOW, *numbers), NOW, BUCKETS)


def test_the_most_flows_and_the_least_numbers_of_a_booking_are_no_damage():
    row = of_doubles(NOW, NOW, *LIMIT, 0.0, 1.0, *booked(ageing=0.5, share=0.0, amount=0.0), *FLOW * FLOWS)
    read = read_row(row, NOW, BUCKETS)
    assert read.bookings == [booked(ageing=0.5, share=0.0, amount=0.0)]
    assert len(read.flows) == FLOWS
