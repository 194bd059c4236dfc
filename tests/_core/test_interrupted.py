"""A signal handler that raises, or another asynchronous exception, at any point of a change: all or nothing, and the
queue is made whole."""

from __future__ import annotations

import linecache
import math
import sys
from pathlib import Path

import pytest

import penstock._core
from penstock import Rate, in_flight, sliding
from penstock._core import turns
from penstock._core.charging import charge_if_ready
from penstock._core.limit_state import LimitState
from penstock._core.meter import Meter
from penstock._core.queue import Queue, Waiter
from penstock._core.turns import admit
from tests._core.queues import check_books

CORE = str(Path(penstock._core.__file__).parent)


class Interrupt(BaseException):
    pass


def interrupted_at(line: int, work) -> bool:
    """Do the work, and raise at that line of it that is in `_core`; whether there was such a line.

    Not at a `return`: the interpreter runs signal handlers after calls of C functions, at jumps and where functions
    begin.
    """
    seen = 0

    def trace(frame, event, arg):
        nonlocal seen
        if not frame.f_code.co_filename.startswith(CORE):
            return None
        if event == "line":
            source = linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip()
            if not source.startswith(("return", "except", "raise")):
                seen += 1
                if seen == line:
                    sys.settrace(None)
                    raise Interrupt(source)
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    except Interrupt:
        return True
    finally:
        sys.settrace(before)
    return False


class World:
    """Three shapes over three limits that nothing refills, with room for some of the waiters."""

    def __init__(self, flows=(None,)) -> None:
        limits = [Rate(6, 1e12), in_flight(5), sliding(3, 1e12), in_flight(3, ttl=1e9)]
        self.states = [LimitState(f"u{i}", limit, f"u{i}") for i, limit in enumerate(limits)]
        self.queue = Queue(10.0)
        self.waiters: list[Waiter] = []
        for number in range(7):
            needs = [(0, 1), (1, 2), (0, 1, 2, 3)][number % 3]
            charges = tuple((self.states[i], 1.5) for i in needs)
            self.waiters.append(Waiter(charges, (0, 0, 1, 0)[number % 4], flows[number % len(flows)]))
            self.queue.join(self.waiters[-1], float(number))
        self.order: list[int] = []

    def admit(self) -> None:
        admit(self.queue, 25.0, lambda *_: None)

    def waiting(self) -> list[Waiter]:
        return [waiter for waiter in self.waiters if waiter.receipts is None]

    def check(self) -> None:
        """What is charged is what was granted, and the queue's books are in order."""
        for state in self.states:
            charged = [a for w in self.waiters if w.receipts is not None for s, a in w.charges if s is state]
            assert state.meter.used(25.0) == pytest.approx(sum(charged), abs=1e-9)
            assert state.queued == pytest.approx(sum(a for w in self.queue for s, a in w.charges if s is state))
        check_books(self.queue)


@pytest.mark.parametrize("many", [0, 32])
@pytest.mark.parametrize("flows", [(None,), ("a", "b")])
def test_an_exception_at_any_line_of_a_turn_charges_nobody_in_part_and_loses_nobodys_turn(monkeypatch, many, flows):
    monkeypatch.setattr(turns, "MANY", many)
    whole = World(flows)
    whole.admit()
    assert 0 < len(whole.waiting()) < len(whole.waiters)
    line = 1
    while True:
        world = World(flows)
        if not interrupted_at(line, world.admit):
            break
        world.queue.rebuild(world.waiting())
        world.check()
        assert set(world.queue) == set(world.waiting())
        world.admit()
        world.check()
        if len(flows) == 1:
            granted = [w.number for w in world.waiters if w.receipts is not None]
            assert granted == [w.number for w in whole.waiters if w.receipts is not None]
        line += 1 if len(flows) == 1 else 3
    assert line > 200


@pytest.mark.parametrize("many", [0, 32])
@pytest.mark.parametrize("change", ["join", "leave", "take", "restore", "heads", "recharge"])
def test_a_queue_that_was_interrupted_at_any_line_is_rebuilt_as_it_was(monkeypatch, many, change):
    monkeypatch.setattr(turns, "MANY", many)
    line = 1
    while True:
        world, model = World(("a", "b")), World(("a", "b"))
        for one in (world, model):
            one.admit()
        head = world.queue.heads(25.0)[0][1]
        if change == "restore":
            world.queue.take(head)
        works = {
            "join": lambda world=world: world.queue.join(Waiter(world.waiters[0].charges, 0, "c"), 25.0),
            "leave": lambda world=world: world.queue.leave(world.waiting()[2]),
            "take": lambda world=world, head=head: world.queue.take(head),
            "restore": lambda world=world, head=head: world.queue.restore(head),
            "heads": lambda world=world: world.queue.heads(200.0),
            "recharge": lambda world=world: world.queue.recharge({world.states[0]: (world.states[0],)}),
        }
        if not interrupted_at(line, works[change]):
            break
        now = 200.0 if change == "heads" else 25.0
        world.queue.rebuild(world.waiting())
        assert set(world.queue) == set(world.waiting())
        world.check()
        if change not in ("take", "restore"):  # what flows have used may have been counted
            assert [w.number for _, w in world.queue.heads(now)] == [w.number for _, w in model.queue.heads(now)]
        left = sorted(world.queue, key=lambda w: w.number)
        for waiter in left:
            world.queue.leave(waiter)
        assert (len(world.queue), [state.queued for state in world.states]) == (0, [0.0] * 4)
        line += 1
    assert line > 5


@pytest.mark.parametrize("room", [3.0, 0.0])
def test_a_call_that_is_interrupted_at_any_line_is_charged_nowhere(room):
    """Whether all its limits are ready, or the third is not and what was charged before it is taken back."""
    line, interrupted = 0, True
    while interrupted:
        line += 1
        states = World().states
        states[2].meter.charge(3.0 - room, 0.0)
        charges = tuple((state, 1.5) for state in states)
        before = [state.meter.used(0.0) for state in states]
        interrupted = interrupted_at(line, lambda charges=charges: charge_if_ready(charges, 0.0, 0.0))
        if interrupted:
            assert [state.meter.used(0.0) for state in states] == before
    assert line > 20


class _Failing(Meter):
    """Counts, and raises at the n-th call of any method that charges."""

    calls = 0

    def __init__(self, fail_at: int) -> None:
        self.fail_at, self.used_now = fail_at, 0.0

    def _count(self) -> None:
        type(self).calls += 1
        if type(self).calls == self.fail_at:
            raise Interrupt

    def ready_at(self, cost, now):
        self._count()
        return now

    def charge(self, cost, now):
        self._count()
        self.used_now += cost
        return object()

    def level(self, now):
        return 10 - self.used_now

    def give_back(self, amount, receipt, now):
        self.used_now -= amount


@pytest.mark.parametrize("fail_at", range(1, 20))
def test_a_meter_that_raises_leaves_the_others_as_they_were(fail_at):
    _Failing.calls = 0
    states = [LimitState(f"u{i}", Rate(10, 1.0), f"u{i}") for i in range(4)]
    for state in states[1:3]:
        state.meter = _Failing(fail_at)
    charges = tuple((state, 2.5) for state in states)
    try:
        charge_if_ready(charges, 0.0)
    except Interrupt:
        assert [state.meter.level(0.0) for state in states] == [10] * 4
    else:
        assert [state.meter.level(0.0) for state in states] == [7.5] * 4
        assert fail_at > 6


def test_rebuilding_keeps_levels_arrivals_and_what_flows_have_used():
    state = LimitState("u", Rate(1, 1.0), "u")
    queue = Queue(10.0)
    waiters = [Waiter(((state, 1.0),), 0, flow) for flow in "aab"]
    for at, waiter in enumerate(waiters):
        queue.join(waiter, float(at))
    queue.take(waiters[0])
    late = Waiter(((state, 1.0),), 1, "b")
    queue.join(late, 11.5)
    before = [waiter for _, waiter in queue.heads(11.5)]
    assert (before, waiters[1].level) == ([late], 1), (
        "one has risen to the level of the late one, whose flow has had less"
    )
    queue.rebuild([late, waiters[2], waiters[1]])
    assert [(w.arrived, w.level) for w in (waiters[1], waiters[2], late)] == [(1.0, 1), (2.0, 0), (11.5, 1)]
    assert queue.heads(11.9)[0][1] is late
    assert queue.heads(12.0)[0][1] is waiters[2], "it rises when it would have risen"
    assert queue.flows(9) == ["b", "a"], "a has had a turn"
    assert (len(queue), state.queued) == (3, 3.0)
    check_books(queue)
    queue.rebuild([])
    assert (len(queue), state.queued, queue.heads(12.0)) == (0, 0.0, [])
    assert queue.due == math.inf
