"""What a file of requests may look like: its compression, its characters, and how its rows are put one after the other.

    bytes
      ─► compression (gzip, zstd, bzip2, xz)
      ─► characters  (UTF-8, UTF-16, UTF-32)
      ─► rows        (lines, a JSON array, CSV)

Each step is told by the first bytes, so it need not be said, and each takes and gives pieces: a file of any size is
read in a few megabytes. What cannot be read is a `FormatError`: one sentence that names the way out.
"""

from __future__ import annotations

import bz2
import codecs
import csv
import io
import itertools
import json
import lzma
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from penstock.errors import PenstockError

__all__ = ["MAX_LINE", "FormatError", "Prompt", "batches", "is_plain", "numbered", "rows"]

MAX_LINE = 64 * 1024 * 1024
"""Bytes of a row that are held in memory; a longer one is an error of that row. No service takes requests that
large."""

Numbered = Iterator[tuple[int, bytes | None]]
"""(number from 1, the bytes of a row); None instead of a row above `MAX_LINE`."""


class FormatError(PenstockError, ValueError):
    """The file is not one that can be read, and its message says what to do about it."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """How a row of CSV becomes a request.

    Attributes:
        template: The user's message, with `{column}` for the value of a column, and `{{` and `}}` for braces.
        model: What the body asks for; None where it is set otherwise.
    """

    template: str
    model: str | None = None


_COLUMN = re.compile(r"\{\{|\}\}|\{([^{}]*)\}")
_NAMES = ("custom_id", "id")
_DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab"}


_OPEN_OBJECT = re.compile(rb"(?:\xef\xbb\xbf)?\s*\{[ \t\r]*\n")
"""An object that is printed for people: a row of it alone says nothing."""


def is_plain(chunks: Iterator[bytes]) -> bool:
    """Whether a file of these bytes holds lines of UTF-8, so that its rows can be counted by their ends."""
    begin, _ = _peek(chunks)
    return not _compression(begin) and not _characters(begin) and not _is_array(begin)


def rows(chunks: Iterable[bytes], name: str = "", prompt: Prompt | None = None) -> Numbered:
    """The rows of a file, numbered from 1.

    Args:
        chunks: Its bytes, in pieces of any size.
        name: Its name: `.csv` and `.tsv` are told by it.
        prompt: How to make requests of CSV; with it, FILE is CSV whatever its name, unless it begins as JSON does.

    Raises:
        FormatError: It cannot be read, from the beginning or any further.
    """
    chunks = _decompressed(iter(chunks), name)
    begin, chunks = _peek(chunks)
    if _compression(begin):
        raise FormatError(f"{name or 'the file'} is compressed twice: decompress it once")
    characters = _characters(begin)
    if characters is not None:
        chunks = _transcoded(chunks, characters, name)
        begin, chunks = _peek(chunks)
    for head, words in _FOREIGN.items():
        if begin.startswith(head):
            raise FormatError(f"{name or 'the file'} is {words}: write its rows as JSON, one object a line")
    if _OPEN_OBJECT.match(begin):
        raise FormatError(
            f"{name or 'the file'} begins with a JSON object over several lines: write one object a line, as "
            "`jq -c .` does"
        )
    table = _is_table(name)
    if prompt is not None or table:
        if prompt is None:
            raise FormatError(
                f"{name} is a table: say what to ask with --prompt, such as --prompt 'Translate into French: {{text}}'"
            )
        if not table and begin.removeprefix(codecs.BOM_UTF8).lstrip().startswith((b"{", b"[")):
            raise FormatError(
                f"--prompt makes requests of the rows of a table, and {name or 'the file'} holds requests already: "
                "leave it out"
            )
        return _table(chunks, name, prompt)
    if _is_array(begin):
        return _array(chunks, name)
    return numbered(chunks)


def numbered(chunks: Iterable[bytes]) -> Numbered:
    """(number, line) of every line that is not blank; None instead of one above `MAX_LINE`."""
    for first, lines in batches(chunks):
        for number, line in enumerate(lines, first):
            if line is None or (line and not line.isspace()):
                yield number, line


def batches(chunks: Iterable[bytes]) -> Iterator[tuple[int, list[bytes | None]]]:
    """The same lines, blank ones included, as many at a time as a piece holds: (number of the first, lines)."""
    number, begun, skipping, at_start = 1, bytearray(), False, True
    for chunk in chunks:
        pieces = chunk.split(b"\n")
        rest = pieces.pop()
        if pieces:
            lines: list[bytes | None] = [*pieces]
            if begun:
                lines[0] = bytes(begun) + pieces[0]
                begun.clear()
            if at_start:
                lines[0], at_start = (lines[0] or b"").removeprefix(codecs.BOM_UTF8), False
            if skipping:
                lines[0], skipping = None, False
            yield number, lines
            number += len(lines)
        if not skipping:
            begun += rest
        if len(begun) > MAX_LINE:
            begun.clear()
            skipping = True
    if skipping:
        yield number, [None]
    elif begun:
        yield number, [bytes(begun.removeprefix(codecs.BOM_UTF8) if at_start else begun)]


# Compression ----------------------------------------------------------------------------------------------------------


class _Decompressor(Protocol):
    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, /) -> bytes: ...


_HEADS: dict[bytes, str] = {
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
}
_FOREIGN = {
    b"PK\x03\x04": "a zip archive or a spreadsheet",
    b"PAR1": "a Parquet file",
    b"ARROW1": "an Arrow file",
    b"SQLite format 3": "a SQLite database",
    b"%PDF-": "a PDF",
}


def _compression(begin: bytes) -> str | None:
    return next((name for head, name in _HEADS.items() if begin.startswith(head)), None)


def _decompressed(chunks: Iterator[bytes], name: str) -> Iterator[bytes]:
    begin, chunks = _peek(chunks)
    kind = _compression(begin)
    return chunks if kind is None else _decompress(chunks, kind, _maker(kind, name), name)


def _maker(kind: str, name: str) -> Callable[[], _Decompressor]:
    if kind == "gzip":
        return lambda: zlib.decompressobj(zlib.MAX_WBITS | 16)
    if kind == "bzip2":
        return bz2.BZ2Decompressor
    if kind == "xz":
        return lzma.LZMADecompressor
    for module in ("compression.zstd", "backports.zstd"):
        try:
            found: Any = __import__(module, fromlist=["ZstdDecompressor"])
        except ImportError:
            continue
        maker: Callable[[], _Decompressor] = found.ZstdDecompressor
        return maker
    raise FormatError(
        f"{name or 'the file'} is compressed by zstd, which this Python cannot read: "
        "pip install backports.zstd, or decompress it first (zstd -d)"
    )


def _decompress(chunks: Iterator[bytes], kind: str, make: Callable[[], _Decompressor], name: str) -> Iterator[bytes]:
    """The bytes of all members, one after the other: tools append to compressed files that way."""
    one: _Decompressor | None = None
    for given in chunks:
        rest = given
        while rest:
            if one is None:
                if not rest.strip(b"\0"):
                    break  # padding behind the last member
                one = make()
            try:
                data = one.decompress(rest)
            except Exception as error:  # noqa: BLE001 - each library has errors of its own
                raise FormatError(f"{name or 'the file'} cannot be decompressed ({kind}): {error}") from None
            if data:
                yield data
            rest = one.unused_data if one.eof else b""
            if one.eof:
                one = None
    if one is not None:
        raise FormatError(f"{name or 'the file'} ends in the middle of its {kind} data: it was not written to its end")


# Characters -----------------------------------------------------------------------------------------------------------


def _characters(begin: bytes) -> str | None:
    """The encoding, where it is not UTF-8: by its mark, or by where its first ASCII characters have their zeros."""
    if begin.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        return "utf-32"
    if begin.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    zeros = [byte == 0 for byte in begin[:4]]
    if zeros == [False, True, False, True]:
        return "utf-16-le"
    if zeros == [True, False, True, False]:
        return "utf-16-be"
    return None


def _transcoded(chunks: Iterator[bytes], encoding: str, name: str) -> Iterator[bytes]:
    decoder = codecs.getincrementaldecoder(encoding)()
    try:
        for chunk in chunks:
            yield decoder.decode(chunk).encode("utf-8", "surrogatepass")
        yield decoder.decode(b"", final=True).encode("utf-8", "surrogatepass")
    except UnicodeDecodeError as error:
        raise FormatError(f"{name or 'the file'} begins as {encoding.upper()} and is not: {error.reason}") from None


def _peek(chunks: Iterator[bytes]) -> tuple[bytes, Iterator[bytes]]:
    """The first bytes that tell a format, and all of them once more."""
    taken: list[bytes] = []
    begin = b""
    for chunk in chunks:
        taken.append(chunk)
        begin += chunk
        # A pipe may give a byte at a time; a line that is there must not wait for more.
        is_line = b"\n" in begin.lstrip() and (len(begin) >= 4 or not set(begin) & {0, 0xFE, 0xFF})
        if is_line or len(begin.lstrip()) >= 8:
            break
    return begin, itertools.chain(taken, chunks)


# Rows -----------------------------------------------------------------------------------------------------------------


def _is_array(begin: bytes) -> bool:
    return begin.removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"[")


def _array(chunks: Iterator[bytes], name: str) -> Numbered:
    """The elements of a JSON array, each as it is written there."""
    decoder, to_text = json.JSONDecoder(), codecs.getincrementaldecoder("utf-8-sig")("replace")
    text, at, number, expects = "", 0, 0, "["
    pieces = itertools.chain((to_text.decode(chunk) for chunk in chunks), [to_text.decode(b"", final=True), None])
    wanted = 1
    for piece in pieces:
        if piece is not None:
            text, at = text[at:] + piece, 0
            if len(text) < wanted:
                continue
        while True:
            at = _skip(text, at)
            if at >= len(text):
                break
            if expects == "end":
                raise FormatError(f"{name or 'the file'} goes on after the end of its JSON array")
            if expects in "[,":
                if text[at] == expects:
                    expects, at = "value", at + 1
                    continue
                if text[at] == "]":
                    expects, at = "end", at + 1
                    continue
                raise FormatError(f"{name or 'the file'} is not a JSON array: row {number} is not followed by a comma")
            if text[at] == "]":
                expects, at = "end", at + 1
                continue
            try:
                end = decoder.raw_decode(text, at)[1]
            except (ValueError, RecursionError) as error:
                if piece is None or isinstance(error, RecursionError) or len(text) - at > MAX_LINE:
                    raise FormatError(
                        f"{name or 'the file'} is not a JSON array: row {number + 1} is not JSON"
                    ) from None
                wanted = 2 * (len(text) - at)  # reading a large row again and again would take for ever
                break
            if end == len(text) and piece is not None and text[at] not in '{["':
                break  # a number may go on
            number, wanted = number + 1, 1
            yield number, text[at:end].encode("utf-8", "surrogatepass")
            at, expects = end, ","
    if expects != "end":
        raise FormatError(f"{name or 'the file'} ends in the middle of its JSON array, after row {number}")


def _skip(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\r\n":
        at += 1
    return at


def _is_table(name: str) -> bool:
    lower = name.lower()
    for ending in (".gz", ".zst", ".bz2", ".xz"):
        lower = lower.removesuffix(ending)
    return lower.endswith((".csv", ".tsv"))


def _table(chunks: Iterator[bytes], name: str, prompt: Prompt) -> Numbered:
    """A request for each row of CSV, whose first row names the columns."""
    lines = io.TextIOWrapper(io.BufferedReader(_Raw(chunks)), encoding="utf-8-sig", newline="")
    csv.field_size_limit(MAX_LINE)
    table: csv.DictReader[str] = csv.DictReader(())
    try:
        head = lines.readline(MAX_LINE)
        # Where a comma is a decimal point, spreadsheets write semicolons.
        delimiter = "\t" if ".tsv" in name.lower() else next((each for each in _DELIMITERS if each in head), ",")
        table = csv.DictReader(itertools.chain([head], lines), delimiter=delimiter, strict=True)
        columns = list(table.fieldnames or ())
        wanted_columns = [found[1] for found in _COLUMN.finditer(prompt.template) if found[1] is not None]
        if not wanted_columns:
            raise FormatError(
                "--prompt names no column, so that every row would ask the same: write it like 'Translate into French: "
                f"{{text}}'; there are {', '.join(columns) or 'none'}"
            )
        for wanted in wanted_columns:
            if wanted not in columns:
                braces = "; a brace that is meant as one is written twice" if "{{" not in prompt.template else ""
                raise FormatError(
                    f"--prompt: there is no column {wanted!r}; there are {', '.join(columns) or 'none'}{braces}"
                )
        twice = next((column for column in wanted_columns if columns.count(column) > 1), None)
        if twice is not None:
            raise FormatError(f"--prompt: {name or 'the file'} has several columns {twice!r}: name them apart")
        for number, row in enumerate(table, 1):
            if None in row or None in row.values():  # text with a comma in it would be sent without its end, and paid
                raise FormatError(
                    f"{name or 'the file'}: the row that ends in line {table.line_num} has "
                    f"{'more' if None in row else 'fewer'} values than the {len(columns)} columns: "
                    f"a value with a {_DELIMITERS[delimiter]} in it stands in quotes, as in "
                    f'1{delimiter}"one{delimiter} two"'
                )
            yield number, json.dumps(_request(row, columns, prompt)).encode()
    except csv.Error as error:
        raise FormatError(f"{name or 'the file'}: it is not CSV after line {table.line_num}: {error}") from None
    except UnicodeDecodeError as error:
        raise FormatError(f"{name or 'the file'} is not UTF-8: {error.reason}; save it as UTF-8") from None


def _request(row: Mapping[str, Any], columns: Iterable[str], prompt: Prompt) -> dict[str, Any]:
    text = _COLUMN.sub(lambda found: found[0][0] if found[1] is None else row.get(found[1]) or "", prompt.template)
    request: dict[str, Any] = {} if prompt.model is None else {"model": prompt.model}
    if prompt.model is None and row.get("model"):
        request["model"] = row["model"]
    request["messages"] = [{"role": "user", "content": text}]
    name = next((row[each] for each in _NAMES if each in columns and row[each]), None)
    return request if name is None else {"custom_id": name, **request}


class _Raw(io.RawIOBase):
    """Pieces of bytes as a file."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._rest = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._rest:
            chunk = next(self._chunks, None)
            if chunk is None:
                return 0
            self._rest = chunk
        piece = self._rest[: len(buffer)]
        buffer[: len(piece)] = piece
        self._rest = self._rest[len(piece) :]
        return len(piece)
