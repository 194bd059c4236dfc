"""Ways to send a thousand requests through a limit: ours, and what is usual.

A way takes an account and gives back the function that asks once, or raises when the call is lost.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import aiolimiter
import httpx2
import openai

from penstock import Limiter
from penstock.openai import limit_client

REQUESTS, TASKS = 1_000, 200

REQUEST: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "Yes or no?"}], "max_tokens": 240}
"""Without `max_tokens`, LiteLLM's proxy would set a thousand tokens aside for its answer."""

Ask = Callable[[], Awaitable[Any]]


@dataclass
class Account:
    """Where requests are sent, and what they are allowed there.

    Attributes:
        url: The base URL.
        key: One of its own for each run, as clients of one address and key share what they learn.
        limits: The limits as penstock takes them.
        requests, tokens, seconds: The same as numbers: so much of each in so many seconds.
        cost: What a request is charged, as `limit_client` takes it.
        answers: When each answer came, in seconds since 1970, and its status, also of those that only the HTTP client
            sees.
    """

    url: str
    key: str
    limits: Mapping[str, Any]
    requests: float
    tokens: float
    seconds: float
    cost: Any = "bytes"
    answers: list[tuple[float, int]] = field(default_factory=list)


class _Watched(httpx2.AsyncHTTPTransport):
    """Sends as usual, and writes down what comes back."""

    def __init__(self, account: Account) -> None:
        super().__init__(limits=httpx2.Limits(max_connections=TASKS))
        self._account = account

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        response = await super().handle_async_request(request)
        self._account.answers.append((time.time(), response.status_code))
        return response


def _client(account: Account, retries: int) -> openai.AsyncOpenAI:
    http = httpx2.AsyncClient(transport=_Watched(account), timeout=60)
    return openai.AsyncOpenAI(api_key=account.key, base_url=account.url, max_retries=retries, http_client=http)


def _asking(client: openai.AsyncOpenAI) -> Ask:
    assert client.chat.completions  # imports what it needs, before anything is timed
    return lambda: client.chat.completions.create(**REQUEST)


def auto(account: Account) -> Ask:
    """`limit_client`, told nothing."""
    return _asking(limit_client(_client(account, 2), cost=account.cost))


def given(account: Account) -> Ask:
    """`limit_client`, told the true limits."""
    return _asking(limit_client(_client(account, 2), Limiter(account.limits), cost=account.cost))


def retries(account: Account) -> Ask:
    """The SDK alone, with ten retries."""
    return _asking(_client(account, 10))


def two_limiters(account: Account) -> Ask:
    """An `AsyncLimiter` for requests and one for tokens, told the true limits, and the SDK's own two retries."""
    ask = _asking(_client(account, 2))
    requests = aiolimiter.AsyncLimiter(account.requests, account.seconds)
    tokens = aiolimiter.AsyncLimiter(account.tokens, account.seconds)

    async def limited() -> Any:
        async with requests:
            await tokens.acquire(10)
            return await ask()

    return limited


def overwrite(account: Account) -> Ask:
    """A counter that the newest answer's `remaining` overwrites; at 0, all wait for the reset, or for a second."""
    client = _client(account, 0)
    left, opens = 1, 0.0

    async def limited() -> Any:
        nonlocal left, opens
        for attempt in range(11):
            while left < 1 or time.monotonic() < opens:
                await asyncio.sleep(max(0.01, opens - time.monotonic()))
                left = max(left, 1) if time.monotonic() >= opens else left
            left -= 1
            try:
                answer = await client.chat.completions.with_raw_response.create(**REQUEST)
            except openai.RateLimitError as error:
                wait = float(error.response.headers.get("retry-after", 2.0**attempt * random.uniform(0.5, 1.0)))
                left, opens = 1, time.monotonic() + wait
                continue
            remaining = _told(answer.headers, "remaining")
            left = int(account.requests if remaining is None else remaining)
            if left < 1:
                reset = _told(answer.headers, "reset") or 1.0
                opens = time.monotonic() + (reset - time.time() if reset > 1e9 else reset)
            return answer
        raise RuntimeError("refused eleven times")

    return limited


def _told(headers: Any, word: str) -> float | None:
    """The number of the one header with that word in it, if there is one."""
    ends = (f"ratelimit-{word}", f"{word}-requests")
    return next((float(value) for name, value in headers.items() if name.lower().endswith(ends)), None)


OURS: dict[str, Callable[[Account], Ask]] = {"auto": auto, "limits given": given}
USUAL: dict[str, Callable[[Account], Ask]] = {
    "SDK, 10 retries": retries,
    "overwrite": overwrite,
    "aiolimiter × 2": two_limiters,
}
WAYS = {**OURS, **USUAL}


async def send(way: str, account: Account) -> int:
    """Send the requests in one way; how many were lost."""
    ask = WAYS[way](account)
    numbers, lost = iter(range(REQUESTS)), 0

    async def work() -> None:
        nonlocal lost
        for _ in numbers:
            try:
                await ask()
            except Exception:
                lost += 1

    await asyncio.gather(*(work() for _ in range(TASKS)))
    return lost
