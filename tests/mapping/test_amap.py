"""amap: what comes out in which order, how much runs, and how much is read ahead. All waiting is virtual."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import tracemalloc

import anyio
import anyio.lowlevel
import pytest

from penstock.batching import Batcher
from penstock.mapping import Progress, amap
from tests.mapping.calls import Calls, Source, every_kind_of_source, sleep

pytestmark = pytest.mark.anyio


@every_kind_of_source
async def test_results_come_in_the_order_of_the_items(virtual_time, kind):
    calls = Calls()
    results = [result async for result in amap(calls, Source(5).of(kind), in_flight=3)]
    assert results == [0, 2, 4, 6, 8]


async def test_in_order_a_slow_call_holds_back_those_behind_it(virtual_time):
    moments = [(result, virtual_time.now()) async for result in amap(sleep, [3, 1, 2], in_flight=3)]
    assert moments == [(3, 3), (1, 3), (2, 3)]


async def test_as_they_come_the_fast_come_first(virtual_time):
    moments = [(result, virtual_time.now()) async for result in amap(sleep, [3, 1, 2], in_flight=3, ordered=False)]
    assert moments == [(1, 1), (2, 2), (3, 3)]


@pytest.mark.parametrize("ordered", [True, False])
async def test_no_items_no_results(virtual_time, ordered):
    assert [result async for result in amap(sleep, [], ordered=ordered)] == []


async def test_after_the_end_it_stays_ended(virtual_time):
    results = amap(sleep, [1])
    assert [result async for result in results] == [1]
    assert [result async for result in results] == []


async def test_one_result_can_be_asked_for_alone(virtual_time):
    """Also where nothing else refers to the iterator meanwhile."""
    assert await anext(amap(sleep, [1, 2, 3])) == 1


async def test_results_of_one_are_the_items_of_the_next(virtual_time):
    source = Source(6)
    doubled = amap(Calls(seconds=1), source, in_flight=2)
    assert [result async for result in amap(Calls(seconds=1), doubled, in_flight=2)] == [0, 4, 8, 12, 16, 20]


async def test_with_a_batcher_as_the_function(virtual_time):
    sizes = []

    async def send(items):
        sizes.append(len(items))
        return [2 * item for item in items]

    doubled = [result async for result in amap(Batcher(send, max_items=10), range(40), in_flight=20)]
    assert doubled == list(range(0, 80, 2))
    assert sizes == [10, 10, 10, 10]


# ------------------------------------------------------------------------------------------------------------------
# How much at a time


@every_kind_of_source
@pytest.mark.parametrize("ordered", [True, False])
async def test_as_many_calls_run_as_in_flight_allows_and_no_more(virtual_time, kind, ordered):
    calls = Calls(seconds=1)
    results = [result async for result in amap(calls, Source(20).of(kind), in_flight=4, ordered=ordered)]
    assert sorted(results) == list(range(0, 40, 2))
    assert calls.most == 4
    assert virtual_time.now() == 5


@every_kind_of_source
@pytest.mark.parametrize("ordered", [True, False])
async def test_at_most_twice_in_flight_items_are_read_ahead(virtual_time, kind, ordered):
    """A consumer that is slow holds the source back."""
    source = Source(100)
    received = 0
    async for _ in amap(Calls(seconds=0.1), source.of(kind), in_flight=5, ordered=ordered):
        received += 1
        await anyio.sleep(10)
        assert source.read - received <= 10
        assert source.read == min(100, received + 10)
    assert received == 100


async def test_a_slow_first_call_holds_back_at_most_twice_in_flight(virtual_time):
    source = Source(1000)

    async def call(item):
        await anyio.sleep(100 if item == 0 else 1)

    results = amap(call, source, in_flight=5)
    await anext(results)
    assert source.read == 10
    await results.aclose()


async def test_an_endless_source_is_read_no_further_than_needed(virtual_time):
    def naturals():
        number = 0
        while True:
            yield number
            number += 1

    async with amap(Calls(seconds=1), naturals(), in_flight=3) as results:
        assert [await anext(results) for _ in range(4)] == [0, 2, 4, 6]


async def test_nothing_begins_before_it_is_iterated(virtual_time):
    source, calls = Source(3), Calls()
    results = amap(calls, source)
    await anyio.sleep(10)
    assert (source.read, calls.begun) == (0, [])
    await results.aclose()


async def test_a_slow_source_is_read_while_calls_run(virtual_time):
    """The next item is there when a call ends: 1 second each, not 2."""
    async for _ in amap(Calls(seconds=1), Source(10, seconds=1).asynchronous(), in_flight=1):
        pass
    assert virtual_time.now() == 11


@pytest.mark.parametrize("in_flight", [0, -1, 1.5, True, "3", None])
def test_in_flight_must_be_one_or_more(in_flight):
    with pytest.raises(ValueError, match=f"in_flight must be 1 or more, not {in_flight!r}"):
        amap(sleep, [], in_flight=in_flight)


def test_what_cannot_be_called_is_refused_at_once():
    """And so is a callback that nobody would await."""

    async def on_progress(progress):
        pass

    with pytest.raises(TypeError, match="amap calls a function with each item, and 5 is not one"):
        amap(5, [1])
    with pytest.raises(
        TypeError, match=r"amap\(on_progress=.*on_progress\): it is called and not awaited; give a plain function"
    ):
        amap(sleep, [1], on_progress=on_progress)


def test_what_cannot_be_iterated_is_refused_at_once():
    with pytest.raises(TypeError, match="amap needs something to iterate over, not int"):
        amap(sleep, 3)


async def test_calls_run_in_copies_of_the_consumers_context(virtual_time):
    who = contextvars.ContextVar("who", default="nobody")

    async def call(item):
        before = who.get()
        who.set(f"call {item}")
        await anyio.sleep(1)
        return before, who.get()

    results = amap(call, range(3), in_flight=2)
    who.set("the consumer")
    assert [result async for result in results] == [("the consumer", f"call {item}") for item in range(3)]
    assert who.get() == "the consumer"


async def test_progress_is_told_each_time_a_call_ends(virtual_time):
    heard = []
    results = amap(Calls(bad=[2]), [1, 2, 3], in_flight=2, return_errors=True, on_progress=heard.append)
    async for _ in results:
        pass
    assert heard == [Progress(2, 1, 0, 3), Progress(3, 2, 1, 3), Progress(3, 3, 1, 3)]


async def test_the_total_is_none_where_the_source_does_not_say(virtual_time):
    heard = []
    async for _ in amap(sleep, iter([1]), on_progress=heard.append):
        pass
    assert heard == [Progress(started=1, done=1, failed=0, total=None)]


async def test_what_the_progress_callback_raises_is_raised(virtual_time):
    def on_progress(progress):
        raise LookupError("no screen")

    with pytest.raises(LookupError, match="no screen"):
        async for _ in amap(sleep, [1, 2, 3], on_progress=on_progress):
            pass


async def test_the_error_of_a_call_comes_before_that_of_the_callback_it_caused(virtual_time):
    def on_progress(progress):
        if progress.failed:
            raise LookupError("no screen")

    with pytest.raises(KeyError):
        async for _ in amap(Calls(bad=[2]), [1, 2, 3], on_progress=on_progress):
            pass


@pytest.mark.parametrize("ordered", [True, False])
def test_memory_does_not_depend_on_the_length_of_the_source(ordered):
    """20,000 items of a kilobyte each take no more than 1,000 do; `benchmarks/throughput.py` sends a million."""

    async def call(item):
        return len(item)

    async def peak(count):
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        async for _ in amap(call, (bytes(1000) for _ in range(count)), in_flight=50, ordered=ordered):
            pass
        return tracemalloc.get_traced_memory()[1] - before

    tracemalloc.start()
    try:
        asyncio.run(peak(1_000))
        few, many = asyncio.run(peak(1_000)), asyncio.run(peak(20_000))
    finally:
        tracemalloc.stop()
    assert many < few + 1_000_000, "20 MB if all were kept"


async def test_nothing_is_left_for_the_garbage_collector(virtual_time):
    """Results, and errors with their frames, are freed as soon as the consumer lets go of them."""

    class Witness:
        pass

    async def call(item):
        witness = Witness()
        await anyio.sleep(1)
        if item == 2:
            raise KeyError(witness)
        return witness

    gc.collect()
    gc.disable()
    try:
        async for _ in amap(call, range(4), in_flight=1, return_errors=True):
            pass
        del _
        try:
            async for _ in amap(call, range(4), in_flight=1):
                pass
        except KeyError:
            pass
        del _
        await anyio.sleep(1)
        assert not any(isinstance(one, Witness) for one in gc.get_objects())
    finally:
        gc.enable()
