"""What a call tells about its retries: notes on the user's error, and log records.

The error is the user's object, so each step here guards against it: whatever its `__repr__` or `add_note` raises, the
error itself goes to the caller.

Log records go to the logger `penstock.retry`: DEBUG for each retry that is scheduled, INFO when a call gives up. A
program that never imported `logging` has set no level, and the default level shows neither. So this module never
imports it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

from penstock._numbers import show_seconds
from penstock._retry_after import ENDS_A_PROGRAM, attribute_of
from penstock.events import Reason
from penstock.retry.settings import RetrySettings

__all__ = ["LONGEST_WAIT", "annotate", "attach_hint", "log_broken", "log_gave_up", "log_scheduled", "repr_of", "why"]

LONGEST_WAIT = 366 * 86_400.0
"""Seconds. No wait is longer: a server that asks for more has made a mistake, and clocks refuse to sleep for
centuries."""

_MOST_NOTES = 40  # on one error, which may be shared by many calls, and raised again and again


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
        case "consumed":
            return (
                f"{argument}, so another attempt would find nothing in it: pass a list, or make it inside the function"
            )


def _bound_of_hints(policy: RetrySettings, hint: float) -> str:
    if policy.max_hint is not None and hint > policy.max_hint:  # type: ignore[operator]  # seconds by now
        return f"max_hint={policy.max_hint} s"
    return "a year, the longest wait there is" if hint > LONGEST_WAIT else "the time left"


def annotate(error: Exception, first: str, history: Sequence[str], attempts: int) -> None:
    """Put notes on an error: `first` says how the call ended, `history` tells of the attempts before."""
    notes = [first]
    if attempts - 1 > len(history) > 0:
        notes.append(f"penstock: the first {attempts - 1 - len(history)} attempts are not shown")
    try:
        if len(getattr(error, "__notes__", ())) < _MOST_NOTES:
            for note in (*notes, *history):
                error.add_note(note)
    except ENDS_A_PROGRAM:
        raise
    except BaseException:  # noqa: BLE001, S110 - a frozen exception, or a strange one, goes without notes
        pass


def attach_hint(error: Exception, hint: float | None) -> None:
    """Let callers read `error.retry_after`, unless the error says something there itself."""
    if attribute_of(error, "retry_after") is not None:
        return
    try:
        error.retry_after = hint  # type: ignore[attr-defined]
    except ENDS_A_PROGRAM:
        raise
    except BaseException:  # noqa: BLE001, S110 - an exception with slots; the note has the number
        pass


def repr_of(error: BaseException | None) -> str:
    """Return an error as a note shows it; None stands for a result that `on_result` refused."""
    if error is None:
        return "its result was refused"
    try:
        shown = repr(error)
    except ENDS_A_PROGRAM:
        raise
    except BaseException as raised:  # noqa: BLE001 - it is the user's
        return f"<{type(error).__qualname__}, whose repr raised {type(raised).__qualname__}>"
    return shown if len(shown) <= 200 else shown[:197] + "..."


# ----------------------------------------------------------------------------------------------------------------------
# Logging


def log_scheduled(
    name: str, key: Callable[[], str], number: int, error: Exception | None, delay: float, hint: float | None
) -> None:
    """Log at DEBUG that attempt `number` failed and that another follows in `delay` seconds."""
    logger = _logger(10)
    if logger is not None:
        message = "%s: attempt %d failed with %s; the next one starts in %s"
        extra = _extra(name, key, number, error) | {"retry_delay": delay, "retry_hint": hint}
        _log(logger, 10, message, (name, number, extra["retry_error"], show_seconds(delay)), extra)


def log_gave_up(
    name: str, key: Callable[[], str], number: int, error: Exception | None, reason: Reason, elapsed: float, words: str
) -> None:
    """Log at INFO that a call gave up after `number` attempts; `words` say why."""
    logger = _logger(20)
    if logger is not None:
        message = "%s: gave up after %d attempts in %s with %s: %s"
        extra = _extra(name, key, number, error) | {"retry_reason": reason, "retry_elapsed": elapsed}
        _log(logger, 20, message, (name, number, show_seconds(elapsed), extra["retry_error"], words), extra)


def log_broken(option: str, function: object, raised: BaseException) -> None:
    """Log at ERROR that a function of the policy raised. The call goes on without its answer."""
    import logging  # 5 ms that only a failing function needs

    logger = logging.getLogger("penstock.retry")
    _log(logger, 40, "Retry(%s=%r) raised %s", (option, function, type(raised).__qualname__), {}, exc_info=raised)


def _extra(name: str, key: Callable[[], str], number: int, error: Exception | None) -> dict[str, Any]:
    return {
        "retry_call": name,
        "retry_key": key(),
        "retry_attempt": number,
        "retry_error": "a refused result" if error is None else type(error).__qualname__,
    }


def _logger(level: int) -> Any:
    """Return the logger if it takes records of this level; else None."""
    logging = sys.modules.get("logging")
    if logging is None:
        return None
    logger = logging.getLogger("penstock.retry")
    return logger if logger.isEnabledFor(level) else None


def _log(logger: Any, level: int, message: str, args: tuple[object, ...], extra: dict[str, Any], **how: Any) -> None:
    try:
        logger.log(level, message, *args, extra=extra, **how)
    except Exception:  # noqa: BLE001, S110 - a filter or a handler of the user's; watching a call must not break it
        pass
