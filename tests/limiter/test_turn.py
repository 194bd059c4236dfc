"""`with penstock.turn(...)`: whose the calls are, where nobody can pass an argument."""

from __future__ import annotations

import contextvars
import threading

import anyio
import pytest

from penstock import Limiter, RateLimited, clock, per_second, turn
from penstock._turn import TurnOptions, turn_here
from tests.limiter.interrupts import at_point, raise_interrupted

pytestmark = pytest.mark.anyio


async def test_an_urgent_block_goes_before_those_that_came_earlier(virtual_time):
    limiter = Limiter(requests=per_second(1, burst=1))
    limiter.acquire_nowait()
    order = []

    @limiter
    async def call(name):
        order.append((name, clock.now()))

    async def urgent():
        with turn(priority=10):
            await call("urgent")

    async with anyio.create_task_group() as group:
        for number in range(3):
            group.start_soon(call, number)
            await anyio.wait_all_tasks_blocked()
        group.start_soon(urgent)
    assert order == [("urgent", 1.0), (0, 2.0), (1, 3.0), (2, 4.0)]


async def test_blocks_are_flows_that_share_by_turns(virtual_time):
    limiter = Limiter(requests=per_second(1, burst=1))
    limiter.acquire_nowait()
    order = []

    async def call(name):
        with turn(flow=name):
            async with limiter:
                order.append(name)

    async with anyio.create_task_group() as group:
        for name in ("greedy", "greedy", "greedy", "modest"):
            group.start_soon(call, name)
            await anyio.wait_all_tasks_blocked()
    assert order.index("modest") <= 1


async def test_an_inner_block_refines_what_it_names_and_a_call_what_it_says(virtual_time):
    limiter = Limiter(requests=per_second(1, burst=1))
    limiter.acquire_nowait()
    with turn(max_wait=0.5, priority=3):
        with pytest.raises(RateLimited, match=r"max_wait is 0\.5 s"):
            await limiter.acquire()
        with turn(max_wait=0.25):
            with pytest.raises(RateLimited, match=r"max_wait is 0\.25 s"):
                await limiter.acquire()
            with pytest.raises(RateLimited, match=r"max_wait is 0\.125 s"):
                await limiter.acquire(max_wait=0.125)
        with pytest.raises(RateLimited, match=r"max_wait is 0\.5 s"):
            await limiter.acquire()
    await limiter.acquire()
    assert clock.now() == 1


async def test_it_holds_for_tasks_that_the_block_starts_and_not_for_others(virtual_time):
    limiter = Limiter(requests=per_second(1, burst=1))
    limiter.acquire_nowait()
    refused = []

    async def call():
        try:
            await limiter.acquire()
        except RateLimited:
            refused.append(clock.now())

    async with anyio.create_task_group() as group:
        with turn(max_wait=0):
            group.start_soon(call)
        group.start_soon(call)
    assert refused == [0]
    assert clock.now() == 1


def test_it_holds_in_a_thread_that_runs_in_a_copy_of_the_context():
    limiter = Limiter(requests=per_second(0.001, burst=1))
    limiter.acquire_nowait()
    said = []

    def call():
        try:
            limiter().__enter__()
        except RateLimited as error:
            said.append(error.blocked_by)

    with turn(max_wait=0):
        thread = threading.Thread(target=contextvars.copy_context().run, args=(call,))
        thread.start()
    thread.join()
    assert said == ["requests"]


async def test_tasks_may_be_in_one_block_at_once_and_leave_it_in_any_order(virtual_time):
    urgent, seen = turn(priority=10), []

    async def call(seconds):
        with urgent:
            await anyio.sleep(seconds)
            seen.append(turn_here().priority)
        seen.append(turn_here().priority)

    async with anyio.create_task_group() as group:
        for seconds in (1, 3, 2):
            group.start_soon(call, seconds)
    assert seen == [10, None] * 3


def test_a_block_may_be_entered_again_inside_of_itself():
    urgent = turn(priority=10)
    with urgent, turn(flow="alice"):
        with urgent, turn(priority=5):
            assert turn_here() == TurnOptions(None, 5, "alice")
        assert turn_here() == TurnOptions(None, 10, "alice")
    assert turn_here() == TurnOptions()


def test_a_block_of_a_generator_that_ends_elsewhere_ends_there():
    """As dependencies of FastAPI do that are no coroutines: each step runs in a copy of the context, in a thread."""

    def dependency():
        with turn(flow="alice"):
            yield

    generator = dependency()
    inside = contextvars.copy_context()
    inside.run(next, generator)
    assert inside.run(turn_here).flow == "alice"
    contextvars.copy_context().run(next, generator, None)
    assert turn_here() == TurnOptions()


def test_a_generator_that_ends_before_the_block_around_it_takes_only_its_own_along():
    def generator():
        with turn(flow="alice", priority=1):
            yield

    one = generator()
    next(one)
    with turn(priority=2):
        one.close()
        assert turn_here() == TurnOptions(None, 2, None)
    assert turn_here() == TurnOptions()


@pytest.mark.parametrize("wrong", [{"priority": "high"}, {"flow": []}, {"max_wait": -1}, {"flow": float("nan")}])
def test_a_wrong_word_is_refused_before_the_block(wrong):
    with pytest.raises(ValueError, match=r"must|max_wait=-1: seconds or a timedelta"):
        turn(**wrong)


def test_an_interrupt_at_any_point_of_entering_or_leaving_leaves_no_block_behind():
    found = []

    def use(_):
        with turn(priority=2, flow="alice"):
            pass

    def in_a_context_of_its_own(number):
        point = at_point(number, raise_interrupted, lambda: use(number))
        if turn_here() != TurnOptions():
            found.append(point)
        return point

    number = 0
    while contextvars.copy_context().run(in_a_context_of_its_own, number) is not None:
        number += 1
    assert number > 10
    assert set(found) <= {"turn.__exit__ (call)"}  # nothing of ours runs yet: as an exception in the block
