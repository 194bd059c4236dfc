"""What tests of threads share: a start that a signal handler cuts short, and a wait for what threads do."""

from __future__ import annotations

import threading
import time

_start = threading.Thread.start


def begun_and_interrupted(thread):
    """In place of `threading.Thread.start`: Ctrl-C strikes when the thread has begun, and nobody has noted that."""
    _start(thread)
    raise KeyboardInterrupt


def wait_until(true, seconds=60):
    """Whether that came true in time."""
    until = time.monotonic() + seconds
    while not true() and time.monotonic() < until:
        time.sleep(0.01)
    return true()
