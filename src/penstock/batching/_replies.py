"""Match the entries of a reply to the items of a call: by their order, or by an index that each entry has."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from penstock._introspect import check_answer
from penstock.errors import PenstockError


class ReplyMismatch(PenstockError, ValueError):  # noqa: N818 - it names what is wrong, as the other errors do
    """The reply does not say which entry belongs to which item.

    Attributes:
        sent: Number of items in the call.
        received: Number of entries in its reply; None if it has none.
    """

    def __init__(self, message: str, *, sent: int, received: int | None) -> None:
        super().__init__(message)
        self.sent = sent
        self.received = received


def entries_of(reply: Any, count: int, index: Callable[[Any], int] | None) -> Sequence[Any]:
    """Return the entry of each item, in order; a `ReplyMismatch` in the place of an entry that is unclear.

    Raises:
        ReplyMismatch: No caller can be sure of its entry.
    """
    return _in_order(reply, count) if index is None else _by_index(reply, count, index)


def _in_order(reply: Any, count: int) -> Sequence[Any]:
    if not isinstance(reply, Sequence | _Array) or isinstance(reply, str | bytes | Mapping):
        raise ReplyMismatch(
            f"send was given {count} items and returned {type(reply).__name__}: return a list with one entry per item, "
            "in their order, or say with index= how to read an entry's index",
            sent=count,
            received=None,
        )
    if len(reply) != count:
        raise ReplyMismatch(
            f"send was given {count} items and returned {len(reply)} entries: return one entry per item, "
            "in their order, or say with index= how to read an entry's index",
            sent=count,
            received=len(reply),
        )
    return list(reply)


def _by_index(reply: Any, count: int, index: Callable[[Any], int]) -> Sequence[Any]:
    if not isinstance(reply, Iterable) or isinstance(reply, str | bytes | Mapping):
        raise ReplyMismatch(
            f"send was given {count} items and returned {type(reply).__name__}: with index=, return the entries",
            sent=count,
            received=None,
        )
    received = list(reply)
    by_index: dict[int, list[Any]] = {}
    for entry in received:
        answer = index(entry)
        check_answer("Batcher", "index", answer)
        position = operator.index(answer)
        if not 0 <= position < count:
            # If they were counted from 1, each caller but the first would get its neighbour's. So none gets any.
            raise ReplyMismatch(
                f"an entry of the reply has index {position}, but the {count} items sent have 0 to {count - 1}",
                sent=count,
                received=len(received),
            )
        by_index.setdefault(position, []).append(entry)
    return [_only(by_index.get(position, []), position, count, len(received)) for position in range(count)]


def _only(entries: list[Any], position: int, count: int, received: int) -> Any:
    """The one entry of a position; else the error for its caller alone."""
    if len(entries) == 1:
        return entries[0]
    what = f"{len(entries)} entries of the reply have" if entries else "no entry of the reply has"
    return ReplyMismatch(
        f"{what} index {position}: send was given {count} items and returned {received} entries",
        sent=count,
        received=received,
    )


@runtime_checkable
class _Array(Protocol):
    """What can be counted and read by position: also arrays, which are no `Sequence`."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[Any]: ...
    def __getitem__(self, position: int, /) -> Any: ...
