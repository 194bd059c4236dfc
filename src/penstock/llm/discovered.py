"""An endpoint whose limits are unknown until the server's answers and refusals tell.

DiscoveredEndpoint    an endpoint that learns; see `discovery` for what, and for the states
Learned               the kind of limit that its limiter has: its meter is the estimate itself
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from penstock import InFlight, Limit, Limiter, Meter, Permit, Rate, clock, in_flight
from penstock._concurrency.locks import new_lock
from penstock.llm import tables
from penstock.llm.discovery import UnitEstimate
from penstock.llm.endpoints import Endpoint, Endpoints, EndpointStatistics, LimitLevel, RequestInFlight
from penstock.llm.failures import Verdict
from penstock.llm.headers import Reading
from penstock.llm.learning.places import Places
from penstock.stores import MemoryStore

__all__ = ["DiscoveredEndpoint", "Learned", "discovered"]

MANY = 1_000
"""Requests in flight at a server that states no limits: as many as SDKs open connections."""

ANY_NUMBER = 1_000_000
"""Requests in flight at a server that states its limits."""

HOLD = 900.0
"""Seconds after which the place of an answer comes back that was not read, closed or dropped."""

UNKNOWN = 0.2
"""Requests per second before the first answer: one, and another if that takes long."""

SEARCH_FROM = 10.0
"""Requests per second that a server that states nothing is sent at first."""

_WAKES_APART = 0.1  # seconds between two looks at all waiters, because the server has more than was thought
_COUNTED = ("requests", "tokens", "output_tokens", "images")  # the units that costs are counted in


@dataclass(frozen=True)
class Learned:
    """A limit whose numbers are not written down: its meter asks the estimate of what the server has."""

    unit: str
    estimate: UnitEstimate = field(compare=False, repr=False)
    lock: Any = field(compare=False, repr=False)
    revision: int = 0
    default: float | None = 0.0

    @property
    def capacity(self) -> float:
        """The most that one request can take."""
        return self.estimate.capacity

    def meter(self) -> Meter:
        """What a limiter charges."""
        return _EstimateMeter(self)

    def __str__(self) -> str:
        return self.estimate.describe() or "not known yet"


class _EstimateMeter(Meter):
    """Charges the estimate itself, so that limiter and estimate cannot differ.

    A limiter calls it with its own lock held. The lock here is the endpoint's, which never calls a limiter with it
    held.
    """

    __slots__ = ("_estimate", "_lock")

    def __init__(self, limit: Learned) -> None:
        self._estimate = limit.estimate
        self._lock = limit.lock

    @property
    def guesses(self) -> bool:
        """Before anything is stated or refused."""
        return self._estimate.searches

    def ready_at(self, cost: float, now: float) -> float:
        with self._lock:
            return self._estimate.ready_at(cost, now)

    def ready_after(self, other: float, cost: float, now: float) -> float:
        with self._lock:
            return self._estimate.ready_at(cost, now, other)

    def ready_behind(self, ahead: float, cost: float, now: float) -> float:
        with self._lock:
            return self._estimate.ready_at(cost, now, ahead)

    def charge(self, cost: float, now: float) -> tuple[()]:
        with self._lock:
            self._estimate.granted(cost, now)
        return ()

    def undo(self, amount: float, mark: Any, now: float) -> None:
        with self._lock:
            self._estimate.withdrawn(amount, now)

    def level(self, now: float) -> float:
        with self._lock:
            return self._estimate.level(now)

    def used(self, now: float) -> float:
        return 0.0

    def change(self, limit: Learned, now: float) -> bool:
        return limit.estimate is self._estimate

    def lower_to(self, level: float, now: float) -> None:
        """What the server says reaches the estimate through the endpoint."""


class DiscoveredEndpoint(Endpoint):
    """Limits that are unknown until answers tell them, and that follow what later answers tell.

    Until the first answer one request is in flight (and another every five seconds), and the others wait for its
    headers. A server that answers and tells no limits is sent more and more until it refuses something; then what it
    admits between refusals is its limit.
    """

    learns = True

    def __init__(self, units: tuple[str, ...] = _COUNTED) -> None:
        self._answered = False
        self._is_stated = False
        self._woken_at = -math.inf
        lock = new_lock()
        estimates = {
            unit: UnitEstimate(charges_refused=unit == "requests", charged_late=unit == "output_tokens")
            for unit in units
        }
        self._learned = {unit: Learned(unit, estimate, lock) for unit, estimate in estimates.items()}
        super().__init__(self._limited_by(self._learned))
        self._lock = lock
        self._units = estimates
        self._places = Places()
        self._places_since = -math.inf
        self._room: float = MANY
        estimates["requests"].search(UNKNOWN, clock.now(), at_once=1.0)

    def _limited_by(self, limits: Mapping[str, Any], store: MemoryStore | None = None) -> Limiter:
        """The limiter to ask; `_learner` is reconfigured to what is learned."""
        self._learner = Limiter(dict(limits), calls=in_flight(MANY, ttl=HOLD), store=store)
        return self._learner

    @property
    def limits(self) -> Mapping[str, tuple[Limit, ...]]:
        """The limits that answers have named, by unit; empty as long as none has."""
        with self._lock:
            return {
                unit: tuple(Rate(each.limit, each.per) for each in estimate.stated.values() if each.limit >= 1)
                for unit, estimate in self._units.items()
                if estimate.stated
            }

    def statistics(self) -> EndpointStatistics:
        """What is known now."""
        known, most = super().statistics(), self._places.most
        return known if most is None else replace(known, learned={**known.learned, "in_flight": f"{most} at once"})

    @property
    def holds(self) -> bool:
        """As long as nothing is stated, or where the server works on so many at once and no more."""
        return not self._is_stated or self._places.most is not None

    def levels(self) -> list[LimitLevel]:
        """How full every limit is that answers have named, in our units."""
        with self._lock:
            now = clock.now()
            return [
                LimitLevel(unit, each.capacity / each.factor, each.rate / each.factor, each.level(now) / each.factor)
                for unit, estimate in self._units.items()
                for each in estimate.stated.values()
            ]

    def ask(self, cost: Mapping[str, float]) -> tuple[Limiter, dict[str, float]]:
        """The limiter to ask, and for what."""
        self.sweep()
        # A server may well charge for what costs nothing by our rule; of nothing no factor could be learned.
        floors = {"tokens": 1.0}
        return self.limiter, {
            unit: max(amount, floors.get(unit, 0.0)) for unit, amount in cost.items() if unit in self._units
        }

    def granted(self, permit: Permit, cost: Mapping[str, float]) -> RequestInFlight:
        """A request was allowed to leave; its permit has charged the estimates already."""
        charged = permit.cost
        return RequestInFlight(self, permit, cost, {unit: charged.get(unit, 0.0) for unit in self._units})

    def left(self, request: RequestInFlight) -> None:
        """Its first byte is being sent. Said again: nothing happens."""
        with self._lock:
            if request.left_at is not None:
                return
            self._sent += 1
            now = request.left_at = clock.now()
            self._note_under_way(request, now)
            if self._places.compares:
                request.others = self._others(request)
            for unit, amount in request.charged.items():
                request.departures[unit] = self._units[unit].left(amount, now)

    def _withdraw(self, request: RequestInFlight, now: float) -> None:
        """The permit does that: it is cancelled, and its meters are these estimates."""

    def answered(self, request: RequestInFlight, status: int, reading: Reading) -> None:
        """The headers of its answer are there."""
        with self._lock:
            if status < 400 and request.permit.granted_at > self._paused_at:
                self._strikes = 0
            now = clock.now()
            self._note_answer(request, status, now)
            before = {unit: estimate.level(now) for unit, estimate in self._units.items()}
            for unit, departure in request.departures.items():
                self._units[unit].answered(departure, now, refused=status == 429)
            for quota in reading.quotas:
                self._hear(request, quota, now)
            if status < 400:
                self._passed(request, now)
            places = self._places_for(status, now)
            wants_more = self._places.wants_more
            rose = any(estimate.level(now) > before[unit] for unit, estimate in self._units.items())
        if wants_more:
            all_taken = self.limiter.statistics().in_flight >= (self._places.most or 0)  # with no lock of ours held
            with self._lock:
                self._places.look(all_taken=all_taken)
                places = self._at_most()
        if places is not None:
            self._learner.reconfigure(calls=places)
        if places is not None or (rose and now - self._woken_at >= _WAKES_APART):
            self._wake(now)

    def settled(self, request: RequestInFlight, used: Mapping[str, float]) -> None:
        """Its answer says what came out of it. What went in was learned from the headers of answers."""
        output = used.get("output_tokens")
        departure = request.departures.get("output_tokens")
        if output is not None and departure is not None:
            with self._lock:
                self._units["output_tokens"].settled(departure, output, clock.now())

    def _places_for(self, status: int, now: float) -> InFlight | None:
        """How many may be in flight from now on, if that has changed."""
        requests = self._units["requests"]
        stated = any(estimate.stated for estimate in self._units.values())
        if stated and not self._is_stated:
            self._answered = self._is_stated = True
            for estimate in self._units.values():
                estimate.stop_searching()
            rates = [each.fastest for each in requests.stated.values() if each.per <= 60]
            requests.search(max(SEARCH_FROM, 4 * max(rates, default=0.0)), now)
            self._room = ANY_NUMBER
            return self._at_most()
        if self._answered:
            return None
        # An error may well come from something in front of the service. An answer is the service's own.
        if status < 400:
            self._answered = True
            requests.stop_searching()
            requests.search(SEARCH_FROM, now)
        elif status != 429 and requests.pace is not None:
            requests.pace.charge(-1.0, now)  # the next one goes, to ask once more
        return self._at_most()

    def _at_most(self) -> InFlight:
        """How many may be in flight, as far as is known."""
        known = self._places.most
        if known is None and self._room == ANY_NUMBER:
            return in_flight(ANY_NUMBER)
        return in_flight(min(self._room, known or ANY_NUMBER), ttl=HOLD)

    def _passed(self, request: RequestInFlight, now: float) -> None:
        """Tell the searches for a rate, and for places, that a request was let through."""
        self._places.admitted(request.others)
        latency = None if request.left_at is None else now - request.left_at
        for unit, departure in request.departures.items():
            self._units[unit].passed(departure, now, latency)

    def _wake(self, now: float) -> None:
        """Have all waiters looked at anew: there is more than they wait for."""
        self._woken_at = now
        self._learned = {unit: replace(limit, revision=limit.revision + 1) for unit, limit in self._learned.items()}
        limits: dict[str, Any] = dict(self._learned)
        self._learner.reconfigure(**limits)

    def refused(self, request: RequestInFlight, verdict: Verdict) -> None:
        """The service says that a limit is used up: one that was stated, or one that is hidden."""
        with self._lock:
            now = clock.now()
            before, info = self._places.most, verdict.info
            # Those that left as one bunch arrive in any order: each of them may have been there before this one.
            is_of_bunch = before is None or (request.left_at or 0.0) <= self._places_since
            others = self._others(request, now if is_of_bunch else None)
            said = info.unit == "in_flight"
            explained = not said and self._explained(request, verdict, now)
            for_places = not explained and self._places.refused(others, said=said, named=info.limit if said else None)
            if for_places and before is None:
                for estimate in self._units.values():
                    estimate.begin_again(now)
            elif not for_places and not explained and self._answered:  # before, it could be measured from nothing
                self._measure(request, verdict, now)
            places = None
            if self._places.most != before:
                places, self._places_since = self._at_most(), now
        if places is not None:
            self._learner.reconfigure(calls=places)
        # A place is free when one of the others is over, whatever some services say of that, as the end of a minute.
        if not for_places or not others or (verdict.wait is not None and not said):
            super().refused(request, verdict)

    def _measure(self, request: RequestInFlight, verdict: Verdict, now: float) -> None:
        """No limit that was stated explains it, so there is a hidden one."""
        unit = self._unit_of(request, verdict)
        searched = self._units["requests"].pace
        if unit != "requests":
            self._units["requests"].stop_searching()
        info = verdict.info
        named = info.limit / info.period if info.limit and info.period and info.period <= 3_600 else None
        self._units[unit].refused_unexplained(
            request.departures[unit], now, named, searched, verdict.wait, now - clock.wall()
        )

    def _explained(self, request: RequestInFlight, verdict: Verdict, now: float) -> bool:
        """Whether a limit that was stated explains it; its estimate hears of that."""
        mine = [unit for unit, departure in request.departures.items() if self._units[unit].explains(departure, now)]
        for unit in mine:
            self._units[unit].explained(request.departures[unit], verdict.wait)
        return bool(mine)

    def _unit_of(self, request: RequestInFlight, verdict: Verdict) -> str:
        """What it was refused for: the unit that the message names, or else the one that is scarcer, as a rule."""
        named = verdict.info.unit
        if named in request.departures:
            return named
        return "tokens" if request.charged.get("tokens") else "requests"


def discovered() -> Endpoints:
    """An endpoint for each model, its dated snapshots included, which learns its limits from what the service tells."""
    return Endpoints(lambda _: DiscoveredEndpoint(), tables.family)
