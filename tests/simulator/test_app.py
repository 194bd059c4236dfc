"""What the simulated service answers, to whom and when: in virtual time, without sockets."""

from __future__ import annotations

import base64
import json
import math
import statistics
import struct
from collections import Counter
from random import Random

import anyio
import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.limits import Rate, calendar, per_minute
from penstock.llm import failures, tokens
from penstock.simulator import (
    Faults,
    Latency,
    Simulation,
    charge,
    count_tokens,
    create_app,
    embedding_of,
    excess,
    fingerprint,
)

pytestmark = pytest.mark.anyio

# For what does not wait, and so does not depend on the loop.
on_one_loop = pytest.mark.parametrize("anyio_backend", [("asyncio", {})], ids=["asyncio"])

CHAT = "/v1/chat/completions"


class Client:
    """A client of a simulated service, in-process."""

    def __init__(self, **simulation):
        self.app = create_app(Simulation(**simulation))
        self.account = self.app.state.account
        self.http = httpx2.AsyncClient(
            transport=httpx2.ASGITransport(self.app), base_url="http://simulated", headers={"authorization": "Bearer k"}
        )

    async def post(self, path, body, **more):
        return await self.http.post(path, json=body, **more)

    async def ask(self, text="hello", **more):
        return await self.post(CHAT, {"model": "m", "messages": [{"role": "user", "content": text}], **more})


def limits_of(reply):
    return {
        name.removeprefix("x-ratelimit-"): value
        for name, value in reply.headers.items()
        if name.startswith("x-ratelimit-")
    }


# Limits ---------------------------------------------------------------------------------------------------------------


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
            "message": "Rate limit reached for m in organization org-abc on requests per min (RPM): Limit 3, Used 3, "
            "Requested 1. Please try again in 20s. Visit https://platform.openai.com/account/rate-limits to learn more.",
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
        "message": "Request too large for m in organization org-simulated on tokens per min (TPM): Limit 10000, Requested "
        "11454. The input or output tokens must be reduced in order to run successfully. Visit "
        "https://platform.openai.com/account/rate-limits to learn more.",
        "type": "tokens",
        "param": None,
        "code": "rate_limit_exceeded",
    }
    assert "retry-after" not in reply.headers
    assert failures.judge(reply.status_code, reply.json(), reply.headers).action is failures.Action.PERMANENT
    assert client.account.statistics().refused == {"too_large": 1}


@pytest.mark.parametrize("header", ["retry-after-ms", "message"])
async def test_who_waits_as_told_is_admitted(virtual_time, header):
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


# Answers --------------------------------------------------------------------------------------------------------------


@on_one_loop
@pytest.mark.parametrize(
    ("path", "body", "text"),
    [
        (CHAT, {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "früh"}]}, "früh"),
        (
            CHAT,
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]},
            "ab",
        ),
        (CHAT, {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}, "q"),
        (CHAT, {"messages": [{"role": "system", "content": "only this"}]}, "only this"),
        ("/v1/responses", {"input": "q", "instructions": "i"}, "q"),
        ("/v1/responses", {"input": [{"role": "user", "content": [{"type": "input_text", "text": "q"}]}]}, "q"),
        ("/v1/completions", {"prompt": "q"}, "q"),
        ("/v1/completions", {"prompt": [1, 2, 3]}, "1 2 3"),
    ],
)
async def test_an_answer_proves_which_question_it_belongs_to(virtual_time, path, body, text):
    """It begins with 16 hex digits of the SHA-256 of the last thing the user said."""
    reply = (await Client().post(path, {"model": "m", **body})).json()
    said = {
        CHAT: lambda: reply["choices"][0]["message"]["content"],
        "/v1/responses": lambda: reply["output"][0]["content"][0]["text"],
        "/v1/completions": lambda: reply["choices"][0]["text"],
    }[path]()
    assert said[:16] == fingerprint(text)
    assert len(said) > 16


def test_a_fingerprint_can_be_made_by_anybody():
    """It needs nothing but SHA-256."""
    assert fingerprint("hello") == "2cf24dba5fb0a30e"


@on_one_loop
async def test_several_prompts_have_an_answer_each(virtual_time):
    reply = (await Client().post("/v1/completions", {"model": "m", "prompt": ["a", "b"], "n": 2})).json()
    found = [(choice["index"], choice["text"][:16]) for choice in reply["choices"]]
    assert found == [(0, fingerprint("a")), (1, fingerprint("a")), (2, fingerprint("b")), (3, fingerprint("b"))]


@on_one_loop
async def test_an_answer_is_as_long_as_was_asked(virtual_time):
    """`max_tokens` cuts it, and usage says how long it is; the fingerprint is never cut."""
    client = Client(output_tokens=100)
    whole, cut, tiny = [(await client.ask(**asked)).json() for asked in ({}, {"max_tokens": 20}, {"max_tokens": 1})]
    assert [len(each["choices"][0]["message"]["content"]) for each in (whole, cut, tiny)] == [400, 80, 16]
    assert [each["choices"][0]["finish_reason"] for each in (whole, cut, tiny)] == ["stop", "length", "length"]
    assert [each["usage"]["completion_tokens"] for each in (whole, cut, tiny)] == [100, 20, 1]
    assert whole["usage"]["total_tokens"] == whole["usage"]["prompt_tokens"] + 100
    assert whole["usage"]["prompt_tokens"] == count_tokens("hello") + 3 + 3


@on_one_loop
async def test_tokens_are_counted_as_one_wishes(virtual_time):
    """`count_tokens` makes the usage, `charge` what admission takes."""
    client = Client(tokens="1000/min", count_tokens=lambda text: len(text.split()), charge=lambda path, body: len(path))
    reply = await client.ask("one two three")
    assert reply.json()["usage"]["prompt_tokens"] == 3 + 6
    assert limits_of(reply)["remaining-tokens"] == str(1000 - len(CHAT))


@on_one_loop
async def test_embeddings_of_a_list_are_told_apart_by_index(virtual_time):
    """In order unless asked otherwise; shuffled, every entry still has the index of its text."""
    texts = [f"text {number}" for number in range(30)]
    body = {"model": "e", "input": texts}
    straight = (await Client().post("/v1/embeddings", body)).json()["data"]
    by_header = (await Client().post("/v1/embeddings", body, headers={"x-simulator-shuffle": "1"})).json()["data"]
    by_setting = (await Client(shuffle_embeddings=True).post("/v1/embeddings", body)).json()["data"]
    assert [entry["index"] for entry in straight] == list(range(30))
    for shuffled in (by_header, by_setting):
        assert [entry["index"] for entry in shuffled] != list(range(30))
        assert sorted(shuffled, key=lambda entry: entry["index"]) == straight
    assert all(entry["embedding"] == embedding_of(texts[entry["index"]]) for entry in straight)


@on_one_loop
async def test_an_embedding_is_the_same_in_base64(virtual_time):
    """Numbers and packed floats are equal to the last bit, and have the length that was asked for."""
    body = {"model": "e", "input": ["ä"], "dimensions": 12, "encoding_format": "base64"}
    reply = (await Client().post("/v1/embeddings", body)).json()
    packed = base64.b64decode(reply["data"][0]["embedding"])
    assert list(struct.unpack("<12f", packed)) == embedding_of("ä", 12)
    assert math.isclose(math.hypot(*embedding_of("ä", 12)), 1, rel_tol=1e-6)
    assert reply["usage"] == {"prompt_tokens": 1, "total_tokens": 1}


async def test_a_stream_brings_the_same_text_in_pieces(virtual_time):
    """Chunks as the service sends them: usage only if it was asked for, and in a chunk of its own at the end."""
    client = Client(latency=Latency(median=1, per_token=0.5))
    for asked in (False, True):
        options = {"stream_options": {"include_usage": True}} if asked else {}
        start = virtual_time.now()
        reply = await client.ask(stream=True, **options)
        assert reply.headers["content-type"] == "text/event-stream; charset=utf-8"
        *lines, end = [line.removeprefix("data: ") for line in reply.text.split("\n\n") if line]
        chunks = [json.loads(line) for line in lines]
        assert end == "[DONE]"
        content = "".join(choice["delta"].get("content", "") for chunk in chunks for choice in chunk["choices"])
        assert content == (await Client().ask()).json()["choices"][0]["message"]["content"]
        assert [chunk.get("usage", "none given") for chunk in chunks[:-1]] == [None if asked else "none given"] * (
            len(chunks) - 1
        )
        assert (chunks[-1]["choices"] == []) is asked
        assert virtual_time.now() - start > 1 + 0.5 * 16


@on_one_loop
async def test_several_choices_are_streamed_apart(virtual_time):
    reply = await Client().ask(stream=True, n=2)
    said = {0: "", 1: ""}
    for line in reply.text.split("\n\n")[:-2]:
        for choice in json.loads(line.removeprefix("data: "))["choices"]:
            said[choice["index"]] += choice["delta"].get("content", "")
    assert said[0] == said[1]
    assert said[0].startswith(fingerprint("hello"))


# Chance ---------------------------------------------------------------------------------------------------------------


def test_latencies_are_lognormal():
    """Half are below the median, and their logarithms spread by sigma."""
    random = Random(1)
    logarithms = [math.log(Latency(median=2, sigma=0.5).draw(random)) for _ in range(4000)]
    assert math.exp(statistics.mean(logarithms)) == pytest.approx(2, rel=0.03)
    assert statistics.stdev(logarithms) == pytest.approx(0.5, rel=0.04)


async def test_an_answer_of_more_tokens_takes_longer(virtual_time):
    await Client(latency=Latency(median=1, per_token=0.25), output_tokens=40).ask()
    assert virtual_time.now() == 1 + 0.25 * 40


async def test_a_run_can_be_repeated_whatever_the_order(virtual_time):
    """The same seed gives the n-th sending of a request the same fate, in any company; another seed another one."""
    faults = Faults(server_error=0.3, overloaded=0.2)

    async def fates(seed, questions):
        client = Client(latency=Latency(median=1, sigma=1), faults=faults, seed=seed)
        found = {}
        for question in questions:
            start = virtual_time.now()
            reply = await client.ask(question)
            fate = (reply.status_code, round(virtual_time.now() - start, 9), reply.headers["x-request-id"])
            found.setdefault(question, []).append(fate)
        return found

    questions = [str(number % 20) for number in range(60)]
    first = await fates(1, questions)
    assert await fates(1, sorted(questions, reverse=True)) == first
    assert await fates(2, questions) != first
    statuses = [status for each in first.values() for status, *_ in each]
    assert {200, 500, 503} == set(statuses)
    assert all(len({fate[1] for fate in each}) == 3 for each in first.values())


def test_faults_are_as_frequent_as_told():
    """And what has no odds never happens."""
    random = Random(1)
    drawn = Counter(Faults(server_error=0.1, overloaded=0.2, slow_down=0.3).draw(random) for _ in range(10_000))
    odds = {fault: count / 10_000 for fault, count in drawn.items()}
    assert odds == pytest.approx({"server_error": 0.1, "overloaded": 0.2, "slow_down": 0.3, None: 0.4}, abs=0.02)


@pytest.mark.parametrize(
    ("fault", "status", "code", "kind", "charged"),
    [
        ("server_error", 500, None, "server_error", 1),
        ("overloaded", 503, "server_is_overloaded", "service_unavailable_error", 1),
        ("slow_down", 429, "slow_down", "requests", 0),
        ("insufficient_quota", 429, "insufficient_quota", "insufficient_quota", 0),
    ],
)
async def test_a_fault_can_be_ordered(virtual_time, fault, status, code, kind, charged):
    """The next requests have it, as many as were ordered; it is what the service would say, and costs what it would."""
    client = Client(requests="60/min")
    ordered = await client.http.post("/simulator/faults", json={"fault": fault, "times": 2})
    assert ordered.status_code == 200
    for _ in range(2):
        reply = await client.ask()
        error = reply.json()["error"]
        assert (reply.status_code, error["code"], error["type"]) == (status, code, kind)
    assert client.account.statistics().admitted == 2 * charged
    assert (await client.ask()).status_code == 200


@on_one_loop
async def test_a_fault_that_is_none_is_refused():
    """By name, with the ones there are."""
    client = Client()
    with pytest.raises(ValueError, match=r"no fault 'fire': use one of server_error, overloaded, slow_down, dropped, "):
        client.account.inject("fire")
    reply = await client.http.post("/simulator/faults", json={"fault": "fire"})
    assert reply.status_code == 400
    assert "no fault 'fire'" in reply.json()["error"]["message"]
    assert (await client.http.post("/simulator/faults", content=b"[]")).status_code == 400
    assert (await client.http.post("/simulator/faults", content=b"[" * 100_000)).status_code == 400
    for times in (b"-1", b"1e400", b"1000001", b"[]"):
        raw = b'{"fault": "slow_down", "times": %s}' % times
        assert (await client.http.post("/simulator/faults", content=raw)).status_code == 400
    assert (await client.ask()).status_code == 200


@on_one_loop
async def test_the_quota_ends_after_so_many_requests(virtual_time):
    """Those that were let in count; from then on every request is refused for good."""
    client = Client(faults=Faults(insufficient_quota_after=3))
    statuses = [(await client.ask()).status_code for _ in range(5)]
    assert statuses == [200, 200, 200, 429, 429]
    assert client.account.statistics().refused == {"insufficient_quota": 2}


async def test_a_stream_can_break_in_the_middle(virtual_time):
    """With an error event after some output, which each endpoint writes in its own way; nothing comes after it."""
    client = Client()
    client.account.inject("broken_stream", 2)
    *_, piece, error = (await client.ask(stream=True)).text.strip().split("\n\n")
    assert json.loads(piece.removeprefix("data: "))["choices"][0]["delta"]["content"]
    assert json.loads(error.removeprefix("data: "))["error"]["type"] == "server_error"
    responses = await client.post("/v1/responses", {"model": "m", "input": "q", "stream": True})
    *_, piece, error = responses.text.strip().split("\n\n")
    name, data = error.split("\n")
    last = json.loads(piece.split("\ndata: ")[1])
    assert last["type"] == "response.output_text.delta"
    assert name == "event: error"
    assert json.loads(data.removeprefix("data: ")) == {
        "type": "error",
        "code": "server_error",
        "message": "The server had an error while processing your request. Sorry about that!",
        "param": None,
        "sequence_number": last["sequence_number"] + 1,
    }
    seen = client.account.statistics()
    assert (seen.failed, seen.answered, seen.in_flight) == ({"broken_stream": 2}, 0, 0)


@pytest.mark.parametrize("stream", [False, True])
async def test_in_process_a_dropped_connection_is_an_error(virtual_time, stream):
    """There is no connection to cut, so the application raises what a client would see."""
    client = Client(faults=Faults(dropped=1))
    with pytest.raises(BaseException) as caught:
        await client.ask(stream=stream)
    error = caught.value
    while isinstance(error, BaseExceptionGroup):
        (error,) = error.exceptions
    assert isinstance(error, ConnectionResetError)
    assert client.account.statistics().failed == {"dropped": 1}


# What is wrong with requests ------------------------------------------------------------------------------------------


@on_one_loop
@pytest.mark.parametrize(
    ("path", "body", "message", "code"),
    [
        (CHAT, {}, "you must provide a model parameter", None),
        (CHAT, {"model": "m"}, "Missing required parameter: 'messages'.", "missing_required_parameter"),
        (CHAT, {"model": "m", "messages": "hi"}, "Invalid type for 'messages': expected an array of objects.", "invalid_type"),
        (CHAT, {"model": "m", "messages": []}, "Invalid 'messages': it must not be empty.", "empty_array"),
        ("/v1/responses", {"model": "m", "input": 3}, "Invalid type for 'input': expected a string or an array of objects.", "invalid_type"),
        ("/v1/responses", {"model": "m", "input": ""}, "Invalid 'input': it must not be empty.", "empty_string"),
        ("/v1/embeddings", {"model": "m", "input": [{}]}, "Invalid type for 'input': expected a string or an array.", "invalid_type"),
        ("/v1/embeddings", {"model": "m", "input": ["x"] * 2049}, "Invalid 'input': at most 2048 entries, not 2049.", "array_above_max_length"),
        ("/v1/completions", {"model": "m", "prompt": 5}, "Invalid type for 'prompt': expected a string or an array.", "invalid_type"),
        (CHAT, {"model": "m", "messages": [{}], "max_tokens": "9"}, "Invalid 'max_tokens': expected a whole number of at least 1.", "invalid_value"),
        ("/v1/embeddings", {"model": "m", "input": [True]}, "Invalid type for 'input': expected a string or an array.", "invalid_type"),
        ("/v1/embeddings", {"model": "m", "input": [[1, "a"]]}, "Invalid type for 'input': expected a string or an array.", "invalid_type"),
        ("/v1/embeddings", {"model": "m", "input": "x", "dimensions": 4097}, "Invalid 'dimensions': expected at most 4096.", "integer_above_max_value"),
        (CHAT, {"model": "m", "messages": [{}], "n": 129}, "Invalid 'n': expected at most 128.", "integer_above_max_value"),
        (CHAT, {"model": "m", "messages": [{}, {"content": 5}]}, "Invalid type for 'messages[1].content': expected a string or an array.", "invalid_type"),
        (CHAT, {"model": "m", "messages": [{}], "stream": "no"}, "Invalid type for 'stream': expected a boolean.", "invalid_type"),
        (CHAT, {"model": "m", "messages": [{}], "stream_options": 1}, "Invalid type for 'stream_options': expected an object.", "invalid_type"),
    ],
)  # fmt: skip
async def test_a_wrong_request_is_told_what_is_wrong(virtual_time, path, body, message, code):
    reply = await Client().post(path, body)
    error = reply.json()["error"]
    assert (reply.status_code, error["message"], error["code"]) == (400, message, code)
    assert error["type"] == "invalid_request_error"


@on_one_loop
@pytest.mark.parametrize("raw", [b"", b"[]", b'"text"', b"{", b"\xff", b"[" * 100_000, b'{"n": NaN}', b'{"n": 1e999}'])
async def test_a_body_that_is_no_object_is_told_so(virtual_time, raw):
    reply = await Client().http.post(CHAT, content=raw)
    assert reply.status_code == 400
    assert reply.json()["error"]["message"].startswith("We could not parse the JSON body of your request")


@on_one_loop
@pytest.mark.parametrize("path", [CHAT, "/v1/responses", "/v1/completions", "/v1/embeddings"])
@pytest.mark.parametrize("limits", [{}, {"tokens": "1/min"}])
async def test_what_utf_8_cannot_carry_is_answered_like_any_other_text(virtual_time, path, limits):
    """JSON can write half of a surrogate pair, and answers, errors too, repeat what the request says."""
    half = "\ud800"
    body = {"model": half, "user": half, "instructions": half, "input": half, "prompt": half}
    body["messages"] = [{"role": "user", "content": half}]
    client = Client(**limits)
    for stream in (False, True):
        raw = json.dumps({**body, "stream": stream}).encode()
        reply = await client.http.post(path, content=raw)
        assert reply.status_code in ({200, 429} if limits else {200})
        assert "\\ud800" in reply.text


@on_one_loop
async def test_a_prompt_longer_than_the_context_is_no_matter_of_rates(virtual_time):
    """It is a 400 with a code of its own: waiting does not help, and the limits are not to blame."""
    client = Client(context_length=100)
    assert (await client.ask("x" * 4 * 94)).status_code == 200
    reply = await client.ask("x" * 4 * 95)
    assert reply.status_code == 400
    assert reply.json()["error"]["code"] == "context_length_exceeded"
    assert "maximum context length is 100 tokens. However, your messages resulted in 101" in reply.text


@on_one_loop
async def test_only_models_that_there_are_can_be_asked(virtual_time):
    client = Client(models=("m", "other"))
    assert (await client.ask()).status_code == 200
    unknown = await client.post(CHAT, {"model": "x", "messages": [{"role": "user", "content": "q"}]})
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "model_not_found")
    listed = (await client.http.get("/v1/models")).json()
    assert [model["id"] for model in listed["data"]] == ["m", "other"]
    assert (await client.http.get("/v1/models/m")).json()["id"] == "m"
    assert (await client.http.get("/v1/models/x")).status_code == 404


@on_one_loop
async def test_a_key_is_needed_and_must_be_right():
    client = Client(api_keys=("k",))
    for method, path in (("GET", "/v1/models"), ("GET", "/v1/models/m"), ("POST", CHAT)):
        for key, code in ((None, None), ("Bearer ", None), ("Basic k", None), ("Bearer wrong", "invalid_api_key")):
            bare = httpx2.Request(method, f"http://x{path}", headers={"authorization": key} if key else {})
            del client.http.headers["authorization"]
            reply = await client.http.send(bare)
            client.http.headers["authorization"] = "Bearer k"
            assert (reply.status_code, reply.json()["error"]["code"]) == (401, code)
    assert (await client.http.get("/v1/models")).status_code == 200


@on_one_loop
async def test_an_address_that_there_is_not_is_said_so():
    client = Client()
    reply = await client.post("/v1/nothing", {})
    assert (reply.status_code, reply.json()["error"]["message"]) == (404, "Invalid URL (POST /v1/nothing)")
    assert (await client.http.get(CHAT)).status_code == 405


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Simulation(requests=calendar(5, "day")), "requests must be a Rate or a string such as"),
        (lambda: Simulation(tokens="many"), "cannot read 'many' as a limit"),
        (lambda: Simulation(output_tokens=0), "output_tokens must be a whole number, 1 or more, not 0"),
        (lambda: Simulation(concurrency=1.5), "concurrency must be a whole number, 1 or more, not 1.5"),
        (lambda: Simulation(tolerance=-1), "tolerance must be a finite number of seconds, 0 or more, not -1"),
        (lambda: Latency(median=-1), "latency: median must be a finite number, 0 or more, not -1"),
        (lambda: Latency(sigma=math.inf), "latency: sigma must be a finite number, 0 or more, not inf"),
        (lambda: Faults(dropped=0.6, overloaded=0.6), "together at most 1"),
        (lambda: Faults(dropped=-0.1), "each in 0..1"),
    ],
)
def test_numbers_that_cannot_be_are_refused_when_written_down(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# The charge -----------------------------------------------------------------------------------------------------------

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
