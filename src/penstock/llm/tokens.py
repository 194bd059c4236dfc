"""What a request costs, estimated from its body before it is sent.

Pure but for tiktoken's rank files, which are read (or downloaded, once) at the first exact count, never at import.

Services charge a request when they admit it, by an estimate of their own, and the answer's `usage` says something else.
To stay under a limit it is the charge that matters. OpenAI's is, since March 2025, a quarter of the text's UTF-8 bytes
and a few tokens more; `by_bytes` is that rule, and the default. `by_tiktoken` counts what `usage.prompt_tokens` will
say. Both are plain functions of a path and a body, so a rule of your own is one too:

    def mine(path, body):                      # path: "/v1/chat/completions"; body: its JSON, or None if it has none
        return {"tokens": len(str(body))}      # None instead: this request is not limited

Neither tool schemas nor response formats are charged at admission, so `by_bytes` leaves them out; `usage` has them, and
so has `by_tiktoken`.
"""

from __future__ import annotations

import functools
import math
import re
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from penstock.llm.media import IMAGE_TOKENS, encoded_image, media_in
from penstock.llm.tool_tokens import as_json, calls_tokens, offered_tokens

__all__ = [
    "IMAGE_TOKENS",
    "Body",
    "Cost",
    "answers_with_tokens",
    "by_bytes",
    "by_tiktoken",
    "chat_tokens",
    "count",
    "generates",
    "most_output",
    "ranks_are_loaded",
    "with_output_added",
    "with_output_if_larger",
]

Body = Mapping[str, Any]
Cost = Callable[[str, Body | None], Mapping[str, float] | None]
"""Units per call, of a request's path and its JSON body; None: this request is not limited."""

_OVERHEAD = 4  # tokens beyond the text that are charged per request, where it is not embeddings


class _Encoding(Protocol):
    def encode_ordinary(self, text: str) -> list[int]: ...


def by_bytes(path: str, body: Body | None) -> dict[str, float]:
    """The service's own rule: `ceil(UTF-8 bytes of all text content / 4) + 4`; embeddings without the 4.

    `path` may be "" where only the body is known; then its keys tell what it is for.

    Against the true count it errs as the service errs: +11 % for prose and code, -6 % for Chinese, -50 % for digits.

    Returns:
        `requests`, always 1; `tokens`; and `images`, above 0 for requests that make images.
    """
    if _COUNTING.search(path):
        return _units(0, path, body)
    content = _content(body)
    size = sum(len(text.encode("utf-8", "surrogatepass")) for text in content.texts)
    tokens = math.ceil(size / 4) + content.ids + content.media
    if body and generates(path, body):
        tokens += _OVERHEAD
    return _units(tokens, path, body)


def with_output_added(path: str, body: Body | None) -> dict[str, float]:
    """The rule of OpenAI until March 2025, of Azure and of Bedrock: the input, and all the output that may come.

    That is `max_tokens` (16 where it is not given), for each of `n` answers.
    """
    cost = by_bytes(path, body)
    if body and answers_with_tokens(path, body):
        cost["tokens"] += _answers(body) * most_output(body, 16)
    return cost


def with_output_if_larger(path: str, body: Body | None) -> dict[str, float]:
    """The rule that OpenAI's documentation tells: the input, or the output that may come, whichever is more."""
    cost = by_bytes(path, body)
    cost["tokens"] = max(cost["tokens"], most_output(body or {}, 0))
    return cost


def most_output(body: Body, default: float) -> float:
    """The most tokens that an answer may have, as the request says; `default` where it does not."""
    given = [body.get(name) for name in ("max_completion_tokens", "max_output_tokens", "max_tokens")]
    for holder, names in _SETTINGS.items():
        inside = body.get(holder)
        given += [inside.get(name) for name in names] if isinstance(inside, Mapping) else []
    return next((_number(each, default) for each in given if each is not None), default)


_SETTINGS = {
    "generationConfig": ("maxOutputTokens",),  # Gemini's
    "generation_config": ("max_output_tokens",),
    "inferenceConfig": ("maxTokens",),  # Bedrock's
    "options": ("num_predict",),  # Ollama's
}


def _answers(body: Body) -> float:
    """How many answers a request asks for."""
    config = body.get("generationConfig")
    return _number(body.get("n", config.get("candidateCount") if isinstance(config, Mapping) else None), 1)


def _number(value: Any, default: float) -> float:
    """A number above 0, as far as a float can hold it; what is none is the default."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        return default
    return float(min(value, 10**18))


def by_tiktoken(path: str, body: Body | None) -> dict[str, float]:
    """The tokens that `usage` will say went in, by tiktoken.

    Exact for messages of text, a few off where there are tools.

    Without tiktoken, or without its rank files and a network to get them from, it counts bytes / 4 and warns once. The
    first call loads the ranks: up to half a second and 90 MB.

    Returns:
        `requests`, always 1; `tokens`; and `images`, above 0 for requests that make images.
    """
    if _COUNTING.search(path):
        return _units(0, path, body)
    model = str((body or {}).get("model") or "")
    content = _content(body, _family(model))
    if body and isinstance(body.get("messages"), list):
        tokens = chat_tokens(body["messages"], model)
        system = _content({"system": body["system"]}) if "system" in body else _Content()
        tokens += sum(count(text, model) for text in system.texts)
    else:
        tokens = sum(count(text, model) for text in content.texts) + content.ids
        if body and "prompt" not in body and generates(path, body):
            # instructions, and an input of bare text, are messages too: 3 each, 1 for the role, 3 for the reply
            bare = sum(isinstance(body.get(key), str) for key in ("instructions", "input"))
            tokens += 4 * (content.messages + bare) + 3
    offered = offered_tokens(body, lambda text: count(text, model)) if body else 0
    return _units(tokens + offered + content.media, path, body)


def count(text: str, model: str = "") -> int:
    """The tokens of a text. Markers such as `<|endoftext|>` in it are text like any other: it may be a user's.

    A long text is counted in pieces, so that other threads can run in between. Where it has words, the sum is exact;
    else it may be one or two more for every 4,096 characters.
    """
    encoding = _encoding(model)
    if model not in _loaded:
        _note_loaded(model)
    if encoding is None:
        return math.ceil(len(text.encode("utf-8", "surrogatepass")) / 4)
    total = 0
    for number, piece in enumerate(_pieces(text)):
        if number:
            time.sleep(0)  # lets another thread have the interpreter, which it would else wait 5 ms for
        total += len(encoding.encode_ordinary(piece))
    return total


_PIECE = 4_096  # characters, which are counted in half a millisecond; or items of a list
_BEFORE_A_WORD = re.compile(r" (?=[^\W\d_])")
"""Where every encoding begins a new token, whatever is before and after."""


def _pieces(text: str) -> Iterator[str]:
    begin = 0
    while len(text) - begin > _PIECE:
        end = begin + _PIECE
        cut = next(_BEFORE_A_WORD.finditer(text, end - 256, end), None)
        end = end if cut is None else cut.start()
        yield text[begin:end]
        begin = end
    yield text[begin:]


def chat_tokens(messages: Sequence[Any], model: str = "") -> int:
    """The prompt tokens of chat messages: 3 a message, 1 a name, 3 for the reply's beginning, and the text's own.

    Exact for every recorded plain request to gpt-3.5, 4, 4o and 4.1; the gpt-5 family takes one less.
    """
    tokens = 2 if _family(model).startswith("gpt-5") else 3
    content = _Content()
    for message in messages:
        if not isinstance(message, Mapping):
            continue
        tokens += 3
        for key in ("role", "name"):
            value = message.get(key)
            if isinstance(value, str):
                tokens += count(value, model) + (key == "name")
        _add([message], content)
        tokens += calls_tokens(message, lambda text: count(text, model))
    return tokens + sum(count(text, model) for text in content.texts)


_MOST_CHARACTERS = 20_000_000
"""Of a body: more than any model reads."""


@dataclass(slots=True)
class _Content:
    """What of a body is charged.

    Its texts, tokens of images, sounds and files, and tokens that came as numbers already. `left` are the characters
    that may still be looked at: Python's lists may hold one another many times over, or themselves.
    """

    model: str = ""
    texts: list[str] = field(default_factory=list)
    media: int = 0
    ids: int = 0
    messages: int = 0
    left: int = field(default_factory=lambda: _MOST_CHARACTERS)

    def add_json(self, value: Any) -> None:
        """Count a value that services write into the prompt as JSON."""
        if value is not None and self.left > 0:
            text = as_json(value, self.left // 10)  # writing a character takes ten times as long as reading one
            self.left -= 10 * len(text)
            self.texts.append(text)


def _content(body: Body | None, model: str = "") -> _Content:
    """All text content of a body.

    Chat `messages`, responses' `instructions` and `input`, `prompt`, embeddings' `input`; Anthropic's `system`;
    Gemini's `contents` and `systemInstruction`; Cohere's `message`, `preamble`, `chat_history` and `texts`; Bedrock's
    `inputText`; what is to be ranked or compared.
    """
    content = _Content(model)
    if not body:
        return content
    for key in _BODY_KEYS:
        value = body.get(key)
        if value is not None:
            _add(value, content)
    _add_images(body.get("images"), content)
    return content


def _add_images(images: Any, content: _Content) -> None:
    """Count a list of encoded images: Ollama's, in a message or beside a prompt, and Cohere's, to be embedded."""
    if isinstance(images, list):
        content.media += sum(encoded_image(each, content.model) for each in images if isinstance(each, str))


_BODY_KEYS = (
    "messages",
    "instructions",
    "input",
    "prompt",
    "system",
    "contents",
    "systemInstruction",
    "system_instruction",
    "preamble",
    "chat_history",
    "message",
    "texts",
    "inputs",
    "content",
    "requests",
    "query",
    "documents",
    "suffix",
    "inputText",
    "text_1",
    "text_2",
    "additional_instructions",
    "additional_messages",
)
_TEXT_KEYS = frozenset(("content", "text", "refusal", "output", "arguments", "parts", "message", "toolResult"))


def _add(value: Any, content: _Content) -> None:
    """Count whatever is in it, in order, however deeply it is nested: a body is a user's, and may be anything."""
    waiting, steps = [value], 0
    while waiting and content.left > 0:
        value, steps = waiting.pop(), steps + 1
        content.left -= _A_VALUE
        if not steps % _STEPS:
            time.sleep(0)  # lets another thread have the interpreter, if this is one beside an event loop
        if isinstance(value, str):
            content.left -= len(value)
            content.texts.append(value)
        elif isinstance(value, (dict, Mapping)):
            waiting.extend(reversed(_inside(value, content)))
        elif isinstance(value, list) and len(value) > _PIECE:
            waiting.extend(value[at : at + _PIECE] for at in reversed(range(0, len(value), _PIECE)))
        elif isinstance(value, list):
            ids = sum(type(item) is int for item in value)
            content.ids += ids
            waiting.extend(reversed(value) if not ids else [item for item in reversed(value) if type(item) is not int])


_A_VALUE = 20
"""Characters for which a value counts by itself: it takes about as long."""

_STEPS = 128
"""Values that are looked at in less than half a millisecond."""


def _inside(item: Mapping[str, Any], content: _Content) -> list[Any]:
    """What counts of a message, a part of one, or an item of a response's input."""
    media = media_in(item, content.model)
    if media is not None:
        content.messages += "role" in item
        content.media += media.tokens
        content.left -= 4 * media.tokens
        return [media.text]
    found: list[Any] = []
    for key, value in item.items():
        if key in _TEXT_KEYS:
            found.append(value)
        elif key == "role":
            content.messages += 1
        elif key == "images":
            _add_images(value, content)
        elif key == "tool_calls":
            found += _called(value, content)
        elif key == "function_call":
            found.append(value.get("arguments") if isinstance(value, Mapping) else None)
        elif key in _CALLS and isinstance(value, Mapping):
            content.add_json(value.get(_CALLS[key]))
        elif key == "json" or (key == "input" and item.get("type") == "tool_use"):
            content.add_json(value)
        elif key == "data" and isinstance(value, Mapping):  # a document of Cohere's
            found += [text for text in value.values() if isinstance(text, str)]
    return found


_CALLS = {"functionCall": "args", "functionResponse": "response", "toolUse": "input"}  # Gemini's, Bedrock's


def _called(calls: Any, content: _Content) -> list[Any]:
    """What tools were called with, as texts; what is none is counted at once."""
    found = []
    for call in calls if isinstance(calls, list) else ():
        for key, inner in (("function", "arguments"), ("custom", "input")):
            called = call.get(key) if isinstance(call, Mapping) else None
            text = called.get(inner) if isinstance(called, Mapping) else None
            if isinstance(text, (str, list)):
                found.append(text)
            else:
                content.add_json(text)
    return found


def generates(path: str, body: Body) -> bool:
    """Whether the text is a prompt or messages: that costs a few tokens more than an embedding or speech of it."""
    if path:
        return path.endswith(("/completions", "/responses"))
    return any(key in body for key in ("messages", "prompt", "instructions")) or (
        "input" in body and "embedding" not in str(body.get("model"))
    )


_ANSWERING = re.compile(
    r"(?:/completions|/responses|/messages|/chat|/generate|/converse|/converse-stream|/invoke"
    r"|/invoke-with-response-stream|:(?:generate|streamGenerate)Content|:(?:streamR|r)awPredict)/?$"
)
_COUNTING = re.compile(r"(?:/(?:tokenize|detokenize|count_tokens|input_tokens)|:(?:count|compute)Tokens)/?$")
"""Requests that only ask how many tokens a text has, which no service charges in tokens."""

_CONVERSATION = re.compile(r"/conversations(?:/[^/]+(?:/restart)?)?/?$")
"""Mistral's, which generates; OpenAI's of that name only keeps items."""

_READING = re.compile(
    r"(?:/(?:embed|embeddings|moderations|rerank|classify|tokenize|detokenize|count_tokens|input_tokens|ocr)"
    r"|:(?:count\w*|embed\w*|batch\w*)|/(?:images|audio|videos|files|batches)/[\w/]*)/?$"
)


def answers_with_tokens(path: str, body: Body) -> bool:
    """Whether an answer has tokens of output, of any service; "" as a path: the body's keys tell."""
    if "inputs" in body and _CONVERSATION.search(path):
        return True
    if not path or not _ANSWERING.search(path):
        return not _READING.search(path) and (generates("", body) or "contents" in body)
    return True


def _units(tokens: float, path: str, body: Body | None) -> dict[str, float]:
    images = 0.0
    if "/images/" in path:
        n = (body or {}).get("n")
        # What a float cannot hold is too many for any limit, so it need not be exact.
        images = float(min(n, 10**18)) if isinstance(n, int) and n > 0 else 1.0
    return {"requests": 1.0, "tokens": float(tokens), "images": images}


def _family(model: str) -> str:
    """The model below a fine-tuned one's name, or a gateway's.

    `ft:gpt-4o:org::id` is `gpt-4o`, and so is `openai/gpt-4o`.
    """
    return model.rpartition("/")[2].removeprefix("ft:").partition(":")[0]


def ranks_are_loaded(model: str) -> bool:
    """Whether texts for a model are counted without loading anything first."""
    return model in _loaded


_REMEMBERED = 256  # models
_loaded: set[str] = set()


def _note_loaded(model: str) -> None:
    if len(_loaded) >= _REMEMBERED:
        _loaded.clear()
    _loaded.add(model)


@functools.lru_cache(maxsize=_REMEMBERED)
def _encoding(model: str) -> _Encoding | None:
    """The encoding that tiktoken has for a model; o200k_base for unknown models; None where none can be loaded."""
    try:
        import tiktoken
    except ModuleNotFoundError:
        _warn("tiktoken is not installed; pip install 'penstock[openai]' brings it")
        return None
    try:
        name = tiktoken.encoding_name_for_model(_family(model))
    except KeyError:
        name = "o200k_base"
    try:
        encoding: _Encoding = tiktoken.get_encoding(name)
    except Exception as error:  # noqa: BLE001 - a network's or a file system's errors of every kind end here
        _warn(
            f"tiktoken could not load {name} ({type(error).__name__}: "
            f"{str(error)[:200]}); it downloads its rank files at first use: "
            "allow that once, or point TIKTOKEN_CACHE_DIR to a folder that has them"
        )
        return None
    return encoding


_warned: list[str] = []


def _warn(reason: str) -> None:
    if not _warned:  # the next model, and the next thousand requests, have the same reason
        _warned.append(reason)
        warnings.warn(f"counting tokens as bytes / 4: {reason}", RuntimeWarning, stacklevel=4)
