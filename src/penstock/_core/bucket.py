"""Token-bucket arithmetic.

Nothing here waits, reads a clock or remembers more than it must. A bucket is one number, the moment at which it will next
be full (GCRA's "theoretical arrival time"), kept in units rather than seconds: by `now`, `refill = now · rate` units have
flowed since the clock began, so

    tat' = max(tat, refill) + cost              grant iff  tat' − burst ≤ refill
    level = burst − (tat − refill)              retry after  (tat' − burst − refill) / rate

In this form whole costs add up without rounding, however many there are (below 2⁵³ units), and the only rounding left is
that of one multiplication. Fractions of a unit are added with compensation (Kahan 1965), so that a thousand 0.001s are 1.
What rounding is left is forgiven in the comparison and never in the state, so it cannot add up: 10 ns' worth of the rate and
10⁻¹² of the burst, at most 0.5 µs' worth.

What is given back is added to the refill (`offset`), as if the clock had run ahead: then `tat` is the sum of all charges, and
what a charge left behind can be compared with what is there now, whatever was given back in between.

An idle bucket equals a new one: whoever keeps many can forget it the moment it is full, with no loss of truth.
"""

from __future__ import annotations

from bisect import bisect_right

from penstock._core.meter import Meter
from penstock.limits import Rate

__all__ = ["Bucket", "Mark"]

Mark = tuple[float, float]
"""Of a charge: the bucket's `tat` right after it, and its moment."""

_FULL_SINCE_EVER = -1e300


_MOST_RETURNED = 256
"""How many refunds a bucket tells apart; of more, neighbours count as the earlier one, which gives back a little less."""


class _Returned:
    """What was given back of charges that are not refilled yet, by their marks (`tat` right after them), in order."""

    __slots__ = ("_amounts", "_marks")

    def __init__(self) -> None:
        self._marks: list[float] = []
        self._amounts: list[float] = []

    def of_later_than(self, mark: float) -> float:
        """Units that were given back of charges that came after that mark."""
        return sum(self._amounts[bisect_right(self._marks, mark) :])

    def of_any_since(self, mark: float) -> bool:
        """Whether anything was given back of the charge of that mark, or a later one."""
        return bool(self._marks) and self._marks[-1] >= mark

    def add(self, mark: float, amount: float, refill: float) -> None:
        """Remember a refund; forget those that can help nobody any more, as all before them is refilled."""
        marks, amounts = self._marks, self._amounts
        at = bisect_right(marks, mark)
        if at and marks[at - 1] == mark:
            amounts[at - 1] += amount
        else:
            marks.insert(at, mark)
            amounts.insert(at, amount)
        total, gone = sum(amounts), 0
        while gone < len(marks) and marks[gone] + total <= refill:
            total -= amounts[gone]
            gone += 1
        del marks[:gone], amounts[:gone]
        if len(marks) > _MOST_RETURNED:
            self._merge_neighbours()

    def _merge_neighbours(self) -> None:
        """Halve what is remembered: of equal steps between the first mark and the last, one entry each."""
        step = 2.0 * (self._marks[-1] - self._marks[0]) / _MOST_RETURNED
        first = self._marks[0]
        marks: dict[int, float] = {}
        amounts: dict[int, float] = {}
        for mark, amount in zip(self._marks, self._amounts, strict=True):
            cell = int((mark - first) / step)
            marks.setdefault(cell, mark)
            amounts[cell] = amounts.get(cell, 0.0) + amount
        self._marks, self._amounts = list(marks.values()), list(amounts.values())


class Bucket(Meter):
    """The meter of a `Rate`: token bucket, and leaky bucket where the burst is 1."""

    __slots__ = ("burst", "ceiling", "offset", "overdraft", "rate", "returned", "rounding", "tat")

    def __init__(self, limit: Rate) -> None:
        self._promise(limit)
        self.tat = _FULL_SINCE_EVER  # in units; anything below the refill means full
        self.offset = 0.0  # units given back, and what makes changes of the rate continuous
        self.rounding = 0.0  # what the last additions of fractions rounded away
        self.returned: _Returned | None = None  # what was given back lately, if anything was

    def fresh(self) -> Bucket:
        """Another bucket for the same limit, with nothing used: the same as a new one, in a third of the time."""
        bucket = object.__new__(Bucket)
        bucket.rate, bucket.burst, bucket.ceiling, bucket.overdraft = (
            self.rate,
            self.burst,
            self.ceiling,
            self.overdraft,
        )
        bucket.tat, bucket.offset, bucket.rounding, bucket.returned = _FULL_SINCE_EVER, 0.0, 0.0, None
        return bucket

    def _promise(self, limit: Rate) -> None:
        self.rate = rate = limit.amount / limit.per
        self.burst = burst = float(limit.burst)
        self.ceiling = burst + min(0.5e-6 * rate, 1e-8 * rate + 1e-12 * burst)
        self.overdraft = limit.overdraft

    def change(self, limit: Rate, now: float) -> bool:
        refill = now * self.rate + self.offset
        self._promise(limit)
        self.offset = refill - now * self.rate
        return True

    def ready_at(self, cost: float, now: float) -> float:
        refill = now * self.rate + self.offset
        need = min(cost, self.burst) if self.overdraft else cost
        tat = self.tat
        tat = (refill if tat < refill else tat) + need
        if tat - self.ceiling <= refill:
            return now
        return now + (tat - self.burst - refill) / self.rate

    def ready_after(self, other: float, cost: float, now: float) -> float:
        tat = self.tat
        self.tat = max(tat, now * self.rate + self.offset) + other
        try:
            return self.ready_at(cost, now)
        finally:
            self.tat = tat

    def ready_behind(self, ahead: float, cost: float, now: float) -> float:
        # Not the sum where an overdraft is allowed: that would go as soon as the bucket is full, and then it is paid for.
        return self.ready_after(ahead, cost, now) if self.overdraft else self.ready_at(ahead + cost, now)

    def charge(self, cost: float, now: float) -> Mark:
        tat, refill = self.tat, now * self.rate + self.offset
        if tat <= refill:
            tat, self.rounding = refill, 0.0
        if cost % 1:
            exact = cost - self.rounding
            self.tat = tat + exact
            self.rounding = (self.tat - tat) - exact
        else:
            self.tat = tat + cost
        return self.tat, now

    def charge_if_ready(self, cost: float, now: float) -> Mark | None:
        refill = now * self.rate + self.offset
        tat = self.tat
        tat = (refill if tat < refill else tat) + cost
        if cost % 1 or tat - self.ceiling > refill:
            return self.charge(cost, now) if self.ready_at(cost, now) <= now else None
        self.tat = tat
        return tat, now

    def give_back(self, amount: float, mark: Mark, now: float) -> None:
        """Undo `amount` of a charge, but never more than the bucket would still miss if it had been that much smaller.

        Giving back `amount` and clamping to the burst alone lets up to 3 × the burst through: units that would have
        overflowed in the meantime are refilled twice. With a smaller charge the bucket would be fuller by `amount`, less what
        would have overflowed since; and nothing overflows while something is missing. What was missing at any moment since is
        at least what the charge left missing, less what has flowed in by now, less what was given back of this charge and
        earlier ones. Later charges only add to it, as no more is given back of them than they were. So

            back = min(amount, tat_after − refill + given back of later charges)

        is always safe. All that was cancelled within a burst's time comes back exactly, in whatever order.
        """
        back = self._safe_back(amount, mark, now)
        if back > 0:
            self.offset += back
            if self.returned is None:
                self.returned = _Returned()
            self.returned.add(mark[0], back, now * self.rate + self.offset)

    def undo(self, amount: float, mark: Mark, now: float) -> None:
        """Give back all that is left of a charge, whose mark is not used again."""
        tat, returned = self.tat, self.returned
        if mark[0] != tat or (returned is not None and returned.of_any_since(tat)):
            self.give_back(amount, mark, now)
            return
        # Nobody came after it, so it is taken off the sum as if it had never been: no trace is left of who tried in vain.
        exact = -self._safe_back(amount, mark, now) - self.rounding
        self.tat = tat + exact
        self.rounding = (self.tat - tat) - exact

    def _safe_back(self, amount: float, mark: Mark, now: float) -> float:
        missing = mark[0] - (now * self.rate + self.offset)
        if self.returned is not None and missing < amount:
            missing += self.returned.of_later_than(mark[0])
        return max(0.0, min(amount, missing))

    def top_up(self, amount: float, more: float, mark: Mark, now: float) -> tuple[float, float, Mark]:
        # As if what can still be given back were charged again now, with the rest: one mark then stands for both.
        back = self._safe_back(amount, mark, now)
        self.give_back(back, mark, now)
        return amount - back, back + more, self.charge(back + more, now)

    def level(self, now: float) -> float:
        return self.burst - self.used(now)

    def used(self, now: float) -> float:
        return max(0.0, self.tat - (now * self.rate + self.offset))

    def idle(self, now: float) -> bool:
        return self.tat <= now * self.rate + self.offset

    def pack(self) -> float:
        return self.tat - self.offset

    def unpack(self, packed: float) -> None:
        self.tat = packed
        self.offset = self.rounding = 0.0
        self.returned = None

    def idle_as(self, packed: float, now: float) -> bool:
        return packed <= now * self.rate

    def level_after(self, remaining: float, mark: Mark, now: float) -> float:
        """The level now, if `remaining` units were left at the server right after the charge that returned `mark`.

        What was charged since then is subtracted, what was refilled is added: a server's word is as old as the call
        that it answers, and taking it for the present forgets everything sent since. What overflowed since is in `tat` as if
        it had been charged, so the burst must not cut off what was refilled as well; only the level here does.
        """
        tat_after, then = mark
        return min(self.level(now), remaining + (now - then) * self.rate - (self.tat - tat_after))
