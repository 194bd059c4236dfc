"""Processes that wait for one limit take turns, whoever is more urgent or leaves, at one question a grant."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from penstock import Limiter, per_second
from tests.stores.batch_processes import GRANT, RATE, Batch
from tests.stores.busy import BUSY
from tests.stores.in_memory import RowsInMemory

pytestmark = pytest.mark.throughput


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.mark.anyio
async def test_every_process_has_its_turns_while_others_are_more_urgent(stores):
    crowd = Batch(stores, 1, 1)
    one = Limiter(tokens=per_second(RATE, burst=1), name="x", store=stores())
    await asyncio.sleep(0.5)
    for _ in range(12):
        await asyncio.gather(one.acquire(tokens=1, priority=10), asyncio.sleep(4 * GRANT))
    await crowd.stop()
    assert min(crowd.got) >= 1, (crowd.got, BUSY)


@pytest.mark.anyio
async def test_a_call_that_leaves_while_it_waits_for_its_moment_takes_nothing_along(stores):
    """It has a place and no charge, so all of it is there for the next one."""
    mine, other = (Limiter(tokens=per_second(5, burst=5), name="x", store=stores()) for _ in range(2))
    await mine.acquire(tokens=5)
    waiting = [asyncio.ensure_future(mine.acquire(tokens=5)) for _ in range(3)]
    await asyncio.sleep(0.3)
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    begin = time.monotonic()
    await other.acquire(tokens=5)
    assert time.monotonic() - begin <= 1.5, f"0.7 s, and a second more for each that took its turn along {BUSY}"


@pytest.mark.anyio
async def test_one_question_a_grant_where_nobody_passes_anybody(stores):
    """To claim a turn, and to be told of the next one, is one batch."""
    crowd = Batch(stores, 1, 1)
    await asyncio.sleep(0.5)
    before, asked = sum(crowd.got), sum(limiter.store.dispatcher.calls for limiter in crowd.limiters)
    await asyncio.sleep(2.0)
    granted = sum(crowd.got) - before
    asked = sum(limiter.store.dispatcher.calls for limiter in crowd.limiters) - asked
    await crowd.stop()
    assert granted >= 0.85 * 2.0 * RATE, BUSY
    assert asked <= 1.5 * granted + 2, BUSY


def test_a_process_that_has_never_asked_has_a_place_after_its_first_question():
    """It knows nothing of the limit, so it may have to wait: it asks for a place too, and claims that."""
    rows, lock = {}, threading.Lock()
    one, new = (Limiter(requests=per_second(5, burst=1), name="x", store=RowsInMemory(rows, lock)) for _ in range(2))
    with one, new:
        pass
    assert new.store.dispatcher.calls == 2
    one.store.close()
    new.store.close()
