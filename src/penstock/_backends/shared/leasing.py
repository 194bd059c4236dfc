"""Grants out of leases that this process holds.

`_core.lease` says how much may be asked for, when it may be used, and which waiter is served first. Here that is
written into batches; what comes back is kept, handed out, and returned when nothing uses it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from penstock._backends.shared.asking import Writing
from penstock._backends.shared.limit_set import SharedLimitState
from penstock._backends.shared.queue import PAUSE_WATCHED, POLL, StoreQueue
from penstock._backends.shared.requests import LeaseAsked, Refund, SharedRequest, Stage, StoreReceipts
from penstock._backends.shared.state import SchedulerState
from penstock._backends.shared.wire import Admitted, BatchInFlight, BookedFor, FlowName, Look, NotNow, OthersTurn
from penstock._core import lease as leases
from penstock._core.lease import Lease, LeaseRequest, Share
from penstock._core.subqueues import Waiter
from penstock._core.windows import CalendarWindow


class Leasing:
    """What the scheduler does for queues with a lease."""

    def __init__(self, state: SchedulerState, writing: Writing) -> None:
        self._state = state
        self._writing = writing

    def ask(self, queue: StoreQueue, batch: BatchInFlight, now: float) -> None:
        """Serve the waiters out of what is held, and ask for what is missing."""
        state = self._state
        room = state.store.batch - len(batch.asked)
        fresh = queue.fresh
        while fresh:
            request = fresh[0]
            if request.stage is Stage.NEW:
                if request.latest > now:
                    state.line_up(request, queue, now)
                else:  # now or never
                    shares = leases.take(request.charges, now) if not len(queue.waiters) else None
                    if shares is not None:
                        self._grant(request, shares, now)
                    elif room <= 0 or not state.all_fit(batch, request.charges):
                        return  # stays dirty, for the next batch
                    else:
                        self._writing.put(request, batch, 0.0, now, now)
                        room -= 1
            fresh.popleft()
        self.serve(queue, now)
        if room < leases.MOST_REQUESTS + 1:
            return
        wanted, look_again = leases.plan(
            queue.waiters, queue.states(), now, queue.lease or 0.0, more=now >= queue.more_at
        )
        if now < look_again < math.inf:
            self._look_again(queue, look_again, now)
        if all(state.all_fit(batch, request.charges) for request in wanted):
            for request in wanted:
                self._write(request, queue, batch, now)
            state.dirty.pop(queue, None)

    def _look_again(self, queue: StoreQueue, moment: float, now: float) -> None:
        """Look again when a pause, or a period, ends; earlier if nothing tells whether the pause was lifted."""
        state = self._state
        if not state.store.hears:
            moment = min(moment, now + PAUSE_WATCHED)
        if now < queue.alarm <= moment:
            return
        queue.alarm = moment

        def ring(_: float) -> None:
            state.dirty[queue.standing()] = None
            if not state.store.hears:
                state.looks += [Look(limit_set, None) for limit_set in queue.standing().sets]
                state.urgent = True

        state.at(moment, ring)

    def _write(self, request: LeaseRequest, queue: StoreQueue, batch: BatchInFlight, now: float) -> None:
        charges: Sequence[tuple[SharedLimitState, float]] = request.charges  # type: ignore[assignment]  # all limits are shared
        payer = charges[0][0]
        if batch.flow is not None or batch.payer is not payer.limit_set:
            batch.name_flow(None, FlowName(self._state.owner, 0.0, 1.0), payer)
        batch.acquire(charges, request.horizon, stops=True)
        for of, _ in charges:
            of.pool.used_then, of.pool.asked_at = of.pool.used, now
        batch.asked.append(LeaseAsked(charges, request.horizon, queue))

    def serve(self, queue: StoreQueue, now: float) -> None:
        """Grant, out of what is held, every waiter whose turn has come."""
        for of in queue.states():
            self.return_leases(of, of.pool.sweep(now))

        def grant(waiter: Waiter, shares: list[Share]) -> None:
            assert isinstance(waiter, SharedRequest)
            self._grant(waiter, shares, now)

        leases.serve(queue.waiters, now, grant)

    def _grant(self, request: SharedRequest, shares: list[Share], now: float) -> None:
        if request.abandoned:
            request.stage = Stage.GONE
            self.put_back(shares, self._state.queue_of(request), now)
            return
        request.shares = shares
        self._state.grant(request, now)

    def granted(self, asked: LeaseAsked, verdict: Admitted, batch: BatchInFlight, now: float, server: float) -> None:
        """The store has granted a part of a lease, to be used from `verdict.wait` seconds after its moment on."""
        state, queue, opens = self._state, asked.queue.standing(), now
        for (of, amount), receipt in zip(asked.charges, verdict.receipts, strict=True):
            opens, closes = leases.window(batch.sent, now, verdict.wait, of.limit_set.lease)
            if isinstance(of.meter, CalendarWindow):
                closes = min(closes, batch.sent + (receipt - server) / 1e6)  # the end of its period
            of.pool.add(Lease(amount, opens, closes, batch.epochs[of.limit_set], receipt))
        if opens > now:
            state.look_at(queue, opens)
        if len(queue):
            state.dirty[queue] = None
        self._tend(queue, now)

    def refused(self, asked: LeaseAsked, verdict: NotNow | OthersTurn | BookedFor, now: float) -> None:
        """The store has not granted a part of a lease."""
        state, queue = self._state, asked.queue.standing()
        seconds = queue.lease or 0.0
        if asked.horizon == math.inf:
            state.look_at(queue, now + min(max(verdict.wait, 0.001), POLL[1]))
        else:
            queue.more_at = now + min(max(verdict.wait - asked.horizon, seconds / 4), seconds)
            if len(queue):
                state.look_at(queue, queue.more_at)

    def _tend(self, queue: StoreQueue, now: float) -> None:
        """See to it that what is held goes back when it is not used."""
        seconds = queue.lease or 0.0
        if queue.tended > now:
            return
        used = [(of, of.pool.used) for of in queue.states()]
        queue.tended = now + seconds / 2

        def ring(at: float) -> None:
            queue.tended = -math.inf
            idle = not len(queue) and all(of.pool.used == before for of, before in used)
            for of in queue.states():
                self.return_leases(of, of.pool.drain() if idle else of.pool.sweep(at))
            if any(of.pool.leases for of in queue.states()):
                self._tend(queue, at)

        self._state.at(queue.tended, ring)

    def return_leases(self, of: SharedLimitState, parted: Sequence[Lease]) -> None:
        for lease in parted:
            self._state.refunds.append(Refund(of, lease.left, lease.epoch, lease.receipt))
            self._state.urgent = True

    def put_back(self, shares: Sequence[Share], queue: StoreQueue, now: float) -> None:
        """What was taken is not used after all: it is for the next waiter, or for the store."""
        for of, amount, epoch, receipt in leases.put_back(shares, now):
            assert isinstance(of, SharedLimitState)
            self._refund_later(Refund(of, amount, epoch, receipt), now)
        if len(queue):
            self._state.dirty[queue] = None

    def _refund_later(self, refund: Refund, now: float) -> None:
        """Give back with the next batch, or soon: refunds of one lease go together."""
        state = self._state
        for other in state.refunds:
            if other.state is refund.state and other.epoch == refund.epoch and other.receipt == refund.receipt:
                other.amount += refund.amount
                return
        state.refunds.append(refund)
        state.speak_at(now + (refund.state.limit_set.lease or 0.0))

    def settle(self, receipts: StoreReceipts, now: float) -> bool:
        """Let a grant be charged what is wanted out of what is held. False: the store must hear of it."""
        if receipts.open():
            return False  # the store is being told of an earlier debit
        settled = True
        refunds, debits = receipts.difference()
        if refunds:
            shares = [(refund.state, refund.amount, refund.epoch, refund.receipt) for refund in refunds]
            self.put_back(shares, receipts.queue(), now)
        for debit in debits:
            receipts.not_charged([debit])
            taken = leases.take([(debit.state, debit.amount)], now)
            if taken is None:
                settled = False
            else:
                receipts.charged_here(taken)
        return settled
