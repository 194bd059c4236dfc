"""The judges in virtual time, several seeds: as good as aimed at, or as `goals` says."""

from __future__ import annotations

import os

import pytest

if os.environ.get("PENSTOCK_FIELD_ENVIRONMENT") != "limiters":
    pytest.skip("these judges are in the environment `limiters`", allow_module_level=True)

from judges.goals import GOALS, MISSED, Outcome, goal_of
from judges.judging import JUDGES
from judges.names import STYLES
from judges.virtual import simulate

SEEDS = {"auto": 3, "limits given": 2}


@pytest.mark.parametrize("judge", JUDGES)
@pytest.mark.parametrize("way", SEEDS)
def test_with_every_seed_the_judge_is_used_and_hardly_ever_refuses(way: str, judge: str) -> None:
    """No call is lost, hardly anything is refused, and nearly all is used of what the judge would have admitted."""
    for style in STYLES:
        runs = [simulate(judge, style, seed, given=way != "auto") for seed in range(SEEDS[way])]
        worst = Outcome(*(worse(values) for worse, values in zip((max, max, min), _columns(runs), strict=True)))
        assert worst.lost == 0
        assert goal_of(way, judge, style).met(worst.refused, worst.used), (style, worst)
        met = GOALS[style].met(worst.refused, worst.used)
        assert not (met and (way, judge, style) in MISSED), f"{(way, judge, style)} is missed no longer: {worst}"


def _columns(runs):
    return zip(*((run.refused, run.lost, run.used) for run in runs), strict=True)
