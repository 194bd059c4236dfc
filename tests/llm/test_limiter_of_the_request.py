"""Limits that a function of the request returns: what is known of a server is known of the same limits next time."""

from __future__ import annotations

import gc
import weakref

import httpx
import pytest

from penstock import Keyed, Limiter, RateLimited, clock, per_minute, turn
from penstock.http import limit_http_client
from penstock.llm import given
from penstock.llm.learning.traffic import HEADROOM
from tests.llm.clients import CHAT, HELLO, Server, limited, refusal

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    "made_anew",
    [
        lambda org, users: org & users["alice"],
        lambda org, users: Limiter(requests=per_minute(6_000), name="the organisation's"),
        lambda org, users: users["alice"],
    ],
    ids=["joint", "named", "of a key"],
)
async def test_a_limiter_that_is_made_anew_for_every_request_is_known(lib, made_anew, virtual_time):
    """Each was met as a stranger: a service that says nothing was left alone for a second each time."""
    org, users = Limiter(requests=per_minute(6_000)), Keyed(requests=per_minute(6_000))
    server = Server(lib, *(refusal(lib) for _ in range(3)))
    client = limited(lib, server, lambda _: made_anew(org, users))
    for seconds in (1, 2, 4):
        await client.post(CHAT, json=HELLO)
        assert seconds <= made_anew(org, users).statistics().paused_for <= seconds * 1.1 + 0.02


async def test_limiters_that_nobody_uses_any_more_are_forgotten(monkeypatch):
    monkeypatch.setattr(given, "_REMEMBERED", 3)
    made = [Limiter(requests=per_minute(60)) for _ in range(10)]
    users = [weakref.ref(limiter) for limiter in made]
    endpoint_of = given.by_limiter(lambda _: made.pop())
    for _ in users:
        endpoint_of(None)
    gc.collect()
    assert sum(user() is not None for user in users) == 3


async def test_all_that_a_user_may_do_at_once_goes_at_once(virtual_time):
    """And nothing more: a call of which it is not sure that the server has room for it waits, headroom included."""
    org, per_user = Limiter(requests="100/min"), Keyed(requests="2/min")
    transport = httpx.MockTransport(lambda _: httpx.Response(200))
    client = limit_http_client(httpx.AsyncClient(transport=transport), lambda _: org & per_user["alice"])
    began = clock.now()
    with turn(max_wait=0.1):
        await client.get("http://service/")
        await client.get("http://service/")
        with pytest.raises(RateLimited) as refused:
            await client.get("http://service/")
    assert clock.now() == began
    assert refused.value.retry_after == pytest.approx(30 + HEADROOM)
    await client.get("http://service/")
    assert clock.now() - began == pytest.approx(30 + HEADROOM)
