"""Functions whose results have done nothing yet: awaitables, and context managers that wait to be entered."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import io

import anyio
import pytest

from penstock.errors import AttemptTimeout, RateLimited
from penstock.events import AttemptStarted, GaveUp, RetryScheduled, Succeeded
from penstock.limiter import Limiter
from penstock.retry import Retry, constant, current_attempt
from tests.retry.flaky import EVERY_SECOND, Flaky

anyio_test = pytest.mark.anyio

retry = Retry(on=ConnectionError, attempts=3, backoff=EVERY_SECOND)


# ----------------------------------------------------------------------------------------------------------------------
# Awaitables


class Awaitable:
    """As the requests of aiohttp and the connections of asyncpg: awaitable, and no coroutine."""

    def __init__(self, flaky):
        self.flaky = flaky

    def __await__(self):
        return self.flaky().__await__()


class Client:
    def __init__(self, flaky):
        self.flaky = flaky

    def get(self):
        return self.flaky()

    def get_awaitable(self):
        return Awaitable(self.flaky)

    def __call__(self):
        return self.flaky()


def generator_coroutine(flaky):
    async def run():
        return await flaky()

    @asyncio.coroutines.types.coroutine
    def old_style():
        return (yield from run().__await__())

    return lambda: old_style()  # noqa: PLW0108


SHAPES = {
    "lambda": lambda flaky: lambda: flaky(),  # noqa: PLW0108
    "bound method": lambda flaky: Client(flaky).get,
    "object with __call__": Client,
    "partial": lambda flaky: functools.partial(lambda _: flaky(), 5),
    "awaitable that is no coroutine": lambda flaky: Client(flaky).get_awaitable,
    "class of awaitables": lambda flaky: functools.partial(Awaitable, flaky),
    "old-style coroutine": generator_coroutine,
}


@pytest.mark.parametrize("shape", SHAPES)
@anyio_test
async def test_a_plain_callable_that_returns_an_awaitable_is_retried_when_it_is_awaited(shape, virtual_time):
    flaky = Flaky(2, virtual_time=virtual_time)
    assert await retry(SHAPES[shape](flaky))() == "reply"
    assert flaky.at == [0, 1, 2]
    flaky.left = 2
    assert await retry.call(SHAPES[shape](flaky)) == "reply"
    assert flaky.at == [0, 1, 2, 2, 3, 4]


@pytest.mark.asyncio
async def test_a_plain_callable_that_returns_a_future_or_a_task_is_retried(virtual_time):
    flaky = Flaky(2)
    assert await retry(lambda: asyncio.ensure_future(flaky()))() == "reply"
    flaky.left = 2
    assert await asyncio.create_task(retry(lambda: asyncio.gather(flaky()))()) == ["reply"]


@pytest.mark.parametrize("shape", SHAPES)
def test_call_sync_refuses_an_awaitable_and_says_how_to_await_it(shape):
    flaky = Flaky(0)
    fn = SHAPES[shape](flaky)
    with pytest.raises(TypeError, match=r"returns an awaitable, and `call_sync` awaits nothing.* `await retry.call\("):
        retry.call_sync(fn)
    assert flaky.at == []


def test_call_sync_refuses_an_async_function():
    flaky = Flaky(0)

    async def fetch():
        return await flaky()

    with pytest.raises(TypeError, match=r"fetch returns an awaitable, and `call_sync` awaits nothing"):
        retry.call_sync(fetch)
    assert flaky.at == []


@anyio_test
async def test_an_object_that_claims_any_attribute_is_a_result(virtual_time):
    class Proxy:
        def __getattr__(self, name):
            return lambda *_: self

    proxy = Proxy()
    assert retry(lambda: proxy)() is proxy
    assert await retry.call(lambda: proxy) is proxy
    assert retry.call_sync(lambda: proxy) is proxy


# ----------------------------------------------------------------------------------------------------------------------
# Context managers


class Session:
    """Fails to open some times, and remembers what happened to it."""

    def __init__(self, failures):
        self.left, self.log = failures, []

    def open(self):
        if self.left > 0:
            self.left -= 1
            self.log.append("failed")
            raise ConnectionError
        self.log.append("open")

    @contextlib.asynccontextmanager
    async def generator(self, name="it"):
        """Open it."""
        self.open()
        try:
            yield name
        finally:
            self.log.append("closed")

    @contextlib.contextmanager
    def plain_generator(self, name="it"):
        self.open()
        try:
            yield name
        finally:
            self.log.append("closed")

    def class_based(self, name="it"):
        return OnlyAsync(self, name)

    def through_a_plain_function(self, name="it"):
        return self.generator(name)

    async def through_an_async_function(self, name="it"):
        await anyio.lowlevel.checkpoint()
        return self.generator(name)


class OnlyAsync:
    def __init__(self, session, name):
        self.session, self.name = session, name

    async def __aenter__(self):
        self.session.open()
        return self.name

    async def __aexit__(self, *_):
        self.session.log.append("closed")


MAKERS = ["generator", "class_based", "through_a_plain_function"]


@pytest.mark.parametrize("maker", MAKERS)
@anyio_test
async def test_the_entry_of_an_async_context_manager_is_retried(maker, virtual_time):
    session = Session(2)
    async with retry(getattr(session, maker))("me") as name:
        assert name == "me"
        assert virtual_time.now() == 2
        assert current_attempt() is None  # the body is no part of the attempt
    assert session.log == ["failed", "failed", "open", "closed"]

    session = Session(9)
    with pytest.raises(ConnectionError) as caught:
        async with retry(getattr(session, maker))():
            pass
    assert session.log == ["failed"] * 3
    assert "gave up after 3 attempts" in caught.value.__notes__[0]


@anyio_test
async def test_the_entry_of_a_context_manager_from_an_async_function_is_retried(virtual_time):
    session = Session(2)
    async with await retry(session.through_an_async_function)("me") as name:
        assert name == "me"
    assert session.log == ["failed", "failed", "open", "closed"]


def test_the_entry_of_a_plain_context_manager_is_retried(thread_time):
    session = Session(2)
    with retry(session.plain_generator)("me") as name:
        assert name == "me"
        assert thread_time.now() == 2
        assert current_attempt() is None
    assert session.log == ["failed", "failed", "open", "closed"]
    session = Session(9)
    with pytest.raises(ConnectionError), retry(session.plain_generator)():
        pass
    assert session.log == ["failed"] * 3


@anyio_test
async def test_errors_of_the_body_are_not_retried_and_reach_the_context_manager(virtual_time):
    session = Session(0)
    with pytest.raises(ConnectionError, match="mine"):
        async with retry(session.generator)():
            raise ConnectionError("mine")
    assert session.log == ["open", "closed"]
    with pytest.raises(ConnectionError, match="mine"), retry(session.plain_generator)():
        raise ConnectionError("mine")

    @retry
    @contextlib.asynccontextmanager
    async def swallowing():
        try:
            yield
        except ConnectionError:
            pass

    async with swallowing():
        raise ConnectionError


@anyio_test
async def test_a_decorated_context_manager_is_still_a_function_of_its_name_and_can_be_a_method(virtual_time):
    assert retry(Session.generator).__name__ == "generator"
    assert retry(Session.generator).__doc__ == "Open it."
    Session.decorated = retry(Session.generator)
    session = Session(1)
    async with session.decorated("me") as name:
        assert name == "me"
    del Session.decorated


@anyio_test
async def test_an_attempt_of_an_entry_can_be_cut(virtual_time):
    slow = [60, 1]

    @Retry(on=TimeoutError, attempts=2, attempt_timeout=5, backoff=constant(0))
    @contextlib.asynccontextmanager
    async def session():
        await anyio.sleep(slow.pop(0))
        yield

    async with session():
        assert virtual_time.now() == 6
        await anyio.sleep(60)  # the body may take its time
    slow[:] = [60, 60]
    with pytest.raises(AttemptTimeout):
        async with session():
            pass


@anyio_test
async def test_entering_is_one_call_with_the_events_of_one(virtual_time):
    events, session = [], Session(1)
    watched = Retry(on=ConnectionError, backoff=EVERY_SECOND, on_event=events.append)(session.generator)
    entry = watched()
    await anyio.sleep(1000)  # `within` begins when it is entered
    async with entry:
        pass
    assert [type(event) for event in events] == [AttemptStarted, RetryScheduled, AttemptStarted, Succeeded]
    assert len({event.idempotency_key for event in events}) == 1
    assert events[-1].elapsed == 1


@anyio_test
async def test_an_entry_that_is_used_again_is_a_call_of_its_own(virtual_time):
    session = Session(1)
    entry = retry(session.class_based)()
    async with entry:
        pass
    session.left = 2
    async with entry:
        pass
    assert session.log == ["failed", "open", "closed", "failed", "failed", "open", "closed"]


@anyio_test
async def test_an_entry_inside_another_retry_stands_back(virtual_time):
    session, calls = Session(99), 0

    async def outer():
        nonlocal calls
        calls += 1
        async with retry(session.generator)():
            pass

    with pytest.raises(ConnectionError):
        await retry.call(outer)
    assert calls == len(session.log) == 3


@anyio_test
async def test_what_is_awaitable_and_a_context_manager_is_retried_either_way(virtual_time):
    """As aiohttp's `session.get(url)`, and the pools of asyncpg."""

    class Request(OnlyAsync):
        def __await__(self):
            return self.__aenter__().__await__()

    session = Session(2)
    get = retry(lambda name: Request(session, name))
    async with get("me") as name:
        assert name == "me"
    session.left = 2
    assert await get("you") == "you"
    assert session.log == ["failed", "failed", "open", "closed", "failed", "failed", "open"]


@pytest.mark.asyncio
async def test_what_is_awaitable_and_a_context_manager_can_become_a_task(virtual_time):
    class Request(OnlyAsync):
        def __await__(self):
            return self.__aenter__().__await__()

    session = Session(2)
    assert await asyncio.create_task(retry(lambda: Request(session, "me"))()) == "me"


def test_what_works_with_a_plain_with_is_a_result_like_any_other():
    """A file that is open, a lock, a permit."""
    for made in (io.StringIO("text"), contextlib.nullcontext(5), contextlib.closing(io.StringIO())):
        assert retry(lambda made=made: made)() is made
        assert retry.call_sync(lambda made=made: made) is made


@anyio_test
async def test_a_permit_that_a_plain_call_returns_is_the_permit(virtual_time):
    limiter = Limiter(requests="1/s")
    acquire = Retry(on=RateLimited, backoff=constant(0)).call
    first = await acquire(limiter.acquire_nowait)
    second = await acquire(limiter.acquire_nowait)
    assert type(first) is type(second)
    assert virtual_time.now() == pytest.approx(1, rel=0.11)


@pytest.mark.parametrize("maker", MAKERS)
@anyio_test
async def test_call_refuses_a_context_manager_that_it_could_not_enter(maker, virtual_time):
    session = Session(0)
    with pytest.raises(TypeError) as caught:
        await retry.call(getattr(session, maker))
    name = f"Session.{maker}"
    assert str(caught.value) == (
        f"{name} returns a context manager: calling it does nothing yet, so there is nothing to retry. "
        f"Decorate it, and its entry is retried: `async with retry({name})(...)`"
    )
    with pytest.raises(TypeError, match=r"returns a context manager: .* `async with retry\("):
        retry.call_sync(getattr(session, maker))
    with pytest.raises(TypeError, match=r"`async with retry\(lambda: OnlyAsync\(\.\.\.\)\)\(\)`"):  # not the class
        await retry.call(OnlyAsync, session, "me")
    with pytest.raises(TypeError, match=r"returns a context manager: .* `with retry\("):
        retry.call_sync(session.plain_generator)
    assert session.log == []


@anyio_test
async def test_a_blocking_entry_in_an_async_function_is_refused(virtual_time):
    async def make():
        return Session(0).plain_generator()

    with pytest.raises(TypeError, match="make is an async function that returns a context manager for `with`"):
        await retry(make)()


@anyio_test
async def test_on_result_makes_no_sense_of_a_context_manager(virtual_time):
    asks = Retry(on=ConnectionError, on_result=bool)
    for maker in (*MAKERS, "plain_generator"):
        with pytest.raises(TypeError, match=r"on_result= looks at a result, and .* returns a context manager"):
            asks(getattr(Session(0), maker))()
    with pytest.raises(TypeError, match="on_result= looks at a result"):
        await Retry(on=ConnectionError, on_result=lambda _: False)(Session(0).through_an_async_function)()


@anyio_test
async def test_cancelling_an_entry_cancels_it(virtual_time):
    events = []

    @Retry(on=lambda _: True, on_event=events.append)
    @contextlib.asynccontextmanager
    async def session():
        await anyio.sleep_forever()
        yield

    with anyio.move_on_after(3) as scope:
        async with session():
            pass
    assert scope.cancelled_caught
    assert [type(event) for event in events] == [AttemptStarted]
    assert not any(isinstance(event, GaveUp) for event in events)


@anyio_test
async def test_a_retried_context_manager_is_still_a_decorator(virtual_time):
    """And calls of what it decorates may overlap."""
    session = Session(1)

    @retry(session.generator)()
    async def work(seconds):
        await anyio.sleep(seconds)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(work, 5)
        tasks.start_soon(work, 2)
    assert session.log == ["failed", "open", "open", "closed", "closed"]

    @retry(session.plain_generator)()
    def plain_work():
        return "done"

    assert plain_work() == plain_work() == "done"


@anyio_test
async def test_other_attributes_are_those_of_the_context_manager(virtual_time):
    session = Session(0)
    assert retry(session.class_based)("me").name == "me"
    assert repr(retry(session.class_based)()) == "<retried entry of Session.class_based>"
