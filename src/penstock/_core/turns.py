"""Whose turn it is: all or nothing over several limits, and who may pass whom.

Nothing here waits or reads a clock. A call is charged on all its limits at one instant, or on none. The first in the queue goes
as soon as it can; a later one may pass only where that cannot make an earlier one later (EASY backfill, Lifka 1995): after
charging the later one, the earlier one would still be ready at the moment projected for it. So a large call is never
starved by small ones, and a small one that does not need what the large one waits for does not queue behind it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from heapq import heappop, heappush
from typing import Any

from penstock._core.bucket import Bucket
from penstock._core.meter import Meter, Unmetered
from penstock._core.places import Places
from penstock._core.queue import Key, Queue, Waiter
from penstock._core.windows import CalendarWindow, SlidingWindow
from penstock.limits import Calendar, InFlight, Rate, Sliding, Unlimited

__all__ = [
    "Charges",
    "LimitState",
    "Receipts",
    "admit",
    "charge",
    "charge_if_ready",
    "could_go",
    "give_back",
    "meter_for",
    "ready_at",
    "ready_behind",
    "undo",
]

_PROTECTED = 16
"""How many of those who must wait are protected from being delayed; the order of the rest is theirs by turn."""

_SAME_MOMENT = 1e-8
"""Seconds within which two projections are the same moment."""

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
    """One limit of a limiter: whose unit it is, what was promised, and how much of it is used."""

    __slots__ = ("label", "limit", "meter", "paused_until", "queued", "throughput", "unit")

    def __init__(self, unit: str, limit: Any, label: str) -> None:
        self.unit = unit
        self.label = label
        self.paused_until = -math.inf
        self.queued = 0.0
        self.limit = limit
        self.meter = meter_for(limit)
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
        meter = other.meter
        state.meter = meter.fresh() if type(meter) is Bucket else meter_for(other.limit)
        return state

    def promise(self, limit: Any, now: float, lead: float = 0.0) -> None:
        """Count for `limit` from now on. What was used stays used. `lead`: how far the wall clock is ahead of `now`."""
        if type(limit) is not type(self.limit) or not self.meter.change(limit, now):
            before, self.meter = self.meter, meter_for(limit)
            self.go_on_from(before, now, lead)
        self.limit = limit
        self._weigh()

    def go_on_from(self, meter: Meter, now: float, lead: float) -> None:
        """Count as used, in a meter that is new, what is used in another.

        Not in one of places: only a permit that was charged here can give them back, so they would be held for ever.
        """
        if self.meter.held:
            return
        if self.meter.calendar:
            self.meter.follow(lead)  # type: ignore[attr-defined]
        used = meter.used(now)
        if used > 0:
            self.meter.charge(used, now)

    def _weigh(self) -> None:
        limit = self.limit
        # Places have no throughput: a whole set of them counts as one second of it.
        self.throughput: float = limit.amount / getattr(limit, "per", 1.0) if hasattr(limit, "amount") else 1.0

    def ready_at(self, amount: float, now: float) -> float:
        """When `amount` could be charged here: after any pause, and when the meter allows."""
        ready = self.meter.ready_at(amount, now) if amount else now
        return max(ready, self.paused_until)


Charges = Sequence[tuple[LimitState, float]]
Receipts = list[tuple[Meter, Any]]
"""What a charge left behind: the meter that was charged, and its receipt."""


def ready_at(charges: Charges, now: float) -> tuple[float, LimitState | None]:
    """The earliest moment at which all of `charges` could be made, and the state that is ready last."""
    latest, last = now, None
    for state, amount in charges:
        ready = state.meter.ready_at(amount, now)
        if state.paused_until > ready:
            ready = state.paused_until
        if ready > latest:
            latest, last = ready, state
    return latest, last


def ready_behind(charges: Charges, ahead: Mapping[Any, float], now: float) -> tuple[float, LimitState | None]:
    """`ready_at` for one who waits in the queue, behind others who want so much of each state in all and go first."""
    latest, last = now, None
    for state, amount in charges:
        before = ahead.get(state)
        ready = state.meter.ready_behind(before, amount, now) if before else state.meter.ready_at(amount, now)
        ready = max(ready, state.paused_until)
        if ready > latest:
            latest, last = ready, state
    return latest, last


def _ready_at(charges: Charges, now: float) -> float:
    """`ready_at`, for those who need not know the state."""
    latest = now
    for state, amount in charges:
        ready = state.meter.ready_at(amount, now)
        if ready > latest:
            latest = ready
        if state.paused_until > latest:
            latest = state.paused_until
    return latest


def charge_if_ready(charges: Charges, now: float) -> Receipts | None:
    """`charge`, if all of it is ready now; else nothing is charged, and None."""
    receipts: Receipts = []
    for state, amount in charges:
        meter = state.meter
        receipt = meter.charge_if_ready(amount, now) if state.paused_until <= now else None
        if receipt is None:
            undo(charges[: len(receipts)], receipts, now)
            return None
        receipts.append((meter, receipt))
    return receipts


def charge(charges: Charges, now: float) -> Receipts:
    """Charge all of it; return what giving back needs, in the same order."""
    return [(state.meter, state.meter.charge(amount, now)) for state, amount in charges]


def undo(charges: Charges, receipts: Receipts, now: float) -> None:
    """Take back all of what `charge` did, and of what was charged for the same call later; the latest first."""
    for (state, amount), (meter, receipt) in zip(reversed(charges), reversed(receipts), strict=True):
        if state.meter is meter:
            meter.undo(amount, receipt, now)


def give_back(charges: Charges, receipts: Receipts, now: float) -> None:
    """Give back that much of what `charge` charged."""
    for (state, amount), (meter, receipt) in zip(charges, receipts, strict=True):
        if state.meter is meter:  # else another kind of limit has taken over, which cannot read this receipt
            meter.give_back(amount, receipt, now)


def _horizon(charges: Charges, now: float) -> float:
    """When all of `charges` are ready at the latest, as far as that is known: places may be given back at any moment."""
    return max((ready for state, amount in charges if (ready := state.ready_at(amount, now)) < math.inf), default=now)


def _delays(charges: Charges, waiter: Waiter, horizon: float, now: float) -> bool:
    """Whether charging `charges` now would make `waiter`, ready at `horizon`, ready later."""
    mine = dict(charges)
    for state, amount in waiter.charges:
        other = mine.get(state)  # type: ignore[call-overload]
        if not other:
            continue
        after = state.meter.ready_after(other, amount, now)  # type: ignore[attr-defined]
        if after > horizon + _SAME_MOMENT:
            return True
    return False


def admit(queue: Queue, now: float, grant: Callable[[Waiter, Receipts, float], None]) -> float:
    """Give everybody their turn whose turn has come: charge them, take them out of the queue, and call `grant`.

    Returns:
        The next moment at which somebody's turn may come if nothing else happens; `inf` if only a release helps.
    """
    heads: list[tuple[Key, Waiter]] = queue.heads(now)  # in order, which a heap may be
    next_turn = math.inf
    blocked: list[tuple[Waiter, float]] = []
    while heads:
        _, waiter = heappop(heads)
        while True:  # one after another of this shape, as long as nobody of another shape comes between
            charges: Charges = waiter.charges  # type: ignore[assignment]
            if (
                blocked
                and _ready_at(charges, now) <= now
                and any(_delays(charges, earlier, at, now) for earlier, at in blocked)
            ):
                break  # it could go, but somebody before it would be later
            receipts = charge_if_ready(charges, now)
            if receipts is None:
                next_turn = min(next_turn, _ready_at(charges, now))
                break
            behind = queue.take(waiter)
            grant(waiter, receipts, now)
            if behind is None:
                break
            if heads and behind[0] > heads[0][0]:
                heappush(heads, behind)
                break
            waiter = behind[1]
        if waiter.subqueue is not None and heads and len(blocked) < _PROTECTED:
            blocked.append((waiter, _horizon(waiter.charges, now)))  # type: ignore[arg-type]
    return next_turn


def could_go(queue: Queue, waiter: Waiter, now: float) -> bool:
    """Whether `waiter`, who is in `queue`, would have a turn now, with nobody else going first."""
    charges: Charges = waiter.charges  # type: ignore[assignment]
    if ready_at(charges, now)[0] > now:
        return False
    for _, earlier in queue.heads(now):
        if earlier is waiter:
            return True
        others: Charges = earlier.charges  # type: ignore[assignment]
        if _delays(charges, earlier, _horizon(others, now), now):
            return False
    return False
