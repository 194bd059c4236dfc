"""Many items through one async function, a bounded number at a time: `amap`.

    async for reply in amap(ask, prompts, in_flight=200):
        ...

A reader takes items from the source, one at a time and only when there is room. Every item becomes a task. The results
wait in a queue until the consumer asks for them. Two numbers bound everything: `in_flight` calls run, and at most twice
as many items have been read whose results were not handed over yet. So a slow consumer holds the source back,
and memory does not depend on the length of the source.

With `ordered=True` the queue has the order of the items. A slow call then holds back the results after it, at most
twice `in_flight` of them. With `ordered=False` the queue has the order in which calls end.

The tasks are not children of the consumer's: its cancel scopes cannot stay open while a loop's body runs (PEP 789).
They belong to the iterator, which ends them when it is exhausted, closed, cancelled, or collected.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Generator,
    Iterable,
    Sized,
)
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

import anyio

from penstock._concurrency import parking, tasks
from penstock._concurrency.shared_state import OfThisProcess
from penstock._introspect import check_answer, check_plain, kind_of, name_of
from penstock._numbers import read_count, read_flag
from penstock._text import repr_of
from penstock._user_errors import add_notes

if TYPE_CHECKING:
    from typing import Self

__all__ = ["Progress", "Results", "amap"]

Item = TypeVar("Item")
Result = TypeVar("Result")
Result_co = TypeVar("Result_co", covariant=True)


@dataclass(frozen=True, slots=True)
class Progress:
    """The progress of an `amap`.

    Attributes:
        started: Calls that have begun.
        done: Calls that have ended, with a result or an error.
        failed: Calls that have ended with an error.
        total: Items in the source, or None if it does not say.
    """

    started: int
    done: int
    failed: int
    total: int | None


@overload
def amap(
    fn: Callable[[Item], Awaitable[Result]],
    items: Iterable[Item] | AsyncIterable[Item],
    *,
    in_flight: int = ...,
    ordered: bool = ...,
    return_errors: Literal[False] = ...,
    on_progress: Callable[[Progress], object] | None = ...,
) -> Results[Result]: ...
@overload
def amap(
    fn: Callable[[Item], Awaitable[Result]],
    items: Iterable[Item] | AsyncIterable[Item],
    *,
    in_flight: int = ...,
    ordered: bool = ...,
    return_errors: bool,
    on_progress: Callable[[Progress], object] | None = ...,
) -> Results[Result | Exception]: ...
def amap(
    fn: Callable[[Item], Awaitable[Result]],
    items: Iterable[Item] | AsyncIterable[Item],
    *,
    in_flight: int = 100,
    ordered: bool = True,
    return_errors: bool = False,
    on_progress: Callable[[Progress], object] | None = None,
) -> Results[Any]:
    """Call `fn` with every item, up to `in_flight` at a time, and iterate over the results.

    Nothing begins before the first result is asked for. Each call runs in a task of its own, with a copy of the
    consumer's context. `fn` does not see the consumer's deadline, but is cancelled with it.

    The first error is raised as it is: no more items are read, the calls that still run are cancelled, the source is
    closed; results that were ready before are handed over first (`ordered`: as far as none is missing before them).

    Leaving early, by `break` or an exception in the body of the loop, cancels the calls and closes the source as soon
    as the iterator is collected (CPython: at once, unless something else still refers to it), and does not wait for
    them. To wait for their end, leave by the context manager:

        async with amap(ask, prompts) as replies:
            async for reply in replies:
                ...

    Args:
        fn: An async function of one item.
        items: Anything to iterate over, sync or async, of any length. A generator is closed at the end, whatever the
            end is. It is read in the event loop: a sync source that blocks, blocks the loop.
        in_flight: Most calls at a time; at least 1. At most 2 × in_flight items are read ahead of the results handed
            over.
        ordered: Hand the results over in the order of the items (True), or as they come (False).
        return_errors: Hand over an `Exception` in the place of its result, and go on. One from the source itself is
            raised even so, after the results of all items that were read.
        on_progress: Called, in the event loop, each time a call has ended. What it raises ends the iteration.

    Raises:
        ValueError: `in_flight` is below 1.
        TypeError: `items` cannot be iterated over, `fn` cannot be called, or `on_progress` is async.
    """
    count = read_count(in_flight)
    if count is None:
        raise ValueError(f"in_flight must be 1 or more, not {repr_of(in_flight)}")
    _check_function(fn)
    if on_progress is not None:
        check_plain("amap", "on_progress", on_progress)
    if not isinstance(items, AsyncIterable | Iterable):
        raise TypeError(f"amap needs something to iterate over, not {type(items).__name__}")
    ordered, return_errors = read_flag("ordered", ordered), read_flag("return_errors", return_errors)
    total = len(items) if isinstance(items, Sized) else None
    return Results(_AmapState(fn, items, count, ordered, return_errors, on_progress, total))


def _check_function(fn: object) -> None:
    """Refuse what gives no result for an item. That a plain callable returns none shows when it is called."""
    if not callable(fn):
        raise TypeError(f"amap calls a function with each item, and {repr_of(fn)} is not one")
    kind = kind_of(fn)
    if kind in {"stream", "generator", "context", "async context"}:
        what = "generator" if kind in {"stream", "generator"} else "context manager"
        raise TypeError(f"amap awaits one result for each item, and {name_of(fn)} is a {what}: give an async function")


class Results(OfThisProcess, AsyncIterator[Result_co]):
    """The results of an `amap`.

    An async iterator for one task, and a context manager that ends all calls on leaving.
    """

    def __init__(self, state: _AmapState) -> None:
        # The tasks refer to the state, never to us. So we are collected when the consumer's last reference is gone.
        self._state = state

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Result_co:
        state = self._state
        if state.consumer_waits:
            raise RuntimeError("two tasks wait for the next result of one amap: let one of them iterate")
        while True:
            queue = state.queue
            if queue and queue[0].done:
                value: Result_co = queue.popleft().value
                state.ahead -= 1
                state.wake_reader()
                return value
            if state.stopped or state.finished:
                error = state.error
                await state.close()
                try:
                    raise StopAsyncIteration if error is None else error
                finally:
                    del error  # its traceback refers to this frame: no cycle
            try:
                await state.wait()
            except BaseException:
                await state.close()
                raise

    async def aclose(self) -> None:
        """Cancel the calls, close the source, and wait for the end of both. A second call does nothing."""
        await self._state.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def __del__(self) -> None:
        self._state.abandon()


@dataclass(slots=True, eq=False)
class _ItemCall:
    """The call for one item: running, then a result in the queue."""

    state: _AmapState
    task: tasks.OwnedTask = field(init=False)
    value: Any = None
    done: bool = False

    def landed(self, value: Any, error: BaseException | None) -> None:
        state = self.state
        del state.running[self]
        if state.stopped and error is not None:
            return
        state.ended += 1
        if error is not None:
            state.failed += 1
            value = error
        if error is None or (state.return_errors and isinstance(error, Exception)):
            self.value = value
            self.done = True
            if not state.ordered:
                state.queue.append(self)
        else:
            state.fail(error)
        state.tell_progress()
        state.wake_reader()
        if state.queue and state.queue[0].done:
            state.wake_consumer()


@dataclass(slots=True, eq=False)
class _AmapState:
    """The state of an `amap`: the reader, the calls, and the queue of results. Only its own loop touches it."""

    fn: Callable[[Any], Awaitable[Any]]
    source: Any  # once begun, its iterator
    in_flight: int
    ordered: bool
    return_errors: bool
    on_progress: Callable[[Progress], object] | None
    total: int | None

    queue: deque[_ItemCall] = field(default_factory=deque)
    """Calls whose results were not handed over. In order: all that were started. Else: those that have ended."""
    running: dict[_ItemCall, None] = field(default_factory=dict)  # in the order in which they began
    ahead: int = 0
    """How many items were read whose result was not handed over."""
    started: int = 0
    ended: int = 0
    failed: int = 0

    reader: tasks.OwnedTask | None = None
    reader_parker: parking.Parker = field(init=False)
    consumer_parker: parking.Parker = field(init=False)
    reader_waits: bool = False
    consumer_waits: bool = False
    exhausted: bool = False
    stopped: bool = False
    """Only results that are ready will follow: something failed, or the consumer has left."""
    error: BaseException | None = None

    @property
    def finished(self) -> bool:
        return self.exhausted and not self.queue and not self.running

    async def wait(self) -> None:
        """Wait until there may be something for the consumer."""
        if self.reader is None:
            self.reader_parker = parking.here()
            self.consumer_parker = parking.here()
            self.reader = tasks.start(self._read, landed=self._read_to_the_end)
        self.consumer_waits = True
        try:
            self.consumer_parker.rearm()
            await self.consumer_parker.park(math.inf)
        finally:
            self.consumer_waits = False

    def wake_consumer(self) -> None:
        if self.consumer_waits:
            self.consumer_parker.wake(self.consumer_parker.home)

    def wake_reader(self) -> None:
        if self.reader_waits:
            self.reader_parker.wake(self.reader_parker.home)

    async def _read(self) -> None:
        try:
            asynchronous = isinstance(self.source, AsyncIterable)
            self.source = aiter(self.source) if asynchronous else iter(self.source)
            while True:
                while self.ahead >= 2 * self.in_flight:
                    await self._wait_for_room()
                try:
                    item = await anext(self.source) if asynchronous else next(self.source)
                except (StopIteration, StopAsyncIteration):
                    break
                self.ahead += 1
                while len(self.running) >= self.in_flight:
                    await self._wait_for_room()
                if self.stopped:  # our cancellation is on its way, and would not reach a call that starts now
                    break
                self._start(item)
        finally:
            # Here, in the task that read it: an async generator may hold cancel scopes of its own open.
            await self._close_source()

    async def _wait_for_room(self) -> None:
        self.reader_waits = True
        self.reader_parker.rearm()
        await self.reader_parker.park(math.inf)
        self.reader_waits = False

    def _start(self, item: Any) -> None:
        call = _ItemCall(self)
        self.running[call] = None
        if self.ordered:
            self.queue.append(call)
        self.started += 1
        call.task = tasks.start(self.fn, item, landed=call.landed)

    async def _close_source(self) -> None:
        source, self.source = self.source, ()
        if isinstance(source, Generator):
            source.close()
        elif isinstance(source, AsyncGenerator | Results):
            with anyio.CancelScope(shield=True):
                await source.aclose()

    def _read_to_the_end(self, _: None, error: BaseException | None) -> None:
        self.exhausted = True
        if error is not None and not self.stopped and not (self.return_errors and isinstance(error, Exception)):
            self.fail(error)
        elif isinstance(error, Exception):
            if self.error is None:
                self.error = error
            else:
                add_notes(self.error, f"penstock: closing the source failed as well: {repr_of(error)}")
        self.wake_consumer()

    def tell_progress(self) -> None:
        if self.on_progress is not None:
            try:
                answer = self.on_progress(Progress(self.started, self.ended, self.failed, self.total))
                check_answer("amap", "on_progress", answer)
            except Exception as error:  # noqa: BLE001 - the consumer gets it
                self.fail(error)

    def fail(self, error: BaseException) -> None:
        """Keep the first error, and stop."""
        if self.error is None:
            if issubclass(type(error), StopAsyncIteration):  # to the consumer it would look like the end of the results
                error, stop = RuntimeError(f"{name_of(self.fn)} raised StopAsyncIteration"), error
                error.__cause__ = stop
            self.error = error
        self.stop()

    def stop(self) -> None:
        if self.stopped:  # once: a second cancellation would interrupt the clean-up after the first
            return
        self.stopped = True
        for call in self.running:
            call.task.cancel()
        if self.reader is not None:
            self.reader.cancel()
        self.wake_consumer()

    async def close(self) -> None:
        """Cancel the calls, and wait for their end. Raise only what closing the source raised."""
        known = self.error
        self.stop()
        if self.reader is not None:
            await tasks.join(self.reader, *[call.task for call in self.running])
        await self._close_source()  # if the reader never began
        self.queue.clear()
        error, self.error = self.error, None
        if error is not None and error is not known:
            raise error

    def abandon(self) -> None:
        """Stop, because the iterator was collected. From any thread."""
        if self.reader is not None and not self.stopped and not self.finished:
            self.reader.call_in_loop(self.stop)
