"""A look at this moment: the last minutes in a ledger, and how full the limits in a shared store are.

Drawing it is up to its caller.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from penstock._core.decision import decide
from penstock._core.rows import DamagedRow
from penstock._numbers import show
from penstock.errors import StoreError
from penstock.limits import Limit
from penstock.stores.contract import Row, Store, Terms
from penstock.usage.caps import ANYTHING, NOTHING
from penstock.usage.history import History, Totals

_MOST = 1_000
"""Names of a store that are looked at."""

_TREND = 20
"""Minutes of the past that are shown."""


@dataclass(frozen=True, slots=True)
class Gauge:
    """One limit, and how much of it is used.

    Attributes:
        name: Of the limiter, or the model.
        unit, limit: What is counted; as it is written.
        used: Units that are taken now.
        capacity: The most that can be taken at once.
        paused: Seconds for which no call gets through.
    """

    name: str
    unit: str
    limit: str
    used: float
    capacity: float
    paused: float = 0.0


@dataclass(frozen=True, slots=True)
class Now:
    """What was sent to a model, or by a limiter, in the last minute.

    Attributes:
        subject: Which.
        totals: Of the last minute.
        gauges: Its limits, and what of them was used in that minute.
        trend: Tokens in each of the last 20 minutes, or requests where no tokens are counted, the earliest first.
        users: The users with most requests in the last minute, and how many.
    """

    subject: str
    totals: Totals
    gauges: tuple[Gauge, ...]
    trend: tuple[float, ...]


def now_in(history: History, now: float) -> list[Now]:
    """What a ledger has of the last minute and the 20 before it, per model or limiter."""
    found = []
    this_minute = now // 60 * 60
    for subject in history.totals_by("subject", now - 60 * _TREND, now):
        totals = history.totals(now - 60, now, subject=subject)
        used = {"requests": totals.requests, "tokens": totals.tokens}
        gauges = tuple(
            Gauge(subject, unit, str(limit), used[unit], 60 * limit.amount / limit.per)
            for unit, kinds in history.limits(subject).items()
            for limit in kinds
            if unit in used and limit.per <= 60
        )
        by_minute = {minute.at: minute for minute in history.minutes(subject, now - 60 * _TREND, now)}
        has_tokens = any(minute.tokens for minute in by_minute.values())
        trend = []
        for ago in range(_TREND - 1, -1, -1):
            minute = by_minute.get(this_minute - 60 * ago)
            trend.append(0.0 if minute is None else minute.tokens if has_tokens else minute.requests)
        found.append(Now(subject, totals, gauges, tuple(trend)))
    return found


def gauges_in(store: Store) -> list[Gauge]:
    """How full each limit in a store is; what is kept there of other things is passed over. Blocks.

    Raises:
        StoreError: It cannot be read.
    """
    return [gauge for name in store.names("")[:_MOST] for gauge in _gauges_of(store, name)]


def _gauges_of(store: Store, name: str) -> Sequence[Gauge]:
    found: list[Gauge] = []

    def look(rows: list[Row | None], now: float) -> list[None]:
        (row,) = rows
        found.clear()
        if row is None:
            return [None]
        try:
            terms = Terms.of_text(name, row[0], store.place_ttl)
            states = decide([row[1]], [terms.numbers(now)], (), 0.0, now).states
        except (StoreError, DamagedRow):
            return [None]  # no limits: the caps of quotas, for example
        each: list[tuple[str, Limit]] = [(unit, limit) for unit, kinds in terms.limits.items() for limit in kinds]
        for index, (unit, limit) in enumerate(each):
            pause, used = states[3 * index], states[3 * index + 1]
            capacity, text = getattr(limit, "burst", limit.capacity), str(limit)
            if capacity == NOTHING:  # a user's cap of 0
                capacity, text = 0.0, "0" + text.removeprefix(show(NOTHING))
            if capacity != ANYTHING:  # a user without a cap
                found.append(Gauge(name, unit, text, used, capacity, pause))
        return [None]

    store.exchange([name], look)  # type: ignore[arg-type]  # it writes nothing
    return found
