"""The queue in front of limits that live in a store: which requests wait here, and which have a reservation.

`scheduler` decides what is asked for; the order of the waiters is that of `_core.queue`.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Hashable, Mapping
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from penstock._core.charging import ready_at
from penstock._core.queue import Queue
from penstock._core.windows import CalendarWindow

if TYPE_CHECKING:
    from penstock._core.limit_state import LimitState

PAUSE_WATCHED = 0.5
"""Seconds between looks whether a pause was lifted, where the store announces nothing."""

FREED_WATCHED = 1.0
"""Seconds between questions whether something was given back, where the store announces nothing and the wait is twice
as long."""

POLL = (0.002, 0.050)
"""Seconds, first and longest, between questions for what comes back only when it is given back."""

POLL_HEARD = 0.250
"""The longest where the store announces that it was: it may be lost on the way, or its process has died."""


class StoreQueue:
    """The requests that wait for the same limits of a store.

    Attributes:
        waiters: Requests in their order.
        fresh: Requests that came just now and have no position in the order yet.
        reserved: Requests that the store has granted for a moment to come.
        coming: How many were sent to the dispatcher and have not arrived.
        sets: The limit sets behind this queue.
        lease: Seconds for which leases may be held; None: no leases.
        blocked: Requests that have no booking and are too early for a limit: which one, and when to ask for them again.
        bookings: What the store has told requests that wait here: when to come again.
        behind: Flows that are ahead of those of other processes: when to ask for them again.
        told: Flows of which the store knows that they wait here.
        poll: Seconds until a blocked limit is asked for again.
        alarm: When the queue is looked at next.
        problem: Why the store did not decide the last batch; None: it did.
        line_wait: Seconds that a booking for places has waited lately.
        look_at: When the rows are looked at next, for those that wait for places.
        shown: The rows as they were shown last, and when.
        more_at: Before that, the store has no more to lease than what the first in the queue need.
        tended: When the leases are looked at next, whether they are used.
    """

    __slots__ = (
        "__weakref__", "_into", "_merged", "alarm", "behind", "blocked", "bookings", "coming", "fresh", "lease",
        "line_wait", "look_at", "more_at", "poll", "problem", "reserved", "sets", "shown", "tended", "told", "waiters",
    )  # fmt: skip

    def __init__(self, ageing: float, weights: Mapping[Hashable, float], lease: float | None) -> None:
        self.waiters = Queue(ageing, dict(weights))
        self.lease = lease
        self.sets: WeakSet[Any] = WeakSet()
        self._into: StoreQueue | None = None
        self._merged = 1  # of how many queues this one is made
        self.poll = POLL[0]
        self.forget()

    def forget(self) -> None:
        """Begin anew, with nothing waiting: in the child of a fork all requests are the parent's."""
        self.waiters = Queue(self.waiters.ageing, self.waiters.weights)
        self.fresh: deque[Any] = deque()
        self.reserved: list[Any] = []
        self.bookings: list[Any] = []
        self.coming = 0
        self.alarm = math.inf
        self.line_wait = 0.0
        self.look_at = math.inf
        self.shown: tuple[Mapping[Any, Any], float] = ({}, -math.inf)
        self.problem: Exception | None = None
        self.more_at = self.tended = -math.inf
        self.blocked: dict[Any, tuple[LimitState, float]] = {}
        self.behind: dict[Hashable, float] = {}
        self.told: set[Hashable] = set()

    def __len__(self) -> int:
        """How many requests wait here."""
        return len(self.waiters) + len(self.fresh) + len(self.reserved)

    def __bool__(self) -> bool:
        return True

    def states(self) -> list[Any]:
        """All limits that calls are charged on here."""
        return [state for limit_set in self.sets for state in limit_set.order]

    def unblock(self, limit: LimitState) -> None:
        """Ask again for those that wait for a limit, as something comes back there."""
        self.blocked = {request: of for request, of in self.blocked.items() if of[0] is not limit}

    def hurry(self, seconds: float = math.inf) -> None:
        """Ask so much sooner, or now, whether those that have a booking may go before its moment."""
        for booking in self.bookings:
            booking.early_at = min(booking.claim_at, booking.early_at) - seconds

    def is_of_use(self, booking: Any) -> bool:
        """Whether the next of its flow is as urgent as a booking, and wants as much. For less it may go sooner."""
        heir: Any = self.waiters.first_of(booking.flow, booking.charges)
        if heir is None or heir.priority < booking.priority:
            return False
        return all(amount >= of_it for (_, amount), (_, of_it) in zip(heir.charges, booking.charges, strict=True))

    def can_go(self, now: float) -> bool:
        """Whether one that waited for a calendar's next period can go: other processes may give something back."""
        if not any(isinstance(state.meter, CalendarWindow) for state in self.states()):
            return False
        heads: list[Any] = self.waiters.heads(now)
        return any(ready_at(request.charges, now)[0] <= now for _, request in heads)

    @property
    def moved(self) -> bool:
        """Whether this queue has become part of another: `standing` is that one."""
        return self._into is not None

    def standing(self) -> StoreQueue:
        """This queue, or the one that it became part of."""
        queue = self
        while queue._into is not None:
            queue = queue._into
        return queue

    def merge(self, other: StoreQueue) -> StoreQueue:
        """Become one with `other`, with one order for all waiters; return the queue that was more queues already."""
        if other is self:
            return self
        if other._merged > self._merged:
            return other.merge(self)
        self._merged += other._merged
        self.waiters.weights = {**other.waiters.weights, **self.waiters.weights}
        self.waiters.ageing = min(self.waiters.ageing, other.waiters.ageing)
        other._into = self
        self.waiters.take_in(other.waiters)
        self.sets |= other.sets
        self.coming += other.coming
        if self.lease is not None and other.lease is not None:
            self.lease = min(self.lease, other.lease)
        self.fresh.extend(other.fresh)
        self.reserved.extend(other.reserved)
        self.bookings.extend(other.bookings)
        self.blocked.update(other.blocked)
        return self
