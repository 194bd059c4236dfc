"""Requests in, results out: what `penstock run` does with files, and `run` and `Sender` do in a program.

    library     `run`: rows and results as Python objects
    sender      `Sender`: the same for batches of rows, in many workers
    ports       what a run reads from and writes to
    source      the rows of a file, and what is wrong with them;  formats: lines, arrays, CSV, compressed or not
    mix         which of them goes next, so that no limit is left unused
    engine      the run itself: charge, send, try again;  work, settings: its records
    group       the models that share limits;  throttle: how much of them is used while others use the account too
    outage      a server that is down: one pause, one probe
    client      how a request reaches the server;  http: over aiohttp;  answers: whether what came back is an answer
    journal     what was sent and what came of it
    output      results and errors on disk, and where an interrupted run goes on;  files: how they are written
    summary     what happened, and how near it came to the optimum
    progress    the same while it happens, for people;  screen: in a terminal

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
