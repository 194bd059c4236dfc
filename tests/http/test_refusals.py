"""Refusals that are no 429, or tell the wait in their own way; and what else a server or a function may return."""

from __future__ import annotations

import itertools
import warnings
from datetime import timedelta
from decimal import Decimal
from fractions import Fraction

import anyio
import httpx
import httpx2
import pytest

from penstock import CostError, Limiter, RateLimited, clock, per_minute
from penstock.http import limit_http_client, transport
from penstock.llm import limits_of, retry_on
from penstock.llm.endpoints import Endpoints
from tests.http.test_http import URL, Server, at_once, client_of

pytestmark = pytest.mark.anyio


@pytest.fixture(params=[httpx2, httpx], ids=["httpx2", "httpx"])
def lib(request):
    return request.param


@pytest.fixture(autouse=True)
def _time(virtual_time):
    """Nothing here takes any time."""


def used_up(**more):
    return {"x-ratelimit-limit": "60", "x-ratelimit-remaining": "0", **more}


def in_seconds(seconds):
    return str(int(clock.wall()) + seconds)


@pytest.mark.parametrize(
    "told", [{"ratelimit-limit": "6000", "ratelimit-remaining": "5900", "ratelimit-reset": "1"}, {}]
)
@pytest.mark.parametrize("bound", ["max_wait", "deadline"])
async def test_nothing_is_refused_for_a_wait_that_is_a_guess(lib, told, bound):
    """Before the first answer one request goes at a time, and nobody knows how long that will be."""

    async def answer(_):
        await anyio.sleep(0.1)
        return lib.Response(200, headers=told)

    client = client_of(lib, answer, "auto", max_wait=3 if bound == "max_wait" else None)
    statuses = []

    async def ask():
        with anyio.fail_after(3):
            statuses.append((await client.get(URL)).status_code)

    await at_once(ask, 20)
    assert statuses == [200] * 20


async def test_a_guess_that_came_true_is_a_refusal_when_its_time_is_up(lib):
    async def answer(_):
        await anyio.sleep(60)

    client = client_of(lib, answer, "auto", max_wait=3)
    began = anyio.current_time()
    async with anyio.create_task_group() as group:
        group.start_soon(client.get, URL)
        await anyio.sleep(0.1)
        with pytest.raises(RateLimited, match="max_wait has passed"):
            await client.get(URL)
        assert anyio.current_time() - began == pytest.approx(3.1, abs=0.1)
        group.cancel_scope.cancel()


class GitHub:
    """Counts searches by themselves, 30 a minute, and all else together, 5,000 an hour; says so in each answer."""

    def __init__(self, lib):
        self.lib, self.used, self.refused, self.latest = lib, {"core": 0, "search": 0}, 0, {}

    async def __call__(self, request):
        await anyio.sleep(0.05)
        bucket = "search" if request.url.path.startswith("/search/") else "core"
        limit, length = {"core": (5_000, 3_600), "search": (30, 60)}[bucket]
        window = clock.wall() // length
        if self.latest.setdefault(bucket, window) != window:
            self.latest[bucket], self.used[bucket] = window, 0
        refused = self.used[bucket] >= limit
        self.used[bucket] += not refused
        self.refused += refused
        told = {
            "x-ratelimit-limit": limit,
            "x-ratelimit-remaining": limit - self.used[bucket],
            "x-ratelimit-reset": int((window + 1) * length),
            "x-ratelimit-resource": bucket,
        }
        return self.lib.Response(403 if refused else 200, headers={name: str(value) for name, value in told.items()})


async def test_buckets_that_answers_name_do_not_slow_each_other_down(lib):
    server = GitHub(lib)
    client = client_of(lib, server, "auto")
    statuses, ended = [], {}

    async def ask(path, number):
        for _ in range(number):
            answer = await client.get(f"http://github.test{path}")
            statuses.append(answer.status_code)
        ended[path] = anyio.current_time()

    await ask("/repos/a", 1)
    began = anyio.current_time()
    async with anyio.create_task_group() as group:
        for number in range(5):
            group.start_soon(ask, f"/repos/{number}", 12)
        for _ in range(2):
            group.start_soon(ask, "/search/code", 20)
    assert set(statuses) == {200}
    assert server.refused <= 4
    assert max(at for path, at in ended.items() if path != "/search/code") - began < 30
    assert 30 < ended["/search/code"] - began < 130
    assert set(limits_of(client)) == {"github.test", "github.test search"}


class Dripping:
    """A body that has no end, and takes some seconds for each piece."""

    def __init__(self, piece, every):
        self.piece, self.every, self.sent = piece, every, 0

    def __aiter__(self):
        return self

    async def __anext__(self):
        await anyio.sleep(self.every)
        self.sent += 1
        return self.piece


LIMITERS = {"given": lambda: Limiter(requests=per_minute(1_000)), "auto": lambda: "auto"}


@pytest.mark.parametrize("limiter", LIMITERS.values(), ids=LIMITERS)
@pytest.mark.parametrize(
    ("status", "headers"),
    [(403, {"retry-after": "20"}), (503, {"retry-after": "20"}), (429, {"retry-after": "20"})],
    ids=["403, as GitHub says it", "503", "429"],
)
async def test_a_refusal_that_names_the_wait_stops_everybody_and_is_sent_again(lib, limiter, status, headers):
    server = Server(lib, lib.Response(status, headers=headers))
    client = client_of(lib, server, limiter())
    assert (await client.get(URL)).status_code == 200
    assert 20 <= server.times[1] - server.times[0] <= 23
    server.script.append(lib.Response(status, headers=headers))
    began = anyio.current_time()
    await at_once(lambda: client.get(URL), 2)
    assert all(at - began < 1 or at - began >= 20 for at in server.times[2:])


@pytest.mark.parametrize("status", [403, 429])
async def test_a_limit_that_is_used_up_is_waited_for_until_it_is_back(lib, status):
    """GitHub, Twitter and Discord tell when their window ends, and no `Retry-After`."""
    server = Server(lib, lib.Response(status, headers=used_up(**{"x-ratelimit-reset": in_seconds(30)})))
    assert (await client_of(lib, server, Limiter(requests=per_minute(1_000))).get(URL)).status_code == 200
    assert 29 <= server.times[1] - server.times[0] <= 34


@pytest.mark.parametrize("limiter", LIMITERS.values(), ids=LIMITERS)
@pytest.mark.parametrize(
    ("status", "headers"),
    [(403, {}), (403, {"x-ratelimit-limit": "60", "x-ratelimit-remaining": "59"}), (503, {}), (500, {})],
)
async def test_an_error_that_tells_of_no_limit_is_the_callers(lib, limiter, status, headers):
    server = Server(lib, lib.Response(status, headers=headers))
    assert (await client_of(lib, server, limiter()).get(URL)).status_code == status
    assert len(server.times) == 1


@pytest.mark.parametrize(("words", "times"), [("Forbidden", 3), ("API rate limit exceeded for user 5.", 6)])
async def test_a_403_that_says_nothing_of_a_limit_is_asked_three_times(lib, words, times):
    """It may be no refusal of a limit's, though the last request of one was used for it."""
    server = Server(lib, *(lib.Response(403, headers=used_up(), json={"message": words}) for _ in range(5)))
    await client_of(lib, server, Limiter(requests=per_minute(600))).get(URL)
    assert len(server.times) == times


async def test_a_service_that_is_down_is_asked_three_times(lib):
    server = Server(lib, *(lib.Response(503, headers={"retry-after": "5"}) for _ in range(9)))
    assert (await client_of(lib, server, Limiter(requests=per_minute(600))).get(URL)).status_code == 503
    assert len(server.times) == 3


def test_a_retry_waits_for_the_same(lib):
    def error(status, **headers):
        request = lib.Request("GET", URL)
        return lib.HTTPStatusError("no", request=request, response=lib.Response(status, headers=headers))

    assert retry_on(error(403, **{"retry-after": "20"})) == 20
    assert retry_on(error(403, **used_up())) is True
    assert retry_on(error(403)) is False
    until = {"x-ratelimit-reset": in_seconds(30)}
    assert retry_on(error(429, **used_up(**until))) == pytest.approx(30, abs=1.5)


async def test_a_refusal_without_end_is_read_no_further_than_a_megabyte(lib):
    endless = Dripping(b"x" * 10_000, 0)
    server = Server(lib, lib.Response(429, headers={"retry-after": "9999"}, content=endless))
    answer = await client_of(lib, server, Limiter(requests=per_minute(600))).get(URL)
    assert (answer.status_code, len(answer.content)) == (429, 1_048_576)
    assert endless.sent < 200


async def test_a_stream_of_a_transports_own_is_read_no_further_either(lib):
    """Its iterator is no generator, and has nothing to close."""

    class Own(Dripping, lib.AsyncByteStream):
        async def aclose(self):
            self.closed = True

    endless = Own(b"x" * 10_000, 0)
    server = Server(lib, lib.Response(429, headers={"retry-after": "9999"}, stream=endless))

    class Transport(lib.AsyncBaseTransport):
        async def handle_async_request(self, request):
            return await server(request)

    client = limit_http_client(lib.AsyncClient(transport=Transport()), Limiter(requests=per_minute(600)))
    assert len((await client.get(URL)).content) == 1_048_576
    assert endless.sent < 200
    assert endless.closed


def test_a_sync_client_reads_no_further_either(lib):
    numbers = itertools.count()
    endless = (b"x" * 10_000 for _ in numbers)
    answer = lib.Response(429, headers={"retry-after": "9999"}, content=endless)
    http = lib.Client(transport=lib.MockTransport(lambda _: answer))
    client = limit_http_client(http, Limiter(requests=per_minute(600)))
    assert len(client.get(URL).content) == 1_048_576
    assert next(numbers) < 200


async def test_a_refusal_that_drips_is_read_for_ten_seconds(lib):
    server = Server(lib, lib.Response(429, headers={"retry-after": "9999"}, content=Dripping(b"x", 3)))
    answer = await client_of(lib, server, Limiter(requests=per_minute(600))).get(URL)
    assert (answer.status_code, answer.content) == (429, b"xxxx")


async def test_a_long_pause_is_told_once_however_often_the_seconds_change(lib):
    server = Server(lib, *(lib.Response(429, headers={"retry-after": str(90 - n)}) for n in range(5)))
    client = client_of(lib, server, Limiter(requests=per_minute(600)))
    with pytest.warns(RuntimeWarning, match="asks to wait 90 s") as heard:
        await at_once(lambda: client.get(URL), 3)
    assert len(heard) == 1


@pytest.mark.parametrize("number", [Decimal(2), Fraction(2), 2.0])
async def test_a_cost_is_whatever_python_calls_a_number(lib, number):
    limiter = Limiter(credits=per_minute(100))
    await client_of(lib, Server(lib), limiter, cost=lambda _: {"credits": number}).get(URL)
    assert limiter.statistics().limits["credits"].level == 98


async def test_a_cost_that_is_none_is_refused(lib):
    with pytest.raises(CostError, match="must return a number per unit"):
        await client_of(lib, Server(lib), "auto", cost=lambda _: {"requests": "1"}).get(URL)


async def test_waits_may_be_timedeltas(lib):
    refused = lib.Response(429, headers={"retry-after": "40"})
    client = client_of(
        lib, Server(lib, refused), "auto", max_wait=timedelta(minutes=1), max_pause=timedelta(seconds=30)
    )
    assert (await client.get(URL)).status_code == 429
    for wrong in ({"max_wait": "5"}, {"max_pause": None}, {"max_pause": float("nan")}, {"max_pause": -1}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))}=.*: seconds or a timedelta, 0 or more"):
            client_of(lib, Server(lib), "auto", **wrong)


async def test_a_function_that_returns_no_limiter_is_told_so(lib):
    async def later():
        return None

    for returned in (5, later()):
        with warnings.catch_warnings(), pytest.raises(TypeError, match="must return a Limiter, or None"):
            warnings.simplefilter("error")
            await client_of(lib, Server(lib), lambda _, it=returned: it).get(URL)


async def test_what_is_known_of_a_host_can_be_seen(lib):
    told = {"ratelimit-limit": "100", "ratelimit-remaining": "99", "ratelimit-reset": "60"}
    client = limit_http_client(
        lib.AsyncClient(transport=lib.MockTransport(lambda _: lib.Response(200, headers=told))), "auto"
    )
    for address in ("http://a.test/", "http://user:word@A.test:80/x", "http://a.test:8080/", "http://[::1]:8080/"):
        await client.get(address)
    assert set(limits_of(client)) == {"a.test", "a.test:8080", "[::1]:8080"}
    assert limits_of(client)["a.test"].statistics().sent == 2
    assert set(limits_of(client_of(lib, Server(lib), Limiter(requests=per_minute(1))))) == {"every host"}
    assert not limits_of(client_of(lib, Server(lib), lambda _: None))


async def test_a_host_that_is_idle_is_forgotten_where_there_are_too_many(lib):
    from penstock.llm.discovered import DiscoveredEndpoint

    hosts = Endpoints(lambda _: DiscoveredEndpoint(), most=3)
    busy = hosts.of("busy")
    await busy.limiter.acquire(requests=1)
    for number in range(10):
        hosts.of(f"host {number}")
    assert set(hosts.made()) == {"busy", "host 8", "host 9"}
    assert hosts.of("busy") is busy
    for number in (8, 9):
        await hosts.of(f"host {number}").limiter.acquire(requests=1)
    hosts.of("one more")
    assert set(hosts.made()) == {"busy", "host 8", "host 9", "one more"}  # more than most, rather than one in use


async def test_a_transport_is_limited_once(lib):
    limiter = Limiter(requests=per_minute(60))
    once = transport(lib.MockTransport(Server(lib)), limiter)
    with pytest.raises(ValueError, match="a & b"):
        transport(once, limiter)
    with pytest.raises(ValueError, match="a & b"):
        limit_http_client(lib.AsyncClient(mounts={"http://api.test": once}), limiter)
