"""An endpoint whose limits were given, and what becomes of it where the service refuses what they allow.

    GivenEndpoint      the limits as they were given; what answers tell only ever lowers them
    DoubtedEndpoint    they still hold, and beside them what the service has is learned, as if nothing had been given

One is succeeded by the other when the service refuses requests again soon after it did: its limits are lower than what
was given, or others use them too. Or when it asks for a longer wait than what was given explains: a bucket of 100 in 10
seconds has one request again after 0.1 seconds, and a server that asks for 9 seconds counts in windows. Or when an
answer tells a limit below a window that was given, whose level cannot be lowered to what answers tell and rise again
with them. What is learned grows where nothing is refused, up to what was given.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from penstock import Calendar, Call, InFlight, Keyed, Limit, Limiter, Rate, Sliding
from penstock._text import repr_of
from penstock.errors import PenstockError
from penstock.llm import tables
from penstock.llm.discovered import DiscoveredEndpoint
from penstock.llm.endpoints import Endpoint, Endpoints, RequestInFlight, counted_unit, stated_by
from penstock.llm.failures import Verdict
from penstock.llm.headers import Quota, Reading
from penstock.llm.learning.stated_limit import StatedLimit
from penstock.llm.wording import RateLimitInfo
from penstock.stores import MemoryStore

__all__ = ["GivenEndpoint", "by_limiter", "nothing_to_see", "published"]

SOME, OFTEN = 5, 0.05
"""Refusals, and their share of all answers since some were refused before the last pause, that contradict the limits.
Fewer are what a crowded way explains; and what others had used up when we began is refused before the first pause."""

ROUNDED = 1.0
"""Seconds by which a wait that the service names may be longer than it need be: most name whole seconds, rounded up."""

_REMEMBERED = 256  # limiters that a function returned, and what is known of their servers


class NoLimiter(PenstockError, TypeError):  # noqa: N818 - as it reads
    """A function of the request returned something else than a limiter."""


class GivenEndpoint(Endpoint):
    """Limits that were given, until the service contradicts them. As a rule, those in a shared store always hold."""

    def __init__(self, limiter: Limiter, some: int = SOME, often: float = OFTEN, *, stored: bool = False) -> None:
        """Believe what was given.

        Args:
            limiter: It.
            some, often: Refusals, and their share of the answers, that contradict it.
            stored: Whether it may be contradicted where it lives in a shared store too.
        """
        super().__init__(limiter)
        self.successor: Endpoint | None = None
        self._some, self._often, self._holds_always = some, often, self._is_shared and not stored
        self._answers = 0
        self._bunch = self._last_bunch = (-math.inf, 0)  # answers and refusals when refusals began, after a pause

    def answered(self, request: RequestInFlight, status: int, reading: Reading) -> None:
        """The headers of its answer are there."""
        with self._lock:
            self._answers += 1
            if status == 429 and request.permit.granted_at > self._paused_at:
                self._last_bunch, self._bunch = self._bunch, (self._answers, self._refused)
        if self._may_be_contradicted and any(self._is_below_window(quota) for quota in reading.quotas):
            self.doubt()
        super().answered(request, status, reading)

    def refused(self, request: RequestInFlight, verdict: Verdict) -> None:
        """The service says that the limit is used up: no request goes before the moment that it names."""
        info = verdict.info
        for_places = info.unit == "in_flight" and self._may_be_contradicted
        if for_places or self._is_contradicted(info) or self._is_too_long(request, verdict):
            self.doubt()
        if for_places and self.successor is not None:
            self.successor.refused(request, verdict)
        else:
            (self.successor or self).stay_away(request, verdict)

    def doubt(self) -> None:
        """Learn what the service has beside what was given, from now on."""
        with self._lock:
            if self.successor is None:
                self.successor = DoubtedEndpoint(self)

    def _is_contradicted(self, info: RateLimitInfo) -> bool:
        """Whether requests are refused again, and not just a few.

        A first crowd and few after the pause is what one meets who comes second to an account: others had used it up.
        """
        answers, refused = self._last_bunch
        often = self._refused - refused >= max(self._some, self._often * (self._answers - answers))
        again = self._refused - self._bunch[1] >= self._some or self._names_less(info)
        return often and again and self._may_be_contradicted

    def _names_less(self, info: RateLimitInfo) -> bool:
        """Whether a refusal names a limit below one that was given for that period."""
        named, unit, period = info.limit, info.unit or "", info.period
        given = (limit for limit in self._limits.get(unit, ()) if isinstance(limit, Rate | Sliding | Calendar))
        return named is not None and any(named < each.amount for each in given if period in {None, each.per})

    def _is_too_long(self, request: RequestInFlight, verdict: Verdict) -> bool:
        """Whether the service asks for a longer wait than what was given takes to have the request's cost again."""
        if verdict.wait is None or not self._may_be_contradicted:
            return False
        refused = verdict.info.unit
        limits = {refused: self._limits[refused]} if refused in self._limits else self._limits
        needed = [
            request.cost.get(unit, 0.0) / limit.rate if isinstance(limit, Rate) else limit.per
            for unit, kinds in limits.items()
            for limit in kinds
            if isinstance(limit, Rate | Sliding | Calendar)
        ]
        return bool(needed) and verdict.wait > max(needed) + ROUNDED

    @property
    def _may_be_contradicted(self) -> bool:
        return not self._holds_always and self.limiter._info.enforce

    def _is_below_window(self, quota: Quota) -> bool:
        """Whether an answer tells less than what was given as windows alone."""
        stated, limits = stated_by(quota), self._limits.get(counted_unit(quota, self._limits), ())
        given = [limit for limit in limits if not isinstance(limit, InFlight)]
        windows = [limit for limit in given if isinstance(limit, Sliding | Calendar)]
        if stated is None or not windows or len(windows) < len(given):
            return False
        return stated.limit < min(window.amount for window in windows)

    def _as_given(self, unit: str, stated: StatedLimit) -> StatedLimit:
        """The period that no answer names, of a bucket that holds less than its amount: the one that was given."""
        is_named = stated.sure and stated.named
        for limit in self._limits.get(unit, ()):
            if not is_named and isinstance(limit, Rate) and limit.amount == stated.limit != limit.burst:
                return replace(stated, per=limit.per, fits=False)
        return stated


class DoubtedEndpoint(DiscoveredEndpoint):
    """Limits that were given and do not explain what the service refuses. All is learned anew, and holds beside them.

    What was given is still never exceeded.
    """

    learns = False  # of costs: they are counted and settled in the units of what was given

    def __init__(self, given: GivenEndpoint) -> None:
        self._given = given
        super().__init__()
        self._buckets.clear()
        self._sent, self._refused, self._pauses = given._sent, given._refused, given._pauses
        self._strikes, self._reported_until = given._strikes, given._reported_until
        self._under_way = given._under_way.copy()  # each has a lock of its own

    def _limited_by(self, limits: Mapping[str, Any], store: MemoryStore | None = None) -> Limiter:
        given = self._given.limiter
        if self._given._is_shared:  # what is learned here cannot be charged together with what is kept there
            given = Limiter(dict(self.limits))
        return given & super()._limited_by(limits, given.store)

    @property
    def limits(self) -> Mapping[str, tuple[Limit, ...]]:
        """The limits that were given."""
        return self._given.limits

    @property
    def holds(self) -> bool:
        """Whether a request holds a place until its answer was read."""
        return self._given.holds or super().holds

    def ask(self, cost: Mapping[str, float]) -> tuple[Limiter, dict[str, float]]:
        """The limiter to ask, and for what: of both, what was given and what is learned."""
        limiter, asked = super().ask(cost)
        return limiter, {unit: amount for unit, amount in cost.items() if unit in self.limits} | asked

    def settled(self, request: RequestInFlight, used: Mapping[str, float]) -> None:
        """Its answer says what it really took, in units that were estimated."""
        super().settled(request, used)
        known = {unit: amount for unit, amount in used.items() if unit in self.limits}
        before = request.permit.cost
        request.permit.settle(known)
        with self._lock:
            for unit in known.keys() & self._units.keys():  # which is charged to what was given; it left long ago
                self._units[unit].traffic.waiting -= known[unit] - before.get(unit, 0.0)


def published(account: str) -> Endpoints:
    """An endpoint for each model, with the limits that were published for an account or a tier; its snapshots share it.

    Args:
        account: One of `tables.accounts()` or `tables.tiers()`.
    """

    def make(model: str) -> Endpoint:
        limits: dict[str, Any] = dict(tables.lookup(model, account).limits)
        return GivenEndpoint(Limiter(**limits))

    return Endpoints(make, tables.family)


def nothing_to_see(_: str) -> Endpoint:
    """The endpoints that `limits_of` shows where a function chooses the limiter: none.

    Raises:
        ValueError: Always.
    """
    raise ValueError("only the function of the request that was given knows its limiters: ask them")


def by_limiter(limiter_of: Callable[[Any], Any]) -> Callable[[Any], Endpoint | None]:
    """The endpoint of the limiter that a function returns; one for all that have the same limits, as `a & b` has."""
    if isinstance(limiter_of, Keyed):  # which can be called: it is a decorator
        raise ValueError(
            "a Keyed has a limiter for each key: give a function of the request that says which, such as "
            "`lambda request: per_host[request.url.host]`"
        )
    if isinstance(limiter_of, Call):  # the same
        raise ValueError(f"give the limiter itself, not {repr_of(limiter_of)}: `cost=` says what a request costs")
    known: dict[tuple[object, ...], Endpoint] = {}

    def endpoint_of(request: Any) -> Endpoint | None:
        limiter = limiter_of(request)
        if limiter is None:
            return None
        if not isinstance(limiter, Limiter):
            if inspect.iscoroutine(limiter):
                limiter.close()  # or it would warn that it was never awaited
            raise NoLimiter(f"the function must return a Limiter, or None for no limit, not {repr_of(limiter)}")
        state = (limiter._info.enforce, *limiter._backend.limit_sets)
        endpoint = known.get(state)
        if endpoint is None:
            while len(known) >= _REMEMBERED:
                known.pop(next(iter(known)), None)
            endpoint = known[state] = GivenEndpoint(limiter)
        return endpoint

    return endpoint_of
