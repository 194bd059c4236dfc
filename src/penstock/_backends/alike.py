"""Remember the charges of costs, and make the charge of a new cost from that of a similar one.

If each prompt has its own number of tokens, nearly every cost is new. Its charge is then copied from one with the same
units, with other numbers. `charges` works out what cannot be copied.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from penstock._backends.base import Charge, Clearance, cost_key
from penstock._validation import RESERVED, exact_costs, is_plain

_MOST = 1e300
"""Amounts above are looked at more closely."""

_MOST_KNOWN = 4_000
"""Costs that are remembered at a time."""


_MISSED: Any = object()
"""Where a full dict counts what it was asked to remember."""


def remember(known: dict[Any, Any], cost: Any, made: Any) -> None:
    """Remember what was made for a cost, in a dict that is plain, as these are found faster; not for very many.

    To replace what is remembered for each cost that comes once would take longer than to make it. So once the dict is
    full nothing is added, until ten times as many costs have come that were not among them.
    """
    if len(known) >= _MOST_KNOWN:
        missed = known[_MISSED] = known.get(_MISSED, 0) + 1
        if missed < 10 * _MOST_KNOWN:
            return
        known.clear()
    known[cost] = made


def known_by(known: Any, cost: Any) -> Any:
    """What is remembered for a cost; None: nothing, or it cannot be looked up, as an array of one number."""
    try:
        return known.get(cost)
    except Exception:
        if is_plain(cost):
            raise
        return None


def charge_of(
    known: dict[Any, Charge], cost: Mapping[str, float], make: Callable[[Mapping[str, float]], Charge]
) -> Charge:
    """The charge of a cost: one of those that are known, or a new one."""
    plain = RESERVED.isdisjoint(cost)  # else the key is that of another call: `per_user[key](flow="alice")`
    charge: Charge | None = known_by(known, cost_key(cost)) if plain else None
    if charge is None:
        charge = make(cost)
        if plain:
            remember(known, cost_key(exact_costs(cost)), charge)
    return charge


class Alike:
    """Charges to make others from: one for each choice of units, and of which of the amounts are whole.

    `clearance`: that of the limits that are charged, which is another one when they change.
    """

    __slots__ = ("_charges", "clearance")

    def __init__(self, clearance: Clearance) -> None:
        self.clearance = clearance
        self._charges: dict[Any, Charge] = {}

    def charge(self, cost: Mapping[str, Any]) -> Charge | None:
        """A charge of this cost; None if it has to be worked out."""
        kind = _kind(cost)
        like = None if kind is None else self._charges.get(kind)
        if like is None:
            return None
        charges, operands = [], [*like.operands]
        at = 1  # of a limit's amount in `operands`
        for state, amount in like.charges:
            given = cost.get(state.unit, amount)
            if not 0 < given < _MOST or given > state.limit.capacity:
                return None  # what is wrong with it is said where it is worked out
            charges.append((state, given))
            if operands:
                operands[at] = float(given)
            at += 2
        charge = Charge.__new__(Charge)
        charge.cost, charge._full_cost, charge.charges, charge.operands = cost, None, tuple(charges), tuple(operands)
        charge.grant, charge.release, charge.shape = like.grant, like.release, like.shape
        charge.held, charge.watched, charge.closer = like.held, like.watched, like.closer
        charge.clearance, charge.where = like.clearance, like.where
        return charge

    def add(self, charge: Charge) -> None:
        """Make others from this charge, of which each amount that is given counts somewhere."""
        kind = _kind(charge.cost)
        counted = {state.unit for state, _ in charge.charges}
        if kind is not None and counted.issuperset(charge.cost):
            self._charges[kind] = charge


def _kind(cost: Mapping[str, Any]) -> Any:
    """The units of a cost, with which of their amounts are whole; None where these are not plain numbers."""
    if len(cost) == 1:  # nearly always
        ((unit, amount),) = cost.items()
        return (unit, not amount % 1) if type(amount) is int or type(amount) is float else None
    if not {type(amount) for amount in cost.values()} <= {int, float}:
        return None
    return (*cost, *[not amount % 1 for amount in cost.values()])
