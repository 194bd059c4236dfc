"""Limits in a shared store together with places of this process.

For example the organisation's tokens in Redis, and at most 64 calls at once in this process.

A call first waits for its places in this process, in their own queue, and holds them while it waits for the store. So
the store is asked for no more calls than can be made, no grant of the store waits for a place here, and a call that
gives up returns both, exactly.

Only places may be kept in this process. A rate would be charged when the call begins to wait for the store, and would
be exceeded when many calls that have waited go at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

from penstock import clock
from penstock._backends.base import Binding, Charge, Clearance, Grant, LimiterInfo, Request, Snapshot
from penstock._backends.charges import ChargePlan
from penstock._backends.fast_path import look_closer
from penstock._backends.local import LocalBackend
from penstock._backends.shared.backend import SharedBackend
from penstock.limits import InFlight, Limit, Unlimited


class _MixedBinding(Binding):
    """A cost, bound to both backends."""

    __slots__ = ("local", "shared")

    local: Binding
    shared: Binding


class _MixedRequest(Request):
    """A request for places here, and then for what the store counts.

    Attributes:
        of_places: The request for the places; None once it has its answer.
        places: What was granted here.
        of_store: The request of the store, once there are places.
    """

    __slots__ = ("binding", "of_places", "of_store", "places")

    binding: _MixedBinding

    def __init__(self, binding: Any, *options: Any) -> None:
        super().__init__(binding, *options)
        self.binding = binding
        self.arrived = clock.now()
        self.of_places: Request | None = None
        self.places: Grant | None = None
        self.of_store: Request | None = None


@dataclass(slots=True, eq=False)
class _BothGrants:
    """The receipts of a grant: what was granted here, and by the store."""

    local: Grant
    shared: Grant

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        """(meter, receipt) of what was granted here."""
        return iter(self.local.charged()[1])


class MixedBackend:
    """Decides over a backend of this process and one in front of a store. See `base.Backend`."""

    __slots__ = ("__weakref__", "_clearance", "_plan", "local", "shared")

    request_type = _MixedRequest

    def __init__(self, local: LocalBackend, shared: Any) -> None:
        self.local = local
        self.shared: SharedBackend = shared
        for limit_set in local.sets:
            _check_held(limit_set.limits())
        self._plan = self._new_plan()
        self._clearance = Clearance()

    @property
    def store(self) -> Any:
        return self.shared.store

    @property
    def limit_sets(self) -> tuple[object, ...]:
        return (*self.local.sets, *self.shared.sets)

    @property
    def waiting(self) -> int:
        return self.local.waiting + self.shared.waiting

    def plan(self) -> ChargePlan:
        sets: tuple[Any, ...] = self.limit_sets
        if self._plan.version != sum([limit_set.version for limit_set in sets]):
            self._plan = self._new_plan()
            self._clearance = Clearance()
        return self._plan

    def _new_plan(self) -> ChargePlan:
        return ChargePlan([*self.local.sets, *self.shared.sets])

    def bind(self, info: LimiterInfo, cost: Mapping[str, float]) -> Binding:
        plan = self.plan()
        binding = _MixedBinding(self, info)
        binding.clearance = self._clearance
        binding.charge = Charge(cost, plan.charges(cost), look_closer)
        # The store's backend counts the grants of the whole.
        binding.local = self.local.bind(LimiterInfo(info.name, info.max_queue), _only(cost, self.local.plan()))
        binding.shared = self.shared.bind(info, _only(cost, self.shared.plan()))
        return binding

    def current(self, binding: Binding) -> bool:
        self.plan()
        return binding.clearance is self._clearance

    # Turns

    def enter(self, request: Any) -> float | None:
        """Ask for the places here; once there are, for the rest. See `base`."""
        of_places = self.local.request_type(
            request.binding.local, request.parker, request.max_wait, request.time_left, request.priority, request.flow
        )
        request.of_places = of_places
        seconds = self.local.enter(of_places)
        return seconds if seconds is not None else self._after_places(request)

    def _after_places(self, request: _MixedRequest) -> float | None:
        """The request for places has its answer: go on to the store, or refuse."""
        of_places = request.of_places
        assert of_places is not None, "there was one"
        if of_places.error is not None:
            request.error, of_places.error = of_places.error, None
            request.info.refused += 1
            return None
        places = Grant()
        self.local.hand_over(of_places, places)
        request.places, request.of_places = places, None  # in one step: `leave` gives back one or the other
        waited = clock.now() - request.arrived
        left = None if request.max_wait is None else max(0.0, request.max_wait - waited)
        binding = request.binding.shared
        if not self.shared.current(binding):
            binding = self.shared.bind(binding.info, binding.charge.cost)
        of_store = self.shared.request_type(
            binding, request.parker, left, request.time_left - waited, request.priority, request.flow
        )
        request.of_store = of_store
        seconds = self.shared.enter(of_store)
        if seconds is None:
            self._after_store(request)
        return seconds

    def advance(self, request: Any) -> float | None:
        if request.of_places is not None:
            seconds = self.local.advance(request.of_places)
            return seconds if seconds is not None else self._after_places(request)
        seconds = self.shared.advance(request.of_store)
        if seconds is None:
            self._after_store(request)
        return seconds

    def _after_store(self, request: _MixedRequest) -> None:
        of_store = request.of_store
        assert of_store is not None, "it has answered"
        if of_store.error is not None:
            assert request.places is not None, "it was waiting with them"
            self.local.cancel(request.places)
            request.error, of_store.error = of_store.error, None
        else:
            request.granted_at = clock.now()

    def leave(self, request: Any) -> None:
        of_store, request.of_store = request.of_store, None
        places, request.places = request.places, None
        of_places, request.of_places = request.of_places, None
        try:
            if of_store is not None:
                self.shared.leave(of_store)
        finally:
            if places is not None:
                self.local.cancel(places)
            elif of_places is not None:
                request.info.cancelled += 1
                self.local.leave(of_places)

    def hand_over(self, request: Any, grant: Grant) -> None:
        by_store = Grant()
        self.shared.hand_over(request.of_store, by_store)
        charges = (*request.places.charges, *by_store.charges)
        grant.of(self, request.info, charges, _BothGrants(request.places, by_store), request.granted_at)

    # Of a grant

    def cost(self, grant: Grant) -> dict[str, float]:
        both: _BothGrants = grant.receipts
        here, there = self.local.cost(both.local), self.shared.cost(both.shared)
        return {unit: max(here.get(unit, 0), there.get(unit, 0)) for unit in {**here, **there}}

    def settle(self, grant: Grant, true_cost: Mapping[str, float]) -> None:
        """Charge a grant for its true cost: each backend for the units that it knows."""
        self.plan().check(true_cost)
        both: _BothGrants = grant.receipts
        here, there = _only(true_cost, self.local.plan()), _only(true_cost, self.shared.plan())
        if there:
            self.shared.settle(both.shared, there)
        if here:
            self.local.settle(both.local, here)

    def cancel(self, grant: Grant) -> bool:
        both: _BothGrants = grant.receipts
        grant.charges, grant.ended = (), True
        done = self.shared.cancel(both.shared)
        return self.local.cancel(both.local) or done

    def close(self, grant: Grant) -> None:
        both: _BothGrants = grant.receipts
        grant.ended = True
        self.local.close(both.local)
        self.shared.close(both.shared)

    def lose(self, grant: Grant, where: tuple[str, int]) -> None:
        both: _BothGrants = grant.receipts
        self.local.lose(both.local, where)
        if any(state.meter.held for state, _ in both.shared.charges):
            self.shared.lose(both.shared, where)

    def postpone(self, grant: Grant, travel: float) -> None:
        """The store has counted the call at its grant, and keeps to that."""

    # Of the limits

    def forecast(self, binding: Binding) -> tuple[float, str | None]:
        """Seconds that a call would wait if it came now: the longer of both waits."""
        assert isinstance(binding, _MixedBinding), "it was bound here"
        here, there = self.local.forecast(binding.local), self.shared.forecast(binding.shared)
        return max(here, there, key=itemgetter(0))

    def observe(self, remaining: Mapping[str, float], reset: Mapping[str, float], grant: Grant | None) -> None:
        """Hear what the server says is left: of what the store counts, as places are not lowered by hearsay."""
        self.plan().check((*remaining, *reset))
        there = self.shared.plan()
        charged = None if grant is None else grant.receipts.shared
        self.shared.observe(_only(remaining, there), _only(reset, there), charged)

    def pause(self, seconds: float, units: tuple[str, ...]) -> None:
        self._both("pause", units, seconds)

    def resume(self, units: tuple[str, ...]) -> None:
        self._both("resume", units)

    def _both(self, verb: str, units: tuple[str, ...], *arguments: Any) -> None:
        for backend in (self.local, self.shared):
            mine = tuple(unit for unit in units if unit in backend.plan().units)
            if mine or not units:
                getattr(backend, verb)(*arguments, mine)

    def reconfigure(self, limits: Mapping[str, tuple[Limit, ...]]) -> None:
        here, there = _only(limits, self.local.plan()), _only(limits, self.shared.plan())
        _check_held(here)
        if there:
            self.shared.reconfigure(there)
        if here:
            self.local.reconfigure(here)

    def snapshot(self) -> Snapshot:
        here, there = self.local.snapshot(), self.shared.snapshot()
        return Snapshot(
            waiting=here.waiting + there.waiting,
            in_flight=max(here.in_flight, there.in_flight),
            paused_for=max(here.paused_for, there.paused_for),
            levels=[*here.levels, *there.levels],
        )

    def level(self, unit: str) -> float:
        return (self.local if unit in self.local.plan().units else self.shared).level(unit)

    async def refresh(self) -> None:
        await self.shared.refresh()

    def recipe(self, info: LimiterInfo) -> list[dict[str, Any]]:
        """Refused: some of its state lives in this process, so it cannot be pickled."""
        return self.local.recipe(info)

    def itself(self) -> MixedBackend:
        return self

    def joined(self, other: Any) -> MixedBackend:
        """A backend over the limits of both; ValueError if they live in different shared stores."""
        if isinstance(other, MixedBackend):
            return MixedBackend(self.local.joined(other.local), self.shared.joined(other.shared))
        if isinstance(other, LocalBackend):
            return MixedBackend(self.local.joined(other), self.shared)
        return MixedBackend(self.local, self.shared.joined(other))


def _only(amounts: Mapping[str, Any], plan: ChargePlan) -> dict[str, Any]:
    return {unit: amount for unit, amount in amounts.items() if unit in plan.units}


def _check_held(limits: Mapping[str, tuple[Limit, ...]]) -> None:
    """Refuse what is spent and not held."""
    for unit, kinds in limits.items():
        for limit in kinds:
            if not isinstance(limit, Unlimited | InFlight):
                raise ValueError(
                    f"{unit}={limit} of this process cannot be decided together with a shared store: "
                    "only places (in_flight) can, which are held while the call waits for the store. "
                    "Put the rate into the shared store, or enter one limiter after the other"
                )
