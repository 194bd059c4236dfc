"""The limits of a simulated account, with what is left of each: buckets, fixed windows, sliding windows.

Nothing here reads a clock: time comes in as nanoseconds. All amounts are exact, in integers or fractions. A meter never
refuses by itself; `Account` asks all of them and charges all or none.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from fractions import Fraction
from typing import Generic, Literal, Protocol, TypeVar

from penstock._numbers import Seconds, read_number, read_seconds
from penstock._text import repr_of
from penstock.limits import Rate, Sliding
from penstock.simulator._buckets import ServerBucket

Unit = Literal["requests", "tokens", "output_tokens", "images"]
_Limit = TypeVar("_Limit", bound="Window | Sliding")


@dataclass(frozen=True, slots=True)
class Window:
    """So much in each window of a length, from the window's begin on. Windows begin at multiples of their length.

    Args:
        amount: Units, above 0.
        per: Length in seconds, or a `timedelta`; above 0.

    Raises:
        ValueError: A number is out of its range.
    """

    amount: float
    per: float

    def __init__(self, amount: float, per: Seconds) -> None:
        units, seconds = read_number(amount), read_seconds(per)
        if units is None or seconds is None or not (0 < units < math.inf and 0 < seconds < math.inf):
            raise ValueError(
                f"a window needs a finite amount and length above 0, not {repr_of(amount)} and {repr_of(per)}"
            )
        object.__setattr__(self, "amount", units)
        object.__setattr__(self, "per", seconds)

    @property
    def burst(self) -> float:
        """The most that there is at once."""
        return self.amount

    def __str__(self) -> str:
        return f"{self.amount:g} in each {self.per:g}s"


@dataclass(frozen=True, slots=True)
class Hidden:
    """A limit that is kept, and that no header tells."""

    limit: Rate | Sliding | Window


class ServerMeter(Protocol):
    """One limit, and what is left of it."""

    unit: Unit
    hidden: bool

    @property
    def limit(self) -> Rate | Sliding | Window:
        """What is promised."""
        ...

    @property
    def burst(self) -> float:
        """The most that there ever is at once."""
        ...

    def advance(self, now_ns: int) -> None:
        """Let time pass."""
        ...

    def level(self) -> Fraction:
        """Units left; below 0 after an early request that was tolerated."""
        ...

    def take(self, units: int) -> None:
        """Charge them, whether or not they are there."""
        ...

    def take_at_most(self, units: int) -> None:
        """Charge them, but no more than there are; where there is a part of one, that part."""
        ...

    def wait_ns(self, units: int) -> int:
        """Nanoseconds until so many are there, 0 if they are."""
        ...

    def announced_wait_ns(self, units: int) -> int:
        """The wait that a refusal announces, never below `wait_ns`."""
        ...

    def reset_ns(self) -> int:
        """Nanoseconds until all is there again, as headers tell it."""
        ...

    def change(self, factor: float) -> None:
        """Make the limit that much larger; what is used stays used."""
        ...

    def promised(self, seconds: Fraction) -> Fraction:
        """The most units that may be admitted in so long a time."""
        ...


class BucketMeter:
    """A continuous bucket with its level, in parts."""

    __slots__ = ("_at_ns", "_level", "bucket", "hidden", "unit")

    def __init__(self, unit: Unit, limit: Rate, now_ns: int, *, hidden: bool) -> None:
        self.unit, self.hidden = unit, hidden
        self.bucket = ServerBucket.of(limit)
        self._level = self.bucket.full
        self._at_ns = now_ns

    @property
    def limit(self) -> Rate:
        return self.bucket.rate

    @property
    def burst(self) -> float:
        return self.bucket.rate.burst

    def advance(self, now_ns: int) -> None:
        self._level = self.bucket.refilled(self._level, now_ns - self._at_ns)
        self._at_ns = now_ns

    def level(self) -> Fraction:
        return Fraction(self._level, self.bucket.scale)

    def take(self, units: int) -> None:
        self._level -= units * self.bucket.scale

    def take_at_most(self, units: int) -> None:
        self._level = max(min(0, self._level), self._level - units * self.bucket.scale)

    def wait_ns(self, units: int) -> int:
        return self.bucket.wait_ns(self._level, units)

    def announced_wait_ns(self, units: int) -> int:
        return self.bucket.announced_wait_ns(self._level, units)

    def reset_ns(self) -> int:
        return self.bucket.reset_ns(self._level)

    def change(self, factor: float) -> None:
        rate, level = self.bucket.rate, self.level()
        self.bucket = ServerBucket.of(Rate(rate.amount * factor, rate.per, max(1.0, rate.burst * factor)))
        self._level = min(self.bucket.full, int(level * self.bucket.scale))

    def promised(self, seconds: Fraction) -> Fraction:
        rate = self.bucket.rate
        return Fraction(rate.burst) + Fraction(rate.amount) / Fraction(rate.per) * seconds


class _CountingMeter(Generic[_Limit]):
    """What fixed and sliding windows have in common: a number of units that are used, and no part of one."""

    __slots__ = ("_at_ns", "_used", "hidden", "limit", "unit")

    def __init__(self, unit: Unit, limit: _Limit, now_ns: int, *, hidden: bool) -> None:
        self.unit, self.hidden, self.limit = unit, hidden, limit
        self._at_ns, self._used = now_ns, 0

    @property
    def burst(self) -> float:
        return self.limit.amount

    @property
    def _per_ns(self) -> int:
        return round(self.limit.per * 1e9)

    def level(self) -> Fraction:
        return Fraction(self.limit.amount) - self._used

    def take(self, units: int) -> None:
        self._used += units

    def take_at_most(self, units: int) -> None:
        self.take(max(0, min(units, math.floor(self.level()))))


class WindowMeter(_CountingMeter[Window]):
    """A fixed window: everything comes back at once when the next one begins."""

    __slots__ = ("_index",)

    def __init__(self, unit: Unit, limit: Window, now_ns: int, *, hidden: bool) -> None:
        super().__init__(unit, limit, now_ns, hidden=hidden)
        self._index = now_ns // self._per_ns

    def advance(self, now_ns: int) -> None:
        if now_ns // self._per_ns > self._index:
            self._index, self._used = now_ns // self._per_ns, 0
        self._at_ns = now_ns

    def wait_ns(self, units: int) -> int:
        return 0 if units <= self.level() else self.reset_ns()

    announced_wait_ns = wait_ns

    def reset_ns(self) -> int:
        return (self._index + 1) * self._per_ns - self._at_ns

    def change(self, factor: float) -> None:
        self.limit = Window(self.limit.amount * factor, self.limit.per)

    def promised(self, seconds: Fraction) -> Fraction:
        return Fraction(self.limit.amount) * (2 + math.floor(seconds / Fraction(self.limit.per)))


class SlidingMeter(_CountingMeter[Sliding]):
    """Never more than so much in any window."""

    __slots__ = ("log",)

    def __init__(self, unit: Unit, limit: Sliding, now_ns: int, *, hidden: bool) -> None:
        super().__init__(unit, limit, now_ns, hidden=hidden)
        self.log: deque[tuple[int, int]] = deque()

    def advance(self, now_ns: int) -> None:
        while self.log and self.log[0][0] + self._per_ns <= now_ns:
            self._used -= self.log.popleft()[1]
        self._at_ns = now_ns

    def take(self, units: int) -> None:
        if units:
            self.log.append((self._at_ns, units))
            self._used += units

    def wait_ns(self, units: int) -> int:
        lacking, wait_ns = units - self.level(), 0
        for at_ns, used in self.log:
            if lacking <= 0:
                break
            lacking -= used
            wait_ns = at_ns + self._per_ns - self._at_ns
        return wait_ns

    announced_wait_ns = wait_ns

    def reset_ns(self) -> int:
        return self.log[-1][0] + self._per_ns - self._at_ns if self.log else 0

    def change(self, factor: float) -> None:
        self.limit = Sliding(self.limit.amount * factor, self.limit.per)

    def promised(self, seconds: Fraction) -> Fraction:
        return Fraction(self.limit.amount) * (1 + math.ceil(seconds / Fraction(self.limit.per)))


def meter_of(unit: Unit, limit: Rate | Sliding | Window | Hidden, now_ns: int) -> ServerMeter:
    """A new meter, with nothing used."""
    hidden = isinstance(limit, Hidden)
    inner = limit.limit if isinstance(limit, Hidden) else limit
    if isinstance(inner, Window):
        return WindowMeter(unit, inner, now_ns, hidden=hidden)
    if isinstance(inner, Sliding):
        return SlidingMeter(unit, inner, now_ns, hidden=hidden)
    return BucketMeter(unit, inner, now_ns, hidden=hidden)
