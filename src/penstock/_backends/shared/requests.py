"""What a call asks of a store, what the store has charged it, and what is still owed for it.

`scheduler` and `settling` act on it.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

from penstock import clock
from penstock._backends.base import Binding, Request
from penstock._backends.shared.limit_set import SharedLimitSet, SharedLimitState
from penstock._core.lease import Share

if TYPE_CHECKING:
    from penstock._backends.shared.queue import StoreQueue
    from penstock._concurrency.parking import Parker


class Stage(Enum):
    """How far a request has come."""

    NEW = "new"
    QUEUED = "queued"
    ASKED = "asked"  # it is in a batch that is on its way
    RESERVED = "reserved"  # the store has granted it for a moment to come
    GRANTED = "granted"
    REFUSED = "refused"
    GONE = "gone"  # the caller has left


# Each request looks these up, which costs as much as a call where they stand in their modules, or in an enumeration.
_NEW, _GRANTED, _EVER, _NAN = Stage.NEW, Stage.GRANTED, math.inf, math.nan
_NO_EPOCHS: Mapping[SharedLimitSet, float] = {}

UNCOUNTED = (0.0, 0.0)
"""Epoch and receipt of what the store does not count: it gives nothing back for them."""


class Booking:
    """The store has told a request when to come again; whichever request of its flow is first then claims it.

    Attributes:
        number: What the store knows it by.
        charges: The limits that it is about, with what was asked for.
        flow: The flow that it belongs to.
        priority: How urgent the request was that it was made for.
        due: The moment that the store has told; `inf`: it has not told yet.
        claim_at: When to ask for it.
        early_at: When to ask whether it may be had before its moment; `inf`: nothing tells that it may.
        in_line: Whether it is for places.
        since: When the store has told it first.
        ahead: Units of places that others have before it, as the row showed last.
        seen: Whether it is claimed as the row shows that its turn has come.
        look_from: Nothing that the row shows is a reason to claim it before that.
    """

    __slots__ = (
        "ahead", "charges", "claim_at", "due", "early_at", "flow", "in_line", "look_from", "number", "priority", "seen",
        "since",
    )  # fmt: skip

    def __init__(self, number: float, request: SharedRequest) -> None:
        self.number = number
        self.charges: Any = request.charges
        self.flow = request.flow
        self.priority = request.priority
        self.due = self.claim_at = self.early_at = self.since = math.inf
        self.ahead, self.look_from = 0.0, -math.inf
        self.in_line = self.seen = False


class SharedRequest(Request):
    """A request of a store.

    Attributes:
        backend: What it was made for.
        batch: The batch that asks for it.
        booking: What it claims in that batch, or is given if it must wait.
        confirmed: Whether its reservation was confirmed, or need not be.
        due: When its reservation begins.
        latest: The last moment at which a grant is of use; `inf`: any; `-inf`: now or never.
        receipts: What the store needs to take each charge back.
        epochs: When the row of each limit set was born.
        shares: What it has of leases that this process holds, if it was granted out of those.
        stage: How far it has come.
        waited: How far ahead its reservation was made, in seconds.
    """

    __slots__ = (
        "backend", "batch", "booking", "confirmed", "due", "epochs", "latest", "shares", "stage", "waited",
    )  # fmt: skip

    charges: Any
    backend: Any
    batch: object
    booking: Booking | None
    shares: list[Share] | None
    stage: Stage

    def __init__(
        self,
        binding: Binding,
        parker: Parker | None,
        max_wait: float | None = None,
        time_left: float = math.inf,
        priority: int = 0,
        flow: Hashable = None,
    ) -> None:
        # Each call makes one: what every request has is written out, less what only queues in this process use.
        charge = binding.charge
        self.charges = charge.charges
        self.cost = charge.cost
        self.info = binding.info
        self.backend = binding.backend
        self.parker = parker
        self.priority = priority
        self.flow = flow
        self.max_wait = max_wait
        self.time_left = time_left
        self.arrived = now = clock.now()
        if max_wait is None and time_left == _EVER:
            self.latest = _EVER
        else:
            wait = time_left if max_wait is None else min(max_wait, time_left)
            self.latest = _EVER if wait == _EVER else now + max(wait, 0.0) if wait else -_EVER
        self.stage = _NEW
        self.number = 0
        self.subqueue = self.error = self.shares = self.booking = self.batch = None
        self.granted_at = _NAN
        self.due = self.waited = 0.0
        self.confirmed = False
        self.receipts = ()
        self.epochs = _NO_EPOCHS

    @property
    def done(self) -> bool:
        """Whether there is nothing left to wait for."""
        return self.stage is _GRANTED or self.error is not None

    @property
    def abandoned(self) -> bool:
        """Whether its loop is closed: nothing ever takes its grant, nor itself out of the queue."""
        return self.parker is not None and not self.parker.alive()

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        """As the receipts of its grant: what this process holds of it, which is nothing."""
        return iter(())


@dataclass(slots=True, eq=False)
class Refund:
    """To be given back to the store: an amount of a charge, which its epoch and receipt name."""

    state: SharedLimitState
    amount: float
    epoch: float
    receipt: float


@dataclass(slots=True, eq=False)
class Debit:
    """To be charged by the store beyond what was: an amount of a limit."""

    state: SharedLimitState
    amount: float


@dataclass(slots=True, eq=False)
class _StoredCharge:
    """A charge in the store: `epoch` and `receipt` are None until the store has answered."""

    state: SharedLimitState
    amount: float
    epoch: float | None
    receipt: float | None


@dataclass(slots=True, eq=False)
class StoreReceipts:
    """What the store has charged a grant, and what it is to be charged instead.

    `wanted` is set by callers, from any thread; `stored()` belongs to the dispatcher. Their difference is what the
    store is told next.
    """

    charges: Sequence[tuple[SharedLimitState, float]]
    epochs: Mapping[SharedLimitSet, float]
    receipts: Sequence[float]
    shares: list[Share] | None
    wanted: dict[SharedLimitState, float] | None = None  # None: what was charged at first
    _stored: list[_StoredCharge] | None = None

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        """(meter, receipt) of what this process holds: nothing, all of it is the store's."""
        return iter(())

    def add_uncounted(self, charges: Sequence[tuple[SharedLimitState, float]]) -> None:
        """Note what a grant has of limits that the store does not count: other limits may take over from those."""
        stored = self.stored()
        self.charges = (*self.charges, *charges)
        stored += [_StoredCharge(state, amount, *UNCOUNTED) for state, amount in charges]

    def settle_uncounted(self) -> bool:
        """Note the true cost on limits that the store does not count; whether it is to be told of others."""
        told = False
        for state, missing in self._missing().items():
            told = told or state.counted
            if not state.counted:
                self.stored().append(_StoredCharge(state, missing, *UNCOUNTED))  # or, below 0, what comes back
        return told

    def wants(self) -> dict[SharedLimitState, float]:
        """What is to be charged, per limit."""
        return self.first() if self.wanted is None else dict(self.wanted)

    def first(self) -> dict[SharedLimitState, float]:
        """What was charged at first, per limit."""
        charged: dict[SharedLimitState, float] = {}
        for state, amount in self.charges:
            charged[state] = charged.get(state, 0) + amount
        return charged

    def limit_sets(self) -> set[SharedLimitSet]:
        return {state.limit_set for state in self.wants()}

    def queue(self) -> StoreQueue:
        return next(iter(self.wants())).limit_set.queue

    def stored(self) -> list[_StoredCharge]:
        if self._stored is None:
            if self.shares is not None:
                self._stored = [_StoredCharge(*share) for share in self.shares]  # type: ignore[arg-type]  # all are shared
            else:
                self._stored = [
                    _StoredCharge(state, amount, self.epochs[state.limit_set], receipt)
                    for (state, amount), receipt in zip(self.charges, self.receipts, strict=True)
                ]
        return self._stored

    def open(self) -> bool:
        """Whether the store is being told of a debit, and has not answered yet."""
        return None in [charge.epoch for charge in self.stored()]

    def stored_on(self, state: SharedLimitState) -> tuple[float, float] | None:
        """Epoch and receipt of a charge on that limit, if there is one."""
        for charge in self.stored():
            if charge.state is state and charge.epoch is not None and charge.receipt is not None:
                return charge.epoch, charge.receipt
        return None

    def difference(self) -> tuple[list[Refund], list[Debit]]:
        """What must be given back and charged so that the store has what is wanted; it counts as done."""
        stored, refunds, debits = self.stored(), [], []
        for state, more in self._missing().items():
            missing = more
            if missing == 0 or not state.counted:
                continue
            if missing > 0:
                debits.append(Debit(state, missing))
            for charge in reversed(stored):  # the latest debit first, then the charge itself
                if missing < 0 and charge.state is state and charge.amount and charge.epoch is not None:
                    back = min(charge.amount, -missing)
                    charge.amount -= back
                    assert charge.receipt is not None, "a charge with an epoch has a receipt"
                    refunds.append(Refund(state, back, charge.epoch, charge.receipt))
                    missing += back
        stored += [_StoredCharge(debit.state, debit.amount, None, None) for debit in debits]
        return refunds, debits

    def _missing(self) -> dict[SharedLimitState, float]:
        """Per limit of now, what is to be charged less what was."""
        amounts: dict[SharedLimitState, float] = {}
        for charge in self.stored():
            amounts[charge.state] = amounts.get(charge.state, 0) + charge.amount
        return {state: amount - amounts.get(state, 0) for state, amount in self._wanted_now(amounts).items()}

    def _wanted_now(self, stored: Mapping[SharedLimitState, float]) -> dict[SharedLimitState, float]:
        """What is to be charged on the limits of now: one of another kind has taken over what was charged before."""
        wanted = self.wants()
        for state in list(wanted):
            present = state.present
            if present is not state:
                more, before = wanted.pop(state), state
                while before is not present:
                    more, before = more - stored.get(before, 0), before.successor or present
                more = max(0.0, more)
                if more or present in stored:
                    wanted[present] = wanted.get(present, 0.0) + more
        return wanted

    def charged(self, state: SharedLimitState, epoch: float, receipt: float) -> None:
        debit = next(charge for charge in self.stored() if charge.state is state and charge.epoch is None)
        debit.epoch, debit.receipt = epoch, receipt

    def charged_here(self, shares: Sequence[Share]) -> None:
        """A debit was taken out of leases that this process holds."""
        self.stored().extend(_StoredCharge(*share) for share in shares)  # type: ignore[arg-type]  # all are shared

    def not_charged(self, debits: Sequence[Debit]) -> None:
        """The store was not told of these debits after all."""
        states = {debit.state for debit in debits}
        self._stored = [charge for charge in self.stored() if charge.state not in states or charge.epoch is not None]


@dataclass(slots=True, eq=False)
class LeaseAsked:
    """A part of a lease that a batch asks for. A horizon of `inf`: the first waiter needs just that."""

    charges: Any
    horizon: float
    queue: StoreQueue
