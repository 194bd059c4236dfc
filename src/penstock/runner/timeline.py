"""How a run went over time, in a bounded number of spans: what was sent, used, answered and refused in each.

A span is as long as the run needs it to be: when there are too many, two become one. So a run of a minute is seen
second by second, one of a week hour by hour, and memory is the same. Nothing is kept of a row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import anyio

from penstock import clock
from penstock.runner.group import Group
from penstock.runner.outage import ServerOutage
from penstock.runner.summary import Counts

__all__ = ["MOST_SPANS", "Span", "Timeline", "Watched"]

MOST_SPANS = 240
"""Spans that are kept; there are at least half as many in a long run."""

FIRST = 0.05
"""Seconds of a span at first."""

SLOWEST = 2.0
"""Seconds between two looks at most."""

MOST_LIMITS = 24
"""Limits that are told apart; where they are learned, there may be many."""

_ADDED = ("sent", "answered", "failed", "retries", "status_429", "dollars", "latency_sum")


class Watched(Protocol):
    """A run as a timeline looks at it."""

    @property
    def counts(self) -> Counts:
        """What happened so far."""
        ...

    @property
    def groups(self) -> Mapping[str, Group]:
        """The limits in use, by their name."""
        ...

    @property
    def outage(self) -> ServerOutage:
        """Whether the server is there."""
        ...


@dataclass(slots=True)
class Span:
    """What happened in a part of the run.

    Attributes:
        seconds: That were looked at.
        sent: Attempts that left.
        answered: Rows that were answered.
        failed: Rows that were given up.
        retries: Attempts beyond the first of their row.
        status_429: Answers with status 429.
        dollars: What the answers cost.
        latency_sum: Seconds that the attempts took which ended here.
        in_flight: The most requests that waited for their answer.
        paused: Seconds for which all rows waited because the server said so.
        away: Seconds for which the server could not be reached.
        spent: Units by (models, unit).
        promised: Units that a limit allows in that time, by (models, unit, limit).
    """

    seconds: float = 0.0
    sent: float = 0.0
    answered: float = 0.0
    failed: float = 0.0
    retries: float = 0.0
    status_429: float = 0.0
    dollars: float = 0.0
    latency_sum: float = 0.0
    in_flight: int = 0
    paused: float = 0.0
    away: float = 0.0
    spent: dict[tuple[str, str], float] = field(default_factory=dict)
    promised: dict[tuple[str, str, str], float] = field(default_factory=dict)

    def add(self, other: Span, share: float = 1.0) -> None:
        """Take a share of another span in."""
        for name in ("seconds", "paused", "away", *_ADDED):
            setattr(self, name, getattr(self, name) + share * getattr(other, name))
        self.in_flight = max(self.in_flight, other.in_flight)
        for mine, theirs in ((self.spent, other.spent), (self.promised, other.promised)):
            _add(mine, theirs, share)


class Timeline:
    """The spans of a run, from its beginning on.

    Attributes:
        width: Seconds of a span.
        spans: They, without a gap.
    """

    def __init__(self) -> None:
        self.width: float = FIRST
        self.spans: list[Span] = []
        self._at: float | None = None
        self._before: dict[str, float] = dict.fromkeys(_ADDED, 0.0)
        self._spent: dict[tuple[str, str], float] = {}
        self._limits: set[tuple[str, str, str]] = set()

    async def follow(self, run: Watched) -> None:
        """Look at a run until cancelled."""
        while True:
            self.look(run)
            await anyio.sleep(min(self.width, SLOWEST))

    def look(self, run: Watched) -> None:
        """Put what happened since the last look where it belongs."""
        counts, now = run.counts, clock.now()
        since = counts.began if self._at is None else self._at
        span = Span(seconds=max(0.0, now - since), in_flight=counts.in_flight)
        self._at = now
        for name in _ADDED:
            value = float(getattr(counts, name))
            setattr(span, name, value - self._before[name])
            self._before[name] = value
        self._look_at_limits(run, span)
        span.away = span.seconds if run.outage.since is not None else 0.0
        self._put(since - counts.began, now - counts.began, span)

    def _look_at_limits(self, run: Watched, span: Span) -> None:
        for key, units in run.counts.spent.items():
            span.spent[key] = units - self._spent.get(key, 0.0)
            self._spent[key] = units
        paused = 0.0
        for name, group in run.groups.items():
            paused = max(paused, group.endpoint.limiter.statistics().paused_for)
            for unit, rates in group.limits.items():
                for rate in rates:
                    limit = (name, unit, str(rate))
                    if limit in self._limits or len(self._limits) < MOST_LIMITS:
                        self._limits.add(limit)
                        span.promised[limit] = rate.rate * span.seconds
        span.paused = span.seconds if paused > 0 else 0.0

    def _put(self, since: float, until: float, span: Span) -> None:
        """Add to the spans that a time falls into, evenly; make spans longer until there are few enough."""
        while until >= self.width * MOST_SPANS:
            self.width *= 2
            spans, self.spans = self.spans, []
            for number, old in enumerate(spans):
                if number % 2:
                    self.spans[-1].add(old)
                else:
                    self.spans.append(old)
        first, last = int(max(0.0, since) / self.width), int(max(0.0, until) / self.width)
        while len(self.spans) <= last:
            self.spans.append(Span())
        for number in range(first, last + 1):
            begin, end = max(since, number * self.width), min(until, (number + 1) * self.width)
            share = (end - begin) / (until - since) if first < last else 1.0
            if share > 0:
                self.spans[number].add(span, share)

    def limits(self) -> Iterator[tuple[tuple[str, str, str], list[float | None]]]:
        """Each limit with the share of its rate that was used in each span; None: it was not looked at then."""
        for name, unit, limit in sorted(self._limits):
            shares = [
                span.spent.get((name, unit), 0.0) / promised
                if (promised := span.promised.get((name, unit, limit)))
                else None
                for span in self.spans
            ]
            yield (name, unit, limit), shares

    def total(self) -> Counts:
        """The sums of all spans, as far as they are sums."""
        counts = Counts()
        for name in ("sent", "answered", "failed", "retries", "status_429"):
            setattr(counts, name, round(sum(getattr(span, name) for span in self.spans)))
        for span in self.spans:
            _add(counts.spent, span.spent)
        return counts


def _add(mine: dict[Any, float], theirs: Mapping[Any, float], share: float = 1.0) -> None:
    for key, value in theirs.items():
        mine[key] = mine.get(key, 0.0) + share * value
