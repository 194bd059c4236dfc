"""How long this process had to wait for a core: time that a test of real time must not take for the library's.

A test that measures seconds on a busy machine measures the machine. Linux counts how long a thread was ready to run while others had
the cores; what is left is what the code took. Elsewhere nothing is known, and the tests take the clock as it is.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["seconds_without_a_core", "seconds_without_a_core_of_all"]


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
