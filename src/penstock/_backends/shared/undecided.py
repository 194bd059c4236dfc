"""What becomes of a batch that was not decided: its requests wait again, or are told why not; the rest is said anew.

Nothing here asks the store, or judges why it did not decide: that is left to `dispatcher` (no answer) and `scheduler`
(a refusal). What the store is told of the rest, and when, is left to `settling`.
"""

from __future__ import annotations

import math

from penstock._backends.shared.requests import LeaseAsked, Stage
from penstock._backends.shared.state import SchedulerState, again
from penstock._backends.shared.wire import BatchInFlight


def line_up_again(state: SchedulerState, batch: BatchInFlight, now: float) -> None:
    """What a batch asks for waits where it was before that was written."""
    for request in reversed(batch.asked):
        if type(request) is LeaseAsked:
            state.dirty[request.queue.standing()] = None
        elif request.stage is Stage.ASKED and request.batch is batch:
            queue = state.queue_of(request)
            if request.booking is not None and request.booking.due < math.inf:
                queue.bookings.append(request.booking)
            state.stay(request, queue, now)
            state.dirty[queue] = None


def unsend(state: SchedulerState, batch: BatchInFlight, now: float) -> None:
    """A batch was not decided: everything is as it was before it was written."""
    line_up_again(state, batch, now)
    batch.asked = []
    state.drops += batch.drops
    state.commands += batch.commands
    state.refunds += batch.refunds
    state.looks += batch.looks
    for settlement in batch.settlements:
        if settlement.receipts is not None:
            settlement.receipts.not_charged(settlement.debits)
            state.settlements[settlement.receipts] = None
        else:
            for debit in settlement.debits:
                state.owe(debit.state, debit.amount)
    state.urgent = bool(
        state.commands or state.refunds or state.drops or state.settlements or state.looks or state.owed
    )


def refuse_asked(state: SchedulerState, batch: BatchInFlight, error: Exception) -> None:
    """Tell all that wait for the answer to a batch that there is none, and why."""
    for request in batch.asked:
        if type(request) is not LeaseAsked and request.stage is Stage.ASKED and request.batch is batch:
            state.refuse(request, again(error))
    state.answer_looks(batch.looks, error)
    batch.looks = []
