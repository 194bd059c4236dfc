"""Limiter: several limits, charged together or not at all.

This module turns what users write (`limiter(tokens=5)`, a decorator, a joint limiter) into charges, and what the gate answers
into permits and errors. Who is next is decided in `_gate` and `_core`; how a task waits, in `_concurrency.parking`; what can be done with
a call is in `_calls`, and with a permit in `permit`.
"""

from __future__ import annotations

import importlib
import math
import warnings
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from types import BuiltinMethodType, MethodType
from typing import TYPE_CHECKING, Any, TypeVar, overload

import anyio
import anyio.lowlevel

from penstock import clock
from penstock._calls import Call, CallOfOne, CallOfTwo, Entered, Settle, Use
from penstock._concurrency.parking import Parker, ThreadParker, here, loop_running_here
from penstock._core.bucket import Bucket
from penstock._core.places import Hold, Places
from penstock._core.turns import Charges, LimitState, charge, ready_at
from penstock._gate import Gate, Part, Request
from penstock._introspect import users_line
from penstock._validation import (
    LimitLike,
    Shown,
    check_amount,
    check_heard,
    check_options,
    check_turn,
    cost_of,
    read_limits,
    show_number,
    show_seconds,
    told_of,
)
from penstock.errors import (
    CostError,
    MissingUnit,
    QueueFull,
    RateLimited,
    UnknownUnit,
    Unsatisfiable,
    WouldBlockEventLoop,
)
from penstock.events import (
    Granted,
    LimiterEvent,
    Observed,
    Paused,
    Reconfigured,
    Refused,
    Withdrawn,
    emit,
)
from penstock.limits import Limit, Rate
from penstock.permit import Permit
from penstock.stores.memory import MemoryStore

if TYPE_CHECKING:
    from penstock.stores.contract import Store

__all__ = ["Forecast", "LimitStatistics", "Limiter", "Permit", "Statistics"]

F = TypeVar("F", bound=Callable[..., Any])
Cost = float | Callable[..., float]


_THIS_PROCESS = MemoryStore()

_NEVER_READY = Bucket(Rate(1, 1.0))
_NEVER_READY.ceiling = -math.inf


@dataclass(frozen=True, slots=True)
class Forecast:
    """How long a call would wait if it came now.

    Attributes:
        wait: Seconds; 0 if it would go at once, `inf` if that depends on when others give back what they hold.
        blocked_by: The limit it would wait for longest, or None.
    """

    wait: float
    blocked_by: str | None


@dataclass(frozen=True, slots=True)
class LimitStatistics:
    """One limit at one moment.

    Attributes:
        unit: What it counts.
        limit: What was promised.
        level: Units that could be charged now; below 0 while there is a debt.
        capacity: The most that one call can take.
    """

    unit: str
    limit: Limit
    level: float
    capacity: float


@dataclass(frozen=True, slots=True)
class Statistics:
    """A limiter at one moment.

    Attributes:
        granted: Calls that were charged, since the limiter was made.
        refused: Calls that were told "not now".
        cancelled: Permits that were cancelled, and requests that left the line.
        would_refuse: With `enforce=False`: calls let through that would have had to wait, or could never have gone.
        waiting: Calls in the line now, of all limiters that share it.
        in_flight: Places held now, of the fullest `in_flight` limit; 0 if there is none.
        paused_for: Seconds until the longest pause ends.
        limits: Per limit, by its unit, or `"tokens (2000000/day)"` where a unit has several.
    """

    granted: int
    refused: int
    cancelled: int
    would_refuse: int
    waiting: int
    in_flight: float
    paused_for: float
    limits: Mapping[str, LimitStatistics]


class Limiter:
    """Several limits that are charged together, or not at all.

    One limit, or a list of them, per unit; the units are yours to name:

        Limiter(requests=per_minute(3_500), tokens=["90k/min", "2M/day"], calls=in_flight(64))

    `limiter(tokens=5)` is an async context manager, a context manager for threads, and a decorator; `limiter` by itself is the
    same with nothing given. `requests`, and a unit whose limit is `in_flight`, cost 1 unless given.

    **Order.** Higher `priority` first; a request rises one level for every `ageing` seconds. Within a level flows share by
    dominant-resource fairness; within a flow it is first come, first served. A later call passes an earlier one only where
    that cannot delay it.

    **Sharing.** A limiter may be made at import time and used in any number of event loops, of asyncio and trio, and threads, at
    the same time. **Cancellation** at any await charges nothing; the next in line moves up. A call that need not wait
    does not yield to the event loop.

    Args:
        name: What it is called in errors and events. In one store, limiters of one name share their state.
        store: Where the state lives; this process unless given.
        max_queue: How many may wait; `QueueFull` beyond that. None: any number.
        ageing: Seconds in the line after which a request rises one level.
        flow_weights: Share of a flow that is not 1.
        enforce: False lets everything through, charges it, and counts what would have waited, or could never have gone: a
            rehearsal. `on_event` hears `Refused` of that, and then `Granted`.
        on_event: Hears a frozen record (`penstock.events`) of everything that happens.
        lease: With a shared store: seconds for which a process may hold a chunk of quota and grant out of it by itself.
        limits: Per unit a `Limit`, a string such as "90k/min", or a list of them.

    Raises:
        ValueError: A limit, or one of the numbers, is wrong, or a unit has the name of a keyword.
        ConfigurationConflict: The store has a limiter of that name with other limits.
    """

    __slots__ = (
        "__weakref__",
        "_buckets",
        "_cancelled",
        "_enforce",
        "_entered",
        "_expires",
        "_gate",
        "_granted",
        "_holds",
        "_lock",
        "_locking",
        "_max_queue",
        "_on_event",
        "_parts",
        "_plain",
        "_plain_cost",
        "_plain_unit",
        "_refused",
        "_remembered",
        "_states",
        "_store",
        "_terms",
        "_units",
        "_version",
        "_would_refuse",
        "name",
    )

    _penstock_kind = "limiter"

    _version: int
    _units: Mapping[str, tuple[LimitState, ...]]
    _states: list[LimitState]
    _expires: bool
    _holds: bool
    _remembered: dict[float, Charges]
    _plain: type[Call] | None
    _plain_unit: str
    _plain_cost: float
    _buckets: tuple[Bucket, Bucket]  # that plain calls are charged on
    _terms: tuple[Any, ...]  # what plain calls are, or were, charged on

    def __new__(cls, *, store: Any = None, **_: Any) -> Limiter:
        """A limiter of the kind that `store` needs."""
        if store is None or isinstance(store, MemoryStore):
            return object.__new__(cls)
        from penstock.stores.contract import Store

        if not isinstance(store, Store):
            raise ValueError(
                f"store= must be a MemoryStore, SQLiteStore, RedisStore or another penstock.stores.Store, not {store!r}"
            )
        # By name, as a limiter over a shared store is a kind of limiter, and whoever needs none should load none.
        shared: type[Limiter] = importlib.import_module("penstock._shared").SharedLimiter
        return object.__new__(shared)

    def __init__(
        self,
        *,
        name: str | None = None,
        store: MemoryStore | Store | None = None,
        max_queue: int | None = None,
        ageing: float = 30.0,
        flow_weights: Mapping[Hashable, float] | None = None,
        enforce: bool = True,
        on_event: Callable[[LimiterEvent], object] | None = None,
        lease: float | None = None,
        **limits: LimitLike | list[LimitLike] | tuple[LimitLike, ...],
    ) -> None:
        check_options(name, max_queue, ageing, flow_weights, on_event)
        if lease is not None:
            raise ValueError(
                f"lease={lease!r} needs a shared store, of which a process takes its quota: add store=RedisStore(...) or "
                "store=SQLiteStore(...). In one process every grant is local already: leave lease= out"
            )
        wanted = read_limits(limits)
        if not wanted:
            raise ValueError("a limiter needs at least one limit, for example Limiter(requests=per_minute(60))")
        if store is None:
            store = _THIS_PROCESS
        assert isinstance(store, MemoryStore), "a limiter over another store is a SharedLimiter"
        with store.lock:
            part = store.find(name, wanted) if name is not None else None
            if part is None:
                part = Part(wanted, Gate(ageing, dict(flow_weights or {})), name)
                if name is not None:
                    store.keep(name, part)
            self._begin((part,), store, name, max_queue, enforce=enforce, on_event=on_event)

    @classmethod
    def over(cls, part: Part, other: Limiter, name: str) -> Limiter:
        """A limiter over `part`, with the options of `other`. For `Keyed`."""
        limiter = object.__new__(cls)
        limiter._begin(
            (part,),
            other._store,
            name,
            other._max_queue,
            enforce=other._enforce,
            on_event=other._on_event,
            like=other,
        )
        return limiter

    @property
    def store(self) -> MemoryStore:
        """Where the state lives."""
        return self._store

    @property
    def parts(self) -> tuple[Part, ...]:
        """The sets of limits it is over: one, unless it is joint. Internal."""
        return self._parts

    def _begin(
        self,
        parts: tuple[Part, ...],
        store: MemoryStore,
        name: str | None,
        max_queue: int | None,
        *,
        enforce: bool,
        on_event: Callable[[LimiterEvent], object] | None,
        like: Limiter | None = None,
    ) -> None:
        self.name = name
        self._parts = parts
        self._store = store
        self._lock = store.lock
        self._locking = store.lock.acquire, store.lock.release  # with the lock itself, two attributes more to look up
        self._gate = parts[0].gate
        self._max_queue = max_queue
        self._enforce = bool(enforce)
        self._on_event = on_event
        self._granted = self._refused = self._cancelled = self._would_refuse = 0
        self._entered: Entered | None = None
        self._plain_unit, self._plain_cost = "", 0
        self._terms = ()
        if like is None or parts[0].version != like._version:
            self._look_again()
        else:
            self._look_as(like)

    def _look_as(self, other: Limiter) -> None:
        """`_look_again`, for one part that has just the limits of another limiter's."""
        self._version = other._version
        self._remembered = {}
        self._units = self._parts[0].states
        self._states = states = [state for states in self._units.values() for state in states]
        self._expires, self._holds = other._expires, other._holds
        self._plain = None
        if other._plain is not None:
            if states[0].unit != other._states[0].unit:
                states.reverse()
            self._set_plain(other._plain, other._plain_unit, other._plain_cost, states)

    def _look_again(self) -> None:
        """Read from the parts what is derived from them: after construction, and after a reconfiguration."""
        parts = self._parts
        self._version = sum(part.version for part in parts)
        self._remembered = {}
        units: dict[str, tuple[LimitState, ...]] = {}
        for part in parts:
            for unit, states in part.states.items():
                units[unit] = (*units.get(unit, ()), *states)
        self._units = units
        self._states = [state for states in units.values() for state in states]
        self._holds = any(state.meter.held for state in self._states)
        self._expires = any(isinstance(state.meter, Places) and state.meter.ttl is not None for state in self._states)
        self._choose_plain()

    def _choose_plain(self) -> None:
        """Find out whether calls can be written the short way, as `CallOfOne` or `CallOfTwo`."""
        self._plain = None
        self._buckets = _NEVER_READY, _NEVER_READY  # for calls that were made when it was plain, and are entered now
        meters = [state.meter for state in self._states]
        if self._on_event is not None or not self._enforce:
            return
        if not all(type(meter) is Bucket and not meter.overdraft for meter in meters):
            return
        if len(meters) == 1:
            (unit,) = self._units
            self._set_plain(CallOfOne, unit, self._default(unit) or 0, self._states)
        elif len(meters) == len(self._units) == 2:
            given = [unit for unit in self._units if self._default(unit) is None]
            other = [unit for unit in self._units if isinstance(self._default(unit), int)]
            if len(given) == len(other) == 1 and self._default(other[0]):
                cost = float(self._default(other[0]))  # type: ignore[arg-type]  # faster than an int to add
                self._set_plain(CallOfTwo, given[0], cost, [*self._units[other[0]], *self._units[given[0]]])

    def _set_plain(self, kind: type[Call], unit: str, cost: float, states: list[LimitState]) -> None:
        """Let plain calls be charged on these, one or two.

        Once only. When they would be charged on something else after a reconfiguration, they take the general way for good: a plain
        permit of before finds here what it was charged on, and need not write that down itself.
        """
        first, last = states[0], states[-1]
        terms = first, first.meter, last, last.meter, cost if kind is CallOfTwo else 0
        if self._terms and terms != self._terms:
            return
        self._terms = terms
        self._plain, self._plain_unit, self._plain_cost, self._states = kind, unit, cost, states
        self._buckets = first.meter, last.meter  # type: ignore[assignment]

    # What users call

    @overload
    def __call__(self, function: F, /) -> F: ...
    @overload
    def __call__(
        self,
        function: None = None,
        /,
        *,
        settle: Settle | None = None,
        max_wait: float | None = None,
        priority: int | Callable[..., int] = 0,
        flow: Hashable | Callable[..., Hashable] = None,
        **cost: Cost,
    ) -> Use: ...

    def __call__(self, function: Any = None, /, **options: Any) -> Any:
        """A call of that cost: to enter with `async with` or `with`, or to decorate functions with.

        Args:
            function: What to decorate, in the form `@limiter`.
            settle: In a decorator: a function of the result that returns the true cost, as `{"tokens": 123}`.
            max_wait: Longest wait, in seconds. A longer one is refused at once.
            priority: Higher goes first. In a decorator it may be a function of the call's arguments, as may `flow`.
            flow: Whose work it is.
            cost: Amount per unit; in a decorator it may be a function of the call's arguments.

        Raises:
            MissingUnit, UnknownUnit, CostError: The cost is wrong.
        """
        plain = self._plain
        if plain is not None and function is None:
            try:  # nearly always it is there, and a look beforehand costs as much as all of the rest
                amount = options[self._plain_unit]
            except KeyError:
                amount = None
            if type(amount) is int and len(options) == 1 and amount > 0:
                call = plain()
                call._limiter = self
                call._amount = amount
                call._granted_at = None  # not yet
                return call
        use = Use(self, options)
        return use if function is None else use(function)

    async def acquire(
        self, *, max_wait: float | None = None, priority: int = 0, flow: Hashable = None, **cost: float
    ) -> Permit:
        """Wait for our turn, charge `cost`, and return the permit.

        The permit must be ended where the limiter has `in_flight` limits: `with await limiter.acquire():`, or `permit.close()`.
        Cancelling charges nothing; the next in line moves up.

        Args:
            max_wait: Longest wait, in seconds. A longer one is refused at once, not after the time is up; so is one that would
                pass the deadline of the enclosing anyio cancel scope.
            priority: Higher goes first.
            flow: Whose work it is; flows share fairly.
            cost: Amount per unit, as named in the constructor; `requests` is 1 unless given.

        Raises:
            RateLimited: The turn would come after `max_wait`. `retry_after` says when it would.
            QueueFull: `max_queue` are waiting.
            Unsatisfiable: `cost` is above what a limit can ever hold, so no wait would do.
            MissingUnit, UnknownUnit, CostError: The cost is wrong.
        """
        check_turn(max_wait, priority, flow)
        return await self._acquire(cost, max_wait=max_wait, priority=priority, flow=flow)

    def acquire_nowait(self, *, priority: int = 0, flow: Hashable = None, **cost: float) -> Permit:
        """Charge `cost` and return the permit, if that can be done now.

        Raises:
            RateLimited: It cannot, or others wait whom it would delay. `retry_after` says when it could.
            Unsatisfiable, MissingUnit, UnknownUnit, CostError: As in `acquire`.
        """
        check_turn(None, priority, flow)
        charges = self._charges_of(cost)
        permit = self._try(charges)
        if permit is None:
            request = self._had_its_turn(self._join(charges, None, 0.0, math.inf, priority, flow))
            permit = Permit._of(self, request.charges, request.receipts, request.granted_at)  # type: ignore[arg-type]
        if self._expires:
            self._mark_where(permit)
        return permit

    async def refresh(self) -> None:
        """Ask a shared store how things stand, for `statistics` and `forecast` to show. In this process they always know."""

    def forecast(self, **cost: float) -> Forecast:
        """How long a call of that cost would wait if it came now. Charges nothing."""
        charges = self._charges_of(cost)
        gate = self._lock_gate()
        try:
            now = gate.now()
            ready, state = gate.expected(charges, now)
            return Forecast(ready - now, self._blocker(state, now))
        finally:
            self._lock.release()

    def statistics(self) -> Statistics:
        """What was granted and refused so far, and how full each limit is now."""
        if self._expires:
            self._warn_of_lost()
        gate = self._lock_gate()
        try:
            now = gate.now()
            if self._version != sum(part.version for part in self._parts):
                self._look_again()
            return Statistics(
                granted=self._granted,
                refused=self._refused,
                cancelled=self._cancelled,
                would_refuse=self._would_refuse,
                waiting=len(gate.queue),
                in_flight=max((state.meter.used(now) for state in self._states if state.meter.held), default=0),
                paused_for=max(0.0, *(state.paused_until - now for state in self._states)),
                limits=self._levels(lambda state: state.meter.level(now)),
            )
        finally:
            self._lock.release()

    def _levels(self, level: Callable[[LimitState], float]) -> Mapping[str, LimitStatistics]:
        limits: dict[str, LimitStatistics] = {}
        for state in self._states:
            label = self._label(state)
            while label in limits:  # parts of a joint limiter may have promised just the same
                label += "'"
            limits[label] = LimitStatistics(state.unit, state.limit, level(state), state.limit.capacity)
        return Shown(limits)

    @property
    def limits(self) -> Mapping[str, tuple[Limit, ...]]:
        """What is promised now, per unit."""
        with self._lock:
            return Shown(
                {
                    unit: tuple(state.limit for part in self._parts for state in part.states.get(unit, ()))
                    for unit in self._units
                }
            )

    def pause(self, seconds: float, *units: str) -> None:
        """Let nobody through for so long; a pause is never shortened by another.

        Args:
            seconds: From now; 0 or more, finite.
            units: Only calls that cost one of these. Default: all.
        """
        if not (math.isfinite(seconds) and seconds >= 0):
            raise ValueError(f"a pause must be a finite number of seconds, 0 or more, not {seconds!r}")
        for unit in units:
            if unit not in self._units:
                raise self._unknown(unit)
        gate = self._lock_gate()
        try:
            until = gate.now() + seconds
            for state in self._states:
                if not units or state.unit in units:
                    state.paused_until = max(state.paused_until, until)
            gate.pause(until)
        finally:
            self._lock.release()
        if self._on_event is not None:
            emit(self._on_event, Paused(self.name, seconds, units))

    def reconfigure(self, **limits: LimitLike | list[LimitLike] | tuple[LimitLike, ...]) -> None:
        """Replace the limits of these units, live. What was used stays used; those who wait are looked at anew.

        Who waits for more than the new limits can ever hold gets `Unsatisfiable`. Joint limiters see the change too.

        Raises:
            UnknownUnit: The limiter has no such unit.
            ValueError: A limit is wrong. Nothing has changed then.
        """
        wanted = read_limits(limits)
        for unit in wanted:
            if unit not in self._units:
                raise self._unknown(unit)
        gate = self._lock_gate()
        try:
            now = gate.now()
            for part in self._parts:
                mine = {unit: kinds for unit, kinds in wanted.items() if unit in part.states}
                if mine:
                    before = {unit: part.states[unit] for unit in mine}
                    basis = part.basis()
                    part.promise(mine, now)
                    if part.basis() != basis:
                        gate = self._gate = gate.renew()
                    gate.recharge([(before[unit], part.states[unit]) for unit in mine], now)
            self._look_again()
            gate.refuse(self._never, now)
        finally:
            self._lock.release()
        if self._on_event is not None:
            emit(self._on_event, Reconfigured(self.name, wanted))

    def observe(
        self, *, remaining: Mapping[str, float] | None = None, reset: Mapping[str, float] | None = None
    ) -> None:
        """Say what the server says is left now. Only ever lowers a level; raising it would break what was promised.

        Where a unit has several limits, it is taken for the one that holds least at once. To reconcile with the answer to a
        certain call, use `permit.observe`, which knows what was sent since.

        Args:
            remaining: Units left, per unit.
            reset: Seconds until the limit is whole again, per unit; used where `remaining` does not name the unit, and of rates
                only. More than an empty one takes means that nothing is left.

        Raises:
            UnknownUnit: The limiter has no such unit.
            CostError: Not a number, negative or infinite; nothing has changed then.
        """
        self._observe(remaining or {}, reset or {}, None)

    def __and__(self, other: Limiter) -> Limiter:
        """A limiter over both sets of limits: one atomic decision, one line.

        Each part takes the units that it knows. From now on both share one line, with all that either was joined with.

        Raises:
            ValueError: They live in different stores, or only one of them enforces its limits.
        """
        if not isinstance(other, Limiter):
            return NotImplemented
        if other._store is not self._store:
            raise ValueError(
                f"{self!r} and {other!r} live in different stores and cannot be decided together: give both the same store"
            )
        if other._enforce is not self._enforce:
            real, rehearsal = (self, other) if self._enforce else (other, self)
            raise ValueError(
                f"{rehearsal!r} is a rehearsal (enforce=False) and {real!r} is not, so they cannot be decided together: enter one "
                "after the other, or give both the same enforce="
            )
        joint = object.__new__(Limiter)
        with self._lock:
            parts = tuple(dict.fromkeys((*self._parts, *other._parts)))
            gate = parts[0].gate
            for part in parts[1:]:
                gate = gate.merge(part.gate)
            bounds = [bound for bound in (self._max_queue, other._max_queue) if bound is not None]
            joint._begin(
                parts,
                self._store,
                " & ".join(dict.fromkeys(filter(None, (self.name, other.name)))) or None,
                min(bounds, default=None),
                enforce=self._enforce,
                on_event=joined_hook(self._on_event, other._on_event),
            )
        return joint

    async def __aenter__(self) -> Permit:
        self._has_places()  # which sees whether another limiter over these limits has changed what a call costs
        if self._plain is CallOfOne and self._plain_cost:
            call = CallOfOne()
            call._limiter = self
            call._amount = self._plain_cost
            call._granted_at = None  # not yet
            return await call.__aenter__()
        permit = await self._acquire({})
        self._note(permit)
        return permit

    async def __aexit__(self, *_: object) -> None:
        if self._entered is not None:
            # Whether it was entered as a plain call, which holds nothing, is not to be seen now: the limits may have changed since.
            self._entered.leave(others=self._plain is not CallOfOne)

    def __enter__(self) -> Permit:
        permit = self._acquire_in_thread({})
        self._note(permit)
        return permit

    def __exit__(self, *_: object) -> None:
        if self._entered is not None:
            self._entered.leave()

    def _note(self, permit: Permit) -> None:
        """Remember who entered the limiter itself, with nothing given."""
        with self._lock:
            if self._entered is None:
                self._entered = Entered()
            entered = self._entered
        entered.add(permit)

    def __repr__(self) -> str:
        text = ", ".join(
            f"{unit}={' and '.join(str(state.limit) for state in states)}" for unit, states in self._units.items()
        )
        return f"Limiter({self.name + ': ' if self.name else ''}{text})"

    # From costs to charges

    def _charges_of(self, cost: Mapping[str, float]) -> Charges:
        """What a call of that cost is charged, state by state; nothing for a unit that costs 0."""
        parts = self._parts
        if self._version != sum([part.version for part in parts]):
            with self._lock:
                self._look_again()
        charges: list[tuple[LimitState, float]] = []
        taken = 0
        for unit, states in self._units.items():
            amount = cost.get(unit)
            if amount is None:
                amount = self._default(unit)
                if amount is None:
                    misspelt = next((given for given in cost if given not in self._units), None)
                    raise self._missing(unit) if misspelt is None else self._unknown(misspelt)
            else:
                taken += 1
                check_amount(unit, amount)
            if amount:
                for state in states:
                    if amount > state.limit.capacity and self._enforce:
                        raise self._never(state, amount)
                    charges.append((state, amount))
        if taken < len(cost):
            for unit in cost:
                if unit not in self._units:
                    raise self._unknown(unit)
                if cost[unit] is None:
                    raise CostError(f"the cost of {unit} must be a number, not None")
        return tuple(charges)

    def _plain_charges(self, amount: float) -> Charges:
        """`_charges_of` for a plain call; remembered, as programs use the same few costs again and again."""
        charges = self._remembered.get(amount)
        if charges is None or self._version != sum([part.version for part in self._parts]):
            charges = self._charges_of({self._plain_unit: amount})
            if len(self._remembered) >= 1_000:
                self._remembered.clear()
            self._remembered[amount] = charges
        return charges

    def _default(self, unit: str) -> float | None:
        for part in self._parts:
            default = part.defaults.get(unit)
            if default is not None:
                return default
        return None

    # From charges to permits

    def _lock_gate(self) -> Gate:
        """Take the lock; return the gate that these limits are behind now."""
        self._lock.acquire()
        gate = self._gate
        if gate.into is not None:
            gate = self._gate = self._parts[0].gate
            if self._version != sum(part.version for part in self._parts):
                self._look_again()
        return gate

    def _has_places(self) -> bool:
        """Whether anything that is charged here must be given back; also if another limiter over these limits has changed that."""
        if self._gate.into is not None:
            self._lock_gate()
            self._lock.release()
        return self._holds

    def _try(self, charges: Charges) -> Permit | None:
        """The permit, if nobody waits and nothing has to be waited for."""
        refused: Refused | None = None
        gate = self._lock_gate()
        try:
            now = gate.now()
            if not self._enforce:
                ready, state = gate.expected(charges, now)
                if ready > now:
                    self._would_refuse += 1
                    refused = Refused(
                        self.name, cost_of(charges), ready - now, self._blocker(state, now) or "the queue"
                    )
            elif len(gate.queue) or ready_at(charges, now)[0] > now:
                return None
            elif gate.busy:  # perhaps it was a pause, and it is over
                gate.rest(now)
            receipts = charge(charges, now)
            self._granted += 1
        finally:
            self._lock.release()
        if self._on_event is not None:
            if refused is not None:
                emit(self._on_event, refused)
            emit(self._on_event, Granted(self.name, cost_of(charges), 0.0))
        return Permit._of(self, charges, receipts, now)

    def _join(
        self,
        charges: Charges,
        parker: Parker | None,
        max_wait: float | None,
        time_left: float,
        priority: int,
        flow: Hashable,
    ) -> Request:
        """Stand in line: granted at once, or with a place in the line, or an error if the wait would be too long."""
        error: RateLimited | None = None
        gate = self._lock_gate()
        try:
            now = gate.now()
            request = Request(self, gate, charges, parker, priority, flow, None if max_wait is None else now + max_wait)
            gate.enter(request, now)
            if request.receipts is None:
                if max_wait is not None or time_left < math.inf or self._max_queue is not None:
                    error = self._too_long(gate, request, now, max_wait, time_left)
                if error is not None:
                    gate.leave(request)
                    self._refused += 1
                elif parker is not None:
                    request.park_for = gate.turn(request, now)
        finally:
            self._lock.release()
        if error is not None:
            if self._on_event is not None:
                emit(self._on_event, Refused(self.name, cost_of(charges), error.retry_after, error.blocked_by))
            raise error
        return request

    def _too_long(
        self, gate: Gate, request: Request, now: float, max_wait: float | None, time_left: float
    ) -> RateLimited | None:
        full = self._max_queue is not None and len(gate.queue) > self._max_queue
        ready, state = gate.expected_of(request, now)
        if max_wait != 0 and min(max_wait or math.inf, time_left) < ready - now:
            ready, state = gate.expected_of(request, now, in_turns=True)  # before it is told that it takes too long
        wait = ready - now
        blocker = self._blocker(state, now) or "the queue"
        if full and max_wait != 0:
            return QueueFull(
                f"{self._max_queue} calls are waiting already, as many as max_queue allows; the next would wait "
                f"{show_seconds(wait)} for {blocker}",
                retry_after=wait,
                blocked_by=blocker,
            )
        known = wait < math.inf or max_wait == 0
        # Who cannot be woken must not be left in the line, even where a meter of a user's own has changed its mind meanwhile.
        if max_wait is not None and known and (wait > max_wait or request.parker is None):
            return self._not_now(request, wait, blocker, f"max_wait is {show_seconds(max_wait)}" if max_wait else "")
        if time_left < wait < math.inf:
            return self._not_now(
                request, wait, blocker, f"the enclosing deadline is in {show_seconds(max(0.0, time_left))}"
            )
        return None

    async def _acquire(
        self, cost: Mapping[str, float], *, max_wait: float | None = None, priority: int = 0, flow: Hashable = None
    ) -> Permit:
        charges = self._charges_of(cost)
        permit = self._try(charges)
        if permit is None:
            request = await self._wait(charges, max_wait, priority, flow)
            permit = Permit._of(self, request.charges, request.receipts, request.granted_at)  # type: ignore[arg-type]
        if self._expires:
            self._mark_where(permit)
        return permit

    async def _wait(self, charges: Charges, max_wait: float | None, priority: int, flow: Hashable) -> Request:
        """Stand in line as this task, until granted."""
        parker = here()
        time_left = parker.time_left()
        if time_left == -math.inf:
            await anyio.lowlevel.checkpoint()  # the scope is cancelled already: say so, and not that it is too late
        request = self._join(charges, parker, max_wait, time_left, priority, flow)
        seconds = request.park_for
        try:
            while seconds >= 0:
                await parker.park(seconds)
                seconds = self._turn(request)
        except BaseException:
            self._give_up(request)
            raise
        return self._had_its_turn(request)

    def _acquire_in_thread(
        self, cost: Mapping[str, float], *, max_wait: float | None = None, priority: int = 0, flow: Hashable = None
    ) -> Permit:
        charges = self._charges_of(cost)
        permit = self._try(charges)
        if permit is None:
            request = self._wait_in_thread(charges, max_wait, priority, flow)
            permit = Permit._of(self, request.charges, request.receipts, request.granted_at)  # type: ignore[arg-type]
        if self._expires:
            self._mark_where(permit)
        return permit

    def _wait_in_thread(self, charges: Charges, max_wait: float | None, priority: int, flow: Hashable) -> Request:
        """Stand in line as this thread, until granted."""
        if loop_running_here():
            try:
                return self._had_its_turn(self._join(charges, None, 0.0, math.inf, priority, flow))
            except RateLimited as not_now:
                raise WouldBlockEventLoop(
                    f"{not_now}: waiting here would block the running event loop. Use `async with`, or "
                    "run this function in a thread, for example with anyio.to_thread.run_sync"
                ) from None
        parker = ThreadParker()
        request = self._join(charges, parker, max_wait, math.inf, priority, flow)
        seconds = request.park_for
        try:
            while seconds >= 0:
                parker.park_thread(seconds)
                seconds = self._turn(request)
        except BaseException:
            self._give_up(request)
            raise
        return self._had_its_turn(request)

    def _turn(self, request: Request) -> float:
        """Seconds to park, `inf` for until woken; below 0: there is nothing left to wait for."""
        if request.receipts is not None and not request.gate.has_on_post(request):
            return -1.0  # handed over, and nothing to pass on: no need for the lock
        with self._lock:
            gate = request.gate
            now = gate.now()
            seconds = gate.turn(request, now)
            if seconds == 0:  # its deadline has come, and its turn has not
                ready, state = gate.expected_of(request, now)
                gate.leave(request)
                self._refused += 1
                request.error = self._not_now(
                    request, max(ready - now, 0.0), self._blocker(state, now) or "the queue", "max_wait has passed"
                )
                return -1.0
            return seconds

    def _give_up(self, request: Request) -> None:
        with self._lock:
            request.gate.leave(request)
            self._cancelled += 1
        if self._on_event is not None:
            emit(self._on_event, Withdrawn(self.name, cost_of(request.charges)))

    def _had_its_turn(self, request: Request) -> Request:
        """Raise what a request that is done is to raise; tell of its grant."""
        error = request.error
        if error is not None:
            if self._on_event is not None and isinstance(error, RateLimited):
                emit(self._on_event, Refused(self.name, cost_of(request.charges), error.retry_after, error.blocked_by))
            raise error
        if self._on_event is not None:
            cost, waited = cost_of(request.charges), request.granted_at - request.arrived
            emit(self._on_event, Granted(self.name, cost, waited))
        return request

    # Of permits that are never closed

    def _mark_where(self, permit: Permit) -> None:
        """Write down where a permit was acquired whose places have a time to live; tell of those that have outlived theirs."""
        where = users_line()
        for _, receipt in permit._receipts:
            if isinstance(receipt, Hold):
                receipt.where = where
        try:
            self._warn_of_lost()
        except Warning:  # where users want warnings to be errors; nobody will ever have this permit
            permit.cancel()
            raise

    def _warn_of_lost(self) -> None:
        """Warn of places that came back by their time to live, once each, as of the line that acquired them."""
        lost: list[Hold] = []
        with self._lock:
            now = clock.now()
            for state in self._states:
                state.meter.used(now)  # which looks who has outlived it
                if isinstance(state.meter, Places) and state.meter.lost:
                    lost += state.meter.lost
                    state.meter.lost = []
        for hold in lost:
            file, line = hold.where or ("<unknown>", 0)
            warnings.warn_explicit(
                f"a permit of {self.name or 'a limiter'} acquired at {file}:{line} was not closed within its time to live, so its "
                "place was given to others. Use `with await limiter.acquire():`, or close() it",
                RuntimeWarning,
                file,
                line,
            )

    def _observe(self, remaining: Mapping[str, float], reset: Mapping[str, float], permit: Permit | None) -> None:
        for unit in (*remaining, *reset):
            if unit not in self._units:
                raise self._unknown(unit)
        check_heard(remaining, reset)
        gate = self._lock_gate()
        try:
            now = gate.now()
            for unit in {**remaining, **reset}:
                state = told_of(self._units[unit])
                meter = state.meter
                left = remaining.get(unit)
                if left is None:
                    if not isinstance(meter, Bucket):
                        continue
                    left = max(0.0, meter.burst - reset[unit] * meter.rate)
                if permit is not None and isinstance(meter, Bucket):
                    # Of this meter: the receipt of one that was replaced since would be read wrongly, if at all.
                    receipt = next((receipt for of, receipt in permit._receipts if of is meter), None)
                    if receipt is not None:
                        left = meter.level_after(left, receipt, now)
                meter.lower_to(left, now)
        finally:
            self._lock.release()
        if self._on_event is not None:
            emit(self._on_event, Observed(self.name, dict(remaining), dict(reset)))

    # What is said when it cannot be

    def _blocker(self, state: LimitState | None, now: float) -> str | None:
        if state is None:
            return None
        paused = state.paused_until > now and state.meter.ready_at(0, now) < state.paused_until
        return "pause" if paused else self._label(state)

    def _label(self, state: LimitState) -> str:
        """What a limit is called in messages: its unit, and what was promised where several limits here count that unit."""
        return state.label if len(self._units.get(state.unit, ())) < 2 else f"{state.unit} ({state.limit})"

    def _not_now(self, request: Request, wait: float, blocker: str, bound: str) -> RateLimited:
        cost = ", ".join(f"{amount:g} {unit}" for unit, amount in cost_of(request.charges).items())
        return RateLimited(
            f"{cost} would have to wait {show_seconds(wait)} for {blocker}" + (f"; {bound}" if bound else ""),
            retry_after=wait,
            blocked_by=blocker,
        )

    def _never(self, state: LimitState, amount: float) -> Unsatisfiable:
        capacity = state.limit.capacity
        way_out = (
            "Hold fewer places, or raise the limit."
            if state.meter.held
            else "Split the call, raise burst, or allow overdraft."
            if isinstance(state.meter, Bucket)
            else "Split the call, or raise the limit."
        )
        return Unsatisfiable(
            f'{show_number(amount)} {state.unit} can never be granted: "{self._label(state)}" holds at most {show_number(capacity)} at once. '
            + way_out,
            unit=state.unit,
            cost=amount,
            capacity=capacity,
        )

    def _unknown(self, unit: str) -> UnknownUnit:
        known = tuple(self._units)
        return UnknownUnit(f"no limit counts {unit!r}: this limiter knows {', '.join(known)}", unit=unit, known=known)

    def _missing(self, unit: str) -> MissingUnit:
        return MissingUnit(
            f"how many {unit} does this call cost? Say limiter({unit}=…), 0 if none, or give the limit a default=",
            unit=unit,
        )


class _Hooks:
    """The hooks of a joint limiter's parts: each hears an event once, however often it was joined."""

    __slots__ = ("hooks",)

    def __init__(self, hooks: tuple[Callable[[Any], object], ...]) -> None:
        self.hooks = hooks

    def __call__(self, event: LimiterEvent) -> None:
        for hook in self.hooks:
            emit(hook, event)


def joined_hook(*given: Callable[[Any], object] | None) -> Callable[[Any], object] | None:
    """One hook for all that were given, or None."""
    single = [hook for one in given if one is not None for hook in (one.hooks if isinstance(one, _Hooks) else (one,))]
    # A method is another object whenever it is looked up; what is a list besides equals others that are empty.
    apart = {hook if isinstance(hook, MethodType | BuiltinMethodType) else id(hook): hook for hook in single}
    hooks = tuple(apart.values())
    return _Hooks(hooks) if len(hooks) > 1 else hooks[0] if hooks else None
