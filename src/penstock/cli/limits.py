"""What `--limits` and `--account` say: limits in words, a file of them per model, what was published, or nothing yet.

A file is JSON or TOML. Each of its entries is one set of limits, which the models that it names share:

    {"gpt-4o": {"requests": "500/min", "tokens": ["30k/min burst 20k", "2M/day"]},
     "text-embedding-*": "requests=3500/min,tokens=1M/min",
     "*": "auto"}

An entry is for the model of its name, its dated snapshots and what was made of it by fine-tuning; with a * at its end,
for all models that begin so and have no entry of their own. The longest beginning counts. A file of units alone, such
as `{"requests": "500/min"}`, is for all models together.
"""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from penstock import limits as _limits
from penstock.cli.terminal import Fault
from penstock.llm import tables, tokens
from penstock.runner.source import Lines, Row, read_row

if TYPE_CHECKING:  # to load it takes longer than to read the options
    from penstock.runner.place import Limits, LimitsOf

__all__ = [
    "LIMITS_HELP",
    "SIMULATED",
    "UNITS",
    "check_window",
    "limits_given",
    "limits_of_first_row",
    "parse_limits",
    "server_limits",
    "the_same",
]

SIMULATED = "requests=3500/min, tokens=90k/min"
"""Limits of `--simulate` unless given: the guide's, for chat."""

Units = Mapping[str, Callable[[Any], Any]]
"""Units that are counted, and what reads a limit of each; it raises ValueError where it cannot."""


def _rate_or_window(text: Any) -> _limits.Limit:
    """A limit out of `60/min burst 5`, `60/min sliding` or, by the clock, `60/min window`.

    Raises:
        ValueError: It cannot be read.
    """
    check_window(text)
    written, _, word = text.rstrip().rpartition(" ") if isinstance(text, str) else ("", "", "")
    kind = _WINDOWS.get(word)
    limit = _limits.parse(text if kind is None else written)
    if not isinstance(limit, _limits.Rate):
        raise ValueError("leave out a unit that is unlimited")
    return limit if kind is None else kind(limit.amount, limit.per)


_WINDOWS: Mapping[str, Callable[[float, float], _limits.Limit]] = {
    "sliding": _limits.sliding,
    "window": _limits.calendar,
}
_WINDOW = re.compile(r"\b(?:sliding|window)\b")


def check_window(text: Any) -> None:
    """Refuse a window that is given a burst, wherever the words stand.

    Raises:
        ValueError: It is.
    """
    if isinstance(text, str) and "burst" in text and _WINDOW.search(text):
        raise ValueError(f"{text.strip()!r}: a window has no burst of its own; leave one of the two words out")


UNITS: Units = dict.fromkeys(("requests", "tokens", "images"), _rate_or_window)

LIMITS_HELP = (
    'Such as "requests=3500/min, tokens=90k/min burst 20k"; or FILE.json or FILE.toml with limits per model: '
    '{"gpt-4o": {"requests": "500/min"}, "*": "auto"}. auto: learned from the answers.'
)

_TOGETHER = ""
"""What an entry is called that is for all models together."""

_FORM = '{"gpt-4o": {"requests": "500/min", "tokens": "30k/min"}, "*": "auto"}'

_MOST_BYTES = 1024 * 1024
"""Of a file of limits. A device may go on for ever."""


def limits_given(limits: str | None, account: str | None) -> tuple[LimitsOf, Limits | None]:
    """The limits of each model; and those of all models together, None where each has its own.

    Args:
        limits: What `--limits` says. "auto" and None: the server's answers will tell.
        account: Whose published limits they are; None: no account's.

    Raises:
        Fault: They cannot be read; or both are given.
    """
    if account is not None and limits is not None:
        raise Fault("--limits and --account both say what the limits are: give one of them")
    if account is not None:
        return _published(account), None
    if limits is None or limits == "auto":
        return _learned, None
    entries = _entries_of(limits, UNITS)
    together = entries.get(_TOGETHER)
    return (_by_model(entries, limits) if together is None else the_same(together)), together


def server_limits(limits: str, units: Units) -> Limits:
    """The limits of a server that has one set of them.

    Raises:
        Fault: They cannot be read; or a file has several sets, or leaves it to a server to tell.
    """
    only, *others = _entries_of(limits, units).values()
    if others or only is None:
        raise Fault(f'--limits: a server has one set of limits: write {limits} like {{"requests": "500/min"}}')
    return only


def limits_of_first_row(lines: Lines, limits_of: LimitsOf, option: str) -> Limits:
    """The limits of the first row's model: a simulated account has one set of them.

    Args:
        lines: The rows.
        limits_of: The limits of each model.
        option: The option that says them.

    Raises:
        Fault: The rows cannot be read twice; or the model has no limits.
    """
    if not lines.is_regular:
        raise Fault(
            f"--simulate with {option} looks for the model in FILE first, and cannot in a pipe: "
            f'give --limits "{SIMULATED}"'
        )
    for number, line in lines.again():
        row = read_row(number, line, tokens.by_bytes)
        if isinstance(row, Row):
            try:
                limits = limits_of(row.model)[1]
            except ValueError as error:
                raise Fault(f"{option}: line {number}: {error}") from None
            if isinstance(limits, Mapping):
                return limits
            break
    return parse_limits(SIMULATED)


def the_same(limits: Limits) -> LimitsOf:
    """These limits for all models together."""
    return lambda _: ("", limits)


def _learned(model: str) -> tuple[str, None]:
    """The server's answers will tell the limits of each model."""
    return model, None


def _published(account: str) -> LimitsOf:
    """The published limits of each model. Dated snapshots share those of their model."""
    accounts = (*tables.accounts(), *tables.tiers())
    if account not in accounts:
        raise Fault(f"--account: there is no {account!r}; there are {', '.join(accounts)}")
    known: dict[str, tuple[str, Limits | None]] = {}

    def limits_of(model: str) -> tuple[str, Limits | None]:
        if model not in known:
            known[model] = (tables.family(model), tables.lookup(model, account).limits)
        return known[model]

    return limits_of


# In words -------------------------------------------------------------------------------------------------------------


def parse_limits(text: str, units: Units = UNITS) -> Limits:
    """Read `requests=3500/min,tokens=90k/min burst 20k`; a unit may come more than once.

    Raises:
        Fault: It is not that; or it names what is not counted.
    """
    try:
        return _in_words(text, units)
    except ValueError as error:
        raise Fault(f"--limits: {error}") from None


def _in_words(text: str, units: Units) -> Limits:
    found: dict[str, list[Any]] = {}
    # A comma may also stand before "burst", and between thousands.
    for part in re.split(r",(?!\s*burst\b)(?!\d{3}(?!\d))", text):
        unit, equals, rate = part.partition("=")
        if not equals:
            raise ValueError(f'cannot read {part.strip()!r}: write it like "requests=3500/min,tokens=90k/min"')
        found.setdefault(unit.strip(), []).append(rate)
    return _rates_of(found, units)


def _rates_of(given: Mapping[str, Any], units: Units) -> Limits:
    """The limits of each unit, each written as a text, or as a list of them.

    Raises:
        ValueError: They are none, or of a unit that is not counted.
    """
    found: dict[str, tuple[Any, ...]] = {}
    for unit, written in given.items():
        if unit not in units:
            raise ValueError(f"{unit!r} is not counted; there are {', '.join(units)}")
        several = written if isinstance(written, list) and written else [written]
        try:
            found[unit] = tuple(map(units[unit], several))
        except ValueError as error:
            raise ValueError(f"{unit}: {error}") from None
    return found


# In a file ------------------------------------------------------------------------------------------------------------

Entries = Mapping[str, "Limits | None"]
"""Names of models → their limits; None: the server's answers will tell. Or `_TOGETHER` alone."""


def _entries_of(text: str, units: Units) -> Entries:
    """The entries of a file, where a text names one; else the limits that it says.

    Raises:
        Fault: It cannot be read.
    """
    if not (text.endswith((".json", ".toml")) or (text and os.path.lexists(text))):
        return {_TOGETHER: parse_limits(text, units)}
    try:
        given = _read(Path(text))
        named = next((unit for unit in units if unit in given), None)
        if not given:
            raise ValueError("it names no model")
        if named is None:
            return {model: _entry(model, limits, units) for model, limits in given.items()}
        other = next((name for name in given if name not in units), None)
        if other is not None:
            raise ValueError(f"{named!r}, which is counted, stands beside {other!r}: name models alone, or units alone")
        return {_TOGETHER: _rates_of(given, units)}
    except OSError as error:
        raise Fault(f"--limits: cannot read {text}: {error.strerror or error}") from None
    except ValueError as error:
        raise Fault(f"--limits: {text}: {error}; write it like {_FORM}") from None


def _read(path: Path) -> dict[str, Any]:
    """What a file says.

    Raises:
        OSError: There is no such file, or it is not ours to read.
        ValueError: It is neither JSON nor TOML.
    """
    with path.open("rb") as file:
        content = file.read(_MOST_BYTES + 1)
    if len(content) > _MOST_BYTES:
        raise ValueError(f"it is longer than {_MOST_BYTES:,} bytes")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start + 1} is not UTF-8") from None
    is_toml = path.suffix == ".toml" or (path.suffix != ".json" and not text.lstrip().startswith("{"))
    try:
        given = tomllib.loads(text) if is_toml else json.loads(text, object_pairs_hook=_each_once)
    except (tomllib.TOMLDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"it is not {'TOML' if is_toml else 'JSON'}: {error}") from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(given, dict):
        raise ValueError("it is not an object of models and their limits")
    return given


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object. Of a name that comes twice one value would be lost without a word."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} stands there twice")
    return found


def _entry(model: str, given: Any, units: Units) -> Limits | None:
    """The limits of an entry; None: the server's answers will tell.

    Raises:
        ValueError: They are none.
    """
    try:
        if not model or "*" in model[:-1]:
            raise ValueError("it is not the name of a model; a * may stand only at its end")
        if given == "auto":
            return None
        if isinstance(given, str):
            return _in_words(given, units)
        if not isinstance(given, dict) or not given:
            raise ValueError(f'it needs limits by unit, or "auto", and not {given!r:.60}')
        inner = next((name for name, value in given.items() if isinstance(value, dict)), None)
        if inner is not None:  # [gpt-4.1] in TOML is the table 1 inside the table gpt-4
            raise ValueError(f'{inner!r} has no limit but names inside: in TOML that name is written "{model}.{inner}"')
        return _rates_of(given, units)
    except ValueError as error:
        raise ValueError(f"{model!r}: {error}") from None


def _by_model(entries: Entries, file: str) -> LimitsOf:
    """The limits of each model by a file."""
    beginnings = sorted((name for name in entries if name.endswith("*")), key=len, reverse=True)
    known: dict[str, tuple[str, Limits | None]] = {}

    def entry_of(model: str) -> str:
        family = tables.family(model)
        for name in (model, family):
            if name in entries:
                return name
        for name in beginnings:
            if model.startswith(name[:-1]) or family.startswith(name[:-1]):
                return name
        raise ValueError(f'{file} has no limits for {model!r}: add it there, or "*" for all others')

    def limits_of(model: str) -> tuple[str, Limits | None]:
        if model not in known:
            name = entry_of(model)
            known[model] = (model, None) if entries[name] is None else (name, entries[name])
        return known[model]

    return limits_of
