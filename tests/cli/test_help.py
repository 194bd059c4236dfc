"""The help of each command fits a terminal of 80 columns, and a command says where its help and its failures are."""

from __future__ import annotations

import inspect
import io
import re
import sys
from typing import get_args

import pytest

from penstock.cli import main
from penstock.cli.commands import app
from penstock.cli.run_options import PANELS, RunOptions


def _commands(inside, before=()):
    for command in inside.registered_commands:
        yield (*before, command.name), command.callback
    for group in inside.registered_groups:
        yield from _commands(group.typer_instance, (*before, group.name))


COMMANDS = dict(_commands(app))


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_no_word_of_the_help_is_cut_at_80_columns(command, capsys, monkeypatch):
    """A word that is longer than its column would end with an ellipsis."""
    monkeypatch.setenv("COLUMNS", "80")
    assert main([*command, "--help"]) == 0
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    for parameter in inspect.signature(COMMANDS[command], eval_str=True).parameters.values():
        told = get_args(parameter.annotation)[1]
        default = told.show_default if isinstance(told.show_default, str) else parameter.default
        words = f"{told.help or ''} {default if isinstance(default, str) else ''}".split()
        assert [word for word in words if word not in shown] == []


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["run", "in…", "--nö"], ["plan", "rows ☃.jsonl"]])
def test_what_the_encoding_of_a_terminal_lacks_is_shown_as_an_escape(arguments, folder, monkeypatch):
    """Help ended in a UnicodeEncodeError, as rich draws boxes and writes an ellipsis."""
    (folder / "rows ☃.jsonl").write_text('{"body": {"model": "☃", "messages": []}}\n')
    shown = {name: io.TextIOWrapper(io.BytesIO(), encoding="ascii") for name in ("stdout", "stderr")}
    for name, stream in shown.items():
        monkeypatch.setattr(sys, name, stream)
    assert main(arguments) in {0, 2, 3}
    said = b""
    for stream in shown.values():
        stream.flush()
        said += stream.buffer.getvalue()
    assert said
    assert b"mistake of penstock" not in said


def test_every_option_of_a_run_stands_below_one_heading():
    placed = [name for names in PANELS.values() for name in names]
    assert sorted([*placed, "file", "out"]) == sorted(RunOptions.__dataclass_fields__)


@pytest.mark.parametrize(
    ("arguments", "command"),
    [(["run", "in.jsonl"], "penstock run"), (["quota", "set"], "penstock quota set"), (["rnu"], "penstock")],
)
def test_a_wrong_option_leads_to_the_help_of_its_command(arguments, command, capsys):
    assert main(arguments) == 2
    assert f"(see {command} --help)" in capsys.readouterr().err


def test_a_run_with_failures_says_which_command_shows_them(folder, capsys):
    (folder / "bad rows.jsonl").write_text("hello\n")
    assert main(["run", "bad rows.jsonl", "-o", "the results.jsonl", "--simulate"]) == 3
    command = re.search(r"what failed, and what to do: penstock (.*)", capsys.readouterr().out)[1]
    assert command == "errors 'the results.jsonl'"
    assert main(["errors", "the results.jsonl"]) == 3
    assert "1 × invalid_json" in capsys.readouterr().out


def test_a_run_with_failures_names_an_errors_file_that_only_the_user_knows(folder, capsys):
    (folder / "bad.jsonl").write_text("hello\n")
    assert main(["run", "bad.jsonl", "-o", "out.jsonl", "--errors", "wrong.txt", "--simulate"]) == 3
    assert "what failed, and what to do: penstock errors wrong.txt\n" in capsys.readouterr().out
