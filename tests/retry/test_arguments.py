"""Arguments that can be read once only: a second attempt would silently send nothing."""

from __future__ import annotations

import functools
import io
import itertools

import pytest

from penstock.events import GaveUp
from penstock.retry import Retry, constant
from tests.retry.flaky import Flaky

anyio_test = pytest.mark.anyio

retry = Retry(on=ConnectionError, attempts=3, backoff=constant(0))


def generator():
    yield from "abc"


async def agenerator():
    for item in "abc":
        yield item


class Upload:
    """Reads a body, then fails; answers at the third attempt."""

    def __init__(self):
        self.sent = []

    def sync(self, body, *more, **options):
        self.sent.append(list(body))
        if len(self.sent) < 3:
            raise ConnectionError
        return "reply"

    async def __call__(self, body):
        self.sent.append([item async for item in body] if hasattr(body, "__aiter__") else list(body))
        if len(self.sent) < 3:
            raise ConnectionError
        return "reply"


ONE_SHOT = {
    "a generator": generator,
    "a list_iterator": lambda: iter(["a", "b", "c"]),
    "a map": lambda: map(str, "abc"),
    "a zip": lambda: zip("abc", "abc", strict=True),
    "a filter": lambda: filter(None, "abc"),
    "an enumerate": lambda: enumerate("abc"),
    "a chain": lambda: itertools.chain("abc"),
    "an islice": lambda: itertools.islice("abc", 3),
}


@pytest.mark.parametrize("kind", ONE_SHOT)
@anyio_test
async def test_an_argument_that_was_used_up_ends_the_call_with_a_note(kind, virtual_time):
    """And the caller gets the error itself."""
    for number, use in enumerate([retry.call_sync, lambda fn, body: retry(fn)(body)]):
        upload = Upload()
        with pytest.raises(ConnectionError) as caught:
            use(upload.sync, ONE_SHOT[kind]())
        assert len(upload.sent) == 1, number
        (note,) = caught.value.__notes__
        assert note == (
            "penstock: Upload.sync gave up after 1 attempt in 0 s: the last attempt used up the argument body, "
            f"{kind}, so another attempt would find nothing in it: pass a list, or make it inside the function"
        )
    upload = Upload()
    with pytest.raises(ConnectionError) as caught:
        await retry.call(upload, ONE_SHOT[kind]())
    assert len(upload.sent) == 1
    assert f"used up the argument body, {kind}," in caught.value.__notes__[0]


@anyio_test
async def test_an_async_generator_that_was_used_up_ends_the_call(virtual_time):
    for use in (retry.call, lambda fn, body: retry(fn)(body)):
        upload = Upload()
        with pytest.raises(ConnectionError) as caught:
            await use(upload, agenerator())
        assert upload.sent == [["a", "b", "c"]]
        assert "used up the argument body, an async generator," in caught.value.__notes__[0]


@anyio_test
async def test_a_coroutine_that_was_awaited_ends_the_call(virtual_time):
    """`retry.call(asyncio.wait_for, fetch(), 5)` makes one request, whatever the policy says."""
    flaky = Flaky(9)

    async def wait_for(awaitable):
        return await awaitable

    with pytest.raises(ConnectionError) as caught:
        await retry.call(wait_for, flaky())
    assert len(flaky.at) == 1
    assert "used up the argument awaitable, a coroutine," in caught.value.__notes__[0]


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda upload: retry.call_sync(upload.sync, body=generator()), "body"),
        (lambda upload: retry.call_sync(upload.sync, [], content=generator()), None),
        (lambda upload: retry.call_sync(lambda *_a, **k: upload.sync(k["content"]), content=generator()), "content"),
        (lambda upload: retry.call_sync(functools.partial(upload.sync, generator())), "body"),
        (lambda upload: retry.call_sync(functools.partial(upload.sync, body=generator())), "body"),
        (lambda upload: retry.call_sync(lambda *a: upload.sync(a[1]), 1, generator()), "2 of "),
    ],
    ids=["keyword", "not read", "any keyword", "partial", "partial keyword", "by number"],
)
def test_the_note_names_the_argument(call, name):
    upload = Upload()
    if name is None:
        assert call(upload) == "reply"
        return
    with pytest.raises(ConnectionError) as caught:
        call(upload)
    assert f"used up the argument {name}" in caught.value.__notes__[0]


@anyio_test
async def test_what_was_not_begun_can_be_sent_again(virtual_time):
    """The connection failed before the body was read."""

    async def fails_first(body, seen=[1, 1]):  # noqa: B006 - fails twice
        if seen and seen.pop():
            raise ConnectionError
        return [item async for item in body] if hasattr(body, "__aiter__") else list(body)

    def fails_first_sync(body, seen=[1, 1]):  # noqa: B006
        if seen and seen.pop():
            raise ConnectionError
        return list(body)

    def make_closure():
        letters = "abc"
        return (letter for letter in letters), (letter for letter in letters)

    assert retry.call_sync(fails_first_sync, generator()) == ["a", "b", "c"]
    assert await retry.call(fails_first, agenerator()) == ["a", "b", "c"]
    one, other = make_closure()
    assert await retry.call(functools.partial(fails_first, seen=[1, 1]), one) == ["a", "b", "c"]
    assert next(other) == "a"

    async def closure(items):
        async def inner():
            for item in items:
                yield item

        return await retry.call(functools.partial(fails_first, seen=[1, 1]), inner())

    assert await closure("xyz") == ["x", "y", "z"]


class Cursor:
    """Iterable once, as a database cursor is, and fit for any number of queries."""

    def __iter__(self):
        return self

    def __next__(self):
        raise StopIteration


@pytest.mark.parametrize(
    "argument", [[1, 2], (1, 2), "text", range(3), {"a": 1}, Cursor(), io.StringIO("x"), itertools.count(), itertools.repeat(1)], ids=repr
)  # fmt: skip
def test_other_arguments_are_passed_again(argument):
    flaky = Flaky(2)
    assert retry.call_sync(flaky.sync, argument) == "reply"
    assert len(flaky.at) == 3


@anyio_test
async def test_the_event_says_that_an_argument_was_consumed(virtual_time):
    events, upload = [], Upload()
    with pytest.raises(ConnectionError):
        await Retry(on=ConnectionError, on_event=events.append).call(upload, agenerator())
    assert isinstance(events[-1], GaveUp)
    assert events[-1].reason == "consumed"


@anyio_test
async def test_a_refused_result_is_returned_when_the_argument_was_consumed(virtual_time):
    calls = []

    async def send(body):
        calls.append(list(body))
        return "busy"

    assert (
        await Retry(on=ConnectionError, on_result=lambda _: True, backoff=constant(0)).call(send, generator()) == "busy"
    )
    assert calls == [["a", "b", "c"]]


@anyio_test
async def test_streams_and_context_managers_look_at_their_arguments_too(virtual_time):
    import contextlib

    calls = []

    @retry
    async def stream(body):
        calls.append(list(body))
        raise ConnectionError
        yield

    with pytest.raises(ConnectionError) as caught:
        await anext(stream(generator()))
    assert "used up the argument body, a generator," in caught.value.__notes__[0]

    @retry
    @contextlib.asynccontextmanager
    async def session(body):
        calls.append(list(body))
        raise ConnectionError
        yield

    with pytest.raises(ConnectionError) as caught:
        async with session(generator()):
            pass
    assert "used up the argument body, a generator," in caught.value.__notes__[0]
    assert len(calls) == 2


@pytest.mark.parametrize("arguments", [{}, {"on": OSError, "max_attempts": 3}])
def test_a_missing_and_an_unknown_argument_are_those_of_retry(arguments):
    """The fields are in a class below it, whose name says nothing to a user."""
    with pytest.raises(TypeError, match=r"^Retry\.__init__\(\)"):
        Retry(**arguments)
