"""From the cost of a call to its charges, limit by limit, and the errors for costs that cannot be charged.

Nothing is charged here: see `fast_path` and `local`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from penstock import _numbers
from penstock._core.bucket import Bucket
from penstock._core.charging import Charges
from penstock._core.limit_state import LimitState
from penstock._core.places import Places
from penstock._validation import RESERVED, exact_cost
from penstock.errors import MissingUnit, QueueFull, RateLimited, UnknownUnit, Unsatisfiable
from penstock.limits import Unlimited

S = TypeVar("S", bound=LimitState)


class _LimitSet(Protocol):
    """What a plan needs to know of a limit set."""

    @property
    def name(self) -> str | None: ...
    @property
    def version(self) -> int: ...
    @property
    def states(self) -> Mapping[str, tuple[LimitState, ...]]: ...
    @property
    def defaults(self) -> Mapping[str, float]: ...


class ChargePlan:
    """What costs are charged on: all limits of one or several limit sets, by unit.

    A value: another one follows a change. `held`: whether permits must be closed. `expires`: whether places have a time
    to live.
    """

    __slots__ = ("_smallest", "defaults", "expires", "held", "name", "states", "units", "version")

    def __init__(self, sets: Sequence[_LimitSet]) -> None:
        self.name: str | None = joint_name(*[limit_set.name for limit_set in sets])
        self.version: int = sum([limit_set.version for limit_set in sets])
        units: dict[str, tuple[LimitState, ...]] = {}
        defaults: dict[str, float] = {}
        for limit_set in sets:
            for unit, states in limit_set.states.items():
                units[unit] = (*units.get(unit, ()), *states)
            for unit, default in limit_set.defaults.items():
                defaults.setdefault(unit, default)
        self.units: dict[str, tuple[LimitState, ...]] = units
        self._smallest: dict[str, LimitState] = {}
        self.defaults: dict[str, float] = defaults
        self.states: list[LimitState] = [state for states in units.values() for state in states]
        self.held: bool = any(state.meter.held for state in self.states)
        self.expires: bool = any(
            isinstance(state.meter, Places) and state.meter.ttl is not None for state in self.states
        )

    def charges(self, cost: Mapping[str, Any], *, enforce: bool = True, unlimited: bool = False) -> Charges:
        """What a call of that cost is charged, limit by limit; nothing for a unit that costs 0, or has no limit.

        `enforce`: more than a limit can ever hold is an error. `unlimited`: limits that never bind are named too: they
        are not charged, and may be paused. Raises CostError.
        """
        charges: list[tuple[LimitState, float]] = []
        taken = 0
        for unit, states in self.units.items():
            if unit in cost:
                taken += 1
                amount = exact_cost(unit, cost[unit])
            else:
                default = self.defaults.get(unit)
                if default is None:
                    raise self._missing(unit, cost)
                amount = default
            if amount:
                for state in states:
                    if amount > state.limit.capacity and enforce:
                        raise self.never(state, amount)
                    if unlimited or not isinstance(state.limit, Unlimited):
                        charges.append((state, amount))
        if taken < len(cost):
            self.check(cost)
        return tuple(charges)

    def smallest(self, unit: str) -> LimitState:
        """Of the limits of a unit, the one that a server speaks of: the one that holds least at once."""
        state = self._smallest.get(unit)
        if state is None:
            state = self._smallest[unit] = of_least_burst(self.units[unit])
        return state

    def check(self, units: Iterable[Any]) -> None:
        """Refuse units that no limit counts."""
        for unit in units:
            if not isinstance(unit, str) or unit not in self.units:
                known = tuple(self.units)
                raise UnknownUnit(
                    f"no limit{_of(self.name)} counts {unit!r}: this limiter knows {', '.join(known)}"
                    f"{_meant(unit, known)}",
                    unit=unit,
                    known=known,
                    limiter=self.name,
                )

    def _missing(self, unit: str, cost: Mapping[str, Any]) -> MissingUnit:
        self.check(cost)  # it may be misspelt
        by_keyword = unit.isidentifier() and unit not in RESERVED
        said = f"{unit}=…" if by_keyword else f"{{{unit!r}: …}}"
        return MissingUnit(
            f"how many {unit}{_of(self.name)} does this call cost? "
            f"Say limiter({said}), 0 if none, or give the limit a default=",
            unit=unit,
            limiter=self.name,
        )

    def never(self, state: LimitState, amount: float) -> Unsatisfiable:
        """The error for a cost above what a limit can ever hold."""
        capacity = state.limit.capacity
        if state.meter.held:
            way_out = "Hold fewer places, or raise the limit."
        elif isinstance(state.meter, Bucket):
            way_out = "Split the call, raise burst, or allow overdraft."
        else:
            way_out = "Split the call, or raise the limit."
        return Unsatisfiable(
            f"{_numbers.show(amount)} {state.unit} can never be granted: "
            f"{self.shown(state)} holds at most {_numbers.show(capacity)} at once. {way_out}",
            unit=state.unit,
            cost=amount,
            capacity=capacity,
            limiter=self.name,
        )

    def shown(self, state: LimitState) -> str:
        """A limit, and the limiter that it is of: `"tokens" of "openai"`."""
        return f'"{self.label(state)}"{_of(self.name)}'

    def label(self, state: LimitState) -> str:
        """What a limit is called in messages: its unit, and what was promised where several count that unit here."""
        return state.label if len(self.units.get(state.unit, ())) < 2 else f"{state.unit} ({state.limit})"

    def blocker(self, state: LimitState | None, now: float) -> str | None:
        """What a call waits for: a limit, or the pause of one."""
        if state is None:
            return None
        paused = state.paused_until > now and state.meter.ready_at(0, now) < state.paused_until
        return "pause" if paused else self.label(state)


def of_least_burst(states: Sequence[S]) -> S:
    """Of the limits of one unit, the one that a server speaks of: the one that holds least at once."""
    return min(states, key=lambda state: getattr(state.limit, "burst", state.limit.capacity))


def cost_of(charges: Iterable[tuple[LimitState, float]]) -> dict[str, float]:
    return {state.unit: amount for state, amount in charges}


def joint_name(*names: str | None) -> str | None:
    """What the limiter over limiters of these names is called."""
    return " & ".join(dict.fromkeys(filter(None, names))) or None


def not_now(charges: Charges, wait: float, blocker: str | None, limiter: str | None, bound: str = "") -> RateLimited:
    """The error for a call that would wait too long at the limiter of that name; `bound` says what it would pass."""
    cost = ", ".join(f"{unit}={_numbers.show(amount)}" for unit, amount in cost_of(charges).items())
    blocker = blocker or "the queue"
    return RateLimited(
        f"{cost or 'a call'} would have to wait {_show_wait(wait)} for {blocker}{_of(limiter)}"
        + (f"; {bound}" if bound else ""),
        retry_after=wait,
        blocked_by=blocker,
        limiter=limiter,
    )


def _show_wait(seconds: float) -> str:
    return "until another call gives back what it holds" if seconds == math.inf else _numbers.show_seconds(seconds)


def _of(limiter: str | None) -> str:
    return f' of "{limiter}"' if limiter else ""


def queue_full(max_queue: int, wait: float, blocker: str | None, limiter: str | None) -> QueueFull:
    """The error for a call that finds as many waiters as there may be."""
    blocker = blocker or "the queue"
    return QueueFull(
        f"the queue{_of(limiter)} is full (max_queue={max_queue}): the next call would have to wait {_show_wait(wait)} "
        f"for {blocker}",
        retry_after=wait,
        blocked_by=blocker,
        limiter=limiter,
    )


def _meant(unit: Any, known: Iterable[str]) -> str:
    """A question at the end of a message, where a unit or an option is spelled nearly so."""
    import difflib  # takes milliseconds, and nearly no program needs it

    near = difflib.get_close_matches(str(unit).lower(), [*known, *sorted(RESERVED)], n=1)
    return f". Did you mean {near[0]}=…?" if near else ""
