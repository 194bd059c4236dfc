"""What the machine and the network do to a run: processes are stopped, disks fill up, servers come back as another process."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from penstock import simulator
from penstock.cli import main
from penstock.simulator import Latency, Simulation
from tests.cli.commands import KEY, LIMITS, count, lines_of, started, wait_for, write


def names_in(path):
    """The rows that are answered, each once."""
    names = [result["custom_id"] for result in lines_of(path)]
    assert len(names) == len(set(names))
    return set(names)


def test_a_run_that_is_stopped_for_longer_than_its_time_out_loses_no_answer(folder):
    """SIGSTOP and SIGCONT. What was answered meanwhile was paid for, so nothing is sent again."""
    write(folder, range(60))
    with simulator.serve(Simulation(latency=Latency(median=1.0))) as server:
        process = started(
            "run", "in.jsonl", "-o", "out.jsonl", "--base-url", server.base_url, "--limits", LIMITS, "--timeout", "3"
        )
        wait_for(lambda: server.statistics().admitted == 60)
        process.send_signal(signal.SIGSTOP)
        wait_for(lambda: server.statistics().answered == 60)
        time.sleep(4)
        process.send_signal(signal.SIGCONT)
        said = process.communicate(timeout=180)
        assert process.returncode == 0, said
        assert server.statistics().admitted == 60
    assert len(names_in(folder / "out.jsonl")) == 60
    summary = json.loads((folder / "out.summary.json").read_text())
    assert (summary["sent"], summary["lost"], summary["possibly_billed_twice"]) == (60, 0, 0)


def serving(port, *options):
    """A server as a process of its own."""
    server = subprocess.Popen(
        [sys.executable, "-m", "penstock", "simulate", "--port", str(port), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )

    def listens():
        assert server.poll() is None, server.communicate()
        with socket.socket() as attempt:
            return attempt.connect_ex(("127.0.0.1", port)) == 0

    wait_for(listens)
    return server


def end(server):
    server.kill()
    server.communicate()


@pytest.fixture
def port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def test_a_server_that_is_stopped_for_a_while_costs_no_row(folder, port):
    write(folder, range(200))
    server = serving(port, "--latency", "0.2", "--limits", "requests=6000/min")
    process = started(
        "run", "in.jsonl", "-o", "out.jsonl", "--base-url", f"http://127.0.0.1:{port}/v1",
        "--limits", "requests=3000/min burst 20",
    )  # fmt: skip
    wait_for(lambda: count(folder / "out.jsonl") >= 40)
    server.send_signal(signal.SIGSTOP)
    time.sleep(3)
    server.send_signal(signal.SIGCONT)
    said = process.communicate(timeout=180)
    end(server)
    assert process.returncode == 0, said
    assert len(names_in(folder / "out.jsonl")) == 200
    assert json.loads((folder / "out.summary.json").read_text())["sent"] == 200


def test_a_server_that_is_killed_comes_back_as_another_process(folder, port):
    """What was under way is sent again and said; nothing is lost, and nothing is used up by knocking at a closed door."""
    write(folder, range(200))
    options = ("--latency", "0.2", "--limits", "requests=6000/min")
    server = serving(port, *options)
    process = started(
        "run", "in.jsonl", "-o", "out.jsonl", "--base-url", f"http://127.0.0.1:{port}/v1",
        "--limits", "requests=3000/min burst 20",
    )  # fmt: skip
    wait_for(lambda: count(folder / "out.jsonl") >= 40)
    end(server)
    time.sleep(2)
    assert process.poll() is None
    server = serving(port, *options)
    said = process.communicate(timeout=180)
    end(server)
    assert process.returncode == 0, said
    assert len(names_in(folder / "out.jsonl")) == 200
    summary = json.loads((folder / "out.summary.json").read_text())
    assert 200 <= summary["sent"] <= 230
    assert summary["sent"] - 200 == summary["retries"]
    assert summary["possibly_billed_twice"] <= summary["lost"]


def test_a_name_that_does_not_resolve_is_said_and_ends_the_run(folder, monkeypatch, capsys):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    command = ["run", "in.jsonl", "-o", "out.jsonl", "--base-url", "http://nowhere.invalid/v1", "--limits", LIMITS]
    assert main([*command, "--give-up-after", "1"]) == 5
    said = capsys.readouterr().err
    assert "cannot connect to nowhere.invalid:80: " in said
    assert "the server was not reached even once" in said
    summary = json.loads((folder / "out.summary.json").read_text())
    assert (summary["sent"], summary["untouched"]) == (0, 20)


# Disks that fill up


SIZES = {"-o": 64, "--journal": 64, "--errors": 64, "--ledger": 256, "--report": 4}
"""kB of a disk that is too small for a file."""


@pytest.fixture
def mounted(tmp_path):
    """Makes a disk of so many kB, which may grow."""
    where = tmp_path / "disk"
    where.mkdir()

    def mount(size, *options):
        command = ["mount", "-t", "tmpfs", "-o", ",".join((f"size={size}k", *options)), "none", where]
        if os.geteuid() or subprocess.run(command, check=False, capture_output=True).returncode:
            pytest.skip("only root may mount a disk")
        return where

    yield mount
    subprocess.run(["umount", "-l", where], check=False, capture_output=True)


@pytest.mark.parametrize("option", list(SIZES))
def test_a_disk_that_fills_up_is_said_and_the_next_run_goes_on(folder, monkeypatch, capsys, mounted, option):
    """Each row is answered once in the end, and none is paid for twice unknowingly."""
    disk = mounted(SIZES[option])
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    write(folder, range(400), b"{torn\n" * 1_000)
    files = {"-o": "out.jsonl", "--journal": "journal", "--errors": "e.jsonl", "--ledger": "l.db", "--report": "r.html"}
    files[option] = str(disk / files[option])
    with simulator.serve(Simulation(latency=Latency(median=0.01))) as server:
        command = ["run", "in.jsonl", *sum(files.items(), ()), "--base-url", server.base_url]
        command += ["--limits", "requests=60000/min"]
        code, said = main(command), capsys.readouterr().err
        # The work is done without these two, and some rows failed as it is.
        assert code == (3 if option in {"--ledger", "--report"} else 2), said
        assert all(line.startswith("penstock: ") for line in said.splitlines()), said
        assert "No space left on device" in said or "full" in said
        assert "mistake" not in said
        subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
        assert main(command) == 3, capsys.readouterr().err
        assert len(names_in(folder / files["-o"])) == 400
        summary = json.loads((folder / files["-o"]).with_name("out.summary.json").read_text())
        assert server.statistics().admitted - 400 <= summary["possibly_billed_twice"]
