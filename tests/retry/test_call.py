"""One call: cancellation, bounds and waits; on asyncio, uvloop and trio, in virtual time."""

from __future__ import annotations

import asyncio
import contextlib

import anyio
import anyio.to_thread
import pytest

from penstock.errors import AttemptTimeout
from penstock.retry import Retry, constant, current_attempt, exponential
from tests.retry.flaky import EVERY_SECOND, Flaky

anyio_test = pytest.mark.anyio


# ----------------------------------------------------------------------------------------------------------------------
# Cancellation and its like


@anyio_test
async def test_cancellation_is_never_shown_to_a_predicate(virtual_time):
    """tenacity #529: a predicate that says yes to everything turned a cancelled task into one that returned."""
    asked = []

    def everything(error):
        asked.append(error)
        return True

    attempts = 0

    @Retry(on=everything, on_result=everything)
    async def stuck():
        nonlocal attempts
        attempts += 1
        await anyio.sleep_forever()

    with anyio.move_on_after(3) as scope:
        await stuck()
    assert scope.cancelled_caught
    assert attempts == 1
    assert asked == []


@pytest.mark.asyncio
async def test_task_cancel_cancels(virtual_time):
    """The same with asyncio's own cancellation, in an attempt and in a wait."""

    @Retry(on=lambda _: True, backoff=constant(10))
    async def fail(after):
        await asyncio.sleep(after)
        raise ValueError

    for after in (10, 0):
        task = asyncio.create_task(fail(after))
        await asyncio.sleep(1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, GeneratorExit, asyncio.CancelledError])
def test_what_is_no_exception_passes_through(error, thread_time):
    """Bare and inside a group, in every sync form."""
    retry, calls = Retry(on=lambda _: True), 0

    def stop():
        nonlocal calls
        calls += 1
        raise error

    def stop_in_group():
        nonlocal calls
        calls += 1
        raise BaseExceptionGroup("g", [ValueError(), error()])

    for form in (stop, stop_in_group):
        calls = 0
        with pytest.raises(error if form is stop else BaseExceptionGroup):
            retry.call_sync(form)
        with pytest.raises(error if form is stop else BaseExceptionGroup):
            for attempt in retry:
                with attempt:
                    form()
        assert calls == 2
    assert current_attempt() is None


@pytest.mark.parametrize("shape", ["call", "loop"])
@anyio_test
async def test_a_cancelled_scope_comes_out_as_cancellation_and_not_as_the_last_error(shape, virtual_time):
    """Its effective deadline is -inf: that is not a bound which the next wait would pass."""
    retry, calls = Retry(on=ValueError, backoff=EVERY_SECOND), 0

    async def swallow_cancellation():
        nonlocal calls
        calls += 1
        scope.cancel()
        try:
            await anyio.sleep_forever()
        except BaseException:  # as code does that turns whatever it catches into an error of its own
            raise ValueError from None

    with anyio.CancelScope() as scope:
        if shape == "call":
            await retry.call(swallow_cancellation)
        else:
            async for attempt in retry:
                with attempt:
                    await swallow_cancellation()
    assert scope.cancelled_caught
    assert calls == 1


@anyio_test
async def test_cancellation_in_the_last_attempt_comes_out_as_cancellation(virtual_time):
    """Not as the error of whoever turned it into one, though there would have been no other attempt."""

    async def swallow_cancellation():
        scope.cancel()
        try:
            await anyio.sleep_forever()
        except BaseException:
            raise ValueError from None

    with anyio.CancelScope() as scope:
        await Retry(on=ValueError, attempts=1).call(swallow_cancellation)
    assert scope.cancelled_caught


@anyio_test
async def test_a_deadline_that_is_due_but_has_not_struck_comes_out_as_cancellation(virtual_time):
    async def block_past_the_deadline():
        virtual_time.advance(5)
        raise ValueError

    with anyio.move_on_after(3) as scope:
        await Retry(on=ValueError).call(block_past_the_deadline)
    assert scope.cancelled_caught


@anyio_test
async def test_a_wait_that_would_pass_the_enclosing_deadline_is_not_begun(virtual_time):
    """The error comes at once, where sleeping to the deadline would only lose it."""
    flaky = Flaky(9, virtual_time=virtual_time)
    with pytest.raises(ConnectionError) as caught, anyio.fail_after(2.5):
        await Retry(on=ConnectionError, backoff=EVERY_SECOND).call(flaky)
    assert flaky.at == [0, 1, 2]
    assert virtual_time.now() == 2
    assert caught.value.__notes__[0] == (
        "penstock: "
        "Flaky gave up after 3 attempts in 2 s: the wait would pass the deadline of the enclosing cancel scope"
    )


# ----------------------------------------------------------------------------------------------------------------------
# Bounds


@anyio_test
async def test_there_are_never_more_attempts_than_said(virtual_time):
    flaky = Flaky(99)
    with pytest.raises(ConnectionError):
        await Retry(on=ConnectionError, attempts=4).call(flaky)
    assert len(flaky.at) == 4


@anyio_test
async def test_no_attempt_starts_after_within_and_no_wait_passes_it(virtual_time):
    """stamina ran 0.65 s on a timeout of 0.3, and slept a whole second for a hint."""
    flaky = Flaky(99, virtual_time=virtual_time)
    with pytest.raises(ConnectionError) as caught:
        await Retry(on=ConnectionError, attempts=None, within=0.3, backoff=constant(0.125)).call(flaky)
    assert flaky.at == [0, 0.125, 0.25]
    assert virtual_time.now() == 0.25
    assert caught.value.__notes__[0].endswith("the next attempt would start after within=0.3 s")


@anyio_test
async def test_an_attempt_may_start_at_the_very_end_of_within(virtual_time):
    """Three times 0.1 is a little more than 0.3 in floating point: still the same moment."""
    flaky = Flaky(99, virtual_time=virtual_time)
    with pytest.raises(ConnectionError):
        await Retry(on=ConnectionError, attempts=None, within=0.3, backoff=constant(0.1)).call(flaky)
    assert len(flaky.at) == 4


@pytest.mark.parametrize("shape", ["call", "loop"])
@anyio_test
async def test_a_wait_that_took_too_long_is_followed_by_no_attempt(shape, virtual_time, monkeypatch):
    """A loop that was blocked, or a machine that slept: whatever the timer promised, the bound holds."""

    async def oversleep(seconds):
        virtual_time.advance(seconds + 10)

    monkeypatch.setattr(anyio, "sleep", oversleep)
    flaky, retry = Flaky(99), Retry(on=ConnectionError, within=5, backoff=EVERY_SECOND)
    with pytest.raises(ConnectionError) as caught:
        if shape == "call":
            await retry.call(flaky)
        else:
            async for attempt in retry:
                with attempt:
                    await flaky()
    assert len(flaky.at) == 1
    assert "within=5 s" in caught.value.__notes__[0]


@anyio_test
async def test_a_late_wait_returns_the_result_that_was_refused(virtual_time, monkeypatch):
    async def oversleep(seconds):
        virtual_time.advance(seconds + 10)

    async def answer():
        return "busy"

    monkeypatch.setattr(anyio, "sleep", oversleep)
    retry = Retry(on=ConnectionError, within=5, backoff=EVERY_SECOND, on_result=lambda _: True)
    assert await retry.call(answer) == "busy"
    async for attempt in retry:
        with attempt:
            attempt.result = "busy"
    assert attempt.number == 1


@pytest.mark.parametrize("shape", ["call", "loop", "decorator"])
@anyio_test
async def test_an_attempt_that_takes_too_long_is_cut(shape, virtual_time):
    """As `AttemptTimeout`, and tried again only if `on` says so."""
    cut = []

    async def stuck():
        try:
            await anyio.sleep(60)
        finally:
            cut.append(virtual_time.now())

    async def run(retry):
        if shape == "call":
            await retry.call(stuck)
        elif shape == "decorator":
            await retry(stuck)()
        else:
            async for attempt in retry:
                with attempt:
                    await stuck()

    with pytest.raises(AttemptTimeout) as caught:
        await run(Retry(on=TimeoutError, attempts=2, attempt_timeout=5, backoff=EVERY_SECOND))
    assert cut == [5, 11]
    assert caught.value.seconds == 5
    assert str(caught.value).endswith("took longer than attempt_timeout=5 s")
    assert str(caught.value).startswith("attempt 2 of ")

    cut.clear()
    with pytest.raises(AttemptTimeout):
        await run(Retry(on=ValueError, attempts=2, attempt_timeout=5))
    assert len(cut) == 1


@pytest.mark.parametrize("shape", ["call", "loop"])
@pytest.mark.parametrize(("on", "attempts"), [((ValueError, TimeoutError), 3), (TimeoutError, 1)])
@anyio_test
async def test_what_fails_while_an_attempt_is_cut_is_the_attempts_error(shape, on, attempts, virtual_time):
    """On trio a scope takes its own cancellation out of a group and raises the rest."""
    made = 0

    async def cleans_up_badly():
        try:
            await anyio.sleep(100)
        finally:
            raise ValueError("cleaning up")

    async def work():
        nonlocal made
        made += 1
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(cleans_up_badly)
            tasks.start_soon(anyio.sleep, 100)

    retry = Retry(on=on, attempts=3, attempt_timeout=5, backoff=EVERY_SECOND)
    with pytest.raises(ExceptionGroup) as caught:
        if shape == "call":
            await retry.call(work)
        else:
            async for attempt in retry:
                with attempt:
                    await work()
    assert made == attempts
    assert [str(error) for error in caught.value.exceptions] == ["cleaning up"]
    assert current_attempt() is None


@anyio_test
async def test_an_attempt_in_time_is_not_touched_by_its_timeout(virtual_time):
    flaky = Flaky(1)
    retry = Retry(on=ConnectionError, attempt_timeout=5, backoff=EVERY_SECOND)
    assert await retry.call(flaky) == "reply"
    async for attempt in retry:
        with attempt:
            await anyio.sleep(4.99)
    assert attempt.number == 1


@anyio_test
async def test_a_cancelled_enclosing_scope_is_no_attempt_timeout(virtual_time):
    async def stuck():
        await anyio.sleep(60)

    retry = Retry(on=TimeoutError, attempt_timeout=5)
    with anyio.move_on_after(3) as scope:
        await retry.call(stuck)
    assert scope.cancelled_caught
    with anyio.move_on_after(3) as scope:
        async for attempt in retry:
            with attempt:
                await stuck()
    assert scope.cancelled_caught


# ----------------------------------------------------------------------------------------------------------------------
# Waits


@anyio_test
async def test_the_draw_is_injectable(virtual_time):
    flaky = Flaky(3, virtual_time=virtual_time)
    await Retry(on=ConnectionError, backoff=exponential(first=1, cap=60), random=lambda: 0.5).call(flaky)
    assert flaky.at == [0, 0.5, 1.5, 3.5]


@anyio_test
async def test_decorrelated_waits_build_on_the_wait_before(virtual_time):
    flaky = Flaky(3, virtual_time=virtual_time)
    retry = Retry(on=ConnectionError, backoff=exponential(first=1, cap=60, jitter="decorrelated"), random=lambda: 0.5)
    await retry.call(flaky)
    assert flaky.at == [0, 2, 5.5, 11.25]  # waits: (1+3)/2, (1+6)/2, (1+10.5)/2


@anyio_test
async def test_those_at_the_cap_do_not_stay_in_step(virtual_time):
    """stamina's plateau is exactly 5.0 s for everybody: whoever an outage brought into step stays in step."""
    arrivals = []

    async def fail():
        arrivals.append(round(virtual_time.now(), 6))
        raise ConnectionError

    retry = Retry(on=ConnectionError, attempts=12, within=None, backoff=exponential(first=1, cap=5))

    async def client():
        with contextlib.suppress(ConnectionError):
            await retry.call(fail)

    async with anyio.create_task_group() as tasks:
        for _ in range(50):
            tasks.start_soon(client)
    late = [at for at in arrivals if at > 5]
    assert len(set(late)) > 0.99 * len(late)
