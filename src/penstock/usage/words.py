"""Numbers, moments and names as people read them. Pure."""

from __future__ import annotations

from datetime import datetime
from zoneinfo import ZoneInfo

from penstock._numbers import show

__all__ = ["counted", "lasting", "moment", "visible"]


def visible(text: str) -> str:
    """A text of others' on one line: what a terminal would obey, or would not show, is written as an escape."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def counted(unit: str, amount: float) -> str:
    """So many of a unit: `$1.25`, `1,200`, `0.5`."""
    if unit == "dollars":
        return f"${amount:,.2f}"
    return f"{amount:,.0f}" if float(amount).is_integer() or abs(amount) >= 1_000 else show(round(amount, 3))


def moment(at: float, tz: str) -> str:
    """A moment, in seconds since 1970, as a clock of that time zone shows it."""
    return f"{datetime.fromtimestamp(at, ZoneInfo(tz)):%Y-%m-%d %H:%M %Z}"


def lasting(seconds: float) -> str:
    """A span of time: `0.2 s`, `12 s`, `3 min 5 s`, `2 h 10 min`, `1,204 h`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    whole = round(seconds)
    if whole < 3_600:
        return f"{whole // 60} min {whole % 60} s"
    hours, minutes = whole // 3_600, whole % 3_600 // 60
    return f"{hours} h {minutes} min" if hours < 100 else f"{hours:,} h"
