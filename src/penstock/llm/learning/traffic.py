"""What was sent of one unit, and when: the client's side of what a server has.

Pure arithmetic: amounts and times in, amounts out.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

__all__ = [
    "HEADROOM",
    "OVERTAKING",
    "ROUNDING",
    "SHARED_HEADROOM",
    "WINDOWS_HEADROOM",
    "Departure",
    "DepartureBucket",
    "Traffic",
]

HEADROOM = 0.25
"""Seconds of refill that are kept back: for the part of the way, from our socket to admission, that cannot be timed."""

SHARED_HEADROOM = 1.0
"""The same where several processes share the limits: none knows what the others were granted and have not sent."""

WINDOWS_HEADROOM = 0.05
"""The same of windows, as a share of their length, where that is less: it is lost in each window anew."""

OVERTAKING = 0.05
"""Seconds between two departures within which the second may well arrive first."""

ROUNDING = 1e-8
"""Share of a capacity, or seconds of a rate, by which a level may be short of a cost: floats do not add up better."""

LONGEST_ANSWER = 300.0
"""Seconds after which an answer that was never over is thought to have been charged."""

_LONGEST_LOG = 20_000  # departures that are remembered

_NOTHING: Mapping[str, float] = MappingProxyType({})


@dataclass(slots=True, eq=False)
class Departure:
    """One request that left.

    Attributes:
        number: In the order in which requests left, from 0.
        at: When it left.
        cost: Its units, as estimated.
        sent: Units that had left by then, its own included.
        refused: Whether the server did not admit it.
        charged_at: Where what comes out is counted: when its answer was there, and was charged. None: it is on its way.
        remaining: What its answer said was left, by the name of the limit.
    """

    number: int
    at: float
    cost: float
    sent: float
    refused: bool = False
    charged_at: float | None = None
    remaining: Mapping[str, float] = field(default_factory=lambda: _NOTHING)  # one for all: there are many


@dataclass(slots=True)
class Traffic:
    """What was sent of one unit: how much was granted and is still here, and what left, in order.

    Attributes:
        waiting: Units granted that have not left.
        sent: Units that left.
        charged_late: Whether the server charges a request when its answer is there, as it does for what comes out.
        under_way: Units that left, and of which no answer was heard yet.
    """

    waiting: float = 0.0
    sent: float = 0.0
    charged_late: bool = False
    under_way: float = 0.0
    _open: OrderedDict[int, Departure] = field(default_factory=OrderedDict)  # those that are under way
    _log: list[Departure] = field(default_factory=list)
    _first: int = 0  # the number of the first one in it
    _refused: list[Departure] = field(default_factory=list)  # those of them that were refused
    _uncharged: list[Departure] = field(default_factory=list)  # not yet, as far as answers tell

    @property
    def last(self) -> Departure | None:
        """The newest departure."""
        return self._log[-1] if self._log else None

    def left(self, cost: float, now: float) -> Departure:
        """A request left that was granted before."""
        self.waiting -= cost
        self.sent += cost
        departure = Departure(self._first + len(self._log), now, cost, self.sent)
        self._log.append(departure)
        self._open[departure.number] = departure
        self.under_way += cost
        if self.charged_late:
            self._uncharged.append(departure)
        if len(self._log) > _LONGEST_LOG:
            del self._log[: _LONGEST_LOG // 2]
            self._first += _LONGEST_LOG // 2
            self._refused = [each for each in self._refused if each.number >= self._first]
            self._uncharged = [
                each for each in self._uncharged if each.number >= self._first or each.number in self._open
            ]
        return departure

    def arrived(self, departure: Departure) -> None:
        """Its answer was heard, or there will be none."""
        if self._open.pop(departure.number, None) is not None:
            self.under_way -= departure.cost

    @property
    def is_idle(self) -> bool:
        """Whether nothing is under way."""
        return not self._open

    def give_up(self, moment: float) -> None:
        """Take what left before that moment for lost: it is under way no longer."""
        while self._open and (first := next(iter(self._open.values()))).at < moment:
            self.arrived(first)

    def refused(self, departure: Departure) -> None:
        """It was not admitted."""
        departure.refused = True
        self._refused.append(departure)

    def uncharged(self, departure: Departure) -> float:
        """Units that had left before it, and were charged since. No older departure may be asked for afterwards."""
        began = departure.at - LONGEST_ANSWER
        self._uncharged = [
            each
            for each in self._uncharged
            if each.at > began and (each.charged_at is None or each.charged_at > departure.at)
        ]
        return sum(each.cost for each in self._uncharged if each.number < departure.number)

    def admitted(self, first: float, last: float) -> float:
        """Units that left in (first, last] and were not refused, as far as is known."""
        refused = sum(each.cost for each in self._refused if first < each.at <= last)
        return self.sent_by(last) - self.sent_by(first) - refused

    def after(self, departure: Departure) -> Iterator[Departure]:
        """What left after it, in order."""
        log = self._log
        for index in range(max(0, departure.number + 1 - self._first), len(log)):
            yield log[index]

    def through(self, before: Departure, departure: Departure, *, refused: bool) -> Iterator[tuple[float, float]]:
        """When what left after the first of the two and until the second did so, and its units, if they are charged.

        Args:
            refused: Whether those of a request that was refused are.
        """
        for each in self.after(before):
            if each.number > departure.number:
                return
            yield each.at, each.cost if refused or not each.refused else 0.0

    def before(self, departure: Departure) -> Iterator[Departure]:
        """What left before it, the last first."""
        for index in range(min(departure.number - self._first, len(self._log)) - 1, -1, -1):
            yield self._log[index]

    def between(self, first: float, last: float) -> Iterator[Departure]:
        """What left in (first, last] and was not refused."""
        begin, end = bisect_right(self._log, first, key=_at), bisect_right(self._log, last, key=_at)
        return (each for each in self._log[begin:end] if not each.refused)

    def around(self, departure: Departure) -> tuple[float, float]:
        """What left so shortly before and after a request that it may have arrived on its other side."""
        earlier = departure.sent - departure.cost - self.sent_before(departure.at - OVERTAKING)
        return earlier, self.sent_by(departure.at + OVERTAKING) - departure.sent

    def surely_charged(self, first: float, departure: Departure) -> float:
        """Units of that request, and of all that left after that moment and were answered when this one left."""
        return departure.cost + sum(
            each.cost
            for each in self.between(first, departure.at)
            if each is not departure and each.charged_at is not None and each.charged_at <= departure.at
        )

    def sent_by(self, moment: float) -> float:
        """Units that had left by that moment, as far back as is remembered."""
        index = bisect_right(self._log, moment, key=_at)
        if index:
            return self._log[index - 1].sent
        return self._log[0].sent - self._log[0].cost if self._log else self.sent

    def sent_before(self, moment: float) -> float:
        """The same without what left at that very moment."""
        index = bisect_left(self._log, moment, key=_at)
        if index:
            return self._log[index - 1].sent
        return self._log[0].sent - self._log[0].cost if self._log else self.sent


@dataclass(slots=True)
class DepartureBucket:
    """A bucket that is charged when requests leave. For limits that we were given: it needs no answers.

    Args:
        capacity: Units that the server's holds at most, and at first. This one holds less, by what comes in during
            `headroom`, but never less than half.
        rate: Units per second.
        headroom: Seconds.

    Attributes:
        reserve: What is kept back, in units.
        room: Units that may leave at once, whatever comes in: what the server's held when it was last surely full, less
            what left since. Nothing has to be kept back of these.
    """

    capacity: float
    rate: float
    headroom: float = HEADROOM
    reserve: float = field(init=False)
    room: float = field(init=False)
    _level: float = field(init=False)
    _at: float = field(init=False, default=0.0)

    def __post_init__(self) -> None:
        self._hold_back()
        self._level = self.capacity
        self.room = self.capacity + self.reserve

    def change(self, capacity: float, rate: float, now: float) -> None:
        """Replace the numbers it was made of. What was used stays used."""
        used = self.capacity - self.level(now)
        self.capacity, self.rate = capacity, rate
        self._hold_back()
        self._level = self.capacity - used
        self._at = max(self._at, now)
        self.room = self._level

    def _hold_back(self) -> None:
        whole = self.capacity
        self.capacity = max(whole / 2, min(whole, 1.0), whole - self.headroom * self.rate)
        self.reserve = whole - self.capacity

    def charge(self, cost: float, now: float) -> None:
        """A request left. A negative cost: it was thought to have left, and had not."""
        all_are_there = now - self.headroom  # that had left by then
        if all_are_there >= self._at and self.level(all_are_there) >= self.capacity:
            self.room = self.capacity + self.reserve
        self.room -= cost
        self._level = self.level(now) - cost
        self._at = max(self._at, now)

    def level(self, now: float) -> float:
        """Units there are at `now`. Below 0 if more left than there was."""
        return min(self.capacity, self._level + self.rate * max(0.0, now - self._at))


def _at(departure: Departure) -> float:
    return departure.at
