"""Spans of time as users write them: numbers of any kind, and `timedelta`.

Nothing here knows which spans are allowed: each caller checks its own range and writes its own message.
"""

from __future__ import annotations

import math
from datetime import timedelta

__all__ = ["Seconds", "read_seconds"]

Seconds = float | timedelta
"""A span of time: a number of seconds, or a `timedelta`."""


def read_seconds(value: object) -> float | None:
    """Return a span in seconds; None if `value` is no span of time.

    Any real number is one (numpy's, Decimal, Fraction too), and so is a `timedelta`. A bool, a text, a complex number and
    NaN are not. A number beyond the range of floats is not one either. An int stays an int, as messages show it.
    """
    if isinstance(value, timedelta):
        return value.total_seconds()
    kind = type(value)
    if kind.__name__ in {"bool", "bool_"} or not (hasattr(kind, "__float__") or hasattr(kind, "__index__")):
        return None
    try:
        seconds = float(value)  # type: ignore[arg-type]  # one of the two methods is there
    except (ArithmeticError, TypeError, ValueError):
        return None
    if math.isnan(seconds):
        return None
    return value if kind is int else seconds  # type: ignore[return-value]  # an int
