"""A hostile server and damaged files, by the thousand: only our errors, no grant beyond what was left, no hang.

`make test` tries a sample. All 10,000 replies and 1,000 files take some minutes:

    PENSTOCK_FUZZ=1 make test TESTS=tests/stores/test_fuzz.py
"""

from __future__ import annotations

import contextlib
import os
import random
import sqlite3
import struct
from functools import partial

import anyio
import pytest
import redis

from penstock import Limiter, RateLimited, StoreError, per_second
from penstock.stores import RedisStore, SQLiteStore
from tests.stores.talker import Talker

FULL = bool(os.environ.get("PENSTOCK_FUZZ"))
EACH = 50
"""Replies, or files, of one test: it ends in time on a busy machine."""

REPLIES, FILES = (10_000, 1_000) if FULL else (200, 50)
LEFT, BURST = 20, 100
ODD = [float("nan"), float("inf"), -float("inf"), -1.0, 0.0, -0.0, 1e300, -1e300, 5e-324, 2.0**63, 1e-9]

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend():
    return "asyncio"


def limiter_on(store):
    return Limiter(requests=per_second(1e-6, burst=BURST), name="x", store=store)


# Replies


class Sample:
    """What a real server said, to be spoiled."""

    def __init__(self, url, prefix):
        store = RedisStore(url, prefix=prefix)
        self.replies = []
        run = store._run

        def kept(*arguments):
            answer = run(*arguments)
            if isinstance(answer, bytes):
                self.replies.append(answer)
            return answer

        store._run = kept
        with limiter_on(store):
            pass
        store.close()


def bulk(data):
    return b"$%d\r\n%b\r\n" % (len(data), data)


def spoiled(rng, reply):
    """One reply of a hostile server: bytes changed, cut, added, numbers replaced, or another kind of reply
    altogether."""
    kind = rng.randrange(8)
    data = bytearray(reply)
    if kind == 0:
        for _ in range(rng.choice([1, 4])):
            data[rng.randrange(len(data))] = rng.randrange(256)
    elif kind == 1:
        del data[rng.randrange(len(data)) :]
    elif kind == 2:
        data += rng.randbytes(rng.choice([1, 8, 80]))
    elif kind == 3:
        at = 8 * rng.randrange(len(data) // 8)
        data[at : at + 8] = struct.pack(">d", rng.choice(ODD))
    elif kind == 4:
        return rng.randbytes(rng.randrange(1, 60)) + b"\r\n"
    elif kind == 5:
        return b"-%b\r\n" % rng.choice(
            [b"ERR", b"DAMAGED 1", b"DAMAGED -1", b"BUSY x", b"WRONGTYPE", b"\xff\xfe", b"MOVED 1 h:1", b"ASK 1 h:1"]
        )
    elif kind == 6:
        parts = [
            rng.choice(
                [bulk(bytes(data[:8])), b":1\r\n", b"$-1\r\n", bulk(b'{"requests":[["rate"]]}'), bulk(rng.randbytes(5))]
            )
            for _ in range(3)
        ]
        return b"*%d\r\n" % rng.choice([0, 3, 3, 4]) + b"".join(parts)
    else:
        return rng.choice(
            [
                b":5\r\n",
                b"+OK\r\n",
                b"$-1\r\n",
                b"*-1\r\n",
                b"$99999999999\r\n",
                b"%1\r\n",
                b"_\r\n",
                b"",
                b"\r\n",
                b"*1\r\n" * 50,
            ]
        )
    return bulk(bytes(data))


@pytest.mark.parametrize("seed", range(REPLIES // EACH))
async def test_no_reply_of_a_hostile_server_hangs_or_raises_what_is_not_ours(seed, valkey, prefix):
    sample = (await anyio.to_thread.run_sync(Sample, valkey, prefix)).replies
    rng = random.Random(seed)
    talker = Talker(lambda: spoiled(rng, rng.choice(sample)))
    store = RedisStore(talker.url, prefix=prefix, timeout=0.02, patience=0.0)
    limiter = limiter_on(store)
    while talker.asked < EACH:
        with anyio.fail_after(20):
            with contextlib.suppress(StoreError, RateLimited):
                (await limiter.acquire(max_wait=0.01)).cancel()
    await anyio.to_thread.run_sync(partial(store.close, timeout=0.2))
    talker.stop()


# Rows of a server


async def test_no_damaged_row_of_a_server_stops_it_or_raises_what_is_not_ours(valkey, prefix):
    """The script takes every row apart: none makes it loop, which would stop the server for everybody."""
    store = RedisStore(valkey, prefix=prefix, timeout=2.0, patience=0.5)
    limiter = limiter_on(store)
    await limiter.acquire(requests=BURST - LEFT)
    rng = random.Random(3)
    with contextlib.closing(redis.Redis.from_url(valkey)) as client:
        key = store._key("x")
        whole = client.hget(key, "r")
        for _ in range(REPLIES // 10):
            row = bytearray(whole)
            for _ in range(rng.choice([1, 2, 8])):
                at = 8 * rng.randrange(len(row) // 8)
                row[at : at + 8] = struct.pack(">d", rng.choice([*ODD, rng.uniform(-10, 10)]))
            if row == whole:
                continue
            client.hset(key, "r", bytes(row))
            with anyio.fail_after(20), pytest.raises(StoreError):
                await limiter.acquire(max_wait=0)
        assert client.ping()
        client.hset(key, "r", whole)
    await limiter.refresh()
    assert limiter.statistics().limits["requests"].level <= LEFT + 0.1
    await anyio.to_thread.run_sync(store.close)


# Files


def used_file(path):
    """A file in which 20 of 100 are left, with nothing in its log."""
    store = SQLiteStore(path)
    with limiter_on(store)(requests=BURST - LEFT):
        pass
    store.close()
    with contextlib.closing(sqlite3.connect(path)) as file:
        file.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return path.read_bytes()


def damaged(rng, whole):
    """Bytes changed, zeroed, moved, or cut off; never all of them, as a file of no bytes is a new one."""
    data, kind = bytearray(whole), rng.randrange(5)
    if kind == 0:
        for _ in range(rng.choice([1, 1, 3, 40, 400])):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif kind == 1:
        del data[rng.randrange(1, len(data)) :]
    elif kind == 2:
        at, length = rng.randrange(len(data)), rng.choice([1, 16, 512, 4096])
        data[at : at + length] = bytes(len(data[at : at + length]))
    elif kind == 3:
        a, b = (4096 * rng.randrange(len(data) // 4096) for _ in range(2))
        data[a : a + 4096], data[b : b + 4096] = data[b : b + 4096], data[a : a + 4096]
    else:
        data += rng.randbytes(rng.choice([1, 100, 4096]))
    return bytes(data)


async def granted(path):
    """How many a process gets that opens the file now."""
    store = SQLiteStore(path, patience=0.02)
    limiter, count = limiter_on(store), 0
    try:
        with anyio.fail_after(20):
            while count <= LEFT:
                await limiter.acquire(max_wait=0)
                count += 1
    except (RateLimited, StoreError):
        pass
    finally:
        await anyio.to_thread.run_sync(partial(store.close, timeout=1))
    return count


@pytest.mark.parametrize("seed", range(FILES // EACH))
async def test_no_damaged_file_grants_more_than_was_left(seed, tmp_path):
    whole = await anyio.to_thread.run_sync(used_file, tmp_path / "x.db")
    rng = random.Random(seed)
    for number in range(EACH):
        path = tmp_path / f"{number}.db"
        path.write_bytes(damaged(rng, whole))
        assert await granted(path) <= LEFT, f"damage {number}"
        for file in tmp_path.glob(f"{number}.db*"):
            file.unlink()
