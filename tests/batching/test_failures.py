"""What callers get when the call of a batch fails."""

from __future__ import annotations

import gc
import math
from types import SimpleNamespace

import anyio
import pytest

from penstock import RateLimited
from penstock.batching import Batcher, may_be_an_items_fault
from penstock.errors import CircuitOpen
from tests.batching.service import Service, outcomes

pytestmark = pytest.mark.anyio


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
    assert [type(error) for error in results] == [ValueError] * 3
    assert results[0].__notes__ == [
        "penstock: Batcher: `split_on` raised LookupError('the judge is out') when asked about this error"
    ]


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
