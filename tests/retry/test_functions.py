"""Retried functions and loops: the forms, in event loops and in threads, and which errors are tried again."""

from __future__ import annotations

import functools
import time

import anyio
import anyio.to_thread
import pytest

from penstock._introspect import kind_of
from penstock.errors import WouldBlockEventLoop
from penstock.retry import Retry, constant
from tests.retry.flaky import EVERY_SECOND, Flaky

anyio_test = pytest.mark.anyio


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
    """A generator fails when it is iterated, and by then the call is over. A function that returns one is another
    matter."""
    retry = Retry(on=ConnectionError)

    def items():
        yield 1

    async def stream():
        yield 1

    for function in (items, stream, functools.partial(items)):
        with pytest.raises(TypeError, match=r"(items|stream) is .* generator function: calling it does nothing yet"):
            await retry.call(function)
        way = "Decorate it, and it is retried until its first item" if function is stream else "Retry what it calls"
        with pytest.raises(TypeError, match=f"calling it does nothing yet, .*{way}$"):
            retry.call_sync(function)
    assert list(await retry.call(lambda: (item for item in [1, 2]))) == [1, 2]


def test_the_methods_of_the_openai_sdk_count_as_async():
    import openai

    assert kind_of(openai.AsyncOpenAI(api_key="x").chat.completions.create) == "async"


# ----------------------------------------------------------------------------------------------------------------------
# In threads: `time.sleep` moves a clock by hand


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
    with pytest.raises(
        TypeError, match=r"Flaky: `on`, asked about ConnectionError\(\), returned <coroutine .*>, which is not awaited"
    ):
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


class Several(ExceptionGroup):
    """A group of a user's own."""


@pytest.mark.parametrize(
    ("on", "calls"),
    [(ExceptionGroup, 2), ((KeyError, Several), 2), (Exception, 2), (KeyError, 1), ((), 1)],
    ids=["any group", "its own type", "all errors", "another error", "nothing"],
)
@anyio_test
async def test_a_group_is_tried_again_whatever_is_in_it_if_its_type_is_named(on, calls, virtual_time):
    flaky = Flaky(9, Several("g", [OSError()]))
    with pytest.raises(Several):
        await Retry(on=on, attempts=2, backoff=EVERY_SECOND).call(flaky)
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
