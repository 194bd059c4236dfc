"""The bucket's arithmetic against the textbook's bucket in exact fractions: plain numbers, no clock, no loop."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from penstock import Rate
from penstock._core.bucket import Bucket
from penstock._core.charging import charge_if_ready, undo
from penstock._core.limit_state import LimitState

MICROSECOND = 1e-6


class Exact:
    """A level that rises with time, up to the burst: what a bucket is, in fractions."""

    def __init__(self, limit: Rate) -> None:
        self.rate = Fraction(limit.amount) / Fraction(limit.per)
        self.burst = Fraction(limit.burst)
        self.level = self.burst
        self.at = Fraction(0)

    def go(self, now: float) -> None:
        self.level = min(self.burst, self.level + (Fraction(now) - self.at) * self.rate)
        self.at = Fraction(now)

    def ready_at(self, cost: float, now: float) -> Fraction:
        self.go(now)
        return self.at + max(Fraction(0), Fraction(cost) - self.level) / self.rate

    def charge(self, cost: float, now: float) -> None:
        self.go(now)
        self.level -= Fraction(cost)


def replay(limit: Rate, charges: list[tuple[float, Fraction]], now: float) -> Fraction:
    """The level at `now` if only these charges had ever been made."""
    exact = Exact(limit)
    for at, amount in charges:
        exact.go(at)
        exact.level -= amount
    exact.go(now)
    return exact.level


def excess(limit: Rate, charges: list[tuple[float, Fraction]]) -> Fraction:
    """By how much the worst interval passes `burst + rate · T`; below 0 if none does."""
    rate = Fraction(limit.amount) / Fraction(limit.per)
    worst = -Fraction(limit.burst)
    for first, (begin, _) in enumerate(charges):
        total = Fraction(0)
        for at, amount in itertools.islice(charges, first, None):
            total += amount
            worst = max(worst, total - Fraction(limit.burst) - rate * (Fraction(at) - Fraction(begin)))
    return worst


@st.composite
def rates(draw) -> Rate:
    amount = draw(st.sampled_from([1, 7, 40, 3_500, 90_000, 700_000_000]))
    return Rate(amount, draw(st.sampled_from([0.1, 1.0, 7.0, 60.0, 86_400.0])), draw(st.integers(1, 2 * amount)))


SHARES = st.one_of(st.sampled_from([0.0, 0.1, 0.25, 0.5, 1.0]), st.floats(0, 1))
GAPS = st.one_of(st.just(0.0), st.sampled_from([1e-6, 0.001, 0.05, 0.3, 1.0, 4.0, 30.0]), st.floats(0, 100))
BEGINNINGS = st.sampled_from([0.0, 3.7, 1e5, 1e7])


@given(limit=rates(), begin=BEGINNINGS, steps=st.lists(st.tuples(GAPS, SHARES, st.booleans()), max_size=30))
def test_it_is_ready_at_the_exact_moment_and_its_level_is_exact(limit, begin, steps):
    """Whole costs and fractions of a unit, at any rate and hour: right to a microsecond, or to what a float of units
    holds."""
    bucket, exact, now = Bucket(limit), Exact(limit), begin
    grain = max(1e-5, (begin + 3_000) * limit.rate * 2**-49)  # units
    for gap, share, whole in steps:
        now += gap
        cost = round(share * limit.burst) if whole else share * limit.burst
        assert bucket.level(now) == pytest.approx(float(replay_level(exact, now)), abs=grain)
        ready = bucket.ready_at(cost, now)
        assert ready >= now
        assert ready == pytest.approx(float(exact.ready_at(cost, now)), abs=MICROSECOND + grain / limit.rate, rel=1e-12)
        if bucket.charge_if_ready(cost, now) is not None:
            assert ready == now
            exact.charge(cost, now)
        else:
            assert ready > now


def replay_level(exact: Exact, now: float) -> Fraction:
    exact.go(now)
    return exact.level


@given(limit=rates(), begin=BEGINNINGS, used=SHARES, cost=SHARES)
def test_at_the_moment_it_names_it_grants_and_before_that_it_does_not(limit, begin, used, cost):
    """Promise 7, for a caller who sleeps for `ready_at − now` and adds it to `now`."""
    bucket = Bucket(limit)
    bucket.charge(limit.burst, begin)
    bucket.give_back(round(used * limit.burst), (bucket.tat, begin), begin)
    cost = max(1, round(cost * limit.burst))
    wait = bucket.ready_at(cost, begin) - begin
    assume(wait > 0)
    early = begin + wait - max(2 * MICROSECOND, 1e-11 * limit.burst / limit.rate, begin * 2**-49)
    if early > begin:
        assert bucket.charge_if_ready(cost, early) is None
    assert bucket.charge_if_ready(cost, begin + wait) is not None


@given(limit=rates(), parts=st.integers(1, 3_000))
def test_equal_parts_of_the_burst_fill_it_exactly(limit, parts):
    """As many as there are parts, and not one more, also where a part is no whole number."""
    bucket = Bucket(limit)
    cost = limit.burst / parts
    for _ in range(parts):
        assert bucket.charge_if_ready(cost, 0.0) is not None
    rest = limit.burst - float(parts * Fraction(cost))
    assume(cost > rest + 0.5e-6 * limit.rate + 1e-9 * limit.burst)
    assert bucket.charge_if_ready(cost, 0.0) is None
    assert bucket.level(0.0) == pytest.approx(0, abs=1e-9 * limit.burst)


def test_a_thousand_thousandths_are_one():
    bucket = Bucket(Rate(1, 86_400.0))
    for _ in range(1_000):
        assert bucket.charge_if_ready(0.001, 1e6) is not None
    assert abs(bucket.level(1e6)) < 1e-9
    assert bucket.charge_if_ready(0.001, 1e6) is None


def test_what_rounding_took_from_fractions_is_forgotten_when_the_bucket_is_full():
    bucket = Bucket(Rate(1, 1.0))
    assert bucket.rounding == 0
    for _ in range(7):
        bucket.charge(0.1, 0.0)
    assert bucket.rounding != 0
    bucket.charge(0.5, 10.0)
    assert bucket.tat == 10.5
    assert bucket.rounding == 0


@given(
    burst=st.integers(20, 200),
    per_second=st.integers(1, 5),
    steps=st.lists(
        st.one_of(
            st.tuples(st.just("charge"), st.sampled_from([0, 0, 1, 3, 10, 40, 80]), st.floats(0, 1)),
            st.tuples(st.just("refund"), st.sampled_from([0, 0, 1, 3, 10, 40, 80]), st.floats(0, 1)),
            st.tuples(st.just("part"), st.sampled_from([0, 1, 3, 10]), st.floats(0, 1)),
            st.tuples(st.just("more"), st.sampled_from([0, 1, 3, 10]), st.floats(0, 1)),
            st.tuples(st.just("undo"), st.sampled_from([0, 0, 1, 3, 10]), st.floats(0, 1)),
        ),
        max_size=60,
    ),
)
def test_refunds_never_lift_it_above_what_it_would_be_without_the_calls(burst, per_second, steps):
    """Promise 6, against the exact counterfactual: the level after a history in which the refunded parts never
    happened.

    And promise 1 with it: what stays charged never passes burst + rate · T, but for what settling upwards adds unasked.
    """
    limit = Rate(per_second, 1.0, burst)
    bucket, now, forced = Bucket(limit), 0.0, False
    history: list[list] = []  # at, amount that stays
    open_: list[list] = []  # entry of the history, receipt, amount with that receipt
    for kind, gap, share in steps:
        now += gap
        if kind == "charge":
            cost = 1 + int(share * (burst - 1))
            receipt = bucket.charge_if_ready(cost, now)
            if receipt is not None:
                history.append([now, Fraction(cost)])
                open_.append([history[-1], receipt, cost])
        elif open_:
            entry, receipt, amount = item = open_[int(share * (len(open_) - 1))]
            if kind == "more":
                kept, topped, newer = bucket.top_up(amount, 3, receipt, now)
                assert kept + topped == amount + 3
                history.append([now, Fraction(topped)])
                entry[1] -= Fraction(amount - kept)
                item[2] = kept
                open_.append([history[-1], newer, topped])
                forced = True
            else:
                back = int(share * amount) if kind == "part" else amount
                if kind == "undo":
                    bucket.undo(back, receipt, now)
                else:
                    bucket.give_back(back, receipt, now)
                entry[1] -= back
                item[2] -= back
            if not item[2]:
                open_.remove(item)
        exactly = replay(limit, [(at, amount) for at, amount in history], now)
        assert bucket.level(now) <= float(exactly) + 1e-9
    if not forced:
        assert excess(limit, [(at, amount) for at, amount in history]) <= Fraction(1, 10**6)


def test_a_fresh_bucket_is_a_new_one():
    bucket = used_and_given_back(Rate(3, 2.0, 10, overdraft=True), 5.0)
    for name in Bucket.__slots__:
        assert getattr(bucket.fresh(), name) == getattr(Bucket(Rate(3, 2.0, 10, overdraft=True)), name)


@given(limit=rates(), cost=SHARES, back=SHARES)
def test_a_refund_is_exact_when_nobody_came_between(limit, cost, back):
    """Whenever it comes: the bucket is as full as if the call had cost that much less, or simply full."""
    cost, begin = max(1, round(cost * limit.burst)), 5.0
    back = round(back * cost)
    for age in (0.0, 0.5 * cost / limit.rate, 2 * cost / limit.rate):
        bucket, less = Bucket(limit), Bucket(limit)
        receipt = bucket.charge(cost, begin)
        less.charge(cost - back, begin)
        bucket.give_back(back, receipt, begin + age)
        grain = 1e-9 * limit.burst + 1e-6
        assert bucket.level(begin + age) == pytest.approx(less.level(begin + age), abs=grain)
        assert bucket.level(begin + age) <= limit.burst


def test_clamping_alone_would_let_three_bursts_through():
    """The case that the safe rule is for: what overflowed in the meantime does not come back."""
    bucket = Bucket(Rate(1, 1.0, 10))
    old = bucket.charge(10, 0.0)
    bucket.charge(10, 10.0)
    bucket.give_back(10, old, 10.0)
    assert bucket.level(10.0) == 0
    fresh = bucket.charge(0, 12.0)
    bucket.give_back(10, fresh, 12.0)
    assert bucket.level(12.0) == 10, "a receipt taken now may give back all that the bucket misses, and no more"


def test_topping_up_leaves_one_mark_for_both_parts():
    bucket = Bucket(Rate(10, 1.0, 100))
    receipt = bucket.charge(60, 0.0)
    kept, topped, receipt = bucket.top_up(
        60, 20, receipt, 2.0
    )  # 20 of the 60 have been refilled: they are spent for good
    assert (kept, topped) == (20, 60)
    assert bucket.level(2.0) == 40
    bucket.give_back(60, receipt, 2.0)
    assert bucket.level(2.0) == 100


@given(
    before=rates(), after=rates(), share=st.floats(0, 1), age=st.floats(0, 10), begin=st.sampled_from([0.0, 3.7, 1e4])
)
def test_a_change_of_the_rate_keeps_what_was_used_and_refills_at_the_new_rate(before, after, share, age, begin):
    bucket = Bucket(before)
    cost = round(share * before.burst)
    bucket.charge(cost, begin)
    now = begin + age
    used = bucket.used(now)
    assert bucket.change(after, now)
    grain = 1e-6 + (now + 1) * max(before.rate, after.rate) * 2**-48
    assert bucket.used(now) == pytest.approx(used, abs=grain)
    assert bucket.level(now) == pytest.approx(after.burst - used, abs=grain)
    assert bucket.used(now + 1) == pytest.approx(max(0.0, used - after.rate), abs=grain)


def test_a_mark_from_before_a_change_still_gives_back():
    bucket = Bucket(Rate(1, 1.0, 10))
    receipt = bucket.charge(10, 100.0)
    bucket.change(Rate(5, 1.0, 20), 102.0)
    assert bucket.level(102.0) == 12
    bucket.give_back(10, receipt, 102.0)
    assert bucket.level(102.0) == 20


def test_overdraft_goes_when_the_bucket_is_full_and_is_paid_afterwards():
    bucket = Bucket(Rate(10, 1.0, 10, overdraft=True))
    assert bucket.charge_if_ready(25, 0.0) is not None
    assert bucket.level(0.0) == -15
    assert bucket.charge_if_ready(25, 2.4) is None
    assert bucket.ready_at(25, 0.0) == 2.5
    assert bucket.ready_at(1, 0.0) == pytest.approx(1.6)
    assert bucket.charge_if_ready(25, 2.5) is not None
    bucket.change(Rate(10, 1.0, 10), 2.5)
    assert bucket.ready_at(25, 100.0) > 100.0, "without overdraft a call above the burst is never ready"


def test_ready_after_is_ready_at_with_the_other_charged_first_and_charges_nothing():
    bucket = Bucket(Rate(10, 1.0, 100))
    bucket.charge(80, 3.0)
    twin = Bucket(Rate(10, 1.0, 100))
    twin.charge(80, 3.0)
    twin.charge(15, 4.0)
    before = (bucket.tat, bucket.offset)
    assert bucket.ready_after(15, 40, 4.0) == twin.ready_at(40, 4.0) == 6.5
    assert (bucket.tat, bucket.offset) == before
    idle = Bucket(Rate(10, 1.0, 100))
    assert idle.ready_after(30, 75, 50.0) == 50.5


def test_behind_others_it_is_ready_for_all_of_them_and_after_an_overdraft_when_that_is_paid():
    bucket = Bucket(Rate(10, 1.0, 100))
    bucket.charge(80, 3.0)
    assert bucket.ready_behind(15, 40, 4.0) == 6.5
    assert bucket.ready_behind(500, 40, 4.0) == 55, "a line may want more than it holds at once"
    bucket = Bucket(Rate(10, 1.0, 10, overdraft=True))
    assert bucket.ready_behind(25, 25, 0.0) == 2.5
    assert bucket.ready_behind(25, 5, 0.0) == 2
    assert bucket.level(0.0) == 10


@given(limit=rates(), cost=SHARES, back=SHARES, ages=st.tuples(GAPS, GAPS), begin=st.sampled_from([0.0, 3.7, 1e5]))
def test_what_is_packed_goes_on_as_if_nobody_had_put_it_away(limit, cost, back, ages, begin):
    bucket = Bucket(limit)
    receipt = bucket.charge(round(cost * limit.burst), begin)
    bucket.give_back(round(back * limit.burst), receipt, begin + ages[0])
    other = Bucket(limit)
    other.charge(limit.burst, begin)  # whatever it was before
    other.offset = other.rounding = 3.0
    other.unpack(bucket.pack())
    later = begin + ages[0] + ages[1]
    grain = 1e-6 + later * limit.rate * 2**-48
    assert other.level(later) == pytest.approx(bucket.level(later), abs=grain)
    assert (other.rounding, other.refunds) == (bucket.rounding, None)


@pytest.mark.parametrize("begin", [0.0, 1e6])
def test_it_is_idle_just_when_it_is_full(begin):
    bucket = Bucket(Rate(4, 1.0, 8))
    assert bucket.idle(begin)
    bucket.charge(8, begin)
    assert not bucket.idle(begin + 1.999)
    assert bucket.idle(begin + 2)
    packed, other = bucket.pack(), Bucket(Rate(4, 1.0, 8))
    assert [other.idle_as(packed, begin + age) for age in (0, 1.999, 2, 50)] == [False, False, True, True]
    assert bucket.used(begin + 50) == 0
    assert bucket.level(begin + 50) == 8


def test_a_servers_word_about_an_earlier_call_is_brought_up_to_now():
    """What was charged since is subtracted, what was refilled since is added; more than there is here is no news."""
    bucket = Bucket(Rate(10, 1.0, 100))
    receipt = bucket.charge(10, 0.0)
    bucket.charge(30, 0.0)
    assert bucket.level_after(60, receipt, 0.0) == 30
    assert bucket.level_after(60, receipt, 2.0) == 50
    assert bucket.level_after(95, receipt, 2.0) == bucket.level(2.0) == 80, "it has no more for us than we may take"
    bucket.give_back(10, receipt, 2.0)
    assert bucket.level_after(60, receipt, 2.0) == 50, "a refund is no charge"
    assert bucket.level_after(0, (-math.inf, 0.0), 2.0) == bucket.level(2.0), "nobody knows what was charged since"
    late = Bucket(Rate(10, 1.0, 100))
    receipt = late.charge(1, 0.0)
    assert late.level_after(5, receipt, 0.5) == 10


def test_a_slow_answer_of_a_server_that_agrees_is_no_news():
    """What overflows while nobody calls is not charged to anybody, and refills are not lost at the burst."""
    bucket = Bucket(Rate(10, 1.0, 100))
    receipt = bucket.charge(1, 0.0)
    bucket.charge(1, 60.0)
    assert bucket.level_after(99, receipt, 60.0) == 99
    busy = Bucket(Rate(10, 1.0, 100))
    receipt = busy.charge(10, 0.0)
    for second in range(1, 61):
        busy.charge(10, float(second))
    assert busy.level_after(90, receipt, 60.0) == busy.level(60.0) == 90


@given(
    stolen=st.integers(0, 12),
    steps=st.lists(st.tuples(st.integers(1, 5), st.sampled_from([0.0, 0.1, 1.0, 5.0])), min_size=1, max_size=12),
    asked=st.integers(0, 11),
)
def test_a_servers_word_never_leaves_more_than_it_has(stolen, steps, asked):
    """The server's bucket had less than ours from the start; its answer to one of our calls comes after all of them.

    Where nothing overflowed since, it is known exactly; where it did, the server has caught up by as much, at most.
    """
    limit = Rate(2, 1.0, 12)
    ours, server = Bucket(limit), Bucket(limit)
    server.charge(stolen, 0.0)
    now, calls, overflowed = 0.0, [], 0.0
    for cost, gap in steps:
        receipt = ours.charge(cost, now)
        server.charge(cost, now)
        calls.append((receipt, server.level(now), overflowed))
        now += gap
        before = server.level(now - gap) + gap * limit.amount
        overflowed += max(0.0, before - limit.burst)
    receipt, remaining, overflowed_then = calls[asked % len(calls)]
    level = ours.level_after(remaining, receipt, now)
    assert level <= server.level(now) + 1e-9
    if overflowed == overflowed_then and ours.level(now) < limit.burst:
        assert level >= server.level(now) - stolen - 1e-9
    ours.lower_to(level, now)
    assert ours.level(now) <= server.level(now) + 1e-9


def test_hearsay_only_ever_lowers_the_level():
    bucket = Bucket(Rate(10, 1.0, 100))
    bucket.lower_to(40, 0.0)
    assert bucket.level(0.0) == 40
    bucket.lower_to(70, 0.0)
    assert bucket.level(0.0) == 40
    bucket.lower_to(-5, 0.0)
    assert bucket.level(0.0) == -5


@pytest.mark.parametrize(("limit", "forgiven"), [
    (Rate(1_000_000, 1.0, 10), 0.010_000_01), (Rate(1, 1.0, 1), 1.0001e-8), (Rate(1, 86_400.0, 1_000), 0.5e-6 / 86_400),
])  # fmt: skip
def test_a_comparison_forgives_rounding_and_no_more(limit, forgiven):
    """10 ns' worth of the rate and 10⁻¹² of the burst, and never more than half a microsecond's worth."""
    assert Bucket(limit).ceiling - limit.burst == pytest.approx(forgiven, rel=0.03)


def used_and_given_back(limit: Rate, begin: float) -> Bucket:
    """A bucket whose clock runs ahead of `now` by what was given back: 7 of 10 units, of which 3 remain used at
    `begin`."""
    bucket = Bucket(limit)
    receipt = bucket.charge(10, begin)
    bucket.give_back(7, receipt, begin)
    assert bucket.offset == 7
    return bucket


@pytest.mark.parametrize("begin", [0.0, 50.0])
def test_what_was_given_back_counts_in_everything_that_comes_after(begin):
    """Its level, who is ready when, a charge, a refund, a change of the rate, and whether it is idle."""
    limit = Rate(1, 1.0, 10)
    bucket = used_and_given_back(limit, begin)
    assert bucket.level(begin) == 7
    assert bucket.ready_at(8, begin) == begin + 1
    assert bucket.ready_after(7, 2, begin) == begin + 2
    assert bucket.ready_after(1, 6, begin) == begin
    assert not bucket.idle(begin + 2.999)
    assert bucket.idle(begin + 3)
    assert bucket.ready_after(4, 7, begin + 5) == begin + 6, "it was full, and is charged from there"
    assert bucket.charge_if_ready(8, begin) is None
    second = bucket.charge_if_ready(2, begin)
    assert bucket.level(begin) == 5
    bucket.give_back(2, second, begin)
    assert (bucket.level(begin), bucket.offset) == (7, 9)
    bucket.change(Rate(2, 1.0, 10), begin)
    assert bucket.level(begin + 1) == 9
    full = used_and_given_back(limit, begin)
    full.charge(4, begin + 8)
    assert full.level(begin + 8) == 6
    assert full.charge_if_ready(6, begin + 8) is not None
    rested = used_and_given_back(limit, begin)
    assert rested.charge_if_ready(4, begin + 30) is not None
    assert rested.level(begin + 30) == 6
    topped = used_and_given_back(limit, begin)
    receipt = topped.charge(5, begin)
    assert topped.top_up(5, 1, receipt, begin)[:2] == (0, 6)
    assert topped.level(begin) == 1
    assert topped.top_up(5, 4, receipt, begin + 20)[:2] == (5, 4)
    assert topped.level(begin + 20) == 6, "it was full, and is charged from there"


@pytest.mark.parametrize("begin", [0.0, 1e7])
def test_ten_thousand_tenths_are_a_thousand(begin):
    """Each addition to 10⁷ rounds by up to 10⁻⁹; what it took is put into the next, so that they do not add up."""
    bucket = Bucket(Rate(1, 1.0, 1_000))
    for _ in range(10_000):
        bucket.charge(0.1, begin)
    assert abs(bucket.level(begin)) < 5e-9
    bucket.charge(1, begin)
    for _ in range(10):
        bucket.charge(0.1, begin)
    assert bucket.level(begin) == pytest.approx(-2, abs=5e-9)


def test_at_the_moment_it_is_full_rounding_is_forgotten_too():
    bucket = Bucket(Rate(1, 1.0))
    for _ in range(7):
        bucket.charge(0.1, 0.0)
    bucket.charge(0, bucket.tat)
    assert bucket.rounding == 0


def test_rounding_is_forgiven_to_its_last_bit():
    bucket = Bucket(Rate(1_000_000, 1.0, 10))
    assert bucket.ready_at(bucket.ceiling, 0.0) == 0.0
    assert bucket.ready_at(bucket.ceiling + 1e-9, 0.0) > 0.0


def test_a_servers_word_is_as_old_as_its_call():
    bucket = Bucket(Rate(10, 1.0, 100))
    receipt = bucket.charge(50, 100.0)
    assert bucket.level_after(40, receipt, 103.0) == 70


@given(
    st.sampled_from([Rate(10, 1.0), Rate(3, 7.0, 5), Rate(1, 0.1, 1)]),
    st.lists(
        st.tuples(
            st.sampled_from([0, 0, 0.1, 0.25, 1.0, 9.0]),
            st.one_of(st.sampled_from([1, 2, 0.1, 0.7, 5]), st.integers(-4, -1)),
        ),
        max_size=40,
    ),
)
def test_what_is_undone_was_never_there_and_never_more(limit, steps):
    """The latest first it comes back to the last unit that an exact replay without it has; in any order never more."""
    bucket, now, kept, latest_first = Bucket(limit), 0.0, [], True
    for gap, step in steps:
        now += gap
        if step > 0:
            if bucket.ready_at(step, now) <= now:
                kept.append((now, step, bucket.charge(step, now)))
        elif -step <= len(kept):
            latest_first = latest_first and step == -1
            _, amount, receipt = kept.pop(step)
            bucket.undo(amount, receipt, now)
        exact = replay(limit, [(at, Fraction(amount)) for at, amount, _ in kept], now)
        assert bucket.level(now) <= exact + 1e-6
        if latest_first:
            assert bucket.level(now) == pytest.approx(float(exact), abs=1e-6)


def test_what_is_undone_out_of_turn_does_not_make_a_later_call_younger():
    """Else it could give back what has been refilled, as if it had been charged in place of the one before it."""
    bucket = Bucket(Rate(1, 1.0, 10))
    first, second = bucket.charge(5, 0.0), bucket.charge(3, 0.0)
    bucket.undo(5, first, 0.0)
    assert bucket.level(0.0) == 7
    bucket.charge(10, 4.0)
    bucket.give_back(3, second, 4.0)
    assert bucket.level(4.0) == 0
    bucket = Bucket(Rate(1, 1.0, 10))
    receipt = bucket.charge(6, 0.0)
    bucket.give_back(2, receipt, 0.0)
    bucket.undo(4, receipt, 0.0)
    assert bucket.level(0.0) == 10, "of one of which a part had come back before"


@pytest.mark.parametrize("begin", [0.0, 1e7])
def test_the_latest_is_taken_off_as_if_it_had_never_been(begin):
    """Ten thousand times over, with what rounding took from it; and nothing is remembered of it."""
    bucket = Bucket(Rate(1, 1.0, 1_000))
    bucket.charge(0.1, begin)
    for number in range(10_000):
        cost = (1 + number % 89) / 100
        bucket.undo(cost, bucket.charge(cost, begin), begin)
    assert bucket.level(begin) == pytest.approx(999.9, abs=5e-9)
    assert bucket.refunds is None


@pytest.mark.parametrize("cost", [1, 0.1])
def test_a_call_that_tries_and_is_refused_leaves_no_trace(cost):
    """Charged on one limit, refused by the next: others' calls can be given back as if nobody had tried."""
    tokens, requests = LimitState("tokens", Rate(10, 1.0), "tokens"), LimitState("requests", Rate(1, 1.0), "requests")
    charges = ((tokens, cost), (requests, 1))
    receipts = charge_if_ready(charges, 0.0)
    for _ in range(1_000):
        assert charge_if_ready(charges, 0.0) is None
    undo(charges, receipts, 0.0)
    assert tokens.meter.level(0.0) == pytest.approx(10, abs=1e-9)
    assert requests.meter.level(0.0) == 1


def test_it_knows_since_when_a_cost_has_been_ready():
    """A late timer counts from there, and not from the moment at which it rang."""
    bucket = Bucket(Rate(2, 1, 4))
    bucket.charge(4, 10.0)
    assert [bucket.ready_since(cost, 12.0) for cost in (1, 2, 4)] == [10.5, 11.0, 12.0]
    assert bucket.ready_since(3, 11.0) == 11.0, "it is not ready yet"
    assert bucket.change(Rate(4, 1, 4), 10.0)
    assert bucket.ready_since(2, 12.0) == 10.5, "by the rate of now"
    owing = Bucket(Rate(2, 1, 4, overdraft=True))
    owing.charge(4, 10.0)
    assert owing.ready_since(3, 13.0) == 11.5
    assert owing.ready_since(99, 13.0) == 12.0, "what is larger than the burst needs a full bucket"
