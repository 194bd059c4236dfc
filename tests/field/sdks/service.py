"""Services of many dialects over one account of our simulator: what it decides, said as each of them says it.

OpenAI's own paths are the simulator's; the others are answered here, with the limits, the count and the ledger of the
same account.
"""

from __future__ import annotations

import contextlib
import json
import time
import warnings

import anyio
from starlette.requests import Request
from starlette.responses import JSONResponse, StreamingResponse

from penstock.simulator import Simulation, serve

WORDS = ["Water ", "runs ", "through ", "a ", "gate."]
LONG = 400  # pieces of a stream that is asked for with "long" in its prompt: far more than anybody reads here
USAGE = {"in": 7, "out": len(WORDS)}


class Dialects:
    """The simulator's application, and around it the paths of other services."""

    def __init__(self, app):
        self.app, self.account = app, app.state.account

    async def __call__(self, scope, receive, send):
        path = scope["path"].rstrip("/")
        say = next((say for end, say in ENDPOINTS.items() if end in path), None)
        if say is None:
            path = path.replace("/openai/deployments/gpt-4o", "").replace("/openai/v1", "")  # Azure's, Groq's
            path = path if path.startswith("/v1/") else f"/v1{path}"
            headers = [(b"authorization" if name == b"api-key" else name, value) for name, value in scope["headers"]]
            headers = [
                (name, b"Bearer " + value if name == b"authorization" and b" " not in value else value)
                for name, value in headers
            ]
            scope = {**scope, "path": path, "raw_path": path.encode(), "headers": headers}
            await self.app(scope, receive, send)
            return
        request = Request(scope, receive)
        body = json.loads(await request.body() or b"{}")
        verdict = self.account.admit(str(body.get("model", "model")), 10)
        dialect, streams = say, "stream" in path.lower() or body.get("stream") is True
        if isinstance(verdict, dict):
            with self.account.in_flight():
                await self._answer(request, dialect, body, streams, dialect.headers(verdict), send)
            return
        answer = JSONResponse(dialect.error(verdict.body["error"]["message"]), 429, dialect.headers(verdict.headers))
        await answer(scope, receive, send)

    async def _answer(self, request, dialect, body, streams, headers, send):
        words = WORDS * LONG if "long" in json.dumps(body) else WORDS
        if not streams:
            await anyio.sleep(0.01)
            self.account.answered()
            await JSONResponse(dialect.answer("".join(WORDS)), headers=headers)(request.scope, request.receive, send)
            return

        async def events():
            self.account.answered()  # now, as a client may close the connection before the last event was taken from here
            for event in dialect.events(words):
                await anyio.sleep(0.005)
                yield event

        kind = getattr(dialect, "media_type", "text/event-stream")
        await StreamingResponse(events(), headers=headers, media_type=kind)(request.scope, request.receive, send)


def sse(content, event=None):
    return (f"event: {event}\n" if event else "") + f"data: {json.dumps(content)}\n\n"


class Anthropic:
    """Anthropic's messages; its headers tell moments."""

    @staticmethod
    def headers(told):
        kept = {"retry-after": told["retry-after"]} if "retry-after" in told else {}
        for name, mine in (("limit", "limit"), ("remaining", "remaining")):
            if f"x-ratelimit-{name}-requests" in told:
                kept[f"anthropic-ratelimit-requests-{mine}"] = told[f"x-ratelimit-{name}-requests"]
        if len(kept) >= 2:
            reset = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 1))
            kept["anthropic-ratelimit-requests-reset"] = reset
        return kept

    @staticmethod
    def error(message):
        return {"type": "error", "error": {"type": "rate_limit_error", "message": message}}

    @staticmethod
    def answer(text):
        usage = {"input_tokens": USAGE["in"], "output_tokens": USAGE["out"]}
        content = [{"type": "text", "text": text}]
        base = {"id": "msg_1", "type": "message", "role": "assistant", "model": "claude-x", "stop_sequence": None}
        return {**base, "content": content, "stop_reason": "end_turn", "usage": usage}

    @classmethod
    def events(cls, words):
        start = {**cls.answer(""), "content": [], "usage": {"input_tokens": USAGE["in"], "output_tokens": 1}}
        yield sse({"type": "message_start", "message": start}, "message_start")
        block = {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
        yield sse(block, "content_block_start")
        for word in words:
            delta = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": word}}
            yield sse(delta, "content_block_delta")
        yield sse({"type": "content_block_stop", "index": 0}, "content_block_stop")
        end = {"stop_reason": "end_turn", "stop_sequence": None}
        yield sse({"type": "message_delta", "delta": end, "usage": {"output_tokens": USAGE["out"]}}, "message_delta")
        yield sse({"type": "message_stop"}, "message_stop")


class Gemini:
    """Gemini's content; it has no headers, and its errors ask for a delay."""

    @staticmethod
    def headers(told):
        return {}

    @staticmethod
    def error(message):
        detail = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "0.5s"}
        error = {"code": 429, "message": message, "status": "RESOURCE_EXHAUSTED", "details": [detail]}
        return {"error": error}

    @staticmethod
    def answer(text, *, last=True):
        candidate = {"content": {"role": "model", "parts": [{"text": text}]}, "index": 0}
        usage = {"promptTokenCount": USAGE["in"], "totalTokenCount": USAGE["in"]}
        if last:
            candidate["finishReason"] = "STOP"
            usage |= {"candidatesTokenCount": USAGE["out"], "totalTokenCount": USAGE["in"] + USAGE["out"]}
        return {"candidates": [candidate], "usageMetadata": usage, "modelVersion": "gemini-x"}

    @classmethod
    def events(cls, words):
        for number, word in enumerate(words, 1):
            yield sse(cls.answer(word, last=number == len(words)))


COHERES_USAGE = {
    "billed_units": {"input_tokens": USAGE["in"], "output_tokens": USAGE["out"]},
    "tokens": {"input_tokens": USAGE["in"] + 60, "output_tokens": USAGE["out"] + 2},
}


class Cohere:
    """Cohere's second chat."""

    @staticmethod
    def headers(told):
        return {}

    @staticmethod
    def error(message):
        return {"message": message}

    @classmethod
    def answer(cls, text):
        message = {"role": "assistant", "content": [{"type": "text", "text": text}]}
        return {"id": "1", "finish_reason": "COMPLETE", "message": message, "usage": COHERES_USAGE}

    @classmethod
    def events(cls, words):
        yield sse({"type": "message-start", "id": "1", "delta": {"message": {"role": "assistant"}}}, "message-start")
        for word in words:
            delta = {"message": {"content": {"text": word}}}
            yield sse({"type": "content-delta", "index": 0, "delta": delta}, "content-delta")
        end = {"finish_reason": "COMPLETE", "usage": COHERES_USAGE}
        yield sse({"type": "message-end", "id": "1", "delta": end}, "message-end")


class Ollama:
    """Ollama's chat: lines of JSON, and no limits of its own, but a proxy in front of it may have some."""

    media_type = "application/x-ndjson"

    @staticmethod
    def headers(told):
        return {"retry-after": told["retry-after"]} if "retry-after" in told else {}

    @staticmethod
    def error(message):
        return {"error": message}

    @staticmethod
    def answer(text, *, done=True):
        message = {"role": "assistant", "content": text}
        said = {"model": "llama", "created_at": "2026-01-01T00:00:00Z", "message": message, "done": done}
        return said | ({"prompt_eval_count": USAGE["in"], "eval_count": USAGE["out"]} if done else {})

    @classmethod
    def events(cls, words):
        for number, word in enumerate(words, 1):
            yield json.dumps(cls.answer(word, done=number == len(words))) + "\n"


ENDPOINTS = {"/messages": Anthropic, "enerateContent": Gemini, "/v2/chat": Cohere, "/api/chat": Ollama}


@contextlib.contextmanager
def service(rate="3000/min burst 60"):
    """A server over real sockets, with this limit of requests."""
    server = serve(Simulation(requests=rate, output_tokens=5))
    server._app = Dialects(server._app)
    with warnings.catch_warnings(), server:
        yield server
