"""Pauses: everybody waits, as long as the server asked."""

from __future__ import annotations

import anyio
import anyio.to_thread
import pytest

from penstock import (
    Limiter,
    RateLimited,
    clock,
    per_second,
    unlimited,
)
from tests.limiter.lines import line_up

pytestmark = pytest.mark.anyio


async def test_a_pause_holds_everybody_and_is_never_shortened(virtual_time):
    """Promise 9."""
    limiter = Limiter(requests=per_second(100))
    limiter.pause(7.0)
    limiter.pause(2.0)
    with pytest.raises(RateLimited) as refused:
        limiter.acquire_nowait()
    assert (refused.value.retry_after, refused.value.blocked_by) == (7.0, "pause")
    log = []
    await line_up(limiter, [("a", {}), ("b", {})], log)
    assert log == [("a", 7.0), ("b", 7.0)]
    async with limiter:
        assert clock.now() == 7.0


async def test_a_pause_outlives_those_that_give_up_in_it(virtual_time):
    limiter = Limiter(requests=per_second(100))
    limiter.pause(5.0)
    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as group:
            group.start_soon(limiter.acquire)
            await anyio.wait_all_tasks_blocked()
            scope.cancel()
    async with limiter(requests=1):
        assert clock.now() == 5.0


async def test_a_pause_of_one_unit_lets_calls_pass_that_do_not_cost_it(virtual_time):
    limiter = Limiter(requests=per_second(100), tokens=per_second(100))
    limiter.pause(3, "tokens")
    limiter.acquire_nowait(tokens=0)
    with pytest.raises(RateLimited):
        limiter.acquire_nowait(tokens=1)


async def test_a_pause_holds_calls_that_nothing_else_limits(virtual_time):
    """Promise 9: a server that says "wait" means the unit that is unlimited here as well."""
    limiter = Limiter(requests=unlimited, tokens=unlimited)
    limiter.pause(2)
    async with limiter(tokens=5) as permit:
        assert clock.now() == 2
    assert permit.cost == {"requests": 1, "tokens": 5}
    limiter.pause(3, "tokens")
    async with limiter(tokens=0):
        assert clock.now() == 2
    async with limiter(tokens=1):
        assert clock.now() == 5
    async with limiter(tokens=10**9):
        assert clock.now() == 5
