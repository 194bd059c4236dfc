"""What a queue is made of: waiters, in subqueues of one flow, in levels, in shapes.

Nothing here decides or reads a clock. See `queue` for the order.
"""

from __future__ import annotations

import copy
import math
from collections import deque
from collections.abc import Collection, Hashable, Iterable, Iterator
from heapq import heappop, heappush
from typing import Any, Protocol


class Charged(Protocol):
    """One limit, as a queue knows it."""

    throughput: float
    """Units per second, to compare the use of different limits."""
    queued: float
    """Units that all waiters together have asked for."""


Charges = tuple[tuple[Charged, float], ...]
Key = tuple[int, float, int]


class Index(Protocol):
    """What a queue reports to if it has many shapes: see `shapes`."""

    def enroll(self, shape: Shape) -> None: ...
    def add(self, subqueue: Subqueue, number: int) -> None: ...
    def joined(self, shape: Shape, waiter: Waiter) -> None: ...
    def serve(self, flow: Flow) -> None: ...
    def wake(self, states: Iterable[Any] | None) -> None: ...
    def first(self, now: float) -> Waiter | None: ...
    def lowest(self) -> int: ...


class Waiter:
    """A call that waits in a queue, once: a call that comes back is a new waiter.

    `number` is the order of arrival, 0 before it. `subqueue` is None while it is in no queue. `receipts` are what
    `admit` charged, None before its turn. The queue sets the moment of its arrival, its level and since when it has had
    that.
    """

    __slots__ = ("arrived", "charges", "entered", "flow", "level", "number", "priority", "receipts", "subqueue")

    arrived: float
    entered: float  # when it entered its present level
    level: int
    subqueue: Subqueue | None

    def __init__(self, charges: Charges, priority: int = 0, flow: Hashable = None) -> None:
        self.charges: Any = charges  # a queue's owner knows more of its limits than the queue does
        self.priority: int = priority
        self.flow: Hashable = flow
        self.number: int = 0
        self.receipts: Any = None
        self.subqueue = None


class Subqueue:
    """The waiters of one shape, level and flow, in order of arrival.

    Almost all arrive in order, which is a deque; the few that rise from a lower level are strays.
    """

    __slots__ = ("flow", "gone", "key", "level", "run", "strays")

    def __init__(self, flow: Flow, level: ShapeLevel) -> None:
        self.flow: Flow = flow
        self.level: ShapeLevel = level
        self.run: deque[Waiter] = deque()
        self.strays: list[tuple[int, Waiter]] = []
        self.gone: int = 0  # how many entries of `run` and `strays` have left
        self.key: tuple[float, int] | None = None  # this subqueue's entry in the level's heap

    def add(self, waiter: Waiter) -> None:
        if self.run and self.run[-1].number > waiter.number:
            heappush(self.strays, (waiter.number, waiter))
        else:
            self.run.append(waiter)
        waiter.subqueue = self

    def first(self) -> Waiter | None:
        run, strays = self.run, self.strays
        while run and run[0].subqueue is not self:
            run.popleft()
            self.gone -= 1
        while strays and strays[0][1].subqueue is not self:
            heappop(strays)
            self.gone -= 1
        if strays and (not run or strays[0][0] < run[0].number):
            return strays[0][1]
        return run[0] if run else None

    def __iter__(self) -> Iterator[Waiter]:
        for waiter in [*self.run, *(stray for _, stray in self.strays)]:
            if waiter.subqueue is self:
                yield waiter

    def forget_the_gone(self) -> None:
        self.run = deque(w for w in self.run if w.subqueue is self)
        self.strays = sorted(item for item in self.strays if item[1].subqueue is self)  # a sorted list is a heap
        self.gone = 0


class ShapeLevel:
    """All subqueues of one shape and level.

    `joined` and `risen` hold all waiters that entered it, earliest first, to raise them.
    """

    __slots__ = ("gone", "heap", "joined", "number", "risen", "shape", "subqueues")

    def __init__(self, number: int, shape: Shape) -> None:
        self.number: int = number
        self.shape: Shape = shape
        self.subqueues: dict[Hashable, Subqueue] = {}
        self.heap: list[tuple[float, int, Hashable]] = []
        self.joined: deque[Waiter] = deque()
        self.gone: int = 0  # so many have left since it was looked through
        self.risen: list[tuple[float, int, Waiter]] = []  # a heap: when it entered, number, waiter

    def note(self, subqueue: Subqueue) -> None:
        """Put the subqueue's first waiter into the heap, unless it stands there already."""
        first = subqueue.first()
        if first is None:
            del self.subqueues[subqueue.flow.name]
            return
        if self.shape.index is not None:
            self.shape.index.add(subqueue, first.number)
        key = (subqueue.flow.tag, first.number)
        if key != subqueue.key:
            subqueue.key = key
            if len(self.subqueues) == 1:
                self.heap.clear()  # its entries are outdated
            heappush(self.heap, (*key, subqueue.flow.name))

    def forget_the_gone(self) -> None:
        self.joined = deque(w for w in self.joined if w.subqueue is not None and w.subqueue.level is self)
        self.gone = 0

    def since(self) -> float:
        """Since when the waiter that rises next has had this level; `inf` without one."""
        joined = self.joined[0].arrived if self.joined else math.inf
        return min(joined, self.risen[0][0]) if self.risen else joined

    def best(self) -> tuple[float, Waiter] | None:
        """The first waiter of the least served flow, and that flow's tag."""
        subqueues, heap = self.subqueues, self.heap
        if len(subqueues) == 1:
            ((_, subqueue),) = subqueues.items()
            first = subqueue.first()
            if first is not None:
                return subqueue.flow.tag, first
            subqueues.clear()
        while subqueues:
            tag, number, name = heap[0]
            found = subqueues.get(name)
            if found is not None and found.key == (tag, number):
                first = found.first()
                if first is not None and first.number == number and found.flow.tag == tag:
                    return tag, first
                heappop(heap)
                found.key = None
                self.note(found)
            else:
                heappop(heap)
        heap.clear()
        return None


class Flow:
    """A flow: what it has used of each limit, and how many waiters it has."""

    __slots__ = ("count", "name", "start", "tag", "usage", "weight")

    def __init__(self, name: Hashable, weight: float, start: float) -> None:
        self.name: Hashable = name
        self.weight: float = weight
        self.tag: float = start
        self.start: float = start
        self.usage: dict[Charged, float] = {}
        self.count: int = 0

    def begin(self, start: float) -> None:
        """Come back after an absence: no credit for the time away."""
        self.start = max(self.start, start)
        self.usage = {charged: usage for charged, usage in self.usage.items() if usage > self.start}
        self.tag = max(self.usage.values(), default=self.start)

    def twin(self) -> Flow:
        twin = copy.copy(self)
        twin.usage = dict(self.usage)
        return twin

    def use(self, charges: Charges) -> None:
        for charged, amount in charges:
            used = self.usage.get(charged, self.start) + amount / charged.throughput / self.weight
            self.usage[charged] = used
            self.tag = max(self.tag, used)


class Shape:
    """All waiters that charge the same limits: by level, highest first."""

    __slots__ = ("index", "least", "levels", "order", "rises", "sleepers")

    least: dict[Charged, float]  # no waiter of this shape wants less of each limit
    sleepers: Any  # the class of shapes that this one sleeps with

    def __init__(self) -> None:
        self.levels: dict[int, ShapeLevel] = {}
        self.order: list[int] = []
        self.index: Index | None = None
        # Since when the waiter that rises next has had its level, as the index knows it.
        self.rises: float | None = None

    def add_level(self, number: int) -> ShapeLevel:
        level = self.levels[number] = ShapeLevel(number, self)
        self.order = sorted(self.levels, reverse=True)
        return level

    def take_apart(self) -> None:
        """Let go of all: else levels and what they are made of refer to each other, and to waiters that are gone."""
        self.order.clear()
        for level in self.levels.values():
            level.joined.clear()
            level.subqueues.clear()
        self.levels.clear()

    def alone(self) -> bool:
        """Whether one waiter is all there is."""
        subqueues = [subqueue for level in self.levels.values() for subqueue in level.subqueues.values()]
        return len(subqueues) == 1 and len(subqueues[0].run) + len(subqueues[0].strays) - subqueues[0].gone == 1

    def head(self) -> tuple[Key, Waiter] | None:
        while self.order:
            number = self.order[0]
            best = self.levels[number].best()
            if best is not None:
                return (-number, best[0], best[1].number), best[1]
            del self.levels[self.order.pop(0)]
        return None

    def head_without(self, flows: Collection[Hashable]) -> tuple[Key, Waiter] | None:
        """The head, if some flows had no waiters."""
        for number in self.order:
            firsts = [
                (subqueue.flow.tag, first.number, first)
                for name, subqueue in self.levels[number].subqueues.items()
                if name not in flows and (first := subqueue.first()) is not None
            ]
            if firsts:
                tag, _, first = min(firsts)
                return (-number, tag, first.number), first
        return None
