"""Runs that are interrupted, killed or cannot write any more, as processes of their own."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import struct
import subprocess
import sys
import termios

import pytest

from penstock import simulator
from penstock.cli import main
from penstock.simulator import Latency, Simulation
from tests.cli.commands import KEY, LIMITS, chat, count, lines_of, simulated, started, wait_for, write


@pytest.fixture
def a_terminal_that_may_hang_up():
    """Below `nohup` the signal is ignored, by us as well."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("a_terminal_that_may_hang_up")
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_run_keeps_what_came_back_and_goes_on_later(folder, monkeypatch, capsys, sent):
    """What was in flight ends and is on disk, nothing else is sent, exit code 130; then the same command does the
    rest."""
    write(folder, range(60))
    with simulator.serve(Simulation(latency=Latency(median=0.3))) as server:
        command = ["run", "in.jsonl", "-o", "out.jsonl", "--base-url", server.base_url, "--limits"]
        process = started(*command, "requests=1200/min burst 5")
        wait_for(lambda: server.statistics().answered >= 5)
        process.send_signal(sent)
        out, err = process.communicate()
        assert process.returncode == 130, err
        assert "penstock: interrupted: waiting for" in err
        assert "Traceback" not in err
        assert "untouched" in out
        answered = server.statistics().answered
        assert 5 <= answered < 60
        assert count(folder / "out.jsonl") == answered == server.statistics().admitted
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        assert main([*command, "requests=6000/min"]) == 0
        assert f"{answered} rows are answered in out.jsonl already and are skipped" in capsys.readouterr().err
        assert server.statistics().admitted == 60
    assert len({result["custom_id"] for result in lines_of(folder / "out.jsonl")}) == count(folder / "out.jsonl") == 60


def test_a_second_interrupt_waits_for_nothing(folder):
    with simulator.serve(Simulation(latency=Latency(median=60.0))) as server:
        process = started("run", "in.jsonl", "-o", "out.jsonl", "--base-url", server.base_url, "--limits", LIMITS)
        wait_for(lambda: server.statistics().in_flight == 20)
        process.send_signal(signal.SIGINT)
        while "interrupted" not in (said := process.stderr.readline()):
            pass  # how far it is, on a machine that takes seconds until here
        assert said == "penstock: interrupted: waiting for 20 answers; Ctrl-C again drops them\n"
        process.send_signal(signal.SIGINT)
        err = process.communicate(timeout=180)[1]
        assert (process.returncode, err) == (130, "")
    assert (folder / "out.jsonl").read_bytes() == (folder / "out.errors.jsonl").read_bytes() == b""


def test_an_interrupt_ends_the_wait_for_a_silent_pipe(tmp_path):
    """Standard input may stay open for ever."""
    out = tmp_path / "out.jsonl"
    process = started("run", "-", "-o", str(out), "--simulate", "--latency", "0.01", stdin=subprocess.PIPE)
    process.stdin.write(json.dumps(chat(0)) + "\n")
    process.stdin.flush()
    wait_for(lambda: count(out) == 1)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=180) == 130
    process.communicate()


def test_a_killed_run_goes_on_where_it_was(folder, monkeypatch, capsys):
    """kill -9 in the middle, and a torn last line on top: every row is answered once in the end, nothing answered is
    lost."""
    write(folder, range(80))
    out = folder / "out.jsonl"
    with simulator.serve(Simulation(latency=Latency(median=0.05))) as server:
        command = ["run", "in.jsonl", "-o", "out.jsonl", "--base-url", server.base_url, "--limits"]
        process = started(*command, "requests=3000/min burst 5")
        wait_for(lambda: count(out) >= 20)
        process.kill()
        process.communicate()
        before = out.read_bytes()
        kept, torn = before.count(b"\n"), before.rpartition(b"\n")[2]
        assert kept >= 20
        with out.open("ab") as file:
            file.write(b'{"id":"batch_req_0123')
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        assert main([*command, "requests=6000/min"]) == 0
        err = capsys.readouterr().err
        assert f"ended in the middle of a line: its last {len(torn) + 21} bytes are taken off" in err
        # What was in flight when it was killed is sent again, and nothing else.
        assert json.loads((folder / "out.summary.json").read_text())["sent"] == 80 - kept
    assert out.read_bytes().startswith(before[: len(before) - len(torn)])
    assert len({result["custom_id"] for result in lines_of(out)}) == count(out) == 80


# Results that cannot be written any more


@pytest.mark.parametrize("out", ["-", "/proc/self/fd/1"])
def test_a_reader_that_ends_ends_the_run(folder, out):
    """`| head -1`: at once, and not only by kill -9."""
    write(folder, range(2_000))
    process = started("run", "in.jsonl", "-o", out, "--errors", "e.jsonl", "--simulate", "--latency", "0.01")
    first = process.stdout.readline()
    process.stdout.close()
    assert process.wait(timeout=180) == 2
    assert json.loads(first)["response"]["status_code"] == 200
    assert "Broken pipe" in process.stderr.read()
    process.stderr.close()


def waiting_in(pipe):
    """Bytes that nobody has read so far."""
    return struct.unpack("i", fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)))[0]


def test_what_comes_back_after_a_reader_ended_is_in_the_journal(folder, monkeypatch):
    """It is paid for, and with a journal the next run goes on from it."""
    write(folder, range(400))
    os.mkfifo(folder / "pipe")
    reader = os.open(folder / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    with simulator.serve(Simulation(latency=Latency(median=0.5, sigma=0.1))) as server:
        command = ["run", "in.jsonl", "--base-url", server.base_url, "--max-in-flight", "40", "--journal", "j"]
        process = started(*command, "-o", "pipe", "--errors", "e")
        wait_for(lambda: server.statistics().admitted >= 40 or process.poll() is not None)
        os.close(reader)
        assert process.wait(timeout=180) == 2
        said = process.stdout.read() + process.stderr.read()
        assert "Broken pipe" in said
        assert " in doubt" not in said
        process.stdout.close()
        process.stderr.close()
        before = server.statistics().answered
        assert 40 <= before < 400
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        assert main([*command, "-o", "out.jsonl", "--errors", "e", "--quiet"]) == 0
        assert count(folder / "out.jsonl") == server.statistics().admitted == 400


def test_a_reader_that_stops_reading_does_not_keep_an_interrupt_away(folder):
    write(folder, range(2_000))
    process = started("run", "in.jsonl", "-o", "-", "--simulate", "--latency", "0.01")
    process.stdout.readline()
    wait_for(lambda: waiting_in(process.stdout) > 60_000)
    process.send_signal(signal.SIGINT)
    while "interrupted: waiting for" not in process.stderr.readline():
        pass
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=180) == 130
    process.stdout.close()
    process.stderr.close()


def test_a_dash_is_standard_output(folder):
    """And errors are on standard error then."""
    write(folder, range(3), b"{torn\n")
    done = subprocess.run(
        [sys.executable, "-m", "penstock", "run", "in.jsonl", "-o", "-", "--simulate", "--latency", "0.01", "--quiet"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 3
    assert len(done.stdout.splitlines()) == 3
    assert json.loads(done.stderr)["error"]["code"] == "invalid_json"
    assert sorted(file.name for file in folder.iterdir()) == ["in.jsonl"]


@pytest.mark.parametrize(
    ("what", "name", "order"),
    [
        ("deleted", "out.jsonl", "completed"),
        ("deleted", "out.jsonl", "input"),
        ("deleted", "out.jsonl.journal", "completed"),
        ("deleted", "out.jsonl.journal", "input"),
        ("replaced", "out.jsonl", "completed"),
        ("replaced", "out.jsonl", "input"),
        ("cut", "out.jsonl", "completed"),
    ],
)
def test_files_that_others_take_away_end_the_run_and_nothing_is_lost(folder, monkeypatch, capsys, name, what, order):
    """Exit code 2; the same command goes on, and nothing that was answered is asked again."""
    write(folder, range(400))
    with simulator.serve(Simulation(latency=Latency(median=0.05))) as server:
        command = ["run", "in.jsonl", "-o", "out.jsonl", "--base-url", server.base_url, "--order", order, "--limits"]
        process = started(*command, "requests=3000/min burst 5", "--max-in-flight", "5")
        wait_for(lambda: server.statistics().answered >= 20)
        if what == "deleted":
            (folder / name).unlink()
        elif what == "replaced":
            (folder / "new").write_text("something else\n")
            (folder / "new").rename(folder / name)
        else:
            os.truncate(folder / name, 20)
        said = process.communicate(timeout=180)
        assert process.returncode == 2, said
        assert name in said[1]
        if what != "deleted":
            (folder / name).unlink()
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        code = main([*command, "requests=60000/min"])
        assert code == 0, capsys.readouterr()
        assert (
            len({result["custom_id"] for result in lines_of(folder / "out.jsonl")})
            == count(folder / "out.jsonl")
            == 400
        )
        assert server.statistics().admitted <= 400 + 5


@pytest.mark.parametrize("order", ["completed", "input"])
@pytest.mark.parametrize("gone", ["files", "folder"])
def test_answers_that_come_after_all_files_were_deleted_are_kept_too(folder, monkeypatch, gone, order):
    """`rm results*`, or the folder: what was in flight was paid for, and the same command finds it."""
    write(folder, range(400))
    (folder / "sub").mkdir()
    with simulator.serve(Simulation(latency=Latency(median=1.5, sigma=0.1))) as server:
        command = ["run", "in.jsonl", "-o", "sub/out.jsonl", "--base-url", server.base_url, "--order", order]
        process = started(*command, "--max-in-flight", "40")
        wait_for(lambda: server.statistics().answered >= 40)
        for file in (folder / "sub").iterdir():
            file.unlink()
        if gone == "folder":
            (folder / "sub").rmdir()
        said = process.communicate(timeout=180)[1]
        assert process.returncode == 2
        assert "out.jsonl.journal was deleted while this run was writing it" in said
        assert 40 < server.statistics().answered < 400
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        assert main([*command, "--quiet"]) == 0
        assert count(folder / "sub/out.jsonl") == server.statistics().admitted == 400


def test_two_runs_that_share_a_stem_share_nothing(folder):
    for out in ("out.jsonl", "out.json", "out"):
        assert main(["run", "in.jsonl", "-o", out, "--simulate", "--latency", "0.01", "--quiet"]) == 0
    names = [file.name for file in folder.iterdir()]
    assert len(names) == 1 + 3 * 4


def test_a_name_that_was_laid_out_for_the_summary_is_not_followed(folder):
    (folder / "precious").write_text("mine")
    for name in ("out.summary.json.tmp", "out.summary.json"):
        (folder / name).symlink_to("precious")
    assert simulated("--quiet") == 0
    assert (folder / "precious").read_text() == "mine"
    assert json.loads((folder / "out.summary.json").read_text())["answered"] == 20


def test_whatever_the_instant_of_a_kill_every_row_is_answered_once(folder, monkeypatch):
    """And nothing is sent twice but what was under way."""
    write(folder, range(400))
    with simulator.serve(Simulation(latency=Latency(median=0.02))) as server:
        command = [
            "run",
            "in.jsonl",
            "-o",
            "out.jsonl",
            "--base-url",
            server.base_url,
            "--limits",
            "requests=60000/min burst 50",
        ]
        for _ in range(3):
            before = count(folder / "out.jsonl")
            process = started(*command)
            wait_for(lambda: count(folder / "out.jsonl") > before + 40 or process.poll() is not None)  # noqa: B023
            process.kill()
            process.communicate()
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        assert main([*command, "--quiet"]) == 0
        ambiguous = server.statistics().admitted - 400
        assert (
            len({result["custom_id"] for result in lines_of(folder / "out.jsonl")})
            == count(folder / "out.jsonl")
            == 400
        )
        journal = (folder / "out.jsonl.journal").read_text().splitlines()
        sent = [json.loads(line)["sent"] for line in journal if line.startswith('{"sent"')]
        assert len(sent) - len(set(sent)) >= ambiguous
