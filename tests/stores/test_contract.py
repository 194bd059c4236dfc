"""One suite on every store."""

from __future__ import annotations

import threading

import pytest

from penstock._core.operations import ACQUIRE
from penstock.errors import StoreError
from penstock.limits import per_second
from penstock.stores import RedisStore, SQLiteStore
from penstock.stores.contract import Batch, Terms
from penstock.testing.store_contract import StoreContract
from tests.stores.in_memory import RowsInMemory

PATIENT = {"timeout": 10.0}
"""For a server on a machine that does much else: the suite asks what a store answers, not how fast."""


class TestMemory(StoreContract):
    @pytest.fixture
    def make_store(self):
        rows, lock = {}, threading.Lock()
        return lambda **options: RowsInMemory(rows, lock, **options)


class TestSQLite(StoreContract):
    @pytest.fixture
    def make_store(self, tmp_path):
        return lambda **options: SQLiteStore(tmp_path / "limits.db", **options)


class TestRedis(StoreContract):
    @pytest.fixture
    def make_store(self, redis, prefix):
        return lambda **options: RedisStore(redis, prefix=prefix, **PATIENT, **options)


class TestValkey(StoreContract):
    @pytest.fixture
    def make_store(self, valkey, prefix):
        return lambda **options: RedisStore(valkey, prefix=prefix, **PATIENT, **options)


class TestCluster(StoreContract):
    @pytest.fixture
    def make_store(self, cluster, prefix):
        return lambda **options: RedisStore(cluster, prefix=prefix, group=lambda name: "all", **PATIENT, **options)


class TestTLS(StoreContract):
    @pytest.fixture
    def make_store(self, tls, prefix):
        return lambda **options: RedisStore(tls, prefix=prefix, **PATIENT, **options)


@pytest.mark.parametrize("kind", ["SQLite", "Valkey", "Cluster"])
def test_names_are_listed_by_how_they_begin(kind, request, tmp_path, prefix):
    """Of one store, with odd characters; and a store that was made once more, by its address, has the same ones."""
    options = {"prefix": prefix, **PATIENT, **({"group": _all} if kind == "Cluster" else {})}
    store = (
        SQLiteStore(tmp_path / "x.db")
        if kind == "SQLite"
        else RedisStore(request.getfixturevalue(kind.lower()), **options)
    )
    again = store.another()
    for name in ("a/é*", "a/b", "a?b", "b/c", "A/b"):
        store.exchange([name], lambda _rows, _now: [(("terms", b"row"), 60.0)])
    assert again.names("a/") == ["a/b", "a/é*"]
    assert again.names("a?") == ["a?b"]
    assert again.names("c") == []
    terms = Terms("z", {"requests": (per_second(1),)}, 60.0)
    store.decide(Batch([terms], [ACQUIRE, 0.0, 1.0, 1.0, 0.0, 1.0], 5.0, 1, 1e15))
    assert again.names("") == ["A/b", "a/b", "a/é*", "a?b", "b/c", "z"]
    for each in (store, again):
        each.disconnect()


def _all(_name):
    return "all"


def test_a_store_that_cannot_list_says_so():
    with pytest.raises(StoreError, match=r"give RowsInMemory a method names\(prefix\)"):
        RowsInMemory({}, threading.Lock()).names("a")
