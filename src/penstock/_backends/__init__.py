"""What decides for a limiter: this process, or a store that processes share.

base.py        the protocol: what a limiter asks, and what a backend answers
alike.py       charges of costs that differ by numbers alone
charges.py     from what a call costs to what it is charged, limit by limit
limit_set.py   the limits of one limiter as it was constructed
queue.py       the queue in front of limits of this process, and its timer's owner
local.py       the backend of this process
fast_path.py   charging a call that need not wait
key.py         one key, as a backend
keyed.py       the limits of many keys
key_numbers.py settling and cancelling what a key was charged, where numbers do
held_places.py places that may never come back
wait.py        how a task or a thread waits for an answer: the one wait loop
mixed.py       places of this process beside limits of a shared store
shared/        the backend in front of a store that processes share
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

from penstock import clock
from penstock._backends.base import Backend
from penstock._backends.limit_set import LimitSet
from penstock._backends.local import LocalBackend
from penstock._backends.queue import WaitQueue
from penstock._text import repr_of
from penstock._validation import check_no_key
from penstock.limits import Limit
from penstock.stores.memory import MemoryStore

_THIS_PROCESS = MemoryStore()


def memory_store(store: Any) -> MemoryStore | None:
    """The store of this process that `store` means; None if it is a shared one."""
    if store is None:
        return _THIS_PROCESS
    return store if isinstance(store, MemoryStore) else None


def joined(one: Backend, other: Backend) -> Backend:
    """A backend over both, with one queue, or over places here beside a shared store; ValueError: neither can be."""
    one, other = one.itself(), other.itself()
    if isinstance(one, LocalBackend) and isinstance(other, LocalBackend):
        return one.joined(other)
    from penstock._backends.mixed import MixedBackend

    if isinstance(one, MixedBackend):
        return one.joined(other)
    if isinstance(other, MixedBackend):
        return other.joined(one)
    if isinstance(one, LocalBackend):
        return MixedBackend(one, other)
    return MixedBackend(other, one) if isinstance(other, LocalBackend) else one.joined(other)


def backend_over(
    store: Any,
    name: str | None,
    limits: dict[str, tuple[Limit, ...]],
    ageing: float,
    flow_weights: Mapping[Hashable, float] | None,
    lease: Any,
    *,
    enforce: bool,
    replaces: bool = False,
    of_key: bool = False,
) -> Backend:
    """The backend that `store` needs, over these limits; this process's own store if it is None.

    `of_key`: the name is that of a key's limits in a shared store, which no limiter can be given.

    Raises:
        ValueError: An option does not go with the store.
        ConfigurationConflict: The store has limits of that name, and they are others. Not where the store is shared and
            these limits are to be those of now (`replaces`).
    """
    memory = memory_store(store)
    if memory is None:
        from penstock._backends.shared.backend import shared_backend

        if name is not None and not of_key:
            check_no_key(name)
        return shared_backend(store, name, limits, ageing, flow_weights, lease, enforce=enforce, replaces=replaces)
    if lease is not None:
        raise ValueError(
            f"lease={repr_of(lease)} needs a shared store, of which a process takes its quota: add "
            "store=RedisStore(...) or "
            "store=SQLiteStore(...). In one process every grant is local already: leave lease= out"
        )
    with memory.lock:
        return _kept(memory, name, limits, ageing, flow_weights)


def _kept(
    memory: MemoryStore,
    name: str | None,
    limits: dict[str, tuple[Limit, ...]],
    ageing: float,
    flow_weights: Mapping[Hashable, float] | None,
) -> Backend:
    """The backend over the limits of this name, or over new ones. With the lock held."""
    while True:
        now = clock.now()
        limit_set = memory.find(name, limits, now) if name is not None else None
        if limit_set is None:
            limit_set = LimitSet(limits, WaitQueue(ageing, flow_weights), name)
        elif limit_set.limits() != limits:  # no limiter with those promises is left
            limit_set.forget_others(limits)
            limit_set.promise(limits, now)
            limit_set.queue.withdraw_clearance()
        backend = LocalBackend(memory, (limit_set,))  # now that it is in use, it is not forgotten
        if name is None or memory.keep(name, limit_set) is limit_set:
            return backend
