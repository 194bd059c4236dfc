"""What is seen while a run goes on.

A live picture in a terminal (`screen`), a plain line now and then elsewhere, events for programs.

Only reads the run; nothing here can change or slow it but by the time it takes to draw, four times a second.
"""

from __future__ import annotations

import json
from collections import deque
from typing import Any, NamedTuple, Protocol, TextIO

import anyio
import anyio.to_thread

from penstock import clock
from penstock._numbers import show_dollars
from penstock._text import visible
from penstock.runner.engine import Run
from penstock.runner.formats import FormatError
from penstock.runner.source import Lines

__all__ = ["Display", "Events", "Gauge", "Plain", "View", "count_rows", "follow", "span_words"]

SPEAK = 10.0
"""Seconds between two plain lines."""

TELL = 1.0
"""Seconds between two events."""

_SPAN = 10.0  # seconds over which rates are shown
_BARS = "▁▂▃▄▅▆▇█"
_REMEMBERED = 60  # seconds of throughput that are drawn


class Gauge(NamedTuple):
    """How much of a limit is used.

    Attributes:
        name: Its unit, and the models that it is for.
        per_minute: Units that were sent, over the last seconds.
        share: Of all that the limit allowed in those seconds, what was left of its burst included: 0 to 1.
    """

    name: str
    per_minute: float
    share: float


class _Look(NamedTuple):
    """What was spent and done by a moment, and what every limit held then, by group and unit."""

    at: float
    spent: dict[tuple[str, str], float]
    done: int
    levels: dict[tuple[str, str], list[float]]


class Display(Protocol):
    """Where progress is shown."""

    every: float
    """Seconds between two calls of `show`."""

    def show(self, seen: View) -> None:
        """Show how things are now."""


class View:
    """A run as it is shown: what is done, how fast, how long still."""

    def __init__(self, run: Run, lines: Lines) -> None:
        self._run = run
        self._lines = lines
        self.total: int | None = None
        self._history: deque[_Look] = deque()
        self._throughput: deque[float] = deque(maxlen=_REMEMBERED)
        self._second: tuple[float, int] | None = None

    def count(self, rows: int | None) -> None:
        """Take in how many rows the file has."""
        self.total = None if rows is None else self._run.rows_of(rows)

    def look(self) -> None:
        """Remember how much was spent and done until now, for the rates."""
        now, levels = clock.now(), dict[tuple[str, str], list[float]]()
        for group in self._run.groups.values():
            for one in group.endpoint.levels():
                levels.setdefault((group.name, one.unit), []).append(one.level)
        self._history.append(_Look(now, dict(self._run.counts.spent), self.done, levels))
        while len(self._history) > 2 and self._history[1].at < now - _SPAN:
            self._history.popleft()
        if self._second is None or now - self._second[0] >= 1.0:
            if self._second is not None:
                self._throughput.append((self.done - self._second[1]) / (now - self._second[0]))
            self._second = now, self.done

    @property
    def done(self) -> int:
        """Rows that are answered, failed or skipped."""
        counts = self._run.counts
        return counts.answered + counts.failed + counts.skipped

    @property
    def begun(self) -> bool:
        """Whether there is anything to tell: where nothing gets through, that is."""
        return self.done > 0 or self._run.counts.sent > 0 or bool(self.trouble)

    @property
    def waiting(self) -> int:
        """Rows that were read and wait: for their turn, or for their next attempt."""
        counts = self._run.counts
        return max(0, counts.rows - counts.left_out - self.done - counts.in_flight)

    @property
    def numbers(self) -> str:
        """What is counted, in words."""
        counts = self._run.counts
        words = [f"{self.done:,} of {self.total:,}" if self.total else f"{self.done:,} done"]
        words += [f"{counts.failed:,} failed"] if counts.failed else []
        words += [f"{counts.in_flight:,} in flight", f"{self.waiting:,} waiting", f"{counts.status_429:,} × 429"]
        words += [f"{counts.retries:,} sent again"] if counts.retries else []
        words += [show_dollars(counts.dollars)] if counts.dollars else []
        return ", ".join(words)

    @property
    def paused(self) -> float:
        """Seconds for which all rows wait because the server said so."""
        return max((group.endpoint.limiter.statistics().paused_for for group in self._run.groups.values()), default=0.0)

    @property
    def trouble(self) -> str:
        """Why nothing gets through, where it is the server; else nothing."""
        outage = self._run.outage
        if outage.since is None:
            return ""
        return (
            f"the server is away for {span_words(clock.now() - outage.since)}: {outage.reason}; "
            f"tried again in {span_words(outage.next_probe)}"
        )

    def gauges(self) -> list[Gauge]:
        """How much of each unit's limits was used, over the last seconds."""
        first, last = self._history[0], self._history[-1]
        span = last.at - first.at
        if span <= 0:
            return []
        found = []
        for group in self._run.groups.values():
            for unit, rates in group.limits.items():
                key = group.name, unit
                spent = last.spent.get(key, 0.0) - first.spent.get(key, 0.0)
                held = first.levels.get(key, [rate.burst for rate in rates])
                allowed = min(level + rate.rate * span for level, rate in zip(held, rates, strict=False))
                name = f"{unit} of {group.name}" if group.name else unit
                share = 1.0 if allowed <= spent else spent / allowed
                found.append(Gauge(name, spent / span * 60, share))
        return found

    @property
    def throughput(self) -> float:
        """Rows that were done each second, over the last seconds."""
        first, last = self._history[0], self._history[-1]
        return (last.done - first.done) / (last.at - first.at) if last.at > first.at else 0.0

    @property
    def sparkline(self) -> str:
        """The same for each second of the last minute, as bars."""
        highest = max(self._throughput, default=0.0)
        return "".join(_BARS[round(value / highest * 7)] if highest else _BARS[0] for value in self._throughput)

    def remaining(self) -> tuple[float, float] | None:
        """Seconds that the rest will take: at least (by the limits), at most (at the latest pace); None: unknown.

        It is unknown before the first answer, and while the server is away.
        """
        least = self.left()
        if least is None or self.total is None or not self._run.counts.latency_sum or self.trouble:
            return None
        rest, pace = max(0, self.total - self.done), self.throughput
        return least, max(least, rest / pace) if pace else least

    @property
    def remaining_words(self) -> str:
        """The same in words; nothing where it is unknown."""
        both = self.remaining()
        if both is None:
            return ""
        least, most = both
        if most <= 1.2 * least + 3:
            return f"{span_words(least)} left"
        return f"{span_words(least)} to {span_words(most)} left"

    @property
    def last_error(self) -> str:
        """What went wrong last, in words and on one line."""
        return visible(" ".join(self._run.last_error.split()))

    def as_event(self) -> dict[str, Any]:
        """All of it, for programs."""
        counts, left = self._run.counts, self.remaining()
        return {
            "event": "progress",
            "seconds": round(clock.now() - counts.began, 3),
            "done": self.done,
            "total": self.total,
            "answered": counts.answered,
            "failed": counts.failed,
            "skipped": counts.skipped,
            "in_flight": counts.in_flight,
            "waiting": self.waiting,
            "status_429": counts.status_429,
            "retries": counts.retries,
            "dollars": round(counts.dollars, 6),
            "paused": round(self.paused, 3),
            "left": None if left is None else [round(seconds, 1) for seconds in left],
            "limits": [{**one._asdict(), "share": round(one.share, 4)} for one in self.gauges()],
            "trouble": self.trouble or None,
            "last_error": self.last_error or None,
        }

    def left(self) -> float | None:
        """Seconds that the rest will take; None: unknown.

        The rest costs per row what the rows until now cost, and goes as fast as the limit that takes longest lets it.
        """
        counts = self._run.counts
        sent = counts.sent - counts.retries
        if self.total is None or not sent:
            return None
        rest = max(0, self.total - self.done - counts.in_flight)
        by_limits = max(
            (
                (rest * counts.work.get((group.name, level.unit), 0.0) / sent - level.level) / level.rate
                for group in self._run.groups.values()
                for level in group.levels()
            ),
            default=0.0,
        )
        latency = counts.latency_sum / max(1, counts.sent - counts.in_flight)
        return (self.paused if rest else 0.0) + max(0.0, by_limits, rest * latency / self._run.concurrency) + latency


async def follow(run: Run, lines: Lines, display: Display) -> None:
    """Show the run until cancelled, or until its terminal is gone: that is no reason to end the run."""
    view = View(run, lines)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_count, view, lines)
        while True:
            view.look()
            try:
                display.show(view)
            except (OSError, ValueError):  # closed, or a name that this terminal cannot write
                break
            await anyio.sleep(display.every)


async def _count(view: View, lines: Lines) -> None:
    found = await anyio.to_thread.run_sync(count_rows, lines, abandon_on_cancel=True)
    view.count(found)


def count_rows(lines: Lines) -> int | None:
    """The rows of a regular file; of plain lines all of them, its last one whether it ends or not; None for pipes."""
    if not lines.is_regular:
        return None
    if not lines.is_plain:
        try:
            return sum(1 for _ in lines.again())
        except FormatError:  # the run says so when it comes there
            return None
    count, last = 0, b"\n"
    for chunk in lines.chunks():
        count += chunk.count(b"\n")
        last = chunk[-1:]
    return count + (last != b"\n")


class Plain:
    """A line now and then, for logs."""

    every = SPEAK

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def show(self, seen: View) -> None:
        """Print a line; nothing before there is something to say."""
        if not seen.begun:
            return
        gauges = "; ".join(f"{one.name} {one.per_minute:,.0f}/min ({one.share:.0%})" for one in seen.gauges())
        paused = f"paused for {span_words(seen.paused)}" if seen.paused else ""
        error = f"last error: {seen.last_error[:200]}" if seen.last_error and not seen.trouble else ""
        words = [seen.numbers, seen.trouble, paused, gauges, seen.remaining_words, error]
        self._file.write("penstock: " + "; ".join(filter(None, words)) + "\n")
        self._file.flush()


class Events:
    """One JSON object a line, for programs."""

    every = TELL

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def show(self, seen: View) -> None:
        """Write an event."""
        self.tell(seen.as_event())

    def tell(self, event: dict[str, Any]) -> None:
        """Write an event of another kind."""
        self._file.write(json.dumps(event) + "\n")
        self._file.flush()


def span_words(seconds: float) -> str:
    """3.2 s, 1:05 min, 2:03:04 h."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02} h" if hours else f"{minutes}:{rest:02} min"
