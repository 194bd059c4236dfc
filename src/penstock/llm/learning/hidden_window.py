"""A window that no answer shows: which amount in how many seconds explains all admissions and refusals.

Pure arithmetic. A limit is thought to be a bucket until it cannot be one, or until a window foretells its refusals.
There are three kinds of window, each of any usual length. Windows of the last two begin at whole multiples of it since
1970; or one begins when the wait is over that a refusal tells.

    one that slides      counts what was admitted in the last seconds, as many as it is long
    one by the clock     counts what was admitted since it began
    a counter            does that, and adds of the window before the part that a sliding one would still see

Each length of each kind is a hypothesis with a most and a least, and is ruled out when they cross:

    the most     a refusal says that the amount is no more than what had been admitted in the window by then
    the least    an admission says that it is no less than what has been admitted in it with that request

A hypothesis is believed once it is no longer open whether the limit is a bucket: several requests were admitted in the
time that one of that size had to wait, where a bucket refills less than that one. Or once it foretold a refusal, which
came at the same amount as the last, though some were admitted in between: as long as nothing contradicts it of all that
was seen since the first refusal ever. Of several, the one that foretold more is believed; then the one that explains
more of the waits that refusals stated; then the one that admits more: a refusal would correct that, and nothing would
correct one that admits too little. What is believed may still be ruled out; then the next hypothesis is believed, and
if there is none, all is open again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import IntEnum

from penstock.llm.learning.returns import USUAL
from penstock.llm.learning.traffic import HEADROOM, OVERTAKING, ROUNDING, WINDOWS_HEADROOM, Departure, Traffic

__all__ = ["HiddenWindow", "Window", "WindowKind"]

SEVERAL = 4.0
"""What is admitted in the time that a refused request had to wait, over that request, to rule a bucket out."""

ROUNDED_UP = 1.0
"""Seconds by which a wait that was stated may be too long."""

SLACK = 1.02
"""How much may be admitted in a window, over its amount, before the window is ruled out."""

LESS = 0.98
"""What is left of an amount when less than it was refused."""

SAME = 0.03
"""Share by which the amounts at two refusals may differ and still be the same one."""

RENEWED, SOME = 0.02, 2.0
"""Share of the amount, and requests, that must have been admitted since the last refusal for another one to be
foretold."""

NEARLY = 0.94
"""Share of an amount that was admitted where it is said to be used up: the rest may have been counted before."""

HASTE = 2.0
"""How much faster than a window comes back it may be used, once it has foretold a refusal: what was missed is made up
for, and a window by the clock is used up before it ends."""

TIMED_HASTE = 1.25
"""The same while only the wait that a refusal stated confirms it."""

MOST_HASTE = 16.0
"""The same at most, as each window by the clock that was used up lets the next one be used in half the time."""

ROUGHLY = 10.0
"""How many times what a wait is rounded by a window must be long for that wait to tell when it ends."""


class WindowKind(IntEnum):
    """What a window counts; in the order in which they are believed."""

    SLIDING = 0
    CLOCK = 1
    COUNTER = 2


@dataclass(slots=True)
class Window:
    """One hypothesis.

    Args:
        began: A moment at which a window began, for those that go by the clock.
        doubt: Seconds by which it may have been sooner.

    Attributes:
        most: The amount, at most: what had been admitted when a request was refused.
        least: The same at least.
        foretold: Refusals that came when this amount was used up again.
        timed: Refusals that stated the wait which this window would have stated.
        used_up: Windows by the clock, of late, of which all was admitted and nothing refused.
    """

    kind: WindowKind
    length: float
    began: float = 0.0
    doubt: float = 0.0
    most: float = math.inf
    least: float = 0.0
    foretold: int = 0
    timed: int = 0
    used_up: int = 0
    _used_up_at: float = -math.inf  # in the last of them

    @property
    def borne_out(self) -> tuple[int, int]:
        """How much of what happened it explains, for comparison."""
        return self.foretold, self.timed

    @property
    def margin(self) -> float:
        """Seconds by which a request may be counted later than it left."""
        return min(HEADROOM, WINDOWS_HEADROOM * self.length)

    def __str__(self) -> str:
        name = self.kind.name.lower().replace("clock", "clock's")
        return f"window of {self.most:g}/{self.length:g}s ({name})"

    @property
    def rate(self) -> float:
        """Units per second that it admits."""
        return self.most / self.length

    @property
    def is_ruled_out(self) -> bool:
        """Whether more was admitted than it admits."""
        return self.least > SLACK * self.most

    def note_use(self, at: float, traffic: Traffic) -> None:
        """Something was admitted: see whether that was the last of a window by the clock."""
        begin = self.begin(at)
        if self.kind is not WindowKind.CLOCK or self._used_up_at >= begin:
            return
        if traffic.admitted(begin + self.margin, at) >= NEARLY * self.most:
            self.used_up, self._used_up_at = self.used_up + 1, at

    def begin(self, at: float) -> float:
        """When the window began that goes on at a moment, by the clock."""
        return at - (at - self.began) % self.length

    def at_most(self, at: float, traffic: Traffic) -> float:
        """What it had counted by then, at most."""
        if self.kind is WindowKind.SLIDING:
            return traffic.admitted(at - self.length, at + OVERTAKING)
        if self.kind is WindowKind.CLOCK:
            return traffic.admitted(self.begin(at - self.margin) - self.margin - self.doubt, at + OVERTAKING)
        return self._weighed(at, at + OVERTAKING, traffic)

    def at_least(self, at: float, traffic: Traffic) -> float:
        """What it had counted by then, at least."""
        if self.kind is WindowKind.SLIDING:
            return traffic.admitted(at - self.length, at - OVERTAKING)
        if self.kind is WindowKind.CLOCK:
            begin = self.begin(at + self.margin + self.doubt)
            return max(0.0, traffic.admitted(begin + self.margin, at - OVERTAKING))
        return self._weighed(at, at - OVERTAKING, traffic)

    def _weighed(self, at: float, last: float, traffic: Traffic) -> float:
        begin = self.begin(at)
        before = traffic.admitted(begin - self.length, begin)
        return before * (1 - (at - begin) / self.length) + max(0.0, traffic.admitted(begin, last))

    def states(self, wait: float, departure: Departure, traffic: Traffic) -> bool:
        """Whether its server would have stated that wait, rounded up, when it refused that request."""
        if self.doubt and self.began == departure.at + wait:
            return False  # it was made of that very wait
        waits = self.ready_at(departure.cost, departure.at, traffic, max(self.most, departure.cost)) - departure.at
        return wait - ROUNDED_UP - self.margin <= waits - self.margin <= wait + self.margin

    def gave_back(self, at: float, traffic: Traffic) -> bool:
        """Whether it has forgotten anything by then."""
        oldest = at - self.length if self.kind is WindowKind.SLIDING else self.begin(at)
        return traffic.admitted(-math.inf, oldest) > 0

    def ready_at(self, cost: float, now: float, traffic: Traffic, amount: float) -> float:
        """When `cost` may leave; that includes what goes before it."""
        if self.kind is WindowKind.SLIDING:
            length = self.length + self.margin
            excess = traffic.admitted(now - length, now) + cost - amount
            if excess <= ROUNDING * amount:
                return now
            for each in traffic.between(now - length, now):
                excess -= each.cost
                if excess <= ROUNDING * amount:
                    return max(now, each.at + length)
            return now + length
        begin = self.begin(now)
        if self.kind is WindowKind.CLOCK:
            counted = traffic.admitted(begin - self.margin - self.doubt, now)
            return now if counted + cost <= amount * (1 + ROUNDING) else begin + self.length + self.margin
        before, counted = traffic.admitted(begin - self.length, begin), traffic.admitted(begin, now)
        for _ in range(2):
            room = amount - counted - cost  # for what is left of the window before
            if before <= room + ROUNDING * amount:
                return max(now, begin)
            if room >= 0:
                return max(now, begin + self.length * (1 - room / before))
            begin, before, counted = begin + self.length, counted, 0.0
        return begin


@dataclass(slots=True)
class HiddenWindow:
    """What is known of one.

    Attributes:
        found: The window that is believed in; None: there may be none.
    """

    found: Window | None = None
    _open: list[Window] = field(default_factory=list)  # that are not ruled out
    _is_first: bool = True  # of what was thought of at the first refusal ever, or since one was believed in, all stands
    _is_no_bucket: bool = False
    _heard_at: float = -math.inf  # when the last refusal was heard of
    _refused_at: float = -math.inf  # when the one left that some were admitted before
    _first: Departure | None = None  # of those that were refused in a row
    _is_refusing: bool = False  # nothing that left since was admitted
    _waited: float = 0.0  # seconds that the first of them had to wait
    _admitted_at: float = -math.inf  # when the first one after them left that was admitted
    _admitted: float = 0.0  # units that were admitted since, in as much time

    @property
    def haste(self) -> float:
        """How much faster than it comes back the window may be used that is believed in, as far as it is confirmed."""
        found = self.found
        if found is None or not (found.foretold or found.timed):
            return 1.0
        return max(HASTE if found.foretold else TIMED_HASTE, min(MOST_HASTE, 2.0**found.used_up))

    def refused(
        self, departure: Departure, traffic: Traffic, now: float, wait: float | None, began: float = 0.0
    ) -> None:
        """A request was refused, for as long as the server says, if it says so.

        Args:
            began: A moment at which the clock showed a whole multiple of any length.
        """
        is_same_bunch = departure.at <= self._heard_at
        is_new = not is_same_bunch and not self._is_refusing
        if not self._open:
            self._think_anew(departure, traffic, began, wait)
        until = departure.at if wait is None else max(departure.at, departure.at + wait - ROUNDED_UP)
        self._rule_out(departure, until, traffic, is_new=is_new)
        if not self._open:
            self._is_first = self.found is not None
            self._think_anew(departure, traffic, began, wait)
            self._rule_out(departure, until, traffic, is_new=False)
        if not is_same_bunch:
            if wait is not None and wait > ROUNDED_UP:
                for each in self._open:
                    each.timed += each.states(wait, departure, traffic)
            self._heard_at = now
            if not self._is_refusing or self._first is None:
                self._first, self._is_refusing, self._waited, self._refused_at = departure, True, 0.0, departure.at
            self._waited = max(self._waited, until - self._first.at)
        self.found = self._best(departure, traffic)

    def _rule_out(self, departure: Departure, until: float, traffic: Traffic, *, is_new: bool) -> None:
        """Rule out what would have admitted that request, or another one before a moment that the server stated."""
        for each in self._open:
            self._lower(each, departure, traffic, is_new=is_new)
            if until > departure.at:
                each.most = min(each.most, max(departure.cost, each.at_most(until, traffic)))
        self._open = [each for each in self._open if not each.is_ruled_out]

    def _think_anew(self, departure: Departure, traffic: Traffic, began: float, wait: float | None) -> None:
        """All is open: at first with what was admitted before the first refusal, later with that refusal alone."""
        self.found, self._is_no_bucket = None, False
        self._open = [Window(kind, length, began) for kind in WindowKind for length in USUAL]
        if wait is not None and wait > ROUNDED_UP:
            ends, least = departure.at + wait, max(wait, ROUGHLY * ROUNDED_UP)
            self._open += [Window(WindowKind.CLOCK, each, ends, ROUNDED_UP) for each in USUAL if each >= least]
        if self._first is not None:
            return
        last = next((each for each in traffic.before(departure) if not each.refused), None)
        if last is None:
            return
        for each in self._open:
            moments = [last.at] if each.kind is WindowKind.SLIDING else [last.at, each.begin(last.at) - OVERTAKING]
            each.least = max(each.at_least(at, traffic) for at in moments)

    def _lower(self, window: Window, departure: Departure, traffic: Traffic, *, is_new: bool) -> None:
        used = max(departure.cost, window.at_most(departure.at, traffic))
        if is_new and abs(used - window.most) <= SAME * used:
            since = traffic.admitted(self._refused_at, departure.at)
            window.foretold += since >= max(SOME * departure.cost, RENEWED * used)
        if window is self.found and is_new:
            window.used_up = 0
            if used <= window.most:
                used = min(used, LESS * window.most)
        window.most = min(window.most, used)

    def passed(self, departure: Departure, traffic: Traffic) -> None:
        """A request was admitted."""
        if departure.at <= self._heard_at or self._first is None:
            return
        if self._is_refusing:
            self._is_refusing, self._admitted_at, self._admitted = False, departure.at, 0.0
        for each in self._open:
            each.least = max(each.least, each.at_least(departure.at, traffic) + departure.cost)
        self._open = [each for each in self._open if not each.is_ruled_out]
        if self.found is not None:
            self.found.note_use(departure.at, traffic)
            self.found = self._best(departure, traffic)
            if self.found is None:
                self._first, self._open = None, []
            return
        if departure.at - self._admitted_at > self._waited:
            return
        self._admitted += departure.cost
        if self._admitted >= SEVERAL * self._first.cost:
            self._is_no_bucket = True
            self.found = self._best(departure, traffic)

    def _best(self, departure: Departure, traffic: Traffic) -> Window | None:
        """The hypothesis to believe, if any may be believed; the one that is, unless another one has foretold more."""
        found = None if self.found is None or self.found.is_ruled_out else self.found
        if found is not None and all(each.borne_out <= found.borne_out for each in self._open):
            return found
        may = [each for each in self._open if each.gave_back(departure.at, traffic)]
        if not self._is_no_bucket:
            may = [each for each in may if self._is_first and each.foretold]
        return max(may, key=lambda each: (each.borne_out, each.rate, -each.kind), default=None)

    def ready_at(self, cost: float, now: float, traffic: Traffic, ahead: float = 0.0, rate: float = 0.0) -> float:
        """When `cost` may leave after `ahead`: the window then holds no more than its amount.

        Args:
            rate: Units per second that are tried: the window is thought to hold as many in its length.
        """
        if self.found is None:
            return now
        amount = max(self.found.most, rate * self.found.length, cost)
        return self.found.ready_at(traffic.waiting + ahead + cost, now, traffic, amount)
