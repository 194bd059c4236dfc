"""Images, sounds and moderations, as OpenAI's SDK asks for them; and limits of images and of tokens that come out."""

from __future__ import annotations

import base64
import io
import wave

import openai
import pytest

from penstock import clock, simulator
from penstock.llm import headers
from penstock.llm.failures import judge
from penstock.simulator import Change, Simulation, fingerprint
from tests.simulator.in_process import CHAT, Client

QUESTION = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}


@pytest.fixture(scope="module")
def client():
    with (
        simulator.serve(Simulation(tokens="1M/min", images="10/min")) as server,
        openai.OpenAI(base_url=server.base_url, api_key="k", max_retries=0) as made,
    ):
        yield made


@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")
def test_an_image_is_made(client):
    reply = client.images.generate(model="gpt-image-1", prompt="hello", n=2)
    assert [one.revised_prompt for one in reply.data] == [fingerprint("hello")] * 2
    assert base64.b64decode(reply.data[0].b64_json).startswith(b"\x89PNG")
    assert client.images.generate(model="dall-e-3", prompt="hello", response_format="url").data[0].url.endswith(".png")
    assert client.images.edit(model="m", image=("a.png", b"x"), prompt="hello", n=1).data[0].b64_json
    assert client.images.create_variation(model="m", image=("a.png", b"x")).data[0].b64_json
    with pytest.raises(openai.BadRequestError, match="'n'"):
        client.images.generate(model="m", prompt="hello", n=50)


@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")
def test_a_sound_is_written_down_and_a_text_is_spoken(client):
    heard = client.audio.transcriptions.create(model="whisper-1", file=("a.mp3", b"\x01" * 32_000))
    assert heard.text.startswith(fingerprint("\x01" * 32_000))
    assert heard.usage.seconds == 2
    assert client.audio.translations.create(model="whisper-1", file=("a.mp3", b"x")).text
    words = client.audio.transcriptions.create(model="whisper-1", file=("a.mp3", b"x"), response_format="text")
    assert words.endswith("This transcript is simulated.\n")
    spoken = client.audio.speech.create(model="tts-1", voice="alloy", input="hello " * 10).read()
    with wave.open(io.BytesIO(spoken)) as sound:
        assert sound.getnframes() / sound.getframerate() == pytest.approx(4)
    with pytest.raises(openai.BadRequestError, match="Missing required parameter: 'file'"):
        client.audio.transcriptions.create(model="whisper-1", file=("", b""))


def test_what_is_moderated_is_flagged_where_it_says_so(client):
    reply = client.moderations.create(model="omni-moderation-latest", input=["peace", "violence"])
    assert [one.flagged for one in reply.results] == [False, True]
    assert reply.results[1].categories.violence
    assert not client.moderations.create(input=[{"type": "text", "text": "peace"}]).results[0].flagged


@pytest.mark.anyio
async def test_images_are_charged_by_their_number_and_nothing_else_is(virtual_time):
    client = Client(images="5/min", tokens="1k/min", requests="60/min")
    wanted = {"model": "m", "prompt": "x" * 400, "n": 3}
    first = await client.post("/v1/images/generations", wanted)
    assert (first.status_code, first.headers["x-ratelimit-remaining-images"]) == (200, "2")
    refused = await client.post("/v1/images/generations", wanted)
    assert judge(429, refused.content, refused.headers).wait == pytest.approx(12, abs=0.1)
    assert "on images per min (IPM): Limit 5, Used 3, Requested 3" in refused.json()["error"]["message"]
    assert (await client.ask()).status_code == 200
    seen = client.account.statistics()
    assert (seen.images_used, seen.tokens_used, seen.refused) == (3, 6, {"images": 1})


@pytest.mark.anyio
@pytest.mark.parametrize("more", [{}, {"stream": True}, {"n": 2, "max_tokens": 8}], ids=["plain", "stream", "two"])
async def test_what_comes_out_is_charged_when_it_does(virtual_time, more):
    client = Client(output="60/min")
    assert (await client.ask(**more)).status_code == 200
    assert client.account.statistics().output_used == pytest.approx(16, abs=3)


@pytest.mark.anyio
async def test_a_limit_of_output_lets_in_whoever_comes_while_some_is_left_and_then_waits_for_the_debt(virtual_time):
    """As Anthropic's: how long an answer will be is not asked before."""
    client = Client(dialect="anthropic", output="60/min burst 20", output_tokens=50)
    body = {**QUESTION, "max_tokens": 1_000}
    first = await client.post("/v1/messages", body)
    assert first.headers["anthropic-ratelimit-output-tokens-limit"] == "60"
    refused = await client.post("/v1/messages", body)
    message = refused.json()["error"]["message"]
    assert message == "This request would exceed your organization's rate limit of 60 output tokens per minute."
    verdict = judge(429, refused.content, refused.headers)
    assert verdict.info.unit == "output_tokens"
    assert verdict.wait == 31  # 30 below nothing, one a second, and one must be left
    quota = headers.read(refused.headers, 429, wall=clock.wall()).quota("output-tokens")
    assert (quota.limit, quota.remaining) == (60, 0)
    embedded = await client.post("/v1/embeddings", {"model": "m", "input": "hello"})
    assert embedded.status_code == 200  # nothing comes out of it


@pytest.mark.anyio
async def test_a_change_may_be_one_of_output_alone(virtual_time):
    client = Client(output="60/min", requests="60/min", changes=(Change(at=1.0, factor=0.5, unit="output_tokens"),))
    virtual_time.advance(2)
    limits = {limit.unit: limit.limit.amount for limit in client.account.statistics().limits}
    assert limits == {"output_tokens": 30, "requests": 60}


@pytest.mark.anyio
async def test_no_body_breaks_an_endpoint(virtual_time):
    client = Client()
    odd = [{}, {"prompt": 5}, {"prompt": "x", "n": True}, {"input": {}}, {"input": 5}, {"input": [5, None]}, {"input": "x", "model": []}, {"file": 5, "model": "m"}]  # fmt: skip
    for path in ("images/generations", "images/edits", "audio/speech", "audio/transcriptions", "moderations"):
        for body in odd:
            assert (await client.post(f"/v1/{path}", body)).status_code in {200, 400}
        assert (await client.http.post(f"/v1/{path}", content=b"\xff")).status_code == 400
    assert (
        await client.http.post(CHAT, content=b"x", headers={"content-type": "multipart/form-data"})
    ).status_code == 400
