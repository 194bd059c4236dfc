"""Leases: quota that a process hands out by itself, and never more of it than was promised to all."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
import time
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import anyio
import pytest

from penstock import (
    ConfigurationConflict,
    Limiter,
    Rate,
    RateLimited,
    Unsatisfiable,
    calendar,
    clock,
    in_flight,
    per_second,
    sliding,
)
from penstock.stores import MemoryStore, RedisStore, SQLiteStore
from tests.stores.admissions import excess, excess_of_amounts
from tests.stores.busy import BUSY

LEASEHOLDER = str(Path(__file__).with_name("leaseholder.py"))
SECONDS = float(os.environ.get("PENSTOCK_SOAK", "3"))

# What it refuses


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"requests": "10/s burst 3", "lease": 0.5}, r"10 × 0\.5 = -2, and needs at least 1\. So use a lease of at most 0\.2 s, or raise burst to at least 6"),
        ({"requests": "10/s burst 1", "lease": 0.5}, r"So raise burst to at least 6"),
        ({"calls": in_flight(5), "lease": 1}, "held, not spent"),
        ({"requests": sliding(5, 2), "lease": 3}, r"counted as a window of 5 s\. Use a lease well below 2 s"),
        ({"requests": "10/s", "lease": 0}, "lease=0: seconds or a timedelta, above 0"),
        ({"requests": "10/s", "lease": True}, "lease=True: seconds or a timedelta, above 0"),
        ({"requests": "10/s", "lease": "1 s"}, "lease='1 s': seconds or a timedelta, above 0"),
    ],
)  # fmt: skip
def test_a_lease_that_cannot_be_is_refused_with_the_numbers_and_the_way_out(options, message, tmp_path):
    """At construction, before anybody is asked."""
    with pytest.raises(ValueError, match=message):
        Limiter(name="x", store=SQLiteStore(tmp_path / "never.db"), **options)
    assert not (tmp_path / "never.db").exists()


@pytest.mark.parametrize("lease", [timedelta(seconds=0.5), Decimal("0.5"), Fraction(1, 2)], ids=repr)
def test_a_lease_is_a_span_of_time_like_any_other(lease, tmp_path):
    store = SQLiteStore(tmp_path / "never.db")
    limiter = Limiter(requests="10/s", name="x", store=store, lease=lease)
    assert limiter._backend.sets[0].lease == 0.5


@pytest.mark.parametrize("store", [None, MemoryStore()])
def test_a_lease_needs_a_store_to_lease_from(store):
    with pytest.raises(ValueError, match=r"lease=0\.5 needs a shared store.*RedisStore.*leave lease= out"):
        Limiter(requests="10/s", store=store, lease=0.5)


# The limiter


async def level_of(limiter, unit):
    await limiter.refresh()
    return limiter.statistics().limits[unit].level


@asynccontextmanager
async def workers(limiter, count, granted, **cost):
    """`count` tasks that ask again and again; `granted` gets the moments."""

    async def work():
        while True:
            permit = await limiter.acquire(**cost)
            granted.append((permit.granted_at, cost.get("tokens", 1)))
            await anyio.sleep(0)

    async with anyio.create_task_group() as tasks:
        for _ in range(count):
            tasks.start_soon(work)
        yield
        tasks.cancel_scope.cancel()


@pytest.mark.anyio
async def test_while_a_lease_lasts_grants_cost_no_call(stores):
    """A hundredth of a call each, when one task asks again and again."""
    limiter = Limiter(
        requests=per_second(1e6, burst=2e6), tokens=per_second(1e6, burst=2e6), name="x", store=stores(), lease=1
    )
    for _ in range(20_000):
        async with limiter(tokens=2):
            pass
    assert limiter.store.dispatcher.calls <= 200
    assert limiter.statistics().granted == 20_000


@pytest.mark.anyio
async def test_two_processes_that_lease_one_limit_are_never_granted_more_than_it(stores):
    """By the moments at which they were granted; and they use nearly all of what the lease leaves of the burst."""
    rate, burst, lease_seconds = 400, 300, 0.2
    limiters = [
        Limiter(requests=per_second(rate, burst=burst), name="x", store=stores(), lease=lease_seconds) for _ in range(2)
    ]
    granted = []
    async with workers(limiters[0], 10, granted), workers(limiters[1], 10, granted):
        with anyio.fail_after(60):
            while len(granted) < burst + rate / 2:
                await anyio.sleep(0.05)
    span = max(granted)[0] - min(granted)[0]
    assert excess_of_amounts(granted, rate, burst) <= 0.001
    assert len(granted) >= 0.8 * (burst - rate * lease_seconds + rate * span), BUSY


@pytest.mark.anyio
async def test_all_limits_or_none(stores):
    """Who lacks tokens takes no request."""
    limiter = Limiter(
        requests=per_second(0.01, burst=5), tokens=per_second(0.01, burst=10), name="x", store=stores(), lease=5
    )
    await limiter.acquire(tokens=8)
    with pytest.raises(RateLimited) as caught:
        await limiter.acquire(tokens=5, max_wait=0)
    assert caught.value.blocked_by == "tokens"
    assert caught.value.retry_after == pytest.approx(305, rel=0.02)  # 3 + 0.05 of the burst, at a hundredth a second
    assert await level_of(limiter, "requests") == pytest.approx(5 - 0.05 - 1, abs=0.01)


@pytest.mark.anyio
async def test_what_nobody_uses_goes_back_when_the_limiter_falls_idle(stores):
    """To those who need it: within the lease, whatever its length."""
    mine, theirs = (Limiter(requests=per_second(1, burst=1000), name="x", store=stores(), lease=1) for _ in range(2))
    begin = clock.now()
    for _ in range(100):
        await mine.acquire()
    held = mine._backend.plan().states[0].pool.left
    assert held >= 20
    with anyio.fail_after(20):
        while mine._backend.plan().states[0].pool.leases:
            await anyio.sleep(0.02)
    await anyio.sleep(0.05)
    level = await level_of(theirs, "requests")
    flowed = clock.now() - begin  # one a second
    assert 999 - 100 - 5 <= level <= 999 - 100 + flowed + 1  # less by what a refund may lose


@pytest.mark.anyio
async def test_a_closed_store_gives_back_what_it_held(stores):
    store = stores()
    mine, theirs = (
        Limiter(requests=per_second(0.001, burst=1000), name="x", store=each, lease=60) for each in (store, stores())
    )
    for _ in range(100):
        await mine.acquire()
    assert mine._backend.plan().states[0].pool.left >= 20
    await anyio.to_thread.run_sync(store.close)
    assert await level_of(theirs, "requests") == pytest.approx(1000 - 0.06 - 100, abs=0.5)


@pytest.mark.anyio
async def test_a_permit_out_of_a_lease_settles_down_and_up(stores):
    """Down: for the next in this process, at once. Up: out of what is held, or as a debt in the store."""
    limiter = Limiter(tokens=per_second(0.01, burst=1000), name="x", store=stores(), lease=10)
    whole = 1000 - 0.1
    permit = await limiter.acquire(tokens=80)
    permit.settle(tokens=30)
    assert permit.cost == {"tokens": 30}
    assert await level_of(limiter, "tokens") == pytest.approx(whole - 30, abs=0.2)
    permit.settle(tokens=530)
    assert await level_of(limiter, "tokens") == pytest.approx(whole - 530, abs=0.2)
    permit.settle(tokens=1030)
    assert await level_of(limiter, "tokens") == pytest.approx(whole - 1030, abs=0.2)
    permit.settle(tokens=10)
    assert await level_of(limiter, "tokens") == pytest.approx(whole - 10, abs=0.2)
    permit.cancel()
    permit.cancel()
    assert await level_of(limiter, "tokens") == pytest.approx(whole, abs=0.2)


@pytest.mark.anyio
async def test_what_a_permit_settles_down_to_after_its_lease_has_ended_goes_back_to_the_store(stores):
    mine, theirs = (Limiter(tokens=per_second(0.01, burst=1000), name="x", store=stores(), lease=0.1) for _ in range(2))
    permit = await mine.acquire(tokens=800)
    await anyio.sleep(0.15)
    permit.settle(tokens=100)
    with anyio.fail_after(20):
        while True:
            with suppress(RateLimited):
                await theirs.acquire(tokens=890, max_wait=0)
                break
            await anyio.sleep(0.02)


@pytest.mark.anyio
async def test_a_refund_does_not_let_more_through(stores):
    """Permits that are cancelled at once, by the thousand: what counts in the end is at most burst + rate × span."""
    rate, burst = 200, 100
    limiters = [Limiter(requests=per_second(rate, burst=burst), name="x", store=stores(), lease=0.2) for _ in range(2)]
    kept, rng = [], random.Random(3)

    async def work(limiter):
        while True:
            permit = await limiter.acquire()
            if rng.random() < 0.6:
                await anyio.sleep(rng.random() * 0.3)
                permit.cancel()
            else:
                kept.append((permit.granted_at, 1))
                await anyio.sleep(0)

    async with anyio.create_task_group() as tasks:
        for limiter in limiters * 40:
            tasks.start_soon(work, limiter)
        with anyio.fail_after(60):
            await anyio.sleep(1.0)
            while len(kept) <= burst:
                await anyio.sleep(0.05)
        tasks.cancel_scope.cancel()
    assert excess_of_amounts(kept, rate, burst) <= 0.001


@pytest.mark.anyio
async def test_turns_come_in_order_of_arrival_and_priority_goes_first(stores):
    limiter = Limiter(requests=per_second(100, burst=22), name="x", store=stores(), lease=0.2)
    moments = {}

    async def wait(number, priority):
        moments[number] = (await limiter.acquire(priority=priority)).granted_at

    while True:
        try:
            await limiter.acquire(max_wait=0)
        except RateLimited:
            break
    async with anyio.create_task_group() as tasks:
        for number in range(20):
            tasks.start_soon(wait, number, 0)
            await anyio.sleep(0)
        came = clock.now()
        tasks.start_soon(wait, "first", 1)
    first = moments.pop("first")
    assert [moments[number] for number in range(20)] == sorted(moments.values())
    assert len([moment for moment in moments.values() if came < moment < first]) <= 12  # some were under way


@pytest.mark.anyio
async def test_a_large_call_is_not_starved_by_small_ones(stores):
    limiter = Limiter(tokens=per_second(200, burst=100), name="x", store=stores(), lease=0.2)
    async with workers(limiter, 5, [], tokens=1):
        await anyio.sleep(0.3)
        with anyio.fail_after(20):
            await limiter.acquire(tokens=50)


@pytest.mark.anyio
async def test_a_waiter_that_leaves_the_queue_takes_nothing_with_it(stores):
    """Cancelled at any moment, and the next in the queue goes; all that was not granted is there in the end."""
    limiter = Limiter(requests=per_second(0.001, burst=500), name="x", store=stores(), lease=1)
    granted = 0

    async def cancel_soon(scope, seconds):
        await anyio.sleep(seconds)
        scope.cancel()

    async def work(turn, number):
        nonlocal granted
        async with anyio.create_task_group() as tasks:  # and not a deadline, which would be known, and refused
            tasks.start_soon(cancel_soon, tasks.cancel_scope, (number % 7) * 0.0003 * 2 ** (turn // 2))
            await limiter.acquire()
            granted += 1
            tasks.cancel_scope.cancel()

    for turn in range(24):  # the last ones wait for seconds: for a machine on which nothing was granted in the first
        if turn >= 10 and granted:
            break
        async with anyio.create_task_group() as tasks:
            for number in range(30):
                tasks.start_soon(work, turn, number)
    assert 0 < granted <= 300
    with anyio.fail_after(20):
        # What is left of a lease goes back when it is idle, a refund of one that is closed a lease later.
        while abs(await level_of(limiter, "requests") - (500 - granted)) > 3.1:
            await anyio.sleep(0.05)
        while limiter._backend.plan().states[0].pool.leases:
            await anyio.sleep(0.05)
    assert await level_of(limiter, "requests") <= 500 - granted + 0.1
    assert limiter.statistics().waiting == 0


@pytest.mark.anyio
async def test_a_pause_holds_what_is_held_here_too(stores):
    """At once in this process; and where the store tells the others, in theirs."""
    store = stores()
    mine, theirs = (
        Limiter(requests=per_second(1000, burst=2000), name="x", store=each, lease=1) for each in (store, stores())
    )
    for limiter in (mine, theirs):
        for _ in range(200):
            await limiter.acquire()
        assert limiter._backend.plan().states[0].pool.left > 1
    mine.pause(60)
    with pytest.raises(RateLimited, match="pause"):
        await mine.acquire(max_wait=0)
    if isinstance(store, RedisStore):
        with anyio.fail_after(20), pytest.raises(RateLimited, match="pause"):
            while True:
                await theirs.acquire(max_wait=0)
                await anyio.sleep(0.02)
    mine.resume()
    with anyio.fail_after(20):
        await mine.acquire()
        await theirs.acquire()


@pytest.mark.anyio
async def test_too_long_a_wait_is_refused(stores):
    """At once, by what the store says."""
    limiter = Limiter(requests=per_second(0.1, burst=2.2), name="x", store=stores(), lease=1)
    for _ in range(2):
        await limiter.acquire(max_wait=0)
    for max_wait in (0, 0.3):
        with pytest.raises(RateLimited) as caught:
            await limiter.acquire(max_wait=max_wait)
        assert 1 < caught.value.retry_after <= 9.0
    quick = Limiter(requests=per_second(4, burst=6), name="y", store=stores(), lease=1)
    begin = clock.now()
    for _ in range(4):
        await quick.acquire(max_wait=20)
    assert clock.now() - begin >= 2 / 4 - 0.01


@pytest.mark.anyio
async def test_more_than_the_lease_leaves_of_a_burst_can_never_be_granted(stores):
    limiter = Limiter(tokens=per_second(100, burst=100), name="x", store=stores(), lease=0.3)
    await limiter.acquire(tokens=70)
    with pytest.raises(
        Unsatisfiable, match=r'71 tokens can never be granted: "tokens" of "x" holds at most 70 at once, its burst'
    ):
        await limiter.acquire(tokens=71)


@pytest.mark.anyio
async def test_overdraft_and_calendars_are_leased_too(stores):
    """A call larger than the burst goes when the bucket is full; a day's quota is one, in however many leases."""
    limiter = Limiter(
        tokens=Rate(1000, 1, 300, overdraft=True), requests=calendar(50, "month"), name="x", store=stores(), lease=0.2
    )
    with anyio.fail_after(20):
        await limiter.acquire(tokens=500)
        await limiter.acquire(tokens=10)
    with pytest.raises(RateLimited) as caught:
        for _ in range(49):
            await limiter.acquire(tokens=0, max_wait=1.0)
    assert caught.value.blocked_by == "requests"
    assert limiter.statistics().granted == 50


@pytest.mark.anyio
async def test_processes_agree_on_the_lease(stores):
    """As on the limits: a process without one could use what another has not used yet."""
    mine, theirs = (
        Limiter(requests=per_second(10, burst=100), name="x", store=stores(), lease=lease_seconds)
        for lease_seconds in (1, None)
    )
    await mine.acquire()
    with pytest.raises(
        ConfigurationConflict, match=r"requests=10/s burst 100, leased for 1 s there, requests=10/s burst 100 here"
    ):
        await theirs.acquire()
    with pytest.raises(ValueError, match="only the first is leased"):
        _ = mine & Limiter(tokens="5/s", name="y", store=mine.store)


@pytest.mark.anyio
async def test_a_unit_may_be_called_lease(stores):
    """Processes agree on its limits as on any other's."""
    await Limiter({"lease": "1000/s"}, name="x", store=stores(), lease=0.2).acquire(lease=1)
    with pytest.raises(ConfigurationConflict, match=r"lease=1000/s, leased for 0\.2 s there"):
        await Limiter({"lease": "900/s"}, name="x", store=stores(), lease=0.2).acquire(lease=1)


@pytest.mark.anyio
async def test_joined_limiters_that_are_leased_are_one_decision(stores):
    store = stores()
    org = Limiter(requests=per_second(0.01, burst=4), name="org", store=store, lease=1)
    user = Limiter(tokens=per_second(0.01, burst=12), name="user", store=store, lease=2)
    both = org & user
    await both.acquire(tokens=6)
    with pytest.raises(RateLimited):
        await both.acquire(tokens=6, max_wait=0)
    assert await level_of(org, "requests") == pytest.approx(3 - 0.01, abs=0.1)


@pytest.mark.anyio
async def test_new_limits_replace_what_is_held(stores):
    mine, theirs = (Limiter(requests=per_second(1, burst=200), name="x", store=stores(), lease=5) for _ in range(2))
    for limiter in (mine, theirs):
        for _ in range(20):
            await limiter.acquire()
    with pytest.raises(ValueError, match="cannot be leased for 5 s"):
        mine.reconfigure(requests=per_second(100, burst=200))
    begin = clock.now()
    mine.reconfigure(requests=per_second(1, burst=60))
    with anyio.fail_after(20):
        while theirs.limits["requests"][0].burst != 60:
            await theirs.refresh()
            await anyio.sleep(0.01)
    granted = 40
    for limiter in (theirs, mine):  # which may hold all that is left
        with pytest.raises(RateLimited):
            while True:
                await limiter.acquire(max_wait=0)
                granted += 1
    assert 45 <= granted <= 56 + clock.now() - begin  # one a second flows in


def test_threads_are_granted_out_of_the_lease_too(stores):
    limiter = Limiter(requests=per_second(1e5, burst=2e5), name="x", store=stores(), lease=1)

    def work():
        for _ in range(500):
            with limiter:
                pass

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert limiter.statistics().granted == 2000
    assert limiter.store.dispatcher.calls <= 200


@pytest.mark.anyio
async def test_a_lease_bridges_a_short_outage_and_then_says_what_is_wrong(server, prefix):
    """What is held is granted; after that it is the store's silence that is heard."""
    from penstock import StoreError

    store = RedisStore(server.url, prefix=prefix, patience=0.1, timeout=0.2)
    limiter = Limiter(requests=per_second(10, burst=1000), name="x", store=store, lease=20)
    for _ in range(200):
        await limiter.acquire()
    held = int(limiter._backend.plan().states[0].pool.left)
    assert held >= 20
    server.kill()
    for _ in range(held):
        await limiter.acquire()
    with pytest.raises(StoreError):
        await limiter.acquire()
    await anyio.to_thread.run_sync(store.close)


# Processes


class Crew:
    """Processes that lease one limit, and the moments of all their grants."""

    def __init__(self, **plan):
        self.plan = plan
        self.moments = []
        self.done = []
        self._threads = []

    def hire(self, seconds, seed, **plan):
        process = subprocess.Popen(
            [sys.executable, LEASEHOLDER, json.dumps({**self.plan, **plan, "seconds": seconds, "seed": seed})],
            stdout=subprocess.PIPE,
            text=True,
        )
        reader = threading.Thread(target=self._read, args=(process,))
        reader.start()
        self._threads.append(reader)
        return process

    def _read(self, process):
        for queue in process.stdout:
            if queue.startswith("{"):
                self.done.append(json.loads(queue))
            elif queue.endswith("\n"):
                self.moments.append(float(queue))
        process.wait()
        process.stdout.close()

    def wait(self):
        for thread in self._threads:
            thread.join()


@pytest.mark.throughput
@pytest.mark.parametrize("kind", ["sqlite", "valkey"])
def test_four_processes_that_lease_and_are_killed_are_never_granted_more_than_promised(kind, request, tmp_path, prefix):
    """By the moments of their grants, on the clock that they share: of one process a second that dies by SIGKILL, of
    callers that give up, and of permits that are cancelled. Who dies takes at most its lease along: a quarter of what
    flows in during a lease."""
    where = (
        ["sqlite", str(tmp_path / "x.db")] if kind == "sqlite" else ["redis", request.getfixturevalue("valkey"), prefix]
    )
    rate, burst, lease_seconds = 800, 500, 0.4
    crew = Crew(
        store=where, rate=rate, burst=burst, lease=lease_seconds, waiters=20, work=0.001, give_up=0.2, settle=0.1
    )
    processes = [crew.hire(SECONDS + 2, seed) for seed in range(4)]
    begin = time.monotonic()
    while not crew.moments:
        time.sleep(0.01)
        assert time.monotonic() - begin < 20, BUSY
    end, killed = time.monotonic() + SECONDS, 0
    while end - time.monotonic() > 1.0:
        time.sleep(1.0)
        processes[killed % 4].kill()
        processes[killed % 4] = crew.hire(end - time.monotonic() + 2, 10 + killed)
        killed += 1
    time.sleep(max(0.0, end - time.monotonic()))
    for process in processes:
        process.kill()
    crew.wait()
    moments = sorted(crew.moments)
    span = moments[-1] - moments[0]
    possible = burst - rate * lease_seconds + rate * span
    print(f"{len(moments)} of {possible:.0f} granted, {killed} killed, "  # noqa: T201 - `-rP` shows it
          f"excess {excess(moments, rate, burst):.1f}")  # fmt: skip
    assert killed >= 2, BUSY
    assert excess(moments, rate, burst) <= 0.01
    assert len(moments) >= 0.85 * possible, BUSY
