"""What a call on a key costs that need not wait, in every shape that users have, beside what they would write by hand.

By hand is a dict that never forgets: per key an `aiolimiter.AsyncLimiter` for each of two rates, and an
`asyncio.Semaphore` for places. To settle upwards it acquires the rest. It has no word for giving back, so there it
lowers the limiter's private level. Limits by a function of the key are asked for once a key, and ours at every use,
since the answer may change; the function looks up one of three plans. Each row is a run of its own, in which both take
turns in many short rounds over random keys; the ratio is the median of the ratios round by round. `--per` is how long a
limit takes to fill: 1 forgets every key between two uses of it, 1e6 none.

    python benchmarks/keyed_shapes.py [--keys 100 10000] [--per 1 1e6] [--rounds 21] [--calls 500] [--only TEXT]
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import random
import statistics
import time

import aiolimiter
from _report import table, verdict, where

from penstock import Keyed, Limiter, Rate, calendar, in_flight, sliding

PLENTY = 10**9  # never reached

# By hand


def give_back(limiter, amount):
    limiter._level = max(0.0, limiter._level - amount)


def hand(per, *, places=0, organisation=False, cost=5, true_cost=None, cancelled=False, limits_of=None):
    limiters = {}
    requests, tokens = (aiolimiter.AsyncLimiter(PLENTY, per) for _ in range(2))

    def of(key):
        mine = limiters.get(key)
        if mine is None:
            amounts = (PLENTY, PLENTY) if limits_of is None else [limit.amount for limit in limits_of(key).values()]
            rates = [aiolimiter.AsyncLimiter(amount, per) for amount in amounts]
            mine = limiters[key] = (asyncio.Semaphore(places), *rates) if places else tuple(rates)
        return mine

    async def with_places(keys):
        for key in keys:
            semaphore, mine, my_tokens = of(key)
            async with semaphore, mine:
                await my_tokens.acquire(cost)

    async def with_organisation(keys):
        for key in keys:
            async with requests:
                await tokens.acquire(cost)
                mine, my_tokens = of(key)
                async with mine:
                    await my_tokens.acquire(cost)
                    if true_cost is not None:
                        give_back(my_tokens, cost - true_cost)
                        give_back(tokens, cost - true_cost)

    async def plain(keys):
        for key in keys:
            mine = limiters.get(key)
            if mine is None:
                mine = of(key)
            async with mine[0]:
                await mine[1].acquire(cost)

    async def settled(keys):
        for key in keys:
            mine = limiters.get(key)
            if mine is None:
                mine = of(key)
            async with mine[0]:
                await mine[1].acquire(cost)
                if cancelled:
                    give_back(mine[0], 1)
                    give_back(mine[1], cost)
                elif true_cost > cost:
                    await mine[1].acquire(true_cost - cost)
                else:
                    give_back(mine[1], cost - true_cost)

    if places or organisation:
        return with_places if places else with_organisation
    return settled if cancelled or true_cost is not None else plain


def hand_decorated(per):
    limiters = {}

    async def limited(user):
        mine = limiters.get(user)
        if mine is None:
            mine = limiters[user] = tuple(aiolimiter.AsyncLimiter(PLENTY, per) for _ in range(2))
        async with mine[0]:
            await mine[1].acquire(len(user))
            return user

    async def run(keys):
        for key in keys:
            await limited(key)

    return run


# By penstock


def two(per, **more):
    return Keyed(requests=Rate(PLENTY, per), tokens=Rate(PLENTY, per), **more)


def entered(per_user, /, **options):
    async def run(keys):
        for key in keys:
            async with per_user[key](**options):
                pass

    return run


def by_mapping(per_user):
    async def run(keys):
        for key in keys:
            async with per_user[key]({"tokens": 5}):
                pass

    return run


def acquired(per_user):
    async def run(keys):
        for key in keys:
            with await per_user[key].acquire(tokens=5):
                pass

    return run


def acquired_now(per_user):
    async def run(keys):
        for key in keys:
            with per_user[key].acquire_nowait(tokens=5):
                pass

    return run


def decorated(per_user):
    @per_user(key=lambda user: user, tokens=len)
    async def call(user):
        return user

    async def run(keys):
        for key in keys:
            await call(key)

    return run


def settled(per_user, true_cost):
    async def run(keys):
        for key in keys:
            async with per_user[key](tokens=5) as permit:
                permit.settle(tokens=true_cost)

    return run


def settled_late(per_user, true_cost):
    """Each call is settled after the next one of its key has begun."""
    open_ = {}

    async def run(keys):
        for key in keys:
            permit = await per_user[key].acquire(tokens=5)
            before = open_.get(key)
            if before is not None:
                before.settle(tokens=true_cost)
                before.close()
            open_[key] = permit

    return run


def by_plan(per):
    plans = [{"requests": Rate(PLENTY + plan, per), "tokens": Rate(PLENTY + plan, per)} for plan in range(3)]
    return lambda user: plans[len(user) % 3]


def cancelled(per_user):
    async def run(keys):
        for key in keys:
            async with per_user[key](tokens=5) as permit:
                permit.cancel()

    return run


def joint(per, settle=None):
    organisation, per_user = Limiter(requests=Rate(PLENTY, per), tokens=Rate(PLENTY, per)), two(per)

    async def run(keys):
        for key in keys:
            async with (organisation & per_user[key])(tokens=5) as permit:
                if settle is not None:
                    permit.settle(tokens=settle)

    return run


def nothing(_event):
    pass


ROWS = [
    # What, by hand, by penstock
    ("whole costs", hand, lambda per: entered(two(per), tokens=5)),
    ("fractional costs", lambda per: hand(per, cost=5.5), lambda per: entered(two(per), tokens=5.5)),
    ("costs as a mapping", hand, lambda per: by_mapping(two(per))),
    ("flow=", hand, lambda per: entered(two(per), tokens=5, flow="a")),
    ("priority=", hand, lambda per: entered(two(per), tokens=5, priority=1)),
    ("max_wait=", hand, lambda per: entered(two(per), tokens=5, max_wait=1)),
    ("on_event= a plain function", hand, lambda per: entered(two(per, on_event=nothing), tokens=5)),
    ("decorator, tokens=len", hand_decorated, lambda per: decorated(two(per))),
    ("`with await acquire(…)`", hand, lambda per: acquired(two(per))),
    ("`with acquire_nowait(…)`", hand, lambda per: acquired_now(two(per))),
    ("and in_flight(64)", lambda per: hand(per, places=64),
     lambda per: entered(two(per, calls=in_flight(64)), tokens=5)),
    ("and in_flight(64), `with await acquire(…)`", lambda per: hand(per, places=64),
     lambda per: acquired(two(per, calls=in_flight(64)))),
    ("and in_flight(1)", lambda per: hand(per, places=1),
     lambda per: entered(two(per, calls=in_flight(1)), tokens=5)),
    ("settle, down", lambda per: hand(per, true_cost=3), lambda per: settled(two(per), 3)),
    ("settle, up", lambda per: hand(per, true_cost=7), lambda per: settled(two(per), 7)),
    ("cancel", lambda per: hand(per, cancelled=True), lambda per: cancelled(two(per))),
    ("a rate and sliding(…)", hand,
     lambda per: entered(Keyed(requests=Rate(PLENTY, per), tokens=sliding(PLENTY, per)), tokens=5)),
    ("a rate and calendar(…)", hand,
     lambda per: entered(Keyed(requests=Rate(PLENTY, per), tokens=calendar(PLENTY, "day")), tokens=5)),
    ("overdraft=True", hand,
     lambda per: entered(Keyed(requests=Rate(PLENTY, per), tokens=Rate(PLENTY, per, overdraft=True)), tokens=5)),
    ("settle, two calls of a key at a time", lambda per: hand(per, true_cost=3), lambda per: settled_late(two(per), 3)),
    ("limits by a function of the key", lambda per: hand(per, limits_of=by_plan(per)),
     lambda per: entered(Keyed(by_plan(per)), tokens=5)),
    ("organisation & per_user[key]", lambda per: hand(per, organisation=True), joint),
    ("organisation & per_user[key], settle", lambda per: hand(per, organisation=True, true_cost=3),
     lambda per: joint(per, 3)),
]  # fmt: skip


async def measure(by_hand, ours, keys, rounds, calls):
    await by_hand(keys)
    await ours(keys)  # every key was seen
    draw = random.Random(1)
    samples = [], []
    for _ in range(rounds):
        some = draw.choices(keys, k=calls)
        for run, times in zip((by_hand, ours), samples, strict=True):
            started = time.process_time_ns()
            await run(some)
            times.append((time.process_time_ns() - started) / calls)
    ratio = statistics.median(mine / theirs for theirs, mine in zip(*samples, strict=True))
    return (*map(statistics.median, samples), ratio)


async def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--keys", type=int, nargs="+", default=[100, 10_000])
    parser.add_argument("--per", type=float, nargs="+", default=[1, 1e6])
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--calls", type=int, default=500)
    parser.add_argument("--only", default="")
    args = parser.parse_args()
    where("aiolimiter")
    verdicts = []
    for number in args.keys:
        keys = [f"user {each}" for each in range(number)]
        for per in args.per:
            rows = []
            for what, make_hand, make_ours in ROWS:
                if args.only in what:
                    gc.collect()
                    theirs, mine, ratio = await measure(make_hand(per), make_ours(per), keys, args.rounds, args.calls)
                    rows.append((what, f"{theirs:.0f}", f"{mine:.0f}", f"{ratio:.2f}"))
                    verdicts.append((f"{what}, {number:,} keys, {per:g} s", ratio, 1.5))
            table((f"{number:,} keys, full in {per:g} s: CPU ns per call", "by hand", "penstock", "ratio"), rows)
    for each in verdicts:
        verdict(*each)


if __name__ == "__main__":
    asyncio.run(main())
