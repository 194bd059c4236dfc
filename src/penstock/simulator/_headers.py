"""Response headers as OpenAI writes them: what a limit is, what is left of it, and when it will be full again.

Pure functions; `penstock.llm.headers` reads what they write.
"""

from __future__ import annotations

import math
from email.utils import formatdate
from fractions import Fraction

from penstock._text import repr_of


def format_duration(seconds: float | Fraction) -> str:
    """Write a duration like Go's `time.Duration`, cut to milliseconds.

    `0s`, `12ms`, `8.64s`, `1m6.779s`, `6m0s`, `23h18m29.144s`. A float is taken as the decimal number that it prints
    as, so 0.12 is 120ms and not the 119 that its binary value would be cut to.

    Raises:
        ValueError: It is below 0 or not finite.
    """
    if not (math.isfinite(seconds) and seconds >= 0):
        raise ValueError(f"a duration must be a finite number of seconds, 0 or more, not {repr_of(seconds)}")
    exact = Fraction(repr(seconds)) if isinstance(seconds, float) else Fraction(seconds)
    return format_milliseconds(math.floor(exact * 1000))


def format_milliseconds(milliseconds: int) -> str:
    """The same of a whole number of milliseconds."""
    if milliseconds < 1000:
        return f"{milliseconds}ms" if milliseconds else "0s"
    minutes, rest = divmod(milliseconds, 60_000)
    text = f"{rest // 1000}.{rest % 1000:03}".rstrip("0").rstrip(".") + "s"
    if not minutes:
        return text
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes}m{text}" if hours else f"{minutes}m{text}"


def rate_limit_headers(unit: str, limit: float, remaining: int, reset_ns: int) -> dict[str, str]:
    """The three headers of one limit: `x-ratelimit-{limit,remaining,reset}-{unit}`."""
    return {
        f"x-ratelimit-limit-{unit}": str(math.floor(limit)),
        f"x-ratelimit-remaining-{unit}": str(remaining),
        f"x-ratelimit-reset-{unit}": format_milliseconds(reset_ns // 1_000_000),
    }


def retry_headers(wait_ns: int) -> dict[str, str]:
    """How long a refused caller should wait, above 0: `retry-after` in whole seconds, and `retry-after-ms`.

    Both are rounded up, to 1 at least, so a client that waits as told is not refused again by what was left of a
    millisecond.
    """
    milliseconds = ceil_milliseconds(wait_ns)
    return {"retry-after": str(-(-milliseconds // 1000)), "retry-after-ms": str(milliseconds)}


def hint_headers(wait_ns: int, form: str, wall: float) -> dict[str, str]:
    """The same in one of the forms in which services say it.

    Args:
        wait_ns: Above 0.
        form: Which one of `Simulation.hints`, but "all".
        wall: Seconds since 1970, for dates.
    """
    told = retry_headers(wait_ns)
    seconds = told["retry-after"]
    forms = {
        "retry-after": {"retry-after": seconds},
        "duration": {"retry-after": f"{seconds}s"},
        "date": {"retry-after": formatdate(math.ceil(wall + wait_ns / 1e9), usegmt=True)},
        "milliseconds": {"retry-after-ms": told["retry-after-ms"]},
    }
    return forms.get(form, {})


def ceil_milliseconds(ns: int) -> int:
    """Nanoseconds in whole milliseconds, rounded up."""
    return -(-ns // 1_000_000)
