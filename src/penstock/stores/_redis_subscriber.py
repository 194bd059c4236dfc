"""A thread that hears what other processes announce on a Redis server, and tells its listener."""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Callable
from typing import Any, Protocol
from weakref import ref

from penstock.stores._redis_server import let_go


class _Announcing(Protocol):
    """What a subscriber needs of a store: its prefix, and a connection of its own."""

    prefix: str

    def make_subscriber(self) -> Any: ...


class Subscriber:
    """A thread that hears what other processes announce. It holds the store only while it connects."""

    def __init__(self, store: _Announcing, on_announced: Callable[[str], None]) -> None:
        self.hears = False
        self._stopped = threading.Event()
        self._store = ref(store)
        self._on_announced = on_announced
        self._missed = False
        threading.Thread(target=self._run, name=f"penstock hears {store!r}", daemon=True).start()

    def stop(self) -> None:
        """Tell the thread to end."""
        self._stopped.set()

    def _run(self) -> None:
        pause = 0.05
        while not self._stopped.is_set():
            store = self._store()
            if store is None:
                return
            client = None
            try:
                client = store.make_subscriber()
                channel = f"{store.prefix}:changes"
                store = None
                self._listen(client, channel)
                pause = 0.05
            except Exception:  # noqa: BLE001 - whatever a server makes the client raise: what was missed is asked for
                self._stopped.wait(pause * random.uniform(0.5, 1.0))
                pause = min(2 * pause, 0.5)
            finally:
                if self.hears:
                    pause = 0.05
                self.hears = False
                self._missed = True
                if client is not None:
                    let_go(client)

    def _listen(self, client: Any, channel: str) -> None:
        with contextlib.closing(client.pubsub(ignore_subscribe_messages=False)) as pubsub:
            pubsub.subscribe(channel)
            while not self._stopped.is_set() and self._store() is not None:
                message = pubsub.get_message(timeout=0.5)
                if message is None:
                    continue
                if message["type"] == "subscribe":
                    self.hears = True
                    if self._missed:
                        self._on_announced("")  # whatever was said meanwhile
                elif message["type"] == "message":
                    self._on_announced(message["data"].decode(errors="replace"))
