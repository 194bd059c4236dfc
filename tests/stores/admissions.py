"""When the store admitted each grant, by its own clock: so "never more than promised" is checked to the microsecond.

What a process sees of a grant is late by as much as the machine is busy, and two grants that are seen together need not have been
admitted together. So `record` writes down what the store says, and each grant is looked up by its mark, the bucket's running total.
"""

from __future__ import annotations

import math

from penstock._core import ledger


def record(store, admitted):
    """From now on put the moments of all admissions to the first limit into `admitted`: seconds since 1970, by mark."""
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
                yield reply.verdicts[verdict + 1], reply.now / 1e6 + wait
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
