"""Evidence for higher limits, from a ledger, in the figures that services ask for.

Pure but for the ledger that it reads.

A minute is *active* if something was sent in it; percentiles are over active minutes, as nights would hide every peak.
Business days are Monday to Friday, of the time zone that is asked for.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from zoneinfo import ZoneInfo

from penstock.limits import Rate
from penstock.llm.prices import Price
from penstock.usage.history import History, Minute, Totals

BUSINESS_DAYS = 10
NEAR = 0.9
"""Part of a limit from which on it is as good as reached."""

_COUNTED = ("requests", "tokens")
"""Units of which a ledger knows each minute."""

AHEAD = (4, 8, 12)
"""Weeks for which peaks are projected."""


@dataclass(frozen=True, slots=True)
class Spread:
    """Units per minute, over active minutes: the median, the 95th percentile (nearest rank), the most."""

    p50: float
    p95: float
    most: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """The spread of some values; zeros if there are none."""
        ordered = sorted(values)
        if not ordered:
            return cls(0.0, 0.0, 0.0)
        return cls(*(ordered[max(0, math.ceil(part * len(ordered)) - 1)] for part in (0.5, 0.95, 1.0)))


@dataclass(frozen=True, slots=True)
class NearLimit:
    """How often a limit was as good as reached.

    Attributes:
        unit, limit: Which.
        minutes: Active minutes at whose end 90 % of it or more were used.
    """

    unit: str
    limit: Rate
    minutes: int


@dataclass(frozen=True, slots=True)
class Day:
    """One day: its totals and its busiest minutes."""

    day: date
    totals: Totals
    requests: Spread
    tokens: Spread


@dataclass(frozen=True, slots=True)
class Projection:
    """What the busiest minute becomes if use grows on as it did.

    Attributes:
        unit: Of the limit.
        growth: Factor by which use grows a week; 1: it does not.
        peaks: (weeks from now, units in the busiest minute).
        reached_in: Weeks until the busiest minute takes all of the limit; 0: it does now; `inf`: never; None: no limit
            is known.
    """

    unit: str
    growth: float
    peaks: tuple[tuple[int, float], ...]
    reached_in: float | None


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known of one model, or limiter.

    Attributes:
        subject: Its name.
        since, until: The first call and the last, in seconds since 1970.
        totals: Of all calls.
        minutes: Those that were active.
        requests, tokens: Per active minute.
        limits: As they were told last, or given, per unit.
        near: Per limit, the minutes at 90 % of it or more.
        days: The last ten business days, the earliest first; fewer where the ledger, or `since`, begins later.
        projections: For requests and tokens; empty: fewer than ten business days were recorded.
        price: Dollars a token; None: unknown.
        hour: Dollars that an hour at the full token limit costs, all as input and all as output; None: no limit or
            price is known.
        dropped: Events of the whole ledger that are missing.
    """

    subject: str
    since: float
    until: float
    totals: Totals
    minutes: tuple[Minute, ...]
    requests: Spread
    tokens: Spread
    limits: Mapping[str, tuple[Rate, ...]]
    near: tuple[NearLimit, ...]
    days: tuple[Day, ...]
    projections: tuple[Projection, ...]
    price: Price | None
    hour: tuple[float, float] | None
    dropped: int

    def dollars(self, totals: Totals) -> float | None:
        """What calls cost, those that the ledger has no price for by `price`; None: it is not known of all of them."""
        if self.price is not None:
            return totals.dollars + totals.unpriced * self.price.input
        return None if totals.unpriced or (totals.calls and not totals.dollars) else totals.dollars


def evidence_of(
    history: History,
    subject: str,
    *,
    since: float | None = None,
    until: float | None = None,
    tz: str = "UTC",
    limits: Mapping[str, Sequence[Rate]] | None = None,
    price: Price | None = None,
    growth: float | None = None,
) -> Evidence:
    """What a ledger says of a model, or limiter.

    Args:
        history: The ledger.
        subject: Which model, or limiter.
        since, until: Moments that bound what is looked at, in seconds since 1970.
        tz: The time zone of days.
        limits: Per unit; None: as they were told last.
        price: Dollars a token; None: unknown.
        growth: Factor by which use grows a week; None: as it grew from the first five business days of ten to the last
            five.
    """
    zone = ZoneInfo(tz)
    minutes = tuple(history.minutes(subject, since, until))
    known = {unit: tuple(kinds) for unit, kinds in (history.limits(subject) if limits is None else limits).items()}
    first = minutes[0].at if minutes else (since or 0.0)
    last = minutes[-1].at + 60 if minutes else first
    days = tuple(_days(history, subject, minutes, zone, since, until))
    requests, tokens = _spreads(minutes)
    return Evidence(
        subject=subject,
        since=first,
        until=last,
        totals=history.totals(since, until, subject=subject),
        minutes=minutes,
        requests=requests,
        tokens=tokens,
        limits=known,
        near=tuple(
            _near(unit, limit, minutes) for unit, kinds in sorted(known.items()) for limit in kinds if unit in _COUNTED
        ),
        days=days,
        projections=tuple(_projections(minutes, days, known, growth, zone)),
        price=price,
        hour=_hour(known, price),
        dropped=history.dropped(since, until),
    )


def _spreads(minutes: Sequence[Minute]) -> tuple[Spread, Spread]:
    return Spread.of(minute.requests for minute in minutes), Spread.of(minute.tokens for minute in minutes)


def at_most(limits: Mapping[str, Sequence[Rate]], unit: str) -> float | None:
    """Units a minute that the tightest limit of a unit allows; None: no limit is known."""
    return min((60 * limit.amount / limit.per for limit in limits.get(unit, ())), default=None)


def _near(unit: str, limit: Rate, minutes: Sequence[Minute]) -> NearLimit:
    """Count the minutes at whose end nearly all of a limit was used in the time that it is for, a minute at least."""
    span = max(60.0, limit.per)
    enough = NEAR * limit.amount * span / limit.per
    window: deque[tuple[float, float]] = deque()
    used, count = 0.0, 0
    for minute in minutes:
        amount = minute.requests if unit == "requests" else minute.tokens
        window.append((minute.at, amount))
        used += amount
        while window[0][0] <= minute.at - span:
            used -= window.popleft()[1]
        count += used >= enough * (1 - 1e-9)
    return NearLimit(unit, limit, count)


def _days(
    history: History, subject: str, minutes: Sequence[Minute], zone: ZoneInfo, since: float | None, until: float | None
) -> Iterable[Day]:
    """The last ten business days, up to that of the last call, as far as the ledger goes back."""
    recorded = history.span()
    if not minutes or recorded is None:
        return
    first = max(recorded[0], since or recorded[0])
    day = datetime.fromtimestamp(minutes[-1].at, zone).date()
    wanted: list[tuple[date, float, float]] = []
    while len(wanted) < BUSINESS_DAYS:
        begin, end = (datetime.combine(day + timedelta(days=more), time(), zone).timestamp() for more in (0, 1))
        if end <= first:
            break
        if day.weekday() < 5 and begin < end:  # a day that a country left out has no length
            wanted.append((day, max(begin, first), min(end, until or end)))
        day -= timedelta(days=1)
    for one, begin, end in reversed(wanted):
        mine = [minute for minute in minutes if begin - 60 < minute.at < end]
        yield Day(one, history.totals(begin, end, subject=subject), *_spreads(mine))


def _projections(
    minutes: Sequence[Minute],
    days: Sequence[Day],
    limits: Mapping[str, Sequence[Rate]],
    growth: float | None,
    zone: ZoneInfo,
) -> Iterable[Projection]:
    is_short = len(days) < BUSINESS_DAYS or datetime.fromtimestamp(minutes[0].at, zone).date() > days[0].day
    if not minutes or (growth is None and is_short):
        return
    half = BUSINESS_DAYS // 2
    for unit, spread in zip(_COUNTED, _spreads(minutes), strict=True):
        used = [getattr(day.totals, unit) for day in days]
        before, after = sum(used[:half]), sum(used[half:])
        weekly = growth if growth is not None else after / before if before > 0 and after > 0 else None
        if weekly is None or spread.most <= 0:
            continue
        most = at_most(limits, unit)
        peaks = tuple((weeks, spread.most * weekly**weeks) for weeks in AHEAD)
        yield Projection(unit, weekly, peaks, None if most is None else _weeks_until(spread.most, most, weekly))


def _weeks_until(peak: float, limit: float, weekly: float) -> float:
    if peak >= limit:
        return 0.0
    return math.log(limit / peak) / math.log(weekly) if weekly > 1 else math.inf


def _hour(limits: Mapping[str, Sequence[Rate]], price: Price | None) -> tuple[float, float] | None:
    most = at_most(limits, "tokens")
    if most is None or price is None:
        return None
    return hour_at_most(most, price.input), hour_at_most(most, price.output or price.input)


def hour_at_most(tokens_a_minute: float, dollars_a_token: float) -> float:
    """Dollars that an hour at the full limit costs: 325,000 tokens a minute at $0.02 per 1,000 are $390."""
    return tokens_a_minute * 60 * dollars_a_token
