"""How event loops are made to follow a virtual time.

A loop is taken over where it starts to run, whatever made it, at any moment, and with any options. From then on it
shows our time, and time jumps when all tasks wait for a moment to come.

Every asyncio loop is followed in one way, by its public methods alone, since the timers of uvloop are out of reach: our
own heap keeps the timers, and all tasks wait when a whole round of the loop has passed without a `call_soon`. In trio
its own MockClock makes the jumps.
"""

from __future__ import annotations

import asyncio
import heapq
import importlib
import importlib.util
import itertools
import math
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from contextvars import Context, copy_context
from functools import partial
from time import sleep
from typing import Any, cast
from unittest import mock

import anyio.to_thread

from penstock.clock import real_now
from penstock.testing._clocks import VirtualTime


def follow(time: VirtualTime, stack: ExitStack) -> None:
    """Let every event loop that starts to run follow `time`, until `stack` is closed."""
    if asyncio._get_running_loop() is not None:
        raise RuntimeError(TOO_LATE)
    doors = _Doors(time, stack)

    def patch(target: Any, name: str, door: Callable[[Any], Any]) -> None:
        stack.enter_context(mock.patch.object(target, name, door(getattr(target, name))))

    patch(asyncio.BaseEventLoop, "run_forever", doors.asyncio_loop)
    patch(anyio.to_thread, "run_sync", doors.outside.worker_thread)
    with suppress(ImportError, AttributeError):  # a private name; if it has moved, anyio's function takes 0.1 s steps
        from anyio._backends._asyncio import AsyncIOBackend

        patch(AsyncIOBackend, "wait_all_tasks_blocked", doors.wait_all_tasks_blocked)
    for name in "uvloop", "winloop":
        if importlib.util.find_spec(name):
            patch(importlib.import_module(name).Loop, "run_forever", doors.asyncio_loop)
    if importlib.util.find_spec("trio"):
        import trio

        if trio.lowlevel.in_trio_run():
            raise RuntimeError(TOO_LATE)
        clock = _trio_clock(time, doors.outside)
        for run in trio.run, trio.lowlevel.start_guest_run:
            defaults: Any = run.__kwdefaults__  # which also serve modules that said `from trio import run`
            stack.enter_context(mock.patch.dict(defaults, clock=clock))
        patch(trio, "run", doors.trio_run)
        patch(trio.lowlevel, "start_guest_run", doors.trio_guest_run)
        patch(trio.to_thread, "run_sync", doors.outside.worker_thread)


TOO_LATE = (
    "an event loop runs here already, by another time: enter virtual_time() before it starts. "
    "In pytest, an async fixture of a wider scope than the test may have started it"
)


class _Doors:
    """What stands in the place of the functions through which loops start to run."""

    def __init__(self, time: VirtualTime, stack: ExitStack) -> None:
        self._time = time
        self._stack = stack
        self.outside = _Outside(time)
        self._followers: dict[object, _AsyncioFollower] = {}
        self._running: object = None
        self._refused: set[object] = set()

    def asyncio_loop(self, run_forever: Callable[[Any], None]) -> Callable[[Any], None]:
        def follow_and_run_forever(loop: asyncio.AbstractEventLoop) -> None:
            if loop in self._refused:  # asyncio.run runs it once more, to clean up
                run_forever(loop)
                return
            with self._alone(loop):
                if loop not in self._followers:
                    self._followers[loop] = _AsyncioFollower(loop, self._time, self.outside)
                    self._stack.enter_context(self._followers[loop].follow())
                self._followers[loop].stopping = False
                run_forever(loop)

        return follow_and_run_forever

    def trio_run(self, run: Callable[..., Any]) -> Callable[..., Any]:
        def run_alone(*args: Any, **options: Any) -> Any:
            with self._alone("trio"):
                return run(*args, **options)

        return run_alone

    def trio_guest_run(self, start: Callable[..., None]) -> Callable[..., None]:
        def start_alone(*args: Any, done_callback: Callable[[Any], object], **options: Any) -> None:
            alone = ExitStack()
            alone.enter_context(self._alone("trio"))

            def done(outcome: Any) -> None:
                alone.close()
                done_callback(outcome)

            start(*args, done_callback=done, **options)

        return start_alone

    def wait_all_tasks_blocked(self, original: Callable[[], Awaitable[None]]) -> Callable[[], Awaitable[None]]:
        """In trio it takes no time. Anyio's own for asyncio asks every 0.1 seconds, in which anything may happen."""

        async def wait_all_tasks_blocked() -> None:
            follower = self._followers.get(asyncio.get_running_loop())
            await (original() if follower is None else follower.idle())

        return wait_all_tasks_blocked

    @contextmanager
    def _alone(self, loop: object) -> Iterator[None]:
        if self._running is not None:
            self._refused.add(loop)
            raise RuntimeError(
                f"virtual time drives one event loop at a time: {loop!r} cannot run beside {self._running!r}. "
                "Run one after the other, or start one of them before virtual time begins"
            )
        self._running = loop
        try:
            yield
        finally:
            self._running = None


class _Outside:
    """Knows for how long the real world must be silent before we believe that nothing comes from there."""

    def __init__(self, time: VirtualTime) -> None:
        self._time = time
        self._busy_threads = 0

    @contextmanager
    def busy_thread(self) -> Iterator[None]:
        self._busy_threads += 1
        try:
            yield
        finally:
            self._busy_threads -= 1

    def worker_thread(self, run: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def count_and_run(*args: Any, **options: Any) -> Any:
            with self.busy_thread():
                return await run(*args, **options)

        return count_and_run

    def silence(self, *, sockets: bool) -> float:
        """Real seconds."""
        patience = self._time.patience  # it has turned its spans into numbers
        if self._busy_threads:
            return cast("float", patience.threads)
        return cast("float", patience.sockets) if sockets else 0.0


# ------------------------------------------------------------------------------------------------------------ asyncio


OPENING = (
    *("add_reader", "add_writer", "connect_", "create_connection", "create_datagram_endpoint", "create_server"),
    *("create_unix_", "getaddrinfo", "getnameinfo", "sendfile", "sock_", "start_tls", "subprocess_"),
)
"""How the names of those methods begin by which a loop opens itself to the outside world."""


class _Timer(asyncio.TimerHandle):
    """A timer that waits with us. For the loop it is a stranger: only `fire` comes to it, at its moment."""

    def __init__(
        self,
        when: float,
        callback: Callable[..., object],
        args: tuple[Any, ...],
        loop: asyncio.AbstractEventLoop,
        context: Context,
    ) -> None:
        super().__init__(when, callback, args, loop, context)
        self._call = partial(callback, *args)
        self.context = context

    def fire(self) -> None:
        if not self.cancelled():
            self._call()

    def cancel(self) -> None:
        asyncio.Handle.cancel(self)  # TimerHandle's own would tell the loop


class _AsyncioFollower:
    """Stands between one loop and its users: keeps their timers, and sees whether anything is at work."""

    def __init__(self, loop: asyncio.AbstractEventLoop, time: VirtualTime, outside: _Outside) -> None:
        self._loop, self._time, self._outside = loop, time, outside
        self._call_soon, self._run_in_executor, self._stop = loop.call_soon, loop.run_in_executor, loop.stop
        self._timers: list[tuple[float, int, _Timer]] = []  # a heap; of two at one moment, the older fires first
        self._timers_made = itertools.count()
        self._sweep_at = 1_000  # timers: then the cancelled ones are thrown out
        self._waiting_for_idle: list[asyncio.Future[None]] = []
        self._activity = 0  # how often the loop was given something to do
        self._activity_before = 0  # the same, when the round before ended
        self._quiet_since: float | None = None  # in real time, while we listen to the outside world
        self._in_rounds = False
        self._opened = False
        self.stopping = False

    @contextmanager
    def follow(self) -> Iterator[None]:
        """Take the place of the loop's methods; give it back with the timers that still wait."""
        ours: dict[str, Any] = {
            "time": self._time.now,
            "call_at": self._call_at,
            "call_later": self._call_later,
            "call_soon": self._noting_activity(self._loop.call_soon),
            "call_soon_threadsafe": self._noting_activity(self._loop.call_soon_threadsafe),
            "run_in_executor": self._counted_in_executor,
            "shutdown_default_executor": self._outside.worker_thread(self._loop.shutdown_default_executor),
            "stop": self._note_stop,
        }
        for name in dir(self._loop):
            if name.startswith(OPENING):
                ours[name] = self._noting_that_it_opens(getattr(self._loop, name))
        try:
            with mock.patch.multiple(self._loop, **ours):
                yield
        finally:
            while self._timers and not self._loop.is_closed():
                when, _, timer = heapq.heappop(self._timers)
                self._loop.call_later(max(0.0, when - self._time.now()), timer.fire, context=timer.context)

    async def idle(self) -> None:
        """Wait until no other task is at work. No time passes."""
        future = self._loop.create_future()
        self._waiting_for_idle.append(future)
        self._watch_rounds()
        await future

    def _call_later(self, delay: float, *args: Any, **options: Any) -> asyncio.TimerHandle:
        return self._call_at(self._time.now() + delay, *args, **options)

    def _call_at(
        self, when: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        timer = _Timer(when, callback, args, self._loop, context or copy_context())
        heapq.heappush(self._timers, (when, next(self._timers_made), timer))
        if len(self._timers) > self._sweep_at:
            self._timers = [entry for entry in self._timers if not entry[2].cancelled()]
            heapq.heapify(self._timers)
            self._sweep_at = max(1_000, 2 * len(self._timers))
        self._watch_rounds()
        return timer

    def _noting_activity(self, call_soon: Callable[..., asyncio.Handle]) -> Callable[..., asyncio.Handle]:
        def noting(callback: Callable[..., object], *args: Any, context: Context | None = None) -> asyncio.Handle:
            self._activity += 1
            return call_soon(callback, *args, context=context)

        return noting

    def _counted_in_executor(self, *args: Any) -> asyncio.Future[Any]:
        future = self._run_in_executor(*args)
        busy = ExitStack()
        busy.enter_context(self._outside.busy_thread())
        future.add_done_callback(lambda _: busy.close())
        return future

    def _note_stop(self) -> None:
        self.stopping = True
        self._stop()

    def _noting_that_it_opens(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def opening(*args: Any, **options: Any) -> Any:
            self._opened = True
            return method(*args, **options)

        return opening

    def _watch_rounds(self) -> None:
        if not self._in_rounds:
            self._in_rounds = True
            self._call_soon(self._end_round)

    def _end_round(self) -> None:
        """Called once in each round of the loop, while a task waits for a moment."""
        at_work, self._activity_before = self._activity != self._activity_before, self._activity
        quiet_since, self._quiet_since = self._quiet_since, None
        next_moment = self._next_moment()
        if at_work or self.stopping or next_moment <= self._time.now():
            pass
        elif self._waiting_for_idle:
            self._tell_that_idle()
        elif next_moment == math.inf:
            self._in_rounds = False
            return
        elif self._heard_enough(quiet_since or real_now()):
            self._time._jump_to(next_moment)
        while self._next_moment() <= self._time.now():
            timer = heapq.heappop(self._timers)[2]
            self._call_soon(timer.fire, context=timer.context)
        self._call_soon(self._end_round)

    def _heard_enough(self, quiet_since: float) -> bool:
        """Whether the outside world has been silent for long enough; if not, nap before the next look for I/O."""
        silence = self._outside.silence(sockets=self._opened)
        if not silence or real_now() >= quiet_since + silence:
            return True
        self._quiet_since = quiet_since
        sleep(min(silence / 20, 0.001))
        return False

    def _next_moment(self) -> float:
        while self._timers and self._timers[0][2].cancelled():
            heapq.heappop(self._timers)
        return self._timers[0][0] if self._timers else math.inf

    def _tell_that_idle(self) -> None:
        for future in self._waiting_for_idle:
            if not future.done():
                future.set_result(None)
        self._waiting_for_idle.clear()


# --------------------------------------------------------------------------------------------------------------- trio


def _trio_clock(time: VirtualTime, outside: _Outside) -> Any:
    """A clock for trio: its own MockClock says when to jump, and we say where to.

    MockClock by itself adds up the lengths of its jumps, and the sum may miss a deadline by the last bit.
    """
    from trio.lowlevel import current_statistics
    from trio.testing import MockClock

    clock = MockClock()
    next_deadline = math.inf
    counts: tuple[str, ...] = ()  # of tasks that wait for I/O: what they are called differs between systems

    def deadline_to_sleep_time(deadline: float) -> float:
        """Asked by trio when no task can run."""
        nonlocal next_deadline, counts
        next_deadline = deadline
        silence = math.inf  # nowhere to jump to
        if deadline < math.inf:
            io = current_statistics().io_statistics
            counts = counts or tuple(name for name in dir(io) if name.startswith("tasks_waiting"))
            waiting = sum(getattr(io, name) for name in counts)
            silence = outside.silence(sockets=waiting > 1)  # one is trio itself, listening for other threads
        clock.autojump_threshold = silence
        return 0.0 if deadline <= time.now() else math.inf

    vars(clock).update(
        current_time=time.now,
        deadline_to_sleep_time=deadline_to_sleep_time,
        jump=lambda _: time._jump_to(next_deadline),
    )
    return clock
