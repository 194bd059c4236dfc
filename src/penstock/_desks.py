"""What the courier keeps books of: the limits of each name, who waits at which desk, and what one call asks.

Nothing here speaks to a store, and nothing waits. All of it is the courier's, with `store.lock` held; limiters make slips and read meters.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from penstock import clock
from penstock._concurrency.parking import Parker
from penstock._core import lease as leases
from penstock._core import ledger
from penstock._core.bucket import Bucket
from penstock._core.lease import Holding, Leased, Piece, Share
from penstock._core.places import Places
from penstock._core.queue import Waiter
from penstock._core.turns import LimitState, meter_for
from penstock._core.windows import CalendarWindow, Entry, SlidingWindow
from penstock._gate import Gate, Part
from penstock.stores.contract import Terms

if TYPE_CHECKING:
    from penstock._shared import SharedLimiter, SharedPermit
    from penstock.limits import Limit

__all__ = ["ANY", "POLL", "Account", "Call", "ChunkAsked", "Desk", "Return", "SharedLimitState", "Slip"]

POLL = (0.002, 0.050)
"""Seconds, first and longest, between questions for what only comes back when somebody gives it back."""

ANY: Any = object()
"""Nobody yet: the first to come decides which group, and which flow, a call is of."""

Return = tuple["SharedLimitState", float, float, float]
"""To give back: a state, the amount, and the epoch and receipt of its charge."""


class SharedLimitState(Leased):
    """One limit of a name: whose it is, and its place among the terms."""

    __slots__ = ("account", "index", "mode")

    account: Account
    index: int
    mode: float


class Account(Part):
    """The limits of one name in a shared store, as this process knows them."""

    __slots__ = ("agreed", "held", "lease", "looking", "order", "place_ttl", "renew_at", "terms")

    def __init__(
        self, name: str, limits: dict[str, tuple[Limit, ...]], desk: Desk, place_ttl: float, lease: float | None
    ) -> None:
        self.place_ttl = place_ttl
        self.agreed = False  # whether the store has ever decided by these terms
        self.looking = False  # whether the store is being asked if reservations still hold
        self.held: dict[SharedLimitState, float] = {}  # places of this process that must be renewed
        self.renew_at = math.inf
        self.lease = lease
        self.terms = Terms(name, limits, place_ttl, lease)
        super().__init__(limits, desk, name)

    def promise(self, limits: dict[str, tuple[Limit, ...]], now: float) -> None:
        wanted = {**self.terms.limits, **limits}
        if wanted != self.terms.limits:  # not at first
            self.terms = Terms(self.terms.name, wanted, self.place_ttl, self.lease)
        for unit, kinds in limits.items():
            old = self.states.get(unit, ())
            states: list[SharedLimitState] = []
            for index, limit in enumerate(kinds):
                label = unit if len(kinds) == 1 else f"{unit} ({limit})"
                if index < len(old):
                    state = old[index]
                    state.label = label
                    state.promise(limit, now)
                else:
                    state = SharedLimitState(unit, limit, label)
                    state.holding = Holding()
                if self.lease is not None:  # the meter is the store's, and the limit is what was promised
                    state.meter = meter_for(leases.working(limit, self.lease))
                states.append(state)  # type: ignore[arg-type]  # all of them are
            self.states[unit] = tuple(states)
            default = next((limit.default for limit in kinds if limit.default is not None), None)
            if default is None and unit == "requests":
                default = 1
            self.defaults.pop(unit, None)
            if default is not None:
                self.defaults[unit] = default
        self.order: list[SharedLimitState] = [state for unit in self.terms.limits for state in self.states[unit]]  # type: ignore[misc]
        offset = clock.wall() - clock.now()
        for index, (state, numbers) in enumerate(zip(self.order, self.terms.numbers(clock.wall() * 1e6), strict=True)):
            state.account = self
            state.index = index
            state.mode = numbers[3] if numbers[0] == ledger.WINDOW else -1.0
            if isinstance(state.meter, CalendarWindow):
                state.meter.follow(offset)
        self.version += 1

    def mirror(self, states: Any, at: int, now: float, server: float) -> None:
        """Let the meters show what the store has just said."""
        for state in self.order:
            pause, used, what = states[at : at + 3]
            at += 3
            state.paused_until = now + pause if pause > 0 else -math.inf
            meter = state.meter
            if isinstance(meter, Bucket):
                meter.offset = 0.0
                meter.tat = now * meter.rate + used
                meter.rounding = 0.0
            elif isinstance(meter, CalendarWindow):
                meter.offset = server / 1e6 - now
                meter.unpack((what / 1e6, used))
            elif isinstance(meter, Places):
                meter.unpack(used)
            elif isinstance(meter, SlidingWindow):
                meter.log.clear()
                if used:
                    meter.log.append(Entry(now + (what - server) / 1e6 - meter.per, used))
                meter._total = used


class Slip(Waiter):
    """One who waits: what it costs, until when, and what came of it.

    `state` goes from "new" to "queue", "asked", "reserved" and "granted"; to "gone" when it leaves, to "refused" with an error.
    """

    __slots__ = (
        "call",
        "confirmed",
        "cost",
        "deadline",
        "due",
        "epochs",
        "error",
        "granted_at",
        "limiter",
        "parker",
        "receipts",
        "shares",
        "state",
        "waited",
    )  # fmt: skip

    charges: Any

    def __init__(
        self,
        limiter: SharedLimiter,
        cost: Mapping[str, float],
        charges: Any,
        parker: Parker,
        priority: int,
        flow: Hashable,
        deadline: float,
    ) -> None:
        # `Waiter.__init__` written out, and what is only looked at later left to whoever sets it: there is one of these per call.
        self.charges = charges
        self.priority = self.level = priority
        self.flow = flow
        self.number = 0
        self.arrived = self.entered = 0.0
        self.subqueue = None
        self.limiter = limiter
        self.cost = cost
        self.parker = parker
        self.deadline = deadline
        self.state = "new"
        self.call: Call | None = None  # that asks for it
        self.due = 0.0
        self.waited = 0.0
        self.confirmed = False
        self.granted_at = 0.0
        self.receipts: Sequence[float] = ()
        self.epochs: Mapping[Account, float] = {}
        self.shares: list[Share] | None = None  # what it has of chunks that are held here, instead of receipts
        self.error: Exception | None = None

    @property
    def done(self) -> bool:
        """Whether there is nothing left to wait for."""
        return self.state == "granted" or self.error is not None


class Desk(Gate):
    """A queue in front of limits that live elsewhere: who wants to be asked for, and who has a reservation."""

    __slots__ = (
        "__weakref__", "accounts", "alarm", "behind", "blocked", "coming", "fresh", "life", "more_at", "poll", "reserved",
        "tended", "told",
    )  # fmt: skip

    def __init__(
        self, ageing: float = 30.0, weights: dict[Hashable, float] | None = None, life: float | None = None
    ) -> None:
        super().__init__(ageing, weights)
        self.accounts: WeakSet[Account] = WeakSet()
        self.life = life  # seconds for which what is granted may be held; None: no leases
        self.coming = 0  # how many have been sent to the courier and are not here yet
        self.more_at = -math.inf  # before that, the store has no more than what the first in the queue need
        self.tended = -math.inf  # when somebody looks next whether what is held is used
        self.fresh: deque[Slip] = deque()  # came just now, and nobody has looked at them yet
        self.reserved: list[Slip] = []
        self.blocked: dict[
            LimitState, float
        ] = {}  # what only comes back when it is given back: when to ask for it again
        self.told: set[Hashable] = set()  # flows of which the store knows that they wait here
        self.behind: dict[Hashable, float] = {}  # flows that are ahead of those of other processes: when to ask again
        self.poll = POLL[0]
        self.alarm = math.inf

    @property
    def waiting(self) -> int:
        """How many wait here."""
        return len(self.queue) + len(self.fresh) + len(self.reserved)

    def states(self) -> list[SharedLimitState]:
        """All limits that calls are charged on here."""
        return [state for account in self.accounts for state in account.order]

    def merge(self, other: Gate) -> Gate:
        """Become one with `other`, with one order for all who wait; return the desk that is left: which is more desks already."""
        if other is self:
            return self
        assert isinstance(other, Desk)
        if other._merged > self._merged:
            return other.merge(self)
        self._merged += other._merged
        self.queue.weights = {**other.queue.weights, **self.queue.weights}
        self.queue.ageing = min(self.queue.ageing, other.queue.ageing)
        other.into = self
        self.queue.take_in(other.queue)
        self.accounts |= other.accounts
        self.coming += other.coming
        if self.life is not None and other.life is not None:
            self.life = min(self.life, other.life)
        self.fresh.extend(other.fresh)
        self.reserved.extend(other.reserved)
        self.blocked.update(other.blocked)
        return self


class ChunkAsked:
    """A piece of a chunk on its way, in the place of a slip."""

    __slots__ = ("charges", "desk", "first", "horizon")

    state = "chunk"
    call = None

    def __init__(self, piece: Piece, desk: Desk) -> None:
        self.charges: Any = piece.charges
        self.horizon = piece.horizon
        self.first = piece.horizon == math.inf  # whether somebody waits for just that
        self.desk = desk


class Call:
    """One batch on its way: what is asked, and who is to hear the answer."""

    __slots__ = (
        "asked",
        "changed",
        "epochs",
        "flow",
        "group",
        "looks",
        "offsets",
        "operations",
        "payer",
        "returns",
        "sent",
        "tell",
        "width",
    )

    def __init__(self) -> None:
        self.group: Any = ANY
        self.offsets: dict[Account, int] = {}
        self.width = 0
        self.operations: list[float] = []
        self.sent = 0.0  # when it was sent first
        self.flow: Hashable = ANY  # whose request was written last, and the account that knows that flow
        self.payer: Account | None = None
        self.asked: list[Any] = []  # slips and pieces of chunks, in the order of their requests
        self.changed: list[
            tuple[SharedPermit, list[tuple[SharedLimitState, float]]]
        ] = []  # permits, and what they were charged more
        self.returns: list[Return] = []
        self.looks: list[tuple[Account, Parker | None]] = []
        self.tell: set[str] = set()  # names whose change others must hear of
        self.epochs: dict[Account, float] = {}

    def at(self, state: SharedLimitState) -> int:
        """The number of that limit in this call."""
        account = state.account
        offset = self.offsets.get(account)
        if offset is None:
            offset = self.offsets[account] = self.width
            self.width += len(account.order)
        return offset + state.index
