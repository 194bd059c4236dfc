"""What a store must keep when it is asked directly, by `Store.decide` and `Store.change`."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import pytest

from penstock import per_second
from penstock._core import operations as codes
from penstock.limits import Limit
from penstock.stores.contract import Batch, Store, Terms
from penstock.testing.store_contract._stores import LATE, StoreTests


class DecisionContract(StoreTests):
    """A batch of requests is decided atomically, by the limits in the store and by the store's clock."""

    def _terms(self, *limits: Limit, name: str = "contract", place_ttl: float = 60.0) -> Terms:
        return Terms(name, {f"unit{index}": (limit,) for index, limit in enumerate(limits)}, place_ttl)

    def _decide(self, store: Store, terms: Terms, *operations: float, owner: float = 7.0) -> Any:
        self._number = getattr(self, "_number", 0) + 1
        return store.decide(Batch([terms], [float(x) for x in operations], owner, self._number, time.time() * 1e6))

    def test_a_full_bucket_of_ten_grants_ten(self, stores: Callable[..., Store]) -> None:
        """Not nine and not eleven, however they are spread over calls."""
        terms = self._terms(per_second(1e-3 * 10, burst=10))
        request = (codes.ACQUIRE, 0, 1, 1, 0, 1)
        store = stores()
        first = self._decide(store, terms, *request * 4)
        second = self._decide(store, terms, *request * 7)
        waits = [first.verdicts[2 * i] for i in range(4)] + [second.verdicts[2 * i] for i in range(7)]
        assert waits[:10] == [0.0] * 10
        assert -1 - waits[10] == pytest.approx(100, rel=0.05)

    def test_state_is_shared_and_outlives_the_store_object(self, stores: Callable[..., Store]) -> None:
        """What one used, the next finds used."""
        terms = self._terms(per_second(1e-3, burst=5))
        one = stores()
        self._decide(one, terms, codes.ACQUIRE, 0, 1, 1, 0, 5)
        one.close()
        reply = self._decide(stores(), terms, codes.ACQUIRE, 0, 1, 1, 0, 1, owner=8.0)
        assert reply.verdicts[0] < -1

    def test_other_terms_under_the_same_name_are_found_out(self, stores: Callable[..., Store]) -> None:
        """And nothing is decided."""
        store = stores()
        mine, theirs = self._terms(per_second(5)), self._terms(per_second(6))
        self._decide(store, mine, codes.ACQUIRE, 0, 1, 1, 0, 1)
        reply = self._decide(store, theirs, codes.ACQUIRE, 0, 1, 1, 0, 1)
        assert reply.others == {"contract": mine.text}
        assert list(reply.verdicts) == []

    def test_the_time_of_the_store_does_not_stand_still(self, stores: Callable[..., Store]) -> None:
        """It is in microseconds, and near the wall clock."""
        store, terms = stores(), self._terms(per_second(5))
        before = self._decide(store, terms).now
        time.sleep(0.01)
        after = self._decide(store, terms).now
        assert 0.01e6 <= after - before < LATE * 1e6
        assert abs(after / 1e6 - time.time()) < 3600
        assert after == math.floor(after)

    def test_a_store_that_shows_rows_shows_what_was_written_last(self, stores: Callable[..., Store]) -> None:
        """Whichever process wrote it."""
        one, other = stores(), stores()
        terms = self._terms(per_second(1e-3, burst=5))
        seen = []
        for store in (one, other, one):
            self._decide(store, terms, codes.ACQUIRE, 0, 1, 1, 0, 1)
            seen.append((one.peek("contract"), other.peek("contract")))
        for mine, theirs in seen[1:]:
            assert mine == theirs
            assert (mine is not None) == one.shows
        assert len({mine and mine[1] for mine, _ in seen}) == (3 if one.shows else 1)
        assert one.peek("other") is None

    def test_changed_terms_keep_what_was_used(self, stores: Callable[..., Store]) -> None:
        """Counted for the new limits from then on."""
        store = stores()
        before, after = self._terms(per_second(1e-3, burst=10)), self._terms(per_second(1e-3, burst=20))
        self._decide(store, before, codes.ACQUIRE, 0, 1, 1, 0, 8)
        store.change(after)
        reply = self._decide(store, after)
        assert reply.states[1] == pytest.approx(8, abs=0.01)
