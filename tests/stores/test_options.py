"""What a store is made with: a wrong option is one clear error at once, and never one from deep inside."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import pytest
from openai import AsyncOpenAI

from penstock import Keyed, Limiter, per_second
from penstock.openai import limit_client
from penstock.stores import RedisStore, SQLiteStore
from penstock.usage import Quotas


async def asynchronous(_):
    """A function that would have to be awaited."""


HOSTILE = [
    3, -1, 0.5, math.nan, math.inf, 10**400, True, "x", "", "\ud800", b"x", [], {}, (), object(), object, None, 1j, Decimal("NaN"),
    Decimal("sNaN"), Fraction(1, 3), timedelta(-1), timedelta.max, asynchronous,
]  # fmt: skip
OPTIONS = ["place_ttl", "patience", "on_outage", "share", "on_event", "on_state_loss"]
OF_REDIS = [*OPTIONS, "server", "prefix", "group", "timeout"]
OF_SQLITE = [*OPTIONS, "path"]


def named(value):
    return repr(value)[:20]


def refused(make, option, value):
    """Make a store. An error must be a ValueError that names the option, and whatever was taken must be of use."""
    try:
        store = make(**{option: value})
    except ValueError as error:
        problem = str(error)
        other = {"server": "Redis server", "path": "no file can have the path"}.get(option, option)
        assert option in problem or other in problem, value
        return
    assert type(store.patience) is type(store.place_ttl) is float
    assert store.share is None or type(store.share) in {int, float}
    assert repr(store)
    store.close(timeout=0)


@pytest.mark.parametrize("option", OF_REDIS)
def test_an_option_of_a_server_is_taken_or_refused_by_its_name(option):
    more = {"on_outage": "share"} if option == "share" else {}

    def make(server="redis://localhost", **options):
        return RedisStore(server, **more, **options)

    for value in HOSTILE:
        refused(make, option, value)


@pytest.mark.parametrize("timeout", [timedelta(seconds=1), 0, -1, math.inf, "5"])
def test_a_store_in_use_is_closed_within_a_span_of_time(tmp_path, timeout):
    store = SQLiteStore(tmp_path / "limits.db")
    with Limiter(requests="5/s", name="api", store=store):
        pass
    if timeout in (0, timedelta(seconds=1)):
        store.close(timeout)
        return
    with pytest.raises(ValueError, match="timeout must be a number of seconds, 0 to"):
        store.close(timeout)
    store.close()


@pytest.mark.parametrize("option", OF_SQLITE)
def test_an_option_of_a_file_is_taken_or_refused_by_its_name(option, tmp_path):
    more = {"on_outage": "share"} if option == "share" else {}

    def make(path=tmp_path / "x.db", **options):
        return SQLiteStore(path, **more, **options)

    for value in HOSTILE:
        refused(make, option, value)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"patience": "1"}, "patience must be a number of seconds, 0 to 1,000,000, or a timedelta, not '1'"),
        ({"patience": True}, "patience must be a number of seconds, 0 to 1,000,000, or a timedelta, not True"),
        ({"place_ttl": 0}, "place_ttl must be a number of seconds, above 0 to 1,000,000, or a timedelta, not 0"),
        ({"timeout": 1e7}, "timeout must be a number of seconds, above 0 to 1,000,000, or a timedelta, not 10000000"),
        ({"prefix": []}, r"prefix must be a text, which all keys begin with, not \[\]"),
        ({"prefix": "a\ud800"}, "lone surrogate"),
        ({"group": asynchronous}, "group must be a plain function of a limiter's name that returns a text"),
        ({"on_event": asynchronous}, "on_event"),
        ({"on_outage": "share", "share": "1/4"}, "share must be a part of 1, .* not '1/4'"),
    ],
)
def test_a_wrong_option_says_what_it_must_be(options, says):
    with pytest.raises(ValueError, match=says):
        RedisStore("redis://localhost", **options)


@pytest.mark.parametrize(
    ("path", "says"),
    [
        (3, "path must be the path of a file, a text or an os.PathLike, not 3"),
        (b"x.db", "path must be the path of a file, a text or an os.PathLike, not b'x.db'"),
        ("", "path must be the path of a file"),
        ("sqlite:///x.db", "path must be the path of a file, and 'sqlite:///x.db' is a URL"),
    ],
)
def test_a_wrong_path_says_what_it_must_be(path, says):
    with pytest.raises(ValueError, match=says):
        SQLiteStore(path)


@dataclass(frozen=True)
class Odd:
    """A limit of the user's own."""

    capacity = 9.0
    default = None


def test_a_limit_of_ones_own_is_counted_in_memory_alone(tmp_path):
    with pytest.raises(
        ValueError, match=r"tokens: a shared store cannot count Odd\(\), whose meter lives in one process"
    ):
        Limiter(tokens=Odd(), name="x", store=SQLiteStore(tmp_path / "x.db"))


@pytest.mark.parametrize("server", [3, None, b"redis://localhost", object(), RedisStore], ids=named)
def test_what_is_no_server_says_what_it_must_be(server):
    with pytest.raises(ValueError, match="server must be a URL or a redis-py client, not a"):
        RedisStore(server)


@pytest.mark.parametrize("address", ["redis://user:s3cret@h/0", "valkey://:s3/c@ret@h", "postgres://user:s3cret@h/db"])
@pytest.mark.parametrize(
    "make",
    [
        SQLiteStore,
        Quotas,
        lambda address: Limiter(requests="5/s", name="x", store=address),
        lambda address: Keyed(requests="5/s", name="x", store=[address]),
        lambda address: limit_client(AsyncOpenAI(api_key="key"), store=address),
        lambda address: RedisStore("redis://h", prefix=address.encode()),
    ],
    ids=["a file", "quotas", "a limiter", "keys", "a client", "a prefix"],
)
def test_an_address_in_a_wrong_place_tells_no_secret(make, address):
    with pytest.raises((ValueError, TypeError)) as caught:
        make(address)
    said = str(caught.value)
    assert "ret@" not in said
    assert "s3" not in said
    assert "://***@h" in said


@pytest.mark.anyio
async def test_spans_of_time_may_be_timedeltas_and_numbers_of_any_kind(tmp_path):
    second = timedelta(seconds=1)
    store = SQLiteStore(
        tmp_path / "x.db", patience=second, place_ttl=Decimal(7), on_outage="share", share=Fraction(1, 4)
    )
    assert (store.patience, store.place_ttl, store.share) == (1.0, 7.0, 0.25)
    assert RedisStore("redis://localhost", timeout=second).timeout == 1.0
    await Limiter(requests=per_second(5), name="x", store=store).acquire(max_wait=0)
    store.close()


def test_a_path_may_be_of_any_kind(tmp_path):
    class Place:
        def __fspath__(self):
            return str(tmp_path / "x.db")

    assert SQLiteStore(Place()).path == SQLiteStore(str(tmp_path / "x.db")).path == Path(tmp_path / "x.db")
