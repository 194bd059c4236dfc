"""A run that goes on: what is answered stays, what was edited is asked again only when somebody says so."""

from __future__ import annotations

import json
import sys
from functools import partial

import anyio
import pytest

from penstock.llm.tokens import by_bytes
from penstock.runner.journal import AnsweredRows
from penstock.runner.output import ChangedError, journal_of
from penstock.runner.source import read_row
from penstock.simulator import Latency, Simulation
from tests.runner.service import ANSWER, LIMITS, Service, chat, prepared

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("virtual_time")]

READ = partial(read_row, cost=by_bytes)


def echo(body):
    return 200, {}, json.dumps({"choices": [{"message": {"content": body["messages"][0]["content"]}}]}).encode()


async def done(folder, rows, **options):
    """Run it, as the command line does; what was asked, what is answered, and the run."""
    service = Service(answer=echo)
    with prepared(folder, rows, service, **options) as this:
        this.examine()
        await this.run()
        said = {one["custom_id"]: one["response"]["body"]["choices"][0]["message"]["content"] for one in this.results()}
        assert len(said) == len(this.results())
        return [name for _, name in service.asked], said, this


def refused(folder, rows, message, **options):
    """Nothing is sent."""
    service = Service(answer=echo)
    with prepared(folder, rows, service, **options) as this, pytest.raises(ChangedError, match=message):
        this.examine()
    assert service.asked == []


def edited(number, text):
    row = chat(number)
    row["body"]["messages"][0]["content"] = text
    return row


@pytest.mark.parametrize(
    "edit",
    [
        {"body": {"model": "m", "messages": [{"role": "user", "content": "another question"}]}},
        {"body": {"model": "another", "messages": chat(3)["body"]["messages"]}},
        {"body": {**chat(3)["body"], "temperature": 0}},
        {"url": "/v1/responses"},
    ],
    ids=["prompt", "model", "option", "endpoint"],
)
async def test_rows_that_were_edited_are_refused_before_anything_is_sent(tmp_path, edit):
    """The message counts them and names the first."""
    rows = [chat(number) for number in range(10)]
    await done(tmp_path, rows)
    before = (tmp_path / "out.jsonl").read_bytes()
    rows[3] = {**rows[3], "url": "/v1/chat/completions", **edit}
    rows[7] = edited(7, "something else")
    refused(tmp_path, rows, r"2 rows ask something else than what .*out.jsonl answers .*first: line 4")
    assert (tmp_path / "out.jsonl").read_bytes() == before


@pytest.mark.parametrize("many", [200_000, 0])
async def test_answers_to_rows_that_the_file_has_not_any_more_are_counted(tmp_path, monkeypatch, many):
    """Nobody should take them for those of this file unknowingly."""
    monkeypatch.setattr("penstock.runner.output._MANY", many)  # names of rows that are looked up at once
    await done(tmp_path, [chat(number) for number in range(10)])
    service = Service(answer=echo)
    rows = [chat(2), {"custom_id": "row-3", "url": "/v1/chat/completions", **chat(3)}, chat(11)]
    with prepared(tmp_path, rows, service) as this:
        this.examine()
        assert this.all_results.elsewhere == 8


async def test_another_file_under_the_same_ids_is_refused(tmp_path):
    await done(tmp_path, [chat(number) for number in range(10)])
    refused(tmp_path, [edited(number, "other") for number in range(10)], "10 rows ask something else")


async def test_rows_without_an_id_are_told_apart_by_their_line(tmp_path):
    rows = [chat(number)["body"] for number in range(5)]
    await done(tmp_path, rows)
    asked, said, _ = await done(tmp_path, [*rows, rows[0]])
    assert (len(asked), len(said)) == (1, 6)
    refused(tmp_path, rows[1:], "4 rows ask something else")
    refused(
        tmp_path,
        [rows[3], *rows],
        r"6 rows ask .*\(first: line 1\): .*; rows without a custom_id are known by their line, so new ones belong at the end",
    )


async def test_the_way_out_for_named_rows_says_nothing_of_lines(tmp_path):
    await done(tmp_path, [chat(number) for number in range(3)])
    with pytest.raises(ChangedError) as refusal, prepared(tmp_path, [edited(1, "new")], Service()) as this:
        this.examine()
    assert "without a custom_id" not in str(refusal.value)


@pytest.mark.parametrize("form", ["spaces", "no spaces", "escapes", "method named"])
async def test_a_row_that_is_only_written_differently_is_the_same_row(tmp_path, form):
    rows = [chat(number) for number in range(5)]
    await done(tmp_path, rows)
    written = {
        "spaces": [json.dumps(row, indent=1).replace("\n", " ") for row in rows],
        "no spaces": [json.dumps(row, separators=(",", ":")) for row in rows],
        "escapes": [json.dumps(row).replace("row", "\\u0072ow") for row in rows],
        "method named": [json.dumps({"method": "POST", "url": "/v1/chat/completions", **row}) for row in rows],
    }[form]
    asked, said, this = await done(tmp_path, [line.encode() + b"\n" for line in written])
    assert (asked, len(said), this.counts.skipped) == ([], 5, 5)


@pytest.mark.parametrize("order", ["completed", "input"])
async def test_changed_rows_are_asked_again_and_the_old_answers_go(tmp_path, order):
    rows = [chat(number) for number in range(6)]
    await done(tmp_path, rows, order=order)
    rows[2] = edited(2, "new")
    asked, said, _ = await done(tmp_path, rows, changed="rerun", order=order)
    assert asked == ["new"]
    assert said["row-2"] == "new"
    assert len(said) == 6
    asked, said, _ = await done(tmp_path, rows, order=order)
    assert (asked, said["row-2"]) == ([], "new")


@pytest.mark.parametrize("ends", ["well", "before it made the results anew", "in the middle of that"])
async def test_changed_rows_out_of_a_pipe_replace_their_answers_too(tmp_path, monkeypatch, ends):
    """Nothing is known of them before they come; whatever the run ended by, the next one leaves each answer once."""
    rows = [chat(number) for number in range(6)]
    await done(tmp_path, rows)
    rows[2], rows[4] = edited(2, "new"), edited(4, "newer")
    with monkeypatch.context() as killed, prepared(tmp_path, rows, Service(answer=echo), changed="rerun") as this:
        if ends != "well":
            killed.setattr(this.all_results, "finish", lambda: None)
        await this.run()
        assert this.counts.answered == 2
    if ends == "in the middle of that":
        (tmp_path / "out.jsonl").write_bytes((tmp_path / "out.jsonl").read_bytes()[:-10])
    if ends == "well":
        assert len((tmp_path / "out.jsonl").read_bytes().splitlines()) == 6
    asked, said, _ = await done(tmp_path, rows)
    assert (asked, said["row-2"], said["row-4"], len(said)) == ([], "new", "newer", 6)


async def test_a_row_that_is_as_it_was_once_more_keeps_its_newest_answer(tmp_path):
    """Answers of one row are told apart by when they came, too."""
    rows = [chat(number) for number in range(3)]
    for text in ("one", "two", "one"):
        await done(tmp_path, [rows[0], edited(1, text)], changed="rerun")
    asked, said, _ = await done(tmp_path, [rows[0], edited(1, "one"), rows[2]])
    assert (asked, said["row-1"], len(said)) == (["2"], "one", 3)


async def test_changed_rows_may_keep_their_answers(tmp_path):
    rows = [chat(number) for number in range(6)]
    _, before, _ = await done(tmp_path, rows)
    rows[2] = edited(2, "new")
    asked, said, _ = await done(tmp_path, rows, changed="keep")
    assert (asked, said) == ([], before)


async def test_a_model_that_is_set_otherwise_is_a_change(tmp_path):
    rows = [chat(number) for number in range(3)]
    await done(tmp_path, rows)
    change = lambda body: {**body, "model": "another"}  # noqa: E731
    refused(tmp_path, rows, "3 rows ask something else", change=change, salt=b"another")


A, B, C = "http://a/v1", "http://b/v1", "http://c/v1"


@pytest.mark.parametrize("order", ["completed", "input"])
async def test_answers_of_another_server_are_not_taken_for_those_of_the_one_that_is_asked(tmp_path, order):
    """A deployment, a proxy or the simulator stands in the address alone: no row differs."""
    rows = [chat(number) for number in range(10)]
    await done(tmp_path, rows[:6], servers=[A], order=order)
    refused(tmp_path, rows, r"6 rows are answered in .*out.jsonl by http://a/v1, .*line 1\)", servers=[B], order=order)
    asked, said, this = await done(tmp_path, rows, servers=[B], order=order, changed="rerun")
    assert (len(asked), len(said), this.all_results.moved) == (10, 10, 6)
    asked, _, _ = await done(tmp_path, rows, servers=[B], order=order)
    assert asked == []
    refused(tmp_path, rows, "10 rows are answered", servers=[A], order=order)


@pytest.mark.parametrize("named", [True, False])
async def test_rows_of_another_server_are_counted_without_reading_them_as_json(tmp_path, named):
    """Of a million that took 25 seconds, to be told of one option. Those that are written differently are counted."""
    rows = [chat(number) if named else chat(number)["body"] for number in range(10)]
    await done(tmp_path, rows, servers=[A])
    read = []
    rows[4], rows[7] = {"method": "POST", "url": "/v1/chat/completions", **chat(4)}, edited(7, "new")
    if not named:
        rows[4], rows[7] = {**chat(4)["body"], "custom_id": "line-5"}, edited(7, "new")["body"]
    said = pytest.raises(ChangedError, match=r"10 rows are answered in .* by http://a/v1, .*line 1\)")
    with prepared(tmp_path, rows, Service(answer=echo), servers=[B]) as this, said:
        this.all_results.examine(this.run._lines, lambda *row: read.append(row[0]) or READ(*row))
    assert read == [5, 8]


async def test_answers_of_another_server_may_be_kept(tmp_path):
    rows = [chat(number) for number in range(10)]
    await done(tmp_path, rows[:6], servers=[A])
    for more in (4, 0):
        asked, said, _ = await done(tmp_path, rows, servers=[B], changed="keep")
        assert (len(asked), len(said)) == (more, 10)
    refused(tmp_path, rows, "6 rows are answered in .* by http://a/v1, ", servers=[B])
    refused(tmp_path, rows, "10 rows are answered in .* by http://a/v1 and http://b/v1, ", servers=[C])


async def test_servers_of_a_pool_are_one_service(tmp_path):
    """One may join or leave; and who answered long ago is not always known."""
    rows = [chat(number) for number in range(10)]
    await done(tmp_path, rows[:2])
    for end, servers in ((4, [A, B]), (6, [B]), (8, [B, C]), (10, [B])):
        asked, said, _ = await done(tmp_path, rows[:end], servers=servers)
        assert (len(asked), len(said)) == (2, end)
    refused(tmp_path, rows, "8 rows are answered", servers=["http://d/v1"])


async def test_rows_of_another_server_out_of_a_pipe_end_the_run_and_others_stay(tmp_path):
    """Nothing is known of them before they come; answers to rows that the file lacks are kept and counted."""
    rows = [chat(number) for number in range(6)]
    await done(tmp_path, rows, servers=[A])
    with prepared(tmp_path, rows[:3], Service(answer=echo), servers=[B]) as this:
        await this.run()
        assert this.run.stopped.code == "changed"
        assert this.run.stopped.message.startswith("line 1 was answered by a server that is not asked now: --changed=")
    _, said, this = await done(tmp_path, rows[:3], servers=[B], changed="rerun")
    assert (len(said), this.all_results.moved, this.all_results.elsewhere) == (6, 3, 3)


async def test_a_row_that_comes_twice_is_a_duplicate_in_every_run(tmp_path):
    rows = [chat(0), chat(1), chat(0), edited(1, "other words")]
    for _ in range(2):
        _, said, this = await done(tmp_path, rows)
        assert len(said) == 2
        assert [(error["line"], error["error"]["code"]) for error in this.errors()] == [
            (3, "duplicate_custom_id"),
            (4, "duplicate_custom_id"),
        ]


async def test_results_whose_journal_is_gone_are_known_by_their_ids(tmp_path):
    rows = [chat(number) for number in range(6)]
    await done(tmp_path, rows)
    journal_of(tmp_path / "out.jsonl").unlink()
    asked, said, _ = await done(tmp_path, rows)
    assert (asked, len(said)) == ([], 6)
    journal_of(tmp_path / "out.jsonl").unlink()
    rows[2] = edited(2, "new")
    refused(tmp_path, rows, "1 row asks something else")


async def test_results_of_another_tool_say_not_what_was_asked(tmp_path):
    """They may answer anything."""
    line = {"id": "batch_req_other", "custom_id": "row-0", "response": {"status_code": 200, "body": {}}, "error": None}
    (tmp_path / "out.jsonl").write_text(json.dumps(line, separators=(",", ":")) + "\n")
    refused(tmp_path, [chat(0)], "1 row asks something else")


# The order of the input


async def test_results_may_stand_in_the_order_of_the_input(tmp_path):
    """After a run that went on, too, and with rows that failed left out."""
    rows = [chat(number, 20 if number % 3 else 1_200) for number in range(60)]
    service = Service(Simulation(**LIMITS, latency=Latency(median=1.0, sigma=1.0)))
    with prepared(tmp_path, rows, service, order="input") as this:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(this.run)
            await anyio.sleep(1)
            this.run.stop("interrupted", "interrupted")
        some = [result["custom_id"] for result in this.results()]
    assert some == sorted(some, key=lambda name: int(name[4:]))
    assert 0 < len(some) < 60
    service = Service(Simulation(**LIMITS), [(400, {}, b"{}")])
    with prepared(tmp_path, rows, service, order="input") as this:
        this.examine()
        await this.run()
        names = [result["custom_id"] for result in this.results()]
        failed = [error["custom_id"] for error in this.errors()]
    assert len(failed) == 1
    assert names == [row["custom_id"] for row in rows if row["custom_id"] not in failed]
    with prepared(tmp_path, rows, Service(answer=echo)) as this:  # and back
        this.examine()
        await this.run()
        assert len(this.results()) == 60


# What may have been billed


async def test_rows_that_were_under_way_when_a_run_was_killed_are_sent_again_and_counted(tmp_path):
    rows = [chat(number) for number in range(60)]
    service = Service(Simulation(**LIMITS, latency=Latency(median=3.0)))
    with prepared(tmp_path, rows, service) as this:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(this.run)
            await anyio.sleep(1)
            this.run.stop("interrupted", "interrupted")
            this.run.abandon()
    under_way = len(service.asked)
    assert 10 < under_way < 60
    for policy, again in (("fail", 60 - under_way), ("rerun", under_way)):
        service = Service(answer=lambda _: (200, {}, ANSWER))
        with prepared(tmp_path, rows, service, on_ambiguous=policy) as this:
            this.examine()
            await this.run()
            assert len(service.asked) == again
            assert this.summary()["possibly_billed_twice"] == (under_way if policy == "rerun" else 0)
            assert {error["error"]["code"] for error in this.errors()} == ({"ambiguous"} if policy == "fail" else set())


async def test_rows_that_were_under_way_are_known_when_they_are_only_written_differently(tmp_path):
    """Which a program does that writes the file again: with other blanks, fields in another order, other escapes."""
    rows = [chat(number) for number in range(20)]
    with prepared(tmp_path, rows, Service()) as this:
        sent = [read_row(number, json.dumps(row).encode(), by_bytes) for number, row in enumerate(rows, 1)]
        for row in sent:
            this.all_results.sent(row, 1)
    again = [json.dumps(dict(reversed(row.items())), separators=(" ,", ": ")).encode() + b"\n" for row in rows]
    for policy in ("fail", "rerun"):
        service = Service(answer=lambda _: (200, {}, ANSWER))
        with prepared(tmp_path, again, service, on_ambiguous=policy) as this:
            this.examine()
            await this.run()
            assert len(service.asked) == this.summary()["possibly_billed_twice"] == (20 if policy == "rerun" else 0)


@pytest.mark.parametrize("corrected", ["row", "model", "line"])
async def test_rows_that_failed_are_done_alone_after_they_were_corrected(tmp_path, corrected):
    """Which is what one does with them: in the file, by an option, or where the line was no JSON at all."""
    rows = [chat(number) for number in range(20)]
    first = [json.dumps(row).encode() + b"\n" for row in rows[:15]]
    if corrected == "line":
        first[3] = first[3][:50] + b"\n"
    service = Service(
        answer=lambda body: (400, {}, b"{}") if body["messages"][0]["content"].endswith("3") else echo(body)
    )
    with prepared(tmp_path, first, service) as this:
        await this.run()
        assert len(this.errors()) == 2
    rows[3] = edited(3, "right") if corrected == "row" else rows[3]
    options = {"change": lambda body: {**body, "model": "another"}, "salt": b"another"} if corrected == "model" else {}
    with prepared(tmp_path, rows, Service(answer=echo), changed="keep", **options) as this:
        this.only_failed()
        await this.run()
        assert (this.counts.answered, this.counts.left_out, this.errors()) == (2, 5, [])


async def test_only_the_rows_that_failed_may_be_done(tmp_path):
    rows = [chat(number) for number in range(20)]
    service = Service(
        answer=lambda body: (400, {}, b"{}") if body["messages"][0]["content"].endswith("3") else echo(body)
    )
    with prepared(tmp_path, rows[:15], service) as this:
        await this.run()
        assert len(this.errors()) == 2
    with prepared(tmp_path, rows, Service(answer=echo)) as this:
        this.examine()
        this.only_failed()
        await this.run()
        assert (this.counts.answered, this.counts.left_out, this.errors()) == (2, 5, [])


def test_what_is_held_of_answered_rows_is_given_back_once_they_were_met():
    """A dict keeps the room of what is taken out of it: a hundred bytes of each row to the end of the run."""
    answered = AnsweredRows()
    answered.extend(b"".join(number.to_bytes(8, "little") * 3 for number in range(10_000)))
    before = sys.getsizeof(answered._by_line)
    assert answered.meet_all(range(1, 10_000)) == list(range(1, 10_000))
    assert sys.getsizeof(answered._by_line) == before
    answered.give_back()
    assert sys.getsizeof(answered._by_line) < before / 100
    assert (answered.meet(0), answered.meet(0), len(answered)) == (0, None, 10_000)
