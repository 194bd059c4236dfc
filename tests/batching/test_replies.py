"""What callers get when the reply of a batch is wrong."""

from __future__ import annotations

import re

import anyio
import pytest

from penstock.batching import Batcher, ReplyMismatch
from penstock.errors import PenstockError
from tests.batching.service import Callers, outcomes

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("reply", "received", "message"),
    [
        (["only one"], 1, "send was given 3 items and returned 1 entry"),
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


async def test_one_item_is_said_in_the_singular(virtual_time):
    async def send(items):
        return []

    (error,) = await outcomes(Batcher(send, index=lambda entry: entry), ["a"])
    assert str(error) == "no entry of the reply has index 0: send was given 1 item and returned 0 entries"


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
        f"an entry of the reply has index {wrong}, and send was given 3 items: they have 0 to 2"
    }


@pytest.mark.parametrize("index", [lambda entry: entry.nothing, lambda entry: "0", lambda entry: None])
async def test_an_index_that_cannot_be_read_fails_all(virtual_time, index):
    async def send(items):
        return [object()] * len(items)

    errors = await outcomes(Batcher(send, index=index), list("ab"))
    assert {type(error) for error in errors} <= {AttributeError, TypeError}
    assert re.search(r"has no attribute|Batcher\(index=...\) returned .* for an entry of the reply", str(errors[0]))
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
