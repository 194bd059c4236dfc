"""How a limit refills if its answers say too little about it: what was seen, and when to look again.

Pure arithmetic; see `discovery` for the states. Five questions are decided here:

    BareResets       does a bare number mean seconds, or milliseconds?
    BucketFormula    are the resets those of a bucket, and of which period?
    LeastLeft        does anything come back gradually?
    AssumedPeriod    may it be of the period that is assumed where none is stated?
    Returns          does all come back at once, and when next? how soon is another look worth a request?
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from penstock.llm.learning.traffic import Departure, Traffic

__all__ = ["USUAL", "AssumedPeriod", "BareResets", "BucketFormula", "LeastLeft", "Returns"]

USUAL = (1.0, 2.0, 5.0, 10.0, 15.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0, 900.0, 1_800.0, 3_600.0, 86_400.0)
"""The lengths that limits have as a rule, in seconds."""

APART = 0.2
"""Share of the limit by which what is used must have differed for a bucket of an unusual period to be believed."""

FIRST_LOOK = 0.25
"""Seconds to the next look, when nothing came back yet."""

SOON = 1.0
"""The same at most, after requests that needed no look: what they took may come back as it went."""

SHORTEST_LOOK = 0.05
"""The same at least, when it is due."""

FINE = 0.02
"""Share of a window between two looks when its end is due."""

SELDOM = 0.2
"""The same before it is."""

ROUGHLY = 0.1
"""The same before the latest moment at which a window may begin, when the first look is due."""

FIRST_NEEDED = 4
"""Looks that are kept until it is due, before it is known how many it takes then."""

LAST_LOOK = 30.0
"""The same after many looks that found nothing."""

NEAR = 1.5
"""Seconds by which two moments may differ and still be the same one, stated in whole seconds."""

FASTER = 1.3
"""How much faster than they came back the last units are sent, so that they do not stay unused."""

TOO_LONG = 1.05
"""Periods that no limit of that period has anybody wait."""

SLOWER, SEVERAL = 0.5, 3.0
"""Share of its refill below which a bucket admitted too little from one refusal to the next, and how many requests'
worth that refill must be."""


@dataclass(slots=True)
class BucketFormula:
    """Narrows the period with every answer, as reset = used / limit × period; or finds that no period will do."""

    least: float = 0.0
    most: float = math.inf
    refuted: bool = False
    _used: tuple[float, float] = (1.0, 0.0)  # the least and the most, as shares of the limit

    def hear(self, limit: float, remaining: float, reset: float, step: float) -> None:
        """Take one answer in, whose reset was rounded by less than `step` seconds, in whichever direction."""
        used = limit - remaining
        if used < 1 or self.refuted:
            return
        self._used = min(self._used[0], used / limit), max(self._used[1], used / limit)
        self.least = max(self.least, (reset - step) * limit / used)
        if used >= 2:
            self.most = min(self.most, (reset + step) * limit / (used - 1))
        self.refuted = self.least > self.most * (1 + 1e-6)

    @property
    def period(self) -> float | None:
        """The period in seconds, once it is known to a few per cent; None: not yet, or no bucket holds the whole limit.

        Below the shortest usual length it is none: that is a bucket which holds less than its limit at once. Any other
        length is believed once it holds for more and for less: one answer alone always tells some length.
        """
        if self.refuted or self.most > 1.35 * self.least or self.most < USUAL[0]:
            return None
        usual = (each for each in USUAL if self.least * (1 - 1e-3) <= each <= self.most * (1 + 1e-3))
        least, most = self._used
        return next(usual, math.sqrt(self.least * self.most) if most - least > APART else None)


@dataclass(slots=True)
class BareResets:
    """Finds out whether bare numbers are the seconds to a window's end, or the milliseconds until a bucket is full.

    In seconds they would all tell the same moment, or one whole windows later. In milliseconds all would tell the same
    size of a bucket, `remaining + reset × rate`. Either may be refuted, also by a number that is longer than the
    window, or a bucket that is larger than its limit.
    """

    _seconds: bool = True
    _milliseconds: bool = True
    _ends: float | None = None  # the first moment that was stated, if they are seconds
    _least: float = math.inf  # the sizes of the bucket, if they are milliseconds
    _most: float = 0.0

    def hear(self, number: float, at: float, limit: float, per: float, remaining: float) -> float | None:
        """The reset in seconds, of one answer that was stated at a moment; None: not known yet."""
        if self._ends is None:
            self._ends = at + number
        off = abs(at + number - self._ends)
        if number > per + 1 or min(off, abs(off - per * round(off / per))) > NEAR:
            self._seconds = False
        size = remaining + number / 1_000 * limit / per
        self._least, self._most = min(self._least, size), max(self._most, size)
        # `remaining` is rounded down to a whole unit, and the reset to a millisecond.
        if self._most > min(limit, self._least) + 1 + limit / per / 1_000:
            self._milliseconds = False
        if self._seconds == self._milliseconds:
            return None
        return number if self._seconds else number / 1_000


@dataclass(slots=True)
class LeastLeft:
    """The least that was left, as answers stated, and when that was heard."""

    heard_at: float = math.inf
    remaining: float = math.inf

    def shows_refill(
        self, departure: Departure, remaining: float, limit: float, surely: Traffic | None, now: float
    ) -> bool:
        """Whether more is left than what surely was charged since explains; `surely`: what was, if anything."""
        if departure.at >= self.heard_at:
            charged = surely.surely_charged(self.heard_at, departure) if surely is not None else 0.0
            if remaining + charged - self.remaining > max(2.0, 0.01 * limit):
                return True
        if remaining <= self.remaining:
            self.heard_at, self.remaining = now, remaining
        return False


@dataclass(slots=True)
class AssumedPeriod:
    """Finds out by refusals that a limit is not of the period that is assumed.

    Either one asks for a wait longer than that. Or a bucket, which is empty at each of them, admitted less from one to
    the next than it would have refilled: others use it up, or it refills slower.
    """

    _refused_at: float = -math.inf  # when the last one left that was refused

    def is_refuted(self, departure: Departure, wait: float, per: float, rate: float, traffic: Traffic) -> bool:
        """Whether this refusal shows it; `rate`: units per second that come back by and by, if any do."""
        since, self._refused_at = self._refused_at, departure.at
        refill = rate * (departure.at - since)
        if SEVERAL * departure.cost <= refill < math.inf and traffic.admitted(since, departure.at) < SLOWER * refill:
            return True
        return wait > TOO_LONG * per


@dataclass(slots=True)
class Returns:
    """What was seen of one limit's returns.

    Args:
        began: When the first answer that tells of it left; or, after a pause without requests, the first one since.

    Attributes:
        due: From when on it may come back at once, as stated or as seen so far; `inf`: unknown.
        length: Seconds from one such moment to the next, as seen; None: not seen yet.
        rate: Units per second that came back while it did; 0: not seen yet.
    """

    began: float
    due: float = math.inf
    length: float | None = None
    rate: float = 0.0
    _gap: float = FIRST_LOOK
    _needed: int = FIRST_NEEDED  # looks that found nothing of late, at most, from when it was due until it came
    _due_looks: int = 0  # since it is due
    _latest: float = math.inf  # when it is back at last, if it is as long again as it was
    _looked_at: float = -math.inf
    _jumps: list[tuple[float, float]] = field(default_factory=list)
    _anchor: tuple[float, float] | None = None  # from when on returns are counted, and how much came since

    def stated(self, moment: float) -> None:
        """An answer states when it is back. What was seen is believed more: what is stated is rounded and ambiguous."""
        if self.length is None and moment > self._looked_at:
            self.due = min(moment, self.due) if abs(moment - self.due) < NEAR else moment

    def resumed(self, before: float, now: float) -> None:
        """Two requests followed each other. More than a look apart, what came back meanwhile tells no length."""
        if now - before > 1.2 * LAST_LOOK:
            self.began = now

    def looked(self, now: float) -> None:
        """A request left although little is left."""
        self._due_looks += now >= self.due
        if self._looked_at < self.due <= now:  # it may come a moment later: look again soon
            self._gap = FIRST_LOOK if self.length is None else max(SHORTEST_LOOK, FINE * self.length)
        elif now < self._looked_at + self._gap / 2:
            pass  # what leaves together is one look
        elif self.length is None or now < self.due:
            self._gap = min(LAST_LOOK, 2 * self._gap)
        else:
            self._gap = min(LAST_LOOK, 1.3 * self._gap)
        self._looked_at = now

    def went_by_itself(self) -> None:
        """A request left as enough is left: what it takes came back after the last look, which was late enough."""
        self._gap = min(SOON, self._gap)

    def look_at(self, now: float, cost: float, *, empty: bool, left: float = 0.0) -> float:
        """When the next request may go, of `cost` in the server's units, while little is left, or nothing.

        Args:
            left: What it leaves.
        """
        gap = self._gap
        if self.length is not None:
            if self._looked_at < self.due:
                gap = max(gap, SELDOM * self.length)
                if cost > 0 and left >= (self._needed + 1) * cost:  # what is not needed for looks then is lost then
                    gap = min(gap, (self.due - self._looked_at) / (left / cost - self._needed + 1))
        elif self.rate:
            gap = max(gap - FIRST_LOOK, cost / (FASTER * self.rate))
        look = self._looked_at + gap
        if self._looked_at < self._latest <= self._looked_at + 1.5 * gap and self._looked_at >= self.due:
            look = self._latest  # sooner it finds nothing, and later some is lost
        if self._looked_at < self.due < math.inf:
            look = self.due if empty else min(look, self.due)
        return max(now, look)

    def came(self, amount: float, before: float, now: float, *, much: bool = False) -> None:
        """That much came back from one answer to the next, or, if it is below 0, another client took it.

        Much at once, in a window that slides, is what was sent at once a window ago: the next comes a window later.
        """
        if much and self.length is not None and now >= self.due:
            self.due = max(before, now - ROUGHLY * self.length) + self.length
            self._gap = FIRST_LOOK
        if amount > 0 and now < self.due:
            self._gap = max(FIRST_LOOK, self._gap / 2)
        since, sum_ = self._anchor if self._anchor is not None else (before, 0.0)
        sum_ += amount
        seconds = now - since
        if seconds < 1.0:
            self._anchor = since, sum_
            return
        if sum_ > 0:
            rate = sum_ / seconds
            self.rate = rate if not self.rate else (self.rate + rate) / 2
        self._anchor = None

    def jumped(self, first: float, last: float) -> None:
        """All came back between two moments."""
        if first < self.due <= last:  # as was stated or expected, so hardly before that
            first = max(first, self.due - NEAR)
        if self.length is not None:
            self._needed = max(self._needed - 1, self._due_looks - 1)
        self._due_looks = 0
        length = self._length(first, last)
        self._jumps = [*self._jumps[-3:], (first, last)]
        self._gap, self._anchor = FIRST_LOOK, None
        self.length = length
        self.due = math.inf if length is None else max(first, last - ROUGHLY * length) + length
        self._latest = math.inf if length is None else last + length + SHORTEST_LOOK

    def _length(self, first: float, last: float) -> float | None:
        """The length of the window, as far as the returns before this one tell: the shortest usual one that fits."""
        if not self._jumps:
            return None
        least, most = first - self._jumps[-1][1], last - self._jumps[-1][0]
        fitting = [each for each in USUAL if least - 0.1 <= each <= most + 0.1]
        if fitting:
            return fitting[0]
        return (least + most) / 2 if most < 1.3 * least else None
