"""The public face, name by name: nothing comes in or goes out unnoticed."""

from __future__ import annotations

import penstock

NAMES = {
    # limits and limiters
    "Limiter", "Permit", "Keyed", "Adaptive", "Rate", "per_second", "per_minute", "per_hour", "per_day", "in_flight", "sliding", "calendar",
    "Limit", "Calendar", "InFlight", "Sliding", "Meter", "Forecast", "Statistics", "LimitStatistics",
    # calls that fail
    "Retry", "Attempt", "Budget", "exponential", "constant", "retry_after",
    "Pipeline", "timeout", "fallback", "hedge", "circuit_breaker", "pausing",
    # many calls
    "Batcher", "amap",
    # what is raised
    "PenstockError", "RateLimited", "QueueFull", "CostError", "Unsatisfiable", "MissingUnit", "UnknownUnit", "WouldBlockEventLoop",
    "ConfigurationConflict", "StoreError", "AttemptTimeout", "CircuitOpen",
}  # fmt: skip


def test_the_public_names_are_these():
    assert set(penstock.__all__) == NAMES


def test_every_public_name_is_there_and_listed_once():
    assert len(set(penstock.__all__)) == len(penstock.__all__)
    assert [name for name in penstock.__all__ if not hasattr(penstock, name)] == []
