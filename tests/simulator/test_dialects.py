"""Each service's own words: what the simulator says in them is read as what it means."""

from __future__ import annotations

import pytest

from penstock import clock
from penstock.llm import headers
from penstock.llm.failures import Action, judge
from penstock.simulator import Simulation, fingerprint
from penstock.simulator._dialects import DIALECTS
from tests.simulator.in_process import CHAT, Client

pytestmark = pytest.mark.anyio

QUESTION = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}
TELLS_NOTHING = {"gemini", "vllm"}
TELLS_NO_PERIOD = {"together", "cohere"}
TELLS_NO_WAIT = {"mistral", "vllm"}


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_what_headers_tell_is_read_as_what_is_left(virtual_time, dialect):
    """The limit on requests, and what is left of it; where there is a reset, the period too."""
    client = Client(dialect=dialect, requests="120/min", tokens="60k/min")
    for _ in range(3):
        reply = await client.ask()
    found = headers.read(reply.headers, 200, wall=clock.wall())
    told = {(quota.unit, quota.limit, quota.remaining) for quota in found.quotas}
    if dialect in TELLS_NOTHING:
        assert told == set()
    else:
        assert ("requests", 120.0, 117.0) in told
        assert ("requests", 60.0) in {(quota.unit, quota.per) for quota in found.quotas} or dialect in TELLS_NO_PERIOD


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_only_openai_and_azure_tell_how_many_images_may_be_made(virtual_time, dialect):
    told = headers.read((await Client(dialect=dialect, images="5/min").ask()).headers, 200, wall=clock.wall()).quotas
    assert [quota.unit for quota in told] == (["images"] if dialect in {"openai", "azure"} else [])


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_a_refusal_is_judged_as_one_to_wait_for(virtual_time, dialect):
    """For as long as it says, which is as long as it takes: the next request after it is let in."""
    client = Client(dialect=dialect, requests="1/min", count_refused=False)
    await client.ask()
    refused = await client.ask()
    verdict = judge(429, refused.content, refused.headers)
    assert (refused.status_code, verdict.action) == (429, Action.WAIT)
    if dialect in TELLS_NO_WAIT:
        assert verdict.wait is None
    else:
        assert verdict.wait == pytest.approx(60.0)


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_an_account_without_quota_is_judged_as_one_for_which_no_wait_will_do(virtual_time, dialect):
    client = Client(dialect=dialect)
    client.account.inject("insufficient_quota")
    refused = await client.ask()
    assert judge(429, refused.content, refused.headers).action in {Action.STOP, Action.PERMANENT}


OWN = {
    "anthropic": ("/v1/messages", {"model": "m", "max_tokens": 9, "messages": QUESTION["messages"]}, "content"),
    "gemini": ("/v1beta/models/m:generateContent", {"contents": [{"parts": [{"text": "hello"}]}]}, "candidates"),
    "cohere": ("/v2/chat", QUESTION, "message"),
}


@pytest.mark.parametrize(("dialect", "path", "body", "name"), [(name, *row) for name, row in OWN.items()], ids=OWN)
async def test_an_answer_without_choices_has_none_in_any_words(virtual_time, dialect, path, body, name):
    client = Client(dialect=dialect)
    client.account.inject("no_choices")
    answer = (await client.post(path, body)).json()[name]
    assert (answer["content"] if name == "message" else answer) == []


async def test_geminis_key_may_be_in_the_address(virtual_time):
    client = Client(dialect="gemini", api_keys=("k",))
    del client.http.headers["authorization"]
    path, body, _ = OWN["gemini"]
    assert (await client.post(f"{path}?key=k", body)).status_code == 200
    assert (await client.post(f"{path}?key=wrong", body)).status_code == 401


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_errors_are_in_the_words_of_the_service(virtual_time, dialect):
    """A wrong request is no rate limit, and a server's own trouble is not the request's."""
    client = Client(dialect=dialect)
    wrong = await client.post(CHAT, {"model": "m"})
    assert judge(400, wrong.content, wrong.headers).action is Action.PERMANENT
    assert "messages" in judge(400, wrong.content, wrong.headers).message
    lost = await client.post("/v1/nothing", {})
    assert (lost.status_code, judge(404, lost.content).message) == (404, "Invalid URL (POST /v1/nothing)")
    assert (set(lost.json()) == {"error"}) == (dialect not in {"anthropic", "cohere", "mistral", "vllm"})
    for fault, status in (("server_error", 500), ("overloaded", 529 if dialect == "anthropic" else 503)):
        client.account.inject(fault)
        failed = await client.ask()
        assert failed.status_code == status
        assert judge(status, failed.content, failed.headers).action is Action.BACK_OFF
    denied = await client.http.post(CHAT, json=QUESTION, headers={"authorization": ""})
    assert denied.status_code == 401


async def test_a_request_of_geminis_own_is_answered_in_its_own_form(virtual_time):
    client = Client(dialect="gemini", tokens="1000/min")
    body = {
        "contents": [{"role": "user", "parts": [{"text": "hello"}]}],
        "systemInstruction": {"parts": [{"text": "x" * 40}]},
        "generationConfig": {"maxOutputTokens": 8},
    }
    path = "/v1beta/models/gemini-2.5-flash:generateContent"
    reply = (await client.http.post(path, json=body, headers={"authorization": "", "x-goog-api-key": "k"})).json()
    (candidate,) = reply["candidates"]
    assert candidate["content"]["parts"][0]["text"].startswith(fingerprint("hello"))
    assert (candidate["finishReason"], reply["modelVersion"]) == ("MAX_TOKENS", "gemini-2.5-flash")
    assert reply["usageMetadata"]["candidatesTokenCount"] == 8
    assert client.account.statistics().tokens_used == 12 + 4
    for wrong in ([], {"contents": "text"}, {"contents": [7]}, {"contents": [{"parts": 7}]}):
        assert (await client.http.post(path, json=wrong)).status_code == 400
    must = {"toolConfig": {"functionCallingConfig": {"mode": "ANY"}}}
    for none in (5, [7], [{}], [{"functionDeclarations": 5}]):  # no tool is there that must be called
        assert (await client.http.post(path, json=body | must | {"tools": none})).status_code == 200


async def test_a_request_of_coheres_own_is_answered_in_its_own_form(virtual_time):
    client = Client(dialect="cohere")
    reply = (await client.post("/v2/chat", QUESTION)).json()
    assert reply["message"]["content"][0]["text"].startswith(fingerprint("hello"))
    assert reply["usage"]["tokens"]["output_tokens"] == 16
    openais = {"functions": [{"name": "f"}], "function_call": {"name": "f"}, "stream": True}
    assert "content-delta" in (await client.post("/v2/chat", QUESTION | openais)).text
    assert (await Client().post("/v2/chat", QUESTION)).status_code == 404


async def test_a_request_of_anthropics_own_is_answered_in_its_own_form(virtual_time):
    """With the key in its own header; a refusal has its type and the wait."""
    client = Client(dialect="anthropic", requests="1/min", count_refused=False)
    body = {**QUESTION, "max_tokens": 64, "system": "x" * 40}
    key = {"authorization": "", "x-api-key": "k", "anthropic-version": "2023-06-01"}
    message = (await client.http.post("/v1/messages", json=body, headers=key)).json()
    assert message["content"][0]["text"].startswith(fingerprint("hello"))
    assert (message["type"], message["stop_reason"], message["usage"]["output_tokens"]) == ("message", "end_turn", 16)
    assert client.account.statistics().tokens_used == 12 + 4
    refused = await client.http.post("/v1/messages", json=body, headers=key)
    assert refused.json()["type"] == "error"
    assert refused.json()["error"]["type"] == "rate_limit_error"
    assert refused.headers["retry-after"] == "60"


def test_a_dialect_that_nobody_speaks_is_refused():
    with pytest.raises(ValueError, match=r"dialect must be one of 'openai', 'azure', .* not 'klingon'"):
        Simulation(dialect="klingon")
