"""Which errors count: `on`, as retries, breakers and fallbacks are given it, and what it says of an error.

Only `Exception` ever comes here. Cancellation, KeyboardInterrupt and GeneratorExit are nobody's failure.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Coroutine
from inspect import isawaitable

from penstock._introspect import check_plain, name_of

__all__ = ["On", "check_on", "shown_on", "verdict_of", "verdict_on"]

On = type[Exception] | tuple[type[Exception], ...] | Callable[[Exception], bool | float]
"""Which errors count: exception types, or a function of the error that says True, False, or in how many seconds."""


def check_on(where: str, on: object) -> None:
    """Refuse what cannot say which errors count: `where` is for the message."""
    for kind in on if isinstance(on, tuple) else (on,):
        if isinstance(kind, type):
            if not issubclass(kind, Exception):
                raise TypeError(
                    f"{where}(on={kind.__name__}): only types of Exception can be given; "
                    "cancellation, KeyboardInterrupt and their like always pass through"
                )
        elif isinstance(on, tuple) or not callable(on):
            raise TypeError(
                f"{where}(on={on!r}): an exception type, a tuple of them, or a function of the exception that returns "
                "True, False or seconds"
            )
        else:
            check_plain(where, "on", on)


def verdict_on(on: On, error: Exception) -> bool | float:
    """Return what `on` says of an error: False, True, or a number of seconds. A group counts only if every leaf does."""
    if isinstance(error, ExceptionGroup):
        verdicts = [verdict_on(on, leaf) for leaf in error.exceptions]
        if any(verdict is False for verdict in verdicts):
            return False
        return max((verdict for verdict in verdicts if verdict is not True), default=True)
    if isinstance(on, type | tuple):
        return isinstance(error, on)
    return verdict_of(on(error))


def verdict_of(answer: object) -> bool | float:
    """Read a classifier's answer. 0 seconds is a time, and not False."""
    if isinstance(answer, bool) or not isinstance(answer, int | float):
        if isawaitable(answer):
            if isinstance(answer, Coroutine):
                answer.close()  # or it would warn that nobody awaited it
            raise TypeError(f"a classifier returned {answer!r}, which is not awaited: give a plain function")
        return bool(answer)
    if not 0 <= answer < math.inf:
        raise ValueError(f"a classifier asked for a retry after {answer!r} s: a wait is 0 or more, and finite")
    return float(answer)


def shown_on(on: On) -> str:
    """Write `on` as it is read, for `repr` and `describe`."""
    if isinstance(on, tuple):
        return f"({', '.join(name_of(kind) for kind in on)})"
    return name_of(on)
