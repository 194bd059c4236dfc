"""`penstock quota`: what it shows, what it changes, what it says of what is wrong."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path

import pytest

from penstock.cli import main
from penstock.testing import manual_clock
from penstock.usage import Ledger, QuotaExceeded, Quotas


@pytest.fixture
def path(tmp_path):
    """Quotas of which alice has used something."""
    path = tmp_path / "quotas.db"
    with Quotas(path, {"requests": "2/day", "dollars": "20/month"}, tz="Europe/Berlin", review="queue") as quotas:
        with quotas("alice", dollars=1.25):
            pass
        with quotas("alice"), pytest.raises(QuotaExceeded):
            quotas("alice").__enter__()
    return path


def said(capsys, *arguments):
    code = main(["quota", *map(str, arguments)])
    out, err = capsys.readouterr()
    return code, out + err


def test_a_list_shows_what_each_user_has_used(path, capsys):
    with manual_clock(datetime(2026, 5, 6, 10, tzinfo=UTC)), Quotas(path) as quotas:
        quotas.set("bob\n\x1b[31m", requests="0/week")
        with quotas("carol", dollars=0.5):
            pass
        code, out = said(capsys, "list", path)
    assert code == 0
    assert out.splitlines()[0].split() == ["USER", "UNIT", "PER", "USED", "OF", "LEFT", "AGAIN", "AT"]
    assert r"bob\n\x1b[31m  requests  week       0       0       0  2026-05-11 00:00 CEST  own cap" in out
    assert "carol          dollars   month  $0.50  $20.00  $19.50  2026-06-01 00:00 CEST" in out


def test_a_list_of_one_user_and_as_json(path, capsys):
    assert said(capsys, "list", path, "--user", "dora")[1].count("dora") == 2
    found = json.loads(said(capsys, "list", f"sqlite:{path}", "--json")[1])
    assert [(one["user"], one["unit"], one["remaining"]) for one in found] == [
        ("alice", "dollars", 18.749999),
        ("alice", "requests", 0),
    ]


def test_caps_are_set_and_taken_back(path, capsys):
    code, out = said(
        capsys, "set", path, "alice", "requests=5/day", "requests=1k/month", "tokens=unlimited", "--tz", "Asia/Tokyo"
    )
    assert (code, "alice: 1,000 requests a month (Asia/Tokyo), 2 used" in out) == (0, True)
    assert "alice: 2 requests a day (Europe/Berlin), 2 used" in said(capsys, "set", path, "alice", "--default")[1]


def test_who_has_no_caps_is_said(tmp_path, capsys):
    """Where the program gives caps to nobody."""
    with Quotas(tmp_path / "q.db", {}) as quotas:
        quotas.set("alice", requests="5/day")
    assert said(capsys, "set", tmp_path / "q.db", "alice", "--default") == (0, "alice: no caps\n")
    assert said(capsys, "list", tmp_path / "q.db", "--user", "alice") == (0, "no caps for anybody\n")
    assert said(capsys, "list", tmp_path / "q.db") == (0, "nobody has used anything, or has caps of their own\n")


def test_what_was_used_is_forgotten(path, capsys):
    assert said(capsys, "reset", path, "alice") == (0, "alice: forgotten\n")
    assert said(capsys, "reset", path, "zoe") == (3, "zoe has used nothing in 'quota'\n")
    assert "alice requests day 0 2 2" in " ".join(said(capsys, "list", path, "--user", "alice")[1].split())


def test_a_review_is_decided(path, capsys):
    assert "alice  requests  day  pending      1        0      1" in said(capsys, "reviews", path, "--pending")[1]
    assert (
        "alice: 3 requests more until 2" in said(capsys, "approve", path, "alice", "requests", "3", "--by", "carol")[1]
    )
    assert "alice: no more requests until" in said(capsys, "refuse", path, "alice", "requests")[1]
    assert "  3 allowed on top" in said(capsys, "list", path)[1]
    states = [(one["state"], one["by"]) for one in json.loads(said(capsys, "reviews", path, "--json")[1])]
    assert states == [("approved", "carol"), ("refused", "")]
    assert said(capsys, "reviews", path, "--pending")[1] == "no reviews\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["set", "FILE", "alice", "requests=-5/day"], "requests: cannot read '-5/day' as a cap"),
        (["set", "FILE", "alice", "requests"], "cannot read 'requests': write it like requests=100/day"),
        (["set", "FILE", "alice", "requests=5/day", "--tz", "Mars/Base"], "unknown time zone 'Mars/Base'"),
        (["set", "FILE", "alice", "images=5/day"], "quotas count no 'images'"),
        (["set", "FILE", "alice"], "give caps for the user, such as requests=100/day, or --default"),
        (["set", "FILE", "", "requests=5/day"], "a user must have a name of 1 to 1,000 characters"),
        (["approve", "FILE", "bob", "requests"], "'bob' has no pending review of requests: say how many units more"),
        (["approve", "FILE", "bob", "requests", "nan"], "more must be a finite number"),
        (["list", "nowhere.db"], "there are no quotas at nowhere.db"),
        (["list", "FILE", "--name", "a/b"], "has a slash"),
        (["list", "redis://localhost:1/0"], "localhost:1"),
        (["list", "redis://:bad port"], "redis"),
        (["list"], "Missing argument"),
    ],
)
def test_what_is_wrong_is_one_sentence(path, capsys, arguments, words):
    code, out = said(capsys, *[path if word == "FILE" else word for word in arguments])
    assert code == 2
    assert words in out
    assert "Traceback" not in out
    assert len(out.splitlines()) == 1


def test_a_device_is_left_alone(capsys):
    """SQLite would put a journal beside it."""
    before = set(Path("/dev").glob("null*"))
    assert main(["quota", "list", os.devnull]) == 2
    assert capsys.readouterr().err == f"penstock: {os.devnull} is not a regular file, and cannot hold quotas\n"
    assert set(Path("/dev").glob("null*")) == before


def test_a_file_of_another_kind_is_left_alone(tmp_path, capsys):
    ledger = tmp_path / "usage.db"
    with Ledger(ledger) as made:
        made.flush()
    from penstock.events import Refused

    with Ledger(ledger) as made:
        made(Refused("api", {}, 1.0, "tokens", "alice"))
    before = ledger.read_bytes()
    assert "is the database of another program" in said(capsys, "list", ledger)[1]
    (tmp_path / "x.txt").write_text("no database " * 100)
    assert "no SQLite database" in said(capsys, "list", tmp_path / "x.txt")[1]
    assert ledger.read_bytes() == before
