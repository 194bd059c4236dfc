"""Time that a test commands: hours pass in milliseconds, and every moment is exact.

    async def test_the_hourly_limit(virtual_time):      # the pytest fixture; nothing else in the test changes
        await anyio.sleep(3600)
        assert virtual_time.now() == 3600

    with virtual_time() as time:                        # or without pytest
        asyncio.run(main())

Virtual time begins at 0 and stands still while anything runs. When every task waits, and the earliest of them waits for
a moment, that moment is now. So things happen in the order in which they would on an infinitely fast machine, and each
moment is the sum that the program itself computed: ten sleeps of 0.1 end at 0.1 + … + 0.1, to the last bit.

It holds for asyncio (uvloop too) and trio, for `anyio`'s and asyncio's own timeouts, and for `penstock.clock`, which is
replaced in every thread until virtual time ends. Sockets, processes and worker threads belong to the real world and
keep working: before time jumps, they get a little real time (`Patience`).

What it does not do: `time.sleep` sleeps for real, and a limiter that blocks a thread waits for a clock that stands
still (test that with `manual_clock`, `acquire_nowait` and `advance`). If all tasks wait, and none of them for a moment,
the program waits for ever, as it would in real time. How loops are made to follow is in `_loops.py`.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar
from unittest import mock

import anyio

from penstock import clock
from penstock._numbers import Seconds, read_seconds
from penstock.retry.call import fast_attempts
from penstock.testing import _loops

__all__ = [
    "ManualClock",
    "Patience",
    "RecordedEvents",
    "VirtualTime",
    "fast_retries",
    "manual_clock",
    "run",
    "virtual_time",
]

_T = TypeVar("_T")

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
        """Let time pass at once, without waiting. Timers that became due fire when the event loop runs again.

        Args:
            seconds: How far to go: seconds or a `timedelta`, 0 or more and finite.

        Raises:
            ValueError: It is no such span.
        """
        span = read_seconds(seconds)
        if span is None or not 0 <= span < math.inf:
            raise ValueError(f"time can only move forward, and not for ever: advance({seconds!r})")
        self._now += span

    def set_wall(self, moment: datetime) -> None:
        """Let the calendar show `moment` from here on, as an operator or a time server would. `now` does not move."""
        if moment.tzinfo is None:
            raise ValueError(
                f"{moment!r} names a different moment in each time zone: give it a tzinfo, such as datetime.UTC"
            )
        self._wall_at_zero = moment.timestamp() - self._now

    def __repr__(self) -> str:
        shown = datetime.fromtimestamp(self.wall(), UTC).isoformat(timespec="milliseconds")
        return f"<{type(self).__name__}: {self._now!r} s, {shown}>"


@dataclass(frozen=True, slots=True)
class Patience:
    """For how long, in real time, the outside world must have been silent before virtual time jumps.

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
            span = read_seconds(value)
            if span is None or not 0 <= span < math.inf:
                raise ValueError(f"Patience({name}={value!r}): seconds or a timedelta, 0 or more and finite")
            object.__setattr__(self, name, span)


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


_owner: ManualClock | None = None


@contextmanager
def _in_place_of_the_clock(ours: ManualClock) -> Iterator[None]:
    global _owner
    if _owner is not None:
        raise RuntimeError(f"time already belongs to {_owner!r}: use that one, or leave its `with` block first")
    _owner = ours
    try:
        with mock.patch.multiple(clock, now=ours.now, wall=ours.wall):
            yield
    finally:
        _owner = None


@contextmanager
def manual_clock(wall: datetime = NEW_YEAR) -> Iterator[ManualClock]:
    """A clock for code that reads time and does not wait: it stands in for `penstock.clock`, and no loop follows it."""
    ours = ManualClock(wall)
    with _in_place_of_the_clock(ours):
        yield ours


@contextmanager
def virtual_time(wall: datetime = NEW_YEAR, patience: Patience = Patience()) -> Iterator[VirtualTime]:
    """Virtual time for `penstock.clock`, and for the event loop that runs inside the block.

    Several loops may run one after the other; time goes on where it was. Two at once, in two threads, are refused:
    neither knows when the other has nothing left to do. A run of trio that is given a clock of its own keeps it.

    Args:
        wall: What the calendar shows at 0.
        patience: How long to listen to the real world before each jump.

    Raises:
        RuntimeError: Time is virtual already, or an event loop is running here, which began in another time.
    """
    time = VirtualTime(wall, patience)
    with _in_place_of_the_clock(time), ExitStack() as stack:
        _loops.follow(time, stack)
        yield time


def run(
    main: Callable[..., Awaitable[_T]],
    *args: object,
    backend: str = "asyncio",
    wall: datetime = NEW_YEAR,
    patience: Patience = Patience(),
    **options: Any,
) -> _T:
    """Run `main(*args)` by `anyio.run`, in a virtual time of its own; `options` are those of the backend."""
    with virtual_time(wall, patience):
        return anyio.run(main, *args, backend=backend, backend_options=options)


# ------------------------------------------------------------------------------------------------------------------


class RecordedEvents(list[Any]):
    """A list of what happened, to be given as `on_event=`."""

    def __call__(self, event: object) -> None:
        """Add an event."""
        self.append(event)

    def of(self, kind: type[_T]) -> list[_T]:
        """Those of one kind, in order."""
        return [event for event in self if isinstance(event, kind)]


@contextmanager
def fast_retries(attempts: int = 2) -> Iterator[None]:
    """Retries that never wait, ask no budget, and end after at most so many attempts.

    Only what this task does inside the block, and tasks that it starts there: nothing is switched off globally.
    """
    if attempts < 1:
        raise ValueError(f"a call takes at least one attempt: attempts={attempts!r}")
    token = fast_attempts.set(attempts)
    try:
        yield
    finally:
        fast_attempts.reset(token)
