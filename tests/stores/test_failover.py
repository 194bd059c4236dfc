"""A primary with a replica behind Sentinel: the primary is killed, the replica takes over, and calls go on."""

from __future__ import annotations

import contextlib
import sys
import time
from pathlib import Path

import anyio
import pytest

from penstock import Limiter, StoreError, per_second
from penstock.stores import RedisStore

servers = sys.modules["penstock_test_servers"]


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.fixture
def watched():
    """Primary, replica and a Sentinel of quorum 1."""
    binary = servers.binaries()["valkey"]
    primary = servers.Server(binary, "--repl-diskless-sync-delay", "0")
    replica = servers.Server(binary, "--replicaof", "127.0.0.1", str(primary.port))
    port = servers.free_port()
    configuration = Path(primary.directory) / "sentinel.conf"
    configuration.write_text(
        f"port {port}\nsentinel monitor main 127.0.0.1 {primary.port} 1\nsentinel down-after-milliseconds main 300\n"
        "sentinel failover-timeout main 1000\n"
    )
    sentinel = servers.Sentinel(binary, configuration, port)
    give_up = time.monotonic() + 15
    while b"slaves=1" not in sentinel.command("INFO", "sentinel") or b"master_link_status:up" not in replica.command(
        "INFO", "replication"
    ):
        assert time.monotonic() < give_up, "the Sentinel did not find the replica within 15 s"
        time.sleep(0.05)
    yield primary, replica, sentinel
    for one in (sentinel, replica, primary):
        one.stop()


@pytest.mark.anyio
async def test_after_a_failover_calls_go_on_with_what_was_used(watched, prefix):
    """The replica knows what was charged; within a second of its promotion it is charged on."""
    primary, replica, sentinel = watched
    store = RedisStore(f"redis+sentinel://127.0.0.1:{sentinel.port}/main", prefix=prefix, timeout=0.3, patience=0.3)
    limiter = Limiter(requests=per_second(0.001, burst=100), name="x", store=store)
    for _ in range(40):
        await limiter.acquire()
    row = ("HGET", store._key("x"), "r")
    with anyio.fail_after(5):
        while primary.command(*row) != replica.command(
            *row
        ):  # what it has not heard of yet is what a failover may cost
            await anyio.sleep(0.02)
    primary.kill()
    promoted = None
    with anyio.fail_after(20):
        while True:
            if promoted is None and b"role:master" in replica.command("INFO", "replication"):
                promoted = time.monotonic()
            with contextlib.suppress(StoreError):
                await limiter.acquire()
                break
            await anyio.sleep(0.02)
    assert promoted is None or time.monotonic() - promoted < 2.0
    await limiter.refresh()
    assert limiter.statistics().limits["requests"].level == pytest.approx(100 - 41, abs=0.1)
    store.close()
