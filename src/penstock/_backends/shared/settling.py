"""What a store is told before it is asked for grants: refunds, true costs, pauses, and which places are still held.

`requests` works out what is owed. Here it is written into batches.
"""

from __future__ import annotations

from penstock._backends.shared.limit_set import SharedLimitState
from penstock._backends.shared.requests import Debit, Refund
from penstock._backends.shared.state import SchedulerState
from penstock._backends.shared.wire import BatchInFlight, Settlement
from penstock._core.bucket import Bucket

WORTH_SAYING = 0.050
"""Seconds in which as much flows in as was given back, from which on other processes hear of it."""

LATEST = 2.0**53
"""The receipt of places that this process took by itself: whenever the store was told, it was not before its limits
were replaced."""


class Settling:
    """Writes what is to be said into batches."""

    def __init__(self, state: SchedulerState) -> None:
        self._state = state

    def write(self, batch: BatchInFlight, now: float) -> None:
        """Write all that fits into this batch. The rest stays, and stays urgent."""
        state = self._state
        state.urgent = False
        self._write_orders(batch, now)
        self.write_refunds(batch)
        self._write_settlements(batch)
        looks, state.looks = state.looks, []
        for look in looks:
            if state.fits(batch, look.limit_set):
                batch.include(look.limit_set)
                batch.looks.append(look)
            else:
                state.looks.append(look)
        if not state.apart:
            self._write_owed(batch)
        self._write_renewals(batch, now)
        left = bool(state.commands or state.refunds or state.drops or state.looks or state.owed)
        left = left or any(not receipts.open() for receipts in state.settlements)
        state.urgent = left and bool(batch.offsets)

    def _write_orders(self, batch: BatchInFlight, now: float) -> None:
        state = self._state
        commands, state.commands = state.commands, []
        for command in commands:
            if state.fits(batch, command.limit_set):
                command.write(batch, now)
                batch.commands.append(command)
                if state.apart and command.announce:
                    state.for_later[1].append(command)
                if command.announce:
                    batch.announce.add(command.limit_set.name)
            else:
                state.commands.append(command)

    def write_refunds(self, batch: BatchInFlight) -> None:
        state = self._state
        refunds, state.refunds = state.refunds, []
        refunds.sort(key=lambda refund: -refund.receipt)  # the latest first, so nothing is lost on the way
        for refund in refunds:
            if state.fits(batch, refund.state.limit_set):
                self._give_back(refund, batch)
            else:
                state.refunds.append(refund)
        drops, state.drops = state.drops, []
        for booking in drops:
            if state.all_fit(batch, booking.charges):
                batch.drop(booking)
                for of, amount in booking.charges:
                    if of.held and booking.in_line:
                        batch.lines.append(of)
                    elif not booking.in_line:
                        self._tell(of, amount, batch)
            else:
                state.drops.append(booking)
        leaving, state.leaving = state.leaving, []
        for each in leaving:
            if each[-1].counted and each[-1].limit_set in batch.offsets:
                batch.leave(*each)

    def _give_back(self, refund: Refund, batch: BatchInFlight) -> None:
        """Write a refund for the one that granted it: the store, or this process while that did not answer."""
        state, of = self._state, refund.state
        if not of.counted:
            return  # what it was given back to is gone
        state.freed(of, refund.amount)
        if refund.epoch == state.apart:
            state.owe(of, -refund.amount)
        elif state.apart:
            state.for_later[0].append(refund)
            return
        elif refund.epoch in state.fallback_epochs:
            uncharged = min(state.owed.get(of, 0.0), refund.amount)
            if uncharged:
                state.owe(of, -uncharged)
                refund.amount -= uncharged
            if not (of.held and refund.amount):
                return  # of what the store was charged for when it answered, how much has flowed back is not known
            refund.epoch = of.limit_set.epoch
            if of.renewed:
                refund.receipt = LATEST  # charged when the store answered, perhaps with limits that it then heard of
        batch.give_back(refund)
        if of.held:
            batch.lines.append(of)
            if of.meter.level(0.0) < max(1.0, refund.amount):  # so others may be waiting for it
                batch.places.append(of)
        else:
            self._tell(of, refund.amount, batch)

    @staticmethod
    def _tell(of: SharedLimitState, amount: float, batch: BatchInFlight) -> None:
        """See to it that other processes hear of what they may have sooner, together, once it is worth it."""
        limit_set = of.limit_set
        limit_set.freed += amount / of.throughput
        if limit_set.freed >= WORTH_SAYING:
            batch.freed[limit_set.name] = batch.freed.get(limit_set.name, 0.0) + limit_set.freed
            limit_set.freed = 0.0

    def _write_settlements(self, batch: BatchInFlight) -> None:
        """Write the true costs of grants. One whose last debit has no answer yet waits for that."""
        state = self._state
        for receipts in list(state.settlements):
            if receipts.open() or not all(state.fits(batch, limit_set) for limit_set in receipts.limit_sets()):
                continue
            del state.settlements[receipts]
            refunds, debits = receipts.difference()
            for refund in refunds:
                self._give_back(refund, batch)
            if debits:
                batch.settle(Settlement(receipts, debits))

    def _write_owed(self, batch: BatchInFlight) -> None:
        """Write what this process granted by itself while the store did not answer."""
        state = self._state
        for asked in list(state.owed):
            if state.fits(batch, asked.limit_set):
                amount, of = max(0.0, state.owed.pop(asked)), asked.present
                if not of.counted or (of.held and of is not asked):  # places that no permit would give back
                    continue
                if isinstance(of.meter, Bucket):
                    # What the service counts has flowed back meanwhile, too: it can lack no more than its burst.
                    amount = min(amount, of.meter.burst * (state.store.share or 1.0))
                batch.settle(Settlement(None, [Debit(of, amount)]))

    def _write_renewals(self, batch: BatchInFlight, now: float) -> None:
        state = self._state
        for limit_set in list(state.renewing):
            if limit_set.renew_at <= now and state.fits(batch, limit_set):
                limit_set.renew_at = float("inf")
                del state.renewing[limit_set]
                for of in [of for of, places in limit_set.places.items() if places > 0]:
                    batch.renew(of)
                    state.renew_later(limit_set, now)
