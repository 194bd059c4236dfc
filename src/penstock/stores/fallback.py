"""What decides while a shared store does not answer and `on_outage` lets the process go on.

Memory, by the same arithmetic.
"""

from __future__ import annotations

import math
from typing import Any

from penstock._core.decision import decide, reshape
from penstock._core.rows import BUCKET
from penstock.stores.contract import Batch, Reply, Store, Terms

Limits = tuple[tuple[float, float, float, float, float], ...]


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
        self._rows: dict[str, tuple[Terms, bytes]] = {}  # per name, for what it is counted

    def exchange(self, names: Any, decide: Any) -> None:
        """Never called: no other process shares these rows."""
        raise NotImplementedError

    def decide(self, batch: Batch) -> Reply:
        """Decide by this process's share. See `Store.decide`."""
        now = max(batch.now, self.born)
        limits = [self._share_of(terms, batch.now) for terms in batch.terms]
        rows = [self._row(terms, kinds, batch, now) for terms, kinds in zip(batch.terms, limits, strict=True)]
        decision = decide(rows, limits, batch.operations, batch.owner, now)
        for terms, row in zip(batch.terms, decision.rows, strict=True):
            self._rows[terms.name] = terms, row
        return Reply(now, {}, decision.epochs, decision.verdicts, decision.states)

    def _row(self, terms: Terms, limits: Limits, batch: Batch, now: float) -> bytes:
        """The row of a name, for limits that may have been replaced since it was written."""
        before, row = self._rows.get(terms.name, (terms, None))
        if row is None:
            return decide([None], [limits], (), batch.owner, self.born).rows[0]
        if before.text == terms.text:
            return row
        return reshape(row, self._share_of(before, batch.now), limits, terms.origins(before), now)[0]

    def _share_of(self, terms: Terms, now: float) -> Limits:
        share = min(self._share, 1e12)
        return tuple(
            # One call larger than the share of a burst goes when that share is there, and pays afterwards.
            (kind, first * share, second * share if kind == BUCKET else second, 1.0 if kind == BUCKET else third, 0.0)
            for kind, first, second, third, _ in terms.numbers(now)
        )
