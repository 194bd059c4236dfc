"""One limit of a limiter: what was promised, and how much of it is used.

What is used is counted by a meter, one for each kind of limit. Charging a call on several limits at once is left to
`charging`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from penstock._core.bucket import Bucket
from penstock._core.meter import Meter, Unmetered
from penstock._core.places import Places
from penstock._core.windows import CalendarWindow, SlidingWindow
from penstock.limits import Calendar, InFlight, Rate, Sliding, Unlimited

_METERS: dict[type, Callable[[Any], Meter]] = {
    Rate: Bucket,
    Sliding: SlidingWindow,
    Calendar: CalendarWindow,
    InFlight: Places,
    Unlimited: Unmetered,
}


def meter_for(limit: Any) -> Meter:
    """A new meter, with nothing used, for a limit of any kind."""
    make = _METERS.get(type(limit))
    return make(limit) if make is not None else limit.meter()


class LimitState:
    """One limit of a limiter: its unit, what was promised, and how much of it is used."""

    __slots__ = ("label", "limit", "meter", "paused_until", "queued", "throughput", "unit")

    def __init__(self, unit: str, limit: Any, label: str) -> None:
        self.unit: str = unit
        self.label: str = label
        self.paused_until: float = -math.inf
        self.queued: float = 0.0
        self.limit: Any = limit
        self.meter: Meter = meter_for(limit)
        self._weigh()

    @classmethod
    def like(cls, other: LimitState) -> LimitState:
        """A state for the same limit, with nothing used."""
        state = object.__new__(cls)
        state.unit = other.unit
        state.label = other.label
        state.limit = other.limit
        state.throughput = other.throughput
        state.paused_until = -math.inf
        state.queued = 0.0
        # A bucket makes its like in a third of the time.
        state.meter = other.meter.fresh() if type(other.meter) is Bucket else meter_for(other.limit)
        return state

    def promise(self, limit: Any, now: float, lead: float = 0.0) -> None:
        """Count for `limit` from now on. What was used stays used. `lead`: how far the wall clock is ahead of `now`."""
        meter = self.meter
        if type(limit) is not type(self.limit) or not meter.change(limit, now):
            meter = meter_for(limit)
            _carry_over(self.meter, meter, now, lead)
        self.limit, self.meter = limit, meter
        self._weigh()

    def go_on_from(self, meter: Meter, now: float, lead: float) -> None:
        """Count here, where nothing was used, what another meter has counted as used."""
        _carry_over(meter, self.meter, now, lead)

    def _weigh(self) -> None:
        limit = self.limit
        # Places have no throughput, and a period of the calendar comes back at once: a whole set of them counts as one
        # second of it. What is unlimited counts as nothing.
        plain = 1.0 if limit.capacity < math.inf else math.inf
        per = limit.per if isinstance(limit, Rate | Sliding) else 1.0
        self.throughput: float = limit.amount / per if hasattr(limit, "amount") else plain

    def ready_at(self, amount: float, now: float) -> float:
        """When `amount` could be charged here: after any pause, and when the meter allows."""
        ready = self.meter.ready_at(amount, now) if amount else now
        return max(ready, self.paused_until)


def _carry_over(before: Meter, after: Meter, now: float, lead: float) -> None:
    """Count in a new meter what another has counted as used.

    Not in one of places: only a permit that was charged there can give them back, so they would be held for ever.
    """
    if after.held:
        return
    if after.calendar:
        after.follow(lead)  # type: ignore[attr-defined]  # calendars have it
    used = before.used(now)
    if used > 0:
        after.charge(used, now)
