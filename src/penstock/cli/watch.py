"""`penstock watch`: show a ledger or the limits of a shared store, again and again.

`usage.live` reads what is shown.
"""

from __future__ import annotations

import html
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from penstock import clock
from penstock._text import visible
from penstock.cli.files import check_place, is_part_of
from penstock.cli.frame import app
from penstock.cli.terminal import Fault, say, table, write
from penstock.runner.files import write_beside
from penstock.stores import RedisStore, SQLiteStore, Store
from penstock.stores._redis_url import Address, is_address
from penstock.usage import History
from penstock.usage.live import Gauge, Now, gauges_in, now_in
from penstock.usage.words import counted, lasting

__all__ = ["screen_of_ledger", "screen_of_store", "watch"]

_STORE = 0x70656E73
"""`application_id` of a SQLiteStore's file."""

_BARS = "▁▂▃▄▅▆▇█"


@app.command("watch")
def watch(
    where: Annotated[str, typer.Argument(metavar="WHERE", help="A ledger's file, a SQLiteStore's file, or redis://….")],
    every: Annotated[
        float, typer.Option(min=0.1, max=3600, metavar="SECONDS", help="Seconds between two readings.")
    ] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="Read once, and end.")] = False,
    page: Annotated[
        Path | None, typer.Option(metavar="HTML", help="Write an HTML page that reloads itself in a browser.")
    ] = None,
) -> int:
    """Show what was sent in the last minute and how full each limit is, until Ctrl-C. Plain lines if piped."""
    if page is not None:
        check_place(page, "--page")
        if is_part_of(page, Path(where.removeprefix("sqlite:"))):
            raise Fault(f"{page} is what is watched: write the page somewhere else")
    with _looks(where) as look:
        try:
            if page is not None:
                _in_page(look, every, page, where, once=once)
            elif once or not sys.stdout.isatty():
                _in_lines(look, every, once=once)
            else:
                _on_screen(look, every)
        except KeyboardInterrupt:
            return 0
    return 0


def _in_lines(look: Callable[[int], str], every: float, *, once: bool) -> None:
    while True:
        write(f"{datetime.now().astimezone():%Y-%m-%d %H:%M:%S %Z}\n{look(120)}")
        if once:
            return
        time.sleep(every)


_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>penstock watch</title><link rel="icon" href="data:,">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
{again}<style>:root{{color-scheme:light dark}}body{{margin:2rem}}pre{{font:14px/1.4 ui-monospace,monospace}}</style>
</head><body><pre>{text}</pre></body></html>
"""


def _in_page(look: Callable[[int], str], every: float, page: Path, where: str, *, once: bool) -> None:
    """Write the screen as a page without a script, again and again; a browser that shows it reads it again as often."""
    again = "" if once else f'<meta http-equiv="refresh" content="{max(1, round(every))}">\n'
    name = Address(where).shown if is_address(where) else where
    while True:
        text = f"{name}, {datetime.now().astimezone():%Y-%m-%d %H:%M:%S %Z}\n\n{look(120)}"
        write_beside(page, _PAGE.format(again=again, text=html.escape(text)).encode("utf-8", "replace"))
        if once:
            say(f"written to {page}")
            return
        time.sleep(every)


def _on_screen(look: Callable[[int], str], every: float) -> None:
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console = Console()
    with Live(console=console, auto_refresh=False, screen=False) as live:
        while True:
            live.update(Text(look(console.width), no_wrap=True, overflow="ellipsis"), refresh=True)
            time.sleep(every)


@contextmanager
def _looks(where: str) -> Iterator[Callable[[int], str]]:
    """A function that says how things stand there now, as wide as it is told.

    Raises:
        Fault: There is nothing that can be watched.
    """
    with ExitStack() as open_now:
        path = Path(where.removeprefix("sqlite:"))
        if is_address(where) or _is_store(path):
            store = _store(where, path)
            open_now.callback(store.close)
            yield lambda width: screen_of_store(gauges_in(store), width)
        else:
            history = open_now.enter_context(History(path))
            yield lambda width: screen_of_ledger(now_in(history, clock.wall()), width)


def _store(where: str, path: Path) -> Store:
    try:
        return RedisStore(where) if is_address(where) else SQLiteStore(path)
    except ValueError as error:
        raise Fault(str(error)) from None


def _is_store(path: Path) -> bool:
    if not path.is_file():
        return False
    try:
        connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
        try:
            return bool(connection.execute("PRAGMA application_id").fetchone()[0] == _STORE)
        finally:
            connection.close()
    except sqlite3.Error:
        return False


# What is shown


def screen_of_ledger(found: list[Now], width: int) -> str:
    """The last minute of each model, or limiter."""
    if not found:
        return "nothing was sent in the last 20 minutes"
    trend = 20 if width >= 100 else 8
    head = (
        "LAST MINUTE",
        "REQUESTS",
        "TOKENS",
        "USERS",
        "WAITED",
        "429S",
        "FAILED",
        "COST",
        "20 MINUTES" if trend == 20 else "8 MIN",
    )
    rows = []
    for one in found:
        totals = one.totals
        rows.append((
            _short(one.subject, width), counted("", totals.requests), counted("", totals.tokens), f"{totals.users:,}",
            lasting(totals.waited), f"{totals.rejected:,}", f"{totals.failed:,}",
            counted("dollars", totals.dollars) if totals.dollars or not totals.unpriced else "–",
            _sparkline(one.trend[-trend:]),
        ))  # fmt: skip
    text = table(head, rows, right={1, 2, 3, 4, 5, 6, 7})
    gauges = [gauge for one in found for gauge in one.gauges]
    return text + ("\n\n" + _gauges(gauges, width) if gauges else "")


def screen_of_store(found: list[Gauge], width: int) -> str:
    """How full each limit in a store is."""
    return _gauges(found, width) if found else "no limit in this store is in use"


def _gauges(found: list[Gauge], width: int) -> str:
    bar = max(10, min(40, width - 70))
    rows = [
        (
            _short(gauge.name, width), gauge.unit, gauge.limit,
            _bar(gauge.used / gauge.capacity if gauge.capacity else 0.0, bar),
            f"{gauge.used / gauge.capacity:.0%}" if gauge.capacity else "",
            f"paused {lasting(gauge.paused)}" if gauge.paused > 0 else "",
        )
        for gauge in found
    ]  # fmt: skip
    return table(("NAME", "UNIT", "LIMIT", "USED", "", ""), rows, right={4})


def _short(name: str, width: int) -> str:
    most = max(12, width // 5)
    text = visible(name) or "(no name)"
    return text if len(text) <= most else text[: most - 1] + "…"


def _bar(part: float, width: int) -> str:
    full = round(max(0.0, min(1.0, part)) * width)
    return "█" * full + "░" * (width - full)


def _sparkline(values: tuple[float, ...]) -> str:
    most = max(values, default=0.0)
    return "".join("·" if not value else _BARS[min(7, int(value / most * 8))] for value in values)
