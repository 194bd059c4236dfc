"""The journal of a run: what was sent, and how it ended. A run that was killed goes on, and pays for nothing twice.

A file that only grows, a record a line, each written by one call of the system and never changed:

    {"journal":"penstock","version":2}
    {"sent":"<keys>",…}                    written before the request is sent
    {"done":"<keys>","result":{…},…}       the whole answer: the line of the results file as it stands there
    {"over":"<keys>",…}                    what was sent is known not to be answered: it was refused, or never left
    {"fail":"<keys>",…}                    the row was given up, and is among the errors
    {"drop":"<keys>",…}                    this answer does not count any more: its row was edited, and is asked again
    {"order":"input",…}                    the results file was put in the order of the input
    {"from":["http://host/v1"],…}          who is asked from here on

`keys` are three digests of 64 bits, in hex: of the line as it stands in the file, of the custom_id, and of all that is
asked (custom_id, endpoint, body). The first lets a run pass over a million answered rows without reading them as JSON;
the others tell a row that was edited from one that was only written differently. Each record ends in its checksum,
`"crc":"<8 digits>"}`: one that a disk or a person has damaged is found, and the whole ones go on.

A process that is killed loses nothing: a record is the system's once it is written. Against a power failure the file is
synced within `SYNC_EVERY` seconds, for many records at once and beside the event loop.
"""

from __future__ import annotations

import array
import binascii
import bisect
import contextlib
import os
import stat
import sys
import threading
import zlib
from collections.abc import Collection, Container, Iterator, Mapping, Sequence
from itertools import accumulate, chain
from pathlib import Path

from penstock.runner.files import Appended, OutputError, cannot_write, create_beside, truncate_at_last_line
from penstock.runner.naming import Naming, as_flag
from penstock.runner.source import Rejected, Row, dump_json, load_json
from penstock.runner.spilled import NumberTable
from penstock.runner.system import pread, sync_data

__all__ = ["HEAD", "SYNC_EVERY", "AnsweredRows", "Journal", "Syncer", "result_line"]

SYNC_EVERY = 0.1
"""Seconds for which a record may be the system's and not yet the disk's."""

HEAD = b'{"journal":"penstock","version":2}\n'
_KEYS = slice(9, 57)
_ASKED = slice(25, 57)
"""Of the keys those that stay when the line is only written differently: of the custom_id, and of what is asked."""

_RESULT = 58 + len(b',"result":')
"""Where the result begins in a record of what is done."""

_CRC = len(b',"crc":"12345678"}')
"""Bytes of the checksum that ends a record."""

_SHORTEST = len(b'{"order":""') + _CRC

_BEGINNINGS = frozenset({b'{"sent":"', b'{"done":"', b'{"over":"', b'{"fail":"', b'{"drop":"'})

_CHUNK = 1 << 20

_S, _D, _O = b"sdo"
"""The letters by which records are told apart: "sent" and "done"; "drop" has an r where "done" has an o."""


class AnsweredRows:
    """The rows that have an answer: by line, by custom_id, by content; all found in a microsecond.

    Up to 200 bytes a row, and 60 of those that were met and given back.
    """

    def __init__(self) -> None:
        self._by_line: dict[int, int] = {}
        self._lines, self._ids, self._contents = array.array("Q"), array.array("Q"), array.array("Q")
        self._met: set[int] = (
            set()
        )  # places of rows that were written differently; the others are not in `_by_line` any more
        self._sorted_ids: array.array[int] | None = None
        self._places: dict[int, int] = {}
        self.dropped: set[int] = set()
        self._by_others: list[range] = []
        self._lines_of_others: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._ids) - len(self.dropped)

    @property
    def places(self) -> int:
        """How many answers there are, dropped ones included: the place of the next one."""
        return len(self._ids)

    def keys(self, place: int) -> bytes:
        """The keys of the row at a place, 24 bytes."""
        three = (self._lines[place], self._ids[place], self._contents[place])
        return b"".join(number.to_bytes(8, "little") for number in three)

    def drop(self, place: int) -> None:
        """Forget the answer at a place."""
        self.dropped.add(place)
        if self._by_line.get(self._lines[place]) == place:
            del self._by_line[self._lines[place]]

    def drop_by_keys(self, ends: Mapping[bytes, int]) -> None:
        """Forget answers by their keys, 24 bytes each, as far as they stand before the place of each."""
        if ends:
            for place in range(max(ends.values())):
                if place < ends.get(self.keys(place), 0):
                    self.drop(place)

    def extend(self, keys: bytes) -> None:
        """Add rows by their keys, 24 bytes each."""
        three = array.array("Q", keys)
        if sys.byteorder == "big":
            three.byteswap()
        first = len(self._lines)
        lines = three[0::3]
        self._by_line.update(zip(lines, range(first, first + len(lines)), strict=True))
        self._lines.extend(lines)
        self._ids.extend(three[1::3])
        self._contents.extend(three[2::3])
        self._sorted_ids = None

    def meet_all(self, lines: Sequence[int]) -> list[int | None]:
        """The places of rows with these lines, as `meet` has them."""
        pop = self._by_line.pop
        return [pop(line, None) for line in lines]

    def give_back(self) -> None:
        """Give back the memory of rows that were met: a dict keeps the room of what is taken out of it."""
        self._by_line = self._by_line.copy()

    def meet(self, line: int) -> int | None:
        """The place in the journal of a row with this line, once: the same line again is a duplicate, and None."""
        return self._by_line.pop(line, None)

    def find(self, row: Row) -> int | None:
        """The place in the journal of a row that has the custom_id of this one, met or not; None: there is none."""
        name = row.name
        ids = self._in_order()
        at = bisect.bisect_left(ids, name)
        if at == len(ids) or ids[at] != name:
            return None
        if not self._places:
            self._places = {each: place for place, each in enumerate(self._ids)}
        place = self._places[name]
        return None if place in self.dropped else place

    def hold(self, names: set[int]) -> set[int]:
        """Those of some digests of custom_ids to which there is an answer, dropped ones included."""
        return names.intersection(self._ids)

    def unmet(self, but: Container[int | None]) -> int:
        """How many answers are to rows that no line asked for so far, without those under one of these names."""
        places = chain(self._by_line.values(), *self._by_others)
        return sum(self._ids[place] not in but for place in places if place not in self.dropped)

    def leave_to_others(self, places: range) -> None:
        """Take the answers at these places for those of another server: no row has them as its own any more."""
        self._by_others.append(places)
        for place in places:
            if self._by_line.get(self._lines[place]) == place:
                self._lines_of_others[self._lines[place]] = self._by_line.pop(self._lines[place])

    def met_by_other(self, line: int) -> int | None:
        """The place in the journal of a row with this line that another server answered; None: there is none."""
        return self._lines_of_others.get(line)

    def by_another(self, place: int) -> bool:
        """Whether another server gave the answer at a place."""
        return any(place in places for places in self._by_others)

    def _in_order(self) -> array.array[int]:
        if self._sorted_ids is None:
            self._sorted_ids = array.array("Q", sorted(self._ids))
            self._places = {}
        return self._sorted_ids

    def same(self, place: int, row: Row) -> bool:
        """Whether what was answered there is what this row asks."""
        return self._contents[place] == row.key and not self.by_another(place)

    def met(self, place: int, *, now: bool = False) -> bool:
        """Whether an earlier line of the file was this row; with `now`, this line is."""
        is_unmet = self._by_line.get(self._lines[place]) == place or self.by_another(place)
        before = place in self._met or not is_unmet
        if now and not before:
            self._met.add(place)
            self._by_line.pop(self._lines[place], None)
        return before


class Journal:
    """A journal, open for adding to it; `close()` it.

    Attributes:
        answered: The rows with an answer that earlier runs left.
        open: Keys of rows that were sent and of which nothing more is known: they may have been billed.
        failed: Names of the rows that were given up by a run, or are open; of a line that could not be read, `line-N`.
        repaired: Bytes of a torn last record that were taken off.
        damaged: Records that were not whole any more, and were taken out. The file as it was is kept beside it
            (`damaged_path`).
        size: Bytes of all the results that it holds, dropped ones included, as they stand in a results file.
        last: The last of them.
        in_input_order: Whether the results file was last put in the order of the input.
        offsets: Where the record of each answer of earlier runs begins, by its place; kept only if asked for.
        asked: Who was asked, and for which of the answers, in their order; none where it is not known.
    """

    def __init__(self, path: Path, *, overwrite: bool = False, offsets: bool = False, named: Naming = as_flag) -> None:
        """Open it, cut a torn end off, and read what earlier runs did.

        Args:
            path: Where it is; made if it is not there.
            overwrite: Begin it anew, whatever it holds.
            offsets: Keep where each answer of earlier runs is, in a temporary file.
            named: What options are called in messages.

        Raises:
            OutputError: It cannot be written, is in use by another run, or is no journal.
        """
        self.path = path
        self.answered: AnsweredRows = AnsweredRows()
        self.open: set[int] = set()
        self.failed: set[int] = set()
        self.repaired: int = 0
        self.damaged: int = 0
        self.size: int = 0
        self.last: bytes = b""
        self.in_input_order: bool = False
        self.offsets: NumberTable | None = NumberTable() if offsets else None
        self.asked: list[tuple[int, frozenset[str]]] = []
        self._asks: frozenset[str] = frozenset()
        self._said_who = False
        self._option = named("journal")
        self._file = Appended(path, self._option, read_again=True)
        try:
            if overwrite:
                self._file.truncate(0)
            self._begin()
        except BaseException:
            self._file.close()
            raise

    @property
    def descriptor(self) -> int:
        """What is synced."""
        return self._file.descriptor

    def sent(self, row: Row, attempt: int) -> None:
        """Write down that a row is about to be sent.

        Raises:
            OutputError: The disk is full or gone.
        """
        self._say_who_is_asked()
        self._add(b'{"sent":"%b","attempt":%d' % (row.keys, attempt))

    def answer(self, row: Row, status_code: int, request_id: str | None, body: bytes) -> bytes:
        """Write down an answer, whose `body` is JSON on one line; return it as a line of the results file."""
        line = result_line(row, status_code, request_id, body)
        self.done(row, line)
        return line

    def ask(self, servers: Collection[str], *, keep: bool = False) -> None:
        """Say who is asked from now on: answers of others are not taken for theirs, unless they are to be kept.

        Several servers are one service: where one of them was asked before, all answers are its own.
        """
        self._asks, self._said_who = frozenset(servers), False
        ends = [*(first for first, _ in self.asked), self.answered.places][1:]
        for (first, those), end in zip(self.asked, ends, strict=True):
            if self._asks and those.isdisjoint(self._asks) and not keep:
                self.answered.leave_to_others(range(first, end))

    def asked_for(self, place: int) -> frozenset[str]:
        """Who was asked when the answer at a place came; none if that is not known."""
        return next((those for first, those in reversed(self.asked) if first <= place), frozenset())

    def done(self, row: Row, result: bytes) -> int:
        """Write down an answer, a line of the results file with its end; return where its record begins."""
        self._say_who_is_asked()
        at = self._file.size
        self._add(b'{"done":"%b","result":%b' % (row.keys, result.rstrip(b"\n")))
        self.size += len(result)
        return at

    def adopt(self, row: Row, result: bytes) -> None:
        """Take over an answer that the results file holds and the journal does not."""
        at = self.done(row, result)
        self.open.discard(row.key)
        if self.offsets is not None:
            self.offsets.put([(self.answered.places, at)])
        self.answered.extend(binascii.unhexlify(row.keys))

    def over(self, row: Row) -> None:
        """Write down that what was sent was not answered and is not billed as an answer."""
        self._add(b'{"over":"%b"' % row.keys)

    def fail(self, row: Row | Rejected, code: str) -> None:
        """Write down that a row was given up.

        How an ambiguous row ended stays open; and so does the end of the row which a duplicate has all its keys from.
        """
        if code not in {"ambiguous", "duplicate_custom_id"}:
            self._add(b'{"fail":"%b","code":"%b"' % (row.keys, code.encode("ascii", "replace")[:100]))

    def drop(self, place: int) -> None:
        """Write down that an answer of an earlier run does not count any more."""
        self._add(b'{"drop":"%b"' % binascii.hexlify(self.answered.keys(place)))
        self.answered.drop(place)

    def ordered(self, order: bytes) -> None:
        """Write down in which order the results file stands."""
        self.in_input_order = order == b"input"
        self._add(b'{"order":"%b"' % order)

    def results(self, *, dropped_too: bool = False) -> Iterator[bytes]:
        """The lines of the results file, in the order in which they came, without those that were dropped."""
        place, dropped = -1, set[int]() if dropped_too else self.answered.dropped
        for line in self._records():
            if line[2:6] == b"done":
                place += 1
                if place not in dropped:
                    yield line[_RESULT:-_CRC] + b"\n"

    def result_at(self, place: int) -> bytes:
        """The line of the results file of an answer of an earlier run; needs `offsets`."""
        assert self.offsets is not None
        return self.result_from(self.offsets[place])

    def result_from(self, at: int) -> bytes:
        """The line of the results file of the answer whose record begins there."""
        parts = []
        while True:
            part = pread(self._file.descriptor, 65_536, at)
            end = part.find(b"\n")
            parts.append(part if end < 0 else part[:end])
            if end >= 0 or not part:
                return b"".join(parts)[_RESULT:-_CRC] + b"\n"
            at += len(part)

    def check(self) -> None:
        """See that the file is still where it was; put it back if it was deleted.

        Raises:
            OutputError: It is not.
        """
        self._file.check()

    def close(self) -> None:
        """Let the disk have all of it, and close."""
        self._file.close()

    # ------------------------------------------------------------------------------------------------------------------

    @property
    def damaged_path(self) -> Path:
        """Where the file is kept as it was before damaged records were taken out."""
        return self.path.with_name(self.path.name + ".damaged")

    def _say_who_is_asked(self) -> None:
        if self._asks and not self._said_who and (not self.asked or self.asked[-1][1] != self._asks):
            self._add(b'{"from":%b' % dump_json(sorted(self._asks)))
        self._said_who = True

    def _add(self, record: bytes) -> None:
        self._file.append(b'%b,"crc":"%08x"}\n' % (record, zlib.crc32(record)))

    def _begin(self) -> None:
        begin = self._pread(len(HEAD), 0)
        if not HEAD.startswith(begin) and begin.strip(b"\0"):  # a power failure may leave zeros
            other = b'{"journal":"penstock"'
            raise OutputError(
                f"{self.path} is the journal of another version of penstock: "
                "move it away, and the results are read instead"
                if begin.startswith(other)
                else f"{self.path} exists and is not a journal of a run: move it away, or give another {self._option}"
            )
        self.repaired = truncate_at_last_line(self._file)
        if not self._file.size:
            self._file.append(HEAD)
            return
        if not self._read():
            self._take_out_damaged()
            self.answered, self.asked = AnsweredRows(), []
            self._read()

    def _pread(self, size: int, at: int) -> bytes:
        try:
            return pread(self._file.descriptor, size, at)
        except OSError as error:  # a pipe
            raise cannot_write(self.path, error) from None

    def _take_out_damaged(self) -> None:
        """Go on in a copy that has the whole records alone. A crash on the way changes nothing, or has done it."""
        draft, descriptor = create_beside(self.path)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(HEAD)
                for lines in self._batches():
                    sound = _sound(lines)
                    self.damaged += len(lines) - len(sound)
                    file.writelines(line + b"\n" for line in sound)
                file.flush()
                os.fsync(file.fileno())
            self._file.close()
            with contextlib.suppress(FileNotFoundError):
                self.damaged_path.unlink()
            try:
                os.link(self.path, self.damaged_path)
            except OSError:  # a file system without them
                self.path.replace(self.damaged_path)
            draft.replace(self.path)
        except OSError as error:
            raise cannot_write(self.path, error) from None
        self._file = Appended(self.path, self._option)

    def _read(self) -> bool:
        """Go over all records once. A million of them take about a second, so this looks at bytes and not at JSON."""
        unhex = binascii.unhexlify
        open_: set[bytes] = set()
        failed: set[bytes] = set()
        dropped: dict[bytes, int] = {}
        size, at, last = 0, len(HEAD), b""
        for lines in self._batches():
            if len(_sound(lines)) != len(lines):
                return False
            done = [line for line in lines if line[2] == _D and line[3] == _O]
            keys = [line[_KEYS] for line in done]
            sent = [line[_ASKED] for line in lines if line[2] == _S]
            self.answered.extend(unhex(b"".join(keys)))
            if done:
                size += sum(map(len, done)) - (_RESULT + _CRC - 1) * len(done)
                last = done[-1]
            if len(sent) + len(done) == len(lines):
                open_.update(sent)
                open_.difference_update([line[_ASKED] for line in done])
            else:
                latest = {line[_ASKED]: line[2] for line in lines}  # of many records of a row, the last one counts
                open_.difference_update([key for key, kind in latest.items() if kind != _S])
                open_.update([key for key, kind in latest.items() if kind == _S])
                failed.update(line[_ASKED] for line in lines if line[2:6] == b"fail")
                place = self.answered.places - len(done)
                for line in lines:
                    if line[2:7] == b"order":
                        self.in_input_order = b"input" in line
                    elif line[2:6] == b"drop":
                        dropped[unhex(line[_KEYS])] = place
                    elif line[2:6] == b"from":
                        self.asked.append((place, frozenset(load_json(line[:-_CRC] + b"}")["from"])))
                    place += line[2:6] == b"done"
            if self.offsets is not None:
                begins = accumulate((len(line) + 1 for line in lines), initial=at)
                here = [begin for line, begin in zip(lines, begins, strict=False) if line[2:6] == b"done"]
                self.offsets.put(enumerate(here, self.answered.places - len(here)))
                at += sum(map(len, lines)) + len(lines)
        self.answered.drop_by_keys(dropped)
        self.open = {int.from_bytes(unhex(key[16:]), "little") for key in open_}
        self.failed = {int.from_bytes(unhex(key[:16]), "little") for key in failed | open_}
        self.size, self.last = size, last[_RESULT:-_CRC] + b"\n" if last else b""
        return True

    def _records(self) -> Iterator[bytes]:
        return chain.from_iterable(self._batches())

    def _batches(self) -> Iterator[list[bytes]]:
        at, rest = len(HEAD), b""
        while chunk := pread(self._file.descriptor, _CHUNK, at):
            at += len(chunk)
            whole = chunk.split(b"\n")
            whole[0] = rest + whole[0]
            rest = whole.pop()
            yield whole


def _sound(lines: list[bytes]) -> list[bytes]:
    """Those that are whole records; most often all of them."""
    sums = b"".join([line[-10:-2] for line in lines])
    try:
        told = array.array("I", binascii.unhexlify(sums))
    except ValueError:
        return list(filter(_is_sound, lines))
    if sys.byteorder == "little":
        told.byteswap()
    whole = array.array("I", [zlib.crc32(line[:-_CRC]) for line in lines])
    is_whole = told == whole and min(map(len, lines), default=_SHORTEST) >= _SHORTEST
    return lines if is_whole else list(filter(_is_sound, lines))


def _is_sound(line: bytes) -> bool:
    record = line[:-_CRC]
    is_known = record[:9] in _BEGINNINGS or record.startswith((b'{"order":"', b'{"from":["'))
    return is_known and line[-_CRC:] == b',"crc":"%08x"}' % zlib.crc32(record)


def result_line(row: Row, status_code: int, request_id: str | None, body: bytes) -> bytes:
    """A line of the results file, in OpenAI's Batch format. Its id says what was asked."""
    return (
        b'{"id":"batch_req_%016x","custom_id":%b,"response":{"status_code":%d,"request_id":%b,"body":%b},"error":null}\n'
        % (
            row.key,
            dump_json(row.custom_id),
            status_code,
            b"null" if request_id is None else dump_json(request_id),
            body,
        )
    )


class Syncer:
    """Lets the disk have what was written to some files, ten times a second, in a thread of its own."""

    def __init__(self, *descriptors: int) -> None:
        self._descriptors = [file for file in descriptors if stat.S_ISREG(os.fstat(file).st_mode)]
        self._dirty = threading.Event()
        self._over = threading.Event()
        self._error: tuple[OSError] | None = None
        self._thread = threading.Thread(target=self._run, name="penstock-sync", daemon=True)

    def start(self) -> None:
        """Begin."""
        if self._descriptors:
            self._thread.start()

    def wrote(self) -> None:
        """Say that there is something to sync.

        Raises:
            OSError: What was written before did not reach the disk.
        """
        if self._error is not None:
            raise self._error[0]
        if not self._dirty.is_set():
            self._dirty.set()

    def stop(self) -> None:
        """End, with everything that was written before on the disk."""
        self._over.set()
        self._dirty.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while not self._over.is_set():
            self._dirty.wait()
            self._over.wait(SYNC_EVERY / 2)
            self._dirty.clear()
            for file in self._descriptors:
                try:
                    sync_data(file)
                except OSError as error:
                    self._error = (error,)
                    return
