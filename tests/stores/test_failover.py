"""A primary is killed, behind Sentinel or in a cluster; its replica takes over, or it comes back; and calls go on."""

from __future__ import annotations

import contextlib
import signal
import sys
import time
from pathlib import Path

import anyio
import pytest
import redis

from penstock import Limiter, Rate, RateLimited, StoreError, in_flight, per_second, sliding
from penstock.stores import RedisStore
from tests.stores.admissions import Crowd, excess

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
    while b"slaves=1" not in sentinel.command("INFO", "sentinel") or not servers.follows(replica, primary):
        assert time.monotonic() < give_up, "the Sentinel did not find the replica within 15 s"
        time.sleep(0.05)
    yield primary, replica, sentinel
    for one in (sentinel, replica, primary):
        one.stop()


RATE, BURST, TASKS = 100, 20, 5


async def until(true, what, seconds=20):
    """Wait for what servers do among themselves; return the moment at which it was seen."""
    give_up = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < give_up, f"{what}: not within {seconds} s"
        await anyio.sleep(0.005)
    return time.monotonic()


def assert_never_over(crowd):
    """The successor knew what was used, less the one batch whose answer went out before its copy did."""
    assert len(crowd.epochs) == 1
    assert excess(crowd.moments, RATE, BURST) <= TASKS + 0.01


@pytest.mark.anyio
async def test_when_sentinel_names_another_primary_calls_go_on_within_a_second(watched, prefix):
    primary, replica, sentinel = watched
    store = RedisStore(f"redis+sentinel://127.0.0.1:{sentinel.port}/main", prefix=prefix, timeout=0.3, patience=0.3)
    crowd = Crowd(Limiter(requests=per_second(RATE, burst=BURST), name="x", store=store))
    successor = str(replica.port).encode()
    async with crowd.at_work(TASKS):
        await anyio.sleep(0.3)
        primary.kill()
        over = await until(
            lambda: successor in sentinel.command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", "main"), "failover"
        )
        took = await crowd.recovered(over)
        await anyio.sleep(0.3)
    print(f"{1e3 * took:.0f} ms after the failover")  # noqa: T201 - `-rP` shows it
    assert_never_over(crowd)
    store.close()


@pytest.fixture(scope="module")
def nodes():
    """Three primaries and a replica of the first, who find out within half a second that one is dead."""
    binary = servers.binaries()["valkey"]
    made = servers.cluster(binary, patience=500)
    made.append(servers.add_replica(binary, made[0]))
    yield made
    for node in made:
        node.stop()


def limiter_on(node, nodes, prefix):
    """A limiter whose state that node keeps, over a store that was given the address of no other."""
    store = RedisStore(node.url, prefix=prefix, timeout=0.3, patience=0.3)
    return Crowd(Limiter(requests=per_second(RATE, burst=BURST), name=name_on(node, store), store=store))


def name_on(node, store):
    """A name whose state that node keeps."""
    return next(
        name for name in map(str, range(1000)) if not node.command("GET", store._key(name)).startswith(b"-MOVED")
    )


@pytest.mark.anyio
async def test_a_slot_that_moves_to_another_node_loses_nothing(cluster, prefix):
    """While one of its two keys has moved and the other has not, no node can decide: calls wait for that."""
    store = RedisStore(cluster, prefix=prefix, timeout=0.5, patience=5.0)
    limiter = Limiter(requests=per_second(1e-6, burst=3), name="x", store=store)
    await limiter.acquire()
    with contextlib.closing(redis.RedisCluster.from_url(cluster)) as client:
        slot = client.keyslot(store._key("x"))
        nodes = [redis.Redis(node.host, node.port) for node in client.get_primaries()]
        ids = {node: node.execute_command("CLUSTER MYID") for node in nodes}
        old = next(node for node in nodes if node.execute_command("CLUSTER COUNTKEYSINSLOT", slot))
        new = next(node for node in nodes if node is not old)
        new.execute_command("CLUSTER SETSLOT", slot, "IMPORTING", ids[old])
        old.execute_command("CLUSTER SETSLOT", slot, "MIGRATING", ids[new])
        first, second = old.execute_command("CLUSTER GETKEYSINSLOT", slot, 10)
        where = ("127.0.0.1", new.get_connection_kwargs()["port"])
        old.execute_command("MIGRATE", *where, first, 0, 5000)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(limiter.acquire)
            await anyio.sleep(0.1)
            assert limiter.statistics().granted == 1
            old.execute_command("MIGRATE", *where, second, 0, 5000)
            for node in (new, old, *nodes):
                node.execute_command("CLUSTER SETSLOT", slot, "NODE", ids[new])
        for node in nodes:
            node.close()
    await limiter.acquire(max_wait=0)
    with pytest.raises(RateLimited):
        await limiter.acquire(max_wait=0)
    store.close()


@pytest.mark.anyio
async def test_a_call_for_names_in_two_slots_is_its_callers_error_where_the_cluster_was_found_out_late(
    cluster, prefix, monkeypatch
):
    """Redis' own error was taken for an outage, which went on for as long as that call was asked again."""
    store = RedisStore(cluster, prefix=prefix)
    monkeypatch.setattr(store, "prepare", lambda: None)  # as where nothing answers at first
    org, user = (Limiter(requests=per_second(50), name=name, store=store) for name in ("org", "user"))
    with pytest.raises(StoreError, match="different hash slots"):
        await (org & user).acquire()
    await org.acquire(max_wait=0)
    await user.acquire(max_wait=0)
    store.close()


@pytest.mark.anyio
async def test_a_node_of_a_cluster_is_killed_and_its_replica_takes_over(nodes, prefix):
    """Though it was the only one whose address we were given."""
    dead, *others, replica = nodes
    crowd = limiter_on(dead, nodes, prefix)
    async with crowd.at_work(TASKS):
        await anyio.sleep(0.3)
        dead.kill()
        successor = str(replica.port).encode()
        over = await until(
            lambda: (
                b"role:master" in replica.command("INFO", "replication")
                and all(successor + b"@" in line for node in others for line in masters(node) if b" 0-" in line)
            ),
            "failover",
        )
        took = await crowd.recovered(over)
        await anyio.sleep(0.3)
    print(f"{1e3 * took:.0f} ms after the failover")  # noqa: T201 - `-rP` shows it
    assert_never_over(crowd)
    crowd.limiter.store.close()


def masters(node):
    """What that node knows of those who own slots."""
    return [
        line for line in node.command("CLUSTER", "NODES").splitlines() if b"master" in line and b"connected" in line
    ]


@pytest.mark.anyio
async def test_a_node_of_a_cluster_is_killed_and_comes_back(nodes, prefix):
    """With nobody to take over, its slots wait for it; as it keeps nothing on disk, it comes back with full limits."""
    dead = nodes[1]
    crowd = limiter_on(dead, nodes, prefix)
    async with crowd.at_work(TASKS):
        await anyio.sleep(0.3)
        dead.kill()
        await anyio.sleep(0.3)
        dead.start()
        over = await until(lambda: b"cluster_state:ok" in dead.command("CLUSTER", "INFO"), "rejoining")
        took = await crowd.recovered(over)
        await anyio.sleep(0.3)
    print(f"{1e3 * took:.0f} ms after it was back")  # noqa: T201 - `-rP` shows it
    assert len(crowd.epochs) == 2
    assert excess(crowd.moments, RATE, BURST) <= BURST + 0.01
    crowd.limiter.store.close()


@pytest.mark.anyio
@pytest.mark.parametrize("closed", [False, True], ids=["", "and the store is closed meanwhile"])
async def test_a_silent_node_of_a_cluster_holds_up_what_lives_there_and_nothing_else(closed, nodes, prefix):
    """Its callers hear it after the store's patience; others wait once, for as long as one reply may take."""
    _, silent, other, _ = nodes
    events = []
    store = RedisStore(other.url, prefix=prefix, timeout=0.3, patience=0.3, on_event=events.append)
    held_up, bystander = (
        Limiter(requests=per_second(1000), name=name_on(node, store), store=store) for node in (silent, other)
    )
    with anyio.fail_after(30):
        await held_up.acquire()
        await bystander.acquire()
        silent.process.send_signal(signal.SIGSTOP)
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(refused, held_up)
                group.start_soon(refused, held_up, 0)
                for _ in range(20):
                    await bystander.acquire(max_wait=5)
            await refused(held_up, 0)
            held_up.pause(0.01)  # what is to be said there waits, and holds up nothing either
            for _ in range(20):
                await bystander.acquire(max_wait=5)
            with pytest.raises(StoreError):
                await held_up.refresh()
            assert [type(event).__name__ for event in events] == ["StoreLost"]
            if closed:
                await anyio.to_thread.run_sync(store.close, 2)
        finally:
            silent.process.send_signal(signal.SIGCONT)
        await until(lambda: b"cluster_state:ok" in silent.command("CLUSTER", "INFO"), "rejoining")
        while True:
            try:
                await held_up.acquire()
                break
            except StoreError:
                await anyio.sleep(0.05)
        await bystander.acquire()
    assert closed or [type(event).__name__ for event in events] == ["StoreLost", "StoreRecovered"]
    await anyio.to_thread.run_sync(store.close)


@pytest.mark.anyio
async def test_a_cluster_of_which_all_is_silent_is_one_outage(nodes, prefix):
    """Not one node after the other, each of which would be waited for."""
    store = RedisStore(nodes[2].url, prefix=prefix, timeout=0.3, patience=0.3)
    limiters = [Limiter(requests=per_second(1000), name=str(number), store=store) for number in range(6)]
    with anyio.fail_after(60):
        for limiter in limiters:
            await limiter.acquire()
        alive = [node.process for node in nodes if node.process.poll() is None]
        for process in alive:
            process.send_signal(signal.SIGSTOP)
        try:
            async with anyio.create_task_group() as group:
                for limiter in limiters:
                    group.start_soon(refused, limiter)
            assert store.dispatcher.down is not None
        finally:
            for process in alive:
                process.send_signal(signal.SIGCONT)
        while True:
            try:
                await limiters[0].acquire()
                break
            except StoreError:
                await anyio.sleep(0.05)
    await anyio.to_thread.run_sync(store.close)


async def refused(limiter, max_wait=None):
    with pytest.raises(StoreError):
        await limiter.acquire(max_wait=max_wait)


TOKENS = {
    "a rate": Rate(1, 1_000_000, burst=20),
    "two rates": [Rate(1, 1_000_000, burst=20), Rate(1, 1_000_000, burst=30)],
    "places": in_flight(20),
    "a window": sliding(20, 600),
}
REPLACED = [("a rate", "two rates"), ("two rates", "places"), ("places", "a window"), ("a window", "a rate")]


@pytest.mark.anyio
@pytest.mark.parametrize(("before", "after"), REPLACED, ids=" to ".join)
async def test_limits_that_are_replaced_while_a_server_is_down(before, after, server, prefix):
    """This process read its own row as one of the new limits, and refused all calls if there were more or fewer."""
    store = RedisStore(server.url, prefix=prefix, patience=0.0, on_outage="share", share=0.5)
    limiter = Limiter(tokens=TOKENS[before], name="x", store=store)
    await limiter.acquire(tokens=0)
    server.kill()
    earlier = await limiter.acquire(tokens=3)  # of its share of 10
    limiter.reconfigure(tokens=TOKENS[after])
    permits = [await limiter.acquire(tokens=6, max_wait=0)]
    if after != "places":  # what was used is not held
        with pytest.raises(RateLimited):
            await limiter.acquire(tokens=6, max_wait=0)
    permits[0].settle(tokens=4)
    server.start()
    await until(lambda: store.dispatcher.down is None, "the store answers again")
    permits.append(await limiter.acquire(tokens=1))
    for permit in (*permits, earlier):
        permit.close()

    async def level():
        await limiter.refresh()
        return min(limit.level for limit in limiter.statistics().limits.values())

    if after == "places":
        with anyio.fail_after(20):
            while await level() < 20:
                await anyio.sleep(0.01)
    else:
        assert 20 - 14 - 0.01 <= await level() <= 20 - 8 + 0.01  # what went to a limit of another kind may stay there
    store.close()
