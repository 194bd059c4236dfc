"""Adaptive: cut at once, grow back with use, never above the promise."""

from __future__ import annotations

import contextlib
import copy
import pickle
import threading
from datetime import timedelta

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

import penstock
from penstock import Adaptive, Limiter, Pipeline, in_flight, per_minute, per_second, sliding
from penstock._core.aimd import Aimd
from penstock.stores import SQLiteStore
from penstock.testing import RecordedEvents, manual_clock
from tests.limiter.interrupts import every_point, raise_interrupted

anyio_test = pytest.mark.anyio


class OverloadedError(Exception):
    pass


def rate_of(limiter, unit="requests", index=0):
    return limiter.limits[unit][index].rate


@anyio_test
async def test_an_overload_halves_the_rate_once_per_cooldown(virtual_time):
    """Calls that were sent before the cut fail after it; they are not counted again."""
    limiter = Limiter(requests=per_second(100))
    adaptive = Adaptive(limiter)
    assert [adaptive.overloaded() for _ in range(3)] == [True, False, False]
    assert (adaptive.share, rate_of(limiter)) == (0.5, 50)
    await anyio.sleep(4.9)
    assert not adaptive.overloaded()
    await anyio.sleep(0.1)
    assert adaptive.overloaded()
    assert rate_of(limiter) == 25


@anyio_test
async def test_it_grows_with_use_and_not_while_idle(virtual_time):
    """5 % of the promise per second; an idle hour proves nothing beyond its first second."""
    limiter = Limiter(requests=per_second(100))
    adaptive = Adaptive(limiter)
    adaptive.overloaded()
    for _ in range(40):
        async with adaptive:
            await anyio.sleep(0.1)
    assert adaptive.share == pytest.approx(0.5 + 4 * 0.05)
    assert rate_of(limiter) == pytest.approx(100 * adaptive.share, abs=1)
    await anyio.sleep(3600)
    async with adaptive:
        pass
    assert adaptive.share == pytest.approx(0.7 + 0.05)


@anyio_test
async def test_it_stops_at_the_promise(virtual_time):
    """Exactly: the limit is the one that was given."""
    promised = per_second(100, burst=7)
    limiter = Limiter(requests=promised)
    adaptive = Adaptive(limiter)
    adaptive.overloaded()
    async with adaptive:
        await anyio.sleep(60)
    assert limiter.limits["requests"] == (promised,)


@anyio_test
async def test_the_floor_is_always_left(virtual_time):
    limiter = Limiter(requests=per_second(100))
    adaptive = Adaptive(limiter, cooldown=0)
    for _ in range(20):
        adaptive.overloaded()
    assert rate_of(limiter) == 5


@anyio_test
async def test_only_errors_that_say_so_cut(virtual_time):
    limiter = Limiter(requests=per_second(100))
    adaptive = Adaptive(limiter, on=OverloadedError)
    for error, share in ((ValueError, 1), (OverloadedError, 0.5)):
        with pytest.raises(error):
            async with adaptive:
                raise error
        assert adaptive.share == share


@anyio_test
async def test_an_error_of_another_kind_credits_nothing(virtual_time):
    adaptive = Adaptive(Limiter(requests=per_second(100)), on=lambda error: "busy" in str(error))
    with pytest.raises(RuntimeError), adaptive:
        raise RuntimeError("busy")
    with pytest.raises(RuntimeError), adaptive:
        await anyio.sleep(10)
        raise RuntimeError("another")
    assert adaptive.share == 0.5


@anyio_test
async def test_as_a_decorator_and_a_layer_of_a_pipeline(virtual_time):
    limiter = Limiter(requests=per_second(10, burst=1))
    adaptive = Adaptive(limiter, on=OverloadedError)
    sent = []

    @Pipeline(limiter, adaptive)
    async def send():
        sent.append(virtual_time.now())
        if len(sent) == 1:
            raise OverloadedError

    with pytest.raises(OverloadedError):
        await send()
    for _ in range(2):
        await send()
    # One every 0.2 s from the cut on; by the first success 0.2 s of use were credited, one step of growth.
    assert sent == pytest.approx([0, 0.2, 0.2 + 1 / (10 * 0.51)])

    @adaptive
    def call():
        raise OverloadedError

    await anyio.sleep(5)
    with pytest.raises(OverloadedError):
        call()
    assert adaptive.share < 0.5


@anyio_test
async def test_waiters_wait_for_the_new_rate(virtual_time):
    limiter = Limiter(requests=per_second(1))
    adaptive = Adaptive(limiter)
    await limiter.acquire()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(limiter.acquire)
        await anyio.sleep(0.5)
        adaptive.overloaded()
    assert virtual_time.now() == 1.5


@anyio_test
async def test_only_rates_are_touched_and_no_call_becomes_impossible(virtual_time):
    """The burst stays: what fitted before a cut fits after it."""
    limiter = Limiter(
        requests=[per_second(10), per_minute(300, overdraft=True)],
        tokens=sliding(50, 60, default=1),
        calls=in_flight(3),
    )
    Adaptive(limiter).overloaded()
    assert limiter.limits["requests"] == (per_second(5, burst=10), per_minute(150, burst=300, overdraft=True))
    assert limiter.limits["tokens"] == (sliding(50, 60, default=1),)
    limiter.acquire_nowait(requests=10)


@anyio_test
async def test_a_promise_made_in_between_is_the_promise(virtual_time):
    limiter = Limiter(requests=per_second(100))
    adaptive = Adaptive(limiter, cooldown=1)
    adaptive.overloaded()
    limiter.reconfigure(requests=per_second(1_000))
    await anyio.sleep(1)
    adaptive.overloaded()
    assert rate_of(limiter) == 250
    async with adaptive:
        await anyio.sleep(60)
    assert limiter.limits["requests"] == (per_second(1_000),)


def test_growth_is_applied_in_steps():
    """Reconfiguring looks at all who wait, so a thousand quick calls are not a thousand reconfigurations."""
    events = RecordedEvents()
    with manual_clock() as time:
        adaptive = Adaptive(Limiter(requests=per_second(100), on_event=events))
        adaptive.overloaded()
        for _ in range(1_001):
            with adaptive:
                time.advance(0.01)
    assert adaptive.share == 1
    assert 40 <= len(events.of(penstock.events.Reconfigured)) <= 52


def test_threads_share_it():
    """The count of calls under way survives 16,000 calls from eight threads at once."""
    adaptive = Adaptive(Limiter(requests=per_second(100)), on=OverloadedError)

    def work():
        for _ in range(2_000):
            with adaptive:
                pass

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert adaptive._aimd._running == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"cut": 1}, "cut=1 must be above 0 and below 1"),
        ({"cut": 0}, "cut=0 must be"),
        ({"cooldown": -1}, r"Adaptive\(cooldown=-1\): seconds or a timedelta, 0 or more and finite"),
        ({"grow": 0}, "grow=0 must be above 0"),
        ({"grow": float("nan")}, "grow=nan must be"),
        ({"floor": 0}, "floor=0 must be above 0 and at most 1"),
        ({"floor": 1.5}, "floor=1.5 must be"),
    ],
)
def test_a_wrong_number_is_refused(options, said):
    with pytest.raises(ValueError, match=said):
        Adaptive(Limiter(requests=per_second(1)), **options)


def test_what_cannot_be_adapted_is_refused(tmp_path):
    one, other = Limiter(requests=per_second(1)), Limiter(requests=per_second(2))
    with pytest.raises(ValueError, match="is joint: adapt the limiters that it was made of"):
        Adaptive(one & other)
    with pytest.raises(ValueError, match="has no Rate to adapt"):
        Adaptive(Limiter(calls=in_flight(3)))
    shared = Limiter(requests=per_second(1), name="x", store=SQLiteStore(tmp_path / "limits.db"))
    with pytest.raises(ValueError, match="its limits are those of all processes"):
        Adaptive(shared)
    with pytest.raises(TypeError, match=r"Adaptive\(on=3\): an exception type, a tuple of them, or a function"):
        Adaptive(one, on=3)
    with pytest.raises(TypeError, match=r"Adaptive\(on=KeyboardInterrupt\): only types of Exception"):
        Adaptive(one, on=KeyboardInterrupt)
    with pytest.raises(TypeError, match="is a generator function"):
        Adaptive(one)(lambda: (yield))


STEPS = st.lists(st.tuples(st.sampled_from(["begin", "good", "bad", "overload"]), st.floats(0, 20)), max_size=60)


@given(
    steps=STEPS, cut=st.floats(0.1, 0.9), cooldown=st.floats(0, 10), grow=st.floats(0.001, 1), floor=st.floats(0.01, 1)
)
def test_the_share_stays_in_its_range_and_grows_no_faster_than_time(steps, cut, cooldown, grow, floor):
    """Whatever happens: floor ≤ share ≤ 1; between cuts it grows by at most grow × the time since; cuts are a cooldown
    apart."""
    aimd = Aimd(cut, cooldown, grow, floor)
    now, running, cut_at, share_then = 0.0, 0, -float("inf"), 1.0
    for step, pause in steps:
        now += pause
        before = aimd.share
        if step == "begin":
            aimd.begin(now)
            running += 1
            assert aimd.share == before
        elif step == "overload":
            if aimd.overloaded(now):
                assert now - cut_at >= cooldown
                assert aimd.share == max(floor, before * cut)
                cut_at, share_then = now, aimd.share
            else:
                assert (aimd.share, now - cut_at < cooldown) == (before, True)
        elif running:
            running -= 1
            aimd.end(now, succeeded=step == "good")
            assert aimd.share >= before
            assert step == "good" or aimd.share == before
        assert floor <= aimd.share <= 1
        assert aimd.share <= share_then + grow * (now - cut_at) + 1e-9


@pytest.mark.anyio
async def test_a_plain_callable_that_returns_an_awaitable_fails_when_it_is_awaited(virtual_time):
    limiter = Limiter(requests=per_second(10))
    adaptive = Adaptive(limiter, on=OSError)

    async def fail():
        await anyio.sleep(1)
        raise OSError

    call = adaptive(lambda: fail())  # noqa: PLW0108 - that is what is tested
    with pytest.raises(OSError):
        await call()
    assert adaptive.share == 0.5


def test_a_block_that_fails_counts():
    adaptive = Adaptive(Limiter(requests=per_second(10)), on=OSError)

    @adaptive
    @contextlib.contextmanager
    def session():
        yield

    with pytest.raises(OSError), session():
        raise OSError
    assert adaptive.share == 0.5


def test_a_classifier_that_breaks_does_not_cost_the_error():
    adaptive = Adaptive(Limiter(requests=per_second(10)), on=lambda error: error.status_code == 503)
    error = OSError()
    with pytest.raises(OSError), adaptive:
        raise error
    assert "Adaptive: `on` raised AttributeError" in error.__notes__[0]
    assert adaptive.share == 1


def test_a_classifier_is_not_awaited():
    async def on(_error):
        return False

    limiter = Limiter(requests=per_second(10))
    with pytest.raises(TypeError, match=r"Adaptive\(on=.*on\): it is called and not awaited"):
        Adaptive(limiter, on=on)
    with pytest.raises(TypeError, match="is not awaited: give a plain function"), Adaptive(limiter, on=lambda _: on(_)):  # noqa: PLW0108
        raise OSError


def test_a_cooldown_may_be_a_timedelta():
    with manual_clock() as time:
        adaptive = Adaptive(Limiter(requests=per_second(10)), cooldown=timedelta(seconds=5))
        assert adaptive.overloaded()
        time.advance(4)
        assert not adaptive.overloaded()
        time.advance(1)
        assert adaptive.overloaded()
    for wrong in ("5", None, -1, timedelta(seconds=-1)):
        with pytest.raises(ValueError, match="cooldown="):
            Adaptive(Limiter(requests=per_second(10)), cooldown=wrong)


def test_a_copy_is_the_same_and_pickling_says_why_not():
    adaptive = Adaptive(Limiter(requests=per_second(10)))
    assert copy.deepcopy(adaptive) is adaptive
    with pytest.raises(TypeError, match="cannot be pickled: its state belongs to the threads of this process"):
        pickle.dumps(adaptive)


def test_a_handler_that_raises_in_the_middle_of_a_cut_changes_no_promise():
    """What was set before the cut is not taken for what somebody has promised since."""

    def make():
        time.advance(60)
        adaptive = Adaptive(Limiter(requests=per_second(100)))
        adaptive.overloaded()
        time.advance(60)
        return adaptive

    def what_is_promised(adaptive):
        for _ in range(100):
            with adaptive:
                time.advance(1)
        return None if rate_of(adaptive._limiter) == 100 else rate_of(adaptive._limiter)

    with manual_clock() as time:
        found, points = every_point(lambda _: raise_interrupted(), make, lambda it: it.overloaded(), what_is_promised)
    assert points > 10
    assert found == {}
