"""One process of several that lease one limit: writes the moment of each grant, by the monotonic clock that all
processes of a machine share.

python leaseholder.py '{"store": ["sqlite", "/path"], "rate": 500, "burst": 400, "lease": 0.5, "seconds": 4, "waiters":
20, "work": 0.001,
                        "give_up": 0.2, "settle": 0.3}'

At last a line of JSON: how many were granted, how many calls that took, and the waits' median and 99th percentile in
seconds.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import statistics
import sys
import time

from penstock import Limiter, Rate
from penstock.stores import RedisStore, SQLiteStore


async def main(plan):
    kind, where, *more = plan["store"]
    store = SQLiteStore(where) if kind == "sqlite" else RedisStore(where, prefix=more[0], patience=5.0)
    lease = plan.get("lease")
    limiter = Limiter(name="leased", store=store, lease=lease, requests=Rate(plan["rate"], 1, plan["burst"]))
    rng = random.Random(plan.get("seed"))
    end = time.monotonic() + plan["seconds"]
    waits = []
    quiet = plan.get("quiet", False)

    def note(permit, begin):
        waits.append(time.monotonic() - begin)
        if rng.random() < plan.get("settle", 0.0):
            permit.cancel()  # was never made, so it counts for nobody
        elif not quiet:
            os.write(1, b"%.6f\n" % permit.granted_at)

    async def work():
        while True:
            begin = time.monotonic()
            if rng.random() < plan.get("give_up", 0.0):
                task = asyncio.ensure_future(limiter.acquire())
                await asyncio.wait([task], timeout=rng.uniform(0.0, 0.05))
                if not task.cancel():
                    note(task.result(), begin)
            else:
                note(await limiter.acquire(), begin)
            await asyncio.sleep(plan.get("work", 0.0))

    tasks = [asyncio.ensure_future(work()) for _ in range(plan["waiters"])]
    await asyncio.sleep(end - time.monotonic())
    for task in tasks:
        task.cancel()
    for outcome in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(outcome, Exception):  # whoever was cancelled is none
            raise outcome
    calls = limiter.store.dispatcher.calls
    await asyncio.to_thread(store.close)
    cut = statistics.quantiles(waits, n=100) if len(waits) > 1 else [0.0] * 99
    done = {"granted": len(waits), "calls": calls, "p50": cut[49], "p99": cut[98], "worst": max(waits, default=0.0)}
    os.write(1, json.dumps(done).encode() + b"\n")


if __name__ == "__main__":
    asyncio.run(main(json.loads(sys.argv[1])))
