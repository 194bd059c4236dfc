"""A change that an exception cuts short, at any point, lets nobody have more than was promised.

The exception is that of a signal handler, such as KeyboardInterrupt. It may cost capacity: a refund that is lost.
"""

from __future__ import annotations

from contextlib import suppress

import pytest

from penstock import Keyed, Limiter, Rate, RateLimited, calendar, in_flight, sliding
from penstock.stores import MemoryStore
from tests.limiter.interrupts import at_point, every_point, raise_interrupted

pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.usefixtures("quick_collections"),
]

FOREVER = 1e9
"""Seconds: nothing flows in while a test runs."""

LIMITS = {
    "a bucket": Rate(10, FOREVER),
    "a window": sliding(10, FOREVER),
    "a calendar": calendar(10, "month"),
    "both": [Rate(10, FOREVER), sliding(11, FOREVER)],
}


class Used:
    """A limiter of ten units, of which three were granted, and a permit for one more, charged two."""

    def __init__(self, limits):
        self.limiter = Limiter(requests=limits, calls=in_flight(100))
        self.call = self.limiter(requests=1, max_wait=0)
        self.granted = 3
        for _ in range(3):
            with self.call:
                pass
        self.permit = self.limiter.acquire_nowait(requests=2)

    def wrong(self):
        """The permit is settled to one unit, and then all that is left is taken."""
        self.permit.settle(requests=1)
        self.permit.close()
        self.granted += 1
        for call in (self.call, self.limiter(requests=1, max_wait=0)):  # one of before, one of now
            try:
                while self.granted < 50:
                    with call:
                        self.granted += 1
            except RateLimited:
                pass
        held = self.limiter.statistics().in_flight
        return [f"{self.granted} granted, {held} held"] if self.granted > 11 or held else []


def settle_up(used):
    used.permit.settle(requests=5)


def settle_down(used):
    used.permit.settle(requests=1)


def settle_places(used):
    used.permit.settle(calls=3)
    used.permit.settle(calls=2)


def settle_up_and_down(used):
    used.permit.settle(requests=4)
    used.permit.settle(requests=0)


def to_a_faster_rate(used):
    used.limiter.reconfigure(requests=Rate(10, FOREVER / 1_000, burst=10))


def to_a_window(used):
    used.limiter.reconfigure(requests=sliding(10, FOREVER / 10))


def to_a_bucket(used):
    used.limiter.reconfigure(requests=Rate(10, FOREVER / 10, burst=9))


def to_several(used):
    used.limiter.reconfigure(requests=[Rate(10, FOREVER), sliding(10, FOREVER)], calls=in_flight(90))


def look(used):
    used.limiter.forecast(requests=9)
    used.limiter.statistics()


WAYS = [
    settle_up, settle_down, settle_up_and_down, settle_places, to_a_faster_rate, to_a_window, to_a_bucket, to_several,
    look,
]  # fmt: skip


@pytest.mark.parametrize("limits", LIMITS.values(), ids=LIMITS)
@pytest.mark.parametrize("way", WAYS)
def test_a_change_that_is_cut_short_grants_nobody_more_than_was_promised(way, limits):
    found, points = every_point(lambda _: raise_interrupted(), lambda: Used(limits), way, Used.wrong)
    assert points > 20
    assert found == {}


class Named:
    """A store with a name in it of which nothing is used."""

    def __init__(self):
        self.store = MemoryStore()
        self.granted = 0
        self.make("whole")

    def make(self, name):
        return Limiter(name=name, requests=Rate(10, FOREVER), store=self.store)

    def use(self, name):
        self.make(name).acquire_nowait()
        self.granted += 1


@pytest.mark.parametrize("name", ["whole", "new"])
def test_a_name_that_a_handler_uses_first_has_one_state(name):
    """The handler used a state of its own, or one that was just being forgotten, and nobody counted on."""

    def handler(named):
        with suppress(RateLimited):  # in the middle of a decision
            named.use(name)

    def wrong(named):
        used = 10 - round(named.make(name).statistics().limits["requests"].level)
        return [] if used == named.granted else [f"{named.granted} granted, {used} counted"]

    def make_or_use(named):
        if name == "whole":
            named.make("another")
        else:
            named.use(name)

    found, points = every_point(handler, Named, make_or_use, wrong)
    assert points > 20
    assert found == {}


class TimeUpError(Exception):
    """What the handler of an alarm raises, as Celery's does at a soft time limit."""


def by_key(**options):
    return Keyed(requests="10/min", tokens="1k/min")["a"](tokens=5, **options)


def of_a_limiter(**options):
    return Limiter(requests="10/min", tokens="1k/min", max_queue=3)(tokens=5, **options)


@pytest.mark.parametrize("make", [of_a_limiter, by_key])
@pytest.mark.parametrize("options", [{}, {"priority": 3, "flow": "a", "max_wait": 2}])
def test_what_a_handler_raises_reaches_the_caller_at_any_point(make, options):
    """It is neither swallowed, nor taken for a number or a flow that is wrong."""
    raised, others, number, point = [], {}, 0, ""

    def time_up():
        raised.append(number)
        raise TimeUpError

    def call():
        try:
            with make(**options):
                pass
        except TimeUpError:
            raised.clear()
        except Exception as error:
            others[number] = error

    while point is not None:
        point = at_point(number, time_up, call)
        if raised and "__del__" not in (point or ""):  # whose exceptions Python ignores
            others.setdefault(number, "swallowed")
        raised.clear()
        number += 1
    assert others == {}
    assert number > 100
