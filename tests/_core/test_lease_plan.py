"""How much more a process asks the store for: what those who wait need, and what was used lately."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock import Rate, calendar, per_second, sliding
from penstock._core.lease import (
    plan,
)
from penstock._core.queue import Queue
from tests._core.leases import AMOUNTS, NOW, hold, leased, waits


def asked(queue, *states, lease_seconds=8.0, more=False):
    """The requests, as (amounts by limit, horizon), and when to look again."""
    requests, again = plan(queue, states, NOW, lease_seconds, more=more)
    return [(dict(request.charges), request.horizon) for request in requests], again


def test_a_call_that_can_be_served_out_of_what_is_held_needs_no_store():
    queue, state = Queue(), leased(per_second(1, burst=99), held=5)
    assert asked(queue, state) == ([], math.inf)
    waits(queue, (state, 5))
    assert asked(queue, state) == ([], math.inf)


def test_the_first_in_line_needs_all_of_it_whenever_it_comes():
    """Though some is held: that may have gone back when the rest is there."""
    queue, state = Queue(), leased(per_second(1, burst=99), held=4)
    waits(queue, (state, 5))
    waits(queue, (state, 3))
    assert asked(queue, state) == ([({state: 5}, math.inf)], math.inf)


def test_of_what_does_not_flow_in_only_what_is_missing_is_asked_for():
    """A window or a day may be used up to its last unit, and must not wait for what is here."""
    for limit in (sliding(50, 100), calendar(50, "day")):
        queue, state, bucket = Queue(), leased(limit, held=4), leased(per_second(1, burst=99))
        waits(queue, (state, 5), (bucket, 2))
        assert asked(queue, state, bucket) == ([({state: 1, bucket: 2}, math.inf)], math.inf)
        other, enough = Queue(), leased(limit, held=5)
        waits(other, (enough, 5), (bucket, 2))
        assert asked(other, enough, bucket) == ([({bucket: 2}, math.inf)], math.inf)


@pytest.mark.parametrize(
    ("lease_seconds", "queued", "alike"),
    [(8.0, 60, 6), (8.0, 9, 3), (8.0, 5, 1), (0.08, 60, 1), (0.16, 60, 3)],
    ids=["as flow in within 20 ms", "as wait", "one and a half", "one flows in", "within a sixteenth of a lease"],
)
def test_the_first_in_line_asks_for_those_like_it_that_could_go_soon(lease_seconds, queued, alike):
    queue = Queue()
    state, plenty = (
        leased(per_second(1000, burst=9000), lease_seconds=lease_seconds),
        leased(per_second(9000, burst=99_000), lease_seconds=lease_seconds),
    )
    waits(queue, (state, 3), (plenty, 1))
    for _ in range((queued - 3) // 3):
        waits(queue, (state, 3), (plenty, 1))
    if queued % 3:
        waits(queue, (state, queued % 3), (plenty, 1))
    assert asked(queue, state, plenty, lease_seconds=lease_seconds)[0] == [
        ({state: 3 * alike, plenty: alike}, math.inf)
    ]


def test_nobody_asks_for_more_at_once_than_the_store_ever_gives():
    """Else it would wait until the bucket has been full for a while, and what overflows then is lost."""
    queue, state = Queue(), leased(per_second(1000, burst=8006))  # 6 at once: the rest of the burst is for the lease
    for _ in range(50):
        waits(queue, (state, 2))
    assert asked(queue, state)[0] == [({state: 6}, math.inf)]
    queue, state = Queue(), leased(per_second(1000, burst=8006, overdraft=True))
    waits(queue, (state, 8))
    waits(queue, (state, 8))
    assert asked(queue, state)[0] == [({state: 8}, math.inf)], "but for one call that is larger and may be"


def test_what_flows_in_least_says_how_many_are_alike():
    queue, fast, slow = Queue(), leased(per_second(1000, burst=9000)), leased(per_second(100, burst=900))
    for _ in range(30):
        waits(queue, (fast, 1), (slow, 1))
    assert asked(queue, fast, slow)[0] == [({fast: 2, slow: 2}, math.inf)]


@pytest.mark.parametrize(("lease_seconds", "soon"), [(8.0, 0.020), (0.04, 0.010)])
def test_a_call_that_is_not_first_for_a_limit_asks_only_for_what_comes_soon(lease_seconds, soon):
    """Else it would reserve what the one before it needs. Who shares nothing with those before it is first."""
    queue = Queue()
    one, two, three = (leased(per_second(1, burst=99), lease_seconds=lease_seconds) for _ in range(3))
    waits(queue, (one, 5), (two, 5))
    waits(queue, (two, 4))
    waits(queue, (three, 6))
    waits(queue, (one, 3), (three, 3))
    assert asked(queue, one, two, three, lease_seconds=lease_seconds)[0] == [
        ({one: 5, two: 5}, math.inf),
        ({two: 4}, soon),
        ({three: 6}, math.inf),
        ({one: 3, three: 3}, soon),
    ]


def test_a_call_that_has_enough_here_is_first_for_its_limits_all_the_same():
    queue, state = Queue(), leased(per_second(1, burst=99), held=5)
    other = leased(per_second(1, burst=99))
    waits(queue, (state, 5))
    waits(queue, (state, 1), (other, 1))
    assert asked(queue, state, other)[0] == [({state: 1, other: 1}, 0.020)]


def test_while_a_limit_is_paused_nothing_is_asked_for_those_that_need_it():
    """And it is known when to look again: at the end of the pause that ends first."""
    queue = Queue()
    one, two, three = (leased(per_second(1, burst=99)) for _ in range(3))
    one.paused_until, two.paused_until = NOW + 5, NOW + 3
    waits(queue, (one, 5), (three, 1))
    assert asked(queue, one, two, three) == ([], NOW + 5)
    waits(queue, (two, 5))
    assert asked(queue, one, two, three) == ([], NOW + 3)
    waits(queue, (three, 2))
    assert asked(queue, one, two, three) == ([({three: 2}, 0.020)], NOW + 3)
    one.paused_until = two.paused_until = NOW
    assert asked(queue, one, two, three) == (
        [({one: 5, three: 1}, math.inf), ({two: 5}, math.inf), ({three: 2}, 0.020)],
        math.inf,
    )


def test_a_call_that_needs_two_limits_waits_for_the_later_end_of_their_pauses():
    queue, one, two = Queue(), leased(per_second(1, burst=99)), leased(per_second(1, burst=99))
    one.paused_until, two.paused_until = NOW + 5, NOW + 3
    waits(queue, (one, 5), (two, 1))
    assert asked(queue, one, two) == ([], NOW + 5)


def test_a_period_that_is_used_up_is_asked_about_when_the_next_begins():
    """Unless what is here will do; a bucket is asked at any time, as the store reserves what flows in."""
    day = leased(calendar(50, "day"), used=46, held=2)
    queue = Queue()
    waits(queue, (day, 6))
    assert asked(queue, day) == ([({day: 4}, math.inf)], math.inf), "2 here and 4 there"
    queue = Queue()
    waits(queue, (day, 7))
    end = day.meter.ready_at(5, NOW)
    assert end > NOW
    assert asked(queue, day) == ([], end)
    day.paused_until = NOW
    assert asked(queue, day) == ([], end), "a pause that is over says nothing"
    last = leased(calendar(50, "day"), used=50, held=5)
    queue = Queue()
    waits(queue, (last, 6))
    assert asked(queue, last) == ([], end), "one is missing"
    bucket = leased(per_second(1, burst=99), used=500)
    queue = Queue()
    over = leased(calendar(50, "day"), used=60, held=6)
    waits(queue, (over, 6), (bucket, 2))
    assert asked(queue, over, bucket) == ([({bucket: 2}, math.inf)], math.inf), "what it needs of the day is here"
    queue = Queue()
    waits(queue, (bucket, 7))
    assert asked(queue, bucket) == ([({bucket: 7}, math.inf)], math.inf)


def hungry(state, used, seconds=1.0):
    """So much was used since more was asked for last, so long ago."""
    state.pool.used, state.pool.asked_at = float(used), NOW - seconds
    return state


def test_what_is_used_is_asked_for_in_advance():
    """Four times what was used since, in parts of 20 ms of throughput, of what is there now."""
    state = hungry(leased(per_second(100, burst=2000)), 20)
    assert asked(Queue(), state, more=True) == ([({state: 10}, 0.0)] * 8, math.inf)
    assert state.pool.low == 40
    assert asked(Queue(), state) == ([], math.inf), "not unless more is wanted"


def test_a_process_that_used_nothing_asks_for_nothing_in_advance():
    state = leased(per_second(100, burst=2000))
    assert asked(Queue(), state, more=True) == ([], math.inf)
    assert state.pool.low == 0


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
    """By a quarter of what flows in during a lease, or an eighth of what is there: the rest is for the other
    processes."""
    state = hungry(leased(limit, used=used), 5000)
    assert asked(Queue(), state, more=True)[0] == [({state: part}, 0.0) for part in asks]
    assert state.pool.low == most / 2


def test_more_is_asked_for_when_half_is_used():
    state = hungry(leased(per_second(100, burst=2000), held=40), 20)
    assert asked(Queue(), state, more=True) == ([], math.inf), "half of 80 is here"
    state.pool.take(1.0, NOW)
    state.pool.used = 20.0
    assert asked(Queue(), state, more=True)[0] == [({state: 5}, 0.0)] * 8


@pytest.mark.parametrize(("lease_seconds", "soon"), [(8.0, 0.020), (0.08, 0.010)])
def test_what_goes_back_soon_does_not_count_as_held(lease_seconds, soon):
    state = hungry(leased(per_second(100, burst=2000), lease_seconds=lease_seconds), 20, seconds=0.0)
    for closes, held in ((NOW + soon * 0.99, 0), (NOW + soon, 90)):
        state.pool.leases, state.pool.left = [], 0.0
        hold(state, 90, closes=closes)
        asked(Queue(), state, lease_seconds=lease_seconds, more=True)
        requests, _ = asked(Queue(), state, lease_seconds=lease_seconds, more=True)
        assert bool(requests) == (not held)


def test_a_line_asks_for_as_much_as_it_could_use():
    """For the first at any time; for those behind it, so much as is there, or flows in within a quarter of the
    lease."""
    queue, state = Queue(), leased(per_second(10, burst=180), used=70)  # 30 are there, and 20 come
    for _ in range(12):
        waits(queue, (state, 10))
    requests, again = asked(queue, state, more=True)
    assert requests == [({state: 10}, math.inf), *[({state: 5}, 2.0)] * 8]
    assert again == math.inf
    assert state.pool.low == 25


def test_a_line_before_a_bucket_in_debt_waits_for_what_flows_in():
    queue, state = Queue(), leased(per_second(1, burst=18), used=15)
    for _ in range(5):
        waits(queue, (state, 1))
    assert asked(queue, state, more=True)[0] == [({state: 1}, math.inf), ({state: 1}, 2.0)]
    assert state.pool.low == 1


def test_what_the_first_of_each_shape_ask_for_is_not_asked_for_again():
    queue, state, other = Queue(), leased(per_second(10, burst=180)), leased(per_second(10, burst=180))
    waits(queue, (state, 10))
    waits(queue, (state, 20), (other, 5))
    waits(queue, (state, 10))
    assert asked(queue, state, other, more=True)[0] == [
        ({state: 10}, math.inf),
        ({state: 20, other: 5}, 0.020),
        *[({state: 1}, 2.0)] * 8,
    ]


def test_as_the_store_is_asked_anyway_all_that_could_be_used_is_asked_for():
    """Of a limit too of which more than half is here."""
    queue, state, other = (
        Queue(),
        leased(per_second(10, burst=180), held=4),
        hungry(leased(Rate(100, 1.0, 2000), held=50), 20),
    )
    assert asked(queue, state, other, more=True)[0] == []
    waits(queue, (state, 5))
    assert asked(queue, state, other, more=True)[0] == [({state: 5}, math.inf), *[({other: 3}, 2.0)] * 8]


def test_a_short_line_asks_for_no_more_than_it_needs():
    queue, state = Queue(), leased(per_second(10, burst=180))
    for _ in range(5):
        waits(queue, (state, 10))
    assert asked(queue, state, more=True)[0] == [({state: 10}, math.inf), *[({state: 5}, 2.0)] * 8]
    assert state.pool.low == 25


def test_what_is_paused_is_not_asked_for_in_advance():
    state, paused = hungry(leased(per_second(100, burst=2000)), 20), hungry(leased(per_second(100, burst=2000)), 20)
    paused.paused_until = NOW + 1
    assert asked(Queue(), paused, state, more=True)[0] == [({state: 10}, 0.0)] * 8
    paused.paused_until = NOW
    assert asked(Queue(), paused, state, more=True)[0] == [({paused: 10, state: 10}, 0.0)] * 8


def test_limits_that_are_used_together_are_asked_for_together_as_far_as_the_scarcest_goes():
    """A tenth of one is there, so a tenth of each is asked for."""
    one, two = (
        hungry(leased(per_second(100, burst=2000)), 20),
        hungry(leased(per_second(100, burst=2000), used=1196), 10),
    )
    assert two.meter.level(NOW) == 4
    assert asked(Queue(), one, two, more=True)[0] == [({one: 2, two: 1}, 0.0)] * 4
    three = hungry(leased(per_second(100, burst=2000), used=5000), 10)
    assert asked(Queue(), one, three, more=True)[0] == []


def test_a_chunk_is_cut_into_whole_units_where_all_that_is_used_is_whole():
    """And into fractions where it is not; none is larger than the limit can ever hold."""
    state = hungry(leased(per_second(1, burst=408)), 3)
    assert asked(Queue(), state, more=True)[0] == [({state: 1}, 0.0)] * 8, "12 in 8 parts"
    state.pool.whole = False
    assert asked(Queue(), state, more=True)[0] == [({state: 1.5}, 0.0)] * 8
    few = hungry(leased(per_second(1, burst=408)), 0.25)
    assert asked(Queue(), few, more=True)[0] == [({few: 1}, 0.0)]
    few.pool.used, few.pool.whole = 0.125, False
    assert asked(Queue(), few, more=True)[0] == [({few: 0.5}, 0.0)]


def test_a_limit_of_which_a_part_would_be_less_than_a_unit_is_not_in_the_parts():
    many, few = hungry(leased(per_second(100, burst=2000)), 20), hungry(leased(per_second(100, burst=2000)), 1)
    assert asked(Queue(), many, few, more=True)[0] == [({many: 10}, 0.0)] * 8


def test_parts_are_not_smaller_than_a_unit_and_than_20_ms_of_throughput():
    fast = hungry(leased(per_second(1000, burst=20_000)), 20)
    assert asked(Queue(), fast, more=True)[0] == [({fast: 20}, 0.0)] * 4
    slow = hungry(leased(per_second(1, burst=408)), 1)
    assert asked(Queue(), slow, more=True)[0] == [({slow: 1}, 0.0)] * 4


def test_a_part_is_never_larger_than_the_limit_can_hold():
    """A queue may want more than that of a small bucket; what flows in meanwhile counts as there."""
    queue, small = Queue(), leased(per_second(100, burst=802))  # 2 at once, and 200 within a quarter of the lease
    for _ in range(400):
        waits(queue, (small, 1))
    assert asked(queue, small, more=True)[0] == [({small: 2}, math.inf), *[({small: 2}, 2.0)] * 8]


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
    """Of no limit more than the queue needs, with 20 ms of it for each shape, and the bound on what is held in advance;
    and who has to wait for the store, asks it or knows when to."""
    queue = Queue(math.inf)
    states = [
        hungry(leased(limit, held=h, used=u), b) for limit, h, u, b in zip(limits, held, used, before, strict=True)
    ]
    for amounts, priority in calls:
        waits(queue, *((state, n) for state, n in zip(states, amounts, strict=True) if n), priority=priority)
    requests, again = plan(queue, states, NOW, 8.0, more=True)
    for state in states:
        parts = [(dict(request.charges).get(state, 0.0), request.horizon) for request in requests]
        most = state.meter.burst if isinstance(state.limit, Rate) else state.limit.capacity
        largest = max((dict(waiter.charges).get(state, 0.0) for waiter in queue), default=0.0)
        assert all(0 <= part <= max(most, largest) for part, _ in parts)
        rate = state.limit.rate if isinstance(state.limit, Rate) else 0.0
        soon = 7 * max(4.0, 0.02 * rate)  # seven shapes of three limits
        bound = max(2.0 * rate, max(0.0, state.meter.level(NOW)) / 8)
        assert sum(part for part, _ in parts) <= state.queued + soon + bound + 1e-9
        in_advance = sum(part for part, horizon in parts if horizon in (0.0, 2.0))
        assert in_advance <= max(0.0, state.meter.level(NOW)) + rate * 2.0 + 1e-9
    for _, waiter in queue.heads(NOW):
        if any(state.pool.left < amount for state, amount in waiter.charges):
            assert requests or NOW < again < math.inf
