"""For whom the store is asked next: for the first waiter, and for everybody who could go within about 20 ms.

The rest hold nothing, so giving up costs no quota, and a process that dies takes one reservation along.
"""

from __future__ import annotations

import math
from heapq import heapify, heappop, heappush
from typing import Any

from penstock._backends.shared.queue import StoreQueue
from penstock._backends.shared.requests import SharedRequest, Stage
from penstock._backends.shared.state import SchedulerState
from penstock._backends.shared.wire import BatchInFlight
from penstock._backends.shared.writing import MARGIN, Writing
from penstock._core.bucket import Bucket
from penstock._core.turns import LimitState, ready_at

__all__ = ["LOOKAHEAD", "Asking"]

LOOKAHEAD = 0.020
"""Seconds ahead for which turns are reserved in one batch."""


class Asking:
    """Writes the requests of a queue into a batch."""

    def __init__(self, state: SchedulerState, writing: Writing) -> None:
        self._state = state
        self._writing = writing

    def ask(self, queue: StoreQueue, batch: BatchInFlight, now: float) -> None:
        """Ask for the first waiter of a queue, and for those who could go soon."""
        fresh, state = queue.fresh, self._state
        room = state.store.batch - len(batch.asked)
        later: list[SharedRequest] = []
        held = {of for request in queue.reserved if request.due > now + MARGIN for of, _ in request.charges}
        if not len(queue.waiters) and not queue.reserved and fresh and not queue.blocked:
            room = self._ask_plenty(queue, batch, now, room)
        room = self._ask_fresh(queue, batch, now, room, held, later)
        if room < 0:
            return  # a request does not fit into this batch: the queue stays dirty, for the next
        if fresh and room > 0:
            for request in fresh:
                if request.stage is Stage.NEW:
                    state.line_up(request, queue, now)
            fresh.clear()
        if len(queue.waiters) and room > 0:
            room = self._ask_waiters(queue, batch, now, room, held)
        for request in later:
            self._writing.put(request, batch, 0.0, now, now)
        if not fresh and (room > 0 or not len(queue.waiters)):
            state.dirty.pop(queue, None)

    def _ask_fresh(
        self,
        queue: StoreQueue,
        batch: BatchInFlight,
        now: float,
        room: int,
        held: set[Any],
        later: list[SharedRequest],
    ) -> int:
        """Ask for requests that came just now and need not queue; collect those for now or never. Returns the room left; −1: none."""
        fresh, state = queue.fresh, self._state
        straight = not len(queue.waiters) and not queue.reserved
        while fresh and room > 0:
            request = fresh[0]
            if request.stage is not Stage.NEW:
                fresh.popleft()
                continue
            if not state.all_fit(batch, request.charges):
                for other in later:
                    self._writing.put(other, batch, 0.0, now, now)
                return -1
            if request.latest <= now:  # now or never
                fresh.popleft()
                later.append(request)
                room -= 1
                continue
            if not straight or request.priority or request.flow is not None or queue.blocked:
                break
            ready, _ = ready_at(request.charges, now)
            first = held.isdisjoint(of for of, _ in request.charges)
            if ready > now + LOOKAHEAD and not first:
                break
            fresh.popleft()
            room -= 1
            self._writing.put(request, batch, math.inf if first else LOOKAHEAD, ready, now)
            if ready > now:
                held.update(of for of, _ in request.charges)
        return room

    def _ask_plenty(self, queue: StoreQueue, batch: BatchInFlight, now: float, room: int) -> int:
        """Ask for those who come first and, by all we know, can go at once: the same as `_ask_fresh`, as fast as it can be."""
        fresh, asked, state = queue.fresh, batch.asked, self._state
        new, on_its_way = Stage.NEW, Stage.ASKED  # looked up once: it costs as much as a call on Python 3.11
        left: dict[LimitState, float] = {}  # units, per bucket
        horizon = LOOKAHEAD if asked else math.inf
        while fresh and room > 0:
            charges = fresh[0].charges
            most = room
            for of, amount in charges:
                level = left.get(of)
                if level is None:
                    meter = of.meter
                    if not (type(meter) is Bucket and of.paused_until <= now and state.fits(batch, of.limit_set)):
                        most = 0
                        break
                    level = left[of] = meter.level(now)
                most = min(most, int(level // amount))
            taken = 0
            while taken < most and fresh:  # programs use the same charges again and again
                request = fresh[0]
                if (
                    request.charges is not charges
                    or request.stage is not new
                    or request.latest != math.inf
                    or request.priority
                    or request.flow is not None
                ):
                    break
                request.stage = on_its_way
                request.batch = batch
                asked.append(request)
                fresh.popleft()
                taken += 1
            if not taken:
                break
            self._writing.name_flow(asked[-1], batch)
            batch.acquire(charges, horizon, stops=True, times=taken)
            for of, amount in charges:
                left[of] -= amount * taken
            room -= taken
        for of, level in left.items():
            of.meter.charge(max(0.0, of.meter.level(now) - level), now)
        return room

    def _ask_waiters(self, queue: StoreQueue, batch: BatchInFlight, now: float, room: int, held: set[Any]) -> int:
        """Ask for the first of each shape of calls, and for those behind it that could go soon. Returns the room left."""
        waiters, state = queue.waiters, self._state
        queue.behind = {flow: until for flow, until in queue.behind.items() if until > now}
        heads: list[Any] = waiters.heads(now, queue.behind)
        heapify(heads)
        mine = set(held)
        blocked = {of for of, until in queue.blocked.items() if until > now}
        look_again = min((until for until in queue.blocked.values() if until > now), default=math.inf)
        look_again = min(look_again, min(queue.behind.values(), default=math.inf))
        begun, until = False, now
        while heads and room > 0:
            _, request = heappop(heads)
            while True:
                if not state.all_fit(batch, request.charges):
                    return 0  # stays dirty, for a batch of its own
                limits = [of for of, _ in request.charges]
                if not blocked.isdisjoint(limits):
                    held.update(limits)
                    break
                ready, _ = ready_at(request.charges, now)
                first = held.isdisjoint(limits)
                if not first and ready > now + (LOOKAHEAD if begun else 2 * MARGIN):
                    held.update(limits)
                    look_again = min(look_again, ready - MARGIN)
                    if not mine.isdisjoint(limits):
                        look_again = min(look_again, max((of.due for of in queue.reserved), default=math.inf))
                    break
                begun = True
                until = max(until, ready)
                room -= 1
                behind: Any = waiters.take(request)
                self._writing.put(request, batch, math.inf if first else LOOKAHEAD, ready, now)
                if first and ready > now:
                    held.update(limits)
                if queue.behind:  # the next of this shape may be of a flow that is to come again later
                    heads = waiters.heads(now, queue.behind)
                    heapify(heads)
                    break
                if behind is None or room <= 0:
                    break
                if heads and behind[0] > heads[0][0]:
                    heappush(heads, behind)
                    break
                request = behind[1]
        if begun and until < math.inf:
            self._writing.name_waiting(queue, batch, until, now)
        if room > 0 and look_again < math.inf:
            self._look_again(queue, max(look_again, now + 0.0002), now)
        return room

    def _look_again(self, queue: StoreQueue, moment: float, now: float) -> None:
        if now < queue.alarm <= moment:
            return
        queue.alarm = moment

        def ring(_: float) -> None:
            if len(queue.waiters):
                self._state.dirty[queue] = None

        self._state.at(moment, ring)
