"""State that several threads change: one lock for each object, and nothing can leave it locked.

    class Budget(SharedState):
        __slots__ = ("_credit",)

        def called(self):
            with self._lock:
                self._credit.called(clock.now())

Three things leave ordinary locks locked for ever, and each is answered here once:

- A fork while another thread holds the lock: that thread does not exist in the child. Every lock is new in a child.
- A signal handler, or a `__del__` in a garbage collection, that uses the same object: the lock is reentrant.
- A signal handler that raises between taking a lock and `try:`. The lock is always taken by `with self._lock:`, never
  by `acquire()`; `locks` says why that is enough.

Copies are the object itself, because its state belongs to all that share it. It cannot be pickled, for the same reason:
that much holds for an `OfThisProcess` without a lock too.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, NoReturn, Self, TypeVar
from weakref import WeakSet

from penstock._concurrency.locks import new_lock

Member = TypeVar("Member")


def members(of: WeakSet[Member]) -> list[Member]:
    """All that are in it now. While another thread adds one, a look fails, and is repeated."""
    while True:
        try:
            return list(of)
        except RuntimeError:  # changed size during iteration
            continue


def around_forks(
    all_of_them: WeakSet[Member],
    before: Callable[[Member], object],
    in_parent: Callable[[Member], object],
    in_child: Callable[[Member], object],
) -> None:
    """Call `before` with each before a fork, and then one of the others: in the child no other thread exists."""
    forking: list[Member] = []

    def begin() -> None:
        for each in sorted(members(all_of_them), key=id):
            before(each)
            forking.append(each)

    def end(go_on: Callable[[Member], object]) -> None:
        while forking:
            go_on(forking.pop())

    if hasattr(os, "register_at_fork"):
        os.register_at_fork(before=begin, after_in_parent=lambda: end(in_parent), after_in_child=lambda: end(in_child))


_alive: WeakSet[SharedState] = WeakSet()


class OfThisProcess:
    """The base of objects that are what they are by their identity, in one process."""

    __slots__ = ()

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: object) -> Self:
        return self

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError(
            f"{self!r} cannot be pickled: its state belongs to the threads of this process. "
            "Make one in each process, at module level, and let functions refer to it by name"
        )


class SharedState(OfThisProcess):
    """The base of objects that several threads share. See the module's docstring."""

    __slots__ = ("__weakref__", "_lock")

    _lock: AbstractContextManager[object]

    def __new__(cls, *_args: Any, **_options: Any) -> Self:
        self = super().__new__(cls)
        self._lock = new_lock()
        _alive.add(self)
        return self


def _renew_locks() -> None:
    for each in members(_alive):
        each._lock = new_lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_locks)
