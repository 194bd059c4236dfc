"""What a retry costs when there is nothing to retry: calls that succeed at once.

Tenacity, stamina and backoff with the settings their documentation shows, penstock with its defaults. The candidates
take turns in one run, so that whatever else the machine does hits all of them; each number is the median of the rounds,
less the cost of the bare call.

    python benchmarks/retry_overhead.py [--rounds 15] [--calls 2000]
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import statistics
import sys
import time

import backoff
import stamina
import tenacity

from penstock import Budget, Retry

TARGETS = {"tenacity": 0.3, "stamina": 1.0}


async def answer():
    return 1


def answer_sync():
    return 1


def with_tenacity(fn):
    return tenacity.retry(
        retry=tenacity.retry_if_exception_type(ConnectionError),
        stop=tenacity.stop_after_attempt(6),
        wait=tenacity.wait_random_exponential(min=1, max=60),
        reraise=True,
    )(fn)


with_stamina = stamina.retry(on=ConnectionError, attempts=6)
with_backoff = backoff.on_exception(backoff.expo, ConnectionError, max_tries=6)
policy = Retry(on=ConnectionError)
budgeted = Retry(on=ConnectionError, budget=Budget())


async def loop_of_tenacity():
    async for attempt in tenacity.AsyncRetrying(
        retry=tenacity.retry_if_exception_type(ConnectionError), stop=tenacity.stop_after_attempt(6), reraise=True
    ):
        with attempt:
            result = await answer()
    return result


async def loop_of_stamina():
    async for attempt in stamina.retry_context(on=ConnectionError, attempts=6):
        with attempt:
            result = await answer()
    return result


async def loop_of_penstock():
    async for attempt in policy:
        with attempt:
            result = await answer()
    return result


ASYNC = {
    "bare": answer,
    "tenacity": with_tenacity(answer),
    "stamina": with_stamina(answer),
    "backoff": with_backoff(answer),
    "penstock": policy(answer),
    "penstock, with a budget": budgeted(answer),
}
LOOP = {"bare": answer, "tenacity": loop_of_tenacity, "stamina": loop_of_stamina, "penstock": loop_of_penstock}
SYNC = {
    "bare": answer_sync,
    "tenacity": with_tenacity(answer_sync),
    "stamina": with_stamina(answer_sync),
    "backoff": with_backoff(answer_sync),
    "penstock": policy(answer_sync),
    "penstock, with a budget": budgeted(answer_sync),
}


async def time_async(call, calls):
    started = time.process_time()
    for _ in range(calls):
        await call()
    return (time.process_time() - started) / calls


async def time_sync(call, calls):
    started = time.process_time()
    for _ in range(calls):
        call()
    return (time.process_time() - started) / calls


async def measure(title, candidates, timer, rounds, calls):
    samples = {name: [] for name in candidates}
    for number in range(rounds + 1):
        for name, call in candidates.items():
            seconds = await timer(call, calls)
            if number:  # the first round warms up
                samples[name].append(seconds)
    bare = statistics.median(samples.pop("bare"))
    cost = {name: statistics.median(seconds) - bare for name, seconds in samples.items()}
    print(f"\n{title}: microseconds of CPU on top of the bare call ({bare * 1e6:.2f})\n")
    print(f"| {'':24} | {'µs':>7} | × tenacity | × stamina |")
    print(f"|{'-' * 26}|{'-' * 8}:|{'-' * 11}:|{'-' * 10}:|")
    for name, seconds in cost.items():
        shares = [seconds / cost[peer] for peer in TARGETS]
        print(f"| {name:24} | {seconds * 1e6:7.2f} | {shares[0]:10.3f} | {shares[1]:9.3f} |")
    return all(cost["penstock"] <= share * cost[peer] for peer, share in TARGETS.items())


async def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--calls", type=int, default=2000)
    args = parser.parse_args()
    gc.disable()
    reached = [
        await measure("Decorated async function", ASYNC, time_async, args.rounds, args.calls),
        await measure("async for attempt in …", LOOP, time_async, args.rounds, args.calls),
        await measure("Decorated function", SYNC, time_sync, args.rounds, args.calls),
    ]
    print(f"\nTo reach: ≤ 0.3 × tenacity and ≤ 1 × stamina: {'reached' if all(reached) else 'NOT REACHED'}")
    return 0 if all(reached) else 1


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
