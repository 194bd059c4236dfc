"""The promises of the design, on random traces, in virtual time, against a reference in exact fractions.

The reference keeps no state that could be wrong: it sees only what was charged when, and counts every interval.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from fractions import Fraction

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock import Limiter, Rate, RateLimited, clock, testing

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


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@given(requests=limits(), tokens=limits(), steps=STEPS)
def test_no_interval_ever_holds_more_than_its_burst_and_its_rate(backend, requests, tokens, steps):
    """Promises 1 and 6: with cancels, settles, pauses and giving up, in any order, nothing passes burst + rate · T."""

    async def main():
        trace = Trace(requests, tokens)
        await trace.run(steps)
        grants = [charged for charged, _ in trace.grants]
        for unit, limit in trace.limits.items():
            rate = Fraction(limit.amount) / Fraction(limit.per)
            assert excess(grants, unit, limit) <= rate * MICROSECOND, unit

    testing.run(main, backend=backend)
