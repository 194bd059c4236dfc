"""What a type checker sees of shared stores and of the OpenAI adapter. `make check` runs mypy and pyright on this; nothing runs it."""

from __future__ import annotations

from typing import assert_type

import httpx2
from openai import AsyncOpenAI, OpenAI

from penstock import Limiter, Retry
from penstock.http import limit_http_client, transport
from penstock.openai import limit_client, limits, limits_of, retry_on
from penstock.stores import MemoryStore, RedisStore, SQLiteStore, Store


def a_limiter_takes_any_store(store: Store) -> None:
    for each in (store, MemoryStore(), SQLiteStore("limits.db"), RedisStore("redis://localhost", prefix="app")):
        assert_type(Limiter(requests="10/s", name="x", store=each), Limiter)
    stores: list[Store] = [SQLiteStore("limits.db"), RedisStore("redis://localhost")]
    Limiter(requests="10/s", store="redis://localhost")  # type: ignore[arg-type]
    stores[0].close()


async def a_client_stays_what_it_is() -> None:
    client = limit_client(AsyncOpenAI(), limits="auto", max_wait=30)
    assert_type(client, AsyncOpenAI)
    assert_type(limit_client(OpenAI(), limits("gpt-4o", tier="tier-3")), OpenAI)
    limit_client(client, limits="automatic")  # type: ignore[arg-type]
    assert_type(limits_of(client)["gpt-4o"].statistics().refused, int)
    assert_type(Retry(on=retry_on), Retry)


async def an_http_client_stays_what_it_is(limiter: Limiter) -> None:
    assert_type(limit_http_client(httpx2.AsyncClient(), limiter, max_wait=30), httpx2.AsyncClient)
    assert_type(limit_http_client(httpx2.Client(), "auto"), httpx2.Client)
    assert_type(limit_http_client(httpx2.Client(), lambda request: limiter), httpx2.Client)
    httpx2.AsyncClient(transport=transport(httpx2.AsyncHTTPTransport(), "auto"))
