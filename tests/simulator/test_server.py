"""The simulated service over a real socket: the real SDK understands it, and it comes and goes without a trace.

These tests take real time, so nothing in them takes more than some milliseconds.
"""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import anyio
import httpx2
import openai
import pytest

from penstock import simulator
from penstock.simulator import Faults, Latency, Simulation, embedding_of, fingerprint

pytestmark = pytest.mark.anyio

# The SDK leaves its generators behind when a stream has said [DONE]; trio, rightly, warns of each.
on_asyncio_alone = pytest.mark.parametrize(
    "anyio_backend", [("asyncio", {}), ("asyncio", {"use_uvloop": True})], ids=["asyncio", "uvloop"]
)

QUESTION = [{"role": "user", "content": "hello"}]
ANSWER = fingerprint("hello") + " This answer is simulated: after the fingerprint"


def sdk(server, **options):
    # Without certificates: to read them takes longer than the tests.
    http = openai.DefaultAsyncHttpxClient(verify=False)
    return openai.AsyncOpenAI(
        base_url=server.base_url, http_client=http, **{"api_key": "k", "max_retries": 0, **options}
    )


def sync_sdk(server):
    return openai.OpenAI(base_url=server.base_url, api_key="k", max_retries=0)


async def test_the_sdk_understands_every_answer():
    """Chat, responses, completions, embeddings and models come out of the SDK as its own types, with their usage."""
    async with (
        simulator.serve(Simulation(requests="600/min", latency=Latency(0.002, 0.5))) as server,
        sdk(server) as client,
    ):
        raw = await client.chat.completions.with_raw_response.create(model="m", messages=QUESTION)
        chat = raw.parse()
        assert raw.headers["x-ratelimit-remaining-requests"] == "599"
        assert raw.headers["x-ratelimit-reset-requests"] == "100ms"
        assert chat.choices[0].message.content == ANSWER
        assert chat.choices[0].finish_reason == "stop"
        assert (chat.usage.prompt_tokens, chat.usage.completion_tokens, chat.usage.total_tokens) == (8, 16, 24)
        response = await client.responses.create(model="m", input="hello")
        assert response.output_text == ANSWER
        assert (response.status, response.usage.total_tokens) == ("completed", 24)
        cut = await client.responses.create(model="m", input="hello", max_output_tokens=5)
        assert (cut.status, cut.incomplete_details.reason) == ("incomplete", "max_output_tokens")
        completion = await client.completions.create(model="m", prompt="hello")
        assert completion.choices[0].text == ANSWER
        embeddings = await client.embeddings.create(model="e", input=["hello", "world"])
        assert [entry.embedding for entry in embeddings.data] == [embedding_of("hello"), embedding_of("world")]
        assert embeddings.usage.total_tokens == 4
        models = await client.models.list()
        assert [model.id for model in models.data] == ["gpt-4o", "gpt-4o-mini", "text-embedding-3-small"]
        seen = server.statistics()
        assert (seen.admitted, seen.answered, seen.refused, seen.failed) == (5, 5, {}, {})


@on_asyncio_alone
async def test_the_sdk_understands_every_stream():
    """Deltas add up to the answer; usage comes last if asked for; the events of a response build the response."""
    async with simulator.serve(Simulation(latency=Latency(0.001, per_token=0.0002))) as server, sdk(server) as client:
        stream = await client.chat.completions.create(
            model="m", messages=QUESTION, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == ANSWER
        assert [chunk.usage.total_tokens for chunk in chunks if chunk.usage] == [24]
        completion = await client.completions.create(model="m", prompt="hello", stream=True)
        assert "".join([chunk.choices[0].text async for chunk in completion]) == ANSWER
        async with client.responses.stream(model="m", input="hello") as events:
            kinds = [event.type async for event in events]
            final = await events.get_final_response()
        assert kinds[0] == "response.created"
        assert kinds[-1] == "response.completed"
        assert (final.output_text, final.usage.output_tokens) == (ANSWER, 16)


@pytest.mark.parametrize(
    ("fault", "error", "status", "code"),
    [
        ("server_error", openai.InternalServerError, 500, None),
        ("overloaded", openai.InternalServerError, 503, "server_is_overloaded"),
        ("slow_down", openai.RateLimitError, 429, "slow_down"),
        ("insufficient_quota", openai.RateLimitError, 429, "insufficient_quota"),
        ("dropped", openai.APIConnectionError, None, None),
    ],
)
async def test_the_sdk_raises_its_own_errors_for_faults(fault, error, status, code):
    async with simulator.serve(Simulation()) as server, sdk(server) as client:
        server.inject(fault)
        with pytest.raises(error) as caught:
            await client.chat.completions.create(model="m", messages=QUESTION)
        assert getattr(caught.value, "status_code", None) == status
        assert caught.value.code == code
        assert (await client.chat.completions.create(model="m", messages=QUESTION)).choices[0].message.content == ANSWER


async def test_the_sdk_raises_its_own_errors_for_what_is_wrong():
    """401, 404 and 400 are what they are at the real service."""
    simulation = Simulation(api_keys=("k",), models=("m",), context_length=50)
    async with simulator.serve(simulation) as server, sdk(server) as client, sdk(server, api_key="wrong") as stranger:
        with pytest.raises(openai.AuthenticationError, match="Incorrect API key provided"):
            await stranger.chat.completions.create(model="m", messages=QUESTION)
        with pytest.raises(openai.NotFoundError, match="`x` does not exist"):
            await client.chat.completions.create(model="x", messages=QUESTION)
        with pytest.raises(openai.BadRequestError, match="maximum context length is 50 tokens") as caught:
            await client.responses.create(model="m", input="x" * 400)
        assert caught.value.code == "context_length_exceeded"


@on_asyncio_alone
async def test_a_broken_stream_is_an_error_after_output():
    async with simulator.serve(Simulation()) as server, sdk(server) as client:
        for fault, error in (("broken_stream", openai.APIError), ("dropped", openai.APIConnectionError)):
            server.inject(fault)
            said = ""
            with pytest.raises((error, httpx2.RemoteProtocolError, httpx2.ReadError)):
                async for chunk in await client.chat.completions.create(model="m", messages=QUESTION, stream=True):
                    said += chunk.choices[0].delta.content or ""
            assert said
            assert ANSWER.startswith(said)
        assert server.statistics().failed == {"broken_stream": 1, "dropped": 1}


async def test_the_sdks_own_retry_waits_as_told_and_gets_in():
    """The hint in the headers is one that the SDK obeys and that is enough."""
    async with simulator.serve(Simulation(requests="3000/min burst 1")) as server, sdk(server, max_retries=1) as client:
        for _ in range(3):
            await client.chat.completions.create(model="m", messages=QUESTION)
        seen = server.statistics()
        assert seen.answered == 3
        assert all(
            after.at_ns - before.at_ns >= 19_999_000
            for before, after in zip(seen.admissions, seen.admissions[1:], strict=False)
        )


async def test_many_clients_at_once_get_their_own_answers(monkeypatch):
    """Forty questions at the same time: each answer belongs to its question, and all were in flight together."""
    async with simulator.serve(Simulation()) as server, sdk(server) as client:

        async def until_all_are_there(_):
            while server.statistics().peak_in_flight < 40:
                await asyncio.sleep(0.001)

        monkeypatch.setattr(simulator._app, "anyio", SimpleNamespace(sleep=until_all_are_there))

        async def ask(number):
            reply = await client.responses.create(model="m", input=f"question {number}")
            assert reply.output_text.startswith(fingerprint(f"question {number}"))

        with anyio.fail_after(120):
            async with anyio.create_task_group() as group:
                for number in range(40):
                    group.start_soon(ask, number)


def test_threads_without_a_loop_can_use_it_too():
    """`with` does what `async with` does."""
    with simulator.serve(Simulation()) as server, sync_sdk(server) as client:
        assert client.responses.create(model="m", input="hello").output_text == ANSWER


async def test_a_server_ends_at_once_with_requests_in_flight(caplog):
    """Whoever still waits sees the connection close; the thread is gone, and nothing is logged as an error."""
    threads = set(threading.enumerate())
    errors = []

    async def ask(client):
        with pytest.raises(openai.APIConnectionError) as caught:
            await client.chat.completions.create(model="m", messages=QUESTION)
        errors.append(caught.value)

    server = simulator.serve(Simulation(latency=Latency(60)))
    async with sdk(server.__enter__()) as client, anyio.create_task_group() as group:
        for _ in range(3):
            group.start_soon(ask, client)
        while server.statistics().in_flight < 3:
            await anyio.sleep(0.001)
        start = time.perf_counter()
        server.__exit__(None, None, None)
        assert time.perf_counter() - start < 30  # and not the minute that the answers would take
    assert len(errors) == 3
    assert server.statistics().in_flight == 0
    assert not [thread for thread in set(threading.enumerate()) - threads if thread.name == "penstock-simulator"]
    assert [record for record in caplog.records if record.name.startswith("uvicorn")] == []
    with httpx2.Client() as http, pytest.raises(httpx2.ConnectError):
        http.get(server.base_url)


async def test_a_cancelled_caller_leaves_no_server_behind():
    """Leaving awaits nothing, so a cancellation inside the block still ends the thread."""
    with anyio.move_on_after(0.01):
        async with simulator.serve(Simulation()) as server:
            await anyio.sleep_forever()
    assert not [thread for thread in threading.enumerate() if thread.name == "penstock-simulator"]
    assert server.statistics().admitted == 0


def test_a_server_runs_once():
    server = simulator.serve(Simulation())
    with pytest.raises(RuntimeError, match="no address yet"):
        _ = server.base_url
    with server, pytest.raises(RuntimeError, match="a server runs once"):
        server.__enter__()


def test_in_virtual_time_there_is_no_server(virtual_time):
    """Its thread would run ahead of the caller's loop; the error says what to use instead."""
    with pytest.raises(RuntimeError, match="the clock is virtual: call the application in-process"):
        simulator.serve(Simulation()).__enter__()


def test_a_port_in_use_is_an_error_before_anything_runs():
    with simulator.serve(Simulation()) as server:
        port = int(server.base_url.removesuffix("/v1").rpartition(":")[2])
        with pytest.raises(OSError, match="in use"), simulator.serve(Simulation(), port=port):
            pass
        with pytest.raises(OSError, match="in use"):
            simulator.run(Simulation(), port=port)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_server_that_cannot_start_is_an_error_and_leaves_no_thread(monkeypatch):

    async def startup(*_):
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(simulator._server._Uvicorn, "startup", startup)
    with pytest.raises(RuntimeError, match="ended before it could serve"):
        simulator.serve(Simulation()).__enter__()
    assert not [thread for thread in threading.enumerate() if thread.name == "penstock-simulator"]


async def test_statistics_can_be_read_from_outside():
    """By whoever has no hold of the server: as JSON, beside the API."""
    async with simulator.serve(Simulation(tokens="1000/min")) as server, sdk(server) as client:
        await client.chat.completions.create(model="m", messages=QUESTION)
        async with httpx2.AsyncClient(base_url=server.base_url.removesuffix("/v1")) as http:
            seen = (await http.get("/simulator/statistics", params={"log": "1"})).json()
            assert (await http.post("/simulator/faults", json={"fault": "overloaded"})).status_code == 200
        assert (seen["admitted"], seen["tokens_used"], seen["peak_in_flight"]) == (1, 6, 1)
        assert [tokens for _, tokens in seen["admissions"]] == [6]
        with pytest.raises(openai.InternalServerError):
            await client.chat.completions.create(model="m", messages=QUESTION)


async def test_a_busy_caller_does_not_hold_the_server_up():
    """The server's loop is its own: while the caller computes, other answers are made ready."""
    async with simulator.serve(Simulation(latency=Latency(0.1))) as server, sdk(server) as client:

        async def ask(number):
            assert (await client.responses.create(model="m", input=str(number))).status == "completed"

        async with anyio.create_task_group() as group:
            for number in range(5):
                group.start_soon(ask, number)
            while server.statistics().admitted < 5:
                await anyio.sleep(0.001)
            deadline = time.perf_counter() + 5
            while server.statistics().answered < 5 and time.perf_counter() < deadline:
                time.sleep(0.001)  # blocks this loop on purpose
            assert server.statistics().answered == 5


SERVE = """
import json
from penstock import simulator
seen = simulator.run(simulator.Simulation(requests="60/min"), port=0, on_ready=lambda url: print(url, flush=True))
print(json.dumps(seen.as_json()))
"""


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_as_a_program_it_ends_with_a_signal_and_says_what_happened(sent):
    """`run` blocks until then, even with an open connection, and returns the statistics; no traceback."""
    with subprocess.Popen(
        [sys.executable, "-c", SERVE], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as program:
        base_url = program.stdout.readline().strip()
        with openai.OpenAI(base_url=base_url, api_key="k") as client:
            assert client.responses.create(model="m", input="hello").output_text == ANSWER
            program.send_signal(sent)
            out, err = program.communicate(timeout=120)
    assert (program.returncode, err) == (0, "")
    assert json.loads(out)["admitted"] == 1


@pytest.mark.parametrize("missing", ["starlette", "uvicorn"])
def test_without_its_packages_the_extra_is_named(missing, monkeypatch):
    """One clear error at import, that says what to install."""
    for name in [
        name for name in sys.modules if name.split(".")[0] == missing or name.startswith("penstock.simulator")
    ]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ImportError) as caught:
        __import__("penstock.simulator")
    assert str(caught.value) == (
        f"penstock.simulator needs the package '{missing}': install the extra, pip install \"penstock[simulator]\""
    )
    assert caught.value.name == missing


async def test_a_fault_rate_of_one_never_answers():
    async with simulator.serve(Simulation(faults=Faults(dropped=1))) as server, sdk(server) as client:
        for _ in range(3):
            with pytest.raises(openai.APIConnectionError):
                await client.responses.create(model="m", input="hello")
        assert server.statistics().failed == {"dropped": 3}


FIRST_REQUEST = """
import socket, sys
from penstock import simulator
with simulator.serve(simulator.Simulation()) as server:
    with socket.create_connection(("127.0.0.1", int(server.base_url.rsplit(":")[-1].partition("/")[0]))) as client:
        before = set(sys.modules)
        body = b'{"model": "m", "messages": []}'
        head = b"POST /v1/chat/completions HTTP/1.1\\r\\nhost: x\\r\\nauthorization: Bearer x\\r\\n"
        client.sendall(head + b"content-length: %d\\r\\n\\r\\n" % len(body) + body)
        client.recv(65_536)
    sys.exit(", ".join(sorted(set(sys.modules) - before)))
"""


def test_the_first_request_waits_for_nothing_to_be_loaded():
    """A burst would arrive together later than it left, at buckets that were full and could not refill meanwhile."""
    done = subprocess.run([sys.executable, "-c", FIRST_REQUEST], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == ""
