"""The judges in virtual time: a thousand requests through one of them take a second, and are the same each time.

    python -m judges.virtual "moving window" headers --seeds 5      prints what each seed measured (in tests/field)

The judges read penstock's clock here, and there are no sockets: the HTTP client of `limit_client` sends to a transport
that asks the judge. What a request takes to get there is drawn at random.
"""

from __future__ import annotations

import argparse
import math
import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from unittest import mock

import anyio
import httpx2
import limits
import pyrate_limiter
import throttled
from judges import judging
from judges.goals import Outcome
from judges.judging import JUDGES, Ledger, headers_of, true_limit
from judges.names import AMOUNT, ANSWER, LATENCY, REFUSAL, SECONDS, STYLES

from penstock import Limiter, clock, testing
from penstock.llm import endpoints, limit_client, limits_of

WAY = 0.003
"""Seconds of the way there, as a median. What is admitted is answered after the latency, a refusal at once."""


@dataclass(frozen=True)
class Load:
    """What is sent, and what the judge allows: requests from so many tasks, an amount in so many seconds."""

    requests: int = 1_000
    tasks: int = 200
    amount: int = AMOUNT
    seconds: int = SECONDS
    latency: float = LATENCY


@dataclass(frozen=True)
class Simulated(Outcome):
    """What one run measured, and more.

    Attributes:
        seconds: How long it took.
        ledger: When the judge admitted and refused, in seconds since 1970.
        learned: What was known of the limits in the end, by unit.
    """

    seconds: float
    ledger: Ledger
    learned: dict[str, str]


def simulate(judge: str, style: str, seed: int, *, given: bool = False, load: Load = Load()) -> Simulated:
    """Send a load through one judge.

    Args:
        judge: A name of `JUDGES`.
        style: A name of `STYLES`.
        seed: Of all that is random, of penstock's own jitter too.
        given: Whether `limit_client` is told the true limit, or learns.
        load: What is sent.
    """
    random.seed(seed)

    async def main() -> Simulated:
        await anyio.sleep(random.uniform(0, load.seconds))  # windows begin whenever they do
        ledger = Ledger(JUDGES[judge](load.amount, load.seconds))
        http = httpx2.AsyncClient(transport=_Judged(ledger, style, load.latency), base_url="http://judge")
        limiter = Limiter(requests=true_limit(judge, load.amount, load.seconds, style)) if given else "auto"
        client = limit_client(http, limiter)
        numbers, lost, began = iter(range(load.requests)), 0, clock.wall()

        async def work() -> None:
            nonlocal lost
            for _ in numbers:
                response = await client.post("/v1/chat/completions", json={"model": "m", "input": "Yes or no?"})
                lost += response.status_code != 200

        async with anyio.create_task_group() as group:
            for _ in range(load.tasks):
                group.start_soon(work)
        took = clock.wall() - began
        used = judging.share(judge, ledger.admitted, began, load.amount, load.seconds)
        learned = {
            unit: words for each in limits_of(client).values() for unit, words in each.statistics().learned.items()
        }
        return Simulated(1_000 * len(ledger.refused) / load.requests, lost, used, took, ledger, learned)

    with judged_by_penstocks_clock(), mock.patch.object(endpoints, "CHANCE", random):
        return testing.run(main)


class _Judged(httpx2.AsyncBaseTransport):
    """Has each request decided by a judge, some milliseconds after it was sent."""

    def __init__(self, ledger: Ledger, style: str, latency: float) -> None:
        self._ledger, self._style, self._latency = ledger, style, latency

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        await anyio.sleep(random.lognormvariate(math.log(WAY), 0.5))
        verdict = self._ledger.decide()
        headers = headers_of(verdict, self._style)
        await anyio.sleep(self._latency if verdict.admitted else WAY)
        return httpx2.Response(
            200 if verdict.admitted else 429, headers=headers, json=ANSWER if verdict.admitted else REFUSAL
        )


class _Time:
    """Stands in for the module `time` where a judge reads it."""

    @staticmethod
    def time() -> float:
        return clock.wall()

    @staticmethod
    def monotonic() -> float:
        return clock.now()

    @staticmethod
    def monotonic_ns() -> int:
        return int(clock.now() * 1e9)

    perf_counter_ns = monotonic_ns

    @staticmethod
    def time_ns() -> int:
        return int(clock.wall() * 1e9)


@contextmanager
def judged_by_penstocks_clock() -> Iterator[None]:
    """Have the judges read penstock's clock, which may be virtual."""
    clocks = pyrate_limiter.clocks
    with ExitStack() as stack:
        for module in (limits.storage.memory, limits.strategies, throttled.utils, judging):
            stack.enter_context(mock.patch.object(module, "time", _Time))
        stack.enter_context(mock.patch.multiple(clocks, monotonic_ns=_Time.monotonic_ns, time_ns=_Time.time_ns))
        yield


def main() -> None:
    """Print what each judge whose name has a word in it makes of each seed."""
    words = argparse.ArgumentParser(prog="python -m judges.virtual", description="The judges in virtual time.")
    words.add_argument("judge", help="a part of the names of judges", nargs="?", default="")
    words.add_argument("style", nargs="*", help=", ".join(STYLES))
    words.add_argument("--given", action="store_true", help="limit_client is told the true limit")
    words.add_argument("--seeds", type=int, default=3)
    load = Load()
    for name in vars(load):
        words.add_argument(f"--{name}", type=type(getattr(load, name)), default=getattr(load, name))
    told = words.parse_args()
    load = Load(**{name: getattr(told, name) for name in vars(load)})
    for judge in JUDGES:
        for style in told.style or STYLES if told.judge in judge else ():
            runs = [simulate(judge, style, seed, given=told.given, load=load) for seed in range(told.seeds)]
            cells = [f"{run.refused:.0f} {100 * run.used:.1f} % {run.seconds:.0f} s" for run in runs]
            lost = sum(run.lost for run in runs)
            print(f"{judge:32s} {style:12s} {lost} lost | {' | '.join(cells)}", flush=True)


if __name__ == "__main__":
    main()
