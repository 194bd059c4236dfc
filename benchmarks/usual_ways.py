"""A batch of calls to an LLM service with two limits, sent in the usual ways and by penstock: quota used, 429s, calls
lost.

1,500 calls of mixed size, 100 at a time, through the openai SDK to penstock's simulator in this process, in virtual
time, so the numbers are the same on every machine. The service admits 1,200 requests a minute with a burst of 40 and
400,000 tokens with a burst of 12,000; an answer takes 0.4 s in the middle, and the way there 0.03 s.
A refused request takes nothing from the limits, which is kinder than the services are. Every candidate retries what the
SDK or tenacity retries; a call that still fails is lost. "Quota used" is what the answered calls took of the limit that
binds, until the last call was over.

    python benchmarks/usual_ways.py [word of a candidate's name …]

`python tools/pictures.py usual-ways` draws the picture of the README from what `make bench` wrote of this.
"""

from __future__ import annotations

import asyncio
import math
import random
import sys

import httpx2
import tenacity
from _report import table, where
from aiolimiter import AsyncLimiter
from openai import AsyncOpenAI, OpenAIError, RateLimitError

from penstock import Limiter, clock
from penstock.openai import limit_client
from penstock.simulator import Latency, Simulation, create_app
from penstock.testing import virtual_time

CALLS, AT_ONCE = 1_500, 100
LIMITS = {"requests": "1200/min burst 40", "tokens": "400k/min burst 12k"}
BURSTS, RATES = {"requests": 40, "tokens": 12_000}, {"requests": 20.0, "tokens": 400_000 / 60}


def sizes():
    """Tokens of each call: half of them short, so that now requests bind and now tokens."""
    draw = random.Random(1)
    return [
        round(min(6_000, max(20, draw.lognormvariate(math.log(draw.choice((80, 450))), 0.8)))) for _ in range(CALLS)
    ]


class Network(httpx2.AsyncBaseTransport):
    """The way to the service and back, on which requests overtake each other."""

    def __init__(self, app):
        self.inner, self.draw = httpx2.ASGITransport(app), random.Random(2)

    async def handle_async_request(self, request):
        await asyncio.sleep(self.draw.lognormvariate(math.log(0.03), 0.3))
        return await self.inner.handle_async_request(request)


def sdk(network, retries):
    return AsyncOpenAI(
        api_key="any",
        base_url="http://simulated/v1",
        max_retries=retries,
        http_client=httpx2.AsyncClient(transport=network),
    )


def asking(client):
    async def ask(tokens):
        content = "x" * (4 * (tokens - 4))
        await client.chat.completions.create(model="gpt-4o", messages=[{"role": "user", "content": content}])

    return ask


class Bucket(AsyncLimiter):
    """A nanosecond ahead: in virtual time a timer of less than the clock's resolution would ring for ever."""

    def _leak(self):
        super()._leak()
        self._level = max(0.0, self._level - 1e-9 * self._rate_per_sec)


def behind(ask, requests, tokens):
    async def limited(cost):
        async with requests:
            await tokens.acquire(cost)
            await ask(cost)

    return limited


def again(ask):
    """The retry of the service's own cookbook."""
    return tenacity.retry(
        wait=tenacity.wait_random_exponential(min=1, max=60),
        stop=tenacity.stop_after_attempt(6),
        retry=tenacity.retry_if_exception_type(RateLimitError),
        reraise=True,
    )(ask)


def with_sdk(network):
    return asking(sdk(network, 10))


def with_tenacity(network):
    return again(asking(sdk(network, 0)))


def with_two_limiters(network):
    return behind(asking(sdk(network, 10)), Bucket(1_200, 60), Bucket(400_000, 60))


def with_two_careful_limiters(network):
    """At 90 %, with half the bursts, and each attempt limited."""
    return again(behind(asking(sdk(network, 0)), Bucket(18, 1), Bucket(6_000, 1)))


def with_limits(network):
    return asking(limit_client(sdk(network, 2), Limiter(**LIMITS)))


def with_auto(network):
    return asking(limit_client(sdk(network, 2), "auto"))


CANDIDATES = {
    "SDK, 10 retries": with_sdk,
    "tenacity, 6 attempts": with_tenacity,
    "aiolimiter × 2, SDK, 10 retries": with_two_limiters,
    "aiolimiter × 2 at 90 %, half the bursts, tenacity": with_two_careful_limiters,
    "penstock, limits given": with_limits,
    "penstock, limits learned": with_auto,
}


async def batch(make):
    """(statistics of the account, sizes of the answered calls, seconds until the last call was over)."""
    app = create_app(Simulation(**LIMITS, latency=Latency(0.4, 0.5), count_refused=False))
    ask, begun, answered, last = make(Network(app)), clock.now(), [], 0.0
    left = iter(sizes())

    async def work():
        nonlocal last
        for tokens in left:
            try:
                await ask(tokens)
                answered.append(tokens)
            except OpenAIError:
                pass
            last = clock.now() - begun

    await asyncio.gather(*(work() for _ in range(AT_ONCE)))
    return app.state.account.statistics(), answered, last


def main():
    wanted = sys.argv[1:]
    where("openai", "aiolimiter", "tenacity")
    rows = []
    for name, make in CANDIDATES.items():
        if wanted and not any(word in name for word in wanted):
            continue
        random.seed(3)
        with virtual_time():
            seen, answered, last = asyncio.run(batch(make))
        taken = {"requests": len(answered), "tokens": sum(answered)}
        used = max(taken[unit] / (BURSTS[unit] + RATES[unit] * last) for unit in taken)
        rows.append(
            [name, f"{used:.1%}", f"{sum(seen.refused.values()):,}", f"{CALLS - len(answered):,}", f"{last:.0f}"]
        )
    table(["1,500 calls", "quota used", "429s", "calls lost", "seconds"], rows)


if __name__ == "__main__":
    main()
