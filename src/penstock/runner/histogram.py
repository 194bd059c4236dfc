"""A histogram of durations, in a fixed number of buckets, however many durations there are. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator

__all__ = ["Histogram"]

LEAST = 0.001
"""Seconds below which nothing is told apart."""

PER_DOUBLING = 4
"""Bins between a time and twice as much: each is 19 % wide."""

BINS = 112
"""That reach to three days."""


class Histogram:
    """Times in bins that grow with them.

    Attributes:
        count: How many there are.
        longest: The longest of them, in seconds.
    """

    __slots__ = ("_bins", "count", "longest")

    def __init__(self) -> None:
        self._bins = [0] * BINS
        self.count: int = 0
        self.longest: float = 0.0

    def add(self, seconds: float) -> None:
        """Count a time; below 0 is 0."""
        number = 0 if seconds <= LEAST else min(BINS - 1, 1 + int(PER_DOUBLING * math.log2(seconds / LEAST)))
        self._bins[number] += 1
        self.count += 1
        if seconds > self.longest:
            self.longest = seconds

    def quantile(self, share: float) -> float:
        """Seconds within which that share of them was over, at most a fifth too long; 0 if there are none."""
        wanted, seen = share * self.count, 0
        for number, count in enumerate(self._bins[:-1]):
            seen += count
            if count and seen >= wanted:
                return min(self.longest, _end(number))
        return self.longest

    def bins(self) -> Iterator[tuple[float, int]]:
        """(end in seconds, how many) from the first bin that holds any to the last."""
        held = [number for number, count in enumerate(self._bins) if count]
        numbers = range(min(held, default=0), max(held, default=-1) + 1)
        return ((_end(number), self._bins[number]) for number in numbers)


def _end(number: int) -> float:
    return float(LEAST * 2.0 ** (number / PER_DOUBLING))
