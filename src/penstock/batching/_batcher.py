"""`Batcher`: its options, and one call of it; and which errors may be the fault of one item.

Queues and batches are in `_batch`, the reading of costs is in `_costs`.
"""

from __future__ import annotations

import math
import threading
from collections.abc import AsyncIterable, Awaitable, Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from penstock._concurrency import tasks
from penstock._concurrency.shared_state import OfThisProcess
from penstock._interruptions import is_an_interruption
from penstock._introspect import check_plain, kind_of, name_of
from penstock._numbers import Seconds, read_count, span
from penstock._retry_after import attribute_of
from penstock._text import repr_of
from penstock._user_errors import is_true_of
from penstock.batching._batch import BatcherOptions, CallerQueue, WaitingCaller
from penstock.batching._costs import CostOf, cost_function, price, read_max_cost
from penstock.errors import PenstockError

if TYPE_CHECKING:
    from penstock.limiter import Limiter

Item = TypeVar("Item")
Entry = TypeVar("Entry")
SplitOn = type[BaseException] | tuple[type[BaseException], ...] | Callable[[Exception], bool]

_OF_THE_SERVICE = frozenset({401, 403, 407, 408, 425, 429})


class Batcher(OfThisProcess, Generic[Item, Entry]):
    """Collects single items and sends many in one call. Calling it with an item returns that item's own entry.

    Items are sent in the order in which they came, except that the halves of a failed batch are sent again as they are.
    One batcher serves any number of tasks, threads and event loops; callers of one event loop share batches. A copy of
    it is itself, and it cannot be pickled.

    Without `limiter`, a batch goes as soon as it is full, or `max_delay` after its oldest item came. With `limiter`,
    every call of `send` is charged there, and the batch goes as soon as the limiter lets its first item go: with all
    items that can go by then, up to what the limiter can hold at once. So batches are large where requests are scarce,
    and small where tokens are.

    `send` runs in a copy of the context of the caller that opened the batch, and under no caller's deadline.

    Args:
        send: An async function that is given a list of items, at least one, and returns their entries.
        max_items: Most items in one call; at least 1.
        max_cost: Most units in one call, all items together; above 0 and finite. An item above it alone is refused.
        max_delay: Longest time that an item waits for others; seconds or a `timedelta`, 0 or more. With `limiter` no
            item waits for others.
        cost: What an item costs: a function of the item that returns an amount per unit, or a number if there is
            only one unit; or a number or a function of the item for each unit. Default: text costs one
            token for four bytes of UTF-8, rounded up, and nothing else has a cost.
        index: Reads from an entry which item it belongs to, counted from 0. Then entries may come in any order. Without
            it `send` returns a list with one entry per item, in their order.
        limiter: Charged for each call: the sum of the items' costs, and whatever units cost by default (1 request).
        split_on: Which errors may be the fault of a single item: exception types, or a function of the exception. A
            batch that fails with one is split in halves, down to the items. Default: all but errors that speak of the
            service, see `may_be_an_items_fault`. One bad item among n costs up to 2·log2(n) more calls, n bad ones
            2·n - 2.

    An entry that is itself an exception is raised, in its caller alone. None of the functions but `send` may be async.

    Raises:
        ValueError: A bound is out of its range.
        TypeError: `send` cannot be called, or another function is async.
    """

    def __init__(
        self,
        send: Callable[[list[Item]], Awaitable[Iterable[Entry] | AsyncIterable[Entry]] | AsyncIterable[Entry]],
        *,
        max_items: int = 100,
        max_cost: Mapping[str, float] | None = None,
        max_delay: Seconds = 0.01,
        cost: CostOf[Item] | None = None,
        index: Callable[[Any], int] | None = None,
        limiter: Limiter | None = None,
        split_on: SplitOn | None = None,
    ) -> None:
        _check_send(send)
        if index is not None:
            check_plain("Batcher", "index", index)
        seconds = span("Batcher(max_delay={})", max_delay, zero=True)
        if limiter is not None and not callable(getattr(limiter, "acquire", None)):
            raise TypeError(f"Batcher(limiter={repr_of(limiter)}): a Limiter is needed, or None")
        count = read_count(max_items)
        if count is None:
            raise ValueError(f"max_items must be 1 or more, not {repr_of(max_items)}")
        bounds = read_max_cost(max_cost)
        self._options = BatcherOptions(send, count, bounds, seconds, index, limiter, judge_of(split_on))
        self._cost = cost_function(cost, bounds, limiter)
        self._here = threading.local()

    async def __call__(self, item: Item) -> Entry:
        """Wait for a batch, and return the entry of this item.

        Cancelling withdraws the item unless it was sent.

        Raises:
            Unsatisfiable: The item alone costs more than `max_cost`.
            MissingUnit: `max_cost` bounds a unit for which the item has no cost.
            ReplyMismatch: The reply does not say which entry is ours.
            Exception: Whatever `send` or the limiter raised. All callers of one batch get the same object.
        """
        cost = None if self._cost is None else price(item, self._cost(item), self._options.max_cost)
        loop = tasks.running_loop()
        queue: CallerQueue | None = getattr(self._here, "queue", None)
        if queue is None or queue.loop is not loop:
            # A thread runs one loop after another. The callers of an old queue are with its own tasks.
            queue = self._here.queue = CallerQueue(self._options, loop)
        caller = WaitingCaller(item, cost, queue)
        queue.join(caller)
        try:
            await caller.parker.park(math.inf)
        except BaseException:
            await caller.leave()
            raise
        if caller.error is not None:
            caller.reraise()
        entry: Entry = caller.entry
        return entry

    def __repr__(self) -> str:
        return f"Batcher({name_of(self._options.send)}, max_items={self._options.max_items})"


def _check_send(send: object) -> None:
    """Refuse what no call can be made with. A plain callable may return an awaitable, so that shows only later."""
    if not callable(send):
        raise TypeError(f"Batcher({repr_of(send)}): an async function of a list of items is needed")
    if kind_of(send) in {"generator", "context", "async context"}:
        raise TypeError(
            f"Batcher({name_of(send)}): send must be an async function or an async generator function, "
            "and this one is a generator or a context manager"
        )


def may_be_an_items_fault(error: Exception) -> bool:
    """Whether a single item of a batch may be to blame for `error`: the default of `Batcher(split_on=...)`.

    No for errors that speak of the service or the way to it, since a split batch is many more calls: errors of
    penstock's own, `OSError` with its kin (timeouts, broken connections), errors of clients that have a `request` and
    no reply, and the HTTP statuses 401, 403, 407, 408, 425, 429 and from 500. Yes for all others: 400, 413, 422 and
    unknown errors. A property of the error that raises counts as absent.
    """
    if issubclass(
        type(error), PenstockError | OSError | MemoryError
    ):  # `isinstance` may ask the error, which may raise
        return False
    reply = attribute_of(error, "response")
    for status in (
        attribute_of(error, "status_code"),
        attribute_of(error, "status"),
        attribute_of(reply, "status_code"),
    ):
        if isinstance(status, int):
            return 400 <= status < 500 and status not in _OF_THE_SERVICE
    return reply is not None or not _has_request(error)


def _has_request(error: Exception) -> bool:
    try:
        return getattr(error, "request", None) is not None
    except RuntimeError:  # httpx: it is an error of a request, which is not set
        return True
    except Exception as raised:  # whatever a property of the user's raises
        if is_an_interruption(raised):
            raise
        return False


def judge_of(split_on: SplitOn | None) -> Callable[[Exception], bool]:
    """Return what tells whether a failed batch is split."""
    if split_on is None:
        return may_be_an_items_fault
    if isinstance(split_on, type | tuple):
        given: tuple[Any, ...] = split_on if isinstance(split_on, tuple) else (split_on,)
        for kind in given:
            if not (isinstance(kind, type) and issubclass(kind, BaseException)):
                raise TypeError(
                    f"Batcher(split_on={repr_of(split_on)}): exception types, or a function of the exception"
                )
        return lambda error: issubclass(type(error), given)
    check_plain("Batcher", "split_on", split_on)
    judge: Callable[[Exception], bool] = split_on
    return lambda error: is_true_of("Batcher", "split_on", judge, error)
