"""What a service's words say about a limit: how long to wait, and which limit it was.

Pure, and linear in a message's length, of which 2,000 characters are read.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, fields, replace
from decimal import Decimal, InvalidOperation

__all__ = ["LONGEST", "RateLimitInfo", "info_of", "message_wait", "never_fits", "quota_named"]

LONGEST = 2_000
"""Characters of a message that are read."""


@dataclass(frozen=True, slots=True)
class RateLimitInfo:
    """Which limit it was, as far as the service's words say. None: they do not.

    Attributes:
        unit: `requests`, `tokens`, `input_tokens`, `images`… or `in_flight`: requests at once.
        period: Of the limit, in seconds.
        limit: Units per period; or how many at once.
        current: Units that were used.
        requested: Units that the request would have taken.
        model: As the service names it.
        organisation: The same.
        wait: Seconds to wait.
    """

    unit: str | None = None
    period: float | None = None
    limit: float | None = None
    current: float | None = None
    requested: float | None = None
    model: str | None = None
    organisation: str | None = None
    wait: float | None = None

    def completed_by(self, other: RateLimitInfo) -> RateLimitInfo:
        """The same, with what only the other one tells."""
        missing = {each.name: getattr(other, each.name) for each in fields(self) if getattr(self, each.name) is None}
        return replace(self, **missing)


_PERIODS = {
    **dict.fromkeys(("second", "sec", "s"), 1.0),
    **dict.fromkeys(("minute", "min"), 60.0),
    "hour": 3_600.0,
    "day": 86_400.0,
    "month": 2_592_000.0,
}
_SCALES = {"k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9, "thousand": 1e3, "million": 1e6, "billion": 1e9}
_NUMBER = (
    r"(\d[\d,_]*(?:\.\d+)?(?i:e\+?\d{1,2}|[kmbg]\b| (?:thousand|million|billion)\b)?)"
    r"(?![\d_]|\.\d|(?i:e[+\d]|[kmbg][a-z\d]?\b))"
)
"""A limit read a thousand times too small would be kept, so a number that goes on in letters is none."""

_PERIOD = r"(second|sec|s|minute|min|hour|day|month)"

_TOO_LARGE = re.compile(r"request too large", re.IGNORECASE)
_NEVER = re.compile(r"\blimit: 0(?![\d.])", re.IGNORECASE)
_LIMIT = re.compile(rf"\blimit(?:ed to| of| is|:| for this model is)? {_NUMBER}", re.IGNORECASE)
_LIMIT_AND_UNIT = re.compile(rf"{_LIMIT.pattern} (requests|calls|queries|tokens)\b", re.IGNORECASE)
_LIMIT_OF = re.compile(rf"\bof {_NUMBER} (?:[a-z]{{1,20}} ){{1,2}}per\b", re.IGNORECASE)
_USED = re.compile(rf"\b(?:Used|Current):? {_NUMBER}", re.IGNORECASE)
_REQUESTED = re.compile(rf"\bRequested:? ~?{_NUMBER}", re.IGNORECASE)
_UNIT_AND_PERIOD = re.compile(
    rf"\b(?:(input|output|prompt|completion) )?([a-z_]{{1,30}})(?: per | / )(?:(\d{{1,6}})[ -]?)?{_PERIOD}s?\b",
    re.IGNORECASE,
)
_BARE_PERIOD = re.compile(rf"(?:\bper[- ]| / ?)(\d{{1,6}})?{_PERIOD}s?\b", re.IGNORECASE)
_METRIC = re.compile(r"\bmetric: [\w./-]{0,200}_(requests|(?:(?:input|output)_)?token)", re.IGNORECASE)  # Gemini's
_SHORT = re.compile(r"\b(R|Q|IT|OT|T|I)P([SMHD])\b")
_NUMBER_SHORT = re.compile(rf"(?<![\d,.-]){_NUMBER} (?:R|Q|IT|OT|T|I)P[SMHD]\b|\b(?:R|Q|IT|OT|T|I)P[SMHD]: {_NUMBER}")
_NAMED = re.compile(  # not "Too many requests", nor "Requests rate limit exceeded": some say so of any limit
    r"\b(?:number of|per[ -](?:second|minute|hour|day)) (?:request )?(?:(input|output) )?(token|call|request)s?\b"
    r"|\bexceeded ()(token|call|request)s? rate limit|\blimit type: ()(token|request)s"
    r"|\b(?:(input|output) )?(token)s? rate limit|\b()(request)s? rate limiting|\btoo many ()(token)s",
    re.IGNORECASE,
)
_AT_ONCE = re.compile(
    r"concurren|simultaneous|parallel[ _]requests?\b|\bin[- ]flight\b|pending requests|并发", re.IGNORECASE
)
_AT_ONCE_NUMBER = re.compile(
    rf"(?:concurren\w{{1,5}}|simultaneous\w{{0,2}}|parallel[ _]requests)(?: (?:requests|connections|calls))?(?: limit)?"
    rf"(?:: | of | is | \()?{_NUMBER}"
    rf"|\b(?:limit|max|maximum)(?: of|:| is)? {_NUMBER}(?: (?:concurrent|simultaneous|parallel)|$)",
    re.IGNORECASE,
)
_MODEL = re.compile(
    r"\bfor (?:model )?`?([\w.:/-]{1,100})`?(?: \(for limit [\w.:/-]{1,100}\))? (?:in|on)\b|\bmodel: ([\w./-]{1,100})"
    r"|\bto this model ([\w.:/-]{1,100})|\band model ([\w.:/-]{1,100})"
)
_ORGANISATION = re.compile(
    r"\bin organization `?([\w{}-]{1,100})|\byour organization \(([\w-]{1,100})\)|\(org: ([\w-]{1,100})"
    r"|\bfor team ([\w-]{1,100})|\baccount (org[-_][\w-]{1,100})"
)
_OURS = re.compile(  # where an SDK's errors keep nothing but words
    r"\bwould have to wait [^;]{1,40} for (\w{1,60})[^;]{0,100}; max_wait is"
    r"|\b([\d.e+]{1,40}) (\w{1,60}) can never be granted: [^;]{1,150}? holds at most ([\d.e+]{1,40}) "
)
_QUOTA_UNIT = re.compile(r"InputTokens|OutputTokens|Tokens|Requests")
_QUOTA_PERIOD = re.compile(r"Per(Second|Minute|Hour|Day|Month)")

_AGAIN_IN = re.compile(
    r"(?:(?:try|retry)(?: again| your request)?[ _](?:in|after)|retry[-_ ]?(?:after|delay)(-ms)?"
    r"|(?<!would have to )\bwait(?: for)?"  # of ours, who say it exactly a sentence later
    r"|\bavailable(?: again)? in|\bresets? in)(?:\s*[:=]\s*|\s+)(?:about\s+)?(?=\d|\.\d|an?\s)",
    re.IGNORECASE,
)
_WORDED = re.compile(r"\s*(?:and\s+|,\s*)?(\d[\d,]*(?:\.\d+)*|\.\d+|an?(?=\s))\s*([a-zµμ]*)", re.IGNORECASE)
_BARE_ENDS = re.compile(r"\s*(?:[.,;!)]|$)")

_ALIKE = (("token", "tokens"), ("request", "requests"), ("req", "requests"), ("call", "requests"), ("quer", "requests"))
"""How the words begin that mean a unit of ours."""

_SHORT_UNITS = {"R": "requests", "Q": "requests", "T": "tokens", "I": "images"}
_SHORT_UNITS |= {"IT": "input_tokens", "OT": "output_tokens"}
_SHORT_PERIODS = {"S": 1.0, "M": 60.0, "H": 3_600.0, "D": 86_400.0}
_NO_UNITS = frozenset(("the", "a", "our", "your", "this", "limit", "limits", "is", "are", "quota", "exceeded"))

_UNITS = {
    **dict.fromkeys(("ms", "millisecond", "milliseconds"), Decimal("0.001")),
    **dict.fromkeys(("s", "sec", "secs", "second", "seconds"), Decimal(1)),
    **dict.fromkeys(("m", "min", "mins", "minute", "minutes"), Decimal(60)),
    **dict.fromkeys(("h", "hr", "hrs", "hour", "hours"), Decimal(3_600)),
    **dict.fromkeys(("d", "day", "days"), Decimal(86_400)),
}


def message_wait(message: str) -> float | None:
    """Seconds in "Please try again in 6ms", "… in 2m5.5s", "Please wait 23 seconds", "Retry after: 30".

    None: nothing of the kind.
    """
    message = message[:LONGEST]
    found = _AGAIN_IN.search(message)
    if found is None:
        return None
    step_of_bare = _UNITS["ms"] if found[1] else Decimal(1)
    at, seconds, known = found.end(), Decimal(0), False  # in binary, 950 ms would be a little more than 0.95 s
    while (part := _WORDED.match(message, at)) is not None:
        number, unit = part[1].replace(",", ""), part[2].lower()
        # Without a unit it is seconds, if nothing else follows: not "30 apples".
        bare = not unit and not known and _BARE_ENDS.match(message, part.end())
        step = step_of_bare if bare else _UNITS.get(unit)
        if step is None:  # the sentence goes on: "in 5 s or less"
            break
        try:
            seconds += (Decimal(1) if number[:1] in "aA" else Decimal(number)) * step
        except InvalidOperation:
            return None
        known, at = True, part.end()
    return float(seconds) if known and math.isfinite(seconds) else None


def never_fits(message: str) -> bool:
    """Whether no wait would do: "Request too large …: Limit 10000, Requested 11454", "limit: 0"."""
    if _TOO_LARGE.search(message) or _NEVER.search(message):
        return True
    limit, requested = _number_after(_LIMIT, message), _number_after(_REQUESTED, message)
    return limit is not None and requested is not None and requested > limit


def info_of(message: str) -> RateLimitInfo:
    """Which limit a message is about."""
    message = message[:LONGEST]
    ours = _OURS.search(message)
    if ours is not None:
        wait, requested, capacity = message_wait(message), _float(ours[2]), _float(ours[4])
        return RateLimitInfo(unit=ours[1] or ours[3], limit=capacity, requested=requested, wait=wait)
    unit, period = _unit_and_period(message)
    model, organisation = _MODEL.search(message), _ORGANISATION.search(message)
    limits = (_number_after(words, message) for words in (_LIMIT, _LIMIT_OF, _NUMBER_SHORT))
    counted = _LIMIT_AND_UNIT.search(message)
    if counted is not None:  # "a limit of 6 queries and 180000 tokens per minute"
        unit = _unit(None, counted[2])
    elif period is None and _AT_ONCE.search(message) and not _SHORT.search(message):
        unit = "in_flight"
        limits = (_number_after(words, message) for words in (_AT_ONCE_NUMBER, _LIMIT))
    return RateLimitInfo(
        unit=unit,
        period=period,
        limit=next((limit for limit in limits if limit is not None), None),
        current=_number_after(_USED, message),
        requested=_number_after(_REQUESTED, message),
        model=model[model.lastindex or 0].rstrip(".:") if model else None,
        organisation=organisation[organisation.lastindex or 0] if organisation else None,
        wait=message_wait(message),
    )


def quota_named(quota: str) -> tuple[str | None, float | None]:
    """Unit and period in the id of a quota of Gemini's, such as `GenerateRequestsPerMinutePerProjectPerModel`."""
    unit, period = _QUOTA_UNIT.search(quota), _QUOTA_PERIOD.search(quota)
    names = {"InputTokens": "input_tokens", "OutputTokens": "output_tokens"}
    return (
        names.get(unit[0], unit[0].lower()) if unit else None,
        _PERIODS[period[1].lower()] if period else None,
    )


def _unit_and_period(message: str) -> tuple[str | None, float | None]:
    """Both as one word pair tells them, or each for itself; of several units the one that is named first."""
    found = next((each for each in _UNIT_AND_PERIOD.finditer(message) if each[2].lower() not in _NO_UNITS), None)
    named = _NAMED.search(message)
    if found is not None and (named is None or found.start() <= named.start()):
        return _unit(found[1], found[2]), _PERIODS[found[4].lower()] * int(found[3] or 1)
    shorts = {each[0]: each for each in _SHORT.finditer(message)}
    short = next(iter(shorts.values())) if len(shorts) == 1 or (shorts and named) else None
    unit = None if short is None else _SHORT_UNITS[short[1]]
    period = _BARE_PERIOD.search(message)
    seconds = _PERIODS[period[2].lower()] * int(period[1] or 1) if period else None
    metric = _METRIC.search(message)
    if metric is not None:
        return metric[1].lower().replace("token", "tokens"), seconds
    if named is not None:
        unit = next(_unit(named[at - 1], named[at]) for at in range(2, 13, 2) if named[at])
    if short is not None and unit == _SHORT_UNITS[short[1]]:
        seconds = _SHORT_PERIODS[short[2]]
    return unit, seconds


def _unit(whose: str | None, word: str) -> str:
    """A unit in our words; a word that we have none for stays as it is."""
    begin = {"input": "input_", "prompt": "input_", "output": "output_", "completion": "output_"}
    word = word.lower()
    return begin.get((whose or "").lower(), "") + next((ours for start, ours in _ALIKE if word.startswith(start)), word)


def _float(text: str | None) -> float | None:
    try:
        return float(text or "")
    except ValueError:
        return None


def _number_after(words: re.Pattern[str], message: str) -> float | None:
    """The number that a message has after a word. As a float: there is no end to the digits that a server may send."""
    found = words.search(message)
    if found is None:
        return None
    written = found[found.lastindex or 0].replace(",", "").replace("_", "").lower()
    scale = next((name for name in _SCALES if written.endswith(name)), "")
    return float(written.removesuffix(scale)) * _SCALES.get(scale, 1.0)
