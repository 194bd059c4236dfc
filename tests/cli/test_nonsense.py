"""Options with values that make no sense: one sentence, exit code 2, and no file is left that was not there before."""

from __future__ import annotations

import json
import os
import re
import stat
import sys
import threading
from dataclasses import fields
from pathlib import Path
from typing import get_type_hints

import pytest

from penstock.cli import main, requests
from penstock.cli.run_options import RunOptions
from penstock.cli.terminal import Fault
from penstock.usage.file import open_writer
from tests.cli.commands import count, simulated

NUMBERS = ("", "nan", "-inf", "1e400", "-1", "9" * 30, "5 parsecs", "0x10", "١٢", "\udcff")
WORDS = (
    "",
    "\n",
    "nothing",
    "\udcff",
    "é✓",
    "=",
    "requests=",
    "5/4",
    "a=b",
    "[" * 20_000,
    "redis://",
    "sqlite:",
    "http://[::1",
)
FILES = (
    "",
    "..",
    "/",
    "nope/nope",
    "a folder",
    "a link",
    "a loop",
    "-",
    "in.jsonl",
    os.devnull,
    "x" * 5_000,
    "\udcff",
    "a\0b",
)


def options():
    """Every option of `penstock run` that takes a value, with values for it that make no sense."""
    hints = get_type_hints(RunOptions, include_extras=True)
    for each in fields(RunOptions):
        kind, info = str(each.type), hints[each.name].__metadata__[0]
        names = (str(info.default), *(info.param_decls or ()))
        if each.name == "file":
            yield "FILE", FILES
        elif "bool" not in kind:
            option = next((name for name in names if name.startswith("-")), "--" + each.name.replace("_", "-"))
            values = FILES if "Path" in kind else NUMBERS if "int" in kind or "float" in kind else WORDS
            yield option, values


@pytest.fixture
def odd_files(folder, monkeypatch):
    """What names may lead to; and a run that could begin ends there, before anything is sent."""
    (folder / "a folder").mkdir()
    (folder / "a link").symlink_to("nope/nope")
    (folder / "a loop").symlink_to("a loop")

    def begin(*_, **__):
        raise Fault("it would begin")

    monkeypatch.setattr(requests, "run_requests", begin)
    monkeypatch.setattr("penstock.cli.batch.run_batches", begin)
    return folder


@pytest.mark.parametrize(("option", "values"), list(options()), ids=[option for option, _ in options()])
def test_nonsense_is_one_sentence_and_leaves_nothing_behind(odd_files, capsys, option, values):
    before = {path: path.lstat().st_mode for path in odd_files.iterdir()}
    devices = Path(os.devnull).stat().st_mode
    # A ledger and a store are the user's own files, which are made as soon as they are opened.
    kept = {"--ledger", "--store"}
    for value in values:
        command = ["run", "in.jsonl", "-o", "out.jsonl", "--base-url", "http://127.0.0.1:9/v1", "--quiet"]
        if option == "FILE":
            command[1] = f"./{value}" if value.startswith("-") else value
        elif option == "-o":
            command[3] = value if value != "-" else os.devnull
        elif option in {"--latency", "--seed"}:
            command = [*command[:4], "--quiet", "--simulate", option, value]
        elif option == "--base-url":
            command[5] = value
        else:
            command += [option, value]
        assert main(command) == 2, (option, value)
        said = capsys.readouterr()
        assert re.fullmatch(r"penstock: [^\n]+\n", said.err), (option, value, said.err)
        assert "mistake of penstock" not in said.err, (option, value, said.err)
        new = {path.name for path in odd_files.iterdir()} - {path.name for path in before}
        assert not new or option in kept, (option, value, new)
    assert {path: path.lstat().st_mode for path in before} == before
    assert Path(os.devnull).stat().st_mode == devices


@pytest.mark.parametrize("option", ["--errors", "--journal", "--report", "--ledger"])
def test_a_dash_is_standard_output_for_results_alone(folder, capsys, option):
    """And no file of that name."""
    assert simulated(option, "-") == 2
    assert capsys.readouterr().err == f"penstock: {option}: - stands for standard output with -o alone: name a file\n"
    assert sorted(path.name for path in folder.iterdir()) == ["in.jsonl"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--ledger", "out.jsonl"], "-o and --ledger are the same file: out.jsonl"),
        (["--ledger", "in.jsonl"], "FILE and --ledger are the same file: in.jsonl"),
        (["--prices", "out.jsonl", "--overwrite"], "--prices: out.jsonl is not a file of prices"),
        (["--journal", os.devnull], f"--journal: {os.devnull} is not a regular file"),
        (
            ["--prompt", "Translate {text}"],
            "--prompt makes requests of the rows of a table, and in.jsonl holds requests",
        ),
        (["--prices", "/dev/zero"], "--prices: /dev/zero is not a file of prices: it is longer than"),
    ],
)
def test_one_file_is_not_used_for_two_things(folder, capsys, arguments, said):
    (folder / "out.jsonl").write_text("" if "--prices" not in arguments else "[" * 100_000)
    assert simulated(*arguments) == 2
    assert said in capsys.readouterr().err
    assert count(folder / "in.jsonl") == 20


def test_a_prompt_without_a_column_is_refused(folder, capsys):
    """Every row would ask the same."""
    (folder / "in.csv").write_text("id,text\na,yes\n")
    command = ["run", "in.csv", "-o", "out.jsonl", "--simulate", "--model", "gpt-4o-mini", "--prompt", "Say it"]
    assert main(command) == 2
    assert "--prompt names no column, so that every row would ask the same" in capsys.readouterr().err


def test_a_report_never_takes_the_place_of_a_device(folder, capsys):
    """What is no file is written to as it is."""
    page = folder / "page.html"
    page.symlink_to(os.devnull)
    assert simulated("--report", "page.html") == 0
    assert page.is_symlink()
    assert stat.S_ISCHR(Path(os.devnull).stat().st_mode)
    os.mkfifo("pipe")
    assert simulated("--report", "pipe") == 2  # nobody reads it
    assert "cannot write pipe: No such device or address" in capsys.readouterr().err
    read = []
    reader = threading.Thread(target=lambda: read.append((folder / "pipe").read_bytes()))
    opened = os.open("pipe", os.O_RDWR)  # so that neither waits for the other
    reader.start()
    assert simulated("--report", "pipe") == 0
    os.close(opened)
    reader.join(60)
    assert read[0].endswith(b"</html>\n")
    assert stat.S_ISFIFO((folder / "pipe").stat().st_mode)


@pytest.mark.parametrize("command", [["report", "l.db", "-o", "-"], ["report", "l.db", "--format", "csv", "-o", "-"]])
def test_a_report_of_a_ledger_may_go_to_standard_output_by_name(folder, capsys, command):
    open_writer(folder / "l.db", 1).close()
    assert main(command) == 0
    assert capsys.readouterr().out
    assert not (folder / "-").exists()


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["errors", "/"], "cannot read /: Is a directory"),
        (["report", "l.db", "-o", "."], "cannot write .: Is a directory"),
        (["report", "l.db", "-o", "/"], "cannot write /: Is a directory"),
        (["report", "x" * 5_000], "File name too long" if sys.version_info < (3, 14) else "there is no ledger"),
        (["report", "l.db", "--model", "\udcff"], "an argument holds a byte that is not UTF-8"),
    ],
)
def test_nonsense_for_other_commands_is_one_sentence_too(folder, capsys, command, said):
    open_writer(folder / "l.db", 1).close()
    assert main(command) == 2
    assert said in capsys.readouterr().err


def test_errors_of_something_else_are_not_taken_for_none(folder, capsys):
    """Nor is what stands beside errors passed over without a word."""
    (folder / "x.errors.jsonl").write_bytes(b"\xff\x00\n[]\n")
    assert main(["errors", "x.errors.jsonl"]) == 2
    assert "2 lines are no error of a run in x.errors.jsonl: is it the errors file?" in capsys.readouterr().err
    (folder / "x.errors.jsonl").write_text('{"line":1,"custom_id":"a","error":{"code":"c","message":"m"}}\n{torn\n')
    assert main(["errors", "x.errors.jsonl"]) == 3
    said = capsys.readouterr()
    assert "penstock: 1 line is no error of a run" in said.err
    assert said.out.startswith("1 × c\n    for example line 1, 'a': m\n")


def test_what_a_server_says_is_shown_and_not_obeyed(folder, capsys):
    """Colours, a cleared screen, a line that is written over: a terminal would do as it is told."""
    error = {"code": "c\x1b[31m", "message": "over\rwritten \x1b[2J\x9b31m\u202e"}
    (folder / "x.errors.jsonl").write_text(json.dumps({"line": 1, "custom_id": None, "error": error}) + "\n")
    assert main(["errors", "x.errors.jsonl"]) == 3
    shown = capsys.readouterr().out
    assert "1 × c\\x1b[31m" in shown
    assert "over written \\x1b[2J\\x9b31m\\u202e" in shown
    assert main(["errors", "\x1b[2J"]) == 2
    assert "cannot read \\x1b[2J-errors.jsonl" in capsys.readouterr().err
