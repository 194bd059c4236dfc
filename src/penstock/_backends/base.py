"""The protocol of a backend: what a limiter asks of it, and what it answers.

A limiter turns what users write into a `Request` and hands it to its backend, which answers with a `Grant` or an error.
A backend knows requests and grants; it never sees a limiter, a permit or a decorator.

    seconds = backend.enter(request)      None: it is answered. Else: park for so many seconds, then
    seconds = backend.advance(request)    again, until None
    backend.leave(request)                the caller is gone (cancelled): take the request, or its grant, back

`wait.py` is the loop that does this. A call that need not wait takes a shorter way: `Charge.grant`.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Hashable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol

from penstock._backends.charges import cost_of
from penstock._core.charging import Charges, Receipts
from penstock._core.places import Hold
from penstock._core.subqueues import Waiter
from penstock._frozen import FrozenDict
from penstock.events import joined_hook

if TYPE_CHECKING:
    from penstock._backends.charges import ChargePlan
    from penstock._concurrency.parking import Parker
    from penstock._core.subqueues import Subqueue
    from penstock.events import LimiterEvent
    from penstock.limits import Limit

HAS_GIL: bool = "free-threading" not in sys.version
"""Whether a block of Python without a call is one step for other threads: see `fast_path`. Asked of the build, as a
free-threaded one has the GIL for a moment whenever any thread imports an extension, which may be now."""


class LimiterInfo:
    """What a backend knows of a limiter: its name and options, and the counts that it shows."""

    __slots__ = ("cancelled", "enforce", "granted", "max_queue", "name", "on_event", "refused", "would_refuse")

    def __init__(
        self,
        name: str | None,
        max_queue: int | None = None,
        on_event: Callable[[LimiterEvent], object] | None = None,
        *,
        enforce: bool = True,
    ) -> None:
        self.name: str | None = name
        self.max_queue: int | None = max_queue
        self.enforce: bool = enforce
        self.on_event: Callable[[LimiterEvent], object] | None = on_event
        self.granted: int = 0
        self.refused: int = 0
        self.cancelled: int = 0
        self.would_refuse: int = 0

    def options(self) -> tuple[Any, ...]:
        """What was chosen for it beside its name."""
        return self.max_queue, self.on_event, self.enforce


def joined_info(one: LimiterInfo, other: LimiterInfo, name: str | None) -> LimiterInfo:
    """The info of a joint limiter: the shorter queue of both, and both hooks."""
    bounds = [bound for bound in (one.max_queue, other.max_queue) if bound is not None]
    hook = joined_hook(one.on_event, other.on_event)
    return LimiterInfo(name, min(bounds, default=None), hook, enforce=one.enforce)


class Clearance:
    """Permission to charge without a look at the queue: while no call waits or decides, and nothing is paused.

    Bindings hold on to it. When the limits change it is withdrawn for good, so a binding that is out of date takes the
    slow path, which finds the new one.
    """

    __slots__ = ("given",)

    def __init__(self) -> None:
        self.given: bool = True


class Grant:
    """What a call was charged, and when. A permit is a grant with the verbs that users call.

    Empty until a backend fills it in. The fast path fills in `binding`, `granted_at`, and of each bucket its `tat`
    after the charge as `receipts`; `charged()` gives the full form.
    """

    __slots__ = ("backend", "binding", "charges", "ended", "granted_at", "info", "receipts")

    entered: ClassVar[bool] = False  # whether the task, or thread, that was granted it must end it
    backend: Backend
    binding: Binding | None
    info: LimiterInfo
    charges: Charges
    receipts: Any
    granted_at: float
    ended: bool

    def of(self, backend: Backend, info: LimiterInfo, charges: Charges, receipts: Any, granted_at: float) -> None:
        """Fill in everything, in the full form. `granted_at` is NaN for one that is yet to be granted."""
        self.binding = None
        self.backend = backend
        self.info = info
        self.charges = charges
        self.receipts = receipts
        self.granted_at = granted_at
        self.ended = False

    def void(self) -> None:
        """It was granted nothing after all, and gives nothing back."""
        self.ended = True
        self.granted_at = math.nan

    @property
    def granted(self) -> bool:
        """Whether it was filled in by a charge."""
        at: float = getattr(self, "granted_at", math.nan)
        return at == at  # noqa: PLR0124 - NaN is not

    @property
    def held(self) -> bool:
        """Whether a part of the charge is held, and comes back when the permit ends."""
        if self.binding is not None:
            return self.binding.charge.held
        for state, _ in self.charges:  # noqa: SIM110 - a generator costs three times as much
            if state.meter.held:
                return True
        return False

    def charged(self) -> tuple[Charges, Receipts]:
        """The charges, limit by limit, and the receipt of each. Leaves the grant in the full form."""
        while (binding := self.binding) is not None:
            at, ended = self.granted_at, self.ended
            # With the meters that were charged: a change may have put others in their place. Of a key the receipts may
            # be all of its numbers, which are one more.
            operands = binding.charge.operands
            receipts = [
                (meter, Hold(0.0 if ended else amount, math.inf) if meter.held else (tat, at))
                for meter, amount, tat in zip(operands[::2], operands[1::2], self.receipts, strict=False)
            ]
            backend, info, charges = binding.backend, binding.info, binding.charge.charges
            # Unless another thread, or a signal handler, has changed this grant meanwhile. No call from here on.
            if self.binding is not None and self.ended is ended:
                self.backend, self.info, self.charges, self.receipts = backend, info, charges, receipts
                self.binding = None
        return self.charges, self.receipts

    if not HAS_GIL:  # that is no step then
        _charged = charged

        def charged(self) -> tuple[Charges, Receipts]:
            """As above, with the lock held."""
            binding = self.binding
            if binding is None:
                return self.charges, self.receipts
            with binding.backend.store.lock:
                return self._charged()


class Charge:
    """What a cost is charged, worked out once.

    Attributes:
        cost: Amount per unit, as the call gave it.
        charges: Limit by limit.
        operands: The meter and the amount of each limit, one after the other in one tuple: what the fast path reads.
        grant: Charges a call into a `Grant` if that can be done now; False if a backend has to look closer.
        release: Ends a grant that holds places; False if a backend has to look closer. None where nothing is held.
        shape: What it is made of, as the fast path calls it; empty where that has no function for it.
        held: Whether a part of the charge is held, and comes back when the permit ends.
        watched: Whether it would be held for ever if the permit was never closed.
        clearance: That of limits which are charged beside a key's.
        where: Of a key: where its limits are among those that keys share; None for one beside them.
        closer: As `grant`, by a look with the lock held, where `grant` leaves something to it.
    """

    __slots__ = (
        "_full_cost", "charges", "clearance", "closer", "cost", "grant", "held", "operands", "release", "shape",
        "watched", "where",
    )  # fmt: skip

    charges: Charges
    operands: tuple[Any, ...]
    grant: Callable[[Binding, Grant], bool]

    def __init__(self, cost: Mapping[str, float], charges: Charges, grant: Callable[[Binding, Grant], bool]) -> None:
        self.cost: Mapping[str, float] = cost
        self._full_cost: Mapping[str, float] | None = None
        self.charges = charges
        self.operands = ()
        self.grant = grant
        self.closer: Callable[[Binding, Grant], bool] = grant
        self.clearance: Any = None
        self.release: Callable[[Grant], bool] | None = None
        self.shape: str = ""
        self.where: tuple[Any, ...] = ()
        held = [state for state, _ in charges if state.meter.held]
        self.held: bool = bool(held)
        self.watched: bool = self.held and None in [getattr(state.limit, "ttl", None) for state in held]

    @property
    def full_cost(self) -> Mapping[str, float]:
        """The cost with defaults; for events."""
        if self._full_cost is None:
            self._full_cost = FrozenDict(cost_of(self.charges))
        return self._full_cost


def cost_key(cost: Mapping[str, Any]) -> Any:
    """What a cost is looked up by: the one pair, or a tuple of all. `Limiter.__call__` has the same, written out."""
    return next(iter(cost.items())) if len(cost) == 1 else (*cost.items(),)


class Binding:
    """A charge, bound to the limiter that is charged.

    `clearance`: whether `charge.grant` may do it by itself. `later`: the binding that took its place when the limits
    had changed.
    """

    __slots__ = ("backend", "charge", "clearance", "info", "later")

    backend: Backend
    info: LimiterInfo
    charge: Charge
    clearance: Clearance
    later: Binding | None

    def __init__(self, backend: Backend, info: LimiterInfo) -> None:
        self.backend = backend
        self.info = info
        self.later = None

    def current(self) -> Binding:
        """This binding, or one of the limits of now."""
        binding = self if self.later is None else self.later
        if not binding.backend.current(binding):
            binding = self.later = binding.backend.bind(binding.info, binding.charge.cost)
        return binding


class Request(Waiter):
    """What a call asks for, while it waits for an answer.

    Attributes:
        granted_at: The moment of its grant; NaN before.
        error: What the call is to raise instead.
        parker: What waits: a task or a thread. None: it cannot wait, so the answer must come at once.
        max_wait: Longest wait in seconds; None for any.
        time_left: Seconds until the enclosing cancel scope ends; `inf` without one.
        deadline: The moment at which `max_wait` is over; None for never.
        home: What the parker waits in: an event loop, or the threads that run none.
        queue: The queue that it entered.
        parked: Whether its home counts it among those that are to be woken.
        waking: Whether it was woken for its grant, and does not run yet.
    """

    __slots__ = (
        "cost", "deadline", "error", "granted_at", "home", "info", "max_wait", "parked", "parker", "queue", "time_left",
        "waking",
    )  # fmt: skip

    def __init__(
        self,
        binding: Binding,
        parker: Parker | None,
        max_wait: float | None = None,
        time_left: float = math.inf,
        priority: int = 0,
        flow: Hashable = None,
    ) -> None:
        charge = binding.charge
        # What every waiter has is written out, as many of them may be made at once.
        self.charges: Any = charge.charges
        self.priority: int = priority
        self.flow: Hashable = flow
        self.number: int = 0
        self.receipts: Any = None
        self.subqueue: Subqueue | None = None
        self.info: LimiterInfo = binding.info
        self.cost: Mapping[str, float] = charge.cost
        self.granted_at: float = math.nan
        self.parker: Any = parker  # whatever parks has one
        self.max_wait: float | None = max_wait
        self.time_left: float = time_left
        self.home: object = None if parker is None else parker.home
        self.deadline: float | None = None
        self.queue: object = None  # a WaitQueue, which knows requests
        self.parked: bool = False
        self.waking: bool = False
        self.error: Exception | None = None

    @property
    def granted(self) -> bool:
        """Whether it has been charged."""
        return self.granted_at == self.granted_at

    @property
    def done(self) -> bool:
        """Whether there is nothing left to wait for."""
        return self.error is not None or self.granted


class Backend(Protocol):
    """Decides for limiters. Every method may be called from any thread, and none of them waits."""

    @property
    def request_type(self) -> type[Request]:
        """The class of the requests that it takes."""

    @property
    def store(self) -> Any:
        """Where the state of the limits lives."""

    @property
    def limit_sets(self) -> tuple[object, ...]:
        """The limit sets that it decides over: several, if it is joint. Backends with the same have one state."""

    @property
    def waiting(self) -> int:
        """How many wait for their turn."""

    def plan(self) -> ChargePlan:
        """What costs are charged on now."""

    def bind(self, info: LimiterInfo, cost: Mapping[str, float]) -> Binding:
        """Bind a cost; raises CostError where it is wrong."""

    def current(self, binding: Binding) -> bool:
        """Whether a binding is still what its cost is charged on."""

    # Turns

    def enter(self, request: Request) -> float | None: ...

    def advance(self, request: Request) -> float | None: ...

    def leave(self, request: Request) -> None: ...

    def hand_over(self, request: Request, grant: Grant) -> None:
        """Fill in the grant of a request that was granted."""

    # Of a grant

    def cost(self, grant: Grant) -> dict[str, float]:
        """What it is charged now, per unit; after its end without what it held."""

    def settle(self, grant: Grant, true_cost: Mapping[str, float]) -> None: ...

    def cancel(self, grant: Grant) -> bool:
        """Give everything back. False: that was done before."""

    def close(self, grant: Grant) -> None:
        """End it: give back what it holds."""

    def postpone(self, grant: Grant, travel: float) -> None:
        """Count a grant in windows as a server does whose call leaves only now and arrives within `travel` seconds."""

    def lose(self, grant: Grant, where: tuple[str, int]) -> None:
        """No code can end this grant any more: its permit, acquired at that line, was collected."""

    # Of the limits

    def forecast(self, binding: Binding) -> tuple[float, str | None]:
        """Seconds that a call would wait if it came now, and the limit that it would wait for."""

    def observe(self, remaining: Mapping[str, float], reset: Mapping[str, float], grant: Grant | None) -> None: ...

    def pause(self, seconds: float, units: tuple[str, ...]) -> None: ...

    def resume(self, units: tuple[str, ...]) -> None: ...

    def reconfigure(self, limits: Mapping[str, tuple[Limit, ...]]) -> None: ...

    def snapshot(self) -> Snapshot: ...

    def level(self, unit: str) -> float:
        """What there is of a unit now: the level of that of its limits which holds least. Cheaper than a snapshot."""

    async def refresh(self) -> None:
        """Ask how things stand, for `snapshot` and `forecast` to show."""

    def recipe(self, info: LimiterInfo) -> list[dict[str, Any]]:
        """The options of limiters that together are the one of `info`, for `pickle`.

        Raises:
            TypeError: It cannot be pickled.
        """

    def itself(self) -> Backend:
        """This backend, or the one that it stands for."""

    def joined(self, other: Backend) -> Backend:
        """A backend over the limits of both, with one queue.

        Raises:
            ValueError: They cannot be decided together.
        """


class Snapshot(NamedTuple):
    """How things stand: waiters, places in use, the longest pause, and per limit its level."""

    waiting: int
    in_flight: float
    paused_for: float
    levels: list[tuple[str, Any, float]]  # (label, limit state, level)
