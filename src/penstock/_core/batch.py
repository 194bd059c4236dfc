"""A batch: the rows taken apart, and what each operation makes of them.

Nothing here waits, reads a clock or does I/O. `decision` says what the rules are, `operations` how they are asked for.
What may be charged of each limit, and when, is in `row_limits`.
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
from penstock._core.bookings import AMOUNTS, DUE, NEW, PRIORITY, WAITED, Asker, Booking, InLine, Wait
from penstock._core.flows import ALONE, FlowTurn, leave
from penstock._core.operations import ACQUIRE, BOOKED, IN_LINE
from penstock._core.row_limits import LimitsOfRows
from penstock._core.rows import BUCKET, CALENDAR, LOG, RENEWED, WINDOW, RowState, is_places, seconds_per_unit

_NO_BOOKING = (0.0, NEW, -1.0)
"""What stands for a booking, its moment and the longest wait, of requests that get none."""

_AGEING = 30.0
"""Of requests whose age was not said, in seconds."""

_FEW_RUNS = 4
"""Runs of a series that are taken one by one."""

Charges = list[tuple[int, float]]
"""What a request takes: (limit, amount), at least one."""


class BatchRows(LimitsOfRows):
    """The rows of a batch, at the moment `now`, with one method an operation.

    Attributes:
        verdicts: What the operations so far have found.
    """

    __slots__ = (
        "_ageing", "_booking", "_kept", "_lined", "_payer", "_priority", "_stopped", "_turn", "_waited", "verdicts",
    )  # fmt: skip

    def __init__(
        self, rows: list[RowState], limits: Sequence[Sequence[Sequence[float]]], owner: float, now: float
    ) -> None:
        super().__init__(rows, limits, owner, now)
        self._stopped: set[int] = set()  # limits that later requests must not take before an earlier one
        self._kept: set[int] = set()  # the same, but for those that have a booking as the earlier one has
        self._lined: set[tuple[float, float]] = set()  # flows and priorities that were given bookings for places
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
                first = self._next_in_line(limit) if is_places(self._flat[limit]) else 0.0
                told += (self._pause[limit], entries.held(log), -first if first else log[0][0] if log else 0.0)
                continue
            if kind == BUCKET:
                row = self._row_of[limit]
                used += bookings.taken(self._rows[row].bookings, AMOUNTS + limit - self._begin_of[row])
            told += (self._pause[limit], used, self._what[limit])
        return told

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
        rows = [self._row_of[limit] for limit, _ in charges]
        in_line = due != NEW and self._is_in_line(rows, number)
        asker, claims, crowded, passes, early = None, False, False, True, horizon < due <= within and not in_line
        wait = self._wait(charges, self._stopped if early else self._stopped | self._kept)
        standing: list[Booking] = []
        positions: dict[int, int] = {}
        if number or self._crowded(rows):
            rows, asker = list(dict.fromkeys(rows)), self._asker(charges)
            positions = {row: bookings.position_of(self._rows[row].bookings, number) for row in rows}
            if early:
                standing = self._standing(rows, number, asker)
            else:
                claims = due != NEW and self._claim(charges, rows, number, due, asker)
            crowded = self._crowded(rows)
            self._wait_in_line(charges, asker, positions, wait)
        if asker is not None and crowded and not wait.fixed:
            found = self._before(rows, asker, number, claims=claims and not in_line)
            passes = wait.longest <= horizon and not self._delays(charges, found, wait.longest)
            if not passes:  # where it was passed it goes to the end, so the next ones keep their moments
                self._wait_behind(charges, self._before(rows, asker, number, claims=False), wait)
        goes = passes and wait.longest <= horizon and not wait.fixed
        if early and goes and asker is not None:
            claims = self._claim(charges, rows, number, due, asker)
        must_wait = stops and wait.longest > 0
        if asker is not None and not (goes or early) and number and self._waits_for_places(charges, rows, asker, wait):
            self._stand_in_line((number, min(bookings.IN_LINE_FOR, within)), charges, positions, asker, claims=claims)
        elif early and not goes:  # it keeps its booking, and a later one gets none beside it
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

    def _wait(self, charges: Charges, stopped: AbstractSet[int]) -> Wait:
        """How long a request would have to wait if no other asked. `stopped`: limits of which it gets nothing."""
        wait = Wait()
        for limit, amount in charges:
            seconds = self._seconds_until(limit, amount)
            if seconds > 0 and self._flat[limit][0] != BUCKET:
                wait.fixed = True  # what comes back all at once cannot be had in advance
            if self._pause[limit] > seconds:
                seconds, wait.fixed = self._pause[limit], True  # it may be lifted, and a reservation would stay
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
        return max([amount * seconds_per_unit(self._flat[limit]) for limit, amount in charges])

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

    def _amounts_of(self, charges: Charges, row: int, *, places: bool = False) -> list[float]:
        """What a request takes from each limit of a row: of places, or of all others."""
        amounts = [0.0] * len(self._limits[row])
        for limit, amount in charges:
            if self._row_of[limit] == row and is_places(self._flat[limit]) == places:
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

    def _wait_behind(self, charges: Charges, found: dict[int, list[Booking]], wait: Wait) -> None:
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
            bookings.add(self._rows[row].bookings, self._booking_of((number, due), of) + self._amounts_of(charges, row))
            self._booked_in(row)

    def _booking_of(self, told: tuple[float, float], of: Asker) -> Booking:
        return [*told, self._priority, self._waited, self._ageing, of.key, of.start, of.member_start, of.share]

    def _booked_in(self, row: int) -> None:
        for limit in range(self._begin_of[row], self._begin_of[row + 1]):
            self._free_until[limit] = -1.0

    # Bookings for places

    def _is_in_line(self, rows: Sequence[int], number: float) -> bool:
        """Whether the booking of that number is for places."""
        for row in rows:
            booking = bookings.of_number(self._rows[row].bookings, number)
            if booking is not None and any(booking[self._column(limit)] for limit in self._places_of(row)):
                return True
        return False

    def _places_of(self, row: int) -> list[int]:
        limits = range(self._begin_of[row], self._begin_of[row + 1])
        return [limit for limit in limits if is_places(self._flat[limit])]

    def _column(self, limit: int) -> int:
        """Where a booking says what it takes of a limit."""
        return AMOUNTS + limit - self._begin_of[self._row_of[limit]]

    def _wait_in_line(self, charges: Charges, asker: Asker, positions: dict[int, int], wait: Wait) -> None:
        """Let a request wait until there are places for all that come before it, too."""
        for limit, amount in charges:
            row = self._row_of[limit]
            if self._rows[row].bookings and is_places(self._flat[limit]):
                of, column = self._known_to(row, asker), self._column(limit)
                ahead = bookings.ahead_of_place(self._rows[row].bookings, of, positions[row], column)
                seconds = self._seconds_until(limit, amount + ahead) if ahead else 0.0
                wait.fixed = wait.fixed or seconds > 0
                if seconds > wait.longest:
                    wait.longest, wait.blocker = seconds, limit

    def _waits_for_places(self, charges: Charges, rows: Sequence[int], asker: Asker, wait: Wait) -> bool:
        """Whether a request is booked until places come back, as it waits for these longest.

        A later one of the same flow in this batch gets no booking beside it.
        """
        if (
            (asker.key, self._priority) in self._lined
            or not wait.fixed
            or not is_places(self._flat[wait.blocker])
            or wait.blocker in self._stopped
        ):
            return False
        room = all(len(self._rows[row].bookings) < bookings.MOST for row in rows)
        return room and not any(self._pause[limit] > 0 for limit, _ in charges)

    def _stand_in_line(
        self, told: tuple[float, float], charges: Charges, positions: dict[int, int], asker: Asker, *, claims: bool
    ) -> None:
        """Book places for a request: where its booking was, or at the end. `told`: its number, and when it asks."""
        self.verdicts += (-1.0 - told[1], IN_LINE)
        self._lined.add((asker.key, self._priority))
        for row, position in positions.items():
            amounts = self._amounts_of(charges, row, places=True)
            if any(amounts):
                booking = self._booking_of(told, self._known_to(row, asker))
                self._rows[row].bookings.insert(position, booking + amounts)
                self._booked_in(row)
        self._count_turn(charges, told[1], claims=claims)

    def _next_in_line(self, limit: int) -> float:
        """The number of the booking that can have its places now; 0: there is none."""
        row = self._row_of[limit]
        first = bookings.first_for_place(self._rows[row].bookings, self._column(limit))
        if first is None or any(self._seconds_until(of, first[self._column(of)]) for of in self._places_of(row)):
            return 0.0
        return first[bookings.ID]

    def in_line(self, number: float) -> InLine | None:
        """How the booking of that number stands among those for places, where there is one row; None: there is none."""
        (row,) = self._rows
        own = bookings.of_number(row.bookings, number)
        if own is None:
            return None
        position, asker = bookings.position_of(row.bookings, number), bookings.asker_of(own)
        others = [booking for booking in row.bookings if booking is not own]
        wanted = [(limit, self._column(limit)) for limit in self._places_of(0) if own[self._column(limit)]]
        ahead = [bookings.ahead_of_place(others, asker, position, column) for _, column in wanted]
        lacking = [
            self._seconds_until(of, own[column] + more) for (of, column), more in zip(wanted, ahead, strict=True)
        ]
        return InLine(max(ahead, default=0.0), not any(lacking))

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
