"""Where the tests of usage work."""

from __future__ import annotations

import pytest

from penstock.usage import Ledger


@pytest.fixture
def ledger(tmp_path):
    """A ledger in a file of its own."""
    with Ledger(tmp_path / "usage.db") as made:
        yield made
