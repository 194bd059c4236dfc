"""Clocks that a test commands: one that it moves by hand, and one that event loops follow (see `_loops`)."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

import anyio

from penstock._numbers import Seconds, span
from penstock._text import repr_of

NEW_YEAR = datetime(2026, 1, 1, tzinfo=UTC)
"""What the calendar shows when virtual time begins, unless the test says otherwise."""


class ManualClock:
    """A clock that moves only when a test moves it."""

    def __init__(self, wall: datetime = NEW_YEAR) -> None:
        self._now = 0.0
        self._wall_at_zero = 0.0
        self.set_wall(wall)

    def now(self) -> float:
        """Seconds since this clock began."""
        return self._now

    def wall(self) -> float:
        """Seconds since 1970 in UTC; moves along with `now`."""
        return self._wall_at_zero + self._now

    def advance(self, seconds: Seconds) -> None:
        """Let time pass at once, without waiting: seconds or a `timedelta`, 0 or more and finite, else ValueError.

        Timers that became due fire when the event loop runs again.
        """
        self._now += span("advance({})", seconds, zero=True)

    def set_wall(self, moment: datetime) -> None:
        """Let the calendar show `moment` from here on, as an operator or a time server would. `now` does not move."""
        if not isinstance(moment, datetime):
            raise ValueError(f"a moment of the calendar is a datetime with a tzinfo, not {repr_of(moment)}")
        if moment.tzinfo is None:
            raise ValueError(
                f"{repr_of(moment)} names a different moment in each time zone: give it a tzinfo, such as datetime.UTC"
            )
        self._wall_at_zero = moment.timestamp() - self._now

    def __repr__(self) -> str:
        shown = datetime.fromtimestamp(self.wall(), UTC).isoformat(timespec="milliseconds")
        return f"<{type(self).__name__}: {self._now!r} s, {shown}>"


@dataclass(frozen=True, slots=True)
class Patience:
    """For how long, in real time, the outside world must have been silent before virtual time jumps.

    `threads` and `sockets` are seconds, or `timedelta`s, 0 or more.

    Raises:
        ValueError: A value is neither seconds nor a `timedelta`, or is negative or infinite.
    """

    threads: Seconds = 1.0
    """Seconds while a worker thread is busy.

    Long, because the thread will report back, unless it waits for the event loop.
    """

    sockets: Seconds = 0.005
    """Seconds once the loop has opened a socket, a pipe or a process. Short, because these may never report back."""

    def __post_init__(self) -> None:
        for name in ("threads", "sockets"):
            value = getattr(self, name)
            object.__setattr__(self, name, span(f"Patience({name}={{}})", value, zero=True))


class VirtualTime(ManualClock):
    """A clock that event loops follow: it jumps to the next timer when nothing else is left to do.

    Attributes:
        patience: May be replaced at any moment, for a slow server or a thread that is not worth waiting for.
    """

    def __init__(self, wall: datetime = NEW_YEAR, patience: Patience = Patience()) -> None:
        super().__init__(wall)
        self.patience = patience

    async def sleep_until(self, moment: float) -> None:
        """Sleep until `now()` is exactly `moment`; return at the next chance if that has passed."""
        with anyio.CancelScope(deadline=moment):
            await anyio.sleep_forever()

    def _jump_to(self, moment: float) -> None:
        self._now = max(self._now, moment)
