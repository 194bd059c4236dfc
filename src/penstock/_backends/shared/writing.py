"""Writing requests into a batch, and into the mirror of the limits."""

from __future__ import annotations

import math

from penstock._backends.shared.queue import StoreQueue
from penstock._backends.shared.requests import Booking, SharedRequest, Stage
from penstock._backends.shared.state import MARGIN, SchedulerState
from penstock._backends.shared.wire import BatchInFlight

LOOKAHEAD = 0.020
"""Seconds ahead for which turns are reserved in one batch."""

NEVER = 1e9
"""Seconds after which a request rises a level where requests do not."""

MOST_TOLD = 8
"""Flows that wait behind others here, of which the store is told: so it does not forget them while it is not their
turn."""


class Writing:
    """Writes requests."""

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
            batch.place(booking, wait, now)
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
