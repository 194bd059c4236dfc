"""A client that is told no limits, at windows of every length, however their answers tell when more is back."""

from __future__ import annotations

import pytest

from benchmarks.windows import run


@pytest.mark.parametrize("told", ["duration", "date", "HTTP date"])
@pytest.mark.parametrize(
    ("kind", "per", "latency"),
    [
        ("window", 300.0, 2.0),
        ("window, first", 60.0, 0.1),
        ("sliding, next", 60.0, 0.1),
        ("sliding, next", 300.0, 2.0),
    ],
)
def test_in_whatever_form_a_reset_is_told_the_window_is_used(kind, per, latency, told):
    result = run(kind, per, told, latency, seed=1)
    assert result.used >= 0.9
    assert result.refused <= 15  # of a window that slides, before it is known to


@pytest.mark.parametrize("seed", range(3))
def test_a_window_that_slides_is_recognized_though_ways_differ(seed):
    """As those of the first requests do, which open connections; only what is left is told."""
    result = run("sliding, next", 10.0, "nothing", 0.1, seed=seed, way=0.15)
    assert result.used >= 0.9
    assert result.refused <= 15


@pytest.mark.parametrize("latency", [2.0, 20.0])
@pytest.mark.parametrize("kind", ["bucket", "small bucket"])
def test_a_bucket_that_refills_slower_than_once_a_minute_is_found_out_by_its_refusals(kind, latency):
    """No answer tells the period, and one a minute was believed: up to 699 of 1,000 requests were refused."""
    result = run(kind, 300.0, "nothing", latency, seed=1)
    assert result.used >= 0.9
    assert result.refused <= 15
