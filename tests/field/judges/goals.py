"""What is aimed at, and where it is missed: all numbers that the tests of this kind hold runs to."""

from __future__ import annotations

from dataclasses import dataclass

from judges.names import (
    LITELLM_REQUESTS,
    LITELLM_TOKENS,
    THROTTLED_FIXED,
)


@dataclass(frozen=True)
class Goal:
    """How good a run is.

    Attributes:
        refused: 429s in 1,000 requests, at most.
        used: Of what the judge would have admitted, the part that is used at least.
    """

    refused: float
    used: float

    def met(self, refused: float, used: float) -> bool:
        """Whether a run is as good as that."""
        return refused <= self.refused and used >= self.used


@dataclass(frozen=True)
class Outcome:
    """What one run measured.

    Attributes:
        refused: 429s in 1,000 requests.
        lost: Calls that failed for good.
        used: Of what the judge would have admitted, the part that was used.
    """

    refused: float
    lost: int
    used: float


GOALS = {"headers": Goal(5, 0.95), "retry-after": Goal(10, 0.90), "nothing": Goal(10, 0.90)}
"""By what answers tell."""

MISSED: dict[tuple[str, str, str], Goal] = {
    ("auto", THROTTLED_FIXED, "nothing"): Goal(10, 0.85),
    ("auto", LITELLM_REQUESTS, "headers"): Goal(5, 0.90),
    ("auto", LITELLM_TOKENS, "headers"): Goal(160, 0.60),
}
"""Where a way misses its goal in virtual time, and what holds there: by the way, the judge, and what answers tell."""


ROOM = Goal(55, -0.10)
"""What is added over sockets, where one run is measured: a busy machine sends bunches, and reads answers late."""


def goal_of(way: str, judge: str, style: str, *, over_sockets: bool = False) -> Goal:
    """What a run must reach."""
    goal = MISSED.get((way, judge, style), GOALS[style])
    return Goal(goal.refused + ROOM.refused, goal.used + ROOM.used) if over_sockets else goal


def cell(outcome: Outcome, style: str) -> str:
    """What a table shows of an outcome: 429s, lost calls and the share, and whether that misses the goal."""
    missed = outcome.lost or not GOALS[style].met(outcome.refused, outcome.used)
    return f"{outcome.refused:.0f}, {outcome.lost}, {100 * outcome.used:.0f} %{' ✗' if missed else ''}"
