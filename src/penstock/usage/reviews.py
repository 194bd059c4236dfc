"""Reviews of calls beyond a cap, and the record of a user in which they stand. Pure: no clock, no I/O.

A call beyond a cap may ask for a review, which somebody decides later, or be decided at once by a function. What is
allowed then is `extra`: units on top of the cap, until its period ends. Each step makes a new record of the old one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from penstock.usage.caps import Cap, CapKey, Caps, with_extra
from penstock.usage.quota import QuotaExceeded

ReviewState = Literal["pending", "approved", "refused"]


class Extra(NamedTuple):
    """Units that are allowed on top of a cap, and the moment at which that ends, in seconds since 1970."""

    units: float
    until: float


@dataclass(frozen=True, slots=True)
class Review:
    """A user came to a cap, and a person, or a function, is to decide.

    Attributes:
        user, unit, period, tz: The user that has the cap, and which one.
        asked: Units beyond the cap that were asked for last.
        at: When it was first asked for, in seconds since 1970.
        until: When the period ends, and with it the review.
        state: "pending", "approved" or "refused".
        allowed: Units that were allowed on top of the cap, for this period.
        by: The person or function that decided; "": none has.
        calls: How many calls asked.
    """

    user: str
    unit: str
    period: str
    tz: str
    asked: float
    at: float
    until: float
    state: ReviewState = "pending"
    allowed: float = 0.0
    by: str = ""
    calls: int = 1

    @property
    def cap(self) -> CapKey:
        """Which cap it is about."""
        return CapKey(self.unit, self.period, self.tz)

    def is_open(self, now: float) -> bool:
        """Whether it still waits for a decision."""
        return self.state == "pending" and now < self.until


@dataclass(frozen=True, slots=True)
class UserRecord:
    """What is kept of a user.

    Attributes:
        own: Caps that are not those for everybody, per unit.
        extra: What is allowed on top of each cap.
        reviews: The last ones, the latest at the end.
    """

    user: str
    own: Caps
    extra: Mapping[CapKey, Extra]
    reviews: tuple[Review, ...] = ()

    def caps(self, for_everybody: Caps, now: float) -> Caps:
        """The user's caps at a moment."""
        return with_extra({**for_everybody, **self.own}, self.extra_at(now))

    def extra_at(self, now: float) -> dict[CapKey, float]:
        """Units that are allowed on top of caps at a moment."""
        return {cap: extra.units for cap, extra in self.extra.items() if now < extra.until}

    def changes_at(self, now: float) -> float:
        """When the caps change by themselves next."""
        return min((extra.until for extra in self.extra.values() if now < extra.until), default=float("inf"))

    def asked(self, error: QuotaExceeded, now: float) -> UserRecord:
        """Note that a call beyond a cap wants a review: one that waits, or was refused, is for all of its period."""
        review = _review_of(error, now)
        last = self._last_of(review.cap, now)
        if last is not None and last.state != "approved":
            return self._with(replace(last, asked=error.missing, calls=last.calls + 1), instead_of=last)
        return self._with(review)

    def decided_at_once(self, error: QuotaExceeded, allowed: float, by: str, now: float) -> UserRecord:
        """Note what a function said of a call: so many units more, 0: none. Decisions alike are one review."""
        review = replace(_review_of(error, now), state="approved" if allowed else "refused", allowed=allowed, by=by)
        last = self._last_of(review.cap, now)
        if last is None or (last.state, last.by) != (review.state, review.by):
            return self._with(review)._with_extra(review, allowed, now)
        both = replace(review, at=last.at, allowed=last.allowed + allowed, calls=last.calls + 1)
        return self._with(both, instead_of=last)._with_extra(both, allowed, now)

    def decided(
        self, unit: str, cap: tuple[Cap, float] | None, allowed: float | None, by: str, now: float
    ) -> UserRecord:
        """Note a decision about the pending review of a unit; where there is none, about its cap.

        Args:
            unit: Of the cap.
            cap: The first of that unit, and when its period ends; None: the user has none.
            allowed: Units more; 0: it is refused; None: as many as were asked for last.
            by: The name of the person that decides.
            now: In seconds since 1970.

        Raises:
            ValueError: There is no pending review, and no cap, or nothing that says how many units.
        """
        pending = [one for one in self.reviews if one.unit == unit and one.is_open(now)]
        state: ReviewState = "refused" if allowed == 0 else "approved"
        if pending:
            old = pending[-1]
            review = replace(old, state=state, allowed=old.asked if allowed is None else allowed, by=by)
            return self._with(review, instead_of=old)._with_extra(review, review.allowed, now)
        if cap is None:
            raise ValueError(f"{self.user!r} has no cap of {unit}")
        if allowed is None:
            raise ValueError(f"{self.user!r} has no pending review of {unit}: say how many units more")
        which, until = cap
        review = Review(self.user, unit, which.period, which.tz, 0.0, now, until, state, allowed, by, calls=0)
        return self._with(review)._with_extra(review, allowed, now)

    def _last_of(self, cap: CapKey, now: float) -> Review | None:
        found = [one for one in self.reviews if one.cap == cap and now < one.until]
        return found[-1] if found else None

    def _with(self, review: Review, *, instead_of: Review | None = None) -> UserRecord:
        return replace(self, reviews=(*(one for one in self.reviews if one != instead_of), review))

    def _with_extra(self, review: Review, units: float, now: float) -> UserRecord:
        if not units:
            return self
        live = {cap: extra for cap, extra in self.extra.items() if now < extra.until}
        more = live[review.cap].units if review.cap in live else 0.0
        return replace(self, extra={**live, review.cap: Extra(more + units, review.until)})


def _review_of(error: QuotaExceeded, now: float) -> Review:
    return Review(error.user, error.unit, error.period, error.tz, error.missing, now, error.resets_at)
