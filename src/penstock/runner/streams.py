"""One answer out of a stream of events, for rows that ask for a stream and services that have nothing else.

Pure: the whole body of a stream in, the JSON of the answer out, as the service would have sent it without `"stream":
true`. It knows the streams of OpenAI's endpoints (chat, completions, responses) and of Anthropic's messages, by what
is in them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from penstock.runner.source import dump_json, load_finite_json, load_json

__all__ = ["StreamError", "assemble", "is_stream"]

_BEGINNINGS = (b"data:", b"event:", b":", b"id:", b"retry:")

_ENDS = frozenset({"response.completed", "response.incomplete", "response.failed"})

_JOINED = frozenset({"content", "refusal", "reasoning", "reasoning_content", "arguments", "text", "transcript", "data"})
"""Fields whose pieces are parts of one text; of all others the last piece counts."""


class StreamError(Exception):
    """There is no whole answer in a stream.

    Attributes:
        error: What the service says about it, as it says it; None: it ended too early.
    """

    def __init__(self, error: Any = None) -> None:
        super().__init__("the stream ended before its last event")
        self.error = error


def is_stream(content: bytes) -> bool:
    """Whether a body is a stream of events: no JSON begins like one."""
    return content.startswith(_BEGINNINGS)


def assemble(content: bytes) -> bytes:
    """The answer that a stream tells piece by piece; null for a number in it that JSON does not have.

    Raises:
        StreamError: It holds an error, or ends too early.
        ValueError: It is no stream of JSON.
        RecursionError: It is nested too deeply.
    """
    try:
        return _assembled(content, load_json)
    except ValueError:
        return _assembled(content, load_finite_json)


def _assembled(content: bytes, load: Callable[[str], Any]) -> bytes:
    answer: dict[str, Any] = {}
    is_over = False
    for event in _events(content, load):
        if event is None:
            is_over = is_over or bool(answer)
            continue
        kind = event.get("type")
        if event.get("error") and kind not in _ENDS:
            raise StreamError(event["error"])
        if kind in _ENDS and isinstance(event.get("response"), dict):
            return dump_json(event["response"])
        if isinstance(kind, str) and ("message" in kind or "content_block" in kind):
            is_over = _add_message(answer, kind, event) or is_over
        elif isinstance(event.get("choices"), list):
            _add_chunk(answer, event)
    choices = answer.get("choices")
    is_over = is_over or bool(choices and all(each.get("finish_reason") for each in choices))
    if not is_over:
        raise StreamError
    return dump_json(answer)


def _events(content: bytes, load: Callable[[str], Any]) -> Iterator[dict[str, Any] | None]:
    """The objects of the events; None for `[DONE]`."""
    data: list[str] = []
    for line in [*content.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n").split("\n"), ""]:
        if line.startswith("data:"):
            data.append(line[5:].removeprefix(" "))
        elif not line and data:
            text, data = "\n".join(data), []
            if text.strip() == "[DONE]":
                yield None
            else:
                event = load(text)
                if isinstance(event, dict):
                    yield event


# OpenAI's chunks ------------------------------------------------------------------------------------------------------


def _add_chunk(answer: dict[str, Any], chunk: dict[str, Any]) -> None:
    choices = answer.setdefault("choices", [])
    for name, value in chunk.items():
        if name == "object":
            answer[name] = str(value).removesuffix(".chunk")
        elif name != "choices" and value is not None:
            answer[name] = value
    for piece in chunk["choices"]:
        if isinstance(piece, dict):
            _add_choice(_entry(choices, piece.get("index", 0)), piece)


def _add_choice(choice: dict[str, Any], piece: dict[str, Any]) -> None:
    for name, value in piece.items():
        if name == "delta" and isinstance(value, dict):
            _join(choice.setdefault("message", {}), value)
        elif name == "logprobs" and isinstance(value, dict):
            logprobs = choice.setdefault("logprobs", {}) or {}
            for key, values in value.items():
                logprobs[key] = (logprobs.get(key) or []) + values if isinstance(values, list) else values
            choice["logprobs"] = logprobs
        elif name == "text" and isinstance(value, str):
            choice["text"] = choice.get("text", "") + value
        elif value is not None or name not in choice:
            choice[name] = value


def _join(whole: dict[str, Any], piece: dict[str, Any]) -> None:
    """Add the fields of a piece: texts are joined, lists by the index of their entries."""
    for name, value in piece.items():
        before = whole.get(name)
        if isinstance(value, str) and isinstance(before, str) and name in _JOINED:
            whole[name] = before + value
        elif isinstance(value, dict):
            _join(whole.setdefault(name, {}) if isinstance(before, dict) or before is None else whole, value)
        elif isinstance(value, list) and value and all(isinstance(each, dict) and "index" in each for each in value):
            entries = whole.setdefault(name, [])
            for each in value:
                entry = _entry(entries, each["index"])
                _join(entry, {key: inside for key, inside in each.items() if key != "index"})
        elif value is not None or name not in whole:
            whole[name] = value


def _entry(entries: list[Any], index: Any) -> dict[str, Any]:
    """The entry of an index, made if it is not there."""
    for entry in entries:
        if entry.get("index") == index:
            found: dict[str, Any] = entry
            return found
    entries.append({"index": index})
    entries.sort(key=lambda each: each["index"] if isinstance(each["index"], int) else 0)
    return next(entry for entry in entries if entry["index"] == index)


# Anthropic's events ---------------------------------------------------------------------------------------------------


def _add_message(answer: dict[str, Any], kind: str, event: dict[str, Any]) -> bool:
    """Add an event of a message; whether it is the last."""
    if kind == "message_start" and isinstance(event.get("message"), dict):
        answer.update(event["message"])
        answer["content"] = []
    elif kind == "content_block_start" and isinstance(event.get("content_block"), dict):
        answer.setdefault("content", []).append({**event["content_block"]})
    elif kind == "content_block_delta" and isinstance(event.get("delta"), dict) and answer.get("content"):
        _add_delta(answer["content"][-1], event["delta"])
    elif kind == "content_block_stop" and answer.get("content"):
        block = answer["content"][-1]
        if "partial_json" in block:
            block["input"] = _read(block.pop("partial_json"))
    elif kind == "message_delta":
        answer.update({name: value for name, value in (event.get("delta") or {}).items() if value is not None})
        answer["usage"] = {**(answer.get("usage") or {}), **(event.get("usage") or {})}
    return kind == "message_stop"


def _read(text: str) -> Any:
    """A tool's input; as text if it is no JSON, as where the answer ended at its `max_tokens`."""
    try:
        return load_finite_json(text or "{}")
    except ValueError:
        return text


def _add_delta(block: dict[str, Any], delta: dict[str, Any]) -> None:
    for name, value in delta.items():
        if name != "type":
            block[name] = block.get(name, "") + value if isinstance(value, str) else value
