"""The limiter under clients that block: each thread waits for its own turn, in real time."""

from __future__ import annotations

import threading

import httpx
import httpx2
import pytest

from penstock import Limiter, Rate, RateLimited, in_flight, per_minute
from penstock.llm.failures import Action, judge
from penstock.llm.lanes import Fixed
from penstock.llm.transport import Valve, limit_http_client, refusal

CHAT = "http://api.test/v1/chat/completions"
HELLO = {"model": "gpt-4o", "messages": [{"role": "user", "content": "hello"}]}  # 2 + 4 tokens


@pytest.fixture(params=[httpx2, httpx], ids=["httpx2", "httpx"])
def lib(request):
    return request.param


def test_a_sync_client_is_limited_in_its_thread(lib):
    limiter = Limiter(requests=Rate(60_000, 60, burst=2), places=in_flight(4))
    original = lib.Client(transport=lib.MockTransport(lambda _: lib.Response(200, json={})))
    client = limit_http_client(original, Valve(Fixed(limiter)))
    statuses = []
    threads = [
        threading.Thread(target=lambda: statuses.append(client.post(CHAT, json=HELLO).status_code)) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses == [200] * 8
    assert (limiter.statistics().granted, limiter.statistics().in_flight) == (8, 0)


def test_a_sync_client_hears_429s_keeps_places_and_refuses_like_the_async_one(lib):
    limiter = Limiter(requests=per_minute(60), tokens=per_minute(100), places=in_flight(4))
    answers = [lib.Response(429, headers={"retry-after": "30"}), lib.Response(200, content=iter([b"1", b"2"]))]
    client = limit_http_client(
        lib.Client(transport=lib.MockTransport(lambda _: answers.pop())), Valve(Fixed(limiter), max_wait=1)
    )
    with client.stream("POST", CHAT, json=HELLO) as answer:
        assert limiter.statistics().in_flight == 1
        assert list(answer.iter_bytes()) == [b"1", b"2"]
    assert limiter.statistics().in_flight == 0
    assert client.post(CHAT, json={"messages": [{"role": "user", "content": "x" * 500}]}).status_code == 400
    assert client.post(CHAT, json=HELLO).status_code == 429
    assert limiter.statistics().paused_for >= 30
    late = client.post(CHAT, json=HELLO)
    assert (late.status_code, late.json()["error"]["code"]) == (429, "rate_limited")
    assert float(late.headers["retry-after"]) >= 29


def test_a_refusal_of_ours_may_be_waited_for_by_a_retry():
    """The SDK must not retry it, since the wait was refused; a Retry of the user's own may."""
    ours = refusal(RateLimited("later", retry_after=3.0, blocked_by="tokens"))
    verdict = judge(ours.status, ours.content, ours.headers)
    assert (verdict.action, verdict.wait) == (Action.WAIT, 3.0)
