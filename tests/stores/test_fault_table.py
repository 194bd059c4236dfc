"""More than 60 faults, each with callers that say how long they wait, callers that do not, and bystanders.

Whatever happens, each caller is answered, no call is granted beyond the limit, bystanders go on, and the store's
threads rest while the fault lasts. The faults happen at the same time, each to a store and a server of its own, so that
the table takes seconds.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import sys
import threading
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import anyio
import pytest
import redis

from penstock import Limiter, RateLimited, StoreError, per_second
from penstock.stores import RedisStore, SQLiteStore
from tests.stores.proxy import Proxy
from tests.stores.talker import Talker
from tests.stores.test_replies import ODD, SAID

servers = sys.modules["penstock_test_servers"]

LEFT = 4
"""What is left of the limit: as many as there are callers, so that one that is charged twice leaves another waiting for
ever."""

QUICK = {"timeout": 0.2, "patience": 0.1}

pytestmark = [
    pytest.mark.throughput,
    pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="the CPU time of a thread is read in /proc"),
]


# The faults. Each makes a store, breaks something, and says what must be heard: "granted" (the fault passes, and nobody
# notices) or "error"


@dataclass
class Case:
    """What a fault is given: a place, and a server for rows."""

    folder: Path
    valkey: str
    number: int
    stores: list
    stack: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def redis(self, url=None, **options):
        store = RedisStore(url or self.valkey, prefix=f"fault{self.number}", **{**QUICK, **options})
        self.stores.append(store)
        return store

    def behind(self, **options):
        """A store behind a proxy of its own."""
        proxy = Proxy(int(self.valkey.rpartition(":")[2].split("/")[0]))
        self.stack.callback(proxy.stop)
        return self.redis(proxy.url, **options), proxy

    def server(self):
        made = servers.Server(servers.binaries()["valkey"])
        self.stack.callback(made.stop)
        return made

    def file(self):
        store = SQLiteStore(self.folder / f"{self.number}.db", patience=0.1)
        self.stores.append(store)
        return store


async def use(store):
    """Leave as much of the limit as there are callers, and let the bystander be known."""
    patience, store.patience = store.patience, 10.0  # whatever else this machine does
    await limiter_of(store).acquire(requests=10 - LEFT)
    await bystander_of(store).acquire()
    store.patience = patience


def limiter_of(store):
    return Limiter(requests=per_second(1e-6, burst=10), name="x", store=store)


def bystander_of(store):
    return Limiter(requests=per_second(1000), name="y", store=store)


async def hostile_reply(answer, case):
    talker = Talker(answer)
    case.stack.callback(talker.stop)
    return case.redis(talker.url)


async def one_byte_at_a_time(case):
    """Each byte comes within the time-out, and the answer never ends."""
    talker = Talker(b"$1000000\r\n" + b"x" * 1_000_000, drip=QUICK["timeout"] / 4)
    case.stack.callback(talker.stop)
    return case.redis(talker.url)


async def damaged_row(damage, case):
    store = case.redis()
    await use(store)
    with contextlib.closing(redis.Redis.from_url(case.valkey)) as client:
        damage(client, store._key("x"))
    return store


def another_type(make, client, key):
    client.delete(key)
    make(client, key)


def changed(change, client, key):
    client.hset(key, "r", change(client.hget(key, "r")))


async def damaged_file(damage, case):
    store = case.file()
    await use(store)
    await anyio.to_thread.run_sync(damage, store)
    return store


def in_file(statement, store):
    with contextlib.closing(sqlite3.connect(store.path, isolation_level=None)) as file:
        file.execute(statement)


def cut_file(size, store):
    store.close()
    for name in ("-wal", "-shm"):
        store.path.with_name(store.path.name + name).unlink(missing_ok=True)
    os.truncate(store.path, size)


def cut_index(store):
    os.truncate(f"{store.path}-shm", 0)


def emptied_log(store):
    in_file("PRAGMA wal_checkpoint(TRUNCATE)", store)


def overwritten(store):
    store.close()
    store.path.write_bytes(b"this is no database" * 1000)


def lock_file(case, store):
    holder = sqlite3.connect(store.path, isolation_level=None, check_same_thread=False)
    case.stack.callback(holder.close)
    holder.execute("BEGIN IMMEDIATE")


async def locked_file(case):
    return await damaged_file(partial(lock_file, case), case)


async def wrong_address(url, case):
    return case.redis(url)


async def not_redis(case):
    talker = Talker(to_all=b"HTTP/1.1 400 Bad Request\r\n\r\n")
    case.stack.callback(talker.stop)
    return case.redis(talker.url)


async def with_password(case):
    server = case.server()
    server.command("CONFIG", "SET", "requirepass", "right")
    return case.redis(server.url.replace("//", "//:wrong@"))


async def replica(case):
    server = case.server()
    server.command("REPLICAOF", "127.0.0.1", "1")
    return case.redis(server.url)


async def no_memory(case):
    server = case.server()
    store = case.redis(server.url)
    await use(store)
    server.command("CONFIG", "SET", "maxmemory", 1)
    return store


async def signalled(number, case):
    server = case.server()
    store = case.redis(server.url)
    await use(store)
    os.kill(server.process.pid, number)
    if number == signal.SIGTERM:
        await anyio.to_thread.run_sync(server.process.wait)
    if number == signal.SIGSTOP:
        case.stack.callback(os.kill, server.process.pid, signal.SIGCONT)
    return store


async def restarted(case):
    server = case.server()
    store = case.redis(server.url, patience=5.0)
    await use(store)
    assert server.command("SAVE").startswith(b"+OK")
    server.kill()
    server.start()
    return store


async def a_link(mode, case, **options):
    store, proxy = case.behind(**options)
    await use(store)
    proxy.mode = mode
    if mode == "refuse":
        proxy.reset()
    return store


async def a_slow_link(seconds, case):
    store, proxy = case.behind(timeout=1.0)
    await use(store)
    proxy.latency = seconds
    return store


async def a_reset_link(case):
    store, proxy = case.behind(patience=5.0)
    await use(store)
    proxy.reset()
    return store


async def a_link_that_comes_back(mode, case):
    store, proxy = case.behind(patience=5.0)
    await use(store)
    proxy.mode = mode
    proxy.reset()
    threading.Timer(0.3, setattr, (proxy, "mode", "pass")).start()
    return store


async def flushed_scripts(case):
    server = case.server()
    store = case.redis(server.url)
    await use(store)
    server.command("SCRIPT", "FLUSH")
    return store


async def forked(case):
    """The child has nothing to do with the parent's connection."""
    store = case.redis(patience=5.0)
    await use(store)
    child = os.fork()
    if not child:
        os._exit(0)
    await anyio.to_thread.run_sync(os.waitpid, child, 0)
    return store


async def a_killed_connection(case):
    server = case.server()
    store = case.redis(server.url, patience=5.0)
    await use(store)
    server.command("CLIENT", "KILL", "TYPE", "normal")
    return store


async def a_renamed_command(case):
    server = servers.Server(servers.binaries()["valkey"], "--rename-command", "EVALSHA", "")
    case.stack.callback(server.stop)
    return case.redis(server.url)


ROW, STORE, PASSES = "a row", "the store", "passes"
"""What a fault is of: then the store's other limiters go on; or they hear of it too; or nobody does."""

FAULTS = {f"said: {words[:36]}": (STORE, partial(hostile_reply, b"-%b\r\n" % words.encode())) for words in SAID}
FAULTS |= {f"odd: {answer[:24]!r}": (STORE, partial(hostile_reply, answer)) for answer in ODD}
FAULTS |= {
    "a row that is a list": (ROW, partial(damaged_row, partial(another_type, lambda client, key: client.lpush(key, "a")))),
    "a row that is a string": (ROW, partial(damaged_row, partial(another_type, lambda client, key: client.set(key, "a")))),
    "a row that is a set": (ROW, partial(damaged_row, partial(another_type, lambda client, key: client.sadd(key, "a")))),
    "a row of nonsense": (ROW, partial(damaged_row, partial(changed, lambda _: b"nonsense" * 7))),
    "a row that is cut": (ROW, partial(damaged_row, partial(changed, lambda row: row[:-8]))),
    "a row that is cut in a number": (ROW, partial(damaged_row, partial(changed, lambda row: row[:-3]))),
    "a row of infinities": (ROW, partial(damaged_row, partial(changed, lambda row: b"\x7f\xf0\0\0\0\0\0\0" * (len(row) // 8)))),
    "a row of no numbers": (ROW, partial(damaged_row, partial(changed, lambda row: b"\x7f\xf8\0\0\0\0\0\0" * (len(row) // 8)))),
    "a row that is long": (ROW, partial(damaged_row, partial(changed, lambda row: row * 100))),
    "terms of nonsense": (ROW, partial(damaged_row, lambda client, key: client.hset(key, "t", "nonsense"))),
    "terms of another shape": (ROW, partial(damaged_row, lambda client, key: client.hset(key, "t", '{"requests":[["rate"]]}'))),
    "a file's row of nonsense": (ROW, partial(damaged_file, partial(in_file, "UPDATE penstock_rows SET row = x'00112233' WHERE name = 'x'"))),
    "a file's row of text": (ROW, partial(damaged_file, partial(in_file, "UPDATE penstock_rows SET row = 'text' WHERE name = 'x'"))),
    "a file's row of zeros": (ROW, partial(damaged_file, partial(in_file, "UPDATE penstock_rows SET row = zeroblob(length(row)) WHERE name = 'x'"))),
    "a file without its table": (STORE, partial(damaged_file, partial(in_file, "DROP TABLE penstock_rows"))),
    "a file of a later version": (STORE, partial(damaged_file, lambda store: (store.close(), in_file("PRAGMA user_version = 9", store)))),
    "a file that is cut": (STORE, partial(damaged_file, partial(cut_file, 5000))),
    "a file that is cut in its head": (STORE, partial(damaged_file, partial(cut_file, 50))),
    "a file whose log's index is cut": (PASSES, partial(damaged_file, cut_index)),
    "a file whose log is written into it": (PASSES, partial(damaged_file, emptied_log)),
    "a file of something else": (STORE, partial(damaged_file, overwritten)),
    "a file that is locked": (STORE, locked_file),
    "a server that says one byte at a time": (STORE, one_byte_at_a_time),
    "nobody listens": (STORE, partial(wrong_address, "redis://127.0.0.1:1/0")),
    "a host that there is not": (STORE, partial(wrong_address, "redis://nobody.invalid:6379/0")),
    "a socket that there is not": (STORE, partial(wrong_address, "unix:///nowhere/redis.sock")),
    "no Sentinel listens": (STORE, partial(wrong_address, "redis+sentinel://127.0.0.1:1/main")),
    "a server of another kind": (STORE, not_redis),
    "a wrong password": (STORE, with_password),
    "a replica": (STORE, replica),
    "a server without memory": (STORE, no_memory),
    "a server without EVALSHA": (STORE, a_renamed_command),
    "a server that is killed": (STORE, partial(signalled, signal.SIGKILL)),
    "a server that is terminated": (STORE, partial(signalled, signal.SIGTERM)),
    "a server that is stopped": (STORE, partial(signalled, signal.SIGSTOP)),
    "a server that is killed and comes back": (PASSES, restarted),
    "a server that forgets its scripts": (PASSES, flushed_scripts),
    "a server that ends connections": (PASSES, a_killed_connection),
    "a link that refuses": (STORE, partial(a_link, "refuse")),
    "a link that swallows": (STORE, partial(a_link, "hole")),
    "a link that swallows replies": (STORE, partial(a_link, "deaf")),
    "a link that loses a reply": (PASSES, partial(a_link, "cut", patience=5.0)),
    "a link that says each reply twice": (PASSES, partial(a_link, "twice", patience=5.0)),
    "a link that is slow": (PASSES, partial(a_slow_link, 0.1)),
    "a link that is reset": (PASSES, a_reset_link),
    "a link that refuses for a moment": (PASSES, partial(a_link_that_comes_back, "refuse")),
    "a link that swallows for a moment": (PASSES, partial(a_link_that_comes_back, "hole")),
    "a fork": (PASSES, forked),
}  # fmt: skip


# What is heard


@dataclass
class Heard:
    """What the callers of one fault heard, in seconds and words."""

    waits: list = field(default_factory=list)
    says_how_long: list = field(default_factory=list)
    bystander: list = field(default_factory=list)
    elsewhere: list = field(default_factory=list)
    later: str = ""
    longest: float = 0.0
    cpu: float = 0.0
    broken: str = ""

    @property
    def granted(self):
        return [*self.waits, *self.says_how_long, self.later].count("granted")


async def call(limiter, heard, **options):
    try:
        await limiter.acquire(**options)
    except StoreError:
        heard.append("StoreError")
    except RateLimited:
        heard.append("RateLimited")
    else:
        heard.append("granted")


async def suffer(name, case, elsewhere, heard):
    """Let one fault happen; write down what its callers hear."""
    store = None
    try:
        store = await FAULTS[name][1](case)
        x, y = limiter_of(store), bystander_of(store)
        begin = time.monotonic()
        with anyio.fail_after(20):
            async with anyio.create_task_group() as tasks:
                for _ in range(LEFT // 2):
                    tasks.start_soon(call, x, heard.waits)
                    tasks.start_soon(partial(call, x, heard.says_how_long, max_wait=2.0))
                tasks.start_soon(call, y, heard.bystander)
                tasks.start_soon(call, elsewhere, heard.elsewhere)
        heard.longest = time.monotonic() - begin
        last = []
        with anyio.fail_after(10):
            await call(x, last, max_wait=0)
        (heard.later,) = last
        before, since = cpu_of(store), time.monotonic()
        await anyio.sleep(1.2)
        heard.cpu = (cpu_of(store) - before) / (time.monotonic() - since)
    except Exception as error:
        heard.broken = repr(error)
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(case.stack.close)
            if store is not None:
                await anyio.to_thread.run_sync(partial(store.close, timeout=0.5))


def cpu_of(store):
    """Seconds of CPU of the threads of a store that are there."""
    total = 0
    for thread in threading.enumerate():
        if thread.name.startswith("penstock") and thread.name.endswith(repr(store)):
            with contextlib.suppress(OSError):
                total += int(Path(f"/proc/self/task/{thread.native_id}/schedstat").read_text().split()[0])
    return total / 1e9


@pytest.fixture(scope="module")
def table(valkey, tmp_path_factory):
    """What is heard of each fault."""
    folder = tmp_path_factory.mktemp("faults")
    heard, stores = {name: Heard() for name in FAULTS}, []
    elsewhere = Limiter(requests=per_second(10**6), name="z", store=SQLiteStore(folder / "elsewhere.db", patience=5.0))

    async def run(number, name, room):
        async with room:
            await suffer(name, Case(folder, valkey, number, stores), elsewhere, heard[name])

    async def main():
        room = anyio.CapacityLimiter(24)
        async with anyio.create_task_group() as tasks:
            for number, name in enumerate(FAULTS):
                tasks.start_soon(run, number, name, room)

    anyio.run(main)
    for store in [*stores, elsewhere.store]:  # those of a busy machine, which did not end in time, once more
        store.close()
    return heard


def test_there_are_enough_of_them():
    assert len(FAULTS) >= 60


@pytest.mark.parametrize("name", FAULTS)
def test_every_caller_is_answered_and_nothing_is_granted_beyond_the_limit(name, table):
    kind, _ = FAULTS[name]
    heard = table[name]
    assert heard.broken == ""
    answer = "granted" if kind is PASSES else "StoreError"
    assert heard.waits == heard.says_how_long == [answer] * (LEFT // 2)
    assert heard.later == ("RateLimited" if kind is PASSES else "StoreError")
    assert heard.granted <= LEFT
    assert heard.elsewhere == ["granted"]
    assert heard.bystander == ["StoreError" if kind is STORE else "granted"]


def test_their_threads_rest_meanwhile(table):
    """At most 5 % of a core, and none runs hot: what another program has of the core counts too, on a busy machine."""
    shares = {name: heard.cpu for name, heard in table.items()}
    assert sum(shares.values()) / len(shares) <= 0.05
    assert {name: share for name, share in shares.items() if share > 0.25} == {}
