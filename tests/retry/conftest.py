"""What the tests of retries share."""

from __future__ import annotations

import time

import pytest

from penstock.testing import manual_clock


@pytest.fixture
def thread_time(monkeypatch):
    """A clock that `time.sleep` moves."""
    with manual_clock() as clock:
        monkeypatch.setattr(time, "sleep", clock.advance)
        yield clock
