"""The line: who waits, and in which order.

Nothing here waits or grants: a line is an ordered collection of those who do, and answers who would be next.

The order is: higher level first (`priority`, plus one for every `ageing` seconds in the line); within a level, the flow that
has had least of its dominant resource; within a flow, order of arrival. Calls that charge the same limits form one queue,
called a shape, because the first of them speaks for all: whoever is behind it needs the same limits. So there are as many
candidates for the next turn as there are shapes, not as there are waiters, and 100,000 equal waiters cost no more than ten.

Flows share by dominant-resource fairness (Ghodsi et al., NSDI 2011), in the memoryless form of start-time fair queueing
(Goyal et al., 1996): a flow's tag is the largest of its usages, each in seconds of that limit's throughput divided by the
flow's weight; a flow that was away begins at the tag of the last turn, so that idleness earns no credit.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Hashable, Iterator, Mapping
from heapq import heappop, heappush, nlargest, nsmallest
from itertools import islice
from typing import Protocol

__all__ = ["Charged", "Line", "Waiting"]


class Charged(Protocol):
    """What a waiting call will be charged on: one limit."""

    throughput: float
    """Units per second, to compare the use of different limits."""
    queued: float
    """Units that all who wait have asked for."""


Charges = tuple[tuple[Charged, float], ...]
Key = tuple[int, float, int]


class Waiting:
    """One who waits, once: whoever comes back to the same line is a new one.

    `number` is the order of arrival, 0 before it; `lane` is None when it waits no more. When it arrived, its level and when it
    entered that, are the line's to say.
    """

    __slots__ = ("arrived", "charges", "entered", "flow", "lane", "level", "number", "priority")

    arrived: float
    entered: float  # when it entered its present level
    level: int
    lane: _Lane | None

    def __init__(self, charges: Charges, priority: int = 0, flow: Hashable = None) -> None:
        self.charges = charges
        self.priority = priority
        self.flow = flow
        self.number = 0
        self.lane = None


class _Lane:
    """Those of one shape, level and flow, in order of arrival.

    Almost everybody arrives in order, which is a deque; the few who rise into the lane from a lower level are strays.
    """

    __slots__ = ("flow", "gone", "key", "level", "run", "strays")

    def __init__(self, flow: _Flow, level: _Level) -> None:
        self.flow = flow
        self.level = level
        self.run: deque[Waiting] = deque()
        self.strays: list[tuple[int, Waiting]] = []
        self.gone = 0  # how many entries of `run` and `strays` wait no more
        self.key: tuple[float, int] | None = None  # what stands for this lane in the level's heap

    def add(self, waiting: Waiting) -> None:
        waiting.lane = self
        if self.run and self.run[-1].number > waiting.number:
            heappush(self.strays, (waiting.number, waiting))
        else:
            self.run.append(waiting)

    def first(self) -> Waiting | None:
        run, strays = self.run, self.strays
        while run and run[0].lane is not self:
            run.popleft()
            self.gone -= 1
        while strays and strays[0][1].lane is not self:
            heappop(strays)
            self.gone -= 1
        if strays and (not run or strays[0][0] < run[0].number):
            return strays[0][1]
        return run[0] if run else None

    def forget_the_gone(self) -> None:
        self.run = deque(w for w in self.run if w.lane is self)
        self.strays = sorted(item for item in self.strays if item[1].lane is self)  # what is in order is a heap
        self.gone = 0


class _Level:
    """All lanes of one shape and level. `joined` and `risen` are all who entered, earliest first, to raise them in time."""

    __slots__ = ("heap", "joined", "lanes", "number", "risen", "shape")

    def __init__(self, number: int, shape: _Shape) -> None:
        self.number = number
        self.shape = shape
        self.lanes: dict[Hashable, _Lane] = {}
        self.heap: list[tuple[float, int, Hashable]] = []
        self.joined: deque[Waiting] = deque()
        self.risen: list[tuple[float, int, Waiting]] = []  # a heap: when it entered, number, who

    def note(self, lane: _Lane) -> None:
        """Put the lane's present first into the heap, unless it stands there already."""
        first = lane.first()
        if first is None:
            del self.lanes[lane.flow.name]
            return
        key = (lane.flow.tag, first.number)
        if key != lane.key:
            lane.key = key
            if len(self.lanes) == 1:
                self.heap.clear()  # whatever stands there is over
            heappush(self.heap, (*key, lane.flow.name))

    def best(self) -> tuple[float, Waiting] | None:
        """The first of the flow that has had least, and that flow's tag."""
        lanes, heap = self.lanes, self.heap
        if len(lanes) == 1:
            ((_, lane),) = lanes.items()
            first = lane.first()
            if first is not None:
                return lane.flow.tag, first
            lanes.clear()
        while lanes:
            tag, number, name = heap[0]
            found = lanes.get(name)
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


class _Flow:
    """Whose work it is: what it has used of each limit, and how many of its calls wait."""

    __slots__ = ("name", "start", "tag", "usage", "waiting", "weight")

    def __init__(self, name: Hashable, weight: float, start: float) -> None:
        self.name = name
        self.weight = weight
        self.tag = start
        self.start = start
        self.usage: dict[Charged, float] = {}
        self.waiting = 0

    def begin(self, start: float) -> None:
        """Come back after an absence: no credit for the time away."""
        self.start = max(self.start, start)
        self.usage = {charged: usage for charged, usage in self.usage.items() if usage > self.start}
        self.tag = max(self.usage.values(), default=self.start)

    def twin(self) -> _Flow:
        twin = _Flow(self.name, self.weight, self.start)
        twin.usage = dict(self.usage)
        twin.tag = self.tag
        return twin

    def use(self, charges: Charges) -> None:
        for charged, amount in charges:
            used = self.usage.get(charged, self.start) + amount / charged.throughput / self.weight
            self.usage[charged] = used
            self.tag = max(self.tag, used)


class _Shape:
    """All who charge the same limits: by level, highest first."""

    __slots__ = ("levels", "order")

    def __init__(self) -> None:
        self.levels: dict[int, _Level] = {}
        self.order: list[int] = []

    def add_level(self, number: int) -> _Level:
        level = self.levels[number] = _Level(number, self)
        self.order = sorted(self.levels, reverse=True)
        return level

    def head(self) -> tuple[Key, Waiting] | None:
        while self.order:
            number = self.order[0]
            best = self.levels[number].best()
            if best is not None:
                return (-number, best[0], best[1].number), best[1]
            del self.levels[self.order.pop(0)]
        return None

    def head_without(self, flows: Collection[Hashable]) -> tuple[Key, Waiting] | None:
        """The head, if those of some flows were not there."""
        for number in self.order:
            firsts = [
                (lane.flow.tag, first.number, first)
                for name, lane in self.levels[number].lanes.items()
                if name not in flows and (first := lane.first()) is not None
            ]
            if firsts:
                tag, _, first = min(firsts)
                return (-number, tag, first.number), first
        return None


class Line:
    """Those who wait for one group of limits.

    Args:
        ageing: Seconds in the line after which a call rises one level; `inf` for never.
        weights: Share of each flow that is not 1.
    """

    __slots__ = (
        "_arrivals",
        "_count",
        "_flows",
        "_last_charges",
        "_last_shape",
        "_shapes",
        "_sweep_at",
        "_turn_tag",
        "ageing",
        "weights",
    )

    def __init__(self, ageing: float = 30.0, weights: dict[Hashable, float] | None = None) -> None:
        self.ageing = ageing
        self.weights = weights or {}
        self._shapes: dict[tuple[Charged, ...], _Shape] = {}
        self._flows: dict[Hashable, _Flow] = {}
        self._last_charges: Charges = ()
        self._last_shape: _Shape | None = None  # of the last who came; None once it may be gone
        self._arrivals = 0
        self._count = 0
        self._sweep_at = 64  # so many flows are known, and then looked through
        self._turn_tag = 0.0  # the tag of the flow that had the last turn

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Waiting]:
        """Everybody who waits, in no particular order."""
        for shape in list(self._shapes.values()):
            for level in list(shape.levels.values()):
                for lane in list(level.lanes.values()):
                    for waiting in [*lane.run, *(stray for _, stray in lane.strays)]:
                        if waiting.lane is lane:
                            yield waiting

    def join(self, waiting: Waiting, now: float) -> bool:
        """Let `waiting` in at the end of its flow; return whether it is now the first of its shape."""
        self._arrivals += 1
        waiting.number = self._arrivals
        waiting.arrived = waiting.entered = now
        waiting.level = waiting.priority
        flow = self._flows.get(waiting.flow)
        if flow is None:
            flow = self._new_flow(waiting.flow)
        elif not flow.waiting:
            flow.begin(self._turn_tag)
        flow.waiting += 1
        self._count += 1
        charges = waiting.charges
        shape = self._last_shape if charges is self._last_charges else None  # equals often come one after another
        if shape is None:
            shape = self._last_shape = self._shape_of(charges)
            self._last_charges = charges
        for charged, amount in charges:
            charged.queued += amount
        level, first_of_flow = self._enter(shape, waiting, flow)
        level.joined.append(waiting)
        if not first_of_flow:
            return False
        head = shape.head()
        return head is not None and head[1] is waiting

    def take_in(self, other: Line) -> list[Waiting]:
        """Let all of another line in, in the order in which they arrived there; return them."""
        everybody = sorted(other, key=lambda waiting: waiting.number)
        # All of them, before one joins: the last to leave a line clears what is asked for of its limits.
        for waiting in everybody:
            other.leave(waiting)
        for waiting in everybody:
            self.join(waiting, waiting.arrived)
        return everybody

    def _shape_of(self, charges: Charges) -> _Shape:
        key = tuple([charged for charged, _ in charges])
        shape = self._shapes.get(key)
        if shape is None:
            shape = self._shapes[key] = _Shape()
        return shape

    def _new_flow(self, name: Hashable) -> _Flow:
        if len(self._flows) >= self._sweep_at:
            self._sweep()
        flow = self._flows[name] = _Flow(name, self.weights.get(name, 1.0), self._turn_tag)
        return flow

    def _sweep(self) -> None:
        """Forget the flows that are away and have had no more than others; and of the others, all but the 500 that had most.

        Else a program with a flow per request would keep them all: each has had one call more than the next that comes.
        """
        flows = self._flows.values()
        owing = nlargest(500, (f for f in flows if not f.waiting and f.tag > self._turn_tag), key=lambda f: f.tag)
        self._flows = {f.name: f for f in (*owing, *(f for f in flows if f.waiting))}
        self._sweep_at = 64 + 2 * len(self._flows)

    def _enter(self, shape: _Shape, waiting: Waiting, flow: _Flow) -> tuple[_Level, bool]:
        level = shape.levels.get(waiting.level)
        if level is None:
            level = shape.add_level(waiting.level)
        lane = level.lanes.get(flow.name)
        if lane is not None:
            run = lane.run
            # In order, as almost always; and not only behind those who wait no more.
            if run and run[-1].number < waiting.number and not (lane.gone and lane.first() is None):
                waiting.lane = lane
                run.append(waiting)
                return level, False
        else:
            lane = level.lanes[flow.name] = _Lane(flow, level)
        lane.add(waiting)
        level.note(lane)
        return level, True

    def leave(self, waiting: Waiting) -> None:
        """Let `waiting` go, wherever it stands. Does nothing if it does not wait."""
        lane = waiting.lane
        if lane is None:
            return
        waiting.lane = None
        lane.gone += 1
        if lane.gone > 64 and lane.gone * 2 > len(lane.run) + len(lane.strays):
            lane.forget_the_gone()
        lane.flow.waiting -= 1
        self._count -= 1
        for charged, amount in waiting.charges:
            charged.queued -= amount
        if not self._count:
            self._clear()

    def take(self, waiting: Waiting) -> tuple[Key, Waiting] | None:
        """Let `waiting`, the first of its shape, go because it is its turn; return who is first of that shape now.

        Its flow has now had that much more.
        """
        lane = waiting.lane
        assert lane is not None  # only who waits can have a turn
        flow, level = lane.flow, lane.level
        if len(self._flows) > 1:
            self._turn_tag = max(self._turn_tag, flow.tag)
            flow.use(waiting.charges)
        self.leave(waiting)
        if len(level.lanes) == 1 and len(level.shape.levels) == 1:
            first = lane.first()
            return None if first is None else ((-level.number, flow.tag, first.number), first)
        return level.shape.head()

    def restore(self, waiting: Waiting) -> None:
        """Let `waiting`, who was taken and had no turn after all, back in where it stood."""
        shape = self._shape_of(waiting.charges)
        flow = self._flows.get(waiting.flow) or self._new_flow(waiting.flow)
        for charged, amount in waiting.charges:
            charged.queued += amount
            if charged in flow.usage:
                flow.usage[charged] -= amount / charged.throughput / flow.weight
        flow.waiting += 1
        self._count += 1
        level = shape.levels.get(waiting.level) or shape.add_level(waiting.level)
        lane = level.lanes.get(flow.name)
        if lane is None:
            lane = level.lanes[flow.name] = _Lane(flow, level)
            lane.add(waiting)
        elif lane.run and waiting.number < lane.run[0].number:
            lane.run.appendleft(waiting)
            waiting.lane = lane
        else:
            lane.add(waiting)
        self._retag(flow)
        heappush(level.risen, (waiting.entered, waiting.number, waiting))

    def flows(self, most: int) -> list[Hashable]:
        """Those of which somebody waits, at most so many, who has had least first."""
        waiting = (flow for flow in self._flows.values() if flow.waiting)
        return [flow.name for flow in nsmallest(most, waiting, key=lambda flow: flow.tag)]

    def shared(self) -> bool:
        """Whether calls of more than one flow wait."""
        return sum(1 for _ in islice((flow for flow in self._flows.values() if flow.waiting), 2)) > 1

    def waits(self, name: Hashable) -> bool:
        """Whether anybody of that flow waits."""
        flow = self._flows.get(name)
        return flow is not None and flow.waiting > 0

    def delay(self, name: Hashable, seconds: float) -> None:
        """Let a flow have had that much more: somebody else has seen to its calls."""
        flow = self._flows.get(name)
        if flow is not None:
            flow.start += seconds
            flow.usage = {charged: usage + seconds for charged, usage in flow.usage.items()}
            self._retag(flow)

    def _retag(self, flow: _Flow) -> None:
        """Work out the tag of a flow anew, and tell all heaps, which do not find that out by themselves."""
        flow.tag = max([flow.start, *flow.usage.values()])
        for shape in self._shapes.values():
            for level in shape.levels.values():
                lane = level.lanes.get(flow.name)
                if lane is not None:
                    level.note(lane)

    def recharge(self, renewed: Mapping[Charged, tuple[Charged, ...]]) -> None:
        """Charge all who wait on what took the place of the limits in `renewed`. Nobody loses its place."""
        everybody = sorted(self, key=lambda waiting: waiting.number)
        self._clear()
        for waiting in everybody:
            assert waiting.lane is not None  # who is in the line stands somewhere
            flow = waiting.lane.flow
            charges = {new: amount for old, amount in waiting.charges for new in renewed.get(old, (old,))}
            waiting.charges = tuple(charges.items())
            for charged, amount in waiting.charges:
                charged.queued += amount
            level, _ = self._enter(self._shape_of(waiting.charges), waiting, flow)
            heappush(level.risen, (waiting.entered, waiting.number, waiting))

    def _clear(self) -> None:
        """Begin anew with nobody in line, and with sums of fractions that are an exact nought."""
        for shape_key in self._shapes:
            for charged in shape_key:
                charged.queued = 0.0
        self._shapes.clear()
        self._last_shape = None

    def heads(self, now: float, without: Collection[Hashable] = ()) -> list[tuple[Key, Waiting]]:
        """The first of every shape with its place in the order; who may go next is one of them. Smallest key first.

        `without`: flows that are passed over, as if nobody of them waited.
        """
        heads = []
        empty = []
        for key, shape in self._shapes.items():
            self._raise_levels(shape, now)
            head = shape.head()
            if head is None:
                empty.append(key)
            elif not without:
                heads.append(head)
            elif (other := shape.head_without(without)) is not None:
                heads.append(other)
        for key in empty:
            del self._shapes[key]
            self._last_shape = None
        heads.sort()
        return heads

    def queued_ahead(self, waiting: Waiting) -> dict[Charged, float]:
        """What those who go before `waiting`, who is the last of its level, have asked for of each limit it needs."""
        levels = {number for shape in self._shapes.values() for number in shape.order}
        if min(levels) == waiting.level:
            return {charged: max(0.0, charged.queued - amount) for charged, amount in waiting.charges}
        ahead = dict.fromkeys((charged for charged, _ in waiting.charges), 0.0)
        for other in self:
            if other.level > waiting.level or (other.level == waiting.level and other.number < waiting.number):
                for charged, amount in other.charges:
                    if charged in ahead:
                        ahead[charged] += amount
        return ahead

    def due_before(self, waiting: Waiting) -> dict[Charged, float]:
        """`queued_ahead`, as it is where flows take turns: of another flow only what goes before `waiting` as things stand.

        It looks at everybody who waits, so it is for those few who need to know.
        """
        ahead = dict.fromkeys((charged for charged, _ in waiting.charges), 0.0)
        flows = {flow.name: flow.twin() for flow in self._flows.values() if flow.waiting}
        calls: dict[Hashable, list[Waiting]] = {}
        first: list[Waiting] = []
        for other in self:
            if other.level > waiting.level:
                flows[other.flow].use(other.charges)
                first.append(other)
            elif other.level == waiting.level:
                calls.setdefault(other.flow, []).append(other)
        mine = flows[waiting.flow]
        for other in sorted(calls.pop(waiting.flow), key=lambda other: other.number):
            if other is waiting:
                break
            mine.use(other.charges)
            first.append(other)
        for name, theirs in calls.items():
            flow = flows[name]
            for other in sorted(theirs, key=lambda other: other.number):
                if (flow.tag, other.number) > (mine.tag, waiting.number):
                    break
                flow.use(other.charges)
                first.append(other)
        for other in first:
            for charged, amount in other.charges:
                if charged in ahead:
                    ahead[charged] += amount
        return ahead

    def _raise_levels(self, shape: _Shape, now: float) -> None:
        latest = now - self.ageing
        for number in reversed(shape.order):  # from the lowest, so that who is very late rises several levels
            level = shape.levels[number]
            joined, risen = level.joined, level.risen
            while joined and (joined[0].lane is None or joined[0].arrived <= latest):
                self._raise(joined.popleft(), level, now)
            while risen and (risen[0][2].lane is None or risen[0][0] <= latest):
                self._raise(heappop(risen)[2], level, now)

    def _raise(self, waiting: Waiting, level: _Level, now: float) -> None:
        lane = waiting.lane
        if lane is None or lane.level is not level:
            return  # it has left, or has risen already
        levels = int((now - waiting.entered) // self.ageing)
        waiting.lane = None
        lane.gone += 1
        level.note(lane)
        waiting.level += levels
        waiting.entered += levels * self.ageing
        above, _ = self._enter(level.shape, waiting, lane.flow)
        heappush(above.risen, (waiting.entered, waiting.number, waiting))
