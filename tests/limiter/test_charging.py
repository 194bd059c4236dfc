"""What a call is charged: each kind of limit, all units or none, and nothing that was not used."""

from __future__ import annotations

import math

import anyio
import anyio.to_thread
import pytest

from penstock import (
    Keyed,
    Limiter,
    Rate,
    RateLimited,
    calendar,
    clock,
    in_flight,
    per_minute,
    per_second,
    sliding,
)

pytestmark = pytest.mark.anyio


async def test_a_full_bucket_of_ten_grants_exactly_ten(virtual_time):
    limiter = Limiter(requests=per_minute(10))
    for _ in range(10):
        limiter.acquire_nowait()
    with pytest.raises(RateLimited) as refused:
        limiter.acquire_nowait()
    assert refused.value.retry_after == pytest.approx(6.0)
    assert refused.value.blocked_by == "requests"


@pytest.mark.parametrize("cost", [0.1, 0.01, 0.001])
async def test_fractions_add_up_to_the_whole_burst(virtual_time, cost):
    limiter = Limiter(dollars=Rate(1, 86_400.0))
    for _ in range(round(1 / cost)):
        limiter.acquire_nowait(dollars=cost)
    with pytest.raises(RateLimited):
        limiter.acquire_nowait(dollars=cost)


async def test_retry_after_is_the_first_moment_that_succeeds(virtual_time):
    """Promise 7: at `retry_after` it succeeds, and any earlier it fails."""
    for amount, per in [(7, 3.0), (3_500, 60.0), (1, 86_400.0), (90_000, 60.0), (13, 0.7)]:
        limiter = Limiter(requests=Rate(amount, per))
        limiter.acquire_nowait(requests=amount)
        with pytest.raises(RateLimited) as refused:
            limiter.acquire_nowait()
        virtual_time.advance(refused.value.retry_after * 0.999)
        with pytest.raises(RateLimited) as again:
            limiter.acquire_nowait()
        virtual_time.advance(again.value.retry_after)
        limiter.acquire_nowait()


async def test_both_units_are_charged_or_neither(virtual_time):
    """Promise 2: who must wait for tokens has not spent a request."""
    limiter = Limiter(requests=per_second(10), tokens=per_second(100))
    limiter.acquire_nowait(tokens=100)
    with pytest.raises(RateLimited) as refused:
        limiter.acquire_nowait(tokens=50)
    assert refused.value.blocked_by == "tokens"
    assert limiter.statistics().limits["requests"].level == 9


async def test_failed_calls_stay_charged(virtual_time):
    """Promise 8."""
    limiter = Limiter(requests=per_minute(2))
    with pytest.raises(ConnectionError):
        async with limiter():
            raise ConnectionError
    assert limiter.statistics().limits["requests"].level == 1
    permit = await limiter.acquire()
    with pytest.raises(ConnectionError), permit:
        raise ConnectionError
    assert limiter.statistics().limits["requests"].level == 0


async def test_sliding_is_strict_in_every_window(virtual_time):
    limiter = Limiter(requests=sliding(3, 10))
    log = []

    async def call():
        async with limiter():
            log.append(clock.now())

    async with anyio.create_task_group() as group:
        for i in range(9):
            group.start_soon(call)
            await anyio.sleep([0, 4, 0, 1, 0, 0, 0, 0, 0][i])
    assert all(later - earlier >= 10 for earlier, later in zip(log, log[3:], strict=False))
    assert log == [0.0, 0.0, 4.0, 10.0, 10.0, 14.0, 20.0, 20.0, 24.0]


async def test_a_window_by_the_clock_ends_at_a_multiple_of_its_length(virtual_time):
    """Not when something was used first; and keys and joint limiters have it too."""
    limiter = Limiter(requests=calendar(2, 10)) & Keyed(requests=calendar(2, 10))["user"]
    await anyio.sleep(3)
    into = clock.wall() % 10
    for wait in (0, 0, 10 - into, 10 - into, 20 - into):
        await limiter.acquire()
        assert clock.now() == pytest.approx(3 + wait, abs=1e-5)


async def test_a_calendar_day_ends_at_local_midnight(virtual_time):
    from datetime import datetime
    from zoneinfo import ZoneInfo

    berlin = ZoneInfo("Europe/Berlin")
    virtual_time.set_wall(datetime(2026, 3, 29, 0, 30, tzinfo=berlin))  # the clocks go forward: 23 hours
    limiter = Limiter(requests=calendar(1, "day", "Europe/Berlin"))
    limiter.acquire_nowait()
    assert limiter.forecast().wait == pytest.approx(22.5 * 3600, abs=1e-3)
    await limiter.acquire()
    assert datetime.fromtimestamp(clock.wall(), berlin).isoformat()[:16] == "2026-03-30T00:00"


async def test_overdraft_lets_one_large_call_go_when_full_and_pays_afterwards(virtual_time):
    limiter = Limiter(tokens=Rate(10, 1.0, overdraft=True))
    limiter.acquire_nowait(tokens=25)
    assert limiter.forecast(tokens=1).wait == pytest.approx(1.6)
    await limiter.acquire(tokens=25)
    assert clock.now() == pytest.approx(2.5)


async def test_several_limits_of_one_unit_hold_together(virtual_time):
    limiter = Limiter(tokens=["10/s", "15/min"])
    limiter.acquire_nowait(tokens=10)
    await anyio.sleep(1)
    with pytest.raises(RateLimited) as refused:
        limiter.acquire_nowait(tokens=10)
    assert refused.value.blocked_by == "tokens (15/min)"


async def test_shadow_mode_lets_through_and_counts(virtual_time):
    limiter = Limiter(requests=per_minute(1), enforce=False)
    for _ in range(3):
        async with limiter:
            pass
    statistics = limiter.statistics()
    assert (statistics.granted, statistics.would_refuse) == (3, 2)


async def test_shadow_mode_rehearses_the_limits_of_now(virtual_time):
    limiter = Limiter(requests=per_minute(1), enforce=False)
    call = limiter(requests=5)
    for limit, refused in ((1, 1), (5, 1), (4, 2)):
        limiter.reconfigure(requests=per_minute(limit))
        async with call:
            pass
        assert limiter.statistics().would_refuse == refused
        await anyio.sleep(3_600)


async def test_shadow_mode_lets_through_what_could_never_go(virtual_time):
    """A rehearsal that raises Unsatisfiable would be the performance."""
    seen = []
    limiter = Limiter(tokens=per_minute(100), calls=in_flight(2), enforce=False, on_event=seen.append)
    limiter.acquire_nowait(tokens=60)
    with await limiter.acquire(tokens=200):
        async with limiter(tokens=1, calls=3):
            pass
    statistics = limiter.statistics()
    assert (statistics.granted, statistics.would_refuse, statistics.refused) == (3, 2, 0)
    assert statistics.limits["tokens"].level == 100 - 261
    assert [type(event).__name__ for event in seen] == ["Granted", "Refused", "Granted", "Refused", "Granted"]
    assert (seen[1].retry_after, seen[1].blocked_by) == (pytest.approx(96), "tokens")
    assert (seen[3].retry_after, seen[3].blocked_by) == (math.inf, "calls")
