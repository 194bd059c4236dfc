"""The script on the server and the arithmetic in Python are the same, number by number."""

from __future__ import annotations

import hashlib
import itertools
import random
import struct
import time

import pytest

from penstock._core import operations as codes
from penstock._core.decision import decide
from penstock._core.rows import RENEWED, WINDOW
from penstock.limits import calendar, in_flight, per_second, sliding
from penstock.stores import RedisStore
from penstock.stores.contract import Batch, Terms

START = 1_785_000_000_000_000.0


def some_terms(rng, name):
    kinds = [
        lambda: per_second(rng.choice([1, 3.7, 1000]), burst=rng.randint(5, 60), overdraft=rng.random() < 0.3),
        lambda: calendar(rng.randint(5, 60), rng.choice(["minute", "hour", 7.5])),
        lambda: sliding(rng.randint(5, 300), rng.choice([0.5, 30])),
        lambda: in_flight(rng.randint(2, 9), ttl=rng.choice([None, 2.5])),
    ]
    limits = {}
    for unit in ("a", "b", "c")[: rng.randint(1, 3)]:
        limits[unit] = (rng.choice([kinds[0], *kinds])(),)
    return Terms(name, limits, 10.0)


def receipts_of_series(runs, verdicts, at):
    """(limit, amount, receipt) of what was granted of a series whose verdicts begin at this index, and the index behind."""
    receipts, left = [], [each for times, each in runs for _ in range(times)]
    for times, each in runs:
        granted = int(verdicts[at])
        at += 1
        if granted:
            for number in range(granted):
                receipts += [(one, amount, verdicts[at + i] + number * amount) for i, (one, amount) in enumerate(each)]
            at += len(each)
            del left[:granted]
        if granted < times:
            break
    for each in left:
        wait = verdicts[at]
        if wait >= 0:
            receipts += [(one, amount, verdicts[at + 1 + i]) for i, (one, amount) in enumerate(each)]
        at += 1 + len(each) if wait >= 0 else 2
    return receipts, at


@pytest.mark.parametrize("which", ["redis", "valkey"])
@pytest.mark.parametrize("lost", ["full", "empty"])
def test_the_script_decides_as_the_ledger_does(which, lost, request, prefix):
    """Thousands of random operations over random limits, with a clock that also stands still and steps back."""
    store = RedisStore(request.getfixturevalue(which), prefix=prefix, on_state_loss=lost, timeout=30.0)
    operations_done = 0
    for seed in range(40):
        rng = random.Random(seed)
        store._group = lambda name, seed=seed: f"g{seed}"
        terms = [some_terms(rng, f"{seed}-{i}") for i in range(rng.choice([1, 1, 2]))]
        flat = [kind for one in terms for kind in one.numbers(START)]
        rows = [None] * len(terms)
        now, number = START, 0
        receipts = []  # limit, amount, epoch, receipt, owner
        for _ in range(25):
            now += rng.choice([0, 0, 1, 1e3, 1e5, 1e6, 3e6, 7e7])
            if rng.random() < 0.03:
                now -= 5e6
            owner, number = float(rng.choice([1, 2])), number + 1
            operations, asked = [], []
            for _ in range(rng.choice([1, 1, 3])):
                draw = rng.random()
                limit = rng.randrange(len(flat))
                if draw < 0.55:
                    chosen = rng.sample(range(len(flat)), rng.randint(1, len(flat)))
                    charges = [
                        (one, rng.randint(1, max(1, int(flat[one][1]) // rng.choice([1, 3])) if flat[one][0] else 9))
                        for one in chosen
                    ]
                    terms_of_it = [rng.choice([0, 0.02, 5, 1e9]), rng.choice([0, 1]), len(charges)]
                    if rng.random() < 0.5:
                        operations += [codes.ACQUIRE, *terms_of_it, *(x for pair in charges for x in pair)]
                        asked.append(("acquire", charges))
                    else:
                        runs = [
                            (rng.choice([1, 1, 2, 30]), [(one, rng.randint(1, amount)) for one, amount in charges])
                            for _ in range(rng.randint(1, 5))
                        ]
                        operations += [codes.SERIES, *terms_of_it, len(runs), *(one for one, _ in charges)]
                        operations += [x for times, each in runs for x in (times, *(amount for _, amount in each))]
                        asked.append(("series", runs))
                elif draw < 0.75 and receipts:
                    one = receipts.pop(rng.randrange(len(receipts)))
                    owner = one[4]
                    operations += [codes.GIVE_BACK, 1, one[0], rng.randint(1, one[1]), one[2], one[3]]
                elif draw < 0.85:
                    amount = rng.randint(1, 9)
                    operations += [codes.CHARGE, 1, limit, amount]
                    asked.append(("charge", [(limit, amount)]))
                elif draw < 0.87:
                    operations += [codes.RESUME, 1, limit]
                elif draw < 0.9:
                    operations += [codes.PAUSE, rng.choice([0.1, 4]), 1, limit]
                elif draw < 0.95:
                    receipt = receipts[-1] if receipts and receipts[-1][0] == limit else (limit, 0, -1.0, -1.0)
                    operations += [codes.LOWER, 1, limit, rng.randint(0, 5), rng.random(), receipt[2], receipt[3]]
                elif flat[limit][0] == WINDOW and flat[limit][3] == RENEWED:
                    operations += [codes.RENEW, 1, limit]
            batch = Batch(terms, [float(x) for x in operations], owner, number, now)
            reply = store.decide_at(batch, now)
            born = now if lost == "empty" else -1.0
            expected = decide(rows, [one.numbers(now) for one in terms], batch.operations, owner, now, born)
            rows = expected.rows
            assert reply.now == now
            assert list(reply.epochs) == expected.epochs
            assert list(reply.verdicts) == pytest.approx(expected.verdicts, rel=1e-12, abs=1e-12), (seed, number)
            assert list(reply.states) == pytest.approx(expected.states, rel=1e-12, abs=1e-9), (seed, number)
            operations_done += len(operations)
            at, epochs = 0, [epoch for epoch, one in zip(expected.epochs, terms, strict=True) for _ in one.numbers(now)]
            for kind, charges in asked:
                if kind == "series":
                    charged, at = receipts_of_series(charges, expected.verdicts, at)
                    receipts += [(limit, amount, epochs[limit], receipt, owner) for limit, amount, receipt in charged]
                    continue
                if kind == "acquire":
                    granted = expected.verdicts[at] >= 0
                    at += 1
                    if not granted:
                        at += 1
                        continue
                for limit, amount in charges:
                    receipts.append((limit, amount, epochs[limit], expected.verdicts[at], owner))
                    at += 1
    assert operations_done > 5_000
    store.close()


@pytest.mark.parametrize("kind", [per_second(1e-3, burst=20), sliding(20, 60), in_flight(20), in_flight(20, ttl=60)])
def test_what_was_charged_before_another_kind_of_limit_stays_charged(valkey, prefix, kind):
    """Whatever was charged since, on the limit that is the same again."""
    store = RedisStore(valkey, prefix=prefix, timeout=30.0)
    terms, day = [Terms("x", {"requests": (limit,)}, 60.0) for limit in (kind, calendar(20, "day"))]
    numbers = itertools.count(1)

    def ask(limits, *operations):
        return store.decide(Batch([limits], [float(x) for x in operations], 7.0, next(numbers), time.time() * 1e6))

    before = ask(terms, codes.CHARGE, 1, 0, 8)
    for limits, amount in ((day, 0), (terms, 9)):
        store.change(limits)
        since = ask(limits, codes.CHARGE, 1, 0, amount)
    after = ask(terms, codes.GIVE_BACK, 1, 0, 8, before.epochs[0], before.verdicts[0])
    assert after.states[1] == pytest.approx(since.states[1], abs=0.1)
    store.close()


def test_a_batch_that_is_sent_again_is_decided_once(valkey, prefix):
    """The second answer is the first one, to the last bit, and nothing is charged again."""
    store = RedisStore(valkey, prefix=prefix, timeout=30.0)
    terms = Terms("x", {"requests": (per_second(1e-3, burst=10),)}, 60.0)
    batch = Batch([terms], [codes.ACQUIRE, 0.0, 1.0, 1.0, 0.0, 4.0], 5.0, 1, START)
    first = store.decide(batch)
    assert store.decide(batch) == first
    batch.number = 2
    assert store.decide(batch).states[1] == pytest.approx(8, abs=0.01)
    store.close()


def test_a_server_that_forgot_its_scripts_is_given_them_again(valkey, prefix):
    store = RedisStore(valkey, prefix=prefix, timeout=30.0)
    terms = Terms("x", {"requests": (per_second(1e-3, burst=10),)}, 60.0)
    for number in range(1, 4):
        reply = store.decide(Batch([terms], [codes.ACQUIRE, 0.0, 1.0, 1.0, 0.0, 4.0], 5.0, number, START))
        store._client.script_flush()
    assert [number < 0 for number in reply.verdicts] == [True, False]
    store.close()


def test_idle_keys_vanish(valkey, prefix):
    """An hour after they mean nothing any more."""
    store = RedisStore(valkey, prefix=prefix, timeout=30.0)
    terms = Terms("x", {"requests": (per_second(1, burst=100),)}, 60.0)
    store.decide(Batch([terms], [codes.ACQUIRE, 0.0, 1.0, 1.0, 0.0, 50.0], 5.0, 1, START))
    assert 3600 + 49 <= store._client.ttl(store._key("x")) <= 3600 + 51
    store.close()


def test_the_numbers_of_a_row_are_doubles(valkey, prefix):
    """Nothing is ever formatted, so nothing is rounded."""
    store = RedisStore(valkey, prefix=prefix, timeout=30.0)
    terms = Terms("x", {"requests": (per_second(1e9, burst=2**53),)}, 60.0)
    amount = float(2**53 - 1)
    store.decide(Batch([terms], [codes.ACQUIRE, 0.0, 1.0, 1.0, 0.0, amount], 5.0, 1, START))
    row = store._client.hget(store._key("x"), "r")[:-16]
    assert struct.unpack(f">{len(row) // 8}d", row)[4] == amount
    store.close()


@pytest.mark.parametrize("which", ["redis", "valkey"])
def test_of_a_run_of_fractions_just_as_many_go_at_once(which, request, prefix):
    """Where a sum of fractions just fits, or just does not, one unit in the last place decides."""
    store = RedisStore(request.getfixturevalue(which), prefix=prefix, timeout=30.0)
    rng, rows = random.Random(7), [None]
    terms = [Terms("fractions", {"a": (per_second(0.7, burst=9),), "b": (per_second(3.1, burst=2.1),)}, 10.0)]
    now, partly = START, 0
    for number in range(1, 400):
        now += rng.choice([0, 1, 1e5, 3e6])
        runs = [
            (float(rng.randint(1, 90)), rng.choice([0.1, 0.3, 1 / 3, 0.7]), rng.choice([0.1, 0.07, 0.0]))
            for _ in range(rng.choice([1, 2, 6]))
        ]
        series = [codes.SERIES, 0.0, 0.0, 2.0, float(len(runs)), 0.0, 1.0, *(x for run in runs for x in run)]
        reply = store.decide_at(Batch(terms, series, 1.0, number, now), now)
        expected = decide(rows, [one.numbers(now) for one in terms], series, 1.0, now)
        rows = expected.rows
        assert len(reply.verdicts) == len(expected.verdicts)
        assert list(reply.verdicts) == pytest.approx(expected.verdicts, rel=1e-12, abs=1e-12)
        partly += 0 < expected.verdicts[0] < runs[0][0]
    assert partly > 30
    store.close()


def a_batch(rng, width, owner):
    """What most batches are, and some that differ from that by one thing."""
    flow = [codes.FLOW, owner, rng.choice([0] * 40 + [7]), rng.choice([1, 2]), rng.randrange(width), 0]
    chosen = rng.sample(range(width), rng.randint(1, width))
    runs = [(rng.choice([1, 2, 30]), *(rng.choice([0.1, 1, 5]) for _ in chosen)) for _ in range(rng.choice([1, 1, 3]))]
    series = [codes.SERIES, 0.02, 1, len(chosen), len(runs), *chosen, *(x for run in runs for x in run)]
    before = rng.choice([[]] * 30 + [[codes.PAUSE, 0.5, 1, 0], [codes.CHARGE, 1, 0, 2.0]])
    after = rng.choice(
        [[]] * 30 + [[codes.RESUME, 1, 0], [codes.ACQUIRE, 0.02, 1, 1, 0, 9.0], series] + [[*flow[:5], 0.5]] * 5
    )
    return [float(x) for x in (*before, *flow, *series, *after)]


def changed(script, old, new):
    assert old in script.text
    script.text = script.text.replace(old, new)
    script.sha = hashlib.sha1(script.text.encode()).hexdigest()


@pytest.mark.parametrize(("which", "lost"), [("redis", "empty"), ("valkey", "full")])
def test_what_is_decided_plainly_is_decided_as_everything_else(which, lost, request, prefix):
    """The same answers and rows, to the last bit, as by the script that lacks the short way."""
    url = request.getfixturevalue(which)
    stores = [RedisStore(url, prefix=f"{prefix}{one}", on_state_loss=lost, timeout=30.0) for one in ("short", "long")]
    plainly = "if plainly then return"
    changed(stores[0]._decide, plainly, "if plainly then redis.call('INCR', 'count of ' .. KEYS[2]) return")
    changed(stores[1]._decide, "= decide_plainly()", "= nil")
    went_plainly = 0
    for seed in range(30):
        rng = random.Random(seed)
        kinds = [per_second(rng.choice([1, 3.7, 1000]), burst=rng.choice([90, 4000])) for _ in range(rng.randint(1, 3))]
        if rng.random() < 0.2:
            kinds[0] = rng.choice([sliding(900, 30), in_flight(900), per_second(3, burst=400, overdraft=True)])
        terms = [Terms(f"{seed}", {f"unit{i}": (kind,) for i, kind in enumerate(kinds)}, 10.0)]
        now = START
        for number in range(1, 40):
            now += rng.choice([0, 1, 1e3, 1e5, 1e6, 7e7, -1e6])
            owner = rng.choice([1.0] * 40 + [2.0])
            batch = Batch(terms, a_batch(rng, len(kinds), owner), owner, number, now)
            short, long = (store.decide_at(batch, now) for store in stores)
            assert short == long, (seed, number)
            rows = [store._client.hget(store._key(terms[0].name), "r")[:-16] for store in stores]
            assert rows[0] == rows[1], (seed, number)
        lives = [store._client.ttl(store._key(terms[0].name)) for store in stores]
        assert abs(lives[0] - lives[1]) < 60  # seconds, of hours: one was written later
        went_plainly += int(stores[0]._client.get(f"count of {stores[0]._key(terms[0].name)}") or 0)
    assert 200 < went_plainly < 1_000
    for store in stores:
        store.close()
