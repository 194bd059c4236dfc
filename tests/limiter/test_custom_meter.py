"""A kind of limit of one's own, with as little as the protocol asks for."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from penstock import Keyed, Limiter, Meter, RateLimited, in_flight

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


def test_a_meter_that_asks_its_own_limiter_is_told_that_a_decision_is_under_way():
    """Also what a signal handler is told that comes in the middle of one: nothing hangs, and nothing is lost."""
    told = []

    class Nosy(AtMostOneAMinute):
        def charge(self, cost, now):
            held.close()  # it ends when the decision is over
            with pytest.raises(RateLimited) as caught:
                limiter.acquire_nowait()
            told.append((caught.value.retry_after, limiter.forecast().wait, limiter.statistics().in_flight))
            return super().charge(cost, now)

    @dataclass(frozen=True)
    class NosyLimit(OneAMinute):
        default: float | None = 0

        def meter(self):
            return Nosy()

    limiter = Limiter(visits=NosyLimit(), calls=in_flight(2))
    held = limiter.acquire_nowait()
    limiter.acquire_nowait(visits=1).close()
    assert told == [(0, 0, told[0][2])]
    assert limiter.statistics().in_flight == 0
    assert limiter.statistics().granted == 2


class Unhashable:
    """A number that cannot be looked up, as an array of one."""

    __hash__ = None

    def __init__(self, value):
        self.value = value

    def __float__(self):
        return float(self.value)


def test_a_number_that_cannot_be_looked_up_is_a_cost_like_any_other():
    limiter = Limiter(tokens="10/day", calls=in_flight(5))
    for _ in range(2):
        with limiter(tokens=Unhashable(2)):
            pass
        limiter.acquire_nowait(tokens=Unhashable(1)).close()
    assert round(limiter.statistics().limits["tokens"].level, 2) == 4


def test_of_thousands_of_costs_a_few_are_remembered_and_all_are_right(monkeypatch):
    """A program whose every call costs something else does not fill the memory."""
    monkeypatch.setattr("penstock._backends.alike._MOST_KNOWN", 4)
    limiter = Limiter(tokens="1M/s")
    for each in limiter, Keyed(tokens="1M/s")["alice"]:
        for cost in range(1, 21):
            with each(tokens=cost) as permit:
                assert permit.cost == {"tokens": cost}
    assert len(limiter._calls) <= 5  # and the count of what was not
    assert len(limiter._quick) <= 5
