"""What `penstock run` does: check the options, run the file, and decide the exit code.

A wrong command ends with one line on stderr and exit code 2, before anything is sent.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import partial

from penstock._numbers import number_of
from penstock.cli.files import (
    Targets,
    check_batch_files,
    check_files,
    ledger_of,
    open_lines,
    places,
    refuse_live_batches,
    unwritten,
)
from penstock.cli.limits import SIMULATED, limits_given, limits_of_first_row, parse_limits, the_same
from penstock.cli.options import change_of, servers_of
from penstock.cli.plan import prices_of, show_plan
from penstock.cli.run_options import RunOptions
from penstock.cli.shared import file_of_store, shard_of, shared
from penstock.cli.simulate import simulated, simulation_of
from penstock.cli.terminal import Fault, complain, say
from penstock.errors import PenstockError
from penstock.llm import tokens
from penstock.runner.client import Server
from penstock.runner.formats import Prompt
from penstock.runner.journal import HEAD
from penstock.runner.output import Results
from penstock.runner.place import Limits, LimitsOf
from penstock.runner.prices import Prices
from penstock.runner.settings import Settings
from penstock.runner.source import Lines, read_row

__all__ = ["carry_out"]

SIMULATOR = "the embedded simulator (--simulate)"
"""Who answers with `--simulate`, for the journal: its answers are not taken for those of a service."""


def carry_out(options: RunOptions) -> int:
    """Check the options, run the file, say and write down how it went; return the exit code.

    Raises:
        Fault: The command cannot be carried out.
    """
    _check(options)
    limits_of, together = limits_given(options.limits, options.account)
    prices = prices_of(options.prices) if options.prices is not None or options.max_cost is not None else None
    if options.dry_run:
        return show_plan(
            options.file, limits_of, prices or prices_of(None), model=options.model, settings=options.settings or (),
            prompt=options.prompt, rows=options.rows, queue_tokens=options.queue_tokens, as_json=options.as_json,
        )  # fmt: skip
    servers = {} if options.simulate else _servers(options)
    tell = _nothing if options.quiet else say
    with ExitStack() as stack:
        prompt = None if options.prompt is None else Prompt(options.prompt)
        lines = stack.enter_context(open_lines(options.file, prompt))
        simulation = None
        if options.simulate:
            enforced = together or _enforced(options, limits_of, lines)
            limits_of = limits_of if options.limits == "auto" else the_same(enforced)
            simulation = simulation_of(enforced, options.latency, options.seed)
        targets = _targets(options, lines)
        kept = {label: _kept(options, limits_of, server, stack) for label, server in servers.items()}
        asked = [server.name for server in servers.values()] or [SIMULATOR]
        results = stack.enter_context(_results(options, targets, asked))
        _meet_earlier_runs(options, targets, results, lines, tell)
        if simulation is not None:
            address, headers = stack.enter_context(simulated(simulation)), {"authorization": "Bearer simulated"}
            servers, kept = {"": Server(address, headers, options.timeout, direct=True)}, {"": limits_of}
        secrets = [secret for server in servers.values() for secret in server.secrets]
        settings = _settings(options, results, prices, secrets, tell)
        ledger = None if options.ledger is None else stack.enter_context(ledger_of(options.ledger, prices))
        if ledger is not None:
            settings = replace(settings, on_event=ledger)
        # Only now load what sends: that takes a second, and a wrong command was refused before.
        if options.via == "batch":
            from penstock.cli.batch import run_batches

            outcome = run_batches(options, lines, results, settings, *servers.values(), tell=tell)
        else:
            from penstock.cli.requests import run_requests

            outcome = run_requests(options, lines, results, settings, servers, kept, tell=tell)
    from penstock.cli.outcome import conclude

    if not secrets and outcome.stopped is not None and outcome.stopped.status == 401:
        said = f"{outcome.stopped.message}; no key was sent: export OPENAI_API_KEY, or give --api-key-env"
        outcome = replace(outcome, stopped=replace(outcome.stopped, message=said))
    code = conclude(options, targets, outcome)
    if ledger is not None and (lost := unwritten(ledger)):
        complain(lost)
        code = code or 2
    return code


def _check(options: RunOptions) -> None:
    """See that the options go together, as far as they tell it by themselves."""
    limits, account, store, via = options.limits, options.account, options.store, options.via
    if options.simulate and (options.base_url or options.api_key_env):
        raise Fault("--simulate starts a server of its own: leave --base-url and --api-key-env out")
    if store is not None and options.simulate:
        raise Fault("--store shares the limits of a server that is not simulated: leave one of the two out")
    if options.cancel and (via != "batch" or options.overwrite):
        raise Fault("--cancel ends the batches of an earlier run: give --via batch too, and leave --overwrite out")
    if via == "batch" and options.ledger is not None:
        raise Fault("--ledger records what is sent row by row: leave it out with --via batch")
    if via == "batch" and (store is not None or options.shard is not None):
        raise Fault("--via batch takes whole files and has a quota of its own: leave --store and --shard out")
    if via == "batch" and (limits is not None or account is not None):
        raise Fault("--via batch has a quota of its own: leave --limits and --account out, and give --queue-tokens")
    change_of(options.model, options.settings or ())
    shard_of(options.shard)


def _servers(options: RunOptions) -> dict[str, Server]:
    servers = servers_of(options.base_url or (), options.api_key_env or (), options.header or (), options.timeout)
    if options.via == "batch" and len(servers) > 1:
        raise Fault("--via batch sends to one server: give one --base-url and one --api-key-env")
    return servers


def _enforced(options: RunOptions, limits_of: LimitsOf, lines: Lines) -> Limits:
    """The limits of an embedded server: they are not given, or differ by model."""
    if options.limits in {None, "auto"} and options.account is None:
        return parse_limits(SIMULATED)
    return limits_of_first_row(lines, limits_of, "--account" if options.limits is None else "--limits")


def _kept(options: RunOptions, limits_of: LimitsOf, server: Server, stack: ExitStack) -> LimitsOf:
    """The limits as they are kept for a server: by this run alone, or with others in a store."""
    return limits_of if options.store is None else shared(options.store, limits_of, server, stack)


def _targets(options: RunOptions, lines: Lines) -> Targets:
    """Where everything goes."""
    try:
        targets = check_files(
            lines, options.out, options.errors, options.journal, options.report, options.ledger, options.prices,
            file_of_store(options.store),
        )  # fmt: skip
    except OSError as error:  # a name that is too long, a folder that may not be looked into
        raise Fault(f"cannot write {error.filename or options.out}: {error.strerror or error}") from None
    if options.via == "batch":
        check_batch_files(lines, targets.journal)
    elif targets.journal is not None and not options.overwrite:
        refuse_live_batches(options.out)
    if options.order == "input" and targets.journal is None:
        raise Fault("--order input puts the results in order out of the journal: give --journal FILE too")
    return targets


@contextmanager
def _results(options: RunOptions, targets: Targets, asked: Collection[str]) -> Iterator[Results]:
    """The files of a run. Those that were not there before it go again if it cannot begin."""
    named = (targets.out if targets.descriptor is None else None, targets.journal, options.errors or targets.errors)
    made = [path for path in named if path is not None and not os.path.lexists(path)]
    try:
        with Results(
            targets.out,
            targets.errors,
            journal=targets.journal,
            order=options.order,
            changed=options.changed,
            overwrite=options.overwrite,
            descriptor=targets.descriptor,
            errors_descriptor=targets.errors_descriptor,
            servers=asked,
        ) as results:
            yield results
    except (Fault, PenstockError):
        with suppress(OSError):
            if all(path.stat().st_size <= len(HEAD) for path in made if path.exists()):
                for path in made:
                    path.unlink(missing_ok=True)
        raise


def _meet_earlier_runs(
    options: RunOptions, targets: Targets, results: Results, lines: Lines, tell: Callable[[str], None]
) -> None:
    """Say what earlier runs left, and see which rows of the file they answered."""
    out = results.out_path
    if results.repaired:
        end = number_of(results.repaired, "byte is", "bytes are")
        tell(f"{out} ended in the middle of a line: its last {end} taken off")
    if results.restored:
        answers = number_of(results.restored, "answer")
        tell(f"{out} lacked {answers} that its journal holds, and that now are written there again")
    if results.damaged is not None:
        records, kept = results.damaged
        tell(
            f"{number_of(records, 'damaged record is', 'damaged records are')} taken out of the journal; "
            f"what {out} holds counts instead, and {kept} is the journal as it was"
        )
    if results.ambiguous:
        tell(
            f"{number_of(results.ambiguous, 'row was', 'rows were')} under way when the last run was ended: "
            "what became of them is not known, and they may have been billed"
        )
    change, salt = change_of(options.model, options.settings or ())
    results.examine(lines, partial(read_row, cost=tokens.by_bytes, change=change, salt=salt), salt)
    if results.edited:
        rows = number_of(results.edited, "row was", "rows were")
        does = "keeps the old answers" if options.changed == "keep" else "asks again"
        tell(f"{rows} edited after the answer: --changed={options.changed} {does}")
    if results.moved:
        rows = number_of(results.moved, "row was", "rows were")
        tell(f"{rows} answered by a server that is not asked now: --changed=rerun asks again")
    still = results.found - results.elsewhere - (results.edited + results.moved if options.changed == "rerun" else 0)
    if still and not lines.is_regular:
        answers = number_of(still, "answer")
        tell(f"{out} has {answers} already, and the rows of these are skipped; --overwrite starts over")
    elif still:
        are = "is" if still == 1 else "are"
        tell(f"{number_of(still, 'row')} {are} answered in {out} already and {are} skipped; --overwrite starts over")
    if results.elsewhere:
        answers = number_of(results.elsewhere, "answer")
        kept = (targets.journal if options.order == "input" else None) or out
        tell(f"{kept} keeps {answers} to rows that {lines.name} does not have")


def _settings(
    options: RunOptions, results: Results, prices: Prices | None, secrets: Iterable[bytes], tell: Callable[[str], None]
) -> Settings:
    change, salt = change_of(options.model, options.settings or ())
    return Settings(
        cost=tokens.by_bytes,
        max_in_flight=places(options.max_in_flight, 2 if options.simulate else 1, tell),
        attempts=options.attempts,
        give_up_after=options.give_up_after,
        max_pause=options.max_pause,
        idle=math.inf if options.simulate else results.idle,
        on_ambiguous=options.on_ambiguous,
        change=change,
        salt=salt,
        rows=options.rows,
        shard=shard_of(options.shard),
        only=None if options.only is None else results.failed,
        deadline=options.deadline,
        prices=prices,
        max_cost=options.max_cost,
        secrets=tuple(secrets),
    )


def _nothing(_: str) -> None:
    """Say nothing."""
