"""A run that sends each row by itself, shows its progress, and can be interrupted.

The run itself is in `runner.engine`.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext

import anyio

from penstock._numbers import number_of
from penstock.cli.outcome import Outcome, client_of, for_people
from penstock.cli.run_options import RunOptions
from penstock.cli.terminal import say
from penstock.runner import progress
from penstock.runner.client import Server
from penstock.runner.engine import Run
from penstock.runner.http import Http
from penstock.runner.output import Results
from penstock.runner.place import LimitsOf, Place
from penstock.runner.settings import Settings
from penstock.runner.source import Lines
from penstock.runner.summary import sentences, summarise
from penstock.runner.system import ending_signals, signals_here
from penstock.runner.timeline import Timeline

__all__ = ["run_requests", "seldom_collected"]

COLLECT_AFTER = 50_000
"""Objects that are made before the garbage collector looks: those of the requests of a few seconds at most."""


def run_requests(
    options: RunOptions,
    lines: Lines,
    results: Results,
    settings: Settings,
    servers: Mapping[str, Server],
    limits: Mapping[str, LimitsOf],
    *,
    tell: Callable[[str], None],
) -> Outcome:
    """Send the rows to the servers, each of which has a name and the limits of that name.

    Raises:
        Fault: The environment names a proxy or a certificate that cannot be used.
    """
    places = [Place(client_of(Http, server), limits[name], name) for name, server in servers.items()]
    run = Run(lines, results, settings, places, say=tell)
    timeline = None if options.report is None else Timeline()
    with _display(options) as display, seldom_collected():
        anyio.run(_drive, run, lines, display, timeline, options.quiet or sys.stderr is None)
    allowed = {name: group.allowances for name, group in run.groups.items()}
    priced = settings.prices is not None
    summary = summarise(run.counts, allowed, run.concurrency, stopped=run.stopped, priced=priced)
    return Outcome(summary, sentences(summary), run.counts, timeline, run.stopped)


@contextmanager
def seldom_collected() -> Iterator[None]:
    """Have the garbage collector look less often while a run goes on.

    A request makes a hundred objects, and the requests that are under way keep theirs. A look at all of the young ones
    for every 700 more is a fifth of the CPU time of a run, and finds nothing: what is done with is freed by itself.
    """
    first, *others = gc.get_threshold()
    gc.set_threshold(max(first, COLLECT_AFTER) if first else 0, *others)
    try:
        yield
    finally:
        gc.set_threshold(first, *others)


async def _drive(
    run: Run, lines: Lines, display: progress.Display | None, timeline: Timeline | None, quiet: bool
) -> None:
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


async def _obey_signals(run: Run, quiet: bool) -> None:
    """First Ctrl-C: what was sent may come back. Second: it may not. SIGTERM and SIGHUP count as a Ctrl-C."""
    with signals_here(*ending_signals()) as signals:
        async for _ in signals:
            if run.stopped is None:
                run.stop("interrupted", "interrupted")
                if not quiet:
                    answers = number_of(run.counts.in_flight, "answer")
                    say(f"interrupted: waiting for {answers}; Ctrl-C again drops them")
            else:
                run.abandon()


def _display(options: RunOptions) -> AbstractContextManager[progress.Display | None]:
    """What shows how it goes."""
    if options.as_json:
        return nullcontext(progress.Events(for_people(options)))
    if options.quiet or sys.stderr is None:
        return nullcontext(None)
    if sys.stderr.isatty():
        from penstock.runner.screen import Rich, redraws

        if redraws(sys.stderr):
            return Rich(sys.stderr)
    return nullcontext(progress.Plain(sys.stderr))
