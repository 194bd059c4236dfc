"""The gate: one queue in front of limits that live in this process.

Limiters that share a limit share a gate, so that there is one order for all who need it. The gate knows nothing of decorators,
permits or units; it grants, refuses, and sees to it that somebody is awake when the next turn comes.

**The head waits for all.** At most one of those who wait, the one *on post*, has a timer. When it rings, its owner grants everyone
whose turn has come, by handing them their grant, and passes the post on. There is no background task and no polling. Whoever
changes something (gives back, leaves, arrives first) grants what that makes possible on the spot, and only tells the post if
it must now wake up earlier.

**Waiters hold nothing.** Leaving the queue gives back what was never taken; only a grant that was handed over at the very instant
of the cancellation must be undone, and it is undone exactly.

Every method is to be called with `store.lock` held, except where it says otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from typing import Protocol
from weakref import WeakSet

from penstock import clock
from penstock._concurrency import parking
from penstock._concurrency.parking import Parker
from penstock._core.queue import Queue, Waiter
from penstock._core.turns import Charges, LimitState, Receipts, admit, could_go, ready_behind, undo
from penstock._core.windows import CalendarWindow
from penstock.errors import PenstockError
from penstock.limits import Limit

__all__ = ["Gate", "Part", "Request"]


class Granting(Protocol):
    """A limiter, as far as its gate knows it."""

    _granted: int


class Request(Waiter):
    """One who waits at a gate. `receipts` is what it was charged once it is granted; `error` what it is to raise instead."""

    __slots__ = ("deadline", "error", "gate", "granted_at", "owner", "park_for", "parker", "receipts")

    def __init__(
        self,
        owner: Granting | None,
        gate: Gate,
        charges: Charges,
        parker: Parker | None,
        priority: int,
        flow: Hashable,
        deadline: float | None,
    ) -> None:
        self.charges = charges  # type: ignore[assignment]
        self.priority = priority
        self.flow = flow
        self.subqueue = None
        self.owner = owner
        self.gate = gate
        self.parker = parker
        self.deadline = deadline
        self.receipts: Receipts | None = None
        self.error: PenstockError | None = None
        self.granted_at = 0.0
        self.park_for = -1.0  # seconds to park before the first turn; below 0: it is done


class Gate:
    """One queue, and who is on post."""

    __slots__ = ("_alarm", "_forks", "_merged", "_paused_until", "_post", "busy", "calendars", "into", "queue")

    def __init__(self, ageing: float = 30.0, weights: dict[Hashable, float] | None = None) -> None:
        self.queue = Queue(ageing, weights)
        self.busy = False  # False only if nobody waits and nothing is paused: then a call may go without a look here
        self.calendars: WeakSet[CalendarWindow] | None = None  # made when there is one
        self.into: Gate | None = None  # the gate that this one became part of
        self._merged = 1  # of how many gates this one is
        self._post: Request | None = None
        self._alarm = math.inf  # for when the post has set its timer
        self._paused_until = -math.inf
        self._forks = parking.forks

    def now(self) -> float:
        """The time, with the meters that follow the calendar told of it, and nobody in the queue who waits in another process."""
        now = clock.now()
        if self._forks != parking.forks:
            self._forks = parking.forks
            for waiter in list(self.queue):
                self.queue.leave(waiter)
            self._post = None
            self.rest(now)
        if self.calendars is not None:
            offset = clock.wall() - now
            for meter in self.calendars:
                meter.follow(offset)
        return now

    def enter(self, request: Request, now: float) -> None:
        """Let `request` join the queue; it may be granted on the spot."""
        self.busy = True
        others_first = False
        if now >= self._alarm:
            # The loop of the post is too busy to ring: grant in its place, before a bucket overflows.
            waited = len(self.queue)
            self.run(now)
            self.busy = True
            others_first = len(self.queue) < waited and request.parker is not None and request.deadline is None
        # Granted now, it would go on before those who were granted just now wake up: its turn comes when the post does.
        if self.queue.join(request, now) and not others_first:
            self.run(now)

    def run(self, now: float) -> None:
        """Grant everybody whose turn has come. Wakes them, and the post if its timer is now too late."""
        next_turn = admit(self.queue, now, self._grant)
        if not len(self.queue):
            self.rest(now)
        if next_turn < self._alarm and self._post is not None:
            self._post.parker.wake()  # type: ignore[union-attr]  # who is on post can be woken
        self._alarm = next_turn

    def _grant(self, waiter: Waiter, receipts: Receipts, now: float) -> None:
        waiter.receipts = receipts  # type: ignore[attr-defined]
        waiter.granted_at = now  # type: ignore[attr-defined]
        parker: Parker | None = waiter.parker  # type: ignore[attr-defined]
        if parker is not None and not parker.wake():
            undo(waiter.charges, receipts, now)  # type: ignore[arg-type]  # its loop is gone, and so is it
        else:
            waiter.owner._granted += 1  # type: ignore[attr-defined]

    def rest(self, now: float) -> None:
        """With nobody in the queue, let calls go without a look here again, unless there is a pause."""
        if not len(self.queue):
            self.busy = self.into is not None or self._paused_until > now
            self._alarm = math.inf

    def pause(self, until: float) -> None:
        """Make every call look here until then; the states know what is paused."""
        self._paused_until = max(self._paused_until, until)
        self.busy = True

    def has_on_post(self, request: Request) -> bool:
        """Whether it is `request` who sees to the next turn. May be called without the lock by a request that is done."""
        return self._post is request

    def turn(self, request: Request, now: float) -> float:
        """What `request`, new or just woken, has to do: park for so many seconds (`inf`: until woken).

        Below 0: nothing, it is done. 0: its deadline has come before its turn.
        """
        post = self._post
        if post is not None and post is not request and not post.parker.awake():  # type: ignore[union-attr]
            self._post = post = None  # its loop was closed or stopped under it
        if (
            post is not None
            and post is not request
            and request.deadline is None
            and request.receipts is None
            and request.error is None
        ):
            request.parker.rearm()  # type: ignore[union-attr]
            return math.inf  # somebody else sees to its turn
        if request.receipts is None and request.error is None:
            if post is None:
                post = self._post = request
            if post is request or (request.deadline is not None and now >= request.deadline):
                self.run(now)
        if request.receipts is not None or request.error is not None:
            self._pass_on(request)
            return -1.0
        request.parker.rearm()  # type: ignore[union-attr]  # who takes turns can be woken
        until = math.inf if request.deadline is None else request.deadline
        if self._post is request:
            # Never 0 for the alarm: that it is not yet this request's turn now is what `run` has just found out.
            until = min(until, max(self._alarm, math.nextafter(now, math.inf)))
        return max(0.0, until - now)

    def leave(self, request: Request) -> None:
        """Let `request` go without a turn; a grant that it was just handed is undone."""
        if self.into is not None:  # it was granted here, and those whom its leaving helps wait there
            self.into.leave(request)
            return
        now = self.now()
        if request.receipts is not None:
            undo(request.charges, request.receipts, now)  # type: ignore[arg-type]
            request.receipts = None
            request.owner._granted -= 1  # type: ignore[union-attr]  # who leaves has an owner
        else:
            self.queue.leave(request)
        self.rest(now)
        if len(self.queue):
            self.run(now)
        self._pass_on(request)

    def _pass_on(self, request: Request) -> None:
        """If `request` is on post, put the first in the queue there instead."""
        if self._post is not request:
            return
        self._post = None
        now = self.now()
        while len(self.queue):
            for _, first in self.queue.heads(now):
                assert isinstance(first, Request)
                if first.parker is not None and first.parker.wake():
                    self._post = first
                    return
                self.queue.leave(first)  # its loop is gone, and so is it
        self.rest(now)

    def expected(self, charges: Charges, now: float) -> tuple[float, LimitState | None]:
        """When `charges` would be granted if they joined now, and the state they wait for longest.

        Exact with nobody waiter; else the moment at which it would be ready after all who go first and wait for the same limits.
        """
        request = Request(None, self, charges, None, 0, None, None)
        first = self.queue.join(request, now)
        try:
            if first and could_go(self.queue, request, now):
                return now, None
            return self.expected_of(request, now, in_turns=True)
        finally:
            self.queue.leave(request)

    def expected_of(self, request: Request, now: float, *, in_turns: bool = False) -> tuple[float, LimitState | None]:
        """`expected`, for one who waits in the queue; without `in_turns` as if all other flows went first, which is found out at once."""
        queue = self.queue
        ahead = queue.due_before(request) if in_turns and queue.shared() else queue.queued_ahead(request)
        return ready_behind(request.charges, ahead, now)  # type: ignore[arg-type]  # what its charges are on are states

    def standing(self) -> Gate:
        """This gate, or the one that it became part of."""
        gate = self
        while gate.into is not None:
            gate = gate.into
        return gate

    def merge(self, other: Gate) -> Gate:
        """Become one with `other`, with one order for all who wait; return the gate that is left.

        Where more wait; else which is more gates already. So whatever is joined with a new one for every call stays where it
        is, and does not drag a chain of former gates behind it.
        """
        if other is self:
            return self
        if (len(other.queue), other._merged) > (len(self.queue), self._merged):
            return other.merge(self)
        self._merged += other._merged
        queue = self.queue
        if other.queue.weights:
            queue.weights = {**other.queue.weights, **queue.weights}
        queue.ageing = min(queue.ageing, other.queue.ageing)
        if other.calendars is not None:
            self.calendars = other.calendars if self.calendars is None else self.calendars | other.calendars
        other.into = self
        other.busy = True  # for ever: whoever looks there is sent here
        self._paused_until = max(self._paused_until, other._paused_until)
        self.busy = self.busy or self._paused_until > -math.inf
        if len(other.queue):
            for waiter in queue.take_in(other.queue):
                waiter.gate = self  # type: ignore[attr-defined]
            other._post = None
            self._alarm = math.inf
            self.run(self.now())
            for waiter in queue:
                waiter.parker.wake()  # type: ignore[attr-defined]  # whoever was on post there must learn that it is not now
        return self

    def renew(self) -> Gate:
        """Hand everything over to a new gate, and return that.

        Limiters remember what plain calls are charged on. Whoever remembers what is over finds this gate busy, for ever, and looks
        again: so that a plain call need not.
        """
        new = Gate()
        new._merged = self._merged
        new.queue, self.queue = self.queue, Queue()
        new.busy, new.calendars = self.busy, self.calendars
        new._alarm, new._paused_until = self._alarm, self._paused_until
        for waiter in new.queue:
            waiter.gate = new  # type: ignore[attr-defined]
        if self._post is not None:  # it may have had its turn already, and then it must pass on the post there
            new._post = self._post
            self._post.gate = new
        self.into = new
        self.busy = True
        return new

    def recharge(self, changed: list[tuple[tuple[LimitState, ...], tuple[LimitState, ...]]], now: float) -> None:
        """After the limits of some units were replaced: let all who wait be charged on those of now, and look anew."""
        renewed = {state: after for before, after in changed if before != after for state in before}
        if renewed:
            self.queue.recharge(renewed)  # type: ignore[arg-type]  # what its charges are on are states
        self.run(now)

    def refuse(self, error: Callable[[LimitState, float], PenstockError], now: float) -> None:
        """Tell all who wait for more than a limit can ever hold."""
        for waiter in list(self.queue):
            for state, amount in waiter.charges:
                if amount > state.limit.capacity:  # type: ignore[attr-defined]
                    assert isinstance(waiter, Request)
                    waiter.error = error(state, amount)  # type: ignore[arg-type]
                    self.queue.leave(waiter)
                    waiter.parker.wake()  # type: ignore[union-attr]
                    break
        self.rest(now)
        if len(self.queue):
            self.run(now)


class Part:
    """The limits of one limiter as it was constructed, and the gate in front of them. Joint limiters have several parts."""

    __slots__ = ("__weakref__", "_gate", "defaults", "name", "states", "version")

    def __init__(self, limits: dict[str, tuple[Limit, ...]], gate: Gate, name: str | None) -> None:
        self.name = name
        self.version = 0
        self._gate = gate
        self.states: dict[str, tuple[LimitState, ...]] = {}
        self.defaults: dict[str, float] = {}
        self.promise(limits, 0.0)

    @classmethod
    def like(cls, other: Part, gate: Gate, name: str) -> Part:
        """A part with the same limits as `other`, which must be as constructed, and nothing used."""
        part = object.__new__(cls)
        part.name = name
        part.version = other.version
        part._gate = gate
        part.defaults = other.defaults
        part.states = {
            unit: tuple([LimitState.like(state) for state in states]) for unit, states in other.states.items()
        }
        part._follow_calendars()
        return part

    def limits(self) -> dict[str, tuple[Limit, ...]]:
        """What is promised now."""
        return {unit: tuple(state.limit for state in states) for unit, states in self.states.items()}

    def basis(self) -> tuple[object, ...]:
        """What a call is charged on, and what it costs unless it says so: the rest can change under those who know these."""
        return [(state, state.meter) for state in self.all_states()], self.defaults

    @property
    def gate(self) -> Gate:
        """The gate that these limits are behind now."""
        self._gate = gate = self._gate.standing()
        return gate

    def promise(self, limits: dict[str, tuple[Limit, ...]], now: float) -> None:
        """Replace the limits of these units; what was used stays used."""
        lead = clock.wall() - clock.now()
        for unit, kinds in limits.items():
            old = self.states.get(unit, ())
            states = []
            for index, limit in enumerate(kinds):
                label = unit if len(kinds) == 1 else f"{unit} ({limit})"
                if index < len(old):
                    state = old[index]
                    state.label = label
                    state.promise(limit, now, lead)
                else:
                    state = LimitState(unit, limit, label)
                    if old:
                        state.go_on_from(old[0].meter, now, lead)
                states.append(state)
            self.states[unit] = tuple(states)
            default = next((limit.default for limit in kinds if limit.default is not None), None)
            if default is None and unit == "requests":
                default = 1
            self.defaults = {name: value for name, value in self.defaults.items() if name != unit}
            if default is not None:
                self.defaults[unit] = default
        self.version += 1
        self._follow_calendars()

    def take_over(self, states: dict[str, tuple[LimitState, ...]], now: float, *, keep_limits: bool) -> None:
        """Go on from `states`, of an earlier part whose queue is gone; with its limits, or with those promised here."""
        wanted = self.limits()
        self.states = states
        if self.limits() == wanted:
            self._follow_calendars()
        else:
            self.promise(self.limits() if keep_limits else wanted, now)
        paused_until = max(state.paused_until for state in self.all_states())
        if paused_until > now:
            self.gate.pause(paused_until)

    def _follow_calendars(self) -> None:
        for states in self.states.values():
            for state in states:
                if state.meter.calendar:
                    gate = self.gate
                    if gate.calendars is None:
                        gate.calendars = WeakSet()
                    gate.calendars.add(state.meter)  # type: ignore[arg-type]

    def all_states(self) -> list[LimitState]:
        """Every limit of this part."""
        return [state for states in self.states.values() for state in states]
