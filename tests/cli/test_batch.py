"""`penstock run --via batch` as a command: against the embedded server, killed, interrupted, refused."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal

import pytest

from penstock import simulator
from penstock.cli import main
from penstock.simulator import Batches, Simulation
from tests.cli.commands import KEY, chat, lines_of, started, wait_for, write
from tests.docs_examples import examples_of, run_example, text_of

BATCH = ("run", "in.jsonl", "-o", "out.jsonl", "--via", "batch")


def test_a_file_runs_by_the_batch_api(folder, capsys):
    """The same OUT, errors file, summary and exit codes as in any run; the same command once more does nothing."""
    write(folder, range(20), b"{torn\n")
    assert main([*BATCH, "--simulate"]) == 3
    out, err = capsys.readouterr()
    assert "21 rows: 20 answered, 1 failed\n20 rows submitted, 0 of them again\n1 batch merged in" in out
    assert ": 20 rows for gpt-4o-mini are submitted" in err
    assert {line["custom_id"] for line in lines_of(folder / "out.jsonl")} == {f"row-{n}" for n in range(20)}
    assert lines_of(folder / "out.errors.jsonl")[0]["error"]["code"] == "invalid_json"
    summary = json.loads((folder / "out.summary.json").read_text())
    assert (summary["via"], summary["batches"][0]["status"], summary["under_way"]) == ("batch", "completed", [])
    assert main([*BATCH, "--simulate"]) == 3
    assert "21 rows: 0 answered, 1 failed, 20 skipped" in capsys.readouterr().out
    assert main(["run", "in.jsonl", "-o", "out.jsonl", "--simulate"]) == 3  # no batch is under way: it may go on
    assert "21 rows: 0 answered, 1 failed, 20 skipped" in capsys.readouterr().out


def test_the_report_of_a_run_by_the_batch_api_has_pictures_of_what_it_did(folder):
    """And its figures are those of the summary."""
    assert main([*BATCH, "--simulate", "--report", "page.html"]) == 0
    page = (folder / "page.html").read_text(encoding="utf-8")
    titles = re.findall(r"<figcaption>([^<]+) <em>", page)
    assert titles[:3] == ["Submitted", "In batches", "Answers"]
    assert 'aria-label="In batches, rows that the service had: at most 20"' in page
    assert all(re.search(r'<path class="area" d="M', picture) for picture in page.split("<figure>")[1:4])
    summary = json.loads((folder / "out.summary.json").read_text())
    assert f'data-figure="answered" data-value="{summary["answered"]}"' in page


def test_a_killed_run_by_the_batch_api_merges_what_it_submitted(folder, monkeypatch, capsys):
    """kill -9 while the batch is under way: the same command finds it; one without --via batch is refused meanwhile."""
    with simulator.serve(Simulation(batches=Batches(validating=0.1, duration=3.0, finalizing=0.1))) as server:
        library = server._app.state.library
        process = started(*BATCH, "--base-url", server.base_url)
        wait_for(lambda: library.batches and '"batch":' in (folder / "out.jsonl.batches").read_text())
        process.kill()
        process.communicate()
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        assert main(["run", "in.jsonl", "-o", "out.jsonl", "--base-url", server.base_url]) == 2
        assert "20 rows are in 1 batch of an earlier run, and would be paid twice" in capsys.readouterr().err
        assert main([*BATCH, "--base-url", server.base_url]) == 0
        assert "20 rows are in 1 batch of an earlier run, which goes on" in capsys.readouterr().err
        assert len(library.batches) == 1
        assert set(library.executed.values()) == {1}
    assert len(lines_of(folder / "out.jsonl")) == 20


def test_an_interrupted_run_by_the_batch_api_ends_at_once(folder, monkeypatch, capsys):
    journal = folder / "out.jsonl.batches"
    with simulator.serve(Simulation(batches=Batches(duration=3600.0))) as server:
        process = started(*BATCH, "--base-url", server.base_url)
        wait_for(lambda: '"batch":' in journal.read_text() if journal.exists() else False)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=180)
        assert (process.returncode, "Traceback" in err) == (130, False)
        assert "1 batch with 20 rows goes on at the service; the same command merges them" in out
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        assert main([*BATCH, "--base-url", server.base_url, "--overwrite", "--deadline", "1"]) == 6
        told = capsys.readouterr().err
        assert re.search(r"a batch of 20 rows batch_\w+ goes on at the service, and is forgotten by --overwrite", told)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["run", "-", "-o", "out.jsonl", "--via", "batch"], "cannot in a pipe: put them into a file"),
        (["run", "in.jsonl", "-o", "-", "--via", "batch"], "-o must be a regular file"),
        ([*BATCH, "--limits", "requests=1/min"], "leave --limits and --account out, and give --queue-tokens"),
        ([*BATCH, "--ledger", "usage.db"], "leave it out with --via batch"),
        ([*BATCH, "--shard", "1/2"], "leave --store and --shard out"),
        (
            [*BATCH, "--base-url", "http://127.0.0.1:9/v1", "--base-url", "http://127.0.0.2:9/v1"],
            "--via batch sends to one server: give one --base-url and one --api-key-env",
        ),
        (["run", "in.jsonl", "-o", "out.jsonl", "--cancel"], "--cancel ends the batches of an earlier run"),
        ([*BATCH, "--cancel", "--overwrite"], "give --via batch too, and leave --overwrite out"),
        ([*BATCH, "--simulate", "--base-url", "http://127.0.0.1:9/v1"], "--simulate starts a server of its own"),
        (
            ["run", "in.jsonl", "-o", "out.jsonl", "--simulate", "--store", "sqlite:x.db"],
            "--store shares the limits of a server that is not simulated",
        ),
        ([*BATCH, "--base-url", "http://127.0.0.1:9/v1", "--give-up-after", "0"], "cannot connect to 127.0.0.1:9"),
    ],
    ids=[
        "pipe",
        "stdout",
        "limits",
        "ledger",
        "shard",
        "two servers",
        "cancel of nothing",
        "cancel and overwrite",
        "a server beside the simulated one",
        "a store beside the simulated one",
        "away",
    ],
)
def test_what_cannot_be_done_by_the_batch_api_is_said(folder, monkeypatch, capsys, arguments, sentence):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    if arguments[1] == "-":
        reading, writing = os.pipe()
        os.close(writing)
        monkeypatch.setattr("penstock.cli.files.open_source", lambda _: reading)
    assert main(arguments) in {2, 5}
    assert sentence in capsys.readouterr().err


def test_the_plan_shows_both_ways_side_by_side(folder, capsys):
    (folder / "prices.json").write_text(
        '{"per": 1000, "batch": 0.5, "models": {"gpt-4o-mini": {"input": 1, "output": 4}}}'
    )
    rows = [{**chat(n), "body": {**chat(n)["body"], "max_tokens": 10}} for n in range(100)]
    (folder / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ["--limits", "requests=10/min", "--prices", "prices.json", "--queue-tokens", "600"]
    assert main(["plan", "in.jsonl", *options, "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    dollars = plan["models"]["gpt-4o-mini"]["input_dollars"] + 100 * 10 * 0.004
    assert plan["batch"]["dollars"] == pytest.approx(dollars / 2)
    assert plan["batch"]["at_most_seconds"] == 2 * 86_400
    assert plan["batch"]["batches"] == plan["models"]["gpt-4o-mini"]["batches"] > 4
    assert main(["plan", "in.jsonl", *options]) == 0
    one_by_one, by_batch = capsys.readouterr().out.splitlines()[-2:]
    assert one_by_one.split() == ["one", "by", "one:", f"${dollars:,.4f}", "at", "least", "9", "min"]
    assert by_batch.startswith("--via batch:")
    assert f"${dollars / 2:,.4f}   within 48 h, mostly sooner, in" in by_batch


def test_the_page_shows_what_happens(folder, capsys):
    """Its commands with the requests of the page about the command line, but for the seconds; and its program."""
    page = text_of("docs/batch-api.md")
    requests = re.search(r"^```json\n(.*?)^```$", text_of("docs/command-line.md"), re.MULTILINE | re.DOTALL)[1]
    rows = [line for line in requests.splitlines() if "sky" not in line]
    rows.append(json.dumps({"custom_id": "b", **chat(1)["body"]}))
    (folder / "requests.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    run, plan = re.findall(r"^```bash\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    shown, side_by_side, _ = re.findall(r"^```text\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert main(shlex.split(run)[1:]) == 0
    assert re.sub(r"\d+ s$", "# s", capsys.readouterr().out.strip()) == re.sub(r"\d+ s$", "# s", shown.strip())
    assert main(shlex.split(plan)[1:]) == 0
    printed = "\n".join(capsys.readouterr().out.splitlines()[-2:])
    assert re.sub(r" +\$[\d.]+", " $#", printed) == re.sub(r" +\$[\d.]+", " $#", side_by_side.strip())
    ((code, output),) = examples_of("docs/batch-api.md")
    run_example(code, "batch-api.md", {"__name__": "__main__"})
    assert capsys.readouterr().out == output
