"""The queue: all waiters of one group of limits, in the order of their turns.

Nothing here waits or grants. A queue is an ordered collection of waiters, and tells which of them is next.

The order is: higher level first (`priority`, plus one for every `ageing` seconds in the queue); within a level, the
flow that has had least of its dominant resource; within a flow, order of arrival. Waiters that charge the same limits
form a shape. Its first waiter speaks for all of them, as the others need the same limits. So there are as many
candidates for the next turn as there are shapes, not as there are waiters, and 100,000 equal waiters cost no more than
ten.

Flows share by dominant-resource fairness (Ghodsi et al., NSDI 2011), in the memoryless form of start-time fair queueing
(Goyal et al., 1996): a flow's tag is the largest of its usages, each in seconds of that limit's throughput divided by
the flow's weight; a flow that was away begins at the tag of the last turn, so that idleness earns no credit.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping
from heapq import heappop, heappush, nlargest, nsmallest
from itertools import islice
from typing import Any

from penstock._core.subqueues import Charged, Charges, Flow, Index, Key, Shape, ShapeLevel, Subqueue, Waiter


class Queue:
    """The waiters of one group of limits.

    Args:
        ageing: Seconds in the queue after which a call rises one level; `inf` for never.
        weights: Share of each flow that is not 1.
    """

    __slots__ = (
        "_arrivals", "_flows", "_last_charges", "_last_shape", "_shapes", "_sweep_at", "_sweep_shapes_at", "_turn_tag",
        "ageing", "count", "due", "index", "weights",
    )  # fmt: skip

    def __init__(self, ageing: float = 30.0, weights: dict[Hashable, float] | None = None) -> None:
        self.ageing: float = ageing
        self.weights: dict[Hashable, float] = weights or {}
        self._shapes: dict[tuple[Charged, ...], Shape] = {}
        self._flows: dict[Hashable, Flow] = {}
        self._last_charges: Charges = ()
        self._last_shape: Shape | None = None  # of the last waiter that joined; None once it may be gone
        self.due: float = math.inf  # the next turn, as `admit` announced it
        self._arrivals = 0
        self.count = 0  # how many wait
        self._sweep_shapes_at = 64  # so many shapes are known, and then looked through
        self.index: Index | None = None  # made by `admit` when there are many shapes
        self._sweep_at = 64  # so many flows are known, and then looked through
        self._turn_tag = 0.0  # the tag of the flow that had the last turn

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Waiter]:
        """All waiters, in no particular order."""
        for shape in list(self._shapes.values()):
            for level in list(shape.levels.values()):
                for subqueue in list(level.subqueues.values()):
                    yield from subqueue

    @property
    def shape_count(self) -> int:
        """How many shapes are known. Some may have no waiter any more."""
        return len(self._shapes)

    def shapes(self) -> list[Shape]:
        """The shapes of all waiters."""
        self._sweep_shapes()
        return list(self._shapes.values())

    def join(self, waiter: Waiter, now: float) -> bool:
        """Add `waiter` at the end of its flow; return whether it is now the first of its shape."""
        waiter.arrived = waiter.entered = now
        waiter.level = waiter.priority
        self._arrivals += 1
        waiter.number = self._arrivals
        flow = self._flows.get(waiter.flow)
        if flow is None:
            flow = self._new_flow(waiter.flow)
        elif not flow.count:
            flow.begin(self._turn_tag)
        flow.count += 1
        self.count += 1
        charges = waiter.charges
        shape = self._last_shape if charges is self._last_charges else None  # equals often come one after another
        if shape is None:
            shape = self._last_shape = self._shape_of(charges)
            self._last_charges = charges
        for charged, amount in charges:
            charged.queued += amount
        first_of_flow = self._enter(shape, waiter, flow)
        joined = waiter.subqueue.level.joined  # type: ignore[union-attr]  # it has just entered one
        joined.append(waiter)
        if self.index is not None:
            while joined[0].subqueue is None:
                joined.popleft()
            self.index.joined(shape, waiter)
        if not first_of_flow:
            return False
        head = shape.head()
        return head is not None and head[1] is waiter

    def take_in(self, other: Queue) -> list[Waiter]:
        """Move all waiters of another queue here, in the order of their arrival there; return them."""
        waiters_in_order = sorted(other, key=lambda waiter: waiter.number)
        # All leave before one joins: when the last one leaves, the queue clears the sums of its limits.
        for waiter in waiters_in_order:
            other.leave(waiter)
        for waiter in waiters_in_order:
            self.join(waiter, waiter.arrived)
        return waiters_in_order

    def _shape_of(self, charges: Charges) -> Shape:
        key = tuple([charged for charged, _ in charges])
        shape = self._shapes.get(key)
        if shape is None:
            if len(self._shapes) >= self._sweep_shapes_at:
                self._sweep_shapes()
            shape = self._shapes[key] = Shape()
            if self.index is not None:
                self.index.enroll(shape)
        return shape

    def _sweep_shapes(self) -> None:
        """Forget the shapes that have no waiter."""
        self._shapes = {key: shape for key, shape in self._shapes.items() if shape.head() is not None}
        self._sweep_shapes_at = 64 + 2 * len(self._shapes)
        self._last_shape = None

    def _new_flow(self, name: Hashable) -> Flow:
        if len(self._flows) >= self._sweep_at:
            self._sweep()
        flow = self._flows[name] = Flow(name, self.weights.get(name, 1.0), self._turn_tag)
        return flow

    def _sweep(self) -> None:
        """Forget the flows without waiters that have had no more than others, and all but the 500 that had most.

        Else a program with a flow per request would keep them all, as each has had one call more than the next new one.
        """
        flows = self._flows.values()
        owing = nlargest(500, (f for f in flows if not f.count and f.tag > self._turn_tag), key=lambda f: f.tag)
        self._flows = {f.name: f for f in (*owing, *(f for f in flows if f.count))}
        self._sweep_at = 64 + 2 * len(self._flows)

    def _enter(self, shape: Shape, waiter: Waiter, flow: Flow) -> bool:
        """Put a waiter into its subqueue; return whether it may be the first there."""
        level = shape.levels.get(waiter.level)
        if level is None:
            level = shape.add_level(waiter.level)
        subqueue = level.subqueues.get(flow.name)
        if subqueue is not None and subqueue.flow is flow:
            run = subqueue.run
            # In order, as almost always; and not only behind waiters that are gone.
            if run and run[-1].number < waiter.number and not (subqueue.gone and subqueue.first() is None):
                run.append(waiter)
                waiter.subqueue = subqueue
                return False
        else:
            subqueue = level.subqueues[flow.name] = Subqueue(flow, level)
        subqueue.add(waiter)
        level.note(subqueue)
        return True

    def leave(self, waiter: Waiter) -> None:
        """Remove `waiter`, wherever it stands. Does nothing if it is not in the queue."""
        subqueue = waiter.subqueue
        if subqueue is None:
            return
        waiter.subqueue = None
        subqueue.gone += 1
        if subqueue.gone > 64 and subqueue.gone * 2 > len(subqueue.run) + len(subqueue.strays):
            subqueue.forget_the_gone()
        level = subqueue.level
        level.gone += 1
        if level.gone > 64 and level.gone * 2 > len(level.joined):
            level.forget_the_gone()
        subqueue.flow.count -= 1
        self.count -= 1
        for charged, amount in waiter.charges:
            charged.queued -= amount
        if not self.count:
            self._clear()

    def take(self, waiter: Waiter) -> tuple[Key, Waiter] | None:
        """Take out `waiter`, the first of its shape, because its turn has come; return the first of that shape now.

        Its flow is charged for it.
        """
        subqueue = waiter.subqueue
        assert subqueue is not None  # only a waiter in the queue has a turn
        flow, level = subqueue.flow, subqueue.level
        if len(self._flows) > 1:
            self._turn_tag = max(self._turn_tag, flow.tag)
            if self.index is not None:
                self.index.serve(flow)
            flow.use(waiter.charges)
        run = subqueue.run
        if subqueue.strays or run[0] is not waiter or self.count == 1:
            self.leave(waiter)
        else:  # the same in fewer steps: it stands in front, and does not count among the gone
            run.popleft()
            waiter.subqueue = None
            flow.count -= 1
            self.count -= 1
            for charged, amount in waiter.charges:
                charged.queued -= amount
        if len(level.subqueues) == 1 and len(level.shape.levels) == 1:
            first = run[0] if run and not (subqueue.gone or subqueue.strays) else subqueue.first()
            return None if first is None else ((-level.number, flow.tag, first.number), first)
        return level.shape.head()

    def restore(self, waiter: Waiter) -> None:
        """Put `waiter`, which was taken and had no turn after all, back where it stood.

        For queues in front of a store, which need no index: `admit` restores no waiter.
        """
        shape = self._shape_of(waiter.charges)
        flow = self._flows.get(waiter.flow) or self._new_flow(waiter.flow)
        for charged, amount in waiter.charges:
            charged.queued += amount
            if charged in flow.usage:
                flow.usage[charged] -= amount / charged.throughput / flow.weight
        flow.count += 1
        self.count += 1
        level = shape.levels.get(waiter.level) or shape.add_level(waiter.level)
        subqueue = level.subqueues.get(flow.name)
        if subqueue is None or subqueue.flow is not flow:
            subqueue = level.subqueues[flow.name] = Subqueue(flow, level)
            subqueue.add(waiter)
        elif subqueue.run and waiter.number < subqueue.run[0].number:
            subqueue.run.appendleft(waiter)
            waiter.subqueue = subqueue
        else:
            subqueue.add(waiter)
        self._retag(flow)
        _note_risen(waiter)

    def flows(self, most: int) -> list[Hashable]:
        """The flows that have waiters, least served first, at most so many."""
        waiter = (flow for flow in self._flows.values() if flow.count)
        return [flow.name for flow in nsmallest(most, waiter, key=lambda flow: flow.tag)]

    @property
    def knows_flows(self) -> bool:
        """Whether it knows more than one flow, so that its order changes with what is charged."""
        return len(self._flows) > 1

    def shared(self) -> bool:
        """Whether more than one flow has waiters."""
        return sum(1 for _ in islice((flow for flow in self._flows.values() if flow.count), 2)) > 1

    def waits(self, name: Hashable) -> bool:
        """Whether that flow has waiters."""
        flow = self._flows.get(name)
        return flow is not None and flow.count > 0

    def first_of(self, name: Hashable, charges: Charges) -> Waiter | None:
        """The first waiter of that flow that is charged on the same limits."""
        shape = self._shapes.get(tuple([charged for charged, _ in charges]))
        if shape is None:
            return None
        for number in shape.order:
            subqueue = shape.levels[number].subqueues.get(name)
            if subqueue is not None and (first := subqueue.first()) is not None:
                return first
        return None

    def delay(self, name: Hashable, seconds: float) -> None:
        """Charge a flow for so many seconds more, as its calls were served elsewhere."""
        flow = self._flows.get(name)
        if flow is not None:
            flow.start += seconds
            flow.usage = {charged: usage + seconds for charged, usage in flow.usage.items()}
            self._retag(flow)

    def _retag(self, flow: Flow) -> None:
        """Work out the tag of a flow anew, and tell all heaps, which do not find that out by themselves."""
        flow.tag = max([flow.start, *flow.usage.values()])
        for shape in self._shapes.values():
            for level in shape.levels.values():
                subqueue = level.subqueues.get(flow.name)
                if subqueue is not None:
                    level.note(subqueue)

    def recharge(self, renewed: Mapping[Charged, tuple[Charged, ...]]) -> None:
        """Charge all waiters on the limits that replace those in `renewed`. No waiter loses its position."""
        waiters_in_order = sorted(self, key=lambda waiter: waiter.number)
        self._clear()
        for waiter in waiters_in_order:
            assert waiter.subqueue is not None  # every waiter of the queue is in a subqueue
            flow = waiter.subqueue.flow
            charges = {new: amount for old, amount in waiter.charges for new in renewed.get(old, (old,))}
            waiter.charges = tuple(charges.items())
            self._reenter(waiter, flow)

    def rebuild(self, waiters: Iterable[Waiter]) -> Queue:
        """Begin anew with exactly these waiters, as an exception has cut a change of the queue short; return the queue.

        Each has joined before, and keeps its position: its level, and its arrival. Flows keep what they have used.
        """
        waiters_in_order = sorted(waiters, key=lambda waiter: waiter.number)
        for waiter in list(self):
            waiter.subqueue = None
        self._clear()
        self.count = 0
        for flow in self._flows.values():
            flow.count = 0
            flow.tag = max([flow.start, *flow.usage.values()])
        for waiter in waiters_in_order:
            for charged, _ in waiter.charges:
                charged.queued = 0.0
        for waiter in waiters_in_order:
            flow = self._flows.get(waiter.flow) or self._new_flow(waiter.flow)
            self._reenter(waiter, flow)
            flow.count += 1
            self.count += 1
        return self

    def _reenter(self, waiter: Waiter, flow: Flow) -> None:
        """Let a waiter in where it stood, in a queue that was cleared."""
        waiter.subqueue = None
        for charged, amount in waiter.charges:
            charged.queued += amount
        self._enter(self._shape_of(waiter.charges), waiter, flow)
        _note_risen(waiter)

    def _clear(self) -> None:
        """Begin anew without waiters, and with sums of fractions that are exactly 0."""
        for shape_key, shape in self._shapes.items():
            for charged in shape_key:
                charged.queued = 0.0
            shape.take_apart()
        self._shapes.clear()
        self._last_shape = None
        self.index = None

    def heads(self, now: float, without: Collection[Hashable] = ()) -> list[tuple[Key, Waiter]]:
        """The first waiter of every shape with its key, smallest key first. The next turn is one of theirs.

        `without`: flows that are passed over, as if they had no waiters.
        """
        heads = []
        empty = []
        for key, shape in self._shapes.items():
            self.raise_levels(shape, now)
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
        if len(heads) > 1:
            heads.sort()
        return heads

    def first(self, now: float) -> Waiter | None:
        """The first of all waiters: that of `heads`, without a look at every shape."""
        if self.index is not None:
            return self.index.first(now)
        heads = self.heads(now)
        return heads[0][1] if heads else None

    def wake(self, states: Iterable[Any] | None) -> None:
        """Let `admit` look again at these limits, as something was given back there, or they changed; None: at all."""
        if self.index is not None:
            self.index.wake(states)

    def queued_ahead(self, waiter: Waiter) -> dict[Charged, float]:
        """What the waiters before `waiter`, the last of its level, have asked for of each limit that it needs."""
        if self.index is None:
            lowest = min(number for shape in self._shapes.values() for number in shape.order)
        else:
            lowest = self.index.lowest()
        if lowest == waiter.level:
            return {charged: max(0.0, charged.queued - amount) for charged, amount in waiter.charges}
        position = -waiter.level, waiter.number
        return _asked_by((other for other in self if (-other.level, other.number) < position), waiter)

    def due_before(self, waiter: Waiter) -> dict[Charged, float]:
        """`queued_ahead` where flows take turns: of another flow only the calls that go first as things stand.

        It looks at all waiters, so it is for rare questions.
        """
        flows = {flow.name: flow.twin() for flow in self._flows.values() if flow.count}
        calls: dict[Hashable, list[Waiter]] = {}
        first: list[Waiter] = []
        for other in self:
            if other.level > waiter.level:
                flows[other.flow].use(other.charges)
                first.append(other)
            elif other.level == waiter.level:
                calls.setdefault(other.flow, []).append(other)
        mine = flows[waiter.flow]
        for name, theirs in ((waiter.flow, calls.pop(waiter.flow)), *calls.items()):  # its own flow comes first
            flow = flows[name]
            for other in sorted(theirs, key=lambda other: other.number):
                if (flow.tag, other.number) >= (mine.tag, waiter.number):
                    break
                flow.use(other.charges)
                first.append(other)
        return _asked_by(first, waiter)

    def raise_levels(self, shape: Shape, now: float) -> None:
        latest = now - self.ageing
        for number in reversed(shape.order):  # from the lowest, so that a very late waiter rises several levels
            level = shape.levels[number]
            joined, risen = level.joined, level.risen
            while joined:
                earliest = joined[0]
                if earliest.subqueue is not None:
                    if earliest.arrived > latest:
                        break
                    self._raise(earliest, level, now)
                joined.popleft()
            while risen and (risen[0][2].subqueue is None or risen[0][0] <= latest):
                self._raise(heappop(risen)[2], level, now)

    def _raise(self, waiter: Waiter, level: ShapeLevel, now: float) -> None:
        subqueue = waiter.subqueue
        if subqueue is None or subqueue.level is not level:
            return  # it has left, or has risen already
        # The division may round to 0 what has just become 1.
        levels = max(1, int((now - waiter.entered) // self.ageing))
        waiter.subqueue = None
        subqueue.gone += 1
        level.note(subqueue)
        waiter.level, waiter.entered = waiter.level + levels, waiter.entered + levels * self.ageing
        self._enter(level.shape, waiter, subqueue.flow)
        _note_risen(waiter)


def _asked_by(others: Iterable[Waiter], waiter: Waiter) -> dict[Charged, float]:
    """What others have asked for of each limit that `waiter` needs."""
    asked = dict.fromkeys((charged for charged, _ in waiter.charges), 0.0)
    for other in others:
        for charged, amount in other.charges:
            if charged in asked:
                asked[charged] += amount
    return asked


def _note_risen(waiter: Waiter) -> None:
    """Let its level raise a waiter in time that did not join there."""
    assert waiter.subqueue is not None, "it stands in the queue"
    heappush(waiter.subqueue.level.risen, (waiter.entered, waiter.number, waiter))
