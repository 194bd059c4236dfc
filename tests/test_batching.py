"""Many callers, one call: who gets what, when a batch goes, and what happens when something goes wrong.

All waiting is virtual. A `Service` stands for what is called: it records each call and when it was made.
"""

from __future__ import annotations

import asyncio
import contextvars
import gc
import math
import random
import threading
from dataclasses import dataclass
from itertools import chain, pairwise
from types import SimpleNamespace

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock import Limiter, MissingUnit, QueueFull, RateLimited, Unsatisfiable, in_flight, per_minute, testing
from penstock.batching import Batcher, ReplyMismatch, may_be_an_items_fault
from penstock.errors import CircuitOpen, PenstockError, StoreError, UnknownUnit

pytestmark = pytest.mark.anyio


class Service:
    """Answers a list of items with `("got", item)` for each, after `seconds`. Poisonous items fail the whole call."""

    def __init__(self, seconds=0.0, poison=(), error=ValueError):
        self.seconds = seconds
        self.poison = set(poison)
        self.error = error
        self.calls = []
        self.times = []
        self.began = self.cancelled = 0

    async def __call__(self, items):
        self.calls.append(list(items))
        self.times.append(anyio.current_time())
        self.began += 1
        try:
            await anyio.sleep(self.seconds)
        except BaseException:
            self.cancelled += 1
            raise
        if bad := self.poison.intersection(items):
            raise self.error(f"cannot take {sorted(bad)}")
        return [("got", item) for item in items]


async def outcomes(call, items):
    """What each of the items came to, all called at the same moment: a result or an exception."""
    results = [None] * len(items)

    async def one(position, item):
        try:
            results[position] = await call(item)
        except Exception as error:
            results[position] = error

    async with anyio.create_task_group() as tasks:
        for position, item in enumerate(items):
            tasks.start_soon(one, position, item)
    return results


def got(items):
    return [("got", item) for item in items]


# ------------------------------------------------------------------------------------------------------------------
# One item in, its own result out


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


async def test_who_is_left_over_from_a_full_batch_does_not_wait_anew(virtual_time):
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


async def test_a_constant_cost(virtual_time):
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
        "max_cost bounds images, but the cost of 'a text' is not known: give cost={'images': …}, a number or a function of the item"
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
        ({"max_delay": -1}, "max_delay must be a finite number of seconds, 0 or more, not -1"),
        ({"max_delay": math.inf}, "max_delay must be a finite number of seconds, 0 or more, not inf"),
        ({"max_cost": {"tokens": 0}}, "max_cost must be a finite number of tokens above 0, not 0"),
    ],
)
def test_a_bound_out_of_its_range_is_refused_when_written_down(options, message):
    with pytest.raises(ValueError, match=message):
        Batcher(Service(), **options)


# ------------------------------------------------------------------------------------------------------------------
# When the reply is wrong


@pytest.mark.parametrize(
    ("reply", "received", "message"),
    [
        (["only one"], 1, "send was given 3 items and returned 1 entries"),
        ([1, 2, 3, 4], 4, "send was given 3 items and returned 4 entries"),
        (None, None, "send was given 3 items and returned NoneType"),
        ({"a": 1, "b": 2, "c": 3}, None, "send was given 3 items and returned dict"),
        ("abc", None, "send was given 3 items and returned str"),
        ({1, 2, 3}, None, "send was given 3 items and returned set"),
    ],
    ids=["too few", "too many", "nothing", "a mapping", "text", "a set"],
)
async def test_a_reply_that_is_not_one_entry_per_item_fails_all_and_names_the_numbers(
    virtual_time, reply, received, message
):
    async def send(items):
        return reply

    for error in await outcomes(Batcher(send), list("abc")):
        assert isinstance(error, ReplyMismatch)
        assert isinstance(error, PenstockError)
        assert isinstance(error, ValueError)
        assert (error.sent, error.received) == (3, received)
        assert str(error) == (
            f"{message}: return {'a list with ' if received is None else ''}one entry per item, in their order, "
            "or say with index= how to read an entry's index"
        )


async def test_missing_and_doubled_entries_concern_only_their_callers(virtual_time):
    async def send(items):
        return [(0, "zero"), (2, "two"), (2, "two again")]

    batcher = Batcher(send, index=lambda entry: entry[0], max_delay=1)
    async with anyio.create_task_group() as tasks:
        callers = Callers(batcher, tasks)
        for item in "abc":
            callers.start(item)
            await anyio.sleep(0.1)
    first, second, third = (callers.results[item] for item in "abc")
    assert first == (0, "zero")
    assert str(second) == "no entry of the reply has index 1: send was given 3 items and returned 3 entries"
    assert str(third) == "2 entries of the reply have index 2: send was given 3 items and returned 3 entries"
    assert isinstance(second, ReplyMismatch)
    assert isinstance(third, ReplyMismatch)


@pytest.mark.parametrize("indices", [(1, 2, 3), (-1, 0, 1), (0, 1, 2, 3)], ids=str)
async def test_an_index_out_of_range_fails_all_since_the_count_may_begin_elsewhere(virtual_time, indices):
    """Counted from 1, two of three callers would get their neighbour's result without noticing."""

    async def send(items):
        return list(indices)

    errors = await outcomes(Batcher(send, index=lambda entry: entry), list("abc"))
    wrong = -1 if -1 in indices else 3
    assert {str(error) for error in errors} == {
        f"an entry of the reply has index {wrong}, but the 3 items sent have 0 to 2"
    }


@pytest.mark.parametrize("index", [lambda entry: entry.nothing, lambda entry: "0", lambda entry: None])
async def test_an_index_that_cannot_be_read_fails_all(virtual_time, index):
    async def send(items):
        return [object()] * len(items)

    errors = await outcomes(Batcher(send, index=index), list("ab"))
    assert {type(error) for error in errors} <= {AttributeError, TypeError}
    assert len(errors) == 2


@pytest.mark.parametrize("reply", [None, "abc", {0: "a", 1: "b"}], ids=repr)
async def test_with_an_index_too_a_reply_is_entries(virtual_time, reply):
    async def send(items):
        return reply

    for error in await outcomes(Batcher(send, index=lambda entry: 0), list("ab")):
        assert isinstance(error, ReplyMismatch)
        assert str(error) == (
            f"send was given 2 items and returned {type(reply).__name__}: with index=, return the entries"
        )


async def test_a_reply_that_is_wrong_is_not_asked_for_again(virtual_time):
    """The call was made, and it was answered: to split it would pay for the same again."""
    calls = []

    async def send(items):
        calls.append(items)
        return []

    await outcomes(Batcher(send, split_on=Exception), list("abc"))
    assert len(calls) == 1


async def test_send_must_be_async(virtual_time):
    def send(items):
        return items

    with pytest.raises(TypeError, match=r"send must be an async function: .*send.* returned list"):
        await Batcher(send)("a")


# ------------------------------------------------------------------------------------------------------------------
# When a call fails


async def test_one_bad_item_fails_alone(virtual_time):
    service = Service(poison=[5])
    results = await outcomes(Batcher(service), list(range(8)))
    assert [results[i] for i in range(8) if i != 5] == [("got", i) for i in range(8) if i != 5]
    assert isinstance(results[5], ValueError)
    assert str(results[5]) == "cannot take [5]"


@pytest.mark.parametrize("count", [1, 2, 7, 100])
async def test_a_bad_item_costs_two_more_calls_per_halving(virtual_time, count):
    service = Service(poison=[count // 2])
    await outcomes(Batcher(service), list(range(count)))
    assert len(service.calls) <= 1 + 2 * math.ceil(math.log2(count))


async def test_when_all_are_bad_each_gets_its_own_error(virtual_time):
    service = Service(poison=range(6))
    results = await outcomes(Batcher(service), list(range(6)))
    assert [str(error) for error in results] == [f"cannot take [{item}]" for item in range(6)]
    assert len(service.calls) == 2 * 6 - 1


async def test_the_halves_run_at_the_same_time(virtual_time):
    """A good item waits for as many calls as its batch is halved, not for all the others."""
    service = Service(seconds=1, poison=[0])
    await outcomes(Batcher(service, max_delay=0), list(range(8)))
    assert virtual_time.now() == 4


class StatusError(Exception):
    def __init__(self, status_code):
        super().__init__(f"status {status_code}")
        self.status_code = status_code


class ReplyError(Exception):
    """As httpx has it: the status is that of the response."""

    def __init__(self, status):
        super().__init__(f"status {status}")
        self.request = object()
        self.response = SimpleNamespace(status_code=status)


class NoConnectionError(Exception):
    """As clients have it: there was a request, and no reply."""

    request = object()


class NoRequestError(Exception):
    """As httpx has it while the request is not known."""

    @property
    def request(self):
        raise RuntimeError("The .request property has not been set.")


NOT_AN_ITEMS_FAULT = [
    TimeoutError(),
    ConnectionResetError(),
    RateLimited("later", retry_after=1.0, blocked_by="tokens"),
    CircuitOpen("open", retry_after=1.0),
    MemoryError(),
    NoConnectionError(),
    NoRequestError(),
    *[StatusError(status) for status in (401, 403, 408, 429, 500, 503)],
    ReplyError(502),
]
AN_ITEMS_FAULT = [ValueError(), RuntimeError(), KeyError("x"), StatusError(400), StatusError(413), ReplyError(422)]


def shown(error):
    return f"{type(error).__name__} {error}".strip()


@pytest.mark.parametrize("error", NOT_AN_ITEMS_FAULT, ids=shown)
async def test_what_speaks_of_the_service_is_not_split(virtual_time, error):
    """Or an outage would be answered with twice as many calls as there are items."""
    assert may_be_an_items_fault(error) is False
    calls = []

    async def send(items):
        calls.append(items)
        raise error

    assert all(result is error for result in await outcomes(Batcher(send), list("abcd")))
    assert len(calls) == 1


@pytest.mark.parametrize("error", AN_ITEMS_FAULT, ids=shown)
def test_what_may_speak_of_an_item_is_split(error):
    assert may_be_an_items_fault(error) is True


@pytest.mark.parametrize(
    ("split_on", "calls"),
    [(KeyError, 1), (ValueError, 3), ((KeyError, ValueError), 3), (lambda error: "cannot" in str(error), 3), ((), 1)],
)
async def test_split_on_says_which_errors_may_be_an_items_fault(virtual_time, split_on, calls):
    service = Service(poison="ab")
    await outcomes(Batcher(service, split_on=split_on), list("ab"))
    assert len(service.calls) == calls


def test_a_judge_is_no_async_function():
    """It would say yes to everything."""

    async def split_on(error):
        return False

    with pytest.raises(
        TypeError, match=r"Batcher\(split_on=.*split_on\): it is called and not awaited; give a plain function"
    ):
        Batcher(Service(), split_on=split_on)


async def test_a_judge_that_fails_leaves_nobody_waiting(virtual_time):
    def split_on(error):
        raise LookupError("the judge is out")

    results = await outcomes(Batcher(Service(poison="a"), split_on=split_on), list("abc"))
    assert [type(error) for error in results] == [LookupError] * 3


async def test_an_entry_that_is_an_exception_is_raised_in_its_caller_alone(virtual_time):
    async def send(items):
        return [KeyError(item) if item == "b" else item for item in items]

    first, second, third = await outcomes(Batcher(send, max_delay=0.1), ["a", "b", "c"])
    assert (first, third) == ("a", "c")
    assert isinstance(second, KeyError)


async def test_callers_that_share_an_error_do_not_grow_its_traceback(virtual_time):
    def depth(traceback):
        return 0 if traceback is None else 1 + depth(traceback.tb_next)

    error = TimeoutError("too slow")

    async def send(items):
        raise error

    batcher = Batcher(send)
    depths = []

    async def call(item):
        try:
            await batcher(item)
        except TimeoutError as caught:
            depths.append(depth(caught.__traceback__))

    async with anyio.create_task_group() as tasks:
        for item in range(50):
            tasks.start_soon(call, item)
    assert len(depths) == 50
    assert len(set(depths)) == 1


async def test_a_failed_call_leaves_no_cycles_behind(virtual_time):
    """Errors keep frames, frames keep callers: they are freed at once, not when garbage is collected."""

    class Witness:
        pass

    async def send(items):
        raise TimeoutError

    gc.collect()
    gc.disable()
    try:
        batcher = Batcher(send)
        item = Witness()
        try:
            await batcher(item)
        except TimeoutError:
            pass
        await anyio.sleep(1)
        del item
        assert not any(isinstance(one, Witness) for one in gc.get_objects())
    finally:
        gc.enable()


# ------------------------------------------------------------------------------------------------------------------
# When callers leave


class Callers:
    """Starts callers one by one, cancels some, and notes what came of each."""

    def __init__(self, batcher, tasks):
        self.batcher = batcher
        self.tasks = tasks
        self.scopes = {}
        self.results = {}

    def start(self, item):
        self.scopes[item] = anyio.CancelScope()
        self.tasks.start_soon(self._call, item)

    async def _call(self, item):
        with self.scopes[item]:
            try:
                self.results[item] = await self.batcher(item)
            except Exception as error:
                self.results[item] = error
        self.results.setdefault(item, "cancelled")

    def cancel(self, item):
        self.scopes[item].cancel()


async def test_a_caller_who_left_is_not_sent(virtual_time):
    service = Service()
    async with anyio.create_task_group() as tasks:
        callers = Callers(Batcher(service, max_delay=1), tasks)
        for item in "abc":
            callers.start(item)
            await anyio.sleep(0.1)
        callers.cancel("a")  # the one who opened the batch
    assert service.calls == [["b", "c"]]
    assert callers.results == {"a": "cancelled", "b": ("got", "b"), "c": ("got", "c")}


async def test_a_caller_who_leaves_while_sent_costs_nobody_a_result(virtual_time):
    service = Service(seconds=10)
    async with anyio.create_task_group() as tasks:
        callers = Callers(Batcher(service), tasks)
        for item in "abc":
            callers.start(item)
        await anyio.sleep(5)
        callers.cancel("a")
        callers.cancel("b")
        await anyio.sleep(1)
        assert callers.results == {"a": "cancelled", "b": "cancelled"}
    assert len(service.calls) == 1
    assert service.cancelled == 0
    assert callers.results["c"] == ("got", "c")


async def test_when_all_have_left_nothing_is_sent_and_nothing_is_left(virtual_time):
    service = Service()
    async with anyio.create_task_group() as tasks:
        callers = Callers(Batcher(service, max_delay=60), tasks)
        callers.start("a")
        callers.start("b")
        await anyio.sleep(1)
        callers.cancel("b")
        callers.cancel("a")
    assert virtual_time.now() == 1
    await anyio.sleep(100)
    assert service.calls == []


async def test_when_all_have_left_the_call_is_cancelled_and_the_last_waits_for_its_end(virtual_time):
    ended_at = None

    async def send(items):
        nonlocal ended_at
        try:
            await anyio.sleep(60)
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(3)  # says goodbye to the server
            ended_at = anyio.current_time()

    async with anyio.create_task_group() as tasks:
        callers = Callers(Batcher(send), tasks)
        callers.start("a")
        callers.start("b")
        await anyio.sleep(1)
        callers.cancel("a")
        await anyio.sleep(1)
        assert callers.results == {"a": "cancelled"}
        callers.cancel("b")
    assert ended_at == 5
    assert virtual_time.now() == 5


async def test_who_comes_when_the_others_have_just_left_gets_a_batch(virtual_time):
    service = Service()
    async with anyio.create_task_group() as tasks:
        callers = Callers(Batcher(service, max_delay=1), tasks)
        callers.start("a")
        await anyio.sleep(0.5)
        callers.cancel("a")
        callers.start("b")
    assert service.calls == [["b"]]
    assert service.times == [1.5]


async def test_who_left_between_two_halves_is_not_sent_again(virtual_time):
    service = Service(seconds=1, poison=["a"])
    async with anyio.create_task_group() as tasks:
        callers = Callers(Batcher(service, max_delay=0.1), tasks)
        for item in "abcd":
            callers.start(item)
        await anyio.sleep(0.5)
        callers.cancel("c")
        callers.cancel("d")
    assert sorted(map(sorted, service.calls)) == [["a"], ["a", "b", "c", "d"], ["b"]]
    assert callers.results["b"] == ("got", "b")


async def test_who_was_sent_alone_after_the_other_left_is_not_sent_again(virtual_time):
    service = Service(poison=["a"])
    limiter = Limiter(requests="1/s")
    async with anyio.create_task_group() as tasks:
        callers = Callers(Batcher(service, limiter=limiter), tasks)
        for item in "abcd":
            callers.start(item)
        await anyio.sleep(0.5)  # the halves stand in line
        for item in "bcd":
            callers.cancel(item)
    assert [sorted(call) for call in service.calls] == [["a", "b", "c", "d"], ["a"]]


async def test_callers_who_give_up_behind_a_slow_limiter_do_not_pile_up(virtual_time):
    limiter = Limiter(requests="1/hour")
    limiter.acquire_nowait()
    batcher = Batcher(Service(), limiter=limiter)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(batcher, "patient")
        for _ in range(1000):
            with anyio.move_on_after(1):
                await batcher("hasty")
        assert len(batcher._here.lane.callers) < 100


@pytest.mark.asyncio
@pytest.mark.parametrize("anyio_backend", [None])
async def test_asyncio_cancelling_twice_still_waits_for_the_end(anyio_backend, virtual_time):
    """task.cancel() heeds no shield; the caller stays until its call has ended all the same."""
    ended = False

    async def send(items):
        nonlocal ended
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(3)
            ended = True

    task = asyncio.create_task(Batcher(send)("a"))
    await asyncio.sleep(1)
    for _ in range(3):
        task.cancel()
        await asyncio.sleep(0.5)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended
    assert asyncio.all_tasks() == {asyncio.current_task()}


@pytest.mark.asyncio
@pytest.mark.parametrize("anyio_backend", [None])
async def test_no_task_is_left_when_the_result_is_there(anyio_backend, virtual_time):
    batcher = Batcher(Service(seconds=1), max_items=3)
    await asyncio.gather(*(batcher(item) for item in range(7)))
    assert asyncio.all_tasks() == {asyncio.current_task()}


@pytest.mark.asyncio
@pytest.mark.parametrize("anyio_backend", [None])
async def test_a_batch_that_others_cancel_leaves_nobody_waiting(anyio_backend, virtual_time):
    """As asyncio.run does at the end, and some test tools do."""
    batcher = Batcher(Service(seconds=60), max_delay=10)
    for moment in (1, 20):  # while it gathers, while it is sent
        callers = [asyncio.create_task(batcher(item)) for item in "ab"]
        await asyncio.sleep(moment)
        for task in asyncio.all_tasks() - {asyncio.current_task(), *callers}:
            task.cancel()
        results = await asyncio.gather(*callers, return_exceptions=True)
        assert [type(result) for result in results] == [asyncio.CancelledError] * 2


# ------------------------------------------------------------------------------------------------------------------
# With a limiter


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
        ({"requests": "1/min", "tokens": "9/s"}, None, MissingUnit),
        ({"requests": "1/min"}, {"tokns": 3}, UnknownUnit),
    ],
    ids=["missing", "unknown"],
)
async def test_a_wrong_cost_is_told_to_the_callers(virtual_time, limits, cost, error):
    service = Service()
    results = await outcomes(Batcher(service, cost=cost, limiter=Limiter(**limits)), list("ab"))
    assert [type(result) for result in results] == [error, error]
    assert service.calls == []


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


async def test_who_leaves_while_the_limiter_blocks_costs_nothing(virtual_time):
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
    limiter = Limiter(tokens="10/s")
    limiter.acquire_nowait(tokens=10)

    @dataclass
    class Lost:
        limits = limiter.limits

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
    assert limiter.statistics().limits["tokens"].level == pytest.approx(5)


async def test_when_all_leave_the_line_of_the_limiter_is_left_too(virtual_time):
    limiter = Limiter(requests="1/min")
    limiter.acquire_nowait()
    with anyio.move_on_after(1):
        await Batcher(Service(), limiter=limiter)("a")
    assert limiter.statistics().waiting == 0
    assert limiter.statistics().granted == 1


async def test_what_was_paid_for_one_who_left_is_no_use_to_one_who_costs_more(virtual_time):
    """Then the batch stands in line again; nobody goes on credit."""
    service = Service()
    limiter = Limiter(tokens="10/s")
    limiter.acquire_nowait(tokens=10)

    @dataclass
    class LeavingAtTheGrant:
        limits = limiter.limits

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


# ------------------------------------------------------------------------------------------------------------------
# Whatever happens


@dataclass(frozen=True)
class Happening:
    arrives: float
    leaves: float | None
    cost: int
    poison: bool


happenings = st.lists(
    st.builds(
        Happening,
        arrives=st.sampled_from([0, 0, 0, 0.5, 1, 1.5, 3]),
        leaves=st.one_of(st.none(), st.sampled_from([0, 0.25, 0.5, 1, 1.5, 2])),
        cost=st.integers(0, 5),
        poison=st.sampled_from([False, False, False, True]),
    ),
    min_size=1,
    max_size=25,
)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@given(
    happenings=happenings,
    max_items=st.integers(1, 6),
    max_delay=st.sampled_from([0, 0.5, 1]),
    seconds=st.sampled_from([0, 1]),
    limited=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_each_gets_its_own_result_or_error_and_nothing_is_lost_or_sent_twice(
    backend, happenings, max_items, max_delay, seconds, limited, seed
):
    """Random arrivals, costs, failures and departures. An item is sent again only as part of a half."""
    calls = []
    results = {}
    shuffle = random.Random(seed)

    async def send(items):
        calls.append(frozenset(item for item, _ in items))
        await anyio.sleep(seconds)
        if any(happening.poison for _, happening in items):
            raise ValueError(sorted(item for item, happening in items if happening.poison))
        entries = [(position, item) for position, (item, _) in enumerate(items)]
        shuffle.shuffle(entries)
        return entries

    async def main():
        limiter = Limiter(requests=per_minute(40), tokens=per_minute(200)) if limited else None
        batcher = Batcher(
            send,
            max_items=max_items,
            max_cost={"tokens": 10},
            max_delay=max_delay,
            cost=lambda pair: {"tokens": pair[1].cost},
            index=lambda entry: entry[0],
            limiter=limiter,
        )

        async def call(item, happening):
            await anyio.sleep(happening.arrives)
            with anyio.move_on_after(math.inf if happening.leaves is None else happening.leaves):
                try:
                    results[item] = (await batcher((item, happening)))[1]
                except ValueError as error:
                    results[item] = error
                return
            results[item] = "left"

        async with anyio.create_task_group() as tasks:
            for item, happening in enumerate(happenings):
                tasks.start_soon(call, item, happening)
        if limiter is not None:
            assert limiter.statistics().waiting == 0

    testing.run(main, backend=backend)

    for item, happening in enumerate(happenings):
        if results[item] == "left" and happening.leaves is not None:
            continue
        if happening.poison:
            assert results[item].args == ([item],)
        else:
            assert results[item] == item
    for call in calls:
        assert 1 <= len(call) <= max_items
        assert sum(happenings[item].cost for item in call) <= 10
    # An item's calls are nested: each is a part of a half of the one before.
    for item in range(len(happenings)):
        mine = [call for call in calls if item in call]
        for before, after in pairwise(mine):
            assert after < before
            assert len(after) <= math.ceil(len(before) / 2)


# ------------------------------------------------------------------------------------------------------------------
# Any loop, any thread


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
