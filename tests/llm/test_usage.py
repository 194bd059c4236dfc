"""What an answer says it used is what its request costs in the end: plain, streamed and compressed."""

from __future__ import annotations

import gzip
import json
import zlib

import httpx
import pytest

from penstock import Limiter, in_flight, per_minute
from penstock.llm.usage_reader import OutputEstimate, Usage, UsageReader, usage_in
from tests.llm.clients import CHAT, Server, levels, limited

pytestmark = pytest.mark.anyio

BODY = {"model": "m", "messages": [{"role": "user", "content": "x" * 36}]}  # 9 + 4 tokens
OPENAI = {"usage": {"prompt_tokens": 20, "completion_tokens": 30, "total_tokens": 50}}
MESSAGE = {"type": "message_start", "message": {"usage": {"input_tokens": 20, "output_tokens": 1}}}
DELTA = {"type": "message_delta", "usage": {"output_tokens": 30}}


@pytest.fixture(autouse=True)
def _time(virtual_time):
    """Nothing here takes any time."""


def read(*pieces, encoding=""):
    reader = UsageReader(encoding)
    for piece in pieces:
        reader.feed(piece if isinstance(piece, bytes) else json.dumps(piece).encode())
    return reader.usage()


ANSWERS = {
    "openai": OPENAI,
    "responses": {"response": {"usage": {"input_tokens": 20, "output_tokens": 30, "total_tokens": 50}}},
    "anthropic": {"usage": {"input_tokens": 15, "cache_creation_input_tokens": 5, "output_tokens": 30}},
    "gemini": {"usageMetadata": {"promptTokenCount": 20, "candidatesTokenCount": 10, "thoughtsTokenCount": 20}},
    "gemini, ended while it thought": {
        "usageMetadata": {"promptTokenCount": 20, "thoughtsTokenCount": 30, "totalTokenCount": 50}
    },
    "gemini, with results of its own tools": {
        "usageMetadata": {"promptTokenCount": 15, "toolUsePromptTokenCount": 5, "candidatesTokenCount": 30}
    },
    "cohere": {"usage": {"billed_units": {"input_tokens": 20, "output_tokens": 30}, "tokens": {"input_tokens": 90}}},
    "ollama": {"done": True, "prompt_eval_count": 20, "eval_count": 30},
}


@pytest.mark.parametrize("encoding", ["br", "deflate", "GZIP"])
async def test_an_answer_in_any_encoding_that_the_client_asks_for_is_settled(lib, monkeypatch, encoding):
    class Backwards:
        """An encoding that another package brings, as it does brotli and zstandard."""

        def decode(self, data):
            return data[::-1] if lib is httpx else iter([data[::-1]])

        def flush(self):
            return b""

    monkeypatch.setitem(lib._decoders.SUPPORTED_DECODERS, "br", Backwards)
    body = json.dumps({"usage": {"prompt_tokens": 9, "completion_tokens": 12, "total_tokens": 21}}).encode()
    raw = zlib.compressobj(wbits=-15)  # without the header that deflate should have
    deflated = raw.compress(body) + raw.flush()
    sent = {"br": body[::-1], "deflate": deflated, "GZIP": gzip.compress(body)}

    class Stream(lib.AsyncByteStream):
        async def __aiter__(self):
            yield sent[encoding]

    answer = lib.Response(200, headers={"content-encoding": encoding}, stream=Stream())
    limiter = Limiter(output_tokens=per_minute(1_000))
    client = limited(lib, lambda _: answer, limiter)
    assert (await client.post(CHAT, json=BODY)).json()["usage"]["total_tokens"] == 21
    assert limiter.statistics().limits["output_tokens"].level == pytest.approx(988, abs=1)


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
def test_the_usage_of_every_dialect_is_read(answer):
    assert read(answer) == Usage(20, 30, 50)


def test_what_was_read_from_anthropics_cache_is_not_limited():
    usage = {"input_tokens": 20, "cache_read_input_tokens": 9_000, "output_tokens": 30}
    assert read({"usage": usage}) == Usage(20, 30, 50, cached=9_000)


def test_the_usage_of_a_stream_is_put_together_of_its_first_event_and_its_last():
    filler = {"type": "content_block_delta", "delta": {"text": "word " * 400}}
    assert read(MESSAGE, *[filler] * 100, DELTA) == Usage(20, 30, 50)


def test_an_answer_is_read_in_whatever_pieces_it_comes():
    whole = gzip.compress(json.dumps(OPENAI).encode())
    assert read(*(bytes([byte]) for byte in whole), encoding="gzip") == Usage(20, 30, 50)


def test_a_text_that_speaks_of_usage_is_no_usage():
    said = {"choices": [{"message": {"content": json.dumps({"usage": {"prompt_tokens": 9}})}}]}
    assert read(said) is None
    assert read(said | OPENAI) == Usage(20, 30, 50)


@pytest.mark.parametrize("encoding", ["br", "zstd", "gzip"])
def test_what_cannot_be_read_says_nothing(encoding):
    assert read(b"\xff" * 100, encoding=encoding) is None


@pytest.mark.parametrize("amount", [-1, True, "5", None, float("nan"), float("inf"), 10**400, [5]])
def test_what_is_no_number_of_tokens_is_left_out(amount):
    assert usage_in({"prompt_tokens": amount, "completion_tokens": 30}) == Usage(None, 30, None)


def test_a_long_answer_is_not_kept():
    reader = UsageReader()
    for _ in range(1_000):
        reader.feed(b"x" * 10_000)
    assert len(reader._head) + len(reader._tail) < 100_000


def test_output_is_expected_to_be_as_it_was_and_never_above_what_was_asked_for():
    estimate = OutputEstimate()
    assert (estimate.of(0), estimate.of(100)) == (500, 100)
    estimate.heard(40)
    assert (estimate.of(0), estimate.of(10)) == (40, 10)
    estimate.heard(140)
    assert estimate.of(0) == pytest.approx(50)


def two_limits():
    return Limiter(requests=per_minute(60), input_tokens=per_minute(1_000), output_tokens=per_minute(1_000))


def stream_of(lib, *events):
    async def pieces():
        for event in events:
            yield f"data: {json.dumps(event)}\n\n".encode()

    return lib.Response(200, content=pieces(), headers={"content-type": "text/event-stream"})


async def test_output_is_charged_as_expected_and_settled_when_the_answer_tells(lib):
    limiter = two_limits()
    client = limited(lib, Server(lib, stream_of(lib, MESSAGE, DELTA)), limiter)
    async with client.stream("POST", CHAT, json=BODY) as answer:
        before = levels(limiter)
        assert before["output_tokens"] <= 1_000 - 500
        await answer.aread()
    after = levels(limiter)
    assert after["output_tokens"] == pytest.approx(before["output_tokens"] + 500 - 30)
    assert after["input_tokens"] == pytest.approx(before["input_tokens"] + 13 - 20)


PLACES = {
    "anthropic": ("/v1/messages", {"messages": []}, ANSWERS["anthropic"]),
    "vertex": ("/v1/projects/p/publishers/anthropic/models/c:rawPredict", {"messages": []}, ANSWERS["anthropic"]),
    "gemini": ("/v1beta/models/g:generateContent", {"contents": []}, ANSWERS["gemini"]),
    "gemini, as a stream": ("/v1beta/models/g:streamGenerateContent", {"contents": []}, ANSWERS["gemini"]),
    "cohere": ("/v2/chat", {"model": "m", "messages": []}, ANSWERS["cohere"]),
    "cohere, before": ("/v1/chat", {"model": "m", "message": ""}, {"meta": ANSWERS["cohere"]["usage"]}),
    "ollama": ("/api/chat", {"model": "m", "messages": []}, ANSWERS["ollama"]),
    "bedrock": ("/model/m/converse", {"messages": []}, {"usage": {"inputTokens": 20, "outputTokens": 30}}),
    "mistral": ("/v1/fim/completions", {"model": "m", "prompt": ""}, OPENAI),
    "mistral's agents": ("/v1/agents/completions", {"agent_id": "a", "messages": []}, OPENAI),
    "a conversation of mistral's": ("/v1/conversations", {"model": "m", "inputs": ""}, OPENAI),
    "what follows in it": ("/v1/conversations/c", {"inputs": []}, OPENAI),
    "what begins it anew": ("/v1/conversations/c/restart", {"inputs": []}, OPENAI),
    "a path of its own": ("/answer", {"model": "m", "messages": []}, OPENAI),
}


@pytest.mark.parametrize(("path", "body", "answer"), PLACES.values(), ids=PLACES)
async def test_what_came_out_is_charged_whatever_service_it_is(lib, path, body, answer):
    """It is expected before, and the limits of input, output and both are settled by what the answer says."""
    units = ("input_tokens", "output_tokens", "tokens")
    limiter = Limiter(requests=per_minute(60), **dict.fromkeys(units, per_minute(1_000)))
    before = {}

    async def answering(_):
        before.update(levels(limiter))
        return lib.Response(200, json=answer)

    await limited(lib, answering, limiter, cost="total").post(f"http://api.test{path}", json=body)
    assert before["output_tokens"] <= 500
    after = levels(limiter)
    assert [1_000 - round(after[unit], -1) for unit in units] == [20, 30, 50]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/messages/count_tokens", {"messages": []}),
        ("/v1beta/models/g:countTokens", {"contents": []}),
        ("/v1beta/models/g:batchEmbedContents", {"requests": []}),
        ("/v1/moderations", {"model": "m", "input": "x"}),
        ("/v1/images/generations", {"model": "m", "prompt": "x"}),
        ("/v1/audio/speech", {"model": "m", "input": "x"}),
        ("/v2/embed", {"model": "m", "texts": ["x"]}),
        ("/v1/messages/batches", {"requests": []}),
        ("/v1/conversations", {"items": []}),
        ("/v1/models", None),
    ],
)
async def test_what_answers_without_tokens_is_not_charged_for_any(lib, path, body):
    limiter = two_limits()
    await limited(lib, Server(lib), limiter).post(f"http://api.test{path}", json=body)
    assert levels(limiter)["output_tokens"] >= 1_000 - 5


async def test_max_tokens_is_the_most_that_is_charged(lib):
    limiter = two_limits()
    await limited(lib, Server(lib), limiter).post(CHAT, json=BODY | {"max_tokens": 50})
    assert 1_000 - 70 <= levels(limiter)["output_tokens"] <= 1_000 - 50


async def test_a_limit_of_output_holds_whatever_was_expected(lib):
    """400 tokens come out of each request where 50 were expected: the second waits until the debt is paid."""
    limiter = Limiter(requests=per_minute(600), output_tokens=per_minute(600))
    usage = {"usage": {"prompt_tokens": 1, "completion_tokens": 400, "total_tokens": 401}}
    server = Server(lib, *(lib.Response(200, json=usage) for _ in range(4)))
    client = limited(lib, server, limiter)
    for _ in range(4):
        await client.post(CHAT, json=BODY | {"max_tokens": 400})
    assert server.times[-1] >= (4 * 400 - 600) / 10 - 0.1


async def test_total_charges_what_came_out_too(lib):
    limiter = Limiter(requests=per_minute(60), tokens=per_minute(1_000))
    answer = lib.Response(200, json=OPENAI)
    await limited(lib, Server(lib, answer), limiter, cost="total").post(CHAT, json=BODY)
    assert levels(limiter)["tokens"] == pytest.approx(1_000 - 50, abs=5)


@pytest.mark.parametrize(
    ("path", "body", "answer"),
    [
        ("/v1/embeddings", {"input": "x" * 40}, {"usage": {"prompt_tokens": 77, "total_tokens": 77}}),
        ("/v2/embed", {"texts": ["x" * 40]}, {"meta": {"billed_units": {"input_tokens": 77}}}),
        ("/v1/rerank", {"query": "x" * 40}, {"usage": {"prompt_tokens": 77, "total_tokens": 77}}),
        ("/api/embed", {"input": ["x" * 40]}, {"embeddings": [], "prompt_eval_count": 77}),
    ],
    ids=["openai", "cohere", "together", "ollama"],
)
async def test_total_charges_what_really_went_into_an_embedding(lib, path, body, answer):
    limiter = Limiter(requests=per_minute(60), tokens=per_minute(1_000))
    client = limited(lib, Server(lib, lib.Response(200, json=answer)), limiter, cost="total")
    await client.post(f"http://api.test{path}", json=body | {"model": "m"})
    assert levels(limiter)["tokens"] == pytest.approx(1_000 - 77, abs=5)


async def test_an_embedding_has_no_output(lib):
    limiter = two_limits()
    body = {"model": "text-embedding-3-small", "input": "x" * 40}
    await limited(lib, Server(lib), limiter).post("http://api.test/v1/embeddings", json=body)
    assert levels(limiter)["output_tokens"] >= 1_000 - 5


async def test_a_failed_request_stays_charged_as_it_was_expected(lib):
    limiter = two_limits()
    await limited(lib, Server(lib, lib.Response(500, json=OPENAI)), limiter).post(CHAT, json=BODY)
    assert levels(limiter)["output_tokens"] <= 500


async def test_a_place_and_the_estimate_come_back_together(lib):
    limiter = Limiter(places=in_flight(1), output_tokens=per_minute(1_000))
    client = limited(lib, Server(lib, stream_of(lib, OPENAI)), limiter)
    await client.post(CHAT, json=BODY)
    assert limiter.statistics().in_flight == 0
    assert levels(limiter)["output_tokens"] == pytest.approx(1_000 - 30, abs=5)
