"""Requests in, results out: what `penstock run` does with files, and `run` and `Sender` do in a program.

    library     `run`: rows and results as Python objects
    sender      `Sender`: the same for batches of rows, in many workers;  columns: as data frames have them
    ports       what a run reads from and writes to
    source      the rows of a file, and what is wrong with them;  formats: lines, arrays, CSV, compressed or not
    mix         which of them goes next, so that no limit is left unused
    engine      the run itself: charge, send, try again;  work, settings: its records
    troubles    what is done about an attempt that was not answered;  naming: what options are called in messages
    place       a server that rows may go to;  pool: several of them;  outage: one that is down;  addresses: one that is
                not the service
    group       the models that share limits;  throttle: how much of them is used while others use the account too
    client      how a request reaches the server;  http: over aiohttp
    answers     whether what came back is an answer;  streams: one out of a stream of events
    prices      what rows cost in dollars;  spending: how much a run may spend
    journal     what was sent, and how it ended;  agreement: made to agree with the results when a run begins
    output      results and errors on disk, and where an interrupted run goes on;  files: how they are written
    spilled     numbers of a million rows, in a temporary file
    secrets     hides keys in what is written;  system: what operating systems differ in

What it tells people:

    plan        what a file would take, before anything is sent
    progress    what happens;  screen: in a terminal
    summary     what happened, and how near it came to the optimum;  timeline, histogram: its figures over time
    report      the same as a page with pictures;  failed: what failed, by its cause

The same file by a service's Batch API is `penstock.runner.batch`.

It needs the extra `cli`. `penstock.cli` decides what options mean and which server is asked.
"""

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if find_spec("aiohttp") is None:
    raise ModuleNotFoundError(
        "penstock.runner needs the package 'aiohttp': install the extra, pip install \"penstock[cli]\"", name="aiohttp"
    )

if TYPE_CHECKING:
    from penstock.runner.library import Result, RunStoppedError, run
    from penstock.runner.sender import Sender

__all__ = ["Result", "RunStoppedError", "Sender", "run"]


def __getattr__(name: str) -> Any:
    """Load what programs use when it is first asked for: the command line reads its options without it."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from penstock.runner import library, sender

    globals().update(
        Result=library.Result, RunStoppedError=library.RunStoppedError, Sender=sender.Sender, run=library.run
    )
    return globals()[name]
