"""Limits that libraries of others decide: what each admits, and how it would say so in headers.

JUDGES[name](amount, seconds)    a judge with one limit, nothing used yet
judge.decide()                   one request: whether it is admitted, and the judge's own numbers
headers_of(verdict, style)       those numbers as headers
true_limit(name, …)              the limit, for a client that is told
share(name, admitted, …)         of what the judge would have admitted, the part that was used
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Protocol

import limits
import pyrate_limiter
import throttled
from judges.names import COUNTER, FIXED, GCRA, MOVING, PYRATE, THROTTLED_FIXED, THROTTLED_SLIDING

from penstock import Rate, calendar, sliding


@dataclass(frozen=True)
class Verdict:
    """One decision.

    Attributes:
        admitted: Whether the request may pass.
        told: Headers in the words that the judge's users know.
        wait: Seconds after which another request may be admitted, as the judge says.
    """

    admitted: bool
    told: dict[str, str]
    wait: float


class Judge(Protocol):
    """Decides one request after the other."""

    def decide(self) -> Verdict: ...


class ByLimits:
    """`limits`, with the headers that web frameworks make of its statistics: the reset is in seconds since 1970."""

    def __init__(self, strategy: str, amount: int, seconds: int) -> None:
        self._item = limits.RateLimitItemPerSecond(amount, seconds)
        self._limiter = limits.strategies.STRATEGIES[strategy](limits.storage.MemoryStorage())

    def decide(self) -> Verdict:
        admitted = self._limiter.hit(self._item, "key")
        reset, remaining = self._limiter.get_window_stats(self._item, "key")
        told = {
            "x-ratelimit-limit": str(self._item.amount),
            "x-ratelimit-remaining": str(max(0, remaining)),
            "x-ratelimit-reset": str(int(reset + 1)),
        }
        return Verdict(admitted, told, max(0.0, reset - time.time()))


class ByThrottled:
    """`throttled-py`, with its state: how many seconds until all of it is there again."""

    def __init__(self, using: str, amount: int, seconds: int) -> None:
        quota = throttled.per_duration(timedelta(seconds=seconds), limit=amount, burst=amount)
        self._throttled = throttled.Throttled(
            using=using, quota=quota, store=throttled.MemoryStore(), key="key", timeout=-1
        )

    def decide(self) -> Verdict:
        result = self._throttled.limit()
        told = {
            "ratelimit-limit": str(result.state.limit),
            "ratelimit-remaining": str(result.state.remaining),
            "ratelimit-reset": f"{result.state.reset_after:.6g}",
        }
        return Verdict(not result.limited, told, result.state.retry_after)


class ByPyrate:
    """`pyrate-limiter`, which knows how many are in its window, and for how long the next one would have to wait."""

    def __init__(self, amount: int, seconds: int) -> None:
        self._amount = amount
        self._bucket = pyrate_limiter.InMemoryBucket([pyrate_limiter.Rate(amount, seconds * 1_000)])

    def decide(self) -> Verdict:
        now = self._bucket.now()
        item = pyrate_limiter.RateItem("key", now)
        self._bucket.leak(now)
        admitted = bool(self._bucket.put(item))
        told = {
            "x-ratelimit-limit": str(self._amount),
            "x-ratelimit-remaining": str(max(0, self._amount - self._bucket.count())),
        }
        return Verdict(admitted, told, 0.0 if admitted else self._bucket.waiting(item) / 1_000)


THROTTLED = {
    GCRA: "gcra",
    "throttled-py, token bucket": "token_bucket",
    "throttled-py, leaking bucket": "leaking_bucket",
    THROTTLED_FIXED: "fixed_window",
    THROTTLED_SLIDING: "sliding_window",
}

JUDGES: dict[str, Callable[[int, int], Judge]] = {
    FIXED: lambda amount, seconds: ByLimits("fixed-window", amount, seconds),
    MOVING: lambda amount, seconds: ByLimits("moving-window", amount, seconds),
    COUNTER: lambda amount, seconds: ByLimits("sliding-window-counter", amount, seconds),
    **{
        name: lambda amount, seconds, using=using: ByThrottled(using, amount, seconds)
        for name, using in THROTTLED.items()
    },
    PYRATE: ByPyrate,
}

ALIGNED = {THROTTLED_FIXED}
"""Judges whose windows begin at whole multiples of the period since 1970, and not with the first request in one."""

COUNTERS = {COUNTER, THROTTLED_SLIDING}
"""Judges that count what was admitted in this window and, by how much of it is still in sight, in the one before."""

BUCKETS = {GCRA, "throttled-py, token bucket", "throttled-py, leaking bucket"}
"""Judges that refill all the time, and begin full."""


def true_limit(name: str, amount: int, seconds: float, style: str) -> Any:
    """A judge's limit as somebody writes it down who knows it.

    There is no word for a counter: it is an amount in so many seconds where headers show what is left, which lower that,
    and elsewhere a rate that it never refuses.
    """
    if name in ALIGNED:
        return calendar(amount, seconds)
    if name in COUNTERS:
        return Rate(amount, seconds) if style == "headers" else Rate(amount, seconds, burst=1)
    return Rate(amount, seconds) if name in BUCKETS else sliding(amount, seconds)


def headers_of(verdict: Verdict, style: str) -> dict[str, str]:
    """What an answer tells."""
    headers = dict(verdict.told) if style == "headers" else {}
    if not verdict.admitted and style != "nothing":
        headers["retry-after"] = str(max(1, math.ceil(verdict.wait)))
    return headers


def share(name: str, admitted: Sequence[float], began: float, amount: int, seconds: float) -> float:
    """Of what the judge would have admitted in whole periods, the share that was used while there was demand.

    A period that demand ended in says nothing: a window gives all that it has to the first who ask.

    Args:
        name: Of the judge.
        admitted: The moments, in seconds since 1970.
        began: When there was demand first.
    """
    whole = math.floor((max(admitted) - began) / seconds) * seconds
    if not whole:
        return 1.0
    most = amount / seconds * whole
    if name in COUNTERS:  # what was admitted at once weighs until the window ends that follows its own
        most = amount + amount / seconds * max(0.0, whole - (seconds - began % seconds))
    elif name in BUCKETS:
        most += amount
    elif name in ALIGNED:
        most = amount * (math.ceil((began + whole) / seconds) - math.floor(began / seconds))
    return min(1.0, sum(moment < began + whole for moment in admitted) / most)


@dataclass
class Ledger:
    """What a judge decided.

    Attributes:
        admitted: The moments, in seconds since 1970.
        refused: The moments at which it said no.
    """

    judge: Judge
    admitted: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)

    def decide(self) -> Verdict:
        """Decide, and write it down."""
        verdict = self.judge.decide()
        (self.admitted if verdict.admitted else self.refused).append(time.time())
        return verdict
