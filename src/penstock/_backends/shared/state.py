"""What the scheduler of a process knows, and the steps that its modules share.

Nothing here talks to a store, waits or reads a clock. All of it is changed in the dispatcher's thread, with the lock of
the store held.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Callable, Hashable, Iterable, Sequence
from functools import lru_cache
from heapq import heappop, heappush
from typing import Any
from weakref import WeakSet, WeakValueDictionary

from penstock._backends.charges import not_now
from penstock._backends.shared.limit_set import SharedLimitSet, SharedLimitState
from penstock._backends.shared.queue import StoreQueue
from penstock._backends.shared.requests import Booking, LeaseAsked, Refund, SharedRequest, Stage, StoreReceipts
from penstock._backends.shared.wire import NOBODY, BatchInFlight, Command, FlowName, Look, Outage
from penstock._chance import CHANCE
from penstock._concurrency.parking import Parker
from penstock._core.charging import ready_at
from penstock._core.lease import LeasePool
from penstock._numbers import show_seconds
from penstock._text import text_of
from penstock.stores.contract import Store

MARGIN = 0.002
"""Seconds before the last reserved turn at which the next batch is sent."""

LONGEST_LEAD = 0.1
"""Seconds before its moment at which a booking is claimed at the earliest."""


@lru_cache(4096)
def _digest(flow: str) -> float:
    digest = hashlib.blake2b(flow.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return float(int.from_bytes(digest, "big") >> 12)


def flow_key(flow: Hashable) -> float | None:
    """A flow's name for stores: one number in all processes for all that look alike. None: a flow of its own."""
    return None if flow is None else _digest(text_of(flow))


def again(error: Exception) -> Exception:
    """The same error for another caller: an exception that is raised twice would gather two tracebacks."""
    try:
        twin = type(error)(*error.args)
    except TypeError:
        return error
    twin.__cause__ = error.__cause__
    return twin


class SchedulerState:
    """What is known, what waits, and what is to be said.

    Attributes:
        store: Its facts count here (how much fits into a batch, what can be decided together); it is never asked.
        owner: The number of this process among all that ask the store.
        limit_sets: By name.
        queues: All queues.
        dirty: Queues that must be looked at.
        urgent: Whether there is something to say that cannot wait for the next batch.
        round_trip: Seconds that the store takes to answer, on average.
        lateness: Seconds by which this process is late where it is to ask at a moment, on average.
        commands, refunds, drops, leaving, settlements, looks, owed, renewing: What is to be said.
        changes: Limit sets with new limits.
        to_read: Limit sets of which nothing is counted here: whether others count something is to be read.
        to_watch: Queues whose rows are to be looked at, and which, for those that wait for places there.
        change_at: Until then the store is not told of these, as it did not answer the last time; -inf: it did.
        woken: Parkers to wake, once the lock is free.
        separate_until: Until then each batch is about one queue: a batch about several failed, and one of them is to
            blame.
        apart: Since the store does not answer, this process decides by itself: the epoch of what it grants; None: it
            does not.
        fallback_epochs: Those of all such times.
        for_later: Refunds, and commands that all processes must hear, for the store when it answers.
        silent: Nodes of the store that do not answer, as `Store.node_of` names them.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self.limit_sets: WeakValueDictionary[str, SharedLimitSet] = WeakValueDictionary()
        self.queues: WeakSet[StoreQueue] = WeakSet()
        self.begin()

    def begin(self) -> None:
        """Forget all that wait."""
        self._chance = random.Random(CHANCE.getrandbits(64))
        self.owner = float(self._chance.getrandbits(52))
        self.dirty: dict[StoreQueue, None] = {}
        self.urgent = False
        self.commands: list[Command] = []
        self.refunds: list[Refund] = []
        self.drops: list[Booking] = []
        self.leaving: list[tuple[FlowName, float, SharedLimitState]] = []  # as `BatchInFlight.leave` takes them
        self.settlements: dict[StoreReceipts, None] = {}
        self.looks: list[Look] = []
        self.owed: dict[SharedLimitState, float] = {}
        self.renewing: dict[SharedLimitSet, None] = {}
        self.changes: dict[SharedLimitSet, None] = {}
        self.to_read: dict[SharedLimitSet, None] = {}
        self.to_watch: dict[StoreQueue, set[SharedLimitSet]] = {}
        self.change_at = -math.inf
        self.woken: list[Parker] = []
        self.round_trip = self.lateness = 0.0
        self.separate_until = -math.inf
        self.separate = False
        self.apart: float | None = None
        self.fallback_epochs: set[float] = set()
        self.for_later: tuple[list[Refund], list[Command]] = ([], [])
        self.silent: dict[object, Outage] = {}
        self._alarms: list[tuple[float, int, Callable[[float], None]]] = []
        self._alarm_count = 0

    def forget(self) -> None:
        """In the child of a fork: all that waits and all that is held is the parent's."""
        for queue in self.queues:
            queue.forget()
        for limit_set in list(self.limit_sets.values()):
            limit_set.places.clear()
            limit_set.renew_at = math.inf
            limit_set.confirming = False
            for state in limit_set.order:
                state.pool = LeasePool()  # a lease is used by one process
        self.begin()

    # Alarms

    def at(self, moment: float, ring: Callable[[float], None]) -> None:
        self._alarm_count += 1
        heappush(self._alarms, (moment, self._alarm_count, ring))

    def ring(self, now: float) -> None:
        while self._alarms and self._alarms[0][0] <= now:
            heappop(self._alarms)[2](now)

    def next_alarm(self) -> float:
        return self._alarms[0][0] if self._alarms else math.inf

    def look_at(self, queue: StoreQueue, moment: float) -> None:

        def ring(_: float) -> None:
            self.dirty[queue.standing()] = None

        self.at(moment, ring)

    def speak_at(self, moment: float) -> None:
        """Tell the store at that moment what there is to say, if no batch has told it before."""

        def ring(_: float) -> None:
            self.urgent = self.urgent or bool(self.refunds or self.renewing)

        self.at(moment, ring)

    def look_again(self, queue: StoreQueue, moment: float, now: float) -> None:
        """Look at a queue at that moment, unless it will be looked at before."""
        if not now < queue.alarm <= moment:
            queue.alarm = moment
            self.look_at(queue, moment)

    # Of a request

    @staticmethod
    def queue_of(request: SharedRequest) -> StoreQueue:
        state: SharedLimitState = request.charges[0][0]
        return state.limit_set.queue

    def grant(self, request: SharedRequest, now: float) -> None:
        """Let a request go."""
        request.granted_at = now
        request.stage = Stage.GRANTED
        request.info.granted += 1
        self.woken.append(request.parker)

    def refuse(self, request: SharedRequest, error: Exception) -> None:
        request.error = error
        request.stage = Stage.REFUSED
        request.info.refused += 1
        self.woken.append(request.parker)

    def fail_queue(self, limit_set: SharedLimitSet, error: Exception) -> None:
        """Tell all that wait behind a limit set that there is no answer, and why."""
        queue = limit_set.queue
        waiting: list[Any] = [*queue.fresh, *queue.waiters]
        for request in waiting:
            if request.stage in {Stage.NEW, Stage.QUEUED}:
                queue.waiters.leave(request)
                self.refuse(request, again(error))
        queue.fresh.clear()
        self.dirty.pop(queue, None)

    def fail_all(self, error: Exception) -> None:
        for limit_set in list(self.limit_sets.values()):
            self.fail_queue(limit_set, error)

    def answer_looks(self, looks: Iterable[Look], error: Exception | None) -> None:
        """Tell callers that want to see how things stand that the answer is there, or why there is none."""
        for look in looks:
            look.error = error
            look.done = True
            if look.parker is not None:
                self.woken.append(look.parker)

    def refuse_late(self, request: SharedRequest, wait: float, blocker: str | None) -> None:
        bound = ""
        if request.max_wait is not None and request.max_wait <= request.time_left:
            bound = f"max_wait is {show_seconds(request.max_wait)}" if request.max_wait else ""
        else:
            bound = f"the enclosing deadline was {show_seconds(max(0.0, request.time_left))} away"
        self.refuse(request, not_now(request.charges, wait, blocker, request.info.name, bound))

    def expected(self, request: SharedRequest, queue: StoreQueue, now: float) -> tuple[float, str | None]:
        """When a request would have its turn, as far as this process knows, and what it waits for."""
        if request.subqueue is not None:
            ahead = queue.waiters.queued_ahead(request)
            charges = [(state, amount + ahead.get(state, 0.0)) for state, amount in request.charges]
        else:
            charges = [(state, amount + state.queued) for state, amount in request.charges]
        if queue.lease is not None:  # what is held here need not come from the store
            charges = [(state, max(0.0, amount - state.pool.left)) for state, amount in charges]
        ready, state = ready_at(charges, now)
        return ready, self.blocker(request, state, ready)

    @staticmethod
    def blocker(request: SharedRequest, state: Any, ready: float) -> str | None:
        """What a request waits for: a limit, or its pause; None: the queue."""
        if state is None:
            return None
        return "pause" if state.paused_until >= ready else request.backend.plan().label(state)

    def line_up(self, request: SharedRequest, queue: StoreQueue, now: float, *, first: bool = False) -> None:
        """Let a request join the queue, unless it would wait too long there.

        `first`: the store is asked for it at once, and knows what other processes have given back meanwhile.
        """
        request.stage = Stage.QUEUED
        self._join(request, queue, now)
        if first or request.latest == math.inf:
            return
        if all(state.limit_set.known for state, _ in request.charges):
            ready, blocker = self.expected(request, queue, now)
            if blocker == "pause" and not queue.blocked:
                return  # another process may have lifted it: the store knows
            if request.latest < ready < math.inf:
                queue.waiters.leave(request)
                self.refuse_late(request, ready - now, blocker)

    def stay(self, request: SharedRequest, queue: StoreQueue, now: float) -> None:
        """Let a request that was asked for and had no turn stand where it stood; at the end if it stood nowhere yet."""
        request.batch = None
        request.stage = Stage.QUEUED
        if request.number:
            queue.waiters.restore(request)
        else:
            self._join(request, queue, now)

    def take_out(self, request: SharedRequest, queue: StoreQueue) -> None:
        """Take a waiter out that has left: what the store was told of it is not needed any more."""
        request.stage = Stage.GONE
        queue.waiters.leave(request)
        if request.flow in queue.told and not queue.waiters.waits(request.flow):
            queue.told.discard(request.flow)
            self.depart(request, queue, 0.0)
        for booking in [each for each in queue.bookings if each.flow == request.flow]:
            if not queue.is_of_use(booking):
                queue.bookings.remove(booking)
                self.drop(booking, queue)
        self.dirty[queue] = None

    def take_out_all_of(self, home: object, queue: StoreQueue) -> None:
        """Take out the waiters of a closed loop, which would use the limit for no call and keep the others waiting."""
        waiters: list[Any] = list(queue.waiters)
        for request in waiters:
            if request.parker.home is home:
                self.take_out(request, queue)

    def next_of(self, queue: StoreQueue, now: float) -> Any:
        """The request whose turn is next; None: there is none."""
        while heads := queue.waiters.heads(now):
            first: Any = heads[0][1]
            if not first.abandoned:
                return first
            self.take_out_all_of(first.parker.home, queue)
        return None

    @staticmethod
    def _join(request: SharedRequest, queue: StoreQueue, now: float) -> None:
        arrived = request.arrived
        queue.waiters.join(request, now)
        request.arrived = arrived  # when it was asked for, which is before it came here

    # Of a batch that was not decided: its requests wait again, or are told why not, and the rest is said anew

    def line_up_again(self, batch: BatchInFlight, now: float) -> None:
        """What a batch asks for waits where it was before that was written."""
        for request in reversed(batch.asked):
            if type(request) is LeaseAsked:
                self.dirty[request.queue.standing()] = None
            elif request.stage is Stage.ASKED and request.batch is batch:
                queue = self.queue_of(request)
                if request.booking is not None and request.booking.due < math.inf:
                    queue.bookings.append(request.booking)
                self.stay(request, queue, now)
                self.dirty[queue] = None

    def unsend(self, batch: BatchInFlight, now: float) -> None:
        """A batch was not decided: everything is as it was before it was written."""
        self.line_up_again(batch, now)
        batch.asked = []
        self.drops += batch.drops
        self.commands += batch.commands
        self.refunds += batch.refunds
        self.looks += batch.looks
        for settlement in batch.settlements:
            if settlement.receipts is not None:
                settlement.receipts.not_charged(settlement.debits)
                self.settlements[settlement.receipts] = None
            else:
                for debit in settlement.debits:
                    self.owe(debit.state, debit.amount)
        self.urgent = bool(self.commands or self.refunds or self.drops or self.settlements or self.looks or self.owed)

    def refuse_asked(self, batch: BatchInFlight, error: Exception) -> None:
        """Tell all that wait for the answer to a batch that there is none, and why."""
        for request in batch.asked:
            if type(request) is not LeaseAsked and request.stage is Stage.ASKED and request.batch is batch:
                self.refuse(request, again(error))
        self.answer_looks(batch.looks, error)
        batch.looks = []

    # Of the store

    @property
    def lead(self) -> float:
        """Seconds before its moment at which a booking is claimed: the way, and this thread's usual lateness."""
        return min(MARGIN + 1.5 * self.round_trip + 2 * self.lateness, LONGEST_LEAD)

    def was_late(self, seconds: float) -> None:
        """A booking was claimed so much later than it should have been."""
        self.lateness += (seconds - self.lateness) / 8

    def book(self, request: SharedRequest) -> Booking:
        """A booking for a request, of which the store has not heard yet."""
        return Booking(float(self._chance.getrandbits(52) or 1), request)

    def drop(self, booking: Booking, queue: StoreQueue) -> None:
        """Tell the store, with the next batch, that a booking is not needed any more: those behind it come sooner."""
        self.drops.append(booking)
        self._depart_with_all(booking, queue)
        if len(queue) and not booking.in_line:
            self.ask_again(queue, max(amount / of.throughput for of, amount in booking.charges))

    def silence_of(self, limit_set: SharedLimitSet) -> Outage | None:
        """The silence that holds a limit set up: of its node, or of the one that was asked for it last."""
        for silence in self.silent.values():
            if limit_set in silence.batch.offsets:
                return silence
        return self.silent.get(self.store.node_of(limit_set.name)) if self.silent else None

    def held_up(self, queue: StoreQueue) -> Outage | None:
        """The silence that holds up all that waits in a queue."""
        for limit_set in queue.sets:
            silence = self.silence_of(limit_set)
            if silence is not None:
                return silence
        return None

    def fits(self, batch: BatchInFlight, limit_set: SharedLimitSet) -> bool:
        """Whether a limit set can be decided together with what is in the batch already."""
        if self.silent and self.silence_of(limit_set) is not None:
            return False
        group = self.store.group_of(limit_set.name)
        if self.separate:
            group = (group, id(limit_set.queue))
        if batch.group is NOBODY:
            batch.group = group
        return bool(batch.group == group)

    def all_fit(self, batch: BatchInFlight, charges: Sequence[tuple[Any, float]]) -> bool:
        return all(self.fits(batch, state.limit_set) for state, _ in charges)

    def flow_name(self, flow: Hashable, queue: StoreQueue) -> FlowName:
        """A flow as the store knows it. Calls without a flow are one flow of this process."""
        weights = queue.waiters.weights
        weight = weights.get(flow, 1.0) if weights else 1.0
        return FlowName(self.owner, 0.0, weight) if flow is None else FlowName(flow, self.owner, weight)  # type: ignore[arg-type]  # a flow is its key here

    def give_back(self, request: SharedRequest) -> None:
        """Give what a request was granted back to the store, with the next batch."""
        for (state, amount), receipt in zip(request.charges, request.receipts, strict=True):
            self.refunds.append(Refund(state, amount, request.epochs[state.limit_set], receipt))
        self._depart_with_all(request, self.queue_of(request))

    def _depart_with_all(self, of: SharedRequest | Booking, queue: StoreQueue) -> None:
        self.depart(of, queue, max(amount / state.throughput for state, amount in of.charges))
        self.urgent = True

    def depart(self, of: SharedRequest | Booking, queue: StoreQueue, seconds: float) -> None:
        """Tell the store, with the next batch, that a flow gives up a turn of so many seconds of throughput."""
        flow = self.flow_name(of.flow, queue)
        self.leaving.append((flow, seconds / flow.weight, of.charges[0][0]))

    def something_to_say_but_for(self, queues: set[StoreQueue]) -> bool:
        """Whether the store is to be told something that is not about these queues."""
        about = [
            *(command.limit_set for command in self.commands),
            *(refund.state.limit_set for refund in self.refunds),
            *(drop.charges[0][0].limit_set for drop in self.drops),
            *(look.limit_set for look in self.looks),
            *(state.limit_set for state in self.owed),
        ]
        if any(limit_set.queue not in queues for limit_set in about):
            return True
        return any(receipts.queue() not in queues and not receipts.open() for receipts in self.settlements)

    def owe(self, state: SharedLimitState, amount: float) -> None:
        """Charge the store, when it answers, for what this process has granted by itself."""
        self.owed[state] = max(0.0, self.owed.get(state, 0.0) + amount)

    def answers_again(self) -> None:
        """The store decides again, and hears what was meant for it meanwhile."""
        self.apart = None
        refunds, commands = self.for_later
        self.refunds += refunds
        self.commands[:0] = commands
        self.for_later = ([], [])

    def freed(self, state: SharedLimitState, amount: float) -> None:
        """Something is on its way back to the store: the next waiter may ask for it."""
        if state in state.limit_set.places:
            state.limit_set.places[state] -= amount
        queue = state.limit_set.queue
        if len(queue):
            queue.unblock(state)
            queue.hurry()
            self.dirty[queue] = None

    def ask_again(self, queue: StoreQueue, seconds: float = math.inf) -> None:
        """Something has come back, as much as flows in in so many seconds: those that wait ask so much sooner."""
        queue.blocked.clear()
        queue.hurry(seconds)
        self.dirty[queue] = None

    def renew_later(self, limit_set: SharedLimitSet, now: float) -> None:
        """See to it that places that are held are renewed in time."""
        if limit_set.renew_at == math.inf:
            limit_set.renew_at = now + limit_set.place_ttl / 3
            self.renewing[limit_set] = None
            self.speak_at(limit_set.renew_at)
