"""What many items cost: `Batcher` in items per second, `amap` in time and memory over a million items.

The work itself is nothing (a call that yields to the loop once), so only penstock's share is measured. Rates are per
second of CPU, which other programs on the machine disturb least, and by the clock. Each `amap` runs in a process of its
own; its memory is how much the peak of the resident set grows from a run over 10,000 items to one over all.

    python benchmarks/throughput.py [--items 1000000]
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import multiprocessing
import resource
import statistics
import sys
import time
from functools import partial

import anyio
import anyio.lowlevel

from penstock import Batcher, Limiter, amap, per_second

CALLERS = 1_000
MAX_ITEMS = 100
IN_FLIGHT = 200
LOOPS = {"asyncio": ("asyncio", {}), "uvloop": ("asyncio", {"use_uvloop": True}), "trio": ("trio", {})}
TO_REACH = 100_000  # items per second through a Batcher on asyncio
CONSTANT = 8  # MiB: what a run may grow by, whatever the number of items. A list of a million integers is 35


def available_loops():
    return [name for name in LOOPS if name == "asyncio" or importlib.util.find_spec(name)]


# ------------------------------------------------------------------------------------------------------------------
# Batcher


async def echo(items):
    await anyio.lowlevel.checkpoint()
    return items


async def echo_by_index(items):
    await anyio.lowlevel.checkpoint()
    return list(reversed(list(enumerate(items))))


BATCHERS = {
    "by number": lambda: Batcher(echo, max_items=MAX_ITEMS),
    "by number and cost": lambda: Batcher(echo, max_items=MAX_ITEMS, max_cost={"tokens": 10_000}, cost={"tokens": 9}),
    "matched by index": lambda: Batcher(echo_by_index, max_items=MAX_ITEMS, index=lambda entry: entry[0]),
    "with a limiter": lambda: Batcher(
        echo, max_items=MAX_ITEMS, cost={"tokens": 9}, limiter=Limiter(requests=per_second(1e9), tokens=per_second(1e9))
    ),
}


async def through_a_batcher(make, items):
    """Seconds of CPU and of the clock for `items` items by 1,000 callers, each with the next item as soon as it has its
    result."""
    batcher = make()
    start = anyio.Event()

    async def caller():
        await start.wait()
        for item in range(items // CALLERS):
            await batcher(item)

    async with anyio.create_task_group() as tasks:
        for _ in range(CALLERS):
            tasks.start_soon(caller)
        await anyio.wait_all_tasks_blocked()
        cpu, clock = time.process_time(), time.perf_counter()
        start.set()
    return time.process_time() - cpu, time.perf_counter() - clock


def batchers(items, rounds):
    print(f"Batcher: {items:,} items by {CALLERS:,} callers, {MAX_ITEMS} a call; medians of {rounds} rounds\n")
    print(f"| {'':7} | {'':18} | items per second of CPU | by the clock | µs an item |")
    print(f"|{'-' * 9}|{'-' * 20}|{'-' * 24}:|{'-' * 13}:|{'-' * 11}:|")
    reached = True
    for loop in available_loops():
        backend, options = LOOPS[loop]
        for name, make in BATCHERS.items():
            samples = [
                anyio.run(through_a_batcher, make, items, backend=backend, backend_options=options)
                for _ in range(rounds)
            ]
            cpu, clock = (statistics.median(sample) for sample in zip(*samples, strict=True))
            print(
                f"| {loop:7} | {name:18} | {items / cpu:23,.0f} | {items / clock:12,.0f} | {cpu / items * 1e6:10.2f} |"
            )
            if loop == "asyncio" and name == "by number":
                reached = items / cpu >= TO_REACH
    return reached


# ------------------------------------------------------------------------------------------------------------------
# amap


async def call(item):
    await anyio.lowlevel.checkpoint()
    return item


async def by_amap(items, *, ordered):
    async for _ in amap(call, range(items), in_flight=IN_FLIGHT, ordered=ordered):
        pass


async def by_gather(items):
    """What one writes instead: a semaphore, and a task for every item."""
    semaphore = asyncio.Semaphore(IN_FLIGHT)

    async def one(item):
        async with semaphore:
            return await call(item)

    await asyncio.gather(*(one(item) for item in range(items)))


WAYS = {
    "amap, in order": partial(by_amap, ordered=True),
    "amap, as they come": partial(by_amap, ordered=False),
    "gather and a semaphore": by_gather,
}


def peak():
    """The peak of the resident set, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform != "darwin" else 1024**2)


def in_a_process(name, loop, items, results):
    backend, options = LOOPS[loop]
    run = partial(anyio.run, WAYS[name], backend=backend, backend_options=options)
    run(10_000)
    before, cpu, clock = peak(), time.process_time(), time.perf_counter()
    run(items)
    results.put((time.process_time() - cpu, time.perf_counter() - clock, peak() - before))


def maps(items):
    print(f"\namap: in_flight={IN_FLIGHT}\n")
    print(f"| {'':7} | {'':22} | {'items':>9} | µs of CPU an item | items/s by the clock | memory grown, MiB |")
    print(f"|{'-' * 9}|{'-' * 24}|{'-' * 10}:|{'-' * 18}:|{'-' * 21}:|{'-' * 18}:|")
    spawn = multiprocessing.get_context("spawn")
    reached = True
    for loop in available_loops():
        for name in WAYS:
            if name.startswith("gather") and loop == "trio":
                continue
            count = items if name.startswith("amap, in order") else items // 10
            results = spawn.SimpleQueue()
            process = spawn.Process(target=in_a_process, args=(name, loop, count, results))
            process.start()
            cpu, clock, grown = results.get()
            process.join()
            print(
                f"| {loop:7} | {name:22} | {count:9,} | {cpu / count * 1e6:17.2f} "
                f"| {count / clock:20,.0f} | {grown:17.1f} |"
            )
            if name.startswith("amap"):
                reached = reached and grown < CONSTANT
    return reached


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=int, default=1_000_000, help="through amap; a tenth of it through each Batcher")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    fast = batchers(max(CALLERS, args.items // 10), args.rounds)
    constant = maps(args.items)
    print(f"\nTo reach: ≥ {TO_REACH:,} items per second of CPU through a Batcher on asyncio: {_verdict(fast)}")
    print(f"To reach: amap grows by less than {CONSTANT} MiB, whatever the number of items: {_verdict(constant)}")
    return 0 if fast and constant else 1


def _verdict(reached):
    return "reached" if reached else "NOT REACHED"


if __name__ == "__main__":
    sys.exit(main())
