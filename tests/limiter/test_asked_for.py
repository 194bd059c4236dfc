"""What users of other limiters asked for: pauses that are lifted, units without a limit, names that keep their state,
warnings, logs."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import inspect
import logging
import os
import pydoc
import subprocess
import sys
import threading
import time
import types
import warnings
from concurrent.futures import ThreadPoolExecutor

import anyio
import pytest
import trio

import penstock
from penstock import (
    Keyed,
    Limiter,
    Rate,
    RateLimited,
    UnknownUnit,
    WouldBlockEventLoop,
    circuit_breaker,
    clock,
    in_flight,
    pausing,
    unlimited,
)
from penstock._backends.base import Request
from penstock._call import Call
from penstock.stores.memory import MemoryStore
from penstock.testing import manual_clock

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("quick_collections")]


async def enter(limiter, log, **cost):
    async with limiter(**cost):
        log.append(clock.now())


async def test_resuming_lets_waiters_go_at_once_when_nothing_else_holds_them(virtual_time):
    limiter, per_user = Limiter(requests="100/s", tokens="100/s"), Keyed(requests="100/s")
    joint = limiter & per_user["alice"]
    limiter.pause(50)
    limiter.pause(20, "tokens")
    log: list[float] = []
    async with anyio.create_task_group() as group:
        group.start_soon(lambda: enter(limiter, log, tokens=1))
        group.start_soon(lambda: enter(joint, log, tokens=1))
        await anyio.sleep(1)
        limiter.resume("requests")
        await anyio.sleep(1)
        assert log == [], "tokens are paused still"
        limiter.resume()
    assert log == [2.0, 2.0]
    limiter.acquire_nowait(tokens=1)


async def test_a_joint_limiter_pauses_and_resumes_its_parts_and_a_key_itself(virtual_time):
    limiter, per_user = Limiter(requests="100/s", tokens="100/s"), Keyed(requests="100/s")
    joint = limiter & per_user["alice"]
    joint.pause(30)
    assert [each.statistics().paused_for for each in (joint, limiter, per_user["alice"])] == [30, 30, 30]
    per_user["alice"].resume()
    assert joint.statistics().paused_for == 30
    joint.resume()
    assert limiter.statistics().paused_for == 0
    per_user["bob"].pause(10)
    gc.collect()
    for other in range(100):
        per_user[other]
    with pytest.raises(RateLimited):
        per_user["bob"].acquire_nowait()
    per_user["bob"].resume()
    per_user["bob"].acquire_nowait()
    with pytest.raises(UnknownUnit):
        limiter.resume("nope")


async def test_unlimited_never_binds_alone_in_a_list_joined_or_as_a_key(virtual_time):
    alone = Limiter(tokens=unlimited)
    alone.acquire_nowait(tokens=10**12)
    listed = Limiter(tokens=["10/s", unlimited], words=unlimited)
    listed.acquire_nowait(tokens=10, words=10**12)
    joint = alone & Limiter(tokens="5/s", requests="2/s")
    joint.acquire_nowait(tokens=5)
    per_user = Keyed(lambda user: {"tokens": unlimited if user == "vip" else "1/s"})
    per_user["vip"].acquire_nowait(tokens=100)
    per_user["bob"].acquire_nowait(tokens=1)
    for bound, cost in ((listed, {"tokens": 1, "words": 1}), (joint, {"tokens": 1}), (per_user["bob"], {"tokens": 1})):
        with pytest.raises(RateLimited):
            bound.acquire_nowait(cost)
    assert str(Limiter(tokens="unlimited").limits["tokens"][0]) == "unlimited"


async def test_a_limit_may_be_taken_away_and_given_again(virtual_time):
    limiter = Limiter(tokens="10/s")
    limiter.acquire_nowait(tokens=10)
    log: list[float] = []
    async with anyio.create_task_group() as group:
        group.start_soon(lambda: enter(limiter, log, tokens=10))
        await anyio.sleep(0.1)
        limiter.reconfigure(tokens=unlimited)
    assert log == [0.1]
    limiter.observe(remaining={"tokens": 0})
    limiter.acquire_nowait(tokens=10**9)
    limiter.reconfigure(tokens="10/s")
    limiter.acquire_nowait(tokens=10)
    with pytest.raises(RateLimited):
        limiter.acquire_nowait(tokens=1)


def test_a_limiter_of_a_name_that_is_made_anew_for_every_call_counts_on():
    granted = 0
    with manual_clock() as at:
        for _ in range(5):
            try:
                Limiter(name="anew", requests="2/min").acquire_nowait()
            except RateLimited:
                continue
            granted += 1
            gc.collect()
        assert granted == 2
        permit = Limiter(name="places", calls=in_flight(1)).acquire_nowait()
        gc.collect()
        with pytest.raises(RateLimited):
            Limiter(name="places", calls=in_flight(1)).acquire_nowait()
        permit.close()
        Limiter(name="places", calls=in_flight(1)).acquire_nowait().close()
        Limiter(name="paused", requests="10/s").pause(100)
        for other in range(10):
            Limiter(name=f"other {other}", requests="10/s")
        with pytest.raises(RateLimited):
            Limiter(name="paused", requests="10/s").acquire_nowait()
        at.advance(100)
        Limiter(name="paused", requests="10/s").acquire_nowait()


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_blocking_is_allowed_in_a_running_loop_where_somebody_asks_for_it(backend):
    """As in a notebook."""
    limiter, spent = Limiter(requests=Rate(50, 1.0, 1)), Limiter(requests="1/day")
    spent.acquire_nowait()

    async def main():
        limiter.acquire_nowait()
        with pytest.raises(WouldBlockEventLoop, match="block=True"), spent:
            raise AssertionError
        with pytest.raises(RateLimited), spent(max_wait=0):
            raise AssertionError
        began = time.monotonic()
        with limiter(block=True):
            pass
        assert limiter(block=True)(lambda: "reply")() == "reply"
        assert time.monotonic() - began > 0.02

    anyio.run(main, backend=backend)


async def hold_twice(limiter):
    async with limiter:
        with anyio.move_on_after(0.01):
            async with limiter:
                raise AssertionError


async def acquire_twice(limiter):
    with await limiter.acquire():
        with anyio.move_on_after(0.01):
            await limiter.acquire()


async def lose_one(limiter):
    await limiter.acquire()
    gc.collect()
    with anyio.move_on_after(0.01):
        await limiter.acquire()


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (hold_twice, "this task holds the last place of calls"),
        (acquire_twice, "this task holds the last place of calls"),
        (lose_one, "was never closed, so it holds places of calls for ever"),
    ],
)
async def test_a_call_that_waits_for_itself_is_warned_of_with_the_line_that_acquired(virtual_time, use, message):
    limiter = Limiter(calls=in_flight(1))
    with pytest.warns(RuntimeWarning, match=message) as caught:
        await use(limiter)
    assert len(caught) == 1
    assert (caught[0].filename, caught[0].lineno) == (__file__, use.__code__.co_firstlineno + 1)


async def test_of_a_place_that_is_lost_the_first_that_waits_is_warned(virtual_time):
    limiter = Limiter(calls=in_flight(1))
    with pytest.warns(RuntimeWarning, match="was never closed") as caught:
        await lose_one(limiter)
    with anyio.move_on_after(0.01):
        await limiter.acquire()
    assert len(caught) == 1


def in_a_thread(function):
    thread = threading.Thread(target=function)
    thread.start()
    thread.join()


def in_a_pool(function):
    with ThreadPoolExecutor(1) as pool:
        pool.submit(function).result()


async def in_a_group(function):
    async with anyio.create_task_group() as group:
        group.start_soon(function)


@pytest.mark.parametrize(
    "run",
    [
        lambda function: asyncio.run(function()),
        trio.run,
        lambda function: anyio.run(in_a_group, function),
        in_a_thread,
        in_a_pool,
    ],
    ids=["asyncio", "trio", "task group", "thread", "pool"],
)
def test_a_decorated_function_that_waits_for_itself_is_warned_of_with_its_own_line(run):
    """The line that called it belongs to the event loop, or to the standard library."""
    limiter = Limiter(calls=in_flight(1))

    @limiter
    async def in_a_task():
        with pytest.raises(RateLimited):
            await limiter.acquire(max_wait=0.01)

    @limiter
    def by_a_thread():
        with pytest.raises(RateLimited):
            limiter(max_wait=0.01).__enter__()

    function = by_a_thread if run in {in_a_thread, in_a_pool} else in_a_task
    with pytest.warns(RuntimeWarning, match="this task holds the last place of calls") as caught:
        run(function)
    assert len(caught) == 1
    assert (caught[0].filename, caught[0].lineno) == (__file__, function.__wrapped__.__code__.co_firstlineno)


async def test_what_an_exit_stack_holds_is_warned_of_with_the_line_that_entered_it(virtual_time):
    limiter = Limiter(calls=in_flight(1))

    async def enter_twice():
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(limiter)
            with anyio.move_on_after(0.01):
                await stack.enter_async_context(limiter)

    with pytest.warns(RuntimeWarning, match="this task holds the last place of calls") as caught:
        await enter_twice()
    assert [warning.filename for warning in caught] == [__file__]


async def test_permits_that_others_end_are_not_warned_of(virtual_time):
    limiter = Limiter(calls=in_flight(1))

    async def work(permit):
        with permit:
            await anyio.sleep(1)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        async with anyio.create_task_group() as group:
            for _ in range(4):
                group.start_soon(work, await limiter.acquire())


async def test_waits_refusals_and_pauses_can_be_logged_with_their_numbers(virtual_time, caplog):
    limiter = Limiter(requests=Rate(1, 1.0, 1), name="openai", store=MemoryStore())
    with caplog.at_level(logging.DEBUG, "penstock.limiter"):
        await limiter.acquire()
        await limiter.acquire()
        for refused in (limiter.acquire_nowait, limiter(max_wait=0).__enter__):
            with pytest.raises(RateLimited):
                refused()
        with pytest.raises(RateLimited):
            await limiter.acquire(max_wait=0)
        limiter.pause(5, "requests")
        limiter.resume("requests")
    wait, *refusals, paused, resumed = caplog.records
    assert (wait.levelname, wait.limiter, wait.wait, wait.blocked_by) == ("DEBUG", "openai", 1.0, "requests")
    assert [(record.levelname, record.limiter, record.blocked_by) for record in refusals] == [
        ("INFO", "openai", "requests")
    ] * 3
    assert (paused.levelname, paused.seconds, paused.units) == ("INFO", 5, ("requests",))
    assert resumed.units == ("requests",)


async def test_nothing_is_formatted_for_a_log_that_is_off(virtual_time, monkeypatch, caplog):
    caplog.set_level(logging.WARNING, "penstock.limiter")
    monkeypatch.setattr(logging.Logger, "_log", lambda *_, **__: pytest.fail("a record was made"))
    limiter = Limiter(requests=Rate(1, 1.0, 1))
    await limiter.acquire()
    await limiter.acquire()
    with pytest.raises(RateLimited):
        limiter.acquire_nowait()
    limiter.pause(1)
    limiter.resume()


@pytest.fixture(params=["penstock", "penstock.limiter", "penstock.pipeline"])
def broken_filter(request):
    """A filter of the user's that raises, of one of our loggers."""

    def broken(_):
        raise ZeroDivisionError

    logger = logging.getLogger(request.param)
    level = logger.level
    logger.setLevel(logging.DEBUG)
    logger.addFilter(broken)
    yield
    logger.removeFilter(broken)
    logger.setLevel(level)


async def test_a_log_filter_that_fails_breaks_no_call(broken_filter, virtual_time):
    """Neither a wait, nor a refusal, a pause, or a result that was paid for."""
    limiter = Limiter(requests=Rate(1, 1.0, 1), on_event=lambda _: 1 / 0)
    for _ in range(2):
        async with limiter:
            pass
    with pytest.raises(RateLimited):
        limiter.acquire_nowait()
    limiter.pause(1)
    limiter.resume()
    assert Limiter(tokens="5/s")(tokens=1, settle=lambda _: 1 / 0)(lambda: "paid")() == "paid"
    for layer in (pausing(limiter, on=KeyError, hint=lambda _: 1e9), circuit_breaker(on=lambda _: 1 / 0)):
        with pytest.raises(KeyError):
            layer({}.__getitem__)("key")


def test_a_thread_that_imports_logging_at_this_moment_breaks_no_call(monkeypatch):
    """A module is in `sys.modules` while it is empty still."""
    monkeypatch.setitem(sys.modules, "logging", types.ModuleType("logging"))
    monkeypatch.setattr(penstock._log, "_loggers", {})
    limiter = Limiter(requests="1/min")
    limiter.acquire_nowait()
    with pytest.raises(RateLimited):
        limiter.acquire_nowait()
    limiter.pause(1)


def test_help_shows_every_option_of_a_call():
    shown = str(inspect.signature(Limiter.__call__))
    for option in ("settle", "max_wait", "priority", "flow", "block", "**costs"):
        assert option in shown
        assert option in str(inspect.signature(Limiter(requests="1/s")))
    assert "longest wait" in pydoc.render_doc(Limiter.__call__).lower()
    assert isinstance(Limiter(requests="1/s")(), Call)


FORK = """
import os, signal, threading
from penstock import Keyed, Limiter, Rate, in_flight

limiter, per_user = Limiter(requests=Rate(1e6, 1), calls=in_flight(1000, ttl=50)), Keyed(requests=Rate(1e6, 1))
stop = False

def work():
    while not stop:
        with limiter, limiter(requests=2, max_wait=1):
            per_user["alice"].acquire_nowait()
        limiter.statistics()

threads = [threading.Thread(target=work) for _ in range(4)]
for thread in threads:
    thread.start()
for _ in range(30):
    child = os.fork()
    if not child:
        signal.alarm(10)
        with limiter:
            per_user["alice"].acquire_nowait()
        limiter.statistics()
        Limiter(requests="1/s", name="new").acquire_nowait()
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        print("a child hangs or failed")
stop = True
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_child_that_is_forked_while_threads_are_inside_goes_on_by_itself():
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORK], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == ""


def test_a_wait_in_a_loop_whose_clock_is_frozen_ends():
    """As freezegun does it: every name of `time.monotonic` is another function."""
    code = """
import asyncio, time
frozen = time.monotonic()
from penstock import Limiter, Rate
real = time.monotonic
time.monotonic = lambda: frozen
limiter = Limiter(requests=Rate(20, 1, 1))
async def main():
    for _ in range(3):
        async with limiter:
            pass
asyncio.run(main())
"""
    subprocess.run([sys.executable, "-c", code], timeout=120, check=True)


@pytest.mark.anyio
async def test_those_that_give_up_behind_one_that_waits_are_forgotten(virtual_time):
    limiter = Limiter(requests=Rate(1, 100.0, 1))
    limiter.acquire_nowait()
    async with anyio.create_task_group() as group:
        group.start_soon(limiter.acquire)
        await anyio.wait_all_tasks_blocked()
        async with anyio.create_task_group() as others:
            for _ in range(500):
                others.start_soon(limiter.acquire)
            await anyio.wait_all_tasks_blocked()
            others.cancel_scope.cancel()
        gc.collect()
        assert sum(isinstance(thing, Request) for thing in gc.get_objects()) < 200


def test_a_loop_that_ended_with_waiters_leaves_nothing_behind():
    limiter = Limiter(requests=Rate(1, 100.0, 1))
    limiter.acquire_nowait()

    async def main():
        asyncio.ensure_future(limiter.acquire()).add_done_callback(lambda _: None)
        await asyncio.sleep(0.01)

    for _ in range(3):
        asyncio.run(main())
    assert limiter.statistics().waiting == 0
    assert not limiter._backend.queue._homes
