"""Numbers of users, made exact Python numbers on entry: whatever Python calls a number, and spans of time.

State is kept in Python floats. A `numpy.float32` that slipped in would stick: `float + float32` is a `float32`, whose
24 bits lose a small cost on a large sum. So a number is converted where it comes in, and nothing below sees another
kind.

Nothing here knows which numbers are allowed: each caller checks its own range and writes its own message.
"""

from __future__ import annotations

import math
from datetime import timedelta
from operator import index
from typing import Any, SupportsFloat, SupportsIndex

from penstock._text import repr_of

_NO_NUMBERS = frozenset("cSUMmV")
"""Kinds of numpy's types: complex numbers, bytes, text, dates, spans of time, records."""

Number = SupportsFloat | SupportsIndex
"""Whatever Python calls a number: its own, numpy's, `Decimal`, `Fraction`."""

Seconds = float | timedelta
"""A span of time: a number of seconds, or a `timedelta`."""


def exact(value: Any) -> float | None:
    """The value as a Python int or float, NaN and infinities included; None if it is no real number.

    Takes numbers of numpy, `Decimal`, `Fraction`, and anything else with `__index__` or `__float__`.
    """
    kind = type(value)
    if kind is int or kind is float:
        return value  # type: ignore[no-any-return]
    try:
        if getattr(getattr(value, "dtype", None), "kind", "") in _NO_NUMBERS:
            return None  # numpy's complex numbers and texts have a __float__
        try:
            return index(value)
        except TypeError:  # arrays and tensors have an __index__, whatever they hold
            return float(value) if hasattr(kind, "__float__") else None
    except Exception:  # noqa: BLE001 - an array of several numbers, a signalling NaN, a class of a user's that refuses
        return None


def amount(value: Any) -> float | None:
    """An amount of units as an int or float: finite, 0 or more. None if it is anything else."""
    number = exact(value)
    try:
        return number if number is not None and number >= 0 and math.isfinite(number) else None
    except OverflowError:  # an int beyond all floats
        return None


def is_bool(value: Any) -> bool:
    """Whether it is a bool, Python's or numpy's."""
    return type(value).__name__ in {"bool", "bool_"}


def read_count(value: Any, least: int = 1) -> int | None:
    """A whole number of any kind, from `least` on, as a Python int; None if it is anything else, or a bool."""
    if is_bool(value):
        return None
    try:
        number = value if type(value) is int else index(value)
    except Exception:  # noqa: BLE001 - no whole number, or a class of a user's that refuses
        return None
    return number if number >= least else None


def read_flag(option: str, value: Any) -> bool:
    """True or False, else ValueError: the text `"false"`, as environments have it, would count as true."""
    if is_bool(value) or (isinstance(value, int) and index(value) in (0, 1)):
        return bool(value)
    raise ValueError(f"{option} must be True or False, not {repr_of(value)}")


def read_number(value: Any) -> float | None:
    """A number as a Python int or float; None if it is none: a bool, NaN, an int beyond all floats."""
    if is_bool(value):
        return None
    number = exact(value)
    try:
        return None if number is None or math.isnan(number) else number
    except OverflowError:
        return None


def read_seconds(value: Any) -> float | None:
    """A span in seconds; None if `value` is neither a `timedelta` nor a number."""
    return value.total_seconds() if isinstance(value, timedelta) else read_number(value)


def span(form: str, value: object, *, zero: bool = False, forever: bool = False) -> float:
    """A span of time in seconds; ValueError if it is none, or out of its range.

    `form` says where it was given, with {} for the value: "timeout({})". `zero`: it may be 0. `forever`: it may be
    infinite.
    """
    seconds = read_seconds(value)
    if seconds is None or seconds < 0 or (seconds == 0 and not zero) or (seconds == math.inf and not forever):
        least = "0 or more" if zero else "above 0"
        shown = form.replace("{}", repr_of(value))
        raise ValueError(f"{shown}: seconds or a timedelta, {least}{'' if forever else ' and finite'}")
    return seconds


def show(value: float) -> str:
    """A number as people write it: 90000, 0.5, 1.5e+12."""
    return str(int(value)) if float(value).is_integer() and abs(value) < 1e15 else f"{value:g}"


def show_dollars(value: float, digits: int = 2) -> str:
    """Dollars with so many digits behind the point; less than those can tell with two of its own: `$0.0000021`."""
    small = 0 < abs(value) < 10.0**-digits
    return f"${value:,.{1 - math.floor(math.log10(abs(value))) if small else digits}f}"


def number_of(count: int, one: str, many: str = "") -> str:
    """A count with its noun, as people write it: `1 row`, `2,000 rows`; `many`: the plural, if not `one` with an s."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def show_seconds(value: float) -> str:
    """A span of time as people read it: `0.05 s`, `90 s`, `3 min 5 s`, `1 h`, `2 days 3 h`."""
    if value < 0:
        return f"-{show_seconds(-value)}"
    if 0 < value < 1e-3:
        return f"{value * 1e3:.3g} ms" if value >= 1e-6 else "less than 1 µs"
    if value < 119.5 or not math.isfinite(value):
        return f"{value:.3g} s"
    seconds = round(value)
    if seconds < 3600:
        return _two(seconds, 60, "min", "s")
    minutes = round(seconds / 60)
    if minutes < 24 * 60:
        return _two(minutes, 60, "h", "min")
    hours = round(minutes / 60)
    if hours >= 24 * 1_000_000:
        return "over 1,000,000 days"
    return _two(hours, 24, "day" if hours < 48 else "days", "h")


def _two(amount: int, in_one: int, large: str, small: str) -> str:
    whole, rest = divmod(amount, in_one)
    return f"{whole:,} {large}" + (f" {rest} {small}" if rest else "")
