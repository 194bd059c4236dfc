"""Several runs for one file and one account: parts of the rows, limits in a store, and events for the program above
them."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import subprocess
from concurrent.futures import ThreadPoolExecutor

import pytest

from penstock import simulator
from penstock.cli import main, shared
from penstock.cli.shared import shard_of
from penstock.cli.terminal import Fault
from penstock.simulator import Latency, Simulation
from tests.cli.commands import KEY, started


def penstock(*arguments):
    """The command, to its end."""
    process = started(*map(str, arguments))
    out, error = process.communicate(timeout=120)
    return process.returncode, out, error


@pytest.fixture
def rows(tmp_path):
    """A file of 60."""
    source = tmp_path / "in.jsonl"
    bodies = ({"model": "m", "messages": [{"role": "user", "content": f"{number:04}"}]} for number in range(60))
    source.write_text("".join(json.dumps({"body": body}) + "\n" for body in bodies), encoding="utf-8")
    return source


@pytest.mark.parametrize("given", [["--limits", "requests=600/min burst 20"], []], ids=["given", "learned"])
def test_parts_share_limits_through_a_store_and_make_the_whole(tmp_path, rows, given):
    """Three runs, each with the true limits and all at once: each row once, and no 429. Or each hears of the limits by
    its first row."""
    # Half a second in which this machine may do other things.
    simulation = Simulation(requests="600/min burst 20", latency=Latency(0.05), tolerance=0.5)
    with simulator.serve(simulation) as server:

        def run(part):
            out = tmp_path / f"out-{part}.jsonl"
            limits = [*given, "--store", f"sqlite:{tmp_path / 'limits.db'}"]
            command = ["run", rows, "-o", out, "--shard", f"{part}/3", "--base-url", server.base_url, "--json", *limits]
            return penstock(*command), [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]

        with ThreadPoolExecutor(3) as pool:
            done = list(pool.map(run, (1, 2, 3)))
        refused = server.statistics().refused
    assert [ended[0] for ended, _ in done] == [0, 0, 0], done
    assert [len(answers) for _, answers in done] == [20, 20, 20]
    names = {answer["custom_id"] for _, answers in done for answer in answers}
    assert names == {f"line-{number}" for number in range(1, 61)}
    assert sum(refused.values()) <= 1  # of a machine that stands still for a second
    events = [json.loads(line) for line in done[0][0][1].splitlines()]
    assert {event["event"] for event in events[:-1]} == {"progress"}
    end = events[-1]
    assert (end["event"], end["exit_code"], end["answered"], end["left_out"]) == ("end", 0, 20, 40)


def test_limits_in_a_store_that_are_far_too_high_are_doubted_by_the_run_that_uses_them(tmp_path, rows):
    """All that were sent at once were refused again and again, as soon as one of them was admitted."""
    rows.write_text(rows.read_text(encoding="utf-8") * 2, encoding="utf-8")
    simulation = Simulation(requests="20/s burst 20", latency=Latency(0.05))  # far less than any machine sends
    with simulator.serve(simulation) as server:
        limits = ["--limits", "requests=100k/min", "--store", f"sqlite:{tmp_path / 'limits.db'}"]
        code, _, said = penstock("run", rows, "-o", tmp_path / "out.jsonl", "--base-url", server.base_url, *limits)
        refused = sum(server.statistics().refused.values())
    assert code == 0, said
    assert "the server refuses far more than the limits that were given explain" in said
    assert refused < 3 * 120


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--shard", "4/3"], "--shard: '4/3' is not a part of a whole: write it like 2/4"),
        (["--shard", "0/3"], "--shard: '0/3'"),
        (["--store", "redis://host", "--simulate"], "--store shares the limits of a server that is not simulated"),
        (["--store", "postgres://host", "--limits", "requests=1/s"], "'postgres://host' is not the address of a Redis"),
        (
            ["--store", "limits.db", "--limits", "requests=1/s"],
            "'limits.db' is not a store; write it like sqlite:limits",
        ),
        (["--store", "sqlite:", "--limits", "requests=1/s"], "names no file"),
        (["--store", "sqlite:x", "--simulate", "--limits", "requests=1/s"], "of a server that is not simulated"),
        (["--shard", "1/2", "--via", "batch"], "--via batch takes whole files"),
    ],
)
def test_what_cannot_be_shared_is_said(tmp_path, rows, monkeypatch, capsys, options, said):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    assert main(["run", str(rows), "-o", str(tmp_path / "out.jsonl"), *options]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize(
    "command",
    [["watch", "--once"], ["quota", "list"], ["run", "--limits", "requests=1/s", "-o", "out.jsonl", "--store"]],
)
@pytest.mark.parametrize(
    "address",
    [
        "redis://user:s3cret@127.0.0.1:1/0",
        "valkeys://user:s3cret@127.0.0.1:1/0",
        "rediss+sentinel://user:s3cret@127.0.0.1:1/main",
        "redis+cluster://user:s3cret@127.0.0.1:1",
        "postgres://user:s3cret@127.0.0.1/db",
        "redis:/user:s3cret@127.0.0.1/0",
    ],
)
def test_an_address_is_one_of_a_server_in_every_command_and_tells_no_secret(
    command, address, tmp_path, rows, monkeypatch, capsys
):
    """Some were taken for paths of files, which errors show."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setitem(shared.PATIENCE, "server", 0.5)
    monkeypatch.chdir(tmp_path)
    source = [str(rows)] if command[0] == "run" else []
    assert main([command[0], *source, *command[1:], address]) in {2, 5}  # a run says that it is unfinished
    said = capsys.readouterr().err
    assert "s3cret" not in said
    assert "does not answer" in said or "is not the address of a Redis server" in said or "has no ://" in said


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("out.jsonl", "-o and --store are the same file: out.jsonl"),
        ("in.jsonl", "--store: in.jsonl is not an SQLite database"),
        ("no/limits.db", "cannot write no/limits.db: the folder no is not there"),
        (".", "cannot write .: Is a directory"),
        ("/dev/null", "--store: /dev/null is not a regular file, so nothing could be read there again"),
    ],
)
@pytest.mark.usefixtures("rows")
def test_a_file_that_cannot_be_the_store_is_said_before_anything_is_made(tmp_path, monkeypatch, capsys, path, said):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    command = ["run", "in.jsonl", "-o", "out.jsonl", "--limits", "requests=60/min", "--store", f"sqlite:{path}"]
    assert main([*command, "--base-url", "http://127.0.0.1:9/v1"]) == 2
    assert capsys.readouterr().err == f"penstock: {said}\n"
    assert sorted(tmp_path.iterdir()) == before


def test_a_store_that_stays_away_ends_the_run_and_costs_no_row(tmp_path, rows, monkeypatch, capsys):
    monkeypatch.setitem(shared.PATIENCE, "server", 0.5)
    with simulator.serve(Simulation(requests="10/s burst 20")) as server:
        command = ["run", str(rows), "-o", str(tmp_path / "out.jsonl"), "--base-url", server.base_url]
        assert main([*command, "--limits", "requests=10/s burst 20", "--store", "redis://127.0.0.1:1"]) == 5
        assert not server.statistics().admissions
    assert "the store of the limits gives no answer" in capsys.readouterr().err
    assert (tmp_path / "out.errors.jsonl").read_text(encoding="utf-8") == ""


def test_a_run_waits_for_a_store_that_is_held_up(tmp_path, rows):
    """By a program that keeps the file locked for longer than a service would wait: the run ended, after a second."""
    with (
        simulator.serve(Simulation()) as server,
        contextlib.closing(sqlite3.connect(tmp_path / "limits.db", isolation_level=None)) as other,
    ):
        other.execute("BEGIN EXCLUSIVE")
        store = ["--limits", "requests=600/s", "--store", f"sqlite:{tmp_path / 'limits.db'}"]
        process = started("run", rows, "-o", tmp_path / "out.jsonl", "--base-url", server.base_url, *store)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(3)
        other.execute("ROLLBACK")
        _, said = process.communicate(timeout=60)
    assert process.returncode == 0, said


def test_parts_are_read():
    assert [shard_of(text) for text in (None, "1/1", " 2 / 4 ")] == [(1, 1), (1, 1), (2, 4)]
    with pytest.raises(Fault):
        shard_of("half")
