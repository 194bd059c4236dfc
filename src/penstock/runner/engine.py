"""A run: rows in, results out, as fast as the limits allow and never faster.

Three kinds of tasks: one reads ahead, one chooses which row goes next (`mix`), and each chosen row has one of its own, which
waits for the limiter, sends, and tries again if that is worth it. Every attempt is charged, and nobody sleeps while holding
a permit. How the limiter keeps in step with the server's own buckets is the business of `penstock.llm.endpoints`.

Memory is bounded: so many rows are read ahead, so many are on their way, and of all others there is one digest.

Stopping has two steps. `stop` lets what is on its way to the server come back and leaves the rest untouched; `abandon` waits
for nothing. Either way the results are on disk, and the same command goes on from there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import httpx2

from penstock import Limiter, Rate, clock
from penstock.errors import CostError, Unsatisfiable
from penstock.llm import failures
from penstock.llm import headers as _headers
from penstock.llm.discovered import DiscoveredEndpoint
from penstock.llm.endpoints import Endpoint, RequestInFlight
from penstock.llm.failures import Action, Verdict
from penstock.llm.headers import Quota, Reading
from penstock.llm.tokens import Cost
from penstock.retry import Retry
from penstock.runner.mix import Level, Mix
from penstock.runner.output import OutputError, Results
from penstock.runner.source import IdSet, Lines, Rejected, Row, dump_json, load_json, read_row
from penstock.runner.summary import Allowance, Allowances, Counts

__all__ = ["Group", "Limits", "LimitsOf", "Run", "Settings", "Stopped"]

Limits = Mapping[str, tuple[Rate, ...]]
"""Unit → its limits."""

LimitsOf = Callable[[str], tuple[str, Limits | None]]
"""Model → (name of the models that share its limits, the limits; None: the server's answers will tell)."""

WINDOW = 500
"""Rows that are read ahead, to choose from."""

WINDOW_BYTES = 64 * 1024 * 1024
"""Bytes of them. At least one row is always read."""

WORKING_BYTES = 256 * 1024 * 1024
"""Bytes of the rows that are worked on. At least one row always is."""

LINE = 2
"""Rows that wait in a limiter's line: enough that it never runs dry, and few, because their order is settled."""

LONGEST_CONNECT = 30.0
"""Seconds to wait for a connection, however long an attempt may be silent afterwards."""

SHORTEST_KEY = 8
"""Characters of a key that is worth hiding. What is shorter is a word that stands for no key, such as "none"."""

MAX_KEPT = 20_000
"""Characters kept of an answer that is not JSON."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How to run.

    Attributes:
        base_url: Of the server, as SDKs want it: `https://api.openai.com/v1`.
        api_key: Sent as a bearer token; None: nothing is sent.
        max_in_flight: Rows that are worked on at once, those between two attempts included.
        attempts: Attempts per row, the first included.
        timeout: Seconds an attempt may be silent for.
        idle: Seconds since an earlier run used these limits up; `inf`: they are whole.
        direct: Past any proxy that the environment names.
        cost: What a request takes, of (path, body).
    """

    base_url: str
    api_key: str | None
    cost: Cost
    max_in_flight: int = 1000
    attempts: int = 8
    timeout: float = 600.0
    idle: float = math.inf
    direct: bool = False


@dataclass(frozen=True, slots=True)
class Stopped:
    """Why a run ended before its file did.

    Attributes:
        code: `interrupted`, `account`, `output` or `input`.
        message: A sentence.
    """

    code: str
    message: str


class Group:
    """The models that share limits: their endpoint, and their rows that wait to be chosen."""

    def __init__(self, name: str, limits: Limits | None, settings: Settings) -> None:
        """Begin with what the limits have regained since they were last used, taken for empty then.

        Args:
            name: Of the models; `""` where all models share the limits.
            limits: What the server enforces, at least one per unit. None: its answers will tell.
            settings: `idle` is read.
        """
        self.name = name
        self.mix = Mix()
        self.in_line = 0
        self._line: dict[str, float] = {}
        self._promised = limits
        self._idle = settings.idle
        if limits is None:
            self.endpoint: Endpoint = DiscoveredEndpoint()
        else:
            given: dict[str, Any] = {unit: list(rates) for unit, rates in limits.items()}
            limiter = Limiter(**given)
            if math.isfinite(self._idle):
                limiter.observe(
                    remaining={unit: min(each.at_start for each in those) for unit, those in self.allowances.items()}
                )
            self.endpoint = Endpoint(limiter)

    @property
    def limits(self) -> Limits:
        """What the server enforces, as it was promised, or as far as its answers have told."""
        if self._promised is not None:
            return self._promised
        told = {
            unit: tuple(limit for limit in limits if isinstance(limit, Rate))
            for unit, limits in self.endpoint.limits.items()
        }
        return {unit: rates for unit, rates in told.items() if rates}

    @property
    def allowances(self) -> Allowances:
        """What the limits allow from the beginning of the run on."""
        return {
            unit: tuple(
                # Of several limits on a unit, the smallest is the one that an earlier run had used up.
                Allowance(rate, min(rate.burst, self._idle * rate.rate) if rate is least else rate.burst)
                for rate in rates
            )
            for unit, rates in self.limits.items()
            for least in [min(rates, key=lambda rate: rate.burst)]
        }

    def too_large(self, row: Row) -> str | None:
        """Why a row can never be sent; None if it can, as far as is known."""
        for unit, rates in self.limits.items():
            cost = row.cost.get(unit, 0.0)
            for rate in rates:
                if cost > rate.burst:
                    return (
                        f"{cost:,.0f} {unit} can never be granted: the limit {rate} holds at most {rate.burst:,.0f} at once. "
                        "Split the request, or raise the limit"
                    )
        return None

    async def acquire(self, cost: Mapping[str, float], priority: int) -> RequestInFlight:
        """Wait for a turn and charge it.

        Raises:
            CostError: No wait would do.
        """
        while True:
            limiter, charge = self.endpoint.ask(cost)
            try:
                permit = await limiter.acquire(priority=priority, **charge)
            except Unsatisfiable:
                if self.endpoint.ask(cost)[1] == charge:
                    raise
                continue  # the limits were learned meanwhile, and it is charged less under the new ones
            return self.endpoint.granted(permit, cost)

    def heard(self, sent: RequestInFlight, response: httpx2.Response) -> None:
        """Learn from the headers of an answer."""
        self.endpoint.left(sent)  # at the latest now
        reading = _headers.read(response.headers, response.status_code, wall=clock.wall())
        quotas = tuple(quota for quota in reading.quotas if self._comparable(quota))
        self.endpoint.answered(sent, response.status_code, Reading(quotas, reading.retry_after))

    def _comparable(self, quota: Quota) -> bool:
        """Whether what remains, as headers tell it, is of a bucket of the size that they tell. We may know of a smaller one."""
        known = () if self._promised is None else self._promised.get(quota.unit, ())
        return not any(rate.amount == quota.limit != rate.burst for rate in known)

    def enter(self, cost: Mapping[str, float], step: int) -> None:
        """Count a row into the limiter's line (1) or out of it (-1)."""
        self.in_line += step
        for unit, units in cost.items():
            self._line[unit] = self._line.get(unit, 0.0) + step * units

    def levels(self) -> list[Level]:
        """How full the limits are, with what the line will take gone already."""
        return [
            Level(one.unit, one.capacity, one.rate, one.level - self._line.get(one.unit, 0.0))
            for one in self.endpoint.levels()
        ]


class Run:
    """One pass over a file. `await run()` once; everything else may be called from other tasks of the same loop.

    Attributes:
        concurrency: Rows that are worked on at once.
        counts: What happened so far.
        groups: The limits in use, by the name of their models.
        stopped: Why the run ends early; None while it does not.
    """

    def __init__(
        self,
        lines: Lines,
        results: Results,
        settings: Settings,
        limits_of: LimitsOf,
        *,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        """Nothing is read or sent before the run is awaited.

        Args:
            lines: The requests.
            results: Where results and errors go; rows that are answered there are skipped.
            settings: How to run.
            limits_of: The limits of a model. ValueError: it has none.
            transport: What sends; for tests, and for servers that are no sockets.
        """
        self.counts = Counts()
        self.groups: dict[str, Group] = {}
        self.stopped: Stopped | None = None
        self._lines = lines
        self._iterator = iter(lines)
        self._results = results
        self._settings = settings
        self._limits_of = limits_of
        self._seen = IdSet()
        self._read_all = False
        # A choice is the better the more there is to choose from, and a file is read in no time.
        self._may_choose = not lines.is_regular
        self._working = 0
        self._working_bytes = 0
        self._changed = anyio.Event()
        self._waits: set[anyio.CancelScope] = set()
        self._sends: set[anyio.CancelScope] = set()
        self._retry = Retry(on=_again, attempts=settings.attempts, within=None, hint=None)
        self.concurrency = places = settings.max_in_flight
        self._traced = transport is None  # a transport of another kind does not say when it sends
        self._client = httpx2.AsyncClient(
            transport=transport,
            trust_env=not settings.direct,
            timeout=httpx2.Timeout(settings.timeout, connect=min(LONGEST_CONNECT, settings.timeout), pool=None),
            # Few idle connections: the pool looks at each of them for every request, at 0.1 ms of CPU apiece. And none for
            # longer than a little below the 5 seconds after which many servers hang up.
            limits=httpx2.Limits(max_connections=places, max_keepalive_connections=20, keepalive_expiry=4.0),
            headers={"content-type": "application/json", "user-agent": "penstock"}
            | ({} if settings.api_key is None else {"authorization": f"Bearer {settings.api_key}"}),
        )

    async def __call__(self) -> None:
        """Work through the file; return when every row is done, or the run was stopped and nothing is on its way."""
        self.counts.began = self.counts.ended = clock.now()
        async with self._client, anyio.create_task_group() as tasks:
            tasks.start_soon(self._read)
            while (chosen := await self._choose()) is not None:
                self._working += 1
                self._working_bytes += len(chosen.row.body)
                tasks.start_soon(self._work, chosen)

    def stop(self, code: str, message: str) -> None:
        """Send nothing more; let what was sent come back. The first reason counts."""
        if self.stopped is None:
            self.stopped = Stopped(code, message)
            self._lines.stop()
            for scope in list(self._waits):
                scope.cancel()
            self._tell()

    def abandon(self) -> None:
        """Do not wait for what was sent either. `stop` comes first."""
        for scope in list(self._sends):
            scope.cancel()

    # ------------------------------------------------------------------------------------------------------------------
    # Reading ahead

    async def _read(self) -> None:
        """Keep the window full until the file ends."""
        try:
            while self.stopped is None:
                if self._window_is_full():
                    self._begin_choosing()
                    await self._changed.wait()
                    continue
                if self._lines.is_regular:
                    entry = next(self._iterator, None)
                    await anyio.lowlevel.checkpoint()
                else:  # a pipe keeps us waiting as long as it likes, so it may not keep the loop
                    entry = await anyio.to_thread.run_sync(next, self._iterator, None, abandon_on_cancel=True)
                if entry is None:
                    break
                self.counts.rows += 1
                self._sort_in(read_row(*entry, cost=self._settings.cost))
        except OSError as error:
            self.stop("input", f"cannot read {self._lines.name}: {error.strerror or error}")
        except OutputError as error:
            self.stop("output", str(error))
        finally:
            self._read_all = True
            self._begin_choosing()
            self._tell()

    def _begin_choosing(self) -> None:
        if not self._may_choose:
            self._may_choose = True
            self._tell()

    def _window_is_full(self) -> bool:
        mixes = [group.mix for group in self.groups.values()]
        return sum(map(len, mixes)) >= WINDOW or sum(mix.bytes for mix in mixes) >= WINDOW_BYTES

    def _sort_in(self, row: Row | Rejected) -> None:
        """Put a row where it belongs: into the window, among the errors, or nowhere if it is answered already."""
        if isinstance(row, Rejected):
            self._fail(row, row.code, row.message)
        elif not self._seen.add(row.custom_id):
            self._fail(row, "duplicate_custom_id", f"an earlier line has the custom_id {row.custom_id!r} too")
        elif row.custom_id in self._results.answered:
            self.counts.skipped += 1
        else:
            try:
                name, limits = self._limits_of(row.model)
            except ValueError as error:
                self._fail(row, "unknown_model", str(error))
                return
            group = self.groups.get(name)
            if group is None:
                group = self.groups[name] = Group(name, limits, self._settings)
            reason = group.too_large(row)
            if reason is None:
                group.mix.add(row)
                self._tell()
            else:
                self._fail(row, "request_too_large", reason)

    def _fail(self, row: Row | Rejected, code: str, message: str, **more: Any) -> None:
        self._results.fail(row, code, message, **more)
        self.counts.failed += 1

    # ------------------------------------------------------------------------------------------------------------------
    # Choosing

    async def _choose(self) -> _Work | None:
        """Wait for a row that should go next; None when there will be none."""
        while self.stopped is None:
            if self._may_choose and self._working < self.concurrency and self._working_bytes < WORKING_BYTES:
                for group in self.groups.values():
                    if group.in_line < LINE and len(group.mix):
                        work = _Work(group, group.mix.take(group.levels()))
                        self._tell()
                        return work
            if self._read_all and not any(len(group.mix) for group in self.groups.values()):
                return None
            await self._changed.wait()
        return None

    def _tell(self) -> None:
        """Wake whoever waits for a change."""
        self._changed.set()
        self._changed = anyio.Event()

    # ------------------------------------------------------------------------------------------------------------------
    # Working on a row

    async def _work(self, work: _Work) -> None:
        """See a row through: answered, among the errors, or untouched because the run was stopped."""
        waits = anyio.CancelScope()
        self._waits.add(waits)
        try:
            with waits:
                while self.stopped is None:
                    answered = self.counts.answered
                    try:
                        await self._retry.call(self._attempt, work)
                        break
                    except _Refused as refused:
                        # Told to wait again and again, while others got through: it is a matter of time, not of this row.
                        if refused.verdict.action is not Action.WAIT or self.counts.answered == answered:
                            raise
        except _Abandoned:
            pass
        except OutputError as error:
            self.stop("output", str(error))
        except _Refused as refused:
            self._refused(work, refused)
        except CostError as error:
            self._give_up(work, "request_too_large", str(error))
        except httpx2.TransportError as error:
            self._give_up(work, "connection_error", f"{type(error).__name__}: {str(error) or self._silence(error)}")
        except httpx2.DecodingError as error:
            self._give_up(work, "invalid_response", f"the answer cannot be decompressed: {error}")
        except Exception as error:  # noqa: BLE001 - whatever is wrong with one row must not end all others
            self._give_up(work, "internal_error", f"{type(error).__name__}: {error}")
        finally:
            self._waits.discard(waits)
            work.leave_line()
            self._working -= 1
            self._working_bytes -= len(work.row.body)
            self._tell()

    async def _attempt(self, work: _Work) -> None:
        """Wait for the limiter, send, and write the answer down."""
        counts, group, cost = self.counts, work.group, work.row.cost
        work.enter_line()
        counts.waiting += 1
        try:
            # A row that was sent before goes first: it is the oldest, and its place in memory is wanted.
            sent = await group.acquire(cost, min(work.attempts, 1))
        finally:
            counts.waiting -= 1
            work.leave_line()
            self._tell()
        permit = sent.permit
        counts.last_sent = granted = permit.granted_at
        counts.in_flight += 1
        counts.spend(group.name, cost, first=work.attempts == 0)
        if work.attempts == 0:
            work.earliest = counts.earliest(group.name, group.allowances)
        sends = anyio.CancelScope(shield=True)  # `stop` cancels whoever waits, and lets come back what was sent
        self._sends.add(sends)
        try:
            with permit, sends:
                await self._send(work, sent)
                return
        finally:
            if sent.left_at is None:
                group.endpoint.never_left(sent)
            self._sends.discard(sends)
            counts.in_flight -= 1
            counts.ended = clock.now()
            counts.took(work.earliest, counts.ended - granted)
        raise _Abandoned

    async def _send(self, work: _Work, sent: RequestInFlight) -> None:
        row, endpoint, counts = work.row, work.group.endpoint, self.counts
        work.attempts += 1
        counts.sent += 1
        counts.retries += work.attempts > 1

        async def trace(event: str, _: Any) -> None:
            if event.endswith("send_request_headers.started"):
                endpoint.left(sent)

        if not self._traced:
            endpoint.left(sent)
        url = _url(self._settings.base_url, row.path)
        response = await self._client.post(url, content=row.body, extensions={"trace": trace})
        content, status = response.content, response.status_code
        work.group.heard(sent, response)
        if not 200 <= status < 300:
            content = self._without_key(content)
            refused = _Refused(failures.judge(status, content, response.headers), response, content)
            if status == 429:
                counts.status_429 += 1
            if refused.verdict.action is Action.WAIT:
                endpoint.refused(sent, refused.verdict)  # everybody waits, once
            raise refused
        try:
            body = dump_json(load_json(content))
        except (ValueError, RecursionError):
            verdict = Verdict(
                Action.PERMANENT, None, "invalid_response", f"the answer with status {status} is not JSON"
            )
            raise _Refused(verdict, response, self._without_key(content)) from None
        self._results.answer(row, status, response.headers.get("x-request-id"), body)
        counts.answered += 1

    def _silence(self, error: httpx2.TransportError) -> str:
        """What happened, where the error has no words of its own: those of timeouts have none."""
        if isinstance(error, httpx2.ConnectTimeout):
            return f"no connection within {min(LONGEST_CONNECT, self._settings.timeout):g} s"
        if isinstance(error, httpx2.TimeoutException):
            return f"the server was silent for {self._settings.timeout:g} s"
        return "the connection was lost"

    def _without_key(self, content: bytes) -> bytes:
        """What a server says of a key that it does not like, in words that may be kept and shown."""
        key = (self._settings.api_key or "").encode()
        return content.replace(key, b"[the key]") if len(key) >= SHORTEST_KEY else content

    def _refused(self, work: _Work, refused: _Refused) -> None:
        verdict, response = refused.verdict, refused.response
        if verdict.action is Action.STOP:
            said = verdict.message or verdict.code or "the server takes no request with this key"
            code = f", {verdict.code}" if verdict.code else ""
            self.stop("account", f"{said} (status {response.status_code}{code})")
            return
        self._give_up(
            work,
            verdict.code or f"http_{response.status_code}",
            verdict.message or f"the server answered with status {response.status_code}",
            status_code=response.status_code,
            request_id=response.headers.get("x-request-id"),
            body=_readable(refused.content),
        )

    def _give_up(self, work: _Work, code: str, message: str, **more: Any) -> None:
        try:
            self._fail(work.row, code, message, attempts=work.attempts, **more)
        except OutputError as error:
            self.stop("output", str(error))


class _Work:
    """A row that is worked on. It counts as one in the limiter's line from the moment it is chosen."""

    __slots__ = ("attempts", "earliest", "group", "in_line", "row")

    def __init__(self, group: Group, row: Row) -> None:
        self.group = group
        self.row = row
        self.attempts = 0
        self.earliest = 0.0
        self.in_line = False
        self.enter_line()

    def enter_line(self) -> None:
        if not self.in_line:
            self.in_line = True
            self.group.enter(self.row.cost, 1)

    def leave_line(self) -> None:
        if self.in_line:
            self.in_line = False
            self.group.enter(self.row.cost, -1)


class _Refused(Exception):  # noqa: N818 - never leaves this module
    """The server answered, but not with a result."""

    def __init__(self, verdict: Verdict, response: httpx2.Response, content: bytes) -> None:
        super().__init__(verdict.message)
        self.verdict = verdict
        self.response = response
        self.content = content


class _Abandoned(Exception):  # noqa: N818 - never leaves this module
    """Nobody waits for the answer any more."""


def _again(error: Exception) -> bool | float:
    """Whether an attempt is worth another."""
    if isinstance(error, _Refused):
        verdict = error.verdict
        return verdict.retryable and (True if verdict.wait is None else verdict.wait)
    return isinstance(error, httpx2.TransportError)


def _url(base_url: str, path: str) -> str:
    """`https://host/v1` and `/v1/chat/completions` meet in `/v1`; a base without any path takes the whole of it."""
    base = base_url.rstrip("/")
    has_path = "/" in base.partition("://")[2]
    return base + (path.removeprefix("/v1") if has_path else path)


def _readable(content: bytes) -> Any:
    """An answer that is no result, to be kept beside the error: as JSON if it is that, else as text."""
    try:
        value = load_json(content)
        dump_json(value)
        return value
    except (ValueError, RecursionError):
        return content.decode("utf-8", "replace")[:MAX_KEPT]
