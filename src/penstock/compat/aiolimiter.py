"""aiolimiter's interface (1.3.0) over a penstock limiter: change the import, and nothing else.

    from penstock.compat.aiolimiter import AsyncLimiter      # was: from aiolimiter import AsyncLimiter

What aiolimiter promises is kept, its order too: the smallest amount goes first, so a large one is served only when no
smaller one wants to. Where that is not wanted, use `penstock.Limiter`: it serves in order of arrival.

Beyond it: trio as well as asyncio, any number of loops and threads at the same time, and one timer however many wait.
"""

from __future__ import annotations

import math
import warnings
from contextlib import AbstractAsyncContextManager
from typing import Any

import anyio

from penstock._backends.base import LimiterInfo
from penstock._backends.limit_set import LimitSet
from penstock._backends.local import LocalBackend
from penstock._backends.queue import WaitQueue
from penstock._concurrency.parking import Parker, here, time_here
from penstock._numbers import exact
from penstock.errors import RateLimited
from penstock.limiter import Limiter
from penstock.limits import Rate
from penstock.stores.memory import MemoryStore

__all__ = ["AsyncLimiter"]

_STEPS = 1_000_000  # amounts that differ by less than a millionth wait in order of arrival


class _LoopsQueue(WaitQueue):
    """A queue that goes by the time of the running loop, as aiolimiter does: tests of its users set that by hand."""

    __slots__ = ()

    def now(self) -> float:
        return time_here()


class AsyncLimiter(AbstractAsyncContextManager[None]):
    """At most `max_rate` at once, and `max_rate / time_period` a second after that. `async with limiter:` takes 1.

    **Order.** The smallest amount first, and those of one amount in order of arrival. **Cancellation** at any await
    charges nothing. **Sharing.** Any loop and thread; a loop that was closed in the meantime is warned of, as
    aiolimiter does.

    Args:
        max_rate: Units per period, and the most at once; above 0.
        time_period: Length of the period, in seconds; above 0.

    Raises:
        ValueError: A number is out of its range. (aiolimiter lets a rate of 0 pass, and divides by a period of 0.)
    """

    __slots__ = ("_home", "_limiter", "_max_rate", "_scale", "_time_period")

    def __init__(self, max_rate: float, time_period: float = 60) -> None:
        number = exact(max_rate)
        if number is None:
            raise ValueError(f"max_rate must be a finite number above 0, not {max_rate!r}")
        self._max_rate = max_rate = number
        self._time_period = time_period
        self._home: Parker | None = None
        # A bucket holds at least one unit; where aiolimiter's holds less, its units are counted in smaller ones.
        self._scale = 1 / max_rate if 0 < max_rate < 1 else 1
        rate = Rate(max_rate * self._scale, time_period)
        limits = LimitSet({"units": (rate,)}, _LoopsQueue(math.inf), None)
        self._limiter = Limiter.over(LocalBackend(MemoryStore(), (limits,), fast=False), LimiterInfo("AsyncLimiter"))

    @property
    def max_rate(self) -> float:
        """Units per period, and the most at once."""
        return self._max_rate

    @property
    def time_period(self) -> float:
        """Length of the period, in seconds."""
        return self._time_period

    def has_capacity(self, amount: float = 1) -> bool:
        """Whether `amount` could be taken now. Takes nothing."""
        amount = _exact(amount)
        if not 0 < amount <= self._max_rate:
            return amount <= 0
        return self._limiter.forecast(units=amount * self._scale).wait == 0

    async def acquire(self, amount: float = 1) -> None:
        """Wait until `amount` fits, and take it.

        Raises:
            ValueError: `amount` is not a number from 0 to `max_rate`: it would never fit.
        """
        given, amount = amount, _exact(amount)
        if not 0 <= amount <= self._max_rate:
            raise ValueError(
                f"cannot take {given!r}: "
                f"the amount must be a number from 0 to the capacity, max_rate={self._max_rate!r}"
            )
        if self._home is None or not self._home.alive():
            self._move()
        cost, priority = amount * self._scale, -round(amount * _STEPS)
        while True:
            try:
                await self._limiter.acquire(units=cost, priority=priority)
                return
            except RateLimited as late:  # an enclosing deadline comes first: to aiolimiter that is no reason to refuse
                await anyio.sleep(late.retry_after)

    def _move(self) -> None:
        """Remember where it is used; warn if that was another loop before, which is closed now."""
        if self._home is not None:
            warnings.warn(
                "This AsyncLimiter instance is being re-used across loops. "
                "Here that is safe: what was used stays used. "
                "aiolimiter would ask for a new limiter per event loop; penstock.Limiter needs none and does not warn.",
                RuntimeWarning,
                stacklevel=3,
            )
        self._home = here()

    async def __aenter__(self) -> None:
        await self.acquire()

    async def __aexit__(self, kind: object, error: object, trace: object, /) -> None:
        """Nothing is held, so there is nothing to give back."""

    def __repr__(self) -> str:
        now = self._limiter.statistics()
        (limit,) = now.limits.values()
        level = (limit.capacity - limit.level) / self._scale
        return (
            f"<AsyncLimiter(max_rate={self._max_rate!r}, time_period={self._time_period!r}) at {id(self):#x} "
            f"[level: {level:f}, waiters: {now.waiting}]>"
        )


def _exact(amount: Any) -> float:
    """An amount as a Python number; NaN, which fits nowhere, if it is none."""
    number = exact(amount)
    return math.nan if number is None else number
