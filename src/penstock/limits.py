"""What was promised: frozen descriptions of limits, and how to write them.

    Rate        so much per period, up to `burst` at once: token bucket; `burst=1` is the leaky bucket
    Sliding     never more than so much in any window of a length
    Calendar    so much per day, week, month… of some time zone, or in windows of any length by the clock
    InFlight    so many at the same time: held, not spent
    Unlimited   any number: a limit that never binds

A limit here knows its numbers and nothing else: it does not count, wait, or know which unit it is for. The arithmetic
is in `_core`; to add a kind of your own, see `Limit`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from penstock import _notation, _numbers
from penstock._text import repr_of, text_of

if TYPE_CHECKING:
    from datetime import timedelta

__all__ = [
    "Calendar",
    "InFlight",
    "Limit",
    "Period",
    "Rate",
    "Sliding",
    "Unlimited",
    "calendar",
    "in_flight",
    "parse",
    "per_day",
    "per_hour",
    "per_minute",
    "per_second",
    "sliding",
    "unlimited",
]

Period = Literal["minute", "hour", "day", "week", "month"]
PERIODS: tuple[Period, ...] = ("minute", "hour", "day", "week", "month")
_LENGTHS: dict[Period, float] = dict(zip(PERIODS, (60.0, 3_600.0, 86_400.0, 604_800.0, 2_592_000.0), strict=True))
_SHORTEST = 0.01
"""Seconds of a window by the clock."""


@runtime_checkable
class Limit(Protocol):
    """What a limiter needs of a limit.

    The kinds of this module are built in. A kind of your own is any frozen value with these two attributes and a
    `meter()` that makes a `penstock.Meter`: the same pair as here and in `_core`.
    """

    @property
    def capacity(self) -> float:
        """The most that one call can take, in units."""

    @property
    def default(self) -> float | None:
        """What a call costs unless given; None: it must be given."""


@dataclass(frozen=True, slots=True)
class Rate:
    """`amount` units per period, continuously refilled: a token bucket.

    Args:
        amount: Units per period; above 0.
        per: Length of the period in seconds, or a `timedelta`; above 0.
        burst: Units that may be spent at once; at least 1. Default: the whole `amount`, as servers do.
            1 makes it a leaky bucket: evenly spaced, one every `per / amount` seconds.
        overdraft: Let a call larger than the burst go when the bucket is full, and pay afterwards.
        default: What a call costs in this unit unless it says so.

    Raises:
        ValueError: A number is out of its range.
    """

    amount: float
    per: float
    burst: float = math.nan  # always a number after __post_init__; nan stands for "the whole amount"
    overdraft: bool = False
    default: float | None = None

    def __init__(
        self,
        amount: float,
        per: float | timedelta,
        burst: float | None = None,
        *,
        overdraft: bool = False,
        default: float | None = None,
    ) -> None:
        amount = _positive("rate", amount, "units per period")
        seconds = _positive("period", per, "seconds", _numbers.read_seconds)
        if not (0 < amount / seconds < math.inf and seconds / amount < math.inf):
            raise ValueError(
                f"a rate of {_numbers.show(amount)} "
                f"per {_numbers.show(seconds)} s is beyond what a float can hold in units per second"
            )
        if burst is None:
            burst = amount
            if burst < 1:
                raise ValueError(
                    f"a rate of {_numbers.show(amount)} per {_numbers.show(seconds)} s would hold less than "
                    f"one unit at once: write Rate(1, per={_numbers.show(seconds / amount)}), or count in smaller units"
                )
        burst = _positive("burst", burst, "units")
        if burst < 1:
            raise ValueError(
                f"a burst of {_numbers.show(burst)} is below one unit: use 1 for evenly spaced calls, or more"
            )
        for name, value in (
            ("amount", amount),
            ("per", seconds),
            ("burst", burst),
            ("overdraft", _numbers.read_flag("overdraft", overdraft)),
            ("default", _default(default)),
        ):
            object.__setattr__(self, name, value)

    @property
    def rate(self) -> float:
        """Units per second."""
        return self.amount / self.per

    @property
    def capacity(self) -> float:
        """The most that one call can take: the burst, or anything where overdraft is allowed."""
        return math.inf if self.overdraft else self.burst

    def __str__(self) -> str:
        text = f"{_numbers.show(self.amount)}/{_span(self.per)}"
        if self.burst != self.amount:
            text += f" burst {_numbers.show(self.burst)}"
        return text + (" overdraft" if self.overdraft else "")


@dataclass(frozen=True, slots=True)
class Sliding:
    """Never more than `amount` in any window of `per` seconds, wherever it begins. Made by `sliding()`."""

    amount: float
    per: float
    default: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "amount", _positive("sliding limit", self.amount, "units per window"))
        object.__setattr__(self, "per", _positive("window", self.per, "seconds", _numbers.read_seconds))
        object.__setattr__(self, "default", _default(self.default))

    @property
    def capacity(self) -> float:
        """The most that one call can take: the whole amount."""
        return self.amount

    def __str__(self) -> str:
        return f"{_numbers.show(self.amount)} in any {_span(self.per, one='1 ')}"


@dataclass(frozen=True, slots=True)
class Calendar:
    """`amount` units per period of the calendar in a time zone, or per window of a length. Made by `calendar()`."""

    amount: float
    period: Period | float
    tz: str = "UTC"
    default: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "amount", _positive("calendar limit", self.amount, "units per period"))
        object.__setattr__(self, "period", _period(self.period))
        import zoneinfo  # 20 ms that only limits which follow the calendar need

        try:
            if not isinstance(self.tz, str):
                raise TypeError
            zoneinfo.ZoneInfo(self.tz)
        except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError, TypeError):
            raise ValueError(
                f"unknown time zone {repr_of(self.tz)}: use an IANA name such as 'UTC' or 'Europe/Berlin' "
                "(where the system has no time zone data, install the package tzdata)"
            ) from None
        object.__setattr__(self, "tz", text_of(self.tz))
        if self.tz != "UTC" and self.period not in PERIODS:
            raise ValueError("windows of a number of seconds are counted since 1970, in no time zone: leave tz= out")
        object.__setattr__(self, "default", _default(self.default))

    @property
    def per(self) -> float:
        """Seconds of a period, as a rule: days, weeks and months differ."""
        return _LENGTHS[self.period] if isinstance(self.period, str) else self.period

    @property
    def capacity(self) -> float:
        """The most that one call can take: the whole amount."""
        return self.amount

    def __str__(self) -> str:
        if not isinstance(self.period, str):
            return f"{_numbers.show(self.amount)} in each {_span(self.period)} by the clock"
        return f"{_numbers.show(self.amount)} per calendar {self.period}" + (
            "" if self.tz == "UTC" else f" ({self.tz})"
        )


@dataclass(frozen=True, slots=True)
class InFlight:
    """At most `amount` places at the same time. Made by `in_flight()`."""

    amount: float
    ttl: float | None = None
    default: float | None = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "amount", _positive("in-flight limit", self.amount, "places"))
        if self.amount < 1:
            raise ValueError(f"an in-flight limit of {_numbers.show(self.amount)} has no whole place: use 1 or more")
        if self.ttl is not None:
            object.__setattr__(self, "ttl", _positive("time to live", self.ttl, "seconds", _numbers.read_seconds))
        object.__setattr__(self, "default", _default(self.default))

    @property
    def capacity(self) -> float:
        """The most that one call can hold: all places."""
        return self.amount

    def __str__(self) -> str:
        return f"{_numbers.show(self.amount)} in flight"


@dataclass(frozen=True, slots=True)
class Unlimited:
    """A limit that never binds. `unlimited` is one; use that."""

    default: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "default", _default(self.default))

    @property
    def capacity(self) -> float:
        """The most that one call can take: anything."""
        return math.inf

    def __str__(self) -> str:
        return "unlimited"


def per_second(
    amount: float, burst: float | None = None, *, overdraft: bool = False, default: float | None = None
) -> Rate:
    """`amount` units a second, refilled all the time. Arguments and errors: as of `Rate`."""
    return Rate(amount, 1.0, burst, overdraft=overdraft, default=default)


def per_minute(
    amount: float, burst: float | None = None, *, overdraft: bool = False, default: float | None = None
) -> Rate:
    """`amount` units a minute, refilled all the time. Arguments and errors: as of `Rate`."""
    return Rate(amount, 60.0, burst, overdraft=overdraft, default=default)


def per_hour(
    amount: float, burst: float | None = None, *, overdraft: bool = False, default: float | None = None
) -> Rate:
    """`amount` units an hour, refilled all the time. Arguments and errors: as of `Rate`."""
    return Rate(amount, 3600.0, burst, overdraft=overdraft, default=default)


def per_day(
    amount: float, burst: float | None = None, *, overdraft: bool = False, default: float | None = None
) -> Rate:
    """`amount` units every 24 hours, refilled all the time. Arguments and errors: as of `Rate`.

    For days that begin at midnight there is `calendar`.
    """
    return Rate(amount, 86_400.0, burst, overdraft=overdraft, default=default)


def sliding(amount: float, per: float | timedelta, *, default: float | None = None) -> Sliding:
    """Never more than `amount` units in any window of `per` seconds, wherever it begins.

    Args:
        amount: Units per window; above 0. It is also the most that one call can take.
        per: Length of the window in seconds, or a `timedelta`; above 0.
        default: What a call costs in this unit unless it says so; 0 or more. None: it must say so.

    Raises:
        ValueError: A number is out of its range.
    """
    return Sliding(amount, per, default)  # type: ignore[arg-type]  # it becomes a number there


def calendar(
    amount: float, period: Period | float | timedelta, tz: str = "UTC", *, default: float | None = None
) -> Calendar:
    """`amount` units in each minute, hour, day, week (from Monday) or month of the time zone `tz`.

    Or in each window of `period` seconds, which begin at multiples of their length since 1970. A day has 23 or 25 hours
    when the clocks change. Like every fixed window it lets twice the amount pass around the moment when one period ends
    and the next begins.

    Args:
        amount: Units per period; above 0. It is also the most that one call can take.
        period: "minute", "hour", "day", "week" or "month"; or the length of a window in seconds, or a `timedelta`, at
            least 0.01.
        tz: The time zone in which periods begin, by its IANA name, such as "Europe/Berlin".
        default: What a call costs in this unit unless it says so; 0 or more. None: it must say so.

    Raises:
        ValueError: A number is out of its range, or there is no such period or time zone.
    """
    return Calendar(amount, period, tz, default)  # type: ignore[arg-type]  # a timedelta becomes a number there


def in_flight(amount: float, *, ttl: float | timedelta | None = None, default: float | None = 1) -> InFlight:
    """At most `amount` places held at the same time; a call holds 1 unless it says so, until its permit ends.

    Args:
        amount: Number of places, at least 1.
        ttl: Seconds, or a `timedelta`, after which the place of a permit that was never ended comes back, with a
            warning; above 0. None: never, in this process.
        default: Places that a call holds unless given; 0 or more. None: it must say how many.

    Raises:
        ValueError: A number is out of its range.
    """
    return InFlight(amount, ttl, default)  # type: ignore[arg-type]  # it becomes a number there


def show_limits(limits: Mapping[str, Iterable[object]]) -> str:
    """Limits per unit, as one writes them."""
    return ", ".join(f"{unit}={' and '.join(map(str, kinds))}" for unit, kinds in limits.items())


_NAMES = {1.0: "s", 60.0: "min", 3600.0: "hour", 86_400.0: "day", 604_800.0: "week"}


def parse(text: str) -> Rate | Unlimited:
    """Read a rate such as `"3500/min"`, `"90k/min"`, `"10/s burst 1"`, `"100/5s"` or `"2M/day"`; or `"unlimited"`.

    Amounts may have thousands (`"3,500"`, `"3_500"`) and end in k (thousand), M (million), G or B (10⁹). Periods: ms,
    s, min, h, day, week, with a number before them or not, after `/`, `per` or `a`.

    Raises:
        ValueError: It is none of these, could mean several things, or a number is out of its range.
    """
    if not isinstance(text, str):
        raise ValueError(f'a limit is read from a string such as "3500/min", not from {repr_of(text)}')
    if text.strip().lower() == "unlimited":
        return unlimited
    written = _notation.read_rate(text)
    if written is None:
        said = _notation.advice(text)
        raise ValueError(
            f"cannot read {text[: _notation.TOO_LONG]!r} as a limit: "
            + (said or 'write it like "3500/min", "90k/min", "10/s burst 1" or "100/5s"')
        )
    return Rate(written.amount, written.seconds, written.burst)


def _positive(what: str, value: Any, of: str, read: Callable[[Any], float | None] = _numbers.exact) -> float:
    """The value as a Python number above 0."""
    number = None if _numbers.is_bool(value) else read(value)
    if number is None:
        raise ValueError(f"{what} must be a number of {of}, not {repr_of(value)}")
    try:
        if number > 0 and math.isfinite(number):
            return number
    except OverflowError:  # an int beyond all floats
        pass
    raise ValueError(f"{what} must be a finite number of {of} above 0, not {repr_of(value)}")


def _period(given: Any) -> Period | float:
    """A period of the calendar, or seconds that are none."""
    if isinstance(given, str) and given in PERIODS:
        return PERIODS[PERIODS.index(given)]
    seconds = None if _numbers.is_bool(given) else _numbers.read_seconds(given)
    if seconds is None or not _SHORTEST <= seconds < math.inf:
        raise ValueError(
            f"unknown calendar period {repr_of(given)}: use one of {', '.join(map(repr, PERIODS))}, or a number of "
            f"seconds, {_SHORTEST:g} or more"
        )
    return next((name for name in PERIODS[:-1] if _LENGTHS[name] == seconds), seconds)


def _default(value: Any) -> float | None:
    """A default cost as a Python number, or None."""
    if value is None:
        return None
    number = _numbers.amount(value)
    if number is None:
        raise ValueError(f"a default cost must be a finite number, 0 or more, not {repr_of(value)}")
    return number


def _span(seconds: float, one: str = "") -> str:
    return one + _NAMES[seconds] if seconds in _NAMES else f"{_numbers.show(seconds)}s"


unlimited: Unlimited = Unlimited()
"""A limit that never binds: for a unit of one user, key or model that has none where others do."""
