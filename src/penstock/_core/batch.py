"""A batch: the rows taken apart, and what each operation makes of them.

Nothing here waits, reads a clock or does I/O. `decision` says what the rules are, `operations` how they are asked for.
All limits of all rows are counted through, from 0, and what is known of them stands in parallel lists, as most batches
ask for two buckets and nothing else.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from itertools import accumulate, chain
from operator import add, mul

from penstock._core import bookings, entries
from penstock._core import operations as codes
from penstock._core.bookings import AMOUNTS, DUE, NEW, PRIORITY, WAITED, Asker, Booking
from penstock._core.flows import ALONE, FlowTurn, leave
from penstock._core.operations import ACQUIRE, BOOKED
from penstock._core.rows import BUCKET, CALENDAR, LOG, RENEWED, WINDOW, RowState, write_row

_NO_BOOKING = (0.0, NEW, -1.0)
"""What stands for a booking, its moment and the longest wait, of requests that get none."""

_AGEING = 30.0
"""Of requests whose age was not said, in seconds."""

_ROUNDING = 1 + 1e-12

_FEW_RUNS = 4
"""Runs of a series that are taken one by one."""

Charges = list[tuple[int, float]]
"""What a request takes: (limit, amount), at least one."""


class _Wait:
    """How long a request would have to wait.

    Attributes:
        longest: Seconds until all its limits are ready.
        blocker: The limit that is ready last; below 0: all are ready.
        fixed: Whether it cannot be booked: what comes back all at once, or is paused, is charged when it is
            there.
    """

    __slots__ = ("blocker", "fixed", "longest")

    def __init__(self) -> None:
        self.longest = 0.0
        self.blocker = -1
        self.fixed = False


class BatchRows:
    """The rows of a batch, at the moment `now`, with one method an operation.

    Attributes:
        verdicts: What the operations so far have found.
    """

    __slots__ = (
        "_ageing", "_begin_of", "_booking", "_entries", "_epochs", "_flat", "_free_until", "_kept", "_last", "_limits",
        "_now", "_owner", "_pause", "_payer", "_priority", "_row_of", "_rows", "_stopped", "_turn", "_used",
        "_waited", "_what", "verdicts",
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
        self._epochs = [row.born for row, kinds in zip(rows, limits, strict=True) for _ in kinds]
        self._row_of = row_of = [number for number, kinds in enumerate(limits) for _ in kinds]
        self._begin_of = list(accumulate([len(kinds) for kinds in limits], initial=0))
        # How far each bucket may fill up before a request has to wait; of anything else, and where there is a pause, it
        # is not that simple.
        self._free_until = [
            -1.0
            if kind != BUCKET or pause[limit] or rows[row_of[limit]].bookings
            else second + 0.5e-6 * first + 1e-12 * second
            for limit, (kind, first, second, *_) in enumerate(flat)
        ]
        self._stopped: set[int] = set()  # limits that later requests must not take before an earlier one
        self._kept: set[int] = set()  # the same, but for those that have a booking as the earlier one has
        self._priority, self._waited, self._ageing = 0.0, 0.0, _AGEING  # of the requests that follow
        self._booking: tuple[float, float, float] | None = None  # of the next request: number, due, within
        self._payer = -1  # the row that knows the flow of the requests that follow
        self._turn: FlowTurn | None = None  # and where that flow stands
        self.verdicts: list[float] = []

    def run(self, operations: Sequence[float]) -> None:
        """Run all operations, in their order."""
        at, end = 0, len(operations)
        while at < end:
            operation = operations[at]
            run = _RUN.get(operation)
            assert run is not None, f"operation {operation} at {at}"
            at = run(self, operations, at)
        if self._turn is not None:
            self._turn.close()

    def states(self) -> list[float]:
        """Per limit: seconds of pause left, used, and what the kind has beside it."""
        told: list[float] = []
        for limit, (kind, *_) in enumerate(self._flat):
            log, used = self._entries[limit], self._used[limit]
            if kind == WINDOW:
                told += (self._pause[limit], entries.held(log), log[0][0] if log else 0.0)
                continue
            if kind == BUCKET:
                row = self._row_of[limit]
                used += bookings.taken(self._rows[row].bookings, AMOUNTS + limit - self._begin_of[row])
            told += (self._pause[limit], used, self._what[limit])
        return told

    def written(self) -> tuple[list[bytes], list[float]]:
        """The rows as bytes, and the seconds for which each means something."""
        rows, keep = [], []
        for row, kinds, begin in zip(self._rows, self._limits, self._begin_of, strict=False):
            mine = slice(begin, begin + len(kinds))
            row.pause, row.last, row.used = self._pause[mine], self._last[mine], self._used[mine]
            row.what, row.entries = self._what[mine], self._entries[mine]
            packed, seconds = write_row(row, self._now, kinds)
            rows.append(packed)
            keep.append(seconds)
        return rows, keep

    # Limits

    def _seconds_until(self, limit: int, amount: float) -> float:
        """Seconds until `amount` could be charged; `inf`: only when another gives back."""
        kind, first, second, third, _ = self._flat[limit]
        if kind == BUCKET:
            over = self._used[limit] + (min(amount, second) if third else amount) - second
            return over / first if over > 0.5e-6 * first + 1e-12 * second else 0.0
        if kind == CALENDAR:
            ends = self._what[limit]
            if self._now >= ends:
                return 1e-6  # the asker is a period behind: its next question will know better
            most, later = first * _ROUNDING - amount, self._entries[limit]
            if self._used[limit] <= most:
                return 0.0
            if later and ends < later[0][0] == third and later[0][2] > most:  # the next period is used up as well
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

    # Requests

    def _series(self, operations: Sequence[float], at: int) -> int:
        horizon, stops, width, runs = operations[at + 1 : at + 5]
        count, begin = int(width), at + 5 + int(width)
        end = begin + (1 + count) * int(runs)
        limits = [int(limit) for limit in operations[at + 5 : begin]]
        times = operations[begin : end : 1 + count]
        amounts = [operations[begin + 1 + i : end : 1 + count] for i in range(count)]
        done = part = 0
        if not (self._stopped or self._kept) and len(set(limits)) == count:
            if len(times) > _FEW_RUNS:
                done = self._take_runs(limits, times, amounts)
            for run in range(done, len(times)):
                part = self._take_some(limits, [each[run] for each in amounts], int(times[run]))
                if part < times[run]:
                    break
                done += 1
        elif times:
            self.verdicts.append(0.0)
        for run in range(done, len(times)):
            charges = [x for limit, each in zip(limits, amounts, strict=True) for x in (limit, each[run])]
            for _ in range(int(times[run]) - part):
                self._acquire([ACQUIRE, horizon, stops, width, *charges], 0)
            part = 0
        return end

    def _take_some(self, limits: list[int], amounts: Sequence[float], times: int) -> int:
        """Grant the first of a run, as many as can go at once; return how many those are."""
        count = self._fitting(limits, amounts, times)
        self.verdicts.append(float(count))
        if not count:
            return 0
        share = 0.0
        for limit, amount in zip(limits, amounts, strict=True):
            taken = count * amount
            self.verdicts.append(self._what[limit] + amount)
            self._used[limit] += taken
            self._what[limit] += taken
            share = max(share, taken / self._flat[limit][1])
        self._booking = None
        if self._turn is not None:
            self._turn.took(share, 0.0)
        return count

    def _fitting(self, limits: list[int], amounts: Sequence[float], most: int) -> int:
        """How many requests with these amounts can go at once; `most`, at most."""
        count = most
        for limit, amount in zip(limits, amounts, strict=True):
            used, free = self._used[limit], self._free_until[limit]
            if used + count * amount > free:
                count = min(count, math.floor((free - used) / amount)) if free > used else 0
                while count > 0 and used + count * amount > free:
                    count -= 1
        return count

    def _take_runs(self, limits: list[int], times: Sequence[float], amounts: Sequence[Sequence[float]]) -> int:
        """Grant the first runs of a series while all of a run can go at once; return how many requests those are.

        The same as `_take_some` of each run, in less time where there are many. `amounts`: per limit, of one request of
        each run.
        """
        count, runs = len(times), []
        for limit, each in zip(limits, amounts, strict=True):
            taken = list(map(mul, times, each))
            filled = list(accumulate(taken, initial=self._used[limit]))
            count = min(count, bisect_right(filled, self._free_until[limit]) - 1)
            runs.append((limit, each, taken, filled))
        if count <= 0:
            return 0
        receipts, shares = [], []
        for limit, each, taken, filled in runs:
            totals = list(accumulate(taken[:count], initial=self._what[limit]))
            self._used[limit], self._what[limit] = filled[count], totals[-1]
            receipts.append(map(add, totals, each))
            shares.append([amount / self._flat[limit][1] for amount in taken[:count]])
        self.verdicts += chain.from_iterable(zip(times[:count], *receipts, strict=False))
        self._booking = None
        if self._turn is not None:
            self._turn.took(sum(map(max, zip(*shares, strict=True))), 0.0)
        return count

    def _acquire(self, operations: Sequence[float], at: int) -> int:
        horizon, stops, count = operations[at + 1 : at + 4]
        begin, end = at + 4, at + 4 + 2 * int(count)
        charges = [(int(operations[index]), operations[index + 1]) for index in range(begin, end, 2)]
        (number, due, within), self._booking = self._booking or _NO_BOOKING, None
        asker, claims, crowded, passes, early = None, False, False, True, horizon < due <= within
        wait = self._wait(charges, self._stopped if early else self._stopped | self._kept)
        standing: list[Booking] = []
        rows = [self._row_of[limit] for limit, _ in charges]
        if number or self._crowded(rows):
            rows, asker = list(dict.fromkeys(rows)), self._asker(charges)
            if early:
                standing = self._standing(rows, number, asker)
            else:
                claims = due != NEW and self._claim(charges, rows, number, due, asker)
            crowded = self._crowded(rows)
        if asker is not None and crowded and not wait.fixed:
            found = self._before(rows, asker, number, claims=claims)
            passes = wait.longest <= horizon and not self._delays(charges, found, wait.longest)
            if not passes:  # where it was passed it goes to the end, so the next ones keep their moments
                self._wait_behind(charges, self._before(rows, asker, number, claims=False), wait)
        goes = passes and wait.longest <= horizon and not wait.fixed
        if early and goes and asker is not None:
            claims = self._claim(charges, rows, number, due, asker)
        must_wait = stops and wait.longest > 0
        if early and not goes:  # it keeps its booking, and a later one gets none beside it
            due = min([booking[DUE] for booking in standing], default=due)
            if not wait.fixed:
                due = min(due, wait.longest)
            for booking in standing:
                booking[DUE], booking[PRIORITY], booking[WAITED] = due, self._priority, self._waited
            self.verdicts += (-1.0 - due, BOOKED)
            self._kept.update([limit for limit, _ in charges])
            self._count_turn(charges, due, claims=True)
        elif must_wait and self._is_others_turn() and not (wait.fixed or crowded or claims or (number and not goes)):
            self._let_others_go()
        elif goes:
            self.verdicts.append(wait.longest)
            self.verdicts += [self._charge(limit, amount, wait.longest) for limit, amount in charges]
            self._count_turn(charges, wait.longest, claims=claims)
        elif asker is not None and wait.longest <= within and not wait.fixed:
            self.verdicts += (-1.0 - wait.longest, BOOKED)
            self._book(charges, rows, number, wait.longest, asker, claims=claims)
            self._count_turn(charges, wait.longest, claims=claims)
        else:
            self.verdicts += (-1.0 - wait.longest, wait.blocker)
            if stops:
                self._stopped.update([limit for limit, amount in charges if not passes or self._blocks(limit, amount)])
        return end

    def _wait(self, charges: Charges, stopped: AbstractSet[int]) -> _Wait:
        """How long a request would have to wait if no other asked. `stopped`: limits of which it gets nothing."""
        wait = _Wait()
        for limit, amount in charges:
            seconds = self._seconds_until(limit, amount)
            if seconds > 0 and self._flat[limit][0] != BUCKET:
                wait.fixed = True  # what comes back all at once cannot be had in advance
            if self._pause[limit] > seconds:
                seconds, wait.fixed = (
                    self._pause[limit],
                    True,
                )  # it may be lifted, and a reservation would stay where it is
            if limit in stopped:
                wait.fixed = True
            if seconds > wait.longest or (wait.fixed and wait.blocker < 0):
                wait.longest, wait.blocker = seconds, limit
        if wait.longest > 0 and not wait.fixed:
            for limit, _ in charges:
                if self._flat[limit][0] == CALENDAR and self._now + wait.longest * 1e6 >= self._what[limit]:
                    wait.fixed, wait.blocker = True, limit
                    wait.longest = max(wait.longest, (self._what[limit] - self._now) / 1e6)
        return wait

    def _blocks(self, limit: int, amount: float) -> bool:
        return max(self._seconds_until(limit, amount), self._pause[limit]) > 0

    def _share_of(self, charges: Charges) -> float:
        """Seconds of throughput that a request takes, of the limit that it takes most of."""
        return max([amount * _seconds(self._flat[limit]) for limit, amount in charges])

    # The turn of a flow

    def _is_others_turn(self) -> bool:
        return self._turn is not None and self._turn.is_over

    def _let_others_go(self) -> None:
        """Tell a request when to come again, as its flow is ahead of another that waits."""
        assert self._turn is not None, "only these have bounds"
        self.verdicts += (-1.0 - self._turn.again(), -1.0 - (self._turn.spent - self._turn.room))

    def _count_turn(self, charges: Charges, after: float, *, claims: bool) -> None:
        """Count a request that goes, or will, as its flow's. A claimed booking was counted when it was booked."""
        if self._turn is not None:
            self._turn.took(0.0 if claims else self._share_of(charges), after)

    # Bookings

    def _crowded(self, rows: Sequence[int]) -> bool:
        return any(self._rows[row].bookings for row in rows)

    def _amounts_of(self, charges: Charges, row: int) -> list[float]:
        """What a request takes from each limit of a row."""
        amounts = [0.0] * len(self._limits[row])
        for limit, amount in charges:
            if self._row_of[limit] == row:
                amounts[limit - self._begin_of[row]] += amount
        return amounts

    def _asker(self, charges: Charges) -> Asker:
        """What a request passes others by."""
        share, turn = self._share_of(charges), self._turn
        asker = Asker(self._priority, self._waited, self._ageing, share)
        if turn is not None:
            asker.key, asker.share = turn.key, share * turn.inverse
            asker.start, asker.member_start = turn.starts()
        return asker

    def _claim(self, charges: Charges, rows: Sequence[int], number: float, due: float, asker: Asker) -> bool:
        """Take the booking of a request out of its rows; whether there was one."""
        claimed = False
        for row in rows:
            booking = bookings.mine(self._rows[row].bookings, number, due, self._amounts_of(charges, row))
            claimed = claimed or booking is not None
            if booking is not None and booking[bookings.ID] and row == self._payer:
                asker.start, asker.member_start = booking[bookings.START], booking[bookings.MEMBER_START]
        return claimed

    def _standing(self, rows: Sequence[int], number: float, asker: Asker) -> list[Booking]:
        """The booking of a request in each of its rows that keeps it by itself; it stays there."""
        standing = []
        for row in rows:
            booking = bookings.of_number(self._rows[row].bookings, number)
            if booking is not None:
                standing.append(booking)
                if row == self._payer:
                    asker.start, asker.member_start = booking[bookings.START], booking[bookings.MEMBER_START]
        return standing

    def _before(self, rows: Sequence[int], asker: Asker, number: float, *, claims: bool) -> dict[int, list[Booking]]:
        """Per row, the bookings that a request must not delay."""
        return {
            row: bookings.before(self._rows[row].bookings, self._known_to(row, asker), number, claims=claims)
            for row in rows
        }

    def _known_to(self, row: int, asker: Asker) -> Asker:
        return asker if row == self._payer else asker.without_flow()

    def _delays(self, charges: Charges, found: dict[int, list[Booking]], after: float) -> bool:
        """Whether one of these would come later if a request went `after` seconds from now."""
        for limit, amount in charges:
            kind, first, second, third, _ = self._flat[limit]
            row = self._row_of[limit]
            if kind == BUCKET and found[row]:
                column, need = AMOUNTS + limit - self._begin_of[row], min(amount, second) if third else amount
                if bookings.delays(found[row], column, (self._used[limit], first, second), need, after):
                    return True
        return False

    def _wait_behind(self, charges: Charges, found: dict[int, list[Booking]], wait: _Wait) -> None:
        """Let a request wait until all of these have had theirs."""
        longest, blocker = 1e-6, charges[0][0]
        for limit, amount in charges:
            kind, first, second, third, _ = self._flat[limit]
            if kind == BUCKET:
                row = self._row_of[limit]
                need = min(amount, second) if third else amount
                booked = bookings.taken(found[row], AMOUNTS + limit - self._begin_of[row])
                over = self._used[limit] + booked + need - second
                if over / first > longest:
                    longest, blocker = over / first, limit
        if longest > wait.longest:
            wait.longest, wait.blocker = longest, blocker

    def _book(
        self, charges: Charges, rows: Sequence[int], number: float, due: float, asker: Asker, *, claims: bool
    ) -> None:
        """Note when a request is to come again, in all rows that it is about."""
        if claims:
            # A later one gets no booking of its own beside it.
            self._stopped.update([limit for limit, _ in charges])
            if self._turn is not None:
                start, member_start = self._turn.starts()
                asker.start, asker.member_start = start if member_start == ALONE else asker.start, member_start
                self._turn.passed(asker.share)
        for row in rows:
            of = self._known_to(row, asker)
            booking = [
                number, due, self._priority, self._waited, self._ageing, of.key, of.start, of.member_start, of.share,
            ]  # fmt: skip
            bookings.add(self._rows[row].bookings, booking + self._amounts_of(charges, row))
            for limit in range(self._begin_of[row], self._begin_of[row + 1]):
                self._free_until[limit] = -1.0

    # Other operations: each returns where the next one begins

    def _give_back(self, operations: Sequence[float], at: int) -> int:
        begin, end = at + 2, at + 2 + 4 * int(operations[at + 1])
        for index in range(begin, end, 4):
            limit, amount, epoch, receipt = int(operations[index]), *operations[index + 1 : index + 4]
            if epoch != self._epochs[limit]:
                continue
            kind, first, second, third, _ = self._flat[limit]
            log, used = self._entries[limit], self._used[limit]
            if kind == BUCKET:
                least = min(used, self._last[limit] * first + self._charged_since(limit, receipt))
                self._used[limit] = max(used - amount, least)
                entries.remember(log, receipt, amount)
            elif kind == CALENDAR:
                if receipt == self._what[limit]:
                    self._used[limit] = max(0.0, used - amount)
            elif receipt < used + math.ceil(second * 1e6):
                continue  # it was charged before this kind of limit took over
            elif third == RENEWED or receipt > self._now:  # else it has come back by itself: what is there is others'
                entries.release(log, amount, self._owner, receipt, third)
        return end

    def _charge_all(self, operations: Sequence[float], at: int) -> int:
        begin, end = at + 2, at + 2 + 2 * int(operations[at + 1])
        for index in range(begin, end, 2):
            self.verdicts.append(self._charge(int(operations[index]), operations[index + 1], 0.0))
        return end

    def _start_pause(self, operations: Sequence[float], at: int) -> int:
        seconds = operations[at + 1]
        begin, end = at + 3, at + 3 + int(operations[at + 2])
        for index in range(begin, end):
            limit = int(operations[index])
            self._pause[limit] = max(self._pause[limit], seconds)
            if seconds > 0:
                self._free_until[limit] = -1.0
        return end

    def _resume(self, operations: Sequence[float], at: int) -> int:
        begin, end = at + 2, at + 2 + int(operations[at + 1])
        for index in range(begin, end):
            self._pause[int(operations[index])] = 0.0
        return end

    def _lower(self, operations: Sequence[float], at: int) -> int:
        begin, end = at + 2, at + 2 + 5 * int(operations[at + 1])
        for index in range(begin, end, 5):
            limit, level, age, epoch, receipt = int(operations[index]), *operations[index + 1 : index + 5]
            kind, first, second, third, _ = self._flat[limit]
            if kind == BUCKET:
                if epoch == self._epochs[limit]:
                    level += age * first - self._charged_since(limit, receipt)
                missing = second - level - self._used[limit]
                if missing > 0:
                    self._used[limit] += missing
                    self._what[limit] += missing
            elif kind == CALENDAR:
                self._used[limit] = max(self._used[limit], first - level)
            elif third == LOG:
                missing = first - entries.held(self._entries[limit]) - level
                if missing > 0:
                    self._charge(limit, missing, 0.0)
        return end

    def _renew(self, operations: Sequence[float], at: int) -> int:
        begin, end = at + 2, at + 2 + int(operations[at + 1])
        for index in range(begin, end):
            limit = int(operations[index])
            for entry in self._entries[limit]:
                if entry[1] == self._owner:
                    entry[0] = self._now + math.ceil(self._flat[limit][2] * 1e6)
            entries.in_order(self._entries[limit])
        return end

    def _begin_flow(self, operations: Sequence[float], at: int) -> int:
        if self._turn is not None:
            self._turn.close()
        key, member, weight, of, waits = operations[at + 1 : at + 6]
        self._payer = self._row_of[int(of)]
        row = self._rows[self._payer]
        booked = bookings.starts(row.bookings, key, alone=not member)
        self._turn = FlowTurn(row.flows, key, member, weight, booked, waits or -math.inf)
        return at + 6

    def _leave(self, operations: Sequence[float], at: int) -> int:
        key, member, seconds, of = operations[at + 1 : at + 5]
        leave(self._rows[self._row_of[int(of)]].flows, key, member, seconds)
        return at + 5

    def _rank(self, operations: Sequence[float], at: int) -> int:
        self._priority, self._waited, self._ageing = operations[at + 1 : at + 4]
        return at + 4

    def _take_booking(self, operations: Sequence[float], at: int) -> int:
        self._booking = (operations[at + 1], operations[at + 2], operations[at + 3])
        return at + 4

    def _drop(self, operations: Sequence[float], at: int) -> int:
        bookings.drop(self._rows[self._row_of[int(operations[at + 2])]].bookings, operations[at + 1])
        return at + 3


_RUN: dict[float, Callable[[BatchRows, Sequence[float], int], int]] = {
    codes.ACQUIRE: BatchRows._acquire,
    codes.SERIES: BatchRows._series,
    codes.GIVE_BACK: BatchRows._give_back,
    codes.CHARGE: BatchRows._charge_all,
    codes.PAUSE: BatchRows._start_pause,
    codes.LOWER: BatchRows._lower,
    codes.RENEW: BatchRows._renew,
    codes.FLOW: BatchRows._begin_flow,
    codes.LEAVE: BatchRows._leave,
    codes.RESUME: BatchRows._resume,
    codes.RANK: BatchRows._rank,
    codes.BOOK: BatchRows._take_booking,
    codes.DROP: BatchRows._drop,
}


def _seconds(limit: Sequence[float]) -> float:
    """How long one unit of that limit takes to flow in; a second, or its window, where all comes back at once."""
    kind, first, second, third, _ = limit
    return second / first if kind == WINDOW and third == LOG else 1.0 / first
