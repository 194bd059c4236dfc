"""What there is of a unit and who waits, as those see it that decide many times a second."""

from __future__ import annotations

import contextlib

import anyio
import pytest

from penstock import Keyed, Limiter, Rate, in_flight, per_minute
from penstock.stores import SQLiteStore

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["memory", "keyed", "joint", "mixed"])
def limiter(request, tmp_path):
    limits = {"tokens": [Rate(1, 1000, 100), Rate(1, 10_000, 50)]}
    if request.param == "memory":
        yield Limiter(**limits)
    elif request.param == "keyed":
        yield Keyed(**limits)["alice"]
    elif request.param == "joint":
        yield Limiter(requests=per_minute(60)) & Limiter(**limits)
    else:
        with contextlib.closing(SQLiteStore(tmp_path / "limits")) as store:
            yield Limiter(calls=in_flight(9)) & Limiter(name="shared", store=store, **limits)


async def test_the_level_of_a_unit_is_that_of_its_smallest_limit(limiter):
    await limiter.acquire(tokens=10)
    backend = limiter._backend
    assert backend.level("tokens") == pytest.approx(40, abs=0.1)
    shown = [one.level for one in limiter.statistics().limits.values() if one.unit == "tokens"]
    assert backend.level("tokens") == pytest.approx(min(shown), abs=0.1)


async def test_those_that_wait_are_counted(limiter):
    backend = limiter._backend
    await limiter.acquire(tokens=50)
    assert backend.waiting == 0
    async with anyio.create_task_group() as tasks:
        for _ in range(2):
            tasks.start_soon(lambda: limiter.acquire(tokens=40))
        with anyio.fail_after(30):
            while backend.waiting != 2:
                await anyio.sleep(0.01)
        assert backend.waiting == limiter.statistics().waiting
        tasks.cancel_scope.cancel()
