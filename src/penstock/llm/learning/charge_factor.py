"""How much a server charges for each unit that we estimate. Pure arithmetic, for `server_estimate`."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from penstock.llm.learning.traffic import Departure

LEAST_FACTOR, MOST_FACTOR = 0.01, 1_000.0

MOST_STEP = 4.0
"""A factor grows at most so many times from one sample to the next."""

DECAY = 0.8
"""How much of a sample outlives the next one."""

_SAMPLES = 12  # whose variation is known

UNSEEN = 0.15
"""That variation before there are enough samples, where the server charges for more than we count."""

GROSSLY = 1.5
"""How many times the factor a bound must be to raise it: charges vary, and the highest of many bounds is too high."""

FEWEST = 4
"""Requests that make a crowd of which something can be learned."""

FAIR = 0.16
"""Share of the capacity that is left to others who use a bucket too, over 2 and the factor: the largest goes last."""

AT_ONCE, OTHERS = 2.0, 0.02
"""What must be left for a request to go where others use a bucket too: so many times what it surely takes, and that
share of the capacity, for what they send until we hear of it."""


@dataclass(slots=True)
class ChargeFactor:
    """A factor, and the samples that it is made of.

    Attributes:
        value: Units that the server charges for one of ours.
        samples: How many samples it was learned from.
        alone: What is surely charged for one of ours by itself: the value holds what others take meanwhile, too.
    """

    value: float = 1.0
    samples: int = 0
    alone: float = 1.0
    _charged: float = 0.0
    _estimated: float = 0.0
    _ratios: list[float] = field(default_factory=list)

    def learn(self, charged: float, estimated: float, *, least: float, one_below: float) -> None:
        """Take a sample in; believe it gradually, as it may be of another client that took much at once.

        `least` is known to be charged at least, and below `one_below` it is taken for one unit for a unit.
        """
        self._charged = DECAY * self._charged + charged
        self._estimated = DECAY * self._estimated + estimated
        most = min(MOST_FACTOR, MOST_STEP * self.value)
        self.value = min(most, max(LEAST_FACTOR, self._charged / self._estimated))
        self._charged = self.value * self._estimated
        self.value = max(least, self.value)
        if self.value < one_below:
            self.value = 1.0
        self.samples += 1
        self._ratios.append(charged / estimated / max(self.value, LEAST_FACTOR))
        del self._ratios[:-_SAMPLES]

    def raise_to(self, least: float) -> None:
        """It is at least so much. What is only a little more is for the samples to find."""
        if least > GROSSLY * self.value:
            self.value = min(MOST_FACTOR, MOST_STEP * self.value, least)
            self._charged = self.value * self._estimated

    def was_too_little(self, remaining: float, cost: float) -> None:
        """A request was refused with so much left."""
        if remaining < self.value * cost:  # else it was refused for another limit
            self.alone = max(self.alone, remaining / cost)

    def forget(self) -> None:
        """What was learned took something for refill that was none."""
        self.value, self.alone, self._charged, self._estimated = 1.0, 1.0, 0.0, 0.0
        self._ratios.clear()

    @property
    def deviation(self) -> float:
        """By what share the server's charges vary around the factor, from sample to sample."""
        ratios = self._ratios
        if len(ratios) < 3:
            return UNSEEN if self.samples and self.value > 1.1 else 0.0
        mean = sum(ratios) / len(ratios)
        return math.sqrt(sum((each - mean) ** 2 for each in ratios) / len(ratios))


@dataclass(slots=True)
class Crowd:
    """Requests that left together, until all of them are answered.

    In whatever order they arrived, all but the first of them were charged what is between the most and the least that
    their answers said was left.

    Attributes:
        first_at: When the first of those left that were answered.
        last_at: The same of the last.
        most: The most that an answer said was left.
        least: The least.
        count: How many they are.
    """

    first_at: float = math.inf
    last_at: float = -math.inf
    most: float = -math.inf
    least: float = math.inf
    count: int = 0
    _estimated: float = 0.0
    _smallest: float = math.inf

    def hear(self, departure: Departure, remaining: float) -> None:
        """One of them was answered, and so much was left."""
        self.first_at, self.last_at = min(self.first_at, departure.at), max(self.last_at, departure.at)
        self.most, self.least = max(self.most, remaining), min(self.least, remaining)
        self._estimated += departure.cost
        self._smallest = min(self._smallest, departure.cost)
        self.count += 1

    @property
    def charged(self) -> float:
        """Units that all but the first were charged."""
        return self.most - self.least

    @property
    def least_factor(self) -> float:
        """What the server charges for one of our units at least, whichever arrived first."""
        others = self._estimated - self._smallest
        return self.charged / others if others > 0 else 0.0


def replayed(
    at: float, level: float, counts: Iterable[tuple[float, float]], refill: float, capacity: float, factor: float
) -> tuple[float, float]:
    """What was sent since a level was stated, and the refill that did not fit into the bucket meanwhile.

    That is known only by playing it all again, with what is thought of the factor so far.

    Args:
        at: When the level was stated.
        counts: What was sent since: when, and how much.
        refill: Units per second.
    """
    sent = spilled = 0.0
    for moment, cost in counts:
        level += refill * (moment - at)
        spilled += max(0.0, level - capacity)
        level = min(capacity, level) - factor * cost
        sent += cost
        at = moment
    return sent, spilled
