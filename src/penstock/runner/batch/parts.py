"""A file of requests in parts that the Batch API takes, and the journal that remembers which part is where.

A part holds rows of one endpoint and one model, as many as the service's limits allow. Of its rows it keeps numbers
alone: 33 bytes each. The journal has a line for each step of a part, on the disk before the next step begins:

    {"part": name, "file": …, "rows": …}      it is uploaded, which costs nothing: a part without this line is made anew
    {"creating": name}                        a batch is about to be created: it may exist from now on
    {"batch": id, "part": name}               it does
    {"merged": name}                          its answers are among the results; or {"dropped": name}: it has none
"""

from __future__ import annotations

import array
import base64
import math
import os
import sys
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from penstock.runner.files import Appended, OutputError, truncate_at_last_line
from penstock.runner.source import Row, dump_json, load_json
from penstock.runner.system import pread

__all__ = [
    "HELD",
    "BatchJournal",
    "FullQueue",
    "Part",
    "QueueLimits",
    "Sizer",
    "Splitter",
    "TooLargeError",
    "batches_of",
]

MAX_ROWS = 50_000
MAX_BYTES = 200_000_000
MAX_INPUTS = 50_000
"""Texts of all embeddings in a batch."""

HELD = 30.0
"""Seconds for which a model's full queue is left alone at first, where none of our batches can end and make room."""

HEADROOM = 0.9
"""Of the tokens that a model's queue takes, so much is used: the service counts them in its own way."""

SHARES = 4
"""Parts that a queue should hold, so that it is not empty while one of them ends."""

_HEAD = b'{"journal":"penstock batches","version":1}\n'
_BOUNDARY = "penstock-7d1f0b9c2e5a4"
CONTENT_TYPE = f"multipart/form-data; boundary={_BOUNDARY}"


def batches_of(out: Path) -> Path:
    """Where the journal of the batches of a results file is."""
    return out.with_name(out.name + ".batches")


class TooLargeError(ValueError):
    """A row is larger than any batch may be."""


@dataclass(slots=True)
class Part:
    """Rows that are, or shall be, one batch.

    Attributes:
        name: Random, and in the metadata of its batch.
        endpoint: Of all its rows.
        model: Of all its rows.
        round: How often its rows were submitted, this time included.
        names: `Row.name` of each.
        keys: `Row.key` of each.
        lines: `Row.line` of each; 0: the row is not waited for.
        raws: `Row.raw` of each.
        numbers: Of each, whether its custom_id is a number.
        tokens: Of its input.
        dollars: That it costs at most, as far as its rows say; 0 where no price is known.
        form: The file to upload, in a form; None: it is uploaded.
        file: What the service calls it.
        since: When the service says that it was uploaded, in seconds since 1970.
        creating: Whether its batch may exist.
        batch: The batch; None: there is none, or it is not known.
        status: Of the batch, as last seen.
        done: Rows of the batch that are done, as last seen.
        is_resumed: Whether an earlier run uploaded it.
    """

    name: str
    endpoint: str
    model: str
    round: int = 1
    names: array.array[int] = field(default_factory=lambda: array.array("Q"))
    keys: array.array[int] = field(default_factory=lambda: array.array("Q"))
    lines: array.array[int] = field(default_factory=lambda: array.array("Q"))
    raws: array.array[int] = field(default_factory=lambda: array.array("Q"))
    numbers: bytearray = field(default_factory=bytearray)
    tokens: float = 0.0
    dollars: float = 0.0
    form: BinaryIO | None = None
    file: str = ""
    since: float = 0.0
    creating: bool = False
    batch: str | None = None
    status: str = ""
    done: int = 0
    is_resumed: bool = False

    def __len__(self) -> int:
        return len(self.names)

    @property
    def may_exist(self) -> bool:
        """Whether the service has its batch, or may have it."""
        return self.batch is not None or self.creating

    def waited(self) -> dict[int, int]:
        """Names of the rows that are waited for, and their places."""
        return {name: index for index, name in enumerate(self.names) if self.lines[index]}

    def attach(self, index: int, row: Row) -> None:
        """Wait for the row at a place."""
        self.lines[index], self.raws[index] = row.line, row.raw
        self.keys[index] = row.key
        self.numbers[index] = isinstance(row.custom_id, int)

    def row(self, index: int, custom_id: str) -> Row:
        """The row at a place, without its body."""
        name: str | int = int(custom_id) if self.numbers[index] else custom_id
        return Row(
            self.lines[index], name, self.endpoint, self.model, b"", {}, self.raws[index], self.keys[index],
            self.names[index],
        )  # fmt: skip


@dataclass(slots=True)
class FullQueue:
    """A model whose queue is full.

    Attributes:
        until: When it is tried again.
        since: When it was full for the first time.
        wait: Seconds until it is tried again, the next time that it is full.
    """

    until: float
    since: float
    wait: float = HELD


class QueueLimits:
    """How many tokens the queue of each model takes, as far as it was said."""

    def __init__(self, given: float | None = None) -> None:
        self._given = given
        self._told: dict[str, float] = {}
        self._most: dict[str, float] = {}

    def of(self, model: str) -> float | None:
        """Tokens that all batches of a model may hold; None: unknown."""
        told = self._told.get(model)
        limit = min(filter(None, (told, self._given)), default=None)
        return None if limit is None else limit * HEADROOM

    def part_of(self, model: str) -> float | None:
        """Tokens that one batch of a model should hold at most; None: any number."""
        queue = self.of(model)
        return min(filter(None, (None if queue is None else queue / SHARES, self._most.get(model))), default=None)

    def told(self, model: str, limit: float) -> None:
        """The service named its limit."""
        self._told[model] = limit

    def halve(self, model: str, tokens: float) -> None:
        """So many tokens were too many for one batch."""
        self._most[model] = tokens / 2


class Sizer:
    """Says when the part of an endpoint and model is full. One part of each is open."""

    def __init__(self, limits: QueueLimits) -> None:
        self._limits = limits
        self._open: dict[tuple[str, str], list[float]] = {}  # rows, bytes, inputs, tokens

    def begins_another(self, row: Row, size: int | None = None) -> bool:
        """Count a row in; whether it begins a part, since the one before is full or there was none.

        Args:
            row: Which one.
            size: Bytes of its line; about as many as its body has, unless given.

        Raises:
            TooLargeError: No batch may hold it; it is not counted. Not raised for a size that is not given.
        """
        tokens, queue = row.cost.get("tokens", 0.0), self._limits.of(row.model)
        adds = [1, len(row.body) + 100 if size is None else size, _inputs(row), tokens]
        most = [MAX_ROWS, MAX_BYTES, MAX_INPUTS, math.inf]
        if size is not None:
            self._refuse_too_large(row, adds, queue)
        part = self._limits.part_of(row.model)
        if part is not None:
            most[3] = max(part, tokens)
        held = self._open.setdefault((row.path, row.model), [0.0] * 4)
        both = [one + other for one, other in zip(held, adds, strict=True)]
        if held[0] and all(sum_ <= bound for sum_, bound in zip(both, most, strict=True)):
            held[:] = both
            return False
        held[:] = adds
        return True

    def close(self, key: tuple[str, str]) -> None:
        """The next row of this endpoint and model begins a part."""
        self._open.pop(key, None)

    @staticmethod
    def _refuse_too_large(row: Row, adds: list[float], queue: float | None) -> None:
        if queue is not None and adds[3] > queue:
            raise TooLargeError(f"the row holds {adds[3]:,.0f} tokens, and the queue of {row.model} takes {queue:,.0f}")
        if adds[1] > MAX_BYTES or adds[2] > MAX_INPUTS:
            raise TooLargeError(
                f"the row holds {adds[1]:,} bytes and {adds[2]:,} inputs, "
                f"and a batch takes {MAX_BYTES:,} and {MAX_INPUTS:,}"
            )


class Splitter:
    """Puts rows into parts. At most one part of each endpoint and model is open."""

    def __init__(self, limits: QueueLimits, folder: Path) -> None:
        self._sizer = Sizer(limits)
        self._folder = folder
        self._open: dict[tuple[str, str], Part] = {}

    def add(self, row: Row, round_: int = 1, dollars: float = 0.0) -> Part | None:
        """Add a row; return the part before it, if that is full.

        Raises:
            TooLargeError: No batch may hold it.
        """
        line = b'{"custom_id":%b,"method":"POST","url":%b,"body":%b}\n' % (
            dump_json(str(row.custom_id)), dump_json(row.path), row.body
        )  # fmt: skip
        key, full = (row.path, row.model), None
        if self._sizer.begins_another(row, len(line)):
            full = self._close(key) if key in self._open else None
            self._open[key] = self._new(row)
        part = self._open[key]
        part.round = max(part.round, round_)
        for column, value in (
            (part.names, row.name),
            (part.keys, row.key),
            (part.lines, row.line),
            (part.raws, row.raw),
        ):
            column.append(value)
        part.numbers.append(isinstance(row.custom_id, int))
        part.tokens += row.cost.get("tokens", 0.0)
        part.dollars += dollars
        assert part.form is not None
        part.form.write(line)
        return full

    def close(self) -> Iterator[Part]:
        """End all parts."""
        for key in list(self._open):
            self._sizer.close(key)
            yield self._close(key)

    def discard(self) -> None:
        """Forget all parts that are not closed."""
        for part in self._open.values():
            assert part.form is not None
            part.form.close()
        self._open.clear()

    def _new(self, row: Row) -> Part:
        part = Part(os.urandom(12).hex(), row.path, row.model)
        try:
            part.form = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115 - until it is uploaded
        except OSError as error:
            raise OutputError(f"cannot write a temporary file in {self._folder}: {error.strerror}") from None
        part.form.write(
            f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
            f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="penstock-{part.name}.jsonl"\r\n'
            f"Content-Type: application/jsonl\r\n\r\n".encode()
        )
        return part

    def _close(self, key: tuple[str, str]) -> Part:
        part = self._open.pop(key)
        assert part.form is not None
        part.form.write(f"\r\n--{_BOUNDARY}--\r\n".encode())
        part.form.flush()
        return part


def _inputs(row: Row) -> int:
    if not row.path.partition("?")[0].endswith("/embeddings"):
        return 0
    given = load_json(row.body).get("input")
    return len(given) if isinstance(given, list) and not all(isinstance(each, int) for each in given) else 1


class BatchJournal:
    """The state of the parts of a run; each step is on the disk when its method returns.

    Attributes:
        parts: Those whose answers are not among the results yet, by name.
        rounds: The highest round of any part.
        forgotten: Those whose batches may go on, but were not merged when the journal was begun anew.
    """

    def __init__(self, path: Path, *, overwrite: bool = False) -> None:
        """Open it, cut a torn end off, and read it.

        Raises:
            OutputError: It cannot be written, is in use, or is none.
        """
        self.path = path
        self.parts: dict[str, Part] = {}
        self.rounds: int = 0
        self.forgotten: list[Part] = []
        self._file = Appended(path, "-o", read_again=True)
        try:
            truncate_at_last_line(self._file)
            self._read(overwrite)
        except BaseException:
            self._file.close()
            raise

    def uploaded(self, part: Part, file: str, since: float) -> None:
        """A part is a file of the service now."""
        part.file, part.since = file, since
        columns = part.names.tobytes() + part.keys.tobytes()
        self._write(
            {
                "part": part.name,
                "file": file,
                "since": since,
                "endpoint": part.endpoint,
                "model": part.model,
                "round": part.round,
                "tokens": part.tokens,
                "dollars": part.dollars,
                "order": sys.byteorder,
                "rows": base64.b64encode(zlib.compress(columns, 1)).decode(),
            }
        )
        self.parts[part.name] = part
        self.rounds = max(self.rounds, part.round)

    def creating(self, part: Part) -> None:
        """A batch is about to be created."""
        part.creating = True
        self._write({"creating": part.name})

    def created(self, part: Part, batch: str) -> None:
        """There is a batch."""
        part.batch, part.creating = batch, False
        self._write({"batch": batch, "part": part.name})

    def refused(self, part: Part) -> None:
        """There is no batch of this part, or none that counts any more."""
        part.batch, part.creating, part.status = None, False, ""
        self._write({"refused": part.name})

    def merged(self, part: Part) -> None:
        """The answers of a part are among the results."""
        self.parts.pop(part.name, None)
        self._write({"merged": part.name})

    def dropped(self, part: Part) -> None:
        """A part was given up without a batch."""
        self.parts.pop(part.name, None)
        self._write({"dropped": part.name})

    def close(self) -> None:
        """Let the disk have all of it, and close."""
        self._file.close()

    def _write(self, record: dict[str, Any]) -> None:
        self._file.append(dump_json(record) + b"\n")
        self._file.sync()

    def _read(self, overwrite: bool) -> None:
        begin = pread(self._file.descriptor, len(_HEAD), 0)
        if begin and begin != _HEAD and not overwrite:
            raise OutputError(
                f"{self.path} exists and is not a journal of batches: move it away, or --overwrite starts over"
            )
        if begin == _HEAD:
            for line in _lines(self._file):
                self._apply(load_json(line))
        if overwrite or not begin:
            self.forgotten = [part for part in self.parts.values() if part.may_exist]
            self.parts.clear()
            self._file.truncate(0)
            self._file.append(_HEAD)

    def _apply(self, record: dict[str, Any]) -> None:
        if "file" in record:
            part = Part(record["part"], record["endpoint"], record["model"], record["round"], is_resumed=True)
            part.file, part.since = record["file"], record["since"]
            part.tokens, part.dollars = record["tokens"], record["dollars"]
            both = array.array("Q", zlib.decompress(base64.b64decode(record["rows"])))
            if record["order"] != sys.byteorder:
                both.byteswap()
            count = len(both) // 2
            part.names, part.keys = both[:count], both[count:]
            part.lines, part.raws = array.array("Q", bytes(8 * count)), array.array("Q", bytes(8 * count))
            part.numbers = bytearray(count)
            self.parts[part.name] = part
            self.rounds = max(self.rounds, part.round)
            return
        name = next((record[key] for key in ("part", "creating", "refused", "merged", "dropped") if key in record), "")
        found = self.parts.get(name)
        if found is None:
            return
        if "creating" in record:
            found.creating = True
        elif "batch" in record:
            found.batch, found.creating = record["batch"], False
        elif "refused" in record:
            found.batch, found.creating = None, False
        else:
            del self.parts[name]


def _lines(file: Appended) -> Iterator[bytes]:
    rest, at = b"", 0
    while chunk := pread(file.descriptor, 1 << 20, at):
        at += len(chunk)
        *whole, rest = (rest + chunk).split(b"\n")
        yield from whole
