"""The ledger: every call, written down off the path of the call.

    ledger = Ledger("usage.db")
    limiter = Limiter(requests=per_minute(3_500), on_event=ledger)
    client = limit_client(AsyncOpenAI(), on_event=ledger)

A call hands its event to a queue in memory and goes on. A thread writes what is in the queue into the file, twenty
times a second at most, one transaction each. So a process that ends, in whatever way but kill -9, loses nothing; kill
-9 costs what happened in the last 100 ms. A disk that is slow or full stops no call: the queue fills up to
`max_pending` events, and what comes then is dropped, counted, and noted in the file as a gap.
"""

from __future__ import annotations

import atexit
import json
import os
import queue
import sqlite3
import sys
import threading
import warnings
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from operator import length_hint
from pathlib import Path
from typing import Any, Protocol, Self

from penstock import clock
from penstock._concurrency.locks import new_lock
from penstock._concurrency.shared_state import around_forks
from penstock._numbers import Seconds, amount, number_of, read_count, read_seconds, span
from penstock._text import repr_of
from penstock.llm.prices import Prices
from penstock.usage.entries import CallEntry, Entries
from penstock.usage.file import open_writer

_GATHER = 0.05
"""Seconds between two transactions: what happened before the first of them is what kill -9 takes."""

_AT_ONCE = 20_000
"""Events in one transaction."""

_LOCKED = 2.0
"""Seconds that a transaction waits for other processes."""

_TRY_AGAIN = 0.5
"""Seconds between two attempts to write into a file that cannot be written."""

_CLEAN_UP = 3_600.0
"""Seconds between two looks for calls that are older than `keep`."""


class DollarsOf(Protocol):
    """What calls cost: `penstock.llm.prices.Prices`, or something of yours."""

    def dollars(self, model: str, input_tokens: float, output_tokens: float) -> float | None:
        """Dollars for so many tokens; None: the model's price is not known."""
        ...


@dataclass(frozen=True, slots=True)
class LedgerStatistics:
    """How a ledger is doing.

    Attributes:
        pending: Events that are not in the file yet.
        dropped: Events that found the queue full, and are lost.
        error: Why the file could not be written last; "": it could.
    """

    pending: int
    dropped: int
    error: str


class Ledger:
    """Records every call: a hook for `on_event=` of limiters, clients and runs.

    One call is one row, whatever the number of its events: user (the flow), model, units as estimated and as settled,
    dollars, wait, outcome. Calling the ledger takes a microsecond or so, never blocks and never raises; it may be done
    from any task, thread or signal handler. Any number of processes may write into one file; after a fork the child
    writes for itself.

    Read it by `History(path)`, or by SQL.

    Args:
        path: The file; made when the first call is written.
        max_pending: Most events in memory, about 300 bytes each. Further ones are dropped.
        keep: Seconds, or a timedelta, after which calls are deleted from the file; None: they stay.
        prices: What models cost, in dollars; the list prices of this version unless given.

    Raises:
        ValueError: A number is out of its range.
    """

    __slots__ = ("__weakref__", "_writer", "path")

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        max_pending: int = 100_000,
        keep: Seconds | None = None,
        prices: DollarsOf | None = None,
    ) -> None:
        most = read_count(max_pending)
        if most is None:
            raise ValueError(f"max_pending must be a whole number of events, 1 or more, not {repr_of(max_pending)}")
        seconds = None if keep is None else span("keep={}", keep, forever=True)
        if prices is not None and not callable(getattr(prices, "dollars", None)):
            raise ValueError(
                f"prices= must have a method dollars(model, input_tokens, output_tokens), not {repr_of(prices)}"
            )
        self.path: Path = Path(path)
        self._writer = _Writer(self.path.absolute(), most, seconds, prices)

    def __call__(self, event: object) -> None:
        """Hear of an event, of `penstock.events`. What is not about a call is passed over."""
        writer = self._writer
        if writer.queue.qsize() < writer.max_pending:
            writer.queue.put((clock.wall(), event))
        else:
            next(writer.drops)
        if writer.thread is None:
            writer.start()

    def flush(self, timeout: Seconds = 5.0) -> bool:
        """Wait until all events so far are in the file; return whether it is. Blocks this thread, in real time.

        Args:
            timeout: Seconds to wait at most, or a `timedelta`; 0 or more.

        Raises:
            ValueError: `timeout` is no such span.
        """
        return self._writer.flush(_patience(timeout))

    def statistics(self) -> LedgerStatistics:
        """How it is doing."""
        writer = self._writer
        return LedgerStatistics(writer.pending, writer.dropped, writer.error)

    def close(self, timeout: Seconds = 5.0) -> None:
        """Write all events so far, and let go of the file and the thread. A later event opens them again.

        Args:
            timeout: Seconds to wait for the file at most, or a `timedelta`; 0 or more. What is not written by then is
                lost, with a warning.

        Raises:
            ValueError: `timeout` is no such span. Nothing was closed.
        """
        self._writer.close(_patience(timeout))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Ledger({str(self.path)!r})"

    def __reduce__(self) -> Any:
        writer = self._writer
        made_again = partial(
            Ledger, str(writer.path), max_pending=writer.max_pending, keep=writer.keep, prices=writer.prices
        )
        return made_again, ()

    def __del__(self) -> None:
        writer = getattr(self, "_writer", None)  # a constructor that raised has not come so far
        if writer is not None and writer.thread is not None:
            warnings.warn(
                f"{self!r} was never closed: call close() when it is not needed any more", ResourceWarning, 2, self
            )
            writer.put_marker(ends=True)  # it writes what is there, and ends; no call waits for that


def _patience(timeout: Any) -> float:
    """A span of time that threads can wait for."""
    seconds = read_seconds(timeout)
    if seconds is None or seconds < 0:
        raise ValueError(f"timeout must be a number of seconds, 0 or more, or a timedelta, not {timeout!r}")
    return min(seconds, threading.TIMEOUT_MAX)


_INSERT = "INSERT INTO calls VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_UPDATE = (
    "UPDATE calls SET user = ?, model = ?, outcome = ?, status = ?, waited = ?, elapsed = ?, "
    "settled = ?, input_tokens = ?, output_tokens = ?, dollars = ? WHERE id = ?"
)


@dataclass(slots=True, eq=False)
class _Marker:
    """Stands in the queue behind what is to be written before `done` is set; with `ends`, the thread ends there."""

    ends: bool
    done: threading.Event = field(default_factory=threading.Event)


class _Writer:
    """The queue of a ledger, the thread that empties it, and the file.

    Does not know the ledger, so that one may be forgotten.

    Attributes:
        queue: (moment, event) of what happened, and markers. `SimpleQueue.put` may be interrupted by itself, as by a
            signal handler.
        thread: What writes, one at a time; None: nothing was heard since the last `close`. Set by the thread itself
            too, for a signal handler may raise as it is started.
        drops: Gives one number for each event that is dropped: one step, which no signal handler can interrupt.
    """

    def __init__(self, path: Path, max_pending: int, keep: float | None, prices: DollarsOf | None) -> None:
        self.path = path
        self.max_pending = max_pending
        self.keep = keep
        self.prices = prices
        self.error = ""
        self.drops = iter(range(sys.maxsize))
        self.entries: Entries = Entries(self._dollars)
        self._noted_drops = 0
        self._known_prices: DollarsOf | None = prices
        self._clean_up_at = 0.0
        self._file: tuple[int, int] | None = None
        self._begin()
        _writers.add(self)

    @property
    def dropped(self) -> int:
        """How many events were dropped."""
        return sys.maxsize - length_hint(self.drops)

    @property
    def pending(self) -> int:
        """How many events were heard and are not in the file."""
        return max(0, self.queue.qsize() - len(self._markers)) + len(self.entries.new)

    def _begin(self) -> None:
        self.queue: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._markers: set[_Marker] = set()  # those in the queue
        self.thread: threading.Thread | None = None
        self._starting = new_lock()
        self._is_starting = False
        self._writing = new_lock()
        self._is_writing = False
        self._hurry = threading.Event()
        self._connection: sqlite3.Connection | None = None
        self._forking = False

    # The thread

    def start(self) -> None:
        """Begin to write; where no thread can begin any more, write here."""
        with self._starting:
            if self.thread is not None or self._is_starting:
                return  # the call that a signal handler has interrupted is doing it
            try:
                self._is_starting = True
                thread = threading.Thread(target=self._run, name=f"penstock ledger {self.path.name}", daemon=True)
                self._hurry.clear()
                atexit.unregister(self._at_exit)
                atexit.register(self._at_exit)
                thread.start()
                self.thread = thread
            except RuntimeError as error:
                if "shutdown" in str(error):  # the interpreter ends: no call waits any more
                    self._work([])
                else:
                    self._complain(f"no thread can be started that writes {self.path}: {error}")
            finally:
                self._is_starting = False

    def _run(self) -> None:
        """Write until a marker says that it is over, unless another thread does."""
        with self._starting:
            if self.thread not in (None, threading.current_thread()):
                return
            self.thread = threading.current_thread()
        markers: list[_Marker] = []
        while True:
            first = None if self._is_behind else self.queue.get()
            if self.error:
                self._hurry.wait(_TRY_AGAIN)
                self._hurry.clear()  # after it: a marker that was put in before it waited is in a hurry too
            elif type(first) is not _Marker:
                self._hurry.wait(_GATHER)
            if self._work(markers, first):
                atexit.unregister(self._at_exit)
                return

    @property
    def _is_behind(self) -> bool:
        return bool(self.entries.new or self.entries.changed or self.entries.limits)

    def _work(self, markers: list[_Marker], first: Any = None) -> bool:
        """Empty the queue into the file as far as it goes; return whether the thread is to end."""
        with self._writing:
            if self._is_writing:
                return False  # the call that a signal handler has interrupted is doing it
            try:
                self._is_writing = True
                return self._empty_queue(markers, first)
            finally:
                self._is_writing = False

    def _empty_queue(self, markers: list[_Marker], first: Any) -> bool:
        ends = False
        if first is not None:
            self._take(first, markers)
        if not self._is_behind or not self.error:
            for _ in range(_AT_ONCE):
                try:
                    self._take(self.queue.get_nowait(), markers)
                except queue.Empty:
                    break
        if self._write():
            for marker in markers:
                marker.done.set()
                ends = ends or marker.ends
            markers.clear()
            if self.queue.empty():
                self._hurry.clear()
            if ends:
                self._disconnect()
        return ends

    def _take(self, item: Any, markers: list[_Marker]) -> None:
        if isinstance(item, _Marker):
            self._markers.discard(item)
            markers.append(item)
            return
        try:
            self.entries.hear(*item)
        except Exception as error:  # noqa: BLE001 - one strange event must not end the ledger
            self._complain(f"an event could not be written down: {type(error).__name__}: {error}")

    def flush(self, timeout: float) -> bool:
        if self.thread is None:  # nothing was heard since the last `close`, or no thread could be started
            self._work([])
            return not self.pending
        return self.put_marker(ends=False).wait(timeout)

    def put_marker(self, *, ends: bool) -> threading.Event:
        """Let the thread write all that is in the queue by now; return what is set when it has."""
        marker = _Marker(ends=ends)
        self._markers.add(marker)
        self.queue.put(marker)
        self._hurry.set()
        return marker.done

    def close(self, timeout: float) -> None:
        thread, until, is_over = self.thread, clock.real_now() + timeout, True
        if thread is None and not self.pending:
            self._disconnect()
            return
        if thread is not None:
            done = self.put_marker(ends=True)
            while thread.is_alive() and clock.real_now() < until and not done.wait(_GATHER):
                pass
            is_over = not thread.is_alive() or done.is_set()
        if is_over:
            if thread is not None:
                thread.join()
            self._work([])  # what was heard at the last moment, or while no thread could be started
            self._disconnect()
        self.thread = None
        atexit.unregister(self._at_exit)
        if self._is_behind or self.pending:
            warnings.warn(
                f"{self.path}: {number_of(self.pending, 'event')} could not be written "
                f"({self.error or 'the disk is slow'}), and are lost if it goes on so",
                RuntimeWarning,
                stacklevel=4,
            )

    def _at_exit(self) -> None:
        self.close(5.0)

    # The file

    def _write(self) -> bool:
        """Write the entries; return whether that was possible."""
        entries = self.entries
        if not self._is_behind and self.dropped == self._noted_drops:
            return True
        try:
            try:
                connection = self._connect()
                connection.execute("BEGIN IMMEDIATE")
                self._put_rows(connection, entries)
                connection.execute("COMMIT")
            except BaseException:
                self._disconnect()  # which takes back what was begun
                for entry in entries.new:
                    entry.id = None
                raise
        except Exception as error:  # noqa: BLE001 - whatever it is, the thread tries again
            self._complain(f"{self.path} cannot be written: {error}")
            return False
        entries.written()
        self.error = ""
        return True

    def _put_rows(self, connection: sqlite3.Connection, entries: Entries) -> None:
        process, dropped = os.getpid(), self.dropped
        (last,) = connection.execute("SELECT coalesce(max(id), 0) FROM calls").fetchone()
        rows = []
        for number, entry in enumerate(entries.new, last + 1):
            entry.id = number
            rows.append((
                number, entry.at, process, entry.user, entry.limiter, entry.model, entry.outcome, _number(entry.status),
                _number(entry.waited) or 0.0, _number(entry.elapsed), _plain(entry.estimated), *_settled(entry),
            ))  # fmt: skip
        connection.executemany(_INSERT, rows)
        connection.executemany(
            _UPDATE,
            [
                (
                    entry.user, entry.model, entry.outcome, _number(entry.status), _number(entry.waited) or 0.0,
                    _number(entry.elapsed), *_settled(entry), entry.id,
                )
                for entry in entries.changed.values()
            ],
        )  # fmt: skip
        connection.executemany("INSERT INTO limits VALUES (?, ?, ?, ?, ?)", entries.limits)
        now = clock.wall()
        if dropped != self._noted_drops:
            connection.execute("INSERT INTO gaps VALUES (?, ?, ?)", (now, process, dropped - self._noted_drops))
            self._noted_drops = dropped
        if self.keep is not None and now >= self._clean_up_at:
            self._clean_up_at = now + min(_CLEAN_UP, self.keep)
            connection.execute("DELETE FROM calls WHERE at < ?", (now - self.keep,))

    def _connect(self) -> sqlite3.Connection:
        """The open file; opened anew if another is at its path, or none, since."""
        try:
            status = self.path.stat()
            there = status.st_dev, status.st_ino
        except FileNotFoundError:
            there = None
        if self._connection is not None and there != self._file:
            self._disconnect()
        if self._connection is None:
            self._connection = open_writer(self.path, _LOCKED)
            status = self.path.stat()
            self._file = status.st_dev, status.st_ino
        return self._connection

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _complain(self, message: str) -> None:
        if not self.error:
            import logging

            logging.getLogger("penstock.usage").error("%s", message)
        self.error = message

    def _dollars(self, model: str, charged: Mapping[str, float], usage: Mapping[str, float]) -> float | None:
        if self._known_prices is None:
            self._known_prices = Prices.listed()
        given = usage.get("input_tokens", 0.0) + usage.get("cached_tokens", 0.0)
        return self._known_prices.dollars(
            model, given if usage else charged.get("tokens", 0.0), usage.get("output_tokens", 0.0)
        )

    # Forks

    def before_fork(self) -> None:
        """Wait until no transaction is under way, and close the file: a child must not have its parent's locks."""
        self._forking = self._writing.acquire(timeout=2 * _LOCKED)
        if self._forking:
            self._disconnect()

    def after_fork_in_parent(self) -> None:
        if self._forking:
            self._forking = False
            self._writing.release()

    def after_fork_in_child(self) -> None:
        """What was heard is the parent's to write; the thread is the parent's."""
        if self._connection is not None:
            _inherited.append(self._connection)
        self._begin()
        self.entries = Entries(self._dollars)
        self._noted_drops = self.dropped
        atexit.unregister(self._at_exit)


_writers: weakref.WeakSet[_Writer] = weakref.WeakSet()
_inherited: list[sqlite3.Connection] = []  # of a parent, which must not even be closed here


around_forks(_writers, _Writer.before_fork, _Writer.after_fork_in_parent, _Writer.after_fork_in_child)


def _number(value: Any) -> float | None:
    """As SQLite takes it, and what reads it: listeners are given what a program calls a number, a `Decimal` too."""
    number = None if value is None else amount(value)
    return None if number is None else float(number)


_finite = json.JSONEncoder(allow_nan=False).encode


def _plain(units: Mapping[str, float]) -> str:
    try:
        return _finite(units)
    except (TypeError, ValueError):  # numbers of other classes, or none
        return _finite({unit: amount(number) or 0 for unit, number in units.items()})


def _settled(entry: CallEntry) -> tuple[Any, ...]:
    usage = entry.usage
    return (
        None if entry.settled is None else _plain(entry.settled),
        _number(usage.get("input_tokens")),
        _number(usage.get("output_tokens")),
        _number(entry.dollars),
    )
