"""What goes wrong outside: servers that are down, refuse, stall or answer nonsense; and what it may cost."""

from __future__ import annotations

import json
import math
import os
from datetime import UTC, datetime

import anyio
import pytest

from penstock import clock
from penstock.limits import parse
from penstock.runner import output
from penstock.runner.client import Lost, NotSent, Reply
from penstock.runner.files import Appended, cannot_write
from penstock.runner.summary import sentences
from penstock.simulator import Latency, Simulation
from tests.runner.service import ANSWER, LIMITS, Service, chat, prepared

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("virtual_time")]


def refusal(message, code="rate_limit_exceeded"):
    return json.dumps({"error": {"message": message, "code": code}}).encode()


# Rows that no rule foresaw


@pytest.mark.parametrize(
    "message",
    [
        {"role": "user", "content": [{"type": [], "text": "x"}]},
        {"role": "user", "content": [{"type": {}, "text": "x"}]},
        {"type": [], "role": "user", "content": "x"},
        {"role": "user", "content": {"a": [1, {"type": [[]]}]}},
        {"role": [], "content": None, "tool_calls": [{"function": 7}]},
    ],
)
async def test_a_row_of_a_shape_that_nobody_foresaw_is_sent_and_the_service_judges_it(tmp_path, message):
    rows = [chat(0), {"custom_id": "odd", "body": {"model": "m", "messages": [message]}}, chat(1)]
    service = Service(answer=lambda body: (200, {}, ANSWER) if body["messages"] != [message] else (400, {}, b"{}"))
    service.send = _without_words(service)
    with prepared(tmp_path, rows, service) as this:
        await this.run()
        assert {result["custom_id"] for result in this.results()} == {"row-0", "row-1"}
        assert [error["custom_id"] for error in this.errors()] == ["odd"]


def _without_words(service):
    """These rows have no content to be told by."""

    async def send(path, body, left):
        from penstock.runner.client import Reply

        left()
        return Reply(*service.answer(json.loads(body)))

    return send


async def test_a_rule_of_cost_that_fails_costs_no_row(tmp_path):
    def rule(path, body):
        raise ZeroDivisionError

    with prepared(tmp_path, [chat(0), chat(1)], Service(Simulation(**LIMITS)), cost=rule) as this:
        await this.run()
        assert len(this.results()) == 2


# Answers that are none


@pytest.mark.parametrize(
    "content",
    [b"", b"null", b'{"choices":[]}', b'{"choices":null,"error":{"code":502,"message":"Provider returned error"}}'],
    ids=["empty", "null", "no choices", "an error"],
)
async def test_a_success_without_an_answer_is_tried_again(tmp_path, content):
    service = Service(Simulation(**LIMITS), [(200, {}, content)] * 3)
    with prepared(tmp_path, [chat(0)], service) as this:
        await this.run()
        assert (len(this.results()), this.errors()) == (1, [])
        assert this.results()[0]["response"]["body"]["choices"]
    assert this.counts.retries == 3


async def test_a_success_without_an_answer_is_an_error_in_the_end(tmp_path):
    service = Service(answer=lambda _: (200, {"x-request-id": "r"}, b'{"choices":[]}'))
    with prepared(tmp_path, [chat(0)], service, attempts=3) as this:
        await this.run()
        assert this.results() == []
        (error,) = this.errors()
    assert error["error"]["code"] == "empty_answer"
    assert error["error"]["body"] == {"choices": []}
    assert error["error"]["attempts"] == 3


async def test_what_was_paid_for_is_kept_whole(tmp_path):
    """However long it is: an answer with NaN in it is no JSON, and it cost money."""
    content = b'{"choices":[{"p":NaN,"t":"' + b"x" * 100_000 + b'"}]}'
    service = Service(answer=lambda _: (200, {}, content))
    with prepared(tmp_path, [chat(0)], service) as this:
        await this.run()
        (error,) = this.errors()
    assert error["error"]["body"] == content.decode()
    assert this.counts.sent == 1


@pytest.mark.parametrize(
    "headers",
    [
        {"date": "Mon, 99 Foo 2026 99:99:99 GMT"},
        {"date": "Fri, 31 Dec 9999 23:59:59 -2359", "x-ratelimit-limit-requests": "60"},
        {
            "x-ratelimit-limit-requests": "9" * 400,
            "x-ratelimit-remaining-requests": "1",
            "x-ratelimit-reset-requests": "1s",
        },
        {"x-ratelimit-limit-tokens": "1", "x-ratelimit-remaining-tokens": "1", "x-ratelimit-reset-tokens": "9" * 400},
        {
            "anthropic-ratelimit-tokens-limit": "1",
            "anthropic-ratelimit-tokens-remaining": "0",
            "anthropic-ratelimit-tokens-reset": "0000-99-99T00:00:00Z",
        },
    ],
)
async def test_no_header_costs_an_answer(tmp_path, headers):
    service = Service(answer=lambda _: (200, headers, ANSWER))
    with prepared(tmp_path, [chat(number) for number in range(3)], service) as this:
        await this.run()
        assert (len(this.results()), this.errors()) == (3, [])


# Being told to wait


@pytest.mark.parametrize(
    "headers",
    [{"retry-after": "86400"}, {"retry-after": "1800000000"}, {"retry-after-ms": "9" * 12}, {}],
    ids=["a day", "a Unix time", "for ever", "in words"],
)
async def test_one_row_that_is_told_to_wait_for_a_day_does_not_stop_the_others(tmp_path, headers):
    """A person is told once, and the row is asked again after an hour."""
    body = refusal("Please retry after 86400 seconds.")
    left = [2]

    def answer(asked):
        if asked["messages"][0]["content"].lstrip("0") == "7" and left[0]:
            left[0] -= 1
            return 429, headers, body
        return 200, {}, ANSWER

    service = Service(answer=answer)
    with prepared(tmp_path, [chat(number) for number in range(100)], service) as this:
        await this.run()
        assert (len(this.results()), this.errors()) == (100, [])
    times = sorted(moment for moment, _ in service.asked)
    assert times[-3] < 30
    assert 2 * 3_600 <= times[-1] < 2 * 3_600 + 60
    assert len(this.said) == 1
    assert "the server asks to wait" in this.said[0]
    assert "it is asked again after 1 h" in this.said[0]


async def test_a_service_that_refuses_everybody_for_a_day_is_asked_once_an_hour(tmp_path):
    service = Service(
        answer=lambda _: (200, {}, ANSWER) if clock.now() > 2.5 * 3_600 else (429, {"retry-after": "86400"}, b"")
    )
    with prepared(tmp_path, [chat(number) for number in range(300)], service, max_in_flight=20) as this:
        await this.run()
        assert (len(this.results()), this.errors()) == (300, [])
    assert this.counts.status_429 < 100
    assert clock.now() < 3.4 * 3_600


async def test_the_longest_pause_is_the_users_choice(tmp_path):
    script = [(429, {"retry-after": "600"}, b"")] * 2
    service = Service(Simulation(**LIMITS), script)
    with prepared(tmp_path, [chat(0), chat(1)], service, max_pause=10) as this:
        await this.run()
        assert len(this.results()) == 2
    assert 10 <= clock.now() < 25


async def test_a_trouble_that_asks_for_a_long_wait_is_not_waited_out(tmp_path):
    service = Service(Simulation(**LIMITS), [(503, {"retry-after": "86400"}, b"")])
    with prepared(tmp_path, [chat(0)], service) as this:
        await this.run()
        assert len(this.results()) == 1
    assert clock.now() <= 3_601


async def test_rows_that_are_told_to_wait_a_moment_are_not_lost_however_often(tmp_path):
    """A stranger uses the account: nine of ten requests are refused for a while, each with "try again in 50 ms"."""
    asked = [0]

    def answer(_):
        asked[0] += 1
        refused = clock.now() < 60 and asked[0] % 10
        return (429, {"retry-after-ms": "50"}, refusal("Please try again in 50ms")) if refused else (200, {}, ANSWER)

    with prepared(tmp_path, [chat(number) for number in range(500)], Service(answer=answer)) as this:
        await this.run()
        assert (len(this.results()), this.errors()) == (500, [])


@pytest.mark.parametrize("told", ["by the user", "by the server"])
async def test_two_runs_on_one_account_lose_nothing(tmp_path, told):
    """Each has the true limits, so that half of what they send must be refused: as a rule 1.1 × the ideal, and 1.2 by the
    luck of their waits."""
    simulation = Simulation(**LIMITS, latency=Latency(median=0.5))
    service = Service(simulation)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    rows = [chat(number) for number in range(300)]
    with prepared(tmp_path / "a", rows, service) as one, prepared(tmp_path / "b", rows, service) as two:
        if told == "by the server":
            for each in (one, two):
                each.run.places[0].limits_of = lambda model: (model, None)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(one.run)
            tasks.start_soon(two.run)
        assert len(one.results()) == len(two.results()) == 300
        assert one.errors() == two.errors() == []
    ideal = (600 - 20) / 15
    assert clock.now() < 1.25 * ideal


async def test_a_run_that_comes_second_to_an_account_does_not_doubt_its_limits_for_that(tmp_path):
    """The first has used up the burst, so nearly all of the second's is refused. It learned half of the rate then, and
    kept to that when the first had ended."""
    limits = {"requests": "600/min burst 100"}
    service = Service(Simulation(**limits, latency=Latency(median=0.5), headers="none"), way=0.02)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    rows = [chat(number) for number in range(120)]
    with (
        prepared(tmp_path / "a", rows, service, limits=limits) as one,
        prepared(tmp_path / "b", rows, service, limits=limits) as two,
    ):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(one.run)
            await anyio.sleep(0.5)
            tasks.start_soon(two.run)
        assert len(one.results()) == len(two.results()) == 120
        assert one.said == two.said == []
    assert two.counts.status_429 > 90


async def test_a_run_that_shares_an_account_takes_no_burst_after_a_pause(tmp_path):
    """Others went on in it, and took what came back: all of the burst would be refused, and counted as used."""
    refused = []

    def answer(_):
        if 2 < clock.now() < 4:
            refused.append(clock.now())
            return 429, {"retry-after": "1" if clock.now() < 3 else "8"}, b""
        return 200, {}, ANSWER

    service, limits = Service(answer=answer), {"requests": "600/min burst 100"}
    with prepared(tmp_path, [chat(number) for number in range(250)], service, limits=limits) as this:
        await this.run()
        assert (len(this.results()), this.errors()) == (250, [])
    resumed = min(moment for moment, _ in service.asked if moment > 4)
    assert resumed > refused[-1] + 8
    assert sum(resumed <= moment < resumed + 1 for moment, _ in service.asked) < 20


@pytest.mark.parametrize("steps", [(3_600, -7_200), (86_400, -172_800, 86_400)], ids=["hours", "days"])
@pytest.mark.parametrize("told", ["by the user", "by the server"])
async def test_a_clock_that_is_set_forth_and_back_changes_nothing(virtual_time, tmp_path, told, steps):
    """Nothing waits for a moment of the calendar: what is measured is how much time passed."""
    service = Service(Simulation(**LIMITS, latency=Latency(median=0.5)))
    with prepared(tmp_path, [chat(number) for number in range(300)], service) as this:
        if told == "by the server":
            this.run.places[0].limits_of = lambda model: (model, None)

        async def set_clock():
            for step in steps:
                await anyio.sleep(3)
                virtual_time.set_wall(datetime.fromtimestamp(clock.wall() + step, UTC))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(set_clock)
            await this.run()
        assert len(this.results()) == this.counts.sent == 300
    assert clock.now() < 1.1 * (300 - 20) / 15


@pytest.mark.parametrize(("step", "least", "most"), [(-86_400, 0, 0), (86_400, 86_000, 87_000)])
async def test_a_clock_that_was_set_between_two_runs_frees_no_limit_too_early(
    virtual_time, tmp_path, step, least, most
):
    """Files of the future were written just now, as far as anybody knows."""
    with prepared(tmp_path, [chat(0)], Service(Simulation(**LIMITS))) as this:
        await this.run()
    for name in ("out.jsonl", "out.jsonl.journal"):
        os.utime(tmp_path / name, (clock.wall(), clock.wall()))
    virtual_time.set_wall(datetime.fromtimestamp(clock.wall() + step, UTC))
    with prepared(tmp_path, [chat(0)], Service(Simulation(**LIMITS))) as this:
        assert least <= this.all_results.idle <= most


# A server that is down


class Down(Service):
    """Cannot be reached between two moments."""

    def __init__(self, begin, end, **options):
        super().__init__(Simulation(**LIMITS, latency=Latency(median=0.5)), **options)
        self.begin, self.end, self.tries = begin, end, []

    async def connect(self):
        if self.begin <= clock.now() < self.end:
            self.tries.append(clock.now())
            raise NotSent("cannot connect to test:80: Connection refused")


class Distrusted(Down):
    """A server whose certificate nobody vouches for meanwhile."""

    async def send(self, path, body, left):
        try:
            return await super().send(path, body, left)
        except NotSent:
            raise NotSent("it is not trusted", is_lasting=True) from None


async def test_a_server_that_is_down_for_a_minute_costs_no_row_and_no_quota(tmp_path):
    service = Down(5, 65)
    with prepared(tmp_path, [chat(number) for number in range(400)], service) as this:
        seen = []

        async def look():
            await anyio.sleep(30)
            seen.append((this.run.outage.since is not None, this.run.outage.reason, this.counts.spent["", "requests"]))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(look)
            await this.run()
        assert (len(this.results()), this.errors()) == (400, [])
        assert seen[0][:2] == (True, "cannot connect to test:80: Connection refused")
        assert seen[0][2] == sum(moment < 30 for moment, _ in service.asked)
    assert this.counts.sent == 400
    assert this.counts.retries == 0
    assert len(service.tries) < 40  # those under way, then one at a time
    assert len([moment for moment in service.tries if moment > 6]) < 12
    assert clock.now() < 65 + 10 + 30


async def test_a_server_that_stays_away_ends_the_run_and_the_next_goes_on(tmp_path):
    service = Down(5, 1e9)
    rows = [chat(number) for number in range(200)]
    with prepared(tmp_path, rows, service, give_up_after=600) as this:
        await this.run()
        assert this.run.stopped.code == "unreachable"
        assert "Connection refused; the server has been away for 10 min" in this.run.stopped.message
        assert this.errors() == []
        before = len(this.results())
    assert 605 <= clock.now() < 650
    service.end = 0
    with prepared(tmp_path, rows, service) as this:
        await this.run()
        assert len(this.results()) == 200
        assert this.counts.skipped == before


async def test_a_server_that_redirects_to_one_that_is_away_is_asked_now_and_then(tmp_path):
    """Each request reaches the one and not the other: a connection alone proves nothing."""

    class Redirecting(Service):
        async def send(self, path, body, left):
            left()
            self.asked.append(clock.now())
            await anyio.sleep(0.01)
            raise NotSent("cannot connect to elsewhere")

    service = Redirecting()
    with prepared(tmp_path, [chat(number) for number in range(20)], service, give_up_after=60) as this:
        await this.run()
        assert this.run.stopped.code == "unreachable"
        assert this.errors() == []
        assert len(service.asked) < 40


async def test_a_server_that_was_never_there_is_given_up_after_five_minutes(tmp_path):
    service = Down(0, 1e9)
    with prepared(tmp_path, [chat(0), chat(1)], service) as this:
        await this.run()
        assert this.run.stopped.code == "unreachable"
        assert "not reached even once" in this.run.stopped.message
        assert this.errors() == []
    assert 300 <= clock.now() <= 335


async def test_a_certificate_that_is_not_trusted_ends_the_run_at_once(tmp_path):
    """To wait for another one is of no use; unless there was one before, as when a proxy steps in for a while."""
    with prepared(tmp_path, [chat(0), chat(1)], Distrusted(0, 1e9)) as this:
        await this.run()
        assert (this.run.stopped.code, this.run.stopped.message) == ("unreachable", "it is not trusted")
        assert this.errors() == []
    assert clock.now() < 1
    rows = [chat(number) for number in range(200)]
    with prepared(tmp_path, rows, Distrusted(2, 30), overwrite=True) as this:
        await this.run()
        assert (this.run.stopped, len(this.results())) == (None, 200)


async def test_a_gateway_whose_server_is_down_costs_no_row(tmp_path):
    """A 502 for everybody is the server's trouble, however often a row meets it."""
    service = Service(answer=lambda _: (502, {}, b"<html>") if 2 < clock.now() < 300 else (200, {}, ANSWER))
    with prepared(tmp_path, [chat(number) for number in range(200)], service, attempts=3) as this:
        await this.run()
        assert (len(this.results()), this.errors()) == (200, [])
    assert len([moment for moment, _ in service.asked if 10 < moment < 300]) < 40


async def test_a_row_that_always_fails_does_not_stop_the_others(tmp_path):
    service = Service(answer=lambda body: (503, {}, b"") if body["model"] == "bad" else (200, {}, ANSWER))
    rows = [chat(number, model="bad" if number % 40 == 0 else "m") for number in range(200)]
    with prepared(tmp_path, rows, service, attempts=3) as this:
        await this.run()
        assert (len(this.results()), len(this.errors())) == (195, 5)


async def test_an_interrupt_ends_the_wait_for_a_server(tmp_path):
    with prepared(tmp_path, [chat(0), chat(1)], Down(0, 1e9)) as this:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(this.run)
            await anyio.sleep(20)
            this.run.stop("interrupted", "interrupted")
        assert clock.now() <= 21
        assert (this.results(), this.errors()) == ([], [])


# Keys and money


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (402, "Insufficient Balance"),
        (400, "Your credit balance is too low"),
        (429, "You have reached your spend limit"),
    ],
)
async def test_no_money_ends_the_run_at_once(tmp_path, status, words):
    service = Service(answer=lambda _: (status, {}, refusal(words, None)))
    with prepared(tmp_path, [chat(number) for number in range(50)], service, max_in_flight=2) as this:
        await this.run()
        assert this.run.stopped.code == "account"
        assert words in this.run.stopped.message
        assert this.errors() == []
    assert len(service.asked) <= 2


@pytest.mark.parametrize("status", [401, 403])
async def test_a_model_that_is_not_ours_costs_its_rows_and_not_the_run(tmp_path, status):
    """Whichever of them is asked first."""

    def answer(body):
        return (status, {}, refusal("no access to theirs", "no")) if body["model"] == "theirs" else (200, {}, ANSWER)

    for first in ("theirs", "ours"):
        rows = [chat(0, model=first)] + [
            chat(number, model="theirs" if number % 2 else "ours") for number in range(1, 40)
        ]
        service = Service(answer=answer)
        (tmp_path / first).mkdir()
        with prepared(tmp_path / first, rows, service, max_in_flight=1) as this:
            await this.run()
            assert this.run.stopped is None
            theirs = sum(row["body"]["model"] == "theirs" for row in rows)
            assert (len(this.results()), len(this.errors())) == (40 - theirs, theirs)
            assert {error["error"]["status_code"] for error in this.errors()} == {status}
        if status == 401:
            assert sum(body["model"] == "theirs" for body in service.bodies) == 1


async def test_a_key_that_is_wrong_for_every_model_ends_the_run(tmp_path):
    service = Service(answer=lambda _: (401, {}, refusal("Incorrect API key", "invalid_api_key")))
    rows = [chat(number, model=f"m{number % 3}") for number in range(60)]
    with prepared(tmp_path, rows, service, max_in_flight=1) as this:
        await this.run()
        assert this.run.stopped.code == "account"
        assert this.errors() == []
        assert this.summary()["untouched"] == this.counts.rows == 60
    assert len(service.asked) == 3


# Ambiguous attempts


async def test_an_attempt_that_was_lost_is_sent_again_and_said(tmp_path):
    service = Service(Simulation(**LIMITS), [Lost("the server closed the connection without an answer")])
    with prepared(tmp_path, [chat(0), chat(1)], service) as this:
        await this.run()
        assert len(this.results()) == 2
        assert this.summary()["possibly_billed_twice"] == 1


async def test_whoever_must_not_pay_twice_has_such_rows_among_the_errors(tmp_path):
    service = Service(Simulation(**LIMITS), [Lost("the connection broke")])
    with prepared(tmp_path, [chat(0), chat(1)], service, on_ambiguous="fail") as this:
        await this.run()
        (error,) = this.errors()
        assert len(this.results()) == 1
    assert error["error"]["code"] == "ambiguous"
    assert "may have been billed" in error["error"]["message"]


async def test_limits_of_a_minute_are_kept_while_others_use_the_account_too(tmp_path):
    """Rows told to wait go on as soon as they may: the whole takes as long as the limits say."""
    service = Service(Simulation(requests="60/min"))
    with prepared(tmp_path, [chat(number) for number in range(100)], service) as this:
        this.run.places[0].limits_of = lambda _: ("", {"requests": (parse("6000/min"),)})
        await this.run()
        assert len(this.results()) == 100
    assert clock.now() < 40 * 1.35


@pytest.mark.parametrize("says_its_room", [True, False])
async def test_a_disk_that_fills_up_costs_no_answer_that_was_under_way(tmp_path, monkeypatch, says_its_room):
    """The run ends while there is still room for what will be paid for; if nobody knows, what was lost is said."""
    room = 400_000

    def used():
        return sum(path.stat().st_size for path in tmp_path.iterdir() if path.name.startswith("out.jsonl"))

    write = Appended.append

    def append(file, data):
        if used() + len(data) > room:
            raise cannot_write(file.path, OSError(28, "No space left on device"))
        write(file, data)

    monkeypatch.setattr(Appended, "append", append)
    monkeypatch.setattr(output, "free_bytes", lambda _: room - used() if says_its_room else math.inf)
    answer = json.dumps({"choices": [{"message": {"content": "x" * 500}}]}).encode()

    class Slow(Service):
        async def send(self, path, body, left):
            left()
            await anyio.sleep(2)
            return Reply(200, {}, answer)

    limits = {"requests": "6000/min burst 50"}
    with prepared(tmp_path, [chat(number) for number in range(2_000)], Slow(), limits=limits) as this:
        await this.run()
        assert this.run.stopped.code == "output"
        assert ("is nearly full" in this.run.stopped.message) == says_its_room
        assert 150 <= this.counts.sent == this.counts.answered + this.counts.in_doubt < 2_000
        assert (this.counts.in_doubt == 0) == says_its_room
        summary = this.summary()
        assert summary["in_doubt"] + summary["answered"] + summary["untouched"] == summary["rows"]
        said = f"{this.counts.in_doubt} rows were sent and no answer is kept: they may have been billed"
        assert any(line.startswith(said) for line in sentences(summary)) != says_its_room
    with prepared(tmp_path, [chat(number) for number in range(2_000)], Slow(), limits=limits) as again:
        assert again.all_results.ambiguous == this.counts.in_doubt
