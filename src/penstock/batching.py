"""Many callers, one call: `Batcher`.

    embed = Batcher(embed_many, max_items=100, max_cost={"tokens": 8_000}, max_delay=0.02)
    vector = await embed(text)               # one text in, its own vector out

Callers wait in a line. The first of them opens a batch, which is a task that belongs to everybody who waits for it:

    open        it waits until it is full, or old enough, or the limiter lets it go; the line grows meanwhile
    sent        it takes the front of the line, calls `send` once, and hands each caller the entry of its own item
    split       if that failed and an item may be to blame, each half is a batch of its own; so a bad item fails alone

A caller that is cancelled leaves at once, and its item with it if that was not sent yet. The last one to leave cancels the
batch and waits for its end, so nothing outlives those who asked for it, and nobody loses a result because
somebody else left. This is also why no caller leads: `send` runs in a task of its own, under no caller's deadline.

Retries, pauses and rates are not decided here: they belong to `send` and to the limiter.
"""

from __future__ import annotations

import functools
import math
import operator
import threading
from collections import deque
from collections.abc import AsyncIterable, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from inspect import isawaitable
from typing import TYPE_CHECKING, Any, Generic, NoReturn, Protocol, TypeVar, runtime_checkable

from penstock import clock
from penstock._concurrency import parking, tasks
from penstock._introspect import check_plain
from penstock.errors import MissingUnit, PenstockError, RateLimited, Unsatisfiable

if TYPE_CHECKING:
    from penstock.limiter import Limiter
    from penstock.permit import Permit

__all__ = ["Batcher", "ReplyMismatch", "may_be_an_items_fault"]

Item = TypeVar("Item")
Entry = TypeVar("Entry")
Cost = dict[str, float]

# Sums of floats: three 0.1s fit into 0.3.
_SLACK = 1 + 1e-12


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


class Batcher(Generic[Item, Entry]):
    """Collects single items and sends many in one call. Calling it with an item returns that item's own entry.

    Items are sent in the order in which they came, except that the halves of a failed batch are sent again as they are.
    One batcher serves any number of tasks, threads and event loops; those of one event loop share batches.

    Without `limiter`, a batch goes as soon as it is full, or `max_delay` after its oldest item came. With `limiter`, every
    call of `send` is charged there, and the batch goes as soon as the limiter lets it: at once while there is
    capacity, and while there is none it grows. So whichever limit binds decides the size: few requests and
    tokens to spare make large batches, few tokens small ones.

    `send` runs in a copy of the context of the caller that opened the batch, and under nobody's deadline.

    Args:
        send: An async function that is given a list of items, at least one, and returns their entries.
        max_items: Most items in one call; at least 1.
        max_cost: Most units in one call, all items together. An item that is above it alone is refused.
        max_delay: Longest time, in seconds, that an item waits for others; 0 or more. With `limiter` none waits for others.
        cost: What an item costs: a function of the item that returns an amount per unit, or a number if there is
            only one unit; or a number or a function of the item for each unit. Default: text costs one
            token for four bytes of UTF-8, rounded up, and nothing else has a cost.
        index: Reads from an entry which item it belongs to, counted from 0. Then entries may come in any order. Without it
            `send` returns a list with one entry per item, in their order.
        limiter: Charged for each call: the sum of the items' costs, and whatever units cost by default (1 request).
        split_on: Which errors may be the fault of a single item: exception types, or a function of the exception. A batch that
            fails with one is split in halves, down to the items. Default: all but what speaks of the service, see
            `may_be_an_items_fault`. One bad item among n costs up to 2·log2(n) more calls, n bad ones 2·n - 2.

    An entry that is itself an exception is raised, in its caller alone.

    Raises:
        ValueError: A bound is out of its range.
    """

    def __init__(
        self,
        send: Callable[[list[Item]], Awaitable[Iterable[Entry] | AsyncIterable[Entry]] | AsyncIterable[Entry]],
        *,
        max_items: int = 100,
        max_cost: Mapping[str, float] | None = None,
        max_delay: float = 0.01,
        cost: Callable[[Item], Mapping[str, float] | float]
        | Mapping[str, float | Callable[[Item], float]]
        | None = None,
        index: Callable[[Any], int] | None = None,
        limiter: Limiter | None = None,
        split_on: type[BaseException] | tuple[type[BaseException], ...] | Callable[[Exception], bool] | None = None,
    ) -> None:
        self._max_items = operator.index(max_items)
        if max_items < 1:
            raise ValueError(f"max_items must be 1 or more, not {max_items!r}")
        if not 0 <= max_delay < math.inf:
            raise ValueError(f"max_delay must be a finite number of seconds, 0 or more, not {max_delay!r}")
        self._max_cost = dict(max_cost or {})
        for unit, most in self._max_cost.items():
            if not 0 < most < math.inf:
                raise ValueError(f"max_cost must be a finite number of {unit} above 0, not {most!r}")
        self._send = send
        self._max_delay = max_delay
        self._cost = _cost_function(cost, self._max_cost, limiter)
        self._index = index
        self._limiter = limiter
        self._split_on = _judge(split_on)
        self._here = threading.local()

    async def __call__(self, item: Item) -> Entry:
        """Wait for a batch, and return the entry of this item.

        Cancelling withdraws the item unless it was sent.

        Raises:
            Unsatisfiable: The item alone costs more than `max_cost`.
            MissingUnit: `max_cost` bounds a unit for which the item has no cost.
            ReplyMismatch: The reply does not say which entry is ours.
            Exception: Whatever `send` or the limiter raised. All callers of one batch get the same object.
        """
        cost = None if self._cost is None else self._price(item)
        loop = tasks.running_loop()
        lane: _Lane[Item, Entry] | None = getattr(self._here, "lane", None)
        if lane is None or lane.loop is not loop:
            # A thread runs one loop after another. What is left in the old lane is with its own tasks.
            lane = self._here.lane = _Lane(self, loop)
        caller: _Caller[Item, Entry] = _Caller(item, cost, lane)
        lane.join(caller)
        try:
            await caller.parker.park(math.inf)
        except BaseException:
            await caller.leave()
            raise
        if caller.error is not None:
            caller.reraise()
        return caller.entry

    def _price(self, item: Item) -> Cost:
        assert self._cost is not None
        cost = self._cost(item)
        bounded = 0
        for unit, amount in cost.items():
            most = self._max_cost.get(unit)
            if most is not None:
                bounded += 1
            if not 0 <= amount < math.inf:
                raise ValueError(f"the cost of an item must be a finite number of {unit}, 0 or more, not {amount!r}")
            if most is not None and amount > most * _SLACK:
                raise Unsatisfiable(
                    f"an item of {amount:g} {unit} fits in no batch: max_cost is {most:g} {unit}. "
                    "Split the item, or raise max_cost",
                    unit=unit,
                    cost=amount,
                    capacity=most,
                )
        if bounded < len(self._max_cost):
            unit = next(unit for unit in self._max_cost if unit not in cost)
            raise MissingUnit(
                f"max_cost bounds {unit}, but the cost of {item!r:.60} is not known: "
                f"give cost={{{unit!r}: …}}, a number or a function of the item",
                unit=unit,
            )
        return cost


class _Caller(Generic[Item, Entry]):
    """One who waits: in the lane until a batch takes it, then in that batch, then nowhere."""

    __slots__ = ("arrived", "cost", "entry", "error", "home", "item", "parker", "traceback")

    entry: Entry

    def __init__(self, item: Item, cost: Cost | None, lane: _Lane[Item, Entry]) -> None:
        self.item = item
        self.cost = cost
        self.arrived = clock.now()
        self.parker = lane.parker()
        self.home: _Lane[Item, Entry] | _Batch[Item, Entry] | None = lane
        self.error: BaseException | None = None

    def serve(self, entry: Any) -> None:
        if isinstance(entry, BaseException):
            self.fail(entry)
            return
        self.home = None
        self.entry = entry
        self.parker.wake()

    def fail(self, error: BaseException) -> None:
        self.home = None
        self.error = error
        # Many callers raise the same exception: each from here, so that its traceback does not grow with their number.
        self.traceback = error.__traceback__
        self.parker.wake()

    def reraise(self) -> NoReturn:
        error, self.error = self.error, None  # a frame in the traceback refers to us: no cycle
        assert error is not None
        try:
            raise error.with_traceback(self.traceback)
        finally:
            del error, self.traceback

    async def leave(self) -> None:
        """Go away, and see to the end of what ran for us alone."""
        home, self.home = self.home, None
        if home is None:
            return  # served at the very moment of the cancellation
        task = home.forget(self)
        if task is not None:
            task.cancel()
            await tasks.join(task)


class _Lane(Generic[Item, Entry]):
    """The callers of one event loop that no batch has taken yet, in order of arrival."""

    __slots__ = ("batcher", "callers", "changes", "loop", "open", "parker", "total", "waiting")

    def __init__(self, batcher: Batcher[Item, Entry], loop: object) -> None:
        self.batcher = batcher
        self.loop = loop
        self.parker: Callable[[], parking.Parker] = parking.here
        if isinstance(parking.here(), parking.AsyncioParker):  # what here() would find out for each item anew
            self.parker = functools.partial(parking.AsyncioParker, loop)  # type: ignore[arg-type]
        self.callers: deque[_Caller[Item, Entry]] = deque()  # and some who have left: their home is elsewhere
        self.waiting = 0
        self.changes = 0  # how often somebody has come or left, here or in a batch
        self.total: Cost = dict.fromkeys(batcher._max_cost, 0)
        self.open: _Batch[Item, Entry] | None = None

    def join(self, caller: _Caller[Item, Entry]) -> None:
        self.callers.append(caller)
        self.waiting += 1
        self.changes += 1
        full = self.waiting == self.batcher._max_items
        if caller.cost is not None:
            for unit, most in self.batcher._max_cost.items():
                self.total[unit] += caller.cost[unit]
                full = full or self.total[unit] >= most
        if self.open is None:
            self._open_batch()
        elif full and self.open.parker is not None:
            self.open.parker.wake()

    def forget(self, caller: _Caller[Item, Entry]) -> tasks.OwnedTask | None:
        """Let one go who waits here. Returns the task that nobody waits for any more."""
        self.changes += 1
        self._count_out([caller])
        if self.waiting:
            if len(self.callers) > 2 * self.waiting + 64:  # those who left must not pile up behind a slow limiter
                self.callers = deque(one for one in self.callers if one.home is self)
            return None
        batch, self.open = self.open, None
        return None if batch is None else batch.task

    def front(self, bounds: Cost, *, at_least_one: bool = False) -> tuple[list[_Caller[Item, Entry]], bool]:
        """Those whom the next batch would take, and whether there is no room for more."""
        chosen: list[_Caller[Item, Entry]] = []
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
                            if total[unit] > bounds[unit] * _SLACK and (chosen or not at_least_one):
                                return chosen, True
            chosen.append(caller)
            if len(chosen) == self.batcher._max_items:
                return chosen, True
        return chosen, full

    def take(self, callers: list[_Caller[Item, Entry]], batch: _Batch[Item, Entry]) -> None:
        """Hand the front of the line over to the open batch, and open the next one for the rest."""
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

    def _count_out(self, callers: list[_Caller[Item, Entry]]) -> None:
        self.waiting -= len(callers)
        for unit in self.total:
            # From 0 again whenever that is known: sums of floats drift.
            self.total[unit] = self.total[unit] - _sum(callers, unit) if self.waiting else 0

    def _open_batch(self) -> None:
        self.open = _Batch(self)
        self.open.start()


class _Batch(Generic[Item, Entry]):
    """One call of `send`: its task, and the callers it is for once it has taken them."""

    __slots__ = ("callers", "lane", "parker", "task")

    def __init__(self, lane: _Lane[Item, Entry], callers: list[_Caller[Item, Entry]] | None = None) -> None:
        self.lane = lane
        self.callers = callers  # None while it is open
        self.parker: parking.Parker | None = None
        self.task: tasks.OwnedTask | None = None

    def start(self) -> None:
        self.task = tasks.start(self._run, landed=self._landed)

    def forget(self, caller: _Caller[Item, Entry]) -> tasks.OwnedTask | None:
        """Let one go who is in this batch. Returns the task that nobody waits for any more."""
        self.lane.changes += 1
        return None if self._present() else self.task

    def _present(self) -> list[_Caller[Item, Entry]]:
        """Our callers, without those who have left or were served."""
        return [caller for caller in self.callers or () if caller.home is self]

    async def _run(self) -> None:
        batcher = self.lane.batcher
        permits: list[Permit] = []
        sent = False
        try:
            try:
                if batcher._limiter is not None:
                    callers = await self._pay(batcher._limiter, permits)
                elif self.callers is None:
                    callers = self._take(await self._gather())
                else:
                    callers = self._take(self._present())
                if not callers:
                    return
                sent = True
                reply: Any = batcher._send([caller.item for caller in callers])
                if isawaitable(reply):
                    reply = await reply
                elif not isinstance(reply, AsyncIterable):
                    raise TypeError(
                        f"send must be an async function: {batcher._send!r} returned {type(reply).__name__}"
                    )
                if isinstance(reply, AsyncIterable):
                    reply = [entry async for entry in reply]
            except Exception as error:  # noqa: BLE001 - it goes to the callers
                self._failed(error)
            else:
                try:
                    _hand_out(callers, reply, batcher._index, self)
                except Exception as error:  # noqa: BLE001
                    self._fail(error)
        finally:
            for permit in permits:
                if sent:
                    permit.close()
                else:
                    permit.cancel()

    async def _gather(self) -> list[_Caller[Item, Entry]]:
        """Wait until the batch is full or its oldest caller has waited long enough."""
        lane = self.lane
        self.parker = parking.here()
        while True:
            callers, full = lane.front(lane.batcher._max_cost)
            if full or not callers:
                return callers
            left = callers[0].arrived + lane.batcher._max_delay - clock.now()
            if left <= 0:
                return callers
            self.parker.rearm()
            await self.parker.park(left)

    async def _pay(self, limiter: Limiter, permits: list[Permit]) -> list[_Caller[Item, Entry]]:
        """Stand in line at the limiter for those who are here now; take along who came meanwhile, if that can be paid too.

        We do not wait to know how large the batch will be, because a place in line is worth more than a full batch: where
        requests are short, the tokens for the others are there when our turn comes; where tokens are short, a small batch
        wastes nothing.
        """
        while True:
            limits = limiter.limits
            bounds = {unit: min(limit.capacity for limit in kinds) for unit, kinds in limits.items()}
            for unit, most in self.lane.batcher._max_cost.items():
                bounds[unit] = min(most, bounds.get(unit, most))
            callers = self._front(bounds, at_least_one=True)
            if not callers:
                return []
            cost = self._cost(callers, limits)
            changes = self.lane.changes
            # Units that the items do not name cost what they cost by default: one request, one place.
            permits.append(await limiter.acquire(**cost))  # type: ignore[arg-type]
            if changes == self.lane.changes:
                return self._take(callers)

            paid = dict.fromkeys(limits, 0.0) | cost
            cost = self._cost(self._front(bounds), limits)
            more = {unit: amount - paid[unit] for unit, amount in cost.items() if amount > paid[unit]}
            if more:
                try:
                    # Of the same call: what is counted per call, requests and places, is paid already.
                    extra = dict.fromkeys(limits, 0.0) | more
                    permits.append(await limiter.acquire(max_wait=0, **extra))  # type: ignore[arg-type]
                    paid |= {unit: cost[unit] for unit in more}
                except (RateLimited, Unsatisfiable):
                    pass
            callers = self._take(self._front(bounds | paid))
            if callers:
                cost = self._cost(callers, limits)
                for unit, amount in paid.items():
                    _refund(permits, unit, amount - cost.get(unit, 0))
                return callers
            while permits:  # those for whom it was paid have left, and it is too little for the next one
                permits.pop().cancel()

    def _front(self, bounds: Cost, *, at_least_one: bool = False) -> list[_Caller[Item, Entry]]:
        """Those whom we would take now."""
        if self.callers is not None:
            return self._present()
        # Not open any more: all have left, and while our cancellation is on its way others may have come.
        return self.lane.front(bounds, at_least_one=at_least_one)[0] if self.lane.open is self else []

    def _take(self, callers: list[_Caller[Item, Entry]]) -> list[_Caller[Item, Entry]]:
        if callers:
            if self.callers is None:
                self.lane.take(callers, self)
            self.callers = callers
        return callers

    def _cost(self, callers: list[_Caller[Item, Entry]], limits: Mapping[str, Any]) -> Cost:
        """What the limiter is to charge for these. Units that only `max_cost` knows are not its concern."""
        own = self.lane.batcher._max_cost
        units = {unit: None for caller in callers if caller.cost for unit in caller.cost}
        return {unit: _sum(callers, unit) for unit in units if unit in limits or unit not in own}

    def _failed(self, error: Exception) -> None:
        if self.callers is None:  # the limiter refused: those hear of it who would have gone
            self._take(self._front(self.lane.batcher._max_cost))
        callers = self._present()
        # Too large for the limiter is always a matter of size. And one who is left alone may pay for another who has gone.
        if (
            callers
            and len(self.callers or ()) > 1
            and (isinstance(error, Unsatisfiable) or self.lane.batcher._split_on(error))
        ):
            middle = (len(callers) + 1) // 2
            for part in callers[:middle], callers[middle:]:
                if part:
                    half = _Batch(self.lane, part)
                    for caller in part:
                        caller.home = half
                    half.start()
        else:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        for caller in self._present():
            caller.fail(error)

    def _landed(self, _: None, error: BaseException | None) -> None:
        """The task has ended. With an error only if it was cancelled by somebody else, or the program is being ended."""
        if error is None:
            return
        lane = self.lane
        if lane.open is self:
            self._take([caller for caller in lane.callers if caller.home is lane])
        self._fail(error)


def _sum(callers: list[_Caller[Any, Any]], unit: str) -> float:
    return sum([caller.cost[unit] for caller in callers if caller.cost and unit in caller.cost])


def _refund(permits: list[Permit], unit: str, surplus: float) -> None:
    for permit in permits:
        if surplus > 0:
            charged = permit.cost.get(unit, 0)
            back = min(charged, surplus)
            permit.settle(**{unit: charged - back})
            surplus -= back


def _hand_out(
    callers: list[_Caller[Item, Entry]], reply: Any, index: Callable[[Any], int] | None, batch: _Batch[Item, Entry]
) -> None:
    """Give each caller who is still there the entry of its item, or say to each concerned what is wrong with the reply.

    Raises:
        ReplyMismatch: Nobody can be sure of their entry.
    """
    count = len(callers)
    if index is None:
        if not isinstance(reply, Sequence | _Array) or isinstance(reply, str | bytes | Mapping):
            raise ReplyMismatch(
                f"send was given {count} items and returned {type(reply).__name__}: return a list with one entry per item, "
                "in their order, or say with index= how to read an entry's index",
                sent=count,
                received=None,
            )
        if len(reply) != count:
            raise ReplyMismatch(
                f"send was given {count} items and returned {len(reply)} entries: return one entry per item, "
                "in their order, or say with index= how to read an entry's index",
                sent=count,
                received=len(reply),
            )
        for caller, entry in zip(callers, reply, strict=True):
            if caller.home is batch:
                caller.serve(entry)
        return

    if not isinstance(reply, Iterable) or isinstance(reply, str | bytes | Mapping):
        raise ReplyMismatch(
            f"send was given {count} items and returned {type(reply).__name__}: with index=, return the entries",
            sent=count,
            received=None,
        )
    entries = list(reply)
    by_index: dict[int, list[Entry]] = {}
    for entry in entries:
        position = operator.index(index(entry))
        if not 0 <= position < count:
            # If they were counted from 1, each caller but the first would get its neighbour's. So nobody gets any.
            raise ReplyMismatch(
                f"an entry of the reply has index {position}, but the {count} items sent have 0 to {count - 1}",
                sent=count,
                received=len(entries),
            )
        by_index.setdefault(position, []).append(entry)
    for position, caller in enumerate(callers):
        own = by_index.get(position, ())
        if caller.home is not batch:
            continue
        if len(own) == 1:
            caller.serve(own[0])
        else:
            what = f"{len(own)} entries of the reply have" if own else "no entry of the reply has"
            caller.fail(
                ReplyMismatch(
                    f"{what} index {position}: send was given {count} items and returned {len(entries)} entries",
                    sent=count,
                    received=len(entries),
                )
            )


@runtime_checkable
class _Array(Protocol):
    """What can be counted and read by position: also arrays, which are no `Sequence`."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[Any]: ...
    def __getitem__(self, position: int, /) -> Any: ...


def may_be_an_items_fault(error: Exception) -> bool:
    """Whether a single item of a batch may be to blame for `error`: what `Batcher` goes by, unless `split_on` says otherwise.

    No for what speaks of the service or the way to it, since a split batch is many more calls: errors of penstock's own,
    `OSError` with its kin (timeouts, broken connections), errors of clients that have a `request` and no reply, and the HTTP
    statuses 401, 403, 407, 408, 425, 429 and from 500. Yes for all others: 400, 413, 422 and whatever is not known.
    """
    if isinstance(error, PenstockError | OSError | MemoryError):
        return False
    reply = getattr(error, "response", None)
    for status in (
        getattr(error, "status_code", None),
        getattr(error, "status", None),
        getattr(reply, "status_code", None),
    ):
        if isinstance(status, int):
            return 400 <= status < 500 and status not in _OF_THE_SERVICE
    try:
        return reply is not None or getattr(error, "request", None) is None
    except RuntimeError:  # httpx: an error whose request is not set
        return False


_OF_THE_SERVICE = frozenset({401, 403, 407, 408, 425, 429})


def _judge(split_on: Any) -> Callable[[Exception], bool]:
    if split_on is None:
        return may_be_an_items_fault
    if isinstance(split_on, type | tuple):
        return lambda error: isinstance(error, split_on)
    check_plain("Batcher", "split_on", split_on)
    judge: Callable[[Exception], bool] = split_on
    return judge


def _cost_function(cost: Any, max_cost: Cost, limiter: Limiter | None) -> Callable[[Any], Cost] | None:
    """Bring the ways to write a cost into one: a function of the item that returns units and amounts."""
    if cost is None:
        return _cost_of_text if max_cost else None
    if isinstance(cost, Mapping):
        fixed = {unit: amount for unit, amount in cost.items() if not callable(amount)}
        counted = [(unit, count) for unit, count in cost.items() if callable(count)]
        return lambda item: fixed | {unit: count(item) for unit, count in counted}

    def cost_of(item: Any) -> Cost:
        amount = cost(item)
        if isinstance(amount, Mapping):
            return dict(amount)
        units = list(max_cost)
        if not units and limiter is not None:
            # Those that must be given; a request costs 1 unless given.
            units = [
                unit
                for unit, limits in limiter.limits.items()
                if unit != "requests" and all(limit.default is None for limit in limits)
            ]
        if len(units) != 1:
            raise TypeError(
                f"cost returned {amount!r} for an item, and the units are {', '.join(units) or 'none'}: return {{unit: amount}}"
            )
        return {units[0]: amount}

    return cost_of


def _cost_of_text(item: Any) -> Cost:
    if isinstance(item, str):
        return {"tokens": math.ceil(len(item.encode()) / 4)}
    return {}
