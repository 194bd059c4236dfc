"""What `limiter(...)` is: an async context manager, a context manager for threads, and a decorator in one.

`Use` is all of them, for any cost and any limiter. Two calls are written out by hand, `CallOfOne` and `CallOfTwo`: one or two token
buckets, plain whole costs above 0, nobody waiting, nobody listening. They do just what the general way does, which takes over
whenever anything is not so.
"""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from penstock import clock
from penstock._concurrency.parking import here, who_am_i
from penstock._gate import Request
from penstock._introspect import kind_of, name_of, stream_inside
from penstock._validation import check_turn
from penstock.errors import CostError
from penstock.permit import Permit

if TYPE_CHECKING:
    from penstock.limiter import Limiter

__all__ = ["Call", "CallOfOne", "CallOfTwo", "Entered", "Settle", "Use"]

F = TypeVar("F", bound=Callable[..., Any])
Settle = Callable[[Any], Mapping[str, float]]


class Entered:
    """The permits of one object that many may enter at once: who leaves ends the one that it entered last."""

    __slots__ = ("_permits",)

    def __init__(self) -> None:
        self._permits: dict[object, list[Permit]] = {}  # by the task or thread that entered

    def add(self, permit: Permit) -> None:
        """This task, or thread, has entered."""
        self._permits.setdefault(who_am_i(), []).append(permit)

    def leave(self, *, others: bool = True) -> None:
        """This task, or thread, leaves.

        Where it was entered elsewhere (a fixture, an exit stack), one permit is as good as another, as all cost the same:
        `others` says whether that can be.
        """
        permits, me = self._permits, who_am_i()
        if me not in permits:
            if not permits or not others:
                return  # it entered when there was nothing to hold, and the limits are others now
            me = list(permits)[-1]
        mine = permits[me]
        mine.pop().close()
        if not mine:
            permits.pop(me, None)


class Use:
    """What `limiter(...)` is: an async context manager, a context manager and a decorator, as often as you like."""

    __slots__ = ("_cost", "_entered", "_flow", "_limiter", "_max_wait", "_priority", "_settle")

    _penstock_kind = "limiter"

    def __init__(self, limiter: Limiter, options: dict[str, Any]) -> None:
        self._limiter = limiter
        self._settle: Settle | None = options.pop("settle", None)
        self._max_wait: float | None = options.pop("max_wait", None)
        self._priority = options.pop("priority", 0)
        self._flow = options.pop("flow", None)
        self._cost: dict[str, Any] = options
        self._entered = Entered()
        if self._settle is not None and not callable(self._settle):
            raise CostError(
                f"settle= must be a function of the result that returns the true cost, not {self._settle!r}"
            )
        of_the_turn = (("settle", self._settle), ("priority", self._priority), ("flow", self._flow))
        for given, function in (*of_the_turn, *options.items()):
            if callable(function) and kind_of(function) == "async":
                raise CostError(f"{given}={name_of(function)}: it is called and not awaited; give a plain function")
        # What is a function is checked when it has answered, the rest now.
        check_turn(
            self._max_wait,
            0 if callable(self._priority) else self._priority,
            None if callable(self._flow) else self._flow,
        )
        limiter._charges_of({unit: 0 if callable(value) else value for unit, value in options.items()})

    async def __aenter__(self) -> Permit:
        permit = await self._limiter._acquire(
            self._fixed(), max_wait=self._max_wait, priority=self._priority, flow=self._flow
        )
        self._entered.add(permit)
        return permit

    async def __aexit__(self, *_: object) -> None:
        self._entered.leave()

    def __enter__(self) -> Permit:
        permit = self._limiter._acquire_in_thread(
            self._fixed(), max_wait=self._max_wait, priority=self._priority, flow=self._flow
        )
        self._entered.add(permit)
        return permit

    def __exit__(self, *_: object) -> None:
        self._entered.leave()

    def _fixed(self) -> dict[str, Any]:
        for unit, value in self._cost.items():
            if callable(value):
                raise CostError(
                    f"the cost of {unit} is a function of the call's arguments: use it in a decorator, not in `with`"
                )
        for option, value in (("priority", self._priority), ("flow", self._flow)):
            if callable(value):
                raise CostError(
                    f"{option}={name_of(value)} is a function of the call's arguments: use it in a decorator, not in `with`"
                )
        if self._settle is not None:
            raise CostError(
                f"settle={name_of(self._settle)} is a function of the call's result: use it in a decorator, and "
                "permit.settle(...) in `with`"
            )
        return self._cost

    def _for_call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[dict[str, float], dict[str, Any]]:
        cost = {unit: value(*args, **kwargs) if callable(value) else value for unit, value in self._cost.items()}
        turn = {
            "max_wait": self._max_wait,
            "priority": self._priority(*args, **kwargs) if callable(self._priority) else self._priority,
            "flow": self._flow(*args, **kwargs) if callable(self._flow) else self._flow,
        }
        check_turn(**turn)
        return cost, turn

    def _settled(self, permit: Permit, result: Any) -> None:
        if self._settle is not None:
            permit.settle(**self._settle(result))

    def __call__(self, function: F, /) -> F:
        """Decorate `function`: every call is charged first. Async functions, functions, and generators of both kinds."""
        if not callable(function):
            raise TypeError(f"a limiter decorates functions, not {function!r}")
        limiter = self._limiter
        kind = kind_of(function)
        if kind in {"stream", "generator"} and self._settle is not None:
            raise CostError(
                "settle= needs a result, and a generator has none: settle inside, on the permit of `with limiter(...)`"
            )
        wrapper: Any
        if kind == "async":

            async def wrapper(*args: Any, **kwargs: Any) -> Any:
                cost, turn = self._for_call(args, kwargs)
                with await limiter._acquire(cost, **turn) as permit:
                    result = await function(*args, **kwargs)
                    self._settled(permit, result)
                    return result

        elif kind == "stream":

            def enter(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Use:
                cost, turn = self._for_call(args, kwargs)
                return Use(limiter, {**cost, **turn})

            return stream_inside(enter, function)  # type: ignore[return-value]

        elif kind == "generator":

            def wrapper(*args: Any, **kwargs: Any) -> Any:
                cost, turn = self._for_call(args, kwargs)
                with limiter._acquire_in_thread(cost, **turn):
                    return (yield from function(*args, **kwargs))

        else:

            def wrapper(*args: Any, **kwargs: Any) -> Any:
                cost, turn = self._for_call(args, kwargs)
                with limiter._acquire_in_thread(cost, **turn) as permit:
                    result = function(*args, **kwargs)
                    self._settled(permit, result)
                    return result

        return functools.wraps(function)(wrapper)  # type: ignore[return-value]

    def __repr__(self) -> str:
        inside = {**self._cost, "settle": self._settle, "max_wait": self._max_wait, "flow": self._flow}
        text = ", ".join(
            f"{key}={getattr(value, '__qualname__', repr(value))}" for key, value in inside.items() if value is not None
        )
        return f"{self._limiter!r}({text})"


_late: list[tuple[object, Call, Permit]] | None = None
"""Who has entered which plain call that holds places by now, and what to close when it is left. None, nearly always: nobody."""

_late_lock = threading.Lock()


class Call(Permit):
    """A plain call of a plain limiter, and, once it is entered, its permit: one object for both saves a fifth of the time."""

    __slots__ = ("_amount",)

    _penstock_kind = "limiter"

    _amount: float

    def _given(self) -> dict[str, Any]:
        return {self._limiter._plain_unit: self._amount}

    def __repr__(self) -> str:
        return super().__repr__() if self._granted_at is not None else repr(Use(self._limiter, self._given()))

    async def _general(self) -> Permit:
        """Enter the general way: perhaps a deadline is set, or the limiter has changed, or it is not the first time."""
        limiter = self._limiter
        charges = limiter._plain_charges(self._amount)
        if limiter._holds:  # a reconfiguration has brought places since this call was made
            return self._to_close(await limiter._acquire(self._given()))
        permit = None if limiter._gate.busy else limiter._try(charges)
        if permit is None:
            permit = self._after(await limiter._wait(charges, None, 0, None))
        return permit

    def _stand_in_line(self) -> Request | None:
        """Stand in line, if nothing is special; the caller must then wait itself, which saves two coroutines a request."""
        limiter = self._limiter
        parker = here()
        charges = limiter._plain_charges(self._amount)
        if parker.time_left() < math.inf or limiter._holds:
            return None
        return limiter._join(charges, parker, None, math.inf, 0, None)

    def _after(self, request: Request) -> Permit:
        """The permit of a request that had its turn: this object, if it is none yet."""
        limiter, permit = self._limiter, self
        holds = limiter._has_places()  # which it may have got while this call stood in line
        if self._granted_at is not None:
            permit = Permit._of(limiter, request.charges, request.receipts, request.granted_at)  # type: ignore[arg-type,assignment]
        else:
            self._charges, self._receipts, self._ended = request.charges, request.receipts, not holds  # type: ignore[assignment]
            self._granted_at = request.granted_at
        return self._to_close(permit) if holds else permit

    def _to_close(self, permit: Permit) -> Permit:
        global _late
        with _late_lock:
            _late = [*(_late or ()), (who_am_i(), self, permit)]
        return permit

    def _close(self) -> None:
        """End the permit that this task, or thread, has entered this call with last, if it holds places."""
        global _late
        me = who_am_i()
        with _late_lock:
            late = _late or []
            mine = next((entry for entry in reversed(late) if entry[0] == me and entry[1] is self), None)
            if mine is not None:
                _late = [entry for entry in late if entry is not mine] or None
        if mine is not None:
            mine[2].close()

    def __enter__(self) -> Permit:
        permit = self._limiter._acquire_in_thread(self._given())
        return self._to_close(permit) if self._limiter._has_places() else permit

    def __exit__(self, kind: object, error: object, trace: object, /) -> None:
        if _late is not None:  # else nothing is held, so there is nothing to give back
            self._close()

    async def __aexit__(self, kind: object, error: object, trace: object, /) -> None:
        if _late is not None:
            self._close()

    def __call__(self, function: F, /) -> F:
        """Decorate `function`."""
        return Use(self._limiter, self._given())(function)


class CallOfOne(Call):
    """`limiter(tokens=5)` with one bucket."""

    __slots__ = ("_tat",)

    _tat: float

    async def __aenter__(self) -> Permit:
        limiter = self._limiter
        take, release = limiter._locking
        take()  # half the time of `with`
        try:
            bucket, _ = limiter._buckets
            now = clock.now()
            refill = now * bucket.rate + bucket.offset
            tat = bucket.tat
            tat = (refill if tat < refill else tat) + self._amount
            if tat - bucket.ceiling <= refill and not limiter._gate.busy and self._granted_at is None:
                bucket.tat = self._tat = tat
                limiter._granted += 1
                self._granted_at = now
                return self
        finally:
            release()
        request = self._stand_in_line()
        if request is None:
            return await self._general()
        seconds = request.park_for
        try:
            while seconds >= 0:
                await request.parker.park(seconds)  # type: ignore[union-attr]  # who has to park has a parker
                seconds = limiter._turn(request)
        except BaseException:
            limiter._give_up(request)
            raise
        return self._after(limiter._had_its_turn(request))

    def _reveal(self) -> None:
        if not hasattr(self, "_charges"):
            state, meter, *_ = self._limiter._terms
            self._charges = ((state, self._amount),)
            self._receipts = [(meter, (self._tat, self._granted_at))]
            self._ended = True


class CallOfTwo(Call):
    """`limiter(tokens=5)` with two buckets, the first of which has a default cost."""

    __slots__ = ("_tat1", "_tat2")

    _tat1: float
    _tat2: float

    async def __aenter__(self) -> Permit:
        limiter = self._limiter
        take, release = limiter._locking
        take()
        try:
            first, second = limiter._buckets
            now = clock.now()
            refill1 = now * first.rate + first.offset
            tat1 = first.tat
            tat1 = (refill1 if tat1 < refill1 else tat1) + limiter._plain_cost
            refill2 = now * second.rate + second.offset
            tat2 = second.tat
            tat2 = (refill2 if tat2 < refill2 else tat2) + self._amount
            if (
                tat1 - first.ceiling <= refill1
                and tat2 - second.ceiling <= refill2
                and not limiter._gate.busy
                and self._granted_at is None
            ):
                first.tat = self._tat1 = tat1
                second.tat = self._tat2 = tat2
                limiter._granted += 1
                self._granted_at = now
                return self
        finally:
            release()
        request = self._stand_in_line()
        if request is None:
            return await self._general()
        seconds = request.park_for
        try:
            while seconds >= 0:
                await request.parker.park(seconds)  # type: ignore[union-attr]  # who has to park has a parker
                seconds = limiter._turn(request)
        except BaseException:
            limiter._give_up(request)
            raise
        return self._after(limiter._had_its_turn(request))

    def _reveal(self) -> None:
        if not hasattr(self, "_charges"):
            first, meter1, second, meter2, cost = self._limiter._terms
            self._charges = ((first, cost), (second, self._amount))
            self._receipts = [(meter1, (self._tat1, self._granted_at)), (meter2, (self._tat2, self._granted_at))]
            self._ended = True
