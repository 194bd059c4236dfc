"""amap: the first error ends the iteration, or errors come in the place of results."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import functools
import gc
import pickle
import weakref

import anyio
import anyio.lowlevel
import pytest

from penstock import testing
from penstock.mapping import amap
from tests.mapping.calls import Calls, Source, collect, every_kind_of_source, sleep

pytestmark = pytest.mark.anyio


@every_kind_of_source
@pytest.mark.parametrize("ordered", [True, False])
async def test_the_first_error_is_raised_as_it_is_after_the_rest_was_cancelled_and_the_source_closed(
    virtual_time, kind, ordered
):
    source, calls = Source(100), Calls(seconds=1, bad=[7])
    received = []
    results = amap(calls, source.of(kind), in_flight=4, ordered=ordered)
    with pytest.raises(KeyError) as caught:
        await collect(results, received)
    assert caught.value.args == (7,)
    assert set(received) >= {0, 2, 4, 6}
    assert calls.running == 0
    assert source.closed
    assert [result async for result in results] == []


async def test_an_error_cancels_at_once_also_while_the_consumer_is_busy(virtual_time):
    calls = Calls(bad=[2])
    results = amap(calls, [1, 2, 50, 60], in_flight=4)
    assert await anext(results) == 2
    await anyio.sleep(2)
    assert calls.running == 0
    assert calls.cancelled == 2
    with pytest.raises(KeyError):
        await anext(results)


async def test_results_that_were_ready_before_the_error_are_handed_over_first(virtual_time):
    """They were paid for."""
    results = amap(Calls(bad=[4]), [1, 2, 3, 4, 5], in_flight=4)
    assert await anext(results) == 2
    await anyio.sleep(5)
    assert await anext(results) == 4
    assert await anext(results) == 6
    with pytest.raises(KeyError):
        await anext(results)


@pytest.mark.parametrize("ordered", [True, False])
async def test_errors_are_returned_in_the_place_of_results(virtual_time, ordered):
    calls = Calls(seconds=1, bad=[1, 3])
    results = [result async for result in amap(calls, range(5), in_flight=1, ordered=ordered, return_errors=True)]
    assert [result if isinstance(result, int) else type(result) for result in results] == [0, KeyError, 4, KeyError, 8]
    assert calls.cancelled == 0


@pytest.mark.parametrize("kind", ["generator", "async generator"])
async def test_an_error_of_the_source_is_raised_after_the_rest_was_cancelled(virtual_time, kind):
    source, calls = Source(10, fails_at=3), Calls(seconds=1)
    with pytest.raises(OSError, match="cannot read on"):
        async for _ in amap(calls, source.of(kind), in_flight=5):
            pass
    assert sorted(calls.begun) == [0, 1, 2]
    assert calls.running == 0
    assert source.closed


@pytest.mark.parametrize("kind", ["generator", "async generator"])
async def test_with_errors_returned_one_of_the_source_is_raised_after_the_results_of_what_was_read(virtual_time, kind):
    source, received = Source(10, fails_at=3), []
    with pytest.raises(OSError, match="cannot read on"):
        await collect(amap(Calls(seconds=5), source.of(kind), in_flight=5, return_errors=True), received)
    assert received == [0, 2, 4]


async def test_a_stop_iteration_of_the_function_is_not_the_end(virtual_time):
    """It would look like one, and the rest be lost."""

    async def call(item):
        raise StopAsyncIteration

    with pytest.raises(RuntimeError, match="raised StopAsyncIteration"):
        async for _ in amap(call, [1]):
            pass


async def test_a_function_that_is_not_async_is_an_error(virtual_time):
    with pytest.raises(TypeError, match="await"):
        await anext(amap(lambda item: item, [1]))


@pytest.mark.parametrize("return_errors", [True, False])
async def test_a_source_that_fails_to_begin_is_an_error(virtual_time, return_errors):
    class Broken:
        def __iter__(self):
            raise LookupError("nothing there")

    with pytest.raises(LookupError, match="nothing there"):
        await anext(amap(sleep, Broken(), return_errors=return_errors))


async def test_a_source_that_fails_to_close_says_so(virtual_time):
    def source():
        try:
            while True:
                yield 1
        finally:
            raise OSError("cannot close")

    with pytest.raises(OSError, match="cannot close"):
        async with amap(sleep, source(), in_flight=2) as results:
            await anext(results)
    with pytest.raises(KeyError) as caught:
        async for _ in amap(Calls(bad=[1]), source(), in_flight=2):
            pass
    assert caught.value.__notes__ == ["penstock: closing the source failed as well: OSError('cannot close')"]


@pytest.mark.asyncio
@pytest.mark.parametrize("anyio_backend", [None])
async def test_a_call_that_somebody_else_cancels_ends_the_iteration_like_an_error(anyio_backend, virtual_time):
    """As with asyncio.gather: its result will never come."""

    async def call(item):
        await asyncio.sleep(item)
        raise asyncio.CancelledError("by somebody else")

    with pytest.raises(asyncio.CancelledError):
        async for _ in amap(call, [1, 5], return_errors=True):
            pass
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_a_plain_callable_may_return_an_awaitable(virtual_time):
    class Sdk:
        def ask(self, item):
            return sleep(item)

    for fn in (Sdk().ask, lambda item: sleep(item), functools.partial(lambda item: sleep(item))):  # noqa: PLW0108
        assert [result async for result in amap(fn, [3, 1, 2])] == [3, 1, 2]


async def test_a_plain_function_is_told_apart_when_it_was_called(virtual_time):
    with pytest.raises(TypeError, match=r"<lambda> returned int, which cannot be awaited: give an async function"):
        await anext(amap(lambda item: item, [1]))


async def generate(item):
    yield item


@pytest.mark.parametrize(
    ("fn", "what"),
    [
        (generate, "generator"),
        (functools.partial(generate), "generator"),
        (contextlib.asynccontextmanager(generate), "context manager"),
    ],
)
async def test_a_function_without_a_result_is_refused_at_once(fn, what):
    with pytest.raises(
        TypeError, match=f"amap awaits one result for each item, and generate is a {what}: give an async function"
    ):
        amap(fn, [1])


async def test_a_progress_callback_that_nobody_would_await_is_refused(virtual_time):
    with pytest.raises(TypeError, match=r"amap\(on_progress=\.\.\.\) returned coroutine: it is called and not awaited"):
        async for _ in amap(sleep, [1, 2], on_progress=lambda _: sleep(0)):
            pass


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_an_error_of_the_source_leaves_no_reference_cycle_behind(backend):
    """Its frames, and all that they hold, are freed at once, and not when the garbage collector comes."""

    class Held:
        pass

    refs = []

    def source():
        held = Held()
        refs.append(weakref.ref(held))
        yield 1
        raise KeyError

    async def main():
        with contextlib.suppress(KeyError):
            async for _ in amap(sleep, source()):
                pass
        await anyio.sleep(1)

    gc.collect()
    gc.disable()
    try:
        testing.run(main, backend=backend)
        assert refs[0]() is None
    finally:
        gc.enable()


async def test_a_source_whose_error_cannot_be_shown_says_so(virtual_time):
    class Unspeakable(Exception):  # noqa: N818
        def __repr__(self):
            raise AssertionError

    def source():
        try:
            while True:
                yield 1
        finally:
            raise Unspeakable

    with pytest.raises(KeyError) as caught:
        async for _ in amap(Calls(bad=[1]), source(), in_flight=2):
            pass
    (note,) = caught.value.__notes__
    assert note.endswith("closing the source failed as well: <Unspeakable, whose repr raised AssertionError>")


async def test_results_are_not_copied(virtual_time):
    results = amap(sleep, [1, 2])
    assert copy.deepcopy(results) is results
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(results)
    assert [result async for result in results] == [1, 2]
