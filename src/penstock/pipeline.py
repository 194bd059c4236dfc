"""Layers around a call, outermost first.

    pipe = Pipeline(retry, circuit_breaker(on=OSError), limiter(tokens=count), timeout(20))
    ask = pipe(client.chat.completions.create)

A layer is any decorator of a function, so `Pipeline(a, b)(f)` is `a(b(f))` and nothing more; what is here besides is a few
layers that limiters and retries are often used with. An async context manager is a layer too: it is entered around every
call.

What is counted and classified is decided elsewhere (`_core.breaker`, `_classify`); here calls are made.
"""

from __future__ import annotations

import functools
import math
import re
import threading
import warnings
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import KW_ONLY, dataclass
from inspect import isawaitable
from typing import Any, ClassVar, Protocol, TypeVar, cast

import anyio

from penstock import clock
from penstock._classify import On, check_on, shown_on, verdict_on
from penstock._core.breaker import Breaker
from penstock._introspect import check_plain, kind_of, name_of, stream_inside
from penstock._retry_after import retry_after
from penstock.errors import AttemptTimeout, CircuitOpen
from penstock.retry import Budget

__all__ = ["Pipeline", "PipelineOrderWarning", "circuit_breaker", "fallback", "hedge", "pausing", "timeout"]

_F = TypeVar("_F", bound=Callable[..., Any])


class PipelineOrderWarning(UserWarning):
    """The layers of a pipeline stand in an order that cannot be meant."""


@dataclass(frozen=True, slots=True, repr=False, init=False)
class Pipeline:
    """Layers around a call, outermost first: a frozen value, and a decorator like each of its layers.

    Pipelines nest: one inside another counts as its layers.

    Args:
        layers: Decorators of a function, or context managers to enter around every call (async ones for async functions).

    Raises:
        TypeError: A layer is neither.

    Warns:
        PipelineOrderWarning: A limiter stands outside a retry or a hedge and none inside it. Servers count every attempt; this
            limiter would count the call once.
    """

    layers: tuple[Any, ...]

    _penstock_kind: ClassVar[str] = "pipeline"

    def __init__(self, *layers: Any) -> None:
        flat = tuple(part for layer in layers for part in (layer.layers if isinstance(layer, Pipeline) else (layer,)))
        for number, layer in enumerate(flat, 1):
            if not callable(layer) and not isinstance(layer, AbstractAsyncContextManager | AbstractContextManager):
                raise TypeError(
                    f"layer {number} of the pipeline, {layer!r}, is neither a decorator nor a context manager"
                )
        object.__setattr__(self, "layers", flat)
        kinds = [getattr(layer, "_penstock_kind", "") for layer in flat]
        repeating = {"retry": "retry", "hedge": "hedge(...)"}  # what makes several attempts of a call
        innermost = max((number for number, kind in enumerate(kinds) if kind in repeating), default=0)
        if "limiter" in kinds[:innermost] and "limiter" not in kinds[innermost:]:
            limiter = flat[kinds.index("limiter")]
            warnings.warn(
                f"{_shown(limiter)} is outside {_shown(flat[innermost])}: it would charge a call once, however often it is "
                "tried, and servers count every attempt. "
                f"Put it inside: Pipeline({repeating[kinds[innermost]]}, limiter(...), ...)",
                PipelineOrderWarning,
                stacklevel=2,
            )

    def __call__(self, fn: _F, /) -> _F:
        """Put the layers around `fn`. What comes out is the kind of function that went in.

        Raises:
            TypeError: A layer cannot be put around this kind of function.
        """
        wrapped: Any = fn
        for number, layer in reversed(list(enumerate(self.layers, 1))):
            inner, wrapped = wrapped, (layer(wrapped) if callable(layer) else _entered_around(layer, wrapped))
            if not callable(wrapped):
                raise TypeError(
                    f"layer {number} of the pipeline, {_shown(layer)}, made {wrapped!r} of {name_of(inner)}: "
                    "a decorator returns a function"
                )
        return cast("_F", wrapped)

    def describe(self) -> str:
        """Return what is in the pipeline, a line per layer, for tests and logs."""
        lines = [f"  {number}. {_shown(layer)}" for number, layer in enumerate(self.layers, 1)]
        return "\n".join(["Pipeline, outermost first:", *lines])

    def __repr__(self) -> str:
        return f"Pipeline({', '.join(map(_shown, self.layers))})"


def _shown(layer: object) -> str:
    if not callable(layer):
        shown = repr(layer)
        return type(layer).__qualname__ if shown.startswith("<") else shown
    return name_of(layer) if hasattr(layer, "__qualname__") or isinstance(layer, functools.partial) else repr(layer)


def _entered_around(manager: Any, fn: _F) -> _F:
    kind = kind_of(fn)
    wrapper: Any
    if kind in {"async", "stream"}:
        if not isinstance(manager, AbstractAsyncContextManager):
            raise TypeError(
                f"{_shown(manager)} is no async context manager: around {name_of(fn)} it would block the event loop"
            )
        if kind == "stream":
            return cast("_F", stream_inside(lambda *_: manager, fn))

        async def wrapper(*args: Any, **kwargs: Any) -> Any:
            async with manager:
                return await fn(*args, **kwargs)
    else:
        if not isinstance(manager, AbstractContextManager):
            raise TypeError(f"{_shown(manager)} is an async context manager, and {name_of(fn)} is no async function")
        if kind == "generator":

            def generate(*args: Any, **kwargs: Any) -> Any:
                with manager:
                    return (yield from fn(*args, **kwargs))

            return cast("_F", functools.wraps(fn)(generate))

        def wrapper(*args: Any, **kwargs: Any) -> Any:
            with manager:
                return fn(*args, **kwargs)

    return cast("_F", functools.wraps(fn)(wrapper))


def _check_async(layer: object, fn: Callable[..., Any], why: str) -> None:
    kind = kind_of(fn)
    if kind != "async":
        what = {"sync": "no async function", "stream": "an async generator", "generator": "a generator"}[kind]
        raise TypeError(f"{layer!r} cannot be put around {name_of(fn)}, which is {what}: {why}")


def _watched(layer: object, fn: _F, watch: Callable[[], AbstractContextManager[None]]) -> _F:
    """Enter what `watch` returns, which never waits, around every call of `fn`: for layers that look at how calls end."""
    kind = kind_of(fn)
    wrapper: Any
    if kind == "async":

        async def wrapper(*args: Any, **kwargs: Any) -> Any:
            with watch():
                return await fn(*args, **kwargs)
    elif kind == "stream":
        return cast("_F", stream_inside(lambda *_: _Watch(watch()), fn))
    elif kind == "generator":
        raise TypeError(
            f"{layer!r} cannot be put around {name_of(fn)}, which is a generator: put it around what that calls"
        )
    else:

        def wrapper(*args: Any, **kwargs: Any) -> Any:
            with watch():
                return fn(*args, **kwargs)

    return cast("_F", functools.wraps(fn)(wrapper))


class _Watch(AbstractAsyncContextManager[None]):
    """A context manager that never waits, for `async with`."""

    __slots__ = ("_watch",)

    def __init__(self, watch: AbstractContextManager[None]) -> None:
        self._watch = watch

    async def __aenter__(self) -> None:
        self._watch.__enter__()

    async def __aexit__(self, *error: object) -> bool | None:
        return self._watch.__exit__(*error)  # type: ignore[arg-type]  # three, whatever they are


# ----------------------------------------------------------------------------------------------------------------------
# Layers


@dataclass(frozen=True, slots=True)
class timeout:  # noqa: N801 - used like a function
    """Cut calls that take longer than `seconds`, and raise `AttemptTimeout`. A decorator of async functions.

    What it is put around is cancelled and has ended when the error is raised. Inside a retry and a limiter it bounds each
    attempt without the wait for its turn; outside of them, all of it.

    Raises:
        ValueError: `seconds` is not above 0.
        TypeError: The function is not async.
    """

    seconds: float

    def __post_init__(self) -> None:
        if not self.seconds > 0:
            raise ValueError(f"timeout({self.seconds!r}): a number of seconds above 0")

    def __call__(self, fn: _F, /) -> _F:
        """Decorate an async function."""
        _check_async(self, fn, "only what awaits can be cut")
        seconds, name = self.seconds, name_of(fn)

        @functools.wraps(fn)
        async def timed(*args: Any, **kwargs: Any) -> Any:
            with anyio.move_on_after(seconds):
                return await fn(*args, **kwargs)
            raise AttemptTimeout(f"{name} took longer than timeout({seconds:g}) allows", seconds=seconds)

        return cast("_F", timed)

    def __repr__(self) -> str:
        return f"timeout({self.seconds:g})"


@dataclass(frozen=True, slots=True)
class fallback:  # noqa: N801 - used like a function
    """Answer with something else when a call fails.

    Args:
        to: A value; or a function that is called with the call's own arguments, another model or a cache for example.
        on: Which errors: exception types, or a function of the error; there is no default.
    """

    to: Any
    _: KW_ONLY
    on: On

    def __post_init__(self) -> None:
        check_on("fallback", self.on)

    def __call__(self, fn: _F, /) -> _F:
        """Decorate an async function, or a function."""
        kind, to, on = kind_of(fn), self.to, self.on
        if kind in {"stream", "generator"}:
            _check_async(self, fn, "when it fails, items may have been handed out already")
        wrapper: Any
        if kind == "async":

            async def wrapper(*args: Any, **kwargs: Any) -> Any:
                try:
                    return await fn(*args, **kwargs)
                except Exception as error:
                    if verdict_on(on, error) is False:
                        raise
                    if not callable(to):
                        return to
                    answer = to(*args, **kwargs)
                    return await answer if isawaitable(answer) else answer
        else:
            if callable(to) and kind_of(to) == "async":
                raise TypeError(
                    f"{self!r} cannot be put around {name_of(fn)}, which is no async function: it could not await"
                )

            def wrapper(*args: Any, **kwargs: Any) -> Any:
                try:
                    return fn(*args, **kwargs)
                except Exception as error:
                    if verdict_on(on, error) is False:
                        raise
                    return to(*args, **kwargs) if callable(to) else to

        return cast("_F", functools.wraps(fn)(wrapper))

    def __repr__(self) -> str:
        return f"fallback({name_of(self.to) if callable(self.to) else repr(self.to)}, on={shown_on(self.on)})"


class hedge:  # noqa: N801 - used like a function
    """Start a second attempt when the first is slow; the first success wins, the other is cancelled and has ended.

    For calls that may be made twice. Outside a limiter each attempt is charged, as servers do. All functions that one
    `hedge(...)` decorates share its memory of how long calls take. A first attempt that fails before the second began is
    raised at once: trying again is what a retry is for. If both fail, it is the first's error that is raised.

    Args:
        after: Seconds until the second attempt; or "p95", "p99.9", …: that percentile of how long recent first attempts
            took. Until 20 of them are known there is no second attempt, unless `initial` says when.
        initial: Seconds to go by until enough is known.
        samples: How many recent calls the percentile looks at.
        budget: Bounds second attempts as it bounds retries; see `Budget`.

    Raises:
        ValueError: `after` is no time and no percentile.
        TypeError: The function is not async.
    """

    __slots__ = ("_durations", "_lock", "after", "budget", "initial", "percentile")

    ENOUGH = 20

    _penstock_kind = "hedge"

    def __init__(
        self,
        after: float | str = "p95",
        *,
        initial: float | None = None,
        samples: int = 200,
        budget: Budget | None = None,
    ) -> None:
        self.percentile: float | None = None
        if isinstance(after, str):
            match = re.fullmatch(r"p(\d+(?:\.\d+)?)", after)
            self.percentile = float(match[1]) / 100 if match else math.nan
            if not 0 < self.percentile < 1:
                raise ValueError(f'hedge({after!r}): a number of seconds, or a percentile such as "p95"')
        elif not 0 <= after < math.inf:
            raise ValueError(f"hedge({after!r}): seconds, 0 or more and finite")
        if initial is not None and not 0 <= initial < math.inf:
            raise ValueError(f"hedge(initial={initial!r}): seconds, 0 or more and finite")
        if not samples >= self.ENOUGH:
            raise ValueError(
                f"hedge(samples={samples!r}): {self.ENOUGH} or more; fewer say little about how long calls take"
            )
        self.after = after
        self.initial = initial
        self.budget = budget
        self._durations: deque[float] = deque(maxlen=samples)
        self._lock = threading.Lock()

    def delay(self) -> float | None:
        """Return the seconds until a second attempt would start now; None if there would be none."""
        if self.percentile is None:
            return cast("float", self.after)
        with self._lock:
            durations = sorted(self._durations)
        if len(durations) < self.ENOUGH:
            return self.initial
        return durations[math.ceil(self.percentile * len(durations)) - 1]  # nearest rank

    def __call__(self, fn: _F, /) -> _F:
        """Decorate an async function."""
        _check_async(self, fn, "a second attempt beside the first needs an event loop")

        @functools.wraps(fn)
        async def hedged(*args: Any, **kwargs: Any) -> Any:
            if self.budget is not None:
                self.budget.called()
            return await _Race(self, functools.partial(fn, *args, **kwargs)).run()

        return cast("_F", hedged)

    def _took(self, seconds: float) -> None:
        with self._lock:
            self._durations.append(seconds)

    def __repr__(self) -> str:
        initial = "" if self.initial is None else f", initial={self.initial:g}"
        budget = "" if self.budget is None else f", budget={self.budget!r}"
        return f"hedge({self.after!r}{initial}{budget})"


class _Race:
    """One hedged call. The first attempt runs in the caller's own task, the second beside it."""

    __slots__ = ("_attempt", "_errors", "_first", "_hedge", "_second", "_second_began", "_winner")

    def __init__(self, hedge: hedge, attempt: Callable[[], Awaitable[Any]]) -> None:
        self._hedge = hedge
        self._attempt = attempt
        self._first = anyio.CancelScope()
        self._second = anyio.CancelScope()
        self._second_began = False
        self._winner: tuple[Any] | None = None
        self._errors: dict[str, Exception] = {}

    async def run(self) -> Any:
        started, after = clock.now(), self._hedge.delay()
        try:
            async with anyio.create_task_group() as tasks:
                if after is not None:
                    tasks.start_soon(self._run_second, after)
                with self._first:
                    await self._make("first")
                if "first" not in self._errors:
                    # If the second won, this is how long the first took at least. It must count: the percentile would
                    # otherwise be one of the fast calls alone, and sink.
                    self._hedge._took(clock.now() - started)
                if self._winner is not None or not self._second_began:
                    self._second.cancel()
        except BaseExceptionGroup as group:
            # What attempts raise is in `_errors`: this is KeyboardInterrupt or its like, in the group of the task group.
            if len(group.exceptions) == 1:
                raise group.exceptions[0] from None
            raise
        if self._winner is not None:
            self._errors.clear()
            return self._winner[0]
        raise self._error()

    async def _run_second(self, after: float) -> None:
        with self._second:
            await anyio.sleep(after)
            if self._hedge.budget is not None and self._hedge.budget.spend() is None:
                return
            self._second_began = True
            await self._make("second")
            if self._winner is not None:
                self._first.cancel()

    async def _make(self, which: str) -> None:
        try:
            result = await self._attempt()
        except Exception as error:  # noqa: BLE001 - raised by `run`, if the other attempt does not win
            self._errors[which] = error
        else:
            if self._winner is None:
                self._winner = (result,)

    def _error(self) -> Exception:
        error, other = self._errors.pop("first"), self._errors.pop("second", None)
        if other is not None:
            error.add_note(f"penstock: a second attempt, beside this one, failed with {other!r}")
        return error


class _Pausable(Protocol):
    """A limiter, as far as `pausing` needs one."""

    def pause(self, seconds: float, /) -> None: ...


class pausing:  # noqa: N801 - used like a function
    """Pause a limiter when a call fails with an error that says for how long: one 429 stops everybody, once.

        pipe = Pipeline(Retry(on=TooMany), limiter(tokens=count), pausing(limiter, on=TooMany))

    A retry around it waits too, but for its own call alone; all others would go on, to be refused one by one. It stands inside
    the limiter, where the server's errors come from. A pause is never shortened by another.

    Args:
        limiter: Which is paused: the limiter itself, not a call of it. Any that has `pause(seconds)`.
        on: Which errors are the server's word: exception types, or a function of the error that says True, False, or for how many
            seconds; there is no default.
        hint: Finds for how many seconds, where `on` says True.

    Raises:
        TypeError: `limiter` cannot be paused, or `on` or `hint` is not what it should be.
    """

    __slots__ = ("_hint", "_limiter", "_on")

    def __init__(self, limiter: _Pausable, *, on: On, hint: Callable[[Exception], float | None] = retry_after) -> None:
        if not callable(getattr(limiter, "pause", None)):
            raise TypeError(f"pausing({limiter!r}): give the limiter itself, which can be paused")
        check_on("pausing", on)
        check_plain("pausing", "hint", hint)
        self._limiter = limiter
        self._on = on
        self._hint = hint

    def __call__(self, fn: _F, /) -> _F:
        """Decorate an async function, a function, or an async generator function."""
        return _watched(self, fn, lambda: self)

    def __enter__(self) -> None:
        pass

    def __exit__(self, _type: object, error: BaseException | None, _traceback: object) -> None:
        if not isinstance(error, Exception):
            return
        verdict = verdict_on(self._on, error)
        seconds = self._hint(error) if verdict is True else verdict
        if seconds and 0 < seconds < math.inf:
            self._limiter.pause(seconds)

    def __repr__(self) -> str:
        return f"pausing({self._limiter!r}, on={shown_on(self._on)})"


class circuit_breaker:  # noqa: N801 - used like a function
    """Stop calling what is down: fail at once with `CircuitOpen`, and let a probe through now and then.

    Closed, it lets everything through and counts what `on` calls failures. It opens when there were `failures` of them
    within `window` seconds, and they are `ratio` of the calls or more. Open, it refuses for `open_for` seconds, or for as
    long as the failure that opened it asks (`hint`). Then it is half-open: `probes` calls may go; if all succeed it closes,
    if one fails it opens again. A call that is cancelled counts as neither.

    One `circuit_breaker(...)` is one breaker, for all functions that it decorates; any task and any thread may use it. Inside
    a retry, the `retry_after` of its refusals is heard: `Retry(on=(OSError, CircuitOpen))` comes back when it lets a probe through.

    Args:
        on: Which errors are failures: exception types, or a function of the error; there is no default. What the server
            itself answers, such as "no such page", should not be among them.
        failures: How many open it, at least.
        ratio: Which share of the calls must have failed, from 0 to 1.
        window: How long it remembers; seconds.
        open_for: How long it stays open; seconds.
        probes: How many calls it lets through half-open.
        hint: Finds how many seconds a failure asks to wait; None not to ask.

    Raises:
        ValueError: A number is out of range.
    """

    __slots__ = ("_breaker", "_hint", "_lock", "_on", "_shown")

    def __init__(
        self,
        *,
        on: On,
        failures: int = 5,
        ratio: float = 0.5,
        window: float = 30,
        open_for: float = 30,
        probes: int = 1,
        hint: Callable[[Exception], float | None] | None = retry_after,
    ) -> None:
        check_on("circuit_breaker", on)
        if hint is not None:
            check_plain("circuit_breaker", "hint", hint)
        self._breaker = Breaker(failures, ratio, window, open_for, probes)
        self._on = on
        self._hint = hint
        self._lock = threading.Lock()
        self._shown = (
            f"circuit_breaker(on={shown_on(on)}, failures={failures}, ratio={ratio:g}, window={window:g}, "
            f"open_for={open_for:g}, probes={probes})"
        )

    @property
    def state(self) -> str:
        """One of "closed", "open" and "half-open". An open one becomes half-open when the next call comes."""
        return self._breaker.state

    def __call__(self, fn: _F, /) -> _F:
        """Decorate an async function, a function, or an async generator function."""
        name = name_of(fn)
        return _watched(self, fn, lambda: _Admission(self, name))

    def _admit(self, name: str) -> int:
        breaker = self._breaker
        with self._lock:
            now = clock.now()
            ticket = breaker.admit(now)
            if ticket is not None:
                return ticket
            state, wait, (failures, calls) = breaker.state, breaker.retry_after(now), breaker.opened_by
        why = f"{failures} of {calls} calls had failed" if state == "open" else "a probe is under way"
        when = f"; it lets a probe through in {wait:.3g} s" if state == "open" else ""
        raise CircuitOpen(f"{name}: the circuit breaker is {state}, for {why}{when}", retry_after=wait)

    def _report(self, ticket: int, error: BaseException | None) -> None:
        failed, hint = False, None
        abandoned = error is not None
        try:
            if isinstance(error, Exception):  # asked outside the lock: both functions are the user's
                failed = verdict_on(self._on, error) is not False
                hint = self._hint(error) if failed and self._hint is not None else None
                abandoned = False
        finally:
            with self._lock:
                if abandoned:
                    self._breaker.abandoned(ticket)
                elif failed:
                    self._breaker.failed(ticket, clock.now(), hint or 0.0)
                else:
                    self._breaker.succeeded(ticket, clock.now())

    def __repr__(self) -> str:
        return self._shown


class _Admission:
    """One call through a breaker."""

    __slots__ = ("_breaker", "_name", "_ticket")

    def __init__(self, breaker: circuit_breaker, name: str) -> None:
        self._breaker = breaker
        self._name = name

    def __enter__(self) -> None:
        self._ticket = self._breaker._admit(self._name)

    def __exit__(self, _type: object, error: BaseException | None, _traceback: object) -> None:
        self._breaker._report(self._ticket, error)
