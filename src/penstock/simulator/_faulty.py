"""Answers that go wrong on purpose, after their request was admitted and charged."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Send

from penstock.simulator._answering import Json
from penstock.simulator._simulation import Fault

_PAGE = (
    b"<html>\r\n<head><title>502 Bad Gateway</title></head>\r\n<body>\r\n<center><h1>502 Bad Gateway</h1></center>\r\n"
    b"<hr><center>nginx</center>\r\n</body>\r\n</html>\r\n"
)
_JSON = "application/json"

_LISTS = ("choices", "data", "output", "content", "candidates")
"""What holds an answer, in the words of any service."""


async def answer_badly(
    fault: Fault,
    content: dict[str, Any],
    headers: Mapping[str, str],
    request: Request,
    send: Send,
    hang_up: Callable[[Request], None],
) -> bool:
    """Answer a request as a fault has it; whether that is, to the service, an answer.

    Args:
        fault: One that concerns the whole answer.
        content: What the answer would have been.
        headers: The same.
        request: The request that is answered.
        send: How to send it.
        hang_up: Cuts its connection.
    """
    bare = {name: value for name, value in headers.items() if "ratelimit" not in name}
    if fault in {"hang", "dropped"}:
        if fault == "dropped":
            hang_up(request)
        await request.receive()  # returns when the connection is gone, so that nothing is sent in its stead
        return False
    payload = Json(content).body
    if fault == "cut_short":
        start = [(b"content-type", _JSON.encode()), (b"content-length", str(len(payload)).encode())]
        start += [(name.encode(), value.encode()) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": 200, "headers": start})
        await send({"type": "http.response.body", "body": bytes(payload[: len(payload) // 2]), "more_body": True})
        hang_up(request)
        await request.receive()
        return False
    response: Response
    if fault == "bad_gateway":
        response = Response(_PAGE, 502, bare, "text/html")
    elif fault == "gzip":
        response = Response(gzip.compress(payload), 200, {**headers, "content-encoding": "gzip"}, _JSON)
    elif fault == "no_headers":
        response = Response(payload, 200, bare, _JSON)
    else:
        response = Response(_strange(fault, content, payload), 200, headers, _JSON)
    await response(request.scope, request.receive, send)
    return fault in {"gzip", "no_headers"}


def _strange(fault: Fault, content: dict[str, Any], payload: bytes | memoryview) -> bytes:
    """The body of a success that is none."""
    if fault == "truncated":
        return bytes(payload[: len(payload) // 2])
    if fault == "empty":
        return b""
    if fault == "null":
        return b"null"
    if fault == "no_choices":
        lists: dict[str, Any] = {name: [] for name in _LISTS if name in content}
        if isinstance(content.get("message"), dict):  # Cohere's
            lists["message"] = content["message"] | {"content": []}
        return bytes(Json(content | lists).body)
    error = {"message": "Provider returned error", "code": 502, "metadata": {"provider_name": "simulated"}}
    return bytes(Json({"error": error, "choices": None}).body)
