"""What goes wrong on purpose, in each of its forms: as an answer, in a stream, over a socket, and from the command
line."""

from __future__ import annotations

import email.utils
import gzip
import json
import signal
import socket
import urllib.request
import zlib

import anyio
import httpx2
import pytest

from penstock import clock, simulator
from penstock.cli import main
from penstock.llm.failures import Action, judge
from penstock.llm.headers import read
from penstock.runner import answers
from penstock.simulator import Change, Faults, Simulation, Stranger, charge, charge_rule
from penstock.simulator._simulation import FAULTS
from tests.cli.commands import started
from tests.simulator.in_process import CHAT, Client

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("fault", "status", "action"),
    [
        ("bad_gateway", 502, Action.BACK_OFF), ("error_in_200", 200, Action.BACK_OFF), ("empty", 200, Action.BACK_OFF),
        ("null", 200, Action.BACK_OFF), ("no_choices", 200, Action.BACK_OFF), ("truncated", 200, Action.PERMANENT),
        ("server_error", 500, Action.BACK_OFF), ("overloaded", 503, Action.BACK_OFF),
    ],
)  # fmt: skip
async def test_an_answer_that_is_none_is_charged_and_judged_as_what_it_is(virtual_time, fault, status, action):
    client = Client(requests="10/min")
    client.account.inject(fault)
    reply = await client.ask()
    assert reply.status_code == status
    verdict = answers.judge(CHAT, reply.status_code, reply.headers, reply.content)
    assert verdict.action is action
    seen = client.account.statistics()
    assert (seen.admitted, seen.answered, sum(seen.failed.values())) == (1, 0, 1)
    assert (await client.ask()).json()["choices"]


async def test_a_gateways_page_is_html_and_tells_no_limit(virtual_time):
    client = Client(requests="10/min")
    client.account.inject("bad_gateway")
    reply = await client.ask()
    assert reply.text.startswith("<html>")
    assert not [name for name in reply.headers if "ratelimit" in name]


async def test_answers_without_headers_or_compressed_are_answers(virtual_time):
    client = Client(requests="10/min")
    client.account.inject("no_headers")
    bare = await client.ask()
    assert bare.json()["choices"]
    assert "x-ratelimit-limit-requests" not in bare.headers
    client.account.inject("gzip")
    async with client.http.stream(
        "POST", CHAT, json={"model": "m", "messages": [{"role": "user", "content": "a"}]}
    ) as packed:
        raw = b"".join([chunk async for chunk in packed.aiter_raw()])
    assert (packed.headers["content-encoding"], packed.headers["x-ratelimit-limit-requests"]) == ("gzip", "10")
    assert json.loads(gzip.decompress(raw))["choices"]
    assert client.account.statistics().answered == 2


@pytest.mark.parametrize("dialect", ["openai", "azure", "groq", "anthropic", "mistral", "together", "cohere"])
async def test_an_answer_without_headers_tells_no_limit_in_any_dialect(virtual_time, dialect):
    client = Client(requests="10/min", tokens="9k/min", dialect=dialect)
    client.account.inject("no_headers")
    assert read((await client.ask()).headers, 200, wall=clock.wall()).quotas == ()
    assert read((await client.ask()).headers, 200, wall=clock.wall()).quotas


@pytest.mark.parametrize("fault", ["gzip", "no_headers"])
async def test_what_is_compressed_or_bare_is_otherwise_as_it_would_be(virtual_time, fault):
    """An error keeps its status, and the tokens of an answer are charged."""
    client = Client(output="1000/day", output_tokens=40)
    client.account.inject(fault, 2)
    wrong = await client.post(CHAT, {"model": "m"})
    assert (wrong.status_code, "messages" in wrong.json()["error"]["message"]) == (400, True)
    spoken = (await client.ask()).json()["usage"]["completion_tokens"]
    seen = client.account.statistics()
    assert (seen.answered, seen.failed) == (1, {"400": 1})
    assert spoken == 40 == seen.limits[0].used


async def test_a_stream_may_end_in_the_middle_as_if_that_were_all(virtual_time):
    client = Client()
    client.account.inject("truncated")
    reply = await client.ask(stream=True)
    assert reply.status_code == 200
    assert "[DONE]" not in reply.text
    assert reply.text.count("data: ") > 2
    client.account.inject("error_in_200")
    assert (await client.ask(stream=True)).json()["error"]["code"] == 502


@pytest.mark.parametrize("stream", [False, True])
async def test_a_server_that_hangs_says_nothing_for_as_long_as_anybody_waits(virtual_time, stream):
    client = Client()
    client.account.inject("hang")
    with anyio.move_on_after(100_000) as scope:
        await client.ask(stream=stream)
    assert scope.cancelled_caught
    assert clock.now() >= 100_000
    assert (await client.ask()).status_code == 200


@pytest.mark.parametrize(
    ("hints", "name", "value"),
    [
        ("all", "retry-after-ms", "60000"), ("retry-after", "retry-after", "60"), ("duration", "retry-after", "60s"),
        ("milliseconds", "retry-after-ms", "60000"), ("date", "retry-after", "Thu, 01 Jan 2026 00:01:00 GMT"),
    ],
)  # fmt: skip
async def test_a_refusal_tells_the_wait_in_the_form_asked_for(virtual_time, hints, name, value):
    """And each of them is read as that wait."""
    client = Client(requests="1/min", hints=hints, headers="none", count_refused=False)
    await client.ask()
    refused = await client.ask()
    told = {each: refused.headers[each] for each in ("retry-after", "retry-after-ms") if each in refused.headers}
    assert told[name] == value
    assert len(told) == (2 if hints == "all" else 1)
    assert ("try again" in refused.text) == (hints == "all")
    assert email.utils.parsedate(value) or hints != "date"


async def test_a_wait_may_be_told_in_words_alone_or_not_at_all(virtual_time):
    for hints, wait in (("message", 60.0), ("none", None)):
        client = Client(requests="1/min", hints=hints, headers="none", count_refused=False)
        await client.ask()
        refused = await client.ask()
        assert not [name for name in refused.headers if name.startswith("retry")]
        assert judge(429, refused.content, refused.headers).wait == wait


async def test_bodies_are_bounded_in_size_and_time(virtual_time, monkeypatch):
    client = Client(max_body=1000)
    assert (await client.ask("x" * 1000)).status_code == 413
    assert (await client.ask("x" * 100)).status_code == 200

    async def slow():
        yield b"{"
        await anyio.sleep(1000)

    reply = await client.http.post(CHAT, content=slow())
    assert (reply.status_code, clock.now()) == (408, 60.0)
    monkeypatch.setattr(simulator._bodies, "_MOST_DROPPED", 10_000)

    async def endless():
        while True:
            yield b"x" * 100

    assert (await client.http.post(CHAT, content=endless())).status_code == 413
    assert client.account.statistics().admitted == 1


BODY = json.dumps({"model": "m", "messages": [{"role": "user", "content": "x" * 100}]}).encode()


@pytest.mark.parametrize(
    ("coding", "content", "status"),
    [
        ("gzip", gzip.compress(BODY), 200),
        ("deflate", zlib.compress(BODY), 200),
        ("identity", BODY, 200),
        ("gzip", BODY, 400),
        ("gzip", gzip.compress(BODY)[:-12], 400),
        ("gzip", gzip.compress(b" " * 10_000_000), 413),
        ("br", b"x", 415),
    ],
)
async def test_compressed_bodies_are_read_within_the_same_bounds(virtual_time, coding, content, status):
    client = Client(max_body=100_000)
    reply = await client.http.post(CHAT, content=content, headers={"content-encoding": coding})
    assert reply.status_code == status
    assert client.account.statistics().admitted == (status == 200)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/files"])
def test_who_sends_too_much_hears_so(monkeypatch, path):
    """And is not cut off before; who asks first need not send it."""
    monkeypatch.setattr(simulator._batch_app, "MAX_FILE", 1000)
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer k\r\nconnection: close\r\n"
    with simulator.serve(Simulation(max_body=1000)) as server:
        address = httpx2.URL(server.base_url)
        for headers, body in (("", b"x" * 3_000_000), ("expect: 100-continue\r\n", b"")):
            with socket.create_connection((address.host, address.port), timeout=30) as connection:
                connection.sendall(f"{head}{headers}content-length: 3000000\r\n\r\n".encode() + body)
                answer = connection.makefile("rb").read()
            assert answer.startswith(b"HTTP/1.1 413 ")
            assert answer.endswith(b"}")


def test_a_connection_on_which_nothing_comes_is_closed(monkeypatch):
    """Half of a head is nothing either."""
    monkeypatch.setattr(simulator._server, "SILENCE", 0.2)
    with simulator.serve(Simulation()) as server:
        host, port = server.base_url.removeprefix("http://").removesuffix("/v1").split(":")
        for sent in (b"", b"POST /v1/chat"):
            with socket.create_connection((host, int(port)), timeout=30) as connection:
                connection.sendall(sent)
                assert connection.recv(100) == b""
        monkeypatch.undo()  # this one may be slow
        with httpx2.Client(base_url=server.base_url, headers={"authorization": "Bearer k"}) as client:
            assert client.get("/models").status_code == 200


def test_an_answer_that_is_cut_short_is_a_broken_connection():
    with (
        simulator.serve(Simulation()) as server,
        httpx2.Client(base_url=server.base_url, headers={"authorization": "Bearer k"}) as client,
    ):
        for stream in (False, True):
            server.inject("cut_short")
            with pytest.raises(httpx2.TransportError):
                client.post("/chat/completions", json={"model": "m", "messages": [{"role": "user"}], "stream": stream})
        assert server.statistics().failed == {"cut_short": 2}


async def test_odds_of_each_fault_are_kept(virtual_time):
    """One in twenty of each: two of them are answers."""
    names = [
        name for name in FAULTS if name not in {"dropped", "hang", "cut_short", "insufficient_quota", "broken_stream"}
    ]
    client = Client(faults=Faults(**dict.fromkeys(names, 0.05)))
    for number in range(600):
        await client.ask(str(number))
    seen = client.account.statistics()
    assert 270 < seen.answered < 390
    assert {"bad_gateway", "truncated", "error_in_200", "empty", "null", "no_choices", "500", "503"} == set(seen.failed)
    assert all(12 <= count <= 50 for count in seen.failed.values())


@pytest.mark.parametrize(
    ("rule", "tokens"),
    [("input", 12), ("sum", 12 + 200), ("largest", 200), ("input*1.5", 18), ("sum * 2", 424)],
)
def test_rules_of_what_admission_takes(rule, tokens):
    body = {"model": "m", "messages": [{"role": "user", "content": "x" * 32}], "max_tokens": 100, "n": 2}
    assert charge_rule(rule)(CHAT, body) == tokens
    assert charge_rule("sum")(CHAT, {"messages": [], "max_tokens": True, "n": None}) == charge(CHAT, {}) + 16
    assert charge_rule("sum")("/v1/embeddings", {"input": "abcd"}) == 1


@pytest.mark.parametrize("rule", ["output", "input*", "input*0", "input*nan", "input*-1", "input*inf"])
def test_a_rule_that_is_none_is_refused(rule):
    with pytest.raises(ValueError, match="there is no charge"):
        charge_rule(rule)


def test_the_command_line_is_enough_from_any_language(tmp_path):
    """Faults, a charge, a stranger, a change and forms of headers, by options alone."""
    options = [
        "--fault",
        "gzip=1",
        "--charge",
        "input*2",
        "--stranger",
        "requests=60,begin=3600",
        "--change",
        "at=7200,factor=2",
    ]
    process = started(
        "simulate",
        "--port",
        "0",
        "--latency",
        "0",
        *options,
        "--hints",
        "date",
        "--tell",
        "remaining",
        "--limits",
        "tokens=100/min",
    )
    try:
        url = process.stdout.readline().partition("=")[2].strip()
        body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "x" * 100}]}).encode()
        request = urllib.request.Request(f"{url}/chat/completions", body, {"authorization": "Bearer k"})
        with urllib.request.urlopen(request) as reply:
            assert reply.headers["content-encoding"] == "gzip"
            assert (reply.headers["x-ratelimit-remaining-tokens"], reply.headers["x-ratelimit-reset-tokens"]) == (
                "42",
                None,
            )
            assert json.loads(gzip.decompress(reply.read()))["choices"]
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request)
        assert email.utils.parsedate(refused.value.headers["retry-after"])
        refused.value.close()
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=120)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--fault", "gzipp=1"], "--fault: there is no 'gzipp'; there are server_error, "),
        (["--fault", "gzip"], "--fault: cannot read 'gzip': write it like name=0.5"),
        (["--fault", "gzip=2"], "--fault: faults are probabilities"),
        (["--charge", "all"], "--charge: there is no charge 'all': use one of input, sum, largest"),
        (["--change", "at=-1,factor=2"], "--change: a change needs a moment of 0 or more"),
        (["--stranger", "dogs=1"], "--stranger: there is no 'dogs'; there are requests, "),
    ],
)
def test_an_option_that_cannot_be_read_is_said_in_a_line(capsys, options, sentence):
    assert main(["simulate", *options]) == 2
    assert capsys.readouterr().err.startswith(f"penstock: {sentence}")


def test_options_are_what_a_program_would_write():
    from penstock.cli.simulate import _made

    assert _made("--change", Change, ["at=60,factor=0.5,unit=tokens"]) == Change(60.0, 0.5, "tokens")
    assert _made("--stranger", Stranger, ["requests=100"]) == Stranger(requests=100.0)
    assert _made("--fault", Faults, ["gzip=0.5,insufficient_quota_after=7"]) == Faults(
        gzip=0.5, insufficient_quota_after=7
    )
