"""A server whose clock is put forward or back by an hour: nothing is granted twice for it, and nobody waits an hour."""

from __future__ import annotations

import time

import pytest

from penstock import Limiter, calendar, in_flight, per_second, sliding
from penstock.stores import RedisStore

HOUR = 3_600.0

LIMITS = {
    "rate": lambda: per_second(20, burst=2),
    "sliding": lambda: sliding(2, 0.2),
    "calendar": lambda: calendar(2, 0.2),
    "in flight": lambda: in_flight(2),
    "in flight, for a time": lambda: in_flight(2, ttl=60),
}

pytestmark = pytest.mark.anyio


class SteppingClock(RedisStore):
    """A server by whose clock it is `ahead` seconds later than here."""

    ahead = 0.0

    def decide(self, batch):
        return self.decide_at(batch, float(round((time.time() + self.ahead) * 1e6)))


@pytest.mark.parametrize("steps", [(HOUR,), (-HOUR,), (HOUR, 0.0), (-HOUR, 0.0)], ids=str)
@pytest.mark.parametrize("kind", LIMITS)
async def test_calls_go_on_when_the_clock_of_the_server_has_stepped(kind, steps, valkey, prefix):
    """Also one that is asked for right after the step: it was refused for an hour, as its period was another time's."""
    store = SteppingClock(valkey, prefix=prefix, timeout=5)
    limiter = Limiter(x=LIMITS[kind](), name="x", store=store)
    for ahead in steps:
        permits = [await limiter.acquire(x=1, max_wait=20) for _ in range(2)]
        store.ahead = ahead
        for permit in permits:
            permit.close()
        permits = [await limiter.acquire(x=1, max_wait=20) for _ in range(2)]
        assert limiter.statistics().refused == 0
        for permit in permits:
            permit.close()
    store.close()


@pytest.mark.parametrize("ahead", [HOUR, -HOUR], ids=str)
async def test_places_that_are_held_are_not_given_twice_when_the_clock_has_stepped(ahead, valkey, prefix):
    store = SteppingClock(valkey, prefix=prefix, timeout=5)
    limiter = Limiter(x=in_flight(2, ttl=2 * HOUR), name="x", store=store)
    permits = [await limiter.acquire(max_wait=20) for _ in range(2)]
    store.ahead = ahead
    await limiter.refresh()
    assert limiter.statistics().in_flight == 2
    for permit in permits:
        permit.close()
    store.close()
