"""Writing requests into a batch, and into the mirror of the limits."""

from __future__ import annotations

import math

from penstock._backends.shared.queue import StoreQueue
from penstock._backends.shared.requests import SharedRequest, Stage
from penstock._backends.shared.state import SchedulerState
from penstock._backends.shared.wire import BatchInFlight

__all__ = ["MARGIN", "MOST_TOLD", "Writing"]

MARGIN = 0.002
"""Seconds before the last reserved turn at which the next batch is sent."""

MOST_TOLD = 8
"""Flows that wait behind others here, of which the store is told: so it does not forget them while it is not their turn."""


class Writing:
    """Writes requests."""

    def __init__(self, state: SchedulerState) -> None:
        self._state = state

    def put(self, request: SharedRequest, batch: BatchInFlight, horizon: float, ready: float, now: float) -> None:
        """Write a request that may be reserved up to `horizon` seconds ahead, and is expected to be ready at `ready`."""
        wait = request.latest - now
        stops = True
        if wait < horizon:
            horizon = max(wait, 0.0)
            stops = wait > 0
        self.name_flow(request, batch)
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
