"""Leases with plain numbers: when a lease may be used, and who gets what is held. What is asked for is in
test_lease_plan.py.

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
    Lease,
    LeasePool,
    check,
    put_back,
    serve,
    take,
    window,
    working,
)
from penstock._core.queue import Queue
from tests._core.leases import AMOUNTS, NOW, hold, leased, waits

# What the store counts


def test_a_bucket_is_counted_with_so_much_less_burst_as_flows_in_during_a_lease():
    limit = Rate(100, 10.0, 60, overdraft=True, default=3)
    assert working(limit, 2.0) == Rate(100, 10.0, 40, overdraft=True, default=3)


def test_a_window_is_counted_as_longer_by_the_lease_and_a_calendar_as_it_is():
    """A lease of a calendar is not used beyond the end of its period, so nothing can be used late."""
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
    "u=10/s burst 20.5 cannot be leased for 2 s: what is leased may be used that much later, "
    "so the shared bucket works with burst − rate × lease = 20.5 − 10 × 2 = 0.5, and needs at least 1. "
    "So use a lease of at most 1.95 s, or raise burst to at least 21"
)
LEAKY = (
    "u=10/s burst 1 cannot be leased for 2 s: what is leased may be used that much later, so the shared "
    "bucket works with burst − rate × lease = 1 − 10 × 2 = -19, and needs at least 1. So raise burst to at least 21"
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
    rate=st.integers(1, 1000), burst=st.integers(2, 1000), lease_seconds=st.sampled_from([0.25, 0.5, 2.0])
)  # fmt: skip
def test_the_ways_out_that_a_refusal_names_are_ways_out(rate, burst, lease_seconds):
    try:
        check("u", Rate(rate, 1.0, burst), lease_seconds)
    except ValueError as error:
        shorter, larger = re.search(r"at most (\S+) s, or raise burst to at least (\S+)$", str(error)).groups()
        check("u", Rate(rate, 1.0, burst), 0.99 * float(shorter))  # it is rounded to three digits
        check("u", Rate(rate, 1.0, float(larger)), lease_seconds)
    else:
        assert burst - rate * lease_seconds >= 1


# When a lease may be used

SECONDS = st.integers(0, 1000).map(lambda eighths: eighths / 8)


@given(there=SECONDS, back=SECONDS, wait=SECONDS, lease_seconds=SECONDS, ahead=st.integers(-1000, 1000))
def test_a_chunk_is_open_only_within_a_lease_of_its_admission_wherever_between_question_and_answer_that_was(
    there, back, wait, lease_seconds, ahead
):
    """By the clock here, which is ahead of the store's by anything; all of it, if no time passes on the way."""
    asked = NOW
    decided, answered = asked + there, asked + there + back
    opens, closes = window(asked + ahead, answered + ahead, wait, lease_seconds)
    admitted = decided + wait + ahead
    assert opens >= admitted
    assert closes <= admitted + lease_seconds
    assert closes - opens == lease_seconds - there - back


# What is held


class Exact:
    """The same in fractions, and as slow as it likes: per lease, what is left of it."""

    def __init__(self):
        self.leases = []  # opens, closes, receipt, what is left
        self.used = Fraction(0)

    def open(self, now):
        return sorted((c for c in self.leases if c[0] <= now <= c[1]), key=lambda c: c[1])

    def take(self, amount, now):
        found = self.open(now)
        if sum(c[3] for c in found) < amount:
            return None
        parts, self.used = [], self.used + amount
        for lease in found:
            part = min(amount, lease[3])
            if part:
                lease[3] -= part
                amount -= part
                parts.append((lease[2], part))
        return parts

    def put_back(self, amount, receipt, now):
        for lease in self.leases:
            if lease[2] == receipt and now <= lease[1]:
                lease[3] += amount
                self.used -= amount
                return True
        return False

    def part_with(self, now):
        gone = [c for c in self.leases if now > c[1]]
        self.leases = [c for c in self.leases if now <= c[1]]
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
    """Against the same in exact numbers: no unit comes out that was not charged, none before or after its time, and
    none is lost."""
    pool, exact, now, open_ = LeasePool(), Exact(), NOW, []
    whole = True
    for receipt, (kind, *values) in enumerate(steps):
        if kind == "add":
            amount, opens, length = values
            pool.add(Lease(amount, now + opens, now + opens + length, 7.0, receipt))
            exact.leases.append([now + opens, now + opens + length, receipt, Fraction(amount)])
        elif kind == "take":
            taken, expected = pool.take(values[0], now), exact.take(Fraction(values[0]), now)
            whole = whole and not values[0] % 1
            assert (taken is None) == (expected is None)
            if taken is not None:
                assert sum(part for _, part in taken) == values[0]
                assert [lease.closes for lease, _ in taken] == sorted(lease.closes for lease, _ in taken)
                open_ += [(lease, part) for lease, part in taken]
                for lease, part in taken:  # equals may have been taken from in another order
                    assert lease.opens <= now <= lease.closes
                    assert part > 0
                parts = dict(expected)
                for lease, part in taken:
                    parts[lease.receipt] = parts.get(lease.receipt, 0) - Fraction(part)
                for lease in exact.leases:
                    lease[3] += parts.get(lease[2], 0)
        elif kind == "put back" and open_:
            lease, part = open_.pop(int(values[0] * (len(open_) - 1)))
            assert pool.put_back(part, lease.epoch, lease.receipt, now) == exact.put_back(
                Fraction(part), lease.receipt, now
            )
        elif kind == "sweep":
            now += values[0]
            assert {lease.receipt: lease.left for lease in pool.sweep(now)} == exact.part_with(now)
        elif kind == "drain":
            assert {lease.receipt: lease.left for lease in pool.drain()} == exact.part_with(math.inf)
        assert pool.left == sum(c[3] for c in exact.leases)
        assert pool.used == exact.used
        assert pool.whole == whole
        assert pool.free(now) == sum(c[3] for c in exact.open(now))
        for later in (now, now + 2, now + 5):
            assert pool.lasting(later) == sum(c[3] for c in exact.leases if c[1] >= later)
        assert [lease.closes for lease in pool.leases] == sorted(lease.closes for lease in pool.leases)


def test_a_chunk_is_used_when_it_is_open_and_not_before_or_after():
    """At both ends it is; then what is left of it goes back, and if nothing is left nothing does."""
    pool = LeasePool()
    pool.add(Lease(5.0, 10.0, 12.0, 1.0, 5.0))
    pool.add(Lease(0.0, 10.0, 12.0, 1.0, 6.0))
    assert [pool.take(1.0, moment) is not None for moment in (9.999, 10.0, 12.0, 12.001)] == [
        False,
        True,
        True,
        False,
    ]
    assert pool.sweep(12.0) == []
    assert [lease.left for lease in pool.sweep(12.001)] == [3.0]
    assert (pool.left, pool.leases) == (0.0, [])


def test_what_closes_first_is_used_first():
    """Whenever it came, so that little has to go back."""
    pool = LeasePool()
    for receipt, closes in enumerate((9.0, 5.0, 7.0)):
        pool.add(Lease(3.0, 0.0, closes, 1.0, float(receipt)))
    assert [(lease.receipt, part) for lease, part in pool.take(4.0, 1.0)] == [(1.0, 3.0), (2.0, 1.0)]
    assert [(lease.receipt, part) for lease, part in pool.take(4.0, 1.0)] == [(2.0, 2.0), (0.0, 2.0)]
    assert pool.take(3.0, 1.0) is None
    assert pool.left == 1.0


def test_what_was_taken_and_not_used_is_there_again_unless_its_chunk_is_closed():
    pool = LeasePool()
    pool.add(Lease(3.0, 0.0, 5.0, 1.0, 3.0))
    pool.take(3.0, 1.0)
    assert pool.put_back(2.0, 1.0, 3.0, 5.0)
    assert not pool.put_back(1.0, 1.0, 3.0, 5.1)
    assert (pool.left, pool.used) == (2.0, 1.0)


def test_of_equal_chunks_the_one_that_came_first_is_used_first():
    state = leased(per_second(1, burst=99))
    hold(state, 3, receipt=1.0)
    hold(state, 3, receipt=2.0)
    assert [(lease.receipt, part) for lease, part in state.pool.take(4.0, NOW)] == [(1.0, 3.0), (2.0, 1.0)]


def test_only_the_chunk_it_is_of_has_it_back():
    """A store that lost its rows counts receipts from the beginning again."""
    pool = LeasePool()
    pool.add(Lease(3.0, 0.0, 5.0, 1.0, 3.0))
    pool.add(Lease(3.0, 0.0, 5.0, 2.0, 4.0))
    pool.take(6.0, 1.0)
    assert not pool.put_back(1.0, 1.0, 4.0, 1.0)
    assert not pool.put_back(1.0, 2.0, 3.0, 1.0)
    assert (pool.left, pool.used) == (0.0, 6.0)
    assert pool.put_back(1.0, 2.0, 4.0, 1.0)
    assert [lease.left for lease in pool.leases] == [0.0, 1.0]


def test_parts_of_units_that_are_all_used_leave_nothing():
    """What rounding leaves in the sum goes when the lease goes."""
    pool = LeasePool()
    pool.add(Lease(0.3, 0.0, 5.0, 1.0, 1.0))
    pool.add(Lease(7.0, 0.0, 9.0, 1.0, 2.0))
    for _ in range(3):
        pool.take(0.1, 1.0)
    assert pool.sweep(6.0) == [] or pool.left == 7.0
    assert pool.left == pytest.approx(7.0, abs=1e-15)


def test_appetite_is_four_times_what_was_used_while_that_can_be_used_up():
    """So a store is asked when half is used, for twice as much; never for more than three quarters of a lease's use."""
    pool = LeasePool()
    pool.used, pool.used_then, pool.asked_at = 30.0, 20.0, NOW - 1.0
    assert pool.demand(NOW, 8.0, math.inf) == 40, "10 were used, in a second: of 80 a lease"
    pool.asked_at = NOW - 2.0
    assert pool.demand(NOW, 8.0, math.inf) == 30, "in two seconds: three quarters of 40 a lease"
    pool.asked_at = NOW
    assert pool.demand(NOW, 8.0, math.inf) == 40, "at once"
    assert LeasePool().demand(NOW, 8.0, math.inf) == 0


def test_appetite_of_a_short_lease_is_measured_over_the_moments_since_the_last_question():
    pool = LeasePool()
    pool.used, pool.asked_at = 10.0, NOW - 0.25
    assert pool.demand(NOW, 0.5, math.inf) == 15


def test_a_process_that_never_asked_and_never_used_anything_wants_nothing():
    """However much it was given by then: nobody knows since when it has been using that."""
    pool = LeasePool()
    assert pool.low == 0
    pool.asked_at = NOW
    assert pool.demand(NOW, 8.0, math.inf) == 0
    early = LeasePool()
    early.used = 5.0
    assert early.demand(NOW, 8.0, math.inf) == 0


def test_appetite_is_bounded_and_the_bound_is_not_remembered():
    pool = LeasePool()
    pool.used, pool.asked_at = 10.0, NOW - 1.0
    assert pool.demand(NOW, 8.0, 7.0) == 7
    assert pool.demand(NOW, 8.0, 100.0) == 40


def test_appetite_falls_when_an_eighth_of_a_lease_says_so_and_rises_at_once():
    """A glance right after the last question says nothing: nobody had time to use anything."""
    pool = LeasePool()
    pool.used, pool.asked_at = 10.0, NOW
    assert pool.demand(NOW + 1.0, 8.0, math.inf) == 40
    pool.used_then, pool.asked_at = 10.0, NOW + 1.0
    assert pool.demand(NOW + 1.999, 8.0, math.inf) == 40
    pool.used = 22.0
    assert pool.demand(NOW + 1.999, 8.0, math.inf) == 48
    pool.used = 11.0
    assert pool.demand(NOW + 2.0, 8.0, math.inf) == 4


# All or nothing


def test_a_call_takes_of_all_its_limits_or_of_none():
    one, two, three = (leased(per_second(1, burst=99), held=5) for _ in range(3))
    assert take([(one, 2.0), (two, 3.0)], NOW) == [(one, 2.0, 7.0, 1.0), (two, 3.0, 7.0, 1.0)]
    assert take([(three, 4.0), (one, 3.0), (two, 3.0)], NOW) is None
    assert [state.pool.left for state in (one, two, three)] == [3, 2, 5]
    assert [state.pool.used for state in (one, two, three)] == [2, 3, 0]
    assert [lease.left for state in (one, two, three) for lease in state.pool.leases] == [3, 2, 5]


def test_what_is_paused_is_not_used_though_it_is_held():
    one, two = (leased(per_second(1, burst=99), held=5) for _ in range(2))
    two.paused_until = NOW + 1
    assert take([(one, 2.0), (two, 3.0)], NOW) is None
    assert (one.pool.left, two.pool.left) == (5, 5)
    assert take([(one, 2.0), (two, 3.0)], NOW + 1) is not None


def test_what_is_not_used_after_all_is_here_again_but_for_what_is_over():
    """Of each limit by itself; the rest is the store's."""
    one, two = leased(per_second(1, burst=99)), leased(per_second(1, burst=99))
    hold(one, 5, closes=NOW + 1)
    hold(two, 5, closes=NOW + 2)
    shares = take([(one, 2.0), (two, 3.0)], NOW)
    assert put_back(shares, NOW + 1.5) == [(one, 2.0, 7.0, 1.0)]
    assert (one.pool.left, two.pool.left) == (3, 5)
    assert put_back(take([(two, 3.0)], NOW), NOW) == []
    assert two.pool.left == 5


# Who is served out of what is held


@dataclass
class Served:
    """Who got a turn, in which order."""

    queue: Queue
    got: list

    @classmethod
    def of(cls, queue):
        served = cls(queue, [])
        serve(queue, NOW, lambda waiter, shares: served.got.append((waiter, shares)))
        return served

    @property
    def who(self):
        return [waiter for waiter, _ in self.got]


def test_all_are_served_for_which_enough_is_held_in_order_of_arrival():
    queue, state = Queue(), leased(per_second(1, burst=99), held=7)
    first, second, third = waits(queue, (state, 3)), waits(queue, (state, 4)), waits(queue, (state, 1))
    served = Served.of(queue)
    assert served.got == [(first, [(state, 3.0, 7.0, 1.0)]), (second, [(state, 4.0, 7.0, 1.0)])]
    assert list(queue) == [third]
    assert state.pool.left == 0


def test_a_call_that_is_behind_one_that_has_to_wait_gets_nothing_of_what_it_needs():
    """Neither of the same shape, nor of another; what it has enough of may go on, but for what it needs itself."""
    queue = Queue()
    scarce, plenty = leased(per_second(1, burst=99), held=4), leased(per_second(1, burst=99), held=10)
    large = waits(queue, (scarce, 5), (plenty, 4))
    small, same = waits(queue, (scarce, 1)), waits(queue, (scarce, 1), (plenty, 1))
    fits, much, again = waits(queue, (plenty, 6)), waits(queue, (plenty, 1)), waits(queue, (plenty, 1))
    assert Served.of(queue).who == [fits]
    assert {*queue} == {large, small, same, much, again}
    assert plenty.pool.left == 4


def test_a_call_that_waits_needs_what_it_needs_beside_what_others_before_it_need():
    queue = Queue()
    one, two = leased(per_second(1, burst=99), held=1), leased(per_second(1, burst=99), held=1)
    plenty = leased(per_second(1, burst=99), held=10)
    waits(queue, (one, 2), (plenty, 3))
    waits(queue, (two, 2), (plenty, 4))
    last = waits(queue, (plenty, 3))
    assert Served.of(queue).who == [last]
    over = waits(queue, (plenty, 1))
    assert Served.of(queue).who == []
    assert list(queue)[-1] is over


def test_a_call_that_needs_the_last_unit_of_another_limit_gets_it():
    queue = Queue()
    scarce, other = leased(per_second(1, burst=99), held=4), leased(per_second(1, burst=99), held=3)
    waits(queue, (scarce, 5))
    last = waits(queue, (other, 3))
    assert Served.of(queue).who == [last]


def test_one_whose_limit_is_paused_keeps_what_it_needs_too():
    queue = Queue()
    paused, free = leased(per_second(1, burst=99), held=9), leased(per_second(1, burst=99), held=5)
    paused.paused_until = NOW + 1
    waits(queue, (paused, 1), (free, 3))
    first, _ = waits(queue, (free, 2)), waits(queue, (free, 1))
    assert Served.of(queue).who == [first]
    assert (paused.pool.left, free.pool.left) == (9, 3)


@given(
    held=st.tuples(*[st.integers(0, 25)] * 3),
    calls=st.lists(st.tuples(AMOUNTS, st.integers(0, 1)), max_size=20),
    paused=st.sampled_from([None, None, 0, 1]),
)
def test_nobody_is_delayed_by_those_behind_and_nobody_waits_for_nothing(held, calls, paused):
    """Everybody is looked at in turn, by brute force: who can go without what those before it need, goes."""
    queue = Queue(math.inf)
    states = [leased(per_second(1, burst=99), held=amount) for amount in held]
    if paused is not None:
        states[paused].paused_until = NOW + 1
    everybody = [
        waits(queue, *((state, n) for state, n in zip(states, amounts, strict=True) if n), priority=priority)
        for amounts, priority in calls
    ]
    free = dict(zip(states, held, strict=True))
    short, shapes, expected = set(), set(), []
    for waiter in sorted(everybody, key=lambda waiter: (-waiter.priority, waiter.number)):
        shape = frozenset(state for state, _ in waiter.charges)
        if shape in shapes:
            continue  # who is before it needs the same
        able = all(state not in short and free[state] >= n and state.paused_until <= NOW for state, n in waiter.charges)
        if able:
            expected.append(waiter)
        else:
            shapes.add(shape)
        for state, n in waiter.charges:
            if not able and state.pool.left - sum(dict(w.charges).get(state, 0) for w in expected) < n:
                short.add(state)
            free[state] -= n
    served = Served.of(queue)
    assert served.who == expected
    assert {*queue} == {*everybody} - {*expected}
    for state, amount in zip(states, held, strict=True):
        assert state.pool.left == amount - sum(dict(waiter.charges).get(state, 0) for waiter in expected)
