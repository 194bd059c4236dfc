"""When the store admitted each grant, by its own clock: so "never more than promised" is checked to the microsecond.

What a process sees of a grant is late by as much as the machine is busy, and two grants that are seen together need not
have been admitted together. So `record` writes down what the store says, and each grant is looked up by its charge.
"""

from __future__ import annotations

import contextlib
import math
import time

import anyio

from penstock import StoreError
from penstock._core import operations as codes

SIZES = {
    codes.FLOW: 6, codes.LEAVE: 5, codes.RANK: 4, codes.BOOK: 4, codes.DROP: 3, codes.LOWER: 7, codes.CHARGE: 4
}  # fmt: skip
"""Numbers in operations that grant nothing."""

RECOVERY, BEAT = 1.0, 0.005
"""Seconds from the end of a fault to the next grant, at most; and of one turn of the loop that counts them.

They are counted in naps of a beat and not read off a clock: while a busy machine runs neither the server nor us, no
nap ends, so that what the machine takes is not taken for the library's.
"""

PATIENCE = 20.0
"""Seconds after which a state that does come, sooner or later, is taken for one that never will."""


def record(store, admitted):
    """From now on put the moments of all admissions into `admitted`: seconds since 1970, by `charge_of` the grant."""
    decide = store.decide

    def recording(batch):
        reply = decide(batch)
        if not reply.others:
            admitted.update(admissions_of(batch, reply))
        return reply

    store.decide = recording


def charge_of(granted):
    """What identifies the charge of a permit or request on its first limit: the name, its epoch, the running total."""
    record = granted if hasattr(granted, "epochs") else granted.receipts
    limit_set = record.charges[0][0].limit_set
    return limit_set.name, record.epochs[limit_set], record.receipts[0]


def admissions_of(batch, reply):
    """Each admission that a reply tells of: what tells its charge from all others, and its moment."""
    operations = batch.operations
    rows = [
        (terms.name, epoch)
        for terms, epoch in zip(batch.terms, reply.epochs, strict=True)
        for _ in terms.numbers(reply.now)
    ]
    at = verdict = 0
    while at < len(operations):
        operation = operations[at]
        if operation == codes.ACQUIRE:
            count = int(operations[at + 3])
            wait = reply.verdicts[verdict]
            if wait >= 0:
                yield (*rows[int(operations[at + 4])], reply.verdicts[verdict + 1]), reply.now / 1e6 + wait
                verdict += 1 + count
            else:
                verdict += 2
            at += 4 + 2 * count
        elif operation == codes.SERIES:
            count, runs = map(int, operations[at + 3 : at + 5])
            begin, end = at + 5 + count, at + 5 + count + (1 + count) * runs
            row, left = rows[int(operations[at + 5])], int(sum(operations[begin : end : 1 + count]))
            for run in range(begin, end, 1 + count):
                granted = int(reply.verdicts[verdict])
                first = reply.verdicts[verdict + 1]
                for number in range(granted):
                    yield (*row, first + number * operations[run + 1]), reply.now / 1e6
                verdict += 1 + (count if granted else 0)
                left -= granted
                if granted < operations[run]:
                    break
            for _ in range(left):
                wait = reply.verdicts[verdict]
                if wait >= 0:
                    yield (*row, reply.verdicts[verdict + 1]), reply.now / 1e6 + wait
                verdict += 1 + count if wait >= 0 else 2
            at = end
        elif operation == codes.GIVE_BACK:
            at += 2 + 4 * int(operations[at + 1])
        elif operation in SIZES:
            at += SIZES[operation]
        else:
            assert operation == codes.RENEW, f"operation {operation} says something that is not read here"
            at += 2 + int(operations[at + 1])


def excess(moments, rate, burst):
    """How many more than burst + rate × span were admitted, in the worst interval between two admissions."""
    return excess_of_amounts([(moment, 1) for moment in moments], rate, burst)


def excess_of_amounts(events, rate, burst):
    """The same of events that are (moment in s, amount)."""
    worst = low = -math.inf
    total = 0.0
    for moment, amount in sorted(events):
        low = max(low, rate * moment - total)
        total += amount
        worst = max(worst, total - rate * moment + low)
    return worst - burst


class Crowd:
    """Tasks that take as much as they get. `moments`: when the store admitted what they got."""

    def __init__(self, limiter):
        self.limiter = limiter
        self.moments = []
        self.last = -1.0  # when the last of them was seen
        self.epochs = set()
        self._admitted = {}
        record(limiter.store, self._admitted)

    async def work(self):
        while True:
            with contextlib.suppress(StoreError):
                permit = await self.limiter.acquire()
                charge = charge_of(permit)
                self.epochs.add(charge[1])
                self.moments.append(self._admitted[charge])
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
        await within(RECOVERY, lambda: self.last > over, "a grant after the fault's end")
        return time.monotonic() - over


async def within(seconds, true, what):
    """Wait until that is true, for so many seconds of this process's own, counted in beats."""
    for _ in range(round(seconds / BEAT)):
        if true():
            return
        await anyio.sleep(BEAT)
    assert true(), f"{what}: not within {seconds:g} s"
