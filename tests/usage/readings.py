"""Reading a ledger in tests."""

from __future__ import annotations

from penstock.usage import History


def calls_of(ledger):
    """All calls of a ledger, or of its file, once everything is written."""
    if hasattr(ledger, "flush"):
        assert ledger.flush(60)
        ledger = ledger.path
    with History(ledger) as history:
        return list(history.calls())
