"""Many shapes, as on `org & per_user[user]`: every decision is that of a look at all heads, at a cost that does not grow with them."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock import Rate, calendar, in_flight, sliding
from penstock._core import bucket, turns
from penstock._core.meter import Meter
from penstock._core.queue import Queue, Waiter
from penstock._core.turns import LimitState, admit, give_back, undo
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

    def step(self, luck: random.Random, now: float) -> None:
        """One thing that happens to the limits or the queue; all worlds draw the same."""
        queue, dice = self.queue, luck.random()
        if dice < 0.55 or not self.waiters:
            # Mostly the first limit, which all share, and another.
            needs = {0} if luck.random() < 0.8 else set()
            needs.add(luck.randrange(len(self.states)))
            charges = tuple((self.states[i], luck.choice(AMOUNTS)) for i in sorted(needs))
            priority = luck.choice([0, 0, 0, 0, 1, -1])
            self.waiters.append(Waiter(charges, priority, luck.choice(["a", "b", None, None])))
            queue.join(self.waiters[-1], now)
            return
        if dice < 0.65:
            queue.leave(luck.choice(self.waiters))
        elif dice < 0.8 and self.permits:
            charges, receipts = self.permits.pop(luck.randrange(len(self.permits)))
            (undo if luck.random() < 0.3 else give_back)(charges, receipts, now)
        elif dice < 0.85:
            luck.choice(self.states).paused_until = now + luck.choice([-1.0, 0.5, 4.0])
        elif dice < 0.88:
            state = luck.choice(self.states)
            if isinstance(state.limit, Rate):
                state.promise(Rate(luck.choice([1, 20]), 1.0, luck.choice([6, 12])), now)
        elif dice < 0.9:
            flow = luck.choice(["a", "b", None])
            queue.delay(flow, 0.5)
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


@given(seed=st.integers(0, 10**9), steps=st.integers(1, 120), protected=st.sampled_from([1, 2, 16]))
def test_every_decision_is_that_of_a_look_at_the_heads_of_all_shapes(seed, steps, protected):
    """Joins, leaves, refunds, pauses, new promises, ageing, flows, priorities: the same grants in the same order at every turn."""
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
                told = True
                draw = luck.randrange(10**9)
                for world in (one, other):
                    world.step(random.Random(draw), now)
            expected, alarm = other.next_turn, one.next_turn
            grants = one.turn(now)
            assert grants == other.turn(now)
            if quiet and grants and expected <= now:
                assert alarm <= now + 1e-6, "a turn had come, and nobody would have looked"
            assert one.next_turn > now
            assert (one.queue.first(now) is None) == (not len(one.queue))
            if len(one.queue):
                assert one.waiters.index(one.queue.first(now)) == other.waiters.index(other.queue.heads(now)[0][1])


@pytest.mark.parametrize("protected", [1, 2, 16])
def test_hundreds_of_shapes_for_a_long_time_are_decided_as_by_a_look_at_all(protected):
    for seed in range(6):
        compare(seed, 600, protected)
