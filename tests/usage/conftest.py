"""Where the tests of usage work."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from penstock import clock
from penstock.stores.contract import Store
from penstock.usage import Ledger


@pytest.fixture(autouse=True)
def noon(monkeypatch):
    """The wall clock goes on from half past noon in the middle of a week and a month, so that no hour and no day ends
    while a test counts what was used in it."""
    if not clock.is_real():
        return  # the test has a clock of its own
    real = clock.wall
    ahead = datetime(2026, 5, 13, 12, 30, 30, tzinfo=UTC).timestamp() - real()
    monkeypatch.setattr(clock, "wall", lambda: real() + ahead)


@pytest.fixture
def ledger(tmp_path):
    """A ledger in a file of its own."""
    with Ledger(tmp_path / "usage.db") as made:
        yield made


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    """A busy machine may keep a store from its answer for longer than the second that it has in a program."""
    monkeypatch.setitem(Store.__init__.__kwdefaults__, "patience", 30.0)
