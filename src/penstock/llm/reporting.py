"""Events about requests to a service: one record when an answer is over.

`usage_reader` reads the usage from the answer while it passes on its way to the SDK.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any

from penstock import Limiter, Permit, Rate, clock
from penstock.events import Answered, Reconfigured, Refused, ServiceEvent, emit
from penstock.llm.usage_reader import Usage

__all__ = ["Listener", "Report"]

_REMEMBERED = 1_000  # models whose limits were reported


class Listener:
    """Hears of a client's requests."""

    def __init__(self, hook: Callable[[Any], object]) -> None:
        self.hook = hook
        self._reported: dict[str, Mapping[str, tuple[Rate, ...]]] = {}

    def granted(
        self,
        limiter: Limiter,
        model: str | None,
        cost: Mapping[str, float],
        flow: Hashable,
        permit: Permit,
        asked_at: float,
    ) -> Report:
        """A request may go: what will be reported of it."""
        return Report(
            self, limiter.name, model, cost, permit.granted_at - asked_at, flow, id(permit), permit.granted_at
        )

    def refused(
        self, limiter: Limiter, cost: Mapping[str, float], flow: Hashable, retry_after: float, blocker: str
    ) -> None:
        """A request was not sent: its limiter refused it. Said once, if both have one listener."""
        if limiter._info.on_event is not self.hook:
            emit(self.hook, Refused(limiter.name, dict(cost), retry_after, blocker, flow))

    def limits(self, subject: str, limits: Mapping[str, tuple[object, ...]]) -> None:
        """The limits that requests are under; said when they are new."""
        rates = {unit: tuple(each for each in kinds if isinstance(each, Rate)) for unit, kinds in limits.items()}
        rates = {unit: those for unit, those in rates.items() if those}
        if rates and self._reported.get(subject) != rates:
            if len(self._reported) >= _REMEMBERED:
                self._reported.clear()
            self._reported[subject] = rates
            emit(self.hook, Reconfigured(subject, dict(rates)))


class Report:
    """One request, from its grant to the end of its answer.

    Args:
        listener: Hears of it.
        limiter: The name of the limiter.
        model: Which is asked.
        cost: What it was charged, as estimated.
        waited: Seconds in the queue.
        flow: The flow that the request belongs to.
        call: The number of its permit.
        granted_at: When it was granted.
    """

    __slots__ = (
        "_call", "_cost", "_flow", "_granted_at", "_limiter", "_listener", "_model", "_over", "_status", "_used",
        "_waited",
    )  # fmt: skip

    def __init__(
        self,
        listener: Listener,
        limiter: str | None,
        model: str | None,
        cost: Mapping[str, float],
        waited: float,
        flow: Hashable,
        call: int,
        granted_at: float,
    ) -> None:
        self._listener = listener
        self._limiter, self._model, self._cost, self._waited = limiter, model, cost, max(0.0, waited)
        self._flow, self._call, self._granted_at = flow, call, granted_at
        self._status = 0
        self._used: Mapping[str, float] = {}
        self._over = False

    def answered(self, status: int, limits: Mapping[str, tuple[object, ...]]) -> None:
        """The headers are there. `limits`: what the request was under."""
        self._status = status
        self._listener.limits(self._model or self._limiter or "", limits)

    def used(self, usage: Usage) -> None:
        """The answer was read, and says what it took."""
        if usage.input or usage.output:
            self._used = usage.as_units()

    def over(self) -> None:
        """The answer is over, or there is none. Said again: nothing happens."""
        if self._over:
            return
        self._over = True
        elapsed = max(0.0, clock.now() - self._granted_at)
        event: ServiceEvent = Answered(
            self._limiter, self._model, self._cost, self._used, self._waited, elapsed, self._status, self._flow,
            self._call,
        )  # fmt: skip
        emit(self._listener.hook, event)
