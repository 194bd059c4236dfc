"""A run by the Batch API: rows into parts, parts into batches, and answers into the same results.

One task does all of it, since nothing here is in a hurry: it reads, uploads a part as soon as it is full, creates its
batch as soon as the queue of its model takes it, looks at the batches now and then, and merges those that have ended.
Rows that expired, or met the service's own trouble, are read once more and go into a further part.

Each step is in the journal of the batches before the next one begins, so a run may end at any instant: batches go on
without it, and the same command finds them again.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, TypeVar

import anyio
import anyio.lowlevel

from penstock import clock
from penstock._numbers import number_of, show_dollars
from penstock.llm import failures
from penstock.llm.failures import Action
from penstock.runner.batch import answers
from penstock.runner.batch.api import Batches, GoneError, NoBatchesError, RefusedError, ServiceError, Transport
from penstock.runner.batch.parts import (
    CONTENT_TYPE,
    HELD,
    BatchJournal,
    FullQueue,
    Part,
    QueueLimits,
    Splitter,
    TooLargeError,
)
from penstock.runner.batch.state import BatchError, BatchState, queue_limit_in
from penstock.runner.batch.summary import Ended
from penstock.runner.files import OutputError
from penstock.runner.formats import FormatError
from penstock.runner.output import Results
from penstock.runner.ports import Known, words_of_change
from penstock.runner.secrets import Secrets
from penstock.runner.settings import Settings, Stopped
from penstock.runner.source import Lines, Rejected, Row, load_json, read_row
from penstock.runner.spilled import IdSet
from penstock.runner.summary import Counts
from penstock.runner.work import ambiguous

__all__ = ["BatchRun"]

FIRST_LOOK = 2.0
"""Seconds before the first look at a batch; later ones come less and less often, up to the longest pause."""

MANY = 1000
"""Rows that need another batch and are not kept waiting until the others have ended."""

REREAD = (2.0, 20.0, 60.0)
"""Seconds before each further look at the files of a batch that has more answers than they."""

ENDED = frozenset({"completed", "expired", "failed", "cancelled"})

_T = TypeVar("_T")


class BatchRun:
    """One pass over a file by the Batch API. `await run()` once.

    Attributes:
        counts: What happened so far; an attempt is a row in a batch.
        ended: The batches that are merged.
        last_error: What went wrong last, in words.
        stopped: Why the run ends early; None while it does not.
    """

    def __init__(
        self,
        lines: Lines,
        results: Results,
        settings: Settings,
        transport: Transport,
        journal: BatchJournal,
        *,
        queue_tokens: float | None = None,
        poll: float = 60.0,
        changed: str | None = None,
        cancel: bool = False,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Nothing is read or sent before the run is awaited.

        Args:
            lines: The requests, of a regular file.
            results: Where results and errors go.
            settings: How to run; what is about limits means nothing here.
            transport: How requests get there. It is entered by the run.
            journal: Where each step of a part is written down.
            queue_tokens: Tokens that all batches of a model may hold; None: the service will say when they are too
                many.
            poll: Longest pause between two looks at the batches, in seconds.
            changed: How rows in a batch are treated that were edited since. None: they are refused.
            cancel: Submit nothing; cancel the batches that are under way, and merge what they have done.
            say: Is told, once each, what a person should know while it goes on.
        """
        self.counts: Counts = Counts()
        self.ended: list[Ended] = []
        self.last_error: str = ""
        self.stopped: Stopped | None = None
        self.journal: BatchJournal = journal
        self._lines, self._results, self._settings, self._say = lines, results, settings, say
        self._transport, self._poll, self._changed, self._cancel = transport, poll, changed, cancel
        secrets = Secrets(settings.secrets)
        self._service = Batches(
            transport, give_up_after=settings.give_up_after, on_trouble=self._trouble, hide=secrets.hide
        )
        self._secrets = secrets
        self._queue = QueueLimits(queue_tokens)
        self._splitter = Splitter(self._queue, results.out_path.parent)
        self._scope: anyio.CancelScope  # from the beginning of the run on
        self._seen = IdSet()
        self._again: dict[int, int] = {}  # rows that are to be submitted once more, by name, with the round
        self._held: dict[str, FullQueue] = {}  # by model
        self._told_to_wait: dict[str, FullQueue] = {}  # by model: the service said how long it takes no batch
        self._said: set[str] = set()
        self._is_urgent = False
        self._lost: dict[int, tuple[int, str, str]] = {}  # rows to give up, by name: round, code, message
        self._account: str | None = None  # why the account takes nothing more
        self._pause = min(poll, FIRST_LOOK)

    @property
    def parts(self) -> list[Part]:
        """The parts that are not merged yet."""
        return list(self.journal.parts.values())

    async def __call__(self) -> None:
        """Work through the file; return when every row is done, or the run was stopped."""
        self.counts.began = self.counts.ended = clock.now()
        deadline, self._scope = self._settings.deadline, anyio.CancelScope()
        try:
            async with self._transport:
                with anyio.move_on_after(deadline) as timer, self._scope:
                    await self._see_through()
            if timer.cancelled_caught:
                self.stop("deadline", f"the deadline of {deadline:g} s is over")
            self._results.finish()
        except ServiceError as error:
            self.stop(error.code, str(error), error.status)
        except OutputError as error:
            self.stop("output", str(error))
        except FormatError as error:
            self.stop("input", str(error))
        finally:
            self._splitter.discard()
        self.counts.ended = clock.now()

    def stop(self, code: str, message: str, status: int | None = None) -> None:
        """End; batches go on without us. The first reason counts; see `Stopped`."""
        if self.stopped is None:
            self.stopped = Stopped(code, message, status)
            self._scope.cancel()

    # ------------------------------------------------------------------------------------------------------------------
    # The steps

    async def _see_through(self) -> None:
        await self._resume()
        await self._read()
        if self._cancel:
            await self._cancel_all()
            return
        while True:
            await self._submit()
            await self._look()
            self._results.check()
            if self._again and (self._is_urgent or len(self._again) >= MANY or not self.parts):
                await self._read_again()
            elif self.parts:
                await self._rest()
            else:
                return

    async def _rest(self) -> None:
        """Sleep until the next look at the batches, or until the service takes a batch again."""
        waits = [told.until - clock.now() for told in self._told_to_wait.values()]
        await anyio.sleep(min([self._pause, *(wait for wait in waits if wait > 0)]))
        self._pause = min(self._poll, self._pause * 1.5)

    async def _resume(self) -> None:
        """Find the batches of which an earlier run did not hear whether they were created."""
        for part in self.parts:
            if part.creating:
                await self._settle(part, looks=(0.0, 2.0))
        live = [part for part in self.parts if part.batch is not None]
        if live:
            rows, go = number_of(sum(map(len, live)), "row is", "rows are"), "goes" if len(live) == 1 else "go"
            self._say(f"{rows} in {number_of(len(live), 'batch', 'batches')} of an earlier run, which {go} on")

    async def _cancel_all(self) -> None:
        """End all batches, and merge what was done in them until then."""
        live = [part for part in self.parts if part.batch is not None]
        for part in self.parts:
            if part.batch is None:
                self.journal.dropped(part)
            else:
                await self._service.cancel(part.batch)
        while self.parts:
            await self._look()
            if self.parts:
                await self._rest()
        self.stop(
            "cancelled",
            f"{number_of(len(live), 'batch is', 'batches are')} cancelled: "
            f"{self.counts.answered:,} of their rows were answered until then, "
            "and the same command without --cancel submits the others",
        )

    async def _settle(self, part: Part, looks: tuple[float, ...] = (1.0, 10.0)) -> None:
        """Know whether a batch was created whose answer was lost."""
        try:
            found = await self._service.find(part.name, part.since, looks=looks)
        except NoBatchesError:
            found = None
            if self._settings.on_ambiguous == "fail":
                may_be = f"a batch of {number_of(len(part), 'row')} may have been created"
                raise ServiceError("service", f"{may_be}, and the server does not list batches") from None
            self.counts.ambiguous += len(part)
        if found is None:
            self.journal.refused(part)
        else:
            self._created(part, found)

    async def _read(self) -> None:
        """Put every row of the file where it belongs, for the first time."""
        # Of rows in batches of an earlier run:
        places = {name: (part, index) for part in self.parts for index, name in enumerate(part.names)}
        settings = self._settings
        for number, line in self._lines:
            passed, self._lines.passed = self._lines.passed, 0
            self.counts.rows += passed
            self.counts.skipped += passed
            if settings.rows is not None and self.counts.rows >= settings.rows:
                break
            self.counts.rows += 1
            row = read_row(number, line, settings.cost, settings.change, settings.salt)
            if isinstance(row, Rejected):
                self._fail(row, row.code, row.message)
            elif self._is_open(row) and not self._is_in_batch(row, places.get(row.name)):
                await self._admit(row)
            if self.counts.rows % 64 == 0:
                await anyio.lowlevel.checkpoint()
        self.counts.rows += self._lines.passed
        self.counts.skipped += self._lines.passed
        self._lines.passed = 0
        await self._flush()

    def _is_in_batch(self, row: Row, place: tuple[Part, int] | None) -> bool:
        """Whether a row is in a batch of an earlier run, which then is waited for."""
        if place is None:
            return False
        part, index = place
        if part.keys[index] != row.key and self._changed is None:
            raise ServiceError(
                "changed",
                f"line {row.line} asks something else than the row of its custom_id in batch {part.batch}: "
                "--changed=rerun asks again and drops that answer, --changed=keep keeps it",
            )
        if part.keys[index] != row.key and self._changed == "rerun":
            return False
        part.attach(index, row)
        return True

    async def _admit(self, row: Row) -> None:
        settings, may_be_billed = self._settings, self._results.may_be_billed(row)
        if self._cancel or not settings.wants(row):
            self.counts.left_out += 1
        elif may_be_billed and settings.on_ambiguous == "fail":
            self._fail(row, "ambiguous", ambiguous(self._settings.named))
        elif b'"stream":true' in row.body and load_json(row.body).get("stream") is True:
            self._fail(row, "stream_not_supported", 'the Batch API has no streams: leave "stream" out')
        else:
            self.counts.ambiguous += may_be_billed
            await self._add(row, 1)

    def _is_open(self, row: Row) -> bool:
        """Whether a row has neither an answer nor an earlier line of its name."""
        known = self._results.known(row)
        if known is Known.DUPLICATE or (known is Known.NEW and not self._seen.add(row.name)):
            self._fail(row, "duplicate_custom_id", f"an earlier line has the custom_id {row.custom_id!r} too")
        elif known is Known.ANSWERED:
            self.counts.skipped += 1
        elif known in {Known.CHANGED, Known.BY_ANOTHER}:
            raise ServiceError("changed", words_of_change(known, row.line, self._settings.named))
        else:
            return True
        return False

    async def _read_again(self) -> None:
        """Put those rows into parts once more that need another batch."""
        again, self._again, self._is_urgent = self._again, {}, False
        async for row, round_ in self._rows_of(again):
            await self._add(row, round_)
        await self._flush()
        self._pause = min(self._poll, FIRST_LOOK)

    async def _rows_of(self, wanted: dict[int, _T]) -> AsyncIterator[tuple[Row, _T]]:
        """Read the rows once more that have these names, which are taken out as they are found.

        Raises:
            FormatError: The file has not all of them any more.
        """
        settings = self._settings
        for number, line in self._lines.again() if wanted else ():
            row = read_row(number, line, settings.cost, settings.change, settings.salt)
            if isinstance(row, Row) and row.name in wanted:
                yield row, wanted.pop(row.name)
            if number % 64 == 0:
                await anyio.lowlevel.checkpoint()
            if not wanted:
                return
        if wanted:
            rows = number_of(len(wanted), "row", "rows")
            raise FormatError(f"{rows} that were read from it are not in it any more: it was changed meanwhile")

    async def _add(self, row: Row, round_: int) -> None:
        prices = self._settings.prices
        at_most = 0.0 if prices is None else prices.at_most(row)
        if at_most is None and self._settings.max_cost is not None:
            self._fail(
                row, "unknown_price", f"the price of {row.model!r} is not known, so --max-cost could not be kept"
            )
            return
        dollars = 0.0 if prices is None else (at_most or 0.0) * prices.batch
        try:
            full = self._splitter.add(row, round_, dollars)
        except TooLargeError as error:
            self._fail(row, "request_too_large", str(error))
            return
        if full is not None:
            await self._upload(full)
            await self._submit()

    async def _flush(self) -> None:
        for part in self._splitter.close():
            await self._upload(part)

    async def _upload(self, part: Part) -> None:
        assert part.form is not None
        with part.form as form:
            file = await self._service.upload(form, CONTENT_TYPE)
        part.form = None
        self.journal.uploaded(part, file.id, file.created_at)

    # ------------------------------------------------------------------------------------------------------------------
    # Batches

    async def _submit(self) -> None:
        """Create as many batches as the queues of their models take."""
        for part in self.parts:
            if part.batch is None and self._may_submit(part):
                await self._create(part)

    def _may_submit(self, part: Part) -> bool:
        live = [other for other in self.parts if other.batch is not None]
        limit = self._queue.of(part.model)
        held = (full.get(part.model) for full in (self._held, self._told_to_wait))
        if any(full is not None and clock.now() < full.until for full in held):
            return False
        queued = sum(other.tokens for other in live if other.model == part.model)
        if limit is not None and queued and queued + part.tokens > limit:
            return False
        most = self._settings.max_cost
        reserved = self.counts.dollars + sum(other.dollars for other in live)
        if most is None or reserved + part.dollars <= most:
            return True
        if not live:
            self.stop(
                "cost",
                f"a batch of {number_of(len(part), 'row')} may cost {show_dollars(part.dollars, 4)}, "
                f"and of --max-cost {show_dollars(most, 4)} {show_dollars(self.counts.dollars, 4)} are spent",
            )
        return False

    async def _create(self, part: Part) -> None:
        self.journal.creating(part)
        try:
            told = await self._service.create(part.file, part.endpoint, part.name)
        except RefusedError as refused:
            self.journal.refused(part)
            verdict = refused.verdict
            if verdict.action in {Action.WAIT, Action.BACK_OFF}:
                self._hold(part.model, verdict.wait, str(refused))
                return
            if part.is_resumed:  # the service may have deleted its file since
                self._upload_again(part, f"is refused: {self._secrets.hide(str(refused))}")
                return
            why = part.round, verdict.code or f"http_{refused.status}", self._secrets.hide(str(refused))
            self._lost |= dict.fromkeys(part.waited(), why)
            await self._fail_lost()
            self.journal.dropped(part)
            return
        if told is None:
            await self._settle(part)
        else:
            self._created(part, told)

    def _upload_again(self, part: Part, why: str) -> None:
        """The rows of a part go into further ones."""
        self._trouble(f"a file of {number_of(len(part), 'row')} for {part.model or 'no model'} {why}")
        self._again |= dict.fromkeys(part.waited(), part.round)
        self._is_urgent = True
        self.journal.dropped(part)

    def _created(self, part: Part, told: BatchState) -> None:
        self.journal.created(part, told.id)
        self._told_to_wait.pop(part.model, None)
        part.status = told.status
        self.counts.sent += len(part)
        self.counts.retries += len(part) if part.round > 1 else 0
        rows, are = number_of(len(part), "row"), "is" if len(part) == 1 else "are"
        self._say(f"batch {part.batch}: {rows} for {part.model or 'no model'} {are} submitted")

    def _hold(self, model: str, wait: float | None, reason: str) -> None:
        """Leave a model's queue alone: for as long as the service asks, or for a while; longer each time."""
        now, patience = clock.now(), self._settings.give_up_after
        queues, first = (self._held, HELD) if wait is None else (self._told_to_wait, max(wait, 1.0))
        full = queues.setdefault(model, FullQueue(now, now, first))
        if now - full.since >= patience:
            raise ServiceError("account", f"the queue of {model} takes nothing more: {reason}")
        full.until = min(now + max(wait or 0.0, full.wait), full.since + patience)
        full.wait = min(full.wait * 2, 600.0)
        self._trouble(reason)

    async def _look(self) -> None:
        """Look at every batch, and merge those that have ended."""
        for part in self.parts:
            if part.batch is None:
                continue
            told = await self._service.retrieve(part.batch)
            status, done = told.status, told.completed + told.failed
            if (status, done) != (part.status, part.done):
                part.status, part.done = status, done
                self._pause = min(self._poll, max(FIRST_LOOK, self._pause / 2))
                self._say(f"batch {part.batch}: {status}, {done:,} of {number_of(len(part), 'row')} done")
            if status in ENDED:
                await self._end(part, told)

    async def _end(self, part: Part, told: BatchState) -> None:
        """A batch has ended: merge what it brought."""
        full = next((error for error in told.errors if error.code == "token_limit_exceeded"), None)
        if full is not None and told.status == "failed":
            self._queue_is_full(part, full.message)
            return
        self._held.pop(part.model, None)
        before = self.counts.answered, self.counts.failed, len(self._again)
        if part.status == "failed" and not told.files:
            self._refuse_rows(part, told.errors)
        else:
            await self._merge(part, told)
        await self._fail_lost()
        batch, rows, cancelled = str(part.batch), len(part), part.status == "cancelled"
        answered, failed = self.counts.answered - before[0], self.counts.failed - before[1]
        again = len(self._again) - before[2]
        self.ended.append(Ended(batch, part.model, rows, part.status, answered, failed, again))
        self._results.check()
        self.journal.merged(part)
        if self._account is not None:
            raise ServiceError("account", self._account)
        if cancelled and again and not self._cancel:
            self.stop("interrupted", f"batch {batch} was cancelled at the service: {again:,} of its rows are not done")

    def _queue_is_full(self, part: Part, message: str) -> None:
        """A batch was refused because its model's queue holds too many tokens."""
        limit = queue_limit_in(message)
        others = [other for other in self.parts if other.batch and other.model == part.model and other is not part]
        self.counts.sent -= len(part)
        self.journal.refused(part)
        if limit is not None:
            self._queue.told(part.model, limit)
        most, full = self._queue.of(part.model), self._held.get(part.model)
        is_too_large = most is not None and part.tokens > most
        # The service may count otherwise: if it refuses again with nothing of ours in the way, a smaller one may do.
        if is_too_large or (
            not others and len(part) > 1 and full is not None and (limit is None or full.wait > 4 * HELD)
        ):
            if not is_too_large:
                self._queue.halve(part.model, part.tokens)
            self._upload_again(part, f"holds {part.tokens:,.0f} tokens, above its queue: they go into smaller batches")
        elif not others:
            self._hold(part.model, None, message)
        else:
            self._trouble(message)
            self._held[part.model] = FullQueue(math.inf, clock.now())  # until one of the others ends

    def _refuse_rows(self, part: Part, errors: Sequence[BatchError]) -> None:
        """A batch was refused when it was checked.

        The rows that were named are given up, the others go into a further one.
        """
        named = {error.line: error for error in errors if error.line is not None and error.line <= len(part)}
        first = errors[0] if errors else BatchError("batch_failed", "the batch failed, and nothing says why", None)
        verdict = failures.judge(400, {"error": {"code": first.code, "message": first.message}}, {})
        if verdict.action is Action.STOP:
            self._account = self._secrets.hide(verdict.message or first.code)
        for name, index in part.waited().items():
            error = named.get(index + 1) if named else first
            if error is None or self._account is not None:
                self._again[name] = part.round
            else:
                self._lost[name] = part.round, error.code or "batch_failed", self._secrets.hide(error.message)

    async def _merge(self, part: Part, told: BatchState) -> None:
        """Write the answers of a batch to where they belong. Made twice, it does the same."""
        places = part.waited()
        done = told.completed
        waits = iter(REREAD)
        while True:
            found = sum([await self._merge_file(part, file, places) for file in told.files])
            if found >= done or not places or (wait := next(waits, None)) is None:
                break
            # An answer that is not found would be paid for twice, and a file may be cut or late without a word.
            self._trouble(
                f"batch {part.batch} says that {number_of(done, 'row is', 'rows are')} done, "
                f"and its files have {found:,}: they are read again"
            )
            await anyio.sleep(wait)
        missing = max(0, done - found)
        if missing and part.round > 1 and self._settings.on_ambiguous == "rerun":
            words = f"batch {part.batch} says once more that {number_of(done, 'row is', 'rows are')} done"
            raise ServiceError("service", f"{words}, and its files have {found:,}: they are not paid for a third time")
        self.counts.ambiguous += min(missing, len(places))
        for name in places:
            if missing and self._settings.on_ambiguous == "fail":
                self._lost[name] = part.round, "ambiguous", ambiguous(self._settings.named)
            else:
                self._try_again(part, name, "no_result", "the batch ended without a word about this row")

    async def _merge_file(self, part: Part, file: str, places: dict[int, int]) -> int:
        """Write what a file says of the rows that are in `places`, and take them out; return the rows it is about."""
        found = 0
        with tempfile.TemporaryFile(dir=self._results.out_path.parent) as content:
            try:
                await self._service.download(file, content)
            except GoneError as error:
                self._trouble(f"a file of batch {part.batch} is not there: {error}")
                return 0
            content.seek(0)
            for number, line in enumerate(content):
                result = answers.read(line)
                found += result is not None
                index = None if result is None else places.pop(result.name, None)
                if result is not None and index is not None:
                    self._take(part, index, result)
                if number % 64 == 63:
                    await anyio.lowlevel.checkpoint()
        return found

    def _take(self, part: Part, index: int, result: answers.ResultLine) -> None:
        """Write down how a row ended."""
        row, prices = part.row(index, result.custom_id), self._settings.prices
        outcome = answers.judge(part.endpoint, result)
        if isinstance(outcome, answers.Answer):
            self._results.answer(row, result.status, result.request_id, outcome.body)
            self.counts.answered += 1
            if prices is not None:
                self.counts.paid(prices.paid(part.model, outcome.body), prices.batch)
            return
        code = outcome.code or f"http_{result.status}"
        message = self._secrets.hide(outcome.message) or f"the batch answered with status {result.status}"
        if outcome.action is Action.STOP:
            self._account = message
            self._again[row.name] = part.round
        elif outcome.action in {Action.WAIT, Action.BACK_OFF}:
            self._try_again(part, row.name, code, message)
        else:
            more = {"status_code": result.status, "body": result.body} if result.status else {}
            self._fail(row, code, message, attempts=part.round, **more)

    def _try_again(self, part: Part, name: int, code: str, message: str) -> None:
        """A row met the service's own trouble, or no time: it goes into a further batch, if it was not in too many."""
        if part.round < self._settings.attempts:
            self._again[name] = part.round + 1
        else:
            self._lost[name] = part.round, code, message

    async def _fail_lost(self) -> None:
        """Give rows up of which only their number is known: the file has their names."""
        lost, self._lost = self._lost, {}
        async for row, (round_, code, message) in self._rows_of(lost):
            self._fail(row, code, message, attempts=round_)

    def _fail(self, row: Row | Rejected, code: str, message: str, **more: Any) -> None:
        self._results.fail(row, code, message, **more)
        self.counts.gave_up(code)
        self.last_error = message

    def _trouble(self, reason: str) -> None:
        """Say once what goes wrong."""
        self.last_error = reason
        if reason not in self._said and len(self._said) < 1000:
            self._said.add(reason)
            self._say(reason)
