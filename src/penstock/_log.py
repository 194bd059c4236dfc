"""Log records through the standard library's `logging`: the loggers `penstock.limiter`, `penstock.retry` and others.

A program that never imported `logging` has no handler, so nothing is loaded or written for it, unless something broke.
Records carry their numbers in `extra`: those of a limiter are `limiter`, `cost`, `wait`, `blocked_by`, `units` and
`seconds`.

Filters and handlers belong to the user, and may raise. Their errors are dropped, because logging a call must not break
it.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from penstock._interruptions import is_an_interruption
from penstock._numbers import show_seconds

DEBUG, INFO, _ERROR = 10, 20, 40  # as `logging` has them, which is not to be imported for that

_loggers: dict[str, Any] = {}


def logger(name: str, level: int) -> Any:
    """The logger of that name if it takes records of that level, else None. Cheap when it does not."""
    log = _loggers.get(name)
    if log is None:
        get = getattr(sys.modules.get("logging"), "getLogger", None)  # another thread may be importing it now
        if get is None:
            return None
        log = _loggers[name] = get(name)
    return log if log.isEnabledFor(level) else None


def write(log: Any, level: int, message: str, *words: object, **how: Any) -> None:
    try:
        log.log(level, message, *words, **how)
    except Exception as raised:  # a filter or a handler of the user's
        if is_an_interruption(raised):
            raise


def broken(name: str, message: str, *words: object, error: BaseException | None = None) -> None:
    """Write at ERROR that a function of the user's raised; `error`, unless it is the one being handled."""
    import logging  # 5 ms that only a failing function needs

    write(logging.getLogger(name), _ERROR, message, *words, exc_info=error or True)


def _named(limiter: str | None) -> str:
    return f'"{limiter}"' if limiter else "a limiter"


def waiting(log: Any, limiter: str | None, cost: Mapping[str, float], wait: float, blocked_by: str | None) -> None:
    _of_a_call(log, DEBUG, "%s makes a call of %s wait %s for %s", limiter, cost, wait, blocked_by)


def refused(limiter: str | None, cost: Mapping[str, float], retry_after: float, blocked_by: str) -> None:
    log = logger("penstock.limiter", INFO)
    if log is not None:
        _of_a_call(
            log, INFO, "%s refuses a call of %s: it would wait %s for %s", limiter, cost, retry_after, blocked_by
        )


def _of_a_call(
    log: Any, level: int, message: str, limiter: str | None, cost: Mapping[str, float], wait: float, blocker: str | None
) -> None:
    words = _named(limiter), dict(cost) or "its default cost", show_seconds(wait), blocker or "the queue"
    write(
        log, level, message, *words, extra={"limiter": limiter, "cost": dict(cost), "wait": wait, "blocked_by": blocker}
    )


def paused(limiter: str | None, seconds: float | None, units: tuple[str, ...]) -> None:
    """A limiter is paused; None: a pause was lifted."""
    log = logger("penstock.limiter", INFO)
    if log is not None:
        what = "goes on" if seconds is None else f"is paused for {show_seconds(seconds)}"
        extra = {"limiter": limiter, "units": units} | ({} if seconds is None else {"seconds": seconds})
        write(log, INFO, "%s %s%s", _named(limiter), what, f" ({', '.join(units)})" if units else "", extra=extra)
