"""The method `__call__` of limiters, written for their units, which are its parameters.

`limiter(tokens=5)` is looked up among the calls that were given before; what was not is left to `Limiter.__call__`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from keyword import iskeyword
from typing import Any

from penstock._backends.base import Binding
from penstock._backends.fast_path import define

WORDS = {"flow": "None", "priority": "ABSENT", "max_wait": "None"}
"""Options of a call that are its parameters beside the units, and what they are unless given."""

_TAKEN = {
    "ABSENT", "Binding", "Exception", "__debug__", "binding", "call", "found", "general", "given",
    "mine", "new", "options", "self", "waits", *WORDS,
}  # fmt: skip
"""Names that the method of `calls_of_units` uses itself, or that no parameter may have."""


class _Absent:
    """Stands for a parameter of `calls_of_units` that was not given: None may be given by mistake."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "..."


ABSENT = _Absent()


class _EmptyBinding(Binding):
    """A binding that is filled in where it is made: a call of `__init__`, or of `object.__new__`, takes longer."""

    __slots__ = ()

    __init__ = object.__init__


def calls_of_units(
    units: tuple[str, ...], sole: str | None, names: dict[str, Any], *, of_key: bool
) -> Callable[..., Any]:
    """The method `__call__` of a limiter, with its units as parameters: nothing is packed and taken out again.

    `sole`: the unit that is nearly always given, and alone. `of_key`: `_quick` holds what calls are made of, not calls.
    `names`: `general`, which takes what was not seen before.
    """
    names = {**names, "ABSENT": ABSENT, "Binding": _EmptyBinding}
    found = [
        "            mine = self._info",
        "            if mine._real is None:",
        "                binding = Binding()",
        "                binding.backend = binding.info = mine",
        "                binding.charge, new, waits = found",
        "                binding.later = None",
        "                call = new()",
        "                call._binding = binding; call._options = waits; call._entered = None",
        "                return call",
    ] if of_key else [
        "            if not found._binding.charge.held: return found",
        "            call = found.__class__()",
        "            call._binding = found._binding; call._options = found._options; call._entered = None",
        "            return call",
    ]  # fmt: skip
    parameters = ", ".join(
        [*(f"{unit}=ABSENT" for unit in units), *(f"{word}={absent}" for word, absent in WORDS.items())]
    )
    plain = " and ".join(f"{word} is {absent}" for word, absent in WORDS.items())
    alone = " and ".join(f"{unit} is ABSENT" for unit in units if unit != sole) or "True"
    by_unit = f"(ABSENT, {', '.join(units)})"  # a tuple that users gave for a cost is none of these
    source = "\n".join([
        f"def __call__(self, given=None, /, {parameters}, **options):",
        "    if given is None and not options:",
        "        try:",
        f"            if {plain}: found = self._quick[{f'{sole} if {alone} else {by_unit}' if sole else by_unit}]",
        f"            else: found = self._quick[ABSENT, {', '.join((*units, *WORDS))}]",
        "        except Exception: pass",
        "        else:",
        *found,
        *(f"    if {unit} is not ABSENT: options[{unit!r}] = {unit}" for unit in units),
        *(f"    if {word} is not {absent}: options[{word!r}] = {word}" for word, absent in WORDS.items()),
        "    return general(self, given, **options)",
    ])  # fmt: skip
    define(source, names)
    call: Callable[..., Any] = names["__call__"]
    return call


def quick_key_of(units: tuple[str, ...], sole: str | None, options: Mapping[str, Any]) -> Any:
    """What the method of `calls_of_units` looks up, given these options; None where it does not."""
    if not units or not options.keys() <= {*units, *WORDS}:
        return None
    given = tuple([options.get(unit, ABSENT) for unit in units])
    words = [options.get(word, None if absent == "None" else ABSENT) for word, absent in WORDS.items()]
    if words != [None, ABSENT, None]:
        return ABSENT, *given, *words
    return options[sole] if sole is not None and options.keys() == {sole} else (ABSENT, *given)


def are_parameters(units: Iterable[str]) -> bool:
    """Whether these can be names of parameters, beside those that the method of `calls_of_units` has already."""
    return all(unit.isascii() and unit.isidentifier() and not iskeyword(unit) and unit not in _TAKEN for unit in units)
