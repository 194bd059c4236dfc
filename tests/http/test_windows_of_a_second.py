"""A limit of 20 a second, told as different services tell it, is learned and used. In virtual time."""

from __future__ import annotations

import math
from email.utils import formatdate
from random import Random

import anyio
import httpx
import pytest

from penstock import clock
from penstock.http import limit_http_client
from penstock.testing import run

LIMIT = 20
CALLS = 600


def as_discord(left, ends, now):
    return {
        "X-RateLimit-Limit": LIMIT,
        "X-RateLimit-Remaining": left,
        "X-RateLimit-Reset": f"{ends:.3f}",
        "X-RateLimit-Reset-After": f"{ends - now:.3f}",
    }


def as_ietf(left, ends, now):
    return {"RateLimit": f'"d";r={left};t={math.ceil(ends - now)}', "RateLimit-Policy": f'"d";q={LIMIT};w=1'}


def as_draft_3(left, ends, now):
    return {
        "RateLimit-Limit": f"{LIMIT}, {LIMIT};w=1",
        "RateLimit-Remaining": left,
        "RateLimit-Reset": math.ceil(ends - now),
    }


def as_draft_7(left, ends, now):
    return {
        "RateLimit": f"limit={LIMIT}, remaining={left}, reset={math.ceil(ends - now)}",
        "RateLimit-Policy": f"{LIMIT};w=1",
    }


def as_kong(left, _ends, _now):
    return {"X-RateLimit-Limit-Second": LIMIT, "X-RateLimit-Remaining-Second": left}


class Service:
    """Lets 20 calls a second of the clock through; answers in 40 to 380 ms, as far away as a real one."""

    def __init__(self, told, seed):
        self.told = told
        self.random = Random(seed)
        self.window = self.used = self.refused = 0

    async def __call__(self, _request):
        await anyio.sleep(self.random.uniform(0.02, 0.08))
        now = clock.wall()
        if math.floor(now) != self.window:
            self.window, self.used = math.floor(now), 0
        admits = self.used < LIMIT
        self.used += admits
        self.refused += not admits
        told = self.told(LIMIT - self.used, self.window + 1, now)
        headers = {name: str(value) for name, value in told.items()} | {"date": formatdate(int(now), usegmt=True)}
        if not admits:
            headers["retry-after"] = "1"
        await anyio.sleep(self.random.uniform(0.02, 0.3))
        return httpx.Response(200 if admits else 429, headers=headers)


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("told", [as_discord, as_ietf, as_draft_3, as_draft_7, as_kong])
def test_a_window_of_a_second_is_used_however_it_is_told(told, seed):
    service = Service(told, seed)

    async def main():
        client = limit_http_client(httpx.AsyncClient(transport=httpx.MockTransport(service)), "auto")
        calls, answers = iter(range(CALLS)), []

        async def work():
            for _ in calls:
                answer = await client.get("http://api.test/")
                answers.append(answer.status_code)

        began = anyio.current_time()
        async with anyio.create_task_group() as tasks:
            for _ in range(100):
                tasks.start_soon(work)
        return answers, anyio.current_time() - began

    answers, seconds = run(main)
    assert answers == [200] * CALLS
    assert service.refused <= 0.005 * CALLS
    assert (CALLS / LIMIT - 1) / seconds >= 0.9  # the last window is not waited for
