"""What a type checker sees of limits, limiters and permits. `make check` runs mypy and pyright on this; nothing runs
it.

A line that must be wrong says so by an ignore: both are told to complain about an ignore that is not needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from decimal import Decimal
from fractions import Fraction
from typing import assert_type

from penstock import (
    Adaptive,
    Calendar,
    Call,
    Forecast,
    InFlight,
    Keyed,
    Limit,
    Limiter,
    LimitStatistics,
    Meter,
    Permit,
    Rate,
    Sliding,
    Statistics,
    Unlimited,
    calendar,
    in_flight,
    per_day,
    per_hour,
    per_minute,
    per_second,
    sliding,
    turn,
    unlimited,
)

limiter = Limiter(requests="3500/min", tokens=["90k/min", "2M/day"], calls=in_flight(64), name="service", max_queue=100)
per_user = Keyed(requests=per_minute(60), tokens=per_day(50_000))


def limits_are_values() -> None:
    assert_type(Rate(90_000, 60.0, burst=1), Rate)
    assert_type(per_second(10, burst=20), Rate)
    assert_type(per_minute(3_500), Rate)
    assert_type(per_hour(100, overdraft=True), Rate)
    assert_type(per_day(2_000_000, default=1), Rate)
    assert_type(sliding(5, timedelta(seconds=1)), Sliding)
    assert_type(unlimited, Unlimited)
    assert_type(calendar(1_000, "day", tz="Europe/Berlin"), Calendar)
    assert_type(in_flight(64, ttl=300.0), InFlight)
    assert_type(per_minute(60).rate, float)
    kinds: list[Limit] = [per_second(1), sliding(1, 1), calendar(1, "month"), in_flight(1)]
    assert_type(kinds[0].capacity, float)
    assert_type(kinds[0].default, float | None)
    calendar(1, "fortnight")  # type: ignore[arg-type]
    per_minute("60")  # type: ignore[arg-type]
    in_flight(64).amount = 65  # type: ignore[misc]


async def a_permit_comes_of_entering_and_of_acquiring() -> None:
    async with limiter(tokens=1_200, max_wait=10, priority=1, flow="alice") as permit:
        assert_type(permit, Permit)
        permit.settle(tokens=900.5)
        permit.observe(remaining={"tokens": 149_984}, reset={"tokens": 0.05})
    with limiter(tokens=5) as permit:
        assert_type(permit, Permit)
    async with limiter as permit:
        assert_type(permit, Permit)
    call = limiter({"tokens": 5}, max_wait=timedelta(seconds=10), block=True)
    assert_type(call, Call)
    with call as permit:
        permit.settle({"tokens": Decimal("4.5")})
    with turn(priority=10, flow="alice", max_wait=timedelta(seconds=5)):
        async with limiter(tokens=Fraction(1, 2)):
            pass
    async with await limiter.acquire(tokens=900, max_wait=10, priority=1, flow="alice") as permit:
        assert_type(permit.cost, dict[str, float])
    with limiter.acquire_nowait(tokens=900, flow=("alice", 7)) as permit:
        assert_type(permit.granted_at, float)
    permit.cancel()
    permit.close()
    await limiter.acquire(tokens="900")  # type: ignore[arg-type]
    permit.settle("900")  # type: ignore[arg-type]


async def a_limiter_tells_and_is_told() -> None:
    forecast = limiter.forecast(tokens=900)
    assert_type(forecast, Forecast)
    assert_type((forecast.wait, forecast.blocked_by), tuple[float, str | None])
    statistics = limiter.statistics()
    assert_type(statistics, Statistics)
    assert_type(statistics.granted, int)
    assert_type(statistics.limits["tokens"], LimitStatistics)
    assert_type(statistics.limits["tokens"].level, float)
    assert_type(limiter.limits, Mapping[str, tuple[Limit, ...]])
    limiter.pause(7.0)
    limiter.pause(timedelta(minutes=1), "tokens")
    limiter.resume("tokens")
    limiter.reconfigure(tokens=per_minute(400_000), requests="10/s")
    limiter.observe(remaining={"tokens": 5})
    await limiter.refresh()
    limiter.pause("7")  # type: ignore[arg-type]
    limiter.reconfigure(tokens=400_000)  # type: ignore[arg-type]


async def limiters_join_and_come_by_key() -> None:
    both = limiter & per_user["alice"]
    assert_type(both, Limiter)
    assert_type(per_user[7, "b"], Limiter)
    assert_type(len(per_user), int)

    @per_user(key=first, tokens=words)
    async def answer(user: str, prompt: str) -> str:
        return user + prompt

    assert_type(await answer("alice", "x"), str)
    per_user[["a"]]  # type: ignore[index]
    limiter & 5  # type: ignore[operator]


def a_limiter_may_learn_how_much_it_may() -> None:
    adaptive = Adaptive(limiter, on=lambda error: isinstance(error, TimeoutError))
    assert_type(adaptive.share, float)


def first(user: str, *_: object) -> str:
    return user


def words(prompt: str) -> int:
    return len(prompt.split())


class Leftovers(Meter):
    """A kind of limit of one's own."""

    def ready_at(self, cost: float, now: float) -> float:
        return now + cost

    def charge(self, cost: float, now: float) -> None: ...

    def level(self, now: float) -> float:
        return 1.0
