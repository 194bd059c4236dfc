"""One suite on every store."""

from __future__ import annotations

import threading

import pytest

from penstock import clock
from penstock.stores import RedisStore, SQLiteStore, Store
from penstock.testing.store_contract import StoreContract


class RowsInMemory(Store):
    """The smallest store there is: a dict of one process."""

    def __init__(self, rows, lock, **options):
        super().__init__(**options)
        self.rows = rows
        self.row_lock = lock

    def exchange(self, names, decide):
        with self.row_lock:
            new = decide([self.rows.get(name) for name in names], float(int(clock.wall() * 1e6)))
            self.rows.update({name: row[0] for name, row in zip(names, new, strict=True) if row})


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
        return lambda **options: RedisStore(redis, prefix=prefix, **options)


class TestValkey(StoreContract):
    @pytest.fixture
    def make_store(self, valkey, prefix):
        return lambda **options: RedisStore(valkey, prefix=prefix, **options)


class TestCluster(StoreContract):
    @pytest.fixture
    def make_store(self, cluster, prefix):
        return lambda **options: RedisStore(cluster, prefix=prefix, group=lambda name: "all", **options)


class TestTLS(StoreContract):
    @pytest.fixture
    def make_store(self, tls, prefix):
        return lambda **options: RedisStore(tls, prefix=prefix, **options)
