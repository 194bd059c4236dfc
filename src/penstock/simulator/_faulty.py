"""Answers that go wrong on purpose, after their request was admitted and charged.

Which request gets one is decided in `_account`.
"""

from __future__ import annotations

import gzip
from collections.abc import Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Send

from penstock.simulator._answering import FAILURES, Json, parse
from penstock.simulator._simulation import FAULTS, Fault

_PAGE = (
    b"<html>\r\n<head><title>502 Bad Gateway</title></head>\r\n<body>\r\n<center><h1>502 Bad Gateway</h1></center>\r\n"
    b"<hr><center>nginx</center>\r\n</body>\r\n</html>\r\n"
)
_JSON = "application/json"

_LISTS = ("choices", "data", "output", "content", "candidates")
"""What holds an answer, in the words of any service."""


_OF_LIMITS = ("limit", "x-trial-")
"""What the headers of limits are called, those of Together (`x-tokenlimit-…`) and Cohere too."""

OF_ANSWERS = frozenset(FAULTS) - {"slow_down", "insufficient_quota", "broken_stream", *FAILURES}
"""Faults of an answer that comes at once."""

STILL_ANSWERS: frozenset[Fault | None] = frozenset({"gzip", "no_headers"})
"""Faults of an answer that leave it one."""


async def answer_badly(
    fault: Fault, answer: Response, request: Request, send: Send, hang_up: Callable[[Request], None]
) -> None:
    """Answer a request as a fault has it.

    Args:
        fault: One that concerns the whole answer.
        answer: What the answer would have been.
        request: The request that is answered.
        send: How to send it.
        hang_up: Cuts its connection.
    """
    if fault in {"hang", "dropped"}:
        if fault == "dropped":
            hang_up(request)
        await request.receive()  # returns when the connection is gone, so that nothing is sent in its stead
        return
    payload = bytes(answer.body)
    if fault == "cut_short":
        await send({"type": "http.response.start", "status": answer.status_code, "headers": answer.raw_headers})
        await send({"type": "http.response.body", "body": payload[: len(payload) // 2], "more_body": True})
        hang_up(request)
        await request.receive()
        return
    status, kind = answer.status_code, answer.headers["content-type"]
    headers = {name: value for name, value in answer.headers.items() if not name.startswith("content-")}
    if fault in {"bad_gateway", "no_headers"}:
        headers = {name: value for name, value in headers.items() if not any(word in name for word in _OF_LIMITS)}
    if fault == "bad_gateway":
        payload, status, kind = _PAGE, 502, "text/html"
    elif fault == "gzip":
        payload, headers["content-encoding"] = gzip.compress(payload), "gzip"
    elif fault == "truncated":
        payload = payload[: len(payload) // 2]
    elif fault != "no_headers":
        payload, status, kind = _strange(fault, payload), 200, _JSON
    await Response(payload, status, headers, kind)(request.scope, request.receive, send)


def _strange(fault: Fault, payload: bytes) -> bytes:
    """The body of a success that is none."""
    if fault == "empty":
        return b""
    if fault == "null":
        return b"null"
    content = parse(payload) or {}
    if fault == "no_choices":
        lists: dict[str, Any] = {name: [] for name in _LISTS if name in content}
        if isinstance(content.get("message"), dict):  # Cohere's
            lists["message"] = content["message"] | {"content": []}
        return bytes(Json(content | lists).body)
    error = {"message": "Provider returned error", "code": 502, "metadata": {"provider_name": "simulated"}}
    return bytes(Json({"error": error, "choices": None}).body)
