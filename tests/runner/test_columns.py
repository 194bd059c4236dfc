"""Batches as columns: what data frames make of rows is undone, and one bad row costs no other."""

from __future__ import annotations

import json
import math
import sys
from types import SimpleNamespace

import pytest

from penstock.runner.columns import has_columns, rows_of, with_outcome

BODY = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


class Array:
    """As numpy's: `tolist` makes its first level Python's own, and objects in it stay what they are."""

    def __init__(self, *items):
        self.items = list(items)

    def tolist(self):
        return self.items


class Frame:
    """As pandas' DataFrame, which is no mapping."""

    def __init__(self, **columns):
        self.columns = columns

    def __iter__(self):
        return iter(self.columns)

    def __getitem__(self, name):
        return self.columns[name]

    def assign(self, **columns):
        return Frame(**{**self.columns, **columns})


class Table:
    """As pyarrow's."""

    def __init__(self, columns):
        self.columns = columns
        self.schema = SimpleNamespace(names=list(columns))

    def to_pydict(self):
        return self.columns

    def drop_columns(self, names):
        return Table({name: values for name, values in self.columns.items() if name not in names})

    def append_column(self, name, values):
        return Table({**self.columns, name: values})


@pytest.fixture
def libraries(monkeypatch):
    """What stands for them, as if a program had loaded them."""
    monkeypatch.setitem(sys.modules, "pandas", SimpleNamespace(DataFrame=Frame))
    arrow = SimpleNamespace(Table=Table, RecordBatch=Table, array=lambda values, kind: (kind, values))
    monkeypatch.setitem(sys.modules, "pyarrow", arrow)


def test_arrays_within_arrays_are_lists():
    """As Ray hands out columns of structs and of lists: no row of them could be sent."""
    messages = Array({"role": "user", "content": "hi"})
    assert rows_of({"body": Array({"model": "m", "messages": messages})}) == [{"body": BODY}]
    assert rows_of({"model": Array("m", "m"), "messages": Array(messages, messages)}) == [BODY, BODY]


def test_what_a_column_puts_where_a_row_has_nothing_is_left_out():
    """And an int that stood beside it is one again."""
    missing = type("NAType", (), {})()
    columns = {"model": ["m"] * 4, "max_tokens": Array(5.0, math.nan, None, missing), "input": ["a"] * 4}
    assert [row.get("max_tokens") for row in rows_of(columns)] == [5, None, None, None]
    assert [list(row) for row in rows_of(columns)][1:] == [["model", "input"]] * 3
    nested = {"body": [{"messages": [{"content": None, "n": 0.5, "ids": [1.0, 2**60 * 1.0]}]}]}
    assert json.dumps(rows_of(nested)) == f'[{{"body": {{"messages": [{{"n": 0.5, "ids": [1, {2.0**60}]}}]}}}}]'


@pytest.mark.parametrize("body", [json.dumps(BODY), json.dumps({**BODY, "user": None}).encode()])
def test_a_body_of_text_is_sent_as_it_is(body):
    assert rows_of({"body": [body]}) == [{"body": json.loads(body)}]


@pytest.mark.parametrize("body", ["{", b"\xff", None, math.nan, "[" * 100_000])
def test_a_body_that_is_none_costs_its_own_row(body):
    """And other columns make it no request: text that was no JSON was an error of the whole batch."""
    bad, good = rows_of({"body": [body, json.dumps(BODY)], "prompt": ["a", "b"]})
    assert not isinstance(bad["body"], dict)
    assert good == {"body": BODY, "prompt": "b"}


def test_an_outcome_goes_into_a_batch_of_the_same_kind_and_is_no_part_of_rows(libraries):
    """A frame's columns were taken for its rows."""
    for batch in ({"prompt": ["a"]}, Frame(prompt=["a"]), Table({"prompt": ["a"]})):
        for _ in range(2):
            assert has_columns(batch)
            assert rows_of(batch) == [{"prompt": "a"}]
            batch = with_outcome(batch, ["{}"], [""])  # noqa: PLW2901 - it goes in once more
        assert list(getattr(batch, "columns", batch)) == ["prompt", "answer", "error"]
    assert not has_columns([{"prompt": "a"}])


def test_pandas_and_pyarrow_themselves():
    pandas, pyarrow = pytest.importorskip("pandas"), pytest.importorskip("pyarrow")
    text = json.dumps(BODY)
    frame = pandas.DataFrame({"body": [text, None], "n": [1, None]}, index=[7, 8])
    assert rows_of(frame) == [{"body": BODY, "n": 1}, {"body": None}]
    assert list(with_outcome(frame, ["{}", ""], ["", "x"])["error"]) == ["", "x"]
    for kind in (pyarrow.Table, pyarrow.RecordBatch):
        batch = kind.from_pydict({"body": [BODY, BODY | {"max_tokens": 5}], "error": ["old", ""]})
        assert rows_of(batch) == [{"body": BODY}, {"body": BODY | {"max_tokens": 5}}]
        again = with_outcome(batch, ["{}", "{}"], ["", ""])
        assert isinstance(again, kind)
        assert again.to_pydict()["error"] == ["", ""]
