"""Requests in, results out: what `penstock run` does with files, and `run` and `Sender` do in a program.

    library     `run`: rows and results as Python objects
    sender      `Sender`: the same for batches of rows, in many workers
    ports       what a run reads from and writes to
    source      the rows of a file, and what is wrong with them;  formats: lines, arrays, CSV, compressed or not
    mix         which of them goes next, so that no limit is left unused
    engine      the run itself: charge, send, try again;  work, settings: its records
    group       the models that share limits;  throttle: how much of them is used while others use the account too
    outage      a server that is down: one pause, one probe
    client      how a request reaches the server;  answers: whether what came back is an answer
    journal     what was sent and what came of it
    output      results and errors on disk, and where an interrupted run goes on;  files: how they are written
    summary     what happened, and how near it came to the optimum
    progress    the same while it happens, for people

It needs the extra `cli`. What options mean, and which server is asked, is the command line's business (`penstock.cli`).
"""

try:
    import aiohttp as _aiohttp
except ModuleNotFoundError as _missing:
    raise ModuleNotFoundError(
        f'penstock.runner needs the package {_missing.name!r}: install the extra, pip install "penstock[cli]"',
        name=_missing.name,
    ) from _missing

from penstock.runner.library import Result, RunStoppedError, run
from penstock.runner.sender import Sender

del _aiohttp

__all__ = ["Result", "RunStoppedError", "Sender", "run"]
