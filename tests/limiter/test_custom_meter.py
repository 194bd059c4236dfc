"""A kind of limit of one's own, with as little as the protocol asks for."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from penstock import Limiter, Meter, RateLimited

pytestmark = pytest.mark.anyio


class AtMostOneAMinute(Meter):
    """`ready_at`, `charge` and `level` alone, and a charge that leaves no receipt."""

    def __init__(self):
        self.free_at = 0.0

    def ready_at(self, cost, now):
        return max(now, self.free_at)

    def charge(self, cost, now):
        self.free_at = now + 60 * cost

    def level(self, now):
        return float(now >= self.free_at)


@dataclass(frozen=True)
class OneAMinute:
    capacity: float = 1
    default: float | None = 1

    def meter(self):
        return AtMostOneAMinute()


async def test_a_meter_without_receipts_serves_waiters(virtual_time):
    """`charge` may return None: that is no receipt, and not "not ready"."""
    limiter = Limiter(visits=OneAMinute())
    for moment in (0, 60, 120):
        await limiter.acquire()
        assert virtual_time.now() == moment
    assert limiter.statistics().granted == 3


class NotYet(OneAMinute):
    """A limit whose meter follows something outside: it is not ready when it is looked at, and is a moment later."""

    def __init__(self, looks):
        super().__init__()
        object.__setattr__(self, "looks", looks)

    def meter(self):
        limit = self

        class Mind(AtMostOneAMinute):
            def ready_at(self, cost, now):
                object.__setattr__(limit, "looks", limit.looks - 1)
                return super().ready_at(cost, now) if limit.looks < 0 else now + 1

        return Mind()


@pytest.mark.parametrize("looks", range(6))
async def test_a_meter_that_changes_its_mind_grants_nothing_that_is_not_charged(virtual_time, looks):
    """`acquire_nowait` returned a permit of nothing, and left a place in the line that nobody could be woken in."""
    limiter = Limiter(visits=NotYet(looks))
    try:
        permit = limiter.acquire_nowait()
    except RateLimited:
        pass
    else:
        assert permit.cost == {"visits": 1}
    assert limiter.statistics().waiting == 0
