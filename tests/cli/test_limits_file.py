"""`--limits FILE`: limits per model, and what is said of a file that is none."""

from __future__ import annotations

import json
import os

import pytest

from penstock import Rate, calendar, simulator, sliding
from penstock.cli import main
from penstock.cli.limits import limits_given
from penstock.simulator import Simulation
from tests.cli.commands import KEY, chat, lines_of, write

JSON = """{
  "gpt-4o": {"requests": "500/min", "tokens": ["30k/min burst 20k", "2M/day"]},
  "gpt-4o-mini": "requests=3500/min,tokens=90k/min",
  "text-embedding-*": {"requests": "3000/min"},
  "text-embedding-3-*": {"requests": "5000/min"},
  "*": "auto"
}"""
TOML = """
"gpt-4o-mini" = "requests=3500/min,tokens=90k/min"
"*" = "auto"

[gpt-4o]
requests = "500/min"
tokens = ["30k/min burst 20k", "2M/day"]

["text-embedding-*"]
requests = "3000/min"

["text-embedding-3-*"]
requests = "5000/min"
"""


def rates(requests):
    return {"requests": (Rate(requests, 60),)}


@pytest.mark.parametrize(
    ("name", "text"),
    [("limits.json", JSON), ("limits.toml", TOML), ("limits", JSON), ("limits", TOML), ("l.json", "\ufeff" + JSON)],
    ids=["json", "toml", "json by its looks", "toml by its looks", "with a byte order mark"],
)
def test_each_model_has_the_limits_of_its_entry(folder, name, text):
    """Snapshots and fine-tuned models share those of their model; the longest beginning counts; models that the
    server's answers tell have each their own."""
    (folder / name).write_text(text, encoding="utf-8")
    limits_of, together = limits_given(name, None)
    assert together is None
    four = {"requests": (Rate(500, 60),), "tokens": (Rate(30_000, 60, 20_000), Rate(2_000_000, 86_400))}
    assert limits_of("gpt-4o") == limits_of("gpt-4o-2024-08-06") == limits_of("ft:gpt-4o:us::x") == ("gpt-4o", four)
    assert limits_of("gpt-4o-mini")[1] == {"requests": (Rate(3_500, 60),), "tokens": (Rate(90_000, 60),)}
    assert limits_of("text-embedding-ada-002") == ("text-embedding-*", rates(3_000))
    assert limits_of("text-embedding-3-small") == ("text-embedding-3-*", rates(5_000))
    assert (limits_of("mine"), limits_of("")) == (("mine", None), ("", None))


def test_windows_are_written_behind_the_rate():
    _, limits = limits_given("requests=100/10s window,tokens=1k/min sliding,requests=5/day window", None)
    assert limits == {"requests": (calendar(100, 10), calendar(5, "day")), "tokens": (sliding(1_000, 60),)}


def test_a_file_of_units_alone_is_for_all_models_together(folder):
    (folder / "all.toml").write_text('requests = "500/min"\n')
    limits_of, together = limits_given("all.toml", None)
    assert limits_of("gpt-4o") == limits_of("mine") == ("", rates(500))
    assert together == rates(500)


def test_a_run_keeps_the_limits_of_each_model_and_names_a_row_without(folder, monkeypatch, capsys):
    rows = [chat(number) for number in range(4)]
    rows[2]["body"]["model"], rows[3]["body"]["model"] = "gpt-4o", "mine"
    (folder / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "limits.json").write_text('{"gpt-4o": {"requests": "500/min"}, "gpt-4o-m*": "tokens=90k/min"}')
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with simulator.serve(Simulation()) as server:
        command = ["run", "in.jsonl", "-o", "out.jsonl", "--base-url", server.base_url, "--limits", "limits.json"]
        assert main(command) == 3
    summary = json.loads((folder / "out.summary.json").read_text())
    assert [(one["models"], one["limit"]) for one in summary["limits"]["requests"]] == [("gpt-4o", "500/min")]
    assert [(one["models"], one["limit"]) for one in summary["limits"]["tokens"]] == [("gpt-4o-m*", "90000/min")]
    (error,) = lines_of(folder / "out.errors.jsonl")
    assert (error["custom_id"], error["error"]["code"]) == ("row-3", "unknown_model")
    assert error["error"]["message"] == "limits.json has no limits for 'mine': add it there, or \"*\" for all others"
    capsys.readouterr()
    assert main(["errors", "out.jsonl"]) == 3
    assert "in the file that --limits names" in capsys.readouterr().out


def test_a_plan_and_a_simulated_server_go_by_the_file(folder, capsys):
    write(folder, range(120))
    (folder / "limits.toml").write_text('["gpt-4o-mini"]\nrequests = "60/min burst 30"\n')
    assert main(["plan", "in.jsonl", "--limits", "limits.toml"]) == 0
    assert "at least 90 s, by requests of gpt-4o-mini (60/min burst 30)" in capsys.readouterr().out
    run = ["run", "in.jsonl", "-o", "out.jsonl", "--limits", "limits.toml"]
    assert main([*run, "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["seconds"] == 90
    assert main([*run, "--simulate", "--rows", "5", "--latency", "0.01"]) == 0
    summary = json.loads((folder / "out.summary.json").read_text())
    assert [one["limit"] for one in summary["limits"]["requests"]] == ["60/min burst 30"]


@pytest.mark.parametrize(
    ("rows", "limits", "kept"),
    [
        (b"{torn\n" + json.dumps(chat(1)).encode(), '{"gpt-4o-mini": "requests=60/min burst 30", "m": "auto"}', "60/min burst 30"),
        (json.dumps(chat(1)).encode(), '{"gpt-4o-mini": "auto", "m": "requests=60/min"}', "3500/min"),
        (b"{torn\n", '{"gpt-4o-mini": "requests=60/min"}', None),
    ],
    ids=["of the first row that is one", "that nobody named", "of no row at all"],
)  # fmt: skip
def test_a_simulated_account_has_the_limits_of_the_first_model(folder, rows, limits, kept):
    (folder / "in.jsonl").write_bytes(rows)
    (folder / "limits.json").write_text(limits)
    run = ["run", "in.jsonl", "-o", "out.jsonl", "--limits", "limits.json", "--simulate", "--latency", "0.01"]
    assert main(run) == (3 if b"torn" in rows else 0)
    summary = json.loads((folder / "out.summary.json").read_text())
    assert [one["limit"] for one in summary["limits"].get("requests", ())] == ([kept] if kept else [])


FORM = 'write it like {"gpt-4o": {"requests": "500/min", "tokens": "30k/min"}, "*": "auto"}'


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("gone.json", None, "cannot read gone.json: No such file or directory"),
        ("l.json", "", "l.json: it is not JSON: Expecting value: line 1 column 1 (char 0)"),
        ("l.json", '{"m": {"requests": 5/min}}', "l.json: it is not JSON: Expecting ',' delimiter: line 1 column 21"),
        ("l.json", "[]", "l.json: it is not an object of models and their limits"),
        ("l.json", "{}", "l.json: it names no model"),
        ("l.json", "[" * 500_000, "l.json: it is nested too deeply"),
        ("l.json", b"\xff\xfe{\0", "l.json: byte 1 is not UTF-8"),
        ("l.json", b" " * 1_100_000, "l.json: it is longer than 1,048,576 bytes"),
        ("l.json", '{"m": "auto", "m": "requests=5/min"}', "l.json: 'm' stands there twice"),
        ("l.json", '{"m": {"requests": "fast"}}', "l.json: 'm': requests: cannot read 'fast' as a limit"),
        ("l.json", '{"m": {"requests": 500}}', "l.json: 'm': requests: a limit is read from a string such as"),
        ("l.json", '{"m": {"requests": []}}', "l.json: 'm': requests: a limit is read from a string such as"),
        ("l.json", '{"m": {"requests": null}}', "l.json: 'm': requests: a limit is read from a string such as"),
        ("l.json", '{"m": {"requests": "unlimited"}}', "l.json: 'm': requests: leave out a unit that is unlimited"),
        ("l.json", '{"m": {"dollars": "5/min"}}', "l.json: 'm': 'dollars' is not counted; there are requests, tokens"),
        ("l.json", '{"m": {}}', "l.json: 'm': it needs limits by unit, or \"auto\", and not {}"),
        ("l.json", '{"m": 5}', "l.json: 'm': it needs limits by unit, or \"auto\", and not 5"),
        ("l.json", '{"m": "fast"}', "l.json: 'm': cannot read 'fast': write it like"),
        ("l.json", '{"*m": "auto"}', "l.json: '*m': it is not the name of a model; a * may stand only at its end"),
        ("l.json", '{"": "auto"}', "l.json: '': it is not the name of a model"),
        ("l.json", '{"requests": "5/min", "m": "auto"}', "l.json: 'requests', which is counted, stands beside 'm'"),
        ("l.toml", "requests = 5/min", "l.toml: it is not TOML: "),
        ("l.toml", '[gpt-4.1]\nrequests = "5/min"', 'in TOML that name is written "gpt-4.1"'),
        ("l.toml", '[m]\nrequests = "5/min"\n[m]\n', "l.toml: it is not TOML: "),
    ],
)
def test_a_file_that_is_none_is_said_with_its_place_and_the_way_out(folder, capsys, name, content, said):
    if content is not None:
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    for command in (["plan", "in.jsonl"], ["run", "in.jsonl", "-o", "out.jsonl"], ["simulate", "--port", "0"]):
        assert main([*command, "--limits", name]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("penstock: --limits: ")
        assert said in line
        assert FORM in line or content is None
    assert not (folder / "out.jsonl").exists()


def test_a_folder_and_a_pipe_are_said_or_read(folder, capsys):
    (folder / "folder.json").mkdir()
    assert main(["plan", "in.jsonl", "--limits", "folder.json"]) == 2
    assert "cannot read folder.json: Is a directory" in capsys.readouterr().err
    reading, writing = os.pipe()
    os.write(writing, b'{"requests": "20/min burst 5"}')
    os.close(writing)
    assert main(["run", "in.jsonl", "-o", "out.jsonl", "--dry-run", "--limits", f"/dev/fd/{reading}"]) == 0
    os.close(reading)
    assert "at least 45 s, by requests (20/min burst 5)" in capsys.readouterr().out


def test_a_server_has_one_set_of_limits(folder, capsys):
    (folder / "limits.json").write_text(JSON)
    assert main(["simulate", "--limits", "limits.json"]) == 2
    assert "--limits: a server has one set of limits: write limits.json like" in capsys.readouterr().err
