"""The length of a sliding window, found from answers that give only what is left.

Pure arithmetic. What left comes back when it is as old as the window is long. So each length predicts, from what left
before an answer, what this answer says is left. The shortest length is believed whose predictions held when much came
back, if the next shorter one failed. Where others use the limit too, no length holds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from penstock.llm.learning.returns import USUAL
from penstock.llm.learning.traffic import HEADROOM, OVERTAKING, ROUNDING, WINDOWS_HEADROOM, Departure, Traffic

__all__ = ["SlidingWindow"]

ENOUGH = 1.9
"""Predictions that must have held, of answers that tell of something that came back, for a length to be believed: two,
as `MEMORY` takes a little of the first."""

OFTEN, DISPROVED = 0.2, 0.5
"""Failures over predictions that held: above the first a length is not believed, above the second no longer."""

SOME, RECENTLY = 0.03, 0.1
"""Share of the limit that must have come back, within a share of the length or a second, to confirm that length. What
answers tell within that time counts once: of a window that comes back at once, a hundred answers tell the same."""

APART, MOST_APART = 0.03, 1.0
"""Share of the length, and seconds, by which the ways of two requests may differ: the first ones open connections."""

UNCONFIRMED, MOST_UNCONFIRMED = 0.05, 0.5
"""Share of the limit that may be sent before an answer confirms that it came back; it doubles with each prediction that
held, up to the second, and begins anew when one fails, as others may use the limit now."""

SLOWEST = 0.95
"""How much of the longest time to an answer outlives the next answer."""

MEMORY = 0.95
"""How much of what was counted outlives the next answer."""

WHOLE = 1.01
"""Units by which a number may differ that is stated in whole ones."""


@dataclass(slots=True)
class SlidingWindow:
    """What is known of one.

    Attributes:
        length: Seconds; None: it is no window that slides, as far as is known.
    """

    length: float | None = None
    _trip: float = 0.0  # seconds to an answer, of late at most: a request is admitted before it is answered
    _held: dict[float, float] = field(default_factory=lambda: dict.fromkeys(USUAL, 0.0))  # and showed a return
    _failed: dict[float, float] = field(default_factory=lambda: dict.fromkeys(USUAL, 0.0))
    _unconfirmed: float = UNCONFIRMED
    _held_at: dict[float, float] = field(default_factory=lambda: dict.fromkeys(USUAL, -math.inf))  # when last counted
    _failed_at: dict[float, float] = field(default_factory=lambda: dict.fromkeys(USUAL, -math.inf))

    def hear(self, departure: Departure, remaining: float, limit: float, factor: float, traffic: Traffic) -> None:
        """Take one answer in: what was left when that request was admitted."""
        at, sent = departure.at, traffic.sent_by
        trip = HEADROOM if departure.charged_at is None else departure.charged_at - at
        self._trip = max(trip, SLOWEST * self._trip)
        for length in USUAL:
            apart = max(OVERTAKING, min(MOST_APART, APART * length))
            early, late = at - length - apart, at - length + apart
            least = limit - factor * traffic.admitted(early, at + apart)
            most = limit - factor * (traffic.admitted(late, at - apart) + departure.cost)
            recently = max(1.0, RECENTLY * length)
            if not least - WHOLE <= remaining <= most + WHOLE:
                if at >= self._failed_at[length] + recently:
                    self._failed_at[length] = at
                    self._failed[length] = MEMORY * self._failed[length] + 1.0
                    self._unconfirmed = UNCONFIRMED if length == self.length else self._unconfirmed
            elif (
                at >= self._held_at[length] + recently
                and factor * (sent(early) - sent(early - recently)) > SOME * limit
            ):
                self._held_at[length] = at
                self._failed[length] *= MEMORY
                self._held[length] = MEMORY * self._held[length] + 1.0
                if length == self.length:
                    self._unconfirmed = min(MOST_UNCONFIRMED, 2 * self._unconfirmed)
        if self.length is None or self._failed[self.length] > DISPROVED * self._held[self.length]:
            self.length = self._proved()

    def _proved(self) -> float | None:
        """The shortest length whose predictions held, if the next shorter one failed: what is seen late may be old."""
        shorter_failed = True
        for length in USUAL:
            held, failed = self._held[length], self._failed[length]
            if held >= ENOUGH and failed <= OFTEN * held:
                return length if shorter_failed else None
            shorter_failed = failed > 0.5
        return None

    def left(
        self, departure: Departure, remaining: float, now: float, limit: float, factor: float, traffic: Traffic
    ) -> float:
        """What there is now: as much as came back of what we took, and as an answer leaves of it."""
        back = self.came_back(departure, now, traffic)
        since = traffic.admitted(departure.at, now) + traffic.sent_by(departure.at) - departure.sent
        most = max(self._unconfirmed * limit, factor * departure.cost)
        return min(self.level(now, limit, factor, traffic), remaining + min(most, factor * (back - since)))

    def level(self, now: float, limit: float, factor: float, traffic: Traffic) -> float:
        """What is left at `now`, if no other client took anything."""
        return limit - factor * traffic.admitted(self._back_by(now), now)

    def came_back(self, departure: Departure, now: float, traffic: Traffic) -> float:
        """Units that came back since that request was admitted: whatever was used then, once it is as old as that."""
        length, by = self.length or 0.0, self._back_by(now)
        if by >= departure.at:
            return math.inf
        return max(0.0, traffic.admitted(departure.at - length + OVERTAKING, by))

    def ready_at(self, missing: float, now: float, traffic: Traffic) -> float:
        """When so many units more will have come back."""
        by = self._back_by(now)
        for each in traffic.between(by, now):
            missing -= each.cost
            if missing <= ROUNDING:
                return max(now, each.at + now - by)
        return 2 * now - by

    def _back_by(self, now: float) -> float:
        """What left by that moment is back at `now`."""
        length = self.length or 0.0
        return now - length - min(HEADROOM, WINDOWS_HEADROOM * length, self._trip)
