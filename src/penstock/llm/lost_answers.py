"""Free the places of answers that were dropped unread, if only the garbage collector can find them.

The streams of some SDKs refer to themselves. If a request would have to wait for a place and no caller reads one of the
answers, the collector is run. A dropped answer may still be held for a moment, for instance by a thread that logs it.
So while requests wait for a place the collector is run again, at growing intervals.
"""

from __future__ import annotations

import gc
import math
import weakref
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from penstock import InFlight, clock
from penstock._concurrency.parking import start_timer
from penstock._concurrency.shared_state import members

if TYPE_CHECKING:
    from penstock import Limiter
    from penstock.llm.endpoints import Endpoint

__all__ = ["FIRST_GAP", "Collector"]

FIRST_GAP, LONGEST_GAP = 0.5, 600.0  # seconds


class Collector:
    """Looks for lost answers of one endpoint.

    Args:
        answers: Those of all endpoints that are not read to their end: each says whether it `may_be_lost`.
    """

    def __init__(self, answers: weakref.WeakSet[Any]) -> None:
        self._answers = answers
        self._not_before = -math.inf
        self._gap = FIRST_GAP
        self._asking: weakref.WeakSet[object] = weakref.WeakSet()

    def asks(self, request: object) -> None:
        """A request is about to ask for its turn. It may come to wait for it only later, where its thread is busy."""
        self._asking.add(request)

    def asked(self, request: object) -> None:
        """It has its answer. One that is given up is dropped, and need not say so."""
        self._asking.discard(request)

    def free_a_place(self, endpoint: Endpoint, limiter: Limiter, charges: Mapping[str, float]) -> None:
        """Have the places of lost answers come back, if a request would have to wait for one."""
        if clock.now() < self._not_before or not any(each.may_be_lost(endpoint) for each in members(self._answers)):
            return
        if not _is_place_missing(limiter, charges):
            return
        gc.collect()
        endpoint.sweep()
        if not _is_place_missing(limiter, charges):
            self._gap = FIRST_GAP
            return
        self._not_before = clock.now() + self._gap
        if clock.is_real():
            with suppress(RuntimeError):  # no thread can be started, as at the end of the program
                start_timer(self._gap, partial(self._look_again, endpoint, limiter, charges))
        self._gap = min(2 * self._gap, LONGEST_GAP)

    def _look_again(self, endpoint: Endpoint, limiter: Limiter, charges: Mapping[str, float]) -> None:
        self._not_before = -math.inf
        if limiter.statistics().waiting or members(self._asking):
            self.free_a_place(endpoint, limiter, charges)


def _is_place_missing(limiter: Limiter, charges: Mapping[str, float]) -> bool:
    try:
        blocked_by = limiter.forecast(charges).blocked_by
    except Exception:  # noqa: BLE001 - a store that is far away does not know
        return False
    return any(isinstance(limit, InFlight) for limit in limiter.limits.get(blocked_by or "", ()))
