"""Batches of rows as columns: mappings of names to sequences, pandas' frames and pyarrow's tables.

Loads none of these libraries: a batch of theirs comes from a program that has done so.

A column cannot leave a field out in one row alone, and cannot hold an int beside none: it holds null there, and floats.
So fields that are null are left out of rows, and whole floats are ints again. A body that is text is sent as it is.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from penstock.runner.source import load_json

__all__ = ["has_columns", "rows_of", "with_outcome"]

_OUTCOME = ("answer", "error")

_EXACT = 2.0**53
"""From here on floats are not all whole numbers that were meant."""


def has_columns(batch: object) -> bool:
    """Whether it is one of these, and not a sequence of rows."""
    return isinstance(batch, Mapping) or _is_frame(batch) or _is_table(batch)


def rows_of(batch: Any) -> list[dict[str, Any]]:
    """The rows of a batch of columns, as Python objects; an outcome of an earlier call is no part of them."""
    columns: Mapping[str, Iterable[Any]] = batch.to_pydict() if _is_table(batch) else batch
    names = [name for name in columns if name not in _OUTCOME]
    return [
        _row(dict(zip(names, values, strict=True)))
        for values in zip(*(_listed(columns[name]) for name in names), strict=True)
    ]


def with_outcome(batch: Any, answers: Sequence[str], errors: Sequence[str]) -> Any:
    """The same batch, of the same kind, with the columns `answer` and `error`."""
    outcome = dict(zip(_OUTCOME, (answers, errors), strict=True))
    if isinstance(batch, Mapping):
        return {**batch, **outcome}
    if _is_frame(batch):
        return batch.assign(**outcome)
    table = batch.drop_columns([name for name in batch.schema.names if name in _OUTCOME])
    for name, values in outcome.items():
        table = table.append_column(name, sys.modules["pyarrow"].array(values, "string"))
    return table


def _is_frame(batch: object) -> bool:
    frame = getattr(sys.modules.get("pandas"), "DataFrame", None)
    return frame is not None and isinstance(batch, frame)


def _is_table(batch: object) -> bool:
    pyarrow = sys.modules.get("pyarrow")
    kinds = getattr(pyarrow, "Table", None), getattr(pyarrow, "RecordBatch", None)
    return any(kind is not None and isinstance(batch, kind) for kind in kinds)


def _listed(column: Iterable[Any]) -> Iterable[Any]:
    """numpy's arrays and pandas' series as lists of Python objects, at their first level."""
    return column.tolist() if hasattr(column, "tolist") else column


def _row(fields: dict[str, Any]) -> dict[str, Any]:
    body = fields.get("body")
    row: dict[str, Any] = _plain(fields)
    if isinstance(body, str | bytes):
        try:
            row["body"] = load_json(body)
        except (ValueError, RecursionError):
            row["body"] = str(body)  # which costs this row alone
    if "body" in fields:
        row.setdefault("body", None)  # such a row is none, whatever other columns it has
    return row


def _plain(value: Any) -> Any:
    """What a column holds as JSON has it."""
    if hasattr(value, "tolist"):  # numpy's arrays and numbers
        value = value.tolist()
    if isinstance(value, Mapping):
        fields = {name: _plain(field) for name, field in value.items()}
        return {name: field for name, field in fields.items() if field is not None}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and value.is_integer() and abs(value) < _EXACT:
        return int(value)
    return None if _is_missing(value) else value


def _is_missing(value: object) -> bool:
    """Whether it stands for a null: NaN, and pandas' own."""
    return type(value).__name__ in {"NAType", "NaTType"} or (isinstance(value, float) and math.isnan(value))
