"""A thousand requests from 200 tasks through limits that others decide: 429s, lost calls, and the share that was used.

Real sockets and real time, as the judges have clocks of their own. Each run has an account of its own.
"""

from __future__ import annotations

import os

import pytest

if os.environ.get("PENSTOCK_FIELD_ENVIRONMENT") != "limiters":
    pytest.skip("these judges are in the environment `limiters`", allow_module_level=True)

from judges.goals import Outcome, cell, goal_of
from judges.judging import JUDGES
from judges.measuring import Run, every_run, measured
from judges.names import STYLES
from judges.ways import OURS, WAYS


@pytest.fixture(scope="module")
def outcomes() -> dict[Run, Outcome]:
    """Of each run; one that misses its goal is repeated once, but none that lost a call."""
    found = measured(every_run())
    again = [run for run, outcome in found.items() if not holds(run, outcome) and not outcome.lost]
    return found | (measured(again) if again else {})


def holds(run: Run, outcome: Outcome) -> bool:
    """Whether a run reached what is asked of it; nothing is asked of what is usual."""
    way, judge, style = run
    goal = goal_of(way, judge, style, over_sockets=True)
    return way not in OURS or (outcome.lost == 0 and goal.met(outcome.refused, outcome.used))


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("judge", JUDGES)
def test_a_judge_that_we_did_not_write(judge: str, style: str, outcomes, field) -> None:
    """No call is lost, hardly anything is refused, and nearly all is used of what the judge would have admitted."""
    mine = {way: outcomes[way, judge, style] for way in WAYS if (way, judge, style) in outcomes}
    field.row(f"{judge}: {STYLES[style]}", {way: cell(outcome, style) for way, outcome in mine.items()})
    for way, outcome in mine.items():
        assert holds((way, judge, style), outcome), (way, outcome)
