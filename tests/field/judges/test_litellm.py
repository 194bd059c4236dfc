"""LiteLLM's proxy, with limits in requests and in tokens a minute: 429s, lost calls, and the share that was used.

Its windows begin with the first request. It tells what is left, and on a refusal to stay away for a whole minute.
"""

from __future__ import annotations

import os

import pytest

if os.environ.get("PENSTOCK_FIELD_ENVIRONMENT") != "litellm":
    pytest.skip("the proxy is in the environment `litellm`", allow_module_level=True)

from judges.asking_litellm import LIMITS, RUNS, Run, measured
from judges.goals import Outcome, cell, goal_of
from judges.proxying import proxied
from judges.ways import OURS, WAYS


@pytest.fixture(scope="module")
def outcomes() -> dict[Run, Outcome]:
    """Of each run; one that misses its goal is repeated once, but none that lost a call."""
    with proxied() as base_url:
        found = measured(base_url, RUNS)
        again = [run for run, outcome in found.items() if not holds(run, outcome) and not outcome.lost]
        return found | (measured(base_url, again) if again else {})


def holds(run: Run, outcome: Outcome) -> bool:
    """Whether a run reached what is asked of it; nothing is asked of what is usual."""
    way, judge = run
    goal = goal_of(way, judge, "headers", over_sockets=True)
    return way not in OURS or (outcome.lost == 0 and goal.met(outcome.refused, outcome.used))


@pytest.mark.parametrize("judge", LIMITS)
def test_a_proxy_that_we_did_not_write(judge: str, outcomes: dict[Run, Outcome], field) -> None:
    """No call is lost, hardly anything is refused, and nearly all is used of what it would have admitted."""
    mine = {way: outcomes[way, judge] for way in WAYS if (way, judge) in outcomes}
    field.row(f"{judge}: headers", {way: cell(outcome, "headers") for way, outcome in mine.items()})
    for way, outcome in mine.items():
        assert holds((way, judge), outcome), (way, outcome)
