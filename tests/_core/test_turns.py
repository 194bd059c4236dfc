"""Whose turn it is: all or nothing, nobody delayed by who came later, nobody held back for nothing."""

from __future__ import annotations

import copy
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock import Rate, calendar, in_flight, sliding
from penstock._core.line import Line, Waiting
from penstock._core.meter import Meter
from penstock._core.turns import Slot, admit, charge, charge_if_ready, could_go, give_back, ready_at, ready_behind, undo

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


def slots_of(limits) -> list[Slot]:
    return [Slot(f"u{i}", limit, f"u{i}") for i, limit in enumerate(limits)]


def charges_of(slots, amounts):
    return tuple((slot, float(amount)) for slot, amount in zip(slots, amounts, strict=True) if amount)


def after(slots, charges, now) -> dict[Slot, Meter]:
    """The meters as they would be after these charges."""
    twins = {slot: copy.deepcopy(slot.meter) for slot in slots}
    for slot, amount in charges:
        twins[slot].charge(amount, now)
    return twins


@given(limits=st.tuples(LIMITS, LIMITS, LIMITS), used=st.tuples(*[st.integers(0, 30)] * 3), calls=CALLS)
def test_nobody_who_passes_delays_anybody_before_it_and_nobody_is_held_back_for_nothing(limits, used, calls):
    """EASY backfill against brute force: what each would be able to do is tried on copies of all limits.

    All or nothing with it: what is missing afterwards is exactly what was granted.
    """
    slots, now = slots_of(limits), 3.0
    charge(charges_of(slots, used), now)
    before = [slot.meter.level(now) for slot in slots]
    line = Line(math.inf)
    everybody = [Waiting(charges_of(slots, call)) for call in calls]
    for waiting in everybody:
        line.join(waiting, now)
    granted, projected = [], {}

    def horizon(waiting, meters):
        """When it is ready, as far as time alone decides that: a place may come back at any moment."""
        moments = [meters[slot].ready_at(amount, now) for slot, amount in waiting.charges]
        return max((at for at in moments if at < math.inf), default=now)

    def grant(waiting, marks, at):
        assert at == now
        assert len(marks) == len(waiting.charges)
        meters = {slot: slot.meter for slot in slots}
        for earlier in everybody[: everybody.index(waiting)]:
            if earlier not in granted:
                for slot in dict(earlier.charges).keys() & dict(waiting.charges).keys():
                    assert slot.meter.ready_at(dict(earlier.charges)[slot], now) <= projected[earlier] + SAME
        granted.append(waiting)
        for later in everybody[everybody.index(waiting) + 1 :]:
            projected[later] = horizon(later, meters)

    for waiting in everybody:
        projected[waiting] = horizon(waiting, {slot: slot.meter for slot in slots})
    next_turn = admit(line, now, grant)

    for slot, level in zip(slots, before, strict=True):
        taken = sum(amount for waiting in granted for charged, amount in waiting.charges if charged is slot)
        assert slot.meter.level(now) == pytest.approx(level - taken, abs=1e-6)
    left = [waiting for waiting in everybody if waiting not in granted]
    assert set(line) == set(left)
    moments = {waiting: ready_at(waiting.charges, now)[0] for waiting in left}
    assert now < next_turn <= min((at for at in moments.values() if at > now), default=math.inf) + SAME
    for index, waiting in enumerate(left):
        if moments[waiting] <= now:
            meters = after(slots, waiting.charges, now)
            assert any(
                meters[slot].ready_at(amount, now) > projected[earlier]
                for earlier in left[:index]
                for slot, amount in earlier.charges
                if slot in dict(waiting.charges)
            ), "it could go and would delay nobody, and was held back"


@given(
    limits=st.tuples(*[st.builds(Rate, st.integers(1, 20), st.just(1.0), st.integers(12, 30))] * 2),
    arrivals=st.lists(
        st.tuples(st.sampled_from([0.0, 0.0, 0.05, 0.3, 1.0]), st.integers(0, 12), st.integers(0, 12)), max_size=40
    ),
)
def test_whoever_is_first_is_served_by_the_moment_that_was_projected_for_it(limits, arrivals):
    """Promise 4, through time: whatever arrives behind it, the head never gets later."""
    slots = slots_of(limits)
    charge(charges_of(slots, [12, 12]), 0.0)
    line, now, projected, served = Line(math.inf), 0.0, {}, {}

    def grant(waiting, marks, at):
        served[waiting] = at

    def look(at):
        next_turn = admit(line, at, grant)
        heads = line.heads(at)
        if heads:
            head = heads[0][1]
            projected.setdefault(head, ready_at(head.charges, at)[0])
        return next_turn

    pending, everybody = [], []
    for gap, *amounts in arrivals:
        now += gap
        pending.append((now, charges_of(slots, amounts)))
    now, alarm = 0.0, math.inf
    while pending or len(line):
        at = min(pending[0][0] if pending else math.inf, alarm)
        assert at < math.inf, "somebody waits, and nobody will look"
        now = max(now, at)
        while pending and pending[0][0] <= now:
            everybody.append(Waiting(pending.pop(0)[1]))
            line.join(everybody[-1], now)
        alarm = look(now)
    assert len(served) == len(everybody)
    for waiting, moment in projected.items():
        assert served[waiting] <= moment + 1e-6


def test_all_or_nothing():
    slots = slots_of([Rate(10, 1.0), in_flight(2), sliding(5, 1)])
    charges = charges_of(slots, [4, 1, 3])
    assert charge_if_ready(charges, 0.0) is not None
    assert charge_if_ready(charges, 0.0) is None, "the third has only 2 left"
    assert [slot.meter.level(0.0) for slot in slots] == [6, 1, 2]
    marks = charge(charges, 0.0)
    assert [slot.meter.level(0.0) for slot in slots] == [2, 0, -1]
    give_back(charges, marks, 0.0)
    assert [slot.meter.level(0.0) for slot in slots] == [6, 1, 2]


def test_ready_at_names_the_slot_that_is_ready_last():
    slots = slots_of([Rate(10, 1.0), Rate(1, 1.0, 10)])
    charges = charges_of(slots, [10, 2])
    assert ready_at(charges, 0.0) == (0.0, None)
    charge(charges, 0.0)
    assert ready_at(charges, 0.0) == (1.0, slots[0])
    charge(charges_of(slots, [0, 8]), 0.0)
    assert ready_at(charges, 0.0) == (2.0, slots[1])
    slots[0].paused_until = 5.0
    assert ready_at(charges, 0.0) == (5.0, slots[0])
    assert slots[0].ready_at(0, 0.0) == 5.0
    assert slots[1].ready_at(0, 0.0) == 0.0
    assert slots[1].ready_at(2, 0.0) == 2.0


def test_who_stands_behind_others_is_ready_after_them_in_each_of_its_limits():
    """Those in front may need more of one limit, and nothing of another."""
    slots = slots_of([Rate(10, 1.0), Rate(1, 1.0, 10), Rate(5, 1.0)])
    charges = charges_of(slots[:2], [10, 2])
    assert ready_behind(charges, {}, 0.0) == (0.0, None)
    assert ready_behind(charges, {slots[0]: 20.0}, 0.0) == (2.0, slots[0])
    assert ready_behind(charges, {slots[0]: 20.0, slots[1]: 11.0, slots[2]: 99.0}, 0.0) == (3.0, slots[1])
    assert ready_behind(charges, {slots[0]: 20.0, slots[1]: 0.0}, 0.0) == (2.0, slots[0])
    slots[1].paused_until = 1.5
    assert ready_behind(charges, {slots[0]: 20.0}, 0.0) == (2.0, slots[0])
    assert ready_behind(charges, {}, 0.0) == (1.5, slots[1])
    large = slots_of([Rate(10, 1.0, 10, overdraft=True)])
    assert ready_behind(charges_of(large, [25]), {large[0]: 25.0}, 0.0) == (2.5, large[0])


def test_nothing_is_charged_on_a_paused_slot_until_its_last_moment():
    slots = slots_of([Rate(10, 1.0), Rate(10, 1.0)])
    slots[1].paused_until = 3.0
    charges = charges_of(slots, [1, 1])
    assert charge_if_ready(charges, 2.999) is None
    assert slots[0].meter.level(2.999) == 10
    assert charge_if_ready(charges, 3.0) is not None
    line, granted = Line(math.inf), []
    slots[1].paused_until = 9.0
    line.join(Waiting(charges), 4.0)
    assert admit(line, 4.0, lambda *a: granted.append(a)) == 9.0
    assert not granted
    assert admit(line, 9.0, lambda *a: granted.append(a)) == math.inf
    assert len(granted) == 1


def test_who_waits_for_a_place_lets_pass_what_leaves_it_what_it_needs():
    """When a place comes back nobody knows; what is known, the tokens, is kept for whoever waits for both."""
    slots = slots_of([in_flight(1), Rate(10, 1.0)])
    charge(charges_of(slots, [1, 0]), 0.0)
    line, granted = Line(math.inf), []
    head, small, large = (Waiting(charges_of(slots, call)) for call in ([1, 6], [0, 4], [0, 4]))
    for waiting in (head, small, large):
        line.join(waiting, 0.0)
    next_turn = admit(line, 0.0, lambda waiting, *_: granted.append(waiting))
    assert granted == [small]
    assert next_turn == math.inf, "only a release helps the head, and the other is held back for it"
    assert admit(line, 0.4, lambda waiting, *_: granted.append(waiting)) == math.inf
    assert granted == [small, large]


@pytest.mark.parametrize(("needy", "passes"), [(0, False), (15, False), (16, True)])
def test_sixteen_who_must_wait_are_protected_from_being_delayed(needy, passes):
    """Beyond them the work of looking would be for everybody's time, and the order of the rest is theirs by turn."""
    slots = slots_of([Rate(1, 1.0, 10)] * 18)
    charge(charges_of(slots, [10] * 17 + [0]), 0.0)
    line, granted = Line(math.inf), []
    for index in range(17):
        shared = ((slots[17], 5.0),) if index == needy else ()
        line.join(Waiting(((slots[index], 1.0), *shared)), 0.0)
    line.join(Waiting(((slots[17], 10.0),)), 0.0)
    admit(line, 0.0, lambda waiting, *_: granted.append(waiting))
    assert bool(granted) == passes


def test_equals_go_one_after_another_and_others_in_between_by_their_turn():
    slots = slots_of([Rate(5, 1.0), Rate(5, 1.0)])
    line, granted = Line(math.inf), []
    both = [[1, 0], [1, 1], [1, 0], [0, 1], [1, 0], [1, 1], [1, 0]]
    for call in both:
        line.join(Waiting(charges_of(slots, call)), 0.0)
    admit(line, 0.0, lambda waiting, *_: granted.append(waiting.number))
    assert granted == [1, 2, 3, 4, 5, 6], "five fit into the first limit: in order of arrival, across their needs"
    assert admit(line, 0.0, lambda *_: None) == pytest.approx(0.2)
    assert admit(line, 0.2, lambda waiting, *_: granted.append(waiting.number)) == math.inf
    assert granted[-1] == 7


def test_could_go_is_what_admit_would_do():
    slots = slots_of([Rate(10, 1.0), Rate(10, 1.0)])
    charge(charges_of(slots, [10, 0]), 0.0)
    line = Line(math.inf)
    whale, needs_tokens, free, greedy = (Waiting(charges_of(slots, c)) for c in ([10, 4], [1, 0], [0, 6], [0, 10]))
    for waiting in (whale, needs_tokens):
        line.join(waiting, 0.0)
        assert not could_go(line, waiting, 0.0)
    line.join(free, 0.0)
    assert could_go(line, free, 0.0)
    line.leave(free)
    line.join(greedy, 0.0)
    assert could_go(line, greedy, 0.0), "what it takes is refilled by the time the whale is projected to start"
    assert not could_go(line, needs_tokens, 0.1), "ready, and the whale would be later"
    line.leave(whale)
    assert could_go(line, needs_tokens, 0.1)
    behind = Waiting(charges_of(slots, [1, 0]))
    line.join(behind, 0.1)
    assert not could_go(line, behind, 0.1), "another of its kind is first"


def test_another_limit_of_the_same_kind_goes_on_and_one_of_another_kind_takes_over_what_is_used():
    slot = Slot("requests", Rate(10, 1.0), "requests")
    meter = slot.meter
    marks = charge(((slot, 6.0),), 0.0)
    slot.promise(Rate(20, 1.0), 0.0)
    assert slot.meter is meter
    assert slot.throughput == 20
    slot.promise(sliding(20, 4), 0.0)
    assert slot.meter is not meter
    assert slot.meter.level(0.0) == 14
    assert slot.throughput == 5
    give_back(((slot, 6.0),), marks, 0.0)
    assert slot.meter.level(0.0) == 14, "a mark of the meter before cannot be given back"
    assert slot.meter.used(3.0) == 6
    slot.promise(in_flight(3), 3.0)
    assert slot.meter.level(3.0) == 3, "but places, which nobody could give back"
    assert slot.throughput == 3
    slot.promise(calendar(8, "day"), 5.0)
    assert slot.throughput == 8


@pytest.mark.parametrize("limit", [Rate(10, 2.0), sliding(10, 2.0)])
def test_a_slot_like_another_has_its_limit_and_nothing_used(limit):
    slot = Slot("tokens", limit, "tokens (10/2s)")
    charge(((slot, 6.0),), 0.0)
    slot.paused_until = 9.0
    slot.queued = 3.0
    twin = Slot.like(slot)
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
    slot = Slot("tickets", Ticket(), "tickets")
    assert slot.throughput == 1.0
    charges = ((slot, 2.0),)
    marks = charge_if_ready(charges, 0.0)
    assert charge_if_ready(charges, 0.0) is None
    give_back(charges, marks, 0.0)
    assert slot.meter.level(0.0) == 1, "by default nothing comes back, which is always safe"
    assert slot.meter.ready_after(1.0, 1.0, 0.0) == math.inf
    assert slot.meter.level(0.0) == 1
    assert slot.meter.top_up(2.0, 1.0, marks[0][1], 0.0) == (2.0, 1.0, 1.0)
    assert not slot.meter.idle(0.0)
    assert slot.meter.pack() is None
    slot.meter.lower_to(-2, 0.0)
    assert slot.meter.level(0.0) == -2


@pytest.mark.parametrize("lead", [0.0, 1.7e9])
def test_what_was_used_stays_used_when_a_limit_of_the_calendar_takes_over(lead):
    """Which must first know the date: charged in 1970, all would be forgotten at the first look."""
    slot = Slot("requests", Rate(10, 86_400.0), "requests")
    charge(((slot, 8.0),), 5.0)
    slot.promise(calendar(10, "day"), 5.0, lead)
    slot.meter.follow(lead)
    assert slot.meter.level(6.0) == pytest.approx(2)
    in_1970 = Slot("requests", Rate(10, 86_400.0), "requests")
    charge(((in_1970, 8.0),), 86_399.5)
    in_1970.promise(calendar(10, "day"), 86_399.5)
    assert in_1970.meter.ready_at(10, 86_399.5) == 86_400.0, "without a lead the process began with the calendar"


def test_a_new_slot_counts_nobody_and_is_not_paused():
    slot = Slot("requests", Rate(10, 1.0), "requests (10/s)")
    assert (slot.unit, slot.label, slot.queued, slot.paused_until) == ("requests", "requests (10/s)", 0.0, -math.inf)


def test_less_than_a_unit_that_was_used_stays_used():
    slot = Slot("dollars", Rate(10, 1.0), "dollars")
    charge(((slot, 0.25),), 0.0)
    slot.promise(sliding(20, 4), 0.0)
    assert slot.meter.level(0.0) == 19.75
    slot.promise(Rate(8, 1.0), 4.0)
    assert slot.meter.level(4.0) == 8
    assert slot.meter.idle(4.0)


def test_what_costs_nothing_waits_for_no_debt():
    slot = slots_of([Rate(10, 1.0)])[0]
    charge(((slot, 25),), 0.0)
    assert slot.meter.level(0.0) == -15
    assert slot.ready_at(0, 0.0) == 0.0
    assert slot.ready_at(1, 0.0) == pytest.approx(1.6)


def test_each_charge_has_its_mark():
    """A mark too few would leave a charge that nobody can ever give back."""
    slots = slots_of([Rate(10, 1.0), Rate(10, 1.0)])
    charges = charges_of(slots, [4, 4])
    marks = charge(charges, 0.0)
    with pytest.raises(ValueError, match="zip"):
        give_back(charges, marks[:1], 0.0)
    with pytest.raises(ValueError, match="zip"):
        undo(charges, marks[:1], 0.0)


def test_who_waits_for_two_places_is_not_starved_by_those_who_need_one():
    """Nobody knows when places come back; what is free now is kept for whoever is first."""
    slots = slots_of([in_flight(3)])
    holding = charge(charges_of(slots, [2]), 0.0)
    line, granted = Line(math.inf), []
    two, one = (Waiting(((slots[0], float(places)),)) for places in (2, 1))
    line.join(two, 0.0)
    line.join(one, 0.0)
    other = slots_of([Rate(1, 1.0)])[0]
    another = Waiting(((slots[0], 1.0), (other, 1.0)))
    line.join(another, 0.0)
    assert admit(line, 0.0, lambda waiting, *_: granted.append(waiting)) == math.inf
    assert granted == []
    assert not could_go(line, another, 0.0)
    give_back(charges_of(slots, [2]), holding, 1.0)
    admit(line, 1.0, lambda waiting, *_: granted.append(waiting))
    assert granted == [two, one]


def test_who_is_granted_gets_the_marks_of_its_charge():
    slots = slots_of([Rate(10, 1.0), in_flight(2)])
    line, granted = Line(math.inf), []
    waiting = Waiting(charges_of(slots, [6, 1]))
    line.join(waiting, 3.0)
    admit(line, 3.0, lambda *grant: granted.append(grant))
    ((who, marks, at),) = granted
    assert (who, at) == (waiting, 3.0)
    assert [slot.meter.level(3.0) for slot in slots] == [4, 1]
    give_back(waiting.charges, marks, 3.0)
    assert [slot.meter.level(3.0) for slot in slots] == [10, 2]


def test_who_is_behind_its_equal_could_not_go_though_both_would_fit():
    slots = slots_of([Rate(10, 1.0)])
    line = Line(30.0)
    first, second = (Waiting(charges_of(slots, [1])) for _ in range(2))
    line.join(first, 0.0)
    line.join(second, 0.0)
    assert could_go(line, first, 0.0)
    assert not could_go(line, second, 0.0)


def test_nothing_used_is_nothing_in_a_limit_of_another_kind():
    slot = Slot("requests", Rate(10, 1.0), "requests")
    slot.promise(sliding(20, 4), 3.0)
    assert slot.meter.idle(3.0)
