"""`penstock plan` and `penstock errors`: what a file would cost in time and money, and which rows failed.

The figures are those of `runner.plan` and `runner.failed`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from penstock._numbers import number_of
from penstock.cli.files import open_lines
from penstock.cli.frame import app
from penstock.cli.limits import LIMITS_HELP, limits_given
from penstock.cli.options import change_of
from penstock.cli.terminal import Fault, say, write
from penstock.llm import tokens
from penstock.runner import failed
from penstock.runner.formats import Prompt
from penstock.runner.output import ERROR_BEGINNING, beside
from penstock.runner.plan import make_plan, plan_sentences
from penstock.runner.prices import PriceFileError, Prices
from penstock.runner.source import Lines, read_row

if TYPE_CHECKING:
    from penstock.runner.place import LimitsOf

__all__ = ["app", "plan", "prices_of", "show_plan"]


@app.command("plan")
def plan(
    file: Annotated[str, typer.Argument(metavar="FILE", help="Requests, as penstock run reads them.")],
    limits: Annotated[
        str | None, typer.Option(metavar="auto|FILE|LIMITS", help=LIMITS_HELP, show_default="auto")
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
        typer.Option(metavar="TEMPLATE", help="For CSV: what to ask for each row. {column} stands for its value."),
    ] = None,
    rows: Annotated[int | None, typer.Option(min=1, metavar="N", help="Look only at the first N rows.")] = None,
    prices: Annotated[
        Path | None,
        typer.Option(
            metavar="JSON", help="A file of prices per model.", show_default="the list prices of this version"
        ),
    ] = None,
    queue_tokens: Annotated[
        float | None,
        typer.Option(
            min=1.0, metavar="TOKENS", help="With the Batch API: most tokens that the batches of a model may hold."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> int:
    """Show what a file would take: rows, tokens, dollars, time. Sends nothing. Exit code 3 if some rows are wrong."""
    limits_of, _ = limits_given(limits, account)
    return show_plan(
        file, limits_of, prices_of(prices), model=model, settings=settings or (), prompt=prompt, rows=rows,
        queue_tokens=queue_tokens, as_json=as_json,
    )  # fmt: skip


def show_plan(
    file: str,
    limits_of: LimitsOf,
    prices: Prices,
    *,
    model: str | None,
    settings: Iterable[str],
    prompt: str | None,
    rows: int | None,
    queue_tokens: float | None,
    as_json: bool,
) -> int:
    """Print what a file would take; return the exit code. The arguments are as the options say."""
    change, salt = change_of(model, settings)
    with open_lines(file, None if prompt is None else Prompt(prompt)) as lines:
        found = make_plan(
            lines,
            partial(read_row, cost=tokens.by_bytes, change=change, salt=salt),
            limits_of,
            prices,
            rows,
            queue_tokens,
        )
    write(json.dumps(found.as_json(), indent=2) if as_json else "\n".join(plan_sentences(found, prices)))
    return 0 if found.sendable == found.rows else 3


@app.command("errors")
def errors(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The results of a run, or its errors file.")],
) -> int:
    """Show what failed in a run, grouped, with an example and what to do. Exit code 3 if anything did."""
    if out.is_dir():
        raise Fault(f"cannot read {out}: Is a directory")
    path = out if out.name.endswith("errors.jsonl") or _holds_errors(out) else beside(out, ".errors.jsonl")
    with open_lines(str(path)) as lines:
        groups, others = failed.group_errors(_lines(lines))
    if others:
        lines_are = number_of(others, "line is", "lines are")
        said = f"{lines_are} no error of a run in {path}: is it the errors file?"
        if not groups:
            raise Fault(said)
        say(said)
    write("\n".join(failed.sentences(groups)) if groups else f"nothing failed: {path} is empty")
    early = None if path == out else failed.ended_early(beside(out, ".summary.json"))
    if early is not None:
        write(early)
    return 3 if groups else 0


def _holds_errors(path: Path) -> bool:
    """Whether a file of another name is what `--errors` named."""
    try:
        with path.open("rb") as file:
            return path.is_file() and file.read(len(ERROR_BEGINNING)) == ERROR_BEGINNING
    except OSError:
        return False


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
