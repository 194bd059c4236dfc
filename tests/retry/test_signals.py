"""Signals between and in attempts, and functions that are not plain: classes, descriptors, methods."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import threading
import time

import pytest

from penstock import Limiter
from penstock.retry import Budget, Retry, constant, current_attempt, retry_after
from penstock.retry.call import current
from tests.alarms import alarms
from tests.limiter.interrupts import Interrupted, every_point
from tests.retry.flaky import EVERY_SECOND, Flaky

retry = Retry(on=ConnectionError, attempts=3, backoff=EVERY_SECOND)


class Rang(Exception):  # noqa: N818
    """What a user's signal handler raises."""


@pytest.fixture
def alarm():
    """Raises `Rang` in the main thread, after so many real seconds.

    It rings again until it is heard: a signal that the system gives to another thread interrupts no sleep of this one.
    """

    def ring(*_):
        signal.setitimer(signal.ITIMER_REAL, 0)
        raise Rang

    with alarms(ring):
        yield lambda seconds: signal.setitimer(signal.ITIMER_REAL, seconds, seconds)


def test_a_signal_handler_that_raises_ends_the_wait_with_its_own_error(alarm):
    flaky, started = Flaky(9), time.monotonic()
    for use in (call, loop):
        with pytest.raises(Rang):
            use(Retry(on=ConnectionError, backoff=constant(60)), flaky.sync, lambda: alarm(0.02))
        assert current.get() is None
    assert time.monotonic() - started < 50
    assert len(flaky.at) <= 2  # none of the two was tried again


def call(policy, fail, before):
    def attempt():
        before()
        fail()

    policy.call_sync(attempt)


def loop(policy, fail, before):
    for attempt in policy:
        with attempt:
            before()
            fail()


def test_a_signal_handler_may_use_the_policy_that_it_interrupts(thread_time):
    """In an attempt it is part of that attempt; in a wait it is on its own."""
    inner = Flaky(0)
    before = signal.signal(signal.SIGUSR1, lambda *_: retry.call_sync(inner.sync))
    try:
        flaky = Flaky(2)

        def fetch():
            os.kill(os.getpid(), signal.SIGUSR1)
            return flaky.sync()

        assert retry.call_sync(fetch) == "reply"
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert len(inner.at) == len(flaky.at) == 3
    assert current.get() is None


@pytest.mark.parametrize("where", ["the attempt", "a hook", "on", "the backoff", "the wait"])
def test_an_interrupt_passes_from_wherever_it_comes_and_leaves_no_attempt_behind(where, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    class Backoff:
        jitter = "none"
        delay = interrupt

    settings = {
        "the attempt": {},
        "a hook": {"on_event": interrupt},
        "on": {"on": interrupt},
        "the backoff": {"backoff": Backoff()},
        "the wait": {},
    }[where]
    monkeypatch.setattr(time, "sleep", interrupt)
    policy = Retry(**{"on": ConnectionError, "backoff": constant(1)} | settings)
    fail = interrupt if where == "the attempt" else Flaky(9).sync
    for use in (policy.call_sync, lambda fn: policy(fn)()):
        with pytest.raises(KeyboardInterrupt):
            use(fail)
        assert current.get() is None
    with pytest.raises(KeyboardInterrupt):
        for attempt in policy:
            with attempt:
                fail()
    assert current.get() is None
    assert current_attempt() is None


def test_a_fork_in_an_attempt_carries_on_with_it():
    """The child has the attempt, its parent's clock, and a budget whose lock is free."""
    reader, writer = os.pipe()
    for attempt in retry:
        with attempt:
            child = os.fork()
            if child == 0:
                os.write(writer, str(current_attempt().number).encode())
                os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reader, 10) == b"1"
    os.close(reader)
    os.close(writer)


class Service:
    made = 0

    def __init__(self):
        type(self).made += 1
        if self.made < 3:
            raise ConnectionError

    @classmethod
    @retry
    def of_class(cls, flaky):
        return cls, flaky.sync()

    @staticmethod
    @retry
    def of_nobody(flaky):
        return flaky.sync()

    @property
    @retry
    def reply(self):
        return self.flaky.sync()

    @functools.cached_property
    @retry
    def cached(self):
        return self.flaky.sync()

    @retry
    def method(self, flaky):
        return flaky.sync()


def test_methods_of_every_kind_are_retried(thread_time):
    assert Service.of_class(Flaky(2)) == (Service, "reply")
    assert Service.of_nobody(Flaky(2)) == "reply"
    service = retry.call_sync(Service)  # a class is called like a function
    assert isinstance(service, Service)
    assert service.method(Flaky(2)) == "reply"
    service.flaky = Flaky(2)
    assert service.reply == "reply"
    service.flaky = Flaky(2)
    assert service.cached == "reply"
    assert retry.call_sync(Service.of_nobody, Flaky(2)) == "reply"
    assert retry(functools.partial(service.method))(Flaky(2)) == "reply"


def test_a_decorator_above_classmethod_is_refused_with_the_way_out():
    for kind in (classmethod, staticmethod):
        with pytest.raises(
            TypeError, match=rf"sync is a {kind.__name__} already: put the decorator below @{kind.__name__}"
        ):
            retry(kind(Flaky(0).sync))
    with pytest.raises(TypeError, match="is not a function"):
        retry(property(Flaky(0).sync))
    with pytest.raises(TypeError, match="is not a function"):
        retry(5)


def test_threads_that_fail_at_once_share_a_budget(thread_time):
    """No retry is counted twice, and none is lost."""
    flakies = [Flaky(999) for _ in range(8)]
    policy = Retry(on=ConnectionError, attempts=None, backoff=constant(0), budget=Budget(0, floor=100))

    def run(flaky):
        with pytest.raises(ConnectionError):
            policy.call_sync(flaky.sync)

    threads = [threading.Thread(target=run, args=(flaky,)) for flaky in flakies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(len(flaky.at) for flaky in flakies) == 8 + 100


def struck(*_):
    """A function of the user's, in which a signal strikes."""
    signal.raise_signal(signal.SIGALRM)


class StrangeError(ConnectionError):
    """An error whose properties are asked when a signal strikes."""

    retry_after = property(struck)


def fail(*_):
    raise ConnectionError


@pytest.mark.parametrize(
    "call",
    [
        pytest.param(lambda: Retry(on=struck).call_sync(fail), id="on"),
        pytest.param(lambda: Retry(on=ConnectionError, hint=struck).call_sync(fail), id="hint"),
        pytest.param(lambda: Retry(on=ConnectionError, on_result=struck).call_sync(dict), id="on_result"),
        pytest.param(lambda: Retry(on=ConnectionError, on_event=struck).call_sync(dict), id="on_event"),
        pytest.param(lambda: retry_after(StrangeError()), id="retry_after"),
        pytest.param(lambda: Limiter(requests="9/s", on_event=struck).acquire_nowait(), id="a limiter's on_event"),
        pytest.param(Limiter(requests="9/s")(settle=struck)(lambda: 1), id="settle"),
    ],
)
@pytest.mark.parametrize("form", ["function", "method", "partial", "object"])
def test_what_a_signal_handler_raises_in_a_users_function_is_not_taken_for_its_error(call, form, caplog):
    class Handler:
        def __call__(self, *_):
            raise Rang

        ring = __call__

    handlers = {
        "function": lambda *_: Handler()(),
        "method": Handler().ring,
        "partial": functools.partial(Handler.ring, None),
        "object": Handler(),
    }
    with alarms(handlers[form]), pytest.raises(Rang):
        call()
    assert not caplog.records


def test_a_call_that_a_signal_ends_in_its_listener_is_not_charged(alarm):
    limiter = Limiter(requests="9/min", on_event=struck)
    with pytest.raises(Rang), limiter:
        pass
    assert limiter.statistics().limits["requests"].level == 9


class Ctrl_C(Interrupted, KeyboardInterrupt):  # noqa: N801 - what Control-C raises
    pass


def raise_control_c(_):
    raise Ctrl_C


def made_by_call(policy, fail):
    policy.call_sync(fail)


def made_by_a_loop(policy, fail):
    for attempt in policy:
        with attempt:
            fail()


def made_async(policy, fail):
    async def fetch():
        return fail()

    with contextlib.suppress(StopIteration):
        policy(fetch)().send(None)


LEFT_BEHIND = {"Attempt.__exit__ (call)"}  # as an exception in the user's block: nothing of ours runs yet


@pytest.mark.parametrize("use", [made_by_call, made_by_a_loop, made_async])
def test_an_interrupt_at_any_point_of_a_call_leaves_the_next_ones_their_retries(use):
    """A call that seems to be under way for ever would make all later ones stand back, and try once."""
    policy = Retry(on=ConnectionError, attempts=3, backoff=constant(0))
    fails = 0 if use is made_async else 1

    def what_is_wrong(_):
        flaky = Flaky(9)
        with contextlib.suppress(ConnectionError):
            policy.call_sync(flaky.sync)
        current.set(None)
        return [] if len(flaky.at) == 3 else [f"{len(flaky.at)} attempts"]

    found, points = every_point(
        raise_control_c, lambda: Flaky(fails).sync, lambda fail: use(policy, fail), what_is_wrong
    )
    assert points > 10
    assert found.keys() <= LEFT_BEHIND
