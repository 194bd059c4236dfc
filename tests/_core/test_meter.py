"""What a meter of one's own gets for free: defaults that are right with only three methods written."""

from __future__ import annotations

import math

import pytest

from penstock._core.meter import Meter, Unmetered


class Log(Meter):
    """Three in ten seconds, as the simplest list; its charges return no receipt."""

    def __init__(self) -> None:
        self.log: list[tuple[float, float]] = []

    def ready_at(self, cost, now):
        moments = [now, *(at + 10 for at, _ in self.log if at + 10 > now)]
        return next(at for at in moments if self.left(at) >= cost)

    def left(self, now):
        return 3 - sum(amount for at, amount in self.log if at + 10 > now)

    def charge(self, cost, now):
        self.log.append((now, cost))

    def level(self, now):
        return self.left(now)


def test_a_charge_without_a_mark_is_still_told_from_none():
    meter = Log()
    assert meter.charge_if_ready(3, 0.0) == ()
    assert meter.charge_if_ready(1, 9.9) is None
    assert meter.charge_if_ready(1, 10.0) == ()


def test_to_look_what_would_be_leaves_no_trace():
    """Also in what the meter holds, however deep."""
    meter = Log()
    meter.charge(1, 0.0)
    assert meter.ready_after(2, 1, 4.0) == 10.0
    assert meter.ready_after(2, 3, 4.0) == 14.0
    assert meter.ready_after(1, 1, 4.0) == 4.0
    assert meter.log == [(0.0, 1)]


def test_behind_others_it_is_ready_when_all_of_them_would_be():
    meter = Log()
    meter.charge(2, 0.0)
    assert meter.ready_behind(1, 1, 4.0) == 10.0
    assert meter.ready_behind(0.5, 0.5, 4.0) == 4.0
    assert meter.log == [(0.0, 2)]


def test_topping_up_charges_the_rest_now_beside_the_mark():
    meter = Log()
    assert meter.top_up(1, 2, "receipt", 5.0) == (1, 2, None)
    assert meter.log == [(5.0, 2)]


def test_a_glance_is_the_level_of_that_moment_and_touches_nothing():
    """A signal handler takes it in the middle of another method."""

    class Forgets(Log):
        def level(self, now):
            self.log[:] = [(at, amount) for at, amount in self.log if at + 10 > now]
            return self.left(now)

    meter = Forgets()
    meter.charge(2, 0.0)
    assert (meter.glance(9.9), meter.glance(10.0)) == (1, 3)
    assert meter.log == [(0.0, 2)]


def test_by_default_nothing_comes_back_and_nothing_is_kept_or_changed():
    meter = Log()
    meter.charge(2, 0.0)
    meter.give_back(2, None, 0.0)
    assert meter.level(0.0) == 1
    assert meter.idle(0.0) is False
    assert meter.change(None, 0.0) is False
    assert meter.pack() is None
    assert (meter.held, meter.calendar) == (False, False)


class Packed(Log):
    """One that can be put away, and knows when it need not be kept."""

    def unpack(self, packed):
        self.log = packed

    def idle(self, now):
        return self.left(now) == 3


def test_what_was_put_away_is_idle_when_it_would_be_if_it_had_not_been():
    assert [Packed().idle_as([(0.0, 2)], now) for now in (0.0, 9.9, 10.0)] == [False, False, True]


@pytest.mark.parametrize(("heard", "charged"), [(4, []), (3, []), (2.5, [0.5]), (-1, [4])])
def test_hearsay_charges_what_is_missing_and_nothing_else(heard, charged):
    meter = Log()
    meter.charge(3, -4.0)  # all of it is back at 6.0
    meter.lower_to(heard, 7.0)
    assert meter.log[1:] == [(7.0, amount) for amount in charged]


def test_what_is_not_metered_is_as_if_nothing_was_ever_used():
    meter = Unmetered(None)
    meter.charge(5, 0.0)
    assert (meter.level(0.0), meter.used(0.0), meter.idle(0.0), meter.pack()) == (math.inf, 0, True, 0)


def test_what_every_kind_must_say_itself():
    meter = Meter()
    for call in (
        lambda: meter.ready_at(1, 0.0),
        lambda: meter.charge(1, 0.0),
        lambda: meter.level(0.0),
        lambda: meter.used(0.0),
        lambda: meter.unpack(None),
    ):
        with pytest.raises(NotImplementedError):
            call()
