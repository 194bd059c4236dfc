"""What users write, read and checked: limits, options, costs. And how numbers are shown to them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from penstock._introspect import kind_of, name_of
from penstock.errors import CostError
from penstock.limits import Limit, Rate, parse

__all__ = [
    "LimitLike",
    "Shown",
    "check_amount",
    "check_heard",
    "check_options",
    "check_turn",
    "cost_of",
    "read_limits",
    "show_number",
    "show_seconds",
    "told_of",
]

LimitLike = Limit | str

_OF_A_CALL = frozenset({"settle", "max_wait", "priority", "flow"})
_OF_A_LIMITER = frozenset({"name", "store", "max_queue", "ageing", "flow_weights", "enforce", "on_event", "lease"})


class Shown(dict[str, Any]):
    """A dict that stays as it is. Unlike a `MappingProxyType` it can be copied, pickled and given to `dataclasses.asdict`."""

    def _refuse(self, *_: Any, **__: Any) -> Any:
        raise TypeError("this is what was true when you asked: it cannot be changed")

    __setitem__ = __delitem__ = __ior__ = _refuse
    clear = pop = popitem = setdefault = update = _refuse

    def __reduce__(self) -> tuple[Any, ...]:
        return Shown, (dict(self),)


def read_limits(given: Mapping[str, Any]) -> dict[str, tuple[Limit, ...]]:
    """What users write, as limits: strings are read, single ones become tuples, units are checked."""
    limits: dict[str, tuple[Limit, ...]] = {}
    for unit, kinds in given.items():
        if unit in _OF_A_CALL:
            raise ValueError(
                f"a unit cannot be called {unit!r}: that is a keyword of limiter(...). Choose another word"
            )
        read: list[Limit] = []
        for kind in kinds if isinstance(kinds, list | tuple) else [kinds]:
            if isinstance(kind, str):
                read.append(parse(kind))
            elif type(kind) is Rate or isinstance(kind, Limit):  # the latter is slow, as of all protocols
                read.append(kind)
            else:
                raise ValueError(
                    f'{unit} needs a limit, such as per_minute(3500), "3500/min" or a list of them, not {kind!r}. '
                    f"(The limiter's own keywords are {', '.join(sorted(_OF_A_LIMITER))}.)"
                )
        if not read:
            raise ValueError(f"{unit} has an empty list of limits: leave it out, or name at least one")
        if len(set(map(str, read))) < len(read):
            raise ValueError(f"{unit} has the same limit twice: {', '.join(map(str, read))}")
        limits[unit] = tuple(read)
    return limits


def check_options(name: Any, max_queue: Any, ageing: Any, flow_weights: Any, on_event: Any) -> None:
    if name is not None and not isinstance(name, str):
        raise ValueError(f"name= must be a string, not {name!r} (a unit cannot be called 'name')")
    if max_queue is not None and (not isinstance(max_queue, int) or isinstance(max_queue, bool) or max_queue < 0):
        raise ValueError(f"max_queue must be a whole number of waiters, 0 or more, or None, not {max_queue!r}")
    if not isinstance(ageing, int | float) or isinstance(ageing, bool) or not ageing > 0:
        raise ValueError(f"ageing must be a number of seconds above 0 (math.inf for never), not {ageing!r}")
    if flow_weights is not None:
        if not isinstance(flow_weights, Mapping):
            raise ValueError(f"flow_weights must be a mapping of flows to weights, not {flow_weights!r}")
        for flow, weight in flow_weights.items():
            if not isinstance(weight, int | float) or not (math.isfinite(weight) and weight > 0):
                raise ValueError(f"the weight of flow {flow!r} must be a finite number above 0, not {weight!r}")
    if on_event is not None and not callable(on_event):
        raise ValueError(f"on_event= must be a function of one event, not {on_event!r}")
    if on_event is not None and kind_of(on_event) == "async":
        raise ValueError(f"on_event={name_of(on_event)}: it is called and not awaited; give a plain function")


def check_turn(max_wait: Any, priority: Any, flow: Any) -> None:
    if max_wait is not None and (not isinstance(max_wait, int | float) or not max_wait >= 0):
        raise ValueError(f"max_wait must be a number of seconds, 0 or more, or None, not {max_wait!r}")
    if not isinstance(priority, int):
        raise ValueError(f"priority must be a whole number (higher goes first), not {priority!r}")
    try:
        hash(flow)
    except TypeError:
        raise ValueError(f"flow must be hashable, such as a string, not {flow!r}") from None


def check_amount(unit: str, amount: Any) -> None:
    if not _is_amount(amount):
        raise CostError(f"the cost of {unit} must be a finite number, 0 or more, not {amount!r}")


def _is_amount(value: Any) -> bool:
    try:  # a Decimal is a number too, but not one that can be added to others
        return math.isfinite(value + 0.0) and value >= 0
    except (TypeError, OverflowError):
        return False


def check_heard(remaining: Mapping[str, Any], reset: Mapping[str, Any]) -> None:
    """Refuse what a server cannot have meant: `-1`, or a header that was no number."""
    for what, heard in (("what remains of", remaining), ("the seconds until the reset of", reset)):
        for unit, value in heard.items():
            if not _is_amount(value):
                raise CostError(f"{what} {unit} must be a finite number, 0 or more, not {value!r}")


def told_of(states: Sequence[Any]) -> Any:
    """Of several limits of one unit, the one that a server speaks of: which holds least at once."""
    return min(states, key=lambda state: getattr(state.limit, "burst", state.limit.capacity))


def cost_of(charges: Any) -> dict[str, float]:
    return {state.unit: amount for state, amount in charges}


def show_number(value: float) -> str:
    return str(int(value)) if float(value).is_integer() else f"{value:g}"


def show_seconds(value: float) -> str:
    return "until somebody gives back what they hold" if value == math.inf else f"{value:.3g} s"
