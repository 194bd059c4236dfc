"""Runs through LiteLLM's proxy: each client in a process of its own, as users have it."""

from __future__ import annotations

import asyncio
import math
import secrets
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import httpx2
from judges.goals import Outcome
from judges.names import LITELLM_REQUESTS, LITELLM_TOKENS
from judges.proxying import USAGE
from judges.ways import OURS, USUAL, Account, send

from penstock import sliding

__all__ = ["LIMITS", "RUNS", "Run", "measured"]

AT_ONCE = 3
"""Clients at a time: the proxy takes most of a core for them."""

MINUTE = 60.0
RPM = 400
TOKENS = sum(USAGE.values())
"""Of a request and its answer, as the service counts them: about as many as the proxy takes for granted before."""

LIMITS = {LITELLM_REQUESTS: (RPM, 1_000_000), LITELLM_TOKENS: (100_000, RPM * TOKENS)}
"""Requests and tokens a minute."""

Run = tuple[str, str]
"""A way, and a judge."""


RUNS: list[Run] = [(way, judge) for way in OURS for judge in LIMITS] + [(way, LITELLM_REQUESTS) for way in USUAL]
"""Our ways against both limits, and the usual ways against the one in requests."""


def measured(base_url: str, runs: Sequence[Run]) -> dict[Run, Outcome]:
    """What came of each run; each has a key that nothing was sent with."""
    _warm_up(base_url)
    with ProcessPoolExecutor(AT_ONCE, get_context("spawn")) as clients:
        under_way = [clients.submit(_one, *run, base_url) for run in runs]
        return {run: each.result() for run, each in zip(runs, under_way, strict=True)}


def _warm_up(base_url: str) -> None:
    """Have the proxy answer once with another key: it takes seconds for its first request, as none later."""
    message = {"model": "m", "messages": [{"role": "user", "content": "Yes or no?"}]}
    headers = {"authorization": "Bearer sk-1000-1000000-first"}
    httpx2.post(f"{base_url}/chat/completions", json=message, headers=headers, timeout=120).raise_for_status()


def _one(way: str, judge: str, base_url: str) -> Outcome:
    return asyncio.run(_run(way, judge, base_url))


async def _run(way: str, judge: str, base_url: str) -> Outcome:
    rpm, tpm = LIMITS[judge]
    limits = {"requests": sliding(rpm, MINUTE), "tokens": sliding(tpm, MINUTE)}
    key = f"sk-{rpm}-{tpm}-{secrets.token_hex(4)}"
    account = Account(base_url, key, limits, rpm, tpm, MINUTE, cost="total")
    began = time.time()
    lost = await send(way, account)
    admitted = [moment for moment, status in account.answers if status == 200]
    refused = sum(status == 429 for _, status in account.answers)
    outcome = Outcome(refused, lost, _share(admitted, began))
    print(way, judge, outcome, sep=": ", flush=True)
    return outcome


def _share(admitted: list[float], began: float) -> float:
    """Of a minute's worth for each whole minute that there was demand in, the part that was used."""
    whole = math.floor((max(admitted, default=began) - began) / MINUTE) * MINUTE
    return min(1.0, sum(moment < began + whole for moment in admitted) / (RPM * whole / MINUTE)) if whole else 0.0
