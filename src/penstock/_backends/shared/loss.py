"""A store, or one node of it, gives no answer; and answers again.

Where one node is silent and the others answer, what lives on that node is held up, and nothing else.
"""

from __future__ import annotations

from penstock._backends.shared.outage import Outage, Silence
from penstock._backends.shared.requests import LeaseAsked, Stage
from penstock._backends.shared.scheduler import Scheduler
from penstock._backends.shared.wire import BatchInFlight
from penstock.errors import StoreError
from penstock.stores.contract import Batch, Reply

__all__ = ["node_found", "node_lost", "node_silent", "store_found", "store_lost"]


def store_lost(scheduler: Scheduler, batch: BatchInFlight, packed: Batch, error: StoreError, now: float) -> Outage:
    """No answer for `patience`: whether the batch was decided is not known."""
    state = scheduler.state
    outage = scheduler.outage = Outage(scheduler.store, error, batch, packed)
    looks, batch.looks = batch.looks, []
    for look in [*looks, *state.looks]:
        state.answer_look(look, error)
    state.looks.clear()
    for part in batch.offsets:
        part.confirming = False
    if outage.fallback is None:
        scheduler.refuse_asked(batch, error)
        state.fail_all(error)
        return outage
    state.apart = True
    for request in reversed(batch.asked):
        if type(request) is LeaseAsked:
            state.dirty[request.queue.standing()] = None
        elif request.stage is Stage.ASKED and request.batch is batch:
            queue = state.queue_of(request)
            state.stay(request, queue, now)
            state.dirty[queue] = None
    return outage


def store_found(scheduler: Scheduler, answer: Reply | Exception, now: float) -> None:
    """The store answers again."""
    state, outage = scheduler.state, scheduler.outage
    assert outage is not None, "there was an outage"
    scheduler.outage, state.apart = None, False
    batch = outage.batch
    scheduler.take_answer(batch, answer, now)
    if outage.fallback is not None:
        born = outage.fallback.born
        for queue in list(state.queues):
            for request in list(queue.reserved):
                if request.epochs is not batch.epochs and all(epoch == born for epoch in request.epochs.values()):
                    queue.reserved.remove(request)
                    for of, amount in request.charges:
                        state.owed[of] -= amount
                    state.stay(request, queue, now)
    for queue in list(state.queues):
        queue.blocked.clear()
        state.dirty[queue] = None
    state.urgent = True


def node_silent(scheduler: Scheduler, node: object, silence: Silence) -> None:
    """A node gave no answer to a batch: hold up what lives there."""
    silent = scheduler.state.silent
    silent[silence if node in silent else node] = silence
    for part in silence.batch.offsets:
        part.confirming = False
        part.queue.problem = silence.error


def node_lost(scheduler: Scheduler, silence: Silence) -> None:
    """The store's patience with a node is over: tell those that wait for it."""
    state = scheduler.state
    if silence not in state.silent.values():
        return
    silence.told = True
    looks, silence.batch.looks = silence.batch.looks, []
    for look in [*looks, *state.looks]:
        if state.silence_of(look.limit_set) is silence:
            state.answer_look(look, silence.error)
    state.looks = [look for look in state.looks if not look.done]
    scheduler.refuse_asked(silence.batch, silence.error)
    for part in list(state.limit_sets.values()):
        if state.silence_of(part) is silence:
            scheduler.state.fail_queue(part, silence.error)


def node_found(scheduler: Scheduler, silence: Silence, answer: Reply | Exception, now: float) -> None:
    """A node answers again, to the batch that it was asked last."""
    state = scheduler.state
    node = next((node for node, of in state.silent.items() if of is silence), None)
    if node is None:
        return  # the store was closed, or a defect has ended it
    del state.silent[node]
    scheduler.take_answer(silence.batch, answer, now)
    for queue in list(state.queues):
        state.dirty[queue] = None
    state.urgent = True
