"""Who waits for places of a store, and when their process asks for them.

Places come back when a permit ends, and no clock tells when. So requests that wait for them stand in line in the store
(`_core.bookings`), and whichever process gives places back hears who is next. Where the store announces something that
process tells the other. Where it does not, each asks when its turn may have come: most of a usual wait after it joined,
and then again and again.
"""

from __future__ import annotations

import math

from penstock._backends.shared.limit_set import SharedLimitState
from penstock._backends.shared.queue import FREED_WATCHED, POLL, POLL_HEARD, StoreQueue
from penstock._backends.shared.requests import Booking, SharedRequest
from penstock._backends.shared.state import SchedulerState
from penstock._backends.shared.wire import BatchInFlight
from penstock.stores.contract import Reply

ROUNDING = 1e-5
"""Seconds by which a moment of the store's and the same one of ours may differ."""

PLACE_FREED = 1e-9
"""Seconds of throughput that others are told of where places were given back: no booking comes sooner for them."""

SOON = 0.8
"""The part of a usual wait after which the first question is asked."""

STEP = 0.1
"""How long after a question the next one is asked, as a part of the wait so far."""


class Lines:
    """What a scheduler does for requests that wait for places."""

    def __init__(self, state: SchedulerState) -> None:
        self._state = state

    def joined(self, booking: Booking, queue: StoreQueue, now: float) -> None:
        """The store has booked places, or keeps the booking for them."""
        booking.in_line = True
        booking.since = min(booking.since, now)
        booking.claim_at = max(booking.claim_at, now + POLL[0])  # its caller may wait for less
        if any(of.held and _all_held_here(of) for of, _ in booking.charges):
            booking.early_at = math.inf
        elif not self._state.store.hears:
            waited = now - booking.since
            wait = max(SOON * queue.line_wait - waited, STEP * waited, POLL[0])
            booking.early_at = now + min(wait, POLL[1])

    def left(self, request: SharedRequest, batch: BatchInFlight, now: float) -> None:
        """A request has its places: there may be some for the next in line, too."""
        queue, booking = self._state.queue_of(request), request.booking
        assert booking is not None, "it was in line"
        queue.line_wait += (now - booking.since - queue.line_wait) / 2
        batch.lines += [of for of, _ in request.charges if of.held]

    def not_joined(self, request: SharedRequest, of: SharedLimitState, wait: float, now: float) -> None:
        """A request has no booking for the places that it lacks: ask for it again, unless it stands behind one."""
        queue = self._state.queue_of(request)
        if request.booking is None and not (queue.bookings or queue.reserved):
            return  # it asks again at once, for a booking
        if not any(each.in_line and each.flow == request.flow for each in queue.bookings):
            queue.blocked[request] = of, now + min(max(wait, ROUNDING), self._until_freed(of, queue))

    def _until_freed(self, of: SharedLimitState, queue: StoreQueue) -> float:
        """Seconds until places are asked for again, if nobody is heard to give one back before."""
        if _all_held_here(of):
            return FREED_WATCHED
        seconds = queue.poll
        queue.poll = min(2 * seconds, POLL_HEARD if self._state.store.hears else POLL[1])
        return seconds

    def call_up(self, queue: StoreQueue, number: float) -> bool:
        """Claim the booking of that number now, if it is one of this process."""
        for booking in queue.bookings:
            if booking.number == number:
                booking.early_at = -math.inf
                self._state.dirty[queue] = None
                return True
        return False

    def look(self, batch: BatchInFlight, reply: Reply, now: float) -> None:
        """See to it that the next in line hears of places that are free."""
        for (limit_set, offset), order in zip(batch.offsets.items(), batch.orders, strict=True):
            for index, of in enumerate(order):
                first = reply.states[3 * (offset + index) + 2] if of.held else 0.0
                if first < 0:
                    if not self.call_up(limit_set.queue, -first) and of in batch.lines:
                        batch.next_in_line[limit_set.name] = -first
                elif of in batch.places and of.meter.level(now) > 0:  # nobody here has taken it
                    batch.freed.setdefault(limit_set.name, PLACE_FREED)


def _all_held_here(of: SharedLimitState) -> bool:
    """Whether this process holds all places that there are, so that it sees each end."""
    return bool(of.meter.level(0.0) + of.limit_set.places.get(of, 0.0) >= of.limit.capacity)
