"""Many shapes: which of them a turn must look at, when thousands of users wait on `org & per_user[user]`.

Nothing here grants: `turns.admit` does, and asks a `ShapeIndex` for the shapes that may have a turn, in the order of
the queue.

**Order.** An `Order` keeps subqueues in the order of their turns in two tiers of heaps: groups (one level, one flow),
and in each group its subqueues. When a flow's tag grows, one group moves, however many shapes the flow has. All keys
are lower bounds: an entry with an outdated key is corrected when it comes to the top.

**Sleep.** A shape that had no turn sleeps on one limit that excludes it: the limit is not ready for the shape's
smallest amount, or charging that amount would delay a protected waiter. Both hold for every larger amount too. So
sleepers of one limit with amounts of one magnitude form a class, which remembers its least amount. While a class is
excluded for that, no turn looks at its shapes.

**Waking.** A class is looked at when its limit becomes ready (a heap of alarms), when `wake` reports that something was
given back or changed, and in every turn while its limit is ready and only protected waiters exclude it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from heapq import heappop, heappush, heapreplace
from itertools import count
from typing import Any

from penstock._core.queue import Queue
from penstock._core.subqueues import Flow, Key, Shape, Subqueue, Waiter
from penstock._core.windows import CalendarWindow

MANY = 32
"""With more shapes than this a queue gets an index; with fewer it is cheaper to look at all of them."""

_EARLY = 2e-6
"""Seconds before its moment at which an alarm is due: meters forgive up to 1 µs of rounding, and have the last word."""

_WALL_CLOCK_STEP = 1e-3
"""Seconds by which the wall clock may drift before limits that follow it are looked at anew."""

_serials = count()  # so that heaps never compare what follows


class _Group:
    """The subqueues of one level and flow, earliest first waiter first."""

    __slots__ = ("flow", "heap", "key", "rank", "stands")

    def __init__(self, rank: int, flow: Flow) -> None:
        self.rank = rank  # the level, negated: smaller goes first
        self.flow = flow
        self.heap: list[tuple[int, int, Subqueue]] = []
        self.stands: dict[Subqueue, int] = {}  # the number under which each subqueue stands in the heap
        self.key: Key | None = None  # the group's entry in the order's heap


class Order:
    """Subqueues in the order of their turns. See above."""

    __slots__ = ("_groups", "_heap", "_tags")

    def __init__(self, tags: dict[Flow, float]) -> None:
        self._groups: dict[tuple[int, Flow], _Group] = {}
        self._heap: list[tuple[Key, int, _Group]] = []
        self._tags = tags  # of the flows that were served in this turn: their tags at its beginning

    def has(self, subqueue: Subqueue) -> bool:
        """Whether the subqueue belongs here. What does not is dropped when it comes to the top."""
        return True

    def add(self, subqueue: Subqueue, number: int) -> None:
        """Let the subqueue stand under the number of its first waiter; under a lower one, if it stands here already."""
        flow = subqueue.flow
        name = (subqueue.level.number, flow)
        group = self._groups.get(name)
        if group is None:
            group = self._groups[name] = _Group(-subqueue.level.number, flow)
        stands = group.stands.get(subqueue)
        if stands is None or number < stands:
            group.stands[subqueue] = number
            heappush(group.heap, (number, next(_serials), subqueue))
        key = (group.rank, self._tags.get(flow, flow.tag), group.heap[0][0])
        if group.key is None or key < group.key:
            group.key = key
            heappush(self._heap, (key, next(_serials), group))

    def lowest(self) -> int:
        """The lowest level of any subqueue; of one without waiters, if it has not come to the top yet."""
        return min(level for level, _ in self._groups)

    def peek(self) -> tuple[Key, Subqueue] | None:
        """The first subqueue in the order, with its key."""
        heap = self._heap
        while heap:
            key, _, group = heap[0]
            if key is not group.key:
                heappop(heap)
                continue
            number = self._front(group)
            if number is None:
                heappop(heap)
                del self._groups[-group.rank, group.flow]
                continue
            present = (group.rank, self._tags.get(group.flow, group.flow.tag), number)
            if present == key:
                return key, group.heap[0][2]
            group.key = present
            heapreplace(heap, (present, next(_serials), group))
        return None

    def pop(self) -> None:
        """Take the subqueue out that `peek` has just returned."""
        group = self._heap[0][2]
        _, _, subqueue = heappop(group.heap)
        del group.stands[subqueue]

    def _front(self, group: _Group) -> int | None:
        """The number of the group's first waiter, with outdated entries corrected."""
        heap, stands = group.heap, group.stands
        while heap:
            number, _, subqueue = heap[0]
            if stands.get(subqueue) != number:
                heappop(heap)
                continue
            first = subqueue.first() if self.has(subqueue) else None
            if first is None:
                heappop(heap)
                del stands[subqueue]
            elif first.number != number:
                stands[subqueue] = first.number
                heapreplace(heap, (first.number, next(_serials), subqueue))
            else:
                return number
        return None


class Sleepers(Order):
    """The shapes that sleep on one limit, with amounts of one magnitude; without a limit: those that are awake."""

    __slots__ = ("alarm", "least", "open", "over", "state")

    def __init__(self, state: Any, tags: dict[Flow, float]) -> None:
        super().__init__(tags)
        self.state = state
        self.least = math.inf  # no waiter of these shapes wants less of the limit
        self.alarm: float | None = None  # the moment of the entry in the heap of alarms
        self.open = False  # whether the present turn looks at these shapes
        self.over = False  # whether the class was given up, as no waiter was left in it

    def has(self, subqueue: Subqueue) -> bool:
        return subqueue.level.shape.sleepers is self

    def opens(self, now: float) -> float:
        """The moment from which the limit may be ready for one of these shapes; `now` if it is."""
        return float(self.state.ready_at(self.least, now))


class ShapeIndex:
    """What a queue with many shapes knows about them. `admit` makes one, and the queue reports to it what changes."""

    __slots__ = (
        "_alarms", "_calendar", "_classes", "_queue", "_ready", "_rises", "_woken", "awake", "everybody", "tags",
    )  # fmt: skip

    def __init__(self, queue: Queue, shapes: Iterable[Shape]) -> None:
        self._queue = queue
        self.tags: dict[Flow, float] = {}
        self.everybody = Order(self.tags)
        self.awake = Sleepers(None, self.tags)
        self._classes: dict[Any, dict[int, Sleepers]] = {}
        self._alarms: list[tuple[float, int, Sleepers]] = []
        self._ready: set[Sleepers] = set()  # classes whose limit is ready: every turn looks at them
        self._woken: set[Any] | None = set()  # limits that `wake` named; None: all
        self._rises: list[tuple[float, int, Shape]] = []  # since when the earliest waiter has had its level
        self._calendar: tuple[CalendarWindow, float] | None = None  # one that is slept on, and its offset then
        for shape in shapes:
            self.enroll(shape)
            for level in shape.levels.values():
                for subqueue in level.subqueues.values():
                    for waiter in subqueue:
                        self.lower(shape, waiter)
            self.put_back(shape)
            self.plan_rise(shape)

    # What the queue reports.

    def enroll(self, shape: Shape) -> None:
        """Know a new shape: it is awake."""
        shape.index = self
        shape.sleepers = self.awake
        shape.least = {}

    def add(self, subqueue: Subqueue, number: int) -> None:
        """A subqueue has a first waiter that it did not have."""
        self.everybody.add(subqueue, number)
        shape = subqueue.level.shape
        if shape.sleepers.over:
            shape.sleepers = self.awake
        shape.sleepers.add(subqueue, number)

    def joined(self, shape: Shape, waiter: Waiter) -> None:
        """A waiter has entered the shape."""
        self.lower(shape, waiter)
        if shape.rises is None:
            self._rise_at(shape, waiter.entered)

    def lower(self, shape: Shape, waiter: Waiter) -> None:
        """Take note of the smallest amounts that a shape asks for, and its class of them."""
        least = shape.least
        for state, amount in waiter.charges:
            if amount < least.get(state, math.inf):
                least[state] = amount
        sleepers = shape.sleepers
        # Not only if this waiter asks for less than others of its shape: a shape without waiters counts nowhere.
        if sleepers.state is not None and least[sleepers.state] < sleepers.least:
            sleepers.least = least[sleepers.state]
            self.wake([sleepers.state])

    def serve(self, flow: Flow) -> None:
        """A flow is about to be charged: its other shapes keep their position until the end of the turn."""
        self.tags.setdefault(flow, flow.tag)

    def wake(self, states: Iterable[Any] | None) -> None:
        """Something was given back to these limits, or they changed; None: any of them may have."""
        if states is None:
            self._woken = None
        elif self._woken is not None:
            self._woken.update(states)

    # What a turn asks for.

    def begin(self, now: float) -> list[Sleepers]:
        """Raise waiters whose time has come; return the classes of sleepers that the turn has to look at."""
        self._raise(now)
        if self._calendar is not None and abs(self._calendar[0].offset - self._calendar[1]) > _WALL_CLOCK_STEP:
            self._calendar = None
            self._woken = None
        due = self.woken(now) | self._ready
        while self._alarms and self._alarms[0][0] <= now + _EARLY:
            moment, _, sleepers = heappop(self._alarms)
            if moment == sleepers.alarm:
                sleepers.alarm = None
                due.add(sleepers)
        return list(due)

    def _raise(self, now: float) -> None:
        latest = now - self._queue.ageing
        while self._rises and self._rises[0][0] <= latest:
            _, _, shape = heappop(self._rises)
            shape.rises = None
            self._queue.raise_levels(shape, now)
            self.plan_rise(shape)

    def first(self, now: float) -> Waiter | None:
        """The first of all waiters."""
        self._raise(now)
        front = self.everybody.peek()
        return None if front is None else front[1].first()

    def lowest(self) -> int:
        """A level below which there are no waiters."""
        return self.everybody.lowest()

    def woken(self, now: float) -> set[Sleepers]:
        """The classes whose limit is ready now, of those on limits that `wake` named since the last call."""
        states = self._classes if self._woken is None else self._woken
        if not states:
            return set()
        self._woken = set()
        due = set()
        for state in list(states):
            for sleepers in self._classes.get(state, {}).values():
                moment = sleepers.opens(now)
                if moment <= now:
                    due.add(sleepers)
                elif moment != sleepers.alarm:
                    self._set_alarm(sleepers, moment)
        return due

    def sleep(self, shape: Shape, waiter: Waiter, state: Any) -> Sleepers:
        """Let a shape sleep on a limit that excludes its head `waiter`; awake if no limit can be slept on (None)."""
        if state is None:
            shape.sleepers = self.awake
            return self.awake
        if shape.alone():
            shape.least = dict(waiter.charges)
        least = shape.least[state]
        classes = self._classes.get(state)
        if classes is None:
            classes = self._classes[state] = {}
            if isinstance(state.meter, CalendarWindow) and self._calendar is None:
                self._calendar = (state.meter, state.meter.offset)
        magnitude = math.frexp(least)[1]
        sleepers = classes.get(magnitude)
        if sleepers is None:
            sleepers = classes[magnitude] = Sleepers(state, self.tags)
        shape.sleepers = sleepers
        sleepers.least = min(sleepers.least, least)
        return sleepers

    def put_back(self, shape: Shape) -> None:
        """Let the shape stand in the order again, after a turn has taken it out."""
        sleepers = shape.sleepers
        if sleepers.state is not None:
            sleepers.least = min(sleepers.least, shape.least[sleepers.state])
        for level in shape.levels.values():
            for subqueue in level.subqueues.values():
                first = subqueue.first()
                if first is not None:
                    self.add(subqueue, first.number)

    def settle(self, sleepers: Sleepers, now: float) -> None:
        """After a turn: set the alarm of a class, or have every turn look at it while its limit is ready."""
        sleepers.open = False
        if sleepers.state is None:
            return
        if sleepers.peek() is None:
            self._forget(sleepers)
            return
        moment = sleepers.opens(now)
        if moment <= now:
            self._ready.add(sleepers)
            return
        self._ready.discard(sleepers)
        if moment != sleepers.alarm:
            self._set_alarm(sleepers, moment)

    def _set_alarm(self, sleepers: Sleepers, moment: float) -> None:
        sleepers.alarm = moment
        if moment < math.inf:
            heappush(self._alarms, (moment, next(_serials), sleepers))

    def next_turn(self, now: float) -> float:
        """The next moment at which a class of sleepers has to be looked at, if nothing else happens."""
        moment = self._next_alarm(now)
        if self._ready and self._rises:
            # A waiter that rises may come before the protected waiter that excludes it.
            moment = min(moment, max(self._rises[0][0] + self._queue.ageing, math.nextafter(now, math.inf)))
        return moment

    def _next_alarm(self, now: float) -> float:
        alarms = self._alarms
        while alarms:
            moment, _, sleepers = alarms[0]
            if moment != sleepers.alarm:
                heappop(alarms)
                continue
            if sleepers.peek() is None:
                heappop(alarms)
                self._forget(sleepers)
                continue
            present = sleepers.opens(now)
            if present <= moment:
                return moment
            # Other calls were charged on the limit in the meantime.
            heappop(alarms)
            self._set_alarm(sleepers, present)
        return math.inf

    def _forget(self, sleepers: Sleepers) -> None:
        self._ready.discard(sleepers)
        sleepers.alarm = None
        sleepers.over = True
        classes = self._classes[sleepers.state]
        for magnitude, others in list(classes.items()):
            if others is sleepers:
                del classes[magnitude]
        if not classes:
            del self._classes[sleepers.state]

    def plan_rise(self, shape: Shape) -> None:
        """Take note of when a waiter of the shape will have been in its level for the time of ageing."""
        since = min((level.since() for level in shape.levels.values()), default=math.inf)
        if since < math.inf:
            self._rise_at(shape, since)

    def _rise_at(self, shape: Shape, since: float) -> None:
        if self._queue.ageing < math.inf:
            shape.rises = since
            heappush(self._rises, (since, next(_serials), shape))
