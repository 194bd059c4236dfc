"""What a limiter per key costs: memory for a key that was used and is not in use, and time for a use of one of them.

Two limits a key, which take a day to fill again, so that no key is forgotten meanwhile. Beside it: a dict of
aiolimiters, two a key, and the most that a user saves by having one. Each size runs in a process of its own. Memory is
the growth of the process (resident pages) from when the keys, as strings in a list, were there to when each had been
used once; time is CPU, the median of rounds of 1,000 uses of random keys.

With a million keys their memory is far away from the processor, whatever keeps it. So how much longer a use takes then
is set against the same of the dict by hand. Beside both stands a plain dict, where a use reads a key's tuple of two
numbers and puts another in its place.

    python benchmarks/keyed.py [--sizes 1000 100000 1000000] [--rounds 41]
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path

from _report import table, verdict, where

DAY = 86_400
USES = 1_000  # in a round


def resident():
    """Bytes of this process in memory. (Linux.)"""
    import resource

    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def penstock():
    from penstock import Keyed, per_day

    limiters = Keyed(requests=per_day(1_000), tokens=per_day(1_000_000))

    async def use(keys):
        for key in keys:
            async with limiters[key](tokens=5_000):
                pass

    return use


def aiolimiters(number):
    def make():
        from aiolimiter import AsyncLimiter

        limiters = {}

        async def use(keys):
            for key in keys:
                mine = limiters.get(key)
                if mine is None:
                    mine = limiters[key] = (AsyncLimiter(1_000, DAY), AsyncLimiter(1_000_000, DAY))[:number]
                async with mine[0]:
                    if number == 2:
                        await mine[1].acquire(5_000)

        return use

    return make


def tuples():
    used = {}

    async def use(keys):
        for key in keys:
            requests, tokens = used.get(key, (0.0, 0.0))
            used[key] = (requests + 1.0, tokens + 5_000.0)

    return use


FLOOR, BY_HAND = "a dict of tuples (no limit)", "two aiolimiters in a dict"

CANDIDATES = {
    "penstock": penstock,
    FLOOR: tuples,
    BY_HAND: aiolimiters(2),
    "one aiolimiter in a dict": aiolimiters(1),
}

MEASURED = "penstock", BY_HAND, FLOOR  # at every size


async def play(make, size, rounds):
    use = make()
    await use(["warm"])
    keys = [f"user-{number:09}" for number in range(size)]
    gc.collect()
    before = resident()
    started = time.process_time()
    await use(keys)
    first = time.process_time() - started
    gc.collect()
    grown = resident() - before
    draw = random.Random(1)
    times = []
    for _ in range(rounds):
        some = draw.choices(keys, k=USES)
        started = time.process_time_ns()
        await use(some)
        times.append((time.process_time_ns() - started) / USES)
    return {"bytes": grown / size, "first": first / size * 1e9, "again": statistics.median(times)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000, 100_000, 1_000_000])
    parser.add_argument("--rounds", type=int, default=41)
    parser.add_argument("--only", choices=list(CANDIDATES), help="run this one here, and print its numbers as JSON")
    args = parser.parse_args()
    if args.only:
        print(json.dumps(asyncio.run(play(CANDIDATES[args.only], args.sizes[0], args.rounds))))
        return
    where("aiolimiter")
    rows = []
    seen = {}
    for name in CANDIDATES:
        mostly = args.sizes if name in MEASURED else [size for size in args.sizes if size <= 100_000]
        for size in mostly:
            command = [sys.executable, __file__, "--only", name, "--sizes", str(size), "--rounds", str(args.rounds)]
            numbers = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            seen[name, size] = numbers
            shown = f"{numbers['bytes']:.0f}" if size > 10_000 else "–"  # pages are too coarse for a few keys
            rows.append((name, f"{size:,}", shown, f"{numbers['first']:,.0f}", f"{numbers['again']:,.0f}"))
    table(("two limits", "keys", "bytes a key", "ns, first use", "ns, later use"), rows)
    most, least = max(args.sizes), min(args.sizes)
    mine, by_hand, floor = ({size: seen[name, size]["again"] for size in args.sizes} for name in MEASURED)
    verdict(f"bytes a key, {most:,} keys", seen["penstock", most]["bytes"], 300)
    verdict(
        f"ns a use with {most:,} keys against {least:,}",
        mine[most] / mine[least],
        round(by_hand[most] / by_hand[least], 2),
    )
    print(
        f"ns that a use takes more with {most:,} keys than with {least:,}: {mine[most] - mine[least]:,.0f}; by hand "
        f"{by_hand[most] - by_hand[least]:,.0f}; the plain dict of tuples {floor[most] - floor[least]:,.0f}"
    )


if __name__ == "__main__":
    main()
