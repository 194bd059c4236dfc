"""When a circuit breaker lets calls through: plain numbers. As a layer it is tested in
tests/pipeline/test_breaker.py."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from penstock._core.breaker import Breaker


def breaker(failures=3, ratio=0.5, window=10.0, open_for=30.0, probes=2) -> Breaker:
    return Breaker(failures, ratio, window, open_for, probes)


def opened(now: float = 0.0, **options) -> Breaker:
    """A breaker that three failures have just opened."""
    one = breaker(**options)
    for _ in range(3):
        one.failed(one.admit(now), now)
    assert one.state == "open"
    return one


def test_it_opens_at_so_many_failures_and_not_before():
    one = breaker()
    for _ in range(2):
        one.failed(one.admit(0.0), 0.0)
    assert one.state == "closed"
    assert one.retry_after(0.0) == math.inf, "a closed one refuses nobody"
    one.failed(one.admit(1.0), 1.0)
    assert one.state == "open"
    assert one.opened_by == (3, 3)
    assert one.admit(30.999) is None
    assert one.retry_after(11.0) == 20.0
    assert one.retry_after(99.0) == 0.0


def test_it_opens_only_if_that_is_the_share_that_failed():
    """The failure that brings it to just the ratio opens it; a success after it would have been too late."""
    one = breaker(failures=3, ratio=0.5)
    for _ in range(4):
        one.succeeded(one.admit(0.0), 0.0)
    for expected in ("closed", "closed", "closed", "open"):
        one.failed(one.admit(0.0), 0.0)
        assert one.state == expected
    assert one.opened_by == (4, 8)


def test_outcomes_leave_the_window_a_tenth_at_a_time():
    one = breaker(failures=3, window=10.0)
    one.failed(one.admit(0.0), 0.0)
    one.failed(one.admit(0.9), 0.9)  # in the same tenth
    one.failed(one.admit(10.0), 10.0)
    assert one.state == "closed", "the first two have left"
    one.failed(one.admit(19.9), 19.9)
    one.failed(one.admit(19.9), 19.9)
    assert one.state == "open", "what is ten seconds old has left, what is 9.9 old has not"
    busy = breaker(failures=10_000)
    for i in range(3_000):
        busy.failed(busy.admit(i / 100), i / 100)
        assert len(busy._steps) <= 11
    assert len(busy._steps) >= 10
    one = breaker(failures=3, ratio=1)
    one.succeeded(one.admit(0.0), 0.0)
    for at in (9.0, 10.0, 10.0):
        one.failed(one.admit(at), at)
    assert one.state == "open", "a success leaves too"


def test_after_its_time_it_lets_so_many_probes_through_and_closes_when_all_succeed():
    one = opened()
    first, second = one.admit(30.0), one.admit(30.0)
    assert one.state == "half-open"
    assert one.admit(30.0) is None
    assert one.retry_after(30.0) == 3.0, "that depends on the probes, which have just begun"
    one.succeeded(first, 31.0)
    assert one.state == "half-open"
    assert one.admit(31.0) is None, "one has passed and one is under way: that is all of them"
    one.succeeded(second, 31.0)
    assert one.state == "closed"
    for _ in range(2):
        one.failed(one.admit(31.0), 31.0)
    assert one.state == "closed", "it has forgotten what it was opened by"


def test_one_probe_that_fails_opens_it_again_for_the_whole_time():
    one = opened()
    first, second = one.admit(30.0), one.admit(30.0)
    one.succeeded(first, 30.0)
    one.failed(second, 40.0)
    assert one.state == "open"
    assert one.opened_by == (3, 3), "what opened it first"
    assert one.admit(69.9) is None
    assert one.admit(70.0) is not None
    assert one.admit(70.0) is not None, "the probe that passed before counts no more"


def test_a_cancelled_probe_leaves_its_place_to_another():
    one = opened(probes=1)
    ticket = one.admit(30.0)
    assert one.admit(30.0) is None
    one.abandoned(ticket)
    another = one.admit(30.0)
    assert another is not None
    one.succeeded(another, 30.0)
    assert one.state == "closed"
    one.abandoned(one.admit(30.0))  # says nothing
    assert one.state == "closed"
    again = opened(probes=1)
    stale = again.admit(30.0)
    again.failed(stale, 30.0)
    probe = again.admit(60.0)
    again.abandoned(stale)
    assert again.admit(60.0) is None, "the place of another is not its to leave"
    again.succeeded(probe, 60.0)
    assert again.state == "closed"


def test_a_ticket_of_an_earlier_state_is_void():
    """The failure of a call that began before the outage ended must not open what a probe has just closed."""
    one = breaker(probes=1)
    old = [one.admit(0.0) for _ in range(6)]
    for ticket in old[:3]:
        one.failed(ticket, 0.0)
    one.failed(old[3], 1.0)
    one.succeeded(old[4], 1.0)
    assert one.retry_after(1.0) == 29.0
    probe = one.admit(30.0)
    one.succeeded(old[5], 30.0)
    assert one.state == "half-open"
    one.succeeded(probe, 30.0)
    assert one.state == "closed"
    for ticket in old:
        one.failed(ticket, 31.0)
    assert one.state == "closed"
    assert len(set(old)) == 1
    assert one.admit(31.0) == (old[0].term + 3, 0), "three states have ended since"


def test_a_server_that_says_when_is_believed_if_it_says_later():
    for hint, until in ((0.0, 30.0), (10.0, 30.0), (90.0, 90.0)):
        one = breaker(failures=1)
        one.failed(one.admit(0.0), 0.0, hint)
        assert one.retry_after(0.0) == until
        assert one.admit(until - 0.001) is None
        one.failed(one.admit(until), until, hint)
        assert one.retry_after(until) == until
    one = breaker(failures=1)
    one.failed(one.admit(5.0), 5.0)
    assert one.retry_after(5.0) == 30.0, "by default there is no hint"


def test_a_clock_that_begins_anew_begins_the_window_anew_and_ends_the_wait():
    """A breaker at module level lives through many tests, each with a virtual time of its own."""
    one = breaker()
    for at in (1_000.0, 1_000.0, 3.0, 3.0):
        one.failed(one.admit(at), at)
    assert one.state == "closed"
    one = opened(1_000.0)
    assert one.admit(3.0) is not None
    assert one.state == "half-open"
    one = opened(1_000.0)
    assert one.admit(1_000.0) is None


@given(
    steps=st.lists(st.tuples(st.sampled_from(["call", "good", "bad", "drop"]), st.floats(0, 20)), max_size=80),
    failures=st.integers(1, 4),
    ratio=st.sampled_from([0.0, 0.5, 1.0]),
    probes=st.integers(1, 3),
)
def test_whatever_happens_no_more_probes_run_than_there_may(steps, failures, ratio, probes):
    """And it is never open for longer than it says, nor closed by less than all its probes."""
    one, now, running = Breaker(failures, ratio, 10.0, 5.0, probes), 0.0, []
    for kind, gap in steps:
        now += gap
        if kind == "call":
            ticket = one.admit(now)
            assert (ticket is None) == (
                one.state == "open" or (one.state == "half-open" and _full(one, running, now, probes))
            )
            if ticket is not None:
                running.append((ticket, now))
        elif running:
            ticket, _ = running.pop(0)
            if kind == "good":
                one.succeeded(ticket, now)
            elif kind == "bad":
                one.failed(ticket, now)
            else:
                one.abandoned(ticket)
        if one.state == "half-open":
            assert len(_probes_within(5.0, one, running, now)) <= probes
        if one.state == "open":
            assert 0 <= one.retry_after(now) <= 5.0 + 1e-9


def _probes_within(seconds: float, one: Breaker, running: list, now: float) -> list:
    """Probes that are under way and not lost: one that takes that long may never come back."""
    return [ticket for ticket, since in running if ticket.term == one._term and now < since + seconds]


def _full(one: Breaker, running: list, now: float, probes: int) -> bool:
    return one._passed + len(_probes_within(5.0, one, running, now)) >= probes


def test_a_probe_that_never_returns_gives_its_place_to_another():
    """It hangs, or its task is gone. Its place is free after as long as the breaker stays open, and not before."""
    one = opened(probes=1)
    lost = one.admit(30.0)
    assert one.admit(59.999) is None
    assert [one.retry_after(at) for at in (33.0, 36.0, 40.0, 45.0, 59.0)] == [3.0, 6.0, 10.0, 15.0, 1.0]
    second = one.admit(60.0)
    assert (lost.term, lost.probe, second.term, second.probe) == (lost.term, 1, lost.term, 2)
    assert one.admit(60.0) is None, "one place, one probe"
    one.succeeded(second, 61.0)
    assert one.state == "closed"
    one.failed(lost, 62.0)
    assert one.state == "closed", "it was a probe of an earlier state"


def test_a_probe_that_comes_back_late_still_counts():
    for late, state in (("succeeded", "closed"), ("failed", "open"), ("abandoned", "half-open")):
        one = opened(probes=1)
        lost = one.admit(30.0)
        one.admit(60.0)
        getattr(one, late)(lost, *[61.0] * (late != "abandoned"))
        assert one.state == state
    assert one.admit(61.0) is None, "the place of the second probe is not given back by the first"


def test_a_probe_that_comes_back_late_is_one_of_those_that_close_it():
    one = opened(probes=2)
    lost = one.admit(30.0)
    in_its_place = one.admit(60.0)
    one.succeeded(lost, 61.0)
    assert one.state == "half-open"
    one.succeeded(in_its_place, 61.0)
    assert one.state == "closed"


def test_one_after_another_each_of_its_probes_counts():
    one = opened(probes=4)
    assert [_state_after_a_good_probe(one) for _ in range(4)] == ["half-open"] * 3 + ["closed"]


def _state_after_a_good_probe(one: Breaker) -> str:
    one.succeeded(one.admit(30.0), 30.0)
    return one.state


def test_only_the_lost_one_of_two_probes_is_replaced():
    one = opened(probes=2)
    one.admit(30.0)
    second = one.admit(45.0)
    third = one.admit(60.0)
    assert third is not None
    assert one.admit(60.0) is None
    one.succeeded(second, 61.0)
    one.succeeded(third, 62.0)
    assert one.state == "closed"


def test_a_probe_from_before_a_tests_clock_began_anew_is_lost():
    one = opened(1_000.0, probes=1)
    assert one.admit(1_030.0) is not None
    assert one.admit(5.0) is not None


def test_ends_that_belong_to_their_range():
    for options in ({"failures": 1}, {"ratio": 0}, {"ratio": 1}, {"probes": 1}, {"window": 0.5}, {"open_for": 0.5}):
        assert breaker(**options).state == "closed"


def test_of_three_probes_two_may_follow_the_first():
    one = opened(probes=3)
    one.succeeded(one.admit(30.0), 30.0)
    tickets = [one.admit(30.0) for _ in range(3)]
    assert [ticket is not None for ticket in tickets] == [True, True, False]
    one.abandoned(tickets[0])
    assert [one.admit(30.0) is not None for _ in range(2)] == [True, False]


def test_without_a_hint_it_is_open_for_as_long_as_it_says():
    one = breaker(failures=1, open_for=0.25)
    one.failed(one.admit(0.0), 0.0)
    assert one.retry_after(0.0) == 0.25


def test_a_tenth_of_the_window_begins_the_next():
    one = breaker(failures=3, window=10.0)
    for at in (0.0, 1.0, 10.5, 10.5):
        one.failed(one.admit(at), at)
    assert one.state == "open", "the second was in a tenth of its own, which has not left"
