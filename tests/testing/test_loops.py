"""Virtual time is no obstacle to the real world, and each loop keeps what it promises."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import sys
import threading
import time
import weakref
from contextlib import contextmanager

import anyio
import pytest
import trio
import uvloop
from anyio import from_thread, to_thread

from penstock import clock, testing
from penstock.testing import Patience

# -------------------------------------------------------------------------------------- the real world


@contextmanager
def little_cpu():
    """Whoever waits for the real world does not keep a processor busy with it."""
    before = time.thread_time()
    yield
    assert time.thread_time() - before < 0.1


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


def test_patience_begins_anew_whenever_something_was_heard(loop):
    async def main():
        with anyio.fail_after(10):
            for _ in range(25):
                await to_thread.run_sync(threading.Event().wait, 0.1)
        return clock.now()

    assert testing.run(main, patience=Patience(threads=2.0), **loop) == 0  # a busy machine takes long for a short wait


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
        usual, virtual_time.patience = virtual_time.patience, Patience(sockets=30.0)  # a busy machine answers late
        with anyio.fail_after(1):
            async with await anyio.connect_tcp("127.0.0.1", port) as stream:
                for _ in range(100):
                    await stream.send(b"penstock")
                    assert await stream.receive() == b"PENSTOCK"
        assert virtual_time.now() == 0
        virtual_time.patience = usual

        await anyio.sleep(3600)  # the listener is still open, and does not hold time up
        assert virtual_time.now() == 3600
        tasks.cancel_scope.cancel()


@pytest.mark.anyio
async def test_a_server_in_another_process_is_given_time_to_answer(virtual_time):
    virtual_time.patience = Patience(sockets=30.0)
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
    assert loop.time() == pytest.approx(began, abs=60)
    assert loop.run_until_complete(done) == "done"
    assert 0.03 < time.monotonic() - began < 60


def test_a_loop_that_was_made_before_follows_too(new_loop):
    loop = new_loop()
    for _ in range(2):
        with testing.virtual_time() as virtual_time:
            loop.run_until_complete(asyncio.sleep(3600))
            assert virtual_time.now() == 3600
