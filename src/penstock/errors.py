"""Everything penstock raises, as one tree.

    PenstockError
    ├── CostError (ValueError)             the call itself is wrong; no wait will mend it
    │   ├── MissingUnit                    a unit that must be given was not
    │   ├── UnknownUnit                    a unit that no limit counts
    │   └── Unsatisfiable                  more than a limit can ever hold
    ├── RateLimited                        not now; `retry_after` says when
    │   └── QueueFull                      too many are waiting already
    ├── WouldBlockEventLoop (RuntimeError)          a thread's wait was asked for inside a running event loop
    ├── ConfigurationConflict (ValueError) one name, two different sets of limits
    ├── StoreError                         the shared store could not answer, until a person mends it
    │   └── Unreachable                    the same, and it may answer again by itself
    ├── AttemptTimeout (TimeoutError)      an attempt, or a call, took longer than it may
    └── CircuitOpen                        the circuit breaker lets nothing through; `retry_after` says until when

Some subpackages have errors of their own below `PenstockError`: `runner`, `usage` (the ledger and caps), `batching`.

A wrong rate, burst or period is a plain `ValueError`: it is found when the limit is written down, before there is a
limiter. Errors of other libraries pass through unwrapped.
"""

from __future__ import annotations

from typing import Any

from penstock._numbers import show_seconds

__all__ = [
    "AttemptTimeout",
    "CircuitOpen",
    "ConfigurationConflict",
    "CostError",
    "MissingUnit",
    "PenstockError",
    "QueueFull",
    "RateLimited",
    "StoreError",
    "UnknownUnit",
    "Unreachable",
    "Unsatisfiable",
    "WouldBlockEventLoop",
]


class PenstockError(Exception):
    """The root of all errors that penstock raises.

    They can be copied, and pickled: a worker process may raise them too.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        # An exception's own way calls its class with `args` alone, and the numbers of ours must be given by name.
        return _again, (type(self), self.args, vars(self))


def _again(kind: type[PenstockError], args: tuple[Any, ...], attributes: dict[str, Any]) -> PenstockError:
    error = kind.__new__(kind, *args)
    error.args = args  # which those that are OSErrors too leave to their __init__
    vars(error).update(attributes)
    return error


class CostError(PenstockError, ValueError):
    """The cost of a call is wrong in itself: waiting would not help."""


class MissingUnit(CostError):  # noqa: N818 - the word of the public face
    """A unit without a default was not given.

    Attributes:
        unit: The unit that is missing.
        limiter: The name of the limiter, or the key, here and below; None if it has none.
    """

    def __init__(self, message: str, *, unit: str, limiter: str | None = None) -> None:
        super().__init__(message)
        self.unit = unit
        self.limiter = limiter


class UnknownUnit(CostError):  # noqa: N818
    """A cost names a unit that no limit counts.

    Attributes:
        unit: The unit that is not known.
        known: The units there are.
    """

    def __init__(self, message: str, *, unit: str, known: tuple[str, ...], limiter: str | None = None) -> None:
        super().__init__(message)
        self.unit = unit
        self.known = known
        self.limiter = limiter


class Unsatisfiable(CostError):  # noqa: N818
    """A cost is above what a limit can ever hold at once, so no wait would do.

    Attributes:
        unit: The unit whose limit is too small.
        cost: What was asked for.
        capacity: The most that the limit can hold at once.
    """

    def __init__(self, message: str, *, unit: str, cost: float, capacity: float, limiter: str | None = None) -> None:
        super().__init__(message)
        self.unit = unit
        self.cost = cost
        self.capacity = capacity
        self.limiter = limiter


class RateLimited(PenstockError):  # noqa: N818
    """Not now: the turn would come too late.

    Attributes:
        retry_after: Seconds until the same call would be granted if no other call came. `inf` if that depends on
            when others give back what they hold.
        blocked_by: The limit that has to be waited for longest, as it is shown in messages: `"tokens"`, or
            `"tokens (2M/day)"` where several limits count the same unit; `"pause"` during a pause.
        limiter: The name of the limiter, or the key; None if it has none.
    """

    def __init__(self, message: str = "", *, retry_after: float, blocked_by: str, limiter: str | None = None) -> None:
        super().__init__(message or f"wait {show_seconds(retry_after)} for {blocked_by}")
        self.retry_after = retry_after
        self.blocked_by = blocked_by
        self.limiter = limiter


class QueueFull(RateLimited):
    """As many calls wait as `max_queue` allows, so this one was refused."""


class WouldBlockEventLoop(PenstockError, RuntimeError):  # noqa: N818
    """A blocking wait was asked for in a thread that runs an event loop: it would stop the loop.

    Also what `acquire_nowait` of a shared store raises, in whatever thread: its answer takes a moment.
    """


class ConfigurationConflict(PenstockError, ValueError):  # noqa: N818
    """Two limiters of one name in one store have different limits."""


class StoreError(PenstockError):
    """A shared store could not answer, or refused to be used as it is."""


class Unreachable(StoreError):  # noqa: N818
    """A shared store gives no answer, or cannot decide now, and may do so again by itself: trying again may help."""


class AttemptTimeout(PenstockError, TimeoutError):  # noqa: N818
    """A call took longer than `timeout(...)` or `attempt_timeout=` allows.

    Attributes:
        seconds: The bound that was passed.
    """

    def __init__(self, message: str, *, seconds: float) -> None:
        super().__init__(message)
        self.seconds = seconds


class CircuitOpen(PenstockError):  # noqa: N818
    """The circuit breaker is open: the call was not made.

    Attributes:
        retry_after: Seconds until the breaker lets a probe through. While a probe is under way: seconds after which it
            is worth to ask again, a finite number.
    """

    def __init__(self, message: str, *, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after
