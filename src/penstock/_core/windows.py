"""Windows: at most so much in any span of a length, or per period of the calendar.

Unlike a bucket, a window does not refill bit by bit. A sliding window is a log of what was charged when; a calendar
window is one number, and the moment at which it starts again from 0.
"""

from __future__ import annotations

import math
from bisect import insort
from collections import deque
from collections.abc import Iterable
from itertools import chain
from typing import TYPE_CHECKING

from penstock._core.meter import Meter
from penstock.limits import Calendar, Period, Sliding

if TYPE_CHECKING:
    from zoneinfo import ZoneInfo

_CLOCK_GRAIN = 1e-8
"""Seconds by which a window may end early, so that `now + (end − now)` never falls short of `end` by rounding."""


_STEP = 1e-3
"""Seconds by which a wall clock is put back at least, when it is: less is rounding."""


def _add(total: float, rounding: float, amount: float) -> tuple[float, float]:
    """Add `amount` to a sum whose last additions rounded away `rounding` (Kahan 1965): a million 0.0001s are 100."""
    exact = amount - rounding
    sum_ = total + exact
    return sum_, (sum_ - total) - exact


class LogEntry:
    """What was charged at one moment. `into` is where it went when the log was compressed."""

    __slots__ = ("amount", "at", "into")

    def __init__(self, at: float, amount: float) -> None:
        self.at = at
        self.amount = amount
        self.into: LogEntry | None = None


class SlidingWindow(Meter):
    """The meter of `sliding(n, per)`: an exact log, one entry a moment, in the order of their moments.

    A call that was postponed stands there under a moment that is still to come.

    The log is bounded: once it holds twice as many entries as there are units (at least 2,000), those of one slice of
    time, a thousandth of the window or less, are merged into the latest of them. That keeps the limit, and frees what
    the earlier ones took a slice later at most.
    """

    __slots__ = ("_rounding", "_slices", "_total", "amount", "log", "per")

    predictable = True

    def __init__(self, limit: Sliding) -> None:
        self.log: deque[LogEntry] = deque()
        self._total = self._rounding = 0.0
        self._promise(limit)

    def _promise(self, limit: Sliding) -> None:
        # In one statement, here and below: a signal handler that raises finds all or nothing.
        self.amount, self.per, self._slices = limit.amount, limit.per, max(1_000, math.ceil(limit.amount))

    def change(self, limit: Sliding, now: float) -> bool:
        self._promise(limit)
        return True

    def _expire(self, now: float) -> None:
        log, horizon = self.log, now - self.per + _CLOCK_GRAIN
        if log and log[0].at <= horizon:
            while log and log[0].at <= horizon:
                entry = log.popleft()
                self._total, self._rounding = _add(self._total, self._rounding, -entry.amount)
                entry.amount = 0.0  # nothing of it can be given back any more
            if len(log) < 64:  # cheap enough to leave no rounding behind
                self._total, self._rounding = math.fsum(entry.amount for entry in log), 0.0

    def ready_at(self, cost: float, now: float) -> float:
        self._expire(now)
        over = self._total + cost - self.amount * (1 + 1e-12)
        return now if over <= 0 else self._when_left(self.log, over, now)

    def ready_after(self, other: float, cost: float, now: float) -> float:
        self._expire(now)
        over = self._total + other + cost - self.amount * (1 + 1e-12)
        if over <= 0:
            return now
        log, entry = self.log, LogEntry(now, other)
        postponed = log and log[-1].at > now
        return self._when_left(sorted((*log, entry), key=_moment) if postponed else chain(log, (entry,)), over, now)

    def _when_left(self, log: Iterable[LogEntry], over: float, now: float) -> float:
        """When so many units have left the window, of those in `log`."""
        empty = now
        for entry in log:
            over -= entry.amount
            empty = entry.at + self.per
            if over <= 0:
                return empty
        # More than fits at once (a whole queue is asked for): one window's worth after another.
        return empty + self.per * math.ceil(over / self.amount)

    def ready_behind(self, ahead: float, cost: float, now: float) -> float:
        # What leaves the window is charged again at that moment, by those ahead: so it all leaves once more a window
        # later.
        self._expire(now)
        over = self._total + ahead + cost - self.amount * (1 + 1e-12)
        if over <= 0:
            return now
        windows = math.ceil(over / self.amount) - 1
        over -= windows * self.amount
        leaves = now
        for entry in sorted((*self.log, LogEntry(now, self.amount - self._total)), key=_moment):
            leaves = entry.at
            over -= entry.amount
            if over <= 0:
                break
        return leaves + (windows + 1) * self.per

    def charge(self, cost: float, now: float) -> LogEntry:
        self._expire(now)
        if len(self.log) >= 2 * self._slices:
            self._compress()
        return self._count(cost, now)

    def _count(self, cost: float, at: float) -> LogEntry:
        entry = LogEntry(at, 0.0)
        self._insert(entry)
        total, rounding = _add(self._total, self._rounding, cost)
        self._total, self._rounding, entry.amount = total, rounding, cost
        return entry

    def _insert(self, entry: LogEntry) -> None:
        """Put an entry in its place: at the end, but for the postponed ones."""
        log = self.log
        if not log or log[-1].at <= entry.at:
            log.append(entry)
        else:
            insort(log, entry, key=_moment)

    def postpone(self, amount: float, receipt: LogEntry, at: float, now: float) -> LogEntry:
        counted = self._count(amount, at)  # first, so that a signal handler that raises makes nothing free
        self.give_back(amount, receipt, now)
        return counted

    def _compress(self) -> None:
        """Merge what was charged within one slice.

        Not simply neighbours: what is old would be merged again and again, and end up as one entry that never leaves.
        """
        earlier = slice_of_earlier = None
        for entry in self.log:
            slice_of = entry.at // (self.per / self._slices)
            if earlier is not None and slice_of == slice_of_earlier:
                entry.amount, earlier.amount, earlier.into = entry.amount + earlier.amount, 0.0, entry
            earlier, slice_of_earlier = entry, slice_of
        self.log = deque([entry for entry in self.log if entry.into is None])

    def give_back(self, amount: float, receipt: LogEntry, now: float) -> None:
        """Take `amount` out of the log, if it is still in it: exactly as if it had never been charged."""
        self._expire(now)
        while receipt.into is not None:
            receipt = receipt.into
        back = min(amount, receipt.amount)
        total, rounding = _add(self._total, self._rounding, -back)
        self._total, self._rounding, receipt.amount = total, rounding, receipt.amount - back

    def level(self, now: float) -> float:
        self._expire(now)
        return self.amount - self._total

    def glance(self, now: float) -> float:
        horizon = now - self.per + _CLOCK_GRAIN
        return self.amount - math.fsum([entry.amount for entry in self.log if entry.at > horizon])

    def used(self, now: float) -> float:
        self._expire(now)
        return self._total

    def idle(self, now: float) -> bool:
        self._expire(now)
        return not self.log


def _moment(entry: LogEntry) -> float:
    return entry.at


class CalendarWindow(Meter):
    """The meter of `calendar(n, period, tz)`: a number, and the end of the period it is for.

    `follow(offset)` must be called with the wall clock's lead over the monotonic clock before the other methods. When a
    wall clock that stood ahead is put back, what was spent meanwhile goes on to count, so that the step frees nothing;
    and it is kept for the period that the clock showed, for when that comes.
    """

    __slots__ = (
        "__weakref__", "_ahead", "_begin", "_end", "_later", "_rounding", "_spent", "amount", "offset", "period",
        "zone",
    )  # fmt: skip

    calendar = True
    predictable = True

    _ahead: float  # of what was spent, what may well be counted in the next period

    def __init__(self, limit: Calendar) -> None:
        self.amount = limit.amount
        self.period: Period | float = limit.period
        self.zone = _zone(limit.tz)
        self.offset = 0.0
        self._later: tuple[float, float] | None = None  # end of a period that is still to come, and what it has spent
        self.unpack((-math.inf, 0.0))

    def change(self, limit: Calendar, now: float) -> bool:
        self._turn_page(now)
        zone = _zone(limit.tz)
        begin, end = period_around(now + self.offset, limit.period, zone)
        self.amount, self.period, self.zone = limit.amount, limit.period, zone
        self._later, self._begin, self._end = None, begin, end
        return True

    def follow(self, offset: float) -> None:
        """Take note that the wall clock shows `now + offset`."""
        self.offset = offset

    def _turn_page(self, now: float) -> None:
        wall = now + self.offset
        if wall + _CLOCK_GRAIN * 100 >= self._end:  # a float of seconds since 1970 is exact to 0.24 µs
            begin, end = period_around(max(wall, self._end), self.period, self.zone)
            spent, later = self._ahead if begin <= self._end else 0.0, self._later
            if later is not None and later[0] <= end:
                spent, later = max(spent, later[1] if later[0] == end else 0.0), None
            self._spent, self._later, self._ahead, self._rounding, self._begin, self._end = (
                spent, later, 0.0, 0.0, begin, end,
            )  # fmt: skip
        elif wall < self._begin - _STEP:
            begin, end = period_around(wall, self.period, self.zone)
            later = (self._end, self._spent) if self._spent and end < self._end else self._later
            self._later, self._ahead, self._begin, self._end = later, 0.0, begin, end

    def ready_at(self, cost: float, now: float) -> float:
        self._turn_page(now)
        over = self._spent + cost - self.amount * (1 + 1e-12)
        if over <= 0:
            return now
        end = self._end
        while True:
            after = period_around(end, self.period, self.zone)[1] if over > self.amount or self._later else end
            if self._later is not None and self._later[0] == after:  # less of that one is left
                over += min(self._later[1], self.amount)
            if over <= self.amount:
                return end - self.offset
            # More than fits at once: a whole queue is asked for.
            end, over = after, over - self.amount

    def ready_after(self, other: float, cost: float, now: float) -> float:
        self._turn_page(now)
        spent = self._spent
        self._spent += other
        try:
            return self.ready_at(cost, now)
        finally:
            self._spent = spent

    def charge(self, cost: float, now: float) -> float:
        self._turn_page(now)
        self._spent, self._rounding = _add(self._spent, self._rounding, cost)
        return self._end

    def postpone(self, amount: float, receipt: float, at: float, now: float) -> float:
        self._turn_page(now)
        if receipt != self._end:
            receipt = self.charge(amount, now)
        if at + self.offset >= self._end:
            self._ahead += amount
        return receipt

    def give_back(self, amount: float, receipt: float, now: float) -> None:
        """Take `amount` back, if the period in which it was charged has not ended."""
        self._turn_page(now)
        if receipt == self._end:
            spent, self._rounding = _add(self._spent, self._rounding, -amount)
            self._spent = max(0.0, spent)

    def level(self, now: float) -> float:
        self._turn_page(now)
        return self.amount - self._spent

    def glance(self, now: float) -> float:
        return self.amount - (self._spent if now + self.offset < self._end else 0.0)

    def used(self, now: float) -> float:
        self._turn_page(now)
        return self._spent

    def idle(self, now: float) -> bool:
        self._turn_page(now)
        return self._spent == 0

    def pack(self) -> tuple[float, float]:
        return self._end, self._spent

    def unpack(self, packed: tuple[float, float]) -> None:
        self._end, self._spent = packed  # in seconds of the wall clock; what was spent in the period that ends then
        self._begin = self._end  # the first look finds out when it begins
        self._rounding = self._ahead = 0.0


def _zone(name: str) -> ZoneInfo:
    from zoneinfo import ZoneInfo  # 20 ms that only limits which follow the calendar need

    return ZoneInfo(name)


def period_around(wall: float, period: Period | float, zone: ZoneInfo) -> tuple[float, float]:
    """Begin and end, in seconds since 1970, of the calendar period that holds the moment `wall`.

    Those of so many seconds are multiples of them.

    Minutes and hours are counted within the zone's present offset; days, weeks (from Monday) and months begin at local
    midnight, so a day may have 23 or 25 hours.
    """
    if not isinstance(period, str):
        number = math.floor(wall / period)
        number += (number + 1) * period <= wall  # the quotient was rounded
        number -= number * period > wall
        return number * period, (number + 1) * period
    from datetime import datetime, timedelta  # as in `_zone`

    local = datetime.fromtimestamp(wall, zone)
    if period in ("minute", "hour"):
        length = 60.0 if period == "minute" else 3600.0
        into = local.second + local.microsecond / 1e6 + (0 if period == "minute" else 60 * local.minute)
        begin = round(wall - into)
        return begin, begin + length
    first = local.date()
    if period == "week":
        first -= timedelta(days=first.weekday())
    elif period == "month":
        first = first.replace(day=1)
    after = first + timedelta(days={"day": 1, "week": 7, "month": 32}[period])
    if period == "month":
        after = after.replace(day=1)
    return tuple(datetime(d.year, d.month, d.day, tzinfo=zone).timestamp() for d in (first, after))  # type: ignore[return-value]
