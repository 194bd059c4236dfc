"""Processes that share a limit in a store, and always want the next turn."""

from __future__ import annotations

import asyncio

from penstock import Limiter, per_second

RATE, BATCH = 20.0, 12
GRANT = 1 / RATE


class Batch:
    """Processes with five tasks each that always want the next turn."""

    def __init__(self, stores, cost, burst, **who):
        self.limiters = [
            Limiter(tokens=per_second(cost * RATE, burst=burst), name="x", store=stores()) for _ in range(BATCH)
        ]
        self.got = [0] * BATCH
        self.tasks = [asyncio.ensure_future(self.work(number, cost, who)) for number in range(BATCH) for _ in range(5)]

    async def work(self, number, cost, who):
        while True:
            await self.limiters[number].acquire(tokens=cost, **who)
            self.got[number] += 1

    async def stop(self):
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
