"""An endpoint: the limits that some of a client's requests share, here and at the server.

    Endpoint           limits that are kept as they are; what the server says is only ever used downwards
    Endpoints          those of one client
    RequestInFlight    one request, from its grant to the end of its answer

Those that were given by the user are in `given`, and those that are learned in `discovered`.

An endpoint has a limiter, the requests in flight, and an estimate of what the server has. It hears when a request was
granted, when it left, and what came back:

    ask ─▶ (limiter grants) ─▶ granted ─▶ left ─▶ answered [─▶ refused]
                                  │         │
                                  └─────────┴──▶ never_left

Nothing here knows HTTP, and nothing here waits: an endpoint hands out the limiter to wait for. The arithmetic is in
`discovery`.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field, replace

from penstock import Calendar, InFlight, Limit, Limiter, Permit, Rate, Sliding, Statistics, clock
from penstock._chance import CHANCE
from penstock._concurrency.locks import new_lock
from penstock.llm.discovery import UnitEstimate
from penstock.llm.failures import Verdict
from penstock.llm.headers import Quota, Reading
from penstock.llm.learning.stated_limit import StatedLimit
from penstock.llm.learning.traffic import HEADROOM, SHARED_HEADROOM, WINDOWS_HEADROOM, Departure, DepartureBucket
from penstock.llm.reporting import Report
from penstock.stores import MemoryStore

__all__ = [
    "Endpoint",
    "EndpointStatistics",
    "Endpoints",
    "LimitLevel",
    "RequestInFlight",
    "counted_unit",
    "stated_by",
]

_COUNTED_AS = {
    "input-tokens": ("input_tokens", "tokens"),
    "output-tokens": ("output_tokens",),
    "input-images": ("images",),
}
"""What is stated by a name of its own, and estimated by one of ours: the first that is limited."""

_NOTHING: Mapping[str, float] = {}
_NEWS_APART = 3_600.0  # seconds without a long pause, after which the next one is reported again
_LONGEST_WAY = 1.0  # seconds between a departure and its refusal
_COARSE = 0.1  # share of a period by which a reset may be rounded and still tell a bucket from a window
_LOOKED_AT = 64  # endpoints, of those that are there longest, for one that is idle
_LONGEST_OWN_PAUSE = (
    60.0  # seconds to stay away from a service that refuses again and again and never says for how long
)


@dataclass(slots=True, eq=False)
class RequestInFlight:
    """One request, from its grant to the end of its answer.

    Attributes:
        cost: What it costs, as estimated; also in units that are not limited.
        charged: Per unit, what the endpoint's estimate was charged.
        left_at: When its first byte was sent; None: it is still here.
        others: How many were under way then, where that matters.
        answered_at: When the headers of its answer were there.
        is_refused: Whether they refused it.
        departures: Per unit, once it left.
        report: What a listener is to hear of it; None: there is no listener.
    """

    endpoint: Endpoint
    permit: Permit
    cost: Mapping[str, float]
    charged: dict[str, float] = field(default_factory=dict)
    departures: dict[str, Departure] = field(default_factory=dict)
    left_at: float | None = None
    others: int = 0
    answered_at: float | None = None
    is_refused: bool = False
    report: Report | None = None

    def was_under_way(self, first: float, last: float) -> bool:
        """Whether the server may have worked on it between two moments."""
        if self.left_at is None or self.left_at > last or self.is_refused:
            return False
        return not self.permit.ended or (self.answered_at is not None and self.answered_at > first)

    def over(self) -> None:
        """Tell the listener that it is over."""
        if self.report is not None:
            self.report.over()


@dataclass(frozen=True, slots=True)
class LimitLevel:
    """How full one limit is.

    Attributes:
        unit: What it counts.
        capacity: Units there are at most.
        rate: Units per second that come back.
        level: Units there are now.
    """

    unit: str
    capacity: float
    rate: float
    level: float


@dataclass(frozen=True, slots=True)
class EndpointStatistics:
    """What an endpoint knows, at one moment.

    Attributes:
        limiter: Of the limiter: what was granted, what waits, the longest pause.
        learned: Per unit, in words: what was stated, and what was measured. Empty: nothing was.
        levels: Per unit, what the server can be counted on to have. Units of which nothing is known are left out.
        factors: Per unit, what the server charges over what was estimated.
        sent: Requests that left.
        refused: How many of them were refused with 429.
        pauses: How often all requests were made to wait.
    """

    limiter: Statistics
    learned: Mapping[str, str]
    levels: Mapping[str, float]
    factors: Mapping[str, float]
    sent: int
    refused: int
    pauses: int


class Endpoint:
    """Limits that were given, and what is known of the server's side of them. Safe to use from any thread.

    The limits stay as they were given. Where the server has less left than we thought, the level is lowered to that.

    Attributes:
        limiter: The limits, here.
        learns: Whether they are learned from the server's answers.
        successor: The endpoint that has its limits from now on; None as a rule. What it granted it sees through.
    """

    learns = False

    def __init__(self, limiter: Limiter) -> None:
        self.limiter = limiter
        self.successor: Endpoint | None = None
        self._lock = new_lock()
        self._is_shared = not isinstance(limiter.store, MemoryStore)
        self._asked = False
        self._made_up_at = -math.inf
        self._strikes = 0
        self._paused_at = self._reported_until = -math.inf
        self._sent = self._refused = self._pauses = 0
        self._lost: deque[RequestInFlight] = deque()
        self._under_way: deque[RequestInFlight] = deque()  # and those that are over, for a while
        self._plan: object = None  # what the limits were read from
        self._units: dict[str, UnitEstimate] = {}
        self._buckets: dict[str, DepartureBucket] = {}
        self._limits: dict[str, tuple[Limit, ...]] = {}
        self._travel: float | None = None  # seconds after a departure in which windows count it; None: there are none
        self._look_again()

    @property
    def limits(self) -> Mapping[str, tuple[Limit, ...]]:
        """The limits in the server's units."""
        return self.limiter.limits

    def _take_over(self, before: Endpoint) -> None:
        """Go on with what another endpoint knows of the server, and with what it has on its way."""
        self._lock = before._lock
        with self._lock:
            for unit in self._units.keys() & before._units.keys():
                self._units[unit] = before._units[unit]
                self._units[unit].stop_searching()

    @property
    def measures(self) -> bool:
        """Whether a limit is known that no answer stated."""
        with self._lock:
            return any(unit.pace is not None and not unit.pace.searching for unit in self._units.values())

    def latest(self) -> Endpoint:
        """The endpoint that has the limits now."""
        endpoint = self
        while endpoint.successor is not None:
            endpoint = endpoint.successor
        return endpoint

    @property
    def holds(self) -> bool:
        """Whether a request holds a place until its answer was read."""
        return any(isinstance(limit, InFlight) for kinds in self._limits.values() for limit in kinds)

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits here, is in flight or is kept waiting."""
        known = self.limiter.statistics()
        return not (known.in_flight or known.waiting or known.paused_for)

    def statistics(self) -> EndpointStatistics:
        """What is known now."""
        limiter = self.limiter.statistics()
        with self._lock:
            now = clock.now()
            units = self._units.items()
            return EndpointStatistics(
                limiter=limiter,
                learned={unit: words for unit, estimate in units if (words := estimate.describe())},
                levels={unit: level for unit, estimate in units if (level := estimate.level(now)) < math.inf},
                factors={unit: estimate.factor for unit, estimate in units if estimate.stated},
                sent=self._sent,
                refused=self._refused,
                pauses=self._pauses,
            )

    def levels(self) -> list[LimitLevel]:
        """How full every rate and window that slides is, one entry for each."""
        return [
            LimitLevel(
                one.unit, limit.burst if isinstance(limit, Rate) else limit.amount, limit.amount / limit.per, one.level
            )
            for one in self.limiter.statistics().limits.values()
            for limit in [one.limit]
            if isinstance(limit, Rate | Sliding)
        ]

    # On the way out

    def ask(self, cost: Mapping[str, float]) -> tuple[Limiter, dict[str, float]]:
        """The limiter to ask, and for what. Units that it does not limit are left out."""
        self.sweep()
        with self._lock:
            self._look_again()
            asked = {unit: amount for unit, amount in cost.items() if unit in self._limits}
        if not self._is_shared:
            self._settle_levels(asked)
        elif not self._asked:
            self._asked = True
            self._settle_levels()  # before many are granted at once, in many processes, what should stay unused
        return self.limiter, asked

    def granted(self, permit: Permit, cost: Mapping[str, float]) -> RequestInFlight:
        """A request was allowed to leave."""
        with self._lock:
            request = RequestInFlight(self, permit, cost)
            charged = cost if self._units.keys() <= cost.keys() else permit.cost
            now = clock.now()
            for unit, estimate in self._units.items():
                amount = charged.get(unit, 0.0)
                request.charged[unit] = amount
                estimate.granted(amount, now)
        self._settle_for_waiters()
        return request

    def left(self, request: RequestInFlight) -> None:
        """Its first byte is being sent. Said again: nothing happens."""
        with self._lock:
            if request.left_at is not None:
                return
            self._sent += 1
            request.left_at = clock.now()
            self._note_under_way(request, request.left_at)
            for unit, amount in request.charged.items():  # as the server will, once the request is there
                request.departures[unit] = self._units[unit].left(amount, request.left_at)
                self._buckets[unit].charge(amount, request.left_at)
        if self._travel is not None:
            request.permit._leave(self._travel)
        self._settle_for_waiters()

    def _note_under_way(self, request: RequestInFlight, now: float) -> None:
        """Remember it, and forget those that are over, after a while in which they may explain a refusal."""
        under_way, since = self._under_way, now - (_LONGEST_WAY if self._refused else 0.0)
        while under_way and under_way[0].permit.ended and (under_way[0].answered_at or 0.0) <= since:
            under_way.popleft()
        under_way.append(request)

    def _others(self, request: RequestInFlight, until: float | None = None) -> int:
        """How many were under way when a request left, or from then on until a moment."""
        first = clock.now() if request.left_at is None else request.left_at
        last = first if until is None else until
        return sum(each.was_under_way(first, last) for each in self._under_way if each is not request)

    # On the way back

    def never_left(self, request: RequestInFlight) -> None:
        """There was no connection: no server charges for what was never sent."""
        with self._lock:
            now = clock.now()
            for unit, departure in request.departures.items():
                if unit in self._buckets:
                    self._buckets[unit].charge(-departure.cost, now)
                self._units[unit].came_back(departure, now)
            self._withdraw(request, now)
        request.permit.cancel()

    def _withdraw(self, request: RequestInFlight, now: float) -> None:
        for unit, amount in request.charged.items():
            self._units[unit].withdrawn(amount, now)

    def answered(self, request: RequestInFlight, status: int, reading: Reading) -> None:
        """The headers of its answer are there."""
        with self._lock:
            if status < 400 and request.permit.granted_at > self._paused_at:
                self._strikes = 0
            now = clock.now()
            self._note_answer(request, status, now)
            for unit, departure in request.departures.items():
                self._units[unit].answered(departure, now, refused=status == 429)
            for quota in reading.quotas:
                self._hear(request, quota, now)
        if reading.quotas:
            self._settle_levels()
        else:
            self._settle_for_waiters()
        if self._is_shared and reading.quotas:
            self._make_up_reserve(request)

    def _note_answer(self, request: RequestInFlight, status: int, now: float) -> None:
        request.answered_at, request.is_refused = now, status == 429
        self._refused += request.is_refused

    def _make_up_reserve(self, request: RequestInFlight) -> None:
        """Charge for what the server has less than is to be kept back there, where others use the limiter too.

        Requests that were granted and are sent late find the server full meanwhile, and use up what was kept back for
        that. Each process makes up for a part, as none knows how many do.
        """
        with self._lock:
            now = clock.now()
            if now < self._made_up_at + SHARED_HEADROOM:
                return
            lacking = {unit: bucket.reserve - self._units[unit].level(now) for unit, bucket in self._buckets.items()}
            debts = {unit: lack for unit, lack in lacking.items() if lack > self._buckets[unit].reserve / 2}
            if not debts:
                return
            self._made_up_at = now
        request.permit.settle({unit: request.charged.get(unit, 0.0) + lack / 4 for unit, lack in debts.items()})

    def settled(self, request: RequestInFlight, used: Mapping[str, float]) -> None:
        """Its answer says what it really took, in units that were estimated."""
        with self._lock:
            known = {unit: amount for unit, amount in used.items() if unit in self._limits}
            for unit in known.keys() & self._buckets.keys():
                self._buckets[unit].charge(known[unit] - request.charged.get(unit, 0.0), clock.now())
                request.charged[unit] = known[unit]
        if known:
            request.permit.settle(known)

    def refused(self, request: RequestInFlight, verdict: Verdict) -> None:
        """The service says that the limit is used up: no request goes before the moment that it names."""
        self.stay_away(request, verdict)

    def stay_away(self, request: RequestInFlight, verdict: Verdict) -> None:
        """The service serves nothing for now, whether or not that has to do with its limits."""
        wait = self._pause_for(request, verdict)
        if wait is not None:
            self._pauses += 1
            # A little more, never less: other processes of the account heard the same moment.
            self.limiter.pause(wait * CHANCE.uniform(1.0, 1.1) + 0.01)

    def _pause_for(self, request: RequestInFlight, verdict: Verdict) -> float | None:
        with self._lock:
            wait = verdict.wait
            if wait is None:
                # It names no time, so stay away twice as long each time. All that were on their way count as one time.
                if request.permit.granted_at <= self._paused_at:
                    return None
                wait = min(2.0**self._strikes, _LONGEST_OWN_PAUSE)
                self._strikes += 1
            self._paused_at = clock.now()
            return wait

    def is_news(self, wait: float) -> bool:
        """Whether to tell the user of a long pause: of the first, and of one long after those that were reported."""
        now = clock.now()
        with self._lock:
            news = now >= self._reported_until + _NEWS_APART
            if news:
                self._reported_until = now + wait
            return news

    # Places in flight

    def lose(self, request: RequestInFlight) -> None:
        """Its answer was dropped and will not be closed. Does next to nothing, as it may interrupt any other code."""
        self._lost.append(request)

    def sweep(self) -> None:
        """Give back the places of answers that were lost. Several threads may do so at once."""
        while self._lost:
            try:
                request = self._lost.popleft()
            except IndexError:  # another one was quicker
                return
            request.permit.close()
            request.over()

    # What the server has

    def _look_again(self) -> None:
        """Read the limits anew if they have changed: a limiter may be reconfigured at any time."""
        plan = self.limiter._backend.plan()
        if plan is self._plan:
            return
        self._plan = plan
        limits = dict(self.limiter.limits)
        for unit, kinds in limits.items():
            rate = min((limit for limit in kinds if isinstance(limit, Rate)), key=lambda each: each.burst, default=None)
            if rate is None:
                continue
            bucket = self._buckets.get(unit)
            if bucket is None:
                headroom = SHARED_HEADROOM if self._is_shared else HEADROOM
                self._buckets[unit] = DepartureBucket(rate.burst, rate.rate, headroom)
                self._units[unit] = UnitEstimate(charges_refused=unit == "requests", trusted=True)
            elif self._limits.get(unit) != kinds:
                bucket.change(rate.burst, rate.rate, clock.now())
        self._limits = limits
        windows = [length for kinds in limits.values() for limit in kinds if (length := _length(limit)) is not None]
        self._travel = min(HEADROOM, WINDOWS_HEADROOM * min(windows)) if windows else None

    def _hear(self, request: RequestInFlight, quota: Quota, now: float) -> None:
        """One limit, as one answer tells it."""
        stated, unit = stated_by(quota), counted_unit(quota, request.departures)
        departure = request.departures.get(unit)
        if stated is not None and departure is not None:
            if quota.is_moment and stated.reset is not None:
                stated = replace(stated, reset=stated.reset + now - departure.at)
            self._units[unit].heard(quota.name, departure, self._as_given(unit, stated), now)

    def _as_given(self, _: str, stated: StatedLimit) -> StatedLimit:
        """What an answer tells of one limit, as far as it was known better before."""
        return stated

    def _settle_levels(self, asked: Mapping[str, float] = _NOTHING) -> None:
        """Lower the limiter to what the server can be counted on to have, below 0 by the headroom.

        Args:
            asked: What a request is about to ask for.
        """
        if not self._buckets:
            return
        with self._lock:
            levels = self._too_high(clock.now(), asked)
        if levels:
            self.limiter._backend.observe(levels, {}, None)  # `Limiter.observe` takes what a server says, 0 or more

    def _settle_for_waiters(self) -> None:
        """The same, after what only tells those that wait already something: a newcomer asks first, which settles."""
        if self._is_shared or self.limiter._backend.waiting:
            self._settle_levels()

    def _too_high(self, now: float, asked: Mapping[str, float]) -> dict[str, float]:
        """What there is of each unit that the limiter believes to have more of.

        While no request waits, what the server surely holds may go without headroom. A waiter is granted by the limiter
        alone when enough has come in, so the headroom must be in its level before.
        """
        backend = self.limiter._backend
        may_go = not self._is_shared and not backend.waiting
        for unit, bucket in self._buckets.items():
            may_go = may_go and bucket.room - self._units[unit].traffic.waiting >= asked.get(unit, 0.0)
        lower: dict[str, float] = {}
        for unit, bucket in self._buckets.items():
            estimate = self._units[unit]
            room = max(bucket.level(now), bucket.room) if may_go else bucket.level(now)
            bound = min(room - estimate.traffic.waiting, estimate.level(now))
            if may_go and unit in asked and bound >= asked[unit] + bucket.capacity / 2:
                continue  # it is far from all that may go, and so are those that other threads ask for just now
            if bound < backend.level(unit) - 1e-9 * (1 + abs(bound)):  # not for what floats make of equal sums
                lower[unit] = max(bound, 0.0 if self._is_shared else -bucket.reserve)
        return lower


def _length(limit: Limit) -> float | None:
    """The seconds of a window, at least; None: it is none."""
    return limit.per if isinstance(limit, Sliding | Calendar) else None


def counted_unit(quota: Quota, counted: Container[str]) -> str:
    """The unit that a server's word for it means, where these are counted."""
    return next((name for name in _COUNTED_AS.get(quota.unit, ()) if name in counted), quota.unit)


def stated_by(quota: Quota) -> StatedLimit | None:
    """What a header says about a limit; None: nothing that can be counted by."""
    if quota.limit is None or quota.remaining is None or quota.limit < 1:
        return None
    remaining = quota.remaining
    if quota.reset is not None and quota.per is not None and quota.exact:
        # The header says it in whole units, rounded down; the reset, where it is stated, to the millisecond.
        remaining = min(max(remaining, quota.limit * (1 - quota.reset / quota.per)), remaining + 1)
    return StatedLimit(
        quota.limit,
        quota.per or 60.0,
        remaining,
        quota.resets_in,
        sure=quota.exact and quota.bare is None,
        fits=quota.exact and quota.reset is not None and quota.step <= _COARSE * (quota.per or 60.0),
        step=quota.step,
        bare=quota.bare,
        named=quota.named,
    )


class Endpoints:
    """The endpoints of one client, by the name of what shares limits; made when they are first asked for.

    Args:
        make: A new endpoint, for a name as requests have it. ValueError: there can be none.
        group: The name that stands for all that share limits.
        most: How many are remembered, as far as those above them are idle; the one goes that was asked for first.
    """

    def __init__(
        self, make: Callable[[str], Endpoint], group: Callable[[str], str] = str, most: float = math.inf
    ) -> None:
        self._make = make
        self._group = group
        self._most = most
        self._made: dict[str, Endpoint] = {}
        self._lock = new_lock()

    def of(self, name: str) -> Endpoint:
        """The endpoint of that name.

        Raises:
            ValueError: There can be none.
        """
        group = self._group(name)
        with self._lock:
            endpoint = self._made.get(group)
            if endpoint is None:
                endpoint = self._make(name)
                if len(self._made) >= self._most:
                    self._forget_one()
            endpoint = self._made[group] = endpoint.latest()
            return endpoint

    def _forget_one(self) -> None:
        for name, endpoint in itertools.islice(self._made.items(), _LOOKED_AT):
            if endpoint.is_idle:
                del self._made[name]
                return

    def made(self) -> dict[str, Endpoint]:
        """All there are by now."""
        with self._lock:
            return {name: endpoint.latest() for name, endpoint in self._made.items()}
