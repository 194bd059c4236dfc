"""What a file of requests may look like, and what is said of one that cannot be read."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import json
import lzma
import sys
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.runner import formats
from penstock.runner.formats import FormatError, Prompt, rows

LINES = [json.dumps({"n": number, "text": "äöü 水"}, ensure_ascii=False) for number in range(50)]
EXPECTED = [(number, json.loads(line)) for number, line in enumerate(LINES, 1)]


def read(content, size=7, **options):
    chunks = [content[at : at + size] for at in range(0, len(content), size)]
    return [(number, json.loads(line)) for number, line in rows(iter(chunks), **options)]


@pytest.mark.parametrize(
    "compress", [lambda data: data, gzip.compress, bz2.compress, lzma.compress], ids=["plain", "gzip", "bz2", "xz"]
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("shape", ["lines", "array", "pretty array"])
@pytest.mark.parametrize("size", [3, 4_096])
def test_every_shape_is_read(compress, encoding, shape, size):
    text = {
        "lines": "\n".join(LINES),
        "array": "[" + ",".join(LINES) + "]",
        "pretty array": json.dumps([json.loads(line) for line in LINES], indent=2, ensure_ascii=False) + "\n\n",
    }[shape]
    assert read(compress(text.encode(encoding)), size) == EXPECTED


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("size", [3, 4_096])
def test_a_table_is_read_in_every_encoding(encoding, size):
    """As spreadsheets save it."""
    content = "id,text\na,grüße\n".encode(encoding)
    ((_, row),) = read(content, size, name="in.csv", prompt=Prompt("{text}"))
    assert (row["custom_id"], row["messages"][0]["content"]) == ("a", "grüße")


def test_compressed_files_may_be_appended_to():
    assert read(gzip.compress(b'{"a":1}\n') + gzip.compress(b'{"a":2}\n') + b"\0\0") == [(1, {"a": 1}), (2, {"a": 2})]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (gzip.compress(b"{}" * 999)[:-20], "in.x ends in the middle of its gzip data: it was not written to its end"),
        (b"\x1f\x8bnonsense", "in.x cannot be decompressed (gzip): "),
        (gzip.compress(bz2.compress(b"{}")), "in.x is compressed twice: decompress it once"),
        (b"PK\x03\x04....", "in.x is a zip archive or a spreadsheet: write its rows as JSON, one object a line"),
        (b"PAR1....", "in.x is a Parquet file: write its rows as JSON, one object a line"),
        (b'{\n  "model": "m"\n}\n', "in.x begins with a JSON object over several lines: write one object a line"),
        (b'\xef\xbb\xbf {\r\n  "model": "m"}', "in.x begins with a JSON object over several lines: write one object"),
        (b"[{}, {}", "in.x ends in the middle of its JSON array, after row 2"),
        (b"[{} {}]", "in.x is not a JSON array: row 1 is not followed by a comma"),
        (b"[{}, x]", "in.x is not a JSON array: row 2 is not JSON"),
        (b"[{}] {}", "in.x goes on after the end of its JSON array"),
        ("[{}".encode("utf-16") + b"\x00\xd8\x00", "in.x begins as UTF-16 and is not: "),
    ],
)
def test_what_cannot_be_read_is_one_sentence(content, message):
    with pytest.raises(FormatError) as caught:
        read(content, 1_000, name="in.x")
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_a_table_that_ends_within_quotes_says_after_which_line():
    with pytest.raises(FormatError, match=r"^in\.csv: it is not CSV after line 2: unexpected end of data"):
        read(b'id,text\na,one\nb,"two\nc,three', name="in.csv", prompt=Prompt("{text}"))


def test_zstd_is_read_or_one_sentence_says_how(monkeypatch):
    monkeypatch.setitem(sys.modules, "compression.zstd", None)
    monkeypatch.setitem(sys.modules, "backports.zstd", None)
    with pytest.raises(
        FormatError, match=r"compressed by zstd, which this Python cannot read: pip install backports\.zstd"
    ):
        read(bytes.fromhex("28b52ffd2003190000") + b"{}\n")
    monkeypatch.setitem(sys.modules, "backports.zstd", SimpleNamespace(ZstdDecompressor=Whole))
    assert read(bytes.fromhex("28b52ffd") + b'{"a":1}\n', 100) == [(1, {"a": 1})]


class Whole:
    """A decompressor that only takes the head off."""

    eof, unused_data = True, b""

    def decompress(self, data):
        return data[4:]


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=3), inner),
    ),
    st.integers(1, 30),
)
def test_any_array_is_read_as_json_reads_it(value, size):
    values = [value, 12, value, "x"]
    assert [value for _, value in read(json.dumps(values).encode(), size)] == values


@pytest.mark.parametrize("content", [b"[]", b"[ ]\n", b"\n[\n]"])
def test_an_array_may_have_no_rows(content):
    assert read(content, 1) == []


def test_an_array_of_large_rows_is_read_in_linear_time():
    """Not again from its beginning for each piece that comes."""
    big = {"text": "x" * 2_000_000}
    assert len(read(json.dumps([big] * 3).encode(), 4_096)) == 3


CSV = 'id,text,tone\n1,"one, two",kind\n,three,"a ""b"""\n'


def test_a_row_of_csv_is_a_request():
    prompt = Prompt("Say {text} in a {tone} way, {text}!", "m")
    assert read(CSV.encode(), name="in.csv", prompt=prompt) == [
        (
            1,
            {
                "custom_id": "1",
                "model": "m",
                "messages": [{"role": "user", "content": "Say one, two in a kind way, one, two!"}],
            },
        ),
        (2, {"model": "m", "messages": [{"role": "user", "content": 'Say three in a a "b" way, three!'}]}),
    ]


def test_braces_that_are_meant_as_such_are_written_twice():
    """As in Python's own templates: many prompts show the JSON that they ask for."""
    prompt = Prompt('Answer {{"tone": "{tone}"}} to {text}, or {{{text}}}; a { alone is one')
    (_, row), _ = read(CSV.encode(), name="in.csv", prompt=prompt)
    (message,) = row["messages"]
    assert message["content"] == 'Answer {"tone": "kind"} to one, two, or {one, two}; a { alone is one'
    with pytest.raises(FormatError, match=r"no column '\"a\": 1'; .*; a brace that is meant as one is written twice"):
        read(CSV.encode(), name="in.csv", prompt=Prompt('{"a": 1} {text}'))


@pytest.mark.parametrize("name", ["in.csv", "in"])
@pytest.mark.parametrize(("delimiter", "word"), [(";", "semicolon"), ("\t", "tab")])
def test_values_between_semicolons_or_tabs_are_read(name, delimiter, word):
    """Spreadsheets write them so where a comma is a decimal point."""
    content = 'id;text\n1;"one; two"\n2;3,5\n'.replace(";", delimiter).encode()
    asked = [row["messages"][0]["content"] for _, row in read(content, name=name, prompt=Prompt("{text}"))]
    assert asked == [f"one{delimiter} two", "3,5"]
    with pytest.raises(FormatError, match=f"a value with a {word} in it stands in quotes"):
        read(content + f"3{delimiter}4{delimiter}5\n".encode(), name=name, prompt=Prompt("{text}"))


def test_tabs_and_marks_are_read_too():
    content = "\ufefftext\tmodel\nhello, you\tm2\n".encode()
    ((_, row),) = read(content, name="in.tsv.gz", prompt=Prompt("{text}"))
    assert (row["model"], row["messages"][0]["content"]) == ("m2", "hello, you")


@pytest.mark.parametrize(
    ("name", "prompt", "message"),
    [
        ("in.csv", None, "in.csv is a table: say what to ask with --prompt"),
        ("in.csv", Prompt("{nothing}"), "--prompt: there is no column 'nothing'; there are id, text, tone"),
    ],
)
def test_a_table_that_nobody_explains_is_one_sentence(name, prompt, message):
    with pytest.raises(FormatError) as caught:
        read(CSV.encode(), name=name, prompt=prompt)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b"id,text\n1,fine\n2,one, two\n",
            "in.csv: the row that ends in line 3 has more values than the 2 columns: a value",
        ),
        (
            b"id,text\n1\n",
            "in.csv: the row that ends in line 2 has fewer values than the 2 columns: a value with a comma",
        ),
        (b"text,text\na,b\n", "--prompt: in.csv has several columns 'text': name them apart"),
    ],
)
def test_no_part_of_a_row_of_csv_is_lost_without_a_word(content, message):
    with pytest.raises(FormatError) as caught:
        read(content, name="in.csv", prompt=Prompt("Say {text}"))
    assert str(caught.value).startswith(message)


@given(st.binary(max_size=200))
def test_no_bytes_break_the_reader(content):
    with contextlib.suppress(FormatError):
        list(formats.rows(iter([content] if content else [])))
