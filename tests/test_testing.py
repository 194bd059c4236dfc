"""Virtual time: fast, exact, and no obstacle to the real world."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import math
import os
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import anyio
import pytest
import pytest_asyncio
import trio
import uvloop
from anyio import from_thread, to_thread
from hypothesis import example, given
from hypothesis import strategies as st

from penstock import clock, testing
from penstock.events import AttemptStarted, Succeeded
from penstock.retry import Retry
from penstock.testing import Patience, RecordedEvents, VirtualTime, fast_retries, manual_clock

LOOPS = {
    "asyncio": {"backend": "asyncio"},
    "uvloop": {"backend": "asyncio", "use_uvloop": True},
    "trio": {"backend": "trio"},
}
on_every_loop = pytest.mark.parametrize("loop", LOOPS.values(), ids=LOOPS)


# ------------------------------------------------------------------------------------------------ fast


@pytest.mark.anyio
async def test_a_year_passes_in_less_than_a_second(virtual_time):
    began = time.monotonic()
    for _ in range(365):
        await anyio.sleep(24 * 3600)
    assert virtual_time.now() == 365 * 24 * 3600
    assert time.monotonic() - began < 1


@pytest.mark.anyio
async def test_the_loop_that_was_asked_for_is_the_one_that_runs(virtual_time, anyio_backend):
    """A test that is marked for uvloop says something about uvloop."""
    name, options = anyio_backend
    if name == "trio":
        assert trio.lowlevel.in_trio_task()
    else:
        assert isinstance(asyncio.get_running_loop(), uvloop.Loop) == options["use_uvloop"]


# ----------------------------------------------------------------------------------------------- exact


@pytest.mark.anyio
async def test_ten_sleeps_of_a_tenth_end_at_the_sum(virtual_time):
    for _ in range(10):
        await anyio.sleep(0.1)
    assert virtual_time.now() == 0.1 + 0.1 + 0.1 + 0.1 + 0.1 + 0.1 + 0.1 + 0.1 + 0.1 + 0.1 != 1.0


@on_every_loop
@given(delays=st.lists(st.floats(min_value=0, max_value=1e9), max_size=20))
@example(delays=[0.3, 0.3999999999999999, 1e9, 1e-9])
def test_every_sleep_ends_at_the_very_moment_that_the_program_computed(loop, delays):
    """To the last bit, also where the distance between the two moments is no float."""

    async def main():
        for delay in delays:
            expected = clock.now() + delay
            await anyio.sleep(delay)
            assert clock.now() == anyio.current_time() == expected

    testing.run(main, **loop)


@on_every_loop
@given(delays=st.lists(st.floats(min_value=0.001, max_value=1e6), max_size=30))
def test_timers_fire_in_the_order_of_their_moments(loop, delays):
    async def main():
        woken = []

        async def sleeper(delay):
            await anyio.sleep(delay)
            woken.append((delay, clock.now()))

        async with anyio.create_task_group() as tasks:
            for delay in delays:
                tasks.start_soon(sleeper, delay)
        assert woken == [(delay, delay) for delay in sorted(delays)]

    testing.run(main, **loop)


@pytest.mark.anyio
async def test_time_stands_still_while_anybody_runs(virtual_time):
    moments = set()

    async def worker():
        for _ in range(100):
            await anyio.lowlevel.checkpoint()
            moments.add(virtual_time.now())

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(anyio.sleep, 1e-9)
        for _ in range(10):
            tasks.start_soon(worker)
    assert moments == {0.0}


@pytest.mark.anyio
async def test_deadlines_fire_at_their_moment(virtual_time):
    with anyio.move_on_after(0.7) as scope:
        await anyio.sleep_forever()
    assert scope.cancelled_caught
    assert virtual_time.now() == 0.7

    with pytest.raises(TimeoutError), anyio.fail_after(3600):
        await anyio.sleep(3601)
    assert virtual_time.now() == 3600.7


@pytest.mark.anyio
async def test_what_ends_at_the_deadline_or_before_it_is_not_cut(virtual_time):
    with anyio.fail_after(10):
        await anyio.sleep(9.999)
    assert virtual_time.now() == 9.999


@pytest.mark.anyio
async def test_a_cancelled_task_may_take_its_time_to_clean_up(virtual_time):
    async def slow_to_leave():
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(5)

    with anyio.move_on_after(1):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(slow_to_leave)
            tasks.start_soon(slow_to_leave)
    assert virtual_time.now() == 6


@pytest.mark.anyio
async def test_sleep_until_is_exact_where_a_sleep_for_the_difference_is_not(virtual_time):
    await anyio.sleep(0.1)
    await virtual_time.sleep_until(0.7)
    assert virtual_time.now() == 0.7
    await virtual_time.sleep_until(0.5)
    assert virtual_time.now() == 0.7


@pytest.mark.anyio
async def test_waiting_until_all_tasks_are_blocked_takes_no_time(virtual_time):
    arrived = []

    async def worker():
        for _ in range(5):
            await anyio.lowlevel.checkpoint()
        arrived.append(virtual_time.now())
        await anyio.sleep(0.01)
        arrived.append(virtual_time.now())

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(worker)
        await anyio.wait_all_tasks_blocked()
        assert arrived == [0.0]
    assert arrived == [0.0, 0.01]


@pytest.mark.anyio
async def test_waiting_until_all_tasks_are_blocked_can_be_cancelled(virtual_time):
    with anyio.CancelScope() as scope:
        scope.cancel()
        await anyio.wait_all_tasks_blocked()
    assert scope.cancelled_caught
    await anyio.sleep(1)
    await anyio.wait_all_tasks_blocked()
    assert virtual_time.now() == 1


# ------------------------------------------------------------------------------------------ moved by hand


@pytest.mark.anyio
async def test_what_became_due_by_advance_fires_also_while_others_run(virtual_time):
    fired = []

    async def sleeper():
        await anyio.sleep(10)
        fired.append(virtual_time.now())

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(sleeper)
        await anyio.wait_all_tasks_blocked()
        virtual_time.advance(60)
        assert virtual_time.now() == clock.now() == anyio.current_time() == 60
        for _ in range(10):
            await anyio.lowlevel.checkpoint()
        assert fired == [60]


@pytest.mark.anyio
async def test_who_is_due_is_not_blocked(virtual_time):
    fired = []

    async def sleeper():
        await anyio.sleep(10)
        fired.append(virtual_time.now())

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(sleeper)
        await anyio.wait_all_tasks_blocked()
        virtual_time.advance(10)
        await anyio.wait_all_tasks_blocked()
        assert fired == [10]


def test_a_manual_clock_moves_only_by_hand_and_is_seen_by_every_thread():
    with manual_clock() as by_hand:
        assert clock.now() == 0
        by_hand.advance(5)
        seen = []
        thread = threading.Thread(target=lambda: seen.append(clock.now()))
        thread.start()
        thread.join()
        assert seen == [5]
    assert clock.now is time.monotonic
    assert clock.wall is time.time


@pytest.mark.parametrize("seconds", [-1, math.inf, math.nan])
def test_time_never_goes_back_nor_to_the_end(seconds):
    with manual_clock() as by_hand, pytest.raises(ValueError, match="can only move forward"):
        by_hand.advance(seconds)


@pytest.mark.anyio
async def test_the_calendar_moves_along_and_can_be_set(virtual_time):
    new_year = datetime(2026, 1, 1, tzinfo=UTC)
    assert clock.wall() == new_year.timestamp()
    await anyio.sleep(90)
    assert clock.wall() == virtual_time.wall() == (new_year + timedelta(seconds=90)).timestamp()

    spring = datetime(2026, 3, 29, 0, 59, 59, tzinfo=UTC)
    virtual_time.set_wall(spring)
    assert clock.wall() == spring.timestamp()
    assert clock.now() == 90
    await anyio.sleep(1)
    assert clock.wall() == spring.timestamp() + 1


def test_a_calendar_without_a_time_zone_is_refused():
    with pytest.raises(ValueError, match="give it a tzinfo"):
        VirtualTime(wall=datetime(2026, 1, 1))


def test_a_clock_shows_itself():
    by_hand = testing.ManualClock()
    by_hand.advance(1.5)
    assert repr(by_hand) == "<ManualClock: 1.5 s, 2026-01-01T00:00:01.500+00:00>"


# -------------------------------------------------------------------------------------- the real world


@contextmanager
def little_cpu():
    """Whoever waits for the real world does not keep a processor busy with it."""
    before = time.process_time()
    yield
    assert time.process_time() - before < 0.1


@pytest.mark.anyio
async def test_time_waits_for_a_worker_thread(virtual_time):
    """A deadline is not passed by what takes no virtual time."""

    def work():
        threading.Event().wait(0.1)
        return virtual_time.now()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(anyio.sleep, 3600)
        with anyio.fail_after(10), little_cpu():
            assert await to_thread.run_sync(work) == 0
            assert await to_thread.run_sync(work, limiter=anyio.CapacityLimiter(1)) == 0
    assert virtual_time.now() == 3600


def test_time_waits_for_a_thread_of_trio_itself():
    async def main():
        with trio.fail_after(10):
            await trio.to_thread.run_sync(threading.Event().wait, 0.05)
        return clock.now()

    assert testing.run(main, backend="trio") == 0


@on_every_loop
def test_patience_begins_anew_whenever_something_was_heard(loop):
    async def main():
        with anyio.fail_after(10):
            for _ in range(4):
                await to_thread.run_sync(threading.Event().wait, 0.15)
        return clock.now()

    assert testing.run(main, patience=Patience(threads=0.5), **loop) == 0


@pytest.mark.asyncio
async def test_time_waits_for_an_executor(virtual_time):
    async with asyncio.timeout(10):
        await asyncio.to_thread(threading.Event().wait, 0.05)
        await asyncio.get_running_loop().run_in_executor(None, threading.Event().wait, 0.05)
    assert virtual_time.now() == 0


@pytest.mark.anyio
async def test_a_thread_that_waits_for_the_loop_is_not_waited_for_for_ever(virtual_time):
    virtual_time.patience = Patience(threads=0.02)

    def ask_the_loop():
        from_thread.run(anyio.sleep, 3600)
        return from_thread.run_sync(anyio.current_time)

    assert await to_thread.run_sync(ask_the_loop) == 3600


@pytest.mark.anyio
async def test_a_stranger_thread_wakes_a_loop_that_has_no_timers(virtual_time):
    await anyio.sleep(5)
    token = anyio.lowlevel.current_token()
    woken = anyio.Event()
    thread = threading.Timer(0.2, lambda: from_thread.run_sync(woken.set, token=token))
    thread.start()
    with little_cpu():
        await woken.wait()
    assert virtual_time.now() == 5
    await to_thread.run_sync(thread.join)
    await anyio.sleep(5)
    assert virtual_time.now() == 10


@pytest.mark.anyio
async def test_sockets_work_and_take_no_time(virtual_time):
    async def answer(stream):
        async with stream:
            async for question in stream:
                await stream.send(question.upper())

    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    port = listener.extra(anyio.abc.SocketAttribute.local_port)
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, answer)
        with anyio.fail_after(1):
            async with await anyio.connect_tcp("127.0.0.1", port) as stream:
                for _ in range(100):
                    await stream.send(b"penstock")
                    assert await stream.receive() == b"PENSTOCK"
        assert virtual_time.now() == 0

        await anyio.sleep(3600)  # the listener is still open, and does not hold time up
        assert virtual_time.now() == 3600
        tasks.cancel_scope.cancel()


@pytest.mark.anyio
async def test_a_server_in_another_process_is_given_time_to_answer(virtual_time):
    virtual_time.patience = Patience(sockets=2.0)
    program = "import time; input(); time.sleep(0.05); print('done')"
    async with await anyio.open_process([sys.executable, "-c", program]) as process:
        with anyio.fail_after(10):
            await process.stdin.send(b"go\n")
            assert (await process.stdout.receive()).split() == [b"done"]
        assert virtual_time.now() == 0


# ---------------------------------------------------------------------------------- one asyncio loop


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def new_loop(request):
    loops = []

    def new():
        loops.append(request.param())
        return loops[-1]

    yield new
    for loop in loops:
        loop.close()


def test_timers_of_one_moment_fire_in_the_order_in_which_they_were_set(new_loop):
    fired = []
    with testing.virtual_time() as virtual_time:
        loop = new_loop()

        async def main():
            for n in range(100):
                loop.call_at(5.0, fired.append, n)
            await virtual_time.sleep_until(6)

        loop.run_until_complete(main())
    assert fired == list(range(100))


def test_what_a_thread_hands_to_the_loop_comes_before_any_later_moment(new_loop):
    moments = []
    with testing.virtual_time() as virtual_time:
        loop = new_loop()

        async def main():
            timer = loop.call_later(5, moments.append, "later")
            loop.call_soon_threadsafe(lambda: moments.append(virtual_time.now()))
            await asyncio.sleep(timer.when())

        loop.run_until_complete(main())
    assert moments == [0.0, "later"]


def test_a_timer_can_be_cancelled_until_the_instant_it_fires(new_loop):
    fired = []
    with testing.virtual_time():
        loop = new_loop()

        async def main():
            def cancel_second():
                second.cancel()

            first = loop.call_later(5, cancel_second)
            second = loop.call_later(5, fired.append, "second")
            third = loop.call_later(4, fired.append, "third")
            third.cancel()
            assert third.cancelled()
            assert (first.when(), second.when()) == (5.0, 5.0)
            await asyncio.sleep(10)

        loop.run_until_complete(main())
    assert fired == []


def test_cancelled_timers_do_not_pile_up(new_loop):
    """A program that sets a timeout around each of a million calls needs no memory for those that never fired."""

    class Payload:
        pass

    alive = weakref.WeakSet()
    with testing.virtual_time():
        loop = new_loop()

        async def main():
            for _ in range(20_000):
                payload = Payload()
                alive.add(payload)
                loop.call_later(3600, id, payload).cancel()
            del payload
            gc.collect()
            assert len(alive) <= 1_001

        loop.run_until_complete(main())


def test_what_a_timer_raises_goes_to_the_handler_of_the_loop(new_loop):
    heard = []
    with testing.virtual_time():
        loop = new_loop()
        loop.set_exception_handler(lambda _, context: heard.append(context["exception"]))

        async def main():
            loop.call_later(1, [].pop)
            await asyncio.sleep(2)

        loop.run_until_complete(main())
    assert [type(error) for error in heard] == [IndexError]


def test_a_timer_runs_in_the_context_in_which_it_was_set(new_loop):
    who = contextvars.ContextVar("who", default="nobody")
    seen = []
    with testing.virtual_time():
        loop = new_loop()

        async def main():
            who.set("the one who set it")
            loop.call_later(1, lambda: seen.append(who.get()))
            who.set("somebody else")
            await asyncio.sleep(2)

        loop.run_until_complete(main())
    assert seen == ["the one who set it"]


def test_a_loop_goes_on_in_real_time_when_virtual_time_ends(new_loop):
    """A loop that outlives its virtual time keeps its timers, at the distance that was left."""
    loop = new_loop()
    done = loop.create_future()

    async def main():
        loop.call_later(3600.05, done.set_result, "done")
        await asyncio.sleep(3600)

    with pytest.raises(KeyError), testing.virtual_time():
        loop.run_until_complete(main())
        assert loop.time() == 3600
        raise KeyError("also if the test fails")
    began = time.monotonic()
    assert loop.time() == pytest.approx(began, abs=1)
    assert loop.run_until_complete(done) == "done"
    assert 0.03 < time.monotonic() - began < 3


def test_a_loop_that_was_made_before_follows_too(new_loop):
    loop = new_loop()
    for _ in range(2):
        with testing.virtual_time() as virtual_time:
            loop.run_until_complete(asyncio.sleep(3600))
            assert virtual_time.now() == 3600


# ------------------------------------------------------------------------------------ with and without pytest


@pytest.mark.parametrize("turn", ["first", "second"])
@pytest.mark.anyio
async def test_every_test_begins_at_zero(turn, virtual_time):
    assert virtual_time.now() == clock.now() == anyio.current_time() == 0
    await anyio.sleep(5)


@pytest.mark.anyio
async def test_without_the_fixture_time_is_real():
    before = time.monotonic()
    assert before <= clock.now() <= time.monotonic()


@pytest.fixture
async def begun_at(anyio_backend):
    await anyio.sleep(100)
    yield clock.now()
    await anyio.sleep(100)


@pytest.mark.anyio
async def test_async_fixtures_of_a_test_live_in_its_virtual_time(begun_at, virtual_time):
    """Whatever their order: here the async fixture is named first."""
    assert begun_at == virtual_time.now() == 100


@pytest_asyncio.fixture
async def begun_at_with_pytest_asyncio():
    await asyncio.sleep(100)
    yield clock.now()
    await asyncio.sleep(100)


@pytest.mark.asyncio
async def test_pytest_asyncio_runs_in_virtual_time(begun_at_with_pytest_asyncio, virtual_time):
    assert begun_at_with_pytest_asyncio == 100
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.7):
            await asyncio.sleep(10)
    assert virtual_time.now() == 100.7
    assert await asyncio.wait_for(asyncio.sleep(1, "result"), 2) == "result"
    assert asyncio.get_running_loop().time() == 101.7


def in_asyncio(main):
    asyncio.run(main())


def in_a_runner(main):
    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop, debug=True) as runner:
        runner.run(main())


def in_uvloop(main):
    uvloop.run(main())


@pytest.mark.parametrize("run", [in_asyncio, in_a_runner, in_uvloop, trio.run, anyio.run])
def test_no_framework_is_needed(run):
    async def main():
        await anyio.sleep(1800)

    with testing.virtual_time() as virtual_time:
        run(main)
        assert virtual_time.now() == 1800
        run(main)  # time goes on where it was
        assert virtual_time.now() == 3600


def test_run_returns_what_the_program_returns():
    async def main(delay):
        await anyio.sleep(delay)
        return clock.now()

    assert testing.run(main, 7, backend="trio") == 7


@on_every_loop
def test_the_real_clock_comes_back_after_a_failure(loop):
    async def main():
        await anyio.sleep(1)
        raise KeyError("whatever")

    doors = (asyncio.BaseEventLoop.run_forever, uvloop.Loop.run_forever, trio.run, trio.lowlevel.start_guest_run)
    with pytest.raises(KeyError):
        testing.run(main, **loop)
    assert clock.now is time.monotonic
    assert clock.wall is time.time
    assert doors == (
        asyncio.BaseEventLoop.run_forever,
        uvloop.Loop.run_forever,
        trio.run,
        trio.lowlevel.start_guest_run,
    )


@pytest.mark.parametrize("outer", [testing.virtual_time, manual_clock])
@pytest.mark.parametrize("inner", [testing.virtual_time, manual_clock])
def test_time_has_one_owner(outer, inner):
    with outer() as owner:
        with pytest.raises(RuntimeError) as refused, inner():
            pass
        assert str(refused.value) == f"time already belongs to {owner!r}: use that one, or leave its `with` block first"
        assert clock.now() == owner.now()


@pytest.mark.anyio
async def test_virtual_time_cannot_begin_in_a_running_loop():
    with pytest.raises(RuntimeError, match="enter virtual_time\\(\\) before it starts"), testing.virtual_time():
        pass
    assert clock.now is time.monotonic


@pytest.mark.parametrize("other", ["asyncio", "trio"])
@pytest.mark.anyio
async def test_two_loops_at_once_are_refused(virtual_time, other):
    with pytest.raises(RuntimeError, match="one event loop at a time"):
        await to_thread.run_sync(lambda: anyio.run(anyio.sleep, 1, backend=other))


def test_a_wider_fixture_that_has_started_trio_is_told_apart(tmp_path):
    """Trio cannot change its clock, so this is an error and not a test that sleeps for an hour."""
    (tmp_path / "test_it.py").write_text(
        textwrap.dedent("""
        import anyio, pytest

        @pytest.fixture(scope="module", params=["asyncio", "trio"])
        def anyio_backend(request):
            return request.param

        @pytest.fixture(scope="module")
        async def server(anyio_backend):
            yield "a server that lives longer than the test"

        @pytest.mark.anyio
        async def test_it(server, virtual_time):
            await anyio.sleep(3600)
            assert virtual_time.now() == 3600
        """)
    )
    plugins = ["-p", "anyio.pytest_plugin", "-p", "penstock._pytest_plugin"]
    told = subprocess.run(
        [sys.executable, "-m", "pytest", *plugins, str(tmp_path)],
        env=os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=60,
        check=False,
    ).stdout
    assert "1 passed, 1 error" in told
    assert "an async fixture of a wider scope than the test may have started it" in told


# ----------------------------------------------------------------------------------- other helps for tests


def test_recorded_events_are_a_list_that_can_be_sorted_by_kind():
    events = RecordedEvents()
    retry = Retry(on=KeyError, on_event=events)
    outcomes = iter([KeyError, KeyError, None])

    @retry
    def flaky():
        if (error := next(outcomes)) is not None:
            raise error

    with fast_retries(attempts=3):
        flaky()
    assert [event.number for event in events.of(AttemptStarted)] == [1, 2, 3]
    assert events.of(Succeeded) == [events[-1]]
    events.clear()
    assert events == []


@pytest.mark.anyio
async def test_fast_retries_do_not_wait_and_soon_give_up(virtual_time):
    calls = []

    @Retry(on=KeyError, attempts=10)
    async def failing():
        calls.append(virtual_time.now())
        raise KeyError

    with fast_retries(attempts=3), pytest.raises(KeyError):
        await failing()
    assert calls == [0, 0, 0]

    calls.clear()
    with pytest.raises(KeyError):
        await failing()
    assert len(calls) == 10
    assert calls[-1] > 0


@pytest.mark.anyio
async def test_fast_retries_hold_in_their_own_context_only(virtual_time):
    async def attempts():
        calls = []

        @Retry(on=KeyError, attempts=4)
        async def failing():
            calls.append(1)
            raise KeyError

        with pytest.raises(KeyError):
            await failing()
        return len(calls)

    counts = {}

    async def fast():
        with fast_retries(attempts=1):
            await anyio.sleep(1)
            counts["fast"] = await attempts()

    async def normal():
        await anyio.sleep(0.5)
        counts["normal"] = await attempts()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(fast)
        tasks.start_soon(normal)
    assert counts == {"fast": 1, "normal": 4}


def test_fast_retries_take_at_least_one_attempt():
    with pytest.raises(ValueError, match="attempts=0"), fast_retries(attempts=0):
        pass
