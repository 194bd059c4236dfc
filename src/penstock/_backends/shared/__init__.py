"""The backend in front of a store that processes share.

backend.py      the protocol: what callers ask and say
inbox.py        what callers send to the dispatcher
dispatcher.py   the thread and the way to the store
scheduler.py    which requests to ask for, and what to do with the answers; pure
asking.py       which requests the store is asked for next
agreement.py    limits that differ from those in the store, or change
leasing.py      grants out of leases that this process holds
settling.py     refunds, true costs, pauses: what the store is told
writing.py      writing requests into a batch
state.py        what the scheduler knows
outage.py       what happens when a store does not answer, and when it does again
wire.py         a batch on its way, and its answer
requests.py     what a call asks, and what the store has charged it
queue.py        the queue in front of a store
limit_set.py    the limits of one name, as this process knows them
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

from penstock._backends.shared.backend import SharedBackend, check_lease
from penstock._backends.shared.dispatcher import dispatcher_of
from penstock._backends.shared.state import flow_key
from penstock.limits import Limit
from penstock.stores.contract import Store


def shared_backend(
    store: Any,
    name: str | None,
    limits: dict[str, tuple[Limit, ...]],
    ageing: float,
    flow_weights: Mapping[Hashable, float] | None,
    lease: Any,
    *,
    enforce: bool,
) -> SharedBackend:
    """The backend over these limits in a shared store. It asks the store nothing yet.

    Raises:
        ValueError: An option does not go with a shared store, or the store cannot count one of the limits.
        ConfigurationConflict: This process has limits of that name already, and they are others.
    """
    if not enforce:
        raise ValueError("enforce=False is a rehearsal in one process: leave store= out, or enforce")
    if not isinstance(store, Store):
        raise ValueError(f"store= must be a store, such as RedisStore(...) or SQLiteStore(...), not {store!r}")
    store.check_name(name)
    assert name is not None, "check_name has refused that"
    if lease is not None:
        lease = check_lease(lease, limits)
    weights = {flow_key(flow): weight for flow, weight in (flow_weights or {}).items()}
    dispatcher = dispatcher_of(store)
    part = dispatcher.limit_set(name, limits, ageing, weights, lease)
    part.flow_weights = flow_weights
    return SharedBackend(dispatcher, (part,))
