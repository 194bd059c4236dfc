"""What an answer says was used, read while the answer passes through.

    Usage          tokens that went in and came out, whatever the service calls them
    UsageReader    finds it in an answer's bytes, in one piece or in events, without keeping the answer
    OutputEstimate how many tokens an answer is expected to have, before it is there

Pure, and bounded: of an answer of any length the beginning and the end are kept. Nothing in an answer makes it raise.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["OutputEstimate", "Usage", "UsageReader", "usage_in"]

_HEAD, _TAIL = 8_192, 32_768
"""Bytes kept of an answer's beginning (Anthropic tells its input there) and of its end, where all others tell."""

_OBJECT = re.compile(r'"(?:usage|usageMetadata|usage_metadata|meta)"\s{0,20}:\s{0,20}(?=\{)')
_OLLAMA = re.compile(r'"(prompt_eval_count|eval_count)"\s{0,20}:\s{0,20}(\d{1,15})(?!\d)')
_MOST_FOUND = 16
_MOST_TOKENS = 10**12

_INPUT = ("prompt_tokens", "input_tokens", "promptTokenCount", "inputTokens", "prompt_eval_count")
_OUTPUT = ("completion_tokens", "output_tokens", "candidatesTokenCount", "outputTokens", "eval_count")
_INPUT_BESIDE = ("cache_creation_input_tokens", "toolUsePromptTokenCount")  # which the first numbers do not hold
_TOTAL = ("total_tokens", "totalTokenCount", "totalTokens")


@dataclass(frozen=True, slots=True)
class Usage:
    """What an answer used, in tokens. None: it did not say.

    Attributes:
        input: Tokens that went in, without those that Anthropic read from its cache: they are not limited.
        output: Tokens that came out, thoughts included.
        total: Both.
        cached: Tokens that Anthropic read from its cache: they are paid for and not limited.
    """

    input: float | None = None
    output: float | None = None
    total: float | None = None
    cached: float = 0.0

    def as_units(self) -> dict[str, float]:
        """Input, output and, if there are any, cached tokens: as events have them."""
        units = {"input_tokens": self.input or 0.0, "output_tokens": self.output or 0.0}
        return {**units, "cached_tokens": self.cached} if self.cached else units


class UsageReader:
    """Reads what an answer used from its bytes as they come over the wire.

    Args:
        encoding: How they are compressed, as a header says it; "": they are not.
        decode: What makes the next bytes readable, of whatever encoding, in one piece or in several; None: gzip alone
            is known here.
    """

    def __init__(self, encoding: str = "", decode: Callable[[bytes], bytes | Iterable[bytes]] | None = None) -> None:
        self._head = bytearray()
        self._tail = bytearray()
        encoding = encoding.strip().lower()
        if decode is None and encoding in {"gzip", "x-gzip", "deflate"}:
            decode = zlib.decompressobj(47).decompress
        self._decode = decode
        self._readable = decode is not None or encoding in {"", "identity"}

    def feed(self, chunk: bytes) -> None:
        """Hear of a piece of the answer."""
        if not self._readable:
            return
        if self._decode is not None:
            try:
                pieces = self._decode(chunk)
                chunk = pieces if isinstance(pieces, bytes) else b"".join(pieces)
            except Exception:  # noqa: BLE001 - each encoding's library has an error of its own
                self._readable = False
                return
        if len(self._head) < _HEAD:
            self._head += chunk[: _HEAD - len(self._head)]
        self._tail += chunk[-_TAIL:]
        if len(self._tail) > 2 * _TAIL:
            del self._tail[:-_TAIL]

    def usage(self) -> Usage | None:
        """What was used; None: the answer did not say, or cannot be read."""
        if not self._readable:
            return None
        fields: dict[str, Any] = {}
        for part in (self._head, self._tail):
            fields.update(_fields_in(part.decode("utf-8", "replace")))
        return usage_in(fields)


def _fields_in(text: str) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    decoder = json.JSONDecoder()
    starts = [found.end() for found in _OBJECT.finditer(text)]
    for at in starts[:2] + starts[2:][-_MOST_FOUND:]:
        try:
            value, _ = decoder.raw_decode(text, at)
        except ValueError:  # cut off
            continue
        except RecursionError:  # nested without end, and so are those inside of it
            break
        inner = value.get("billed_units") or value.get("tokens")  # Cohere's
        fields.update(inner if isinstance(inner, dict) else value)
    fields.update((found[1], int(found[2])) for found in _OLLAMA.finditer(text))
    return fields


def usage_in(fields: Mapping[str, Any]) -> Usage | None:
    """What a `usage` of any service says; None: nothing."""
    into, out, total = (_first(fields, names) for names in (_INPUT, _OUTPUT, _TOTAL))
    if into is not None:
        beside = (_number(fields.get(name)) for name in _INPUT_BESIDE)
        into += sum(number or 0.0 for number in beside)
    thoughts = _number(fields.get("thoughtsTokenCount"))
    if thoughts is not None:  # an answer that ended while it thought has nothing else
        out = (out or 0.0) + thoughts
    if total is None and into is not None:
        total = into + (out or 0.0)
    if total is None and out is None:
        return None
    return Usage(into, out, total, _number(fields.get("cache_read_input_tokens")) or 0.0)


def _first(fields: Mapping[str, Any], names: tuple[str, ...]) -> float | None:
    return next((number for name in names if (number := _number(fields.get(name))) is not None), None)


def _number(value: Any) -> float | None:
    """A number of tokens; None for what is none, or more than any account has."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if 0 <= value <= _MOST_TOKENS else None


class OutputEstimate:
    """How many tokens the next answer will have: what the last ones had, and no more than was asked for at most."""

    FIRST = 500.0
    """Before the first answer."""

    def __init__(self) -> None:
        self._mean: float | None = None

    def of(self, most: float) -> float:
        """The estimate for a request that allows `most` tokens; 0 or less: it does not say."""
        expected = self.FIRST if self._mean is None else self._mean
        return min(expected, most) if most > 0 else expected

    def heard(self, output: float) -> None:
        """An answer had that many."""
        self._mean = output if self._mean is None else 0.9 * self._mean + 0.1 * output
