"""A limit set: the limits of one limiter as it was constructed, and how much of them is used.

A joint limiter has several. Which of them a cost is charged on is worked out in `charges`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING
from weakref import WeakSet

from penstock import clock
from penstock._core.limit_state import LimitState
from penstock._core.meter import Meter
from penstock.limits import Limit

if TYPE_CHECKING:
    from penstock._backends.queue import WaitQueue


def default_cost(unit: str, kinds: tuple[Limit, ...]) -> float | None:
    """What a call costs of a unit with these limits unless it says so; None: it must say so."""
    default = next((limit.default for limit in kinds if limit.default is not None), None)
    return 1 if default is None and unit == "requests" else default


class LimitSet:
    """The limits of one limiter, and the queue in front of them.

    `version` grows with every change of the limits. `users` are the backends that decide over them now.
    """

    __slots__ = ("__weakref__", "_queue", "defaults", "name", "states", "users", "version")

    def __init__(self, limits: dict[str, tuple[Limit, ...]], queue: WaitQueue, name: str | None) -> None:
        self.name = name
        self.version = 0
        self._queue = queue
        self.states: dict[str, tuple[LimitState, ...]] = {}
        self.defaults: dict[str, float] = {}
        self.users: WeakSet[object] = WeakSet()
        self.promise(limits, 0.0)

    def limits(self) -> dict[str, tuple[Limit, ...]]:
        """What is promised now."""
        return {unit: tuple(state.limit for state in states) for unit, states in self.states.items()}

    @property
    def queue(self) -> WaitQueue:
        """The queue that these limits are behind now."""
        self._queue = queue = self._queue.standing()
        return queue

    def all_states(self) -> list[LimitState]:
        return [state for states in self.states.values() for state in states]

    def whole(self, now: float) -> bool:
        """Whether this set equals a new one, so that it would not be missed."""
        lead = clock.wall() - now
        for state in self.all_states():
            if state.meter.calendar:
                state.meter.follow(lead)  # type: ignore[attr-defined]  # calendars have it
            if state.paused_until > now or not state.meter.idle(now):
                return False
        return True

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
            self.version += 1  # of each unit: an exception may cut the rest short
            default = default_cost(unit, kinds)
            self.defaults = {name: value for name, value in self.defaults.items() if name != unit}
            if default is not None:
                self.defaults[unit] = default
            self._follow_calendars()

    def forget_others(self, units: Iterable[str]) -> None:
        kept = set(units)
        self.states = {unit: states for unit, states in self.states.items() if unit in kept}
        self.defaults = {unit: default for unit, default in self.defaults.items() if unit in kept}

    def take_over(self, states: dict[str, tuple[LimitState, ...]], now: float, *, keep_limits: bool) -> None:
        """Go on from `states`, of an earlier set whose queue is gone; with its limits, or with those promised here."""
        wanted = self.limits()
        self.states = states
        if self.limits() == wanted:
            self._follow_calendars()
        else:
            self.promise(self.limits() if keep_limits else wanted, now)
            if not keep_limits:
                self.forget_others(wanted)
        for state in self.all_states():
            if state.paused_until > now:
                self.queue.pause(state)

    def take_meters(self, meters: Iterable[Meter]) -> None:
        """Go on with these meters, of the same limits."""
        for state, meter in zip(self.all_states(), meters, strict=True):
            state.meter = meter
        self._follow_calendars()

    def _follow_calendars(self) -> None:
        for state in self.all_states():
            if state.meter.calendar:
                self.queue.follow(state.meter)  # type: ignore[arg-type]  # calendars are windows of the calendar
