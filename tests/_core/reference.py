"""Turns as they were before there was an index of shapes: the heads of all shapes, sorted anew at every turn."""

from __future__ import annotations

import math
from heapq import heappop, heappush

from penstock._core.charging import charge, ready_at
from penstock._core.queue import Queue


def horizon(charges, now):
    return max((at for state, amount in charges if (at := state.ready_at(amount, now)) < math.inf), default=now)


def delays(charges, waiter, at, now):
    mine = dict(charges)
    return any(
        mine.get(state) and state.meter.ready_after(mine[state], amount, now) > at + 1e-8
        for state, amount in waiter.charges
    )


def charge_if_ready(charges, now):
    return charge(charges, now) if ready_at(charges, now)[0] <= now else None


def admit(queue: Queue, now: float, grant, protected: int = 16) -> float:
    """Until a look at all of them grants nothing: what is granted changes the order of flows."""
    while True:
        before = len(queue)
        next_turn = admit_once(queue, now, grant, protected)
        if len(queue) == before:
            return next_turn


def admit_once(queue, now, grant, protected):
    heads = queue.heads(now)
    next_turn = math.inf
    blocked = []
    while heads:
        _, waiter = heappop(heads)
        while True:
            charges = waiter.charges
            ready = ready_at(charges, now)[0]
            if blocked and ready <= now and any(delays(charges, earlier, at, now) for earlier, at in blocked):
                break
            receipts = charge_if_ready(charges, now)
            if receipts is None:
                next_turn = min(next_turn, ready)
                break
            behind = queue.take(waiter)
            grant(waiter, receipts, now)
            if behind is None:
                break
            if heads and behind[0] > heads[0][0]:
                heappush(heads, behind)
                break
            waiter = behind[1]
        if waiter.subqueue is not None and heads and len(blocked) < protected:
            blocked.append((waiter, horizon(waiter.charges, now)))
    return next_turn
