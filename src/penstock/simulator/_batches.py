"""Files of an account, and batches of requests: their states, and when these change.

A batch is decided when its time comes, and not by a task that waits for it: each later look tells the time, and
everything that happened until then has happened. So nothing here waits or reads a clock, and virtual time works.

    validating → in_progress → finalizing → completed
               ↘ failed                   ↘ expired, if rows were left when its window ended
    any of the first three → cancelling → cancelled
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from random import Random
from typing import Any

from penstock.simulator import _replies
from penstock.simulator._answering import FAILURES, answer_to, parse
from penstock.simulator._simulation import Simulation

ENDPOINTS = (_replies.CHAT, _replies.RESPONSES, _replies.COMPLETIONS, _replies.EMBEDDINGS)
ENDED = frozenset({"failed", "completed", "expired", "cancelled"})

_MOST_ERRORS = 100
_EXPIRED = ("batch_expired", "This request could not be executed before the completion window expired.")
_CANCELLED = ("batch_cancelled", "This request was not executed, because the batch was cancelled.")


@dataclass(slots=True)
class StoredFile:
    """A file of the account."""

    id: str
    content: bytes
    created: float
    filename: str
    purpose: str

    def as_json(self) -> dict[str, Any]:
        """As the service tells it."""
        return {
            "id": self.id,
            "object": "file",
            "bytes": len(self.content),
            "created_at": int(self.created),
            "expires_at": None,
            "filename": self.filename,
            "purpose": self.purpose,
            "status": "processed",
            "status_details": None,
        }


@dataclass(slots=True)
class BatchJob:
    """A batch, with the moments at which it changes, in seconds since 1970; `inf`: never.

    Attributes:
        model: Of its rows; of the first one where they may differ.
        tokens: Of its input, by model.
        rows: How many.
        errors: Why it failed.
    """

    id: str
    endpoint: str
    file: StoredFile
    window: str
    metadata: dict[str, str] | None
    created: float
    expires: float
    checked: float
    model: str | None = None
    tokens: Counter[str] = field(default_factory=Counter)
    rows: int = 0
    errors: list[dict[str, Any]] = field(default_factory=list)
    is_checked: bool = False
    worked: float = math.inf
    ended: float = math.inf
    cancelling: float = math.inf
    done: int = 0
    failed: int = 0
    output: StoredFile | None = None
    failures: StoredFile | None = None

    def status(self, now: float) -> str:
        """What it is at a moment that has come."""
        if self.is_checked and self.errors:
            return "failed"
        if now >= self.cancelling:
            return "cancelled" if now >= self.ended else "cancelling"
        if not self.is_checked:
            return "validating"
        if now < self.worked:
            return "in_progress"
        if now < self.ended:
            return "finalizing"
        return "completed" if self.worked < self.expires else "expired"


class Library:
    """The files and batches of an account."""

    def __init__(self, simulation: Simulation) -> None:
        self.simulation = simulation
        self.rules = simulation.batches
        self.files: dict[str, StoredFile] = {}
        self.batches: dict[str, BatchJob] = {}
        self.now = -math.inf  # until when everything has happened: what is told later is told as of this moment
        self.executed: Counter[str] = Counter()  # rows that were worked on, by custom_id: each of them is billed
        self._random = Random(f"{simulation.seed}:ids")
        self._seen: Counter[bytes] = Counter()

    # Files ------------------------------------------------------------------------------------------------------------

    def store(self, content: bytes, filename: str, purpose: str, now: float) -> StoredFile:
        """Keep a new file."""
        file = StoredFile(f"file-{self._random.getrandbits(96):024x}", content, now, filename, purpose)
        self.files[file.id] = file
        return file

    # Batches ----------------------------------------------------------------------------------------------------------

    def create(self, file: StoredFile, endpoint: str, window: str, metadata: dict[str, str] | None) -> BatchJob:
        """Begin a batch, which is checked a little later."""
        batch = BatchJob(
            f"batch_{self._random.getrandbits(128):032x}", endpoint, file, window, metadata, self.now,
            self.now + self.rules.window, self.now + self.rules.validating,
        )  # fmt: skip
        self.batches[batch.id] = batch
        return batch

    def cancel(self, batch: BatchJob) -> None:
        """End a batch before its time."""
        batch.cancelling = self.now
        batch.ended = self.now + self.rules.finalizing

    def advance(self, now: float) -> Iterator[None]:
        """Let happen what happened until `now`; yields now and then, as it may take long."""
        for batch in sorted(self.batches.values(), key=lambda each: each.checked):
            if not batch.is_checked and batch.checked <= now and batch.cancelling > batch.checked:
                self._check(batch)
                yield
        for batch in self.batches.values():
            if batch.ended <= now and batch.is_checked and not batch.errors and batch.output is batch.failures is None:
                yield from self._finish(batch)
        self.now = max(self.now, now)

    def _check(self, batch: BatchJob) -> None:
        batch.is_checked = True
        batch.errors = list(self._problems(batch))
        if batch.errors:
            return
        work = batch.checked + self.rules.duration + self.rules.per_row * batch.rows
        batch.worked = min(work, batch.expires)
        batch.ended = min(batch.ended, batch.worked + self.rules.finalizing)

    def _problems(self, batch: BatchJob) -> Iterator[dict[str, Any]]:
        """Why a batch is refused; and, where it is not, what is in it."""
        found, names = 0, set[str]()
        for number, line in enumerate(_lines(batch.file.content), 1):
            batch.rows += 1
            for code, message, param in self._problems_of(batch, line, names):
                found += 1
                if found <= _MOST_ERRORS:
                    yield {"code": code, "message": message, "param": param, "line": number}
        if not batch.rows:
            yield _problem(
                "empty_file", "The input file is empty. Please ensure that the batch contains at least one request."
            )
        elif batch.rows > self.rules.max_rows:
            yield _problem(
                "too_many_requests",
                f"The input file holds {batch.rows} requests, and a batch may hold {self.rules.max_rows} at most.",
            )
        most = self.rules.enqueued_tokens
        if found or most is None:
            return
        for model, tokens in batch.tokens.items():
            queued = sum(
                other.tokens[model]
                for other in self.batches.values()
                if other is not batch and other.is_checked and not other.errors and other.ended > batch.checked
            )
            if queued + tokens > most:
                yield _problem(
                    "token_limit_exceeded",
                    f"Enqueued token limit reached for {model} in organization {self.simulation.organization}. Limit: "
                    f"{most:,} enqueued tokens. Please try again once some in_progress batches have been completed.",
                )

    def _problems_of(self, batch: BatchJob, line: bytes, names: set[str]) -> Iterator[tuple[str, str, str | None]]:
        row = parse(line)
        if row is None:
            yield "invalid_json_line", "This line is not parseable as valid JSON.", None
            return
        name, body = row.get("custom_id"), row.get("body")
        if not isinstance(name, str):
            yield "missing_required_parameter", "Missing required parameter: 'custom_id', a string.", "custom_id"
            return
        if name in names:
            yield (
                "duplicate_custom_id",
                (
                    f"The custom_id '{name}' for this request is a duplicate of another request. "
                    "The custom_id parameter must be unique for each request in a batch."
                ),
                "custom_id",
            )
        names.add(name)
        if row.get("method") != "POST":
            yield "invalid_method", "The method of each request must be 'POST'.", "method"
        if row.get("url") != batch.endpoint:
            yield "invalid_url", "The URL of this request does not match the endpoint of the batch.", "url"
        if not isinstance(body, dict):
            yield "missing_required_parameter", "Missing required parameter: 'body', an object.", "body"
            return
        model = body.get("model")
        if not isinstance(model, str) or (self.simulation.models and model not in self.simulation.models):
            yield "model_not_found", f"The provided model '{model}' is not supported by the Batch API.", "body.model"
            return
        batch.model = batch.model or model
        if self.rules.one_model and model != batch.model:
            yield (
                "mismatched_model",
                (
                    f"The model '{model}' of this request does not match the rest of the batch, '{batch.model}'. "
                    "Each batch must contain requests for a single model."
                ),
                "body.model",
            )
        batch.tokens[model] += self.simulation.charge(batch.endpoint, body)

    # What comes out
    # -----------------------------------------------------------------------------------------------------

    def done_until(self, batch: BatchJob, now: float) -> int:
        """Rows that are worked on until a moment: in order, one after the other."""
        if not batch.is_checked or batch.errors:
            return 0
        since = min(now, batch.cancelling, batch.expires) - batch.checked - self.rules.duration
        if self.rules.per_row == 0:
            return batch.rows if since >= 0 else 0
        return max(0, min(batch.rows, math.floor(since / self.rules.per_row + 1e-9)))

    def _finish(self, batch: BatchJob) -> Iterator[None]:
        """Write the output and error files of a batch that has ended."""
        outputs, failures = list[bytes](), list[bytes]()
        done = self.done_until(batch, batch.ended)
        left = _CANCELLED if batch.cancelling <= batch.ended else _EXPIRED
        for number, line in enumerate(_lines(batch.file.content)):
            yield
            row = parse(line)
            assert row is not None, "what cannot be read is refused when the batch is checked"
            random = self._draw(batch.endpoint, row["body"])
            if number >= done:
                response, error = None, {"code": left[0], "message": left[1]}
            else:
                self.executed[row["custom_id"]] += 1
                status, body = self._work(batch.endpoint, row["body"], random)
                request_id = f"req_{random.getrandbits(128):032x}"
                response, error = {"status_code": status, "request_id": request_id, "body": body}, None
            is_answer = response is not None and response["status_code"] == 200
            batch.done += is_answer
            batch.failed += not is_answer
            entry = {
                "id": f"batch_req_{random.getrandbits(128):032x}",
                "custom_id": row["custom_id"],
                "response": response,
                "error": error,
            }
            (outputs if is_answer else failures).append(json.dumps(entry).encode() + b"\n")
        if outputs:
            batch.output = self.store(b"".join(outputs), f"{batch.id}_output.jsonl", "batch_output", batch.ended)
        if failures:
            batch.failures = self.store(b"".join(failures), f"{batch.id}_error.jsonl", "batch_output", batch.ended)

    def _draw(self, path: str, body: dict[str, Any]) -> Random:
        digest = hashlib.blake2b(path.encode() + json.dumps(body).encode(), digest_size=8).digest()
        self._seen[digest] += 1
        return Random(f"{self.simulation.seed}:batch:{digest.hex()}:{self._seen[digest]}")

    def _work(self, path: str, body: dict[str, Any], random: Random) -> tuple[int, dict[str, Any]]:
        fault = self.rules.faults.draw(random)
        if body.get("stream"):
            return 400, _replies.invalid("Streaming is not supported in the Batch API.", "invalid_value", "stream")
        status, content = answer_to(self.simulation, path, body, random)
        if status == 200 and fault in FAILURES:
            return FAILURES[fault]
        assert not isinstance(content, bytes)  # no endpoint of a batch answers with a sound
        return status, _replies.render(content) if isinstance(content, _replies.Answer) else content

    def status(self, batch: BatchJob) -> str:
        """What a batch has come to."""
        return batch.status(self.now)

    def as_json(self, batch: BatchJob) -> dict[str, Any]:
        """A batch as the service tells it."""
        now, status = self.now, self.status(batch)
        moments = {
            "in_progress_at": batch.checked if batch.is_checked and not batch.errors else math.inf,
            "finalizing_at": batch.worked if batch.worked <= batch.cancelling else math.inf,
            "completed_at": batch.ended if status == "completed" else math.inf,
            "failed_at": batch.checked if status == "failed" else math.inf,
            "expired_at": batch.ended if status == "expired" else math.inf,
            "cancelling_at": batch.cancelling,
            "cancelled_at": batch.ended if status == "cancelled" else math.inf,
        }
        ended = status in ENDED
        completed = batch.done if ended else self.done_until(batch, now)
        return {
            "id": batch.id,
            "object": "batch",
            "endpoint": batch.endpoint,
            "model": batch.model,
            "errors": {"object": "list", "data": batch.errors} if batch.errors else None,
            "input_file_id": batch.file.id,
            "completion_window": batch.window,
            "status": status,
            "output_file_id": batch.output.id if ended and batch.output else None,
            "error_file_id": batch.failures.id if ended and batch.failures else None,
            "created_at": int(batch.created),
            "expires_at": int(batch.expires),
            **{name: int(moment) if moment <= now else None for name, moment in moments.items()},
            "request_counts": {
                "total": batch.rows if batch.is_checked and not batch.errors else 0,
                "completed": completed,
                "failed": batch.failed if ended else 0,
            },
            "metadata": batch.metadata,
        }


def wrong_batch(wanted: Any, find: Callable[[str], StoredFile | None]) -> str | None:
    """What is wrong with a request for a new batch; None: nothing."""
    if not isinstance(wanted, dict):
        return "We could not parse the JSON body of your request: it must be a JSON object."
    if wanted.get("endpoint") not in ENDPOINTS:
        return f"Invalid value: {wanted.get('endpoint')!r}. Supported values are: {', '.join(map(repr, ENDPOINTS))}."
    if wanted.get("completion_window") != "24h":
        return f"Invalid value: {wanted.get('completion_window')!r}. Supported values are: '24h'."
    metadata = wanted.get("metadata")
    if metadata is not None and not (
        isinstance(metadata, dict)
        and len(metadata) <= 16
        and all(isinstance(v, str) and len(k) <= 64 and len(v) <= 512 for k, v in metadata.items())
    ):
        return "Invalid 'metadata': at most 16 pairs, with keys up to 64 and strings up to 512 characters."
    file = find(str(wanted.get("input_file_id")))
    if file is None:
        return f"No such File object: {wanted.get('input_file_id')}"
    if file.purpose != "batch":
        return f"The file {file.id} has the purpose '{file.purpose}', and must have 'batch'."
    return None


def _problem(code: str, message: str) -> dict[str, Any]:
    return {"code": code, "message": message, "param": None, "line": None}


def _lines(content: bytes) -> Iterator[bytes]:
    """The lines of a file but blank ones, without a copy of them all."""
    begin = 0
    while begin < len(content):
        end = content.find(b"\n", begin)
        end = len(content) if end < 0 else end
        if content[begin:end].strip():
            yield content[begin:end]
        begin = end + 1
