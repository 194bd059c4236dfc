"""A limiter that takes less than was promised while the server says that it has too much.

    limiter = Limiter(requests="3500/min", calls=in_flight(64))
    adaptive = Adaptive(limiter, on=Overloaded)

    async with limiter(), adaptive: ...          # or `with adaptive:` in a thread, `@adaptive`, or a layer of a Pipeline
    adaptive.overloaded()                        # or say so yourself

The rule is in `_core.aimd`; here it is told of calls, and what it says becomes the limiter's rates. Who waits, and how long a server
that names a time is left alone (`limiter.pause`), is decided elsewhere.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any, Self, TypeVar

from penstock import clock
from penstock._core.aimd import Aimd
from penstock._introspect import kind_of, name_of
from penstock.limiter import Limiter
from penstock.limits import Limit, Rate
from penstock.stores.memory import MemoryStore

__all__ = ["Adaptive"]

_F = TypeVar("_F", bound=Callable[..., Any])

_STEP = 0.01
"""Share of the promise below which growth is not worth a reconfiguration, which looks at all who wait."""


class Adaptive:
    """Cuts a limiter's rates when the server is overloaded, and lets them grow back while calls succeed.

    Never above what was promised: the limits that the limiter has now, or is given later by `limiter.reconfigure`, are the promise.
    Only `Rate` limits are touched, and of these only the rate: the burst stays, so that no call becomes impossible. In between it
    grows by `grow` of the promise per second in which calls were made, not while idle (more than a second without a call).

    It is a decorator of functions and a context manager, for any number of tasks and threads at the same time; it never waits.

    Args:
        limiter: Whose rates are adapted. It must live in this process, and not be a joint one: adapt its parts.
        on: Which errors say that the server is overloaded: exception types, or a function of the error that says True or
            False. None: only `overloaded()` does.
        cut: What is left of the rates after a cut; above 0, below 1.
        cooldown: Seconds after a cut in which there is no other: about as long as a call takes.
        grow: Share of the promise that is regained per second of use; above 0.
        floor: Share of the promise that is always left; above 0, at most 1.

    Raises:
        ValueError: A number is out of its range, or the limiter is shared, joint, or has no `Rate`.
        TypeError: `on` is neither exception types nor a function.
    """

    __slots__ = ("_aimd", "_applied", "_limiter", "_lock", "_on", "_promise", "_set_share")

    def __init__(
        self,
        limiter: Limiter,
        *,
        on: type[Exception] | tuple[type[Exception], ...] | Callable[[Exception], bool] | None = None,
        cut: float = 0.5,
        cooldown: float = 5.0,
        grow: float = 0.05,
        floor: float = 0.05,
    ) -> None:
        self._aimd = Aimd(cut, cooldown, grow, floor)
        types = on if isinstance(on, tuple) else (on,)
        if all(isinstance(each, type) and issubclass(each, Exception) for each in types):
            self._on: Callable[[Exception], bool] = lambda error: isinstance(error, types)  # type: ignore[arg-type]
        elif on is None or (callable(on) and not isinstance(on, type)):
            self._on = on or _never
        else:
            raise TypeError(f"on= must be types of Exception, or a function of one, not {on!r}")
        if not isinstance(limiter.store, MemoryStore):
            raise ValueError(
                f"{limiter!r} lives in a shared store: its limits are everybody's. Adapt a limiter of this process, joined to nothing"
            )
        if limiter.joint:
            raise ValueError(f"{limiter!r} is joint: adapt the limiters that it was made of, each by itself")
        self._limiter = limiter
        self._lock = threading.RLock()  # a hook that hears of the reconfiguration may ask for `share`
        self._promise: dict[str, tuple[Limit, ...]] = {}
        self._applied: dict[str, tuple[Limit, ...]] = {}
        self._set_share = 1.0
        self._hear_promise()
        if not self._promise:
            raise ValueError(f"{limiter!r} has no Rate to adapt: other kinds of limit stay as they are")

    @property
    def share(self) -> float:
        """How much of the promise is used now, from `floor` to 1."""
        with self._lock:
            return self._aimd.share

    def overloaded(self) -> bool:
        """Say that the server has too much. Cuts the rates, unless that was done less than `cooldown` ago; returns whether it did."""
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
        is_overload = isinstance(error, Exception) and self._on(error)
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
        """Decorate an async function or a function: every call tells how the server fares.

        Raises:
            TypeError: A generator function of either kind: use `with adaptive:` inside, around what calls the server.
        """
        kind = kind_of(function)
        if kind in {"stream", "generator"}:
            raise TypeError(f"{name_of(function)} is a generator function: use `with adaptive:` inside it instead")
        wrapper: Any
        if kind == "async":

            async def wrapper(*args: Any, **kwargs: Any) -> Any:
                with self:
                    return await function(*args, **kwargs)

        else:

            def wrapper(*args: Any, **kwargs: Any) -> Any:
                with self:
                    return function(*args, **kwargs)

        return functools.wraps(function)(wrapper)  # type: ignore[return-value]

    def __repr__(self) -> str:
        return f"Adaptive({self._limiter!r}, share={self.share:.3g})"

    def _hear_promise(self) -> None:
        """What is not as we left it was promised anew by somebody else."""
        for unit, limits in self._limiter.limits.items():
            if limits != self._applied.get(unit):
                self._promise.pop(unit, None)
                if any(isinstance(limit, Rate) for limit in limits):
                    self._promise[unit] = limits

    def _apply(self) -> None:
        self._hear_promise()
        self._set_share = share = self._aimd.share
        self._applied = {
            unit: tuple(_scaled(limit, share) if isinstance(limit, Rate) else limit for limit in limits)
            for unit, limits in self._promise.items()
        }
        self._limiter.reconfigure(**self._applied)


def _scaled(rate: Rate, share: float) -> Rate:
    if share == 1:
        return rate
    return Rate(rate.amount * share, rate.per, rate.burst, overdraft=rate.overdraft, default=rate.default)


def _never(_: Exception) -> bool:
    return False
