"""Permits: settled, cancelled, closed, told what the server said, and lost."""

from __future__ import annotations

import _thread
import gc
import math
import subprocess
import sys
import threading
import warnings
import weakref

import anyio
import anyio.to_thread
import pytest

import penstock
from penstock import (
    CostError,
    Limiter,
    Rate,
    RateLimited,
    UnknownUnit,
    calendar,
    clock,
    in_flight,
    per_day,
    per_minute,
    per_second,
    sliding,
)

pytestmark = pytest.mark.anyio


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


@pytest.mark.parametrize("limit", [sliding(10, 60), calendar(10, "day"), in_flight(10)])
def test_when_a_limit_is_whole_again_says_something_of_rates_only(limit):
    limiter = Limiter(tokens=limit)
    limiter.observe(reset={"tokens": 3_600})
    assert limiter.statistics().limits["tokens"].level == 10


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


async def test_a_place_that_is_never_given_back_comes_back_with_one_warning_that_names_the_line(virtual_time):
    limiter = Limiter(calls=in_flight(1, ttl=60), name="gpu")

    async def forgetful():
        await limiter.acquire()  # never closed

    began = clock.now()
    await forgetful()
    line = forgetful.__code__.co_firstlineno + 1
    with pytest.warns(RuntimeWarning, match=rf"permit of gpu acquired at .*test_permits.py:{line} .*close") as caught:
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


async def test_where_warnings_are_errors_statistics_raise_that_of_a_lost_place_once(virtual_time):
    limiter = Limiter(calls=in_flight(2, ttl=1))
    limiter.acquire_nowait()
    await anyio.sleep(2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(RuntimeWarning, match="was not closed"):
            limiter.statistics()
        assert limiter.statistics().in_flight == 0


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


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0], [1, 2, 0]], ids=["in order", "reversed", "mixed"])
async def test_answers_that_say_the_same_lower_the_level_once(virtual_time, order):
    """Others had used 40 of 100. Each of three calls that were on their way heard of it, and each took 40 off again: 20
    below 0."""
    limiter = Limiter(tokens=per_second(10, burst=100))
    permits = [await limiter.acquire(tokens=1) for _ in range(3)]
    for index in order:
        permits[index].observe(remaining={"tokens": 60 - 1 - index})
        assert limiter.statistics().limits["tokens"].level == pytest.approx(57)
    await anyio.sleep(1)
    later = await limiter.acquire(tokens=7)
    later.observe(remaining={"tokens": 60})
    permits[0].observe(remaining={"tokens": 59})
    assert limiter.statistics().limits["tokens"].level == pytest.approx(60)
    limiter.observe(remaining={"tokens": 30})
    later.observe(remaining={"tokens": 55})
    assert limiter.statistics().limits["tokens"].level == pytest.approx(30)
    later.observe(remaining={"tokens": 20})
    assert limiter.statistics().limits["tokens"].level == pytest.approx(20)


def test_a_thread_may_run_nothing_but_acquire():
    """The line that acquired a permit is asked of the frames below, of which there are none."""
    limiter = Limiter(calls=in_flight(5))
    _thread.start_new_thread(limiter.acquire_nowait, ())
    for _ in range(10_000):
        if limiter.statistics().granted:
            break
        threading.Event().wait(0.001)
    assert limiter.statistics().in_flight == 1


@pytest.mark.parametrize("acquired", ["acquire_nowait()", "__enter__()"])
def test_a_permit_that_outlives_the_modules_says_nothing_when_the_program_ends(acquired):
    """Python printed that the module `math` was gone."""
    code = f"""
import sys
from penstock import Limiter, in_flight
limiter = Limiter(calls=in_flight(9))
permit = limiter.{acquired}
sys.excepthook = lambda *_, kept=(limiter, permit): None
"""
    done = subprocess.run([sys.executable, "-c", code], timeout=60, check=True, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("", "")


def test_what_is_shown_of_a_permit_and_a_limiter_can_be_printed():
    """Also of one that was never granted, as debuggers come upon, and of a name with half a surrogate pair."""
    assert repr(penstock.Permit()) == "<Permit, not granted>"
    keys = penstock.Keyed(requests="1/s", name="\ud800")
    assert repr(keys).encode() == b"Keyed(\\ud800: requests=1/s)"
    assert repr(keys["a\n\udfff"]).encode() == rb"Limiter(a\n\udfff: requests=1/s)"
