"""Signal handlers and asynchronous exceptions take no lock, no place and no turn, wherever they strike."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import signal
import sys
import threading
import time
import warnings
from contextlib import contextmanager, suppress

import pytest

from penstock import Keyed, Limiter, Rate, RateLimited, calendar, in_flight, sliding, unlimited
from tests.alarms import alarms, not_beside_coverage
from tests.limiter.interrupts import Interrupted, every_point, raise_interrupted

pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.usefixtures("quick_collections"),
]

SHAPES = {
    "a rate": {"requests": Rate(1_000, 1)},
    "a rate and places": {"requests": [Rate(1_000, 1), in_flight(50)]},
    "places with a time to live": {"requests": Rate(1_000, 1), "calls": in_flight(50, ttl=1_000)},
}


def enter(limiter):
    with limiter(requests=1):
        pass


def enter_by_itself(limiter):
    with limiter:
        pass


def enter_twice(limiter):
    with limiter(requests=1), limiter(requests=1):
        pass


def decorate(limiter):
    limiter(lambda: None)()


def acquire(limiter):
    with limiter.acquire_nowait(requests=1):
        pass


def cancel(limiter):
    with limiter(requests=1) as permit:
        permit.cancel()


def settle(limiter):
    with limiter(requests=2) as permit:
        permit.settle(requests=1)


USES = [enter, enter_by_itself, enter_twice, decorate, acquire, cancel, settle]

LEFT_BEHIND = {
    # Nothing of ours runs before the first instruction of a function, so an exception that strikes there is like one in
    # the user's code just before: `with limiter:` has no object of its own that could notice, `limiter(...)` has; a
    # permit is its owner's to close.
    enter_by_itself: {"Limiter.__exit__ (call)"},
    acquire: {"Permit.__enter__ (call)", "Permit._enter (call)", "Permit.__exit__ (call)"},
}


def what_is_wrong(limiter):
    """What others find: their turn must come, and nothing may be held."""
    gc.collect(0)
    wrong = []
    statistics = limiter.statistics()
    if statistics.in_flight:
        wrong.append(f"{statistics.in_flight} in flight")
    if statistics.waiting:
        wrong.append(f"{statistics.waiting} wait")
    turns = []
    thread = threading.Thread(target=lambda: turns.append(enter_and_tell(limiter)), daemon=True)
    thread.start()
    thread.join(5)
    if turns != ["a turn"]:
        wrong.append(f"another thread got {turns or 'no answer'}")
    return wrong


def enter_and_tell(limiter):
    try:
        with limiter(requests=1, max_wait=3):
            return "a turn"
    except Exception as error:
        return repr(error)


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("limits", SHAPES.values(), ids=SHAPES)
def test_a_handler_that_raises_at_any_point_takes_nothing_from_others(limits, use):
    def warm():
        limiter = Limiter(**limits)
        use(limiter)
        return limiter

    for make in (lambda: Limiter(**limits), warm):
        found, points = every_point(lambda _: raise_interrupted(), make, use, what_is_wrong)
        assert points > 3
        assert {point: wrong for point, wrong in found.items() if point not in LEFT_BEHIND.get(use, ())} == {}


def run(coroutine):
    """Run what never waits, without an event loop, which has points of its own."""
    with suppress(StopIteration):
        coroutine.send(None)


async def enter_by_itself_async(limiter):
    async with limiter:
        pass


async def acquire_async(limiter):
    async with await limiter.acquire(requests=1):
        pass


async def cancel_async(limiter):
    (await limiter.acquire(requests=1)).cancel()


LEFT_BEHIND_ASYNC = {
    enter_by_itself_async: {"Limiter.__aexit__ (call)"},
    acquire_async: {"Permit.__aenter__ (call)", "Permit._enter (call)", "Permit.__aexit__ (call)"},
    cancel_async: {"Permit.cancel (call)"},
}


@pytest.mark.parametrize("use", LEFT_BEHIND_ASYNC)
@pytest.mark.parametrize("limits", SHAPES.values(), ids=SHAPES)
def test_a_handler_that_raises_at_any_point_of_an_async_call_takes_nothing_from_others(limits, use):
    def warm():
        limiter = Limiter(**limits)
        run(use(limiter))
        return limiter

    found, points = every_point(lambda _: raise_interrupted(), warm, lambda limiter: run(use(limiter)), what_is_wrong)
    assert points > 3
    assert found.keys() <= LEFT_BEHIND_ASYNC[use]


@contextmanager
def suppress_not_now():
    """There is room for all, so whoever is refused came in the middle of a decision."""
    try:
        yield
    except RateLimited as error:
        if "signal handler" not in str(error):
            raise


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("limits", SHAPES.values(), ids=SHAPES)
def test_a_handler_that_uses_the_limiter_itself_is_charged_or_told_not_now(limits, use):
    """In the middle of a call of its own thread. What it was granted is charged, once; and so is the call that it
    interrupted."""
    granted = []

    def handler(limiter):
        for each in (enter, lambda limiter: limiter.acquire_nowait(requests=1).close()):
            with suppress_not_now():
                each(limiter)
                granted.append(1)
        with suppress_not_now():
            limiter.acquire_nowait(requests=0).close()

    def check(limiter):
        limiter_granted = limiter.statistics().granted
        wrong = what_is_wrong(limiter)
        return wrong or ([f"{limiter_granted} granted"] if limiter_granted < 1 else [])

    found, points = every_point(handler, lambda: Limiter(**limits), use, check)
    assert points > 3
    assert found == {}
    assert granted


@pytest.mark.parametrize("use", [enter, cancel, settle])
@pytest.mark.parametrize("limits", SHAPES.values(), ids=SHAPES)
def test_a_handler_may_join_limiters_in_the_middle_of_a_decision(limits, use):
    """It was told that it had come in the middle of one, though nobody asked for a turn."""
    joint = []

    def join(limiter):
        joint.append(limiter & Limiter(requests=Rate(1_000, 1)))
        with suppress_not_now():
            joint[-1].acquire_nowait(requests=1).close()

    def check(limiter):
        return [*what_is_wrong(limiter), *what_is_wrong(joint[-1])] if joint else []

    found, points = every_point(join, lambda: Limiter(**limits), use, check)
    assert points > 3
    assert found == {}
    assert joint


@pytest.mark.parametrize(
    "limit", [Rate(1_000, 1e9), sliding(1_000, 1e9), calendar(1_000, "month"), in_flight(1_000), in_flight(1_000, ttl=1e9), unlimited],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("use", [enter, settle])
def test_a_handler_may_look_in_the_middle_of_a_decision(limit, use):
    """It was told that it had interrupted one. A forecast says what a call would be told there."""
    seen = []

    def look(limiter):
        statistics = limiter.statistics()
        left = statistics.limits["requests"].level
        forecast = limiter.forecast(requests=1)
        seen.append(forecast.blocked_by)
        if not (limit is unlimited or 990 < left <= 1_000) or statistics.waiting > 1 or forecast.wait:
            raise AssertionError(f"{statistics}, {forecast}")

    found, points = every_point(look, lambda: Limiter(requests=limit), use, what_is_wrong)
    assert points > 3
    assert found == {}
    assert set(seen) <= {None, "a decision under way"}


@pytest.mark.parametrize("use", [enter, enter_by_itself, enter_twice, decorate])
@pytest.mark.parametrize("limits", SHAPES.values(), ids=SHAPES)
def test_a_control_c_that_strikes_as_a_call_ends_is_not_swallowed(limits, use):
    """The permit of each call that held a place had a finaliser, in which Python ignores exceptions."""

    def raised(limiter):
        struck.append(limiter)
        raise_interrupted()

    def use_and_tell(limiter):
        use(limiter)
        went_on.append(limiter)

    def swallowed(limiter):
        return limiter in struck and limiter in went_on

    struck, went_on = [], []
    found, points = every_point(raised, lambda: Limiter(**limits), use_and_tell, swallowed)
    assert points > 3
    # A generator that is closed before its end is called to end: Python runs no signal handler there.
    assert [point for point in found if "<genexpr>" not in point] == []


def test_a_handler_that_uses_a_key_in_the_middle_of_a_call_of_that_key_is_counted():
    """It changed the number that the interrupted call had read already: one of the two was free of charge."""
    keys = []

    def make():
        keys.append(Keyed(requests=Rate(10, 1e9)))
        return keys[-1], []

    def handler(thing):
        per_user, granted = thing
        with suppress_not_now():
            per_user["alice"].acquire_nowait()
            granted.append(1)

    def use(thing):
        per_user, granted = thing
        per_user["alice"].acquire_nowait()
        granted.append(1)

    def check(thing):
        per_user, granted = thing
        left = round(per_user["alice"].statistics().limits["requests"].level)
        return [f"{len(granted)} granted, {left} left"] if left != 10 - len(granted) else []

    found, points = every_point(handler, make, use, check)
    assert points > 3
    assert found == {}


def waiting_for_a_rate():
    limiter = Limiter(requests=Rate(700, 1, 1), calls=in_flight(3))
    limiter.acquire_nowait().close()
    return limiter, []


def waiting_for_a_place():
    limiter = Limiter(requests=Rate(1e6, 1), calls=in_flight(1))
    threads = [threading.Timer(0.002, limiter.acquire_nowait().close)]
    for thread in threads:
        thread.start()
    return limiter, threads


def waiting_with_others():
    limiter = Limiter(requests=Rate(500, 1, 1), calls=in_flight(3))
    limiter.acquire_nowait().close()
    threads = [threading.Thread(target=enter_and_tell, args=(limiter,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    return limiter, threads


@pytest.mark.parametrize("make", [waiting_for_a_rate, waiting_for_a_place, waiting_with_others])
def test_a_handler_that_raises_while_a_thread_waits_leaves_no_waiter_behind(make):
    def check(thing):
        limiter, threads = thing
        for thread in threads:
            thread.join(5)
        return [*what_is_wrong(limiter), *("a thread waits for ever" for thread in threads if thread.is_alive())]

    found, points = every_point(lambda _: raise_interrupted(), make, lambda thing: enter(thing[0]), check)
    assert points > 20  # fewer from one Python to the next, and where the turn is due before the wait has begun
    assert found == {}


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs timers that send signals")
@pytest.mark.parametrize("limits", SHAPES.values(), ids=SHAPES)
def test_real_signals_whose_handler_raises_keep_nobody_out(limits):
    limiter = Limiter({unit: in_flight(10_000) if unit == "calls" else Rate(1e9, 1) for unit in limits})
    armed = False
    struck = 0

    def handler(*_):
        nonlocal armed
        if armed:
            armed = False
            raise Interrupted

    end = time.monotonic() + 0.3
    with alarms(handler, every=0.0005):
        while time.monotonic() < end:
            try:
                armed = True
                for _ in range(200):
                    enter(limiter)
                armed = False
            except Interrupted:
                struck += 1
        armed = False
    assert struck
    statistics = limiter.statistics()
    assert statistics.waiting == 0
    assert enter_and_tell(limiter) == "a turn"
    # Two signals within microseconds, at the very instructions that mend what the first has broken, are beyond what can
    # be held.
    assert statistics.in_flight <= 1 + struck / 100


def test_asynchronous_exceptions_in_a_thread_keep_nobody_out(monkeypatch):
    not_beside_coverage()
    # Python drops what strikes inside a weak reference's callback, and pytest would write it up in the struck thread.
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)
    limiter = Limiter(requests=Rate(3_000, 1, 5), calls=in_flight(3))
    stop = threading.Event()
    struck = 0

    def work():
        nonlocal struck
        while not stop.is_set():
            try:
                while not stop.is_set():
                    enter(limiter)
            except Interrupted:
                struck += 1

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(150):
        time.sleep(0.002)
        for thread in threads:
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(Interrupted))
    stop.set()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
    gc.collect()
    assert struck > 50
    assert what_is_wrong(limiter) == []


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs timers that send signals")
@pytest.mark.parametrize("use_uvloop", [False, True], ids=["asyncio", "uvloop"])
def test_a_place_that_a_signal_handler_gives_back_wakes_a_waiter_in_a_loop_that_sleeps(use_uvloop):
    """It was told so by the loop's own means, which wake no loop that sleeps: it slept until its next timer."""
    limiter = Limiter(calls=in_flight(1))
    permit = limiter.acquire_nowait()

    async def main():
        loop = asyncio.get_running_loop()
        waiter = asyncio.ensure_future(limiter.acquire())
        await asyncio.sleep(0.01)
        loop.call_later(60, lambda: None)
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        began = time.monotonic()
        (await waiter).close()
        return time.monotonic() - began

    with alarms(lambda *_: permit.close()):
        if use_uvloop:
            import uvloop

            took = uvloop.run(main())
        else:
            took = asyncio.run(main())
    assert took < 30


def test_a_finaliser_in_the_middle_of_a_decision_gives_back_and_takes_no_turn():
    """The garbage collector may run in the middle of a call of ours, and finalise an object that uses the limiter."""
    limiter = Limiter(requests=Rate(1_000, 1), calls=in_flight(5, ttl=1_000))

    class Owner:
        def __init__(self):
            self.permit = limiter.acquire_nowait()
            self.itself = self

        def __del__(self):
            self.permit.close()

    threshold = gc.get_threshold()
    gc.set_threshold(3)
    try:
        for _ in range(60):
            Owner()
            gc.collect()
            for use in (enter, acquire, settle):
                use(limiter)
    finally:
        gc.set_threshold(*threshold)
    gc.collect()
    assert what_is_wrong(limiter) == []


def test_a_task_that_hands_its_permits_on_is_not_warned_of_a_deadlock(recwarn):
    """A dispatcher acquires, hands the permit to a task that closes it, and acquires the next: it waits for that task
    alone."""
    limiter = Limiter(calls=in_flight(1))

    async def work(permit):
        with permit:
            await asyncio.sleep(0)

    async def main():
        async with asyncio.TaskGroup() as group:
            for _ in range(5):
                group.create_task(work(await limiter.acquire()))

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        asyncio.run(main())
    assert not recwarn.list


@pytest.mark.parametrize("limits", SHAPES.values(), ids=SHAPES)
def test_a_handler_pauses_and_resumes_in_the_middle_of_a_decision_as_well(limits):
    """It takes effect at the end of that, and is not refused."""

    def pause(limiter):
        limiter.pause(100)
        limiter.observe(remaining={"requests": 500})

    def check(limiter):
        paused = limiter.statistics().paused_for > 90
        limiter.resume()
        return what_is_wrong(limiter) or ([] if paused or limiter in untouched else ["no pause"])

    untouched = []

    def use(limiter):
        untouched.append(limiter)
        with suppress(RateLimited), limiter(requests=1, max_wait=0.01):
            pass

    def handler(limiter):
        untouched.clear()
        pause(limiter)

    found, points = every_point(handler, lambda: Limiter(**limits), use, check)
    assert points > 3
    assert found == {}
