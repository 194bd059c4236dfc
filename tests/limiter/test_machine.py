"""Random lives of limiters, in virtual time, held to the promises; and the quick calls to the general way.

A life is a list of steps, so that Hypothesis can shorten it: acquire, nowait, give up (later, after any number of
awaits, or at the very instant of the grant), cancel, settle, close (here or in a thread), pause, reconfigure, observe,
join, calls of joint limiters and of keys. Every await is a place where a step may meet a waiter.
"""

from __future__ import annotations

import itertools
import math
import threading
from fractions import Fraction

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock import Keyed, Limiter, Rate, RateLimited, Unsatisfiable, clock, in_flight, testing

MICROSECOND = Fraction(1, 1_000_000)

LOOPS = [
    pytest.param("asyncio", {}, id="asyncio"),
    pytest.param("asyncio", {"use_uvloop": True}, id="uvloop"),
    pytest.param("trio", {}, id="trio"),
]
WHOSE = st.sampled_from(["a", "b", "c", "joint", "key", "all"])
GAPS = st.sampled_from([0.001, 0.05, 0.3, 1.0, 4.0])
INDEX = st.integers(0, 30)
STEP = st.one_of(
    st.tuples(st.just("acquire"), WHOSE, st.integers(0, 8), st.integers(0, 2)),
    st.tuples(st.just("nowait"), WHOSE, st.integers(0, 8), st.none()),
    st.tuples(st.just("sleep"), GAPS, st.none(), st.none()),
    st.tuples(st.just("give up"), INDEX, st.integers(0, 3), st.none()),
    st.tuples(st.just("start and give up"), WHOSE, st.integers(0, 8), st.integers(0, 4)),
    st.tuples(st.just("hand over and give up"), INDEX, INDEX, st.none()),
    st.tuples(st.just("cancel"), INDEX, st.none(), st.booleans()),
    st.tuples(st.just("settle"), INDEX, st.integers(0, 8), st.booleans()),
    st.tuples(st.just("close"), INDEX, st.none(), st.booleans()),
    st.tuples(st.just("pause"), st.sampled_from([0.01, 0.5, 3.0]), st.sampled_from(["a", "c", "joint"]), st.none()),
    st.tuples(st.just("reconfigure"), st.sampled_from([5, 10, 20]), st.integers(4, 12), st.none()),
    st.tuples(st.just("split"), st.booleans(), st.none(), st.none()),
    st.tuples(st.just("join"), st.none(), st.none(), st.none()),
    st.tuples(st.just("observe"), st.integers(0, 12), st.none(), st.none()),
)


class Life:
    """One life: what is granted is written down, and nothing else is believed."""

    REQUESTS = Rate(6, 1.0, 8)
    TOKENS = Rate(10, 1.0, 12)
    KEY = Rate(3, 1.0, 8)
    PAGES = Rate(2, 1.0, 4)

    def __init__(self) -> None:
        self.a = Limiter(requests=self.REQUESTS, tokens=self.TOKENS)
        self.b = Limiter(calls=in_flight(3), images=Rate(5, 1.0, 8))
        self.c = Limiter(pages=self.PAGES)  # has a line of its own until it is joined
        self.per_key = Keyed(requests=self.KEY)
        self.joint = self.a & self.b
        self.grants: list[list] = []  # permit, what counts in the end, per unit; whose
        self.waiting: list[tuple[anyio.CancelScope, list]] = []
        self.tokens = [(0.0, self.TOKENS)]  # which limit held from when on

    def call(self, whose: str, cost: int):
        if whose == "a":
            return self.a, {"requests": 1, "tokens": min(cost, self.tokens[-1][1].burst)}
        if whose == "b":
            return self.b, {"images": cost}
        if whose == "joint":
            return self.joint, {"tokens": min(cost, self.tokens[-1][1].burst), "images": 8 - cost}
        if whose == "c":
            return self.c, {"pages": cost % 5}
        if whose == "all":
            return self.b & self.c & self.a, {"images": 1, "pages": cost % 5, "tokens": 0}
        return self.a & self.per_key["k"], {"requests": 1, "tokens": 0}

    def note(self, permit, whose: str, cost: dict) -> None:
        for unit, amount in cost.items():
            if amount:
                assert permit.cost[unit] == amount, "all of it is charged"
        self.grants.append([permit, dict(permit.cost), whose])

    async def acquire(self, scope, state, whose, cost, priority) -> None:
        limiter, asked = self.call(whose, cost)
        with scope:
            try:
                permit = await limiter.acquire(priority=priority, flow=whose, **asked)
            except Unsatisfiable:
                pass  # reconfigured below its cost while it waited
            else:
                self.note(permit, whose, asked)
        state.append("done")

    async def step(self, group, kind, one, two, three) -> None:
        if kind == "acquire":
            self.waiting.append((anyio.CancelScope(), []))
            group.start_soon(self.acquire, *self.waiting[-1], one, two, three)
            await anyio.sleep(0)
        elif kind == "start and give up":  # after so many awaits
            scope, state = anyio.CancelScope(), []
            self.waiting.append((scope, state))
            group.start_soon(self.acquire, scope, state, one, two, 0)
            for _ in range(three):
                await anyio.sleep(0)
            scope.cancel()
        elif kind == "join":
            self.c & self.a
        elif kind == "split":  # the second limit is the looser one, and everybody must be charged on it too
            self.c.reconfigure(pages=[self.PAGES, Rate(3, 1.0, 6)] if one else self.PAGES)
        elif kind == "nowait":
            limiter, asked = self.call(one, two)
            wait = limiter.forecast(**asked).wait
            try:
                self.note(limiter.acquire_nowait(**asked), one, asked)
            except RateLimited as error:
                assert error.retry_after == wait > 0  # noqa: PT017 - it may well be granted
            else:
                assert wait == 0
        elif kind == "sleep":
            await anyio.sleep(one)
        elif kind == "give up" and self.waiting:
            self.waiting[one % len(self.waiting)][0].cancel()
            for _ in range(two):
                await anyio.sleep(0)
        elif kind == "pause":
            getattr(self, two).pause(one)
        elif kind == "reconfigure":
            limit = Rate(one, 1.0, two)
            self.tokens.append((clock.now(), limit))
            self.a.reconfigure(tokens=limit)
        elif kind == "observe":
            before = self.a.statistics().limits["tokens"].level
            self.a.observe(remaining={"tokens": one})
            assert self.a.statistics().limits["tokens"].level <= before + 1e-9
        elif self.grants:
            permit, counts, _ = self.grants[one % len(self.grants)]
            if kind == "cancel":
                self.somewhere(permit.cancel, in_thread=three)
                counts.clear()
            elif kind == "close":
                self.somewhere(permit.close, in_thread=three)
            elif kind == "settle" and counts.get("tokens", -1) >= two:
                self.somewhere(lambda: permit.settle(tokens=two), in_thread=three)
                counts["tokens"] = two
            elif kind == "hand over and give up" and self.waiting:
                permit.cancel()
                counts.clear()
                self.waiting[two % len(self.waiting)][0].cancel()  # before it could wake
        await self.check()

    @staticmethod
    def somewhere(function, *, in_thread: bool) -> None:
        """Call it here, or in a thread that must wake up who is granted by it in this loop."""
        if in_thread:
            thread = threading.Thread(target=function)
            thread.start()
            thread.join()
        else:
            function()

    async def check(self) -> None:
        statistics = self.joint.statistics()
        assert 0 <= statistics.in_flight <= 3
        assert statistics.limits["calls"].level == 3 - statistics.in_flight
        for _ in range(2):  # what a thread woke is blocked no more only when the loop has looked
            await anyio.sleep(0)
            await anyio.wait_all_tasks_blocked()
        stand = sum(1 for _, state in self.waiting if not state)
        assert self.in_line() == stand, "who has not been served and has not left is in the line"

    def in_line(self) -> int:
        """How many stand in the one line, or in both."""
        sets = [part for limiter in (self.joint, self.c) for part in limiter._backend.sets]
        lines = {id(part.queue): part.queue.waiters for part in sets}
        for line in lines.values():
            assert len(list(line)) == len(set(line)) == len(line)
        return sum(map(len, lines.values()))

    async def run(self, steps) -> None:
        async with anyio.create_task_group() as group:
            for step in steps:
                await self.step(group, *step)
            group.cancel_scope.cancel()
        for permit, _, _ in self.grants:
            permit.close()
        statistics = self.joint.statistics()
        assert (statistics.in_flight, self.in_line()) == (0, 0)
        assert statistics.limits["calls"].level == 3

    def excess(self, unit: str, limits: list[tuple[float, Rate]], whose: tuple[str, ...]) -> Fraction:
        """By how much the worst interval passes the burst and the rate, in units; limits may change in it.

        In an interval with changes no more passes than the largest burst, and each stretch at its own rate.
        """
        grants = sorted(
            (Fraction(permit.granted_at), Fraction(counts.get(unit, 0)))
            for permit, counts, by in self.grants
            if by in whose
        )
        begins = [Fraction(begin) for begin, _ in limits] + [Fraction(10**9)]
        worst = Fraction(-(10**9))
        for first, (begin, _) in enumerate(grants):
            total = Fraction(0)
            for end, amount in itertools.islice(grants, first, None):
                total += amount
                allowed = Fraction(0)
                burst = 0.0
                for index, (_, limit) in enumerate(limits):
                    span = min(end, begins[index + 1]) - max(begin, begins[index])
                    if span >= 0:
                        allowed += span * Fraction(limit.amount) / Fraction(limit.per)
                        burst = max(burst, limit.burst)
                worst = max(worst, total - allowed - Fraction(burst))
        return worst


@pytest.mark.parametrize(("backend", "options"), LOOPS)
@settings(max_examples=4 * settings().max_examples)  # a life has many steps to choose from
@given(steps=st.lists(STEP, max_size=40))
def test_a_random_life_keeps_every_promise(backend, options, steps):
    """Promises 1, 2, 5 and 6: no interval above burst + rate · T, all or nothing, and nothing is left behind."""

    async def main():
        life = Life()
        await life.run(steps)
        mine = ("a", "joint", "key", "all")
        assert life.excess("requests", [(0.0, Life.REQUESTS)], mine) <= 6 * MICROSECOND
        assert life.excess("tokens", life.tokens, mine) <= 20 * MICROSECOND * len(life.tokens)
        assert life.excess("images", [(0.0, Rate(5, 1.0, 8))], ("b", "joint", "all")) <= 5 * MICROSECOND
        assert life.excess("requests", [(0.0, Life.KEY)], ("key",)) <= 3 * MICROSECOND
        assert life.excess("pages", [(0.0, Life.PAGES)], ("c", "all")) <= 2 * MICROSECOND

    testing.run(main, backend=backend, **options)


@pytest.mark.parametrize(("backend", "options"), LOOPS)
@settings(max_examples=15)
@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=10),
    rate=st.sampled_from([7, 100, 3_333]),
    quitters=st.lists(st.integers(0, 99), max_size=30),
)
def test_with_demand_waiting_no_capacity_is_lost(backend, options, sizes, rate, quitters):
    """Promise 3: whatever the sizes and whoever gives up, ≥ 99.9 % of burst + rate · T is used, and never more."""

    async def main():
        limiter = Limiter(tokens=Rate(rate, 1.0, 30))
        granted = []
        scopes = []

        async def call(cost, scope):
            with scope:
                permit = await limiter.acquire(tokens=cost)
                granted.append((permit.granted_at, cost))

        async with anyio.create_task_group() as group:
            for i in range(100):
                scopes.append(anyio.CancelScope())
                group.start_soon(call, sizes[i % len(sizes)], scopes[-1])
            await anyio.wait_all_tasks_blocked()
            for i in quitters:
                await anyio.sleep(0.05 / rate)
                scopes[i].cancel()
        total = sum(cost for _, cost in granted)
        last = max(at for at, _ in granted)
        assert total <= 30 + rate * last + rate * 1e-6
        whole = 30 + rate * last
        if last and not quitters:
            assert total >= 0.999 * whole
        if last:  # who gives up last may leave units that nobody is left to take
            assert total > 0.999 * whole - max(sizes)

    testing.run(main, backend=backend, **options)


# The quick calls


TRACES = st.lists(
    st.one_of(
        st.tuples(st.just("call"), st.integers(0, 12), st.none()),
        st.tuples(st.just("sleep"), st.sampled_from([0.001, 0.1, 0.3, 1.0, 7.0]), st.none()),
        st.tuples(st.just("settle"), st.integers(0, 20), st.integers(0, 20)),
        st.tuples(st.just("cancel"), st.integers(0, 20), st.none()),
        st.tuples(st.just("close"), st.integers(0, 20), st.none()),
        st.tuples(st.just("observe"), st.integers(0, 20), st.integers(0, 12)),
        st.tuples(st.just("pause"), st.sampled_from([0.1, 1.5]), st.none()),
        st.tuples(st.just("change"), st.integers(1, 20), st.none()),
    ),
    max_size=40,
)


@pytest.mark.parametrize("two", [False, True], ids=["one bucket", "two buckets"])
@given(trace=TRACES)
def test_the_quick_calls_do_what_the_general_way_does(two, trace):
    """The same trace gives the same grants, at the same moments, with the same levels after every step."""

    async def main():
        limits = {"requests": Rate(4, 1.0, 6), "tokens": Rate(5, 1.0, 12)} if two else {"tokens": Rate(5, 1.0, 12)}
        quick, general = Limiter(**limits), Limiter(**limits)
        general._backend.fast = False
        assert (
            quick._call_of({"tokens": 1})._binding.charge.grant
            is not general._call_of({"tokens": 1})._binding.charge.grant
        )
        permits = []

        def levels(limiter):
            return {unit: status.level for unit, status in limiter.statistics().limits.items()}

        async def enter(limiter, cost):
            moments = []
            async with limiter(tokens=cost) as permit:
                moments.append((permit.granted_at, permit.cost, clock.now(), type(permit).__name__))
            return permit, moments[0][:3]

        for kind, one, other in trace:
            if kind == "call":
                results = []

                async def both(limiter, cost, results=results):
                    results.append((limiter, await enter(limiter, cost)))

                async with anyio.create_task_group() as group:
                    for limiter in (quick, general):
                        group.start_soon(both, limiter, one)
                found = dict(results)
                assert found[quick][1] == found[general][1]
                permits.append((found[quick][0], found[general][0]))
            elif kind == "sleep":
                await anyio.sleep(one)
            elif kind == "pause":
                quick.pause(one)
                general.pause(one)
            elif kind == "change":
                for limiter in (quick, general):
                    limiter.reconfigure(tokens=Rate(one, 1.0, 12))
            elif permits:
                for permit in permits[one % len(permits)]:
                    if kind == "settle":
                        permit.settle(tokens=other)
                    elif kind == "observe":
                        permit.observe(remaining={"tokens": other})
                    else:
                        getattr(permit, kind)()
                assert permits[one % len(permits)][0].cost == permits[one % len(permits)][1].cost
            assert levels(quick) == levels(general)
            assert quick.statistics().granted == general.statistics().granted
            assert quick.statistics().cancelled == general.statistics().cancelled
            assert math.isclose(quick.forecast(tokens=3).wait, general.forecast(tokens=3).wait)

    testing.run(main)
