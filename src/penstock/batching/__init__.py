"""Many callers, one call: `Batcher`.

    embed = Batcher(embed_many, max_items=100, max_cost={"tokens": 8_000}, max_delay=0.02)
    vector = await embed(text)               # one text in, its own vector out

Callers wait in a queue. The first of them opens a batch, which is a task that belongs to all its callers:

    open        it waits until it is full, or old enough, or the limiter lets it go; the queue grows meanwhile
    sent        it takes the front of the queue, calls `send` once, and hands each caller the entry of its own item
    split       if that failed and an item may be to blame, each half is a batch of its own; so a bad item fails alone

A caller that is cancelled leaves at once, and takes its item along if that was not sent yet. The last caller to leave
cancels the batch and waits for its end, so no task outlives its callers, and no caller loses a result because another
one left. This is also why no caller leads: `send` runs in a task of its own, under no caller's deadline.

Retries, pauses and rates are not decided here: they belong to `send` and to the limiter.
"""

from __future__ import annotations

from penstock.batching._batch import ReplyMismatch
from penstock.batching._batcher import Batcher, may_be_an_items_fault

__all__ = ["Batcher", "ReplyMismatch", "may_be_an_items_fault"]
