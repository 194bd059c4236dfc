"""The public face, name by name: nothing comes in or goes out unnoticed."""

from __future__ import annotations

import contextlib
import inspect
import pydoc
import subprocess
import sys

import pytest

import penstock

NAMES = {
    # limits and limiters
    "Limiter", "Call", "turn", "Permit", "Keyed", "Adaptive", "Rate", "per_second", "per_minute", "per_hour", "per_day", "in_flight", "sliding", "calendar", "unlimited",
    "Limit", "Calendar", "InFlight", "Sliding", "Unlimited", "Meter", "Forecast", "Statistics", "LimitStatistics",
    # calls that fail
    "Retry", "Attempt", "Budget", "exponential", "constant", "retry_after",
    "Pipeline", "timeout", "fallback", "hedge", "circuit_breaker", "pausing",
    # many calls
    "Batcher", "amap",
    # what is raised
    "PenstockError", "RateLimited", "QueueFull", "CostError", "Unsatisfiable", "MissingUnit", "UnknownUnit", "WouldBlockEventLoop",
    "ConfigurationConflict", "StoreError", "AttemptTimeout", "CircuitOpen",
}  # fmt: skip


def test_the_public_names_are_these():
    assert set(penstock.__all__) == NAMES


def test_every_public_name_is_there_and_listed_once():
    assert len(set(penstock.__all__)) == len(penstock.__all__)
    assert [name for name in penstock.__all__ if not hasattr(penstock, name)] == []


def test_a_name_that_is_not_ours_is_refused_as_by_any_module():
    with pytest.raises(AttributeError, match="module 'penstock' has no attribute 'Limitr'"):
        penstock.Limitr  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'Limitr' from 'penstock'"):
        from penstock import Limitr  # noqa: F401


def test_a_star_brings_the_public_names_and_nothing_else():
    program = "from penstock import *; print(*(name for name in globals() if not name.startswith('_')))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == NAMES


def test_a_name_is_loaded_when_it_is_asked_for_and_not_before():
    """A program that only retries loads no limiter; and an editor that asks for all names loads nothing."""
    program = (
        "import sys, penstock; dir(penstock), penstock.__all__; first = 'penstock.retry' in sys.modules;"
        "penstock.Retry; print(first, 'penstock.retry' in sys.modules, 'penstock.limiter' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True", "False"]


def test_no_signature_shows_an_object_at_an_address():
    """`help(Retry)` says `hint=retry_after`, as one writes it."""
    shown = {}
    for name in NAMES:
        value = getattr(penstock, name)
        if callable(value):
            with contextlib.suppress(TypeError, ValueError):  # aliases and protocols have none
                shown[name] = str(inspect.signature(value))
    assert {name: text for name, text in shown.items() if "<" in text} == {}
    assert "backoff: 'Backoff' = exponential()" in shown["Retry"]
    assert "hint: 'Callable[[Exception], Seconds | None] | None' = retry_after" in shown["Retry"]


def test_help_shows_every_public_name():
    text = pydoc.plain(pydoc.render_doc(penstock))
    assert [name for name in NAMES if name not in text] == []
    assert set(dir(penstock)) >= NAMES
