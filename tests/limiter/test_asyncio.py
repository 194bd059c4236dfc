"""What is asyncio's own: `task.cancel()` at every await and at the very instant of a grant, timeouts, loops that
die."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading

import pytest

from penstock import Limiter, clock, in_flight, per_day, per_hour, per_minute, per_second
from penstock._concurrency.parking import AsyncioParker


async def settle_down():
    for _ in range(5):
        await asyncio.sleep(0)


@pytest.mark.asyncio
async def test_a_grant_at_the_instant_of_the_cancellation_is_undone(virtual_time):
    """Promise 5, at its sharpest: the grant was handed over, and its owner is cancelled before it wakes."""
    limiter = Limiter(calls=in_flight(1), tokens=per_minute(100))
    first = await limiter.acquire(tokens=10)
    task = asyncio.create_task(limiter.acquire(tokens=90))
    await settle_down()
    first.close()  # hands the place, and the tokens, to the one who waits
    assert limiter.statistics().limits["tokens"].level == 0
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    statistics = limiter.statistics()
    assert statistics.limits["tokens"].level == 90
    assert statistics.in_flight == statistics.waiting == 0


@pytest.mark.parametrize("steps", range(12))
@pytest.mark.asyncio
async def test_cancelled_after_any_number_of_steps_nothing_is_lost(virtual_time, steps):
    """Whichever await the cancellation meets, the sum of what is left and what was granted stays whole."""
    limiter = Limiter(requests=per_second(1, burst=3), calls=in_flight(2))
    tasks = [asyncio.create_task(limiter.acquire()) for _ in range(4)]
    for _ in range(steps):
        await asyncio.sleep(0)
    for task in tasks[::2]:
        task.cancel()
    await asyncio.wait(tasks, timeout=10)
    granted = [task.result() for task in tasks if task.done() and not task.cancelled()]
    statistics = limiter.statistics()
    assert statistics.in_flight == len(granted)
    for permit in granted:
        permit.cancel()
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    statistics = limiter.statistics()
    assert (statistics.in_flight, statistics.waiting) == (0, 0)
    assert statistics.limits["requests"].level == 3


@pytest.mark.asyncio
async def test_the_post_is_passed_on_when_its_owner_is_cancelled(virtual_time):
    limiter = Limiter(requests=per_second(1, burst=1))
    await limiter.acquire()
    tasks = [asyncio.create_task(limiter.acquire()) for _ in range(3)]
    await settle_down()
    tasks[0].cancel()
    await asyncio.gather(*tasks[1:])
    assert clock.now() == 2.0


@pytest.mark.asyncio
async def test_asyncio_timeout_ends_a_wait(virtual_time):
    limiter = Limiter(requests=per_minute(1))
    await limiter.acquire()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(5), limiter:
            pass
    assert clock.now() == 5.0
    assert limiter.statistics().waiting == 0


def test_a_loop_that_was_closed_under_its_waiters_does_not_hold_up_the_others():
    """Promise 10: those who will never wake are passed over."""
    limiter = Limiter(requests=per_second(50, burst=1))
    limiter.acquire_nowait()
    dead = asyncio.new_event_loop()
    tasks = [dead.create_task(limiter.acquire()) for _ in range(3)]
    dead.run_until_complete(asyncio.sleep(0.001))
    for task in tasks:
        task._log_destroy_pending = False
    dead.close()
    done = []

    def work():
        with limiter():
            done.append(True)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(5)
    assert done == [True]
    for task in tasks:
        with contextlib.suppress(RuntimeError):
            task.get_coro().close()


def leave_waiting(limiter, *costs, close=lambda: None):
    """Begin calls in an event loop, and close it under them; `close` is called before that, when it runs no more."""
    loop = asyncio.new_event_loop()
    tasks = [loop.create_task(limiter.acquire(tokens=cost)) for cost in costs]
    loop.run_until_complete(asyncio.sleep(0))
    close()
    loop.close()
    for task in tasks:
        task._log_destroy_pending = False
    return tasks


@pytest.mark.parametrize("in_loop", [True, False], ids=["another loop", "a thread"])
def test_waiters_of_a_closed_loop_take_no_turn_and_no_place_in_the_queue_from_the_others(in_loop):
    """The others waited for the turn of the first of them, an hour here, or were told that the queue is full."""
    limiter = Limiter(tokens=per_hour(100), max_queue=2)
    limiter.acquire_nowait(tokens=90)
    left = leave_waiting(limiter, 60, 60)
    assert limiter.statistics().waiting == 2
    if in_loop:
        asyncio.run(limiter.acquire(tokens=5, max_wait=0))
    else:
        with limiter(tokens=5, max_wait=0):
            pass
    assert (limiter.statistics().waiting, limiter.statistics().granted) == (0, 2)
    del left
    gc.collect()
    assert (limiter.statistics().waiting, limiter.statistics().granted) == (0, 2)
    assert limiter.statistics().limits["tokens"].level == pytest.approx(5, abs=1)


def test_a_place_that_a_closed_loop_was_given_comes_back():
    """Its task never woke to take it. It was held for ever: the queue kept the task from being collected."""
    limiter = Limiter(tokens=in_flight(1, default=None))
    permit = limiter.acquire_nowait(tokens=1)
    left = leave_waiting(limiter, 1, close=permit.close)
    assert limiter.statistics().in_flight == 1
    del left
    with limiter(tokens=1, max_wait=5):
        assert limiter.statistics().in_flight == 1
    assert limiter.statistics().in_flight == 0


def test_a_loop_that_was_stopped_keeps_its_place_and_does_not_hold_up_the_others():
    """As where `run_until_complete` is called now and then: the timer of who is on post there does not ring
    meanwhile."""
    limiter = Limiter(requests=per_second(1, burst=1))
    limiter.acquire_nowait()
    now_and_then = asyncio.new_event_loop()
    task = now_and_then.create_task(limiter.acquire())
    now_and_then.run_until_complete(asyncio.sleep(0))
    assert limiter.statistics().waiting == 1
    asyncio.run(asyncio.wait_for(limiter.acquire(), 5))
    now_and_then.run_until_complete(asyncio.wait_for(task, 5))
    now_and_then.close()
    assert limiter.statistics().granted == 3


@pytest.mark.parametrize("limit", [per_second(8, burst=1), in_flight(1)], ids=["rate", "places"])
@pytest.mark.asyncio
async def test_a_waiter_wakes_once_for_its_turn_and_never_to_set_a_timer(virtual_time, monkeypatch, limit):
    """The timekeeper that is granted sets the timer of the next one, which sleeps on."""
    in_vain = []
    rearm = AsyncioParker.rearm
    monkeypatch.setattr(AsyncioParker, "rearm", lambda parker: (in_vain.append(parker), rearm(parker)))
    limiter = Limiter(calls=limit)

    async def call():
        async with limiter(calls=1) as permit:
            await asyncio.sleep(0)
            return permit.granted_at

    moments = await asyncio.gather(*[call() for _ in range(20)])
    assert moments == sorted(moments)
    assert not in_vain


@pytest.mark.asyncio
async def test_a_timekeeper_that_gives_up_takes_its_timer_along_and_the_next_is_punctual(virtual_time):
    limiter = Limiter(requests=per_second(1, burst=1))
    begin = (await limiter.acquire()).granted_at
    tasks = [asyncio.create_task(limiter.acquire()) for _ in range(4)]
    await asyncio.sleep(1.5)  # the first of them has its turn, and has set the timer of the second
    tasks[1].cancel()
    granted = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(granted[1], asyncio.CancelledError)
    assert [granted[at].granted_at - begin for at in (0, 2, 3)] == pytest.approx([1, 2, 3])


@pytest.mark.parametrize("gives_up", [False, True], ids=["granted early", "given up"])
@pytest.mark.asyncio
async def test_no_timer_outlives_its_timekeeper(virtual_time, monkeypatch, gives_up):
    """The next turn is hours away, and calls that come back let others have theirs before: a timer for each of them
    would stay for these hours."""
    timers = []
    loop = asyncio.get_running_loop()
    call_later = loop.call_later

    def note(*call, **options):
        timers.append(call_later(*call, **options))
        return timers[-1]

    monkeypatch.setattr(loop, "call_later", note)
    limiter = Limiter(tokens=per_day(10))
    permit = await limiter.acquire(tokens=10)
    tasks = [asyncio.create_task(limiter.acquire(tokens=10)) for _ in range(30)]
    await settle_down()
    while tasks:
        permit.cancel()
        permit = await tasks.pop(0)
        await settle_down()
        if gives_up:
            tasks.pop(0).cancel()
            await settle_down()
        assert len([timer for timer in timers if not timer.cancelled()]) <= 1
    assert len(timers) >= 14
