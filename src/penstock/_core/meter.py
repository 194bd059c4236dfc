"""What counts the use of one limit: the protocol behind all kinds of limit.

A limit (`penstock.limits`) says what was promised; its meter knows how much of it is used. A meter decides nothing by
itself: a limiter asks all meters of a call when they would be ready, and charges all or none.

Times are seconds as floats, passed in; amounts are units. A meter is not safe for threads by itself: its owner holds a
lock.
"""

from __future__ import annotations

import copy
import math
from typing import Any, ClassVar


class Meter:
    """Counts the use of one limit. Subclass it, with `limit.meter()` returning one, to add a kind of limit.

    Three methods are needed: `ready_at`, `charge` and `level`. The others have defaults that are right, if not always
    the fastest or the most generous.
    """

    __slots__ = ()

    held: ClassVar[bool] = False
    """Whether what was charged comes back when the permit ends (places), or is spent (rates)."""

    calendar: ClassVar[bool] = False
    """Whether `follow(offset)` must be called with the wall clock's offset before anything else."""

    predictable: ClassVar[bool] = False
    """Whether the moment of `ready_at` comes nearer only by `give_back`, `undo`, `change` and `follow`, no larger cost
    is ready earlier, and `undo` takes back all of a charge. Then a waiter need not be looked at before its moment, and
    a charge may be tried before all others of the call are known to be ready, which is faster.
    """

    catch_up: float = 0.0
    """Seconds by which a charge may be dated back, at most to `ready_since`, where a timer was late."""

    def ready_at(self, cost: float, now: float) -> float:
        """The earliest moment, `now` or later, at which `cost` could be charged if no other call came.

        Never refuses for size: the caller checks that a cost does not exceed the capacity. `inf`: only after a
        give-back.
        """
        raise NotImplementedError

    def ready_since(self, cost: float, now: float) -> float:
        """Since when `cost`, which is ready, has been ready; `now` where that is not known."""
        return now

    def charge(self, cost: float, now: float) -> Any:
        """Count `cost` as used from `now` on, whether or not it fits; return the receipt that `give_back` needs."""
        raise NotImplementedError

    def charge_if_ready(self, cost: float, now: float) -> Any:
        """`charge`, if `cost` is ready now; else None. A `charge` that needs no receipt has `()` for one here."""
        if self.ready_at(cost, now) > now:
            return None
        receipt = self.charge(cost, now)
        return () if receipt is None else receipt

    def level(self, now: float) -> float:
        """Units that could be charged now; below 0 while there is a debt."""
        raise NotImplementedError

    def glance(self, now: float) -> float:
        """`level(now)` for a signal handler, which may come in the middle of any other method: changes nothing."""
        return copy.deepcopy(self).level(now)

    def give_back(self, amount: float, receipt: Any, now: float) -> None:
        """Undo `amount` of the charge that returned `receipt`, as far as that cannot break the limit.

        By default nothing comes back, which is always safe.
        """

    def undo(self, amount: float, receipt: Any, now: float) -> None:
        """Give back all that is left of a charge, whose receipt is not used again."""
        self.give_back(amount, receipt, now)

    def top_up(self, amount: float, more: float, receipt: Any, now: float) -> tuple[float, float, Any]:
        """Charge `more` for a call that was charged `amount` with `receipt` and cost more than was thought.

        Returns:
            How much of the call stays with `receipt`, how much goes with the new receipt, and the new receipt.
        """
        return amount, more, self.charge(more, now)

    def postpone(self, amount: float, receipt: Any, at: float, now: float) -> Any:
        """Count `amount`, of the charge that returned `receipt`, as if charged at `at`, which is `now` or later.

        For a call that leaves some time after it was granted: a window of the server's counts it from its arrival on. A
        bucket refills meanwhile in either case, so by default nothing changes.

        Returns:
            The receipt to give it back with.
        """
        return receipt

    @property
    def guesses(self) -> bool:
        """Whether `ready_at` is a guess, and may come sooner. Then no call is refused because it would be too late."""
        return False

    def ready_after(self, other: float, cost: float, now: float) -> float:
        """`ready_at(cost, now)` as it would be if `other` were charged first."""
        twin = copy.deepcopy(self)
        twin.charge(other, now)
        return twin.ready_at(cost, now)

    def ready_behind(self, ahead: float, cost: float, now: float) -> float:
        """`ready_at(cost, now)` for a waiter behind others that want `ahead` in all, and go first."""
        return self.ready_at(ahead + cost, now)

    def idle(self, now: float) -> bool:
        """Whether this meter could be replaced by a new one without any difference."""
        return False

    def used(self, now: float) -> float:
        """Units in use now: what a new limit in this one's place would have to count as used."""
        raise NotImplementedError

    def change(self, limit: Any, now: float) -> bool:
        """Count for another limit of the same kind from now on, with what is used; False if that cannot be done.

        Then a new meter takes over, charged with `used(now)`, and what was charged before cannot be given back.
        """
        return False

    def pack(self) -> Any:
        """The state to keep of this meter while it is not used, as small as possible; None: the meter itself."""
        return None

    def unpack(self, packed: Any) -> None:
        """Go on from what `pack` returned."""
        raise NotImplementedError

    def idle_as(self, packed: Any, now: float) -> bool:
        """`idle(now)`, of another meter for the same limit that returned `packed`. May leave this one in that state."""
        self.unpack(packed)
        return self.idle(now)

    def lower_to(self, level: float, now: float) -> None:
        """Hear from the server that at most `level` units are left now. Only ever lowers the level."""
        missing = self.level(now) - level
        if missing > 0:
            self.charge(missing, now)


class Unmetered(Meter):
    """The meter of `unlimited`: it counts nothing, and is always ready."""

    __slots__ = ()

    predictable = True

    def __init__(self, limit: Any) -> None:
        pass

    def ready_at(self, cost: float, now: float) -> float:
        return now

    def charge(self, cost: float, now: float) -> Any:
        return None

    def level(self, now: float) -> float:
        return math.inf

    glance = level

    def used(self, now: float) -> float:
        return 0.0

    def idle(self, now: float) -> bool:
        return True

    def pack(self) -> float:
        return 0.0

    def unpack(self, packed: float) -> None:
        """Nothing is kept."""

    def lower_to(self, level: float, now: float) -> None:
        """What is not counted cannot be lowered."""
