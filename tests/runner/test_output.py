"""The files a run writes, and what is left of them after a crash."""

from __future__ import annotations

import errno
import json
import math
import os
import threading
import time

import pytest

from penstock.runner import agreement, files, output
from penstock.runner.output import Known, OutputError, Results, beside, journal_of, write_summary
from penstock.runner.source import Rejected, Row, dump_json, named_key


def row(custom_id, line=1, body=b"{}"):
    return Row(
        line,
        custom_id,
        "/v1/x",
        "m",
        body,
        {"requests": 1},
        named_key(f"{custom_id}".encode("utf-8", "replace") + body),
    )


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out.jsonl"


def opened(out, **options):
    return Results(out, beside(out, ".errors.jsonl"), **options)


def answered(out, *custom_ids):
    with opened(out) as results:
        for custom_id in custom_ids:
            results.answer(row(custom_id), 200, "req_1", b'{"a":1}')
    return out.read_bytes()


def eventually(check):
    """Ask again until it raises, or for a minute."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        check()
        time.sleep(0.01)


def test_a_result_is_a_line_of_the_batch_format(out):
    answered(out, "a", 7)
    first, second = (json.loads(line) for line in out.read_text().splitlines())
    assert first == {
        "id": first["id"],
        "custom_id": "a",
        "response": {"status_code": 200, "request_id": "req_1", "body": {"a": 1}},
        "error": None,
    }
    assert first["id"].startswith("batch_req_")
    assert second["custom_id"] == 7
    assert second["id"] != first["id"]


def test_the_same_row_has_the_same_id_in_every_run(out):
    """And another question under the same custom_id has another."""
    before = answered(out, "a")
    assert answered(out.with_name("other.jsonl"), "a") == before
    with opened(out.with_name("third.jsonl")) as results:
        results.answer(row("a", body=b'{"b":1}'), 200, "req_1", b'{"a":1}')
    assert out.with_name("third.jsonl").read_bytes()[:40] != before[:40]


def test_a_result_is_with_the_system_at_once(out):
    """Killing the process after that loses nothing."""
    with opened(out) as results:
        results.answer(row("a"), 200, None, b"{}")
        assert out.read_bytes().endswith(b"\n")


def test_an_error_has_a_line_a_name_a_code_and_a_message(out):
    with opened(out) as results:
        results.fail(row("a", 3), "http_400", "no", status_code=400)
        results.fail(Rejected(4, None, "invalid_json", "not JSON"), "invalid_json", "not JSON")
    first, second = map(json.loads, beside(out, ".errors.jsonl").read_text().splitlines())
    assert first == {"line": 3, "custom_id": "a", "error": {"code": "http_400", "message": "no", "status_code": 400}}
    assert second == {"line": 4, "custom_id": None, "error": {"code": "invalid_json", "message": "not JSON"}}


def test_a_run_goes_on_where_the_last_one_ended(out):
    before = answered(out, "a", 7, "\ud800")
    with opened(out) as results:
        assert results.found == 3
        assert [results.known(row(name)) for name in ("a", 7, "\ud800", "b")] == [Known.ANSWERED] * 3 + [Known.NEW]
        assert results.known(row("a")) is Known.DUPLICATE
        results.answer(row("b"), 200, None, b"{}")
    assert out.read_bytes().startswith(before)
    assert len(out.read_bytes().splitlines()) == 4


def test_errors_are_begun_anew(out):
    """Their rows have no result, so they are tried again; a row that succeeds then is in no errors file."""
    with opened(out) as results:
        results.fail(row("a"), "x", "y")
    with opened(out):
        pass
    assert beside(out, ".errors.jsonl").read_bytes() == b""


@pytest.mark.parametrize("content", [b"dear diary\n", b'{"custom_id": "a", "body": {}}\n'], ids=["text", "requests"])
def test_errors_are_not_written_over_something_else(out, content):
    """`--errors requests.jsonl` by mistake must not cost the requests."""
    errors = beside(out, ".errors.jsonl")
    errors.write_bytes(content)
    with pytest.raises(OutputError, match="its line 1 is not an error of a run: give another --errors, or --overwrite"):
        opened(out)
    assert errors.read_bytes() == content
    with opened(out, overwrite=True):
        assert errors.read_bytes() == b""


@pytest.mark.parametrize("content", [b'{"line":7,"cus', b"{", b"\0" * 5_000], ids=["half a line", "a brace", "zeros"])
def test_errors_that_a_killed_run_left_are_begun_anew(out, content):
    """A power failure may leave zeros."""
    beside(out, ".errors.jsonl").write_bytes(content)
    with opened(out):
        assert beside(out, ".errors.jsonl").read_bytes() == b""


def test_two_runs_do_not_write_one_errors_file(out):
    """Under other results, too: the second would drop the errors of the first."""
    with opened(out) as results:
        results.fail(row("a"), "x", "y")
        with pytest.raises(
            OutputError, match=r"another run is writing .*errors\.jsonl: wait for it, or give another --errors"
        ):
            output.Results(out.with_name("other.jsonl"), beside(out, ".errors.jsonl"))
    assert len(beside(out, ".errors.jsonl").read_bytes().splitlines()) == 1


def test_overwrite_begins_anew(out):
    with opened(out) as results:
        assert results.idle == math.inf
    answered(out, "a")
    with opened(out, overwrite=True) as results:
        assert results.found == 0
        assert results.known(row("a")) is Known.NEW
        assert results.idle < 60  # the limits are used up all the same
    assert out.read_bytes() == b""


@pytest.mark.parametrize("journal", ["there", "gone"])
def test_a_torn_last_line_is_made_whole_wherever_it_was_torn(out, journal):
    """Whatever the instruction at which the last run was killed, the next one finds whole lines and loses none of them.

    What the results file lacks is in the journal; without it, what is whole in the results file counts.
    """
    whole = answered(out, "a", "b")
    kept_journal = journal_of(out).read_bytes()
    first = whole.index(b"\n") + 1
    for length in [*range(0, len(whole), 7), first - 1, first, first + 1, len(whole) - 1]:
        out.write_bytes(whole[:length])
        journal_of(out).unlink()
        if journal == "there":
            journal_of(out).write_bytes(kept_journal)
        with opened(out) as results:
            results.answer(row("c"), 200, None, b"{}")
        kept = (
            0 if length < first - 1 else 1 if length < len(whole) - 1 else 2
        )  # a line that lacks but its end is whole
        expected = ["a", "b", "c"] if journal == "there" else [*"ab"[:kept], "c"]
        assert [json.loads(line)["custom_id"] for line in out.read_bytes().splitlines()] == expected


def test_a_journal_that_was_torn_anywhere_loses_nothing_that_the_results_hold(out):
    """The journal is written first, but a power failure may keep the later of two files."""
    whole = answered(out, "a", "b")
    journal = journal_of(out).read_bytes()
    for length in [*range(0, len(journal), 11), len(journal) - 1]:
        out.write_bytes(whole)
        journal_of(out).write_bytes(journal[:length])
        with opened(out) as results:
            assert [results.known(row(name)) for name in "abc"] == [Known.ANSWERED, Known.ANSWERED, Known.NEW]
            results.answer(row("c"), 200, None, b"{}")
        with opened(out) as results:
            assert results.found == 3
        assert out.read_bytes().startswith(whole)


@pytest.mark.parametrize("order", ["completed", "input"])
def test_a_journal_that_was_damaged_anywhere_costs_no_answer_that_the_results_hold(out, order):
    """Each bit of it may turn over: the file as it was is kept, and every row has one answer."""
    whole = answered(out, "a", "b")
    journal = journal_of(out).read_bytes()
    head = journal.index(b"\n") + 1
    for at in range(head, len(journal), 7):
        out.write_bytes(whole)
        damaged = bytearray(journal)
        damaged[at] ^= (1, 2, 4, 8, 16, 64, 128)[at % 7]
        journal_of(out).write_bytes(damaged)
        with opened(out, order=order) as results:
            assert [results.known(row(name)) for name in "abc"] == [Known.ANSWERED, Known.ANSWERED, Known.NEW]
            results.answer(row("c"), 200, None, b"{}")
        if results.damaged is not None:  # neither the last line end nor the words around a checksum
            assert results.damaged[1].read_bytes() == damaged
        with opened(out) as results:
            assert (results.found, results.damaged) == (3, None)
        assert sorted(json.loads(line)["custom_id"] for line in out.read_text().splitlines()) == ["a", "b", "c"]


@pytest.mark.parametrize("damage", [b"\n", b"x\n", b'{"sent":"12"}\n', b"\0" * 100 + b"\n", b"\xff" * 300 + b"\n"])
def test_a_line_that_is_no_record_costs_nothing(out, damage):
    answered(out, "a", "b")
    journal = journal_of(out).read_bytes()
    second = journal.index(b"\n", journal.index(b"\n") + 1) + 1
    journal_of(out).write_bytes(journal[:second] + damage + journal[second:])
    with opened(out) as results:
        assert (results.found, results.damaged[0]) == (2, 1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"my notes, the last of them without an end", "is not a journal of a run"),
        (b"a\nb", "is not a journal of a run"),
        (b'{"journal":"penstock","version":1}\n{"sent', "of another version of penstock"),
    ],
)
def test_a_file_that_is_no_journal_is_left_as_it_is(out, tmp_path, content, message):
    (tmp_path / "notes").write_bytes(content)
    with pytest.raises(OutputError, match=message):
        opened(out, journal=tmp_path / "notes")
    assert (tmp_path / "notes").read_bytes() == content


def test_a_duplicate_does_not_settle_what_became_of_the_row_that_it_repeats(out):
    """They share all their keys, and the first may be on its way when the run is killed."""
    with opened(out) as results:
        results.sent(row("a"), 1)
        results.fail(row("a"), "duplicate_custom_id", "an earlier line has it too")
    with opened(out) as results:
        assert results.may_be_billed(row("a"))


def test_results_in_the_order_of_the_input_are_where_they_were_and_nobody_else_may_read_them(tmp_path):
    """A link stays a link, and a private file private."""
    real, out = tmp_path / "real.jsonl", tmp_path / "out.jsonl"
    real.touch(mode=0o600)
    out.symlink_to(real)
    with opened(out, order="input") as results:
        results.answer(row("a"), 200, None, b"{}")
        results.finish()
    assert out.is_symlink()
    assert real.stat().st_mode & 0o777 == 0o600
    assert json.loads(real.read_text())["custom_id"] == "a"


@pytest.mark.parametrize("instant", ["before", "after"])
@pytest.mark.parametrize("order", ["completed", "input"])
def test_a_kill_at_the_instant_at_which_results_are_in_order_is_no_change_by_others(out, monkeypatch, instant, order):
    def killed(draft, path):
        if instant == "after":
            os.rename(draft, path)  # noqa: PTH104 - that one is this
        raise KeyboardInterrupt

    answered(out, "b", "a")
    with opened(out, order="input") as results:
        for line, name in enumerate("ab", 1):
            results.known(row(name, line))
        monkeypatch.setattr(files.Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            results.finish()
    monkeypatch.undo()
    with opened(out, order=order) as results:
        assert results.found == 2
        for line, name in enumerate("ab", 1):
            results.known(row(name, line))
        results.finish()
    names = [json.loads(line)["custom_id"] for line in out.read_text().splitlines()]
    assert names == (["a", "b"] if order == "input" else ["b", "a"])


def test_what_a_kill_left_while_results_were_put_in_order_goes_with_the_next_run(out, monkeypatch):
    """They may be as large as the results, and their names begin with a dot."""

    def killed(*_):
        raise KeyboardInterrupt

    with opened(out, order="input") as results:
        results.answer(row("a"), 200, None, b"{}")
        monkeypatch.setattr(files.Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            results.finish()
    monkeypatch.undo()
    (left,) = set(out.parent.glob(".out.jsonl.*"))
    assert left.stat().st_size > 0
    others = [".out.jsonl.backup", ".out.jsonl.00112233445g", ".other.jsonl.001122334455", "out.jsonl.001122334455"]
    for name in others:
        (out.parent / name).write_text("{}")
    (out.parent / ".out.jsonl.ffeeddccbbaa").write_text("dear diary")
    being_written, descriptor = files.create_beside(out)
    with opened(out, order="input") as results:
        assert results.found == 1
    assert not left.exists()
    assert all((out.parent / name).exists() for name in [*others, ".out.jsonl.ffeeddccbbaa", being_written.name])
    os.close(descriptor)
    with opened(out, order="input"):
        assert not being_written.exists()


@pytest.mark.parametrize("order", ["completed", "input"])
def test_results_whose_journal_is_gone_are_taken_over_in_every_order(out, order):
    """However long they are."""
    with opened(out) as results:
        for name in "ab":
            results.answer(row(name), 200, None, dump_json({"text": name * 200_000}))
    whole = out.read_bytes()
    journal_of(out).unlink()
    with opened(out, order=order) as results:
        assert [results.known(row(name, line)) for line, name in enumerate("ba", 1)] == [Known.ANSWERED] * 2
        results.finish()
    lines = whole.splitlines(keepends=True)
    assert out.read_bytes().splitlines(keepends=True) == (lines if order == "completed" else lines[::-1])


def test_results_that_were_deleted_are_written_again_out_of_the_journal(out):
    """They were paid for."""
    whole = answered(out, "a", "b")
    out.unlink()
    with opened(out) as results:
        assert (results.found, results.restored) == (2, 2)
    assert out.read_bytes() == whole


@pytest.mark.parametrize("edit", ["a line is gone", "a word is changed", "lines are swapped", "others"])
def test_results_that_somebody_changed_are_left_alone_and_named(out, edit):
    whole = answered(out, "a", "b", "c")
    lines = whole.splitlines(keepends=True)
    content = {
        "a line is gone": lines[0] + lines[2],
        "a word is changed": whole[:-30] + b"x" + whole[-29:],
        "lines are swapped": lines[2] + lines[1] + lines[0],
        "others": b"dear diary\n",
    }[edit]
    out.write_bytes(content)
    with pytest.raises(
        OutputError, match=r"was changed since the last run, so that it does not match out\.jsonl\.journal"
    ):
        opened(out)
    assert out.read_bytes() == content


@pytest.mark.parametrize(("before", "order"), [("input", "input"), ("input", "completed"), ("completed", "input")])
@pytest.mark.parametrize("edit", ["others", "others and more", "a foreign end", "results of others"])
def test_results_that_somebody_changed_are_not_put_in_order_either(out, edit, order, before):
    """They are made anew out of the journal at the end, and would be gone without a word."""
    with opened(out, order=before) as results:
        for line, name in enumerate("abc", 1):
            results.answer(row(name, line), 200, None, b"{}")
        results.finish()
    whole = out.read_bytes()
    content = {
        "others": b"dear diary\n",
        "others and more": b"dear diary\n" + whole,
        "a foreign end": whole + b"read on tomorrow\n",
        "results of others": whole + whole.replace(b'"a"', b'"other"'),
    }[edit]
    out.write_bytes(content)
    way_out = "1 answer that" if edit == "results of others" else "was changed since the last run"
    with pytest.raises(OutputError, match=way_out):
        opened(out, order=order)
    assert out.read_bytes() == content


@pytest.mark.parametrize("order", ["completed", "input"])
@pytest.mark.parametrize("lost", [None, b'"custom_id":"a"'])
def test_the_way_out_of_a_journal_that_is_older_than_the_results_loses_no_answer(out, order, lost):
    """It is a copy of last week, or was cut: the results would not be "written again as they were"."""
    journal = journal_of(out)
    with opened(out, order="input") as results:
        results.answer(row("a", 1), 200, None, b"{}")
        results.finish()
    older = journal.read_bytes()
    with opened(out, order="input") as results:
        for line, name in enumerate("bc", 2):
            results.answer(row(name, line), 200, None, b"{}")
        results.known(row("a", 1))
        results.finish()
    journal.write_bytes(older)
    kept = [line for line in out.read_bytes().splitlines(keepends=True) if lost is None or lost not in line]
    out.write_bytes(b"".join(kept))
    with pytest.raises(OutputError) as caught:
        opened(out, order=order)
    lacks = ", which then are 1 answer less, those that only out.jsonl.journal has" if lost else ""
    assert str(caught.value) == (
        f"{out} holds 2 answers that out.jsonl.journal does not: move out.jsonl.journal away, and the answers in "
        f"out.jsonl count instead{lacks}; or --overwrite to start over"
    )
    journal.unlink()
    with opened(out, order=order) as results:
        assert results.found == len(kept)


@pytest.mark.parametrize("order", ["completed", "input"])
def test_a_row_whose_answer_the_results_hold_was_not_under_way(out, order):
    """Its record in the journal was lost: what became of the row is known all the same."""
    with opened(out) as results:
        for name in "ab":
            results.sent(row(name), 1)
            results.answer(row(name), 200, None, b"{}")
        results.sent(row("c"), 1)
    journal = journal_of(out).read_bytes()
    journal_of(out).write_bytes(b"".join(line for line in journal.splitlines(keepends=True) if b'"done"' not in line))
    for _ in range(2):
        with opened(out, order=order) as results:
            assert (results.found, results.ambiguous) == (2, 1)
            assert [results.may_be_billed(row(name)) for name in "abc"] == [False, False, True]


@pytest.mark.parametrize("looked_at", [agreement._LAST, 50], ids=["short", "longer than what is looked at"])
@pytest.mark.parametrize("left", [0, 1, 7, -7, -1])
def test_half_of_what_was_written_last_is_no_change(out, monkeypatch, left, looked_at):
    """A run was killed, and the next one puts the results in order."""
    monkeypatch.setattr(agreement, "_LAST", looked_at)
    whole = answered(out, "a", "b")
    out.write_bytes(whole[:left])
    with opened(out, order="input") as results:
        assert results.found == 2


def test_a_pipe_in_the_place_of_the_journal_is_refused(out):
    """To open it would wait for a reader, for ever."""
    os.mkfifo(journal_of(out))
    with pytest.raises(
        OutputError, match=r"out\.jsonl\.journal is not a regular file, so nothing could be read there again"
    ):
        opened(out)


@pytest.mark.parametrize(
    "tail",
    [b"\x00" * 5_000, b"\xff\xfe", b'{"id":"batch_req_', b"[" * 100_000],
    ids=["zeros", "bytes", "half", "nested"],
)
def test_rubbish_at_the_end_is_taken_off(out, tail):
    """A power failure may leave zeros where the last line would be."""
    whole = answered(out, "a")
    out.write_bytes(whole + tail)
    with opened(out) as results:
        assert results.repaired == len(tail)
    assert out.read_bytes() == whole


@pytest.mark.parametrize(
    "content",
    [b"hello\n", b"hello", b'{"custom_id": "a", "body": {}}\n', b'{"custom_id": "a", "body": {}}', b"\x00", b"[]\n"],
    ids=["text", "text without end", "requests", "requests without end", "binary", "JSON"],
)
def test_a_file_of_something_else_is_left_alone(out, content):
    """`-o requests.jsonl` by mistake must not cost the requests."""
    out.write_bytes(content)
    with pytest.raises(OutputError, match="its line 1 is not a result of a run: give another -o, or --overwrite"):
        opened(out)
    assert out.read_bytes() == content


@pytest.mark.parametrize("journal", ["there", "gone", "damaged"])
@pytest.mark.parametrize("line", [b"hello", b"[1]", b'{"custom_id":"c"}', b'{"custom_id":null,"response":{}}'])
def test_a_foreign_line_in_the_middle_is_not_repaired(out, journal, line):
    whole = answered(out, "a", "b")
    content = whole.replace(b"\n", b"\n" + line + b"\n", 1)
    out.write_bytes(content)
    if journal == "gone":
        journal_of(out).unlink()
    elif journal == "damaged":
        journal_of(out).write_bytes(journal_of(out).read_bytes().replace(b'"done"', b'"dune"', 1))
    with pytest.raises(OutputError, match="was changed since" if journal == "there" else "its line 2 is not a result"):
        opened(out)
    assert out.read_bytes() == content


def test_a_foreign_line_behind_all_answers_is_named_and_no_answer_is_to_be_given_up_for_it(out):
    """The way out is not the one that throws away what was paid for."""
    whole = answered(out, "a", "b")
    out.write_bytes(whole + b"read on tomorrow\n")
    with pytest.raises(OutputError, match=r"its line 3 is not a result of a run: take that line out, or"):
        opened(out)
    out.write_bytes(whole)
    with opened(out) as results:
        assert results.found == 2


def test_two_runs_do_not_write_one_file(out):
    with opened(out), pytest.raises(OutputError, match=r"another run is writing .*out\.jsonl: wait for it"):
        opened(out)
    with opened(out):
        pass


def test_a_full_disk_leaves_whole_lines(out, monkeypatch):
    """What fitted of the last line is taken off again, and the error says what happened."""
    whole = answered(out, "a")
    with opened(out) as results:
        write = os.write

        def full(file, data):
            if len(data) > 10:
                return write(file, data[:10])
            raise OSError(errno.ENOSPC, "No space left on device")

        def half(file, data):
            monkeypatch.setattr(os, "write", lambda *_: full(file, b""))
            return write(file, data[:10])

        monkeypatch.setattr(os, "write", half)
        with pytest.raises(OutputError, match=r"cannot write .*out\.jsonl.*: No space left on device"):
            results.answer(row("b"), 200, None, b"{}")
    assert out.read_bytes() == whole


@pytest.mark.parametrize("where", ["missing/out.jsonl", "."])
def test_a_file_that_cannot_be_written_is_named(tmp_path, where):
    with pytest.raises(OutputError, match=r"cannot write .*: (No such file or directory|Is a directory)"):
        opened(tmp_path / where)


def test_a_summary_is_there_as_a_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "out.summary.json"
    write_summary(path, {"rows": 1})
    monkeypatch.setattr(files.json, "dumps", lambda *_, **__: "\ud800")
    with pytest.raises(UnicodeEncodeError):
        write_summary(path, {"rows": 2})
    assert json.loads(path.read_text()) == {"rows": 1}


def test_no_two_outputs_share_a_file_beside_them():
    """`-o results.json` and `-o results.jsonl` are two runs."""
    names = ["a/b.jsonl", "b", "b.json", "b.x.jsonl", "b.x", ".jsonl"]
    assert [str(beside(output.Path(name), ".errors.jsonl")) for name in names] == [
        "a/b.errors.jsonl",
        "b-errors.jsonl",
        "b.json-errors.jsonl",
        "b.x.errors.jsonl",
        "b.x-errors.jsonl",
        ".jsonl-errors.jsonl",
    ]
    assert len({journal_of(output.Path(name)) for name in names}) == len(names)


def test_results_are_plain_json(out):
    """Every line parses on its own, also with what ends lines elsewhere inside."""
    with opened(out) as results:
        results.answer(row("a\u2028b\x85"), 200, None, dump_json({"text": "\u2029\n\r"}))
    (line,) = out.read_text(encoding="utf-8").splitlines()
    assert json.loads(line)["custom_id"] == "a\u2028b\x85"


def test_a_disk_that_loses_what_it_was_given_is_named(out, monkeypatch):
    """Some say so only at the end."""

    def lost(file):
        raise OSError(errno.EIO, "Input/output error")

    results = opened(out)
    monkeypatch.setattr(os, "fsync", lost)
    with pytest.raises(OutputError, match=r"cannot write .*: Input/output error"):
        results.close()


def test_a_disk_that_loses_what_it_was_given_meanwhile_ends_the_run(out, monkeypatch):
    """What would be sent from then on would be paid for and not kept."""

    def lost(file):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("penstock.runner.journal.sync_data", lost)
    with opened(out) as results, pytest.raises(OutputError, match=r"cannot write .*out\.jsonl: Input/output error"):
        for number in range(6_000):
            results.answer(row(f"row-{number}"), 200, None, b"{}")
            time.sleep(0.01)


@pytest.mark.parametrize("order", ["completed", "input"])
@pytest.mark.parametrize("kind", ["pipe", "file"])
def test_results_go_once_to_where_others_opened_it(tmp_path, monkeypatch, kind, order):
    """They were written twice into a pipe, and in a shell's `>` into a file named `-`. What was there stays."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(output, "BACKLOG", 10)
    reading, writing = os.pipe() if kind == "pipe" else (os.open("there", os.O_RDONLY | os.O_CREAT), -1)
    if kind == "file":
        (tmp_path / "there").write_text("before\n")
        writing = os.open("there", os.O_WRONLY | os.O_APPEND)
    options = {"journal": tmp_path / "j", "order": order, "descriptor": writing, "errors_descriptor": writing}
    names = {"completed": ["b", "a", "c"], "input": ["a", "b", "c"]}[order]
    for new in ("ba", "c"):  # the second run knows what the first one answered
        with Results(output.Path("-"), output.Path("standard error"), overwrite=new == "ba", **options) as results:
            for line, name in enumerate("abc", 1):
                results.known(row(name, line))
            for name in new:
                results.answer(row(name, " abc".index(name)), 200, None, b"{}")
            results.finish()
        said = os.read(reading, 65_536).decode().removeprefix("before\n").splitlines()
        wanted = names[:2] if new == "ba" else names[2:] if order == "completed" else names
        assert [json.loads(line)["custom_id"] for line in said] == wanted
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["j"] + ["there"] * (kind == "file"))
    os.close(reading)
    os.close(writing)


@pytest.mark.parametrize("order", ["completed", "input"])
@pytest.mark.parametrize(("results_go", "kept"), [("into a file", True), ("into a pipe", False)])
def test_answers_are_kept_although_nobody_reads_the_errors_any_more(out, results_go, kept, order):
    """Those under way are waited for then."""
    (end, into), (results_end, results_into) = os.pipe(), os.pipe()
    os.close(end)
    descriptor = None if kept else results_into
    with opened(
        out, errors_descriptor=into, descriptor=descriptor, order="completed" if not kept else order
    ) as results:
        results.fail(Rejected(1, None, "invalid_json", "it is none"), "invalid_json", "it is none")
        with pytest.raises(OutputError, match="Broken pipe"):
            eventually(results.check)
        assert results.keeps == kept
        results.answer(row("a"), 200, None, b"{}")
    for descriptor in (into, results_end, results_into):
        os.close(descriptor)


def test_errors_may_go_to_a_pipe(out):
    reading, writing = os.pipe()
    with Results(out, output.Path(f"/dev/fd/{writing}")) as results:
        results.fail(row("a"), "x", "y")
    assert json.loads(os.read(reading, 1_000))["custom_id"] == "a"
    os.close(reading)
    os.close(writing)


def test_what_a_pipe_has_not_taken_yet_is_written_before_it_is_closed(out):
    """Also where a run ends with an error, and nothing waits for the reader before."""
    reading, writing = os.pipe()
    read = []

    def slowly():
        time.sleep(0.2)
        while chunk := os.read(reading, 65_536):
            read.append(chunk)

    reader = threading.Thread(target=slowly)
    reader.start()
    with Results(out, output.Path(f"/dev/fd/{writing}")) as results:
        os.close(writing)
        for number in range(5):
            results.fail(row(f"row-{number}"), "x", "y" * 100_000)  # more than a pipe holds
    reader.join(60)
    os.close(reading)
    assert [json.loads(line)["custom_id"] for line in b"".join(read).splitlines()] == [f"row-{n}" for n in range(5)]
