"""What an OpenAI-compatible service says: bodies of answers and errors, and what a request costs.

Pure functions of the request's body; what is random in an answer comes in as a `Random`. Which requests are admitted,
and when, is decided elsewhere.
"""

from __future__ import annotations

import base64
import hashlib
import math
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from random import Random
from typing import Any

from penstock.simulator._structured import Form, form_of

CHAT = "/v1/chat/completions"
RESPONSES = "/v1/responses"
COMPLETIONS = "/v1/completions"
EMBEDDINGS = "/v1/embeddings"
MODERATIONS = "/v1/moderations"

Body = Mapping[str, Any]

_FILLER = (
    " This answer is simulated: after the fingerprint of the question come these words, as many as were asked for."
)
_RATE_LIMITS_PAGE = "https://platform.openai.com/account/rate-limits"


# What a client can check ----------------------------------------------------------------------------------------------


def fingerprint(text: str) -> str:
    """The first 16 hex digits of the SHA-256 of `text`: every answer begins with that of the text it answers.

    That text is the content of the last message with role `user` (of several parts: their texts, joined without
    anything between), the `input` of a response, or the prompt of a completion.
    """
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def embedding_of(text: str, dimensions: int = 8) -> list[float]:
    """The embedding of `text`: a vector of length 1 that depends on nothing else. Its numbers are float32 exactly."""
    random = Random(fingerprint(text))
    vector = [random.gauss(0.0, 1.0) for _ in range(dimensions)]
    length = math.hypot(*vector) or 1.0
    return list(struct.unpack(f"<{dimensions}f", struct.pack(f"<{dimensions}f", *(x / length for x in vector))))


# What a request costs -------------------------------------------------------------------------------------------------


def charge(path: str, body: Body) -> int:
    """Tokens that admission takes, as OpenAI's has since March 2025: input only, about a quarter of its bytes.

    `ceil(bytes / 4) + 4`, where bytes is the UTF-8 length of all text content: that of messages and of their parts,
    `instructions`, and what tools were called with and gave back; `ceil(bytes / 4)` for embeddings. A token given as a
    number counts as 4 bytes, an image as 765 tokens. Names, roles, tools on offer and formats are free.
    """
    size = sum(_bytes(text) for text in _texts(path, body))
    kinds = [part.get("type") for part in _parts(path, body)]  # anything at all, also what no set can hold
    images = kinds.count("image_url") + kinds.count("input_image")
    return -(-size // 4) + 765 * images + (4 if path in {CHAT, RESPONSES, COMPLETIONS} else 0)


def count_tokens(text: str) -> int:
    """About as many tokens as a tokenizer would find: UTF-8 bytes / 4, rounded up."""
    return -(-_bytes(text) // 4)


def _bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def _texts(path: str, body: Body) -> Iterator[str]:
    """All text content of a body, which may be wrong in any way: what is not text is passed over."""
    if path in {COMPLETIONS, EMBEDDINGS, MODERATIONS}:
        for entry in _inputs(body.get("prompt" if path == COMPLETIONS else "input")):
            yield entry if isinstance(entry, str) else "0000" * len(entry)
        return
    if path == RESPONSES:
        yield from (text for text in (body.get("instructions"), body.get("input")) if isinstance(text, str))
    for part in _parts(path, body):
        words = (part.get(key) for key in ("content", "text", "refusal", "arguments", "output"))
        yield from (text for text in words if isinstance(text, str))


def _parts(path: str, body: Body) -> Iterator[dict[str, Any]]:
    """Everything that may hold content: messages or items, their parts, and calls of tools."""
    for item in _list(body.get("messages" if path == CHAT else "input")):
        if isinstance(item, dict):
            yield item
            inner = [*_list(item.get("content")), *_list(item.get("output"))]
            inner += [call.get("function") for call in _list(item.get("tool_calls")) if isinstance(call, dict)]
            yield from (part for part in inner if isinstance(part, dict))


def _list(value: object) -> Sequence[Any]:
    return value if isinstance(value, list) else ()


def _inputs(value: object) -> list[str | list[int]]:
    """The entries of `input` or `prompt`: a text, texts, tokens, or lists of tokens."""
    if isinstance(value, str):
        return [value]
    entries = _list(value)
    if _is_tokens(entries):
        return [list(entries)]
    return [each for each in entries if isinstance(each, str) or _is_tokens(each)]


def _is_tokens(value: object) -> bool:
    """Whether it is a text that came as numbers."""
    return isinstance(value, list) and bool(value) and all(type(each) is int for each in value)


def _as_text(entry: str | list[int]) -> str:
    return entry if isinstance(entry, str) else " ".join(map(str, entry))


def question(path: str, body: Body) -> str:
    """The text that the answer to a valid request belongs to; see `fingerprint`. Tokens are joined by spaces."""
    if path == COMPLETIONS:
        return _as_text((_inputs(body.get("prompt")) or [""])[0])
    if path == RESPONSES and isinstance(body.get("input"), str):
        return str(body["input"])
    messages = body["messages" if path == CHAT else "input"]
    asked = [m for m in messages if m.get("role") == "user"] or messages
    content = asked[-1].get("content")
    parts = [part.get("text") for part in _list(content) if isinstance(part, dict)]
    return content if isinstance(content, str) else "".join(text for text in parts if isinstance(text, str))


# Answers --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer that is about to be given.

    Attributes:
        path: The endpoint.
        body: The body of the request.
        text: Its text.
        prompt_tokens: For `usage`.
        output_tokens: For `usage`.
        cut: Whether the request asked for fewer tokens than there would have been.
        identity: Random hex digits for the ids.
        created: Seconds since 1970.
        form: What it was asked to be, where it is JSON.
    """

    path: str
    body: Body
    text: str
    prompt_tokens: int
    output_tokens: int
    cut: bool
    identity: str
    created: int
    form: Form | None = None

    @property
    def model(self) -> str:
        return str(self.body.get("model"))

    @property
    def spoken(self) -> int:
        """Tokens of output in all of its choices."""
        return self.output_tokens * (1 if self.path == RESPONSES else _choices(self))

    @property
    def tool(self) -> str:
        """The tool that it is a call of; "": it is text."""
        return "" if self.form is None else self.form.tool

    def pieces(self) -> list[str]:
        """The text in the pieces in which a stream brings it: the fingerprint first, then word by word.

        JSON by 16 characters.
        """
        if self.form is not None:
            return [self.text[at : at + 16] for at in range(0, len(self.text), 16)]
        words = self.text[16:].split(" ")
        return [self.text[:16], *(f" {word}" for word in words[1:])]


def prompt_tokens(path: str, body: Body, count: Callable[[str], int]) -> int:
    """Tokens of the input, for `usage`: those of the texts, 3 more per message and 3 for the reply."""
    tokens = sum(count(text) for text in _texts(path, body))
    if path == CHAT:
        return tokens + 3 * len(_list(body.get("messages"))) + 3
    if path == RESPONSES:
        return tokens + 3 * max(1, len(_list(body.get("input")))) + 3
    return tokens


def answer(path: str, body: Body, *, tokens: int, count: Callable[[str], int], random: Random, created: int) -> Answer:
    """The answer to a valid request that asked for text, `tokens` long unless the request wants less."""
    asked = _wanted(body, tokens)
    form, begin = (None if path == COMPLETIONS else form_of(body)), fingerprint(question(path, body))
    if form is not None:  # as long as it must be, unless the request wants less: then it is cut, as a model would be
        whole = form.text(begin)
        tokens, asked = count(whole), _wanted(body, count(whole))
        text = whole[: 4 * asked] if asked < tokens else whole
    else:
        length = max(16, 4 * min(tokens, asked))
        text = (begin + "".join(islice(cycle(_FILLER), length - 16)))[:length].rstrip()
    return Answer(
        path,
        body,
        text,
        prompt_tokens(path, body, count),
        min(count(text), asked),
        asked < tokens,
        f"{random.getrandbits(128):032x}",
        created,
        form,
    )


def _wanted(body: Body, otherwise: int) -> int:
    """The most tokens that a request wants."""
    names = ("max_completion_tokens", "max_output_tokens", "max_tokens")
    return next((int(body[name]) for name in names if body.get(name)), otherwise)


def render(reply: Answer) -> dict[str, Any]:
    """The whole body of an answer."""
    if reply.path == CHAT:
        return _chat(reply)
    return response_of(reply, "completed", text=reply.text) if reply.path == RESPONSES else _completion(reply)


def _chat(reply: Answer) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": reply.text, "refusal": None, "annotations": []}
    if reply.tool:
        message |= {"content": None, **call_of(reply)}
    return {
        "id": f"chatcmpl-{reply.identity}",
        "object": "chat.completion",
        "created": reply.created,
        "model": reply.model,
        "choices": [
            {"index": i, "message": message, "logprobs": None, "finish_reason": _finish(reply)}
            for i in range(_choices(reply))
        ],
        "usage": _usage(reply),
        "service_tier": "default",
        "system_fingerprint": None,
    }


def call_of(reply: Answer, arguments: str | None = None) -> dict[str, Any]:
    """The call of a tool, in a message or in a piece of one."""
    function = {"name": reply.tool, "arguments": reply.text if arguments is None else arguments}
    if "functions" in reply.body:
        return {"function_call": function}
    return {"tool_calls": [{"id": f"call_{reply.identity[:24]}", "type": "function", "function": function}]}


def _completion(reply: Answer) -> dict[str, Any]:
    more = _inputs(reply.body.get("prompt"))[1:]
    texts = [reply.text, *(fingerprint(_as_text(entry)) + reply.text[16:] for entry in more)]
    return {
        "id": f"cmpl-{reply.identity}",
        "object": "text_completion",
        "created": reply.created,
        "model": reply.model,
        "choices": [
            {"index": i, "text": text, "logprobs": None, "finish_reason": _finish(reply)}
            for i, text in enumerate(text for text in texts for _ in range(_choices(reply)))
        ],
        "usage": _usage(reply, choices=len(texts) * _choices(reply)),
    }


def _choices(reply: Answer) -> int:
    return int(reply.body.get("n") or 1)


def _finish(reply: Answer) -> str:
    if reply.cut:
        return "length"
    return ("function_call" if "functions" in reply.body else "tool_calls") if reply.tool else "stop"


def _usage(reply: Answer, choices: int | None = None) -> dict[str, Any]:
    output = reply.output_tokens * (choices or _choices(reply))
    usage: dict[str, Any] = {
        "prompt_tokens": reply.prompt_tokens,
        "completion_tokens": output,
        "total_tokens": reply.prompt_tokens + output,
    }
    if reply.path == CHAT:
        usage["prompt_tokens_details"] = {"cached_tokens": 0, "audio_tokens": 0}
        usage["completion_tokens_details"] = {
            "reasoning_tokens": 0,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        }
    return usage


def item_of(reply: Answer, status: str, text: str | None) -> dict[str, Any]:
    """The only item of a response's output; with text None: as it begins."""
    if reply.tool:
        return {
            "id": f"fc_{reply.identity}",
            "type": "function_call",
            "status": status,
            "call_id": f"call_{reply.identity[:24]}",
            "name": reply.tool,
            "arguments": text or "",
        }
    content = [] if text is None else [part_of(text)]
    return {
        "id": f"msg_{reply.identity}",
        "type": "message",
        "status": status,
        "role": "assistant",
        "content": content,
    }


def part_of(text: str) -> dict[str, Any]:
    """A part of an item that is text."""
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def response_of(reply: Answer, status: str, text: str | None) -> dict[str, Any]:
    """A response; with text None: as it begins."""
    body = reply.body
    done = text is not None
    if done and reply.cut:
        status = "incomplete"
    return {
        "id": f"resp_{reply.identity}",
        "object": "response",
        "created_at": reply.created,
        "status": status,
        "background": False,
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"} if done and reply.cut else None,
        "instructions": body.get("instructions"),
        "max_output_tokens": body.get("max_output_tokens"),
        "model": reply.model,
        "output": [item_of(reply, status, text)] if done else [],
        "parallel_tool_calls": True,
        "previous_response_id": body.get("previous_response_id"),
        "reasoning": {"effort": None, "summary": None},
        "service_tier": "default",
        "store": body.get("store", True),
        "temperature": body.get("temperature", 1.0),
        "text": body.get("text") or {"format": {"type": "text"}},
        "tool_choice": body.get("tool_choice") or "auto",
        "tools": body.get("tools") or [],
        "top_p": body.get("top_p", 1.0),
        "truncation": "disabled",
        "usage": {
            "input_tokens": reply.prompt_tokens,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": reply.output_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": reply.prompt_tokens + reply.output_tokens,
        }
        if done
        else None,
        "user": body.get("user"),
        "metadata": body.get("metadata") or {},
    }


def embeddings(body: Body, *, dimensions: int, count: Callable[[str], int], shuffle: Random | None) -> dict[str, Any]:
    """The body of an answer with embeddings; in any order if there is something to `shuffle` with."""
    entries = _inputs(body.get("input"))
    size = body.get("dimensions") or dimensions
    data = []
    for index, entry in enumerate(entries):
        vector = embedding_of(_as_text(entry), size)
        coded: object = vector
        if body.get("encoding_format") == "base64":
            coded = base64.b64encode(struct.pack(f"<{size}f", *vector)).decode()
        data.append({"object": "embedding", "index": index, "embedding": coded})
    if shuffle is not None:
        shuffle.shuffle(data)
    tokens = prompt_tokens(EMBEDDINGS, body, count)
    return {
        "object": "list",
        "data": data,
        "model": body.get("model"),
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }


# Errors ---------------------------------------------------------------------------------------------------------------

Error = dict[str, dict[str, Any]]


def error(message: str, kind: str, code: str | None = None, param: str | None = None) -> Error:
    """The body of an error."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def invalid(message: str, code: str | None = None, param: str | None = None) -> Error:
    """The body of a 400, 401 or 404: the request is wrong."""
    return error(message, "invalid_request_error", code, param)


def measure(unit: str, per: float) -> str:
    """A limit's name in messages: `tokens per min (TPM)`."""
    word, letter = {60.0: ("min", "M"), 3600.0: ("hour", "H"), 86400.0: ("day", "D")}.get(per, (f"{per:g} s", ""))
    initials = "".join(name[0] for name in unit.split("_")).upper()
    return f"{unit.replace('_', ' ')} per {word}" + (f" ({initials}P{letter})" if letter else "")


def rate_limited(
    model: str, organization: str, unit: str, per: float, *, limit: float, used: int, requested: int, wait: str
) -> Error:
    """A refusal that a wait mends."""
    return error(
        f"Rate limit reached for {model} in organization {organization} on {measure(unit, per)}: Limit {limit:.0f}, "
        f"Used {used}, Requested {requested}. Please try again in {wait}. Visit {_RATE_LIMITS_PAGE} to learn more.",
        unit,
        "rate_limit_exceeded",
    )


def too_large(model: str, organization: str, unit: str, per: float, *, limit: float, requested: int) -> Error:
    """A refusal that no wait mends, though its code is the same."""
    return error(
        f"Request too large for {model} in organization {organization} on {measure(unit, per)}: Limit {limit:.0f}, "
        f"Requested {requested}. The input or output tokens must be reduced in order to run successfully. "
        f"Visit {_RATE_LIMITS_PAGE} to learn more.",
        unit,
        "rate_limit_exceeded",
    )


def too_many_at_once(model: str, organization: str, most: int) -> Error:
    """A refusal that is over as soon as one of the others is answered, as services with such a limit say it."""
    return error(
        f"Too many concurrent requests for {model} in organization {organization}: Limit {most} concurrent requests.",
        "requests",
        "rate_limit_exceeded",
    )


def insufficient_quota() -> Error:
    """The account has nothing left to spend."""
    return error(
        "You exceeded your current quota, please check your plan and billing details. For more information on this "
        "error, read the docs: https://platform.openai.com/docs/guides/error-codes/api-errors.",
        "insufficient_quota",
        "insufficient_quota",
    )


def slow_down() -> Error:
    """The rate rose faster than the service can follow."""
    return error(
        "Slow down: a sudden increase in your request rate is impacting service reliability. "
        "Please reduce your request rate to its original level, "
        "maintain a consistent rate for at least 15 minutes, and then gradually increase it.",
        "requests",
        "slow_down",
    )


def overloaded() -> Error:
    """The service has too much to do."""
    return error(
        "Our servers are currently overloaded. Please try again later.",
        "service_unavailable_error",
        "server_is_overloaded",
    )


def server_error() -> Error:
    """The service failed."""
    return error("The server had an error while processing your request. Sorry about that!", "server_error")


_MOST = {"n": 128, "dimensions": 4096}
"""The most of what a request asks for: by what it asks, not by its own length, an answer could be of any size."""


def fault_in(path: str, body: Body) -> Error | None:
    """What is wrong with a body that is a JSON object; None if nothing is that a simulator cares for."""
    if not isinstance(body.get("model"), str) or not body["model"]:
        return invalid("you must provide a model parameter")
    key = {CHAT: "messages", COMPLETIONS: "prompt"}.get(path, "input")
    given = body.get(key)
    if given is None:
        return invalid(f"Missing required parameter: '{key}'.", "missing_required_parameter", key)
    if path == CHAT or (path == RESPONSES and not isinstance(given, str)):
        if not isinstance(given, list) or not all(isinstance(each, dict) for each in given):
            wanted = "an array of objects" if path == CHAT else "a string or an array of objects"
            return invalid(f"Invalid type for '{key}': expected {wanted}.", "invalid_type", key)
        for index, each in enumerate(given):
            if not isinstance(each.get("content"), str | list | None):
                place = f"{key}[{index}].content"
                return invalid(f"Invalid type for '{place}': expected a string or an array.", "invalid_type", place)
    elif len(_inputs(given)) != (len(given) if _is_list_of_entries(given) else 1):
        return invalid(f"Invalid type for '{key}': expected a string or an array.", "invalid_type", key)
    if not given:
        return invalid(f"Invalid '{key}': it must not be empty.", f"empty_{'array' if given == [] else 'string'}", key)
    if path == EMBEDDINGS and len(_inputs(given)) > 2048:
        return invalid(f"Invalid 'input': at most 2048 entries, not {len(given)}.", "array_above_max_length", "input")
    for name in ("max_tokens", "max_completion_tokens", "max_output_tokens", "n", "dimensions"):
        number = body.get(name)
        if number is not None and (isinstance(number, bool) or not isinstance(number, int) or number < 1):
            return invalid(f"Invalid '{name}': expected a whole number of at least 1.", "invalid_value", name)
        if number is not None and number > _MOST.get(name, number):
            return invalid(f"Invalid '{name}': expected at most {_MOST[name]}.", "integer_above_max_value", name)
    if not isinstance(body.get("stream"), bool | None):
        return invalid("Invalid type for 'stream': expected a boolean.", "invalid_type", "stream")
    options = body.get("stream_options")
    if options is not None and not isinstance(options, dict):
        return invalid("Invalid type for 'stream_options': expected an object.", "invalid_type", "stream_options")
    return None


def too_long(path: str, body: Body, count: Callable[[str], int], most: int) -> Error | None:
    """The refusal of a prompt longer than the model's context; None if it fits."""
    tokens = prompt_tokens(path, body, count)
    if tokens <= most:
        return None
    return invalid(
        f"This model's maximum context length is {most} tokens. However, your messages resulted in {tokens} tokens. "
        "Please reduce the length of the messages.",
        "context_length_exceeded",
        "messages" if path == CHAT else "input",
    )


def _is_list_of_entries(given: object) -> bool:
    return isinstance(given, list) and not _is_tokens(given)
