"""Limits under any HTTP client: the public seam. In virtual time, with both libraries."""

from __future__ import annotations

import subprocess
import sys

import anyio
import httpx
import httpx2
import pytest

import penstock.http
from penstock import Keyed, Limiter, Rate, RateLimited, Unsatisfiable, per_minute
from penstock.http import limit_http_client, transport
from penstock.llm import limit_client

pytestmark = pytest.mark.anyio

URL = "http://api.test/things"


@pytest.fixture(params=[httpx2, httpx], ids=["httpx2", "httpx"])
def lib(request):
    return request.param


@pytest.fixture(autouse=True)
def _time(virtual_time):
    """Nothing here takes any time."""


class Server:
    """Answers in the order of a script, then with 200; notes when each request came."""

    def __init__(self, lib, *script):
        self.lib, self.script, self.times = lib, list(script), []

    async def __call__(self, request):
        self.times.append(anyio.current_time())
        answer = self.script.pop(0) if self.script else None
        return answer or self.lib.Response(200)


def client_of(lib, server, limiter, **options):
    return limit_http_client(lib.AsyncClient(transport=lib.MockTransport(server)), limiter, **options)


async def at_once(call, number):
    async with anyio.create_task_group() as group:
        for _ in range(number):
            group.start_soon(call)


async def test_requests_wait_for_their_turn(lib):
    server = Server(lib)
    client = client_of(lib, server, Limiter(requests=Rate(60, 60, burst=4)))
    await at_once(lambda: client.get(URL), 6)
    assert server.times == pytest.approx([0, 0, 0, 0, 1.25, 2.25])


async def test_a_refused_request_is_sent_again_and_the_caller_sees_its_answer(lib):
    server = Server(lib, lib.Response(429, headers={"retry-after": "7"}))
    client = client_of(lib, server, Limiter(requests=per_minute(600)))
    assert (await client.post(URL, content=b"x")).status_code == 200
    assert server.times == [0, pytest.approx(7, abs=0.8)]


async def test_a_body_that_is_a_stream_is_not_sent_again(lib):
    async def body():
        yield b"x"

    server = Server(lib, lib.Response(429, headers={"retry-after": "7"}))
    client = client_of(lib, server, Limiter(requests=per_minute(600)))
    assert (await client.post(URL, content=body())).status_code == 429
    assert len(server.times) == 1


async def test_own_errors_are_raised_as_they_are(lib):
    limiter = Limiter(requests=Rate(60, 60, burst=1))
    client = client_of(lib, Server(lib), limiter, max_wait=1)
    limiter.pause(3)
    with pytest.raises(RateLimited) as late:
        await client.get(URL)
    assert late.value.retry_after == 3
    client = client_of(lib, Server(lib), Limiter(requests=per_minute(60)), cost=lambda request: {"requests": 100})
    with pytest.raises(Unsatisfiable):
        await client.get(URL)


async def test_a_wait_that_is_too_long_hands_the_servers_own_refusal_over(lib):
    """What the server said is worth more than that we will not wait for it."""
    answer = lib.Response(429, headers={"retry-after": "30"}, json={"why": "busy"})
    client = client_of(lib, Server(lib, answer), Limiter(requests=per_minute(60)), max_wait=5)
    got = await client.get(URL)
    assert (got.status_code, got.json()) == (429, {"why": "busy"})


@pytest.mark.filterwarnings("ignore:the service asks to wait")
async def test_a_wait_of_a_day_fails_one_request_and_does_not_stop_the_others(lib):
    server = Server(lib, lib.Response(429, headers={"retry-after": "86400"}))
    client = client_of(lib, server, Limiter(requests=per_minute(60)))
    assert (await client.get(URL)).status_code == 429
    assert (await client.get(URL)).status_code == 200
    assert anyio.current_time() < 60


async def test_the_limiter_may_be_chosen_by_the_request(lib):
    server = Server(lib)
    per_host = Keyed(requests=Rate(60, 60, burst=1))
    client = client_of(lib, server, lambda request: per_host[request.url.host])
    for url in ("http://a.test", "http://b.test", "http://a.test"):
        await client.get(url)
    assert server.times == [0, 0, 1]


async def test_a_request_may_be_free(lib):
    limiter = Limiter(requests=Rate(60, 60, burst=1))
    client = client_of(lib, Server(lib), lambda request: None if request.url.path == "/health" else limiter)
    for _ in range(3):
        await client.get("http://a.test/health")
    assert anyio.current_time() == 0
    client = client_of(lib, Server(lib), limiter, cost=lambda request: None)
    await client.get(URL)
    assert limiter.statistics().granted == 0


async def test_auto_learns_the_limits_of_each_host(lib):
    """No number is named: one request finds out, and 25 more go as fast as the header allows."""
    left = {"a.test": [10.0, 0.0], "b.test": [1e9, 0.0]}

    async def server(request):
        host, now = request.url.host, anyio.current_time()
        level, at = left[host]
        left[host] = level, at = min(10.0, level + (now - at) * 1.0) if host == "a.test" else level, now
        if level < 1:
            refused.append(now)
            return lib.Response(429, headers={"retry-after": "1"})
        left[host] = level - 1, now
        times.append(now)
        headers = {"x-ratelimit-limit": "10", "x-ratelimit-remaining": str(int(level - 1)), "x-ratelimit-reset": "10"}
        return lib.Response(200, headers=headers if host == "a.test" else {})

    times, refused = [], []
    client = client_of(lib, server, "auto")
    await at_once(lambda: client.get("http://a.test/x"), 26)
    assert len(times) == 26
    assert len(refused) <= 2
    before = anyio.current_time()
    await client.get("http://b.test/x")
    assert anyio.current_time() == before


async def test_a_transport_for_clients_that_are_given_one(lib):
    server = Server(lib)
    inner = lib.MockTransport(server)
    limiter = Limiter(requests=Rate(60, 60, burst=1))
    async with lib.AsyncClient(transport=transport(inner, limiter)) as client:
        await client.get(URL)
        await client.get(URL)
    assert server.times == [0, 1]


def transport_class(lib, is_async):
    return getattr(penstock.http, f"{'Async' if is_async else ''}{lib.__name__.upper()}Transport")


async def test_a_transport_class_of_each_library(lib):
    server, kind = Server(lib), transport_class(lib, is_async=True)
    assert issubclass(kind, lib.AsyncBaseTransport)
    limiter = Limiter(requests=Rate(60, 60, burst=1))
    async with lib.AsyncClient(transport=kind(limiter, lib.MockTransport(server))) as client:
        await client.get(URL)
        await client.get(URL)
        with pytest.raises(ValueError, match="limited already"):
            limit_http_client(client, limiter)
    assert server.times == [0, 1]


def test_a_sync_transport_class_of_each_library(lib):
    kind, limiter = transport_class(lib, is_async=False), Limiter(requests=Rate(60, 60, burst=1))
    assert issubclass(kind, lib.BaseTransport)
    inner = lib.MockTransport(lambda _: lib.Response(200))
    with lib.Client(transport=kind(limiter, inner, max_wait=0.1)) as client:
        assert client.get(URL).status_code == 200
        with pytest.raises(RateLimited):
            client.get(URL)


async def test_a_transport_class_sends_by_itself_where_it_is_given_nothing_to_send_through(lib):
    for is_async in (True, False):
        made = transport_class(lib, is_async)(Limiter(requests=Rate(60, 60)))
        assert isinstance(made._inner, lib.AsyncHTTPTransport if is_async else lib.HTTPTransport)


def test_no_http_library_is_loaded_before_its_class_is_asked_for():
    code = "import sys, penstock.http; print([m for m in ('httpx', 'httpx2') if m in sys.modules])"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout == "[]\n"
    with pytest.raises(AttributeError, match="NoTransport"):
        penstock.http.NoTransport  # noqa: B018


@pytest.mark.parametrize("limiter", [None, 5, "automatic"])
async def test_what_is_no_limiter_is_refused(limiter):
    with pytest.raises(ValueError, match='a Limiter, a function of the request that returns one, or "auto"'):
        limit_http_client(httpx.AsyncClient(), limiter)


@pytest.mark.parametrize("limit", [limit_http_client, limit_client])
async def test_a_limiter_per_key_needs_a_function_that_says_which(limit):
    """A `Keyed` can be called, as it is a decorator, so it was taken for a function of the request."""
    with pytest.raises(ValueError, match=r"such as `lambda request: per_host\[request\.url\.host\]`"):
        limit(httpx.AsyncClient(), Keyed(requests="1/s"))


@pytest.mark.parametrize("limit", [limit_http_client, limit_client])
async def test_a_call_of_a_limiter_is_refused(limit):
    with pytest.raises(ValueError, match=r"give the limiter itself, not Limiter\(requests=1/s\)\(\): `cost=` says"):
        limit(httpx.AsyncClient(), Limiter(requests="1/s")())


async def test_what_is_no_client_is_refused():
    with pytest.raises(TypeError, match=r"a client of httpx or httpx2 is needed, not builtins\.object"):
        limit_http_client(object(), "auto")


async def test_what_is_no_transport_is_refused():
    with pytest.raises(TypeError, match="a transport of httpx or httpx2"):
        transport(object(), "auto")


async def test_a_client_is_limited_once(lib):
    client = client_of(lib, Server(lib), "auto")
    with pytest.raises(ValueError, match="a & b"):
        limit_http_client(client, "auto")


async def test_nothing_that_a_header_says_costs_the_answer(lib):
    for name in ("x-ratelimit-reset", "x-ratelimit-limit", "retry-after", "date", "ratelimit"):
        for value in ("9" * 100_000, "Wed, 99 Foo 99999 99:99:99 GMT", "-1", "nan", "1e999", "ä".encode("latin-1")):
            server = Server(
                lib, lib.Response(200, headers=[(name.encode(), value if isinstance(value, bytes) else value.encode())])
            )
            assert (await client_of(lib, server, "auto").get(URL)).status_code == 200
