"""Retries inside retries: the outer policy is in charge."""

from __future__ import annotations

import anyio
import anyio.to_thread
import pytest

from penstock.retry import Retry, constant, current_attempt
from tests.retry.flaky import EVERY_SECOND, Flaky

anyio_test = pytest.mark.anyio


@anyio_test
async def test_nested_policies_do_not_multiply(virtual_time):
    """stamina, 3 × 3: nine calls. Here the inner one stands back."""
    calls = 0
    retry = Retry(on=ValueError, attempts=3, backoff=EVERY_SECOND)

    @retry
    async def inner():
        nonlocal calls
        calls += 1
        raise ValueError

    @retry
    async def outer():
        await inner()

    with pytest.raises(ValueError) as caught:
        await outer()
    assert calls == 3
    assert any(
        "an outer retry is in charge (nested=True would retry here too)" in note for note in caught.value.__notes__
    )

    calls = 0
    with pytest.raises(ValueError):
        await inner()  # on its own again
    assert calls == 3


@anyio_test
async def test_every_form_stands_back_inside_every_form(virtual_time):
    retry = Retry(on=ValueError, attempts=3, backoff=constant(0))
    calls = 0

    def fail():
        nonlocal calls
        calls += 1
        raise ValueError

    async def afail():
        fail()

    async def in_loop():
        async for attempt in retry:
            with attempt:
                fail()

    async def in_sync_loop():
        for attempt in retry:
            with attempt:
                fail()

    async def in_stream():
        async def items():
            fail()
            yield

        async for _ in retry(items)():
            pass

    async def in_worker_thread():
        await anyio.to_thread.run_sync(retry(fail))

    async def in_sync():
        retry.call_sync(fail)

    for inner in (retry(afail), in_loop, in_sync_loop, in_sync, in_stream, in_worker_thread):
        calls = 0
        with pytest.raises(ValueError):
            await retry.call(inner)
        assert calls == 3
        calls = 0
        with pytest.raises(ValueError):
            async for attempt in retry:
                with attempt:
                    await inner()
        assert calls == 3


@anyio_test
async def test_nested_true_multiplies_on_purpose(virtual_time):
    calls = 0

    async def fail():
        nonlocal calls
        calls += 1
        raise ValueError

    inner = Retry(on=ValueError, attempts=3, backoff=EVERY_SECOND, nested=True)(fail)
    with pytest.raises(ValueError):
        await Retry(on=ValueError, attempts=3, backoff=EVERY_SECOND).call(inner)
    assert calls == 9


@anyio_test
async def test_an_unwanted_result_is_left_to_the_outer_policy(virtual_time):
    calls = 0

    async def busy():
        nonlocal calls
        calls += 1
        return "busy"

    retry = Retry(on=ValueError, attempts=3, on_result=lambda result: result == "busy", backoff=EVERY_SECOND)
    assert await retry.call(retry(busy)) == "busy"
    assert calls == 3


@anyio_test
async def test_tasks_of_an_attempt_are_part_of_it(virtual_time):
    """What fails in a task group inside an attempt fails the attempt: retrying in both places would multiply."""
    calls = 0
    retry = Retry(on=ValueError, attempts=3, backoff=EVERY_SECOND)

    @retry
    async def child():
        nonlocal calls
        calls += 1
        raise ValueError

    @retry
    async def parent():
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(child)

    with pytest.raises(ExceptionGroup):
        await parent()
    assert calls == 3


@anyio_test
async def test_a_task_that_outlives_the_attempt_retries_by_itself(virtual_time):
    """It inherited the attempt, but the attempt is over: nobody else would retry for it."""
    flaky = Flaky(2, virtual_time=virtual_time)
    retry = Retry(on=ConnectionError, backoff=EVERY_SECOND)

    async def background():
        await anyio.sleep(10)
        assert current_attempt() is None
        assert await retry.call(flaky) == "reply"

    async with anyio.create_task_group() as tasks:

        async def start():
            tasks.start_soon(background)

        await retry.call(start)
    assert flaky.at == [10, 11, 12]
