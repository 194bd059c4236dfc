"""An OpenAI-compatible server with faithful limits, for testing programs before they meet the real one.

It needs the extra `simulator`: Starlette and uvicorn.

    serve           a server in a thread: `async with serve(Simulation(requests="60/min")) as server`
    run             a server as the program itself, until Ctrl-C or SIGTERM
    create_app      the application, for transports that call it in-process
    Simulation      what is simulated: limits, Latency, Faults, seed…
    Statistics      what the server did; Admission, LimitStatistics, and `excess` to prove that a limit was kept
    Window, Hidden  kinds of limit beside rates and sliding windows
    Batches         how batches of requests are worked on
    Change          how the limits change while the server runs
    Stranger        another client of the same account
    fingerprint     what an answer begins with, so that a client can prove that it belongs to its question
    embedding_of    the embedding of a text
    charge_rule     other rules for it, by name
    charge          what admission takes, unless told otherwise
    format_duration durations as headers write them

Inside:

    _simulation  the options;  _server: a thread, or the program itself;  _app, _batch_app: the endpoints
    _account     decides about each request;  _meters, _buckets: its limits;  _batches: files and batches
    _charges     the rules by which admission charges
    _answering   answers that do not fail;  _faulty: those that do;  _streams: answers as events
    _replies     what OpenAI says;  _headers: and its headers;  _structured, _media: JSON, images, sounds
    _dialects    what other services say;  _dialect_streams: and their streams
    _bodies      bodies of requests, bounded;  _multipart: forms with files
"""

try:
    import starlette as _starlette
    import uvicorn as _uvicorn
except ImportError as _missing:
    raise ImportError(
        f'penstock.simulator needs the package {_missing.name!r}: install the extra, pip install "penstock[simulator]"',
        name=_missing.name,
    ) from _missing

from penstock.simulator._account import Admission, LimitStatistics, Statistics
from penstock.simulator._app import create_app
from penstock.simulator._buckets import excess
from penstock.simulator._charges import charge_rule
from penstock.simulator._headers import format_duration
from penstock.simulator._meters import Hidden, Window
from penstock.simulator._replies import charge, count_tokens, embedding_of, fingerprint
from penstock.simulator._server import Server, run, serve
from penstock.simulator._simulation import Batches, Change, Fault, Faults, Latency, Simulation, Stranger

del _starlette, _uvicorn

__all__ = [
    "Admission",
    "Batches",
    "Change",
    "Fault",
    "Faults",
    "Hidden",
    "Latency",
    "LimitStatistics",
    "Server",
    "Simulation",
    "Statistics",
    "Stranger",
    "Window",
    "charge",
    "charge_rule",
    "count_tokens",
    "create_app",
    "embedding_of",
    "excess",
    "fingerprint",
    "format_duration",
    "run",
    "serve",
]
