"""`penstock run`: options read, checked and put together, and the exit code decided.

What is wrong with a command is said in one line on stderr, with exit code 2, before anything is sent. What the command does
is done elsewhere (`runner`).
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import anyio
import typer

from penstock.cli.batch import check_batch_options, refuse_live_batches, run_batches
from penstock.cli.files import check_files, is_stdout, ledger_of, open_lines, places
from penstock.cli.frame import app
from penstock.cli.options import (
    SIMULATED,
    Fault,
    change_of,
    learned,
    limits_of_first_row,
    parse_limits,
    published,
    servers_of,
    the_same,
)
from penstock.cli.plan import plan, prices_of
from penstock.cli.shared import shard_of, shared
from penstock.cli.simulate import simulated, simulation_of
from penstock.cli.terminal import complain, say, write
from penstock.llm import tokens
from penstock.runner import progress
from penstock.runner.batch_api import BatchHttp
from penstock.runner.batch_summary import batch_sentences
from penstock.runner.client import Http, Server
from penstock.runner.engine import Run
from penstock.runner.files import write_beside
from penstock.runner.formats import Prompt
from penstock.runner.output import OutputError, Results, write_summary
from penstock.runner.place import Place
from penstock.runner.report import render
from penstock.runner.settings import DAY, HOUR, Settings
from penstock.runner.source import Lines, read_row
from penstock.runner.summary import sentences, summarise
from penstock.runner.system import ending_signals, signals_here
from penstock.runner.timeline import Timeline

__all__ = ["EXIT_CODES"]

_Client = TypeVar("_Client", bound=Http)

EXIT_CODES = {
    0: "every row is answered",
    2: "the command cannot be carried out as it is: an option, a file, the environment, a disk that is full",
    3: "some rows failed; they are in the errors file",
    4: "the account takes no request any more; the same command goes on later",
    5: "the server cannot be reached; the same command goes on later",
    6: "--deadline, --max-cost or --cancel ended it; the same command goes on",
    130: "interrupted; the same command goes on",
}

_CODES = {"account": 4, "unreachable": 5, "deadline": 6, "cost": 6, "cancelled": 6, "interrupted": 130}

EPILOG = "Exit codes: " + "; ".join(f"{code} {meaning}" for code, meaning in EXIT_CODES.items()) + "."


@app.command("run", epilog=EPILOG)
def run(
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE", help="Requests: JSON lines, a JSON array or CSV, compressed or not; - for stdin."
        ),
    ],
    out: Annotated[
        Path,
        typer.Option("-o", "--out", help="Where results go; - for stdout. If it exists, the run goes on from there."),
    ],
    errors: Annotated[
        Path | None, typer.Option(help="Where errors go, begun anew by each run. [default: OUT with .errors.jsonl]")
    ] = None,
    limits: Annotated[
        str | None, typer.Option(metavar="LIMITS", help='Such as "requests=3500/min,tokens=90k/min burst 20k".')
    ] = None,
    account: Annotated[
        str | None,
        typer.Option(help="Take the limits that are published for this kind of account: tier-1, pay-as-you-go…"),
    ] = None,
    store: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Share the limits with other runs through sqlite:FILE or redis://HOST."),
    ] = None,
    base_url: Annotated[
        list[str] | None,
        typer.Option(help="The server; several are one pool. [default: OPENAI_BASE_URL, else OpenAI's own]"),
    ] = None,
    api_key_env: Annotated[
        list[str] | None,
        typer.Option(
            metavar="VARIABLE", help="Where the key is: one for each server, or for all. [default: OPENAI_API_KEY]"
        ),
    ] = None,
    header: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME:VALUE", help="A header to send; $VARIABLE, quoted, is read from the environment."),
    ] = None,
    simulate: Annotated[
        bool, typer.Option("--simulate", help="Send to an embedded server that enforces the limits.")
    ] = False,
    model: Annotated[str | None, typer.Option(help="Ask this model, whatever the rows say.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="PATH=VALUE", help="Set a field of every body: temperature=0, reasoning.effort=low."
        ),
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option(metavar="TEMPLATE", help="What to ask for each row of CSV, with {column} for its value."),
    ] = None,
    rows: Annotated[int | None, typer.Option(min=1, metavar="N", help="Do the first N rows alone.")] = None,
    shard: Annotated[
        str | None,
        typer.Option(metavar="I/N", help="Of N parts of FILE do the I-th alone: 2/4, and 1/4, 3/4, 4/4 elsewhere."),
    ] = None,
    only: Annotated[
        Literal["failed"] | None, typer.Option(help="Do those rows alone that failed in an earlier run.")
    ] = None,
    order: Annotated[
        Literal["completed", "input"], typer.Option(help="Results as they come, or in the order of FILE, at the end.")
    ] = "completed",
    changed: Annotated[
        Literal["rerun", "keep"] | None,
        typer.Option(help="Rows that were edited since they were answered: ask again, or keep the old answers."),
    ] = None,
    on_ambiguous: Annotated[
        Literal["rerun", "fail"],
        typer.Option(help="Rows that were sent and may have been billed: send again, or give up."),
    ] = "rerun",
    journal: Annotated[
        Path | None, typer.Option(help="Where it is written down what was sent. [default: OUT with .journal]")
    ] = None,
    max_in_flight: Annotated[int, typer.Option(min=1, help="Rows that are worked on at once.")] = 1000,
    attempts: Annotated[int, typer.Option(min=1, help="Attempts per row that may fail, the first included.")] = 8,
    timeout: Annotated[float, typer.Option(min=0.001, help="Seconds an attempt may take.")] = 600.0,
    give_up_after: Annotated[
        float, typer.Option(min=0.0, help="Seconds for which a row may be told to wait, and the server may be away.")
    ] = DAY,
    max_pause: Annotated[
        float, typer.Option(min=0.0, help="Longest wait that the server may ask of all rows, in seconds.")
    ] = HOUR,
    deadline: Annotated[
        float | None, typer.Option(min=0.0, metavar="SECONDS", help="Send nothing more after so many seconds.")
    ] = None,
    max_cost: Annotated[
        float | None,
        typer.Option(min=0.0, metavar="DOLLARS", help="Send no row that might cost more than is left of these."),
    ] = None,
    prices: Annotated[
        Path | None, typer.Option(metavar="JSON", help="What models cost. [default: the list prices that came along]")
    ] = None,
    ledger: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write each call down for penstock report and penstock watch.")
    ] = None,
    report: Annotated[
        Path | None, typer.Option(metavar="HTML", help="Write how it went as one page, with pictures over time.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what it would take, as penstock plan does.")] = False,
    via: Annotated[
        Literal["requests", "batch"],
        typer.Option(help="Send each row by itself, or all by the Batch API: half the price, within a day."),
    ] = "requests",
    queue_tokens: Annotated[
        float | None,
        typer.Option(min=1.0, metavar="TOKENS", help="With --via batch: tokens that the batches of a model may hold."),
    ] = None,
    cancel: Annotated[
        bool,
        typer.Option("--cancel", help="With --via batch: cancel the batches under way, and merge what they have done."),
    ] = False,
    poll: Annotated[
        float, typer.Option(min=0.1, help="With --via batch: longest pause between two looks, in seconds.")
    ] = 60.0,
    latency: Annotated[float, typer.Option(min=0.0, help="With --simulate: median seconds until an answer.")] = 0.4,
    seed: Annotated[int, typer.Option(help="With --simulate: what latencies are drawn from.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Begin OUT anew.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Tell how it goes, and the summary, in JSON, one object a line.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")] = False,
) -> int:
    """Run a file of requests at full quota; resumable."""
    if limits is not None and account is not None:
        raise Fault("--limits and --account both say what the limits are: give one of them")
    given = None if limits in {None, "auto"} else parse_limits(limits or "")
    if simulate and (base_url or api_key_env):
        raise Fault("--simulate brings a server of its own: leave --base-url and --api-key-env out")
    if store is not None and (simulate or (given is None and account is None)):
        raise Fault("--store shares the limits that --limits or --account names, of a server that is not simulated")
    if cancel and (via != "batch" or overwrite):
        raise Fault("--cancel ends the batches of an earlier run: give --via batch too, and leave --overwrite out")
    part = shard_of(shard)
    change, salt = change_of(model, settings or ())
    priced = prices_of(prices) if prices is not None or max_cost is not None else None
    if dry_run:
        return plan(file, limits, account, model, settings, prompt, rows, prices, queue_tokens)
    servers = {} if simulate else servers_of(base_url or (), api_key_env or (), header or (), timeout)
    if via == "batch" and len(servers) > 1:
        raise Fault("--via batch sends to one server: give one --base-url and one --api-key-env")
    timeline = None if report is None else Timeline()
    with ExitStack() as stack:
        lines = stack.enter_context(open_lines(file, None if prompt is None else Prompt(prompt)))
        if given is None and account is not None:
            given = limits_of_first_row(lines, account) if simulate else None
        elif given is None and simulate and limits is None:
            given = parse_limits(SIMULATED)
        limits_of = the_same(given) if given is not None else learned if account is None else published(account)
        kept = [limits_of if store is None else shared(store, limits_of, each, stack) for each in servers.values()]
        simulation = simulation_of(given or parse_limits(SIMULATED), latency, seed) if simulate else None
        try:
            targets = check_files(lines, out, errors, journal, report)
        except OSError as error:  # a name that is too long, a folder that may not be looked into
            raise Fault(f"cannot write {error.filename or out}: {error.strerror or error}") from None
        if via == "batch":
            if ledger is not None:
                raise Fault("--ledger writes down what is sent row by row: leave it out with --via batch")
            if store is not None or part != (1, 1):
                raise Fault("--via batch takes whole files and has a quota of its own: leave --store and --shard out")
            check_batch_options(lines, targets.journal, limits=limits is not None or account is not None)
        elif targets.journal is not None and not overwrite:
            refuse_live_batches(out)
        if order == "input" and targets.journal is None:
            raise Fault("--order input puts the results in order out of the journal: give --journal FILE too")
        events = progress.Events(sys.stderr if is_stdout(out) else sys.stdout) if as_json else None
        tell: Callable[[str], None] = (lambda _: None) if quiet else say
        results = stack.enter_context(
            Results(
                targets.out,
                targets.errors,
                journal=targets.journal,
                order=order,
                changed=changed,
                overwrite=overwrite,
                descriptor=targets.descriptor,
                errors_descriptor=targets.errors_descriptor,
            )
        )
        _tell_what_was_found(results, tell)
        results.examine(lines, partial(read_row, cost=tokens.by_bytes, change=change, salt=salt), salt)
        if results.elsewhere:
            tell(f"{results.elsewhere:,} answers in {out} are to rows that {file} does not have, and stay there")
        if simulation is not None:
            headers = {"authorization": "Bearer simulated"}
            address = stack.enter_context(simulated(simulation))
            servers, kept = {"": Server(address, headers, timeout, direct=True)}, [limits_of]
        chosen = Settings(
            cost=tokens.by_bytes,
            max_in_flight=places(max_in_flight, 2 if simulate else 1, tell),
            attempts=attempts,
            give_up_after=give_up_after,
            max_pause=max_pause,
            idle=math.inf if simulate else results.idle,
            on_ambiguous=on_ambiguous,
            change=change,
            salt=salt,
            rows=rows,
            shard=part,
            only=None if only is None else results.failed,
            deadline=deadline,
            prices=priced,
            max_cost=max_cost,
            on_event=None if ledger is None else stack.enter_context(ledger_of(ledger, priced)),
            secrets=tuple(secret for each in servers.values() for secret in each.secrets),
        )
        if via == "batch":
            numbers, counts, code = run_batches(
                lines, results, chosen, _client(BatchHttp, next(iter(servers.values()))), queue_tokens=queue_tokens, poll=poll, changed=changed,
                overwrite=overwrite, cancel=cancel, tell=tell, codes=_CODES,
            )  # fmt: skip
        else:
            pool = [
                Place(_client(Http, each), limits, label)
                for (label, each), limits in zip(servers.items(), kept, strict=True)
            ]
            pass_ = Run(lines, results, chosen, pool, say=tell)
            shown = _display(events, quiet=quiet)
            numbers, code = _drive(pass_, lines, timeline, shown, quiet=quiet, priced=priced is not None)
            counts = pass_.counts
    if not quiet and events is None:
        words = batch_sentences(numbers) if via == "batch" else sentences(numbers)
        write("\n".join(words), sys.stderr if is_stdout(out) else sys.stdout)
    try:
        if targets.summary is not None:
            write_summary(targets.summary, numbers)
        if report is not None:
            page = render(numbers, counts, None if via == "batch" else timeline, title=f"{file} → {out}")
            write_beside(report, page.encode("utf-8", "replace"))
    except OutputError as error:
        if (numbers["stopped"] or {}).get("code") != "output":  # else the full disk was named already
            complain(str(error))
        code = code or 2
    if events is not None:
        with suppress(OSError, ValueError):  # nobody reads them any more
            events.tell({"event": "end", "exit_code": code, **numbers})
    return code


def _client(kind: type[_Client], server: Server) -> _Client:
    try:
        return kind(server)
    except (OSError, ValueError) as error:  # a certificate file that is not there
        raise Fault(f"the proxies or certificates that the environment names cannot be used: {error}") from None


def _tell_what_was_found(results: Results, tell: Callable[[str], None]) -> None:
    out = results.out_path
    if results.repaired:
        tell(f"{out} ended in the middle of a line: its last {results.repaired} bytes are taken off")
    if results.restored:
        tell(f"{out} lacked {results.restored:,} answers that its journal holds: they are written there again")
    if results.damaged is not None:
        records, kept = results.damaged
        tell(
            f"{records:,} records of the journal were damaged and are taken out; what {out} holds counts instead, and {kept} is the "
            "journal as it was"
        )
    if results.found:
        tell(f"{results.found:,} rows are answered in {out} already and are skipped; --overwrite begins anew")
    if results.ambiguous:
        tell(
            f"{results.ambiguous:,} rows were under way when the last run was ended: what became of them is not known, and "
            "they may have been billed"
        )


# ----------------------------------------------------------------------------------------------------------------------
# A run, watched and interruptible


def _display(events: progress.Events | None, *, quiet: bool) -> AbstractContextManager[progress.Display | None]:
    """What shows how it goes."""
    if events is not None:
        return nullcontext(events)
    if quiet or sys.stderr is None:
        return nullcontext(None)
    return progress.Rich(sys.stderr) if progress.redraws(sys.stderr) else nullcontext(progress.Plain(sys.stderr))


def _drive(
    run: Run,
    lines: Lines,
    timeline: Timeline | None,
    shown: AbstractContextManager[progress.Display | None],
    *,
    quiet: bool,
    priced: bool = False,
) -> tuple[dict[str, Any], int]:
    """Run it; return the summary and the exit code."""
    quiet = quiet or sys.stderr is None
    with shown as display:

        async def go() -> None:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(_obey_signals, run, quiet)
                if display is not None:
                    tasks.start_soon(progress.follow, run, lines, display)
                if timeline is not None:
                    tasks.start_soon(timeline.follow, run)
                await run()
                if timeline is not None:
                    timeline.look(run)
                tasks.cancel_scope.cancel()

        anyio.run(go)
    limits = {name: group.allowances for name, group in run.groups.items()}
    stopped = run.stopped
    why = None if stopped is None else {"code": stopped.code, "message": stopped.message}
    numbers = summarise(run.counts, limits, run.concurrency, stopped=why, priced=priced)
    if stopped is None:
        return numbers, 3 if run.counts.failed else 0
    if stopped.code != "interrupted":
        complain(stopped.message)
    return numbers, _CODES.get(stopped.code, 2)


async def _obey_signals(run: Run, quiet: bool) -> None:
    """First Ctrl-C: what was sent may come back. Second: it may not. A polite kill, or the end of the terminal, is the same."""
    with signals_here(*ending_signals()) as signals:
        async for _ in signals:
            if run.stopped is None:
                run.stop("interrupted", "interrupted")
                if not quiet:
                    say(f"interrupted: waiting for {run.counts.in_flight} answers; Ctrl-C again drops them")
            else:
                run.abandon()
