"""What tools on offer, and formats of answers, cost in `usage`. At admission they are free.

Pure, but for the function that counts a text. OpenAI writes tools into the prompt in the way of TypeScript, and a
schema of the answer as it is. No service documents that; of 26 recorded requests with tools none is more than 2 off.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

__all__ = ["as_json", "calls_tokens", "offered_tokens"]

_NAMESPACE = 9
_SHARED_WITH_SYSTEM = 4
_A_CALL = 3
_DEEPEST = 12
_MOST = 10_000
"""Types that are written at most."""

_MOST_CHARACTERS = 200_000
"""Of a schema."""

_JSON = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False)

_PLAIN = {"string": "string", "integer": "number", "number": "number", "boolean": "boolean", "null": "null"}

Count = Callable[[str], int]


def offered_tokens(body: Mapping[str, Any], count: Count) -> int:
    """Tokens that a request's tools, functions, and format of the answer take."""
    tokens = 0
    functions = list(_functions(body))
    if functions:
        tokens += count(_Writer().rendered(functions)) + _NAMESPACE
        if _has_system(body.get("messages")):
            tokens -= _SHARED_WITH_SYSTEM
    for schema in _schemas(body):
        tokens += count(as_json(schema.get("schema")))
        for name in ("name", "description"):
            text = schema.get(name)
            tokens += count(text) if isinstance(text, str) else 0
    return max(0, tokens)


def calls_tokens(message: Mapping[str, Any], count: Count) -> int:
    """Tokens that calls of tools take in a message, beside what the tools were called with."""
    calls = message.get("tool_calls")
    tokens = 0
    for call in calls if isinstance(calls, list) else ():
        function = call.get("function") if isinstance(call, Mapping) else None
        name = function.get("name") if isinstance(function, Mapping) else None
        tokens += _A_CALL + (2 * count(name) if isinstance(name, str) else 0)
    return tokens


def _functions(body: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """What may be called, whatever a service calls it: (name, description, parameters) under OpenAI's names."""
    for key in ("tools", "functions"):
        offered = body.get(key)
        for tool in offered if isinstance(offered, list) else ():
            if not isinstance(tool, Mapping):
                continue
            declared = tool.get("functionDeclarations", tool.get("function_declarations"))  # Gemini's
            inner = tool.get("function")
            for one in declared if isinstance(declared, list) else (inner if isinstance(inner, Mapping) else tool,):
                if isinstance(one, Mapping) and isinstance(one.get("name"), str):
                    yield one


def _schemas(body: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The forms that the answer shall have."""
    form = body.get("response_format")
    if isinstance(form, Mapping):
        schema = form.get("json_schema", form)
        if isinstance(schema, Mapping) and "schema" in schema:
            yield schema
    text = body.get("text")
    form = text.get("format") if isinstance(text, Mapping) else None
    if isinstance(form, Mapping) and "schema" in form:
        yield form
    config = body.get("generationConfig")
    if isinstance(config, Mapping) and "responseSchema" in config:
        yield {"schema": config["responseSchema"]}


def _has_system(messages: Any) -> bool:
    return any(
        isinstance(each, Mapping) and each.get("role") in ("system", "developer")
        for each in (messages if isinstance(messages, list) else ())
    )


class _Writer:
    """Writes functions as TypeScript, up to `_MOST` types: a schema may be of any size."""

    def __init__(self) -> None:
        self._left = _MOST

    def rendered(self, functions: list[Mapping[str, Any]]) -> str:
        lines = ["namespace functions {", ""]
        for function in functions[:_MOST]:
            schema = function.get("parameters", function.get("input_schema"))
            about = function.get("description")
            if about and isinstance(about, str):
                lines.append(f"// {about}")
            inside = list(self._properties(schema, 0)) if isinstance(schema, Mapping) else []
            if inside:
                lines += [f"type {function['name']} = (_: {{", *inside, "}) => any;", ""]
            else:
                lines += [f"type {function['name']} = () => any;", ""]
        return "\n".join([*lines, "} // namespace functions"])

    def _properties(self, schema: Mapping[str, Any], depth: int) -> Iterator[str]:
        properties, required = schema.get("properties"), schema.get("required")
        needed = required if isinstance(required, list) else []
        for name, inner in properties.items() if isinstance(properties, Mapping) else ():
            if not isinstance(inner, Mapping):
                continue
            about = inner.get("description")
            if depth == 0 and about and isinstance(about, str):
                yield f"// {about}"
            yield f"{'  ' * depth}{name}{'' if name in needed else '?'}: {self._type(inner, depth)},"

    def _type(self, schema: Any, depth: int) -> str:
        self._left -= 1
        if not isinstance(schema, Mapping) or depth > _DEEPEST or self._left < 0:
            return "any"
        values, several = schema.get("enum"), schema.get("anyOf")
        if isinstance(values, list):
            return " | ".join(as_json(value) for value in values)
        if isinstance(several, list):
            return " | ".join(self._type(each, depth + 1) for each in several)
        kind = schema.get("type")
        if kind == "array":
            return f"{self._type(schema.get('items'), depth + 1)}[]"
        if kind == "object":
            return "\n".join(["{", *self._properties(schema, depth + 1), "}"])
        return _PLAIN.get(kind, "any") if isinstance(kind, str) else "any"


def as_json(value: Any, most: int = _MOST_CHARACTERS) -> str:
    """Write a value as services write it into a prompt, so many characters of it at most; empty if it is no JSON.

    What a value holds twice is written twice: one nested 60 deep may have no end.
    """
    left, chunks = most, []
    try:
        for chunk in _JSON.iterencode(value):
            left -= len(chunk)
            if left < 0:
                break
            chunks.append(chunk)
    except (TypeError, ValueError, RecursionError):  # not out of JSON, or nested without end
        return ""
    return "".join(chunks)
