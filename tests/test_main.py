"""`python -m penstock` and the script `penstock` begin at the same place."""

from __future__ import annotations

import signal
import sys

import pytest

import penstock
from penstock import __main__ as entry


@pytest.fixture
def without_command_line(monkeypatch):
    """As after `pip install penstock` alone: typer is not there."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "typer" or name == "penstock.cli"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr("penstock.cli", raising=False)
    monkeypatch.setitem(sys.modules, "typer", None)


@pytest.fixture(autouse=True)
def handler():
    """A process that has said all it has to say hears no Ctrl-C any more; this one has not."""
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_missing_extra_is_one_clear_line(without_command_line, capsys):
    """What to install, and no traceback."""
    assert entry.main() == 2
    assert capsys.readouterr().err == 'penstock: the command line needs typer: pip install "penstock[cli]"\n'


def test_the_version_needs_no_extra(without_command_line, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["penstock", "--version"])
    assert entry.main() == 0
    assert capsys.readouterr().out == f"{penstock.__version__}\n"


def test_a_module_of_ours_that_is_missing_is_no_extra(monkeypatch):
    """The installation is broken, and the traceback says where."""
    monkeypatch.setitem(sys.modules, "penstock.cli", None)
    with pytest.raises(ModuleNotFoundError, match=r"penstock\.cli"):
        entry.main()


@pytest.mark.parametrize("again", [0, 3])
def test_ctrl_c_is_heard_once(monkeypatch, capsys, again):
    """Who presses it again, because loading takes its time, gets the same exit code and no traceback."""

    def pressed():
        try:
            signal.raise_signal(signal.SIGINT)
        finally:
            for _ in range(again):
                signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr("penstock.cli._app_for", lambda _: lambda **_: pressed())
    assert entry.main() == 130
    signal.raise_signal(signal.SIGINT)  # Python is about to end
    assert capsys.readouterr() == ("", "")
