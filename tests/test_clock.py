"""Nobody's frozen clock stops penstock: the real freezegun, and whatever else replaces `time.monotonic`."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import threading
import time
from unittest import mock

import anyio
import pytest
import time_machine
from freezegun import freeze_time

from penstock import AttemptTimeout, Batcher, Limiter, RateLimited, Retry, calendar, clock, constant, hedge, timeout
from penstock.stores import MemoryStore, SQLiteStore


@pytest.fixture(params=["freezegun", "a patch"])
def frozen(request):
    """A way to freeze time for the length of a block."""
    if request.param == "freezegun":
        return lambda: freeze_time("2026-01-01")
    return lambda: mock.patch.multiple(time, monotonic=lambda: 1e6, perf_counter=lambda: 1e6, time=lambda: 1e9)


def slow():
    return Limiter(requests="100/s burst 1")


def test_both_clocks_run_on_while_time_is_frozen(frozen):
    before, wall_before = clock.now(), clock.wall()
    with frozen():
        time.sleep(0.01)
        assert 0.01 <= clock.now() - before < 100
        assert 0.005 <= clock.wall() - wall_before < 100
        assert clock.is_tampered_with()
        assert clock.is_real()
    assert not clock.is_tampered_with()


def test_a_limiter_made_while_time_is_frozen_waits_and_goes_on(frozen):
    with frozen():
        limiter = slow()
        for _ in range(3):
            with limiter():
                pass
    with limiter():
        pass
    assert limiter.statistics().granted == 4


def test_a_limiter_made_before_does_too(frozen):
    limiter = slow()
    limiter.acquire_nowait()
    with frozen():
        with limiter():
            pass
        with pytest.raises(RateLimited):
            limiter.acquire_nowait()


@pytest.mark.parametrize("backend", ["asyncio", "uvloop", "trio"])
def test_tasks_get_their_turn_though_their_loops_timers_stand_still(frozen, backend):
    """`asyncio.sleep` would never return here; a limiter's wait, a batch's, a retry's and a hedge's do."""
    limiter, answers, tries = slow(), [], []

    async def main():
        async def send(items):
            return items

        ask = Batcher(send, max_delay=0.01)

        @Retry(on=ConnectionError, attempts=2, backoff=constant(0.01))
        @hedge(after=0.01)
        async def one(number):
            tries.append(number)
            if tries.count(number) == 1:
                raise ConnectionError
            if tries.count(number) == 2:
                await anyio.sleep_forever()
            async with limiter():
                answers.append(await ask(number))

        async with anyio.create_task_group() as tasks:
            for number in range(4):
                tasks.start_soon(one, number)

    options = {"use_uvloop": True} if backend == "uvloop" else {}
    with frozen():
        anyio.run(main, backend=backend.replace("uvloop", "asyncio"), backend_options=options)
    assert sorted(answers) == [0, 1, 2, 3]


def test_one_frozen_loop_takes_no_turn_from_a_thread():
    """The frozen task is first in line; the thread behind it waits for both turns and no longer."""
    limiter = slow()
    limiter.acquire_nowait()
    got = []

    def thread():
        with limiter():
            got.append("thread")

    async def main():
        other = threading.Thread(target=thread)
        async with limiter():
            got.append("task")
        other.start()
        await asyncio.to_thread(other.join, 10)

    with freeze_time("2026-01-01", real_asyncio=True):
        asyncio.run(main())
    assert got == ["task", "thread"]


def test_a_cancelled_wait_in_frozen_time_leaves_no_thread_behind():
    limiter = Limiter(requests="1/h burst 1")
    limiter.acquire_nowait()

    async def main():
        task = asyncio.ensure_future(limiter.acquire())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    with freeze_time("2026-01-01"):
        asyncio.run(main())
    for timer in [thread for thread in threading.enumerate() if isinstance(thread, threading.Timer)]:
        timer.join(10)  # it has an hour to go, unless it was cancelled
        assert not timer.is_alive()


def test_penstock_may_be_imported_while_time_is_frozen():
    program = (
        "from freezegun import freeze_time\n"
        "with freeze_time('2026-01-01'):\n"
        "    from penstock import Limiter\n"
        "    limiter = Limiter(requests='100/s burst 1')\n"
        "    for _ in range(3):\n"
        "        with limiter(): pass\n"
        "print(limiter.statistics().granted)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)
    assert (done.stdout, done.stderr) == ("3\n", "")


def test_time_machine_moves_the_calendar_and_no_wait():
    with time_machine.travel("2026-01-01T12:00:00Z", tick=True):
        limiter = slow()
        for _ in range(3):
            with limiter():
                pass
        daily = Limiter(requests=calendar(1, "day"))
        daily.acquire_nowait()
        with pytest.raises(RateLimited) as caught:
            daily.acquire_nowait()
        assert caught.value.retry_after == pytest.approx(12 * 3600, abs=60)


@pytest.fixture(params=["memory", "sqlite"])
def store(request, tmp_path):
    if request.param == "memory":
        yield MemoryStore()
    else:
        with contextlib.closing(SQLiteStore(tmp_path / "x.db")) as made:
            yield made


def test_a_calendar_that_stands_still_holds_up_nobody_else_and_answers_in_time(store):
    """Time-machine can stop the calendar: what waits for it waits for that, and no longer than `max_wait`."""
    limiter = Limiter(requests=calendar(1, "minute"), name="minutes", store=store)
    other = Limiter(requests="1/s", name="other", store=store)
    got = []

    def wait():
        with limiter():
            got.append("a minute later")

    waiter = threading.Thread(target=wait, daemon=True)
    with time_machine.travel("2026-01-01T12:00:59.9Z", tick=False) as travel:
        with limiter(max_wait=30):
            pass
        waiter.start()
        used = time.process_time()
        with pytest.raises(RateLimited, match="requests"), limiter(max_wait=0.5):
            pass
        with other(max_wait=30):
            pass
        assert time.process_time() - used < 0.4, "they wait, and do not ask again and again"
        assert got == []
        travel.shift(60)
        waiter.join(60)
        assert got == ["a minute later"]


def test_virtual_time_works_while_time_is_frozen(virtual_time):
    async def main():
        await anyio.to_thread.run_sync(lambda: None)  # real time is listened to before each jump
        await anyio.sleep(1800)
        limiter = Limiter(requests="2/h burst 1")
        for _ in range(2):
            await limiter.acquire()

    with freeze_time("2026-01-01"):
        anyio.run(main)
    assert virtual_time.now() == 3600
    assert not clock.is_real()


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("shape", ["layer", "decorated", "loop", "stream"])
def test_a_call_is_cut_in_frozen_time(frozen, shape, backend):
    """By a timer of our own: the loop's never fires."""
    retry = Retry(on=ConnectionError, attempt_timeout=0.01)

    async def hang():
        await anyio.sleep_forever()

    async def stream():
        await anyio.sleep_forever()
        yield

    async def main():
        if shape == "layer":
            await timeout(0.01)(hang)()
        elif shape == "decorated":
            await retry(hang)()
        elif shape == "stream":
            await anext(retry(stream)())
        async for attempt in retry:
            with attempt:
                await hang()

    with frozen(), pytest.raises(AttemptTimeout):
        anyio.run(main, backend=backend)


def test_a_call_that_is_in_time_leaves_no_timer_behind(frozen):
    async def main():
        return await timeout(3600)(anyio.lowlevel.checkpoint)()

    before = set(threading.enumerate())
    with frozen():
        anyio.run(main)
    for timer in set(threading.enumerate()) - before:
        timer.join(10)
        assert not timer.is_alive()
