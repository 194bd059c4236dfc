"""Runs out of a program: rows and results as Python objects."""

from __future__ import annotations

import json
import math
import os
import pickle
import re
import sys
from datetime import timedelta

import anyio
import pytest

from penstock import Limiter, clock, in_flight, runner, simulator
from penstock.runner.client import Lost, NotSent
from penstock.runner.files import Appended, OutputError, cannot_write
from penstock.simulator import Latency, Simulation
from tests.runner.service import LIMITS, Service, chat

pytestmark = pytest.mark.anyio


def echo(body):
    return (
        200,
        {"x-request-id": "r"},
        json.dumps({"choices": [{"message": {"content": body["messages"][0]["content"]}}]}).encode(),
    )


async def collected(rows, service, **options):
    return [result async for result in runner.run(rows, service, **options)]


@pytest.mark.parametrize("kind", ["list", "generator", "async generator"])
async def test_every_row_yields_its_result(virtual_time, kind):
    async def given():
        for number in range(50):
            yield chat(number)

    rows = {
        "list": [chat(number) for number in range(50)],
        "generator": (chat(number) for number in range(50)),
        "async generator": given(),
    }
    found = await collected(rows[kind], Service(answer=echo), limits=LIMITS)
    assert {one.custom_id for one in found} == {f"row-{number}" for number in range(50)}
    one = next(one for one in found if one.custom_id == "row-7")
    assert (one.number, one.status_code, one.request_id, one.error, one.from_journal) == (8, 200, "r", None, False)
    assert one.body["choices"][0]["message"]["content"].endswith("7")


async def test_limits_are_kept(virtual_time):
    service = Service(Simulation(**LIMITS, latency=Latency(median=1.0)))
    found = await collected([chat(number) for number in range(100)], service, limits=LIMITS)
    assert len(found) == 100
    assert service.account.statistics().refused == {}
    assert clock.now() >= (100 - 20) / 15


async def test_a_limiter_may_be_shared_by_two_runs(virtual_time):
    limiter = Limiter(requests="60/min", tokens="90k/min")
    service = Service(answer=echo)
    await collected([chat(number) for number in range(60)], service, limits=limiter)
    assert clock.now() < 1
    await collected([chat(number) for number in range(30)], service, limits=limiter)
    assert clock.now() >= 29


async def test_what_cannot_be_sent_or_is_refused_is_a_result_too(virtual_time):
    service = Service(
        answer=lambda body: (
            (400, {}, b'{"error": {"code": "no", "message": "not this"}}') if body["model"] == "bad" else echo(body)
        )
    )
    rows = [
        chat(0),
        {"custom_id": "x"},
        chat(1, model="bad"),
        {"custom_id": "y", "body": {"messages": object()}},
        chat(0),
    ]
    found = {one.number: one for one in await collected(rows, service, limits=LIMITS)}
    assert [found[number].error and found[number].error["code"] for number in range(1, 6)] == [
        None, "missing_body", "no", "invalid_json", "duplicate_custom_id",
    ]  # fmt: skip
    assert found[3].error["status_code"] == 400
    assert found[4].custom_id == "y"
    assert found[4].error["message"] == "the row is not JSON: Object of type object is not JSON serializable"


async def test_rows_that_are_none_end_nothing(virtual_time):
    """They are no requests, and the others are."""
    rows = [None, chat(0), 5, "text", [chat(1)], {1: 2}, float("nan"), chat(2)]
    found = {one.number: one for one in await collected(iter(rows), Service(answer=echo), limits=LIMITS)}
    codes = [found[number].error and found[number].error["code"] for number in range(1, 9)]
    assert codes == [
        "not_an_object",
        None,
        "not_an_object",
        "not_an_object",
        "not_an_object",
        "missing_body",
        "invalid_json",
        None,
    ]


@pytest.mark.parametrize("is_async", [False, True])
async def test_an_error_of_the_rows_is_raised_as_it_is(virtual_time, is_async):
    def rows():
        yield chat(0)
        raise KeyError("a mistake of mine")

    async def later():
        for row in rows():
            yield row

    with pytest.raises(KeyError, match="a mistake of mine"):
        await collected(later() if is_async else rows(), Service(answer=echo), limits=LIMITS)


def test_another_loop_than_asyncios_is_told_so():
    async def first():
        async for _ in runner.run([chat(0)], Service(answer=echo), LIMITS):
            pass

    with pytest.raises(RuntimeError, match="a run needs asyncio"):
        anyio.run(first, backend="trio")


async def test_a_run_that_was_left_goes_on_out_of_its_journal(virtual_time, tmp_path):
    rows = [chat(number) for number in range(100)]
    service = Service(Simulation(**LIMITS, latency=Latency(median=1.0)))
    seen = []
    results = runner.run(rows, service, limits=LIMITS, journal=tmp_path / "run.journal")
    async for result in results:
        seen.append(result)
        if len(seen) == 30:
            break
    await results.aclose()
    under_way = len(service.asked) - 30
    service = Service(answer=echo)
    found = await collected(rows, service, limits=LIMITS, journal=tmp_path / "run.journal")
    assert {one.custom_id for one in found} == {row["custom_id"] for row in rows}
    stored = [one for one in found if one.from_journal]
    assert 30 <= len(stored) <= 30 + under_way
    assert {one.custom_id: one for one in stored if one in seen} == {one.custom_id: one for one in seen}
    assert len(service.asked) == 100 - len(stored)


@pytest.mark.parametrize("ends", ["left", "cancelled", "stopped"])
async def test_rows_that_let_us_wait_do_not_hold_up_the_end_of_the_run(virtual_time, ends):
    """As rows out of a queue do, into which nobody puts any more."""
    is_closed = []

    async def waiting():
        try:
            yield chat(0)
            yield chat(1, model="mine")
            await anyio.sleep_forever()
        finally:
            is_closed.append(True)

    def answer(body):
        refuse = ends == "stopped" and body["model"] == "mine"
        return (429, {}, b'{"error": {"code": "insufficient_quota", "message": "no money"}}') if refuse else echo(body)

    results = runner.run(waiting(), Service(answer=answer), LIMITS)
    await anext(results)
    if ends == "stopped":
        with pytest.raises(runner.RunStoppedError, match="no money"):
            await anext(results)
    elif ends == "cancelled":
        await anext(results)
        with anyio.move_on_after(1):
            await anext(results)
    await results.aclose()
    assert is_closed


async def test_rows_that_were_edited_end_the_run_unless_somebody_says_more(virtual_time, tmp_path):
    options = {"limits": LIMITS, "journal": tmp_path / "j"}
    await collected([chat(0), chat(1)], Service(answer=echo), **options)
    rows = [chat(0), chat(1, size=7)]
    with pytest.raises(runner.RunStoppedError) as caught:
        await collected(rows, Service(answer=echo), **options)
    assert caught.value.code == "changed"
    service = Service(answer=echo)
    found = await collected(rows, service, changed="rerun", **options)
    assert (len(found), len(service.asked)) == (2, 1)


async def test_rows_that_failed_and_rows_that_come_twice_are_told_out_of_a_journal_too(virtual_time, tmp_path):
    """What was refused is sent again by the next run; what was answered is not, and the same name again is an error."""
    options, refusal = (
        {"limits": LIMITS, "journal": tmp_path / "j"},
        b'{"error": {"code": "no", "message": "not this"}}',
    )
    for code, asked in (("no", 2), (None, 1)):
        service = Service(
            answer=lambda body, code=code: (400, {}, refusal) if code and body["model"] == "x" else echo(body)
        )
        found = await collected([chat(0), chat(1, model="x"), chat(0)], service, **options)
        ends = {one.number: one.error and one.error["code"] for one in found}
        assert (ends, len(service.asked)) == ({1: None, 2: code, 3: "duplicate_custom_id"}, asked)


async def test_messages_name_arguments_and_not_options_of_the_command_line(virtual_time, tmp_path):
    """What is to be done is done in the program that called."""
    options = {"limits": LIMITS, "journal": tmp_path / "j"}
    await collected([chat(0)], Service(answer=echo), **options)
    said = []
    with pytest.raises(runner.RunStoppedError) as caught:
        await collected([chat(0, size=7)], Service(answer=echo), **options)
    said.append(str(caught.value))
    lost = Service(script=[Lost("gone")])
    said.append((await collected([chat(1)], lost, on_ambiguous="fail", **options))[0].error["message"])
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "other").write_text("something else")
    for name in ("pipe", "other"):
        with pytest.raises(OutputError) as refused:
            await collected([chat(0)], Service(answer=echo), limits=LIMITS, journal=tmp_path / name)
        said.append(str(refused.value))
    running = runner.run([chat(2), chat(3)], Service(answer=echo), **options)
    await anext(running)
    with pytest.raises(OutputError) as refused:
        await collected([chat(0)], Service(answer=echo), **options)
    said.append(str(refused.value))
    await running.aclose()
    wanted = ('changed="rerun" asks again', '(on_ambiguous="fail")', "journal: ", "another journal", "another journal")
    for words, sentence in zip(wanted, said, strict=True):
        assert words in sentence
        assert " -" not in sentence.replace(str(tmp_path), "")


async def test_answers_of_another_address_are_not_taken_for_those_of_this_one(tmp_path):
    """The journal remembers who was asked."""
    options = {"limits": {"requests": "6000/min"}, "journal": tmp_path / "j"}
    options |= {"headers": {"authorization": "Bearer key"}}
    with simulator.serve(Simulation(latency=Latency(median=0.01))) as server:
        for from_journal in (False, True):
            found = await collected([chat(0)], server.base_url, **options)
            assert [one.from_journal for one in found] == [from_journal]
        with pytest.raises(runner.RunStoppedError, match="line 1 was answered by a server that is not asked now"):
            await collected([chat(0)], server.base_url.replace("127.0.0.1", "localhost"), **options)
        assert server.statistics().admitted == 1


async def test_answers_that_the_journal_has_no_room_for_are_yielded(virtual_time, tmp_path, monkeypatch):
    """They were paid for: those too that were under way when the disk was full."""
    written, append = [], Appended.append

    def full(file, data):
        if b'"done"' in data:
            written.append(data)
            if len(written) > 5:
                raise cannot_write(file.path, OSError(28, "No space left on device"))
        append(file, data)

    monkeypatch.setattr(Appended, "append", full)
    service, found = Service(answer=echo), []
    service.way = 1.0
    with pytest.raises(runner.RunStoppedError, match="No space left on device") as stopped:
        async for result in runner.run(
            [chat(number) for number in range(50)], service, limits={"requests": "6000/min"}, journal=tmp_path / "j"
        ):
            found += [result]
    assert stopped.value.code == "output"
    assert len(found) == len({one.custom_id for one in found}) == len(service.asked) > 5


async def test_a_server_that_is_not_there_is_an_error_of_the_run(virtual_time):
    service = Service(answer=lambda _: NotSent("refused"))
    with pytest.raises(runner.RunStoppedError, match="refused") as caught:
        await collected([chat(0)], service, limits=LIMITS)
    assert caught.value.code == "unreachable"


async def test_results_that_nobody_takes_do_not_pile_up(virtual_time):
    service = Service(answer=echo)
    results = runner.run(
        (chat(number, 20) for number in range(10_000)), service, limits={"requests": "1M/s"}, max_in_flight=10
    )
    await anext(results)
    await clock_passes(60)
    assert len(service.asked) < 1_100
    await results.aclose()


async def clock_passes(seconds):
    import anyio

    await anyio.sleep(seconds)


@pytest.mark.parametrize(
    ("url", "headers", "message"),
    [
        ("http://host/v1#a", {}, "has a #, and what follows it is never sent"),
        *((url, {}, "is not the address of a server; write it like http://")
          for url in ("nowhere", "", "ftp://x", "http://", "http://x:99999/v1", "http://a b/v1", "http://[::1")),
        ("http://x/v1", {"a b": "c"}, "no header is called 'a b'"),
        ("http://x/v1", {7: "c"}, "no header is called 7"),
        ("http://x/v1", {"x-team": "a\r\nx-other: b"}, "the value of x-team must be text"),
        ("http://x/v1", {"x-team": 7}, "the value of x-team must be text"),
    ],
)  # fmt: skip
async def test_a_server_that_no_request_can_reach_is_refused_at_once(url, headers, message):
    """And not taken for one that is away, which is waited for."""
    with pytest.raises(ValueError, match=re.escape(message)):
        await collected([chat(0)], url, headers=headers)
    with pytest.raises(ValueError, match=re.escape(message)):
        runner.Sender(url, headers=headers)


@pytest.mark.parametrize("what", [None, 5, [None], [], object()])
async def test_what_is_no_server_is_refused_with_the_way_out(what):
    """Such as an SDK's client: it was an error of Python's."""
    words = (
        r"a run sends to the base URL of a server, not to .*client\.base_url" if what != [] else "a run needs a server"
    )
    with pytest.raises(ValueError, match=words):
        await anext(runner.run([chat(0)], what))


@pytest.mark.parametrize("rule", [lambda *_: "x", lambda *_: {"requests": -5}, lambda *_: {"tokens": math.nan}])
async def test_a_rule_of_cost_that_tells_nonsense_costs_no_row(virtual_time, rule):
    found = await collected([chat(0), chat(1)], Service(answer=echo), limits=LIMITS, cost=rule)
    assert [one.error for one in found] == [None, None]


@pytest.mark.parametrize("limits", ["fast", {"requests": "fast"}, {"requests": in_flight(3)}, {}])
async def test_limits_that_are_none_are_refused(limits):
    with pytest.raises(ValueError, match="limit"):
        await collected([chat(0)], Service(answer=echo), limits=limits)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        *((name, value, f"{name} must be a whole number, 1 or more, not {value!r}")
          for name in ("max_in_flight", "attempts") for value in (0, -1, 1.5, "5", True, None)),
        *((name, value, f"{name} must be a number of seconds, 0 or more, or a timedelta, not {value!r}")
          for name in ("give_up_after", "max_pause") for value in (-1, math.nan, "5", None, timedelta(seconds=-1))),
        ("on_ambiguous", "ask", 'on_ambiguous must be "rerun" or "fail", not \'ask\''),
        ("changed", ["rerun"], 'changed must be "rerun", "keep" or None, not '),
        ("on_ambiguous", ["rerun"], 'on_ambiguous must be "rerun" or "fail", not '),
        ("changed", "ask", 'changed must be "rerun", "keep" or None, not \'ask\''),
    ],
)  # fmt: skip
async def test_an_option_that_is_out_of_its_range_is_refused_before_anything_is_sent(option, value, message):
    """A run with `max_in_flight=0` waited for ever."""
    service = Service(answer=echo)
    with pytest.raises(ValueError, match=re.escape(message)):
        await collected([chat(0)], service, **{option: value})
    assert service.asked == []


@pytest.mark.parametrize("seconds", [0, -1, math.nan, "5", None, timedelta(0)])
def test_an_attempt_takes_time(seconds):
    with pytest.raises(ValueError, match="timeout must be a number of seconds above 0, or a timedelta, not"):
        runner.Sender("http://127.0.0.1:9/v1", timeout=seconds)


async def test_spans_of_time_may_be_timedeltas(virtual_time):
    """A server that always asks for half a minute is given up after one."""
    busy = Service(answer=lambda _: (429, {"retry-after": "30"}, b"{}"))
    options = {"give_up_after": timedelta(minutes=1), "max_pause": timedelta(hours=1)}
    (one,) = await collected([chat(0)], busy, limits=LIMITS, **options)
    assert one.error is not None
    assert 60 <= virtual_time.now() < 120
    with runner.Sender("http://127.0.0.1:9/v1", timeout=timedelta(minutes=1)) as sender:
        assert sender._server.timeout == 60


# Batches, over real sockets


def test_a_sender_sends_batches_under_one_limiter():
    limiter = Limiter(requests="6000/min", tokens="6M/min")
    with simulator.serve(Simulation(requests="6000/min", latency=Latency(0.01))) as server:
        with runner.Sender(server.base_url, limiter, headers={"authorization": "Bearer k"}) as send:
            found = send([chat(number) for number in range(20)])
            assert [one.custom_id for one in found] == [f"row-{number}" for number in range(20)]
            assert all(one.body["choices"] for one in found)
            columns = {
                "model": ["gpt-4o-mini"] * 3,
                "messages": [[{"role": "user", "content": "hi"}]] * 3,
                "id": [1, 2, 3],
            }
            del columns["id"]
            out = send(columns)
            assert set(out) == {"model", "messages", "answer", "error"}
            assert [bool(json.loads(one)["choices"]) for one in out["answer"]] == [True] * 3
            assert out["error"] == [""] * 3
            assert [one.error["code"] for one in send([{"custom_id": "x"}])] == ["missing_body"]
            assert [one.error["code"] for one in send([None, 5])] == ["not_an_object"] * 2
        assert server.statistics().answered == 23


def test_a_sender_may_travel_to_a_worker():
    sender = pickle.loads(pickle.dumps(runner.Sender("http://127.0.0.1:1/v1", give_up_after=0.1)))
    with sender, pytest.raises(runner.RunStoppedError, match="cannot connect"):
        sender([chat(0)])


async def test_without_its_package_the_extra_is_named(monkeypatch):
    for name in [name for name in sys.modules if name.startswith(("aiohttp", "penstock.runner"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    with pytest.raises(ModuleNotFoundError) as caught:
        __import__("penstock.runner")
    assert str(caught.value) == (
        "penstock.runner needs the package 'aiohttp': install the extra, pip install \"penstock[cli]\""
    )
    assert caught.value.name == "aiohttp"
