"""What the simulated service answers, and that the answer proves its question: in virtual time, without sockets."""

from __future__ import annotations

import base64
import json
import math
import struct

import pytest

from penstock.simulator import (
    Latency,
    count_tokens,
    embedding_of,
    fingerprint,
)
from tests.simulator.in_process import CHAT, Client, limits_of

pytestmark = pytest.mark.anyio

# For what does not wait, and so does not depend on the loop.
on_one_loop = pytest.mark.parametrize("anyio_backend", [("asyncio", {})], ids=["asyncio"])


@on_one_loop
@pytest.mark.parametrize(
    ("path", "body", "text"),
    [
        (CHAT, {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "früh"}]}, "früh"),
        (
            CHAT,
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]},
            "ab",
        ),
        (CHAT, {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}, "q"),
        (CHAT, {"messages": [{"role": "system", "content": "only this"}]}, "only this"),
        ("/v1/responses", {"input": "q", "instructions": "i"}, "q"),
        ("/v1/responses", {"input": [{"role": "user", "content": [{"type": "input_text", "text": "q"}]}]}, "q"),
        ("/v1/completions", {"prompt": "q"}, "q"),
        ("/v1/completions", {"prompt": [1, 2, 3]}, "1 2 3"),
    ],
)
async def test_an_answer_proves_which_question_it_belongs_to(virtual_time, path, body, text):
    """It begins with 16 hex digits of the SHA-256 of the last thing the user said."""
    reply = (await Client().post(path, {"model": "m", **body})).json()
    said = {
        CHAT: lambda: reply["choices"][0]["message"]["content"],
        "/v1/responses": lambda: reply["output"][0]["content"][0]["text"],
        "/v1/completions": lambda: reply["choices"][0]["text"],
    }[path]()
    assert said[:16] == fingerprint(text)
    assert len(said) > 16


def test_a_fingerprint_can_be_made_by_anybody():
    """It needs nothing but SHA-256."""
    assert fingerprint("hello") == "2cf24dba5fb0a30e"


@on_one_loop
async def test_several_prompts_have_an_answer_each(virtual_time):
    reply = (await Client().post("/v1/completions", {"model": "m", "prompt": ["a", "b"], "n": 2})).json()
    found = [(choice["index"], choice["text"][:16]) for choice in reply["choices"]]
    assert found == [(0, fingerprint("a")), (1, fingerprint("a")), (2, fingerprint("b")), (3, fingerprint("b"))]


@on_one_loop
async def test_an_answer_is_as_long_as_was_asked(virtual_time):
    """`max_tokens` cuts it, and usage says how long it is; the fingerprint is never cut."""
    client = Client(output_tokens=100)
    whole, cut, tiny = [(await client.ask(**asked)).json() for asked in ({}, {"max_tokens": 20}, {"max_tokens": 1})]
    assert [len(each["choices"][0]["message"]["content"]) for each in (whole, cut, tiny)] == [400, 80, 16]
    assert [each["choices"][0]["finish_reason"] for each in (whole, cut, tiny)] == ["stop", "length", "length"]
    assert [each["usage"]["completion_tokens"] for each in (whole, cut, tiny)] == [100, 20, 1]
    assert whole["usage"]["total_tokens"] == whole["usage"]["prompt_tokens"] + 100
    assert whole["usage"]["prompt_tokens"] == count_tokens("hello") + 3 + 3


@on_one_loop
async def test_tokens_are_counted_as_one_wishes(virtual_time):
    """`count_tokens` makes the usage, `charge` what admission takes."""
    client = Client(tokens="1000/min", count_tokens=lambda text: len(text.split()), charge=lambda path, body: len(path))
    reply = await client.ask("one two three")
    assert reply.json()["usage"]["prompt_tokens"] == 3 + 6
    assert limits_of(reply)["remaining-tokens"] == str(1000 - len(CHAT))


@on_one_loop
async def test_embeddings_of_a_list_are_told_apart_by_index(virtual_time):
    """In order unless asked otherwise; shuffled, every entry still has the index of its text."""
    texts = [f"text {number}" for number in range(30)]
    body = {"model": "e", "input": texts}
    straight = (await Client().post("/v1/embeddings", body)).json()["data"]
    by_header = (await Client().post("/v1/embeddings", body, headers={"x-simulator-shuffle": "1"})).json()["data"]
    by_setting = (await Client(shuffle_embeddings=True).post("/v1/embeddings", body)).json()["data"]
    assert [entry["index"] for entry in straight] == list(range(30))
    for shuffled in (by_header, by_setting):
        assert [entry["index"] for entry in shuffled] != list(range(30))
        assert sorted(shuffled, key=lambda entry: entry["index"]) == straight
    assert all(entry["embedding"] == embedding_of(texts[entry["index"]]) for entry in straight)


@on_one_loop
async def test_an_embedding_is_the_same_in_base64(virtual_time):
    """Numbers and packed floats are equal to the last bit, and have the length that was asked for."""
    body = {"model": "e", "input": ["ä"], "dimensions": 12, "encoding_format": "base64"}
    reply = (await Client().post("/v1/embeddings", body)).json()
    packed = base64.b64decode(reply["data"][0]["embedding"])
    assert list(struct.unpack("<12f", packed)) == embedding_of("ä", 12)
    assert math.isclose(math.hypot(*embedding_of("ä", 12)), 1, rel_tol=1e-6)
    assert reply["usage"] == {"prompt_tokens": 1, "total_tokens": 1}


async def test_a_stream_brings_the_same_text_in_pieces(virtual_time):
    """Chunks as the service sends them: usage only if it was asked for, and in a chunk of its own at the end."""
    client = Client(latency=Latency(median=1, per_token=0.5))
    for asked in (False, True):
        options = {"stream_options": {"include_usage": True}} if asked else {}
        start = virtual_time.now()
        reply = await client.ask(stream=True, **options)
        assert reply.headers["content-type"] == "text/event-stream; charset=utf-8"
        *lines, end = [line.removeprefix("data: ") for line in reply.text.split("\n\n") if line]
        chunks = [json.loads(line) for line in lines]
        assert end == "[DONE]"
        content = "".join(choice["delta"].get("content", "") for chunk in chunks for choice in chunk["choices"])
        assert content == (await Client().ask()).json()["choices"][0]["message"]["content"]
        assert [chunk.get("usage", "none given") for chunk in chunks[:-1]] == [None if asked else "none given"] * (
            len(chunks) - 1
        )
        assert (chunks[-1]["choices"] == []) is asked
        assert virtual_time.now() - start > 1 + 0.5 * 16


@on_one_loop
async def test_several_choices_are_streamed_apart(virtual_time):
    reply = await Client().ask(stream=True, n=2)
    said = {0: "", 1: ""}
    for line in reply.text.split("\n\n")[:-2]:
        for choice in json.loads(line.removeprefix("data: "))["choices"]:
            said[choice["index"]] += choice["delta"].get("content", "")
    assert said[0] == said[1]
    assert said[0].startswith(fingerprint("hello"))
