"""Who waits for places of a store, and when their process asks for them.

Places come back when a permit ends, and no clock tells when. So requests that wait for them stand in line in the store
(`_core.bookings`), and whichever process gives places back hears who is next. How the others hear of it is the store's
to say. Where it announces something, that process tells them. Where it shows its rows, each looks at them every few
milliseconds, which decides and writes nothing, and asks when it sees that its turn has come. Where it does neither,
each asks when its turn may have come: most of a usual wait after it joined, and then again and again.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping

from penstock._backends.shared.limit_set import SharedLimitSet, SharedLimitState
from penstock._backends.shared.queue import FREED_WATCHED, POLL, POLL_HEARD, StoreQueue
from penstock._backends.shared.requests import Booking, SharedRequest
from penstock._backends.shared.state import SchedulerState
from penstock._backends.shared.wire import BatchInFlight
from penstock._core.decision import in_line
from penstock._core.rows import DamagedRow
from penstock.stores.contract import Reply, Row

ROUNDING = 1e-5
"""Seconds by which a moment of the store's and the same one of ours may differ."""

PLACE_FREED = 1e-9
"""Seconds of throughput that others are told of where places were given back: no booking comes sooner for them."""

SOON = 0.8
"""The part of a usual wait after which the first question is asked."""

STEP = 0.1
"""How long after a question the next one is asked, as a part of the wait so far."""

WATCH = (0.002, 0.020)
"""Seconds, shortest and longest, between looks at a row: the first in line looks most often."""

WATCH_STEP = 0.01
"""The same, as a part of the wait so far."""


class Lines:
    """What a scheduler does for requests that wait for places."""

    def __init__(self, state: SchedulerState) -> None:
        self._state = state

    def joined(self, booking: Booking, queue: StoreQueue, now: float) -> None:
        """The store has booked places, or keeps the booking for them."""
        booking.in_line = True
        booking.since = min(booking.since, now)
        booking.claim_at = max(booking.claim_at, now + POLL[0])  # its caller may wait for less
        waited, store = now - booking.since, self._state.store
        if _sees_each_end(booking) or store.hears or store.shows:
            booking.early_at = math.inf
        else:
            booking.early_at = now + min(max(SOON * queue.line_wait - waited, STEP * waited, POLL[0]), POLL[1])
        if booking.seen:  # it was not its turn after all
            booking.look_from = now + max(STEP * waited, POLL[0])
        booking.seen = False

    def watch(self, queue: StoreQueue, now: float) -> None:
        """Look at the rows soon, if there are requests in line that learn of their turns only so."""
        state = self._state
        watching = [booking for booking in queue.bookings if booking.in_line and not _sees_each_end(booking)]
        if not watching or state.store.hears or not state.store.shows:
            return
        moment = now + min(_until_looked_at(booking, now) for booking in watching)
        if now < queue.look_at <= moment:
            return
        queue.look_at = moment

        def ring(now: float) -> None:
            standing = queue.standing()
            if now >= standing.look_at:
                waiting = [booking for booking in standing.bookings if booking.in_line]
                state.to_watch[standing] = {of.limit_set for each in waiting for of, _ in each.charges if of.held}

        state.at(moment, ring)

    def on_rows(self, queue: StoreQueue, rows: Mapping[SharedLimitSet, Row | None], now: float, server: float) -> None:
        """Claim the bookings whose turns have come, as these rows show. `server`: the store's time."""
        waiting = [booking for booking in queue.bookings if booking.in_line]
        if rows != queue.shown[0] or now > queue.shown[1] + POLL[1]:  # else nothing has changed
            queue.shown = rows, now
            numbers = [booking.number for booking in waiting]
            shown = []
            for limit_set, row in rows.items():
                if row is not None and row[0] == limit_set.terms.text:
                    with contextlib.suppress(DamagedRow):  # the next call says so
                        shown.append(in_line(row[1], limit_set.terms.numbers(server), numbers, server))
            for booking, stands in zip(waiting, zip(*shown, strict=True), strict=False):
                known = [each for each in stands if each is not None]
                booking.ahead = max((each.ahead for each in known), default=0.0)
                if all(each.ready for each in known) and now >= booking.look_from:
                    booking.seen = self.call_up(queue, booking.number)
        self.watch(queue, now)

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


def _until_looked_at(booking: Booking, now: float) -> float:
    """Seconds between looks whether the turn of a booking has come."""
    return min(max(WATCH[0] * (1 + booking.ahead), WATCH_STEP * (now - booking.since)), WATCH[1])


def _sees_each_end(booking: Booking) -> bool:
    """Whether this process holds all places that there are, so it need not hear of any."""
    return any(of.held and _all_held_here(of) for of, _ in booking.charges)


def _all_held_here(of: SharedLimitState) -> bool:
    """Whether this process holds all places that there are, so that it sees each end."""
    return bool(of.meter.level(0.0) + of.limit_set.places.get(of, 0.0) >= of.limit.capacity)
