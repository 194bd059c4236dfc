"""How many retries all calls together may make.

The arithmetic is in `_core.budget`; here are the lock and the clock.
"""

from __future__ import annotations

from penstock import clock
from penstock._concurrency.shared_state import SharedState
from penstock._core.budget import Credit, RatioCredit, TokenCredit
from penstock._numbers import Seconds, read_number, span
from penstock._text import repr_of


class Budget(SharedState):
    """How many retries there may be, over all calls and policies that share it. Any thread may use it.

    `Budget(ratio, floor, ttl)` (Finagle's scheme): retries ≤ ratio × calls + floor per second. Each first attempt earns
    `ratio` of a retry. Credit that is not used within `ttl` seconds is lost.

    `Budget.tokens(...)` (the AWS SDKs' scheme): a pot of tokens. Retries take tokens out, and successes put tokens
    back.

    Without a budget an outage multiplies the load on the service by `attempts`. When a budget is spent, errors go to
    the caller at once, with a note that says so.

    A copy of a budget is the budget itself. It cannot be pickled: it counts the calls of one process.

    Args:
        ratio: Retries that each call allows, 0 or more; 0.2 adds at most a fifth to the load.
        floor: Retries per second that are always free, 0 or more, for programs that call rarely.
        ttl: How long the credit of a call can be used; seconds or a `timedelta`, above 0.

    Raises:
        ValueError: A number is negative or not finite, or `ttl` is 0.
    """

    __slots__ = ("_credit", "_shown")

    _credit: Credit

    def __init__(self, ratio: float = 0.2, floor: float = 10, ttl: Seconds = 10) -> None:
        seconds = span("Budget(ttl={})", ttl)
        ratio, floor = _number("Budget", "ratio", ratio), _number("Budget", "floor", floor)
        self._credit = RatioCredit(ratio, floor, seconds)
        self._shown = f"Budget(ratio={ratio:g}, floor={floor:g}, ttl={seconds:g})"

    @classmethod
    def tokens(cls, capacity: float = 500, retry: float = 5, timeout: float = 10, success: float = 1) -> Budget:
        """A pot of `capacity` tokens, full at first.

        A retry costs `retry`, or `timeout` if the attempt before it failed with a `TimeoutError`. A call that succeeds
        puts back the cost of its last retry, or `success` if it needed none.

        Raises:
            ValueError: A number is not above 0 (`success`: 0 or more), or not finite.
        """
        given = {"capacity": capacity, "retry": retry, "timeout": timeout, "success": success}
        read = {name: _number("Budget.tokens", name, value) for name, value in given.items()}
        budget = cls()
        budget._credit = TokenCredit(**read)
        budget._shown = f"Budget.tokens({', '.join(f'{name}={value:g}' for name, value in read.items())})"
        return budget

    def called(self) -> None:
        """Count a call that begins. `Retry` does this."""
        with self._lock:
            self._credit.called(clock.now())

    def spend(self, *, timed_out: bool = False) -> float | None:
        """Take the price of one retry and return it; None, and nothing taken, if there is none left. Never waits."""
        with self._lock:
            return self._credit.spend(clock.now(), timed_out=timed_out)

    def succeeded(self, paid: float | None = None) -> None:
        """Count a call that succeeded; `paid` is the price of its last retry, None if it had none."""
        with self._lock:
            self._credit.succeeded(paid)

    @property
    def left(self) -> float:
        """How many retries could be made now."""
        with self._lock:
            return self._credit.left(clock.now())

    def __repr__(self) -> str:
        return self._shown


def _number(where: str, name: str, value: object) -> float:
    number = read_number(value)
    if number is None:
        raise ValueError(f"{where}({name}={repr_of(value)}): a number is needed")
    return number
