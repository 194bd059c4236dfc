"""`circuit_breaker`: stop calling what is down. The states and their rules are in `_core.breaker`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from penstock import clock
from penstock._concurrency.shared_state import SharedState
from penstock._core.breaker import Breaker, Ticket
from penstock._introspect import check_plain, name_of, show_defaults
from penstock._numbers import Seconds, read_count, read_number, show_seconds, span
from penstock._retry_after import retry_after
from penstock._text import repr_of
from penstock._user_errors import On, check_on, seconds_asked, shown_on, verdict
from penstock.errors import CircuitOpen
from penstock.pipeline._layers import watched

_F = TypeVar("_F", bound=Callable[..., Any])


class circuit_breaker(SharedState):  # noqa: N801 - used like a function
    """Stop calling what is down: fail at once with `CircuitOpen`, and let a probe through now and then.

    Closed, it lets everything through and counts what `on` calls failures. It opens when there were `failures` of them
    within `window` seconds, and they are `ratio` of the calls or more. Open, it refuses for `open_for` seconds, or for
    as long as the failure that opened it asks (`hint`). Then it is half-open: `probes` calls may go; if all succeed it
    closes, if one fails it opens again. A call that is cancelled counts as neither. A probe that has not ended after
    `open_for` seconds gives its place to another call, so a probe that hangs or is lost does not keep the breaker
    half-open.

    One `circuit_breaker(...)` is one breaker, for all functions that it decorates; any task and any thread may use it.
    A copy of it is itself, and it cannot be pickled. A retry around it obeys the `retry_after` of its refusals:
    `Retry(on=(OSError, CircuitOpen))` comes back when it lets a probe through.

    Args:
        on: Which errors are failures: exception types, or a function of the error; there is no default. What the server
            itself answers, such as "no such page", should not be among them.
        failures: How many open it, at least; 1 or more.
        ratio: Which share of the calls must have failed, from 0 to 1.
        window: How long it remembers; seconds or a `timedelta`, above 0.
        open_for: How long it stays open; seconds or a `timedelta`, above 0.
        probes: How many calls it lets through half-open; 1 or more.
        hint: A function that finds how many seconds a failure asks to wait; None not to ask.
        max_open: The longest time for which a hint can keep it open; seconds or a `timedelta`, above 0. `math.inf`: no
            bound.

    Raises:
        ValueError: A number is out of range.
    """

    __slots__ = ("_breaker", "_hint", "_max_open", "_on", "_shown")

    _penstock_kind = "layer"

    def __init__(
        self,
        *,
        on: On,
        failures: int = 5,
        ratio: float = 0.5,
        window: Seconds = 30,
        open_for: Seconds = 30,
        probes: int = 1,
        hint: Callable[[Exception], Seconds | None] | None = retry_after,
        max_open: Seconds = 3600,
    ) -> None:
        check_on("circuit_breaker", on)
        if hint is not None:
            check_plain("circuit_breaker", "hint", hint)
        failures = _count("failures", failures, "how many failures open it")
        probes = _count("probes", probes, "how many calls must succeed to close it")
        share = read_number(ratio)
        if share is None or not 0 <= share <= 1:
            raise ValueError(
                f"circuit_breaker(ratio={repr_of(ratio)}): the share of calls that must have failed, from 0 to 1"
            )
        window = span("circuit_breaker(window={})", window)
        open_for = span("circuit_breaker(open_for={})", open_for)
        self._max_open = span("circuit_breaker(max_open={})", max_open, forever=True)
        self._breaker = Breaker(failures, share, window, open_for, probes)
        self._on = on
        self._hint = hint
        self._shown = (
            f"circuit_breaker(on={shown_on(on)}, failures={failures}, ratio={share:g}, window={window:g}, "
            f"open_for={open_for:g}, probes={probes})"
        )

    @property
    def state(self) -> str:
        """One of "closed", "open" and "half-open". An open one becomes half-open when the next call comes."""
        return self._breaker.state

    def __call__(self, fn: _F, /) -> _F:
        """Decorate an async function, a function, an async generator function, or a context manager."""
        name = name_of(fn)
        return watched(self, fn, lambda: _BreakerCall(self, name))

    def _admit(self, name: str) -> Ticket:
        breaker = self._breaker
        with self._lock:
            now = clock.now()
            ticket = breaker.admit(now)
            if ticket is not None:
                return ticket
            state, wait, (failures, calls) = breaker.state, breaker.retry_after(now), breaker.opened_by
        why = f"{failures} of {calls} calls had failed" if state == "open" else "a probe is under way"
        then = f"{'it lets a probe through' if state == 'open' else 'ask again'} in {show_seconds(wait)}"
        raise CircuitOpen(f"{name}: the circuit breaker is {state}, for {why}; {then}", retry_after=wait)

    def _report(self, ticket: Ticket, error: BaseException | None) -> None:
        failed, hint = False, 0.0
        abandoned = error is not None
        try:
            if isinstance(error, Exception):  # asked outside the lock: both functions are the user's
                failed = verdict("circuit_breaker", self._on, error) is not False
                if failed and self._hint is not None:
                    hint = min(seconds_asked("circuit_breaker", self._hint, error) or 0.0, self._max_open)
                abandoned = False
        finally:
            with self._lock:
                if abandoned:
                    self._breaker.abandoned(ticket)
                elif failed:
                    self._breaker.failed(ticket, clock.now(), hint)
                else:
                    self._breaker.succeeded(ticket, clock.now())

    def __repr__(self) -> str:
        return self._shown


show_defaults(circuit_breaker.__init__, hint="retry_after")


def _count(name: str, given: object, what: str) -> int:
    count = read_count(given)
    if count is None:
        raise ValueError(f"circuit_breaker({name}={repr_of(given)}): {what}, 1 or more")
    return count


class _BreakerCall:
    """One call through a breaker."""

    __slots__ = ("_breaker", "_name", "_ticket")

    def __init__(self, breaker: circuit_breaker, name: str) -> None:
        self._breaker = breaker
        self._name = name

    def __enter__(self) -> None:
        self._ticket = self._breaker._admit(self._name)

    def __exit__(self, _type: object, error: BaseException | None, _traceback: object) -> None:
        self._breaker._report(self._ticket, error)
