"""What is known of a store, or one node of it, that does not answer, and what decides meanwhile."""

from __future__ import annotations

from dataclasses import dataclass

from penstock._backends.shared.wire import BatchInFlight
from penstock.errors import StoreError
from penstock.stores.contract import Batch
from penstock.stores.fallback import FallbackStore

RETRY = (0.01, 0.25)
"""Seconds, first and longest, between attempts to reach a store that does not answer."""


@dataclass(slots=True, eq=False)
class Outage:
    """One outage of a store, or of one of its nodes.

    Attributes:
        batch, packed: What was asked last. Whether it was decided is not known; it is asked until it is.
        error: Why there is no answer, as of the last attempt.
        told: Whether the store's patience is over: the requests that wait were told, and so are new ones.
        fallback: What decides meanwhile; None: nothing does.
    """

    batch: BatchInFlight
    packed: Batch
    error: StoreError
    told: bool = False
    fallback: FallbackStore | None = None
