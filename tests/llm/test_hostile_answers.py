"""Answers of any kind, through the whole of a limited client: the caller gets what a client without limits gets.

`make fuzz` draws 100,000 of them.
"""

from __future__ import annotations

import gzip
import json
import os
import random

import anyio
import pytest

from penstock import Limiter, PenstockError, RateLimited, in_flight
from penstock.http import limit_http_client
from penstock.llm import exchange, limit_client, limits_of
from tests.llm.test_hostile_text import WORDS, text_of, value_of

pytestmark = pytest.mark.anyio

MANY = int(os.environ.get("PENSTOCK_FUZZ", "300")) // 6  # of each kind, with either library
AGAIN = 50  # answers that one client gets
NAMES = [
    *("retry-after", "retry-after-ms", "date", "x-should-retry", "content-type", "ratelimit", "ratelimit-policy"),
    *(f"x-ratelimit-{part}-{unit}" for part in ("limit", "remaining", "reset") for unit in ("requests", "tokens")),
    *(f"ratelimit-{part}" for part in ("limit", "remaining", "reset")),
    *(f"anthropic-ratelimit-output-tokens-{part}" for part in ("limit", "remaining", "reset")),
    *("x-ratelimit-renewalperiod-requests", "x-ratelimit-limit-!~", "x-ratelimit-limit-"),
]
MOMENTS = [
    *("Sun, 29 Nov 2026 15:00:00 GMT", "Sun Nov 29 15:00:00 2026", "Sunday, 29-Nov-26 15:00:00 GMT", "2026-11-29"),
    *("2026-11-29T15:00:00.123456789+99:99", "Sun, 29 Nov 0000 15:00:00 GMT", "1e9", "253402300800", "-62135596801"),
    *(
        "Sun, 29 Nov 2026 15:00:60 GMT",
        "Sun, 29 Nov 2026 15:00:00 +2400",
        "9999-12-31T23:59:59Z",
        "0001-01-01T00:00:00Z",
    ),
]


@pytest.fixture(params=[("asyncio", {"use_uvloop": False})], ids=["asyncio"])
def anyio_backend(request):
    """What is read of an answer is the same on each."""
    return request.param


def header_of(draw):
    """A value as bytes, which may be in no encoding at all."""
    kind = draw.randrange(4)
    if kind == 0:
        return draw.choice(MOMENTS).encode()
    if kind == 1:
        return str(draw.choice([0, 1, 59, 60, 1_000, 10**9, 10**400, -1, 0.5])).encode()
    return text_of(draw).encode("utf-8", "replace").replace(b"\n", b" ").replace(b"\r", b" ").replace(b"\0", b"")


def event_of(draw):
    data = draw.choice([json.dumps({"usage": value_of(draw), "choices": value_of(draw)}), text_of(draw), "[DONE]"])
    return (
        draw.choice(["data: ", "event: error\ndata: ", ": ", "data:"]) + data + draw.choice(["\n\n", "\r\n\r\n", "\n"])
    )


def body_of(draw):
    """JSON, events, or neither; whole, compressed, said to be, or cut."""
    kind = draw.randrange(3)
    if kind == 0:
        content = json.dumps(value_of(draw)).encode()
    elif kind == 1:
        content = "".join(event_of(draw) for _ in range(draw.randrange(5))).encode("utf-8", "replace")
    else:
        content = "".join(draw.choice(WORDS) for _ in range(9)).encode("utf-8", "replace")
    encoding = draw.choice([None] * 6 + ["gzip", "deflate", "br", "gzip, gzip", "é"])
    if encoding == "gzip" and draw.random() < 0.7:
        content = gzip.compress(content)
    return content[: draw.choice([len(content), draw.randrange(len(content) + 1)])], encoding


def answer_of(draw):
    """Status, headers, and the pieces of the body."""
    content, encoding = body_of(draw)
    headers = [(draw.choice(NAMES).encode("utf-8"), header_of(draw)) for _ in range(draw.randrange(8))]
    if encoding is not None:
        headers.append((b"content-encoding", encoding.encode()))
    size = draw.choice([1, 7, 1_000])
    pieces = [content[at : at + size] for at in range(0, len(content), size)]
    return draw.choice([200, 200, 200, 204, 400, 402, 429, 429, 500, 503, 529, 599]), headers, pieces


def stream_of(lib, pieces):
    class Pieces(lib.AsyncByteStream):
        async def __aiter__(self):
            for piece in pieces:
                yield piece

    return Pieces()


async def read(lib, client, number):
    """All that a caller sees of an answer."""
    body = {"model": "m", "messages": [], "n": number}
    try:
        async with client.stream("POST", "http://api.test/v1/chat/completions", json=body) as response:
            status, headers = response.status_code, response.headers.raw
            return status, headers, b"".join([piece async for piece in response.aiter_raw()])
    except (lib.HTTPError, PenstockError) as error:
        return type(error), str(error), b""


@pytest.fixture
def warned(monkeypatch):
    """What could not be read beside an answer, which no answer may make happen."""
    said = []

    def warn(message):
        if message.startswith("could not"):
            said.append(message)

    monkeypatch.setattr(exchange, "warn_once", warn)
    return said


CLIENTS = {
    "auto": lambda client: limit_client(client, max_wait=600, max_pause=20),
    "any host": lambda client: limit_http_client(client, "auto", max_wait=600, max_pause=20),
    "limits given": lambda client: limit_client(
        client,
        Limiter(requests="10M/min", tokens="10G/min", output_tokens="10G/min", places=in_flight(3)),
        max_wait=600,
        max_pause=20,
        cost="total",
        on_event=lambda _: None,
    ),
}


class Service:
    """Answers by its script, over and over, and notes what it answered."""

    def __init__(self, lib):
        self.lib, self.script, self.said = lib, [], []

    async def __call__(self, _):
        answer = self.script[len(self.said) % len(self.script)]
        self.said.append(answer)
        status, headers, pieces = answer
        return self.lib.Response(status, headers=headers, stream=stream_of(self.lib, pieces))

    def begin(self, script):
        self.script, self.said = script, []


def told(headers):
    """Without the one that we add, so that no SDK repeats what is for ever."""
    return [pair for pair in headers if pair[0].lower() != b"x-should-retry"]


@pytest.mark.parametrize("kind", CLIENTS)
async def test_an_answer_of_any_kind_reaches_the_caller_as_it_was_sent(lib, kind, virtual_time, warned):
    """Or a refusal of ours does: the service may have asked for a longer wait than the caller accepts."""
    draw, answered = random.Random(kind), 0
    for number in range(0, MANY, AGAIN):
        service = Service(lib)
        plain = lib.AsyncClient(transport=lib.MockTransport(service))
        client = CLIENTS[kind](lib.AsyncClient(transport=lib.MockTransport(service)))
        for _ in range(AGAIN):
            service.begin([answer_of(draw) for _ in range(3)])
            with anyio.fail_after(700):
                mine = await read(lib, client, number)
            if not service.said:  # refused by us, before anything was sent
                continue
            service.begin(service.said[-1:])
            theirs = await read(lib, plain, number)
            if mine[0] == theirs[0]:
                answered += 1
                assert (mine[2], told(mine[1])) == (theirs[2], told(theirs[1]))
            else:
                assert mine[0] in {429, RateLimited}
        if kind != "any host":
            for endpoint in limits_of(client).values():
                endpoint.statistics()
    assert answered > MANY / 10
    assert not warned


@pytest.mark.parametrize("encoding", ["é".encode("latin-1"), "é".encode(), b"\xff", b"gzip, \xe9"])
async def test_an_encoding_that_is_no_ascii_costs_no_answer(lib, encoding):
    """Neither library makes headers of such a text, which it has read itself; and the usage is to be told."""
    answer = {"usage": {"total_tokens": 3}}

    def server(_):
        return lib.Response(
            200, headers=[(b"content-encoding", encoding)], stream=lib.ByteStream(json.dumps(answer).encode())
        )

    limits = Limiter(requests="100/s", tokens="90k/min")
    client = lib.AsyncClient(transport=lib.MockTransport(server))
    async with limit_client(client, limits, on_event=lambda _: None) as client:
        request = client.build_request("POST", "http://x.test/v1/chat/completions", json={"model": "m", "messages": []})
        reply = await client.send(request, stream=True)
        assert json.loads(b"".join([each async for each in reply.aiter_raw()])) == answer
