"""The command line on a system that lacks what Windows lacks."""

from __future__ import annotations

import os
import threading

from penstock.cli import main
from tests.cli.commands import count, lines_of, simulated, write


def test_a_run_answers_every_row_and_goes_on_where_it_was(folder, poor):
    write(folder, range(40))
    assert simulated("--rows", "15") in {0, 3}
    assert simulated() == 0
    assert sorted(result["custom_id"] for result in lines_of(folder / "out.jsonl")) == sorted(
        f"row-{number}" for number in range(40)
    )


def test_rows_come_from_a_pipe(folder, poor):
    write(folder, range(10))
    out, into = os.pipe()
    threading.Thread(target=lambda: (os.write(into, (folder / "in.jsonl").read_bytes()), os.close(into))).start()
    standard = os.dup(0)
    os.dup2(out, 0)
    try:
        assert main(["run", "-", "-o", "out.jsonl", "--simulate", "--latency", "0.01"]) == 0
    finally:
        os.dup2(standard, 0)
        os.close(standard)
        os.close(out)
    assert count(folder / "out.jsonl") == 10
