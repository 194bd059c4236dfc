"""A window that slides, and the length that explains what answers say is left of it."""

from __future__ import annotations

import pytest

from penstock.llm.discovery import UnitEstimate
from penstock.llm.learning.sliding_window import SlidingWindow
from penstock.llm.learning.stated_limit import Kind, StatedLimit
from penstock.llm.learning.traffic import Departure, Traffic


class Fixed:
    """Admits an amount in each window, which begins with the first request after the last one ended."""

    def __init__(self, amount, seconds):
        self.amount, self.seconds, self.began, self.used = amount, seconds, -seconds, 0

    def ask(self, now):
        """Whether one is admitted, and what is left then."""
        if now >= self.began + self.seconds:
            self.began, self.used = now, 0
        self.used = min(self.amount + 1, self.used + 1)
        return self.used <= self.amount, max(0, self.amount - self.used)


class Moving:
    """Admits an amount in any so many seconds, and says how much is left."""

    def __init__(self, amount, seconds):
        self.amount, self.seconds, self.admitted = amount, seconds, []

    def ask(self, now):
        """Whether one is admitted, and what is left then."""
        self.admitted = [each for each in self.admitted if each > now - self.seconds]
        if len(self.admitted) >= self.amount:
            return False, 0
        self.admitted.append(now)
        return True, self.amount - len(self.admitted)


def run(server, seconds, *, latency=0.1, others=0.0, stands_still=()):
    """Endless demand; answers state the limit and what is left. The estimate, moments of what was admitted, and how many were not.

    Args:
        others: Requests per second of somebody else.
        stands_still: Moments at which all that is on its way arrives 0.7 s late.
    """
    estimate, now, taken = UnitEstimate(charges_refused=True), 0.0, 0.0
    on_its_way: list[tuple[float, Departure, bool, int]] = []
    admitted, refused, paused_until = [], 0, 0.0

    def send():
        estimate.granted(1.0, now)
        departure = estimate.left(1.0, now)
        late = 0.7 if any(moment <= now < moment + 0.7 for moment in stands_still) else 0.0
        is_admitted, left = server.ask(now + late)
        on_its_way.append((now + late + latency, departure, is_admitted, left))
        return is_admitted

    refused += not send()
    while now < seconds:
        if taken < others * now:
            server.ask(now)
            taken += 1.0
        while on_its_way and on_its_way[0][0] <= now:
            _, departure, is_admitted, left = on_its_way.pop(0)
            estimate.answered(departure, now, refused=not is_admitted)
            estimate.heard("requests", departure, StatedLimit(server.amount, 60.0, left, sure=False), now)
            if not is_admitted:
                estimate.explained(departure, 1.0)
                paused_until = now + 1.0
        if estimate.stated and max(paused_until, estimate.ready_at(1.0, now)) <= now:
            if send():
                admitted.append(now)
            else:
                refused += 1
            continue
        now += 0.01
    return estimate, admitted, refused


@pytest.mark.parametrize(("amount", "seconds", "used"), [(100, 10, 0.95), (20, 2, 0.85), (60, 15, 0.95)])
def test_the_length_of_a_window_that_slides_is_found_and_nearly_all_of_it_used(amount, seconds, used):
    estimate, admitted, _ = run(Moving(amount, seconds), 14 * seconds)
    assert estimate.stated["requests"].kind is Kind.SLIDING
    assert estimate.stated["requests"].per == seconds
    # Those that leave together do so again a window later: so the next five windows' worth is timed.
    begin = next(index for index, moment in enumerate(admitted) if moment > 8 * seconds)
    assert admitted[begin + 5 * amount] - admitted[begin] <= 5 * seconds / used


def test_what_is_kept_back_for_the_way_is_no_more_than_what_answers_take():
    """A request is admitted before it is answered, so it comes back within that time of a window after it left."""
    _, admitted, refused = run(Moving(100, 10), 140, latency=0.03)
    begin = next(index for index, moment in enumerate(admitted) if moment > 80)
    assert admitted[begin + 500] - admitted[begin] <= 50 * 1.01
    assert refused <= 5


def test_once_it_is_found_hardly_anything_is_refused():
    _, admitted, refused = run(Moving(100, 10), 120)
    assert refused <= 10 < 0.01 * len(admitted)


def test_requests_that_arrive_late_now_and_then_are_not_followed_by_bunches_of_refusals():
    _, admitted, refused = run(Moving(100, 10), 160, stands_still=(60.0, 111.0, 140.0))
    assert refused <= 20
    assert len(admitted) >= 1_400


def test_where_others_take_a_part_no_length_is_believed_and_hardly_anything_refused():
    estimate, admitted, refused = run(Moving(100, 10), 120, others=3.0)
    assert estimate.stated["requests"].kind is Kind.UNSURE
    assert refused <= 10
    assert len(admitted) >= 300


@pytest.mark.parametrize("stands_still", [(), (10.0, 31.5, 33.0, 72.0)])
def test_a_window_that_comes_back_at_once_is_not_taken_for_a_short_one_by_the_many_answers_that_say_so(stands_still):
    _, admitted, refused = run(Fixed(100, 10), 160, stands_still=stands_still)
    assert refused <= 10
    assert len(admitted) >= 1_250


def test_a_length_that_is_wrong_does_not_stop_all_requests_for_ever():
    """Nothing left within it before the answer that stated that nothing is left, so nothing seemed to come back."""
    traffic = Traffic()
    window = SlidingWindow(length=2.0)
    answer = traffic.left(1.0, 100.0)
    assert window.came_back(answer, 101.0, traffic) == 0.0
    assert window.came_back(answer, 102.2, traffic) > 0.0
