"""Real servers, real faults: never more than promised, and going on within a second of the fault's end."""

from __future__ import annotations

import contextlib
import importlib.util
import sqlite3
import time
from pathlib import Path

import anyio
import pytest

from penstock import Limiter, RateLimited, StoreError, in_flight, per_second
from penstock.events import StoreFound, StoreLost
from penstock.stores import RedisStore, SQLiteStore

_spec = importlib.util.spec_from_file_location("penstock_test_proxy", Path(__file__).with_name("proxy.py"))
_module = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_module)

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend():
    """Faults happen to the courier's thread, whichever loop it works for; `test_contract` has both."""
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


@pytest.mark.parametrize("fault", ["reset", "refuse", "hole", "flush", "latency"])
async def test_after_a_fault_everybody_goes_on_within_a_second(fault, proxy, store, valkey):
    """And over the whole time not one more than promised."""
    store.patience = 5.0
    limiter = Limiter(requests=per_second(300, burst=5), name="x", store=store)
    granted = []

    async def work():
        while True:
            await limiter.acquire()
            granted.append(time.monotonic())

    await limiter.acquire()
    begin = time.monotonic()
    async with anyio.create_task_group() as tasks:
        for _ in range(20):
            tasks.start_soon(work)
        await anyio.sleep(0.3)
        if fault == "reset":
            proxy.reset()
        elif fault == "flush":
            import redis

            await anyio.to_thread.run_sync(redis.Redis.from_url(valkey).script_flush)
        elif fault == "latency":
            proxy.latency = 0.05
        else:
            proxy.mode = fault
            proxy.reset() if fault == "refuse" else None
        await anyio.sleep(0.5)
        proxy.mode, proxy.latency = "pass", 0.0
        over = time.monotonic()
        await anyio.sleep(1.2)
        tasks.cancel_scope.cancel()
    span = time.monotonic() - begin
    assert len(granted) <= 5 + 300 * span + 1
    after = [moment for moment in granted if moment > over]
    assert after
    assert after[0] - over < 1.0


async def test_on_outage_raise_tells_everybody_and_later_goes_on(proxy, prefix):
    events = []
    store = RedisStore(proxy.url, prefix=prefix, timeout=0.2, patience=0.2, on_event=events.append)
    limiter = Limiter(requests=per_second(1000), name="x", store=store)
    await limiter.acquire()
    proxy.mode = "refuse"
    proxy.reset()
    with pytest.raises(StoreError, match="does not answer"):
        await limiter.acquire()
    with pytest.raises(StoreError, match="does not answer"), anyio.fail_after(0.5):
        await limiter.acquire()
    proxy.mode = "pass"
    with anyio.fail_after(2):
        while True:
            with contextlib.suppress(StoreError):
                await limiter.acquire()
                break
            await anyio.sleep(0.02)
    assert [type(event) for event in events] == [StoreLost, StoreFound]
    store.close()


async def test_on_outage_share_goes_on_with_a_part_and_charges_it_afterwards(proxy, prefix):
    store = RedisStore(proxy.url, prefix=prefix, timeout=0.2, patience=0.2, on_outage="share", share=0.25)
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
    with anyio.fail_after(3):
        while store.courier.down is not None:
            await anyio.sleep(0.02)
    await anyio.sleep(0.1)
    await limiter.refresh()
    assert limiter.statistics().limits["requests"].level == pytest.approx(100 - 10 - 25, abs=0.1)
    store.close()


async def test_on_outage_open_lets_everything_through_and_charges_it_afterwards(proxy, prefix):
    store = RedisStore(proxy.url, prefix=prefix, timeout=0.2, patience=0.2, on_outage="open")
    limiter = Limiter(requests=per_second(0.001, burst=100), name="x", store=store)
    await limiter.acquire(requests=10)
    proxy.mode = "refuse"
    proxy.reset()
    for _ in range(150):
        await limiter.acquire()
    proxy.mode = "pass"
    with anyio.fail_after(3):
        while store.courier.down is not None:
            await anyio.sleep(0.02)
    await anyio.sleep(0.1)
    await limiter.refresh()
    assert limiter.statistics().limits["requests"].level == pytest.approx(100 - 10 - 150, abs=0.1)
    store.close()


@pytest.mark.parametrize("lost", ["full", "empty"])
async def test_a_server_that_was_killed_and_lost_its_memory(lost, server, prefix):
    """`full`: at most one burst too much. `empty`: not one, at the price of a burst."""
    store = RedisStore(server.url, prefix=prefix, timeout=0.3, patience=5.0, on_state_loss=lost)
    limiter = Limiter(requests=per_second(20, burst=10), name="x", store=store)
    begin = time.monotonic()
    granted = 0

    async def work():
        nonlocal granted
        while True:
            await limiter.acquire()
            granted += 1

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(work)
        await anyio.sleep(0.7)
        server.kill()
        server.start()
        back = time.monotonic()
        before = granted
        while granted == before and time.monotonic() - back < 3:
            await anyio.sleep(0.01)
        assert time.monotonic() - back < 1.0
        await anyio.sleep(0.5)
        tasks.cancel_scope.cancel()
    span = time.monotonic() - begin
    assert granted <= 20 * span + (20 if lost == "full" else 0) + 1
    store.close()


async def test_pauses_are_heard_at_once_by_those_who_have_a_reservation(valkey, prefix):
    """Within milliseconds, not when they next ask."""
    stores = [RedisStore(valkey, prefix=prefix) for _ in range(2)]
    mine, theirs = (Limiter(requests=per_second(5, burst=1), name="x", store=store) for store in stores)
    await theirs.acquire()
    await mine.refresh()
    begin = time.monotonic()
    moments = []

    async def wait():
        await theirs.acquire()
        moments.append(time.monotonic() - begin)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait)
        await anyio.sleep(0.1)
        mine.pause(0.5)
    assert moments[0] >= 0.1 + 0.5 - 0.01
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
    assert "read-only replica" in message or "MASTERDOWN" in message


async def test_a_server_that_is_too_old_is_one_clear_error(server, monkeypatch):
    monkeypatch.setattr("penstock.stores.redis.OLDEST", (99, 0))
    assert "needs 6.2 or later" in await said(RedisStore(server.url))


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
    with store.courier._io:
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
    with store.courier._io:
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
    with anyio.fail_after(2):
        while True:
            with contextlib.suppress(StoreError):
                await limiter.acquire()
                break
            await anyio.sleep(0.01)
    store.close()


async def test_a_clock_that_steps_back_grants_nothing_and_stalls_nobody(tmp_path, monkeypatch):
    from penstock import clock

    store = SQLiteStore(tmp_path / "x.db")
    limiter = Limiter(requests=per_second(100, burst=5), name="x", store=store)
    for _ in range(5):
        await limiter.acquire()
    begin = time.monotonic()
    real = clock.wall
    monkeypatch.setattr(clock, "wall", lambda: real() - 3600)
    for _ in range(20):
        await limiter.acquire()
    assert 0.2 - 0.05 <= time.monotonic() - begin < 1.2
    store.close()


async def test_places_of_a_living_process_are_kept_for_as_long_as_it_lives(valkey, prefix):
    """Though each of them is worth only `place_ttl` at a time."""
    stores = [RedisStore(valkey, prefix=prefix, place_ttl=0.3) for _ in range(2)]
    mine, theirs = (Limiter(calls=in_flight(1), name="x", store=store) for store in stores)
    permit = await mine.acquire()
    await anyio.sleep(0.9)
    with pytest.raises(RateLimited):
        await theirs.acquire(max_wait=0)
    permit.close()
    with anyio.fail_after(1):
        await theirs.acquire()
    for store in stores:
        store.close()
