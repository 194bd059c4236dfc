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

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from penstock._stated_times import (
    EPOCH,
    NUMBER,
    asked_by,
    by_lower_name,
    date_in,
    duration,
    http_date_in,
    moment_of,
    number_in,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["NOTHING_STATED", "Quota", "Reading", "read"]

DAY = 86_400.0
MONTH = 30 * DAY
"""A month of a rate: services say `tokens-month` and mean thirty days, or do not say."""

PERIODS = (60.0, DAY, 1.0, 10.0, 3_600.0, MONTH)
"""The periods in use, in the order in which they are believed where several fit."""

_NAMED_PERIODS = {"second": 1.0, "minute": 60.0, "hour": 3_600.0, "day": DAY, "month": MONTH}
_PER_NAME = re.compile(r"(?:^|-)(?:(\d{1,6})-)?(second|minute|hour|day|month)$", re.ASCII)
_LENGTHS = (60.0, 3_600.0, DAY, MONTH)
_WHOSE = re.compile(r"(.+)-(limit|remaining|reset)-(requests|tokens)")
"""LiteLLM's proxy says whose limit it is: `x-ratelimit-api_key-remaining-requests`."""

_FIELDS = ("limit", "remaining", "reset", "renewalperiod", "window", "used", "reset-after")
_PREFIXES = ("x-ratelimit-", "x-rate-limit-", "ratelimit-")
_ANTHROPICS = "anthropic-ratelimit-"
"""Its limits are documented to be per minute, which no header says."""

_OTHERS = {
    "x-rate-limit": ("", "limit"),  # Zendesk's
    "x-ratelimit-reset-after": ("", "reset-after"),  # Discord's, beside a reset that is a moment
    **{f"x-tokenlimit-{field}": ("tokens", field) for field in ("limit", "remaining", "reset")},  # Together's
    **{f"x-trial-endpoint-call-{field}": ("requests-minute", field) for field in ("limit", "remaining")},  # Cohere's
}
"""Headers of limits that are named in a way of their own: the limit, and what they say of it."""

_SHOPIFY, _SHOPIFYS_PERIOD = "x-shopify-shop-api-call-limit", "20"
"""`32/40`: used, and the bucket, which all plans have filled again after 20 seconds."""

_BUCKETS = ("x-ratelimit-bucket", "x-ratelimit-resource", "ratelimit-name")
"""Discord's, GitHub's and GitLab's name for what shares a limit."""

_ITEMS = re.compile(r'(?:"[^"]*"|[^",])+')
_PARAMETERS = re.compile(r'(?:"[^"]*"|[^";])+')

_UNITS = {
    "req": "requests",
    "request": "requests",
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
        limit: Units per period, which is also the most there can be at once. None: not stated.
        remaining: Units left at admission, rounded down. None: not stated.
        reset: Seconds until all of it is there again. None: not stated, or not believable.
        per: Length of the period in seconds. None: unknown.
        resets_in: The reset as it was stated, in seconds, whether or not it fits a bucket. None: not stated.
        exact: Whether the period is certain: the service names it, or it follows from a reset in fractions of a second.
        step: Seconds by which the reset may have been rounded.
        bare: The number of a reset that may be seconds, as `resets_in` has it, or milliseconds: one service means
            either, and both fit. None: it is clear.
        is_moment: Whether the reset was stated as a moment: then its seconds count from when the answer was there, and
            not from admission.
        named: Whether the service names the period; else what no bucket would say fits many windows.
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
    is_moment: bool = False
    named: bool = True


@dataclass(frozen=True, slots=True)
class Reading:
    """All that one response says about limits.

    Attributes:
        quotas: In the order of their names. Empty for servers that do not tell.
        retry_after: Seconds to stay away. None: not asked for. Always None on a success.
        bucket: The service's name for those requests that share the limits; "": it has none.
    """

    quotas: tuple[Quota, ...]
    retry_after: float | None
    bucket: str = ""

    @property
    def refuses(self) -> bool:
        """Whether it says that nothing more is served for now, whatever the status is."""
        return self.retry_after is not None or any(quota.remaining == 0 for quota in self.quotas)

    @property
    def empty_for(self) -> float | None:
        """Seconds until what is used up comes back, where no bucket's reset tells it; None: nothing is, or untold."""
        ends = [quota.resets_in for quota in self.quotas if quota.remaining == 0 and quota.reset is None]
        return max((end for end in ends if end), default=None)

    def quota(self, name: str) -> Quota | None:
        """The quota of that name, if it was stated."""
        return next((quota for quota in self.quotas if quota.name == name), None)


NOTHING_STATED = Reading((), None)


def read(headers: Mapping[str, str], status: int, *, wall: float) -> Reading:
    """Read the headers of one response.

    Args:
        headers: Names in any case.
        status: Of the response. A `Retry-After` on a success is noise (one service sends 59 with a 200) and is ignored.
        wall: Now, in seconds since 1970. Only for dates, and only where the response has no `Date` of its own.
    """
    if 200 <= status < 300 and not any("limit" in name.lower() for name in headers):
        return NOTHING_STATED
    lower = by_lower_name(headers)
    stated: dict[str, dict[str, str]] = {}
    for header, value in lower.items():
        name, field = _limit_of(header)
        if field in _FIELDS:
            fields = stated.setdefault(name or "requests", {})
            fields[field] = value
            if header.startswith(_ANTHROPICS):
                fields["usual"] = "60"
    used, slash, most = lower.get(_SHOPIFY, "").partition("/")
    if slash:
        stated["requests"] = {"limit": most, "used": used, "window": _SHOPIFYS_PERIOD}
    _ietf(lower, stated)
    sent = _sent(lower, wall)
    quotas = (_quota(name, fields, sent) for name, fields in sorted(stated.items()))
    return Reading(
        quotas=tuple(quota for quota in quotas if quota is not None),
        retry_after=None if 200 <= status < 300 else asked_by(lower, wall=wall),
        bucket=next((lower[name] for name in _BUCKETS if name in lower), ""),
    )


def _limit_of(header: str) -> tuple[str, str]:
    """The limit that a header is about, and what it says of it; ("", ""): it is about none."""
    if header in _OTHERS:
        return _OTHERS[header]
    prefix = next((prefix for prefix in _PREFIXES if header.startswith(prefix)), None)
    if prefix is not None:
        rest = header.removeprefix(prefix)
        field, _, name = rest.partition("-")
        if field in _FIELDS:
            return name, field
        if whose := _WHOSE.fullmatch(rest):
            return f"{whose[3]}:{whose[1]}", whose[2]
    elif header.startswith(_ANTHROPICS):
        rest = header.removeprefix(_ANTHROPICS)
    else:
        return "", ""
    name, _, field = rest.rpartition("-")  # the other way round: Anthropic's, Linear's
    return name, field


def _ietf(headers: Mapping[str, str], stated: dict[str, dict[str, str]]) -> None:
    """Add what the IETF draft's fields tell, in the forms that they have had.

    `RateLimit: "default";r=50;t=30` with `RateLimit-Policy: "default";q=100;w=60`, where `qu` is what is counted; or
    `RateLimit: limit=100, remaining=50, reset=30` with `RateLimit-Policy: 100;w=60`; or three headers, the first of
    which may hold policies: `RateLimit-Limit: 10, 10;w=1, 50;w=60`.
    """
    left, policies = _items(headers.get("ratelimit", "")), _items(headers.get("ratelimit-policy", ""))
    flat = {key: value for key, _, value in (name.partition("=") for name, _ in left)}
    if "limit" in flat and "remaining" in flat:
        stated["requests"] = {field: flat[field] for field in _FIELDS if field in flat}
        left = []
    _add_window(stated.get("requests", {}), policies)
    policies = [(name, parameters) for name, parameters in policies if "q" in parameters]
    if len(left) == len(policies) == 1:  # of one limit, whatever it is called here and there
        left = [(policies[0][0], left[0][1])]
    names: dict[str, str] = {}
    for name, parameters in (*policies, *left):
        names.setdefault(name, f"{parameters.get('qu', 'requests')}:{name}")
        fields = {word: parameters[key] for key, word in _WORDS.items() if key in parameters}
        if fields:
            stated.setdefault(names[name], {}).update(fields)


_WORDS = {"r": "remaining", "t": "reset", "q": "limit", "w": "window"}


def _add_window(fields: dict[str, str], policies: list[tuple[str, dict[str, str]]]) -> None:
    """Add the period that policies such as `100;w=60` give to a limit of 100."""
    limits = _items(fields.get("limit", ""))
    policies = [each for each in (*limits, *policies) if "w" in each[1]]
    if any("w" in parameters for _, parameters in limits):
        fields["limit"] = limits[0][0]  # the one that matters; the policies come behind it
    for amount, parameters in policies:
        if amount == fields.get("limit"):
            fields.setdefault("window", parameters["w"])


def _items(text: str) -> list[tuple[str, dict[str, str]]]:
    """The items of a structured field: the name of each, and its parameters."""
    items: list[tuple[str, dict[str, str]]] = []
    for item in _ITEMS.findall(text):
        name, *rest = _PARAMETERS.findall(item) or [""]
        pairs = (pair.partition("=") for pair in rest)
        items.append((name.strip().strip('"'), {key.strip(): value.strip().strip('"') for key, _, value in pairs}))
    return items


def _smaller(fields: Mapping[str, str]) -> dict[str, str]:
    """Of `500, 100`, which come from two proxies, the smaller limit, and what is said of that one.

    Of limits that are the same, or told once, the one with less left.
    """
    parts = {field: text.split(",") if text.strip()[:1].isdigit() else [text] for field, text in fields.items()}
    several = max(len(parts.get(field, ())) for field in ("limit", "remaining"))

    def size(at: int) -> tuple[float, ...]:
        told = (parts.get(field, ()) for field in ("limit", "remaining"))
        numbers = (number_in(texts[at]) if len(texts) == several else 0.0 for texts in told)
        return tuple(math.inf if number is None else number for number in numbers)

    chosen = min(range(several), key=size, default=0)
    return {field: texts[chosen] if len(texts) == several else texts[0] for field, texts in parts.items()}


def _quota(name: str, fields: Mapping[str, str], sent: float) -> Quota | None:
    fields = _smaller(fields) if any("," in text for text in fields.values()) else fields
    limit, remaining = number_in(fields.get("limit", "")), number_in(fields.get("remaining", ""))
    if _negative(fields.get("limit")) or _negative(fields.get("remaining")) or limit == 0:
        return None  # -1/-1/0 is what a service says that does not know
    used = number_in(fields.get("used", ""))
    if used is not None and limit is None and remaining is not None:
        limit = used + remaining
    elif used is not None and limit is not None and remaining is None:
        remaining = max(0.0, limit - used)
    if limit is None and remaining is None:
        return None
    renewal = number_in(fields.get("renewalperiod", "")) or None
    base, per = name, renewal or number_in(fields.get("window", "")) or None
    named = _PER_NAME.search(name)
    if named:
        base = name[: max(0, named.start())].rstrip("-")
        per = float(named[1] or 1) * _NAMED_PERIODS[named[2]]
    base = base.partition(":")[0]
    reset = resets_in = bare = None
    exact = is_named = per is not None
    text = fields.get("reset-after", fields.get("reset"))
    date = date_in(text or "")
    is_moment = date is not None or (number_in(text or "") or 0.0) >= EPOCH
    step = 1.0 if date is not None else _step(text or "")
    usual = number_in(fields.get("usual", ""))
    if per is None and usual is not None and date is not None and date - sent <= usual + 1:
        per, exact = usual, True
    if text is not None and limit is not None and remaining is not None:
        reset, per = _reset(text.strip(), limit, remaining, per, sent)
        exact = exact or (reset is not None and limit - remaining >= 1 and step < 0.1)
        resets_in = _seconds_until(text.strip(), sent) if reset is None else reset
        bare = number_in(text) if reset is None and renewal is not None else None
        just_begun = limit - remaining <= 1 and resets_in in {60.0, 3_600.0} and per is not None and resets_in < per
        if resets_in is not None and (per is None or just_begun):
            # No bucket, but a window: `60 left of a minute` would otherwise have to be a bucket of an hour or a day.
            # Of the usual lengths it is the first that is long enough, and a minute at least.
            reset, per = None, next((length for length in _LENGTHS if resets_in <= length), None)
    # Fractions of a second are no milliseconds, and tell a window's end as well as a bucket's: `0.950` as `950ms`.
    exact = exact or (per is not None and text is not None and step < 0.1)
    unit = _UNITS.get(base, base)
    return Quota(_cut(name), unit, limit, remaining, reset, per, resets_in, exact, step, bare, is_moment, is_named)


def _cut(name: str) -> str:
    """What a limit is called; the only one of a policy is `requests`."""
    return name.removesuffix(":default") if name.startswith("requests:") else name


def _seconds_until(text: str, sent: float) -> float | None:
    """A reset in seconds, from any form: a duration, a number, a moment since 1970 in seconds or milliseconds."""
    seconds = duration(text)
    if seconds is None:
        seconds = number_in(text)
        if seconds is not None and seconds >= EPOCH:
            seconds = max(0.0, moment_of(seconds) - sent)
    if seconds is None and (moment := date_in(text)) is not None:
        seconds = max(0.0, moment - sent)
    return seconds if seconds is not None and seconds <= MONTH else None


def _reset(
    text: str, limit: float, remaining: float, per: float | None, sent: float
) -> tuple[float | None, float | None]:
    """The reset in seconds and its period, as far as both can be believed."""
    seconds = duration(text)
    if seconds is not None:
        readings = [(seconds, 0.001)]  # cut to whole milliseconds
    elif (bare := number_in(text)) is not None:
        readings = [(bare, _step(text))]
        if per is not None:  # which of them it is, the formula can say where the period is known
            readings.insert(0, (bare / 1_000, 0.001))
    elif (moment := date_in(text)) is not None:
        if per is None:
            return None, None
        # Anthropic's: moments in whole seconds, and remaining tokens rounded to thousands.
        rounded = 500 if limit >= 1_000 and remaining % 1_000 == 0 else 0
        used = limit - remaining
        least, most = (max(0.0, used - 1 - rounded) / limit * per, (used + rounded) / limit * per)
        return (moment - sent if least - 1 <= moment - sent <= most + 1 else None), per
    else:
        return None, per
    for reset, step in readings:
        for period in PERIODS if per is None else (per,):
            if _fits(limit, remaining, reset, step, period):
                return reset, period
    return None, per


def _step(text: str) -> float:
    """Seconds by which a reset may have been rounded: numbers by their last digit, durations by a millisecond."""
    number = NUMBER.fullmatch(text.strip())
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
    at = http_date_in(headers.get("date", ""))
    return wall if at is None else at


def _negative(text: str | None) -> bool:
    return text is not None and text.strip().startswith("-")
