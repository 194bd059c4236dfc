"""The options of `penstock run`, each with its help. What they lead to is in `running`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer

from penstock.cli.limits import LIMITS_HELP
from penstock.runner.settings import DAY, HOUR

__all__ = ["PANELS", "RunOptions"]


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What `penstock run` was told. The help of each option says what it means."""

    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE", help="The requests: JSON lines, a JSON array or CSV, compressed or not; - for stdin."
        ),
    ]
    out: Annotated[
        Path,
        typer.Option(
            "-o", "--out", help="Where results go; - for stdout. If the file exists, the run goes on from it."
        ),
    ]
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
        typer.Option(
            metavar="URL",
            help="Address of the server. Several are one pool.",
            show_default="OPENAI_BASE_URL, else OpenAI's own",
        ),
    ] = None
    api_key_env: Annotated[
        list[str] | None,
        typer.Option(
            metavar="VARIABLE",
            help="Environment variable that holds the key: one for each server, or one for all.",
            show_default="OPENAI_API_KEY",
        ),
    ] = None
    header: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME:VALUE", help="A header to send. $VARIABLE, in single quotes, is read from the environment."
        ),
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
        typer.Option(metavar="TEMPLATE", help="For CSV: what to ask for each row. {column} stands for its value."),
    ] = None
    rows: Annotated[int | None, typer.Option(min=1, metavar="N", help="Send only the first N rows.")] = None
    shard: Annotated[
        str | None,
        typer.Option(metavar="I/N", help="Send only part I of N parts of FILE, such as 2/4; other runs send the rest."),
    ] = None
    only: Annotated[
        Literal["failed"] | None, typer.Option(help="Send only the rows that failed in an earlier run.")
    ] = None
    order: Annotated[
        Literal["completed", "input"],
        typer.Option(help="Write results as they come, or in the order of FILE at the end."),
    ] = "completed"
    changed: Annotated[
        Literal["rerun", "keep"] | None,
        typer.Option(help="Rows that were edited since they were answered: send again, or keep the old answers."),
    ] = None
    on_ambiguous: Annotated[
        Literal["rerun", "fail"],
        typer.Option(help="Rows that were sent, perhaps billed, and not answered: send again, or give up."),
    ] = "rerun"
    errors: Annotated[
        Path | None,
        typer.Option(
            help="Where failed rows go. Each run starts with an empty one.", show_default="OUT with .errors.jsonl"
        ),
    ] = None
    journal: Annotated[
        Path | None,
        typer.Option(
            help="Where the run notes what it sent, to go on after a crash.", show_default="OUT with .journal"
        ),
    ] = None
    max_in_flight: Annotated[int, typer.Option(min=1, help="Most rows in progress at once.")] = 1000
    attempts: Annotated[int, typer.Option(min=1, help="Most attempts per row, the first included.")] = 8
    timeout: Annotated[float, typer.Option(min=0.001, help="Seconds that one attempt may take.")] = 600.0
    give_up_after: Annotated[
        float,
        typer.Option(min=0.0, help="Seconds that the server may ask a row to wait, or may itself be unreachable."),
    ] = DAY
    max_pause: Annotated[
        float, typer.Option(min=0.0, help="Longest wait, in seconds, that the server may ask of all rows.")
    ] = HOUR
    deadline: Annotated[
        float | None, typer.Option(min=0.0, metavar="SECONDS", help="Send nothing more after this many seconds.")
    ] = None
    max_cost: Annotated[
        float | None,
        typer.Option(min=0.0, metavar="DOLLARS", help="Send no row that could cost more than is left of this budget."),
    ] = None
    prices: Annotated[
        Path | None,
        typer.Option(
            metavar="JSON", help="A file of prices per model.", show_default="the list prices of this version"
        ),
    ] = None
    ledger: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Record each call in this file, for penstock report and penstock watch."),
    ] = None
    report: Annotated[
        Path | None, typer.Option(metavar="HTML", help="Write a page with the run's figures, and charts over time.")
    ] = None
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Send nothing; say what the run would take, as penstock plan does.")
    ] = False
    via: Annotated[
        Literal["requests", "batch"],
        typer.Option(help="Send each row by itself, or all through the Batch API: half the price, within a day."),
    ] = "requests"
    queue_tokens: Annotated[
        float | None,
        typer.Option(
            min=1.0, metavar="TOKENS", help="With --via batch: most tokens that the batches of a model may hold."
        ),
    ] = None
    cancel: Annotated[
        bool,
        typer.Option(
            "--cancel", help="With --via batch: cancel the batches in progress, and keep what they have done."
        ),
    ] = False
    poll: Annotated[
        float, typer.Option(min=0.1, help="With --via batch: longest time between two looks at them, in seconds.")
    ] = 60.0
    latency: Annotated[float, typer.Option(min=0.0, help="With --simulate: median seconds until an answer.")] = 0.4
    seed: Annotated[int, typer.Option(help="With --simulate: seed of the random latencies.")] = 0
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Discard OUT and start over.")] = False
    as_json: Annotated[
        bool, typer.Option("--json", help="Print progress and summary as JSON, one object per line.")
    ] = False
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print only errors.")] = False


PANELS: dict[str, tuple[str, ...]] = {
    "Limits and server": (
        "limits", "account", "store", "base_url", "api_key_env", "header", "max_in_flight", "attempts", "timeout",
        "give_up_after", "max_pause",
    ),
    "What is sent": ("model", "settings", "prompt", "rows", "shard", "only", "changed", "on_ambiguous"),
    "When to stop": ("deadline", "max_cost", "prices"),
    "What is written": ("errors", "journal", "order", "overwrite", "ledger", "report", "as_json", "quiet"),
    "Without sending": ("dry_run", "simulate", "latency", "seed"),
    "The Batch API": ("via", "queue_tokens", "cancel", "poll"),
}  # fmt: skip
"""The headings of the help, and the fields below each; the others stand before them."""
