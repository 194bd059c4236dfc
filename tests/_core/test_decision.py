"""Decisions about shared limits where the random tests of tests/stores seldom come: rows that were lost, limits that
change, and all that is at an end."""

from __future__ import annotations

import math
import struct

import pytest

from penstock._core import entries
from penstock._core.decision import decide, reshape
from penstock._core.operations import ACQUIRE, CHARGE, FLOW, GIVE_BACK, LEAVE, LOWER, PAUSE, RENEW, RESUME
from penstock._core.rows import BUCKET, CALENDAR, LOG, RENEWED, TIMED, WINDOW, DamagedRow

SECOND = 1e6
NOW = 1_785_000_000 * SECOND


def bucket(per_second, burst, overdraft=0.0):
    return (BUCKET, per_second, burst, overdraft, 0.0)


def window(amount, ttl, mode=LOG):
    return (WINDOW, amount, ttl, mode, 0.0)


def day(amount, left=10.0, length=60.0, now=NOW):
    """A calendar period that ends `left` seconds from now, and the next one after `length` more."""
    return (CALENDAR, amount, now + left * SECOND, now + (left + length) * SECOND, 0.0)


def asked(limits, *operations, row=None, now=NOW, owner=1.0, born=-1.0):
    return decide([row], [limits], [float(x) for x in operations], owner, now, born)


def packed(numbers):
    return struct.pack(f">{len(numbers)}d", *numbers)


def used(decision, limit=0):
    return decision.states[3 * limit + 1]


@pytest.mark.parametrize(
    ("limit", "amount", "seconds"),
    [(bucket(4, 100), 60, 15), (day(100, 25), 1, 25), (window(9, 40), 1, 40), (bucket(4, 100), 0, 0)],
    ids=["bucket", "calendar", "window", "full"],
)
def test_a_row_is_kept_for_as_long_as_it_means_something(limit, amount, seconds):
    """A store may forget it after that. A pause means something too."""
    assert asked([limit], CHARGE, 1, 0, amount).keep == [seconds]
    assert asked([limit], CHARGE, 1, 0, amount, PAUSE, 99, 1, 0).keep == [99]
    both = [limit, bucket(1, 100)]
    assert asked(both, CHARGE, 2, 0, amount, 1, 70).keep == [70]
    assert asked(both[::-1], CHARGE, 2, 1, amount, 0, 70).keep == [70]
    with pytest.raises(ValueError, match="zip"):
        decide([None], [[limit], [limit]], [], 1.0, NOW)


@pytest.mark.parametrize(("age", "left"), [(0, 10), (4, 2), (5, 0), (50, 0)])
def test_a_bucket_that_was_lost_is_taken_for_empty_then_and_refills(age, left):
    assert used(asked([bucket(2, 10)], born=NOW - age * SECOND)) == left


def test_what_was_never_used_is_whole_at_any_hour_of_the_store():
    """Also at the first microsecond of its clock; a memory that begins at 0 is one."""
    limits = [bucket(2, 10), window(5, 30), day(7, now=0.0)]
    fresh = asked(limits, now=0.0)
    assert [used(fresh, limit) for limit in range(3)] == [0, 0, 0]
    lost = asked(limits, now=SECOND, born=0.0)
    assert [used(lost, limit) for limit in range(3)] == [8, 5, 7]
    assert lost.states[3 + 2] == 30 * SECOND, "as charged at the moment of the loss"
    assert used(asked(limits, now=30 * SECOND, born=0.0), 1) == 0


@pytest.mark.parametrize(
    ("left", "age", "spent"),
    [(10, 3, 7), (10, 9, 7), (10, 10, 0), (10, 50, 0), (-5, 3, 7), (-5, 60, 0)],
    ids=["lost in it", "just", "as long ago as it lasts", "long ago", "in the next", "before the next"],
)
def test_a_period_that_was_lost_is_taken_for_spent_if_it_may_have_been(left, age, spent):
    """Whoever asks may be a period behind: then it is the next one that counts."""
    decision = asked([day(7, left)], born=NOW - age * SECOND)
    assert used(decision) == spent
    assert decision.states[2] == NOW + (left if left > 0 else left + 60) * SECOND


def test_a_caller_that_is_two_periods_behind_is_told_to_ask_again_at_once():
    decision = asked([day(7, -100)], ACQUIRE, 0, 0, 1, 0, 1)
    assert decision.verdicts == [pytest.approx(-1 - 1e-6, abs=1e-9), 0]
    ended = asked([day(7, 10)], CHARGE, 1, 0, 7)
    late = asked([day(7, -100)], ACQUIRE, 0, 0, 1, 0, 1, row=ended.rows[0], now=NOW + 100 * SECOND)
    assert late.verdicts == [pytest.approx(-1 - 1e-6, abs=1e-9), 0]


def test_a_call_whose_turn_comes_after_the_end_of_a_period_is_not_granted_in_it():
    """It would be charged to a day in which it is not made. Refused, with the time at which it can be asked for."""
    spent = asked([bucket(1, 30), day(7, 10)], CHARGE, 1, 0, 30)
    for amount, verdict in ((5, 5), (9, 9), (10, -1 - 10), (20, -1 - 20)):
        found = asked([bucket(1, 30), day(7, 10)], ACQUIRE, 99, 0, 2, 0, amount, 1, 1, row=spent.rows[0])
        assert found.verdicts[0] == pytest.approx(verdict)
        if verdict < 0:
            assert found.verdicts[1] == 1, "the calendar is to blame"
            assert used(found, 1) == 0
    half = asked([bucket(10, 30), day(7, 0.25)], CHARGE, 1, 0, 30)
    assert asked([bucket(10, 30), day(7, 0.25)], ACQUIRE, 9, 0, 2, 0, 5, 1, 1, row=half.rows[0]).verdicts[0] == -1.5


@pytest.mark.parametrize("length", [1, 3600])
def test_seconds_are_seconds_to_the_microsecond(length):
    """Waits, refills, pauses and ends, an hour away too."""
    limits = [bucket(1, 2 * length), day(1, length), window(1, length), window(1, length, TIMED)]
    first = asked(limits, CHARGE, 4, 0, 2 * length, 1, 1, 2, 1, 3, 1, PAUSE, length, 1, 0)
    for limit in (1, 2, 3):
        assert asked(limits, ACQUIRE, 0, 0, 1, limit, 1, row=first.rows[0]).verdicts == [-1 - length, limit]
    assert first.states[5] == first.states[8] == first.states[11] == NOW + length * SECOND
    later = asked(limits, row=first.rows[0], now=NOW + length / 2 * SECOND)
    assert later.states[0] == length / 2, "of the pause"
    assert used(later) == 1.5 * length
    assert asked(limits, ACQUIRE, 0, 0, 1, 0, length, row=later.rows[0], now=NOW + length / 2 * SECOND).verdicts == [
        -1 - length / 2,
        0,
    ]
    places = [window(1, length, RENEWED)]
    held = asked(places, CHARGE, 1, 0, 1)
    renewed = asked(places, RENEW, 1, 0, row=held.rows[0], now=NOW + length / 2 * SECOND)
    assert renewed.states[2] == NOW + 1.5 * length * SECOND
    reserved = asked([bucket(1, length), window(1, 9)], CHARGE, 1, 0, length, ACQUIRE, 1e9, 0, 2, 0, length, 1, 1)
    assert reserved.verdicts == [length, length, 2 * length, NOW + (length + 9) * SECOND]


def test_at_the_very_microsecond_of_its_end_all_is_over():
    """A period, the next one, what a window holds, what was lost, and a row."""
    limits = [day(7), window(5, 10), window(5, 10, TIMED), window(5, 10, RENEWED), bucket(1, 10)]
    first = asked(limits, CHARGE, 5, 0, 7, 1, 5, 2, 5, 3, 5, 4, 10)
    for now, left in ((NOW + 10 * SECOND - 1, [7, 5, 5, 5]), (NOW + 10 * SECOND, [0, 0, 0, 0])):
        found = asked(limits, row=first.rows[0], now=now)
        assert [used(found, limit) for limit in range(4)] == left
    assert found.states[2] == NOW + 70 * SECOND, "of whom asks as if it were still in the first period"
    assert found.states[3 * 4 + 1 :] == [0, 10]
    fresh = asked([day(7)], now=NOW + 10 * SECOND)
    assert fresh.states == [0, 0, NOW + 70 * SECOND]
    for row in (None, first.rows[0]):
        late = asked(limits, ACQUIRE, 0, 0, 1, 0, 1, row=row, now=NOW + 70 * SECOND)
        assert late.verdicts == [-1 - 1e-6, 0], "two periods behind: it is to ask again"
        assert late.states[1:3] == ([7, NOW + 10 * SECOND] if row else [0, 0])
    lost = asked([window(5, 10)], now=NOW, born=NOW - 10 * SECOND)
    assert used(lost) == 0


def test_what_is_not_an_operation_is_refused():
    with pytest.raises(AssertionError, match=r"^operation 99\.0 at 6"):
        asked([bucket(1, 10)], ACQUIRE, 0, 0, 1, 0, 1, 99, 0, 0)


def flows_of(decision, limits):
    """The entries of flows in a row of buckets of which nothing was given back or booked."""
    numbers = struct.unpack(f">{len(decision.rows[0]) // 8}d", decision.rows[0])[3 + 5 * len(limits) :]
    return [list(numbers[i : i + 4]) for i in range(0, len(numbers), 4)]


def test_what_a_flow_has_had_is_kept_with_the_limit_it_was_counted_by_until_it_is_given_back():
    """In seconds of the throughput of whatever it had most of, by its weight; and of its member."""
    limits = [bucket(10, 100), bucket(100, 100)]
    ask = (FLOW, 5, 6, 2, 0, 0, ACQUIRE, 9, 0, 2, 0, 10, 1, 10)
    first = asked(limits, *ask, *ask[6:])
    assert flows_of(first, limits) == [[5, 0, 1, 0], [6, 5, 1, 0]]
    later = asked(limits, row=first.rows[0], now=NOW + SECOND / 2)
    assert flows_of(later, limits) == [[5, 0, 1, -0.5], [6, 5, 1, -0.5]]
    both = decide([None, None], [limits, limits], [float(x) for x in (FLOW, 7, 0, 1, 2, 0.25, *ask)], 1.0, NOW)
    assert [len(row) // 8 for row in both.rows] == [2 + 10 + 1 + 8, 2 + 10 + 1 + 4]
    back = asked(limits, LEAVE, 5, 6, 0.25, 0, row=first.rows[0])
    assert flows_of(back, limits) == [[5, 0, 0.75, 0], [6, 5, 0.75, 0]]
    other = asked(limits, LEAVE, 5, 9, 0.25, 0, LEAVE, 8, 6, 0.25, 0, row=first.rows[0])
    assert flows_of(other, limits) == [[5, 0, 0.75, 0], [6, 5, 1, 0]]


def test_a_call_that_must_stop_stops_those_behind_it_at_that_limit_and_no_other():
    """Or a small call would pass a large one of its own line."""
    limits = [bucket(10, 10), bucket(10, 10), bucket(10, 10)]
    spent = asked(limits, CHARGE, 1, 0, 5)
    for stops, blamed in ((1, [-1.0, 0.0]), (0, [0.0, 6.0, 1.0])):
        found = asked(limits, ACQUIRE, 0, stops, 1, 0, 7, ACQUIRE, 0, 0, 2, 0, 1, 1, 1, row=spent.rows[0])
        assert found.verdicts == [pytest.approx(-1.2), 0.0, *blamed]
    other = asked(limits, ACQUIRE, 0, 1, 1, 0, 7, ACQUIRE, 0, 0, 2, 1, 1, 2, 1, row=spent.rows[0])
    assert other.verdicts[2:] == [0.0, 1.0, 1.0]


def test_a_pause_holds_those_that_come_in_the_same_batch():
    limits = [bucket(10, 10), bucket(10, 10)]
    for paused in (0, 1):
        found = asked(limits, PAUSE, 0.5, 1, paused, ACQUIRE, 0, 0, 2, 0, 0.5, 1, 0.5)
        assert found.verdicts == [pytest.approx(-1.5), paused]
    assert asked(limits, PAUSE, 0, 2, 0, 1, ACQUIRE, 0, 0, 2, 0, 1, 1, 1).verdicts == [0, 1, 1]


def test_several_in_one_operation_are_all_done():
    limits = [bucket(1, 10), bucket(1, 20), bucket(1, 30)]
    charged = asked(limits, CHARGE, 3, 0, 4, 1, 5, 2, 6)
    assert charged.verdicts == [4, 5, 6]
    (row,), epoch = charged.rows, charged.epochs[0]
    back = asked(limits, GIVE_BACK, 3, 0, 1, epoch, 4, 1, 2, epoch - 1, 5, 2, 3, epoch, 6, row=row)
    assert [used(back, limit) for limit in range(3)] == [3, 5, 3], (
        "a permit of a lost row gives nothing back, the others do"
    )
    low = asked(limits, LOWER, 3, 0, 2, 0, -1, -1, 1, 3, 0, -1, -1, 2, 4, 0, -1, -1, row=row)
    assert [used(low, limit) for limit in range(3)] == [8, 17, 26]


def test_hearsay_of_less_than_a_unit_lowers_a_window_too():
    assert used(asked([window(5, 30)], LOWER, 1, 0, 4.5, 0, -1, -1)) == 0.5
    assert used(asked([window(5, 30)], LOWER, 1, 0, 5, 0, -1, -1)) == 0


def test_a_place_whose_time_has_passed_gives_nothing_back():
    """At its very end too: what is there then is another's."""
    held = asked([window(5, 10, TIMED)], CHARGE, 1, 0, 2)
    (receipt,) = held.verdicts
    later = asked([window(5, 10, TIMED)], CHARGE, 1, 0, 3, row=held.rows[0], now=NOW + 5 * SECOND)
    at_end = asked(
        [window(5, 10, TIMED)], GIVE_BACK, 1, 0, 2, held.epochs[0], receipt, row=later.rows[0], now=NOW + 10 * SECOND
    )
    assert used(at_end) == 3


# What a bucket remembers of refunds


def test_refunds_are_remembered_in_the_order_of_their_marks_and_of_one_mark_once():
    refunds: list[list[float]] = []
    for receipt, amount in ((5.0, 1.0), (9.0, 2.0), (7.0, 3.0), (9.0, 4.0), (1.0, 5.0), (5.0, 0.5), (5.0, 0.25)):
        entries.remember(refunds, receipt, amount)
    assert refunds == [[1.0, 0.0, 5.0], [5.0, 0.0, 1.75], [7.0, 0.0, 3.0], [9.0, 0.0, 6.0]]


def test_of_more_refunds_than_it_remembers_the_two_lowest_become_one():
    refunds: list[list[float]] = []
    for receipt in range(entries.REFUNDS):
        entries.remember(refunds, float(receipt), 1.0 + receipt)
    assert len(refunds) == entries.REFUNDS
    entries.remember(refunds, 99.0, 7.0)
    assert refunds[:3] == [[0.0, 0.0, 3.0], [2.0, 0.0, 3.0], [3.0, 0.0, 4.0]]
    assert (len(refunds), refunds[-1]) == (entries.REFUNDS, [99.0, 0.0, 7.0])


def test_a_refund_counts_only_for_those_that_were_charged_before_it():
    """Its own charge is in its receipt already."""
    limits = [bucket(1, 100)]
    first = asked(limits, CHARGE, 1, 0, 10)
    second = asked(limits, CHARGE, 1, 0, 20, row=first.rows[0])
    epoch = first.epochs[0]
    both = asked(limits, GIVE_BACK, 1, 0, 20, epoch, 30, row=second.rows[0])
    assert used(both) == 10
    again = asked(limits, GIVE_BACK, 1, 0, 10, epoch, 10, row=both.rows[0])
    assert used(again) == 0
    assert used(asked(limits, GIVE_BACK, 1, 0, 30, epoch, 30, row=second.rows[0])) == 0


def test_refunds_are_remembered_until_the_bucket_is_full():
    """After that nobody can give anything back, and a row is as small as it was."""
    limits = [bucket(1, 100)]
    first = asked(limits, CHARGE, 1, 0, 10, CHARGE, 1, 0, 3)
    back = asked(limits, GIVE_BACK, 1, 0, 3, first.epochs[0], 13, row=first.rows[0])
    almost = asked(limits, GIVE_BACK, 1, 0, 10, first.epochs[0], 10, row=back.rows[0], now=NOW + 9 * SECOND)
    assert used(almost) == 0, "1 was left, of the 10 alone"
    assert len(almost.rows[0]) > len(first.rows[0])
    full = asked(limits, row=back.rows[0], now=NOW + 10 * SECOND)
    assert len(full.rows[0]) == len(first.rows[0])


def test_charges_stand_in_the_order_of_their_ends_and_an_owners_of_one_moment_are_one_entry():
    """Also where another's stands between them: a refund finds one entry of its owner and moment, and no second one."""
    log: list[list[float]] = []
    for until, owner, amount in ((20, 1, 1), (20, 2, 2), (30, 1, 4), (10, 1, 8), (20, 1, 16), (20, 2, 32), (20, 3, 64)):
        entries.add(log, until, owner, amount)
    assert log == [[10, 1, 8], [20, 1, 17], [20, 2, 34], [20, 3, 64], [30, 1, 4]]


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 7])
def test_a_log_is_halved_into_the_later_of_each_pair(count):
    log = [[float(10 * i), float(100 + i), 1.0 + i] for i in range(count)]
    entries.merge(log)
    expected = [[10.0 * (i + 1), 101.0 + i, 3.0 + 2 * i] for i in range(0, count - 1, 2)]
    if count % 2:
        expected.append([10.0 * (count - 1), 99.0 + count, float(count)])
    assert log == expected


def test_entries_of_one_moment_stay_in_the_order_in_which_they_came():
    log = [[20.0, 1.0, 1.0], [10.0, 5.0, 1.0], [10.0, 1.0, 2.0]]
    entries.in_order(log)
    assert log == [[10.0, 5.0, 1.0], [10.0, 1.0, 2.0], [20.0, 1.0, 1.0]]


@pytest.mark.parametrize(
    ("amount", "owner", "receipt", "mode", "left"),
    [
        (1, 1.0, 0.0, TIMED, [3, 4, 2]),
        (4, 1.0, 0.0, TIMED, [4, 2]),
        (9, 1.0, 10.0, TIMED, [4, 2]),
        (1, 1.0, 11.0, TIMED, [4, 4, 1]),
        (1, 2.0, 99.0, RENEWED, [4, 3, 2]),
        (1, 2.0, 99.0, TIMED, [4, 3, 2]),  # none of it ends so late: the clock was put back
        (5, 1.0, 99.0, TIMED, [4, 1]),
        (9, 1.0, 99.0, TIMED, [4]),
        (1, 3.0, 0.0, TIMED, [4, 4, 2]),
        (3.5, 1.0, 0.0, TIMED, [0.5, 4, 2]),
    ],
)
def test_what_is_released_comes_out_of_the_first_entry_that_can_be_meant(amount, owner, receipt, mode, left):
    log = [[10.0, 1.0, 4.0], [20.0, 2.0, 4.0], [30.0, 1.0, 2.0]]
    entries.release(log, amount, owner, receipt, mode)
    assert [entry[2] for entry in log] == left


# Other limits for the same row


def test_whatever_kind_takes_over_what_was_used_stays_used():
    """The order of the limits may change with it, and some may be new."""
    kinds = {"bucket": bucket(1, 50), "calendar": day(50), "log": window(50, 30), "timed": window(50, 30, TIMED)}
    for before, counted in kinds.items():
        limits = [bucket(1, 9), counted]
        row = asked(limits, CHARGE, 3, 0, 2, 1, 7, 1, 5, PAUSE, 4, 1, 1).rows[0]
        for after, limit in kinds.items():
            now = NOW + SECOND
            changed, keep = reshape(row, limits, [window(3, 8), limit, bucket(1, 9)], [-1, 1, 0], now)
            found = asked([window(3, 8), limit, bucket(1, 9)], row=changed, now=now)
            stays = 11 if before == "bucket" else 12
            # A permit frees the places it holds; whoever had something else has none.
            held = after == "timed" and before != "timed"
            assert used(found, 1) == (0 if held else stays), (before, after)
            assert [used(found, 0), used(found, 2)] == [0, 1]
            assert found.states[3] == 3, "the pause goes on"
            assert found.epochs == [NOW]
            if after == "log" and before in {"bucket", "calendar"}:
                assert found.states[5] == now + 30 * SECOND
                later = asked([window(3, 8), limit, bucket(1, 9)], row=changed, now=now + SECOND)
                assert later.states[5] == now + 30 * SECOND
            assert keep >= 3


def row_of(limits, at, booking=(), flow=()):
    """A row, number by number. `limits`: pause, last, used, what, and the entries."""
    numbers = [at, 1 * SECOND]
    for *four, log in limits:
        numbers += [*four, float(len(log)), *(number for entry in log for number in entry)]
    return packed([*numbers, 1.0 if booking else 0.0, *booking, *flow])


OF_FOUR = [bucket(2, 20), day(50, 6, 60, 2 * SECOND), window(50, 30), window(9, 40, RENEWED)]
FOUR = row_of(
    [
        (4.0, 1.0, 10.0, 33.0, [[30.0, 0.0, 2.0]]),
        (0.0, 5.0, 7.0, 8 * SECOND, []),
        (0.0, 0.0, 0.0, 0.0, [[12 * SECOND, 0.0, 3.0], [20 * SECOND, 1.0, 4.0]]),
        (2.0, 0.0, 0.0, 0.0, [[30 * SECOND, 7.0, 1.0]]),
    ],
    2 * SECOND,
    [5.0, 4.0, 0.0, 1.0, 30.0, 0.0, 0.0, 0.0, 1.0, *[1.0] * 4],
    [1.0, 0.0, 2.5, 3.25],
)
BUCKET_LEFT = (1.0, 0.0, 4.0, 33.0, [[30.0, 0.0, 2.0]])  # three seconds later; of a debt of 10, 6 have flowed in
LOG_LEFT = (0.0, 0.0, 0.0, 0.0, [[12 * SECOND, 0.0, 3.0], [20 * SECOND, 1.0, 4.0]])
RENEWED_LEFT = (0.0, 0.0, 0.0, 0.0, [[30 * SECOND, 7.0, 1.0]])
ANOTHER_DAY = day(70, 9, 60, 5 * SECOND)
AGAIN = (0.0, 5.0, 7.0, 14 * SECOND, [])  # its own end, and what was spent


@pytest.mark.parametrize(
    ("after", "origin", "left", "keep"),
    [
        (OF_FOUR, [0, 1, 2, 3], [BUCKET_LEFT, (0.0, 5.0, 7.0, 8 * SECOND, []), LOG_LEFT, RENEWED_LEFT], 25.0),
        (
            [bucket(1, 9), OF_FOUR[3], window(5, 4, TIMED), OF_FOUR[2], ANOTHER_DAY, OF_FOUR[0]],
            [-1, 3, -1, 2, 1, 0],
            [(0.0,) * 4 + ([],), RENEWED_LEFT, (0.0,) * 4 + ([],), LOG_LEFT, AGAIN, BUCKET_LEFT],
            25.0,
        ),
        (
            [window(50, 30), window(50, 30, TIMED), bucket(1, 9), ANOTHER_DAY],
            [0, 1, 2, 3],
            [
                (1.0, 0.0, 5 * SECOND, 33.0, [[35 * SECOND, 0.0, 4.0]]),
                (0.0, 0.0, 5 * SECOND, 5.0, []),
                (0.0, 0.0, 7.0, 7.0, []),
                (0.0, 0.0, 1.0, 14 * SECOND, []),
            ],
            30.0,
        ),
        (
            [bucket(0.5, 90), ANOTHER_DAY, window(50, 10), window(9, 0.25)],
            [1, 0, 3, 1],
            [
                (0.0, 0.0, 7.0, 12.0, []),
                (1.0, 33.0, 4.0, 14 * SECOND, []),
                (0.0, 0.0, 5 * SECOND, 0.0, [[15 * SECOND, 0.0, 1.0]]),
                (0.0, 0.0, 5 * SECOND, 5.0, [[5.25 * SECOND, 0.0, 7.0]]),
            ],
            14.0,
        ),
        ([window(9, 40)], [0], [(1.0, 0.0, 5 * SECOND, 33.0, [[45 * SECOND, 0.0, 4.0]])], 40.0),
        ([bucket(1, 9)], [-1], [(0.0, 0.0, 0.0, 0.0, [])], 0.0),
    ],
    ids=["the same", "moved, with new ones", "other kinds", "other kinds again", "one of four", "new alone"],
)
def test_a_row_for_other_limits_number_by_number(after, origin, left, keep):
    """What goes on is copied, what counts in another way keeps its amount and total; flows stay, and bookings begin anew."""
    changed, kept = reshape(FOUR, OF_FOUR, after, origin, 5 * SECOND)
    assert changed == row_of(left, 5 * SECOND, flow=[1.0, 0.0, 2.5, 0.25])
    assert kept == keep


def test_a_damaged_row_is_the_first_unless_said_otherwise():
    assert (DamagedRow().index, DamagedRow(3).index) == (0, 3)
    assert DamagedRow(3).args == (3,), "it is shown, and pickled"


def test_each_new_limit_says_where_it_comes_from():
    row = asked([bucket(1, 9)], CHARGE, 1, 0, 2).rows[0]
    with pytest.raises(ValueError, match="zip"):
        reshape(row, [bucket(1, 9)], [bucket(1, 9)], [0, 0], NOW)


@pytest.mark.parametrize(("rows", "limits"), [([None, None], [[bucket(1, 9)]]), ([None], [[bucket(1, 9)], []])])
def test_a_batch_whose_rows_and_limits_are_not_as_many_is_refused_whole(rows, limits):
    with pytest.raises(ValueError, match="zip"):
        decide(rows, limits, [], 1.0, NOW)


def test_nothing_used_is_nothing_in_a_window():
    row = asked([bucket(1, 9)], CHARGE, 1, 0, 0).rows[0]
    changed, keep = reshape(row, [bucket(1, 9)], [window(3, 8)], [0], NOW)
    assert keep == 0
    assert asked([window(3, 8)], row=changed).states == [0, 0, 0]
    assert asked([window(3, 8)], ACQUIRE, math.inf, 0, 1, 0, 3, row=changed).verdicts[0] == 0


@pytest.mark.parametrize(
    ("limit", "fits", "waits"),
    [(bucket(1e6, 10), 10.4, 10.6), (bucket(1e-3, 1e12), 1e12 + 0.5, 1e12 + 2)],
    ids=["of the rate", "of the burst"],
)
def test_rounding_is_forgiven_and_no_more(limit, fits, waits):
    """Half a microsecond's worth of the rate, and 10⁻¹² of the burst: on the quick way for two and on the general
    one."""
    wide = bucket(1, 1e15)
    for charges in ([1, 0], [2, 1, 1, 0]):
        assert asked([limit, wide], ACQUIRE, 0, 0, *charges, fits).verdicts[0] == 0
        assert asked([limit, wide], ACQUIRE, 0, 0, *charges, waits).verdicts[0] < -1


@pytest.mark.parametrize("limit", [window(5, 30), day(5), window(5, 30, TIMED)], ids=["window", "calendar", "places"])
def test_two_limits_of_another_kind_than_a_bucket_hold_too(limit):
    """The quick way is for two buckets."""
    first = asked([limit, limit], ACQUIRE, 0, 0, 2, 0, 3, 1, 3)
    assert first.verdicts[0] == 0
    assert [used(first, 0), used(first, 1)] == [3, 3]
    assert asked([limit, limit], ACQUIRE, 0, 0, 2, 0, 3, 1, 3, row=first.rows[0]).verdicts[0] < -1


# Pauses


def test_a_pause_of_one_limit_is_lifted_and_that_of_another_stays():
    limits = [bucket(1, 10), bucket(1, 10)]
    row = asked(limits, PAUSE, 60, 2, 0, 1, RESUME, 1, 1, ACQUIRE, 0, 1, 1, 1, 4).rows[0]
    found = asked(limits, ACQUIRE, 0, 1, 1, 0, 1, RESUME, 1, 0, ACQUIRE, 0, 1, 1, 1, 6, row=row)
    assert found.verdicts == [-61, 0, 0, 10]
    assert found.states[0] == 0
    assert found.states[3] == 0


def test_nothing_is_reserved_beyond_a_pause_but_behind_a_longer_wait():
    limits = [bucket(1, 10)]
    assert asked(limits, PAUSE, 5, 1, 0, ACQUIRE, math.inf, 1, 1, 0, 1).verdicts == [-6, 0]
    assert asked(limits, CHARGE, 1, 0, 16, PAUSE, 5, 1, 0, ACQUIRE, math.inf, 1, 1, 0, 1).verdicts == [16, 7, 17]


# Rows that are not what was once written

BOOKING = (7.0, 0.5, 1.0, 2.0, 30.0, 5.0, 0.25, -1e9, 0.1, 1.0)  # as in `bookings`, and an amount
SOUND = (
    NOW,
    NOW,
    0.0,
    0.0,
    3.0,
    3.0,
    1.0,
    3.0,
    0.0,
    1.0,
    1.0,
    *BOOKING,
    5.0,
    0.0,
    0.5,
    1.0,
)  # a bucket with a refund; a flow


def changed(at, value):
    numbers = list(SOUND)
    numbers[at] = value
    return packed(numbers)


def test_a_row_that_was_written_is_read():
    assert used(asked([bucket(1, 10)], row=packed(SOUND))) == 3 + 1  # with what is booked


@pytest.mark.parametrize(
    "row",
    [b"", packed(SOUND)[:-1], packed(SOUND[:1]), packed(SOUND[:2]), packed(SOUND[:-1]), packed((*SOUND, 0.0)), packed(SOUND[:10]), packed(SOUND[:9]), packed(SOUND[:6]),
     *(changed(at, value) for at in range(len(SOUND)) for value in (math.nan, math.inf, -math.inf)),
     *(changed(at, -1.0) for at in (2, 3, 4, 5, 6, 9, 10, 15, 19, 20)), changed(6, 0.5), changed(6, 2.0), changed(6, 1e300),
     changed(10, 0.5), changed(10, 2.0), changed(10, 1e300), changed(15, 0.0),
     packed((NOW, NOW)) + packed([0.0] * 5) * 30_000],
)  # fmt: skip
def test_a_damaged_row_is_found_out(row):
    with pytest.raises(DamagedRow) as caught:
        decide([packed(SOUND), row], [[bucket(1, 10)]] * 2, (), 1.0, NOW)
    assert caught.value.index == 1


def test_a_row_of_many_numbers_is_read():
    limits, flows = [bucket(1, 10)] * 19_997, packed((5.0, 0.0, 0.5, 1.0) * 3)
    row = packed((NOW, NOW)) + packed([0.0] * (5 * 19_997 + 1)) + flows
    assert len(row) == 8 * 100_000
    assert len(asked(limits, row=row).states) == 3 * 19_997
    with pytest.raises(DamagedRow):
        asked(limits, row=row + flows)


def test_no_row_is_kept_for_longer_than_stores_can_count():
    assert asked([bucket(1e-9, 10)], CHARGE, 1, 0, 5).keep == [1e9]
    assert asked([bucket(1, 10)], CHARGE, 1, 0, 5).keep == [5]
