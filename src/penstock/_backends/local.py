"""The backend of this process: limits in memory, for every task, thread and event loop.

**A decision** is all that is done under the lock of the store, at one moment: `_decide` is the one way in. It uses
`with lock:` alone, as CPython handles signals and asynchronous exceptions neither between taking a lock in C and the
body of `with`, nor before its end; loops stand in functions of their own, as CPython 3.13 does not count every jump
back as inside. An exception that cuts a decision short leaves a queue that `repair` makes whole. A signal handler or a
finaliser that comes back in the middle of a decision of its own thread is told "not now"; what it gives back is given
back at the end of that decision.

**The fast path** (`fast_path`) charges a call without any of this while no call waits: see there why it may.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from penstock import _log, clock
from penstock._backends import fast_path
from penstock._backends.alike import Alike
from penstock._backends.base import Binding, Charge, Clearance, Grant, LimiterInfo, Request, Snapshot
from penstock._backends.charges import ChargePlan, not_now, queue_full
from penstock._backends.held_places import expired, note_holder, note_orphan, warn_of_expired, warn_of_hang
from penstock._backends.limit_set import LimitSet
from penstock._backends.queue import WaitQueue
from penstock._core.bucket import Bucket
from penstock._core.charging import Charges, Receipts, charge, charge_if_ready, give_back, postponed, undo
from penstock._core.limit_state import LimitState
from penstock._core.meter import Unmetered
from penstock._core.places import Hold
from penstock._numbers import show_seconds
from penstock._validation import exact_costs
from penstock.errors import RateLimited
from penstock.events import Refused, emit
from penstock.limits import Limit, unlimited
from penstock.stores.memory import MemoryStore

R = TypeVar("R")

_NONE_ALIKE = Alike(Clearance())

_DECISION = "a decision under way"
"""What a call is blocked by in a signal handler that came in the middle of one."""

_ELSEWHERE = Unmetered(unlimited)
"""The meter of what no limit's meter has counted for a call."""


class LocalBackend:
    """Decides over one or several limit sets of this process, which share a queue. See `base.Backend`."""

    request_type = Request

    __slots__ = ("__weakref__", "_alike", "_plan", "_queue", "fast", "sets", "store")

    def __init__(
        self, store: MemoryStore, sets: tuple[LimitSet, ...], *, fast: bool = True, queue: WaitQueue | None = None
    ) -> None:
        self.store = store
        self.sets = sets
        self.fast = fast  # whether calls may take the fast path, which goes by `clock.now`
        self._plan = ChargePlan(sets)
        self._alike = _NONE_ALIKE
        self._queue = sets[0].queue if queue is None else queue
        for limit_set in sets:
            limit_set.users.add(self)

    def plan(self) -> ChargePlan:
        plan = self._plan
        if plan.version != sum([limit_set.version for limit_set in self.sets]):
            with self.store.lock:
                plan = self._plan = ChargePlan(self.sets)
        return plan

    @property
    def limit_sets(self) -> tuple[object, ...]:
        return self.sets

    @property
    def waiting(self) -> int:
        return len(self.queue.waiters)

    @property
    def queue(self) -> WaitQueue:
        queue = self._queue
        if queue.into is not None:
            queue = self._queue = queue.standing()
        return queue

    def bind(self, info: LimiterInfo, cost: Mapping[str, float]) -> Binding:
        binding = Binding(self, info)
        # Before the limits are looked at: it is withdrawn when they change.
        clearance = binding.clearance = self.queue.clearance
        if self._alike.clearance is not clearance:
            self._alike = Alike(clearance)
        charge = self._alike.charge(cost) if info.enforce else None
        if charge is None:
            charges = self.plan().charges(cost, enforce=info.enforce, unlimited=True)
            charge = Charge(cost, charges, _grant_now)
            if info.enforce:
                if self.fast:
                    fast_path.prepare(charge)
                self._alike.add(charge)
        binding.charge = charge
        return binding

    def current(self, binding: Binding) -> bool:
        queue = self._queue
        return binding.clearance is (queue if queue.into is None else self.queue).clearance

    def _decide(self, decision: Callable[..., R], *args: Any) -> R:
        """Run `decision(queue, now, *args)` with no other thread deciding."""
        store = self.store
        with store.lock:
            if store.deciding:
                raise RateLimited(
                    "a signal handler or finaliser interrupted this thread in the middle of a decision, "
                    "which cannot be made inside another: call from another thread, or let the event loop call it soon",
                    retry_after=0.0,
                    blocked_by=_DECISION,
                )
            try:
                store.deciding = True  # set inside of `try`, and reset by one assignment: no exception comes between
                queue = self._queue
                if queue.into is not None:
                    queue = self.queue
                now = queue.begin()
                try:
                    result = decision(queue, now, *args)
                except BaseException:
                    self.queue.repair()  # if that is cut short too, the next decision begins with it
                    self.queue.end(now)
                    raise
                if queue.into is not None:
                    queue = self.queue
                queue.end(now)
            finally:
                store.deciding = False
            if store.postponed:
                store.give_back_postponed()
            return result

    def _decide_soon(self, decision: Callable[..., None], *args: Any) -> None:
        """`_decide` for what needs no answer: inside another decision of this thread it is done at the end of that."""
        with self.store.lock:
            if self.store.deciding:
                self.store.postponed.append(lambda: self._decide_soon(decision, *args))
            else:
                self._decide(decision, *args)

    # Turns

    def enter(self, request: Request) -> float | None:
        seconds = self._decide(self._enter, request)
        if seconds is None:
            return None
        if self._plan.held:
            warn_of_hang(request.charges)
        if (log := _log.logger("penstock.limiter", _log.DEBUG)) is not None:
            _log.waiting(log, request.info.name, request.cost, *self._decide(self._forecast_of, request))
        return seconds

    def _enter(self, queue: WaitQueue, now: float, request: Request) -> float | None:
        info = request.info
        if request.max_wait is not None:
            request.deadline = now + request.max_wait
        queue.enter(request, now)
        if request.receipts is not None:  # it is granted
            return None
        if request.deadline is not None or request.time_left < math.inf or info.max_queue is not None:
            self._refuse_if_too_long(queue, now, request)
            if request.error is not None:
                return None
        if request.parker is None:  # it cannot be woken: only a meter of a user's own that changed its mind comes here
            queue.refuse(request, not_now(request.charges, 0.0, None, info.name))
            info.refused += 1
            return None
        return queue.park(request, now)

    def advance(self, request: Request) -> float | None:
        queue: WaitQueue = request.queue  # type: ignore[assignment]  # it has entered one
        if queue.awake(request):
            return None
        return self._decide(self._advance, request)

    def _advance(self, queue: WaitQueue, now: float, request: Request) -> float | None:
        seconds = queue.advance(request, now)
        if seconds == 0 and request.deadline is not None and now >= request.deadline:  # and its turn has not come
            ready, state = queue.expected_of(request, now)
            queue.leave(request, now)
            request.info.refused += 1
            request.error = not_now(
                request.charges,
                max(ready - now, 0.0),
                self.plan().blocker(state, now),
                request.info.name,
                "max_wait has passed",
            )
            return None
        return seconds

    def leave(self, request: Request) -> None:
        if request.queue is None:
            return  # it never entered
        try:
            self._decide_soon(self._leave, request)
        except BaseException:
            self._decide_soon(self._leave, request)  # others wait behind it: a second signal must not keep it there
            raise

    def hand_over(self, request: Request, grant: Grant) -> None:
        grant.backend, grant.binding, grant.ended = self, None, False  # as `Grant.of`, which is one call more
        grant.info, grant.charges = request.info, request.charges
        grant.receipts, grant.granted_at = request.receipts, request.granted_at
        if self._plan.held:
            self._write_down_places(grant)

    @staticmethod
    def _leave(queue: WaitQueue, now: float, request: Request) -> None:
        queue.leave(request, now)
        request.info.cancelled += 1

    def _refuse_if_too_long(self, queue: WaitQueue, now: float, request: Request) -> None:
        """Refuse a request at once that would wait too long, or finds the queue full."""
        max_queue, max_wait, time_left = request.info.max_queue, request.max_wait, request.time_left
        name = request.info.name
        full = max_queue is not None and len(queue.waiters) > max_queue
        ready, state = queue.expected_of(request, now)
        if min(math.inf if max_wait is None else max_wait, time_left) < ready - now:
            ready, state = queue.expected_of(request, now, in_turns=True)  # before it is told that it takes too long
        wait = ready - now
        charges: Charges = request.charges
        error: RateLimited | None = None
        guessed = state is not None and state.meter.guesses and state.paused_until < ready
        known = wait < math.inf and not guessed
        if max_wait is not None and (known or max_wait == 0) and (wait > max_wait or request.parker is None):
            bound = f"max_wait is {show_seconds(max_wait)}" if max_wait else ""
            error = not_now(charges, wait, self.plan().blocker(state, now), name, bound)
        elif known and time_left < wait:
            bound = f"the enclosing deadline is in {show_seconds(max(0.0, time_left))}"
            error = not_now(charges, wait, self.plan().blocker(state, now), name, bound)
        elif full:  # of those that would wait
            assert max_queue is not None
            error = queue_full(max_queue, wait, self.plan().blocker(state, now), name)
        if error is not None:
            queue.refuse(request, error)
            request.info.refused += 1

    # Permits that are never closed

    def _write_down_places(self, grant: Grant) -> None:
        if note_holder(grant):
            self._warn_of_expired(grant)

    def lose(self, grant: Grant, where: tuple[str, int]) -> None:

        def note(queue: WaitQueue, _: float, grant: Grant) -> None:
            note_orphan(grant, where)
            waits.extend(grant.charges if len(queue.waiters) else ())

        waits: list[tuple[LimitState, float]] = []
        self._decide_soon(note, grant)
        warn_of_hang(waits)

    def _warn_of_expired(self, grant: Grant | None) -> None:
        """Warn of places that came back by their time to live, once each."""
        with self.store.lock:
            lost = expired(self.plan().states, clock.now())
        try:
            warn_of_expired(lost, self.sets[0].name)
        except Warning:  # where users want warnings to be errors; no caller will ever have this permit
            if grant is not None:
                self.cancel(grant)
            raise

    # Of a grant

    def cost(self, grant: Grant) -> dict[str, float]:
        charges, _ = grant.charged()
        per_state: dict[LimitState, float] = {}
        for state, amount in charges:
            if not (grant.ended and state.meter.held):
                per_state[state] = per_state.get(state, 0) + amount
        cost: dict[str, float] = {}
        for state, amount in per_state.items():
            cost[state.unit] = max(cost.get(state.unit, 0), amount)
        return cost

    def settle(self, grant: Grant, true_cost: Mapping[str, float]) -> None:
        self.plan().check(true_cost)
        self._decide_soon(self._settle, grant, exact_costs(true_cost))

    def _settle(self, queue: WaitQueue, now: float, grant: Grant, true_cost: Mapping[str, float]) -> None:
        grant.charged()
        for unit, amount in true_cost.items():
            charged: dict[LimitState, float] = {}
            for state, taken in grant.charges:
                if state.unit == unit:
                    charged[state] = charged.get(state, 0.0) + taken
            before = max(charged.values(), default=0.0)  # what a limit that was added since has taken over
            for state in [state for limit_set in self.sets for state in limit_set.states.get(unit, ())]:
                if grant.ended and state.meter.held:
                    continue  # nothing would give back what it holds from now on
                if before and state not in charged:
                    _note_taken_over(grant, state, before)
                _adjust(grant, state, amount - charged.get(state, before), now)
        queue.run(now, [state for state, _ in grant.charges])

    def cancel(self, grant: Grant) -> bool:
        charges, _ = grant.charged()
        if not charges:
            return False
        self._decide_soon(self._cancel, grant)
        return True

    @staticmethod
    def _cancel(queue: WaitQueue, now: float, grant: Grant) -> None:
        charges, receipts = grant.charged()
        if not charges:
            return  # another thread was faster
        # Places come first: if an exception comes now, they can be given back again, and the rest can not.
        _free(charges, receipts, now)
        kept = [index for index, (state, _) in enumerate(charges) if not state.meter.held]
        spent, receipts = [charges[i] for i in kept], [receipts[i] for i in kept]
        grant.charges, grant.receipts, grant.ended = (), [], True
        undo(spent, receipts, now)
        grant.info.cancelled += 1
        queue.run(now, [state for state, _ in charges])

    def close(self, grant: Grant) -> None:
        if grant.ended:
            return
        charges, _ = grant.charged()
        if any(state.meter.held for state, _ in charges):
            self._decide_soon(self._close, grant)
        else:
            grant.ended = True

    @staticmethod
    def _close(queue: WaitQueue, now: float, grant: Grant) -> None:
        if grant.ended:
            return
        charges, receipts = grant.charged()
        freed = _free(charges, receipts, now)
        grant.ended = True
        queue.run(now, freed)

    def postpone(self, grant: Grant, travel: float) -> None:

        def count(_: WaitQueue, now: float) -> None:
            grant.receipts = postponed(*grant.charged(), now + travel, now)

        self._decide_soon(count)

    # Of the limits

    def forecast(self, binding: Binding) -> tuple[float, str | None]:
        if self._interrupted():
            return 0.0, _DECISION  # which is what a call is told there
        return self._decide(self._forecast_of, Request(binding, None))

    def _forecast_of(self, queue: WaitQueue, now: float, request: Request) -> tuple[float, str | None]:
        """`forecast`, of a request that waits, or would."""
        if request.done:
            return 0.0, None
        ready, state = (queue.expected if request.queue is None else queue.expected_of)(request, now)
        return ready - now, self.plan().blocker(state, now)

    def observe(self, remaining: Mapping[str, float], reset: Mapping[str, float], grant: Grant | None) -> None:
        self.plan().check((*remaining, *reset))
        receipts = [] if grant is None else grant.charged()[1]

        def hear(_: WaitQueue, now: float) -> None:
            for unit in {**remaining, **reset}:
                meter = self.plan().smallest(unit).meter
                left = remaining.get(unit)
                if left is None:
                    if not isinstance(meter, Bucket):
                        continue
                    left = max(0.0, meter.burst - reset[unit] * meter.rate)
                if isinstance(meter, Bucket):
                    # Of this meter: the receipt of one that was replaced since would be read wrongly, if at all.
                    receipt = next((receipt for of, receipt in receipts if of is meter), None)
                    if receipt is not None:
                        left = meter.level_after(left, receipt, now)
                meter.lower_to(left, now)

        self._decide_soon(hear)

    def pause(self, seconds: float, units: tuple[str, ...]) -> None:

        def begin(queue: WaitQueue, now: float) -> None:
            until = now + seconds
            for state in self.plan().states:
                if not units or state.unit in units:
                    state.paused_until = max(state.paused_until, until)
                    queue.pause(state)

        self._decide_soon(begin)

    def resume(self, units: tuple[str, ...]) -> None:

        def end(queue: WaitQueue, now: float) -> None:
            for state in self.plan().states:
                if not units or state.unit in units:
                    state.paused_until = -math.inf
            queue.run(now, None)

        self._decide_soon(end)

    def reconfigure(self, limits: Mapping[str, tuple[Limit, ...]]) -> None:

        def replace(queue: WaitQueue, now: float) -> None:
            queue.withdraw_clearance()  # also if an exception cuts it short
            try:
                changed = self._promise(limits, now)
            finally:
                queue.withdraw_clearance()  # of what was bound in the meantime
            queue.recharge(changed)
            queue.run(now, None)
            queue.refuse_oversized(self.plan().never)
            queue.run(now, None)

        self._decide_soon(replace)

    def _promise(self, limits: Mapping[str, tuple[Limit, ...]], now: float) -> list[tuple[Any, Any]]:
        """Promise these limits; return what counted before, with what counts now."""
        changed = []
        for limit_set in self.sets:
            mine = {unit: kinds for unit, kinds in limits.items() if unit in limit_set.states}
            if mine:
                before = {unit: limit_set.states[unit] for unit in mine}
                limit_set.promise(mine, now)
                changed += [(before[unit], limit_set.states[unit]) for unit in mine]
        return changed

    def snapshot(self) -> Snapshot:
        if self._interrupted():
            return self._snapshot(self.queue, clock.now(), interrupted=True)
        if self.plan().expires:
            self._warn_of_expired(None)
        return self._decide(self._snapshot)

    def _snapshot(self, queue: WaitQueue, now: float, *, interrupted: bool = False) -> Snapshot:
        def level(state: LimitState) -> float:
            return state.meter.glance(now) if interrupted else state.meter.level(now)

        def used(state: LimitState) -> float:
            return state.limit.capacity - level(state) if interrupted else state.meter.used(now)

        plan = self.plan()
        return Snapshot(
            waiting=len(queue.waiters),
            in_flight=max((used(state) for state in plan.states if state.meter.held), default=0),
            paused_for=max(0.0, *(state.paused_until - now for state in plan.states)),
            levels=[(plan.label(state), state, level(state)) for state in plan.states],
        )

    def level(self, unit: str) -> float:
        with self.store.lock:
            meter, now = self.plan().smallest(unit).meter, clock.now()
            return meter.glance(now) if self.store.deciding else meter.level(now)

    def _interrupted(self) -> bool:
        """Whether this runs in a signal handler or a finaliser that came in the middle of a decision of this thread."""
        with self.store.lock:
            return self.store.deciding

    async def refresh(self) -> None:
        """In this process everything is known already."""

    def recipe(self, info: LimiterInfo) -> list[dict[str, Any]]:
        name = f'"{info.name}"' if info.name else "a limiter"
        raise TypeError(
            f"{name} lives in the memory of one process and cannot be pickled: "
            "make it in each process, or give it a name= and a store= that processes share (SQLiteStore, RedisStore)"
        )

    def itself(self) -> LocalBackend:
        return self

    def joined(self, other: Any) -> LocalBackend:
        """A backend over the limits of both, with one queue for all that either was joined with before."""
        if not isinstance(other, LocalBackend) or other.store is not self.store:
            raise ValueError("they live in different stores and cannot be decided together: give both the same store")
        with self.store.lock:
            sets = tuple(dict.fromkeys((*self.sets, *other.sets)))
            if self.store.deciding:  # in a signal handler: until the queues are one, no call goes by the first alone
                self.queue.clearance.given = False
            for limit_set in sets[1:]:
                self._decide_soon(lambda queue, _, limit_set: queue.merge(limit_set.queue), limit_set)
            return LocalBackend(self.store, sets, fast=self.fast and other.fast)


def _grant_now(binding: Binding, grant: Grant) -> bool:
    """Charge a call of any limits, if no call waits and nothing has to be waited for."""
    backend: Any = binding.backend
    info = binding.info
    if info.enforce:
        if not binding.clearance.given or not backend._decide(_charge_if_ready, binding, grant):
            return False
    else:
        binding = binding.current()  # a rehearsal waits for nothing, whatever has changed
        wait, blocker = backend.forecast(binding)
        if wait > 0:
            info.would_refuse += 1
            if info.on_event is not None:
                emit(info.on_event, Refused(info.name, binding.charge.full_cost, wait, blocker or "the queue"))
        backend._decide(_charge, binding, grant)
    if binding.charge.held:
        backend._write_down_places(grant)
    return True


def _charge_if_ready(queue: WaitQueue, now: float, binding: Binding, grant: Grant) -> bool:
    if len(queue.waiters) or binding.clearance is not queue.clearance:
        return False
    return charge_now(queue, now, binding, grant)


def charge_now(_: WaitQueue, now: float, binding: Binding, grant: Grant) -> bool:
    """Within a decision: charge a call, if nothing has to be waited for."""
    grant.of(binding.backend, binding.info, binding.charge.charges, None, math.nan)
    receipts = charge_if_ready(binding.charge.charges, now)
    if receipts is None:
        return False
    grant.receipts, grant.granted_at = receipts, now  # no call comes between the charge and this
    binding.info.granted += 1
    return True


def _free(charges: Charges, receipts: Receipts, now: float) -> list[LimitState]:
    """Give back what a grant holds, and do nothing the second time; return the limits."""
    held = [(*charged, receipt) for charged, receipt in zip(charges, receipts, strict=True) if receipt[0].held]
    # Of places all that is held, whatever a settlement that was cut short has written down.
    back = [(state, receipt[1].amount if type(receipt[1]) is Hold else amount) for state, amount, receipt in held]
    give_back(back, [receipt for *_, receipt in held], now)
    return [state for state, *_ in held]


def _charge(_: WaitQueue, now: float, binding: Binding, grant: Grant) -> None:
    grant.of(binding.backend, binding.info, binding.charge.charges, None, math.nan)
    grant.receipts = charge(binding.charge.charges, now)
    grant.granted_at = now
    binding.info.granted += 1


def _note_taken_over(grant: Grant, state: LimitState, amount: float) -> None:
    """Write down what a limit that was added later took over, with a receipt for which it gives nothing back."""
    grant.charges, grant.receipts = [*grant.charges, (state, amount)], [*grant.receipts, (_ELSEWHERE, None)]


def _adjust(grant: Grant, state: LimitState, more: float, now: float) -> None:
    """Charge a grant `more` of a limit, or give back as much if it is below 0.

    An exception in the middle may cost capacity, and no more: what is charged is written down with no call in between,
    and what comes back is written down before it comes, so it cannot come twice.
    """
    charges, receipts = list(grant.charges), list(grant.receipts)
    mine = [index for index, (of, _) in enumerate(charges) if of is state and receipts[index][0] is state.meter]
    if more > 0:
        if mine:
            meter, receipt = receipts[mine[-1]]
            kept, topped, receipt = meter.top_up(charges[mine[-1]][1], more, receipt, now)
            charges[mine[-1]] = (state, kept)
        else:
            topped, receipt = more, state.meter.charge(more, now)
        grant.charges, grant.receipts = [*charges, (state, topped)], [*receipts, (state.meter, receipt)]
    for index in reversed(mine):  # the latest first
        if more < 0:
            amount = charges[index][1]
            back = min(amount, -more)
            charges[index] = (state, amount - back)
            grant.charges = charges
            give_back([(state, back)], [receipts[index]], now)
            more += back
