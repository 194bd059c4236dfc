"""A window of which nothing is told: which amount in how many seconds explains all that was admitted and refused.

Pure arithmetic. A limit is thought to be a bucket until it cannot be one; then the longest window is found that
explains what was seen:

    a bucket     refills less than a request in the time that this request has to wait: it is ruled out when several
                 requests of that size are admitted in as much time afterwards
    a window     had admitted at least its amount, within its length, before each refusal: a length is ruled out when
                 one more is admitted, and is not believed before something is older than it, and so came back

A window that was found is believed until more than it has is admitted. Then all is open again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from penstock.llm.learning.returns import USUAL
from penstock.llm.learning.traffic import HEADROOM, OVERTAKING, ROUNDING, WINDOWS_HEADROOM, Departure, Traffic

__all__ = ["HiddenWindow"]

SEVERAL = 4.0
"""What is admitted in the time that a refused request had to wait, over that request, to rule a bucket out."""

ROUNDED_UP = 1.0
"""Seconds by which a wait that was told may be too long."""

SLACK = 1.02
"""How much may be admitted in the window that was found, over its amount, before it is believed no more."""

LESS = 0.98
"""What is left of an amount when less than it was refused."""


@dataclass(slots=True)
class HiddenWindow:
    """What is known of one.

    Attributes:
        found: Its amount, and its length in seconds; None: there may be none.
    """

    found: tuple[float, float] | None = None
    _amounts: dict[float, float] = field(default_factory=dict)  # at most, by the lengths that are not ruled out
    _heard_at: float = -math.inf  # when the last refusal was heard of
    _first: Departure | None = None  # of those that were refused in a row
    _is_refusing: bool = False  # nothing that left since was admitted
    _waited: float = 0.0  # seconds that the first of them had to wait
    _admitted_at: float = -math.inf  # when the first one after them left that was admitted
    _admitted: float = 0.0  # units that were admitted since, in as much time

    def refused(self, departure: Departure, traffic: Traffic, now: float, wait: float | None) -> None:
        """A request was refused, for as long as the server says, if it says so."""
        lengths = self._amounts or ({} if self.found else dict.fromkeys(USUAL, math.inf))
        self._amounts = {each: _least(amount, each, departure, traffic) for each, amount in lengths.items()}
        if departure.at <= self._heard_at:
            return  # it was on its way when the last one was refused
        self._heard_at = now
        if not self._is_refusing or self._first is None:
            self._first, self._is_refusing, self._waited = departure, True, 0.0
        until = departure.at if wait is None else max(departure.at, departure.at + wait - ROUNDED_UP)
        self._waited = max(self._waited, until - self._first.at)
        if self.found is not None:
            amount, length = self.found
            self.found = _least(LESS * amount, length, departure, traffic), length

    def passed(self, departure: Departure, traffic: Traffic) -> None:
        """A request was admitted."""
        if departure.at <= self._heard_at or self._first is None:
            return
        if self.found is not None:
            amount, length = self.found
            if _before(departure, length, traffic) > SLACK * amount:
                self.found, self._first = None, None
            return
        if self._is_refusing:
            self._is_refusing, self._admitted_at, self._admitted = False, departure.at, 0.0
        while self._amounts:
            length = max(self._amounts)
            if _before(departure, length, traffic) + departure.cost <= self._amounts[length] * (1 + ROUNDING):
                break
            del self._amounts[length]
        if departure.at - self._admitted_at > self._waited:
            return
        self._admitted += departure.cost
        if self._admitted >= SEVERAL * self._first.cost:
            gave_back = [each for each in self._amounts if traffic.admitted(-math.inf, departure.at - each) > 0]
            if gave_back:
                length = max(gave_back)
                self.found, self._amounts = (self._amounts[length], length), {}

    def ready_at(self, cost: float, now: float, traffic: Traffic, ahead: float = 0.0, rate: float = 0.0) -> float:
        """When `cost` may leave after `ahead`: the window then holds no more than its amount.

        Args:
            rate: Units per second that are tried: the window is thought to hold as many in its length.
        """
        if self.found is None:
            return now
        amount, length = self.found
        amount = max(amount, rate * length, cost)
        length += min(HEADROOM, WINDOWS_HEADROOM * length)
        excess = traffic.admitted(now - length, now) + traffic.waiting + ahead + cost - amount
        if excess <= ROUNDING * amount:
            return now
        for each in traffic.between(now - length, now):
            excess -= each.cost
            if excess <= ROUNDING * amount:
                return max(now, each.at + length)
        return now + length


def _least(amount: float, length: float, departure: Departure, traffic: Traffic) -> float:
    """The amount of a window, less if less had been admitted in it when that request was refused."""
    admitted = traffic.admitted(departure.at - length, departure.at + OVERTAKING)
    return max(departure.cost, min(amount, admitted))


def _before(departure: Departure, length: float, traffic: Traffic) -> float:
    """What was admitted in a window before that request, without what may have been overtaken by it."""
    return traffic.admitted(departure.at - length, departure.at - OVERTAKING)
