"""`penstock run --via batch`: the Batch API for the same file, results and exit codes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio

from penstock.cli.options import Fault
from penstock.cli.terminal import complain
from penstock.runner.batch_api import BatchHttp
from penstock.runner.batch_parts import BatchJournal, batches_of
from penstock.runner.batch_run import BatchRun
from penstock.runner.batch_summary import batch_summary
from penstock.runner.output import Results
from penstock.runner.settings import Settings
from penstock.runner.source import Lines
from penstock.runner.summary import Counts
from penstock.runner.system import ending_signals, signals_here

__all__ = ["check_batch_options", "refuse_live_batches", "run_batches"]


def check_batch_options(lines: Lines, journal: Path | None, *, limits: bool) -> None:
    """See that the Batch API can do what the other options ask for.

    Raises:
        Fault: It cannot.
    """
    if not lines.is_regular:
        raise Fault("--via batch reads rows that expire once more, and cannot in a pipe: put them into a file")
    if journal is None:
        raise Fault("--via batch needs results that it can go on from: -o must be a regular file")
    if limits:
        raise Fault("--via batch has a quota of its own: leave --limits and --account out, and give --queue-tokens")


def refuse_live_batches(out: Path) -> None:
    """Refuse to send rows that are in batches already.

    Raises:
        Fault: There are such rows.
    """
    path = batches_of(out)
    if not path.is_file():
        return
    journal = BatchJournal(path)
    journal.close()
    live = [part for part in journal.parts.values() if part.batch or part.creating]
    if live:
        rows = sum(map(len, live))
        raise Fault(
            f"{rows:,} rows are in {len(live):,} batches of an earlier run, and would be paid twice: --via batch merges their "
            "answers first, --overwrite begins anew"
        )


def run_batches(
    lines: Lines,
    results: Results,
    settings: Settings,
    transport: BatchHttp,
    *,
    queue_tokens: float | None,
    poll: float,
    changed: str | None,
    overwrite: bool,
    cancel: bool,
    tell: Callable[[str], None],
    codes: dict[str, int],
) -> tuple[dict[str, Any], Counts, int]:
    """Run it; return the summary, what happened, and the exit code."""
    journal = BatchJournal(batches_of(results.out_path), overwrite=overwrite)
    try:
        if journal.forgotten:
            tell(f"batches of an earlier run go on at the service, and are forgotten: {', '.join(journal.forgotten)}")
        run = BatchRun(
            lines, results, settings, transport, journal, queue_tokens=queue_tokens, poll=poll, changed=changed, cancel=cancel, say=tell
        )  # fmt: skip
        anyio.run(_drive, run)
        stopped = run.stopped
        why = None if stopped is None else {"code": stopped.code, "message": stopped.message}
        numbers = batch_summary(run.counts, run.ended, run.parts, stopped=why, priced=settings.prices is not None)
    finally:
        journal.close()
    if stopped is None:
        return numbers, run.counts, 3 if run.counts.failed else 0
    if not (stopped.code == "interrupted" and stopped.message == _INTERRUPTED):
        complain(stopped.message)
    return numbers, run.counts, codes.get(stopped.code, 2)


_INTERRUPTED = "interrupted"


async def _drive(run: BatchRun) -> None:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_obey_signals, run)
        await run()
        tasks.cancel_scope.cancel()


async def _obey_signals(run: BatchRun) -> None:
    """Ctrl-C ends it at once: batches go on without us."""
    with signals_here(*ending_signals()) as signals:
        async for _ in signals:
            run.stop("interrupted", _INTERRUPTED)
