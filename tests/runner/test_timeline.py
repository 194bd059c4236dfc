"""How a run went over time: the sums are right however long it was, and the report shows when nothing went on."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from penstock import Limiter, per_minute
from penstock.runner.histogram import Histogram
from penstock.runner.report import render
from penstock.runner.summary import Counts
from penstock.runner.timeline import MOST_LIMITS, MOST_SPANS, Timeline
from penstock.testing import manual_clock

TOKENS = ("m", "tokens")


@pytest.fixture
def time():
    with manual_clock() as clock:
        yield clock


def begun(time, **groups):
    counts = Counts()
    counts.began = time.now()
    return SimpleNamespace(counts=counts, groups=groups, outage=SimpleNamespace(since=None))


def lived(run, timeline, time, seconds, *, answers=0, tokens=0, dollars=0.0):
    """Let a second after the other pass, each with so much."""
    for _ in range(seconds):
        time.advance(1)
        run.counts.sent += answers
        run.counts.answered += answers
        run.counts.dollars += dollars
        run.counts.spent[TOKENS] = run.counts.spent.get(TOKENS, 0.0) + tokens
        timeline.look(run)


def test_a_long_run_is_kept_in_as_few_spans_as_a_short_one_and_nothing_is_lost(time):
    run, timeline = begun(time), Timeline()
    lived(run, timeline, time, 3_000, answers=2, tokens=7)
    assert MOST_SPANS / 2 <= len(timeline.spans) <= MOST_SPANS
    assert sum(span.seconds for span in timeline.spans) == pytest.approx(3_000)
    total = timeline.total()
    assert (total.sent, total.answered) == (6_000, 6_000)
    assert total.spent == {TOKENS: pytest.approx(21_000)}


def test_a_limit_is_shown_by_the_share_that_was_used_of_it(time):
    group = SimpleNamespace(
        endpoint=SimpleNamespace(limiter=Limiter(tokens="60/min")), limits={"tokens": (per_minute(60),)}
    )
    run, timeline = begun(time, m=group), Timeline()
    lived(run, timeline, time, 60, tokens=0.5)
    ((limit, shares),) = timeline.limits()
    assert limit == ("m", "tokens", "60/min")
    seen = [share for share in shares if share is not None]
    assert seen == pytest.approx([0.5] * len(seen))
    assert len(seen) > 50


def test_so_many_limits_are_shown_and_no_more(time):
    """Where each model has its own, there may be thousands."""
    limiter, limits = Limiter(tokens="60/min"), {"tokens": (per_minute(60),)}
    group = SimpleNamespace(endpoint=SimpleNamespace(limiter=limiter), limits=limits)
    run, timeline = begun(time, **{f"model-{number}": group for number in range(100)}), Timeline()
    lived(run, timeline, time, 2)
    assert len(list(timeline.limits())) == MOST_LIMITS


@pytest.mark.parametrize(
    ("times", "share", "found"),
    [([], 0.5, 0.0), ([0.0005], 0.99, 0.0005), ([1, 1, 1, 9], 0.5, 1), ([1, 1, 1, 9], 0.99, 9), ([1e6], 0.5, 1e6)],
)
def test_a_quantile_is_at_most_a_fifth_too_long(times, share, found):
    seen = Histogram()
    for seconds in times:
        seen.add(seconds)
    assert found <= seen.quantile(share) <= 1.2 * found
    assert sum(count for _, count in seen.bins()) == len(times)


@pytest.mark.parametrize(("seconds", "words"), [(30, "30.2 s"), (600, "10 min"), (36_000, "10 h")])
def test_the_axis_of_time_reads_as_people_say_it(time, seconds, words):
    run, timeline = begun(time), Timeline()
    lived(run, timeline, time, 1)
    time.advance(seconds - 1)
    timeline.look(run)
    assert f">{words}</text>" in render({"stopped": None}, run.counts, timeline, title="rows")


def test_the_report_shows_when_all_waited_when_the_server_was_away_and_what_it_cost(time):
    limiter = Limiter(tokens="60/min")
    group = SimpleNamespace(endpoint=SimpleNamespace(limiter=limiter), limits={})
    run, timeline = begun(time, m=group), Timeline()
    lived(run, timeline, time, 10, answers=1, dollars=0.25)
    before = render({"stopped": None}, run.counts, timeline, title="rows")
    limiter.pause(5)
    lived(run, timeline, time, 4)
    run.outage.since = time.now()
    lived(run, timeline, time, 4)
    page = render({"stopped": None, "dollars": 2.5}, run.counts, timeline, title="rows")
    for picture in "Paused by the server", "Server away", "Cost":
        assert (picture in before, picture in page) == (False, True)
    assert sum(span.paused for span in timeline.spans) == pytest.approx(4)
    assert sum(span.away for span in timeline.spans) == pytest.approx(4)
