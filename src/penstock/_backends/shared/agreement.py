"""Keep the processes of one name agreed on its limits: adopt what another process changed, or report the conflict.

`stores.contract.Terms` says what is compared; the store only reports that limits differ.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from penstock._backends.shared.leasing import Leasing
from penstock._backends.shared.limit_set import SharedLimitSet
from penstock._backends.shared.requests import LeaseAsked, Stage
from penstock._backends.shared.state import SchedulerState, again
from penstock._backends.shared.wire import BatchInFlight
from penstock.errors import ConfigurationConflict, PenstockError
from penstock.limits import Limit, Unlimited
from penstock.stores.contract import Terms

DIVIDED = (
    "they live in different hash slots of the cluster, which cannot be decided together: "
    "write their limits into one limiter, or give both names of one group, "
    """such as 'org:chat' and 'org:embed' with RedisStore(..., group=lambda name: name.split(":")[0])"""
)
"""What is wrong with limits that the store cannot decide together, and the way out."""


NOTHING = "{}"
"""The text of terms that count nothing."""


class Agreement:
    """Sees to it that the waiters of a name are charged on the limits that all processes have agreed on."""

    def __init__(self, state: SchedulerState, leasing: Leasing) -> None:
        self._state = state
        self._leasing = leasing

    def disagree(self, batch: BatchInFlight, others: Mapping[str, str], now: float) -> list[SharedLimitSet]:
        """Adopt the limits of names that are counted for others than ours, or tell the callers. Nothing was decided.

        Returns the names whose limits are others now: their waiters must be charged anew, see `recharge`.
        """
        adopted = []
        for limit_set in batch.offsets:
            text = others.get(limit_set.name)
            if text is None:
                continue
            if limit_set in self._state.changes:  # the store has not heard of them yet, and answers now
                self._state.change_at = -math.inf
                continue
            theirs = Terms.of_text(limit_set.name, text, limit_set.place_ttl)
            alike = limit_set.replaces or theirs.limits.keys() <= limit_set.states.keys()
            if limit_set.agreed and alike and theirs.lease == limit_set.lease:
                self._adopt(limit_set, theirs, now)
                adopted.append(limit_set)
            elif limit_set.replaces and theirs.lease == limit_set.lease:
                self._state.changes[limit_set] = None
            else:
                error = conflict(limit_set.name, str(theirs), str(limit_set.terms))
                limit_set.confirming = False
                waiting = [*batch.asked, *limit_set.queue.waiters]
                for request in waiting:
                    self._refuse_if_of(request, limit_set, error)
                self._state.answer_looks([look for look in batch.looks if look.limit_set is limit_set], error)
                batch.looks = [look for look in batch.looks if not look.done]
                batch.leave_unsaid(limit_set)
        return adopted

    def read(self, limit_set: SharedLimitSet, text: str | None, now: float) -> bool:
        """Hear what others count under a name of which nothing is counted here; return whether ours are theirs now.

        What they count from the beginning is a conflict, and what they have changed since is adopted.
        """
        first, limit_set.read = limit_set.read is None and not limit_set.agreed, text or NOTHING
        limit_set.refusal = None
        if limit_set.order or limit_set.replaces or limit_set in self._state.changes:
            return False
        if text is None or text == limit_set.terms.text:
            return False
        theirs = Terms.of_text(limit_set.name, text, limit_set.place_ttl)
        if first or not theirs.limits.keys() <= limit_set.states.keys() or theirs.lease != limit_set.lease:
            limit_set.refusal = conflict(limit_set.name, str(theirs), "nothing but unlimited")
            return False
        self._adopt(limit_set, theirs, now)
        return True

    def _refuse_if_of(self, request: Any, limit_set: SharedLimitSet, error: Exception) -> None:
        if type(request) is LeaseAsked or request.stage not in {Stage.ASKED, Stage.QUEUED}:
            return
        if any(of.limit_set is limit_set for of, _ in request.charges):
            self._state.queue_of(request).waiters.leave(request)
            self._state.refuse(request, again(error))

    @staticmethod
    def _adopt(limit_set: SharedLimitSet, theirs: Terms, now: float) -> None:
        """Another process has reconfigured: its limits are ours from now on; what calls cost by default stays ours."""
        limits: dict[str, tuple[Limit, ...]] = dict(theirs.limits)
        for unit, before in limit_set.limits().items():
            default = next((limit.default for limit in before if limit.default is not None), None)
            kinds: tuple[Any, ...] = theirs.limits.get(unit, (Unlimited(),))
            limits[unit] = tuple(replace(limit, default=default) for limit in kinds)
        limit_set.promise(limits, now)

    def recharge(self, limit_set: SharedLimitSet, now: float) -> None:
        """The limits have changed: let all waiters be charged on those of now."""
        state, queue = self._state, limit_set.queue
        for request in list(queue.reserved):
            if any(of.limit_set is limit_set for of, _ in request.charges):
                queue.reserved.remove(request)
                state.give_back(request)
                state.stay(request, queue, now)
        queue.bookings.clear()  # the store has forgotten them
        for of in limit_set.order:
            self._leasing.return_leases(of, of.pool.drain())
        waiters: list[Any] = sorted(queue.waiters, key=lambda waiter: waiter.number)
        for request in waiters:
            queue.waiters.leave(request)
        for request in waiters:
            if self.charge_anew(request, now):
                queue.waiters.restore(request)
        for request in list(queue.fresh):
            if request.stage is Stage.NEW:
                self.charge_anew(request, now)
        queue.blocked.clear()
        state.dirty[queue] = None

    def charge_anew(self, request: Any, now: float) -> bool:
        """Charge a request on the limits of now; return whether it waits for them still, and has no answer."""
        try:
            request.charges = request.backend.charges(request.cost)
        except PenstockError as error:
            self._state.refuse(request, error)
            return False
        if request.charges:
            return True
        self._state.grant(request, now)  # nothing of it is limited any more
        return False


def conflict(name: str, there: str, here: str) -> ConfigurationConflict:
    return ConfigurationConflict(
        f'"{name}" has other limits in the store: {there} there, {here} here. Use one name for one set of limits; '
        "to change them for all processes, call reconfigure() in one that has the old ones"
    )
