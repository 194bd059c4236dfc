"""What happens when a store, or one of its nodes, stops answering, and when it answers again.

If one node is silent while the others answer, only the limits on that node are held up. When an outage has begun, and
how often the store is asked meanwhile, is decided by `dispatcher`.
"""

from __future__ import annotations

import math

from penstock._backends.shared.scheduler import Scheduler
from penstock._backends.shared.wire import BatchInFlight, Outage
from penstock.errors import StoreError
from penstock.stores.contract import Batch, Reply
from penstock.stores.fallback import FallbackStore


def store_lost(scheduler: Scheduler, batch: BatchInFlight, packed: Batch, error: StoreError, now: float) -> Outage:
    """No answer for `patience`: whether the batch was decided is not known."""
    state, store = scheduler.state, scheduler.store
    outage = scheduler.outage = Outage(batch, packed, error, told=True)
    for limit_set in batch.offsets:
        limit_set.confirming = False
    state.answer_looks([*batch.looks, *state.looks], error)
    batch.looks, state.looks = [], []
    if store.on_outage == "raise":
        state.refuse_asked(batch, error)
        state.fail_all(error)
        return outage
    share = math.inf if store.on_outage == "open" else store.share or 1.0
    outage.fallback = FallbackStore(store, share, packed.now)
    state.apart = outage.fallback.born
    state.fallback_epochs.add(state.apart)
    state.line_up_again(batch, now)
    return outage


def node_silent(scheduler: Scheduler, node: object, silence: Outage) -> None:
    """A node gave no answer to a batch: hold up what lives there."""
    silent = scheduler.state.silent
    silent[silence if node in silent else node] = silence
    for limit_set in silence.batch.offsets:
        limit_set.confirming = False
        limit_set.queue.problem = silence.error


def node_lost(scheduler: Scheduler, silence: Outage) -> None:
    """The store's patience with a node is over: tell those that wait for it."""
    state = scheduler.state
    silence.told = True
    state.refuse_asked(silence.batch, silence.error)
    state.answer_looks([look for look in state.looks if state.silence_of(look.limit_set) is silence], silence.error)
    state.looks = [look for look in state.looks if not look.done]
    for limit_set in list(state.limit_sets.values()):
        if state.silence_of(limit_set) is silence:
            state.fail_queue(limit_set, silence.error)


def found(scheduler: Scheduler, outage: Outage, answer: Reply | Exception, now: float) -> None:
    """What was silent answers again, to the batch that it was asked last."""
    state, batch = scheduler.state, outage.batch
    if scheduler.outage is outage:
        scheduler.outage = None
        state.answers_again()
    else:
        state.silent = {node: silence for node, silence in state.silent.items() if silence is not outage}
    scheduler.take_answer(batch, answer, now)
    if outage.fallback is not None:
        born = outage.fallback.born
        for queue in list(state.queues):
            for request in list(queue.reserved):
                if request.epochs is not batch.epochs and all(epoch == born for epoch in request.epochs.values()):
                    queue.reserved.remove(request)
                    for of, amount in request.charges:
                        state.owe(of, -amount)
                    state.stay(request, queue, now)
    for queue in list(state.queues):
        queue.blocked.clear()
        state.dirty[queue] = None
    state.urgent = True
