"""`penstock report`: evidence from a ledger for higher limits. The figures are those of `usage.evidence`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from zoneinfo import ZoneInfo

import typer

from penstock.cli.files import is_part_of
from penstock.cli.frame import app
from penstock.cli.limits import limits_given
from penstock.cli.plan import prices_of
from penstock.cli.terminal import Fault, say, write
from penstock.limits import Calendar
from penstock.llm.prices import Price, Prices
from penstock.runner.files import write_beside
from penstock.usage import History
from penstock.usage.evidence import Evidence, evidence_of
from penstock.usage.report import as_csv, as_html, as_markdown

if TYPE_CHECKING:  # to load it takes longer than a report of a small ledger
    from penstock.runner.place import LimitsOf, Rates

__all__ = ["report"]


class Form(StrEnum):
    """What a report is written in."""

    markdown = "markdown"
    csv = "csv"
    html = "html"


_ENDINGS = {".md": Form.markdown, ".markdown": Form.markdown, ".csv": Form.csv, ".html": Form.html, ".htm": Form.html}


@app.command("report")
def report(
    ledger: Annotated[Path, typer.Argument(metavar="LEDGER", help="The file of a penstock.usage.Ledger.")],
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", metavar="OUT", help="File to write the report to.", show_default="to the terminal"),
    ] = None,
    form: Annotated[
        Form | None, typer.Option("--format", help="Form of the report.", show_default="by OUT's ending, else markdown")
    ] = None,
    models: Annotated[
        list[str] | None, typer.Option("--model", help="Only this model or limiter. May be given several times.")
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(metavar="WHEN", help='Only calls since then: "2026-05-01", "2026-05-01T12:00" or "30d".'),
    ] = None,
    until: Annotated[str | None, typer.Option(metavar="WHEN", help="Only calls before then.")] = None,
    tz: Annotated[str, typer.Option("--tz", help="Time zone in which days begin.")] = "UTC",
    limits: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|LIMITS",
            help='Such as "tokens=325k/min"; or a FILE of limits.',
            show_default="as the service gave them last",
        ),
    ] = None,
    price: Annotated[
        float | None,
        typer.Option(metavar="DOLLARS", help="Price of 1,000 tokens.", show_default="by the list of prices"),
    ] = None,
    prices: Annotated[
        Path | None,
        typer.Option(
            metavar="JSON", help="A file of prices per model.", show_default="the list prices of this version"
        ),
    ] = None,
    growth: Annotated[
        float | None,
        typer.Option(metavar="PERCENT", help="Expected growth of use per week.", show_default="as it grew so far"),
    ] = None,
) -> int:
    """Write the case for higher limits: use, minutes near a limit, waits, 429s, business days, growth, cost."""
    if price is not None and not 0 <= price < math.inf:
        raise Fault(f"--price: {price} is not an amount of dollars")
    if growth is not None and not -100 < growth < 10_000:
        raise Fault(f"--growth: {growth} is not a percentage per week; write it like 10")
    _check_zone(tz)
    begin, end = _when("--since", since, tz), _when("--until", until, tz)
    limits_of, _ = limits_given(limits, None)
    known = prices_of(prices)
    if out is not None and is_part_of(out, ledger):
        raise Fault(f"{out} is the ledger itself: write the report somewhere else")
    with History(ledger) as history:
        subjects = models or list(history.totals_by("subject", begin, end))
        found = [
            evidence_of(
                history, subject, since=begin, until=end, tz=tz, limits=_limits(limits_of, subject),
                price=_price(subject, price, known), growth=None if growth is None else 1 + growth / 100,
            )
            for subject in subjects
        ]  # fmt: skip
    missing = [one.subject for one in found if models and not one.totals.calls and not one.totals.refused]
    if missing:
        raise Fault(f"--model: {ledger} has no call of {missing[0]!r} in that time")
    text = _written(found, form or _ENDINGS.get(out.suffix.lower() if out else "", Form.markdown), ledger.name, tz)
    if out is None or out == Path("-"):
        write(text.rstrip("\n"))
        return 0
    write_beside(out, text.encode("utf-8", "replace"))
    say(f"written to {out}")
    return 0


def _written(found: list[Evidence], form: Form, name: str, tz: str) -> str:
    if form is Form.csv:
        return as_csv(found)
    return as_html(found, name, tz) if form is Form.html else as_markdown(found, name, tz)


def _limits(limits_of: LimitsOf, subject: str) -> Rates | None:
    """The limits of a model, or limiter; None: as they were told last."""
    try:
        given = limits_of(subject)[1]
    except ValueError:  # a file that has none for it
        return None
    if not isinstance(given, Mapping):
        return None
    from penstock.runner.place import rates_of

    return rates_of(given)


def _price(subject: str, given: float | None, known: Prices) -> Price | None:
    return known.price(subject) if given is None else Price(given / 1_000, given / 1_000)


def _check_zone(tz: str) -> None:
    try:
        Calendar(1, "day", tz)
    except ValueError as error:
        raise Fault(f"--tz: {error}") from None


def _when(option: str, text: str | None, tz: str) -> float | None:
    """The moment that a date, a date with a time, or a span until now names."""
    if text is None:
        return None
    zone = ZoneInfo(tz)
    try:
        if text[-1:] in {"d", "h"} and text[:-1].isdigit():
            span = timedelta(hours=int(text[:-1]) * (24 if text.endswith("d") else 1))
            return (datetime.now(zone) - span).timestamp()
        found = datetime.fromisoformat(text)
        return (found if found.tzinfo else found.replace(tzinfo=zone)).timestamp()
    except (ValueError, OverflowError):
        raise Fault(f"{option}: cannot read {text!r}: write it like 2026-05-01, 2026-05-01T12:00 or 30d") from None
