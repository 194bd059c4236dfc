"""Which functions a layer refuses, and what it says."""

from __future__ import annotations

import contextlib

import pytest

from penstock.pipeline import circuit_breaker, fallback, hedge, timeout
from tests.pipeline.calls import echo

anyio_test = pytest.mark.anyio


def _items():
    yield 1


async def _aitems():
    yield 1


@pytest.mark.parametrize(
    ("layer", "function", "message"),
    [
        (
            timeout(5),
            abs,
            "timeout(5) cannot be put around abs, which is not an async function: only what awaits can be cut",
        ),
        (
            timeout(5),
            _aitems,
            "timeout(5) cannot be put around _aitems, which is an async generator: only what awaits can be cut",
        ),
        (
            hedge(1),
            abs,
            (
                "hedge(1) cannot be put around abs, which is not an async function: "
                "a second attempt beside the first needs an event loop"
            ),
        ),
        (
            fallback(1, on=OSError),
            _items,
            (
                "fallback(1, on=OSError) cannot be put around _items, which is a generator: "
                "when it fails, items may have been handed out already"
            ),
        ),
        (
            fallback(echo, on=OSError),
            abs,
            "fallback(echo, on=OSError) cannot be put around abs, which is not an async function: it could not await",
        ),
        (circuit_breaker(on=OSError), _items, "which is a generator: put it around what that calls"),
    ],
)
def test_a_layer_refuses_what_it_cannot_be_put_around(layer, function, message):
    with pytest.raises(TypeError) as caught:
        layer(function)
    assert message in str(caught.value)


@pytest.mark.parametrize("block", [contextlib.contextmanager(_items), contextlib.asynccontextmanager(_aitems)])
@pytest.mark.parametrize("layer", [timeout(5), hedge(1), fallback(1, on=OSError)], ids=repr)
def test_a_block_is_refused_by_what_would_have_to_run_it_again_or_cut_it(layer, block):
    with pytest.raises(TypeError, match=r"cannot be put around _a?items, which is an? (async )?context manager: "):
        layer(block)


def test_a_plain_callable_is_told_the_way_out():
    with pytest.raises(
        TypeError, match=r"If what it returns is to be awaited, decorate an async function that awaits it"
    ):
        timeout(5)(lambda: echo(1))
