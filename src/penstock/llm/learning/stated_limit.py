"""What one answer states about one limit, the ways in which limits refill, and when a window is believed in."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

__all__ = ["LATE", "MOST", "PATIENCE", "PAUSE", "UNCONFIRMED", "Kind", "StatedLimit"]

PAUSE = 0.1
"""Share of a window that may be lost while it is taken to begin with a request but seems to begin by the clock."""

UNCONFIRMED = 0.05
"""Share of a window that may be sent before an answer confirms that it began: it may be late."""

MOST, LATE = 0.75, 0.01
"""Shares: of a limit that must be back when its window should have begun, and of a window by which it may be late."""

PATIENCE = 5.0
"""Seconds that the first request of a window has to show that it began, before others go without knowing."""


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
