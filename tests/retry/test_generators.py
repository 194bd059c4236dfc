"""A `yield` inside `with attempt:`: the consumer of a generator is no part of the generator's attempt."""

from __future__ import annotations

import asyncio
import contextlib
import threading

import anyio
import anyio.to_thread
import pytest
import sniffio

from penstock.retry import Retry, constant, current_attempt
from penstock.retry.call import current

pytestmark = pytest.mark.anyio

retry = Retry(on=ValueError, attempts=3, backoff=constant(0))


class Failing:
    """Functions that always fail, and count how often they were called."""

    def __init__(self):
        self.calls = 0

    def sync(self):
        self.calls += 1
        raise ValueError

    async def __call__(self):
        self.sync()


def direct():
    for attempt in retry:
        with attempt:
            yield 1


def in_a_try():
    for attempt in retry:
        with attempt:
            try:
                yield 1
            except KeyError:
                yield 2
            finally:
                pass


def delegating():
    for attempt in retry:
        with attempt:
            yield from [1]


def on_a_stack():
    for attempt in retry:
        with contextlib.ExitStack() as stack:
            stack.enter_context(attempt)
            yield 1


def beside_another():
    for attempt in retry:
        with attempt, contextlib.nullcontext():
            yield 1


def around_a_loop():
    for attempt in retry:
        with attempt:
            for item in [1, 2]:
                if item:
                    yield item


async def async_direct():
    async for attempt in retry:
        with attempt:
            yield 1


async def async_with_async_with():
    async for attempt in retry:
        async with attempt, contextlib.AsyncExitStack():
            await anyio.lowlevel.checkpoint()
            yield 1


async def async_on_a_stack():
    async for attempt in retry:
        async with contextlib.AsyncExitStack() as stack:
            stack.enter_context(attempt)
            yield 1


async def async_on_a_stack_asynchronously():
    async for attempt in retry:
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(attempt)
            yield 1


async def async_around_a_loop():
    async for attempt in retry:
        with attempt:
            async with contextlib.aclosing(async_direct()) as items:
                async for item in items:
                    yield item


SYNC = [direct, in_a_try, delegating, on_a_stack, beside_another, around_a_loop]
ASYNC = [
    async_direct,
    async_with_async_with,
    async_on_a_stack,
    async_on_a_stack_asynchronously,
    async_around_a_loop,
]


async def consume_sync(failing):
    retry.call_sync(failing.sync)


async def consume_async(failing):
    await retry.call(failing)


async def consume_by_decorator(failing):
    await retry(failing)()


async def consume_in_a_loop(failing):
    async for attempt in retry:
        with attempt:
            failing.sync()


async def consume_in_a_thread_loop(failing):
    for attempt in retry:
        with attempt:
            failing.sync()


async def consume_in_a_task(failing):
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(retry.call, failing)


async def consume_in_a_worker_thread(failing):
    await anyio.to_thread.run_sync(retry.call_sync, failing.sync)


CONSUMERS = [
    consume_sync,
    consume_async,
    consume_by_decorator,
    consume_in_a_loop,
    consume_in_a_thread_loop,
    consume_in_a_task,
    consume_in_a_worker_thread,
]


@pytest.mark.parametrize("consume", CONSUMERS)
@pytest.mark.parametrize("generator", SYNC)
async def test_the_consumer_of_a_generator_keeps_its_own_retry(generator, consume):
    failing, items = Failing(), generator()
    next(items)
    with pytest.raises((ValueError, ExceptionGroup)):
        await consume(failing)
    assert failing.calls == 3
    assert current_attempt() is None
    items.close()
    assert current.get() is None


@pytest.mark.parametrize("consume", CONSUMERS)
@pytest.mark.parametrize("generator", ASYNC)
async def test_the_consumer_of_an_async_generator_keeps_its_own_retry(generator, consume):
    failing = Failing()
    async with contextlib.aclosing(generator()) as items:
        await anext(items)
        with pytest.raises((ValueError, ExceptionGroup)):
            await consume(failing)
        assert failing.calls == 3
        assert current_attempt() is None
    assert current.get() is None


async def test_a_worker_that_the_consumer_started_keeps_its_retry_while_the_generator_awaits(virtual_time):
    """It inherits the context variable, and the generator's attempt is still under way when it fails."""
    failing = Failing()

    async def items():
        async for attempt in retry:
            with attempt:
                yield 1
                await anyio.sleep(10)
                yield 2

    async def work():
        await anyio.sleep(5)
        await retry.call(failing)

    with pytest.raises(ExceptionGroup):
        async with anyio.create_task_group() as tasks:
            async for item in items():
                if item == 1:
                    tasks.start_soon(work)
    assert failing.calls == 3


async def test_a_retried_block_of_a_context_manager_leaves_its_body_alone():
    """Entering is tried again; the body keeps the retries of its own."""
    failing = Failing()

    @contextlib.asynccontextmanager
    async def session():
        async for attempt in retry:
            with attempt:
                yield attempt.number

    async with session() as number:
        assert number == 1
        with pytest.raises(ValueError):
            await retry.call(failing)
    assert failing.calls == 3


async def test_inside_a_generators_block_other_policies_still_stand_back():
    """In code that the block calls, and, where the block cannot yield, in its child tasks and threads too."""
    outer, failing = Failing(), Failing()

    async def inner():
        assert current_attempt() is not None
        await retry.call(failing)

    async def yields():
        async for attempt in retry:
            with attempt:
                outer.calls += 1
                await inner()
                yield 1

    with pytest.raises(ValueError):
        await anext(yields())
    assert (outer.calls, failing.calls) == (3, 3)

    async def does_not_yield(how):
        async for attempt in retry:
            with attempt:
                if how == "task":
                    await asyncio.wait_for(retry.call(failing), 5)
                elif how == "task group":
                    async with anyio.create_task_group() as tasks:
                        tasks.start_soon(retry.call, failing)
                elif how == "worker thread":
                    await anyio.to_thread.run_sync(retry.call_sync, failing.sync)
                else:
                    await retry.call(failing)
        yield 1

    on_asyncio = sniffio.current_async_library() == "asyncio"
    for how in ("call", "task group", "worker thread", *(["task"] if on_asyncio else [])):
        failing.calls = 0
        with pytest.raises((ValueError, ExceptionGroup)):
            await anext(does_not_yield(how))
        assert failing.calls == 3, how


def test_inside_a_plain_generators_block_other_policies_still_stand_back():
    failing = Failing()

    def items():
        for attempt in retry:
            with attempt:
                retry.call_sync(failing.sync)
                yield 1

    with pytest.raises(ValueError):
        next(items())
    assert failing.calls == 3


async def test_the_consumers_own_outer_policy_is_still_in_charge():
    """A suspended generator in between does not hide it."""
    failing = Failing()

    async def consumer():
        async with contextlib.aclosing(async_direct()) as items:
            async for _ in items:
                await retry.call(failing)

    with pytest.raises(ValueError):
        await retry.call(consumer)
    assert failing.calls == 3


async def test_attempts_of_generator_and_consumer_may_end_in_any_order():
    items, failing = direct(), Failing()
    for attempt in Retry(on=KeyError):
        next(items)
        with attempt:
            items.close()  # the generator's attempt ends within the consumer's
            assert current_attempt() is attempt
            with pytest.raises(ValueError):
                retry.call_sync(failing.sync)
    assert failing.calls == 1  # the consumer's policy is in charge
    assert current.get() is None

    items = direct()
    for attempt in retry:
        with attempt:
            next(items)
            assert current_attempt() is attempt
    assert current_attempt() is None
    items.close()
    assert current.get() is None


def test_a_generator_in_another_thread_is_not_in_charge_here():
    """Two threads with one context, as frameworks copy them."""
    inside, done, failing = threading.Event(), threading.Event(), Failing()

    def block():
        for attempt in retry:
            with attempt:
                inside.set()
                done.wait(5)
                yield 1

    thread = threading.Thread(target=lambda: next(block()))
    thread.start()
    inside.wait(5)
    with pytest.raises(ValueError):
        retry.call_sync(failing.sync)
    done.set()
    thread.join()
    assert failing.calls == 3


async def test_a_generator_that_is_given_up_in_its_block_leaves_nothing_behind():
    items = direct()
    next(items)
    del items
    assert current.get() is None
    for _ in direct():
        break
    assert current.get() is None
