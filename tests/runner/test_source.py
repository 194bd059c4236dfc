"""The rows of a file: what is read, and what is said of lines that cannot be sent."""

from __future__ import annotations

import gzip
import json
import os
import threading
from contextlib import contextmanager
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.llm.tokens import by_bytes
from penstock.runner import formats
from penstock.runner.source import Lines, Rejected, Row, dump_json, load_json, read_row

STATUS = Path("/proc/self/status")
CHAT = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "How deep is the sea?"}]}


def read(line, number=7):
    return read_row(number, line if isinstance(line, bytes) else json.dumps(line).encode(), by_bytes)


@contextmanager
def opened(tmp_path, content):
    file = tmp_path / "requests.jsonl"
    file.write_bytes(content)
    descriptor = os.open(file, os.O_RDONLY)
    try:
        yield Lines(descriptor)
    finally:
        os.close(descriptor)


def lines_of(tmp_path, content):
    with opened(tmp_path, content) as lines:
        return list(lines)


async def turns_while_read(lines):
    """How often others had their turn until the last row was read, and the rows."""
    turns, rows = 0, []

    async def others():
        nonlocal turns
        while True:
            await anyio.lowlevel.checkpoint()
            turns += 1

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(others)
        while (entry := await lines.read()) is not None:
            rows.append(entry)
        tasks.cancel_scope.cancel()
    return turns, rows


async def soon_stopped(lines):
    lines.stop()


# Lines


@pytest.mark.anyio
async def test_reading_long_rows_leaves_others_their_turn(tmp_path):
    """Thirty-two rows of a megabyte were read at once, and nothing was sent for half a second."""
    with opened(tmp_path, b"".join(b"x" * 300_000 + b"\n" for _ in range(64))) as lines:
        turns, rows = await turns_while_read(lines)
    assert len(rows) == 64
    assert turns >= 60


@pytest.mark.anyio
@pytest.mark.parametrize("begin", [b"", b"[\n"], ids=["lines", "array"])
async def test_passing_over_answered_rows_leaves_others_their_turn(tmp_path, begin):
    """However many there are between two rows that are not answered."""
    count = 20_000
    line = b'{"a":"%b"}' % (b"x" * 100)
    content = begin + (b",\n" if begin else b"\n").join([line] * count) + (b"]" if begin else b"\n")
    with opened(tmp_path, content) as lines:
        lines.pass_over(bytearray(b"\0\0" + b"\1" * (count - 2) + b"\0"))
        turns, rows = await turns_while_read(lines)
    assert ([number for number, _ in rows], lines.passed) == ([1, count], count - 2)
    assert turns >= 5
    with opened(tmp_path, content) as lines:  # and the run may be stopped meanwhile
        lines.pass_over(bytearray(b"\0" + b"\1" * (count - 1) + b"\0"))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(soon_stopped, lines)
            assert await lines.read() is None
    assert 0 < lines.passed < count - 1


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", []),
        (b"\n\n", []),
        (b"a\nb\n", [(1, b"a"), (2, b"b")]),
        (b"a\nb", [(1, b"a"), (2, b"b")]),
        (b"a\r\n\r\n  \nb\r\n", [(1, b"a\r"), (4, b"b\r")]),
        (b"\xef\xbb\xbfa\n\xef\xbb\xbfb\n", [(1, b"a"), (2, b"\xef\xbb\xbfb")]),
        (b"\xef\xbb\xbfa", [(1, b"a")]),
        (b"\xef\xbb\xbf\n", []),
        (b"\xef\xbb\xbf", []),
    ],
    ids=[
        "empty",
        "blank",
        "two",
        "no end",
        "CRLF",
        "byte order mark",
        "mark and no end",
        "an empty line with a mark",
        "nothing but a mark",
    ],
)
def test_lines_are_numbered_as_an_editor_numbers_them(tmp_path, content, expected):
    """Blank lines count but are no rows; a byte order mark is none of the first line's bytes."""
    assert lines_of(tmp_path, content) == expected


@given(st.lists(st.binary(max_size=30).filter(lambda line: b"\n" not in line), max_size=20), st.integers(1, 40))
def test_lines_do_not_depend_on_how_the_bytes_arrive(lines, size):
    """A line that is spread over several reads is the same line."""
    content = b"\n".join(lines)
    chunks = [content[at : at + size] for at in range(0, len(content), size)]
    assert list(formats.numbered(iter(chunks))) == list(formats.numbered(iter([content] if content else [])))


def test_a_line_that_is_too_long_is_given_up_and_the_next_one_read(tmp_path, monkeypatch):
    """It is never held in memory as a whole."""
    monkeypatch.setattr(formats, "MAX_LINE", 300_000)
    content = b"a\n" + b"x" * 2_000_000 + b"\nb\n" + b"y" * 600_000
    assert lines_of(tmp_path, content) == [(1, b"a"), (2, None), (3, b"b"), (4, None)]
    assert read_row(2, None, by_bytes) == Rejected(2, None, "line_too_long", "the line is longer than 0 MiB")


@pytest.mark.parametrize("compress", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_rows_that_are_read_many_at_a_time_are_those_that_are_read_one_by_one(tmp_path, compress):
    content = b"".join(b'{"row":%d}\n%b' % (number, b"\n" * (number % 700 == 0)) for number in range(3_000))
    with opened(tmp_path, compress(content)) as lines:
        many = [(number, line) for first, batch in lines.batches() for number, line in enumerate(batch, first) if line]
        assert many == list(lines.again())
        assert len(many) == 3_000
        assert len(list(lines.batches())) < 20
    with opened(tmp_path, compress(b"")) as lines:
        assert list(lines.batches()) == []


@pytest.mark.parametrize("before", [b"", b"\xef\xbb\xbf", b"\n" * 200, b"\xef\xbb\xbf" + b" " * 200], ids=repr)
def test_an_array_is_one_whatever_stands_before_it(tmp_path, before):
    assert lines_of(tmp_path, before + b'[{"a":1},\n{"a":2}]') == [(1, b'{"a":1}'), (2, b'{"a":2}')]


def test_a_pipe_that_is_silent_can_be_left():
    """Whoever reads it is not held by it: Ctrl-C must work while nobody writes."""
    reading, writing = os.pipe()
    lines = Lines(reading)
    os.write(writing, b"a\nb")
    iterator = iter(lines)
    assert next(iterator) == (1, b"a")
    left = []
    reader = threading.Thread(target=lambda: left.extend(iterator))
    reader.start()
    lines.stop()
    reader.join(timeout=60)
    assert not reader.is_alive()
    assert left == []  # what came of the second line may be half of it
    os.close(reading)
    os.close(writing)


# Rows


def test_a_row_of_the_batch_format_is_read():
    row = read({"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": CHAT})
    assert row == Row(
        7,
        "a",
        "/v1/chat/completions",
        "gpt-4o-mini",
        dump_json(CHAT),
        {"requests": 1, "tokens": 9, "images": 0},
        row.raw,
    )
    assert json.loads(row.body) == CHAT


@pytest.mark.parametrize(
    ("body", "path"),
    [
        (CHAT, "/v1/chat/completions"),
        ({"model": "text-embedding-3-small", "input": "x"}, "/v1/embeddings"),
        ({"model": "mine", "input": ["x"], "dimensions": 8}, "/v1/embeddings"),
        ({"model": "gpt-4.1", "input": "x"}, "/v1/responses"),
        ({"input": "x", "instructions": "y"}, "/v1/responses"),
        ({"model": "omni-moderation-latest", "input": "x"}, "/v1/moderations"),
        ({"model": "davinci-002", "prompt": "x"}, "/v1/completions"),
    ],
    ids=["messages", "embedding model", "dimensions", "any other model", "instructions", "moderation", "prompt"],
)
def test_a_bare_body_goes_where_its_fields_say(body, path):
    """Its name is its line."""
    row = read(body)
    assert (row.path, row.custom_id) == (path, "line-7")
    assert json.loads(row.body) == body
    assert read({"custom_id": "a", "body": body}).path == path


def test_a_bare_body_may_carry_its_name():
    row = read({**CHAT, "custom_id": "a"})
    assert row.custom_id == "a"
    assert json.loads(row.body) == CHAT


@pytest.mark.parametrize("custom_id", [7, 10**20, -1, "", "ключ", "\ud800"])
def test_whole_numbers_and_any_text_are_names(custom_id):
    row = read({"custom_id": custom_id, "body": CHAT})
    assert row.custom_id == custom_id
    assert type(row.custom_id) is type(custom_id)


def nested(depth):
    return b'{"custom_id": "a", "body": {"messages": ' + b"[" * depth + b"]" * depth + b"}}"


@pytest.mark.parametrize(
    ("line", "code", "message"),
    [
        (b"{", "invalid_json", "not JSON: Expecting property name enclosed in double quotes at column 2"),
        (b"hello", "invalid_json", "not JSON: Expecting value at column 1"),
        (b'{"a": 1}}', "invalid_json", "not JSON: Extra data at column 9"),
        (b'{"body": "\x00"}', "invalid_json", "not JSON: Invalid control character at column 11"),
        (b'{"body": {"messages": [], "seed": NaN}}', "invalid_json", "not JSON that can be sent: NaN is not JSON"),
        (b'{"body": {"messages": [], "seed": -1e999}}', "invalid_json", "a number in it is larger than any number"),
        (b'{"body": "\xff"}', "invalid_utf8", "byte 11 of the line, 0xff, is not UTF-8"),
        (b"[1]", "not_an_object", "a request is a JSON object, not a list"),
        (b"null", "not_an_object", "a request is a JSON object, not null"),
        (nested(200_000), "too_deep", "the JSON is nested too deeply to be read"),
        ({"custom_id": "a"}, "missing_body", "neither a row with"),
        ({"model": "x"}, "missing_body", "neither a row with"),
        ({"custom_id": "a", "url": "/v1/embeddings"}, "missing_body", 'the row has no "body"'),
        ({"body": "x"}, "missing_body", '"body" must be a JSON object, not text'),
        (
            {"custom_id": 1.5, "body": CHAT},
            "invalid_custom_id",
            "custom_id must be text or a whole number, not a number",
        ),
        ({"custom_id": True, "body": CHAT}, "invalid_custom_id", "not true or false"),
        ({"custom_id": ["a"], "body": CHAT}, "invalid_custom_id", "not a list"),
        ({"method": "GET", "body": CHAT}, "invalid_method", '"method" must be "POST", not "GET"'),
        ({"url": "https://elsewhere.example/v1/x", "body": CHAT}, "invalid_url", '"url" must be a path such as'),
        ({"url": "/v1/\n", "body": CHAT}, "invalid_url", '"url" must be a path such as'),
        ({"url": 7, "body": CHAT}, "invalid_url", '"url" must be a path such as'),
    ],
)
def test_a_line_that_cannot_be_sent_says_why(line, code, message):
    """With its number, and with its name where that could be read."""
    rejected = read(line)
    assert isinstance(rejected, Rejected)
    assert (rejected.line, rejected.code) == (7, code)
    assert rejected.message.startswith(message) or message in rejected.message
    if isinstance(line, dict) and isinstance(line.get("custom_id"), str):
        assert rejected.custom_id == "a"


@given(st.binary(max_size=200))
def test_no_bytes_break_the_reader(line):
    assert isinstance(read(line), Row | Rejected)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


@given(json_values)
def test_what_is_written_is_one_line_for_every_reader_and_reads_the_same(value):
    """Some readers end lines at U+2028, U+2029 or U+0085 too."""
    written = dump_json(value)
    assert load_json(written) == value
    assert len(written.decode().splitlines()) == 1


@given(st.dictionaries(st.sampled_from([*CHAT, "input", "prompt", "body", "url", "method", "custom_id"]), json_values))
def test_no_object_breaks_the_reader(given_object):
    assert isinstance(read(dump_json(given_object)), Row | Rejected)


def test_a_file_that_is_cut_while_it_is_read_is_said(tmp_path):
    """What is left of the row in the middle of which it ends now would be among the errors, and the rest nowhere."""
    path = tmp_path / "in.jsonl"
    path.write_bytes(b'{"a": 1}\n' * 1_000_000)
    with path.open("rb", buffering=0) as file:
        rows = iter(Lines(file.fileno(), name="in.jsonl"))
        next(rows)
        os.truncate(path, 100)
        with pytest.raises(formats.FormatError, match=r"in\.jsonl became shorter while it was read"):
            list(rows)
