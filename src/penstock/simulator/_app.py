"""The endpoints: an ASGI application around an account.

What is decided about a request is in `_account`, what is said in `_replies`; here it is read, kept waiting, and
answered.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from typing import Any

import anyio
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from penstock import clock
from penstock.simulator import _media, _replies, _streams
from penstock.simulator._account import Account, Draw, Refusal
from penstock.simulator._answering import FAILURES, Json, answer_to, no_such_model, parse
from penstock.simulator._batch_app import BatchEndpoints
from penstock.simulator._bodies import SILENCE, read_body
from penstock.simulator._dialect_streams import broken_event_in, events_in
from penstock.simulator._dialects import (
    COHERE_CHAT,
    GENERATE,
    MESSAGES,
    STREAM,
    error_in,
    render_in,
    request_in,
)
from penstock.simulator._faulty import OF_ANSWERS, STILL_ANSWERS, answer_badly
from penstock.simulator._simulation import Simulation

ABORT = "penstock.abort"
"""Key in the connection's state of a function that closes the connection at once."""

_IN_STREAMS = frozenset({"dropped", "hang", "cut_short", "truncated"})
"""Faults that happen in the middle of a stream."""

_OF_STREAMS = OF_ANSWERS - _IN_STREAMS - {"gzip", "no_headers"}
"""Those that come in its stead."""

_GENERATING = (_replies.CHAT, _replies.RESPONSES, _replies.COMPLETIONS)
"""Whose answers have tokens of output."""

_EXAMPLE_MODELS = ("gpt-4o", "gpt-4o-mini", "text-embedding-3-small")


def create_app(simulation: Simulation) -> Starlette:
    """The simulated service as an ASGI application, with an account of its own.

    `app.state.account` is that account: `statistics()`, `inject(fault, times)` and `consume(requests=…, tokens=…)` work
    as they do on a `Server`. `app.state.library` holds its files and batches. Under a transport that calls the
    application in-process there is no connection to drop: there the fault `dropped` raises `ConnectionResetError`.
    """
    account = Account(simulation)
    service = _Service(account)
    batches = BatchEndpoints(account, service.unauthorized, _hang_up)
    own = (
        {MESSAGES, GENERATE, STREAM, COHERE_CHAT} if simulation.dialect in {"anthropic", "gemini", "cohere"} else set()
    )
    routes = [
        *(Route(path, _Endpoint(service, _replies.CHAT, path), methods=["POST"]) for path in own),
        *(
            Route(path, _Endpoint(service, path), methods=["POST"])
            for path in (*_GENERATING, _replies.EMBEDDINGS, *_media.MEDIA)
        ),
        *batches.routes(),
        Route("/v1/models", service.models),
        Route("/v1/models/{name:path}", service.model),
        Route("/simulator/statistics", service.statistics),
        Route("/simulator/faults", service.inject, methods=["POST"]),
    ]
    app = Starlette(routes=routes, exception_handlers={HTTPException: service.no_such_endpoint})
    app.state.account = account
    app.state.library = batches.library
    return app


class _Service:
    """What all endpoints share."""

    def __init__(self, account: Account) -> None:
        self.account = account
        self.simulation = account.simulation
        self._places: anyio.Semaphore | None = None

    def places(self) -> anyio.Semaphore:
        """The places there are to work in; made at the first request, in the loop that will use it."""
        if self._places is None:
            assert self.simulation.concurrency is not None
            self._places = anyio.Semaphore(self.simulation.concurrency)
        return self._places

    def unauthorized(self, request: Request) -> Response | None:
        """The answer to a request without a valid key; None if its key is valid."""
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        names = ("x-api-key", "api-key", "x-goog-api-key")
        key = next(
            (request.headers[name] for name in names if name in request.headers),
            key if scheme.lower() == "bearer" else request.query_params.get("key", ""),  # the last is Google's
        )
        if not key.strip():
            body = _replies.invalid(
                "You didn't provide an API key. You need to provide your API key in an Authorization header using "
                "Bearer auth (i.e. Authorization: Bearer YOUR_KEY)."
            )
        elif self.simulation.api_keys and key.strip() not in self.simulation.api_keys:
            body = _replies.invalid("Incorrect API key provided.", "invalid_api_key")
        else:
            return None
        self.account.failed("401")
        return Json(self.said(401, body), 401)

    def said(self, status: int, body: _replies.Error) -> dict[str, Any]:
        """An error in the words of the service."""
        return error_in(self.simulation.dialect, status, body)

    async def models(self, request: Request) -> Response:
        names = self.simulation.models or _EXAMPLE_MODELS
        return self.unauthorized(request) or Json({"object": "list", "data": [_model(name) for name in names]})

    async def model(self, request: Request) -> Response:
        name = request.path_params["name"]
        if self.simulation.models and name not in self.simulation.models:
            return self.unauthorized(request) or Json(no_such_model(name), 404)
        return self.unauthorized(request) or Json(_model(name))

    async def no_such_endpoint(self, request: Request, problem: Exception) -> Response:
        assert isinstance(problem, HTTPException)
        message = f"Invalid URL ({request.method} {request.url.path})"
        if problem.status_code == 405:
            message = f"Not allowed to {request.method} on {request.url.path}"
        said = self.said(problem.status_code, _replies.invalid(message))
        return Json(said, problem.status_code, problem.headers)

    async def statistics(self, request: Request) -> Response:
        wanted = request.query_params.get("log", "") not in {"", "0", "false"}
        return Json(self.account.statistics().as_json(log=wanted))

    async def inject(self, request: Request) -> Response:
        try:
            raw = await read_body(request, self.simulation.max_body)
            wanted = json.loads(raw if isinstance(raw, bytes) else b"")
            self.account.inject(wanted["fault"], int(wanted.get("times", 1)))
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as problem:
            return Json(_replies.invalid(f'wrong fault: {problem}; send {{"fault": name, "times": n}}'), 400)
        return Json({"injected": wanted})


_WHY_NO_BODY = {
    400: "is not compressed as its content-encoding says",
    408: f"did not come within {SILENCE:g} s",
    413: "is too large",
    415: "is compressed in a way that this service does not read: gzip and deflate are",
}


class _Endpoint:
    """One endpoint that costs something: admission, then latency, then the answer.

    An ASGI application of its own and not a function, because a request is in flight until the last byte of its answer
    is sent, also if the client hangs up before the first.
    """

    def __init__(self, service: _Service, path: str, outside: str | None = None) -> None:
        self.service = service
        self.account = service.account
        self.simulation = service.simulation
        self.path = path
        self.outside = outside or path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        try:
            raw = await read_body(request, self.simulation.max_body)
        except ClientDisconnect:
            return
        if not isinstance(raw, bytes):
            self.account.failed(str(raw))
            words = _WHY_NO_BODY[raw]
            wrong = self.service.said(raw, _replies.invalid(f"The body of the request {words}."))
            refusal = Json(wrong, raw, {"connection": "close"})
            await refusal(scope, receive, send)
            return
        denied = self.service.unauthorized(request)
        if denied is not None:
            await denied(scope, receive, send)
            return
        body = request_in(self.outside, self._read(request, raw), request.path_params.get("model"))
        draw = self.account.draw(self.path, raw)
        verdict: dict[str, str] | Refusal | None = self.account.refused_by(draw.fault)
        if verdict is None:
            counted = body is not None and (self.path not in _media.MEDIA or self.path == _replies.MODERATIONS)
            tokens = self.simulation.charge(self.path, body or {}) if counted else 0
            images, generates = _media.images_in(self.path, body), self.path in _GENERATING
            verdict = self.account.admit(str((body or {}).get("model")), tokens, images=images, generates=generates)
        if isinstance(verdict, Refusal):
            await Json(verdict.body, 429, self._about(draw, verdict.headers))(scope, receive, send)
            return
        with self.account.in_flight():
            if self.simulation.concurrency is None:
                await self._work(request, body, draw, verdict, send)
            else:
                async with self.service.places():
                    await self._work(request, body, draw, verdict, send)

    def _read(self, request: Request, raw: bytes) -> dict[str, Any] | None:
        kind = request.headers.get("content-type", "")
        if self.path in _media.MEDIA and kind.startswith("multipart/"):
            return _media.body_of(kind, raw)
        return parse(raw)

    async def _work(
        self, request: Request, body: dict[str, Any] | None, draw: Draw, headers: dict[str, str], send: Send
    ) -> None:
        """Answer a request that was admitted. Whatever is wrong with it, it is charged already."""
        began = clock.now()
        shuffled = "x-simulator-shuffle" in request.headers
        status, content = answer_to(self.simulation, self.path, body, draw.random, shuffled=shuffled)
        reply = content if isinstance(content, _replies.Answer) else None
        stream = reply is not None and bool(reply.body.get("stream"))
        spoken = 0 if reply is None or stream else reply.output_tokens
        await anyio.sleep(draw.latency + self.simulation.latency.per_token * spoken)
        headers = self._about(draw, headers) | {"openai-processing-ms": str(round((clock.now() - began) * 1000))}
        if isinstance(content, dict) and status != 200:
            content = self.service.said(status, content)
        if draw.fault in FAILURES:
            status, content = FAILURES[draw.fault]
            content = self.service.said(status, content)
            if draw.fault == "overloaded" and self.simulation.dialect == "anthropic":
                status = 529
        bad = draw.fault in (_OF_STREAMS if stream else OF_ANSWERS)
        if reply is not None and content is reply:
            if stream and not bad:
                events = self._stream(reply, draw, request)
                response: Response = StreamingResponse(events, headers=headers, media_type="text/event-stream")
                await response(request.scope, request.receive, send)
                return
            content = render_in(self.outside, reply)
            if not bad or draw.fault in STILL_ANSWERS:
                self.account.spoke(reply.spoken)
        if bad and draw.fault not in STILL_ANSWERS:
            self.account.failed(str(draw.fault))
        elif status == 200:
            self.account.answered()
        else:
            self.account.failed(str(status))
        if isinstance(content, bytes):
            kind = "audio/wav" if content.startswith(b"RIFF") else "text/plain"
            said: Response = Response(content, status, headers, kind)
        else:
            said = Json(content, status, headers)
        if bad:
            assert draw.fault is not None
            await answer_badly(draw.fault, said, request, send, _hang_up)
        else:
            await said(request.scope, request.receive, send)

    async def _stream(self, reply: _replies.Answer, draw: Draw, request: Request) -> AsyncIterator[str]:
        own = self.outside != self.path
        events = list(events_in(self.outside, reply) if own else _streams.events(reply))
        middle = len(events) // 2
        for number, (event, brings) in enumerate(events):
            if number == middle and draw.fault in _IN_STREAMS:
                self.account.failed(draw.fault)
                if draw.fault == "hang":
                    await request.receive()  # returns when the client is gone
                elif draw.fault != "truncated":
                    _hang_up(request)
                return
            if number == middle and draw.fault == "broken_stream":
                self.account.failed("broken_stream")
                failed = _replies.server_error()
                told = broken_event_in(self.outside, self.service.said(500, failed)) if own else None
                yield told or _streams.broken_stream_event(self.path, number)
                return
            await anyio.sleep(self.simulation.latency.per_token * brings)
            self.account.spoke(brings)
            yield event
        self.account.answered()

    def _about(self, draw: Draw, headers: Mapping[str, str]) -> dict[str, str]:
        """The headers of every answer: limits as they were at admission, and whose answer this is."""
        return {
            **headers,
            "x-request-id": f"req_{draw.random.getrandbits(128):032x}",
            "openai-organization": self.simulation.organization,
            "openai-version": "2020-10-01",
        }


def _hang_up(request: Request) -> None:
    abort = request.scope.get("state", {}).get(ABORT)
    if abort is None:
        raise ConnectionResetError("the simulated server dropped the connection")
    abort()


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 1_686_935_002, "owned_by": "penstock"}
