"""The page about the command line says what is so: its example runs, its options exist, its codes are those there are."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

from penstock import runner
from penstock.cli import main

PAGE = (Path(__file__).parents[2] / "docs" / "command-line.md").read_text(encoding="utf-8")
BATCH_PAGE = (Path(__file__).parents[2] / "docs" / "batch-api.md").read_text(encoding="utf-8")
FAULTS_PAGE = (Path(__file__).parents[2] / "docs" / "simulator-faults.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def test_the_example_runs_and_prints_what_the_page_says(tmp_path, monkeypatch, capsys):
    """But for the digits of what time it took."""
    monkeypatch.chdir(tmp_path)
    Path("requests.jsonl").write_text(blocks("json")[0], encoding="utf-8")
    assert main(shlex.split(blocks("bash")[0])[1:]) == 0
    printed, shown = (re.sub(r"\d+\.\d+", "#", text) for text in (capsys.readouterr().out, blocks("text")[0]))
    assert printed == shown
    answered = {
        json.loads(line)["custom_id"]: json.loads(line) for line in Path("results.jsonl").read_text().splitlines()
    }
    assert answered.keys() == {"a", "line-2", "line-3"}
    assert answered["line-3"]["response"]["body"]["object"] == "list"
    assert {file.name for file in tmp_path.iterdir()} == {
        "requests.jsonl", "results.jsonl", "results.errors.jsonl", "results.summary.json", "results.jsonl.journal",
    }  # fmt: skip
    summary = json.loads(Path("results.summary.json").read_text())
    told = PAGE[PAGE.index("The summary:") : PAGE.index("## Exit codes")]
    keys = {*summary, *summary["limits"]["tokens"][0]} - {"limits", "limit", "models"}
    assert [key for key in keys if f"`{key}`" not in told] == []


def test_every_option_is_on_the_page_and_every_option_there_exists(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    options = set()
    for command in ("run", "plan", "errors", "simulate"):
        assert main([command, "--help"]) == 0
        options |= set(re.findall(r"--[a-z][a-z-]+", capsys.readouterr().out))
    assert (
        set(re.findall(r"--[a-z][a-z-]+", PAGE + BATCH_PAGE + FAULTS_PAGE)) | {"--help", "--out", "--host", "--port"}
        == options
    )


def test_every_code_of_an_error_is_on_the_page():
    """Those of the errors file, as the source has them."""
    source = "".join(file.read_text(encoding="utf-8") for file in Path(runner.__file__).parent.glob("*.py"))
    codes = set(re.findall(r'(?:_reject|_Bad|_fail|_give_up|Rejected|Verdict)\([^"()]*"([a-z_0-9]+)"', source))
    assert {"invalid_json", "request_too_large", "internal_error", "invalid_response"} <= codes
    assert [code for code in codes if f"`{code}`" not in PAGE + BATCH_PAGE] == []
