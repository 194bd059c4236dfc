"""Virtual time with pytest and without, and the other helps for tests."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import textwrap
import time

import anyio
import pytest
import pytest_asyncio
import trio
import uvloop
from anyio import to_thread

from penstock import clock, testing
from penstock.events import AttemptStarted, Succeeded
from penstock.retry import Retry
from penstock.testing import RecordedEvents, fast_retries, manual_clock

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


def test_the_real_clock_comes_back_after_a_failure(loop):
    async def main():
        await anyio.sleep(1)
        raise KeyError("whatever")

    doors = (asyncio.BaseEventLoop.run_forever, uvloop.Loop.run_forever, trio.run, trio.lowlevel.start_guest_run)
    with pytest.raises(KeyError):
        testing.run(main, **loop)
    assert clock.is_real()
    assert abs(clock.wall() - time.time()) < 60
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
    assert clock.is_real()


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
        timeout=300,
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
    with pytest.raises(ValueError, match=r"attempts=1\.5"), fast_retries(attempts=1.5):
        pass
    with pytest.raises(ValueError, match="attempts=0"), fast_retries(attempts=0):
        pass
