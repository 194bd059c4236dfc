"""What a run leaves: results, errors and the journal; and how an interrupted run finds its place again.

The journal is the record (`journal`): an answer is written there first, and the results file is made of it. Usually the results
file grows with it, line by line; in the order of the input it is made at the end. So a results file that was torn, deleted
or cut is made whole again, and one that somebody else changed is left alone and named. A results file whose journal is gone
is read instead: its ids say what was asked.

What fails goes to a file of its own, which each run begins anew: the rows in it have no result, so they are tried again. Where
results go into a pipe there is no journal, unless one is asked for, and nothing to go on from.
"""

from __future__ import annotations

import array
import contextlib
import math
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from penstock import clock
from penstock.runner.files import (
    Appended,
    OutputError,
    Pipe,
    ReplacedError,
    beside,
    cannot_write,
    create_beside,
    write_summary,
)
from penstock.runner.journal import Journal, Syncer, result_line
from penstock.runner.ports import Known
from penstock.runner.source import Lines, Rejected, Row, custom_id_digest, dump_json, load_json, named_keys, unnamed_key
from penstock.runner.system import pread

__all__ = ["ChangedError", "Known", "OutputError", "ReplacedError", "Results", "beside", "journal_of", "write_summary"]

CHECK_EVERY = 1.0
"""Seconds after which it is looked whether the files are still there."""

BACKLOG = 4 * 1024 * 1024
"""Bytes that may wait for the reader of a pipe before no further row is begun."""


class ChangedError(OutputError):
    """Rows were edited since they were answered.

    Attributes:
        count: How many.
        line: The first of them.
    """

    def __init__(self, count: int, line: int, where: Path) -> None:
        rows = "1 row asks" if count == 1 else f"{count:,} rows ask"
        super().__init__(
            f"{rows} something else than what {where} answers under the same custom_id (first: line {line}): "
            "--changed=rerun asks again and drops the old answers, --changed=keep keeps them, --overwrite begins anew"
        )
        self.count: int = count
        self.line: int = line


def journal_of(out: Path) -> Path:
    """Where the journal of a results file is."""
    return out.with_name(out.name + ".journal")


class Results:
    """The results, errors and journal of a run, open for writing; a context manager.

    Attributes:
        found: How many answers earlier runs left.
        idle: Seconds since an earlier run wrote its last record, dropped by now or not; `inf` if it left none.
        repaired: Bytes of a torn last line that were taken off the results.
        restored: Results that the journal held and the results file did not.
    """

    def __init__(
        self,
        out: Path,
        errors: Path,
        *,
        journal: Path | Literal["beside"] | None = "beside",
        order: Literal["completed", "input"] = "completed",
        changed: Literal["rerun", "keep"] | None = None,
        overwrite: bool = False,
        descriptor: int | None = None,
        errors_descriptor: int | None = None,
    ) -> None:
        """Open the files, repair them and read what is answered.

        Args:
            out: Where results go; they are added to those that are there.
            errors: Where errors go; those of an earlier run are dropped.
            journal: Where the journal is; "beside" `out`, or nowhere if that is no regular file. None: there is none.
            order: Of the results: as they come, or that of the input, for which they are put in order at the end.
            changed: What becomes of rows that were edited since they were answered. None: they are refused.
            overwrite: Begin the results anew too, and each file whatever it holds.
            descriptor: `out` is open already, as this: standard output.
            errors_descriptor: So is `errors`.

        Raises:
            OutputError: A file cannot be written, is in use by another run, or holds something else than results.
        """
        self.out_path: Path = out
        self.errors_path: Path = errors
        self.repaired: int = 0
        self.restored: int = 0
        self._order, self._changed = order, changed
        self._places = array.array("Q")  # of each row in the order of the input: 1 + where its answer is, 0: nowhere
        self._doubtful: set[int | None] | None = None
        self._checked = -math.inf
        self._stack = contextlib.ExitStack()
        with contextlib.ExitStack() as opening:
            self._out = opening.enter_context(contextlib.closing(Appended(out, "-o", descriptor=descriptor)))
            regular = self._out.is_regular
            ours = regular and descriptor is None
            path = (journal_of(out) if ours else None) if journal == "beside" else journal
            there = path is not None and path.exists()
            times = [self._out.status.st_mtime] if ours and self._out.size else []
            with contextlib.suppress(OSError):
                times += [path.stat().st_mtime] if path is not None and there else []
            # What is dropped now, or was torn off, has been paid for all the same.
            self.idle: float = max(0.0, clock.wall() - max(times)) if times else math.inf
            if overwrite:
                self._out.truncate(0)
            self._journal: Journal | None = None
            if path is not None:
                if not there and ours and self._out.size and not overwrite:
                    self._check_adoptable()
                self._journal = opening.enter_context(
                    contextlib.closing(Journal(path, overwrite=overwrite, offsets=order == "input"))
                )
                if ours:
                    self._reconcile()
            self.found: int = 0 if self._journal is None else len(self._journal.answered)
            self._errors = opening.enter_context(
                contextlib.closing(Appended(errors, "--errors", descriptor=errors_descriptor))
            )
            self._begin_errors(anything=overwrite)
            files = [self._out.descriptor, *([self._journal.descriptor] if self._journal else [])]
            self._syncer = Syncer(*files)
            self._stack = opening.pop_all()
        self._pipe = None if regular else Pipe(self._out)
        self._errors_pipe = None if self._errors.is_regular else Pipe(self._errors)
        self._syncer.start()

    # ------------------------------------------------------------------------------------------------------------------
    # What is answered already

    @property
    def failed(self) -> frozenset[int]:
        """Rows that were given up by an earlier run, by their lines."""
        return frozenset() if self._journal is None else frozenset(self._journal.failed | self._journal.open)

    @property
    def ambiguous(self) -> int:
        """Rows that an earlier run sent and of which nothing more is known."""
        return 0 if self._journal is None else len(self._journal.open)

    @property
    def full(self) -> bool:
        """Whether the reader of a pipe is so far behind that no further row should be begun."""
        return self._pipe is not None and self._pipe.waiting > BACKLOG

    @property
    def is_piped(self) -> bool:
        """Whether results go where nobody can go on from."""
        return self._pipe is not None or self._errors_pipe is not None

    def examine(self, lines: Lines, read: Callable[[int, bytes | None], Row | Rejected], salt: bytes = b"") -> None:
        """Go over the rows of a regular file before anything is sent: which are answered, and which were edited since.

        Raises:
            ChangedError: Rows were edited, and nobody said what to do with them.
        """
        if self._journal is None or not len(self._journal.answered) or not lines.is_regular:
            return
        answered = self._journal.answered
        skip, doubtful = self._meet_lines(lines, salt)
        count, first, drop = 0, 0, []
        for number, line in lines.again() if doubtful else ():
            if skip[number] or line is None or _name_of(number, line) not in doubtful:
                continue
            row = read(number, line)
            found = answered.find(row) if isinstance(row, Row) else None
            if found is None or not isinstance(row, Row) or answered.met(found) or answered.same(found, row):
                continue
            count, first = count + 1, first or number
            if self._changed == "rerun":
                drop.append(found)
        lines.pass_over(skip)
        self._doubtful = doubtful
        if count and self._changed is None:
            raise ChangedError(count, first, self.out_path)
        if drop:
            for place in drop:
                self._journal.drop(place)
            self._rewrite()

    def _meet_lines(self, lines: Lines, salt: bytes) -> tuple[bytearray, set[int | None]]:
        """Which rows are answered as they stand there, and the names of others that are answered; None: of rows without a clear name.

        A million rows take a second: nothing is read as JSON, and names are looked up many at a time.
        """
        assert self._journal is not None
        answered = self._journal.answered
        skip, names, doubtful = bytearray(1), set[int](), set[int | None]()
        for begin, batch in lines.batches():
            skip.extend(bytes(begin + len(batch) - len(skip)))
            places = answered.meet_all(named_keys(batch, salt))
            if None not in places and self._order == "completed":
                skip[begin : begin + len(batch)] = b"\1" * len(batch)
                continue
            for number, (line, met) in enumerate(zip(batch, places, strict=True), begin):
                place = met
                if place is None and line and not line.isspace():
                    name = _name_of(number, line)
                    if b"custom_id" not in line:
                        place = answered.meet(unnamed_key(number, line, salt))
                    if name is None:
                        doubtful.add(None)
                    elif place is None:
                        names.add(name)
                if place is not None:
                    skip[number] = 1
                    if self._order == "input":
                        self._place(number, place)
            if len(names) > _MANY:
                doubtful |= answered.hold(names)
                names.clear()
        return skip, doubtful | answered.hold(names)

    def known(self, row: Row) -> Known:
        """What earlier runs say about a row, once: the same row again is a duplicate."""
        if self._journal is None:
            return Known.NEW
        if self._doubtful is not None and None not in self._doubtful and row.name not in self._doubtful:
            return Known.NEW  # `examine` has seen all rows
        answered = self._journal.answered
        place = answered.find(row)
        if place is None:
            return Known.NEW
        if answered.met(place, now=True):
            return Known.DUPLICATE
        if answered.same(place, row) or self._changed == "keep":
            self._place(row.line, place)
            return Known.ANSWERED
        if self._changed == "rerun":
            self._journal.drop(place)
            return Known.NEW
        return Known.CHANGED

    def may_be_billed(self, row: Row) -> bool:
        """Whether an earlier run sent this row and was ended before it knew what came of it."""
        return self._journal is not None and row.raw in self._journal.open

    # ------------------------------------------------------------------------------------------------------------------
    # What happens

    def sent(self, row: Row, attempt: int) -> None:
        """Write down that a row is about to be sent.

        Raises:
            OutputError: The disk is full or gone.
        """
        if self._journal is not None:
            self._journal.sent(row, attempt)

    def over(self, row: Row) -> None:
        """Write down that what was sent is known not to be answered.

        Raises:
            OutputError: The disk is full or gone.
        """
        if self._journal is not None:
            self._journal.over(row)

    def answer(self, row: Row, status_code: int, request_id: str | None, body: bytes) -> None:
        """Write the result of a row, whose `body` is JSON on one line.

        Raises:
            OutputError: The disk is full or gone. Nothing of the line is left in the file.
        """
        line = result_line(row, status_code, request_id, body)
        if self._journal is not None:
            if self._order == "input" and self._journal.offsets is not None:
                self._place(row.line, len(self._journal.offsets))
            self._journal.done(row, line)
        if self._pipe is not None:
            self._pipe.put(line)
        elif self._order == "completed":
            self._out.append(line)
        self._wrote()

    def fail(self, row: Row | Rejected, code: str, message: str, **more: Any) -> None:
        """Write down why a row has no result.

        Args:
            row: Which one.
            code: A word for programs: the service's own, or one of ours.
            message: A sentence for people.
            more: What else is known: `status_code`, `attempts`, `body`.

        Raises:
            OutputError: The disk is full or gone.
        """
        error = {"code": code, "message": message, **more}
        line = dump_json({"line": row.line, "custom_id": row.custom_id, "error": error})
        if self._journal is not None and isinstance(row, Row) and code != "ambiguous":  # what became of that stays open
            self._journal.fail(row, code)
        if self._errors_pipe is not None:
            self._errors_pipe.put(line + b"\n")
        else:
            self._errors.append(line + b"\n")

    def check(self) -> None:
        """See that all is where it should be, as often as it is due.

        Raises:
            OutputError: A file was deleted, replaced or cut, or nobody reads the pipe any more.
        """
        for pipe in (self._pipe, self._errors_pipe):
            if pipe is not None:
                pipe.check()
        if clock.now() - self._checked < CHECK_EVERY:
            return
        self._checked = clock.now()
        self._check_files()

    def give_up(self) -> None:
        """Wait for the readers of pipes no more."""
        for pipe in (self._pipe, self._errors_pipe):
            if pipe is not None:
                pipe.give_up()

    def finish(self) -> None:
        """Put the results in the order of the input if that was asked for; see that all of them are where they should be.

        Raises:
            OutputError: They cannot be written, or are gone.
        """
        if self._errors_pipe is not None:
            self._errors_pipe.drain()
        if self._pipe is not None:
            self._pipe.drain()
            if self._order == "input":
                self._write_in_order(self._pipe.put)
                self._pipe.drain()
            return
        self._check_files()
        if self._order == "input" and self._journal is not None:
            draft, descriptor = create_beside(self.out_path)
            try:
                with os.fdopen(descriptor, "wb") as file:
                    self._write_in_order(file.write)
                    file.flush()
                    os.fsync(file.fileno())
                draft.replace(self.out_path)
            except OSError as error:
                with contextlib.suppress(OSError):
                    draft.unlink()
                raise cannot_write(self.out_path, error) from None
            self._journal.ordered(b"input")

    def close(self) -> None:
        """Let the disk have all of it, and close.

        Raises:
            OutputError: The disk did not take it.
        """
        self._syncer.stop()
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    # ------------------------------------------------------------------------------------------------------------------

    def _wrote(self) -> None:
        try:
            self._syncer.wrote()
        except OSError as error:
            raise cannot_write(self.out_path, error) from None

    def _place(self, number: int, place: int) -> None:
        if self._order == "input":
            self._places.extend([0] * (number + 1 - len(self._places)))
            self._places[number] = place + 1

    def _write_in_order(self, write: Callable[[bytes], Any]) -> None:
        assert self._journal is not None, "without a journal nothing can be put in order"
        for place in self._places:
            if place:
                write(self._journal.result_at(place - 1))

    def _check_files(self) -> None:
        where = (
            ""
            if self._journal is None
            else f"; nothing is lost: {self._journal.path} has every answer, and the same command"
        )
        try:
            if self._journal is not None:
                self._journal.check()
        except ReplacedError as gone:
            raise ReplacedError(f"{gone}; the run ends here, so that nothing is paid for that cannot be kept") from None
        try:
            self._out.check()
        except ReplacedError as gone:
            raise ReplacedError(f"{gone}{where and where + ' writes them again'}") from None
        self._errors.check()

    def _reconcile(self) -> None:
        """Make the results file what the journal says it is."""
        journal, out = self._journal, self._out
        assert journal is not None
        if self._order == "input":
            if not len(journal.answered) and out.size:
                self._adopt(0)
            return
        if journal.in_input_order:
            self._rewrite()
            journal.ordered(b"completed")
            return
        expected = journal.size - self._dropped_size()
        if out.size < expected:
            self._fill_up()
        elif expected and not self._has_last_at(expected):
            raise self._foreign_change()
        elif out.size > expected:
            self._adopt(expected)

    def _dropped_size(self) -> int:
        assert self._journal is not None
        if not self._journal.answered.dropped:
            return 0
        return self._journal.size - sum(map(len, self._journal.results()))

    def _fill_up(self) -> None:
        """Add the results that the file lacks; what it has must be the beginning of what it should have."""
        assert self._journal is not None
        out, at, keep, last = self._out, 0, True, b""
        for line in self._journal.results():
            if keep and at + len(line) <= out.size:
                at += len(line)
                last = line
                continue
            if keep:
                keep = False
                if at and pread(out.descriptor, len(last), at - len(last)) != last:
                    raise self._foreign_change()
                torn = pread(out.descriptor, out.size - at, at)
                if not line.startswith(torn):
                    raise self._foreign_change()
                self.repaired = len(torn)
                out.truncate(at)
            out.append(line)
            self.restored += 1

    def _has_last_at(self, end: int) -> bool:
        assert self._journal is not None
        last = b"" if self._journal.answered.dropped else self._journal.last
        return pread(self._out.descriptor, len(last), end - len(last)) == last

    def _rewrite(self) -> None:
        """Write the results file anew out of the journal. A crash on the way is repaired by the next run."""
        if self._order == "input" or self._journal is None or not self._out.is_regular:
            return
        self._out.truncate(0)
        for line in self._journal.results():
            self._out.append(line)

    def _check_adoptable(self) -> None:
        """Refuse a file of something else before anything is made beside it."""
        begin = pread(self._out.descriptor, len(_BEGINNING), 0)
        if not _BEGINNING.startswith(begin):
            raise self._foreign(1)

    def _adopt(self, begin: int) -> None:
        """Take over the results that the file holds and the journal does not; cut off a last line that was left unfinished."""
        assert self._journal is not None
        size, at, number, torn = self._out.size, begin, 0, 0
        for number, line, whole in _lines_from(self._out, begin):
            result = _result_row(line)
            if torn:
                raise self._foreign(torn)
            if result is None:
                if whole or (not number and not begin and not _BEGINNING.startswith(line[: len(_BEGINNING)])):
                    raise self._foreign(number)
                torn = number
                break
            if not whole:
                self._out.append(b"\n")  # whole but for its end
            self._journal.adopt(result, line + b"\n")
            at += len(line) + 1
        if torn:
            self._out.truncate(at)
            self.repaired = size - at

    def _begin_errors(self, *, anything: bool) -> None:
        """Cut the errors of earlier runs off; nothing else, unless it may be `anything`."""
        if not self._errors.is_regular:
            return  # a terminal or pipe, which has nothing to cut off
        begin = b"" if not self._errors.size else pread(self._errors.descriptor, len(_ERROR_BEGINNING), 0)
        # A run that was killed may have left half a line, and a power failure zeros.
        if not anything and begin.strip(b"\0") and not _ERROR_BEGINNING.startswith(begin):
            raise OutputError(
                f"{self.errors_path} exists, and its line 1 is not an error of a run: "
                "give another --errors, or --overwrite to begin it anew"
            )
        self._errors.truncate(0)

    def _foreign(self, number: int) -> OutputError:
        return OutputError(
            f"{self.out_path} exists, and its line {number} is not a result of a run: "
            "give another -o, or --overwrite to begin it anew"
        )

    def _foreign_change(self) -> OutputError:
        assert self._journal is not None
        return OutputError(
            f"{self.out_path} was changed since the last run, so that it does not match {self._journal.path.name}: move it away, and "
            "it is written again as it was; or --overwrite to begin anew"
        )


_BEGINNING = b'{"id":"batch_req_'
_ERROR_BEGINNING = b'{"line":'
_NAME = re.compile(rb'"custom_id"\s*:\s*"([^"]*)"')
_MANY = 200_000


def _name_of(number: int, line: bytes) -> int | None:
    """The digest of a row's custom_id, as far as a look at the line tells it; None: only reading it as JSON does."""
    if b"custom_id" not in line:
        return custom_id_digest(f"line-{number}")
    name = _NAME.search(line)
    if name is None or b"\\" in name[1] or line.count(b"custom_id") != 1:
        return None
    return custom_id_digest(name[1].decode("utf-8", "replace"))


def _lines_from(file: Appended, begin: int) -> Iterator[tuple[int, bytes, bool]]:
    """(number, line, whether it ends) of a file's lines from a place on."""
    number, rest, at = 0, b"", begin
    while chunk := pread(file.descriptor, 1 << 20, at):
        at += len(chunk)
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            number += 1
            yield number, line, True
    if rest:
        yield number + 1, rest, False


def _result_row(line: bytes) -> Row | None:
    """What a line of results answers, as far as it says; None if it is no result."""
    try:
        result = load_json(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(result, dict) or not isinstance(result.get("response"), dict):
        return None
    custom_id = result.get("custom_id")
    if not isinstance(custom_id, str | int):
        return None
    return _Adopted(0, custom_id, "", "", str(result.get("id")).encode(), {}, raw=custom_id_digest(f"\0{custom_id}"))


class _Adopted(Row):
    """A row of which only the answer is known. Its id says what was asked."""

    @property
    def key(self) -> int:
        digits = self.body.rpartition(b"_")[2]
        try:
            return int(digits, 16) & ((1 << 64) - 1)
        except ValueError:
            return 0
