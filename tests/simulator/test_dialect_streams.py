"""Streams of Anthropic's, Gemini's and Cohere's own endpoints: whole, settled by usage, broken as theirs break."""

from __future__ import annotations

import json

import pytest

from penstock import Limiter, per_minute
from penstock.llm import limit_client
from penstock.llm.failures import Action, judge
from penstock.simulator import fingerprint
from tests.simulator.in_process import Client

pytestmark = pytest.mark.anyio

TOOL = {"name": "f", "parameters": {"type": "object", "properties": {"x": {"type": "string"}}}}
CHAT = {"model": "m", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 400, "stream": True}
PLACES = {
    "anthropic": ("/v1/messages", CHAT),
    "gemini": (
        "/v1beta/models/g:streamGenerateContent?alt=sse",
        {"contents": [{"role": "user", "parts": [{"text": "hello"}]}]},
    ),
    "cohere": ("/v2/chat", CHAT),
}


def events(reply):
    return [json.loads(line[6:]) for line in reply.text.splitlines() if line.startswith("data: ")]


def texts_in(told):
    """Every piece of text, whosever event it is in."""
    for event in told:
        delta = event.get("delta", {})
        yield delta.get("text", "")
        yield delta.get("partial_json", "")
        message = delta.get("message", {})
        yield (message.get("content") or {}).get("text", "") if isinstance(message.get("content"), dict) else ""
        yield (message.get("tool_calls") or {}).get("function", {}).get("arguments", "")
        for candidate in event.get("candidates", ()):
            yield candidate["content"]["parts"][0].get("text", "")


@pytest.mark.parametrize("dialect", PLACES)
async def test_a_stream_brings_the_whole_text(virtual_time, dialect):
    path, body = PLACES[dialect]
    client = Client(dialect=dialect, output_tokens=40)
    reply = await client.post(path, body)
    assert reply.headers["content-type"].startswith("text/event-stream")
    text = "".join(texts_in(events(reply)))
    assert text.startswith(fingerprint("hello"))
    assert len(text) > 100
    seen = client.account.statistics()
    assert (seen.answered, seen.output_used) == (1, pytest.approx(40, abs=12))


@pytest.mark.parametrize("dialect", PLACES)
async def test_a_stream_brings_the_call_of_a_tool(virtual_time, dialect):
    path, body = PLACES[dialect]
    asked = {
        "anthropic": {"tools": [TOOL | {"input_schema": TOOL["parameters"]}], "tool_choice": {"type": "any"}},
        "gemini": {
            "tools": [{"functionDeclarations": [TOOL]}],
            "toolConfig": {"functionCallingConfig": {"mode": "ANY"}},
        },
        "cohere": {"tools": [{"type": "function", "function": TOOL}], "tool_choice": "REQUIRED"},
    }[dialect]
    told = events(await Client(dialect=dialect).post(path, body | asked))
    if dialect == "gemini":
        called = told[-1]["candidates"][0]["content"]["parts"][0]["functionCall"]["args"]
    else:
        called = json.loads("".join(texts_in(told)))
    assert called == {"x": fingerprint("hello")}


@pytest.mark.parametrize("dialect", PLACES)
async def test_what_a_stream_used_is_settled(virtual_time, dialect):
    path, body = PLACES[dialect]
    server = Client(dialect=dialect, output_tokens=40)
    limiter = Limiter(requests=per_minute(60), output_tokens=per_minute(1_000))
    client = limit_client(server.http, limiter)
    await client.post(path, json=body)
    left = limiter.statistics().limits["output_tokens"].level
    assert 1_000 - left == pytest.approx(40, abs=10)


@pytest.mark.parametrize("dialect", PLACES)
async def test_a_stream_breaks_with_an_error_of_its_own(virtual_time, dialect):
    path, body = PLACES[dialect]
    client = Client(dialect=dialect)
    client.account.inject("broken_stream")
    last = events(await client.post(path, body))[-1]
    assert judge(200, last if "error" in last else {"error": last}).action is Action.BACK_OFF
    client.account.inject("truncated")
    assert len(events(await client.post(path, body))) < len(events(await client.post(path, body)))


async def test_a_stream_is_refused_like_any_other(virtual_time):
    client = Client(dialect="anthropic", requests="1/min", count_refused=False)
    await client.post(*PLACES["anthropic"])
    assert (await client.post(*PLACES["anthropic"])).status_code == 429
    wrong = await Client(dialect="anthropic").post("/v1/messages", {"stream": True})
    assert (wrong.status_code, wrong.json()["error"]["type"]) == (400, "invalid_request_error")
