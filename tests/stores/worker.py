"""One process of several that share a limit: writes a line per grant (when the store admitted it, and when it was
seen), and at last how often it asked the store.

python worker.py '{"store": ["sqlite", "/path"], "limits": {"requests": [200, 1, 10]}, "seconds": 4, "waiters": 25,
"give_up": 0.4}'
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
import time
from pathlib import Path

from penstock import Limiter, Rate
from penstock.stores import RedisStore, SQLiteStore

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tests.stores.admissions import charge_of, record


async def main(plan):
    kind, where, *more = plan["store"]
    store = SQLiteStore(where) if kind == "sqlite" else RedisStore(where, prefix=more[0], patience=5.0)
    admitted = {}
    record(store, admitted)
    limiter = Limiter(name="shared", store=store, **{unit: Rate(*numbers) for unit, numbers in plan["limits"].items()})
    rng = random.Random(plan.get("seed"))
    end = time.monotonic() + plan["seconds"]
    granted = 0

    def write(permit):
        nonlocal granted
        granted += 1
        os.write(1, b"%.6f %.6f\n" % (admitted.pop(charge_of(permit)), time.time()))

    async def wait():
        while True:
            if rng.random() < plan["give_up"]:
                task = asyncio.ensure_future(limiter.acquire())
                await asyncio.wait([task], timeout=rng.uniform(0.0, plan.get("patience", 0.1)))
                if not task.cancel():
                    write(task.result())
            else:
                write(await limiter.acquire())

    tasks = [asyncio.ensure_future(wait()) for _ in range(plan["waiters"])]
    await asyncio.sleep(end - time.monotonic())
    for task in tasks:
        task.cancel()
    for outcome in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(outcome, Exception):  # whoever was cancelled is none
            raise outcome
    calls = limiter.store.dispatcher.calls
    await asyncio.to_thread(store.close)
    os.write(1, f"calls {calls} {granted}\n".encode())


if __name__ == "__main__":
    asyncio.run(main(json.loads(sys.argv[1])))
