"""What an attempt knows."""

from __future__ import annotations

import contextvars

import anyio
import anyio.to_thread
import pytest

from penstock.errors import RateLimited
from penstock.limiter import Limiter
from penstock.retry import Attempt, Retry, constant, current_attempt, exponential
from penstock.retry.call import current
from tests.retry.flaky import EVERY_SECOND, Flaky

anyio_test = pytest.mark.anyio


@anyio_test
async def test_the_idempotency_key_is_of_the_call(virtual_time):
    """The same in all attempts of one call, another one in the next call, and to be had inside the function."""
    keys, numbers = [], []

    @Retry(on=ValueError, attempts=3, backoff=EVERY_SECOND)
    async def send():
        await anyio.lowlevel.checkpoint()
        attempt = current_attempt()
        assert current_attempt() is attempt
        keys.append(attempt.idempotency_key)
        numbers.append((attempt.number, type(attempt.previous)))
        if attempt.number < 3:
            raise ValueError

    await send()
    await send()
    assert numbers == [(1, type(None)), (2, ValueError), (3, ValueError)] * 2
    assert len(set(keys[:3])) == len(set(keys[3:])) == 1
    assert len(set(keys)) == 2
    assert all(len(key) == 32 and int(key, 16) for key in keys)
    assert current_attempt() is None


@anyio_test
async def test_a_policy_that_stands_back_has_a_key_of_its_own(virtual_time):
    """Two requests of one outer attempt must not look like one to the server."""
    retry, keys = Retry(on=ValueError), []

    @retry
    async def send():
        keys.append(current_attempt().idempotency_key)

    @retry
    async def both():
        keys.append(current_attempt().idempotency_key)
        await send()
        await send()

    await both()
    assert len(set(keys)) == 3


@anyio_test
async def test_the_loop_form_is_the_current_attempt_in_its_block(virtual_time):
    async for attempt in Retry(on=ValueError):
        assert current_attempt() is None
        with attempt as entered:
            assert current_attempt() is attempt is entered
    assert current_attempt() is None
    assert repr(attempt) == "<Attempt 1 of block>"


@anyio_test
async def test_an_attempt_is_made_once_and_not_forgotten(virtual_time):
    retry = Retry(on=ValueError)
    with pytest.raises(RuntimeError, match="attempt 1 was already made"):
        async for attempt in retry:
            with attempt:
                pass
            with attempt:
                pass
    with pytest.raises(RuntimeError, match="attempt 1 was never made: put `with attempt:` around what may fail"):
        async for attempt in retry:
            assert isinstance(attempt, Attempt)


@anyio_test
async def test_leaving_the_loop_early_leaves_nothing_behind(virtual_time):
    retry = Retry(on=ValueError)

    async def leave(how):
        async for attempt in retry:
            with attempt:
                if how == "return":
                    return
                if how == "break":
                    break
                continue

    for how in ("return", "break", "continue"):
        await leave(how)
        assert current.get() is None
    for loop, again in ((aiter(retry), aiter), (iter(retry), iter)):
        assert again(loop) is loop  # a loop that was left is not begun anew


def test_an_attempt_left_in_another_context_leaves_nothing_that_matters(thread_time):
    """A generator can be closed by another task than the one that ran it: what stays behind is no attempt any more."""
    retry = Retry(on=ValueError)
    attempt, context = next(iter(retry)), contextvars.copy_context()
    context.run(attempt.__enter__)
    assert context.run(current_attempt) is attempt
    attempt.__exit__(None, None, None)
    assert context.run(current_attempt) is None
    flaky = Flaky(1, ValueError)
    assert context.run(Retry(on=ValueError, backoff=EVERY_SECOND).call_sync, flaky.sync) == "reply"


# ----------------------------------------------------------------------------------------------------------------------
# `async with`


@anyio_test
async def test_each_attempt_is_charged_when_a_limiter_stands_beside_it(virtual_time):
    limiter, at = Limiter(requests="10/s", tokens="100/s burst 10"), []
    async for attempt in Retry(on=ConnectionError, backoff=constant(0)):
        async with attempt, limiter(tokens=10) as permit:
            at.append(virtual_time.now())
            assert current_attempt() is attempt
            permit.settle(tokens=10)
            if attempt.number < 3:
                raise ConnectionError
    assert at == pytest.approx([0, 0.1, 0.2])
    assert limiter.statistics().granted == 3
    assert current.get() is None


@anyio_test
async def test_a_refusal_of_the_limiter_beside_an_attempt_is_its_failure(virtual_time):
    limiter = Limiter(requests="1/s")
    await limiter.acquire()
    async for attempt in Retry(on=RateLimited, backoff=exponential(jitter="none")):
        async with attempt, limiter(max_wait=0):
            pass
    assert attempt.number == 2
    assert virtual_time.now() == 1


def test_a_limiter_beside_an_attempt_in_a_thread(thread_time):
    limiter = Limiter(requests="10/s burst 3")
    for attempt in Retry(on=ConnectionError, backoff=constant(0)):
        with attempt, limiter():
            if attempt.number < 3:
                raise ConnectionError
    assert limiter.statistics().granted == 3


@anyio_test
async def test_async_with_does_all_that_with_does(virtual_time):
    retry = Retry(on=(ConnectionError, TimeoutError), attempts=2, attempt_timeout=5, backoff=EVERY_SECOND)
    with pytest.raises(TimeoutError):
        async for attempt in retry:
            async with attempt as entered:
                assert entered is attempt
                await anyio.sleep(60)
    assert virtual_time.now() == 11
    with pytest.raises(RuntimeError, match="attempt 1 was already made"):
        async for attempt in retry:
            async with attempt:
                pass
            async with attempt:
                pass
    results = iter(["busy", "done"])
    async for attempt in Retry(on=ValueError, on_result=lambda result: result == "busy", backoff=EVERY_SECOND):
        async with attempt:
            attempt.result = next(results)
    assert attempt.number == 2
    with anyio.move_on_after(3) as scope:
        async for attempt in Retry(on=lambda _: True):
            async with attempt:
                await anyio.sleep_forever()
    assert scope.cancelled_caught
    assert current.get() is None


@anyio_test
async def test_the_error_before_is_kept_without_its_frames(virtual_time):
    """They would hold the frame of the loop, which holds the attempt."""
    async for attempt in Retry(on=ConnectionError, backoff=EVERY_SECOND):
        async with attempt:
            if attempt.number == 1:
                raise ConnectionError("first")
    assert str(attempt.previous) == "first"
    assert attempt.previous.__traceback__ is None
