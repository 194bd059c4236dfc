"""Nothing that is read from a user's exception costs the exception."""

from __future__ import annotations

import asyncio
import functools
import logging
import math
from fractions import Fraction
from types import SimpleNamespace

import pytest

from penstock.events import GaveUp
from penstock.retry import Retry, constant, retry_after
from tests.hostile import NAMES, RAISED, error_whose

AT_ONCE = {"attempts": 3, "backoff": constant(0)}


async def through_call(retry, fail):
    await retry.call(fail)


async def through_call_sync(retry, fail):
    retry.call_sync(fail)


async def through_decorator(retry, fail):
    async def function():
        fail()

    await retry(function)()


async def through_plain_decorator(retry, fail):
    retry(fail)()


async def through_loop(retry, fail):
    async for attempt in retry:
        with attempt:
            fail()


async def through_thread_loop(retry, fail):
    for attempt in retry:
        with attempt:
            fail()


async def through_stream(retry, fail):
    @retry
    async def items():
        fail()
        yield

    async for _ in items():
        pass


FORMS = [
    through_call,
    through_call_sync,
    through_decorator,
    through_plain_decorator,
    through_loop,
    through_thread_loop,
    through_stream,
]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.anyio
async def test_an_error_that_cannot_be_read_is_retried_and_comes_through(name, form, virtual_time):
    for raised in RAISED:
        hostile, born = error_whose(name, raised), []
        with pytest.raises(hostile) as caught:
            await form(Retry(on=hostile, **AT_ONCE), functools.partial(raise_new, hostile, born))
        assert caught.value is born[2]
        assert len(born) == 3


def raise_new(kind, born):
    born.append(kind())
    raise born[-1]


@pytest.mark.parametrize("name", ["headers", "status_code"])
@pytest.mark.parametrize("raised", RAISED)
@pytest.mark.anyio
async def test_a_response_that_cannot_be_read_says_nothing(name, raised, virtual_time):
    def fail(_):
        raise raised

    error = ConnectionError()
    attributes = {"headers": {"retry-after": "7"}, "status_code": 429} | {name: property(fail)}
    error.response = type("Response", (), attributes)()
    assert retry_after(error) == (7 if name == "status_code" else None)

    calls = 0

    async def fetch():
        nonlocal calls
        calls += 1
        raise error

    with pytest.raises(ConnectionError):
        await Retry(on=ConnectionError, **AT_ONCE).call(fetch)
    assert calls == 3


class Raising:
    """A mapping of headers that raises whatever is asked of it."""

    def __init__(self, raised):
        self.raised = raised

    def items(self):
        raise self.raised

    def __str__(self):
        raise self.raised

    __float__ = __int__ = __index__ = __lt__ = __gt__ = __le__ = __ge__ = __bool__ = lambda self, *_: self.items()


@pytest.mark.parametrize("raised", RAISED)
@pytest.mark.parametrize(
    "make",
    [
        lambda strange: {"retry_after": strange},
        lambda strange: {"headers": strange},
        lambda strange: {"response": strange},
        lambda strange: {"response": SimpleNamespace(headers=strange)},
        lambda strange: {"headers": {strange: "7"}},
        lambda strange: {"headers": {"retry-after": strange}},
        lambda strange: {"response": {"ResponseMetadata": strange, "headers": strange}},
        lambda strange: {"response": SimpleNamespace(status_code=strange, headers={})},
    ],
)
def test_strange_objects_in_the_place_of_headers_say_nothing(make, raised):
    error = ConnectionError()
    vars(error).update(make(Raising(raised)))
    assert retry_after(error) is None


@pytest.mark.parametrize("signal", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_a_signal_that_arrives_while_an_error_is_read_is_not_swallowed(signal):
    for name in ("retry_after", "response", "__repr__", "add_note"):
        hostile = error_whose(name, signal)
        with pytest.raises(signal):
            Retry(on=hostile, **AT_ONCE).call_sync(_raising(hostile()))


def _raising(error):
    def fail():
        raise error

    return fail


def test_an_error_whose_repr_fails_is_named_in_the_notes():
    hostile = error_whose("__repr__", ZeroDivisionError)
    with pytest.raises(hostile) as caught:
        Retry(on=hostile, **AT_ONCE).call_sync(functools.partial(raise_new, hostile, []))
    assert "<Hostile, whose repr raised ZeroDivisionError>" in caught.value.__notes__[1]


@pytest.mark.parametrize("raised", [ZeroDivisionError, AttributeError])
def test_an_on_that_raises_does_not_replace_the_error(raised, caplog):
    """`on=lambda error: error.status >= 500` meets an error that has no status: the caller gets the error itself."""

    def broken(_):
        raise raised

    events, calls = [], []

    def fail():
        calls.append(1)
        raise ConnectionError("mine")

    with pytest.raises(ConnectionError, match="mine") as caught:
        Retry(on=broken, on_event=events.append).call_sync(fail)
    assert calls == [1]
    assert caught.value.__notes__ == [
        f"penstock: {fail.__qualname__}: `on` raised {raised()!r} when asked about this error"
    ]
    assert isinstance(events[-1], GaveUp)
    assert [(record.name, record.levelno) for record in caplog.records] == [("penstock.retry", logging.ERROR)]
    assert "broken" in caplog.text


@pytest.mark.parametrize("raised", [KeyError, asyncio.CancelledError])
def test_a_hint_that_raises_does_not_replace_the_error(raised, caplog):
    """`hint=lambda error: float(error.response.headers["retry-after"])` meets a response without that header."""

    def broken(_):
        raise raised

    calls = []

    def fail():
        calls.append(1)
        raise ConnectionError

    with pytest.raises(ConnectionError):
        Retry(on=ConnectionError, hint=broken, **AT_ONCE).call_sync(fail)
    assert len(calls) == 3
    assert "hint" in caplog.text


@pytest.mark.parametrize("answer", ["soon", b"later", object(), [], 5j, True, 10**400], ids=repr)
def test_a_hint_that_is_no_time_does_not_replace_the_error(answer):
    calls = []

    def fail():
        calls.append(1)
        raise ConnectionError

    with pytest.raises(ConnectionError):
        Retry(on=ConnectionError, hint=lambda _: answer, **AT_ONCE).call_sync(fail)
    assert len(calls) == 3


@pytest.mark.parametrize("nonsense", [None, -1, math.inf, math.nan, Fraction(-1, 2)])
def test_an_on_result_that_raises_or_makes_no_sense_does_not_cost_the_result(caplog, nonsense):
    """It may have been paid for."""

    def broken(_):
        if nonsense is None:
            raise ZeroDivisionError
        return nonsense

    assert Retry(on=ConnectionError, on_result=broken).call_sync(lambda: "reply") == "reply"
    assert "on_result" in caplog.text
