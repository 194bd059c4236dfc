"""What tools and formats take of `usage`, against recorded requests; and no schema breaks the count."""

from __future__ import annotations

import json
import time

import pytest

from penstock.llm import tokens
from penstock.llm.tool_tokens import offered_tokens
from tests.llm.test_tokens import CHAT, RECORDED, ranks  # noqa: F401 - a fixture

WITH_TOOLS = [row for row in RECORDED if row["body"].keys() & {"tools", "functions"}]
WITH_FORMAT = [row for row in RECORDED if "response_format" in row["body"] and row not in WITH_TOOLS]


def off(row):
    body = {**row["body"], "model": row["resolved_model"]}
    return abs(tokens.by_tiktoken(CHAT, body)["tokens"] - row["prompt_tokens"])


def test_of_26_recorded_requests_with_tools_none_is_more_than_two_off(ranks):  # noqa: F811
    assert len(WITH_TOOLS) == 26
    assert max(off(row) for row in WITH_TOOLS) <= 2


def test_a_format_of_the_answer_is_within_13_tokens(ranks):  # noqa: F811
    """What the service writes around a schema is not known; without the schema it would be up to 115 off."""
    assert len(WITH_FORMAT) == 9
    assert max(off(row) for row in WITH_FORMAT) <= 13


def test_at_admission_tools_and_formats_are_free():
    for row in WITH_TOOLS + WITH_FORMAT:
        body = {key: value for key, value in row["body"].items() if key in {"messages", "model"}}
        assert tokens.by_bytes(CHAT, row["body"]) == tokens.by_bytes(CHAT, body)


def nested(depth):
    schema = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema, "b": {"anyOf": [schema, {"items": schema}]}}}
    return schema


ODD = [None, True, 5, float("nan"), "text", "\ud800", [], [None], {}, {"type": []}, {"properties": 5}, {"properties": {5: 5}}, {"enum": {}},
       {"anyOf": [5] * 9}, {"items": []}, nested(60), nested(480)]  # fmt: skip


@pytest.mark.parametrize("odd", ODD, ids=range(len(ODD)))
def test_no_tool_and_no_format_breaks_the_count(odd):
    began = time.process_time()
    for body in (
        {"tools": odd},
        {"tools": [odd]},
        {"tools": [{"function": odd}]},
        {"functions": [{"name": "f", "parameters": odd, "description": odd}]},
        {"tools": [{"functionDeclarations": [{"name": "f", "parameters": odd}]}]},
        {"tools": [{"name": "f", "input_schema": odd}]},
        {"response_format": odd},
        {"response_format": {"json_schema": {"schema": odd, "name": odd}}},
        {"text": {"format": {"schema": odd}}},
        {"generationConfig": {"responseSchema": odd}, "messages": odd},
    ):
        assert offered_tokens(body, len) >= 0
    assert time.process_time() - began < 10


@pytest.mark.parametrize("body", [
    {"tools": [{"type": "function", "function": {"name": "ask", "parameters": {"type": "object", "properties": {"x": {"type": "string"}}}}}]},
    {"tools": [{"name": "ask", "input_schema": {"type": "object", "properties": {"x": {"type": "string"}}}}]},
    {"tools": [{"type": "function", "name": "ask", "parameters": {"type": "object", "properties": {"x": {"type": "string"}}}}]},
    {"tools": [{"functionDeclarations": [{"name": "ask", "parameters": {"type": "object", "properties": {"x": {"type": "string"}}}}]}]},
], ids=["openai", "anthropic", "responses", "gemini"])  # fmt: skip
def test_a_tool_costs_the_same_in_the_form_of_every_service(body):
    written = "namespace functions {\n\ntype ask = (_: {\nx?: string,\n}) => any;\n\n} // namespace functions"
    assert offered_tokens(body, len) == len(written) + 9
    assert json.dumps(body)
