"""What seldom comes together, in virtual time: limits that change, calls that leave, names that cannot go together."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from penstock import (
    ConfigurationConflict,
    Limiter,
    QueueFull,
    Rate,
    RateLimited,
    StoreError,
    calendar,
    clock,
    in_flight,
    per_second,
    sliding,
    testing,
    unlimited,
)
from tests.stores.in_virtual_time import Rows, calls, processes
from tests.stores.test_like_memory import run

__all__ = ["processes"]


def store_of(*, hears=True, divided=False):
    """A store of one process; `divided`: each name is decided by itself, as in a cluster."""
    store = Rows(hears=hears).store()
    if divided:
        store.group_of = lambda name: name
    return store


def fail_once(store, message):
    """Let the store refuse the next batch."""
    decide = store.decide

    def refuse(batch):
        store.decide = decide
        raise StoreError(message)

    store.decide = refuse


async def level_of(limiter, unit="requests"):
    await limiter.refresh()
    return limiter.statistics().limits[unit].level


async def later():
    """Until the dispatcher has had a turn or two."""
    for _ in range(6):
        await asyncio.sleep(0)


# New limits


def test_a_call_with_a_moment_to_come_goes_by_new_limits_and_others_of_its_queue_keep_theirs(processes):
    async def main():
        store = store_of()
        one, two = (Limiter(requests=per_second(4, burst=1), name=name, store=store) for name in ("x", "y"))
        assert (one & two).joint  # so they have one queue
        await one.acquire()
        await two.acquire()
        waiting = [asyncio.ensure_future(each.acquire()) for each in (one, two)]
        await asyncio.sleep(0.05)
        one.reconfigure(requests=per_second(100, burst=1))
        granted = []
        for each in waiting:
            await each
            granted.append(clock.now())
        return granted, await level_of(one)

    (one, two), level = run(processes, main)
    assert one < 0.1
    assert two == pytest.approx(0.25, abs=0.01)
    assert level <= 1


def test_calls_that_wait_go_when_their_limit_is_none_any_more(processes):
    async def main():
        limiter = Limiter(requests=per_second(0.1, burst=1), name="x", store=store_of())
        await limiter.acquire()
        waiting = asyncio.gather(*(limiter.acquire() for _ in range(3)))
        await asyncio.sleep(0.5)
        limiter.reconfigure(requests=unlimited)
        for permit in await waiting:
            permit.settle(requests=7)
            permit.cancel()
        return clock.now()

    assert run(processes, main) == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("beside", [{}, {"tokens": per_second(1, burst=9)}], ids=["alone", "beside another limit"])
def test_what_was_granted_without_a_limit_is_charged_the_difference_when_there_is_one(processes, beside):
    """As in memory: it was charged nothing where nothing else was limited, and beside another limit the whole cost."""

    async def levels(limiter, cost):
        permit = await limiter.acquire(cost)
        permit.settle(requests=2)
        found = [permit.cost["requests"]]
        limiter.reconfigure(requests=per_second(1e-6, burst=5))
        for requests in (3, 1, 4):
            permit.settle(requests=requests)
            found.append(await level_of(limiter))
        permit.cancel()
        return [*found, await level_of(limiter)]

    async def over_a_store():
        return await levels(Limiter(requests=unlimited, name="x", store=store_of(), **beside), cost)

    cost = dict.fromkeys(beside, 1)
    in_memory = testing.run(levels, Limiter(requests=unlimited, **beside), cost)
    assert in_memory == pytest.approx([2, 4, 5, 3, 5], abs=1e-3)
    assert run(processes, over_a_store) == pytest.approx(in_memory, abs=1e-3)


def test_of_limits_that_others_count_differently_only_those_that_need_them_hear(processes):
    async def main():
        rows = Rows(hears=True)
        await Limiter(requests=per_second(5), name="x", store=rows.store()).acquire()
        store = rows.store()
        one, two = (Limiter(requests=per_second(1, burst=1), name=name, store=store) for name in ("x", "y"))
        both = one & two
        await two.acquire()
        waiting = asyncio.ensure_future(two.acquire())
        await later()
        with pytest.raises(ConfigurationConflict, match='"x" has other limits in the store'):
            await both.acquire()
        await waiting
        return clock.now()

    assert run(processes, main) == pytest.approx(1, abs=0.01)


def test_new_limits_of_a_joint_limiter_are_those_of_the_one_that_has_the_unit(processes):
    async def main():
        store = store_of()
        one = Limiter(requests=per_second(1e-6, burst=2), name="x", store=store)
        two = Limiter(tokens=per_second(1e-6, burst=9), name="y", store=store)
        (one & two).reconfigure(tokens=per_second(1e-6, burst=20))
        return await level_of(one), await level_of(two, "tokens")

    assert run(processes, main) == pytest.approx((2, 20), abs=1e-3)


def test_one_name_in_one_store_has_one_set_of_limits_however_they_are_written(processes):
    store = store_of()
    limiter = Limiter(requests="60/min", name="x", store=store)
    assert Limiter(requests=Rate(60.0, 60), name="x", store=store).limits == limiter.limits
    with pytest.raises(ConfigurationConflict, match='"x" has other limits'):
        Limiter(requests="61/min", name="x", store=store)


# More than one batch holds


def test_more_calls_than_a_batch_holds_go_on_as_if_one_did_and_those_that_leave_take_nothing(processes):
    """Some leave, and limits change, between the first batch and the second."""

    async def main():
        store = store_of()
        limiters = [Limiter(requests=per_second(1e-6, burst=1_000), name=name, store=store) for name in ("x", "y", "z")]
        for limiter in limiters:
            await limiter.acquire()
        tasks = [asyncio.ensure_future(limiter.acquire()) for limiter in limiters for _ in range(150)]
        while not any(task.done() for task in tasks):
            await asyncio.sleep(0)
        for task in tasks[-100:]:
            task.cancel()
        limiters[0].reconfigure(requests=per_second(1e-6, burst=1_001))
        await asyncio.gather(*tasks, return_exceptions=True)
        return [await level_of(limiter) for limiter in limiters], [task.cancelled() for task in tasks].count(True)

    levels, left = run(processes, main)
    assert left == 100
    assert levels == pytest.approx([850, 849, 949], abs=0.1)


@pytest.mark.parametrize("leave", [0, 20])
def test_more_calls_that_do_not_wait_than_a_batch_holds_are_granted_out_of_leases(processes, leave):
    async def main():
        limiter = Limiter(requests=per_second(100, burst=300), name="x", store=store_of(), lease=0.1)
        tasks = [asyncio.ensure_future(limiter.acquire(max_wait=0)) for _ in range(150)]
        await later()
        for task in tasks[150 - leave :]:
            task.cancel()
        return [type(each).__name__ for each in await asyncio.gather(*tasks, return_exceptions=True)]

    heard = run(processes, main)
    assert heard.count("Permit") >= 150 - leave
    assert set(heard) <= {"Permit", "CancelledError"}


@pytest.mark.parametrize("lease", [None, 0.1])
def test_names_that_cannot_be_decided_together_are_told_all_that_is_said_of_each(processes, lease):
    """At one moment: grants, true costs, what is given back, pauses, looks, and waiters that leave."""

    async def main():
        store = store_of(divided=True)
        limiters = [Limiter(requests=Rate(20, 10, burst=20), name=name, store=store, lease=lease) for name in "xyz"]
        permits = [await limiter.acquire(requests=count) for limiter in limiters for count in (1, 2, 4)]
        waiting = [asyncio.ensure_future(limiter.acquire(requests=15)) for limiter in limiters]
        await asyncio.sleep(0.1)
        for task in waiting:
            task.cancel()
        for lower, higher, cancelled in zip(permits[::3], permits[1::3], permits[2::3], strict=True):
            lower.settle(requests=0)
            higher.settle(requests=9)
            cancelled.cancel()
        for limiter in limiters:
            limiter.pause(0.5)
        await asyncio.gather(*(limiter.refresh() for limiter in limiters))
        await asyncio.sleep(1)
        return [await level_of(limiter) for limiter in limiters]

    levels = run(processes, main)
    assert levels == pytest.approx([levels[0]] * 3, abs=0.5)
    assert 20 - 9 <= levels[0] <= 20 - 9 + 2.5


def test_a_name_that_the_store_refuses_does_not_hold_up_what_is_said_of_another(processes):
    async def main():
        store = store_of(divided=True)
        one, two = (Limiter(requests=per_second(1e-6, burst=9), name=name, store=store) for name in ("x", "y"))
        permits = [await one.acquire(), await two.acquire()]
        fail_once(store, "no")
        for permit in permits:
            permit.settle(requests=4)
        with pytest.raises(StoreError, match="no"):
            await one.acquire()
        return await level_of(one), await level_of(two)

    assert run(processes, main) == pytest.approx((5, 5), abs=1e-3)


def test_a_true_cost_that_was_in_a_batch_about_others_which_failed_is_told_again(processes):
    """Each is asked for by itself then."""

    async def main():
        store = store_of()
        one, two = (Limiter(requests=per_second(1e-6, burst=9), name=name, store=store) for name in ("x", "y"))
        permit = await one.acquire()
        fail_once(store, "no")
        permit.settle(requests=4)
        await two.acquire()
        return await level_of(one), await level_of(two)

    assert run(processes, main) == pytest.approx((5, 8), abs=1e-3)


def test_queues_that_become_one_while_calls_are_on_their_way_keep_all_of_them(processes):
    async def main():
        store = store_of()
        one, two, three = (Limiter(requests=per_second(1, burst=150), name=name, store=store) for name in "xyz")
        await one.acquire()
        tasks = [asyncio.ensure_future(one.acquire()) for _ in range(149)]
        while not any(task.done() for task in tasks):
            await asyncio.sleep(0)
        all_three = one & (two & three)
        await asyncio.gather(*tasks)
        await all_three.acquire()
        return clock.now()

    assert run(processes, main) == pytest.approx(1, abs=0.01)


# What is refused


@pytest.mark.parametrize(("max_wait", "error"), [(0.1, RateLimited), (5, QueueFull), (None, QueueFull)])
def test_a_full_queue_is_no_reason_for_calls_that_would_not_wait_so_long(processes, max_wait, error):
    async def main():
        limiter = Limiter(requests=per_second(1, burst=1), name="x", store=store_of(), max_queue=1)
        await limiter.acquire()
        waiting = asyncio.ensure_future(limiter.acquire())
        await asyncio.sleep(0.1)
        with pytest.raises(RateLimited) as caught:
            await limiter.acquire(max_wait=max_wait)
        await waiting
        return type(caught.value)

    assert run(processes, main) is error


def test_those_that_wait_for_a_lease_hear_why_the_store_gives_none(processes):
    async def main():
        store = store_of()
        limiter = Limiter(requests=per_second(100), name="x", store=store, lease=0.1)
        fail_once(store, "no")
        with pytest.raises(StoreError, match="no"):
            await limiter.acquire()
        await limiter.acquire()
        return clock.now()

    assert run(processes, main) < 1


# Pauses


@pytest.mark.parametrize("lifted", [True, False])
@pytest.mark.parametrize("hears", [True, False], ids=["hears", "asks"])
def test_a_pause_that_another_process_lifts_ends_for_those_with_leases_too(processes, hears, lifted):
    """Where nothing is heard, they ask twice a second."""

    async def main():
        rows = Rows(hears=hears)
        one, two = (Limiter(requests=per_second(50), name="x", store=rows.store(), lease=0.1) for _ in range(2))
        await two.acquire()
        await one.acquire()
        one.pause(10)
        await asyncio.sleep(1)
        waiting = asyncio.ensure_future(two.acquire())
        await asyncio.sleep(1)
        if lifted:
            one.resume()
        await waiting
        return clock.now()

    gone = run(processes, main)
    assert (2 <= gone <= 2.6) if lifted else gone == pytest.approx(10, abs=0.1)


def test_a_pause_of_another_process_holds_those_that_have_a_moment_to_come(processes):
    async def main():
        rows = Rows(hears=True)
        one, two = (Limiter(requests=per_second(4, burst=1), name="x", store=rows.store()) for _ in range(2))
        unknown = Limiter(requests=per_second(4), name="of the second process alone", store=two.store)
        await one.acquire()
        waiting = asyncio.ensure_future(one.acquire())
        await asyncio.sleep(0.05)
        unknown.pause(100)
        two.pause(3)
        await waiting
        return clock.now(), await level_of(one)

    gone, level = run(processes, main)
    assert gone == pytest.approx(3.05, abs=0.02)
    assert level <= 0.2


# Grants


def test_a_true_cost_is_taken_out_of_what_is_held_and_else_told_to_the_store_once(processes):
    """Also where it is told anew before the store has answered the first."""

    async def main():
        limiter = Limiter(tokens=Rate(1e-6, 1, burst=100), name="x", store=store_of(), lease=0.5)
        permits = [await limiter.acquire(tokens=10) for _ in range(2)]
        for amount in (11, 60, 30):
            permits[0].settle(tokens=amount)
            permits[1].settle(tokens=amount)
        await later()
        permits[0].settle(tokens=20)
        await asyncio.sleep(2)  # leases that nobody uses go back
        return await level_of(limiter, "tokens")

    assert run(processes, main) == pytest.approx(50, abs=0.1)


@pytest.mark.parametrize("lease", [None, 0.5])
def test_what_a_call_would_wait_is_told_of_leases_too(processes, lease):
    async def main():
        limiter = Limiter(requests=per_second(10), name="x", store=store_of(), lease=lease)
        await limiter.acquire(requests=3)
        told, begin = limiter.forecast(requests=5).wait, clock.now()
        await limiter.acquire(requests=5)
        return clock.now() - begin - told

    assert run(processes, main) == pytest.approx(0, abs=0.05)


def test_a_place_that_was_given_back_is_no_part_of_what_a_permit_cost(processes):
    async def main():
        limiter = Limiter(tokens=per_second(9), calls=in_flight(2), name="x", store=store_of())
        permit = await limiter.acquire(tokens=4)
        before = permit.cost
        permit.close()
        nothing = await limiter.acquire(tokens=4, calls=0)
        nothing.close()
        return before, permit.cost, nothing.cost

    assert run(processes, main) == ({"tokens": 4, "calls": 1}, {"tokens": 4}, {"tokens": 4})


def test_a_call_that_waits_for_places_hears_where_one_was_lost(processes):
    async def main():
        limiter = Limiter(calls=in_flight(1), name="x", store=store_of())
        await limiter.acquire()  # and nobody holds the permit
        with pytest.warns(RuntimeWarning, match="for as long as this process lives"), pytest.raises(RateLimited):
            await limiter.acquire(max_wait=0)

    run(processes, main)


def test_more_than_can_be_counted_is_counted_as_the_most(processes):
    """A call that is larger than any sum of the store's is let through by overdraft, and paid for as far as it goes."""

    async def main():
        limiter = Limiter(tokens=Rate(10, 1, overdraft=True), name="x", store=store_of())
        await limiter.acquire(tokens=1e22)
        with pytest.raises(RateLimited) as caught:
            await limiter.acquire(tokens=1, max_wait=0)
        return caught.value.retry_after

    assert run(processes, main) == pytest.approx(1e11, rel=0.01)


OBSERVED = [
    ({"remaining": {"requests": 2}}, 2),
    ({"reset": {"requests": 3}}, 4),  # the bucket is full again in 3 s
    ({"reset": {"window": 3}}, 7),  # of a window that says nothing
    ({"remaining": {"free": 1}, "reset": {"free": 1}}, 7),  # nothing counts it
]


@pytest.mark.parametrize("by_permit", [False, True])
@pytest.mark.parametrize("lease", [None, 0.1])
@pytest.mark.parametrize(("said", "left"), OBSERVED)
def test_what_a_server_says_is_taken_for_what_it_is_about(processes, said, left, lease, by_permit):
    async def main():
        limiter = Limiter(
            requests=Rate(1, 1, burst=7), window=sliding(50, 9), day=calendar(70, "day"), free=unlimited, name="x",
            store=store_of(), lease=lease,
        )  # fmt: skip
        permit = await limiter.acquire(requests=1e-9, window=1, day=0, free=1)
        (permit if by_permit else limiter).observe(**said)
        return await level_of(limiter)

    assert run(processes, main) == pytest.approx(left, abs=0.3)


def test_what_is_said_of_names_that_a_process_does_not_know_costs_it_nothing(processes):
    async def main():
        rows = Rows(hears=True)
        one = Limiter(requests=per_second(5), name="x", store=rows.store())
        two = Limiter(requests=per_second(5), name="y", store=rows.store())
        await one.acquire()
        before = calls(one.store)
        two.pause(1)
        (await two.acquire()).cancel()
        await asyncio.sleep(1)
        return calls(one.store) - before

    assert run(processes, main) == 0


@pytest.mark.parametrize("hears", [True, False], ids=["hears", "asks"])
def test_a_process_without_any_limit_hears_that_another_has_set_one(processes, hears):
    """It asked the store for nothing, so it never heard."""

    async def main():
        rows = Rows(hears=hears)
        one, two = (Limiter(requests=unlimited, name="x", store=rows.store()) for _ in range(2))
        await one.acquire()
        await asyncio.sleep(0.1)
        two.reconfigure(requests=per_second(1e-6, burst=5))
        await asyncio.sleep(0.1 if hears else 1.1)
        granted = 0
        for _ in range(10):
            with contextlib.suppress(RateLimited):
                await one.acquire(max_wait=0)
                granted += 1
            await later()
        return granted

    assert run(processes, main) == (5 if hears else 6)  # where it asks, its first call makes it ask


def test_no_limit_where_others_count_one_is_a_conflict(processes):
    """It let all calls through."""

    async def main():
        rows = Rows(hears=False)
        one = Limiter(requests=per_second(1), name="x", store=rows.store())
        await one.acquire()
        two = Limiter(requests=unlimited, name="x", store=rows.store())
        await two.acquire()
        await later()
        with pytest.raises(ConfigurationConflict, match=r"requests=1/s there, nothing but unlimited here"):
            await two.acquire()
        one.reconfigure(requests=unlimited)
        await asyncio.sleep(2)
        with pytest.raises(ConfigurationConflict):
            await two.acquire()
        await later()
        await two.acquire()

    run(processes, main)


def test_a_call_that_cost_nothing_at_first_is_charged_its_true_cost(processes):
    """The store was not asked for it, and never heard of what it cost: as many calls went as asked."""

    async def levels(limiter):
        permit = await limiter.acquire(requests=0)
        found = []
        for requests in (3, 1, 4):
            permit.settle(requests=requests)
            found += [await level_of(limiter), permit.cost["requests"]]
        permit.cancel()
        permit.cancel()
        return [*found, await level_of(limiter), permit.cost, limiter.statistics().cancelled]

    async def over_a_store():
        return await levels(Limiter(requests=per_second(1e-6, burst=5), name="x", store=store_of()))

    in_memory = testing.run(levels, Limiter(requests=per_second(1e-6, burst=5)))
    assert in_memory[:-2] == pytest.approx([2, 3, 4, 1, 1, 4, 5], abs=1e-3)
    found = run(processes, over_a_store)
    assert found[:-2] == pytest.approx(in_memory[:-2], abs=1e-3)
    assert found[-2:] == in_memory[-2:] == [{}, 1]
