"""What the tests of limiters share."""

from __future__ import annotations

from contextlib import suppress

import anyio
import anyio.to_thread

from penstock import (
    RateLimited,
    clock,
)


async def line_up(limiter, calls, log):
    """Start `calls`, (name, options) each, one after another; write down who is granted when."""

    async def call(name, options):
        async with limiter(**options):
            log.append((name, round(clock.now(), 6)))

    async with anyio.create_task_group() as group:
        for name, options in calls:
            group.start_soon(call, name, options)
            await anyio.wait_all_tasks_blocked()


PLAIN = {"one limit": {"requests": "10/s"}, "two limits": {"requests": "10/s", "tokens": "100/s"}}


async def granted_at_once(limiter, **cost):
    """Of ten calls, made as plainly as can be."""
    granted = 0
    with suppress(RateLimited), anyio.fail_after(0.001):
        for _ in range(10):
            async with limiter(**cost) if cost else limiter:
                granted += 1
    return granted
