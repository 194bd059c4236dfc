"""Chance, faults, and what the simulated service says to wrong requests: in virtual time, without sockets."""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
from collections import Counter
from datetime import timedelta
from random import Random

import httpx2
import pytest

from penstock.limits import calendar, sliding
from penstock.simulator import Batches, Change, Faults, Latency, Simulation, Stranger, Window
from tests.simulator.in_process import CHAT, Client

pytestmark = pytest.mark.anyio

# For what does not wait, and so does not depend on the loop.
on_one_loop = pytest.mark.parametrize("anyio_backend", [("asyncio", {})], ids=["asyncio"])


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


def test_seconds_may_be_timedeltas():
    second = timedelta(seconds=1)
    assert Latency(second, 0.5, second / 4) == Latency(1.0, 0.5, 0.25)
    assert Change(at=2 * second, factor=0.5) == Change(2.0, 0.5)
    assert Stranger(requests=5, begin=second, end=3 * second) == Stranger(5, 0, 1.0, 3.0)
    assert Window(10, per=second) == Window(10, 1.0)
    assert Batches(validating=second, window=timedelta(days=1)) == Batches(validating=1.0)
    assert Simulation(tolerance=timedelta(milliseconds=1)) == Simulation(tolerance=0.001)
    assert dataclasses.replace(Latency(second), sigma=1) == Latency(1.0, 1)


@pytest.mark.parametrize("wrong", ["5", None, math.nan, timedelta(seconds=-1), True])
def test_what_is_no_span_is_refused(wrong):
    for make in (
        lambda: Latency(wrong),
        lambda: Change(at=wrong, factor=0.5),
        lambda: Stranger(requests=5, begin=wrong),
        lambda: Window(10, per=wrong),
        lambda: Batches(window=wrong),
        lambda: Simulation(tolerance=wrong),
    ):
        with pytest.raises(ValueError):
            make()


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
        (lambda: Simulation(headers="some"), "headers must be one of 'openai', 'remaining', 'none', not 'some'"),
        (lambda: Simulation(hints=["date"]), "hints must be one of 'all', .* not "),
        (lambda: Simulation(faults={"hang": 0.1}), "faults must be of the class Faults, not {'hang': 0.1}"),
        (lambda: Simulation(latency=0.5), "latency must be of the class Latency, not 0.5"),
        (lambda: Simulation(batches=None), "batches must be of the class Batches, not None"),
        (lambda: Simulation(organization=5), "organization must be a text, not 5"),
        (lambda: Simulation(charge=5), "charge must be a function, not 5"),
        (lambda: Simulation(count_tokens=None), "count_tokens must be a function, not None"),
        (lambda: Simulation(count_refused="false"), "count_refused must be True or False, not 'false'"),
        (lambda: Simulation(models="gpt-4o"), "models must be a list of texts, not 'gpt-4o'"),
        (lambda: Simulation(api_keys=(5,)), "api_keys must be a list of texts, not "),
        (lambda: Simulation(changes=Change(1, 2)), "changes must be a list of Changes, not Change"),
        (lambda: Simulation(strangers=[5]), "strangers must be a list of Strangers, not "),
    ],
)
def test_options_that_cannot_be_are_refused_when_written_down(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@on_one_loop
@pytest.mark.parametrize("limit", [Window(10, 60), sliding(10, per=60)], ids=str)
async def test_a_window_changes_as_a_rate_does(virtual_time, limit):
    """What is used stays used."""
    client = Client(requests=limit, changes=(Change(at=30, factor=0.5),))
    for _ in range(4):
        await client.ask()
    virtual_time.advance(31)
    (now,) = client.account.statistics().limits
    assert (now.limit.amount, now.level, now.used) == (5, 1, 4)


def test_a_window_is_shown_as_it_is_promised():
    assert (str(Window(10, 60)), Window(10, 60).burst) == ("10 in each 60s", 10)
