"""Which requests the store is asked for next: the first waiter's, and those that could go within about 20 ms.

The rest hold nothing, so giving up costs no quota, and a process that dies takes one reservation along.
"""

from __future__ import annotations

import math
from heapq import heapify, heappop, heappush
from itertools import islice
from typing import Any

from penstock._backends.shared.queue import StoreQueue
from penstock._backends.shared.requests import Booking, SharedRequest, Stage
from penstock._backends.shared.state import MARGIN, SchedulerState
from penstock._backends.shared.wire import BatchInFlight
from penstock._core.charging import ready_at
from penstock._core.limit_state import LimitState

FORGOTTEN = 1.0
"""Seconds after which a booking that could not be claimed is forgotten."""

LOOKAHEAD = 0.020
"""Seconds ahead for which turns are reserved in one batch."""

MOST_AHEAD = 0.5
"""Seconds ahead for which a request is charged at most: no refund makes a charge come sooner, and no call passes it."""

NEVER = 1e9
"""Seconds after which a request rises a level where requests do not."""

MOST_TOLD = 8
"""Flows that wait behind others here, of which the store is told: so it does not forget them while it is not their
turn."""


class Writing:
    """Writes requests into a batch, and into the mirror of the limits."""

    def __init__(self, state: SchedulerState) -> None:
        self._state = state

    def put_first(
        self, request: SharedRequest, batch: BatchInFlight, ready: float, now: float, claimed: Booking | None = None
    ) -> None:
        """Write a request that claims a booking, or is to be told when to come again if it must wait for long."""
        state = self._state
        ahead = max(LOOKAHEAD, *[amount / of.throughput for of, amount in request.charges])
        if claimed is None:
            ahead *= 2  # it may be one that passes all others, and is spared the way here for one of them
        elif claimed.claim_at > now:
            ahead = LOOKAHEAD
        ahead = min(ahead, MOST_AHEAD)
        self.put(request, batch, state.lead + ahead, ready, now, claimed or state.book(request))

    def put(
        self,
        request: SharedRequest,
        batch: BatchInFlight,
        horizon: float,
        ready: float,
        now: float,
        booking: Booking | None = None,
    ) -> None:
        """Write a request that may be reserved up to `horizon` seconds ahead and is expected to be ready at `ready`."""
        wait = request.latest - now
        stops = True
        if wait < horizon:
            horizon = max(wait, 0.0)
            stops = wait > 0
        self.name_flow(request, batch)
        if booking is not None or request.priority != batch.priority:
            ageing = min(self._state.queue_of(request).waiters.ageing, NEVER)
            batch.rank(float(request.priority), max(0.0, now - request.arrived), ageing)
        request.booking = booking
        if booking is not None:
            batch.book(booking, wait, now)
        batch.acquire(request.charges, horizon, stops=stops)
        at = max(ready, now)
        if at < math.inf:
            for state, amount in request.charges:
                state.meter.charge(amount, at)
        request.stage = Stage.ASKED
        request.batch = batch
        batch.asked.append(request)

    def name_flow(self, request: SharedRequest, batch: BatchInFlight) -> None:
        """Write whose the requests that follow are, unless that was written last."""
        payer = request.charges[0][0]
        if request.flow != batch.flow or batch.payer is not payer.limit_set:
            name = self._state.flow_name(request.flow, self._state.queue_of(request))
            batch.name_flow(request.flow, name, payer)

    def name_waiting(self, queue: StoreQueue, batch: BatchInFlight, until: float, now: float) -> None:
        """Write which flows wait here beside those that were asked for, and until when they are asked for again."""
        flows = queue.waiters.flows(MOST_TOLD)
        if not flows or (len(flows) == 1 and flows[0] == batch.flow):
            return
        payer = batch.asked[-1].charges[0][0]
        waits = min(max([until, *(request.due for request in queue.reserved)]) - now + MARGIN, 1.0)
        for flow in flows:
            batch.name_waiting(self._state.flow_name(flow, queue), payer, waits)
        queue.told = set(flows)


class Asking:
    """Writes the requests of a queue into a batch."""

    def __init__(self, state: SchedulerState, writing: Writing) -> None:
        self._state = state
        self._writing = writing

    def ask(self, queue: StoreQueue, batch: BatchInFlight, now: float) -> None:
        """Ask for the first waiter of a queue, and for those that could go soon."""
        fresh, state = queue.fresh, self._state
        room = state.store.batch - len(batch.asked)
        if fresh and not (len(queue.waiters) or queue.reserved or queue.blocked or queue.bookings):
            room = self._ask_plenty(queue, batch, now, room)
        at_once: list[SharedRequest] = []  # for now or never
        while fresh and room > 0:
            request = fresh.popleft()
            if request.stage is not Stage.NEW:
                continue
            if request.latest > now:
                first = not (len(queue.waiters) or queue.reserved or queue.blocked or queue.bookings)
                state.line_up(request, queue, now, first=first)
            elif state.all_fit(batch, request.charges):
                at_once.append(request)
                room -= 1
            else:
                fresh.appendleft(request)
                break
        if len(queue.waiters) and room > 0:
            room = self._ask_waiters(queue, batch, now, room)
        for request in at_once:  # behind those that wait
            self._writing.put(request, batch, 0.0, now, now)
        if queue.bookings and not fresh:
            self._drop_unused(queue, now)
        if not fresh and (room > 0 or not len(queue.waiters)):
            state.dirty.pop(queue, None)

    def _ask_plenty(self, queue: StoreQueue, batch: BatchInFlight, now: float, room: int) -> int:
        """Ask for those that come first and, as far as we know, can go at once, unqueued. Returns the room left."""
        fresh, state = queue.fresh, self._state
        new, on_its_way = Stage.NEW, Stage.ASKED  # looked up once: it costs as much as a call on Python 3.11
        levels: dict[LimitState, float] = {}  # units, per limit
        left: dict[LimitState, float] = {}  # the same, less what is asked for here
        fitting: object = None  # the limit set that was found to fit into the batch last
        horizon = LOOKAHEAD if batch.asked else state.lead + LOOKAHEAD
        latest = now + horizon  # those that wait for less may be asked for less far ahead
        while fresh and room > 0:
            charges = fresh[0].charges
            most = room
            for of, amount in charges:
                level = left.get(of)
                if level is None:
                    limit_set = of.limit_set
                    if (
                        of.paused_until > now
                        or not limit_set.agreed
                        or not (limit_set is fitting or state.fits(batch, limit_set))
                    ):
                        most = 0
                        break
                    fitting = limit_set
                    level = left[of] = levels[of] = of.meter.level(now)
                most = min(most, int(level // amount))
            taken: list[Any] = []
            for request in islice(fresh, max(most, 0)):  # programs use the same charges again and again
                if (
                    request.charges is not charges
                    or request.stage is not new
                    or request.latest < latest
                    or request.priority
                    or request.flow is not None
                ):
                    break
                request.stage = on_its_way
                request.batch = batch
                taken.append(request)
            if not taken:
                break
            if len(taken) == len(fresh):
                fresh.clear()
            else:
                for _ in taken:
                    fresh.popleft()
            self._writing.name_flow(taken[0], batch)
            batch.acquire_each(taken, charges, horizon)
            for of, amount in charges:
                left[of] -= amount * len(taken)
            room -= len(taken)
        for of, level in left.items():
            if level < levels[of]:
                of.meter.charge(levels[of] - level, now)
        return room

    def _ask_waiters(self, queue: StoreQueue, batch: BatchInFlight, now: float, room: int) -> int:
        """Ask for the first of each shape, and for those behind it that could go soon. Returns the room left."""
        queue.behind = {flow: until for flow, until in queue.behind.items() if until > now}
        queue.blocked = {
            request: (of, until)
            for request, (of, until) in queue.blocked.items()
            if until > now and request.stage is Stage.QUEUED
        }
        asking = _Round(queue, now)
        while True:
            skipped = len(asking.skipped)
            heads: list[Any] = queue.waiters.heads(now, queue.behind.keys() | asking.skipped)
            heapify(heads)
            room = self._ask_heads(queue, batch, room, asking, heads)
            if room < 0:
                return 0  # stays dirty, for a batch of its own
            if len(asking.skipped) == skipped:
                break
        if asking.begun and asking.until < math.inf:
            self._writing.name_waiting(queue, batch, asking.until, now)
        if room > 0 and asking.look_again < math.inf:
            self._state.look_again(queue, max(asking.look_again, now + 0.0002), now)
        return room

    def _ask_heads(self, queue: StoreQueue, batch: BatchInFlight, room: int, asking: _Round, heads: list[Any]) -> int:
        """Ask for these, and for those behind them. Returns the room left; −1: one does not fit into this batch."""
        waiters, state, now = queue.waiters, self._state, asking.now
        while heads and room > 0:
            _, request = heappop(heads)
            while True:
                if request.abandoned:
                    state.take_out_all_of(request.parker.home, queue)
                    heads = waiters.heads(now, queue.behind.keys() | asking.skipped)
                    heapify(heads)
                    break
                if not state.all_fit(batch, request.charges):
                    return -1
                limits = [of for of, _ in request.charges]
                if request in queue.blocked:
                    asking.blocked.add(queue.blocked[request][0])
                    if queue.blocked[request][0].meter.held:
                        asking.for_places.append(dict(request.charges))
                if not asking.blocked.isdisjoint(limits) or (asking.for_places and asking.makes_late(request)):
                    asking.hold(request)
                    break
                claimed, waits = asking.booking_of(request, limits)
                if waits:
                    asking.stand_aside(request)
                    break
                ready, _ = ready_at(request.charges, now)
                first = claimed is not None or asking.first(request, limits)
                if not first and ready > now + (LOOKAHEAD if asking.begun else 2 * MARGIN):
                    if ready > now + LOOKAHEAD and _waits_for_places(request, now):
                        asking.for_places.append(dict(request.charges))
                    asking.wait_for(request, ready, limits)
                    break
                asking.until = max(asking.until, ready)
                room -= 1
                behind: Any = waiters.take(request)
                if first and (claimed is not None or ready > now or not asking.begun or _wants_places(request)):
                    self._writing.put_first(request, batch, ready, now, claimed)
                    if ready > now or (claimed is not None and claimed.in_line):
                        asking.stand_aside(request)
                    if claimed is not None:
                        if claimed.claim_at <= now:
                            state.was_late(now - claimed.claim_at)
                    elif ready > now or not _wants_places(request):  # else the store gives one of them a booking
                        asking.placed.append(request.booking)
                else:
                    self._writing.put(request, batch, LOOKAHEAD, ready, now)
                asking.begun = True
                if queue.behind or asking.skipped:  # the next of this shape may be of a flow that is to come later
                    heads = waiters.heads(now, queue.behind.keys() | asking.skipped)
                    heapify(heads)
                    break
                if behind is None or room <= 0:
                    break
                if heads and behind[0] > heads[0][0]:
                    heappush(heads, behind)
                    break
                request = behind[1]
        return room

    def _drop_unused(self, queue: StoreQueue, now: float) -> None:
        """Give up the bookings for which no request waits any more, and forget those of long ago."""
        for booking in list(queue.bookings):
            if booking.due < now - FORGOTTEN:
                queue.bookings.remove(booking)
            elif not queue.waiters.waits(booking.flow):
                queue.bookings.remove(booking)
                self._state.drop(booking, queue)


class _Round:
    """One look at a queue: what is asked for, and what waits.

    Attributes:
        held: Per limit, the priority of the most urgent request that has a reservation, or must have its turn first.
        blocked: Limits of which those behind a request that is too early have nothing.
        for_places: What requests that wait for places need, and those behind them may not take.
        placed: Bookings that are asked for in this batch.
        skipped: Flows whose bookings are for later.
        begun: Whether a request was written.
        until: When the last of those is expected to be ready.
        look_again: When the queue must be looked at again.
    """

    __slots__ = (
        "_queue", "_reserved", "begun", "blocked", "for_places", "held", "look_again", "now", "placed", "skipped",
        "until",
    )  # fmt: skip

    def __init__(self, queue: StoreQueue, now: float) -> None:
        self._queue = queue
        self.held: dict[Any, float] = {}
        for request in queue.reserved:
            if request.due > now + MARGIN:
                self.hold(request)
        self._reserved = set(self.held)
        self.now = now
        self.blocked: set[LimitState] = set()
        self.look_again = min([*(at for _, at in queue.blocked.values()), *queue.behind.values()], default=math.inf)
        self.for_places: list[dict[Any, float]] = []
        self.placed: list[Any] = []
        self.skipped: set[Any] = set()
        self.begun = False
        self.until = now

    def hold(self, request: SharedRequest) -> None:
        """Let no request pass this one, unless it is more urgent."""
        for of, _ in request.charges:
            self.held[of] = max(self.held.get(of, -math.inf), request.priority)

    def makes_late(self, request: SharedRequest) -> bool:
        """Whether it would leave too little for one before it, were the places that this waits for given back now."""
        for needed in self.for_places:
            for of, amount in request.charges:
                need = min(needed.get(of, 0.0), of.limit.capacity)
                if need and of.ready_at(amount + need, self.now) > self.now:
                    together = amount + need <= of.limit.capacity
                    self.look_again = min(
                        self.look_again, of.ready_at(amount + need, self.now) if together else math.inf
                    )
                    return True
        return False

    def stand_aside(self, request: SharedRequest) -> None:
        """Keep for a request that waits for places what else it needs: of these the store keeps what is its."""
        if _wants_places(request):
            self.for_places.append({of: amount for of, amount in request.charges if not of.meter.held})

    def first(self, request: SharedRequest, limits: list[Any]) -> bool:
        """Whether a request is the first of its priority that needs these limits."""
        if any(self.held.get(of, -math.inf) >= request.priority for of in limits):
            return False
        return len(self._queue.bookings) < MOST_TOLD and not any(
            booking.flow == request.flow and booking.priority >= request.priority for booking in self.placed
        )

    def booking_of(self, request: SharedRequest, limits: list[Any]) -> tuple[Booking | None, bool]:
        """The booking that a request claims now, or whether it waits for the moment of one.

        Of those that are due it claims the one of its own priority: another request is to claim the others, and the
        store ranks each by the priority that it was made with.
        """
        waits = False
        due: list[Booking] = []
        for booking in self._queue.bookings:
            if booking.flow != request.flow or [of for of, _ in booking.charges] != limits:
                continue
            claim_at = booking.claim_at
            # A request that waits for less would lose the booking for the others.
            if booking.in_line or request.latest >= booking.due:
                claim_at = min(claim_at, booking.early_at)
            if claim_at <= self.now:
                due.append(booking)
            elif booking.priority >= request.priority:
                waits = True
                self.look_again = min(self.look_again, claim_at)
        if due:
            claimed = min(due, key=lambda booking: (booking.priority != request.priority, booking.due))
            self._queue.bookings.remove(claimed)
            return claimed, False
        if waits:
            self.skipped.add(request.flow)
        return None, waits

    def wait_for(self, request: SharedRequest, ready: float, limits: list[Any]) -> None:
        """Look again when a request that is not asked for now could go."""
        self.hold(request)
        self.look_again = min(self.look_again, ready - MARGIN)
        if not self._reserved.isdisjoint(limits):
            self.look_again = min(self.look_again, max((of.due for of in self._queue.reserved), default=math.inf))


def _wants_places(request: SharedRequest) -> bool:
    return any(of.meter.held for of, _ in request.charges)


def _waits_for_places(request: SharedRequest, now: float) -> bool:
    return any(of.meter.held and of.ready_at(amount, now) > now for of, amount in request.charges)
