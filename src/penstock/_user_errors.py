"""Which errors count: the option `on` of retries, breakers and fallbacks, and how the user's functions are asked.

A property of the exception may raise, and so may a function such as `on` or `hint`. Neither may replace the exception:
the caller gets the original, with a note. Only an answer of the wrong type is an error of its own (`Nonsense`), with
the original as its cause. Callers pass in an `Exception` only: cancellation, KeyboardInterrupt and GeneratorExit are
not failures.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Coroutine
from inspect import isawaitable
from typing import Any, Self

from penstock import _log
from penstock._interruptions import is_an_interruption
from penstock._introspect import check_answer, check_plain, name_of, runs_later
from penstock._numbers import Seconds, exact, is_bool, read_seconds
from penstock._text import repr_of

On = type[Exception] | tuple[type[Exception], ...] | Callable[[Exception], bool | Seconds]
"""Which errors count: exception types, or a function of the error that returns True, False or a number of seconds."""


_LEAVES: Any = ExceptionGroup.exceptions  # read by way of the class: a subclass may have a property of that name


class Nonsense(Exception):  # noqa: N818 - it is always one of the two below
    """A classifier returned something that is no verdict."""

    def by(self, classifier: str) -> Self:
        """The same, and whose answer it is."""
        return type(self)(f"{classifier} {self}")


class NotAwaited(Nonsense, TypeError):  # noqa: N818
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
                f"{where}(on={repr_of(on)}): an exception type, a tuple of them, or a function of the exception that "
                "returns True, False or seconds"
            )
        else:
            check_plain(where, "on", on)


def verdict_on(on: On, error: Exception) -> bool | float:
    """Return the verdict of `on`: False, True, or a number of seconds.

    A group counts only if every leaf does, or if its own type was named: `on=ExceptionGroup`.

    Raises:
        Nonsense: `on` is a function, and it returned no verdict. An error that it raises passes through.
    """
    kind = type(error)  # as `except` does: `isinstance` may ask the error itself, which may raise
    if issubclass(kind, ExceptionGroup):
        named = [each for each in (on if isinstance(on, tuple) else (on,)) if isinstance(each, type)]
        if any(issubclass(each, ExceptionGroup) and issubclass(kind, each) for each in named):
            return True
        verdicts = [verdict_on(on, leaf) for leaf in _LEAVES.__get__(error)]
        if any(verdict is False for verdict in verdicts):
            return False
        return max((verdict for verdict in verdicts if verdict is not True), default=True)
    if isinstance(on, type | tuple):
        return issubclass(kind, on)
    return verdict_of(on(error))


def verdict_of(answer: object) -> bool | float:
    """Read a classifier's answer. 0 seconds is a time, and not False."""
    if is_bool(answer):
        return bool(answer)
    seconds = read_seconds(answer)
    if seconds is not None and 0 <= seconds < math.inf:
        return float(seconds)
    if seconds is not None or exact(answer) is not None:  # NaN, or beyond all floats
        raise _NoWait(f"asked for a retry after {repr_of(answer)} s: a wait is 0 or more, and finite")
    if isawaitable(answer):
        if isinstance(answer, Coroutine):
            answer.close()  # or it would warn that it was never awaited
        raise NotAwaited(f"returned {repr_of(answer)}, which is not awaited: give a plain function")
    if runs_later(answer):
        raise NotAwaited(f"returned {repr_of(answer)}, which has yet to run: give a plain function")
    return bool(answer)


def shown_on(on: On) -> str:
    """Return `on` as one writes it, for `repr` and `describe`."""
    if isinstance(on, tuple):
        return f"({', '.join(name_of(kind) for kind in on)})"
    return name_of(on)


# Looking at an error, and asking about it

_MOST_NOTES = 40  # on one error, which may be shared by many calls, and raised again and again
_LOG = "penstock.pipeline"


def add_notes(error: BaseException, *notes: str) -> None:
    """Add notes, if the exception takes notes and has not got many."""
    try:
        if len(getattr(error, "__notes__", ())) < _MOST_NOTES:
            for note in notes:
                error.add_note(note)
    except BaseException as raised:  # a frozen exception, or a strange one, goes without
        if is_an_interruption(raised):
            raise


def verdict(owner: str, on: On, error: Exception, log: str = _LOG) -> bool | float:
    """Return what `on` says of an error; False if it raises, which goes to the log. Nonsense: it is no verdict."""
    try:
        says: bool | float = _answer(owner, "on", lambda error: verdict_on(on, error), error, log, otherwise=False)
    except Nonsense as answer:
        raise answer.by(f"{owner}: `on`, asked about {repr_of(error, 200)},") from error
    return says


def is_true_of(owner: str, option: str, judge: Callable[[Exception], Any], error: Exception) -> bool:
    """Return whether a function of the user's says yes; False if it raises. TypeError: it returned an awaitable."""
    answer = _answer(owner, option, judge, error, _LOG, otherwise=False)
    check_answer(owner, option, answer)
    return bool(answer)


def seconds_asked(owner: str, hint: Callable[[Exception], Any], error: Exception, log: str = _LOG) -> float | None:
    """Return how many seconds a `hint` function found, from 0 to infinity; None if it found none, or raises."""
    answer = _answer(owner, "hint", hint, error, log, otherwise=None)
    check_answer(owner, "hint", answer)
    if isinstance(answer, str | bytes):  # a header, as it came
        try:
            answer = float(answer)
        except ValueError:
            return None
    seconds = read_seconds(answer)
    return seconds if seconds is not None and seconds >= 0 else None


def _answer(
    owner: str, option: str, ask: Callable[[Exception], Any], error: Exception, log: str, *, otherwise: Any
) -> Any:
    """What a function of the user's says of an error; `otherwise`, a note and a log record if it raises."""
    try:
        return ask(error)
    except BaseException as raised:  # a property of the error may raise anything
        if isinstance(raised, Nonsense) or is_an_interruption(raised):
            raise
        add_notes(error, f"penstock: {owner}: `{option}` raised {repr_of(raised)} when asked about this error")
        _log.broken(log, "%s: `%s` raised when asked about an error", owner, option, error=raised)
        return otherwise
