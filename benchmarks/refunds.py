"""How much of an overcharge comes back, by four safe rules.

1,000 tokens a second. A call is charged 100, and 30 is what it took; that is known when its answer is there. As many
calls at once as use up the rate. Time is the bucket's, so that nothing waits. What could be given back at most, so that
the bucket is never fuller than if the calls had been charged right, is worked out from what it missed before each
charge ("exact"); no real bucket can remember that.

    python benchmarks/refunds.py [--seconds 60]
"""

from __future__ import annotations

import argparse
import random
from heapq import heappop, heappush
from itertools import takewhile

from _report import table, verdict, where

from penstock import Rate
from penstock._core.bucket import Bucket

RATE, CHARGED, TOOK = 1_000, 100, 30


class Exact:
    """The least that was missed since, at any moment, remembered charge by charge."""

    def __init__(self, bucket):
        self.bucket = bucket
        self.before = []

    def charged(self, receipt, missed):
        self.before.append([receipt[0], missed])

    def back(self, amount, receipt, now):
        later = list(takewhile(lambda entry: entry[0] > receipt[0], reversed(self.before)))
        back = max(0.0, min([amount, self.bucket.used(now), *(missed for _, missed in later)]))
        for entry in later:
            entry[1] -= back
        self.bucket.offset += back
        return back


class Ours:
    """What penstock does."""

    def __init__(self, bucket):
        self.bucket = bucket

    def charged(self, receipt, missed):
        pass

    def back(self, amount, receipt, now):
        level = self.bucket.level(now)
        self.bucket.give_back(amount, receipt, now)
        return self.bucket.level(now) - level


class AsRefill(Ours):
    """What is given back of any call counts as refill for all the others: with a sum of all charges, `cum`."""

    def back(self, amount, receipt, now):
        refill = now * self.bucket.rate + self.bucket.offset
        back = max(0.0, min(amount, receipt[0] - refill))
        self.bucket.offset += back
        return back


class ByAge(Ours):
    """What has flowed in since the charge is not given back: max(0, n − rate · age)."""

    def back(self, amount, receipt, now):
        back = max(0.0, min(amount - self.bucket.rate * (now - receipt[1]), self.bucket.used(now)))
        self.bucket.offset += back
        return back


RULES = {"exact": Exact, "penstock": Ours, "as refill": AsRefill, "by age": ByAge}


def given_back(rule, burst, latency, seconds):
    """Tokens."""
    bucket, chance, now, out, total = Bucket(Rate(RATE, 1.0, burst)), random.Random(2), 0.0, [], 0.0
    kept = rule(bucket)
    while now < seconds:
        now += 0.01
        while len(out) < RATE / TOOK * 1.2 * latency:
            missed = bucket.used(now)
            receipt = bucket.charge_if_ready(CHARGED, now)
            if receipt is None:
                break
            kept.charged(receipt, missed)
            heappush(out, (now + latency * chance.lognormvariate(0, 0.5), receipt))
        while out and out[0][0] <= now:
            total += kept.back(CHARGED - TOOK, heappop(out)[1], now)
    return total


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    args = parser.parse_args()
    where()
    rows = []
    for burst in (1_000, 5_000, 60_000):
        for latency in (0.2, 1.0, 5.0, 20.0):
            totals = {name: given_back(rule, burst, latency, args.seconds) for name, rule in RULES.items()}
            rows.append((f"{burst:,}", f"{latency:g}", *(f"{total:,.0f}" for total in totals.values())))
            if (burst, latency) == (60_000, 20.0):
                share = totals["exact"] / totals["penstock"]
    table(("burst", "latency s", *(f"{name}, tokens back" for name in RULES)), rows)
    verdict("what could be given back against what penstock gives back, burst 60,000, answers after 20 s", share, 1.15)


if __name__ == "__main__":
    main()
