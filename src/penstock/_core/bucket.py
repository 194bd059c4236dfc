"""Token-bucket arithmetic.

Nothing here waits, reads a clock or remembers more than it must. A bucket is one number, the moment at which it will
next be full (GCRA's "theoretical arrival time"), kept in units rather than seconds: by `now`, `refill = now · rate`
units have flowed since the clock began, so

    tat' = max(tat, refill) + cost              grant iff  tat' − burst ≤ refill
    level = burst − (tat − refill)              retry after  (tat' − burst − refill) / rate

In this form whole costs add up without rounding, however many there are (below 2⁵³ units), and the only rounding left
is that of one multiplication. Fractions of a unit are added with compensation (Kahan 1965), so that a thousand 0.001s
are 1. What rounding is left is forgiven in the comparison and never in the state, so it cannot add up: 10 ns' worth of
the rate and 10⁻¹² of the burst, at most 0.5 µs' worth.

What is given back is added to the refill (`offset`), as if the clock had run ahead: then `tat` is the sum of all
charges, and what a charge left behind can be compared with what is there now, whatever was given back in between.

An idle bucket equals a new one: a full bucket can be forgotten with no loss of truth.
"""

from __future__ import annotations

import math
from collections import deque

from penstock._core.meter import Meter
from penstock._core.refunds import Refunds
from penstock.limits import Rate

Receipt = tuple[float, float]
"""Of a charge: the bucket's `tat` right after it, and its moment."""

_FULL_SINCE_EVER = -1e300

_MOST_HEARD = 64
"""How many words of servers are told apart from charges."""

CATCH_UP = 0.75
"""How much of an interval a leaky bucket makes up for after a late turn. Below 1: else two could go at once."""


class Bucket(Meter):
    """The meter of a `Rate`: token bucket, and leaky bucket where the burst is 1.

    A leaky bucket is full as soon as its next unit is ready, and loses what flows in until a late timer rings. So a
    bucket that cannot hold 2 units lets the charge of a late turn be dated back, by at most `CATCH_UP` of what it lacks
    to 2 units (`catch_up` seconds). The next turn then comes earlier by as much, and never two at once. In any span T
    it grants at most `burst + rate·T + CATCH_UP · (2 − burst)`; `burst + rate·T` where no timer is late.
    """

    __slots__ = ("burst", "catch_up", "ceiling", "heard", "offset", "overdraft", "rate", "refunds", "rounding", "tat")

    predictable = True

    def __init__(self, limit: Rate) -> None:
        self.rate, self.burst, self.ceiling, self.overdraft, self.catch_up = _numbers_of(limit)
        self.tat = _FULL_SINCE_EVER  # in units; anything below the refill means full
        self.offset = 0.0  # units given back, and what makes changes of the rate continuous
        self.rounding = 0.0  # what the last additions of fractions rounded away
        self.refunds: Refunds | None = None  # made when something is given back
        self.heard: deque[Receipt] | None = None  # by how much servers lowered the level, and `tat` after it

    def fresh(self) -> Bucket:
        """Another bucket for the same limit, with nothing used: the same as a new one, in a third of the time."""
        bucket = object.__new__(Bucket)
        bucket.rate, bucket.burst, bucket.ceiling = self.rate, self.burst, self.ceiling
        bucket.overdraft, bucket.catch_up = self.overdraft, self.catch_up
        bucket.tat, bucket.offset, bucket.rounding = _FULL_SINCE_EVER, 0.0, 0.0
        bucket.refunds = bucket.heard = None
        return bucket

    def change(self, limit: Rate, now: float) -> bool:
        rate, burst, ceiling, overdraft, catch_up = _numbers_of(limit)
        offset = now * self.rate + self.offset - now * rate
        # In one statement, here and below: a signal handler that raises finds all or nothing.
        self.rate, self.burst, self.ceiling, self.overdraft, self.catch_up, self.offset = (
            rate, burst, ceiling, overdraft, catch_up, offset
        )  # fmt: skip
        return True

    def ready_at(self, cost: float, now: float) -> float:
        refill = now * self.rate + self.offset
        need = min(cost, self.burst) if self.overdraft else cost
        tat = self.tat
        tat = (refill if tat < refill else tat) + need
        if tat - self.ceiling <= refill:
            return now
        return now + (tat - self.burst - refill) / self.rate

    def ready_since(self, cost: float, now: float) -> float:
        need = min(cost, self.burst)  # what is larger waits for no more, if it is allowed
        return min(now, now + (self.tat + need - self.burst - (now * self.rate + self.offset)) / self.rate)

    def ready_after(self, other: float, cost: float, now: float) -> float:
        tat = self.tat
        self.tat = max(tat, now * self.rate + self.offset) + other
        try:
            return self.ready_at(cost, now)
        finally:
            self.tat = tat

    def ready_behind(self, ahead: float, cost: float, now: float) -> float:
        # Not of the sum: an overdraft goes as soon as the bucket is full, and is paid for afterwards.
        return self.ready_after(ahead, cost, now)

    def charge(self, cost: float, now: float) -> Receipt:
        charged, rounding = self._charged(cost, now * self.rate + self.offset)
        receipt = charged, now
        self.tat, self.rounding = charged, rounding
        return receipt

    def _charged(self, cost: float, refill: float) -> tuple[float, float]:
        """`tat` after a charge, and what that rounds away."""
        tat, rounding = self.tat, self.rounding
        if tat <= refill:
            tat, rounding = refill, 0.0
        exact = cost - rounding
        charged = tat + exact
        return charged, (charged - tat) - exact

    def charge_if_ready(self, cost: float, now: float) -> Receipt | None:
        refill = now * self.rate + self.offset
        tat = self.tat
        tat = (refill if tat < refill else tat) + cost
        if cost % 1 or tat - self.ceiling > refill:
            return self.charge(cost, now) if self.ready_at(cost, now) <= now else None
        receipt = tat, now
        self.tat = tat
        return receipt

    def give_back(self, amount: float, receipt: Receipt, now: float) -> None:
        """Undo `amount` of a charge, as far as the bucket would have missed less with a lower one. See `refunds`."""
        self.offset += self._back(amount, receipt, now)

    def _back(self, amount: float, receipt: Receipt, now: float) -> float:
        """How much of `amount` comes back. From then on it counts as given back."""
        if self.refunds is None:
            self.refunds = Refunds()
        return self.refunds.give(amount, receipt[0], self.tat, now * self.rate + self.offset)

    def undo(self, amount: float, receipt: Receipt, now: float) -> None:
        """Give back all that is left of a charge, whose receipt is not used again."""
        tat = self.tat
        if receipt[0] < tat or (self.refunds is not None and self.refunds.seen(tat)):
            self.give_back(amount, receipt, now)
            return
        # No charge came after it, so take it off the sum as if it had never been: a call that another limit refuses
        # leaves no trace.
        exact = -max(0.0, min(amount, self.used(now))) - self.rounding
        reduced = tat + exact
        rounding = (reduced - tat) - exact
        self.tat, self.rounding = reduced, rounding

    def top_up(self, amount: float, more: float, receipt: Receipt, now: float) -> tuple[float, float, Receipt]:
        # As if what can still be given back were charged again now, with the rest: one receipt then stands for both.
        back = self._back(amount, receipt, now)
        charged, rounding = self._charged(back + more, now * self.rate + self.offset + back)
        topped = charged, now
        self.offset, self.tat, self.rounding = self.offset + back, charged, rounding
        return amount - back, back + more, topped

    def level(self, now: float) -> float:
        return self.burst - self.used(now)

    glance = level

    def used(self, now: float) -> float:
        return max(0.0, self.tat - (now * self.rate + self.offset))

    def idle(self, now: float) -> bool:
        return self.tat <= now * self.rate + self.offset

    def pack(self) -> float | tuple[float, float, float]:
        # On the scale of `tat`, which receipts are on too: so earlier receipts are right for the bucket that is
        # unpacked from this.
        return (self.tat, self.offset, self.rounding) if self.offset or self.rounding else self.tat

    def unpack(self, packed: float | tuple[float, float, float]) -> None:
        self.tat, self.offset, self.rounding = packed if isinstance(packed, tuple) else (packed, 0.0, 0.0)
        self.refunds = self.heard = None

    def idle_as(self, packed: float | tuple[float, float, float], now: float) -> bool:
        tat, offset = packed[:2] if isinstance(packed, tuple) else (packed, 0.0)
        return tat <= now * self.rate + offset

    def level_after(self, remaining: float, receipt: Receipt, now: float) -> float:
        """The level now, if `remaining` units were left at the server right after the charge that returned `receipt`.

        What was charged since then is subtracted, what was refilled is added: a server's word is as old as the call
        that it answers, and taking it for the present forgets everything sent since. What overflowed since is in `tat`
        as if it had been charged, so the burst must not cut off what was refilled as well; only the level here does.
        Where that cannot be known (`-inf`), the word is too old to say anything.
        """
        tat_after, then = receipt
        if tat_after == -math.inf:
            return self.level(now)
        charged = self.tat - tat_after
        for tat, amount in self.heard or ():
            if tat > tat_after:
                charged -= amount  # by what another answer said, which this one says too
        return min(self.level(now), remaining + (now - then) * self.rate - charged)

    def lower_to(self, level: float, now: float) -> None:
        missing = self.level(now) - level
        if missing > 0:
            self.charge(missing, now)
            if self.heard is None:
                self.heard = deque(maxlen=_MOST_HEARD)  # what is older is of calls that were answered long ago
            self.heard.append((self.tat, missing))


def _numbers_of(limit: Rate) -> tuple[float, float, float, bool, float]:
    """Rate, burst, ceiling, overdraft and `catch_up` of a bucket for this limit."""
    rate, burst = limit.amount / limit.per, float(limit.burst)
    ceiling = burst + min(0.5e-6 * rate, 1e-8 * rate + 1e-12 * burst)
    return rate, burst, ceiling, limit.overdraft, CATCH_UP * max(0.0, 2.0 - burst) / rate
