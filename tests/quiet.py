"""How long this process had to wait for a core: time that a test of real time must not take for the library's.

A test that measures seconds on a busy machine measures the machine. Linux counts how long a thread was ready to run
while others had the cores; what is left is what the code took. Elsewhere nothing is known, and the tests take the clock
as it is.
"""

from __future__ import annotations

import time
from pathlib import Path

__all__ = ["is_quick", "seconds_without_a_core", "seconds_without_a_core_of_all", "wait_for_quiet"]

_patience = 120.0
"""Seconds that this run may still wait for a quiet machine, over all its tests."""


def seconds_without_a_core() -> float:
    """For how long this thread was ready to run and had no core, so far; 0.0 where the system does not tell."""
    return _read(Path("/proc/thread-self/schedstat"))


def seconds_without_a_core_of_all(process: int | str = "self") -> float:
    """The same, summed over the threads of a process that live."""
    return sum(_read(thread) for thread in Path(f"/proc/{process}/task").glob("*/schedstat"))


def _read(file: Path) -> float:
    try:
        return int(file.read_text().split()[1]) / 1e9
    except (OSError, IndexError, ValueError):
        return 0.0


def is_quick(action, most: float) -> bool:
    """Whether it takes less than so many seconds of a core, in one of ten tries: whatever else the machine does."""

    def seconds() -> float:
        began = time.thread_time()
        action()
        return time.thread_time() - began

    return any(seconds() < most for _ in range(10))


def wait_for_quiet(at_most: float = 20.0) -> None:
    """Return when the machine has idled for most of half a second, or after so many seconds."""
    global _patience
    begin, end = time.monotonic(), time.monotonic() + min(at_most, _patience)
    while time.monotonic() < end:
        idle, total = _ticks()
        time.sleep(0.5)
        idle, total = (now - before for now, before in zip(_ticks(), (idle, total), strict=True))
        if idle >= 0.6 * total:
            break
    _patience -= time.monotonic() - begin


def _ticks() -> tuple[int, int]:
    """What all cores together idled, and lived, so far; (0, 0), which is quiet, where the system does not tell."""
    try:
        ticks = [int(each) for each in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
    except (OSError, ValueError):
        return 0, 0
    return ticks[3] + ticks[4], sum(ticks)
