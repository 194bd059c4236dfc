"""Which errors count: the option `on` of retries, breakers and fallbacks, and its verdict on an error.

Callers pass in an `Exception` only. Cancellation, KeyboardInterrupt and GeneratorExit are not failures.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Coroutine
from inspect import isawaitable
from typing import Any

from penstock._introspect import check_plain, name_of, runs_later
from penstock._numbers import Seconds, read_seconds

On = type[Exception] | tuple[type[Exception], ...] | Callable[[Exception], bool | Seconds]
"""Which errors count: exception types, or a function of the error that returns True, False or a number of seconds."""


_LEAVES: Any = ExceptionGroup.exceptions  # read by way of the class: a subclass may have a property of that name


class Nonsense(Exception):  # noqa: N818 - it is always one of the two below
    """A classifier returned something that is no verdict."""


class _NotAwaited(Nonsense, TypeError):  # noqa: N818
    """It returned an awaitable."""


class _NoWait(Nonsense, ValueError):  # noqa: N818
    """It returned a number of seconds that cannot be waited."""


def check_on(where: str, on: object) -> None:
    """Refuse an `on` that cannot classify errors. `where` is for the message."""
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
    """Return the verdict of `on`: False, True, or a number of seconds. A group counts only if every leaf does.

    Raises:
        Nonsense: `on` is a function, and it returned no verdict. An error that it raises passes through.
    """
    kind = type(error)  # as `except` does: `isinstance` may ask the error itself, which may raise
    if issubclass(kind, ExceptionGroup):
        verdicts = [verdict_on(on, leaf) for leaf in _LEAVES.__get__(error)]
        if any(verdict is False for verdict in verdicts):
            return False
        return max((verdict for verdict in verdicts if verdict is not True), default=True)
    if isinstance(on, type | tuple):
        return issubclass(kind, on)
    return verdict_of(on(error))


def verdict_of(answer: object) -> bool | float:
    """Read a classifier's answer. 0 seconds is a time, and not False."""
    if isinstance(answer, bool):
        return answer
    seconds = read_seconds(answer)
    if seconds is not None and 0 <= seconds < math.inf:
        return float(seconds)
    if seconds is not None or isinstance(answer, float):  # NaN
        raise _NoWait(f"a classifier asked for a retry after {answer!r} s: a wait is 0 or more, and finite")
    if isawaitable(answer):
        if isinstance(answer, Coroutine):
            answer.close()  # or it would warn that it was never awaited
        raise _NotAwaited(f"a classifier returned {answer!r}, which is not awaited: give a plain function")
    if runs_later(answer):
        raise _NotAwaited(f"a classifier returned {answer!r}, which has yet to run: give a plain function")
    return bool(answer)


def shown_on(on: On) -> str:
    """Return `on` as one writes it, for `repr` and `describe`."""
    if isinstance(on, tuple):
        return f"({', '.join(name_of(kind) for kind in on)})"
    return name_of(on)
