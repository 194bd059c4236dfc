"""Which share of the promised rate to use while a server reports overload: additive increase, multiplicative decrease.

Nothing here waits or reads a clock. The rule is that of TCP's congestion avoidance (Chiu and Jain, 1989): among many
clients that follow it, shares become equal and the server's capacity is used, although no client knows either.

The result is a share of the promise, from `floor` to 1. It is cut at most once per `cooldown`, because what was sent
before a cut is refused after it and would be counted again. It grows by the time in which calls were made and
succeeded: an idle hour has proved nothing.
"""

from __future__ import annotations

import math

from penstock._text import repr_of

_GAP = 1.0
"""Seconds between two calls that still count as use."""


class Aimd:
    """The share of a promise that is used now.

    Args:
        cut: What is left of the share after a cut, above 0 and below 1.
        cooldown: Seconds after a cut in which there is no other; 0 or more.
        grow: Share of the promise that is regained per second of use, above 0.
        floor: The smallest share, above 0 and at most 1.

    Raises:
        ValueError: A number is out of its range.
    """

    __slots__ = ("_cooldown", "_counted_to", "_cut", "_cut_at", "_floor", "_grow", "_running", "share")

    def __init__(self, cut: float, cooldown: float, grow: float, floor: float) -> None:
        for name, value, right, range_ in (
            ("cut", cut, 0 < cut < 1, "above 0 and below 1: what is left of the rate after a cut"),
            ("cooldown", cooldown, 0 <= cooldown < math.inf, "a finite number of seconds, 0 or more"),
            ("grow", grow, 0 < grow < math.inf, "above 0: the share of the promise regained per second of use"),
            ("floor", floor, 0 < floor <= 1, "above 0 and at most 1: the smallest share of the promise"),
        ):
            if not right:
                raise ValueError(f"{name}={repr_of(value)} must be {range_}")
        self._cut = cut
        self._cooldown = cooldown
        self._grow = grow
        self._floor = floor
        self._cut_at = -math.inf
        self._counted_to = -math.inf  # up to when use was credited, or forfeited
        self._running = 0
        self.share = 1.0

    def begin(self, now: float) -> None:
        """Note that a call begins."""
        if self._running == 0:
            self._counted_to = max(self._counted_to, now - _GAP)
        self._running += 1

    def end(self, now: float, *, succeeded: bool) -> None:
        """Note that a call ends. A success credits the time in which calls were made; a failure says nothing."""
        self._running -= 1
        if succeeded:
            self.share = min(1.0, self.share + self._grow * max(0.0, now - self._counted_to))
            self._counted_to = max(self._counted_to, now)

    def overloaded(self, now: float) -> bool:
        """Note that the server is overloaded. Return whether the share was cut."""
        self._counted_to = max(self._counted_to, now)  # this time proved nothing
        if now - self._cut_at < self._cooldown:
            return False
        self._cut_at = now
        self.share = max(self._floor, self.share * self._cut)
        return True
