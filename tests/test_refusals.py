"""What is wrong is said in one sentence, with what was given and the way out."""

from __future__ import annotations

import re
import sqlite3

import pytest

import penstock
from penstock import CostError, Keyed, Limiter, StoreError, in_flight
from penstock.events import Granted
from penstock.stores import SQLiteStore
from penstock.usage import Cap, History, Ledger, LedgerError, Quotas


def items():
    yield 1


def of_one(prompt):
    return prompt


def of_none():
    pass


REFUSED = {
    "a cost given twice": (
        lambda: Limiter(tokens="5/s")({"tokens": 1}, tokens=2),
        ValueError, "tokens is given twice: in the mapping and by keyword",
    ),
    "a unit without a limit": (
        lambda: Limiter(tokens=[]),
        ValueError, "tokens has an empty list of limits: leave it out, or name at least one",
    ),
    "a unit without a name": (
        lambda: Limiter({"": "5/s"}),
        ValueError, "a unit needs a name, such as 'tokens'",
    ),
    "one limit twice": (
        lambda: Limiter(tokens=["5/s", "5/s"]),
        ValueError, "tokens has the same limit twice: 5/s, 5/s",
    ),
    "weights that are no mapping": (
        lambda: Limiter(tokens="5/s", flow_weights=[("alice", 2)]),
        ValueError, "flow_weights must be a mapping of flows to weights, not [('alice', 2)]",
    ),
    "a word of a server that is no mapping": (
        lambda: Limiter(requests="5/s").acquire_nowait().observe(remaining=5),
        CostError, 'what remains of the units must be a mapping such as {"tokens": 5}, not 5',
    ),
    "a function before its options": (
        lambda: Limiter(tokens="5/s")(of_one, tokens=5),
        TypeError, "options come first, the function second",
    ),
    "a cost that nothing is given to": (
        lambda: Limiter(tokens="5/s").acquire_nowait(tokens=len),
        CostError, "a cost may be a function of the call's arguments in a decorator only",
    ),
    "a cost of more than the function takes": (
        lambda: Limiter(tokens="5/s")(tokens=lambda one, two: 1)(of_one),
        CostError, "takes (one, two), which of_one(prompt) does not have: name its parameters as those of of_one",
    ),
    "a cost of what a function without parameters takes": (
        lambda: Limiter(tokens="5/s")(tokens=max)(of_none),
        CostError, "tokens=max takes (…), which of_none() does not have",
    ),
    "a result of a generator": (
        lambda: Limiter(tokens="5/s")(tokens=1, settle=lambda result: {"tokens": 1})(items),
        CostError, "settle= needs a result, and a generator or a context manager has none",
    ),
    "half a place": (
        lambda: in_flight(0.5),
        ValueError, "an in-flight limit of 0.5 has no whole place: use 1 or more",
    ),
    "a key that is no function": (
        lambda: Keyed(tokens="5/s")(key="user", tokens=1),
        ValueError, "key= must be a function of the call's arguments that returns the key, not 'user'",
    ),
    "a cap of a year": (
        lambda: Cap(5, "year"),
        ValueError, "unknown period of a cap 'year': use one of 'minute', 'hour', 'day', 'week', 'month'",
    ),
    "a store that there is not": (
        lambda: penstock.stores.MongoStore,
        AttributeError, "module 'penstock.stores' has no attribute 'MongoStore'",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("call", "kind", "words"), REFUSED.values(), ids=REFUSED)
def test_the_refusal_says_what_is_wrong_and_what_to_write(call, kind, words):
    with pytest.raises(kind, match=re.escape(words)):
        call()


def test_setting_no_cap_is_refused_with_an_example(tmp_path):
    with Quotas(tmp_path / "quotas.db", {"requests": "100/day"}) as quotas:
        with pytest.raises(ValueError, match=re.escape('set() needs at least one cap, for example set("alice", ')):
            quotas.set("alice")
        assert repr(quotas) == f"Quotas({quotas.store!r}, name='quota')"
        assert quotas.last("nobody") == []


def test_a_name_of_quotas_that_another_limiter_has_is_said(tmp_path):
    with Quotas(tmp_path / "quotas.db", {"requests": "100/day"}) as quotas:
        with Limiter(requests="5/min", name="quota/used/alice", store=quotas.store)():
            pass
        with pytest.raises(StoreError, match="which is not a quota: another limiter has taken its name"):
            quotas.of("alice")


def test_a_ledger_of_a_later_version_is_not_read(tmp_path):
    with Ledger(tmp_path / "usage.db") as ledger:
        ledger(Granted("api", {"requests": 1}, 0.0))
    with sqlite3.connect(ledger.path) as file:
        file.execute("PRAGMA user_version = 9")
    file.close()
    with pytest.raises(LedgerError, match=re.escape("(tables of version 9; this one knows 1): upgrade penstock here")):
        History(ledger.path)


OF_A_STORE = {
    "leased and not leased": (
        lambda store: Limiter(a="100/s", name="a", store=store, lease=0.5) & Limiter(b="100/s", name="b", store=store),
        "only the first is leased, so they cannot be decided together: give both lease= or none",
    ),
    "a lease of the other": (
        lambda store: Limiter(a="100/s", name="a", store=store) & Limiter(b="100/s", name="b", store=store, lease=0.5),
        "only the second is leased, so they cannot be decided together",
    ),
    "a rehearsal": (
        lambda store: Limiter(a="100/s", name="a", store=store, enforce=False),
        "enforce=False is a rehearsal in one process: leave store= out, or enforce",
    ),
    "an address for a store": (
        lambda _: Limiter(a="100/s", name="a", store="redis://localhost"),
        "store= must be a store, such as RedisStore(...) or SQLiteStore(...), not 'redis://localhost'",
    ),
}


@pytest.mark.parametrize(("make", "words"), OF_A_STORE.values(), ids=OF_A_STORE)
def test_what_a_store_cannot_count_is_said(tmp_path, make, words):
    store = SQLiteStore(tmp_path / "x.db")
    with pytest.raises(ValueError, match=re.escape(words)):
        make(store)
    store.close()
