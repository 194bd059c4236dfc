"""How long calls wait under three orders: strict arrival, greedy (every call that fits goes), and penstock's.

Fifteen minutes of arrivals at random moments, with a fixed seed, at 500 requests and 100,000 tokens a minute, with a
burst of 10 requests and 10,000 tokens. Penstock is the real `Limiter`, one task a call, in virtual time; the other two
are simulated on the same arrivals. By default a call rises one level for every 30 s in the line (`ageing`), which in a
line longer than that weighs more than flows do, so penstock is also shown without. A call that is still in line at
the end is counted as left, with no wait.

    whales and minnows   2 % of the calls take 9,000 tokens, the others 900; together 106 % of the tokens
    another bottleneck   5 % of the calls take 9,000 tokens, the others none
    flows                90 % of the calls are one user's, 10 % another's, of 900 tokens each; together 120 %
    priorities           10 % of the calls are interactive (priority 1 for penstock), 900 tokens each; together 105 %

    python benchmarks/fairness.py [--picture docs/images/fairness.png]
"""

from __future__ import annotations

import argparse
import asyncio
import math
import random
from collections import deque
from dataclasses import dataclass
from pathlib import Path

from _report import table, where

from penstock import Limiter, Rate, clock
from penstock.testing import virtual_time

SPAN = 900.0  # seconds
RATES = {"requests": 500 / 60, "tokens": 100_000 / 60}
BURSTS = {"requests": 10.0, "tokens": 10_000.0}


@dataclass(frozen=True, slots=True)
class Kind:
    name: str
    share: float
    tokens: int
    priority: int = 0
    flow: str | None = None


SCENES = {
    "whales and minnows": (1.66, [Kind("minnows (900)", 0.98, 900), Kind("whales (9,000)", 0.02, 9_000)]),
    "another bottleneck": (4.0, [Kind("minnows (0)", 0.95, 0), Kind("whales (9,000)", 0.05, 9_000)]),
    "flows": (2.22, [Kind("heavy user", 0.9, 900, flow="heavy"), Kind("light user", 0.1, 900, flow="light")]),
    "priorities": (1.94, [Kind("batch", 0.9, 900), Kind("interactive", 0.1, 900, priority=1)]),
}


def arrivals(calls_per_second, kinds):
    draw = random.Random(1)
    moment, coming = 0.0, []
    while (moment := moment + draw.expovariate(calls_per_second)) < SPAN:
        coming.append((moment, draw.choices(kinds, [kind.share for kind in kinds])[0]))
    return coming


def simulated(coming, *, greedy):
    """Waits by kind, in strict order or greedily; one queue for each kind, as equal calls go in order in both."""
    kinds = list(dict.fromkeys(kind for _, kind in coming))
    level, then = dict(BURSTS), 0.0
    queues = {kind: deque() for kind in kinds}
    waits = {kind.name: [] for kind in kinds}
    left = deque(coming)

    def seconds(kind):
        cost = {"requests": 1, "tokens": kind.tokens}
        return max(0.0, *((cost[unit] - level[unit]) / RATES[unit] for unit in cost))

    while True:
        standing = sorted((queue[0], kind.name, kind) for kind, queue in queues.items() if queue)
        candidates = [kind for _, _, kind in (standing if greedy else standing[:1])]
        first = next((kind for kind in candidates if seconds(kind) <= 1e-9), None)
        if first is not None:
            waits[first.name].append(then - queues[first].popleft())
            level["requests"] -= 1
            level["tokens"] -= first.tokens
            continue
        moments = [then + seconds(kind) for kind in candidates]
        if left:
            moments.append(left[0][0])
        now = min(moments, default=math.inf)
        if now > SPAN:
            return {
                name: (found, sum(len(queues[kind]) for kind in kinds if kind.name == name))
                for name, found in waits.items()
            }
        for unit, rate in RATES.items():
            level[unit] = min(BURSTS[unit], level[unit] + rate * (now - then))
        then = now
        while left and left[0][0] <= now:
            moment, kind = left.popleft()
            queues[kind].append(moment)


async def with_limiter(coming, ageing):
    limiter = Limiter(ageing=ageing, **{unit: Rate(rate, 1, BURSTS[unit]) for unit, rate in RATES.items()})
    waits = {kind.name: [] for _, kind in coming}
    begun = clock.now()

    async def call(kind):
        arrived = clock.now()
        permit = await limiter.acquire(tokens=kind.tokens, priority=kind.priority, flow=kind.flow)
        waits[kind.name].append(permit.granted_at - arrived)

    tasks = []
    for moment, kind in coming:
        await asyncio.sleep(max(0.0, begun + moment - clock.now()))
        tasks.append((kind, asyncio.create_task(call(kind))))
    await asyncio.sleep(max(0.0, begun + SPAN - clock.now()))
    left = {name: sum(kind.name == name and not task.done() for kind, task in tasks) for name in waits}
    for _, task in tasks:
        task.cancel()
    await asyncio.gather(*(task for _, task in tasks), return_exceptions=True)
    return {name: (found, left[name]) for name, found in waits.items()}


def play(coming):
    orders = {"fifo": simulated(coming, greedy=False), "greedy": simulated(coming, greedy=True)}
    for name, ageing in (("penstock", 30.0), ("penstock, no ageing", math.inf)):
        with virtual_time():
            orders[name] = asyncio.run(with_limiter(coming, ageing))
    return orders


def at(share, waits):
    return f"{sorted(waits)[min(len(waits) - 1, int(len(waits) * share))]:.1f}" if waits else "–"


def draw(outcomes, path):
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    colours = {"fifo": "#9a9a9a", "greedy": "#c8702a", "penstock": "#1f4e79", "penstock, no ageing": "#6fa8dc"}
    figure, axes = plt.subplots(len(outcomes), 2, figsize=(10, 2.1 * len(outcomes)), sharey=True, layout="constrained")
    for row, (scene, orders) in zip(axes, outcomes.items(), strict=True):
        names = [kind.name for kind in SCENES[scene][1]]
        for axis, name in zip(row, names, strict=True):
            for order, found in orders.items():
                waits, left = found[name]
                total = len(waits) + left
                shares = [number / total for number in range(len(waits) + 1)]
                axis.plot(
                    [0.0, *sorted(waits)],
                    shares,
                    drawstyle="steps-post",
                    color=colours[order],
                    label=order,
                    linewidth=1.4,
                )
            axis.set_title(f"{scene}: {name}", fontsize=9, loc="left")
            axis.set_xscale("symlog", linthresh=1)
            axis.set_xlim(0, SPAN)
            axis.set_xticks([0, 1, 10, 100, 900], ["0", "1", "10", "100", "900"])
            axis.set_ylim(0, 1.02)
            axis.spines[["top", "right"]].set_visible(False)
            axis.tick_params(labelsize=8)
    axes[0][0].legend(fontsize=8, frameon=False, loc="lower right")
    figure.supylabel("share of the calls that had gone", fontsize=9)
    figure.supxlabel("seconds waited; a curve that ends below 1 left calls in line", fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Software": None})
    print(f"{path} drawn")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--picture", type=Path, help="where to draw the waits; needs matplotlib")
    args = parser.parse_args()
    where()
    outcomes = {}
    for scene, (calls_per_second, kinds) in SCENES.items():
        outcomes[scene] = orders = play(arrivals(calls_per_second, kinds))
        rows = []
        for kind in kinds:
            for order, found in orders.items():
                waits, left = found[kind.name]
                most = f"{max(waits):.1f}" if waits else "–"
                rows.append((f"{kind.name}, {order}", len(waits), at(0.5, waits), at(0.99, waits), most, left))
        table((scene, "gone", "p50 s", "p99 s", "max s", "left"), rows)
    if args.picture:
        draw(outcomes, args.picture)


if __name__ == "__main__":
    main()
