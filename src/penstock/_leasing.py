"""Grants out of what this process holds: the courier's work for limiters with a lease.

`_core.lease` says how much may be asked for, when it may be used, and who is served first. Here that is written into calls, and what
comes back is kept, handed out, and returned when nobody uses it. All of it in the courier's thread, with `store.lock` held.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from penstock import clock
from penstock._core import lease as leases
from penstock._core import ledger
from penstock._core.lease import Chunk, Share
from penstock._core.queue import Waiter
from penstock._core.windows import CalendarWindow
from penstock._desks import POLL, Call, ChunkAsked, Desk, SharedLimitState, Slip

if TYPE_CHECKING:
    from penstock._courier import Courier
    from penstock._shared import SharedPermit

__all__ = ["Leasing"]


class Leasing:
    """What a courier does for desks with a lease. See the module's docstring."""

    def __init__(self, courier: Courier) -> None:
        self._courier = courier

    def ask(self, desk: Desk, call: Call, now: float) -> None:
        """Serve who waits out of what is held, and ask for what is missing."""
        room = self._courier.store.batch - len(call.asked)
        fresh, queue = desk.fresh, desk.queue
        while fresh:
            slip = fresh[0]
            if slip.state != "gone":
                if slip.deadline > now:
                    self._courier._line_up(slip, desk, now)
                else:  # now or never
                    shares = leases.take(slip.charges, now) if not len(queue) else None
                    if shares is not None:
                        self._grant(slip, shares, now)
                    elif room <= 0 or not all(self._courier._fits(call, state.account) for state, _ in slip.charges):
                        return  # stays dirty, for the next call
                    else:
                        self._courier._put(slip, call, 0.0, now, now)
                        room -= 1
            fresh.popleft()
        self.serve(desk, now)
        if room < leases.PIECES + 1:
            return
        pieces, again = leases.plan(queue, desk.states(), now, desk.life or 0.0, more=now >= desk.more_at)
        if now < again < math.inf and not now < desk.alarm <= again:
            desk.alarm = again
            self._look_at(desk, again)
        if not all(self._courier._fits(call, state.account) for piece in pieces for state, _ in piece.charges):  # type: ignore[attr-defined]
            return
        for piece in pieces:
            operations = call.operations
            payer = piece.charges[0][0]
            if call.flow is not None or call.payer is not payer.account:  # type: ignore[attr-defined]
                call.flow, call.payer = None, payer.account  # type: ignore[attr-defined]
                operations += (ledger.FLOW, self._courier.owner, 0.0, 1.0, float(call.at(payer)), 0.0)  # type: ignore[arg-type]
            operations += (ledger.ACQUIRE, piece.horizon, 1.0, float(len(piece.charges)))
            for state, amount in piece.charges:
                operations += (float(call.at(state)), amount)  # type: ignore[arg-type]  # all are shared
                state.holding.used_then, state.holding.asked_at = state.holding.used, now
            call.asked.append(ChunkAsked(piece, desk))
        self._courier._dirty.pop(desk, None)

    def serve(self, desk: Desk, now: float) -> None:
        """Grant, out of what is held, everybody whose turn has come."""
        for state in desk.states():
            self.return_chunks(state, state.holding.sweep(now))

        def grant(waiter: Waiter, shares: list[Share]) -> None:
            assert isinstance(waiter, Slip)
            self._grant(waiter, shares, now)

        leases.serve(desk.queue, now, grant)

    def _grant(self, slip: Slip, shares: list[Share], now: float) -> None:
        slip.shares = shares
        self._courier._grant(slip, now)

    def _look_at(self, desk: Desk, moment: float) -> None:
        """See to those who wait there at that moment, and not before."""

        def ring(_: float) -> None:
            self._courier._dirty[desk] = None

        self._courier._at(moment, ring)

    def had(
        self, asked: ChunkAsked, receipts: Sequence[float], wait: float, call: Call, now: float, server: float
    ) -> None:
        """A piece of a chunk has been granted, to be used from `wait` seconds after the store's moment on."""
        desk, opens = asked.desk, now
        for (state, amount), receipt in zip(asked.charges, receipts, strict=True):
            opens, closes = leases.window(call.sent, now, wait, state.account.lease)
            if isinstance(state.meter, CalendarWindow):
                closes = min(closes, call.sent + (receipt - server) / 1e6)  # the end of its period
            state.holding.add(Chunk(amount, opens, closes, call.epochs[state.account], receipt))
        if opens > now:
            self._look_at(desk, opens)
        if desk.waiting:
            self._courier._dirty[desk] = None
        self._tend(desk, now)

    def not_had(self, asked: ChunkAsked, wait: float, now: float) -> None:
        """A piece of a chunk could not be had."""
        desk, life = asked.desk, asked.desk.life or 0.0
        if asked.first:
            self._look_at(desk, now + min(max(wait, 0.001), POLL[1]))
        else:
            desk.more_at = now + min(max(wait - asked.horizon, life / 4), life)
            if desk.waiting:
                self._look_at(desk, desk.more_at)

    def _tend(self, desk: Desk, now: float) -> None:
        """See to it that what is held goes back when it is not used."""
        life = desk.life or 0.0
        if desk.tended > now:
            return
        used = [(state, state.holding.used) for state in desk.states()]
        desk.tended = now + life / 2

        def ring(at: float) -> None:
            desk.tended = -math.inf
            idle = not desk.waiting and all(state.holding.used == before for state, before in used)
            for state in desk.states():
                self.return_chunks(state, state.holding.drain() if idle else state.holding.sweep(at))
            if any(state.holding.chunks for state in desk.states()):
                self._tend(desk, at)

        self._courier._at(desk.tended, ring)

    def return_chunks(self, state: SharedLimitState, chunks: Sequence[Chunk]) -> None:
        for chunk in chunks:
            self._courier._returns.append((state, chunk.left, chunk.epoch, chunk.receipt))
            self._courier._urgent = True

    def give_back(self, shares: Sequence[Share], desk: Desk) -> None:
        """What was taken is not used after all: for the next in the queue, or for the store."""
        for state, amount, epoch, receipt in leases.put_back(shares, clock.now()):
            assert isinstance(state, SharedLimitState)
            self._return_later(state, amount, epoch, receipt)
        if desk.waiting:
            self._courier._dirty[desk] = None

    def _return_later(self, state: SharedLimitState, amount: float, epoch: float, receipt: float) -> None:
        """Give back with the next call that somebody makes, or soon: refunds of one chunk go together."""
        for index, (of, back, its_era, its_mark) in enumerate(self._courier._returns):
            if of is state and its_era == epoch and its_mark == receipt:
                self._courier._returns[index] = (state, back + amount, epoch, receipt)
                return
        self._courier._returns.append((state, amount, epoch, receipt))

        def ring(_: float) -> None:
            self._courier._urgent = self._courier._urgent or bool(self._courier._returns)

        self._courier._at(clock.now() + (state.account.lease or 0.0), ring)

    def settle(self, permit: SharedPermit) -> bool:
        """Let `permit` be charged what is wanted out of what is held. False: the store must hear of it."""
        if any(math.isnan(entry[2]) for entry in permit._known()):
            return False  # the store is being told of an earlier debt
        now, told = clock.now(), True
        backs, more = permit._news()
        desk = permit._limiter._parts[0].gate
        assert isinstance(desk, Desk)
        if backs:
            self.give_back(backs, desk)
        for state, missing in more:
            permit._uncharged([(state, missing)])
            shares = leases.take([(state, missing)], now)
            if shares is None:
                told = False
            else:
                permit._known().extend(shares)  # type: ignore[arg-type]  # all states are shared
        return told
