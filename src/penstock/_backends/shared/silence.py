"""One node of a store that does not answer, while the others do: only what lives there is held up."""

from __future__ import annotations

from penstock._backends.shared.wire import BatchInFlight
from penstock.errors import StoreError
from penstock.stores.contract import Batch

__all__ = ["Silence"]


class Silence:
    """The silence of one node.

    Attributes:
        batch, packed: What it was asked last. Whether it was decided is not known; it is asked until it is.
        error: Why there is no answer, as of the last attempt.
        told: Whether the store's patience is over, so that those who wait for this node were told, and so are those who come.
    """

    __slots__ = ("batch", "error", "packed", "told")

    def __init__(self, batch: BatchInFlight, packed: Batch, error: StoreError) -> None:
        self.batch = batch
        self.packed = packed
        self.error = error
        self.told = False
