"""The limiter under clients that block: each thread waits for its own turn, in real time."""

from __future__ import annotations

import threading
import time

import pytest

from penstock import Limiter, Rate, RateLimited, clock, in_flight, per_minute
from penstock.http import limit_http_client
from penstock.llm.clients import limit_client, limits_of
from penstock.llm.failures import Action, judge
from penstock.llm.refusals import refusal
from tests.llm.clients import CHAT, HELLO, limited


def test_a_sync_client_is_limited_in_its_thread(lib):
    limiter = Limiter(requests=Rate(60_000, 60, burst=2), places=in_flight(4))
    original = lib.Client(transport=lib.MockTransport(lambda _: lib.Response(200, json={})))
    client = limit_client(original, limiter)
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
    client = limited(lib, lambda _: answers.pop(), limiter, kind="Client", max_wait=1)
    with client.stream("POST", CHAT, json=HELLO) as answer:
        assert limiter.statistics().in_flight == 1
        assert list(answer.iter_bytes()) == [b"1", b"2"]
    assert limiter.statistics().in_flight == 0
    assert client.post(CHAT, json={"messages": [{"role": "user", "content": "x" * 500}]}).status_code == 400
    assert client.post(CHAT, json=HELLO).status_code == 429
    assert limiter.statistics().paused_for > 20
    late = client.post(CHAT, json=HELLO)
    assert (late.status_code, late.json()["error"]["code"]) == (429, "rate_limited")
    assert float(late.headers["retry-after"]) > 20


@pytest.mark.anyio
async def test_a_sync_client_in_a_running_loop_waits_there_as_its_calls_do(lib):
    """As in a notebook: the call blocks the loop anyway, so the wait for its turn may block it too."""
    limiter = Limiter(requests=Rate(1_200, 60, burst=1))
    client = limit_client(lib.Client(transport=lib.MockTransport(lambda _: lib.Response(200, json={}))), limiter)
    began = time.monotonic()
    assert [client.post(CHAT, json=HELLO).status_code for _ in range(2)] == [200, 200]
    assert time.monotonic() - began >= 0.04


def test_a_rule_of_ones_own_says_that_a_request_of_a_sync_client_is_free(lib):
    limiter = Limiter(requests=per_minute(60))
    http = lib.Client(transport=lib.MockTransport(lambda _: lib.Response(200)))
    client = limit_client(http, limiter, cost=lambda path, _: None if path.endswith("/models") else {"requests": 1})
    assert client.get("http://api.test/v1/models").status_code == 200
    assert limiter.statistics().granted == 0


def test_a_request_that_waits_in_a_thread_while_its_limits_are_doubted_is_charged_once(lib):
    limiter = Limiter(requests=per_minute(60), places=in_flight(1))
    client = limit_client(lib.Client(transport=lib.MockTransport(lambda _: lib.Response(200))), limiter)
    statuses = []
    with limiter():
        thread = threading.Thread(target=lambda: statuses.append(client.post(CHAT, json=HELLO).status_code))
        thread.start()
        while thread.is_alive() and not limiter.statistics().waiting:
            time.sleep(0.001)
        limits_of(client)["every model"].doubt()
    thread.join()
    assert statuses == [200]
    assert limiter.statistics().limits["requests"].level == pytest.approx(58, abs=0.9)
    assert limiter.statistics().in_flight == 0


def test_a_refusal_of_ours_may_be_waited_for_by_a_retry():
    """The SDK must not retry it, since the wait was refused; a Retry of the user's own may."""
    ours = refusal(RateLimited("later", retry_after=3.0, blocked_by="tokens"))
    verdict = judge(ours.status, ours.content, ours.headers)
    assert (verdict.action, verdict.wait) == (Action.WAIT, 3.0)


@pytest.mark.parametrize("status", [403, 429, 503])
def test_a_sync_client_waits_as_long_as_a_refusal_says(lib, status):
    told = {"retry-after": "0.05", "x-ratelimit-limit": "60", "x-ratelimit-remaining": "0"}
    answers = [lib.Response(status, headers=told), lib.Response(200)]
    sent = lib.MockTransport(lambda _: answers.pop(0))
    client = limit_http_client(lib.Client(transport=sent), Limiter(requests=per_minute(600)))
    began = clock.now()
    assert client.get("http://api.test/").status_code == 200
    assert clock.now() - began >= 0.05
