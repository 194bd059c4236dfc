"""The backend in front of a shared store: callers hand their requests to the dispatcher, and park.

The store decides what is charged, and when. What a caller says of its grant (the true cost, the end) is noted here
and counts from then on; the dispatcher tells the store. Only grants out of leases that this process holds are made in
the caller's own thread.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping
from functools import partial
from typing import Any

from penstock import clock
from penstock._backends.base import Binding, Charge, Clearance, Grant, LimiterInfo, Snapshot
from penstock._backends.charges import ChargePlan, cost_of, of_least_burst
from penstock._backends.fast_path import look_closer
from penstock._backends.held_places import warn_of_orphan
from penstock._backends.shared.agreement import DIVIDED
from penstock._backends.shared.dispatcher import Dispatcher, dispatcher_of
from penstock._backends.shared.limit_set import SharedLimitSet, SharedLimitState
from penstock._backends.shared.queue import StoreQueue
from penstock._backends.shared.requests import SharedRequest, Stage, StoreReceipts
from penstock._backends.shared.scheduler import Scheduler
from penstock._backends.shared.state import again, flow_key
from penstock._backends.shared.wire import BatchInFlight, Command, Look
from penstock._concurrency.parking import Parker, here, loop_running_here
from penstock._core import lease as leases
from penstock._core.bucket import Bucket
from penstock._core.charging import Charges, ready_at
from penstock._frozen import FrozenDict
from penstock._numbers import show_seconds, span
from penstock._text import repr_of
from penstock._validation import exact_cost
from penstock.errors import CostError, StoreError, Unsatisfiable, WouldBlockEventLoop
from penstock.limits import Limit, Unlimited
from penstock.stores.contract import Store

_GRANTED = Stage.GRANTED  # to look a member up in an enumeration costs as much as a call on Python 3.11
_EVER = math.inf

MOST = 1e12
"""Units of one call that are counted: a store adds them up in doubles, and refunds need sums that are exact."""


READ_EVERY = 1.0
"""Seconds after which a call of limits that are all `unlimited` lets the store be asked whether others limit them."""


class SharedBackend:
    """Decides over one or several limit sets of a store, which share a queue. See `base.Backend`."""

    __slots__ = ("__weakref__", "_clearance", "_plan", "_unlimited", "dispatcher", "lease", "sets", "store")

    request_type = SharedRequest

    def __init__(self, dispatcher: Dispatcher, sets: tuple[SharedLimitSet, ...]) -> None:
        self.dispatcher = dispatcher
        self.store: Store = dispatcher.store
        self.sets = sets
        spans = [limit_set.lease for limit_set in sets if limit_set.lease is not None]
        self.lease: float | None = min(spans, default=None)
        self._plan = ChargePlan(sets)
        self._unlimited = self._any_unlimited()
        self._clearance = Clearance()
        for limit_set in sets:
            limit_set.users.add(self)

    def plan(self) -> ChargePlan:
        plan, sets = self._plan, self.sets
        if plan.version != (sets[0].version if len(sets) == 1 else sum([limit_set.version for limit_set in sets])):
            with self.store.lock:
                plan = self._plan = ChargePlan(sets)
                self._unlimited = self._any_unlimited()
                self._clearance = Clearance()
        return plan

    def _any_unlimited(self) -> bool:
        return any(isinstance(state.limit, Unlimited) for state in self._plan.states)

    def _read_others(self) -> None:
        """See to it that what other processes count is known where the store is asked nothing."""
        now = clock.now()
        for limit_set in self.sets:
            if not limit_set.order and now >= limit_set.read_at:
                limit_set.read_at = now + READ_EVERY
                self.dispatcher.post(
                    lambda scheduler, _, of=limit_set: scheduler.state.to_read.setdefault(of)  # type: ignore[misc]
                )

    def _uncounted(self, cost: Mapping[str, float]) -> list[tuple[Any, float]]:
        """What a call of that cost has of limits that the store does not count: `unlimited` ones."""
        try:
            charges: Any = self._plan.charges(cost, enforce=False, unlimited=True)
        except CostError:  # the limits were changed on the way, and nothing says what it costs now
            return []
        return [(state, amount) for state, amount in charges if not state.counted]

    def withdraw_clearance(self) -> None:
        """What was bound to the limits so far is out of date, and has to be bound anew."""
        self._clearance.given = False

    @property
    def limit_sets(self) -> tuple[object, ...]:
        return self.sets

    @property
    def queue(self) -> StoreQueue:
        return self.sets[0].queue

    def charges(self, cost: Mapping[str, Any]) -> Charges:
        """What a call of that cost is charged; CostError also for more than a limit holds beside its leases."""
        charges = self.plan().charges(cost)
        if any(amount > MOST for _, amount in charges):  # of a limit with overdraft: others refuse it
            charges = tuple([(state, min(amount, MOST)) for state, amount in charges])
        if self.lease is not None:
            for state, amount in charges:
                meter = state.meter
                if isinstance(meter, Bucket) and amount > meter.burst and not meter.overdraft:
                    raise self._more_than_leases_leave(state, amount)
        return charges

    def _more_than_leases_leave(self, state: Any, amount: float) -> Unsatisfiable:
        meter = state.meter
        return Unsatisfiable(
            f"{amount:g} {state.unit} can never be granted: "
            f"{self.plan().shown(state)} holds at most {meter.burst:g} at once, "
            f"its burst of {state.limit.burst:g} less what flows in during a lease of {state.limit_set.lease:g} s. "
            "Split the call, shorten the lease, or raise burst.",
            unit=state.unit,
            cost=amount,
            capacity=meter.burst,
            limiter=self.plan().name,
        )

    def bind(self, info: LimiterInfo, cost: Mapping[str, float]) -> Binding:
        self.plan()
        binding = Binding(self, info)
        binding.clearance = self._clearance  # before the limits are looked at: it is withdrawn when they change
        charges = self.charges(cost)
        grant = _grant_free if not charges else _grant_leased if self.lease is not None else look_closer
        binding.charge = charge = Charge(cost, charges, grant)
        if self._unlimited:
            charge._full_cost = FrozenDict(cost_of((*charges, *self._uncounted(cost))))
        return binding

    def current(self, binding: Binding) -> bool:
        return binding.clearance.given

    # Turns

    def enter(self, request: Any) -> float | None:
        """Hand a request to the dispatcher; WouldBlockEventLoop if it cannot wait for the answer."""
        if self._unlimited:
            self._read_others()
            refusal = next((each.refusal for each in self.sets if each.refusal is not None), None)
            if refusal is not None:
                request.error, request.stage = again(refusal), Stage.REFUSED
                request.info.refused += 1
                return None
        if not request.charges:  # the limits were changed since it was bound: nothing of it is limited now
            request.granted_at = clock.now()
            request.info.granted += 1
            request.stage = Stage.GRANTED
            return None
        if request.parker is None:
            raise WouldBlockEventLoop(
                f"{request.info.name!r} has to ask its store, and waiting for the answer here "
                "would block the running event loop: use `await limiter.acquire(max_wait=0)`, or `async with`, or run "
                "this function in a thread (for example with anyio.to_thread.run_sync) with `with limiter(max_wait=0):`"
                if loop_running_here()
                else f"{request.info.name!r} has to ask its store, and acquire_nowait waits for no answer: "
                "use `with limiter(max_wait=0):` here, and `await limiter.acquire(max_wait=0)` in a task"
            )
        if request.flow is not None:
            request.flow = flow_key(request.flow)
        if self._plan.held:
            self._warn_of_orphans(request.charges)
        if self.lease is not None:
            with self.store.lock:  # a later call must not be granted before this one is there
                self.queue.coming += 1
        self.dispatcher.ask(request)
        return _EVER if request.latest == _EVER else self._until_answered(request)

    def _until_answered(self, request: SharedRequest) -> float:
        """Seconds to wait for the dispatcher: infinite, or the caller's longest wait and the store's patience."""
        latest = max(request.latest, request.arrived)
        return max(0.0, latest + self.store.slowest_answer() - clock.now())

    def advance(self, request: Any) -> float | None:
        """What a waiter that was woken has to do: take its grant or error, or wait on. See `base`."""
        if request.stage is _GRANTED or request.error is not None:
            return None
        request.parker.rearm()
        if request.done:
            return 0.0  # it was woken just before
        seconds = self._until_answered(request)
        if seconds <= 0:
            request.error = StoreError(
                f"{self.store!r} gave no answer for {show_seconds(clock.now() - request.arrived)}: "
                "nothing was granted. Is it hanging?"
            )
            return None
        return seconds

    def leave(self, request: Any) -> None:
        if request.parker is None or not request.charges or request.stage is Stage.REFUSED:
            return  # it never entered, or has its answer
        self.dispatcher.post(lambda scheduler, now: scheduler.on_leave(request, now))

    def hand_over(self, request: Any, grant: Grant) -> None:
        grant.binding = None  # written out as each call comes here: see `Grant.of`
        grant.backend = self
        grant.info = request.info
        grant.charges = request.charges
        grant.receipts = request  # see `_receipts_of`
        request.batch = None  # which would be kept for as long as the permit
        grant.granted_at = request.granted_at
        grant.ended = False
        if self._unlimited:
            self._add_uncounted(grant, request.cost)

    def _add_uncounted(self, grant: Grant, cost: Mapping[str, float]) -> None:
        with self.store.lock:
            receipts = _receipts_of(grant)
            receipts.add_uncounted(self._uncounted(cost))
            grant.charges = receipts.charges

    def _lease_more(self, charges: Any, now: float) -> None:
        """Ask for more of what is running out, once."""
        for state, _ in charges:
            pool = state.pool
            if pool.left < pool.low and now >= self.queue.more_at:
                pool.low = 0.0
                self.dispatcher.post(lambda scheduler, _: scheduler.on_short(self.queue))

    # Permits that are never closed

    def lose(self, _: Grant, where: tuple[str, int]) -> None:
        """No code can end this grant any more: its places stay taken for as long as this process lives. See `base`."""
        for limit_set in self.sets:
            limit_set.orphans.append(where)

    def _warn_of_orphans(self, charges: Any) -> None:
        """Warn of permits that were collected unclosed, if a call is about to wait for their places."""
        now = clock.now()
        for state, amount in charges:
            limit_set = state.limit_set
            if state.held and limit_set.orphans and state.ready_at(amount, now) > now:
                orphans, limit_set.orphans = limit_set.orphans, []
                for where in orphans:
                    warn_of_orphan(where, state.label, "for as long as this process lives")

    # Of a grant

    def cost(self, grant: Grant) -> dict[str, float]:
        cost: dict[str, float] = {}
        with self.store.lock:
            wanted = _receipts_of(grant).wants()
        if not (grant.charges or any(wanted.values())):
            return cost
        for state, amount in wanted.items():
            if not (grant.ended and state.present.held):
                cost[state.unit] = max(cost.get(state.unit, 0), amount)
        return cost

    def settle(self, grant: Grant, true_cost: Mapping[str, float]) -> None:
        plan = self.plan()
        plan.check(true_cost)
        exact = {unit: min(exact_cost(unit, amount), MOST) for unit, amount in true_cost.items()}
        with self.store.lock:
            self._want(_receipts_of(grant), self._settled(grant, plan, exact))

    def _settled(self, grant: Grant, plan: ChargePlan, true_cost: Mapping[str, float]) -> dict[SharedLimitState, float]:
        """What is to be charged per limit for a grant of that true cost."""
        receipts, ended = _receipts_of(grant), grant.ended
        first, wanted = receipts.first(), receipts.wants()
        for unit, amount in true_cost.items():
            mine = {state: charged for state, charged in first.items() if state.unit == unit}
            wanted |= {state: amount for state in mine if not (ended and state.present.held)}
            before = max(mine.values(), default=0.0)  # what a limit that was added since has taken over
            added = set(self._counted(plan, unit)).difference([state.present for state in mine])
            wanted |= {state: max(0.0, amount - before) for state in added if not (ended and state.held)}
        return wanted

    @staticmethod
    def _counted(plan: ChargePlan, unit: str) -> list[SharedLimitState]:
        """The limits of a unit that the store counts: `unlimited` is none."""
        states: Any = plan.units[unit]
        return [state for state in states if state.counted]

    def cancel(self, grant: Grant) -> bool:
        with self.store.lock:
            receipts = _receipts_of(grant)
            if not (grant.charges or any(receipts.wants().values())):
                return False
            self._want(receipts, dict.fromkeys(receipts.wants(), 0.0))
            grant.charges, grant.ended = (), True  # at last: what an exception cuts short can be done again
            grant.info.cancelled += 1
        return True

    def close(self, grant: Grant) -> None:
        if not self._plan.held:
            grant.ended = True  # without the lock, which the dispatcher may have
            return
        with self.store.lock:
            if grant.ended:
                return
            receipts = _receipts_of(grant)
            wanted = receipts.wants()
            self._want(receipts, {of: 0.0 if of.present.held else amount for of, amount in wanted.items()})
            grant.ended = True  # at last, as in `cancel`

    def _want(self, receipts: StoreReceipts, wanted: dict[SharedLimitState, float]) -> None:
        receipts.wanted = wanted
        told = bool(wanted)
        if self._unlimited:
            told = receipts.settle_uncounted()
        if told:
            self.dispatcher.post(lambda scheduler, now: scheduler.on_settled(receipts, now))

    def postpone(self, grant: Grant, travel: float) -> None:
        """The store has counted the call at its grant, and keeps to that."""

    # Of the limits

    def forecast(self, binding: Binding) -> tuple[float, str | None]:
        """Seconds that a call would wait if it came now, by what the store answered last, and for which limit."""
        with self.store.lock:
            now = clock.now()
            charges: Any = [(state, amount + state.queued) for state, amount in binding.charge.charges]
            if self.lease is not None:
                charges = [(state, max(0.0, amount - state.pool.left)) for state, amount in charges]
            ready, state = ready_at(charges, now)
            return ready - now, self.plan().blocker(state, now)

    async def refresh(self) -> None:
        """Ask the store for its present state; StoreError if it does not answer."""
        for limit_set in [limit_set for limit_set in self.sets if limit_set.order]:
            parker = here()
            look = self._look_at(limit_set, parker)
            while not look.done:
                await parker.park(math.inf)
                parker.rearm()
            if look.error is not None:
                raise look.error

    def _look_at(self, limit_set: SharedLimitSet, parker: Parker) -> Look:
        look = Look(limit_set, parker)
        self.dispatcher.post(lambda scheduler, _: scheduler.on_look(look))
        return look

    def snapshot(self) -> Snapshot:
        """How things stand, by what the store answered last."""
        with self.store.lock:
            now, plan = clock.now(), self.plan()
            states: Any = plan.states
            return Snapshot(
                waiting=len(self.queue),
                in_flight=max((state.meter.used(now) for state in states if state.meter.held), default=0),
                paused_for=max(0.0, *(state.paused_until - now for state in states)),
                levels=[(plan.label(state), state, state.meter.level(now) + state.pool.left) for state in states],
            )

    @property
    def waiting(self) -> int:
        return len(self.queue)

    def level(self, unit: str) -> float:
        """What there is of a unit, by what the store answered last."""
        with self.store.lock:
            state: Any = self.plan().smallest(unit)
            return float(state.meter.level(clock.now()) + state.pool.left)

    def _tell(self, limit_set: SharedLimitSet, write: Any, *, announce: bool, tell: Any = Scheduler.on_command) -> None:
        command = Command(limit_set, write, announce=announce)
        self.dispatcher.post(lambda scheduler, _: tell(scheduler, command))

    def _counting(self, units: tuple[str, ...]) -> Iterator[tuple[SharedLimitSet, list[SharedLimitState]]]:
        """The limit sets that count these units, or any, with their limits."""
        for limit_set in self.sets:
            states = [state for state in limit_set.order if not units or state.unit in units]
            if states:
                yield limit_set, states

    def pause(self, seconds: float, units: tuple[str, ...]) -> None:
        """Let no call through for so long, in any process."""
        until = clock.now() + seconds
        for limit_set, states in self._counting(units):
            with self.store.lock:  # the next call must not wait until the store hears of it
                for state in states:
                    state.paused_until = max(state.paused_until, until)
            self._tell(
                limit_set, lambda batch, now, states=states: batch.pause(max(0.0, until - now), states), announce=True
            )

    def resume(self, units: tuple[str, ...]) -> None:
        for limit_set, states in self._counting(units):
            with self.store.lock:
                for state in states:
                    state.paused_until = -math.inf
            self._tell(
                limit_set,
                lambda batch, _, states=states: batch.resume(states),
                announce=True,
                tell=Scheduler.on_resumed,
            )

    def reconfigure(self, limits: Mapping[str, tuple[Limit, ...]]) -> None:
        """Replace the limits of these units for every process. What was used stays used; waiters are decided anew."""
        changed = []
        for limit_set in self.sets:
            mine = {unit: kinds for unit, kinds in limits.items() if unit in limit_set.states}
            if mine:
                if limit_set.lease is not None:
                    check_lease(limit_set.lease, mine)
                limit_set.terms_of({**limit_set.limits(), **mine})  # refuses what a store cannot count, before a change
                changed.append((limit_set, mine))
        with self.store.lock:
            now = clock.now()
            for limit_set, mine in changed:
                limit_set.promise(mine, now)
                self._change(limit_set)

    def _change(self, limit_set: SharedLimitSet) -> None:
        self.dispatcher.post(lambda scheduler, now: scheduler.on_change(limit_set, now))

    def observe(self, remaining: Mapping[str, float], reset: Mapping[str, float], grant: Grant | None) -> None:
        plan = self.plan()
        plan.check((*remaining, *reset))
        heard = clock.now()
        for unit in {**remaining, **reset}:
            counted = self._counted(plan, unit)
            if not counted:
                continue
            state = of_least_burst(counted)
            left = remaining.get(unit)
            if left is None:
                if not isinstance(state.meter, Bucket):
                    continue
                left = max(0.0, state.limit.burst - reset[unit] * state.meter.rate)
            if self.lease is not None:
                left -= state.pool.left  # which the server has not seen yet
            self._tell(state.limit_set, partial(_lower, state, left, heard, grant), announce=False)

    def recipe(self, info: LimiterInfo) -> list[dict[str, Any]]:
        options = {"max_queue": info.max_queue, "on_event": info.on_event, "store": self.store}
        return [
            {
                **options,
                "name": limit_set.name,
                "limits": limit_set.limits(),
                "lease": limit_set.lease,
                "ageing": limit_set.queue.waiters.ageing,
                "flow_weights": limit_set.flow_weights,
            }
            for limit_set in self.sets
        ]

    def itself(self) -> SharedBackend:
        return self

    def joined(self, other: Any) -> SharedBackend:
        """A backend over the limits of both, with one queue; ValueError if their store cannot decide them together."""
        if not isinstance(other, SharedBackend) or other.store is not self.store:
            raise ValueError("they live in different stores and cannot be decided together: give both the same store")
        if (self.lease is None) != (other.lease is None):
            which = "the first" if self.lease is not None else "the second"
            raise ValueError(f"only {which} is leased, so they cannot be decided together: give both lease= or none")
        sets = tuple(dict.fromkeys((*self.sets, *other.sets)))
        if len({self.store.group_of(limit_set.name) for limit_set in sets}) > 1:
            raise ValueError(DIVIDED)
        with self.store.lock:
            queue = sets[0].queue
            for limit_set in sets[1:]:
                queue = queue.merge(limit_set.queue)
        return SharedBackend(self.dispatcher, sets)


def shared_backend(
    store: Any,
    name: str | None,
    limits: dict[str, tuple[Limit, ...]],
    ageing: float,
    flow_weights: Mapping[Hashable, float] | None,
    lease: Any,
    *,
    enforce: bool,
    replaces: bool,
) -> SharedBackend:
    """The backend over these limits in a shared store. It asks the store nothing yet. Raises as `backend_over`."""
    if not enforce:
        raise ValueError("enforce=False is a rehearsal in one process: leave store= out, or enforce")
    if not isinstance(store, Store):
        raise ValueError(f"store= must be a store, such as RedisStore(...) or SQLiteStore(...), not {repr_of(store)}")
    store.check_name(name)
    assert name is not None, "check_name has refused that"
    if lease is not None:
        lease = check_lease(lease, limits)
    weights = {flow_key(flow): weight for flow, weight in (flow_weights or {}).items()}
    dispatcher = dispatcher_of(store)
    limit_set = dispatcher.limit_set(name, limits, ageing, weights, lease, replaces=replaces)
    limit_set.flow_weights = flow_weights
    return SharedBackend(dispatcher, (limit_set,))


def check_lease(lease: Any, limits: Mapping[str, tuple[Limit, ...]]) -> float:
    """The seconds of a lease; ValueError if it is no length, or not one for these limits."""
    seconds = span("lease={}", lease)
    for unit, kinds in limits.items():
        for limit in kinds:
            leases.check(unit, limit, seconds)
    return float(seconds)


def _receipts_of(grant: Grant) -> StoreReceipts:
    """What the store has charged a grant; with the lock of the store held.

    Most grants are never asked for it, so it is made of their request where it is.
    """
    if isinstance(grant.receipts, SharedRequest):
        request = grant.receipts
        grant.receipts = StoreReceipts(request.charges, request.epochs, request.receipts, request.shares)
    receipts: StoreReceipts = grant.receipts
    return receipts


def _grant_free(binding: Binding, grant: Grant) -> bool:
    """A call that is charged nothing needs no answer."""
    backend: Any = binding.backend
    if not backend.current(binding):
        return False
    if backend._unlimited:
        backend._read_others()
        if any(limit_set.refusal is not None for limit_set in backend.sets):
            return False
    grant.of(backend, binding.info, (), StoreReceipts((), {}, (), None), clock.now())
    if backend._unlimited:
        backend._add_uncounted(grant, binding.charge.cost)
    binding.info.granted += 1
    return True


def _grant_leased(binding: Binding, grant: Grant) -> bool:
    """Charge a call out of leases that this process holds, if they have enough and no request waits for it."""
    backend: Any = binding.backend
    charges: Any = binding.charge.charges
    with backend.store.lock:
        queue = backend.queue
        if not backend.current(binding) or queue.coming or len(queue.waiters) or queue.fresh:
            return False
        now = clock.now()
        shares = leases.take(charges, now)
        if shares is None:
            return False
        binding.info.granted += 1
        backend._lease_more(charges, now)
    grant.of(backend, binding.info, charges, StoreReceipts(charges, {}, (), shares), now)
    if backend._unlimited:
        backend._add_uncounted(grant, binding.charge.cost)
    return True


def _lower(
    state: SharedLimitState, left: float, heard: float, grant: Grant | None, batch: BatchInFlight, now: float
) -> None:
    """Write what a server said was left at `heard`, or right after the charge of a grant."""
    charge, since = None, heard
    if grant is not None and isinstance(grant.receipts, SharedRequest | StoreReceipts):
        charge = _receipts_of(grant).stored_on(state)
        since = heard if charge is None else grant.granted_at
    batch.lower(state, left, now - since, charge)
