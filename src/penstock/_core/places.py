"""Places: at most so many calls at the same time, each held by a permit until it ends.

Who waits for a place is decided by `turns`; warnings about places that never come back are in `_backends`.
"""

from __future__ import annotations

import math
from collections import deque

from penstock._core.meter import Meter
from penstock.limits import InFlight

_ROUNDING = 1e-9
"""What sums of fractions may be off by, as a part of the amount: too little to get a place by it."""


class Hold:
    """What one permit holds, and the moment from which it no longer counts (`inf` without a time to live).

    Attributes:
        where: File and line that acquired it, where that was written down.
        holder: The task or thread that acquired it, where that was written down.
    """

    __slots__ = ("amount", "holder", "until", "where")

    def __init__(self, amount: float, until: float) -> None:
        self.amount = amount
        self.until = until
        self.where: tuple[str, int] | None = None
        self.holder: object = None


class Places(Meter):
    """The meter of `in_flight(n)`.

    Attributes:
        taken: Places that are held.
        holders: Permits that hold some. With none, nothing is taken, whatever sums of fractions say.
        lost: Holds whose time to live has passed, until they are taken away.
        last_hold: What took the last place, where that was written down.
        orphans: Holds that no permit can give back any more, until they are taken away.
    """

    __slots__ = ("_holds", "amount", "holders", "last_hold", "lost", "orphans", "taken", "ttl")

    held = True
    predictable = True

    def __init__(self, limit: InFlight) -> None:
        self.amount = limit.amount
        self.ttl = limit.ttl
        self.taken = 0.0
        self.holders = 0
        self.last_hold: Hold | None = None
        self._holds: deque[Hold] = deque()  # in order of `until`; only with a time to live
        self.lost: list[Hold] = []
        self.orphans: list[Hold] = []

    def change(self, limit: InFlight, now: float) -> bool:
        self._expire(now)
        self.amount = limit.amount
        self.ttl = limit.ttl
        return True

    def _expire(self, now: float) -> None:
        holds = self._holds
        while holds and (holds[0].until <= now or not holds[0].amount):
            hold = holds[0]
            if hold.amount:
                self._free(hold, hold.amount)
                self.lost.append(hold)
            holds.popleft()

    def _free(self, hold: Hold, amount: float) -> None:
        left = hold.amount - amount
        holders = self.holders if left else self.holders - 1
        taken = self.taken - amount if holders else 0.0
        # In one statement, here and in `charge`: a signal handler that raises finds all or nothing.
        hold.amount, self.taken, self.holders = left, taken, holders

    def ready_at(self, cost: float, now: float) -> float:
        self._expire(now)
        over = self.taken + cost - self.amount * (1 + _ROUNDING)
        if over <= 0:
            return now
        for hold in self._holds:
            over -= hold.amount
            if over <= 0:
                return hold.until
        return math.inf

    def ready_after(self, other: float, cost: float, now: float) -> float:
        self._expire(now)
        taken = self.taken
        self.taken += other
        try:
            return self.ready_at(cost, now)
        finally:
            self.taken = taken

    def charge(self, cost: float, now: float) -> Hold:
        self._expire(now)
        hold = Hold(0.0, math.inf if self.ttl is None else now + self.ttl)
        if self.ttl is not None:
            holds = self._holds
            holds.append(hold)
            if len(holds) > 1 and hold.until < holds[-2].until:  # the time to live was shortened in the meantime
                self._holds = deque(sorted(holds, key=lambda hold: hold.until))
        hold.amount, self.taken, self.holders = cost, self.taken + cost, self.holders + (1 if cost else 0)
        return hold

    def give_back(self, amount: float, receipt: Hold, now: float) -> None:
        """Free `amount` of what is held; nothing if its time to live has passed."""
        self._expire(now)
        if receipt.amount:
            self._free(receipt, min(amount, receipt.amount))

    def level(self, now: float) -> float:
        self._expire(now)
        return self.amount - self.taken

    def glance(self, now: float) -> float:
        return self.amount - self.taken

    def used(self, now: float) -> float:
        self._expire(now)
        return self.taken

    @property
    def exhausted(self) -> bool:
        """Whether the last place is taken."""
        return self.taken >= self.amount

    def idle(self, now: float) -> bool:
        self._expire(now)
        return self.taken == 0

    def free_orphans(self) -> None:
        """Free what no permit can give back any more: for the limits of keys that nothing holds."""
        while self.orphans:
            hold = self.orphans.pop()
            self._free(hold, hold.amount)

    def pack(self) -> float | None:
        return None if self.taken else 0.0  # permits that hold places may be there

    def unpack(self, packed: float) -> None:
        self.taken = packed
        self.holders = 1 if packed else 0
        self._holds.clear()

    def lower_to(self, level: float, now: float) -> None:
        """What others hold is theirs to give back: places are not lowered by hearsay."""
