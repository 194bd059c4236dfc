"""Locks that no exception leaves held, wherever a signal handler raises it.

CPython runs signal handlers between certain instructions only, and none of them is between the end of an `RLock`'s
`__enter__`, which is C code, and the body of `with`. So a lock is always taken by `with lock:`. CPython 3.14 alone runs
them there too: a Control-C at that moment leaves the lock held for ever. `RaisingLock` is for that version.

Forks are the task of `shared_state`.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from operator import attrgetter
from typing import Any, cast


class RaisingLock:
    """A reentrant lock that is free where a signal handler raises as it is taken, in every version of CPython.

    `with` looks its `__exit__` up before it calls `__enter__`, and finds that of the lock itself, which is C code.
    Between the last instruction of an `__enter__` in Python and the body of `with` no handler runs.
    """

    __slots__ = ("_exit", "_is_owned", "_recursion_count", "acquire", "release")

    acquire: Callable[[], bool]
    release: Callable[[], None]

    def __init__(self) -> None:
        lock: Any = threading.RLock()
        self.acquire, self.release, self._exit = lock.acquire, lock.release, lock.__exit__
        self._is_owned, self._recursion_count = lock._is_owned, lock._recursion_count

    def __enter__(self) -> None:
        before = self._recursion_count()
        try:
            self.acquire()
        except BaseException:
            if self._recursion_count() > before:
                self.release()
            raise

    __exit__ = property(attrgetter("_exit"))


def new_lock() -> threading.RLock:
    """A reentrant lock, for `with`."""
    return cast("threading.RLock", RaisingLock()) if sys.version_info[:2] == (3, 14) else threading.RLock()
