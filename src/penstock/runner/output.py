"""What a run leaves: results, errors and the journal; and how an interrupted run finds its place again.

The journal is the record (`journal`): an answer is written there first, and the results file is made of it. Usually the
results file grows with it, line by line; in the order of the input it is made at the end. So a results file that was
torn, deleted or cut is made whole again, and one that another program changed is left alone and named. A results file
whose journal is gone is read instead: its ids say what was asked.

What fails goes to a file of its own, which each run begins anew: the rows in it have no result, so they are tried
again. Where results go into a pipe there is no journal, unless one is asked for, and nothing to go on from.
"""

from __future__ import annotations

import array
import contextlib
import math
import os
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from penstock import clock
from penstock._numbers import number_of
from penstock.runner.agreement import JournalAgreement, check_adoptable
from penstock.runner.files import (
    Appended,
    KeptError,
    OutputError,
    Pipe,
    ReplacedError,
    beside,
    cannot_write,
    create_beside,
    journal_of,
    remove_drafts,
    write_summary,
)
from penstock.runner.journal import Journal, Syncer, result_line
from penstock.runner.ports import Known
from penstock.runner.source import (
    Lines,
    Rejected,
    Row,
    custom_id_digest,
    dump_json,
    named_key,
    named_keys,
    unnamed_key,
)
from penstock.runner.spilled import NumberTable
from penstock.runner.system import free_bytes, growth_left, pread

__all__ = [
    "ERROR_BEGINNING",
    "ChangedError",
    "Known",
    "OutputError",
    "ReplacedError",
    "Results",
    "beside",
    "journal_of",
    "write_summary",
]

CHECK_EVERY = 1.0
"""Seconds after which it is looked whether the files are still there."""

ARRIVAL = 1.0
"""Seconds in which what an earlier run sent last has reached the server, and is used up there."""

RECORD = 250
"""Bytes that the journal has beside an answer: that it was sent, keys and checksums."""

MARGIN = 1.5
"""So many times as much room must be left on a disk as what is under way will take, since answers differ."""

BACKLOG = 4 * 1024 * 1024
"""Bytes that may wait for the reader of a pipe before no further row is begun."""


class ChangedError(OutputError):
    """Rows were edited since they were answered, or another server is asked than the one that answered them."""

    def __init__(
        self, edited: Sequence[int], moved: Sequence[int], of: str, where: Path, *, by_line: bool = False
    ) -> None:
        """Say what differs, and the way out.

        Args:
            edited: The lines of the rows that were edited.
            moved: The lines of those that another server answered.
            of: That server.
            where: The results.
            by_line: Whether some of the edited rows have no custom_id: they may stand on another line than before.
        """
        said = []
        if edited:
            rows = number_of(len(edited), "row asks", "rows ask")
            said.append(
                f"{rows} something else than what {where} answers under the same custom_id (first: line {min(edited)})"
            )
        if moved:
            rows = number_of(len(moved), "row is", "rows are")
            said.append(f"{rows} answered in {where} by {of}, which is not asked now (first: line {min(moved)})")
        super().__init__(
            f"{'; '.join(said)}: --changed=rerun asks again and drops the old answers, --changed=keep keeps them, "
            "another -o starts over beside them"
            + ("; rows without a custom_id are known by their line, so new ones belong at the end" if by_line else "")
        )


class Results:
    """The results, errors and journal of a run, open for writing; a context manager.

    Attributes:
        found: How many answers earlier runs left.
        idle: Seconds for which an earlier run, whose answers may be dropped by now, has used the limits no more;
            `inf`: there was none.
        repaired: Bytes of a torn last line that were taken off the results.
        damaged: Records of the journal that were not whole any more; where the file is kept as it was.
        elsewhere: Answers to rows that the file of requests does not have; known after `examine`.
        edited: Rows that were edited since they were answered; known after `examine`.
        moved: Rows that were answered by a server that is not asked now; known after `examine`.
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
        servers: Collection[str] = (),
    ) -> None:
        """Open the files, repair them and read what is answered.

        Args:
            out: Where results go; they are added to those that are there.
            errors: Where errors go; those of an earlier run are dropped.
            journal: Where the journal is; "beside" `out`, or nowhere if that is no regular file. None: there is none.
            order: Of the results: as they come, or that of the input, for which they are put in order at the end.
            changed: How rows are treated that were edited since they were answered. None: they are refused.
            overwrite: Begin the results anew too, and each file whatever it holds.
            descriptor: `out` is open already, as this: standard output.
            errors_descriptor: So is `errors`.
            servers: Who is asked; none: that is not to be remembered.

        Raises:
            OutputError: A file cannot be written, is in use by another run, or holds something else than results.
        """
        self.out_path: Path = out
        self.errors_path: Path = errors
        self.repaired: int = 0
        self.restored: int = 0
        self.damaged: tuple[int, Path] | None = None
        self.elsewhere: int = 0
        self.edited: int = 0
        self.moved: int = 0
        self._order, self._changed = order, changed
        self._offsets = NumberTable()  # of answers in the journal, by the number of the row, for the order of the input
        self._doubtful: set[int | None] | None = None
        self._checked = -math.inf
        self._under_way: set[int] = set()
        self._answers = self._answer_bytes = self._checked_bytes = 0
        self._has_dropped = False
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
            self.idle: float = max(0.0, clock.wall() - max(times) - ARRIVAL) if times else math.inf
            if overwrite:
                self._out.truncate(0)
            self._journal: Journal | None = None
            self._agreement: JournalAgreement | None = None
            if path is not None:
                if not there and ours and self._out.size and not overwrite:
                    check_adoptable(self._out)
                self._journal = opening.enter_context(
                    contextlib.closing(Journal(path, overwrite=overwrite, offsets=order == "input"))
                )
                if self._journal.damaged:
                    self.damaged = self._journal.damaged, self._journal.damaged_path
                if ours:
                    if there:
                        remove_drafts(out.resolve())
                        remove_drafts(path)
                    self._agreement = JournalAgreement(self._out, self._journal, in_input_order=order == "input")
                    self._agreement.reach()
                    self.repaired, self.restored = self._agreement.repaired, self._agreement.restored
                self._journal.ask(servers, keep=changed == "keep")
            self.found: int = 0 if self._journal is None else len(self._journal.answered)
            self._errors = opening.enter_context(
                contextlib.closing(Appended(errors, "--errors", descriptor=errors_descriptor))
            )
            if errors_descriptor is None:
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
        """Rows that were given up by an earlier run, or not heard of again, by their names: they may be corrected."""
        return frozenset() if self._journal is None else frozenset(self._journal.failed)

    @property
    def ambiguous(self) -> int:
        """Rows that an earlier run sent and of which nothing more is known."""
        return 0 if self._journal is None else len(self._journal.open)

    @property
    def full(self) -> bool:
        """Whether the reader of a pipe is so far behind that no further row should be begun."""
        return self._pipe is not None and self._pipe.waiting > BACKLOG

    @property
    def keeps(self) -> bool:
        """Whether an answer is kept although a pipe has no reader any more."""
        return self._journal is not None or self._pipe is None

    @property
    def is_piped(self) -> bool:
        """Whether results or errors go to another program."""
        return self._pipe is not None or self._errors_pipe is not None

    def examine(self, lines: Lines, read: Callable[[int, bytes | None], Row | Rejected], salt: bytes = b"") -> None:
        """Go over the rows of a regular file before anything is sent: which are answered, and which were edited since.

        Raises:
            ChangedError: Rows were edited, or another server is asked, and `changed` does not say what to do.
        """
        if self._journal is None or not len(self._journal.answered) or not lines.is_regular:
            return
        answered = self._journal.answered
        edited, moved, places = array.array("Q"), array.array("Q"), array.array("Q")
        skip, doubtful = self._meet_lines(lines, salt, moved, places)
        answered.give_back()
        by_line = False
        for number, line in lines.again() if doubtful else ():
            if skip[number] or line is None or _name_of(number, line) not in doubtful:
                continue
            row = read(number, line)
            found = answered.find(row) if isinstance(row, Row) else None
            if found is None or not isinstance(row, Row) or answered.met(found) or answered.same(found, row):
                continue
            if answered.by_another(found):
                moved.append(number)
            else:
                edited.append(number)
                by_line = by_line or b"custom_id" not in line
            places.append(found)
        lines.pass_over(skip.replace(b"\2", b"\0"))
        self._doubtful = doubtful
        if None not in doubtful:
            self.elsewhere = answered.unmet(doubtful)
        self.edited, self.moved = len(edited), len(moved)
        if places and self._changed is None:
            others = sorted(set().union(*set(map(self._journal.asked_for, places)))) if moved else []
            raise ChangedError(edited, moved, " and ".join(others), self.out_path, by_line=by_line)
        if places and self._changed == "rerun":
            for place in places:
                self._journal.drop(place)
            if self._agreement is not None:
                self._agreement.rewrite()

    def _meet_lines(
        self, lines: Lines, salt: bytes, moved: array.array[int], places: array.array[int]
    ) -> tuple[bytearray, set[int | None]]:
        """Which rows are answered as they stand there (1; by another server: 2), and the names of others that are.

        None: of rows without a clear name. Rows that another server answered, and their answers, are added to `moved`
        and `places`.

        A million rows take a second: nothing is read as JSON, and names are looked up many at a time.
        """
        assert self._journal is not None
        answered = self._journal.answered
        skip, names, doubtful = bytearray(1), set[int](), set[int | None]()
        for begin, batch in lines.batches():
            skip.extend(bytes(begin + len(batch) - len(skip)))
            found = answered.meet_all(named_keys(batch, salt))
            if None not in found and self._order == "completed":
                skip[begin : begin + len(batch)] = b"\1" * len(batch)
                continue
            offsets = list[tuple[int, int]]()
            for number, (line, met) in enumerate(zip(batch, found, strict=True), begin):
                place = met
                if place is None and line and not line.isspace():
                    name = _name_of(number, line)
                    key = named_key(line, salt) if b"custom_id" in line else unnamed_key(number, line, salt)
                    place = answered.meet(key)
                    other = answered.met_by_other(key)
                    if other is not None:
                        skip[number] = 2
                        moved.append(number)
                        places.append(other)
                    if name is None:
                        doubtful.add(None)
                    elif place is None:
                        names.add(name)
                if place is not None:
                    skip[number] = 1
                    if self._journal.offsets is not None:
                        offsets.append((number, self._journal.offsets[place]))
            self._offsets.put(offsets)
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
            if self._journal.offsets is not None:
                self._offsets.put([(row.line, self._journal.offsets[place])])
            return Known.ANSWERED
        if self._changed == "rerun":
            self._journal.drop(place)
            self._has_dropped = True
            return Known.NEW
        return Known.BY_ANOTHER if answered.by_another(place) else Known.CHANGED

    def may_be_billed(self, row: Row) -> bool:
        """Whether an earlier run sent this row and was ended before it knew the outcome."""
        return self._journal is not None and row.key in self._journal.open

    # ------------------------------------------------------------------------------------------------------------------
    # What happens

    def sent(self, row: Row, attempt: int) -> None:
        """Write down that a row is about to be sent.

        Raises:
            OutputError: The disk is full or gone.
        """
        if self._journal is not None:
            self._journal.sent(row, attempt)
            self._under_way.add(row.raw)

    def over(self, row: Row) -> None:
        """Write down that what was sent is known not to be answered.

        Raises:
            OutputError: The disk is full or gone.
        """
        if self._journal is not None:
            self._journal.over(row)
            self._under_way.discard(row.raw)

    def answer(self, row: Row, status_code: int, request_id: str | None, body: bytes) -> None:
        """Write the result of a row, whose `body` is JSON on one line.

        Raises:
            KeptError: The disk is full or gone, or the reader of a pipe; the journal has the answer.
            OutputError: Nothing has it. Nothing of the line is left in the file.
        """
        line = result_line(row, status_code, request_id, body)
        self._under_way.discard(row.raw)
        self._answers, self._answer_bytes = self._answers + 1, self._answer_bytes + len(line)
        at = 0 if self._journal is None else self._journal.done(row, line)
        try:
            if self._order == "input":
                self._offsets.put([(row.line, at)])
            else:
                (self._out.append if self._pipe is None else self._pipe.put)(line)
        except OutputError as error:
            raise (OutputError if self._journal is None else KeptError)(str(error)) from None
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
        if isinstance(row, Row):
            self._under_way.discard(row.raw)
        if self._journal is not None:
            self._journal.fail(row, code)
        if self._errors_pipe is not None:
            self._errors_pipe.put(line + b"\n")
        else:
            self._errors.append(line + b"\n")

    def check(self) -> None:
        """See that all is where it should be, as often as it is due.

        Raises:
            OutputError: A file was deleted, replaced or cut, the pipe has no reader any more, or the disk has room for
                little more than the answers that are under way.
        """
        for pipe in (self._pipe, self._errors_pipe):
            if pipe is not None:
                pipe.check()
        if clock.now() - self._checked < CHECK_EVERY:
            return
        self._checked = clock.now()
        self._check_files()
        self._check_room()

    def give_up(self) -> None:
        """Wait for the readers of pipes no more."""
        for pipe in (self._pipe, self._errors_pipe):
            if pipe is not None:
                pipe.give_up()

    def finish(self) -> None:
        """Put the results in the order of the input if that was asked for.

        See that all of them are where they should be.

        Raises:
            OutputError: They cannot be written, or are gone.
        """
        if self._errors_pipe is not None:
            self._errors_pipe.drain()
        if self._pipe is not None:
            for line in self._in_order():
                self._pipe.put(line)
                if self.full:
                    self._pipe.drain()
            self._pipe.drain()
            return
        self._check_files()
        if self._agreement is None:  # what others opened is added to, and never replaced
            for line in self._in_order():
                self._out.append(line)
            return
        if self._has_dropped:
            self._agreement.rewrite()
        if self._order == "input" and self._journal is not None:
            path = self.out_path.resolve()  # a link to it stays one
            draft, descriptor = create_beside(path)
            try:
                with os.fdopen(descriptor, "wb") as file:
                    file.writelines(self._in_order())
                    file.flush()
                    os.fsync(file.fileno())
                # First: a run that was killed between the two would take the new file for one that somebody changed.
                self._journal.ordered(b"input")
                draft.replace(path)
            except (OSError, OutputError) as error:
                with contextlib.suppress(OSError):
                    draft.unlink()
                raise cannot_write(self.out_path, error) if isinstance(error, OSError) else error from None

    def close(self) -> None:
        """Let the disk have all of it, and close.

        Raises:
            OutputError: The disk did not take it.
        """
        self._syncer.stop()
        for pipe in (self._pipe, self._errors_pipe):
            if pipe is not None:
                pipe.end()
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

    def _in_order(self) -> Iterator[bytes]:
        """The results in the order of the input, where that was asked for."""
        return (self._journal.result_from(at) for at in self._offsets.in_order() if self._journal is not None)

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

    def _check_room(self) -> None:
        """See that answers that will be paid for can be kept: on a disk that is full they are lost."""
        since, self._checked_bytes = self._answer_bytes - self._checked_bytes, self._answer_bytes
        if not self._under_way or not self._answers:
            return
        each = self._answer_bytes / self._answers + RECORD
        needed = MARGIN * (len(self._under_way) * each + since)
        files = [] if self._journal is None else [(self._journal.descriptor, self._journal.path)]
        if self._pipe is None and self._order == "completed":
            files.append((self._out.descriptor, self.out_path))
        devices = [os.fstat(file).st_dev for file, _ in files]
        for (file, path), device in zip(files, devices, strict=True):
            left, growth = free_bytes(file), growth_left(file)
            if left < needed * devices.count(device) or growth < needed:
                full = "the disk of " * (growth >= needed) + f"{path} is nearly full"
                answers = number_of(len(self._under_way), "answer is", "answers are")
                raise OutputError(
                    f"{full} ({min(left, growth) / 1024:,.0f} kB are left{' by ulimit -f' * (growth < needed)}): "
                    f"{answers} under way, and the run ends here, so that they can be kept; make room, and the same "
                    "command goes on"
                )

    def _begin_errors(self, *, anything: bool) -> None:
        """Cut the errors of earlier runs off; nothing else, unless it may be `anything`."""
        if not self._errors.is_regular:
            return  # a terminal or pipe, which has nothing to cut off
        begin = b"" if not self._errors.size else pread(self._errors.descriptor, len(ERROR_BEGINNING), 0)
        # A run that was killed may have left half a line, and a power failure zeros.
        if not anything and begin.strip(b"\0") and not ERROR_BEGINNING.startswith(begin):
            raise OutputError(
                f"{self.errors_path} exists, and its line 1 is not an error of a run: "
                "give another --errors, or --overwrite to start it over"
            )
        self._errors.truncate(0)


ERROR_BEGINNING = b'{"line":'
"""Each line of an errors file begins so."""

_NAME = re.compile(rb'"custom_id"\s*:\s*"([^"\\]*)"')
_MANY = 200_000


def _name_of(number: int, line: bytes) -> int | None:
    """The digest of a row's custom_id, as far as a look at the line tells it; None: only reading it as JSON does."""
    count = line.count(b"custom_id")
    if not count:
        return custom_id_digest(f"line-{number}")
    name = _NAME.search(line) if count == 1 else None
    return None if name is None else named_key(name[1])
