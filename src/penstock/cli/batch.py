"""A run by the Batch API, for the same file, results and exit codes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing

import anyio

from penstock.cli.outcome import Outcome, client_of
from penstock.cli.run_options import RunOptions
from penstock.runner.batch_http import BatchHttp
from penstock.runner.batch_parts import BatchJournal, batches_of
from penstock.runner.batch_run import BatchRun
from penstock.runner.batch_summary import batch_sentences, batch_summary
from penstock.runner.client import Server
from penstock.runner.output import Results
from penstock.runner.settings import Settings
from penstock.runner.source import Lines
from penstock.runner.system import ending_signals, signals_here

__all__ = ["run_batches"]


def run_batches(
    options: RunOptions,
    lines: Lines,
    results: Results,
    settings: Settings,
    server: Server,
    *,
    tell: Callable[[str], None],
) -> Outcome:
    """Send all rows by the Batch API of a server.

    Raises:
        Fault: The environment names a proxy or a certificate that cannot be used.
    """
    with closing(BatchJournal(batches_of(results.out_path), overwrite=options.overwrite)) as journal:
        if journal.forgotten:
            tell(f"batches of an earlier run go on at the service, and are forgotten: {', '.join(journal.forgotten)}")
        run = BatchRun(
            lines, results, settings, client_of(BatchHttp, server), journal, queue_tokens=options.queue_tokens,
            poll=options.poll, changed=options.changed, cancel=options.cancel, say=tell,
        )  # fmt: skip
        anyio.run(_drive, run)
        priced = settings.prices is not None
        summary = batch_summary(run.counts, run.ended, run.parts, stopped=run.stopped, priced=priced)
    return Outcome(summary, batch_sentences(summary), run.counts, None, run.stopped)


async def _drive(run: BatchRun) -> None:
    """Carry out a run until it ends or is interrupted."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_obey_signals, run)
        await run()
        tasks.cancel_scope.cancel()


async def _obey_signals(run: BatchRun) -> None:
    """Ctrl-C ends it at once: batches go on without us."""
    with signals_here(*ending_signals()) as signals:
        async for _ in signals:
            run.stop("interrupted", "interrupted")
