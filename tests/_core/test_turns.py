"""Whose turn it is: all or nothing, nobody delayed by who came later, nobody held back for nothing."""

from __future__ import annotations

import copy
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock import Rate, calendar, in_flight, sliding, unlimited
from penstock._core import turns
from penstock._core.charging import charge, charge_if_ready, give_back, postponed, ready_at, ready_behind, undo
from penstock._core.limit_state import LimitState
from penstock._core.meter import Meter
from penstock._core.queue import Queue, Waiter
from penstock._core.turns import admit, could_go

SAME = 1e-7

LIMITS = st.one_of(
    st.builds(Rate, st.integers(1, 20), st.sampled_from([1.0, 7.0]), st.integers(12, 30)),
    st.builds(sliding, st.integers(12, 30), st.sampled_from([1.0, 7.0])),
    st.builds(in_flight, st.integers(12, 30)),
)
CALLS = st.lists(
    st.tuples(st.integers(0, 12), st.integers(0, 12), st.integers(0, 12)),
    min_size=1,
    unique_by=lambda call: tuple(map(bool, call)),  # of those with the same needs only the first is looked at
)


def slots_of(limits) -> list[LimitState]:
    return [LimitState(f"u{i}", limit, f"u{i}") for i, limit in enumerate(limits)]


def charges_of(states, amounts):
    return tuple((state, float(amount)) for state, amount in zip(states, amounts, strict=True) if amount)


def after(states, charges, now) -> dict[LimitState, Meter]:
    """The meters as they would be after these charges."""
    twins = {state: copy.deepcopy(state.meter) for state in states}
    for state, amount in charges:
        twins[state].charge(amount, now)
    return twins


@given(limits=st.tuples(LIMITS, LIMITS, LIMITS), used=st.tuples(*[st.integers(0, 30)] * 3), calls=CALLS)
def test_passing_delays_nobody_and_nobody_is_held_back_for_nothing(limits, used, calls):
    """EASY backfill against brute force: what each would be able to do is tried on copies of all limits.

    All or nothing with it: what is missing afterwards is exactly what was granted.
    """
    states, now = slots_of(limits), 3.0
    charge(charges_of(states, used), now)
    before = [state.meter.level(now) for state in states]
    queue = Queue(math.inf)
    everybody = [Waiter(charges_of(states, call)) for call in calls]
    for waiter in everybody:
        queue.join(waiter, now)
    granted, projected = [], {}

    def horizon(waiter, meters):
        """When it is ready, as far as time alone decides that: a place may come back at any moment."""
        moments = [meters[state].ready_at(amount, now) for state, amount in waiter.charges]
        return max((at for at in moments if at < math.inf), default=now)

    def grant(waiter, receipts, at):
        assert at == now
        assert len(receipts) == len(waiter.charges)
        meters = {state: state.meter for state in states}
        for earlier in everybody[: everybody.index(waiter)]:
            if earlier not in granted:
                for state in dict(earlier.charges).keys() & dict(waiter.charges).keys():
                    assert state.meter.ready_at(dict(earlier.charges)[state], now) <= projected[earlier] + SAME
        granted.append(waiter)
        for later in everybody[everybody.index(waiter) + 1 :]:
            projected[later] = horizon(later, meters)

    for waiter in everybody:
        projected[waiter] = horizon(waiter, {state: state.meter for state in states})
    next_turn = admit(queue, now, grant)

    for state, level in zip(states, before, strict=True):
        taken = sum(amount for waiter in granted for charged, amount in waiter.charges if charged is state)
        assert state.meter.level(now) == pytest.approx(level - taken, abs=1e-6)
    left = [waiter for waiter in everybody if waiter not in granted]
    assert set(queue) == set(left)
    moments = {waiter: ready_at(waiter.charges, now)[0] for waiter in left}
    assert now < next_turn <= min((at for at in moments.values() if at > now), default=math.inf) + SAME
    for index, waiter in enumerate(left):
        if moments[waiter] <= now:
            meters = after(states, waiter.charges, now)
            assert any(
                meters[state].ready_at(amount, now) > projected[earlier]
                for earlier in left[:index]
                for state, amount in earlier.charges
                if state in dict(waiter.charges)
            ), "it could go and would delay nobody, and was held back"


@pytest.mark.parametrize("many", [0, 32])
@given(
    limits=st.tuples(st.just(in_flight(12)), LIMITS, LIMITS),
    used=st.tuples(st.just(12), st.integers(0, 12), st.integers(0, 12)),
    calls=st.permutations([(1, 6, 0), (1, 0, 8), (0, 5, 0), (0, 0, 3), (0, 3, 6), (0, 12, 1)]),
)
def test_between_two_turns_nobody_could_have_gone(many, limits, used, calls):
    """Promise 7: if nothing comes back, the moment that `admit` names is the first at which it grants anybody."""
    states, now = slots_of(limits), 3.0
    charge(charges_of(states, used), now)
    queue = Queue(math.inf)
    for call in calls:
        queue.join(Waiter(charges_of(states, call)), now)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(turns, "MANY", many)
        next_turn = admit(queue, now, lambda *_: None)
        waiting = set(queue)
        for part in range(1, 9):
            admit(queue, now + part / 8 * (min(next_turn, 6.0) - now) - 1e-6, lambda *_: None)
            assert set(queue) == waiting


@given(
    limits=st.tuples(*[st.builds(Rate, st.integers(1, 20), st.just(1.0), st.integers(12, 30))] * 2),
    arrivals=st.lists(
        st.tuples(st.sampled_from([0.0, 0.0, 0.05, 0.3, 1.0]), st.integers(0, 12), st.integers(0, 12)), max_size=40
    ),
)
def test_a_call_that_is_first_is_served_by_the_moment_that_was_projected_for_it(limits, arrivals):
    """Promise 4, through time: whatever arrives behind it, the head never gets later."""
    states = slots_of(limits)
    charge(charges_of(states, [12, 12]), 0.0)
    queue, now, projected, served = Queue(math.inf), 0.0, {}, {}

    def grant(waiter, receipts, at):
        served[waiter] = at

    def look(at):
        next_turn = admit(queue, at, grant)
        heads = queue.heads(at)
        if heads:
            head = heads[0][1]
            projected.setdefault(head, ready_at(head.charges, at)[0])
        return next_turn

    pending, everybody = [], []
    for gap, *amounts in arrivals:
        now += gap
        pending.append((now, charges_of(states, amounts)))
    now, alarm = 0.0, math.inf
    while pending or len(queue):
        at = min(pending[0][0] if pending else math.inf, alarm)
        assert at < math.inf, "somebody waits, and nobody will look"
        now = max(now, at)
        while pending and pending[0][0] <= now:
            everybody.append(Waiter(pending.pop(0)[1]))
            queue.join(everybody[-1], now)
        alarm = look(now)
    assert len(served) == len(everybody)
    for waiter, moment in projected.items():
        assert served[waiter] <= moment + 1e-6


def test_all_or_nothing():
    states = slots_of([Rate(10, 1.0), in_flight(2), sliding(5, 1)])
    charges = charges_of(states, [4, 1, 3])
    assert charge_if_ready(charges, 0.0) is not None
    assert charge_if_ready(charges, 0.0) is None, "the third has only 2 left"
    assert [state.meter.level(0.0) for state in states] == [6, 1, 2]
    receipts = charge(charges, 0.0)
    assert [state.meter.level(0.0) for state in states] == [2, 0, -1]
    give_back(charges, receipts, 0.0)
    assert [state.meter.level(0.0) for state in states] == [6, 1, 2]


def test_ready_at_names_the_slot_that_is_ready_last():
    states = slots_of([Rate(10, 1.0), Rate(1, 1.0, 10)])
    charges = charges_of(states, [10, 2])
    assert ready_at(charges, 0.0) == (0.0, None)
    charge(charges, 0.0)
    assert ready_at(charges, 0.0) == (1.0, states[0])
    charge(charges_of(states, [0, 8]), 0.0)
    assert ready_at(charges, 0.0) == (2.0, states[1])
    states[0].paused_until = 5.0
    assert ready_at(charges, 0.0) == (5.0, states[0])
    assert states[0].ready_at(0, 0.0) == 5.0
    assert states[1].ready_at(0, 0.0) == 0.0
    assert states[1].ready_at(2, 0.0) == 2.0


def test_a_call_that_stands_behind_others_is_ready_after_them_in_each_of_its_limits():
    """Those in front may need more of one limit, and nothing of another."""
    states = slots_of([Rate(10, 1.0), Rate(1, 1.0, 10), Rate(5, 1.0)])
    charges = charges_of(states[:2], [10, 2])
    assert ready_behind(charges, {}, 0.0) == (0.0, None)
    assert ready_behind(charges, {states[0]: 20.0}, 0.0) == (2.0, states[0])
    assert ready_behind(charges, {states[0]: 20.0, states[1]: 11.0, states[2]: 99.0}, 0.0) == (3.0, states[1])
    assert ready_behind(charges, {states[0]: 20.0, states[1]: 0.0}, 0.0) == (2.0, states[0])
    states[1].paused_until = 1.5
    assert ready_behind(charges, {states[0]: 20.0}, 0.0) == (2.0, states[0])
    assert ready_behind(charges, {}, 0.0) == (1.5, states[1])
    large = slots_of([Rate(10, 1.0, 10, overdraft=True)])
    assert ready_behind(charges_of(large, [25]), {large[0]: 25.0}, 0.0) == (2.5, large[0])


def test_a_call_that_takes_time_on_its_way_counts_from_its_arrival():
    """But not on a limit that is of another kind by now, which cannot read its receipt."""
    states = slots_of([sliding(10, 1.0), sliding(10, 1.0)])
    charges = charges_of(states, [4, 3])
    receipts = charge(charges, 0.0)
    states[1].promise(Rate(20, 1.0), 0.0)
    used = states[1].meter.used(0.1)
    later = postponed(charges, receipts, 0.5, 0.1)
    assert later[1] == receipts[1]
    assert states[1].meter.used(0.1) == used
    assert later[0][0] is states[0].meter
    assert (states[0].meter.level(1.4), states[0].meter.ready_at(10, 1.4)) == (6, 1.5)
    give_back(charges, later, 1.4)
    assert states[0].meter.level(1.4) == 10


def test_nothing_is_charged_on_a_paused_slot_until_its_last_moment():
    states = slots_of([Rate(10, 1.0), Rate(10, 1.0)])
    states[1].paused_until = 3.0
    charges = charges_of(states, [1, 1])
    assert charge_if_ready(charges, 2.999) is None
    assert states[0].meter.level(2.999) == 10
    assert charge_if_ready(charges, 3.0) is not None
    queue, granted = Queue(math.inf), []
    states[1].paused_until = 9.0
    queue.join(Waiter(charges), 4.0)
    assert admit(queue, 4.0, lambda *a: granted.append(a)) == 9.0
    assert not granted
    assert admit(queue, 9.0, lambda *a: granted.append(a)) == math.inf
    assert len(granted) == 1


def test_a_call_that_waits_for_a_place_lets_pass_what_leaves_it_what_it_needs():
    """When a place comes back nobody knows; what is known, the tokens, is kept for whoever waits for both."""
    states = slots_of([in_flight(1), Rate(10, 1.0)])
    charge(charges_of(states, [1, 0]), 0.0)
    queue, granted = Queue(math.inf), []
    head, small, large = (Waiter(charges_of(states, call)) for call in ([1, 6], [0, 4], [0, 4]))
    for waiter in (head, small, large):
        queue.join(waiter, 0.0)
    next_turn = admit(queue, 0.0, lambda waiter, *_: granted.append(waiter))
    assert granted == [small]
    assert next_turn == pytest.approx(0.4), "until there is enough for both the other is held back for the head"
    assert admit(queue, next_turn, lambda waiter, *_: granted.append(waiter)) == math.inf
    assert granted == [small, large]


@pytest.mark.parametrize(("needy", "passes"), [(0, False), (15, False), (16, True)])
def test_sixteen_waiters_are_protected_from_being_delayed(needy, passes):
    """Beyond them the work of looking would be for everybody's time, and the order of the rest is theirs by turn."""
    states = slots_of([Rate(1, 1.0, 10)] * 18)
    charge(charges_of(states, [10] * 17 + [0]), 0.0)
    queue, granted = Queue(math.inf), []
    for index in range(17):
        shared = ((states[17], 5.0),) if index == needy else ()
        queue.join(Waiter(((states[index], 1.0), *shared)), 0.0)
    queue.join(Waiter(((states[17], 10.0),)), 0.0)
    admit(queue, 0.0, lambda waiter, *_: granted.append(waiter))
    assert bool(granted) == passes


def test_equals_go_one_after_another_and_others_in_between_by_their_turn():
    states = slots_of([Rate(5, 1.0), Rate(5, 1.0)])
    queue, granted = Queue(math.inf), []
    both = [[1, 0], [1, 1], [1, 0], [0, 1], [1, 0], [1, 1], [1, 0]]
    for call in both:
        queue.join(Waiter(charges_of(states, call)), 0.0)
    admit(queue, 0.0, lambda waiter, *_: granted.append(waiter.number))
    assert granted == [1, 2, 3, 4, 5, 6], "five fit into the first limit: in order of arrival, across their needs"
    assert admit(queue, 0.0, lambda *_: None) == pytest.approx(0.2)
    assert admit(queue, 0.2, lambda waiter, *_: granted.append(waiter.number)) == math.inf
    assert granted[-1] == 7


def test_could_go_is_what_admit_would_do():
    states = slots_of([Rate(10, 1.0), Rate(10, 1.0)])
    charge(charges_of(states, [10, 0]), 0.0)
    queue = Queue(math.inf)
    whale, needs_tokens, free, greedy = (Waiter(charges_of(states, c)) for c in ([10, 4], [1, 0], [0, 6], [0, 10]))
    for waiter in (whale, needs_tokens):
        queue.join(waiter, 0.0)
        assert not could_go(queue, waiter, 0.0)
    queue.join(free, 0.0)
    assert could_go(queue, free, 0.0)
    queue.leave(free)
    queue.join(greedy, 0.0)
    assert could_go(queue, greedy, 0.0), "what it takes is refilled by the time the whale is projected to start"
    assert not could_go(queue, needs_tokens, 0.1), "ready, and the whale would be later"
    queue.leave(whale)
    assert could_go(queue, needs_tokens, 0.1)
    behind = Waiter(charges_of(states, [1, 0]))
    queue.join(behind, 0.1)
    assert not could_go(queue, behind, 0.1), "another of its kind is first"


def test_another_limit_of_the_same_kind_goes_on_and_one_of_another_kind_takes_over_what_is_used():
    state = LimitState("requests", Rate(10, 1.0), "requests")
    meter = state.meter
    receipts = charge(((state, 6.0),), 0.0)
    state.promise(Rate(20, 1.0), 0.0)
    assert state.meter is meter
    assert state.throughput == 20
    state.promise(sliding(20, 4), 0.0)
    assert state.meter is not meter
    assert state.meter.level(0.0) == 14
    assert state.throughput == 5
    give_back(((state, 6.0),), receipts, 0.0)
    assert state.meter.level(0.0) == 14, "a receipt of the meter before cannot be given back"
    assert state.meter.used(3.0) == 6
    state.promise(in_flight(3), 3.0)
    assert state.meter.level(3.0) == 3, "but places, which nobody could give back"
    assert state.throughput == 3
    state.promise(calendar(8, "day"), 5.0)
    assert state.throughput == 8


@pytest.mark.parametrize("limit", [Rate(10, 2.0), sliding(10, 2.0)])
def test_a_slot_like_another_has_its_limit_and_nothing_used(limit):
    state = LimitState("tokens", limit, "tokens (10/2s)")
    charge(((state, 6.0),), 0.0)
    state.paused_until = 9.0
    state.queued = 3.0
    twin = LimitState.like(state)
    assert (twin.unit, twin.label, twin.limit, twin.throughput) == ("tokens", "tokens (10/2s)", limit, 5.0)
    assert (twin.queued, twin.paused_until, twin.meter.level(0.0)) == (0.0, -math.inf, 10)


class Ticket:
    """The smallest kind of limit that a user can add: n for ever."""

    capacity, default = 3, None

    def meter(self):
        return _Tickets()


class _Tickets(Meter):
    def __init__(self) -> None:
        self.left = 3.0

    def ready_at(self, cost, now):
        return now if cost <= self.left else math.inf

    def charge(self, cost, now):
        self.left -= cost
        return cost

    def level(self, now):
        return self.left


def test_a_kind_of_ones_own_needs_three_methods():
    state = LimitState("tickets", Ticket(), "tickets")
    assert state.throughput == 1.0
    charges = ((state, 2.0),)
    receipts = charge_if_ready(charges, 0.0)
    assert charge_if_ready(charges, 0.0) is None
    give_back(charges, receipts, 0.0)
    assert state.meter.level(0.0) == 1, "by default nothing comes back, which is always safe"
    assert state.meter.ready_after(1.0, 1.0, 0.0) == math.inf
    assert state.meter.level(0.0) == 1
    assert state.meter.top_up(2.0, 1.0, receipts[0][1], 0.0) == (2.0, 1.0, 1.0)
    assert not state.meter.idle(0.0)
    assert state.meter.pack() is None
    state.meter.lower_to(-2, 0.0)
    assert state.meter.level(0.0) == -2


@pytest.mark.parametrize("lead", [0.0, 1.7e9])
def test_what_was_used_stays_used_when_a_limit_of_the_calendar_takes_over(lead):
    """Which must first know the date: charged in 1970, all would be forgotten at the first look."""
    state = LimitState("requests", Rate(10, 86_400.0), "requests")
    charge(((state, 8.0),), 5.0)
    state.promise(calendar(10, "day"), 5.0, lead)
    state.meter.follow(lead)
    assert state.meter.level(6.0) == pytest.approx(2)
    in_1970 = LimitState("requests", Rate(10, 86_400.0), "requests")
    charge(((in_1970, 8.0),), 86_399.5)
    in_1970.promise(calendar(10, "day"), 86_399.5)
    assert in_1970.meter.ready_at(10, 86_399.5) == 86_400.0, "without a lead the process began with the calendar"


@pytest.mark.parametrize("lead", [0.0, 1.7e9])
def test_a_new_limit_goes_on_from_what_another_has_counted(lead):
    before = LimitState("requests", Rate(10, 86_400.0), "requests")
    charge(((before, 8.0),), 5.0)
    for limit, left in [(calendar(10, "day"), 2), (sliding(20, 60.0), 12), (in_flight(3), 3)]:
        state = LimitState("requests", limit, "requests")
        state.go_on_from(before.meter, 5.0, lead)
        if state.meter.calendar:
            state.meter.follow(lead)
        assert state.meter.level(6.0) == pytest.approx(left, abs=1e-3)
    assert before.meter.level(6.0) == pytest.approx(2, abs=1e-3)


def test_what_is_unlimited_is_no_part_of_what_a_flow_has_used():
    """A call's cost counts as seconds of a limit's throughput."""
    assert slots_of([unlimited])[0].throughput == math.inf


def test_a_new_slot_counts_nobody_and_is_not_paused():
    state = LimitState("requests", Rate(10, 1.0), "requests (10/s)")
    assert (state.unit, state.label, state.queued, state.paused_until) == (
        "requests",
        "requests (10/s)",
        0.0,
        -math.inf,
    )


def test_less_than_a_unit_that_was_used_stays_used():
    state = LimitState("dollars", Rate(10, 1.0), "dollars")
    charge(((state, 0.25),), 0.0)
    state.promise(sliding(20, 4), 0.0)
    assert state.meter.level(0.0) == 19.75
    state.promise(Rate(8, 1.0), 4.0)
    assert state.meter.level(4.0) == 8
    assert state.meter.idle(4.0)


def test_what_costs_nothing_waits_for_no_debt():
    state = slots_of([Rate(10, 1.0)])[0]
    charge(((state, 25),), 0.0)
    assert state.meter.level(0.0) == -15
    assert state.ready_at(0, 0.0) == 0.0
    assert state.ready_at(1, 0.0) == pytest.approx(1.6)


def test_each_charge_has_its_mark():
    """A receipt too few would leave a charge that nobody can ever give back."""
    states = slots_of([Rate(10, 1.0), Rate(10, 1.0)])
    charges = charges_of(states, [4, 4])
    receipts = charge(charges, 0.0)
    with pytest.raises(ValueError, match="zip"):
        give_back(charges, receipts[:1], 0.0)
    with pytest.raises(ValueError, match="zip"):
        undo(charges, receipts[:1], 0.0)
    with pytest.raises(ValueError, match="zip"):
        postponed(charges, receipts[:1], 0.5, 0.0)


def test_a_call_that_waits_for_two_places_is_not_starved_by_those_that_need_one():
    """Nobody knows when places come back; what is free now is kept for whoever is first."""
    states = slots_of([in_flight(3)])
    holding = charge(charges_of(states, [2]), 0.0)
    queue, granted = Queue(math.inf), []
    two, one = (Waiter(((states[0], float(places)),)) for places in (2, 1))
    queue.join(two, 0.0)
    queue.join(one, 0.0)
    other = slots_of([Rate(1, 1.0)])[0]
    another = Waiter(((states[0], 1.0), (other, 1.0)))
    queue.join(another, 0.0)
    assert admit(queue, 0.0, lambda waiter, *_: granted.append(waiter)) == math.inf
    assert granted == []
    assert not could_go(queue, another, 0.0)
    give_back(charges_of(states, [2]), holding, 1.0)
    admit(queue, 1.0, lambda waiter, *_: granted.append(waiter))
    assert granted == [two, one]


def test_a_waiter_that_is_granted_gets_the_receipts_of_its_charge():
    states = slots_of([Rate(10, 1.0), in_flight(2)])
    queue, granted = Queue(math.inf), []
    waiter = Waiter(charges_of(states, [6, 1]))
    queue.join(waiter, 3.0)
    admit(queue, 3.0, lambda *grant: granted.append(grant))
    ((who, receipts, at),) = granted
    assert (who, at) == (waiter, 3.0)
    assert [state.meter.level(3.0) for state in states] == [4, 1]
    give_back(waiter.charges, receipts, 3.0)
    assert [state.meter.level(3.0) for state in states] == [10, 2]


def test_a_call_that_is_behind_its_equal_could_not_go_though_both_would_fit():
    states = slots_of([Rate(10, 1.0)])
    queue = Queue(30.0)
    first, second = (Waiter(charges_of(states, [1])) for _ in range(2))
    queue.join(first, 0.0)
    queue.join(second, 0.0)
    assert could_go(queue, first, 0.0)
    assert not could_go(queue, second, 0.0)


def test_nothing_used_is_nothing_in_a_limit_of_another_kind():
    state = LimitState("requests", Rate(10, 1.0), "requests")
    state.promise(sliding(20, 4), 3.0)
    assert state.meter.idle(3.0)


def test_a_meter_that_cannot_undo_is_not_charged_for_a_call_that_another_limit_refuses():
    """All or nothing, also with a kind of limit of a user's own that gives nothing back."""
    own, rate = LimitState("tickets", Ticket(), "tickets"), LimitState("requests", Rate(1, 1.0), "requests")
    charges = ((own, 1.0), (rate, 1.0))
    assert charge_if_ready(charges, 0.0) is not None
    assert charge_if_ready(charges, 0.0) is None
    assert own.meter.level(0.0) == 2
    assert charge_if_ready(charges, 1.0) is not None
    assert own.meter.level(1.0) == 1


def test_whoever_comes_first_after_a_turn_goes_in_it():
    """The flow that was served comes later from then on, so its large call, which waits, is not delayed by another's."""
    jobs, mine, theirs = slots_of([in_flight(7), in_flight(1), in_flight(1)])
    queue, granted = Queue(), []
    first = Waiter(((jobs, 1.0), (mine, 1.0)), flow="me")
    large = Waiter(((jobs, 7.0),), flow="me")
    other = Waiter(((jobs, 1.0), (theirs, 1.0)), flow="they")
    for waiter in (first, large, other):
        queue.join(waiter, 0.0)
    assert admit(queue, 0.0, lambda waiter, *_: granted.append(waiter)) == math.inf
    assert granted == [first, other]


def test_a_place_that_came_back_without_a_word_is_found_by_the_turn_that_looks_at_all():
    """Of many users, each with a limit of their own: a turn that is told of each change looks at no other."""
    place, *users = slots_of([in_flight(1), *[Rate(1, 1.0)] * 40])
    held = charge(((place, 1.0),), 0.0)
    queue, granted = Queue(math.inf), []
    for user in users:
        queue.join(Waiter(((place, 1.0), (user, 1.0))), 0.0)
    assert admit(queue, 0.0, lambda waiter, *_: granted.append(waiter.number)) == math.inf
    give_back(((place, 1.0),), held, 1.0)
    admit(queue, 1.0, lambda waiter, *_: granted.append(waiter.number), changed=False)
    assert granted == []
    admit(queue, 1.0, lambda waiter, *_: granted.append(waiter.number))
    assert granted == [1]
