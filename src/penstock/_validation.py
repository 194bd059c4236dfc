"""Read and check what users write: limits, options and costs.

Numbers and spans of time are read in `_numbers`, and texts such as "90k/min" in `_notation`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping
from operator import index
from typing import Any

from penstock import _numbers
from penstock._introspect import name_of, why_not_plain
from penstock._text import PLAIN, is_name_of_key, repr_of, text_of
from penstock.errors import CostError
from penstock.limits import Limit, Rate, parse

LimitLike = Limit | str

RESERVED = frozenset({"settle", "max_wait", "priority", "flow", "block"})
"""Keywords of a call: units of these names are given in mappings only."""

_OF_A_LIMITER = frozenset({"name", "store", "max_queue", "ageing", "flow_weights", "enforce", "on_event", "lease"})


def merge_given(what: str, mapping: Any, named: Mapping[str, Any]) -> Mapping[str, Any]:
    """Units given as a mapping and as keywords, as one mapping. For messages `what` is "costs", "limits" or "caps"."""
    if mapping is None:
        return named
    if not isinstance(mapping, Mapping):
        example = {"costs": "5", "limits": '"90k/min"', "caps": '"2M/day"'}[what]
        raise ValueError(
            f'{what} are given by keyword, as in tokens={example}, or as one mapping, {{"tokens": {example}}}; '
            f"not as {repr_of(mapping)}"
        )
    for unit in mapping:
        if not isinstance(unit, str):
            raise ValueError(f"a unit is called by a string, not {repr_of(unit)}")
        if type(unit) is not str:
            return merge_given(what, {text_of(each): value for each, value in mapping.items()}, named)
    twice = sorted(mapping.keys() & named.keys())
    if twice:
        raise ValueError(f"{', '.join(twice)} is given twice: in the mapping and by keyword")
    return {**mapping, **named}


def parse_of(unit: str, text: str) -> Limit:
    """The limit that a text says, of a unit that an error names."""
    try:
        return parse(text)
    except ValueError as error:
        raise ValueError(f"{unit}: {error}") from None


def read_limits(given: Mapping[str, Any], *, by_keyword: bool = True) -> dict[str, tuple[Limit, ...]]:
    """What users write, as limits: strings are read, single ones become tuples, units are checked."""
    limits: dict[str, tuple[Limit, ...]] = {}
    for unit, kinds in given.items():
        if not unit:
            raise ValueError("a unit needs a name, such as 'tokens'")
        if by_keyword and unit in RESERVED:
            raise ValueError(
                f"a unit cannot be called {repr_of(unit)}: that is a keyword of limiter(...). "
                "Choose another word, or give limits and costs as mappings"
            )
        read: list[Limit] = []
        for kind in kinds if isinstance(kinds, list | tuple) else [kinds]:
            if isinstance(kind, str):
                read.append(parse_of(unit, kind))
            elif type(kind) is Rate or (isinstance(kind, Limit) and not isinstance(kind, type)):  # protocols are slow
                read.append(kind)
            else:
                raise ValueError(
                    f'{unit} needs a limit, such as per_minute(3500), "3500/min" or a list of them, not '
                    f"{repr_of(kind)}. "
                    f"(The limiter's own keywords are {', '.join(sorted(_OF_A_LIMITER))}.)"
                )
        if not read:
            raise ValueError(f"{unit} has an empty list of limits: leave it out, or name at least one")
        if len(set(map(str, read))) < len(read):
            raise ValueError(f"{unit} has the same limit twice: {', '.join(map(str, read))}")
        limits[text_of(unit)] = tuple(read)
    return limits


def given_limits(mapping: Any, named: Mapping[str, Any]) -> dict[str, tuple[Limit, ...]]:
    """Limits given as a mapping and as keywords, read; in the mapping units may be called as keywords are."""
    limits = read_limits(merge_given("limits", mapping, {}), by_keyword=False) | read_limits(named)
    merge_given("limits", mapping, named)  # is one given twice?
    return limits


def check_options(
    name: Any, max_queue: Any, ageing: Any, flow_weights: Any, on_event: Any
) -> tuple[str | None, float, dict[Hashable, float] | None]:
    """Check the options of a limiter; return the name, `ageing` in seconds, and the weights as Python numbers."""
    if name is not None and not isinstance(name, str):
        raise ValueError(f"name= must be a string, not {repr_of(name)} (a unit cannot be called 'name')")
    if max_queue is not None and _numbers.read_count(max_queue, 0) is None:
        raise ValueError(f"max_queue must be a whole number of waiters, 0 or more, or None, not {repr_of(max_queue)}")
    seconds = _numbers.span("ageing={}", ageing, forever=True)
    weights: dict[Hashable, float] = {}
    if flow_weights is not None:
        if not isinstance(flow_weights, Mapping):
            raise ValueError(f"flow_weights must be a mapping of flows to weights, not {repr_of(flow_weights)}")
        for flow, weight in flow_weights.items():
            number = _numbers.amount(weight)
            if number:
                weights[flow] = number
            else:
                raise ValueError(
                    f"the weight of flow {repr_of(flow)} must be a finite number above 0, not {repr_of(weight)}"
                )
    check_hook(on_event)
    return None if name is None else text_of(name), seconds, weights or None


def check_no_key(name: str) -> None:
    """Refuse a name that the limits of a key have in a shared store."""
    if is_name_of_key(name):
        raise ValueError(
            f"the name {repr_of(name)} has %:, which stands between the name of a Keyed and a key: use others"
        )


def check_hook(on_event: Any) -> None:
    """Refuse a hook that cannot be called, or would have to be awaited."""
    if on_event is None:
        return
    if not callable(on_event):
        raise ValueError(f"on_event= must be a function of one event, not {repr_of(on_event)}")
    if why := why_not_plain(on_event):
        raise ValueError(f"on_event={name_of(on_event)}: {why}")


def read_wait(max_wait: Any) -> float | None:
    """The longest wait, in seconds; None for any."""
    return None if max_wait is None else _numbers.span("max_wait={}", max_wait, zero=True, forever=True)


MOST_URGENT = 2**53
"""The highest priority, and the lowest with a minus: ages are counted in floats, and so are priorities where stores
keep them."""


def read_priority(priority: Any) -> int:
    try:  # a whole number of any kind, numpy's too; of a plain one without a call, in which a signal handler may raise
        whole: int = priority if type(priority) is int else index(priority)
    except Exception:  # noqa: BLE001 - a class of a user's may refuse in its own way
        raise ValueError(f"priority must be a whole number (higher goes first), not {repr_of(priority)}") from None
    if abs(whole) > MOST_URGENT:
        raise ValueError("priority must be between -2**53 and 2**53, so that waiting still makes a difference")
    return whole


def is_plain(value: object) -> bool:
    """Whether it can neither refuse to be hashed nor to be compared: an exception meanwhile is a signal handler's."""
    return type(value) in PLAIN or (type(value) is tuple and all(map(is_plain, value)))


def equals_itself(value: object) -> bool:
    """Whether an equal of `value` would be found in a dict. A NaN would not, nor what contains one."""
    if isinstance(value, tuple | frozenset):  # they compare their parts by identity first
        return all(map(equals_itself, value))
    return bool(value == value)  # noqa: PLR0124 - NaN is not


def read_flow(flow: Any) -> Any:
    """The flow, which must be a key that can be found again."""
    check_findable("flow", flow)
    return flow


def check_findable(what: str, value: object) -> None:
    """Refuse what an equal would not find in a dict: every call would be a flow, or a key, of its own."""
    try:
        hash(value)
    except Exception as error:
        if is_plain(value):
            raise
        raise ValueError(f"{what} must be hashable, such as a string or a tuple, not {repr_of(value)}") from error
    if not equals_itself(value):
        raise ValueError(f"{what} must equal itself, which {repr_of(value)} does not: it would not be found again")


def read_pause(pause: Any) -> float:
    """The length of a pause, in seconds."""
    return float(_numbers.span("pause({})", pause, zero=True))


def exact_cost(unit: str, cost: Any) -> float:
    """The cost as a Python number; CostError if it is not a finite one, 0 or more."""
    number = _numbers.amount(cost)
    if number is None:
        raise CostError(f"the cost of {unit} must be a finite number, 0 or more, not {repr_of(cost)}")
    return number


def exact_costs(costs: Mapping[str, Any]) -> dict[str, float]:
    """Costs that were found right, as Python numbers: an array of one may change, and stay the same key."""
    return {unit: exact_cost(unit, cost) for unit, cost in costs.items()}


def exact_heard(what: str, heard: Any, read: Callable[[Any], float | None] = _numbers.amount) -> dict[str, float]:
    """What a server said, per unit, as Python numbers; CostError for what it cannot have meant, such as `-1`."""
    if heard is None:
        return {}
    if not isinstance(heard, Mapping):
        raise CostError(f'{what} the units must be a mapping such as {{"tokens": 5}}, not {repr_of(heard)}')
    numbers = {}
    for unit, value in heard.items():
        number = read(value)
        if number is None or not 0 <= number < math.inf:
            raise CostError(f"{what} {unit} must be a finite number, 0 or more, not {repr_of(value)}")
        numbers[unit] = number
    return numbers
