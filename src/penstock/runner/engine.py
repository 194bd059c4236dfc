"""A run: rows in, results out, as fast as the limits allow and never faster.

One task reads ahead. All others see rows through, one after another: each takes the row that should go next (`mix`),
waits for the limiter, sends, and tries again if that is worth it. Every attempt is charged, and no task sleeps while it
holds a permit. `penstock.llm.endpoints` keeps the limiter in step with the server's own buckets; `troubles`
decides what is done about an attempt that was not answered.

Memory is bounded: so many rows are read ahead, so many are on their way, and of all others there is a digest.

Stopping has two steps. `stop` lets what is on its way to the server come back and leaves the rest untouched; `abandon`
waits for nothing. Either way the results are on disk, and the same command goes on from there.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from typing import Any

import anyio
import anyio.to_thread
from anyio.abc import TaskGroup

from penstock import clock
from penstock.errors import CostError, RateLimited, StoreError
from penstock.events import Answered, Reconfigured
from penstock.llm.endpoints import RequestInFlight
from penstock.runner import answers
from penstock.runner.client import Lost, NotSent, Reply, Unreadable
from penstock.runner.files import KeptError, OutputError
from penstock.runner.formats import FormatError
from penstock.runner.group import Group
from penstock.runner.outage import ServerOutage
from penstock.runner.place import Limits, Place
from penstock.runner.pool import Pool, settle
from penstock.runner.ports import Known, Sink, Source, words_of_change
from penstock.runner.prices import usage_of
from penstock.runner.settings import Settings, Stopped
from penstock.runner.source import Rejected, Row, read_row
from penstock.runner.spending import Spending
from penstock.runner.spilled import IdSet
from penstock.runner.summary import Counts
from penstock.runner.troubles import Troubles
from penstock.runner.work import RefusedReply, Work, ambiguous

__all__ = ["Run"]

WINDOW = 500
"""Rows that are read ahead, to choose from."""

WINDOW_BYTES = 64 * 1024 * 1024
"""Bytes of them. At least one row is always read."""

FAR = 10_000
"""Rows that are read ahead of a file while no row of the window can go. A file may be sorted by model: those of a model
whose limits are free stand behind thousands that wait."""

FAR_BYTES = 16 * 1024 * 1024
"""Bytes from which on that is not done."""

READ_AT_ONCE = 32
"""Rows of the window that are gone before more are read: waking up for each would cost as much as reading it."""

WORKING_BYTES = 256 * 1024 * 1024
"""Bytes of the rows that are worked on. At least one row always is."""

LOOK_AROUND = 5.0
"""Seconds for which a row waits at one of several places before it is looked whether another would take it sooner."""

HEAD_START = 0.05
"""Seconds for which a file is read before anything is chosen: a choice is the better the more there is."""

TICK = 0.5
"""Seconds between two looks at deadlines and files."""


class Run:
    """One pass over a file. `await run()` once; everything else may be called from other tasks of the same loop.

    Attributes:
        concurrency: Rows that are worked on at once.
        counts: What happened so far.
        groups: The limits in use, by the name of their models, and of their place if there are several.
        places: Where rows may go.
        stopped: Why the run ends early; None while it does not.
    """

    def __init__(
        self,
        lines: Source,
        results: Sink,
        settings: Settings,
        places: Sequence[Place],
        *,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Nothing is read or sent before the run is awaited.

        Args:
            lines: The requests.
            results: Where results and errors go; rows that are answered there already are skipped.
            settings: How to run.
            places: Where rows may go, at least one; of several, each row goes to the one that can take it first. The
                run enters their clients.
            say: Is told, once each, what a person should know while it goes on.
        """
        self.counts: Counts = Counts()
        self.groups: dict[str, Group] = {}
        self.places: tuple[Place, ...] = tuple(places)
        for place in self.places:
            place.outage = ServerOutage(settings.give_up_after)
        self.stopped: Stopped | None = None
        self._lines = lines
        self._results = results
        self._settings = settings
        self._pools: dict[str, Pool] = {}
        self._seen = IdSet()
        self._read_all = False
        self._may_choose = not lines.is_regular
        self._none_can_go = False  # no row of the window: all of them have to wait for their limits
        self._workers = self._idle = 0
        self._choosing = anyio.Lock(fast_acquire=True)
        self._working_bytes = self._window_rows = self._window_bytes = 0
        self._changed = anyio.Event()
        self._spending = Spending.of(settings.max_cost, settings.prices)
        self._sleepers = False  # whether anything waits for a change that has not come yet
        self._told_limits: dict[str, Limits] = {}
        self._room = anyio.Event()
        self._works: set[Work] = set()
        self._troubles = Troubles(
            settings, self.counts, self.places, left=self._left, give_up=self._give_up, stop=self.stop, say=say
        )
        self.concurrency: int = settings.max_in_flight

    @property
    def outage(self) -> ServerOutage:
        """Whether the server is there; of several, whether any of them is."""
        outages = [place.outage for place in self.places if not place.closed]
        return next((one for one in outages if one.since is None), outages[0] if outages else self.places[0].outage)

    def rows_of(self, lines: int) -> int:
        """How many rows of a file of so many lines are worked on, at most."""
        return self._settings.of(lines)

    @property
    def last_error(self) -> str:
        """What went wrong last, in words."""
        return self._troubles.last_error

    async def __call__(self) -> None:
        """Work through the file; return when every row is done, or the run was stopped and nothing is on its way."""
        self.counts.began = self.counts.ended = clock.now()
        async with contextlib.AsyncExitStack() as clients, anyio.create_task_group() as tasks:
            for place in self.places:
                await clients.enter_async_context(place.client)
            watch = anyio.CancelScope()
            tasks.start_soon(self._watch, watch)
            async with anyio.create_task_group() as work:
                work.start_soon(self._read)
                self._begin_worker(work)
            watch.cancel()
        if self.stopped is None:
            self._troubles.end()
        await self._finish()

    async def _finish(self) -> None:
        if self.stopped is not None and self.stopped.code == "output" and self._results.is_piped:
            return
        try:
            if self._results.is_piped:  # its reader may take any time
                await anyio.to_thread.run_sync(self._results.finish, abandon_on_cancel=True)
            else:
                self._results.finish()
        except OutputError as error:
            self.stop("output", str(error))

    def stop(self, code: str, message: str, status: int | None = None) -> None:
        """Send nothing more; let what was sent come back. The first reason counts; see `Stopped`."""
        if self.stopped is None:
            self.stopped = Stopped(code, message, status)
            self._lines.stop()
            for work in self._works:
                if not work.is_sending:  # what was sent may come back
                    work.scope.cancel()
            if code == "output" and not self._results.keeps:
                self.abandon()  # nothing reads what comes back
            self._room.set()
            self._tell()

    def abandon(self) -> None:
        """Do not wait for what was sent either. `stop` comes first."""
        self._results.give_up()  # which also ends `finish`
        for work in self._works:
            work.scope.cancel()

    # Reading ahead ----------------------------------------------------------------------------------------------------

    async def _read(self) -> None:
        """Keep the window full until the file ends."""
        try:
            while self.stopped is None and self.counts.rows != self._settings.rows:
                if self._window_is_full() and not self._looks_further():
                    self._begin_choosing()
                    self._room = anyio.Event()
                    await self._room.wait()
                    continue
                if clock.now() - self.counts.began >= HEAD_START:
                    self._begin_choosing()
                entry = await self._lines.read()
                passed, self._lines.passed = self._lines.passed, 0
                self.counts.rows += passed
                self.counts.skipped += passed
                if entry is None or (self._settings.rows is not None and self.counts.rows >= self._settings.rows):
                    break
                self.counts.rows += 1
                number, line = entry
                if not self._settings.has(number):
                    self.counts.left_out += 1
                elif isinstance(line, Rejected):
                    self._sort_in(line)
                else:
                    self._sort_in(
                        read_row(number, line, self._settings.cost, self._settings.change, self._settings.salt)
                    )
        except OSError as error:
            self.stop("input", f"cannot read {self._lines.name}: {error.strerror or error}")
        except FormatError as error:
            self.stop("input", str(error))
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

    def _window_is_full(self, more: int = 0) -> bool:
        """Whether no more rows should be read; with `more`: whether that would be so with so many more."""
        return self._window_rows + more >= WINDOW or self._window_bytes >= WINDOW_BYTES

    def _looks_further(self, more: int = 0) -> bool:
        """Whether more rows should be read although the window is full: one that could go may stand behind it."""
        is_near = self._window_rows + more < FAR and self._window_bytes < FAR_BYTES
        return self._none_can_go and is_near and self._lines.is_regular

    def _sort_in(self, row: Row | Rejected) -> None:
        """Put a row where it belongs: into the window, among the errors, or nowhere if it is answered already."""
        if isinstance(row, Rejected):
            self._fail(row, row.code, row.message)
            return
        known = self._results.known(row)
        if known is Known.DUPLICATE or (known is Known.NEW and not self._seen.add(row.name)):
            self._fail(row, "duplicate_custom_id", f"an earlier line has the custom_id {row.custom_id!r} too")
        elif known is Known.ANSWERED:
            self.counts.skipped += 1
        elif known in {Known.CHANGED, Known.BY_ANOTHER}:
            self.stop("changed", words_of_change(known, row.line, self._settings.named))
        elif not self._settings.wants(row):
            self.counts.left_out += 1
        elif self._results.may_be_billed(row) and self._settings.on_ambiguous == "fail":
            self._fail(row, "ambiguous", ambiguous(self._settings.named))
        else:
            self._admit(row)

    def _admit(self, row: Row) -> None:
        try:
            pool = self._pool_of(row.model)
        except ValueError as error:
            self._fail(row, "unknown_model", str(error))
            return
        reason = pool.too_large(row)
        prices = self._settings.prices
        if self._settings.max_cost is not None and prices is not None and prices.price(row.model) is None:
            self._fail(
                row, "unknown_price", f"the price of {row.model!r} is not known, so --max-cost could not be kept"
            )
        elif reason is None:
            self._troubles.addresses.asked.add((row.path, row.model))
            pool.mix.add(row)
            self._window_rows += 1
            self._window_bytes += len(row.body)
            self._tell()
        else:
            self._fail(row, "request_too_large", reason)

    def _pool_of(self, model: str) -> Pool:
        """Where the rows of a model may go.

        Raises:
            ValueError: Its limits are unknown.
        """
        name = self.places[0].limits_of(model)[0]
        pool = self._pools.get(name)
        if pool is None:
            pool = Pool()
            for place in self.places:
                label = f"{name or 'all'} at {place.name}" if len(self.places) > 1 else name
                self.groups[label] = pool.add(label, place.limits_of(model)[1], self._settings.idle, place)
            self._pools[name] = pool
        return pool

    def _fail(self, row: Row | Rejected, code: str, message: str, **more: Any) -> None:
        self._results.fail(row, code, message, **more)
        self.counts.gave_up(code)
        self._troubles.last_error = message

    # Choosing ---------------------------------------------------------------------------------------------------------

    def _begin_worker(self, tasks: TaskGroup) -> None:
        self._workers += 1
        self._idle += 1
        tasks.start_soon(self._work, tasks)

    async def _work(self, tasks: TaskGroup) -> None:
        """See rows through, one after another: a task for each would cost a lot.

        One idle task waits for a row, and the others for their turn to do so; the last one begins another.
        """
        with anyio.CancelScope() as scope:
            while (work := self._choose_now() or await self._wait_for_row()) is not None:
                self._idle -= 1
                if not self._idle and self._workers < self.concurrency:
                    self._begin_worker(tasks)
                await self._see_through(work, scope)
                self._idle += 1

    async def _wait_for_row(self) -> Work | None:
        """Wait for a row that should go next; None when there will be none."""
        async with self._choosing:
            while self.stopped is None:
                work = self._choose_now()
                if work is not None:
                    return work
                if self._results.full:
                    await anyio.sleep(0.05)
                elif self._read_all and not self._window_rows:
                    return None
                else:
                    self._none_can_go = self._window_rows > 0 and self._may_choose
                    if not self._read_all and self._looks_further(READ_AT_ONCE - 1):
                        self._room.set()
                    await self._sleep()
        return None

    def _choose_now(self) -> Work | None:
        """A row that should go next; None while there is none, or no room for one. From here on it is worked on."""
        if not self._window_rows or not self._may_choose or self._working_bytes >= WORKING_BYTES:
            return None
        if self._results.full or self.stopped is not None:
            return None
        for pool in self._pools.values():
            group = pool.next_group() if len(pool.mix) else None
            if group is not None:
                work = Work(group, pool.mix.take(group.levels), pool.groups if len(pool.groups) > 1 else ())
                size = len(work.row.body)
                self._working_bytes += size
                self._window_bytes -= size
                self._window_rows -= 1
                self._none_can_go = False
                if not self._read_all and not self._window_is_full(READ_AT_ONCE - 1):
                    self._room.set()
                return work
        return None

    def _left(self) -> set[Work] | None:
        """The rows that are left, if all of them are worked on."""
        return self._works if self._read_all and not self._window_rows else None

    def _tell(self) -> None:
        """Wake all that wait for a change."""
        if self._sleepers:
            self._sleepers = False
            self._changed.set()

    async def _sleep(self) -> None:
        """Return after a change."""
        if not self._sleepers:
            self._sleepers = True
            self._changed = anyio.Event()
        await self._changed.wait()

    async def _watch(self, scope: anyio.CancelScope) -> None:
        """Look now and then whether it is time to end."""
        with scope:
            while True:
                settings = self._settings
                try:
                    self._results.check()
                except OutputError as error:
                    self.stop("output", str(error))
                if settings.deadline is not None and clock.now() - self.counts.began >= settings.deadline:
                    self.stop("deadline", f"the deadline of {settings.deadline:g} s is over")
                await anyio.sleep(TICK)

    # Working on a row -------------------------------------------------------------------------------------------------

    async def _see_through(self, work: Work, scope: anyio.CancelScope) -> None:
        """Work on a row to its end: answered, among the errors, or untouched because the run was stopped."""
        work.scope = scope
        self._works.add(work)
        is_over = False
        try:
            while not is_over and await self._afford(work):
                is_over = await self._attempt(work)
        except OutputError as error:
            self.stop("output", str(error))
        except StoreError as error:
            self.stop("unreachable", f"the store of the limits gives no answer: {error}")
        except CostError as error:
            is_over = self._give_up(work, "request_too_large", str(error))
        except Exception as error:  # noqa: BLE001 - whatever is wrong with one row must not end all others
            is_over = self._give_up(work, "internal_error", f"{type(error).__name__}: {error}")
        finally:
            self.counts.in_doubt += work.in_doubt and not is_over
            self._works.discard(work)
            work.group.place.outage.leave(work)
            work.end()
            self._working_bytes -= len(work.row.body)
            self._tell()

    async def _afford(self, work: Work) -> bool:
        """Set aside what the next attempt of a row may cost; False: the run was stopped.

        While others may still cost less than was set aside for them, it waits.
        """
        spending = self._spending
        while self.stopped is None and spending is not None and not spending.set_aside(work, self._works):
            if any(each.reserved for each in self._works):
                await self._sleep()
            else:
                self.stop("cost", spending.refusal(work))
        return self.stopped is None

    async def _attempt(self, work: Work) -> bool:
        """Wait for the limiter, send, and write down the outcome. Whether the row is at its end."""
        if self._troubles.is_blocked(work):
            return True
        if work.groups:
            settle(work)
        outage = work.group.place.outage
        if outage.since is not None:
            work.leave_queue()
            await outage.wait(work, LOOK_AROUND if work.groups else math.inf)
            if not outage.lets(work):
                return False
        request = await self._acquire(work)
        if request is None:
            return False
        self.counts.in_flight += 1
        work.is_sending = True
        granted = request.permit.granted_at
        work.group.unsent.add(id(work))
        try:
            with request.permit:
                # `stop` cancels those that wait, but one whose turn has just come runs on until it waits again: for its
                # answer, which would be paid for and lost.
                over = self.stopped is not None or await self._send(work, request)
        finally:
            if request.left_at is None:
                request.endpoint.never_left(request)
            else:
                self.counts.ended = clock.now()
                self.counts.took(work.earliest, self.counts.ended - granted)
                self._report(work, self.counts.ended - granted)
            self.counts.in_flight -= 1
            work.is_sending = False
            work.group.unsent.discard(id(work))
        if work.wait and not over and self.stopped is None:
            wait, work.wait = work.wait, 0.0
            await anyio.sleep(wait)
        return over

    async def _acquire(self, work: Work) -> RequestInFlight | None:
        """Wait for a turn; None: it should be looked whether another place takes it sooner."""
        work.enter_queue()
        self.counts.waiting += 1
        since = clock.now()
        try:
            # A row that was sent before goes first: it is the oldest, and its place in memory is wanted.
            if not work.groups:
                return await work.group.acquire(work.row.cost, min(work.sent, 1))
            with anyio.move_on_after(LOOK_AROUND):
                try:
                    return await work.group.acquire(work.row.cost, min(work.sent, 1))
                except RateLimited:  # the limiter sees the deadline, and that its turn is later
                    await anyio.sleep_forever()
            return None
        except CostError:
            if len(work.unfit) + 1 >= len(work.groups):
                raise
            work.unfit = (*work.unfit, work.group)
            return None
        finally:
            work.waited = clock.now() - since
            self.counts.waits.add(work.waited)
            self.counts.waiting -= 1
            work.leave_queue()
            self._tell()

    async def _send(self, work: Work, request: RequestInFlight) -> bool:
        row, counts, group = work.row, self.counts, work.group
        if work.may_be_billed is None:
            work.may_be_billed = self._results.may_be_billed(row)

        def left() -> None:
            request.endpoint.left(request)
            group.unsent.discard(id(work))
            self._tell()
            group.place.outage.connected()
            first = work.sent == 0
            work.in_doubt = True
            work.sent += 1
            counts.sent += 1
            counts.retries += not first
            counts.last_sent = request.permit.granted_at
            counts.spend(group.name, row.cost, first=first)
            if first:
                work.earliest = counts.earliest(group.name, group.allowances)
            if work.may_be_billed:
                work.may_be_billed = False
                counts.ambiguous += 1

        work.status, work.usage = 0, {}
        self._results.sent(row, work.sent + 1)
        try:
            reply = await group.place.client.send(row.path, row.body, left)
        except NotSent as error:
            self._results.over(row)
            work.in_doubt = False
            # It may have left: for a server that redirects to another, which is away.
            is_there = request.left_at is not None
            return self._troubles.unreachable(work, str(error), is_there=is_there, is_lasting=error.is_lasting)
        except Lost as error:
            self._pay(work, None)
            return self._troubles.lost(work, str(error), unreadable=isinstance(error, Unreadable))
        group.on_reply(request, reply)
        work.status = reply.status
        verdict = answers.judge(row.path, reply.status, reply.headers, reply.content)
        if isinstance(verdict, answers.Answer):
            self._answered(work, reply, verdict.body)
            return True
        if answers.may_be_billed(reply.status, verdict):
            self._pay(work, reply.content)
        self._results.over(row)
        work.in_doubt = False
        return self._troubles.refused(work, request, RefusedReply(verdict, reply))

    def _report(self, work: Work, elapsed: float) -> None:
        """Tell a listener of an attempt, and of the limits of a model when they become known."""
        tell, row = self._settings.on_event, work.row
        if tell is None:
            return
        limits = work.group.limits
        if self._told_limits.get(row.model) != limits:
            self._told_limits[row.model] = limits
            tell(Reconfigured(row.model, limits))
        model, status = row.model or None, work.status
        tell(Answered(None, model, row.cost, work.usage, work.waited, elapsed, status))

    def _answered(self, work: Work, reply: Reply, body: bytes) -> None:
        try:
            self._results.answer(work.row, reply.status, reply.headers.get("x-request-id"), body)
        except KeptError as error:
            self.stop("output", str(error))
        work.in_doubt = False
        self.counts.answered += 1
        self._pay(work, body)
        self._troubles.answered(work)

    def _pay(self, work: Work, body: bytes | None) -> None:
        """Count what an attempt used and cost, by what came back, answer or not; None: nothing did."""
        if body is not None and self._settings.on_event is not None and (usage := usage_of(body)) is not None:
            work.usage = usage.as_units()
        prices = self._settings.prices
        if prices is not None:
            dollars = None if body is None else prices.paid(work.row.model, body)
            self.counts.paid(dollars)
            if self._spending is not None:
                self._spending.paid(work, dollars)

    def _give_up(self, work: Work, code: str, message: str, **more: Any) -> bool:
        try:
            self._fail(work.row, code, message, attempts=work.sent, **more)
        except OutputError as error:
            self.stop("output", str(error))
        return True
