"""The options of `penstock run`, each with its help."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer

from penstock.cli.limits import LIMITS_HELP
from penstock.runner.settings import DAY, HOUR

__all__ = ["RunOptions"]


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What `penstock run` was told. The help of each option says what it means."""

    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE", help="Requests: JSON lines, a JSON array or CSV, compressed or not; - for stdin."
        ),
    ]
    out: Annotated[
        Path,
        typer.Option("-o", "--out", help="Where results go; - for stdout. If it exists, the run goes on from there."),
    ]
    errors: Annotated[
        Path | None,
        typer.Option(help="Where errors go, begun anew by each run.", show_default="OUT with .errors.jsonl"),
    ] = None
    limits: Annotated[str | None, typer.Option(metavar="auto|FILE|LIMITS", help=LIMITS_HELP, show_default="auto")] = (
        None
    )
    account: Annotated[
        str | None,
        typer.Option(help="Take the limits that are published for this kind of account: tier-1, pay-as-you-go…"),
    ] = None
    store: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Share the limits with other runs through sqlite:FILE or redis://HOST."),
    ] = None
    base_url: Annotated[
        list[str] | None,
        typer.Option(help="The server; several are one pool.", show_default="OPENAI_BASE_URL, else OpenAI's own"),
    ] = None
    api_key_env: Annotated[
        list[str] | None,
        typer.Option(
            metavar="VARIABLE", help="Where the key is: one for each server, or for all.", show_default="OPENAI_API_KEY"
        ),
    ] = None
    header: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME:VALUE", help="A header to send; $VARIABLE, quoted, is read from the environment."),
    ] = None
    simulate: Annotated[
        bool, typer.Option("--simulate", help="Send to an embedded server that enforces the limits.")
    ] = False
    model: Annotated[str | None, typer.Option(help="Ask this model, whatever the rows say.")] = None
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="PATH=VALUE", help="Set a field of every body: temperature=0, reasoning.effort=low."
        ),
    ] = None
    prompt: Annotated[
        str | None,
        typer.Option(metavar="TEMPLATE", help="What to ask for each row of CSV, with {column} for its value."),
    ] = None
    rows: Annotated[int | None, typer.Option(min=1, metavar="N", help="Do the first N rows alone.")] = None
    shard: Annotated[
        str | None,
        typer.Option(metavar="I/N", help="Of N parts of FILE do the I-th alone: 2/4, and 1/4, 3/4, 4/4 elsewhere."),
    ] = None
    only: Annotated[
        Literal["failed"] | None, typer.Option(help="Do those rows alone that failed in an earlier run.")
    ] = None
    order: Annotated[
        Literal["completed", "input"], typer.Option(help="Results as they come, or in the order of FILE, at the end.")
    ] = "completed"
    changed: Annotated[
        Literal["rerun", "keep"] | None,
        typer.Option(help="Rows that were edited since they were answered: ask again, or keep the old answers."),
    ] = None
    on_ambiguous: Annotated[
        Literal["rerun", "fail"],
        typer.Option(help="Rows that were sent and may have been billed: send again, or give up."),
    ] = "rerun"
    journal: Annotated[
        Path | None, typer.Option(help="Where it is written down what was sent.", show_default="OUT with .journal")
    ] = None
    max_in_flight: Annotated[int, typer.Option(min=1, help="Rows that are worked on at once.")] = 1000
    attempts: Annotated[int, typer.Option(min=1, help="Attempts per row that may fail, the first included.")] = 8
    timeout: Annotated[float, typer.Option(min=0.001, help="Seconds an attempt may take.")] = 600.0
    give_up_after: Annotated[
        float, typer.Option(min=0.0, help="Seconds for which a row may be told to wait, and the server may be away.")
    ] = DAY
    max_pause: Annotated[
        float, typer.Option(min=0.0, help="Longest wait that the server may ask of all rows, in seconds.")
    ] = HOUR
    deadline: Annotated[
        float | None, typer.Option(min=0.0, metavar="SECONDS", help="Send nothing more after so many seconds.")
    ] = None
    max_cost: Annotated[
        float | None,
        typer.Option(min=0.0, metavar="DOLLARS", help="Send no row that might cost more than is left of these."),
    ] = None
    prices: Annotated[
        Path | None,
        typer.Option(metavar="JSON", help="What models cost.", show_default="the list prices that came along"),
    ] = None
    ledger: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write each call down for penstock report and penstock watch.")
    ] = None
    report: Annotated[
        Path | None, typer.Option(metavar="HTML", help="Write how it went as one page, with pictures over time.")
    ] = None
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what it would take, as penstock plan does.")] = False
    via: Annotated[
        Literal["requests", "batch"],
        typer.Option(help="Send each row by itself, or all by the Batch API: half the price, within a day."),
    ] = "requests"
    queue_tokens: Annotated[
        float | None,
        typer.Option(min=1.0, metavar="TOKENS", help="With --via batch: tokens that the batches of a model may hold."),
    ] = None
    cancel: Annotated[
        bool,
        typer.Option("--cancel", help="With --via batch: cancel the batches under way, and merge what they have done."),
    ] = False
    poll: Annotated[
        float, typer.Option(min=0.1, help="With --via batch: longest pause between two looks, in seconds.")
    ] = 60.0
    latency: Annotated[float, typer.Option(min=0.0, help="With --simulate: median seconds until an answer.")] = 0.4
    seed: Annotated[int, typer.Option(help="With --simulate: what latencies are drawn from.")] = 0
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Begin OUT anew.")] = False
    as_json: Annotated[
        bool, typer.Option("--json", help="Tell how it goes, and the summary, in JSON, one object a line.")
    ] = False
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")] = False
