"""A run out of a program: rows in, results out as they come.

    async for result in penstock.runner.run(rows, "https://api.openai.com/v1", limits="auto", journal="run.journal"):
        ...

It is the engine of `penstock run` with other ends: rows are Python objects and results too. With a journal a run that
was interrupted, in whatever way, goes on: what was answered is yielded again out of the journal and not sent.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Collection,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import anyio
import anyio.lowlevel

from penstock import Calendar, Limiter, Rate, Sliding
from penstock._numbers import Seconds
from penstock._validation import parse_of
from penstock.errors import PenstockError
from penstock.llm import tokens
from penstock.llm.tokens import Cost
from penstock.runner.client import Client, Server
from penstock.runner.engine import Run
from penstock.runner.files import cannot_write
from penstock.runner.journal import Journal, Syncer
from penstock.runner.naming import as_argument
from penstock.runner.place import LimitsOf, Place
from penstock.runner.ports import Known
from penstock.runner.settings import DAY, HOUR, Settings
from penstock.runner.source import Rejected, Row, dump_json, load_json

__all__ = ["LimitsLike", "Result", "RowLike", "RunStoppedError", "run"]

LimitsLike = Mapping[str, Any] | Limiter | Literal["auto"]
RowLike = Mapping[str, Any]


class RunStoppedError(PenstockError):
    """A run ended before its rows did.

    Attributes:
        code: `account`, `unreachable`, `output`, `changed`, `deadline`, `input`, or of a `Sender`: `closed`.
        results: Those of a `Sender`'s batch that were there by then: answers that were paid for, and errors of rows.
            `run` yields them instead.
        untouched: The numbers, from 1, of all other rows of the batch: they were not sent, or were on their way.
    """

    def __init__(self, code: str, message: str, results: Sequence[Result] = (), untouched: Sequence[int] = ()) -> None:
        super().__init__(message)
        self.code: str = code
        self.results: tuple[Result, ...] = tuple(results)
        self.untouched: tuple[int, ...] = tuple(untouched)


@dataclass(frozen=True, slots=True)
class Result:
    """How a row ended.

    Attributes:
        number: Of the row, from 1.
        custom_id: Its name, as given; `line-N` where none was; None where it could not be read.
        body: The answer as Python objects; None if there is none.
        error: Why there is none: `code`, `message`, and what the service said as `status_code` and `body`; None if
            there is one.
        status_code: Of the answer; 0 if there is none.
        request_id: The service's own name of the request, if it gave one.
        from_journal: Whether an earlier run got the answer.
    """

    number: int
    custom_id: str | int | None
    body: Any = None
    error: Mapping[str, Any] | None = None
    status_code: int = 0
    request_id: str | None = None
    from_journal: bool = field(default=False, compare=False)


async def run(
    rows: Iterable[RowLike] | AsyncIterable[RowLike],
    client_or_url: Client | str | Sequence[Client | str],
    limits: LimitsLike | LimitsOf = "auto",
    journal: Path | str | None = None,
    *,
    headers: Mapping[str, str] | None = None,
    cost: Cost = tokens.by_bytes,
    changed: Literal["rerun", "keep"] | None = None,
    on_ambiguous: Literal["rerun", "fail"] = "rerun",
    max_in_flight: int = 1000,
    attempts: int = 8,
    timeout: Seconds = 600.0,  # noqa: ASYNC109 - of each attempt
    give_up_after: Seconds = DAY,
    max_pause: Seconds = HOUR,
) -> AsyncGenerator[Result, None]:
    """Send rows at full quota and yield the result of each, in the order of the answers.

    It runs on asyncio. If you leave the loop early, the run stops and drops the requests in flight. Rows are read as
    they are needed, at most some hundreds ahead of the results.

    Args:
        rows: Mappings, in OpenAI's Batch format (`custom_id`, `url`, `body`) or bare bodies.
        client_or_url: The base URL of a server, as SDKs want it, or what sends; of several, each row goes to the one
            that can take it first, and each keeps the limits by itself.
        limits: Limits by unit, such as `{"requests": "3500/min", "tokens": "90k/min"}`; a `Limiter`, which may be
            shared with others through a store; "auto": learned from the answers, for each model; or a function of the
            model, see `place.LimitsOf`.
        journal: A file that is written as `penstock run` writes its own; None: nothing is kept.
        headers: Sent with every request: `{"authorization": f"Bearer {key}"}`.
        cost: What a request takes from the limits, of (path, body).
        changed: How to treat rows that were edited since the journal has their answer: "rerun" or "keep". None: such a
            row ends the run.
        on_ambiguous: Rows that may have been billed though no answer came are sent again, or given up.
        max_in_flight: Rows in progress at once; 1 or more.
        attempts: Attempts per row, the first included; 1 or more. An answer that asks to wait does not count as a
            failed attempt.
        timeout: Seconds an attempt may take, or a `timedelta`; above 0.
        give_up_after: Seconds that the server may ask a row to wait, or may be away, or a `timedelta`; 0 or
            more.
        max_pause: Longest wait that the server may ask of all rows, in seconds or as a `timedelta`; 0 or more.

    Raises:
        RunStoppedError: It ended before the rows did: no money, no server, no disk. Answers that had arrived were
            yielded before.
        OutputError: The journal cannot be written, or is another kind of file.
        ValueError: A limit is wrong, or a number is out of its range.
        RuntimeError: No asyncio loop runs here.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        raise RuntimeError(
            "a run needs asyncio, as its HTTP client does: under trio, call a Sender in a thread"
        ) from None
    if changed not in ("rerun", "keep", None):
        raise ValueError(f'changed must be "rerun", "keep" or None, not {changed!r}')
    given: Sequence[Any] = client_or_url if isinstance(client_or_url, list | tuple) else [client_or_url]
    for each in given:
        if not isinstance(each, str) and not callable(getattr(each, "send", None)):
            raise ValueError(
                f"a run sends to the base URL of a server, not to {each!r:.200}; of an SDK's client give "
                'str(client.base_url), and headers={"authorization": f"Bearer {client.api_key}"}'
            )
    servers = [Server(each, headers or {}, timeout) for each in given if isinstance(each, str)]  # type: ignore[arg-type]  # it reads the span
    by_http = iter(servers)
    clients: list[Client] = [_over_http(next(by_http)) if isinstance(each, str) else each for each in given]
    if not clients:
        raise ValueError("a run needs a server: the list of them is empty")
    limits_of = limits if callable(limits) and not isinstance(limits, Limiter) else _limits_of(limits)
    settings = Settings(
        cost=cost,
        max_in_flight=max_in_flight,
        attempts=attempts,
        give_up_after=give_up_after,  # type: ignore[arg-type]  # it reads the span
        max_pause=max_pause,  # type: ignore[arg-type]  # the same
        on_ambiguous=on_ambiguous,
        secrets=tuple(secret for client in clients for secret in getattr(client, "secrets", ())),
        named=as_argument,
    )
    places = [Place(client, limits_of, f"server {number}") for number, client in enumerate(clients, 1)]
    source = _Given(rows)
    with contextlib.ExitStack() as stack:
        sink = _Yielded(None if journal is None else Path(journal), changed, stack)
        sink.ask([server.name for server in servers] if len(servers) == len(clients) else [])
        this = Run(source, sink, settings, places)
        # A task of its own and no task group: another task may close this generator.
        work = asyncio.create_task(this())
        work.add_done_callback(lambda _: sink.end())
        try:
            async for result in sink.results():
                yield result
        finally:
            if not sink.ended:
                this.stop("interrupted", "nobody reads the results")
                this.abandon()
            with _one_error():
                await work
        if this.stopped is not None and this.stopped.code != "interrupted":
            raise RunStoppedError(this.stopped.code, this.stopped.message)


def _over_http(server: Server) -> Client:
    from penstock.runner.http import Http

    return Http(server)


@contextlib.contextmanager
def _one_error() -> Iterator[None]:
    """An error of the caller's own, as of the iterable of rows, is raised as it is."""
    try:
        yield
    except ExceptionGroup as group:
        error: Exception = group
        while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
            error = error.exceptions[0]
        raise error from None


def _limits_of(limits: LimitsLike) -> LimitsOf:
    if isinstance(limits, Limiter):
        return lambda _: ("", limits)
    if isinstance(limits, Mapping):
        if not limits:
            raise ValueError('limits name no unit; write them like {"requests": "3500/min"}, or "auto"')
        rates = {unit: tuple(_rate(unit, each) for each in _several(given)) for unit, given in limits.items()}
        return lambda _: ("", rates)
    if limits != "auto":
        raise ValueError(f'limits must be a mapping of units to limits, a Limiter or "auto", not {limits!r}')
    return lambda model: (model, None)


def _rate(unit: str, given: Any) -> Rate | Sliding | Calendar:
    limit = parse_of(unit, given) if isinstance(given, str) else given
    if not isinstance(limit, Rate | Sliding | Calendar):
        raise ValueError(f"{unit}: the limits of a run are rates, such as '3500/min', or windows, not {given!r}")
    return limit


def _several(given: Any) -> Sequence[Any]:
    return given if isinstance(given, list | tuple) else (given,)


_END: Any = object()
"""Stands behind the last row: a row may be anything, None included, and is then told that it is no request."""


class _Given:
    """Rows that a program hands over, as a source."""

    def __init__(self, rows: Iterable[RowLike] | AsyncIterable[RowLike]) -> None:
        self.name = "the rows"
        self.is_regular = isinstance(rows, Sequence)
        self.passed = 0
        self._rows: Iterator[RowLike] | AsyncIterator[RowLike] = (
            aiter(rows) if isinstance(rows, AsyncIterable) else iter(rows)
        )
        self._number = 0
        self._waiting = anyio.CancelScope()

    async def read(self) -> tuple[int, bytes | Rejected | None] | None:
        row = _END
        if isinstance(self._rows, AsyncIterator):
            with anyio.CancelScope() as self._waiting:  # they may let us wait as long as they like
                row = await anext(self._rows, _END)
        else:
            await anyio.lowlevel.checkpoint()
            row = next(self._rows, _END)
        if row is _END:
            return None
        self._number += 1
        try:
            return self._number, dump_json(row)
        except (TypeError, ValueError, RecursionError) as error:
            name = row.get("custom_id") if isinstance(row, Mapping) else None
            custom_id = name if isinstance(name, str | int) else None
            return self._number, Rejected(self._number, custom_id, "invalid_json", f"the row is not JSON: {error}")

    def stop(self) -> None:
        self._waiting.cancel()


def _sync(journal: Journal, syncer: Syncer) -> None:
    try:
        syncer.wrote()
    except OSError as error:
        raise cannot_write(journal.path, error) from None


class _Yielded:
    """Results that a program takes as they come, as a sink."""

    def __init__(
        self, journal: Path | None, changed: Literal["rerun", "keep"] | None, stack: contextlib.ExitStack
    ) -> None:
        self.is_piped, self.keeps = False, True
        self.ended = False
        self._changed = changed
        self._ready: collections.deque[Result] = collections.deque()
        self._news = anyio.Event()
        self._journal = (
            None
            if journal is None
            else stack.enter_context(contextlib.closing(Journal(journal, offsets=True, named=as_argument)))
        )
        self._syncer: Syncer | None = None
        if self._journal is not None:
            self._syncer = Syncer(self._journal.descriptor)
            self._syncer.start()
            stack.callback(self._syncer.stop)

    @property
    def full(self) -> bool:
        return len(self._ready) >= 1_000

    async def results(self) -> AsyncIterator[Result]:
        while True:
            while self._ready:
                yield self._ready.popleft()
            if self.ended:
                return
            self._news = anyio.Event()
            await self._news.wait()

    def ask(self, servers: Collection[str]) -> None:
        if self._journal is not None:
            self._journal.ask(servers, keep=self._changed == "keep")

    def end(self) -> None:
        self.ended = True
        self._news.set()

    def known(self, row: Row) -> Known:
        if self._journal is None:
            return Known.NEW
        answered = self._journal.answered
        place = answered.find(row)
        if place is None:
            return Known.NEW
        if answered.met(place, now=True):
            return Known.DUPLICATE
        if answered.same(place, row) or self._changed == "keep":
            stored = load_json(self._journal.result_at(place))
            said = stored["response"]
            self._put(
                Result(row.line, row.custom_id, said["body"], None, said["status_code"], said["request_id"], True)
            )
            return Known.ANSWERED
        if self._changed == "rerun":
            self._journal.drop(place)
            return Known.NEW
        return Known.BY_ANOTHER if answered.by_another(place) else Known.CHANGED

    def may_be_billed(self, row: Row) -> bool:
        return self._journal is not None and row.key in self._journal.open

    def sent(self, row: Row, attempt: int) -> None:
        if self._journal is not None:
            self._journal.sent(row, attempt)

    def over(self, row: Row) -> None:
        if self._journal is not None:
            self._journal.over(row)

    def answer(self, row: Row, status_code: int, request_id: str | None, body: bytes) -> None:
        journal, syncer = self._journal, self._syncer
        try:
            if journal is not None and syncer is not None:
                journal.answer(row, status_code, request_id, body)
                _sync(journal, syncer)
        finally:  # it was paid for, whether or not the disk has room
            self._put(Result(row.line, row.custom_id, load_json(body), None, status_code, request_id))

    def fail(self, row: Row | Rejected, code: str, message: str, **more: Any) -> None:
        if self._journal is not None and isinstance(row, Row):
            self._journal.fail(row, code)
        self._put(Result(row.line, row.custom_id, None, {"code": code, "message": message, **more}))

    def check(self) -> None:
        if self._journal is not None:
            self._journal.check()

    def give_up(self) -> None:
        """It waits for nothing."""

    def finish(self) -> None:
        """All is there already."""

    def _put(self, result: Result) -> None:
        self._ready.append(result)
        self._news.set()
