"""How caps are written, and what is refused."""

from __future__ import annotations

import pytest

from penstock import calendar, unlimited
from penstock.usage import Cap
from penstock.usage.caps import origins, plain_caps, read_cap, read_caps, read_plain_caps


@pytest.mark.parametrize(
    ("text", "cap"),
    [
        ("100/day", Cap(100, "day")),
        (" 2M per month ", Cap(2_000_000, "month")),
        ("$20.50/week", Cap(20.5, "week")),
        ("1_000/hour", Cap(1_000, "hour")),
        ("0/day", Cap(0, "day")),
        (Cap(5, "day"), Cap(5, "day")),
    ],
)
def test_a_cap_is_written_as_people_say_it(text, cap):
    assert read_cap(text) == cap


def test_the_time_zone_is_that_of_the_texts_and_a_limit_has_its_own():
    caps = read_caps({"tokens": ["5k/day", calendar(9, "month", "Asia/Tokyo")], "requests": unlimited}, "Europe/Berlin")
    assert caps == {"tokens": (Cap(5_000, "day", "Europe/Berlin"), Cap(9, "month", "Asia/Tokyo")), "requests": ()}
    assert read_plain_caps(plain_caps(caps)) == caps


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("-1/day", r"requests: cannot read '-1/day' as a cap: write it like \"100/day\""),
        ("10/fortnight", r"periods: minute, hour, day, week, month"),
        ("ten/day", "cannot read"),
        (10, "cannot read 10 as a cap"),
        ("9" * 5_000 + "/day", "cannot read"),
        (["1/day", "2/day"], "there are two caps for one period: 1 a day, 2 a day"),
    ],
)
def test_what_is_no_cap_is_refused_by_its_unit(given, words):
    with pytest.raises(ValueError, match=words):
        read_caps({"requests": given})


@pytest.mark.parametrize("amount", [-1, float("nan"), float("inf"), True, "5"])
def test_an_amount_is_a_number_of_units(amount):
    with pytest.raises(ValueError, match="a cap must be a finite number of units, 0 or more"):
        Cap(amount, "day")


def test_an_unknown_time_zone_is_said():
    with pytest.raises(ValueError, match="unknown time zone 'Mars/Base'"):
        read_caps({"requests": "1/day"}, "Mars/Base")


def test_a_unit_is_a_word():
    with pytest.raises(ValueError, match="a unit must be a word"):
        read_caps({"a b": "1/day"})


def test_a_new_cap_goes_on_from_the_same_period_or_a_shorter_one():
    """What was used today was used this month too; what was used this month was not all used today."""
    day, week, month, tokyo = (Cap(5, period).limit("tokens") for period in ("day", "week", "month", "day"))
    day_of_tokyo = Cap(5, "day", "Asia/Tokyo").limit("tokens")
    before = [("tokens", day), ("tokens", week), ("requests", month)]
    after = [("tokens", month), ("tokens", tokyo), ("tokens", day_of_tokyo), ("requests", day), ("requests", month)]
    assert origins(before, after) == [1, 0, 0, -1, 2]
