"""What a call costs that need not wait, in every shape that users have, beside what they would write by hand.

By hand is one `aiolimiter.AsyncLimiter` per rate and an `asyncio.Semaphore` for places, entered one after another
(which is not one decision); for keys a dict of two that never forgets. All candidates take turns in many short rounds
of one run, so that whatever else the machine does hits all of them. The ratio is the median of the ratios round by
round.

    python benchmarks/shapes.py [--rounds 51] [--calls 1000] [--only TEXT]
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import statistics
import time

import aiolimiter
from _report import table, verdict, where

from penstock import Keyed, Limiter, Rate, in_flight, per_second

PLENTY = 10**9  # a second: never reached


def rates(number):
    return [aiolimiter.AsyncLimiter(PLENTY, 1) for _ in range(number)]


# By hand


def hand_one():
    (requests,) = rates(1)

    async def run(calls):
        for _ in range(calls):
            async with requests:
                pass

    return run


def hand_two(cost=5):
    requests, tokens = rates(2)

    async def run(calls):
        for _ in range(calls):
            async with requests:
                await tokens.acquire(cost)

    return run


def hand_three():
    requests, tokens, images = rates(3)

    async def run(calls):
        for _ in range(calls):
            async with requests:
                await tokens.acquire(5)
                await images.acquire(2)

    return run


def hand_places():
    requests, tokens = rates(2)
    places = asyncio.Semaphore(64)

    async def run(calls):
        for _ in range(calls):
            async with places, requests:
                await tokens.acquire(5)

    return run


def hand_decorator(places=False):
    requests, tokens = rates(2)
    semaphore = asyncio.Semaphore(64)

    async def call(prompt):
        return prompt

    if places:

        async def limited(prompt):
            async with semaphore, requests:
                await tokens.acquire(5)
                return await call(prompt)

    else:

        async def limited(prompt):
            async with requests:
                await tokens.acquire(5)
                return await call(prompt)

    async def run(calls):
        for _ in range(calls):
            await limited("x")

    return run


def hand_keyed(keys):
    limiters = {}

    async def run(calls):
        for number in range(calls):
            key = keys[number % len(keys)]
            if key not in limiters:
                limiters[key] = rates(2)
            requests, tokens = limiters[key]
            async with requests:
                await tokens.acquire(5)

    return run


# By penstock


def one():
    return Limiter(tokens=Rate(PLENTY, 1))


def two(**options):
    return Limiter(requests=per_second(PLENTY), tokens=Rate(PLENTY, 1), **options)


def three():
    return Limiter(requests=per_second(PLENTY), tokens=Rate(PLENTY, 1), images=Rate(PLENTY, 1))


def with_places():
    return Limiter(requests=per_second(PLENTY), tokens=Rate(PLENTY, 1), calls=in_flight(64))


def entered(limiter, /, **cost):
    async def run(calls):
        for _ in range(calls):
            async with limiter(**cost):
                pass

    return run


def by_itself():
    limiter = Limiter(requests=per_second(PLENTY))

    async def run(calls):
        for _ in range(calls):
            async with limiter:
                pass

    return run


def acquired(limiter):
    async def run(calls):
        for _ in range(calls):
            with await limiter.acquire(tokens=5):
                pass

    return run


def decorated(limiter, cost=5):
    @limiter(tokens=cost)
    async def call(prompt):
        return prompt

    async def run(calls):
        for _ in range(calls):
            await call("x")

    return run


def keyed(keys):
    per_user = Keyed(requests=per_second(PLENTY), tokens=Rate(PLENTY, 1))

    async def run(calls):
        for number in range(calls):
            async with per_user[keys[number % len(keys)]](tokens=5):
                pass

    return run


def nothing(_event):
    pass


FEW, MANY = ([f"user {number}" for number in range(count)] for count in (100, 100_000))

ROWS = [
    # What, by hand, by penstock, to reach
    ("one rate, `async with limiter`", hand_one, by_itself, 0.9),
    ("one rate, `async with limiter(tokens=5)`", hand_one, lambda: entered(one(), tokens=5), 0.9),
    ("two rates", hand_two, lambda: entered(two(), tokens=5), 0.7),
    ("the README's: two rates and in_flight(64)", hand_places, lambda: entered(with_places(), tokens=5), 0.7),
    ("three rates", hand_three, lambda: entered(three(), tokens=5, images=2), 0.75),
    ("two rates, a fractional cost", lambda: hand_two(0.5), lambda: entered(two(), tokens=0.5), 0.75),
    ("two rates, flow=", hand_two, lambda: entered(two(), tokens=5, flow="a"), 0.75),
    ("two rates, priority=", hand_two, lambda: entered(two(), tokens=5, priority=1), 0.75),
    ("two rates, on_event= a plain function", hand_two, lambda: entered(two(on_event=nothing), tokens=5), 1.4),
    ("two rates as decorator", hand_decorator, lambda: decorated(two()), 1.0),
    ("the README's as decorator", lambda: hand_decorator(places=True), lambda: decorated(with_places()), 1.0),
    ("two rates as decorator, tokens=len", hand_decorator, lambda: decorated(two(), len), 1.4),
    ("the README's as decorator, tokens=len", lambda: hand_decorator(places=True),
     lambda: decorated(with_places(), len), 1.0),
    ("two rates, `with await limiter.acquire(…)`", hand_two, lambda: acquired(two()), 1.0),
    ("the README's, `with await limiter.acquire(…)`", hand_places, lambda: acquired(with_places()), 1.0),
    ("`per_user[key](tokens=5)`, 100 keys", lambda: hand_keyed(FEW), lambda: keyed(FEW), 1.5),
    ("`per_user[key](tokens=5)`, 100,000 keys", lambda: hand_keyed(MANY), lambda: keyed(MANY), 1.5),
]  # fmt: skip


async def measure(rounds, calls, only):
    rows, verdicts = [], []
    pairs = [(what, make_hand(), make_ours(), bound) for what, make_hand, make_ours, bound in ROWS if only in what]
    for what, hand, ours, _ in pairs:
        if "100,000" in what:  # so that every key was seen
            await hand(100_000)
            await ours(100_000)
    samples = {what: ([], []) for what, *_ in pairs}
    for turn in range(rounds + 2):
        for what, hand, ours, _ in pairs:
            for run, times in zip((hand, ours), samples[what], strict=True):
                started = time.process_time_ns()
                await run(calls)
                if turn > 1:  # the first rounds warm up
                    times.append((time.process_time_ns() - started) / calls)
    for what, _, _, bound in pairs:
        by_hand, ours = samples[what]
        ratio = statistics.median(mine / theirs for mine, theirs in zip(ours, by_hand, strict=True))
        rows.append(
            (what, f"{statistics.median(by_hand):.0f}", f"{statistics.median(ours):.0f}", f"{ratio:.2f}", f"≤ {bound}")
        )
        verdicts.append((what, ratio, bound))
    table(("nothing waits: CPU ns per call", "by hand", "penstock", "ratio", "to reach"), rows)
    for what, ratio, bound in verdicts:
        verdict(what, ratio, bound)


async def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=51)
    parser.add_argument("--calls", type=int, default=1000)
    parser.add_argument("--only", default="")
    args = parser.parse_args()
    where("aiolimiter")
    gc.collect()
    gc.disable()
    await measure(args.rounds, args.calls, args.only)


if __name__ == "__main__":
    asyncio.run(main())
