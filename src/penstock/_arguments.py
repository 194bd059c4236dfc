"""Functions of a call's arguments (its cost, its flow, its key), called with the arguments of the decorated function.

A cost function takes what it needs, by the names of the decorated function's parameters: `lambda prompt: len(prompt)`
fits `ask(self, prompt, *, model="m")`, however `ask` is called. A function whose parameters have other names (`len`)
gets the arguments in their order, without `self` or `cls`.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from inspect import Parameter
from typing import Any

from penstock._introspect import name_of
from penstock.errors import CostError

_BY_POSITION = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)

Args = tuple[Any, ...]
Kwargs = dict[str, Any]


def of_call(option: str, chosen: Callable[..., Any], function: Callable[..., Any]) -> Callable[[Args, Kwargs], Any]:
    """Make `chosen`, a function of the arguments of `function`, callable with the arguments of a call.

    CostError, which names it by `option`, if it needs parameters that `function` does not have.
    """
    offered = _parameters(function)
    wanted = _parameters(chosen)
    if wanted is None:
        wanted = [Parameter("written_in_C", Parameter.POSITIONAL_ONLY)]
    if offered is None or {p.kind for p in wanted} == {Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD}:
        return lambda args, kwargs: chosen(*args, **kwargs)
    signature = inspect.signature(function)
    if _by_name(wanted, offered):
        return _picked(chosen, signature, wanted)
    own = [p for p in offered if p.kind in (*_BY_POSITION, Parameter.KEYWORD_ONLY)]
    if own and own[0].name in {"self", "cls"}:
        own = own[1:]
    by_position = [p for p in wanted if p.kind in _BY_POSITION]
    positions = sys.maxsize if any(p.kind is Parameter.VAR_POSITIONAL for p in wanted) else len(by_position)
    needed = sum(p.default is p.empty for p in by_position)
    open_ended = any(p.kind is Parameter.VAR_POSITIONAL for p in offered)
    keywords = any(p.kind is Parameter.KEYWORD_ONLY and p.default is p.empty for p in wanted)
    if keywords or (needed > len(own) and not open_ended):
        raise CostError(
            f"{option}={name_of(chosen)} takes {_shown(chosen)}, which "
            f"{name_of(function)}{_shown(function)} does not have: name its parameters as those of {name_of(function)}"
        )
    return _in_order(chosen, signature, positions)


def _parameters(function: Callable[..., Any]) -> list[Parameter] | None:
    try:
        return list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # some functions written in C have none
        return None


def _by_name(wanted: list[Parameter], offered: list[Parameter]) -> bool:
    """Whether the names of the parameters say what is meant."""
    names = {p.name for p in offered}
    anything = any(p.kind is Parameter.VAR_KEYWORD for p in offered)
    asked = [p for p in wanted if p.kind in (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)]
    if any(p.kind is Parameter.POSITIONAL_ONLY and p.name not in names for p in wanted):
        return False
    known = [p.name in names for p in asked]
    return all(
        there or p.default is not Parameter.empty or (anything and p.kind is Parameter.KEYWORD_ONLY)
        for there, p in zip(known, asked, strict=True)
    ) and (
        any(known) or any(p.kind in (Parameter.POSITIONAL_ONLY, Parameter.VAR_KEYWORD) for p in wanted) or not wanted
    )


def _shown(function: Callable[..., Any]) -> str:
    try:
        return str(inspect.signature(function))
    except (TypeError, ValueError):
        return "(…)"


def _bound(signature: inspect.Signature, args: Args, kwargs: Kwargs) -> Kwargs:
    """The arguments of a call by the names of the function's parameters, defaults included."""
    bound = signature.bind(*args, **kwargs)
    bound.apply_defaults()
    return bound.arguments


def _picked(
    chosen: Callable[..., Any], signature: inspect.Signature, wanted: list[Parameter]
) -> Callable[[Args, Kwargs], Any]:
    """Call `chosen` with the arguments of the names that it wants; with all others too, if it has `**`."""
    offered = list(signature.parameters.values())
    order = [p.name for p in offered if p.kind in _BY_POSITION]
    asked = [p for p in wanted if p.kind in (*_BY_POSITION, Parameter.KEYWORD_ONLY)]
    rest = next((p.name for p in offered if p.kind is Parameter.VAR_KEYWORD), None)
    if rest in {p.name for p in asked}:  # `**options` as the dict that it is
        rest = None
    unnamed = {p.name for p in offered if p.kind is Parameter.VAR_POSITIONAL}
    owner = {"self", "cls"} & {p.name for p in offered[:1]}
    all_of_them = any(p.kind is Parameter.VAR_KEYWORD for p in wanted)
    plain = not all_of_them and all(p.name in order and p.kind in _BY_POSITION for p in asked)
    indexes = [order.index(p.name) for p in asked] if plain else []
    few = max(indexes, default=-1) + 1
    most = sys.maxsize if unnamed else len(order)

    def call(args: Args, kwargs: Kwargs) -> Any:
        if plain and few <= len(args) <= most:  # nearly always: nothing has to be looked up by name
            return chosen(*[args[index] for index in indexes])
        values = _bound(signature, args, kwargs)
        if rest is not None:
            values = {**values.pop(rest, {}), **values}
        given = [values.pop(p.name) for p in asked if p.name in values and p.kind is Parameter.POSITIONAL_ONLY]
        names = {p.name for p in asked} | (values.keys() - unnamed - owner if all_of_them else set())
        return chosen(*given, **{name: value for name, value in values.items() if name in names})

    return call


def _in_order(chosen: Callable[..., Any], signature: inspect.Signature, count: int) -> Callable[[Args, Kwargs], Any]:
    """Call `chosen` with the first arguments, in their order, without `self` or `cls`."""
    offered = list(signature.parameters.values())
    first = 1 if offered and offered[0].name in {"self", "cls"} else 0
    last = first + count
    plain = len(offered) >= last and all(p.kind in _BY_POSITION for p in offered[:last])
    open_ended = any(p.kind is Parameter.VAR_POSITIONAL for p in offered)
    most = sys.maxsize if open_ended else sum(p.kind in _BY_POSITION for p in offered)

    def call(args: Args, kwargs: Kwargs) -> Any:
        if plain and last <= len(args) <= most:  # nearly always: as in `_picked`
            return chosen(*args[first:last])
        values = _bound(signature, args, kwargs)
        given: list[Any] = []
        for parameter in offered[first:]:
            if parameter.kind is Parameter.VAR_POSITIONAL:
                given += values.get(parameter.name, ())
            elif parameter.kind is not Parameter.VAR_KEYWORD:
                given.append(values[parameter.name])
        return chosen(*given[:count])

    return call
