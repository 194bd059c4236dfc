"""The figures of a report: each from calls that a test wrote, by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta

import pytest

from penstock import Rate, per_minute
from penstock.llm.prices import Price
from penstock.usage import History
from penstock.usage.evidence import Spread, evidence_of, hour_at_most
from penstock.usage.report import as_csv, as_html, as_markdown
from tests.usage.recorded import MONDAY, recorded

MINUTE = timedelta(minutes=1)


@pytest.fixture
def evidence(tmp_path):
    """The evidence of a model, from calls that a function writes."""

    def evidence(write, model="m-1", **options):
        with History(recorded(tmp_path / "usage.db", write)) as history:
            return evidence_of(history, model, **options)

    return evidence


def test_percentiles_are_over_the_minutes_in_which_something_was_sent(evidence):
    """Twenty minutes of 1 to 20 requests, with idle ones between."""

    def write(recorder):
        for number in range(1, 21):
            recorder.call(MONDAY + 3 * number * MINUTE, tokens=10, count=number)

    found = evidence(write)
    assert found.requests == Spread(10, 19, 20)
    assert found.tokens == Spread(100, 190, 200)
    assert (found.totals.calls, len(found.minutes), found.totals.users) == (210, 20, 1)


def test_minutes_near_a_limit_are_counted_for_each(evidence):
    """Of a minute by itself; of an hour by all that was used in the hour before."""

    def write(recorder):
        recorder.limits(MONDAY, tokens=1_000, requests=100)
        for number, tokens in enumerate((899, 900, 1_100, 10)):
            recorder.call(MONDAY + number * MINUTE, tokens=tokens)

    assert [(near.unit, near.minutes) for near in evidence(write).near] == [("requests", 0), ("tokens", 2)]
    hourly = {"tokens": [Rate(3_200, 3_600)], "requests": [Rate(1, 1)]}
    assert [(near.unit, near.minutes) for near in evidence(lambda _: None, limits=hourly).near] == [
        ("requests", 0),
        ("tokens", 2),
    ]


def test_waits_429s_and_refusals_are_of_the_model_alone(evidence):
    def write(recorder):
        recorder.call(MONDAY, waited=2.5, count=2)
        recorder.call(MONDAY, status=429)
        recorder.call(MONDAY, status=500, user="bob")
        recorder.call(MONDAY, model="m-2", waited=50)
        recorder.refusal(MONDAY)

    totals = evidence(write).totals
    assert (totals.waited, totals.rejected, totals.failed, totals.refused, totals.users) == (5.0, 1, 1, 0, 2)


def test_ten_business_days_end_with_that_of_the_last_call_in_the_time_zone(evidence):
    """Monday 23:30 in UTC is Tuesday in Tokyo; a weekend is none."""

    def write(recorder):
        recorder.call(datetime(2026, 5, 2, 12, tzinfo=UTC), tokens=7)  # a Saturday
        recorder.call(datetime(2026, 5, 18, 23, 30, tzinfo=UTC), tokens=30)

    days = evidence(write, tz="Asia/Tokyo").days
    assert (len(days), days[0].day, days[-1].day) == (10, date(2026, 5, 6), date(2026, 5, 19))
    assert [day.totals.tokens for day in days] == [0] * 9 + [30]
    assert evidence(lambda _: None).days[-1].day == date(2026, 5, 18)


def test_days_of_which_nothing_is_known_are_no_days_of_nothing(evidence):
    """Before the ledger, or before what is asked for: their zeros were in the table."""

    def write(recorder):
        recorder.call(MONDAY + timedelta(hours=9, seconds=30), tokens=7)
        recorder.call(MONDAY + timedelta(days=9), tokens=30)

    days = evidence(write).days
    assert [(day.day - MONDAY.date()).days for day in days] == [0, 1, 2, 3, 4, 7, 8, 9]
    assert [day.totals.tokens for day in days] == [7, 0, 0, 0, 0, 0, 0, 30]
    assert (days[0].tokens.most, days[-1].tokens.most) == (7, 30)
    since = (MONDAY + timedelta(days=8, hours=12)).timestamp()
    assert [day.totals.tokens for day in evidence(lambda _: None, since=since).days] == [0, 30]
    assert evidence(lambda _: None, since=since).projections == ()


def test_a_day_that_a_country_left_out_is_none(evidence):
    """Samoa went from the 29th to the 31st of December 2011; the 30th was to be a Friday."""

    def write(recorder):
        for hour in (12, 4 * 24 + 12):
            recorder.call(datetime(2011, 12, 29, tzinfo=UTC) + timedelta(hours=hour))

    assert [day.day.day for day in evidence(write, tz="Pacific/Apia").days] == [29, 2, 3]


def growing(recorder):
    """Ten business days and the Friday before; the second five with twice the use of the first."""
    recorder.limits(MONDAY, tokens=1_600)
    recorder.call(MONDAY - timedelta(days=3), tokens=1)
    for number in range(14):
        day = MONDAY + timedelta(days=number)
        if day.weekday() < 5:
            recorder.call(day, tokens=100 if number < 7 else 200)


def test_growth_is_that_of_the_second_week_over_the_first_and_says_when_a_limit_is_reached(evidence):
    found = {each.unit: each for each in evidence(growing).projections}
    assert found["tokens"].growth == 2
    assert found["tokens"].peaks == ((4, 3_200), (8, 51_200), (12, 819_200))
    assert found["tokens"].reached_in == pytest.approx(3)  # 200, 400, 800, 1,600
    assert (found["requests"].growth, found["requests"].reached_in) == (1, None)


def test_growth_can_be_given_and_is_unknown_of_a_short_ledger(evidence):
    def write(recorder):
        recorder.limits(MONDAY, tokens=1_000, requests=1)
        recorder.call(MONDAY, tokens=500)

    assert evidence(write).projections == ()
    found = {each.unit: each.reached_in for each in evidence(lambda _: None, growth=0.9).projections}
    assert found == {"requests": 0, "tokens": math.inf}


def test_an_hour_at_the_full_limit_costs_limit_times_60_times_price(evidence):
    """The example of the guide: 325,000 tokens a minute at $0.02 per 1,000 are $390."""
    assert hour_at_most(325_000, 0.02 / 1_000) == pytest.approx(390)
    options = {"limits": {"tokens": [per_minute(325_000)]}, "price": Price(0.02 / 1_000, 0.0)}
    assert evidence(lambda recorder: recorder.call(MONDAY), **options).hour == pytest.approx((390, 390))
    assert evidence(lambda _: None, price=Price(1e-6, 2e-6)).hour is None


def test_what_the_ledger_has_no_price_for_costs_what_the_report_is_told_or_is_not_known(evidence):
    """A limiter tells no model, and `m-1` is on no list."""

    def write(recorder):
        recorder.call(MONDAY, tokens=40_000)
        recorder.call(MONDAY, tokens=9_000, status=429)  # which no service bills

    told = evidence(write, price=Price(0.02 / 1_000, 0.0))
    assert "| cost | $0.80 |" in as_markdown([told], "usage", "UTC")
    assert {row.split(",")[-1] for row in as_csv([told]).splitlines()[1:]} == {"0.8"}
    unknown = evidence(write)
    assert "| cost | not known: give --prices |" in as_markdown([unknown], "usage", "UTC")
    assert {row.split(",")[-1] for row in as_csv([unknown]).splitlines()[1:]} == {""}
    assert "$0.00" not in as_markdown([unknown], "usage", "UTC")


def test_a_model_without_calls_has_figures_of_nothing(evidence):
    found = evidence(lambda recorder: recorder.call(MONDAY), model="other")
    assert (found.minutes, found.days, found.projections, found.requests) == ((), (), (), Spread(0, 0, 0))


def test_a_report_of_a_model_without_calls_has_pictures_of_nothing(evidence):
    found = evidence(lambda recorder: recorder.call(MONDAY), model="other")
    page = as_html([found], "usage", "UTC")
    assert all(f"<title>{title} a minute: at most 0" in page for title in ("Tokens", "Requests"))
    assert "The last" not in page


def test_a_report_says_how_many_events_are_missing(evidence):
    found = evidence(lambda recorder: recorder.call(MONDAY))
    assert "missing" not in as_markdown([found], "usage", "UTC")
    assert "3 events are missing, which came while the disk was slow" in as_markdown(
        [replace(found, dropped=3)], "usage", "UTC"
    )
