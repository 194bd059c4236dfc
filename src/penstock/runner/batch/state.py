"""What a service says of a file and of a batch, as far as a run relies on it. Pure.

Services differ in what they leave out, so nothing is needed but the id: what has another shape counts as not said.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from penstock._numbers import amount

__all__ = [
    "NAME",
    "BatchError",
    "BatchState",
    "UploadedFile",
    "queue_limit_in",
    "read_batch",
    "read_batches",
    "read_file",
]

NAME = "penstock"
"""Key of the metadata that holds the name of a part."""


_QUEUE = re.compile(r"[Ll]imit: (\d[\d,]*) enqueued")


@dataclass(frozen=True, slots=True)
class UploadedFile:
    """A file that was uploaded.

    Attributes:
        id: What the service calls it.
        created_at: When, in seconds since 1970; 0: not said.
    """

    id: str
    created_at: float


@dataclass(frozen=True, slots=True)
class BatchError:
    """Why a batch was refused when it was checked.

    Attributes:
        code, message: As the service said; "": it did not.
        line: The row that is to blame, from 1; None: all of them are.
    """

    code: str
    message: str
    line: int | None


@dataclass(frozen=True, slots=True)
class BatchState:
    """A batch at a moment.

    Attributes:
        id: What the service calls it.
        part: The name of its part; "": it is none of ours.
        created_at: When, in seconds since 1970; 0: not said.
        status: In the service's words.
        completed, failed: Rows that are done.
        errors: Why it was refused.
        files: Those that hold answers and errors, by their ids.
    """

    id: str
    part: str
    created_at: float
    status: str
    completed: int
    failed: int
    errors: tuple[BatchError, ...]
    files: tuple[str, ...]


def read_file(value: Mapping[str, Any]) -> UploadedFile:
    """Read what came of an upload. ValueError: it has no id."""
    return UploadedFile(_id(value), _number(value.get("created_at")))


def read_batch(value: Mapping[str, Any]) -> BatchState:
    """Read a batch. ValueError: it has no id."""
    counts, errors = _object(value.get("request_counts")), _object(value.get("errors")).get("data")
    files = value.get("output_file_id"), value.get("error_file_id")
    return BatchState(
        id=_id(value),
        part=_text(_object(value.get("metadata")).get(NAME)),
        created_at=_number(value.get("created_at")),
        status=_text(value.get("status")),
        completed=int(_number(counts.get("completed"))),
        failed=int(_number(counts.get("failed"))),
        errors=tuple(_error(error) for error in errors if isinstance(error, dict)) if isinstance(errors, list) else (),
        files=tuple(file for file in files if isinstance(file, str) and file),
    )


def read_batches(value: Mapping[str, Any]) -> tuple[list[BatchState], bool]:
    """Read a page of a list: the batches, and whether there are more."""
    found = []
    listed = value.get("data")
    for each in listed if isinstance(listed, list) else ():
        try:
            found.append(read_batch(_object(each)))
        except ValueError:
            continue
    return found, bool(found) and value.get("has_more") is True


def queue_limit_in(message: str) -> float | None:
    """Tokens that a model's queue takes, out of the words of a refusal; None: it does not say."""
    found = _QUEUE.search(message)
    return float(found[1].replace(",", "")) if found else None


def _error(value: dict[str, Any]) -> BatchError:
    line = value.get("line")
    return BatchError(
        _text(value.get("code")), _text(value.get("message")), line if type(line) is int and line > 0 else None
    )


def _id(value: Mapping[str, Any]) -> str:
    found = _text(value.get("id"))
    if not found:
        raise ValueError("the answer has no id")
    return found


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _number(value: Any) -> float:
    return amount(value) or 0.0 if isinstance(value, int | float) else 0.0
