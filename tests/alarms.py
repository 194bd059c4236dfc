"""SIGALRM for the length of a test."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import pytest


def not_beside_coverage() -> None:
    """Skip a test that raises exceptions at any instant, where `make coverage` runs it."""
    if "coverage" in sys.modules:
        pytest.skip("an exception inside coverage's own tracer leaves its lock held for ever")


@contextmanager
def alarms(handler: Callable[[int, FrameType | None], object], every: float | None = None) -> Iterator[None]:
    """Alarms go to `handler`, one `every` so many seconds; none outlives the block.

    To ignore a signal drops those on their way. A handler that raises must not do so while the block is left.
    """
    if every is not None:
        not_beside_coverage()
    before = signal.signal(signal.SIGALRM, handler)
    try:
        if every is not None:
            signal.setitimer(signal.ITIMER_REAL, every, every)
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_IGN)  # by default it would end the process
        signal.signal(signal.SIGALRM, before)
