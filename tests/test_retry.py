"""Retry: what is tried again, how often and when; on asyncio, uvloop and trio, in virtual time."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import dataclasses
import functools
import gc
import logging
import pickle
import threading
import time
import weakref

import anyio
import anyio.to_thread
import pytest

from penstock._introspect import kind_of
from penstock.errors import AttemptTimeout, RateLimited, WouldBlockEventLoop
from penstock.events import AttemptStarted, GaveUp, RetryScheduled, Succeeded
from penstock.retry import Attempt, Retry, _current, constant, current_attempt, exponential
from penstock.testing import manual_clock

anyio_test = pytest.mark.anyio


class Flaky:
    """Fails `times` times with `error`, then answers; remembers when it was called."""

    def __init__(self, times, error=ConnectionError, virtual_time=None):
        self.left, self.error, self.time, self.at = times, error, virtual_time, []

    def sync(self, *_args):
        if self.time is not None:
            self.at.append(self.time.now())
        else:
            self.at.append(len(self.at))
        if self.left > 0:
            self.left -= 1
            raise self.error() if isinstance(self.error, type) else self.error
        return "reply"

    async def __call__(self, *args):
        await anyio.lowlevel.checkpoint()
        return self.sync(*args)


EVERY_SECOND = constant(1)


# ----------------------------------------------------------------------------------------------------------------------
# The forms


@anyio_test
async def test_a_decorated_function_is_tried_until_it_answers(virtual_time):
    flaky = Flaky(2, virtual_time=virtual_time)

    @Retry(on=ConnectionError, backoff=EVERY_SECOND)
    async def fetch(url):
        """Fetch it."""
        return await flaky(url)

    assert await fetch("x") == "reply"
    assert flaky.at == [0, 1, 2]
    assert (fetch.__name__, fetch.__doc__) == ("fetch", "Fetch it.")


@anyio_test
async def test_call_passes_arguments_on(virtual_time):
    async def add(a, *, b):
        return a + b

    assert await Retry(on=ValueError).call(add, 1, b=2) == 3


@anyio_test
async def test_call_takes_a_plain_function_too(virtual_time):
    """It runs in the event loop, and the waits do not block it."""
    flaky = Flaky(2, virtual_time=virtual_time)
    assert await Retry(on=ConnectionError, backoff=EVERY_SECOND).call(flaky.sync, "argument") == "reply"
    assert await Retry(on=ConnectionError, attempt_timeout=1).call(flaky.sync) == "reply"
    assert flaky.at == [0, 1, 2, 2]


@anyio_test
async def test_the_loop_form_is_tried_until_the_block_ends_well(virtual_time):
    flaky, seen = Flaky(2, virtual_time=virtual_time), []
    async for attempt in Retry(on=ConnectionError, backoff=EVERY_SECOND):
        with attempt:
            seen.append(attempt)
            reply = await flaky()
    assert reply == "reply"
    assert flaky.at == [0, 1, 2]
    assert [attempt.number for attempt in seen] == [1, 2, 3]
    assert [type(attempt.previous) for attempt in seen] == [type(None), ConnectionError, ConnectionError]


@anyio_test
async def test_methods_partials_and_callable_objects_can_be_decorated(virtual_time):
    class Client:
        def __init__(self):
            self.flaky = Flaky(1)

        @Retry(on=ConnectionError, backoff=EVERY_SECOND)
        async def fetch(self, url):
            return url, await self.flaky()

    retry = Retry(on=ConnectionError, backoff=EVERY_SECOND)
    assert await Client().fetch("x") == ("x", "reply")
    assert await retry(functools.partial(Flaky(1).__call__, "x"))() == "reply"
    assert await retry(Flaky(1))() == "reply"


@anyio_test
async def test_a_plain_function_around_an_async_one_is_awaited(virtual_time):
    """The methods of some SDKs are plain functions that return a coroutine: failures come when it is awaited."""

    def checked(fn):
        @functools.wraps(fn)
        def wrapper(*args):
            return fn(*args)

        return wrapper

    retry = Retry(on=ConnectionError, backoff=EVERY_SECOND, attempt_timeout=5)
    flaky = Flaky(2)

    async def fetch():
        return await flaky()

    assert kind_of(checked(fetch)) == kind_of(functools.partial(checked(fetch))) == "async"
    assert await retry(checked(fetch))() == "reply"
    flaky.left = 2
    assert await Retry(on=ConnectionError, backoff=EVERY_SECOND)(lambda: flaky())() == "reply"  # noqa: PLW0108


@anyio_test
async def test_call_refuses_what_could_not_be_retried(virtual_time):
    """A generator fails when it is iterated, and by then the call is over. A function that returns one is another matter."""
    retry = Retry(on=ConnectionError)

    def items():
        yield 1

    async def stream():
        yield 1

    for function in (items, stream, functools.partial(items)):
        with pytest.raises(TypeError, match=r"(items|stream) is .* generator function: calling it does nothing yet"):
            await retry.call(function)
        with pytest.raises(TypeError, match="calling it does nothing yet"):
            retry.call_sync(function)
    assert list(await retry.call(lambda: (item for item in [1, 2]))) == [1, 2]


def test_the_methods_of_the_openai_sdk_count_as_async():
    import openai

    assert kind_of(openai.AsyncOpenAI(api_key="x").chat.completions.create) == "async"


# ----------------------------------------------------------------------------------------------------------------------
# In threads: `time.sleep` moves a clock by hand


@pytest.fixture
def thread_time(monkeypatch):
    with manual_clock() as clock:
        monkeypatch.setattr(time, "sleep", clock.advance)
        yield clock


def test_a_sync_function_is_tried_until_it_answers(thread_time):
    flaky = Flaky(2, virtual_time=thread_time)
    retry = Retry(on=ConnectionError, backoff=EVERY_SECOND)
    assert retry(flaky.sync)() == "reply"
    assert flaky.at == [0, 1, 2]
    flaky.left = 1
    assert retry.call_sync(flaky.sync, "argument") == "reply"


def test_the_loop_form_in_a_thread(thread_time):
    flaky, numbers = Flaky(2, virtual_time=thread_time), []
    for attempt in Retry(on=ConnectionError, backoff=EVERY_SECOND):
        with attempt:
            numbers.append(attempt.number)
            flaky.sync()
    assert flaky.at == [0, 1, 2]
    assert numbers == [1, 2, 3]


def test_a_thread_keeps_the_bounds_too(thread_time):
    flaky = Flaky(9, virtual_time=thread_time)
    with pytest.raises(ConnectionError) as caught:
        Retry(on=ConnectionError, within=2.5, backoff=EVERY_SECOND).call_sync(flaky.sync)
    assert flaky.at == [0, 1, 2]
    assert "within=2.5 s" in caught.value.__notes__[0]
    with pytest.raises(ConnectionError):
        for attempt in Retry(on=ConnectionError, attempts=2, backoff=EVERY_SECOND):
            with attempt:
                flaky.sync()
    assert flaky.at == [0, 1, 2, 2, 3]


def test_a_wait_of_a_thread_that_took_too_long_is_followed_by_no_attempt(thread_time, monkeypatch):
    """A machine that slept: the bound holds, and what there is comes out, the error or the refused result."""
    monkeypatch.setattr(time, "sleep", lambda seconds: thread_time.advance(seconds + 10))
    retry = Retry(on=ConnectionError, within=5, on_result=lambda result: result == "busy", backoff=EVERY_SECOND)
    flaky = Flaky(99)
    with pytest.raises(ConnectionError):
        retry.call_sync(flaky.sync)
    with pytest.raises(ConnectionError):
        for attempt in retry:
            with attempt:
                flaky.sync()
    assert len(flaky.at) == 2
    assert retry.call_sync(lambda: "busy") == "busy"
    for attempt in retry:
        with attempt:
            attempt.result = "busy"
    assert attempt.number == 1


@anyio_test
async def test_a_wait_that_would_stop_the_event_loop_is_refused(virtual_time):
    flaky = Flaky(1)
    retry = Retry(on=ConnectionError, backoff=EVERY_SECOND)
    with pytest.raises(WouldBlockEventLoop) as caught:
        retry.call_sync(flaky.sync)
    assert str(caught.value) == (
        "Flaky.sync: waiting 1 s for the next attempt would stop the event loop that this thread runs. "
        "Decorate an async function, or call from a worker thread"
    )
    assert isinstance(caught.value.__cause__, ConnectionError)
    assert retry.call_sync(flaky.sync) == "reply"  # nothing to wait for, nothing to refuse

    flaky.left = 1
    assert Retry(on=ConnectionError, backoff=constant(0)).call_sync(flaky.sync) == "reply"


@anyio_test
async def test_a_worker_thread_may_wait(virtual_time, monkeypatch):
    """Its context says that there is an event loop, but it runs in another thread."""
    slept = []
    monkeypatch.setattr(time, "sleep", slept.append)
    flaky = Flaky(1)
    retry = Retry(on=ConnectionError, backoff=EVERY_SECOND)
    assert await anyio.to_thread.run_sync(retry(flaky.sync)) == "reply"
    assert slept == [1]


# ----------------------------------------------------------------------------------------------------------------------
# Which errors


@pytest.mark.parametrize(
    ("on", "raised", "calls"),
    [
        pytest.param(ConnectionError, ConnectionResetError, 3, id="a type and its subclasses"),
        pytest.param((ValueError, KeyError), KeyError, 3, id="one of several types"),
        pytest.param(ValueError, KeyError, 1, id="another type"),
        pytest.param(lambda error: isinstance(error, KeyError), KeyError, 3, id="a function that says True"),
        pytest.param(lambda _: False, KeyError, 1, id="a function that says False"),
        pytest.param(lambda _: None, KeyError, 1, id="a function that says nothing"),
        pytest.param(lambda _: 0, KeyError, 3, id="zero seconds is a time and not False"),
    ],
)
@anyio_test
async def test_on_says_which_errors_are_tried_again(on, raised, calls, virtual_time):
    flaky = Flaky(9, raised)
    with pytest.raises(raised):
        await Retry(on=on, attempts=3, backoff=EVERY_SECOND).call(flaky)
    assert len(flaky.at) == calls


async def _async_judge(_):
    return False


@pytest.mark.parametrize("name", ["on", "on_result", "hint", "on_event"])
def test_what_cannot_be_awaited_is_refused_where_it_is_written(name):
    """An async `on` would say yes to everything: what it returns is a coroutine, and true."""
    with pytest.raises(TypeError) as caught:
        Retry(**{"on": OSError, name: _async_judge})
    assert str(caught.value) == f"Retry({name}=_async_judge): it is called and not awaited; give a plain function"


@anyio_test
async def test_an_answer_that_would_have_to_be_awaited_is_refused(virtual_time):
    """Where it could not be seen beforehand."""
    flaky = Flaky(9)
    with pytest.raises(TypeError, match=r"a classifier returned <coroutine .*>, which is not awaited"):
        await Retry(on=lambda error: _async_judge(error), backoff=EVERY_SECOND).call(flaky)  # noqa: PLW0108
    assert len(flaky.at) == 1


@anyio_test
async def test_on_can_say_when(virtual_time):
    """Exactly then: the user has asked for it, so there is no jitter."""
    flaky = Flaky(2, virtual_time=virtual_time)
    await Retry(on=lambda _: 7.25).call(flaky)
    assert flaky.at == [0, 7.25, 14.5]


@pytest.mark.parametrize(
    ("raised", "calls"),
    [
        pytest.param(ExceptionGroup("g", [ValueError(), ExceptionGroup("h", [KeyError()])]), 2, id="every leaf"),
        pytest.param(ExceptionGroup("g", [ValueError(), ExceptionGroup("h", [OSError()])]), 1, id="all but one leaf"),
    ],
)
@anyio_test
async def test_a_group_is_tried_again_only_if_every_leaf_is(raised, calls, virtual_time):
    for on in ((ValueError, KeyError), lambda error: isinstance(error, ValueError | KeyError)):
        flaky = Flaky(9, raised)
        with pytest.raises(ExceptionGroup) as caught:
            await Retry(on=on, attempts=2, backoff=EVERY_SECOND).call(flaky)
        assert caught.value is raised
        assert len(flaky.at) == calls


@anyio_test
async def test_a_group_waits_for_its_slowest_leaf(virtual_time):
    flaky = Flaky(1, ExceptionGroup("g", [ValueError(2), ValueError(5), ValueError(3)]), virtual_time)
    await Retry(on=lambda error: error.args[0]).call(flaky)
    assert flaky.at == [0, 5]


@anyio_test
async def test_an_unwanted_result_is_tried_again(virtual_time):
    """`on_result` may say True or seconds; when there are no attempts left the last result is what there is."""
    results = iter(["busy", "in 5", "done"])

    async def poll():
        return next(results)

    def unwanted(result):
        return {"busy": True, "in 5": 5}.get(result, False)

    retry = Retry(on=ValueError, attempts=3, on_result=unwanted, backoff=EVERY_SECOND)
    assert await retry.call(poll) == "done"
    assert virtual_time.now() == 6

    results = iter(["busy", "busy", "busy", "done"])
    assert await retry.call(poll) == "busy"


@anyio_test
async def test_an_unwanted_result_in_the_loop_form(virtual_time):
    results = iter(["busy", "busy", "done"])
    async for attempt in Retry(on=ValueError, on_result=lambda result: result == "busy", backoff=EVERY_SECOND):
        with attempt:
            attempt.result = next(results)
    assert attempt.result == "done"
    assert attempt.number == 3


def test_an_unwanted_result_in_a_thread(thread_time):
    results = iter(["busy", "done", "busy", "done", "busy", "busy"])
    retry = Retry(on=ValueError, attempts=2, on_result=lambda result: result == "busy", backoff=EVERY_SECOND)
    assert retry.call_sync(lambda: next(results)) == "done"
    for _ in range(2):
        for attempt in retry:
            with attempt:
                attempt.result = next(results)
    assert attempt.result == "busy"


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
        "penstock: Flaky gave up after 3 attempts in 2 s: the wait would pass the deadline of the enclosing cancel scope"
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


# ----------------------------------------------------------------------------------------------------------------------
# Sharing


@anyio_test
async def test_tasks_that_iterate_one_policy_share_nothing(virtual_time):
    """tenacity #93: two tasks that iterated one `AsyncRetrying` got each other's exceptions."""
    retry = Retry(on=ValueError, attempts=5, backoff=EVERY_SECOND)
    seen = {}

    async def task(name, fails, gap):
        numbers = seen.setdefault(name, [])
        async for attempt in retry:
            with attempt:
                numbers.append(attempt.number)
                assert attempt.previous is None or attempt.previous.args == (name,)
                await anyio.sleep(gap)
                if attempt.number <= fails:
                    raise ValueError(name)

    async with anyio.create_task_group() as tasks:
        for index in range(4):
            tasks.start_soon(task, f"task {index}", index, 0.3 * index + 0.1)
    assert seen == {f"task {index}": list(range(1, index + 2)) for index in range(4)}


def test_a_policy_is_a_frozen_value():
    retry = Retry(on=ValueError, attempts=3)
    assert retry == Retry(on=ValueError, attempts=3)
    assert hash(retry) == hash(Retry(on=ValueError, attempts=3))
    assert retry != Retry(on=ValueError, attempts=4)
    assert dataclasses.replace(retry, attempts=4).attempts == 4
    with pytest.raises(dataclasses.FrozenInstanceError):
        retry.attempts = 4


def test_policies_that_were_sent_to_other_processes_do_not_draw_in_step():
    """`random.random` takes its generator along: workers that unpickle it would all wait the same, again and again."""
    sent = pickle.dumps(Retry(on=ValueError, attempts=3))
    assert len(sent) < 1000
    one, other = pickle.loads(sent), pickle.loads(sent)
    assert one == other == Retry(on=ValueError, attempts=3)
    assert [one.random() for _ in range(5)] != [other.random() for _ in range(5)]


def test_one_policy_serves_many_threads():
    flakies = [Flaky(1) for _ in range(5)]
    retry = Retry(on=ConnectionError, backoff=constant(0))
    threads = [threading.Thread(target=retry.call_sync, args=(flaky.sync,)) for flaky in flakies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [len(flaky.at) for flaky in flakies] == [2] * 5


# ----------------------------------------------------------------------------------------------------------------------
# Nesting


@anyio_test
async def test_nested_policies_do_not_multiply(virtual_time):
    """stamina, 3 × 3: nine calls. Here the inner one stands back."""
    calls = 0
    retry = Retry(on=ValueError, attempts=3, backoff=EVERY_SECOND)

    @retry
    async def inner():
        nonlocal calls
        calls += 1
        raise ValueError

    @retry
    async def outer():
        await inner()

    with pytest.raises(ValueError) as caught:
        await outer()
    assert calls == 3
    assert any(
        "an outer retry is in charge (nested=True would retry here too)" in note for note in caught.value.__notes__
    )

    calls = 0
    with pytest.raises(ValueError):
        await inner()  # on its own again
    assert calls == 3


@anyio_test
async def test_every_form_stands_back_inside_every_form(virtual_time):
    retry = Retry(on=ValueError, attempts=3, backoff=constant(0))
    calls = 0

    def fail():
        nonlocal calls
        calls += 1
        raise ValueError

    async def afail():
        fail()

    async def in_loop():
        async for attempt in retry:
            with attempt:
                fail()

    async def in_sync_loop():
        for attempt in retry:
            with attempt:
                fail()

    async def in_stream():
        async def items():
            fail()
            yield

        async for _ in retry(items)():
            pass

    async def in_worker_thread():
        await anyio.to_thread.run_sync(retry(fail))

    async def in_sync():
        retry.call_sync(fail)

    for inner in (retry(afail), in_loop, in_sync_loop, in_sync, in_stream, in_worker_thread):
        calls = 0
        with pytest.raises(ValueError):
            await retry.call(inner)
        assert calls == 3
        calls = 0
        with pytest.raises(ValueError):
            async for attempt in retry:
                with attempt:
                    await inner()
        assert calls == 3


@anyio_test
async def test_nested_true_multiplies_on_purpose(virtual_time):
    calls = 0

    async def fail():
        nonlocal calls
        calls += 1
        raise ValueError

    inner = Retry(on=ValueError, attempts=3, backoff=EVERY_SECOND, nested=True)(fail)
    with pytest.raises(ValueError):
        await Retry(on=ValueError, attempts=3, backoff=EVERY_SECOND).call(inner)
    assert calls == 9


@anyio_test
async def test_an_unwanted_result_is_left_to_the_outer_policy(virtual_time):
    calls = 0

    async def busy():
        nonlocal calls
        calls += 1
        return "busy"

    retry = Retry(on=ValueError, attempts=3, on_result=lambda result: result == "busy", backoff=EVERY_SECOND)
    assert await retry.call(retry(busy)) == "busy"
    assert calls == 3


@anyio_test
async def test_tasks_of_an_attempt_are_part_of_it(virtual_time):
    """What fails in a task group inside an attempt fails the attempt: retrying in both places would multiply."""
    calls = 0
    retry = Retry(on=ValueError, attempts=3, backoff=EVERY_SECOND)

    @retry
    async def child():
        nonlocal calls
        calls += 1
        raise ValueError

    @retry
    async def parent():
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(child)

    with pytest.raises(ExceptionGroup):
        await parent()
    assert calls == 3


@anyio_test
async def test_a_task_that_outlives_the_attempt_retries_by_itself(virtual_time):
    """It inherited the attempt, but the attempt is over: nobody else would retry for it."""
    flaky = Flaky(2, virtual_time=virtual_time)
    retry = Retry(on=ConnectionError, backoff=EVERY_SECOND)

    async def background():
        await anyio.sleep(10)
        assert current_attempt() is None
        assert await retry.call(flaky) == "reply"

    async with anyio.create_task_group() as tasks:

        async def start():
            tasks.start_soon(background)

        await retry.call(start)
    assert flaky.at == [10, 11, 12]


# ----------------------------------------------------------------------------------------------------------------------
# What an attempt knows


@anyio_test
async def test_the_idempotency_key_is_of_the_call(virtual_time):
    """The same in all attempts of one call, another one in the next call, and to be had inside the function."""
    keys, numbers = [], []

    @Retry(on=ValueError, attempts=3, backoff=EVERY_SECOND)
    async def send():
        await anyio.lowlevel.checkpoint()
        attempt = current_attempt()
        assert current_attempt() is attempt
        keys.append(attempt.idempotency_key)
        numbers.append((attempt.number, type(attempt.previous)))
        if attempt.number < 3:
            raise ValueError

    await send()
    await send()
    assert numbers == [(1, type(None)), (2, ValueError), (3, ValueError)] * 2
    assert len(set(keys[:3])) == len(set(keys[3:])) == 1
    assert len(set(keys)) == 2
    assert all(len(key) == 32 and int(key, 16) for key in keys)
    assert current_attempt() is None


@anyio_test
async def test_a_policy_that_stands_back_has_a_key_of_its_own(virtual_time):
    """Two requests of one outer attempt must not look like one to the server."""
    retry, keys = Retry(on=ValueError), []

    @retry
    async def send():
        keys.append(current_attempt().idempotency_key)

    @retry
    async def both():
        keys.append(current_attempt().idempotency_key)
        await send()
        await send()

    await both()
    assert len(set(keys)) == 3


@anyio_test
async def test_the_loop_form_is_the_current_attempt_in_its_block(virtual_time):
    async for attempt in Retry(on=ValueError):
        assert current_attempt() is None
        with attempt as entered:
            assert current_attempt() is attempt is entered
    assert current_attempt() is None
    assert repr(attempt) == "<Attempt 1 of block>"


@anyio_test
async def test_an_attempt_is_made_once_and_not_forgotten(virtual_time):
    retry = Retry(on=ValueError)
    with pytest.raises(RuntimeError, match="attempt 1 was already made"):
        async for attempt in retry:
            with attempt:
                pass
            with attempt:
                pass
    with pytest.raises(RuntimeError, match="attempt 1 was never made: put `with attempt:` around what may fail"):
        async for attempt in retry:
            assert isinstance(attempt, Attempt)


@anyio_test
async def test_leaving_the_loop_early_leaves_nothing_behind(virtual_time):
    retry = Retry(on=ValueError)

    async def leave(how):
        async for attempt in retry:
            with attempt:
                if how == "return":
                    return
                if how == "break":
                    break
                continue

    for how in ("return", "break", "continue"):
        await leave(how)
        assert _current.get() is None
    for loop, again in ((aiter(retry), aiter), (iter(retry), iter)):
        assert again(loop) is loop  # a loop that was left is not begun anew


def test_an_attempt_left_in_another_context_leaves_nothing_that_matters(thread_time):
    """A generator can be closed by another task than the one that ran it: what stays behind is no attempt any more."""
    retry = Retry(on=ValueError)
    attempt, context = next(iter(retry)), contextvars.copy_context()
    context.run(attempt.__enter__)
    assert context.run(current_attempt) is attempt
    attempt.__exit__(None, None, None)
    assert context.run(current_attempt) is None
    flaky = Flaky(1, ValueError)
    assert context.run(Retry(on=ValueError, backoff=EVERY_SECOND).call_sync, flaky.sync) == "reply"


# ----------------------------------------------------------------------------------------------------------------------
# What the error tells


@anyio_test
async def test_the_last_error_is_raised_itself_with_the_history_as_notes(virtual_time):
    errors = [ConnectionError("one"), ConnectionError("two"), ConnectionError("three")]
    source = iter(errors)

    async def fetch():
        raise next(source)

    with pytest.raises(ConnectionError) as caught:
        await Retry(on=ConnectionError, attempts=3, backoff=EVERY_SECOND).call(fetch)
    assert caught.value is errors[2]
    assert caught.value.__context__ is caught.value.__cause__ is None
    name = fetch.__qualname__
    assert caught.value.__notes__ == [
        f"penstock: {name} gave up after 3 attempts in 2 s: attempts=3 allows no more",
        "penstock: attempt 1 ended at 0 s: ConnectionError('one'); waited 1 s",
        "penstock: attempt 2 ended at 1 s: ConnectionError('two'); waited 1 s",
    ]


@anyio_test
async def test_an_error_that_is_not_retried_is_left_alone(virtual_time):
    flaky = Flaky(1, KeyError)
    with pytest.raises(KeyError) as caught:
        await Retry(on=ValueError).call(flaky)
    assert not hasattr(caught.value, "__notes__")


@anyio_test
async def test_an_error_that_ends_a_row_of_retries_tells_of_them(virtual_time):
    errors = iter([ValueError("first"), KeyError("other")])

    async def fetch():
        raise next(errors)

    with pytest.raises(KeyError) as caught:
        await Retry(on=ValueError, backoff=EVERY_SECOND).call(fetch)
    assert caught.value.__notes__[0].endswith(
        "gave up after 2 attempts in 1 s: `on` says that this error is not worth another attempt"
    )


@anyio_test
async def test_a_long_history_is_cut(virtual_time):
    flaky = Flaky(99, ConnectionError("x" * 1000))
    with pytest.raises(ConnectionError) as caught:
        await Retry(on=ConnectionError, attempts=51, within=None, backoff=constant(0)).call(flaky)
    notes = caught.value.__notes__
    assert len(notes) == 22
    assert notes[1] == "penstock: the first 30 attempts are not shown"
    assert notes[2].startswith("penstock: attempt 31 ended at")
    assert max(map(len, notes)) < 300


@anyio_test
async def test_an_error_that_many_calls_share_does_not_grow_without_end(virtual_time):
    """As the callers of one `Batcher` do, and a module that raises one object again and again."""
    shared = ConnectionError("down")
    retry = Retry(on=ConnectionError, attempts=3, backoff=constant(0))
    for _ in range(1000):
        with pytest.raises(ConnectionError):
            await retry.call(Flaky(9, shared))
    assert 3 <= len(shared.__notes__) <= 50
    assert "gave up after 3 attempts" in shared.__notes__[0]


@anyio_test
async def test_an_error_that_takes_no_notes_still_comes_through(virtual_time):
    @dataclasses.dataclass(frozen=True)
    class Frozen(Exception):  # noqa: N818
        retry_after: float = 999

    with pytest.raises(Frozen):
        await Retry(on=Frozen, attempts=2, within=5).call(Flaky(9, Frozen))

    class Closed(Exception):  # noqa: N818
        retry_after = property(lambda _: None)

    with pytest.raises(Closed) as caught:
        await Retry(on=Closed, hint=lambda _: 999).call(Flaky(9, Closed))
    assert "the server asks to wait 999 s" in caught.value.__notes__[0]


@anyio_test
async def test_a_call_leaves_no_garbage_behind(virtual_time):
    """An error holds its frames; the frames must not hold the error, or it lives until the collector comes by."""

    class Mine(Exception):  # noqa: N818
        pass

    born = []

    async def fail():
        error = Mine()
        born.append(weakref.ref(error))
        try:
            raise error
        finally:
            del error

    gc.collect()
    gc.disable()
    try:
        with contextlib.suppress(Mine):
            await Retry(on=Mine, attempts=3, backoff=constant(0)).call(fail)
        assert [ref() for ref in born] == [None] * 3

        async def fail_and_hang():
            if len(born) > 3:
                await anyio.sleep_forever()
            await fail()

        with anyio.move_on_after(5):
            await Retry(on=Mine, backoff=constant(0)).call(fail_and_hang)
        assert [ref() for ref in born] == [None] * 4

        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(Retry(on=Mine, backoff=constant(60)).call, fail)
                await anyio.sleep(30)  # cancelled while it waits
                scope.cancel()
        assert [ref() for ref in born] == [None] * 5
    finally:
        gc.enable()


# ----------------------------------------------------------------------------------------------------------------------
# Events


def kinds(events):
    return [type(event) for event in events]


@anyio_test
async def test_every_step_is_an_event(virtual_time):
    events = []
    retry = Retry(on=ValueError, attempts=2, backoff=EVERY_SECOND, on_event=events.append)
    flaky = Flaky(1, ValueError)
    await retry.call(flaky)
    assert kinds(events) == [AttemptStarted, RetryScheduled, AttemptStarted, Succeeded]
    assert [event.number for event in events[:3]] == [1, 1, 2]
    assert (events[1].delay, events[1].hint, type(events[1].error)) == (1, None, ValueError)
    assert (events[3].attempts, events[3].elapsed, events[3].name) == (2, 1, "Flaky")
    assert len({event.idempotency_key for event in events}) == 1

    events.clear()
    flaky.left = 9
    with pytest.raises(ValueError) as caught:
        await retry.call(flaky)
    assert kinds(events) == [AttemptStarted, RetryScheduled, AttemptStarted, GaveUp]
    assert events[3] == GaveUp("Flaky", events[0].idempotency_key, 2, caught.value, "attempts", 1, None)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"attempts": 1}, "attempts"),
        ({"within": 0.5}, "within"),
        ({"on": KeyError}, "unretryable"),
        ({"on": lambda error: error.args == (), "hint": lambda _: 400}, "hint"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@anyio_test
async def test_giving_up_names_the_bound(settings, reason, virtual_time):
    events = []
    with pytest.raises(ValueError):
        await Retry(**{"on": ValueError, "backoff": EVERY_SECOND, "on_event": events.append} | settings).call(
            Flaky(9, ValueError)
        )
    assert events[-1].reason == reason


@anyio_test
async def test_a_refused_result_is_an_event_without_an_error(virtual_time):
    events = []

    async def busy():
        return "busy"

    retry = Retry(on=ValueError, attempts=2, on_result=lambda _: True, backoff=EVERY_SECOND, on_event=events.append)
    assert await retry.call(busy) == "busy"
    assert kinds(events) == [AttemptStarted, RetryScheduled, AttemptStarted, GaveUp]
    assert events[1].error is events[3].error is None


@anyio_test
async def test_a_hook_that_fails_is_logged_and_breaks_nothing(virtual_time, caplog):
    def broken(event):
        raise ZeroDivisionError

    with caplog.at_level(logging.ERROR, logger="penstock"):
        assert await Retry(on=ConnectionError, backoff=EVERY_SECOND, on_event=broken).call(Flaky(1)) == "reply"
    assert len(caplog.records) == 4
    assert "broken" in caplog.records[0].message
    assert caplog.records[0].exc_info[0] is ZeroDivisionError


# ----------------------------------------------------------------------------------------------------------------------
# Wrong policies


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Retry(), TypeError, "on"),  # noqa: PLW0108
        (
            lambda: Retry(on=BaseException),
            TypeError,
            (
                "Retry(on=BaseException): only types of Exception can be given; cancellation, KeyboardInterrupt and their like "
                "always pass through"
            ),
        ),
        (
            lambda: Retry(on=(ValueError, asyncio.CancelledError)),
            TypeError,
            "Retry(on=CancelledError): only types of Exception",
        ),
        (
            lambda: Retry(on=[ValueError]),
            TypeError,
            (
                "Retry(on=[<class 'ValueError'>]): an exception type, a tuple of them, or a function of the exception that returns "
                "True, False or seconds"
            ),
        ),
        (lambda: Retry(on=(ValueError, 429)), TypeError, "a tuple of them"),
        (lambda: Retry(on=(ValueError, str)), TypeError, "Retry(on=str): only types of Exception"),
        (
            lambda: Retry(on=ValueError, attempts=0),
            ValueError,
            "Retry(attempts=0): a whole number from 1, the first attempt included; or None",
        ),
        (
            lambda: Retry(on=ValueError, within=-1),
            ValueError,
            "Retry(within=-1): a number of seconds above 0, or None for no bound",
        ),
        (lambda: Retry(on=ValueError, attempts=2.5), ValueError, "Retry(attempts=2.5): a whole number from 1"),
        (lambda: Retry(on=ValueError, attempts="3"), ValueError, "Retry(attempts='3'): a whole number from 1"),
        (lambda: Retry(on=ValueError, attempt_timeout=float("nan")), ValueError, "Retry(attempt_timeout=nan)"),
        (
            lambda: Retry(on=ValueError, backoff=exponential),
            TypeError,
            "Retry(backoff=exponential): exponential(...), constant(...), or an object with `delay` and `jitter`",
        ),
        (lambda: Retry(on=ValueError, backoff=3), TypeError, "Retry(backoff=3): exponential(...), constant(...)"),
        (lambda: Retry(on=ValueError, budget=0.2), TypeError, "Retry(budget=0.2): a Budget(...), or None"),
        (lambda: Retry(on=ValueError, hint=5), TypeError, "Retry(hint=5): a function is needed"),
        (lambda: Retry(on=ValueError, random=0.5), TypeError, "Retry(random=0.5): a function is needed"),
        (lambda: Retry(on=ValueError, max_hint=-1), ValueError, "Retry(max_hint=-1): a number of seconds, 0 or more"),
    ],
)
def test_a_wrong_policy_is_refused_where_it_is_written(make, error, message):
    with pytest.raises(error) as caught:
        make()
    assert message in str(caught.value)


def test_a_generator_is_refused_at_decoration():
    def items():
        yield 1

    with pytest.raises(
        TypeError, match=r"items is a generator function, which cannot be retried: its items are handed out"
    ):
        Retry(on=ValueError)(items)


@pytest.mark.parametrize("use", ["decorate", "call", "loop"])
def test_a_thread_cannot_be_cut(use):
    retry = Retry(on=ValueError, attempt_timeout=5)
    with pytest.raises(TypeError, match=r"cannot be cut after attempt_timeout=5: nothing can stop a thread"):
        if use == "decorate":
            retry(print)
        elif use == "call":
            retry.call_sync(print)
        else:
            iter(retry)


@anyio_test
async def test_a_classifier_that_answers_nonsense_is_named(virtual_time):
    with pytest.raises(
        ValueError, match=r"a classifier asked for a retry after -1 s: a wait is 0 or more, and finite"
    ) as caught:
        await Retry(on=lambda _: -1).call(Flaky(1))
    assert isinstance(caught.value.__context__, ConnectionError)


def test_a_policy_is_shown_as_it_is_written():
    assert repr(Retry(on=ValueError)) == (
        "Retry(on=ValueError, attempts=6, within=300, backoff=exponential(first=1, cap=60, jitter='full'))"
    )
    assert repr(Retry(on=(OSError, RateLimited), attempts=None, backoff=constant(2), max_hint=60, hint=None)) == (
        "Retry(on=(OSError, RateLimited), attempts=None, within=300, backoff=constant(2), hint=None, max_hint=60)"
    )
