"""The rows of a store: what one name has used, as bytes, and taken apart.

Nothing here waits, reads a clock or does I/O. A row is doubles: when it was written and born; per limit its pause, its
last admission, what is used, what its kind has beside that, and its entries; then the bookings, with an amount for each
limit; then the flows.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence

from penstock._core import bookings
from penstock._core.bookings import Booking
from penstock._core.flows import FLOWS, kept

BUCKET, CALENDAR, WINDOW = 0.0, 1.0, 2.0
"""Kinds of limit."""

LOG, TIMED, RENEWED = 0.0, 1.0, 2.0
"""Modes of a WINDOW. What is charged counts for `ttl` seconds and then comes back: LOG, always (a sliding window);
TIMED, unless the permit ends before (places with a time to live); RENEWED, unless it does, or its owner renews (places
of living processes)."""

LONGEST_KEPT = 1e9
"""Seconds for which a row is kept at most: a debt may take longer to pay, but no store can count that far."""

MOST_NUMBERS = 100_000
"""Numbers in a row beyond which it cannot be ours."""


class DamagedRow(Exception):  # noqa: N818 - what is wrong, as in all of ours
    """A row is not what was once written: numbers are missing, or are no numbers. `index`: which of the rows."""

    def __init__(self, index: int = 0) -> None:
        super().__init__(index)
        self.index = index


class RowState:
    """The state of one name, read from its row: per limit, in parallel lists."""

    __slots__ = ("bookings", "born", "entries", "flows", "last", "pause", "used", "what")

    def __init__(self, born: float) -> None:
        self.born = born
        self.flows: list[list[float]] = []  # [key, of, tag, ahead], as in `flows`
        self.bookings: list[Booking] = []  # as in `bookings`, by their moments
        self.pause: list[float] = []  # seconds until the pause ends
        # Seconds until the last admission that was handed out. Of a calendar: the total of a bucket before it.
        self.last: list[float] = []
        # Debt of a bucket; what a calendar period has spent; since when a window has counted for this kind of limit.
        self.used: list[float] = []
        self.what: list[float] = []  # total of a bucket, or of one before a window; the end of a calendar period
        self.entries: list[
            list[list[float]]
        ] = []  # of a window: [until, owner, amount], of a bucket's refunds: [receipt, 0, amount]; a later period


def is_places(limit: Sequence[float]) -> bool:
    """Whether what is charged there is held, and comes back when a permit ends."""
    return limit[0] == WINDOW and limit[3] != LOG


def seconds_per_unit(limit: Sequence[float]) -> float:
    """How long one unit of a limit takes to flow in; a second, or its window, where all comes back at once."""
    kind, first, second, third, _ = limit
    return second / first if kind == WINDOW and third == LOG else 1.0 / first


def read_row(row: bytes | None, now: float, limits: Sequence[Sequence[float]], born: float = -1.0) -> RowState:
    """Take a row apart and let the time since it was written pass.

    An absent one is full, or empty at the moment `born` unless that is below 0.
    """
    if row is None:
        return new_row(now, limits, born)
    numbers = _numbers_of(row, len(limits))
    state = RowState(numbers[1])
    passed = max(0.0, now - numbers[0]) / 1e6
    at = 2
    for kind, first, second, third, _ in limits:
        pause, last, used, what, count = numbers[at : at + 5]
        at += 5
        entries: list[list[float]] = []
        if count:
            end = at + 3 * int(count)
            entries = [list(numbers[i : i + 3]) for i in range(at, end, 3)]
            at = end
        if kind == BUCKET:
            used = max(0.0, used - passed * first)
            entries = entries if used else []
        elif kind == CALENDAR:
            used, what, entries = _turn_page(used, what, entries, now, second, third)
        else:
            latest = now + math.ceil(second * 1e6) + last * 1e6  # the clock may have stepped back
            entries = [[min(until, latest), owner, amount] for until, owner, amount in entries if until > now]
        state.pause.append(max(0.0, pause - passed))
        state.last.append(last if kind == CALENDAR else max(0.0, last - passed))
        state.used.append(used)
        state.what.append(what)
        state.entries.append(entries)
    width = bookings.AMOUNTS + len(limits)
    flows = at + 1 + width * int(numbers[at])
    for i in range(at + 1, flows, width):
        booking = list(numbers[i : i + width])
        booking[bookings.DUE] -= passed
        booking[bookings.WAITED] += passed
        if booking[bookings.DUE] >= -bookings.EXPIRED:
            state.bookings.append(booking)
    for i in range(flows, len(numbers), 4):
        state.flows.append([numbers[i], numbers[i + 1], numbers[i + 2], numbers[i + 3] - passed])
    return state


def _turn_page(
    used: float, what: float, later: list[list[float]], now: float, second: float, third: float
) -> tuple[float, float, list[list[float]]]:
    """What is used of the calendar period that holds `now`, its end, and what is used of one that is still to come.

    A clock that stood ahead has counted for a period of the future. When it is put back, that count goes on here, so
    that the step frees nothing, and is kept for its own period.

    Args:
        used, what: Of the period that was counted last, and its end.
        later: [end, 0, used] of the period still to come, or nothing.
        now: In microseconds.
        second, third: Ends of the asker's period and of the next one, which may be a period behind or ahead.
    """
    current = second if now < second else third
    if now >= third or what == current or (what < current and now < what):
        return used, what, later
    if what > current:
        return used, current, [[what, 0.0, used]] if used else [each for each in later if each[0] > current]
    came = [each[2] for each in later if each[0] == current]
    return came[0] if came else 0.0, current, [each for each in later if each[0] > current]


def _numbers_of(row: bytes, limits: int) -> tuple[float, ...]:
    """The numbers of a row that counts so many limits; DamagedRow: it is not what was once written."""
    had = len(row) // 8
    if len(row) % 8 or had > MOST_NUMBERS:
        raise DamagedRow
    numbers = struct.unpack(f">{had}d", row)
    if not all(map(math.isfinite, numbers)):
        raise DamagedRow
    at = 2
    for _ in range(limits):
        if at + 5 > had or min(numbers[at : at + 5]) < 0:
            raise DamagedRow
        size = numbers[at + 4]
        at += 5
        if size:  # most have no entries
            end = at + 3 * size
            if size % 1 or end > had or min(numbers[at + 2 : int(end) : 3]) < 0:
                raise DamagedRow
            at = int(end)
    count, width = numbers[at] if at < had else -1.0, bookings.AMOUNTS + limits
    flows = at + 1 + width * count
    if not 0 <= count <= bookings.MOST or count % 1 or flows > had or (had - flows) % 4 or had - flows > 4 * FLOWS:
        raise DamagedRow
    for begin in range(at + 1, int(flows), width):
        if numbers[begin + bookings.AGEING] <= 0 or min(numbers[begin + bookings.SHARE : begin + width]) < 0:
            raise DamagedRow
    return numbers


def new_row(now: float, limits: Sequence[Sequence[float]], born: float = -1.0) -> RowState:
    state = RowState(now)
    lost = born >= 0  # the store's memory begins at `born`: whatever was used before that is taken for all of it
    age = (now - born) / 1e6
    for kind, first, second, third, _ in limits:
        used = what = 0.0
        entries: list[list[float]] = []
        if kind == BUCKET:
            used = max(0.0, second - age * first) if lost else 0.0
        elif kind == CALENDAR:
            if now < third:
                what = second if now < second else third
            used = first if lost and born < what and now - born < what - now else 0.0
        elif lost and age < second:
            entries.append([born + math.ceil(second * 1e6), 0.0, first])
        state.pause.append(0.0)
        state.last.append(0.0)
        state.used.append(used)
        state.what.append(what)
        state.entries.append(entries)
    return state


def write_row(state: RowState, now: float, limits: Sequence[Sequence[float]]) -> tuple[bytes, float]:
    numbers = [now, state.born]
    keep = 0.0
    for index, (kind, first, *_) in enumerate(limits):
        entries = state.entries[index]
        used, what = state.used[index], state.what[index]
        if kind == BUCKET:
            keep = max(keep, used / first)
        elif kind == CALENDAR:
            keep = max(keep, ((entries[0][0] if entries else what) - now) / 1e6)
        elif entries:
            keep = max(keep, (entries[-1][0] - now) / 1e6)
        keep = max(keep, state.pause[index])
        numbers += (state.pause[index], state.last[index], used, what, float(len(entries)))
        for entry in entries:
            numbers += entry
    numbers.append(float(len(state.bookings)))
    for booking in state.bookings:
        numbers += booking
        keep = max(keep, booking[bookings.DUE] + bookings.EXPIRED)
    for flow in kept(state.flows):
        numbers += flow
    return struct.pack(f">{len(numbers)}d", *numbers), min(keep, LONGEST_KEPT)
