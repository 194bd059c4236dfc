"""Keys joined with an organisation's limits, and used from many tasks and threads at once."""

from __future__ import annotations

import math
import random
import threading
import time
from fractions import Fraction

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock import (
    Keyed,
    Limiter,
    Rate,
    RateLimited,
    clock,
    in_flight,
    per_day,
    per_minute,
    per_second,
    testing,
)
from penstock._backends import memory_store
from tests.keyed.looking import level, look_at_all

anyio_test = pytest.mark.anyio


class User(str):
    """A key of a user's own class: the same key as the string, by a comparison in Python."""

    __slots__ = ()
    lock = memory_store(None).lock
    compared_outside = 0

    __hash__ = str.__hash__

    def __eq__(self, other):
        User.compared_outside += other is not self and not self.lock._is_owned()
        return str.__eq__(self, other)


@pytest.mark.parametrize("first", ["alice", User("alice")], ids=["a string first", "a user's class first"])
async def test_keys_that_are_compared_by_python_are_charged_with_the_lock_held(first, anyio_backend):
    """Others could come in the middle of a comparison, so what was made for strings alone is not used any more."""
    with testing.manual_clock():
        per_user = Keyed(requests=per_minute(10))
        before = per_user[first](requests=1)
        async with before:
            User.compared_outside = 0
        for _ in range(2):
            async with per_user[User("alice")](requests=1), per_user["alice"](requests=1), before:
                pass
        per_user[User("alice")].acquire_nowait(requests=1)
        assert level(per_user["alice"]) == level(per_user[User("alice")]) == 2
        assert User.compared_outside == 0


@anyio_test
async def test_all_three_are_charged_or_none(virtual_time):
    """`org & per_model["x"] & per_user["alice"]` is one decision, written as one expression, at each call."""
    org = Limiter(requests=per_minute(100), tokens=per_minute(10_000))
    per_model = Keyed(tokens=per_minute(1_000))
    per_user = Keyed(requests=per_minute(5), calls=in_flight(2))

    def levels():
        every = {
            "org": org, "x": per_model["x"], "y": per_model["y"], "alice": per_user["alice"], "bob": per_user["bob"],
        }  # fmt: skip
        return {
            (name, unit): one.level
            for name, limiter in every.items()
            for unit, one in limiter.statistics().limits.items()
        }

    start = levels()
    async with (org & per_model["x"] & per_user["alice"])(tokens=900):
        assert levels() == start | {
            ("org", "requests"): 99, ("org", "tokens"): 9_100, ("x", "tokens"): 100,
            ("alice", "requests"): 4, ("alice", "calls"): 1,
        }  # fmt: skip
        paid = levels()
        for model, user, tokens, blocker in [
            ("x", "bob", 101, "tokens (1000/min)"),  # the model has too little
            ("y", "alice", 1_000, None),
        ]:
            call = org & per_model[model] & per_user[user]
            if blocker is None:
                call.acquire_nowait(tokens=tokens).cancel()
            else:
                with pytest.raises(RateLimited) as refused:
                    call.acquire_nowait(tokens=tokens)
                assert refused.value.blocked_by == blocker
            del call
            assert levels() == paid, "nothing is charged on the others"
        with (org & per_user["alice"]).acquire_nowait(tokens=0), pytest.raises(RateLimited):
            (org & per_model["y"] & per_user["alice"]).acquire_nowait(tokens=1)  # alice has two in flight
    assert levels()["y", "tokens"] == 1_000
    assert levels()["alice", "calls"] == 2
    assert levels()["alice", "requests"] == 3


@anyio_test
async def test_users_of_one_organisation_stand_in_one_line(virtual_time):
    """Who waits for its own limit does not hold up others, and keys are dropped under nobody's feet."""
    org = Limiter(requests=per_second(4, burst=2))
    per_user = Keyed(requests=per_second(1, burst=1))
    log = []

    async def call(user):
        async with (org & per_user[user])():
            log.append((user, clock.now()))

    async with anyio.create_task_group() as group:
        for user in ("alice", "alice", "bob", "carol", "bob"):
            group.start_soon(call, user)
            await anyio.wait_all_tasks_blocked()
            look_at_all(per_user)
    assert log == [("alice", 0.0), ("bob", 0.0), ("carol", 0.25), ("alice", 1.0), ("bob", 1.0)]
    await anyio.sleep(1)
    look_at_all(per_user)
    assert len(per_user) <= 1
    assert level(org) == 2


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from(["a", "b"]), st.integers(0, 5), st.sampled_from([0, 0, 0.2, 1.0, 6.0]), st.integers(0, 3)
        ),
        max_size=30,
    )
)
def test_no_key_passes_its_limit_as_callers_come_and_go(backend, steps):
    """Promise 1 of every key, and of the organisation over all of them; charged on both, or on none."""

    async def main():
        org, per_user = Limiter(tokens=Rate(6, 1.0, 8)), Keyed(tokens=Rate(4, 1.0, 5))
        grants: list[tuple[str, float, float]] = []

        async def call(user, cost, scope):
            with scope:
                permit = await (org & per_user[user]).acquire(tokens=cost)
                grants.append((user, permit.granted_at, cost))

        async with anyio.create_task_group() as group:
            for user, cost, gap, kind in steps:
                scope = anyio.CancelScope()
                if kind == 0:
                    try:
                        (org & per_user[user]).acquire_nowait(tokens=cost).cancel()
                    except RateLimited:
                        pass
                else:
                    group.start_soon(call, user, cost, scope)
                await anyio.sleep(gap)
                if kind == 3:
                    scope.cancel()
                for _ in range(9):  # whoever nobody holds is looked at
                    per_user[None]
        for users, rate, burst in (("a", 4, 5), ("b", 4, 5), ("ab", 6, 8)):
            mine = [(Fraction(at), cost) for user, at, cost in grants if user in users]
            for first, (begin, _) in enumerate(mine):
                for last in range(first, len(mine)):
                    total = sum(cost for _, cost in mine[first : last + 1])
                    assert total <= burst + rate * (mine[last][0] - begin) + Fraction(rate, 1_000_000)

    testing.run(main, backend=backend)


def test_two_threads_with_loops_of_their_own_are_never_over_on_the_same_key():
    """Promises 1 and 10, in real time: the key vanishes and comes back while both use it."""
    rate, burst = 400, 4
    per_user = Keyed(requests=Rate(rate, 1.0, burst))
    end = time.monotonic() + 0.5
    grants: list[float] = []
    errors: list[BaseException] = []

    async def task():
        while time.monotonic() < end:
            async with per_user["alice"](requests=1) as permit:
                grants.append(permit.granted_at)
            per_user[random.random()].acquire_nowait()
            await anyio.sleep(random.choice([0, 0, 0.02]))

    async def several():
        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(task)

    def work(backend):
        try:
            anyio.run(several, backend=backend)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(backend,), daemon=True) for backend in ("asyncio", "trio")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    assert not errors
    lowest, worst = math.inf, -math.inf
    for index, at in enumerate(sorted(grants)):
        lowest = min(lowest, index - rate * at)
        worst = max(worst, index + 1 - rate * at - lowest)
    assert worst <= burst + rate * 1e-6
    assert len(grants) >= 20, "it was a real load"


def test_threads_that_make_and_drop_keys_lose_nothing():
    """Without a store's lock around every step two threads would make two limiters of one key, and each grant a
    burst."""
    per_user = Keyed(requests=per_day(100))
    granted = []

    def work():
        for _ in range(200):
            try:
                per_user["alice"].acquire_nowait()
                granted.append(1)
            except RateLimited:
                pass

    threads = [threading.Thread(target=work, daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(granted) == 100
