"""A batch on its way to a store: writing what is asked, and reading the answer.

What the numbers mean is in `_core.operations`. Here alone they are packed, and verdicts become `Admitted`, `NotNow` and
`OthersTurn`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, repeat
from typing import Any

from penstock._backends.shared.limit_set import SharedLimitSet, SharedLimitState
from penstock._backends.shared.requests import Booking, Debit, Refund, StoreReceipts
from penstock._concurrency.parking import Parker
from penstock._core import operations as codes
from penstock._core.bookings import NEW
from penstock.errors import StoreError
from penstock.stores.contract import Batch, Reply, Terms
from penstock.stores.fallback import FallbackStore

NOBODY: Any = object()
"""No group, and no flow, yet."""


@dataclass(slots=True, eq=False)
class Admitted:
    """The store has granted a request, `wait` seconds from its own moment on. `receipts`: one per charge."""

    wait: float
    receipts: Sequence[float]


@dataclass(slots=True, eq=False)
class NotNow:
    """The store has refused a request: `limit` has enough in `wait` seconds; `inf`: when another gives back."""

    wait: float
    limit: SharedLimitState


@dataclass(slots=True, eq=False)
class BookedFor:
    """A request is to come again in `wait` seconds: it has a booking for that moment.

    Attributes:
        in_line: Whether it is for places: it is to come then at the latest, and before if some may have come back.
    """

    wait: float
    in_line: bool = False


@dataclass(slots=True, eq=False)
class OthersTurn:
    """Another flow, which had less, is to have it: ask again in `wait` seconds. `ahead`: by how much, in throughput."""

    wait: float
    ahead: float


Receipts = tuple[float, ...]
"""The store has granted a request of a series at once: one receipt per charge."""

Verdict = Admitted | NotNow | OthersTurn | BookedFor | Receipts


@dataclass(slots=True, eq=False)
class FlowName:
    """A flow as stores know it: its key, which member of it this process is (0: it is the only one), and its weight."""

    key: float
    member: float
    weight: float


@dataclass(slots=True, eq=False)
class Look:
    """A caller wants to see how a limit set stands; `parker` is woken when the answer is there.

    Attributes:
        error: Why there is no answer.
        done: Whether there is one, or an error.
    """

    limit_set: SharedLimitSet
    parker: Parker | None
    error: Exception | None = None
    done: bool = False


@dataclass(slots=True, eq=False)
class Settlement:
    """Debits that a batch tells the store of. `receipts` is None where they belong to no permit: those of an outage."""

    receipts: StoreReceipts | None
    debits: list[Debit]


@dataclass(slots=True, eq=False)
class Command:
    """Something that the store is to be told of a limit set. `announce`: the other processes must hear of it now."""

    limit_set: SharedLimitSet
    write: Callable[[BatchInFlight, float], None]
    announce: bool = field(kw_only=True)


@dataclass(slots=True, eq=False)
class _Series:
    """A series that is written.

    Attributes:
        limits, horizon: What all of its requests have in common.
        first: The index of its first request among all that are asked.
        written: Where it says how many runs it has.
        runs: Of each, how many requests, and their amounts.
        end: Where it ends.
    """

    limits: tuple[Any, ...]
    horizon: float
    first: int
    written: int
    runs: list[tuple[int, tuple[float, ...]]] = field(default_factory=list)
    end: int = 0


@dataclass(slots=True, eq=False)
class BatchInFlight:
    """One batch: what is asked, and what hears the answer.

    Attributes:
        group: What all of its limit sets must have in common.
        offsets: Its limit sets, with the number of the first limit of each.
        terms, orders: Of each, what the store is told of it, and its limits: both may change before the answer comes.
        width: Limits in all.
        operations: As in `_core.operations`.
        sent: When it was sent first.
        misdated: Whether the store's clock had stepped, so that it was told the calendar periods of another time.
        flow, payer: The flow that was written last, and the limit set that knows it.
        priority: The priority that was written last.
        asked: Requests and parts of leases, in the order in which they were written.
        series: Which of them are series.
        commands, settlements, refunds, drops, looks: What else is in it.
        announce: Names whose change the other processes must hear of.
        places: Limits whose places were all taken, and of which some are given back.
        lines: Limits whose next in line may have places now: some are given back, or the first has left.
        next_in_line: Per name of these, the number of the booking that can have its places: its process must hear it.
        freed: Names of which so much is given back that they must hear of it: as much as flows in in so many seconds.
        epochs: When the row of each limit set was born, once that was answered.
    """

    group: Any = NOBODY
    offsets: dict[SharedLimitSet, int] = field(default_factory=dict)
    terms: list[Terms] = field(default_factory=list)
    orders: list[list[SharedLimitState]] = field(default_factory=list)
    width: int = 0
    operations: list[float] = field(default_factory=list)
    sent: float = 0.0
    misdated: bool = False
    flow: Hashable = NOBODY
    payer: SharedLimitSet | None = None
    priority: float = 0.0
    asked: list[Any] = field(default_factory=list)
    series: list[_Series] = field(default_factory=list)
    commands: list[Command] = field(default_factory=list)
    settlements: list[Settlement] = field(default_factory=list)
    refunds: list[Refund] = field(default_factory=list)
    drops: list[Booking] = field(default_factory=list)
    looks: list[Look] = field(default_factory=list)
    announce: set[str] = field(default_factory=set)
    places: list[SharedLimitState] = field(default_factory=list)
    lines: list[SharedLimitState] = field(default_factory=list)
    next_in_line: dict[str, float] = field(default_factory=dict)
    freed: dict[str, float] = field(default_factory=dict)
    epochs: dict[SharedLimitSet, float] = field(default_factory=dict)

    # Writing

    def include(self, limit_set: SharedLimitSet) -> int:
        """Let a limit set be read; return the number of its first limit here."""
        offset = self.offsets.get(limit_set)
        if offset is None:
            offset = self.offsets[limit_set] = self.width
            self.terms.append(limit_set.terms)
            self.orders.append(limit_set.order)
            self.width += len(limit_set.order)
        return offset

    def at(self, state: SharedLimitState) -> float:
        """The number of a limit here."""
        return float(self.include(state.limit_set) + state.index)

    def acquire(self, charges: Iterable[tuple[SharedLimitState, float]], horizon: float, *, stops: bool) -> None:
        """Ask for these charges, at most `horizon` seconds ahead. `stops`: later requests wait for what it misses."""
        words = [codes.ACQUIRE, horizon, 1.0 if stops else 0.0, 0.0]
        for state, amount in charges:
            words += (self.at(state), amount)
        words[3] = float(len(words) // 2 - 2)
        self.operations += words

    def acquire_each(self, requests: list[Any], charges: Iterable[tuple[Any, float]], horizon: float) -> None:
        """Ask for requests that have these charges, one by one, each at most `horizon` seconds ahead."""
        limits, amounts = zip(*charges, strict=True)
        operations, series = self.operations, self.series[-1] if self.series else None
        if series is None or limits != series.limits or len(operations) != series.end or horizon != series.horizon:
            series = _Series(limits, horizon, len(self.asked), len(operations) + 4)
            self.series.append(series)
            operations += (codes.SERIES, horizon, 1.0, float(len(limits)), 0.0, *[self.at(state) for state in limits])
        operations[series.written] += 1.0
        operations += (float(len(requests)), *amounts)
        series.runs.append((len(requests), amounts))
        series.end = len(operations)
        self.asked += requests

    def rank(self, priority: float, waited: float, ageing: float) -> None:
        """Write how urgent and how old the requests that follow are."""
        self.priority = priority
        self.operations += (codes.RANK, priority, waited, ageing)

    def book(self, booking: Booking, within: float, now: float) -> None:
        """Write that the next request claims a booking, or is given it if it must wait for at most `within` seconds."""
        due = NEW if booking.due == math.inf else booking.due - now
        self.operations += (codes.BOOK, booking.number, due, within)

    def drop(self, booking: Booking) -> None:
        """Write that a booking is not needed any more."""
        for state in {state.limit_set: state for state, _ in booking.charges if state.counted}.values():
            self.operations += (codes.DROP, booking.number, self.at(state))
        self.drops.append(booking)

    def give_back(self, refund: Refund) -> None:
        self.operations += (
            codes.GIVE_BACK, 1.0, self.at(refund.state), refund.amount, refund.epoch, refund.receipt,
        )  # fmt: skip
        self.refunds.append(refund)

    def leave_unsaid(self, limit_set: SharedLimitSet) -> None:
        """Say nothing of a limit set, should this be written anew: what the store counts there is something else."""
        self.commands = [each for each in self.commands if each.limit_set is not limit_set]
        self.refunds = [each for each in self.refunds if each.state.limit_set is not limit_set]
        self.drops = [each for each in self.drops if all(of.limit_set is not limit_set for of, _ in each.charges)]
        unsaid = [each for each in self.settlements if any(of.state.limit_set is limit_set for of in each.debits)]
        for settlement in unsaid:
            self.settlements.remove(settlement)
            if settlement.receipts is not None:
                settlement.receipts.not_charged(settlement.debits)

    def settle(self, settlement: Settlement) -> None:
        for debit in settlement.debits:
            self.operations += (codes.CHARGE, 1.0, self.at(debit.state), debit.amount)
        self.settlements.append(settlement)

    def pause(self, seconds: float, states: Sequence[SharedLimitState]) -> None:
        states = [state for state in states if state.counted]
        self.operations += (codes.PAUSE, seconds, float(len(states)), *[self.at(state) for state in states])

    def resume(self, states: Sequence[SharedLimitState]) -> None:
        states = [state for state in states if state.counted]
        self.operations += (codes.RESUME, float(len(states)), *[self.at(state) for state in states])

    def lower(self, state: SharedLimitState, level: float, age: float, entry: tuple[float, float] | None) -> None:
        """Write that a limit had `level` units left `age` seconds ago, after the charge of `entry`: epoch, receipt."""
        if state.counted:
            self.operations += (codes.LOWER, 1.0, self.at(state), level, age, *(entry or (-1.0, -1.0)))

    def renew(self, state: SharedLimitState) -> None:
        """Write that this process still holds its places."""
        if state.counted:
            self.operations += (codes.RENEW, 1.0, self.at(state))

    def name_flow(self, flow: Hashable, name: FlowName, state: SharedLimitState) -> None:
        self.flow, self.payer = flow, state.limit_set
        self.operations += (codes.FLOW, name.key, name.member, name.weight, self.at(state), 0.0)

    def name_waiting(self, name: FlowName, state: SharedLimitState, seconds: float) -> None:
        """Write that a flow waits behind others of this process, for at most so long."""
        self.flow = NOBODY
        self.operations += (codes.FLOW, name.key, name.member, name.weight, self.at(state), seconds)

    def leave(self, name: FlowName, seconds: float, state: SharedLimitState) -> None:
        """Write that a flow gives a reservation back that was worth so much of its throughput."""
        self.operations += (codes.LEAVE, name.key, name.member, seconds, self.at(state))

    # Reading

    def read(self, reply: Reply) -> list[Verdict]:
        """Read an answer: note the epochs, and return a verdict for each of `asked`; debits are told of their receipts.

        Raises:
            StoreError: It is no answer to this batch. Nothing was noted then.
        """
        numbers = reply.verdicts
        debits = [(of.receipts, debit.state) for of in self.settlements for debit in of.debits]
        total = sum(reply.states) + sum(reply.epochs)
        if (
            len(reply.epochs) != len(self.offsets)
            or len(reply.states) != 3 * self.width
            or len(numbers) < len(debits)
            or not math.isfinite(total)
            or not math.isfinite(reply.now)
            or not -math.inf <= sum(numbers) < math.inf
        ):
            raise self._nonsense(reply)
        try:
            told = _receipts(numbers, 0, len(debits))
            verdicts, end = self._verdicts(numbers, len(debits))
        except IndexError:
            raise self._nonsense(reply) from None
        if end != len(numbers):
            raise self._nonsense(reply)
        self.epochs = dict(zip(self.offsets, reply.epochs, strict=True))
        for (receipts, state), receipt in zip(debits, told, strict=True):
            if receipts is not None:
                receipts.charged(state, self.epochs[state.limit_set], receipt)
        return verdicts

    def _verdicts(self, numbers: Sequence[float], at: int) -> tuple[list[Verdict], int]:
        """The verdicts that begin at this index, and the index behind them; IndexError: too few numbers."""
        verdicts: list[Verdict] = []
        for series in self.series:
            at = self._read_each(numbers, at, self.asked[len(verdicts) : series.first], verdicts)
            at = self._read_series(numbers, at, series, verdicts)
        return verdicts, self._read_each(numbers, at, self.asked[len(verdicts) :], verdicts)

    def _read_series(self, numbers: Sequence[float], at: int, series: _Series, verdicts: list[Verdict]) -> int:
        """Read the verdicts on a series; return the index behind them."""
        width = len(series.limits)
        for times, amounts in series.runs:
            granted, begin, at = numbers[at], at + 1, at + 1
            if granted:
                at += width
                if not 0 < granted <= times or granted % 1:
                    raise IndexError(granted)
                more = int(granted) - 1
                receipts = zip(_receipts(numbers, begin, at), amounts, strict=True)
                verdicts += zip(*[accumulate(repeat(by, more), initial=first) for first, by in receipts], strict=True)
            if granted < times:  # the others one by one
                asked = sum([times for times, _ in series.runs])
                return self._read_each(numbers, at, self.asked[len(verdicts) : series.first + asked], verdicts)
        return at

    def _read_each(self, numbers: Sequence[float], at: int, asked: Sequence[Any], verdicts: list[Verdict]) -> int:
        """Read the verdicts on these; return the index behind them."""
        for request in asked:
            wait = numbers[at]
            if wait >= 0:
                end = at + 1 + len(request.charges)
                verdicts.append(Admitted(wait, _receipts(numbers, at + 1, end)))
                at = end
                continue
            what = numbers[at + 1]
            at += 2
            if what < 0 and not (wait > -math.inf and what > -math.inf):
                raise IndexError(what)  # it would never be asked for again
            if what in {codes.BOOKED, codes.IN_LINE}:
                verdicts.append(BookedFor(-1.0 - wait, what == codes.IN_LINE))
            elif what < 0:
                verdicts.append(OthersTurn(-1.0 - wait, -1.0 - what))
            else:
                verdicts.append(NotNow(-1.0 - wait, self._limit(int(what))))
        return at

    def _limit(self, number: int) -> SharedLimitState:
        for order, offset in zip(self.orders, self.offsets.values(), strict=True):
            if offset <= number < offset + len(order):
                return order[number - offset]
        raise IndexError(number)

    def _nonsense(self, reply: Reply) -> StoreError:
        names = ", ".join(repr(limit_set.name) for limit_set in self.offsets)
        return StoreError(
            f"the store's answer about {names} makes no sense ({len(reply.epochs)} epochs, "
            f"{len(reply.states)} states and {len(reply.verdicts)} verdicts to {len(self.asked)} requests): "
            "nothing was granted. Another program, or another version of penstock, may have written there"
        )


@dataclass(slots=True, eq=False)
class Outage:
    """One outage of a store, or of one of its nodes.

    Attributes:
        batch, packed: What was asked last. Whether it was decided is not known; it is asked until it is.
        error: Why there is no answer, as of the last attempt.
        told: Whether the store's patience is over: the requests that wait were told, and so are new ones.
        fallback: What decides meanwhile; None: nothing does.
    """

    batch: BatchInFlight
    packed: Batch
    error: StoreError
    told: bool = False
    fallback: FallbackStore | None = None


def _receipts(numbers: Sequence[float], begin: int, end: int) -> Sequence[float]:
    """The receipts that stand there; IndexError: too few, or one that would damage the row it is sent to again."""
    receipts = numbers[begin:end]
    if len(receipts) < end - begin or -math.inf in receipts:  # other numbers that are none were found before
        raise IndexError(begin)
    return receipts
