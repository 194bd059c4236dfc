"""An outage of 30 seconds, and what 1,000 clients do to the server during it and after it.

Each client makes a call every ten seconds on average, whatever becomes of the last one: 100 calls/s. A call takes three
seconds, so that 300 are under way when the server goes down at 30 s; they all break at that instant. While the server
is down it refuses at once. When it is up it can begin twice the usual load in any tenth of a second and refuses what is
above.

All in virtual time, on one event loop, with a fixed seed; tenacity and stamina take part as they are, with the settings
that their documentation shows.

    python benchmarks/outage.py [--picture docs/images/outage.png]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import statistics
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import stamina
import tenacity

from penstock import Budget, Retry, clock, exponential
from penstock.testing import virtual_time

CLIENTS = 1000
EVERY = 10.0  # seconds between the calls of one client, on average
TAKES = 3.0  # seconds that a call takes
USUAL = CLIENTS / EVERY  # calls per second
DOWN, UP, END = 30.0, 60.0, 120.0
MOST_PER_TENTH = 2 * USUAL / 10


class Unavailable(Exception):  # noqa: N818
    pass


@dataclass
class Server:
    attempts: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)
    begun: Counter = field(default_factory=Counter)
    crash: asyncio.Event = field(default_factory=asyncio.Event)

    async def handle(self):
        now = clock.now()
        self.attempts.append(now)
        tenth = int(now * 10)
        if DOWN <= now < UP or self.begun[tenth] >= MOST_PER_TENTH:
            self.refused.append(now)
            raise Unavailable
        self.begun[tenth] += 1
        if now < DOWN:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TAKES):
                    await self.crash.wait()
                    raise Unavailable
        else:
            await asyncio.sleep(TAKES)


@dataclass
class Outcome:
    name: str
    attempts: list[float]
    calls: list[tuple[float, float, bool]]  # when it was made, how long it took, whether it succeeded
    refused: list[float]

    def load(self, since, until, width=1.0):
        """Attempts per second, in steps of `width` seconds."""
        steps = Counter(int(at / width) for at in self.attempts)
        return [steps[step] / width for step in range(int(since / width), int(until / width))]

    def row(self):
        during = [call for call in self.calls if DOWN - TAKES <= call[0] < UP]
        after = [at for at in self.refused if at >= UP]
        answered = [took - TAKES for _, took, good in during if good]
        return (
            self.name,
            f"{statistics.mean(self.load(DOWN, UP)) / USUAL:.2f}",
            f"{max(self.load(DOWN, UP, 0.1)) / USUAL:.1f}",
            f"{max(self.load(UP, END)) / USUAL:.2f}",
            f"{max(self.load(UP, END, 0.1)) / USUAL:.1f}",
            f"{len(after)}",
            f"{sum(not good for _, _, good in during) / len(during):.0%}",
            f"{statistics.median(answered):.1f}" if answered else "–",
        )


COLUMNS = (
    "client",
    "load while down, × usual",
    "peak tenth while down, × usual",
    "peak second after, × usual",
    "peak tenth after, × usual",
    "refused after",
    "calls of the outage that failed",
    "median delay of those that did not, s",
)


async def scene(decorate):
    server, calls = Server(), []
    call = decorate(server.handle)

    async def one_call():
        made = clock.now()
        try:
            await call()
        except Unavailable:
            calls.append((made, clock.now() - made, False))
        else:
            calls.append((made, clock.now() - made, True))

    async def client(tasks):
        while True:
            await asyncio.sleep(random.expovariate(1 / EVERY))
            if clock.now() >= END - 30:  # the last calls have time to end
                return
            tasks.create_task(one_call())

    async def crash():
        await asyncio.sleep(DOWN)
        server.crash.set()

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(crash())
        for _ in range(CLIENTS):
            tasks.create_task(client(tasks))
    return server, calls


def play(name, decorate):
    random.seed(2026)
    # tenacity, and stamina above it, read the time through this name: it must be the same time as everybody's.
    tenacity.time = SimpleNamespace(monotonic=lambda: clock.now(), sleep=time.sleep)  # noqa: PLW0108
    with virtual_time():
        server, calls = asyncio.run(scene(decorate))
    tenacity.time = time
    return Outcome(name, server.attempts, calls, server.refused)


def penstock(jitter, budget=None):
    return Retry(on=Unavailable, attempts=6, within=300, backoff=exponential(jitter=jitter), budget=budget)


def cast():
    only = tenacity.retry_if_exception_type(Unavailable)
    return {
        "no retry": lambda fn: fn,
        "tenacity, fixed 2 s × 7": tenacity.retry(
            retry=only, wait=tenacity.wait_fixed(2), stop=tenacity.stop_after_attempt(7), reraise=True
        ),
        "tenacity, exponential × 6": tenacity.retry(
            retry=only, wait=tenacity.wait_exponential(min=1, max=60), stop=tenacity.stop_after_attempt(6), reraise=True
        ),
        "tenacity, random exponential × 6": tenacity.retry(
            retry=only,
            wait=tenacity.wait_random_exponential(min=1, max=60),
            stop=tenacity.stop_after_attempt(6),
            reraise=True,
        ),
        "stamina, its defaults": stamina.retry(on=Unavailable),
        "penstock, no jitter": penstock("none"),
        "penstock, its defaults": penstock("full"),
        "penstock, no jitter, Budget()": penstock("none", Budget()),
        "penstock, Budget()": penstock("full", Budget()),
        "penstock, Budget.tokens()": penstock("full", Budget.tokens()),
    }


def draw(outcomes, path):
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    rows = (len(outcomes) + 1) // 2
    figure, axes = plt.subplots(rows, 2, figsize=(10, 1.6 * rows), sharex=True, sharey=True, layout="constrained")
    for axis in axes.flat[len(outcomes) :]:
        axis.set_visible(False)
    for axis, outcome in zip(axes.flat, outcomes, strict=False):
        width = 0.1
        load = [value / USUAL for value in outcome.load(15, 90, width)]
        axis.axvspan(DOWN, UP, color="#d9d9d9", linewidth=0)
        axis.plot([15 + width * step for step in range(len(load))], load, color="#1f4e79", linewidth=0.8)
        axis.set_title(outcome.name, fontsize=9, loc="left")
        axis.set_yscale("symlog", linthresh=1)
        axis.set_ylim(0, 60)
        axis.set_yticks([0, 1, 3, 10, 30], ["0", "1", "3", "10", "30"])
        axis.set_xlim(15, 90)
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8)
    figure.supylabel("attempts per tenth of a second, × usual", fontsize=9)
    figure.supxlabel("seconds; the server is down in the grey span", fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Software": None})
    print(f"\n{path} drawn")


def main():
    stamina.instrumentation.set_on_retry_hooks([])  # by default it logs every retry
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--picture", type=Path, help="where to draw the load over time; needs matplotlib")
    args = parser.parse_args()
    print("| " + " | ".join(COLUMNS) + " |")
    print("|" + "---|" * len(COLUMNS))
    outcomes = []
    for name, decorate in cast().items():
        outcomes.append(play(name, decorate))
        print("| " + " | ".join(outcomes[-1].row()) + " |", flush=True)
    if args.picture:
        draw(outcomes, args.picture)


if __name__ == "__main__":
    main()
