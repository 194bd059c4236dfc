"""What a limiter does, claim by claim, on every loop it promises to work on."""

from __future__ import annotations

import asyncio
import copy
import dataclasses
import gc
import math
import pickle
import re
import threading
import warnings
import weakref
from contextlib import AsyncExitStack, suppress
from decimal import Decimal

import anyio
import anyio.to_thread
import pytest

import penstock
from penstock import (
    CostError,
    Limiter,
    MissingUnit,
    QueueFull,
    Rate,
    RateLimited,
    UnknownUnit,
    Unsatisfiable,
    WouldBlockEventLoop,
    calendar,
    clock,
    events,
    in_flight,
    per_day,
    per_minute,
    per_second,
    sliding,
)
from penstock._backends.queue import WaitQueue
from penstock.stores.memory import MemoryStore
from penstock.testing import RecordedEvents, run

pytestmark = pytest.mark.anyio


async def line_up(limiter, calls, log):
    """Start `calls`, (name, options) each, one after another; write down who is granted when."""

    async def call(name, options):
        async with limiter(**options):
            log.append((name, round(clock.now(), 6)))

    async with anyio.create_task_group() as group:
        for name, options in calls:
            group.start_soon(call, name, options)
            await anyio.wait_all_tasks_blocked()


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


async def test_a_whale_is_served_at_its_projected_time_and_free_minnows_pass_it(virtual_time):
    """Promise 4: small calls cannot starve a large one, and one that needs no tokens does not queue behind tokens."""
    limiter = Limiter(requests=per_second(10), tokens=per_second(100))
    limiter.acquire_nowait(tokens=100)
    log = []
    small = [(f"small {i}", {"tokens": 1}) for i in range(3)]
    free = [(f"free {i}", {"tokens": 0}) for i in range(3)]
    await line_up(limiter, [("whale", {"tokens": 100}), *small, *free], log)
    assert log[:3] == [("free 0", 0.0), ("free 1", 0.0), ("free 2", 0.0)]
    assert log[3:] == [("whale", 1.0), ("small 0", 1.01), ("small 1", 1.02), ("small 2", 1.03)]


async def test_backfill_stops_where_it_would_delay_the_head(virtual_time):
    """Free calls may pass a whale only while they leave it the requests it needs."""
    limiter = Limiter(requests=per_second(1, burst=2), tokens=per_second(100))
    limiter.acquire_nowait(tokens=100)
    log = []
    await line_up(limiter, [("whale", {"tokens": 50}), ("free 1", {"tokens": 0}), ("free 2", {"tokens": 0})], log)
    assert log == [("whale", 0.5), ("free 1", 1.0), ("free 2", 2.0)]


async def test_higher_priority_goes_first_and_waiting_raises_priority(virtual_time):
    limiter = Limiter(requests=per_second(1, burst=1), ageing=10)
    limiter.acquire_nowait()
    log = []

    async def stream():
        for i in range(40):
            group.start_soon(call, f"high {i}", 1)
            await anyio.sleep(0.9)

    async def call(name, priority):
        async with limiter(priority=priority):
            log.append(name)

    async with anyio.create_task_group() as group:
        group.start_soon(call, "low", 0)
        await anyio.wait_all_tasks_blocked()
        group.start_soon(stream)
    assert log[0] == "high 0", "the higher one goes first"
    assert 9 <= log.index("low") <= 12, "after ten seconds the low one is as high, and it came first"


async def test_flows_share_by_turns_whatever_their_number_of_calls(virtual_time):
    limiter = Limiter(requests=per_second(1, burst=1), flow_weights={"carol": 2})
    limiter.acquire_nowait()
    log = []
    calls = [(f"{flow}{i}", {"flow": flow}) for flow, n in (("alice", 8), ("bob", 2), ("carol", 4)) for i in range(n)]
    await line_up(limiter, calls, log)
    first = [name[:-1] for name, _ in log[:8]]
    assert first.count("carol") == 4, "twice the weight, twice the share"
    assert first.count("alice") == first.count("bob") == 2
    assert [name for name, _ in log if name.startswith("alice")] == [f"alice{i}" for i in range(8)]


async def test_giving_up_spends_nothing(virtual_time):
    """Promise 5: whoever stops waiting leaves their tokens to the next in line."""
    limiter = Limiter(requests=per_second(1, burst=1))
    limiter.acquire_nowait()
    granted = []

    async def wait(name, scope):
        with scope:
            await limiter.acquire()
            granted.append((name, clock.now()))

    async with anyio.create_task_group() as group:
        scopes = [anyio.CancelScope() for _ in range(3)]
        for name, scope in zip("abc", scopes, strict=True):
            group.start_soon(wait, name, scope)
            await anyio.wait_all_tasks_blocked()
        await anyio.sleep(0.5)
        scopes[0].cancel()
    assert granted == [("b", 1.0), ("c", 2.0)]


async def test_settling_down_gives_back_and_up_makes_a_debt(virtual_time):
    limiter = Limiter(requests=per_minute(10), tokens=per_minute(100))
    permit = await limiter.acquire(tokens=60)
    permit.settle(tokens=20)
    assert permit.cost == {"requests": 1, "tokens": 20}
    assert limiter.statistics().limits["tokens"].level == pytest.approx(80)
    permit.settle(tokens=130)
    assert limiter.statistics().limits["tokens"].level == pytest.approx(-30)
    permit.settle(tokens=50)
    assert limiter.statistics().limits["tokens"].level == pytest.approx(50)
    permit.cancel()
    assert limiter.statistics().limits["tokens"].level == pytest.approx(100)


async def test_a_refund_after_an_overflow_gives_nothing(virtual_time):
    """Promise 6: the bucket would have been full anyway."""
    limiter = Limiter(tokens=per_second(1, burst=10))
    old = await limiter.acquire(tokens=5)
    await anyio.sleep(5)
    await limiter.acquire(tokens=10)
    old.cancel()
    with pytest.raises(RateLimited):
        limiter.acquire_nowait(tokens=1)


async def test_failed_calls_stay_charged(virtual_time):
    """Promise 8."""
    limiter = Limiter(requests=per_minute(2))
    with pytest.raises(ConnectionError):
        async with limiter():
            raise ConnectionError
    assert limiter.statistics().limits["requests"].level == 1


async def test_a_pause_holds_everybody_and_is_never_shortened(virtual_time):
    """Promise 9."""
    limiter = Limiter(requests=per_second(100))
    limiter.pause(7.0)
    limiter.pause(2.0)
    with pytest.raises(RateLimited) as refused:
        limiter.acquire_nowait()
    assert (refused.value.retry_after, refused.value.blocked_by) == (7.0, "pause")
    log = []
    await line_up(limiter, [("a", {}), ("b", {})], log)
    assert log == [("a", 7.0), ("b", 7.0)]
    async with limiter:
        assert clock.now() == 7.0


async def test_a_pause_outlives_those_who_give_up_in_it(virtual_time):
    limiter = Limiter(requests=per_second(100))
    limiter.pause(5.0)
    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as group:
            group.start_soon(limiter.acquire)
            await anyio.wait_all_tasks_blocked()
            scope.cancel()
    async with limiter(requests=1):
        assert clock.now() == 5.0


async def test_a_pause_of_one_unit_lets_calls_pass_that_do_not_cost_it(virtual_time):
    limiter = Limiter(requests=per_second(100), tokens=per_second(100))
    limiter.pause(3, "tokens")
    limiter.acquire_nowait(tokens=0)
    with pytest.raises(RateLimited):
        limiter.acquire_nowait(tokens=1)


async def test_reconfiguring_keeps_what_was_used_and_looks_at_who_waits(virtual_time):
    limiter = Limiter(tokens=per_minute(60))
    limiter.acquire_nowait(tokens=60)
    log = []

    async def change():
        await anyio.sleep(1)  # one token is back
        limiter.reconfigure(tokens=per_second(10, burst=60))

    async with anyio.create_task_group() as group:
        group.start_soon(line_up, limiter, [("a", {"tokens": 21})], log)
        group.start_soon(change)
    assert log == [("a", 3.0)]
    assert limiter.limits["tokens"] == (per_second(10, burst=60),)


async def test_reconfiguring_below_a_waiters_cost_tells_it(virtual_time):
    limiter = Limiter(tokens=per_minute(60))
    limiter.acquire_nowait(tokens=60)
    async with anyio.create_task_group() as group:

        async def wait():
            with pytest.raises(Unsatisfiable):
                await limiter.acquire(tokens=50)

        group.start_soon(wait)
        await anyio.wait_all_tasks_blocked()
        limiter.reconfigure(tokens=per_minute(30))


async def test_a_permit_observes_with_what_was_sent_since(virtual_time):
    """A `remaining` that is one latency old is not the present: what was charged since is subtracted, refills added."""
    limiter = Limiter(tokens=per_second(10, burst=100))
    first = await limiter.acquire(tokens=10)
    await limiter.acquire(tokens=30)
    await anyio.sleep(1)
    first.observe(remaining={"tokens": 60})
    assert limiter.statistics().limits["tokens"].level == pytest.approx(40)
    first.observe(remaining={"tokens": 90})
    assert limiter.statistics().limits["tokens"].level == pytest.approx(40), "it is never raised"
    limiter.observe(reset={"tokens": 9.0})
    assert limiter.statistics().limits["tokens"].level == pytest.approx(10)


async def test_forecast_charges_nothing_and_is_right(virtual_time):
    limiter = Limiter(requests=per_second(1, burst=2))
    assert limiter.forecast() == penstock.Forecast(0.0, None)
    limiter.acquire_nowait(requests=2)
    assert limiter.forecast() == penstock.Forecast(1.0, "requests")
    assert limiter.forecast() == penstock.Forecast(1.0, "requests")
    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as group:
            group.start_soon(limiter.acquire)
            await anyio.wait_all_tasks_blocked()
            assert limiter.forecast().wait == pytest.approx(2.0)
            scope.cancel()


async def test_a_longer_wait_than_max_wait_is_refused_at_once(virtual_time):
    limiter = Limiter(requests=per_second(1, burst=1))
    limiter.acquire_nowait()
    with pytest.raises(RateLimited, match=r"max_wait is 0\.5 s") as refused:
        await limiter.acquire(max_wait=0.5)
    assert clock.now() == 0
    assert refused.value.retry_after == 1.0
    await limiter.acquire(max_wait=1.0)
    assert clock.now() == 1.0


async def test_a_wait_past_the_enclosing_deadline_is_refused_at_once(virtual_time):
    limiter = Limiter(requests=per_second(1, burst=1))
    limiter.acquire_nowait()
    with anyio.move_on_after(0.5), pytest.raises(RateLimited, match="deadline"):
        await limiter.acquire()
    assert clock.now() == 0


async def test_in_a_cancelled_scope_a_wait_ends_as_cancelled(virtual_time):
    limiter = Limiter(requests=per_second(1, burst=1))
    limiter.acquire_nowait()
    with anyio.CancelScope() as scope:
        scope.cancel()
        await limiter.acquire()
        raise AssertionError("unreachable")
    assert scope.cancelled_caught


async def test_max_wait_counts_when_others_push_in(virtual_time):
    limiter = Limiter(requests=per_second(1, burst=1))
    limiter.acquire_nowait()
    async with anyio.create_task_group() as group:

        async def wait():
            with pytest.raises(RateLimited, match="max_wait has passed"):
                await limiter.acquire(max_wait=1.5)
            assert clock.now() == 1.5

        group.start_soon(wait)
        await anyio.wait_all_tasks_blocked()
        for _ in range(3):
            group.start_soon(lambda: limiter.acquire(priority=9))


async def test_the_line_is_bounded(virtual_time):
    limiter = Limiter(requests=per_second(1, burst=1), max_queue=2)
    limiter.acquire_nowait()
    async with anyio.create_task_group() as group:
        for _ in range(2):
            group.start_soon(limiter.acquire)
        await anyio.wait_all_tasks_blocked()
        with pytest.raises(QueueFull, match="2 calls are waiting already"):
            await limiter.acquire()


async def test_places_come_back_when_the_permit_ends(virtual_time):
    limiter = Limiter(calls=in_flight(2))
    log = []

    async def call(i):
        async with limiter:
            log.append((i, clock.now()))
            await anyio.sleep(1)

    async with anyio.create_task_group() as group:
        for i in range(5):
            group.start_soon(call, i)
            await anyio.wait_all_tasks_blocked()
    assert [at for _, at in sorted(log)] == [0, 0, 1, 1, 2]
    with pytest.raises(RateLimited) as refused, limiter, limiter:
        limiter.acquire_nowait()
    assert refused.value.retry_after == math.inf
    assert limiter.statistics().in_flight == 0


async def test_one_call_object_serves_many_tasks_at_once(virtual_time):
    limiter = Limiter(calls=in_flight(3))
    gate = limiter()
    inside = []

    async def call():
        async with gate:
            inside.append(limiter.statistics().in_flight)
            await anyio.sleep(1)

    async with anyio.create_task_group() as group:
        for _ in range(7):
            group.start_soon(call)
    assert max(inside) == 3
    assert limiter.statistics().in_flight == 0


async def test_a_decorator_computes_the_cost_and_settles_by_the_result(virtual_time):
    limiter = Limiter(requests=per_minute(10), tokens=per_minute(100))

    @limiter(tokens=len, settle=lambda reply: {"tokens": reply["used"]})
    async def ask(prompt):
        return {"used": 7, "text": prompt.upper()}

    assert (await ask("twelve chars"))["text"] == "TWELVE CHARS"
    assert ask.__name__ == "ask"
    assert limiter.statistics().limits["tokens"].level == pytest.approx(93)


async def test_generators_hold_their_permit_until_they_end(virtual_time):
    limiter = Limiter(calls=in_flight(1))

    @limiter
    async def stream():
        yield limiter.statistics().in_flight
        yield limiter.statistics().in_flight

    assert [n async for n in stream()] == [1, 1]
    assert limiter.statistics().in_flight == 0
    items = stream()
    assert await anext(items) == 1
    await items.aclose()
    assert limiter.statistics().in_flight == 0


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


async def test_a_joint_limiter_tells_its_limits_of_one_unit_apart(virtual_time):
    org = Limiter(requests=per_minute(100), tokens=per_minute(1_000))
    alice = Limiter(requests=per_minute(60), tokens=per_day(500))
    both = org & alice
    assert list(both.statistics().limits) == [
        "requests (100/min)",
        "requests (60/min)",
        "tokens (1000/min)",
        "tokens (500/day)",
    ]
    with pytest.raises(Unsatisfiable, match=r'501 tokens can never be granted: "tokens \(500/day\)" holds at most 500'):
        both.acquire_nowait(tokens=501)
    both.acquire_nowait(tokens=500)
    assert both.forecast(tokens=1).blocked_by == "tokens (500/day)"
    with pytest.raises(RateLimited, match=r"for tokens \(500/day\)") as refused:
        both.acquire_nowait(tokens=1)
    assert refused.value.blocked_by == "tokens (500/day)"
    assert alice.forecast(tokens=1).blocked_by == "tokens"  # on its own it has but one


async def test_a_joint_limiter_is_one_decision_and_one_line(virtual_time):
    org = Limiter(requests=per_second(2), tokens=per_second(100))
    alice, bob = (Limiter(requests=per_second(1, burst=1)) for _ in range(2))
    log = []

    async def call(name, limiter):
        async with (org & limiter)(tokens=1):
            log.append((name, clock.now()))

    async with anyio.create_task_group() as group:
        for name, limiter in (("alice", alice), ("alice", alice), ("bob", bob), ("bob", bob)):
            group.start_soon(call, name, limiter)
            await anyio.wait_all_tasks_blocked()
    assert log == [("alice", 0.0), ("bob", 0.0), ("alice", 1.0), ("bob", 1.0)]
    assert org.statistics().limits["requests"].level == 0
    with pytest.raises(UnknownUnit):
        (org & alice).acquire_nowait(tokens=1, images=1)
    assert list((org & alice & bob).statistics().limits) == [
        "requests (2/s)", "requests (1/s)", "requests (1/s)'", "tokens"
    ]  # fmt: skip


async def test_joining_twice_charges_once(virtual_time):
    a, b = Limiter(requests=per_minute(10)), Limiter(tokens=per_minute(10))
    ((a & b) & (b & a)).acquire_nowait(tokens=4)
    assert a.statistics().limits["requests"].level == 9
    assert b.statistics().limits["tokens"].level == 6


async def test_shadow_mode_lets_through_and_counts(virtual_time):
    limiter = Limiter(requests=per_minute(1), enforce=False)
    for _ in range(3):
        async with limiter:
            pass
    statistics = limiter.statistics()
    assert (statistics.granted, statistics.would_refuse) == (3, 2)


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


async def test_a_rehearsal_is_not_decided_together_with_the_performance(virtual_time):
    """The joint limiter was a rehearsal as a whole, and let through what the other one had promised to hold."""
    org = Limiter(requests=per_minute(1))
    user = Limiter(requests=per_minute(1), enforce=False)
    for one, other in ((org, user), (user, org)):
        with pytest.raises(ValueError, match=r"is a rehearsal \(enforce=False\) and Limiter\(.*\) is not"):
            one & other


async def test_events_tell_what_happened_and_a_failing_hook_breaks_nothing(virtual_time, caplog):
    seen = []

    def hook(event):
        seen.append(type(event))
        raise RuntimeError("a bug in the hook")

    limiter = Limiter(requests=per_second(1, burst=1), on_event=hook)
    permit = await limiter.acquire()
    with pytest.raises(RateLimited):
        limiter.acquire_nowait()
    await limiter.acquire()
    permit.settle(requests=1)
    limiter.pause(0.1)
    limiter.observe(remaining={"requests": 0})
    limiter.reconfigure(requests=per_second(2))
    permit.cancel()
    assert seen == [
        events.Granted, events.Refused, events.Granted, events.Settled, events.Paused, events.Observed,
        events.Reconfigured, events.Withdrawn,
    ]  # fmt: skip
    assert "a bug in the hook" in caplog.text


async def test_blocking_the_running_loop_is_refused(virtual_time):
    limiter = Limiter(requests=per_second(1, burst=1))
    with limiter:
        pass
    with pytest.raises(WouldBlockEventLoop, match="would block the running event loop"), limiter:
        pass


async def test_threads_wait_in_the_same_line():
    limiter = Limiter(requests=per_second(100, burst=1))
    granted = []

    def work(i):
        with limiter():
            granted.append((clock.now(), i))

    async with anyio.create_task_group() as group:
        for i in range(6):
            group.start_soon(anyio.to_thread.run_sync, work, i)
        for i in range(6, 12):

            async def ask(i=i):
                async with limiter():
                    granted.append((clock.now(), i))

            group.start_soon(ask)
    assert len(granted) == 12
    moments = sorted(at for at, _ in granted)
    assert moments[-1] - moments[0] >= 11 * 0.01 - 1e-3


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Limiter(requests=per_minute(0)), ValueError, "above 0, not 0"),
        (lambda: Limiter(requests=per_minute(-3)), ValueError, "above 0, not -3"),
        (lambda: Limiter(requests=per_minute(math.nan)), ValueError, "finite"),
        (lambda: Limiter(requests=per_minute(math.inf)), ValueError, "finite"),
        (lambda: Limiter(requests=per_minute(5, burst=0.5)), ValueError, "burst of 0.5 is below one unit"),
        (lambda: Limiter(requests=Rate(0.5, 1)), ValueError, r"write Rate\(1, per=2\)"),
        (lambda: Limiter(requests="3500 per fortnight"), ValueError, "cannot read '3500 per fortnight'"),
        (lambda: Limiter(requests=calendar(1, "day", "Mars/Olympus")), ValueError, "unknown time zone 'Mars/Olympus'"),
        (lambda: Limiter(requests=calendar(1, "fortnight")), ValueError, "unknown calendar period"),
        (lambda: Limiter(priority=per_minute(5)), ValueError, "cannot be called 'priority'"),
        (lambda: Limiter(name=per_minute(5)), ValueError, "name= must be a string"),
        (Limiter, ValueError, "at least one limit"),
        (lambda: Limiter(requests=5), ValueError, "requests needs a limit"),
        (lambda: Limiter(requests=per_minute(5), ageing=0), ValueError, "ageing"),
        (lambda: Limiter(requests=per_minute(5), flow_weights={"a": -1}), ValueError, "weight of flow 'a'"),
        (lambda: Limiter(requests=per_minute(5), max_queue=-1), ValueError, "max_queue"),
    ],
)  # fmt: skip
def test_a_wrong_limiter_is_refused_where_it_is_made(make, error, message):
    with pytest.raises(error, match=message):
        make()


NEVER = (
    '^12000 tokens can never be granted: "tokens" holds at most 10000 at once. '
    "Split the call, raise burst, or allow overdraft.$"
)


@pytest.mark.parametrize(
    ("cost", "error", "message"),
    [
        ({}, MissingUnit, "how many tokens does this call cost"),
        ({"tokens": 1, "imagse": 2}, UnknownUnit, "this limiter knows requests, tokens"),
        ({"token": 5}, UnknownUnit, "no limit counts 'token': this limiter knows requests, tokens"),
        ({"tokens": 12_000}, Unsatisfiable, NEVER),
        ({"tokens": math.nan}, CostError, "not nan"),
        ({"tokens": -1}, CostError, "not -1"),
        ({"tokens": "5"}, CostError, "not '5'"),
        ({"tokens": Decimal("NaN")}, CostError, r"not Decimal\('NaN'\)"),
        ({"tokens": None}, (MissingUnit, CostError), "tokens"),
    ],
)  # fmt: skip
async def test_a_wrong_cost_is_refused_in_every_form(cost, error, message):
    limiter = Limiter(requests=per_minute(10), tokens=per_minute(10_000))
    with pytest.raises(error, match=message):
        limiter.acquire_nowait(**cost)
    with pytest.raises(error, match=message):
        await limiter.acquire(**cost)
    with pytest.raises(error, match=message):
        async with limiter(**cost):
            pass
    with pytest.raises(error, match=message), limiter(**cost):
        pass
    assert limiter.statistics().granted == 0


async def test_one_name_has_one_set_of_limits():
    store = MemoryStore()
    one = Limiter(name="service", store=store, requests=per_minute(10))
    same = Limiter(name="service", store=store, requests=per_minute(10))
    one.acquire_nowait(requests=4)
    assert same.statistics().limits["requests"].level == pytest.approx(6, abs=0.1)
    with pytest.raises(penstock.ConfigurationConflict, match="requests=10/min there, requests=11/min here"):
        Limiter(name="service", store=store, requests=per_minute(11))


async def test_a_limiter_and_its_permits_are_no_reference_cycle():
    limiter = Limiter(requests=per_minute(10), tokens=per_minute(10), calls=in_flight(3))
    async with limiter(tokens=1) as permit:
        permit.settle(tokens=0)
    (limiter & Limiter(requests=per_day(5))).acquire_nowait(tokens=1)
    gone = weakref.ref(limiter)
    gc.disable()
    try:
        del limiter, permit
        assert gone() is None
    finally:
        gc.enable()


def test_a_limiter_made_at_import_serves_loop_after_loop():
    """Promise 10."""
    limiter = Limiter(requests=per_second(1_000, burst=1))

    async def use():
        for _ in range(3):
            async with limiter:
                pass

    for backend in ("asyncio", "trio", "asyncio"):
        anyio.run(use, backend=backend)
    asyncio.run(use())
    threads = [threading.Thread(target=anyio.run, args=(use,), kwargs={"backend": b}) for b in ("asyncio", "trio") * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
    assert limiter.statistics().granted == 3 * 8


async def test_a_busy_loop_loses_no_capacity(virtual_time):
    """While tasks keep the loop busy, whoever is on post cannot wake up: whoever comes grants in its place."""
    limiter = Limiter(requests=per_second(10))

    async def work():
        virtual_time.advance(0.5)  # on the processor, so that no timer fires
        await limiter.acquire()

    for _ in range(10):
        limiter.acquire_nowait()
    began = clock.now()
    async with anyio.create_task_group() as group:
        for _ in range(40):
            group.start_soon(limiter.acquire)
        await anyio.wait_all_tasks_blocked()
        for _ in range(12):
            group.start_soon(work)
    assert clock.now() - began == pytest.approx(6.0)
    assert limiter.statistics().granted == 62


async def test_a_place_that_is_never_given_back_comes_back_with_one_warning_that_names_the_line(virtual_time):
    limiter = Limiter(calls=in_flight(1, ttl=60), name="gpu")

    async def forgetful():
        await limiter.acquire()  # never closed

    began = clock.now()
    await forgetful()
    line = forgetful.__code__.co_firstlineno + 1
    with pytest.warns(RuntimeWarning, match=rf"permit of gpu acquired at .*test_limiter.py:{line} .*close") as caught:
        (await limiter.acquire()).close()
    assert clock.now() - began == pytest.approx(60)
    assert [(warning.filename, warning.lineno) for warning in caught] == [(__file__, line)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with limiter.acquire_nowait():  # it was said once
            limiter.statistics()


async def test_where_warnings_are_errors_nobody_else_loses_a_place_by_one(virtual_time):
    limiter = Limiter(calls=in_flight(1, ttl=60))

    @limiter
    async def well_kept():
        return limiter.statistics().in_flight

    limiter.acquire_nowait()
    await anyio.sleep(61)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(RuntimeWarning, match="was not closed"):
            await well_kept()
        assert limiter.statistics().in_flight == 0
        assert await well_kept() == 1


async def test_statistics_tell_of_a_lost_place_too(virtual_time):
    limiter = Limiter(calls=in_flight(2, ttl=1))
    permit = limiter.acquire_nowait()
    limiter.acquire_nowait().close()
    await anyio.sleep(2)
    with pytest.warns(RuntimeWarning, match="was not closed") as caught:
        assert limiter.statistics().in_flight == 0
    assert len(caught) == 1
    permit.close()
    assert limiter.statistics().in_flight == 0


async def test_a_forecast_leaves_nothing_behind_that_others_would_wait_for(virtual_time):
    limiter = Limiter(requests=per_second(10), calls=in_flight(1))
    held = limiter.acquire_nowait()
    async with anyio.create_task_group() as group:
        group.start_soon(limiter.acquire)
        await anyio.wait_all_tasks_blocked()
        for _ in range(3):
            assert limiter.forecast(calls=0).wait == 0
            limiter.acquire_nowait(calls=0)
        assert limiter.statistics().waiting == 1
        held.close()


@pytest.mark.parametrize("limits", [{"tokens": Rate(5, 1.0)}, {"requests": Rate(5, 1.0), "tokens": Rate(5, 1.0)}])
async def test_a_call_that_was_made_before_a_reconfiguration_is_charged_by_the_limits_of_now(limits):
    limiter = Limiter(**limits)
    call = limiter(tokens=2)
    limiter.reconfigure(tokens=sliding(3, 60))
    async with call as permit:
        assert permit.cost["tokens"] == 2
    assert limiter.statistics().limits["tokens"].level == 1
    for unit in set(limits) - {"tokens"}:
        assert limiter.statistics().limits[unit].level == pytest.approx(4, abs=0.1)


def test_functions_that_would_have_to_be_awaited_are_refused_where_they_are_given():
    async def later(*_):
        return {}

    limiter = Limiter(tokens=per_second(5))
    for wrong in ({"tokens": later}, *({"tokens": 1, option: later} for option in ("settle", "priority", "flow"))):
        with pytest.raises(CostError, match="later: it is called and not awaited"):
            limiter(**wrong)
    with pytest.raises(ValueError, match=r"on_event=.*later: it is called and not awaited"):
        Limiter(tokens=per_second(5), on_event=later)


@pytest.mark.parametrize(
    ("turn", "message"),
    [
        ({"priority": lambda: "high"}, "priority must be a whole number .*, not 'high'"),
        ({"flow": lambda: ["alice"]}, r"flow must be hashable, such as a string, not \['alice'\]"),
    ],
    ids=["priority", "flow"],
)
async def test_a_wrong_turn_that_a_function_returns_is_refused_and_leaves_no_trace_in_the_line(
    virtual_time, turn, message
):
    """The line was entered with it: it stood there for ever, and nobody else could go without a look at it."""
    limiter = Limiter(requests=per_second(1, burst=1))

    @limiter(**turn)
    async def call():
        pass

    await limiter.acquire()
    with pytest.raises(ValueError, match=message):
        await call()
    assert limiter.statistics().waiting == 0
    await limiter.acquire(max_wait=1)


async def test_a_wrong_turn_is_refused_where_it_is_given_whatever_else_is_a_function():
    limiter = Limiter(tokens=per_second(5))
    for wrong in ({"max_wait": -1}, {"priority": 1.5}, {"flow": ["alice"]}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            limiter(tokens=len, **wrong)


@pytest.mark.parametrize("option", ["tokens", "priority", "flow", "settle"])
async def test_functions_of_a_call_are_refused_where_there_is_no_call(option):
    limiter = Limiter(tokens=per_second(5, default=1))
    use = limiter(**{option: len})
    with pytest.raises(CostError, match=rf"{option}.* is a function of the call's .*: use it in a decorator"):
        async with use:
            pass
    with pytest.raises(CostError, match="use it in a decorator"), use:
        pass


async def test_a_reconfiguration_binds_every_limiter_over_these_limits(virtual_time):
    """One that was made under the same name went on with the one bucket that it remembered: 50 in five seconds, not 20."""
    store = MemoryStore()
    mine, theirs = (Limiter(name="both", store=store, tokens=per_second(10)) for _ in range(2))
    async with mine(tokens=10):
        pass
    await anyio.sleep(1)
    theirs.reconfigure(tokens=[per_second(10), per_minute(20)])
    began = clock.now()
    for _ in range(3):
        async with mine(tokens=10):
            pass
    assert clock.now() - began == pytest.approx(30)
    theirs.reconfigure(tokens=per_second(100, default=50))
    async with mine as permit:
        assert permit.cost == {"tokens": 50}


async def test_a_reconfiguration_through_a_joint_limiter_binds_its_parts(virtual_time):
    org, user = Limiter(requests=per_second(10)), Limiter(tokens=per_second(10))
    (org & user).reconfigure(requests=sliding(2, 60))
    for _ in range(2):
        async with org:
            pass
    with pytest.raises(RateLimited):
        org.acquire_nowait()
    with pytest.raises(RateLimited):
        async with org(max_wait=59):
            pass


@pytest.mark.parametrize("limits", [{"tokens": Rate(10, 1.0)}, {"requests": Rate(10, 1.0), "tokens": Rate(10, 1.0)}])
@pytest.mark.parametrize(
    "changed", [["10/s", "1000/min"], sliding(10, 60), Rate(20, 1.0, default=1)], ids=["more", "kind", "default"]
)
async def test_a_permit_of_before_a_reconfiguration_can_be_settled_and_cancelled_after_it(
    virtual_time, limits, changed
):
    """What a plain permit was charged on was looked up when somebody asked, and was by then something else."""
    limiter = Limiter(**limits)
    async with limiter(tokens=5) as settled, limiter(tokens=2) as cancelled:
        limiter.reconfigure(tokens=changed)
        settled.settle(tokens=3)
        cancelled.cancel()
    assert settled.cost["tokens"] in (3, 5)  # the meter of another kind cannot give back
    assert cancelled.cost == {}
    for limit in limiter.statistics().limits.values():
        assert limit.level <= limit.limit.capacity - 3 or limit.unit == "requests"


async def test_who_has_its_turn_in_a_reconfiguration_passes_the_post_on(virtual_time):
    """All is handed over to a new gate: those in line, who is on post, and one that is granted and not awake yet."""
    limiter = Limiter(requests=per_second(1, burst=1))
    await limiter.acquire()
    log = []

    async def call(number):
        async with limiter:
            log.append((number, clock.now() - began))

    began = clock.now()
    async with anyio.create_task_group() as group:
        for number in range(4):
            group.start_soon(call, number)
            await anyio.wait_all_tasks_blocked()
        limiter.reconfigure(requests=[per_second(2, burst=1), per_minute(100)])
        await anyio.sleep(0.1)
        limiter.reconfigure(requests=per_second(1_000, burst=1))
        limiter.reconfigure(requests=[per_second(1, burst=1), per_minute(100)])
    assert [number for number, _ in log] == [0, 1, 2, 3]
    assert log[-1][1] - log[0][1] == pytest.approx(3, abs=0.01)


async def test_the_context_is_left_as_it_was_entered_whatever_the_limits_are_by_then(virtual_time):
    limiter = Limiter(requests=per_second(10))
    async with limiter:
        limiter.reconfigure(requests=[per_second(10), per_minute(100)])
        async with limiter:
            pass
    async with limiter:
        limiter.reconfigure(requests=per_second(10))
    assert limiter._own._permit is None, "nothing is left of it"


@pytest.mark.parametrize(
    ("before", "after"),
    [(per_minute(5), in_flight(5)), (in_flight(5), [in_flight(5), in_flight(6, ttl=60)])],
    ids=["from a rate", "one more"],
)
async def test_a_reconfiguration_to_places_holds_none_that_nobody_could_give_back(virtual_time, before, after):
    """What was used of the rate was held ever after, and what was held was held twice and given back once."""
    limiter = Limiter(calls=before)
    with limiter.acquire_nowait(calls=5):
        limiter.reconfigure(calls=after)
    with limiter.acquire_nowait(calls=5):
        assert limiter.statistics().in_flight == 5


async def test_settling_after_the_end_takes_no_place(virtual_time):
    """It was held for ever: the permit that could give it back had ended."""
    limiter = Limiter(calls=in_flight(4), tokens=per_minute(100))
    with limiter.acquire_nowait(calls=1, tokens=10) as permit:
        permit.settle(calls=2)
        assert limiter.statistics().in_flight == 2
        assert permit.cost == {"calls": 2, "tokens": 10}
    permit.settle(calls=3, tokens=30)
    assert limiter.statistics().in_flight == 0
    assert permit.cost == {"tokens": 30}
    assert limiter.statistics().limits["tokens"].level == 70


async def test_settling_charges_a_limit_that_was_added_since_only_the_difference(virtual_time):
    """A new limit counts as used what the first one did, this call among it; settling charged it once more, whole."""
    limiter = Limiter(tokens=Rate(100, 1e9))
    less, more = (limiter.acquire_nowait(tokens=20) for _ in range(2))
    limiter.reconfigure(tokens=[Rate(100, 1e9), Rate(200, 1e9)])
    less.settle(tokens=15)
    more.settle(tokens=25)
    assert [limit.level for limit in limiter.statistics().limits.values()] == pytest.approx([60, 155])


@pytest.mark.parametrize("wrong", [-1, math.nan, math.inf, "12", None])
async def test_what_a_server_cannot_have_meant_is_refused_and_changes_nothing(virtual_time, wrong):
    limiter = Limiter(requests=per_minute(10), tokens=per_minute(100))
    permit = limiter.acquire_nowait(tokens=1)
    for observe in (limiter.observe, permit.observe):
        with pytest.raises(
            CostError, match=rf"what remains of tokens must be a finite number, 0 or more, not {wrong!r}"
        ):
            observe(remaining={"requests": 1, "tokens": wrong})
        with pytest.raises(CostError, match=rf"the seconds until the reset of tokens must be .*, not {wrong!r}"):
            observe(reset={"requests": 60, "tokens": wrong})
        with pytest.raises(UnknownUnit, match="no limit counts 'token'"):
            observe(remaining={"requests": 1}, reset={"token": 1})
    assert limiter.statistics().limits["requests"].level == 9


async def test_a_reset_that_is_no_number_of_seconds_empties_a_limit_and_no_more(virtual_time):
    """Some servers give the moment, in seconds since 1970: as a span it was a debt of fifty years."""
    limiter = Limiter(requests=per_minute(10))
    limiter.observe(reset={"requests": 1_700_000_000})
    assert limiter.forecast() == penstock.Forecast(pytest.approx(6.0), "requests")


async def test_a_server_speaks_of_the_smallest_limit_also_where_that_has_an_overdraft(virtual_time):
    """An overdraft lets any cost go, so it seemed the largest: the limit of the day was lowered to ten."""
    limiter = Limiter(tokens=[Rate(1_000, 60, overdraft=True), per_day(2_000_000)])
    limiter.observe(remaining={"tokens": 10})
    assert [limit.level for limit in limiter.statistics().limits.values()] == [10, 2_000_000]


PLAIN = {"one limit": {"requests": "10/s"}, "two limits": {"requests": "10/s", "tokens": "100/s"}}


async def granted_at_once(limiter, **cost):
    """Of ten calls, made as plainly as can be."""
    granted = 0
    with suppress(RateLimited), anyio.fail_after(0.001):
        for _ in range(10):
            async with limiter(**cost) if cost else limiter:
                granted += 1
    return granted


@pytest.mark.parametrize(
    "anew", [sliding(2, 60), ["10/s", "2/min"], Rate(2, 60)], ids=["other kind", "one more", "same kind"]
)
@pytest.mark.parametrize("limits", PLAIN.values(), ids=PLAIN)
async def test_limits_that_change_by_one_limiter_hold_for_all_that_share_them(virtual_time, limits, anew):
    """Of one name, or joined: promise 1 does not depend on who was told of the new limits."""
    cost = {unit: 1 for unit in limits if unit != "requests"}
    store = MemoryStore()
    told, other = (Limiter(name="one", store=store, **limits) for _ in range(2))
    assert await granted_at_once(other, **cost) == 10
    await anyio.sleep(10)
    told.reconfigure(requests=anew)
    assert await granted_at_once(other, **cost) == 2
    assert other.limits == told.limits

    part, images = Limiter(**limits), Limiter(images="100/s")
    joint = part & images
    part.reconfigure(requests=anew)
    assert await granted_at_once(joint, images=1, **cost) == 2

    part = Limiter(**limits)
    (part & images).reconfigure(requests=anew)
    assert await granted_at_once(part, **cost) == 2
    part.reconfigure(requests="1000/s")
    await anyio.sleep(60)
    assert await granted_at_once(part, **cost) == 10


@pytest.mark.parametrize(
    "anew", [sliding(10, 1), ["10/s", "20/min"], Rate(10, 1, default=5)], ids=["other kind", "one more", "default"]
)
@pytest.mark.parametrize("limits", PLAIN.values(), ids=PLAIN)
async def test_a_permit_outlives_the_limits_that_it_was_granted_by(virtual_time, limits, anew):
    cost = {unit: 4 for unit in limits if unit != "requests"} or {"requests": 4}
    limiter = Limiter(**limits)
    async with limiter(**cost) as permit:
        limiter.reconfigure(requests=anew)
        assert permit.cost == {"requests": 1, **cost}
        permit.settle(requests=2)
        permit.cancel()
        assert permit.cost == {}
    assert [now.level <= now.capacity for now in limiter.statistics().limits.values()]


@pytest.mark.parametrize("join", [lambda a, b: a & b, lambda a, b: b & a], ids=["left", "right"])
def test_who_is_cancelled_at_its_grant_gives_back_to_those_who_came_after_a_join(join):
    """The place goes back to a line that has become part of another one in the meantime."""

    async def main():
        calls, other = Limiter(calls=in_flight(1)), Limiter(requests=per_second(10))
        first = await calls.acquire()
        granted = asyncio.create_task(calls.acquire())
        await asyncio.sleep(1)
        later = asyncio.create_task(calls.acquire())  # stands in line before `granted` runs again
        first.close()
        join(calls, other)
        granted.cancel()
        (await asyncio.wait_for(later, 1)).close()
        assert granted.cancelled()

    run(main)


@pytest.mark.parametrize("join", [lambda a, b: a & b, lambda a, b: b & a], ids=["left", "right"])
def test_joining_with_a_new_limiter_for_every_call_leaves_nothing_behind(join):
    ours = Limiter(requests=per_second(1_000_000))
    left = []
    for count in (10, 100):
        for _ in range(count):
            join(ours, Limiter(tokens=per_second(10))).acquire_nowait(tokens=1)
        left.append(sum(isinstance(thing, WaitQueue) for thing in gc.get_objects()))
    assert left[1] <= left[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"priority": lambda _: None}, "priority must be a whole number (higher goes first), not None"),
        ({"priority": lambda _: "high"}, "priority must be a whole number (higher goes first), not 'high'"),
        ({"flow": lambda _: []}, "flow must be hashable, such as a string, not []"),
    ],
    ids=["no priority", "a word for a priority", "no name of a flow"],
)
async def test_a_wrong_answer_about_a_turn_is_refused_before_anybody_stands_in_line(virtual_time, options, message):
    """Also by the first call, which need not wait; and nobody is left in the line whom nobody will ever serve."""
    limiter = Limiter(requests=per_second(1, burst=1))

    @limiter(**options)
    async def fetch(url):
        return url

    for _ in range(2):
        with pytest.raises(ValueError, match=re.escape(message)):
            await fetch("a")
        await limiter.acquire()
    assert limiter.statistics().waiting == 0
    with pytest.raises(
        ValueError, match=r"is a function of the call's arguments: use it in a decorator, not in `with`"
    ):
        async with limiter(**options):
            pass


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"tokens": len, "max_wait": -1}, ValueError, "max_wait must be a number of seconds"),
        ({"tokens": len, "priority": "high"}, ValueError, "priority must be a whole number"),
        ({"tokens": len, "requests": -1}, CostError, "the cost of requests must be a finite number, 0 or more, not -1"),
        ({"tokens": len, "requests": 11}, Unsatisfiable, "11 requests can never be granted"),
        ({"requests": len}, MissingUnit, "how many tokens does this call cost?"),
        ({"flow": str, "tokens": 5, "words": 5}, UnknownUnit, "no limit counts 'words'"),
    ],
)
def test_what_is_wrong_beside_a_function_is_refused_at_decoration(options, error, message):
    with pytest.raises(error, match=re.escape(message)):
        Limiter(requests="10/s", tokens="100/s")(**options)


async def test_a_wait_behind_an_overdraft_is_what_was_forecast(virtual_time):
    """The line's sum was taken for one call, which goes when the bucket is full: 1 s, where it was 9."""
    limiter = Limiter(tokens=Rate(10, 1, overdraft=True))
    limiter.acquire_nowait(tokens=10)
    log = []
    began = clock.now()
    async with anyio.create_task_group() as group:
        for _ in range(4):
            group.start_soon(line_up, limiter, [("large", {"tokens": 20})], log)
            await anyio.wait_all_tasks_blocked()
        forecast = limiter.forecast(tokens=10)
        with pytest.raises(RateLimited, match="would have to wait 9 s for tokens; max_wait is 8 s"):
            await limiter.acquire(tokens=10, max_wait=8)
        await limiter.acquire(tokens=10, max_wait=9.5)
        assert clock.now() - began == pytest.approx(forecast.wait)
    assert [round(at - began) for _, at in log] == [1, 3, 5, 7]


async def test_the_wait_that_is_bounded_and_forecast_is_that_of_ones_flow(virtual_time):
    """bob's first call is next but one whatever alice has lined up; it was refused, with a wait for all of hers."""
    limiter = Limiter(requests=per_second(1, burst=1))
    await limiter.acquire(flow="alice")
    began = clock.now()
    async with anyio.create_task_group() as group:
        for _ in range(30):
            group.start_soon(line_up, limiter, [("alice", {"flow": "alice"})], [])
        await anyio.wait_all_tasks_blocked()
        assert limiter.forecast().wait == pytest.approx(2)
        with pytest.raises(RateLimited, match="would have to wait 31 s"):
            await limiter.acquire(flow="alice", max_wait=30)
        for options, bound in (({"max_wait": 1.9}, math.inf), ({}, 1.9)):
            with pytest.raises(RateLimited, match="would have to wait 2 s"), anyio.fail_after(bound):
                await limiter.acquire(flow="bob", **options)
        await limiter.acquire(flow="bob", max_wait=2.1)
        assert clock.now() - began == pytest.approx(2)
        with anyio.fail_after(2.1):
            await limiter.acquire(flow="bob")
        assert clock.now() - began == pytest.approx(4)
        group.cancel_scope.cancel()


@pytest.mark.parametrize("limits", [{"requests": "10/s"}, {"requests": ["10/s", "9/min"]}, {"calls": in_flight(2)}])
async def test_a_limiter_that_was_entered_by_itself_is_gone_with_its_last_holder(limits):
    """As a key of `Keyed` must be, which is kept while its limiter lives."""
    gc.disable()
    try:
        limiter = Limiter(**limits)
        gone = weakref.ref(limiter)
        async with limiter:
            pass
        with limiter:
            pass
        del limiter
        assert gone() is None
    finally:
        gc.enable()


async def test_whoever_was_inside_when_the_limits_changed_can_leave(virtual_time):
    limiter = Limiter(requests=per_second(10))
    async with limiter:
        limiter.reconfigure(requests=in_flight(1))
        with limiter:
            assert limiter.statistics().in_flight == 1
        assert limiter.statistics().in_flight == 0


async def test_a_limiter_entered_in_one_task_can_be_left_in_another(virtual_time):
    """As fixtures and exit stacks do."""
    limiter = Limiter(calls=in_flight(2))
    stack = AsyncExitStack()

    async def enter():
        await stack.enter_async_context(limiter)
        await stack.enter_async_context(limiter(calls=1))

    async with anyio.create_task_group() as group:
        group.start_soon(enter)
    assert limiter.statistics().in_flight == 2
    await stack.aclose()
    assert limiter.statistics().in_flight == 0


async def test_what_was_spent_takes_no_place_that_nobody_could_give_back(virtual_time):
    limiter = Limiter(requests=per_minute(2))
    await limiter.acquire(requests=2)
    limiter.reconfigure(requests=in_flight(2))
    assert limiter.statistics().in_flight == 0
    async with limiter:
        limiter.reconfigure(requests=per_minute(2))  # the other way round it counts: it is on its way
        assert limiter.statistics().limits["requests"].level == 1


async def test_every_hook_of_a_joint_limiter_hears_an_event_once():
    """However the parts were joined; a hook is the same if it is the same object, or the same method of it."""
    first, second, third = RecordedEvents(), RecordedEvents(), RecordedEvents()
    a = Limiter(a="10/s", on_event=first)
    b = Limiter(b="10/s", on_event=second)
    c = Limiter(c="10/s", on_event=first)
    d = Limiter(d="10/s", on_event=third.append)
    e = Limiter(e="10/s", on_event=third.append)
    quiet = Limiter(requests="10/s")
    for joint in (a & b & c & d & e & quiet & a, quiet & (e & a) & ((b & d) & c)):
        joint.acquire_nowait(**dict.fromkeys("abcde", 1))
        assert [len(heard.of(events.Granted)) for heard in (first, second, third)] == [1, 1, 1]
        for heard in (first, second, third):
            heard.clear()
    (quiet & Limiter(tokens="10/s")).acquire_nowait(tokens=1)
    assert first == second == third == []


async def test_what_a_limiter_shows_is_frozen_and_can_be_sent_and_written_down(virtual_time):
    limiter = Limiter(requests=per_minute(10), tokens=[sliding(5, 1), calendar(9, "day")], calls=in_flight(3, ttl=60))
    for shown in (limiter.statistics(), limiter.limits, limiter.forecast(tokens=1)):
        for there in (pickle.loads(pickle.dumps(shown)), copy.copy(shown), copy.deepcopy(shown)):
            assert there == shown
    written = dataclasses.asdict(limiter.statistics())
    assert written["limits"]["requests"]["limit"] == {**dataclasses.asdict(per_minute(10))}
    for change in (
        lambda shown: shown.update(requests=1),
        lambda shown: shown.pop("requests"),
        lambda shown: shown.__setitem__("requests", 1),
        lambda shown: shown.__delitem__("requests"),
    ):
        with pytest.raises(TypeError, match="it cannot be changed"):
            change(limiter.statistics().limits)
    with pytest.raises(dataclasses.FrozenInstanceError):
        limiter.statistics().granted = 5


async def test_who_waits_is_counted_in_full_when_two_lines_become_one(virtual_time):
    org, user = Limiter(requests=per_second(1, burst=1)), Limiter(tokens=per_second(1, burst=1))
    await org.acquire()
    await user.acquire(tokens=1)
    async with anyio.create_task_group() as group:
        for limiter, cost, calls in ((org, {}, 4), (user, {"tokens": 1}, 3)):
            for _ in range(calls):
                group.start_soon(line_up, limiter, [("", cost)], [])
        await anyio.wait_all_tasks_blocked()
        both = org & user
        assert both.forecast(tokens=1) == penstock.Forecast(pytest.approx(5), "requests")
        assert user.forecast(tokens=1) == penstock.Forecast(pytest.approx(4), "tokens")


@pytest.mark.parametrize(
    "changed", [sliding(100, 60), in_flight(100), Rate(100, 60)], ids=["sliding", "places", "rate"]
)
async def test_a_permit_of_before_a_reconfiguration_observes_the_limits_of_now(virtual_time, changed):
    limiter = Limiter(tokens=sliding(100, 60) if isinstance(changed, Rate) else Rate(100, 60))
    permit = limiter.acquire_nowait(tokens=10)
    limiter.reconfigure(tokens=changed)
    permit.observe(remaining={"tokens": 40})
    assert limiter.statistics().limits["tokens"].level == (100 if changed == in_flight(100) else 40)


async def test_settling_after_the_end_takes_no_place_again(virtual_time):
    limiter = Limiter(calls=in_flight(3), tokens="100/min")
    async with limiter(tokens=30) as permit:
        permit.settle(calls=2)
        assert limiter.statistics().in_flight == 2
        assert permit.cost == {"calls": 2, "tokens": 30}
    permit.settle(calls=3, tokens=10)
    assert limiter.statistics().in_flight == 0
    assert permit.cost == {"tokens": 10}
    permit.cancel()
    assert {unit: now.level for unit, now in limiter.statistics().limits.items()} == {"calls": 3, "tokens": 100}


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0]], ids=["first", "last"])
async def test_permits_that_are_cancelled_one_after_the_other_give_all_back(virtual_time, order):
    """The last first as well, as exit stacks do, and whoever was refused meanwhile."""
    limiter = Limiter(tokens="100/s", requests="3/s", words="100/s")
    permits = [await limiter.acquire(tokens=cost, words=1) for cost in (10, 20, 30)]
    for _ in range(3):
        with pytest.raises(RateLimited):
            limiter.acquire_nowait(tokens=5, words=5)
    for index in order:
        permits[index].cancel()
    assert {unit: now.level for unit, now in limiter.statistics().limits.items()} == {
        "tokens": 100,
        "requests": 3,
        "words": 100,
    }


@pytest.mark.parametrize("limits", [{"tokens": Rate(50, 1)}, {"requests": Rate(50, 1), "tokens": Rate(50, 1)}])
async def test_a_call_of_before_a_reconfiguration_to_places_gives_them_back(virtual_time, limits):
    """It was written for limits that hold nothing, and left without a look: the places were held for ever."""
    limiter = Limiter(**limits)
    call, entered = limiter(tokens=2), limiter(tokens=2)
    async with entered:
        limiter.reconfigure(tokens=[Rate(1_000, 1), in_flight(4)])
        for _ in range(3):
            async with call, call:
                assert limiter.statistics().in_flight == 4
            with call:
                assert limiter.statistics().in_flight == 2
    assert limiter.statistics().in_flight == 0
    async with anyio.create_task_group() as group:
        for _ in range(5):
            group.start_soon(line_up, lambda **_: call, [("", {})] * 2, [])
    assert limiter.statistics().in_flight == 0
    limiter.reconfigure(tokens=Rate(1_000, 1))
    async with call as permit:
        assert permit.cost["tokens"] == 2


async def test_those_in_line_give_back_the_places_that_a_reconfiguration_has_brought(virtual_time):
    """Their calls were plain when they came. One of the limiters does not know of it, as another one was reconfigured."""
    store = MemoryStore()
    mine, theirs = (Limiter(name="x", store=store, requests=per_second(1, burst=1)) for _ in range(2))
    await mine.acquire()
    async with anyio.create_task_group() as group:
        for limiter in (mine, theirs, mine, theirs):
            group.start_soon(line_up, limiter, [("", {"requests": 1})], [])
        group.start_soon(line_up, mine, [("", {})], [])
        await anyio.wait_all_tasks_blocked()
        theirs.reconfigure(requests=[per_second(1, burst=1), in_flight(2)])
    for limiter in (mine, theirs):
        assert limiter.statistics().in_flight == 0
