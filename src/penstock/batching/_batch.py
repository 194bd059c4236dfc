"""The callers of a batcher, their queue, the batches that take them, and which entry of a reply each caller gets.

`_batcher` has the options, and decides which errors may be the fault of one item.
"""

from __future__ import annotations

import functools
import operator
from bisect import bisect
from collections import deque
from collections.abc import AsyncIterable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from inspect import isawaitable
from typing import TYPE_CHECKING, Any, NoReturn

from penstock import clock
from penstock._concurrency import parking, tasks
from penstock._introspect import check_answer, name_of
from penstock._numbers import number_of
from penstock._text import repr_of
from penstock.batching._costs import SLACK, Cost
from penstock.errors import PenstockError, RateLimited, Unsatisfiable

if TYPE_CHECKING:
    from penstock.limiter import Limiter
    from penstock.permit import Permit

_TRACEBACK: Any = BaseException.__traceback__


@dataclass(frozen=True, slots=True)
class BatcherOptions:
    """What a batcher was made with."""

    send: Callable[[list[Any]], Any]
    max_items: int
    max_cost: Cost
    max_delay: float
    index: Callable[[Any], int] | None
    limiter: Limiter | None
    split_on: Callable[[Exception], bool]


class WaitingCaller:
    """A call of the batcher that waits: in the queue until a batch takes it, then in that batch, then nowhere."""

    __slots__ = ("arrived", "cost", "entry", "error", "home", "item", "parker", "traceback")

    entry: Any

    def __init__(self, item: Any, cost: Cost | None, queue: CallerQueue) -> None:
        self.item = item
        self.cost = cost
        self.arrived = clock.now()
        self.parker = queue.parker()
        self.home: CallerQueue | BatchTask | None = queue
        self.error: BaseException | None = None

    def serve(self, entry: Any) -> None:
        if isinstance(entry, BaseException):
            self.fail(entry)
            return
        self.home = None
        self.entry = entry
        self.parker.wake(self.parker.home)

    def fail(self, error: BaseException) -> None:
        self.home = None
        self.error = error
        # Many callers raise the same exception: each from here, so that its traceback does not grow with their number.
        self.traceback = _TRACEBACK.__get__(error)  # by way of the class: an attribute of the error itself may raise
        self.parker.wake(self.parker.home)

    def reraise(self) -> NoReturn:
        error, self.error = self.error, None  # a frame in the traceback refers to us: no cycle
        assert error is not None
        try:
            raise BaseException.with_traceback(error, self.traceback)
        finally:
            del error, self.traceback

    async def leave(self) -> None:
        """Give up. If no other caller waits for the batch, cancel it and wait for its end."""
        home, self.home = self.home, None
        if home is None:
            return  # the result came at the very moment of the cancellation
        task = home.forget(self)
        if task is not None:
            task.cancel()
            await tasks.join(task)


class CallerQueue:
    """The callers of one event loop that no batch has taken yet, in order of arrival."""

    __slots__ = ("callers", "changes", "loop", "open", "options", "parker", "total", "waiting")

    def __init__(self, options: BatcherOptions, loop: object) -> None:
        self.options = options
        self.loop = loop
        self.parker: Callable[[], parking.Parker] = parking.here
        if isinstance(parking.here(), parking.AsyncioParker):  # or here() would find it out anew for each item
            self.parker = functools.partial(parking.in_loop, loop)
        self.callers: deque[WaitingCaller] = deque()  # some of them have left: their home is elsewhere
        self.waiting = 0
        self.changes = 0  # how often a caller has come or left, here or in a batch
        self.total: Cost = dict.fromkeys(options.max_cost, 0)
        self.open: BatchTask | None = None

    def join(self, caller: WaitingCaller) -> None:
        self.callers.append(caller)
        self.waiting += 1
        self.changes += 1
        full = self.waiting == self.options.max_items
        if caller.cost is not None:
            for unit, most in self.options.max_cost.items():
                self.total[unit] += caller.cost[unit]
                full = full or self.total[unit] >= most
        if self.open is None:
            self._open_batch()
        elif full and self.open.parker is not None:
            self.open.parker.wake(self.loop)

    def forget(self, caller: WaitingCaller) -> tasks.OwnedTask | None:
        """Remove a caller that waits here. Return the task that no caller waits for any more."""
        self.changes += 1
        self._count_out([caller])
        if self.waiting:
            if len(self.callers) > 2 * self.waiting + 64:  # callers that left must not pile up behind a slow limiter
                self.callers = deque(one for one in self.callers if one.home is self)
            return None
        batch, self.open = self.open, None
        return None if batch is None else batch.task

    def front(self, bounds: Cost, *, at_least_one: bool = False) -> tuple[list[WaitingCaller], bool]:
        """Return the callers that the next batch would take, and whether there is no room for more."""
        chosen: list[WaitingCaller] = []
        total = dict.fromkeys(bounds, 0.0)
        full = False
        for caller in self.callers:
            if caller.home is not self:
                continue
            if caller.cost:
                for unit, amount in caller.cost.items():
                    if unit in total:
                        total[unit] += amount
                        if total[unit] >= bounds[unit]:
                            full = True
                            if total[unit] > bounds[unit] * SLACK and (chosen or not at_least_one):
                                return chosen, True
            chosen.append(caller)
            if len(chosen) == self.options.max_items:
                return chosen, True
        return chosen, full

    def take(self, callers: list[WaitingCaller], batch: BatchTask) -> None:
        """Hand the front of the queue over to the open batch, and open the next one for the rest."""
        left = len(callers)
        while left:
            caller = self.callers.popleft()
            if caller.home is self:
                caller.home = batch
                left -= 1
        self._count_out(callers)
        self.open = None
        if self.waiting:
            self._open_batch()

    def _count_out(self, callers: list[WaitingCaller]) -> None:
        self.waiting -= len(callers)
        for unit in self.total:
            # Exactly 0 again when no caller waits: sums of floats drift.
            self.total[unit] = self.total[unit] - _sum(callers, unit) if self.waiting else 0

    def _open_batch(self) -> None:
        self.open = BatchTask(self)
        self.open.start()


@dataclass(slots=True, eq=False)
class BatchTask:
    """One call of `send`: its task and, once it has taken them, its callers."""

    queue: CallerQueue
    callers: list[WaitingCaller] | None = None  # None while it is open
    parker: parking.Parker | None = None
    task: tasks.OwnedTask | None = None

    def start(self) -> None:
        self.task = tasks.start(self._run, landed=self._landed)

    def forget(self, caller: WaitingCaller) -> tasks.OwnedTask | None:
        """Remove a caller of this batch. Return the task that no caller waits for any more."""
        self.queue.changes += 1
        return None if self._present() else self.task

    def _present(self) -> list[WaitingCaller]:
        """Our callers that still wait."""
        return [caller for caller in self.callers or () if caller.home is self]

    async def _run(self) -> None:
        options = self.queue.options
        permits: list[Permit] = []
        sent = False
        try:
            try:
                if options.limiter is not None:
                    callers = await self._pay(options.limiter, permits)
                elif self.callers is None:
                    callers = self._take(await self._gather())
                else:
                    callers = self._take(self._present())
                if not callers:
                    return
                sent = True
                reply = await _reply_of(options.send, [caller.item for caller in callers])
            except Exception as error:  # noqa: BLE001 - it goes to the callers
                self._failed(error)
            else:
                self._hand_out(callers, reply)
        finally:
            for permit in permits:
                if sent:
                    permit.close()
                else:
                    permit.cancel()

    def _hand_out(self, callers: list[WaitingCaller], reply: Any) -> None:
        """Give each caller that still waits the entry of its item, or tell it what is wrong with the reply."""
        try:
            entries = entries_of(reply, len(callers), self.queue.options.index)
        except Exception as error:  # noqa: BLE001 - it goes to the callers
            self._fail(error)
            return
        for caller, entry in zip(callers, entries, strict=True):
            if caller.home is self:
                caller.serve(entry)

    async def _gather(self) -> list[WaitingCaller]:
        """Wait until the batch is full or its oldest caller has waited long enough."""
        queue = self.queue
        self.parker = parking.here()
        while True:
            callers, full = queue.front(queue.options.max_cost)
            if full or not callers:
                return callers
            left = callers[0].arrived + queue.options.max_delay - clock.now()
            if left <= 0:
                return callers
            self.parker.rearm()
            await self.parker.park(left)

    async def _pay(self, limiter: Limiter, permits: list[Permit]) -> list[WaitingCaller]:
        """Wait at the limiter for the first caller, and take along all others that the limiter lets go with it.

        No caller waits for the tokens of a later one. Where requests are short, those are there when the first one's
        turn comes, also for callers that have come meanwhile; where tokens are short, a small batch wastes nothing.
        """
        while True:
            limits = limiter.limits
            bounds = {unit: min(limit.capacity for limit in kinds) for unit, kinds in limits.items()}
            for unit, most in self.queue.options.max_cost.items():
                bounds[unit] = min(most, bounds.get(unit, most))
            callers = self._front(bounds, at_least_one=True)
            if not callers:
                return []
            if self.callers is None and len(callers) > 1:
                wait = limiter.forecast(**self._beyond({}, callers[:1], limits)).wait
                callers = self._as_many_as_go(wait, callers, {}, limiter) or callers[:1]
            cost = self._beyond({}, callers, limits)
            changes = self.queue.changes
            # Units that the items do not name cost what they cost by default: one request, one place.
            permits.append(await limiter.acquire(**cost))  # type: ignore[arg-type]
            if changes == self.queue.changes:
                return self._take(callers)

            paid = dict.fromkeys(limits, 0.0) | cost
            more = self._beyond(paid, self._as_many_as_go(0, self._front(bounds), paid, limiter), limits)
            if any(more.values()):
                try:
                    permits.append(await limiter.acquire(max_wait=0, **more))  # type: ignore[arg-type]
                    paid = {unit: amount + more[unit] for unit, amount in paid.items()}
                except (RateLimited, Unsatisfiable):
                    pass
            callers = self._take(self._front(bounds | paid))
            if callers:
                cost = self._beyond({}, callers, limits)
                for unit, amount in paid.items():
                    _refund(permits, unit, amount - cost.get(unit, 0))
                return callers
            while permits:  # the callers that we paid for have left, and we paid too little for the next one
                permits.pop().cancel()

    def _as_many_as_go(
        self, wait: float, callers: list[WaitingCaller], paid: Cost, limiter: Limiter
    ) -> list[WaitingCaller]:
        """The first of these, as many as would wait no longer than so many seconds together."""
        limits = limiter.limits

        def is_too_late(count: int) -> bool:
            return limiter.forecast(**self._beyond(paid, callers[:count], limits)).wait > wait

        if not callers or not is_too_late(len(callers)):
            return callers
        return callers[: bisect(range(1, len(callers)), 0, key=is_too_late)]

    def _front(self, bounds: Cost, *, at_least_one: bool = False) -> list[WaitingCaller]:
        """Return the callers that we would take now."""
        if self.callers is not None:
            return self._present()
        # If it is not open any more, all have left. Others may have come while our cancellation is on its way.
        return self.queue.front(bounds, at_least_one=at_least_one)[0] if self.queue.open is self else []

    def _take(self, callers: list[WaitingCaller]) -> list[WaitingCaller]:
        if callers:
            if self.callers is None:
                self.queue.take(callers, self)
            self.callers = callers
        return callers

    def _beyond(self, paid: Cost, callers: list[WaitingCaller], limits: Mapping[str, Any]) -> Cost:
        """What the limiter is to charge for these beyond what is paid. It does not know what only `max_cost` bounds."""
        own = self.queue.options.max_cost
        units = {unit: None for caller in callers if caller.cost for unit in caller.cost}
        cost = {unit: _sum(callers, unit) for unit in units if unit in limits or unit not in own}
        # It belongs to the same call: units that count calls, requests and places, are paid already.
        return {unit: max(0.0, cost.get(unit, 0.0) - amount) for unit, amount in paid.items()} if paid else cost

    def _failed(self, error: Exception) -> None:
        if self.callers is None:  # the limiter refused: tell the callers that would have gone
            self._take(self._front(self.queue.options.max_cost))
        callers = self._present()
        # Halves help when the batch is too large for the limiter. A caller that is left alone may fail for the item of
        # another that has gone.
        if (
            callers
            and len(self.callers or ()) > 1
            and (issubclass(type(error), Unsatisfiable) or self.queue.options.split_on(error))
        ):
            middle = (len(callers) + 1) // 2
            for part in callers[:middle], callers[middle:]:
                if part:
                    half = BatchTask(self.queue, part)
                    for caller in part:
                        caller.home = half
                    half.start()
        else:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        for caller in self._present():
            caller.fail(error)

    def _landed(self, _: None, error: BaseException | None) -> None:
        """Note the end of the task. It has an error only if others cancelled it, or if the program is ending."""
        if error is None:
            return
        queue = self.queue
        if queue.open is self:
            self._take([caller for caller in queue.callers if caller.home is queue])
        self._fail(error)


async def _reply_of(send: Callable[[list[Any]], Any], items: list[Any]) -> Any:
    reply = send(items)
    if isawaitable(reply):
        reply = await reply
    elif not isinstance(reply, AsyncIterable):
        raise TypeError(f"send must be an async function: {name_of(send)} returned {type(reply).__name__}")
    return [entry async for entry in reply] if isinstance(reply, AsyncIterable) else reply


def _sum(callers: list[WaitingCaller], unit: str) -> float:
    return sum([caller.cost[unit] for caller in callers if caller.cost and unit in caller.cost])


def _refund(permits: list[Permit], unit: str, surplus: float) -> None:
    for permit in permits:
        if surplus > 0:
            charged = permit.cost.get(unit, 0)
            back = min(charged, surplus)
            permit.settle(**{unit: charged - back})
            surplus -= back


# Which entry of a reply is of which item: by their order, or by an index that each entry has


class ReplyMismatch(PenstockError, ValueError):  # noqa: N818 - it names what is wrong, as the other errors do
    """The reply does not say which entry belongs to which item.

    Attributes:
        sent: Number of items in the call.
        received: Number of entries in its reply; None if it has none.
    """

    def __init__(self, message: str, *, sent: int, received: int | None) -> None:
        super().__init__(message)
        self.sent = sent
        self.received = received


def entries_of(reply: Any, count: int, index: Callable[[Any], int] | None) -> Sequence[Any]:
    """The entry of each item, in order; a `ReplyMismatch` instead of one that is unclear, or raised for all."""
    return _in_order(reply, count) if index is None else _by_index(reply, count, index)


def _in_order(reply: Any, count: int) -> Sequence[Any]:
    way_out = "in their order, or say with index= how to read an entry's index"
    # As sequences have, and arrays, which are none.
    can_be_read = all(hasattr(type(reply), name) for name in ("__len__", "__iter__", "__getitem__"))
    if not can_be_read or isinstance(reply, str | bytes | Mapping):
        what = f"{type(reply).__name__}: return a list with one entry per item, {way_out}"
        raise ReplyMismatch(f"{_given(count)} and returned {what}", sent=count, received=None)
    if len(reply) != count:
        what = f"{_entries(len(reply))}: return one entry per item, {way_out}"
        raise ReplyMismatch(f"{_given(count)} and returned {what}", sent=count, received=len(reply))
    return list(reply)


def _by_index(reply: Any, count: int, index: Callable[[Any], int]) -> Sequence[Any]:
    if not isinstance(reply, Iterable) or isinstance(reply, str | bytes | Mapping):
        what = f"{type(reply).__name__}: with index=, return the entries"
        raise ReplyMismatch(f"{_given(count)} and returned {what}", sent=count, received=None)
    received = list(reply)
    by_index: dict[int, list[Any]] = {}
    for entry in received:
        answer = index(entry)
        check_answer("Batcher", "index", answer)
        try:
            position = operator.index(answer)
        except TypeError:
            raise TypeError(
                f"Batcher(index=...) returned {repr_of(answer)} for an entry of the reply: "
                "it says which item that belongs to, counted from 0"
            ) from None
        if not 0 <= position < count:
            # If they were counted from 1, each caller but the first would get its neighbour's. So none gets any.
            raise ReplyMismatch(
                f"an entry of the reply has index {position}, and {_given(count)}: they have 0 to {count - 1}",
                sent=count,
                received=len(received),
            )
        by_index.setdefault(position, []).append(entry)
    return [_only(by_index.get(position, []), position, count, len(received)) for position in range(count)]


def _only(entries: list[Any], position: int, count: int, received: int) -> Any:
    """The one entry of a position; else the error for its caller alone."""
    if len(entries) == 1:
        return entries[0]
    what = f"{_entries(len(entries))} of the reply have" if entries else "no entry of the reply has"
    return ReplyMismatch(
        f"{what} index {position}: {_given(count)} and returned {_entries(received)}",
        sent=count,
        received=received,
    )


def _given(count: int) -> str:
    return f"send was given {number_of(count, 'item')}"


def _entries(count: int) -> str:
    return number_of(count, "entry", "entries")
