"""Async generators: retried until their first item, and after it only by whoever knows how to go on."""

from __future__ import annotations

from contextlib import aclosing, asynccontextmanager

import anyio
import pytest

from penstock.errors import AttemptTimeout
from penstock.events import AttemptStarted, GaveUp, RetryScheduled, Succeeded
from penstock.retry import Retry, constant, current_attempt

pytestmark = pytest.mark.anyio

retry = Retry(on=ValueError, attempts=4, backoff=constant(1))


def source(*attempts):
    """An async generator function whose calls yield these items, one list after the other; an exception is raised."""
    remaining = iter(attempts)

    async def items(*_args, **_kwargs):
        for item in next(remaining):
            if isinstance(item, BaseException):
                raise item
            yield item

    return items


async def test_a_stream_is_tried_again_until_its_first_item(virtual_time):
    items = retry(source([ValueError()], [ValueError()], [1, 2, 3]))
    assert [item async for item in items()] == [1, 2, 3]
    assert virtual_time.now() == 2


async def test_a_stream_does_not_repeat_what_it_has_handed_out(virtual_time):
    """stamina's yields 1 2 1 2 1 2 3: the consumer cannot tell that it starts over."""
    seen, calls = [], 0

    @retry
    async def items():
        nonlocal calls
        calls += 1
        yield 1
        yield 2
        if calls < 3:
            raise ValueError("broken")
        yield 3

    with pytest.raises(ValueError) as caught:
        async for item in items():
            seen.append(item)  # noqa: PERF401 - the list is wanted although the loop fails
    assert seen == [1, 2]
    assert calls == 1
    assert caught.value.__notes__[0].endswith(
        "items were handed out already, and a new attempt would repeat them (resume= says how to go on)"
    )


async def test_resume_says_how_to_go_on(virtual_time):
    """It is given the last item and the arguments of the call, and returns what comes after that item."""
    resumed = []

    async def numbers(start, end):
        for number in range(start, end):
            if number % 4 == 3 and (number, start) not in resumed:
                resumed.append((number, start))
                raise ValueError(number)
            yield number

    def after(last, start, end):
        return numbers(last + 1, end)

    stream = Retry(on=ValueError, backoff=constant(1), attempts=9)(resume=after)(numbers)
    assert [item async for item in stream(0, 10)] == list(range(10))
    assert resumed == [(3, 0), (3, 3), (7, 3), (7, 7)]
    assert virtual_time.now() == 4


async def test_resume_may_return_any_async_iterator(virtual_time):
    class Countdown:
        def __init__(self, start):
            self.next = start

        def __aiter__(self):
            return self

        async def __anext__(self):
            self.next -= 1
            if self.next < 0:
                raise StopAsyncIteration
            return self.next

    stream = retry(resume=Countdown)(source([5, ValueError()]))
    assert [item async for item in stream()] == [5, 4, 3, 2, 1, 0]

    stream = retry(resume=Countdown)(source([5, ValueError()]))()
    await anext(stream)
    await anext(stream)
    with pytest.raises(KeyError):  # it has nowhere to throw it into
        await stream.athrow(KeyError())


async def test_resumed_streams_keep_the_bounds(virtual_time):
    stream = retry(resume=lambda _last: stream_of())(source([1, ValueError()]))

    async def stream_of():
        yield 2
        raise ValueError

    seen = []
    with pytest.raises(ValueError) as caught:
        async for item in stream():
            seen.append(item)  # noqa: PERF401
    assert seen == [1, 2, 2, 2]
    assert "attempts=4 allows no more" in caught.value.__notes__[0]


async def test_an_empty_stream_is_a_success(virtual_time):
    events = []
    empty = Retry(on=ValueError, backoff=constant(1), on_event=events.append)(source([ValueError()], []))
    assert [item async for item in empty()] == []
    assert [type(event) for event in events] == [AttemptStarted, RetryScheduled, AttemptStarted, Succeeded]


async def test_a_consumer_that_has_enough_closes_the_source(virtual_time):
    events, closed = [], []

    @Retry(on=ValueError, on_event=events.append)
    async def items():
        try:
            yield 1
            yield 2
        finally:
            closed.append(True)

    async with aclosing(items()) as stream:
        async for _ in stream:
            break
    assert closed == [True]
    assert [type(event) for event in events] == [AttemptStarted, Succeeded]


async def test_a_context_manager_over_a_retried_stream_retries_its_entry_alone(virtual_time):
    """Connecting is tried again; what fails inside the block reaches the generator, and then the caller, once."""
    attempts, cleaned = 0, []

    @asynccontextmanager
    @retry
    async def connection():
        nonlocal attempts
        attempts += 1
        if attempts < 3:
            raise ValueError
        try:
            yield attempts
        except KeyError:
            cleaned.append("swallowed")
        finally:
            cleaned.append("closed")

    async with connection() as number:
        assert number == 3
    assert cleaned == ["closed"]
    with pytest.raises(ValueError, match="mine"):
        async with connection():
            raise ValueError("mine")
    async with connection():
        raise KeyError
    assert attempts == 5
    assert cleaned == ["closed", "closed", "swallowed", "closed"]


async def test_what_is_sent_or_thrown_reaches_the_source(virtual_time):
    @retry
    async def echo():
        received = "ready"
        while True:
            try:
                received = yield received
            except KeyError as error:
                received = error

    async with aclosing(echo()) as stream:
        assert await anext(stream) == "ready"
        assert await stream.asend("hello") == "hello"
        error = KeyError()
        assert await stream.athrow(error) is error
        assert await stream.asend("again") == "again"


async def test_the_wait_for_the_first_item_can_be_bounded(virtual_time):
    waits = iter([60, 1])

    @Retry(on=TimeoutError, attempt_timeout=5, backoff=constant(1))
    async def items():
        await anyio.sleep(next(waits))
        yield 1
        await anyio.sleep(60)  # between items the stream may take its time
        yield 2

    assert [item async for item in items()] == [1, 2]
    assert virtual_time.now() == 5 + 1 + 1 + 60

    @Retry(on=ValueError, attempt_timeout=5)
    async def stuck():
        await anyio.sleep(60)
        yield

    with pytest.raises(AttemptTimeout):
        await anext(stuck())


async def test_cancelling_a_stream_cancels_it(virtual_time):
    @Retry(on=lambda _: True)
    async def items():
        yield 1
        await anyio.sleep_forever()

    seen = []
    with anyio.move_on_after(3) as scope:
        async for item in items():
            seen.append(item)  # noqa: PERF401
    assert scope.cancelled_caught
    assert seen == [1]


async def test_the_attempt_is_known_inside_and_does_not_leak_out(virtual_time):
    """Policies inside stand back while the stream itself would be tried again, and are on their own after that."""
    inside = []

    @Retry(on=ValueError)
    async def items():
        inside.append(current_attempt())
        yield 1
        inside.append(current_attempt())
        yield 2

    async for _ in items():
        assert current_attempt() is None
    assert inside[0].number == 1
    assert inside[1] is None

    @Retry(on=ValueError)(resume=lambda _last: None)
    async def resumable():
        yield current_attempt().number
        yield current_attempt().number

    async for number in resumable():
        assert number == 1
        assert current_attempt() is None


async def test_a_late_wait_ends_the_stream(virtual_time, monkeypatch):
    async def oversleep(seconds):
        virtual_time.advance(seconds + 10)

    monkeypatch.setattr(anyio, "sleep", oversleep)
    events = []
    stream = Retry(on=ValueError, within=5, backoff=constant(1), on_event=events.append)(source([ValueError()], [1]))
    with pytest.raises(ValueError):
        await anext(stream())
    assert isinstance(events[-1], GaveUp)
    assert events[-1].reason == "within"


async def test_what_makes_no_sense_of_a_stream_is_refused():
    async def items():
        yield 1

    async def function():
        return 1

    with pytest.raises(
        TypeError, match=r"on_result= looks at a result, and .*items is an async generator, which has none"
    ):
        Retry(on=ValueError, on_result=bool)(items)
    with pytest.raises(TypeError, match=r"resume= continues an async generator, which .*function is not"):
        retry(resume=lambda _last: None)(function)
