"""A server at the wrong address: a run finds out by its first answers, and not by a million."""

from __future__ import annotations

import itertools
import json

import pytest

from penstock import clock
from tests.runner.service import ANSWER, Service, chat, prepared

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("virtual_time")]


def refusal(message, code):
    return json.dumps({"error": {"message": message, "code": code}}).encode()


PAGE = b"<!doctype html>\n<html><body>Welcome to nginx</body></html>"
NOT_FOUND = json.dumps({"detail": "Not Found"}).encode()


@pytest.mark.parametrize(
    ("status", "content"),
    [
        (404, NOT_FOUND),
        (404, b"404 page not found"),
        (404, refusal("Invalid URL (POST /v1/v1/chat/completions)", None)),
        (404, b""),
        (405, json.dumps({"detail": "Method Not Allowed"}).encode()),
        (501, PAGE),
        (403, PAGE),
        (400, PAGE),
    ],
    ids=["path", "text", "with words", "empty", "method", "no POST", "proxy", "TLS port"],
)
async def test_an_address_that_refuses_whatever_it_is_asked_ends_the_run(tmp_path, status, content):
    service = Service(answer=lambda _: (status, {}, content))
    rows = [chat(number) for number in range(200)]
    with prepared(tmp_path, rows, service, max_in_flight=5) as this:
        await this.run()
        assert this.run.stopped.code == "unreachable"
        assert "the first 20 answers to /v1/chat/completions" in this.run.stopped.message
        assert 20 <= len(service.asked) == len(this.errors()) <= 25
        assert this.summary()["untouched"] == 200 - len(service.asked)
    service.answer = None
    with prepared(tmp_path, rows, service) as this:
        await this.run()
        assert (this.run.stopped, len(this.results()), this.errors()) == (None, 200, [])


FOREIGN = {
    "page": (200, {}, PAGE),
    "page behind a byte order mark": (200, {}, b"\xef\xbb\xbf" + PAGE),
    "text": (200, {"content-type": "text/plain"}, b"It works!"),
    "picture": (200, {"content-type": "image/png"}, b"\x89PNG\r\n\x1a\n"),
    "no gzip": (200, {"content-encoding": "gzip", "content-type": "application/json"}, b"\x1f\x8b\x08no"),
    "no content": (204, {}, b""),
    "another's JSON": (200, {}, b'{"status": "ok"}'),
    "another's envelope": (200, {}, b'{"code": 404, "message": "not found", "data": null}'),
    "JSON-RPC": (200, {}, b'{"jsonrpc": "2.0", "error": {"code": -32600, "message": "Invalid"}, "id": null}'),
    "JSON-RPC, 400": (400, {}, b'{"jsonrpc": "2.0", "error": {"code": -32600, "message": "Invalid"}, "id": null}'),
    "log-in": (302, {"location": "/log-in"}, b""),
    "moved": (301, {"location": "https://elsewhere.example/"}, b""),
    "socket": (101, {"upgrade": "websocket"}, b""),
    "upgrade": (426, {"upgrade": "websocket"}, b"Upgrade Required"),
    "captive portal": (511, {}, PAGE),
    "proxy's password": (407, {}, b""),
}
HOLLOW = {
    "empty": (200, {}, b""),
    "null": (200, {}, b"null"),
    "object": (200, {}, b"{}"),
    "word": (200, {}, b'"pong"'),
    "no event": (200, {}, b': hello\n\ndata: {"event": "ping"}\n\n'),
    "error": (200, {}, b'{"error": "unknown command"}'),
    "page of a program": (500, {}, PAGE),
    "another's id": (201, {}, b'{"id": 101, "title": "x"}'),
}


@pytest.mark.parametrize("in_flight", [1, 1000])
@pytest.mark.parametrize("said", [*FOREIGN.values(), *HOLLOW.values()], ids=[*FOREIGN, *HOLLOW])
async def test_an_address_that_answers_as_no_service_does_ends_the_run_soon(tmp_path, said, in_flight):
    """Each row was sent eight times, and all of them were errors after minutes."""
    service = Service(answer=lambda _: said)
    rows = [chat(number) for number in range(50)]
    with prepared(tmp_path, rows, service, limits={"requests": "6000/min"}, max_in_flight=in_flight) as this:
        await this.run()
        assert (this.run.stopped.code, this.run.stopped.status) == ("unreachable", said[0])
        assert "the first 20 answers to /v1/chat/completions are no answers to rows" in this.run.stopped.message
        assert len(this.errors()) <= 2
    assert clock.now() < (15 if said in FOREIGN.values() else 260)  # a service under load is given more time
    service.answer = lambda _: (200, {}, ANSWER)
    with prepared(tmp_path, rows, service) as this:
        await this.run()
        assert (this.run.stopped, len(this.results()), this.errors()) == (None, 50, [])


@pytest.mark.parametrize("said", [*FOREIGN.values(), *HOLLOW.values()], ids=[*FOREIGN, *HOLLOW])
async def test_a_server_that_does_so_now_and_then_loses_no_row(tmp_path, said):
    count = itertools.count()
    service = Service(answer=lambda _: (200, {}, ANSWER) if next(count) % 50 else said)
    with prepared(tmp_path, [chat(number) for number in range(120)], service, max_in_flight=20) as this:
        await this.run()
        assert (this.run.stopped, len(this.results()), this.errors()) == (None, 120, [])


@pytest.mark.parametrize("said", FOREIGN.values(), ids=FOREIGN)
async def test_a_log_in_page_in_the_middle_of_a_run_is_waited_for_like_a_server_that_is_down(tmp_path, said):
    service = Service(answer=lambda _: said if 2 < clock.now() < 300 else (200, {}, ANSWER))
    with prepared(tmp_path, [chat(number) for number in range(100)], service, max_in_flight=20) as this:
        await this.run()
        assert (this.run.stopped, len(this.results()), this.errors()) == (None, 100, [])
    assert len(service.asked) < 160


async def test_one_path_with_a_page_costs_its_rows_and_not_the_run(tmp_path):
    rows = [chat(number) for number in range(200)]
    for row in rows[::2]:
        row["url"] = "/v1/responses"
        row["body"]["instructions"] = "x"
    service = Service(answer=lambda body: (200, {}, PAGE if "instructions" in body else ANSWER))
    with prepared(tmp_path, rows, service, max_in_flight=2) as this:
        await this.run()
        assert (this.run.stopped, len(this.results()), len(this.errors())) == (None, 100, 100)
        assert {error["error"]["code"] for error in this.errors()} == {"foreign_answer"}
    assert sum("instructions" in body for body in service.bodies) <= 22


@pytest.mark.parametrize("said", [*FOREIGN.values(), *HOLLOW.values()], ids=[*FOREIGN, *HOLLOW])
async def test_one_of_several_addresses_with_a_page_costs_no_row(tmp_path, said):
    wrong, right = Service(answer=lambda _: said), Service(answer=lambda _: (200, {}, ANSWER))
    with prepared(tmp_path, [chat(number) for number in range(300)], wrong, others=[right]) as this:
        await this.run()
        assert (this.run.stopped, len(this.results()), this.errors()) == (None, 300, [])
    assert len(wrong.asked) <= (40 if said in FOREIGN.values() else 200)


def of_the_row(body):
    """A refusal for which its row is to blame."""
    return 404, {}, refusal(f"The model `{body['model']}` does not exist", None)


@pytest.mark.parametrize(
    "answer",
    [
        of_the_row,
        lambda _: (404, {}, refusal("There is no such model", "model_not_found")),
        lambda _: (400, {}, refusal("max_tokens is too large", None)),
        lambda _: (403, {}, refusal("This text is not allowed", None)),
        lambda _: (413, {}, PAGE),
        lambda _: (200, {}, b"no JSON"),
    ],
    ids=["model by name", "model by code", "400", "403", "413", "an answer"],
)
async def test_refusals_that_rows_may_be_to_blame_for_end_no_run(tmp_path, answer):
    with prepared(tmp_path, [chat(number, model="llama") for number in range(50)], Service(answer=answer)) as this:
        await this.run()
        assert (this.run.stopped, len(this.errors())) == (None, 50)


@pytest.mark.parametrize("other", [(200, {}, ANSWER), (400, {}, refusal("max_tokens is too large", None))])
async def test_an_address_that_took_any_row_is_the_right_one(tmp_path, other):
    """A router may have lost its way for a while, and a part of the rows may ask for what is not there."""
    service = Service(script=[other], answer=lambda _: (404, {}, NOT_FOUND))
    with prepared(tmp_path, [chat(number) for number in range(50)], service, max_in_flight=1) as this:
        await this.run()
        assert this.run.stopped is None
        assert len(this.results()) + len(this.errors()) == 50


async def test_a_path_that_is_not_there_costs_its_rows_and_not_the_run(tmp_path):
    def answer(body):
        return (404, {}, NOT_FOUND) if "dimensions" in body else (200, {}, ANSWER)

    rows = [chat(number) for number in range(200)]
    for row in rows[::2]:
        row["url"] = "/v1/embeddings"
        row["body"]["dimensions"] = 3
    service = Service(answer=answer)
    with prepared(tmp_path, rows, service, max_in_flight=2) as this:
        await this.run()
        assert (this.run.stopped, len(this.results()), len(this.errors())) == (None, 100, 100)
        assert {error["error"]["status_code"] for error in this.errors()} == {404}
    assert 20 <= sum("dimensions" in body for body in service.bodies) <= 22


async def test_a_file_none_of_whose_paths_is_there_ends_the_run(tmp_path):
    paths = ["/v1/chat/completions", "/v1/responses", "/v1/embeddings"]
    rows = [{**chat(number), "url": paths[number % 3]} for number in range(600)]
    service = Service(answer=lambda _: (404, {}, NOT_FOUND))
    with prepared(tmp_path, rows, service, max_in_flight=1) as this:
        await this.run()
        assert this.run.stopped.code == "unreachable"
    assert len(service.asked) == 60


async def test_a_wrong_address_among_several_is_left_and_costs_no_row(tmp_path):
    wrong, right = Service(answer=lambda _: (404, {}, NOT_FOUND)), Service(answer=lambda _: (200, {}, ANSWER))
    with prepared(tmp_path, [chat(number) for number in range(200)], wrong, others=[right]) as this:
        await this.run()
        assert (this.run.stopped, len(this.results()), this.errors()) == (None, 200, [])
        assert [words for words in this.said if words.startswith("nothing more is sent to server-1")]


async def test_another_model_is_asked_before_an_address_is_taken_for_wrong(tmp_path):
    """Some servers do not name the model that they do not have."""

    def answer(body):
        return (404, {}, refusal("Model Not Exist", None)) if body["model"] == "theirs" else (200, {}, ANSWER)

    rows = [chat(number, model="theirs" if number < 60 else "ours") for number in range(70)]
    with prepared(tmp_path, rows, Service(answer=answer), max_in_flight=1) as this:
        await this.run()
        assert (this.run.stopped, len(this.results()), len(this.errors())) == (None, 10, 60)


@pytest.mark.parametrize("status", [300, 304, 305])
async def test_an_answer_that_leads_nowhere_is_an_error_of_its_row(tmp_path, status):
    """As SDKs have it. It was taken for a server that is away, and the rows were sent for as long as one may be."""
    service = Service(answer=lambda body: (status, {}, b"") if "7" in str(body["messages"]) else (200, {}, ANSWER))
    with prepared(tmp_path, [*map(chat, range(60)), *map(chat, range(70, 80))], service, max_in_flight=5) as this:
        await this.run()
        assert (this.run.stopped, len(this.results())) == (None, 54)
        assert {error["error"]["code"] for error in this.errors()} == {f"http_{status}"}
    assert (len(service.asked), this.counts.retries) == (70, 0)
    assert clock.now() < 10
