"""The limits of the rows of a batch: what may be charged of each and when, and what is charged.

Nothing here waits, reads a clock or does I/O. The operations, and the order of those who wait, are left to `batch`. All
limits of all rows are counted through, from 0, and what is known of them stands in parallel lists, as most batches ask
for two buckets and nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate

from penstock._core import entries
from penstock._core.rows import BUCKET, CALENDAR, LOG, RENEWED, RowState, write_row

_ROUNDING = 1 + 1e-12


class LimitsOfRows:
    """The limits of some rows, at the moment `now`."""

    __slots__ = (
        "_begin_of", "_entries", "_epochs", "_flat", "_free_until", "_last", "_limits", "_now", "_owner", "_pause",
        "_row_of", "_rows", "_used", "_what",
    )  # fmt: skip

    def __init__(
        self, rows: list[RowState], limits: Sequence[Sequence[Sequence[float]]], owner: float, now: float
    ) -> None:
        self._rows = rows
        self._limits = limits
        self._owner = owner
        self._now = now
        self._flat = flat = [limit for kinds in limits for limit in kinds]
        if len(rows) == 1:  # as most: what is written goes into the row at once
            (row,) = rows
            self._pause, self._last, self._used = row.pause, row.last, row.used
            self._what, self._entries = row.what, row.entries
        else:
            self._pause = [value for row in rows for value in row.pause]
            self._last = [value for row in rows for value in row.last]
            self._used = [value for row in rows for value in row.used]
            self._what = [value for row in rows for value in row.what]
            self._entries = [value for row in rows for value in row.entries]
        pause = self._pause
        self._row_of = row_of = [number for number, kinds in enumerate(limits) for _ in kinds]
        self._epochs = [rows[number].born for number in row_of]
        self._begin_of = list(accumulate([len(kinds) for kinds in limits], initial=0))
        # How far each bucket may fill up before a request has to wait; of anything else, and where there is a pause, it
        # is not that simple.
        self._free_until = [
            -1.0
            if kind != BUCKET or pause[limit] or rows[row_of[limit]].bookings
            else second + _forgiven(first, second)
            for limit, (kind, first, second, *_) in enumerate(flat)
        ]

    def written(self) -> tuple[list[bytes], list[float]]:
        """The rows as bytes, and the seconds for which each means something."""
        rows, keep = [], []
        for number, row in enumerate(self._rows):
            mine = slice(*self._begin_of[number : number + 2])
            row.pause, row.last, row.used = self._pause[mine], self._last[mine], self._used[mine]
            row.what, row.entries = self._what[mine], self._entries[mine]
            packed, seconds = write_row(row, self._now, self._limits[number])
            rows.append(packed)
            keep.append(seconds)
        return rows, keep

    def _seconds_until(self, limit: int, amount: float) -> float:
        """Seconds until `amount` could be charged; `inf`: only when another gives back."""
        kind, first, second, third, _ = self._flat[limit]
        if kind == BUCKET:
            over = self._used[limit] + (min(amount, second) if third else amount) - second
            return over / first if over > _forgiven(first, second) else 0.0
        if kind == CALENDAR:
            ends = self._what[limit]
            if self._now >= ends:
                return 1e-6  # the asker is a period behind: its next question will know better
            most, later = first * _ROUNDING - amount, self._entries[limit]
            if self._used[limit] <= most:
                return 0.0
            if later and later[0][0] == third and later[0][2] > most:  # the next period is used up as well
                ends = third
            return (ends - self._now) / 1e6
        log = self._entries[limit]
        over = entries.held(log) + amount - first * _ROUNDING
        if over <= 0:
            return 0.0
        if third != RENEWED:
            for until, _, units in log:
                over -= units
                if over <= 0:
                    return (until - self._now) / 1e6
        return math.inf

    def _charge(self, limit: int, amount: float, after: float) -> float:
        """Charge at the moment `now + after`; return the receipt that a refund needs."""
        kind, first, second, third, _ = self._flat[limit]
        self._last[limit] = max(self._last[limit], after)
        if kind == BUCKET:
            self._used[limit] = max(self._used[limit], after * first) + amount
            self._what[limit] += amount
            return self._what[limit]
        if kind == CALENDAR:
            self._used[limit] += amount
            return self._what[limit]
        log = self._entries[limit]
        until = self._now + math.ceil((after + second) * 1e6)
        if third == RENEWED:
            for index, (before, owner, taken) in enumerate(log):
                if owner == self._owner:
                    del log[index]
                    entries.add(log, max(before, until), owner, taken + amount)
                    return until
        entries.add(log, until, self._owner, amount)
        if third == LOG and len(log) > entries.LONGEST_LOG:
            entries.merge(log)
        return until

    def _charged_since(self, limit: int, receipt: float) -> float:
        """What a bucket charged after the charge of that receipt, and was not given back."""
        back = sum([amount for of, _, amount in self._entries[limit] if of > receipt])
        return max(0.0, self._what[limit] - receipt - back)


def _forgiven(rate: float, burst: float) -> float:
    """Units by which a bucket may be over, as that is rounding."""
    return 0.5e-6 * rate + 1e-12 * burst
