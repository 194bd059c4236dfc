"""The share of its limits that a run uses while others use the account too."""

from __future__ import annotations

from penstock.runner.throttle import CUT, Throttle


def after_refusals(count):
    """A throttle that was refused so often, two seconds apart, at the end of that."""
    throttle = Throttle()
    for second in range(0, 2 * count, 2):
        assert throttle.refused(float(second))
    return throttle, 2.0 * (count - 1)


def test_a_refusal_cuts_the_share_and_those_that_were_under_way_with_it_do_not():
    throttle, now = after_refusals(1)
    assert not throttle.refused(now + 0.9)
    assert throttle.share == CUT
    assert throttle.refused(now + 1.0)
    assert throttle.share == CUT**2


def test_a_refusal_that_stays_alone_is_undone_after_three_seconds():
    """It cost as much as an account that others use."""
    throttle, now = after_refusals(1)
    throttle.answered(now + 2.5)
    assert CUT < throttle.share < CUT + 0.03
    assert throttle.answered(now + 3.0)
    assert throttle.share == 1
    throttle, now = after_refusals(2)
    throttle.answered(now + 3.0)
    assert throttle.share < CUT


def test_however_often_it_is_refused_a_share_remains():
    throttle, _ = after_refusals(100)
    assert 0 < throttle.share < 0.05


def test_while_others_are_there_it_rises_slowly_and_all_is_used_soon_after_they_are_gone():
    throttle, now = after_refusals(3)
    shares = []
    for step in range(1, 41):
        throttle.answered(now + step / 2)
        shares.append(throttle.share)
    assert shares[9] < CUT**3 + 0.07  # after 5 s
    assert shares == sorted(shares)
    assert shares[-1] == 1  # after 20 s
