"""One cap of one user, and the error of a call beyond it.

Whether a call is beyond it, the limiter of the user decides: see `quotas`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

from penstock.errors import RateLimited
from penstock.usage.words import a_period, moment


class QuotaExceeded(RateLimited):
    """A user has come to a cap.

    Attributes:
        user, unit: The user that has the cap, and what it counts.
        limit: Units per period, with what a review allowed.
        used: Units used in this period.
        asked: Units that the call asks for.
        period, tz: The period of the cap, and its time zone.
        resets_at: When the period ends, in seconds since 1970.
        retry_after: Seconds until the call would be let through if no other came; `inf` where it is more than the
            whole cap. Later than `resets_at` where a clock that stood ahead has seen some of the next period used.
        review: The state of the review: "pending", "refused", or "approved" of fewer units; None: there is none.
    """

    user: str
    unit: str
    limit: float
    used: float
    asked: float
    period: str
    tz: str
    resets_at: float
    review: str | None

    @classmethod
    def of(cls, quota: Quota, asked: float, now: float, wait: float) -> Self:
        """The error of a call that asks for so much of that at the moment `now`, and has to wait so many seconds."""
        ever = asked <= quota.limit * (1 + 1e-12)
        # Half a period: the clock of the store may be another than that of `now`.
        is_this_period = now + wait < quota.resets_at + (quota.resets_at - quota.began_at) / 2
        again_at = quota.resets_at if is_this_period or wait == math.inf else round(now + wait)
        again = "at " + moment(again_at, quota.tz) if ever else "never, as it is more than all of it"
        unit = "" if quota.unit == "dollars" else f" {quota.unit}"
        period = a_period(quota.period)
        used, limit, more = (_shown(quota.unit, amount) for amount in (quota.used, quota.limit, asked))
        error = cls(
            f"{quota.user!r:.200} has used {used} of {limit}{unit} {period} and asks for {more}: again {again}",
            retry_after=wait if ever else math.inf,
            blocked_by=f"{quota.unit} {period} of {quota.user!r:.200}",
        )
        error.user, error.unit, error.limit, error.used, error.asked = (
            quota.user, quota.unit, quota.limit, quota.used, asked,
        )  # fmt: skip
        error.period, error.tz, error.resets_at, error.review = quota.period, quota.tz, quota.resets_at, None
        return error

    @property
    def missing(self) -> float:
        """Units by which the call is beyond the cap."""
        return max(0.0, self.used + self.asked - self.limit)


@dataclass(frozen=True, slots=True)
class Quota:
    """One cap of one user, and how much of it is used.

    Attributes:
        user, unit, period, tz: The user that has the cap; what it counts, for how long, by which calendar.
        limit: Units per period, with `extra`.
        used: Units used in this period. More than `limit`: calls took more than was thought.
        resets_at: When the period ends, in seconds since 1970.
        began_at: When it began.
        is_own: Whether the cap was set for this user alone.
        extra: Units that a review has allowed on top, until the period ends.
    """

    user: str
    unit: str
    period: str
    tz: str
    limit: float
    used: float
    resets_at: float
    began_at: float
    is_own: bool = False
    extra: float = 0.0

    @property
    def remaining(self) -> float:
        """Units left; 0 if more was used."""
        return max(0.0, self.limit - self.used)


def _shown(unit: str, amount: float) -> str:
    """An amount to the sixth digit behind the point, of a small one to the twelfth, without the noughts at its end."""
    text = f"{amount:.{6 if amount >= 0.001 else 12}f}".rstrip("0").rstrip(".")
    return f"${text}" if unit == "dollars" else text
