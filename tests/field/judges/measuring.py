"""All runs over sockets: each client in a process of its own, as users have it, and the judges in another.

    python -m judges.measuring "fixed window" headers --way auto      prints what some of them measured (in tests/field)

By themselves, that is: to see whether a row of the table was an accident.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context

import httpx2
from judges.goals import Outcome
from judges.judging import JUDGES, share, true_limit
from judges.names import AMOUNT, SECONDS, STYLES
from judges.serving import address, served
from judges.ways import OURS, USUAL, WAYS, Account, send

AT_ONCE = 8
"""Clients at a time: each takes a twentieth of a core."""

TELL = {"headers", "nothing"}
"""What is told to the others: most of them read nothing but `Retry-After`, which is told among the headers."""

Run = tuple[str, str, str]
"""A way, a judge, and what is told."""


def every_run() -> list[Run]:
    """Every way against every judge, in an order that spreads those that send in bursts over others."""
    runs = [(way, judge, style) for way in OURS for judge in JUDGES for style in STYLES]
    runs += [(way, judge, style) for way in USUAL for judge in JUDGES for style in STYLES if style in TELL]
    random.Random(1).shuffle(runs)
    return runs


def measured(runs: Sequence[Run]) -> dict[Run, Outcome]:
    """What came of each run; the judges are new."""
    outcomes: dict[Run, Outcome] = {}
    with served() as port, ProcessPoolExecutor(AT_ONCE, get_context("spawn")) as clients:
        under_way = {clients.submit(_one, run, number, port): run for number, run in enumerate(runs)}
        for done in as_completed(under_way):
            outcomes[under_way[done]] = done.result()
            print(*under_way[done], done.result(), sep=": ", flush=True)
    return outcomes


def _one(run: Run, number: int, port: int) -> Outcome:
    if number < AT_ONCE:  # their windows should not begin together
        time.sleep(number * SECONDS / AT_ONCE)
    return asyncio.run(_run(*run, port))


async def _run(way: str, judge: str, style: str, port: int) -> Outcome:
    name = "-".join(_plain(word) for word in (way, judge, style))
    account = Account(
        address(port, judge, style, name),
        name,
        {"requests": true_limit(judge, AMOUNT, SECONDS, style)},
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


def main() -> None:
    """Run what is named; each prints its outcome when it ends."""
    words = argparse.ArgumentParser(prog="python -m judges.measuring", description="Single runs over sockets.")
    words.add_argument("judge", help="a part of the names of judges")
    words.add_argument("style", nargs="*", help=", ".join(STYLES))
    words.add_argument("--way", action="append", choices=list(WAYS), help="all, unless some are named")
    told = words.parse_args()
    measured(
        [
            (way, judge, style)
            for way, judge, style in every_run()
            if told.judge in judge and style in (told.style or STYLES) and way in (told.way or WAYS)
        ]
    )


if __name__ == "__main__":
    main()
