"""What a signal handler cuts short in front of a store is given back all the same."""

from __future__ import annotations

import gc
from contextlib import closing
from itertools import count

import pytest

from penstock import Limiter, RateLimited, in_flight
from penstock.stores import SQLiteStore
from tests.limiter import interrupts
from tests.limiter.interrupts import every_point, raise_interrupted

pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.usefixtures("quick_collections"),
]

NUMBERS = count()


def one_place_in_the_store(store):
    return Limiter(requests="100k/s", calls=in_flight(1), name=f"n{next(NUMBERS)}", store=store)


def one_place_in_this_process(store):
    return Limiter(requests="100k/s", name=f"n{next(NUMBERS)}", store=store) & Limiter(calls=in_flight(1))


def enter(limiter):
    with limiter():
        pass


def cancel(limiter):
    with limiter() as permit:
        permit.cancel()


@pytest.mark.parametrize("use", [enter, cancel])
@pytest.mark.parametrize("make", [one_place_in_the_store, one_place_in_this_process])
def test_a_handler_that_raises_at_any_point_leaves_no_place_taken(tmp_path, monkeypatch, make, use):
    def is_still_taken(limiter):
        gc.collect(0)
        try:
            with limiter(max_wait=10):
                return None
        except RateLimited as error:
            return str(error)

    monkeypatch.setattr(interrupts, "_OURS", ("_backends/shared/", "_backends/mixed.py", "_backends/local.py"))
    with closing(SQLiteStore(tmp_path / "x.db")) as store:
        found, points = every_point(lambda _: raise_interrupted(), lambda: make(store), use, is_still_taken)
    assert points > 20
    assert found == {}
