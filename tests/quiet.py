"""How long this process had to wait for a core: time that a test of real time must not take for the library's.

A test that measures seconds on a busy machine measures the machine. Linux counts how long a thread was ready to run while others had
the cores; what is left is what the code took. Elsewhere nothing is known, and the tests take the clock as it is.
"""

from __future__ import annotations

import time
from pathlib import Path

_THREADS = Path("/proc/self/task")


def time_without_waits_for_a_core() -> float:
    """Seconds of the monotonic clock, less those in which this thread was ready to run and had no core."""
    return time.monotonic() - seconds_without_a_core()


def seconds_without_a_core() -> float:
    """For how long this thread was ready to run and had no core, so far; 0.0 where the system does not tell."""
    try:
        return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9
    except (OSError, IndexError, ValueError):
        return 0.0


def seconds_without_a_core_of_all() -> float:
    """The same, summed over all threads of this process that live."""
    total = 0
    for thread in _THREADS.glob("*/schedstat"):
        try:
            total += int(thread.read_text().split()[1])
        except (OSError, IndexError, ValueError):
            continue
    return total / 1e9
