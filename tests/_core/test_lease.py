"""Leases with plain numbers: when a chunk may be used, who gets what is held, and how much more is asked for.

That nobody gets more than was promised, with several processes and a store, is in tests/stores/test_leases.py.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock import Rate, calendar, in_flight, per_second, sliding
from penstock._core.lease import (
    Chunk,
    Holding,
    Leased,
    check,
    plan,
    put_back,
    serve,
    take,
    window,
    working,
)
from penstock._core.line import Line, Waiting
from penstock._core.turns import meter_for

NOW = 1000.0


def leased(limit, *, life=8.0, held=0.0, used=0.0, unit="tokens"):
    """A limit of which `held` units lie here for as long as it takes, and `used` are used as the store says."""
    slot = Leased(unit, limit, unit)
    slot.meter = meter_for(working(limit, life))
    slot.meter.charge(used, NOW)
    slot.holding = Holding()
    if held:
        hold(slot, held)
    return slot


def hold(slot, amount, opens=0.0, closes=9999.0, mark=1.0):
    slot.holding.add(Chunk(float(amount), opens, closes, 7.0, mark))


def waits(line, *charges, priority=0):
    """Somebody who waits for these, with its limits in any order."""
    waiting = Waiting(tuple((slot, float(amount)) for slot, amount in charges), priority)
    line.join(waiting, NOW)
    return waiting


# What the store counts


def test_a_bucket_is_counted_with_so_much_less_burst_as_flows_in_during_a_lease():
    limit = Rate(100, 10.0, 60, overdraft=True, default=3)
    assert working(limit, 2.0) == Rate(100, 10.0, 40, overdraft=True, default=3)


def test_a_window_is_counted_as_longer_by_the_lease_and_a_calendar_as_it_is():
    """A chunk of a calendar is not used beyond the end of its period, so nothing can be used late."""
    assert working(sliding(5, 3.0), 0.5) == sliding(5, 3.5)
    assert working(calendar(5, "day"), 0.5) == calendar(5, "day")


def test_what_fits_to_the_last_unit_can_be_leased():
    """A bucket of which one unit is left, a window as long as the lease, a calendar at any length."""
    check("requests", Rate(10, 1.0, 21), 2.0)
    check("requests", sliding(5, 2), 2.0)
    check("requests", calendar(5, "minute"), 1e6)


class Odd:
    """A limit of the user's own."""

    capacity = 9.0
    default = None

    def __repr__(self):
        return "Odd()"


PLACES = (
    "u: places in flight are held, not spent, so there is nothing to lease: give them a limiter of their own, "
    "without lease=, and enter it first"
)
BUCKET = (
    "u=10/s burst 20.5 cannot be leased for 2 s: what is leased may be used that much later, so the shared bucket works with "
    "burst − rate × lease = 20.5 − 10 × 2 = 0.5, and needs at least 1. So use a lease of at most 1.95 s, or raise burst to at "
    "least 21"
)
LEAKY = (
    "u=10/s burst 1 cannot be leased for 2 s: what is leased may be used that much later, so the shared bucket works with "
    "burst − rate × lease = 1 − 10 × 2 = -19, and needs at least 1. So raise burst to at least 21"
)
WINDOW = (
    "u=5 in any 1.5s cannot be leased for 2 s, longer than its window: it would be counted as a window of 3.5 s. "
    "Use a lease well below 1.5 s"
)


@pytest.mark.parametrize(
    ("limit", "message"),
    [
        (in_flight(5), PLACES),
        (Rate(10, 1.0, 20.5), BUCKET),
        (Rate(10, 1.0, 1), LEAKY),
        (sliding(5, 1.5), WINDOW),
        (Odd(), "u: Odd() cannot be leased: leave lease= out"),
    ],
    ids=["places", "bucket", "leaky bucket", "window", "own kind"],
)
def test_what_cannot_be_leased_is_refused_with_the_numbers_and_the_way_out(limit, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        check("u", limit, 2.0)


@given(
    rate=st.integers(1, 1000), burst=st.integers(2, 1000), life=st.sampled_from([0.25, 0.5, 2.0])
)  # fmt: skip
def test_the_ways_out_that_a_refusal_names_are_ways_out(rate, burst, life):
    try:
        check("u", Rate(rate, 1.0, burst), life)
    except ValueError as error:
        shorter, larger = re.search(r"at most (\S+) s, or raise burst to at least (\S+)$", str(error)).groups()
        check("u", Rate(rate, 1.0, burst), 0.99 * float(shorter))  # it is rounded to three digits
        check("u", Rate(rate, 1.0, float(larger)), life)
    else:
        assert burst - rate * life >= 1


# When a chunk may be used

SECONDS = st.integers(0, 1000).map(lambda eighths: eighths / 8)


@given(there=SECONDS, back=SECONDS, wait=SECONDS, life=SECONDS, ahead=st.integers(-1000, 1000))
def test_a_chunk_is_open_only_within_a_lease_of_its_admission_wherever_between_question_and_answer_that_was(
    there, back, wait, life, ahead
):
    """By the clock here, which is ahead of the store's by anything; all of it, if no time passes on the way."""
    asked = NOW
    decided, answered = asked + there, asked + there + back
    opens, closes = window(asked + ahead, answered + ahead, wait, life)
    admitted = decided + wait + ahead
    assert opens >= admitted
    assert closes <= admitted + life
    assert closes - opens == life - there - back


# What is held


class Exact:
    """The same in fractions, and as slow as it likes: per chunk, what is left of it."""

    def __init__(self):
        self.chunks = []  # opens, closes, mark, what is left
        self.used = Fraction(0)

    def open(self, now):
        return sorted((c for c in self.chunks if c[0] <= now <= c[1]), key=lambda c: c[1])

    def take(self, amount, now):
        found = self.open(now)
        if sum(c[3] for c in found) < amount:
            return None
        parts, self.used = [], self.used + amount
        for chunk in found:
            part = min(amount, chunk[3])
            if part:
                chunk[3] -= part
                amount -= part
                parts.append((chunk[2], part))
        return parts

    def put_back(self, amount, mark, now):
        for chunk in self.chunks:
            if chunk[2] == mark and now <= chunk[1]:
                chunk[3] += amount
                self.used -= amount
                return True
        return False

    def part_with(self, now):
        gone = [c for c in self.chunks if now > c[1]]
        self.chunks = [c for c in self.chunks if now <= c[1]]
        return {c[2]: c[3] for c in gone if c[3]}


QUARTERS = st.integers(1, 60).map(lambda n: n / 4)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), QUARTERS, st.integers(-2, 5), st.integers(0, 8)),
        st.tuples(st.just("take"), QUARTERS),
        st.tuples(st.just("take"), st.integers(1, 9).map(float)),
        st.tuples(st.just("put back"), st.floats(0, 1)),
        st.tuples(st.just("sweep"), st.integers(0, 3)),
        st.tuples(st.just("drain")),
    ),
    min_size=5,
    max_size=40,
)


@given(steps=STEPS)
def test_what_is_held_is_what_came_in_less_what_was_taken(steps):
    """Against the same in exact numbers: no unit comes out that was not charged, none before or after its time, and none is lost."""
    holding, exact, now, open_ = Holding(), Exact(), NOW, []
    whole = True
    for mark, (kind, *values) in enumerate(steps):
        if kind == "add":
            amount, opens, length = values
            holding.add(Chunk(amount, now + opens, now + opens + length, 7.0, mark))
            exact.chunks.append([now + opens, now + opens + length, mark, Fraction(amount)])
        elif kind == "take":
            taken, expected = holding.take(values[0], now), exact.take(Fraction(values[0]), now)
            whole = whole and not values[0] % 1
            assert (taken is None) == (expected is None)
            if taken is not None:
                assert sum(part for _, part in taken) == values[0]
                assert [chunk.closes for chunk, _ in taken] == sorted(chunk.closes for chunk, _ in taken)
                open_ += [(chunk, part) for chunk, part in taken]
                for chunk, part in taken:  # equals may have been taken from in another order
                    assert chunk.opens <= now <= chunk.closes
                    assert part > 0
                parts = dict(expected)
                for chunk, part in taken:
                    parts[chunk.mark] = parts.get(chunk.mark, 0) - Fraction(part)
                for chunk in exact.chunks:
                    chunk[3] += parts.get(chunk[2], 0)
        elif kind == "put back" and open_:
            chunk, part = open_.pop(int(values[0] * (len(open_) - 1)))
            assert holding.put_back(part, chunk.era, chunk.mark, now) == exact.put_back(Fraction(part), chunk.mark, now)
        elif kind == "sweep":
            now += values[0]
            assert {chunk.mark: chunk.left for chunk in holding.sweep(now)} == exact.part_with(now)
        elif kind == "drain":
            assert {chunk.mark: chunk.left for chunk in holding.drain()} == exact.part_with(math.inf)
        assert holding.left == sum(c[3] for c in exact.chunks)
        assert holding.used == exact.used
        assert holding.whole == whole
        assert holding.free(now) == sum(c[3] for c in exact.open(now))
        for later in (now, now + 2, now + 5):
            assert holding.lasting(later) == sum(c[3] for c in exact.chunks if c[1] >= later)
        assert [chunk.closes for chunk in holding.chunks] == sorted(chunk.closes for chunk in holding.chunks)


def test_a_chunk_is_used_when_it_is_open_and_not_before_or_after():
    """At both ends it is; then what is left of it goes back, and if nothing is left nothing does."""
    holding = Holding()
    holding.add(Chunk(5.0, 10.0, 12.0, 1.0, 5.0))
    holding.add(Chunk(0.0, 10.0, 12.0, 1.0, 6.0))
    assert [holding.take(1.0, moment) is not None for moment in (9.999, 10.0, 12.0, 12.001)] == [
        False,
        True,
        True,
        False,
    ]
    assert holding.sweep(12.0) == []
    assert [chunk.left for chunk in holding.sweep(12.001)] == [3.0]
    assert (holding.left, holding.chunks) == (0.0, [])


def test_what_closes_first_is_used_first():
    """Whenever it came, so that little has to go back."""
    holding = Holding()
    for mark, closes in enumerate((9.0, 5.0, 7.0)):
        holding.add(Chunk(3.0, 0.0, closes, 1.0, float(mark)))
    assert [(chunk.mark, part) for chunk, part in holding.take(4.0, 1.0)] == [(1.0, 3.0), (2.0, 1.0)]
    assert [(chunk.mark, part) for chunk, part in holding.take(4.0, 1.0)] == [(2.0, 2.0), (0.0, 2.0)]
    assert holding.take(3.0, 1.0) is None
    assert holding.left == 1.0


def test_what_was_taken_and_not_used_is_there_again_unless_its_chunk_is_closed():
    holding = Holding()
    holding.add(Chunk(3.0, 0.0, 5.0, 1.0, 3.0))
    holding.take(3.0, 1.0)
    assert holding.put_back(2.0, 1.0, 3.0, 5.0)
    assert not holding.put_back(1.0, 1.0, 3.0, 5.1)
    assert (holding.left, holding.used) == (2.0, 1.0)


def test_of_equal_chunks_the_one_that_came_first_is_used_first():
    slot = leased(per_second(1, burst=99))
    hold(slot, 3, mark=1.0)
    hold(slot, 3, mark=2.0)
    assert [(chunk.mark, part) for chunk, part in slot.holding.take(4.0, NOW)] == [(1.0, 3.0), (2.0, 1.0)]


def test_only_the_chunk_it_is_of_has_it_back():
    """A store that lost its rows counts marks from the beginning again."""
    holding = Holding()
    holding.add(Chunk(3.0, 0.0, 5.0, 1.0, 3.0))
    holding.add(Chunk(3.0, 0.0, 5.0, 2.0, 4.0))
    holding.take(6.0, 1.0)
    assert not holding.put_back(1.0, 1.0, 4.0, 1.0)
    assert not holding.put_back(1.0, 2.0, 3.0, 1.0)
    assert (holding.left, holding.used) == (0.0, 6.0)
    assert holding.put_back(1.0, 2.0, 4.0, 1.0)
    assert [chunk.left for chunk in holding.chunks] == [0.0, 1.0]


def test_parts_of_units_that_are_all_used_leave_nothing():
    """What rounding leaves in the sum goes when the chunk goes."""
    holding = Holding()
    holding.add(Chunk(0.3, 0.0, 5.0, 1.0, 1.0))
    holding.add(Chunk(7.0, 0.0, 9.0, 1.0, 2.0))
    for _ in range(3):
        holding.take(0.1, 1.0)
    assert holding.sweep(6.0) == [] or holding.left == 7.0
    assert holding.left == pytest.approx(7.0, abs=1e-15)


def test_appetite_is_four_times_what_was_used_while_that_can_be_used_up():
    """So a store is asked when half is used, for twice as much; never for more than three quarters of a lease's use."""
    holding = Holding()
    holding.used, holding.used_then, holding.asked_at = 30.0, 20.0, NOW - 1.0
    assert holding.appetite(NOW, 8.0, math.inf) == 40, "10 were used, in a second: of 80 a lease"
    holding.asked_at = NOW - 2.0
    assert holding.appetite(NOW, 8.0, math.inf) == 30, "in two seconds: three quarters of 40 a lease"
    holding.asked_at = NOW
    assert holding.appetite(NOW, 8.0, math.inf) == 40, "at once"
    assert Holding().appetite(NOW, 8.0, math.inf) == 0


def test_appetite_of_a_short_lease_is_measured_over_the_moments_since_the_last_question():
    holding = Holding()
    holding.used, holding.asked_at = 10.0, NOW - 0.25
    assert holding.appetite(NOW, 0.5, math.inf) == 15


def test_who_never_asked_and_never_used_anything_wants_nothing():
    """However much it was given by then: nobody knows since when it has been using that."""
    holding = Holding()
    assert holding.low == 0
    holding.asked_at = NOW
    assert holding.appetite(NOW, 8.0, math.inf) == 0
    early = Holding()
    early.used = 5.0
    assert early.appetite(NOW, 8.0, math.inf) == 0


def test_appetite_is_bounded_and_the_bound_is_not_remembered():
    holding = Holding()
    holding.used, holding.asked_at = 10.0, NOW - 1.0
    assert holding.appetite(NOW, 8.0, 7.0) == 7
    assert holding.appetite(NOW, 8.0, 100.0) == 40


def test_appetite_falls_when_an_eighth_of_a_lease_says_so_and_rises_at_once():
    """A glance right after the last question says nothing: nobody had time to use anything."""
    holding = Holding()
    holding.used, holding.asked_at = 10.0, NOW
    assert holding.appetite(NOW + 1.0, 8.0, math.inf) == 40
    holding.used_then, holding.asked_at = 10.0, NOW + 1.0
    assert holding.appetite(NOW + 1.999, 8.0, math.inf) == 40
    holding.used = 22.0
    assert holding.appetite(NOW + 1.999, 8.0, math.inf) == 48
    holding.used = 11.0
    assert holding.appetite(NOW + 2.0, 8.0, math.inf) == 4


# All or nothing


def test_a_call_takes_of_all_its_limits_or_of_none():
    one, two, three = (leased(per_second(1, burst=99), held=5) for _ in range(3))
    assert take([(one, 2.0), (two, 3.0)], NOW) == [(one, 2.0, 7.0, 1.0), (two, 3.0, 7.0, 1.0)]
    assert take([(three, 4.0), (one, 3.0), (two, 3.0)], NOW) is None
    assert [slot.holding.left for slot in (one, two, three)] == [3, 2, 5]
    assert [slot.holding.used for slot in (one, two, three)] == [2, 3, 0]
    assert [chunk.left for slot in (one, two, three) for chunk in slot.holding.chunks] == [3, 2, 5]


def test_what_is_paused_is_not_used_though_it_is_held():
    one, two = (leased(per_second(1, burst=99), held=5) for _ in range(2))
    two.paused_until = NOW + 1
    assert take([(one, 2.0), (two, 3.0)], NOW) is None
    assert (one.holding.left, two.holding.left) == (5, 5)
    assert take([(one, 2.0), (two, 3.0)], NOW + 1) is not None


def test_what_is_not_used_after_all_is_here_again_but_for_what_is_over():
    """Of each limit by itself; the rest is the store's."""
    one, two = leased(per_second(1, burst=99)), leased(per_second(1, burst=99))
    hold(one, 5, closes=NOW + 1)
    hold(two, 5, closes=NOW + 2)
    shares = take([(one, 2.0), (two, 3.0)], NOW)
    assert put_back(shares, NOW + 1.5) == [(one, 2.0, 7.0, 1.0)]
    assert (one.holding.left, two.holding.left) == (3, 5)
    assert put_back(take([(two, 3.0)], NOW), NOW) == []
    assert two.holding.left == 5


# Who is served out of what is held


@dataclass
class Served:
    """Who got a turn, in which order."""

    line: Line
    got: list

    @classmethod
    def of(cls, line):
        served = cls(line, [])
        serve(line, NOW, lambda waiting, shares: served.got.append((waiting, shares)))
        return served

    @property
    def who(self):
        return [waiting for waiting, _ in self.got]


def test_everybody_is_served_for_whom_enough_is_held_in_order_of_arrival():
    line, slot = Line(), leased(per_second(1, burst=99), held=7)
    first, second, third = waits(line, (slot, 3)), waits(line, (slot, 4)), waits(line, (slot, 1))
    served = Served.of(line)
    assert served.got == [(first, [(slot, 3.0, 7.0, 1.0)]), (second, [(slot, 4.0, 7.0, 1.0)])]
    assert list(line) == [third]
    assert slot.holding.left == 0


def test_whoever_is_behind_one_that_has_to_wait_gets_nothing_of_what_it_needs():
    """Neither of the same shape, nor of another; what it has enough of may go on, but for what it needs itself."""
    line = Line()
    scarce, plenty = leased(per_second(1, burst=99), held=4), leased(per_second(1, burst=99), held=10)
    large = waits(line, (scarce, 5), (plenty, 4))
    small, same = waits(line, (scarce, 1)), waits(line, (scarce, 1), (plenty, 1))
    fits, much, again = waits(line, (plenty, 6)), waits(line, (plenty, 1)), waits(line, (plenty, 1))
    assert Served.of(line).who == [fits]
    assert {*line} == {large, small, same, much, again}
    assert plenty.holding.left == 4


def test_who_waits_needs_what_it_needs_beside_what_others_before_it_need():
    line = Line()
    one, two = leased(per_second(1, burst=99), held=1), leased(per_second(1, burst=99), held=1)
    plenty = leased(per_second(1, burst=99), held=10)
    waits(line, (one, 2), (plenty, 3))
    waits(line, (two, 2), (plenty, 4))
    last = waits(line, (plenty, 3))
    assert Served.of(line).who == [last]
    over = waits(line, (plenty, 1))
    assert Served.of(line).who == []
    assert list(line)[-1] is over


def test_who_needs_the_last_unit_of_another_limit_gets_it():
    line = Line()
    scarce, other = leased(per_second(1, burst=99), held=4), leased(per_second(1, burst=99), held=3)
    waits(line, (scarce, 5))
    last = waits(line, (other, 3))
    assert Served.of(line).who == [last]


def test_one_whose_limit_is_paused_keeps_what_it_needs_too():
    line = Line()
    paused, free = leased(per_second(1, burst=99), held=9), leased(per_second(1, burst=99), held=5)
    paused.paused_until = NOW + 1
    waits(line, (paused, 1), (free, 3))
    first, _ = waits(line, (free, 2)), waits(line, (free, 1))
    assert Served.of(line).who == [first]
    assert (paused.holding.left, free.holding.left) == (9, 3)


AMOUNTS = st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(0, 4)).filter(any)


@given(
    held=st.tuples(*[st.integers(0, 25)] * 3),
    calls=st.lists(st.tuples(AMOUNTS, st.integers(0, 1)), max_size=20),
    paused=st.sampled_from([None, None, 0, 1]),
)
def test_nobody_is_delayed_by_those_behind_and_nobody_waits_for_nothing(held, calls, paused):
    """Everybody is looked at in turn, by brute force: who can go without what those before it need, goes."""
    line = Line(math.inf)
    slots = [leased(per_second(1, burst=99), held=amount) for amount in held]
    if paused is not None:
        slots[paused].paused_until = NOW + 1
    everybody = [
        waits(line, *((slot, n) for slot, n in zip(slots, amounts, strict=True) if n), priority=priority)
        for amounts, priority in calls
    ]
    free = dict(zip(slots, held, strict=True))
    short, shapes, expected = set(), set(), []
    for waiting in sorted(everybody, key=lambda waiting: (-waiting.priority, waiting.number)):
        shape = frozenset(slot for slot, _ in waiting.charges)
        if shape in shapes:
            continue  # who is before it needs the same
        able = all(slot not in short and free[slot] >= n and slot.paused_until <= NOW for slot, n in waiting.charges)
        if able:
            expected.append(waiting)
        else:
            shapes.add(shape)
        for slot, n in waiting.charges:
            if not able and slot.holding.left - sum(dict(w.charges).get(slot, 0) for w in expected) < n:
                short.add(slot)
            free[slot] -= n
    served = Served.of(line)
    assert served.who == expected
    assert {*line} == {*everybody} - {*expected}
    for slot, amount in zip(slots, held, strict=True):
        assert slot.holding.left == amount - sum(dict(waiting.charges).get(slot, 0) for waiting in expected)


# What is asked for


def asked(line, *slots, life=8.0, more=False):
    """The pieces, as (amounts by limit, horizon), and when to look again."""
    pieces, again = plan(line, slots, NOW, life, more=more)
    return [(dict(piece.charges), piece.horizon) for piece in pieces], again


def test_who_can_be_served_out_of_what_is_held_needs_no_store():
    line, slot = Line(), leased(per_second(1, burst=99), held=5)
    assert asked(line, slot) == ([], math.inf)
    waits(line, (slot, 5))
    assert asked(line, slot) == ([], math.inf)


def test_the_first_in_line_needs_all_of_it_whenever_it_comes():
    """Though some is held: that may have gone back when the rest is there."""
    line, slot = Line(), leased(per_second(1, burst=99), held=4)
    waits(line, (slot, 5))
    waits(line, (slot, 3))
    assert asked(line, slot) == ([({slot: 5}, math.inf)], math.inf)


def test_of_what_does_not_flow_in_only_what_is_missing_is_asked_for():
    """A window or a day may be used up to its last unit, and must not wait for what is here."""
    for limit in (sliding(50, 100), calendar(50, "day")):
        line, slot, bucket = Line(), leased(limit, held=4), leased(per_second(1, burst=99))
        waits(line, (slot, 5), (bucket, 2))
        assert asked(line, slot, bucket) == ([({slot: 1, bucket: 2}, math.inf)], math.inf)
        other, enough = Line(), leased(limit, held=5)
        waits(other, (enough, 5), (bucket, 2))
        assert asked(other, enough, bucket) == ([({bucket: 2}, math.inf)], math.inf)


@pytest.mark.parametrize(
    ("life", "queued", "alike"),
    [(8.0, 60, 6), (8.0, 9, 3), (8.0, 5, 1), (0.08, 60, 1), (0.16, 60, 3)],
    ids=["as flow in within 20 ms", "as wait", "one and a half", "one flows in", "within a sixteenth of a lease"],
)
def test_the_first_in_line_asks_for_those_like_it_that_could_go_soon(life, queued, alike):
    line = Line()
    slot, plenty = leased(per_second(1000, burst=9000), life=life), leased(per_second(9000, burst=99_000), life=life)
    waits(line, (slot, 3), (plenty, 1))
    for _ in range((queued - 3) // 3):
        waits(line, (slot, 3), (plenty, 1))
    if queued % 3:
        waits(line, (slot, queued % 3), (plenty, 1))
    assert asked(line, slot, plenty, life=life)[0] == [({slot: 3 * alike, plenty: alike}, math.inf)]


def test_nobody_asks_for_more_at_once_than_the_store_ever_gives():
    """Else it would wait until the bucket has been full for a while, and what overflows then is lost."""
    line, slot = Line(), leased(per_second(1000, burst=8006))  # 6 at once: the rest of the burst is for the lease
    for _ in range(50):
        waits(line, (slot, 2))
    assert asked(line, slot)[0] == [({slot: 6}, math.inf)]
    line, slot = Line(), leased(per_second(1000, burst=8006, overdraft=True))
    waits(line, (slot, 8))
    waits(line, (slot, 8))
    assert asked(line, slot)[0] == [({slot: 8}, math.inf)], "but for one call that is larger and may be"


def test_what_flows_in_least_says_how_many_are_alike():
    line, fast, slow = Line(), leased(per_second(1000, burst=9000)), leased(per_second(100, burst=900))
    for _ in range(30):
        waits(line, (fast, 1), (slow, 1))
    assert asked(line, fast, slow)[0] == [({fast: 2, slow: 2}, math.inf)]


@pytest.mark.parametrize(("life", "soon"), [(8.0, 0.020), (0.04, 0.010)])
def test_who_is_not_first_for_a_limit_asks_only_for_what_comes_soon(life, soon):
    """Else it would reserve what the one before it needs. Who shares nothing with those before it is first."""
    line = Line()
    one, two, three = (leased(per_second(1, burst=99), life=life) for _ in range(3))
    waits(line, (one, 5), (two, 5))
    waits(line, (two, 4))
    waits(line, (three, 6))
    waits(line, (one, 3), (three, 3))
    assert asked(line, one, two, three, life=life)[0] == [
        ({one: 5, two: 5}, math.inf),
        ({two: 4}, soon),
        ({three: 6}, math.inf),
        ({one: 3, three: 3}, soon),
    ]


def test_who_has_enough_here_is_first_for_its_limits_all_the_same():
    line, slot = Line(), leased(per_second(1, burst=99), held=5)
    other = leased(per_second(1, burst=99))
    waits(line, (slot, 5))
    waits(line, (slot, 1), (other, 1))
    assert asked(line, slot, other)[0] == [({slot: 1, other: 1}, 0.020)]


def test_while_a_limit_is_paused_nothing_is_asked_for_those_who_need_it():
    """And it is known when to look again: at the end of the pause that ends first."""
    line = Line()
    one, two, three = (leased(per_second(1, burst=99)) for _ in range(3))
    one.paused_until, two.paused_until = NOW + 5, NOW + 3
    waits(line, (one, 5), (three, 1))
    assert asked(line, one, two, three) == ([], NOW + 5)
    waits(line, (two, 5))
    assert asked(line, one, two, three) == ([], NOW + 3)
    waits(line, (three, 2))
    assert asked(line, one, two, three) == ([({three: 2}, 0.020)], NOW + 3)
    one.paused_until = two.paused_until = NOW
    assert asked(line, one, two, three) == (
        [({one: 5, three: 1}, math.inf), ({two: 5}, math.inf), ({three: 2}, 0.020)],
        math.inf,
    )


def test_who_needs_two_limits_waits_for_the_later_end_of_their_pauses():
    line, one, two = Line(), leased(per_second(1, burst=99)), leased(per_second(1, burst=99))
    one.paused_until, two.paused_until = NOW + 5, NOW + 3
    waits(line, (one, 5), (two, 1))
    assert asked(line, one, two) == ([], NOW + 5)


def test_a_period_that_is_used_up_is_asked_about_when_the_next_begins():
    """Unless what is here will do; a bucket is asked at any time, as the store reserves what flows in."""
    day = leased(calendar(50, "day"), used=46, held=2)
    line = Line()
    waits(line, (day, 6))
    assert asked(line, day) == ([({day: 4}, math.inf)], math.inf), "2 here and 4 there"
    line = Line()
    waits(line, (day, 7))
    end = day.meter.ready_at(5, NOW)
    assert end > NOW
    assert asked(line, day) == ([], end)
    day.paused_until = NOW
    assert asked(line, day) == ([], end), "a pause that is over says nothing"
    last = leased(calendar(50, "day"), used=50, held=5)
    line = Line()
    waits(line, (last, 6))
    assert asked(line, last) == ([], end), "one is missing"
    bucket = leased(per_second(1, burst=99), used=500)
    line = Line()
    over = leased(calendar(50, "day"), used=60, held=6)
    waits(line, (over, 6), (bucket, 2))
    assert asked(line, over, bucket) == ([({bucket: 2}, math.inf)], math.inf), "what it needs of the day is here"
    line = Line()
    waits(line, (bucket, 7))
    assert asked(line, bucket) == ([({bucket: 7}, math.inf)], math.inf)


def hungry(slot, used, seconds=1.0):
    """So much was used since more was asked for last, so long ago."""
    slot.holding.used, slot.holding.asked_at = float(used), NOW - seconds
    return slot


def test_what_is_used_is_asked_for_in_advance():
    """Four times what was used since, in parts of 20 ms of throughput, of what is there now."""
    slot = hungry(leased(per_second(100, burst=2000)), 20)
    assert asked(Line(), slot, more=True) == ([({slot: 10}, 0.0)] * 8, math.inf)
    assert slot.holding.low == 40
    assert asked(Line(), slot) == ([], math.inf), "not unless more is wanted"


def test_nobody_who_used_nothing_asks_in_advance():
    slot = leased(per_second(100, burst=2000))
    assert asked(Line(), slot, more=True) == ([], math.inf)
    assert slot.holding.low == 0


@pytest.mark.parametrize(
    ("limit", "used", "most", "asks"),
    [
        (Rate(100, 1.0, 2000), 0, 200, [25] * 8),
        (Rate(1, 1.0, 408), 0, 50, [6] * 8),
        (Rate(1, 1.0, 408), 200, 25, [3] * 8),
        (sliding(400, 100.0), 0, 50, [6] * 8),
        (sliding(8, 100.0), 0, 1, [1]),
        (Rate(1, 1.0, 408), 900, 2, []),
    ],
    ids=[
        "a quarter of a lease",
        "an eighth of what is there",
        "that is less",
        "of a window",
        "of a small one",
        "nothing is there",
    ],
)
def test_what_is_held_in_advance_is_bounded(limit, used, most, asks):
    """By a quarter of what flows in during a lease, or an eighth of what is there: the rest is for the other processes."""
    slot = hungry(leased(limit, used=used), 5000)
    assert asked(Line(), slot, more=True)[0] == [({slot: part}, 0.0) for part in asks]
    assert slot.holding.low == most / 2


def test_more_is_asked_for_when_half_is_used():
    slot = hungry(leased(per_second(100, burst=2000), held=40), 20)
    assert asked(Line(), slot, more=True) == ([], math.inf), "half of 80 is here"
    slot.holding.take(1.0, NOW)
    slot.holding.used = 20.0
    assert asked(Line(), slot, more=True)[0] == [({slot: 5}, 0.0)] * 8


@pytest.mark.parametrize(("life", "soon"), [(8.0, 0.020), (0.08, 0.010)])
def test_what_goes_back_soon_does_not_count_as_held(life, soon):
    slot = hungry(leased(per_second(100, burst=2000), life=life), 20, seconds=0.0)
    for closes, held in ((NOW + soon * 0.99, 0), (NOW + soon, 90)):
        slot.holding.chunks, slot.holding.left = [], 0.0
        hold(slot, 90, closes=closes)
        asked(Line(), slot, life=life, more=True)
        pieces, _ = asked(Line(), slot, life=life, more=True)
        assert bool(pieces) == (not held)


def test_a_line_asks_for_as_much_as_it_could_use():
    """For the first at any time; for those behind it, so much as is there, or flows in within a quarter of the lease."""
    line, slot = Line(), leased(per_second(10, burst=180), used=70)  # 30 are there, and 20 come
    for _ in range(12):
        waits(line, (slot, 10))
    pieces, again = asked(line, slot, more=True)
    assert pieces == [({slot: 10}, math.inf), *[({slot: 5}, 2.0)] * 8]
    assert again == math.inf
    assert slot.holding.low == 25


def test_a_line_before_a_bucket_in_debt_waits_for_what_flows_in():
    line, slot = Line(), leased(per_second(1, burst=18), used=15)
    for _ in range(5):
        waits(line, (slot, 1))
    assert asked(line, slot, more=True)[0] == [({slot: 1}, math.inf), ({slot: 1}, 2.0)]
    assert slot.holding.low == 1


def test_what_the_first_of_each_shape_ask_for_is_not_asked_for_again():
    line, slot, other = Line(), leased(per_second(10, burst=180)), leased(per_second(10, burst=180))
    waits(line, (slot, 10))
    waits(line, (slot, 20), (other, 5))
    waits(line, (slot, 10))
    assert asked(line, slot, other, more=True)[0] == [
        ({slot: 10}, math.inf),
        ({slot: 20, other: 5}, 0.020),
        *[({slot: 1}, 2.0)] * 8,
    ]


def test_as_the_store_is_asked_anyway_all_that_could_be_used_is_asked_for():
    """Of a limit too of which more than half is here."""
    line, slot, other = (
        Line(),
        leased(per_second(10, burst=180), held=4),
        hungry(leased(Rate(100, 1.0, 2000), held=50), 20),
    )
    assert asked(line, slot, other, more=True)[0] == []
    waits(line, (slot, 5))
    assert asked(line, slot, other, more=True)[0] == [({slot: 5}, math.inf), *[({other: 3}, 2.0)] * 8]


def test_a_short_line_asks_for_no_more_than_it_needs():
    line, slot = Line(), leased(per_second(10, burst=180))
    for _ in range(5):
        waits(line, (slot, 10))
    assert asked(line, slot, more=True)[0] == [({slot: 10}, math.inf), *[({slot: 5}, 2.0)] * 8]
    assert slot.holding.low == 25


def test_what_is_paused_is_not_asked_for_in_advance():
    slot, paused = hungry(leased(per_second(100, burst=2000)), 20), hungry(leased(per_second(100, burst=2000)), 20)
    paused.paused_until = NOW + 1
    assert asked(Line(), paused, slot, more=True)[0] == [({slot: 10}, 0.0)] * 8
    paused.paused_until = NOW
    assert asked(Line(), paused, slot, more=True)[0] == [({paused: 10, slot: 10}, 0.0)] * 8


def test_limits_that_are_used_together_are_asked_for_together_as_far_as_the_scarcest_goes():
    """A tenth of one is there, so a tenth of each is asked for."""
    one, two = (
        hungry(leased(per_second(100, burst=2000)), 20),
        hungry(leased(per_second(100, burst=2000), used=1196), 10),
    )
    assert two.meter.level(NOW) == 4
    assert asked(Line(), one, two, more=True)[0] == [({one: 2, two: 1}, 0.0)] * 4
    three = hungry(leased(per_second(100, burst=2000), used=5000), 10)
    assert asked(Line(), one, three, more=True)[0] == []


def test_a_chunk_is_cut_into_whole_units_where_all_that_is_used_is_whole():
    """And into fractions where it is not; none is larger than the limit can ever hold."""
    slot = hungry(leased(per_second(1, burst=408)), 3)
    assert asked(Line(), slot, more=True)[0] == [({slot: 1}, 0.0)] * 8, "12 in 8 parts"
    slot.holding.whole = False
    assert asked(Line(), slot, more=True)[0] == [({slot: 1.5}, 0.0)] * 8
    few = hungry(leased(per_second(1, burst=408)), 0.25)
    assert asked(Line(), few, more=True)[0] == [({few: 1}, 0.0)]
    few.holding.used, few.holding.whole = 0.125, False
    assert asked(Line(), few, more=True)[0] == [({few: 0.5}, 0.0)]


def test_a_limit_of_which_a_part_would_be_less_than_a_unit_is_not_in_the_parts():
    many, few = hungry(leased(per_second(100, burst=2000)), 20), hungry(leased(per_second(100, burst=2000)), 1)
    assert asked(Line(), many, few, more=True)[0] == [({many: 10}, 0.0)] * 8


def test_parts_are_not_smaller_than_a_unit_and_than_20_ms_of_throughput():
    fast = hungry(leased(per_second(1000, burst=20_000)), 20)
    assert asked(Line(), fast, more=True)[0] == [({fast: 20}, 0.0)] * 4
    slow = hungry(leased(per_second(1, burst=408)), 1)
    assert asked(Line(), slow, more=True)[0] == [({slow: 1}, 0.0)] * 4


def test_a_part_is_never_larger_than_the_limit_can_hold():
    """A line may want more than that of a small bucket; what flows in meanwhile counts as there."""
    line, small = Line(), leased(per_second(100, burst=802))  # 2 at once, and 200 within a quarter of the lease
    for _ in range(400):
        waits(line, (small, 1))
    assert asked(line, small, more=True)[0] == [({small: 2}, math.inf), *[({small: 2}, 2.0)] * 8]


CALLS = st.lists(st.tuples(AMOUNTS, st.integers(0, 1)), max_size=12)
KINDS = st.sampled_from([per_second(5, burst=60), per_second(1000, burst=9000), sliding(20, 60.0), calendar(20, "day")])


@given(
    limits=st.tuples(KINDS, KINDS, KINDS),
    held=st.tuples(*[st.integers(0, 6)] * 3),
    used=st.tuples(*[st.integers(0, 25)] * 3),
    before=st.tuples(*[st.integers(0, 200)] * 3),
    calls=CALLS,
)
def test_whatever_is_wanted_what_is_asked_for_can_be_given_and_is_no_more_than_is_wanted(
    limits, held, used, before, calls
):
    """Of no limit more than the line needs, with 20 ms of it for each shape, and the bound on what is held in advance; and who has to
    wait for the store, asks it or knows when to."""
    line = Line(math.inf)
    slots = [
        hungry(leased(limit, held=h, used=u), b) for limit, h, u, b in zip(limits, held, used, before, strict=True)
    ]
    for amounts, priority in calls:
        waits(line, *((slot, n) for slot, n in zip(slots, amounts, strict=True) if n), priority=priority)
    pieces, again = plan(line, slots, NOW, 8.0, more=True)
    for slot in slots:
        parts = [(dict(piece.charges).get(slot, 0.0), piece.horizon) for piece in pieces]
        most = slot.meter.burst if isinstance(slot.limit, Rate) else slot.limit.capacity
        largest = max((dict(waiting.charges).get(slot, 0.0) for waiting in line), default=0.0)
        assert all(0 <= part <= max(most, largest) for part, _ in parts)
        rate = slot.limit.rate if isinstance(slot.limit, Rate) else 0.0
        soon = 7 * max(4.0, 0.02 * rate)  # seven shapes of three limits
        bound = max(2.0 * rate, max(0.0, slot.meter.level(NOW)) / 8)
        assert sum(part for part, _ in parts) <= slot.queued + soon + bound + 1e-9
        in_advance = sum(part for part, horizon in parts if horizon in (0.0, 2.0))
        assert in_advance <= max(0.0, slot.meter.level(NOW)) + rate * 2.0 + 1e-9
    for _, waiting in line.heads(NOW):
        if any(slot.holding.left < amount for slot, amount in waiting.charges):
            assert pieces or NOW < again < math.inf
