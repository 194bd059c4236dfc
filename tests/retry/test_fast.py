"""`penstock.testing.fast_retries`: tests of code that retries neither wait nor reach into each other."""

from __future__ import annotations

import threading
import time

import anyio
import pytest

from penstock.retry import Budget, Retry, constant
from penstock.testing import fast_retries

pytestmark = pytest.mark.anyio


class Down:
    def __init__(self):
        self.calls = 0

    def sync(self):
        self.calls += 1
        raise ConnectionError

    async def fetch(self):
        self.sync()


slow = Retry(on=ConnectionError, attempts=6, within=300, backoff=constant(30))


async def test_nothing_waits_and_there_are_fewer_attempts(virtual_time):
    down = Down()
    with fast_retries(attempts=3), pytest.raises(ConnectionError) as caught:
        await slow.call(down.fetch)
    assert down.calls == 3
    assert virtual_time.now() == 0
    assert caught.value.__notes__[0].endswith("fast_retries(attempts=3) allows no more")


async def test_there_are_never_more_attempts_than_the_policy_says(virtual_time):
    down = Down()
    with fast_retries(attempts=9), pytest.raises(ConnectionError):
        await Retry(on=ConnectionError, attempts=2).call(down.fetch)
    assert down.calls == 2
    with fast_retries(attempts=4), pytest.raises(ConnectionError):
        await Retry(on=ConnectionError, attempts=None).call(down.fetch)
    assert down.calls == 6


def test_threads_do_not_wait_either(monkeypatch):
    monkeypatch.setattr(time, "sleep", pytest.fail)
    down = Down()
    with fast_retries(attempts=2), pytest.raises(ConnectionError):
        slow.call_sync(down.sync)
    assert down.calls == 2


async def test_it_is_scoped_to_the_context_and_not_global(virtual_time):
    """Another task and another thread retry as ever, at the same moment."""
    inside, beside, after = Down(), Down(), Down()
    entered, done = anyio.Event(), anyio.Event()
    other_thread = []

    async def fast():
        with fast_retries(attempts=2):
            entered.set()
            await done.wait()
            with pytest.raises(ConnectionError):
                await slow.call(inside.fetch)
        with pytest.raises(ConnectionError):
            await slow.call(after.fetch)

    def in_thread():
        down = Down()
        with pytest.raises(ConnectionError):
            Retry(on=ConnectionError, attempts=6, backoff=constant(0)).call_sync(down.sync)
        other_thread.append(down.calls)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(fast)
        await entered.wait()
        thread = threading.Thread(target=in_thread)
        thread.start()
        thread.join()
        with pytest.raises(ConnectionError):
            await slow.call(beside.fetch)
        done.set()
    assert (inside.calls, beside.calls, after.calls, other_thread) == (2, 6, 6, [6])
    assert virtual_time.now() == 2 * 5 * 30


async def test_hints_out_of_bounds_still_give_up(virtual_time):
    """That is a decision of the policy, and worth a test; the wait is not."""

    class Asked(ConnectionError):  # noqa: N818
        def __init__(self, seconds):
            self.retry_after = seconds

    calls = 0

    async def ask(seconds):
        nonlocal calls
        calls += 1
        raise Asked(seconds)

    with fast_retries(attempts=2):
        with pytest.raises(Asked):
            await Retry(on=Asked, max_hint=60).call(ask, 61)
        assert calls == 1
        with pytest.raises(Asked):
            await Retry(on=Asked, max_hint=60).call(ask, 59)
        assert calls == 3
    assert virtual_time.now() == 0


async def test_budgets_are_left_alone(virtual_time):
    """One at module level outlives the test: what this test spends another would miss."""
    budget = Budget(ratio=0, floor=1)
    down = Down()
    with fast_retries(attempts=3), pytest.raises(ConnectionError):
        await Retry(on=ConnectionError, budget=budget).call(down.fetch)
    assert down.calls == 3
    assert budget.left == 1


async def test_cancellation_still_comes_through(virtual_time):
    """A loop of failures that never waits is still a loop that can be cancelled."""
    with fast_retries(attempts=10**9), anyio.move_on_after(5) as scope:

        async def fail():
            virtual_time.advance(1)
            raise ConnectionError

        await Retry(on=ConnectionError, attempts=None, within=None).call(fail)
    assert scope.cancelled_caught
