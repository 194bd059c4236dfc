"""Batches of rows out of many workers, under one limit: for Ray Data's `map_batches` and its like.

    workers = ray.data.ActorPoolStrategy(size=4)
    ds.map_batches(Sender, fn_constructor_kwargs={"url": URL, "limiter": limiter}, compute=workers)

Each batch is a run of its own (`library`), in a thread of this object's, which keeps connections and what was learned
of the server's limits from one batch to the next.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

from penstock import Limiter
from penstock._concurrency.locks import new_lock
from penstock._numbers import Seconds
from penstock.llm.discovered import DiscoveredEndpoint
from penstock.llm.endpoints import Endpoint
from penstock.runner import columns
from penstock.runner.client import SECRETS, Client, Reply, Server
from penstock.runner.library import Result, RowLike, RunStoppedError, run
from penstock.runner.source import dump_json

__all__ = ["Sender"]

LONGEST_CLOSE = 5.0
"""Seconds to wait for connections to close."""

_left_behind: list[_Open] = []
"""What a fork has copied. It is kept for ever: to drop it would close the sockets and selectors that the parent
uses."""


class Sender:
    """Sends batches of rows and returns the result of each; for workers that share a limit.

    A limiter over a shared store can be pickled, so every worker gets the same one; a sender can be pickled too. It
    makes connections at its first batch and keeps them until `close()`. Several threads may call it at once: their
    batches share everything.

    A key in a header that an environment variable holds is not pickled: the variable's name is, and it must be set
    where the sender is used.

    Of the limits of a shared store, a second's worth of the burst is kept back once: no process knows which grants of
    other processes are still on their way.
    """

    def __init__(
        self,
        url: str,
        limiter: Limiter | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        timeout: Seconds = 600.0,
        **options: Any,
    ) -> None:
        """Nothing is connected before the first batch.

        Args:
            url: The base URL of the server, as SDKs want it.
            limiter: Every worker keeps its limits; None: each learns them from the answers it gets.
            headers: Sent with every request: `{"authorization": f"Bearer {key}"}`.
            timeout: Seconds an attempt may take, or a `timedelta`; above 0.
            options: Others of `run`: `cost`, `max_in_flight`, `attempts`, `give_up_after`, `max_pause`, `on_ambiguous`.

        Raises:
            ValueError: `timeout` is not above 0. A wrong one of `options` is found by the first batch.
        """
        self._server = Server(url, headers or {}, timeout)  # type: ignore[arg-type]  # it reads the span
        self._limiter, self._options = limiter, options
        self._begin()

    def _begin(self) -> None:
        self._lock = new_lock()
        self._process = os.getpid()
        self._open: _Open | None = None

    def __call__(self, batch: Any) -> Any:
        """Send a batch and wait for all of its answers.

        Args:
            batch: A sequence of rows, as `run` takes them; or columns, as Ray and Spark hand them out: a mapping of
                names to sequences, pandas' DataFrame, or pyarrow's Table or RecordBatch. Each column is a field of a
                row. Text in `body` is JSON; otherwise a field that is null is left out.

        Returns:
            For rows: a list of `Result`, in their order. For columns: a batch of the same kind with them and, beside
            them, `answer` and `error`: JSON as text, `""` where there is none.

        Raises:
            RunStoppedError: No money, no server, or closed by another thread. Its `results` are those that were there
                by then, and `untouched` the numbers of all other rows.
        """
        if columns.has_columns(batch):
            found = self._send(columns.rows_of(batch))
            answers = ["" if one.body is None else dump_json(one.body).decode() for one in found]
            errors = ["" if one.error is None else dump_json(one.error).decode() for one in found]
            return columns.with_outcome(batch, answers, errors)
        return self._send(list(batch))

    def close(self) -> None:
        """Close the connections. The next batch makes new ones."""
        self._forked()
        with self._lock:
            this, self._open = self._open, None
        if this is not None:
            this.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        """Connections stay where they are; of a key that the environment holds, the variable's name travels."""
        headers, names = _without_keys(self._server.headers)
        server = replace(self._server, headers=headers)
        return {"server": server, "names": names, "limiter": self._limiter, "options": self._options}

    def __setstate__(self, state: dict[str, Any]) -> None:
        server: Server = state["server"]
        names: dict[str, tuple[str, str, str]] = state["names"]
        keys = {
            header: f"{before}{_from_environment(name)}{behind}" for header, (before, name, behind) in names.items()
        }
        self._server = replace(server, headers={**server.headers, **keys})
        self._limiter, self._options = state["limiter"], state["options"]
        self._begin()

    def _forked(self) -> None:
        """Begin anew in a process that has this object, and not its thread, from a fork."""
        if self._process != os.getpid():
            if self._open is not None:
                _left_behind.append(self._open)
            self._begin()

    def _send(self, rows: Sequence[RowLike]) -> list[Result]:
        self._forked()
        with self._lock:
            if self._open is None:
                self._open = _Open(self._server, self._limiter)
                weakref.finalize(self, self._open.close)
            this = self._open
        # Names are for joining results to rows; a batch may well hold one of them twice, and here numbers do that.
        given: Sequence[Any] = rows  # whatever a program hands over
        plain = [
            {key: value for key, value in row.items() if key != "custom_id"} if isinstance(row, Mapping) else row
            for row in given
        ]
        found: list[Result | None] = [None] * len(rows)
        try:
            this.call(plain, found, self._options)
        except RunStoppedError as error:
            raise _stopped(error.code, str(error), found, rows) from None
        except CancelledError:
            words = "the sender was closed by another thread while it sent this batch"
            raise _stopped("closed", words, found, rows) from None
        except Exception as error:
            if not any(found):
                raise
            raise _stopped("internal", f"{type(error).__name__}: {error}", found, rows) from error
        return _named(found, rows)


class _Open:
    """A thread with a loop, and in it the connections and the limits of a sender."""

    def __init__(self, server: Server, limiter: Limiter | None) -> None:
        self._client = _Kept(server)
        self._limiter = limiter
        self._endpoints: dict[str, Endpoint] = {}
        self._process = os.getpid()
        # Behind the end nothing is given to the loop, since nobody would take it. Reentrant: a signal's handler may
        # close the sender in the middle of a call.
        self._lock = new_lock()
        self._has_ended = False
        started: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = Future()
        self._thread = threading.Thread(target=self._run, args=(started,), name="penstock sender", daemon=True)
        try:
            self._thread.start()
            self._loop, self._end = started.result()
        except BaseException:  # such as Ctrl-C: nobody will know of the thread
            started.add_done_callback(_end_at_once)
            raise

    def _run(self, started: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]]) -> None:
        async def live() -> None:
            async with self._client.http:
                end = asyncio.Event()
                started.set_result((asyncio.get_running_loop(), end))
                await end.wait()

        try:
            asyncio.run(live())
        except BaseException as error:
            if started.done():
                raise
            started.set_exception(error)

    def close(self) -> None:
        """End the thread. In a process that was forked since there is none."""
        if self._process != os.getpid():
            return
        with self._lock:
            if not self._has_ended:
                self._has_ended = True
                self._loop.call_soon_threadsafe(self._end.set)
        if self._thread is not threading.current_thread():  # where the collector may well come to it
            self._thread.join(LONGEST_CLOSE)

    def call(self, rows: Sequence[RowLike], found: list[Result | None], options: Mapping[str, Any]) -> None:
        """Send rows from another thread. What is on its way is dropped if that thread is interrupted.

        Raises:
            CancelledError: It was closed before.
        """
        with self._lock:
            if self._has_ended:
                raise CancelledError
            sending = asyncio.run_coroutine_threadsafe(self._send(rows, found, options), self._loop)
        try:
            sending.result()
        finally:
            sending.cancel()

    async def _send(self, rows: Sequence[RowLike], found: list[Result | None], options: Mapping[str, Any]) -> None:
        async with contextlib.aclosing(run(rows, self._client, self._limits_of, **options)) as results:
            async for one in results:
                found[one.number - 1] = one

    def _limits_of(self, model: str) -> tuple[str, Endpoint]:
        name = model if self._limiter is None else ""
        if name not in self._endpoints:
            self._endpoints[name] = DiscoveredEndpoint() if self._limiter is None else Endpoint(self._limiter)
        return name, self._endpoints[name]


def _end_at_once(started: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]]) -> None:
    """End a thread as soon as it has begun."""
    if started.exception() is None:
        loop, end = started.result()
        loop.call_soon_threadsafe(end.set)


class _Kept(Client):
    """A client that stays open when a run is over."""

    def __init__(self, server: Server) -> None:
        from penstock.runner.http import Http

        self.http = Http(server)

    @property
    def secrets(self) -> tuple[bytes, ...]:
        return self.http.secrets

    def address_of(self, path: str) -> str:
        return self.http.address_of(path)

    async def send(self, path: str, body: bytes, left: Callable[[], None]) -> Reply:
        return await self.http.send(path, body, left)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """It stays open."""


def _stopped(code: str, message: str, found: Sequence[Result | None], rows: Sequence[RowLike]) -> RunStoppedError:
    """The end of a batch in which each row has a result or none."""
    untouched = [number for number, one in enumerate(found, 1) if one is None]
    return RunStoppedError(code, message, _named(found, rows), untouched)


def _named(found: Sequence[Result | None], rows: Sequence[RowLike]) -> list[Result]:
    """The results that there are, under the names of their rows."""
    return [
        Result(one.number, _name(row, one.custom_id), one.body, one.error, one.status_code, one.request_id)
        for one, row in zip(found, rows, strict=True)
        if one is not None
    ]


def _name(row: Any, otherwise: Any) -> Any:
    """What a row is called; rows that are none have no name."""
    return row.get("custom_id", otherwise) if isinstance(row, Mapping) else otherwise


def _without_keys(headers: Mapping[str, str]) -> tuple[dict[str, str], dict[str, tuple[str, str, str]]]:
    """Headers as they may travel.

    And for each key that the environment holds, what stands before and behind it, and the variable's name.
    """
    rest, names = dict(headers), {}
    for header, value in headers.items():
        last = value.rpartition(" ")[2]
        held = [
            name for name, word in os.environ.items() if word and (word == last or (len(word) >= 8 and word in value))
        ]
        if header.lower() in SECRETS and held:
            name = max(sorted(held), key=lambda name: len(os.environ[name]))
            before, _, behind = value.rpartition(os.environ[name])
            names[header] = before, name, behind
            del rest[header]
    return rest, names


def _from_environment(name: str) -> str:
    value = os.environ.get(name)
    if value is None:
        raise ValueError(
            f"the key of a Sender is read from the environment variable {name}, which is not set here: "
            "set it in every process that sends, as where the Sender was made"
        )
    return value
