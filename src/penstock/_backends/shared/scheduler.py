"""The scheduler: which requests a process asks its store for, and what it does with the answers.

It decides, and nothing else: the dispatcher is the thread and the way to the store, so `benchmarks/scale.py` can drive
a thousand schedulers through one virtual time. `take_in` and the `on_…` methods take in what came, `turn` returns what
to ask; `apply` takes in the answer.

**The head reserves.** The store is asked for the first waiter and for those that could go within about 20 ms; the rest
hold nothing. A request that is granted for a moment to come is woken then. If its caller leaves before, the
reservation is *handed on* to the next waiter that can use it; it goes back to the store only if there is none. So the
quota is used even if most give up.

The store decides between the flows of several processes (`_core.flows`): each request names its flow, and a request
that is told to let another flow go first returns to the queue.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from penstock._backends.charges import queue_full
from penstock._backends.shared.agreement import DIVIDED, Agreement
from penstock._backends.shared.asking import LOOKAHEAD, Asking, Writing
from penstock._backends.shared.leasing import Leasing
from penstock._backends.shared.limit_set import SharedLimitSet
from penstock._backends.shared.lines import ROUNDING, Lines
from penstock._backends.shared.queue import FREED_WATCHED, PAUSE_WATCHED, POLL, StoreQueue
from penstock._backends.shared.requests import LeaseAsked, Refund, SharedRequest, Stage, StoreReceipts
from penstock._backends.shared.settling import Settling
from penstock._backends.shared.state import SchedulerState, again
from penstock._backends.shared.wire import Admitted, BatchInFlight, BookedFor, Command, Look, NotNow, OthersTurn, Outage
from penstock.errors import PenstockError, StoreError
from penstock.stores.contract import Reply, Row, Store

_EVER = math.inf
_NEW, _ASKED, _GRANTED = Stage.NEW, Stage.ASKED, Stage.GRANTED  # to look members up costs as much as a call on 3.11

UNCONFIRMED = 2.5 * LOOKAHEAD
"""Seconds for which a reservation is used without asking whether all was paused, where the store announces nothing."""

SEPARATE = 10.0
"""Seconds for which each batch is about one queue, after one about several has failed."""


class Scheduler:
    """Decides for one store in one process. Every method is called with the lock of the store held."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.state = SchedulerState(store)
        self.outage: Outage | None = None
        self._current: BatchInFlight | None = None  # that was written last, until its answer was taken in
        self._writing = Writing(self.state)
        self._asking = Asking(self.state, self._writing)
        self._leasing = Leasing(self.state, self._writing)
        self._settling = Settling(self.state)
        self._lines = Lines(self.state)
        self._agreement = Agreement(self.state, self._leasing)

    def forget(self) -> None:
        """In the child of a fork: nothing waits, nothing is held, and the store may answer."""
        self.outage = None
        self.state.forget()

    # Turns

    def take_in(self, requests: Sequence[SharedRequest], now: float) -> None:
        """Take in new requests."""
        backend = fresh = None
        for request in requests:
            if (
                request.backend is backend
                and fresh is not None
                and request.latest == _EVER
                and request.info.max_queue is None
                and request.stage is _NEW
            ):
                fresh.append(request)  # as of the one before, there is nothing to be said of it
            else:
                backend, fresh = request.backend, self._enter(request, now)

    def turn(self, now: float) -> BatchInFlight | None:
        """Let happen what is due, and return what to ask next; None: nothing."""
        state = self.state
        state.ring(now)
        state.separate = now < state.separate_until
        if not self.open():
            return None
        batch = self._current = BatchInFlight()
        if state.urgent:
            self._settling.write(batch, now)
        for queue in list(state.dirty):
            if len(batch.asked) >= self.store.batch or batch.width > 512:
                break
            if queue.moved:
                state.dirty.pop(queue)
                state.dirty[queue.standing()] = None
            elif state.silent and state.held_up(queue) is not None:
                state.dirty.pop(queue)  # until there is an answer
            elif queue.lease is not None and not state.apart:
                self._leasing.ask(queue, batch, now)
            else:
                self._asking.ask(queue, batch, now)
            if not batch.offsets and queue in state.dirty:
                self._refuse_divided(queue)  # the first of them does not fit into any batch
        if batch.offsets and (state.refunds or state.drops):
            self._settling.write_refunds(batch)  # those that could wait
        return batch if batch.offsets else None

    def _refuse_divided(self, queue: StoreQueue) -> None:
        """Refuse requests for limits that the store cannot decide together, as it did not say when they were joined."""
        state, waiting = self.state, [*queue.fresh, *queue.waiters]
        for request in waiting:
            names = [of.limit_set.name for of, _ in request.charges]
            if len({self.store.group_of(name) for name in names}) > 1:
                queue.waiters.leave(request)
                state.refuse(request, StoreError(f"{', '.join(dict.fromkeys(names))}: {DIVIDED}"))
        queue.fresh = deque(request for request in queue.fresh if request.error is None)

    def open(self) -> bool:
        """Whether anything decides."""
        return self.outage is None or self.outage.fallback is not None

    def idle(self, now: float) -> float | None:
        """Seconds until something must be done if nothing comes in; None: for ever."""
        state = self.state
        if self._changes(now) or ((state.dirty or state.urgent) and self.open()):
            return 0.0
        alarm = state.next_alarm()
        return None if alarm == math.inf else min(max(0.0, alarm - now), 3600.0)

    def take_changes(self, now: float) -> list[SharedLimitSet]:
        """Limit sets whose new limits the store must hear of, and can."""
        changes = self._changes(now)
        for limit_set in changes:
            del self.state.changes[limit_set]
        return changes

    def _changes(self, now: float) -> list[SharedLimitSet]:
        if self.outage is not None or now < self.state.change_at:
            return []
        return [limit_set for limit_set in self.state.changes if self.state.silence_of(limit_set) is None]

    # What comes in

    def _enter(self, request: SharedRequest, now: float) -> deque[Any] | None:
        """Take in a request; return where others of its backend may go unseen, if they wait for as long as it takes."""
        state, queue = self.state, request.charges[0][0].limit_set.queue
        if queue.lease is not None:
            queue.coming -= 1
        if request.stage is not _NEW:
            return None
        if self.outage is not None and not self.open():
            state.refuse(request, again(self.outage.error))
            return None
        if state.silent:
            silence = state.held_up(queue)
            if silence is not None and silence.told:
                state.refuse(request, again(silence.error))
                return None
        changed = any(of.limit_set.version > 1 for of, _ in request.charges)  # perhaps since it was bound to them
        if changed and not self._agreement.charge_anew(request, now):
            return None
        bound = request.info.max_queue
        if bound is not None and request.latest > now and len(queue) >= bound:
            ready, blocker = state.expected(request, queue, now)
            if now < ready <= request.latest:  # else it is refused, as it does not wait so long
                state.refuse(request, queue_full(bound, ready - now, blocker, request.info.name))
                return None
        if now < request.latest < math.inf:
            state.at(request.latest, lambda at: self._too_late(request, at))
        queue.fresh.append(request)
        state.dirty[queue] = None
        return None if changed or queue.lease is not None or state.silent else queue.fresh

    def on_leave(self, request: SharedRequest, now: float) -> None:
        """The caller of a request has left, however far that had come."""
        state, queue = self.state, self.state.queue_of(request)
        stage, request.stage = request.stage, Stage.GONE
        request.info.cancelled += 1
        if stage is Stage.QUEUED:
            state.take_out(request, queue)
        elif stage is Stage.RESERVED:
            queue.reserved.remove(request)
            self._hand_on(request, queue, now)
        elif stage is Stage.GRANTED:
            request.info.granted -= 1
            if request.shares is not None:
                self._leasing.put_back(request.shares, queue, now)
            else:
                self._hand_on(request, queue, now)
        # NEW is seen when the request comes in or is looked at, ASKED when the answer is there

    def on_settled(self, receipts: StoreReceipts, now: float) -> None:
        """The true cost of a grant is known."""
        if receipts.queue().lease is None or not self._leasing.settle(receipts, now):
            self.state.settlements[receipts] = None
            self.state.urgent = True

    def on_short(self, queue: StoreQueue) -> None:
        """Less is held there than will be used."""
        self.state.dirty[queue.standing()] = None

    def on_command(self, command: Command) -> None:
        """The store is to be told something."""
        self.state.commands.append(command)
        self.state.urgent = True

    def on_resumed(self, command: Command) -> None:
        """The pauses of some limits end: ask for those that waited for that."""
        self.on_command(command)
        self.state.ask_again(command.limit_set.queue)

    def on_change(self, limit_set: SharedLimitSet, now: float) -> None:
        """Limits were replaced in this process."""
        self.state.changes[limit_set] = None
        self._agreement.recharge(limit_set, now)

    def on_look(self, look: Look) -> None:
        """A caller wants to see how a limit set stands."""
        down = self.outage or self.state.silence_of(look.limit_set)
        if down is not None and down.told:
            self.state.answer_looks([look], down.error)
            return
        self.state.looks.append(look)
        self.state.urgent = True

    def on_announced(self, name: str) -> None:
        """Another process has paused or changed something under these names; empty: under any name."""
        state = self.state
        for limit_set in [state.limit_sets.get(name)] if name else list(state.limit_sets.values()):
            if limit_set is None:
                continue
            if not limit_set.order:
                state.to_read[limit_set] = None
                continue
            self._confirm(limit_set)
            state.ask_again(limit_set.queue)

    def on_terms(self, limit_set: SharedLimitSet, text: str | None, now: float) -> None:
        """The store has said what others count under a name of which nothing is counted here."""
        if self._agreement.read(limit_set, text, now):
            self._agreement.recharge(limit_set, now)

    def on_freed(self, name: str, seconds: float) -> None:
        """Another process has given back as much as flows in in so many seconds: bookings come so much sooner."""
        limit_set = self.state.limit_sets.get(name)
        if limit_set is not None and len(limit_set.queue):
            self.state.ask_again(limit_set.queue, seconds)

    def on_next_in_line(self, name: str, number: float) -> None:
        """The booking of that number can have its places."""
        limit_set = self.state.limit_sets.get(name)
        if limit_set is not None:
            self._lines.call_up(limit_set.queue, number)

    def on_rows(self, queue: StoreQueue, rows: Mapping[SharedLimitSet, Row | None], now: float, server: float) -> None:
        """The store has shown the rows of a queue. `server`: its time."""
        self._lines.on_rows(queue, rows, now, server)

    def on_stop(self, now: float) -> None:
        """Refuse all that comes after this: it would wait for ever."""
        state = self.state
        closed = StoreError(f"{self.store!r} was closed while this call was waiting")
        for queue in list(state.queues):
            for request in queue.reserved:
                state.give_back(request)
                state.refuse(request, again(closed))
            queue.reserved.clear()
            for booking in queue.bookings:
                state.drop(booking, queue)
            queue.bookings.clear()
            for of in queue.states():
                self._leasing.return_leases(of, of.pool.drain())
        state.urgent = state.urgent or bool(state.refunds or state.drops)
        for silence in state.silent.values():
            self.state.refuse_asked(silence.batch, closed)
        self.state.fail_all(closed)

    def on_end(self) -> None:
        """Asking has ended: whether the store answers is not known."""
        self.outage = None
        self.state.answers_again()
        self.state.silent.clear()

    def _confirm(self, limit_set: SharedLimitSet) -> None:
        """Ask the store whether the reservations still hold, before they are used."""
        if self.outage is not None or self.state.silence_of(limit_set) is not None:
            return
        limit_set.confirming = True
        self.on_look(Look(limit_set, None))

    # Reservations

    def _too_late(self, request: SharedRequest, now: float) -> None:
        """The longest that a request would wait is over."""
        if request.stage not in {Stage.QUEUED, Stage.NEW}:
            return
        state, queue = self.state, self.state.queue_of(request)
        ready, blocker = state.expected(request, queue, now)
        if request.stage is Stage.QUEUED:
            queue.waiters.leave(request)
            state.dirty[queue] = None
        if ready > now:
            state.refuse_late(request, ready - now, blocker)
            return
        silence = state.held_up(queue)
        problem = queue.problem if silence is None else silence.error
        if problem is not None:
            state.refuse(request, again(problem))
        elif request.stage is Stage.QUEUED:  # it waited for the store, not for its turn: ask for it now, or never
            request.stage = Stage.NEW
            queue.fresh.append(request)

    def _reserve(self, request: SharedRequest, queue: StoreQueue, due: float) -> None:
        request.stage = Stage.RESERVED
        request.due = due
        queue.reserved.append(request)
        self.state.at(due, lambda now: self._due(request, now))

    def _due(self, request: SharedRequest, now: float) -> None:
        """The moment for which a request has a reservation is there."""
        if request.stage is not Stage.RESERVED or request.due > now:
            return
        limit_sets = {of.limit_set for of, _ in request.charges}
        if not self.store.hears and request.waited > UNCONFIRMED and not request.confirmed and self.outage is None:
            request.confirmed = True  # another process may have paused everything, and this one would not know
            for limit_set in limit_sets:
                self._confirm(limit_set)
        if any(limit_set.confirming for limit_set in limit_sets):
            return
        queue = self.state.queue_of(request)
        queue.reserved.remove(request)
        if request.abandoned:
            request.stage = Stage.GONE
            self._hand_on(request, queue, now)
            return
        self.state.grant(request, now)
        self.state.dirty[queue] = None

    def _hand_on(self, request: SharedRequest, queue: StoreQueue, now: float) -> None:
        """Let the next waiter have what a request was granted, or give it back to the store."""
        state = self.state
        heir: Any = state.next_of(queue, now)
        mine = dict(request.charges)
        wanted = {} if heir is None else dict(heir.charges)
        fits = heir is not None and mine.keys() == wanted.keys() and all(wanted[of] <= mine[of] for of in mine)
        if not fits or max(request.due, now) > heir.latest:
            state.give_back(request)
            state.dirty[queue] = None
            return
        queue.waiters.take(heir)
        receipts = {of: receipt for (of, _), receipt in zip(request.charges, request.receipts, strict=True)}
        for of, amount in request.charges:
            if amount > wanted[of]:
                state.refunds.append(Refund(of, amount - wanted[of], request.epochs[of.limit_set], receipts[of]))
                state.urgent = True
        heir.receipts, heir.epochs = [receipts[of] for of, _ in heir.charges], request.epochs
        heir.waited, heir.confirmed = request.waited, request.confirmed
        self._reserve(heir, queue, max(request.due, now))
        if request.due <= now:
            self._due(heir, now)

    # Answers

    def apply(self, batch: BatchInFlight, reply: Reply, now: float) -> None:
        """Take in what the store has decided; StoreError: it makes no sense, and nothing was taken in."""
        if reply.others:
            adopted = self._agreement.disagree(batch, reply.others, now)
            # What was asked waits again, and is charged on the limits of now like all that wait.
            self.state.unsend(batch, now)
            for limit_set in adopted:
                self._agreement.recharge(limit_set, now)
            return
        verdicts = batch.read(reply)
        self.state.round_trip += (now - batch.sent - self.state.round_trip) / 8
        self._mirror(batch, reply, now)
        if self.state.apart:
            for debit in [debit for settlement in batch.settlements for debit in settlement.debits]:
                self.state.owe(debit.state, debit.amount)
        woken, asked, granted, epochs = self.state.woken, _ASKED, _GRANTED, batch.epochs
        plain = not self.state.apart and not any(of.renewed for limit_set in batch.offsets for of in limit_set.order)
        refused: list[SharedRequest] = []
        served: dict[StoreQueue, None] = {}
        for request, verdict in zip(batch.asked, verdicts, strict=True):
            if isinstance(verdict, tuple):
                request.receipts = verdict
                request.epochs = epochs
                if plain and request.stage is asked and request.batch is batch:
                    request.granted_at = now  # as `state.grant`, for most
                    request.stage = granted
                    request.info.granted += 1
                    woken.append(request.parker)
                else:
                    self._admitted(request, batch, 0.0, now)
                continue
            if type(request) is LeaseAsked:
                served[request.queue.standing()] = None
                if isinstance(verdict, Admitted):
                    self._leasing.granted(request, verdict, batch, now, reply.now)
                else:
                    self._leasing.refused(request, verdict, now)
                continue
            if isinstance(verdict, Admitted):
                request.receipts, request.epochs = verdict.receipts, batch.epochs
                self._admitted(request, batch, verdict.wait, now)
                continue
            if isinstance(verdict, BookedFor):
                self._booked(request, verdict, now)
            if request.batch is batch and request.stage is Stage.ASKED:
                if batch.misdated and isinstance(verdict, NotNow):
                    refused.append(request)  # perhaps by mistake: it is asked for again at once
                else:
                    self._not_admitted(request, verdict, now, refused)
        for request in reversed(refused):
            queue = self.state.queue_of(request)
            self.state.stay(request, queue, now)
            self.state.dirty[queue] = None
        for queue in served:
            self._leasing.serve(queue, now)
        for limit_set in batch.offsets:
            if batch.misdated:
                self._confirm(limit_set)
            self._look_at_reservations(limit_set, now)
        # What came back may be enough for more than was asked for.
        gave_back = {refund.state.limit_set for refund in batch.refunds}
        for limit_set in gave_back.union(batch.offsets):
            if len(limit_set.queue.waiters) and (limit_set in gave_back or limit_set.queue.can_go(now)):
                self.state.dirty[limit_set.queue] = None
        self._lines.look(batch, reply, now)
        self.state.answer_looks(batch.looks, None)
        batch.asked = []  # requests name the batch, too: without this, only the garbage collector could free them

    def _mirror(self, batch: BatchInFlight, reply: Reply, now: float) -> None:
        """Note how things stand."""
        for (limit_set, offset), order in zip(batch.offsets.items(), batch.orders, strict=True):
            limit_set.agreed = True
            limit_set.confirming = False
            limit_set.queue.problem = None
            if not self.state.apart:
                limit_set.epoch = batch.epochs[limit_set]
            paused_until = limit_set.paused_until() if limit_set.queue.lease is not None else -math.inf
            if limit_set.order is order:  # else they are others since it was asked, and the next answer is about those
                limit_set.mirror(reply.states, 3 * offset, now, reply.now)
            if now < paused_until and limit_set.paused_until() < paused_until - 0.001:
                self.state.dirty[limit_set.queue] = None  # it would look at what it holds when the pause was to end

    def _admitted(self, request: SharedRequest, batch: BatchInFlight, wait: float, now: float) -> None:
        state, apart = self.state, self.state.apart
        if request.booking is not None and request.booking.in_line:
            self._lines.left(request, batch, now)
        for of, amount in request.charges:
            if of.renewed:
                limit_set = of.limit_set
                limit_set.places[of] = limit_set.places.get(of, 0.0) + amount
                state.renew_later(limit_set, now)
            if apart:
                state.owe(of, amount)
        if wait <= 0 and request.batch is batch and request.stage is Stage.ASKED:  # as most are
            state.grant(request, now)
            return
        queue = state.queue_of(request)
        queue.poll = POLL[0]
        if request.batch is not batch or request.stage is not Stage.ASKED:  # its caller has left
            request.due = now + wait
            self._hand_on(request, queue, now)
        else:
            request.waited = wait
            request.confirmed = False
            self._reserve(request, queue, now + wait)

    def _booked(self, request: SharedRequest, verdict: BookedFor, now: float) -> None:
        """The store has told a request when to come again."""
        queue, booking = self.state.queue_of(request), request.booking
        assert booking is not None, "it was asked for"
        booking.due = now + verdict.wait
        booking.claim_at = booking.due - self.state.lead
        asks = not self.store.hears and verdict.wait > 2 * FREED_WATCHED
        booking.early_at = now + FREED_WATCHED if asks else math.inf
        if verdict.in_line:
            self._lines.joined(booking, queue, now)
        booking.priority = request.priority
        if request.stage is Stage.GONE and not queue.is_of_use(booking):
            self.state.drop(booking, queue)
            return
        queue.bookings.append(booking)
        self._lines.watch(queue, now)
        self.state.dirty[queue] = None  # where nothing waits any more, it is dropped

    def _not_admitted(
        self, request: SharedRequest, verdict: NotNow | OthersTurn | BookedFor, now: float, refused: list[SharedRequest]
    ) -> None:
        queue = self.state.queue_of(request)
        if isinstance(verdict, BookedFor):
            refused.append(request)
            return
        if isinstance(verdict, OthersTurn):
            if queue.behind.get(request.flow, -math.inf) <= now:  # once a batch
                queue.waiters.delay(request.flow, verdict.ahead)
            queue.behind[request.flow] = now + verdict.wait
            refused.append(request)
            return
        wait, of = verdict.wait, verdict.limit
        paused = of.paused_until > now - ROUNDING and wait >= of.paused_until - now - ROUNDING
        if now + wait > request.latest and (wait < math.inf or request.latest <= now):
            label = "pause" if paused else request.backend.plan().label(of)
            self.state.refuse_late(request, wait, label)
            return
        refused.append(request)
        if paused:
            until = of.paused_until if self.store.hears else min(of.paused_until, now + PAUSE_WATCHED)
            queue.blocked[request] = of, max(until, now + ROUNDING)
        elif of.held:
            self._lines.not_joined(request, of, wait, now)
        elif any(each.returns_at_once for each, _ in request.charges):
            # There are no bookings of windows. The moment is known, and what others give back is heard of.
            watched = math.inf if self.store.hears else FREED_WATCHED
            queue.blocked[request] = of, now + min(max(wait, ROUNDING), watched)

    def _look_at_reservations(self, limit_set: SharedLimitSet, now: float) -> None:
        """Use the reservations that are due; give up those that a younger pause has overtaken."""
        queue = limit_set.queue
        for request in list(queue.reserved):
            if any(of.paused_until > request.due + 0.001 for of, _ in request.charges):
                queue.reserved.remove(request)
                self.state.give_back(request)
                self.state.stay(request, queue, now)
                self.state.dirty[queue] = None
            elif request.due <= now:
                self._due(request, now)

    # When the store does not decide

    def failed(self, batch: BatchInFlight, error: Exception, now: float) -> None:
        """The store said no: nothing was decided. One of the batch's queues is to blame, so ask for each by itself."""
        state = self.state
        queues = {limit_set.queue for limit_set in batch.offsets}
        for queue in queues:
            queue.problem = error
        if len(queues) > 1:
            state.separate_until = now + SEPARATE
            state.unsend(batch, now)
            return
        for request in batch.asked:
            if type(request) is LeaseAsked:
                for limit_set in list(request.queue.standing().sets):
                    state.fail_queue(limit_set, error)
            elif request.booking is not None and request.booking.due < math.inf:
                state.drops.append(request.booking)  # that it claimed: it is refused
        state.refuse_asked(batch, error)
        state.unsend(batch, now)
        state.urgent = state.something_to_say_but_for(queues)  # what is about this queue goes along with its next batch
        for limit_set in batch.offsets:
            limit_set.confirming = False
            queue = limit_set.queue
            for request in list(queue.reserved):
                if request.due <= now:
                    self._due(request, now)
            if len(queue.waiters):
                state.dirty[queue] = None

    def take_answer(self, batch: BatchInFlight, answer: Reply | Exception, now: float) -> None:
        """`apply`, or `failed` if there is nothing to apply."""
        if isinstance(answer, Exception):
            self.failed(batch, answer, now)
            return
        try:
            self.apply(batch, answer, now)
        except PenstockError as error:
            self.failed(batch, error, now)

    def break_down(self, requests: Sequence[SharedRequest], error: StoreError) -> None:
        """After a defect: tell every caller and forget all. What was reserved or leased is unused until it ends."""
        state = self.state
        known: list[Any] = [*requests]
        for queue in list(state.queues):
            known += [*queue.fresh, *queue.waiters, *queue.reserved]
        batches = [self._current, None if self.outage is None else self.outage.batch]
        batches += [silence.batch for silence in state.silent.values()]
        for batch in [batch for batch in batches if batch is not None]:
            known += [request for request in batch.asked if type(request) is not LeaseAsked]
            state.looks += batch.looks
            batch.asked, batch.looks = [], []
        for request in known:
            if request.stage not in {Stage.GRANTED, Stage.REFUSED, Stage.GONE}:
                state.refuse(request, again(error))
        state.answer_looks(state.looks, error)
        woken = state.woken
        self.forget()
        state.woken = woken
