"""The limits of one name in a shared store, as this process knows them.

The store decides; the meters here mirror what it answered last. They say which requests to ask for next, and what to
show. Everything is changed with the lock of the store held.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from typing import Any
from weakref import WeakSet

from penstock import clock
from penstock._backends.limit_set import default_cost
from penstock._backends.shared.queue import StoreQueue
from penstock._concurrency.shared_state import members
from penstock._core import lease as leases
from penstock._core.bucket import Bucket
from penstock._core.lease import Leased, LeasePool
from penstock._core.limit_state import meter_for
from penstock._core.places import Places
from penstock._core.rows import BUCKET, RENEWED, TIMED, WINDOW
from penstock._core.windows import CalendarWindow, LogEntry, SlidingWindow
from penstock.limits import Limit, Unlimited
from penstock.stores.contract import Terms

Limits = dict[str, tuple[Limit, ...]]

Orphan = tuple[str, int]
"""File and line that acquired a permit which was collected unclosed."""


class SharedLimitState(Leased):
    """One limit of a name.

    Attributes:
        limit_set: The set that it belongs to.
        index: Its position among the terms of that set; -1: the store does not count it, or no more.
        held: Whether it is held and not spent (places).
        renewed: Whether what is held must be renewed while this process lives.
        returns_at_once: Whether what was used comes back all at once, and not unit by unit.
        successor: The limit of another kind that has replaced it; None: there is none.
    """

    __slots__ = ("held", "index", "limit_set", "renewed", "returns_at_once", "successor")

    limit_set: SharedLimitSet
    index: int
    held: bool
    renewed: bool
    returns_at_once: bool

    def __init__(self, unit: str, limit: Any, label: str) -> None:
        super().__init__(unit, limit, label)
        self.pool = LeasePool()
        self.index = -1
        self.held = self.renewed = self.returns_at_once = False
        self.successor: SharedLimitState | None = None

    @property
    def counted(self) -> bool:
        """Whether the store counts it: `unlimited` it does not, nor what other limits have replaced."""
        return self.index >= 0

    @property
    def present(self) -> SharedLimitState:
        """What counts in its place now: itself, unless a limit of another kind has replaced it."""
        state = self
        while state.successor is not None:
            state = state.successor
        return state


class SharedLimitSet:
    """The limits of one name.

    Attributes:
        name: What the store knows them by.
        lease: Seconds for which leases may be held; None: no leases.
        terms: What the store is told of them. Limits of `unlimited` are left out: nothing is asked for those.
        states: Per unit its limits.
        defaults: What a call costs per unit unless it says so.
        order: The limits in the order of the terms.
        version: Grows with every change of the limits.
        flow_weights: As they were given.
        users: The backends that decide over these limits now.
        agreed: Whether the store has ever decided by these terms.
        replaces: Whether these limits replace those that the store has, and not only where this process changes them.
        epoch: When its row in the store was born, as that said last.
        read_at: When the store is asked next what others count under this name, where it is asked nothing else.
        read: What it said then, as the text of terms; None: it has not been asked.
        refusal: What is wrong with limits that are all `unlimited`: others count something there.
        confirming: Whether the store is being asked if reservations still hold.
        freed: What was given back since the other processes last heard of it, in seconds of throughput.
        places: Places of this process that must be renewed, per limit.
        renew_at: When they are renewed next.
        orphans: Permits that were collected unclosed, for the waiters for their places.
    """

    __slots__ = (
        "__weakref__", "_queue", "agreed", "confirming", "defaults", "epoch", "flow_weights", "freed", "lease", "name",
        "order", "orphans", "place_ttl", "places", "read", "read_at", "refusal", "renew_at", "replaces", "states",
        "terms", "users", "version",
    )  # fmt: skip

    def __init__(self, name: str, limits: Limits, queue: StoreQueue, place_ttl: float, lease: float | None) -> None:
        self.name = name
        self.lease = lease
        self.place_ttl = place_ttl
        self.version = 0
        self.states: dict[str, tuple[SharedLimitState, ...]] = {}
        self.defaults: dict[str, float] = {}
        self.order: list[SharedLimitState] = []
        self.flow_weights: Mapping[Hashable, float] | None = None
        self.agreed = self.replaces = False
        self.epoch = -1.0
        self.read_at = -math.inf
        self.read: str | None = None
        self.refusal: Exception | None = None
        self.confirming = False
        self.freed = 0.0
        self.places: dict[SharedLimitState, float] = {}
        self.renew_at = math.inf
        self.orphans: list[Orphan] = []
        self.users: WeakSet[Any] = WeakSet()
        self._queue = queue
        queue.sets.add(self)
        self.promise(limits, 0.0)

    def limits(self) -> Limits:
        """What is promised now."""
        return {unit: tuple(state.limit for state in states) for unit, states in self.states.items()}

    @property
    def known(self) -> bool:
        """Whether the meters show what the store last said, and nothing has overtaken that."""
        return self.agreed and not self.confirming

    @property
    def queue(self) -> StoreQueue:
        """The queue that these limits are behind now."""
        queue = self._queue
        if queue._into is not None:
            self._queue = queue = queue.standing()
        return queue

    def terms_of(self, limits: Limits) -> Terms:
        """What the store would be told of these limits; ValueError if it cannot count one of them."""
        counted = {
            unit: tuple(kind for kind in kinds if not isinstance(kind, Unlimited)) for unit, kinds in limits.items()
        }
        return Terms(self.name, {unit: kinds for unit, kinds in counted.items() if kinds}, self.place_ttl, self.lease)

    def promise(self, limits: Limits, now: float, *, alone: bool = False) -> None:
        """Replace the limits of these units; what was used stays used. `alone`: there are no other units any more."""
        terms = self.terms_of(limits if alone else {**self.limits(), **limits})  # before any change: it may refuse
        for state in [state for states in self.states.values() for state in states]:
            state.index, state.renewed = -1, False  # of those that stay it is said anew
        if alone:
            self.states = {unit: states for unit, states in self.states.items() if unit in limits}
            self.defaults = {unit: default for unit, default in self.defaults.items() if unit in limits}
        for unit, kinds in limits.items():
            self.states[unit] = tuple(self._states_of(unit, kinds, now))
            self.defaults.pop(unit, None)
            default = default_cost(unit, kinds)
            if default is not None:
                self.defaults[unit] = default
        self.terms = terms
        self._number()
        self.places = {state: places for state, places in self.places.items() if state.counted}
        self.version += 1
        for backend in members(self.users):
            backend.withdraw_clearance()

    def _states_of(self, unit: str, kinds: tuple[Limit, ...], now: float) -> list[SharedLimitState]:
        old: Any = self.states.get(unit, ())
        states = []
        for index, limit in enumerate(kinds):
            label = unit if len(kinds) == 1 else f"{unit} ({limit})"
            before = old[index] if index < len(old) else None
            if before is not None and type(before.limit) is type(limit):
                state = before
                state.label = label
                state.promise(limit, now)
            else:  # another kind takes over, to which nothing is given back that was charged before, as in memory
                state = SharedLimitState(unit, limit, label)
                if before is not None:
                    state.paused_until, before.successor = before.paused_until, state
            if self.lease is not None:  # the meter mirrors what the store counts, the limit is what was promised
                state.meter = meter_for(leases.working(limit, self.lease))
            states.append(state)
        return states

    def _number(self) -> None:
        """Note the position of each limit among the terms, and how it behaves there."""
        states: Any = [state for unit in sorted(self.states) for state in self.states[unit]]
        self.order = [state for state in states if not isinstance(state.limit, Unlimited)]
        for state in states:
            state.limit_set = self
        lead = clock.wall() - clock.now()
        for index, (state, numbers) in enumerate(zip(self.order, self.terms.numbers(clock.wall() * 1e6), strict=True)):
            kind, _, _, mode, _ = numbers
            state.index = index
            state.held = kind == WINDOW and mode in {TIMED, RENEWED}
            state.renewed = kind == WINDOW and mode == RENEWED
            state.returns_at_once = kind != BUCKET
            if isinstance(state.meter, CalendarWindow):
                state.meter.follow(lead)

    def paused_until(self) -> float:
        """The end of the last pause of these limits, by our clock, as we know it; -inf: there is none."""
        return max((state.paused_until for state in self.order), default=-math.inf)

    def mirror(self, states: Any, at: int, now: float, server: float) -> None:
        """Let the meters show what the store has just said of its states, from index `at` on."""
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
            else:
                assert isinstance(meter, SlidingWindow)
                meter.log.clear()
                if used:
                    meter.log.append(LogEntry(now + (what - server) / 1e6 - meter.per, used))
                meter._total = used
