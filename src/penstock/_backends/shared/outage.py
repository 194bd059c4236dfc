"""What is known of a store, or one node of it, that does not answer, and what decides meanwhile."""

from __future__ import annotations

import math
from dataclasses import dataclass

from penstock._backends.shared.wire import BatchInFlight
from penstock.errors import StoreError
from penstock.stores.contract import Batch, Store
from penstock.stores.fallback import FallbackStore

__all__ = ["RETRY", "Outage", "Silence"]

RETRY = (0.01, 0.25)
"""Seconds, first and longest, between attempts to reach a store that does not answer."""


class Outage:
    """One outage of a store.

    Attributes:
        error: Why there is no answer, as of the last attempt.
        batch, packed: What was asked last. Whether it was decided is not known; it is asked until it is.
        fallback: What decides meanwhile; None: nothing does.
    """

    __slots__ = ("batch", "error", "fallback", "packed")

    told = True  # those that wait were told at once

    def __init__(self, store: Store, error: StoreError, batch: BatchInFlight, packed: Batch) -> None:
        self.error = error
        self.batch = batch
        self.packed = packed
        self.fallback: FallbackStore | None = None
        if store.on_outage != "raise":
            self.fallback = FallbackStore(store, math.inf if store.on_outage == "open" else store.share or 1.0)


@dataclass(slots=True, eq=False)
class Silence:
    """One node does not answer, while the others do.

    Attributes:
        batch, packed: What it was asked last. Whether it was decided is not known; it is asked until it is.
        error: Why there is no answer, as of the last attempt.
        told: Whether the store's patience is over: the requests that wait for this node were told, and so are new ones.
    """

    batch: BatchInFlight
    packed: Batch
    error: StoreError
    told: bool = False
