"""Permit: the proof that a call was charged, and what can be said of it afterwards."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from penstock._core.turns import Charges, LimitState, Receipts, give_back, undo
from penstock._validation import check_amount, cost_of
from penstock.events import Settled, Withdrawn, emit

if TYPE_CHECKING:
    from penstock.limiter import Limiter

__all__ = ["Permit"]


class Permit:
    """The proof that a call was charged.

    It ends when its context ends, or by `close()`: what it only held (places in flight) is given back, what it spent stays
    spent, also if the call failed. Safe to use from any thread. After its end it can still be settled or cancelled.
    """

    __slots__ = ("_charges", "_ended", "_granted_at", "_limiter", "_receipts")

    _limiter: Limiter
    _charges: Charges
    _receipts: Receipts
    _ended: bool
    _granted_at: float | None

    @classmethod
    def _of(cls, limiter: Limiter, charges: Charges, receipts: Receipts, now: float) -> Permit:
        permit = cls()
        permit._limiter = limiter
        permit._charges = charges
        permit._receipts = receipts
        permit._granted_at = now
        permit._ended = False
        return permit

    def _reveal(self) -> None:
        """Make `_charges`, `_receipts` and `_ended` true; for the calls that leave them out."""

    @property
    def cost(self) -> dict[str, float]:
        """What is charged now, per unit: after its end without what it held. Empty after `cancel()`."""
        self._reveal()
        per_slot: dict[LimitState, float] = {}
        for state, amount in self._charges:
            if not (self._ended and state.meter.held):
                per_slot[state] = per_slot.get(state, 0) + amount
        cost: dict[str, float] = {}
        for state, amount in per_slot.items():
            cost[state.unit] = max(cost.get(state.unit, 0), amount)
        return cost

    @property
    def granted_at(self) -> float:
        """The moment of the grant, by `penstock.clock.now()`."""
        assert self._granted_at is not None, "a permit is granted"
        return self._granted_at

    def settle(self, **true_cost: float) -> None:
        """Say what the call really took.

        Less than charged: the difference is given back, as far as that cannot break the limit. More: it becomes a debt,
        which later calls wait for. Units not named stay as they are, and so do places once the permit has ended. May be called
        again: the last word counts.

        Raises:
            UnknownUnit: The permit was not charged in that unit.
            CostError: Not a number, negative or infinite.
        """
        self._reveal()
        limiter = self._limiter
        known = {unit for part in limiter._parts for unit in part.states}
        for unit, amount in true_cost.items():
            if unit not in known:
                raise limiter._unknown(unit)
            check_amount(unit, amount)
        gate = limiter._lock_gate()
        try:
            now = gate.now()
            charges, receipts = list(self._charges), list(self._receipts)
            for unit, amount in true_cost.items():
                charged: dict[LimitState, float] = {}
                for state, part in charges:
                    if state.unit == unit:
                        charged[state] = charged.get(state, 0.0) + part
                before = max(charged.values(), default=0.0)  # what a limit that was added since has taken over
                for states in [part.states[unit] for part in limiter._parts if unit in part.states]:
                    for state in states:
                        if not (self._ended and state.meter.held):  # nobody would give back what it holds from now on
                            self._adjust(charges, receipts, state, amount - charged.get(state, before), now)
            self._charges, self._receipts = charges, receipts
            if len(gate.queue):
                gate.run(now)
        finally:
            limiter._lock.release()
        if limiter._on_event is not None:
            emit(limiter._on_event, Settled(limiter.name, dict(true_cost)))

    @staticmethod
    def _adjust(
        charges: list[tuple[LimitState, float]], receipts: Receipts, state: LimitState, more: float, now: float
    ) -> None:
        mine = [index for index, (of, _) in enumerate(charges) if of is state and receipts[index][0] is state.meter]
        if more > 0:
            if mine:
                meter, receipt = receipts[mine[-1]]
                kept, topped, receipt = meter.top_up(charges[mine[-1]][1], more, receipt, now)
                charges[mine[-1]] = (state, kept)
            else:
                topped, receipt = more, state.meter.charge(more, now)
            charges.append((state, topped))
            receipts.append((state.meter, receipt))
        for index in reversed(mine):  # the latest first
            if more < 0:
                amount = charges[index][1]
                back = min(amount, -more)
                give_back([(state, back)], [receipts[index]], now)
                charges[index] = (state, amount - back)
                more += back

    def cancel(self) -> None:
        """Say that the call was never sent: everything comes back, and the permit ends. Again: nothing happens."""
        self._reveal()
        limiter = self._limiter
        gate = limiter._lock_gate()
        try:
            charges, receipts = self._charges, self._receipts
            if not charges:
                return
            now = gate.now()
            if self._ended:  # what was held is back already
                kept = [index for index, (state, _) in enumerate(charges) if not state.meter.held]
                charges, receipts = [charges[i] for i in kept], [receipts[i] for i in kept]
            self._charges, self._receipts, self._ended = (), [], True
            undo(charges, receipts, now)
            limiter._cancelled += 1
            if len(gate.queue):
                gate.run(now)
        finally:
            limiter._lock.release()
        if limiter._on_event is not None:
            emit(limiter._on_event, Withdrawn(limiter.name, cost_of(charges)))

    def close(self) -> None:
        """End the permit: give back what it holds. Again: nothing happens."""
        self._reveal()
        limiter = self._limiter
        if not limiter._has_places():
            self._ended = True
            return
        gate = limiter._lock_gate()
        try:
            if self._ended:
                return
            self._ended = True
            held = [
                (charged, receipt)
                for charged, receipt in zip(self._charges, self._receipts, strict=True)
                if receipt[0].held
            ]
            now = gate.now()
            give_back([charged for charged, _ in held], [receipt for _, receipt in held], now)
            if len(gate.queue):
                gate.run(now)
        finally:
            limiter._lock.release()

    def observe(
        self, *, remaining: Mapping[str, float] | None = None, reset: Mapping[str, float] | None = None
    ) -> None:
        """Say what the server said in its answer to this call.

        `remaining` was true when the server admitted the call: what was charged since then is subtracted, what was refilled
        since then is added. The level is only ever lowered to that, never raised. See `Limiter.observe`.
        """
        self._reveal()
        self._limiter._observe(remaining or {}, reset or {}, self)

    def __enter__(self) -> Permit:
        return self

    def __exit__(self, kind: object, error: object, trace: object, /) -> None:
        self.close()

    async def __aenter__(self) -> Permit:
        return self

    async def __aexit__(self, kind: object, error: object, trace: object, /) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Permit {', '.join(f'{unit}={amount:g}' for unit, amount in self.cost.items()) or 'of nothing'}>"
