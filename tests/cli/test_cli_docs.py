"""The pages about the command line say what is so: its example runs, its options exist, its codes are those there
are."""

from __future__ import annotations

import asyncio
import json
import re
import shlex
import textwrap
from pathlib import Path

from penstock import Limiter, runner, simulator
from penstock.cli import main
from penstock.simulator import Latency, Simulation

DOCS = Path(__file__).parents[2] / "docs"
RESULTS_PAGE = (DOCS / "run-results.md").read_text(encoding="utf-8")
PAGES = [DOCS / "command-line.md", *sorted(DOCS.glob("run-*.md"))]
PAGE = "".join(page.read_text(encoding="utf-8") for page in PAGES)
BATCH_PAGE = (DOCS / "batch-api.md").read_text(encoding="utf-8")
FAULTS_PAGE = (DOCS / "simulator-faults.md").read_text(encoding="utf-8")


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
    told = RESULTS_PAGE[RESULTS_PAGE.index("The summary:") :]
    keys = {*summary, *summary["limits"]["tokens"][0]} - {"limits", "limit", "models"}
    assert [key for key in keys if f"`{key}`" not in told] == []


def test_every_option_is_on_the_page_and_every_option_there_exists(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    options = set()
    for command in ([], ["run"], ["plan"], ["errors"], ["simulate"]):
        assert main([*command, "--help"]) == 0
        options |= set(re.findall(r"--[a-z][a-z-]+", capsys.readouterr().out))
    plain = {"--help", "--out", "--host", "--port", "--version", "--show-completion"}
    assert set(re.findall(r"--[a-z][a-z-]+", PAGE + BATCH_PAGE + FAULTS_PAGE)) | plain == options


def test_every_code_of_an_error_is_on_the_page():
    """Those of the errors file, as the source has them."""
    source = "".join(file.read_text(encoding="utf-8") for file in Path(runner.__file__).parent.glob("*.py"))
    codes = set(re.findall(r'(?:_reject|_Bad|_fail|_give_up|Rejected|Verdict)\([^"()]*"([a-z_0-9]+)"', source))
    assert {"invalid_json", "request_too_large", "internal_error", "invalid_response"} <= codes
    assert [code for code in codes if f"`{code}`" not in PAGE + BATCH_PAGE] == []


def test_the_program_of_the_page_gets_an_answer_to_each_row(monkeypatch, tmp_path, capsys):
    """And so do the batches that an engine hands to a sender."""
    monkeypatch.chdir(tmp_path)
    page = (DOCS / "run-in-a-program.md").read_text(encoding="utf-8")
    program, engine = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    rows = [{"model": "m", "messages": [{"role": "user", "content": str(number)}]} for number in range(3)]

    class Engine:
        def map_batches(self, kind, fn_constructor_kwargs, compute):
            with kind(**fn_constructor_kwargs, headers={"authorization": "Bearer key"}) as send:
                return send(rows)

    with simulator.serve(Simulation(requests="600/min", latency=Latency(0.01))) as server:
        program = program.replace("https://api.openai.com/v1", server.base_url)
        names = {"rows": rows, "key": "key"}
        exec("async def main():\n" + textwrap.indent(program, "    "), names)
        asyncio.run(names["main"]())
        assert capsys.readouterr().out.count("'choices'") == 3
        limiter = Limiter(requests="600/min")
        names = {"ds": Engine(), "Sender": runner.Sender, "url": server.base_url, "limiter": limiter}
        names["ActorPoolStrategy"] = lambda size: size
        assert [one.error for one in eval(engine, names)] == [None] * 3
