"""What a call costs that need not wait: limiters that are never full.

Two tables: one unit, and two units (requests and tokens, 5 tokens a call). Nobody but penstock decides on two units at once,
so the others are entered one after another, as their users would. The candidates take turns in many short rounds of one run,
so that whatever else the machine does hits all of them. Of each candidate the table shows the median and the smallest CPU
time of a call; the ratio is the median of the ratios round by round, which are of nearly the same moment.

    python benchmarks/fast_path.py [--rounds 101] [--calls 2000]
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import statistics
import time

import aiolimiter
import asynciolimiter
import limits
import limits.aio
import pyrate_limiter
import throttled.asyncio as throttled
from _report import table, verdict, where

from penstock import Limiter, Rate, per_second

PLENTY = 10**9  # a second: never reached


class Empty:
    __slots__ = ()

    async def __aenter__(self):
        return None

    async def __aexit__(self, *_):
        return None


def with_aiolimiter(number):
    requests, tokens = (aiolimiter.AsyncLimiter(PLENTY, 1) for _ in range(2))

    async def one(calls):
        for _ in range(calls):
            async with requests:
                pass

    async def two(calls):
        for _ in range(calls):
            async with requests:
                await tokens.acquire(5)

    return one if number == 1 else two


def with_penstock(number):
    single = Limiter(requests=per_second(PLENTY))
    double = Limiter(requests=per_second(PLENTY), tokens=Rate(PLENTY, 1))

    async def one(calls):
        for _ in range(calls):
            async with single:
                pass

    async def two(calls):
        for _ in range(calls):
            async with double(tokens=5):
                pass

    return one if number == 1 else two


def with_asynciolimiter(_):
    limiter = asynciolimiter.LeakyBucketLimiter(PLENTY, capacity=PLENTY)

    async def one(calls):
        for _ in range(calls):
            await limiter.wait()

    return one


def with_limits(number):
    strategy = limits.aio.strategies.FixedWindowRateLimiter(limits.aio.storage.MemoryStorage())
    requests, tokens = (limits.RateLimitItemPerSecond(PLENTY, 1, namespace=unit) for unit in ("requests", "tokens"))

    async def one(calls):
        for _ in range(calls):
            await strategy.hit(requests, "key")

    async def two(calls):
        for _ in range(calls):
            await strategy.hit(requests, "key")
            await strategy.hit(tokens, "key", cost=5)

    return one if number == 1 else two


def with_throttled(number):
    requests, tokens = (
        throttled.Throttled(
            key=unit, using=throttled.RateLimiterType.TOKEN_BUCKET.value, quota=throttled.per_sec(PLENTY, burst=PLENTY),
            timeout=-1, store=throttled.MemoryStore(),
        )
        for unit in ("requests", "tokens")
    )  # fmt: skip

    async def one(calls):
        for _ in range(calls):
            await requests.limit()

    async def two(calls):
        for _ in range(calls):
            await requests.limit()
            await tokens.limit(cost=5)

    return one if number == 1 else two


def with_pyrate(number):
    def limiter():
        rates = [pyrate_limiter.Rate(PLENTY, pyrate_limiter.Duration.SECOND)]
        store = pyrate_limiter.InMemoryStateStore()
        return pyrate_limiter.Limiter(pyrate_limiter.StateBucket(rates, pyrate_limiter.TokenBucket(), store))

    requests, tokens = limiter(), limiter()

    async def one(calls):
        for _ in range(calls):
            await requests.try_acquire_async("key")

    async def two(calls):
        for _ in range(calls):
            await requests.try_acquire_async("key")
            await tokens.try_acquire_async("key", weight=5)

    return one if number == 1 else two


def floor(_):
    empty = Empty()

    async def one(calls):
        for _ in range(calls):
            async with empty:
                pass

    return one


ONE = {
    "empty async with": floor,
    "asynciolimiter (leaky)": with_asynciolimiter,
    "penstock": with_penstock,
    "aiolimiter": with_aiolimiter,
    "limits (fixed window)": with_limits,
    "throttled-py (token bucket)": with_throttled,
    "pyrate-limiter (token bucket)": with_pyrate,
}
TWO = {name: make for name, make in ONE.items() if not name.startswith("asynciolimiter")}  # it knows no weights
SLOW = {"limits (fixed window)", "throttled-py (token bucket)", "pyrate-limiter (token bucket)"}


async def measure(makers, number, rounds, calls):
    candidates = {name: make(number) for name, make in makers.items()}
    samples = {name: [] for name in candidates}
    for turn in range(rounds + 2):
        for name, run in candidates.items():
            share = calls // 10 if name in SLOW else calls
            started = time.process_time_ns()
            await run(share)
            if turn > 1:  # the first rounds warm up
                samples[name].append((time.process_time_ns() - started) / share)
    ratios = {
        name: statistics.median(mine / theirs for mine, theirs in zip(times, samples["aiolimiter"], strict=True))
        for name, times in samples.items()
    }
    rows = [
        (name, f"{statistics.median(times):.0f}", f"{min(times):.0f}", f"{ratios[name]:.2f}")
        for name, times in samples.items()
    ]
    units = "one unit" if number == 1 else "two units"
    table((f"{units}, CPU per call", "median ns", "least ns", "× aiolimiter"), rows)
    return ratios["penstock"]


async def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=101)
    parser.add_argument("--calls", type=int, default=2000)
    args = parser.parse_args()
    where("aiolimiter", "asynciolimiter", "limits", "pyrate-limiter", "throttled-py")
    gc.collect()
    gc.disable()
    one = await measure(ONE, 1, args.rounds, args.calls)
    two = await measure(TWO, 2, args.rounds, args.calls)
    verdict("`async with limiter`, one limit, against one aiolimiter", one, 0.9)
    verdict("`async with limiter(tokens=5)`, two limits, against two aiolimiters", two, 0.6)


if __name__ == "__main__":
    asyncio.run(main())
