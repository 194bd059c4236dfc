"""When the store admitted each grant, by its own clock: so "never more than promised" is checked to the microsecond.

What a process sees of a grant is late by as much as the machine is busy, and two grants that are seen together need not have been
admitted together. So `record` writes down what the store says, and each grant is looked up by its mark, the bucket's running total, and the era of that bucket.
"""

from __future__ import annotations

import contextlib
import math
import time

import anyio

from penstock import StoreError
from penstock._core import ledger

RECOVERY = 1.0
"""Seconds from the end of a fault to the next grant, at most."""


def record(store, admitted):
    """From now on put the moments of all admissions to the first limit into `admitted`: seconds since 1970, by era and mark."""
    decide = store.decide

    def recording(batch):
        reply = decide(batch)
        if not reply.others:
            admitted.update(_admissions(batch.operations, reply))
        return reply

    store.decide = recording


def _admissions(operations, reply):
    at = verdict = 0
    while at < len(operations):
        operation = operations[at]
        if operation == ledger.ACQUIRE:
            count = int(operations[at + 3])
            at += 4 + 2 * count
            wait = reply.verdicts[verdict]
            if wait >= 0:
                yield (reply.eras[0], reply.verdicts[verdict + 1]), reply.now / 1e6 + wait
                verdict += 1 + count
            else:
                verdict += 2
        elif operation == ledger.GIVE_BACK:
            at += 2 + 4 * int(operations[at + 1])
        else:
            assert operation == ledger.RENEW, f"operation {operation} says something that is not read here"
            at += 2 + int(operations[at + 1])


def excess(moments, rate, burst):
    """By how many more than burst + rate × span were admitted, in that interval between two admissions where it is worst."""
    worst, lowest = -math.inf, math.inf
    for count, moment in enumerate(sorted(moments)):
        lowest = min(lowest, count - rate * moment)
        worst = max(worst, count + 1 - rate * moment - lowest)
    return worst - burst


class Crowd:
    """Tasks that take as much as they get. `moments`: when the store admitted what they got."""

    def __init__(self, limiter):
        self.limiter = limiter
        self.moments = []
        self.last = -1.0  # when the last of them was seen
        self.eras = set()
        self._admitted = {}
        record(limiter._store, self._admitted)

    async def work(self):
        while True:
            with contextlib.suppress(StoreError):
                permit = await self.limiter.acquire()
                (era,) = permit._eras.values()
                self.eras.add(era)
                self.moments.append(self._admitted[era, permit._marks[0]])
                self.last = time.monotonic()
                continue
            await anyio.sleep(0.01)  # it was told that there is an outage: it comes again

    @contextlib.asynccontextmanager
    async def at_work(self, tasks):
        async with anyio.create_task_group() as group:
            for _ in range(tasks):
                group.start_soon(self.work)
            while not self.moments:
                await anyio.sleep(0.01)
            yield
            group.cancel_scope.cancel()

    async def recovered(self, over):
        """Wait for the first grant after the moment `over`; return how long after it that was."""
        while self.last <= over:
            assert time.monotonic() - over < RECOVERY, f"nothing was granted for {RECOVERY:g} s after the fault's end"
            await anyio.sleep(0.005)
        return time.monotonic() - over
