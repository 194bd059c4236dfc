"""How a client without given limits fares at a server that works on at most so many requests at once.

    python benchmarks/places.py                     all, three seeds
    python benchmarks/places.py --places 10 --latency 20 -n 1

Endless demand from 200 tasks, in virtual time, for ten minutes. A server has so many places, a latency, words by which
a refusal says that it is for them ("said") or none, and a `Retry-After` or none: of a minute where there are words, as
LiteLLM's proxy has it, and of a second where there are none. Counted are 429s per 1,000 requests,
and the share of the places that was taken, after the first minute or the first five answers of a place.
"""

from __future__ import annotations

import argparse
import itertools
import math
from dataclasses import dataclass
from random import Random
from unittest import mock

import anyio

from penstock import clock, testing
from penstock.llm import endpoints
from penstock.llm.discovered import DiscoveredEndpoint
from penstock.llm.failures import judge
from penstock.llm.headers import read

SECONDS = 600.0
WORDS = b'{"error": {"message": "Too many concurrent requests for this model"}}'


@dataclass
class Server:
    """Works on `places` requests at once; others of the account may take some.

    Attributes:
        taken: Requests that it works on.
        used: Seconds that places were taken, since `begin`.
    """

    places: int
    begin: float
    taken: int = 0
    admitted: int = 0
    refused: int = 0
    used: float = 0.0
    at: float = 0.0

    def step(self, change: int) -> None:
        """One more, or one less."""
        now = clock.now()
        self.used += self.taken * max(0.0, now - max(self.at, self.begin))
        self.taken, self.at = self.taken + change, now


@dataclass(frozen=True)
class Result:
    """Of one run: 429s per 1,000 requests after the first minute, and the share of the places that was taken."""

    refused: float
    used: float
    learned: str


def run(places: int, latency: float, *, said: bool, hint: int | None, seed: int, later: int | None = None) -> Result:
    """Ten minutes of one server; in its second half it has `later` places, unless None."""
    random = Random(seed)
    found: list[Result] = []

    async def main() -> None:
        began = clock.now()
        first = began + max(60.0, 5 * latency)
        server, endpoint = Server(places, first), DiscoveredEndpoint()

        async def work() -> None:
            while True:
                await _ask(endpoint, server, latency, random, said=said, hint=hint)

        async with anyio.create_task_group() as tasks:
            for _ in range(200):
                tasks.start_soon(work)
            await anyio.sleep(first - began)
            before = server.admitted, server.refused
            await anyio.sleep(began + SECONDS / 2 - clock.now())
            server.step(0)
            half = server.used
            server.places = later or places
            await anyio.sleep(began + SECONDS - clock.now())
            server.step(0)
            tasks.cancel_scope.cancel()
        admitted, refused = server.admitted - before[0], server.refused - before[1]
        if later is None:
            used = server.used / (places * (SECONDS - (first - began)))
        else:
            used = (server.used - half) / (later * SECONDS / 2)
        found.append(Result(1_000 * refused / (admitted + refused), used, str(dict(endpoint.statistics().learned))))

    with mock.patch.object(endpoints, "CHANCE", random):
        testing.run(main)
    return found[0]


async def _ask(
    endpoint: DiscoveredEndpoint, server: Server, latency: float, random: Random, *, said: bool, hint: int | None
) -> None:
    """One request, sent again until it is answered."""
    costs = {"requests": 1.0}
    for tries in itertools.count():
        limiter, charges = endpoint.ask(costs)
        permit = await limiter.acquire(priority=min(tries, 1), **charges)
        sent = endpoint.granted(permit, costs)
        endpoint.left(sent)
        await anyio.sleep(random.lognormvariate(math.log(0.02), 0.4))
        if server.taken < server.places:
            server.step(+1)
            server.admitted += 1
            await anyio.sleep(random.lognormvariate(math.log(latency), 0.3))
            server.step(-1)
            endpoint.answered(sent, 200, read({}, 200, wall=clock.wall()))
            permit.close()
            return
        server.refused += 1
        headers = {} if hint is None else {"retry-after": str(hint)}
        await anyio.sleep(0.01)
        endpoint.answered(sent, 429, read(headers, 429, wall=clock.wall()))
        endpoint.refused(sent, judge(429, WORDS if said else b"", headers))
        permit.close()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--places", action="append", type=int)
    parser.add_argument("--latency", action="append", type=float)
    parser.add_argument("-n", type=int, default=3, help="seeds")
    given = parser.parse_args()
    print("| places | latency | said | Retry-After | 429s per 1,000 | most | used | least | learned |")
    print("|---|---|---|---|---|---|---|---|---|")
    cells = itertools.product(
        given.places or (3, 10, 50),
        given.latency or (0.5, 2.0, 20.0),
        ((True, 60), (True, None), (False, 1), (False, None)),
    )
    for places, latency, (said, hint) in cells:
        results = [run(places, latency, said=said, hint=hint, seed=seed) for seed in range(given.n)]
        refused, used = [each.refused for each in results], [100 * each.used for each in results]
        print(
            f"| {places} | {latency:g} s | {'yes' if said else 'no'} | {hint or 'no'} "
            f"| {sum(refused) / given.n:.1f} | {max(refused):.1f} | {sum(used) / given.n:.1f} % | {min(used):.1f} % "
            f"| {results[0].learned} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
