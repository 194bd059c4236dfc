"""What both kinds of run have in common: what sends the requests, and what is printed and written at the end.

The run itself is in `runner`.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TextIO, TypeVar

from penstock.cli.files import Targets, is_stdout
from penstock.cli.run_options import RunOptions
from penstock.cli.terminal import Fault, complain, write
from penstock.runner.client import Server
from penstock.runner.files import OutputError, write_beside, write_summary
from penstock.runner.progress import Events
from penstock.runner.report import render
from penstock.runner.settings import Stopped
from penstock.runner.summary import Counts, failures_in_words
from penstock.runner.timeline import Timeline

__all__ = ["Outcome", "client_of", "conclude", "for_people"]

_Client = TypeVar("_Client")

CODES = {"account": 4, "unreachable": 5, "deadline": 6, "cost": 6, "cancelled": 6, "interrupted": 130}
"""Exit codes by why a run was stopped; 2 for any other reason."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run went.

    Attributes:
        summary: As it is written beside the results.
        sentences: The same for people.
        counts: What happened.
        timeline: How it went over time; None: no report was asked for.
        stopped: Why it ended before its file did; None if it did not.
    """

    summary: dict[str, Any]
    sentences: list[str]
    counts: Counts
    timeline: Timeline | None
    stopped: Stopped | None


def conclude(options: RunOptions, targets: Targets, outcome: Outcome) -> int:
    """Say why it was stopped, write the summary and the report, and return the exit code."""
    stopped = outcome.stopped
    code = 3 if outcome.counts.failed else 0
    if stopped is not None:
        code = CODES.get(stopped.code, 2)
        if stopped.code != "interrupted":
            complain(stopped.message)
    if not (options.quiet or options.as_json):
        write("\n".join(outcome.sentences), for_people(options))
        if outcome.counts.failed:
            write(f"failed of {failures_in_words(outcome.summary)}", for_people(options))
            if targets.errors_descriptor is None:
                named = targets.errors if options.errors or is_stdout(options.out) else options.out
                write(f"what failed, and what to do: penstock errors {shlex.quote(str(named))}", for_people(options))
    try:
        if targets.summary is not None:
            write_summary(targets.summary, outcome.summary)
        if options.report is not None and outcome.timeline is not None:
            title = f"{options.file} → {options.out}"
            page = render(outcome.summary, outcome.counts, outcome.timeline, title=title)
            write_beside(options.report, page.encode("utf-8", "replace"))
    except OutputError as error:
        if stopped is None or stopped.code != "output":  # else the full disk was named already
            complain(str(error))
        code = code or 2
    if options.as_json:
        with suppress(OSError, ValueError):  # they are not read any more
            Events(for_people(options)).tell({"event": "end", "exit_code": code, **outcome.summary})
    return code


def for_people(options: RunOptions) -> TextIO:
    """Where what is said goes: standard output, unless the results go there."""
    return sys.stderr if is_stdout(options.out) else sys.stdout


def client_of(kind: Callable[[Server], _Client], server: Server) -> _Client:
    """What sends to a server.

    Raises:
        Fault: The environment names a proxy or a certificate that cannot be used.
    """
    try:
        return kind(server)
    except (OSError, ValueError) as error:
        raise Fault(f"the proxies or certificates that the environment names cannot be used: {error}") from None
