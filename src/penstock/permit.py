"""Permit: the proof that a call was charged, and what can be said of it afterwards."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from penstock._core.turns import Charges, Marks, Slot, give_back, undo
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

    __slots__ = ("_charges", "_ended", "_granted_at", "_limiter", "_marks")

    _limiter: Limiter
    _charges: Charges
    _marks: Marks
    _ended: bool
    _granted_at: float | None

    @classmethod
    def _of(cls, limiter: Limiter, charges: Charges, marks: Marks, now: float) -> Permit:
        permit = cls()
        permit._limiter = limiter
        permit._charges = charges
        permit._marks = marks
        permit._granted_at = now
        permit._ended = False
        return permit

    def _reveal(self) -> None:
        """Make `_charges`, `_marks` and `_ended` true; for the calls that leave them out."""

    @property
    def cost(self) -> dict[str, float]:
        """What is charged now, per unit: after its end without what it held. Empty after `cancel()`."""
        self._reveal()
        per_slot: dict[Slot, float] = {}
        for slot, amount in self._charges:
            if not (self._ended and slot.meter.held):
                per_slot[slot] = per_slot.get(slot, 0) + amount
        cost: dict[str, float] = {}
        for slot, amount in per_slot.items():
            cost[slot.unit] = max(cost.get(slot.unit, 0), amount)
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
        known = {unit for part in limiter._parts for unit in part.slots}
        for unit, amount in true_cost.items():
            if unit not in known:
                raise limiter._unknown(unit)
            check_amount(unit, amount)
        gate = limiter._lock_gate()
        try:
            now = gate.now()
            charges, marks = list(self._charges), list(self._marks)
            for unit, amount in true_cost.items():
                charged: dict[Slot, float] = {}
                for slot, part in charges:
                    if slot.unit == unit:
                        charged[slot] = charged.get(slot, 0.0) + part
                before = max(charged.values(), default=0.0)  # what a limit that was added since has taken over
                for slots in [part.slots[unit] for part in limiter._parts if unit in part.slots]:
                    for slot in slots:
                        if not (self._ended and slot.meter.held):  # nobody would give back what it holds from now on
                            self._adjust(charges, marks, slot, amount - charged.get(slot, before), now)
            self._charges, self._marks = charges, marks
            if len(gate.line):
                gate.run(now)
        finally:
            limiter._lock.release()
        if limiter._on_event is not None:
            emit(limiter._on_event, Settled(limiter.name, dict(true_cost)))

    @staticmethod
    def _adjust(charges: list[tuple[Slot, float]], marks: Marks, slot: Slot, more: float, now: float) -> None:
        mine = [index for index, (of, _) in enumerate(charges) if of is slot and marks[index][0] is slot.meter]
        if more > 0:
            if mine:
                meter, mark = marks[mine[-1]]
                kept, topped, mark = meter.top_up(charges[mine[-1]][1], more, mark, now)
                charges[mine[-1]] = (slot, kept)
            else:
                topped, mark = more, slot.meter.charge(more, now)
            charges.append((slot, topped))
            marks.append((slot.meter, mark))
        for index in reversed(mine):  # the latest first
            if more < 0:
                amount = charges[index][1]
                back = min(amount, -more)
                give_back([(slot, back)], [marks[index]], now)
                charges[index] = (slot, amount - back)
                more += back

    def cancel(self) -> None:
        """Say that the call was never sent: everything comes back, and the permit ends. Again: nothing happens."""
        self._reveal()
        limiter = self._limiter
        gate = limiter._lock_gate()
        try:
            charges, marks = self._charges, self._marks
            if not charges:
                return
            now = gate.now()
            if self._ended:  # what was held is back already
                kept = [index for index, (slot, _) in enumerate(charges) if not slot.meter.held]
                charges, marks = [charges[i] for i in kept], [marks[i] for i in kept]
            self._charges, self._marks, self._ended = (), [], True
            undo(charges, marks, now)
            limiter._cancelled += 1
            if len(gate.line):
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
            held = [(charged, mark) for charged, mark in zip(self._charges, self._marks, strict=True) if mark[0].held]
            now = gate.now()
            give_back([charged for charged, _ in held], [mark for _, mark in held], now)
            if len(gate.line):
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
