"""What a listener hears of a client's requests: one record each, when its answer is over."""

from __future__ import annotations

import gc
import gzip
import json

import anyio
import pytest

from penstock import Limiter, in_flight, per_minute, turn
from penstock.events import Answered, Granted, Reconfigured, Refused
from penstock.http import limit_http_client
from penstock.llm import reporting
from penstock.llm.clients import limit_client
from penstock.llm.streams import ANSWER
from penstock.testing import RecordedEvents
from penstock.usage import Ledger
from tests.llm.clients import CHAT, HELLO, Server, limited, refusal
from tests.usage.readings import calls_of

pytestmark = pytest.mark.anyio

USAGE = {"prompt_tokens": 12, "completion_tokens": 30, "total_tokens": 42}
USED = {"input_tokens": 12.0, "output_tokens": 30.0}


@pytest.fixture(autouse=True)
def _time(virtual_time):
    """Nothing here takes any time."""


@pytest.fixture
def events():
    return RecordedEvents()


def limits(name=None):
    return Limiter(requests=per_minute(60), tokens=per_minute(6_000), name=name)


async def test_one_record_tells_all_of_a_request(lib, events, tmp_path):
    name = str(tmp_path)  # a name's state outlives its limiters
    server = Server(lib, lib.Response(200, json={"usage": USAGE}), latency=2.0)
    client = limited(lib, server, limits(name), on_event=events)
    with turn(flow="alice"):
        await client.post(CHAT, json=HELLO)
    (event,) = events.of(Answered)
    assert (event.limiter, event.model, event.flow, event.status) == (name, "gpt-4o", "alice", 200)
    assert (event.cost["tokens"], event.usage) == (6, USED)
    assert (event.waited, event.elapsed) == (0, pytest.approx(2))


async def test_the_time_in_the_queue_is_told(lib, events):
    client = limited(lib, Server(lib), Limiter(requests=per_minute(60, burst=1)), on_event=events)
    for _ in range(2):
        await client.post(CHAT, json=HELLO)
    assert [event.waited for event in events.of(Answered)] == pytest.approx([0, 1], abs=0.3)


async def test_a_refused_request_that_is_sent_again_is_two_attempts(lib, events):
    server = Server(lib, refusal(lib, retry_after="1"))
    client = limited(lib, server, limits(), hold=True, on_event=events)
    assert (await client.post(CHAT, json=HELLO)).status_code == 200
    assert [event.status for event in events.of(Answered)] == [429, 200]


async def test_an_answer_that_never_came_is_told_and_one_that_was_never_sent_is_not(lib, events):
    server = Server(lib, lib.ReadError("gone"), lib.ConnectError("nobody"))
    client = limited(lib, server, limits(), on_event=events)
    for error in (lib.ReadError, lib.ConnectError):
        with pytest.raises(error):
            await client.post(CHAT, json=HELLO)
    assert [event.status for event in events.of(Answered)] == [0]


async def test_what_is_refused_here_is_told(lib, events):
    client = limited(lib, Server(lib), Limiter(requests=per_minute(1)), on_event=events, max_wait=1)
    await client.post(CHAT, json=HELLO)
    with turn(flow="bob"):
        assert (await client.post(CHAT, json=HELLO)).status_code == 429
    (event,) = events.of(Refused)
    assert (event.limiter, event.flow, event.blocked_by) == (None, "bob", "requests")


async def test_what_is_refused_is_told_once_where_the_limiter_has_the_same_listener(lib, events):
    limiter = Limiter(requests=per_minute(1), on_event=events)
    client = limited(lib, Server(lib), limiter, on_event=events, max_wait=1)
    for _ in range(2):
        await client.post(CHAT, json=HELLO)
    assert len(events.of(Refused)) == 1


async def test_the_limits_are_told_when_they_are_new(lib, events):
    client = limited(lib, Server(lib), limits(), on_event=events)
    for _ in range(3):
        await client.post(CHAT, json=HELLO)
    (event,) = events.of(Reconfigured)
    assert event.limiter == "gpt-4o"
    assert {unit: [str(limit) for limit in kinds] for unit, kinds in event.limits.items()} == {
        "requests": ["60/min"],
        "tokens": ["6000/min"],
    }


async def test_learned_limits_are_told(lib, events):
    headers = {
        "x-ratelimit-limit-requests": "600", "x-ratelimit-remaining-requests": "599",
        "x-ratelimit-reset-requests": "100ms",
    }  # fmt: skip
    client = limited(lib, Server(lib, headers=headers), on_event=events)
    for _ in range(3):
        await client.post(CHAT, json=HELLO)
    assert any(
        limit.amount == pytest.approx(600, rel=0.01) and limit.per == 60
        for event in events.of(Reconfigured)
        for limit in event.limits.get("requests", ())
    )


def stream_of(*events):
    return b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events) + b"data: [DONE]\n\n"


@pytest.mark.parametrize(
    ("events_of_stream", "used"),
    [
        ([{"choices": [{}]}, {"choices": [], "usage": USAGE}], USED),
        ([{"type": "response.completed", "response": {"usage": {"input_tokens": 12, "output_tokens": 30}}}], USED),
        (
            [
                {"type": "message_start", "message": {"usage": {"input_tokens": 12, "output_tokens": 1}}},
                {"type": "message_delta", "usage": {"output_tokens": 30}},
            ],
            USED,
        ),
        ([{"usageMetadata": {"promptTokenCount": 12, "candidatesTokenCount": 30}}], USED),
        ([{"choices": [{"text": "usage" * 50_000}]}, {"usage": USAGE}], USED),
        ([{"choices": [{}], "usage": None}], {}),
    ],
    ids=["chat", "responses", "anthropic", "gemini", "long", "silent"],
)
async def test_the_usage_of_a_stream_is_told_when_it_ends(lib, events, events_of_stream, used):
    body = stream_of(*events_of_stream)

    class Chunks(lib.AsyncByteStream):
        async def __aiter__(self):
            for at in range(0, len(body), 1_000):
                await anyio.sleep(0.1)
                yield body[at : at + 1_000]

    def answer(_):
        return lib.Response(200, headers={"content-type": "text/event-stream"}, stream=Chunks())

    client = limited(lib, answer, limits(), on_event=events)
    seen = b""
    async with client.stream("POST", CHAT, json=HELLO) as response:
        async for chunk in response.aiter_bytes():
            assert events.of(Answered) == []
            seen += chunk
    assert seen == body
    (event,) = events.of(Answered)
    assert event.usage == used
    assert event.elapsed == pytest.approx(0.1 * -(-len(body) // 1_000))


@pytest.mark.parametrize(
    "content",
    [
        b'{"usage": {"prompt_tokens": "many"}}', b'{"usage": [1]}', b"[1]", b"{",
        b'{"usage": {"prompt_tokens": 1e999}}', b"\xff\xfe", b"[" * 100_000, b"",
    ],
)  # fmt: skip
async def test_whatever_an_answer_says_of_its_usage_the_caller_gets_it(lib, events, content):
    answer = lib.Response(200, content=content, headers={"content-type": "application/json"})
    client = limited(lib, Server(lib, answer), limits(), on_event=events)
    assert (await client.post(CHAT, json=HELLO)).content == content
    assert [event.usage for event in events.of(Answered)] == [{}]


async def test_a_compressed_answer_is_read_too(lib, events):
    raw = gzip.compress(json.dumps({"usage": USAGE}).encode())

    class Raw(lib.AsyncByteStream):
        async def __aiter__(self):
            yield raw[:20]
            yield raw[20:]

    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    client = limited(lib, lambda _: lib.Response(200, headers=headers, stream=Raw()), limits(), on_event=events)
    assert (await client.post(CHAT, json=HELLO)).json() == {"usage": USAGE}
    assert [event.usage for event in events.of(Answered)] == [USED]


async def test_an_answer_that_is_dropped_unread_is_told_with_the_next_request(lib, events):
    def answer(_):
        class Endless(lib.AsyncByteStream):
            async def __aiter__(self):
                yield b"x"

        return lib.Response(200, stream=Endless())

    client = limited(lib, answer, Limiter(requests=per_minute(60), calls=in_flight(1)), on_event=events)
    response = await client.send(client.build_request("POST", CHAT, json=HELLO), stream=True)
    del response
    gc.collect()
    async with client.stream("POST", CHAT, json=HELLO):
        assert [event.status for event in events.of(Answered)] == [200]


async def test_an_answer_that_is_left_and_closed_later_is_told_once(lib, events):
    transport = lib.MockTransport(lambda _: lib.Response(200, content=iter_of(b"x")))
    client = limited(lib, transport, Limiter(requests=per_minute(60), calls=in_flight(1)), on_event=events)
    async with client.stream("POST", CHAT, json=HELLO) as answer:
        answer.extensions[ANSWER].left()  # as a loop over an SDK's stream says that ends early
        await anyio.sleep(1)
        assert len(events.of(Answered)) == 1
    assert len(events.of(Answered)) == 1


async def iter_of(*pieces):
    for piece in pieces:
        yield piece


def test_models_whose_limits_were_reported_are_not_remembered_for_ever(events, monkeypatch):
    monkeypatch.setattr(reporting, "_REMEMBERED", 3)
    listener = reporting.Listener(events)
    for number in range(10):
        for _ in range(2):
            listener.limits(f"model {number}", {"requests": (per_minute(60),)})
    assert len(events.of(Reconfigured)) == 10
    assert len(listener._reported) <= 3


async def test_a_hook_that_fails_costs_no_answer(lib, caplog):
    def broken(_):
        raise RuntimeError

    client = limited(lib, Server(lib), limits(), on_event=broken)
    assert (await client.post(CHAT, json=HELLO)).status_code == 200
    assert "the event hook" in caplog.text


async def test_a_hook_that_would_have_to_be_awaited_is_refused(lib):
    async def later(_):
        pass

    for limit in (limit_client, limit_http_client):
        with pytest.raises(TypeError, match=r"on_event=.*later"):
            limit(lib.AsyncClient(), limits(), on_event=later)


async def test_any_http_client_tells_too(lib, events):
    transport = lib.MockTransport(lambda _: lib.Response(204))
    client = limit_http_client(lib.AsyncClient(transport=transport), limits(), on_event=events,
                               cost=lambda _: {"requests": 1, "tokens": 5})  # fmt: skip
    await client.get("http://api.test/things")
    (event,) = events.of(Answered)
    assert (event.model, event.status, event.cost) == (None, 204, {"requests": 1, "tokens": 5})


def test_sync_clients_tell_as_well(lib, events):
    transport = lib.MockTransport(lambda _: lib.Response(200, json={"usage": USAGE}))
    client = limit_client(lib.Client(transport=transport), limits(), on_event=events)
    client.post(CHAT, json=HELLO)
    assert [event.usage for event in events.of(Answered)] == [USED]


async def test_a_ledger_of_a_client_and_of_the_limiter_below_it_counts_once(lib, tmp_path):
    with Ledger(tmp_path / "usage.db") as ledger:
        limiter = Limiter(requests=per_minute(60), tokens=per_minute(6_000), on_event=ledger)
        client = limited(
            lib, Server(lib, lib.Response(200, json={"usage": USAGE})), limiter, on_event=ledger, max_wait=0
        )
        with turn(flow="alice"):
            await client.post(CHAT, json=HELLO)
        (call,) = calls_of(ledger)
        assert (call.user, call.model, call.outcome) == ("alice", "gpt-4o", "answered")
        assert (call.estimated["tokens"], call.settled["tokens"]) == (6, 42)
        assert call.dollars == pytest.approx(12 * 2.5e-6 + 30 * 10e-6)


async def test_the_limiter_and_the_client_name_one_permit_by_one_number(lib, events):
    limiter = Limiter(requests=per_minute(60), tokens=per_minute(6_000), on_event=events)
    await limited(lib, Server(lib), limiter, on_event=events).post(CHAT, json=HELLO)
    assert events.of(Granted)[0].call == events.of(Answered)[0].call != 0
