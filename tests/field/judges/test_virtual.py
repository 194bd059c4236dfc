"""The judges in virtual time, several seeds: as good as aimed at, or as `goals` says."""

from __future__ import annotations

import os

import pytest

if os.environ.get("PENSTOCK_FIELD_ENVIRONMENT") != "limiters":
    pytest.skip("these judges are in the environment `limiters`", allow_module_level=True)

from judges.goals import GOALS, MISSED, goal_of
from judges.judging import JUDGES, STYLES
from judges.virtual import simulate

SEEDS = {"auto": 3, "limits given": 2}


@pytest.mark.parametrize("judge", JUDGES)
@pytest.mark.parametrize("way", SEEDS)
def test_every_seed(way: str, judge: str, field) -> None:
    """No call is lost, hardly anything is refused, and nearly all is used of what the judge would have admitted."""
    cells = {}
    for style in STYLES:
        runs = [simulate(judge, style, seed, given=way != "auto") for seed in range(SEEDS[way])]
        refused, used = max(run.refused for run in runs), min(run.used for run in runs)
        assert all(run.lost == 0 for run in runs)
        assert goal_of(way, judge, style).met(refused, used), (way, judge, style, refused, used)
        missed = not GOALS[style].met(refused, used)
        assert missed or (way, judge, style) not in MISSED, f"it is met: {(way, judge, style)} is missed no longer"
        cells[STYLES[style]] = f"{refused:.0f}, {100 * used:.0f} %{' ✗' if missed else ''}"
    field.row(judge, cells, table=f"In virtual time, {way}, the worst of {SEEDS[way]} seeds")
