"""The limiter under an HTTP client: what is sent when, and what becomes of it. In virtual time, with both libraries."""

from __future__ import annotations

import gc
import gzip
import json

import anyio
import httpx
import pytest

from penstock import Limiter, Rate, in_flight, per_minute, turn
from penstock.llm import exchange
from penstock.llm.clients import limit_client, limits_of
from penstock.llm.endpoints import Endpoint
from penstock.simulator import Simulation, create_app
from tests.llm.clients import CHAT, FOUR, HELLO, Server, at_once, levels, limited, refusal

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("quick_collections")]


@pytest.fixture(autouse=True)
def _time(virtual_time):
    """Nothing here takes any time."""


# Charging


async def test_every_request_is_charged_what_its_body_costs(lib):
    limiter = Limiter(requests=per_minute(60), tokens=per_minute(6_000))
    client = limited(lib, Server(lib), limiter)
    await client.post(CHAT, json=HELLO)
    await client.post("http://api.test/v1/embeddings", json={"model": "e", "input": "four"})
    assert levels(limiter) == {"requests": 58, "tokens": 6_000 - 6 - 1}


async def test_endpoints_that_take_no_tokens_are_one_request(lib):
    limiter = Limiter(requests=Rate(60, 60), tokens=per_minute(6_000))
    client = limited(lib, Server(lib), limiter)
    await client.get("http://api.test/v1/models")
    await client.post("http://api.test/v1/files", files={"file": b"{}"}, data={"purpose": "batch"})
    assert levels(limiter)["requests"] == 58
    assert levels(limiter)["tokens"] == 6_000


async def test_a_rule_of_ones_own_says_what_a_request_costs_or_that_it_is_free(lib):
    limiter = Limiter(requests=per_minute(60), tokens=per_minute(6_000))

    def cost(path, body):
        return None if path.endswith("/models") else {"tokens": 1_000 * len(body["messages"])}

    client = limited(lib, Server(lib), limiter, cost=cost)
    await client.get("http://api.test/v1/models")
    assert levels(limiter) == {"requests": 60, "tokens": 6_000}
    await client.post(CHAT, json=HELLO)
    assert levels(limiter) == {"requests": 59, "tokens": 5_000}


async def test_units_that_are_not_limited_are_not_charged(lib):
    limiter = Limiter(tokens=per_minute(6_000))
    await limited(lib, Server(lib), limiter).post(CHAT, json=HELLO)
    assert levels(limiter) == {"tokens": 6_000 - 6}


async def test_requests_wait_for_their_turn_before_they_are_sent(lib):
    """Six arrive, four may leave at once, and one a second is refilled; 0.25 s are added to a wait as headroom."""
    server = Server(lib, latency=5.0)
    client = limited(lib, server, Limiter(requests=Rate(60, 60, burst=4)))
    await at_once(*(client.post(CHAT, json=HELLO) for _ in range(6)))
    assert server.times == pytest.approx([0, 0, 0, 0, 1.25, 2.25])


async def test_a_request_that_was_given_up_in_the_line_costs_nothing(lib):
    limiter = Limiter(requests=Rate(60, 60, burst=1))
    server = Server(lib)
    client = limited(lib, server, limiter)
    await client.post(CHAT, json=HELLO)
    async with anyio.create_task_group() as group:
        group.start_soon(client.post, CHAT)
        await anyio.sleep(0.5)
        group.cancel_scope.cancel()
    assert server.times == [0]
    assert limiter.statistics().waiting == 0
    await client.post(CHAT, json=HELLO)
    assert server.times == [0, 1]


async def test_a_request_that_never_left_costs_nothing(lib):
    limiter = Limiter(requests=per_minute(60), tokens=per_minute(6_000))
    client = limited(lib, Server(lib, lib.ConnectError("no route"), lib.PoolTimeout("full")), limiter)
    for error in (lib.ConnectError, lib.PoolTimeout):
        with pytest.raises(error):
            await client.post(CHAT, json=HELLO)
    assert levels(limiter) == {"requests": 60, "tokens": 6_000}


@pytest.mark.parametrize("error", ["ProxyError", "ConnectError"])
async def test_a_request_that_got_no_further_than_the_proxy_costs_nothing(lib, error):
    """The request to connect is sent, and traced as one; then the proxy refuses, or the server's certificate is
    wrong."""

    class Transport(lib.AsyncHTTPTransport):
        async def handle_async_request(self, request):
            await request.extensions["trace"]("http11.send_request_headers.started", {})
            raise getattr(lib, error)("403 Forbidden")

    limiter = Limiter(requests=per_minute(60), places=in_flight(2))
    with pytest.raises(getattr(lib, error)):
        await limited(lib, Transport(), limiter).post(CHAT, json=HELLO)
    assert levels(limiter) == {"requests": 60, "places": 2}


async def test_what_got_no_further_than_the_proxy_is_taken_back_from_limits_that_were_learned(lib):
    class Transport(lib.AsyncHTTPTransport):
        proxy_refuses = False

        async def handle_async_request(self, request):
            await request.extensions["trace"]("http11.send_request_headers.started", {})
            if self.proxy_refuses:
                raise lib.ProxyError("403 Forbidden")
            told = {"limit": "60", "remaining": "59", "reset": "1s"}
            return lib.Response(200, headers={f"x-ratelimit-{name}-requests": value for name, value in told.items()})

    transport = Transport()
    client = limited(lib, transport)
    await client.post(CHAT, json=HELLO)
    await anyio.sleep(5)
    endpoint = limits_of(client)["gpt-4o"]
    before, transport.proxy_refuses = endpoint.statistics().levels, True
    with pytest.raises(lib.ProxyError):
        await client.post(CHAT, json=HELLO)
    assert endpoint.statistics().levels == before


async def test_a_request_that_may_have_arrived_stays_charged(lib):
    limiter = Limiter(requests=per_minute(60), tokens=per_minute(6_000))
    client = limited(lib, Server(lib, lib.ReadError("reset"), lib.Response(500)), limiter)
    with pytest.raises(lib.ReadError):
        await client.post(CHAT, json=HELLO)
    assert (await client.post(CHAT, json=HELLO)).status_code == 500
    assert levels(limiter) == {"requests": 58, "tokens": 6_000 - 12}


# "Not now"


async def test_one_429_stops_everybody_once(lib):
    """What is on its way is let go; nobody leaves before the time the service named, then all go on in order."""
    server = Server(lib, None, refusal(lib, retry_after="7"), latency=0.1)
    limiter = Limiter(requests=Rate(600, 60, burst=1))  # one every 0.1 s
    client = limited(lib, server, limiter)
    answers = await at_once(*(client.post(CHAT, json=HELLO) for _ in range(10)))
    assert sorted(answer.status_code for answer in answers) == [200] * 9 + [429]
    before = [time for time in server.times if time < 0.35]
    after = server.times[len(before) :]
    assert len(before) <= 3
    assert 0.2 + 7 <= after[0] <= 0.3 + 7 * 1.1 + 0.1
    assert after[-1] - after[0] == pytest.approx(0.1 * (len(after) - 1), abs=1e-6)


@pytest.mark.parametrize(
    ("headers", "message", "seconds"),
    [
        ({"retry_after": "3"}, "", 3),
        ({"retry_after_ms": "1500"}, "", 1.5),
        ({"retry_after": "1"}, "Rate limit reached. Please try again in 2m5.5s.", 125.5),
        ({}, "Rate limit reached. Please try again in 6ms.", 0.006),
    ],
)
@pytest.mark.filterwarnings("ignore:the service asks to wait")
async def test_the_pause_is_as_long_as_the_service_asks_for(lib, headers, message, seconds):
    limiter = Limiter(requests=per_minute(6_000))
    client = limited(lib, Server(lib, refusal(lib, message, **headers)), limiter)
    await client.post(CHAT, json=HELLO)
    assert seconds <= limiter.statistics().paused_for <= seconds * 1.1 + 0.02


async def test_a_service_that_never_says_for_how_long_is_left_alone_twice_as_long_each_time(lib):
    limiter = Limiter(requests=per_minute(6_000))
    server = Server(lib, *(refusal(lib) for _ in range(3)), None, refusal(lib))
    client = limited(lib, server, limiter)
    pauses = []
    for _ in range(5):
        await client.post(CHAT, json=HELLO)
        pauses.append(limiter.statistics().paused_for)
    for pause, seconds in zip(pauses, (1, 2, 4, 0, 1), strict=True):
        assert seconds <= pause <= seconds * 1.1 + 0.02


async def test_a_service_that_says_0_is_left_alone_as_one_that_says_nothing(lib):
    limiter = Limiter(requests=per_minute(6_000))
    server = Server(lib, *(refusal(lib, retry_after="0") for _ in range(4)))
    client = limited(lib, server, limiter)
    for _ in range(5):
        await client.post(CHAT, json=HELLO)
    assert server.times[-1] >= 1 + 2 + 4 + 8


async def test_a_body_that_is_nested_too_deeply_is_charged_as_none(lib):
    limiter = Limiter(requests=per_minute(60), tokens=per_minute(6_000))
    answer = await limited(lib, Server(lib), limiter).post(CHAT, content=b'{"model":' * 100_000)
    assert answer.status_code == 200
    assert levels(limiter)["requests"] == 59


async def test_many_429s_that_were_on_their_way_together_count_as_one(lib):
    limiter = Limiter(requests=per_minute(6_000))
    client = limited(lib, Server(lib, *(refusal(lib) for _ in range(20)), latency=0.5), limiter)
    await at_once(*(client.post(CHAT, json=HELLO) for _ in range(20)))
    assert 0.9 <= limiter.statistics().paused_for <= 1.2


async def test_nobody_waits_with_a_place_in_flight(lib):
    """A refused request gives its place back before anybody waits: the pause happens in the line, not in the permit."""
    limiter = Limiter(requests=per_minute(6_000), places=in_flight(1))
    client = limited(lib, Server(lib, refusal(lib, retry_after="5")), limiter)
    await client.post(CHAT, json=HELLO)
    assert limiter.statistics().in_flight == 0
    assert limiter.statistics().paused_for >= 5


async def test_an_account_without_money_pauses_nobody_and_is_not_to_be_retried(lib):
    limiter = Limiter(requests=per_minute(6_000))
    client = limited(lib, Server(lib, refusal(lib, code="insufficient_quota", retry_after="9")), limiter)
    answer = await client.post(CHAT, json=HELLO)
    assert answer.headers["x-should-retry"] == "false"
    assert answer.json()["error"]["code"] == "insufficient_quota"
    assert limiter.statistics().paused_for == 0


async def test_a_request_too_large_for_the_service_is_not_to_be_retried(lib):
    message = "Request too large for gpt-4o on tokens per min (TPM): Limit 10000, Requested 11454."
    client = limited(lib, Server(lib, refusal(lib, message)), Limiter(requests=per_minute(60)))
    assert (await client.post(CHAT, json=HELLO)).headers["x-should-retry"] == "false"


async def test_what_the_service_wants_retried_is_left_to_the_sdk(lib):
    client = limited(lib, Server(lib, refusal(lib), lib.Response(500)), Limiter(requests=per_minute(60)))
    for _ in range(2):
        assert "x-should-retry" not in (await client.post(CHAT, json=HELLO)).headers


async def test_what_the_service_wants_retried_though_it_can_never_fit_is_left_to_the_sdk(lib):
    words, limiter = "Request too large: Limit 10, Requested 20.", Limiter(requests=per_minute(60))
    for wants, told in (("true", "true"), (None, "false")):
        answer = refusal(lib, words, **({} if wants is None else {"x_should_retry": wants}))
        answer = await limited(lib, Server(lib, answer), limiter).post(CHAT, json=HELLO)
        assert (answer.status_code, answer.headers["x-should-retry"]) == (429, told)
    assert limiter.statistics().paused_for == 0


@pytest.mark.parametrize(
    ("place", "name", "status", "words"),
    [
        (exchange._headers, "read", 200, "what an answer's headers say"),
        (exchange, "judge", 429, "why a request was refused"),
        (Endpoint, "settled", 200, "what an answer used"),
    ],
)
async def test_a_fault_of_ours_beside_an_answer_costs_no_answer_and_is_told_once(
    lib, monkeypatch, place, name, status, words
):
    def broken(*_, **__):
        raise ZeroDivisionError("ours")

    monkeypatch.setattr(place, name, broken)
    monkeypatch.setattr(exchange, "_warned", set())
    limiter = Limiter(requests=per_minute(60), output_tokens=per_minute(60_000), places=in_flight(2))
    body = {"usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}}
    client = limited(lib, Server(lib, *(lib.Response(status, json=body) for _ in range(2))), limiter)
    with pytest.warns(RuntimeWarning, match=f"could not .*{words}.*: ZeroDivisionError: ours") as told:
        answers = [await client.post(CHAT, json=HELLO) for _ in range(2)]
    assert ([answer.json() for answer in answers], len(told)) == ([body, body], 1)
    assert limiter.statistics().in_flight == 0


async def test_a_compressed_429_is_understood_and_handed_on(lib):
    raw = gzip.compress(json.dumps({"error": {"message": "no", "code": "insufficient_quota"}}).encode())

    async def parts():
        yield raw[:10]
        yield raw[10:]

    answer = lib.Response(429, headers={"content-encoding": "gzip"}, content=parts())
    got = await limited(lib, Server(lib, answer), Limiter(requests=per_minute(60))).post(CHAT, json=HELLO)
    assert got.headers["x-should-retry"] == "false"
    assert got.json()["error"]["message"] == "no"


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("error", ["ReadError", "ReadTimeout", "RemoteProtocolError"])
async def test_a_refusal_whose_body_breaks_off_is_waited_out_by_its_headers(lib, error, status):
    async def broken():
        yield b"{"
        raise getattr(lib, error)("reset")

    limiter = Limiter(requests=per_minute(6_000), places=in_flight(1))
    refusal = lib.Response(status, headers={"retry-after": "4"}, content=broken())
    began = anyio.current_time()
    answer = await limited(lib, Server(lib, refusal), limiter, hold=True).post(CHAT, json=HELLO)
    assert answer.status_code == 200
    assert anyio.current_time() - began >= 4
    assert limiter.statistics().in_flight == 0


# What is not sent


async def test_a_request_that_can_never_fit_is_answered_in_the_services_stead(lib):
    """No exception: SDKs would retry it, and call it trouble with the connection."""
    server = Server(lib)
    client = limited(lib, server, Limiter(requests=per_minute(60), tokens=per_minute(10)))
    answer = await client.post(CHAT, json=FOUR)
    assert server.times == []
    assert answer.status_code == 400
    assert answer.headers["x-should-retry"] == "false"
    assert answer.json()["error"] == {
        "message": 'Not sent: 100 tokens can never be granted: "tokens" holds at most 10 at once. '
        "Split the call, raise burst, or allow overdraft.",
        "type": "penstock",
        "param": None,
        "code": "request_too_large",
    }


async def test_a_wait_that_is_too_long_is_refused_at_once(lib):
    server = Server(lib)
    client = limited(lib, server, Limiter(requests=Rate(60, 60, burst=1)), max_wait=2)
    answers = await at_once(*(client.post(CHAT, json=HELLO) for _ in range(4)))
    assert sorted(answer.status_code for answer in answers) == [200, 200, 200, 429]
    assert anyio.current_time() == 2
    (late,) = (answer for answer in answers if answer.status_code == 429)
    assert late.headers["retry-after"] == "3.000"
    assert late.json()["error"]["code"] == "rate_limited"


async def test_a_cost_without_a_unit_that_is_limited_says_which(lib):
    client = limited(lib, Server(lib), Limiter(requests=per_minute(60), dollars=per_minute(10)))
    answer = await client.post(CHAT, json=HELLO)
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "missing_unit"
    assert "dollars" in answer.json()["error"]["message"]


@pytest.mark.parametrize("told", [5, [("tokens", 5)], {"tokens": "5"}, {"tokens": None}])
async def test_a_rule_that_tells_no_numbers_is_a_wrong_cost(lib, told):
    """No exception out of the transport: old SDKs would call it trouble with the connection, and retry."""
    server = Server(lib)
    client = limited(lib, server, Limiter(requests=per_minute(60), tokens=per_minute(60)), cost=lambda path, body: told)
    answer = await client.post(CHAT, json=HELLO)
    assert (answer.status_code, server.times) == (400, [])
    assert answer.json()["error"]["code"] == "cost_error"
    assert repr(told) in answer.json()["error"]["message"]


async def test_a_rule_that_would_have_to_be_awaited_is_refused():
    async def cost(path, body):
        return {"tokens": 1}

    with pytest.raises(TypeError, match="called and not awaited"):
        limit_client(httpx.AsyncClient(), cost=cost)


# Places in flight


async def chunks(gate=None):
    yield b"data: 1\n\n"
    if gate is not None:
        await gate.wait()
    yield b"data: 2\n\n"


async def test_a_stream_keeps_its_place_until_it_is_read(lib):
    limiter = Limiter(requests=per_minute(60), places=in_flight(2))
    client = limited(lib, Server(lib, lib.Response(200, content=chunks())), limiter)
    async with client.stream("POST", CHAT, json=HELLO) as answer:
        assert limiter.statistics().in_flight == 1
        assert [chunk async for chunk in answer.aiter_bytes()] == [b"data: 1\n\n", b"data: 2\n\n"]
        assert limiter.statistics().in_flight == 0


async def test_a_stream_that_is_left_early_gives_its_place_back(lib):
    limiter = Limiter(requests=per_minute(60), places=in_flight(2))
    client = limited(lib, Server(lib, lib.Response(200, content=chunks())), limiter)
    async with client.stream("POST", CHAT, json=HELLO) as answer:
        async for _ in answer.aiter_bytes():
            break
        assert limiter.statistics().in_flight == 1
    assert limiter.statistics().in_flight == 0


async def test_a_stream_that_is_dropped_and_never_closed_gives_its_place_back(lib):
    limiter = Limiter(requests=per_minute(60), places=in_flight(1))
    client = limited(lib, Server(lib, lib.Response(200, content=chunks())), limiter)
    answer = await client.send(client.build_request("POST", CHAT, json=HELLO), stream=True)
    assert limiter.statistics().in_flight == 1
    del answer
    gc.collect()
    await anyio.sleep(0)
    with anyio.fail_after(20):
        await client.post(CHAT, json=HELLO)


async def test_a_stream_that_is_kept_and_never_read_gives_its_place_back_after_its_time_to_live(lib):
    limiter = Limiter(requests=per_minute(60), places=in_flight(1, ttl=30))
    server = Server(lib, lib.Response(200, content=chunks()))
    client = limited(lib, server, limiter)
    kept = await client.send(client.build_request("POST", CHAT, json=HELLO), stream=True)
    with pytest.warns(RuntimeWarning, match="was not closed within its time to live"):
        await client.post(CHAT, json=HELLO)
    assert server.times == [0, 30]
    await kept.aclose()
    assert limiter.statistics().in_flight == 0


# The server's side


async def test_what_strangers_took_is_heard_and_waited_for(lib):
    """We think that there are 59 left; the service says 1. So the second request goes, and the third waits."""
    headers = {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "1",
        "x-ratelimit-reset-requests": "59s",
    }
    server = Server(lib, headers=headers)
    client = limited(lib, server, Limiter(requests=per_minute(60)))
    await client.post(CHAT, json=HELLO)  # tells that there are such limits
    await anyio.sleep(1)
    for _ in range(3):
        await client.post(CHAT, json=HELLO)
    assert server.times[:3] == [0, 1, pytest.approx(1.25, abs=0.3)]
    assert server.times[3] >= 2


async def test_a_limit_below_the_services_own_is_kept_whatever_it_says(lib):
    """Half of the account's limit is ours; that the service has more left does not raise it."""
    headers = {
        "x-ratelimit-limit-requests": "600",
        "x-ratelimit-remaining-requests": "599",
        "x-ratelimit-reset-requests": "100ms",
    }
    server = Server(lib, headers=headers)
    client = limited(lib, server, Limiter(requests=Rate(60, 60, burst=2)))
    for _ in range(5):
        await client.post(CHAT, json=HELLO)
    assert server.times == pytest.approx([0, 0, 1.25, 2.25, 3.25])


async def test_a_limiter_that_is_reconfigured_is_followed(lib):
    """Ten times as much is allowed from now on, and what was known of the old limit does not hold it down."""
    server = Server(lib)
    limiter = Limiter(requests=Rate(60, 60, burst=1), tokens=Rate(600, 60))
    client = limited(lib, server, limiter)
    await client.post(CHAT, json=HELLO)
    limiter.reconfigure(requests=Rate(600, 60, burst=1))
    for _ in range(20):
        await client.post(CHAT, json=HELLO)
    assert server.times[-1] <= 1 + 2
    left = levels(limiter)["tokens"]
    assert left == pytest.approx(600 - 21 * 6 + 10 * server.times[-1], abs=3)  # the other is what it was


class Slow:
    """As httpcore: the first connection takes a second; then it says that it sends."""

    def transport(self, lib, server):
        class Transport(lib.AsyncHTTPTransport):
            connected = False

            async def handle_async_request(self, request):
                trace = request.extensions["trace"]
                await trace("connection.connect_tcp.started", {})
                if not self.connected:
                    await anyio.sleep(1)
                    self.connected = True
                await trace("http11.send_request_headers.started", {})
                return await server(request)

        return Transport()


async def test_charges_count_from_when_a_request_leaves(lib):
    """The burst leaves a second late. Who then went on by our own clock alone would come a second too early."""
    app = create_app(Simulation(requests="60/min", tolerance=0))
    inner = lib.ASGITransport(app=app)
    transport = Slow().transport(lib, inner.handle_async_request)
    client = limited(lib, transport, Limiter(requests=Rate(60, 60)))
    key = {"authorization": "Bearer x"}
    answers = await at_once(*(client.post(CHAT, json=HELLO, headers=key) for _ in range(66)))
    assert {answer.status_code for answer in answers} == {200}
    assert anyio.current_time() == pytest.approx(1 + 6 + 0.25, abs=0.05)


# The client


async def test_the_given_client_is_left_as_it_was(lib):
    limiter = Limiter(requests=per_minute(60))
    original = lib.AsyncClient(transport=lib.MockTransport(Server(lib)), headers={"x": "y"}, timeout=3)
    client = limit_client(original, limiter)
    assert type(client) is type(original)
    await original.post(CHAT, json=HELLO)
    assert limiter.statistics().granted == 0
    await client.post(CHAT, json=HELLO)
    assert limiter.statistics().granted == 1
    assert (client.headers["x"], client.timeout) == ("y", lib.Timeout(3))


async def test_a_copy_that_is_dropped_leaves_the_connections_of_the_original_alone(lib):
    """SDKs' clients close themselves when they are collected; what is in flight elsewhere must not notice."""
    closed = []

    class Transport(lib.BaseTransport):
        def close(self):
            closed.append(self)

    class ClosesItself(lib.Client):
        def __del__(self):
            self.close()

    original = ClosesItself(transport=Transport())
    client = limit_client(original)
    assert isinstance(client, ClosesItself)
    del client
    gc.collect()
    assert closed == []
    client = limit_client(original)
    del original
    gc.collect()
    assert closed == []  # the copy needs them still
    del client
    gc.collect()
    assert len(closed) == 1


async def test_mounted_transports_are_limited_too(lib):
    limiter = Limiter(requests=per_minute(60))
    original = lib.AsyncClient(mounts={"http://api.test": lib.MockTransport(Server(lib)), "http://free.test": None})
    await limit_client(original, limiter).post(CHAT, json=HELLO)
    assert limiter.statistics().granted == 1


async def test_a_client_is_limited_once(lib):
    client = limited(lib, Server(lib), Limiter(requests=per_minute(60)))
    with pytest.raises(ValueError, match="a & b"):
        limit_client(client)


@pytest.mark.parametrize("thing", [None, "client", object()])
async def test_what_is_no_client_is_refused(thing):
    with pytest.raises(TypeError, match="httpx"):
        limit_client(thing)


async def test_a_wrong_max_wait_is_refused():
    with pytest.raises(ValueError, match="max_wait"):
        limit_client(httpx.AsyncClient(), max_wait=-1)


async def test_a_trace_of_the_users_own_is_called_as_well(lib):
    heard = []

    async def trace(event, info):
        heard.append(event)

    class Transport(lib.AsyncHTTPTransport):
        async def handle_async_request(self, request):
            await request.extensions["trace"]("http11.send_request_headers.started", {})
            return lib.Response(200)

    client = limited(lib, Transport(), Limiter(requests=per_minute(60)))
    await client.post(CHAT, json=HELLO, extensions={"trace": trace})
    assert heard == ["http11.send_request_headers.started"]


def test_a_trace_of_the_users_own_is_called_by_a_sync_client_too(lib):
    heard = []

    class Transport(lib.HTTPTransport):
        def handle_request(self, request):
            request.extensions["trace"]("http11.send_request_headers.started", {})
            return lib.Response(200)

    client = limit_client(lib.Client(transport=Transport()), Limiter(requests=per_minute(60)))
    client.post(CHAT, json=HELLO, extensions={"trace": lambda event, _: heard.append(event)})
    assert heard == ["http11.send_request_headers.started"]


# Held below the SDK


async def test_a_refused_request_is_held_and_sent_again_first_of_all(lib):
    """The SDK's own two retries are not what decides whether a user sees an error."""
    server = Server(lib, *(refusal(lib, retry_after="2") for _ in range(5)))
    limiter = Limiter(requests=Rate(600, 60, burst=1))
    client = limited(lib, server, limiter, hold=True)
    answers = await at_once(*(client.post(CHAT, json={**HELLO, "user": str(n)}) for n in range(4)))
    assert {answer.status_code for answer in answers} == {200}
    assert len(server.times) == 9


async def test_a_block_says_whose_requests_go_first_and_a_held_one_stays_as_urgent(lib):
    """Interactive traffic and batch through one client; a held request of the batch does not go before what is
    urgent."""
    server = Server(lib, refusal(lib, retry_after="2"))
    client = limited(lib, server, Limiter(requests=Rate(60, 60, burst=1)), hold=True)

    async def ask(name, priority):
        with turn(priority=priority):
            await client.post(CHAT, json={**HELLO, "user": name})

    async with anyio.create_task_group() as group:
        for name, priority in (("held", 5), ("batch", 0), ("urgent", 9), ("between", 5)):
            group.start_soon(ask, name, priority)
            await anyio.wait_all_tasks_blocked()
    assert [json.loads(body)["user"] for body in server.bodies] == ["held", "urgent", "held", "between", "batch"]


async def test_the_longest_wait_of_a_block_is_that_of_a_request_with_all_its_tries(lib):
    server = Server(lib, *(refusal(lib, retry_after="2") for _ in range(50)))
    client = limited(lib, server, Limiter(requests=per_minute(600)), hold=True, max_wait=100)
    with turn(max_wait=5):
        answer = await client.post(CHAT, json=HELLO)
    assert answer.status_code == 429
    assert anyio.current_time() <= 5


async def test_a_request_is_held_no_longer_than_it_may_wait(lib):
    server = Server(lib, *(refusal(lib, retry_after="2") for _ in range(50)))
    client = limited(lib, server, Limiter(requests=per_minute(600)), hold=True, max_wait=5)
    answer = await client.post(CHAT, json=HELLO)
    assert (answer.status_code, answer.json()["error"]["code"]) == (429, "rate_limit_exceeded")
    assert anyio.current_time() <= 5


@pytest.mark.parametrize("code", ["insufficient_quota", "billing_hard_limit_reached"])
async def test_what_no_wait_mends_is_not_held(lib, code):
    server = Server(lib, refusal(lib, code=code, retry_after="2"))
    client = limited(lib, server, Limiter(requests=per_minute(600)), hold=True)
    assert (await client.post(CHAT, json=HELLO)).status_code == 429
    assert len(server.times) == 1


@pytest.mark.filterwarnings("ignore:the service asks to wait")
async def test_a_pause_above_max_pause_is_this_requests_and_not_everybodys(lib):
    server = Server(lib, refusal(lib, retry_after="5000"))
    client = limited(lib, server, Limiter(requests=per_minute(600)), hold=True)
    assert (await client.post(CHAT, json=HELLO)).status_code == 429
    assert (await client.post(CHAT, json=HELLO)).status_code == 200
    assert anyio.current_time() < 60


async def test_a_long_pause_is_told_once(lib, monkeypatch):
    monkeypatch.setattr("penstock.llm.exchange._warned", set())
    server = Server(lib, refusal(lib, retry_after="90"), refusal(lib, retry_after="90"))
    client = limited(lib, server, Limiter(requests=per_minute(600)), hold=True)
    with pytest.warns(RuntimeWarning, match="the service asks to wait 90 s") as heard:
        assert (await client.post(CHAT, json=HELLO)).status_code == 200
    assert len(heard) == 1
