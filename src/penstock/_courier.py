"""The courier: who carries what the limiters of one process ask to their shared store, and the answers back.

There is one courier per store and process, with a thread of its own that begins at first use. Whatever waits (tasks of any number
of loops, of asyncio and trio, and threads) puts a slip into its inbox and parks; so one call decides for all of them, one connection
serves all, and a call's outcome is known however its callers end. Only the courier's thread talks to the store.

**The head reserves.** Of those who wait here, the store is asked for the first, and for everyone who could go within about 20 ms;
the rest hold nothing. Who is granted a moment to come is woken then. Who leaves before *hands it on* to the next who can use it, and
only if there is none it goes back to the store: so the quota is used even if most give up, and a process that dies takes one
reservation with it.

Whose turn it is among several processes is the store's to say (`_core.flows`): each request names its flow, and one that is told that it is
another's turn stands back in the queue, where those of other flows are asked for before it.

**With a lease** the store is asked for chunks instead, and who waits, or comes, is granted out of what is held here (`_core.lease` says how much
may be asked for, and when it may be used). A call for which enough is held does not even pass through the courier: its own
thread takes it, with the lock held. What nobody uses goes back.

What the store answered last is mirrored in the meters of the states, which say whom to ask for next, and what to show.
Everything but the inbox is touched with `store.lock` held, which is never held while the store is being asked.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import logging
import math
import os
import random
import threading
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from heapq import heapify, heappop, heappush
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any
from weakref import WeakSet, WeakValueDictionary

from penstock import clock
from penstock._concurrency.parking import Parker, wake_all
from penstock._core import ledger
from penstock._core.bucket import Bucket
from penstock._core.lease import Holding
from penstock._core.turns import LimitState, ready_at
from penstock._core.windows import CalendarWindow
from penstock._desks import ANY, POLL, Account, Call, ChunkAsked, Desk, Return, SharedLimitState, Slip
from penstock._leasing import Leasing
from penstock.errors import ConfigurationConflict, PenstockError, QueueFull, RateLimited, StoreError
from penstock.events import StoreLost, StoreRecovered, emit
from penstock.stores.alone import Alone
from penstock.stores.contract import Batch, Reply, Store, Terms, Unreachable

if TYPE_CHECKING:
    from penstock._shared import SharedPermit
    from penstock.limits import Limit

__all__ = ["Courier", "courier_of"]

LOOKAHEAD = 0.020
"""Seconds ahead for which turns are reserved in one call."""

MARGIN = 0.002
"""Seconds before the last of these at which the next call is made."""

TOLD = 8
"""Flows that wait behind others here, of which the store is told: so they are not forgotten while it is not their turn."""

RETRY = (0.01, 0.25)
"""Seconds, first and longest, between attempts to reach a store that does not answer."""


@lru_cache(4096)
def _key_of(flow: Hashable) -> float:
    """A flow's name for stores: the same number in all processes, for all that look alike as text."""
    return float(int.from_bytes(hashlib.blake2b(str(flow).encode(), digest_size=8).digest(), "big") >> 12)


_all: WeakSet[Courier] = WeakSet()


def courier_of(store: Store) -> Courier:
    """The courier of that store in this process."""
    courier: Courier | None = store.courier
    if courier is None:
        with store.lock:
            if store.courier is None:
                store.courier = Courier(store)
            courier = store.courier
    return courier


class Courier:
    """See the module's docstring."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.accounts: WeakValueDictionary[str, Account] = WeakValueDictionary()
        self._desks: WeakSet[Desk] = WeakSet()
        self._begin()
        _all.add(self)

    def _begin(self) -> None:
        self.lock = self.store.lock
        self.owner = float(random.getrandbits(52))
        self.calls = 0
        self.down: StoreError | None = None  # the store does not answer: why
        self._fallback: Alone | None = None  # who decides meanwhile
        self._inbox: SimpleQueue[Any] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._stopping = False
        self._io = threading.Lock()  # held by whoever is speaking to the store
        self._number = 0
        self._lead: float | None = None  # the store's clock ahead of ours, in microseconds
        self._dirty: dict[Desk, None] = {}
        self._alarms: list[tuple[float, int, Callable[[float], None]]] = []
        self._alarm_count = 0
        self._urgent = False  # whether one of the following cannot wait for the next call
        self._permits: dict[SharedPermit, None] = {}
        self._returns: list[Return] = []
        self._orders: list[tuple[Account, Callable[[Call], list[float]], bool]] = []
        self._left: list[
            tuple[SharedLimitState, float, float, float]
        ] = []  # what goes back of whose reservations, in seconds
        self._looks: list[tuple[Account, Parker | None]] = []
        self._changes: dict[Account, None] = {}
        self._owed: dict[SharedLimitState, float] = {}
        self._renewing: dict[Account, None] = {}  # those that hold places which must be renewed
        self._pending: tuple[Call, Batch] | None = None
        self._leasing = Leasing(self)
        self._woken: list[Parker] = []

    def forget(self) -> None:
        """In the child of a fork: thread, connection and everybody who waits are the parent's."""
        for desk in self._desks:
            desk.queue = type(desk.queue)(desk.queue.ageing, desk.queue.weights)
            desk.fresh.clear()
            desk.reserved.clear()
            desk.coming = 0
        for account in list(self.accounts.values()):
            account.held.clear()
            for state in account.order:
                state.holding = Holding()  # a chunk is used by one process
        self._begin()

    # From any thread

    def account(
        self, name: str, limits: dict[str, tuple[Limit, ...]], ageing: float, weights: Any, lease: float | None
    ) -> Account:
        """What this process knows of that name.

        Raises:
            ConfigurationConflict: It has other limits.
        """
        with self.lock:
            found = self.accounts.get(name)
            if found is None:
                desk = Desk(ageing, dict(weights or {}), lease)
                found = self.accounts[name] = Account(name, limits, desk, self.store.place_ttl, lease)
                desk.accounts.add(found)
                self._desks.add(desk)
            else:
                wanted = Terms(name, limits, self.store.place_ttl, lease)
                if found.terms.text != wanted.text:
                    raise _conflict(name, str(found.terms), str(wanted))
            return found

    def post(self, message: Any) -> None:
        """Tell the courier. Never waits."""
        self._inbox.put(message)
        if self._thread is None:
            self._start()

    def _start(self) -> None:
        with self.lock:
            if self._thread is None:
                self._stopping = False
                self._thread = threading.Thread(target=self._run, name=f"penstock {self.store!r}", daemon=True)
                self._thread.start()

    def stop(self) -> None:
        """Send what is left to send, and end the thread; give up waiter for that after a while."""
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            self._inbox.put(("stop",))
            thread.join(timeout=2 * self.store.patience + 1)

    # The thread

    def _run(self) -> None:
        inbox = self._inbox
        try:
            with self._io, contextlib.suppress(StoreError):  # what is wrong will be said to whoever asks
                self.store.listen(lambda name: inbox.put(("heard", name)))
                self.store.prepare()
            while not self._stopping or (self._urgent and self._open()):
                messages = []
                try:
                    messages.append(inbox.get(timeout=self._idle()))
                    messages += [inbox.get_nowait() for _ in range(min(inbox.qsize(), 1024))]  # nobody else takes any
                except Empty:
                    pass
                with self.lock:
                    changes, call = self._turn(messages)
                    self._wake()
                for account in changes:
                    self._change(account)
                if call is not None:
                    self._carry(call)
        except BaseException as error:  # a defect, ours or a store's: whoever waits must hear of it, and not hang
            logging.getLogger("penstock").exception("the courier of %r has failed", self.store)
            with self.lock:
                self._fail_all(StoreError(f"the courier of {self.store!r} has failed: {error!r}"))
                self._wake()
        finally:
            with self._io:
                self.store.disconnect()
            self._thread = None
            if not inbox.empty() and inbox is self._inbox:  # somebody came while we went
                self._start()

    def _turn(self, messages: Sequence[Any]) -> tuple[list[Account], Call | None]:
        """Hear what came in, let happen what is due, and decide what to ask next. Asks nobody and waits for nothing.

        This and `_apply` are all that the courier decides; `_run` and `_carry` are the thread and the way. So `benchmarks/scale.py` can
        drive a thousand of them through one virtual time.
        """
        now = clock.now()
        for message in messages:
            if type(message) is Slip:
                self._enter(message, now)
            else:
                getattr(self, "_on_" + message[0])(*message[1:])
        while self._alarms and self._alarms[0][0] <= now:
            heappop(self._alarms)[2](now)
        changes = self._take_changes()
        return changes, None if changes or not self._open() else self._write(now)

    def _open(self) -> bool:
        """Whether there is somebody to decide."""
        return self.down is None or self._fallback is not None

    def _idle(self) -> float | None:
        """Seconds until something must be done if nothing comes in; None: for ever."""
        if self._changes or ((self._dirty or self._urgent) and self._open()):
            return 0.0
        if self._alarms:
            return min(max(0.0, self._alarms[0][0] - clock.now()), 3600.0)
        return None

    def _at(self, moment: float, ring: Callable[[float], None]) -> None:
        self._alarm_count += 1
        heappush(self._alarms, (moment, self._alarm_count, ring))

    def _wake(self) -> None:
        if self._woken:
            woken, self._woken = self._woken, []
            wake_all(woken)

    # What comes in

    def _enter(self, slip: Slip, now: float) -> None:
        if slip.limiter._life is not None:
            self._desk(slip).coming -= 1
        if slip.state == "gone":
            return
        if self.down is not None and not self._open():
            self._refuse(slip, _again(self.down))
            return
        desk: Any = slip.limiter._gate
        if desk.into is not None:
            desk = self._desk(slip)
        bound = slip.limiter._max_queue
        if bound is not None and slip.deadline > now and desk.waiting >= bound:
            ready, blocker = self._expected(slip, desk, now)
            if ready > now:
                self._refuse(
                    slip,
                    QueueFull(
                        f"{bound} calls are waiting already, as many as max_queue allows; the next would wait "
                        f"{ready - now:.3g} s for {blocker}",
                        retry_after=ready - now,
                        blocked_by=blocker,
                    ),
                )
                return
        if now < slip.deadline < math.inf:
            self._at(slip.deadline, lambda at: self._too_late(slip, at))
        desk.fresh.append(slip)
        self._dirty[desk] = None

    def _on_leave(self, slip: Slip) -> None:
        """`slip` was cancelled, wherever it stands."""
        state, slip.state = slip.state, "gone"
        slip.limiter._cancelled += 1
        desk = self._desk(slip)
        if state == "queue":
            desk.queue.leave(slip)
            if slip.flow in desk.told and not desk.queue.waits(slip.flow):
                desk.told.discard(slip.flow)
                self._left.append((slip.charges[0][0], *self._flow_of(slip.flow, desk)[:2], 0.0))
            self._dirty[desk] = None
        elif state == "reserved":
            desk.reserved.remove(slip)
            self._hand_on(slip, desk)
        elif state == "granted":
            slip.limiter._granted -= 1
            if slip.shares is not None:
                self._leasing.give_back(slip.shares, desk)
            else:
                self._hand_on(slip, desk)
        # "new" is seen when it is looked at, "asked" when the answer is there

    def _on_permit(self, permit: SharedPermit) -> None:
        if permit._limiter._life is None or not self._leasing.settle(permit):
            self._permits[permit] = None
            self._urgent = True

    def _on_hungry(self, desk: Desk) -> None:
        """Less is held there than will be used."""
        self._dirty[desk] = None

    def _on_order(self, account: Account, write: Callable[[Call], list[float]], loud: bool) -> None:
        self._orders.append((account, write, loud))
        self._urgent = True

    def _on_change(self, account: Account) -> None:
        self._changes[account] = None
        self._recharge(account)

    def _on_look(self, account: Account, parker: Parker | None) -> None:
        """Somebody wants to see what the store says now."""
        self._looks.append((account, parker))
        self._urgent = True

    def _on_heard(self, name: str) -> None:
        """Another process has paused or changed something, or given something back."""
        for account in [self.accounts.get(name)] if name else list(self.accounts.values()):
            if account is None:
                continue
            account.looking = True
            self._on_look(account, None)
            desk = account.gate
            assert isinstance(desk, Desk)
            desk.blocked.clear()
            self._dirty[desk] = None

    def _on_stop(self) -> None:
        """No more after this; who waits would wait for ever."""
        self._stopping = True
        closed = StoreError(f"{self.store!r} was closed while this call was waiting")
        for desk in list(self._desks):
            for slip in desk.reserved:
                self._return(slip)
                self._refuse(slip, _again(closed))
            desk.reserved.clear()
            for state in desk.states():
                self._leasing.return_chunks(state, state.holding.drain())
        self._urgent = self._urgent or bool(self._returns)
        self._fail_all(closed)

    @staticmethod
    def _desk(slip: Slip) -> Desk:
        desk = slip.limiter._parts[0].gate
        assert isinstance(desk, Desk)
        return desk

    # Grants and refusals

    def _grant(self, slip: Slip, now: float) -> None:
        slip.state = "granted"
        slip.granted_at = now
        slip.limiter._granted += 1
        self._woken.append(slip.parker)

    def _refuse(self, slip: Slip, error: Exception) -> None:
        slip.state = "refused"
        slip.error = error
        slip.limiter._refused += 1
        self._woken.append(slip.parker)

    def _not_now(self, slip: Slip, wait: float, blocker: str) -> RateLimited:
        cost = ", ".join(f"{amount:g} {state.unit}" for state, amount in slip.charges)
        return RateLimited(
            f"{cost} would have to wait {'until somebody gives back what they hold' if wait == math.inf else f'{wait:.3g} s'} "
            f"for {blocker}",
            retry_after=wait,
            blocked_by=blocker,
        )

    def _too_late(self, slip: Slip, now: float) -> None:
        """The longest that `slip` would wait is over."""
        if slip.state not in ("queue", "new"):
            return
        desk = self._desk(slip)
        ready, blocker = self._expected(slip, desk, now)
        if slip.state == "queue":
            desk.queue.leave(slip)
            self._dirty[desk] = None
        self._refuse(slip, self._not_now(slip, max(ready - now, 0.0), blocker))

    def _expected(self, slip: Slip, desk: Desk, now: float) -> tuple[float, str]:
        """When `slip` would have its turn, as far as this process knows, and what it waits for."""
        if slip.subqueue is not None:
            ahead = desk.queue.queued_ahead(slip)
            charges = [(state, amount + ahead.get(state, 0.0)) for state, amount in slip.charges]
        else:
            charges = [(state, amount + state.queued) for state, amount in slip.charges]
        if desk.life is not None:  # what is held here need not come from the store
            charges = [(state, max(0.0, amount - state.holding.left)) for state, amount in charges]
        ready, state = ready_at(charges, now)
        return ready, "the queue" if state is None else "pause" if state.paused_until >= ready else slip.limiter._label(
            state
        )

    def _due(self, slip: Slip, now: float) -> None:
        """The moment for which `slip` has a reservation is there."""
        if slip.state != "reserved" or slip.due > now:
            return
        accounts = {state.account for state, _ in slip.charges}
        if not self.store.hears and slip.waited > LOOKAHEAD and not slip.confirmed and self.down is None:
            slip.confirmed = True  # somebody may have paused everything meanwhile, and we would not know
            for account in accounts:
                account.looking = True
                self._on_look(account, None)
        if any(account.looking for account in accounts):
            return
        desk = self._desk(slip)
        desk.reserved.remove(slip)
        self._grant(slip, now)
        self._dirty[desk] = None

    def _reserve(self, slip: Slip, desk: Desk, due: float) -> None:
        slip.state = "reserved"
        slip.due = due
        desk.reserved.append(slip)
        self._at(due, lambda now: self._due(slip, now))

    def _hand_on(self, slip: Slip, desk: Desk) -> None:
        """Let the next in the queue have what `slip` was granted, or give it back to the store."""
        now = clock.now()
        heads = desk.queue.heads(now)
        if heads:
            heir = heads[0][1]
            assert isinstance(heir, Slip)
            mine, wanted = dict(slip.charges), dict(heir.charges)
            fits = mine.keys() == wanted.keys() and all(wanted[state] <= mine[state] for state in mine)
            if fits and max(slip.due, now) <= heir.deadline:
                desk.queue.take(heir)
                receipts = {state: receipt for (state, _), receipt in zip(slip.charges, slip.receipts, strict=True)}
                for state, amount in slip.charges:
                    if amount > wanted[state]:
                        self._returns.append(
                            (state, amount - wanted[state], slip.epochs[state.account], receipts[state])
                        )
                        self._urgent = True
                heir.receipts, heir.epochs = [receipts[state] for state, _ in heir.charges], slip.epochs
                heir.waited, heir.confirmed = slip.waited, slip.confirmed
                self._reserve(heir, desk, max(slip.due, now))
                if slip.due <= now:
                    self._due(heir, now)
                return
        self._return(slip)
        self._dirty[desk] = None

    def _return(self, slip: Slip) -> None:
        """Give what `slip` was granted back to the store, with the next call."""
        for (state, amount), receipt in zip(slip.charges, slip.receipts, strict=True):
            self._returns.append((state, amount, slip.epochs[state.account], receipt))
        key, member, weight = self._flow_of(slip.flow, self._desk(slip))
        worth = max(amount / state.throughput for state, amount in slip.charges) / weight
        self._left.append((slip.charges[0][0], key, member, worth))
        self._urgent = True

    def _flow_of(self, flow: Hashable, desk: Desk) -> tuple[float, float, float]:
        """A flow for the store: its key, who of its members we are, and its weight. Calls without one are a flow of this process."""
        weights = desk.queue.weights
        weight = weights.get(flow, 1.0) if weights else 1.0
        return (self.owner, 0.0, weight) if flow is None else (_key_of(flow), self.owner, weight)

    def _line_up(self, slip: Slip, desk: Desk, now: float) -> None:
        """Let `slip` join the queue, unless it would wait too long there."""
        slip.state = "queue"
        desk.queue.join(slip, now)
        if slip.deadline < math.inf and all(state.account.agreed for state, _ in slip.charges):
            ready, blocker = self._expected(slip, desk, now)
            if slip.deadline < ready < math.inf:
                desk.queue.leave(slip)
                self._refuse(slip, self._not_now(slip, ready - now, blocker))

    def _stay(self, slip: Slip, desk: Desk) -> None:
        """Let `slip`, who was asked for and had no turn, stand where it stood; at the end if it stood nowhere yet."""
        if slip.state == "gone":
            return
        slip.call = None
        slip.state = "queue"
        if slip.number:
            desk.queue.restore(slip)
        else:
            desk.queue.join(slip, clock.now())

    # What goes out

    def _write(self, now: float) -> Call | None:
        """Write the next call; None if there is nothing to ask."""
        call = Call()
        if self._urgent:
            self._write_news(call, now)
        for desk in list(self._dirty):
            if len(call.asked) >= self.store.batch or call.width > 512:
                break
            self._ask(desk, call, now)
        if call.offsets and self._returns:
            self._write_returns(call)  # those that could wait
        return call if call.offsets else None

    def _fits(self, call: Call, account: Account) -> bool:
        """Whether `account` can be decided together with what `call` asks already."""
        group = self.store.group_of(account.terms.name)
        if call.group is ANY:
            call.group = group
        return bool(call.group == group)

    def _write_news(self, call: Call, now: float) -> None:
        """Everything that is to be heard before anybody is granted: refunds, true costs, pauses, who is still alive."""
        self._urgent = False
        write = call.operations
        orders, self._orders = self._orders, []
        for order in orders:
            account, words, loud = order
            if self._fits(call, account):
                write += words(call)
                if loud:
                    call.tell.add(account.terms.name)
            else:
                self._orders.append(order)
        self._write_returns(call)
        for permit in list(self._permits):
            if all(self._fits(call, state.account) for state in permit._states()):
                del self._permits[permit]
                backs, more = permit._news()
                for state, amount, epoch, receipt in backs:
                    write += (ledger.GIVE_BACK, 1.0, float(call.at(state)), amount, epoch, receipt)
                    self._freed(state, amount)
                for state, amount in more:
                    write += (ledger.CHARGE, 1.0, float(call.at(state)), amount)
                if more:
                    call.changed.append((permit, more))
                call.returns += backs
        looks, self._looks = self._looks, []
        for look in looks:
            if self._fits(call, look[0]):
                call.at(look[0].order[0])
                call.looks.append(look)
            else:
                self._looks.append(look)
        if self._fallback is None:
            for state in list(self._owed):
                if self._fits(call, state.account):
                    write += (ledger.CHARGE, 1.0, float(call.at(state)), max(0.0, self._owed.pop(state)))
                    call.changed.append((None, [(state, 0.0)]))  # type: ignore[arg-type]  # nobody's permit
        for account in list(self._renewing):
            if account.renew_at <= now and self._fits(call, account):
                account.renew_at = math.inf
                del self._renewing[account]
                for state in [state for state, held in account.held.items() if held > 0]:
                    write += (ledger.RENEW, 1.0, float(call.at(state)))
                    self._renew_later(account, now)
        self._urgent = bool(self._orders or self._returns or self._permits or self._looks or self._owed) and bool(
            call.offsets
        )

    def _write_returns(self, call: Call) -> None:
        write = call.operations
        returns, self._returns = self._returns, []
        returns.sort(key=lambda back: -back[3])  # the latest first: so nothing is lost on the way
        for back in returns:
            state, amount, epoch, receipt = back
            if self._fits(call, state.account):
                write += (ledger.GIVE_BACK, 1.0, float(call.at(state)), amount, epoch, receipt)
                call.returns.append(back)
                self._freed(state, amount)
            else:
                self._returns.append(back)
        left, self._left = self._left, []
        for state, key, member, worth in left:
            if state.account in call.offsets:
                write += (ledger.LEAVE, key, member, worth, float(call.at(state)))

    def _freed(self, state: SharedLimitState, amount: float) -> None:
        if state.mode >= ledger.TIMED:
            if state in state.account.held:
                state.account.held[state] -= amount
            desk = state.account.gate
            assert isinstance(desk, Desk)
            desk.blocked.pop(state, None)
            self._dirty[desk] = None

    def _renew_later(self, account: Account, now: float) -> None:
        if account.renew_at == math.inf:
            account.renew_at = now + account.place_ttl / 3
            self._renewing[account] = None

            def ring(_: float) -> None:
                self._urgent = True

            self._at(account.renew_at, ring)

    def _ask(self, desk: Desk, call: Call, now: float) -> None:
        """Ask for the first of the queue, and for everybody who could go soon."""
        fresh, queue, store = desk.fresh, desk.queue, self.store
        if desk.into is not None:
            self._dirty.pop(desk)
            self._dirty[desk.into] = None  # type: ignore[index]
            return
        if desk.life is not None and self._fallback is None:
            self._leasing.ask(desk, call, now)
            return
        room = store.batch - len(call.asked)
        straight = not len(queue) and not desk.reserved
        later: list[Slip] = []
        held = {state for slip in desk.reserved if slip.due > now + MARGIN for state, _ in slip.charges}
        if straight and fresh and not desk.blocked:
            room = self._ask_plenty(desk, call, now, room)
        while fresh and room > 0:
            slip = fresh[0]
            if slip.state == "gone":
                fresh.popleft()
                continue
            if not all(self._fits(call, state.account) for state, _ in slip.charges):
                return
            if slip.deadline <= now:  # now or never
                fresh.popleft()
                later.append(slip)
                room -= 1
                continue
            if not straight or slip.priority or slip.flow is not None or desk.blocked:
                break
            ready, _ = ready_at(slip.charges, now)
            if ready > now + LOOKAHEAD and not held.isdisjoint(state for state, _ in slip.charges):
                break
            fresh.popleft()
            room -= 1
            first = held.isdisjoint(state for state, _ in slip.charges)
            self._put(slip, call, math.inf if first else LOOKAHEAD, ready, now)
            if ready > now:
                held.update(state for state, _ in slip.charges)
        if fresh and room > 0:
            for slip in fresh:
                if slip.state != "gone":
                    self._line_up(slip, desk, now)
            fresh.clear()
        if len(queue) and room > 0:
            room = self._ask_line(desk, call, now, room, held)
        for slip in later:
            self._put(slip, call, 0.0, now, now)
        if not fresh and (room > 0 or not len(queue)):
            self._dirty.pop(desk, None)

    def _ask_plenty(self, desk: Desk, call: Call, now: float, room: int) -> int:
        """Ask for those who come first and, by all we know, can go at once: the same as `_ask`, as fast as it can be."""
        fresh, asked = desk.fresh, call.asked
        left: dict[LimitState, float] = {}  # units, per bucket
        horizon = LOOKAHEAD if asked else math.inf
        while fresh and room > 0:
            charges = fresh[0].charges
            most = room
            for state, amount in charges:
                level = left.get(state)
                if level is None:
                    meter = state.meter
                    if not (type(meter) is Bucket and state.paused_until <= now and self._fits(call, state.account)):
                        most = 0
                        break
                    level = left[state] = meter.level(now)
                most = min(most, int(level // amount))
            taken = 0
            while taken < most and fresh:  # programs use the same charges again and again
                slip = fresh[0]
                if (
                    slip.charges is not charges
                    or slip.state != "new"
                    or slip.deadline != math.inf
                    or slip.priority
                    or slip.flow is not None
                ):
                    break
                slip.state = "asked"
                slip.call = call
                asked.append(slip)
                fresh.popleft()
                taken += 1
            if not taken:
                break
            if call.flow is not None or call.payer is not charges[0][0].account:
                self._name_flow(call, asked[-1])
            request = [ledger.ACQUIRE, horizon, 1.0, float(len(charges))]
            for state, amount in charges:
                request += (float(call.at(state)), amount)
                left[state] -= amount * taken
            call.operations += request * taken
            room -= taken
        for state, level in left.items():
            state.meter.charge(max(0.0, state.meter.level(now) - level), now)
        return room

    def _ask_line(self, desk: Desk, call: Call, now: float, room: int, held: set[LimitState]) -> int:
        queue = desk.queue
        desk.behind = {flow: until for flow, until in desk.behind.items() if until > now}
        heads: list[Any] = queue.heads(now, desk.behind)
        heapify(heads)
        soon = now + 2 * MARGIN
        mine = set(held)
        blocked = {state for state, until in desk.blocked.items() if until > now}
        look_again = min((until for until in desk.blocked.values() if until > now), default=math.inf)
        look_again = min(look_again, min(desk.behind.values(), default=math.inf))
        begun, until = False, now
        while heads and room > 0:
            _, slip = heappop(heads)
            while True:
                if not all(self._fits(call, state.account) for state, _ in slip.charges):
                    return 0  # stays dirty, for a call of its own
                states = [state for state, _ in slip.charges]
                if not blocked.isdisjoint(states):
                    held.update(states)
                    break
                ready, _ = ready_at(slip.charges, now)
                first = held.isdisjoint(states)
                if not first and ready > (now + LOOKAHEAD if begun else soon):
                    held.update(states)
                    look_again = min(look_again, ready - MARGIN)
                    if not mine.isdisjoint(states):
                        look_again = min(look_again, max((s.due for s in desk.reserved), default=math.inf))
                    break
                begun = True
                until = max(until, ready)
                room -= 1
                behind: Any = queue.take(slip)
                self._put(slip, call, math.inf if first else LOOKAHEAD, ready, now)
                if first and ready > now:
                    held.update(states)
                if desk.behind:  # the next of this shape may be of a flow that is to come again later
                    heads = queue.heads(now, desk.behind)
                    heapify(heads)
                    break
                if behind is None or room <= 0:
                    break
                if heads and behind[0] > heads[0][0]:
                    heappush(heads, behind)
                    break
                slip = behind[1]
        if begun and until < math.inf:
            self._name_waiting(desk, call, until, now)
        if room > 0 and look_again < math.inf:
            look_again = max(look_again, now + 0.0002)
            if not now < desk.alarm <= look_again:
                desk.alarm = look_again

                def ring(_: float) -> None:
                    if len(desk.queue):
                        self._dirty[desk] = None

                self._at(look_again, ring)
        return room

    def _put(self, slip: Slip, call: Call, horizon: float, ready: float, now: float) -> None:
        """Write the request of `slip` into `call`, and into the mirror."""
        wait = slip.deadline - now
        stops = 1.0
        if wait < horizon:
            horizon = max(wait, 0.0)
            stops = 1.0 if wait > 0 else 0.0
        if slip.flow != call.flow or call.payer is not slip.charges[0][0].account:
            self._name_flow(call, slip)
        operations = call.operations
        operations += (ledger.ACQUIRE, horizon, stops, float(len(slip.charges)))
        at = max(ready, now)
        for state, amount in slip.charges:
            operations += (float(call.at(state)), amount)
            if at < math.inf:
                state.meter.charge(amount, at)
        slip.state = "asked"
        slip.call = call
        call.asked.append(slip)

    def _name_flow(self, call: Call, slip: Slip) -> None:
        """Write whose the requests that follow are."""
        state = slip.charges[0][0]
        call.flow, call.payer = slip.flow, state.account
        call.operations += (ledger.FLOW, *self._flow_of(slip.flow, self._desk(slip)), float(call.at(state)), 0.0)

    def _name_waiting(self, desk: Desk, call: Call, until: float, now: float) -> None:
        """Write whose calls wait here beside those that were asked for, and until when we shall ask again: the store must not forget them."""
        flows = desk.queue.flows(TOLD)
        if not flows or (len(flows) == 1 and flows[0] == call.flow):
            return
        state = call.asked[-1].charges[0][0]
        waits = min(max([until, *(slip.due for slip in desk.reserved)]) - now + MARGIN, 1.0)
        for flow in flows:
            call.operations += (ledger.FLOW, *self._flow_of(flow, desk), float(call.at(state)), waits)
        desk.told = set(flows)
        call.flow = ANY

    # The way there and back

    def _pack(self, call: Call) -> Batch:
        """`call` as the store is sent it, now."""
        self._number += 1
        self.calls += 1
        now = call.sent = clock.now()
        lead = clock.wall() * 1e6 - now * 1e6 if self._lead is None else self._lead
        return Batch(
            [account.terms for account in call.offsets], call.operations, self.owner, self._number, now * 1e6 + lead
        )

    def _carry(self, call: Call) -> None:
        batch = self._pack(call)
        store: Store = self.store if self._fallback is None else self._fallback
        first, pause = call.sent, RETRY[0]
        reply: Reply | None = None
        while reply is None:
            try:
                with self._io if store is self.store else contextlib.nullcontext():  # the prober may be holding it
                    reply = store.decide(batch)
            except Unreachable as error:
                if clock.now() + pause - first > self.store.patience:
                    with self.lock:
                        self._lost(call, batch, error)
                        self._wake()
                    return
                time.sleep(pause * random.uniform(0.5, 1.0))
                pause = min(2 * pause, RETRY[1])
            except Exception as error:  # noqa: BLE001 - whoever waits must hear of it
                with self.lock:
                    self._failed(call, error)
                    self._wake()
                return
        with self.lock:
            self._apply(call, reply, clock.now())
            self._wake()
        if call.tell and store is self.store:
            with self._io:
                store.announce(sorted(call.tell))

    def _apply(self, call: Call, reply: Reply, now: float) -> None:
        """Hear what the store has decided."""
        self._lead = reply.now - now * 1e6 if self._fallback is None else self._lead
        if reply.others:
            self._disagree(call, reply.others)
            return
        offset = 0
        for account, epoch in zip(call.offsets, reply.epochs, strict=True):
            call.epochs[account] = epoch
            account.agreed = True
            account.looking = False
            account.mirror(reply.states, offset, now, reply.now)
            offset += 3 * len(account.order)
        verdicts, at = reply.verdicts, 0
        for permit, more in call.changed:
            if permit is not None:
                permit._charged(
                    [
                        (state, amount, call.epochs[state.account], receipt)
                        for (state, amount), receipt in zip(more, verdicts[at:], strict=False)
                    ]
                )
            at += len(more)
        again: list[Slip] = []
        served: dict[Desk, None] = {}
        epochs, woken, simple = call.epochs, self._woken, self._fallback is None
        for slip in call.asked:
            verdict = verdicts[at]
            if verdict == 0 and simple and slip.state == "asked" and slip.call is call and not slip.limiter._holds:
                begin = at + 1  # as most are
                at = begin + len(slip.charges)
                slip.receipts, slip.epochs = verdicts[begin:at], epochs
                slip.state = "granted"
                slip.granted_at = now
                slip.limiter._granted += 1
                woken.append(slip.parker)
            elif type(slip) is ChunkAsked:
                served[slip.desk] = None
                if verdict >= 0:
                    at += 1 + len(slip.charges)
                    self._leasing.had(slip, verdicts[at - len(slip.charges) : at], verdict, call, now, reply.now)
                else:
                    at += 2
                    self._leasing.not_had(slip, -1.0 - verdict, now)
            elif verdict >= 0:
                at += 1
                count = len(slip.charges)
                slip.receipts, slip.epochs = verdicts[at : at + count], call.epochs
                at += count
                self._granted(slip, call, verdict, now)
            else:
                wait, blocker = -1.0 - verdict, verdicts[at + 1]
                at += 2
                if slip.call is call and slip.state == "asked":
                    self._refused(slip, call, wait, blocker, now, again)
        for slip in reversed(again):
            self._stay(slip, self._desk(slip))
        for slip in again:
            desk = self._desk(slip)
            self._dirty[desk] = None
        for desk in served:
            self._leasing.serve(desk, now)
        for account in call.offsets:
            there = account.gate
            assert isinstance(there, Desk)
            for slip in list(there.reserved):
                if any(state.paused_until > slip.due + 0.001 for state, _ in slip.charges):
                    there.reserved.remove(slip)  # a pause that is younger than the reservation
                    self._return(slip)
                    self._stay(slip, there)
                    self._dirty[there] = None
                elif slip.due <= now:
                    self._due(slip, now)
        self._seen(call)
        call.asked = []  # who was asked for names the call, too: without this, only the garbage collector could free them

    def _seen(self, call: Call) -> None:
        """Tell those who wanted to see what the store says."""
        self._woken += [parker for _, parker in call.looks if parker is not None]

    def _granted(self, slip: Slip, call: Call, wait: float, now: float) -> None:
        for state, amount in slip.charges:
            if state.mode >= ledger.TIMED:
                account = state.account
                if state.mode == ledger.RENEWED:
                    account.held[state] = account.held.get(state, 0.0) + amount
                    self._renew_later(account, now)
            if self._fallback is not None:
                self._owed[state] = self._owed.get(state, 0.0) + amount
        desk = self._desk(slip)
        desk.poll = POLL[0]
        if slip.call is not call or slip.state != "asked":
            slip.due = now + wait
            self._hand_on(slip, desk)
        elif wait <= 0:
            self._grant(slip, now)
        else:
            slip.waited = wait
            slip.confirmed = False
            self._reserve(slip, desk, now + wait)

    def _refused(self, slip: Slip, call: Call, wait: float, blocker: float, now: float, again: list[Slip]) -> None:
        if blocker < 0:  # the store has enough, and a flow that has had less is to have it
            desk = self._desk(slip)
            if desk.behind.get(slip.flow, -math.inf) <= now:  # once a call
                desk.queue.delay(slip.flow, -1.0 - blocker)
            desk.behind[slip.flow] = now + wait
            again.append(slip)
            return
        state = self._state(call, int(blocker))
        if now + wait > slip.deadline and (wait < math.inf or slip.deadline <= now):
            paused = state.paused_until > now and wait >= state.paused_until - now
            label = "pause" if paused else slip.limiter._label(state)
            self._refuse(slip, self._not_now(slip, wait, label))
            return
        again.append(slip)
        if state.mode >= 0 or isinstance(state.meter, CalendarWindow):
            desk = self._desk(slip)
            desk.blocked[state] = now + min(max(wait, 1e-5), desk.poll if state.mode >= 0 else math.inf)
            desk.poll = min(2 * desk.poll, POLL[1])

    @staticmethod
    def _state(call: Call, number: int) -> SharedLimitState:
        for account, offset in call.offsets.items():
            if offset <= number < offset + len(account.order):
                return account.order[number - offset]
        raise AssertionError(f"no limit has the number {number}")

    def _disagree(self, call: Call, others: Mapping[str, str]) -> None:
        """Nothing was decided: some names are counted for other limits than ours."""
        for account in call.offsets:
            text = others.get(account.terms.name)
            if text is None:
                continue
            theirs = Terms.of_text(account.terms.name, text, account.place_ttl)
            same = theirs.limits.keys() == account.terms.limits.keys() and theirs.lease == account.lease
            if account.agreed and same:
                self._adopt(account, theirs)
            else:
                error = _conflict(account.terms.name, str(theirs), str(account.terms))
                desk = account.gate
                assert isinstance(desk, Desk)
                for slip in [*call.asked, *desk.queue]:
                    if slip.state in ("asked", "queue") and any(state.account is account for state, _ in slip.charges):
                        desk.queue.leave(slip)
                        self._refuse(slip, _again(error))
        self._unsend(call)

    def _unsend(self, call: Call) -> None:
        """`call` was not decided: everybody goes back to where they were."""
        for slip in reversed(call.asked):
            if type(slip) is ChunkAsked:
                self._dirty[slip.desk] = None
            if slip.state == "asked" and slip.call is call:
                desk = self._desk(slip)
                self._stay(slip, desk)
                self._dirty[desk] = None
        self._returns += call.returns
        self._looks += call.looks
        for permit, more in call.changed:
            if permit is not None:
                permit._uncharged(more)
                self._permits[permit] = None
        self._urgent = bool(self._returns or self._permits or self._looks)

    def _adopt(self, account: Account, theirs: Terms) -> None:
        """Another process has reconfigured: its limits are ours from now on; what calls cost by default stays ours."""
        limits = {}
        for unit, kinds in theirs.limits.items():
            default = next((limit.default for limit in account.terms.limits[unit] if limit.default is not None), None)
            limits[unit] = tuple(replace(limit, default=default) for limit in kinds)  # type: ignore[type-var]  # all are dataclasses
        account.promise(limits, clock.now())
        self._recharge(account)

    def _recharge(self, account: Account) -> None:
        """The limits have changed: let all who wait be charged on those of now."""
        desk = account.gate
        assert isinstance(desk, Desk)
        for slip in list(desk.reserved):
            if any(state.account is account for state, _ in slip.charges):
                desk.reserved.remove(slip)
                self._return(slip)
                self._stay(slip, desk)
        for state in account.order:
            self._leasing.return_chunks(state, state.holding.drain())
        everybody = sorted(desk.queue, key=lambda w: w.number)
        for waiter in everybody:
            desk.queue.leave(waiter)
        for waiter in everybody:
            assert isinstance(waiter, Slip)
            try:
                waiter.charges = waiter.limiter._charges_of(waiter.cost)
            except PenstockError as error:
                self._refuse(waiter, error)
            else:
                desk.queue.restore(waiter)
        desk.blocked.clear()
        self._dirty[desk] = None

    # Changes of the limits themselves

    def _take_changes(self) -> list[Account]:
        if self.down is not None:
            return []
        changes, self._changes = list(self._changes), {}
        return changes

    def _change(self, account: Account) -> None:
        terms = account.terms
        try:
            with self._io:
                self.store.change(terms)
        except Unreachable as error:
            with self.lock:
                self._changes[account] = None
                self._at(clock.now() + RETRY[1], lambda _: None)
            logging.getLogger("penstock").warning(
                "new limits for %r have not reached the store yet: %s", terms.name, error
            )
            time.sleep(RETRY[1])
        except Exception as error:
            with self.lock:
                logging.getLogger("penstock").exception("the store refused new limits for %r", terms.name)
                self._fail_desk(account, error)
                self._wake()
        else:
            account.agreed = True

    # When the store does not answer

    def _failed(self, call: Call, error: Exception) -> None:
        """The store said no: nothing was decided."""
        for slip in call.asked:
            if slip.state == "asked" and slip.call is call:
                self._refuse(slip, _again(error))
            elif type(slip) is ChunkAsked:
                for account in slip.desk.accounts:
                    self._fail_desk(account, error)
        self._seen(call)
        call.looks.clear()
        self._unsend(call)
        self._urgent = False  # the rest goes along with the next call that somebody makes
        for account in call.offsets:
            account.looking = False
            desk = account.gate
            if len(desk.queue):
                self._dirty[desk] = None  # type: ignore[index]

    def _lost(self, call: Call, batch: Batch, error: Unreachable) -> None:
        """No answer for `patience`: whether `call` was decided is not known, and asked until it is."""
        store = self.store
        self.down = error
        self._pending = (call, batch)
        self._seen(call)
        call.looks.clear()
        if store.on_event is not None:
            emit(store.on_event, StoreLost(repr(store), str(error), store.on_outage))
        logging.getLogger("penstock").warning("%s; until it answers: on_outage=%r", error, store.on_outage)
        for account in call.offsets:
            account.looking = False
        if store.on_outage == "raise":
            self._fail_all(error, call)
        else:
            self._fallback = Alone(store, math.inf if store.on_outage == "open" else store.share or 1.0)
            for slip in reversed(call.asked):
                if type(slip) is ChunkAsked:
                    self._dirty[slip.desk] = None
                if slip.state == "asked" and slip.call is call:
                    desk = self._desk(slip)
                    self._stay(slip, desk)
                    self._dirty[desk] = None
        prober = threading.Thread(
            target=self._probe, args=(batch, self._inbox), name=f"penstock asks {store!r}", daemon=True
        )
        prober.start()

    def _probe(self, batch: Batch, inbox: SimpleQueue[Any]) -> None:
        """Ask again and again, until there is an answer."""
        pause = RETRY[0]
        while inbox is self._inbox and not self._stopping:
            time.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(2 * pause, RETRY[1])
            try:
                with self._io:
                    reply: Reply | Exception = self.store.decide(batch)
            except Unreachable as error:
                self.down = error
            except Exception as error:  # noqa: BLE001 - an answer of a kind
                inbox.put(("found", error))
                return
            else:
                inbox.put(("found", reply))
                return

    def _on_found(self, answer: Reply | Exception) -> None:
        """The store answers again."""
        store, now = self.store, clock.now()
        fallback, self._fallback, self.down = self._fallback, None, None
        assert self._pending is not None
        (call, _), self._pending = self._pending, None
        if store.on_event is not None:
            emit(store.on_event, StoreRecovered(repr(store)))
        logging.getLogger("penstock").warning("%r answers again", store)
        if isinstance(answer, Exception):
            self._failed(call, answer)
        else:
            self._apply(call, answer, now)
        if fallback is not None:
            for desk in list(self._desks):
                for slip in list(desk.reserved):
                    if slip.epochs is not call.epochs and all(epoch == fallback.born for epoch in slip.epochs.values()):
                        desk.reserved.remove(slip)
                        for state, amount in slip.charges:
                            self._owed[state] -= amount
                        self._stay(slip, desk)
        for desk in list(self._desks):
            desk.blocked.clear()
            self._dirty[desk] = None
        self._urgent = True

    def _fail_desk(self, account: Account, error: Exception) -> None:
        desk = account.gate
        assert isinstance(desk, Desk)
        for slip in [*desk.fresh, *desk.queue]:
            assert isinstance(slip, Slip)
            if slip.state in ("new", "queue"):
                desk.queue.leave(slip)
                self._refuse(slip, _again(error))
        desk.fresh.clear()
        self._dirty.pop(desk, None)

    def _fail_all(self, error: Exception, call: Call | None = None) -> None:
        for slip in call.asked if call is not None else ():
            if slip.state == "asked":
                self._refuse(slip, _again(error))
        for account in list(self.accounts.values()):
            self._fail_desk(account, error)


def _again(error: Exception) -> Exception:
    """The same error for another who waits: an exception that is raised twice would gather two tracebacks."""
    try:
        twin = type(error)(*error.args)
    except TypeError:
        return error
    twin.__cause__ = error.__cause__
    return twin


def _conflict(name: str, there: str, here: str) -> ConfigurationConflict:
    return ConfigurationConflict(
        f'"{name}" has other limits in the store: {there} there, {here} here. Use one name for one set of limits; to change '
        "them for all processes, call reconfigure() in one that has the old ones"
    )


def _stop_all() -> None:
    for courier in list(_all):
        courier.stop()


_forking: list[Courier] = []


def _before_fork() -> None:
    for courier in list(_all):
        courier.lock.acquire()  # nobody else may hold it at the moment of the fork, or nobody in the child could ever have it
        courier._io.acquire()
        courier.store.before_fork()
        _forking.append(courier)


def _after_fork_in_parent() -> None:
    while _forking:
        courier = _forking.pop()
        courier._io.release()
        courier.lock.release()


def _after_fork_in_child() -> None:
    while _forking:
        courier = _forking.pop()
        courier.store.forget()
        courier.forget()
        courier.lock.release()


atexit.register(_stop_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
