"""`hedge`: start a second attempt when the first is slow. One that fails is up to a retry around it."""

from __future__ import annotations

import functools
import math
import re
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, cast

import anyio

from penstock import clock
from penstock._concurrency.shared_state import SharedState
from penstock._concurrency.tasks import sleep
from penstock._numbers import Seconds, read_count, span
from penstock._text import repr_of
from penstock._user_errors import add_notes
from penstock.pipeline._layers import check_async
from penstock.retry import Budget

_F = TypeVar("_F", bound=Callable[..., Any])


class hedge(SharedState):  # noqa: N801 - used like a function
    """Start a second attempt when the first is slow; the first success wins, the other is cancelled and has ended.

    For calls that may be made twice. Outside a limiter each attempt is charged, as servers do. All functions that one
    `hedge(...)` decorates share its memory of how long calls take. When a first attempt fails before the second began,
    its error is raised at once: a retry is there to try again. If both fail, the first attempt's error is raised. A
    copy of a hedge is itself, and it cannot be pickled.

    Args:
        after: Seconds (or a `timedelta`) until the second attempt; or "p95", "p99.9", …: that percentile of how long
            recent first attempts took. Until 20 of them are known there is no second attempt, unless `initial` says
            when. Seconds are 0 or more, percentiles above 0 and below 100.
        initial: Seconds (or a `timedelta`), 0 or more, until the second attempt, as long as fewer than 20 are known.
        samples: How many recent calls the percentile looks at; 20 or more.
        budget: Bounds second attempts as it bounds retries; see `Budget`.

    Raises:
        ValueError: `after` is no time and no percentile, or a number is out of its range.
        TypeError: The function is not async.
    """

    __slots__ = ("_durations", "after", "budget", "initial", "percentile")

    ENOUGH = 20
    MOST = 1_000_000

    _penstock_kind = "hedge"

    def __init__(
        self,
        after: Seconds | str = "p95",
        *,
        initial: Seconds | None = None,
        samples: int = 200,
        budget: Budget | None = None,
    ) -> None:
        self.percentile: float | None = None
        if isinstance(after, str):
            match = re.fullmatch(r"p(\d+(?:\.\d+)?)", after)
            self.percentile = float(match[1]) / 100 if match else math.nan
            if not 0 < self.percentile < 1:
                raise ValueError(f'hedge({repr_of(after)}): a number of seconds, or a percentile such as "p95"')
        else:
            after = span("hedge({})", after, zero=True)
        count = read_count(samples, self.ENOUGH)
        if count is None:
            raise ValueError(
                f"hedge(samples={repr_of(samples)}): {self.ENOUGH} or more; fewer say little about how long calls take"
            )
        if budget is not None and not isinstance(budget, Budget):
            raise TypeError(f"hedge(budget={repr_of(budget)}): a Budget(...), or None")
        self.after: str | float = after
        self.initial: float | None = None if initial is None else span("hedge(initial={})", initial, zero=True)
        self.budget: Budget | None = budget
        self._durations: deque[float] = deque(maxlen=min(count, self.MOST))

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
        check_async(self, fn, "a second attempt beside the first needs an event loop")

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
            # Errors of attempts are in `_errors`. This is a KeyboardInterrupt or its like, in the task group's group.
            if len(group.exceptions) == 1:
                raise group.exceptions[0] from None
            raise
        if self._winner is not None:
            self._errors.clear()
            return self._winner[0]
        raise self._error()

    async def _run_second(self, after: float) -> None:
        with self._second:
            await sleep(after)
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
            add_notes(error, f"penstock: a second attempt, beside this one, failed with {repr_of(other)}")
        return error
