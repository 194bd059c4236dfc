"""How much of a promised limit is used while another program uses the account too.

Pure: times in, a share out. Two runs that each send at the whole rate are refused half of it, and services count what
they refuse: no request gets through. So a refusal cuts the share at once, and time without one lets it rise: slowly at
first (additive increase, multiplicative decrease, by which any number of runs come to equal shares), and the faster the
longer nothing is refused, since the others may be gone. A refusal that stays alone is undone soon: servers round, and
requests overtake each other on their way; where others use the account the next one follows at once.
"""

from __future__ import annotations

__all__ = ["Throttle"]

CUT = 0.8
"""What a refusal leaves of the share."""

APART = 1.0
"""Seconds in which all refusals count as one: those that were under way learn nothing new."""

RISE = 0.01
"""Share regained per second just after a refusal; twice as much `CALM` seconds later, five times after 2 `CALM`."""

CALM = 8.0

ALONE = 3.0
"""Seconds without another refusal after which one that met the whole of the limits counts no more."""

LEAST = 0.02


class Throttle:
    """The share of its limits that a run uses, from `LEAST` to 1.

    Attributes:
        share: As it is now.
    """

    def __init__(self) -> None:
        self.share: float = 1.0
        self._refused_at = self._rose_at = 0.0
        self._is_alone = False  # the last refusal, so far

    def refused(self, now: float) -> bool:
        """The service says that a limit is used up. Whether the share has changed."""
        if self.share < 1 and now - self._refused_at < APART:
            return False
        self._is_alone = self.share >= 1
        self.share = max(LEAST, self.share * CUT)
        self._refused_at = self._rose_at = now
        return True

    def answered(self, now: float) -> bool:
        """The service answers. Whether the share has changed."""
        if self.share >= 1 or now - self._rose_at < 0.5:
            return False
        if self._is_alone and now - self._refused_at >= ALONE:
            self.share = 1.0
            return True
        rise = RISE * (1 + ((now - self._refused_at) / CALM) ** 2)
        self.share = min(1.0, self.share + rise * (now - self._rose_at))
        self._rose_at = now
        return True
