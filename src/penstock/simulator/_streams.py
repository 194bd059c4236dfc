"""Answers as streams: the events in which an OpenAI-compatible service says them. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from penstock.simulator import _replies


def events(reply: _replies.Answer) -> Iterator[tuple[str, int]]:
    """The events of an answer as a stream: (text as it goes over the wire, tokens of output that it brings)."""
    return _response_events(reply) if reply.path == _replies.RESPONSES else _chunk_events(reply)


def _chunk_events(reply: _replies.Answer) -> Iterator[tuple[str, int]]:
    whole = _replies.render(reply)
    with_usage = bool((reply.body.get("stream_options") or {}).get("include_usage"))
    chat = reply.path == _replies.CHAT
    head = {k: whole[k] for k in ("id", "object", "created", "model", "system_fingerprint") if k in whole}
    head["object"] = "chat.completion.chunk" if chat else "text_completion"
    count = len(whole["choices"])

    def chunk(choices: list[dict[str, Any]], usage: object = None) -> str:
        return _data(head | {"choices": choices} | ({"usage": usage} if with_usage else {}))

    def choice(index: int, delta: dict[str, Any], finish: str | None = None) -> list[dict[str, Any]]:
        if chat:
            return [{"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}]
        return [{"index": index, "text": delta.get("content", ""), "logprobs": None, "finish_reason": finish}]

    if chat:
        for index in range(count):
            yield chunk(choice(index, {"role": "assistant", "content": "", "refusal": None})), 0
    pieces = reply.pieces()
    for index in range(count):
        if reply.tool:
            yield chunk(choice(index, _called(reply, "", begins=True))), 0
        first = pieces[0] if chat else whole["choices"][index]["text"][:16]
        for piece in (first, *pieces[1:]):
            delta = _called(reply, piece) if reply.tool else {"content": piece}
            yield chunk(choice(index, delta)), _replies.count_tokens(piece)
    for index in range(count):
        yield chunk(choice(index, {}, whole["choices"][index]["finish_reason"])), 0
    if with_usage:
        yield chunk([], whole["usage"]), 0
    yield "data: [DONE]\n\n", 0


def _called(reply: _replies.Answer, arguments: str, *, begins: bool = False) -> dict[str, Any]:
    """A piece of a call of a tool; only the one with which it begins names the tool."""
    call = _replies.call_of(reply, arguments)
    if "function_call" in call:
        return call if begins else {"function_call": {"arguments": arguments}}
    (whole,) = call["tool_calls"]
    return {"tool_calls": [{"index": 0, **(whole if begins else {"function": {"arguments": arguments}})}]}


def _response_events(reply: _replies.Answer) -> Iterator[tuple[str, int]]:
    number = -1

    def event(kind: str, **more: object) -> str:
        nonlocal number
        number += 1
        return f"event: {kind}\n" + _data({"type": kind, "sequence_number": number, **more})

    place = {"item_id": f"msg_{reply.identity}", "output_index": 0, "content_index": 0}
    whole = _replies.render(reply)
    yield event("response.created", response=_replies.response_of(reply, "in_progress", None)), 0
    yield event("response.in_progress", response=_replies.response_of(reply, "in_progress", None)), 0
    yield event("response.output_item.added", output_index=0, item=_replies.item_of(reply, "in_progress", None)), 0
    if reply.tool:
        place = {"item_id": f"fc_{reply.identity}", "output_index": 0}
        for piece in reply.pieces():
            told = event("response.function_call_arguments.delta", **place, delta=piece)
            yield told, _replies.count_tokens(piece)
        yield event("response.function_call_arguments.done", **place, name=reply.tool, arguments=reply.text), 0
        yield event("response.output_item.done", output_index=0, item=whole["output"][0]), 0
        yield event(f"response.{whole['status']}", response=whole), 0
        return
    yield event("response.content_part.added", **place, part=_replies.part_of("")), 0
    for piece in reply.pieces():
        yield event("response.output_text.delta", **place, delta=piece, logprobs=[]), _replies.count_tokens(piece)
    yield event("response.output_text.done", **place, text=reply.text, logprobs=[]), 0
    yield event("response.content_part.done", **place, part=_replies.part_of(reply.text)), 0
    yield event("response.output_item.done", output_index=0, item=whole["output"][0]), 0
    yield event(f"response.{whole['status']}", response=whole), 0


def broken_stream_event(path: str, number: int) -> str:
    """The error event that ends a stream which began well, as its event `number`."""
    body = _replies.server_error()["error"]
    if path == _replies.RESPONSES:  # the one event whose error stands beside its type, not below it
        flat: dict[str, Any] = {"type": "error", "code": "server_error", "message": body["message"], "param": None}
        return "event: error\n" + _data({**flat, "sequence_number": number})
    return _data({"error": body})


def _data(value: object) -> str:
    return f"data: {json.dumps(value, separators=(',', ':'))}\n\n"
