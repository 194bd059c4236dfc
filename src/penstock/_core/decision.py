"""The arithmetic of limits that many processes share: one call decides a batch.

Nothing here waits, reads a clock or does I/O. A store keeps one *row* of bytes per name, hands the rows of a batch to
`decide` together with its own time, and writes back what comes out. `stores/scripts` is the same arithmetic for Redis;
a test holds the two together, number by number.

**A row is relative to the moment it was written**: a bucket is its debt at that moment, not an instant at which it will
be full. Debts in units survive any change of the rate, whole costs add up without rounding however far the clock has
run, and a clock that steps back neither grants nor stalls anything: it counts as no time.

**Reservations.** A request that may wait is granted now for later: it is charged *at its admission*, the moment when
all its limits are ready, in each of them. Charging the ready ones at once would let them refill before the call is
made, which breaks two limits by about twice the burst.

**Refunds** follow the rule of the cumulative counter. `total` is all a bucket ever charged. A refund of `back` by a
permit that saw `total = receipt` right after its own charge leaves at least `min(debt, F · rate + total − receipt)` of
debt, F being how far ahead of now the last reservation is: what was charged since then, and what is still to be
admitted, stays.

**Bookings** tell a request that would wait longer than its horizon when to come again, and hold nothing until then: see
`bookings`.

**Flows** share by what a row remembers of them: see `flows`.

A batch and its verdicts are lists of floats: see `operations`. The rows are taken apart in `rows`, and `batch` runs the
operations on them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from penstock._core.batch import BatchRows
from penstock._core.bookings import InLine
from penstock._core.entries import held
from penstock._core.rows import BUCKET, CALENDAR, LOG, WINDOW, DamagedRow, new_row, read_row, write_row


class Decision(NamedTuple):
    """What `decide` found: rows to write, and what to tell the process that asked."""

    rows: list[bytes]  # one per name, in the order they came
    epochs: list[float]  # when each row was born
    verdicts: list[float]  # one after the other, as in `operations`
    states: list[float]  # per limit of all rows: seconds of pause left, used, and what the kind has beside it
    keep: list[float]  # seconds for which each row means something; after that it equals an absent one


def decide(
    rows: Sequence[bytes | None],
    limits: Sequence[Sequence[Sequence[float]]],
    operations: Sequence[float],
    owner: float,
    now: float,
    born: float = -1.0,
) -> Decision:
    """Decide a batch: all operations in their order, at the moment `now`.

    Args:
        rows: Per name what was written last, or None.
        limits: Per name its limits. Operations count the limits of all names through, from 0.
        operations: One after the other, as in `operations`.
        owner: The number of the process that asks; whole, below 2⁵³.
        now: The store's time in microseconds.
        born: The moment before which the store has forgotten everything; below 0: absent rows were never used.

    Raises:
        DamagedRow: One of the rows is not what was once written.
    """
    taken_apart = []
    for index, (row, kinds) in enumerate(zip(rows, limits, strict=True)):
        try:
            taken_apart.append(read_row(row, now, kinds, born))
        except DamagedRow:
            raise DamagedRow(index) from None
    batch = BatchRows(taken_apart, limits, owner, now)
    batch.run(operations)
    states = batch.states()
    written, keep = batch.written()
    return Decision(written, [row.born for row in taken_apart], batch.verdicts, states, keep)


def in_line(row: bytes, limits: Sequence[Sequence[float]], numbers: Sequence[float], now: float) -> list[InLine | None]:
    """How requests stand that wait for places, by the numbers of their bookings; None: the row has no such booking.

    Raises:
        DamagedRow: As in `decide`.
    """
    batch = BatchRows([read_row(row, now, limits)], [limits], 0.0, now)
    return [batch.in_line(number) for number in numbers]


def reshape(
    row: bytes,
    before: Sequence[Sequence[float]],
    after: Sequence[Sequence[float]],
    origin: Sequence[int],
    now: float,
) -> tuple[bytes, float]:
    """The row, and the seconds for which it means something, for new limits. What was used stays used.

    Args:
        row: As it was written last.
        before, after: The limits that were counted until now, and the new ones.
        origin: Per new limit, the old one that it goes on from; below 0: none.
        now: In microseconds since 1970.
    """
    old, new = read_row(row, now, before), new_row(now, after)
    if before:  # else no limit was counted for a while, and nothing is given back of what was charged before
        new.born = old.born
    new.flows = old.flows
    for index, (limit, source) in enumerate(zip(after, origin, strict=True)):
        if source < 0:
            continue
        new.pause[index], new.last[index] = old.pause[source], old.last[source]
        kind, former = limit[0], before[source][0]
        if kind == former and _is_log(limit) == _is_log(before[source]) and kind != CALENDAR:
            new.used[index], new.what[index] = old.used[source], old.what[source]
            new.entries[index] = [list(entry) for entry in old.entries[source]]
            continue
        spent = held(old.entries[source]) if former == WINDOW else old.used[source]
        # What buckets ever charged goes on, over other kinds in between: a permit of the one before gives nothing back.
        total = old.what[source]
        if former == CALENDAR:
            total, new.last[index] = old.last[source], 0.0
        if kind == BUCKET:
            new.used[index], new.what[index] = spent, total + spent
        elif kind == CALENDAR:
            new.used[index], new.last[index] = spent, total
        else:
            new.used[index], new.what[index] = now, total
            if spent and _is_log(limit):
                new.entries[index].append([now + math.ceil(limit[2] * 1e6), 0.0, spent])
    return write_row(new, now, after)


def _is_log(limit: Sequence[float]) -> bool:
    """Whether what it charges comes back with time alone; not where the end of a permit gives it back."""
    return limit[0] == WINDOW and limit[3] == LOG
