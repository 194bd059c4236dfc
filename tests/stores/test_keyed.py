"""Keys over shared stores, with limits that a function of the key returns: as in one process, whatever it was asked
before."""

from __future__ import annotations

import pickle
from urllib.parse import unquote

import pytest

from penstock import Keyed, Limiter, RateLimited, UnknownUnit, in_flight, per_day
from penstock.stores import MemoryStore, RedisStore, SQLiteStore

SMALL = {"requests": per_day(3)}
LARGE = {"requests": per_day(10)}
BOTH = {"requests": per_day(20), "tokens": per_day(100)}


@pytest.fixture(params=["memory", "sqlite", "valkey"])
def new_store(request, tmp_path, prefix):
    """Opens the store as another process does. What is in memory has one."""
    stores = [MemoryStore()] if request.param == "memory" else []

    def new():
        if request.param == "sqlite":
            stores.append(SQLiteStore(tmp_path / "limits.db"))
        elif request.param == "valkey":
            stores.append(RedisStore(request.getfixturevalue("valkey"), prefix=prefix))
        return stores[-1]

    yield new
    for store in stores:
        if not isinstance(store, MemoryStore):
            store.close()


def granted(limiter, **cost):
    """How many calls go at once."""
    for count in range(100):
        try:
            with limiter(max_wait=0, **cost):
                pass
        except RateLimited:
            return count
    raise AssertionError("that is no limit")


def test_an_answer_that_changes_replaces_the_limits_and_what_was_used_stays_used(new_store):
    plan = {"alice": SMALL}
    per_user = Keyed(lambda user: plan[user], name="user", store=new_store())
    assert granted(per_user["alice"]) == 3
    plan["alice"] = LARGE
    assert granted(per_user["alice"]) == 7
    plan["alice"] = SMALL
    assert granted(per_user["alice"]) == 0


def test_an_answer_may_have_other_units_than_before(new_store):
    plan = {"alice": SMALL}
    per_user = Keyed(lambda user: plan[user], name="user", store=new_store())
    assert granted(per_user["alice"]) == 3
    plan["alice"] = BOTH
    assert granted(per_user["alice"], tokens=20) == 5
    assert granted(per_user["alice"], tokens=0) == 12
    plan["alice"] = {"jobs": in_flight(2)}
    with per_user["alice"](jobs=2):
        assert granted(per_user["alice"], jobs=1) == 0


def test_whoever_holds_a_key_has_its_limits_as_they_were(new_store):
    plan = {"alice": SMALL}
    per_user = Keyed(lambda user: plan[user], name="user", store=new_store())
    with per_user["alice"] as permit:
        held = per_user["alice"]
        plan["alice"] = BOTH
        assert permit.cost == {"requests": 1}
        with pytest.raises(UnknownUnit):
            held(tokens=1)
    assert granted(held) == 2


@pytest.mark.parametrize("new_store", ["sqlite", "valkey"], indirect=True)
def test_another_process_has_the_answer_that_is_younger(new_store):
    assert granted(Keyed(lambda user: SMALL, name="user", store=new_store())["alice"]) == 3
    assert granted(Keyed(lambda user: BOTH, name="user", store=new_store())["alice"], tokens=5) == 17


SEPARATORS = ":/%[]~"


def test_a_limiter_shares_nothing_with_a_key_whatever_separators_their_names_have(new_store):
    store = new_store()
    names = ["n", *(f"n{mark}a" for mark in SEPARATORS), *(f"n{mark}a{mark}b" for mark in SEPARATORS)]
    keys = ["a", *(f"a{mark}b" for mark in (*SEPARATORS, "%:")), *(f"{mark}a" for mark in SEPARATORS)]
    limiters = [Limiter(SMALL, name=name, store=store) for name in names]
    limiters += [Keyed(SMALL, name=name, store=store)[key] for name in names for key in keys]
    assert [granted(limiter) for limiter in limiters] == [3] * len(limiters)


@pytest.mark.parametrize("new_store", ["sqlite", "valkey"], indirect=True)
@pytest.mark.parametrize("kind", [Limiter, Keyed])
def test_no_limiter_takes_the_name_of_a_key(new_store, kind):
    store = new_store()
    name = Keyed(SMALL, name="n", store=store)["a"].name
    with pytest.raises(ValueError, match=r"the name 'n%:a' has %:, which stands between the name of a Keyed and a key"):
        kind(SMALL, name=name, store=store)


@pytest.mark.parametrize("new_store", ["sqlite", "valkey"], indirect=True)
def test_a_pickled_limiter_of_a_key_is_that_of_the_key(new_store):
    store = new_store()
    limiter = Keyed(SMALL, name="n:%", store=store)["{a%:b}"]
    assert granted(pickle.loads(pickle.dumps(limiter))) == 3
    assert granted(limiter) == 0
    assert [unquote(name) for name in store.names("n:")] == ["n:%%:{a%:b}"]
