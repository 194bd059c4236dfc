"""Leases: quota that one process hands out by itself for a while.

Nothing here waits, reads a clock or talks to a store. The store charges a *lease* at one moment, `a`; the process uses
it up at moments of its own, without asking. So what counts at `a` is used later, and the shared limit has to be a
little tighter than what was promised.

**The invariant**, for a lease of `lease_seconds` seconds:

1. A lease is used within `[a, a + lease_seconds]`, never before and never after, and never more of it than was charged.
2. The store counts buckets with a burst of `burst − rate · lease_seconds`, and sliding windows as `lease_seconds`
longer than they are.

What is used in a span of T seconds is of leases that were admitted in that span or up to `lease_seconds` before it. Of
those the store admits at most `(burst − rate · lease_seconds) + rate · (T + lease_seconds)`, which is `burst + rate ·
T`: what was promised, for any caller, and however leases are split, returned, or lost with the process that had them. A
window that holds at most n in `per + lease_seconds` seconds of admissions holds at most n in any `per` seconds of use.
A calendar period needs nothing but that a lease is not used beyond its end.

The process does not know `a`, only that it lies between the moments at which it asked and was answered, each `wait`
later. So it uses the lease in `[received + wait, sent + wait + lease_seconds]`, by a clock that never steps: that lies
within `[a, a + lease_seconds]` wherever `a` is.

What is not used goes back to the store by its rule for refunds, after which it is not used here any more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from heapq import heappop, heappush
from typing import Any, NamedTuple

from penstock._core.bucket import Bucket
from penstock._core.limit_state import LimitState
from penstock._core.queue import Queue
from penstock._core.subqueues import Key, Waiter
from penstock._numbers import show_seconds
from penstock._text import repr_of
from penstock.limits import Calendar, InFlight, Rate, Sliding, Unlimited

MOST_REQUESTS = 8
"""The most parts in which a lease is asked for, so that a limit that is nearly used up gives what it has."""

STEP = 0.020
"""Seconds of a limit's throughput below which a lease is not cut: the requests of a reserved one arrive about that far
apart."""

FAIR = 1 / 4
"""The part of `rate · lease_seconds` that one process may hold beyond what its queue needs now."""

SHARE_OF_PLENTY = 1 / 8
"""The part of what a limit has left that one process may hold, where that is more."""


def working(limit: Any, lease_seconds: float) -> Any:
    """The limit that the store counts for `limit` under a lease of `lease_seconds` seconds."""
    if isinstance(limit, Rate):
        return replace(limit, burst=limit.burst - limit.rate * lease_seconds)
    if isinstance(limit, Sliding):
        return replace(limit, per=limit.per + lease_seconds)
    return limit


def check(unit: str, limit: Any, lease_seconds: float) -> None:
    """Refuse a lease that cannot be.

    Raises:
        ValueError: The limit is held and not spent, or too short or too small for a lease of that length.
    """
    if isinstance(limit, InFlight):
        raise ValueError(
            f"{unit}: places in flight are held, not spent, so there is nothing to lease: "
            "give them a limiter of their own, without lease=, and enter it first"
        )
    if isinstance(limit, Rate):
        burst, spread = float(limit.burst), limit.rate * lease_seconds
        if burst - spread < 1:
            way_out = f"raise burst to at least {spread + 1:g}"
            if burst > 1:
                way_out = f"use a lease of at most {show_seconds((burst - 1) / limit.rate)}, or {way_out}"
            raise ValueError(
                f"{unit}={limit} cannot be leased for {lease_seconds:g} s: what is leased may be used that much later, "
                f"so the shared bucket works with burst − rate × lease = {burst:g} "
                f"− {limit.rate:g} × {lease_seconds:g} = {burst - spread:g}, and needs at least 1. So {way_out}"
            )
    elif isinstance(limit, Sliding):
        if lease_seconds > limit.per:
            raise ValueError(
                f"{unit}={limit} cannot be leased for {lease_seconds:g} s, longer than its window: "
                f"it would be counted as a window of {limit.per + lease_seconds:g} s. "
                f"Use a lease well below {limit.per:g} s"
            )
    elif not isinstance(limit, Calendar | Unlimited):  # the latter is not counted
        raise ValueError(f"{unit}: {repr_of(limit)} cannot be leased: leave lease= out")


def window(sent: float, received: float, wait: float, lease_seconds: float) -> tuple[float, float]:
    """When a lease may be used that was asked for at `sent`, first of all times, and answered at `received`."""
    return received + wait, sent + wait + lease_seconds


class Lease:
    """Units of one limit that the store has charged to this process.

    Attributes:
        left: Units that are not used, of those charged.
        opens, closes: The first and the last moment at which they may be.
        epoch, receipt: What giving back needs.
    """

    __slots__ = ("closes", "epoch", "left", "opens", "receipt")

    def __init__(self, amount: float, opens: float, closes: float, epoch: float, receipt: float) -> None:
        self.left = amount
        self.opens = opens
        self.closes = closes
        self.epoch = epoch
        self.receipt = receipt


Share = tuple["Leased", float, float, float]
"""What a permit has of a lease: the limit, the units, and the epoch and receipt of the lease."""


class LeasePool:
    """What this process holds of one limit.

    Attributes:
        left: Units in all leases, those that are not open yet among them.
        used: All that was ever taken and not put back.
        low: Below this many units left, more should be asked for.
        whole: Whether all that was ever taken were whole units; then parts of one are not asked for.
    """

    __slots__ = ("_demand", "asked_at", "leases", "left", "low", "used", "used_then", "whole")

    def __init__(self) -> None:
        self.leases: list[Lease] = []  # those that close first come first
        self.left = 0.0
        self.used = 0.0
        self.low = 0.0
        self.whole = True
        self.used_then = 0.0  # `used` when more was asked for last, and when that was
        self.asked_at = -math.inf
        self._demand = 0.0

    def add(self, lease: Lease) -> None:
        """Take in a lease, to be used when it opens."""
        leases = self.leases
        at = len(leases)
        while at and leases[at - 1].closes > lease.closes:
            at -= 1
        leases.insert(at, lease)
        self.left += lease.left

    def free(self, now: float) -> float:
        """Units that may be used now."""
        return sum([lease.left for lease in self.leases if lease.opens <= now <= lease.closes])

    def lasting(self, until: float) -> float:
        """Units that do not go back before `until`."""
        return sum([lease.left for lease in self.leases if lease.closes >= until])

    def take(self, amount: float, now: float) -> list[tuple[Lease, float]] | None:
        """Use `amount` of the open leases, those that close first first. None if they have less: nothing is used."""
        taken: list[tuple[Lease, float]] = []
        missing = amount
        if amount % 1:
            self.whole = False
        for lease in self.leases:
            if lease.opens <= now <= lease.closes and lease.left > 0:
                part = lease.left if lease.left < missing else missing
                taken.append((lease, part))
                missing -= part
                if missing <= 0:
                    for of, part in taken:
                        of.left -= part
                    self.left -= amount
                    self.used += amount
                    return taken
        return None

    def put_back(self, amount: float, epoch: float, receipt: float, now: float) -> bool:
        """Have back what was taken of a lease and not used after all. False: it is closed, the store must have it."""
        for lease in self.leases:
            if lease.receipt == receipt and lease.epoch == epoch and now <= lease.closes:
                lease.left += amount
                self.left += amount
                self.used -= amount
                return True
        return False

    def sweep(self, now: float) -> list[Lease]:
        """Part with the leases that are closed; return those of them that have something left, which must go back."""
        closed = [lease for lease in self.leases if now > lease.closes]
        return self._part_with(closed) if closed else closed

    def drain(self) -> list[Lease]:
        """Part with all leases; return those that have something left, which must go back."""
        return self._part_with(list(self.leases))

    def _part_with(self, leases: list[Lease]) -> list[Lease]:
        self.leases = [lease for lease in self.leases if lease not in leases]
        self.left = math.fsum(lease.left for lease in self.leases)
        return [lease for lease in leases if lease.left > 0]

    def demand(self, now: float, lease_seconds: float, bound: float) -> float:
        """Units that this process could use in its next `lease_seconds`, by what it used since it asked last.

        It grows by doubling from what is really used, and is never more than would be used up in time.
        """
        used, span = self.used - self.used_then, now - self.asked_at
        demand = min(4 * used, 0.75 * lease_seconds * used / max(span, 1e-6))
        if span >= lease_seconds / 8 or demand > self._demand:
            self._demand = demand
        return min(self._demand, bound)


class Leased(LimitState):
    """One limit of which leases may be held."""

    __slots__ = ("pool",)

    pool: LeasePool


Charges = Sequence[tuple[Leased, float]]


def take(charges: Charges, now: float) -> list[Share] | None:
    """Use all of `charges` out of what is held, or nothing."""
    shares: list[Share] = []
    for state, amount in charges:
        taken = state.pool.take(amount, now) if state.paused_until <= now else None
        if taken is None:
            for of, part, epoch, receipt in shares:
                of.pool.put_back(part, epoch, receipt, now)
            return None
        for lease, part in taken:
            shares.append((state, part, lease.epoch, lease.receipt))
    return shares


def put_back(shares: Iterable[Share], now: float) -> list[Share]:
    """Undo `take`; return what must go back to the store instead, as its lease is closed."""
    return [share for share in shares if not share[0].pool.put_back(share[1], share[2], share[3], now)]


def serve(queue: Queue, now: float, grant: Callable[[Waiter, list[Share]], None]) -> None:
    """Grant every waiter in `queue` for which enough is held: take it and the waiter, and call `grant`.

    A waiter is not delayed by those behind it: they get nothing of a limit that is short, and of the others only what
    is more than those before them need.
    """
    heads: list[tuple[Key, Waiter]] = queue.heads(now)
    kept: dict[LimitState, float] = {}
    while heads:
        _, waiter = heappop(heads)
        while True:
            charges: Charges = waiter.charges
            shares = None
            if not kept or all(state.pool.free(now) - kept.get(state, 0.0) >= amount for state, amount in charges):
                shares = take(charges, now)
            if shares is None:
                for state, amount in charges:
                    kept[state] = kept.get(state, 0.0) + amount
                break
            behind = queue.take(waiter)
            grant(waiter, shares)
            if behind is None:
                break
            if heads and behind[0] > heads[0][0]:
                heappush(heads, behind)
                break
            waiter = behind[1]


class LeaseRequest(NamedTuple):
    """A part of a lease to ask for: so much of several limits, at one moment, at most `horizon` seconds ahead."""

    charges: list[tuple[Leased, float]]
    horizon: float


def plan(
    queue: Queue, states: Sequence[Leased], now: float, lease_seconds: float, *, more: bool
) -> tuple[list[LeaseRequest], float]:
    """What to ask the store for, first things first; nothing if what is held, or coming, will do for a while.

    First what the first of each shape needs, whenever the store can give it; then what those behind, and calls to come,
    could use: of that only what is there, or will be within a part of the lease_seconds.

    Args:
        states: All limits that are held together.
        more: Whether to ask for more than the first in the queue need.

    Returns:
        The requests, and when to look again for a waiter for the end of a pause or of a period; `inf`: there is none.
    """
    ahead = lease_seconds * FAIR
    requests, wanted, again = _for_the_heads(queue, ahead, now)
    if not more and not requests:
        return [], again
    short = bool(requests)
    for state in states:
        pool, rate = state.pool, _rate(state)
        if state.paused_until > now:
            continue
        level = max(0.0, state.meter.level(now))
        bound = max(rate * ahead, level * SHARE_OF_PLENTY)
        demand = pool.demand(now, lease_seconds, bound)
        target = min(state.queued, level + rate * ahead) + demand
        pool.low = target / 2
        held = pool.lasting(now + min(ahead / 2, STEP))
        wanted[state] = wanted.get(state, 0.0) + target - held
        short = short or held < pool.low
    if more and short:
        more_of = {state: amount for state, amount in wanted.items() if amount > 0}
        requests += _cut(more_of, ahead if len(queue) else 0.0, now)
    return requests, again


def _for_the_heads(queue: Queue, ahead: float, now: float) -> tuple[list[LeaseRequest], dict[Leased, float], float]:
    """What the first of each shape needs; the same with a minus, per limit; and when to look again, as `plan`."""
    requests: list[LeaseRequest] = []
    wanted: dict[Leased, float] = {}
    again = math.inf
    asked: set[LimitState] = set()
    for _, waiter in queue.heads(now):
        charges: Charges = waiter.charges
        closed = max(_closed_until(state, amount, now) for state, amount in charges)
        if closed > now:
            again = min(again, closed)
        elif any(state.pool.left < amount for state, amount in charges):
            alone = asked.isdisjoint(state for state, _ in charges)
            needed = _needed(charges, min(ahead / 4, STEP))
            requests.append(LeaseRequest(needed, math.inf if alone else min(ahead, STEP)))
            for state, amount in needed:
                wanted[state] = wanted.get(state, 0.0) - amount
        asked.update(state for state, _ in charges)
    return requests, wanted, again


def _needed(charges: Charges, spread: float) -> list[tuple[Leased, float]]:
    """What to ask for, for the first in the queue and for those like it behind it that flow in within `spread` seconds.

    Of a bucket all that it needs, so that it can go when that comes, even if what is held now has gone back by then.
    What does not flow in may be used up to its last unit, so of that only what is missing.
    """
    alike = max(
        1, min(math.floor(min(state.queued, _rate(state) * spread, _most(state)) / amount) for state, amount in charges)
    )
    needed = []
    for state, amount in charges:
        held = 0.0 if isinstance(state.meter, Bucket) else state.pool.left
        if amount > held:
            needed.append((state, alike * amount - held))
    return needed


def _closed_until(state: Leased, amount: float, now: float) -> float:
    """When more of `state` can be asked for, which in most cases is at any time."""
    if state.paused_until > now:
        return state.paused_until
    missing = amount - state.pool.left
    return state.meter.ready_at(missing, now) if missing > 0 and not isinstance(state.meter, Bucket) else now


def _rate(state: Leased) -> float:
    """Units per second that flow in; 0 where they come back all at once."""
    return state.limit.rate if isinstance(state.limit, Rate) else 0.0


def _most(state: Leased) -> float:
    """Units that the store can ever give at once: for more, it would let the bucket stand full before it does."""
    return state.meter.burst if isinstance(state.meter, Bucket) else state.limit.capacity


def _cut(wanted: dict[Leased, float], horizon: float, now: float) -> list[LeaseRequest]:
    """Pieces of all of that together, each with its part of every limit."""
    part, count = 1.0, 1.0
    for state, amount in wanted.items():
        rate = _rate(state)
        there = max(0.0, state.meter.level(now)) + rate * horizon
        part = min(part, there / amount)
    for state, amount in wanted.items():
        step = max(1.0, _rate(state) * STEP)
        count = max(count, part * amount / step)
    number = min(MOST_REQUESTS, math.ceil(count - 1e-9))
    charges = []
    for state, amount in wanted.items():
        each = part * amount / number
        if state.pool.whole:
            each = math.floor(each + 1e-9)
        if each > 0:
            charges.append((state, min(float(each), _most(state))))
    return [LeaseRequest(charges, horizon) for _ in range(number)] if charges else []
