"""What happens, for the standard library's logging: the loggers `penstock.limiter` and `penstock.retry`.

A program that never imported `logging` has no handler, so nothing is loaded or written for it. Records carry their
numbers in `extra`: `limiter`, `cost`, `wait`, `blocked_by`, `units`, `seconds`.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from penstock._numbers import show_seconds

__all__ = ["logger", "paused", "refused", "resumed", "waiting"]


def logger(name: str, level: str) -> Any:
    """The logger of that name if it takes records of that level ("DEBUG", "INFO"), else None.

    Cheap when it does not.
    """
    log = _loggers.get(name)
    if log is None:
        logging = sys.modules.get("logging")
        if logging is None:
            return None
        log = _loggers[name] = logging.getLogger(name)
    return log if log.isEnabledFor(10 if level == "DEBUG" else 20) else None


_loggers: dict[str, Any] = {}


def _named(limiter: str | None) -> str:
    return f'"{limiter}"' if limiter else "a limiter"


def waiting(log: Any, limiter: str | None, cost: Mapping[str, float], wait: float, blocked_by: str | None) -> None:
    """A call has to wait."""
    log.debug(
        "%s makes a call of %s wait %s for %s", _named(limiter), dict(cost) or "its default cost", show_seconds(wait),
        blocked_by or "the queue",
        extra={"limiter": limiter, "cost": dict(cost), "wait": wait, "blocked_by": blocked_by},
    )  # fmt: skip


def refused(limiter: str | None, cost: Mapping[str, float], retry_after: float, blocked_by: str) -> None:
    """A call was refused."""
    log = logger("penstock.limiter", "INFO")
    if log is not None:
        log.info(
            "%s refuses a call of %s: it would wait %s for %s", _named(limiter), dict(cost) or "its default cost",
            show_seconds(retry_after), blocked_by,
            extra={"limiter": limiter, "cost": dict(cost), "wait": retry_after, "blocked_by": blocked_by},
        )  # fmt: skip


def paused(limiter: str | None, seconds: float, units: tuple[str, ...]) -> None:
    """A limiter is paused."""
    log = logger("penstock.limiter", "INFO")
    if log is not None:
        log.info(
            "%s is paused for %s%s", _named(limiter), show_seconds(seconds), f" ({', '.join(units)})" if units else "",
            extra={"limiter": limiter, "seconds": seconds, "units": units},
        )  # fmt: skip


def resumed(limiter: str | None, units: tuple[str, ...]) -> None:
    """A pause was lifted."""
    log = logger("penstock.limiter", "INFO")
    if log is not None:
        log.info(
            "%s goes on%s",
            _named(limiter),
            f" ({', '.join(units)})" if units else "",
            extra={"limiter": limiter, "units": units},
        )
