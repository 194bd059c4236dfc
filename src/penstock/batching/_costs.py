"""The cost of an item: all the ways to write it are read into one, and checked against the bounds of a batch.

Which items go together is decided in `_batch`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from penstock import _numbers
from penstock._introspect import check_answer, check_plain
from penstock._text import repr_of
from penstock.errors import MissingUnit, Unsatisfiable

if TYPE_CHECKING:
    from penstock.limiter import Limiter

Item = TypeVar("Item")
Cost = dict[str, float]
CostOf = Callable[[Item], Mapping[str, float] | float] | Mapping[str, float | Callable[[Item], float]]

SLACK = 1 + 1e-12
"""Sums of floats: three 0.1s fit into 0.3."""


def read_max_cost(given: Any) -> Cost:
    """Read `max_cost`: an amount per unit, above 0 and finite."""
    if given is not None and not isinstance(given, Mapping):
        raise ValueError(
            f'Batcher(max_cost={repr_of(given)}): a mapping of units to amounts, such as {{"tokens": 8000}}'
        )
    read: Cost = {}
    for unit, most in (given or {}).items():
        amount = _numbers.amount(most)
        if not amount:
            raise ValueError(f"max_cost must be a finite number of {unit} above 0, not {repr_of(most)}")
        read[unit] = amount
    return read


def cost_function(cost: Any, max_cost: Cost, limiter: Limiter | None) -> Callable[[Any], Mapping[str, Any]] | None:
    """Bring the ways to write a cost into one: a function of the item that returns units and amounts."""
    if cost is None:
        return _cost_of_text if max_cost or (limiter is not None and "tokens" in limiter.limits) else None
    if isinstance(cost, Mapping):
        for unit, amount in cost.items():
            if callable(amount):
                check_plain("Batcher", f"cost[{unit!r}]", amount)
        fixed = {unit: amount for unit, amount in cost.items() if not callable(amount)}
        counted = [(unit, count) for unit, count in cost.items() if callable(count)]
        return lambda item: fixed | {unit: count(item) for unit, count in counted}
    check_plain("Batcher", "cost", cost)

    def cost_of(item: Any) -> Mapping[str, Any]:
        amount = cost(item)
        if isinstance(amount, Mapping):
            return amount
        check_answer("Batcher", "cost", amount)
        units = list(max_cost)
        if not units and limiter is not None:
            # Those that must be given; a request costs 1 unless given.
            units = [
                unit
                for unit, limits in limiter.limits.items()
                if unit != "requests" and all(limit.default is None for limit in limits)
            ]
        if len(units) != 1:
            raise TypeError(
                f"cost returned {repr_of(amount)} for an item, and the units are {', '.join(units) or 'none'}: "
                "return {unit: amount}"
            )
        return {units[0]: amount}

    return cost_of


def _cost_of_text(item: Any) -> Cost:
    if not isinstance(item, str):
        return {}
    try:
        size = len(item.encode())
    except UnicodeEncodeError:  # a lone surrogate, as `os.fsdecode` makes them
        size = len(item.encode(errors="replace"))
    return {"tokens": math.ceil(size / 4)}


def price(item: object, given: Mapping[str, Any], max_cost: Cost) -> Cost:
    """Read what the cost function said of an item; ValueError, Unsatisfiable or MissingUnit if it cannot be."""
    cost: Cost = {}
    bounded = 0
    for unit, said in given.items():
        amount = said if type(said) is int and 0 <= said < 2**63 else _numbers.amount(said)
        if amount is None:
            check_answer("Batcher", "cost", said)
            raise ValueError(f"the cost of an item must be a finite number of {unit}, 0 or more, not {repr_of(said)}")
        cost[unit] = amount
        most = max_cost.get(unit)
        if most is not None:
            bounded += 1
            if amount > most * SLACK:
                raise _too_large(unit, amount, most)
    if bounded < len(max_cost):
        unit = next(unit for unit in max_cost if unit not in cost)
        raise MissingUnit(
            f"max_cost bounds {unit}, but the cost of {repr_of(item, 60)} is not known: "
            f"give cost={{{unit!r}: …}}, a number or a function of the item",
            unit=unit,
        )
    return cost


def _too_large(unit: str, amount: float, most: float) -> Unsatisfiable:
    return Unsatisfiable(
        f"an item of {amount:g} {unit} fits in no batch: max_cost is {most:g} {unit}. "
        "Split the item, or raise max_cost",
        unit=unit,
        cost=amount,
        capacity=most,
    )
