"""Answers that are JSON: of a schema that the request gives, or as a call of one of its tools. Pure.

Nothing is generated: the same schema and the same question give the same value. Every text in it that the schema leaves
free is the fingerprint of the question, so that a client can prove whose answer it is.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Body = Mapping[str, Any]

_DEEP = 4
"""Depth from which on all that may be left out is."""

_DEEPEST = 24
_MOST = 2_000
"""Values in an example: a schema may refer to itself, and may be of any size."""

_LONGEST = 4_096
"""Characters that a schema can ask a text to have."""

_TEXTS = {
    "date-time": "2026-01-01T00:00:00Z",
    "date": "2026-01-01",
    "time": "00:00:00Z",
    "duration": "PT1M",
    "email": "simulated@example.com",
    "hostname": "example.com",
    "ipv4": "127.0.0.1",
    "ipv6": "::1",
    "uri": "https://example.com/",
    "uuid": "00000000-0000-4000-8000-000000000000",
}


@dataclass(frozen=True, slots=True)
class Form:
    """What an answer shall be.

    Attributes:
        schema: JSON Schema of the value; empty: any object.
        tool: The tool that it is a call of; "": it is the text of the answer.
    """

    schema: Body
    tool: str = ""

    def text(self, fingerprint: str) -> str:
        """A value of that form, as JSON."""
        if not self.schema and not self.tool:
            return json.dumps({"answer": fingerprint})
        return json.dumps(_Example(self.schema, fingerprint).of(self.schema, 0), separators=(",", ":"))


def form_of(body: Body) -> Form | None:
    """The form that a request wants its answer in; None: text.

    Reads `response_format`, a response's `text.format`, and tools of which one must be called, in OpenAI's words and in
    Anthropic's; a tool that may be called is not.
    """
    called = _tool(body)
    if called is not None:
        return called
    places = (
        body.get("response_format"),
        _mapping(body.get("text")).get("format"),
        body.get("output_format"),  # Anthropic's
        _mapping(body.get("output_config")).get("format"),
    )
    wanted = next(filter(None, map(_mapping, places)), {})
    if wanted.get("type") == "json_object":
        return Form(_mapping(wanted.get("schema")))
    if wanted.get("type") != "json_schema":
        return None
    return Form(_mapping(_mapping(wanted.get("json_schema", wanted)).get("schema")))


def _tool(body: Body) -> Form | None:
    """The tool that must be called: the one that is named, or the first; None: none must."""
    choice = body.get("tool_choice", body.get("function_call"))
    named = _mapping(_mapping(choice).get("function", choice)).get("name")
    must = _mapping(choice).get("type", choice)
    if named is None and must not in ("required", "any", "REQUIRED"):
        return None
    offered = [each for key in ("tools", "functions") if isinstance(body.get(key), list) for each in body[key]]
    functions = (_mapping(_mapping(each).get("function", each)) for each in offered)
    fitting = (each for each in functions if isinstance(each.get("name"), str) and named in (None, each["name"]))
    tool = next(fitting, None)
    return None if tool is None else Form(_mapping(tool.get("parameters", tool.get("input_schema"))), tool["name"])


def _mapping(value: object) -> Body:
    return value if isinstance(value, dict) else {}


class _Example:
    """Makes a value of a schema."""

    def __init__(self, root: Body, text: str) -> None:
        self._root = root
        self._text = text
        self._left = _MOST

    def of(self, schema: object, depth: int) -> Any:
        """A value; where a schema has no end, or is none, it is null."""
        self._left -= 1
        schema = self._resolved(schema, depth)
        if schema is None or depth > _DEEPEST or self._left < 0:
            return None
        if "const" in schema:
            return schema["const"]
        values = schema.get("enum")
        if isinstance(values, list) and values:
            return values[0]
        return self._of_kind(_kind(schema), schema, depth)

    def _resolved(self, schema: object, depth: int) -> Body | None:
        """A schema with its references and alternatives followed; None: there is none."""
        for _ in range(_DEEPEST):
            if not isinstance(schema, dict):
                return None
            reference = schema.get("$ref")
            several = next((schema[key] for key in ("anyOf", "oneOf") if isinstance(schema.get(key), list)), None)
            every = schema.get("allOf")
            if isinstance(reference, str):
                schema = self._referred(reference)
            elif several:
                nothing = depth >= _DEEP  # a list of lists ends somewhere
                wanted = (each for each in several if (_mapping(each).get("type") == "null") is nothing)
                schema = next(wanted, several[0])
            elif isinstance(every, list) and every:
                rest = {key: value for key, value in schema.items() if key != "allOf"}
                schema = {key: value for part in (*map(_mapping, every), rest) for key, value in part.items()}
            else:
                return schema
        return None

    def _referred(self, reference: str) -> object:
        found: object = self._root
        for name in reference.removeprefix("#").split("/")[1:]:
            found = _mapping(found).get(name.replace("~1", "/").replace("~0", "~"))
        return found

    def _of_kind(self, kind: str, schema: Body, depth: int) -> Any:
        if kind == "object":
            required = schema.get("required")
            needed = required if isinstance(required, list) else []
            properties = _mapping(schema.get("properties"))
            # What is needed comes first, so that it is there even if there is more than an example can have.
            names = [name for name in properties if name in needed]
            names += [name for name in properties if name not in needed and depth < _DEEP]
            return {name: self.of(properties[name], depth + 1) for name in sorted(names, key=list(properties).index)}
        if kind == "array":
            least = _number(schema.get("minItems"), depth < _DEEP)
            entries = schema.get("prefixItems")
            first = [self.of(each, depth + 1) for each in entries] if isinstance(entries, list) else []
            return first or [self.of(schema.get("items", {}), depth + 1) for _ in range(int(min(max(least, 0), 100)))]
        if kind in {"integer", "number"}:
            return _amount(schema, whole=kind == "integer")
        if kind == "boolean":
            return True
        return None if kind == "null" else self._of_text(schema)

    def _of_text(self, schema: Body) -> str:
        form = schema.get("format")
        text = _TEXTS.get(form, self._text) if isinstance(form, str) else self._text
        least, most = _number(schema.get("minLength"), 0), _number(schema.get("maxLength"), _LONGEST)
        return text.ljust(int(min(least, _LONGEST)), "x")[: max(0, int(min(most, _LONGEST)))]


def _kind(schema: Body) -> str:
    kind = schema.get("type")
    if isinstance(kind, list):
        kind = next((each for each in kind if each != "null"), "null")
    if isinstance(kind, str):
        return kind.lower()  # Gemini writes OBJECT
    return "object" if "properties" in schema else "array" if "items" in schema else "string"


def _amount(schema: Body, *, whole: bool) -> float:
    """1, or the number next to it that the schema allows."""
    least, most = _number(schema.get("minimum"), -math.inf), _number(schema.get("maximum"), math.inf)
    above, below = _number(schema.get("exclusiveMinimum"), -math.inf), _number(schema.get("exclusiveMaximum"), math.inf)
    step = abs(_number(schema.get("multipleOf"), float(whole)))
    if step > 1e-200:  # what is finer leaves no number out
        lowest = max(
            math.ceil(least / step) if least > -math.inf else -math.inf,
            math.floor(above / step) + 1 if above > -math.inf else -math.inf,
        )
        highest = min(
            math.floor(most / step) if most < math.inf else math.inf,
            math.ceil(below / step) - 1 if below < math.inf else math.inf,
        )
        value = min(max(math.ceil(1 / step), lowest), highest) * step
    else:
        value = min(max(1.0, least), most)
        if value <= above:
            value = (above + min(most, below, above + 2)) / 2
        elif value >= below:
            value = (below + max(least, above, below - 2)) / 2
    return int(value) if value == int(value) else value


def _number(value: object, default: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 10**15:
        return default
    return float(value)
