"""A limiter over a shared store goes wherever the work goes: by its name, its limits and the store's address."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import multiprocessing
import pickle
import subprocess
import sys
import threading
from concurrent.futures import ProcessPoolExecutor

import pytest

from penstock import Keyed, Limiter, RateLimited, in_flight, per_day, per_second, sliding
from penstock.stores import MemoryStore, RedisStore, SQLiteStore, Store

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend():
    return "asyncio"


def take(limiter):
    """What a worker does with it."""
    with limiter(max_wait=5) as permit:
        return permit.cost


def test_a_limiter_is_made_again_with_all_that_was_said_of_it(tmp_path):
    store = SQLiteStore(tmp_path / "x.db", on_state_loss="empty", patience=3.0, place_ttl=7.0)
    limiter = Limiter(
        {"class": "5/s"}, tokens=["90k/min", per_day(10**6)], calls=in_flight(3), name="x", store=store, max_queue=5,
        ageing=7, flow_weights={"alice": 2},
    )  # fmt: skip
    again = pickle.loads(pickle.dumps(limiter))
    assert dict(again.limits) == dict(limiter.limits)
    assert again.name == "x"
    assert again._info.max_queue == 5
    assert again._backend.queue.waiters.ageing == 7
    assert again._backend.queue.waiters.weights == limiter._backend.queue.waiters.weights != {}
    assert (again.store.patience, again.store.place_ttl, again.store.lost_is_empty) == (3.0, 7.0, True)
    store.close()


class Heard(list):
    """A hook that keeps what it hears. It equals others, so it cannot be hashed."""

    __call__ = list.append


async def test_a_store_whose_options_cannot_be_compared_is_made_anew_in_each_copy(tmp_path):
    """And counts on in the same file."""
    store = SQLiteStore(tmp_path / "x.db", on_event=Heard())
    limiter = Limiter(requests=per_second(0.001, burst=2), name="x", store=store)
    again = pickle.loads(pickle.dumps(limiter))
    assert again.store is not store
    await limiter.acquire()
    await again.acquire()
    with pytest.raises(RateLimited):
        await limiter.acquire(max_wait=0)
    store.close()
    again.store.close()


async def test_what_was_used_is_used_in_the_copy_too(tmp_path):
    store = SQLiteStore(tmp_path / "x.db")
    limiter = Limiter(requests=per_second(0.001, burst=2), name="x", store=store)
    again = pickle.loads(pickle.dumps(limiter))
    await limiter.acquire()
    await again.acquire()
    with pytest.raises(RateLimited):
        await again.acquire(max_wait=0)
    store.close()


async def test_a_joint_and_a_leased_limiter_are_made_again(tmp_path):
    store = SQLiteStore(tmp_path / "x.db")
    org = Limiter(requests=per_second(0.001, burst=2), name="org", store=store, max_queue=9)
    user = Limiter(tokens=sliding(10, 60), name="user", store=store)
    both = pickle.loads(pickle.dumps(org & user))
    assert both.joint
    assert both.name == "org & user"
    await both.acquire(tokens=10)
    with pytest.raises(RateLimited, match="tokens"):
        await both.acquire(tokens=1, max_wait=0)
    leased = Limiter(requests=per_second(10, burst=100), name="leased", store=store, lease=1.5)
    assert pickle.loads(pickle.dumps(leased))._backend.lease == 1.5
    store.close()


async def test_new_limits_travel(tmp_path):
    store = SQLiteStore(tmp_path / "x.db")
    limiter = Limiter(requests=per_second(5), name="x", store=store)
    await limiter.acquire()
    limiter.reconfigure(requests=per_second(7))
    await limiter.refresh()
    assert pickle.loads(pickle.dumps(limiter)).limits["requests"][0] == per_second(7)
    store.close()


async def test_thousands_of_copies_share_one_connection(tmp_path):
    """Each task of an engine may unpickle its own."""
    store = SQLiteStore(tmp_path / "x.db")
    limiter = Limiter(requests=per_second(10**6), name="x", store=store)
    sent = pickle.dumps(limiter)
    before = threading.active_count()
    copies = [pickle.loads(sent) for _ in range(100)]
    for each in copies:
        await each.acquire()
    assert len({id(each.store) for each in copies}) == 1
    assert threading.active_count() <= before + 2
    store.close()
    copies[0].store.close()


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_it_goes_into_a_pool_of_processes(method, tmp_path):
    store = SQLiteStore(tmp_path / "x.db")
    limiter = Limiter(requests=per_second(0.001, burst=6), name="x", store=store)
    with limiter:  # the parent uses it before
        pass
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context(method)) as pool:
        assert list(pool.map(take, [limiter] * 5)) == [{"requests": 1}] * 5
    with pytest.raises(RateLimited), limiter(max_wait=0):
        pass
    store.close()


def test_a_keyed_limiter_goes_too(tmp_path):
    store = SQLiteStore(tmp_path / "x.db")
    per_user = Keyed(requests=per_second(0.001, burst=1), name="user", store=store)
    again = pickle.loads(pickle.dumps(per_user))
    with per_user["alice"]:
        pass
    with pytest.raises(RateLimited), again["alice"](max_wait=0):
        pass
    with again["bob"]:
        pass
    store.close()


def test_a_limiter_in_memory_says_why_it_cannot():
    with pytest.raises(TypeError, match=r"lives in the memory of one process.*SQLiteStore, RedisStore"):
        pickle.dumps(Limiter(requests="5/s", name="x"))
    with pytest.raises(TypeError, match="memory of one process"):
        pickle.dumps(Keyed(requests="5/s"))


# Secrets


@pytest.mark.parametrize(
    "url",
    ["redis://user:s3cret@host:6379/1", "rediss://:s3cret@host", "redis+sentinel://u:s3cret@a:26379,b:26380/main/2"],
)
def test_a_password_from_the_environment_travels_by_the_variables_name(url, monkeypatch):
    monkeypatch.setenv("SOME_REDIS_URL", url)
    sent = pickle.dumps(Limiter(requests="5/s", name="x", store=RedisStore(url, prefix="p", timeout=2.5)))
    assert b"s3cret" not in sent
    assert b"SOME_REDIS_URL" in sent
    monkeypatch.setenv("SOME_REDIS_URL", "redis://user:other@elsewhere:6379/1")
    again = pickle.loads(sent).store
    assert "elsewhere" in repr(again)
    assert (again.prefix, again.timeout) == ("p", 2.5)
    monkeypatch.delenv("SOME_REDIS_URL")
    with pytest.raises(ValueError, match="environment variable SOME_REDIS_URL, which is not set here"):
        pickle.loads(sent)


def test_a_password_alone_may_come_from_the_environment(monkeypatch):
    monkeypatch.setenv("REDIS_PASSWORD", "s3cret/?")
    sent = pickle.dumps(RedisStore("redis://user:s3cret%2F%3F@host:6379/1"))
    assert b"s3cret" not in sent
    monkeypatch.setenv("REDIS_PASSWORD", "n#w")
    client = pickle.loads(sent)._server.subscriber(None)
    assert client.connection_pool.connection_kwargs["password"] == "n#w"


def test_an_address_without_a_password_travels_as_it_is(monkeypatch):
    monkeypatch.setenv("SOME_REDIS_URL", "redis://host:6379/1")
    assert b"redis://host:6379/1" in pickle.dumps(RedisStore("redis://host:6379/1"))


def test_a_store_made_of_a_client_says_what_to_do_instead():
    redis = pytest.importorskip("redis")
    with pytest.raises(TypeError, match="give RedisStore a URL"):
        pickle.dumps(RedisStore(redis.Redis(password="s3cret")))


def test_a_path_is_the_same_file_in_another_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sent = pickle.dumps(SQLiteStore("x.db"))
    monkeypatch.chdir("/")
    assert pickle.loads(sent).path == tmp_path / "x.db"


def test_a_store_of_ones_own_says_how(tmp_path):
    class Mine(Store):
        def exchange(self, names, decide):
            raise NotImplementedError

    with pytest.raises(TypeError, match=r"Mine.*recipe"):
        pickle.dumps(Mine())
    with pytest.raises(TypeError):
        pickle.dumps(MemoryStore())


def test_copying_a_store_shares_it(tmp_path):
    """There is one state, so there is one store."""
    store = SQLiteStore(tmp_path / "x.db")
    assert copy.copy(store) is store
    assert copy.deepcopy(store) is store


@pytest.mark.parametrize(
    "copied", [copy.copy, copy.deepcopy, lambda what: dataclasses.asdict(Settings(what))["limiter"]],
    ids=["copy", "deepcopy", "asdict"],
)  # fmt: skip
def test_copies_of_a_limiter_have_one_state_in_their_store(tmp_path, copied):
    """It was refused, as a copy would grant the same quota once more: that is true in memory alone."""
    with contextlib.closing(SQLiteStore(tmp_path / "x.db")) as store:
        limiter = Limiter(requests="1/day", name="x", store=store)
        joint = limiter & Keyed(tokens="1/day", name="k", store=store)["a"]
        again = copied(joint)
        assert repr(again) == repr(joint) == "Limiter(x & k%:a: requests=1/day, tokens=1/day)"
        with limiter():
            pass
        with pytest.raises(RateLimited, match="requests"), again(tokens=1, max_wait=0):
            pass
        with pytest.raises(TypeError, match="Share the limiter itself"):
            copied(limiter & Limiter(calls=in_flight(1)))


@dataclasses.dataclass
class Settings:
    limiter: object


def test_unpickling_asks_nobody_and_starts_nothing(tmp_path):
    """A worker may never use it."""
    sent = pickle.dumps(Limiter(requests="5/s", name="x", store=RedisStore("redis://nobody.invalid:1")))
    program = (
        "import pickle, sys, threading; limiter = pickle.loads(bytes.fromhex(sys.argv[1])); "
        "print(threading.active_count(), limiter.name)"
    )
    done = subprocess.run([sys.executable, "-c", program, sent.hex()], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "x"]
