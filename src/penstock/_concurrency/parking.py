"""How a task or a thread waits, and how it is woken: the only code that knows the event loop.

    parker = here()             for the asyncio task, the trio task or the thread that runs
    parker.rearm()              from now on a wake-up counts
    await parker.park(5.0)      until woken, or 5 s have passed; `inf`: until woken
    parker.wake()               from any thread; never blocks; False if the task can never run again

A wake-up between `rearm` and `park` is not lost. Cancelling `park` raises the loop's own cancellation.
"""

from __future__ import annotations

import math
import os
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from penstock import clock

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Awaitable

    import trio


forks = 0
"""How many forks lie between this process and the first.

A parker from before the last fork belongs to another process.
"""


def _count_fork() -> None:
    global forks
    forks += 1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_count_fork)


THREADS = "threads"
"""The home of all threads that run no event loop: none of them can be blocked by another."""


class Parker:
    """How one task or thread waits. See the module's docstring.

    Attributes:
        home: What it waits in: its event loop, or `THREADS`.
    """

    __slots__ = ("home",)

    home: Any

    def rearm(self) -> None:
        raise NotImplementedError

    def park(self, seconds: float) -> Awaitable[None]:
        raise NotImplementedError

    def time_left(self) -> float:
        """Seconds until the enclosing cancel scope's deadline: `inf` without one, `-inf` if it is cancelled already."""
        raise NotImplementedError

    def wake(self, here: object = None) -> bool:
        """Wake it; False if nothing can run there any more.

        `here` is the home of the caller, where that is known. A callback of the loop has to say it: it is no task, and
        without it cannot be told from a signal handler that came while the loop slept.
        """
        raise NotImplementedError

    def set_timer(self, seconds: float, here: object) -> Any:
        """Set a timer that wakes it; return what `stop_timer` takes. None where it has to park anew for that.

        `here` as in `wake`.
        """
        return None

    def stop_timer(self, timer: Any) -> None:
        """Do without a timer that was set."""

    def alive(self) -> bool:
        """False if the task can never run again."""
        return True

    def awake(self) -> bool:
        """False if its loop is closed, or stopped, perhaps until it is run again."""
        return True


class AsyncioParker(Parker):
    """An asyncio task, on any loop."""

    __slots__ = ("_future",)

    _future: asyncio.Future[None]

    def rearm(self) -> None:
        if self._future.done():
            self._future = self.home.create_future()

    def park(self, seconds: float) -> Awaitable[None]:
        # The future itself where that is enough: it saves a coroutine for each of 100,000 waiters.
        return self._future if seconds == math.inf else self._park_for(seconds)

    async def _park_for(self, seconds: float) -> None:
        future = self._future
        timer = _timer(seconds, self.wake) or self.home.call_later(seconds, _finish, future)
        try:
            await future
        finally:
            timer.cancel()

    def time_left(self) -> float:
        # anyio's own function would ask first which loop runs here, and that asks the system for this process's number.
        asyncio_of_anyio = sys.modules.get("anyio._backends._asyncio")
        if asyncio_of_anyio is None:
            return math.inf  # no scope can be open yet
        scopes = getattr(asyncio_of_anyio, "_task_states", None)
        if scopes is not None and sys.modules["asyncio"].current_task(self.home) not in scopes:
            return math.inf
        backend = getattr(asyncio_of_anyio, "backend_class", None)
        if backend is None:
            return math.inf  # another thread is importing it
        deadline: float = backend.current_effective_deadline()
        return deadline if math.isinf(deadline) else deadline - self.home.time()

    def set_timer(self, seconds: float, here: object) -> asyncio.TimerHandle | None:
        loop: asyncio.AbstractEventLoop = self.home
        if here is not loop or seconds == math.inf or _timers_fail():
            return None
        return loop.call_later(seconds, _finish, self._future)

    def stop_timer(self, timer: asyncio.TimerHandle) -> None:
        if running_asyncio_loop() is self.home:
            timer.cancel()
            return
        try:
            self.home.call_soon_threadsafe(timer.cancel)
        except RuntimeError:  # the loop is closed: so are its timers
            pass

    def alive(self) -> bool:
        return not self.home.is_closed()

    def awake(self) -> bool:
        return bool(self.home.is_running())

    def wake(self, here: object = None) -> bool:
        if here is self.home or _task_running_in(self.home):
            future = self._future
            if not future.done():
                future.set_result(None)
            return True
        try:
            self.home.call_soon_threadsafe(_finish, self._future)
        except RuntimeError:  # the loop is closed: so are its tasks
            return False
        return True


def _task_running_in(loop: asyncio.AbstractEventLoop) -> bool:
    """Whether a task of this loop runs here; not so in a signal handler: the loop may sleep, and must be woken."""
    return running_asyncio_loop() is loop and sys.modules["asyncio"].current_task(loop) is not None


def _finish(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


class TrioParker(Parker):
    """A trio task."""

    __slots__ = ("_event", "_trio")

    def __init__(self, trio_module: Any) -> None:
        self._trio = trio_module
        self.home = trio_module.lowlevel.current_trio_token()
        self._event: trio.Event = trio_module.Event()

    def rearm(self) -> None:
        if self._event.is_set():
            self._event = self._trio.Event()

    async def park(self, seconds: float) -> None:
        if seconds == math.inf:
            await self._event.wait()
        elif (timer := _timer(seconds, self.wake)) is not None:
            try:
                await self._event.wait()
            finally:
                timer.cancel()
        else:
            with self._trio.move_on_after(seconds):
                await self._event.wait()

    def time_left(self) -> float:
        deadline: float = self._trio.current_effective_deadline()
        return deadline if math.isinf(deadline) else deadline - self._trio.current_time()

    def wake(self, here: object = None) -> bool:
        trio = self._trio
        if here is self.home or (in_trio_task() and trio.lowlevel.current_trio_token() is self.home):
            self._event.set()
            return True
        try:
            self.home.run_sync_soon(self._event.set)
        except trio.RunFinishedError:
            return False
        return True


class ThreadParker(Parker):
    """A thread without an event loop.

    It waits for a bare lock to be released. The lock of a `threading.Event` stays locked for ever if a signal handler
    raises in `Event.wait`, which is written in Python, and then `wake` would never return.
    """

    __slots__ = ("_asleep",)

    def __init__(self) -> None:
        self.home = THREADS
        self._asleep = threading.Lock()
        self._asleep.acquire(blocking=False)

    def rearm(self) -> None:
        self._asleep.acquire(blocking=False)

    def time_left(self) -> float:
        return math.inf

    def park_thread(self, seconds: float) -> None:
        """Block this thread until woken, or `seconds` passed."""
        if self._asleep.acquire(timeout=min(seconds, threading.TIMEOUT_MAX)):
            self.wake()  # awake until it is rearmed

    def wake(self, here: object = None) -> bool:
        try:
            self._asleep.release()
        except RuntimeError:  # it was awake
            pass
        return True


def wake_all(parkers: Sequence[Parker]) -> None:
    """Wake them all, with one call into each event loop. For threads that run no loop."""
    homes = {parker.home for parker in parkers}  # nearly always one
    for home in homes:
        here = parkers if len(homes) == 1 else [parker for parker in parkers if parker.home is home]
        if type(here[0]) is not AsyncioParker:
            for parker in here:
                parker.wake()
            continue
        try:
            home.call_soon_threadsafe(_finish_all, here)
        except RuntimeError:  # the loop is closed: so are its tasks
            pass


def _finish_all(parkers: Iterable[AsyncioParker]) -> None:
    for parker in parkers:  # their futures are the loop's: another core that looks at them takes them out of its cache
        future = parker._future
        if not future.done():
            future.set_result(None)


def _timer(seconds: float, wake: Callable[[], object]) -> threading.Timer | None:
    """Start a timer of our own, if those of the loop never fire."""
    return start_timer(seconds, wake) if _timers_fail() else None


def _timers_fail() -> bool:
    """Whether the loop's timers never fire, as its clock is frozen (by freezegun)."""
    return clock.is_real() and clock.is_tampered_with()  # virtual time sets the loop's timers itself


def start_timer(seconds: float, wake: Callable[[], object]) -> threading.Timer:
    """Call `wake` in a thread after so many seconds, unless the timer is cancelled."""
    timer = threading.Timer(min(seconds, threading.TIMEOUT_MAX), wake)
    timer.daemon = True
    timer.start()
    return timer


# The functions below ask modules that another thread may be importing at this moment. Such a module is in `sys.modules`
# already, half empty. A loop of it cannot run yet, so a missing attribute means: no.


def _of_module(module: str, name: str) -> Any:
    """An attribute of a module; None while the module is not loaded that far."""
    return getattr(sys.modules.get(module), name, None)


def here() -> Parker:
    """Return a parker for the running task, or for this thread if it runs no loop."""
    if (_in_trio_task is not None or "trio" in sys.modules) and in_trio_task():  # first: it may be a guest of asyncio
        return TrioParker(sys.modules["trio"])
    loop = running_asyncio_loop() if _running_loop is None else _running_loop()
    if loop is None:
        return ThreadParker()
    parker = AsyncioParker()  # as `in_loop`: it would cost each waiter another call, as `__init__` would
    parker.home = loop
    parker._future = loop.create_future()
    return parker


def in_loop(loop: Any) -> AsyncioParker:
    parker = AsyncioParker()
    parker.home = loop
    parker._future = loop.create_future()
    return parker


def loop_running_here() -> bool:
    """Whether this thread runs an event loop, so that blocking it would stop the loop."""
    if running_asyncio_loop() is not None:
        return True
    in_trio_run = getattr(_of_module("trio", "lowlevel"), "in_trio_run", None)
    return in_trio_run is not None and in_trio_run()


def time_here() -> float:
    """Return the time by which the running asyncio loop sets its timers; in trio and in threads, `penstock.clock`'s.

    Both are one clock, unless the loop was given another.
    """
    loop = running_asyncio_loop()
    return clock.now() if loop is None else loop.time()


def who_am_i() -> object:
    """Return an object that identifies this task, or this thread, among all that live now."""
    if in_trio_task():
        return sys.modules["trio"].lowlevel.current_task()
    if running_asyncio_loop() is not None:
        return sys.modules["asyncio"].current_task()
    return threading.get_ident()


def is_over(who: Any) -> bool:
    """Whether the task, or thread, that `who_am_i` returned has come to its end."""
    if isinstance(who, int):
        return who not in sys._current_frames()
    if hasattr(who, "done"):
        return bool(who.done())
    return who is None or getattr(who.coro, "cr_frame", None) is None  # a trio task


def in_trio_task() -> bool:
    """Whether a trio task runs here, also one of a trio that is a guest of asyncio."""
    global _in_trio_task
    if _in_trio_task is None:
        if "trio" not in sys.modules:  # as in most programs
            return False
        _in_trio_task = getattr(_of_module("trio", "lowlevel"), "in_trio_task", None)
    return _in_trio_task is not None and _in_trio_task()


def running_asyncio_loop() -> Any:
    """The asyncio loop that runs in this thread, or None."""
    global _running_loop
    if _running_loop is None:
        _running_loop = _of_module("asyncio", "_get_running_loop")
    return None if _running_loop is None else _running_loop()  # unlike get_running_loop it does not raise


_in_trio_task: Callable[[], bool] | None = None
_running_loop: Callable[[], Any] | None = None
