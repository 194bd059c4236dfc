"""Runs by the Batch API against the simulated service, in virtual time: split, submitted, merged, gone on with, given
up."""

from __future__ import annotations

import json
import os
from contextlib import closing, contextmanager
from types import SimpleNamespace

import anyio
import httpx2
import pytest

from penstock import clock, simulator
from penstock.llm.tokens import by_bytes
from penstock.runner.batch import parts as batch_parts
from penstock.runner.batch.parts import BatchJournal, batches_of
from penstock.runner.batch.run import BatchRun
from penstock.runner.batch.summary import batch_sentences, batch_summary
from penstock.runner.client import Lost, NotSent, Reply
from penstock.runner.output import Results, beside
from penstock.runner.prices import Prices
from penstock.runner.settings import Settings, Stopped
from penstock.runner.source import Lines
from penstock.simulator import Batches, Faults, Simulation, fingerprint
from tests.runner.service import chat, soon

pytestmark = pytest.mark.anyio


class Crash(BaseException):
    """What kill -9 does, at a call to the service."""


class Service:
    """A transport whose server is the simulated service. `script` holds what is done instead of, or after, a call."""

    def __init__(self, simulation=None):
        self.app = simulator.create_app(simulation or Simulation())
        self.account, self.library = self.app.state.account, self.app.state.library
        self.http = httpx2.AsyncClient(
            transport=httpx2.ASGITransport(app=self.app),
            base_url="http://test",
            headers={"authorization": "Bearer key"},
        )
        self.before, self.after = {}, {}  # call number → what is raised or answered
        self.calls = []

    async def __aenter__(self):
        return self

    async def __aexit__(self, *error):
        pass

    async def request(self, method, path, body=None, content_type="application/json"):
        number = len(self.calls)
        self.calls.append((method, path.partition("?")[0]))
        said = self.before.get(number)
        if isinstance(said, BaseException):
            raise said
        if said is not None:
            return said
        content = body if body is None or isinstance(body, bytes) else body.read()
        head = {"content-type": content_type} if body else {}
        response = await self.http.request(method, path, content=content, headers=head)
        if number in self.after:
            raise self.after[number]
        return Reply(response.status_code, response.headers, response.content)

    async def download(self, path, into):
        reply = await self.request("GET", path)
        if reply.status != 200:
            return reply
        into.write(reply.content)
        return reply._replace(content=b"")

    def submitted(self):
        return sum(batch.rows for batch in self.library.batches.values() if batch.is_checked and not batch.errors)


@contextmanager
def prepared(
    folder,
    given,
    service,
    *,
    order="completed",
    changed=None,
    queue_tokens=None,
    overwrite=False,
    cancel=False,
    **settings,
):
    """A run over these rows."""
    source, out = folder / "in.jsonl", folder / "out.jsonl"
    if given is not None:
        source.write_bytes(
            b"".join(row if isinstance(row, bytes) else json.dumps(row).encode() + b"\n" for row in given)
        )
    descriptor, said = os.open(source, os.O_RDONLY), []
    try:
        with Results(out, beside(out, ".errors.jsonl"), order=order, changed=changed, overwrite=overwrite) as results:
            journal = BatchJournal(batches_of(out), overwrite=overwrite)
            try:
                chosen = Settings(**{"cost": by_bytes, **settings})
                run = BatchRun(
                    Lines(descriptor), results, chosen, service, journal, queue_tokens=queue_tokens, changed=changed,
                    cancel=cancel, say=said.append
                )  # fmt: skip
                yield SimpleNamespace(
                    run=run,
                    said=said,
                    results=lambda: [json.loads(line) for line in out.read_text().splitlines()],
                    errors=lambda: [json.loads(line) for line in beside(out, ".errors.jsonl").read_text().splitlines()],
                )
            finally:
                journal.close()
    finally:
        os.close(descriptor)


def answers_by_id(made):
    found = {line["custom_id"]: line["response"]["body"]["choices"][0]["message"]["content"] for line in made.results()}
    assert len(found) == len(made.results())
    return found


def right_answers(rows):
    return {row["custom_id"]: fingerprint(row["body"]["messages"][0]["content"]) for row in rows}


def check_all_answered(made, rows):
    assert {name: text[:16] for name, text in answers_by_id(made).items()} == right_answers(rows)


async def test_rows_of_several_models_and_endpoints_come_back_as_one_file(virtual_time, tmp_path):
    """One batch for each, since a batch takes no more; every answer is in OUT under the custom_id of its row."""
    rows = [chat(n, model="m" if n % 2 else "other") for n in range(50)]
    embed = {"custom_id": 7, "url": "/v1/embeddings", "body": {"model": "m", "input": ["a", "b"]}}
    service = Service()
    with prepared(
        tmp_path, [*rows, embed, {"messages": [{"role": "user", "content": "bare"}], "model": "m"}], service
    ) as made:
        await made.run()
    assert made.run.stopped is None
    assert sorted(batch.rows for batch in service.library.batches.values()) == [1, 25, 26]
    results = {line["custom_id"]: line for line in made.results()}
    assert len(results) == 52
    assert len(results[7]["response"]["body"]["data"]) == 2
    assert results["line-52"]["response"]["status_code"] == 200
    assert (made.run.counts.rows, made.run.counts.answered, made.run.counts.failed) == (52, 52, 0)


async def test_parts_keep_to_the_services_limits(virtual_time, tmp_path, monkeypatch):
    """Rows, bytes and inputs of a batch are bounded; a row that no batch takes is an error of its own."""
    monkeypatch.setattr(batch_parts, "MAX_ROWS", 10)
    service, rows = Service(Simulation(batches=Batches(max_rows=10))), [chat(n) for n in range(35)]
    with prepared(tmp_path, rows, service) as made:
        await made.run()
        check_all_answered(made, rows)
    assert [batch.rows for batch in service.library.batches.values()] == [10, 10, 10, 5]
    monkeypatch.setattr(batch_parts, "MAX_BYTES", 1000)
    monkeypatch.setattr(batch_parts, "MAX_INPUTS", 3)
    many = {"url": "/v1/embeddings", "body": {"model": "m", "input": ["a", "b"]}}
    service = Service(Simulation(batches=Batches(max_bytes=1000)))
    with prepared(tmp_path, [*rows, chat(99, size=2000), many, many], service, overwrite=True) as made:
        await made.run()
        assert made.run.counts.answered == 37
    assert [error["error"]["code"] for error in made.errors()] == ["request_too_large"]
    assert max(len(batch.file.content) for batch in service.library.batches.values()) <= 1000
    embeddings = [batch for batch in service.library.batches.values() if batch.endpoint == "/v1/embeddings"]
    assert [batch.rows for batch in embeddings] == [1, 1]


async def test_the_queue_is_used_and_never_overfilled(virtual_time, tmp_path):
    """With --queue-tokens no batch is refused, several are under way at once, and the next goes when one has ended."""
    rules = Batches(duration=600, enqueued_tokens=2000)
    service, rows = Service(Simulation(batches=rules)), [chat(n) for n in range(200)]  # 29 tokens each, 5,800
    with prepared(tmp_path, rows, service, queue_tokens=2000) as made:
        await made.run()
        check_all_answered(made, rows)
    assert not any(batch.errors for batch in service.library.batches.values())
    assert service.library.executed.total() == 200
    assert clock.now() < 600 * 5


async def test_a_queue_that_nobody_named_is_learned_from_its_refusal(virtual_time, tmp_path):
    """The first batch is too large: its rows go into smaller ones, none is lost, none is paid twice."""
    service = Service(Simulation(batches=Batches(duration=60, enqueued_tokens=1000)))
    rows = [chat(n) for n in range(200)]
    with prepared(tmp_path, rows, service) as made:
        await made.run()
        check_all_answered(made, rows)
    assert set(service.library.executed.values()) == {1}
    refused = [batch for batch in service.library.batches.values() if batch.errors]
    assert len(refused) <= 2
    assert made.run.counts.sent == 200


async def test_others_may_fill_the_queue_for_a_while(virtual_time, tmp_path):
    service = Service(Simulation(batches=Batches(duration=500, enqueued_tokens=1000)))
    with prepared(tmp_path, [chat(n) for n in range(30)], service) as made:  # 870 tokens
        await made.run()
    rows = [chat(100 + n) for n in range(10)]
    with prepared(tmp_path, [chat(n) for n in range(30)] + rows, service) as made:
        file = service.library.batches[next(iter(service.library.batches))].file
        stranger = service.library.create(file, "/v1/chat/completions", "24h", None)
        await made.run()
        assert made.run.counts.answered == 10
    assert any(batch.errors for batch in service.library.batches.values() if batch is not stranger)


async def test_rows_that_expired_are_submitted_again(virtual_time, tmp_path):
    """As often as it takes; what the first batch answered is not asked for again."""
    rules = Batches(validating=0, duration=0, per_row=10, window=200, finalizing=0)
    service, rows = Service(Simulation(batches=rules)), [chat(n) for n in range(50)]
    with prepared(tmp_path, rows, service) as made:
        await made.run()
        check_all_answered(made, rows)
    assert [batch.rows for batch in service.library.batches.values()] == [50, 30, 10]
    assert set(service.library.executed.values()) == {1}
    assert [(one.status, one.answered, one.again) for one in made.run.ended] == [
        ("expired", 20, 30), ("expired", 20, 10), ("completed", 10, 0),
    ]  # fmt: skip
    assert made.run.counts.retries == 40


async def test_rows_that_met_the_services_trouble_are_tried_as_often_as_asked(virtual_time, tmp_path):
    """A 500 in a batch is tried again, a 400 is an error at once; what fails for good has its code and status."""
    service = Service(Simulation(batches=Batches(faults=Faults(server_error=0.3))))
    rows = [chat(n) for n in range(40)]
    with prepared(tmp_path, [*rows, {"custom_id": "bad", "body": {"model": "m", "messages": []}}], service) as made:
        await made.run()
        check_all_answered(made, rows)
        assert [(e["custom_id"], e["error"]["code"], e["error"]["status_code"]) for e in made.errors()] == [
            ("bad", "empty_array", 400)
        ]
    service = Service(Simulation(batches=Batches(faults=Faults(server_error=1.0))))
    with prepared(tmp_path, rows, service, overwrite=True, attempts=2) as made:
        await made.run()
        assert {(e["error"]["code"], e["error"]["attempts"]) for e in made.errors()} == {("server_error", 2)}
        assert {e["custom_id"] for e in made.errors()} == {row["custom_id"] for row in rows}
    assert len(service.library.batches) == 2


async def test_a_batch_that_fails_its_check_costs_only_the_rows_it_names(virtual_time, tmp_path):
    service = Service(Simulation(models=("m",), batches=Batches(one_model=False)))
    service.library.rules = Batches(one_model=True)
    rows = [chat(n) for n in range(10)]
    rows[3]["body"]["model"] = "strange"
    with prepared(tmp_path, rows, service) as made:
        await made.run()
        assert made.run.counts.answered == 9
        assert [(e["custom_id"], e["line"], e["error"]["code"]) for e in made.errors()] == [
            ("row-3", 4, "model_not_found")
        ]


@pytest.mark.parametrize("lost", ["before", "after"])
async def test_a_killed_run_goes_on_from_any_call(virtual_time, tmp_path, lost):
    """Killed before or after every single call to the service, the same command does the rest: each row is worked on
    once."""
    rows = [chat(n, model="m" if n % 3 else "other") for n in range(12)]

    def service_of():
        return Service(Simulation(batches=Batches(validating=1, duration=1, finalizing=1)))

    service = service_of()
    with prepared(tmp_path, rows, service, overwrite=True) as made:
        await made.run()
    calls = len(service.calls)
    assert calls > 10
    for at in range(calls):
        service = service_of()
        getattr(service, lost)[at] = Crash()
        with pytest.raises(Crash), prepared(tmp_path, rows, service, overwrite=True) as made:
            await made.run()
        with prepared(tmp_path, rows, service) as made:
            await made.run()
            check_all_answered(made, rows)
        assert made.run.stopped is None
        assert set(service.library.executed.values()) == {1}, at
        assert service.submitted() == 12


async def test_a_run_that_is_killed_while_it_merges_writes_no_answer_twice(virtual_time, tmp_path, monkeypatch):
    service, rows = Service(), [chat(n) for n in range(40)]
    original, taken = BatchRun._take, []

    def take(self, *arguments):
        taken.append(1)
        if len(taken) == 17:
            raise Crash
        original(self, *arguments)

    monkeypatch.setattr(BatchRun, "_take", take)
    with pytest.raises(Crash), prepared(tmp_path, rows, service) as made:
        await made.run()
    assert len(made.results()) == 16
    with prepared(tmp_path, rows, service, order="input") as made:
        await made.run()
        check_all_answered(made, rows)
    assert [line["custom_id"] for line in made.results()] == [row["custom_id"] for row in rows]
    assert made.run.counts.skipped == 16
    assert len(service.library.batches) == 1


@pytest.mark.parametrize(
    "trouble", [Lost("broken"), NotSent("refused"), Reply(503, {}, b"{}"), Reply(429, {"retry-after": "9"}, b"{}")]
)
async def test_trouble_at_any_call_is_waited_out(virtual_time, tmp_path, trouble):
    """A lost answer, no connection, an overloaded service, a 429: nothing is lost and nothing is submitted twice."""
    rows = [chat(n) for n in range(5)]
    for at in range(7):
        service = Service()
        service.before[at] = trouble
        with prepared(tmp_path, rows, service, overwrite=True) as made:
            await made.run()
            check_all_answered(made, rows)
        assert made.run.stopped is None
        assert set(service.library.executed.values()) == {1}


async def test_a_batch_whose_creation_was_not_confirmed_is_found_and_not_made_twice(virtual_time, tmp_path):
    service, rows = Service(), [chat(n) for n in range(5)]
    list(service.library.advance(clock.wall()))
    for _ in range(150):  # others' batches, more than a page of them
        file = service.library.store(b"{}", "x", "batch", clock.wall())
        service.library.create(file, "/v1/embeddings", "24h", {})
    service.after[1] = Lost("no answer within 600 s")
    with prepared(tmp_path, rows, service) as made:
        await made.run()
        check_all_answered(made, rows)
    assert len(service.library.batches) == 151
    assert service.calls[1:3] == [("POST", "/v1/batches"), ("GET", "/v1/batches")]


class Cut(Service):
    """A service whose files of answers end too early, and politely, the first times that they are read."""

    times = 1

    async def download(self, path, into):
        reply = await super().download(path, into)
        if self.times > 0:
            self.times -= 1
            into.truncate(into.tell() // 2)
        return reply


async def test_a_file_of_answers_that_is_cut_without_a_word_is_read_again_and_nothing_is_paid_for_twice(
    virtual_time, tmp_path
):
    """The batch says how many rows it has done."""
    service = Cut()
    with prepared(tmp_path, [chat(number) for number in range(50)], service) as made:
        await made.run()
    assert len({result["custom_id"] for result in made.results()}) == len(made.results()) == 50
    assert (made.errors(), service.submitted(), made.run.counts.ambiguous) == ([], 50, 0)
    assert "says that 50 rows are done, and its files have 2" in "".join(made.said)


@pytest.mark.parametrize("on_ambiguous", ["rerun", "fail"])
async def test_answers_that_never_come_may_have_been_paid_for_and_are_reported(virtual_time, tmp_path, on_ambiguous):
    service = Cut()
    service.times = 4
    with prepared(tmp_path, [chat(number) for number in range(50)], service, on_ambiguous=on_ambiguous) as made:
        await made.run()
    lost = service.submitted() - 50 if on_ambiguous == "rerun" else len(made.errors())
    assert 20 < lost < 30
    assert made.run.counts.ambiguous == lost
    assert len(made.results()) == (50 if on_ambiguous == "rerun" else 50 - lost)
    assert {error["error"]["code"] for error in made.errors()} <= {"ambiguous"}


async def test_a_server_without_batches_is_said_at_once(virtual_time, tmp_path):
    service = Service()
    service.before[0] = Reply(404, {}, b'{"error": {"message": "Invalid URL"}}')
    with prepared(tmp_path, [chat(1)], service) as made:
        await made.run()
    assert made.run.stopped.code == "unreachable"
    assert made.run.stopped.message == (
        "the server has no /v1/files (status 404): it does not offer the Batch API; "
        "without --via batch the rows are sent one by one"
    )


async def test_a_server_that_never_answers_is_given_up_after_five_minutes(virtual_time, tmp_path):
    service = Service()
    service.before = dict.fromkeys(range(1000), NotSent("cannot connect to test:80: refused"))
    with prepared(tmp_path, [chat(1)], service) as made:
        await made.run()
    assert made.run.stopped.code == "unreachable"
    assert 300 <= clock.now() < 400
    assert made.said == ["cannot connect to test:80: refused"]


async def test_a_certificate_that_is_not_trusted_ends_it_at_once(virtual_time, tmp_path):
    service = Service()
    service.before = dict.fromkeys(range(1000), NotSent("it is not trusted", is_lasting=True))
    with prepared(tmp_path, [chat(1)], service) as made:
        await made.run()
    assert (made.run.stopped.code, made.run.stopped.message) == ("unreachable", "it is not trusted")
    assert clock.now() < 1


async def test_no_money_and_no_key_end_the_run_and_the_next_one_goes_on(virtual_time, tmp_path):
    for at, status, code in ((0, 401, "invalid_api_key"), (1, 429, "insufficient_quota")):
        service = Service()
        service.before[at] = Reply(status, {}, json.dumps({"error": {"message": "no", "code": code}}).encode())
        with prepared(tmp_path, [chat(1)], service, overwrite=True) as made:
            await made.run()
        assert made.run.stopped.code == "account"
        with prepared(tmp_path, None, service) as made:
            await made.run()
        assert (made.run.stopped, made.run.counts.answered) == (None, 1)


async def test_an_interrupted_run_leaves_its_batches_and_says_so(virtual_time, tmp_path):
    service, rows = Service(Simulation(batches=Batches(duration=3600))), [chat(n) for n in range(5)]
    with prepared(tmp_path, rows, service) as made:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(soon, 100, lambda: made.run.stop("interrupted", "interrupted"))
            await made.run()
        made.run.stop("output", "the first reason counts")
        assert made.run.stopped.code == "interrupted"
        summary = batch_summary(made.run.counts, made.run.ended, made.run.parts, stopped=Stopped("interrupted", ""))
    assert clock.now() < 101
    assert summary["under_way"][0]["status"] == "in_progress"
    assert summary["untouched"] == 5
    assert batch_sentences(summary)[-1] == "1 batch with 5 rows goes on at the service; the same command merges them"
    with prepared(tmp_path, rows, service, deadline=1000) as made:
        await made.run()
    assert (made.run.stopped.code, made.said[0]) == (
        "deadline",
        "5 rows are in 1 batch of an earlier run, which goes on",
    )
    with prepared(tmp_path, rows, service) as made:
        await made.run()
        check_all_answered(made, rows)
    assert len(service.library.batches) == 1


async def test_a_run_that_ends_before_it_hears_of_its_batch_says_that_there_may_be_one(virtual_time, tmp_path):
    """The service has created the batch, and its answer is on the way when the run is interrupted."""

    class Slow(Service):
        async def request(self, method, path, *body):
            reply = await super().request(method, path, *body)
            if (method, path) == ("POST", "/v1/batches"):
                await anyio.sleep(60)
            return reply

    service, rows = Slow(), [chat(n) for n in range(5)]
    with prepared(tmp_path, rows, service) as made:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(soon, 30, lambda: made.run.stop("interrupted", "interrupted"))
            await made.run()
        summary = batch_summary(made.run.counts, made.run.ended, made.run.parts, stopped=made.run.stopped)
    assert len(service.library.batches) == 1
    assert summary["under_way"] == [{"id": None, "model": "m", "rows": 5, "status": "unknown"}]
    said = "1 batch with 5 rows may have been created unheard; the same command looks for it"
    assert batch_sentences(summary)[-1] == said
    with closing(BatchJournal(batches_of(tmp_path / "out.jsonl"), overwrite=True)) as journal:
        assert [len(part) for part in journal.forgotten] == [5]


async def test_a_cancelled_batch_ends_the_run_with_what_is_done(virtual_time, tmp_path):
    """Somebody cancelled it on purpose, so its rows are not submitted again without being asked to."""
    service = Service(Simulation(batches=Batches(validating=0, duration=0, per_row=10)))
    rows = [chat(n) for n in range(20)]
    with prepared(tmp_path, rows, service) as made:
        async with anyio.create_task_group() as tasks:

            def cancel():
                service.library.cancel(next(iter(service.library.batches.values())))

            tasks.start_soon(soon, 75, cancel)
            await made.run()
    assert made.run.stopped.code == "interrupted"
    assert "was cancelled at the service: 13 of its rows are not done" in made.run.stopped.message
    assert len(made.results()) == 7
    with prepared(tmp_path, rows, service) as made:
        await made.run()
        check_all_answered(made, rows)


async def test_batches_may_be_cancelled_and_what_they_did_is_kept(virtual_time, tmp_path):
    """Nothing is submitted any more, until the command is given without it."""
    service = Service(Simulation(batches=Batches(validating=0, duration=0, per_row=10)))
    rows = [chat(n, model=f"m{n % 3}") for n in range(30)]
    with prepared(tmp_path, rows, service, deadline=65.0) as made:
        await made.run()
    with prepared(tmp_path, [*rows, chat(99)], service, cancel=True) as made:
        await made.run()
        answered = len(made.results())
        assert made.run.stopped.code == "cancelled"
        assert f"3 batches are cancelled: {answered} of their rows were answered" in made.run.stopped.message
        assert made.run.parts == []
    assert 15 <= answered < 30
    assert len(service.library.batches) == 3
    with prepared(tmp_path, rows, service, cancel=True) as made:
        await made.run()
        assert "0 batches are cancelled" in made.run.stopped.message
    with prepared(tmp_path, rows, service) as made:
        await made.run()
        check_all_answered(made, rows)


async def test_rows_edited_while_their_batch_is_under_way_are_refused_or_what_is_asked_for(virtual_time, tmp_path):
    rows = [chat(n) for n in range(5)]
    edited = [*rows[:2], chat(2, size=50), *rows[3:]]

    async def interrupted():
        service = Service(Simulation(batches=Batches(duration=3600)))
        with prepared(tmp_path, rows, service, overwrite=True, deadline=100) as made:
            await made.run()
        return service

    service = await interrupted()
    with prepared(tmp_path, edited, service) as made:
        await made.run()
    assert made.run.stopped.code == "changed"
    assert made.run.stopped.message.startswith(
        "line 3 asks something else than the row of its custom_id in batch batch_"
    )
    with prepared(tmp_path, edited, service, changed="rerun") as made:
        await made.run()
        check_all_answered(made, edited)
    service = await interrupted()
    with prepared(tmp_path, edited, service, changed="keep") as made:
        await made.run()
        check_all_answered(made, rows)
    assert len(service.library.batches) == 1


async def test_costs_are_half_the_price_and_bounded(virtual_time, tmp_path):
    prices = tmp_path / "prices.json"
    prices.write_text('{"per": 1, "models": {"m": {"input": 1, "output": 1}}}')
    rows = [{**chat(n), "body": {**chat(n)["body"], "max_tokens": 16}} for n in range(4)]
    priced = Prices.of(prices)
    with prepared(tmp_path, rows, Service(), prices=priced) as made:
        await made.run()
    tokens = sum(line["response"]["body"]["usage"]["total_tokens"] for line in made.results())
    assert made.run.counts.dollars == pytest.approx(tokens / 2)
    (said,) = (line for line in batch_sentences(batch_summary(made.run.counts, [], [], priced=True)) if "$" in line)
    assert said == f"${tokens / 2:,.4f} for the answers, at the Batch API's prices"
    with prepared(tmp_path, rows, Service(), prices=priced, max_cost=50, overwrite=True) as made:
        await made.run()
    assert made.run.stopped.code == "cost"
    with prepared(tmp_path, [chat(1, model="unknown")], Service(), prices=priced, max_cost=50, overwrite=True) as made:
        await made.run()
        assert made.errors()[0]["error"]["code"] == "unknown_price"


async def test_answers_that_are_none_and_lines_that_are_none_cost_no_other_row(virtual_time, tmp_path, monkeypatch):
    """A 200 with an error inside, without choices, with NaN, a torn line, a row of nobody, and a row that is
    missing."""
    service, rows = Service(), [chat(n) for n in range(6)]

    def reply(number, body):
        return json.dumps({"custom_id": f"row-{number}", "response": {"status_code": 200, "body": body}, "error": None})

    good = {"choices": [{"message": {"content": "yes"}}]}
    lines = [
        reply(0, good), reply(1, {"error": {"message": "content", "code": 400}}), reply(2, {"choices": []}),
        reply(3, {"choices": [{"x": float("nan")}]}), "{torn", "[]", reply(77, good), reply(4, good), reply(4, good),
    ]  # fmt: skip
    finish = service.library._finish

    def spoiled(batch):
        yield from finish(batch)
        batch.output.content = "\n".join(lines).encode()

    monkeypatch.setattr(service.library, "_finish", spoiled)
    with prepared(tmp_path, rows, service, attempts=1) as made:
        await made.run()
    assert [line["custom_id"] for line in made.results()] == ["row-0", "row-4"]
    errors = {e["custom_id"]: e["error"]["code"] for e in made.errors()}
    assert errors == {"row-1": "400", "row-2": "empty_answer", "row-3": "invalid_response", "row-5": "no_result"}
    assert "NaN" in str(next(e for e in made.errors() if e["custom_id"] == "row-3"))


async def test_duplicates_bad_lines_and_rows_that_are_left_out_are_as_in_any_run(virtual_time, tmp_path):
    service = Service()
    with prepared(tmp_path, [chat(1), chat(2), chat(1), b"{torn\n", chat(3)], service, rows=4) as made:
        await made.run()
    counts = made.run.counts
    assert (counts.rows, counts.answered, counts.failed) == (4, 2, 2)
    assert {e["error"]["code"] for e in made.errors()} == {"duplicate_custom_id", "invalid_json"}
    assert batch_sentences(batch_summary(counts, made.run.ended, []))[0] == "4 rows: 2 answered, 2 failed"


def test_a_journal_of_batches_with_a_torn_end_is_read_and_others_are_refused(tmp_path):
    path = tmp_path / "out.jsonl.batches"
    journal = BatchJournal(path)
    journal.close()
    with path.open("ab") as file:
        file.write(b'{"creating":')
    journal = BatchJournal(path)
    journal.close()
    assert journal.parts == {}
    path.write_bytes(b"something else\n")
    with pytest.raises(Exception, match="exists and is not a journal of batches"):
        BatchJournal(path)
