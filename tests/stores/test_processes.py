"""Several processes on one limit, while one after another is killed. PENSTOCK_SOAK=10 makes them run ten seconds."""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from penstock import Limiter, Rate, RateLimited
from penstock.errors import Unreachable
from penstock.stores import RedisStore, SQLiteStore
from tests.stores.admissions import excess
from tests.stores.busy import BUSY

SECONDS = float(os.environ.get("PENSTOCK_SOAK", "3"))
WORKER = str(Path(__file__).with_name("worker.py"))


class Crew:
    """Worker processes, and of all their grants the moments at which the store admitted them, and at which they were
    seen."""

    def __init__(self, **plan):
        self.plan = plan
        self.grants = []
        self.calls = 0
        self.of_the_counted = 0
        self._threads = []

    def hire(self, seconds, seed):
        process = subprocess.Popen(
            [sys.executable, WORKER, json.dumps({**self.plan, "seconds": seconds, "seed": seed})],
            stdout=subprocess.PIPE,
            text=True,
        )
        reader = threading.Thread(target=self._read, args=(process,))
        reader.start()
        self._threads.append(reader)
        return process

    def _read(self, process):
        for line in process.stdout:
            if line.startswith("calls"):
                _, calls, granted = line.split()
                self.calls += int(calls)
                self.of_the_counted += int(granted)
            elif line.endswith("\n"):
                admitted, seen = line.split()
                self.grants.append((float(admitted), float(seen)))
        process.wait()
        process.stdout.close()

    def wait(self):
        for thread in self._threads:
            thread.join()
        self.grants.sort()


@pytest.fixture(params=["sqlite", "valkey"])
def store(request, tmp_path, prefix):
    return (
        ["sqlite", str(tmp_path / "x.db")]
        if request.param == "sqlite"
        else ["redis", request.getfixturevalue("valkey"), prefix]
    )


@pytest.mark.throughput
def test_four_processes_that_are_killed_use_all_of_the_quota_and_never_more(store):
    """40 % of the waiters give up, and every second one process dies by SIGKILL and another begins.

    What a dying process takes with it is what it had reserved: one turn a kill, as measured. The burst is what a
    machine may stall all four (0.25 s) without losing anything, since what flows in meanwhile is kept.
    """
    rate, burst = 200, 50
    crew = Crew(store=store, limits={"requests": [rate, 1, burst]}, waiters=25, give_up=0.4)
    processes = [crew.hire(SECONDS + 1, seed) for seed in range(4)]
    begin = time.monotonic()
    while not crew.grants:
        time.sleep(0.01)
        assert time.monotonic() - begin < 20, BUSY
    end = time.monotonic() + SECONDS
    killed = 0
    while end - time.monotonic() > 1.0:
        time.sleep(1.0)
        processes[killed % 4].kill()
        killed += 1
        processes[(killed - 1) % 4] = crew.hire(end - time.monotonic() + 1, 10 + killed)
    time.sleep(max(0.0, end - time.monotonic()))
    for process in processes:
        process.kill()
    crew.wait()
    moments = [admitted for admitted, _ in crew.grants]
    promised = burst + rate * (moments[-1] - moments[0])
    print(f"{len(moments)} of {promised:.1f} granted, {killed} killed")  # noqa: T201 - `-rP` shows it
    assert killed >= 2, BUSY
    assert excess(moments, rate, burst) <= 0.01
    assert all(seen >= admitted - 0.001 for admitted, seen in crew.grants)
    assert len(moments) >= 0.97 * promised, BUSY


@pytest.mark.throughput
def test_one_process_that_saturates_a_limit_asks_rarely(store):
    """At most one call for ten grants."""
    crew = Crew(store=store, limits={"requests": [2000, 1, 50]}, waiters=50, give_up=0.0)
    crew.hire(1.0, 1)
    crew.wait()
    print(f"{crew.calls} calls for {crew.of_the_counted} grants")  # noqa: T201 - `-rP` shows it
    assert crew.of_the_counted > 500, BUSY
    assert crew.calls <= 0.1 * crew.of_the_counted, BUSY


@pytest.mark.throughput
def test_four_processes_that_share_a_slow_limit_ask_about_once_a_grant(store):
    """Not again and again until it is their turn."""
    crew = Crew(store=store, limits={"requests": [40, 1, 1]}, waiters=10, give_up=0.0)
    for seed in range(4):
        crew.hire(SECONDS / 2, seed)
    crew.wait()
    print(f"{crew.calls} calls for {crew.of_the_counted} grants")  # noqa: T201 - `-rP` shows it
    assert crew.of_the_counted > 30, BUSY
    assert crew.calls <= 1.2 * crew.of_the_counted, BUSY


FORK = """
import os, sys
from penstock import Limiter, RateLimited, per_second
from penstock.stores import RedisStore, SQLiteStore

store = SQLiteStore(sys.argv[2]) if sys.argv[1] == "sqlite" else RedisStore(sys.argv[2], prefix=sys.argv[3])
limiter = Limiter(requests=per_second(0.001, burst=10), name="x", store=store)
with limiter:
    pass
child = os.fork()
for _ in range(3):
    with limiter:
        pass
store.close()
if child == 0:
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
for _ in range(3):
    with limiter:
        pass
try:
    with limiter(max_wait=0):
        print("eleven of ten")
except RateLimited:
    print("ten")
"""


def test_a_child_of_a_fork_begins_anew(store):
    """Thread and connection are the parent's; the limit is one."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORK, *store], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stdout == "ten\n", done.stderr


@pytest.mark.parametrize("kind", ["sqlite", "redis"])
def test_processes_that_seed_random_alike_are_not_one_process_to_the_store(kind, tmp_path, request, prefix):
    """As each rank of a training run does. Each heard what the other was answered, and 20 calls went where 10 may."""
    limiters, granted = [], 0
    for _ in range(2):  # each store has its own dispatcher, as in a process of its own
        random.seed(42)
        if kind == "redis":
            store = RedisStore(request.getfixturevalue("valkey"), prefix=prefix)
        else:
            store = SQLiteStore(tmp_path / "state.db")
        limiters.append(Limiter(requests=Rate(0.001, 1, 10), name="openai", store=store))
    for limiter in limiters * 10:
        with contextlib.suppress(RateLimited), limiter(max_wait=0):
            granted += 1
    assert granted == 10
    for limiter in limiters:
        limiter.store.close()


def test_what_a_program_draws_of_random_does_not_depend_on_a_store_that_is_looked_for():
    store = RedisStore("redis://127.0.0.1:1/0", patience=0.1)
    random.seed(42)
    before = random.getstate()
    limiter = Limiter(requests="5/s", name="openai", store=store)
    with pytest.raises(Unreachable), limiter(max_wait=1):
        pass
    assert random.getstate() == before
    store.close()
