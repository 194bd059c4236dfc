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

from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from typing import Any, TypeVar
from unittest import mock

import anyio

from penstock import clock
from penstock._numbers import read_count
from penstock._text import repr_of
from penstock.retry.call import fast_attempts
from penstock.testing import _loops
from penstock.testing._clocks import NEW_YEAR, ManualClock, Patience, VirtualTime

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

_USUAL_PATIENCE = Patience()

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
def virtual_time(wall: datetime = NEW_YEAR, patience: Patience = _USUAL_PATIENCE) -> Iterator[VirtualTime]:
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
    patience: Patience = _USUAL_PATIENCE,
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
    """Retries that never wait, use no budget, and end after at most `attempts` attempts.

    Only what this task does inside the block, and tasks that it starts there: nothing is switched off globally.
    """
    count = read_count(attempts)
    if count is None:
        raise ValueError(f"a call takes at least one attempt: attempts={repr_of(attempts)}")
    token = fast_attempts.set(count)
    try:
        yield
    finally:
        fast_attempts.reset(token)
