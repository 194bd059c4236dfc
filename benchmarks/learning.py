"""How a client without given limits fares at servers of many kinds: 429s, and how much of the quota is used.

    python benchmarks/learning.py                   every server, 20 seeds (a quarter of an hour)
    python benchmarks/learning.py exact windows -n 3

Ten minutes of endless demand from 200 workers, in virtual time, against the simulator's accounts in process; 500
requests and 300,000 tokens a minute unless it says otherwise. Sizes and latencies are lognormal, and requests overtake
each other on their way. Counted are 429s per 1,000 requests, and the share that was used after the first minute of what
there was: the level at its end, and the refill from then on; and of clients that share an account, how unevenly.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

import anyio

from penstock import Rate, clock, testing
from penstock.llm.discovered import DiscoveredEndpoint
from penstock.llm.failures import judge
from penstock.llm.headers import read
from penstock.simulator import Change, Hidden, Simulation, Stranger, Window
from penstock.simulator._account import Account, Refusal

SECONDS = 600.0
FIRST = 60.0
RPM, TPM = 500, 300_000


@dataclass(frozen=True)
class Column:
    """One server, and what is sent to it.

    Attributes:
        simulation: The server.
        mean: Tokens of a request, on average, as the client estimates them.
        charges: Of the client's estimate and a random number: what the server charges.
        latency: Seconds to an answer, median.
        most: 429s per 1,000 that are allowed.
        least: Share that is to be used.
        clients: How many share the account, each with what it learned itself.
        apart: Seconds from the begin of one of them to the next one's.
        uneven: How many times the requests of the idlest the busiest may have, after the first minute in which all were
            there.
    """

    simulation: dict[str, Any] = field(default_factory=dict)
    mean: float = 1_500.0
    charges: Callable[[float, Random], float] = lambda cost, _: cost
    latency: float = 2.0
    most: float = 1.0
    least: float = 0.99
    clients: int = 1
    apart: float = 0.0
    uneven: float = 1.3
    tokens: bool = True


def _noisy(factor: float) -> Callable[[float, Random], float]:
    return lambda cost, random: cost * factor * random.uniform(0.9, 1.1)


def _with_output(cost: float, random: Random) -> float:
    return cost + random.choice((200.0, 1_000.0, 4_000.0))


COLUMNS: dict[str, Column] = {
    "exact": Column(),
    "+15 %": Column(charges=_noisy(1.15)),
    "-30 %": Column(charges=_noisy(0.7)),
    "x2": Column(charges=_noisy(2.0)),
    "latency 20 s": Column(latency=20.0),
    "halved": Column({"changes": (Change(300, 0.5),)}),
    "doubled": Column({"changes": (Change(300, 2.0),)}),
    "requests bind": Column(mean=400),
    "stranger": Column({"strangers": (Stranger(requests=60, tokens=0.3 * TPM, begin=120),)}, most=2),
    "quanta of 1 s": Column(
        {"requests": [Rate(RPM, 60), Hidden(Rate(RPM, 60, burst=RPM / 60))]}, mean=400, most=5, least=0.97
    ),
    "minute window": Column(
        {"tokens": Window(TPM, 60), "headers": "remaining", "hints": "retry-after"}, most=5, least=0.97
    ),
    "two windows": Column(
        {
            "requests": [Window(RPM, 60), Hidden(Window(84, 10))],
            "tokens": Window(TPM, 60),
            "headers": "remaining",
            "hints": "retry-after",
        },
        mean=400,
        most=5,
        least=0.97,
    ),
    "hidden requests": Column({"requests": [Hidden(Rate(RPM, 60)), "20000/day"]}, mean=400, most=5, least=0.97),
    "max_tokens charged": Column(charges=_with_output, most=5, least=0.97),
    "no headers": Column({"headers": "none", "hints": "retry-after"}, most=3, least=0.95),
    "no headers, no hint": Column({"headers": "none", "hints": "none"}, most=3, least=0.95),
    "no headers, a drop": Column(
        {
            "requests": "3000/min",
            "tokens": None,
            "headers": "none",
            "hints": "none",
            "changes": (Change(240, 0.5), Change(300, 2.0)),
        },
        latency=0.5,
        tokens=False,
        most=3,
        least=0.95,
    ),
    "four clients": Column(clients=4, most=5),
    "four, one by one": Column(clients=4, apart=60.0, most=5),
}


@dataclass(frozen=True)
class Result:
    """What happened in one run.

    Attributes:
        refused: 429s per 1,000 requests.
        used: Share of what there was after the first minute, of the limit that binds.
        uneven: Requests of the busiest client over those of the idlest, after the first minute in which all were there.
        admitted: The moments of all that was admitted.
    """

    refused: float
    used: float
    uneven: float
    admitted: list[float]


class _Client:
    """One who is told nothing, and sends through an endpoint that learns."""

    def __init__(self, column: Column, account: Account, random: Random) -> None:
        self.column, self.account, self.random = column, account, random
        self.endpoint = DiscoveredEndpoint()
        self.admitted: list[tuple[float, float]] = []
        self.refused = 0

    async def ask(self, cost: float, charge: float) -> None:
        """One request, sent again until it is answered."""
        costs = {"requests": 1.0} | ({"tokens": cost} if self.column.tokens else {})
        tries = 0
        while True:
            limiter, charges = self.endpoint.ask(costs)
            permit = await limiter.acquire(priority=min(tries, 1), **charges)
            sent = self.endpoint.granted(permit, costs)
            self.endpoint.left(sent)
            await anyio.sleep(self.random.lognormvariate(math.log(0.03), 0.3))
            told = self.account.admit("m", round(charge) if self.column.tokens else 0)
            if not isinstance(told, Refusal):
                self.admitted.append((clock.now(), charge))
                await anyio.sleep(self.random.lognormvariate(math.log(self.column.latency), 0.6))
                self.endpoint.answered(sent, 200, read(told, 200, wall=clock.wall()))
                permit.close()
                return
            self.refused += 1
            tries += 1
            await anyio.sleep(0.03)
            self.endpoint.answered(sent, 429, read(told.headers, 429, wall=clock.wall()))
            self.endpoint.refused(sent, judge(429, told.body, told.headers))
            permit.close()


def run(column: Column, seed: int, seconds: float = SECONDS) -> Result:
    """Ten minutes of one server, in virtual time."""
    random = Random(seed)
    # Strings are exact; a request that comes a little early is refused.
    account_of = {"requests": f"{RPM}/min", "tokens": f"{TPM}/min", "tolerance": 0.0} | column.simulation
    clients: list[_Client] = []
    at_first: list[float] = []

    async def main() -> None:
        account = Account(Simulation(**account_of))
        began = clock.now()
        clients.extend(_Client(column, account, random) for _ in range(column.clients))

        async def work(number: int) -> None:
            client = clients[number]
            await anyio.sleep(number * column.apart)
            while clock.now() < began + seconds:
                cost = min(max(50.0, random.lognormvariate(math.log(column.mean) - 0.32, 0.8)), 0.3 * TPM)
                await client.ask(float(round(cost)), column.charges(float(round(cost)), random))

        async with anyio.create_task_group() as tasks:
            for number in range(200):
                tasks.start_soon(work, number % len(clients))
            await anyio.sleep(min(FIRST, seconds))
            at_first.extend(one.level for one in account.statistics().limits)
            await anyio.sleep(max(0.0, seconds - FIRST))
            tasks.cancel_scope.cancel()
        for client in clients:
            client.admitted = [(at - began, charge) for at, charge in client.admitted]

    testing.run(main)
    admitted = sorted(each for client in clients for each in client.admitted)
    refused = sum(client.refused for client in clients)
    all_there = FIRST + (column.clients - 1) * column.apart
    shares = [sum(at >= all_there for at, _ in client.admitted) for client in clients]
    return Result(
        refused=1_000 * refused / max(1, len(admitted) + refused),
        used=max(_used(account_of, admitted, at_first, unit, seconds) for unit in ("requests", "tokens")),
        uneven=max(shares) / max(1, min(shares)),
        admitted=[at for at, _ in admitted],
    )


def _used(
    account: dict[str, Any], admitted: list[tuple[float, float]], at_first: list[float], unit: str, seconds: float
) -> float:
    """The share of one unit that was used after the first minute, of what the limit that binds had."""
    limits = Simulation(**account).limits
    levels = iter(at_first)
    there = {each: [_had(limit, next(levels), account, seconds) for limit in those] for each, those in limits.items()}
    if not there[unit]:
        return 0.0
    strangers = sum(
        (each.requests if unit == "requests" else each.tokens) * (min(each.end, seconds) - max(each.begin, FIRST)) / 60
        for each in account.get("strangers", ())
    )
    took = sum(1.0 if unit == "requests" else round(charge) for at, charge in admitted if at >= FIRST)
    return took / max(min(there[unit]) - strangers, 1e-9)


def _had(limit: Any, level: float, account: dict[str, Any], seconds: float) -> float:
    """What one limit had after the first minute: its level then, unless it is a window's, and its refill."""
    limit = limit.limit if isinstance(limit, Hidden) else limit
    there = 0.0 if isinstance(limit, Window) else level
    factor, since = 1.0, FIRST
    for change in (*account.get("changes", ()), Change(seconds, 1.0)):
        there += limit.amount * factor * (min(change.at, seconds) - since) / limit.per
        factor, since = factor * change.factor, change.at
    return there


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("columns", nargs="*", default=list(COLUMNS))
    parser.add_argument("-n", type=int, default=20, help="seeds")
    given = parser.parse_args()
    print("| server | 429s per 1,000 | most | used | least | uneven | most | allowed | CPU s |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name in given.columns:
        began = time.process_time()
        column = COLUMNS[name]
        results = [run(column, seed) for seed in range(given.n)]
        refused, used = [each.refused for each in results], [100 * each.used for each in results]
        uneven = [each.uneven for each in results]
        shared = f"{statistics.mean(uneven):.2f} | {max(uneven):.2f}" if column.clients > 1 else "– | –"
        allowed = f"{column.most:g}, {100 * column.least:g} %" + (f", {column.uneven:g}" if column.clients > 1 else "")
        print(
            f"| {name} | {statistics.mean(refused):.2f} | {max(refused):.2f} "
            f"| {statistics.mean(used):.2f} % | {min(used):.2f} % | {shared} | {allowed} "
            f"| {(time.process_time() - began) / given.n:.1f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
