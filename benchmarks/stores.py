"""Shared stores: grants a second, and how long one grant takes, beside what a user would write instead.

    python benchmarks/stores.py      # everything: 1, 50 and 500 tasks, 1, 2 and 4 processes; under 4 minutes
    python benchmarks/stores.py --seconds 3 --only sqlite,valkey,evalsha --tasks 50 --processes 1

Every row is a limit that is never reached, so what is measured is the way there and back. Nothing is a comparison of
algorithms: each library is asked for one grant at a time, the way its users ask, and penstock packs what its tasks ask
at the same moment into one call. "evalsha" is redis-py sending penstock's own script once per grant. penstock, evalsha,
limits and throttled decide two limits (limits and throttled one after another, which is two calls and no transaction),
pyrate one. "floor" is what no thread beside an event loop can pass: each grant is a bare future, and a thread sends the
script once for all that wait; it knows no limiter, no queue, no permit and no fault. "floor-loop" is the same without
the thread: the loop itself sends and reads. "one core" is a process whose threads share a core, so that what one of
them has written need not move to the cache of another. Calls are counted where they leave: what a client writes to its
socket, or a transaction. The servers are started here, on free ports; `PENSTOCK_TEST_REDIS_URL` names another.

Why Valkey stays below 8 evalsha (6.6 on the quiet machine of RESULTS.md): that leaves 5.9 µs for a grant. With 50 tasks
the loop takes 3.4 µs of CPU for one (the floor 1.4) and the dispatcher's thread 1.8 (the floor 0.7), in turns, as one
of them has the interpreter; the server takes 0.5. That is 5.7, and to it comes what no CPU time shows: four threads are
woken one after the other, once a batch. In CPU time of its process a grant costs 5.3 µs where the threads share a core,
and evalsha's 44, which is 8.3 times as much; 7 to 8 µs where they do not, on a busy machine. The floors show what the
thread itself costs: a grant takes 2.1 µs of CPU where the threads share a core, 2.7 to 4.7 where they do not, and
without a thread 1.6. So to reach 8 the loop would have to ask the store by itself: nothing that is left to spare is
large. A turn of the dispatcher for 50 takes 42 µs beside the way to the server and back; there redis-py adds 4 to a
bare socket.

Of the loop's 3.4, asyncio takes 0.9 for a task that awaits a bare future; 0.3 is the coroutine of `async with`, 0.4
finding the loop and making the future, 0.3 the request, 0.3 the call and its way to the inbox, 0.2 the permit; the rest
is the loop's own wake-up. Of the dispatcher's 92 µs for a batch, 55 do not depend on its size, so 500 tasks (128 a
batch) take 1.2 of it for a grant, and batches of half the size, of which one is decided while the other runs, are
slower by three tenths. Sockets without time-outs of Python's and garbage that is left alone change nothing; a call of
the dispatcher in the very round that wakes the tasks saves 1 %, less than the noise. To remember which loop ran last
would save a system call for each grant on Python 3.11, 6 % of the CPU, and would take the wrong one where a program
runs a loop inside another.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import itertools
import json
import os
import queue
import re
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
from array import array
from pathlib import Path

from _report import table, where

_spec = importlib.util.spec_from_file_location(
    "penstock_test_servers", Path(__file__).resolve().parent.parent / "tests" / "stores" / "servers.py"
)
servers = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(servers)

PLENTY = 10**9
ROWS = (
    "sqlite",
    "valkey",
    "redis",
    "floor",
    "floor-loop",
    "floor-sqlite",
    "evalsha",
    "limits",
    "throttled",
    "pyrate",
    "pyrate-sqlite",
)
PEERS = ("limits", "throttled", "pyrate")


class Writes:
    """How often redis-py has written to a socket in this process: a command, or a pipeline of several, is one."""

    def __init__(self):
        import redis.asyncio.connection
        import redis.connection

        self.count = 0
        for kind, name in (
            (redis.asyncio.connection.AbstractConnection, "send_packed_command"),
            (redis.connection.AbstractConnection, "send_packed_command"),
        ):
            setattr(kind, name, self._counting(getattr(kind, name)))

    def _counting(self, write):
        def counting(*arguments, **options):
            self.count += 1
            return write(*arguments, **options)

        return counting


def penstock_limiter(store):
    from penstock import Limiter, per_second

    limiter = Limiter(requests=per_second(PLENTY), tokens=per_second(PLENTY), name="bench", store=store)

    async def grant():
        async with limiter(tokens=5):
            pass

    return grant, lambda: limiter.store.dispatcher.calls, store


def nothing(_):
    """Tasks that only give way to each other: how late the loop of this machine is with nobody to blame."""

    async def grant():
        await asyncio.sleep(0)

    return grant, None, None


def sqlite(where):
    from penstock.stores import SQLiteStore

    return penstock_limiter(SQLiteStore(where["file"]))


def valkey(where):
    from penstock.stores import RedisStore

    return penstock_limiter(RedisStore(where["valkey"], timeout=5))


def redis(where):
    from penstock.stores import RedisStore

    return penstock_limiter(RedisStore(where["redis"], timeout=5))


def sqlite_one_core(where):
    stay_on_one_core()
    return sqlite(where)


def valkey_one_core(where):
    stay_on_one_core()
    return valkey(where)


def stay_on_one_core():
    """Of all threads that this process starts from now on, too."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def evalsha(where):
    """The same script, one grant a call, by redis-py's asyncio client with a pool of connections."""
    import redis.asyncio

    client = redis.asyncio.Redis.from_url(where["valkey"], max_connections=600)
    script, command = raw_command()
    loaded = False

    async def grant():
        nonlocal loaded
        if not loaded:
            await client.script_load(script)
            loaded = True
        await client.execute_command(*command(1))

    return grant, None, None


def raw_command():
    """The text of the script, and a function of how many grants to ask for that returns the words of a command."""
    from penstock._core import operations as codes
    from penstock.limits import per_second
    from penstock.stores.contract import Terms
    from penstock.stores.redis import DECIDE, _Script

    script = _Script(*DECIDE)
    terms = Terms("raw", {"requests": (per_second(PLENTY),), "tokens": (per_second(PLENTY),)}, 60.0)
    owner, batches = float(os.getpid()), itertools.count(1)
    kinds = [number for kind in terms.numbers(0.0) for number in kind]
    flow = [codes.FLOW, owner, 0.0, 1.0, 0.0, 0.0]

    def command(many):
        words = [0.0, owner, float(next(batches)), 0.0, 1.0, 2.0, *kinds, *flow]
        words += [codes.SERIES, 0.0, 1.0, 2.0, 1.0, 0.0, 1.0, float(many), 1.0, 5.0]
        return "EVALSHA", script.sha, 2, "{raw}t", "{raw}r", struct.pack(f">{len(words)}d", *words), terms.text

    return script.text, command


def floor(where):
    """A bare future per grant, and a thread that asks once for all that wait."""
    from penstock.stores import RedisStore

    return futures_over(RedisStore(where["valkey"], timeout=5))


def floor_loop(where):
    """A bare future per grant, and no thread: the loop itself sends the script once for all that wait, and reads."""
    import redis

    client = redis.Redis.from_url(where["valkey"], single_connection_client=True)
    script, command = raw_command()
    client.script_load(script)
    loop = asyncio.get_running_loop()
    waiting, asked = [], []

    def send():
        if not asked:
            asked.extend(waiting)
            waiting.clear()
            client.connection.send_packed_command(client.connection.pack_command(*command(len(asked))))

    def read():
        client.connection.read_response()
        for future in asked:
            future.set_result(None)
        asked.clear()
        if waiting:
            send()

    loop.add_reader(client.connection._sock, read)

    async def grant():
        future = loop.create_future()
        waiting.append(future)
        if len(waiting) == 1:
            loop.call_soon(send)
        await future

    return grant, None, None


def floor_sqlite(where):
    """The same with a thread, over a file."""
    from penstock.stores import SQLiteStore

    return futures_over(SQLiteStore(where["file"]))


def futures_over(store):
    from penstock._core import operations as codes
    from penstock.limits import per_second
    from penstock.stores.contract import Batch, Terms

    terms = [Terms("floor", {"requests": (per_second(PLENTY),), "tokens": (per_second(PLENTY),)}, 60.0)]
    loop, inbox = asyncio.get_running_loop(), queue.SimpleQueue()

    def finish(futures):
        for future in futures:
            future.set_result(None)

    def serve():
        for number in itertools.count(1):
            waiting = [inbox.get()]
            waiting += [inbox.get_nowait() for _ in range(inbox.qsize())]
            many = len(waiting)
            asked = [codes.FLOW, 7.0, 0.0, 1.0, 0.0, 0.0]
            asked += [codes.SERIES, 0.0, 1.0, 2.0, 1.0, 0.0, 1.0, float(many), 1.0, 5.0]
            store.decide(Batch(terms, asked, 7.0, number, time.time() * 1e6))
            loop.call_soon_threadsafe(finish, waiting)

    threading.Thread(target=serve, daemon=True).start()

    async def grant():
        future = loop.create_future()
        inbox.put(future)
        await future

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

    store = RedisStore(server=where["valkey"], options={"CONNECTION_POOL_KWARGS": {"max_connections": 600}})
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


class Stretches:
    """How long the dispatcher computes at a stretch, by its thread's own CPU time: for so long it can keep a loop
    waiting for the interpreter.

    From one call of the store to the next, and, where the arithmetic is in Python, within a call. Other programs do not
    count.
    """

    def __init__(self, store):
        self.seconds = array("d")
        self.free_since = None
        decide, exchange = store.decide, store.exchange

        def timed_decide(batch):
            now = time.thread_time()
            if self.free_since is not None:
                self.seconds.append(now - self.free_since)
            reply = decide(batch)
            self.free_since = time.thread_time()
            return reply

        def timed_exchange(names, arithmetic):
            def timed(*rows):
                begin = time.thread_time()
                new = arithmetic(*rows)
                self.seconds.append(time.thread_time() - begin)
                return new

            exchange(names, timed)

        store.decide, store.exchange = timed_decide, timed_exchange


async def work(make, where, tasks, seconds, *, watched):
    """Take grants for so long; say how many, how long each took, and, if `watched`, how late the loop was meanwhile."""
    writes = Writes() if "sqlite" not in make.__name__ else None
    grant, calls, store = make(where)
    if calls is None and writes is not None:
        calls = lambda: writes.count  # noqa: E731
    stretches = Stretches(store) if watched and store is not None else None
    for _ in range(2):  # so that what is measured does not have the making of a connection per task in it
        await asyncio.gather(*(grant() for _ in range(tasks)))
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    before = calls() if calls else 0
    took, late = array("d"), array("d")  # a list would be looked through at every garbage collection
    end = time.perf_counter() + seconds

    async def one():
        while True:
            start = time.perf_counter()
            if start > end:
                return
            await grant()
            took.append(time.perf_counter() - start)

    async def watch():
        while time.perf_counter() < end:
            start = time.perf_counter()
            await asyncio.sleep(0.001)
            late.append(time.perf_counter() - start - 0.001)

    begun = time.perf_counter()
    await asyncio.gather(*([watch()] if watched else []), *(one() for _ in range(tasks)))
    span = time.perf_counter() - begun
    made = calls() - before if calls else None
    if store is not None:
        store.close()
    return {
        "rate": len(took) / span,
        "p50": quantile(took, 0.5),
        "p99": quantile(took, 0.99),
        "calls": made and made / len(took),
        "late": [quantile(late, 0.99), max(late, default=0.0)],
        "stretch": [quantile(stretches.seconds, 0.99), max(stretches.seconds)] if stretches else None,
    }


def quantile(values, part):
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))] if ordered else 0.0


def measure(row, where, tasks, processes, seconds, *, watched=False):
    """Run `processes` of them at the same time; a text says what went wrong."""
    command = [sys.executable, __file__, "--worker", json.dumps([row, where, tasks, seconds, watched])]
    workers = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(processes)
    ]
    ready = [worker.stdout.readline() for worker in workers]
    for worker, said in zip(workers, ready, strict=True):
        if said:  # else it ended, and says why below
            worker.stdin.write("go\n")
            worker.stdin.flush()
    done = [worker.communicate() for worker in workers]
    try:
        parts = [json.loads(out.splitlines()[-1]) for out, _ in done]
    except (IndexError, ValueError):
        return next((why(error) for _, error in done if error.strip()), "no answer")
    return {
        "rate": sum(part["rate"] for part in parts),
        "p50": statistics.median(part["p50"] for part in parts),
        "p99": max(part["p99"] for part in parts),
        "calls": None if parts[0]["calls"] is None else statistics.mean(part["calls"] for part in parts),
        "late": parts[0]["late"],
        "stretch": parts[0]["stretch"],
    }


def why(traceback):
    """The errors of a traceback in a line, the first cause first: a library's own error often tells nothing."""
    errors = re.findall(r"^[\w.]+(?:Error|Exception)\b.*$", traceback, re.MULTILINE)
    return " -> ".join(dict.fromkeys(error[:100] for error in errors)) or traceback.strip().splitlines()[-1][:100]


def redis_benchmark(where):
    """What the server's own tool says of the emptiest command, if it is there."""
    beside = os.pathsep.join(str(Path(path).parent) for path in servers.binaries().values())
    tool = next(
        (
            found
            for name in ("redis-benchmark", "valkey-benchmark")
            for path in (None, beside)
            if (found := shutil.which(name, path=path))
        ),
        None,
    )
    if tool is None:
        return "redis-benchmark: not on PATH, and the wheels that carry the servers do not carry it."
    port = where["valkey"].rpartition(":")[2].split("/")[0]
    done = subprocess.run(
        [tool, "-p", port, "-c", "50", "-n", "100000", "-q", "ping"], capture_output=True, text=True, check=False
    )
    said = (done.stdout.strip() or done.stderr.strip() or "nothing").splitlines()[-1]
    return f"redis-benchmark, 50 clients, PING: {said}"


def speed_and_latency(options, where):
    rows, failed = [], {}
    for processes in map(int, options.processes.split(",")):
        for tasks in map(int, options.tasks.split(",")):
            for row in options.only.split(","):
                got = measure(row, where, tasks, processes, options.seconds)
                if isinstance(got, str):
                    failed[row] = got
                    rows.append([row, tasks, processes, "failed", "", "", ""])
                    continue
                calls = "–" if got["calls"] is None else f"{got['calls']:.3f}"
                rows.append(
                    [
                        row,
                        tasks,
                        processes,
                        f"{got['rate']:,.0f}",
                        f"{1e3 * got['p50']:.2f}",
                        f"{1e3 * got['p99']:.2f}",
                        calls,
                    ]
                )
    table(["", "tasks", "processes", "grants/s", "p50 ms", "p99 ms", "calls/grant"], rows)
    for row, error in failed.items():
        print(f"{row} failed: {error}\n")


def against_the_design(options, where):
    """The rows of the design for 50 tasks in one process: several rounds, interleaved, and the median ratio of each."""
    names = ("sqlite", "sqlite-one-core", "floor-sqlite", "valkey", "valkey-one-core", "floor", "floor-loop", "evalsha")
    names += PEERS
    rounds = []
    for _ in range(options.rounds):
        got = {name: measure(name, where, 50, 1, options.seconds) for name in names}
        rounds.append({name: one if isinstance(one, str) else one["rate"] for name, one in got.items()})
    rounds = [one for one in rounds if not any(isinstance(rate, str) for rate in one.values())]
    if not rounds:
        print("one of them did not answer: no ratios")
        return
    best = max(PEERS, key=lambda name: statistics.median(one[name] for one in rounds))
    print(
        f"50 tasks, one process, {len(rounds)} interleaved rounds; "
        "medians, and of what was measured against them the median ratio:\n"
    )
    table(
        ["", "grants/s: least", "median", "most"],
        [
            [name, *(f"{of(one[name] for one in rounds):,.0f}" for of in (min, statistics.median, max))]
            for name in names
        ],
    )
    reached(f"Valkey / best peer ({best})", statistics.median(one["valkey"] / one[best] for one in rounds), 12)
    reached("Valkey / evalsha", statistics.median(one["valkey"] / one["evalsha"] for one in rounds), 8)
    reached("SQLite, grants/s", statistics.median(one["sqlite"] for one in rounds), 120_000)
    for name in ("valkey-one-core", "floor", "floor-loop"):
        print(f"- {name} / evalsha: {statistics.median(one[name] / one['evalsha'] for one in rounds):.1f}")
    print()


def reached(what, value, bound):
    print(f"- {what}: {value:,.1f}, to reach: ≥ {bound:,}: {'reached' if value >= bound else 'MISSED'}")


def lateness(options, where):
    """How late a timer of the loop is while 50 and 500 tasks are at it, and for how long the dispatcher computes at a
    stretch."""
    rows = []
    for tasks in (50, 500):
        for row in ("nothing", "sqlite", "valkey"):
            got = measure(row, where, tasks, 1, 2 * options.seconds, watched=True)
            if isinstance(got, str):
                rows.append([row, tasks, got, "", "", ""])
                continue
            stretch = [f"{1e3 * seconds:.2f}" for seconds in got["stretch"]] if got["stretch"] else ["–", "–"]
            rows.append([row, tasks, *(f"{1e3 * seconds:.2f}" for seconds in got["late"]), *stretch])
    table(["", "tasks", "timer late, p99 ms", "worst ms", "dispatcher at a stretch, p99 ms", "worst ms"], rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=0.5)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default=",".join(ROWS))
    parser.add_argument("--tasks", default="1,50,500")
    parser.add_argument("--processes", default="1,2,4")
    parser.add_argument("--part", choices=["all", "table", "design", "lateness"], default="all")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        row, servers_at, tasks, seconds, watched = json.loads(options.worker)
        make = globals()[row.replace("-", "_")]
        print(json.dumps(asyncio.run(work(make, servers_at, tasks, seconds, watched=watched))))
        return
    found = servers.binaries()
    running = {name: servers.Server(path) for name, path in found.items()}
    directory = tempfile.mkdtemp()
    try:
        servers_at = {name: server.url for name, server in running.items()} | {"file": f"{directory}/limits.db"}
        if servers.outside_url():
            servers_at["valkey"] = servers.outside_url()
        servers_at.setdefault("redis", servers_at.get("valkey"))
        servers_at.setdefault("valkey", servers_at.get("redis"))
        where("redis", "limits", "throttled-py", "pyrate-limiter")
        if options.part in ("all", "table"):
            speed_and_latency(options, servers_at)
        if options.part in ("all", "design"):
            against_the_design(options, servers_at)
        if options.part in ("all", "lateness"):
            lateness(options, servers_at)
        print(redis_benchmark(servers_at))
    finally:
        for server in running.values():
            server.stop()
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main()
