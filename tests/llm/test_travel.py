"""An endpoint with given limits, and a server that counts requests when they arrive, which takes a while."""

from __future__ import annotations

import math
import random

import anyio
import pytest

from penstock import Limiter, calendar, clock, sliding
from penstock.llm.endpoints import Endpoint
from penstock.llm.headers import Reading

pytestmark = pytest.mark.anyio

NOTHING = Reading((), None)


class Server:
    """Admits so many in a window; `in_window(at, now)` says whether one of that moment still counts."""

    def __init__(self, amount, in_window):
        self.amount, self.in_window = amount, in_window
        self.admitted, self.refused = [], 0

    def decide(self):
        now = clock.wall()
        if sum(self.in_window(at, now) for at in self.admitted) >= self.amount:
            self.refused += 1
            return False
        self.admitted.append(now)
        return True


async def flooded(endpoint, server, requests, luck):
    """Sixty tasks send so many requests, on a way that takes some milliseconds, now and then many; how long it took."""
    numbers, began = iter(range(requests)), clock.now()

    async def work():
        for _ in numbers:
            limiter, cost = endpoint.ask({"requests": 1})
            request = endpoint.granted(await limiter.acquire(**cost), cost)
            await anyio.sleep(luck.choice([0, 0, 0.01, 0.05]))  # a busy loop
            endpoint.left(request)
            await anyio.sleep(luck.lognormvariate(math.log(0.004), 0.5))
            endpoint.answered(request, 200 if server.decide() else 429, NOTHING)
            request.permit.close()

    async with anyio.create_task_group() as group:
        for _ in range(60):
            group.start_soon(work)
    return clock.now() - began


@pytest.mark.parametrize("per", [2, 10])
async def test_a_sliding_window_of_the_servers_is_kept_whatever_the_way_takes(virtual_time, per):
    """Requests leave late and arrive later: counted from their grant on, every other one was refused."""
    server = Server(20, lambda at, now: at > now - per)
    took = await flooded(Endpoint(Limiter(requests=sliding(20, per))), server, 401, random.Random(1))
    assert server.refused == 0
    assert took <= 20 * per / 0.92  # twenty windows were used up


async def test_a_request_that_arrives_in_the_next_period_is_counted_there_too(virtual_time):
    limiter = Limiter(requests=calendar(20, "minute"))
    endpoint = Endpoint(limiter)
    await anyio.sleep(59.9)
    for _ in range(5):
        endpoint.left(endpoint.granted(await limiter.acquire(), {"requests": 1}))
    await anyio.sleep(0.2)
    assert limiter.statistics().limits["requests"].level == 15


async def test_a_request_that_never_left_gives_its_place_in_a_window_back(virtual_time):
    limiter = Limiter(requests=sliding(1, 10))
    endpoint = Endpoint(limiter)
    request = endpoint.granted(await limiter.acquire(), {"requests": 1})
    endpoint.left(request)
    endpoint.never_left(request)
    limiter.acquire_nowait()
