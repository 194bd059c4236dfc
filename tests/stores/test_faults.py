"""Real servers, real faults: never more than promised, and going on within a second of the fault's end."""

from __future__ import annotations

import contextlib
import importlib.util
import socket
import sqlite3
import threading
import time
from pathlib import Path

import anyio
import pytest
import redis

from penstock import Limiter, RateLimited, StoreError, clock, in_flight, per_second
from penstock.events import StoreLost, StoreRecovered
from penstock.stores import RedisStore, SQLiteStore
from tests.stores.admissions import PATIENCE, Crowd, excess
from tests.stores.busy import BUSY

_spec = importlib.util.spec_from_file_location("penstock_test_proxy", Path(__file__).with_name("proxy.py"))
_module = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_module)

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend():
    """Faults happen to the dispatcher's thread, whichever loop it works for; `test_contract` has both."""
    return "asyncio"


@pytest.fixture
def proxy(valkey):
    made = _module.Proxy(int(valkey.rpartition(":")[2].split("/")[0]))
    yield made
    made.stop()


@pytest.fixture
def store(proxy, prefix):
    """Through the proxy."""
    made = RedisStore(proxy.url, prefix=prefix, timeout=0.3)
    yield made
    made.close()


async def test_a_lost_reply_charges_once(proxy, store):
    """The batch was executed; when it is sent again under its number, the server repeats its answer."""
    limiter = Limiter(requests=per_second(0.001, burst=100), name="x", store=store)
    await limiter.acquire()
    for _ in range(5):
        proxy.mode = "cut"
        await limiter.acquire(requests=10)
    assert proxy.cuts == 5
    await limiter.refresh()
    assert limiter.statistics().limits["requests"].level == pytest.approx(49, abs=0.1)


async def test_a_lost_reply_gives_back_once(proxy, store):
    """A refund is as sensitive to being sent twice as a charge."""
    limiter = Limiter(requests=per_second(0.001, burst=100), name="x", store=store)
    one, other = await limiter.acquire(requests=40), await limiter.acquire(requests=40)
    proxy.mode = "cut"
    one.settle(requests=30)
    await limiter.refresh()
    assert limiter.statistics().limits["requests"].level == pytest.approx(30, abs=0.1)
    other.cancel()
    await limiter.refresh()
    assert limiter.statistics().limits["requests"].level == pytest.approx(70, abs=0.1)


@pytest.mark.throughput
@pytest.mark.parametrize(
    ("fault", "patience"),
    [
        ("reply lost", 5.0), ("reset", 5.0), ("refuse", 5.0), ("refuse", 0.1), ("hole", 5.0), ("hole", 0.1),
        ("latency", 5.0), ("flush", 5.0),
    ],
)  # fmt: skip
async def test_after_a_fault_everybody_goes_on_within_a_second(fault, patience, proxy, store, valkey):
    """At the full rate; and in no interval of the store's time one more than promised.

    From a black hole the way out is the time-out of the reply that will never come, here 0.3 s. An impatient store has
    told everybody of the outage by then, and found the server again.
    """
    store.patience = patience
    rate, burst = 300, 30
    crowd = Crowd(Limiter(requests=per_second(rate, burst=burst), name="x", store=store))
    async with crowd.at_work(40):
        await anyio.sleep(0.15)
        if fault == "reply lost":
            proxy.mode = "cut"
        elif fault == "reset":
            proxy.reset()
        elif fault == "flush":
            await anyio.to_thread.run_sync(redis.Redis.from_url(valkey).script_flush)
        elif fault == "latency":
            proxy.latency = 0.05
        else:
            proxy.mode = fault
            proxy.reset() if fault == "refuse" else None
        await anyio.sleep(0.35)
        proxy.mode, proxy.latency = "pass", 0.0
        over = time.monotonic()
        took = await crowd.recovered(over)
        before = len(crowd.moments)
        await anyio.sleep(0.25)
        after = len(crowd.moments) - before
    print(f"{fault}: {1e3 * took:.0f} ms after its end")  # noqa: T201 - `-rP` shows it
    assert excess(crowd.moments, rate, burst) <= 0.01
    assert after >= 0.5 * 0.25 * rate, BUSY
    assert proxy.cuts == (fault == "reply lost")


async def test_on_outage_raise_tells_everybody_and_later_goes_on(proxy, prefix):
    events = []
    store = RedisStore(proxy.url, prefix=prefix, timeout=PATIENCE, patience=0.2, on_event=events.append)
    limiter = Limiter(requests=per_second(1000), name="x", store=store)
    await limiter.acquire()
    proxy.mode = "refuse"
    proxy.reset()
    with pytest.raises(StoreError, match="does not answer"):
        await limiter.acquire()
    with pytest.raises(StoreError, match="does not answer"):
        await limiter.acquire()
    proxy.mode = "pass"
    with anyio.fail_after(PATIENCE):
        while True:
            with contextlib.suppress(StoreError):
                await limiter.acquire()
                break
            await anyio.sleep(0.02)
    assert [type(event) for event in events] == [StoreLost, StoreRecovered]
    store.close()


async def test_on_outage_share_goes_on_with_a_part_and_charges_it_afterwards(proxy, prefix):
    store = RedisStore(proxy.url, prefix=prefix, timeout=PATIENCE, patience=0.2, on_outage="share", share=0.25)
    limiter = Limiter(requests=per_second(0.001, burst=100), name="x", store=store)
    await limiter.acquire(requests=10)
    proxy.mode = "refuse"
    proxy.reset()
    granted = 0
    with pytest.raises(RateLimited):
        for _ in range(100):
            await limiter.acquire(max_wait=0)
            granted += 1
    assert granted == 25
    proxy.mode = "pass"
    await up_again(store)
    await anyio.sleep(0.1)
    await limiter.refresh()
    assert limiter.statistics().limits["requests"].level == pytest.approx(100 - 10 - 25, abs=0.1)
    store.close()


async def test_on_outage_open_lets_everything_through_and_charges_at_most_a_burst_afterwards(proxy, prefix):
    """Else a long outage would be followed by one as long, for a debt that nobody is owed: what the service counts has
    flowed back."""
    store = RedisStore(proxy.url, prefix=prefix, timeout=PATIENCE, patience=0.2, on_outage="open")
    limiter = Limiter(requests=per_second(0.001, burst=100), name="x", store=store)
    await limiter.acquire(requests=10)
    proxy.mode = "refuse"
    proxy.reset()
    for _ in range(150):
        await limiter.acquire()
    proxy.mode = "pass"
    await up_again(store)
    await anyio.sleep(0.1)
    await limiter.refresh()
    assert limiter.statistics().limits["requests"].level == pytest.approx(100 - 10 - 100, abs=0.1)
    store.close()


@pytest.mark.parametrize("closed", ["meanwhile", "afterwards"])
@pytest.mark.parametrize("options", [{"on_outage": "share", "share": 0.5}, {"on_outage": "open"}], ids=str)
async def test_places_that_are_held_over_an_outage_come_back(options, closed, proxy, valkey, prefix):
    """Those that the store had granted, and those that this process granted by itself, of each name."""
    store, others = (
        RedisStore(proxy.url, prefix=prefix, timeout=PATIENCE, patience=0.2, **options),
        RedisStore(valkey, prefix=prefix),
    )
    mine, theirs = ([Limiter(calls=in_flight(4), name=name, store=each) for name in "xy"] for each in (store, others))
    held = [await limiter.acquire() for limiter in mine]
    proxy.mode = "refuse"
    proxy.reset()
    held += [await limiter.acquire() for limiter in mine]
    if closed == "meanwhile":
        for permit in held:
            permit.close()
        for limiter in mine:
            async with limiter():
                pass
    proxy.mode = "pass"
    await up_again(store)
    for permit in held:
        permit.close()
    with anyio.fail_after(PATIENCE):
        for limiter in theirs:
            for _ in range(4):
                held.append(await limiter.acquire())
    for permit in held:
        permit.close()
    store.close()
    others.close()


async def test_a_place_of_one_outage_that_is_given_back_in_the_next_comes_back(proxy, valkey, prefix):
    """The store was charged for it in between, and it is no part of what is owed now."""
    store, others = (
        RedisStore(proxy.url, prefix=prefix, timeout=PATIENCE, patience=0.2, on_outage="open"),
        RedisStore(valkey, prefix=prefix),
    )
    mine, theirs = (Limiter(calls=in_flight(3), name="x", store=each) for each in (store, others))
    held = []
    for _ in range(2):
        proxy.mode = "refuse"
        proxy.reset()
        held.append(await mine.acquire())
        if len(held) == 2:
            for permit in held:
                permit.close()
            async with mine():
                pass
        proxy.mode = "pass"
        await up_again(store)
        await mine.refresh()
    with anyio.fail_after(PATIENCE):
        held += [await theirs.acquire() for _ in range(3)]
    for permit in held:
        permit.close()
    store.close()
    others.close()


async def test_what_is_said_in_an_outage_reaches_the_store_afterwards(proxy, valkey, prefix):
    """True costs, of calls from before and from the outage, what was never sent, and a pause."""
    store, others = (
        RedisStore(proxy.url, prefix=prefix, timeout=PATIENCE, patience=0.2, on_outage="open"),
        RedisStore(valkey, prefix=prefix),
    )
    mine, theirs = (Limiter(requests=per_second(0.001, burst=100), name="x", store=each) for each in (store, others))
    before, unsent = await mine.acquire(requests=10), await mine.acquire(requests=10)
    proxy.mode = "refuse"
    proxy.reset()
    meanwhile = await mine.acquire(requests=10)
    before.settle(requests=30)
    unsent.cancel()
    meanwhile.settle(requests=5)
    await mine.acquire(requests=1)
    mine.pause(60)
    proxy.mode = "pass"
    await up_again(store)
    await mine.refresh()
    await theirs.refresh()
    assert theirs.statistics().limits["requests"].level == pytest.approx(100 - 30 - 5 - 1, abs=0.1)
    assert theirs.statistics().paused_for > 50
    store.close()
    others.close()


async def up_again(store):
    with anyio.fail_after(PATIENCE):
        while store.dispatcher.down is not None:
            await anyio.sleep(0.02)


@pytest.mark.parametrize("lost", ["full", "empty"])
async def test_a_server_that_was_killed_and_lost_its_memory(lost, server, prefix):
    """`full`: at most one burst too much. `empty`: not one, at the price of a burst."""
    rate, burst = 50, 10
    store = RedisStore(server.url, prefix=prefix, timeout=0.3, patience=5.0, on_state_loss=lost)
    crowd = Crowd(Limiter(requests=per_second(rate, burst=burst), name="x", store=store))
    async with crowd.at_work(5):
        await anyio.sleep(0.4)
        server.kill()
        await anyio.sleep(0.1)
        server.start()
        over = time.monotonic()
        await crowd.recovered(over)
        await anyio.sleep(0.3)
    assert len(crowd.epochs) == 2
    assert excess(crowd.moments, rate, burst) <= (burst if lost == "full" else 0) + 0.01
    store.close()


@pytest.mark.parametrize("lost", ["full", "empty"])
async def test_a_row_that_is_evicted_or_deleted(lost, valkey, prefix):
    """`full`: a burst too much each time. `empty`: not one, whatever else the server still knows."""
    store = RedisStore(valkey, prefix=prefix, on_state_loss=lost)
    client = redis.Redis.from_url(valkey)
    rate = 50 if lost == "empty" else 1e-6  # a limit that begins empty needs something to begin with
    limiter = Limiter(requests=per_second(rate, burst=10), name="x", store=store)
    begin, granted = time.monotonic(), 0
    await limiter.acquire(requests=1)
    for _ in range(5):
        client.delete(store._key("x"))
        with contextlib.suppress(RateLimited):
            while True:
                await limiter.acquire(max_wait=0)
                granted += 1
    if lost == "empty":
        assert granted <= 10 + rate * (time.monotonic() - begin) + 0.01
    else:
        assert granted == 5 * 10
    client.close()
    store.close()


async def test_new_limits_for_a_row_that_was_lost_begin_empty_too(valkey, prefix):
    store = RedisStore(valkey, prefix=prefix, on_state_loss="empty")
    client = redis.Redis.from_url(valkey)
    limiter = Limiter(requests=per_second(1000, burst=10), name="x", store=store)
    await limiter.acquire()
    client.delete(store._key("x"))
    limiter.reconfigure(requests=per_second(0.001, burst=10))
    with pytest.raises(RateLimited):
        await limiter.acquire(max_wait=0)
    client.close()
    store.close()


async def test_pauses_are_heard_at_once_by_those_that_have_a_reservation(valkey, prefix):
    """Within milliseconds, not when they next ask, which is in ten seconds."""
    stores = [RedisStore(valkey, prefix=prefix) for _ in range(2)]
    mine, theirs = (Limiter(requests=per_second(0.1, burst=1), name="x", store=store) for store in stores)
    await theirs.acquire()
    await mine.refresh()
    begin = time.monotonic()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(theirs.acquire)
        await anyio.sleep(0.1)
        mine.pause(60)
        with anyio.fail_after(PATIENCE):
            while not theirs.statistics().paused_for:
                await anyio.sleep(0.005)
        assert time.monotonic() - begin < 9
        assert theirs.statistics().waiting == 1
        tasks.cancel_scope.cancel()
    for store in stores:
        store.close()


# What is wrong at first use


async def said(store, **limits):
    limiter = Limiter(requests=per_second(5), name="x", store=store)
    try:
        with pytest.raises(StoreError) as caught, anyio.fail_after(10):
            await limiter.acquire()
    finally:
        store.close()
    return str(caught.value)


async def test_an_unreachable_server_is_one_clear_error():
    message = await said(RedisStore("redis://user:secret@127.0.0.1:1/0", timeout=0.2, patience=0.2))
    assert "redis://127.0.0.1:1/0 does not answer" in message
    assert "Is the server running" in message
    assert "secret" not in message


async def test_a_wrong_password_is_one_clear_error(server):
    server.command("CONFIG", "SET", "requirepass", "right")
    assert "Check the user and the password" in await said(RedisStore(f"redis://:wrong@127.0.0.1:{server.port}/0"))
    store = RedisStore(f"redis://:right@127.0.0.1:{server.port}/0")
    await Limiter(requests=per_second(5), name="x", store=store).acquire()
    store.close()


async def test_a_replica_is_one_clear_error(server):
    server.command("REPLICAOF", "127.0.0.1", "1")
    message = await said(RedisStore(server.url, patience=0.2))
    assert "is a read-only replica: give RedisStore the address of the primary, or of its Sentinels" in message


@pytest.fixture
def old_server():
    """Says to everybody that it is Redis 5, and does nothing else."""
    listener = socket.create_server(("127.0.0.1", 0))

    def answer(connection):
        info = b"# Server\r\nredis_version:5.0.14\r\n# Cluster\r\ncluster_enabled:0\r\n"
        with contextlib.closing(connection), contextlib.suppress(OSError):
            while asked := connection.recv(65536):
                for command in asked.split(b"*")[1:]:
                    known = (
                        b"$%d\r\n%s\r\n" % (len(info), info) if b"INFO\r\n" in command else b"-ERR unknown command\r\n"
                    )
                    connection.sendall(known)

    def serve():
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=answer, args=(listener.accept()[0],), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    yield f"redis://127.0.0.1:{listener.getsockname()[1]}/0"
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()


async def test_a_server_that_is_too_old_is_one_clear_error(old_server):
    assert "is Redis 5.0.14: RedisStore needs 6.2 or later, or any Valkey" in await said(RedisStore(old_server))


@pytest.mark.parametrize("name", ["a{b", "a}b", "", None])
async def test_a_name_with_a_brace_or_none_is_found_at_once(name, tmp_path):
    for store in (RedisStore("redis://localhost"), SQLiteStore(tmp_path / "x.db")):
        with pytest.raises(
            ValueError, match="brace, which would tell Redis Cluster where to put it" if name else "needs a name="
        ):
            Limiter(requests=per_second(5), name=name, store=store)


@pytest.mark.parametrize("url", ["http://x", "localhost:6379", "redis+sentinel://h:1", "redis://h:port"])
async def test_a_wrong_url_is_found_at_once(url):
    with pytest.raises(ValueError):
        RedisStore(url)


async def test_wrong_options_are_found_at_once(tmp_path):
    for options in (
        {"on_outage": "close"}, {"on_outage": "share"}, {"share": 0.5}, {"on_outage": "share", "share": 2},
        {"patience": -1}, {"place_ttl": 0},
    ):  # fmt: skip
        with pytest.raises(ValueError):
            SQLiteStore(tmp_path / "x", **options)
    with pytest.raises(ValueError, match="store="):
        Limiter(requests=per_second(5), name="x", store="redis://localhost")


async def test_a_directory_is_one_clear_error(tmp_path):
    assert "is a directory" in await said(SQLiteStore(tmp_path))


async def test_a_name_that_is_too_long_for_a_file_is_one_clear_error(tmp_path):
    assert "cannot be opened" in await said(SQLiteStore(tmp_path / ("x" * 300)))


async def test_a_missing_directory_is_one_clear_error(tmp_path):
    assert "does its directory exist" in await said(SQLiteStore(tmp_path / "none" / "x.db"))


async def test_another_programs_database_is_left_alone(tmp_path):
    with contextlib.closing(sqlite3.connect(tmp_path / "x.db")) as other:
        other.execute("CREATE TABLE theirs (x)")
        other.commit()
    assert "another program" in await said(SQLiteStore(tmp_path / "x.db"))


async def test_tables_of_a_later_version_are_refused(tmp_path):
    store = SQLiteStore(tmp_path / "x.db")
    await Limiter(requests=per_second(5), name="x", store=store).acquire()
    store.close()
    with contextlib.closing(sqlite3.connect(tmp_path / "x.db")) as file:
        file.execute("PRAGMA user_version = 7")
        file.commit()
    assert "later penstock" in await said(SQLiteStore(tmp_path / "x.db"))


async def test_a_damaged_file_is_one_clear_error_and_grants_nothing(tmp_path):
    (tmp_path / "x.db").write_bytes(b"this is no database" * 1000)
    assert "damaged" in await said(SQLiteStore(tmp_path / "x.db"))


async def test_a_full_disk_is_one_clear_error_and_grants_nothing(tmp_path):
    """SQLite's own limit of pages stands in for the disk; then there is space again."""
    store = SQLiteStore(tmp_path / "x.db")
    await Limiter(requests=per_second(5), name="x", store=store).acquire()
    with store.dispatcher._io:
        store._connection.execute("PRAGMA max_page_count = 1")
    limiter = Limiter(requests=per_second(5), name="y" * 60_000, store=store)
    with pytest.raises(StoreError, match="full: nothing was granted"):
        await limiter.acquire()
    await limiter.acquire()
    store.close()


async def test_a_file_that_cannot_be_written_is_one_clear_error(tmp_path):
    """`query_only` gives the error that a file without permission gives (to root there is none)."""
    store = SQLiteStore(tmp_path / "x.db")
    limiter = Limiter(requests=per_second(5), name="x", store=store)
    await limiter.acquire()
    with store.dispatcher._io:
        store._connection.execute("PRAGMA query_only = 1")
    with pytest.raises(StoreError, match="cannot be written: let this user write"):
        await limiter.acquire()
    store.close()


async def test_a_locked_file_is_waited_for_and_then_one_clear_error(tmp_path):
    store = SQLiteStore(tmp_path / "x.db", patience=0.3)
    limiter = Limiter(requests=per_second(50), name="x", store=store)
    await limiter.acquire()
    with contextlib.closing(sqlite3.connect(tmp_path / "x.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match="locked by another process"):
            await limiter.acquire()
        other.execute("ROLLBACK")
    with anyio.fail_after(PATIENCE):
        while True:
            with contextlib.suppress(StoreError):
                await limiter.acquire()
                break
            await anyio.sleep(0.01)
    store.close()


@pytest.mark.parametrize("kind", ["sqlite", "valkey"])
async def test_a_clock_that_steps_back_grants_nothing_and_stalls_nobody(kind, tmp_path, monkeypatch, valkey, prefix):
    """By an hour, twice. The file's clock is this machine's; the script is told the time instead of asking its
    server."""
    step = 0.0
    real = clock.wall
    if kind == "sqlite":
        store = SQLiteStore(tmp_path / "x.db")
        monkeypatch.setattr(clock, "wall", lambda: real() + step)
    else:
        store = RedisStore(valkey, prefix=prefix)
        store.decide = lambda batch: store.decide_at(batch, float(int((real() + step) * 1e6)))
    rate, burst = 300, 5
    crowd = Crowd(Limiter(requests=per_second(rate, burst=burst), name="x", store=store))
    begin = time.monotonic()
    async with crowd.at_work(10):
        for _ in range(2):
            await anyio.sleep(0.2)
            step -= 3600.0
            await crowd.recovered(time.monotonic())
        with anyio.fail_after(30):
            while len(crowd.moments) < 0.5 * rate:
                await anyio.sleep(0.05)
    assert len(crowd.moments) <= burst + rate * (crowd.last - begin)
    store.close()


async def test_places_of_a_living_process_are_kept_for_as_long_as_it_lives(valkey, prefix):
    """Though each of them is worth only `place_ttl` at a time."""
    stores = [RedisStore(valkey, prefix=prefix, place_ttl=1.0) for _ in range(2)]
    mine, theirs = (Limiter(calls=in_flight(1), name="x", store=store) for store in stores)
    permit = await mine.acquire()
    await anyio.sleep(1.5)
    with pytest.raises(RateLimited):
        await theirs.acquire(max_wait=0)
    permit.close()
    with anyio.fail_after(20):
        await theirs.acquire()
    for store in stores:
        store.close()


async def test_a_whole_cluster_that_is_down_is_an_outage(prefix, monkeypatch):
    """The client has errors of its own for that, which are not its usual ones."""
    store = RedisStore("redis://127.0.0.1:1/0", prefix=prefix, timeout=0.2, patience=0.1, on_outage="open")
    monkeypatch.setattr(store, "_is_cluster", True)
    monkeypatch.setattr(store, "_nodes", [("127.0.0.1", 1), ("127.0.0.1", 2)])
    with anyio.fail_after(20):
        await Limiter(requests=per_second(5), name="x", store=store).acquire()
    assert "does not answer" in str(store.dispatcher.down)
    store.close(timeout=1)
