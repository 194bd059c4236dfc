"""limits="auto" with a store: what processes learn, they keep together."""

from __future__ import annotations

import json
import subprocess
import sys

import anyio
import httpx
import pytest

from penstock import Limiter, simulator
from penstock.llm.clients import limit_client, limits_of
from penstock.simulator import Latency, Simulation
from penstock.stores import MemoryStore, SQLiteStore
from tests.llm.clients import CHAT, HELLO, Server, account, at_once, limited

pytestmark = pytest.mark.anyio

# This machine may do other things for half a second, between a grant and its arrival; that does not add up.
BUSY = {"tolerance": 0.5}

TOLD = {"x-ratelimit-limit-requests": "60", "x-ratelimit-remaining-requests": "59", "x-ratelimit-reset-requests": "1s"}


@pytest.fixture
def two_stores(tmp_path):
    """As two processes have them, on one file."""
    stores = [SQLiteStore(tmp_path / "limits.db", patience=30) for _ in range(2)]
    yield stores
    for store in stores:
        store.close()


async def post(client, **more):
    return (await client.post(CHAT, json=HELLO | more)).status_code


async def test_two_processes_use_one_quota_and_meet_no_429(two_stores):
    """Forty a second with a burst of twenty, and a service that tells of both; a hundred calls of two processes."""
    known, server = account(httpx, Simulation(requests="2400/min burst 20", tokens="1M/min", **BUSY))
    clients = [limited(httpx, server, key="ours", store=store, hold=True) for store in two_stores]
    assert await at_once(*(post(client) for client in clients * 50)) == [200] * 100
    assert sum(known.statistics().refused.values()) <= 2
    names = [limits_of(client)["gpt-4o"].limiter.name for client in clients]
    assert names[0] == names[1]
    levels = [limits_of(client)["gpt-4o"].limiter.statistics().granted for client in clients]
    assert min(levels) >= 45  # its first call, and what waited for its answer, no store was asked for


async def test_until_the_limits_are_told_each_process_learns_by_itself(two_stores):
    server = Server(httpx)
    client = limited(httpx, server, store=two_stores[0])
    await post(client)
    assert limits_of(client)["gpt-4o"].learns
    server.headers = TOLD | {name.replace("requests", "sounds"): value for name, value in TOLD.items()}
    await post(client)
    endpoint = limits_of(client)["gpt-4o"]
    assert not endpoint.learns
    assert {unit: str(*limits) for unit, limits in endpoint.limiter.limits.items()} == {"requests": "60/min"}


async def test_calls_that_waited_meanwhile_are_charged_in_the_store(two_stores):
    server = Server(httpx, headers=TOLD, latency=0.1)
    client = limited(httpx, server, store=two_stores[0])
    assert await at_once(*(post(client) for _ in range(5))) == [200] * 5
    assert limits_of(client)["gpt-4o"].limiter.statistics().granted == 4


async def test_limits_that_change_have_another_name_in_the_store(two_stores):
    server = Server(httpx, headers=TOLD)
    client = limited(httpx, server, store=two_stores[0])
    await post(client)
    before = limits_of(client)["gpt-4o"].limiter
    server.headers = TOLD | {"x-ratelimit-limit-requests": "120", "x-ratelimit-remaining-requests": "119"}
    await post(client)
    after = limits_of(client)["gpt-4o"].limiter
    assert before.name != after.name
    assert str(after.limits["requests"][0]) == "120/min"
    assert await post(client) == 200


async def test_a_sync_client_goes_over_to_the_store_too(two_stores):
    def send(lib=httpx):
        transport = lib.MockTransport(lambda _: lib.Response(200, json={}, headers=TOLD))
        client = limit_client(lib.Client(transport=transport), store=two_stores[0])
        for _ in range(3):
            client.post(CHAT, json=HELLO)
        return limits_of(client)["gpt-4o"].limiter.statistics().granted

    assert await anyio.to_thread.run_sync(send) == 2


async def test_no_name_in_the_store_shows_the_key(two_stores):
    client = limited(httpx, Server(httpx, headers=TOLD), key="sk-secret", store=two_stores[0])
    await post(client)
    assert "secret" not in limits_of(client)["gpt-4o"].limiter.name


@pytest.mark.parametrize(
    "model",
    ["\ud800", "x" * 100_000, "a\nb", "\0", "", "é" * 200, "a{b}", "a%:b"],
    ids=["surrogate", "long", "lines", "nul", "none", "accents", "braces", "as of a key"],
)
async def test_a_model_of_any_name_is_kept_and_costs_no_answer(model, two_stores):
    client = limited(httpx, Server(httpx, headers=TOLD), store=two_stores[0])
    body = json.dumps(HELLO | {"model": model}).encode()
    for _ in range(2):
        assert (await client.post(CHAT, content=body)).status_code == 200
    (endpoint,) = limits_of(client).values()
    assert not endpoint.learns
    assert len(endpoint.limiter.name) < 200


async def test_a_key_of_its_own_has_limits_of_its_own(two_stores):
    clients = [limited(httpx, Server(httpx, headers=TOLD), key=key, store=two_stores[0]) for key in "ab"]
    for client in clients:
        await post(client)
    assert len({limits_of(client)["gpt-4o"].limiter.name for client in clients}) == 2


@pytest.mark.parametrize(
    "options", [{"limits": Limiter(requests="1/s")}, {"tier": "tier-1"}, {"account": "free-trial"}]
)
async def test_a_store_goes_with_what_is_learned_alone(options, two_stores):
    with pytest.raises(ValueError, match="store= is where limits that are learned are kept"):
        limit_client(httpx.AsyncClient(), store=two_stores[0], **options)


@pytest.mark.parametrize("store", ["redis://localhost", 0, object(), SQLiteStore])
async def test_what_is_no_store_is_refused(store):
    with pytest.raises(TypeError, match="store must be"):
        limit_client(httpx.AsyncClient(), store=store)


async def test_a_store_in_memory_is_what_there_is_without_one():
    client = limited(httpx, Server(httpx, headers=TOLD), store=MemoryStore())
    await post(client)
    assert limits_of(client)["gpt-4o"].learns


PROCESS = """
import asyncio, sys
import httpx2
from penstock.llm import limit_client
from penstock.stores import SQLiteStore

async def main(url, path, many):
    store = SQLiteStore(path)
    async with httpx2.AsyncClient(headers={"authorization": "Bearer ours"}, timeout=60) as plain:
        client = limit_client(plain, limits="auto", store=store)
        body = {"model": "gpt-4o", "messages": [{"role": "user", "content": "hello"}]}
        async def call():
            return (await client.post(url + "/chat/completions", json=body)).status_code
        found = await asyncio.gather(*(call() for _ in range(many)))
    store.close()
    print(found.count(200))

asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
"""


def test_three_real_processes_keep_one_limit_that_nobody_named(tmp_path):
    """Over real sockets: 120 calls at 40 a second."""
    simulation = Simulation(requests="2400/min burst 30", tokens="1M/min", latency=Latency(median=0.05), **BUSY)
    with simulator.serve(simulation) as server:
        command = [sys.executable, "-c", PROCESS, server.base_url, str(tmp_path / "limits.db"), "40"]
        processes = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(3)]
        answered = [json.loads(process.communicate(timeout=120)[0]) for process in processes]
        saw = server.statistics()
    assert answered == [40] * 3
    assert sum(saw.refused.values()) <= 2


async def test_limits_whose_period_is_a_guess_stay_with_the_process(two_stores):
    without_reset = {name: value for name, value in TOLD.items() if "reset" not in name}
    client = limited(httpx, Server(httpx, headers=without_reset), store=two_stores[0])
    await post(client)
    assert limits_of(client)["gpt-4o"].learns
