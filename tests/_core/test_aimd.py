"""How much of a promise is used: plain numbers. What `Adaptive` makes of it is in test_adaptive.py."""

from __future__ import annotations

import math

import pytest

from penstock._core.aimd import Aimd


def cut_in_half() -> Aimd:
    """Half of the promise, cut at 0; 1 % of the promise is regained per second of use."""
    aimd = Aimd(0.5, 5.0, 0.01, 0.05)
    assert aimd.overloaded(0.0)
    return aimd


def test_calls_that_overlap_are_one_span_of_use():
    """A call that ends while another runs does not end the use."""
    aimd = cut_in_half()
    aimd.begin(0.0)
    aimd.begin(0.0)
    aimd.end(1.0, succeeded=True)
    aimd.begin(21.0)
    aimd.end(21.0, succeeded=True)
    assert aimd.share == pytest.approx(0.71)
    aimd.end(22.0, succeeded=True)
    assert aimd.share == pytest.approx(0.72)


def test_an_idle_time_counts_as_one_second_of_use():
    aimd = cut_in_half()
    aimd.begin(10.0)
    aimd.end(12.0, succeeded=True)
    assert aimd.share == pytest.approx(0.53)
    aimd.begin(12.5)
    aimd.end(12.5, succeeded=True)
    assert aimd.share == pytest.approx(0.535), "a gap that is shorter counts as long as it was"
    aimd.begin(60.0)
    aimd.end(60.0, succeeded=True)
    assert aimd.share == pytest.approx(0.545), "idle again, as often as it comes"


def test_no_use_makes_more_of_the_promise_than_all_of_it():
    aimd = cut_in_half()
    aimd.begin(0.0)
    aimd.end(1_000.0, succeeded=True)
    assert aimd.share == 1.0


def test_time_in_which_calls_failed_is_credited_with_the_next_that_succeeds_unless_it_was_too_much():
    aimd = cut_in_half()
    aimd.begin(0.0)
    aimd.begin(0.0)
    aimd.end(2.0, succeeded=False)
    assert aimd.share == 0.5
    assert not aimd.overloaded(3.0)
    aimd.end(4.0, succeeded=True)
    assert aimd.share == pytest.approx(0.51)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("cut", 0), ("cut", 1), ("cut", math.nan), ("cooldown", -0.1), ("cooldown", math.inf), ("grow", 0),
        ("grow", math.inf), ("floor", 0), ("floor", 1.01),
    ],
)  # fmt: skip
def test_ranges_end_where_they_say(name, value):
    right = {"cut": 0.5, "cooldown": 5.0, "grow": 0.01, "floor": 0.05}
    said = {
        "cut": "above 0 and below 1: what is left of the rate after a cut",
        "cooldown": "a finite number of seconds, 0 or more",
        "grow": "above 0: the share of the promise regained per second of use",
        "floor": "above 0 and at most 1: the smallest share of the promise",
    }
    with pytest.raises(ValueError) as caught:
        Aimd(**right | {name: value})
    assert str(caught.value) == f"{name}={value!r} must be {said[name]}"


def test_ends_that_belong_to_their_range():
    aimd = Aimd(0.5, 0, 0.01, 1)
    assert aimd.overloaded(0.0)
    assert aimd.overloaded(0.0)
    assert aimd.share == 1
