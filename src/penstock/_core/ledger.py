"""The arithmetic of limits that many processes share: one call decides a batch.

Nothing here waits, reads a clock or does I/O. A store keeps one *row* of bytes per name, hands the rows of a batch to `decide`
together with its own time, and writes back what comes out. `stores/decide.lua` is the same arithmetic for Redis; a test
holds the two together, number by number.

**A row is relative to the moment it was written**: a bucket is its debt at that moment, not an instant at which it will
be full. Debts in units survive any change of the rate, whole costs add up without rounding however far the clock has run, and a
clock that steps back neither grants anything nor stalls anybody: no time has passed, that is all.

**Reservations.** A request that may wait is granted now for later: it is charged *at its admission*, the moment when all its
limits are ready, in each of them. Charging the ready ones at once would let them refill before the call is made, which breaks
two limits by about twice the burst.

**Refunds** follow the rule of the cumulative counter. `total` is all a bucket ever charged. A refund of `back` by a permit
that saw `total = receipt` right after its own charge leaves at least `min(debt, F · rate + total − receipt)` of debt, F being how
far ahead of now the last reservation is: what was charged since then, and what is still to be admitted, stays.

**Flows** share by what a row remembers of them: see `flows`.

A batch, its verdicts and the rows are plain lists of floats, so that all stores can speak the same:

    limit        kind, and four numbers:  BUCKET rate burst overdraft –   CALENDAR amount end next_end –   WINDOW amount ttl mode –
    ACQUIRE      horizon stops n (limit amount)ⁿ           → wait receiptⁿ, or −1 − wait and the limit that is ready last; −1 − seconds where it is another flow's turn
    GIVE_BACK    n (limit amount epoch receipt)ⁿ
    CHARGE       n (limit amount)ⁿ                         → receiptⁿ
    PAUSE        seconds n (limit)ⁿ
    RESUME       n (limit)ⁿ                                 a pause ends
    LOWER        n (limit level age epoch receipt)ⁿ
    RENEW        n (limit)ⁿ
    FLOW         key member weight limit waits      whose the following requests are, as the row of that limit knows it; there may be
                                                    none, as it waits behind others of its process, for so many seconds
    LEAVE        key member seconds limit     a reservation worth so much of its throughput goes back

Moments (`now`, ends, epochs) are microseconds since 1970, whole; durations are seconds. `epoch` is when a row was born: a permit
of a row that was lost since gives nothing back to its successor.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence

from penstock._core.flows import LATE, Turn, kept, leave

__all__ = [
    "ACQUIRE",
    "BUCKET",
    "CALENDAR",
    "CHARGE",
    "FLOW",
    "GIVE_BACK",
    "LEAVE",
    "LOWER",
    "PAUSE",
    "RENEW",
    "RESUME",
    "WINDOW",
    "DamagedRow",
    "Decision",
    "decide",
    "reshape",
]

BUCKET, CALENDAR, WINDOW = 0.0, 1.0, 2.0
"""Kinds of limit."""

LOG, TIMED, RENEWED = 0.0, 1.0, 2.0
"""Modes of a WINDOW. What is charged counts for `ttl` seconds and then comes back: LOG, always (a sliding window); TIMED, unless the
permit ends before (places with a time to live); RENEWED, unless it does, or its owner renews (places of living processes)."""

ACQUIRE, GIVE_BACK, CHARGE, PAUSE, LOWER, RENEW, FLOW, LEAVE, RESUME = 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0
"""Operations."""

REFUNDS = 32
"""Refunds that a bucket remembers; of more, the two with the lowest receipts become one, which gives back a little less."""

LONGEST_LOG = 256
"""Entries of a window beyond which neighbours are merged into the later one: that keeps the limit and frees the earlier part late."""

_ROUNDING = 1 + 1e-12


LONGEST_KEPT = 1e9
"""Seconds for which a row is kept at most: a debt may take longer to pay, but no store can count that far."""

MOST_NUMBERS = 100_000
"""Numbers in a row beyond which it cannot be ours."""


class DamagedRow(Exception):  # noqa: N818 - what is wrong, as in all of ours
    """A row is not what was once written: numbers are missing, or are no numbers. `index`: which of the rows."""

    def __init__(self, index: int = 0) -> None:
        super().__init__(index)
        self.index = index


class _Row:
    """What one name has used, taken apart: per limit, in parallel lists."""

    __slots__ = ("born", "entries", "flows", "last", "pause", "used", "what")

    def __init__(self, born: float) -> None:
        self.born = born
        self.flows: list[list[float]] = []  # [key, of, tag, ahead], as in `flows`
        self.pause: list[float] = []  # seconds until the pause ends
        self.last: list[float] = []  # seconds until the last admission that was handed out
        self.used: list[float] = []  # debt of a bucket; what a calendar period has spent
        self.what: list[float] = []  # total of a bucket; the end of a calendar period
        self.entries: list[
            list[list[float]]
        ] = []  # of a window: [until, owner, amount], of a bucket's refunds: [receipt, 0, amount]


class Decision:
    """What `decide` found: rows to write, and what to tell whoever asked.

    Attributes:
        rows: One per name, in the order they came.
        epochs: When each row was born.
        verdicts: One after the other, as in the module's docstring.
        states: Per limit of all rows: seconds of pause left, used, and what the kind has beside it.
        keep: Seconds for which each row means something; after that it equals an absent one.
    """

    __slots__ = ("epochs", "keep", "rows", "states", "verdicts")

    def __init__(
        self, rows: list[bytes], epochs: list[float], verdicts: list[float], states: list[float], keep: list[float]
    ) -> None:
        self.rows = rows
        self.epochs = epochs
        self.verdicts = verdicts
        self.states = states
        self.keep = keep


def _read(row: bytes | None, now: float, limits: Sequence[Sequence[float]], born: float) -> _Row:
    """Take a row apart and let the time since it was written pass; an absent one is full, or empty at the moment `born`."""
    if row is None:
        return _new(now, limits, born)
    numbers = _numbers_of(row, len(limits))
    state = _Row(numbers[1])
    passed = max(0.0, now - numbers[0]) / 1e6
    at = 2
    for kind, first, second, third, _ in limits:
        pause, last, used, what, count = numbers[at : at + 5]
        at += 5
        entries = [list(numbers[i : i + 3]) for i in range(at, at + 3 * int(count), 3)]
        at += 3 * int(count)
        if kind == BUCKET:
            used = max(0.0, used - passed * first)
            if used == 0:
                entries = []
        elif kind == CALENDAR:
            if now >= what and now < third:
                used, what = 0.0, second if now < second else third
        else:
            latest = now + math.ceil(second * 1e6) + last * 1e6  # the clock may have stepped back
            entries = [[min(until, latest), owner, amount] for until, owner, amount in entries if until > now]
        state.pause.append(max(0.0, pause - passed))
        state.last.append(max(0.0, last - passed))
        state.used.append(used)
        state.what.append(what)
        state.entries.append(entries)
    for i in range(at, len(numbers), 4):
        state.flows.append([numbers[i], numbers[i + 1], numbers[i + 2], numbers[i + 3] - passed])
    return state


def _numbers_of(row: bytes, limits: int) -> tuple[float, ...]:
    """The numbers of a row that counts so many limits.

    Raises:
        DamagedRow: It is not what was once written.
    """
    had = len(row) // 8
    if len(row) % 8 or had < 2 or had > MOST_NUMBERS:
        raise DamagedRow
    numbers = struct.unpack(f">{had}d", row)
    if not all(map(math.isfinite, numbers)):
        raise DamagedRow
    at = 2
    for _ in range(limits):
        if at + 5 > had or min(numbers[at : at + 4]) < 0:
            raise DamagedRow
        size = numbers[at + 4]
        end = at + 5 + 3 * size
        if size < 0 or size % 1 or end > had or any(amount < 0 for amount in numbers[at + 7 : int(end) : 3]):
            raise DamagedRow
        at = int(end)
    if (had - at) % 4:
        raise DamagedRow
    return numbers


def _new(now: float, limits: Sequence[Sequence[float]], born: float) -> _Row:
    state = _Row(now)
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


def _write(state: _Row, now: float, limits: Sequence[Sequence[float]]) -> tuple[bytes, float]:
    numbers = [now, state.born]
    keep = 0.0
    for index, (kind, first, *_) in enumerate(limits):
        entries = state.entries[index]
        used, what = state.used[index], state.what[index]
        if kind == BUCKET:
            keep = max(keep, used / first)
        elif kind == CALENDAR:
            keep = max(keep, (what - now) / 1e6)
        elif entries:
            keep = max(keep, (entries[-1][0] - now) / 1e6)
        keep = max(keep, state.pause[index])
        numbers += (state.pause[index], state.last[index], used, what, float(len(entries)))
        for entry in entries:
            numbers += entry
    for flow in kept(state.flows):
        numbers += flow
    return struct.pack(f">{len(numbers)}d", *numbers), min(keep, LONGEST_KEPT)


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
        operations: One after the other, as in the module's docstring.
        owner: Whose batch it is; a whole number below 2⁵³.
        now: The store's time in microseconds.
        born: The moment before which the store has forgotten everything; below 0: absent rows were never used.

    Raises:
        DamagedRow: One of the rows is not what was once written.
    """
    states = []
    for index, (row, kinds) in enumerate(zip(rows, limits, strict=True)):
        try:
            states.append(_read(row, now, kinds, born))
        except DamagedRow:
            raise DamagedRow(index) from None
    flat = [limit for kinds in limits for limit in kinds]
    pause = [value for state in states for value in state.pause]
    last = [value for state in states for value in state.last]
    used = [value for state in states for value in state.used]
    what = [value for state in states for value in state.what]
    entries = [value for state in states for value in state.entries]
    epochs = [state.born for state, kinds in zip(states, limits, strict=True) for _ in kinds]
    stopped: set[int] = set()
    verdicts: list[float] = []

    def wait_of(limit: int, amount: float) -> float:
        """Seconds until `amount` could be charged; `inf`: only when somebody gives back."""
        kind, first, second, third, _ = flat[limit]
        if kind == BUCKET:
            over = used[limit] + (min(amount, second) if third else amount) - second
            return over / first if over > 0.5e-6 * first + 1e-12 * second else 0.0
        if kind == CALENDAR:
            if now >= what[limit]:
                return 1e-6  # whoever asks is a period behind: its next question will know better
            over = used[limit] + amount - first * _ROUNDING
            return (what[limit] - now) / 1e6 if over > 0 else 0.0
        over = sum([entry[2] for entry in entries[limit]]) + amount - first * _ROUNDING
        if over <= 0:
            return 0.0
        if third != RENEWED:
            for until, _, held in entries[limit]:
                over -= held
                if over <= 0:
                    return (until - now) / 1e6
        return math.inf

    def charge(limit: int, amount: float, after: float) -> float:
        """Charge at the moment `now + after`; return the receipt that a refund needs."""
        kind, first, second, third, _ = flat[limit]
        last[limit] = max(last[limit], after)
        if kind == BUCKET:
            used[limit] = max(used[limit], after * first) + amount
            what[limit] += amount
            return what[limit]
        if kind == CALENDAR:
            used[limit] += amount
            return what[limit]
        log = entries[limit]
        until = now + math.ceil((after + second) * 1e6)
        if third == RENEWED:
            for entry in log:
                if entry[1] == owner:
                    entry[0] = max(entry[0], until)
                    entry[2] += amount
                    log.sort(key=_until)
                    return until
        log.append([until, owner, amount])
        log.sort(key=_until)
        if third == LOG and len(log) > LONGEST_LOG:
            _merge(log)
        return until

    def charged_since(limit: int, receipt: float) -> float:
        """What a bucket charged after the charge of that receipt, and was not given back."""
        back = sum([amount for of, _, amount in entries[limit] if of > receipt])
        return max(0.0, what[limit] - receipt - back)

    # How far each bucket may fill up before somebody has to wait; of anything else, and where there is a pause, it is not that simple.
    free_until = [
        -1.0 if kind != BUCKET or third or pause[limit] else second + 0.5e-6 * first + 1e-12 * second
        for limit, (kind, first, second, third, _) in enumerate(flat)
    ]
    row_of = [row for row, kinds in enumerate(limits) for _ in kinds]
    turn: Turn | None = None  # of the flow whose the requests that follow are
    room, spent, ahead = (
        math.inf,
        0.0,
        -math.inf,
    )  # seconds of throughput that it may have, and has had; its last admission
    at, end = 0, len(operations)
    while at < end:
        operation = operations[at]
        if operation == ACQUIRE:
            horizon, stops, count = operations[at + 1 : at + 4]
            if count == 2 and not stopped:  # as most are: two buckets, and both can
                one, two = int(operations[at + 4]), int(operations[at + 6])
                first_amount, second_amount = operations[at + 5], operations[at + 7]
                full, filled = used[one] + first_amount, used[two] + second_amount
                if full <= free_until[one] and filled <= free_until[two] and one != two:
                    at += 8
                    if turn is not None:
                        share, other = first_amount / flat[one][1], second_amount / flat[two][1]
                        spent += (share if share > other else other) * turn.inverse
                        ahead = max(ahead, 0.0)
                    used[one], used[two] = full, filled
                    what[one] += first_amount
                    what[two] += second_amount
                    verdicts += (0.0, what[one], what[two])
                    continue
            first_of, at = at + 4, at + 4 + 2 * int(count)
            longest, blocker, fixed = 0.0, -1, False
            for index in range(first_of, at, 2):
                limit = int(operations[index])
                wait = wait_of(limit, operations[index + 1])
                if wait > 0 and flat[limit][0] != BUCKET:
                    fixed = True  # what comes back all at once cannot be had in advance
                if pause[limit] > wait:
                    wait, fixed = pause[limit], True  # it may be lifted, and a reservation would stay where it is
                if limit in stopped:
                    fixed = True
                if wait > longest or (fixed and blocker < 0):
                    longest, blocker = wait, limit
            if not fixed and longest > 0:
                for index in range(first_of, at, 2):
                    limit = int(operations[index])
                    if flat[limit][0] == CALENDAR and now + longest * 1e6 >= what[limit]:
                        fixed, blocker, longest = True, limit, max(longest, (what[limit] - now) / 1e6)
            if longest > 0 and spent > room and stops and not fixed:
                assert turn is not None, "nobody else has bounds"
                again = turn.again(spent)
                ahead = max(ahead, again + LATE)
                verdicts += (-1.0 - again, -1.0 - (spent - room))
            elif longest <= horizon and not fixed:
                verdicts.append(longest)
                for index in range(first_of, at, 2):
                    verdicts.append(charge(int(operations[index]), operations[index + 1], longest))
                if turn is not None:
                    shares = [
                        operations[index + 1] * _seconds(flat[int(operations[index])])
                        for index in range(first_of, at, 2)
                    ]
                    spent += max(shares) * turn.inverse
                    ahead = max(ahead, longest)
            else:
                verdicts += (-1.0 - longest, blocker)
                if stops:
                    for index in range(first_of, at, 2):
                        limit = int(operations[index])
                        if max(wait_of(limit, operations[index + 1]), pause[limit]) > 0:
                            stopped.add(limit)
        elif operation == GIVE_BACK:
            first_of, at = at + 2, at + 2 + 4 * int(operations[at + 1])
            for index in range(first_of, at, 4):
                limit, amount, epoch, receipt = int(operations[index]), *operations[index + 1 : index + 4]
                if epoch != epochs[limit]:
                    continue
                kind, first, _, third, _ = flat[limit]
                if kind == BUCKET:
                    least = min(used[limit], last[limit] * first + charged_since(limit, receipt))
                    used[limit] = max(used[limit] - amount, least)
                    _remember(entries[limit], receipt, amount)
                elif kind == CALENDAR:
                    if receipt == what[limit]:
                        used[limit] = max(0.0, used[limit] - amount)
                elif third == RENEWED or receipt > now:  # else it has come back by itself, and what is there is others'
                    _release(entries[limit], amount, owner, receipt, third)
        elif operation == CHARGE:
            first_of, at = at + 2, at + 2 + 2 * int(operations[at + 1])
            for index in range(first_of, at, 2):
                verdicts.append(charge(int(operations[index]), operations[index + 1], 0.0))
        elif operation == PAUSE:
            seconds = operations[at + 1]
            first_of, at = at + 3, at + 3 + int(operations[at + 2])
            for index in range(first_of, at):
                limit = int(operations[index])
                pause[limit] = max(pause[limit], seconds)
                if seconds > 0:
                    free_until[limit] = -1.0
        elif operation == RESUME:
            first_of, at = at + 2, at + 2 + int(operations[at + 1])
            for index in range(first_of, at):
                pause[int(operations[index])] = 0.0
        elif operation == LOWER:
            first_of, at = at + 2, at + 2 + 5 * int(operations[at + 1])
            for index in range(first_of, at, 5):
                limit, level, age, epoch, receipt = int(operations[index]), *operations[index + 1 : index + 5]
                kind, first, second, third, _ = flat[limit]
                if kind == BUCKET:
                    if epoch == epochs[limit]:
                        level += age * first - charged_since(limit, receipt)
                    missing = second - level - used[limit]
                    if missing > 0:
                        used[limit] += missing
                        what[limit] += missing
                elif kind == CALENDAR:
                    used[limit] = max(used[limit], first - level)
                elif third == LOG:
                    missing = first - sum([entry[2] for entry in entries[limit]]) - level
                    if missing > 0:
                        charge(limit, missing, 0.0)
        elif operation == FLOW:
            if turn is not None:
                turn.close(spent, ahead)
            key, member, weight, of, waits = operations[at + 1 : at + 6]
            at += 6
            turn = Turn(states[row_of[int(of)]].flows, key, member, weight)
            room, spent, ahead = turn.room, 0.0, waits or -math.inf
        elif operation == LEAVE:
            key, member, seconds, of = operations[at + 1 : at + 5]
            at += 5
            leave(states[row_of[int(of)]].flows, key, member, seconds)
        else:
            assert operation == RENEW, f"operation {operation} at {at}"
            first_of, at = at + 2, at + 2 + int(operations[at + 1])
            for index in range(first_of, at):
                limit = int(operations[index])
                for entry in entries[limit]:
                    if entry[1] == owner:
                        entry[0] = now + math.ceil(flat[limit][2] * 1e6)
                entries[limit].sort(key=_until)

    if turn is not None:
        turn.close(spent, ahead)
    told: list[float] = []
    for limit, (kind, *_) in enumerate(flat):
        log = entries[limit]
        if kind == WINDOW:
            told += (pause[limit], sum([entry[2] for entry in log]), log[0][0] if log else 0.0)
        else:
            told += (pause[limit], used[limit], what[limit])
    written, keep, begin = [], [], 0
    for state, kinds in zip(states, limits, strict=True):
        stop = begin + len(kinds)
        state.pause, state.last, state.used = pause[begin:stop], last[begin:stop], used[begin:stop]
        state.what, state.entries = what[begin:stop], entries[begin:stop]
        row, seconds = _write(state, now, kinds)
        written.append(row)
        keep.append(seconds)
        begin = stop
    return Decision(written, [state.born for state in states], verdicts, told, keep)


def _seconds(limit: Sequence[float]) -> float:
    """How long one unit of that limit takes to flow in. What comes back all at once counts as if it took a second, or its window."""
    kind, first, second, third, _ = limit
    return second / first if kind == WINDOW and third == LOG else 1.0 / first


def _until(entry: list[float]) -> float:
    return entry[0]


def _remember(refunds: list[list[float]], receipt: float, amount: float) -> None:
    """Note that `amount` of the charge of that receipt is none any more."""
    index = len(refunds)
    while index and refunds[index - 1][0] > receipt:
        index -= 1
    if index and refunds[index - 1][0] == receipt:
        refunds[index - 1][2] += amount
        return
    refunds.insert(index, [receipt, 0.0, amount])
    if len(refunds) > REFUNDS:
        refunds[0][2] += refunds[1][2]  # the lower receipt: only charges before both may count on either
        del refunds[1]


def _merge(log: list[list[float]]) -> None:
    """Halve a log: each entry of two goes into its later neighbour."""
    merged = [[later[0], later[1], earlier[2] + later[2]] for earlier, later in zip(log[::2], log[1::2], strict=False)]
    if len(log) % 2:
        merged.append(log[-1])
    log[:] = merged


def _release(log: list[list[float]], amount: float, owner: float, receipt: float, mode: float) -> None:
    """Take `amount` out of the first entry that can be the one that was marked."""
    for index, entry in enumerate(log):
        if entry[1] == owner and (mode == RENEWED or entry[0] >= receipt):
            entry[2] -= min(amount, entry[2])
            if entry[2] <= 0:
                del log[index]
            return


def reshape(
    row: bytes,
    before: Sequence[Sequence[float]],
    after: Sequence[Sequence[float]],
    origin: Sequence[int],
    now: float,
) -> tuple[bytes, float]:
    """The row, and the seconds for which it means something, for the limits `after`, where `before` were counted until now. What was used stays used.

    Args:
        origin: Per new limit, the old one that it goes on from; below 0: none.
    """
    old = _read(row, now, before, -1.0)
    new = _new(now, after, -1.0)
    new.born = old.born
    new.flows = old.flows
    for index, (limit, source) in enumerate(zip(after, origin, strict=True)):
        if source < 0:
            continue
        new.pause[index], new.last[index] = old.pause[source], old.last[source]
        kind, former = limit[0], before[source][0]
        if kind == former and kind != CALENDAR:
            new.used[index], new.what[index] = old.used[source], old.what[source]
            new.entries[index] = [list(entry) for entry in old.entries[source]]
            continue
        spent = sum([entry[2] for entry in old.entries[source]]) if former == WINDOW else old.used[source]
        if kind == WINDOW:
            if spent and limit[3] == LOG:
                new.entries[index].append([now + math.ceil(limit[2] * 1e6), 0.0, spent])
        else:
            new.used[index] = spent
    return _write(new, now, after)
