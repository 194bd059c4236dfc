"""Turns: which waiters are charged now, and which of them may pass others.

The first in the queue goes as soon as it can. A later one may pass only where that cannot make an earlier one later
(EASY backfill, Lifka 1995): after charging the later one, the earlier one would still be ready at the moment projected
for it. So a large call is never starved by small ones, and a small one that does not need what the large one waits for
does not queue behind it.

How a call is charged on several limits is left to `charging`, and the order of the waiters to `queue`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any

from penstock._core.charging import Charges, Receipts, charge_if_ready, when_ready
from penstock._core.limit_state import LimitState
from penstock._core.queue import Queue
from penstock._core.shapes import MANY, Order, ShapeIndex, Sleepers
from penstock._core.subqueues import Key, Shape, Subqueue, Waiter

_PROTECTED = 16
"""How many blocked waiters are protected from delay by later ones. Those behind them are only looked at in order."""

_ROUNDING = 1e-6
"""Seconds by which a turn may be late and count as punctual."""

_SAME_MOMENT = 1e-8
"""Seconds within which two projections are the same moment."""


def _due(queue: Queue, waiter: Waiter, now: float) -> float:
    """When the waiter should have had its turn: `now`, unless the turn that `admit` announced comes late."""
    if queue.due >= now:
        return now
    due = max(queue.due, waiter.arrived)
    charges: Charges = waiter.charges
    for state, _ in charges:
        if state.meter.catch_up:
            break
    else:
        return now
    for state, amount in charges:
        due = max(due, state.paused_until, state.meter.ready_since(amount, now))
    return due if now - due > _ROUNDING else now


def _horizon(charges: Charges, now: float) -> float:
    """When all of `charges` are ready, as far as that is known: places may be given back at any moment."""
    return max((ready for state, amount in charges if (ready := state.ready_at(amount, now)) < math.inf), default=now)


def _delays(charges: Charges, waiter: Waiter, horizon: float, now: float) -> LimitState | None:
    """The limit on which charging `charges` now would make `waiter`, ready at `horizon`, ready later."""
    mine = dict(charges)
    theirs: Charges = waiter.charges
    for state, amount in theirs:
        other = mine.get(state)
        if not other:
            continue
        after = state.meter.ready_after(other, amount, now)
        if after > horizon + _SAME_MOMENT:
            return state
    return None


Grant = Callable[[Waiter, Receipts, float], None]


def admit(queue: Queue, now: float, grant: Grant, *, changed: bool = True) -> float:
    """Give all waiters their turn whose turn has come: charge them, take them out of the queue, and call `grant`.

    A waiter has its `receipts` before it leaves the queue: from then on the charge is its own. If an exception strikes,
    what was charged for a waiter without receipts is undone, and `Queue.rebuild` makes the queue whole.

    Args:
        changed: Whether anything may have been given back, or a limit changed, without `queue.wake` having been told
            which. False is faster when there are many shapes.

    Returns:
        The next moment at which a turn may come if nothing else happens; `inf` if only a release helps.
    """
    if changed:
        queue.wake(None)
    while True:
        few = queue.index is None and queue.shape_count <= MANY
        queue.due = (_admit_few if few else _admit_many)(queue, now, grant)
        if queue.due > now:
            return queue.due
        # A flow that was served comes later from then on: another's waiter may be the first of a shape now, or come
        # before the one that it would have delayed. What is late was dated back already.
        queue.due = now


def _admit_few(queue: Queue, now: float, grant: Grant) -> float:
    """Go through the queue once, with a look at the head of every shape; `now`: its order is another one now."""
    heads: list[tuple[Key, Waiter]] = queue.heads(now)  # in order, which a heap may be
    next_turn = math.inf
    blocked: list[tuple[Waiter, float]] = []
    granted = False
    while heads:
        _, waiter = heappop(heads)
        due = _due(queue, waiter, now)
        while True:  # one after another of this shape, as long as no other shape's head comes between
            charges: Charges = waiter.charges
            if blocked and when_ready(charges, now) <= now:
                delayed, moment = _delayed(blocked, charges, now)
                if delayed is not None:  # it could go, but a waiter before it would be later
                    if moment > now:
                        next_turn = min(next_turn, moment)
                    break
            receipts = waiter.receipts = charge_if_ready(charges, now, due)
            if receipts is None:
                next_turn = min(next_turn, when_ready(charges, now))
                break
            due = now  # of a late turn only the first grant is dated back
            granted = True
            behind = queue.take(waiter)
            grant(waiter, receipts, now)
            if behind is None:
                break
            if heads and behind[0] > heads[0][0]:
                heappush(heads, behind)
                break
            waiter = behind[1]
        if waiter.subqueue is not None and heads and len(blocked) < _PROTECTED:
            blocked.append((waiter, _horizon(waiter.charges, now)))
    return now if granted and queue.knows_flows else next_turn


def _delayed(blocked: list[tuple[Waiter, float]], charges: Charges, now: float) -> tuple[LimitState | None, float]:
    """The limit on which charging `charges` now would delay one of the blocked waiters, and when to look again."""
    for earlier, horizon in blocked:
        state = _delays(charges, earlier, horizon, now)
        if state is not None:
            if horizon > now:
                return state, horizon
            # It is unknown when the blocked waiter goes. Look again as soon as there is enough for both.
            both = dict(charges)[state] + dict(earlier.charges)[state]
            return state, state.ready_at(both, now) if both <= state.limit.capacity else math.inf
    return None, math.inf


def _admit_many(queue: Queue, now: float, grant: Grant) -> float:
    """The same with a look only at the shapes that may have a turn, and at the protected heads before them."""
    index = queue.index
    if not isinstance(index, ShapeIndex):
        index = queue.index = ShapeIndex(queue, queue.shapes())
    turn = _Turn(index, now)
    try:
        _serve_all(turn, queue, grant)
    except BaseException:
        queue.index = None  # the next turn makes a new one
        raise
    if queue.index is not index:
        return math.inf  # nothing waits any more
    next_turn = turn.end()
    if turn.granted and queue.knows_flows:
        next_turn = now
    if len(queue) <= MANY // 2:
        queue.index = None
    return next_turn


def _serve_all(turn: _Turn, queue: Queue, grant: Grant) -> None:
    """A loop whose way back depends on a condition stands in a function of its own (`tests/test_guards.py`)."""
    while (waiter := turn.next_waiter()) is not None:
        turn.serve(queue, waiter, grant)


class _Turn:
    """One turn over many shapes.

    In the queue's order it looks at every head until `_PROTECTED` of them are blocked, and then only at those that are
    awake. It ends as soon as all the others are asleep.

    Attributes:
        granted: Whether it has granted anything.
    """

    __slots__ = (
        "_again", "_awake", "_blocked", "_index", "_next_turn", "_now", "_open", "_opened", "_seen", "granted",
    )  # fmt: skip

    def __init__(self, index: ShapeIndex, now: float) -> None:
        self._index = index
        self._now = now
        self._open: list[Sleepers] = [*index.begin(now), index.awake]
        for sleepers in self._open:
            sleepers.open = True
        self._opened = set(self._open)
        self._awake: list[tuple[Key, Sleepers]] | None = None  # a heap, once enough heads are protected
        self._again: list[tuple[Key, Waiter]] = []  # a heap: heads of shapes that have had a turn
        self._blocked: list[tuple[Waiter, float]] = []
        self._seen: set[Shape] = set()
        self._next_turn = math.inf
        self.granted = False

    def next_waiter(self) -> Waiter | None:
        """The next head in the order that the turn has to look at; None if all the others are asleep."""
        if not self._again and not self._any_left():
            return None
        front = self._front()
        if self._again and (front is None or self._again[0][0] < front[0]):
            return heappop(self._again)[1]
        assert front is not None  # there is one left
        subqueue = front[1]
        self._seen.add(subqueue.level.shape)
        return subqueue.first()

    def _unseen(self, order: Order) -> tuple[Key, Subqueue] | None:
        """The first subqueue in the order whose shape this turn has not looked at yet."""
        while (front := order.peek()) is not None and front[1].level.shape in self._seen:
            order.pop()
        return front

    def _front(self) -> tuple[Key, Subqueue] | None:
        """The next in the order: of all, and where enough heads are protected of those that are awake."""
        if len(self._blocked) < _PROTECTED:
            return self._unseen(self._index.everybody)
        if self._awake is None:
            self._awake = []
            for sleepers in self._open:
                self._push(self._awake, sleepers)
        heap = self._awake
        while heap:
            key, sleepers = heap[0]
            front = self._unseen(sleepers) if sleepers.open else None
            if front is None:
                heappop(heap)
            elif front[0] == key:
                return front
            else:
                heappop(heap)
                self._push(heap, sleepers)
        return None

    def _push(self, heap: list[Any], sleepers: Sleepers) -> None:
        front = self._unseen(sleepers)
        if front is not None:
            heappush(heap, (front[0], sleepers))

    def _any_left(self) -> bool:
        """Whether there is an open class with a shape that this turn has not looked at."""
        while self._open:
            sleepers = self._open[-1]
            if self._unseen(sleepers) is not None:
                if sleepers.state is None or not self._excluded(sleepers):
                    return True
            else:
                # All its shapes were looked at, and tell it their amounts when they are put back.
                sleepers.least = math.inf
            sleepers.open = False
            self._open.pop()
        return False

    def _excluded(self, sleepers: Sleepers) -> bool:
        """Whether the limit is not ready for any shape of the class, or a protected waiter would be delayed."""
        late = sleepers.opens(self._now) > self._now
        return late or self._delayed(((sleepers.state, sleepers.least),)) is not None

    def _delayed(self, charges: Charges) -> LimitState | None:
        """The limit on which charging `charges` now would delay a protected waiter."""
        state, moment = _delayed(self._blocked, charges, self._now)
        if moment > self._now:
            self._next_turn = min(self._next_turn, moment)
        return state

    def serve(self, queue: Queue, waiter: Waiter, grant: Grant) -> None:
        """Grant this head, and those behind it while no other shape's head comes between; or find what blocks it."""
        now = self._now
        shape: Shape = waiter.subqueue.level.shape  # type: ignore[union-attr]  # it waits
        if shape.sleepers.state is None or shape.sleepers.open:
            due = _due(queue, waiter, now)
            while True:
                charges: Charges = waiter.charges
                ready, excludes = self._what_excludes(charges)
                receipts = waiter.receipts = charge_if_ready(charges, now, due) if ready else None
                if receipts is None:
                    self._opened.add(self._index.sleep(shape, waiter, excludes))
                    break
                due = now
                self.granted = True
                behind = queue.take(waiter)
                grant(waiter, receipts, now)
                if behind is None:
                    return
                if behind[0] > self._next_key(behind[0]):
                    heappush(self._again, behind)
                    return
                waiter = behind[1]
        if len(self._blocked) < _PROTECTED:
            self._blocked.append((waiter, _horizon(waiter.charges, now)))

    def _what_excludes(self, charges: Charges) -> tuple[bool, LimitState | None]:
        """Whether the call may be charged now; and if not, a limit that its shape can sleep on."""
        now, latest, last, ready = self._now, self._now, None, self._now
        for state, amount in charges:
            moment = max(state.meter.ready_at(amount, now), state.paused_until)
            ready = max(ready, moment)
            if moment > latest and state.meter.predictable:
                latest, last = moment, state
        if ready > now:
            self._next_turn = min(self._next_turn, ready)
            return False, last
        delayed = self._delayed(charges)
        if delayed is None:
            return True, None
        return False, delayed if delayed.meter.predictable else None

    def _next_key(self, key: Key) -> Key:
        """The key of the next head that the turn has to look at; `key` if there is none."""
        front = self._front()
        following = [entry[0] for entry in (front, *self._again[:1]) if entry is not None]
        return min(following, default=key)

    def end(self) -> float:
        """Put back what the turn took out of the order; return the next moment at which a turn may come."""
        index = self._index
        index.tags.clear()
        for shape in self._seen:
            index.put_back(shape)
        for sleepers in self._opened:
            index.settle(sleepers, self._now)
        return min(self._next_turn, index.next_turn(self._now))


def could_go(queue: Queue, waiter: Waiter, now: float) -> bool:
    """Whether `waiter`, which is in `queue`, would have a turn now, if no other waiter went first."""
    charges: Charges = waiter.charges
    if when_ready(charges, now) > now:
        return False
    for _, earlier in queue.heads(now):
        if earlier is waiter:
            return True
        others: Charges = earlier.charges
        if _delays(charges, earlier, _horizon(others, now), now) is not None:
            return False
    return False
