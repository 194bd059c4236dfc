"""Numbers and moments as people read them. Pure."""

from __future__ import annotations

from datetime import datetime
from zoneinfo import ZoneInfo

from penstock._numbers import show, show_dollars, show_seconds


def counted(unit: str, amount: float) -> str:
    """So many of a unit: `$1.25`, `$0.0004`, `1,200`, `0.5`."""
    if unit == "dollars":
        return show_dollars(amount)
    return f"{amount:,.0f}" if float(amount).is_integer() or abs(amount) >= 1_000 else show(round(amount, 3))


def named(unit: str, amount: float) -> str:
    """The same with the name of the unit: `$1.25`, `1,200 tokens`, `1 request`."""
    name = unit.removesuffix("s") if amount == 1 else unit
    return counted(unit, amount) if unit == "dollars" else f"{counted(unit, amount)} {name}"


def a_period(period: str) -> str:
    """`a day`, `an hour`."""
    return f"{'an' if period == 'hour' else 'a'} {period}"


def moment(at: float, tz: str) -> str:
    """A moment, in seconds since 1970, as a clock of that time zone shows it."""
    return f"{datetime.fromtimestamp(at, ZoneInfo(tz)):%Y-%m-%d %H:%M %Z}"


def lasting(seconds: float) -> str:
    """A span of time in a table: `0.2 s`, `12 s`, `3 min 5 s`, `2 h 10 min`, `50 days 4 h`."""
    return show_seconds(round(seconds, 1) if seconds < 10 else round(seconds))
