"""Many shapes, as on `org & per_user[user]`: every decision is that of a look at all heads, at a cost that does not
grow with them."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock import Rate, calendar, in_flight, sliding
from penstock._core import bucket, turns
from penstock._core.charging import give_back, undo
from penstock._core.limit_state import LimitState
from penstock._core.meter import Meter
from penstock._core.queue import Queue, Waiter
from penstock._core.turns import admit
from tests._core import reference


class Load:
    """A kind of limit of a user's own, which is ready whenever it likes."""

    capacity, default = 1e9, None

    def meter(self):
        return _LoadMeter()


class _LoadMeter(Meter):
    def __init__(self) -> None:
        self.load = 0.0

    def ready_at(self, cost, now):
        return now if self.load + cost <= 10 else now + 1

    def charge(self, cost, now):
        self.load += cost
        return cost

    def level(self, now):
        return 10 - self.load


KINDS = [
    lambda luck: Rate(luck.choice([1, 5, 40]), luck.choice([1.0, 7.0]), luck.choice([6, 12, 30])),
    lambda luck: Rate(luck.choice([1, 5, 40]), 1.0, luck.choice([6, 12, 30])),
    lambda luck: Rate(luck.choice([2, 10]), 1.0, luck.choice([1, 3]), overdraft=True),
    lambda luck: sliding(luck.choice([12, 30]), luck.choice([1.0, 7.0])),
    lambda luck: in_flight(luck.choice([12, 30])),
    lambda luck: in_flight(12, ttl=3.0),
    lambda luck: calendar(40, "minute"),
    lambda luck: Load(),
]
AMOUNTS = [0.25, 1.0, 1.0, 1.0, 2.0, 5.0, 6.0]


class World:
    """A queue with limits, and how its turns are decided."""

    def __init__(self, seed: int, decide) -> None:
        luck = random.Random(seed)
        self.states = [
            LimitState(f"u{i}", luck.choice(KINDS)(luck), f"u{i}") for i in range(luck.choice([2, 4, 8, 40]))
        ]
        self.queue = Queue(luck.choice([10.0, math.inf, 7.7]), luck.choice([{}, {"a": 2.0}]))
        self.decide = decide
        self.waiters: list[Waiter] = []
        self.granted: list[int] = []
        self.permits: list[tuple[tuple, list]] = []
        self.next_turn = math.inf
        for state in self.states:
            if state.meter.calendar:
                state.meter.follow(1e9)

    def turn(self, now: float) -> list[int]:
        self.granted.clear()
        self.next_turn = self.decide(self, now)
        return list(self.granted)

    def grant(self, waiter: Waiter, receipts, now: float) -> None:
        self.granted.append(self.waiters.index(waiter))
        self.permits.append((waiter.charges, receipts))

    def step(self, luck: random.Random, now: float) -> bool:
        """One thing that happens to the limits or the queue; all worlds draw the same. Whether `admit` must be told."""
        queue, dice = self.queue, luck.random()
        if dice < 0.55 or not self.waiters:
            # Mostly the first limit, which all share, and another.
            needs = {0} if luck.random() < 0.8 else set()
            needs.add(luck.randrange(len(self.states)))
            charges = tuple((self.states[i], luck.choice(AMOUNTS)) for i in sorted(needs))
            priority = luck.choice([0, 0, 0, 0, 1, -1])
            self.waiters.append(Waiter(charges, priority, luck.choice(["a", "b", None, None])))
            queue.join(self.waiters[-1], now)
            return False
        if dice < 0.65:
            queue.leave(luck.choice(self.waiters))
            return False
        if dice < 0.8 and self.permits:
            charges, receipts = self.permits.pop(luck.randrange(len(self.permits)))
            (undo if luck.random() < 0.3 else give_back)(charges, receipts, now)
            queue.wake([state for state, _ in charges])
            return False
        elif dice < 0.85:
            luck.choice(self.states).paused_until = now + luck.choice([-1.0, 0.5, 4.0])
        elif dice < 0.88:
            state = luck.choice(self.states)
            if isinstance(state.limit, Rate):
                state.promise(Rate(luck.choice([1, 20]), 1.0, luck.choice([6, 12])), now)
        elif dice < 0.9:
            flow = luck.choice(["a", "b", None])
            queue.delay(flow, 0.5)
            return False
        elif dice < 0.94:
            for state in self.states:
                if isinstance(state.meter, _LoadMeter):
                    state.meter.load = 0.0
        elif dice < 0.97:
            for state in self.states:
                if state.meter.calendar:
                    state.meter.follow(state.meter.offset + 20.0)
        else:
            luck.choice(self.states).meter.charge(luck.choice(AMOUNTS), now)
            return False
        return True


@given(seed=st.integers(0, 10**9), steps=st.integers(1, 120), protected=st.sampled_from([1, 2, 16]))
def test_every_decision_is_that_of_a_look_at_the_heads_of_all_shapes(seed, steps, protected):
    """Joins, leaves, refunds, pauses, new promises, ageing, flows, priorities: the same grants in the same order at
    every turn."""
    compare(seed, steps, protected)


def compare(seed: int, steps: int, protected: int) -> None:
    luck = random.Random(seed + 1)
    told = True

    def by_index(world: World, now: float) -> float:
        return admit(world.queue, now, world.grant, changed=told)

    def by_reference(world: World, now: float) -> float:
        return reference.admit(world.queue, now, world.grant, protected)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(turns, "MANY", luck.choice([0, 0, 0, 3]))
        patch.setattr(turns, "_PROTECTED", protected)
        patch.setattr(bucket, "CATCH_UP", 0.0)  # the reference knows nothing of late turns
        one, other = World(seed, by_index), World(seed, by_reference)
        now = 0.0
        for _ in range(steps):
            quiet = luck.random() < 0.4
            if quiet:
                told = False
                moments = [one.next_turn, other.next_turn]
                moments = [at for at in moments if now < at < math.inf]
                now = luck.choice([*moments, now + luck.choice([0.1, 1.0, 6.0])])
            else:
                draw = luck.randrange(10**9)
                for world in (one, other):
                    told = world.step(random.Random(draw), now)
            expected, alarm = other.next_turn, one.next_turn
            grants = one.turn(now)
            assert grants == other.turn(now)
            if quiet and grants and expected <= now:
                assert alarm <= now + 1e-6, "a turn had come, and nobody would have looked"
            assert one.next_turn > now
            assert (one.queue.first(now) is None) == (not len(one.queue))
            if len(one.queue):
                assert one.waiters.index(one.queue.first(now)) == other.waiters.index(other.queue.heads(now)[0][1])


def users(count, org, of_user, used=False):
    """So many users that wait on `org & per_user[user]`."""
    queue, shared = Queue(30.0), LimitState("requests", org, "org")
    for user in range(count):
        own = LimitState("requests", of_user, f"user {user}")
        if used:
            own.meter.charge(own.meter.level(0.0), 0.0)
        queue.join(Waiter(((shared, 1.0), (own, 1.0))), 0.0)
    return queue, shared


class Looks:
    """Counts how often a meter is asked when it would be ready, and a waiter looked at, which is what a turn costs."""

    def __init__(self, monkeypatch) -> None:
        self.count = 0
        ready_at = bucket.Bucket.ready_at

        def counted(meter, cost, now):
            self.count += 1
            return ready_at(meter, cost, now)

        serve = turns._Turn.serve

        def served(turn, *args):
            self.count += 1
            serve(turn, *args)

        monkeypatch.setattr(bucket.Bucket, "ready_at", counted)
        monkeypatch.setattr(turns._Turn, "serve", served)


@pytest.mark.parametrize(
    ("org", "of_user", "used"),
    [
        pytest.param(Rate(1_000, 1.0, 1), Rate(100, 1.0), False, id="the limit that all share binds"),
        pytest.param(Rate(1e9, 1.0), Rate(1, 1.0), True, id="each user's own limit binds"),
        pytest.param(Rate(1_000, 1.0, 1), Rate(5, 1.0), True, id="both bind"),
    ],
)
def test_a_turn_among_thousands_of_users_looks_at_few(monkeypatch, org, of_user, used):
    """Twice as many users: twice as many looks, and not four times."""
    looks = Looks(monkeypatch)
    counts = []
    for count in (300, 600):
        queue, _ = users(count, org, of_user, used)
        looks.count, now, granted = 0, 0.0, []
        while len(queue):
            alarm = admit(queue, now, lambda waiter, *_, granted=granted: granted.append(waiter), changed=False)
            assert alarm > now
            now = alarm
        assert len(granted) == count
        counts.append(looks.count)
    assert counts[1] < 2.5 * counts[0]
    assert counts[1] < 100 * 600


def test_what_is_given_back_wakes_the_shapes_that_wait_for_it_and_no_others(monkeypatch):
    looks = Looks(monkeypatch)
    queue, org = users(200, in_flight(1), Rate(1, 1.0))
    granted = []

    def turn(now, *, changed=False):
        granted.clear()
        return admit(queue, now, lambda waiter, receipts, _: granted.append((waiter, receipts)), changed=changed)

    assert turn(0.0) == math.inf
    ((_, receipts),) = granted
    org.meter.give_back(1.0, receipts[0][1], 1.0)
    assert turn(1.0) == math.inf
    assert granted == [], "nobody said that anything had come back"
    queue.wake([org])
    looks.count = 0
    turn(1.0)
    assert [waiter.number for waiter, _ in granted] == [2]
    assert looks.count < 20
    org.meter.give_back(1.0, granted[0][1][0][1], 2.0)
    turn(2.0, changed=True)
    assert [waiter.number for waiter, _ in granted] == [3]


def test_a_newcomer_that_wants_less_wakes_its_own_limit_and_no_others(monkeypatch):
    queue, org = users(200, Rate(1e9, 1.0), Rate(1, 1.0), used=True)
    own = next(iter(queue)).charges[1][0]
    alarm = admit(queue, 0.0, pytest.fail)
    assert alarm == pytest.approx(1.0)
    looks = Looks(monkeypatch)
    queue.join(Waiter(((org, 1.0), (own, 0.5)), 1), 0.0)
    assert admit(queue, 0.0, pytest.fail, changed=False) == pytest.approx(0.5)
    assert looks.count < 20


def test_a_waiter_that_would_delay_another_goes_when_its_age_brings_it_before_that(monkeypatch):
    """Without anything that happens: the turn of its rise is announced."""
    monkeypatch.setattr(turns, "MANY", 0)
    place, org = LimitState("calls", in_flight(1), "calls"), LimitState("tokens", Rate(10, 1.0), "tokens")
    place.meter.charge(1.0, 0.0)
    queue, granted = Queue(30.0), []
    for waiter, came in ((Waiter(((org, 8.0),), -1), 0.0), (Waiter(((place, 1.0), (org, 6.0))), 20.0)):
        queue.join(waiter, came)
    assert admit(queue, 20.0, pytest.fail) == 30.0
    admit(queue, 30.0, lambda waiter, *_: granted.append(waiter.number), changed=False)
    assert granted == [1]


@pytest.mark.parametrize(("granted", "kept"), [(23, True), (24, False)])
def test_a_queue_that_is_short_again_keeps_no_index(granted, kept):
    """Below half of what makes one, so that it is not made anew at every turn."""
    queue, _ = users(40, Rate(1, 1.0, granted), Rate(1, 1.0))
    admit(queue, 0.0, lambda *_: None)
    assert len(queue) == 40 - granted
    assert (queue.index is not None) == kept


def test_a_limit_of_a_users_own_that_changes_its_mind_is_looked_at_in_every_turn(monkeypatch):
    """Though what waits for it was held back for another, and it was not ready when the turn ended."""
    monkeypatch.setattr(turns, "MANY", 0)
    monkeypatch.setattr(turns, "_PROTECTED", 1)
    place, load = LimitState("calls", in_flight(1), "calls"), LimitState("load", Load(), "load")
    other = LimitState("requests", Rate(10, 1.0), "requests")
    place.meter.charge(1.0, 0.0)
    queue, granted = Queue(math.inf), []
    head, held_back, passes = (
        Waiter(charges) for charges in (((place, 1.0), (load, 6.0)), ((load, 7.0),), ((load, 4.0), (other, 1.0)))
    )
    for waiter in (head, held_back, passes):
        queue.join(waiter, 0.0)
    admit(queue, 0.0, lambda waiter, *_: granted.append(waiter), changed=False)
    assert granted == [passes]
    queue.leave(head)
    load.meter.load = 0.0
    admit(queue, 0.5, lambda waiter, *_: granted.append(waiter), changed=False)
    assert granted == [passes, held_back]


def test_users_who_come_and_go_leave_no_alarms_and_no_rises_behind():
    """Where nothing but a call that ends helps, and waiters do not age."""
    queue, org = Queue(math.inf), LimitState("calls", in_flight(1), "org")
    org.meter.charge(1.0, 0.0)
    for user in range(200):
        waiter = Waiter(((org, 1.0), (LimitState("requests", Rate(1, 1.0), f"user {user}"), 1.0)))
        queue.join(waiter, 0.0)
        if user >= 50:
            assert admit(queue, 0.0, pytest.fail, changed=False) == math.inf
            queue.leave(waiter)
    assert (queue.index._alarms, queue.index._rises) == ([], [])


def test_a_step_of_the_wall_clock_is_noticed():
    """What waits for the end of a period of the calendar goes when the wall clock jumps over it."""
    queue, org = users(50, calendar(10, "minute"), Rate(10, 1.0))
    org.meter.follow(1.7e9)
    granted = []
    alarm = admit(queue, 1.0, lambda waiter, *_: granted.append(waiter.number))
    assert (len(granted), 1.0 < alarm < 62) == (10, True)
    assert admit(queue, 2.0, lambda waiter, *_: granted.append(waiter.number), changed=False) == pytest.approx(alarm)
    org.meter.follow(1.7e9 + 60)
    admit(queue, 2.0, lambda waiter, *_: granted.append(waiter.number), changed=False)
    assert granted == list(range(1, 21))


def test_behind_an_alarm_that_was_put_off_the_next_one_is_due():
    """Of forty users the first to be ready uses more: the second is ready first, and not nobody."""
    queue, states = Queue(math.inf), [LimitState(f"u{i}", Rate(1, 1.0, 4), f"u{i}") for i in range(40)]
    for number, state in enumerate(states):
        state.meter.charge(4 + number / 8, 0.0)
        queue.join(Waiter(((state, 1.0),)), 0.0)
    assert admit(queue, 0.0, pytest.fail) == 1.0
    states[0].meter.charge(1, 0.0)
    queue.wake([states[0]])
    assert admit(queue, 0.0, pytest.fail, changed=False) == 1.125


def test_a_user_who_has_left_sets_no_alarm():
    queue, org = users(50, Rate(1_000, 1.0), Rate(1, 10.0), used=True)
    early = Waiter(((org, 1.0), (LimitState("requests", Rate(1, 5.0), "early"), 1.0)))
    early.charges[1][0].meter.charge(1.0, 0.0)
    queue.join(early, 0.0)
    assert admit(queue, 0.0, lambda *_: None) == pytest.approx(5.0)
    queue.leave(early)
    assert admit(queue, 1.0, lambda *_: None, changed=False) == pytest.approx(10.0)


def test_what_is_ahead_of_a_newcomer_is_asked_for_by_the_waiters_of_all_shapes():
    queue, org = users(50, Rate(1, 1.0, 1), Rate(1, 1.0))
    admit(queue, 0.0, lambda *_: None)
    newcomer, urgent = Waiter(((org, 2.0),)), Waiter(((org, 3.0),), 1)
    for waiter in newcomer, urgent:
        queue.join(waiter, 0.0)
    assert queue.queued_ahead(newcomer) == {org: 49 + 3}
    assert queue.queued_ahead(urgent) == {org: 0}


def test_the_queue_knows_its_first_waiter_also_after_a_rise():
    queue, org = users(50, Rate(1, 1.0, 1), Rate(1, 1.0))
    org.meter.charge(1_000.0, 0.0)
    urgent = Waiter(((org, 1.0),), 1)
    queue.join(urgent, 20.0)
    admit(queue, 20.0, lambda *_: None)
    assert queue.first(29.9) is urgent
    assert queue.first(30.0).number == 1, "it has waited for 30 seconds and came earlier"


@pytest.mark.parametrize("protected", [1, 2, 16])
def test_hundreds_of_shapes_for_a_long_time_are_decided_as_by_a_look_at_all(protected):
    for seed in range(4):
        compare(seed, 400, protected)


@pytest.mark.parametrize(("seed", "protected"), [(1040, 2), (2054, 1)])
def test_who_would_delay_a_protected_waiter_is_looked_at_when_that_could_go(seed, protected):
    """Its place is not there then, so the other may go. It has no alarm of its own, as its limit has enough for it."""
    compare(seed, 300, protected)


@pytest.mark.parametrize("seed", [1038, 2016, 2025, 2216])
def test_a_turn_that_changes_the_order_of_flows_is_followed_by_another(seed):
    """Whoever comes first now need not wait until something happens."""
    compare(seed, 300, 1)
