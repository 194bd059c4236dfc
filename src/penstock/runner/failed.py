"""The failures of a run, grouped by their cause, each with an example and what to do about it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from penstock._numbers import number_of
from penstock.runner.source import load_json

__all__ = ["Failures", "advice", "ended_early", "group_errors", "sentences"]

_ADVICE = {
    "ambiguous": "look in the service's own log whether it was billed; --on-ambiguous rerun sends it again",
    "batch_expired": "run the command again: the service had no time for it within its window",
    "cannot_set": "correct the row in FILE, or --set",
    "connection_error": "run the command again: the server, or what is between, dropped it",
    "duplicate_custom_id": "give each row a custom_id of its own",
    "empty_answer": "run the command again, with fewer rows at once (--max-in-flight): services answer so under load",
    "foreign_answer": "run the command again: a log-in, a proxy or another program answered in the service's place",
    "internal_error": "report it, with the row",
    "invalid_response": "the whole answer is in the errors file and was paid for; running again pays again",
    "no_result": "run the command again: the batch ended without a result for it",
    "request_too_large": "split the request, or raise the limit",
    "stream_cut": "run the command again: the service ended its answer too early",
    "stream_not_supported": 'leave "stream" out: a batch has no streams',
    "unreadable_answer": "check the proxies between here and the service; running again may be billed again",
    "unknown_model": "give its limits: by --limits, or in the file that --limits names",
    "unknown_price": "give --prices FILE with that model, or leave --max-cost out",
    "context_length_exceeded": "shorten the request: it is longer than the model allows",
    "model_not_found": "check the model's name, and that this key may use it",
    "content_filter": "the service does not answer this; reword it or leave it out",
    "rate_limit_exceeded": "run the command again: the limits were used up all the time (--give-up-after)",
}
_LINE = frozenset(
    {
        "invalid_json", "invalid_utf8", "not_an_object", "too_deep", "line_too_long", "missing_body",
        "invalid_custom_id", "invalid_method", "invalid_url",
    }
)  # fmt: skip


@dataclass(slots=True)
class Failures:
    """The rows that failed with one code.

    Attributes:
        code: It.
        count: How many rows.
        line: Of the first one; None where it is not known.
        custom_id: Of the first one.
        message: Of the first one.
        status: The HTTP status of the first one; None where there was no answer.
    """

    code: str
    count: int
    line: int | None
    custom_id: str | int | None
    message: str
    status: int | None


def group_errors(lines: Iterable[bytes]) -> tuple[list[Failures], int]:
    """Group the lines of an errors file by their code, the most frequent first; and how many lines are no errors."""
    found: dict[str, Failures] = {}
    others = 0
    for line in lines:
        try:
            entry: Any = load_json(line)
            error = entry["error"]
            code = str(error["code"])
        except (ValueError, TypeError, KeyError, RecursionError):
            others += 1
            continue
        known = found.get(code)
        if known is None:
            found[code] = Failures(
                code, 1, entry.get("line"), entry.get("custom_id"), str(error.get("message")), error.get("status_code")
            )
        else:
            known.count += 1
    return sorted(found.values(), key=lambda each: -each.count), others


def ended_early(summary: Path) -> str | None:
    """What a summary says of a run that ended before its file did; None: it did not, or there is no summary to tell."""
    try:
        said: Any = load_json(summary.read_bytes())
        message, untouched = said["stopped"]["message"], int(said["untouched"])
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None
    rows = number_of(untouched, "row is", "rows are")
    return f"the run ended early, and {rows} untouched: {' '.join(str(message).split())[:300]}"


def advice(failures: Failures) -> str:
    """What to do about them."""
    if failures.code in _ADVICE:
        return _ADVICE[failures.code]
    if failures.code in _LINE:
        return f"correct the row{'s' if failures.count > 1 else ''} in FILE and run the command again"
    status = failures.status or 0
    if status >= 500 or status in {408, 409, 429}:
        return "run the command again: it is the service's trouble and may be over"
    if status in {401, 403}:
        return "check the key, and what it may use"
    if status:
        return "the service does not take the request as it is: correct the row and run the command again"
    return "run the command again"


def sentences(groups: Iterable[Failures]) -> Iterator[str]:
    """The groups as lines for people."""
    for each in groups:
        yield f"{each.count:,} × {each.code}"
        name = f", {each.custom_id!r}" if each.custom_id is not None else ""
        where = "a row that could not be named" if each.line is None else f"line {each.line}"
        yield f"    for example {where}{name}: {' '.join(each.message.split())[:300]}"
        yield f"    {advice(each)}"
