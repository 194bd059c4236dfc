"""The state of a limiter at one moment, as frozen records. `Limiter.statistics()` fills them in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from penstock.limits import Limit

__all__ = ["Forecast", "LimitStatistics", "Statistics"]


@dataclass(frozen=True, slots=True)
class Forecast:
    """How long a call would wait if it came now.

    Attributes:
        wait: Seconds; 0 if it would go at once, `inf` if that depends on when others give back what they hold.
        blocked_by: The limit it would wait for longest, or None.
    """

    wait: float
    blocked_by: str | None


@dataclass(frozen=True, slots=True)
class LimitStatistics:
    """One limit at one moment.

    Attributes:
        unit: What it counts.
        limit: What was promised.
        level: Units that could be charged now; below 0 while there is a debt.
        capacity: The most that one call can take.
    """

    unit: str
    limit: Limit
    level: float
    capacity: float


@dataclass(frozen=True, slots=True)
class Statistics:
    """A limiter at one moment.

    `granted`, `refused`, `cancelled` and `would_refuse` count what this limiter object was asked for; another one with
    the same `name=`, or of the same key, counts its own. The rest is about the limits.

    Attributes:
        granted: Calls that were charged, since the limiter was made.
        refused: Calls that were refused with "not now".
        cancelled: Permits that were cancelled, and waiters that left the queue.
        would_refuse: With `enforce=False`: calls let through that would have had to wait, or could never have gone.
        waiting: Calls in the queue now, of all limiters that share it.
        in_flight: Places held now, of the fullest `in_flight` limit; 0 if there is none.
        paused_for: Seconds until the longest pause ends.
        limits: Per limit, by its unit, or `"tokens (2000000/day)"` where a unit has several.
    """

    granted: int
    refused: int
    cancelled: int
    would_refuse: int
    waiting: int
    in_flight: float
    paused_for: float
    limits: Mapping[str, LimitStatistics]
