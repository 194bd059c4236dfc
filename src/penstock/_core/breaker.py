"""When a circuit breaker lets calls through.

    closed ──(failures ≥ n within the window, and ≥ ratio of the calls in it)──▶ open
    open ──(open_for seconds)──▶ half-open: a few probes
    half-open ──(all probes succeed)──▶ closed          half-open ──(one fails)──▶ open

Pure arithmetic: callers pass the time in (seconds that never step back), one thread at a time. Each admitted call gets
a ticket, and reports its outcome with it. A ticket of an earlier state is void: the failure of a call that began before
the outage ended must not open what a probe has just closed.

A probe may never report: it hangs, or its task is lost. After `open_for` seconds its place goes to another call. If it
reports later, in the same state, its outcome still counts.
"""

from __future__ import annotations

import math
from collections import deque
from typing import NamedTuple

_STEPS = 10  # outcomes leave the window in steps of a tenth of it
_ASKED = 10  # times that it may be asked, at most, while a new probe is under way


class Ticket(NamedTuple):
    """What an admitted call reports with.

    Attributes:
        term: The state in which it was admitted, counted from the breaker's beginning.
        probe: Which probe of this state it is, from 1; 0 for a call through a closed breaker.
    """

    term: int
    probe: int


class Breaker:
    """The state of one circuit breaker; see the module's docstring. `circuit_breaker` has checked its numbers."""

    __slots__ = (
        "_failures", "_open_for", "_passed", "_probe_number", "_probes", "_probes_since", "_ratio",
        "_since", "_steps", "_term", "_until", "_window", "opened_by", "state",
    )  # fmt: skip

    _probes_since: dict[int, float]  # probes under way: when each began, by number
    _probe_number: int  # of the last probe in this state
    _passed: int  # probes that succeeded
    _since: float  # an open breaker is open from then
    _until: float  # until then
    opened_by: tuple[int, int]  # failures, and calls, in the window that opened it last

    def __init__(self, failures: int, ratio: float, window: float, open_for: float, probes: int) -> None:
        self._failures = failures
        self._ratio = ratio
        self._window = window
        self._open_for = open_for
        self._probes = probes
        self._steps: deque[list[float]] = deque()  # [when it began, calls, failures], oldest first
        self._term = 0  # counts the states there were; tickets carry it
        self._enter("closed")

    def admit(self, now: float) -> Ticket | None:
        """Let a call through and return its ticket; None if it may not go."""
        if self.state == "open" and not self._since <= now < self._until:  # before: a test's clock began anew
            self._enter("half-open")
        if self.state == "open":
            return None
        if self.state == "closed":
            return Ticket(self._term, 0)
        self._forget_lost_probes(now)
        if len(self._probes_since) + self._passed >= self._probes:
            return None
        self._probe_number += 1
        self._probes_since[self._probe_number] = now
        return Ticket(self._term, self._probe_number)

    def retry_after(self, now: float) -> float:
        """Return the seconds after which it is worth to ask again.

        Open: when it lets a probe through. Half-open that depends on the probes under way, so it is as long again as
        the oldest has taken, within these bounds: a tenth of `open_for`, and until its place goes to another call.
        Closed: infinite, as it refuses nobody.
        """
        if self.state == "closed":
            return math.inf
        if self.state == "open":
            return max(0.0, self._until - now)
        began = min(self._probes_since.values(), default=now)
        return max(0.0, min(began + self._open_for - now, max(now - began, self._open_for / _ASKED)))

    def succeeded(self, ticket: Ticket, now: float) -> None:
        """Note that an admitted call succeeded."""
        if ticket.term != self._term:
            return
        if self.state == "half-open":
            # One more that has passed, or the next state: an exception in between would leave no probe to come.
            if self._passed + 1 >= self._probes:
                self._enter("closed")
            else:
                self._probes_since.pop(ticket.probe, None)
                self._passed += 1
        else:
            self._count(now, failed=False)

    def failed(self, ticket: Ticket, now: float, hint: float = 0.0) -> None:
        """Note that an admitted call failed. `hint`: for how long, at least, the server does not want to be called."""
        if ticket.term != self._term:
            return
        if self.state == "half-open":
            self._open(now, hint)
            return
        calls, failures = self._count(now, failed=True)
        if failures >= self._failures and failures >= self._ratio * calls:
            self.opened_by = (failures, calls)
            self._open(now, hint)

    def abandoned(self, ticket: Ticket) -> None:
        """Note that an admitted call was cancelled: it says nothing, and leaves its place to another probe."""
        if ticket.term == self._term and self.state == "half-open":
            self._probes_since.pop(ticket.probe, None)

    def _open(self, now: float, hint: float) -> None:
        self._since, self._until = now, now + max(self._open_for, hint)
        self._enter("open")

    def _forget_lost_probes(self, now: float) -> None:
        lost = [probe for probe, began in self._probes_since.items() if not began <= now < began + self._open_for]
        for probe in lost:
            del self._probes_since[probe]

    def _enter(self, state: str) -> None:
        self.state = state
        self._term += 1
        self._passed = self._probe_number = 0
        self._probes_since = {}
        self._steps.clear()

    def _count(self, now: float, *, failed: bool) -> tuple[int, int]:
        steps = self._steps
        while steps and not now - self._window < steps[0][0] <= now:
            steps.popleft()
        if not steps or now >= steps[-1][0] + self._window / _STEPS:
            steps.append([now, 0, 0])
        steps[-1][1] += 1
        steps[-1][2] += failed
        return int(sum(step[1] for step in steps)), int(sum(step[2] for step in steps))
