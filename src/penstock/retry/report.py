"""What a call tells about its retries: notes on the user's error, and log records.

Log records go to the logger `penstock.retry`: DEBUG for each retry that is scheduled, INFO when a call gives up.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from penstock import _log
from penstock._interruptions import is_an_interruption
from penstock._numbers import number_of, show_seconds
from penstock._retry_after import attribute_of
from penstock._user_errors import add_notes
from penstock.events import Reason
from penstock.retry.settings import RetrySettings

LOGGER = "penstock.retry"

LONGEST_WAIT = 366 * 86_400.0
"""Seconds. No wait is longer: a server that asks for more has made a mistake, and clocks refuse to sleep for
centuries."""


def why(policy: RetrySettings, reason: Reason, *, hint: float | None, fast: int | None, argument: str) -> str:
    """Return the words that say why a call gave up."""
    match reason:
        case "attempts":
            return (
                f"{f'attempts={policy.attempts}' if fast is None else f'fast_retries(attempts={fast})'} allows no more"
            )
        case "within":
            return f"the next attempt would start after within={policy.within} s"
        case "deadline":
            return "the wait would pass the deadline of the enclosing cancel scope"
        case "hint":
            hint = hint or 0.0
            return f"the server asks to wait {show_seconds(hint)}, which is more than {_bound_of_hints(policy, hint)}"
        case "budget":
            return f"{policy.budget!r} has no retry left"
        case "unretryable":
            return "`on` says that this error is not worth another attempt"
        case "nested":
            return "an outer retry is in charge (nested=True would retry here too)"
        case "stream":
            return "items were handed out already, and a new attempt would repeat them (resume= says how to go on)"
        case _:  # "consumed"
            return (
                f"{argument}, so another attempt would find nothing in it: pass a list, or make it inside the function"
            )


def _bound_of_hints(policy: RetrySettings, hint: float) -> str:
    if policy.max_hint is not None and hint > policy.max_hint:  # type: ignore[operator]  # seconds by now
        return f"max_hint={policy.max_hint} s"
    return "a year, the longest wait there is" if hint > LONGEST_WAIT else "the time left"


def annotate(error: Exception, first: str, history: Sequence[str], attempts: int) -> None:
    """Put notes on an error: `first` says how the call ended, `history` tells of the attempts before."""
    unseen = attempts - 1 - len(history)
    are = "attempt is" if unseen == 1 else f"{unseen} attempts are"
    between = [f"penstock: the first {are} not shown"] if unseen and history else []
    add_notes(error, first, *between, *history)


def attach_hint(error: Exception, hint: float | None) -> None:
    """Let callers read `error.retry_after`, unless the error says something there itself."""
    if attribute_of(error, "retry_after") is not None:
        return
    try:
        error.retry_after = hint  # type: ignore[attr-defined]
    except BaseException as raised:  # an exception with slots; the note has the number
        if is_an_interruption(raised):
            raise


# ----------------------------------------------------------------------------------------------------------------------
# Logging


def log_scheduled(
    name: str, key: Callable[[], str], number: int, error: Exception | None, delay: float, hint: float | None
) -> None:
    """Log at DEBUG that attempt `number` failed and that another follows in `delay` seconds."""
    log = _log.logger(LOGGER, _log.DEBUG)
    if log is not None:
        message = "%s: attempt %d failed with %s; the next one starts in %s"
        extra = _extra(name, key, number, error) | {"retry_delay": delay, "retry_hint": hint}
        words = name, number, extra["retry_error"], show_seconds(delay)
        _log.write(log, _log.DEBUG, message, *words, extra=extra)


def log_gave_up(
    name: str, key: Callable[[], str], number: int, error: Exception | None, reason: Reason, elapsed: float, words: str
) -> None:
    """Log at INFO that a call gave up after `number` attempts; `words` say why."""
    log = _log.logger(LOGGER, _log.INFO)
    if log is not None:
        message = "%s: gave up after %s in %s with %s: %s"
        extra = _extra(name, key, number, error) | {"retry_reason": reason, "retry_elapsed": elapsed}
        what = name, number_of(number, "attempt"), show_seconds(elapsed), extra["retry_error"], words
        _log.write(log, _log.INFO, message, *what, extra=extra)


def _extra(name: str, key: Callable[[], str], number: int, error: Exception | None) -> dict[str, Any]:
    return {
        "retry_call": name,
        "retry_key": key(),
        "retry_attempt": number,
        "retry_error": "a refused result" if error is None else type(error).__qualname__,
    }
