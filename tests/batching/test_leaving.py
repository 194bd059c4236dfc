"""When callers leave: what is sent, what is cancelled, and who waits for the end."""

from __future__ import annotations

import asyncio

import anyio
import pytest

from penstock import Limiter
from penstock.batching import Batcher
from tests.batching.service import Callers, Service

pytestmark = pytest.mark.anyio


async def test_a_caller_that_left_is_not_sent(virtual_time):
    service = Service()
    async with anyio.create_task_group() as tasks:
        callers = Callers(Batcher(service, max_delay=1), tasks)
        for item in "abc":
            callers.start(item)
            await anyio.sleep(0.1)
        callers.cancel("a")  # the one who opened the batch
    assert service.calls == [["b", "c"]]
    assert callers.results == {"a": "cancelled", "b": ("got", "b"), "c": ("got", "c")}


async def test_a_caller_that_leaves_while_sent_costs_nobody_a_result(virtual_time):
    service = Service(seconds=10)
    async with anyio.create_task_group() as tasks:
        callers = Callers(Batcher(service), tasks)
        for item in "abc":
            callers.start(item)
        await anyio.sleep(5)
        callers.cancel("a")
        callers.cancel("b")
        await anyio.sleep(1)
        assert callers.results == {"a": "cancelled", "b": "cancelled"}
    assert len(service.calls) == 1
    assert service.cancelled == 0
    assert callers.results["c"] == ("got", "c")


async def test_when_all_have_left_nothing_is_sent_and_nothing_is_left(virtual_time):
    service = Service()
    async with anyio.create_task_group() as tasks:
        callers = Callers(Batcher(service, max_delay=60), tasks)
        callers.start("a")
        callers.start("b")
        await anyio.sleep(1)
        callers.cancel("b")
        callers.cancel("a")
    assert virtual_time.now() == 1
    await anyio.sleep(100)
    assert service.calls == []


async def test_when_all_have_left_the_call_is_cancelled_and_the_last_waits_for_its_end(virtual_time):
    ended_at = None

    async def send(items):
        nonlocal ended_at
        try:
            await anyio.sleep(60)
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(3)  # says goodbye to the server
            ended_at = anyio.current_time()

    async with anyio.create_task_group() as tasks:
        callers = Callers(Batcher(send), tasks)
        callers.start("a")
        callers.start("b")
        await anyio.sleep(1)
        callers.cancel("a")
        await anyio.sleep(1)
        assert callers.results == {"a": "cancelled"}
        callers.cancel("b")
    assert ended_at == 5
    assert virtual_time.now() == 5


async def test_a_call_that_comes_when_the_others_have_just_left_gets_a_batch(virtual_time):
    service = Service()
    async with anyio.create_task_group() as tasks:
        callers = Callers(Batcher(service, max_delay=1), tasks)
        callers.start("a")
        await anyio.sleep(0.5)
        callers.cancel("a")
        callers.start("b")
    assert service.calls == [["b"]]
    assert service.times == [1.5]


async def test_a_call_that_left_between_two_halves_is_not_sent_again(virtual_time):
    service = Service(seconds=1, poison=["a"])
    async with anyio.create_task_group() as tasks:
        callers = Callers(Batcher(service, max_delay=0.1), tasks)
        for item in "abcd":
            callers.start(item)
        await anyio.sleep(0.5)
        callers.cancel("c")
        callers.cancel("d")
    assert sorted(map(sorted, service.calls)) == [["a"], ["a", "b", "c", "d"], ["b"]]
    assert callers.results["b"] == ("got", "b")


async def test_a_call_that_was_sent_alone_after_the_other_left_is_not_sent_again(virtual_time):
    service = Service(poison=["a"])
    limiter = Limiter(requests="1/s")
    async with anyio.create_task_group() as tasks:
        callers = Callers(Batcher(service, limiter=limiter), tasks)
        for item in "abcd":
            callers.start(item)
        await anyio.sleep(0.5)  # the halves stand in line
        for item in "bcd":
            callers.cancel(item)
    assert [sorted(call) for call in service.calls] == [["a", "b", "c", "d"], ["a"]]


async def test_callers_that_give_up_behind_a_slow_limiter_do_not_pile_up(virtual_time):
    limiter = Limiter(requests="1/hour")
    limiter.acquire_nowait()
    batcher = Batcher(Service(), limiter=limiter)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(batcher, "patient")
        for _ in range(1000):
            with anyio.move_on_after(1):
                await batcher("hasty")
        assert len(batcher._here.queue.callers) < 100


@pytest.mark.asyncio
@pytest.mark.parametrize("anyio_backend", [None])
async def test_asyncio_cancelling_twice_still_waits_for_the_end(anyio_backend, virtual_time):
    """task.cancel() heeds no shield; the caller stays until its call has ended all the same."""
    ended = False

    async def send(items):
        nonlocal ended
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(3)
            ended = True

    task = asyncio.create_task(Batcher(send)("a"))
    await asyncio.sleep(1)
    for _ in range(3):
        task.cancel()
        await asyncio.sleep(0.5)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended
    assert asyncio.all_tasks() == {asyncio.current_task()}


@pytest.mark.asyncio
@pytest.mark.parametrize("anyio_backend", [None])
async def test_no_task_is_left_when_the_result_is_there(anyio_backend, virtual_time):
    batcher = Batcher(Service(seconds=1), max_items=3)
    await asyncio.gather(*(batcher(item) for item in range(7)))
    assert asyncio.all_tasks() == {asyncio.current_task()}


@pytest.mark.asyncio
@pytest.mark.parametrize("anyio_backend", [None])
async def test_a_batch_that_others_cancel_leaves_nobody_waiting(anyio_backend, virtual_time):
    """As asyncio.run does at the end, and some test tools do."""
    batcher = Batcher(Service(seconds=60), max_delay=10)
    for moment in (1, 20):  # while it gathers, while it is sent
        callers = [asyncio.create_task(batcher(item)) for item in "ab"]
        await asyncio.sleep(moment)
        for task in asyncio.all_tasks() - {asyncio.current_task(), *callers}:
            task.cancel()
        results = await asyncio.gather(*callers, return_exceptions=True)
        assert [type(result) for result in results] == [asyncio.CancelledError] * 2
