"""CONTRIBUTING.md leads a stranger to what is there: each module, test and command that it names exists."""

from __future__ import annotations

import ast
import re
import runpy
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
ROWS = [[cell.strip() for cell in line.split("|")[1:-1]] for line in PAGE.splitlines() if re.match(r"\| \d+ \|", line)]


def exists(test):
    """Whether tests/ has that file and, after `::`, a test of that name in it."""
    file, _, name = test.partition("::")
    path = ROOT / "tests" / file
    if not path.is_file():
        return False
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    names = {node.name for node in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(node, functions)}
    return not name or name in names


def test_the_map_has_every_promise_once():
    assert [int(number) for number, *_ in ROWS] == list(range(1, 14))


@pytest.mark.parametrize(("modules", "tests"), [row[2:] for row in ROWS], ids=[f"promise-{row[0]}" for row in ROWS])
def test_modules_and_tests_of_the_map_are_there(modules, tests):
    modules, tests = (re.findall(r"`(.+?)`", cell) for cell in (modules, tests))
    assert modules
    assert tests
    assert [module for module in modules if not (ROOT / "src/penstock" / module).is_file()] == []
    assert [test for test in tests if not exists(test)] == []


def test_a_test_that_is_not_there_would_be_noticed():
    assert exists("test_promises.py")
    assert not exists("test_promises.py::test_that_nobody_wrote")
    assert not exists("test_that_nobody_wrote.py")


def test_every_command_is_named_and_is_one():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    commands = set(re.findall(r"^([a-z]+):.*##", makefile, re.MULTILINE)) - {"help"}
    assert set(re.findall(r"^\| `make ([a-z]+)`", PAGE, re.MULTILINE)) == commands


def test_every_file_that_the_page_names_is_there():
    """Outside of the map, by its path from the root; a star stands for some."""
    prose = "\n".join(line for line in PAGE.splitlines() if not line.startswith("| "))
    named = re.findall(r"`((?:src|tests|tools|requirements|\.ci)/[^` ]*)`", prose)
    assert len(named) > 5
    assert [name for name in named if not list(ROOT.glob(name))] == []


def test_the_tests_that_mutants_are_tried_on_are_there():
    """The selection in pyproject.toml is by hand: a file that was moved would be left out in silence."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["mutmut"]
    selected = [
        test.removeprefix("tests/").partition("[")[0] for test in settings["pytest_add_cli_args_test_selection"]
    ]
    assert [test for test in selected if not exists(test)] == []


def test_each_line_that_is_broken_on_purpose_stands_once_in_its_file():
    """Else `make mutation` would end there, which few run."""
    breaks = runpy.run_path(str(ROOT / "tools/break_promises.py"))["BREAKS"]
    lines = [line for each in breaks for line in each.lines]
    assert len(lines) > 10
    texts = {file: (ROOT / "src/penstock" / file).read_text(encoding="utf-8") for file, _, _ in lines}
    assert [(file, old) for file, old, _ in lines if texts[file].count(old) != 1] == []


def test_one_command_for_both_sets_up_all_that_the_tests_need():
    """`make check test` makes the environment once: what only `make test` asked for would not be there."""
    shown = subprocess.run(["make", "-n", "check", "test"], cwd=ROOT, capture_output=True, text=True, check=True)
    setup = next(line for line in shown.stdout.splitlines() if "tools/environment.py" in line)
    interpreters = re.findall(r'/(\.venv[^/"]*)/bin/python"', shown.stdout)
    assert interpreters
    assert [name for name in interpreters if f"{name}=requirements/" not in setup] == []
