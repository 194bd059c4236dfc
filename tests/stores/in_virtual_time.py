"""Dispatchers as tasks in virtual time, in the place of their threads: processes over one store, without any race."""

from __future__ import annotations

import asyncio
from collections import deque
from queue import Empty
from threading import Lock

import pytest

from penstock import clock
from penstock._backends.shared.dispatcher import Dispatcher, dispatcher_of
from tests.stores.in_memory import RowsInMemory

MOST_AT_ONCE = 200
"""Questions of one process at one moment, above which it asks again and again for nothing."""


class Rows:
    """What all processes share; a store that is made of it is one process.

    Attributes:
        hears: Whether processes hear what others give back, as over Redis.
        shows: Whether they see how the rows stand, as over SQLite.
    """

    def __init__(self, *, hears, shows=False):
        self.hears, self.shows = hears, shows
        self.listeners = []
        self._rows, self._lock = {}, Lock()

    def store(self):
        store = (_Telling if self.hears else _Showing if self.shows else RowsInMemory)(self._rows, self._lock)
        store.all = self
        return store


class _Telling(RowsInMemory):
    hears = True

    def listen(self, on_announced):
        self.all.listeners.append((self, on_announced))

    def announce(self, names):
        for name in names:
            self.announce_freed(name, 0.0)

    def announce_freed(self, name, seconds):
        for store, on_announced in self.all.listeners:
            if store is not self:
                on_announced(name, seconds)


class _Showing(RowsInMemory):
    shows = True

    def peek(self, name):
        return self.rows.get(name)


class _Messages:
    """The messages of an inbox, for a task."""

    def __init__(self, before):
        self._left = deque(before.get_nowait() for _ in range(before.qsize()))
        self.arrived = asyncio.Event()

    def put(self, message):
        self._left.append(message)
        self.arrived.set()

    def get(self, timeout=None):
        if not self._left:
            raise Empty
        return self._left.popleft()

    get_nowait = get

    def qsize(self):
        return len(self._left)


class Processes:
    """The tasks that are dispatchers; to be ended before the loop is."""

    def __init__(self):
        self._serving = {}
        self._ended = False

    def start(self, dispatcher):
        if dispatcher not in self._serving:
            dispatcher._inbox._messages = _Messages(dispatcher._inbox._messages)
            self._serving[dispatcher] = asyncio.ensure_future(self._serve(dispatcher, dispatcher._inbox))

    async def _serve(self, dispatcher, inbox):
        dispatcher.prepare()
        moment, questions = clock.now(), 0
        while not self._ended:
            wait = dispatcher.scheduler.idle(clock.now())
            if not inbox._messages.qsize() and not inbox._requests:
                inbox._messages.arrived.clear()
                await _first(inbox._messages.arrived, wait)
            dispatcher.take_turn(*inbox.receive(0.0))
            if clock.now() > moment:
                moment, questions = clock.now(), dispatcher.calls
            assert dispatcher.calls - questions <= MOST_AT_ONCE, "it asks again and again, and no time passes"

    async def end(self):
        self._ended = True
        for dispatcher in self._serving:
            dispatcher._inbox.put(None)
        await asyncio.gather(*self._serving.values())
        for dispatcher in self._serving:
            dispatcher.store.close()


async def _first(event, seconds):
    """Until the event, or for so many seconds."""
    waiting = asyncio.ensure_future(event.wait())
    await asyncio.wait([waiting], timeout=seconds)
    waiting.cancel()


@pytest.fixture
def processes(monkeypatch):
    """Dispatchers begin as tasks."""
    processes = Processes()

    def start(dispatcher):
        processes.start(dispatcher)

    monkeypatch.setattr(Dispatcher, "_start", start)
    return processes


def calls(store):
    """How often a process has asked."""
    return dispatcher_of(store).calls
