"""What many waiters cost on one limiter: all arrive at once, and the limits let them through in some seconds.

Penstock has two limits (1 request and 5 tokens a call, both binding), decided together. Beside it: one aiolimiter, two
of them one after another, asynciolimiter's leaky bucket, which knows no weights, and the floor: tasks that wait for one
Event. Each runs in a process of its own, with the garbage collector as it is by default; they take turns, and the table
shows the round with the least CPU.

    CPU          of the process, from the first task's start to the last one's end
    wall/ideal   time from the first grant to the last, by (waiters − burst) / rate
    inversions   grants that came after one of a later arrival
    excess       the most grants above burst + rate · T in any span T, in grants, exactly from the moments of the
                 grants: the permit's for penstock, for the others the moment at which the caller got through

The clock of a limiter forgives 10 ns, so that much of the rate counts as no excess.

    python benchmarks/waiters.py [--waiters 100000] [--rates 10000 25000 50000] [--burst 1] [--rounds 1]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import subprocess
import sys
import time

from _report import table, verdict, where


def penstock(rate, burst):
    from penstock import Limiter, Rate

    limiter = Limiter(requests=Rate(rate, 1, burst), tokens=Rate(5 * rate, 1, 5 * burst))

    async def wait(grants, number):
        async with limiter(tokens=5) as permit:
            grants.append((permit.granted_at, number))

    return wait


def aiolimiter_once(rate, burst):
    from aiolimiter import AsyncLimiter

    limiter = AsyncLimiter(burst, burst / rate)

    async def wait(grants, number):
        async with limiter:
            grants.append((time.monotonic(), number))

    return wait


def aiolimiter_twice(rate, burst):
    from aiolimiter import AsyncLimiter

    requests, tokens = AsyncLimiter(burst, burst / rate), AsyncLimiter(5 * burst, burst / rate)

    async def wait(grants, number):
        async with requests:
            await tokens.acquire(5)
            grants.append((time.monotonic(), number))

    return wait


def asynciolimiter_leaky(rate, burst):
    from asynciolimiter import LeakyBucketLimiter

    limiter = LeakyBucketLimiter(rate, capacity=burst)

    async def wait(grants, number):
        await limiter.wait()
        grants.append((time.monotonic(), number))

    return wait


def event(_rate, _burst):
    flag = asyncio.Event()
    asyncio.get_running_loop().call_later(0.5, flag.set)

    async def wait(grants, number):
        await flag.wait()
        grants.append((time.monotonic(), number))

    return wait


CPU_TO_REACH = {10_000.0: 0.4, 25_000.0: 0.55, 50_000.0: 0.9}
"""Grants a second, and the CPU as a part of aiolimiter's."""

CANDIDATES = {
    "one Event (no limit)": event,
    "penstock, two limits": penstock,
    "aiolimiter, one limit": aiolimiter_once,
    "two aiolimiters": aiolimiter_twice,
    "asynciolimiter (leaky), one limit": asynciolimiter_leaky,
}


def excess(moments, rate, burst):
    """The most that any span holds above burst + rate · T: the largest rise of (grants so far − rate · time), less the
    burst."""
    lowest, most = math.inf, 0.0
    for count, moment in enumerate(moments):
        flowed = rate * (moment - moments[0])
        lowest = min(lowest, count - flowed)
        most = max(most, count + 1 - flowed - lowest)
    return max(0.0, most - burst)


async def play(make, waiters, rate, burst):
    wait = make(rate, burst)
    grants = []
    cpu = time.process_time()
    tasks = [asyncio.create_task(wait(grants, number)) for number in range(waiters)]
    await asyncio.gather(*tasks)
    cpu = time.process_time() - cpu
    moments = sorted(moment for moment, _ in grants)
    latest = -1
    inversions = 0
    for _, number in sorted(grants, key=lambda grant: grant[0]):
        inversions += number < latest
        latest = max(latest, number)
    over = excess(moments, rate, burst)
    return {"cpu": cpu, "wall": moments[-1] - moments[0], "inversions": inversions / waiters, "excess": over}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--waiters", type=int, default=100_000)
    parser.add_argument("--rates", type=float, nargs="+", default=list(CPU_TO_REACH), help="grants a second")
    parser.add_argument("--burst", type=float, default=1.0, help="of the limits, in seconds of their rate")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--only", choices=list(CANDIDATES), help="run this one here, and print its numbers as JSON")
    args = parser.parse_args()
    if args.only:
        (rate,) = args.rates
        print(
            json.dumps(asyncio.run(play(CANDIDATES[args.only], args.waiters, rate, max(1, round(rate * args.burst)))))
        )
        return
    where("aiolimiter", "asynciolimiter")
    for rate in args.rates:
        compare(args.waiters, rate, args.burst, args.rounds)


def compare(waiters, rate, burst, rounds):
    best = {}
    seconds = (waiters - max(1, round(rate * burst))) / rate
    options = ["--waiters", str(waiters), "--rates", str(rate), "--burst", str(burst)]
    for _ in range(rounds):
        for name in CANDIDATES:
            command = [sys.executable, __file__, *options, "--only", name]
            numbers = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            if name not in best or numbers["cpu"] < best[name]["cpu"]:
                best[name] = numbers
    base = best["aiolimiter, one limit"]["cpu"]
    rows = [
        (
            name,
            f"{numbers['cpu']:.3f}",
            f"{numbers['cpu'] / base:.2f}",
            "–" if limitless else f"{numbers['wall'] / seconds:.3f}",
            f"{numbers['inversions']:.1%}",
            "–" if limitless else f"{numbers['excess']:.1f}",
        )
        for name, numbers in best.items()
        for limitless in [CANDIDATES[name] is event]
    ]
    heading = f"{waiters:,} waiters, {rate:,.0f} grants/s, ideal {seconds:g} s"
    table((heading, "CPU s", "× aiolimiter", "wall/ideal", "inversions", "excess"), rows)
    mine = best["penstock, two limits"]
    if waiters >= 100_000 and rate in CPU_TO_REACH:  # with fewer waiters the tasks themselves are most of the cost
        verdict("CPU against aiolimiter", mine["cpu"] / base, CPU_TO_REACH[rate])
    verdict("wall against the ideal", mine["wall"] / seconds, 1.02)
    verdict("inversions", mine["inversions"], 0)
    verdict("excess over burst + rate · T, in grants", mine["excess"], 1e-8 * rate)


if __name__ == "__main__":
    main()
