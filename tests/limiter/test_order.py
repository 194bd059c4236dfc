"""Whose turn it is, and when: order, waits that are forecast, bounded and given up."""

from __future__ import annotations

import asyncio
import math
import threading

import anyio
import anyio.to_thread
import pytest

import penstock
from penstock import (
    Limiter,
    QueueFull,
    Rate,
    RateLimited,
    WouldBlockEventLoop,
    clock,
    in_flight,
    per_second,
)
from tests.limiter.lines import line_up

pytestmark = pytest.mark.anyio


async def test_a_whale_is_served_at_its_projected_time_and_free_minnows_pass_it(virtual_time):
    """Promise 4: small calls cannot starve a large one, and one that needs no tokens does not queue behind tokens."""
    limiter = Limiter(requests=per_second(10), tokens=per_second(100))
    limiter.acquire_nowait(tokens=100)
    log = []
    small = [(f"small {i}", {"tokens": 1}) for i in range(3)]
    free = [(f"free {i}", {"tokens": 0}) for i in range(3)]
    await line_up(limiter, [("whale", {"tokens": 100}), *small, *free], log)
    assert log[:3] == [("free 0", 0.0), ("free 1", 0.0), ("free 2", 0.0)]
    assert log[3:] == [("whale", 1.0), ("small 0", 1.01), ("small 1", 1.02), ("small 2", 1.03)]


async def test_backfill_stops_where_it_would_delay_the_head(virtual_time):
    """Free calls may pass a whale only while they leave it the requests it needs."""
    limiter = Limiter(requests=per_second(1, burst=2), tokens=per_second(100))
    limiter.acquire_nowait(tokens=100)
    log = []
    await line_up(limiter, [("whale", {"tokens": 50}), ("free 1", {"tokens": 0}), ("free 2", {"tokens": 0})], log)
    assert log == [("whale", 0.5), ("free 1", 1.0), ("free 2", 2.0)]


async def test_higher_priority_goes_first_and_waiting_raises_priority(virtual_time):
    limiter = Limiter(requests=per_second(1, burst=1), ageing=10)
    limiter.acquire_nowait()
    log = []

    async def stream():
        for i in range(40):
            group.start_soon(call, f"high {i}", 1)
            await anyio.sleep(0.9)

    async def call(name, priority):
        async with limiter(priority=priority):
            log.append(name)

    async with anyio.create_task_group() as group:
        group.start_soon(call, "low", 0)
        await anyio.wait_all_tasks_blocked()
        group.start_soon(stream)
    assert log[0] == "high 0", "the higher one goes first"
    assert 9 <= log.index("low") <= 12, "after ten seconds the low one is as high, and it came first"


async def test_flows_share_by_turns_whatever_their_number_of_calls(virtual_time):
    limiter = Limiter(requests=per_second(1, burst=1), flow_weights={"carol": 2})
    limiter.acquire_nowait()
    log = []
    calls = [(f"{flow}{i}", {"flow": flow}) for flow, n in (("alice", 8), ("bob", 2), ("carol", 4)) for i in range(n)]
    await line_up(limiter, calls, log)
    first = [name[:-1] for name, _ in log[:8]]
    assert first.count("carol") == 4, "twice the weight, twice the share"
    assert first.count("alice") == first.count("bob") == 2
    assert [name for name, _ in log if name.startswith("alice")] == [f"alice{i}" for i in range(8)]


async def test_giving_up_spends_nothing(virtual_time):
    """Promise 5: whoever stops waiting leaves their tokens to the next in line."""
    limiter = Limiter(requests=per_second(1, burst=1))
    limiter.acquire_nowait()
    granted = []

    async def wait(name, scope):
        with scope:
            await limiter.acquire()
            granted.append((name, clock.now()))

    async with anyio.create_task_group() as group:
        scopes = [anyio.CancelScope() for _ in range(3)]
        for name, scope in zip("abc", scopes, strict=True):
            group.start_soon(wait, name, scope)
            await anyio.wait_all_tasks_blocked()
        await anyio.sleep(0.5)
        scopes[0].cancel()
    assert granted == [("b", 1.0), ("c", 2.0)]


async def test_forecast_charges_nothing_and_is_right(virtual_time):
    limiter = Limiter(requests=per_second(1, burst=2))
    assert limiter.forecast() == penstock.Forecast(0.0, None)
    limiter.acquire_nowait(requests=2)
    assert limiter.forecast() == penstock.Forecast(1.0, "requests")
    assert limiter.forecast() == penstock.Forecast(1.0, "requests")
    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as group:
            group.start_soon(limiter.acquire)
            await anyio.wait_all_tasks_blocked()
            assert limiter.forecast().wait == pytest.approx(2.0)
            scope.cancel()


async def test_a_longer_wait_than_max_wait_is_refused_at_once(virtual_time):
    limiter = Limiter(requests=per_second(1, burst=1))
    limiter.acquire_nowait()
    with pytest.raises(RateLimited, match=r"max_wait is 0\.5 s") as refused:
        await limiter.acquire(max_wait=0.5)
    assert clock.now() == 0
    assert refused.value.retry_after == 1.0
    await limiter.acquire(max_wait=1.0)
    assert clock.now() == 1.0


async def test_a_wait_past_the_enclosing_deadline_is_refused_at_once(virtual_time):
    limiter = Limiter(requests=per_second(1, burst=1))
    limiter.acquire_nowait()
    with anyio.move_on_after(0.5), pytest.raises(RateLimited, match="deadline"):
        await limiter.acquire()
    assert clock.now() == 0


async def test_in_a_cancelled_scope_a_wait_ends_as_cancelled(virtual_time):
    limiter = Limiter(requests=per_second(1, burst=1))
    limiter.acquire_nowait()
    with anyio.CancelScope() as scope:
        scope.cancel()
        await limiter.acquire()
        raise AssertionError("unreachable")
    assert scope.cancelled_caught


async def test_max_wait_counts_when_others_push_in(virtual_time):
    limiter = Limiter(requests=per_second(1, burst=1))
    limiter.acquire_nowait()
    async with anyio.create_task_group() as group:

        async def wait():
            with pytest.raises(RateLimited, match="max_wait has passed"):
                await limiter.acquire(max_wait=1.5)
            assert clock.now() == 1.5

        group.start_soon(wait)
        await anyio.wait_all_tasks_blocked()
        for _ in range(3):
            group.start_soon(lambda: limiter.acquire(priority=9))


async def test_the_line_is_bounded(virtual_time):
    limiter = Limiter(requests=per_second(1, burst=1), max_queue=2)
    limiter.acquire_nowait()
    async with anyio.create_task_group() as group:
        for _ in range(2):
            group.start_soon(limiter.acquire)
        await anyio.wait_all_tasks_blocked()
        with pytest.raises(QueueFull, match=r"the queue is full \(max_queue=2\): the next call would have to wait 3 s"):
            await limiter.acquire()
        with pytest.raises(QueueFull):
            await limiter.acquire(max_wait=3)


async def test_a_call_that_would_not_wait_so_long_is_told_that_and_not_that_the_line_is_full(virtual_time):
    """Room in the line would not help it, so `max_queue` was the wrong thing to change."""
    limiter = Limiter(requests=per_second(1, burst=1), max_queue=1)
    limiter.acquire_nowait()
    async with anyio.create_task_group() as group:
        group.start_soon(limiter.acquire)
        await anyio.wait_all_tasks_blocked()
        for max_wait, bound in ((0, math.inf), (1.5, math.inf), (None, 1.5)):
            with pytest.raises(RateLimited, match="would have to wait 2 s") as caught, anyio.fail_after(bound):
                await limiter.acquire(max_wait=max_wait)
            assert type(caught.value) is RateLimited


async def test_a_forecast_leaves_nothing_behind_that_others_would_wait_for(virtual_time):
    limiter = Limiter(requests=per_second(10), calls=in_flight(1))
    held = limiter.acquire_nowait()
    async with anyio.create_task_group() as group:
        group.start_soon(limiter.acquire)
        await anyio.wait_all_tasks_blocked()
        for _ in range(3):
            assert limiter.forecast(calls=0).wait == 0
            limiter.acquire_nowait(calls=0)
        assert limiter.statistics().waiting == 1
        held.close()


async def test_a_wait_behind_an_overdraft_is_what_was_forecast(virtual_time):
    """The line's sum was taken for one call, which goes when the bucket is full: 1 s, where it was 9."""
    limiter = Limiter(tokens=Rate(10, 1, overdraft=True))
    limiter.acquire_nowait(tokens=10)
    log = []
    began = clock.now()
    async with anyio.create_task_group() as group:
        for _ in range(4):
            group.start_soon(line_up, limiter, [("large", {"tokens": 20})], log)
            await anyio.wait_all_tasks_blocked()
        forecast = limiter.forecast(tokens=10)
        with pytest.raises(RateLimited, match="would have to wait 9 s for tokens; max_wait is 8 s"):
            await limiter.acquire(tokens=10, max_wait=8)
        await limiter.acquire(tokens=10, max_wait=9.5)
        assert clock.now() - began == pytest.approx(forecast.wait)
    assert [round(at - began) for _, at in log] == [1, 3, 5, 7]


async def test_the_wait_that_is_bounded_and_forecast_is_that_of_ones_flow(virtual_time):
    """bob's first call is next but one whatever alice has lined up; it was refused, with a wait for all of hers."""
    limiter = Limiter(requests=per_second(1, burst=1))
    await limiter.acquire(flow="alice")
    began = clock.now()
    async with anyio.create_task_group() as group:
        for _ in range(30):
            group.start_soon(line_up, limiter, [("alice", {"flow": "alice"})], [])
        await anyio.wait_all_tasks_blocked()
        assert limiter.forecast().wait == pytest.approx(2)
        with pytest.raises(RateLimited, match="would have to wait 31 s"):
            await limiter.acquire(flow="alice", max_wait=30)
        for options, bound in (({"max_wait": 1.9}, math.inf), ({}, 1.9)):
            with pytest.raises(RateLimited, match="would have to wait 2 s"), anyio.fail_after(bound):
                await limiter.acquire(flow="bob", **options)
        await limiter.acquire(flow="bob", max_wait=2.1)
        assert clock.now() - began == pytest.approx(2)
        with anyio.fail_after(2.1):
            await limiter.acquire(flow="bob")
        assert clock.now() - began == pytest.approx(4)
        group.cancel_scope.cancel()


async def test_blocking_the_running_loop_is_refused(virtual_time):
    limiter = Limiter(requests=per_second(1, burst=1))
    with limiter:
        pass
    with pytest.raises(WouldBlockEventLoop, match="would block the running event loop"), limiter:
        pass


async def test_threads_wait_in_the_same_line():
    limiter = Limiter(requests=per_second(100, burst=1))
    granted = []

    def work(i):
        with limiter():
            granted.append((clock.now(), i))

    async with anyio.create_task_group() as group:
        for i in range(6):
            group.start_soon(anyio.to_thread.run_sync, work, i)
        for i in range(6, 12):

            async def ask(i=i):
                async with limiter():
                    granted.append((clock.now(), i))

            group.start_soon(ask)
    assert len(granted) == 12
    moments = sorted(at for at, _ in granted)
    assert moments[-1] - moments[0] >= 11 * 0.01 - 1e-3


def test_a_limiter_made_at_import_serves_loop_after_loop():
    """Promise 10."""
    limiter = Limiter(requests=per_second(1_000, burst=1))

    async def use():
        for _ in range(3):
            async with limiter:
                pass

    for backend in ("asyncio", "trio", "asyncio"):
        anyio.run(use, backend=backend)
    asyncio.run(use())
    threads = [threading.Thread(target=anyio.run, args=(use,), kwargs={"backend": b}) for b in ("asyncio", "trio") * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
    assert limiter.statistics().granted == 3 * 8


async def test_a_busy_loop_loses_no_capacity(virtual_time):
    """While tasks keep the loop busy, whoever is on post cannot wake up: whoever comes grants in its place."""
    limiter = Limiter(requests=per_second(10))

    async def work():
        virtual_time.advance(0.5)  # on the processor, so that no timer fires
        await limiter.acquire()

    for _ in range(10):
        limiter.acquire_nowait()
    began = clock.now()
    async with anyio.create_task_group() as group:
        for _ in range(40):
            group.start_soon(limiter.acquire)
        await anyio.wait_all_tasks_blocked()
        for _ in range(12):
            group.start_soon(work)
    assert clock.now() - began == pytest.approx(6.0)
    assert limiter.statistics().granted == 62
