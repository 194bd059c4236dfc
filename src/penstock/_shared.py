"""A limiter whose state lives in a shared store: the same face, with the answers from afar.

What is charged, and when, is the store's to say; `_courier` asks it for everybody in this process. Here is only what users touch:
`SharedLimiter` hands slips to the courier and parks, `SharedPermit` writes down what is true now and leaves it to the
courier to tell.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any
from weakref import WeakValueDictionary

import anyio
import anyio.lowlevel

from penstock import clock
from penstock._calls import Call
from penstock._concurrency.parking import Parker, ThreadParker, here, loop_running_here
from penstock._core import lease as leases
from penstock._core import ledger
from penstock._core.bucket import Bucket
from penstock._core.lease import Share
from penstock._core.turns import Charges, ready_at
from penstock._courier import Courier, courier_of
from penstock._desks import Account, Desk, SharedLimitState, Slip
from penstock._validation import LimitLike, check_amount, check_heard, check_options, cost_of, read_limits, told_of
from penstock.errors import RateLimited, Unsatisfiable, WouldBlockEventLoop
from penstock.events import Granted, Observed, Paused, Reconfigured, Refused, Settled, Withdrawn, emit
from penstock.keyed import Keyed
from penstock.limiter import Forecast, Limiter, Statistics, joined_hook
from penstock.limits import Limit
from penstock.permit import Permit
from penstock.stores.contract import Store

__all__ = ["SharedKeyed", "SharedLimiter", "SharedPermit"]


class SharedPermit(Permit):
    """The proof that a call was charged in a shared store.

    What is said to it is sent with the next batch, at once and without waiting. Safe to use from any thread.
    """

    __slots__ = ("_entries", "_epochs", "_shares", "_wanted")

    _limiter: SharedLimiter
    _epochs: Mapping[Account, float]
    _wanted: dict[SharedLimitState, float] | None
    _entries: list[tuple[SharedLimitState, float, float, float]] | None
    _shares: list[Share] | None  # of chunks that this process held, if that is where it came from

    @classmethod
    def _of_slip(cls, slip: Slip) -> SharedPermit:
        permit = cls()
        permit._limiter = slip.limiter
        permit._charges = slip.charges
        permit._receipts = slip.receipts  # type: ignore[assignment]  # the store's, one number per charge
        permit._epochs = slip.epochs
        permit._shares = slip.shares
        permit._granted_at = slip.granted_at
        permit._ended = False
        permit._wanted = None
        permit._entries = None
        return permit

    @classmethod
    def _of_lease(cls, limiter: SharedLimiter, charges: Charges, shares: list[Share], now: float) -> SharedPermit:
        permit = cls()
        permit._limiter = limiter
        permit._charges = charges
        permit._shares = shares
        permit._granted_at = now
        permit._ended = False
        permit._wanted = None
        permit._entries = None
        return permit

    # For whoever has the permit: `_wanted` is what is to be charged, state by state. None: what was charged at first.

    def _want(self) -> dict[SharedLimitState, float]:
        wanted = self._wanted
        if wanted is None:
            wanted = {}
            for state, amount in self._charges:
                wanted[state] = wanted.get(state, 0.0) + amount  # type: ignore[index,call-overload]
        return dict(wanted)

    # For the courier: `_entries` is what the store has charged: state, amount, and the epoch and receipt of it.

    def _states(self) -> list[SharedLimitState]:
        return list(self._want())

    def _known(self) -> list[tuple[SharedLimitState, float, float, float]]:
        if self._entries is None and self._shares is not None:
            self._entries = list(self._shares)  # type: ignore[arg-type]  # all states are shared
        if self._entries is None:
            self._entries = [
                (state, amount, self._epochs[state.account], receipt)  # type: ignore[attr-defined,misc]
                for (state, amount), receipt in zip(self._charges, self._receipts, strict=True)
            ]
        return self._entries

    def _news(self) -> tuple[list[tuple[SharedLimitState, float, float, float]], list[tuple[SharedLimitState, float]]]:
        """What is to be given back, and what is to be charged more, so that the store has what is wanted."""
        entries, backs, more = self._known(), [], []
        for state, amount in self._want().items():
            missing = amount - sum(entry[1] for entry in entries if entry[0] is state)
            if missing > 0:
                more.append((state, missing))
            for index in range(len(entries) - 1, -1, -1):  # the latest debt first, then the charge itself
                of, charged, epoch, receipt = entries[index]
                if of is state and missing < 0 and charged:
                    back = min(charged, -missing)
                    entries[index] = (state, charged - back, epoch, receipt)
                    backs.append((state, back, epoch, receipt))
                    missing += back
        for state, amount in more:  # told, and marked as soon as the answer is there
            entries.append((state, amount, math.nan, math.nan))
        return backs, more

    def _charged(self, charged: Sequence[tuple[SharedLimitState, float, float, float]]) -> None:
        """The store has charged that more."""
        entries = self._known()
        for entry in charged:
            for index, known in enumerate(entries):
                if known[0] is entry[0] and math.isnan(known[2]):
                    entries[index] = (entry[0], known[1], entry[2], entry[3])
                    break

    def _uncharged(self, more: Sequence[tuple[SharedLimitState, float]]) -> None:
        """The store has not heard of it: it is to be told again."""
        states = {state for state, _ in more}
        self._entries = [entry for entry in self._known() if entry[0] not in states or not math.isnan(entry[2])]

    @property
    def cost(self) -> dict[str, float]:
        """What is charged now, per unit. Empty after `cancel()`."""
        cost: dict[str, float] = {}
        if self._wanted is not None and self._ended and not self._charges:
            return cost
        for state, amount in self._want().items():
            if not (self._ended and state.mode >= ledger.TIMED):
                cost[state.unit] = max(cost.get(state.unit, 0.0), amount)
        return cost

    def settle(self, **true_cost: float) -> None:
        """Say what the call really took. See `Permit.settle`."""
        limiter = self._limiter
        for unit, amount in true_cost.items():
            if unit not in limiter._units:
                raise limiter._unknown(unit)
            check_amount(unit, amount)
        wanted = self._want()
        for unit, amount in true_cost.items():
            for state in limiter._units[unit]:
                if not (self._ended and state.mode >= ledger.TIMED):  # type: ignore[attr-defined]  # all states are shared
                    wanted[state] = amount  # type: ignore[index]
        self._say(wanted)
        if limiter._on_event is not None:
            emit(limiter._on_event, Settled(limiter.name, dict(true_cost)))

    def cancel(self) -> None:
        """Say that the call was never sent: everything comes back, and the permit ends. Again: nothing happens."""
        if not self._charges:
            return
        cost = self.cost
        wanted = self._want()
        self._known()
        self._ended = True
        self._charges = ()
        self._limiter._cancelled += 1
        self._say(dict.fromkeys(wanted, 0.0))
        if self._limiter._on_event is not None:
            emit(self._limiter._on_event, Withdrawn(self._limiter.name, cost))

    def close(self) -> None:
        """End the permit: give back what it holds. Again: nothing happens."""
        if self._ended:
            return
        self._ended = True
        if self._limiter._holds:
            wanted = self._want()
            held = {state: 0.0 for state in wanted if state.mode >= ledger.TIMED}
            if held:
                self._say({**wanted, **held})

    def _say(self, wanted: dict[SharedLimitState, float]) -> None:
        self._wanted = wanted
        self._limiter._courier.post(("permit", self))


class _SharedCall(Call):
    """`limiter(tokens=5)` where nothing is held and nobody listens: to be entered with nothing looked up twice."""

    __slots__ = ()

    async def __aenter__(self) -> Permit:
        limiter: Any = self._limiter
        if limiter._life is not None:
            permit = limiter._try_here(limiter._plain_charges(self._amount))
            if permit is not None:
                return permit  # type: ignore[no-any-return]
        parker = here()
        time_left = parker.time_left()
        if time_left == -math.inf:
            await anyio.lowlevel.checkpoint()  # the scope is cancelled already: say so, and not that it is too late
        charges = limiter._plain_charges(self._amount)
        deadline = math.inf if time_left == math.inf else clock.now() + time_left
        slip = Slip(limiter, self._given(), charges, parker, 0, None, deadline)
        if not charges:
            return limiter._granted_free(slip)  # type: ignore[no-any-return]
        limiter._post(slip)
        try:
            while True:
                await parker.park(math.inf)
                if slip.done:
                    break
                parker.rearm()
        except BaseException:
            limiter._left(slip)
            raise
        if slip.error is not None:
            raise slip.error
        return SharedPermit._of_slip(slip)

    async def __aexit__(self, *_: object) -> None:
        """Nothing is held, so there is nothing to give back."""


class SharedLimiter(Limiter):
    """A limiter over a shared store; made by `Limiter(..., name=..., store=...)`. See `Limiter` for what it promises.

    `acquire_nowait` is refused, as an answer takes a moment: use `await acquire(max_wait=0)`. `forecast` and `statistics` show
    what the store answered last, brought up to now; `await limiter.refresh()` asks it anew. What is said to a
    permit, a pause or new limits are sent at once, without waiting.

    With a lease, a process takes chunks of quota and grants out of them by itself, with no word to the store. Never more than was
    promised, as the shared limits are kept that much tighter: a burst by `rate × lease`, a sliding window by being that much longer.

    Args:
        lease: Seconds for which a process may hold a chunk; what it did not use goes back then, or as soon as nobody uses it.
    """

    __slots__ = ("_courier", "_life")

    _courier: Courier
    _life: float | None
    _store: Store  # type: ignore[assignment]  # of another kind

    def __init__(
        self,
        *,
        name: str | None = None,
        store: Any = None,
        max_queue: int | None = None,
        ageing: float = 30.0,
        flow_weights: Mapping[Hashable, float] | None = None,
        enforce: bool = True,
        on_event: Any = None,
        lease: float | None = None,
        **limits: LimitLike | list[LimitLike] | tuple[LimitLike, ...],
    ) -> None:
        check_options(name, max_queue, ageing, flow_weights, on_event)
        wanted = read_limits(limits)
        if not wanted:
            raise ValueError("a limiter needs at least one limit, for example Limiter(requests=per_minute(60))")
        if not enforce:
            raise ValueError("enforce=False is a rehearsal in one process: leave store= out, or enforce")
        store.check_name(name)
        if lease is not None:
            lease = _check_lease(lease, wanted)
        self._courier = courier_of(store)
        self._life = lease
        account = self._courier.account(name, wanted, ageing, flow_weights, lease)  # type: ignore[arg-type]  # it has one
        self._begin((account,), store, name, max_queue, enforce=True, on_event=on_event)

    def _choose_plain(self) -> None:
        """Find out whether calls can be written the short way: one unit to be given, nothing held, nobody listening."""
        self._plain = None
        self._plain_unit = ""
        self._plain_cost = 0
        given = [unit for unit in self._units if self._default(unit) is None] or list(self._units)
        if self._on_event is None and not self._holds and len(given) == 1:
            self._plain, (self._plain_unit,) = _SharedCall, given

    def _charges_of(self, cost: Mapping[str, float]) -> Charges:
        charges = super()._charges_of(cost)
        if self._life is not None:
            for state, amount in charges:
                if isinstance(state.meter, Bucket) and amount > state.meter.burst and not state.meter.overdraft:
                    life = state.account.lease  # type: ignore[attr-defined]  # all states are shared
                    raise Unsatisfiable(
                        f'{amount:g} {state.unit} can never be granted: "{self._label(state)}" holds at most {state.meter.burst:g} at once, '
                        f"its burst of {state.limit.burst:g} less what flows in during a lease of {life:g} s. Split the call, "
                        "shorten the lease, or raise burst.",
                        unit=state.unit,
                        cost=amount,
                        capacity=state.meter.burst,
                    )
        return charges

    def _accounts(self) -> list[Account]:
        return [part for part in self._parts if isinstance(part, Account)]

    # Turns

    def _slip(
        self,
        cost: Mapping[str, float],
        parker: Parker,
        max_wait: float | None,
        time_left: float,
        priority: int,
        flow: Hashable,
    ) -> Slip:
        charges = self._charges_of(cost)
        wait = time_left if max_wait is None else min(max_wait, time_left)
        deadline = math.inf if wait == math.inf else clock.now() + max(wait, 0.0) if wait else -math.inf
        return Slip(self, cost, charges, parker, priority, flow, deadline)

    async def _acquire(
        self, cost: Mapping[str, float], *, max_wait: float | None = None, priority: int = 0, flow: Hashable = None
    ) -> Permit:
        parker = here()
        time_left = parker.time_left()
        if time_left == -math.inf:
            await anyio.lowlevel.checkpoint()  # the scope is cancelled already: say so, and not that it is too late
        slip = self._slip(cost, parker, max_wait, time_left, priority, flow)
        if not slip.charges:
            return self._granted_free(slip)
        if self._life is not None:
            permit = self._try_here(slip.charges)
            if permit is not None:
                return permit
        arrived = clock.now()
        self._post(slip)
        try:
            while not slip.done:
                await parker.park(math.inf)
                parker.rearm()
        except BaseException:
            self._left(slip)
            raise
        return self._outcome(slip, arrived)

    def _acquire_in_thread(
        self, cost: Mapping[str, float], *, max_wait: float | None = None, priority: int = 0, flow: Hashable = None
    ) -> Permit:
        if loop_running_here():
            raise WouldBlockEventLoop(
                f"{self!r} has to ask its store, and waiting for the answer here would block the running event loop. Use "
                "`async with`, or run this function in a thread, for example with anyio.to_thread.run_sync"
            )
        parker = ThreadParker()
        slip = self._slip(cost, parker, max_wait, math.inf, priority, flow)
        if not slip.charges:
            return self._granted_free(slip)
        if self._life is not None:
            permit = self._try_here(slip.charges)
            if permit is not None:
                return permit
        arrived = clock.now()
        self._post(slip)
        try:
            while not slip.done:
                parker.park_thread(math.inf)
                parker.rearm()
        except BaseException:
            self._left(slip)
            raise
        return self._outcome(slip, arrived)

    def _try_here(self, charges: Charges) -> SharedPermit | None:
        """The permit, if enough is held here and nobody waits for it."""
        self._lock.acquire()
        try:
            desk: Any = self._gate
            if desk.into is not None:
                desk = self._gate = self._parts[0].gate
            if desk.coming or len(desk.queue) or desk.fresh:
                return None
            now = clock.now()
            shares = leases.take(charges, now)  # type: ignore[arg-type]  # all states are shared
            if shares is None:
                return None
            self._granted += 1
            for state, _ in charges:
                holding = state.holding  # type: ignore[attr-defined]
                if holding.left < holding.low and now >= desk.more_at:
                    holding.low = 0.0  # say it once
                    self._courier.post(("hungry", desk))
        finally:
            self._lock.release()
        if self._on_event is not None:
            emit(self._on_event, Granted(self.name, cost_of(charges), 0.0))
        return SharedPermit._of_lease(self, charges, shares, now)

    def _post(self, slip: Slip) -> None:
        """Send `slip` to the courier. Whoever comes after it is not to be granted before it is there."""
        if self._life is not None:
            with self._lock:
                self._parts[0].gate.coming += 1  # type: ignore[attr-defined]  # it is a desk
        self._courier.post(slip)

    def _granted_free(self, slip: Slip) -> Permit:
        """A call that costs nothing needs no answer."""
        slip.granted_at = clock.now()
        self._granted += 1
        return self._outcome(slip, slip.granted_at)

    def _left(self, slip: Slip) -> None:
        self._courier.post(("leave", slip))
        if self._on_event is not None:
            emit(self._on_event, Withdrawn(self.name, cost_of(slip.charges)))

    def _outcome(self, slip: Slip, arrived: float) -> Permit:
        error = slip.error
        if error is not None:
            if self._on_event is not None and isinstance(error, RateLimited):
                emit(self._on_event, Refused(self.name, cost_of(slip.charges), error.retry_after, error.blocked_by))
            raise error
        if self._on_event is not None:
            cost, waited = cost_of(slip.charges), slip.granted_at - arrived
            emit(self._on_event, Granted(self.name, cost, waited))
        return SharedPermit._of_slip(slip)

    def acquire_nowait(self, *, priority: int = 0, flow: Hashable = None, **cost: float) -> Permit:
        """Always refused: the answer is in the store.

        Raises:
            WouldBlockEventLoop: It says what to use instead.
        """
        raise WouldBlockEventLoop(
            f"{self!r} has to ask its store, which takes a moment: use `await limiter.acquire(max_wait=0)`, or in a thread "
            "`with limiter(max_wait=0):`"
        )

    # What is known here

    async def refresh(self) -> None:
        """Ask the store for its present state, for `statistics` and `forecast` to show.

        Raises:
            StoreError: It does not answer.
        """
        for account in self._accounts():
            parker = here()
            self._courier.post(("look", account, parker))
            await parker.park(math.inf)
        if self._courier.down is not None:
            raise self._courier.down

    def forecast(self, **cost: float) -> Forecast:
        """How long a call of that cost would wait if it came now, by what the store answered last. Charges nothing."""
        charges = self._charges_of(cost)
        with self._lock:
            now = self._now()
            ready, state = ready_at([(state, amount + state.queued) for state, amount in charges], now)
            return Forecast(ready - now, self._blocker(state, now))

    def _now(self) -> float:
        return clock.now()

    def statistics(self) -> Statistics:
        """What this process was granted and refused so far, and how full each limit is by what the store answered last."""
        with self._lock:
            now = self._now()
            if self._version != sum(part.version for part in self._parts):
                self._look_again()
            desk = self._parts[0].gate
            assert isinstance(desk, Desk)
            return Statistics(
                granted=self._granted,
                refused=self._refused,
                cancelled=self._cancelled,
                would_refuse=0,
                waiting=desk.waiting,
                in_flight=max((state.meter.used(now) for state in self._states if state.meter.held), default=0),
                paused_for=max(0.0, *(state.paused_until - now for state in self._states)),
                limits=self._levels(lambda state: state.meter.level(now) + state.holding.left),  # type: ignore[attr-defined]
            )

    # What is said to everybody

    def pause(self, seconds: float, *units: str) -> None:
        """Let nobody through for so long, in any process; a pause is never shortened by another. See `Limiter.pause`."""
        if not (math.isfinite(seconds) and seconds >= 0):
            raise ValueError(f"a pause must be a finite number of seconds, 0 or more, not {seconds!r}")
        for unit in units:
            if unit not in self._units:
                raise self._unknown(unit)
        until = clock.now() + seconds
        for account in self._accounts():
            states = [state for state in account.order if not units or state.unit in units]
            if account.lease is not None:
                with self._lock:  # what is held here is not to wait for the store to hear of it
                    for state in states:
                        state.paused_until = max(state.paused_until, until)
            if states:

                def write(call: Any, states: list[SharedLimitState] = states) -> list[float]:
                    left = max(0.0, until - clock.now())
                    return [ledger.PAUSE, left, float(len(states)), *(float(call.at(state)) for state in states)]

                self._courier.post(("order", account, write, True))
        if self._on_event is not None:
            emit(self._on_event, Paused(self.name, seconds, units))

    def reconfigure(self, **limits: LimitLike | list[LimitLike] | tuple[LimitLike, ...]) -> None:
        """Replace the limits of these units, live and for every process. See `Limiter.reconfigure`."""
        wanted = read_limits(limits)
        for unit in wanted:
            if unit not in self._units:
                raise self._unknown(unit)
        for account in self._accounts():
            if account.lease is not None:
                _check_lease(account.lease, {unit: kinds for unit, kinds in wanted.items() if unit in account.states})
        with self._lock:
            now = clock.now()
            for account in self._accounts():
                mine = {unit: kinds for unit, kinds in wanted.items() if unit in account.states}
                if mine:
                    account.promise(mine, now)
                    self._courier.post(("change", account))
            self._look_again()
        if self._on_event is not None:
            emit(self._on_event, Reconfigured(self.name, wanted))

    def _observe(self, remaining: Mapping[str, float], reset: Mapping[str, float], permit: Permit | None) -> None:
        for unit in (*remaining, *reset):
            if unit not in self._units:
                raise self._unknown(unit)
        check_heard(remaining, reset)
        heard = clock.now()
        for unit in {**remaining, **reset}:
            state = told_of(self._units[unit])
            assert isinstance(state, SharedLimitState)
            left = remaining.get(unit)
            if left is None:
                if not isinstance(state.meter, Bucket):
                    continue
                left = max(0.0, state.limit.burst - reset[unit] * state.meter.rate)
            if state.account.lease is not None:
                left -= state.holding.left  # which the server has not seen yet
            epoch = receipt = -1.0
            since = heard
            if isinstance(permit, SharedPermit):
                entry = next(
                    (entry for entry in permit._known() if entry[0] is state and not math.isnan(entry[2])), None
                )
                if entry is not None:
                    epoch, receipt, since = entry[2], entry[3], permit.granted_at

            def write(
                call: Any,
                state: SharedLimitState = state,
                left: float = left,
                since: float = since,
                of: tuple[float, float] = (epoch, receipt),
            ) -> list[float]:
                return [ledger.LOWER, 1.0, float(call.at(state)), left, clock.now() - since, *of]

            self._courier.post(("order", state.account, write, False))
        if self._on_event is not None:
            emit(self._on_event, Observed(self.name, dict(remaining), dict(reset)))

    def __and__(self, other: Limiter) -> Limiter:
        """A limiter over both sets of limits: one atomic decision, one line. See `Limiter.__and__`.

        Raises:
            ValueError: They live in different stores, or where their store cannot decide them together.
        """
        if not isinstance(other, Limiter):
            return NotImplemented
        if not isinstance(other, SharedLimiter) or other._store is not self._store:
            raise ValueError(
                f"{self!r} and {other!r} live in different stores and cannot be decided together: give both the same store"
            )
        if (self._life is None) != (other._life is None):
            leased, plain = (self, other) if self._life is not None else (other, self)
            raise ValueError(
                f"{leased!r} is leased and {plain!r} is not, so they cannot be decided together: give both lease= or none"
            )
        accounts = list(dict.fromkeys((*self._accounts(), *other._accounts())))
        groups = {self._store.group_of(account.terms.name) for account in accounts}
        if len(groups) > 1:
            raise ValueError(
                f"{self!r} and {other!r} live in different hash slots of the cluster, which cannot be decided together: write "
                "their limits into one limiter, or give both names of one group, such as 'org:chat' and 'org:embed' with "
                'RedisStore(..., group=lambda name: name.split(":")[0])'
            )
        joint = object.__new__(SharedLimiter)
        with self._lock:
            gate = accounts[0].gate
            for account in accounts[1:]:
                gate = gate.merge(account.gate)
            bounds = [bound for bound in (self._max_queue, other._max_queue) if bound is not None]
            joint._courier = self._courier
            joint._life = None if self._life is None or other._life is None else min(self._life, other._life)
            joint._begin(
                tuple(accounts),
                self._store,  # type: ignore[arg-type]  # it has a lock, which is all that is needed
                " & ".join(dict.fromkeys(filter(None, (self.name, other.name)))) or None,
                min(bounds, default=None),
                enforce=True,
                on_event=joined_hook(self._on_event, other._on_event),
            )
        return joint


def _check_lease(life: Any, limits: Mapping[str, tuple[Limit, ...]]) -> float:
    """The seconds of a lease.

    Raises:
        ValueError: It is no length, or not one for these limits.
    """
    if isinstance(life, bool) or not isinstance(life, int | float) or not 0 < life < math.inf:
        raise ValueError(f"lease must be a finite number of seconds above 0, not {life!r}")
    for unit, kinds in limits.items():
        for limit in kinds:
            leases.check(unit, limit, life)
    return float(life)


class SharedKeyed(Keyed):
    """A limiter per key over a shared store; made by `Keyed(..., name=..., store=...)`. See `Keyed`.

    Keys are told apart by `str(key)`. What a key has used is in the store; here there is something for a key only while
    somebody holds its limiter. Where the answer of `limits_of` changes, the new limits are for every process.

    Args:
        name: What the names of the keys' limiters begin with.
    """

    __slots__ = ("_limiters", "_name", "_options", "_shared")

    def __init__(
        self,
        limits_of: Callable[[Any], Mapping[str, LimitLike | list[LimitLike]]] | None = None,
        /,
        *,
        store: Any = None,
        name: str | None = None,
        max_queue: int | None = None,
        ageing: float = 30.0,
        flow_weights: Mapping[Hashable, float] | None = None,
        enforce: bool = True,
        on_event: Callable[[Any], object] | None = None,
        **limits: LimitLike | list[LimitLike] | tuple[LimitLike, ...],
    ) -> None:
        if (limits_of is None) == (not limits):
            raise ValueError("Keyed needs either limits, or one function of the key that returns them")
        check_options(name, max_queue, ageing, flow_weights, on_event)
        if not enforce:
            raise ValueError("enforce=False is a rehearsal in one process: leave store= out, or enforce")
        store.check_name(name)
        self._name = name
        self._shared: Store = store
        self._limits_of = limits_of
        self._fixed = read_limits(limits)
        self._options: dict[str, Any] = {
            "max_queue": max_queue, "ageing": ageing, "flow_weights": flow_weights, "on_event": on_event,
        }  # fmt: skip
        self._limiters: WeakValueDictionary[str, Limiter] = WeakValueDictionary()
        if self._fixed:
            self["probe"]  # finds now what is wrong with the limits, and asks nobody

    def __getitem__(self, key: Hashable) -> Limiter:
        """The limiter of `key`. Cheap: what the key has used is in the store."""
        text = f"{key}".replace("%", "%25").replace("{", "%7B").replace("}", "%7D")
        # Asked without the lock: the function is the user's, and may take locks of its own, or its time.
        wanted = self._fixed if self._limits_of is None else self._limits_for(key)
        with self._shared.lock:
            limiter = self._limiters.get(text)
            if limiter is None or self._limits_of is not None:
                limits: dict[str, Any] = {unit: list(kinds) for unit, kinds in wanted.items()}
                if limiter is None:
                    limiter = Limiter(name=f"{self._name}:{text}", store=self._shared, **self._options, **limits)
                    self._limiters[text] = limiter
                elif dict(limiter.limits) != wanted:
                    limiter.reconfigure(**limits)
            return limiter

    def __len__(self) -> int:
        """How many keys somebody in this process holds a limiter of."""
        return len(self._limiters)
