"""What callers, and other threads, send to a dispatcher: requests, and messages about anything else.

Sending never waits and takes no lock. Requests that come while the dispatcher is busy lie side by side, and one call
wakes it for all of them. A task's call comes at the end of its loop's round, for all tasks that ask in this round, as
the loop is about to let go of the interpreter. A dispatcher that is called at once wakes on another core, finds the
interpreter taken, and sleeps again until the round is over.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any

from penstock._backends.shared.requests import SharedRequest
from penstock._concurrency.parking import AsyncioParker, Parker

MOST_AT_ONCE = 1024
"""Requests that are taken in before the store is asked."""


class Inbox:
    """See the module's docstring.

    Attributes:
        add: Sends a request; `call_for` must follow, unless `called` or its home has `promised` that.
        called: Whether the dispatcher will look for requests without another call.
        promised: The event loop that calls at the end of its round, which was said last.
    """

    __slots__ = ("_messages", "_requests", "add", "called", "promised")

    def __init__(self) -> None:
        self._messages: SimpleQueue[Any] = SimpleQueue()
        self._requests: deque[SharedRequest] = deque()
        self.add: Callable[[SharedRequest], None] = self._requests.append
        self.called: bool = False
        self.promised: object = None

    def put(self, message: Any) -> None:
        """Send a message; None only wakes the dispatcher."""
        self._messages.put(message)

    def call(self) -> None:
        self.called = True
        self._messages.put(None)

    def call_for(self, parker: Parker) -> None:
        """Wake the dispatcher for a request of this parker's that was sent: now, or at the end of its loop's round."""
        if type(parker) is AsyncioParker:
            parker.home.call_soon(self._keep_promise)
            self.promised = parker.home  # after the call: a signal handler may raise in it
        else:
            self.call()

    def _keep_promise(self) -> None:
        self.promised = None
        self.call()

    def receive(self, timeout: float | None) -> tuple[list[SharedRequest], list[Any]]:
        """Wait until something is there, or until `timeout` seconds have passed; for the one thread that reads.

        Whatever was sent before one of these requests is among these messages, or was received earlier. So messages
        come first: a request never overtakes new limits that its own thread has sent before.
        """
        messages: list[Any] = []
        try:
            messages.append(self._messages.get(timeout=timeout))
        except Empty:
            pass
        self.called = False  # before the look at the requests: the next one calls again
        many = len(self._requests)
        messages += [self._messages.get_nowait() for _ in range(self._messages.qsize())]
        requests = [self._requests.popleft() for _ in range(min(many, MOST_AT_ONCE))]
        if many > MOST_AT_ONCE:
            self.call()
        return requests, [message for message in messages if message is not None]

    def put_back(self, requests: list[SharedRequest], messages: list[Any]) -> None:
        """Leave what was received to the next thread that reads."""
        for message in messages:
            self._messages.put(message)
        if requests:
            self._requests.extendleft(reversed(requests))
            self.call()
