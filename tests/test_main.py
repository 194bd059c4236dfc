"""`python -m penstock` and the script `penstock` begin at the same place."""

from __future__ import annotations

import sys

import pytest

from penstock import __main__ as entry


@pytest.fixture
def without_command_line(monkeypatch):
    """As after `pip install penstock` alone: typer is not there."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "typer" or name == "penstock.cli"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr("penstock.cli", raising=False)
    monkeypatch.setitem(sys.modules, "typer", None)


def test_a_missing_extra_is_one_clear_line(without_command_line, capsys):
    """What to install, and no traceback."""
    assert entry.main() == 2
    assert capsys.readouterr().err == 'penstock: the command line needs typer: pip install "penstock[cli]"\n'
