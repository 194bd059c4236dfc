"""Many callers, one call: which caller gets which entry, and when a batch goes. All waiting is virtual."""

from __future__ import annotations

import contextvars
import math
import threading
from types import SimpleNamespace

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock import MissingUnit, Unsatisfiable, testing
from penstock.batching import Batcher
from tests.batching.service import Service, got, outcomes

pytestmark = pytest.mark.anyio


async def test_callers_of_the_same_moment_share_a_call_and_each_gets_its_own(virtual_time):
    service = Service()
    assert await outcomes(Batcher(service), list("abc")) == got("abc")
    assert sorted(service.calls[0]) == list("abc")
    assert len(service.calls) == 1


async def test_one_caller_after_the_other_keeps_the_order(virtual_time):
    """Items stand in a batch as they came."""
    service = Service()
    batcher = Batcher(service, max_delay=1)
    async with anyio.create_task_group() as tasks:
        for item in range(5):
            tasks.start_soon(batcher, item)
            await anyio.sleep(0.1)
    assert service.calls == [[0, 1, 2, 3, 4]]


async def test_the_example_of_the_design(virtual_time):
    """Text needs no cost function: four bytes of UTF-8 count as one token."""
    service = Service()
    embed = Batcher(service, max_items=100, max_cost={"tokens": 8_000}, max_delay=0.02)
    assert await embed("a text") == ("got", "a text")
    texts = ["x" * 12_000, "ä" * 6_000, "z" * 8_000]  # 3,000 tokens, 3,000 tokens, 2,000 tokens
    assert await outcomes(embed, [*texts, "one more"]) == got([*texts, "one more"])
    assert sorted(map(len, service.calls)) == [1, 1, 3]


@pytest.mark.parametrize("count", [1, 2, 3, 8])
@given(data=st.data())
def test_entries_find_their_callers_by_index_in_any_order(count, data):
    order = data.draw(st.permutations(range(count)))

    async def send(items):
        return [SimpleNamespace(index=position, of=items[position]) for position in order]

    async def main():
        batcher = Batcher(send, index=lambda entry: entry.index)
        assert [entry.of for entry in await outcomes(batcher, list(range(count)))] == list(range(count))

    testing.run(main)


async def test_a_reply_may_be_an_async_generator(virtual_time):
    """`send` may be one itself, or return one."""

    async def send(items):
        for position in reversed(range(len(items))):
            yield position, items[position]

    async def send_later(items):
        await anyio.sleep(1)
        return send(items)

    for function in send, send_later:
        replies = await outcomes(Batcher(function, index=lambda entry: entry[0]), list("abc"))
        assert [item for _, item in replies] == list("abc")


async def test_send_runs_in_the_context_of_the_caller_that_opened_the_batch(virtual_time):
    who = contextvars.ContextVar("who")

    async def send(items):
        who.set(who.get() + " through send")
        return [who.get()] * len(items)

    who.set("me")
    assert await Batcher(send)("item") == "me through send"
    assert who.get() == "me"


async def test_send_sees_no_deadline_of_a_caller(virtual_time):
    """Or the most impatient caller would cut the call short for all."""
    service = Service(seconds=10)
    batcher = Batcher(service)
    results = {}

    async def call(item, patience):
        with anyio.move_on_after(patience):
            results[item] = await batcher(item)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(call, "hasty", 1)
        tasks.start_soon(call, "patient", 100)
    assert results == {"patient": ("got", "patient")}
    assert service.cancelled == 0


# ------------------------------------------------------------------------------------------------------------------
# When a batch goes


async def test_a_full_batch_goes_at_once(virtual_time):
    service = Service()
    await outcomes(Batcher(service, max_items=10, max_delay=60), list(range(30)))
    assert [len(call) for call in service.calls] == [10, 10, 10]
    assert service.times == [0, 0, 0]


async def test_the_oldest_item_waits_for_max_delay_and_no_longer(virtual_time):
    service = Service()
    batcher = Batcher(service, max_delay=0.5)
    async with anyio.create_task_group() as tasks:
        for moment in (0, 0.3, 0.49, 0.51, 2):
            await virtual_time.sleep_until(moment)
            tasks.start_soon(batcher, moment)
    assert service.calls == [[0, 0.3, 0.49], [0.51], [2]]
    assert service.times == [0.5, 1.01, 2.5]


async def test_a_call_that_is_left_over_from_a_full_batch_does_not_wait_anew(virtual_time):
    service = Service()
    batcher = Batcher(service, max_items=2, max_delay=1)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(batcher, "first")
        await anyio.sleep(0.6)
        tasks.start_soon(batcher, "second")
        tasks.start_soon(batcher, "third")
    assert service.times == [0.6, 1.6]


async def test_without_delay_only_those_of_the_same_moment_share(virtual_time):
    service = Service()
    batcher = Batcher(service, max_delay=0)
    await outcomes(batcher, list("abc"))
    await batcher("d")
    assert [sorted(call) for call in service.calls] == [list("abc"), ["d"]]
    assert virtual_time.now() == 0


@pytest.mark.parametrize(
    ("costs", "batches"),
    [
        ([4, 4, 2, 1], [[4, 4, 2], [1]]),
        ([10, 10], [[10], [10]]),
        ([6, 5, 5], [[6], [5, 5]]),
        ([9, 2, 1], [[9], [2, 1]]),
        ([0, 0, 10, 0], [[0, 0, 10], [0]]),
        ([0.1] * 100 + [1], [[0.1] * 100, [1]]),
    ],
    ids=str,
)
async def test_a_batch_never_costs_more_than_max_cost_and_wastes_no_room(virtual_time, costs, batches):
    """Items go in order: none is passed by a smaller one. Sums of floats are not taken to the last bit."""
    service = Service()
    batcher = Batcher(service, max_items=1000, max_cost={"tokens": 10}, cost=lambda item: item, max_delay=1)
    async with anyio.create_task_group() as tasks:
        for cost in costs:
            tasks.start_soon(batcher, cost)
            await anyio.sleep(0.001)
    assert service.calls == batches


async def test_a_batch_that_is_full_by_cost_goes_at_once(virtual_time):
    service = Service()
    batcher = Batcher(service, max_cost={"tokens": 10}, cost=lambda item: 5, max_delay=60)
    await outcomes(batcher, list("abcd"))
    assert service.times == [0, 0]


async def test_every_unit_bounds_a_batch(virtual_time):
    service = Service()
    batcher = Batcher(
        service,
        max_cost={"tokens": 100, "images": 2},
        cost={"tokens": len, "images": lambda item: item.count("!")},
        max_delay=1,
    )
    items = ["!", "!", "!", "x" * 98, "y" * 3]
    async with anyio.create_task_group() as tasks:
        for item in items:
            tasks.start_soon(batcher, item)
            await anyio.sleep(0.001)
    assert service.calls == [["!", "!"], ["!", "x" * 98], ["y" * 3]]


@pytest.mark.parametrize(
    "cost",
    [
        lambda item: {"tokens": len(item)},
        len,
        {"tokens": len},
        lambda item: {"tokens": len(item), "unbounded": 10**9},
    ],
    ids=["mapping", "number", "per unit", "more units"],
)
async def test_a_cost_is_written_as_it_comes(virtual_time, cost):
    service = Service()
    batcher = Batcher(service, max_cost={"tokens": 4}, cost=cost)
    await outcomes(batcher, ["aa", "bb", "cc"])
    assert sorted(map(len, service.calls)) == [1, 2]


async def test_every_item_may_have_the_same_cost(virtual_time):
    service = Service()
    await outcomes(Batcher(service, max_cost={"images": 2}, cost={"images": 1}), list("abcd"))
    assert sorted(map(len, service.calls)) == [2, 2]


async def test_an_item_too_large_for_any_batch_is_refused_alone_and_never_sent(virtual_time):
    service = Service()
    batcher = Batcher(service, max_cost={"tokens": 10}, cost={"tokens": len})
    small, large = await outcomes(batcher, ["small", "x" * 11])
    assert small == ("got", "small")
    assert isinstance(large, Unsatisfiable)
    assert (large.unit, large.cost, large.capacity) == ("tokens", 11, 10)
    assert str(large) == (
        "an item of 11 tokens fits in no batch: max_cost is 10 tokens. Split the item, or raise max_cost"
    )
    assert service.calls == [["small"]]


async def test_a_cost_that_is_not_known_is_said_to_be_missing(virtual_time):
    with pytest.raises(MissingUnit) as caught:
        await Batcher(Service(), max_cost={"images": 10})("a text")
    assert caught.value.unit == "images"
    assert str(caught.value) == (
        "max_cost bounds images, but the cost of 'a text' is not known: "
        "give cost={'images': …}, a number or a function of the item"
    )
    with pytest.raises(MissingUnit, match="tokens"):
        await Batcher(Service(), max_cost={"tokens": 10})(object())


@pytest.mark.parametrize("cost", [-1, math.nan, math.inf])
async def test_a_cost_that_is_no_amount_is_refused(virtual_time, cost):
    with pytest.raises(ValueError, match="the cost of an item must be a finite number of tokens, 0 or more, not"):
        await Batcher(Service(), max_cost={"tokens": 10}, cost=lambda item: cost)("a")


async def test_a_plain_number_needs_one_unit(virtual_time):
    with pytest.raises(TypeError, match="cost returned 3 for an item, and the units are tokens, images: return"):
        await Batcher(Service(), max_cost={"tokens": 10, "images": 1}, cost=lambda item: 3)("a")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_items": 0}, "max_items must be 1 or more, not 0"),
        ({"max_delay": -1}, r"max_delay=-1\): seconds or a timedelta, 0 or more and finite"),
        ({"max_delay": math.inf}, r"max_delay=inf\): seconds or a timedelta, 0 or more and finite"),
        ({"max_cost": {"tokens": 0}}, "max_cost must be a finite number of tokens above 0, not 0"),
    ],
)
def test_a_bound_out_of_its_range_is_refused_when_written_down(options, message):
    with pytest.raises(ValueError, match=message):
        Batcher(Service(), **options)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_batcher_outlives_its_loops(backend):
    """Made at import time, used in one run after the other; what an aborted run leaves behind is no matter."""
    service = Service()
    batcher = Batcher(service, max_delay=1)

    async def aborted():
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(batcher, "lost")
            await anyio.sleep(0.5)
            raise KeyError

    for _ in range(2):
        assert testing.run(outcomes, batcher, list("ab"), backend=backend) == got("ab")
        with pytest.raises(BaseExceptionGroup):
            testing.run(aborted, backend=backend)
    assert [sorted(call) for call in service.calls] == [["a", "b"]] * 2


def test_threads_with_loops_of_their_own_do_not_mix():
    threads_of_calls = []

    async def send(items):
        threads_of_calls.append({thread for thread, _ in items} | {threading.get_ident()})
        return items

    batcher = Batcher(send, max_items=10, max_delay=0)
    results = []

    async def main():
        mine = [(threading.get_ident(), number) for number in range(100)]
        results.append(await outcomes(batcher, mine) == mine)

    threads = [
        threading.Thread(target=anyio.run, args=(main,), kwargs={"backend": backend})
        for backend in ("asyncio", "trio", "asyncio", "trio")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 4
    assert all(len(threads) == 1 for threads in threads_of_calls)


def test_without_a_loop_there_is_no_waiting():
    with pytest.raises(RuntimeError, match="no running event loop"):
        Batcher(Service())("a").send(None)
