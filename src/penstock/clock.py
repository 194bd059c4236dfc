"""The only place that reads time.

Everything else calls `clock.now()` and `clock.wall()` through this module at the moment of use, so that
`penstock.testing` can put a virtual clock in their place for the length of a test. Code below `_core` never reads
time at all: it is told.
"""

from __future__ import annotations

import time
from collections.abc import Callable

__all__ = ["now", "wall"]

now: Callable[[], float] = time.monotonic
"""Seconds since some fixed moment; never steps back. For rates, waits and deadlines."""

wall: Callable[[], float] = time.time
"""Seconds since 1970 in UTC; may step. Only for limits that follow the calendar, and for HTTP dates."""
