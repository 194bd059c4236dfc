"""Shared stores: grants a second, and how long one grant takes, beside what a user would write instead.

    python benchmarks/stores.py                         # the table: 1, 50 and 500 tasks, 1, 2 and 4 processes
    python benchmarks/stores.py --seconds 3 --only sqlite,valkey,evalsha --tasks 50 --processes 1

Every row is a limit that is never reached, so what is measured is the way there and back. Nothing is a comparison of
algorithms: each library is asked for one grant at a time, the way its users ask, and penstock packs what its tasks ask at
the same moment into one call. "evalsha" is redis-py sending penstock's own script once per grant. The servers are started here, on
free ports; `PENSTOCK_TEST_REDIS_URL` names another.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import itertools
import json
import os
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

_spec = importlib.util.spec_from_file_location(
    "penstock_test_servers", Path(__file__).resolve().parent.parent / "tests" / "stores" / "servers.py"
)
servers = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(servers)

PLENTY = 10**9
ROWS = ("sqlite", "valkey", "redis", "evalsha", "limits", "throttled", "pyrate", "pyrate-sqlite")


def penstock_limiter(store):
    from penstock import Limiter, per_second

    limiter = Limiter(requests=per_second(PLENTY), tokens=per_second(PLENTY), name="bench", store=store)

    async def grant():
        async with limiter(tokens=5):
            pass

    return grant, lambda: limiter._courier.calls, store.close


def sqlite(where):
    from penstock.stores import SQLiteStore

    return penstock_limiter(SQLiteStore(where["file"]))


def valkey(where):
    from penstock.stores import RedisStore

    return penstock_limiter(RedisStore(where["valkey"], timeout=5))


def redis(where):
    from penstock.stores import RedisStore

    return penstock_limiter(RedisStore(where["redis"], timeout=5))


def evalsha(where):
    """The same script, one grant a call, by redis-py's asyncio client with a pool of connections."""
    import redis.asyncio

    from penstock._core import ledger
    from penstock.limits import per_second
    from penstock.stores.contract import Terms
    from penstock.stores.redis import _Script

    client = redis.asyncio.Redis.from_url(where["valkey"], max_connections=600)
    script = _Script("decide.lua")
    limits = {"requests": (per_second(PLENTY),), "tokens": (per_second(PLENTY),)}
    terms = Terms("raw", limits, 60.0)
    number, calls = itertools.count(1), itertools.count()
    kinds = [number_ for kind in terms.numbers(0.0) for number_ in kind]
    sha = None

    async def grant():
        nonlocal sha
        if sha is None:
            sha = await client.script_load(script.text)
        words = [
            0.0,
            float(os.getpid()),
            float(next(number)),
            0.0,
            1.0,
            2.0,
            *kinds,
            ledger.ACQUIRE,
            0.0,
            1.0,
            2.0,
            0.0,
            1.0,
            1.0,
            5.0,
        ]
        next(calls)
        await client.evalsha(sha, 3, "{raw}t", "{raw}t", "{raw}r", struct.pack(f">{len(words)}d", *words), terms.text)

    return grant, None, None


def limits(where):
    from limits import RateLimitItemPerSecond
    from limits.aio.storage import RedisStorage
    from limits.aio.strategies import FixedWindowRateLimiter

    limiter = FixedWindowRateLimiter(
        RedisStorage("async+" + where["valkey"], implementation="redispy", max_connections=600)
    )
    one, two = RateLimitItemPerSecond(PLENTY), RateLimitItemPerSecond(PLENTY)

    async def grant():  # two limits are two calls, and no transaction
        await limiter.hit(one, "requests")
        await limiter.hit(two, "tokens", cost=5)

    return grant, None, None


def throttled(where):
    from throttled.asyncio import RedisStore, Throttled
    from throttled.rate_limiter import per_sec

    store = RedisStore(server=where["valkey"], options={"MAX_CONNECTIONS": 600})
    requests, tokens = (
        Throttled(key=key, using="gcra", quota=per_sec(PLENTY), store=store) for key in ("requests", "tokens")
    )

    async def grant():
        await requests.limit(cost=1)
        await tokens.limit(cost=5)

    return grant, None, None


def pyrate(where):
    import redis.asyncio
    from pyrate_limiter import Limiter, Rate, RedisBucket

    made = []

    async def grant():
        if not made:
            client = redis.asyncio.Redis.from_url(where["valkey"], max_connections=600)
            made.append(Limiter(await RedisBucket.init([Rate(PLENTY, 1000)], client, "pyrate")))
        await made[0].try_acquire_async("tokens", weight=5)

    return grant, None, None


def pyrate_sqlite(where):
    from pyrate_limiter import Limiter, Rate, SQLiteBucket

    limiter = Limiter(
        SQLiteBucket.init_from_file([Rate(PLENTY, 1000)], db_path=where["file"] + ".pyrate", use_file_lock=False)
    )

    async def grant():
        await limiter.try_acquire_async("tokens", weight=5)

    return grant, None, None


async def work(make, where, tasks, seconds, begin):
    grant, calls, close = make(where)
    await grant()
    await asyncio.sleep(max(0.0, begin - time.time()))
    before = calls() if calls else 0
    took = []
    end = time.perf_counter() + seconds

    async def one():
        while True:
            start = time.perf_counter()
            if start > end:
                return
            await grant()
            took.append(time.perf_counter() - start)

    lag = []

    async def watch():
        while time.perf_counter() < end:
            start = time.perf_counter()
            await asyncio.sleep(0.001)
            lag.append(time.perf_counter() - start - 0.001)

    begun = time.perf_counter()
    await asyncio.gather(watch(), *(one() for _ in range(tasks)))
    span = time.perf_counter() - begun
    made = calls() - before if calls else len(took)
    if close:
        close()
    cut = statistics.quantiles(took, n=100) if len(took) > 1 else took * 99
    return {
        "rate": len(took) / span,
        "p50": cut[49],
        "p99": cut[98],
        "calls": made / len(took),
        "lag": max(lag, default=0.0),
    }


def measure(row, where, tasks, processes, seconds):
    begin = time.time() + 1.0 + 0.3 * processes
    command = [sys.executable, __file__, "--worker", json.dumps([row, where, tasks, seconds, begin])]
    workers = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(processes)
    ]
    done = [worker.communicate() for worker in workers]
    try:
        parts = [json.loads(out.splitlines()[-1]) for out, _ in done]
    except (IndexError, ValueError):
        return (done[0][1].strip().splitlines() or ["no answer"])[-1][:60]
    return {
        "rate": sum(part["rate"] for part in parts),
        "p50": statistics.median(part["p50"] for part in parts),
        "p99": max(part["p99"] for part in parts),
        "calls": statistics.mean(part["calls"] for part in parts),
    }


def redis_benchmark(url):
    """What the server's own tool says of the emptiest command, where it is installed."""
    tool = shutil.which("redis-benchmark") or shutil.which("valkey-benchmark")
    if tool is None:
        return "redis-benchmark: not on PATH"
    port = url.rpartition(":")[2].split("/")[0]
    done = subprocess.run(
        [tool, "-p", port, "-c", "50", "-n", "100000", "-q", "ping"], capture_output=True, text=True, check=False
    )
    return f"redis-benchmark: {done.stdout.strip().splitlines()[-1]}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--only", default=",".join(ROWS))
    parser.add_argument("--tasks", default="1,50,500")
    parser.add_argument("--processes", default="1,2,4")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        row, where, tasks, seconds, begin = json.loads(options.worker)
        make = globals()[row.replace("-", "_")]
        print(json.dumps(asyncio.run(work(make, where, tasks, seconds, begin))))
        return
    found = servers.binaries()
    running = {name: servers.Server(path) for name, path in found.items()}
    directory = tempfile.mkdtemp()
    try:
        where = {name: server.url for name, server in running.items()} | {"file": f"{directory}/limits.db"}
        if servers.outside_url():
            where["valkey"] = servers.outside_url()
        where.setdefault("redis", where.get("valkey"))
        where.setdefault("valkey", where.get("redis"))
        print(f"{'':14} {'tasks':>5} {'processes':>9} {'grants/s':>9} {'p50 ms':>8} {'p99 ms':>8} {'calls/grant':>11}")
        for processes in map(int, options.processes.split(",")):
            for tasks in map(int, options.tasks.split(",")):
                for row in options.only.split(","):
                    got = measure(row, where, tasks, processes, options.seconds)
                    if isinstance(got, str):
                        print(f"{row:14} {tasks:5} {processes:9}  {got}", flush=True)
                        continue
                    print(
                        f"{row:14} {tasks:5} {processes:9} {got['rate']:9,.0f} {1e3 * got['p50']:8.2f} {1e3 * got['p99']:8.2f} "
                        f"{got['calls']:11.3f}",
                        flush=True,
                    )
        print(redis_benchmark(where["valkey"]))
    finally:
        for server in running.values():
            server.stop()
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main()
