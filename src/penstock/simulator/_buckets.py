"""The server's side of the arithmetic: continuous token buckets, exact, in integers.

Nothing here waits, reads a clock or remembers; time comes in as nanoseconds. It is written apart from the library's own
buckets on purpose, so that the two check each other: the limiter keeps the moment at which a bucket will be full, this
keeps the level, in parts so small that the refill of one nanosecond is a whole number of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction

from penstock.limits import Rate


@dataclass(frozen=True, slots=True)
class ServerBucket:
    """The constants of one bucket. Its level is the caller's, in parts.

    Attributes:
        rate: What it was made of.
        scale: Parts in one unit.
        refill: Parts that come back in one nanosecond.
        full: Parts it holds at most.
    """

    rate: Rate
    scale: int
    refill: int
    full: int

    @classmethod
    def of(cls, rate: Rate) -> ServerBucket:
        """The bucket of `rate`, whose numbers are taken as exactly what their floats are."""
        per_ns = Fraction(rate.amount) / (Fraction(rate.per) * 1_000_000_000)
        burst = Fraction(rate.burst)
        scale = math.lcm(per_ns.denominator, burst.denominator)
        return cls(rate, scale, int(per_ns * scale), int(burst * scale))

    def refilled(self, level: int, elapsed_ns: int) -> int:
        """The level, in parts, after `elapsed_ns` nanoseconds."""
        return min(self.full, level + self.refill * elapsed_ns)

    def holds(self, level: int, cost: int, tolerance_ns: int = 0) -> bool:
        """Whether `cost` units are in it, or will be within the tolerance."""
        return level + self.refill * tolerance_ns >= cost * self.scale

    def remaining(self, level: int) -> int:
        """Whole units in it, as the header shows them: rounded down."""
        return max(0, level // self.scale)

    def used(self, level: int) -> int:
        """Whole units gone, as messages show them: rounded up."""
        return -((max(0, level) - self.full) // self.scale)

    def reset_ns(self, level: int) -> int:
        """Nanoseconds until it is full: (limit - level) / limit × period, rounded down."""
        return (self.full - level) // self.refill

    def wait_ns(self, level: int, cost: int) -> int:
        """Nanoseconds until `cost` units are in it, 0 if they are: the least with which the request is admitted."""
        return max(0, -((level - cost * self.scale) // self.refill))

    def announced_wait_ns(self, level: int, cost: int) -> int:
        """The wait that a refusal announces: (used + requested - limit) / limit × period, with `used` in whole units.

        That is how OpenAI's messages count (limit 30000, used 14567, requested 24754: 18.642 s). As `used` is rounded
        up it is never below `wait_ns`, which counts where more than the limit is used.
        """
        return max(self.wait_ns(level, cost), self.wait_ns(self.remaining(level) * self.scale, cost))


def excess(charges: Iterable[tuple[int, int]], rate: Rate) -> Fraction:
    """The most by which `charges` went over `burst + rate × T` in any interval; 0 or below: the limit was kept.

    Args:
        charges: (moment in nanoseconds, units), in order of time.
        rate: The limit that they are held against.
    """
    per_ns = Fraction(rate.amount) / (Fraction(rate.per) * 1_000_000_000)
    burst = Fraction(rate.burst)
    worst = -burst
    charged = 0
    lowest: Fraction | None = None  # the least of "charged before, minus refill until then", over all starts so far
    for at_ns, units in charges:
        start = charged - per_ns * at_ns
        lowest = start if lowest is None else min(lowest, start)
        charged += units
        worst = max(worst, charged - per_ns * at_ns - lowest - burst)
    return worst
