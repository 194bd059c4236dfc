"""The live picture of a run in a terminal, redrawn in place, over its whole width. `progress` decides what is shown."""

from __future__ import annotations

from typing import Self, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from penstock.runner.progress import View, span_words

__all__ = ["Rich", "picture", "redraws"]

REDRAW = 0.25
"""Seconds between two pictures."""


def redraws(file: TextIO) -> bool:
    """Whether a picture can be redrawn in place there: in a terminal, unless it can do no more than print."""
    return file.isatty() and not Console(file=file).is_dumb_terminal


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
        self._live.update(picture(seen), refresh=True)


def picture(seen: View) -> Group:
    """What a terminal shows, over its whole width."""
    head = Text(seen.numbers)
    if seen.paused:
        head.append(f", paused for {span_words(seen.paused)}", style="yellow")
    if seen.remaining_words:
        head.append(f", {seen.remaining_words}", style="bold")
    if seen.trouble:
        head.append(f"\n{seen.trouble}", style="red")
    table = Table.grid(padding=(0, 1), expand=True)
    table.add_column(no_wrap=True)
    table.add_column(ratio=1)
    table.add_column(no_wrap=True)
    table.add_row("rows", ProgressBar(total=seen.total, completed=seen.done), f"{seen.throughput:,.1f}/s")
    for one in seen.gauges():
        says = f"{one.per_minute:,.0f}/min, {one.share:.0%} of what is allowed"
        table.add_row(Text(one.name), ProgressBar(total=1.0, completed=one.share), says)
    if seen.sparkline:
        table.add_row("last minute", Text(seen.sparkline, no_wrap=True, overflow="crop"), "")
    parts: list[Text | Table] = [head, table]
    if seen.last_error and not seen.trouble:
        parts.append(Text(f"last error: {seen.last_error}", style="dim", no_wrap=True, overflow="ellipsis"))
    return Group(*parts)
