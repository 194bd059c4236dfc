"""Answers in JSON parse, and are what their schema says, whatever the schema; calls of tools are what SDKs read."""

from __future__ import annotations

import json
import time
from enum import Enum
from typing import Literal

import openai
import pytest
from pydantic import BaseModel, Field

from penstock import simulator
from penstock.simulator import Simulation, fingerprint
from penstock.simulator._structured import Form
from tests.simulator.in_process import Client

QUESTION = [{"role": "user", "content": "hello"}]
HELLO = fingerprint("hello")


class Kind(Enum):
    """What a part is."""

    VALVE = "valve"
    PIPE = "pipe"


class Part(BaseModel):
    """One part of a penstock."""

    kind: Kind
    name: str = Field(min_length=20, max_length=30)
    length: float = Field(gt=2, lt=2.5)
    count: int = Field(ge=5, multiple_of=4)
    parts: list[Part] = []


class Penstock(BaseModel):
    """An answer with all that a schema has."""

    parts: list[Part] = Field(min_length=2)
    owner: str | None
    state: Literal["open", "shut"]
    pair: tuple[int, str]
    sealed: bool
    version: Literal[2]
    weight: float
    share: float = Field(lt=1)
    about: dict[str, str] = {}


@pytest.fixture(scope="module")
def server():
    with simulator.serve(Simulation(dialect="anthropic")) as running:
        yield running


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=server.base_url, api_key="k") as made:
        yield made


def test_an_sdk_parses_what_it_asked_for(client):
    reply = client.chat.completions.parse(model="m", messages=QUESTION, response_format=Penstock)
    parsed = reply.choices[0].message.parsed
    assert (len(parsed.parts), parsed.owner, parsed.parts[0].name[:16], parsed.parts[0].count) == (2, HELLO, HELLO, 8)
    parsed = client.responses.parse(model="m", input="hello", text_format=Penstock).output_parsed
    assert parsed.owner == HELLO


def test_json_of_any_form_is_an_object(client):
    reply = client.chat.completions.create(model="m", messages=QUESTION, response_format={"type": "json_object"})
    assert json.loads(reply.choices[0].message.content) == {"answer": HELLO}


TOOL = {"type": "function", "function": {"name": "open_valve", "parameters": Part.model_json_schema()}}


def test_a_tool_that_must_be_called_is(client):
    for choice in ("required", {"type": "function", "function": {"name": "open_valve"}}):
        reply = client.chat.completions.create(model="m", messages=QUESTION, tools=[TOOL], tool_choice=choice)
        (call,) = reply.choices[0].message.tool_calls
        assert (call.function.name, reply.choices[0].finish_reason) == ("open_valve", "tool_calls")
        Part.model_validate_json(call.function.arguments)
    unforced = {"tools": [TOOL]}, {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "other"}}}
    for asked in unforced:
        reply = client.chat.completions.create(model="m", messages=QUESTION, **asked)
        assert reply.choices[0].message.content.startswith(HELLO)


def test_a_function_in_openais_older_words_is_called_as_one(client):
    functions = [{"name": "shut_valve"}, TOOL["function"]]
    asked = {"model": "m", "messages": QUESTION, "functions": functions, "function_call": {"name": "open_valve"}}
    (choice,) = client.chat.completions.create(**asked).choices
    assert (choice.message.tool_calls, choice.finish_reason) == (None, "function_call")
    assert choice.message.function_call.name == "open_valve"
    pieces = [chunk.choices[0].delta.function_call for chunk in client.chat.completions.create(**asked, stream=True)]
    pieces = [piece for piece in pieces if piece is not None]
    assert [piece.name for piece in pieces] == ["open_valve", *[None] * (len(pieces) - 1)]
    assert "".join(piece.arguments for piece in pieces) == choice.message.function_call.arguments
    Part.model_validate_json(choice.message.function_call.arguments)


def test_a_stream_brings_a_call_in_pieces(client):
    with client.chat.completions.stream(model="m", messages=QUESTION, tools=[TOOL], tool_choice="required") as stream:
        (call,) = stream.get_final_completion().choices[0].message.tool_calls
    assert call.function.name == "open_valve"
    Part.model_validate_json(call.function.arguments)
    tool = {"type": "function", **TOOL["function"], "strict": False}
    with client.responses.stream(model="m", input="hello", tools=[tool], tool_choice="required") as stream:
        (item,) = stream.get_final_response().output
    assert (item.type, item.name) == ("function_call", "open_valve")
    Part.model_validate_json(item.arguments)


def test_a_stream_brings_json_in_pieces(client):
    with client.chat.completions.stream(model="m", messages=QUESTION, response_format=Penstock) as stream:
        assert stream.get_final_completion().choices[0].message.parsed.owner == HELLO


def test_what_the_request_wants_less_of_is_cut(client):
    asked = {"type": "json_schema", "json_schema": {"name": "p", "schema": Penstock.model_json_schema()}}
    reply = client.chat.completions.create(model="m", messages=QUESTION, response_format=asked, max_tokens=5)
    assert (reply.choices[0].finish_reason, reply.usage.completion_tokens) == ("length", 5)


@pytest.mark.anyio
async def test_anthropic_gemini_and_cohere_say_it_in_their_own_words(virtual_time):
    tools = [{"name": "open_valve", "input_schema": Part.model_json_schema()}]
    body = {"model": "m", "messages": QUESTION, "tools": tools, "tool_choice": {"type": "any"}, "max_tokens": 4_000}
    said = (await Client(dialect="anthropic").post("/v1/messages", body)).json()
    (block,) = said["content"]
    assert (block["type"], block["name"], said["stop_reason"]) == ("tool_use", "open_valve", "tool_use")
    Part.model_validate(block["input"])
    said = (await Client(dialect="cohere").post("/v2/chat", body | {"tools": [TOOL], "tool_choice": "REQUIRED"})).json()
    Part.model_validate_json(said["message"]["tool_calls"][0]["function"]["arguments"])
    contents = [{"role": "user", "parts": [{"text": "hello"}]}]
    place = "/v1beta/models/g:generateContent"
    schema = {"type": "OBJECT", "properties": {"name": {"type": "STRING"}}, "required": ["name"]}
    config = {"responseMimeType": "application/json", "responseSchema": schema}
    for form, value in ((config, {"name": HELLO}), ({"responseMimeType": "application/json"}, {"answer": HELLO})):
        said = (await Client(dialect="gemini").post(place, {"contents": contents, "generationConfig": form})).json()
        assert json.loads(said["candidates"][0]["content"]["parts"][0]["text"]) == value
    calling = {"tools": [{"functionDeclarations": [{"name": "f", "parameters": schema}]}], "toolConfig": {"functionCallingConfig": {"mode": "ANY"}}}  # fmt: skip
    said = (await Client(dialect="gemini").post(place, {"contents": contents, **calling})).json()
    assert said["candidates"][0]["content"]["parts"][0]["functionCall"] == {"name": "f", "args": {"name": HELLO}}


def looped():
    return {"$defs": {"a": {"anyOf": [{"$ref": "#/$defs/a"}]}}, "properties": {"x": {"$ref": "#/$defs/a"}}}


def wide():
    inner = {"type": "object", "properties": {f"p{n}": {"$ref": "#"} for n in range(50)}}
    return inner | {"required": list(inner["properties"])}


ODD = [{}, {"type": []}, {"type": {}}, {"$ref": 5}, {"$ref": "#/a/b"}, {"allOf": [{"$ref": "#"}]}, {"anyOf": []}, {"enum": []}, looped(), wide(),
       {"type": "array", "minItems": 10**12}, {"type": "string", "minLength": 10**12, "maxLength": -5}, {"type": "integer", "minimum": 10**400},
       {"type": "number", "multipleOf": 0, "exclusiveMinimum": 5, "exclusiveMaximum": 5}, {"type": "integer", "multipleOf": 1e-300, "maximum": 0},
       {"type": "number", "multipleOf": 5e-324}, {"type": "number", "multipleOf": 1e-300, "minimum": 1e14},
       {"properties": [], "required": {}}, {"type": "array", "prefixItems": [None, 5]}, {"items": {"items": {"$ref": "#"}}}]  # fmt: skip


@pytest.mark.parametrize("schema", ODD, ids=range(len(ODD)))
def test_no_schema_breaks_the_answer_or_makes_it_endless(schema):
    began = time.process_time()
    text = Form(schema).text(HELLO)
    json.loads(text)
    assert len(text) < 1_000_000
    assert time.process_time() - began < 5
