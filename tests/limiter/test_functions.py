# ruff: noqa: PLW0108 - a lambda, and not what it calls, is what is given
"""Costs and true costs that are functions of a call's arguments and result, and callables that only turn out to be
async."""

from __future__ import annotations

import copy
import dataclasses
import gc
import logging
import pickle
import sys
import weakref
from contextlib import suppress
from functools import partial

import anyio
import pytest

from penstock import CostError, Keyed, Limiter, Rate, RateLimited, in_flight
from penstock.stores.memory import MemoryStore
from penstock.testing import manual_clock

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("quick_collections")]

TOKENS = Limiter(tokens=Rate(1e6, 1e12), name="openai", store=MemoryStore())


class Model:
    extra = 3

    @TOKENS(tokens=len)
    def method(self, prompt):
        return prompt

    @classmethod
    @TOKENS(tokens=len)
    def of_class(cls, prompt):
        return prompt

    @staticmethod
    @TOKENS(tokens=len)
    def static(prompt):
        return prompt

    @TOKENS(tokens=lambda prompt: len(prompt))
    def by_keyword_only(self, *, prompt="abcd"):
        return prompt

    @TOKENS(tokens=lambda self, prompt: len(prompt) + self.extra)
    def by_self(self, prompt):
        return prompt

    @TOKENS(tokens=lambda **given: sum(map(len, given.values())))
    def by_all_names(self, prompt, system="de"):
        return prompt

    @TOKENS(tokens=lambda *args, **kwargs: len(args) + len(kwargs))
    def all_of_them(self, *args, **kwargs):
        return args


class Sized:
    def __call__(self, prompt):
        return len(prompt)


def decorated(cost, function):
    return TOKENS(tokens=cost)(function)


CALLS = {
    "a method": (lambda: Model().method("abc"), 3),
    "a method, by keyword": (lambda: Model().method(prompt="ab"), 2),
    "a method, of its class": (lambda: Model.method(Model(), "abcd"), 4),
    "a classmethod": (lambda: Model.of_class("abc"), 3),
    "a staticmethod": (lambda: Model.static(prompt="abcde"), 5),
    "keyword only, default": (lambda: Model().by_keyword_only(), 4),
    "keyword only, given": (lambda: Model().by_keyword_only(prompt="ab"), 2),
    "a function that names self": (lambda: Model().by_self("abc"), 6),
    "a function of everything": (lambda: Model().all_of_them(1, 2, z=3), 4),
    "len of *args": (lambda: decorated(len, lambda *prompts: prompts)("abc", "d"), 3),
    "all in their order": (lambda: decorated(lambda *a: len(a), lambda x, y: x)(1, 2), 2),
    "the first and the rest": (lambda: decorated(lambda n, *rest: n + sum(rest), lambda x, *more: x)(1, 2, 3), 6),
    "all by name": (lambda: decorated(lambda **given: sum(given.values()), lambda n, extra=4: n)(3), 7),
    "one by name and the rest": (
        lambda: decorated(lambda n, **rest: n + rest["most"], lambda n, *, most=9, **more: n)(3, most=20, z=1),
        23,
    ),
    "all by name, of a method": (lambda: Model().by_all_names("abc"), 5),
    "the rest of the rest": (lambda: decorated(lambda n, **rest: n + rest["z"], lambda n, **more: n)(3, z=5), 8),
    "the first, beside the rest by name": (lambda: decorated(len, lambda prompt, **more: more)(prompt="abc", z=5), 3),
    "*args by its name": (lambda: decorated(lambda prompts: len(prompts), lambda *prompts: prompts)("abc", "d"), 2),
    "*args by its name, none given": (lambda: decorated(lambda prompts: len(prompts), lambda *prompts: prompts)(), 0),
    "**options by its name": (lambda: decorated(lambda options: options["n"], lambda **options: 1)(n=7), 7),
    "sum": (lambda: decorated(sum, lambda numbers: numbers)([1, 2, 3]), 6),
    "a partial": (lambda: decorated(partial(lambda k, prompt: k * len(prompt), 2), lambda prompt: prompt)("abc"), 6),
    "a partial that is decorated": (lambda: decorated(len, partial(lambda a, prompt: a, "zzzzz"))("abc"), 3),
    "a builtin that is decorated": (lambda: decorated(len, sorted)("abc"), 3),
    "a default": (lambda: decorated(len, lambda prompt="abcdef": prompt)(), 6),
    "positional only": (lambda: decorated(lambda n: n, lambda n, /: n)(4), 4),
    "a default of the cost's own": (lambda: decorated(lambda n, extra=5: n + extra, lambda n: n)(4), 9),
    "a default that the call has": (lambda: decorated(lambda n, extra=5: n + extra, lambda n, extra: n)(4, extra=1), 5),
    "a class": (lambda: decorated(int, lambda n: n)("7"), 7),
    "an object": (lambda: decorated(Sized(), lambda prompt: prompt)("abc"), 3),
    "a method of a dict, which has no signature": (lambda: decorated({"a": 2}.get, lambda n: n)("a"), 2),
}


@pytest.mark.parametrize(("call", "cost"), CALLS.values(), ids=CALLS)
def test_a_cost_is_asked_with_the_arguments_that_it_names_or_the_first_ones(call, cost):
    with manual_clock():
        before = TOKENS.statistics().limits["tokens"].level
        call()
        assert before - TOKENS.statistics().limits["tokens"].level == pytest.approx(cost)


@pytest.mark.parametrize("cost", [len, lambda prompt: len(prompt)], ids=["in order", "by name"])
def test_a_call_with_more_arguments_than_there_are_is_charged_nothing(cost):
    with manual_clock():
        before = TOKENS.statistics().limits["tokens"].level
        with pytest.raises(TypeError, match="argument"):
            decorated(cost, lambda prompt: prompt)("abc", "d")
        assert TOKENS.statistics().limits["tokens"].level == before


def fails(prompt):
    raise ZeroDivisionError


@pytest.mark.parametrize(
    ("cost", "error"),
    [(fails, ZeroDivisionError), (len, TypeError), (lambda prompt: "x", CostError), (lambda prompt: -1, CostError),
     (lambda prompt: 1e300, CostError)],
    ids=["raises", "does not fit", "no number", "negative", "never"],
)  # fmt: skip
@pytest.mark.parametrize("keyed", [False, True], ids=["limiter", "keyed"])
def test_the_error_of_a_cost_names_limiter_unit_and_function(cost, error, keyed):
    limiter = (Keyed if keyed else Limiter)(tokens="100/day", name="openai", store=MemoryStore())
    options = {"key": lambda prompt: "alice"} if keyed else {}
    called = []

    def ask(prompt):
        called.append(prompt)

    with pytest.raises(error) as raised:
        limiter(tokens=cost, **options)(ask)(5)
    said = str(raised.value) + "".join(raised.value.__notes__)
    for part in ("openai", "tokens", "ask"):
        assert part in said
    assert called == []


@pytest.mark.parametrize(
    "wrong",
    [{"flow": lambda user: [user]}, {"priority": lambda user: 0.5}, {"max_wait": lambda user: -1},
     {"key": lambda user: [user]}],
    ids=["flow", "priority", "max_wait", "key"],
)  # fmt: skip
def test_the_error_of_what_a_function_says_names_the_limiter_and_the_function(wrong):
    keyed = Keyed(requests="100/day", name="openai", store=MemoryStore())

    def ask(user):
        raise AssertionError("it is not called")

    with pytest.raises(ValueError, match=r"alice|0\.5|-1") as raised:
        keyed(**{"key": lambda user: user} | wrong)(ask)("alice")
    (note,) = raised.value.__notes__
    assert "limiter openai of" in note
    assert "ask worked out of the arguments" in note


SETTLES = {
    "raises": lambda reply: 1 / 0,
    "a number of the wrong kind": lambda reply: {"tokens": 1j},
    "no mapping": lambda reply: 5,
    "pairs": lambda reply: [("tokens", 1)],
    "an unknown unit": lambda reply: {"nope": 1},
    "no unit": lambda reply: {5: 1},
    "no number": lambda reply: {"tokens": "x"},
    "NaN": lambda reply: {"tokens": float("nan")},
    "an awaitable": lambda reply: anyio.sleep(0),
}


@pytest.mark.parametrize("settle", SETTLES.values(), ids=SETTLES)
async def test_a_settle_that_goes_wrong_is_logged_and_the_reply_reaches_the_caller(settle, caplog):
    limiter = Limiter(tokens="100/day", calls=in_flight(1), name="openai", store=MemoryStore())

    async def reply():
        return "paid for"

    options = {"tokens": 10, "settle": settle}
    with caplog.at_level(logging.ERROR, "penstock"):
        assert await limiter(**options)(reply)() == "paid for"
        assert limiter(**options)(lambda: "paid for")() == "paid for"
        assert await limiter(**options)(lambda: reply())() == "paid for"
    assert len(caplog.records) == 3
    assert "limiter openai of" in caplog.text
    assert limiter.statistics().in_flight == 0
    assert round(limiter.statistics().limits["tokens"].level) == 70, "it stays charged as it was"


class Client:
    """A client of others, whose method is a plain function that returns an awaitable."""

    def __init__(self):
        self.now = self.most = self.calls = 0

    async def _get(self, url):
        self.now += 1
        self.most = max(self.most, self.now)
        await anyio.sleep(0.01)
        self.now -= 1
        self.calls += 1
        return {"used": 3}

    def get(self, url):
        return self._get(url)


FORMS = {
    "a bound method": lambda limiter, client, **options: (
        limiter(**options)(client.get) if options else limiter(client.get)
    ),
    "a lambda": lambda limiter, client, **options: limiter(**options)(lambda url: client._get(url)),
    "a partial": lambda limiter, client, **options: limiter(**options)(partial(client.get)),
    "a partial of an async function": lambda limiter, client, **options: limiter(**options)(partial(client._get)),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
async def test_of_five_calls_at_once_one_is_in_flight_also_where_only_the_result_shows_that_it_is_async(
    virtual_time, form
):
    client, limiter = Client(), Limiter(calls=in_flight(1))
    get = form(limiter, client)

    async def call():
        assert await get("url") == {"used": 3}

    for _ in range(2):
        async with anyio.create_task_group() as group:
            for _ in range(5):
                group.start_soon(call)
    assert (client.most, client.calls) == (1, 10)
    assert limiter.statistics().in_flight == 0


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
async def test_what_is_only_seen_to_be_async_is_settled_by_its_reply(virtual_time, form):
    client, limiter = Client(), Limiter(tokens="100/day", calls=in_flight(1))
    get = form(limiter, client, tokens=10, settle=lambda reply: {"tokens": reply["used"]})
    for _ in range(3):
        await get("url")
    assert round(limiter.statistics().limits["tokens"].level) == 91


async def test_keyed_is_a_decorator_of_functions_of_every_kind(virtual_time):
    per_user = Keyed(requests="2/min", tokens="100/day")
    options = {"key": lambda user, *_: user, "tokens": lambda user, prompt: len(prompt)}

    @per_user(**options, settle=lambda reply: {"tokens": 1})
    async def ask(user, prompt="abcd"):
        return prompt

    @per_user(**options, max_wait=0)
    def plain(user, prompt):
        return prompt

    @per_user(**options, max_wait=0)
    def items(user, prompt):
        yield from prompt

    @per_user(**options, max_wait=0)
    async def stream(user, prompt):
        for each in prompt:
            yield each

    assert await ask("alice") == "abcd"
    assert plain("alice", prompt="abc") == "abc"
    assert round(per_user["alice"].statistics().limits["tokens"].level) == 96
    with pytest.raises(RateLimited):
        plain("alice", "abc")
    assert list(items("bob", "ab")) == ["a", "b"]
    assert [each async for each in stream("bob", "xyz")] == ["x", "y", "z"]
    assert round(per_user["bob"].statistics().limits["tokens"].level) == 95
    with pytest.raises(RateLimited):
        next(items("bob", "ab"))
    with pytest.raises(TypeError):
        await ask()
    with pytest.raises(CostError, match="it is called and not awaited"):
        per_user(key=lambda user: user, tokens=Client()._get)(plain)


async def give_up(limiter):
    with anyio.move_on_after(0.001):
        await limiter.acquire()
    with suppress(RateLimited):
        await limiter.acquire(max_wait=0.001)


def full(**limits):
    limiter = Limiter(**limits)
    kept.append(limiter.acquire_nowait(tokens=1))
    return limiter


kept: list = []


def enter(call):
    with call:
        pass


async def enter_async(call):
    async with call:
        pass


REFUSED = {
    "acquire_nowait": lambda limiter: limiter.acquire_nowait(tokens=1),
    "with": lambda limiter: enter(limiter(tokens=1, max_wait=0)),
    "async with": lambda limiter: enter_async(limiter(tokens=1, max_wait=0)),
    "acquire": lambda limiter: limiter.acquire(tokens=1, max_wait=0.1),
    "in a loop": lambda limiter: enter(limiter(tokens=1)),
    "never": lambda limiter: limiter.acquire_nowait(tokens=1_000),
    "missing": lambda limiter: limiter.acquire_nowait(),
    "unknown": lambda limiter: limiter.acquire(words=1, tokens=1),
    "wrong": lambda limiter: limiter(tokens="x"),
    "a key": lambda limiter: KEY["alice"].acquire_nowait(tokens=1_000),
    "a key of no tokens": lambda limiter: KEY["alice"].acquire_nowait(),
    "joint": lambda limiter: limiter & 5,
    "settle": lambda limiter: kept[-1].settle(tokens="x"),
    "pause": lambda limiter: limiter.pause(-1),
    "reconfigure": lambda limiter: limiter.reconfigure(tokens="nonsense"),
    "a decorator": lambda limiter: limiter(tokens=len)(lambda prompt: prompt)(5),
}

KEY = Keyed(tokens="5/day")


@pytest.mark.parametrize("refused", REFUSED.values(), ids=REFUSED)
async def test_an_error_keeps_nothing_of_its_caller_alive(virtual_time, refused, anyio_backend_name):
    """No reference cycle through the traceback: what a frame holds is gone with it, and not when garbage is
    collected."""

    class Large:
        pass

    async def caller():
        large = Large()
        gone.append(weakref.ref(large))
        try:
            result = refused(limiter)
            if hasattr(result, "__await__"):
                await result
        except Exception as error:
            return type(error)
        return None

    gone: list = []
    limiter = full(tokens="1/day", calls=in_flight(1))
    gc.collect()
    gc.disable()
    try:
        assert await caller() is not None
        if refused is REFUSED["acquire"] and anyio_backend_name == "trio" and sys.version_info >= (3, 12):
            # trio keeps what woke a task, and `outcome` a cycle through it, until it sleeps again
            await anyio.lowlevel.checkpoint()
            gc.collect()
        assert gone[0]() is None
    finally:
        gc.enable()


@dataclasses.dataclass
class Settings:
    limiter: object


@pytest.mark.parametrize("copied", [pickle.dumps, copy.copy, copy.deepcopy, lambda what: dataclasses.asdict(Settings(what))],
                         ids=["pickle", "copy", "deepcopy", "asdict"])  # fmt: skip
@pytest.mark.parametrize(
    ("make", "way_out"),
    [
        (lambda: Limiter(requests="1/s"), "make it in each process|Share the limiter"),
        (lambda: Limiter(requests="1/s")(), "share it, as it may be entered by any number of tasks"),
        (lambda: Limiter(requests="1/s").acquire_nowait(), "Send its cost"),
        (lambda: Keyed(requests="1/s"), "make a Keyed in each process"),
        (lambda: Keyed(requests="1/s")["alice"], "make it in each process|Share the limiter"),
        (lambda: Limiter(requests="1/s") & Limiter(tokens="1/s"), "make it in each process|Share the limiter"),
    ],
    ids=["a limiter", "a call", "a permit", "keyed", "a key", "a joint limiter"],
)
def test_what_cannot_be_copied_says_the_way_out(make, way_out, copied):
    with pytest.raises(TypeError, match=way_out):
        copied(make())
