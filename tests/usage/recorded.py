"""Ledgers with calls at moments that a test chooses."""

from __future__ import annotations

from datetime import UTC, datetime

from penstock.events import Answered, Reconfigured, Refused
from penstock.limits import per_minute
from penstock.testing import manual_clock
from penstock.usage import Ledger

MONDAY = datetime(2026, 5, 4, 9, tzinfo=UTC)


class Recorder:
    """Writes calls into a ledger, each at a moment of its own."""

    def __init__(self, ledger, clock):
        self.ledger = ledger
        self.clock = clock

    def call(self, at, model="m-1", user="alice", tokens=100, *, status=200, waited=0.0, count=1):
        self.clock.set_wall(at)
        usage = {"input_tokens": tokens, "output_tokens": 0.0}
        for _ in range(count):
            self.ledger(Answered("api", model, {"requests": 1}, usage, waited, 0.0, status, user))

    def refusal(self, at, user="alice"):
        self.clock.set_wall(at)
        self.ledger(Refused("api", {"requests": 1}, 5.0, "requests", user))

    def limits(self, at, model="m-1", **amounts):
        self.clock.set_wall(at)
        self.ledger(Reconfigured(model, {unit: (per_minute(amount),) for unit, amount in amounts.items()}))


def recorded(path, write):
    """A ledger at `path` with what `write(recorder)` writes."""
    with manual_clock(MONDAY) as clock, Ledger(path) as ledger:
        write(Recorder(ledger, clock))
        assert ledger.flush(30)
    return path
