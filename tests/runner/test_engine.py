"""A run, in virtual time, against the simulated service in the same process: what is sent when, and how rows end."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os

import anyio
import pytest

from penstock import Limiter, clock, in_flight, simulator, unlimited
from penstock.limits import parse
from penstock.runner import engine
from penstock.runner.client import Lost, NotSent, Reply, url_of
from penstock.simulator import Faults, Latency, Simulation
from tests.runner.service import ANSWER, LIMITS, Service, chat, prepared

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("virtual_time")]


def belongs(result):
    """The simulator begins each answer with the fingerprint of its question."""
    number = int(result["custom_id"].removeprefix("row-"))
    text = result["response"]["body"]["choices"][0]["message"]["content"]
    return any(
        text.startswith(simulator.fingerprint(chat(number, size)["body"]["messages"][0]["content"])) for size in SIZES
    )


SIZES = (20, 100, 1_200)


async def test_a_file_is_run_at_full_quota(tmp_path):
    """Every row once and with its own answer, no 429, and nearly as fast as the two limits allow together."""
    rows = [chat(number, SIZES[2] if number // 50 % 2 else SIZES[0]) for number in range(400)]
    service = Service(Simulation(**LIMITS, latency=Latency(median=1.0, sigma=0.5)))
    with prepared(tmp_path, rows, service) as this:
        await this.run()
        assert sorted(result["custom_id"] for result in this.results()) == sorted(row["custom_id"] for row in rows)
        assert all(map(belongs, this.results()))
        assert this.errors() == []
        summary = this.summary()
    assert (summary["answered"], summary["status_429"], summary["retries"]) == (400, 0, 0)
    assert 0.985 <= summary["efficiency"] <= 1
    statistics = service.account.statistics()
    assert statistics.refused == {}
    assert statistics.peak_in_flight > 20


async def test_a_file_that_takes_long_to_read_keeps_no_row_waiting(tmp_path):
    """Nothing was sent before 500 rows were there, or 64 MiB of them."""
    service = Service(answer=lambda _: (200, {}, ANSWER))
    with prepared(tmp_path, [chat(number) for number in range(100)], service, limits={"requests": "10000/s"}) as this:
        lines = this.run._lines

        async def read(whole=lines.read):
            await anyio.sleep(0.01)
            return await whole()

        lines.read = read
        await this.run()
        assert len(this.results()) == 100
    assert service.asked[0][0] < 0.1


async def test_requests_that_bunch_on_their_way_are_not_refused(tmp_path):
    """The first have to connect, so the server's buckets begin to refill later than ours."""

    class Connecting(Service):
        begun = 0

        async def handle_async_request(self, request):
            self.begun += 1
            await anyio.sleep(0.09 if self.begun <= 20 else 0.0)
            return await super().handle_async_request(request)

    service = Connecting(Simulation(**LIMITS))
    with prepared(tmp_path, [chat(number) for number in range(150)], service) as this:
        await this.run()
        assert (len(this.results()), this.counts.status_429) == (150, 0)
        assert this.summary()["efficiency"] > 0.95


async def test_a_row_as_large_as_the_burst_is_sent_and_not_refused(tmp_path):
    """It goes when the bucket is full, and has been for a moment."""
    rows = [chat(number) for number in range(5)] + [chat(5, (6_000 - 4) * 4)] + [chat(number) for number in range(6, 9)]
    service = Service(Simulation(**LIMITS))
    with prepared(tmp_path, rows, service) as this:
        await this.run()
        assert (len(this.results()), this.counts.status_429) == (9, 0)


@pytest.mark.parametrize(
    ("limits", "in_flight", "most"), [({"requests": "100000/s", "tokens": "100M/s"}, 1, 1), (LIMITS, 1_000, 25)]
)
async def test_what_worked_on_a_row_goes_on_with_the_next(tmp_path, limits, in_flight, most):
    """A task for each row would cost as much as a tenth of its request. Where limits bind, there is one for each that is
    under way, and one or two that wait."""
    tasks = []

    class Noting(Service):
        async def send(self, path, body, left):
            tasks.append(asyncio.current_task())
            return await super().send(path, body, left)

    rows = [chat(number) for number in range(100)]
    service = Noting(Simulation(**limits))
    with prepared(tmp_path, rows, service, limits=limits, max_in_flight=in_flight) as this:
        await this.run()
        assert len(this.results()) == 100
    assert len(set(tasks)) <= most


async def test_bad_lines_are_named_and_the_run_goes_on(tmp_path):
    rows = [chat(0), b"{\n", chat(0), b'{"custom_id": "x"}\n', b"\n", chat(1, 24_001), b"\xff\n", chat(2)]
    with prepared(tmp_path, rows, Service(Simulation(**LIMITS))) as this:
        await this.run()
        assert sorted(result["custom_id"] for result in this.results()) == ["row-0", "row-2"]
        errors = [(error["line"], error["custom_id"], error["error"]["code"]) for error in this.errors()]
        assert errors == [
            (2, None, "invalid_json"),
            (3, "row-0", "duplicate_custom_id"),
            (4, "x", "missing_body"),
            (6, "row-1", "request_too_large"),
            (7, None, "invalid_utf8"),
        ]
        assert this.errors()[3]["error"]["message"] == (
            "6,005 tokens can never be granted: the limit 90000/min burst 6000 holds at most 6,000 at once. "
            "Split the request, or raise the limit"
        )
        assert (this.counts.rows, this.counts.answered, this.counts.failed) == (7, 2, 5)


async def test_failures_of_the_service_are_tried_again(tmp_path):
    """Every attempt is charged, and counted."""
    simulation = Simulation(**LIMITS, faults=Faults(server_error=0.1, overloaded=0.1, slow_down=0.05), seed=3)
    service = Service(simulation)
    with prepared(tmp_path, [chat(number) for number in range(100)], service) as this:
        await this.run()
        assert len(this.results()) == 100
    assert this.counts.retries == this.counts.sent - 100 == len(service.asked) - 100
    assert this.counts.retries > 10
    assert this.counts.spent["", "requests"] == this.counts.sent


async def test_lost_connections_are_tried_again(tmp_path):
    script = [NotSent("refused"), Lost("reset"), Lost("hung up"), Lost("no answer within 600 s")]
    service = Service(Simulation(**LIMITS), script)
    with prepared(tmp_path, [chat(0)], service) as this:
        await this.run()
        assert [result["custom_id"] for result in this.results()] == ["row-0"]
    assert (this.counts.sent, this.counts.retries, this.counts.lost) == (4, 3, 3)


async def test_attempts_are_bounded(tmp_path):
    service = Service(Simulation(**LIMITS), [Lost("the server was silent")] * 3)
    with prepared(tmp_path, [chat(0)], service, attempts=3) as this:
        await this.run()
        assert this.errors() == [
            {
                "line": 1,
                "custom_id": "row-0",
                "error": {"code": "connection_error", "message": "the server was silent", "attempts": 3},
            }
        ]
    assert this.counts.failed == 1


async def test_a_row_that_the_service_refuses_for_good_is_sent_once(tmp_path):
    """What the service said is kept with the error."""
    body = b'{"error": {"message": "too long", "type": "invalid_request_error", "code": "context_length_exceeded"}}'
    service = Service(Simulation(**LIMITS), [(400, {"x-request-id": "req_9"}, body)])
    with prepared(tmp_path, [chat(0), chat(1)], service) as this:
        await this.run()
        (error,) = this.errors()
        assert len(this.results()) == 1
    assert error["error"] == {
        "code": "context_length_exceeded",
        "message": "too long",
        "attempts": 1,
        "status_code": 400,
        "request_id": "req_9",
        "body": json.loads(body),
    }


async def test_a_page_of_html_is_tried_again_and_kept_at_last(tmp_path):
    page = b"<html>502 Bad Gateway</html>"
    service = Service(Simulation(**LIMITS), [(502, {"content-type": "text/html"}, page)] * 2)
    with prepared(tmp_path, [chat(0)], service, attempts=2) as this:
        await this.run()
        (error,) = this.errors()
    assert (error["error"]["code"], error["error"]["status_code"], error["error"]["body"]) == (
        "http_502",
        502,
        page.decode(),
    )


@pytest.mark.parametrize(
    "content",
    [b"{", b"no JSON", b'{"a": NaN}', b"\xff", b"[" * 100_000],
    ids=["torn", "text", "NaN", "no UTF-8", "nested"],
)
async def test_an_answer_that_is_no_json_is_an_error_and_is_kept(tmp_path, content):
    """It was paid for, and sending again would cost the same."""
    service = Service(Simulation(**LIMITS), [(200, {}, content)])
    with prepared(tmp_path, [chat(0)], service) as this:
        await this.run()
        (error,) = this.errors()
        assert this.results() == []
    assert error["error"]["code"] == "invalid_response"
    assert error["error"]["message"] == "the answer with status 200 is not JSON"
    assert error["error"]["body"] == content.decode("utf-8", "backslashreplace")
    assert this.counts.retries == 0


async def test_a_mistake_of_ours_costs_one_row(tmp_path):
    """Whatever goes wrong with a row, the others are done."""
    service = Service(Simulation(**LIMITS), [RuntimeError("unheard of")])
    with prepared(tmp_path, [chat(0), chat(1)], service) as this:
        await this.run()
        (error,) = this.errors()
        assert len(this.results()) == 1
    assert error["error"] == {"code": "internal_error", "message": "RuntimeError: unheard of", "attempts": 0}


async def test_a_row_above_the_limits_that_were_learned_is_an_error(tmp_path):
    """It was read before the first answer told them."""
    service = Service(Simulation(requests="600/min", tokens="4000/min"))
    with prepared(tmp_path, [chat(0), chat(1, 20_000), chat(2)], service) as this:
        this.run.places[0].limits_of = lambda model: (model, None)
        await this.run()
        (error,) = this.errors()
        assert len(this.results()) == 2
    assert (error["custom_id"], error["error"]["code"]) == ("row-1", "request_too_large")


async def test_limits_that_were_learned_are_those_that_were_told_whatever_the_service_charges(tmp_path):
    """It charges twice what we estimate. The summary speaks of its limits, and a large row that waited is sent."""
    told = {"requests": "5000/min", "tokens": "6k/min"}
    charge = lambda path, body: 2 * len(body["messages"][0]["content"]) // 4  # noqa: E731
    service = Service(Simulation(**told, charge=charge, latency=Latency(0.1)))
    rows = [chat(number, size=400) for number in range(60)]
    rows.insert(30, chat(60, size=4 * 2_990))
    with prepared(tmp_path, rows, service, limits=told) as this:
        this.run.places[0].limits_of = lambda model: (model, None)
        await this.run()
        (group,) = this.run.groups.values()
        assert {unit: str(rate) for unit, (rate,) in group.limits.items()} == {
            "requests": "5000/min",
            "tokens": "6000/min",
        }
        assert group.endpoint.statistics().factors["tokens"] > 1.5
        assert (len(this.results()), this.errors()) == (61, [])


async def test_a_file_that_cannot_be_read_any_further_ends_the_run(tmp_path, monkeypatch):
    """What was read until then is answered, and the next run goes on."""
    service = Service(Simulation(**LIMITS))
    with prepared(tmp_path, [chat(number) for number in range(3)], service) as this:

        def gone():
            yield 1, json.dumps(chat(0)).encode()
            raise OSError(5, "Input/output error")

        this.run._lines._iterator = gone()
        this.run._lines.name = "in.jsonl"
        await this.run()
        assert (this.run.stopped.code, this.run.stopped.message) == (
            "input",
            "cannot read in.jsonl: Input/output error",
        )


async def test_one_429_stops_everybody_for_as_long_as_the_service_asks(tmp_path):
    """A request that is sent meanwhile would only be refused, and be charged."""
    error = {"message": "Rate limit reached. Please try again in 5s.", "type": "tokens", "code": "rate_limit_exceeded"}
    body = json.dumps({"error": error}).encode()
    rows = [chat(number, 1_200) for number in range(60)]
    service = Service(Simulation(**LIMITS), [(429, {"retry-after": "5"}, body)])
    with prepared(tmp_path, rows, service) as this:
        await this.run()
        assert len(this.results()) == 60
    times = [moment for moment, _ in service.asked]
    refused_at = times[0]
    assert this.counts.status_429 == 1
    assert not [moment for moment in times if refused_at + 0.001 < moment < refused_at + 5]
    assert service.asked.count(service.asked[0]) == 1
    assert [name for _, name in service.asked].count(service.asked[0][1]) == 2


async def test_being_told_to_wait_is_no_fault_of_the_row(tmp_path):
    """As long as others get through, it is a matter of time: limits given a hundred times too high lose nothing."""
    service = Service(Simulation(requests="60/min"))
    limits = {"requests": "6000/min"}
    with prepared(tmp_path, [chat(number) for number in range(70)], service, attempts=4) as this:
        this.run.places[0].limits_of = lambda _: ("", Simulation(**limits).limits | {"tokens": (parse("1M/min"),)})
        await this.run()
        assert (len(this.results()), this.errors()) == (70, [])
    assert this.counts.status_429 >= 10


async def test_a_service_that_only_says_wait_is_given_up_when_its_time_is_over(tmp_path):
    body = b'{"error": {"message": "Rate limit reached. Please try again in 1s.", "code": "rate_limit_exceeded"}}'
    service = Service(answer=lambda _: (429, {}, body))
    with prepared(tmp_path, [chat(0), chat(1)], service, attempts=3, give_up_after=600) as this:
        await this.run()
        assert [error["error"]["code"] for error in this.errors()] == ["rate_limit_exceeded"] * 2
    assert 600 <= clock.now() < 630
    assert len(service.asked) < 600  # told to wait again and again, a row asks ever more rarely


@pytest.mark.parametrize("code", ["insufficient_quota", "billing_hard_limit_reached"])
async def test_an_account_without_quota_ends_the_run_at_once(tmp_path, code):
    """Unretried; what was on its way comes back; the rest is untouched, and the next run does it."""
    body = json.dumps({"error": {"message": "You exceeded your current quota", "code": code}}).encode()
    rows = [chat(number, 1_200) for number in range(100)]
    service = Service(Simulation(**LIMITS, latency=Latency(median=2.0)))
    with prepared(tmp_path, rows, service) as this:

        async def run_dry():
            await anyio.sleep(5)
            service.script = [(429, {}, body)]

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run_dry)
            await this.run()
        assert this.run.stopped.code == "account"
        assert this.run.stopped.message == f"You exceeded your current quota (status 429, {code})"
        assert (len(this.results()), this.errors()) == (len(service.asked) - 1, [])
        assert 0 < len(this.results()) < 60
        assert not [moment for moment, _ in service.asked if moment > 6]
    before = len(service.asked) - 1
    with prepared(tmp_path, rows, service, idle=0.0) as this:
        await this.run()
        assert len({result["custom_id"] for result in this.results()}) == len(this.results()) == 100
        assert this.summary()["efficiency"] > 0.95  # of what the account, used up as it was, allowed
    assert (this.counts.skipped, this.counts.status_429) == (before, 0)
    assert len(service.asked) == 101  # nothing was sent twice but the row that was refused


@pytest.mark.parametrize("status", [401, 403, 503], ids=["ends the run", "ends the row", "tried again"])
async def test_a_key_that_a_server_repeats_is_not_kept(tmp_path, status):
    """Files and logs are passed on."""
    body = b'{"error": {"message": "Incorrect API key provided: sk-0123456789", "param": "sk-0123456789"}}'
    service = Service(Simulation(**LIMITS), [(status, {}, body)] * 2)
    with prepared(tmp_path, [chat(0)], service, secrets=(b"sk-0123456789",), attempts=2) as this:
        await this.run()
        said = str(this.run.stopped) + json.dumps(this.errors())
    assert "sk-0123456789" not in said
    assert "Incorrect API key provided: [the key]" in said


async def test_a_refusal_without_words_says_what_it_means(tmp_path):
    service = Service(Simulation(**LIMITS), [(401, {}, b"")])
    with prepared(tmp_path, [chat(0)], service) as this:
        await this.run()
        assert this.run.stopped.message == "the server takes no request with this key (status 401)"


async def test_a_wrong_key_ends_the_run_at_once(tmp_path):
    service = Service(Simulation(**LIMITS, api_keys=("another",)))
    with prepared(tmp_path, [chat(number) for number in range(50)], service, max_in_flight=1) as this:
        await this.run()
        assert this.run.stopped.code == "account"
        assert len(service.asked) == 1


async def test_stopping_lets_come_back_what_was_sent(tmp_path):
    """Every request that left has its result on disk; of the others none was sent, and none is an error."""
    service = Service(Simulation(**LIMITS, latency=Latency(median=3.0)))
    with prepared(tmp_path, [chat(number, 1_200) for number in range(300)], service) as this:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(this.run)
            await anyio.sleep(4)
            this.run.stop("interrupted", "interrupted")
            sent = len(service.asked)
        assert 6 < clock.now() <= 7
        assert len(service.asked) == sent
        assert len(this.results()) == sent > 30
        assert this.errors() == []
        assert this.summary()["untouched"] > 0


async def test_a_row_whose_turn_comes_at_the_instant_of_the_stop_is_not_sent_and_dropped(tmp_path):
    """An event loop cancels no task that it is about to run on: the cancellation would come while the request is on its
    way, and its answer would be paid for and lost."""

    class Slow(Service):
        async def send(self, path, body, left):
            left()
            self.asked.append(clock.now())
            await anyio.sleep(1)
            return Reply(200, {}, ANSWER)

    service = Slow()
    with prepared(tmp_path, [chat(number) for number in range(4)], service) as this:
        this.run.places[0].limits_of = lambda _: ("", Limiter(requests=in_flight(1), tokens=unlimited))
        # The first has given its place to the second, whose task has not run since.
        this.run._settings = dataclasses.replace(this.run._settings, on_event=lambda _: this.run.stop("test", "stop"))
        await this.run()
        assert len(this.results()) == len(service.asked) == 1
        assert (clock.now(), this.errors()) == (1, [])


async def test_abandoning_waits_for_nothing(tmp_path):
    """The second Ctrl-C: what had come back is on disk, what had not is neither result nor error."""
    service = Service(Simulation(**LIMITS, latency=Latency(median=3.0)))
    with prepared(tmp_path, [chat(number, 1_200) for number in range(300)], service) as this:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(this.run)
            await anyio.sleep(4)
            this.run.stop("interrupted", "interrupted")
            before = len(this.results())
            this.run.abandon()
        assert clock.now() == 4
        assert len(this.results()) == before > 0
        assert this.errors() == []


async def test_a_row_between_two_attempts_is_left_when_stopped(tmp_path):
    service = Service(Simulation(**LIMITS), [(503, {"retry-after": "60"}, b"")])
    with prepared(tmp_path, [chat(0)], service) as this:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(this.run)
            await anyio.sleep(4)
            this.run.stop("interrupted", "interrupted")
        assert clock.now() == 4
        assert (this.results(), this.errors()) == ([], [])


async def test_memory_is_bounded_by_the_window_and_not_by_the_file(tmp_path):
    """While the service does not answer, no more than a few hundred rows are read."""
    service = Service(Simulation(**LIMITS, latency=Latency(median=30.0)))
    with prepared(tmp_path, [chat(number) for number in range(3_000)], service, max_in_flight=10) as this:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(this.run)
            await anyio.sleep(20)
            assert this.counts.rows <= engine.WINDOW + 10
            this.run.stop("interrupted", "interrupted")


async def test_a_file_that_is_sorted_by_model_takes_as_long_as_its_slowest_model(tmp_path):
    """Only the rows of the first were in the window, and the limits of the second stayed unused until all had gone."""
    rows = [chat(number, 20, "slow" if number < 800 else "fast") for number in range(1_600)]
    limits = {"slow": {"requests": (parse("10/s"),)}, "fast": {"requests": (parse("11/s"),)}}
    with prepared(tmp_path, rows, Service(answer=lambda _: (200, {}, ANSWER))) as this:
        this.run.places[0].limits_of = lambda model: (model, limits[model])
        await this.run()
        assert len(this.results()) == 1_600
    assert clock.now() < 1.02 * (800 - 10) / 10


@pytest.mark.parametrize(("rows", "size"), [(500, 0), (0, 100_000)])
async def test_what_is_read_in_search_of_rows_that_can_go_is_bounded(tmp_path, monkeypatch, rows, size):
    """In rows, and in bytes."""
    monkeypatch.setattr(engine, "WINDOW", 50)
    monkeypatch.setattr(engine, "FAR", rows or 10_000)
    monkeypatch.setattr(engine, "FAR_BYTES", size or 1 << 24)
    service = Service(answer=lambda _: (200, {}, ANSWER))
    with prepared(tmp_path, [chat(number) for number in range(3_000)], service) as this:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(this.run)
            await anyio.sleep(20)
            ahead = this.counts.rows - this.counts.sent
            assert 400 < ahead < 700
            this.run.stop("interrupted", "interrupted")


async def test_memory_is_bounded_in_bytes_too(tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "WINDOW_BYTES", 200_000)
    monkeypatch.setattr(engine, "WORKING_BYTES", 100_000)
    service = Service(Simulation(latency=Latency(median=30.0)))
    limits = {"requests": "900/min", "tokens": "2M/min"}
    with prepared(
        tmp_path, [chat(number, 50_000) for number in range(50)], service, max_in_flight=2, limits=limits
    ) as this:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(this.run)
            await anyio.sleep(20)
            assert this.counts.rows == 4 + 2
            this.run.stop("interrupted", "interrupted")


async def test_no_more_rows_than_allowed_are_worked_on_at_once(tmp_path):
    """Then it is the answers that take their time, and the optimum says so."""
    service = Service(Simulation(**LIMITS, latency=Latency(median=1.0)))
    with prepared(tmp_path, [chat(number) for number in range(40)], service, max_in_flight=4) as this:
        await this.run()
        summary = this.summary()
    assert service.account.statistics().peak_in_flight == 4
    assert summary["optimum"] == pytest.approx(10, rel=0.01)
    assert summary["efficiency"] > 0.99


async def test_a_disk_that_is_full_ends_the_run(tmp_path, monkeypatch):
    service = Service(Simulation(**LIMITS, latency=Latency(median=1.0)))
    with prepared(tmp_path, [chat(number) for number in range(100)], service) as this:
        write = os.write

        def full(file, data):
            if len(this.results()) >= 5:
                raise OSError(28, "No space left on device")
            return write(file, data)

        monkeypatch.setattr(os, "write", full)
        await this.run()
        assert this.run.stopped.code == "output"
        assert this.run.stopped.message.endswith("No space left on device")
        assert len(this.results()) == 5


async def test_models_with_limits_of_their_own_do_not_wait_for_each_other(tmp_path):
    """Each has its line; the file is read once."""
    slow, fast = {"requests": (parse("6/min burst 1"),)}, {"requests": (parse("600/min"),)}
    rows = [chat(number) for number in range(100)]
    for number in range(0, 100, 10):
        rows[number]["body"]["model"] = "slow"
    service = Service(Simulation())
    with prepared(tmp_path, rows, service) as this:
        this.run.places[0].limits_of = lambda model: (model, slow if model == "slow" else fast)
        await this.run()
        assert len(this.results()) == 100
    assert sorted(moment for moment, _ in service.asked)[89] < 5
    assert clock.now() >= 90
    assert set(this.run.groups) == {"slow", "m"}


async def test_a_model_without_known_limits_is_an_error_of_its_row(tmp_path):
    def limits_of(model):
        raise ValueError(f"no limits are known for {model!r}")

    with prepared(tmp_path, [chat(0)], Service(Simulation())) as this:
        this.run.places[0].limits_of = limits_of
        await this.run()
        assert this.errors()[0]["error"] == {"code": "unknown_model", "message": "no limits are known for 'm'"}


@pytest.mark.parametrize(
    ("base", "path", "url"),
    [
        ("https://api.openai.com/v1", "/v1/chat/completions", "https://api.openai.com/v1/chat/completions"),
        ("https://api.openai.com/v1/", "/v1/embeddings", "https://api.openai.com/v1/embeddings"),
        ("http://localhost:8000", "/v1/responses", "http://localhost:8000/v1/responses"),
        ("http://localhost:8000/", "/v1/responses", "http://localhost:8000/v1/responses"),
        ("https://host/v1beta/openai", "/v1/chat/completions", "https://host/v1beta/openai/chat/completions"),
        ("https://host/v1", "/custom", "https://host/v1/custom"),
    ],
)
def test_a_path_is_put_behind_the_base_as_sdks_do(base, path, url):
    assert url_of(base, path) == url


async def test_rows_that_ask_for_a_stream_are_answered_like_any_other(tmp_path):
    """What the service tells word by word is one answer, and its usage is kept."""
    service = Service(Simulation(**LIMITS))
    rows = [chat(number) for number in range(4)]
    for row in rows[::2]:
        row["body"] |= {"stream": True, "stream_options": {"include_usage": True}}
    with prepared(tmp_path, rows, service) as this:
        await this.run()
        assert this.errors() == []
        answers = {result["custom_id"]: result["response"]["body"] for result in this.results()}
    assert all(map(belongs, this.results()))
    assert {answer["object"] for answer in answers.values()} == {"chat.completion"}
    assert all(answer["usage"]["completion_tokens"] > 0 for answer in answers.values())
    assert answers["row-0"].keys() <= answers["row-1"].keys()
