"""All runs over sockets: so many side by side, those of ours in one process and the others in another."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import httpx2
from judges.goals import Outcome
from judges.judging import JUDGES, share, true_limit
from judges.names import AMOUNT, SECONDS, STYLES
from judges.serving import address, served
from judges.ways import OURS, USUAL, Account, send

AT_ONCE = 12
"""Runs side by side in each process: they mostly wait."""

TELL = {"headers", "nothing"}
"""What is told to the others: most of them read nothing but `Retry-After`, which is told among the headers."""

Run = tuple[str, str, str]
"""A way, a judge, and what is told."""


def measured() -> dict[Run, Outcome]:
    """Every way against every judge."""
    ours = [(way, judge, style) for way in OURS for judge in JUDGES for style in STYLES]
    others = [(way, judge, style) for way in USUAL for judge in JUDGES for style in STYLES if style in TELL]
    with served() as port, ProcessPoolExecutor(2, get_context("spawn")) as processes:
        parts = [processes.submit(_side_by_side, runs, port) for runs in (ours, others)]
        return {run: outcome for part in parts for run, outcome in part.result().items()}


def _side_by_side(runs: list[Run], port: int) -> dict[Run, Outcome]:
    random.Random(1).shuffle(runs)  # so that those that send in bursts are spread over others
    return asyncio.run(_measure(runs, port))


async def _measure(runs: list[Run], port: int) -> dict[Run, Outcome]:
    places = asyncio.Semaphore(AT_ONCE)

    async def one(number: int, run: Run) -> Outcome:
        async with places:
            if number < AT_ONCE:  # their windows should not begin together
                await asyncio.sleep(number * SECONDS / AT_ONCE)
            outcome = await _run(*run, port)
            print(*run, outcome, sep=": ", flush=True)
            return outcome

    outcomes = await asyncio.gather(*(one(number, run) for number, run in enumerate(runs)))
    return dict(zip(runs, outcomes, strict=True))


async def _run(way: str, judge: str, style: str, port: int) -> Outcome:
    name = "-".join(_plain(word) for word in (way, judge, style))
    account = Account(
        address(port, judge, style, name),
        name,
        {"requests": true_limit(judge, AMOUNT, SECONDS)},
        AMOUNT,
        1_000 * AMOUNT,  # tokens: as good as any number
        SECONDS,
    )
    began = time.time()
    lost = await send(way, account)
    async with httpx2.AsyncClient(timeout=60) as client:
        ledger = (await client.get(f"http://127.0.0.1:{port}/ledgers/{name}")).json()
    return Outcome(len(ledger["refused"]), lost, share(judge, ledger["admitted"], began, AMOUNT, SECONDS))


def _plain(word: Iterable[str]) -> str:
    return "".join(letter for letter in word if letter.isascii() and letter.isalnum())
