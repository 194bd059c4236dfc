"""Whose limits a request falls under, and what is known of the server's side of them.

    Lane                      one set of limits, and the server's buckets as far as they show
    Journey                   one request in a lane, from its grant to the end of its answer
    Fixed, Published, Auto    policies: which lane the requests for a model go through

Nothing here knows HTTP: `transport` says when a request leaves and what its answer told. Nothing here waits either: a lane
hands out the limiter to wait for. The arithmetic is in `learning`.
"""

from __future__ import annotations

import random
import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from penstock import InFlight, Limit, Limiter, Permit, Rate, clock, in_flight
from penstock.llm import tables
from penstock.llm.failures import Verdict
from penstock.llm.headers import Quota, Reading
from penstock.llm.learning import Departures, Snapshots, Trip

__all__ = ["Auto", "Fixed", "Journey", "Lane", "Policy", "Published"]

FIRST_BURST = 5.0
"""Seconds' worth of a learned limit that may be spent at once before the first lessons about it."""

RISE = 0.1
"""Share of a learned limit that may be spent on top of that with each answer after those lessons."""

UNTOLD = 1_000
"""Requests in flight at a server that tells no limits: as many as SDKs open connections."""

HOLD = 900.0
"""Seconds after which the place of an answer from there comes back that nobody read, closed or dropped."""

_SCALES_APART = 0.03  # share by which what is learned must differ for those who wait to be looked at anew
_LONGEST_PAUSE = 60.0  # seconds to stay away from a service that refuses again and again and never says for how long
_COUNTED = frozenset({"requests", "tokens", "images"})  # the units that costs are told in


@dataclass(slots=True, eq=False)
class Journey:
    """One request, from its grant to the end of its answer."""

    lane: Lane
    permit: Permit
    departures: list[tuple[Departures, float]] = field(default_factory=list)
    snapshots: dict[str, tuple[Snapshots, float]] = field(default_factory=dict)
    trips: dict[str, Trip] = field(default_factory=dict)
    left_at: float | None = None


class Lane:
    """One set of limits, and what is known of the server's side of them. Safe to use from any thread.

    The limits stay what they were given as. What the server says is only ever used downwards: where it has less left
    than we thought, the level is lowered to that.
    """

    def __init__(self, limiter: Limiter) -> None:
        self._lock = threading.RLock()
        self._strikes = 0
        self._paused_at = -1.0
        self._lost: deque[Journey] = deque()
        self._snapshots: dict[str, Snapshots] = {}
        self._units: dict[str, str] = {}  # the unit, by a quota's name
        self._take(limiter)

    def _take(self, limiter: Limiter) -> None:
        self.limiter = limiter
        self._limits: dict[str, tuple[Limit, ...]] = {}
        self._departures: dict[str, Departures] = {}
        self._look_again()

    def _look_again(self) -> None:
        """Read the limits anew if they have changed: a limiter may be reconfigured at any time."""
        limits = dict(self.limiter.limits)
        if limits == self._limits:
            return
        self.holds = any(isinstance(limit, InFlight) for kinds in limits.values() for limit in kinds)
        departures = {}
        for unit, kinds in limits.items():
            rate = min((limit for limit in kinds if isinstance(limit, Rate)), key=lambda each: each.burst, default=None)
            if rate is None:
                continue
            known = self._departures.get(unit)
            if known is None:
                departures[unit] = Departures(rate.burst, rate.rate)
            else:
                departures[unit] = known
                if self._limits.get(unit) != kinds:
                    known.change(rate.burst, rate.rate, clock.now())
        self._departures, self._limits = departures, limits

    @property
    def limits(self) -> Mapping[str, tuple[Limit, ...]]:
        """The limits in the server's units; the limiter's may be in ours."""
        return self.limiter.limits

    # On the way out

    def ask(self, cost: Mapping[str, float]) -> tuple[Limiter, dict[str, float]]:
        """The limiter to ask, and for what. Units that it does not limit are left out."""
        self.sweep()
        with self._lock:
            self._look_again()
            return self.limiter, {unit: amount for unit, amount in cost.items() if unit in self._limits}

    def granted(self, limiter: Limiter, permit: Permit, cost: Mapping[str, float]) -> Journey | None:
        """A request was allowed to leave. None: `limiter` is not the one to ask any more, so it was not."""
        with self._lock:
            if limiter is not self.limiter:
                return None
            journey = Journey(self, permit)
            charged = permit.cost
            for unit, departures in self._departures.items():
                if unit in charged:
                    departures.granted(charged[unit])
                    journey.departures.append((departures, charged[unit]))
            for name, snapshots in self._snapshots.items():
                amount = cost.get(self._units[name], 0.0)
                snapshots.granted(amount)
                journey.snapshots[name] = (snapshots, amount)
            self._lower()
            return journey

    def left(self, journey: Journey) -> None:
        """Its first byte is being sent. Said again: nothing happens."""
        with self._lock:
            if journey.left_at is not None:
                return
            now = journey.left_at = clock.now()
            for departures, amount in journey.departures:
                departures.left(amount, now)
            for name, (snapshots, amount) in journey.snapshots.items():
                journey.trips[name] = snapshots.left(amount, now)
            self._lower()

    # On the way back

    def never_left(self, journey: Journey) -> None:
        """There was no connection: nobody charges for what was never sent."""
        with self._lock:
            now = clock.now()
            for departures, amount in journey.departures:
                if journey.left_at is None:
                    departures.withdrawn(amount)
                else:
                    departures.came_back(amount, now)
            for name, (snapshots, amount) in journey.snapshots.items():
                if journey.left_at is None:
                    snapshots.withdrawn(amount)
                else:
                    snapshots.refused(journey.trips[name])
        journey.permit.cancel()

    def answered(self, journey: Journey, status: int, reading: Reading) -> None:
        """The headers of its answer are there."""
        with self._lock:
            if status < 400:
                self._strikes = 0
            for quota in reading.quotas:
                self._heard(journey, status, quota)
            self._lower()

    def refused(self, journey: Journey, verdict: Verdict) -> None:
        """The service says that the limit is used up: nobody goes until it says that somebody may."""
        with self._lock:
            wait = verdict.wait
            if wait is None:
                # Told nothing, we stay away twice as long each time, and count all that were on their way as one time.
                if journey.permit.granted_at <= self._paused_at:
                    return
                wait = min(2.0**self._strikes, _LONGEST_PAUSE)
                self._strikes += 1
            self._paused_at = clock.now()
            limiter = self.limiter
        # A little more, never less: whoever else shares the account was told the same moment.
        limiter.pause(wait * random.uniform(1.0, 1.1) + 0.01)

    # Places in flight

    def lose(self, journey: Journey) -> None:
        """Its answer was dropped, and nobody will close it. Does next to nothing: it may be called in the middle of anything."""
        self._lost.append(journey)

    def sweep(self) -> None:
        """Give back the places of answers that were lost."""
        while self._lost:
            self._lost.popleft().permit.close()

    # What the server has

    def _factor(self, unit: str) -> float:
        """What the server charges for each unit that the limiter does."""
        return 1.0

    def _heard(self, journey: Journey, status: int, quota: Quota) -> None:
        """One limit, as one answer tells it."""
        if quota.limit is None or quota.remaining is None or quota.unit not in self._departures:
            return
        snapshots = self._snapshots.get(quota.name)
        if snapshots is None or snapshots.limit != quota.limit:
            rate, burst = quota.limit / (quota.per or 60.0), self._departures[quota.unit].capacity
            self._snapshots[quota.name] = Snapshots(quota.limit, rate, burst)
            self._units[quota.name] = quota.unit
        elif quota.name in journey.trips and journey.snapshots[quota.name][0] is snapshots:
            trip = journey.trips[quota.name]
            if status == 429:
                snapshots.refused(trip)
            snapshots.heard(trip, _left(quota))

    def _lower(self) -> None:
        """Lower the limiter to what the server can be counted on to have, below 0 if need be."""
        bounds, levels = self._bounds(), self._levels()
        reset = {}
        for unit, bound in bounds.items():
            if bound < levels[unit][1] - 1e-9 * (1 + abs(bound)):  # not for what floats make of equal sums
                reset[unit] = (levels[unit][0] - bound) / self._departures[unit].rate
        if reset:
            self.limiter.observe(reset=reset)

    def _bounds(self) -> dict[str, float]:
        """What the server can be counted on to have now, by unit; below 0 if more was sent than it had."""
        now = clock.now()
        bounds = {unit: departures.level(now) for unit, departures in self._departures.items()}
        for name, snapshots in self._snapshots.items():
            unit = self._units[name]
            bounds[unit] = min(bounds[unit], snapshots.level(now) / self._factor(unit))
        return bounds

    def _levels(self) -> dict[str, tuple[float, float]]:
        """Capacity and level of the limiter, by unit: those of its smallest limit."""
        levels: dict[str, tuple[float, float]] = {}
        for limit in self.limiter.statistics().limits.values():
            if limit.unit not in levels or limit.capacity < levels[limit.unit][0]:
                levels[limit.unit] = limit.capacity, limit.level
        return levels


class _LearnedLane(Lane):
    """Limits that are not known until the first answer tells them, and that follow what later answers tell.

    Until then one request is in flight, and the others wait for its headers. A server that answers and tells no limits
    has none that we could keep; it still has places, and may still say "not now". It may also tell them later: not every
    endpoint does, and any of them may be asked first.
    """

    def __init__(self) -> None:
        self._known = False
        self._told = False
        self._kept_back: Permit | None = None
        self._keeps: set[str] = set()  # the units of which something is still kept back
        self._higher: dict[str, float] = {}
        self._rates: dict[str, tuple[Rate, ...]] = {}  # as told, where the limiter's are in our units
        self._scales: dict[str, tuple[tuple[Rate, ...], float]] = {}  # and by what factor they were divided
        super().__init__(Limiter(probe=in_flight(1)))

    @property
    def limits(self) -> Mapping[str, tuple[Limit, ...]]:
        """The limits as they were told."""
        return {**self.limiter.limits, **self._rates}

    def ask(self, cost: Mapping[str, float]) -> tuple[Limiter, dict[str, float]]:
        """As every lane; but no request that the server would take is too large for what was learned of its charges."""
        with self._lock:
            limiter, charges = super().ask(cost)
            for unit, rates in self._rates.items():
                if unit in charges and charges[unit] <= min(rate.amount for rate in rates):
                    charges[unit] = min(charges[unit], *(limit.capacity for limit in limiter.limits[unit]))
            return limiter, charges

    def answered(self, journey: Journey, status: int, reading: Reading) -> None:
        with self._lock:
            if self._told:
                super().answered(journey, status, reading)
                self._follow(reading)
                self._scale()
                self._let_go(journey)
                return
            known = self._known
            self._begin(journey, status, reading)
            if known:
                return
        if status != 429:  # else there will first be a pause
            journey.permit.close()  # the next in line goes, to find the limits known, or to ask once more

    def _factor(self, unit: str) -> float:
        factor = max((each.factor for name, each in self._snapshots.items() if self._units[name] == unit), default=1.0)
        # Nobody counts a request as less than one, and a few per cent more is what rounding makes of whole numbers.
        return factor if unit != "requests" or factor > 1.05 else 1.0

    def _begin(self, journey: Journey, status: int, reading: Reading) -> None:
        """Make the limiter of what the first answer tells."""
        told: dict[str, dict[str, tuple[Rate, float]]] = {}
        for quota in reading.quotas:
            if quota.limit is not None and quota.limit >= 1 and quota.remaining is not None and quota.unit in _COUNTED:
                told.setdefault(quota.unit, {})[quota.name] = Rate(quota.limit, quota.per or 60.0), _left(quota)
        if not told:
            # An error may well come from something in front of the service. An answer is the service's own.
            if status < 400 and not self._known:
                self._known = True
                self._take(Limiter(calls=in_flight(UNTOLD, ttl=HOLD)))
            return
        self._known = self._told = True
        limits: dict[str, Any] = {
            unit: tuple(dict.fromkeys(rate for rate, _ in quotas.values())) for unit, quotas in told.items()
        }
        self._rates = dict(limits)
        self._scales = {unit: (rates, 1.0) for unit, rates in self._rates.items()}
        self._take(Limiter(**limits))
        left_at = clock.now() if journey.left_at is None else journey.left_at
        for unit, quotas in told.items():
            for name, (rate, remaining) in quotas.items():
                snapshots = self._snapshots[name] = Snapshots(rate.amount, rate.rate)
                self._units[name] = unit
                snapshots.heard(snapshots.left(0.0, left_at), remaining)
        self._lower()
        self._keep_back()

    def _keep_back(self) -> None:
        """Cap the first burst: what is wrong with our estimates shall show before a whole minute's worth is spent."""
        keep: dict[str, float] = {}
        for limit in self.limiter.statistics().limits.values():
            assert isinstance(limit.limit, Rate)
            first = max(FIRST_BURST * limit.limit.rate, 0.05 * limit.capacity, 3.0)
            keep[limit.unit] = min(keep.get(limit.unit, limit.level), max(0.0, limit.level - first))
        self._keeps = {unit for unit, amount in keep.items() if amount > 0}
        if self._keeps:
            whole: dict[str, Any] = {**keep}
            self._kept_back = self.limiter.acquire_nowait(**whole)

    def _let_go(self, journey: Journey) -> None:
        """What was kept back goes, unit by unit and step by step, once there was a lesson about it.

        Not at once, and never more than the server has: all that is let go is spent before it can be lowered again. Lessons
        about a limit per day would come too late, and what it refills meanwhile is next to nothing: of such a limit each
        answer lets go what it took, so that no more than the first burst is ever unanswered.
        """
        if self._kept_back is None:
            return
        learned = {self._units[name] for name, snapshots in self._snapshots.items() if snapshots.lessons}
        bounds, levels, kept = self._bounds(), self._levels(), self._kept_back.cost
        less: dict[str, float] = {}
        for unit in tuple(self._keeps):
            capacity, level = levels[unit]
            if unit in learned:
                step = RISE * capacity
            elif min(rate.per for rate in self._rates[unit]) > 60:
                step = journey.permit.cost.get(unit, 0.0)
            else:
                continue
            goes = max(0.0, min(kept[unit], step, bounds[unit] - level))
            less[unit] = kept[unit] - goes
            if goes < step:  # that was all, or all there is; from here on the level rises with time alone
                self._keeps.discard(unit)
        if less:
            self._kept_back.settle(**less)
            self._lower()
        if not self._keeps:
            self._kept_back = None

    def _follow(self, reading: Reading) -> None:
        """Adopt a limit that has changed: a lower one at once, a higher one when it was told twice in a row."""
        for quota in reading.quotas:
            rates = self._rates.get(quota.unit, ())
            alone = sum(each.unit == quota.unit for each in reading.quotas) == len(rates) == 1
            if not quota.limit or quota.per is None or not alone:
                continue
            known, told = rates[0], Rate(quota.limit, quota.per)
            if told == known:
                self._higher.pop(quota.name, None)
            elif told.rate < known.rate or self._higher.pop(quota.name, None) == told.amount:
                self._rates[quota.unit] = (told,)
            else:
                self._higher[quota.name] = told.amount

    def _scale(self) -> None:
        """Keep the limits in our units, of which the server's are so many: those in line asked before that was learned.

        To charge them by the newest factor would help only those who come later, and of a thousand who ask at once none
        does.
        """
        changed: dict[str, Any] = {}
        kept: dict[str, float] = {}
        for unit, rates in self._rates.items():
            (known, before), factor = self._scales[unit], self._factor(unit)
            if rates != known or abs(factor / before - 1) > _SCALES_APART:
                self._scales[unit] = rates, factor
                changed[unit] = tuple(Rate(rate.amount / factor, rate.per) for rate in rates)
                if self._kept_back is not None and unit in self._keeps:
                    kept[unit] = self._kept_back.cost[unit] * before / factor
        if not changed:
            return
        self.limiter.reconfigure(**changed)
        if kept and self._kept_back is not None:
            self._kept_back.settle(**kept)
        self._look_again()
        self._lower()


def _left(quota: Quota) -> float:
    """What remained. The header says it in whole units, rounded down; the reset, where it is told, to the millisecond."""
    assert quota.limit is not None
    assert quota.remaining is not None
    if quota.reset is None or quota.per is None:
        return quota.remaining
    return min(max(quota.remaining, quota.limit * (1 - quota.reset / quota.per)), quota.remaining + 1)


class Policy:
    """Which lane the requests for a model go through."""

    def lane(self, model: str | None) -> Lane | None:
        """The lane; None: such requests are not limited.

        Raises:
            ValueError: There can be none for that model.
        """
        raise NotImplementedError


class Fixed(Policy):
    """One limiter for every request."""

    def __init__(self, limiter: Limiter) -> None:
        self._lane = Lane(limiter)

    def lane(self, model: str | None) -> Lane | None:
        """The one lane."""
        return self._lane


class _PerModel(Policy):
    def __init__(self) -> None:
        self._lanes: dict[str, Lane] = {}
        self._lock = threading.Lock()

    def lane(self, model: str | None) -> Lane | None:
        """The lane of that model; None for requests that name none."""
        if model is None:  # a list of models, a file: what services count there, they do not say
            return None
        group = self._group(model)
        with self._lock:
            lane = self._lanes.get(group)
            if lane is None:
                lane = self._lanes[group] = self._make(model)
            return lane

    def _group(self, model: str) -> str:
        """What stands for all models that share one lane."""
        return model

    def _make(self, model: str) -> Lane:
        raise NotImplementedError


class Auto(_PerModel):
    """A lane for each model, which learns its limits from what the service tells."""

    def _make(self, model: str) -> Lane:
        return _LearnedLane()


class Published(_PerModel):
    """A lane for each model, with the limits that were published for an account or a tier; its snapshots share it.

    Raises:
        ValueError: There is no such account.
    """

    def __init__(self, account: str) -> None:
        super().__init__()
        if account not in (*tables.accounts(), *tables.tiers()):
            tables.lookup("gpt-4", account)  # says which there are
        self._account = account

    def _group(self, model: str) -> str:
        return tables.family(model)

    def _make(self, model: str) -> Lane:
        limits: dict[str, Any] = dict(tables.lookup(model, self._account).limits)
        return Lane(Limiter(**limits))
