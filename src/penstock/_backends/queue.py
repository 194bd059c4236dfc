"""The queue in front of limits of this process, and the owner of its timer.

Limiters that share a limit share a queue, so that there is one order for all waiters that need it. The queue knows
nothing of decorators, permits or units. It grants, refuses, and sees to it that something is awake when the next turn
comes.

**One waiter keeps the time for all.** In each home (an event loop, or all threads that run none) one waiter, the
timekeeper, has a timer; the others park until they are woken. When the timer rings, its owner grants every waiter whose
turn has come, by filling in its grant and waking it. There is no background task, no polling and no thundering herd. A
call that changes something (gives back, leaves, arrives first) grants on the spot what that makes possible.

**A busy loop loses no capacity.** A loop may be blocked, or busy with a hundred thousand first steps, while its timer
is due. So every arrival grants what is due, and the timekeepers of the other homes ring `GRACE` seconds after the first
one: they find its work done, or do it.

**Waiters hold nothing.** Leaving the queue gives back what was never taken. Only a grant that was made at the very
instant of the cancellation has to be undone, and it is undone exactly.

Every method is called inside a decision, with the lock of the store held: see `local`.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any
from weakref import WeakSet

from penstock import clock
from penstock._backends.base import HAS_GIL, Clearance, Request
from penstock._concurrency import parking
from penstock._core.charging import Charges, Receipts, ready_behind, undo
from penstock._core.limit_state import LimitState
from penstock._core.queue import Queue
from penstock._core.subqueues import Waiter
from penstock._core.turns import admit, could_go
from penstock._core.windows import CalendarWindow

GRACE = 0.005
"""Seconds after a turn at which the other homes look whether it was given: a timer's resolution, and some."""

LATE = 0.0005
"""Seconds by which a timer may be late before an arrival grants in its place. At once would do as much work for one as
for many."""

_NEVER = math.inf


class _Home:
    """The waiters of one event loop, or of all threads that run none; one of them keeps the time."""

    __slots__ = ("_gone", "_timer", "line", "timekeeper", "waking")

    def __init__(self) -> None:
        self.line: deque[Request] = deque()  # all that have parked, the oldest first; some are gone
        self._gone = 0  # how many of them
        # It may have been granted and not be awake yet: then it passes the time on.
        self.timekeeper: Request | None = None
        self._timer: Any = None  # that of the timekeeper, while it was set by the one before
        self.waking = 0  # waiters that were granted and are not awake yet

    def unpark(self, request: Request) -> None:
        """Count it no more: it is awake, or gone."""
        if not request.parked:
            return
        request.parked = False
        line = self.line
        if line and line[0] is request:
            line.popleft()
        else:
            self._gone += 1
            if self._gone > 64 and self._gone * 2 > len(line):
                self.line, self._gone = deque(self.parked()), 0

    def parked(self) -> list[Request]:
        """All that are to be woken, the oldest first."""
        return [request for request in self.line if request.parked]

    def take_in(self, other: _Home) -> None:
        """Count those of another queue too, behind these."""
        self.line.extend(other.parked())
        self.waking += other.waking
        if self.timekeeper is None:
            self.timekeeper, self._timer = other.timekeeper, other._timer

    def entrust(self, request: Request, seconds: float, here: object) -> bool:
        """Let a waiter that has parked keep the time, which is up in so many seconds. False if its loop is gone.

        Its timer is set in its place where that can be done here: to wake it for that takes much longer.
        """
        timer = None
        if here is not request.home or seconds < _NEVER:
            timer = request.parker.set_timer(seconds, here)
            if timer is None and not request.parker.wake(here):
                return False
        self.timekeeper, self._timer = request, timer
        return True

    def stop_timer(self) -> None:
        """The timekeeper is awake, or gone."""
        keeper, timer = self.timekeeper, self._timer
        if keeper is not None and timer is not None:
            self._timer = None
            keeper.parker.stop_timer(timer)

    def oldest(self) -> Request | None:
        """The first of them."""
        line = self.line
        while line and not line[0].parked:
            line.popleft()
            self._gone -= 1
        return line[0] if line else None


class WaitQueue:
    """One queue, the homes of its waiters, and the moment of its next turn."""

    __slots__ = (
        "_alarm", "_calendars", "_forks", "_here", "_homes", "_leader", "_merged", "_paused", "_running", "_unfinished",
        "_waking", "clearance", "into", "waiters",
    )  # fmt: skip

    def __init__(self, ageing: float = 30.0, weights: Mapping[Hashable, float] | None = None) -> None:
        self.waiters = Queue(ageing, dict(weights or {}))
        self.clearance = Clearance()
        self._calendars: WeakSet[CalendarWindow] | None = None  # made when there is one
        self.into: WaitQueue | None = None  # the queue that this one became part of
        self._merged = 1  # of how many queues this one is made
        self._homes: dict[object, _Home] = {}
        self._leader: _Home | None = None  # whose timekeeper rings first
        self._alarm = _NEVER  # the next turn, if nothing else happens
        self._paused: list[LimitState] = []
        self._running: Request | None = None  # the waiter that looks for its own turn now
        self._here: object = None  # the home in which this decision is made, where that is known
        self._waking = 0  # over all homes
        self._forks = parking.forks
        self._unfinished = False  # whether a decision is being made, or an exception cut one short

    # Around a decision

    def begin(self) -> float:
        """Begin a decision: nothing may be charged past it. Returns the time."""
        self.clearance.given = False
        if self._forks != parking.forks:
            self._forget_the_parents_waiters()
        if self._unfinished:
            self.repair()
        self._unfinished = True
        now = self.now()
        if self._calendars is not None:
            lead = clock.wall() - now
            for meter in self._calendars:
                meter.follow(lead)
        return now

    def end(self, now: float) -> None:
        """End a decision: calls may be charged without a look here again, if no call waits and nothing is paused."""
        self._here = None
        if self._paused:
            self._paused = [state for state in self._paused if state.paused_until > now]
        self._unfinished = False
        self.clearance.given = not (self.waiters.count or self._waking or self._paused or self.into is not None)

    def now(self) -> float:
        """The time. A method, so that a queue may go by another clock."""
        return clock.now()

    def follow(self, meter: CalendarWindow) -> None:
        """Tell this meter, before each decision, how far the wall clock is ahead."""
        if self._calendars is None:
            self._calendars = WeakSet()
        self._calendars.add(meter)

    def withdraw_clearance(self) -> None:
        """The limits have changed: make every binding of before look again."""
        self.clearance.given = False
        self.clearance = Clearance()
        self.clearance.given = False  # until this decision ends

    def pause(self, state: LimitState) -> None:
        """Make every call look closer while this limit is paused."""
        self.clearance.given = False  # outside a decision, too
        self._paused.append(state)

    def repair(self) -> None:
        """An exception cut a decision short (a signal handler's, a bug in a meter): make the queue whole again."""
        now = self.now()
        self._running = self._here = None
        for home in list(self._homes.values()):
            for request in home.parked():
                if request.receipts is not None and not request.done:
                    self._grant(request, request.receipts, now)  # it was charged, and then the exception came
                elif request.done:
                    self._wake(request, home)
            keeper = home.timekeeper
            if keeper is None or not (keeper.parked or keeper.waking):
                home.timekeeper = home.oldest()
        parked = [request for home in self._homes.values() for request in home.parked()]
        self.waiters = self.waiters.rebuild(parked)
        self._alarm = -math.inf  # the next call looks for turns
        self._ring_all()

    # Turns

    def enter(self, request: Request, now: float) -> None:
        """Let `request` join the queue; it may be granted on the spot."""
        request.queue = self
        self._here = request.home
        patient = request.parker is not None and request.deadline is None
        if self._homes and request.home not in self._homes:
            self._forget_closed_loops(now)
        if now >= self._alarm + (LATE if patient else 0.0):
            self.run(now)  # the timer has not rung yet: grant in its place, before a bucket overflows
        if not self.waiters.join(request, now):
            return
        home = self._homes.get(request.home) if patient else None
        if home is not None and home.waking:
            # Don't grant the newcomer in this call: it would run ahead of waiters of this loop that were granted a
            # moment ago and are still asleep. The next arrival grants it, or the timekeeper.
            self._set_alarm(min(self._alarm, now))
        else:
            self._running = request
            self.run(now)
            self._running = None

    def run(self, now: float, back: Iterable[LimitState] | None = ()) -> None:
        """Grant every waiter whose turn has come, and find out when the next turn is.

        Args:
            back: Limits that something was given back to, or that have changed; None: any.
        """
        if self.waiters.count:
            if back is None or back:
                self.waiters.wake(back)
            self._set_alarm(admit(self.waiters, now, self._grant, changed=False))
        else:
            self._alarm = _NEVER

    def _set_alarm(self, moment: float) -> None:
        earlier = moment < self._alarm
        self._alarm = moment
        if earlier:
            self._ring_all()

    def _ring_all(self) -> None:
        """Wake the timekeepers, to set their timers anew."""
        for home in self._homes.values():
            timekeeper = home.timekeeper
            if timekeeper is not None and timekeeper is not self._running:
                timekeeper.parker.wake(self._here)

    def _grant(self, waiter: Waiter, receipts: Receipts, now: float) -> None:
        request: Request = waiter  # type: ignore[assignment]  # all waiters here are
        request.receipts, request.granted_at = receipts, now
        if request.parked and not self._wake(request, self._homes[request.home]):
            undo(request.charges, receipts, now)
            request.receipts, request.granted_at = None, math.nan
        else:
            request.info.granted += 1

    def _wake(self, request: Request, home: _Home) -> bool:
        """Wake a waiter that is done. False if its loop is gone."""
        if request is not self._running:
            if not request.waking:
                request.waking = True
                home.waking += 1
                self._waking += 1
            if not request.parker.wake(self._here):
                home.unpark(request)
                self._awake(request, home)
                return False
        home.unpark(request)  # at last: if an exception comes before, `repair` wakes it
        return True

    def _awake(self, request: Request, home: _Home) -> None:
        """A waiter that was woken runs again, or will never."""
        if request.waking:
            request.waking = False
            home.waking -= 1
            self._waking -= 1

    def awake(self, request: Request) -> bool:
        """Take note that a waiter runs again which is done; False if that needs a decision.

        The timekeeper needs one, to pass the time on. So does the last that is awake again where nobody keeps the time:
        after it newcomers may be charged at once. This method alone may be called outside of a decision, and without
        the lock: see `fast_path` for why a block without a call is one step.
        """
        home = self._homes.get(request.home)
        if home is None or not HAS_GIL:
            return False
        # The first look is at `into`, which is set before the homes of this queue are counted in another. A waiter that
        # is not waking is not done, or was granted by itself.
        keeper = home.timekeeper
        if self.into is None and request.waking and keeper is not request and (keeper is not None or home.waking > 1):
            request.waking = False
            home.waking -= 1
            self._waking -= 1
            return True
        return False

    def advance(self, request: Request, now: float) -> float | None:
        """What a waiter that was woken has to do: park for so many seconds, `inf` for until woken. None: it is done.

        0: its deadline has come before its turn.
        """
        self._here = request.home
        home = self._homes[request.home]
        if not request.done and now >= self._alarm:
            self._running = request
            self.run(now)
            self._running = None
            if home.timekeeper is request:
                self._leader = home
        if request.done:
            self._stand_down(request, home, now)
            return None
        request.parker.rearm()
        return self.park(request, now)

    def park(self, request: Request, now: float) -> float:
        """Let a waiter wait whose turn has not come; return for how many seconds, as `advance`."""
        home = self._homes.get(request.home)
        if home is None:
            home = self._homes[request.home] = _Home()
        if not request.parked:  # it parks once, however often it wakes
            home.line.append(request)
            request.parked = True
        if home.timekeeper is None:
            home.timekeeper = request
        until = _NEVER if request.deadline is None else request.deadline
        if home.timekeeper is request:
            home.stop_timer()
            until = min(until, self._time_up(home, now))
        return until - now if until > now else 0.0

    def _time_up(self, home: _Home, now: float) -> float:
        """When the timekeeper of this home has to look for turns."""
        alarm = self._alarm if self._leads(home) else self._alarm + GRACE
        # Never at once: `run` has just found out that no turn has come yet.
        return max(alarm, math.nextafter(now, math.inf))

    def _leads(self, home: _Home) -> bool:
        """Whether this home's timekeeper rings first: it does unless another one does already, in a loop that runs."""
        leader = self._leader
        if leader is not home:
            keeper = None if leader is None else leader.timekeeper
            if keeper is not None and keeper.parker.awake():
                return False
            self._leader = home
        return True

    def leave(self, request: Request, now: float) -> None:
        """Let a waiter go without a turn; a grant that it was just handed is undone."""
        home = self._homes.get(request.home)  # the garbage collector may call this in any thread: `_here` is not known
        receipts = request.receipts
        self.waiters.leave(request)
        if receipts is not None:
            request.receipts = None
            undo(request.charges, receipts, now)
            if request.granted:
                request.granted_at = math.nan
                request.info.granted -= 1
            self.run(now, [state for state, _ in request.charges])
        else:
            self.run(now)
        if home is not None:
            self._stand_down(request, home, now)

    def refuse(self, request: Request, error: Exception) -> None:
        request.error = error
        self.waiters.leave(request)
        if request.parked:
            self._wake(request, self._homes[request.home])

    def _stand_down(self, request: Request, home: _Home, now: float) -> None:
        """A waiter is done and awake: if it kept the time of its home, the oldest waiter there does from now on."""
        self._awake(request, home)
        home.unpark(request)
        if home.timekeeper is not request:
            if home.timekeeper is None and not home.waking and home.oldest() is None:
                self._drop(request.home, home)
            return
        home.stop_timer()
        home.timekeeper = None
        while (oldest := home.oldest()) is not None:
            if home.entrust(oldest, self._time_up(home, now) - now, self._here):
                return
            home.unpark(oldest)
            self.waiters.leave(oldest)  # its loop is gone, and so is the waiter
        self._drop(request.home, home)

    def _drop(self, key: object, home: _Home) -> None:
        if not home.waking:
            self._homes.pop(key, None)
        if self._leader is home:
            self._leader = None
            self._ring_all()  # one of the others rings first from now on

    def _forget_closed_loops(self, now: float) -> None:
        """Let the waiters go that were left in a closed loop: they would hold up the others until their turn."""
        for home in list(self._homes.values()):
            if home.timekeeper is not None and not home.timekeeper.parker.alive():
                self.leave(home.timekeeper, now)  # the others of its loop go with it
                self.run(now)

    def _forget_the_parents_waiters(self) -> None:
        """In the child of a fork: every waiter waits in the parent."""
        self._forks = parking.forks
        for waiter in list(self.waiters):
            self.waiters.leave(waiter)
        self._homes.clear()
        self._leader = None
        self._waking = 0
        self._alarm = _NEVER

    # Forecasts

    def expected(self, request: Request, now: float) -> tuple[float, LimitState | None]:
        """When `request` would be granted if it joined now, and the limit that it would wait for longest.

        Exact with no call waiting; else when it would be ready after all waiters that go first and need the same
        limits.
        """
        first = self.waiters.join(request, now)
        try:
            if first and could_go(self.waiters, request, now):
                return now, None
            return self.expected_of(request, now, in_turns=True)
        finally:
            self.waiters.leave(request)

    def expected_of(self, request: Request, now: float, *, in_turns: bool = False) -> tuple[float, LimitState | None]:
        """When a waiter will be granted: see `expected`.

        Without `in_turns` as if all other flows went first, which is found out at once.
        """
        waiters = self.waiters
        ahead = waiters.due_before(request) if in_turns and waiters.shared() else waiters.queued_ahead(request)
        return ready_behind(request.charges, ahead, now)

    # Changes

    def standing(self) -> WaitQueue:
        """This queue, or the one that it became part of."""
        queue = self
        while queue.into is not None:
            queue = queue.into
        return queue

    def merge(self, other: WaitQueue) -> WaitQueue:
        """Become one with `other`, with one order for all waiters; return the queue that is left.

        That is the one with more waiters, else the one that was made of more queues. So a limiter that is joined with a
        new one for every call stays where it is, and does not drag a chain of former queues behind it.
        """
        if other is self:
            return self
        if (len(other.waiters), other._merged) > (self.waiters.count, self._merged):
            return other.merge(self)
        self._merged += other._merged
        waiters = self.waiters
        if other.waiters.weights:
            waiters.weights = {**other.waiters.weights, **waiters.weights}
        waiters.ageing = min(waiters.ageing, other.waiters.ageing)
        if other._calendars is not None:
            self._calendars = other._calendars if self._calendars is None else self._calendars | other._calendars
        other.into = self
        other.clearance.given = False  # for ever: bindings that hold it must look here
        self._paused += other._paused
        self._take_in(other)
        return self

    def _take_in(self, other: WaitQueue) -> None:
        for waiter in self.waiters.take_in(other.waiters):
            waiter.queue = self  # type: ignore[attr-defined]  # all waiters here are requests
        for key, theirs in other._homes.items():
            home = self._homes.setdefault(key, _Home())
            home.take_in(theirs)
        self._waking += other._waking
        other._homes.clear()
        self.run(self.now(), None)
        self._ring_all()

    def recharge(self, changed: list[tuple[tuple[LimitState, ...], tuple[LimitState, ...]]]) -> None:
        """The limits of some units were replaced: charge all waiters on those of now."""
        renewed = {state: after for before, after in changed if before != after for state in before}
        if renewed:
            self.waiters.recharge(renewed)  # type: ignore[arg-type]  # limit states are what is charged

    def refuse_oversized(self, never: Callable[[LimitState, float], Exception]) -> None:
        """Tell all waiters that wait for more than a limit can ever hold."""
        for waiter in list(self.waiters):
            charges: Charges = waiter.charges
            for state, amount in charges:
                if amount > state.limit.capacity:
                    self.refuse(waiter, never(state, amount))  # type: ignore[arg-type]
                    break
