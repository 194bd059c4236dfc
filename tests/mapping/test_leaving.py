"""amap: nothing stays behind when the consumer leaves."""

from __future__ import annotations

import asyncio
import gc

import anyio
import anyio.lowlevel
import pytest

from penstock import testing
from penstock.mapping import amap
from tests.mapping.calls import Calls, Source, collect, every_kind_of_source, settled, sleep

pytestmark = pytest.mark.anyio


@every_kind_of_source
async def test_the_context_manager_waits_until_all_is_cancelled_and_closed(virtual_time, kind):
    source, calls = Source(100), Calls(seconds=5)
    async with amap(calls, source.of(kind), in_flight=4) as results:
        async for _ in results:
            break
        calls.seconds = 100
        await anyio.sleep(1)
    assert calls.running == 0
    assert source.closed
    assert [result async for result in results] == []


async def test_closing_waits_for_calls_that_take_their_time_to_end(virtual_time):
    ended = []

    async def call(item):
        try:
            await anyio.sleep(10 if item else 1)
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(2)
            ended.append(virtual_time.now())

    results = amap(call, range(3), in_flight=3)
    await anext(results)
    await results.aclose()
    await results.aclose()
    assert ended == [3, 5, 5]


@every_kind_of_source
async def test_break_cancels_the_calls_and_closes_the_source(virtual_time, kind):
    """Without waiting: the loop's iterator is gone at once, and what it owned follows."""
    source, calls = Source(100), Calls(seconds=5)
    async for _ in amap(calls, source.of(kind), in_flight=4):
        break
    await anyio.sleep(2)  # the async generator takes one to close
    assert calls.running == 0
    assert calls.cancelled > 0
    assert source.closed


async def test_an_exception_in_the_body_cancels_the_calls(virtual_time):
    calls = Calls(seconds=5)
    with pytest.raises(LookupError):
        async for _ in amap(calls, range(100), in_flight=4):
            raise LookupError
    gc.collect()  # the frames of the exception may have held the iterator
    await anyio.sleep(1)
    assert calls.running == 0


@every_kind_of_source
async def test_cancelling_the_consumer_cancels_the_calls_and_closes_the_source_before_it_goes_on(virtual_time, kind):
    source, calls = Source(100), Calls(seconds=10)
    results = amap(calls, source.of(kind), in_flight=4)
    with anyio.move_on_after(5):
        async for _ in results:
            pass
    assert calls.running == 0
    assert calls.cancelled == 4
    assert source.closed
    assert [result async for result in results] == []


async def test_a_source_that_was_begun_elsewhere_is_closed_even_if_nobody_iterates(virtual_time):
    source = Source(10)
    generator = source.sync()
    next(generator)
    async with amap(sleep, generator):
        pass
    assert source.closed


async def test_what_is_no_generator_is_not_closed(virtual_time, tmp_path):
    """A file belongs to whoever opened it."""
    path = tmp_path / "lines"
    path.write_text("1\n2\n3\n")
    with path.open() as lines:
        async for _ in amap(Calls(seconds=0), map(int, lines), in_flight=1):
            break
        await settled()
        assert not lines.closed


async def test_a_chain_is_closed_to_its_beginning(virtual_time):
    source, first, second = Source(100), Calls(seconds=1), Calls(seconds=1)
    async with amap(second, amap(first, source, in_flight=3), in_flight=3) as results:
        await anext(results)
    assert source.closed
    assert first.running == second.running == 0


async def test_two_tasks_cannot_wait_for_one_iterator(virtual_time):
    results = amap(sleep, [5, 5])
    errors = []

    async def second():
        try:
            await anext(results)
        except RuntimeError as error:
            errors.append(str(error))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(anext, results)
        await anyio.sleep(1)
        tasks.start_soon(second)
    assert errors == ["two tasks wait for the next result of one amap: let one of them iterate"]
    assert await anext(results) == 5


async def test_closing_from_elsewhere_ends_the_loop(virtual_time):
    results = amap(sleep, [5, 5])
    received = []

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(collect, results, received)
        await anyio.sleep(1)
        await results.aclose()
    assert received == []
    assert virtual_time.now() == 1


@pytest.mark.asyncio
@pytest.mark.parametrize("anyio_backend", [None])
async def test_no_task_is_left_at_the_end(anyio_backend, virtual_time):
    """Exhausted, failed, cancelled, closed."""

    def only_me():
        return asyncio.all_tasks() == {asyncio.current_task()}

    async for _ in amap(sleep, [1, 2, 3]):
        pass
    assert only_me()
    with pytest.raises(KeyError):
        async for _ in amap(Calls(bad=[1]), [1, 2, 3]):
            pass
    assert only_me()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1):
            async for _ in amap(sleep, [100, 200]):
                pass
    assert only_me()
    async with amap(sleep, [1, 200]) as results:
        await anext(results)
    assert only_me()


@pytest.mark.asyncio
@pytest.mark.parametrize("anyio_backend", [None])
async def test_asyncio_cancelling_twice_still_waits_for_the_end(anyio_backend, virtual_time):
    ended = False

    async def call(item):
        nonlocal ended
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(3)
            ended = True

    async def consume():
        async for _ in amap(call, [1]):
            pass

    task = asyncio.create_task(consume())
    await asyncio.sleep(1)
    for _ in range(3):
        task.cancel()
        await asyncio.sleep(0.5)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_an_iterator_that_outlives_its_loop_does_no_harm(backend):
    """Kept by somebody after the run has ended, which has cancelled all that it did."""
    calls, source, kept = Calls(seconds=10), Source(100), []

    async def main():
        results = amap(calls, source, in_flight=3)
        await anext(results)
        kept.append(results)

    testing.run(main, backend=backend)
    assert calls.running == 0
    assert source.closed
    kept.clear()
    gc.collect()
