"""State in this process: for every task, thread and event loop of it.

One lock guards all limiters of a store. What it guards takes a microsecond, and limiters that are joined (`a & b`) must be
decided together anyway, so finer locks would buy little and cost an order to take them in.
"""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING
from weakref import WeakSet, WeakValueDictionary

from penstock.errors import ConfigurationConflict

if TYPE_CHECKING:
    from collections.abc import Mapping

    from penstock._gate import Part
    from penstock.limits import Limit

__all__ = ["MemoryStore"]


_all: WeakSet[MemoryStore] = WeakSet()
_forking: list[MemoryStore] = []


class MemoryStore:
    """The limits of one process.

    Limiters of the same name in one store share their state, for as long as one of them is alive. Every limiter that is
    given no store lives in one store that belongs to the process. The child of a fork begins with a copy, and from then on
    counts for itself; whoever waits, waits in the parent.
    """

    __slots__ = ("__weakref__", "_parts", "lock")

    def __init__(self) -> None:
        self.lock: threading.RLock = threading.RLock()
        self._parts: WeakValueDictionary[str, Part] = WeakValueDictionary()
        _all.add(self)

    def find(self, name: str, limits: Mapping[str, tuple[Limit, ...]]) -> Part | None:
        """The living part of that name, or None.

        Raises:
            ConfigurationConflict: It has other limits.
        """
        part = self._parts.get(name)
        if part is not None and part.limits() != limits:
            raise ConfigurationConflict(
                f'two limiters are named "{name}" but have different limits: {_show(part.limits())} there, '
                f"{_show(limits)} here. Use one name for one set of limits, or reconfigure() the first"
            )
        return part

    def keep(self, name: str, part: Part) -> None:
        """Let others find `part` under its name while it lives."""
        self._parts[name] = part


def _show(limits: Mapping[str, tuple[Limit, ...]]) -> str:
    return ", ".join(f"{unit}={' and '.join(map(str, kinds))}" for unit, kinds in limits.items())


def _before_fork() -> None:
    for store in sorted(_all, key=id):
        store.lock.acquire()  # if another thread held it at the moment of the fork, nobody in the child could ever have it
        _forking.append(store)


def _after_fork() -> None:
    while _forking:
        _forking.pop().lock.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork)
