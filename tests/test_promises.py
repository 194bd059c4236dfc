"""The promises of the design: on random traces, in virtual time, against a reference in exact fractions; and where each
is sharpest.

The reference keeps no state that could be wrong: it sees only what was charged when, and counts every interval. Which
test holds which promise, and what was broken to see it fail, is in MUTATION.md.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
from dataclasses import dataclass, field
from fractions import Fraction

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock import Limiter, Rate, RateLimited, clock, in_flight, per_minute, per_second, testing

MICROSECOND = Fraction(1, 1_000_000)


@dataclass
class Charged:
    """One grant: when, and how much of each unit counts in the end."""

    at: float
    cost: dict[str, float] = field(default_factory=dict)


def excess(grants: list[Charged], unit: str, limit: Rate) -> Fraction:
    """By how much the worst interval of all passes `burst + rate · T`, in exact fractions."""
    rate = Fraction(limit.amount) / Fraction(limit.per)
    worst = -Fraction(limit.burst)
    moments = sorted((Fraction(g.at), Fraction(g.cost.get(unit, 0))) for g in grants)
    for first in range(len(moments)):
        total = Fraction(0)
        for at, amount in itertools.islice(moments, first, None):
            total += amount
            worst = max(worst, total - Fraction(limit.burst) - rate * (at - moments[first][0]))
    return worst


@st.composite
def limits(draw) -> Rate:
    amount = draw(st.integers(1, 40))
    return Rate(amount, draw(st.sampled_from([0.1, 1.0, 7.0, 60.0])), draw(st.integers(1, 30)))


COSTS = st.one_of(st.integers(0, 12), st.sampled_from([0.1, 0.25, 1.5]))
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("try"), COSTS, COSTS),
        st.tuples(st.just("wait"), COSTS, COSTS),
        st.tuples(st.just("sleep"), st.sampled_from([0.001, 0.05, 0.3, 1.0, 4.0, 30.0]), st.none()),
        st.tuples(st.just("cancel"), st.integers(0, 50), st.none()),
        st.tuples(st.just("settle"), st.integers(0, 50), st.integers(0, 15)),
        st.tuples(st.just("leave"), st.integers(0, 50), st.none()),
        st.tuples(st.just("pause"), st.sampled_from([0.01, 0.5, 3.0]), st.none()),
    ),
    max_size=40,
)


class Trace:
    """Runs steps against a limiter, and writes down what it granted."""

    def __init__(self, requests: Rate, tokens: Rate) -> None:
        self.limits = {"requests": requests, "tokens": tokens}
        self.limiter = Limiter(requests=requests, tokens=tokens)
        self.grants: list[tuple[Charged, object]] = []
        self.waiters: list[anyio.CancelScope] = []

    def note(self, permit) -> None:
        assert clock.now() >= permit.granted_at
        self.grants.append((Charged(permit.granted_at, permit.cost), permit))

    async def wait(self, scope: anyio.CancelScope, cost: dict[str, float]) -> None:
        with scope:
            permit = await self.limiter.acquire(**cost)
            self.note(permit)

    async def step(self, group, kind: str, a, b) -> None:
        if kind in ("try", "wait"):
            cost = {"requests": min(a, self.limits["requests"].burst), "tokens": min(b, self.limits["tokens"].burst)}
            if kind == "try":
                try:
                    self.note(self.limiter.acquire_nowait(**cost))
                except RateLimited:
                    pass
            else:
                self.waiters.append(anyio.CancelScope())
                group.start_soon(self.wait, self.waiters[-1], cost)
                await anyio.sleep(0)
        elif kind == "sleep":
            await anyio.sleep(a)
        elif kind == "pause":
            self.limiter.pause(a)
        elif kind == "leave" and self.waiters:
            self.waiters[a % len(self.waiters)].cancel()
            await anyio.sleep(0)
        elif self.grants and kind in ("cancel", "settle"):
            charged, permit = self.grants[a % len(self.grants)]
            if kind == "cancel":
                permit.cancel()
                charged.cost = {}
            elif charged.cost and b <= charged.cost.get("tokens", 0):
                permit.settle(tokens=b)
                charged.cost["tokens"] = b

    async def run(self, steps) -> None:
        async with anyio.create_task_group() as group:
            for step in steps:
                await self.step(group, *step)
            group.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("backend", "options"),
    [
        pytest.param("asyncio", {}, id="asyncio"),
        pytest.param("asyncio", {"use_uvloop": True}, id="uvloop"),
        pytest.param("trio", {}, id="trio"),
    ],
)
@given(requests=limits(), tokens=limits(), steps=STEPS)
def test_no_interval_ever_holds_more_than_its_burst_and_its_rate(backend, options, requests, tokens, steps):
    """Promises 1 and 6: with cancels, settles, pauses and giving up, in any order, nothing passes burst + rate · T."""

    async def main():
        trace = Trace(requests, tokens)
        await trace.run(steps)
        grants = [charged for charged, _ in trace.grants]
        for unit, limit in trace.limits.items():
            rate = Fraction(limit.amount) / Fraction(limit.per)
            assert excess(grants, unit, limit) <= rate * MICROSECOND, unit

    testing.run(main, backend=backend, **options)


@pytest.mark.anyio
async def test_a_call_that_waits_for_one_limit_has_taken_nothing_of_another(virtual_time):
    """Promise 2, all the while: however often its turn is looked at, and also when it gives up."""
    limiter = Limiter(requests=Rate(1, 1_000.0, 5), tokens=per_second(10))
    limiter.acquire_nowait(tokens=10)
    level = limiter.statistics().limits["requests"].level
    assert level == 4
    async with anyio.create_task_group() as group:
        for _ in range(3):
            group.start_soon(lambda: limiter.acquire(tokens=10))
        for _ in range(9):
            await anyio.sleep(0.1)
            limiter.acquire_nowait(requests=0, tokens=0)
            assert limiter.statistics().limits["requests"].level == pytest.approx(4, abs=0.01)
        group.cancel_scope.cancel()
    assert limiter.statistics().limits["requests"].level == pytest.approx(4, abs=0.01)


@pytest.mark.anyio
async def test_a_grant_at_the_instant_of_the_cancellation_is_undone_or_arrives(virtual_time, anyio_backend):
    """Promise 5, at its sharpest: the grant was handed over, and its owner is cancelled before it wakes.

    A task of asyncio is cancelled then, on any of its loops. Trio lets a task that was woken run: it has its permit.
    """
    limiter = Limiter(calls=in_flight(1), tokens=per_minute(100))
    first = await limiter.acquire(tokens=10)
    served, tasks = [], []

    async def wait(scope, tokens):
        tasks.append(asyncio.current_task() if anyio_backend[0] == "asyncio" else scope)
        with scope:
            try:
                served.append(await limiter.acquire(tokens=tokens))
            except asyncio.CancelledError:
                served.append(None)

    async with anyio.create_task_group() as group:
        for tokens in (90, 5):
            group.start_soon(wait, anyio.CancelScope(), tokens)
            await anyio.wait_all_tasks_blocked()
        first.close()  # hands the place, and the tokens, to the first who waits
        assert limiter.statistics().limits["tokens"].level == 0
        tasks[0].cancel()
        await anyio.wait_all_tasks_blocked()
        assert (served[0] is None) == (anyio_backend[0] == "asyncio")
        if served[0] is not None:
            assert served[0].cost == {"calls": 1, "tokens": 90}
            served[0].cancel()
    assert served[1].cost == {"calls": 1, "tokens": 5}, "handed on to the next, exactly"
    assert clock.now() == 0
    statistics = limiter.statistics()
    assert statistics.limits["tokens"].level == 85
    assert (statistics.in_flight, statistics.waiting) == (1, 0)


@pytest.mark.anyio
async def test_a_grant_to_one_that_was_just_cancelled_is_undone(virtual_time):
    """Promise 5, at its sharpest on every loop: it has been cancelled and has not run yet, and is handed its grant."""
    limiter = Limiter(calls=in_flight(1), tokens=per_minute(100))
    first = await limiter.acquire(tokens=10)
    served = []

    async def wait(scope, tokens):
        with scope:
            served.append((await limiter.acquire(tokens=tokens)).cost)

    async with anyio.create_task_group() as group:
        scopes = [anyio.CancelScope(), anyio.CancelScope()]
        for scope, tokens in zip(scopes, (90, 5), strict=True):
            group.start_soon(wait, scope, tokens)
            await anyio.wait_all_tasks_blocked()
        scopes[0].cancel()
        first.close()
        assert limiter.statistics().limits["tokens"].level == 0, "it is still in the line"
    assert served == [{"calls": 1, "tokens": 5}], "handed on to the next, exactly"
    assert clock.now() == 0
    statistics = limiter.statistics()
    assert statistics.limits["tokens"].level == 85
    assert (statistics.in_flight, statistics.waiting, statistics.granted) == (1, 0, 2)


@pytest.mark.anyio
@pytest.mark.parametrize("steps", range(8))
async def test_cancelled_after_any_number_of_steps_nothing_is_lost(virtual_time, steps):
    """Promise 5: whichever await the cancellation meets, what is left and what was granted are the whole."""
    limiter = Limiter(requests=per_second(1, burst=3), calls=in_flight(2))
    granted = []

    async def wait(scope):
        with scope:
            granted.append(await limiter.acquire())

    async with anyio.create_task_group() as group:
        scopes = [anyio.CancelScope() for _ in range(5)]
        for scope in scopes:
            group.start_soon(wait, scope)
        for _ in range(steps):
            await anyio.sleep(0)
        for scope in scopes[::2]:
            scope.cancel()
        await anyio.sleep(10)
        statistics = limiter.statistics()
        assert statistics.in_flight == len(granted)
        assert statistics.limits["requests"].level == 3
        for permit in granted[:]:
            permit.cancel()
        await anyio.sleep(10)
        for scope in scopes:
            scope.cancel()
    for permit in granted:
        permit.cancel()
    statistics = limiter.statistics()
    assert (statistics.in_flight, statistics.waiting) == (0, 0)
    assert statistics.limits["requests"].level == 3


@pytest.mark.anyio
@pytest.mark.parametrize("amount", [7, 3_500])
async def test_a_wait_ends_at_the_first_moment_at_which_it_can(virtual_time, amount):
    """Promise 7, for those who wait: not a microsecond before, and not one after."""
    limiter = Limiter(tokens=per_minute(amount))
    limiter.acquire_nowait(tokens=amount)
    moments = []
    async with anyio.create_task_group() as group:

        async def wait(tokens):
            async with limiter(tokens=tokens):
                moments.append(clock.now())

        for tokens in (1, 3, 2):
            group.start_soon(wait, tokens)
            await anyio.wait_all_tasks_blocked()
    assert moments == pytest.approx([total * 60 / amount for total in (1, 4, 6)], abs=1e-6)


@pytest.mark.anyio
async def test_one_refusal_of_the_server_stops_everybody_once(virtual_time):
    """Promise 9: who waits, who comes, and who is let in by a shorter pause; and then all go at what the rate
    allows."""
    limiter = Limiter(requests=per_second(10, burst=2))
    limiter.acquire_nowait(requests=2)
    moments = []

    async def call():
        async with limiter:
            moments.append(clock.now())

    async with anyio.create_task_group() as group:
        for _ in range(3):
            group.start_soon(call)
        await anyio.wait_all_tasks_blocked()
        limiter.pause(5.0)
        limiter.pause(0.01)
        await anyio.sleep(1)
        with pytest.raises(RateLimited) as refused:
            limiter.acquire_nowait()
        assert refused.value.retry_after >= 4
        for _ in range(2):
            group.start_soon(call)
    assert moments == pytest.approx([5.0, 5.0, 5.1, 5.2, 5.3])


def test_one_limiter_serves_loop_after_loop_and_several_at_once():
    """Promise 10, in real time: runs of asyncio, uvloop and trio one after another, and then all three in threads."""
    limiter = Limiter(requests=per_second(2_000, burst=1))
    loops = [("asyncio", {"use_uvloop": False}), ("asyncio", {"use_uvloop": True}), ("trio", {})]

    async def use():
        async with anyio.create_task_group() as group:
            for _ in range(4):
                group.start_soon(limiter.acquire)

    def run(backend, options):
        anyio.run(use, backend=backend, backend_options=options)

    for backend, options in loops:
        run(backend, options)
    threads = [threading.Thread(target=run, args=loop, daemon=True) for loop in loops * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive(), "somebody waits for a wake-up that went to another loop"
    assert limiter.statistics().granted == 4 * 9
    assert limiter.statistics().waiting == 0


@pytest.mark.anyio
@pytest.mark.parametrize("end", ["close", "cancel"])
async def test_a_place_given_back_by_a_thread_wakes_a_waiter_in_a_loop(anyio_backend, end):
    """Promise 10, in real time: the loop sleeps, and nothing in it would wake it."""
    limiter = Limiter(calls=in_flight(1))
    permit = limiter.acquire_nowait()
    thread = threading.Timer(0.05, getattr(permit, end))
    with anyio.fail_after(60):
        async with anyio.create_task_group() as group:

            async def wait():
                async with limiter:
                    pass

            group.start_soon(wait)
            await anyio.wait_all_tasks_blocked()
            thread.start()
    thread.join()
    assert limiter.statistics().in_flight == 0
