"""Tasks that an object owns without a task group that stays open.

    task = start(fn, *args, landed=ended)    # runs beside its owner, in a copy of the owner's context
    task.cancel()                            # never waits
    await join(task)                         # until it has ended, whatever is cancelled meanwhile

A batch belongs to all its callers, any of which may leave first; `amap` belongs to its consumer, and no cancel scope
may stay open across a `yield` (PEP 789). Neither can keep a task group open, so they own their tasks themselves: the
last to leave cancels and joins. A task's end calls `landed(value, error)`, exactly once, in the loop's own thread.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from contextvars import copy_context
from inspect import isawaitable
from typing import TYPE_CHECKING, Any

import anyio

from penstock import clock
from penstock._concurrency import parking

if TYPE_CHECKING:
    import asyncio

Landed = Callable[[Any, BaseException | None], None]


class TaskCancelledError(BaseException):
    """A trio task was cancelled. Like each loop's own cancellation, no `Exception`."""


class OwnedTask:
    """A running task. Only its owner knows it, and cancels and joins it."""

    __slots__ = ("_joining", "_landed", "ended")

    def __init__(self, landed: Landed | None) -> None:
        self._landed = landed
        self._joining: list[parking.Parker] = []
        self.ended: bool = False

    def cancel(self) -> None:
        """Cancel, from within its own loop."""
        raise NotImplementedError

    def call_in_loop(self, fn: Callable[[], object]) -> None:
        """Let the task's loop call `fn` soon: from any thread, also while garbage is collected; if it runs."""
        raise NotImplementedError

    def _end(self, value: Any, error: BaseException | None) -> None:
        self.ended = True
        for parker in self._joining:
            parker.wake()
        landed, self._landed = self._landed, None  # it mostly refers to us: no cycle
        if landed is not None:
            landed(value, error)


class _AsyncioTask(OwnedTask):
    __slots__ = ("_loop", "_task")

    def __init__(
        self, loop: asyncio.AbstractEventLoop, fn: Callable[..., Awaitable[Any]], args: Any, landed: Landed | None
    ) -> None:
        super().__init__(landed)
        self._loop = loop
        self._task: asyncio.Task[Any] | None = loop.create_task(_call(fn, args))
        self._task.add_done_callback(self._done)

    def cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def call_in_loop(self, fn: Callable[[], object]) -> None:
        try:
            self._loop.call_soon_threadsafe(fn)
        except RuntimeError:  # the loop is closed: so are its tasks
            pass

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._task = None  # it keeps its error, whose frames may lead back to us: no cycle
        if task.cancelled():
            self._end(None, sys.modules["asyncio"].CancelledError())
        elif (error := task.exception()) is not None:
            self._end(None, error)
        else:
            self._end(task.result(), None)


async def _call(fn: Callable[..., Awaitable[Any]], args: Any) -> Any:
    call: Any = fn(*args)
    if not hasattr(call, "__await__") and not isawaitable(call):
        name = getattr(fn, "__qualname__", type(fn).__qualname__)
        raise TypeError(f"{name} returned {type(call).__name__}, which cannot be awaited: give an async function")
    return await call


class _TrioTask(OwnedTask):
    """A system task, which trio cancels when its main task ends, under a scope that we cancel."""

    __slots__ = ("_scope", "_token", "_trio")

    def __init__(self, trio: Any, fn: Callable[..., Awaitable[Any]], args: Any, landed: Landed | None) -> None:
        super().__init__(landed)
        self._trio = trio
        self._token = trio.lowlevel.current_trio_token()
        self._scope = trio.CancelScope()
        trio.lowlevel.spawn_system_task(self._run, fn, args, name=fn, context=copy_context())

    async def _run(self, fn: Callable[..., Awaitable[Any]], args: Any) -> None:
        # Nothing may pass: an exception out of a system task ends the whole run.
        value: Any = None
        error: BaseException | None = None
        try:
            with self._scope:
                # Control-C may strike in what the user wrote, as in any other task; it is handed over as an error.
                value = await self._trio.lowlevel.disable_ki_protection(_call)(fn, args)
            if self._scope.cancelled_caught:
                error = TaskCancelledError("by its owner")
        except self._trio.Cancelled:
            error = TaskCancelledError("because the trio run is ending: its main task is done")
            raise
        except BaseException as exc:  # noqa: BLE001 - it is handed over, not lost
            error = exc
        finally:
            self._end(value, error)
            value = error = None  # its traceback refers to this frame: no cycle

    def cancel(self) -> None:
        self._scope.cancel()

    def call_in_loop(self, fn: Callable[[], object]) -> None:
        try:
            self._token.run_sync_soon(fn)
        except self._trio.RunFinishedError:
            pass


def start(fn: Callable[..., Awaitable[Any]], *args: Any, landed: Landed | None = None) -> OwnedTask:
    """Run `fn(*args)` as a task of the running loop, in a copy of the caller's context.

    `landed` gets the cancellation of the task as an error too: asyncio's own, or `TaskCancelledError`, because trio's
    own cannot be passed on.
    """
    trio = _trio_running_here()
    if trio is not None:
        return _TrioTask(trio, fn, args, landed)
    return _AsyncioTask(sys.modules["asyncio"].get_running_loop(), fn, args, landed)


async def join(*tasks: OwnedTask) -> None:
    """Wait until all have ended, even when the waiting itself is cancelled; the cancellation is raised afterwards."""
    with anyio.CancelScope(shield=True):
        cancelled = await _ends_of(tasks)
    if cancelled is not None:
        try:
            raise cancelled
        finally:
            del cancelled  # its traceback refers to this frame: no cycle


async def _ends_of(tasks: Iterable[OwnedTask]) -> BaseException | None:
    """Wait until all have ended; return the cancellation that came meanwhile, if there was one."""
    cancelled = None
    for task in tasks:
        parker = parking.here()
        task._joining.append(parker)
        while not task.ended:
            parker.rearm()
            try:
                await parker.park(math.inf)
            except anyio.get_cancelled_exc_class() as again:  # asyncio's task.cancel() heeds no shield
                cancelled = again
    return cancelled


async def sleep(seconds: float) -> None:
    """Sleep as this task; by a timer of our own if the loop's clock is frozen."""
    if seconds > 0 and clock.is_real() and clock.is_tampered_with():
        await parking.here().park(seconds)
    else:
        await anyio.sleep(seconds)


def cut_after(seconds: float | None) -> anyio.CancelScope | _CutByThread:
    """A block that is cut after so many seconds, None: never; by a timer of our own if the loop's clock is frozen.

    It is a context manager, and its `cancelled_caught` says afterwards whether the block was cut.
    """
    if seconds is not None and clock.is_real() and clock.is_tampered_with():
        return _CutByThread(seconds)
    return anyio.move_on_after(seconds)


class _CutByThread:
    """A cancel scope that a thread cancels in time, as the loop's timers may never fire."""

    __slots__ = ("_scope", "_timer")

    def __init__(self, seconds: float) -> None:
        loop: Any = running_loop()
        self._scope = anyio.move_on_after(seconds)
        call = getattr(loop, "run_sync_soon", None) or loop.call_soon_threadsafe
        self._timer = parking.start_timer(seconds, lambda: self._cut(call))

    def _cut(self, call: Callable[[Callable[[], object]], object]) -> None:
        with suppress(RuntimeError):  # the loop is closed: so is the block
            call(self._scope.cancel)

    def __enter__(self) -> _CutByThread:
        self._scope.__enter__()
        return self

    def __exit__(self, *error: Any) -> bool:  # noqa: PYI036 - three, whatever they are
        self._timer.cancel()
        return self._scope.__exit__(*error)

    @property
    def cancelled_caught(self) -> bool:
        return self._scope.cancelled_caught


def running_loop() -> object:
    """The asyncio loop or trio run that runs this task; RuntimeError if there is none."""
    trio = _trio_running_here()
    return sys.modules["asyncio"].get_running_loop() if trio is None else trio.lowlevel.current_trio_token()


def _trio_running_here() -> Any:
    # Trio sets this name whenever it runs a task, also as a guest of asyncio. `in_trio_task()` takes 20 times as long
    # to say no.
    # Another thread may be importing sniffio right now: no loop of trio's runs before that is done.
    local = getattr(sys.modules.get("sniffio"), "thread_local", None)
    return sys.modules["trio"] if local is not None and local.name == "trio" else None
