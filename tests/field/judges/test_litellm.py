"""LiteLLM's proxy, with limits in requests and in tokens a minute: 429s, lost calls, and the share that was used.

Its windows begin with the first request. It tells what is left, and on a refusal to stay away for a whole minute.
"""

from __future__ import annotations

import os

import pytest

if os.environ.get("PENSTOCK_FIELD_ENVIRONMENT") != "litellm":
    pytest.skip("the proxy is in the environment `litellm`", allow_module_level=True)

from judges.asking_litellm import LIMITS, Run, measured
from judges.goals import Outcome, cell, goal_of
from judges.proxying import proxied
from judges.ways import OURS, WAYS


@pytest.fixture(scope="module")
def outcomes() -> dict[Run, Outcome]:
    with proxied() as base_url:
        return measured(base_url)


@pytest.mark.parametrize("judge", LIMITS)
def test_a_proxy_that_we_did_not_write(judge: str, outcomes: dict[Run, Outcome], field) -> None:
    """No call is lost, hardly anything is refused, and nearly all is used of what it would have admitted."""
    mine = {way: outcomes[way, judge] for way in WAYS if (way, judge) in outcomes}
    field.row(f"{judge}: headers", {way: cell(outcome, "headers") for way, outcome in mine.items()})
    for way in OURS:
        assert mine[way].lost == 0, (way, mine[way])
        goal = goal_of(way, judge, "headers", over_sockets=True)
        assert goal.met(mine[way].refused, mine[way].used), (way, mine[way])
