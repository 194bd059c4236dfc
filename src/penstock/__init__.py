"""Run calls as fast as their limits allow, never faster, and lose nothing.

The public names. See the README for what they are for, and `docs/` for how to use them.

Each name is loaded when it is first asked for, so that `import penstock` costs a program that only retries nothing for limits.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from penstock._core.meter import Meter as Meter
    from penstock.adaptive import Adaptive as Adaptive
    from penstock.batching import Batcher as Batcher
    from penstock.errors import AttemptTimeout as AttemptTimeout
    from penstock.errors import CircuitOpen as CircuitOpen
    from penstock.errors import ConfigurationConflict as ConfigurationConflict
    from penstock.errors import CostError as CostError
    from penstock.errors import MissingUnit as MissingUnit
    from penstock.errors import PenstockError as PenstockError
    from penstock.errors import QueueFull as QueueFull
    from penstock.errors import RateLimited as RateLimited
    from penstock.errors import StoreError as StoreError
    from penstock.errors import UnknownUnit as UnknownUnit
    from penstock.errors import Unsatisfiable as Unsatisfiable
    from penstock.errors import WouldBlockEventLoop as WouldBlockEventLoop
    from penstock.keyed import Keyed as Keyed
    from penstock.limiter import Forecast as Forecast
    from penstock.limiter import Limiter as Limiter
    from penstock.limiter import LimitStatistics as LimitStatistics
    from penstock.limiter import Permit as Permit
    from penstock.limiter import Statistics as Statistics
    from penstock.limits import Calendar as Calendar
    from penstock.limits import InFlight as InFlight
    from penstock.limits import Limit as Limit
    from penstock.limits import Rate as Rate
    from penstock.limits import Sliding as Sliding
    from penstock.limits import calendar as calendar
    from penstock.limits import in_flight as in_flight
    from penstock.limits import per_day as per_day
    from penstock.limits import per_hour as per_hour
    from penstock.limits import per_minute as per_minute
    from penstock.limits import per_second as per_second
    from penstock.limits import sliding as sliding
    from penstock.mapping import amap as amap
    from penstock.pipeline import Pipeline as Pipeline
    from penstock.pipeline import circuit_breaker as circuit_breaker
    from penstock.pipeline import fallback as fallback
    from penstock.pipeline import hedge as hedge
    from penstock.pipeline import pausing as pausing
    from penstock.pipeline import timeout as timeout
    from penstock.retry import Attempt as Attempt
    from penstock.retry import Budget as Budget
    from penstock.retry import Retry as Retry
    from penstock.retry import constant as constant
    from penstock.retry import exponential as exponential
    from penstock.retry import retry_after as retry_after

__version__ = "0.1.0"

__all__ = [
    "Adaptive",
    "Attempt",
    "AttemptTimeout",
    "Batcher",
    "Budget",
    "Calendar",
    "CircuitOpen",
    "ConfigurationConflict",
    "CostError",
    "Forecast",
    "InFlight",
    "Keyed",
    "Limit",
    "LimitStatistics",
    "Limiter",
    "Meter",
    "MissingUnit",
    "PenstockError",
    "Permit",
    "Pipeline",
    "QueueFull",
    "Rate",
    "RateLimited",
    "Retry",
    "Sliding",
    "Statistics",
    "StoreError",
    "UnknownUnit",
    "Unsatisfiable",
    "WouldBlockEventLoop",
    "amap",
    "calendar",
    "circuit_breaker",
    "constant",
    "exponential",
    "fallback",
    "hedge",
    "in_flight",
    "pausing",
    "per_day",
    "per_hour",
    "per_minute",
    "per_second",
    "retry_after",
    "sliding",
    "timeout",
]

_HOMES = {
    "penstock._core.meter": ["Meter"],
    "penstock.adaptive": ["Adaptive"],
    "penstock.batching": ["Batcher"],
    "penstock.errors": [
        "AttemptTimeout",
        "CircuitOpen",
        "ConfigurationConflict",
        "CostError",
        "MissingUnit",
        "PenstockError",
        "QueueFull",
        "RateLimited",
        "StoreError",
        "UnknownUnit",
        "Unsatisfiable",
        "WouldBlockEventLoop",
    ],
    "penstock.keyed": ["Keyed"],
    "penstock.limiter": ["Forecast", "Limiter", "LimitStatistics", "Permit", "Statistics"],
    "penstock.limits": [
        "Calendar",
        "InFlight",
        "Limit",
        "Rate",
        "Sliding",
        "calendar",
        "in_flight",
        "per_day",
        "per_hour",
        "per_minute",
        "per_second",
        "sliding",
    ],
    "penstock.mapping": ["amap"],
    "penstock.pipeline": ["Pipeline", "circuit_breaker", "fallback", "hedge", "pausing", "timeout"],
    "penstock.retry": ["Attempt", "Budget", "Retry", "constant", "exponential", "retry_after"],
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}
_MODULES = {"clock", "events", "llm", "openai", "stores", "testing"}


def __getattr__(name: str) -> object:
    if name in _HOME:
        value = getattr(import_module(_HOME[name]), name)
    elif name in _MODULES:
        value = import_module(f"penstock.{name}")
    else:
        raise AttributeError(f"module 'penstock' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
