"""`fallback`: something else answers when a call fails."""

from __future__ import annotations

import functools

import anyio
import pytest

from penstock.pipeline import fallback
from tests.pipeline.calls import echo, raises, stuck

anyio_test = pytest.mark.anyio


@anyio_test
async def test_a_fallback_answers_when_the_call_fails():
    fail = raises(OSError())
    assert await fallback("sorry", on=OSError)(fail)(1) == "sorry"
    assert await fallback(None, on=OSError)(fail)(1) is None
    assert await fallback(echo, on=lambda error: isinstance(error, OSError))(fail)("asked") == "asked"
    assert await fallback(str.upper, on=OSError)(fail)("asked") == "ASKED"
    assert (
        await fallback(lambda value: echo(value + 1), on=OSError)(fail)(1) == 2
    )  # a plain function around an async one
    assert await fallback("sorry", on=OSError)(echo)(1) == 1
    with pytest.raises(OSError):
        await fallback("sorry", on=KeyError)(fail)(1)


def test_a_fallback_of_a_sync_function():
    def fail(value):
        raise KeyError(value)

    assert fallback("sorry", on=LookupError)(fail)(1) == "sorry"
    assert fallback(str, on=LookupError)(fail)(1) == "1"
    assert fallback("sorry", on=LookupError)(abs)(-1) == 1
    with pytest.raises(KeyError):
        fallback("sorry", on=OSError)(fail)(1)


@anyio_test
async def test_a_fallback_does_not_hide_cancellation(virtual_time):
    with anyio.move_on_after(1) as scope:
        await fallback("sorry", on=lambda _: True)(stuck)()
    assert scope.cancelled_caught


@anyio_test
async def test_a_plain_callable_that_returns_an_awaitable_is_answered_for(virtual_time):
    """What it returned fails when it is awaited, and not before."""
    fail = raises(OSError())
    for plain in (lambda *args: fail(*args), functools.partial(lambda *args: fail(*args))):  # noqa: PLW0108
        assert await fallback("sorry", on=OSError)(plain)(1) == "sorry"
        assert await fallback(lambda value: echo(value), on=OSError)(plain)(1) == 1  # noqa: PLW0108
        with pytest.raises(OSError):
            await fallback("sorry", on=KeyError)(plain)(1)


def test_a_sync_function_has_no_answer_that_must_be_awaited():
    def fail(*_):
        raise OSError

    with pytest.raises(TypeError, match="returned an awaitable: nobody would await it"):
        fallback(lambda value: echo(value), on=OSError)(fail)(1)  # noqa: PLW0108


def test_a_classifier_that_breaks_does_not_cost_the_error():
    error = KeyError("mine")

    def fail():
        raise error

    with pytest.raises(KeyError) as caught:
        fallback("sorry", on=lambda error: error.status_code == 500)(fail)()
    assert caught.value is error
    assert "fallback: `on` raised AttributeError" in error.__notes__[0]


class _Later:
    def __await__(self):
        yield


@pytest.mark.parametrize("answer", [lambda: echo(True), _Later], ids=["a coroutine", "another"])
def test_a_classifier_that_returns_an_awaitable_is_refused(answer):
    def fail():
        raise OSError

    with pytest.raises(TypeError, match="not awaited: give a plain function"):
        fallback("sorry", on=lambda _: answer())(fail)()


def test_a_plain_callable_that_returns_a_generator_is_refused():
    """Like a generator function: when it fails, items may have been handed out already."""

    def items():
        yield 1
        raise OSError

    with pytest.raises(TypeError, match=r"cannot answer for .*<lambda>, which returned a generator: it fails later"):
        fallback([], on=OSError)(lambda: items())()  # noqa: PLW0108
