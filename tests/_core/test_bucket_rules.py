"""The rules of buckets that are seldom met: late turns, what is packed, and words of servers that say the same."""

from __future__ import annotations

import pytest

from penstock import Rate
from penstock._core.bucket import Bucket


@pytest.mark.parametrize(("burst", "seconds"), [(1, 0.075), (1.5, 0.0375), (2, 0), (50, 0)])
def test_what_a_late_turn_makes_up_for_is_a_part_of_what_is_lacking_to_two_units(burst, seconds):
    assert Bucket(Rate(10, 1, burst)).catch_up == pytest.approx(seconds)


def test_what_was_given_back_and_rounded_away_is_packed_along_and_nothing_else_is():
    bucket = Bucket(Rate(1, 1, 10))
    receipt = bucket.charge(5, 100.0)
    assert bucket.pack() == 105.0
    bucket.give_back(5, receipt, 100.0)
    other = Bucket(Rate(1, 1, 10))
    assert bucket.pack() == (105.0, 5.0, 0.0)
    assert other.idle_as(bucket.pack(), 100.0)
    assert not other.idle_as((106.0, 5.0, 0.0), 100.0)
    other.charge(0.1, 100.0)
    assert other.pack() == (100.1, 0.0, other.rounding)
    assert other.rounding


def test_two_answers_that_say_the_same_lower_the_level_once():
    """The answer to the second call was given after that to the first, and counts what that has counted."""
    bucket = Bucket(Rate(1, 1, 100))
    first, second = bucket.charge(10, 1_000.0), bucket.charge(10, 1_000.0)
    bucket.lower_to(bucket.level_after(50, first, 1_000.0), 1_000.0)
    assert bucket.level(1_000.0) == 40
    assert bucket.level_after(40, second, 1_000.0) == 40
    bucket.lower_to(39.5, 1_000.0)
    assert bucket.level(1_000.0) == 39.5
    nothing = bucket.charge(0, 1_000.0)
    assert bucket.level_after(20, nothing, 1_000.0) == 20, "what was lowered before a call is in its answer"


def test_of_many_words_of_servers_the_oldest_is_forgotten():
    bucket = Bucket(Rate(1, 1, 1_000))
    receipt = bucket.charge(1, 1_000.0)
    bucket.lower_to(994, 1_000.0)
    for level in range(993, 993 - 64, -1):
        assert bucket.level_after(999, receipt, 1_000.0) == min(999, level + 1)
        bucket.lower_to(level, 1_000.0)
    assert bucket.level_after(900, receipt, 1_000.0) == 900 - 5  # of 69 lowered by words, 64 are known as such
