"""Whose trouble it is: one row's, or everybody's."""

from __future__ import annotations

import json

import anyio
import pytest

from penstock import clock
from penstock.runner.client import Lost, Unreadable
from tests.runner.service import ANSWER, Service, chat, prepared

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("virtual_time")]

FAST = {"requests": "6000/min", "tokens": "10M/min"}


def number_of(body):
    return int(body["messages"][0]["content"])


@pytest.mark.parametrize("trouble", [Lost("the server hung up"), (502, {}, b"bad gateway")], ids=["lost", "502"])
async def test_a_few_rows_that_the_server_falls_over_do_not_keep_the_run_for_a_day(tmp_path, trouble):
    """Nobody else is left at the end who could tell that the server is there."""
    bad = {3, 150, 151, 299}
    service = Service(answer=lambda body: trouble if number_of(body) in bad else (200, {}, ANSWER))
    with prepared(tmp_path, [chat(number) for number in range(300)], service, limits=FAST) as this:
        await this.run()
        assert this.run.stopped is None
        assert len(this.results()) == 296
        assert {error["custom_id"] for error in this.errors()} == {f"row-{number}" for number in bad}
    assert this.counts.makespan < 3_600


async def test_an_answer_that_cannot_be_read_is_not_paid_for_twice(tmp_path):
    broken = Unreadable("the answer breaks HTTP: Duplicate Content-Length")
    service = Service(answer=lambda body: broken if number_of(body) == 7 else (200, {}, ANSWER))
    with prepared(tmp_path, [chat(number) for number in range(20)], service, limits=FAST) as this:
        await this.run()
        (error,) = this.errors()
        assert len(this.results()) == 19
    assert len(service.asked) == 20
    assert (error["custom_id"], error["error"]["code"]) == ("row-7", "unreadable_answer")
    assert "may have been billed" in error["error"]["message"]


async def test_where_no_answer_can_be_read_the_run_ends_before_all_rows_are_paid_for(tmp_path):
    service = Service(answer=lambda _: Unreadable("the answer breaks HTTP: Duplicate Content-Length"))
    rows = [chat(number) for number in range(1_000)]
    with prepared(tmp_path, rows, service, limits={"requests": "60/min burst 1"}, give_up_after=600.0) as this:
        await this.run()
        assert this.run.stopped is not None
    assert len(service.asked) < 100


async def test_where_a_key_is_refused_for_a_model_and_nothing_else_was_answered_the_key_is_wrong(tmp_path):
    """Rows of the model are untouched, and the next run sends them with another key."""
    revoked, bad = b'{"error": {"message": "Incorrect API key"}}', b'{"error": {"message": "no such field"}}'
    service = Service(answer=lambda body: (401, {}, revoked) if body["model"] == "m" else (400, {}, bad))
    with prepared(tmp_path, [chat(0), chat(1), chat(2, model="other")], service, limits=FAST) as this:
        await this.run()
        assert (this.run.stopped.code, this.run.stopped.status) == ("account", 401)
        assert [error["custom_id"] for error in this.errors()] == ["row-2"]


async def test_one_row_that_is_always_told_to_wait_does_not_stop_the_others(tmp_path):
    """The service refuses that row alone, for half a minute each time."""
    body = json.dumps({"error": {"code": "rate_limit_exceeded", "message": "Please try again in 30s"}}).encode()

    async def later():
        return 200, {}, ANSWER

    service = Service(answer=lambda body_: (429, {}, body) if number_of(body_) == 0 else (200, {}, ANSWER))
    slow = {"requests": "60/min burst 1", "tokens": "10M/min"}
    with prepared(
        tmp_path, [chat(number) for number in range(1_000)], service, limits=slow, give_up_after=7_200.0
    ) as this:
        async with anyio.create_task_group() as tasks:
            done_at = []

            async def watch():
                while this.counts.answered < 999:
                    await anyio.sleep(1)
                done_at.append(clock.now() - this.counts.began)

            tasks.start_soon(watch)
            await this.run()
        assert [error["error"]["code"] for error in this.errors()] == ["rate_limit_exceeded"]
    assert done_at[0] < 1.5 * 1_000  # of 16 min 40 s that the limit takes


async def test_rows_of_a_gateway_whose_server_is_down_for_an_hour_are_not_lost(tmp_path):
    """That is no few rows: everybody fails."""

    def answer(body):
        return (502, {}, b"") if clock.now() - began < 3_600 else (200, {}, ANSWER)

    began = clock.now()
    with prepared(tmp_path, [chat(number) for number in range(500)], Service(answer=answer), limits=FAST) as this:
        await this.run()
        assert (len(this.results()), this.errors()) == (500, [])
