"""What a batcher is given: functions, numbers of all kinds, and what it refuses."""

# ruff: noqa: PLW0108 - a lambda around an async function is what is tested

from __future__ import annotations

import contextlib
import copy
import functools
import gc
import math
import pickle
import weakref
from datetime import timedelta
from decimal import Decimal
from fractions import Fraction

import anyio
import pytest

from penstock import Batcher, Limiter, testing
from tests.batching.service import Service, got, outcomes

pytestmark = pytest.mark.anyio


async def yes(_):
    return True


class Sdk:
    """Its methods are plain functions around async ones."""

    def __init__(self, service):
        self.service = service

    def send(self, items):
        return self.service(items)


@pytest.mark.parametrize("make", [lambda service: Sdk(service).send, lambda service: lambda items: service(items)])
async def test_send_may_be_a_plain_callable_that_returns_an_awaitable(virtual_time, make):
    service = Service()
    for send in (make(service), functools.partial(make(service))):
        assert await outcomes(Batcher(send), "ab") == got("ab")


@contextlib.asynccontextmanager
async def session(items):
    yield items


def generate(items):
    yield from items


@pytest.mark.parametrize(
    ("send", "message"),
    [
        (5, r"Batcher\(5\): an async function of a list of items is needed"),
        (session, r"Batcher\(session\): send must be an async function .* a generator or a context manager"),
        (contextlib.contextmanager(generate), r"a generator or a context manager"),
        (generate, r"a generator or a context manager"),
    ],
)
def test_what_sends_nothing_is_refused_at_once(send, message):
    with pytest.raises(TypeError, match=message):
        Batcher(send)


@pytest.mark.parametrize("option", ["cost", "index", "split_on"])
def test_only_send_is_awaited(option):
    with pytest.raises(
        TypeError, match=rf"Batcher\({option}=yes\): it is called and not awaited; give a plain function"
    ):
        Batcher(Service(), **{option: yes})
    with pytest.raises(TypeError, match=r"Batcher\(cost\['tokens'\]=yes\): it is called and not awaited"):
        Batcher(Service(), cost={"tokens": yes})


@pytest.mark.parametrize(
    "options",
    [
        {"cost": lambda item: yes(item), "max_cost": {"tokens": 5}},
        {"cost": {"tokens": lambda item: yes(item)}, "max_cost": {"tokens": 5}},
        {"cost": lambda item: {"tokens": yes(item)}, "max_cost": {"tokens": 5}},
        {"index": lambda entry: yes(entry)},
        {"split_on": lambda error: yes(error)},
    ],
    ids=str,
)
async def test_an_answer_that_nobody_would_await_is_refused(virtual_time, options):
    """A lambda around an async function, for example: its coroutine is neither a number nor a yes."""
    poison = "ab" if "split_on" in options else ""
    for error in await outcomes(Batcher(Service(poison=poison), **options), "ab"):
        assert isinstance(error, TypeError)
        assert "returned coroutine: it is called and not awaited; give a plain function" in str(error)


class Small:
    """A number of 16 bits, as numpy has them: a sum with it forgets what it cannot hold."""

    def __init__(self, value):
        self.value = value

    def __float__(self):
        return float(self.value)


@pytest.mark.parametrize("number", [Decimal, Fraction, Small])
async def test_a_cost_is_any_kind_of_number(virtual_time, number):
    limiter = Limiter(requests="10/s", tokens="1000/s")
    service = Service()
    batcher = Batcher(service, cost=lambda _: number(3), max_cost={"tokens": number(7)}, limiter=limiter)
    assert await outcomes(batcher, "abc") == got("abc")
    assert [len(items) for items in service.calls] == [2, 1]


@pytest.mark.parametrize("cost", [-1, math.nan, math.inf, "5", 1j, None])
async def test_a_cost_that_is_no_amount_is_refused(virtual_time, cost):
    with pytest.raises(ValueError, match="the cost of an item must be a finite number of tokens, 0 or more, not"):
        await Batcher(Service(), max_cost={"tokens": 10}, cost={"tokens": cost})("a")


async def test_max_delay_may_be_a_timedelta(virtual_time):
    service = Service()
    await Batcher(service, max_delay=timedelta(seconds=2))("a")
    assert service.times == [2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_items": 1.5}, "max_items must be 1 or more, not 1.5"),
        ({"max_items": True}, "max_items must be 1 or more, not True"),
        ({"max_items": None}, "max_items must be 1 or more, not None"),
        ({"max_delay": "1"}, r"max_delay='1'\): seconds or a timedelta, 0 or more and finite"),
        ({"max_delay": timedelta(seconds=-1)}, "seconds or a timedelta, 0 or more"),
        ({"max_cost": 5}, r"Batcher\(max_cost=5\): a mapping of units to amounts"),
        ({"max_cost": {"tokens": "5"}}, "max_cost must be a finite number of tokens above 0, not '5'"),
        ({"max_cost": {"tokens": math.nan}}, "max_cost must be a finite number of tokens above 0, not nan"),
    ],
)
def test_a_bound_that_is_no_number_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Batcher(Service(), **options)


def test_split_on_takes_types_of_exceptions():
    for wrong in (int, (ValueError, 5), (ValueError, str)):
        with pytest.raises(TypeError, match=r"Batcher\(split_on=.*\): exception types, or a function of the exception"):
            Batcher(Service(), split_on=wrong)


def test_a_copy_is_the_batcher_itself():
    batcher = Batcher(Service().__call__, max_items=5)
    assert copy.deepcopy(batcher) is copy.copy(batcher) is batcher
    with pytest.raises(
        TypeError, match=r"Batcher\(Service\.__call__, max_items=5\) cannot be pickled: its state belongs to"
    ):
        pickle.dumps(batcher)


class Unspeakable(Exception):  # noqa: N818
    """None of its properties can be read."""

    @property
    def response(self):
        raise AssertionError

    status = status_code = request = retry_after = response

    def __str__(self):
        raise AssertionError

    __repr__ = __str__


async def test_an_error_that_cannot_be_looked_at_is_raised_itself(virtual_time):
    async def send(items):
        raise Unspeakable

    assert [type(error) for error in await outcomes(Batcher(send), "ab")] == [Unspeakable, Unspeakable]


async def test_an_item_that_cannot_be_shown_is_told_of(virtual_time):
    class Item:
        def __repr__(self):
            raise AssertionError

    with pytest.raises(ValueError, match="the cost of <Item, whose repr raised AssertionError> is not known"):
        await Batcher(Service(), max_cost={"tokens": 10})(Item())


def test_text_that_is_no_unicode_has_a_cost():
    """A lone surrogate, as `os.fsdecode` makes them."""

    async def main():
        return await Batcher(Service(), max_cost={"tokens": 10})("\udcff")

    assert testing.run(main) == ("got", "\udcff")


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_dropped_batcher_is_gone_at_once(backend):
    """Not when the garbage collector comes: it may hold a model, or a connection."""
    dropped = []

    async def main():
        service = Service(poison="b")
        batcher = Batcher(service)
        dropped.extend([weakref.ref(service), weakref.ref(batcher)])

        async def call(item):
            with contextlib.suppress(ValueError):
                await batcher(item)

        async with anyio.create_task_group() as tasks:
            for item in "abc":
                tasks.start_soon(call, item)

    gc.collect()
    gc.disable()
    try:
        testing.run(main, backend=backend)
        assert [ref() for ref in dropped] == [None, None]
    finally:
        gc.enable()
