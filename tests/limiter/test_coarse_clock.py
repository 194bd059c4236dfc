"""A clock that goes in steps, as that of Windows does: 15.6 ms in which no time passes, and then all of it."""

from __future__ import annotations

import math
from contextlib import suppress

import anyio
import pytest

from penstock import Limiter, Rate, RateLimited, clock

pytestmark = pytest.mark.anyio

STEP = 1 / 64


@pytest.fixture
def coarse(virtual_time, monkeypatch):
    """Penstock's clock in steps; the loop's timers are exact, as they are where only the clock is coarse."""
    fine = clock.now
    monkeypatch.setattr(clock, "now", lambda: math.floor(fine() / STEP) * STEP)
    return fine


@pytest.mark.parametrize("limit", [Rate(5, 1, 3), Rate(200, 1, 10), Rate(3_000, 60)], ids=str)
async def test_no_interval_holds_more_than_the_limit_and_all_of_it_is_used(coarse, limit):
    """By the limiter's own clock exactly, and by a fine one within a step's worth of the rate."""
    limiter = Limiter(requests=limit)
    rate, grants, seconds = limit.amount / limit.per, [], 10.0

    async def work():
        with suppress(RateLimited):  # by the deadline
            while True:
                async with limiter as permit:
                    grants.append((permit.granted_at, coarse()))

    begin = coarse()
    with anyio.move_on_after(seconds):
        async with anyio.create_task_group() as group:
            for _ in range(20):
                group.start_soon(work)
    for which, allowed in [(0, 1e-6 * rate), (1, STEP * rate)]:
        lowest = math.inf
        for number, grant in enumerate(grants):
            flowed = rate * (grant[which] - grants[0][which])
            lowest = min(lowest, number - flowed)
            assert number + 1 - flowed - lowest <= limit.burst + allowed + 1e-6
    assert len(grants) >= 0.99 * (limit.burst + rate * seconds) - 1
    assert grants[0][1] == begin
