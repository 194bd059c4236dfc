"""What services refuse of batches: for now, for good, for one row, or because the account is at its end."""

from __future__ import annotations

import json
import shutil
from itertools import pairwise

import pytest

from penstock import clock
from penstock.llm.tokens import by_bytes
from penstock.runner.batch.summary import batch_sentences, batch_summary
from penstock.runner.client import Lost, Reply
from penstock.runner.output import Results, beside
from penstock.runner.prices import Prices
from penstock.runner.source import read_row
from penstock.simulator import Batches, Simulation
from tests.runner.batch.test_odd_services import Odd
from tests.runner.batch.test_run import Service, check_all_answered, prepared
from tests.runner.service import chat

pytestmark = pytest.mark.anyio


def refusal(status, code, message="no"):
    return Reply(status, {}, json.dumps({"error": {"message": message, "code": code}}).encode())


def content(rows, **entry):
    """A file of answers in which each row has this one."""
    return Reply(
        200, {}, b"".join(json.dumps({"custom_id": row["custom_id"], **entry}).encode() + b"\n" for row in rows)
    )


async def test_a_batch_that_is_refused_for_good_costs_its_rows_and_no_more(virtual_time, tmp_path):
    rows = [chat(n, model="m" if n % 2 else "other") for n in range(140)]
    service = Odd("POST", "/v1/batches$", refusal(400, "invalid_endpoint"), times=1)
    with prepared(tmp_path, rows, service) as made:
        await made.run()
        assert [error["error"]["code"] for error in made.errors()] == ["invalid_endpoint"] * 70
    assert (made.run.counts.answered, service.submitted(), made.run.parts) == (70, 70, [])


async def test_a_queue_that_never_has_room_ends_the_run_and_the_next_one_goes_on(virtual_time, tmp_path):
    rows = [chat(n) for n in range(5)]
    service = Odd("POST", "/v1/batches$", refusal(429, "rate_limit_exceeded", "the queue is full"))
    with prepared(tmp_path, rows, service, give_up_after=1_000) as made:
        await made.run()
    assert (made.run.stopped.code, made.run.stopped.message) == (
        "account", "the queue of m takes nothing more: the queue is full",
    )  # fmt: skip
    assert 1_000 <= clock.now() < 2_000
    service.times = 0
    with prepared(tmp_path, rows, service) as made:
        await made.run()
        check_all_answered(made, rows)


@pytest.mark.parametrize("times", [1, 3])
async def test_a_queue_rests_as_long_as_the_service_asks(virtual_time, tmp_path, times):
    """A 429 that asked for a second held the queue of its model for half a minute."""
    asked = []

    class Timed(Odd):
        async def request(self, method, path, body=None, content_type="application/json"):
            if (method, path) == ("POST", "/v1/batches"):
                asked.append(clock.now())
            return await super().request(method, path, body, content_type)

    refused = refusal(429, "rate_limit_exceeded")._replace(headers={"retry-after": "1"})
    rows = [chat(n) for n in range(5)]
    with prepared(tmp_path, rows, Timed("POST", "/v1/batches$", refused, times=times)) as made:
        await made.run()
        check_all_answered(made, rows)
    assert [round(later - earlier, 3) for earlier, later in pairwise(asked)] == [1, 2, 4][:times]


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_wait_beyond_all_patience_ends_the_run_when_patience_does(virtual_time, tmp_path, method):
    """500,000 hours, such as of a moment in a wrong unit, were slept through."""
    refused = refusal(429, "rate_limit_exceeded")._replace(headers={"retry-after": "999999999"})
    ending = {"GET": "/v1/batches/batch", "POST": "/v1/batches$"}[method]
    with prepared(tmp_path, [chat(1)], Odd(method, ending, refused), give_up_after=1_000) as made:
        await made.run()
    assert made.run.stopped.code in {"account", "unreachable"}
    assert 1_000 <= clock.now() < 1_100


NO_MONEY = {"message": "you are out of money", "code": "insufficient_quota"}


@pytest.mark.parametrize(
    ("ending", "change"),
    [
        ("/content$", content([chat(n) for n in range(5)], response={"status_code": 429, "body": {"error": NO_MONEY}})),
        ("/v1/batches/", lambda batch: {**batch, "status": "failed", "errors": {"data": [NO_MONEY]}}),
    ],
    ids=["in its answers", "at its check"],
)
async def test_an_account_that_is_at_its_end_ends_the_run_and_costs_no_row(virtual_time, tmp_path, ending, change):
    """Its rows go into another batch when the run goes on."""
    rows = [chat(n) for n in range(5)]
    service = Odd("GET", ending, change, times=1)
    with prepared(tmp_path, rows, service) as made:
        await made.run()
    assert (made.run.stopped.code, made.run.stopped.message) == ("account", "you are out of money")
    assert (made.run.counts.answered, made.run.counts.failed) == (0, 0)
    with prepared(tmp_path, rows, service) as made:
        await made.run()
        check_all_answered(made, rows)


async def test_a_row_that_a_batch_refuses_fails_in_the_words_of_the_service(virtual_time, tmp_path):
    rows = [chat(1)]
    wrong = {"code": "invalid_prompt", "message": "the prompt was flagged"}
    with prepared(tmp_path, rows, Odd("GET", "/content$", content(rows, response=None, error=wrong))) as made:
        await made.run()
        (error,) = made.errors()
    assert (error["error"]["code"], error["error"]["message"]) == ("invalid_prompt", "the prompt was flagged")


async def test_a_stream_is_no_row_of_a_batch(virtual_time, tmp_path):
    streamed, plain = chat(1), chat(2)
    streamed["body"]["stream"] = True
    with prepared(tmp_path, [streamed, plain], Service()) as made:
        await made.run()
        check_all_answered(made, [plain])
        (error,) = made.errors()
    assert (error["custom_id"], error["error"]["code"]) == ("row-1", "stream_not_supported")


async def test_an_answer_to_a_row_that_was_edited_since_is_not_handed_out(virtual_time, tmp_path):
    rows = [chat(n) for n in range(3)]
    with prepared(tmp_path, rows, Service()) as made:
        await made.run()
    with prepared(tmp_path, [rows[0], chat(1, size=50), rows[2]], Service()) as made:
        await made.run()
    assert made.run.stopped.code == "changed"
    assert made.run.stopped.message.startswith("line 2 ")


async def test_a_row_that_no_queue_could_take_is_an_error_of_its_own(virtual_time, tmp_path):
    rows = [chat(0), chat(1, size=2_000)]
    with prepared(tmp_path, rows, Service(), queue_tokens=100) as made:
        await made.run()
        check_all_answered(made, rows[:1])
        (error,) = made.errors()
    assert error["error"]["code"] == "request_too_large"
    assert error["error"]["message"] == "the row holds 504 tokens, and the queue of m takes 90"  # a tenth is kept free


@pytest.mark.parametrize("on_ambiguous", ["rerun", "fail"])
async def test_a_server_that_lists_no_batches_cannot_say_whether_one_was_created(virtual_time, tmp_path, on_ambiguous):
    """Its rows may be paid for twice, which is said; or nothing is sent again."""
    rows = [chat(n) for n in range(5)]
    service = Odd("GET", "/v1/batches?", Reply(404, {}, b'{"detail": "Not Found"}'))
    service.after[1] = Lost("no answer within 600 s")
    with prepared(tmp_path, rows, service, on_ambiguous=on_ambiguous) as made:
        await made.run()
        summary = batch_summary(made.run.counts, made.run.ended, made.run.parts)
    if on_ambiguous == "fail":
        assert (
            made.run.stopped.message == "a batch of 5 rows may have been created, and the server does not list batches"
        )
        assert len(service.library.batches) == 1
    else:
        check_all_answered(made, rows)
        assert any(line.startswith("5 rows may have been billed twice") for line in batch_sentences(summary))


async def test_what_was_not_submitted_is_dropped_where_batches_are_cancelled(virtual_time, tmp_path):
    service = Service(Simulation(batches=Batches(duration=1_000)))
    rows = [chat(n) for n in range(10)]  # 29 tokens each
    with prepared(tmp_path, rows, service, queue_tokens=150, deadline=20) as made:
        await made.run()
        submitted = [part.batch for part in made.run.parts if part.batch is not None]
        assert 0 < len(submitted) < len(made.run.parts)
    with prepared(tmp_path, rows, service, queue_tokens=150, cancel=True) as made:
        await made.run()
        assert made.run.stopped.message.startswith(f"{len(submitted)} batches are cancelled")
        assert made.run.parts == []
    assert list(service.library.batches) == submitted
    with prepared(tmp_path, rows, service) as made:
        await made.run()
        check_all_answered(made, rows)


async def test_a_folder_that_is_gone_ends_the_run_in_a_sentence(virtual_time, tmp_path):
    folder = tmp_path / "gone"
    folder.mkdir()
    with prepared(folder, [chat(1)], Service()) as made:
        shutil.rmtree(folder)
        await made.run()
    assert made.run.stopped.code == "output"
    assert made.run.stopped.message.startswith(f"cannot write a temporary file in {folder}: ")


async def test_batches_that_a_budget_does_not_hold_together_run_one_after_the_other(virtual_time, tmp_path):
    """What a batch may cost is set aside until its answers say what it did cost."""
    prices = tmp_path / "prices.json"
    prices.write_text('{"per": 1, "models": {"m": {"input": 1, "output": 1}, "other": {"input": 1, "output": 1}}}')
    rows = [
        {**chat(n), "body": {**chat(n, model=model)["body"], "max_tokens": 100}}
        for n, model in ((0, "m"), (1, "other"))
    ]
    service = Service(Simulation(batches=Batches(duration=100)))
    with prepared(tmp_path, rows, service, prices=Prices.of(prices), max_cost=100) as made:
        await made.run()
    assert (made.run.stopped, made.run.counts.answered) == (None, 2)
    created = [number for number, call in enumerate(service.calls) if call == ("POST", "/v1/batches")]
    assert service.calls[created[1] - 1][1].endswith("/content")
    assert clock.now() > 200


@pytest.mark.parametrize("on_ambiguous", ["rerun", "fail"])
async def test_rows_that_an_earlier_run_sent_one_by_one_may_be_billed_already(virtual_time, tmp_path, on_ambiguous):
    """They go into a batch and are counted, or are given up."""
    rows = [chat(n) for n in range(3)]
    out, sent = tmp_path / "out.jsonl", read_row(1, json.dumps(rows[0]).encode(), by_bytes)
    with Results(out, beside(out, ".errors.jsonl")) as results:
        results.sent(sent, 1)
    with prepared(tmp_path, rows, Service(), on_ambiguous=on_ambiguous) as made:
        await made.run()
        codes = [error["error"]["code"] for error in made.errors()]
    assert codes == (["ambiguous"] if on_ambiguous == "fail" else [])
    assert (made.run.counts.answered, made.run.counts.ambiguous) == ((2, 0) if on_ambiguous == "fail" else (3, 1))
