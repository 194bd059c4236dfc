"""What a bucket may give back of a charge that was too high.

Just what it would miss less had the charge been that much lower.

Nothing here reads a clock. A bucket tells how far its charges and its refill have come (`tat` and `refill`, see
`bucket`), and what it is to give back of which charge; here is remembered what earlier refunds found out.

**The rule.** What a bucket misses rises with each charge, and falls as it is refilled, down to nothing: then it is
full, and what flows in is lost. Had a charge been lower by `back`, the bucket would have missed that much less at every
moment since, as long as it missed at least that much at all of them. So

    back = min(amount, the least that it missed since, at any moment)

is exact: it is what the bucket would be fuller by, and less would be capacity lost. Adding `amount` and cutting it off
at the burst lets up to 3 × the burst through: what would have overflowed in the meantime is then refilled twice.

**The least that it missed.** It is least right before a charge, or now. Remembering that of every charge would cost
each of them; so nothing is remembered of charges, and refunds take a look each. Between two looks a bucket can only
have lost what flowed in meanwhile, so right before each charge of that *stretch* it missed at least

    tat at the look before − refill at the look after

Besides, of a charge itself its receipt is known, `tat` right after it. Up to any later moment the bucket missed at
least that, less what has flowed in since and less what was given back of this charge and of earlier ones. Later charges
only add to it, as no more is given back of them than they were. Either bound is safe, so the higher one of each stretch
counts, and the least of all stretches since. With refunds that come as often as charges, and with those that come at
one moment, nothing is lost.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from itertools import groupby

_MOST = 256
"""How many stretches are told apart. Of more, neighbours are taken together, and what is given back may be a little
less."""


class Refunds:
    """The stretches between the looks that were taken at a bucket, in the order of its charges.

    A refund divides the stretch that its charge is in, as it lowers only what was missed after that. All lists run in
    parallel, an entry a stretch.
    """

    __slots__ = ("_flowed", "_least", "_returned", "_seen", "_total", "_until")

    _until: list[float]  # `tat` at its end: what has a receipt up to there was charged in it, or before
    _least: list[float]  # what the bucket missed at least, right before each of its charges
    _flowed: list[float]  # what had flowed in by its end, refunds left out
    _returned: list[float]  # what was given back of the charge at its end

    def __init__(self) -> None:
        self._seen = -math.inf  # `tat` at the last look
        self._total = 0.0  # all that was ever given back

    def give(self, amount: float, receipt: float, tat: float, refill: float) -> float:
        """Give back up to `amount` of the charge after which `tat` was `receipt`; return how much that is."""
        receipt = min(receipt, tat)  # the latest may be off by what rounding left when a later one was undone
        self._look(tat, refill)
        # Mostly it has just been charged, and its receipt alone says that all of it is missing.
        back = amount if receipt - refill >= amount else self._possible(amount, receipt, tat, refill)
        if back > 0:
            self._remember(back, receipt)
        return back

    def seen(self, receipt: float) -> bool:
        """Whether the bucket was looked at since the charge of that receipt."""
        return self._seen >= receipt

    def _look(self, tat: float, refill: float) -> None:
        """End a stretch here, if there was a charge in it."""
        if tat <= self._seen:
            return
        least = self._seen - refill
        if least <= 0:  # the first look, or it may have been full in between: nothing comes back of anything before
            self._until, self._least, self._flowed, self._returned = [], [], [], []
        self._until.append(tat)
        self._least.append(least)
        self._flowed.append(refill - self._total)
        self._returned.append(0.0)
        self._seen = tat

    def _possible(self, amount: float, receipt: float, tat: float, refill: float) -> float:
        back = min(amount, tat - refill)
        first = bisect_right(self._until, receipt)
        left = receipt - self._total + sum(self._returned[first:])  # of the charge itself, less what has flowed in
        # In the stretches before this one it is enough, by the receipt alone.
        first = max(first, bisect_right(self._flowed, left - back))
        for at in range(first, len(self._least)):
            back = min(back, max(self._least[at], left - self._flowed[at]))
        return max(0.0, back)

    def _remember(self, back: float, receipt: float) -> None:
        until, least, returned = self._until, self._least, self._returned
        at = bisect_right(until, receipt)
        if at and until[at - 1] == receipt:
            returned[at - 1] += back
        else:
            until.insert(at, receipt)
            least.insert(at, least[at])
            self._flowed.insert(at, self._flowed[at])
            returned.insert(at, back)
            at += 1
        least[at:] = [missed - back for missed in least[at:]]
        self._total += back
        if len(until) > _MOST:
            self._merge()

    def _merge(self) -> None:
        """Take neighbours together, so that about half as many are left, as far apart as each other."""
        until, begin = self._until, self._until[0]
        step = (until[-1] - begin) / (_MOST // 2)
        ends: list[int] = []
        least: list[float] = []
        returned: list[float] = []
        for _, neighbours in groupby(range(len(until)), key=lambda at: int((until[at] - begin) / step)):
            *others, end = neighbours
            if ends:  # what was given back in the middle counts as given back before it all: so it helps fewer
                returned[-1] += sum(self._returned[at] for at in others)
            ends.append(end)
            least.append(min(self._least[at] for at in (*others, end)))
            returned.append(self._returned[end])
        self._until, self._flowed = [until[end] for end in ends], [self._flowed[end] for end in ends]
        self._least, self._returned = least, returned
