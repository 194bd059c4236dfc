"""Batches of services that lose files, say nonsense, or do not know what they knew: nothing ends in a traceback, nothing
goes round for ever, and no row is paid for more often than is said."""

from __future__ import annotations

import json

import pytest

from penstock import clock
from penstock.runner.batch.state import read_batch
from penstock.runner.client import Lost, Reply
from penstock.simulator import Batches, Simulation
from tests.runner.batch.test_run import Crash, Service, check_all_answered, prepared
from tests.runner.service import chat

pytestmark = pytest.mark.anyio

NO_FILE = [b'{"error": {"message": "No such File object: file-x"}}', b'{"detail": "File not found"}']


class Odd(Service):
    """A service that says something else at some addresses: a reply in place of its own, or its own object changed."""

    def __init__(self, method, ending, change, times=1_000, **options):
        super().__init__(**options)
        self.rule, self.change, self.times = (method, ending), change, times

    async def request(self, method, path, body=None, content_type="application/json"):
        is_odd = self.rule[0] == method and self.rule[1] in f"{path}$" and self.times > 0
        self.times -= is_odd
        if is_odd and isinstance(self.change, Reply):
            self.calls.append((method, path))
            return self.change
        reply = await super().request(method, path, body, content_type)
        if not is_odd:
            return reply
        return reply._replace(content=json.dumps(self.change(json.loads(reply.content))).encode())


@pytest.mark.parametrize("words", NO_FILE)
async def test_a_file_of_answers_that_is_late_is_waited_for(virtual_time, tmp_path, words):
    """It ended the run."""
    service, rows = Odd("GET", "/content$", Reply(404, {}, words), times=2), [chat(n) for n in range(5)]
    with prepared(tmp_path, rows, service) as made:
        await made.run()
        check_all_answered(made, rows)
    assert (service.submitted(), made.run.counts.ambiguous) == (5, 0)


@pytest.mark.parametrize("words", NO_FILE)
async def test_answers_that_are_gone_are_asked_for_once_more_and_said(virtual_time, tmp_path, words):
    """Each resume ended at the same batch, for ever."""
    service, rows = Odd("GET", "/content$", Reply(404, {}, words), times=4), [chat(n) for n in range(5)]
    with prepared(tmp_path, rows, service) as made:
        await made.run()
        check_all_answered(made, rows)
    assert (service.submitted(), made.run.counts.ambiguous) == (10, 5)


async def test_rows_whose_answers_are_gone_twice_are_not_paid_for_a_third_time(virtual_time, tmp_path):
    service, rows = Odd("GET", "/content$", Reply(404, {}, NO_FILE[0]), times=8), [chat(n) for n in range(5)]
    with prepared(tmp_path, rows, service) as made:
        await made.run()
    assert made.run.stopped.message.endswith(
        "says once more that 5 rows are done, and its files have 0: they are not paid for a third time"
    )
    assert service.submitted() == 10
    with prepared(tmp_path, rows, service) as made:  # the files are there again
        await made.run()
        check_all_answered(made, rows)
    assert service.submitted() == 10


@pytest.mark.parametrize("status", [404, 400])
async def test_a_file_that_was_deleted_between_two_runs_is_uploaded_again(virtual_time, tmp_path, status):
    """Its rows failed for good."""
    service, rows = Odd("POST", "/v1/batches$", Reply(status, {}, NO_FILE[0]), times=0), [chat(n) for n in range(5)]
    service.before[1] = Crash()
    with pytest.raises(Crash), prepared(tmp_path, rows, service) as made:
        await made.run()
    service.times = 1
    with prepared(tmp_path, rows, service) as made:
        await made.run()
        check_all_answered(made, rows)
    assert made.said[0] == "a file of 5 rows for m is refused: No such File object: file-x"


async def test_a_batch_that_is_not_there_ends_the_run_with_its_name(virtual_time, tmp_path):
    """As with another key; a server with batches was said to have none."""
    with prepared(tmp_path, [chat(1)], Odd("GET", "/v1/batches/", Reply(404, {}, b'{"detail": "Not Found"}'))) as made:
        await made.run()
        (part,) = made.run.parts
    assert made.run.stopped.message == (
        f"batch {part.batch}, whose rows may be paid for, is not there (another key, or another --base-url, may find it): Not Found"
    )


async def test_a_batch_that_cannot_be_cancelled_is_waited_for(virtual_time, tmp_path):
    """Services differ in how they refuse to cancel what has ended."""
    refused = Reply(400, {}, b'{"error": {"message": "Cannot cancel a batch with status completed"}}')
    service = Odd("POST", "/cancel$", refused, simulation=Simulation(batches=Batches(duration=100)))
    rows = [chat(n) for n in range(5)]
    with prepared(tmp_path, rows, service, deadline=20) as made:
        await made.run()
    with prepared(tmp_path, rows, service, cancel=True) as made:
        await made.run()
        check_all_answered(made, rows)
    assert "could not be cancelled: Cannot cancel a batch" in "".join(made.said)


async def test_a_key_that_is_taken_back_while_batches_are_cancelled_ends_the_run(virtual_time, tmp_path):
    """They go on, and the next run finds them."""
    refused = Reply(401, {}, b'{"error": {"code": "invalid_api_key", "message": "revoked"}}')
    service, rows = Odd("POST", "/cancel$", refused, simulation=Simulation(batches=Batches(duration=100))), [chat(1)]
    with prepared(tmp_path, rows, service, deadline=20) as made:
        await made.run()
    with prepared(tmp_path, rows, service, cancel=True) as made:
        await made.run()
        assert (made.run.stopped.code, len(made.run.parts)) == ("account", 1)


async def test_a_queue_that_is_full_without_a_number_is_waited_for(virtual_time, tmp_path):
    full = {"status": "failed", "errors": {"data": [{"code": "token_limit_exceeded", "message": "too many tokens"}]}}
    service, rows = Odd("GET", "/v1/batches/", lambda batch: {**batch, **full}, times=1), [chat(n) for n in range(5)]
    with prepared(tmp_path, rows, service) as made:
        await made.run()
        assert {line["custom_id"] for line in made.results()} == {row["custom_id"] for row in rows}
    assert (made.run.stopped, made.run.counts.sent, len(service.library.batches)) == (None, 5, 2)


@pytest.mark.parametrize(
    "errors",
    [
        None,
        "broken",
        [{"message": "x"}],
        {"data": [None, 5, {"line": "x"}]},
        {"data": [{"line": -1, "code": None, "message": None}, {"line": 10**30, "code": ["x"], "message": {}}]},
        {"data": [{"line": 6, "code": "of_nobody", "message": "no such row"}]},
    ],
)
async def test_a_batch_that_failed_and_blames_no_row_of_it_ends(virtual_time, tmp_path, errors):
    """Rows that no error named went into one batch after the other, without a pause."""
    service = Odd("GET", "/v1/batches/", lambda batch: {**batch, "status": "failed", "errors": errors})
    with prepared(tmp_path, [chat(n) for n in range(5)], service) as made:
        await made.run()
        codes = {error["error"]["code"] for error in made.errors()}
    assert codes in ({"batch_failed"}, {"of_nobody"})
    assert (made.run.counts.failed, len(service.library.batches)) == (5, 1)


async def test_what_a_failed_batch_did_is_kept(virtual_time, tmp_path):
    def failed(batch):
        return {**batch, "status": "failed"} if batch["status"] == "completed" else batch

    rows = [chat(n) for n in range(5)]
    with prepared(tmp_path, rows, Odd("GET", "/v1/batches/", failed)) as made:
        await made.run()
        check_all_answered(made, rows)


@pytest.mark.parametrize(
    ("method", "ending", "change"),
    [
        ("GET", "/v1/batches/", lambda batch: {**batch, "request_counts": {"completed": "many", "failed": None}}),
        ("GET", "/v1/batches/", lambda batch: {**batch, "request_counts": [1]}),
        ("GET", "/v1/batches/", lambda batch: {**batch, "request_counts": {"completed": float("nan")}}),
        ("GET", "/v1/batches/", lambda batch: {key: value for key, value in batch.items() if key != "id"}),
        ("POST", "/v1/batches$", lambda batch: {**batch, "id": None}),
        ("POST", "/v1/files$", lambda file: {**file, "created_at": float("nan")}),
        ("GET", "/v1/batches?", lambda page: {"data": [None, 5, {"id": "a"}], "has_more": True}),
        ("GET", "/v1/batches?", lambda page: {**page, "has_more": True}),
    ],
)
async def test_fields_of_a_strange_shape_count_as_not_said(virtual_time, tmp_path, method, ending, change):
    """They were errors of Python's."""
    service, rows = Odd(method, ending, change), [chat(n) for n in range(5)]
    if "?" in ending:
        service.after[1] = Lost("no answer")
    with prepared(tmp_path, rows, service) as made:
        await made.run()
        check_all_answered(made, rows)
    assert clock.now() < 300


async def test_a_file_that_lost_rows_while_their_batch_was_under_way_ends_the_run(virtual_time, tmp_path):
    """They were neither answered nor failed, and the run ended as if all were well."""
    rows = [chat(n) for n in range(5)]

    def refused(batch):
        (tmp_path / "in.jsonl").write_text(json.dumps(rows[0]) + "\n")
        return {**batch, "status": "failed", "errors": {"data": [{"line": 1, "code": "bad", "message": "bad"}]}}

    with prepared(tmp_path, rows, Odd("GET", "/v1/batches/", refused, times=1)) as made:
        await made.run()
    assert (made.run.stopped.code, made.run.stopped.message) == (
        "input", "4 rows that were read from it are not in it any more: it was changed meanwhile"
    )  # fmt: skip


def test_a_batch_needs_a_name():
    with pytest.raises(ValueError, match="the answer has no id"):
        read_batch({"status": "completed"})


PAGE = b"<!doctype html><title>Sign in</title>"
FOREIGN = {
    "page": Reply(200, {}, PAGE),
    "another's JSON": Reply(200, {}, b'{"status": "ok"}'),
    "a list": Reply(200, {}, b"[]"),
    "no content": Reply(204, {}, b""),
    "log-in": Reply(302, {"location": "/log-in"}, b""),
    "refused with a page": Reply(403, {}, PAGE),
    "captive portal": Reply(511, {}, PAGE),
    "JSON-RPC": Reply(400, {}, b'{"jsonrpc": "2.0", "error": {"code": -32600}, "id": null}'),
}


@pytest.mark.parametrize("reply", FOREIGN.values(), ids=FOREIGN)
async def test_an_address_that_is_not_the_service_ends_the_run_soon(virtual_time, tmp_path, reply):
    """It was asked for a day, or the command was said to be wrong."""
    service, rows = Odd("POST", "/v1/files$", reply), [chat(n) for n in range(5)]
    with prepared(tmp_path, rows, service) as made:
        await made.run()
    assert made.run.stopped.code == "unreachable"
    assert made.run.stopped.message.startswith("the first 5 answers of the server are none of the Batch API (")
    assert clock.now() < 60
    service.times = 0
    with prepared(tmp_path, rows, service) as made:
        await made.run()
        check_all_answered(made, rows)


@pytest.mark.parametrize("reply", FOREIGN.values(), ids=FOREIGN)
@pytest.mark.parametrize(
    ("method", "ending"),
    [("POST", "/v1/files$"), ("POST", "/v1/batches$"), ("GET", "/v1/batches/"), ("GET", "/content$")],
    ids=["upload", "create", "look", "download"],
)
async def test_what_is_not_the_service_now_and_then_costs_no_row(virtual_time, tmp_path, reply, method, ending):
    """A page in place of the answers was read as a file without any, and all of its rows were paid for again."""
    service, rows = Odd(method, ending, reply, times=2), [chat(n) for n in range(5)]
    with prepared(tmp_path, rows, service) as made:
        await made.run()
        check_all_answered(made, rows)
    assert (made.run.stopped, service.submitted(), made.run.counts.ambiguous) == (None, 5, 0)
