"""A file that is damaged, removed or replaced: an error, and never a grant beyond what was left."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import sqlite3
import time
from pathlib import Path

import anyio
import pytest

from penstock import Limiter, RateLimited, StoreError, per_second
from penstock.stores import SQLiteStore

pytestmark = pytest.mark.anyio

LEFT = 20


@pytest.fixture
def anyio_backend():
    return "asyncio"


def limiter_on(path):
    return Limiter(requests=per_second(1e-6, burst=100), name="x", store=SQLiteStore(path, patience=2.0))


@pytest.fixture
async def used(tmp_path):
    """A file in which 20 of 100 are left, with nothing in its log."""
    limiter = limiter_on(tmp_path / "x.db")
    await limiter.acquire(requests=100 - LEFT)
    await anyio.to_thread.run_sync(limiter.store.close)
    with contextlib.closing(sqlite3.connect(tmp_path / "x.db")) as file:
        file.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return tmp_path / "x.db"


async def granted(path):
    """How many a process gets that opens the file now: calls of one until there is an error, or no more."""
    limiter = limiter_on(path)
    count = 0
    try:
        with anyio.fail_after(20):
            while count <= 2 * LEFT:
                await limiter.acquire(max_wait=0)
                count += 1
    except (RateLimited, StoreError):
        pass
    finally:
        await anyio.to_thread.run_sync(limiter.store.close)
    return count


async def test_a_row_with_one_flipped_bit_is_an_error(used):
    with contextlib.closing(sqlite3.connect(used, isolation_level=None)) as file:
        (row,) = file.execute("SELECT row FROM penstock_rows").fetchone()
        for at in range(8 * len(row)):
            broken = bytearray(row)
            broken[at // 8] ^= 1 << at % 8
            file.execute("UPDATE penstock_rows SET row = ?", (bytes(broken),))
            if at % 97 == 0:
                limiter = limiter_on(used)
                with pytest.raises(StoreError, match="'x' is damaged: nothing was granted"):
                    await limiter.acquire()
                await anyio.to_thread.run_sync(limiter.store.close)
        file.execute("UPDATE penstock_rows SET row = ?", (row,))
    assert await granted(used) == LEFT


async def test_a_damaged_row_is_not_shown(used):
    store = limiter_on(used).store
    assert store.peek("x") is None, "it is not open yet"
    limiter = limiter_on(used)
    await limiter.acquire()
    store = limiter.store
    assert store.peek("x") is not None
    with contextlib.closing(sqlite3.connect(used, isolation_level=None)) as file:
        file.execute("UPDATE penstock_rows SET row = zeroblob(length(row))")
    assert store.peek("x") is None
    await anyio.to_thread.run_sync(store.close)


@pytest.mark.parametrize("row", [b"", b"1234567", "text", 5, None], ids=repr)
async def test_a_row_of_another_kind_is_an_error(row, used):
    file = sqlite3.connect(used, isolation_level=None)
    with contextlib.closing(file), contextlib.suppress(sqlite3.IntegrityError):
        file.execute("UPDATE penstock_rows SET row = ?", (row,))
    assert await granted(used) in ({0} if row is not None else {LEFT})


@pytest.mark.parametrize("when", ["before it is opened", "while it is open"])
@pytest.mark.parametrize(
    "what",
    [
        "BEFORE UPDATE ON penstock_rows BEGIN SELECT RAISE(IGNORE); END",
        "AFTER UPDATE ON penstock_rows BEGIN UPDATE penstock_rows SET row = OLD.row WHERE name = OLD.name; END",
    ],
    ids=["ignores", "undoes"],
)
async def test_a_trigger_that_undoes_what_is_written_makes_no_grant_free(what, when, used):
    """Calls are refused until it is dropped, and begin where they were."""
    limiter = limiter_on(used)
    if when == "while it is open":
        await limiter.acquire()
    with contextlib.closing(sqlite3.connect(used)) as file:
        file.execute(f"CREATE TRIGGER theirs {what}")
        for _ in range(2):
            with pytest.raises(StoreError, match="trigger"):
                await limiter.acquire()
        file.execute("DROP TRIGGER theirs")
    assert await granted(used) == LEFT - (when == "while it is open")
    limiter.store.close()


async def test_a_row_that_cannot_be_found_any_more_is_no_full_limit(used):
    """Its name is damaged: names without a row are refused, since each may be it; those that have one go on."""
    other = Limiter(requests=per_second(1000), name="y", store=SQLiteStore(used))
    await other.acquire()
    await anyio.to_thread.run_sync(other.store.close)
    with contextlib.closing(sqlite3.connect(used, isolation_level=None)) as file:
        file.execute("UPDATE penstock_rows SET name = 'w' WHERE name = 'x'")
    for _ in range(2):
        limiter = limiter_on(used)
        with pytest.raises(StoreError, match="has damaged rows, and that of 'x', which is missing, may be one of them"):
            await limiter.acquire()
        await Limiter(requests=per_second(1000), name="y", store=limiter.store).acquire()
        await anyio.to_thread.run_sync(limiter.store.close)


async def test_a_row_whose_time_to_be_forgotten_is_damaged_is_an_error_and_stays(used):
    with contextlib.closing(sqlite3.connect(used, isolation_level=None)) as file:
        file.execute("UPDATE penstock_rows SET expires = 5")
    for _ in range(2):
        assert await granted(used) == 0


async def test_damaged_files_never_grant_more_than_was_left(used, tmp_path):
    """Bytes changed anywhere, and files cut anywhere but to nothing: a file of no bytes is a new one."""
    whole = used.read_bytes()
    rng = random.Random(7)
    for number in range(60):
        broken = bytearray(whole)
        if number % 3:
            for _ in range(rng.choice([1, 3, 40])):
                broken[rng.randrange(len(broken))] = rng.randrange(256)
        else:
            del broken[rng.randrange(1, len(broken)) :]
        path = tmp_path / f"{number}.db"
        path.write_bytes(broken)
        assert await granted(path) <= LEFT, f"damage {number}"


async def test_a_file_that_is_removed_under_an_open_store_is_an_error_once(used):
    """And from then on all processes are in the same file again."""
    mine, theirs = limiter_on(used), limiter_on(used)
    await mine.acquire()
    for file in used.parent.glob("x.db*"):
        file.unlink()
    await theirs.acquire(requests=60)
    with pytest.raises(StoreError, match="removed or replaced while it was in use"):
        await mine.acquire()
    with pytest.raises(RateLimited):
        await mine.acquire(requests=41, max_wait=0)
    await mine.acquire(requests=40, max_wait=0)
    for limiter in (mine, theirs):
        await anyio.to_thread.run_sync(limiter.store.close)


async def test_a_file_that_is_replaced_under_an_open_store_is_an_error_once(used, tmp_path):
    shutil.copy(used, tmp_path / "copy.db")
    limiter = limiter_on(used)
    await limiter.acquire(requests=LEFT)
    (tmp_path / "copy.db").replace(used)
    with pytest.raises(StoreError, match="removed or replaced"):
        await limiter.acquire()
    await anyio.to_thread.run_sync(limiter.store.close)


@pytest.mark.parametrize("log", [True, False], ids=["with its log", "after its log was written into it"])
async def test_a_file_that_is_emptied_under_an_open_store_grants_nothing(log, used):
    limiter = limiter_on(used)
    await limiter.acquire(requests=LEFT)
    for _ in range(3):  # once with what SQLite remembers of it, then with new connections
        if not log:
            with contextlib.closing(sqlite3.connect(used)) as file, contextlib.suppress(sqlite3.Error):
                file.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        for file in (used, used.with_name("x.db-wal")):
            if file.exists():
                os.truncate(file, 0)
        with pytest.raises((StoreError, RateLimited)):
            await limiter.acquire(max_wait=0)
        await anyio.to_thread.run_sync(limiter.store.close)
    with pytest.raises(StoreError, match=r"(emptied|cut) while it was in use"):
        await limiter.acquire(max_wait=0)
    await anyio.to_thread.run_sync(limiter.store.close)


@pytest.mark.parametrize("beside", [["-wal"], ["-shm"], ["-wal", "-shm"]])
async def test_a_log_that_is_removed_under_open_stores_is_an_error_once_and_loses_nothing(beside, used):
    """Who opens the file from then on would begin another log, and see nothing of what is granted in the old one."""
    mine, theirs = limiter_on(used), limiter_on(used)
    await mine.acquire(requests=5)
    await theirs.acquire(requests=5)
    for suffix in beside:
        Path(f"{used}{suffix}").unlink()
    for limiter in (mine, theirs):
        with pytest.raises(StoreError, match="the log of"):
            await limiter.acquire(max_wait=0)
    assert await granted(used) == LEFT - 10
    for limiter in (mine, theirs):
        with pytest.raises(RateLimited):
            await limiter.acquire(max_wait=0)
        await anyio.to_thread.run_sync(limiter.store.close)


async def test_a_file_with_a_second_name_is_refused(used, tmp_path):
    """SQLite would keep a log for each name, and a process under one would not see what is granted under the other."""
    os.link(used, tmp_path / "second.db")
    for path in (used, tmp_path / "second.db"):
        limiter = limiter_on(path)
        with pytest.raises(StoreError, match="hard links"):
            await limiter.acquire()
        await anyio.to_thread.run_sync(limiter.store.close)


async def test_behind_a_symbolic_link_the_log_and_its_index_are_looked_after_too(used, tmp_path):
    """SQLite keeps them beside the file that the link leads to."""
    link = tmp_path / "link.db"
    (tmp_path / "there").mkdir()
    link.symlink_to(used.rename(tmp_path / "there/y.db"))
    limiter = limiter_on(link)
    await limiter.acquire(requests=5)
    os.truncate(tmp_path / "there/y.db-shm", 0)
    await limiter.acquire(requests=5)
    (tmp_path / "there/y.db-wal").unlink()
    with pytest.raises(StoreError, match="the log of"):
        await limiter.acquire(max_wait=0)
    assert await granted(link) == LEFT - 10
    with pytest.raises(RateLimited):
        await limiter.acquire(max_wait=0)
    await anyio.to_thread.run_sync(limiter.store.close)


async def test_a_file_that_is_moved_and_linked_to_under_an_open_store_is_an_error_once(used, tmp_path):
    """Who opens it from then on would begin a log at the other place."""
    limiter = limiter_on(used)
    await limiter.acquire(requests=5)
    used.symlink_to(used.rename(tmp_path / "other.db"))
    with pytest.raises(StoreError, match="removed or replaced"):
        await limiter.acquire(max_wait=0)
    assert await granted(used) == LEFT - 5
    with pytest.raises(RateLimited):
        await limiter.acquire(max_wait=0)
    await anyio.to_thread.run_sync(limiter.store.close)


async def test_a_directory_that_comes_back_begins_a_new_file(tmp_path):
    """Also if the new file has the inode of the old one, as is usual."""
    folder = tmp_path / "here"
    folder.mkdir()
    limiter = limiter_on(folder / "x.db")
    await limiter.acquire()
    shutil.rmtree(folder)
    with pytest.raises(StoreError, match="removed or replaced"):
        await limiter.acquire()
    with pytest.raises(StoreError, match="does its directory exist"):
        await limiter.acquire()
    folder.mkdir()
    await limiter.acquire()
    await anyio.to_thread.run_sync(limiter.store.close)


async def test_a_file_that_is_removed_while_its_store_is_closed_is_a_new_one(used):
    limiter = limiter_on(used)
    await limiter.acquire()
    await anyio.to_thread.run_sync(limiter.store.close)
    used.unlink()
    await limiter.acquire(requests=60)
    await anyio.to_thread.run_sync(limiter.store.close)


async def test_another_current_directory_makes_no_other_file(tmp_path, monkeypatch):
    """As daemons do once they have begun."""
    monkeypatch.chdir(tmp_path)
    limiter = limiter_on("x.db")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    await limiter.acquire()
    assert (tmp_path / "x.db").exists()
    monkeypatch.chdir(tmp_path)
    await limiter.acquire()
    await anyio.to_thread.run_sync(limiter.store.close)
    assert not (tmp_path / "elsewhere/x.db").exists()


@pytest.mark.parametrize("path", [":memory:", "a\0b.db", "\ud800.db"])
def test_a_path_that_no_file_can_have_is_an_error_at_once(path):
    with pytest.raises(ValueError, match="file"):
        SQLiteStore(path)


@pytest.mark.parametrize("part", [0.0, 0.3, 0.9])
async def test_a_log_that_is_cut_under_open_stores_is_an_error_once_and_grants_nothing_more(part, tmp_path):
    """What was in it is lost, so everything counts as used up; also for processes that open the file later."""
    mine, theirs = limiter_on(tmp_path / "x.db"), limiter_on(tmp_path / "x.db")
    for _ in range(30):
        await mine.acquire()
    await theirs.acquire(requests=20)
    log = tmp_path / "x.db-wal"
    os.truncate(log, int(part * log.stat().st_size))
    with pytest.raises(StoreError, match="cut while it was in use, and all limits count as used up now"):
        await mine.acquire(max_wait=0)
    for limiter in (theirs, mine):
        with pytest.raises(RateLimited):
            await limiter.acquire(max_wait=0)
        await anyio.to_thread.run_sync(limiter.store.close)
    assert await granted(tmp_path / "x.db") == 0


async def test_after_a_log_was_cut_limits_refill(tmp_path):
    """Of all names, also those that nobody has used since."""
    store = SQLiteStore(tmp_path / "x.db")
    quick = Limiter(requests=per_second(100, burst=5), name="quick", store=store)
    slow = Limiter(requests=per_second(1e-6, burst=5), name="slow", store=store)
    for _ in range(5):
        await quick.acquire()
    os.truncate(tmp_path / "x.db-wal", 0)
    with pytest.raises(StoreError, match="was cut"):
        await quick.acquire()
    for _ in range(5):
        await quick.acquire(max_wait=10)
    with pytest.raises(RateLimited):
        await slow.acquire(max_wait=0)
    assert await anyio.to_thread.run_sync(store.names, "") == ["quick", "slow"]
    await anyio.to_thread.run_sync(store.close)


@pytest.mark.parametrize("size", [0, 9000, 20_000])
async def test_an_index_of_the_log_that_is_cut_under_open_stores_loses_nothing(size, tmp_path):
    """It would kill a process that reads behind its end, and hide what is in the log from the others."""
    mine, theirs = limiter_on(tmp_path / "x.db"), limiter_on(tmp_path / "x.db")
    for limiter in (mine, theirs):
        for _ in range(20):
            await limiter.acquire()
    for limiter in (mine, theirs):
        os.truncate(tmp_path / "x.db-shm", size)
        await limiter.acquire(requests=20, max_wait=0)
    third = limiter_on(tmp_path / "x.db")
    await third.acquire()
    os.truncate(tmp_path / "x.db-shm", size)
    await anyio.to_thread.run_sync(third.store.close)
    os.truncate(tmp_path / "x.db-shm", size)
    assert await anyio.to_thread.run_sync(mine.store.names, "") == ["x"]
    os.truncate(tmp_path / "x.db-shm", size)
    assert await granted(tmp_path / "x.db") == 19
    for limiter in (mine, theirs):
        with pytest.raises(RateLimited):
            await limiter.acquire(max_wait=0)
        await anyio.to_thread.run_sync(limiter.store.close)


async def test_a_log_that_somebody_emptied_into_the_file_is_no_error(tmp_path):
    """As those who make a copy of the file do."""
    limiter = limiter_on(tmp_path / "x.db")
    for _ in range(3):
        for _ in range(10):
            await limiter.acquire()
        with contextlib.closing(sqlite3.connect(tmp_path / "x.db")) as file:
            file.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        assert not (tmp_path / "x.db-wal").stat().st_size
    await limiter.acquire(requests=70)
    with pytest.raises(RateLimited):
        await limiter.acquire(max_wait=0)
    await anyio.to_thread.run_sync(limiter.store.close)


async def test_where_lost_is_empty_a_file_that_is_removed_grants_nothing(used):
    """Nor does a new one begin with anything; what flows in from then on is granted."""
    store = SQLiteStore(used, on_state_loss="empty")
    limiter = Limiter(requests=per_second(1e-6, burst=100), name="x", store=store)
    await limiter.acquire(requests=LEFT)
    for file in used.parent.glob("x.db*"):
        file.unlink()
    with pytest.raises(StoreError, match="removed or replaced"):
        await limiter.acquire(max_wait=0)
    with pytest.raises(RateLimited):
        await limiter.acquire(max_wait=0)
    await Limiter(requests=per_second(100, burst=5), name="y", store=store).acquire(max_wait=10)
    await anyio.to_thread.run_sync(store.close)
    with contextlib.closing(sqlite3.connect(used)) as file:
        ((kept,),) = file.execute("SELECT min(expires) FROM penstock_rows").fetchall()
    assert kept > time.time() + 29 * 86_400
    with pytest.raises(ValueError, match='on_state_loss must be "full" or "empty", not 5'):
        SQLiteStore(used, on_state_loss=5)
