"""Where what a command says goes: terminals, pipes, and what was closed before it began."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from contextlib import suppress

import pytest

from penstock.cli import main
from tests.cli.commands import count, lines_of, simulated, started, write


@pytest.mark.parametrize("out", ["/dev/stdout", "out.jsonl"])
def test_results_on_standard_output_stand_there_alone(folder, out):
    """The summary goes to stderr then: whoever reads results wants nothing else among them."""
    with (folder / "out.jsonl").open("wb") as stdout:
        process = subprocess.run(
            [sys.executable, "-m", "penstock", "run", "in.jsonl", "-o", out, "--errors", "e.jsonl", "--simulate"],
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
            check=True,
        )
    assert len(lines_of(folder / "out.jsonl")) == 20
    assert "20 rows: 20 answered, 0 failed\n" in process.stderr


@pytest.mark.parametrize(("kind", "is_redrawn"), [("xterm", True), ("dumb", False)])
def test_a_terminal_that_can_be_redrawn_shows_a_picture(folder, monkeypatch, kind, is_redrawn):
    """Others, and files, have a line now and then."""
    pty = pytest.importorskip("pty")
    monkeypatch.setenv("TERM", kind)
    ours, theirs = pty.openpty()
    said = []

    def read():
        with suppress(OSError):  # nobody writes any more
            while chunk := os.read(ours, 65_536):
                said.append(chunk)

    reader = threading.Thread(target=read)
    reader.start()
    with os.fdopen(theirs, "w", encoding="utf-8") as terminal, monkeypatch.context() as patched:
        patched.setattr(sys, "stderr", terminal)
        assert simulated() == 0
    reader.join(60)
    os.close(ours)
    assert (b"\x1b[" in b"".join(said)) == is_redrawn


@pytest.mark.parametrize("closed", ["stdout", "stderr"])
def test_nothing_is_written_to_what_was_closed_before_it_began(folder, monkeypatch, capsys, closed):
    """`2>&-`: what was said there stood among the results, and another file has its number."""
    monkeypatch.setattr(sys, closed, None)
    assert main(["run", "in.jsonl", "-o", "-", "--simulate", "--latency", "0.01"]) == 2
    assert capsys.readouterr()[closed == "stdout"] == (
        "penstock: -: standard output is closed, or standard error, where the errors go: name files\n"
        if closed == "stdout"
        else ""
    )
    assert simulated() == 0


def test_results_on_standard_output_have_their_errors_on_standard_error(folder, capfd):
    """Where no `penstock errors` could read them, so none is advised."""
    write(folder, range(3), b'{"torn\n')
    assert main(["run", "in.jsonl", "-o", "-", "--simulate", "--latency", "0.01"]) == 3
    out, err = capfd.readouterr()
    assert len(out.splitlines()) == 3
    assert json.loads(err.splitlines()[0])["error"]["code"] == "invalid_json"
    assert err.endswith("failed of 1 × invalid_json\n")


@pytest.mark.parametrize("pipe", ["stdout", "stderr"])
def test_nobody_need_listen(folder, pipe):
    """A pipe that was closed at the other end is no failure of the run."""
    process = started("run", "in.jsonl", "-o", "out.jsonl", "--simulate", "--latency", "0.01")
    getattr(process, pipe).close()
    assert process.wait(timeout=180) == 0
    assert count(folder / "out.jsonl") == 20
    other = {"stdout": process.stderr, "stderr": process.stdout}[pipe]
    assert "Traceback" not in other.read()
    other.close()
