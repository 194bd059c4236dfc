"""Streams of endpoints that only one service has: Anthropic's messages, Gemini's content, Cohere's chat. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from penstock.simulator import _replies
from penstock.simulator._dialects import MESSAGES, STREAM, render_in


def events_in(path: str, reply: _replies.Answer) -> Iterator[tuple[str, int]]:
    """The events of an answer as a stream: (text as it goes over the wire, tokens of output that it brings)."""
    if path == MESSAGES:
        return _anthropics(render_in(path, reply), reply)
    return _geminis(reply) if path == STREAM else _coheres(render_in(path, reply), reply)


def broken_event_in(path: str, error: Mapping[str, Any]) -> str:
    """The error event that ends a stream which began well."""
    return _event("error", dict(error)) if path == MESSAGES else _event(None, dict(error))


def _anthropics(whole: dict[str, Any], reply: _replies.Answer) -> Iterator[tuple[str, int]]:
    (block,) = whole["content"]
    nothing: dict[str, Any] = {"input": {}} if reply.tool else {"text": ""}
    begins = whole | {"content": [], "stop_reason": None, "usage": whole["usage"] | {"output_tokens": 1}}
    yield _event("message_start", {"type": "message_start", "message": begins}), 0
    yield (
        _event("content_block_start", {"type": "content_block_start", "index": 0, "content_block": block | nothing}),
        0,
    )
    yield _event("ping", {"type": "ping"}), 0
    for piece in reply.pieces():
        text = {"type": "text_delta", "text": piece}
        delta = {"type": "input_json_delta", "partial_json": piece} if reply.tool else text
        told = {"type": "content_block_delta", "index": 0, "delta": delta}
        yield _event("content_block_delta", told), _replies.count_tokens(piece)
    yield _event("content_block_stop", {"type": "content_block_stop", "index": 0}), 0
    ends = {"stop_reason": whole["stop_reason"], "stop_sequence": None}
    usage = {"output_tokens": whole["usage"]["output_tokens"]}
    yield _event("message_delta", {"type": "message_delta", "delta": ends, "usage": usage}), 0
    yield _event("message_stop", {"type": "message_stop"}), 0


def _geminis(reply: _replies.Answer) -> Iterator[tuple[str, int]]:
    whole = render_in(STREAM, reply)
    (candidate,) = whole["candidates"]
    parts = [candidate["content"]["parts"][0]] if reply.tool else [{"text": piece} for piece in reply.pieces()]
    for number, part in enumerate(parts, 1):
        one: dict[str, Any] = {"content": {"parts": [part], "role": "model"}, "index": 0}
        usage = {"promptTokenCount": reply.prompt_tokens, "totalTokenCount": reply.prompt_tokens}
        if number == len(parts):
            one, usage = one | {"finishReason": candidate["finishReason"]}, whole["usageMetadata"]
        brings = reply.output_tokens if reply.tool else _replies.count_tokens(part["text"])
        yield _event(None, whole | {"candidates": [one], "usageMetadata": usage}), brings


def _coheres(whole: dict[str, Any], reply: _replies.Answer) -> Iterator[tuple[str, int]]:
    begins = {"id": whole["id"], "type": "message-start", "delta": {"message": {"role": "assistant", "content": []}}}
    yield _event("message-start", begins), 0
    kind = "tool-call" if reply.tool else "content"
    if reply.tool:
        (call,) = _replies.call_of(reply, "")["tool_calls"]
        first: dict[str, Any] = {"tool_calls": call}
    else:
        first = {"content": {"type": "text", "text": ""}}
    yield _event(f"{kind}-start", {"type": f"{kind}-start", "index": 0, "delta": {"message": first}}), 0
    for piece in reply.pieces():
        called = {"tool_calls": {"function": {"arguments": piece}}}
        delta = {"message": called if reply.tool else {"content": {"text": piece}}}
        yield (
            _event(f"{kind}-delta", {"type": f"{kind}-delta", "index": 0, "delta": delta}),
            _replies.count_tokens(piece),
        )
    yield _event(f"{kind}-end", {"type": f"{kind}-end", "index": 0}), 0
    ends = {"finish_reason": whole["finish_reason"], "usage": whole["usage"]}
    yield _event("message-end", {"id": whole["id"], "type": "message-end", "delta": ends}), 0


def _event(name: str | None, content: dict[str, Any]) -> str:
    data = json.dumps(content, separators=(",", ":"))
    return (f"event: {name}\n" if name else "") + f"data: {data}\n\n"
