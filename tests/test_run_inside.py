"""`run_inside`: a call of any kind of function runs inside a context manager from its beginning to its end."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import sys
import threading
import warnings

import anyio
import pytest

from penstock import testing
from penstock._introspect import to_be_awaited
from penstock._run_inside import run_inside
from penstock.errors import WouldBlockEventLoop


class Places:
    """A stand-in for a limiter: some places, a thread's entry that never waits, and an async entry that does."""

    def __init__(self, places=1):
        self.free = places
        self.most = self.inside = 0
        self.log = []

    def sync(self, _args=(), _kwargs=None):
        @contextlib.contextmanager
        def entered():
            if not self.free:
                raise WouldBlockEventLoop("a wait would block the loop")
            with self._held():
                yield "permit"

        return entered()

    def asynchronous(self, _args=(), _kwargs=None):
        @contextlib.asynccontextmanager
        async def entered():
            while not self.free:
                await anyio.sleep(1)
            with self._held():
                yield "permit"

        return entered()

    @contextlib.contextmanager
    def _held(self):
        self.free -= 1
        self.inside += 1
        self.most = max(self.most, self.inside)
        try:
            yield
        except BaseException as error:
            self.log.append(type(error))
            raise
        finally:
            self.free += 1
            self.inside -= 1

    def around(self, fn, **options):
        return run_inside(fn, self.sync, self.asynchronous, **options)


async def fetch(value="value"):
    await anyio.sleep(1)
    return value


class Session:
    """As SDKs have them: plain methods around async ones."""

    def get(self, value="value"):
        return fetch(value)

    def __call__(self, value="value"):
        return fetch(value)

    def future(self, value="value"):
        return asyncio.ensure_future(fetch(value))


PLAIN_CALLABLES = {
    "bound method": lambda: Session().get,
    "lambda": lambda: lambda value="value": fetch(value),
    "partial of a lambda": lambda: functools.partial(lambda value="value": fetch(value)),
    "callable object": Session,
    "partial of a method": lambda: functools.partial(Session().get),
}


@pytest.fixture(params=PLAIN_CALLABLES.values(), ids=PLAIN_CALLABLES)
def plain_callable(request):
    return request.param()


@pytest.mark.anyio
class TestPlainCallablesThatReturnAwaitables:
    async def test_each_call_is_inside_until_it_has_been_awaited(self, virtual_time, plain_callable):
        """Five at once through one place take five times as long as one."""
        places = Places()
        get = places.around(plain_callable)
        results = []

        async def one(number):
            results.append(await get(number))

        async with anyio.create_task_group() as tasks:
            for number in range(5):
                tasks.start_soon(one, number)
        assert sorted(results) == [0, 1, 2, 3, 4]
        assert (places.most, places.inside) == (1, 0)
        assert virtual_time.now() >= 5

    async def test_their_calls_can_be_tasks_themselves(self, virtual_time):
        places = Places()
        get = places.around(Session().get)
        async with anyio.create_task_group() as tasks:
            for number in range(5):
                tasks.start_soon(get, number)
        assert (places.most, places.inside) == (1, 0)

    async def test_the_result_is_seen_inside_and_not_the_coroutine(self, virtual_time):
        places, seen = Places(), []
        get = places.around(Session().get, seen=lambda permit, result: seen.append((permit, result, places.inside)))
        assert [await get(number) for number in (1, 2)] == [1, 2]
        assert seen == [("permit", 1, 1), ("permit", 2, 1)]

    async def test_its_error_is_seen_by_the_context_manager(self, virtual_time):
        async def fail():
            await anyio.sleep(1)
            raise KeyError

        places = Places()
        get = places.around(lambda: fail())  # noqa: PLW0108 - that is what is tested
        for _ in range(2):
            with pytest.raises(KeyError):
                await get()
        assert (places.log, places.inside) == ([KeyError, KeyError], 0)

    async def test_a_context_manager_that_never_waits_serves_async_calls_too(self, virtual_time):
        places = Places(5)
        get = run_inside(Session().get, places.sync)
        results = []

        async def one(number):
            results.append(await get(number))

        async with anyio.create_task_group() as tasks:
            for number in range(3):
                tasks.start_soon(one, number)
        assert (sorted(results), places.most, places.inside) == ([0, 1, 2], 3, 0)

    async def test_a_cancelled_call_leaves(self, virtual_time):
        places = Places()
        get = places.around(Session().get)
        for _ in range(2):
            with anyio.move_on_after(0.5):
                await get()
            assert places.inside == 0

    async def test_one_that_is_never_awaited_leaves_and_says_so(self):
        places = Places()
        get = places.around(Session().get)
        for _ in range(2):
            with pytest.warns(RuntimeWarning, match=r"Session\.get was never awaited"):
                get()
            gc.collect()
            assert places.inside == 0

    async def test_one_that_is_closed_leaves_in_silence(self):
        places = Places()
        get = places.around(Session().get)
        for _ in range(2):
            call = get()
            call.close()
            assert places.inside == 0
            with pytest.raises(RuntimeError, match="used already"):
                await call

    async def test_one_that_is_entered_is_seen_as_what_it_enters_and_only_once(self, virtual_time):
        seen = []

        class Connection:
            def __await__(self):
                return self.__aenter__().__await__()

            async def __aenter__(self):
                return "connected"

            async def __aexit__(self, *error):
                pass

        def connect():
            return Connection()

        call = run_inside(connect, Places().sync, Places().asynchronous, seen=lambda *what: seen.append(what))()
        assert repr(call).endswith("connect, to be awaited>")
        async with call as value:
            assert value == "connected"
        assert seen == [("permit", "connected")]
        with pytest.raises(RuntimeError, match="it can be entered once"):
            async with call:
                pass

    async def test_one_that_has_begun_can_be_closed(self, virtual_time):
        places = Places()
        call = places.around(Session().get)()
        with contextlib.suppress(StopIteration):
            call.send(None)
        call.close()
        assert places.inside == 0

    @pytest.mark.parametrize("how", ["closed", "forgotten"])
    async def test_one_that_is_not_awaited_leaves_once(self, how):
        """A context manager of a user's may count how often it is left."""
        left = []

        class Watch(contextlib.AbstractContextManager):
            def __exit__(self, *error):
                left.append(error[0])

        call = run_inside(Session().get, lambda *_: Watch())()
        if how == "closed":
            call.close()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            del call
            gc.collect()
        assert left == [GeneratorExit]

    async def test_it_can_be_awaited_once(self, virtual_time):
        call = Places().around(Session().get)()
        await call
        with pytest.raises(RuntimeError):
            await call

    async def test_the_first_call_is_refused_if_it_would_have_to_wait(self, virtual_time):
        """It may be a plain function: only its result would show. The error says the way out."""
        places = Places(0)
        with pytest.raises(WouldBlockEventLoop) as caught:
            places.around(Session().get)()
        assert "decorate an async function that awaits it" in caught.value.__notes__[0]

    async def test_what_aiohttp_returns_can_be_entered(self, virtual_time):
        """`async with get(url) as response`: inside until the block is left."""

        class Request:
            def __await__(self):
                return fetch().__await__()

            async def __aenter__(self):
                return await self

            async def __aexit__(self, *_):
                pass

        places = Places()
        get = places.around(lambda: Request())  # noqa: PLW0108
        for _ in range(2):
            async with get() as response:
                assert (response, places.inside) == ("value", 1)
                await anyio.sleep(1)
            assert places.inside == 0
            with pytest.raises(KeyError):
                async with get():
                    raise KeyError
            assert (places.inside, await get()) == (0, "value")

    async def test_what_can_only_be_awaited_is_not_entered(self):
        places = Places()
        get = places.around(Session().get)
        for _ in range(2):
            with pytest.raises(TypeError, match="await the call"):
                async with get():
                    pass
            assert places.inside == 0

    async def test_a_context_manager_out_of_a_lambda_is_refused(self):
        places = Places()

        @contextlib.asynccontextmanager
        async def session():
            yield

        with pytest.raises(TypeError, match="below @contextmanager or @asynccontextmanager"):
            places.around(lambda: session())()  # noqa: PLW0108
        assert places.inside == 0


@pytest.mark.parametrize("steps", [0, 1], ids=["before its first step", "while it runs"])
def test_a_task_that_is_cancelled_leaves(steps):
    async def main():
        places = Places()
        get = places.around(Session().get)
        for _ in range(2):
            task = asyncio.create_task(get())
            for _ in range(steps):
                await asyncio.sleep(0)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            assert places.inside == 0

    testing.run(main)


def test_a_future_is_awaited_too():
    async def main():
        places = Places()
        get = places.around(Session().future)
        assert await asyncio.gather(*[get(number) for number in range(3)]) == [0, 1, 2]
        assert (places.most, places.inside) == (1, 0)

    testing.run(main)


def test_a_coroutine_made_outside_a_loop_is_inside_until_it_has_run():
    places = Places()
    call = places.around(Session().get)("x")
    assert places.inside == 1

    async def main():
        return await call

    assert testing.run(main) == "x"
    assert places.inside == 0


def test_in_a_thread_what_could_be_awaited_is_a_value():
    """Dask's futures have `__await__`, and are used as they are where no loop runs."""

    class Future:
        def __await__(self):
            raise AssertionError

    places = Places()
    submit = places.around(lambda: Future())  # noqa: PLW0108
    assert isinstance(submit(), Future)
    assert (places.most, places.inside) == (1, 0)


def test_a_plain_function_is_entered_as_by_a_thread():
    places, seen = Places(), []
    assert places.around(lambda: places.inside, seen=lambda *both: seen.append(both))() == 1
    assert (places.inside, seen) == (0, [("permit", 1)])


def test_a_context_managers_call_is_its_block():
    places = Places()

    @places.around
    @contextlib.contextmanager
    def session():
        yield places.inside

    opened = session()
    assert places.inside == 0
    with opened as inside:
        assert (inside, places.inside) == (1, 1)
    assert places.inside == 0
    with pytest.raises(KeyError), session():
        raise KeyError
    assert (places.inside, places.log) == (0, [KeyError])


@pytest.mark.anyio
async def test_an_async_context_managers_call_is_its_block(virtual_time):
    places = Places()

    class Service:
        @places.around
        @contextlib.asynccontextmanager
        async def session(self):
            yield places.inside

    async def use():
        async with Service().session() as inside:
            assert inside == 1
            await anyio.sleep(1)

    async with anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(use)
    assert (places.most, places.inside) == (1, 0)


@pytest.mark.anyio
async def test_what_is_to_be_awaited_depends_on_the_loop(anyio_backend_name):
    class Future:
        def __await__(self):
            raise AssertionError

    call = fetch()
    assert to_be_awaited(call)
    assert to_be_awaited(Future())
    assert not to_be_awaited("value")
    in_thread = []
    thread = threading.Thread(target=lambda: in_thread.extend([to_be_awaited(call), to_be_awaited(Future())]))
    thread.start()
    thread.join()
    assert in_thread == [True, False]
    call.close()


def test_garbage_of_a_finished_call_says_nothing():
    async def main():
        get = Places().around(Session().get)
        await get()
        await get()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        testing.run(main)
        gc.collect()


def items(count):
    yield from range(count)


async def stream(count):
    for number in range(count):
        yield number


def test_a_generator_out_of_a_lambda_is_inside_until_it_ends():
    places = Places()
    get = places.around(lambda count: items(count))  # noqa: PLW0108
    numbers = get(2)
    assert (next(numbers), places.inside) == (0, 1)
    assert (list(numbers), places.inside) == ([1], 0)


@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize("end", ["closed", "collected"])
def test_a_generator_that_is_not_finished_leaves(begun, end):
    places = Places()
    numbers = places.around(lambda: items(2))()
    assert places.inside == 1
    if begun:
        next(numbers)
    if end == "closed":
        numbers.close()
    # From 3.12 on, what a generator holds that was closed before it began is let go of with the generator, and not
    # before.
    if end == "collected" or (not begun and sys.version_info >= (3, 12)):
        del numbers
    gc.collect()
    assert places.inside == 0


@pytest.mark.anyio
async def test_an_async_generator_out_of_a_lambda_is_inside_until_it_ends():
    places = Places()
    get = places.around(lambda count: stream(count))  # noqa: PLW0108
    numbers = get(2)
    assert (await anext(numbers), places.inside) == (0, 1)
    assert ([number async for number in numbers], places.inside) == ([1], 0)
    numbers = get(2)
    assert places.inside == 1
    await anext(numbers)
    await numbers.aclose()
    assert places.inside == 0
    get(2)
    gc.collect()
    assert places.inside == 0


def test_a_generators_error_is_seen_by_the_context_manager():
    def fail():
        yield 1
        raise KeyError

    places = Places()
    with pytest.raises(KeyError):
        list(places.around(lambda: fail())())  # noqa: PLW0108
    assert (places.log, places.inside) == ([KeyError], 0)
