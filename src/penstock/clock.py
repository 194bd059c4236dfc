"""The only place that reads time.

Everything else calls `clock.now()` and `clock.wall()` through this module at the moment of use, so that
`penstock.testing` can put a virtual clock in their place for the length of a test. Code below `_core` never reads
time: its callers pass it in.

Tools such as freezegun replace `time.monotonic` and `time.time` in the module `time` and in every module that holds
them. A limiter that read a frozen clock would wait for ever, and others behind it. So these functions come from a copy
of the module `time` that belongs to this file alone: a tool that looks for the original functions does not find them.
To steer penstock's time, use `penstock.testing`.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable
from types import BuiltinFunctionType, ModuleType

__all__ = ["is_real", "is_tampered_with", "now", "real_now", "wall"]


def _copy_of_time() -> ModuleType:
    """Load the built-in module `time` once more: its functions do what the original's do, at the same speed."""
    spec = importlib.util.find_spec("time")
    assert spec is not None, "it is built in"
    assert spec.loader is not None, "so it has one"
    copy = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(copy)
    return copy


_time = _copy_of_time()

real_now: Callable[[], float] = _time.monotonic
"""The same as `now`, also while a test has put another clock in its place."""

now: Callable[[], float] = real_now
"""Seconds since some fixed moment; never steps back. For rates, waits and deadlines."""

wall: Callable[[], float] = _time.time
"""Seconds since 1970 in UTC; may step. Only for limits that follow the calendar, and for HTTP dates."""


def is_real() -> bool:
    """Whether `now` is the real clock, and no test's."""
    return now is real_now


def is_tampered_with() -> bool:
    """Whether a tool such as freezegun has replaced the clocks of event loops, so that their timers may never fire."""
    return type(time.monotonic) is not BuiltinFunctionType or type(time.perf_counter) is not BuiltinFunctionType
