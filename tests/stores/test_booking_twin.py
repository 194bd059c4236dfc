"""Bookings are the same in the script on the server and in Python, number by number."""

from __future__ import annotations

import random

import pytest

from penstock._core import bookings
from penstock._core import operations as codes
from penstock._core.bookings import NEW
from penstock._core.decision import decide
from penstock.limits import calendar, in_flight, per_second, sliding
from penstock.stores import RedisStore
from penstock.stores.contract import Batch, Terms

START = 1_785_000_000_000_000.0


def some_terms(rng, name):
    kinds = [
        lambda: per_second(rng.choice([20, 100, 1000]), burst=rng.randint(1, 20), overdraft=rng.random() < 0.2),
        lambda: calendar(rng.randint(50, 500), rng.choice(["minute", 7.5])),
        lambda: sliding(rng.randint(20, 50), 0.5),
        lambda: in_flight(rng.randint(2, 6), ttl=rng.choice([None, 0.3])),
    ]
    others = [0, 0, 1, 2, 3, 3]
    return Terms(name, {unit: (kinds[0 if unit == "a" else rng.choice(others)](),) for unit in ("a", "b")}, 0.4)


def some_request(rng, limits, known, number, claims):
    """Operations that ask once, as one that was told when to come again does, or as a new one."""
    operations = [
        codes.RANK,
        rng.choice([0.0, 0.0, 1.0, -1.0]),
        rng.choice([0.0, 0.5, 7.0, 40.0]),
        rng.choice([1.0, 3.0, 30.0]),
    ]
    draw = rng.random()
    if draw < claims and known:
        booking = rng.choice(list(known))
        due, charges = known.pop(booking)
        operations += [codes.BOOK, booking, due, rng.choice([0.01, 1e9])]
    else:
        booking = float(1000 * number + rng.randint(0, 99))
        charges = [(limit, float(rng.randint(1, 3))) for limit in rng.sample(range(limits), rng.randint(1, limits))]
        if draw < 0.9:
            operations += [codes.BOOK, booking, NEW, rng.choice([0.5, 1e9, 1e9])]
    operations += [
        codes.ACQUIRE,
        rng.choice([0.0, 0.025, 0.025, 1.0]),
        rng.choice([0.0, 1.0, 1.0]),
        float(len(charges)),
    ]
    early = draw < claims and operations[-3] < operations[6] <= operations[7]  # before its moment
    return operations + [x for pair in charges for x in pair], booking, charges, early


@pytest.mark.parametrize("names", [1, 2])
@pytest.mark.parametrize("which", ["redis", "valkey"])
def test_the_script_books_as_the_ledger_does(which, names, request, prefix):
    """Requests of many ages, flows and shapes that book, claim, pass and drop; more of them than are kept one by
    one."""
    store = RedisStore(request.getfixturevalue(which), prefix=prefix, timeout=30.0)
    counts = dict.fromkeys(("booked", "claimed", "dropped", "early", "several", "in line"), 0)
    for seed in range(6 if which == "valkey" else 3):
        rng = random.Random(seed)
        store._group = lambda name, seed=seed: f"g{seed}"
        terms = [some_terms(rng, f"{names}-{seed}-{i}") for i in range(names)]
        rows, now, known = [None] * names, START, {}
        for number in range(1, 350 if seed % 2 else 80):
            now += rng.choice([0, 1e3, 5e3] if seed % 2 else [0, 1e3, 5e3, 2e4, 2e4, 5e5])
            if rng.random() < 0.02:
                now -= 2e5
            operations, asked = [], []
            for _ in range(rng.choice([1, 2, 4])):
                if rng.random() < 0.5:
                    of = float(2 * rng.randrange(names))
                    operations += [
                        codes.FLOW,
                        float(rng.randint(10, 14)),
                        rng.choice([0.0, 1.0, 2.0]),
                        rng.choice([1.0, 2.0]),
                        of,
                        0.0,
                    ]
                if known and rng.random() < 0.05:
                    booking = rng.choice(list(known))
                    del known[booking]
                    operations += [codes.DROP, booking, float(rng.randrange(2 * names))]
                    counts["dropped"] += 1
                words, booking, charges, early = some_request(rng, 2 * names, known, number, 0.05 if seed % 2 else 0.4)
                operations += words
                asked.append((booking, charges))
                counts["early"] += early
            batch = Batch(terms, operations, 1.0, number, now)
            reply = store.decide_at(batch, now)
            expected = decide(rows, [one.numbers(now) for one in terms], operations, 1.0, now)
            rows = expected.rows
            assert list(reply.verdicts) == pytest.approx(expected.verdicts, rel=1e-9, abs=1e-9), (seed, number)
            assert list(reply.states) == pytest.approx(expected.states, rel=1e-9, abs=1e-9), (seed, number)
            at = 0
            for booking, charges in asked:
                wait = expected.verdicts[at]
                at += 2 if wait < 0 else 1 + len(charges)
                if wait < 0 and expected.verdicts[at - 1] in {codes.BOOKED, codes.IN_LINE}:
                    known[booking] = (-1.0 - wait, charges)
                    counts["in line"] += expected.verdicts[at - 1] == codes.IN_LINE
                    counts["booked"] += 1
                elif wait >= 0:
                    counts["claimed"] += 1
            counts["several"] += len(known) > bookings.MOST
    store.close()
    assert min(counts.values()) > 10, counts
