"""What a response's headers say about its limits, and for how long to stay away.

Pure: headers in, numbers out. `discovery` and `transport` decide what the numbers are used for.

The services agree on little: durations are Go's (`1m6.779s`), floats of them (`17.399999999s`), bare numbers that mean
seconds or milliseconds, or moments (RFC 3339). So nothing is believed that contradicts the rest. A reset is the time
until the limit's bucket is full again,

    reset = (limit - level) / limit x period        remaining = floor(level)

and a triple of headers with anything used therefore tells its period: `limit 10000, remaining 9999, reset 8.64s` can
only be a limit per day. A reset that fits no period is dropped; limit and remaining are kept.
"""

from __future__ import annotations

import email.utils
import math
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Quota", "Reading", "duration", "read", "retry_after"]

DAY = 86_400.0
MONTH = 30 * DAY
"""A month of a rate: services say `tokens-month` and mean thirty days, or do not say."""

PERIODS = (60.0, DAY, 1.0, 10.0, 3_600.0, MONTH)
"""The periods in use, in the order in which they are believed where several fit."""

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
_NUMBER = re.compile(r"\d+(?:\.\d+)?|\.\d+", re.ASCII)
_NAMED_PERIODS = {"second": 1.0, "minute": 60.0, "hour": 3_600.0, "day": DAY, "month": MONTH}
_PER_NAME = re.compile(r"(?:^|-)(?:(\d{1,6})-)?(second|minute|hour|day|month)$", re.ASCII)
_LENGTHS = (60.0, 3_600.0, DAY, MONTH)
_EPOCH = 1e9
"""A number above this is no span of seconds, but a moment since 1970."""

_WHOSE = re.compile(r"(.+)-(limit|remaining|reset)-(requests|tokens)")
"""LiteLLM's proxy says whose limit it is: `x-ratelimit-api_key-remaining-requests`."""

_FIELDS = ("limit", "remaining", "reset", "renewalperiod", "window")
_LONGEST = 256
"""Characters of a header that is worth reading: what is longer is no number and no date."""

_UNITS = {
    "req": "requests",
    "project-tokens": "tokens",
    "project-requests": "requests",
    "tokens-prompt": "input-tokens",
    "tokens-generated": "output-tokens",
    "": "requests",
}


@dataclass(frozen=True, slots=True)
class Quota:
    """One limit, as one response's headers tell it.

    Attributes:
        name: The service's own word: `requests`, `project-tokens`, `tokens-month`.
        unit: What is counted, in our words: `requests`, `tokens`, `input-images`…
        limit: Units per period, which is also the most there can be at once. None: not told.
        remaining: Units left at admission, rounded down. None: not told.
        reset: Seconds until all of it is there again. None: not told, or not believable.
        per: Length of the period in seconds. None: it could not be told.
        resets_in: The reset as it was told, in seconds, whether or not it fits a bucket. None: not told.
        exact: Whether the period is certain: the service names it, or it follows from a reset in fractions of a second.
        step: Seconds by which the reset may have been rounded.
        bare: The number of a reset that may be seconds, as `resets_in` has it, or milliseconds: one service means
            either, and both fit. None: it is clear.
    """

    name: str
    unit: str
    limit: float | None
    remaining: float | None
    reset: float | None
    per: float | None
    resets_in: float | None = None
    exact: bool = False
    step: float = 0.001
    bare: float | None = None


@dataclass(frozen=True, slots=True)
class Reading:
    """All that one response says about limits.

    Attributes:
        quotas: In the order of their names. Empty for servers that do not tell.
        retry_after: Seconds to stay away. None: not asked for. Always None on a success.
    """

    quotas: tuple[Quota, ...]
    retry_after: float | None

    def quota(self, name: str) -> Quota | None:
        """The quota of that name, if it was told."""
        return next((quota for quota in self.quotas if quota.name == name), None)


_NOTHING_TOLD = Reading((), None)


def read(headers: Mapping[str, str], status: int, *, wall: float) -> Reading:
    """Read the headers of one response.

    Args:
        headers: Names in any case.
        status: Of the response. A `Retry-After` on a success is noise (one service sends 59 with a 200) and is ignored.
        wall: Now, in seconds since 1970. Only for dates, and only where the response has no `Date` of its own.
    """
    if 200 <= status < 300 and not any("ratelimit" in name.lower() for name in headers):
        return _NOTHING_TOLD
    lower = _readable(headers)
    told: dict[str, dict[str, str]] = {}
    for header, value in lower.items():
        # Names below are `x-ratelimit-reset-tokens`, and the other way round `anthropic-ratelimit-tokens-reset`.
        if header.startswith("x-ratelimit-"):
            field, _, name = header.removeprefix("x-ratelimit-").partition("-")
            if field not in _FIELDS and (whose := _WHOSE.fullmatch(header.removeprefix("x-ratelimit-"))):
                field, name = whose[2], f"{whose[3]}:{whose[1]}"
        elif header.startswith("anthropic-ratelimit-"):
            name, _, field = header.removeprefix("anthropic-ratelimit-").rpartition("-")
        elif header.startswith("ratelimit-"):
            field, name = header.removeprefix("ratelimit-"), ""
        else:
            continue
        if field in _FIELDS:
            told.setdefault(name or "requests", {})[field] = value
    for name, fields in _ietf(lower).items():
        told.setdefault(name, {}).update(fields)
    sent = _sent(lower, wall)
    quotas = (_quota(name, fields, sent) for name, fields in sorted(told.items()))
    return Reading(
        quotas=tuple(quota for quota in quotas if quota is not None),
        retry_after=None if 200 <= status < 300 else retry_after(lower, wall=wall),
    )


def retry_after(headers: Mapping[str, str], *, wall: float) -> float | None:
    """Seconds that the server asks to stay away: `retry-after-ms`, else `retry-after` (a number or an HTTP date).

    A date is measured against the response's own `Date`, so a clock of ours that is wrong does no harm.
    """
    lower = _readable(headers)
    milliseconds = _number(lower.get("retry-after-ms", ""))
    if milliseconds is not None:
        return milliseconds / 1_000
    text = lower.get("retry-after", "").strip()
    seconds = _number(text)
    if seconds is not None:
        return seconds if seconds < _EPOCH else max(0.0, _moment(seconds) - _sent(lower, wall))
    seconds = duration(text)
    if seconds is not None:
        return seconds
    moment = _http_date(text)
    if moment is None:
        moment = _rfc3339(text)
    return None if moment is None else max(0.0, moment - _sent(lower, wall))


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


def _readable(headers: Mapping[str, str]) -> dict[str, str]:
    """The headers with names in lower case, without those that cannot be read. Never raises."""
    return {
        name.lower(): str(value)
        for name, value in headers.items()
        if len(str(value)) <= _LONGEST and len(name) <= _LONGEST
    }


def _ietf(headers: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """The IETF draft's fields, in its newer and its older form.

    `RateLimit: "default";r=50;t=30` with `RateLimit-Policy: "default";q=100;w=60`, or
    `RateLimit: limit=100, remaining=50, reset=30`.
    """
    told: dict[str, dict[str, str]] = {}
    words = {"r": "remaining", "t": "reset", "q": "limit", "w": "window"}
    for header in ("ratelimit", "ratelimit-policy"):
        text = headers.get(header, "")
        flat: dict[str, str] = {}
        for part in text.split(","):
            key, _, value = part.strip().partition("=")
            flat[key] = value
        if "limit" in flat and "remaining" in flat:
            told["requests"] = {field: flat[field] for field in _FIELDS if field in flat}
            continue
        for item in text.split(","):
            name, _, rest = item.strip().partition(";")
            for pair in rest.split(";"):
                key, _, value = pair.strip().partition("=")
                if key in words:
                    told.setdefault(f"requests:{name.strip().strip(chr(34))}", {})[words[key]] = value.strip('"')
    return told


def _smaller(text: str) -> str:
    """Of `500, 100`, which come from two proxies, the smaller."""
    if "," not in text:
        return text
    numbers = [(number, part) for part in text.split(",") if (number := _number(part.partition(";")[0])) is not None]
    return min(numbers)[1].partition(";")[0] if numbers else text


def _quota(name: str, fields: Mapping[str, str], sent: float) -> Quota | None:
    fields = {field: _smaller(text) for field, text in fields.items()}
    limit, remaining = _number(fields.get("limit", "")), _number(fields.get("remaining", ""))
    if _negative(fields.get("limit")) or _negative(fields.get("remaining")) or limit == 0:
        return None  # -1/-1/0 is what a service says that does not know
    if limit is None and remaining is None:
        return None
    renewal = _number(fields.get("renewalperiod", "")) or None
    base, per = name, renewal or _number(fields.get("window", "")) or None
    named = _PER_NAME.search(name)
    if named:
        base = name[: max(0, named.start())].rstrip("-")
        per = float(named[1] or 1) * _NAMED_PERIODS[named[2]]
    base = base.partition(":")[0]
    reset = resets_in = bare = None
    exact = per is not None
    text = fields.get("reset")
    is_moment = _rfc3339(text or "") is not None
    step = 1.0 if is_moment else _step(text or "")
    if text is not None and limit is not None and remaining is not None:
        reset, per = _reset(text.strip(), limit, remaining, per, sent)
        exact = exact or (reset is not None and limit - remaining >= 1 and step < 0.1)
        resets_in = _seconds_until(text.strip(), sent) if reset is None else reset
        bare = _number(text) if reset is None and renewal is not None else None
        just_begun = limit - remaining <= 1 and resets_in in {60.0, 3_600.0} and per is not None and resets_in < per
        if resets_in is not None and (per is None or just_begun):
            # No bucket, but a window: `60 left of a minute` would otherwise have to be a bucket of an hour or a day.
            # Of the usual lengths it is the first that is long enough, and a minute at least.
            reset, per = None, next((length for length in _LENGTHS if resets_in <= length), None)
    exact = exact or (per is not None and text is not None and (is_moment or duration(text.strip()) is not None))
    return Quota(_cut(name), _UNITS.get(base, base), limit, remaining, reset, per, resets_in, exact, step, bare)


def _cut(name: str) -> str:
    """What a limit is called; the only one of a policy is `requests`."""
    return name.removesuffix(":default") if name.startswith("requests:") else name


def _seconds_until(text: str, sent: float) -> float | None:
    """A reset in seconds, from any form: a duration, a number, a moment since 1970 in seconds or milliseconds."""
    seconds = duration(text)
    if seconds is None:
        seconds = _number(text)
        if seconds is not None and seconds >= _EPOCH:
            seconds = max(0.0, _moment(seconds) - sent)
    if seconds is None and (moment := _rfc3339(text)) is not None:
        seconds = max(0.0, moment - sent)
    return seconds if seconds is not None and seconds <= MONTH else None


def _moment(number: float) -> float:
    """Seconds since 1970, of a number of seconds or milliseconds."""
    return number / 1_000 if number >= 1_000 * _EPOCH / 10 else number


def _reset(
    text: str, limit: float, remaining: float, per: float | None, sent: float
) -> tuple[float | None, float | None]:
    """The reset in seconds and its period, as far as both can be believed."""
    seconds = duration(text)
    if seconds is not None:
        readings = [(seconds, 0.001)]  # cut to whole milliseconds
    elif (bare := _number(text)) is not None:
        readings = [(bare, _step(text))]
        if per is not None:  # which of them it is, the formula can say where the period is known
            readings.insert(0, (bare / 1_000, 0.001))
    elif (moment := _rfc3339(text)) is not None:
        # Anthropic's: moments in whole seconds, and remaining tokens rounded to thousands, of limits per minute.
        period = per or 60.0
        rounded = 500 if limit >= 1_000 and remaining % 1_000 == 0 else 0
        used = limit - remaining
        least, most = (max(0.0, used - 1 - rounded) / limit * period, (used + rounded) / limit * period)
        return (moment - sent if least - 1 <= moment - sent <= most + 1 else None), period
    else:
        return None, per
    for reset, step in readings:
        for period in PERIODS if per is None else (per,):
            if _fits(limit, remaining, reset, step, period):
                return reset, period
    return None, per


def _step(text: str) -> float:
    """Seconds by which a reset may have been rounded: numbers by their last digit, durations by a millisecond."""
    number = _NUMBER.fullmatch(text.strip())
    if number is None:
        return 0.001
    whole, _, decimals = number[0].partition(".")
    return 1.0 if not decimals or len(whole) > 9 else max(0.001, 10.0 ** -len(decimals))


def _fits(limit: float, remaining: float, reset: float, step: float, period: float) -> bool:
    """Whether the three can be a bucket's: used = limit - level lies in (limit - remaining - 1, limit - remaining].

    A snapshot is taken at admission, after its own request was charged. So a bucket with all but one left has used one
    whole unit; that is what tells a limit per day from one per minute after a single request.
    """
    used = limit - remaining
    if used < 0:
        return False
    least, most = max(min(used, 1.0), used - 1) / limit * period, used / limit * period
    return least - step <= reset <= most + step


def _sent(headers: Mapping[str, str], wall: float) -> float:
    moment = _http_date(headers.get("date", ""))
    return wall if moment is None else moment


def _http_date(text: str) -> float | None:
    try:
        moment = email.utils.parsedate_to_datetime(text)
        # "-0000" gives a date without a zone, and means UTC
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (TypeError, ValueError, OverflowError, IndexError):
        return None


def _rfc3339(text: str) -> float | None:
    try:
        moment = datetime.fromisoformat(text)
        return moment.timestamp() if moment.tzinfo else None
    except (ValueError, OverflowError):
        return None


def _number(text: str) -> float | None:
    """A finite number of zero or more; None for anything else, `nan`, `inf` and `1_000` among them."""
    text = text.strip()
    value = float(text) if _NUMBER.fullmatch(text) else math.inf
    return value if math.isfinite(value) else None


def _negative(text: str | None) -> bool:
    return text is not None and text.strip().startswith("-")
