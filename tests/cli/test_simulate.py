"""What `penstock simulate` is told of the limits of its server."""

from __future__ import annotations

import pytest

from penstock import Rate, sliding
from penstock import simulator as package
from penstock.cli import main
from penstock.simulator import Hidden, Window


@pytest.fixture
def made(monkeypatch):
    """The simulations that were to be served."""
    simulations = []
    statistics = package.create_app(package.Simulation()).state.account.statistics()
    monkeypatch.setattr(package, "run", lambda simulation, *_, **__: simulations.append(simulation) or statistics)
    return simulations


@pytest.mark.parametrize(
    ("words", "limits"),
    [
        ("60/min", (Rate(60, 60),)),
        ("60/min burst 5 hidden", (Hidden(Rate(60, 60, burst=5)),)),
        ("60/min window", (Window(60, 60),)),
        ("10/10s sliding hidden", (Hidden(sliding(10, 10)),)),
        ("60/min,requests=1/s hidden window", (Rate(60, 60), Hidden(Window(1, 1)))),
    ],
)
def test_every_kind_of_limit_may_be_asked_for(made, words, limits):
    assert main(["simulate", "--limits", f"requests={words}"]) == 0
    assert made[0].requests == limits


def test_a_file_may_hold_them_too(made, tmp_path):
    (tmp_path / "limits.json").write_text('{"requests": ["60/min window", "5/s hidden"], "output_tokens": "8k/min"}')
    assert main(["simulate", "--limits", str(tmp_path / "limits.json")]) == 0
    assert made[0].requests == (Window(60, 60), Hidden(Rate(5, 1)))
    assert made[0].output == (Rate(8_000, 60),)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ("60/min window sliding", "write window or sliding, not both"),
        ("60/min burst 5 window", "has no burst of its own"),
        ("60/min window burst 5", "has no burst of its own"),
        ("60/min sliding burst 5", "has no burst of its own"),
        ("60/min sliding hidden burst 5", "has no burst of its own"),
        ("unlimited hidden", "leave out"),
        ("window", "window"),
        ("60/min bogus", "bogus"),
    ],
)
def test_what_is_no_limit_is_said(made, capsys, words, why):
    assert main(["simulate", "--limits", f"requests={words}"]) == 2
    assert why in capsys.readouterr().err
    assert not made


@pytest.mark.parametrize(
    ("option", "words", "why"),
    [
        ("--fault", "bogus=1", "there is no 'bogus'; there are server_error, overloaded, slow_down"),
        ("--fault", "hang=2", "together at most 1, not hang=2"),
        ("--fault", "hang=0.5,hang=1", "hang is given twice"),
        ("--change", "at=5", "it needs factor=…"),
        ("--change", "", "it needs at=… and factor=…"),
        ("--stranger", "rate=5", "there is no 'rate'; there are requests, tokens, begin, end"),
        ("--stranger", "requests=-5", "a stranger takes 0 or more a minute"),
        ("--stranger", "requests=nan", "a stranger takes 0 or more a minute"),
        ("--stranger", "tokens=inf", "a stranger takes 0 or more a minute"),
        ("--stranger", "requests=1,begin=10,end=5", "begins before its end"),
        ("--stranger", "requests=1,begin=nan", "begins before its end"),
        ("--change", "at=1,factor=2,unit=x", "a change is of requests, tokens, output_tokens, images"),
        ("--change", "at=1e308,factor=2", "a change needs a moment"),
        ("--change", "at=1,factor=1e308", "a change needs a moment"),
        ("--change", "at=nan,factor=2", "a change needs a moment"),
        ("--fault", "insufficient_quota_after=1.5", "must be a whole number"),
        ("--fault", "insufficient_quota_after=nan", "must be a whole number"),
        ("--fault", "insufficient_quota_after=inf", "must be a whole number"),
        ("--fault", "insufficient_quota_after=-3", "must be a whole number"),
    ],
)
def test_what_no_server_can_do_is_said_before_it_begins(made, capsys, option, words, why):
    assert main(["simulate", option, words]) == 2
    assert why in capsys.readouterr().err
    assert not made


def test_a_run_keeps_no_limits_of_other_kinds(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.jsonl").write_text("")
    for limit in ("60/min window hidden", "60/min hidden", "60/min burst 5 sliding"):
        assert main(["run", "in.jsonl", "-o", "out.jsonl", "--limits", f"requests={limit}"]) == 2
        assert limit in capsys.readouterr().err


def test_a_run_keeps_a_window_that_slides(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.jsonl").write_text('{"model": "m", "input": "x"}\n' * 3)
    limits = ["--limits", "requests=2/1s sliding"]
    assert main(["plan", "in.jsonl", *limits]) == 0
    assert "at least 1 s, by requests (2/s)" in capsys.readouterr().out
    assert main(["run", "in.jsonl", "-o", "out.jsonl", "--simulate", "--latency", "0.01", *limits]) == 0
    assert "3 rows: 3 answered, 0 failed" in capsys.readouterr().out
