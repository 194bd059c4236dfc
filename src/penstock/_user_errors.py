"""Looking at an exception of the user's, and asking functions of the user's about it, without losing it.

A property of the exception may raise, and so may a function such as `on` or `hint`. Neither may replace the exception:
the caller gets the original, with a note. Only a function whose answer is of the wrong kind is an error of its own
(`Nonsense`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from penstock import _log
from penstock._classify import Nonsense, On, verdict_on
from penstock._introspect import check_answer
from penstock._numbers import read_seconds
from penstock._retry_after import ENDS_A_PROGRAM

_MOST_NOTES = 40  # on one error, which may be shared by many calls, and raised again and again
_LOG = "penstock.pipeline"


def repr_of(value: object, most: int = 200) -> str:
    """Return the `repr` of a user's object, shortened; its type's name if the `repr` raises."""
    try:
        shown = repr(value)
    except ENDS_A_PROGRAM:
        raise
    except BaseException as raised:  # noqa: BLE001 - whatever an object of the user's raises
        return f"<{type(value).__name__}, whose repr raised {type(raised).__name__}>"
    return shown if len(shown) <= most else shown[: most - 3] + "..."


def add_notes(error: BaseException, *notes: str) -> None:
    """Add notes, if the exception takes notes and has not got many."""
    try:
        if len(getattr(error, "__notes__", ())) < _MOST_NOTES:
            for note in notes:
                error.add_note(note)
    except ENDS_A_PROGRAM:
        raise
    except BaseException:  # noqa: BLE001, S110 - a frozen exception, or a strange one, goes without
        pass


def verdict(owner: str, on: On, error: Exception, log: str = _LOG) -> bool | float:
    """Return what `on` says of an error; False if `on` raises, which goes to the logger of that name.

    Raises:
        Nonsense: `on` returned something that is no verdict.
    """
    says: bool | float = _answer(owner, "on", lambda error: verdict_on(on, error), error, log, otherwise=False)
    return says


def is_true_of(owner: str, option: str, judge: Callable[[Exception], Any], error: Exception) -> bool:
    """Return whether a function of the user's says yes to an error; False if it raises.

    Raises:
        TypeError: It returned an awaitable.
    """
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
    except (Nonsense, *ENDS_A_PROGRAM):
        raise
    except BaseException as raised:  # noqa: BLE001 - a property of the error may raise anything
        add_notes(error, f"penstock: {owner}: `{option}` raised {repr_of(raised)} when asked about this error")
        _log.broken(log, "%s: `%s` raised when asked about an error", owner, option, error=raised)
        return otherwise
