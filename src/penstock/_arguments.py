"""Functions of a call's arguments (its cost, its flow, its key), called with the arguments of the decorated function.

A cost function takes what it needs, by the names of the decorated function's parameters: `lambda prompt: len(prompt)`
fits `ask(self, prompt, *, model="m")`, however `ask` is called. A function whose parameters have other names (`len`)
gets the arguments in their order, without `self` or `cls`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from inspect import Parameter
from typing import Any

from penstock._introspect import name_of
from penstock.errors import CostError

_BY_PLACE = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)

Args = tuple[Any, ...]
Kwargs = dict[str, Any]


def of_call(option: str, chosen: Callable[..., Any], function: Callable[..., Any]) -> Callable[[Args, Kwargs], Any]:
    """Make `chosen`, a function of the arguments of `function`, callable with the arguments of a call.

    CostError, which names it by `option`, if it needs parameters that `function` does not have.
    """
    offered = _parameters(function)
    wanted = _parameters(chosen)
    if offered is None or (wanted is not None and _takes_anything(wanted)):
        return lambda args, kwargs: chosen(*args, **kwargs)
    if wanted is not None and _by_name(wanted, offered):
        return _picked(
            chosen, function, [p.name for p in wanted if p.kind in _BY_PLACE or p.kind is Parameter.KEYWORD_ONLY]
        )
    own = [p for p in offered if p.kind in (*_BY_PLACE, Parameter.KEYWORD_ONLY)]
    if own and own[0].name in {"self", "cls"}:
        own = own[1:]
    places = 1 if wanted is None else sum(p.kind in _BY_PLACE for p in wanted)
    if wanted is not None and any(p.kind is Parameter.VAR_POSITIONAL for p in wanted):
        places = len(own)
    needed = 1 if wanted is None else sum(p.kind in _BY_PLACE and p.default is Parameter.empty for p in wanted)
    open_ended = any(p.kind is Parameter.VAR_POSITIONAL for p in offered)
    keywords = (
        [] if wanted is None else [p.name for p in wanted if p.kind is Parameter.KEYWORD_ONLY and p.default is p.empty]
    )
    if keywords or (needed > len(own) and not open_ended):
        raise CostError(
            f"{option}={name_of(chosen)} takes {_shown(chosen)}, which "
            f"{name_of(function)}{_shown(function)} does not have: name its parameters as those of {name_of(function)}"
        )
    return _in_order(chosen, function, places)


def _parameters(function: Callable[..., Any]) -> list[Parameter] | None:
    try:
        return list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # some functions written in C have none
        return None


def _takes_anything(wanted: list[Parameter]) -> bool:
    kinds = {p.kind for p in wanted}
    return kinds == {Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD}


def _by_name(wanted: list[Parameter], offered: list[Parameter]) -> bool:
    """Whether the names of the parameters say what is meant."""
    names = {p.name for p in offered if p.kind in (*_BY_PLACE, Parameter.KEYWORD_ONLY)}
    anything = any(p.kind is Parameter.VAR_KEYWORD for p in offered)
    asked = [p for p in wanted if p.kind in (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)]
    if any(p.kind is Parameter.POSITIONAL_ONLY and p.name not in names for p in wanted):
        return False
    known = [p.name in names for p in asked]
    return all(
        there or p.default is not Parameter.empty or (anything and p.kind is Parameter.KEYWORD_ONLY)
        for there, p in zip(known, asked, strict=True)
    ) and (any(known) or not asked or any(p.kind is Parameter.POSITIONAL_ONLY for p in wanted))


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
    chosen: Callable[..., Any], function: Callable[..., Any], names: list[str]
) -> Callable[[Args, Kwargs], Any]:
    """Call `chosen` with the arguments of these names."""
    signature = inspect.signature(function)
    offered = signature.parameters.values()
    order = [p.name for p in offered if p.kind in _BY_PLACE]
    wanted = {p.name: p for p in _parameters(chosen) or []}
    rest = next((p.name for p in offered if p.kind is Parameter.VAR_KEYWORD), None)
    plain = all(name in order and wanted[name].kind in _BY_PLACE for name in names)
    indexes = [order.index(name) for name in names] if plain else []
    most = max(indexes, default=-1)

    def call(args: Args, kwargs: Kwargs) -> Any:
        if plain and most < len(args):  # nearly always: nothing has to be looked up by name
            return chosen(*[args[index] for index in indexes])
        values = _bound(signature, args, kwargs)
        if rest is not None:
            values = {**values.get(rest, {}), **values}
        only = Parameter.POSITIONAL_ONLY
        given = [values[name] for name in names if name in values and wanted[name].kind is only]
        named = {name: values[name] for name in names if name in values and wanted[name].kind is not only}
        return chosen(*given, **named)

    return call


def _in_order(chosen: Callable[..., Any], function: Callable[..., Any], places: int) -> Callable[[Args, Kwargs], Any]:
    """Call `chosen` with the first arguments, in their order, without `self` or `cls`."""
    signature = inspect.signature(function)
    offered = list(signature.parameters.values())
    first = 1 if offered and offered[0].name in {"self", "cls"} else 0
    last = first + places
    plain = len(offered) >= last and all(p.kind in _BY_PLACE for p in offered[:last])

    def call(args: Args, kwargs: Kwargs) -> Any:
        if plain and last <= len(args):  # nearly always: as in `_picked`
            return chosen(*args[first:last])
        values = _bound(signature, args, kwargs)
        given: list[Any] = []
        for parameter in offered[first:]:
            if parameter.kind is Parameter.VAR_POSITIONAL:
                given += values.get(parameter.name, ())
            elif parameter.kind is not Parameter.VAR_KEYWORD:
                given.append(values[parameter.name])
        return chosen(*given[:places])

    return call
