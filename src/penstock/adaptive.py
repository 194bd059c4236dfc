"""Lower the rates of a limiter while the server reports overload, and raise them again afterwards.

    limiter = Limiter(requests="3500/min", calls=in_flight(64))
    adaptive = Adaptive(limiter, on=Overloaded)

    async with limiter(), adaptive: ...  # or `with adaptive:` in a thread, `@adaptive`, or a layer of a pipeline
    adaptive.overloaded()                        # or say so yourself

The rule is in `_core.aimd`. `Adaptive` reports calls to it, and sets the limiter's rates to the share that it computes.
Queues, and pauses that a server asks for (`limiter.pause`), are decided elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self, TypeVar

from penstock import clock
from penstock._concurrency.shared_state import SharedState
from penstock._core.aimd import Aimd
from penstock._introspect import kind_of, name_of
from penstock._numbers import Seconds, read_number, span
from penstock._run_inside import run_inside
from penstock._text import repr_of
from penstock._user_errors import On, check_on, verdict
from penstock.limiter import Limiter
from penstock.limits import Limit, Rate
from penstock.stores.memory import MemoryStore

__all__ = ["Adaptive"]

_F = TypeVar("_F", bound=Callable[..., Any])

_STEP = 0.01
"""Share of the promise below which growth is not worth a reconfiguration, which looks at all waiters."""


class Adaptive(SharedState):
    """Cuts a limiter's rates when the server is overloaded, and lets them grow back while calls succeed.

    The rates never exceed the promise: the limits that the limiter has now, or gets later by `limiter.reconfigure`.
    Only `Rate` limits change, and of these only the rate: the burst stays, so that no call becomes impossible. Between
    cuts the share grows by `grow` of the promise per second in which calls are made, and not while idle (more than a
    second without a call).

    It is a decorator of functions and a context manager, for any number of tasks and threads at the same time; it never
    waits. A copy of it is itself, because it steers one limiter. It cannot be pickled.

    Args:
        limiter: The limiter to adapt. It must live in this process, and not be a joint one: adapt its parts.
        on: Which errors say that the server is overloaded: exception types, or a function of the error that says True
            or False. None: only `overloaded()` does.
        cut: The share of the rates that is left after a cut; above 0, below 1.
        cooldown: How long after a cut no other cut is made: about as long as a call takes. Seconds or a `timedelta`, 0
            or more.
        grow: Share of the promise that is regained per second of use; above 0.
        floor: Share of the promise that is always left; above 0, at most 1.

    Raises:
        ValueError: A number is out of its range, or the limiter is shared, joint, or has no `Rate`.
        TypeError: `on` is neither exception types nor a plain function.
    """

    __slots__ = ("_aimd", "_applied", "_before", "_limiter", "_on", "_promise", "_set_share")

    _penstock_kind = "layer"

    def __init__(
        self,
        limiter: Limiter,
        *,
        on: On | None = None,
        cut: float = 0.5,
        cooldown: Seconds = 5.0,
        grow: float = 0.05,
        floor: float = 0.05,
    ) -> None:
        if not isinstance(limiter, Limiter):
            raise TypeError(f"Adaptive({repr_of(limiter)}): a Limiter is needed, whose rates it adapts")
        numbers = {"cooldown": span("Adaptive(cooldown={})", cooldown, zero=True)}
        for name, given in (("cut", cut), ("grow", grow), ("floor", floor)):
            number = read_number(given)
            if number is None:
                raise ValueError(f"{name}={repr_of(given)} must be a finite number")
            numbers[name] = number
        self._aimd = Aimd(**numbers)
        if on is not None:
            check_on("Adaptive", on)
        self._on = on
        if not isinstance(limiter.store, MemoryStore):
            raise ValueError(
                f"{repr_of(limiter)} lives in a shared store: its limits are those of all processes. "
                "Adapt a limiter of this process, joined to nothing"
            )
        if limiter.joint:
            raise ValueError(f"{repr_of(limiter)} is joint: adapt the limiters that it was made of, each by itself")
        self._limiter = limiter
        self._promise: dict[str, tuple[Limit, ...]] = {}
        self._applied: dict[str, tuple[Limit, ...]] = {}
        self._before: dict[str, tuple[Limit, ...]] = {}  # while that is being applied: what is in force until then
        self._set_share = 1.0
        self._read_promise()
        if not self._promise:
            raise ValueError(f"{repr_of(limiter)} has no Rate to adapt: other kinds of limit stay as they are")

    @property
    def share(self) -> float:
        """How much of the promise is used now, from `floor` to 1."""
        with self._lock:
            return self._aimd.share

    def overloaded(self) -> bool:
        """Say that the server is overloaded: cut the rates, unless the last cut was less than `cooldown` ago.

        Return whether they were cut.
        """
        with self._lock:
            was_cut = self._aimd.overloaded(clock.now())
            if was_cut:
                self._apply()
            return was_cut

    def __enter__(self) -> Self:
        with self._lock:
            self._aimd.begin(clock.now())
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object, /) -> None:
        is_overload = (
            self._on is not None and isinstance(error, Exception) and verdict("Adaptive", self._on, error) is not False
        )
        with self._lock:
            self._aimd.end(clock.now(), succeeded=error is None)
            if is_overload:
                self.overloaded()
            elif self._aimd.share >= self._set_share + _STEP or self._aimd.share == 1 > self._set_share:
                self._apply()

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object, /) -> None:
        self.__exit__(kind, error, trace)

    def __call__(self, function: _F, /) -> _F:
        """Decorate an async function, a function or a context manager: every call tells how the server fares.

        Raises:
            TypeError: A generator function of either kind: use `with adaptive:` inside, around what calls the server.
        """
        if kind_of(function) in {"stream", "generator"}:
            raise TypeError(f"{name_of(function)} is a generator function: use `with adaptive:` inside it instead")
        return run_inside(function, lambda *_: self)

    def __repr__(self) -> str:
        return f"Adaptive({self._limiter!r}, share={self.share:.3g})"

    def _read_promise(self) -> None:
        """Read the limits: those that we did not set are a new promise."""
        for unit, limits in self._limiter.limits.items():
            if limits not in (self._applied.get(unit), self._before.get(unit)):
                self._promise.pop(unit, None)
                if any(isinstance(limit, Rate) for limit in limits):
                    self._promise[unit] = limits

    def _apply(self) -> None:
        self._read_promise()
        self._set_share = share = self._aimd.share
        applied = {
            unit: tuple(_scaled(limit, share) if isinstance(limit, Rate) else limit for limit in limits)
            for unit, limits in self._promise.items()
        }
        self._before, self._applied = self._applied, applied
        self._limiter.reconfigure(**applied)
        self._before = {}


def _scaled(rate: Rate, share: float) -> Rate:
    if share == 1:
        return rate
    return Rate(rate.amount * share, rate.per, rate.burst, overdraft=rate.overdraft, default=rate.default)
