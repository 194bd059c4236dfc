"""What can be known of a server that tells nothing: what it lets through between refusals."""

from __future__ import annotations

import pytest

from penstock.llm.discovery import UnitEstimate
from penstock.llm.learning.pace import Pace
from penstock.llm.learning.traffic import Departure, Traffic


class Server:
    """A bucket that says no, and nothing else."""

    def __init__(self, rate, burst):
        self.rate, self.burst, self.level, self.at = rate, burst, burst, 0.0

    def admits(self, now):
        self.level = min(self.burst, self.level + self.rate * (now - self.at))
        self.at = now
        if self.level < 1:
            return False
        self.level -= 1
        return True


def run(server, pace, seconds, *, changes=(), known=None):
    """Endless demand that obeys the pace. The moments of what was admitted, and of what was refused."""
    traffic, now, paused_until = Traffic(), 0.0, 0.0
    admitted, refused, changes = [], [], list(changes)
    while now < seconds:
        while changes and changes[0][0] <= now:
            server.rate = changes.pop(0)[1]
        ready = pace.ready_at(1.0, max(now, paused_until))
        if ready > now:
            now = ready
            continue
        pace.charge(1.0, now)
        traffic.waiting += 1
        departure = traffic.left(1.0, now)
        if server.admits(now):
            admitted.append(now)
            pace.passed(now)
        else:
            refused.append(now)
            departure.refused = True
            pace.refused(departure, traffic, now, known)
            paused_until = now + 1
    return admitted, refused


def per_second(times, begin, end):
    return sum(begin <= time < end for time in times) / (end - begin)


@pytest.mark.parametrize("burst", [1, 20, 500])
@pytest.mark.parametrize("rate", [0.5, 5.0, 50.0])
def test_a_rate_that_nobody_told_is_found_within_a_few_refusals(rate, burst):
    admitted, refused = run(Server(rate, burst), Pace(10.0, 0.0, 8.0, searching=True), 1_200)
    assert per_second(admitted, 600, 1_200) > (0.93 if burst > 1 else 0.8) * rate
    assert len(refused) <= 12 + 0.003 * len(admitted)


def test_a_rate_that_drops_and_comes_back_is_followed_both_ways():
    """Within ten seconds of the end of the drop; the best that was published elsewhere is 90 % used, and 8 seconds."""
    server = Server(50.0, 3_000)
    admitted, refused = run(server, Pace(10.0, 0.0, 8.0, searching=True), 600, changes=[(300, 25.0), (360, 50.0)])
    assert per_second(admitted, 370, 380) > 0.9 * 50
    assert per_second(admitted, 60, 600) > 0.95 * (50 * 480 + 25 * 60) / 540
    assert len(refused) < 0.003 * len(admitted)


def test_a_rate_that_was_told_is_believed_until_it_is_refused_again_and_again():
    """The header says 10 a second, and it is 10 a second in quanta; or the header is wrong, and it is 2."""
    for rate, least in ((10.0, 9.5), (2.0, 1.8)):
        admitted, refused = run(Server(rate, 5), Pace(1.0, 0.0, 1.0), 600, known=10.0)
        assert per_second(admitted, 200, 600) > least
        assert len(refused) < 25


def test_after_a_pause_it_goes_on_at_the_rate_and_not_all_at_once():
    pace = Pace(10.0, 0.0, 1.0)
    assert pace.level(1_000.0) == 5.0  # half a second's worth, however long nothing was sent


def test_a_window_that_is_used_up_is_no_rate_of_nothing():
    """Refused again and again while nothing comes back, it goes on at what was admitted in the long run: it never
    stops."""
    traffic, pace = Traffic(), Pace(10.0, 0.0, 1.0)
    for number in range(100):  # all that the window has
        traffic.left(1_000.0, number / 10)
    for now in (10.0, 11.0, 13.0):
        departure = traffic.left(1_000.0, now)
        departure.refused = True
        pace.refused(departure, traffic, now)
    assert pace.rate > 1_000.0
    assert pace.ready_at(1_000.0, 14.0) < 16.0


def test_the_search_doubles_as_fast_as_answers_come():
    """A fast server is found out in seconds; a slow one is not sent a minute's quota before its first refusal is heard
    of."""
    rates = []
    for latency in (0.1, 5.0):
        pace = Pace(10.0, 0.0, 8.0, searching=True)
        for step in range(100):
            now = step / 10
            pace.charge(pace.level(now) + 1.0, now)
            pace.passed(now, latency)
        rates.append(pace.rate)
    assert rates[0] > 8 * rates[1]
    assert rates[1] < 50


def refuse(pace, traffic, left_at, now):
    departure = traffic.left(1.0, left_at)
    departure.refused = True
    pace.refused(departure, traffic, now)


def test_refusals_with_nothing_admitted_in_between_are_one_measurement():
    """A window of ten seconds is used up: that it still is, seconds later, says nothing of the rate."""
    traffic, pace = Traffic(), Pace(10.0, 0.0, 1.0)
    for number in range(100):
        traffic.left(1.0, number / 10)
    refuse(pace, traffic, 10.0, 10.1)
    for number in range(100):
        traffic.left(1.0, 20.0 + number / 10)
    refuse(pace, traffic, 30.0, 30.1)
    rate = pace.rate
    for now in (31.0, 33.0, 37.0):
        refuse(pace, traffic, now, now + 0.1)
    assert pace.rate == rate


def test_after_a_refusal_one_request_goes_first_however_long_the_pause_was():
    traffic, pace = Traffic(), Pace(10.0, 0.0, 1.0)
    traffic.left(1.0, 0.0)
    refuse(pace, traffic, 10.0, 10.1)
    assert pace.level(60.0) == 1.0
    pace.charge(1.0, 60.0)
    pace.passed(60.2, 0.2)  # it left after the refusal, and was admitted
    assert pace.burst == max(1.0, pace.rate / 2)


def test_what_was_on_its_way_when_something_was_refused_shows_nothing_by_being_admitted():
    traffic, pace = Traffic(), Pace(10.0, 0.0, 1.0)
    traffic.left(1.0, 0.0)
    refuse(pace, traffic, 10.0, 10.1)
    pace.passed(10.5, 2.0)
    assert pace.level(60.0) == 1.0


def test_a_few_that_were_admitted_between_two_refusals_are_no_measurement():
    """A window that slides lets two through while it is all but used up."""
    traffic, pace = Traffic(), Pace(10.0, 0.0, 1.0)
    for begin in (0.0, 20.0):
        for number in range(100):
            traffic.left(1.0, begin + number / 10)
        refuse(pace, traffic, begin + 10.0, begin + 10.1)
    rate = pace.rate
    for left_at in (33.0, 34.0):
        traffic.left(1.0, left_at)
    refuse(pace, traffic, 36.0, 36.1)
    assert pace.rate > 0.6 * rate


def searching_at(rate, latency, answers=100):
    """An estimate of a server that has stated nothing and answered that often, at this rate; and the time."""
    estimate, now = UnitEstimate(), 0.0
    estimate.search(rate, now)
    under_way = []
    for _ in range(answers):
        now = estimate.ready_at(1.0, now)
        estimate.granted(1.0, now)
        under_way.append(estimate.left(1.0, now))
        while under_way and under_way[0].at <= now - latency:
            departure = under_way.pop(0)
            estimate.answered(departure, now, refused=False)
            estimate.passed(departure, now, latency)
        estimate.pace.rate = rate
    return estimate, now


def sent_within(estimate, now, seconds):
    """How many leave while no answer comes."""
    sent, end = 0, now + seconds
    while now <= end:
        ready = estimate.ready_at(1.0, now)
        if ready > now:
            now = ready
            continue
        estimate.granted(1.0, now)
        estimate.left(1.0, now)
        sent += 1
    return sent


def test_while_the_rate_is_a_guess_a_standstill_of_the_server_holds_back_what_would_be_sent_on_it():
    """At 100 a second and 0.1 s, about ten are under way; in half a second without answers it would be fifty."""
    estimate, now = searching_at(100.0, 0.1)
    assert sent_within(estimate, now, 0.5) <= 8


def test_after_a_standstill_of_our_own_what_piled_up_is_not_sent_on_a_guess():
    estimate, now = searching_at(100.0, 0.1)
    for departure in list(estimate.traffic.after(Departure(-1, 0.0, 0.0, 0.0))):
        estimate.answered(departure, now + 0.5, refused=False)
    assert sent_within(estimate, now + 0.5, 0.0) <= 11


def test_answers_that_never_come_hold_nobody_up_for_ever():
    estimate, now = searching_at(100.0, 0.1)
    assert sent_within(estimate, now, 60.0) >= 60.0 / 1.5 * 10


def test_beside_limits_that_were_told_a_standstill_holds_nothing_back():
    estimate, now = searching_at(100.0, 0.1)
    estimate.pace.alone = False
    assert sent_within(estimate, now, 0.5) >= 50
