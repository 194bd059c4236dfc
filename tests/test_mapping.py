"""amap: how much runs, how much is read ahead, what comes out in which order, and that nothing stays behind.

All waiting is virtual, and a call takes as many seconds as its item says, unless the test says otherwise.
"""

from __future__ import annotations

import asyncio
import contextvars
import gc
import math
import tracemalloc
from dataclasses import dataclass

import anyio
import anyio.lowlevel
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock import testing
from penstock.batching import Batcher
from penstock.mapping import Progress, amap

pytestmark = pytest.mark.anyio


async def sleep(seconds):
    await anyio.sleep(seconds)
    return seconds


class Calls:
    """An async function that counts what runs. Sleeps for its item, and doubles it."""

    def __init__(self, seconds=None, bad=()):
        self.seconds = seconds
        self.bad = set(bad)
        self.begun = []
        self.running = self.most = self.cancelled = 0

    async def __call__(self, item):
        self.begun.append(item)
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await anyio.sleep(item if self.seconds is None else self.seconds)
            if item in self.bad:
                raise KeyError(item)
            return 2 * item
        except BaseException as error:
            self.cancelled += not isinstance(error, Exception)
            raise
        finally:
            self.running -= 1


class Source:
    """Numbers, as a generator of either kind, that says how far it was read and whether it was closed."""

    def __init__(self, count, seconds=0.0, fails_at=None):
        self.count = count
        self.seconds = seconds
        self.fails_at = fails_at
        self.read = 0
        self.closed = False

    def __iter__(self):
        return self.sync()

    def sync(self):
        try:
            for number in range(self.count):
                if number == self.fails_at:
                    raise OSError("cannot read on")
                self.read += 1
                yield number
        finally:
            self.closed = True

    async def asynchronous(self):
        try:
            for number in range(self.count):
                await anyio.sleep(self.seconds)
                if number == self.fails_at:
                    raise OSError("cannot read on")
                self.read += 1
                yield number
        finally:
            try:
                with anyio.CancelScope(shield=True):
                    await anyio.sleep(1)
            finally:
                self.closed = True

    def of(self, kind):
        return {"iterable": lambda: self, "generator": self.sync, "async generator": self.asynchronous}[kind]()


every_kind_of_source = pytest.mark.parametrize("kind", ["iterable", "generator", "async generator"])


async def collect(results, received):
    """What was received stays, also when an error follows."""
    async for result in results:
        received.append(result)


async def settled():
    """Let everything that can run now run."""
    for _ in range(20):
        await anyio.lowlevel.checkpoint()


# ------------------------------------------------------------------------------------------------------------------
# What comes out


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


@pytest.mark.parametrize("in_flight", [0, -1])
def test_in_flight_must_be_one_or_more(in_flight):
    with pytest.raises(ValueError, match=f"in_flight must be 1 or more, not {in_flight}"):
        amap(sleep, [], in_flight=in_flight)


def test_what_cannot_be_called_is_refused_at_once():
    """And so is a callback that nobody would await."""

    async def on_progress(progress):
        pass

    with pytest.raises(TypeError, match="amap calls a function with each item, and 5 is none"):
        amap(5, [1])
    with pytest.raises(
        TypeError, match=r"amap\(on_progress=.*on_progress\): it is called and not awaited; give a plain function"
    ):
        amap(sleep, [1], on_progress=on_progress)


def test_what_cannot_be_iterated_is_refused_at_once():
    with pytest.raises(TypeError, match="amap needs something to iterate over, not int"):
        amap(sleep, 3)


# ------------------------------------------------------------------------------------------------------------------
# Errors


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
    assert caught.value.__notes__ == ["Closing the source failed as well: OSError('cannot close')"]


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


# ------------------------------------------------------------------------------------------------------------------
# Leaving


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


# ------------------------------------------------------------------------------------------------------------------
# Context, progress, memory


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


# ------------------------------------------------------------------------------------------------------------------
# Whatever happens


@dataclass(frozen=True)
class Step:
    seconds: float
    fails: bool


steps = st.builds(Step, seconds=st.sampled_from([0, 0, 0.5, 1, 3]), fails=st.sampled_from([False] * 6 + [True]))


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@given(
    plan=st.lists(steps, max_size=30),
    in_flight=st.integers(1, 8),
    ordered=st.booleans(),
    return_errors=st.booleans(),
    kind=st.sampled_from(["iterable", "generator", "async generator"]),
    pauses=st.sampled_from([0, 0.25, 2]),
    leaves_after=st.one_of(st.none(), st.integers(0, 30)),
    deadline=st.sampled_from([math.inf, math.inf, 2.25, 5]),
)
def test_each_result_comes_once_and_the_bounds_always_hold(
    backend, plan, in_flight, ordered, return_errors, kind, pauses, leaves_after, deadline
):
    source = Source(len(plan), seconds=0.1)
    running, received, failed, done = set(), [], None, False

    async def call(item):
        assert len(running) < in_flight
        running.add(item)
        try:
            await anyio.sleep(plan[item].seconds)
            if plan[item].fails:
                raise KeyError(item)
            return item
        finally:
            running.remove(item)

    async def main():
        nonlocal failed, done
        with anyio.move_on_after(deadline):
            try:
                async with amap(
                    call, source.of(kind), in_flight=in_flight, ordered=ordered, return_errors=return_errors
                ) as results:
                    if leaves_after != 0:
                        async for result in results:
                            received.append(result if isinstance(result, int) else result.args[0])
                            await anyio.sleep(pauses)
                            assert source.read - len(received) <= 2 * in_flight
                            if len(received) == leaves_after:
                                break
                        else:
                            done = True
            except KeyError as error:
                failed = error.args[0]
            assert not running
        assert not running

    testing.run(main, backend=backend)
    assert source.closed or source.read == 0
    assert len(set(received)) == len(received)
    if ordered:
        assert received == list(range(len(received)))
    if done:
        assert sorted(received) == list(range(len(plan)))
    if failed is not None:
        assert plan[failed].fails
        assert not return_errors
    if done and not return_errors:
        assert not any(step.fails for step in plan)
