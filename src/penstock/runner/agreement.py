"""A results file and its journal, made to agree when a run begins.

The journal is the record: what the results file lacks is written there again, a torn end is taken off, and one that
another program changed is left alone and named. Where the journal is gone or damaged, the results are read instead:
their ids say what was asked.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from penstock._numbers import number_of
from penstock.runner.files import Appended, OutputError
from penstock.runner.journal import Journal
from penstock.runner.source import Row, custom_id_digest, load_json
from penstock.runner.system import pread

__all__ = ["JournalAgreement", "check_adoptable"]

_BEGINNING = b'{"id":"batch_req_'

_LAST = 1 << 20
"""Bytes at the end of a file in which its last line is looked for."""


class JournalAgreement:
    """What a results file should hold, by its journal.

    Attributes:
        repaired: Bytes of a torn last line that were taken off the results.
        restored: Results that the journal held and the results file did not.
    """

    def __init__(self, out: Appended, journal: Journal, *, in_input_order: bool) -> None:
        """Nothing is read or changed.

        Args:
            out: The results, a regular file.
            journal: Its journal.
            in_input_order: The file is made at the end of the run, and holds what an earlier one made until then.
        """
        self._out, self._journal, self._in_input_order = out, journal, in_input_order
        self.repaired: int = 0
        self.restored: int = 0

    def reach(self) -> None:
        """Make the results file what the journal says it is.

        Raises:
            OutputError: It cannot be written, or another program changed it.
        """
        journal, out = self._journal, self._out
        if journal.damaged and out.size:
            self._adopt_missing()
            self._write_anew()
            return
        if not len(journal.answered) and self._in_input_order:
            if out.size:
                self._adopt(0)
            return
        if self._in_input_order or journal.in_input_order:
            self._check_ours()
            if not self._in_input_order:
                self._write_anew()
                journal.ordered(b"completed")
            return
        if self._holds_dropped():
            self._write_anew()
            return
        expected = journal.size - self._dropped_size()
        if out.size < expected:
            self._fill_up()
        elif expected and not self._has_last_at(expected):
            raise self._foreign_change()
        elif out.size > expected:
            self._adopt(expected)

    def _check_ours(self) -> None:
        """See that a file that is to be made anew holds results alone: its order may be any, and it may lack some."""
        out = self._out
        end = pread(out.descriptor, _LAST, max(0, out.size - _LAST))
        whole, _, torn = end.rpartition(b"\n")  # a run that was killed, or a power failure, may have left half a line
        last = whole.rpartition(b"\n")[2] if whole else torn
        begins = [pread(out.descriptor, len(_BEGINNING), 0)]
        if len(last) < len(whole or torn) or out.size <= _LAST:  # else it is longer than what was read of it
            begins.append(last[: len(_BEGINNING)])
        if not all(map(_BEGINNING.startswith, begins)) or out.size - len(torn) > self._journal.size:
            raise self._foreign_change()

    def _holds_dropped(self) -> bool:
        """Whether the file still has answers that were dropped: the run ended before it was made anew."""
        journal = self._journal
        if not journal.answered.dropped or self._begins_as(journal.results()):
            return False
        return self._begins_as(journal.results(dropped_too=True))

    def _begins_as(self, lines: Iterable[bytes]) -> bool:
        """Whether the file is a beginning of these lines, or they are one of it."""
        at = 0
        for line in lines:
            found = pread(self._out.descriptor, len(line), at)
            if not line.startswith(found):
                return False
            if len(found) < len(line):
                break
            at += len(line)
        return True

    def _dropped_size(self) -> int:
        if not self._journal.answered.dropped:
            return 0
        return self._journal.size - sum(map(len, self._journal.results()))

    def _fill_up(self) -> None:
        """Add the results that the file lacks; what it has must be the beginning of what it should have."""
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
        last = b"" if self._journal.answered.dropped else self._journal.last
        return pread(self._out.descriptor, len(last), end - len(last)) == last

    def rewrite(self) -> None:
        """Write the results file anew out of the journal. A crash on the way is repaired by the next run."""
        if not self._in_input_order:
            self._write_anew()

    def _write_anew(self) -> None:
        self._out.truncate(0)
        for line in self._journal.results():
            self._out.append(line)

    def _adopt(self, begin: int) -> None:
        """Take over the results that the file holds and the journal does not.

        Cut off a last line that was left unfinished.
        """
        size, at, number, torn = self._out.size, begin, 0, 0
        for number, line, whole in _lines_from(self._out, begin):
            result = _result_row(line)
            if result is None:
                if whole or (not number and not begin and not _BEGINNING.startswith(line[: len(_BEGINNING)])):
                    raise _foreign(self._out, number, begin)
                torn = number
                break
            if not whole:
                self._out.append(b"\n")  # whole but for its end
            self._journal.adopt(result, line + b"\n")
            at += len(line) + 1
        if torn:
            self._out.truncate(at)
            self.repaired = size - at

    def _adopt_missing(self) -> None:
        """Take over those results, wherever they stand in the file, whose records were damaged."""
        missing: list[tuple[Row, bytes]] = []
        for number, line, whole in _lines_from(self._out, 0):
            result = _result_row(line)
            if result is not None and self._journal.answered.find(result) is None:
                missing.append((result, line))
            elif result is None and whole and line.strip(b"\0"):
                raise _foreign(self._out, number)
        for row, line in missing:
            self._journal.adopt(row, line + b"\n")

    def _foreign_change(self) -> OutputError:
        out, journal, answered = self._out.path, self._journal.path.name, self._journal.answered
        rows = [row for _, line, _ in _lines_from(self._out, 0) if (row := _result_row(line)) is not None]
        places = set(map(answered.find, rows))
        more, less = sum(answered.find(row) is None for row in rows), len(answered) - len(places - {None})
        if not more:
            return OutputError(
                f"{out} was changed since the last run, so that it does not match {journal}: "
                "move it away, and it is written again as it was; or --overwrite to start over"
            )
        lacks = f", which then are {number_of(less, 'answer')} less, those that only {journal} has" if less else ""
        return OutputError(
            f"{out} holds {number_of(more, 'answer')} that {journal} does not: move {journal} away, and the answers in "
            f"{out.name} count instead{lacks}; or --overwrite to start over"
        )


def check_adoptable(out: Appended) -> None:
    """Refuse a file of something else before anything is made beside it.

    Raises:
        OutputError: It is one.
    """
    if not _BEGINNING.startswith(pread(out.descriptor, len(_BEGINNING), 0)):
        raise _foreign(out, 1)


def _foreign(out: Appended, number: int, begin: int = 0) -> OutputError:
    """For a line that is none of ours, by its number from a place on; before it there may be answers."""
    before, at = 0, 0
    while at < begin and (chunk := pread(out.descriptor, min(1 << 20, begin - at), at)):
        before += chunk.count(b"\n")
        at += len(chunk)
    line = before + number
    return OutputError(
        f"{out.path} exists, and its line {line} is not a result of a run: "
        + (
            "give another -o, or --overwrite to start it over"
            if line == 1
            else "take that line out, or give another -o"
        )
    )


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
