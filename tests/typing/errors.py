"""What a type checker sees of the errors that a program catches. `make check` runs mypy and pyright on this; nothing
runs it."""

from __future__ import annotations

from typing import assert_type

from penstock import (
    AttemptTimeout,
    CircuitOpen,
    ConfigurationConflict,
    CostError,
    MissingUnit,
    PenstockError,
    QueueFull,
    RateLimited,
    StoreError,
    UnknownUnit,
    Unsatisfiable,
    WouldBlockEventLoop,
)
from penstock.errors import Unreachable


def not_now_says_when(error: RateLimited | QueueFull) -> None:
    assert_type(error.retry_after, float)
    assert_type(error.blocked_by, str)


def never_says_why(error: MissingUnit | UnknownUnit | Unsatisfiable) -> None:
    assert_type(error.unit, str)
    if isinstance(error, UnknownUnit):
        assert_type(error.known, tuple[str, ...])
    elif isinstance(error, Unsatisfiable):
        assert_type((error.cost, error.capacity), tuple[float, float])


def a_layer_says_after_how_long(late: AttemptTimeout, broken: CircuitOpen) -> None:
    assert_type(late.seconds, float)
    assert_type(broken.retry_after, float)


def each_is_ours_and_one_of_pythons_own() -> None:
    _ours: list[type[PenstockError]] = [RateLimited, CircuitOpen, StoreError]
    _passes: type[StoreError] = Unreachable
    _wrong: list[type[ValueError]] = [CostError, ConfigurationConflict]
    _late: type[TimeoutError] = AttemptTimeout
    _blocked: type[RuntimeError] = WouldBlockEventLoop
    _cost: type[CostError] = RateLimited  # type: ignore[assignment]
