"""What options and the environment mean for the server and for the rows."""

from __future__ import annotations

import json

import pytest

from penstock import simulator
from penstock.cli import main
from penstock.cli.options import change_of, server_of, servers_of
from penstock.cli.terminal import Fault
from penstock.llm.tokens import by_bytes
from penstock.runner.source import read_row
from penstock.simulator import Simulation
from tests.cli.commands import KEY, LIMITS, chat, count, lines_of, simulated

AZURE = "https://me.openai.azure.com/openai/deployments/d?api-version=1"


@pytest.mark.parametrize(
    ("environment", "arguments", "headers"),
    [
        ({"OPENAI_API_KEY": "k"}, (None, ()), {"authorization": "Bearer k"}),
        (
            {"OPENAI_API_KEY": "k", "OPENAI_ORG_ID": "o", "OPENAI_PROJECT_ID": "p"},
            (None, ()),
            {"authorization": "Bearer k", "openai-organization": "o", "openai-project": "p"},
        ),
        ({"OPENAI_API_KEY": "k"}, (AZURE, ()), {"api-key": "k"}),
        ({"OPENAI_API_KEY": "k", "AZURE_OPENAI_API_KEY": "a"}, (AZURE, ()), {"api-key": "a"}),
        ({}, ("http://localhost:8000/v1", ()), {}),
        ({}, ("http://127.0.0.1:8000/v1", ()), {}),
        ({}, ("http://[::1]:8000/v1", ()), {}),
        ({}, ("http://192.168.1.7/v1", ()), {}),
        ({}, ("http://vllm:8000/v1", ()), {}),
        ({}, ("http://box.local:8000/v1", ()), {}),
        ({"OPENAI_API_KEY": "k"}, ("http://localhost:8000/v1", ()), {"authorization": "Bearer k"}),
        ({"MINE": "m"}, ("https://x.example/v1", ("api-key: $MINE",)), {"api-key": "m"}),
        (
            {"MINE": "m"},
            ("https://x.example/v1", ("Authorization: Bearer ${MINE}", "X-Team: a:b")),
            {"Authorization": "Bearer m", "X-Team": "a:b"},
        ),
    ],
)
def test_the_server_gets_the_headers_that_it_wants(folder, monkeypatch, environment, arguments, headers):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    server = server_of(*arguments, 60)
    assert server.headers == headers


@pytest.mark.parametrize("base", [None, "https://api.example/v1", AZURE, "http://8.8.8.8/v1"])
def test_a_server_of_others_wants_a_key(folder, base):
    with pytest.raises(Fault, match="API_KEY is not set"):
        server_of(base, (), 60)


def test_bodies_are_changed_where_the_options_say():
    change, salt = change_of("m2", ["temperature=0", "reasoning.effort=low", "stop=[1]", "user=a=b"])
    body = {"model": "m", "messages": [], "reasoning": {"summary": "auto"}}
    assert change(body) == {
        "model": "m2",
        "messages": [],
        "reasoning": {"summary": "auto", "effort": "low"},
        "temperature": 0,
        "stop": [1],
        "user": "a=b",
    }
    assert body["reasoning"] == {"summary": "auto"}
    assert salt
    assert change_of("m2", [])[1] != change_of("m3", [])[1]
    assert change_of(None, []) == (None, b"")


def test_a_path_may_lead_into_a_list():
    change, _ = change_of(None, ["messages.1.content=hi", "tools.0=null", "user.name=x"])
    body = {"messages": [{"content": "a"}, {"role": "user", "content": "b"}], "tools": [1, 2], "user": "y"}
    changed = [{"content": "a"}, {"role": "user", "content": "hi"}]
    assert change(body) == {"messages": changed, "tools": [None, 2], "user": {"name": "x"}}
    assert body["messages"][1]["content"] == "b"
    for path in ("messages.2.content=hi", "messages.last.content=hi", "messages.-1=hi"):
        row = read_row(1, json.dumps({"model": "m", **body}).encode(), by_bytes, change_of(None, [path])[0])
        assert (row.code, row.message[:33]) == ("cannot_set", "--set: a list of 2 has no place '")


SIMULATED = ["--simulate", "--latency", "0.01", "--limits", LIMITS, "--quiet"]


def test_an_answer_of_the_simulator_is_not_taken_for_one_of_a_service(folder, capsys, monkeypatch):
    """A file that was tried out with --simulate first is then run for real into the same OUT."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    assert main(["run", "in.jsonl", "-o", "out.jsonl", *SIMULATED]) == 0
    with simulator.serve(Simulation()) as server:
        run = ["run", "in.jsonl", "-o", "out.jsonl", "--limits", LIMITS, "--base-url", f"{server.base_url}?key=secret"]
        assert main(run) == 2
        said = "20 rows are answered in out.jsonl by the embedded simulator (--simulate), which is not asked now"
        assert said in capsys.readouterr().err
        assert main([*run, "--changed=rerun"]) == 0
        assert "20 rows were answered by a server that is not asked now" in capsys.readouterr().err
        assert server.statistics().admitted == 20
    assert len(lines_of(folder / "out.jsonl")) == 20
    assert "secret" not in (folder / "out.jsonl.journal").read_text()


def test_a_stale_answer_is_refused_by_the_command(folder, capsys):
    """Exit code 2, with count and first line; then whatever was chosen."""
    run = ["run", "in.jsonl", "-o", "out.jsonl", *SIMULATED]
    assert main(run) == 0
    rows = [chat(number) for number in range(20)]
    rows[4]["body"]["temperature"] = 1
    (folder / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    before = (folder / "out.jsonl").read_bytes()
    assert main(run) == 2
    assert (
        "1 row asks something else than what out.jsonl answers under the same custom_id (first: line 5)"
        in capsys.readouterr().err
    )
    assert (folder / "out.jsonl").read_bytes() == before
    run.remove("--quiet")
    assert main([*run, "--changed", "keep"]) == 0
    assert "1 row was edited after the answer: --changed=keep keeps the old answers" in capsys.readouterr().err
    assert (folder / "out.jsonl").read_bytes() == before
    assert main([*run, "--changed=rerun"]) == 0
    said = capsys.readouterr().err
    assert "1 row was edited after the answer: --changed=rerun asks again" in said
    assert "19 rows are answered in out.jsonl already and are skipped" in said
    assert (
        len({row["custom_id"] for row in lines_of(folder / "out.jsonl")}) == len(lines_of(folder / "out.jsonl")) == 20
    )
    assert main([*run, "--model", "gpt-4o"]) == 2


def test_the_order_of_the_input_and_the_first_rows(folder):
    assert main(["run", "in.jsonl", "-o", "out.jsonl", "--order", "input", "--rows", "7", *SIMULATED]) == 0
    assert [row["custom_id"] for row in lines_of(folder / "out.jsonl")] == [f"row-{number}" for number in range(7)]


def test_a_table_is_asked_row_by_row(folder):
    (folder / "in.csv").write_text("id,text\na,one\nb,two\n")
    command = ["run", "in.csv", "-o", "out.jsonl", "--prompt", "Say {text}", "--model", "gpt-4o-mini", *SIMULATED]
    assert main(command) == 0
    assert {row["custom_id"] for row in lines_of(folder / "out.jsonl")} == {"a", "b"}


@pytest.mark.parametrize("command", ["run", "plan", "report"])
def test_defaults_are_in_the_help(capsys, monkeypatch, command):
    """Those too that are no value."""
    monkeypatch.setenv("COLUMNS", "250")
    assert main([command, "--help"]) == 0
    shown = capsys.readouterr().out
    assert "[default: (the list prices of this version)]" in shown
    if command == "run":
        for words in ("OUT with .errors.jsonl", "OUT with .journal", "OPENAI_BASE_URL, else OpenAI's own"):
            assert f"[default: ({words})]" in shown


def test_a_server_that_wants_a_key_and_gets_none_is_said_with_the_way_out(folder, capsys):
    """A server on this machine is tried without one; and no failed row is all that is wrong then."""
    with simulator.serve(Simulation()) as server:
        assert main(["run", "in.jsonl", "-o", "out.jsonl", "--base-url", server.base_url]) == 4
    said = capsys.readouterr()
    assert "no key was sent: export OPENAI_API_KEY, or give --api-key-env" in said.err
    assert "of the optimum" not in said.out
    assert main(["errors", "out.jsonl"]) == 0
    assert "the run ended early, and 20 rows are untouched: You didn't provide" in capsys.readouterr().out


def test_exit_codes_are_in_the_help(capsys):
    assert main(["run", "--help"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "Exit codes: 0 every row is answered; 2" in said
    assert "130 interrupted" in said


def test_a_server_that_is_not_there_is_exit_code_5(folder, capsys):
    assert (
        main(["run", "in.jsonl", "-o", "out.jsonl", "--base-url", "http://127.0.0.1:1/v1", "--give-up-after", "0.3"])
        == 5
    )
    assert "cannot connect to 127.0.0.1:1: " in capsys.readouterr().err
    assert lines_of(folder / "out.errors.jsonl") == []


def test_a_deadline_is_exit_code_6(folder, capsys):
    command = [
        "run",
        "in.jsonl",
        "-o",
        "out.jsonl",
        "--simulate",
        "--limits",
        "requests=60/min burst 2",
        "--latency",
        "0.01",
    ]
    assert main([*command, "--deadline", "1"]) == 6
    assert "the deadline of 1 s is over" in capsys.readouterr().err


def test_a_plan_and_what_failed(folder, capsys):
    (folder / "in.jsonl").write_text((folder / "in.jsonl").read_text() + "{\n")
    assert main(["plan", "in.jsonl", "--limits", "requests=60/min burst 5"]) == 3
    said = capsys.readouterr().out
    assert "21 rows: 20 would be sent, 1 would not" in said
    assert "at least 15 s, by requests (60/min burst 5)" in said
    assert main(["run", "in.jsonl", "-o", "out.jsonl", "--dry-run"]) == 3
    assert not (folder / "out.jsonl").exists()
    assert main(["plan", "in.jsonl", "--json"]) == 3
    capsys.readouterr()
    assert main(["run", "in.jsonl", "-o", "out.jsonl", *SIMULATED]) == 3
    assert main(["errors", "out.jsonl"]) == 3
    assert "1 × invalid_json" in capsys.readouterr().out


def test_a_run_that_is_priced_says_what_it_cost(folder):
    (folder / "p.json").write_text('{"as_of": "today", "models": {"gpt-4o-mini": {"input": 1000, "output": 0}}}')
    assert main(["run", "in.jsonl", "-o", "out.jsonl", "--prices", "p.json", *SIMULATED]) == 0
    assert json.loads((folder / "out.summary.json").read_text())["dollars"] > 0
    assert main(["run", "in.jsonl", "-o", "o2.jsonl", "--prices", "p.json", "--max-cost", "0.02", *SIMULATED]) == 6


@pytest.mark.parametrize(
    ("urls", "keys", "found"),
    [
        ([], [], {"api.openai.com": "usual"}),
        ([], ["A", "B"], {"api.openai.com (A)": "a", "api.openai.com (B)": "b"}),
        (["https://x.example/v1", "https://y.example/v1"], ["A", "B"], {"x.example": "a", "y.example": "b"}),
        (["https://x.example/v1", "https://y.example/v1"], ["A"], {"x.example": "a", "y.example": "a"}),
        (["https://x.example/v1", "https://y.example/v1"], [], {"x.example": "usual", "y.example": "usual"}),
        (["https://x.example/v1"] * 2, ["A", "B"], {"x.example (A)": "a", "x.example (B)": "b"}),
        (
            ["https://x.example/a/v1", "https://x.example/b/v1"],
            ["A"],
            {"x.example": "a", "x.example (A)": "a"},
        ),
    ],
)
def test_each_server_of_a_pool_gets_its_key(folder, monkeypatch, urls, keys, found):
    for name, value in {"OPENAI_API_KEY": "usual", "A": "a", "B": "b"}.items():
        monkeypatch.setenv(name, value)
    servers = servers_of(urls, keys, (), 60)
    assert {name: server.headers["authorization"] for name, server in servers.items()} == {
        name: f"Bearer {key}" for name, key in found.items()
    }


@pytest.mark.parametrize(
    ("urls", "keys", "message"),
    [
        (["https://x.example"] * 2, [], "named twice"),
        ([], ["A", "A"], "named twice"),
        (["https://x.example", "https://y.example", "https://z.example"], ["A", "B"], "one for each --base-url"),
        ([], ["NOWHERE"], "NOWHERE is not set"),
        (["http://localhost:1"], ["NOWHERE"], "NOWHERE is not set"),
        (["https://me:secret@x.example/v1"], [], "holds a name or a password"),
    ],
)
def test_a_pool_that_is_none_is_said_without_a_secret(folder, monkeypatch, urls, keys, message):
    for name, value in {"OPENAI_API_KEY": "usual", "A": "a", "B": "b"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(Fault, match=message) as caught:
        servers_of(urls, keys, (), 60)
    assert "secret" not in str(caught.value)


def test_a_pool_of_two_servers_answers_every_row_once(folder, monkeypatch):
    """Though one of them is not there."""
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    with simulator.serve(Simulation()) as one, simulator.serve(Simulation()) as two:
        addresses = [one.base_url, two.base_url, "http://127.0.0.1:9/v1"]
        bases = [word for address in addresses for word in ("--base-url", address)]
        limits = ["--limits", "requests=600/min burst 5"]
        assert main(["run", "in.jsonl", "-o", "out.jsonl", *bases, *limits, "--quiet"]) == 0
        assert one.statistics().admitted > 3
        assert two.statistics().admitted > 3
    assert len({line["custom_id"] for line in lines_of(folder / "out.jsonl")}) == count(folder / "out.jsonl") == 20


def test_links_that_lead_to_each_other_and_folders_are_refused_before_anything_is_sent(folder, capsys):
    (folder / "out.jsonl.journal").symlink_to("out.jsonl.journal")
    assert simulated() == 2
    assert "cannot write out.jsonl.journal: Too many levels of symbolic links" in capsys.readouterr().err
    (folder / "out.jsonl.journal").unlink()
    assert simulated("--report", str(folder)) == 2
    assert "Is a directory" in capsys.readouterr().err
    assert not (folder / "out.jsonl").exists()
