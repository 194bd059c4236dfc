"""What decides while a shared store does not answer and `on_outage` lets the process go on.

Memory, by the same arithmetic.
"""

from __future__ import annotations

import math
from typing import Any

from penstock._core.decision import decide
from penstock._core.rows import BUCKET
from penstock.stores.contract import Batch, Reply, Store


class FallbackStore(Store):
    """Decides in this process: with a share of the limits, or (an infinite share) with none.

    Its time is the store's, as far as that is known: what it grants is given back to the store afterwards.

    Attributes:
        born: Its first moment, and the epoch of what it grants: of no row of the store, whose moments are whole.
    """

    def __init__(self, store: Store, share: float, now: float) -> None:
        super().__init__(place_ttl=store.place_ttl, patience=store.patience)
        self.born: float = math.floor(now) + 0.5
        self._share = share
        self._rows: dict[str, bytes] = {}

    def exchange(self, names: Any, decide: Any) -> None:
        """Never called: no other process shares these rows."""
        raise NotImplementedError

    def decide(self, batch: Batch) -> Reply:
        """Decide by this process's share. See `Store.decide`."""
        now = max(batch.now, self.born)
        share = min(self._share, 1e12)
        limits = [
            tuple(
                # One call larger than the share of a burst goes when that share is there, and pays afterwards.
                (
                    kind,
                    first * share,
                    second * share if kind == BUCKET else second,
                    1.0 if kind == BUCKET else third,
                    0.0,
                )
                for kind, first, second, third, _ in terms.numbers(batch.now)
            )
            for terms in batch.terms
        ]
        rows = [
            self._rows.get(terms.name) or decide([None], [kinds], (), batch.owner, self.born).rows[0]
            for terms, kinds in zip(batch.terms, limits, strict=True)
        ]
        decision = decide(rows, limits, batch.operations, batch.owner, now)
        for terms, row in zip(batch.terms, decision.rows, strict=True):
            self._rows[terms.name] = row
        return Reply(now, {}, decision.epochs, decision.verdicts, decision.states)
