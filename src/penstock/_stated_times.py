"""Spans and moments as services write them in headers: `1m6.779s`, `250`, `Fri, 01 May 2026 12:00:20 GMT`.

Pure: texts in, seconds out. Nothing in a text makes a function here raise, and none takes more than linear time.

    asked_by         what headers ask for in `retry-after-ms` and `retry-after`, in any form
    by_lower_name    headers with names in lower case, those that came twice in one
    duration, date_in, http_date_in, moment_of, number_in    each form by itself
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

_LONGEST = 256
"""Characters of a header that is worth reading: what is longer is no number and no date."""

_LISTS = {"ratelimit": 4 * _LONGEST, "ratelimit-policy": 4 * _LONGEST}
"""The same of headers that tell of several limits."""

EPOCH = 1e9
"""A number above this is no span of seconds, but a moment since 1970, in seconds or milliseconds."""

NUMBER = re.compile(r"(?:\d+(?:\.\d+)?|\.\d+)(?:[eE][+-]?\d{1,3})?", re.ASCII)

_STEP = {
    "ns": Decimal("1e-9"),
    **dict.fromkeys(("us", "µs", "μs"), Decimal("1e-6")),
    "ms": Decimal("0.001"),
    "s": Decimal(1),
    "m": Decimal(60),
    "h": Decimal(3_600),
    "d": Decimal(86_400),
}
_PART = re.compile(r"(\d+(?:\.\d+)?|\.\d+)(ns|us|µs|μs|ms|s|m|h|d)", re.ASCII)  # both spellings of micro occur
_SECONDS = re.compile(r"(\d+(?:\.\d+)?) ?s(?:ec(?:ond)?s?)?", re.ASCII | re.IGNORECASE)


def asked_by(headers: Mapping[str, Any], *, wall: float) -> float | None:
    """Seconds that headers ask to stay away: `retry-after-ms`, else `retry-after`. None: they do not.

    It may be a number or a duration, a number of seconds or milliseconds since 1970, or a date. Moments are measured
    against the response's own `Date`, so a wrong clock of ours does no harm; those that are past are 0. Of several,
    which come from several proxies, the longest counts: all are to be waited for.

    A number beyond all floats is as long as a number of seconds can be.

    Args:
        headers: Names in any case.
        wall: Now, in seconds since 1970, for responses without a `Date`.
    """
    found = by_lower_name(headers)
    milliseconds = _number_or_most(found.get("retry-after-ms", ""))
    if milliseconds is not None:
        return milliseconds / 1_000
    sent = http_date_in(found.get("date", ""))
    since = wall if sent is None else sent
    # A date has a comma behind its weekday, and can be read without that.
    asked = (_asked(part, since) for part in found.get("retry-after", "").split(","))
    return max((seconds for seconds in asked if seconds is not None), default=None)


def _number_or_most(text: str) -> float | None:
    """A number of 0 or more; `EPOCH` where it is beyond all floats."""
    number = number_in(text)
    return EPOCH if number is None and NUMBER.fullmatch(text.strip()) else number


def _asked(text: str, since: float) -> float | None:
    seconds = _number_or_most(text)
    if seconds is not None and seconds <= EPOCH:
        return seconds
    worded = _SECONDS.fullmatch(text.strip())
    if worded is not None:
        return number_in(worded[1])
    at = date_in(text.strip()) if seconds is None else moment_of(seconds)
    return duration(text) if at is None else max(0.0, at - since)


def by_lower_name(headers: Mapping[str, Any]) -> dict[str, str]:
    """The headers with names in lower case, without those that are too long to be read.

    Some libraries' mappings have a header that came twice as two items. As HTTP has it, that is a list with commas.
    """
    found: dict[str, str] = {}
    for header, value in headers.items():
        name, text = str(header).lower(), value.decode("latin-1") if isinstance(value, bytes) else _text(value)
        text = f"{found[name]}, {text}" if name in found else text
        if len(name) <= _LONGEST and len(text) <= _LISTS.get(name, _LONGEST):
            found[name] = text
    return found


def _text(value: object) -> str:
    try:
        return str(value)
    except ValueError:  # a number of more digits than Python writes
        return ""


def duration(text: str) -> float | None:
    """Seconds in a duration as Go writes it: `0s`, `120ms`, `1m6.779s`, `23h18m29.144s`, `7.44ms`. None: it is none."""
    text = text.strip()[:_LONGEST]
    seconds = Decimal(0)  # in binary, 950 ms would be a little more than 0.95 s
    at = 0
    for part in _PART.finditer(text):
        if part.start() != at:
            return None
        seconds += Decimal(part[1]) * _STEP[part[2]]
        at = part.end()
    return float(seconds) if at and at == len(text) else None


def date_in(text: str) -> float | None:
    """A moment as RFC 3339 or HTTP write it, in seconds since 1970; None: it is none."""
    try:
        at = datetime.fromisoformat(text)
        return at.timestamp() if at.tzinfo else None
    except (ValueError, OverflowError):
        return http_date_in(text) if ":" in text else None


def http_date_in(text: str) -> float | None:
    """The same, of HTTP's forms alone."""
    import email.utils

    try:
        at = email.utils.parsedate_to_datetime(text)
        # "-0000" and the asctime form give a date without a zone, and mean UTC
        return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()
    except (TypeError, ValueError, OverflowError, IndexError):
        return None


def moment_of(value: float) -> float:
    """Seconds since 1970, of a number of seconds or milliseconds."""
    return value / 1_000 if value >= 100 * EPOCH else value


def number_in(text: str) -> float | None:
    """A finite number of zero or more (`1e+06` too); None for anything else, `nan`, `inf` and `1_000` among them."""
    text = text.strip()
    value = float(text) if NUMBER.fullmatch(text) else math.inf
    return value if math.isfinite(value) else None
