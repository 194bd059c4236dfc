"""How long to wait before the next attempt.

Pure formulas: callers pass in the random draw `u` (0 ≤ u < 1), and the wait before, on which decorrelated jitter
builds. Other code decides whether there is a next attempt at all.

With v = min(cap, first · factorⁿ), n = 0 before the first retry:

    none          v
    full          U(0, v)
    equal         v/2 + U(0, v/2)
    decorrelated  U(first, min(cap, 3 · previous))      previous = first before the first retry

The cap always comes first and the draw after it. In the other order all calls at the cap wait exactly the cap, so calls
that an outage brought into step stay in step. Formulas: M. Brooker, "Exponential Backoff And Jitter"
(AWS Architecture Blog, 2015), whose decorrelated variant draws first; the order is ours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, Protocol, get_args, runtime_checkable

from penstock._numbers import Seconds, read_number, read_seconds
from penstock._text import repr_of

Jitter = Literal["full", "equal", "decorrelated", "none"]

HINT_SPREAD = 0.1
"""Calls that the server sent away until the same moment arrive within this share of the wait after it."""


@runtime_checkable
class Backoff(Protocol):
    """What `Retry(backoff=…)` takes: a value that says how long to wait."""

    @property
    def jitter(self) -> str:
        """How waits are drawn.

        With "none" the wait for a server's hint is exact too; otherwise it is spread above the hint.
        """

    def delay(self, retry: int, previous: float | None, u: float) -> float:
        """Return the wait before a retry, in seconds: 0 or more.

        Args:
            retry: Which retry of this call it is, from 0.
            previous: What this returned for the retry before; None before the first.
            u: A random draw, 0 ≤ u < 1.
        """


@dataclass(frozen=True, slots=True)
class Exponential:
    """Waits that grow by a factor, up to a cap. Made by `exponential`."""

    first: float
    cap: float
    factor: float
    jitter: Jitter

    def __post_init__(self) -> None:
        growth = read_number(self.factor)
        if growth is None or not 1 <= growth < math.inf:
            raise ValueError(
                f"exponential(factor={repr_of(self.factor)}): waits must not shrink; give a factor of 1 or more"
            )
        for name, value in (
            ("first", _seconds("first", self.first)),
            ("cap", _seconds("cap", self.cap)),
            ("factor", growth),
        ):
            object.__setattr__(self, name, value)
        _check_jitter("exponential", self.jitter)

    def delay(self, retry: int, previous: float | None, u: float) -> float:
        """Return the wait before a retry, in seconds, as `Backoff.delay` does."""
        if self.jitter == "decorrelated":
            low = min(self.first, self.cap)
            high = max(low, min(self.cap, 3 * (low if previous is None else previous)))
            return low + u * (high - low)
        try:
            ceiling = min(self.cap, self.first * float(self.factor) ** retry)
        except OverflowError:
            ceiling = self.cap if self.first else 0.0
        return _draw(ceiling, self.jitter, u)

    def __repr__(self) -> str:
        factor = "" if self.factor == 2 else f", factor={self.factor:g}"
        return f"exponential(first={self.first:g}, cap={self.cap:g}{factor}, jitter={self.jitter!r})"


@dataclass(frozen=True, slots=True)
class Constant:
    """The same wait each time. Made by `constant`."""

    seconds: float
    jitter: Jitter

    def __post_init__(self) -> None:
        object.__setattr__(self, "seconds", _seconds("seconds", self.seconds))
        _check_jitter("constant", self.jitter)
        if self.jitter == "decorrelated":
            raise ValueError(
                "constant(jitter='decorrelated'): decorrelated waits grow from one to the next; "
                "use exponential(), or jitter='full' or 'equal'"
            )

    def delay(self, retry: int, previous: float | None, u: float) -> float:
        """Return the wait before a retry, in seconds, as `Backoff.delay` does."""
        return _draw(self.seconds, self.jitter, u)

    def __repr__(self) -> str:
        jitter = "" if self.jitter == "none" else f", jitter={self.jitter!r}"
        return f"constant({self.seconds:g}{jitter})"


def exponential(first: Seconds = 1, cap: Seconds = 60, factor: float = 2, jitter: Jitter = "full") -> Exponential:
    """Waits that grow: `first`, `first` × `factor`, … up to `cap` seconds, each drawn as `jitter` says.

    Args:
        first: The wait before the first retry, before jitter; seconds or a `timedelta`.
        cap: No wait is longer; seconds or a `timedelta`. It is applied before the draw, so that waits at the cap still
            spread.
        factor: What each wait is multiplied by, 1 or more.
        jitter: "full" draws from [0, v), "equal" from [v/2, v), "decorrelated" from [first, 3 × the wait before),
            "none" takes v itself. "full" spreads load best; "equal" never retries at once.

    Raises:
        ValueError: A number is negative or not finite, or there is no such jitter.
    """
    return Exponential(first, cap, factor, jitter)  # type: ignore[arg-type]  # they become numbers there


def constant(seconds: Seconds, jitter: Jitter = "none") -> Constant:
    """The same wait each time, in seconds or as a `timedelta`.

    Exactly that, or drawn from [0, v) ("full") or [v/2, v) ("equal").

    Raises:
        ValueError: `seconds` is negative or not finite, or the jitter is unknown or "decorrelated".
    """
    return Constant(seconds, jitter)  # type: ignore[arg-type]  # it becomes a number there


def spread(hint: float, left: float, u: float) -> float:
    """Return a wait that is never shorter than the server's `hint`, at most a tenth longer, and below `left`; seconds.

    The draw is from the range that fits, and not cut to it: calls whose time runs out together must not arrive
    together.
    """
    return hint + u * min(HINT_SPREAD * hint, max(0.0, left - hint))


def _draw(ceiling: float, jitter: Jitter, u: float) -> float:
    if jitter == "full":
        return u * ceiling
    if jitter == "equal":
        return (1 + u) * ceiling / 2
    return ceiling


def _seconds(name: str, given: Seconds) -> float:
    seconds = read_seconds(given)
    if seconds is None or not 0 <= seconds < math.inf:
        raise ValueError(f"{name}={repr_of(given)}: a wait is a number of seconds, 0 or more and finite")
    return seconds


def _check_jitter(where: str, jitter: object) -> None:
    if jitter not in get_args(Jitter):
        raise ValueError(f"{where}(jitter={repr_of(jitter)}): there are {', '.join(map(repr, get_args(Jitter)))}")
