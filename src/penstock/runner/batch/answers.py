"""The lines of a batch's output and error files: which row, and how it ended. Pure."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from penstock.llm.failures import Action, Verdict
from penstock.runner import answers
from penstock.runner.answers import Answer
from penstock.runner.source import custom_id_digest, dump_json, load_finite_json, load_json

__all__ = ["Answer", "ResultLine", "judge", "read"]

_UNDONE = frozenset({"batch_expired", "batch_cancelled"})


@dataclass(frozen=True, slots=True)
class ResultLine:
    """One line of the files that a batch ends with.

    Attributes:
        custom_id: Of the row.
        name: `Row.name` of the row.
        status: The HTTP status of its answer; 0 where there is none.
        request_id: Of its answer.
        body: Of its answer, as text where it is JSON that cannot be written again.
        error: Why there is no answer.
    """

    custom_id: str
    name: int
    status: int
    request_id: str | None
    body: Any
    error: Any


def read(line: bytes) -> ResultLine | None:
    """Read a line; None: it is none."""
    try:
        value, is_strict = load_json(line), True
    except (ValueError, RecursionError):
        try:
            value, is_strict = json.loads(line), False
        except (ValueError, RecursionError):
            return None
    custom_id = value.get("custom_id") if isinstance(value, dict) else None
    if not isinstance(custom_id, str | int):
        return None
    response = value.get("response")
    response = response if isinstance(response, dict) else {}
    status, request_id = response.get("status_code"), response.get("request_id")
    body = response.get("body")
    return ResultLine(
        str(custom_id),
        custom_id_digest(custom_id),
        status if isinstance(status, int) else 0,
        request_id if isinstance(request_id, str) else None,
        body if is_strict else json.dumps(body),
        value.get("error"),
    )


def judge(path: str, result: ResultLine) -> Answer | Verdict:
    """Say how a row of an endpoint ended."""
    if result.status:
        try:
            content = _written(result.body)
        except (ValueError, RecursionError):
            return Verdict(
                Action.PERMANENT, None, "invalid_response", "the answer in the batch cannot be written as JSON"
            )
        if isinstance(result.body, str) and result.status == 200:
            return Verdict(Action.PERMANENT, None, "invalid_response", "the answer in the batch is not JSON")
        return answers.judge(path, result.status, {}, content)
    code = result.error.get("code") if isinstance(result.error, dict) else None
    message = str(result.error.get("message") or "") if isinstance(result.error, dict) else ""
    if code in _UNDONE or not result.error:
        return Verdict(Action.BACK_OFF, None, code or "no_result", message or "the batch has no answer to this row")
    found = answers.judge(path, 200, {}, dump_json({"error": result.error}))
    return found if isinstance(found, Verdict) else Verdict(Action.PERMANENT, None, str(code), message)


def _written(body: Any) -> bytes:
    """A body as JSON; null for a number in it that JSON does not have."""
    try:
        return dump_json(body)
    except ValueError:
        return dump_json(load_finite_json(json.dumps(body)))
