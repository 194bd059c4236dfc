"""Learned limits that all processes share, in a store.

Until a service has stated its limits and their periods, each process learns for itself (`LearningEndpoint`). From then
on they are limits as a user gives them (`KeptEndpoint`), counted in the store under a name that says whose they are and
what they are. So processes that hear the same limits share them, and a process that hears others moves to another name:
there is nothing to agree on. What no answer tells, each process goes on measuring for itself.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from penstock import Limiter, Rate
from penstock._concurrency.locks import new_lock
from penstock._text import without_braces
from penstock.llm import tables
from penstock.llm.discovered import DiscoveredEndpoint
from penstock.llm.endpoints import Endpoint, Endpoints, RequestInFlight, counted_unit, stated_by
from penstock.llm.headers import Reading
from penstock.stores import Store

__all__ = ["learned_in", "shared"]

_LONGEST_WORD = 100  # characters of a model's name


class Keeper:
    """The limits of one model of an account, as they were stated, and where they are kept."""

    def __init__(self, store: Store, name: str) -> None:
        self._store = store
        self._name = name
        self._stated: dict[tuple[str, str], Rate] = {}
        self._lock = new_lock()

    def heard(self, endpoint: Endpoint, request: RequestInFlight, reading: Reading) -> None:
        """An answer tells limits: where they are new, the endpoint is succeeded by one that has them.

        What an endpoint hears that is succeeded already is old. Limits of which one is a guess stay with the process.
        """
        stated = {}
        for quota in reading.quotas:
            limit, unit = stated_by(quota), counted_unit(quota, request.departures)
            if limit is not None and unit in request.departures:
                if quota.per is None or not limit.sure:
                    return
                stated[unit, quota.name] = Rate(limit.limit, limit.per)
        with self._lock:
            if endpoint.successor is None and not endpoint.measures and not stated.items() <= self._stated.items():
                self._stated |= stated
                endpoint.successor = KeptEndpoint(self, self._limiter(), endpoint)

    def _limiter(self) -> Limiter:
        limits: dict[str, Any] = {}
        for (unit, _), rate in sorted(self._stated.items()):
            limits.setdefault(unit, []).append(rate)
        words = ",".join(f"{unit}={rate}" for unit, rates in limits.items() for rate in rates)
        return Limiter(limits, name=f"{self._name}-{words}", store=self._store)


class LearningEndpoint(DiscoveredEndpoint):
    """Limits that are unknown as yet."""

    def __init__(self, keeper: Keeper) -> None:
        super().__init__()
        self._keeper = keeper

    def answered(self, request: RequestInFlight, status: int, reading: Reading) -> None:
        """The headers of its answer are there, and may tell the limits."""
        super().answered(request, status, reading)
        self._keeper.heard(self, request, reading)


class KeptEndpoint(Endpoint):
    """Limits that were stated, which processes keep together until the service tells others.

    A service may have less than it tells, and others may use it too: what this process has learned about that lowers
    the level for all.
    """

    def __init__(self, keeper: Keeper, limiter: Limiter, before: Endpoint) -> None:
        super().__init__(limiter)
        self._keeper = keeper
        self._take_over(before)

    def ask(self, cost: Mapping[str, float]) -> tuple[Limiter, dict[str, float]]:
        """The limiter to ask, and for what."""
        self._settle_levels()  # it may have refilled above what the service can have
        return super().ask(cost)

    def answered(self, request: RequestInFlight, status: int, reading: Reading) -> None:
        """The headers of its answer are there, and may tell other limits."""
        super().answered(request, status, reading)
        self._keeper.heard(self, request, reading)


def shared(store: Store, address: str, key: str) -> Endpoints:
    """An endpoint for each model of an account, its dated snapshots included, whose limits are kept in a store.

    The name of an account in the store is a digest: the key cannot be found from it.
    """
    account = _digest(f"{address}\n{key}")
    return Endpoints(lambda model: learned_in(store, f"auto-{account}", tables.family(model)), tables.family)


def learned_in(store: Store, account: str, model: str) -> Endpoint:
    """An endpoint whose limits are kept in a store, once the service has stated them.

    Args:
        account: What their names there begin with.
        model: The rest; a digest of it where it is no word that a store can have, as rows may name anything.
    """
    word = without_braces(model)
    if len(word) > _LONGEST_WORD or not word.isprintable():
        word = _digest(model)
    return LearningEndpoint(Keeper(store, f"{account}-{word}"))


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
