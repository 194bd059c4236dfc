"""A value that is refused is shown in the error's words, whatever its `repr` does."""

from __future__ import annotations

import dataclasses

import pytest

from penstock import (
    Adaptive,
    Batcher,
    Budget,
    Keyed,
    Limiter,
    PenstockError,
    Pipeline,
    Rate,
    Retry,
    amap,
    calendar,
    circuit_breaker,
    constant,
    exponential,
    fallback,
    hedge,
    in_flight,
    pausing,
    sliding,
    timeout,
    turn,
)
from penstock.http import limit_http_client
from penstock.llm import limit_client
from penstock.stores import SQLiteStore
from penstock.testing import fast_retries


class Shy:
    __hash__ = None

    def __repr__(self):
        raise RuntimeError("nobody may see this")


class Endless:
    __hash__ = None

    def __repr__(self):
        return "endless " * 100_000


def in_a_block(manager):
    with manager:
        pass


LIMITER = Limiter(requests="100/s")
REFUSALS = {
    "limit": lambda value: Limiter(requests=value),
    "rate": lambda value: Rate(value, per=1),
    "sliding": lambda value: sliding(1, value),
    "calendar": lambda value: calendar(1, value),
    "in_flight": in_flight,
    "name": lambda value: Limiter(requests="1/s", name=value),
    "max_queue": lambda value: Limiter(requests="1/s", max_queue=value),
    "ageing": lambda value: Limiter(requests="1/s", ageing=value),
    "weight": lambda value: Limiter(requests="1/s", flow_weights={"alice": value}),
    "store": lambda value: Limiter(requests="1/s", store=value),
    "lease": lambda value: Limiter(requests="1/s", lease=value),
    "path": SQLiteStore,
    "cost": lambda value: LIMITER.acquire_nowait(requests=value),
    "max_wait": lambda value: LIMITER(max_wait=value),
    "priority": lambda value: LIMITER(priority=value),
    "flow": lambda value: LIMITER(flow=value),
    "block": lambda value: LIMITER(block=value),
    "mapping": LIMITER,
    "settle": lambda value: LIMITER(settle=value),
    "pause": LIMITER.pause,
    "observe": lambda value: LIMITER.observe(remaining={"requests": value}),
    "key": lambda value: Keyed(requests="1/s")[value],
    "turn": lambda value: in_a_block(turn(priority=value)),
    "on": lambda value: Retry(on=value),
    "attempts": lambda value: Retry(on=OSError, attempts=value),
    "within": lambda value: Retry(on=OSError, within=value),
    "backoff": lambda value: Retry(on=OSError, backoff=value),
    "budget": lambda value: Budget(ratio=value),
    "constant": constant,
    "factor": lambda value: exponential(factor=value),
    "fast_retries": lambda value: in_a_block(fast_retries(attempts=value)),
    "timeout": timeout,
    "hedge": hedge,
    "fallback": lambda value: fallback("nothing", on=value),
    "pausing": lambda value: pausing(value, on=OSError),
    "breaker": lambda value: circuit_breaker(on=OSError, failures=value),
    "adaptive": lambda value: Adaptive(value, on=OSError),
    "layer": Pipeline,
    "send": lambda value: Batcher(value, max_items=1),
    "amap": lambda value: amap(value, [1], in_flight=1),
    "limits": lambda value: limit_client(None, value),
    "tier": lambda value: limit_client(None, tier=value),
    "limiter": lambda value: limit_http_client(None, value),
}


@pytest.mark.parametrize("value", [Shy(), Endless()], ids=["whose repr raises", "whose repr has a megabyte"])
@pytest.mark.parametrize("refuse", REFUSALS.values(), ids=list(REFUSALS))
def test_a_value_is_refused_in_our_words(refuse, value):
    """Neither what its `repr` raises, nor a megabyte of it."""
    with pytest.raises((PenstockError, ValueError, TypeError)) as refused:
        refuse(value)
    assert len(str(refused.value)) < 1_000


def test_a_number_of_too_many_digits_is_refused_in_our_words():
    """Python shows no int of more than 4,300 digits."""
    with pytest.raises(PenstockError, match="the cost of requests must be a finite number"):
        LIMITER.acquire_nowait(requests=10**5_000)


def test_a_pipeline_can_be_replaced():
    """As any frozen dataclass."""
    pipe = Pipeline(Retry(on=OSError), timeout(5))
    assert dataclasses.replace(pipe) == pipe
    assert dataclasses.replace(pipe, layers=(timeout(5),)) == Pipeline(timeout(5))
