"""A limiter per key: what it promises of each key, and that it remembers nothing that need not be remembered."""

from __future__ import annotations

import gc
import math
import random
import sys
import threading
import time
import tracemalloc
from datetime import UTC, datetime
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
    calendar,
    clock,
    in_flight,
    per_day,
    per_minute,
    per_second,
    sliding,
    testing,
)
from penstock.stores.memory import MemoryStore

anyio_test = pytest.mark.anyio


def look_at_all(per_user, generation=2):
    """Use another key until all that nobody holds have been looked at twice; not even an error's traceback holds one."""
    gc.collect(generation)
    for _ in range(64 * (len(per_user) // 32 + 3)):
        per_user["another"]


def level(limiter, unit="requests"):
    return limiter.statistics().limits[unit].level


# What is remembered


@anyio_test
async def test_a_key_vanishes_when_its_limits_are_whole_and_not_before(virtual_time):
    per_user = Keyed(requests=per_second(1, burst=3), tokens=per_second(10))
    per_user["alice"].acquire_nowait(requests=2, tokens=10)
    await anyio.sleep(1.999)
    look_at_all(per_user)
    assert "alice" in per_user._keys._states.known | per_user._keys._states.old
    assert level(per_user["alice"]) == pytest.approx(2.999)
    await anyio.sleep(0.001)
    look_at_all(per_user)
    assert not per_user._keys._states.known | per_user._keys._states.old
    assert set(per_user._keys._states.live) <= {"another"}


@anyio_test
async def test_a_key_that_comes_back_has_just_what_it_would_have_had(virtual_time):
    """Dropped or not, asked for or not: the level is that of a limiter that was held all the time."""
    limits = {"requests": per_minute(60, burst=7), "tokens": [sliding(50, 10), calendar(80, "minute")]}
    per_user, held = Keyed(**limits), Limiter(**limits)
    luck = random.Random(3)
    for step in range(600):
        cost = {"requests": luck.choice([0, 1, 3]), "tokens": luck.choice([0, 1, 20])}
        results = []
        for limiter in (per_user["alice"], held):
            try:
                limiter.acquire_nowait(**cost)
                results.append(None)
            except RateLimited as error:
                results.append((error.retry_after, error.blocked_by))
        del limiter
        assert results[0] == results[1]
        if step % 7 == 0:
            look_at_all(per_user, generation=1)  # a whole collection takes half a second in a test run
        await anyio.sleep(luck.choice([0, 0.3, 1.0, 4.0, 15.0]))
        mine, its = per_user["alice"].statistics().limits, held.statistics().limits
        assert {unit: one.level for unit, one in mine.items()} == pytest.approx(
            {unit: one.level for unit, one in its.items()}
        )


@anyio_test
async def test_a_key_stays_while_somebody_waits_in_its_line(virtual_time):
    """Though nobody holds its limiter but those who wait, and everybody else looks for keys to drop."""
    per_user = Keyed(requests=per_second(1, burst=1))
    log = []

    async def call():
        async with per_user["alice"]():
            log.append(clock.now())

    async with anyio.create_task_group() as group:
        for _ in range(4):
            group.start_soon(call)
        await anyio.wait_all_tasks_blocked()
        for _ in range(6):
            look_at_all(per_user)
            await anyio.sleep(0.45)
            assert per_user["alice"].statistics().waiting == sum(at > clock.now() for at in (0, 1, 2, 3))
    assert log == [0, 1, 2, 3]


@anyio_test
async def test_a_key_stays_while_somebody_holds_a_permit(virtual_time):
    """What is in flight is in flight, and a refund comes to the key that paid."""
    per_user = Keyed(calls=in_flight(2), tokens=per_second(1, burst=100))
    permits = [per_user["alice"].acquire_nowait(tokens=0) for _ in range(2)]
    await anyio.sleep(1_000)
    look_at_all(per_user)
    with pytest.raises(RateLimited):
        per_user["alice"].acquire_nowait(tokens=0)
    permits.pop().close()
    paid = per_user["alice"].acquire_nowait(tokens=80)
    look_at_all(per_user)
    paid.settle(tokens=30)
    assert level(per_user["alice"], "tokens") == 70
    paid.close()
    permits.pop().close()
    del paid
    await anyio.sleep(30)
    look_at_all(per_user)
    assert "alice" not in per_user._keys._states.known | per_user._keys._states.old | per_user._keys._states.live


@anyio_test
async def test_a_paused_key_stays_paused_while_nobody_holds_it(virtual_time):
    """Promise 9: one 429 for alice stops alice, also those of her calls that have not looked her up yet."""
    per_user = Keyed(requests=per_second(10), tokens=per_second(10))
    per_user["alice"].pause(60)
    per_user["bob"].pause(60, "tokens")
    for _ in range(3):
        look_at_all(per_user)
        await anyio.sleep(10)
    with pytest.raises(RateLimited) as refused:
        per_user["alice"].acquire_nowait(tokens=0)
    assert (refused.value.retry_after, refused.value.blocked_by) == (30, "pause")
    per_user["bob"].acquire_nowait(tokens=0)
    async with per_user["alice"](tokens=1):
        assert clock.now() == 60
    await anyio.sleep(1)
    look_at_all(per_user)
    assert not per_user._keys._states.known | per_user._keys._states.old


@anyio_test
async def test_a_key_that_was_reconfigured_keeps_its_limits(virtual_time):
    """Its state does not equal absence: it is the one key with these limits."""
    per_user = Keyed(requests=per_second(1))
    per_user["alice"].acquire_nowait()
    per_user["alice"].reconfigure(requests=[per_second(5, burst=9), per_day(1_000)])
    for _ in range(3):
        look_at_all(per_user)
        await anyio.sleep(100_000)
    assert per_user["alice"].limits["requests"] == (per_second(5, burst=9), per_day(1_000))
    per_user["alice"].acquire_nowait(requests=9)
    assert per_user["bob"].limits["requests"] == (per_second(1),)
    per_user["alice"].reconfigure(requests=per_second(1))
    await anyio.sleep(100_000)
    look_at_all(per_user)
    assert not per_user._keys._states.known | per_user._keys._states.old


@anyio_test
@pytest.mark.parametrize("limit", [calendar(10, "day"), [per_day(10), calendar(10, "day")]], ids=["day", "both"])
async def test_keys_with_limits_of_the_calendar_vanish_when_their_day_ends(virtual_time, limit):
    virtual_time.set_wall(datetime(2026, 5, 5, 23, tzinfo=UTC))
    per_user = Keyed(requests=limit)
    for i in range(50):
        per_user[i].acquire_nowait(requests=5)
    await anyio.sleep(3_599)
    look_at_all(per_user)
    assert len(per_user) >= 50
    assert {one.level for one in per_user[7].statistics().limits.values() if one.limit == calendar(10, "day")} == {5}
    await anyio.sleep(12 * 3_600)
    look_at_all(per_user)
    assert len(per_user) <= 1
    assert level(per_user[7], next(iter(per_user[7].statistics().limits))) == 10


def test_a_hundred_thousand_keys_cost_nothing_once_they_are_idle():
    """After they were touched, were idle, and 50,000 uses of another looked at them: not a key, nor the room that they had."""
    with testing.manual_clock() as time:
        per_user = Keyed(requests=per_minute(60), tokens=per_minute(1_000))
        per_user[0].acquire_nowait(tokens=1)
        gc.collect()
        objects = len(gc.get_objects())
        for key in range(100_000):
            per_user[key].acquire_nowait(tokens=1)
        assert len(per_user) == 100_000
        time.advance(60)
        for _ in range(50_010):
            per_user["another"]
        gc.collect()
        assert len(gc.get_objects()) - objects < 100
        assert len(per_user) <= 1
        assert (
            sys.getsizeof(per_user._keys._states.known)
            + sys.getsizeof(per_user._keys._states.old)
            + sys.getsizeof(per_user._keys._states.live)
            < 10_000
        )


def test_a_key_costs_at_most_300_bytes_above_the_key_itself():
    """DESIGN §5, with two limits. All of it: the dict, its room to grow, and a number per limit."""
    with testing.manual_clock():
        per_user = Keyed(requests=per_minute(60), tokens=per_minute(1_000))
        keys = [f"user {i}" for i in range(50_000)]
        gc.collect()
        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            for key in keys:
                per_user[key].acquire_nowait(tokens=1)
            gc.collect()
            used = tracemalloc.get_traced_memory()[0] - before
        finally:
            tracemalloc.stop()
        assert len(per_user) == len(keys)
        assert used / len(keys) <= 300


@anyio_test
async def test_looking_costs_the_same_however_many_keys_there_are(virtual_time):
    """A few keys are looked at per use, and all in turn: none is remembered for ever because another is busy."""
    per_user = Keyed(requests=per_second(1, burst=2))
    for i in range(1_000):
        per_user[i].acquire_nowait()
    await anyio.sleep(10)
    for use in range(600):
        before = len(per_user)
        per_user["busy"].acquire_nowait(requests=0)
        assert before - len(per_user) <= 64, use
    assert len(per_user) <= 1


# What is charged


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
def test_no_key_ever_passes_its_limit_whoever_comes_and_goes(backend, steps):
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
    """Without a store's lock around every step two threads would make two limiters of one key, and each grant a burst."""
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


# Limits as a function of the key


@anyio_test
async def test_the_limits_may_be_a_function_of_the_key(virtual_time):
    """Of any kind, and of any units; each key has just those."""
    asked = []

    def limits_of(user):
        asked.append(user)
        return {
            "paying": {"requests": per_second(10), "tokens": per_second(100, default=1)},
            "free": {"calls": in_flight(2)},
        }[user]

    per_user = Keyed(limits_of)
    async with per_user["paying"](tokens=60):
        pass
    assert {unit: one.level for unit, one in per_user["paying"].statistics().limits.items()} == {
        "requests": 9, "tokens": 40,
    }  # fmt: skip
    async with per_user["free"], per_user["free"]():
        with pytest.raises(RateLimited):
            per_user["free"].acquire_nowait()
    assert per_user["free"].statistics().in_flight == 0
    async with per_user["free"] as permit:
        before = len(asked)
        per_user["free"].statistics()
        assert len(asked) == before, "while somebody holds the key, its limits are those it has"
        assert permit.cost == {"calls": 1}


@anyio_test
async def test_a_changed_answer_changes_the_limit_and_what_was_used_stays_used(virtual_time):
    plan = {"alice": {"requests": per_minute(10)}}
    per_user = Keyed(lambda user: plan[user])
    per_user["alice"].acquire_nowait(requests=4)
    look_at_all_of = [per_user["alice"] for _ in range(9)]
    del look_at_all_of
    plan["alice"] = {"requests": per_minute(60)}
    assert level(per_user["alice"]) == 56
    plan["alice"] = {"requests": sliding(7, 60), "tokens": per_minute(100)}
    assert level(per_user["alice"]) == 3
    per_user["alice"].acquire_nowait(tokens=30)
    await anyio.sleep(3600)
    for _ in range(9):
        per_user["alice"]
    assert level(per_user["alice"]) == 7
    plan["bob"] = plan["alice"]
    for _ in range(9):
        per_user["bob"]
    assert "alice" not in per_user._keys._states.known | per_user._keys._states.old | per_user._keys._states.live


@anyio_test
async def test_an_error_of_the_function_passes_through_and_changes_nothing(virtual_time):
    answers = {"alice": {"requests": per_minute(10)}}
    per_user = Keyed(lambda user: answers[user])
    per_user["alice"].acquire_nowait(requests=4)
    kept = answers.pop("alice")
    for _ in range(3):
        with pytest.raises(KeyError, match="alice"):
            per_user["alice"]
    answers["alice"] = kept
    assert level(per_user["alice"]) == 6


def test_the_function_of_the_key_may_take_a_lock_that_others_hold_while_they_are_limited():
    """It is the user's: with our lock held around it, two threads would wait for each other for ever."""
    settings, is_held, is_asked = threading.Lock(), threading.Event(), threading.Event()
    store = MemoryStore()  # a lock of its own, which a failure would leave held
    other = Limiter(requests=per_second(10), store=store)

    def limits_of(user):
        is_asked.set()
        with settings:
            return {"requests": per_minute(10)}

    per_user = Keyed(limits_of, store=store)

    def change_the_settings():
        with settings:
            is_held.set()
            is_asked.wait(5)
            other.acquire_nowait()

    def call():
        is_held.wait(5)
        per_user["alice"].acquire_nowait()

    threads = [threading.Thread(target=work, daemon=True) for work in (change_the_settings, call)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(5)
        assert not thread.is_alive()


@pytest.mark.parametrize("answer", [None, {}, per_minute(5), [per_minute(5)]], ids=["none", "empty", "limit", "list"])
def test_a_function_that_returns_no_limits_is_told_so(answer):
    """An empty answer would be a limiter without limits, which lets everything through."""
    per_user = Keyed(lambda user: answer)
    with pytest.raises(ValueError, match=r"the function of the key must return limits, as .* for 'alice'"):
        per_user["alice"]


# Hostile keys


def test_what_is_not_hashable_is_refused_with_the_way_out():
    per_user = Keyed(requests=per_minute(5))
    with pytest.raises(
        ValueError, match=r"^a key must be hashable, such as a string or a tuple, not \['alice', 'x'\]$"
    ) as caught:
        per_user[["alice", "x"]]
    assert isinstance(caught.value.__cause__, TypeError)
    per_user["alice", "x"].acquire_nowait()
    assert level(per_user["alice", "x"]) == pytest.approx(4, abs=0.1)


def test_what_does_not_equal_itself_is_refused():
    """Each NaN would be a key of its own: the limit would limit nothing, and the keys would pile up."""
    per_user = Keyed(requests=per_minute(5))
    for _ in range(3):
        with pytest.raises(
            ValueError, match=r"^a key must equal itself, which nan does not: it would not be found again$"
        ):
            per_user[float("nan")]
    assert len(per_user) == 0


@anyio_test
async def test_none_and_what_is_equal_are_keys_as_in_a_dict(virtual_time):
    per_user = Keyed(requests=per_minute(5))
    for key in (None, "None", 1, True, 1.0, "1", "", (), frozenset()):
        per_user[key].acquire_nowait()
    levels = [level(per_user[key]) for key in (None, "None", 1, "1", "", (), frozenset())]
    assert levels == [4, 4, 2, 4, 4, 4, 4]
    assert per_user[None].name == "None"


@anyio_test
async def test_a_key_may_be_an_object_that_nobody_else_holds(virtual_time):
    """A key lives as long as what it has used, and not longer."""
    import weakref

    class User:
        pass

    per_user, user = Keyed(requests=per_minute(60)), User()
    gone = weakref.ref(user)
    per_user[user].acquire_nowait()
    del user
    look_at_all(per_user)
    assert gone() is not None
    await anyio.sleep(2)
    look_at_all(per_user)
    assert gone() is None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (Keyed, "Keyed needs either limits, or one function of the key that returns them"),
        (lambda: Keyed(lambda key: {}, requests=per_minute(5)), "Keyed needs either limits, or one function"),
        (lambda: Keyed(requests=5), "requests needs a limit"),
        (lambda: Keyed(requests=per_minute(5), ageing=0), "ageing"),
        (lambda: Keyed(lambda key: {}, max_queue=-1), "max_queue"),
    ],
)
def test_a_wrong_keyed_is_refused_where_it_is_made(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@anyio_test
async def test_options_are_those_of_every_keys_limiter(virtual_time):
    seen = []
    per_user = Keyed(requests=per_second(1, burst=1), max_queue=0, on_event=seen.append)
    per_user["alice"].acquire_nowait()
    with pytest.raises(RateLimited, match="max_queue allows"):
        await per_user["alice"].acquire()
    assert [(type(event).__name__, event.limiter) for event in seen] == [("Granted", "alice"), ("Refused", "alice")]
    shadow = Keyed(requests=per_second(1, burst=1), enforce=False)
    limiter = shadow["bob"]
    for _ in range(3):
        limiter.acquire_nowait()
    assert limiter.statistics().would_refuse == 2


@anyio_test
async def test_a_place_of_a_key_comes_back_after_its_time_to_live_and_not_when_its_permit_is_forgotten(virtual_time):
    """Who forgets the permit may be at work still: as with any limiter, the place is taken until it has outlived that."""
    per_user = Keyed(calls=in_flight(1, ttl=10))
    per_user["alice"].acquire_nowait()
    look_at_all(per_user)
    with pytest.raises(RateLimited) as refused:
        per_user["alice"].acquire_nowait()
    assert refused.value.retry_after == 10
    del refused
    await anyio.sleep(10)
    with pytest.warns(RuntimeWarning, match=r"a permit of alice acquired at .*test_keyed\.py:\d+ was not closed"):
        per_user["alice"].acquire_nowait().close()
    look_at_all(per_user)
    assert "alice" not in per_user._keys._states.known | per_user._keys._states.old | per_user._keys._states.live


def test_keys_are_not_iterated_over():
    """Every key has a limiter: whoever asks which there are, or for one among them, would never hear the end of it."""
    per_user = Keyed(requests=per_second(1))
    with pytest.raises(TypeError, match="not iterable"):
        iter(per_user)
    with pytest.raises(TypeError, match="not iterable"):
        "alice" in per_user  # noqa: B015 - it raises
