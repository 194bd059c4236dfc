"""An error holds its frames. If the frames held the error too, only the garbage collector would free the caller's
objects.

Cancelled calls are not here: what anyio and asyncio raise then keeps its frames without any help of ours.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import logging
import weakref

import anyio
import pytest

from penstock.retry import Budget, Retry, constant, current_attempt

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("quick_collections")]


class Mine(Exception):  # noqa: N818
    pass


class Owned:
    """An object of the caller's, and what its life shows: whether the caller's frame was freed."""


@pytest.fixture
def no_collector(monkeypatch):
    monkeypatch.setattr(logging.getLogger("penstock.retry"), "disabled", True)  # pytest keeps the errors in its records
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def fail(*_args):
    raise Mine


def fail_chained():
    try:
        raise KeyError
    except KeyError as error:
        raise Mine from error


def fail_after_asking():
    attempt = current_attempt()
    assert attempt.number > 0
    assert (attempt.previous is None) == (attempt.number == 1)
    raise Mine


async def afail():
    await anyio.lowlevel.checkpoint()
    fail()


@contextlib.contextmanager
def manager():
    fail()
    yield


@contextlib.asynccontextmanager
async def amanager():
    fail()
    yield


async def stream(*_args):
    fail()
    yield


RETRIES = {
    "attempts": Retry(on=Mine, attempts=3, backoff=constant(0)),
    "within": Retry(on=Mine, within=0.5, backoff=constant(1)),
    "unretryable": Retry(on=KeyError),
    "on says no": Retry(on=lambda _: False),
    "on raises": Retry(on=lambda _: 1 / 0),
    "hint raises": Retry(on=Mine, attempts=3, hint=lambda _: 1 / 0, backoff=constant(0)),
    "hint": Retry(on=Mine, hint=lambda _: 1e9),
    "budget": Retry(on=Mine, budget=Budget(0, floor=0), backoff=constant(0)),
}
WAITS = {
    "waits": Retry(on=Mine, within=2.5, backoff=constant(1))
}  # in threads only: a sleep of trio keeps frames itself
NONSENSE = Retry(on=lambda _: -1)


def call_sync(retry):
    retry.call_sync(fail)


def call_sync_chained(retry):
    retry.call_sync(fail_chained)


def call_sync_that_asks(retry):
    retry.call_sync(fail_after_asking)


def decorator(retry):
    retry(fail)()


def consumed_argument(retry):
    retry.call_sync(fail, iter([1]))


def loop(retry):
    for attempt in retry:
        with attempt:
            fail()


def loop_with_a_chain(retry):
    for attempt in retry:
        with attempt:
            try:
                fail()
            except Mine as error:
                raise Mine from error


def entry(retry):
    with retry(manager)():
        pass


def entry_whose_body_fails(retry):
    with retry(contextlib.contextmanager(lambda: (yield)))():
        fail()


async def acall(retry):
    await retry.call(afail)


async def adecorator(retry):
    await retry(afail)()


async def awaited(retry):
    await retry(lambda: afail())()  # noqa: PLW0108


async def aloop(retry):
    async for attempt in retry:
        async with attempt:
            await afail()


async def aloop_by_with(retry):
    async for attempt in retry:
        with attempt:
            await afail()


async def aentry(retry):
    async with retry(amanager)():
        pass


async def aentry_whose_body_fails(retry):
    @contextlib.asynccontextmanager
    async def opened():
        yield

    async with retry(opened)():
        fail()


async def astream(retry):
    async for _ in retry(stream)():
        pass


async def nested(retry):
    await retry.call(functools.partial(retry.call, afail))


SYNC = [
    call_sync,
    call_sync_chained,
    call_sync_that_asks,
    decorator,
    consumed_argument,
    loop,
    loop_with_a_chain,
    entry,
    entry_whose_body_fails,
]
ASYNC = [
    acall,
    adecorator,
    awaited,
    aloop,
    aloop_by_with,
    aentry,
    aentry_whose_body_fails,
    astream,
    nested,
]


@pytest.mark.parametrize("name", [*RETRIES, *WAITS])
@pytest.mark.parametrize("form", SYNC)
def test_a_failed_call_frees_its_callers_frame_at_once(form, name, no_collector, thread_time):
    def caller():
        owned = Owned()
        born.append(weakref.ref(owned))
        form((RETRIES | WAITS)[name])

    born = []
    with contextlib.suppress(Mine):
        caller()
    assert born[0]() is None


@pytest.mark.parametrize("name", RETRIES)
@pytest.mark.parametrize("form", ASYNC)
async def test_a_failed_async_call_frees_its_callers_frame_at_once(form, name, no_collector, virtual_time):
    async def caller():
        owned = Owned()
        born.append(weakref.ref(owned))
        await form(RETRIES[name])

    born = []
    with contextlib.suppress(Mine):
        await caller()
    assert born[0]() is None


@pytest.mark.parametrize("form", [call_sync, decorator, loop, entry])
def test_a_classifier_that_answers_nonsense_frees_it_too(form, no_collector):
    def caller():
        owned = Owned()
        born.append(weakref.ref(owned))
        form(NONSENSE)

    born = []
    with contextlib.suppress(ValueError):
        caller()
    assert born[0]() is None


async def test_a_wait_that_would_block_the_event_loop_frees_it_too(no_collector, virtual_time):
    def caller(form):
        owned = Owned()
        born.append(weakref.ref(owned))
        form(Retry(on=Mine, backoff=constant(1)))

    born = []
    for form in (call_sync, decorator, loop):
        with contextlib.suppress(RuntimeError):
            caller(form)
        assert born.pop()() is None


def test_a_loop_that_succeeds_after_failures_frees_it_too(no_collector):
    def caller():
        owned = Owned()
        born.append(weakref.ref(owned))
        for attempt in Retry(on=Mine, backoff=constant(0)):
            with attempt:
                if attempt.number < 3:
                    fail()
        assert attempt.number == 3

    born = []
    caller()
    assert born[0]() is None


@pytest.mark.parametrize("raised", [KeyboardInterrupt, SystemExit])
def test_a_call_that_a_signal_ends_frees_it_too(raised, no_collector, monkeypatch):
    def interrupt(_):
        raise raised

    monkeypatch.setattr("time.sleep", interrupt)

    def caller(form):
        owned = Owned()
        born.append(weakref.ref(owned))
        form(Retry(on=Mine, backoff=constant(5)))

    born = []
    for form in (call_sync, decorator, loop, entry):
        with contextlib.suppress(raised):
            caller(form)
        assert born.pop()() is None
        assert current_attempt() is None
