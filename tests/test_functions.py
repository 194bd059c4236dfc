"""What a function is found to be, however it is wrapped."""

from __future__ import annotations

import contextlib
import functools

import pytest

from penstock import Limiter, Retry, per_second, timeout
from penstock._functions import kind_of, name_of
from penstock.pipeline import circuit_breaker, fallback, hedge


def plain():
    return "value"


async def fetch():
    return "value"


async def stream():
    yield "item"


def items():
    yield "item"


class Service:
    async def __call__(self):
        return "value"

    async def method(self):
        return "value"


def around(function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        return function(*args, **kwargs)

    return wrapper


@pytest.mark.parametrize(
    ("function", "kind"),
    [
        (plain, "sync"),
        (fetch, "async"),
        (stream, "stream"),
        (items, "generator"),
        (functools.partial(fetch), "async"),
        (Service(), "async"),
        (Service().method, "async"),
        (functools.partial(Service()), "async"),
        (functools.partial(functools.partial(stream)), "stream"),
        (around(fetch), "async"),
        (functools.partial(around(fetch)), "async"),
        (contextlib.contextmanager(items), "sync"),
        (contextlib.asynccontextmanager(stream), "sync"),
        (len, "sync"),
        (Service, "sync"),
    ],
    ids=lambda value: value if isinstance(value, str) else name_of(value),
)
def test_a_function_is_seen_for_what_calling_it_gives(function, kind):
    """Through partials, objects that can be called, and plain functions around async ones; a context manager is no generator."""
    assert kind_of(function) == kind


@pytest.mark.parametrize(
    "decorator",
    [
        Retry(on=OSError),
        timeout(1),
        fallback(1, on=OSError),
        hedge(1),
        circuit_breaker(on=OSError),
        Limiter(requests="1/s"),
    ],
    ids=name_of,
)
def test_what_cannot_be_called_is_refused_at_decoration(decorator):
    """And not when it is called; above `@staticmethod` a decorator would even change what a method is given."""
    for wrong in (classmethod(fetch), staticmethod(fetch), 5):
        with pytest.raises(TypeError, match=r"classmethod|staticmethod|5"):
            decorator(wrong)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (classmethod(fetch), "fetch is a classmethod already: put the decorator below @classmethod"),
        (staticmethod(fetch), "fetch is a staticmethod already: put the decorator below @staticmethod"),
        (5, "5 is no function"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_no_function_is_refused_by_name(wrong, message):
    with pytest.raises(TypeError) as caught:
        kind_of(wrong)
    assert str(caught.value) == message


def test_a_limited_context_manager_is_charged_when_it_is_entered():
    """`@contextmanager` hides a generator function, but what it returns is to be entered, not iterated."""
    limiter = Limiter(requests=per_second(2))

    @limiter
    @contextlib.contextmanager
    def session():
        yield "open"

    with session() as opened:
        assert opened == "open"
    assert limiter.statistics().granted == 1


def test_a_name_is_that_of_the_function_inside():
    assert name_of(functools.partial(fetch)) == "fetch"
    assert name_of(Service()) == "Service"
