"""Caps of a user: so much of a unit per day, week or month of a time zone. Pure: no clock, no I/O."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from penstock import _notation, _numbers
from penstock import limits as _limits
from penstock._text import repr_of
from penstock.errors import UnknownUnit
from penstock.limits import Calendar, Limit, Period, Unlimited
from penstock.usage.words import a_period

UNITS = ("requests", "tokens", "dollars")
"""What is always counted. Others are those that the caps for everybody name."""

NOTHING = 1e-9
"""Stands for a cap of 0, which no limit can have: less than any call takes."""

ANYTHING = 1e15
"""A month's amount that stands for no cap. It is counted all the same: a cap may come at any time, and must find what
was used."""

_TEXT = re.compile(rf"\s*\$?\s*{_notation.NUMBER}\s*{_notation.PER}\s*([a-z]{{1,10}})\s*")


@dataclass(frozen=True, slots=True)
class Cap:
    """`amount` units per period of the calendar.

    Args:
        amount: Units; 0 or more. 0 lets nothing through.
        period: "day", "week" (from Monday), "month"; also "hour" and "minute".
        tz: The time zone in which periods begin at midnight, by its IANA name.

    Raises:
        ValueError: The amount is negative or no number, or there is no such period or time zone.
    """

    amount: float
    period: Period
    tz: str = "UTC"

    def __post_init__(self) -> None:
        amount = None if _numbers.is_bool(self.amount) else _numbers.amount(self.amount)
        if amount is None:
            raise ValueError(f"a cap must be a finite number of units, 0 or more, not {repr_of(self.amount)}")
        object.__setattr__(self, "amount", amount)
        if self.period not in _limits.PERIODS:
            raise ValueError(
                f"unknown period of a cap {repr_of(self.period)}: use one of {', '.join(map(repr, _limits.PERIODS))}"
            )
        self.limit("")

    def limit(self, unit: str) -> Calendar:
        """The limit that counts it.

        A call that does not say how much it takes is charged the least until it is settled.
        """
        return Calendar(max(self.amount, NOTHING), self.period, self.tz, least(unit))

    def __str__(self) -> str:
        return f"{_numbers.show(self.amount)} {a_period(self.period)}" + ("" if self.tz == "UTC" else f" ({self.tz})")


class CapKey(NamedTuple):
    """Which of a user's caps."""

    unit: str
    period: str
    tz: str


CapLike = Cap | Calendar | str
Caps = Mapping[str, tuple[Cap, ...]]
"""Per unit; a unit with none is not capped."""


def least(unit: str) -> float:
    """What a call takes at least: enough to be refused where nothing is left."""
    return 1e-6 if unit == "dollars" else 1.0


def read_cap(given: Any, tz: str = "UTC") -> Cap:
    """Read `"100/day"`, `"2M/month"` or `"$20/week"`, in the time zone `tz`, or a `calendar(...)`.

    Raises:
        ValueError: It is none of these.
    """
    if isinstance(given, Cap):
        return given
    if isinstance(given, Calendar):
        return Cap(given.amount, given.period, given.tz)  # type: ignore[arg-type]  # a number of seconds is refused
    readable = isinstance(given, str) and len(given) <= _notation.TOO_LONG
    match = _TEXT.fullmatch(given) if readable else None
    if match is None or match[3] not in _limits.PERIODS:
        raise ValueError(
            f'cannot read {given!r:.80} as a cap: write it like "100/day", "2M/month" or "20.50/week" '
            f'(periods: {", ".join(_limits.PERIODS)}; 0 or more), or as calendar(100, "day", "Europe/Berlin")'
        )
    period: Any = match[3]
    return Cap(_notation.amount_of(match[1], match[2]), period, tz)


def read_caps(given: Mapping[Any, Any], tz: str = "UTC") -> dict[str, tuple[Cap, ...]]:
    """Read caps as users write them: per unit one, a list of them, or "unlimited".

    Raises:
        ValueError: One of them is wrong; the message names its unit.
    """
    if not isinstance(given, Mapping):
        raise ValueError(f'caps are a mapping of units to caps, such as {{"requests": "100/day"}}, not {given!r:.80}')
    caps: dict[str, tuple[Cap, ...]] = {}
    for unit, written in given.items():
        if not isinstance(unit, str) or not unit.isidentifier():
            raise ValueError(f"a unit must be a word, such as requests, tokens or dollars, not {unit!r}")
        each = written if isinstance(written, list | tuple) else (written,)
        try:
            kinds = [read_cap(one, tz) for one in each if not _is_unlimited(one)]
        except ValueError as error:
            raise ValueError(f"{unit}: {error}") from None
        spans = [(cap.period, cap.tz) for cap in kinds]
        if len(set(spans)) < len(spans):
            raise ValueError(f"{unit}: there are two caps for one period: {', '.join(map(str, kinds))}")
        caps[unit] = tuple(kinds)
    return caps


def _is_unlimited(given: object) -> bool:
    return isinstance(given, Unlimited) or given == "unlimited"


def check_units(units: Iterable[str], known: Iterable[str]) -> None:
    """Refuse units that are not known."""
    there = tuple(known)
    for unit in units:
        if unit not in there:
            raise UnknownUnit(
                f"quotas count no {unit!r}; they count {', '.join(there)}. "
                "Another unit needs a cap for everybody first",
                unit=unit,
                known=there,
            )


def limits_of(caps: Caps, units: Iterable[str]) -> dict[str, tuple[Limit, ...]]:
    """The limits of a user's caps: of each unit, as the processes that share a quota must know the same ones."""
    nothing = (Cap(ANYTHING, "month"),)
    return {unit: tuple(cap.limit(unit) for cap in caps.get(unit, ()) or nothing) for unit in sorted(units)}


def with_extra(caps: Caps, extra: Mapping[CapKey, float]) -> Caps:
    """The caps with what was allowed on top of them, in units."""
    return {
        unit: tuple(
            Cap(cap.amount + extra.get(CapKey(unit, cap.period, cap.tz), 0), cap.period, cap.tz) for cap in kinds
        )
        for unit, kinds in caps.items()
    }


def plain_caps(caps: Caps) -> dict[str, Any]:
    """As JSON has them."""
    return {unit: [[cap.amount, cap.period, cap.tz] for cap in kinds] for unit, kinds in caps.items()}


def origins(before: Sequence[tuple[str, Calendar]], after: Sequence[tuple[str, Calendar]]) -> list[int]:
    """Per limit of `after`, the one of `before` whose use it goes on from; below 0: none, it begins with nothing used.

    The one for the same period, else the longest one for a shorter period: what was used today was used this month too.
    """
    found = []
    for unit, limit in after:
        length = _limits.PERIODS.index(limit.period)
        earlier = [
            ((old.tz == limit.tz and old.period == limit.period, _limits.PERIODS.index(old.period)), index)
            for index, (its_unit, old) in enumerate(before)
            if its_unit == unit and _limits.PERIODS.index(old.period) <= length
        ]
        found.append(max(earlier)[1] if earlier else -1)
    return found


def read_plain_caps(plain: Mapping[str, Any]) -> dict[str, tuple[Cap, ...]]:
    """Read what `plain_caps` wrote; ValueError, TypeError or AttributeError where it is not that."""
    return {unit: tuple(Cap(*cap) for cap in kinds) for unit, kinds in plain.items()}
