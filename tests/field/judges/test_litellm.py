"""LiteLLM's proxy, with limits in requests and in tokens a minute: 429s, lost calls, and the share that was used.

Its windows begin with the first request. It tells what is left, and on a refusal to stay away for a whole minute.
"""

from __future__ import annotations

import os

import pytest

if os.environ.get("PENSTOCK_FIELD_ENVIRONMENT") != "litellm":
    pytest.skip("the proxy is in the environment `litellm`", allow_module_level=True)

import asyncio
import math
import time

from judges.goals import Outcome, cell, goal_of
from judges.names import LITELLM_REQUESTS, LITELLM_TOKENS
from judges.proxying import USAGE, proxied
from judges.ways import OURS, USUAL, WAYS, Account, send

from penstock import sliding

MINUTE = 60.0
RPM = 400
TOKENS = sum(USAGE.values())
"""Of a request and its answer, as the service counts them: about as many as the proxy takes for granted before."""

LIMITS = {LITELLM_REQUESTS: (RPM, 1_000_000), LITELLM_TOKENS: (100_000, RPM * TOKENS)}
"""Requests and tokens a minute."""


@pytest.fixture(scope="module")
def base_url():
    with proxied() as url:
        yield url


@pytest.fixture(scope="module")
def outcomes(base_url):
    """By judge and way: ours side by side, and then the others, against the limit in requests alone."""
    ours = [(judge, way) for judge in LIMITS for way in OURS]
    usual = [(LITELLM_REQUESTS, way) for way in USUAL]
    return {run: outcome for runs in (ours, usual) for run, outcome in asyncio.run(_measure(runs, base_url)).items()}


@pytest.mark.parametrize("judge", LIMITS)
def test_a_proxy_that_we_did_not_write(judge, outcomes, field):
    """No call is lost, hardly anything is refused, and nearly all is used of what it would have admitted."""
    mine = {way: outcomes[judge, way] for way in WAYS if (judge, way) in outcomes}
    table = "With headers: LiteLLM's proxy"
    field.row(judge, {way: cell(outcome, "headers") for way, outcome in mine.items()}, table=table)
    for way in OURS:
        assert mine[way].lost == 0, (way, mine[way])
        assert goal_of(way, judge, "headers", over_sockets=True).met(mine[way].refused, mine[way].used), (
            way,
            mine[way],
        )


async def _measure(runs, base_url):
    return dict(zip(runs, await asyncio.gather(*(_run(judge, way, base_url) for judge, way in runs)), strict=True))


async def _run(judge, way, base_url):
    rpm, tpm = LIMITS[judge]
    limits = {"requests": sliding(rpm, MINUTE), "tokens": sliding(tpm, MINUTE)}
    account = Account(base_url, f"sk-{rpm}-{tpm}-{way.split()[0]}", limits, rpm, tpm, MINUTE, cost="total")
    began = time.time()
    lost = await send(way, account)
    admitted = [moment for moment, status in account.answers if status == 200]
    refused = sum(status == 429 for _, status in account.answers)
    return Outcome(refused, lost, _share(admitted, began))


def _share(admitted, began):
    """Of a minute's worth for each whole minute that there was demand in, the part that was used."""
    whole = math.floor((max(admitted, default=began) - began) / MINUTE) * MINUTE
    return min(1.0, sum(moment < began + whole for moment in admitted) / (RPM * whole / MINUTE)) if whole else 0.0
