"""The SDK, and what its users put around it to keep a limit.

python by_hand.py WAY URL ROWS OUT REQUESTS TOKENS BURST BURST_OF_TOKENS
"""

from __future__ import annotations

import asyncio
import json
import sys
import types
from pathlib import Path

import tenacity
from openai import AsyncOpenAI, OpenAIError, RateLimitError

AT_ONCE = 100


def sdk(url, retries):
    return AsyncOpenAI(base_url=url, api_key="any", max_retries=retries)


def asking(client):
    async def ask(body, _tokens):
        reply = await client.chat.completions.create(**body)
        return reply.choices[0].message.content

    return ask


def again(ask):
    """The decorator of the service's own cookbook."""
    return tenacity.retry(
        wait=tenacity.wait_random_exponential(min=1, max=60),
        stop=tenacity.stop_after_attempt(6),
        retry=tenacity.retry_if_exception_type(RateLimitError),
        reraise=True,
    )(ask)


def with_sdk(url, _limits):
    return asking(sdk(url, 10))


def with_tenacity(url, _limits):
    return again(asking(sdk(url, 0)))


def with_two_limiters(url, limits):
    """As is: each limiter's burst is a minute's worth."""
    from aiolimiter import AsyncLimiter

    requests, tokens = AsyncLimiter(limits[0], 60), AsyncLimiter(limits[1], 60)
    return behind(asking(sdk(url, 10)), requests, tokens)


def with_careful_limiters(url, limits):
    """At 90 %, with half the bursts, and each attempt limited."""
    from aiolimiter import AsyncLimiter

    requests, tokens = (
        AsyncLimiter(burst / 2, burst / 2 / (0.9 * limit / 60))
        for limit, burst in zip(limits, limits[2:], strict=False)
    )
    return again(behind(asking(sdk(url, 0)), requests, tokens))


def behind(ask, requests, tokens):
    async def limited(body, cost):
        async with requests:
            await tokens.acquire(cost)
            return await ask(body, cost)

    return limited


def with_openlimit(url, limits):
    """It needs aioredis, which no Python since 3.11 can import, for what is not used here."""
    sys.modules["aioredis"] = types.ModuleType("aioredis")
    from openlimit import ChatRateLimiter

    limiter, ask = ChatRateLimiter(request_limit=limits[0], token_limit=limits[1]), asking(sdk(url, 10))

    async def limited(body, cost):
        async with limiter.limit(messages=body["messages"]):
            return await ask(body, cost)

    return limited


def with_token_throttle(url, limits):
    """By the second: its bursts are a quota's whole amount, for whole seconds; the service's are below two seconds."""
    from token_throttle import MemoryBackendBuilder, PerModelConfig, Quota, RateLimiter, UsageQuotas

    quotas = [
        Quota(metric=metric, limit=limit // 60, per_seconds=1)
        for metric, limit in zip(("requests", "tokens"), limits, strict=False)
    ]
    limiter = RateLimiter(PerModelConfig(quotas=UsageQuotas(quotas)), backend=MemoryBackendBuilder())
    ask = asking(sdk(url, 10))

    async def limited(body, cost):
        usage = {"requests": 1, "tokens": cost}
        async with limiter.reserve(usage, model=body["model"]) as handle:
            answer = await ask(body, cost)
            handle.set_actual_usage(usage)
            return answer

    return limited


WAYS = {
    "sdk": with_sdk,
    "tenacity": with_tenacity,
    "two limiters": with_two_limiters,
    "careful limiters": with_careful_limiters,
    "openlimit": with_openlimit,
    "token-throttle": with_token_throttle,
}


async def main(way, url, rows, out, *limits):
    ask = WAYS[way](url, [int(each) for each in limits])
    places = asyncio.Semaphore(AT_ONCE)
    lines = Path(rows).read_text(encoding="utf-8").splitlines()

    async def one(row):
        tokens = len(row["body"]["messages"][0]["content"]) // 4 + 4
        async with places:
            try:
                answer = await ask(row["body"], tokens)
            except OpenAIError:
                return
        results.write(json.dumps({"custom_id": row["custom_id"], "answer": answer}) + "\n")

    with Path(out).open("w", encoding="utf-8") as results:
        await asyncio.gather(*(one(json.loads(line)) for line in lines))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
