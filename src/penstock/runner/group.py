"""The models that share limits: their endpoint, and their rows that wait to be chosen."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from penstock import Calendar, Limiter, Rate, Sliding, clock
from penstock.errors import Unsatisfiable
from penstock.llm import headers as _headers
from penstock.llm.discovered import DiscoveredEndpoint
from penstock.llm.endpoints import Endpoint, RequestInFlight
from penstock.llm.failures import Verdict
from penstock.llm.given import GivenEndpoint
from penstock.llm.headers import Quota, Reading
from penstock.runner.client import Reply
from penstock.runner.mix import Level, Mix
from penstock.runner.place import Limits, Place, Rates, rates_of
from penstock.runner.source import Row
from penstock.runner.summary import Allowance, Allowances
from penstock.runner.throttle import Throttle
from penstock.stores import MemoryStore

__all__ = ["Group"]

QUEUE = 2
"""Rows that wait in a limiter's queue: enough that it is never empty, and few, because their order is settled."""

SHARED_QUEUE = 6
"""The same where the limits live in a store, whose answers are for as many as wait; rows that were granted and are
still here count too. So a process that is slow asks for no more than it can send, and what all were granted reaches the
server evenly."""

DOUBTED = 0.15
"""The share of what was promised below which the service contradicts it: of the limits that a run uses after refusals,
or of a crowd of requests. Other runs on the account may well leave more."""

CROWD = 20
"""Refusals in one crowd, at least."""


class Group:
    """The models that share limits: their endpoint, and their rows that wait to be chosen.

    Attributes:
        name: Of the models.
        mix: The rows that wait to be chosen.
        answers: How many rows were answered.
        rows: Rows that are worked on here.
        queued: What rows in the limiter's queue cost, by the id of their work.
        unsent: Rows that were granted their turn and are still here, by the same.
        endpoint: The limits, in step with the server's own.
    """

    def __init__(
        self,
        name: str,
        limits: Limits | Limiter | Endpoint | None,
        idle: float = math.inf,
        *,
        place: Place | None = None,
        mix: Mix | None = None,
    ) -> None:
        """Begin with what the limits have regained since they were last used, taken for empty then.

        Args:
            name: Of the models; `""` where all models share the limits.
            limits: What the server enforces, at least one per unit; a limiter or an endpoint that others use too, which
                keeps its own; None: the server's answers will tell.
            idle: Seconds since an earlier run used these limits up; `inf`: they are whole.
            place: The server that keeps the limits; None where nothing is sent.
            mix: The rows that wait; several places may take from it.
        """
        if isinstance(limits, Mapping):
            limits = {unit: rates for unit, rates in limits.items() if rates}
        self.name = name
        self.mix: Mix = Mix() if mix is None else mix
        self.answers: int = 0
        self.rows: int = 0
        self.queued: dict[int, Mapping[str, float]] = {}
        self.unsent: set[int] = set()
        self._given: Limits = limits if isinstance(limits, Mapping) else {}
        self._promised: Rates | None = _promised(limits)
        self._idle = idle
        self._place = place
        self._throttle = Throttle()
        self._emptied: tuple[float, frozenset[str]] = (math.inf, frozenset())  # when others used units up, and which
        self._known: Allowances | None = None
        self._told: tuple[Limiter, Rates] | None = None
        if limits is None:
            self.endpoint: Endpoint = DiscoveredEndpoint()
        elif isinstance(limits, Endpoint):
            self.endpoint = limits
        elif isinstance(limits, Limiter):
            self.endpoint = GivenEndpoint(limits, CROWD, 1 - DOUBTED, stored=True)
        else:
            given: dict[str, Any] = {unit: list(rates) for unit, rates in limits.items()}
            limiter = Limiter(**given)
            if math.isfinite(self._idle):
                limiter.observe(
                    remaining={unit: min(each.at_start for each in those) for unit, those in self.allowances.items()}
                )
            self.endpoint = GivenEndpoint(limiter, CROWD, 1 - DOUBTED, stored=True)

    @property
    def place(self) -> Place:
        """The server that keeps the limits."""
        assert self._place is not None, "rows are sent from a group that has one"
        return self._place

    @property
    def limits(self) -> Rates:
        """What the server enforces, as it was promised, or as far as its answers have told."""
        if self._promised is not None:
            return self._promised
        if self._told is not None and self._told[0] is self.endpoint.limiter:
            return self._told[1]
        self._told = self.endpoint.limiter, rates_of(_with_a_rate(self.endpoint.limits))
        return self._told[1]

    @property
    def allowances(self) -> Allowances:
        """What the limits allow from the beginning of the run on."""
        if self._promised is None:
            return self._allowed()
        if self._known is None:
            self._known = self._allowed()
        return self._known

    def _allowed(self) -> Allowances:
        return {
            unit: tuple(
                # Of several limits on a unit, the smallest is the one that an earlier run had used up.
                Allowance(
                    rate,
                    _regained(given, self._idle) if rate is least else rate.burst,
                    is_window=not isinstance(given, Rate),
                    by_clock=isinstance(given, Calendar),
                )
                for given, rate in zip(self._given.get(unit, rates), rates, strict=True)
            )
            for unit, rates in self.limits.items()
            for least in [min(rates, key=lambda rate: rate.burst)]
        }

    def too_large(self, row: Row) -> str | None:
        """Why a row can never be sent; None if it can, as far as is known."""
        for unit, rates in self.limits.items():
            cost = row.cost.get(unit, 0.0)
            for rate in rates:
                if cost > rate.burst:
                    return (
                        f"{cost:,.0f} {unit} can never be granted: "
                        f"the limit {rate} holds at most {rate.burst:,.0f} at once. "
                        "Split the request, or raise the limit"
                    )
        return None

    @property
    def wants_more(self) -> bool:
        """Whether there is room in the limiter's queue for another row."""
        return len(self.queued) + len(self.unsent) < SHARED_QUEUE if self._is_stored else len(self.queued) < QUEUE

    @property
    def _is_stored(self) -> bool:
        """Whether the limits live in a store, which other processes use too."""
        return not isinstance(self.endpoint.limiter.store, MemoryStore)

    async def acquire(self, cost: Mapping[str, float], priority: int) -> RequestInFlight:
        """Wait for a turn and charge it.

        Raises:
            CostError: No wait would do.
        """
        while True:
            endpoint = self.endpoint = self.endpoint.latest()
            limiter, charge = endpoint.ask(cost)
            try:
                permit = await limiter.acquire(priority=priority, **charge)
            except Unsatisfiable:
                if endpoint.latest().ask(cost)[1] == charge:
                    raise
                continue  # the limits were learned meanwhile, and it is charged less under the new ones
            if permit.granted_at > self._emptied[0]:
                self._begin_at_the_rate(limiter)
            if endpoint.successor is None:
                return endpoint.granted(permit, cost)
            permit.cancel()  # it waited at an endpoint that has the limits no more

    def _begin_at_the_rate(self, limiter: Limiter) -> None:
        """After a pause, take no burst of what came back meanwhile: others use the account, and went on."""
        units, self._emptied = self._emptied[1], (math.inf, frozenset())
        rates = (unit for unit in units if all(isinstance(limit, Rate) for limit in self._given[unit]))
        limiter.observe(remaining=dict.fromkeys(rates, 0.0))

    def on_reply(self, request: RequestInFlight, reply: Reply) -> None:
        """Learn from the headers of an answer. Whatever they are, they cannot cost it."""
        request.endpoint.left(request)  # at the latest now
        try:
            reading = _headers.read(reply.headers, reply.status, wall=clock.wall())
        except Exception:  # noqa: BLE001 - a date or a number that no calendar and no integer has
            reading = Reading((), None)
        if reading.quotas:
            self._told = None  # what they tell may be new
            if self._is_stored:
                quotas = tuple(quota for quota in reading.quotas if self._comparable(quota))
                reading = Reading(quotas, reading.retry_after)
        believed = self._believed
        request.endpoint.answered(request, reply.status, reading)
        self._give_way(believed)
        if reply.status < 400 and self._throttle.answered(clock.now()):
            self._use_share()

    def on_refusal(self, request: RequestInFlight, verdict: Verdict) -> bool:
        """The service says that a limit is used up: all rows wait, once, and less of it is used for a while.

        Returns:
            Whether what was promised is doubted from now on.
        """
        believed = self._believed
        request.endpoint.refused(request, verdict)
        if believed is None:
            return False
        if self._throttle.share < 1:  # refused again: others use the account
            named = [unit for unit in self._given if unit == verdict.info.unit]
            self._emptied = clock.now(), frozenset(named or self._given)
        if self._throttle.refused(clock.now()):
            self._use_share()
            if self._throttle.share < DOUBTED:
                believed.doubt()
        return self._give_way(believed)

    def _give_way(self, believed: GivenEndpoint | None) -> bool:
        """Where limits are doubted now that were believed, what is learned takes the place of a share of them."""
        if believed is None or believed.successor is None:
            return False
        self._throttle = Throttle()
        self._set_limits(1.0, believed)
        return True

    @property
    def _believed(self) -> GivenEndpoint | None:
        """The endpoint of limits that were promised, as long as nothing contradicts them."""
        endpoint = self.endpoint.latest()
        return endpoint if isinstance(endpoint, GivenEndpoint) else None

    def _use_share(self) -> None:
        believed = self._believed
        if believed is not None:
            self._set_limits(self._throttle.share, believed)

    def _set_limits(self, share: float, believed: GivenEndpoint) -> None:
        """Use a share of the limits, where they are ours alone to lower."""
        lowered: dict[str, Any] = {
            unit: [
                Rate(limit.amount * share, limit.per, limit.burst)
                if isinstance(limit, Rate)
                else limit
                if share == 1
                else Sliding(limit.amount, limit.per / share)  # and no row is too large for it
                for limit in limits
            ]
            for unit, limits in self._given.items()
        }
        if lowered:
            believed.limiter.reconfigure(**lowered)

    def _comparable(self, quota: Quota) -> bool:
        """Whether what remains, as headers tell it, is of a bucket of the size that they tell.

        We may know of a smaller one, and how much of that others have taken is not seen from here.
        """
        known = () if self._promised is None else self._promised.get(quota.unit, ())
        return not any(rate.amount == quota.limit != rate.burst for rate in known)

    def levels(self) -> list[Level]:
        """How full the limits are, less what the queued rows will take."""
        costs = self.queued.values()
        return [
            Level(one.unit, one.capacity, one.rate, one.level - sum(cost.get(one.unit, 0.0) for cost in costs))
            for one in self.endpoint.levels()
        ]


def _regained(limit: Rate | Sliding | Calendar, idle: float) -> float:
    """What a limit has again that was used up so many seconds ago. A window may have been used up all at once."""
    if isinstance(limit, Sliding | Calendar):
        return limit.amount if idle >= limit.per else 0.0
    return min(limit.burst, idle * limit.rate)


def _promised(limits: Limits | Limiter | Endpoint | None) -> Rates | None:
    """What is known of the limits before the first answer; None: they are learned."""
    if isinstance(limits, Endpoint):
        limits = None if limits.learns else limits.limiter
    if isinstance(limits, Limiter):
        limits = _with_a_rate(limits.limits)
    return None if limits is None else rates_of(limits)


def _with_a_rate(limits: Mapping[str, tuple[Any, ...]]) -> Limits:
    """Those that have a rate."""
    found = {
        unit: tuple(each for each in several if isinstance(each, Rate | Sliding | Calendar))
        for unit, several in limits.items()
    }
    return {unit: those for unit, those in found.items() if those}
