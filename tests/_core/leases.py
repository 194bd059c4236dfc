"""Limits that are held in part, and those who wait for them: what the tests of leases have in common."""

from __future__ import annotations

from hypothesis import strategies as st

from penstock._core.lease import Lease, Leased, LeasePool, working
from penstock._core.limit_state import meter_for
from penstock._core.queue import Waiter

NOW = 1000.0

AMOUNTS = st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(0, 4)).filter(any)
"""How much one who waits needs of each of three limits; of one at least."""


def leased(limit, *, lease_seconds=8.0, held=0.0, used=0.0, unit="tokens"):
    """A limit of which `held` units lie here for as long as it takes, and `used` are used as the store says."""
    state = Leased(unit, limit, unit)
    state.meter = meter_for(working(limit, lease_seconds))
    state.meter.charge(used, NOW)
    state.pool = LeasePool()
    if held:
        hold(state, held)
    return state


def hold(state, amount, opens=0.0, closes=9999.0, receipt=1.0):
    state.pool.add(Lease(float(amount), opens, closes, 7.0, receipt))


def waits(queue, *charges, priority=0):
    """Somebody who waits for these, with its limits in any order."""
    waiter = Waiter(tuple((state, float(amount)) for state, amount in charges), priority)
    queue.join(waiter, NOW)
    return waiter
