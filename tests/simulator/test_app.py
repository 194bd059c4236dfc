"""Whom the simulated service admits, when, and what its headers say: in virtual time, without sockets."""

from __future__ import annotations

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.limits import Rate, per_minute
from penstock.llm import failures, tokens
from penstock.simulator import (
    Latency,
    charge,
    excess,
)
from tests.simulator.in_process import CHAT, Client, limits_of

pytestmark = pytest.mark.anyio

# For what does not wait, and so does not depend on the loop.
on_one_loop = pytest.mark.parametrize("anyio_backend", [("asyncio", {})], ids=["asyncio"])


async def test_headers_are_a_snapshot_at_admission(virtual_time):
    """What an answer says is left was left when it was let in, not when it was given."""
    client = Client(requests="60/min", tokens="6000/min", latency=Latency(median=30))
    reply = await client.ask("x" * 400)  # ceil(400 / 4) + 4
    assert virtual_time.now() == 30
    assert limits_of(reply) == {
        "limit-requests": "60",
        "remaining-requests": "59",
        "reset-requests": "1s",
        "limit-tokens": "6000",
        "remaining-tokens": "5896",
        "reset-tokens": "1.04s",
    }


async def test_a_refusal_is_shaped_like_openais(virtual_time):
    """Status, headers and every word of the message."""
    client = Client(requests="3/min", tokens="40k/min", organization="org-abc")
    for _ in range(3):
        assert (await client.ask()).status_code == 200
    reply = await client.ask()
    assert reply.status_code == 429
    assert reply.json() == {
        "error": {
            "message": "Rate limit reached for m in organization org-abc on requests per min (RPM): "
            "Limit 3, Used 3, Requested 1. Please try again in 20s. "
            "Visit https://platform.openai.com/account/rate-limits to learn more.",
            "type": "requests",
            "param": None,
            "code": "rate_limit_exceeded",
        }
    }
    assert reply.headers["retry-after"] == "20"
    assert reply.headers["retry-after-ms"] == "20000"
    assert limits_of(reply)["remaining-requests"] == "0"
    assert limits_of(reply)["reset-requests"] == "1m0s"


async def test_a_request_above_the_limit_is_refused_for_good(virtual_time):
    """It is named too large, with no time to wait for; our own reader of failures calls it permanent."""
    client = Client(tokens="10k/min")
    reply = await client.ask("x" * 45_800)
    assert reply.status_code == 429
    assert reply.json()["error"] == {
        "message": "Request too large for m in organization org-simulated on tokens per min (TPM): "
        "Limit 10000, Requested 11454. The input or output tokens must be reduced in order to run successfully. "
        "Visit https://platform.openai.com/account/rate-limits to learn more.",
        "type": "tokens",
        "param": None,
        "code": "rate_limit_exceeded",
    }
    assert "retry-after" not in reply.headers
    assert failures.judge(reply.status_code, reply.json(), reply.headers).action is failures.Action.PERMANENT
    assert client.account.statistics().refused == {"too_large": 1}


@pytest.mark.parametrize("header", ["retry-after-ms", "message"])
async def test_a_client_that_waits_as_told_is_admitted(virtual_time, header):
    """At the end of the announced wait the same request gets in; a millisecond earlier it does not."""
    for early, status in ((0.0, 200), (0.001, 429)):
        client = Client(requests="70/min", tokens="9k/min", count_refused=False)
        assert (await client.ask("x" * 30_000)).status_code == 200
        reply = await client.ask("y" * 30_000)
        assert reply.json()["error"]["type"] == "tokens"
        wait = {
            "retry-after-ms": float(reply.headers["retry-after-ms"]) / 1000,
            "message": failures.message_wait(reply.json()["error"]["message"]),
        }[header]
        await anyio.sleep(wait - early)
        assert (await client.ask("y" * 30_000)).status_code == status


@on_one_loop
async def test_time_is_read_to_the_nearest_nanosecond(virtual_time):
    """1.001 s is, as a float times 10⁹, a little less than 1,001,000,000 ns: nobody is refused for that."""
    client = Client(requests=Rate(1, 1.001), tolerance=0)
    await client.ask()
    await anyio.sleep(1.001)
    assert (await client.ask()).status_code == 200


async def test_refused_requests_count(virtual_time):
    """Who resends without waiting is never served again, as the service's documentation warns."""
    client = Client(requests="60/min")
    await client.ask()
    client.account.consume(requests=60)
    for _ in range(100):
        await anyio.sleep(0.9)
        assert (await client.ask()).status_code == 429
    await anyio.sleep(1)
    assert (await client.ask()).status_code == 200


async def test_refused_requests_need_not_count(virtual_time):
    """With `count_refused=False` only admitted requests take anything."""
    client = Client(requests="60/min", count_refused=False)
    client.account.consume(requests=60)
    for _ in range(9):
        await anyio.sleep(0.11)
        assert (await client.ask()).status_code == 429
    await anyio.sleep(0.01)
    assert (await client.ask()).status_code == 200


async def test_all_limits_are_charged_or_none(virtual_time):
    """A request that one limit refuses takes nothing from the others."""
    client = Client(requests="100/min", tokens=["1000/min", "5000/day"], count_refused=False)
    assert (await client.ask("x" * 3000)).status_code == 200
    before = [one.level for one in client.account.statistics().limits]
    assert (await client.ask("x" * 3000)).status_code == 429
    assert [one.level for one in client.account.statistics().limits] == before == [99, 246, 4246]


async def test_the_limit_with_the_longest_wait_is_named(virtual_time):
    """With several limits in the way, waiting for the one that is named is enough."""
    client = Client(requests="60/min", tokens=["1000/min", "1200/day"])
    await client.ask("x" * 3000)
    client.account.consume(requests=60)
    error = (await client.ask("x" * 3000)).json()["error"]
    assert (
        "on tokens per day (TPD): Limit 1200, Used 754, Requested 754. Please try again in 6h9m36s." in error["message"]
    )


@on_one_loop
async def test_of_two_limits_on_requests_the_header_shows_the_longer(virtual_time):
    """As OpenAI shows requests per day, where there is such a limit, and hides those per minute."""
    client = Client(requests=["500/min", "10k/day"])
    assert limits_of(await client.ask()) == {
        "limit-requests": "10000",
        "remaining-requests": "9999",
        "reset-requests": "8.64s",
    }


@on_one_loop
async def test_without_limits_there_are_no_headers(virtual_time):
    assert limits_of(await Client().ask()) == {}


async def test_requests_that_are_wrong_are_charged(virtual_time):
    """A 400 takes a request and its tokens, as any other; a missing key takes nothing, nobody knows whose it was."""
    client = Client(requests="60/min", tokens="6000/min")
    wrong = await client.post(CHAT, {"model": "m", "messages": [{"role": "user", "content": "x" * 400}], "n": 0})
    assert (wrong.status_code, limits_of(wrong)["remaining-tokens"]) == (400, "5896")
    nonsense = await client.http.post(CHAT, content=b"{nonsense")
    assert (nonsense.status_code, limits_of(nonsense)["remaining-requests"]) == (400, "58")
    anonymous = await client.http.post(CHAT, json={}, headers={"authorization": ""})
    assert anonymous.status_code == 401
    counts = client.account.statistics()
    assert (counts.admitted, counts.tokens_used, counts.failed) == (2, 104, {"400": 2, "401": 1})


async def test_somebody_else_uses_the_account_too(virtual_time):
    """`consume` takes from the same limits, but no more than there is."""
    client = Client(tokens="6000/min")
    client.account.consume(tokens=9000)
    assert client.account.statistics().limits[0].level == 0
    await anyio.sleep(1)
    assert limits_of(await client.ask())["remaining-tokens"] == "94"
    for wrong in (-1, 1.5, "5", True):  # -1 filled the bucket
        with pytest.raises(ValueError, match="tokens must be a whole number, 0 or more, not"):
            client.account.consume(tokens=wrong)


async def test_no_traffic_gets_more_than_the_limits(virtual_time):
    """Whatever is sent, however hard: what is admitted in any interval is at most burst + rate × T, and nearly that."""
    limits = {"requests": Rate(600, 60, burst=20), "tokens": per_minute(7_000, burst=700)}
    client = Client(**limits, tolerance=0, count_refused=False)

    async def send(number):
        for turn in range(40):
            await client.ask("x" * ((number * 37 + turn * 91) % 300))
            await anyio.sleep(((number + 3) * (turn + 7)) % 11 / 50)

    async with anyio.create_task_group() as group:
        for number in range(8):
            group.start_soon(send, number)
    seen = client.account.statistics()
    assert excess([(at, 1) for at, _ in seen.admissions], limits["requests"]) <= 0
    assert excess(seen.admissions, limits["tokens"]) <= 0
    assert max(one.share for one in seen.limits) > 0.9
    assert seen.admitted + sum(seen.refused.values()) == 8 * 40


async def test_the_statistics_say_what_share_was_used(virtual_time):
    """Of the burst and of what flowed in between the first admission and the last."""
    client = Client(requests="60/min", tokens="6000/min")
    await client.ask("x" * 400)
    await anyio.sleep(30)
    await client.ask("x" * 400)
    seen = client.account.statistics()
    assert seen.span == 30
    assert [(one.unit, one.used, one.share) for one in seen.limits] == [
        ("requests", 2, 2 / 90),
        ("tokens", 208, 208 / 9000),
    ]
    over_http = (await client.http.get("/simulator/statistics?log=1")).json()
    assert over_http["admissions"] == [list(each) for each in seen.admissions]
    assert over_http["limits"][1] == {
        "unit": "tokens",
        "limit": "6000/min",
        "level": 5896.0,
        "used": 208,
        "share": 208 / 9000,
    }
    assert (await client.http.get("/simulator/statistics")).json()["admissions"] is None


async def test_in_flight_is_counted_until_the_answer_is_given(virtual_time):
    client = Client(latency=Latency(median=2))
    async with anyio.create_task_group() as group:
        for _ in range(5):
            group.start_soon(client.ask)
        await anyio.sleep(1)
        assert client.account.statistics().in_flight == 5
    await client.ask()
    seen = client.account.statistics()
    assert (seen.in_flight, seen.peak_in_flight, seen.answered) == (0, 5, 6)


async def test_a_bound_on_concurrency_lets_requests_wait_after_their_admission(virtual_time):
    """Ten requests of a second each through two places take five seconds, and are all admitted at once."""
    client = Client(requests="10/min", latency=Latency(median=1), concurrency=2)
    async with anyio.create_task_group() as group:
        for _ in range(10):
            group.start_soon(client.ask)
    assert virtual_time.now() == 5
    assert {at for at, _ in client.account.statistics().admissions} == {0}


texts = st.text(max_size=30) | st.sampled_from(["\ud800", "日本語", "naïve"])
parts = st.lists(
    st.fixed_dictionaries(
        {"type": st.sampled_from(["text", "input_text", "image_url", "input_image"]), "text": texts}
    ).map(lambda part: part if "text" in part["type"] else {"type": part["type"]})
    | st.builds(lambda text: {"type": "refusal", "refusal": text}, texts),
    max_size=3,
)
calls = st.lists(
    st.builds(lambda text: {"type": "function", "function": {"name": "f", "arguments": text}}, texts), max_size=2
)
messages = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "system", "assistant", "tool"]), "content": texts | parts | st.none()},
        optional={"tool_calls": calls, "name": texts, "refusal": texts},
    ),
    min_size=1,
    max_size=4,
)
items = st.lists(
    st.builds(lambda role, content: {"role": role, "content": content}, st.just("user"), texts | parts)
    | st.builds(lambda text: {"type": "function_call", "name": "f", "arguments": text}, texts)
    | st.builds(lambda text: {"type": "function_call_output", "output": text}, texts | parts),
    max_size=4,
)
entries = (
    texts
    | st.lists(texts, max_size=4)
    | st.lists(st.integers(0, 9), max_size=9)
    | st.lists(st.lists(st.integers(0, 9)), max_size=3)
)
requests = st.one_of(
    st.builds(lambda each: (CHAT, {"model": "m", "messages": each}), messages),
    st.builds(
        lambda each, said: ("/v1/responses", {"model": "m", "input": each, "instructions": said}), texts | items, texts
    ),
    st.builds(lambda each: ("/v1/completions", {"model": "m", "prompt": each}), entries),
    st.builds(lambda each: ("/v1/embeddings", {"model": "e", "input": each}), entries),
)


@given(requests)
def test_the_adapter_expects_what_the_service_charges(request):
    """The library's estimate of a request, written apart from this one, is what the simulated service takes."""
    path, body = request
    assert charge(path, body) == tokens.by_bytes(path, body)["tokens"]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["role", "content", "text", "type", "tool_calls", "function", "output"]), inner, max_size=3
        )
    ),
    max_leaves=12,
)


@given(
    st.sampled_from([CHAT, "/v1/responses", "/v1/completions", "/v1/embeddings"]),
    st.dictionaries(
        st.sampled_from(["model", "messages", "input", "prompt", "instructions", "n", "stream_options", "dimensions", "max_tokens"]),
        json_values,
    ),
    st.booleans(),
)  # fmt: skip
def test_no_body_whatever_brings_the_service_down(path, body, stream):
    """Anything that is JSON is answered: with 200, or with a 400 that says why."""

    async def ask():
        reply = await Client().post(path, {**body, "model": body.get("model", "m"), "stream": stream})
        assert reply.status_code in {200, 400}, reply.text

    anyio.run(ask)
