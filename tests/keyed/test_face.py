"""What a limiter per key is made from, and what it refuses."""

from __future__ import annotations

import re
import threading
import weakref

import anyio
import pytest

from penstock import (
    Keyed,
    Limiter,
    RateLimited,
    in_flight,
    per_minute,
    per_second,
    sliding,
)
from penstock.stores.memory import MemoryStore
from tests.keyed.looking import level, look_at_all

anyio_test = pytest.mark.anyio


@anyio_test
async def test_the_limits_may_be_a_function_of_the_key(virtual_time):
    """Of any kind, and of any units; each key has just those."""
    asked = []

    def limits_of(user):
        asked.append(user)
        return {
            "paying": {"requests": per_second(10), "tokens": per_second(100, default=1)},
            "free": {"calls": in_flight(2)},
        }[user]

    per_user = Keyed(limits_of)
    async with per_user["paying"](tokens=60):
        pass
    assert {unit: one.level for unit, one in per_user["paying"].statistics().limits.items()} == {
        "requests": 9, "tokens": 40,
    }  # fmt: skip
    async with per_user["free"], per_user["free"]():
        with pytest.raises(RateLimited):
            per_user["free"].acquire_nowait()
    assert per_user["free"].statistics().in_flight == 0
    async with per_user["free"] as permit:
        before = len(asked)
        per_user["free"].statistics()
        assert len(asked) == before, "while somebody holds the key, its limits are those it has"
        assert permit.cost == {"calls": 1}


@anyio_test
async def test_a_changed_answer_changes_the_limit_and_what_was_used_stays_used(virtual_time):
    plan = {"alice": {"requests": per_minute(10)}}
    per_user = Keyed(lambda user: plan[user])
    per_user["alice"].acquire_nowait(requests=4)
    look_at_all_of = [per_user["alice"] for _ in range(9)]
    del look_at_all_of
    plan["alice"] = {"requests": per_minute(60)}
    assert level(per_user["alice"]) == 56
    plan["alice"] = {"requests": sliding(7, 60), "tokens": per_minute(100)}
    assert level(per_user["alice"]) == 3
    per_user["alice"].acquire_nowait(tokens=30)
    await anyio.sleep(3600)
    for _ in range(9):
        per_user["alice"]
    assert level(per_user["alice"]) == 7
    plan["bob"] = plan["alice"]
    for _ in range(9):
        per_user["bob"]
    assert "alice" not in per_user._keys._states.known | per_user._keys._states.old | per_user._keys._states.live


@anyio_test
async def test_an_error_of_the_function_passes_through_and_changes_nothing(virtual_time):
    answers = {"alice": {"requests": per_minute(10)}}
    per_user = Keyed(lambda user: answers[user])
    per_user["alice"].acquire_nowait(requests=4)
    kept = answers.pop("alice")
    for _ in range(3):
        with pytest.raises(KeyError, match="alice"):
            per_user["alice"]
    answers["alice"] = kept
    assert level(per_user["alice"]) == 6


def test_the_function_of_the_key_may_take_a_lock_that_others_hold_while_they_are_limited():
    """It is the user's: with our lock held around it, two threads would wait for each other for ever."""
    settings, is_held, is_asked = threading.Lock(), threading.Event(), threading.Event()
    store = MemoryStore()  # a lock of its own, which a failure would leave held
    other = Limiter(requests=per_second(10), store=store)

    def limits_of(user):
        is_asked.set()
        with settings:
            return {"requests": per_minute(10)}

    per_user = Keyed(limits_of, store=store)

    def change_the_settings():
        with settings:
            is_held.set()
            is_asked.wait(5)
            other.acquire_nowait()

    def call():
        is_held.wait(5)
        per_user["alice"].acquire_nowait()

    threads = [threading.Thread(target=work, daemon=True) for work in (change_the_settings, call)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(5)
        assert not thread.is_alive()


@pytest.mark.parametrize("answer", [None, {}, per_minute(5), [per_minute(5)]], ids=["none", "empty", "limit", "list"])
def test_a_function_that_returns_no_limits_is_told_so(answer):
    """An empty answer would be a limiter without limits, which lets everything through."""
    per_user = Keyed(lambda user: answer)
    with pytest.raises(ValueError, match=r"the function of the key must return limits, as .* for 'alice'"):
        per_user["alice"]


def test_what_is_not_hashable_is_refused_with_the_way_out():
    per_user = Keyed(requests=per_minute(5))
    with pytest.raises(
        ValueError, match=r"^a key must be hashable, such as a string or a tuple, not \['alice', 'x'\]$"
    ) as caught:
        per_user[["alice", "x"]]
    assert isinstance(caught.value.__cause__, TypeError)
    per_user["alice", "x"].acquire_nowait()
    assert level(per_user["alice", "x"]) == pytest.approx(4, abs=0.1)


@pytest.mark.parametrize(
    "make", [lambda nan: nan, lambda nan: ("team", nan), lambda nan: (1, (nan,)), lambda nan: frozenset({nan})]
)
def test_what_does_not_equal_itself_is_refused(make):
    """Each NaN, and what contains one, would be a key of its own: the limit would limit nothing, and the keys would
    pile up."""
    per_user = Keyed(requests=per_minute(5))
    for _ in range(3):
        key = make(float("nan"))
        with pytest.raises(
            ValueError, match=rf"^a key must equal itself, which {re.escape(repr(key))} does not: it would not be found"
        ):
            per_user[key]
        with pytest.raises(ValueError, match=r"^flow must equal itself"):
            Limiter(requests=per_minute(5)).acquire_nowait(flow=key)
    assert len(per_user) == 0


@anyio_test
async def test_none_and_what_is_equal_are_keys_as_in_a_dict(virtual_time):
    per_user = Keyed(requests=per_minute(5))
    for key in (None, "None", 1, True, 1.0, "1", "", (), frozenset()):
        per_user[key].acquire_nowait()
    levels = [level(per_user[key]) for key in (None, "None", 1, "1", "", (), frozenset())]
    assert levels == [4, 4, 2, 4, 4, 4, 4]
    assert per_user[None].name == "None"


@anyio_test
async def test_a_key_may_be_an_object_that_nobody_else_holds(virtual_time):
    """A key lives as long as what it has used, and not longer."""

    class User:
        pass

    per_user, user = Keyed(requests=per_minute(60)), User()
    gone = weakref.ref(user)
    per_user[user].acquire_nowait()
    del user
    look_at_all(per_user)
    assert gone() is not None
    await anyio.sleep(2)
    look_at_all(per_user)
    assert gone() is None


class _Nameless:
    def __str__(self):
        raise RuntimeError("no text")

    __repr__ = __str__


@pytest.mark.parametrize("key", [_Nameless(), 10**5_000], ids=["raises", "long"])
@pytest.mark.parametrize("joined", [False, True])
@anyio_test
async def test_a_key_that_has_no_text_is_limited_like_any_other(key, joined, virtual_time):
    """An int of more than 4,300 digits has none either."""
    per_user = Keyed(requests=per_minute(1))
    limiter = Limiter(calls=in_flight(5)) & per_user[key] if joined else per_user[key]
    for delay in (0, 60):
        async with limiter():
            assert virtual_time.now() == delay
    with pytest.raises(RateLimited, match="whose str raised"):
        await limiter.acquire(max_wait=1)
    assert f"<{type(key).__name__}, whose str raised" in repr(limiter)


def test_a_keyed_may_be_a_key_of_a_weak_dictionary():
    names = weakref.WeakKeyDictionary()
    per_user = Keyed(requests=per_minute(1))
    names[per_user] = "users"
    assert names[per_user] == "users"


async def limits_from_a_database(key):
    return {"requests": per_minute(5)}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (Keyed, "Keyed needs either limits, or one function of the key that returns them"),
        (lambda: Keyed(lambda key: {}, requests=per_minute(5)), "Keyed needs either limits, or one function"),
        (lambda: Keyed(requests=5), "requests needs a limit"),
        (lambda: Keyed({"requests": "1/s"}, requests="2/s"), "requests is given twice"),
        (lambda: Keyed(requests=per_minute(5), ageing=0), "ageing"),
        (lambda: Keyed(lambda key: {}, max_queue=-1), "max_queue"),
        (lambda: Keyed(limits_from_a_database), "limits_from_a_database.*it is called and not awaited"),
        (lambda: Keyed(lambda key: {5: per_minute(5)})["alice"], "a unit is called by a string, not 5"),
    ],
)
def test_a_wrong_keyed_is_refused_where_it_is_made_or_used_first(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@anyio_test
async def test_options_are_those_of_every_keys_limiter(virtual_time):
    seen = []
    per_user = Keyed(requests=per_second(1, burst=1), max_queue=0, on_event=seen.append)
    per_user["alice"].acquire_nowait()
    with pytest.raises(RateLimited, match='the queue of "alice" is full'):
        await per_user["alice"].acquire()
    assert [(type(event).__name__, event.limiter) for event in seen] == [("Granted", "alice"), ("Refused", "alice")]
    shadow = Keyed(requests=per_second(1, burst=1), enforce=False)
    limiter = shadow["bob"]
    for _ in range(3):
        limiter.acquire_nowait()
    assert limiter.statistics().would_refuse == 2


async def enter(limiter):
    async with limiter:
        pass


@anyio_test
async def test_a_key_that_is_entered_by_itself_costs_one_call_each_time():
    per_user = Keyed(requests=per_minute(10))
    for user in ("alice", "alice", "bob"):
        await enter(per_user[user])
    assert [round(level(per_user[user])) for user in ("alice", "bob")] == [8, 9]


def test_keys_are_not_iterated_over():
    """Every key has a limiter: whoever asks which there are, or for one among them, would never hear the end of it."""
    per_user = Keyed(requests=per_second(1))
    with pytest.raises(TypeError, match=r"not (iterable|a container)"):
        iter(per_user)
    with pytest.raises(TypeError, match=r"not (iterable|a container)"):
        "alice" in per_user  # noqa: B015 - it raises


def test_counts_of_calls_are_those_of_one_limiter_object_and_levels_those_of_the_key():
    """Each use of a key makes its limiter anew: one that is kept counts on."""
    per_user = Keyed(requests="10/min")
    kept = per_user["alice"]
    for _ in range(3):
        kept.acquire_nowait()
    per_user["alice"].acquire_nowait()
    assert kept.statistics().granted == 3
    assert per_user["alice"].statistics().granted == 0
    assert per_user["alice"].statistics().limits["requests"].level == pytest.approx(6, abs=0.1)
