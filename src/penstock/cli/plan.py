"""`penstock plan` and `penstock errors`: what a file would take, and what failed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from penstock.cli.files import open_lines
from penstock.cli.frame import app
from penstock.cli.options import change_of, learned, parse_limits, published, the_same
from penstock.cli.terminal import Fault, write
from penstock.llm import tokens
from penstock.runner import failed
from penstock.runner.formats import Prompt
from penstock.runner.output import beside
from penstock.runner.plan import make_plan, plan_sentences
from penstock.runner.prices import PriceFileError, Prices
from penstock.runner.source import Lines, read_row

__all__ = ["app", "plan", "prices_of"]


@app.command("plan")
def plan(
    file: Annotated[str, typer.Argument(metavar="FILE", help="Requests, as penstock run reads them.")],
    limits: Annotated[
        str | None, typer.Option(metavar="LIMITS", help='Such as "requests=3500/min,tokens=90k/min burst 20k".')
    ] = None,
    account: Annotated[
        str | None, typer.Option(help="Take the limits that are published for this kind of account.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Ask this model, whatever the rows say.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="PATH=VALUE", help="Set a field of every body.")
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option(metavar="TEMPLATE", help="What to ask for each row of CSV, with {column} for its value."),
    ] = None,
    rows: Annotated[int | None, typer.Option(min=1, metavar="N", help="Look at the first N rows alone.")] = None,
    prices: Annotated[
        Path | None,
        typer.Option(metavar="JSON", help="What models cost.", show_default="the list prices that came along"),
    ] = None,
    queue_tokens: Annotated[
        float | None,
        typer.Option(min=1.0, metavar="TOKENS", help="By the Batch API: tokens that the batches of a model may hold."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> int:
    """Say what a file would take: rows, tokens, dollars, time. Nothing is sent."""
    if limits is not None and account is not None:
        raise Fault("--limits and --account both say what the limits are: give one of them")
    known = prices_of(prices)
    change, salt = change_of(model, settings or ())
    limits_of = (
        the_same(parse_limits(limits)) if limits not in {None, "auto"} and limits is not None
        else learned if account is None else published(account)
    )  # fmt: skip
    with open_lines(file, None if prompt is None else Prompt(prompt)) as lines:
        found = make_plan(
            lines,
            partial(read_row, cost=tokens.by_bytes, change=change, salt=salt),
            limits_of,
            known,
            rows,
            queue_tokens,
        )
    write(json.dumps(found.as_json(), indent=2) if as_json else "\n".join(plan_sentences(found, known)))
    return 0 if found.sendable == found.rows else 3


@app.command("errors")
def errors(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The results of a run, or its errors file.")],
) -> int:
    """Say what failed in a run, grouped, with an example and what to do. Exit code 3 if anything did."""
    if out.is_dir():
        raise Fault(f"cannot read {out}: Is a directory")
    path = out if out.name.endswith("errors.jsonl") else beside(out, ".errors.jsonl")
    with open_lines(str(path)) as lines:
        groups = failed.group_errors(_lines(lines))
    write("\n".join(failed.sentences(groups)) if groups else f"nothing failed: {path} is empty")
    early = None if path == out else failed.ended_early(beside(out, ".summary.json"))
    if early is not None:
        write(early)
    return 3 if groups else 0


def _lines(lines: Lines) -> Iterator[bytes]:
    return (line for _, line in lines if line is not None)


def prices_of(path: Path | None) -> Prices:
    """The prices of a file, or those that came along.

    Raises:
        Fault: It cannot be read.
    """
    try:
        return Prices.listed() if path is None else Prices.of(path)
    except PriceFileError as error:
        raise Fault(f"--prices: {error}") from None
