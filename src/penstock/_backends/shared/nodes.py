"""When one node of a store does not answer, and the others do: what lives on it is held up, and nothing else."""

from __future__ import annotations

from penstock._backends.shared.scheduler import Scheduler
from penstock._backends.shared.silence import Silence
from penstock.stores.contract import Reply

__all__ = ["fall_silent", "found", "lost"]


def fall_silent(scheduler: Scheduler, node: object, silence: Silence) -> None:
    """A node gave no answer to a batch: hold up what lives there."""
    silent = scheduler.state.silent
    silent[silence if node in silent else node] = silence
    for part in silence.batch.offsets:
        part.confirming = False
        part.queue.problem = silence.error


def lost(scheduler: Scheduler, silence: Silence) -> None:
    """The store's patience with a node is over: tell those who wait for it."""
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


def found(scheduler: Scheduler, silence: Silence, answer: Reply | Exception, now: float) -> None:
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
