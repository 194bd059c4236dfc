"""The order of those who wait, against a model that sorts everybody anew at every look."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock._core.queue import Queue, Waiter
from tests._core.queues import Counted, check_books


class Naive:
    """Everybody in one list; flows as the docstring of `queue.py` says, with nothing remembered but their usage."""

    def __init__(self, ageing: float, weights: dict) -> None:
        self.ageing, self.weights = ageing, weights
        self.waiters: list[Waiter] = []
        self.arrived: dict[Waiter, tuple[int, float]] = {}
        self.usage: dict = {}
        self.start: dict = {}
        self.turn = 0.0

    def tag(self, flow) -> float:
        return max([self.start[flow], *self.usage[flow].values()])

    def join(self, waiter: Waiter, now: float) -> None:
        flow = waiter.flow
        if flow not in self.start:
            self.start[flow], self.usage[flow] = self.turn, {}
        elif not any(other.flow == flow for other in self.waiters):
            self.start[flow] = start = max(self.start[flow], self.turn)
            self.usage[flow] = {limit: used for limit, used in self.usage[flow].items() if used > start}
        self.waiters.append(waiter)
        self.arrived[waiter] = (len(self.arrived), now)

    def take(self, waiter: Waiter) -> None:
        if len(self.start) > 1:
            self.turn = max(self.turn, self.tag(waiter.flow))
            usage = self.usage[waiter.flow]
            for limit, amount in waiter.charges:
                used = usage.get(limit, self.start[waiter.flow])
                usage[limit] = used + amount / limit.throughput / self.weights.get(waiter.flow, 1.0)
        self.waiters.remove(waiter)

    def restore(self, waiter: Waiter) -> None:
        """After `take`: as if it had not been, but for the turn that others may have seen."""
        usage = self.usage[waiter.flow]
        for limit, amount in waiter.charges:
            if limit in usage:
                usage[limit] -= amount / limit.throughput / self.weights.get(waiter.flow, 1.0)
        self.waiters.append(waiter)

    def ahead(self, waiter: Waiter, now: float) -> dict:
        """What all others of its level or above have asked for of what it needs."""
        others = [w for w in self.waiters if w is not waiter and self.level(w, now) >= self.level(waiter, now)]
        asked = [(limit, amount) for other in others for limit, amount in other.charges]
        return {mine: sum(amount for limit, amount in asked if limit is mine) for mine, _ in waiter.charges}

    def level(self, waiter: Waiter, now: float) -> int:
        arrived = self.arrived[waiter][1]
        return waiter.priority + (int((now - arrived) // self.ageing) if self.ageing < math.inf else 0)

    def delay(self, flow, seconds: float) -> None:
        if flow in self.start:
            self.start[flow] += seconds
            self.usage[flow] = {limit: used + seconds for limit, used in self.usage[flow].items()}

    def heads(self, now: float, without=()) -> list[Waiter]:
        key = lambda w: (-self.level(w, now), self.tag(w.flow), self.arrived[w][0])  # noqa: E731
        shapes: dict = {}
        for waiter in (w for w in self.waiters if w.flow not in without):
            shapes.setdefault(tuple(limit for limit, _ in waiter.charges), []).append(waiter)
        return sorted((min(shape, key=key) for shape in shapes.values()), key=key)


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("join"), st.integers(-1, 2), st.sampled_from(["a", "b", "c", None]), st.integers(0, 2)),
        st.tuples(st.just("join"), st.just(0), st.just(None), st.just(0)),
        st.tuples(st.just("take"), st.integers(0, 5), st.none(), st.none()),
        st.tuples(st.just("leave"), st.integers(0, 100), st.none(), st.none()),
        st.tuples(st.just("sleep"), st.sampled_from([1, 5, 10, 25]), st.none(), st.none()),
    ),
    max_size=80,
)


@given(steps=STEPS, ageing=st.sampled_from([10.0, math.inf]), weights=st.sampled_from([{}, {"a": 2.0, None: 0.5}]))
def test_the_order_is_level_then_flow_then_arrival_and_leaving_anywhere_keeps_it(steps, ageing, weights):
    """Joining at any priority, leaving anywhere, turns and ageing: the heads are those of the naive model at every
    step."""
    limits = [Counted(1.0), Counted(4.0)]
    shapes = [((limits[0], 2.0),), ((limits[0], 1.0), (limits[1], 8.0)), ((limits[1], 4.0),)]
    queue, naive, now = Queue(ageing, weights), Naive(ageing, weights), 0.0
    for kind, number, flow, shape in steps:
        if kind == "join":
            waiter = Waiter(shapes[shape], number, flow)
            naive.join(waiter, now)
            first = queue.join(waiter, now)
            if ageing == math.inf:  # else who joins does not look at who has risen
                assert first == (waiter in naive.heads(now))
        elif kind == "sleep":
            now += number
        elif kind == "leave" and naive.waiters:
            waiter = naive.waiters.pop(number % len(naive.waiters))
            queue.leave(waiter)
            queue.leave(waiter)  # again: nothing
        elif kind == "take" and naive.waiters:
            heads = queue.heads(now)
            _, waiter = heads[number % len(heads)]
            behind = queue.take(waiter)
            naive.take(waiter)
            of_shape = [w for w in naive.heads(now) if [c for c, _ in w.charges] == [c for c, _ in waiter.charges]]
            assert ([behind[1]] if behind else []) == of_shape[:1]
        heads = queue.heads(now)
        assert [waiter for _, waiter in heads] == naive.heads(now)
        for key, waiter in heads:
            assert key == (-waiter.level, pytest.approx(naive.tag(waiter.flow)), waiter.number)
        assert len(queue) == len(naive.waiters)
        assert set(queue) == set(naive.waiters)
        assert len(list(queue)) == len(naive.waiters)
        for limit in limits:
            asked = [amount for w in naive.waiters for charged, amount in w.charges if charged is limit]
            assert limit.queued == sum(asked)


@given(steps=STEPS, again=st.integers(0, 5))
def test_a_call_that_was_taken_without_a_turn_goes_back_to_where_it_stood(steps, again):
    """As if nothing had happened, to those who wait and to the flows' shares."""
    limit = Counted(2.0)
    queue, now = Queue(10.0, {"a": 2.0}), 0.0
    for kind, number, flow, _ in steps:
        if kind == "join":
            queue.join(Waiter(((limit, 2.0),), number, flow), now)
        elif kind == "sleep":
            now += number
        elif kind == "leave" and len(queue):
            queue.leave(sorted(queue, key=lambda w: w.number)[number % len(queue)])
        elif kind == "take" and len(queue):
            queue.take(queue.heads(now)[0][1])
    for _ in range(again):
        if len(queue):
            before = queue.heads(now)[0]
            queued, count, everybody = limit.queued, len(queue), set(queue)
            queue.take(before[1])
            queue.restore(before[1])
            assert queue.heads(now)[0][1] is before[1]
            assert (limit.queued, len(queue), set(queue)) == (queued, count, everybody)
            now += 7
    order = []
    while len(queue):
        order.append(queue.heads(now)[0][1])
        queue.take(order[-1])
    for flow in ("a", "b", "c", None):
        mine = [(-w.level, w.number) for w in order if w.flow == flow]
        assert mine == sorted(mine)


@pytest.mark.parametrize("seed", range(16))
def test_a_long_life_is_that_of_the_model_at_every_step(seed):
    """All that can happen to a queue, a few hundred times: the order, who is next, what is asked for, and the books."""
    luck = random.Random(seed)
    ageing = (10.0, math.inf)[seed % 2]
    weights = {"a": 2.0, None: 0.5}
    limits = [Counted(1.0), Counted(4.0), Counted(2.0)]
    shapes = [((limits[0], 2.0),), ((limits[0], 0.25), (limits[1], 8.0)), ((limits[1], 4.0),)]
    queue, naive, now, out = Queue(ageing, weights), Naive(ageing, weights), 0.0, []
    busy = (0.65, 0.5, 0.35)[seed % 3]
    for _ in range(400):
        dice = luck.random()
        if dice < busy:
            priority = luck.choice([0, 0, 0, luck.randint(-1, 2)])
            waiter = Waiter(luck.choice(shapes[: 1 + seed // 4]), priority, luck.choice(["a", "b", "c", None]))
            naive.join(waiter, now)
            first = queue.join(waiter, now)
            if ageing == math.inf:  # else who joins does not look at who has risen
                assert first == (waiter in naive.heads(now))
            queue.heads(now)
            assert queue.queued_ahead(waiter) == naive.ahead(waiter, now)
        elif dice < 0.8 and naive.waiters:
            _, waiter = luck.choice(queue.heads(now))
            behind = queue.take(waiter)
            naive.take(waiter)
            of_shape = [h for h in queue.heads(now) if [c for c, _ in h[1].charges] == [c for c, _ in waiter.charges]]
            assert ([behind] if behind else []) == of_shape
            if luck.random() < 0.4:
                out.append(waiter)
        elif dice < 0.9 and out:
            waiter = out.pop(luck.randrange(len(out)))
            queue.restore(waiter)
            naive.restore(waiter)
        elif dice < 0.95 and naive.waiters:
            queue.leave(naive.waiters.pop(luck.randrange(len(naive.waiters))))
        elif dice < 0.97:
            now += luck.choice([0.5, 3.0, 11.0, 25.0])
        elif dice < 0.985:
            flow, seconds = luck.choice(["a", "b", "c", None, "never came"]), luck.choice([0.5, 4.0])
            queue.delay(flow, seconds)
            naive.delay(flow, seconds)
        elif dice < 0.995:
            new = Counted(2.0)
            renewed = {limits[0]: luck.choice([(limits[0], limits[2]), (new,), (limits[0],)])}
            old = {w: w.charges for w in naive.waiters}
            queue.recharge(renewed)
            for waiter, before in old.items():
                after = {at: amount for limit, amount in before for at in renewed.get(limit, (limit,))}
                assert dict(waiter.charges) == after
            out.clear()  # they were asked for on the limits of before
        heads = queue.heads(now)
        assert [waiter for _, waiter in heads] == naive.heads(now)
        for key, waiter in heads:
            assert key == (-naive.level(waiter, now), pytest.approx(naive.tag(waiter.flow)), waiter.number)
        flows = [*"abc", None]
        without = luck.sample(flows, luck.randrange(4))
        others = queue.heads(now, without)
        assert [waiter for _, waiter in others] == naive.heads(now, without), "as if nobody of those flows waited"
        for key, waiter in others:
            assert key == (-naive.level(waiter, now), pytest.approx(naive.tag(waiter.flow)), waiter.number)
        tags = {flow: naive.tag(flow) for flow in flows if any(w.flow == flow for w in naive.waiters)}
        assert [queue.waits(flow) for flow in [*flows, "never came"]] == [*(flow in tags for flow in flows), False]
        for most in (1, 2, 9):
            assert [tags[flow] for flow in queue.flows(most)] == pytest.approx(sorted(tags.values())[:most])
            assert len(set(queue.flows(most))) == min(most, len(tags))
        assert set(queue) == set(naive.waiters)
        for limit in limits:
            assert limit.queued == sum(
                amount for w in naive.waiters for charged, amount in w.charges if charged is limit
            )
        check_books(queue)
