"""What one answer states about one limit, and the ways in which limits refill. Records alone."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

__all__ = ["Kind", "StatedLimit"]


@dataclass(frozen=True, slots=True)
class StatedLimit:
    """One limit, as one answer states it.

    Attributes:
        limit: Units per period.
        per: The period in seconds.
        remaining: Units left at admission.
        reset: Seconds until all of it is there again, whatever kind of limit that fits. None: not stated.
        sure: Whether `per` was stated, and not only assumed.
        fits: Whether all of it is what a bucket as large as the limit says.
        step: Seconds by which the reset may have been rounded.
        bare: The number of a reset that may mean seconds or milliseconds; `sure` is False then.
        named: Whether `per` is the answer's own word. Else it is what a bucket would say, and a window may be shorter.
    """

    limit: float
    per: float
    remaining: float
    reset: float | None = None
    sure: bool = True
    fits: bool = False
    step: float = 0.001
    bare: float | None = None
    named: bool = True

    @property
    def is_exact(self) -> bool:
        """Whether its reset is stated to the millisecond: only buckets are."""
        return self.step <= 0.001


class Kind(Enum):
    """How a limit comes back."""

    UNSURE = "unsure"
    BUCKET = "bucket"
    WINDOW = "window"
    SLIDING = "sliding window"
