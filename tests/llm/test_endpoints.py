"""An endpoint whose limits live in a store, where other processes use them too."""

from __future__ import annotations

import contextlib

import anyio
import pytest

from penstock import Limiter, Rate, RateLimited
from penstock.llm import endpoints
from penstock.llm.endpoints import Endpoint
from penstock.llm.headers import Quota, Reading
from penstock.stores import SQLiteStore

pytestmark = pytest.mark.anyio


@pytest.fixture
def limiter(tmp_path, monkeypatch):
    """So slow that a second changes nothing, and what is kept back accordingly: a quarter of the burst."""
    monkeypatch.setattr(endpoints, "SHARED_HEADROOM", 1000.0)
    store = SQLiteStore(tmp_path / "limits")
    yield Limiter(name="shared", store=store, requests=Rate(10, 1000, 40))
    store.close()


async def level_of(limiter):
    """What the store has, once it has heard all that was said to it, and this process of it."""
    for _ in range(5):
        await anyio.sleep(0.01)
        with contextlib.suppress(RateLimited):
            (await limiter.acquire(requests=0.001, max_wait=0)).cancel()
    return limiter.statistics().limits["requests"].level


async def sent(endpoint):
    limiter, cost = endpoint.ask({"requests": 1})
    request = endpoint.granted(await limiter.acquire(**cost), cost)
    endpoint.left(request)
    return request


def told(remaining):
    return Reading((Quota("requests", "requests", 40, remaining, (40 - remaining) * 100.0, 4000.0),), None)


async def test_a_part_of_the_burst_is_kept_back_from_the_first_request_on(limiter):
    """No process knows what others were granted and have not sent."""
    await sent(Endpoint(limiter))
    assert 28.9 < await level_of(limiter) < 30.1


@pytest.mark.parametrize(("remaining", "made_up"), [(2, True), (28, False)])
async def test_a_server_that_has_less_than_is_kept_back_gets_some_of_it_back(limiter, remaining, made_up):
    """Calls that are granted and come late find it full meanwhile: what they use up is not there for the next delay."""
    endpoint = Endpoint(limiter)
    request = await sent(endpoint)
    await limiter.acquire(requests=25)  # another process
    before = await level_of(limiter)
    endpoint.answered(request, 200, told(remaining))
    now = await level_of(limiter)
    assert (now < before - 1) == made_up
    endpoint.answered(request, 200, told(remaining))
    assert abs(await level_of(limiter) - now) < 0.1  # once, until it has shown


async def test_a_server_that_has_less_than_was_thought_is_believed_at_once():
    """What an answer tells is in the limiter's level before anybody asks again."""
    limiter = Limiter(requests=Rate(10, 1000, 40))
    endpoint = Endpoint(limiter)
    endpoint.answered(await sent(endpoint), 200, told(12))
    assert limiter.statistics().limits["requests"].level < 12.1


async def test_a_request_that_could_use_up_what_may_go_finds_no_more_than_that():
    """Far from its limits nothing is lowered, which would cost as much as a grant; near them, all that may not go is."""
    limiter = Limiter(requests=Rate(10, 1, 40))
    endpoint = Endpoint(limiter)
    for _ in range(10):
        await sent(endpoint)
    far = limiter.statistics().limits["requests"].level
    endpoint.ask({"requests": 30})
    assert limiter.statistics().limits["requests"].level <= far
    with pytest.raises(RateLimited):
        limiter.acquire_nowait(requests=31)
