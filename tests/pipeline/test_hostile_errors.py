"""Whatever a user's exception raises when it is looked at, layers let the exception itself through."""

from __future__ import annotations

import itertools
import logging

import pytest

from penstock import (
    Adaptive,
    Batcher,
    Limiter,
    Pipeline,
    amap,
    circuit_breaker,
    fallback,
    hedge,
    pausing,
    per_second,
    timeout,
)
from tests.hostile import NAMES, RAISED, error_whose

pytestmark = pytest.mark.anyio

LIMITER = Limiter(requests=per_second(1e6))


def ask_all(error):
    """A classifier that looks at everything."""
    return bool(error.response or error.retry_after or error.headers or error == error or str(error))  # noqa: PLR0124


async def through_batcher(fail):
    async def send(items):
        fail()

    await Batcher(send, max_items=1)(1)


async def through_batcher_that_splits(fail):
    async def send(items):
        fail()

    await Batcher(send, max_items=1, split_on=ask_all)(1)


async def through_amap(fail):
    async def call(item):
        fail()

    async for _ in amap(call, [1, 2]):
        pass


def layer(layer):
    async def through(fail):
        async def call():
            fail()

        await layer(call)()

    return through


WAYS = {
    "a limiter": layer(LIMITER),
    "a limiter with settle": layer(LIMITER(settle=lambda reply: {"requests": 1})),
    "pausing": layer(pausing(LIMITER, on=Exception, max_pause=0.01)),
    "pausing that asks": layer(pausing(LIMITER, on=ask_all, max_pause=0.01)),
    "a breaker": layer(circuit_breaker(on=Exception, failures=10_000)),
    "a breaker that asks": layer(circuit_breaker(on=ask_all, failures=10_000)),
    "a fallback that asks": layer(fallback(None, on=lambda error: ask_all(error) and False)),
    "a hedge": layer(hedge(after=10)),
    "a timeout": layer(timeout(10)),
    "adaptive": layer(Adaptive(Limiter(requests=per_second(1e6)), on=ask_all)),
    "a pipeline": layer(Pipeline(circuit_breaker(on=Exception, failures=10_000), pausing(LIMITER, on=ask_all), timeout(10))),
    "a batcher": through_batcher,
    "a batcher that splits": through_batcher_that_splits,
    "amap": through_amap,
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
async def test_an_error_that_cannot_be_read_comes_through(way, virtual_time):
    logging.disable(logging.CRITICAL)
    try:
        for name, raised in itertools.product(NAMES, RAISED):
            error = error_whose(name, raised)()

            def fail(error=error):
                raise error

            with pytest.raises(type(error)) as caught:
                await way(fail)
            assert caught.value is error
    finally:
        logging.disable(logging.NOTSET)
