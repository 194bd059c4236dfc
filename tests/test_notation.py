"""Limits are read as people write them; what has several meanings is refused, and the message says how to write it."""

from __future__ import annotations

import time

import pytest

from penstock import Keyed, Limiter, Rate, unlimited
from penstock.cli.limits import parse_limits
from penstock.cli.terminal import Fault
from penstock.limits import parse
from penstock.simulator import Simulation
from penstock.usage.caps import read_cap


@pytest.mark.parametrize(
    ("text", "amount", "seconds"),
    [
        ("3500/min", 3_500, 60),
        ("1,000/min", 1_000, 60),
        ("1,234,567 per day", 1_234_567, 86_400),
        ("1_000/min", 1_000, 60),
        ("90k/min", 90_000, 60),
        ("90K/min", 90_000, 60),
        ("1.5M/day", 1_500_000, 86_400),
        ("2 million a day", 2_000_000, 86_400),
        ("1e6/day", 1_000_000, 86_400),
        ("10/hr", 10, 3_600),
        ("10/hrs", 10, 3_600),
        ("5 an hour", 5, 3_600),
        ("10 per minute", 10, 60),
        ("10 / 1 min", 10, 60),
        ("10/Min", 10, 60),
        ("10/min.", 10, 60),
        ("100 every 5 seconds", 100, 5),
        ("2/500ms", 2, 0.5),
        ("10/wk", 10, 604_800),
    ],
)
def test_usual_ways_of_writing_a_rate_are_read(text, amount, seconds):
    assert parse(text) == Rate(amount, seconds)
    assert Limiter(requests=text).limits["requests"] == (Rate(amount, seconds),)


def test_a_burst_may_have_thousands_too():
    assert parse("1,000/s, burst=1,500") == parse("1000/s burst 1.5k") == Rate(1_000, 1, burst=1_500)


def test_unlimited_is_read_in_any_case():
    assert parse("Unlimited") is unlimited


@pytest.mark.parametrize(
    ("text", "way_out"),
    [
        ("1,5/s", 'before decimals stands a point ("1.5")'),
        ("0,500/s", 'before decimals stands a point ("1.5")'),
        ("1234,567/min", 'a comma stands before three digits ("1,000"); before decimals stands a point ("1.5")'),
        ("1 000/min", 'thousands are written "1,000", "1_000" or "1000"'),
        ("1.000.000/day", 'thousands are written "1,000", "1_000" or "1000"'),
        ("1.5m/day", "M a million, G and B are 10⁹, and m would be a thousandth or a million"),
        ("10/M", 'M would be a minute or a month: write "min", or use calendar(…, "month")'),
        ("100/month", 'months differ in length: use calendar(…, "month"), or write "/30d"'),
        ("100 per year", 'years differ in length: write "/365d"'),
        ("3500 RPM", 'the keyword is the unit, and the period is written out, as in tokens="90k/min"'),
        ("90k tokens/min", 'the keyword is the unit, and the period is written out, as in tokens="90k/min"'),
        ("100/10s sliding", "a window is sliding(100, per=10), or by the clock calendar(100, 10); it has no burst"),
        (
            "100/10s sliding burst 5",
            "a window is sliding(100, per=10), or by the clock calendar(100, 10); it has no burst",
        ),
        (
            "100/10s burst 5 window",
            "a window is sliding(100, per=10), or by the clock calendar(100, 10); it has no burst",
        ),
        ("100/10s fixed", "a window is sliding(100, per=10), or by the clock calendar(100, 10); it has no burst"),
        ("3500", 'say per what time, as in "3500/min"; or in_flight(64) for calls at the same time'),
        ("fast", 'write it like "3500/min", "90k/min", "10/s burst 1" or "100/5s"'),
    ],
)
def test_what_has_several_meanings_is_refused_with_the_way_out(text, way_out):
    with pytest.raises(ValueError) as refused:
        parse(text)
    assert str(refused.value).startswith(f"cannot read {text!r} as a limit: ")
    assert str(refused.value).endswith(way_out)


@pytest.mark.parametrize("text", ["0/min", "1/0s", "1e400/day", "fast", "10/min burst 0"])
def test_a_limit_that_is_refused_is_named_by_its_unit(text):
    limiter = Limiter(tokens="10/s")
    for give in (
        lambda: Limiter(tokens=text),
        lambda: Limiter({"tokens": ["1/s", text]}),
        lambda: Keyed(tokens=text),
        lambda: limiter.reconfigure(tokens=text),
        lambda: Simulation(tokens=text),
    ):
        with pytest.raises(ValueError, match=r"^tokens: "):
            give()


def test_what_is_no_text_is_refused_by_its_value():
    with pytest.raises(ValueError, match="a limit is read from a string such as"):
        parse(3500)


@pytest.mark.parametrize(
    "text", ["9" * 100_000, "1,000" * 50_000, " " * 100_000, "1" + "_1" * 50_000 + "/", "/" * 9_999]
)
def test_a_text_of_any_length_is_refused_at_once(text):
    begin = time.perf_counter()
    with pytest.raises(ValueError, match="cannot read"):
        parse(text)
    assert time.perf_counter() - begin < 5  # a pattern that tries all ways takes longer than anybody waits


def test_the_command_line_reads_thousands_between_commas():
    limits = parse_limits("requests=1,000/min,tokens=1,500,000/day, burst 10,000,tokens=90K/hr")
    assert limits == {
        "requests": (Rate(1_000, 60),),
        "tokens": (Rate(1_500_000, 86_400, burst=10_000), Rate(90_000, 3_600)),
    }
    with pytest.raises(Fault, match=r'--limits: requests: cannot read .* before decimals stands a point \("1.5"\)'):
        parse_limits("requests=0,500/min")


@pytest.mark.parametrize("text", ["1,000/day", "1K/day", "1k a day", "$1,000 per day"])
def test_caps_of_users_are_read_alike(text):
    cap = read_cap(text)
    assert (cap.amount, cap.period) == (1_000, "day")
