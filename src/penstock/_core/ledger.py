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

**Bookings** tell a request that would wait longer than its horizon when to come again, and hold nothing until then: see `bookings`.

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
    RANK         priority waited ageing       how urgent and how old the requests that follow are, and in how many seconds they rise by a level
    PLACE        number due within            the next request is given a booking of that number if it would have to wait longer than its
                                              horizon, and at most `within` seconds: −1 − wait BOOKED. `due`: it has one already, for that moment
                                              (seconds from now), and claims it; NEW: it has none
    DROP         number limit                 the booking of that number is not needed any more, as far as the row of that limit knows it

Moments (`now`, ends, epochs) are microseconds since 1970, whole; durations are seconds. `epoch` is when a row was born: a permit
of a row that was lost since gives nothing back to its successor.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate

from penstock._core import bookings
from penstock._core.bookings import AMOUNTS, NEW, Asker, Booking
from penstock._core.flows import ALONE, LATE, Turn, leave
from penstock._core.rows import BUCKET, CALENDAR, LOG, RENEWED, TIMED, WINDOW, DamagedRow, new_row, read_row, write_row

__all__ = [
    "ACQUIRE",
    "BOOKED",
    "BUCKET",
    "CALENDAR",
    "CHARGE",
    "DROP",
    "FLOW",
    "GIVE_BACK",
    "LEAVE",
    "LOG",
    "LOWER",
    "NEW",
    "PAUSE",
    "PLACE",
    "RANK",
    "RENEW",
    "RENEWED",
    "RESUME",
    "TIMED",
    "WINDOW",
    "DamagedRow",
    "Decision",
    "decide",
    "reshape",
]

ACQUIRE, GIVE_BACK, CHARGE, PAUSE, LOWER, RENEW, FLOW, LEAVE, RESUME = 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0
RANK, PLACE, DROP = 10.0, 11.0, 12.0
"""Operations."""

BOOKED = -0.5
"""In a verdict, where the number of a limit would be: the request has a booking."""

NOWHERE = (0.0, NEW, -1.0)
"""In the place of a booking, its moment and the longest wait, of requests that get none."""

AGEING = 30.0
"""Of requests whose age was not said."""

REFUNDS = 32
"""Refunds that a bucket remembers; of more, the two with the lowest receipts become one, which gives back a little less."""

LONGEST_LOG = 256
"""Entries of a window beyond which neighbours are merged into the later one: that keeps the limit and frees the earlier part late."""

_ROUNDING = 1 + 1e-12


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
            states.append(read_row(row, now, kinds, born))
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

    def seconds_of(charges: Sequence[tuple[int, float]]) -> float:
        """Seconds of throughput that a request takes, of whatever it takes most of."""
        return max([amount * _seconds(flat[limit]) for limit, amount in charges])

    def amounts_of(charges: Sequence[tuple[int, float]], row: int) -> list[float]:
        """What a request takes from each limit of a row."""
        amounts = [0.0] * len(limits[row])
        for limit, amount in charges:
            if row_of[limit] == row:
                amounts[limit - begin_of[row]] += amount
        return amounts

    def asker_of(charges: Sequence[tuple[int, float]]) -> Asker:
        """What a request passes others by."""
        share = seconds_of(charges)
        asker = Asker(priority, waited, ageing, share)
        if turn is not None:
            asker.key, asker.share = turn.key, share * turn.inverse
            asker.start, asker.member_start = turn.starts(spent)
        return asker

    def claim(
        charges: Sequence[tuple[int, float]], rows: Sequence[int], number: float, due: float, asker: Asker
    ) -> bool:
        """Take the booking of a request out of its rows; whether there was one."""
        claimed = False
        for row in rows:
            booking = bookings.mine(states[row].bookings, number, due, amounts_of(charges, row))
            claimed = claimed or booking is not None
            if booking is not None and booking[bookings.ID] and row == payer:
                asker.start, asker.member_start = booking[bookings.START], booking[bookings.MEMBER_START]
        return claimed

    def others(rows: Sequence[int], asker: Asker, *, claims: bool) -> dict[int, list[Booking]]:
        """Per row, the bookings that a request must not delay."""
        return {
            row: bookings.before(states[row].bookings, asker if row == payer else asker.without_flow(), claims=claims)
            for row in rows
        }

    def delays(charges: Sequence[tuple[int, float]], found: dict[int, list[Booking]], after: float) -> bool:
        """Whether one of these would come later if a request went `after` seconds from now."""
        for limit, amount in charges:
            kind, first, second, third, _ = flat[limit]
            row = row_of[limit]
            if kind == BUCKET and found[row]:
                column, need = bookings.AMOUNTS + limit - begin_of[row], min(amount, second) if third else amount
                if bookings.delays(found[row], column, (used[limit], first, second), need, after):
                    return True
        return False

    def behind(charges: Sequence[tuple[int, float]], found: dict[int, list[Booking]]) -> tuple[float, int]:
        """In how many seconds a request may go once all of these have had theirs, and the limit that is ready last."""
        longest, blocker = 1e-6, charges[0][0]
        for limit, amount in charges:
            kind, first, second, third, _ = flat[limit]
            if kind == BUCKET:
                row = row_of[limit]
                need = min(amount, second) if third else amount
                over = (
                    used[limit] + bookings.taken(found[row], bookings.AMOUNTS + limit - begin_of[row]) + need - second
                )
                if over / first > longest:
                    longest, blocker = over / first, limit
        return longest, blocker

    def book(
        charges: Sequence[tuple[int, float]], rows: Sequence[int], number: float, due: float, asker: Asker
    ) -> None:
        """Note when a request is to come again, in all rows that it is about."""
        for row in rows:
            of = asker if row == payer else asker.without_flow()
            booking = [number, due, priority, waited, ageing, of.key, of.start, of.member_start, of.share]
            bookings.add(states[row].bookings, booking + amounts_of(charges, row))
            for limit in range(begin_of[row], begin_of[row + 1]):
                free_until[limit] = -1.0

    # How far each bucket may fill up before somebody has to wait; of anything else, and where there is a pause, it is not that simple.
    row_of = [row for row, kinds in enumerate(limits) for _ in kinds]
    begin_of = list(accumulate([len(kinds) for kinds in limits], initial=0))
    free_until = [
        -1.0
        if kind != BUCKET or third or pause[limit] or states[row_of[limit]].bookings
        else second + 0.5e-6 * first + 1e-12 * second
        for limit, (kind, first, second, third, _) in enumerate(flat)
    ]
    priority, waited, ageing = 0.0, 0.0, AGEING
    place: tuple[float, float, float] | None = None  # of the request that follows: number, due, within
    payer = -1  # the row that knows the flow
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
                    place = None
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
            charges = [(int(operations[index]), operations[index + 1]) for index in range(first_of, at, 2)]
            if not fixed and longest > 0:
                for limit, _ in charges:
                    if flat[limit][0] == CALENDAR and now + longest * 1e6 >= what[limit]:
                        fixed, blocker, longest = True, limit, max(longest, (what[limit] - now) / 1e6)
            (number, due, within), place = place or NOWHERE, None
            asker, claims, crowded, passes = None, False, False, True
            rows_of = [row_of[limit] for limit, _ in charges]
            if number or any(states[row].bookings for row in rows_of):
                rows_of, asker = list(dict.fromkeys(rows_of)), asker_of(charges)
                claims = due != NEW and claim(charges, rows_of, number, due, asker)
                crowded = any(states[row].bookings for row in rows_of)
            if asker is not None and crowded and not fixed:
                passes = longest <= horizon and not delays(charges, others(rows_of, asker, claims=claims), longest)
                if not passes:  # where it was passed it goes to the end, so the next ones keep their moments
                    after_all, last_ready = behind(charges, others(rows_of, asker, claims=False))
                    if after_all > longest:
                        longest, blocker = after_all, last_ready
            goes = passes and longest <= horizon and not fixed
            if longest > 0 and spent > room and stops and not (fixed or crowded or claims or (number and not goes)):
                assert turn is not None, "nobody else has bounds"
                again = turn.again(spent)
                ahead = max(ahead, again + LATE)
                verdicts += (-1.0 - again, -1.0 - (spent - room))
                continue
            if goes:
                verdicts.append(longest)
                verdicts += [charge(limit, amount, longest) for limit, amount in charges]
            elif asker is not None and longest <= within and not fixed:
                verdicts += (-1.0 - longest, BOOKED)
                if claims:  # who comes behind it is to have no place of its own beside it
                    stopped.update([of for of, _ in charges])
                if claims and turn is not None:
                    start, member_start = turn.starts(spent)
                    asker.start, asker.member_start = start if member_start == ALONE else asker.start, member_start
                    turn.passed(asker.share)
                book(charges, rows_of, number, longest, asker)
            else:
                verdicts += (-1.0 - longest, blocker)
                if stops:
                    stopped.update(
                        [of for of, amount in charges if not passes or max(wait_of(of, amount), pause[of]) > 0]
                    )
                continue
            if turn is not None:
                if not claims:
                    spent += seconds_of(charges) * turn.inverse
                ahead = max(ahead, longest)
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
            payer = row_of[int(of)]
            knows = states[payer]
            turn = Turn(knows.flows, key, member, weight, bookings.starts(knows.bookings, key, alone=not member))
            room, spent, ahead = turn.room, 0.0, waits or -math.inf
        elif operation == LEAVE:
            key, member, seconds, of = operations[at + 1 : at + 5]
            at += 5
            leave(states[row_of[int(of)]].flows, key, member, seconds)
        elif operation == RANK:
            priority, waited, ageing = operations[at + 1 : at + 4]
            at += 4
        elif operation == PLACE:
            place = (operations[at + 1], operations[at + 2], operations[at + 3])
            at += 4
        elif operation == DROP:
            bookings.drop(states[row_of[int(operations[at + 2])]].bookings, operations[at + 1])
            at += 3
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
            booked_too = sum(
                [booking[AMOUNTS + limit - begin_of[row_of[limit]]] for booking in states[row_of[limit]].bookings]
            )
            told += (pause[limit], used[limit] + booked_too if kind == BUCKET else used[limit], what[limit])
    written, keep, begin = [], [], 0
    for state, kinds in zip(states, limits, strict=True):
        stop = begin + len(kinds)
        state.pause, state.last, state.used = pause[begin:stop], last[begin:stop], used[begin:stop]
        state.what, state.entries = what[begin:stop], entries[begin:stop]
        row, seconds = write_row(state, now, kinds)
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
    old = read_row(row, now, before, -1.0)
    new = new_row(now, after, -1.0)
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
    return write_row(new, now, after)
