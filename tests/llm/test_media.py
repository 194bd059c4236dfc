"""Images, sounds and files cost what services publish, and nothing that claims to be one breaks the count."""

from __future__ import annotations

import base64
import json
import struct
import threading
from dataclasses import replace

import httpx2
import pytest

from penstock import Limiter
from penstock.llm import clients, limit_client
from penstock.llm.media import IMAGE_TOKENS, PAGE_TOKENS
from penstock.llm.tokens import by_bytes, by_tiktoken

CHAT, MESSAGES, GEMINI = "/v1/chat/completions", "/v1/messages", "/v1beta/models/g:generateContent"


def coded(raw):
    return base64.b64encode(raw).decode()


def png(width, height):
    return b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR" + struct.pack(">II", width, height) + b"\x08\x06" + bytes(40)


def gif(width, height):
    return b"GIF89a" + struct.pack("<HH", width, height) + bytes(40)


def jpeg(width, height):
    photo = b"\xff\xd8\xff\xe1" + struct.pack(">H", 4_002) + bytes(4_000)  # what a camera tells, which comes first
    return photo + b"\xff\xc0\x00\x11\x08" + struct.pack(">HH", height, width) + bytes(40)


def webp(width, height):
    return b"RIFF\x00\x00\x00\x00WEBPVP8X\x0a\x00\x00\x00\x00\x00\x00\x00" + b"".join(
        (side - 1).to_bytes(3, "little") for side in (width, height)
    )


def webp_vp8l(width, height):
    return b"RIFF\x00\x00\x00\x00WEBPVP8L\x00\x00\x00\x00\x2f" + struct.pack("<I", width - 1 | height - 1 << 14)


def in_chat(part, **more):
    return {**more, "messages": [{"role": "user", "content": [part]}]}


def openais(raw, detail=None):
    url = {"url": f"data:image/png;base64,{coded(raw)}"}
    return in_chat({"type": "image_url", "image_url": url | ({} if detail is None else {"detail": detail})})


def anthropics(raw):
    return in_chat({"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": coded(raw)}})


def geminis(raw, kind="image/png"):
    return {"contents": [{"parts": [{"inlineData": {"mimeType": kind, "data": coded(raw)}}]}]}


def wav(seconds):
    return (
        b"RIFF\x00\x00\x00\x00WAVEfmt \x10\x00\x00\x00\x01\x00\x01\x00"
        + struct.pack("<II", 8_000, 16_000)
        + bytes(seconds * 16_000 - 32)
    )


ROWS = {
    "tiles of 512": (CHAT, openais(png(1_024, 1_024)), 765),
    "a tall one is made smaller": (CHAT, openais(png(2_048, 4_096)), 1_105),
    "a small one": (CHAT, openais(gif(100, 100)), 255),
    "a photo": (CHAT, openais(jpeg(1_024, 1_024)), 765),
    "the web's": (CHAT, openais(webp(512, 512)), 255),
    "the web's, without loss": (CHAT, openais(webp_vp8l(512, 512)), 255),
    "low detail": (CHAT, openais(png(4_096, 4_096), "low"), 85),
    "an address": (CHAT, in_chat({"type": "image_url", "image_url": {"url": "https://x/y.png"}}), IMAGE_TOKENS),
    "of a response": ("/v1/responses", {"input": [{"content": [{"type": "input_image", "image_url": "data:image/png;base64," + coded(png(512, 512))}]}]}, 255),
    "anthropic's": (MESSAGES, anthropics(png(750, 100)), 100),
    "anthropic's, large": (MESSAGES, anthropics(png(8_000, 8_000)), 1_600),
    "gemini's, small": (GEMINI, geminis(png(300, 300)), 258),
    "gemini's tiles": (GEMINI, geminis(png(1_000, 1_000)), 4 * 258),
    "ten seconds of sound": (CHAT, in_chat({"type": "input_audio", "input_audio": {"format": "wav", "data": coded(wav(10))}}), 100),
    "compressed sound": (CHAT, in_chat({"type": "input_audio", "input_audio": {"format": "mp3", "data": coded(bytes(48_000))}}), 30),
    "gemini's file of text": (GEMINI, geminis(b"x" * 40, "text/plain"), 10),
    "gemini's document of two pages": (GEMINI, geminis(b"%PDF /Type /Page /Type /Page", "application/pdf"), 2 * 258),
    "gemini's sound": (GEMINI, geminis(wav(10), "audio/wav"), 320),
    "a document of three pages": (MESSAGES, in_chat({"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": coded(b"%PDF /Type /Page /Type /Page /Type/Page /Type /Pages")}}), 3 * PAGE_TOKENS),
    "a document of text": (MESSAGES, in_chat({"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "x" * 40}}), 10),
    "a document of one text": (MESSAGES, in_chat({"type": "document", "source": {"type": "content", "content": "x" * 40}}), 10),
    "a document in blocks": (MESSAGES, in_chat({"type": "document", "source": {"type": "content", "content": [{"type": "text", "text": "x" * 40}]}}), 10),
    "a file of text": (CHAT, in_chat({"type": "file", "file": {"file_data": "data:text/plain;base64," + coded(b"x" * 40)}}), 10),
    "a file by its id": ("/v1/responses", {"input": [{"content": [{"type": "input_file", "file_id": "file-1"}]}]}, PAGE_TOKENS),
    "cohere's document": ("/v2/chat", in_chat({"type": "document", "document": {"data": "x" * 40}}), 10),
    "an image that a tool gave": (MESSAGES, in_chat({"type": "tool_result", "content": [{"type": "image", "source": {"data": coded(png(750, 100))}}]}), 100),
}  # fmt: skip


@pytest.mark.parametrize(("path", "body", "tokens"), ROWS.values(), ids=ROWS)
def test_what_is_no_text_costs_what_is_published(path, body, tokens):
    extra = 4 if path in {CHAT, "/v1/responses"} else 0
    assert by_bytes(path, body)["tokens"] == tokens + extra


@pytest.mark.parametrize(("model", "tokens"), [("gpt-4o", 765), ("gpt-4o-mini-2024-07-18", 25_501), ("gpt-5.1", 630), ("o1", 675)])  # fmt: skip
@pytest.mark.filterwarnings("ignore:counting tokens as bytes")
def test_what_usage_says_of_an_image_is_the_models_own(model, tokens):
    without = by_tiktoken(CHAT, in_chat({"type": "text", "text": ""}, model=model))["tokens"]
    assert by_tiktoken(CHAT, {**openais(png(1_024, 1_024)), "model": model})["tokens"] - without == tokens


@pytest.mark.parametrize(
    "raw",
    [b"", b"\x89PNG\r\n\x1a\n", png(0, 0), png(2**32 - 1, 1), jpeg(0, 7), b"\xff\xd8" + b"\xff" * 5_000, b"\xff\xd8\xff\xe1\x00\x00" * 900, b"RIFF", b"RIFF0000WEBPVP8 ", b"RIFF0000WEBPVP9 ", b"GIF8", bytes(range(256))],
    ids=range(12),
)  # fmt: skip
def test_an_image_that_is_none_costs_what_one_does(raw):
    assert by_bytes(CHAT, openais(raw))["tokens"] == IMAGE_TOKENS + 4
    assert by_bytes(MESSAGES, anthropics(raw))["tokens"] == IMAGE_TOKENS
    assert by_bytes(GEMINI, geminis(raw))["tokens"] == IMAGE_TOKENS


ODD = [
    None,
    True,
    5,
    -1.5,
    float("nan"),
    "",
    "\ud800",
    "data:",
    "data:,",
    [],
    [[]],
    {},
    {"data": []},
    {"content": [5]},
    {"url": {}},
]


@pytest.mark.parametrize("kind", ["image_url", "input_image", "image", "input_audio", "audio", "file", "input_file", "document", "inlineData", "fileData"])  # fmt: skip
def test_nothing_that_claims_to_be_a_medium_breaks_the_count(kind):
    for key in ("image_url", "source", "input_audio", "file", "document", "inlineData", "inline_data", "fileData", "detail", "data", "file_data"):  # fmt: skip
        for value in ODD:
            for part in ({"type": kind, key: value}, {kind: value, key: value}):
                assert by_bytes(CHAT, in_chat(part))["tokens"] >= 0


@pytest.mark.parametrize(
    ("body", "beside"),
    [
        ({"messages": [{"role": "user", "content": "x" * 2_000}]}, False),
        ({"messages": [{"role": "user", "content": "some words, and more. " * 2_000}]}, False),
        ({"messages": [{"role": "user", "content": "x" * 70_000}]}, True),
        ({"messages": [{"content": [{"text": "a"}]}] * 60}, True),
        ({"model": "m", "input": [[1] * 11_000]}, True),
    ],
    ids=["usual", "a text", "a long text", "many parts", "many numbers"],
)
def test_what_takes_long_to_count_is_counted_beside_the_loop(body, beside):
    """However few bytes it has: 60 kB of small parts take 200 times as long as 60 kB of text."""
    client = limit_client(httpx2.AsyncClient(), Limiter(tokens="1M/min"))
    request = client.build_request("POST", "http://api.test" + CHAT, json=body)
    assert client._transport._rules.heavy(request) is beside


def test_a_very_large_body_is_known_by_its_size_alone():
    """To look for braces in 100 MB takes longer than a loop may stand still."""

    class Large(bytes):
        def count(self, *_):
            raise AssertionError("it was looked at")

        def __len__(self):
            return 100_000_000

    assert clients._is_heavy(Large(b"{}"))


def test_the_first_request_for_a_model_is_counted_beside_the_loop_by_tiktoken():
    """Ranks are loaded then, which takes half a second."""
    client = limit_client(httpx2.AsyncClient(), Limiter(tokens="1M/min"), cost="tiktoken")
    heavy = client._transport._rules.heavy
    body = {"messages": [{"role": "user", "content": "x"}], "model": "a model that nobody asked before"}
    request = client.build_request("POST", "http://api.test" + CHAT, json=body)
    assert heavy(request)
    client._transport._rules.count(request)
    assert not heavy(request)
    assert heavy(client.build_request("POST", "http://api.test" + CHAT, json=body | {"model": "another"}))
    assert heavy(client.build_request("POST", "http://api.test" + CHAT, json=body | {"user": "x" * 5_000}))


@pytest.mark.anyio
async def test_a_large_body_is_read_beside_the_loop_for_a_rule_of_ones_own_too(anyio_backend):
    """The rule itself runs where it was given."""
    read, ruled = [], []

    def rule(_, body):
        ruled.append(threading.get_ident())
        return {"tokens": len(body["input"])}

    limiter = Limiter(tokens="1M/min")
    http = httpx2.AsyncClient(transport=httpx2.MockTransport(lambda _: httpx2.Response(200)))
    client = limit_client(http, limiter, cost=rule)
    rules = client._transport._rules

    def count(request):
        read.append(threading.get_ident())
        return rules.count(request)

    client._transport._rules = replace(rules, count=count)
    await client.post("http://api.test" + CHAT, json={"model": "m", "input": "x" * 100_000})
    assert read[0] != threading.get_ident()
    assert ruled == [threading.get_ident()]
    assert limiter.statistics().limits["tokens"].level < 901_000


def test_a_large_body_is_read_so_that_others_run_in_between(monkeypatch):
    yields = []
    monkeypatch.setattr(clients.time, "sleep", yields.append)
    numbers, parts = list(range(100_000)), [{"text": "a", "number": 1.5}] * 5_000
    for body in ({"input": numbers}, {"messages": parts}):
        before = len(yields)
        assert clients.json_object(json.dumps(body).encode()) == body
        assert len(yields) > before + 10


def test_a_list_of_many_numbers_counts_as_many_tokens():
    for many in (1, 4_096, 4_097, 50_000):
        assert by_bytes("/v1/embeddings", {"input": [7] * many})["tokens"] == many
        assert by_bytes("/v1/embeddings", {"input": ["abcd"] * many})["tokens"] == many
