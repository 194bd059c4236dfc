"""AsyncLimiter over penstock: what aiolimiter promises, on every loop, in virtual time."""

from __future__ import annotations

import asyncio
import math
import re
from decimal import Decimal
from unittest import mock

import anyio
import pytest

from penstock.compat.aiolimiter import AsyncLimiter

anyio_test = pytest.mark.anyio


async def moments_of(limiter, amounts, time):
    """(amount, moment) of every acquire, in the order in which they were served; they arrive in the order given."""
    served = []

    async def acquire(amount):
        await limiter.acquire(amount)
        served.append((amount, time.now()))

    async with anyio.create_task_group() as tasks:
        for amount in amounts:
            tasks.start_soon(acquire, amount)
            await anyio.lowlevel.checkpoint()
    return served


def test_the_numbers_are_those_given():
    limiter = AsyncLimiter(42, 81)
    assert (limiter.max_rate, limiter.time_period) == (42, 81)
    assert AsyncLimiter(42).time_period == 60


@anyio_test
async def test_a_burst_of_max_rate_and_then_evenly(virtual_time):
    """5 per 10 s: five at once, then one every 2 s, to the instant."""
    served = await moments_of(AsyncLimiter(5, 10), [1] * 9, virtual_time)
    assert [moment for _, moment in served] == [0, 0, 0, 0, 0, 2, 4, 6, 8]


@anyio_test
async def test_the_context_manager_takes_one_and_gives_nothing(virtual_time):
    limiter = AsyncLimiter(1, 3)
    async with limiter as nothing:
        assert nothing is None
        assert not limiter.has_capacity()
    async with limiter:
        assert virtual_time.now() == 3


@anyio_test
async def test_capacity_is_told_for_any_amount(virtual_time):
    limiter = AsyncLimiter(4, 4)
    assert [limiter.has_capacity(amount) for amount in (0, -1, 1, 4, 4.5, float("nan"))] == [True] * 4 + [False] * 2
    await limiter.acquire(3)
    assert limiter.has_capacity()
    assert not limiter.has_capacity(2)
    await anyio.sleep(1)
    assert limiter.has_capacity(2)
    assert not limiter.has_capacity(2.001)


@anyio_test
@pytest.mark.parametrize("amount", [-1, float("-inf"), float("inf"), float("nan"), 42])
async def test_what_would_never_fit_is_refused(amount):
    with pytest.raises(ValueError, match=r"a number from 0 to the capacity, max_rate=10"):
        await AsyncLimiter(10).acquire(amount)


@pytest.mark.parametrize("numbers", [(0, 60), (-1, 60), (1, 0), (1, -60), (float("nan"), 60), (1, float("inf"))])
def test_a_rate_that_is_none_is_refused(numbers):
    with pytest.raises(ValueError, match="must be a finite number"):
        AsyncLimiter(*numbers)


@anyio_test
async def test_the_smallest_goes_first(virtual_time):
    """As in aiolimiter: by amount, and in order of arrival within one."""
    limiter = AsyncLimiter(3, 3)
    await limiter.acquire(3)
    served = await moments_of(limiter, [3, 2, 1, 0.5, 1], virtual_time)
    assert served == [(0.5, 0.5), (1, 1.5), (1, 2.5), (2, 4.5), (3, 7.5)]


@anyio_test
async def test_a_small_one_passes_a_large_one_that_waits(virtual_time):
    """Also if the large one is then served later."""
    limiter = AsyncLimiter(3, 3)
    await limiter.acquire(1)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(limiter.acquire, 3)
        await anyio.sleep(0.5)
        await limiter.acquire(1)
        assert virtual_time.now() == 0.5
    assert virtual_time.now() == 2


@anyio_test
async def test_a_waiter_that_gives_up_took_nothing(virtual_time):
    limiter = AsyncLimiter(3, 3)
    await limiter.acquire(1)
    async with anyio.create_task_group() as tasks:
        with anyio.move_on_after(0.5) as scope:
            await limiter.acquire(3)
        assert (scope.cancelled_caught, virtual_time.now()) == (True, 0.5)
        tasks.start_soon(limiter.acquire, 3)
    assert virtual_time.now() == 1


@anyio_test
async def test_a_capacity_below_one_holds_fractions(virtual_time):
    """A capacity below 1 holds fractions, as there."""
    limiter = AsyncLimiter(0.5, 1)
    served = await moments_of(limiter, [0.25, 0.25, 0.25, 0.5], virtual_time)
    assert served == [(0.25, 0), (0.25, 0), (0.25, 0.5), (0.5, 1.5)]
    with pytest.raises(ValueError):
        await limiter.acquire(1)


@anyio_test
async def test_it_shows_its_state(virtual_time):
    limiter = AsyncLimiter(2, 4)
    await limiter.acquire(2)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(limiter.acquire, 1)
        await anyio.sleep(1)
        shown = repr(limiter)
    state = r"<AsyncLimiter\(max_rate=2, time_period=4\) at 0x[0-9a-f]+ \[level: 1\.500000, waiters: 1\]>"
    assert re.fullmatch(state, shown), shown


def test_another_loop_is_warned_of_and_what_was_used_stays_used(virtual_time):
    """aiolimiter's warning, because programs that pass here are to pass there; but the count goes on."""
    limiter = AsyncLimiter(1, 10)
    asyncio.run(limiter.acquire())
    with pytest.warns(RuntimeWarning, match=r"^This AsyncLimiter instance is being re-used across loops\."):
        asyncio.run(limiter.acquire())
    assert virtual_time.now() == 10


@pytest.mark.asyncio
async def test_it_goes_by_the_time_of_the_loop_which_tests_of_its_users_set_by_hand():
    """aiolimiter's users, and its own tests, put a function of theirs in the place of `loop.time`."""
    limiter = AsyncLimiter(5, 10)
    with mock.patch.object(asyncio.get_running_loop(), "time", return_value=0) as time:
        waiting = [asyncio.create_task(limiter.acquire()) for _ in range(10)]
        for moment, served in ((0, 5), (3, 6), (7, 8), (11, 10)):
            time.return_value = moment
            for _ in range(10):
                await asyncio.sleep(0)
            assert sum(task.done() for task in waiting) == served
        assert not limiter.has_capacity()
        time.return_value = 13
        assert limiter.has_capacity()


@anyio_test
@pytest.mark.parametrize("given", ["5", Decimal("nan"), math.nan, None, 1j], ids=repr)
async def test_what_is_no_number_is_refused_with_it(given):
    with pytest.raises(ValueError, match="rate must be a finite number"):
        AsyncLimiter(given)
    with pytest.raises(ValueError, match=re.escape(f"cannot take {given!r}: the amount must be a number")):
        await AsyncLimiter(5).acquire(given)
    assert not AsyncLimiter(5).has_capacity(given)
