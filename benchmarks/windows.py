"""How a client without given limits fares at windows and buckets, for each way in which answers show when they refill.

    python benchmarks/windows.py                                    all, one seed
    python benchmarks/windows.py --kind sliding --told date --per 300 -n 3

Endless demand, in virtual time, for four periods. Each server is a kind of limit, a period, a way to
tell the reset, and a latency. Counted are 429s per 1,000 requests, and the share that was used of four periods' worth,
after the first period; `stall` is the longest time in which nothing was admitted, in periods.
"""

from __future__ import annotations

import argparse
import itertools
import math
import time
from collections import deque
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import formatdate
from random import Random
from unittest import mock

import anyio

from penstock import clock, testing
from penstock.llm import endpoints
from penstock.llm.discovered import DiscoveredEndpoint
from penstock.llm.failures import judge
from penstock.llm.headers import read
from penstock.simulator._headers import format_milliseconds

AMOUNT, PERIODS = 200, 4


@dataclass
class Server:
    """Decides each request, and tells what is left and when more is back.

    Attributes:
        kind: One of `KINDS`.
        per: Seconds.
        began: When a window begins.
    """

    kind: str
    per: float
    began: float
    amount: int = AMOUNT
    admitted: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)
    _seen: deque[float] = field(default_factory=deque)  # admitted in the window
    _level: float = 0.0
    _at: float = 0.0
    _end: float = -math.inf

    def __post_init__(self) -> None:
        self._level, self._at = self.burst, self.began

    @property
    def burst(self) -> float:
        """What a bucket holds."""
        return max(1.0, self.amount / 10) if self.kind == "small bucket" else float(self.amount)

    def decide(self, now: float) -> tuple[bool, int, float, float]:
        """Whether it is admitted, what remains, the seconds of the reset, and those until one more is admitted."""
        if "bucket" in self.kind:
            return self._by_bucket(now)
        while self._seen and self._seen[0] <= self._begin(now):
            self._seen.popleft()
        admitted = len(self._seen) < self.amount
        if admitted:
            self._seen.append(now)
        (self.admitted if admitted else self.refused).append(now)
        if self.kind.startswith("sliding"):
            told = self._seen[0] if self.kind == "sliding, next" else self._seen[-1]
            return admitted, self.amount - len(self._seen), told + self.per - now, self._seen[0] + self.per - now
        end = self._begin(now) + self.per - now
        return admitted, self.amount - len(self._seen), end, end

    def _begin(self, now: float) -> float:
        if self.kind.startswith("sliding"):
            return now - self.per
        if self.kind == "window, first":
            if now >= self._end:
                self._end = now + self.per
            return math.nextafter(self._end - self.per, 0)
        return now - (now - self.began) % self.per

    def _by_bucket(self, now: float) -> tuple[bool, int, float, float]:
        rate = self.amount / self.per
        self._level, self._at = min(self.burst, self._level + rate * (now - self._at)), now
        admitted = self._level >= 1 - 1e-9
        self._level -= admitted
        (self.admitted if admitted else self.refused).append(now)
        left = max(0.0, self._level)
        return admitted, math.floor(left + 1e-9), (self.burst - left) / rate, max(0.0, 1 - left) / rate


KINDS = ("window", "window, first", "sliding, next", "sliding, all", "bucket", "small bucket")
"""A window by the clock; one that begins with a request; one that slides, where the reset says when the next request or
all is back; a bucket; and one that holds a tenth."""

TOLD = ("seconds", "duration", "date", "HTTP date", "epoch", "nothing")
"""Forms of a reset."""

PERIODS_OF = (5.0, 60.0, 300.0, 86_400.0)
LATENCIES = (0.1, 2.0, 20.0)


def reset_told(form: str, reset: float, wall: float) -> dict[str, str]:
    """The header of a reset in seconds, in one form."""
    if form == "nothing":
        return {}
    moment = math.ceil(wall + reset)
    texts = {
        "seconds": str(math.ceil(reset)),
        "duration": format_milliseconds(math.ceil(reset * 1_000)),
        "date": datetime.fromtimestamp(moment, UTC).isoformat(),
        "HTTP date": formatdate(moment, usegmt=True),
        "epoch": str(moment),
    }
    return {"x-ratelimit-reset": texts[form]}


@dataclass(frozen=True)
class Result:
    """Of one run."""

    refused: float
    used: float
    stall: float
    learned: str


def run(kind: str, per: float, told: str, latency: float, seed: int, *, hint: bool = True, way: float = 0.01) -> Result:
    """Four periods of one server, after the first."""
    random = Random(seed)
    found: list[Result] = []

    async def main() -> None:
        began = clock.now()
        server = Server(kind, per, began - random.uniform(0.1, 0.9) * per)
        learned = per * math.ceil(4 * latency / per)  # by then
        first = learned + (server.began if kind == "window" else began)
        endpoint = DiscoveredEndpoint()

        async def work() -> None:
            while clock.now() < first + PERIODS * per:
                await ask(endpoint, server, told, latency, random, hint=hint, way=way)

        async with anyio.create_task_group() as tasks:
            for _ in range(AMOUNT + math.ceil(2 * AMOUNT / per * latency)):
                tasks.start_soon(work)
            await anyio.sleep(first + PERIODS * per - clock.now())
            tasks.cancel_scope.cancel()
        inside = [at for at in server.admitted if first <= at < first + PERIODS * per]
        gaps = [b - a for a, b in itertools.pairwise([first, *inside, first + PERIODS * per])]
        sent = len(server.admitted) + len(server.refused)
        found.append(
            Result(
                1_000 * len(server.refused) / sent,
                len(inside) / (PERIODS * AMOUNT),
                max(gaps) / per,
                str(dict(endpoint.statistics().learned)),
            )
        )

    with mock.patch.object(endpoints, "CHANCE", random):
        testing.run(main)
    return found[0]


async def ask(
    endpoint: DiscoveredEndpoint,
    server: Server,
    form: str,
    latency: float,
    random: Random,
    *,
    hint: bool,
    way: float,
) -> None:
    """One request, sent again until it is answered."""
    costs = {"requests": 1.0}
    for tries in itertools.count():
        limiter, charges = endpoint.ask(costs)
        permit = await limiter.acquire(priority=min(tries, 1), **charges)
        sent = endpoint.granted(permit, costs)
        endpoint.left(sent)
        await anyio.sleep(random.lognormvariate(math.log(way), 0.4))
        admitted, remaining, reset, wait = server.decide(clock.now())
        headers = {"x-ratelimit-limit": str(server.amount), "x-ratelimit-remaining": str(remaining)}
        headers |= reset_told(form, reset, clock.wall())
        if admitted:
            await anyio.sleep(random.lognormvariate(math.log(latency), 0.3))
            endpoint.answered(sent, 200, read(headers, 200, wall=clock.wall()))
            permit.close()
            return
        if hint:
            headers["retry-after"] = str(max(1, math.ceil(wait)))
        await anyio.sleep(0.01)
        endpoint.answered(sent, 429, read(headers, 429, wall=clock.wall()))
        endpoint.refused(sent, judge(429, b"", headers))
        permit.close()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--kind", action="append", choices=KINDS)
    parser.add_argument("--told", action="append", choices=TOLD)
    parser.add_argument("--per", action="append", type=float)
    parser.add_argument("--latency", action="append", type=float)
    parser.add_argument("--no-hint", action="store_true", help="no Retry-After")
    parser.add_argument("-n", type=int, default=1, help="seeds")
    given = parser.parse_args()
    print("| kind | per | told | latency | 429s per 1,000 | most | used | least | stall | learned | CPU s |")
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    cells = itertools.product(
        given.kind or KINDS, given.per or PERIODS_OF, given.told or TOLD, given.latency or LATENCIES
    )
    for kind, per, told, latency in cells:
        began = time.process_time()
        results = [run(kind, per, told, latency, seed, hint=not given.no_hint) for seed in range(given.n)]
        refused, used = [each.refused for each in results], [100 * each.used for each in results]
        print(
            f"| {kind} | {per:g} | {told} | {latency:g} | {sum(refused) / given.n:.1f} | {max(refused):.1f} "
            f"| {sum(used) / given.n:.1f} % | {min(used):.1f} % | {max(each.stall for each in results):.2f} "
            f"| {results[0].learned} | {(time.process_time() - began) / given.n:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
