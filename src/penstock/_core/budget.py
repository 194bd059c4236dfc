"""How many retries there may be, so that an outage is not multiplied.

Two published schemes. Nothing here reads a clock or takes a lock: callers pass the time in (seconds that never step
back) and see to it that one thread at a time is in here.

`RatioCredit` (Finagle's RetryBudget): every call earns `ratio` of a retry, which is lost when it has not been used for
`ttl` seconds; beside it `floor` retries a second are free, so that a program that calls rarely can still retry. In any
span of T seconds

    retries ≤ ratio · (calls in the span and the ttl before it) + floor · T + max(1, floor)

Finagle keeps `floor · ttl` free retries in hand; we keep one second's worth, so that a herd cannot spend ten seconds'
worth in its first instant.

`TokenCredit` (the standard retry mode of the AWS SDKs): a pot of tokens that starts full. A retry takes some out, one
after a timeout takes more; a success puts back what its last retry took, or 1 if it took none. When a service is down
the pot runs dry, and refills only as calls succeed.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Protocol

from penstock._text import repr_of

_STEPS = 10  # credit expires in steps of a tenth of the ttl, so a busy budget keeps ten numbers and not one per call
_ROUNDING = 1e-9  # ten calls at a ratio of 0.1 are one retry, though ten times 0.1 adds up to a little less


class Credit(Protocol):
    """The counter behind a `Budget`."""

    def called(self, now: float) -> None:
        """Count a call that begins."""

    def spend(self, now: float, *, timed_out: bool) -> float | None:
        """Take the price of one retry and return it; None, and nothing taken, if it is not there."""

    def succeeded(self, paid: float | None) -> None:
        """Count a call that succeeded; `paid` is the price of its last retry, None if it had none."""

    def left(self, now: float) -> float:
        """Return how many retries could be made now."""


class RatioCredit:
    """Retries ≤ ratio · calls + floor per second."""

    __slots__ = ("_free", "_most_free", "_steps", "_updated", "floor", "ratio", "ttl")

    def __init__(self, ratio: float, floor: float, ttl: float) -> None:
        if not (0 <= ratio < math.inf):
            raise ValueError(
                f"Budget(ratio={repr_of(ratio)}): retries per call, 0 or more and finite; 0.2 allows one for five calls"
            )
        if not (0 <= floor < math.inf):
            raise ValueError(f"Budget(floor={repr_of(floor)}): free retries per second, 0 or more and finite")
        if not (0 < ttl < math.inf):
            raise ValueError(
                f"Budget(ttl={repr_of(ttl)}): seconds for which a call's share can be used, above 0 and finite"
            )
        self.ratio = ratio
        self.floor = floor
        self.ttl = ttl
        self._most_free = max(1.0, floor) if floor else 0.0
        self._free = self._most_free
        self._updated = 0.0  # when all this was last brought up to date
        self._steps: deque[list[float]] = deque()  # [when it began, credit not yet used], oldest first

    def called(self, now: float) -> None:
        steps = self._steps
        if steps and steps[-1][0] <= now < steps[-1][0] + self.ttl / _STEPS:
            steps[-1][1] += self.ratio
        else:
            self._refresh(now)
            steps.append([now, self.ratio])

    def spend(self, now: float, *, timed_out: bool) -> float | None:
        self._refresh(now)
        # Earned credit goes first, because it expires. A retry is never half earned and half free: that would let the
        # free half be earned again.
        if self._earned() >= 1 - _ROUNDING:
            due = 1.0
            steps = self._steps
            while steps and due > 0:
                part = min(due, steps[0][1])
                steps[0][1] -= part
                due -= part
                if steps[0][1] <= 0:
                    steps.popleft()
            return 1.0
        if self._free >= 1 - _ROUNDING:
            self._free = max(0.0, self._free - 1)
            return 1.0
        return None

    def succeeded(self, paid: float | None) -> None:
        """Nothing: here a retry stays paid."""

    def left(self, now: float) -> float:
        self._refresh(now)
        return math.floor(self._earned() + _ROUNDING) + math.floor(self._free + _ROUNDING)

    def _earned(self) -> float:
        return math.fsum(credit for _, credit in self._steps)

    def _refresh(self, now: float) -> None:
        steps = self._steps
        if now < self._updated:  # only a test's clock begins anew, and then so do we
            steps.clear()
            self._free = self._most_free
        else:
            self._free = min(self._most_free, self._free + self.floor * (now - self._updated))
        self._updated = now
        while steps and steps[0][0] + self.ttl <= now:
            steps.popleft()


class TokenCredit:
    """A pot of tokens that retries empty and successes refill."""

    __slots__ = ("_tokens", "capacity", "retry", "success", "timeout")

    def __init__(self, capacity: float, retry: float, timeout: float, success: float) -> None:
        for name, value in (("capacity", capacity), ("retry", retry), ("timeout", timeout)):
            if not (0 < value < math.inf):
                raise ValueError(f"Budget.tokens({name}={repr_of(value)}): a number of tokens, above 0 and finite")
        if not (0 <= success < math.inf):
            raise ValueError(
                f"Budget.tokens(success={repr_of(success)}): tokens that a first success gives back, 0 or "
                "more and finite"
            )
        self.capacity = capacity
        self.retry = retry
        self.timeout = timeout
        self.success = success
        self._tokens = capacity

    def called(self, now: float) -> None:
        """Nothing: a call as such earns nothing."""

    def spend(self, now: float, *, timed_out: bool) -> float | None:
        price = self.timeout if timed_out else self.retry
        if self._tokens < price:
            return None
        self._tokens -= price
        return price

    def succeeded(self, paid: float | None) -> None:
        self._tokens = min(self.capacity, self._tokens + (self.success if paid is None else paid))

    def left(self, now: float) -> float:
        return math.floor(self._tokens / self.retry)
