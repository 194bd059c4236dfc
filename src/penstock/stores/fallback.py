"""What decides while a shared store does not answer and `on_outage` lets the process go on.

Memory, by the same arithmetic.
"""

from __future__ import annotations

from typing import Any

from penstock import clock
from penstock._core import ledger
from penstock.stores.contract import Batch, Reply, Store


class FallbackStore(Store):
    """Decides in this process: with a share of the limits, or (an infinite share) with none."""

    def __init__(self, store: Store, share: float) -> None:
        super().__init__(place_ttl=store.place_ttl, patience=store.patience)
        self.born: float = float(int(clock.wall() * 1e6))
        self._share = share
        self._rows: dict[str, bytes] = {}

    def exchange(self, names: Any, decide: Any) -> None:
        """Never called: no other process shares these rows."""
        raise NotImplementedError

    def decide(self, batch: Batch) -> Reply:
        """Decide by this process's share. See `Store.decide`."""
        now = max(float(int(clock.wall() * 1e6)), self.born)
        share = min(self._share, 1e12)
        limits = [
            tuple(
                # One call larger than the share of a burst goes when that share is there, and pays afterwards.
                (
                    kind,
                    first * share,
                    second * share if kind == ledger.BUCKET else second,
                    1.0 if kind == ledger.BUCKET else third,
                    0.0,
                )
                for kind, first, second, third, _ in terms.numbers(batch.now)
            )
            for terms in batch.terms
        ]
        rows = [
            self._rows.get(terms.name) or ledger.decide([None], [kinds], (), batch.owner, self.born).rows[0]
            for terms, kinds in zip(batch.terms, limits, strict=True)
        ]
        decision = ledger.decide(rows, limits, batch.operations, batch.owner, now)
        for terms, row in zip(batch.terms, decision.rows, strict=True):
            self._rows[terms.name] = row
        return Reply(now, {}, decision.epochs, decision.verdicts, decision.states)
