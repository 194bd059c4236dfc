"""One limit for more and more processes, and limits for more and more keys: error, fairness and load of the store.

    python benchmarks/scale.py [--picture docs/images/scale.png]        # under 3 minutes on two cores that are idle

The dispatchers, limit sets, queues, terms and decisions are penstock's own; only the threads and the network are not
there: every dispatcher takes its turns in one virtual time, and a call takes 0.5 to 1.5 ms there and back, at random
with a fixed seed. The store is a dict, decided by the real arithmetic at the moment a call arrives.

**Processes** share 1,000 calls a second with a burst of 100. Half of the processes have 2 tasks that always want the
next turn, the others 20, and 40 % of the waiters give up (after 0 to 2 shares' time). "Over" is the worst interval:
what was admitted in it beyond burst + rate × its length. "Used" is of burst + rate × T. A share is what a process got,
by the mean of all.

**Keys** have 10 calls a second each with a burst of 5. Ten processes go through all keys once, 25 at a time each, while
they fight for 20 hot keys with 10 tasks a key. Over and used are those of the hot keys. The rows are what the store
keeps: names, terms and state; an idle key is in no process, and its row leaves the store an hour after it means nothing
any more.

**Urgent**: one process asks ten times less often than the limit grants, and is more urgent than so many batch processes
with 20 tasks each: by its priority, by a flow that has had less, or for small calls (20 of 5,000 tokens a second)
beside large ones (500). Else it is 50 calls a second with a burst of 1.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import random
import resource
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from heapq import heappop, heappush
from pathlib import Path

from _report import table, where

from penstock import Keyed, Limiter, clock, per_second
from penstock._backends.shared.dispatcher import Dispatcher
from penstock._backends.shared.requests import SharedRequest
from penstock._concurrency.parking import Parker
from penstock.stores import Store

_path = Path(__file__).resolve().parent.parent / "tests" / "stores" / "admissions.py"
_spec = importlib.util.spec_from_file_location("penstock_test_admissions", _path)
admissions = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(admissions)

RATE, BURST = 1_000.0, 100.0
PROCESSES = (1, 2, 4, 10, 30, 100, 300, 1_000)
KEYS = (100, 1_000, 10_000, 100_000, 1_000_000)
URGENT = {"priority": (1, 8, 64, 256, 1_000), "flow": (1, 8, 64), "small": (1, 8, 64)}
HOT_RATE, HOT_BURST, HOT = 10.0, 5.0, 20
SLOW, LARGE = (
    (50.0, 1.0, 1.0, 1.0),
    (5_000.0, 500.0, 500.0, 20.0),
)  # rate, burst, cost of a batch call and of an urgent one
UNDER_WAY = 25  # keys of the sweep that a process has under way at a time


class World:
    """The virtual time, and what is to happen in it."""

    def __init__(self, seed=1):
        self.now = 1_000.0
        self.random = random.Random(seed)
        self._coming = []
        self._count = 0
        clock.now = lambda: self.now
        clock.wall = lambda: 1_785_000_000.0 + self.now

    def at(self, moment, what):
        self._count += 1
        heappush(self._coming, (moment, self._count, what))

    def run(self, until=math.inf):
        while self._coming and self._coming[0][0] <= until:
            self.now, _, what = heappop(self._coming)
            what()


class Rows(Store):
    """One process' view of a dict that all share."""

    batch = 128  # as RedisStore
    hears = True  # nobody pauses or reconfigures here

    def __init__(self, world, rows):
        super().__init__()
        self.rows = rows
        self.dispatcher = OnVirtualTime(self, world)

    def exchange(self, names, decide):
        rows = self.rows  # terms and state in one piece of bytes: the garbage collector leaves a dict of those alone
        read = [rows[name].partition(b"\n") if name in rows else None for name in names]
        new = decide([row and (row[0].decode(), row[2]) for row in read], float(int(clock.wall() * 1e6)))
        for name, row in zip(names, new, strict=True):
            if row:
                (terms, state), _ = row
                rows[name] = b"%b\n%b" % (terms.encode(), state)


class OnVirtualTime(Dispatcher):
    """The dispatcher of one process, with turns in the place of a thread."""

    def __init__(self, store, world):
        super().__init__(store)
        self._world = world
        self._asked, self._messages = [], []
        self._away = False  # a batch is on its way
        self._turn_at = math.inf

    def ask(self, request):
        self._asked.append(request)
        self._turn_soon(self._world.now)

    def post(self, message):
        self._messages.append(message)
        self._turn_soon(self._world.now)

    def _turn_soon(self, moment):
        if not self._away and moment < self._turn_at:
            self._turn_at = moment
            self._world.at(moment, partial(self._turn, moment))

    def _turn(self, moment):
        if self._away or moment != self._turn_at:
            return  # another came first
        self._turn_at = math.inf
        asked, messages, self._asked, self._messages = self._asked, self._messages, [], []
        changes, batch = self.decide(asked, messages, clock.now())
        assert not changes, "nobody reconfigures here"
        self._wake()
        if batch is None:
            idle = self.scheduler.idle(clock.now())
            if idle is not None:
                self._turn_soon(self._world.now + max(idle, 1e-5))
            return
        self._away = True
        packed = self.pack(batch)
        self._world.at(self._world.now + self._latency(), partial(self._arrive, batch, packed))

    def _arrive(self, batch, packed):
        reply = self.store.decide(packed)
        self._world.at(self._world.now + self._latency(), partial(self._come_back, batch, reply))

    def _come_back(self, batch, reply):
        self.apply(batch, reply, clock.now())
        self._wake()
        self._away = False
        self._turn_soon(self._world.now)

    def _latency(self):
        return self._world.random.uniform(0.25e-3, 0.75e-3)


class Woken(Parker):
    """Calls a function instead of waking a task."""

    __slots__ = ("_world", "call")

    def __init__(self, world, call):
        self.home = self._world = world
        self.call = call

    def rearm(self):
        pass

    def wake(self):
        self._world.at(self._world.now, self.call)
        return True


class Task:
    """Wants one turn after another. `give_up`: which part of its waits it leaves early, and after how long at most.
    `who`: its priority or flow."""

    def __init__(self, world, limiter, granted, give_up=(0.0, 0.0), cost=None, **who):
        self.world, self.limiter, self.granted, self.who = world, limiter, granted, who
        self.impatient, self.patience = give_up
        self.request = None
        self.backend = limiter._backend
        self.binding = self.backend.bind(limiter._info, cost or {})
        self.again()

    def again(self):
        request = SharedRequest(self.binding, Woken(self.world, None), **self.who)
        request.parker.call = partial(self.woken, request)
        self.request = request
        self.backend.enter(request)
        if self.impatient and self.world.random.random() < self.impatient:
            self.world.at(self.world.now + self.world.random.uniform(0, self.patience), partial(self.leave, request))

    def woken(self, request):
        if request is self.request:
            assert request.error is None, request.error
            if self.granted(request):
                self.again()

    def leave(self, request):
        if request is self.request and not request.done:
            self.backend.leave(request)
            self.again()


def with_processes(count):
    """One limit, so many processes."""
    world, rows = World(), {}
    span = 20.0
    shares, moments, dispatchers = [0] * count, [], []
    begin = world.now
    for number in range(count):
        store = Rows(world, rows)
        dispatchers.append(store.dispatcher)
        admitted = {}
        admissions.record(store, admitted)
        limiter = Limiter(requests=per_second(RATE, burst=BURST), name="shared", store=store)

        def granted(request, number=number, admitted=admitted):
            shares[number] += 1
            moments.append(admitted.pop(admissions.charge_of(request)))
            return True

        for _ in range(2 if number % 2 else 20):
            # They come within the first tenth of a second, as processes do not start at the same instant.
            world.at(
                begin + world.random.uniform(0, 0.1), partial(Task, world, limiter, granted, (0.4, 2 * count / RATE))
            )
    world.run(begin + span)
    promised = BURST + RATE * (max(moments) - min(moments))
    mean = sum(shares) / count
    ordered = sorted(share / mean for share in shares)
    calls = sum(dispatcher.calls for dispatcher in dispatchers)
    return {
        "processes": count,
        "seconds": span,
        "grants": len(moments),
        "over": max(0.0, admissions.excess(moments, RATE, BURST)),
        "used": len(moments) / promised,
        "least": ordered[0],
        "p5": ordered[int(0.05 * count)],
        "p95": ordered[min(count - 1, int(0.95 * count))],
        "most": ordered[-1],
        "jain": sum(shares) ** 2 / (count * sum(share * share for share in shares)),
        "calls": calls / len(moments),
        "load": calls / span,
    }


def with_urgent(count, how):
    """So many batch processes, and one that asks now and then and is more urgent."""
    world, rows = World(), {}
    rate, burst, cost, small = SLOW if how != "small" else LARGE
    unit = "tokens" if how == "small" else "requests"
    batch, urgent = ({"flow": "batch"}, {"flow": "interactive"}) if how == "flow" else ({}, {"priority": 10})
    span = max(200.0, 4 * count * cost / rate)
    moments, waits, dispatchers, shares = [], [], [], [0] * count

    def limiter():
        store, admitted = Rows(world, rows), {}
        dispatchers.append(store.dispatcher)
        admissions.record(store, admitted)
        return Limiter({unit: per_second(rate, burst=burst)}, name="shared", store=store), admitted

    begin = world.now
    for number in range(count):
        mine, admitted = limiter()

        def granted(request, number=number, admitted=admitted):
            moments.append((admitted.pop(admissions.charge_of(request)), cost))
            shares[number] += 1
            return True

        for _ in range(20):
            world.at(
                begin + world.random.uniform(0, 0.1), partial(Task, world, mine, granted, cost={unit: cost}, **batch)
            )
    mine, admitted = limiter()

    def answered(request):
        moments.append((admitted.pop(admissions.charge_of(request)), small))
        waits.append(world.now - request.arrived)
        world.at(world.now + world.random.expovariate(0.1 * rate / cost), ask)
        return False

    def ask():
        Task(world, mine, answered, cost={unit: small}, **urgent)

    world.at(begin + 2.0, ask)
    world.run(begin + span)
    promised = burst + rate * (max(moments)[0] - min(moments)[0])
    waits.sort()
    calls = sum(dispatcher.calls for dispatcher in dispatchers)
    return {
        "processes": count,
        "how": how,
        "grant": cost / rate,
        "waits": len(waits),
        "p50": waits[len(waits) // 2],
        "p90": waits[int(0.9 * len(waits))],
        "most": waits[-1],
        "used": sum(amount for _, amount in moments) / promised,
        "over": max(0.0, admissions.excess_of_amounts(moments, rate, burst)),
        "calls": calls / len(moments),
        "least": min(shares) / (sum(shares) / count),
    }


def with_keys(count):
    """So many keys, ten processes."""
    begin_mb = resident()
    world, rows = World(), {}
    fights = [[] for _ in range(HOT)]  # the moments of each hot key
    dispatchers, keyeds = [], []
    subqueues = touched = most_alive = 0
    begin = world.now

    def sweep(keyed, keys, admitted):
        """What takes the next key of that process as soon as the last one is granted."""

        def touch(request=None):
            nonlocal subqueues, touched, most_alive
            if request is not None:
                admitted.pop(admissions.charge_of(request))
                touched += 1
                if touched % 1_000 == 0:
                    most_alive = max(most_alive, *map(len, keyeds))
            key = next(keys, None)
            if key is None:
                subqueues -= 1
            else:
                Task(world, keyed[key], touch)
            return False

        return touch

    for number in range(10):
        store = Rows(world, rows)
        dispatchers.append(store.dispatcher)
        admitted = {}
        admissions.record(store, admitted)
        keyed = Keyed(requests=per_second(HOT_RATE, burst=HOT_BURST), name="key", store=store)
        keyeds.append(keyed)

        def fought(request, moments, admitted=admitted):
            moments.append(admitted.pop(admissions.charge_of(request)))
            return True

        for key, moments in enumerate(fights):
            for _ in range(10):
                granted = partial(fought, moments=moments)
                world.at(begin + world.random.uniform(0, 0.1), partial(Task, world, keyed[f"hot {key}"], granted))
        touch = sweep(keyed, iter(range(number, count, 10)), admitted)
        for _ in range(UNDER_WAY):
            subqueues += 1
            world.at(begin + world.random.uniform(0, 0.1), touch)
    until = begin + 10.0
    world.run(until)
    while subqueues:
        until += 1.0
        world.run(until)
    assert touched == count
    used = [len(moments) / (HOT_BURST + HOT_RATE * (moments[-1] - moments[0])) for moments in map(sorted, fights)]
    grants = touched + sum(map(len, fights))
    return {
        "keys": count,
        "grants": grants,
        "over": max(0.0, *(admissions.excess(moments, HOT_RATE, HOT_BURST) for moments in fights)),
        "used": sum(used) / HOT,
        "used least": min(used),
        "calls": sum(dispatcher.calls for dispatcher in dispatchers) / grants,
        "alive": most_alive,
        "mb": resident() - begin_mb,
    }


def resident():
    """The most memory that this process ever had, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 / (1024 if sys.platform == "darwin" else 1)


def in_a_process_of_its_own(what, count, *how):
    """So that memory is that of one simulation, and two run at a time."""
    begin = time.perf_counter()
    command = [sys.executable, __file__, "--one", what, str(count), *how]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return {**json.loads(done.stdout), "took": time.perf_counter() - begin}


def picture(path, processes, keys, urgent):
    """Draw all tables."""
    import matplotlib as mpl

    mpl.use("svg" if path.suffix == ".svg" else "agg")
    from matplotlib import pyplot as plt

    figure, ((error, fairness), (load, waits)) = plt.subplots(2, 2, figsize=(9.6, 7.2), layout="constrained")
    counts = [row["processes"] for row in processes]
    error.semilogx(counts, [100 * row["used"] for row in processes], "o-", label="used, % of burst + rate × T")
    error.semilogx(counts, [100 * row["over"] / BURST for row in processes], "s-", label="over, % of the burst")
    error.set(title="Error", xlabel="processes", ylim=(-5, 109))
    error.legend(loc="center right", fontsize=8)
    fairness.fill_between(
        counts, [r["least"] for r in processes], [r["most"] for r in processes], alpha=0.2, label="least to most"
    )
    fairness.fill_between(
        counts, [r["p5"] for r in processes], [r["p95"] for r in processes], alpha=0.4, label="5 % to 95 %"
    )
    fairness.axhline(1.0, color="black", linewidth=0.8)
    fairness.set(title="Fairness", xlabel="processes", ylabel="share of a process / mean", xscale="log", ylim=(0, 2))
    fairness.legend(fontsize=8)
    load.semilogx(counts, [row["calls"] for row in processes], "o-", label="by processes that share a limit")
    load.semilogx([row["keys"] for row in keys], [row["calls"] for row in keys], "s-", label="by keys, 10 processes")
    load.set(title="Load of the store", xlabel="processes, keys", ylabel="calls per grant", ylim=(0, None))
    load.legend(fontsize=8)
    for how, mark in zip(URGENT, "os^", strict=True):
        rows = [row for row in urgent if row["how"] == how]
        waits.semilogx([row["processes"] for row in rows], [1e3 * row["p50"] for row in rows], f"{mark}-", label=how)
    rows = [row for row in urgent if row["how"] == "priority"]
    waits.semilogx(
        [row["processes"] for row in rows], [1e3 * row["p90"] for row in rows], "o:", label="priority, 9 of 10"
    )
    waits.axhline(1e3 * rows[0]["grant"], color="black", linewidth=0.8, label="one grant")
    waits.set(title="Wait of an urgent call", xlabel="batch processes", ylabel="ms", ylim=(0, 100))
    waits.legend(fontsize=8)
    figure.savefig(path, dpi=110)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--picture", type=Path, help="draw it there, which needs matplotlib")
    parser.add_argument("--one", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        what, count, *how = options.one
        print(
            json.dumps({"processes": with_processes, "keys": with_keys, "urgent": with_urgent}[what](int(count), *how))
        )
        return
    begin = time.perf_counter()
    where()
    with ThreadPoolExecutor(2) as two:  # the long ones first
        keys = [two.submit(in_a_process_of_its_own, "keys", count) for count in reversed(KEYS)]
        processes = [two.submit(in_a_process_of_its_own, "processes", count) for count in reversed(PROCESSES)]
        urgent = [
            two.submit(in_a_process_of_its_own, "urgent", count, how)
            for how, counts in URGENT.items()
            for count in counts
        ]
    keys, processes = [one.result() for one in reversed(keys)], [one.result() for one in reversed(processes)]
    urgent = [one.result() for one in urgent]
    table(
        [
            "processes", "virtual s", "grants", "over", "used", "share: least", "5 %", "95 %", "most", "Jain's index",
            "calls/grant", "calls/s",
        ],
        [
            [
                f"{row['processes']:,}", f"{row['seconds']:g}", f"{row['grants']:,}", f"{row['over']:.3f}",
                f"{row['used']:.2%}", *(f"{row[name]:.2f}" for name in ("least", "p5", "p95", "most")),
                f"{row['jain']:.4f}", f"{row['calls']:.2f}", f"{row['load']:,.0f}",
            ]
            for row in processes
        ],
    )  # fmt: skip
    table(
        [
            "keys", "grants", "over", "used", "used, least key", "calls/grant", "limiters alive in a process",
            "memory, MB", "bytes a key",
        ],
        [
            [
                f"{row['keys']:,}", f"{row['grants']:,}", f"{row['over']:.3f}", f"{row['used']:.2%}",
                f"{row['used least']:.2%}", f"{row['calls']:.3f}", row["alive"], f"{row['mb']:.0f}",
                f"{2**20 * row['mb'] / row['keys']:,.0f}" if row["keys"] >= 100_000 else "",
            ]
            for row in keys
        ],
    )  # fmt: skip
    table(
        [
            "urgent by", "batch processes", "waits", "p50, ms", "p90, ms", "most, ms", "one grant, ms", "used", "over",
            "calls/grant",
        ],
        [
            [
                row["how"], f"{row['processes']:,}", row["waits"],
                *(f"{1e3 * row[name]:.0f}" for name in ("p50", "p90", "most", "grant")), f"{row['used']:.2%}",
                f"{row['over']:.3f}", f"{row['calls']:.2f}",
            ]
            for row in urgent
        ],
    )  # fmt: skip
    if options.picture:
        picture(options.picture, processes, keys, urgent)
        print(f"Drawn: {options.picture}")
    print(f"{time.perf_counter() - begin:.0f} s for everything.")


if __name__ == "__main__":
    main()
