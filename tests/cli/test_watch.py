"""`penstock watch`: what it shows at 80 and at 200 columns, and how it ends."""

from __future__ import annotations

import html
import os
import pty
import re
import signal
import time
from pathlib import Path

import pytest

from penstock import Limiter, clock, per_minute
from penstock.cli import main
from penstock.cli.watch import screen_of_ledger, screen_of_store
from penstock.stores import SQLiteStore
from penstock.usage import History, Ledger, Totals
from penstock.usage.live import Gauge, Now, now_in
from tests.browser import needs_a_browser, shown
from tests.cli.commands import started, wait_for
from tests.stores.servers import Server, binaries

SNAPSHOTS = Path(__file__).parent / "screens"

LEDGER = [
    Now("gpt-4o-mini", Totals(1_742, 1_742, 80_412, 0.0213, 42.5, 3, 1, 0, 12, 0),
        (Gauge("gpt-4o-mini", "requests", "3500/min", 1_742, 3_500), Gauge("gpt-4o-mini", "tokens", "90000/min", 80_412, 90_000)),
        (*[0.0] * 10, *range(0, 80_000, 8_000))),
    Now("a-model-whose-name-is-much-longer-than-a-screen-is-wide/2026-05-04\x1b[31m", Totals(0, 0, 0, 0, 0, 0, 0, 0, 0, 0), (), (0.0,) * 20),
]  # fmt: skip
STORE = [
    Gauge("openai", "requests", "3500/min", 35, 3_500),
    Gauge("openai", "tokens", "90000/min", 120_000, 90_000, paused=12),
]


@pytest.mark.parametrize("width", [80, 200])
@pytest.mark.parametrize(
    ("name", "screen"),
    [("ledger", lambda width: screen_of_ledger(LEDGER, width)), ("store", lambda width: screen_of_store(STORE, width))],
)
def test_the_screen_is_as_it_was_looked_at(name, screen, width):
    """To look at a new one: remove the file, and run this twice."""
    file = SNAPSHOTS / f"watch-{name}-{width}.txt"
    text = screen(width) + "\n"
    if not file.exists():
        file.write_text(text, encoding="utf-8")
        pytest.fail(f"{file.name} is new: look at it")
    assert text == file.read_text(encoding="utf-8")
    assert max(map(len, text.splitlines())) <= width
    assert "\x1b" not in text


def test_nothing_to_show_is_said():
    assert screen_of_ledger([], 80) == "nothing was sent in the last 20 minutes"
    assert screen_of_store([], 80) == "no limit in this store is in use"


@pytest.fixture
def ledger(tmp_path):
    path = tmp_path / "usage.db"
    with Ledger(path) as ledger:
        limiter = Limiter(requests=per_minute(60), name="chat", on_event=ledger)
        for _ in range(3):
            limiter.acquire_nowait(flow="alice")
    return path


def test_one_look_at_a_ledger_and_at_a_store(ledger, tmp_path, capsys):
    assert main(["watch", str(ledger), "--once"]) == 0
    assert "chat" in capsys.readouterr().out
    store = SQLiteStore(tmp_path / "limits.db")
    with Limiter(requests=per_minute(60), name="shared", store=store):
        pass
    assert main(["watch", f"sqlite:{tmp_path / 'limits.db'}", "--once"]) == 0
    assert "shared  requests  60/min" in capsys.readouterr().out
    store.close()


@needs_a_browser
def test_a_browser_shows_the_page_with_the_figures_of_the_ledger(ledger, tmp_path, capsys):
    """Without an error or a request; a name that is markup is a name."""
    with Ledger(ledger) as more:
        Limiter(requests=per_minute(1_000), name="<b>evil</b>", on_event=more).acquire_nowait(requests=700)
    assert main(["watch", str(ledger), "--once", "--page", str(tmp_path / "watch.html")]) == 0
    page = shown(tmp_path / "watch.html", tmp_path / "browser")
    with History(ledger) as history:
        used = {one.subject: one.totals.requests for one in now_in(history, clock.wall())}
    assert used == {"chat": 3, "<b>evil</b>": 700}
    for name, requests in used.items():
        assert re.search(rf"^{re.escape(html.escape(name))} +{requests} ", page, re.MULTILINE)
    assert 'http-equiv="refresh"' not in page


def test_the_page_is_written_again_and_never_over_what_is_watched(ledger, tmp_path, capsys):
    page = tmp_path / "watch.html"
    process = started("watch", str(ledger), "--every", "0.1", "--page", str(page))
    wait_for(page.exists)
    first = page.stat().st_ino
    wait_for(lambda: page.stat().st_ino != first)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60) == ("", "")
    assert process.returncode == 0
    assert 'http-equiv="refresh" content="1"' in page.read_text(encoding="utf-8")
    assert main(["watch", str(ledger), "--page", str(ledger)]) == 2
    assert "is what is watched" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("-", "stands for standard output with -o alone"),
        (".", "Is a directory"),
        ("nowhere/page.html", "is not there"),
        ("LEDGER-wal", "is what is watched"),
    ],
)
def test_a_page_that_cannot_be_there_is_said_at_once(name, said, ledger, tmp_path, capsys, monkeypatch):
    """`-` was a file of that name, and the log of the ledger was written over."""
    monkeypatch.chdir(tmp_path)
    assert main(["watch", str(ledger), "--page", name.replace("LEDGER", str(ledger))]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "-").exists()


def test_a_page_shows_no_password_and_the_whole_path(ledger, tmp_path, capsys):
    """That of a URL's options stood in it, and of a path what follows an @ alone."""
    server = Server(binaries()["redis"], "--requirepass", "s3cret", password="s3cret")
    try:
        where = f"{server.url}?password=s3cret"
        assert main(["watch", where, "--once", "--page", str(tmp_path / "watch.html")]) == 0
        text = (tmp_path / "watch.html").read_text(encoding="utf-8")
        assert server.url in text
        assert "s3cret" not in text
    finally:
        server.stop()
    at = tmp_path / "a@b.db"
    ledger.rename(at)
    assert main(["watch", str(at), "--once", "--page", str(tmp_path / "watch.html")]) == 0
    assert str(at) in (tmp_path / "watch.html").read_text(encoding="utf-8")


def test_without_a_terminal_it_writes_plain_lines_until_ctrl_c(ledger):
    process = started("watch", str(ledger), "--every", "0.1")
    lines = [process.stdout.readline() for _ in range(6)]
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0
    assert err == ""
    assert "\x1b" not in "".join(lines) + out
    assert sum("chat" in line for line in lines) >= 2


def test_on_a_terminal_it_draws_over_what_it_drew(ledger):
    """And leaves the terminal as it was: the cursor is shown again."""
    outer, inner = pty.openpty()
    process = started_on(inner, "watch", str(ledger), "--every", "0.1")
    os.close(inner)
    drawn, until = b"", time.monotonic() + 60
    while drawn.count(b"LAST MINUTE") < 3 and time.monotonic() < until:
        drawn += os.read(outer, 4_096)  # which may end in the middle of a character
    process.send_signal(signal.SIGINT)
    while True:
        try:
            drawn += os.read(outer, 4_096)
        except OSError:  # the other end is closed
            break
    assert process.wait(60) == 0
    os.close(outer)
    shown = drawn.decode()
    assert shown.count("LAST MINUTE") >= 3
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l")


def started_on(terminal, *arguments):
    import subprocess
    import sys

    return subprocess.Popen(
        [sys.executable, "-m", "penstock", *arguments], stdin=terminal, stdout=terminal, stderr=terminal
    )


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("nowhere.db", "there is no ledger at nowhere.db"),
        (__file__, "cannot be read as a ledger"),
        ("redis://localhost:1", "localhost:1"),
    ],
)
def test_what_cannot_be_watched_is_one_sentence(where, words, capsys):
    assert main(["watch", where, "--once"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert words in err
    assert len(err.splitlines()) == 1
