"""Limits that were given to a client, and are not what the service has. In virtual time, with both libraries."""

from __future__ import annotations

from contextlib import closing

import anyio
import pytest

from benchmarks.windows import Server, reset_told
from penstock import Limiter, Rate, calendar, clock, sliding
from penstock.llm.clients import limits_of
from penstock.llm.given import DoubtedEndpoint, GivenEndpoint
from penstock.llm.headers import Reading
from penstock.stores import MemoryStore, SQLiteStore
from tests.llm.clients import CHAT, HELLO, at_once, limited, refusal
from tests.llm.clients import Server as ServerOfScript

pytestmark = pytest.mark.anyio

AMOUNT, SECONDS = 20, 10.0


@pytest.fixture(autouse=True)
def _time(virtual_time):
    """Nothing here takes any time."""


class Windows:
    """Admits so many in each window, and says so in one way or another."""

    def __init__(self, lib, tells):
        self.lib, self.tells = lib, tells
        self.used, self.refused, self.window = 0, 0, -1.0

    async def __call__(self, request):
        await anyio.sleep(0.003)
        window, into = divmod(anyio.current_time(), SECONDS)
        if window != self.window:
            self.window, self.used = window, 0
        told = {}
        if self.tells == "headers":
            left = max(0, AMOUNT - self.used - 1)
            told = {"x-ratelimit-limit-requests": str(AMOUNT), "x-ratelimit-remaining-requests": str(left)}
        if self.used >= AMOUNT:
            self.refused += 1
            if self.tells != "nothing":
                told["retry-after"] = str(int(SECONDS - into) + 1)
            return refusal(self.lib, **told)
        self.used += 1
        await anyio.sleep(0.1)
        return self.lib.Response(200, json={}, headers=told)


async def send(client, requests):
    numbers = iter(range(requests))

    async def work():
        for _ in numbers:
            assert (await client.post(CHAT, json=HELLO)).status_code == 200

    await at_once(*(work() for _ in range(2 * AMOUNT)))


@pytest.mark.parametrize("tells", ["headers", "Retry-After", "nothing"])
async def test_a_limit_far_above_what_the_service_has_is_refused_twice_and_learned(lib, tells):
    """Every burst was refused but for a window's worth: 900 and more of 1,000 requests."""
    server = Windows(lib, tells)
    client = limited(lib, server, Limiter(requests=Rate(10 * AMOUNT, SECONDS)), hold=True)
    began = anyio.current_time()
    await send(client, 10 * AMOUNT)
    in_two_bursts = AMOUNT + 2 * AMOUNT
    assert server.refused <= in_two_bursts + AMOUNT  # told nothing, one looks now and then while nothing comes back
    assert anyio.current_time() - began < 2.5 * 10 * SECONDS


def decided_by(lib, server, form, latency=0.1):
    """Answers that tell the limit, what is left, and in some form when it comes back."""

    async def answer(request):
        await anyio.sleep(0.003)
        admitted, left, reset, _ = server.decide(clock.now())
        told = {"x-ratelimit-limit": str(server.amount), "x-ratelimit-remaining": str(left)}
        told |= reset_told(form, reset, clock.wall())
        if not admitted:
            return refusal(lib, **told)
        await anyio.sleep(latency)
        return lib.Response(200, json={}, headers=told)

    return answer


async def test_windows_that_were_given_as_a_rate_are_refused_twice_and_learned(lib):
    """Who writes "20 in 10 seconds" may not know that the service counts in windows. What the bucket gained in a pause
    went at once when it was over: 17 or 18 of 400 requests were refused."""
    server = Windows(lib, "Retry-After")
    client = limited(lib, server, Limiter(requests=Rate(AMOUNT, SECONDS)), hold=True)
    began = anyio.current_time()
    await send(client, 20 * AMOUNT)
    assert server.refused <= 4
    assert anyio.current_time() - began < 22 * SECONDS


@pytest.mark.parametrize(("wait", "doubts"), [("1", False), ("2", True), (None, False)])
async def test_one_refusal_that_names_a_longer_wait_than_a_rate_explains_makes_it_doubtful(lib, wait, doubts):
    """Of ten a second one is back after 0.1 seconds, and a wait is told in whole seconds."""
    server = ServerOfScript(lib, refusal(lib, **{"retry-after": wait} if wait else {}))
    client = limited(lib, server, Limiter(requests=Rate(10, 1)), hold=True)
    await client.post(CHAT, json=HELLO)
    (endpoint,) = limits_of(client).values()
    assert isinstance(endpoint, DoubtedEndpoint if doubts else GivenEndpoint)


@pytest.mark.parametrize("window", [sliding, calendar])
async def test_a_window_twice_as_large_as_headers_tell_is_refused_in_its_first_burst_alone(lib, window):
    """145 to 157 of 1,000 requests were: what was given as a window was never compared with headers."""
    server = Server("window", SECONDS, began=clock.now() - 4, amount=AMOUNT)
    client = limited(lib, decided_by(lib, server, "duration"), Limiter(requests=window(2 * AMOUNT, SECONDS)), hold=True)
    await send(client, 10 * AMOUNT)
    assert len(server.refused) <= AMOUNT + 2


async def test_a_bucket_smaller_than_its_limit_is_used_where_headers_name_the_limit_alone(lib):
    """As that of a minute, which is what a limit without a period means as a rule, half was used of what comes back."""
    server = Server("small bucket", SECONDS, began=clock.now(), amount=10 * AMOUNT)
    given = Limiter(requests=Rate(server.amount, SECONDS, server.burst))
    client = limited(lib, decided_by(lib, server, "nothing", latency=1.0), given, hold=True)
    began = clock.now()
    await send(client, 3 * server.amount)
    assert not server.refused
    assert clock.now() - began < 3.5 * SECONDS


async def test_what_was_given_is_never_exceeded_while_the_rest_is_learned(lib):
    """The service has more by then."""
    server = Windows(lib, "headers")
    given = Limiter(requests=Rate(4 * AMOUNT, SECONDS))
    client = limited(lib, server, given, hold=True)
    await send(client, 4 * AMOUNT)
    (endpoint,) = limits_of(client).values()
    assert isinstance(endpoint, DoubtedEndpoint)
    assert endpoint.limits == given.limits
    await anyio.sleep(10 * SECONDS)  # all is free again, here and there
    given.acquire_nowait(requests=4 * AMOUNT)
    began = clock.now()
    await client.post(CHAT, json=HELLO)
    assert clock.now() - began > 1 / given.limits["requests"][0].rate


@pytest.mark.parametrize("tells", ["headers", "Retry-After", "nothing"])
async def test_a_limit_that_is_right_is_not_doubted_for_what_others_had_used_up(lib, tells):
    """When the run begins, another one has left next to nothing."""
    server = Windows(lib, tells)
    client = limited(lib, server, Limiter(requests=sliding(AMOUNT, SECONDS)), hold=True)
    await client.post(CHAT, json=HELLO)
    server.used = AMOUNT
    await send(client, 4 * AMOUNT)
    (endpoint,) = limits_of(client).values()
    assert isinstance(endpoint, GivenEndpoint)


async def test_what_is_kept_in_a_store_is_doubted_beside_a_copy_of_it_in_this_process(tmp_path):
    """An estimate of this process cannot be charged in the store."""
    with closing(SQLiteStore(tmp_path / "limits.db")) as store:
        given = GivenEndpoint(Limiter(requests=Rate(100, 60), name="x", store=store), stored=True)
        given.doubt()
        endpoint = given.latest()
        assert endpoint.limits == given.limits
        limiter, charges = endpoint.ask({"requests": 1.0})
        await limiter.acquire(**charges)
        assert isinstance(limiter.store, MemoryStore)


async def test_what_an_answer_took_is_settled_with_what_was_given_and_waits_for_nothing_here():
    given = Limiter(requests=Rate(100, 60), tokens=Rate(1_000, 60))
    endpoint = DoubtedEndpoint(GivenEndpoint(given))
    costs = {"requests": 1.0, "tokens": 100.0}
    limiter, charges = endpoint.ask(costs)
    request = endpoint.granted(await limiter.acquire(**charges), costs)
    endpoint.left(request)
    endpoint.answered(request, 200, Reading((), None))
    endpoint.settled(request, {"tokens": 300.0})
    assert given.statistics().limits["tokens"].level == pytest.approx(700, abs=1)
    assert endpoint._units["tokens"].traffic.waiting == 0
