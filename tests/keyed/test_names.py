"""`Keyed` of one name share what their keys have used, whether or not one of them is alive."""

from __future__ import annotations

import gc

import pytest

from penstock import ConfigurationConflict, Keyed, Limiter, RateLimited, calendar, in_flight, sliding, testing
from penstock.stores import MemoryStore


@pytest.fixture
def at():
    with testing.manual_clock() as clock:
        yield clock


def granted(make, tries=5):
    """How many of so many calls go, each on a limiter that is made for it."""
    count = 0
    for _ in range(tries):
        try:
            make().acquire_nowait(requests=1)
        except RateLimited:
            continue
        count += 1
        gc.collect()
    return count


@pytest.mark.parametrize(
    "limits",
    [
        "2/min",
        ["10/s", "2/h"],
        sliding(2, 60),
        calendar(2, "day"),
        in_flight(2, ttl=60),
        {"alice": "2/min"}.get,
    ],
    ids=["bucket", "two", "sliding", "calendar", "places", "function"],
)
@pytest.mark.parametrize("options", [{}, {"max_queue": 9}, {"on_event": None}], ids=["plain", "queue", "hook"])
def test_keys_of_a_name_that_is_made_anew_for_every_call_count_on(at, limits, options):
    """With the same options each time, and with a hook of its own each time."""
    store = MemoryStore()

    def make():
        hook = {"on_event": lambda event: None} if "on_event" in options else options
        if callable(limits):
            return Keyed(lambda key: {"requests": limits(key)}, name="anew", store=store, **hook)["alice"]
        return Keyed(requests=limits, name="anew", store=store, **hook)["alice"]

    assert granted(make) == 2
    assert granted(lambda: Keyed(requests="1/min", name="another", store=store)["alice"]) == 1
    assert granted(lambda: Keyed(requests="1/min", store=store)["alice"]) == 5  # no name: one of its own each time


def test_keyed_of_one_name_may_have_options_of_their_own(at):
    seen = []
    one = Keyed(requests="3/min", name="both")
    two = Keyed(requests="3/min", name="both", on_event=seen.append, enforce=False)
    one["alice"].acquire_nowait()
    assert seen == []
    two["alice"].acquire_nowait(requests=2)
    assert len(seen) == 1
    assert (granted(lambda: one["alice"]), granted(lambda: one["bob"])) == (0, 3)
    two["alice"].acquire_nowait()  # it only counts


def test_other_limits_of_a_name_are_refused_while_a_keyed_of_it_lives_and_taken_over_afterwards(at):
    def make(*limits):
        return Keyed(requests=[*limits], name="changed")

    one = make("2/min")
    limiter, permit = one["alice"], one["bob"].acquire_nowait()
    with pytest.raises(ConfigurationConflict, match='two Keyed are named "changed" but have different limits'):
        make("3/min")
    del one
    for _ in range(2):  # a key's limiter and a permit use the limits, too
        with pytest.raises(ConfigurationConflict, match="requests=2/min there, requests=3/min here"):
            make("3/min")
        limiter = None
    del permit, limiter
    gc.collect()
    assert granted(lambda: make("3/min")["bob"]) == 2
    assert granted(lambda: make("4/min", "100/h")["bob"]) == 1
    assert granted(lambda: make("4/min", "100/h")["alice"]) == 4
    assert granted(lambda: Keyed(lambda key: {"requests": "9/min"}, name="changed")["bob"], 9) == 5
    Limiter(requests="1/s", name="changed")  # the names of limiters are others


def test_a_name_is_forgotten_when_its_keys_are_whole(at):
    store = MemoryStore()
    for number in range(20):
        per_user = Keyed(requests=sliding(2, 60), name=f"keys {number}", store=store)
        for key in range(number):
            per_user[key].acquire_nowait()
    held = Keyed(requests=in_flight(1), name="held", store=store)["alice"].acquire_nowait()
    del per_user
    at.advance(3600)
    for _ in range(200):
        Limiter(name="other", requests="1/s", store=store)
    assert [name for kind, name in store._names if kind == "Keyed"] == ["held"]
    assert granted(lambda: Keyed(requests=in_flight(1), name="held", store=store)["alice"]) == 0
    held.close()
    assert granted(lambda: Keyed(requests=in_flight(1), name="held", store=store)["alice"], 1) == 1
