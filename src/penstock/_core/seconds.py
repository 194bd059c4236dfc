"""Numbers and spans of time as users write them.

Nothing here knows which numbers are allowed: each caller checks its own range and writes its own message.
"""

from __future__ import annotations

import math
from datetime import timedelta

__all__ = ["Seconds", "read_number", "read_seconds"]

Seconds = float | timedelta
"""A span of time: a number of seconds, or a `timedelta`."""


def read_seconds(value: object) -> float | None:
    """Return a span in seconds; None if `value` is neither a `timedelta` nor a number."""
    return value.total_seconds() if isinstance(value, timedelta) else read_number(value)


def read_number(value: object) -> float | None:
    """Return a number as Python's own; None if `value` is no real number.

    Those of numpy, Decimal and Fraction are numbers. A bool, a text, a complex number, NaN, and numbers beyond the range of
    floats are not. An int stays an int, as messages show it.
    """
    kind = type(value)
    if kind.__name__ in {"bool", "bool_"} or not (hasattr(kind, "__float__") or hasattr(kind, "__index__")):
        return None
    try:
        number = float(value)  # type: ignore[arg-type]  # one of the two methods is there
    except (ArithmeticError, TypeError, ValueError):
        return None
    if math.isnan(number):
        return None
    return value if kind is int else number  # type: ignore[return-value]  # an int
