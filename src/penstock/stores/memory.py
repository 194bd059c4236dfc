"""State in this process: for every task, thread and event loop of it.

One lock guards all limiters of a store. What it guards takes a microsecond, and limiters that are joined (`a & b`) must
be decided together anyway, so finer locks would buy little and cost an order to take them in.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Collection, Mapping
from typing import Any, Protocol
from weakref import WeakSet

from penstock._concurrency.locks import new_lock
from penstock._concurrency.shared_state import around_forks
from penstock.errors import ConfigurationConflict
from penstock.limits import Limit, show_limits

__all__ = ["MemoryStore"]


class _Named(Protocol):
    """The limits of one name, or of the keys of one, with what is used of them."""

    @property
    def users(self) -> Collection[object] | bool:
        """What decides over them now: nothing, if no limiter of that name is alive."""

    def limits(self) -> dict[str, tuple[Limit, ...]]: ...

    def whole(self, now: float) -> bool:
        """Whether they equal limits of which nothing was ever used."""


class MemoryStore:
    """The limits of one process.

    Limiters of one name in one store share their state, and so do `Keyed` of one name. The state stays until all its
    limits are full again, when it equals that of a new limiter. Limiters without a store share one that belongs to the
    process. The child of a fork begins with a copy, and from then on counts for itself; waiters wait in the parent.
    """

    __slots__ = ("__weakref__", "_finds", "_giving_back", "_names", "_sweep", "deciding", "lock", "postponed")

    def __init__(self) -> None:
        self.lock: threading.RLock = new_lock()
        self.deciding: bool = False  # whether the thread that holds the lock is in the middle of a decision
        self.postponed: deque[Callable[[], object]] = deque()  # what is to be given back at its end
        self._giving_back = False
        self._finds = 0
        self._names: dict[tuple[str, str], Any] = {}
        self._sweep: list[tuple[str, str]] = []  # names to look at next
        _all.add(self)

    def find(self, name: str, limits: Mapping[str, tuple[Limit, ...]], now: float, kind: str = "limiters") -> Any:
        """What is kept of that name, or None; ConfigurationConflict: one of that name lives with other limits.

        Names of keys are others than those of limiters: `kind` says which are meant.
        """
        self._finds += 1
        self._forget_two(now)
        found: _Named | None = self._names.get((kind, name))
        if found is not None and found.users and found.limits() != limits:
            raise ConfigurationConflict(
                f'two {kind} are named "{name}" but have different limits: {show_limits(found.limits())} there, '
                f"{show_limits(limits)} here. Use one name for one set of limits, or reconfigure() the first"
            )
        return found

    def keep(self, name: str, limits: _Named, kind: str = "limiters") -> _Named:
        """Let others find these limits under their name; return those that are found now.

        They are others if a signal handler has made some in the middle of the making of these.
        """
        kept: _Named = self._names.setdefault((kind, name), limits)
        return kept

    def _forget_two(self, now: float) -> None:
        """Look at two names, in turn: forget those that are full, so that no call notices it."""
        for _ in range(2):
            if not self._sweep:
                self._sweep = list(self._names)
            if self._sweep:
                finds, name = self._finds, self._sweep.pop()
                kept: _Named | None = self._names.get(name)
                # Not if a signal handler has looked for names in the meantime: it may have used this one.
                if kept is not None and not kept.users and kept.whole(now) and self._finds == finds:
                    del self._names[name]

    def give_back_postponed(self) -> None:
        """Do what could not be done in the middle of a decision. With the lock held."""
        if self._giving_back:
            return
        try:
            self._giving_back = True
            self._give_all_back()
        finally:
            self._giving_back = False

    def _give_all_back(self) -> None:
        while self.postponed:
            self.postponed[0]()  # it stays until it is done, whatever signal handlers raise meanwhile
            self.postponed.popleft()

    def __reduce__(self) -> Any:
        raise TypeError(
            "a MemoryStore lives in one process and cannot be copied or pickled: "
            "make a limiter in each process, or let them share one through a SQLiteStore or RedisStore"
        )


# If another thread held the lock at the moment of the fork, it would stay held in the child.
_all: WeakSet[MemoryStore] = WeakSet()
around_forks(
    _all, lambda store: store.lock.acquire(), lambda store: store.lock.release(), lambda store: store.lock.release()
)
