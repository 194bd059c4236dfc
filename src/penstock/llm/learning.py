"""What can be known of a server's buckets from here: when our requests really left, and what its answers told.

Pure arithmetic: times and numbers in, numbers out. `transport` feeds it and lowers the limiter to what comes out.

Two things make a client that counts exactly still run into 429s.

**Requests leave later than they were allowed to.** A bucket that is full does not refill. If the first of a burst takes
half a second to connect, the server's bucket starts to refill half a second after ours, and is that much emptier for ever
after. `Departures` is a bucket that is charged when a request leaves, and that counts what was granted and has not left
as if it left now; the lower of the two buckets is right, however slow the client.

**Answers tell the past.** `remaining` was true at admission, one latency ago, and knows nothing of what was sent since.
Taking it for the present (as most clients do) lets the same tokens be spent many times over. `Snapshots` adds what was
refilled since and subtracts what was sent since, and learns from two snapshots how much the server charges for what we
estimate: its own idea of a token, and strangers on the same account, are one factor to us.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from dataclasses import dataclass, field

__all__ = ["Departures", "Snapshots", "Trip"]

HEADROOM = 0.25
"""Seconds of refill that are kept back: for the part of the way, from our socket to admission, that nobody can time."""

DOUBT = 0.02
"""Share that is added to what left since a snapshot, for what is not known yet of how the server counts it."""

CROWD = 0.02
"""Share of the limit, or of the burst, that may leave around a request before its snapshot tells nothing any more."""

OVERTAKING = 0.05
"""Seconds between two departures within which the second may well arrive first."""

DECAY = 0.8
"""How much of what was learned outlives the next lesson: a memory of about five."""

_LESSON = 0.1  # share of the limit that a lesson goes over; over less, overtaking would teach more than charging
_LEAST, _MOST = 0.2, 5.0  # beyond these a factor is no estimator's error any more
_LONGEST = 20_000  # departures that are remembered


@dataclass(slots=True)
class Departures:
    """A bucket that is charged when requests leave.

    Args:
        capacity: Units that the server's holds at most, and at first. This one holds less, by what comes in during
            `HEADROOM`, but never less than half.
        rate: Units per second.
    """

    capacity: float
    rate: float
    _level: float = field(init=False)
    _at: float = field(init=False, default=0.0)
    _waiting: float = field(init=False, default=0.0)  # granted, and still here

    def __post_init__(self) -> None:
        self._hold_back()
        self._level = self.capacity

    def change(self, capacity: float, rate: float, now: float) -> None:
        """Replace the numbers it was made of. What was used stays used."""
        used = self.capacity - self._refilled(now)
        self.capacity, self.rate = capacity, rate
        self._hold_back()
        self._level = self.capacity - used
        self._at = max(self._at, now)

    def _hold_back(self) -> None:
        self.capacity = max(self.capacity / 2, min(self.capacity, 1.0), self.capacity - HEADROOM * self.rate)

    def granted(self, cost: float) -> None:
        """A request was allowed to leave."""
        self._waiting += cost

    def withdrawn(self, cost: float) -> None:
        """It will never leave."""
        self._waiting -= cost

    def left(self, cost: float, now: float) -> None:
        """It left."""
        self._level = self._refilled(now) - cost
        self._at = max(self._at, now)
        self._waiting -= cost

    def came_back(self, cost: float, now: float) -> None:
        """It was thought to have left, and had not."""
        self._level = self._refilled(now) + cost  # more than there is room for spills at the next look
        self._at = max(self._at, now)

    def level(self, now: float) -> float:
        """Units there are at `now`, if all that was granted leaves at once. Below 0 if it was not granted by this."""
        return self._refilled(now) - self._waiting

    def _refilled(self, now: float) -> float:
        return min(self.capacity, self._level + self.rate * max(0.0, now - self._at))


@dataclass(frozen=True, slots=True)
class Trip:
    """One request on its way: what `Snapshots.left` returns, and `heard` and `refused` take.

    Attributes:
        at: When it left.
        cost: Its units, as estimated.
        sent: Units that had left by then, its own included.
    """

    at: float
    cost: float
    sent: float


@dataclass(slots=True)
class Snapshots:
    """One of the server's buckets, as its answers show it.

    Args:
        limit: Units it holds at most, as told.
        rate: Units per second, as told.
        burst: Units that we may spend at once, if that is less.

    Attributes:
        factor: What the server charges, over what we estimate; 1 until something was learned.
        lessons: How often something was learned.
    """

    limit: float
    rate: float
    burst: float = math.inf
    factor: float = field(init=False, default=1.0)
    lessons: int = field(init=False, default=0)
    _sent: float = field(init=False, default=0.0)
    _waiting: float = field(init=False, default=0.0)
    _log: list[Trip] = field(init=False, default_factory=list)  # all that left since shortly before the anchor
    _refused: dict[float, float] = field(init=False, default_factory=dict)  # cost, by the trip's `sent`
    _newest: tuple[Trip, float] | None = field(init=False, default=None)  # and what remained then
    _anchor: tuple[Trip, float] | None = field(init=False, default=None)  # the one that the next lesson begins with
    _charged: float = field(init=False, default=0.0)
    _estimated: float = field(init=False, default=0.0)

    def granted(self, cost: float) -> None:
        """A request was allowed to leave."""
        self._waiting += cost

    def withdrawn(self, cost: float) -> None:
        """It will never leave."""
        self._waiting -= cost

    def left(self, cost: float, now: float) -> Trip:
        """It left."""
        self._waiting -= cost
        self._sent += cost
        trip = Trip(now, cost, self._sent)
        self._log.append(trip)
        if len(self._log) > _LONGEST:  # nothing was heard for so long that it will not be learned from either
            self._begin_anew(None)
        return trip

    def refused(self, trip: Trip) -> None:
        """It was not admitted, so the server did not charge it. Without this, 429s would look like a cheap server."""
        self._refused[trip.sent] = trip.cost

    def heard(self, trip: Trip, remaining: float) -> bool:
        """Its answer tells what remained when it was admitted. False: that is not worth believing.

        Only what left later than anything heard of before counts, since answers come back in any order; and only what left
        with little else around it, since requests overtake each other on the way to the server too.
        """
        if self._newest is not None and trip.sent <= self._newest[0].sent:
            return False
        around = self._sent_by(trip.at + OVERTAKING) - self._sent_by(trip.at - OVERTAKING) - trip.cost
        if around > CROWD * min(self.limit, self.burst):
            return False
        self._newest = (trip, remaining)
        if self._anchor is None:
            self._begin_anew(self._newest)
        else:
            self._learn(*self._anchor, trip, remaining)
        return True

    def level(self, now: float) -> float:
        """Units that the server can be counted on to have at `now`; below 0 if more was sent than it had.

        min(limit, remaining + rate x age) - 1.02 x factor x (sent since, or granted) - rate x headroom
        """
        if self._newest is None:
            return self.limit
        trip, remaining = self._newest
        then = min(self.limit, remaining + self.rate * max(0.0, now - trip.at))
        since = self._sent - trip.sent - self._refused_between(trip.sent, self._sent)
        return then - (1 + DOUBT) * self.factor * (since + self._waiting) - HEADROOM * self.rate

    def _learn(self, before: Trip, remained: float, trip: Trip, remaining: float) -> None:
        estimated = trip.sent - before.sent - self._refused_between(before.sent, trip.sent)
        if estimated < _LESSON * self.limit:
            return
        # What it took is what it had and got, less what is left, less what did not fit in. The last is known only
        # by playing it all again, with what is thought of the factor so far.
        level, at, spilled = remained, before.at, 0.0
        for each in self._log:
            if before.sent < each.sent <= trip.sent:
                level += self.rate * (each.at - at)
                spilled += max(0.0, level - self.limit)
                level = min(self.limit, level)
                if each.sent not in self._refused:
                    level -= self.factor * each.cost
                at = each.at
        charged = remained + self.rate * (trip.at - before.at) - spilled - remaining
        self._charged = DECAY * self._charged + max(0.0, charged)
        self._estimated = DECAY * self._estimated + estimated
        self.factor = min(_MOST, max(_LEAST, self._charged / self._estimated))
        self.lessons += 1
        self._begin_anew(self._newest)

    def _begin_anew(self, anchor: tuple[Trip, float] | None) -> None:
        """Forget what is older than the anchor of the next lesson."""
        self._anchor = anchor
        if anchor is None:
            self._log.clear()
            self._refused.clear()
            return
        trip = anchor[0]
        del self._log[: bisect_left(self._log, trip.at - OVERTAKING, key=_departure)]
        self._refused = {sent: cost for sent, cost in self._refused.items() if sent > trip.sent}

    def _sent_by(self, moment: float) -> float:
        index = bisect_right(self._log, moment, key=_departure)
        if index:
            return self._log[index - 1].sent
        return self._log[0].sent - self._log[0].cost if self._log else self._sent

    def _refused_between(self, first: float, last: float) -> float:
        return sum(cost for sent, cost in self._refused.items() if first < sent <= last) if self._refused else 0.0


def _departure(trip: Trip) -> float:
    return trip.at
