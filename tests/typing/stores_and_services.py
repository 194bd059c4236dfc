"""What a type checker sees of shared stores, services, telemetry and the ledger. `make check` runs mypy and pyright on
this; nothing runs it."""

from __future__ import annotations

from typing import assert_type

import httpx
import httpx2
from openai import AsyncOpenAI, OpenAI

from penstock import Limiter, Permit, Retry
from penstock.http import (
    AsyncHTTPX2Transport,
    AsyncHTTPXTransport,
    HTTPX2Transport,
    HTTPXTransport,
    limit_http_client,
    transport,
)
from penstock.openai import limit_client, limits, limits_of, retry_on
from penstock.otel import Telemetry
from penstock.stores import MemoryStore, RedisStore, SQLiteStore, Store
from penstock.usage import (
    Cap,
    History,
    Ledger,
    LedgerError,
    LedgerStatistics,
    Minute,
    Quota,
    QuotaExceeded,
    Quotas,
    RecordedCall,
    Review,
    Totals,
)


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
    limit_client(client, store=RedisStore("redis://localhost"))
    limit_client(client, store="redis://localhost")  # type: ignore[arg-type]
    limit_client(client, limits="automatic")  # type: ignore[arg-type]
    assert_type(limits_of(client)["gpt-4o"].statistics().refused, int)
    assert_type(Retry(on=retry_on), Retry)


async def an_http_client_stays_what_it_is(limiter: Limiter) -> None:
    assert_type(limit_http_client(httpx2.AsyncClient(), limiter, max_wait=30), httpx2.AsyncClient)
    assert_type(limit_http_client(httpx2.Client(), "auto"), httpx2.Client)
    httpx2.AsyncClient(transport=AsyncHTTPX2Transport(limiter, max_wait=30))
    httpx.Client(transport=HTTPXTransport("auto"))
    httpx.AsyncClient(transport=AsyncHTTPXTransport(lambda request: limiter))
    httpx2.Client(transport=HTTPX2Transport(limiter, httpx2.HTTPTransport(), cost=lambda request: {"requests": 1}))
    httpx2.AsyncClient(transport=HTTPXTransport("auto"))  # type: ignore[arg-type]
    assert_type(limit_http_client(httpx2.Client(), lambda request: limiter), httpx2.Client)
    httpx2.AsyncClient(transport=transport(httpx2.AsyncHTTPTransport(), "auto"))


async def telemetry_is_a_hook_and_makes_layers() -> None:
    telemetry = Telemetry()
    limiter = Limiter(requests="1/s", on_event=telemetry)
    telemetry.watch(limiter, name="api")

    @telemetry.traced("fetch", attributes={"peer": "api"})
    async def fetch(url: str) -> bytes:
        return url.encode()

    assert_type(await telemetry.gen_ai("openai", operation="chat", model="gpt-4o")(fetch)("/"), bytes)


def a_ledger_is_a_hook_that_is_read(path: str) -> None:
    with Ledger(path, max_pending=10, keep=60) as ledger:
        Limiter(requests="1/s", on_event=ledger)
        statistics: LedgerStatistics = ledger.statistics()
        assert_type(statistics.dropped, int)
    try:
        history = History(path)
    except LedgerError:
        return
    call: RecordedCall
    for call in history.calls():
        assert_type(call.waited, float)
    total: Totals = history.totals_by("user")["alice"]
    minute: Minute = history.minutes("api")[0]
    assert_type(total.tokens + minute.tokens, float)


async def users_have_caps(store: RedisStore) -> None:
    async def decide(refused: QuotaExceeded) -> float:
        return refused.missing

    Quotas(store, review="queue")
    Quotas(store, review="perhaps")  # type: ignore[arg-type]
    with Quotas("quotas.db", {"requests": "100/day", "dollars": [Cap(5, "month")]}, review=decide) as quotas:
        async with quotas("alice", dollars=0.5) as permit:
            assert_type(permit, Permit)
        assert_type(await quotas.acquire("alice", {"tokens": 5}), Permit)
        assert_type(quotas.all(), list[Quota])
        assert_type(quotas.reviews("pending"), list[Review])
        Quotas("quotas.db", {"requests": 100})  # type: ignore[dict-item]
