"""Whether a single item may be to blame for the failure of its batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from penstock._introspect import check_plain
from penstock._retry_after import attribute_of
from penstock._user_errors import is_true_of
from penstock.errors import PenstockError

SplitOn = type[BaseException] | tuple[type[BaseException], ...] | Callable[[Exception], bool]

_OF_THE_SERVICE = frozenset({401, 403, 407, 408, 425, 429})


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
    except Exception:  # noqa: BLE001 - whatever a property of the user's raises
        return False


def judge_of(split_on: SplitOn | None) -> Callable[[Exception], bool]:
    """Return what tells whether a failed batch is split."""
    if split_on is None:
        return may_be_an_items_fault
    if isinstance(split_on, type | tuple):
        given: tuple[Any, ...] = split_on if isinstance(split_on, tuple) else (split_on,)
        for kind in given:
            if not (isinstance(kind, type) and issubclass(kind, BaseException)):
                raise TypeError(f"Batcher(split_on={split_on!r}): exception types, or a function of the exception")
        return lambda error: issubclass(type(error), given)
    check_plain("Batcher", "split_on", split_on)
    judge: Callable[[Exception], bool] = split_on
    return lambda error: is_true_of("Batcher", "split_on", judge, error)
