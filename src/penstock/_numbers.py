"""Numbers of users, made exact Python numbers on entry: whatever Python calls a number, and spans of time.

State is kept in Python floats. A `numpy.float32` that slipped in would stick: `float + float32` is a `float32`, whose
24 bits lose a small cost on a large sum. So a number is converted where it comes in, and nothing below sees another
kind.

Nothing here knows which numbers are allowed: each caller checks its own range and writes its own message.
"""

from __future__ import annotations

import math
from datetime import timedelta
from typing import Any, SupportsFloat, SupportsIndex

__all__ = ["Number", "Seconds", "amount", "exact", "is_bool", "read_number", "read_seconds", "show"]

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
    if (
        getattr(getattr(value, "dtype", None), "kind", "") in _NO_NUMBERS
    ):  # numpy's complex numbers and texts have a __float__
        return None
    try:
        if hasattr(kind, "__index__"):
            return int(value)
        if hasattr(kind, "__float__"):
            return float(value)
    except Exception:  # noqa: BLE001 - an array of several numbers, a signalling NaN, a class of a user's that refuses
        return None
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


def show(value: float) -> str:
    """A number as people write it: 90000, 0.5, 1.5e+12."""
    return str(int(value)) if float(value).is_integer() and abs(value) < 1e15 else f"{value:g}"
