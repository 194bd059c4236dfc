"""The rows of a file of requests: what is read, what each row asks for, and what is wrong with it.

A row is JSON, in one of two shapes, which may be mixed: OpenAI's Batch format (`{"custom_id", "method", "url",
"body"}`) or the bare body of a request; `formats` reads how rows stand in a file. A file is read once,
from front to back, and only what is asked for: nothing here waits for anything but the file.

A row that cannot be sent is a `Rejected`, a value like any other: the reader goes on with the next.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import stat
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import anyio.lowlevel
import anyio.to_thread

from penstock.llm.tokens import Cost
from penstock.runner import formats
from penstock.runner.formats import Prompt
from penstock.runner.system import BINARY, in_binary, is_readable, pread

__all__ = [
    "ChangeError",
    "Lines",
    "Rejected",
    "Row",
    "custom_id_digest",
    "dump_json",
    "load_finite_json",
    "load_json",
    "named_key",
    "named_keys",
    "open_source",
    "read_row",
    "unnamed_key",
]

_CHUNK = 256 * 1024

_BATCH = 1_000
"""Rows that are looked at together where they are told apart one by one."""

_AT_ONCE = 256 * 1024
"""Bytes of rows that are read before others have their turn: to read them as JSON takes some milliseconds."""

_LEAST = 8 * 1024
"""What a row counts for there, at least."""

_PASSED: tuple[int, None] = (0, None)
"""Stands in the iteration for many rows that were passed over, so that others have their turn."""

_THREE = struct.Struct("<QQQ")


@dataclass(slots=True)
class Row:
    """One request, ready to be sent.

    Attributes:
        line: Its number in the file, from 1.
        custom_id: Its name in the results, as given (text or a whole number); `line-N` where none was.
        path: The endpoint: `/v1/chat/completions`.
        model: What the body says, `""` if it says nothing.
        body: The bytes to send.
        cost: What it takes from each limit.
        raw: Stands for the line as it is written in the file; see `named_key`.
    """

    line: int
    custom_id: str | int
    path: str
    model: str
    body: bytes
    cost: Mapping[str, float]
    raw: int = 0
    _key: int | None = field(default=None, repr=False, compare=False)
    _name: int | None = field(default=None, repr=False, compare=False)
    _keys: bytes | None = field(default=None, repr=False, compare=False)

    @property
    def key(self) -> int:
        """64 bits that stand for what is asked: the custom_id, the endpoint and the body."""
        if self._key is None:
            name = str(self.custom_id).encode("utf-8", "surrogatepass")
            self._key = _digest(b"%d:%b%b\n%b" % (len(name), name, self.path.encode(), self.body))
        return self._key

    @property
    def name(self) -> int:
        """64 bits that stand for the custom_id."""
        if self._name is None:
            self._name = custom_id_digest(self.custom_id)
        return self._name

    @property
    def keys(self) -> bytes:
        """What stands for the row in a journal: `raw`, `name` and `key`, in hex."""
        if self._keys is None:
            self._keys = _THREE.pack(self.raw, self.name, self.key).hex().encode()
        return self._keys


@dataclass(frozen=True, slots=True)
class Rejected:
    """A line that cannot be sent.

    Attributes:
        line: Its number in the file, from 1.
        custom_id: Its name, if it could be read.
        code: A word for programs.
        message: A sentence for people.
    """

    line: int
    custom_id: str | int | None
    code: str
    message: str

    @property
    def keys(self) -> bytes:
        """What stands for the line in a journal: only where it is, as what it calls itself may be corrected."""
        return _THREE.pack(0, custom_id_digest(f"line-{self.line}"), 0).hex().encode()


class Lines:
    """The rows of a file, pipe or terminal, numbered from 1; of lines, without line ends and blank ones.

    Reading blocks. A pipe may block for long, so `stop()`, from any thread, ends the iteration within a quarter of a
    second, as if the file ended there.
    """

    def __init__(self, file: int, *, name: str = "", prompt: Prompt | None = None) -> None:
        """Read from the descriptor `file`, which stays the caller's to close.

        Args:
            file: An open descriptor.
            name: What it is called, in errors; its ending tells tables.
            prompt: How to make requests of a table.

        Raises:
            FormatError: It begins with what cannot be read.
        """
        self._file = file
        self.name = name
        self._status = os.fstat(file)
        self.is_regular: bool = stat.S_ISREG(self._status.st_mode)
        self.began_at: int = os.lseek(file, 0, os.SEEK_CUR) if self.is_regular else 0
        self.is_plain: bool = False
        self.passed: int = 0
        self._skip = bytearray()
        self._prompt = prompt
        self._stopped = False
        self._read_at_once = 0
        self._iterator: Iterator[tuple[int, bytes | None]] | None = None
        if self.is_regular:
            self.is_plain = prompt is None and formats.is_plain(self.chunks())
            next(self.again(), None)  # says now what cannot be read at all

    def stop(self) -> None:
        """End the iteration."""
        self._stopped = True

    async def read(self) -> tuple[int, bytes | None] | None:
        """The next row, without keeping the event loop; None after the last."""
        if self._iterator is None:
            self._iterator = self._entries() if self.is_regular else iter(self)
        if self.is_regular:
            if self._read_at_once >= _AT_ONCE:
                self._read_at_once = 0
                await anyio.lowlevel.checkpoint()
            while (entry := next(self._iterator, None)) is _PASSED:
                await anyio.lowlevel.checkpoint()
            row = None if entry is None else entry[1]
            self._read_at_once += max(_LEAST, len(row or b""))
            return entry
        # A pipe keeps us waiting as long as it likes.
        return await anyio.to_thread.run_sync(next, self._iterator, None, abandon_on_cancel=True)

    def pass_over(self, skip: bytearray) -> None:
        """Leave rows out of the iteration, those whose number has a 1 here; `passed` counts them as they are met."""
        self._skip = skip

    def come_from(self, path: Path) -> bool:
        """Whether `path` leads to the very file that is read, whatever it is called there."""
        return path.exists() and os.path.samestat(self._status, path.stat())

    def again(self) -> Iterator[tuple[int, bytes | None]]:
        """The rows of a regular file once more from where this began, without moving the place of the iteration."""
        return formats.rows(self.chunks(), self.name, self._prompt)

    def chunks(self) -> Iterator[bytes]:
        """The bytes of a regular file from where this began, in pieces; the place of the iteration stays."""
        at = self.began_at
        while chunk := pread(self._file, _CHUNK, at):
            at += len(chunk)
            yield chunk

    def __iter__(self) -> Iterator[tuple[int, bytes | None]]:
        """Yield (number, row); None instead of a row above `formats.MAX_LINE`."""
        return (entry for entry in self._entries() if entry is not _PASSED)

    def _entries(self) -> Iterator[tuple[int, bytes | None]]:
        """The same, with `_PASSED` now and then."""
        if self.is_plain:
            yield from self._plain_rows()
            return
        for number, line in formats.rows(iter(self._read, b""), self.name, self._prompt):
            if self._stopped:  # the last line may have been cut short by that
                return
            if number < len(self._skip) and self._skip[number]:
                self.passed += 1
                if self.passed % _BATCH == 0:
                    yield _PASSED
            else:
                yield number, line

    def _plain_rows(self) -> Iterator[tuple[int, bytes | None]]:
        """The same for lines of UTF-8, of which there may be a million that are to be passed over."""
        skip = self._skip
        for first, lines in formats.batches(iter(self._read, b"")):
            if self._stopped:
                return
            to_skip = skip[first : first + len(lines)]
            if to_skip.count(1) == len(lines):
                self.passed += len(lines)
                yield _PASSED
                continue
            to_skip.extend(bytes(len(lines) - len(to_skip)))
            for number, (line, skipped) in enumerate(zip(lines, to_skip, strict=True), first):
                if skipped:
                    self.passed += 1
                elif line is None or (line and not line.isspace()):
                    yield number, line

    def batches(self) -> Iterator[tuple[int, list[bytes | None]]]:
        """The rows of a regular file once more, many at a time: (number of the first, rows).

        Blank lines may be among them.
        """
        if self.is_plain:
            yield from formats.batches(self.chunks())
            return
        first, lines = 1, list[bytes | None]()
        for number, line in self.again():
            if lines and (len(lines) == _BATCH or number > first + len(lines)):
                yield first, lines
                lines = []
            first = number - len(lines)
            lines.append(line)
        if lines:
            yield first, lines

    def _read(self) -> bytes:
        if not self.is_regular:
            while not self._stopped and not is_readable(self._file, 0.25):
                pass
        chunk = b"" if self._stopped else os.read(self._file, _CHUNK)
        if not chunk and self.is_regular and os.fstat(self._file).st_size < os.lseek(self._file, 0, os.SEEK_CUR):
            raise formats.FormatError(f"{self.name} became shorter while it was read: what was answered of it is kept")
        return chunk


Change = Callable[[dict[str, Any]], dict[str, Any]]
"""A body → the body that is sent instead: what `--model` and `--set` do."""


class ChangeError(Exception):
    """A body cannot be changed as it should be; the message says why."""


def read_row(
    number: int, line: bytes | None, cost: Cost, change: Change | None = None, salt: bytes = b""
) -> Row | Rejected:
    """Read one row. Whatever is in it, this returns: one bad row must not end a run.

    Args:
        number: Of the row, from 1.
        line: Its bytes; None if there were too many of them.
        cost: What a request takes from the limits.
        change: What is done to each body before it is sent.
        salt: Stands for `change` in `Row.raw`, so that a row that is changed otherwise is another row.
    """
    custom_id: str | int | None = None
    try:
        if line is None:
            _reject("line_too_long", f"the line is longer than {formats.MAX_LINE // 1024 // 1024} MiB")
        given = _read_object(line)
        is_batch = "body" in given or "url" in given or ("method" in given and "custom_id" in given)
        custom_id = _read_custom_id(given, number)
        if is_batch:
            path, body = _read_batch_row(given)
        else:
            body = {key: value for key, value in given.items() if key != "custom_id"}
            path = _endpoint_of(body)
        if change is not None:
            body = change(body)
        model = body.get("model")
        dumped = _dump_body(body)
        return Row(
            line=number,
            custom_id=custom_id,
            path=path,
            model=model if isinstance(model, str) else "",
            body=dumped,
            cost=_cost_of(cost, path, body, dumped),
            raw=unnamed_key(number, line, salt) if given.get("custom_id") is None else named_key(line, salt),
        )
    except _Bad as bad:
        return Rejected(number, custom_id, bad.code, bad.message)
    except ChangeError as error:
        return Rejected(number, custom_id, "cannot_set", str(error))
    except RecursionError:
        return Rejected(number, custom_id, "too_deep", "the JSON is nested too deeply to be read")
    except Exception as error:  # noqa: BLE001 - a mistake of ours, or of a rule of the user's, costs one row
        return Rejected(number, custom_id, "internal_error", f"{type(error).__name__}: {error}")


def named_key(line: bytes, salt: bytes = b"") -> int:
    """64 bits that stand for a line with a custom_id."""
    return int.from_bytes(hashlib.blake2b(line, digest_size=8, key=salt).digest(), "little")


def named_keys(lines: Sequence[bytes | None], salt: bytes = b"") -> list[int]:
    """The same for many lines; of a line that is too long, that of none."""
    number, digest = int.from_bytes, hashlib.blake2b
    return [number(digest(line or b"", digest_size=8, key=salt).digest(), "little") for line in lines]


def unnamed_key(number: int, line: bytes, salt: bytes = b"") -> int:
    """64 bits that stand for a line without one: its name is where it stands."""
    return named_key(b"%d:%b" % (number, line), salt)


def _cost_of(cost: Cost, path: str, body: dict[str, Any], dumped: bytes) -> Mapping[str, float]:
    """What a request takes.

    By its size where the rule is at a loss with it: the service will say what is wrong with it.
    """
    try:
        found = cost(path, body) or {}
        if not all(0 <= units < math.inf for units in found.values()):
            raise ValueError("a request takes no such number of units")
        return found
    except Exception:  # noqa: BLE001 - the rule is a user's, or meets a body of a shape that no service takes
        return {"requests": 1.0, "tokens": float(math.ceil(len(dumped) / 4))}


def _digest(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def load_json(text: bytes | str) -> Any:
    """Read JSON as the standard has it: NaN and Infinity are errors here, as they are to every server.

    A number that no float and no integer of Python's can be is infinite.

    Raises:
        ValueError: It is not JSON.
        RecursionError: It is nested too deeply.
    """
    if not isinstance(text, str):
        text = text.decode(json.detect_encoding(text), "surrogatepass")
    try:
        return _DECODER.decode(text)
    except json.JSONDecodeError:
        raise
    except ValueError:  # a whole number with more digits than `int` reads, or NaN
        return _LONG_DECODER.decode(text)


def load_finite_json(text: str) -> Any:
    """Read what looks like JSON, with None for each number that JSON could not be written with again.

    Raises:
        ValueError: It is not JSON, but for NaN and Infinity.
        RecursionError: It is nested too deeply.
    """
    return _FINITE_DECODER.decode(text)


def dump_json(value: Any) -> bytes:
    """Write JSON on one line, in UTF-8.

    What ends a line for some readers (U+2028 and the like) is escaped, and so is everything outside ASCII in the rare
    value that UTF-8 cannot write: half a surrogate pair.

    Raises:
        ValueError: A number in it is infinite, or none.
    """
    try:
        text = _ENCODER.encode(value)
        if not text.isascii():
            for end, escaped in _LINE_ENDS:
                text = text.replace(end, escaped)
        return text.encode()
    except UnicodeEncodeError:
        return json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":")).encode()


_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))

_LINE_ENDS = (("\u2028", "\\u2028"), ("\u2029", "\\u2029"), ("\x85", "\\u0085"))


def custom_id_digest(custom_id: str | int) -> int:
    """64 bits that stand for a custom_id.

    7 and "7" are the same: a program that joins results to requests may read either.
    """
    return _digest(str(custom_id).encode("utf-8", "surrogatepass"))


class _Bad(Exception):  # noqa: N818 - never leaves this module
    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


def _reject(code: str, message: str) -> NoReturn:
    raise _Bad(code, message)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _finite(digits: str) -> float | None:
    number = float(digits)
    return number if math.isfinite(number) else None


_MOST_DIGITS = 4_000
"""Of a whole number that is read as one; Python itself refuses 4,300."""

_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)
_LONG_DECODER = json.JSONDecoder(
    parse_constant=_refuse_constant,
    parse_int=lambda digits: int(digits) if len(digits) < _MOST_DIGITS else float(digits),
)
_FINITE_DECODER = json.JSONDecoder(
    parse_constant=lambda _: None,
    parse_float=_finite,
    parse_int=lambda digits: int(digits) if len(digits) < _MOST_DIGITS else None,
)


def _read_object(line: bytes) -> dict[str, Any]:
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        _reject("invalid_utf8", f"byte {error.start + 1} of the line, 0x{line[error.start]:02x}, is not UTF-8")
    try:
        given = load_json(text)
    except json.JSONDecodeError as error:
        _reject("invalid_json", f"not JSON: {error.msg.removesuffix(' at')} at column {error.colno}")
    except ValueError as error:  # NaN, or a number of more digits than Python reads
        _reject("invalid_json", f"not JSON that can be sent: {error}")
    if not isinstance(given, dict):
        _reject("not_an_object", f"a request is a JSON object, not {_kind(given)}")
    return given


def _dump_body(body: dict[str, Any]) -> bytes:
    try:
        return dump_json(body)
    except ValueError:  # 1e999 reads as infinity, for which JSON has no word
        _reject("invalid_json", "not JSON that can be sent: a number in it is larger than any number a float can hold")


def _read_custom_id(given: dict[str, Any], number: int) -> str | int:
    custom_id = given.get("custom_id")
    if custom_id is None:
        return f"line-{number}"
    if isinstance(custom_id, str | int) and not isinstance(custom_id, bool):
        return custom_id
    _reject("invalid_custom_id", f"custom_id must be text or a whole number, not {_kind(custom_id)}")


def _read_batch_row(given: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    body, method, url = given.get("body"), given.get("method", "POST"), given.get("url")
    if body is None:
        _reject("missing_body", 'the row has no "body"')
    if not isinstance(body, dict):
        _reject("missing_body", f'"body" must be a JSON object, not {_kind(body)}')
    if not isinstance(method, str) or method.upper() != "POST":
        _reject("invalid_method", f'"method" must be "POST", not {json.dumps(method)[:40]}')
    if url is None:
        return _endpoint_of(body), body
    # Only a path: a whole address would take the key to the author of the file.
    if not isinstance(url, str) or not url.startswith("/") or not url.isascii() or not url.isprintable() or " " in url:
        _reject("invalid_url", f'"url" must be a path such as "/v1/chat/completions", not {json.dumps(url)[:80]}')
    return url, body


_RESPONSES_FIELDS = frozenset(
    {"instructions", "max_output_tokens", "previous_response_id", "reasoning", "store", "text", "tools", "truncation"}
)
_EMBEDDINGS_FIELDS = frozenset({"dimensions", "encoding_format"})


def _endpoint_of(body: dict[str, Any]) -> str:
    """The endpoint that a bare body is meant for."""
    if "messages" in body:
        return "/v1/chat/completions"
    if "input" in body:
        model = body.get("model")
        model = model.lower() if isinstance(model, str) else ""
        if "moderation" in model:
            return "/v1/moderations"
        if "embed" in model or body.keys() & _EMBEDDINGS_FIELDS:
            return "/v1/embeddings"
        if body.keys() & _RESPONSES_FIELDS or model:
            return "/v1/responses"
    elif "prompt" in body:
        return "/v1/completions"
    _reject(
        "missing_body",
        'neither a row with "body" nor a body with "messages", "input" or "prompt"; nothing says where it should go',
    )


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    kinds = {dict: "an object", list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}
    return kinds[type(value)]


def open_source(path: str) -> int:
    """Open a file for reading, `-` for standard input.

    Raises:
        OSError: It cannot be read.
    """
    if path == "-":
        return in_binary(0)
    file = os.open(Path(path), os.O_RDONLY | BINARY)
    if stat.S_ISDIR(os.fstat(file).st_mode):
        os.close(file)
        raise IsADirectoryError(21, "Is a directory", path)
    return file
