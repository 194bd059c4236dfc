"""`timeout`: calls that take too long are cut."""

from __future__ import annotations

from datetime import timedelta

import anyio
import pytest

from penstock.errors import AttemptTimeout
from penstock.pipeline import Pipeline, timeout
from penstock.retry import Retry, constant
from tests.pipeline.calls import raises, stuck

anyio_test = pytest.mark.anyio


@anyio_test
async def test_a_call_that_takes_too_long_is_cut_and_has_ended(virtual_time):
    ended = []

    @timeout(5)
    async def slow():
        try:
            await anyio.sleep(60)
        finally:
            ended.append(virtual_time.now())

    with pytest.raises(AttemptTimeout) as caught:
        await slow()
    assert ended == [5]
    assert isinstance(caught.value, TimeoutError)
    assert caught.value.seconds == 5
    assert str(caught.value).endswith("slow took longer than timeout(5) allows")


@anyio_test
async def test_a_timeout_leaves_the_cancellation_of_others_alone(virtual_time):
    with anyio.move_on_after(3) as scope:
        await timeout(5)(stuck)()
    assert scope.cancelled_caught
    with pytest.raises(TimeoutError, match="mine"):
        await timeout(5)(raises(TimeoutError("mine")))()


@anyio_test
async def test_a_retry_around_a_timeout_tries_again(virtual_time):
    calls = []

    async def slow_once():
        calls.append(virtual_time.now())
        if len(calls) == 1:
            await anyio.sleep(60)
        return "reply"

    assert await Pipeline(Retry(on=TimeoutError, backoff=constant(1)), timeout(5))(slow_once)() == "reply"
    assert calls == [0, 6]


def test_a_timeout_is_a_frozen_value_above_zero():
    assert timeout(5) == timeout(5)
    assert len({timeout(5), timeout(5), timeout(6)}) == 2
    assert timeout(timedelta(seconds=5)) == timeout(5)
    assert timeout(timedelta(seconds=5)).seconds == 5
    for seconds in (0, -1, float("nan"), timedelta(0), "5", None, True):
        with pytest.raises(ValueError, match=r"seconds or a timedelta, above 0"):
            timeout(seconds)
