"""A server that is down: one pause for all rows, and one request at a time that looks whether it is back.

                 failed()                        failed(), from the probe
    up ───────────────────────────► down ──────────────────┐
     ▲                               │  ▲  the next probe   │
     │  connected(), answered()      │  └──later each time──┘
     └───────────────────────────────┘

A row that cannot connect has done nothing wrong and used nothing up, so it does not count against the row or the
limits. Time is bounded: how long a server may stay away, and how long one that was never reached may be tried.
"""

from __future__ import annotations

import math

import anyio

from penstock import clock
from penstock._numbers import show_seconds

__all__ = ["ServerOutage"]

FIRST_DELAY = 0.1
"""Seconds before the first probe; each further one waits twice as long."""

LONGEST_DELAY = 30.0

LONGEST_CONNECT_DELAY = 10.0
"""The same while there is no connection: to look for one costs the server nothing."""

NEVER_REACHED = 300.0
"""Seconds after which a run ends that has not reached its server even once."""


class ServerOutage:
    """Whether the server is there.

    Attributes:
        since: When it was first missed; None while it is there.
        reason: What the last attempt met.
    """

    def __init__(self, give_up_after: float) -> None:
        """Begin with a server that is there.

        Args:
            give_up_after: Seconds that it may be away.
        """
        self.since: float | None = None
        self.reason: str = ""
        self._give_up_after = give_up_after
        self._began: float | None = None
        self._reached = False
        self._until_answer = False
        self._delay = FIRST_DELAY
        self._next = 0.0
        self._prober: object | None = None
        self._waiting: dict[object, None] = {}
        self._changed = anyio.Event()

    @property
    def next_probe(self) -> float:
        """Seconds until the next probe leaves; 0 while it is under way."""
        return max(0.0, self._next - clock.now())

    @property
    def is_probed(self) -> bool:
        """Whether a request is under way already to see whether it is back."""
        return self._prober is not None

    def lets(self, who: object) -> bool:
        """Whether `who` may send: the server is there, or `who` is the one that looks."""
        return self.since is None or self._prober is who

    async def wait(self, who: object, longest: float = math.inf) -> None:
        """Return when `who` may send: at once while the server is there, else as the next probe or after the outage.

        Args:
            who: What waits.
            longest: Seconds after which to return in any case, if `who` is not the one that probes.
        """
        if self._began is None:
            self._began = clock.now()
        self._waiting[who] = None  # at its end: a row that probed last lets others
        try:
            while self.since is not None and self._prober is not who:
                if self._prober is None and next(iter(self._waiting)) is who:
                    await self._probe(who)
                    return
                changed = self._changed
                with anyio.move_on_after(longest):
                    await changed.wait()
                if not changed.is_set():
                    return
        finally:
            del self._waiting[who]
            if self._prober is None:
                self._tell()

    async def _probe(self, who: object) -> None:
        self._prober = who
        try:
            await anyio.sleep(max(0.0, self._next - clock.now()))
        except BaseException:
            self.leave(who)
            raise

    def failed(self, who: object, reason: str, *, until_answer: bool = False, is_lasting: bool = False) -> str | None:
        """The server did not take a request.

        Args:
            who: What `wait` was called with.
            reason: What happened.
            until_answer: It can be connected to, but does not serve: only an answer ends this outage.
            is_lasting: The next attempt will meet the same: going on is of use only if it was reached before.

        Returns:
            Why there is no use in going on; None while there is.
        """
        now = clock.now()
        if self.since is None:
            self.since, self._delay, self._until_answer = now, FIRST_DELAY, until_answer
            self._next = now + self._delay
        elif self._prober is who:
            self._delay = min(2 * self._delay, LONGEST_DELAY if self._until_answer else LONGEST_CONNECT_DELAY)
            self._next = now + self._delay
            self._prober = None
        self.reason = reason
        self._tell()
        if is_lasting and not self._reached:
            return reason
        away = now - self.since
        if not self._reached and now - (self.since if self._began is None else self._began) >= min(
            NEVER_REACHED, self._give_up_after
        ):
            return f"{reason}; the server was not reached even once in {show_seconds(away)}"
        if away >= self._give_up_after:
            return f"{reason}; the server has been away for {show_seconds(away)}"
        return None

    def connected(self) -> None:
        """A request leaves: there is a connection."""
        self._reached = True
        if self.since is not None and not self._until_answer:
            self._over()

    def answered(self) -> None:
        """The server does what it is there for."""
        self._reached = True
        if self.since is not None:
            self._over()

    def give_up(self) -> None:
        """No row has to wait for it any more."""
        self._over()

    def leave(self, who: object) -> None:
        """`who` sends nothing after all: another may be the probe."""
        if self._prober is who:
            self._prober = None
            self._tell()

    def _over(self) -> None:
        self.since = self._prober = None
        self.reason = ""
        self._tell()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()
