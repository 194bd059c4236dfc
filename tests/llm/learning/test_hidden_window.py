"""A limit of which nothing is stated, at a server that gives all of it back a window later, and not bit by bit."""

from __future__ import annotations

import bisect
import functools
import math

import pytest

from penstock.llm.discovery import UnitEstimate
from penstock.llm.learning.hidden_window import HiddenWindow, Window, WindowKind
from penstock.llm.learning.traffic import Traffic


def since(moments, begin):
    return len(moments) - bisect.bisect_left(moments, begin)


class Moving:
    """So many in any span of its length."""

    def __init__(self, amount, per):
        self.amount, self.per, self.admitted = amount, per, []

    def admits(self, now):
        admitted = since(self.admitted, now - self.per) < self.amount
        if admitted:
            self.admitted.append(now)
        return admitted

    def wait(self, now):
        return self.admitted[-self.amount] + self.per - now


class Fixed(Moving):
    """So many in each window, the first of which begins at `begins`."""

    def __init__(self, amount, per, begins=0.0):
        super().__init__(amount, per)
        self.begins = begins

    def admits(self, now):
        begin = now - (now - self.begins) % self.per
        admitted = since(self.admitted, begin) < self.amount
        if admitted:
            self.admitted.append(now)
        return admitted

    def wait(self, now):
        return self.per - (now - self.begins) % self.per


class Counter(Fixed):
    """The same, and of the window before it the part that would still be seen in one that slides."""

    def admits(self, now):
        begin = now - (now - self.begins) % self.per
        inside = since(self.admitted, begin)
        before = since(self.admitted, begin - self.per) - inside
        admitted = inside + before * (1 - (now - begin) / self.per) + 1 <= self.amount
        if admitted:
            self.admitted.append(now)
        return admitted

    def wait(self, now):
        return 0.1


class Bucket:
    """So many at once, and so many a second."""

    def __init__(self, burst, rate):
        self.burst, self.rate, self.level, self.at, self.admitted = burst, rate, burst, 0.0, []

    def admits(self, now):
        self.level, self.at = min(self.burst, self.level + self.rate * (now - self.at)), now
        if self.level < 1:
            return False
        self.level -= 1
        self.admitted.append(now)
        return True


def run(server, seconds, *, stated=False, changes=(), clock=0.0):
    """Endless demand on an estimate that hears nothing, or how long to stay away; returns it and the refusals.

    The clock showed a whole multiple of any length at `clock`.
    """
    estimate, now, strikes, refused, changes = UnitEstimate(), 0.0, 0, 0, list(changes)
    estimate.search(10.0, 0.0)
    while now < seconds:
        while changes and changes[0][0] <= now:
            server.amount = changes.pop(0)[1]
        ready = estimate.ready_at(1.0, now)
        if ready > now:
            now = ready
            continue
        estimate.granted(1.0, now)
        departure = estimate.left(1.0, now)
        admitted = server.admits(now)
        estimate.answered(departure, now, refused=not admitted)
        if admitted:
            estimate.passed(departure, now, 0.0)
            strikes = 0
        else:
            refused += 1
            wait = math.ceil(server.wait(now)) if stated else None
            estimate.refused_unexplained(departure, now, wait=wait, began=clock)
            now += 2.0**strikes if wait is None else wait
            strikes += 1
    return estimate, refused


def share(server, first, last, rate):
    return sum(first <= at < last for at in server.admitted) / ((last - first) * rate)


@pytest.mark.parametrize("stated", [False, True])
@pytest.mark.parametrize("make", [Moving, Fixed, functools.partial(Fixed, begins=-8.0)])
def test_a_window_is_found_when_all_of_it_comes_back_and_is_used_from_then_on(make, stated):
    server = make(100, 10)
    estimate, refused = run(server, 120.0, stated=stated)
    assert share(server, 30, 120, 10.0) > 0.85
    assert refused <= 6
    assert "hidden window of 1" in estimate.describe()


@pytest.mark.parametrize("stated", [False, True])
@pytest.mark.parametrize("begins", [-3.0, -5.0, -7.0])
def test_a_counter_of_two_windows_is_found_by_what_it_refuses(begins, stated):
    """It refills like a bucket, but at a rate that depends on what was sent in the window before."""
    server = Counter(100, 10, begins)
    estimate, refused = run(server, 120.0, stated=stated, clock=begins)
    assert share(server, 30, 120, 10.0) > 0.92
    assert refused <= 6
    assert "/10s (counter)" in estimate.describe()


@pytest.mark.parametrize("begins", [-1.0, -3.0, -5.0, -7.0])
def test_a_window_is_found_that_ends_when_the_server_says_whatever_the_clock_shows(begins):
    server = Fixed(100, 10, begins)
    estimate, refused = run(server, 120.0, stated=True)
    assert share(server, 30, 120, 10.0) > 0.92
    assert refused <= 4
    assert "/10s" in estimate.describe()


@pytest.mark.parametrize("begins", [-0.5, -1.0, -6.5, -8.0])
def test_of_windows_that_explain_the_refusals_the_one_is_used_whose_end_the_server_stated(begins):
    """One that slides would explain them too, and admit a little less; what was missed of a window is made up for."""
    server = Fixed(100, 10, begins)
    estimate, refused = run(server, 120.0, stated=True, clock=begins)
    assert share(server, begins + 10, begins + 100, 10.0) > 0.99
    assert refused <= 2
    assert "window of 100/10s (clock's)" in estimate.describe()


def test_what_is_ruled_out_while_another_window_is_believed_in_is_believed_no_more():
    """A window that is a day long would admit nothing more until tomorrow."""
    server = Moving(100, 10)
    estimate, _ = run(server, 300.0, changes=[(60.0, 50)])
    assert share(server, 240, 300, 5.0) > 0.8
    assert "86400" not in estimate.describe()


def test_a_large_window_is_not_refused_again_when_it_comes_back_as_slowly_as_it_was_used():
    """The search began at 10 a second, so at first 10 a second come back, where 100 might be sent."""
    server = Moving(1_000, 10)
    _, refused = run(server, 60.0)
    assert refused <= 4
    assert share(server, 20, 60, 100.0) > 0.9


@pytest.mark.parametrize(("burst", "rate"), [(100, 10.0), (1, 10.0), (30, 0.5), (500, 50.0)])
def test_a_bucket_is_not_taken_for_a_window(burst, rate):
    estimate, _ = run(Bucket(burst, rate), 100.0)
    assert "window" not in estimate.describe()


@pytest.mark.parametrize("after", [50, 200])
def test_a_window_that_changes_is_followed_both_ways(after):
    """Downwards at the next refusal; upwards at the speed at which every rate grows that was not refused for long."""
    server = Moving(100, 10)
    _, refused = run(server, 900.0, changes=[(60.0, after)])
    assert share(server, 800, 900, after / 10) > 0.85
    assert refused <= 20


def test_the_longest_window_that_explains_everything_is_found_once_it_can_be_no_bucket():
    """A hundred in ten seconds: a hundred in a minute would not have admitted one more after 10 seconds."""
    window, traffic = HiddenWindow(), Traffic()
    for number in range(100):
        traffic.left(1.0, 0.04 * number)
    for at in (4.0, 6.0, 9.0):
        departure = traffic.left(1.0, at)
        traffic.refused(departure)
        window.refused(departure, traffic, at, None)
    window.passed(traffic.left(1.0, 10.1), traffic)
    assert window.found is None  # it may still be a bucket that is all but empty
    for number in range(1, 10):
        window.passed(traffic.left(1.0, 10.1 + 0.2 * number), traffic)
    assert (window.found.most, window.found.length) == (100.0, 10.0)


@pytest.mark.parametrize(("explained", "amount"), [(False, 100.0), (True, 109.0)])
def test_what_left_beside_the_first_refusal_and_was_refused_too_is_no_part_of_the_window(explained, amount):
    """Ten left at once and were refused; the first refusal was heard before the others, which may have named a rate.

    They were thought to be admitted until then: 109 in a day would have explained it, and nothing would have left for a
    day.
    """
    window, traffic = HiddenWindow(), Traffic()
    for number in range(100):
        traffic.left(1.0, 0.04 * number)
    refused = [traffic.left(1.0, 4.0 + 0.001 * number) for number in range(10)]
    for number, departure in enumerate(refused):
        traffic.refused(departure)
        if number == 0 or not explained:
            window.refused(departure, traffic, 4.5 + 0.01 * number, 6.0)
    for number in range(5):
        window.passed(traffic.left(1.0, 10.1 + 0.2 * number), traffic)
    assert (window.found.most, window.found.length) == (amount, 10.0)


def test_no_more_leaves_within_a_window_than_it_has():
    window, traffic = HiddenWindow(found=Window(WindowKind.SLIDING, 10.0, most=100.0)), Traffic()
    for number in range(90):
        traffic.waiting += 1.0
        traffic.left(1.0, 0.01 * number)
    assert window.ready_at(10.0, 1.0, traffic) == 1.0
    assert 10.0 <= window.ready_at(11.0, 1.0, traffic) < 10.5
    assert 10.5 <= window.ready_at(10.0, 1.0, traffic, ahead=50.0) < 11.0
    assert window.ready_at(200.0, 11.5, traffic) == 11.5  # what is larger than the window goes alone


@pytest.mark.parametrize("begins", [-0.5, -1.0, -6.5, -8.0])
def test_a_window_by_the_clock_that_was_used_up_again_and_again_is_used_as_soon_as_it_begins(begins):
    """Nothing is gained by spreading it over the window, and what is not sent when demand ends is lost."""
    server = Fixed(100, 10, begins)
    _, refused = run(server, 120.0, stated=True, clock=begins)
    assert share(server, begins + 70, begins + 73, 33.0) > 0.9  # it was two thirds, and later half
    assert share(server, begins + 10, begins + 110, 10.0) > 0.99
    assert refused <= 2


def test_it_is_spread_again_when_it_is_refused():
    """The amount was cut: all that leaves on the old belief is refused."""
    server = Fixed(100, 10)
    estimate, _ = run(server, 101.0, stated=True, changes=[(80.0, 50)])
    assert estimate.pace.haste <= 2
