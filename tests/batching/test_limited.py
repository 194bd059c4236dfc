"""Batches that a limiter charges."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import chain

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock import Limiter, MissingUnit, QueueFull, Unsatisfiable, in_flight, per_minute, testing
from penstock.batching import Batcher
from penstock.errors import StoreError, UnknownUnit
from tests.batching.service import Callers, Service, got, outcomes

pytestmark = pytest.mark.anyio


async def test_a_batch_goes_at_once_while_the_limiter_has_capacity(virtual_time):
    service = Service()
    batcher = Batcher(service, max_delay=60, limiter=Limiter(requests=per_minute(10)))
    await batcher("a")
    assert service.times == [0]


async def test_a_batch_grows_while_the_limiter_is_blocked(virtual_time):
    """Bound by requests with tokens to spare: larger batches, as the guide to rate limits asks for."""
    service = Service()
    limiter = Limiter(requests="1/10s", tokens=per_minute(90_000))
    batcher = Batcher(service, cost=lambda item: {"tokens": 10}, limiter=limiter, max_delay=0.01)
    async with anyio.create_task_group() as tasks:
        for item in range(160):
            tasks.start_soon(batcher, item)
            await anyio.sleep(0.13)
    assert service.times == pytest.approx([0, 10, 20, 30])
    assert [len(call) for call in service.calls] == [1, 76, 77, 6]
    assert list(chain(*service.calls)) == list(range(160))


async def test_bound_by_tokens_batches_are_small_and_the_tokens_used_up(virtual_time):
    """With requests to spare nothing is won by waiting for company."""
    service = Service()
    limiter = Limiter(requests=per_minute(6_000), tokens="10/s")
    batcher = Batcher(service, cost=lambda item: {"tokens": 5}, limiter=limiter)
    await outcomes(batcher, list(range(42)))
    assert virtual_time.now() == pytest.approx(20)  # 210 tokens: 10 at once, then 10 a second
    assert sorted(chain(*service.calls)) == list(range(42))
    assert max(map(len, service.calls)) == 2


@pytest.mark.parametrize("gap", [0, 0.01], ids=["all at once", "one after another"])
async def test_no_item_waits_for_the_tokens_of_a_later_one(virtual_time, gap):
    """A backlog of a minute's tokens went as one batch, after a minute."""
    service = Service()
    limiter = Limiter(requests=per_minute(600), tokens=per_minute(600))
    limiter.acquire_nowait(tokens=600)
    batcher = Batcher(service, cost={"tokens": 20}, limiter=limiter)
    waits = []

    async def call(item):
        began = virtual_time.now()
        await batcher(item)
        waits.append(virtual_time.now() - began)

    async with anyio.create_task_group() as tasks:
        for item in range(30):
            tasks.start_soon(call, item)
            await anyio.sleep(gap)
    assert waits == pytest.approx([2 * (item + 1) - gap * item for item in range(30)], abs=1e-6)
    assert list(chain(*service.calls)) == list(range(30))


async def test_where_requests_and_tokens_are_short_both_are_used_up(virtual_time):
    service = Service()
    limiter = Limiter(requests="1/s burst 1", tokens="30/s burst 90")
    limiter.acquire_nowait(tokens=90)
    batcher = Batcher(service, cost={"tokens": 10}, limiter=limiter)
    await outcomes(batcher, list(range(60)))
    assert virtual_time.now() == pytest.approx(20)
    assert max(map(len, service.calls)) == 3


async def test_the_limiter_is_charged_one_request_and_the_cost_of_all_items(virtual_time):
    limiter = Limiter(requests=per_minute(60), tokens=per_minute(1_000), calls=in_flight(4))
    batcher = Batcher(Service(seconds=1), cost={"tokens": len}, limiter=limiter)
    await outcomes(batcher, ["aa", "bbb", "cccc"])
    levels = {unit: limit.level for unit, limit in limiter.statistics().limits.items()}
    assert levels["requests"] == pytest.approx(60)  # one, and a second has passed
    assert levels["tokens"] == pytest.approx(1_000)
    assert limiter.statistics().granted == 1
    assert limiter.statistics().in_flight == 0


async def test_places_are_held_while_the_call_runs(virtual_time):
    service = Service(seconds=10)
    limiter = Limiter(calls=in_flight(2))
    await outcomes(Batcher(service, max_items=2, limiter=limiter), list(range(8)))
    assert service.times == [0, 0, 10, 10]
    assert limiter.statistics().in_flight == 0


async def test_max_cost_may_bound_what_the_limiter_does_not_know(virtual_time):
    service = Service()
    limiter = Limiter(requests=per_minute(60))
    await outcomes(Batcher(service, max_cost={"bytes": 4}, cost={"bytes": len}, limiter=limiter), ["aa", "bb", "cc"])
    assert sorted(map(len, service.calls)) == [1, 2]


async def test_a_number_is_the_unit_that_the_limiter_wants_to_be_told(virtual_time):
    limiter = Limiter(requests=per_minute(60), tokens="10/s")
    service = Service()
    await outcomes(Batcher(service, cost=len, limiter=limiter), ["a" * 10, "b" * 10])
    assert sorted(service.times) == [0, 1]


async def test_no_batch_is_larger_than_the_limiter_can_ever_hold(virtual_time):
    """A max_cost of 8,000 is of no use where the bucket holds 100."""
    service = Service()
    limiter = Limiter(requests=per_minute(600), tokens="100/s")
    batcher = Batcher(service, max_cost={"tokens": 8_000}, cost=lambda item: 30, limiter=limiter)
    assert await outcomes(batcher, list(range(10))) == got(range(10))
    assert max(map(len, service.calls)) == 3


async def test_an_item_larger_than_the_limiter_can_ever_hold_fails_alone(virtual_time):
    limiter = Limiter(requests=per_minute(600), tokens="100/s")
    batcher = Batcher(Service(), cost=len, limiter=limiter)
    small, large, other = await outcomes(batcher, ["aa", "x" * 101, "bb"])
    assert (small, other) == (("got", "aa"), ("got", "bb"))
    assert isinstance(large, Unsatisfiable)


@dataclass
class Shrinking:
    """A limiter whose answer to anything above `most` is never, though its limits say otherwise."""

    limiter: Limiter
    most: float

    @property
    def limits(self):
        return self.limiter.limits

    def forecast(self, *, tokens):
        return self.limiter.forecast(tokens=tokens)

    async def acquire(self, *, tokens, **options):
        if tokens > self.most:
            raise Unsatisfiable("too large", unit="tokens", cost=tokens, capacity=self.most)
        return await self.limiter.acquire(tokens=tokens, **options)


async def test_a_batch_that_proves_too_large_for_the_limiter_is_split(virtual_time):
    """Whatever `split_on` says: too large is always a matter of size."""
    limiter = Shrinking(Limiter(tokens="1000/s"), 10)
    service = Service()
    batcher = Batcher(service, cost=lambda item: {"tokens": 5}, limiter=limiter, split_on=())
    assert await outcomes(batcher, list(range(8))) == got(range(8))
    assert [len(call) for call in service.calls] == [2, 2, 2, 2]


@pytest.mark.parametrize(
    ("limits", "cost", "error"),
    [
        ({"requests": "1/min", "images": "9/s"}, None, MissingUnit),
        ({"requests": "1/min"}, {"tokns": 3}, UnknownUnit),
    ],
    ids=["missing", "unknown"],
)
async def test_a_wrong_cost_is_told_to_the_callers(virtual_time, limits, cost, error):
    service = Service()
    results = await outcomes(Batcher(service, cost=cost, limiter=Limiter(**limits)), list("ab"))
    assert [type(result) for result in results] == [error, error]
    assert service.calls == []


async def test_text_costs_its_tokens_where_only_the_limiter_counts_them(virtual_time):
    limiter = Limiter(requests="1/s", tokens="100/min")
    assert await outcomes(Batcher(Service(), limiter=limiter), ["a" * 8, "b" * 9]) == got(["a" * 8, "b" * 9])
    assert limiter.statistics().limits["tokens"].level == pytest.approx(100 - 2 - 3)


async def test_a_full_line_is_told_to_the_callers_and_nothing_is_split(virtual_time):
    service = Service()
    limiter = Limiter(requests="1/min", max_queue=0)
    limiter.acquire_nowait()
    results = await outcomes(Batcher(service, limiter=limiter), list("abc"))
    assert [type(result) for result in results] == [QueueFull] * 3
    assert limiter.statistics().refused == 1


async def test_each_half_is_charged_as_the_server_charges_it(virtual_time):
    limiter = Limiter(requests=per_minute(100), tokens=per_minute(1_000))
    await outcomes(Batcher(Service(poison=[3]), cost=lambda item: {"tokens": 10}, limiter=limiter), list(range(4)))
    levels = {unit: limit.level for unit, limit in limiter.statistics().limits.items()}
    assert levels == {"requests": 100 - 5, "tokens": 1_000 - 10 * (4 + 2 + 2 + 1 + 1)}


async def test_a_call_that_leaves_while_the_limiter_blocks_costs_nothing(virtual_time):
    service = Service()
    limiter = Limiter(requests="1/min", tokens="100/min")
    limiter.acquire_nowait(tokens=100)
    async with anyio.create_task_group() as tasks:
        callers = Callers(Batcher(service, cost={"tokens": 50}, limiter=limiter), tasks)
        callers.start("a")
        callers.start("b")
        await anyio.sleep(1)
        callers.cancel("a")
    assert service.calls == [["b"]]
    # The place in line was for 100 tokens, which were there after a minute; those of "a" came back.
    assert service.times == [60]
    assert limiter.statistics().limits["tokens"].level == pytest.approx(50, abs=1)


@pytest.mark.parametrize("anyio_backend", ["trio"])
async def test_on_trio_a_grant_may_come_before_the_cancellation_and_is_given_back(virtual_time, anyio_backend):
    """A cancelled task goes on until its next checkpoint: by then its line belongs to others."""
    limiter = Limiter(tokens="10/s")

    @dataclass
    class LeavingAtTheGrant:
        limits = limiter.limits
        forecast = limiter.forecast

        async def acquire(self, **options):
            permit = await limiter.acquire(**options)
            callers.cancel("a")
            with anyio.CancelScope(shield=True):
                await anyio.sleep(1)
            return permit

    service = Service()
    async with anyio.create_task_group() as tasks:
        callers = Callers(Batcher(service, cost={"tokens": 5}, limiter=LeavingAtTheGrant()), tasks)
        callers.start("a")
    assert service.calls == []
    assert limiter.statistics().cancelled == 1


async def test_what_was_paid_comes_back_if_nothing_is_sent(virtual_time):
    """Here because the store of the limiter was lost between the first charge and the rest."""
    limiter = Limiter(requests="1/s", tokens="10/s")
    limiter.acquire_nowait(tokens=10)

    @dataclass
    class Lost:
        limits = limiter.limits
        forecast = limiter.forecast

        async def acquire(self, max_wait=None, **options):
            if max_wait == 0:
                raise StoreError("the store does not answer")
            return await limiter.acquire(**options)

    service = Service()
    async with anyio.create_task_group() as tasks:
        callers = Callers(Batcher(service, cost={"tokens": 5}, limiter=Lost()), tasks)
        callers.start("a")
        await anyio.sleep(0.1)
        callers.start("b")
    assert [type(callers.results[item]) for item in "ab"] == [StoreError, StoreError]
    assert service.calls == []
    assert limiter.statistics().cancelled == 1
    assert limiter.statistics().limits["tokens"].level == pytest.approx(10)


async def test_when_all_leave_the_line_of_the_limiter_is_left_too(virtual_time):
    limiter = Limiter(requests="1/min")
    limiter.acquire_nowait()
    with anyio.move_on_after(1):
        await Batcher(Service(), limiter=limiter)("a")
    assert limiter.statistics().waiting == 0
    assert limiter.statistics().granted == 1


async def test_what_was_paid_for_one_that_left_is_no_use_to_one_that_costs_more(virtual_time):
    """Then the batch stands in line again; nobody goes on credit."""
    service = Service()
    limiter = Limiter(tokens="10/s")
    limiter.acquire_nowait(tokens=10)

    @dataclass
    class LeavingAtTheGrant:
        limits = limiter.limits
        forecast = limiter.forecast

        async def acquire(self, **options):
            permit = await limiter.acquire(**options)
            callers.cancel("x")
            await anyio.sleep(0.001)
            return permit

    async with anyio.create_task_group() as tasks:
        callers = Callers(Batcher(service, cost=len, limiter=LeavingAtTheGrant()), tasks)
        callers.start("x")
        await anyio.sleep(0.05)
        callers.start("y" * 10)
    assert service.calls == [["y" * 10]]
    assert service.times == pytest.approx([1.001])  # the one token came back: a bucket of ten was full after a second
    assert limiter.statistics().cancelled == 1


@given(
    arrivals=st.lists(st.tuples(st.floats(0, 30), st.integers(1, 60)), min_size=1, max_size=40),
    requests=st.integers(1, 20),
    tokens=st.integers(60, 200),
    leaving=st.sets(st.integers(0, 39)),
)
def test_batches_never_take_more_than_the_limits_allow(arrivals, requests, tokens, leaving):
    """In any span: requests and tokens sent ≤ burst + rate × span, also when callers leave."""
    sent = []

    async def main():
        limiter = Limiter(requests=per_minute(requests), tokens=per_minute(tokens))

        async def send(items):
            sent.append((anyio.current_time(), sum(items)))
            return items

        batcher = Batcher(send, cost=lambda item: {"tokens": item}, limiter=limiter, max_items=10)

        async def call(position, moment, item):
            await anyio.sleep(moment)
            with anyio.move_on_after(5 if position in leaving else math.inf):
                assert await batcher(item) == item

        async with anyio.create_task_group() as tasks:
            for position, (moment, item) in enumerate(arrivals):
                tasks.start_soon(call, position, moment, item)

    testing.run(main)
    for first in range(len(sent)):
        for last in range(first, len(sent)):
            span = sent[last][0] - sent[first][0]
            assert last - first + 1 <= requests + requests / 60 * span + 1e-6
            assert sum(cost for _, cost in sent[first : last + 1]) <= tokens + tokens / 60 * span + 1e-6
