"""The dispatcher of a store: the thread that takes what this process asks to the store, and brings the answers back.

There is one per store and process; its thread begins at first use. Whatever waits (tasks of any number of loops, of
asyncio and trio, and threads) puts a request into its inbox and parks. So one call decides for all of them, one
connection serves all, and a call's outcome is known however its callers end. Only the dispatcher's thread talks to the
store.

What is asked, and what an answer means, is the scheduler's to say. The lock of the store guards all that the scheduler
touches; it is never held while the store is being asked, nor while a user's hook is called.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import math
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import WeakSet, finalize, ref

from penstock import clock
from penstock._backends.shared import outage as outages
from penstock._backends.shared.agreement import conflict
from penstock._backends.shared.inbox import Inbox
from penstock._backends.shared.limit_set import SharedLimitSet
from penstock._backends.shared.queue import StoreQueue
from penstock._backends.shared.requests import SharedRequest
from penstock._backends.shared.scheduler import Scheduler
from penstock._backends.shared.wire import BatchInFlight, Outage
from penstock._chance import CHANCE
from penstock._concurrency.locks import new_lock
from penstock._concurrency.parking import wake_all
from penstock._concurrency.shared_state import around_forks, members
from penstock.errors import PenstockError, StoreError
from penstock.events import StoreLost, StoreRecovered, emit
from penstock.limits import Limit
from penstock.stores.contract import Batch, Reply, Row, Store, Unreachable

Message = Callable[[Scheduler, float], None]

RETRY = (0.01, 0.25)
"""Seconds, first and longest, between attempts to reach a store that does not answer."""

MISDATED = 1e6
"""Microseconds by which a store's clock must have stepped before what it was told of calendars is told again."""

_HEARD = 0.1
"""Seconds that callers wait for a store's hook: one that is quick has heard what happened before they do."""

_all: WeakSet[Dispatcher] = WeakSet()
_ended: list[bool] = []  # not empty once this process ends: no thread can be started any more
_log = logging.getLogger("penstock")


def dispatcher_of(store: Store) -> Dispatcher:
    with store.lock:
        if store.dispatcher is None:
            store.dispatcher = Dispatcher(store)
        dispatcher: Dispatcher = store.dispatcher
    return dispatcher


class Dispatcher:
    """See the module's docstring.

    Its thread holds it by a weak reference while there is nothing to do, so a store that is not referenced any more is
    freed, and its thread ends.

    Attributes:
        scheduler: What decides.
        calls: How often the store was asked.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self.lock = store.lock
        self.scheduler = Scheduler(store)
        self._begin()
        _all.add(self)

    def _begin(self) -> None:
        self.calls = 0
        self._inbox = Inbox()
        self._thread: threading.Thread | None = None
        self._stopping = False
        self._io = new_lock()  # held by the thread that talks to the store
        self._number = 0
        self._lead: float | None = None  # the store's clock ahead of ours, in microseconds
        self._events: list[StoreLost | StoreRecovered] = []  # for the store's hook, once the lock is free
        self._teller: threading.Thread | None = None  # that told it last
        finalize(self, self._inbox.put, None).atexit = False  # wakes the thread, to end

    def forget(self) -> None:
        """In the child of a fork: thread, connection and all that waits are the parent's."""
        self.scheduler.forget()
        self._begin()

    @property
    def down(self) -> StoreError | None:
        """Why the store does not answer; None: it does."""
        outage = self.scheduler.outage
        return None if outage is None else outage.error

    # From any thread

    def limit_set(
        self,
        name: str,
        limits: dict[str, tuple[Limit, ...]],
        ageing: float,
        weights: Mapping[Any, float],
        lease: float | None,
        *,
        replaces: bool,
    ) -> SharedLimitSet:
        """What this process knows of that name; ConfigurationConflict: it has other limits.

        `replaces`: these limits replace the others, and those that the store has.
        """
        with self.lock:
            state = self.scheduler.state
            found = state.limit_sets.get(name)
            if found is None:
                queue = StoreQueue(ageing, weights, lease)
                found = state.limit_sets[name] = SharedLimitSet(name, limits, queue, self.store.place_ttl, lease)
                state.queues.add(queue)
            elif found.limits() != limits or found.lease != lease:
                here = SharedLimitSet(name, limits, StoreQueue(ageing, {}, lease), self.store.place_ttl, lease).terms
                differs = found.terms.text != here.text
                if differs and not replaces:
                    raise conflict(name, str(found.terms), str(here))
                if replaces:
                    found.promise(limits, clock.now(), alone=True)
                if differs:
                    self.post(lambda scheduler, now: scheduler.on_change(found, now))
            found.replaces = replaces
            return found

    def ask(self, request: SharedRequest) -> None:
        """Send a request to the thread. Never waits; StoreError if this process is about to end."""
        if _ended:
            raise StoreError(f"{self.store!r} cannot be asked any more: this process is ending")
        self.store.in_use = True
        inbox = self._inbox
        inbox.add(request)
        if not inbox.called and inbox.promised is not request.parker.home:
            inbox.call_for(request.parker)
        if self._thread is None:
            self._start()

    def post(self, message: Message) -> None:
        """Send the thread what is to be done with the scheduler. Never waits."""
        if _ended:
            return
        self.store.in_use = True
        self._inbox.put(message)
        if self._thread is None:
            self._start()

    def _start(self) -> None:
        with self.lock:
            if self._thread is None:
                self._stopping = False
                thread = threading.Thread(
                    target=_serve, args=(ref(self), self._inbox), name=f"penstock {self.store!r}", daemon=True
                )
                thread.start()
                self._thread = thread

    def stop(self, timeout: float) -> None:
        """Send what is left to send, and end the thread; give up waiting for that after `timeout` seconds."""
        thread = self.stop_soon()
        if thread is not None:
            thread.join(timeout=timeout)

    def stop_soon(self) -> threading.Thread | None:
        """Tell the thread to end; return it, unless it is this one or there is none."""
        thread = self._thread
        if thread is None or thread is threading.current_thread():
            return None
        self._inbox.put(_Stop(self, clock.now()))
        return thread

    def on_stop(self, now: float) -> None:
        """Refuse all that wait; the thread ends once the store has heard what is left to say."""
        self._stopping = True
        self.scheduler.on_stop(now)

    # The thread

    def begin(self) -> bool:
        """Be the dispatcher's thread. False: another one is.

        A signal handler may have raised as it was started, before that was noted.
        """
        with self.lock:
            if self._thread not in (None, threading.current_thread()):
                return False
            self._thread = threading.current_thread()
            return True

    def prepare(self) -> None:
        """Get to know the store. What is wrong with it will be said to the callers that ask."""
        inbox = self._inbox
        try:
            with self._io:
                self.store.listen(lambda name, seconds: inbox.put(_Announced(name, seconds)))
                self.store.prepare()
        except StoreError:
            pass
        except Exception:  # noqa: BLE001 - whatever it is, callers hear of it when they ask
            _log.exception("%r cannot be prepared", self.store)

    def take_turn(self, requests: list[SharedRequest], messages: list[Any]) -> bool:
        """Take in what came, and ask the store what the scheduler then wants to know. False: that was the last turn."""
        try:
            with self.lock:
                changes, batch = self.decide(requests, messages, clock.now())
            self._wake()
            for limit_set in changes:
                self._change(limit_set)
            if self.scheduler.state.to_read:
                self._read_terms()
            if self.scheduler.state.to_watch:
                self._watch()
            if batch is not None:
                self._carry(batch)
        except Exception as error:  # noqa: BLE001 - a defect, ours or a store's
            _log.exception("the dispatcher of %r has failed", self.store)
            self.break_down(requests, messages, error)
        return not self._stopping or (self.scheduler.state.urgent and self.scheduler.open())

    def break_down(self, requests: list[SharedRequest], messages: list[Any], error: BaseException) -> None:
        """After a defect, ours or a store's: every caller hears of it, and what comes next begins anew."""
        failed = StoreError(f"the dispatcher of {self.store!r} has failed: {error!r}")
        failed.__cause__ = error
        with self.lock:
            self.scheduler.break_down(requests, failed)
            for message in messages:
                with contextlib.suppress(Exception):
                    message(self.scheduler, clock.now())
        self._wake()

    def end(self) -> None:
        with self._io:
            self.store.disconnect()
        with self.lock:
            self.scheduler.on_end()
            waits = any(len(queue) for queue in self.scheduler.state.queues)  # those that came after the word to end
        self._thread = None
        requests, messages = self._inbox.receive(0.0)
        came = [message for message in messages if not isinstance(message, _Announced)]
        self._inbox.put_back(requests, came)
        if (requests or came or waits) and not _ended:
            self._start()

    def decide(
        self, requests: list[SharedRequest], messages: list[Any], now: float
    ) -> tuple[list[SharedLimitSet], BatchInFlight | None]:
        """What to tell and to ask the store after what came: new limits, and then a batch."""
        scheduler = self.scheduler
        for message in messages:
            if isinstance(message, _Stop):  # it refuses all that came before, and no others
                scheduler.take_in([request for request in requests if request.arrived <= message.moment], now)
                requests = [request for request in requests if request.arrived > message.moment]
            message(scheduler, now)
        scheduler.take_in(requests, now)
        changes = scheduler.take_changes(now)
        return changes, None if changes else scheduler.turn(now)

    def _wake(self) -> None:
        """With the lock free: tell the store's hook what happened, and wake the callers that have an answer."""
        if self._events:
            self._tell()
        state = self.scheduler.state
        if state.woken:
            with self.lock:
                woken, state.woken = state.woken, []
            wake_all(woken)

    def _tell(self) -> None:
        """Call the store's hook in a thread of its own: it may be slow, and may use limiters of this very store."""
        hook, events, self._events = self.store.on_event, self._events, []
        if hook is not None:
            arguments = (hook, events, self._teller)
            self._teller = threading.Thread(target=_tell_all, args=arguments, name="penstock tells", daemon=True)
            self._teller.start()
            self._teller.join(_HEARD)

    # The way to the store

    def pack(self, batch: BatchInFlight) -> Batch:
        """A batch as the store is sent it, now."""
        self._number += 1
        self.calls += 1
        now = batch.sent = clock.now()
        lead = clock.wall() * 1e6 - now * 1e6 if self._lead is None else self._lead
        return Batch(batch.terms, batch.operations, self.scheduler.state.owner, self._number, now * 1e6 + lead)

    def _carry(self, batch: BatchInFlight) -> None:
        """Ask the store, again and again for as long as it is patient, and let the scheduler take in the answer."""
        packed = self.pack(batch)
        outage = self.scheduler.outage
        store: Store = self.store if outage is None or outage.fallback is None else outage.fallback
        answer: Reply | Exception
        try:
            answer = self._ask(store, packed, batch.sent + self.store.patience)
        except Unreachable as error:
            node = self._node_of(packed, store)
            if node is None:
                self._lost(batch, packed, error)
            else:
                self._node_silent(node, Outage(batch, packed, error))
            return
        except PenstockError as error:
            answer = error
        with self.lock:
            self.apply(batch, answer, clock.now(), ours=store is not self.store)
        self._wake()
        if (
            (batch.announce or batch.freed or batch.next_in_line)
            and store is self.store
            and not isinstance(answer, Exception)
        ):
            with self._io, contextlib.suppress(StoreError):  # the other processes hear of it when they next ask
                store.announce(sorted(batch.announce))
                for name, seconds in batch.freed.items():
                    store.announce_freed(name, seconds)
                for name, number in batch.next_in_line.items():
                    store.announce_freed(name, -number)

    def _ask(self, store: Store, packed: Batch, until: float) -> Reply:
        """Ask the store, again and again until then; Unreachable: there was no answer."""
        pause = RETRY[0]
        while True:
            try:
                return self._ask_once(store, packed)
            except Unreachable:
                if clock.now() + pause > until or self._stopping or self._node_of(packed, store) is not None:
                    raise  # what the store's other nodes have is not to wait for this one
                time.sleep(pause * CHANCE.uniform(0.5, 1.0))
                pause = min(2 * pause, RETRY[1])

    def _ask_once(self, store: Store, packed: Batch) -> Reply:
        try:
            with self._io if store is self.store else contextlib.nullcontext():  # the prober may hold it
                return store.decide(packed)
        except PenstockError:
            raise
        except Exception as error:
            raise StoreError(f"{store!r} could not decide: {error!r}") from error

    def apply(self, batch: BatchInFlight, answer: Reply | Exception, now: float, *, ours: bool = False) -> None:
        """Let the scheduler take in an answer. `ours`: this process decided itself, so the clock is its own."""
        if not (ours or isinstance(answer, Exception)):
            lead = answer.now - now * 1e6
            batch.misdated = self._lead is not None and abs(lead - self._lead) > MISDATED
            self._lead = lead
        self.scheduler.take_answer(batch, answer, now)

    def _lost(self, batch: BatchInFlight, packed: Batch, error: StoreError) -> None:
        store = self.store
        with self.lock:
            outage = outages.store_lost(self.scheduler, batch, packed, error, clock.now())
        _log.warning("%s; until it answers: on_outage=%r", error, store.on_outage)
        self._events.append(StoreLost(repr(store), str(error), store.on_outage))
        self._begin_to_probe(outage)
        self._wake()

    def _node_silent(self, node: object, silence: Outage) -> None:
        with self.lock:
            outages.node_silent(self.scheduler, node, silence)
        self._begin_to_probe(silence)

    def _begin_to_probe(self, lost: Outage) -> None:
        name = f"penstock asks {self.store!r}"
        threading.Thread(target=_probe, args=(ref(self), lost, self._inbox), name=name, daemon=True).start()

    def probe(self, lost: Outage, beside: Store | None, inbox: Inbox) -> bool:
        """Ask what does not answer once more, by a store beside ours if there is one. False: that is over."""
        store = beside or self.store
        if inbox is not self._inbox or self._stopping or not self._lasts(lost):
            return False
        answer: Reply | Exception
        try:
            answer = self._ask_once(store, lost.packed)
        except Unreachable as error:
            lost.error = error
            if not lost.told and clock.now() > lost.batch.sent + self.store.patience:
                inbox.put(partial(self._node_lost, lost))
            return True
        except PenstockError as error:
            answer = error
        inbox.put(partial(self._found, lost, answer))
        return False

    def _node_of(self, packed: Batch, store: Store) -> object:
        """The node that was asked, if it can be silent alone. A process that decides itself does so for all nodes."""
        return store.node_of(packed.terms[0].name) if store is self.store and store.on_outage == "raise" else None

    def _lasts(self, lost: Outage) -> bool:
        """Whether that outage was not ended: by an answer, a defect, or as the store was closed."""
        return lost is self.scheduler.outage or lost in self.scheduler.state.silent.values()

    def _node_lost(self, silence: Outage, scheduler: Scheduler, _: float) -> None:
        if self._lasts(silence) and not silence.told:
            outages.node_lost(scheduler, silence)
            _log.warning("%s; what lives there is held up until it answers", silence.error)
            self._events.append(StoreLost(repr(self.store), str(silence.error), self.store.on_outage))

    def _found(self, lost: Outage, answer: Reply | Exception, scheduler: Scheduler, now: float) -> None:
        if not self._lasts(lost):
            return
        if lost is scheduler.outage and not isinstance(answer, Exception):
            self._lead = answer.now - now * 1e6
        outages.found(scheduler, lost, answer, now)
        if lost.told:
            _log.warning("%r answers again", self.store)
            self._events.append(StoreRecovered(repr(self.store)))

    def _change(self, limit_set: SharedLimitSet) -> None:
        terms = limit_set.terms
        try:
            with self._io:
                self.store.change(terms)
        except Unreachable as error:
            with self.lock:
                state = self.scheduler.state
                state.changes[limit_set] = None
                if state.change_at == -math.inf:
                    _log.warning("new limits for %r have not reached the store yet: %s", terms.name, error)
                state.change_at = clock.now() + RETRY[1]
                state.at(state.change_at, lambda _: None)
        except Exception as error:  # noqa: BLE001 - every caller must hear of it
            _log.exception("the store refused new limits for %r", terms.name)
            with self.lock:
                self.scheduler.state.fail_queue(limit_set, error)
            self._wake()
        else:
            limit_set.agreed = True
            self.scheduler.state.change_at = -math.inf

    def _read_terms(self) -> None:
        """Find out what others count under names of which the store is asked nothing, as all limits are `unlimited`."""
        with self.lock:
            state = self.scheduler.state
            limit_sets, state.to_read = list(state.to_read), {}
        for limit_set in limit_sets if self.scheduler.outage is None else ():
            found: list[str | None] = []

            def read(rows: list[Row | None], _: float, found: Any = found) -> list[tuple[Row, float] | None]:
                found.extend(row and row[0] for row in rows)
                return [None]

            with contextlib.suppress(Exception), self._io:  # a later call asks again
                self.store.exchange([limit_set.name], read)
            with self.lock:
                self.scheduler.on_terms(limit_set, found[-1] if found else None, clock.now())

    def _watch(self) -> None:
        """See how those stand that wait for places, where the store shows that."""
        with self.lock:
            state = self.scheduler.state
            watched, state.to_watch = ({} if self.scheduler.outage else state.to_watch), {}
        for queue, limit_sets in watched.items():
            with self._io:
                rows = {limit_set: self.store.peek(limit_set.name) for limit_set in limit_sets}
            with self.lock:
                now = clock.now()
                self.scheduler.on_rows(queue, rows, now, now * 1e6 + (self._lead or 0.0))


@dataclass(slots=True, eq=False)
class _Announced:
    """A message: another process has changed something, or given it back. It begins no thread anew, as others do."""

    _name: str
    _seconds: float

    def __call__(self, scheduler: Scheduler, _: float) -> None:
        if self._seconds > 0:
            scheduler.on_freed(self._name, self._seconds)
        elif self._seconds < 0:
            scheduler.on_next_in_line(self._name, -self._seconds)
        else:
            scheduler.on_announced(self._name)


@dataclass(slots=True, eq=False)
class _Stop:
    """A message: the thread is to end. `moment`: when that was said."""

    _dispatcher: Dispatcher
    moment: float

    def __call__(self, _: Scheduler, now: float) -> None:
        self._dispatcher.on_stop(now)


def _tell_all(hook: Callable[[Any], object], events: list[Any], before: threading.Thread | None) -> None:
    """The thread that calls a store's hook, once the one `before` has done so."""
    if before is not None:
        before.join()
    for event in events:
        emit(hook, event)


def _serve(dispatcher_ref: ref[Dispatcher], inbox: Inbox) -> None:
    """The thread of a dispatcher. Holds it while there is something to do, and not while it waits."""
    dispatcher = dispatcher_ref()
    if dispatcher is None or not dispatcher.begin():
        return
    requests: list[SharedRequest] = []
    messages: list[Any] = []
    try:
        dispatcher.prepare()
        while True:
            timeout = dispatcher.scheduler.idle(clock.now())
            dispatcher = None
            requests, messages = inbox.receive(timeout)
            dispatcher = dispatcher_ref()
            if dispatcher is None:
                return
            if not dispatcher.take_turn(requests, messages):
                return
            requests, messages = [], []
    except BaseException as error:  # out of memory, or told to exit
        if dispatcher is not None:
            dispatcher.break_down(requests, messages, error)
        raise
    finally:
        if dispatcher is not None:
            dispatcher.end()


def _probe(dispatcher_ref: ref[Dispatcher], lost: Outage, inbox: Inbox) -> None:
    """Ask what does not answer again and again, until there is an answer or the store is not referenced any more."""
    dispatcher, beside = dispatcher_ref(), None
    if dispatcher is not None and dispatcher.scheduler.outage is not lost:
        beside = dispatcher.store.beside()
    del dispatcher  # not held while this thread sleeps
    try:
        _probe_until_there_is_an_answer(dispatcher_ref, lost, beside, inbox)
    finally:
        if beside is not None:
            beside.disconnect()


def _probe_until_there_is_an_answer(
    dispatcher_ref: ref[Dispatcher], lost: Outage, beside: Store | None, inbox: Inbox
) -> None:
    """By itself, as this loop goes back on a condition."""
    pause = RETRY[0]
    while True:
        time.sleep(pause * CHANCE.uniform(0.5, 1.0))
        pause = min(2 * pause, RETRY[1])
        dispatcher = dispatcher_ref()
        if dispatcher is None or not dispatcher.probe(lost, beside, inbox):
            return
        del dispatcher


def _stop_all() -> None:
    """At the end of the process: send what is left to send, for no longer than the most patient store."""
    dispatchers = members(_all)
    threads = [thread for thread in [dispatcher.stop_soon() for dispatcher in dispatchers] if thread is not None]
    until = clock.now() + max((dispatcher.store.patience for dispatcher in dispatchers), default=0.0) + 1.0
    for thread in threads:
        thread.join(timeout=max(0.0, until - clock.now()))
    _ended.append(True)


def _before_fork(dispatcher: Dispatcher) -> None:
    dispatcher.lock.acquire()  # held by another thread at the moment of the fork, it would stay held in the child
    if dispatcher.store.quiet_at_fork:
        dispatcher._io.acquire()
        dispatcher.store.before_fork()


def _after_fork_in_parent(dispatcher: Dispatcher) -> None:
    if dispatcher.store.quiet_at_fork:
        dispatcher._io.release()
    dispatcher.lock.release()


def _after_fork_in_child(dispatcher: Dispatcher) -> None:
    dispatcher.store.forget()
    dispatcher.forget()
    dispatcher.lock.release()


atexit.register(_stop_all)
around_forks(_all, _before_fork, _after_fork_in_parent, _after_fork_in_child)
