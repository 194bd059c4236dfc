"""The command line: what it says, how it ends, and what is on disk however it ends."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from penstock import simulator
from penstock.cli import files as cli_files
from penstock.cli import main, outcome, requests
from penstock.cli.limits import parse_limits
from penstock.limits import Rate
from penstock.runner.files import Appended, OutputError
from penstock.simulator import Faults, Simulation
from tests.cli.commands import KEY, LIMITS, chat, count, lines_of, simulated, started, wait_for, write

# Success


def test_a_run_ends_with_results_and_a_summary(folder, capsys):
    assert simulated() == 0
    assert sorted(result["custom_id"] for result in lines_of(folder / "out.jsonl")) == sorted(
        f"row-{n}" for n in range(20)
    )
    assert (folder / "out.errors.jsonl").read_bytes() == b""
    summary = json.loads((folder / "out.summary.json").read_text())
    expected = {"rows": 20, "answered": 20, "failed": 0, "retries": 0, "status_429": 0, "stopped": None}
    assert expected.items() <= summary.items()
    assert summary["limits"]["tokens"][0]["limit"] == "600000/min"
    said = capsys.readouterr()
    assert said.out.startswith(
        "20 rows: 20 answered, 0 failed\n20 requests sent, 0 of them again; 0 answered with 429\n"
    )
    assert "of the optimum" in said.out


def test_quiet_says_nothing(folder, capsys):
    assert simulated("--quiet") == 0
    assert tuple(capsys.readouterr()) == ("", "")


def test_an_empty_file_is_a_success(folder, capsys):
    write(folder, [], b"\n\n")
    assert simulated() == 0
    assert (folder / "out.jsonl").read_bytes() == b""
    assert capsys.readouterr().out.startswith("0 rows")


@pytest.mark.parametrize("limits", [["--limits", "auto"], []], ids=["auto", "not given"])
def test_limits_that_nobody_gave_are_learned_from_the_answers(folder, monkeypatch, limits):
    """The service's own: 20 requests of which no more than 15 go at once are not refused."""
    with simulator.serve(Simulation(requests="600/min burst 15", tokens="90k/min")) as server:
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        assert main(["run", "in.jsonl", "-o", "out.jsonl", "--base-url", server.base_url, *limits]) == 0
        assert server.statistics().answered == 20
    summary = json.loads((folder / "out.summary.json").read_text())
    assert summary["limits"]["requests"][0]["limit"] == "600/min"


def test_an_account_brings_its_limits(folder):
    assert main(["run", "in.jsonl", "-o", "out.jsonl", "--simulate", "--latency", "0.01", "--account", "tier-3"]) == 0
    summary = json.loads((folder / "out.summary.json").read_text())
    assert summary["limits"]["tokens"][0]["limit"] == "4000000/min"


def test_every_model_of_an_account_has_limits_of_its_own(folder, monkeypatch):
    """Dated snapshots share those of their model; a model that is not known is an error of its row."""
    rows = [chat(number) for number in range(4)]
    rows[1]["body"]["model"], rows[2]["body"]["model"], rows[3]["body"]["model"] = (
        "gpt-4o-mini-2024-07-18",
        "gpt-4o",
        "mine",
    )
    (folder / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with simulator.serve(Simulation()) as server:
        arguments = ["run", "in.jsonl", "-o", "out.jsonl", "--base-url", server.base_url, "--account", "tier-3"]
        assert main(arguments) == 3
    summary = json.loads((folder / "out.summary.json").read_text())
    assert [one["models"] for one in summary["limits"]["tokens"]] == ["gpt-4o-mini", "gpt-4o"]
    (error,) = lines_of(folder / "out.errors.jsonl")
    assert (error["custom_id"], error["error"]["code"]) == ("row-3", "unknown_model")


def test_the_server_comes_from_the_environment_and_so_does_the_key(folder, monkeypatch):
    with simulator.serve(Simulation(api_keys=(KEY,))) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
        monkeypatch.setenv("OPENAI_API_KEY", f"{KEY}\n")
        assert main(["run", "in.jsonl", "-o", "out.jsonl", "--limits", LIMITS]) == 0
        assert server.statistics().answered == 20


def test_requests_come_from_standard_input(tmp_path):
    """They are sent as they come: the first is answered while the second is not yet written."""
    out = tmp_path / "out.jsonl"
    process = started("run", "-", "-o", str(out), "--simulate", "--latency", "0.01", stdin=subprocess.PIPE)
    process.stdin.write(json.dumps(chat(0)) + "\n")
    process.stdin.flush()
    wait_for(lambda: count(out) == 1)
    said = process.communicate(json.dumps(chat(1)))
    assert process.returncode == 0, said
    assert [result["custom_id"] for result in lines_of(out)] == ["row-0", "row-1"]


# Rows that fail


def test_bad_lines_are_in_the_errors_file_and_the_rest_is_done(folder, capsys):
    """The end says of what they failed, and where to read more."""
    write(folder, range(3), b'{"torn\n' + json.dumps(chat(1)).encode())
    assert simulated("--errors", "bad.jsonl") == 3
    said = capsys.readouterr().out.splitlines()[-2:]
    assert said[0] == "failed of 1 × invalid_json, 1 × duplicate_custom_id"
    assert said[1] == "what failed, and what to do: penstock errors bad.jsonl"
    assert main(["errors", "bad.jsonl"]) == 3
    assert capsys.readouterr().out.startswith("1 × invalid_json\n")
    assert len(lines_of(folder / "out.jsonl")) == 3
    assert [
        (error["line"], error["custom_id"], error["error"]["code"]) for error in lines_of(folder / "bad.jsonl")
    ] == [
        (4, None, "invalid_json"),
        (5, "row-1", "duplicate_custom_id"),
    ]


def test_rows_that_failed_are_tried_again_by_the_next_run(folder, monkeypatch, capsys):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with simulator.serve(Simulation()) as server:
        arguments = [
            "run",
            "in.jsonl",
            "-o",
            "out.jsonl",
            "--limits",
            LIMITS,
            "--base-url",
            server.base_url,
            "--attempts",
            "1",
        ]
        server.inject("server_error", times=3)
        assert main(arguments) == 3
        errors = lines_of(folder / "out.errors.jsonl")
        assert {error["error"]["status_code"] for error in errors} == {500}
        assert len(errors) == 3
        assert main(arguments) == 0
        assert server.statistics().admitted == 23
    assert len(lines_of(folder / "out.jsonl")) == 20
    assert (folder / "out.errors.jsonl").read_bytes() == b""
    assert (
        "17 rows are answered in out.jsonl already and are skipped; --overwrite starts over" in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("name", "change", "answered", "said"),
    [
        ("in.jsonl", lambda rows: b"".join(rows[5:]), 15, "out.jsonl keeps 5 answers to rows that in.jsonl does not have"),
        ("out.jsonl", lambda lines: b"".join(lines[:15]), 20, "out.jsonl lacked 5 answers that its journal holds, and"),
        ("out.jsonl.journal", lambda lines: b"".join(lines).replace(b'"done"', b'"dune"', 1), 20,
         "1 damaged record is taken out of the journal; what out.jsonl holds counts instead, and out.jsonl.journal.damaged"),
    ],
    ids=["fewer rows", "fewer results", "a damaged journal"],
)  # fmt: skip
def test_what_an_earlier_run_left_is_said(folder, capsys, name, change, answered, said):
    assert simulated("--quiet") == 0
    (folder / name).write_bytes(change((folder / name).read_bytes().splitlines(keepends=True)))
    assert simulated() == 0
    err = capsys.readouterr().err
    assert f"penstock: {said}" in err
    assert f"penstock: {answered} rows are answered in out.jsonl already and are skipped" in err


def test_in_the_order_of_the_input_answers_to_rows_that_went_are_in_the_journal(folder, capsys):
    assert simulated("--quiet") == 0
    (folder / "in.jsonl").write_bytes(b"".join((folder / "in.jsonl").read_bytes().splitlines(keepends=True)[5:]))
    assert simulated("--order", "input") == 0
    assert "out.jsonl.journal keeps 5 answers to rows that in.jsonl does not have" in capsys.readouterr().err
    assert len(lines_of(folder / "out.jsonl")) == 15
    assert simulated() == 0
    assert len(lines_of(folder / "out.jsonl")) == 20


def test_overwrite_begins_anew(folder):
    assert simulated() == 0
    assert simulated("--overwrite") == 0
    assert json.loads((folder / "out.summary.json").read_text())["skipped"] == 0
    assert len(lines_of(folder / "out.jsonl")) == 20


# Accounts that are used up


def test_an_account_without_quota_ends_the_run(folder, monkeypatch, capsys):
    """At once, with one line; the rest is untouched, and the same command goes on."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    arguments = ["run", "in.jsonl", "-o", "out.jsonl", "--limits", LIMITS, "--max-in-flight", "2", "--base-url"]
    with simulator.serve(Simulation(faults=Faults(insufficient_quota_after=7))) as server:
        assert main([*arguments, server.base_url]) == 4
        assert 1 <= server.statistics().refused["insufficient_quota"] <= 2
    assert "penstock: You exceeded your current quota" in capsys.readouterr().err
    assert len(lines_of(folder / "out.jsonl")) == 7
    assert lines_of(folder / "out.errors.jsonl") == []
    assert json.loads((folder / "out.summary.json").read_text())["stopped"]["code"] == "account"
    with simulator.serve(Simulation()) as server:
        assert main([*arguments, server.base_url, "--changed=keep"]) == 0  # its port is another one
        assert server.statistics().admitted == 13
    assert len({result["custom_id"] for result in lines_of(folder / "out.jsonl")}) == 20


# Commands that cannot be carried out


def refused(capsys, arguments):
    """What the one line on stderr says."""
    assert main(arguments) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert re.fullmatch(r"penstock: [^\n]+\n", said.err), said.err
    return said.err.removeprefix("penstock: ").rstrip("\n")


RUN = ["run", "in.jsonl", "-o", "out.jsonl"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            [*RUN, "--limits", LIMITS],
            "OPENAI_API_KEY is not set: export it (any value will do for a server that asks for none)",
        ),
        (
            ["run", "nowhere.jsonl", "-o", "out.jsonl", "--simulate"],
            "cannot read nowhere.jsonl: No such file or directory",
        ),
        (["run", ".", "-o", "out.jsonl", "--simulate"], "cannot read .: Is a directory"),
        (
            ["run", "in.jsonl", "-o", "no/out.jsonl", "--simulate"],
            "cannot write no/out.jsonl: the folder no is not there",
        ),
        (["run", "in.jsonl", "-o", "o" * 300, "--simulate"], "File name too long"),
        (["run", "in.jsonl", "-o", "-", "--order", "input", "--simulate"], "out of the journal: give --journal FILE"),
        (["run", "in.jsonl", "-o", ".", "--simulate"], "cannot write .: Is a directory"),
        (["run", "in.jsonl", "-o", "in.jsonl", "--simulate"], "FILE and -o are the same file: in.jsonl"),
        (["run", "in.jsonl", "-o", "./x/../in.jsonl", "--simulate"], "FILE and -o are the same file: "),
        ([*RUN, "--errors", "out.jsonl", "--simulate"], "-o and --errors are the same file: out.jsonl"),
        (["run", "in.jsonl", "-o", "out.jsonl.gz", "--simulate"], "-o: out.jsonl.gz would not be compressed: "),
        ([*RUN, "--errors", "e.zst", "--simulate"], "--errors: e.zst would not be compressed: "),
        ([*RUN, "--errors", "no/e.jsonl", "--simulate"], "cannot write no/e.jsonl: the folder no is not there"),
        (
            ["run", "in.jsonl", "-o", "/dev/null", "--simulate"],
            "/dev/null is not a regular file, so nothing can be put beside it",
        ),
        ([*RUN, "--limits", "fast", "--simulate"], "--limits: cannot read 'fast': write it like"),
        (
            [*RUN, "--limits", "requests=fast", "--simulate"],
            "--limits: requests: cannot read 'fast' as a limit: write it like",
        ),
        ([*RUN, "--limits", "requests=0/min", "--simulate"], "--limits: requests: rate must be a finite number"),
        ([*RUN, "--limits", "requests=-5/min", "--simulate"], "--limits: requests: cannot read '-5/min' as a limit"),
        (
            [*RUN, "--limits", "requests=5/min burst 0.5", "--simulate"],
            "--limits: requests: a burst of 0.5 is below one unit",
        ),
        (
            [*RUN, "--limits", "dollars=5/min", "--simulate"],
            "--limits: 'dollars' is not counted; there are requests, tokens, images",
        ),
        ([*RUN, "--limits", "requests=5/min,", "--simulate"], "--limits: cannot read ''"),
        ([*RUN, "--limits", "", "--simulate"], "--limits: cannot read ''"),
        (
            [*RUN, "--limits", "output_tokens=5/min", "--simulate"],
            "--limits: 'output_tokens' is not counted; there are requests, tokens, images",
        ),
        (
            [*RUN, "--limits", LIMITS, "--account", "tier-1"],
            "--limits and --account both say what the limits are: give one of them",
        ),
        (
            [*RUN, "--account", "rich", "--simulate"],
            "--account: there is no 'rich'; there are free-trial, pay-as-you-go-48h, ",
        ),
        (
            [*RUN, "--account", "free-trial", "--simulate"],
            "--account: line 1: no limits are known for 'gpt-4o-mini' in the guide",
        ),
        (
            ["run", "-", "-o", "out.jsonl", "--account", "tier-1", "--simulate"],
            "--simulate with --account looks for the model in FILE",
        ),
        (
            [*RUN, "--simulate", "--base-url", "http://x/v1"],
            "--simulate starts a server of its own: leave --base-url and --api-key-env out",
        ),
        (
            [*RUN, "--base-url", "localhost:8000"],
            "--base-url: 'localhost:8000' is not the address of a server; write it like http://",
        ),
        ([*RUN, "--base-url", "ftp://x/v1"], "--base-url: 'ftp://x/v1' is not the address of a server"),
        ([*RUN, "--base-url", ""], "--base-url: '' is not the address of a server"),
        ([*RUN, "--base-url", "http://x:99999/v1"], "--base-url: 'http://x:99999/v1' is not the address of a server"),
        ([*RUN, "--base-url", "http://a b/v1"], "--base-url: 'http://a b/v1' is not the address of a server"),
        (
            [*RUN, "--base-url", "http://x/v1#a"],
            "--base-url: 'http://x/v1#a' has a #, and what follows it is never sent",
        ),
        ([*RUN, "--header", "nonsense"], "--header: cannot read 'nonsense': write it like 'X-Team: search'"),
        ([*RUN, "--header", "a: $NOWHERE"], "--header: NOWHERE, which a names, is not set"),
        ([*RUN, "--set", "temperature"], "--set: cannot read 'temperature': write it like temperature=0"),
        ([*RUN, "--latency", "inf", "--simulate"], "--latency: inf is not a number of seconds until an answer"),
        (["simulate", "--latency", "inf"], "--latency: inf is not a number of seconds until an answer"),
        (
            [*RUN, "--max-in-flight", "0", "--simulate"],
            "Invalid value for '--max-in-flight': ",
        ),
        ([*RUN, "--attempts", "many", "--simulate"], "Invalid value for '--attempts': "),
        ([*RUN, "--unknown"], "No such option: --unknown"),
        (["run", "in.jsonl"], "Missing option '"),
        (["run"], "Missing argument 'FILE'"),
        (["fly"], "No such command 'fly'"),
    ],
)
def test_a_command_that_cannot_be_carried_out_says_why_in_one_line(folder, capsys, arguments, message):
    """Exit code 2, no panel, no traceback; nothing was sent and nothing made."""
    assert message in refused(capsys, arguments)
    assert not (folder / "out.summary.json").exists()
    assert count(folder / "out.jsonl") == 0
    assert count(folder / "in.jsonl") == 20


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("OPENAI_API_KEY", "  ", "OPENAI_API_KEY is not set"),
        ("OPENAI_API_KEY", "sk-ключ", "OPENAI_API_KEY holds characters that no key has"),
        ("OPENAI_API_KEY", "a b", "OPENAI_API_KEY holds characters that no key has"),
        ("OPENAI_BASE_URL", "nowhere", "OPENAI_BASE_URL: 'nowhere' is not the address of a server"),
        ("SSL_CERT_FILE", "nowhere.pem", "the proxies or certificates that the environment names cannot be used: "),
        ("SSL_CERT_FILE", "in.jsonl", "the proxies or certificates that the environment names cannot be used: "),
        ("SSL_CERT_FILE", "/", "the proxies or certificates that the environment names cannot be used: "),
        ("ALL_PROXY", "gopher://x", "the proxies or certificates that the environment names cannot be used: "),
        ("HTTPS_PROXY", "http://user:secret@", "cannot be used: a proxy must have a host and a port below 65,536"),
        ("HTTPS_PROXY", "http://proxy:99999", "cannot be used: a proxy must have a host and a port below 65,536"),
        ("HTTPS_PROXY", "http://proxy:port", "cannot be used: a proxy must have a host and a port below 65,536"),
        ("HTTPS_PROXY", "http://[::1", "cannot be used: a proxy must have a host and a port below 65,536"),
    ],
)
def test_an_environment_that_is_wrong_is_named_and_no_key_is_shown(folder, monkeypatch, capsys, name, value, message):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv(name, value)
    said = refused(capsys, [*RUN, "--limits", LIMITS])
    assert message in said
    assert "ключ" not in said
    assert "secret" not in said
    assert [path.name for path in folder.iterdir()] == ["in.jsonl"]


def test_results_of_something_else_are_not_written_over(folder, capsys):
    (folder / "out.jsonl").write_text("my diary\n")
    assert "its line 1 is not a result of a run" in refused(capsys, [*RUN, "--simulate"])
    assert (folder / "out.jsonl").read_text() == "my diary\n"


@pytest.mark.parametrize("option", ["-o", "--errors", "the summary"])
@pytest.mark.parametrize("source", ["in.jsonl", "-"])
def test_what_is_read_is_not_written_over_whatever_it_is_called(folder, capsys, monkeypatch, option, source):
    """A second name of the file, or the file as standard input, is the file."""
    other = {"-o": "out.jsonl", "--errors": "e.jsonl", "the summary": "out.summary.json"}[option]
    os.link("in.jsonl", other)
    opened = os.open("in.jsonl", os.O_RDONLY)
    monkeypatch.setattr(cli_files, "open_source", lambda file: opened if file == "-" else os.open(file, os.O_RDONLY))
    said = refused(capsys, ["run", source, "-o", "out.jsonl", "--errors", "e.jsonl", "--overwrite", "--simulate"])
    assert said == f"FILE and {option} are the same file: {other}"
    assert count(folder / "in.jsonl") == 20


def test_two_names_of_one_file_are_one_file(folder, capsys):
    """Errors among the results would be neither."""
    (folder / "out.jsonl").touch()
    os.link("out.jsonl", "e.jsonl")
    said = refused(capsys, [*RUN, "--errors", "e.jsonl", "--simulate"])
    assert said == "-o and --errors are the same file: e.jsonl"


def test_nothing_is_put_beside_a_device(folder):
    """Not in /dev, where it would be in everybody's way; the errors have a name of their own, so there is no
    summary."""
    before = set(Path("/dev").glob("null*"))
    assert main(["run", "in.jsonl", "-o", os.devnull, "--errors", "e.jsonl", "--simulate", "--latency", "0.01"]) == 0
    assert set(Path("/dev").glob("null*")) == before
    assert sorted(file.name for file in folder.iterdir()) == ["e.jsonl", "in.jsonl"]


def test_a_disk_that_is_full_is_named_once(folder, monkeypatch, capsys):
    """Results first: the run ends by what it could not write, and what was done is said although the summary is not
    there."""
    append = Appended.append

    def full(file, data):
        if count(folder / "out.jsonl") == 5 and b"done" in data[:10]:
            raise OutputError("cannot write out.jsonl: No space left on device")
        append(file, data)

    def no_room(path, summary):
        raise OutputError(f"cannot write {path}: No space left on device")

    monkeypatch.setattr(Appended, "append", full)
    monkeypatch.setattr(outcome, "write_summary", no_room)
    assert simulated() == 2
    said = capsys.readouterr()
    assert said.err == "penstock: cannot write out.jsonl: No space left on device\n"
    assert said.out.startswith("20 rows read: 5 answered, 0 failed, ")


def test_a_summary_that_cannot_be_written_is_no_success(folder, capsys):
    """All rows are answered, and something is missing all the same."""
    (folder / "out.summary.json").mkdir()
    assert simulated() == 2
    said = capsys.readouterr()
    assert said.err == "penstock: cannot write out.summary.json: Is a directory\n"
    assert said.out.startswith("20 rows: 20 answered")
    assert not (folder / "out.summary.json.tmp").exists()


def test_files_of_others_are_named(folder, monkeypatch, capsys):
    """Root may read everything, so that it may not is played."""

    def forbidden(path):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(cli_files, "open_source", forbidden)
    assert refused(capsys, [*RUN, "--simulate"]) == "cannot read in.jsonl: Permission denied"


@pytest.mark.parametrize(
    ("there", "named", "options"),
    [
        (False, "out.jsonl", ["-o", "theirs/out.jsonl"]),
        (True, "out.summary.json", ["-o", "theirs/out.jsonl"]),
        (False, "page.html", ["-o", "out.jsonl", "--report", "theirs/page.html"]),
    ],
    ids=["new", "old", "another option"],
)
def test_a_folder_of_others_is_named_with_what_cannot_be_put_there(folder, monkeypatch, capsys, there, named, options):
    """Results may be written into a file that is there; the summary is a file of its own."""
    (folder / "theirs").mkdir()
    if there:
        (folder / "theirs/out.jsonl").touch()
    monkeypatch.setattr(os, "access", lambda path, _: Path(path).name != "theirs")
    said = refused(capsys, ["run", "in.jsonl", *options, "--simulate"])
    assert said == f"cannot write theirs/{named}: no permission to write in the folder theirs"


def test_a_mistake_of_our_own_is_one_line_too(folder, monkeypatch, capsys):
    """Unless somebody wants to know where."""

    def wrong(*_, **__):
        raise ExceptionGroup("", [RuntimeError("unheard of")])

    monkeypatch.setattr(requests, "_drive", wrong)
    assert simulated() == 1
    assert capsys.readouterr().err == (
        "penstock: a mistake of penstock's own: RuntimeError: unheard of (PENSTOCK_TRACEBACK=1 shows where)\n"
    )
    monkeypatch.setenv("PENSTOCK_TRACEBACK", "1")
    with pytest.raises(ExceptionGroup):
        simulated()


def test_without_arguments_it_says_what_there_is(capsys):
    assert main([]) == 0
    assert "run" in capsys.readouterr().out


def test_the_shell_completes_commands_and_options():
    """As the script that `--install-completion` puts there asks for them."""

    def completed(words):
        asked = {"COMP_WORDS": words, "COMP_CWORD": str(words.count(" ")), "_PENSTOCK_COMPLETE": "complete_bash"}
        script = Path(sysconfig.get_path("scripts"), "penstock")
        return subprocess.run([script], env=os.environ | asked, capture_output=True, text=True, check=True).stdout

    assert completed("penstock re") == "report\n"
    assert completed("penstock run --lim") == "--limits\n"


def test_it_says_its_version(capsys):
    assert main(["--version"]) == 0
    assert re.fullmatch(r"\d+\.\d+\.\d+.*\n", capsys.readouterr().out)


def test_a_process_ends_with_the_code_and_the_line_alone(folder):
    """Nothing but that one line, also where Python itself would have something to say."""
    process = started("run", "nowhere.jsonl", "-o", "out.jsonl", "--limits", LIMITS)
    assert process.communicate() == ("", "penstock: cannot read nowhere.jsonl: No such file or directory\n")
    assert process.returncode == 2


@pytest.mark.parametrize(
    "arguments", [["run", "--help"], [*RUN, "--limits", "requests=many"], ["run", "nowhere.jsonl", "-o", "out.jsonl"]]
)
def test_what_sends_is_loaded_when_something_is_sent(folder, arguments):
    """It takes most of the time until a command is refused."""
    program = (
        "import sys; from penstock.cli import main; main(sys.argv[1:]); "
        "print({'aiohttp', 'rich.live', 'penstock.runner.engine', 'penstock.usage'} & sys.modules.keys())"
    )
    environment = {**os.environ, "OPENAI_API_KEY": KEY}
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"


# Options


@pytest.mark.parametrize(
    ("text", "limits"),
    [
        ("requests=3500/min,tokens=90k/min", {"requests": (Rate(3500, 60),), "tokens": (Rate(90_000, 60),)}),
        (
            " requests = 900/min burst 20 , tokens=90k/min, burst 6000",
            {"requests": (Rate(900, 60, 20),), "tokens": (Rate(90_000, 60, 6_000),)},
        ),
        ("tokens=90k/min,tokens=2M/day", {"tokens": (Rate(90_000, 60), Rate(2_000_000, 86_400))}),
        ("images=50/min", {"images": (Rate(50, 60),)}),
    ],
)
def test_limits_are_read(text, limits):
    assert parse_limits(text) == limits


def test_the_key_is_read_from_the_environment_and_nowhere_else(capsys):
    """A command line is seen by everybody on the machine: it may name the variable of the key, and nothing more."""
    assert main(["run", "--help"]) == 0
    options = set(re.findall(r"--[a-z-]+", capsys.readouterr().out))
    assert {option for option in options if "key" in option} == {"--api-key-env"}


def test_no_more_rows_at_once_than_files_may_be_open(monkeypatch):
    resource = pytest.importorskip("resource")
    limits = [(256, 1_000)]
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda _, new: limits.append(new))
    said = []
    assert cli_files.places(400, 2, said.append) == 400
    assert (limits[-1], said) == ((900, 1_000), [])
    assert cli_files.places(1_000, 2, said.append) == 450
    assert (limits[-1], len(said)) == ((1_000, 1_000), 1)


# The simulated server alone


def test_the_simulated_server_runs_until_it_is_interrupted(folder, monkeypatch):
    process = started("simulate", "--port", "0", "--latency", "0")
    address = process.stdout.readline()
    assert address.startswith("OPENAI_BASE_URL=http://127.0.0.1:")
    monkeypatch.setenv("OPENAI_BASE_URL", address.partition("=")[2].strip())
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    assert main([*RUN, "--limits", "requests=3000/min"]) == 0
    process.send_signal(signal.SIGINT)
    assert process.communicate() == ("20 requests admitted, 0 refused\n", "")
    assert process.returncode == 0


@pytest.mark.parametrize("arguments", [[*RUN, "--simulate"], ["simulate"]], ids=["run", "simulate"])
def test_a_missing_extra_is_one_clear_line(folder, monkeypatch, capsys, arguments):
    """As after `pip install "penstock[cli]"` alone; nothing is made."""
    for name in [name for name in sys.modules if name.startswith("penstock.simulator")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr("penstock.simulator")
    monkeypatch.setitem(sys.modules, "starlette", None)
    said = refused(capsys, arguments)
    assert said.startswith("penstock.simulator needs the package ")
    assert said.endswith('install the extra, pip install "penstock[simulator]"')
    assert not (folder / "out.jsonl").exists()


def test_an_address_that_is_taken_is_said(folder, capsys):
    with simulator.serve(Simulation()) as server:
        port = server.base_url.split(":")[2].split("/")[0]
        said = refused(capsys, ["simulate", "--port", port])
    assert said == f"cannot listen on 127.0.0.1:{port}: Address already in use"
