"""What a person sees while a run goes on: a live display in a terminal, a plain line now and then elsewhere.

Only reads the run; nothing here can change or slow it but by the time it takes to draw, four times a second.
"""

from __future__ import annotations

from typing import Protocol, Self, TextIO

import anyio
import anyio.to_thread
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from penstock import clock
from penstock.runner.engine import Run
from penstock.runner.source import Lines

__all__ = ["Display", "Plain", "Rich", "count_lines", "follow", "redraws"]

REDRAW = 0.25
"""Seconds between two pictures."""

SPEAK = 10.0
"""Seconds between two plain lines."""

_SPAN = 10.0  # seconds over which rates are shown


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
        self._history: list[tuple[float, dict[tuple[str, str], float]]] = []

    def look(self) -> None:
        """Remember how much was spent until now, for the rates."""
        self._history.append((clock.now(), dict(self._run.counts.spent)))
        while len(self._history) > 2 and self._history[1][0] < clock.now() - _SPAN:
            del self._history[0]

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
    def numbers(self) -> str:
        """What is counted, in words."""
        counts = self._run.counts
        words = [f"{self.done:,} of {self.total:,}" if self.total else f"{self.done:,} done"]
        words += [f"{counts.failed:,} failed"] if counts.failed else []
        # For their turn, or for their next attempt.
        waiting = max(0, counts.rows - self.done - counts.in_flight)
        words += [f"{counts.in_flight:,} in flight", f"{waiting:,} waiting", f"{counts.status_429:,} × 429"]
        words += [f"{counts.retries:,} sent again"] if counts.retries else []
        return ", ".join(words)

    @property
    def paused(self) -> float:
        """Seconds for which everybody waits because the server said so."""
        return max((group.endpoint.limiter.statistics().paused_for for group in self._run.groups.values()), default=0.0)

    @property
    def trouble(self) -> str:
        """Why nothing gets through, where it is the server; else nothing."""
        outage = self._run.outage
        if outage.since is None:
            return ""
        return (
            f"the server is away for {_span(clock.now() - outage.since)}: {outage.reason}; "
            f"tried again in {_span(outage.next_probe)}"
        )

    def rates(self) -> list[tuple[str, float, float]]:
        """(limit, units per second now, share of the limit's own rate), over the last seconds."""
        (begin, before), (end, now) = self._history[0], self._history[-1]
        span = end - begin
        if span <= 0:
            return []
        return [
            (
                f"{unit} of {group.name}" if group.name else unit,
                (spent := (now.get((group.name, unit), 0.0) - before.get((group.name, unit), 0.0)) / span) * 60,
                spent / min(rate.rate for rate in rates),
            )
            for group in self._run.groups.values()
            for unit, rates in group.limits.items()
        ]

    def left(self) -> float | None:
        """Seconds that the rest will take; None: nobody knows.

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
    """Show the run until cancelled, or until nobody can see it any more: a terminal that is gone is no reason to end."""
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
    view.total = await anyio.to_thread.run_sync(count_lines, lines, abandon_on_cancel=True)


def count_lines(lines: Lines) -> int | None:
    """The lines of a regular file, its last one whether it ends or not; None for pipes. Looks for nothing else in it."""
    if not lines.is_regular:
        return None
    count, last = 0, b"\n"
    for chunk in lines.chunks():
        count += chunk.count(b"\n")
        last = chunk[-1:]
    return count + (last != b"\n")


def redraws(file: TextIO) -> bool:
    """Whether a picture can be redrawn in place there: in a terminal, unless it can do no more than print."""
    return file.isatty() and not Console(file=file).is_dumb_terminal


class Plain:
    """A line now and then, for logs."""

    every = SPEAK

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def show(self, seen: View) -> None:
        """Print a line; nothing before there is something to say."""
        if not seen.begun:
            return
        left = seen.left()
        rates = "; ".join(f"{name} {rate:,.0f}/min ({share:.0%})" for name, rate, share in seen.rates())
        paused = f"paused for {_span(seen.paused)}" if seen.paused else ""
        words = [seen.numbers, seen.trouble, paused, rates, "" if left is None else f"{_span(left)} left"]
        self._file.write("penstock: " + "; ".join(filter(None, words)) + "\n")
        self._file.flush()


class Rich:
    """A picture in a terminal that is redrawn in place; a context manager."""

    every = REDRAW

    def __init__(self, file: TextIO) -> None:
        self._live = Live(console=Console(file=file), auto_refresh=False, transient=True)

    def __enter__(self) -> Self:
        self._live.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        try:
            self._live.__exit__(None, None, None)
        except OSError:
            return  # the terminal is gone

    def show(self, seen: View) -> None:
        """Draw."""
        left = seen.left()
        head = Text(seen.numbers)
        if seen.paused:
            head.append(f", paused for {_span(seen.paused)}", style="yellow")
        if left is not None:
            head.append(f", {_span(left)} left", style="bold")
        if seen.trouble:
            head.append(f"\n{seen.trouble}", style="red")
        table = Table.grid(padding=(0, 1))
        table.add_row("rows", ProgressBar(total=seen.total, completed=seen.done, width=30), "")
        for name, rate, share in seen.rates():
            table.add_row(
                Text(name),
                ProgressBar(total=1.0, completed=min(1.0, share), width=30),
                f"{rate:,.0f}/min, {share:.0%} of its rate",
            )
        self._live.update(Group(head, table), refresh=True)


def _span(seconds: float) -> str:
    """3.2 s, 1:05 min, 2:03:04 h."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02} h" if hours else f"{minutes}:{rest:02} min"
