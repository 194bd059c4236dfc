"""Sliding and calendar windows against the naive log and the calendar itself: plain numbers, no clock, no loop."""

from __future__ import annotations

import itertools
import math
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from penstock import calendar, sliding
from penstock._core.windows import CalendarWindow, SlidingWindow, period_around

GRAIN = 1e-8

GAPS = st.sampled_from([0.0, 0.0, 0.001, 0.3, 1.0, 2.5, 4.0, 9.999, 10.0, 11.0])


def fullest(charges: list[tuple[float, float]], per: float) -> float:
    """The most that any window of that length held, wherever it began."""
    return max(
        (math.fsum(a for at, a in charges if begin <= at < begin + per - GRAIN) for begin, _ in charges), default=0
    )


def in_window(charges: list[tuple[float, float]], per: float, now: float) -> float:
    return math.fsum(amount for at, amount in charges if at > now - per + GRAIN)


@given(
    amount=st.integers(1, 20),
    begin=st.sampled_from([0.0, 3.7, 1e6]),
    steps=st.lists(st.tuples(GAPS, st.integers(0, 12), st.sampled_from(["try", "try", "back", "wait"])), max_size=40),
)
def test_no_window_ever_holds_more_and_none_that_could_go_is_refused(amount, begin, steps):
    """Promise 1 in its strict form, and promise 3: it grants what a list of all charges would, refunds included."""
    window, now = SlidingWindow(sliding(amount, 10)), begin
    charges: list[list] = []
    for gap, wanted, kind in steps:
        now += gap
        cost = min(wanted, amount)
        if kind == "back" and charges:
            entry = charges[cost % len(charges)]
            back = min(cost, entry[1])
            window.give_back(back, entry[2], now)
            if entry[0] > now - 10 + GRAIN:
                entry[1] -= back
        elif kind == "wait":
            ready = window.ready_at(cost, now)
            now = now + (ready - now)
            receipt = window.charge_if_ready(cost, now)
            assert receipt is not None, "what it names as the moment is one at which it grants"
            charges.append([now, cost, receipt])
        else:
            free = in_window([(at, a) for at, a, _ in charges], 10, now) + cost <= amount
            receipt = window.charge_if_ready(cost, now)
            assert (receipt is not None) == free
            if receipt is not None:
                charges.append([now, cost, receipt])
        plain = [(at, a) for at, a, _ in charges]
        assert window.glance(now) == amount - in_window(plain, 10, now)
        assert window.used(now) == in_window(plain, 10, now)
        assert window.level(now) == amount - window.used(now)
        assert window.idle(now) == (not any(at > now - 10 + GRAIN for at, _ in plain))
        assert fullest(plain, 10) <= amount


@given(
    amount=st.integers(1, 12),
    charged=st.lists(st.tuples(GAPS, st.integers(1, 5)), max_size=20),
    cost=st.integers(1, 12),
)
def test_the_moment_it_names_is_the_first(amount, charged, cost):
    """Promise 7: just before it there is no room."""
    window, now, charges = SlidingWindow(sliding(amount, 10)), 0.0, []
    for gap, one in charged:
        now += gap
        if window.charge_if_ready(min(one, amount), now) is not None:
            charges.append((now, min(one, amount)))
    cost = min(cost, amount)
    ready = window.ready_at(cost, now)
    assert in_window(charges, 10, ready) + cost <= amount
    if ready > now:
        assert in_window(charges, 10, ready - 1e-6) + cost > amount
        assert SlidingWindow.charge_if_ready(window, cost, ready - 1e-6) is None


@example(other=5, cost=6, charged=[], postponed=0.0)
@given(
    other=st.integers(0, 20),
    cost=st.integers(0, 10),
    charged=st.lists(st.tuples(GAPS, st.integers(1, 5)), max_size=10),
    postponed=st.sampled_from([0.0, 0.25]),
)
def test_ready_after_is_ready_at_with_the_other_charged_first_and_charges_nothing(other, cost, charged, postponed):
    window, twin, now = SlidingWindow(sliding(10, 10)), SlidingWindow(sliding(10, 10)), 0.0
    for gap, one in charged:
        now += gap
        for each in window, twin:
            each.postpone(one, each.charge(one, now), now + postponed, now)
    used = window.used(now)
    twin.charge(other, now)
    assert window.ready_after(other, cost, now) == twin.ready_at(cost, now)
    assert window.used(now) == used
    assert len(window.log) == len(twin.log) - 1


def test_more_than_one_window_holds_takes_one_window_after_another():
    """As for a whole line: never ready too early, and later the more there is."""
    window = SlidingWindow(sliding(10, 60))
    assert window.ready_at(10, 5.0) == 5.0
    assert window.ready_at(11, 5.0) == 65.0
    window.charge(10, 5.0)
    assert window.ready_at(10, 6.0) == 65.0
    assert window.ready_at(11, 6.0) == 65.0 + 60.0
    assert window.ready_at(20, 6.0) == 65.0 + 60.0
    assert window.ready_at(21, 6.0) == 65.0 + 120.0


def test_the_log_stays_short_strict_and_full_however_small_the_calls():
    """Merging frees an entry's part a slice later, never earlier: no window is passed, and 99.8 % of each is used.

    6,000 calls fit into a window; 40,000 come.
    """
    window, charges, longest = SlidingWindow(sliding(3, 10)), [], 0
    for i in range(40_000):
        now = i * 0.001
        if window.charge_if_ready(0.0005, now) is not None:
            charges.append((now, 0.0005))
        longest = max(longest, len(window.log))
    assert longest == 2_000
    for begin in range(31):
        assert math.fsum(a for at, a in charges if begin <= at < begin + 10 - GRAIN) <= 3 + 1e-9
    assert len(charges) >= 0.998 * 4 * 6_000


def test_a_demand_below_the_limit_is_never_held_up_by_merging():
    """4,000 calls a window, merged many times over, where 6,000 fit."""
    window = SlidingWindow(sliding(3, 10))
    for i in range(12_000):
        assert window.charge_if_ready(0.0005, i * 0.0025) is not None, i
    assert len(window.log) <= 2_000


def test_a_log_of_large_limits_is_as_long_as_the_limit_needs():
    window = SlidingWindow(sliding(3_000, 10))
    for i in range(3_000):
        assert window.charge_if_ready(1, i * 0.001) is not None
    assert len(window.log) == 3_000, "whole units are never merged"
    assert window.ready_at(1, 3.0) == 10.0
    assert window.ready_at(2, 3.0) == 10.001


def merged_window():
    """A window whose log was just compressed: charges of 1 ms, in slices of 10 ms; and the receipts."""
    window = SlidingWindow(sliding(1, 10))
    receipts = [window.charge(0.0001, 100 + i / 1_000) for i in range(2_001)]
    return window, receipts


def test_what_is_merged_goes_to_the_latest_of_its_slice():
    window, _ = merged_window()
    assert len(window.log) in (201, 202)
    assert sum(entry.amount for entry in window.log) == pytest.approx(0.2001)
    assert window.used(102.0) == pytest.approx(0.2001)
    moments = [entry.at for entry in window.log]
    assert moments == sorted(moments)
    assert moments[-1] == 102.0
    assert all(0.008 < later - earlier < 0.012 for earlier, later in itertools.pairwise(moments[:-1]))
    assert window.log[5].amount == pytest.approx(0.001, abs=0.000_21)


def test_what_was_merged_can_still_be_given_back_exactly():
    window, receipts = merged_window()
    for index in (0, 1_000, 1_001, 2_000):
        window.give_back(0.0001, receipts[index], 103.0)
    assert window.used(103.0) == pytest.approx(0.1997)
    for _ in range(20):
        window.give_back(0.0001, receipts[1_000], 103.0)
    assert window.used(103.0) >= 0.1997 - 0.001 - 1e-9, "never more than its slice held"
    used = window.used(103.0)
    newer = [window.charge(0.0, 103 + i / 1_000) for i in range(4_000)]
    assert len(window.log) <= 2_000
    window.give_back(0.0001, receipts[500], 107.0)
    assert window.used(107.0) == pytest.approx(used - 0.0001), "merged twice and more, it is still found"
    window.give_back(0.0001, receipts[500], 130.0)
    window.give_back(0.0001, newer[0], 130.0)
    assert window.used(130.0) == 0
    assert window.idle(130.0)


def test_sliding_changes_keep_what_was_used():
    window = SlidingWindow(sliding(10, 60))
    window.charge(8, 0.0)
    assert window.change(sliding(5, 30), 1.0)
    assert window.level(1.0) == -3
    assert window.ready_at(1, 1.0) == 30.0
    assert window.change(sliding(9, 60), 2.0)
    assert window.ready_at(1, 2.0) == 2.0
    assert window.ready_at(2, 2.0) == 60.0


def test_rounding_leaves_nothing_behind_in_a_sliding_window():
    window, now = SlidingWindow(sliding(1, 1)), 0.0
    for i in range(3_000):
        now = i * 0.1
        window.charge_if_ready(0.1, now)
    assert window.level(now + 1) == 1
    for _ in range(10):
        assert window.charge_if_ready(0.1, now + 2) is not None
    assert window.charge_if_ready(0.1, now + 2) is None


# Calendar


BERLIN = ZoneInfo("Europe/Berlin")


def wall(*moment: int, tz: str = "Europe/Berlin", fold: int = 0) -> float:
    return datetime(*moment, tzinfo=ZoneInfo(tz), fold=fold).timestamp()  # type: ignore[misc]


@pytest.mark.parametrize(
    ("moment", "period", "tz", "begin", "hours"),
    [
        ((2026, 3, 29, 12), "day", "Europe/Berlin", (2026, 3, 29), 23),
        ((2026, 10, 25, 12), "day", "Europe/Berlin", (2026, 10, 25), 25),
        ((2026, 6, 1, 0), "day", "Europe/Berlin", (2026, 6, 1), 24),
        ((2026, 3, 29, 23, 59, 59), "week", "Europe/Berlin", (2026, 3, 23), 167),
        ((2026, 3, 30), "week", "Europe/Berlin", (2026, 3, 30), 168),
        ((2026, 2, 28, 23), "month", "UTC", (2026, 2, 1), 28 * 24),
        ((2024, 2, 29, 23), "month", "UTC", (2024, 2, 1), 29 * 24),
        ((2026, 12, 31, 23), "month", "UTC", (2026, 12, 1), 31 * 24),
        ((2026, 10, 1), "month", "Europe/Berlin", (2026, 10, 1), 31 * 24 + 1),
        ((2026, 1, 31, 5), "month", "America/New_York", (2026, 1, 1), 31 * 24),
        ((2026, 4, 24, 12), "day", "Africa/Cairo", (2026, 4, 24), 23),
        ((2026, 11, 1, 12), "day", "America/Havana", (2026, 11, 1), 25),
    ],
)  # fmt: skip
def test_days_weeks_and_months_begin_at_local_midnight(moment, period, tz, begin, hours):
    """A day may have 23 or 25 hours. A midnight that is missing, or comes twice, is the first moment of its day."""
    first, after = period_around(wall(*moment, tz=tz), period, ZoneInfo(tz))
    assert first == wall(*begin, tz=tz)
    assert after - first == hours * 3600


@pytest.mark.parametrize(
    ("period", "tz", "into", "length"),
    [
        ("minute", "UTC", 59.75, 60), ("hour", "UTC", 59 * 60 + 59.75, 3600),
        ("hour", "Asia/Kolkata", 29 * 60 + 59.75, 3600), ("minute", "Asia/Kathmandu", 59.75, 60),
        ("hour", "Asia/Kathmandu", 44 * 60 + 59.75, 3600),
    ],
)  # fmt: skip
def test_hours_and_minutes_follow_the_zones_offset(period, tz, into, length):
    moment = wall(2026, 5, 5, 5, 59, 59, tz="UTC") + 0.75
    begin, end = period_around(moment, period, ZoneInfo(tz))
    assert begin == moment - into
    assert end == begin + length


@given(
    st.integers(0, 2**31 - 10**7).map(float) | st.floats(0, 2e9),
    st.sampled_from(["day", "week", "month", "hour", "minute"]),
    st.sampled_from(
        ["UTC", "Europe/Berlin", "America/Sao_Paulo", "Australia/Lord_Howe", "Pacific/Apia", "Africa/Cairo"]
    ),
)
def test_periods_hold_their_moment_and_follow_one_another_without_a_gap(moment, period, tz):
    begin, end = period_around(moment, period, ZoneInfo(tz))
    assert begin <= moment + 1e-6
    assert moment < end
    if period in ("day", "week", "month"):
        assert period_around(end, period, ZoneInfo(tz))[0] == end
        assert period_around(begin, period, ZoneInfo(tz)) == (begin, end)


@given(st.floats(0, 2e9), st.floats(0.01, 1e5) | st.sampled_from([0.1, 0.3, 7.0, 10.0, 1 / 3]))
@example(1712331106.1999998, 3.3)  # the quotient is rounded down, and up
@example(1781138881.4999998, 3.3)
def test_windows_by_the_clock_are_multiples_of_their_length_and_follow_one_another_without_a_gap(moment, seconds):
    begin, end = period_around(moment, seconds, BERLIN)
    assert begin <= moment < end
    assert begin == round(begin / seconds) * seconds
    assert period_around(begin, seconds, BERLIN) == (begin, end)
    assert period_around(end, seconds, BERLIN)[0] == end


def test_a_number_of_seconds_that_has_a_name_is_that_period():
    """So a week begins on Monday and not, as 1970 did, on Thursday."""
    periods = [calendar(1, seconds).period for seconds in (60, 3_600, 86_400, 604_800, timedelta(hours=1), 61)]
    assert periods == ["minute", "hour", "day", "week", "hour", 61]
    assert str(calendar(100, 10)) == "100 in each 10s by the clock"
    with pytest.raises(ValueError, match="leave tz= out"):
        calendar(1, 10, "Europe/Berlin")


def test_a_window_by_the_clock_gives_twice_its_amount_around_its_end_and_no_more():
    window = CalendarWindow(calendar(100, 10))
    window.follow(wall(2026, 5, 5, tz="UTC") + 9.9)
    assert window.charge_if_ready(100, 0.0) is not None
    assert window.charge_if_ready(1, 0.0) is None
    assert window.ready_at(100, 0.0) == pytest.approx(0.1, abs=1e-6)
    assert window.charge_if_ready(100, 0.1) is not None
    assert window.ready_at(1, 0.1) == pytest.approx(10.1, abs=1e-6)


def day_window(amount: float, *moment: int, tz: str = "UTC") -> CalendarWindow:
    window = CalendarWindow(calendar(amount, "day", tz))
    window.follow(wall(*moment, tz=tz))
    return window


def test_a_calendar_window_starts_anew_with_its_period():
    window = day_window(10, 2026, 3, 29, 0, 30, tz="Europe/Berlin")
    assert window.idle(0.0)
    assert window.charge_if_ready(7, 0.0) is not None
    assert (window.glance(0.0), window.level(0.0), window.used(0.0), window.idle(0.0)) == (3, 3, 7, False)
    assert window.charge_if_ready(4, 0.0) is None
    midnight = 22.5 * 3600
    assert window.ready_at(4, 0.0) == midnight
    assert window.ready_at(3, 0.0) == 0.0
    assert window.charge_if_ready(4, midnight - 0.001) is None
    assert (window.glance(midnight), window.level(midnight)) == (10, 10)
    assert window.idle(midnight)
    assert window.charge_if_ready(10, midnight) is not None
    assert window.ready_at(1, midnight) == midnight + 24 * 3600


def test_the_period_that_a_call_belongs_to_is_the_only_one_it_gives_back_to():
    window = day_window(10, 2026, 1, 1, 12)
    receipt = window.charge(6, 0.0)
    window.give_back(2, receipt, 1.0)
    assert window.level(1.0) == 6
    window.charge(3, 13 * 3600.0)
    window.give_back(4, receipt, 13 * 3600.0)
    assert window.level(13 * 3600.0) == 7
    window.give_back(5, window.charge(0, 13 * 3600.0), 13 * 3600.0)
    assert window.level(13 * 3600.0) == 10, "never above the amount"


def test_more_than_one_period_holds_takes_one_period_after_another():
    """As for a whole line; days of 23 hours count as such."""
    window = day_window(10, 2026, 3, 28, 12, tz="Europe/Berlin")
    window.charge(4, 0.0)
    assert window.ready_at(6, 0.0) == 0
    assert window.ready_at(16, 0.0) == 12 * 3600
    assert window.ready_at(17, 0.0) == (12 + 23) * 3600
    assert window.ready_at(26, 0.0) == (12 + 23) * 3600
    assert window.ready_at(27, 0.0) == (12 + 23 + 24) * 3600


@pytest.mark.parametrize("back", [1.0, 3600.0, 86_400.0])
def test_a_wall_clock_that_steps_back_frees_nothing(back):
    """Neither in the day before nor, when it comes again, in the one that it had shown."""
    window = day_window(10, 2026, 1, 10, 23, 59, tz="Asia/Tokyo")
    window.charge(10, 0.0)
    assert window.charge_if_ready(10, 61.0) is not None  # the next day
    window.follow(window.offset - back)
    assert window.level(62.0) == 0
    end = wall(2026, 1, 12, tz="Asia/Tokyo") - window.offset
    assert window.ready_at(1, 62.0) == end
    assert window.charge_if_ready(1, wall(2026, 1, 11, tz="Asia/Tokyo") - window.offset) is None
    assert window.charge_if_ready(1, end - 0.01) is None
    assert window.charge_if_ready(10, end) is not None


def test_a_wall_clock_that_stood_years_ahead_stops_nobody_for_years():
    """What was spent meanwhile counts until the end of the day on which it is put back; and in the day that it showed."""
    window = day_window(10, 2036, 1, 10, 12)
    window.charge(8, 0.0)
    ahead = window.offset
    window.follow(wall(2026, 1, 10, 12, tz="UTC"))
    assert window.level(1.0) == 2
    midnight = wall(2026, 1, 11, tz="UTC") - window.offset
    assert window.ready_at(3, 1.0) == midnight
    assert window.charge_if_ready(10, midnight) is not None
    assert window.charge_if_ready(10, midnight + 86_400) is not None
    window.follow(ahead - midnight - 86_400)
    assert window.level(midnight + 86_401) == 2


def test_a_second_step_back_before_anything_was_spent_forgets_nothing_of_the_first():
    window = day_window(10, 2026, 1, 20, 12)
    window.charge(8, 0.0)
    window.follow(window.offset - 10 * 86_400)
    assert (window.level(0.0), window.level(86_400.0)) == (2, 10)
    window.follow(window.offset - 86_400)
    assert window.level(86_400.0) == 10
    window.follow(window.offset + 10 * 86_400)
    assert window.level(86_400.0) == 2


def test_what_was_spent_in_a_day_that_the_clock_passes_over_counts_nowhere():
    window = day_window(10, 2026, 1, 10, 12)
    window.charge(8, 0.0)
    window.follow(window.offset - 86_400)
    assert window.level(1.0) == 2
    window.follow(window.offset + 2 * 86_400)
    assert window.level(2.0) == 10


def test_calls_on_their_way_when_a_period_ends_count_in_the_next_too():
    window = day_window(10, 2026, 1, 10, 23)
    for _ in range(2):
        window.postpone(3, window.charge(3, 3599.0), 3601.0, 3599.0)
    assert window.level(3599.0) == 4
    assert window.level(3600.0) == 4


def test_more_than_one_period_holds_waits_for_what_is_left_of_one_to_come():
    window = day_window(10, 2026, 1, 11, 12)
    window.charge(8, 0.0)
    window.follow(window.offset - 86_400.0)
    midnight = 12 * 3600
    assert window.ready_at(2, 0.0) == 0
    assert window.ready_at(4, 0.0) == midnight  # 2 today, 2 of the day to come
    assert window.ready_at(5, 0.0) == midnight + 86_400


def test_a_window_that_was_packed_away_knows_its_period():
    window = day_window(10, 2036, 1, 10, 12)
    window.charge(8, 0.0)
    other = day_window(10, 2026, 1, 10, 12)
    other.unpack(window.pack())
    assert other.ready_at(3, 0.0) == 12 * 3600


def test_ready_after_of_a_calendar_window_charges_nothing():
    window = day_window(10, 2026, 1, 1, 23)
    window.charge(5, 0.0)
    assert window.ready_after(3, 2, 0.0) == 0.0
    assert window.ready_after(3, 3, 0.0) == 3600.0
    assert window.ready_after(1, 1, 3600.0) == 3600.0, "the next day has begun"
    assert window.used(3600.0) == 0
    window.charge(5, 3600.0)
    window.ready_after(3, 3, 3600.0)
    assert window.level(3600.0) == 5


def test_a_calendar_change_keeps_what_was_used_until_the_end_of_the_new_period():
    window = day_window(10, 2026, 1, 1, 12, 30)
    window.charge(8, 0.0)
    assert window.change(calendar(5, "hour"), 60.0)
    assert window.level(60.0) == -3
    assert window.ready_at(1, 60.0) == 1800.0
    assert window.ready_at(1, 1800.0) == 1800.0
    assert window.change(calendar(5, "day", "Asia/Tokyo"), 1800.0)
    window.charge(5, 1800.0)
    assert window.ready_at(1, 1800.0) == 2.5 * 3600 - 0.5 * 3600 + 0.5 * 3600
    used = day_window(10, 2026, 1, 1, 23)
    used.charge(8, 0.0)
    used.change(calendar(10, "week"), 3600.0)
    assert used.level(3600.0) == 10, "what was used belonged to a day that has ended"


def test_a_calendar_window_that_was_put_away_goes_on():
    window = day_window(10, 2026, 1, 1, 12)
    window.charge(4, 0.0)
    other = day_window(10, 2026, 1, 1, 12)
    other.unpack(window.pack())
    assert other.level(5.0) == 6
    assert other.ready_at(7, 5.0) == 12 * 3600
    other.charge(0.5, 5.0)
    assert other.level(5.0) == 5.5
    assert other.level(12 * 3600.0) == 10


def test_the_calendars_fractions_add_up():
    window = day_window(1, 2026, 1, 1)
    for _ in range(1_000):
        assert window.charge_if_ready(0.001, 0.0) is not None
    assert window.charge_if_ready(0.001, 0.0) is None
    assert timedelta(seconds=window.ready_at(0.001, 0.0)) == timedelta(days=1)
