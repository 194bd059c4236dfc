"""Signal handlers that strike while keys are put away, swept or materialised: what a key has used is kept."""

from __future__ import annotations

import gc
from contextlib import suppress

import pytest

from penstock import Keyed, Rate, RateLimited
from tests.keyed.looking import level
from tests.limiter.interrupts import every_point, raise_interrupted

pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.usefixtures("quick_collections"),
]

KEYS = ["alice", "bob"]


class Users:
    """Some keys, and how often each was granted."""

    def __init__(self):
        self.limits = Keyed(requests=Rate(1_000, 1e9))
        self.granted = dict.fromkeys(KEYS, 0)
        self.possibly = dict.fromkeys(KEYS, 0)  # by a call that a handler has ended
        self.use_all()

    def use_all(self):
        for key in KEYS:
            self.use(key)

    def use(self, key):
        with suppress(RateLimited):  # as it came in the middle of a decision
            self.possibly[key] += 1
            self.limits[key].acquire_nowait()
            self.granted[key] += 1

    def wrong(self):
        gc.collect(0)
        found = []
        for key in KEYS:
            used = 1_000 - round(level(self.limits[key]))
            if not self.granted[key] <= used <= self.possibly[key]:
                found.append(f"{key}: {self.granted[key]} granted, {used} counted")
        return found


def look_through(users):
    """Use another key until all that are put away have been looked at."""
    for _ in range(16):
        users.limits["another"]


def materialise(users):
    for key in KEYS:
        users.limits[key].statistics()


def put_away(users):
    materialise(users)
    look_through(users)


def use_materialised(users):
    limiter = users.limits["alice"]
    limiter.pause(0)
    users.use("alice")


WAYS = [look_through, materialise, put_away, use_materialised]


@pytest.mark.parametrize("way", WAYS)
def test_what_a_handler_uses_of_keys_is_counted_whatever_it_interrupts(way):
    """The handler found no state for a key that was being looked at, so it had a full bucket; or it broke that call."""
    found, points = every_point(Users.use_all, Users, way, Users.wrong)
    assert points > 20
    assert found == {}


@pytest.mark.parametrize("way", WAYS)
def test_a_handler_that_raises_forgets_nothing_that_was_used(way):
    found, points = every_point(lambda _: raise_interrupted(), Users, way, Users.wrong)
    assert points > 20
    assert found == {}
