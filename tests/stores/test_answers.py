"""Every caller hears something: whatever is wrong with a store, a reply, a row or another caller's values."""

from __future__ import annotations

import contextlib
import logging
import math
import random
import threading
import time

import anyio
import pytest
import redis

from penstock import Limiter, PenstockError, RateLimited, StoreError, in_flight, per_second
from penstock.stores import RedisStore, Store
from penstock.stores.contract import Reply, Unreachable

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend():
    return "asyncio"


class Rows(Store):
    """Rows in this process, and whatever goes wrong with them."""

    def __init__(self, **options):
        super().__init__(**options)
        self.rows, self.guard, self.spoil, self.asked = {}, threading.Lock(), None, 0

    def exchange(self, names, decide):
        with self.guard:
            new = decide([self.rows.get(name) for name in names], float(int(time.time() * 1e6)))
            self.rows.update({name: row[0] for name, row in zip(names, new, strict=True) if row})

    def decide(self, batch):
        self.asked += 1
        reply = super().decide(batch)
        return reply if self.spoil is None else self.spoil(batch, reply)


@pytest.fixture
def store():
    made = Rows(patience=0.2)
    yield made
    made.close()


async def answers_of(*limiters, **options):
    """What each caller hears, within two seconds."""
    heard = [None] * len(limiters)

    async def call(number, limiter):
        try:
            await limiter.acquire(**options)
            heard[number] = "granted"
        except Exception as error:
            heard[number] = error

    with anyio.fail_after(20):
        async with anyio.create_task_group() as tasks:
            for number, limiter in enumerate(limiters):
                tasks.start_soon(call, number, limiter)
    return heard


def of_x(batch, reply, **changes):
    """The reply with changes, where it is about "x"."""
    about_x = any(terms.name == "x" for terms in batch.terms)
    parts = {
        "now": reply.now,
        "others": reply.others,
        "epochs": reply.epochs,
        "verdicts": reply.verdicts,
        "states": reply.states,
    }
    return Reply(**{**parts, **changes}) if about_x else reply


def raising(error):
    def spoil(batch, reply):
        if any(terms.name == "x" for terms in batch.terms):
            raise error
        return reply

    return spoil


SPOILED = {
    "a defect of the store": raising(RuntimeError("broken pipe dream")),
    "an error without arguments": raising(KeyError()),
    "no verdicts": lambda batch, reply: of_x(batch, reply, verdicts=()),
    "one double": lambda batch, reply: of_x(batch, reply, epochs=(), verdicts=(), states=()),
    "too many verdicts": lambda batch, reply: of_x(batch, reply, verdicts=[*reply.verdicts, 0.0]),
    "NaN for a wait": lambda batch, reply: of_x(batch, reply, verdicts=[math.nan] * len(reply.verdicts)),
    "NaN for a state": lambda batch, reply: of_x(batch, reply, states=[math.nan] * len(reply.states)),
    "an endless debt": lambda batch, reply: of_x(batch, reply, states=[math.inf] * len(reply.states)),
    "NaN for the time": lambda batch, reply: of_x(batch, reply, now=math.nan),
    "no epochs": lambda batch, reply: of_x(batch, reply, epochs=()),
    "a limit that there is not": lambda batch, reply: of_x(batch, reply, verdicts=[-2.0, 99.0]),
    "terms that are none": lambda batch, reply: of_x(batch, reply, others={"x": "nonsense"}),
    "terms of another shape": lambda batch, reply: of_x(batch, reply, others={"x": '{"requests":[["rate"]]}'}),
    "terms with a lease of text": lambda batch, reply: of_x(batch, reply, others={"x": '{"lease":"no"}'}),
}  # fmt: skip


@pytest.mark.parametrize("max_wait", [None, 1.0, 0], ids=["waits", "waits a second", "now or never"])
@pytest.mark.parametrize("spoil", SPOILED.values(), ids=SPOILED)
async def test_a_broken_answer_is_an_error_and_harms_no_bystander(spoil, max_wait, store):
    x, y = (Limiter(requests=per_second(1000), name=name, store=store) for name in "xy")
    store.spoil = spoil
    heard = await answers_of(x, y, x, y, max_wait=max_wait)
    assert [type(answer) for answer in heard] == [StoreError, str, StoreError, str]
    asked = store.asked
    await anyio.sleep(0.1)
    assert store.asked <= asked + 1, "it is not asked again and again"
    store.spoil = None
    assert await answers_of(x, y) == ["granted"] * 2


@pytest.mark.parametrize("max_wait", [None, 1.0])
async def test_a_defect_of_ours_is_an_error_and_the_next_call_goes_on(max_wait, store, monkeypatch, caplog):
    """Said once, and what comes next begins anew."""
    x, y = (Limiter(requests=per_second(1000), name=name, store=store) for name in "xy")
    await answers_of(x, y)
    scheduler = store.dispatcher.scheduler
    turns = []

    def broken(*_):
        turns.append(1)
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr(scheduler, "turn", broken)
    with caplog.at_level(logging.ERROR):
        heard = await answers_of(x, x, y, max_wait=max_wait)
        await anyio.sleep(0.1)
    assert [type(answer) for answer in heard] == [StoreError] * 3
    assert "ZeroDivisionError" in str(heard[0])
    assert len(turns) <= 4, "it does not run hot"
    monkeypatch.undo()
    assert await answers_of(x, y) == ["granted"] * 2


async def test_a_call_that_waits_while_a_store_refuses_one_call_after_the_other_hears_why(store, monkeypatch):
    """And not that it is not its turn, which would be true and no help."""

    def refuse(_):
        time.sleep(0.15)
        raise StoreError("it does not want to")

    limiters = [Limiter(requests=per_second(1000), name=name, store=store) for name in "xyz"]
    monkeypatch.setattr(store, "decide", refuse)
    assert {str(answer) for answer in await answers_of(*limiters, max_wait=0.25)} == {"it does not want to"}


async def test_a_defect_while_an_answer_is_taken_in_reaches_those_that_asked(store, monkeypatch):
    limiter = Limiter(requests=per_second(1000), name="x", store=store)
    await limiter.acquire()
    monkeypatch.setattr(store.dispatcher.scheduler, "_mirror", lambda *_: 1 / 0)
    assert [type(answer) for answer in await answers_of(limiter, limiter)] == [StoreError] * 2
    monkeypatch.undo()
    await limiter.acquire()


async def test_a_store_that_cannot_be_prepared_says_so_to_each_call(store):
    def broken():
        raise TypeError("an option that there is not")

    store.prepare = broken
    store.listen = lambda _: broken()
    limiter = Limiter(requests=per_second(1000), name="x", store=store)
    assert await answers_of(limiter) == ["granted"], "what is asked decides"


@pytest.mark.parametrize("max_wait", [0, 0.2])
async def test_a_store_that_hangs_answers_waiters_with_a_longest_wait(max_wait, monkeypatch):
    store = Rows(patience=0.2)
    hung = threading.Event()
    monkeypatch.setattr(store, "slowest_answer", lambda: 0.3)
    store.spoil = lambda _, reply: (hung.wait(5) and None) or reply
    limiter = Limiter(requests=per_second(1000), name="x", store=store)
    (heard,) = await answers_of(limiter, max_wait=max_wait)
    assert isinstance(heard, StoreError)
    assert "gave no answer" in str(heard)
    hung.set()
    store.spoil = None
    await limiter.refresh()
    assert limiter.statistics().limits["requests"].level == pytest.approx(1000, abs=2), "what came too late went back"
    store.close()


# One caller's bad value is that caller's error


class Unspeakable:
    def __str__(self):
        raise LookupError("no name")


@pytest.mark.parametrize("max_wait", [None, 1.0])
async def test_any_text_is_a_flow(max_wait, store):
    """Lone surrogates come out of valid JSON."""
    limiter = Limiter(requests=per_second(1000), name="x", store=store, flow_weights={"\ud800": 2})
    assert await answers_of(limiter, limiter, flow="\ud800", max_wait=max_wait) == ["granted"] * 2


async def test_a_flow_that_has_no_text_is_its_callers_error_alone(store):
    limiter = Limiter(requests=per_second(1000), name="x", store=store)
    (heard,) = await answers_of(limiter, flow=Unspeakable())
    assert isinstance(heard, LookupError)
    assert await answers_of(limiter, limiter) == ["granted"] * 2
    assert limiter.statistics().waiting == 0


async def test_a_name_that_no_store_can_keep_is_refused(store):
    with pytest.raises(ValueError, match="surrogate"):
        Limiter(requests="5/s", name="\ud800", store=store)


@pytest.mark.parametrize("amount", [1e22, 1e300, 1.7e308])
async def test_a_settlement_beyond_measure_is_a_debt_and_no_breakdown(amount, store):
    limiter = Limiter(tokens=per_second(1000), requests=per_second(1000), name="x", store=store)
    permit = await limiter.acquire(tokens=1)
    permit.settle(tokens=amount)
    with pytest.raises(RateLimited) as caught:
        await limiter.acquire(tokens=1, max_wait=0)
    assert 0 < caught.value.retry_after < math.inf
    assert await answers_of(Limiter(requests="5/s", name="y", store=store)) == ["granted"]
    await limiter.acquire(tokens=0)


# Redis


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("redis://user:s3cret@h/0?timeout=5", "timeout"),
        ("redis://user:s3cret@h/0?socket_timeout=soon", "socket_timeout"),
        ("redis://user:s3cret@h/?db=zero", "db"),
        ("redis://user:s3cret@h/zero", "number of a db"),
        ("redis://h:6379/0;password=s3cret", "number of a db"),
        ("redis+sentinel://h:26379/main/0;password=s3cret", "number of a db"),
        ("redis://:s3cret", "port must be a number"),
        ("redis://user:s3cret/0", "port must be a number"),
        ("redis://h:6379:s3cret/0", "port must be a number"),
        ("redis://[::1]:s3cret/0", "port must be a number"),
        ("redis://s3cret%21/0", "has a % in the name"),
        ("redis://user:s3cret@h:port/0", "port"),
        ("redis://user:s3cret@h:99999/0", "port"),
        ("redis://user:s3/cret@h:6379/0", "percent"),
        ("redis://user:s3?cret@h:6379/0", "percent"),
        ("redis://user:s3#cret@h:6379/0", "percent"),
        ("redis://user:s3[cret@h:6379/0", "percent"),
        ("redis://user:s3]cret@h:6379/0", "percent"),
        ("http://user:s3cret@h", "is not the address"),
        ("localhost:6379", "has no ://"),
        ("redis://", "ends with its ://"),
        ("redis+sentinel://user:s3cret@h:26379", "names no service"),
        ("redis+sentinel://user:s3cret@h:x/main", "port"),
        ("redis+sentinel://user:s3cret@h:26379/main/x", "db"),
        ("rediss://user:s3cret@h/0?ssl_chek_hostname=no", "ssl_chek_hostname"),
        ("redis://user:s3cret@h?db=-1", "number of a db"),
        ("redis://user:s3cret@h?db=zero", "number of a db"),
        ("redis://user:s3cret@h:６３７９", "port"),
        ("redis://user:s3cret@h?ssl=true", "rediss://"),
        ("unix://user:s3cret@run/redis.sock", "begins with a slash"),
        ("unix://user:s3cret/redis.sock", "begins with a slash"),
        ("redis://user:s3cret@h/0?db=1&db=2", "'db' twice"),
        ("redis://h?password=s3cret&password=s3cret", "'password' twice"),
        ("unix:///run/redis.sock?password=s3cret&db=1&db=1", "'db' twice"),
    ],
)
def test_a_wrong_url_is_an_error_at_once_that_tells_no_secret(url, says):
    with pytest.raises(ValueError, match=says) as caught:
        RedisStore(url)
    error = caught.value
    told = "".join(f"{each!r} {each}" for each in (error, error.__cause__, error.__context__))
    assert "cret" not in told.replace("s3cret", "S3CRET") or "s3" not in told
    assert "s3cret" not in told


def another_type(client, key):
    client.delete(key)
    client.lpush(key, "a")


def changed(change):
    return lambda client, key: client.hset(key, "r", change(client.hget(key, "r")))


DAMAGES = {
    "a row of another type": another_type,
    "a row of nonsense": changed(lambda _: b"nonsense" * 7),
    "a row that is cut": changed(lambda row: row[:-8]),
    "a row of which nothing is used": changed(lambda row: row[:32] + bytes(8) + row[40:]),
    "a row of one other bit": changed(lambda row: row[:33] + bytes([row[33] ^ 1]) + row[34:]),
    "a row of another name's": lambda client, key: client.copy(key.replace("x", "y"), key, replace=True),
    "no row beside the terms": lambda client, key: client.hdel(key, "r"),
    "a row without its terms": lambda client, key: client.hdel(key, "t"),
    "a row that is a list": lambda client, key: (client.delete(key), client.lpush(key, "a")),
    "terms that limit nothing": lambda client, key: client.hset(key, "t", "{}"),
    "terms of a larger burst": lambda client, key: client.hset(key, "t", client.hget(key, "t").replace(b"100", b"900")),
}


@pytest.mark.parametrize("kind", DAMAGES)
@pytest.mark.parametrize("max_wait", [None, 1.0, 0])
async def test_a_damaged_row_is_an_error_and_harms_no_bystander(kind, max_wait, valkey, prefix):
    store = RedisStore(valkey, prefix=prefix)
    x, y = (Limiter(requests=per_second(0.01, burst=100), name=name, store=store) for name in "xy")
    assert await answers_of(x, y) == ["granted"] * 2
    with contextlib.closing(redis.Redis.from_url(valkey)) as client:
        DAMAGES[kind](client, store._key("x"))
    heard = await answers_of(x, y, x, y, max_wait=max_wait)
    assert [type(answer) for answer in heard] == [StoreError, str, StoreError, str]
    assert "what is kept under 'x' is damaged: nothing was granted. Remove it there" in str(heard[0])
    x.reconfigure(requests=per_second(0.01, burst=200))
    heard = await answers_of(x, y, max_wait=max_wait)
    assert [type(answer) for answer in heard] == [StoreError, str]
    store.close()


def test_a_row_is_exchanged_by_itself_and_one_that_others_always_change_is_not_waited_for(valkey, prefix):
    store, other = RedisStore(valkey, prefix=prefix), RedisStore(valkey, prefix=prefix)
    written = []

    def change(rows, now):
        written.append(now)
        return [(("", b"%d" % len(written)), 60)]

    def change_after_another(rows, now):
        other.exchange(["x"], change)
        return change(rows, now)

    with pytest.raises(StoreError, match="one row at a time"):
        store.exchange(["x", "y"], change)
    with pytest.raises(Unreachable, match="'x' was changed by others a hundred times"):
        store.exchange(["x"], change_after_another)
    store.exchange(["x"], lambda rows, _: written.append(rows[0][1]) or [None])
    assert written[-1] == b"199"  # of the other's, the last
    for each in (store, other):
        each.disconnect()


async def test_what_a_process_was_told_last_may_be_of_any_type_and_stops_nothing(valkey, prefix):
    """Another program has put something else there: at worst a batch that is sent again is charged again."""
    store = RedisStore(valkey, prefix=prefix)
    limiter = Limiter(requests=per_second(1e-6, burst=4), name="x", store=store)
    await limiter.acquire()
    with contextlib.closing(redis.Redis.from_url(valkey)) as client:
        for make in (client.lpush, client.sadd, client.set):
            (told,) = client.keys(f"{prefix}:*:told:*")
            client.delete(told)
            make(told, "x")
            await limiter.acquire(max_wait=0)
    with pytest.raises(RateLimited):
        await limiter.acquire(max_wait=0)
    store.close()


async def test_a_batch_whose_answer_is_nonsense_is_decided_once(valkey, prefix, monkeypatch):
    """The server has decided it, and its answer was lost behind another question's: what was given back in it, given
    back once more, would be another call's place."""
    store, others = (RedisStore(valkey, prefix=prefix) for _ in range(2))
    mine, theirs = (Limiter(calls=in_flight(2), name="x", store=each) for each in (store, others))
    permit, kept = await mine.acquire(), await mine.acquire()
    answers, run = [1], store._run
    monkeypatch.setattr(store, "_run", lambda *asked: (run(*asked), answers.pop())[1] if answers else run(*asked))
    permit.close()
    await mine.refresh()
    assert answers == []
    other = await theirs.acquire(max_wait=0)
    with pytest.raises(RateLimited):
        await theirs.acquire(max_wait=0)
    for each in (kept, other):
        each.close()
    store.close()
    others.close()


async def test_places_given_back_to_a_broken_store_come_back_once_it_works(store):
    """What could not be said is said with the next call."""
    limiter = Limiter(calls=in_flight(1), name="x", store=store)
    permit = await limiter.acquire()
    store.spoil = raising(StoreError("no"))
    permit.close()
    await anyio.sleep(0.05)
    store.spoil = None
    with anyio.fail_after(20):
        await limiter.acquire()


@pytest.mark.parametrize("seed", range(4))
async def test_no_reply_of_a_hostile_store_hangs_or_breaks_anything(seed, store):
    """500 of each seed: every call hears a grant or one of our errors, and then all is as before.

    A place that the store has given, and of which no call has heard, stays taken for a minute: there are enough.
    """
    rng = random.Random(seed)
    limiter = Limiter(requests=per_second(1000), calls=in_flight(1000), name="x", store=store)
    await limiter.acquire(calls=0)

    def odd(values):
        values = list(values)
        for _ in range(rng.randint(0, 3)):
            at = rng.randint(0, len(values))
            value = rng.choice([math.nan, math.inf, -math.inf, -1.0, 0.0, 1e300, -1e300, rng.uniform(-5, 5), 7.0])
            what = rng.randrange(3)
            if what == 0:
                values.insert(at, value)
            elif values[at : at + 1]:
                values[at : at + 1] = [] if what == 1 else [value]
        return values

    def spoil(_, reply):
        parts = {name: getattr(reply, name) for name in ("epochs", "verdicts", "states")}
        name = rng.choice(list(parts))
        parts[name] = odd(parts[name])
        now = rng.choice([reply.now] * 8 + [math.nan, -1.0])
        return Reply(now, rng.choice([{}] * 9 + [{"x": rng.choice(["", "[]", "null", '{"requests":5}'])}]), **parts)

    store.spoil = spoil
    for _ in range(500):
        with anyio.move_on_after(0.02):
            try:
                (await limiter.acquire(max_wait=rng.choice([0, 0.01]))).cancel()
            except PenstockError:
                pass
    store.spoil = None
    with anyio.fail_after(20):
        await limiter.refresh()
        await limiter.acquire(max_wait=2)
    assert store.dispatcher.down is None


async def test_a_call_that_waited_for_the_store_and_not_for_its_turn_is_asked_for_all_the_same(store, monkeypatch):
    """Its longest wait is over once the store has answered another call; its limit has enough."""
    monkeypatch.setattr(store, "group_of", lambda name: name)  # so that each name is asked for by itself
    slow, quick = (Limiter(requests=per_second(1000), name=name, store=store) for name in ("x", "y"))
    await quick.acquire()
    store.spoil = lambda batch, reply: time.sleep(0.3) or reply if batch.terms[0].name == "x" else reply
    assert await answers_of(slow, quick, max_wait=0.1) == ["granted", "granted"]


async def test_a_call_for_a_silent_node_that_was_asked_for_another_name_hears_of_it(store, monkeypatch):
    """And not that it would have to wait for 0 s."""
    monkeypatch.setattr(store, "group_of", lambda name: name)
    monkeypatch.setattr(store, "node_of", lambda name: "the only one")
    limiters = [Limiter(requests=per_second(1000), name=name, store=store) for name in ("x", "y")]
    await limiters[1].acquire()
    store.patience = 0.5

    def silent(batch, reply):
        time.sleep(0.2)
        raise Unreachable("nobody answers")

    store.spoil = silent
    for error in await answers_of(*limiters, max_wait=0.1):
        assert isinstance(error, StoreError)
        assert "nobody answers" in str(error)
