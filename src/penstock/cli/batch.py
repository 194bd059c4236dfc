"""A run by the Batch API, for the same file, results and exit codes. The run itself is in `runner.batch`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing

import anyio

from penstock._numbers import number_of
from penstock.cli.outcome import Outcome, client_of
from penstock.cli.run_options import RunOptions
from penstock.runner.batch.http import BatchHttp
from penstock.runner.batch.parts import BatchJournal, batches_of
from penstock.runner.batch.run import BatchRun
from penstock.runner.batch.summary import batch_sentences, batch_summary
from penstock.runner.client import Server
from penstock.runner.group import Group
from penstock.runner.outage import ServerOutage
from penstock.runner.output import Results
from penstock.runner.settings import Settings
from penstock.runner.source import Lines
from penstock.runner.summary import Counts
from penstock.runner.system import ending_signals, signals_here
from penstock.runner.timeline import Timeline

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
        for part in journal.forgotten:
            batch = f"{part.batch} goes on at" if part.batch else "without a known name may have been created by"
            tell(f"a batch of {number_of(len(part), 'row')} {batch} the service, and is forgotten by --overwrite")
        run = BatchRun(
            lines, results, settings, client_of(BatchHttp, server), journal, queue_tokens=options.queue_tokens,
            poll=options.poll, changed=options.changed, cancel=options.cancel, say=tell,
        )  # fmt: skip
        timeline = None if options.report is None else Timeline()
        anyio.run(_drive, run, timeline)
        priced = settings.prices is not None
        summary = batch_summary(run.counts, run.ended, run.parts, stopped=run.stopped, priced=priced)
    return Outcome(summary, batch_sentences(summary), run.counts, timeline, run.stopped)


async def _drive(run: BatchRun, timeline: Timeline | None) -> None:
    """Carry out a run until it ends or is interrupted."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_obey_signals, run)
        if timeline is not None:
            tasks.start_soon(timeline.follow, _Seen(run))
        await run()
        if timeline is not None:
            timeline.look(_Seen(run))
        tasks.cancel_scope.cancel()


class _Seen:
    """A run by the Batch API as a timeline looks at it: in flight are the rows in batches; no limits are watched."""

    groups: Mapping[str, Group] = {}

    def __init__(self, run: BatchRun) -> None:
        self._run = run
        self.outage: ServerOutage = ServerOutage(0.0)

    @property
    def counts(self) -> Counts:
        counts = self._run.counts
        counts.in_flight = sum(len(part) for part in self._run.parts if part.batch is not None)
        return counts


async def _obey_signals(run: BatchRun) -> None:
    """Ctrl-C ends it at once: batches go on without us."""
    with signals_here(*ending_signals()) as signals:
        async for _ in signals:
            run.stop("interrupted", "interrupted")
