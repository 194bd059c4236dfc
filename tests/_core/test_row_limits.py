"""The limits of a batch's rows: what is charged of each, what is forgiven, and what is kept."""

from __future__ import annotations

import struct

import pytest

from penstock._core import entries
from penstock._core.decision import decide
from penstock._core.operations import ACQUIRE, CHARGE, GIVE_BACK, LOWER, SERIES
from penstock._core.rows import LOG, RENEWED, TIMED, is_places, seconds_per_unit
from tests._core.test_decision import NOW, SECOND, asked, bucket, day, packed, used, window


def test_what_is_charged_on_two_names_at_once_is_written_as_if_on_each_by_itself():
    one, other = [bucket(4, 100), window(9, 40)], [bucket(2, 50), day(7), bucket(1, 10)]
    both = decide([None, None], [one, other], [CHARGE, 5.0, 0, 60, 1, 3, 2, 20, 3, 2, 4, 5], 1.0, NOW)
    each = [asked(one, CHARGE, 2, 0, 60, 1, 3), asked(other, CHARGE, 3, 0, 20, 1, 2, 2, 5)]
    assert both.rows == [row for decision in each for row in decision.rows]
    assert both.keep == [seconds for decision in each for seconds in decision.keep]


def test_a_series_is_forgiven_no_more_of_a_slow_limit_than_its_requests_one_by_one():
    slow = [bucket(1 / 86_400, 10)]
    spent = asked(slow, CHARGE, 1, 0, 9.99).rows[0]
    refused = [pytest.approx(-1 - 0.01 * 86_400), 0]
    assert asked(slow, ACQUIRE, 0, 0, 1, 0, 0.02, row=spent).verdicts == refused
    assert asked(slow, SERIES, 0, 0, 1, 1, 0, 1, 0.02, row=spent).verdicts == [0, *refused]


@pytest.mark.parametrize("limit", [window(10, 40), day(10)], ids=["window", "calendar"])
def test_a_billionth_of_a_thousandth_is_forgiven_and_no_more(limit):
    assert asked([limit], ACQUIRE, 0, 0, 1, 0, 10 * (1 + 1e-12)).verdicts[0] == 0
    assert asked([limit], ACQUIRE, 0, 0, 1, 0, 10 * (1 + 2e-12)).verdicts[0] < 0


def test_a_process_that_is_a_period_behind_gets_nothing_of_one_that_ends_now():
    """It asks again with the next period, of which others may have had something."""
    spent = asked([day(10, left=10)], CHARGE, 1, 0, 10).rows[0]
    end = NOW + 10 * SECOND
    behind = [day(10, left=-60, length=60, now=end)]
    assert asked(behind, ACQUIRE, 0, 0, 1, 0, 1, row=spent, now=end).verdicts == [-1 - 1e-6, 0]


@pytest.mark.parametrize(("mode", "before", "kept"), [
    (LOG, entries.LONGEST_LOG - 1, entries.LONGEST_LOG),
    (LOG, entries.LONGEST_LOG, entries.LONGEST_LOG // 2 + 1),
    (TIMED, entries.LONGEST_LOG, entries.LONGEST_LOG + 1),
    (RENEWED, entries.LONGEST_LOG, entries.LONGEST_LOG + 1),
], ids=["as many as it keeps", "one more", "places with a time to live", "places"])  # fmt: skip
def test_only_a_sliding_window_merges_what_is_more_than_it_keeps(mode, before, kept):
    """A place is given back by the entry of its own permit."""
    limits = [window(10_000, 100, mode)]
    held = [number for index in range(before) for number in (NOW + (index + 1) * SECOND / 10, 2.0, 1.0)]
    row = packed([NOW, NOW, 0.0, 0.0, 0.0, 0.0, float(before), *held, 0.0])
    decision = asked(limits, CHARGE, 1, 0, 1, row=row)
    assert struct.unpack_from(">d", decision.rows[0], 8 * 6) == (kept,)
    assert used(decision) == before + 1


def test_what_a_server_said_of_a_call_is_less_what_others_took_whatever_the_call_itself_gave_back():
    limits = [bucket(1, 10)]
    first = asked(limits, CHARGE, 1, 0, 5)
    (receipt,), epoch = first.verdicts, first.epochs[0]
    settled = [GIVE_BACK, 1, 0, 2, epoch, receipt, CHARGE, 1, 0, 3]
    assert used(asked(limits, *settled, row=first.rows[0])) == 6
    assert used(asked(limits, *settled, LOWER, 1, 0, 4, 0, epoch, receipt, row=first.rows[0])) == 10 - (4 - 3)


@pytest.mark.parametrize(("limit", "held", "seconds"), [
    (bucket(4, 100), False, 0.25),
    (bucket(4, 100, overdraft=1), False, 0.25),
    (day(5), False, 0.2),
    (window(5, 40), False, 8),
    (window(5, 40, TIMED), True, 0.2),
    (window(5, 40, RENEWED), True, 0.2),
], ids=["bucket", "overdraft", "calendar", "window", "places with a time to live", "places"])  # fmt: skip
def test_places_are_held_and_a_flow_counts_them_as_what_comes_back_in_a_second(limit, held, seconds):
    assert is_places(limit) == held
    assert seconds_per_unit(limit) == seconds
