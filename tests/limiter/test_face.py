"""What a limiter refuses, shows and tells."""

from __future__ import annotations

import copy
import dataclasses
import math
import pickle
from decimal import Decimal

import anyio
import pytest

import penstock
from penstock import (
    CostError,
    Keyed,
    Limiter,
    MissingUnit,
    Rate,
    RateLimited,
    UnknownUnit,
    Unsatisfiable,
    calendar,
    events,
    in_flight,
    per_minute,
    per_second,
    sliding,
)
from penstock.stores.memory import MemoryStore

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Limiter(requests=per_minute(0)), ValueError, "above 0, not 0"),
        (lambda: Limiter(requests=per_minute(-3)), ValueError, "above 0, not -3"),
        (lambda: Limiter(requests=per_minute(math.nan)), ValueError, "finite"),
        (lambda: Limiter(requests=per_minute(math.inf)), ValueError, "finite"),
        (lambda: Limiter(requests=per_minute(5, burst=0.5)), ValueError, "burst of 0.5 is below one unit"),
        (lambda: Limiter(requests=Rate(0.5, 1)), ValueError, r"write Rate\(1, per=2\)"),
        (lambda: Limiter(requests="3500 per fortnight"), ValueError, "cannot read '3500 per fortnight'"),
        (lambda: Limiter(requests=calendar(1, "day", "Mars/Olympus")), ValueError, "unknown time zone 'Mars/Olympus'"),
        (lambda: Limiter(requests=calendar(1, "fortnight")), ValueError, "unknown calendar period"),
        (lambda: Limiter(priority=per_minute(5)), ValueError, "cannot be called 'priority'"),
        (lambda: Limiter(name=per_minute(5)), ValueError, "name= must be a string"),
        (Limiter, ValueError, "at least one limit"),
        (lambda: Limiter(requests=5), ValueError, "requests needs a limit"),
        (lambda: Limiter(requests=per_minute(5), ageing=0), ValueError, "ageing"),
        (lambda: Limiter(requests=per_minute(5), flow_weights={"a": -1}), ValueError, "weight of flow 'a'"),
        (lambda: Limiter(requests=per_minute(5), max_queue=-1), ValueError, "max_queue"),
    ],
)  # fmt: skip
def test_a_wrong_limiter_is_refused_where_it_is_made(make, error, message):
    with pytest.raises(error, match=message):
        make()


NEVER = (
    '^12000 tokens can never be granted: "tokens" holds at most 10000 at once. '
    "Split the call, raise burst, or allow overdraft.$"
)


@pytest.mark.parametrize(
    ("cost", "error", "message"),
    [
        ({}, MissingUnit, "how many tokens does this call cost"),
        ({"tokens": 1, "imagse": 2}, UnknownUnit, "this limiter knows requests, tokens"),
        (
            {"token": 5},
            UnknownUnit,
            r"^no limit counts 'token': this limiter knows requests, tokens. Did you mean tokens=…\?$",
        ),
        ({"tokens": 5, "maxwait": 5}, UnknownUnit, r"knows requests, tokens. Did you mean max_wait=…\?$"),
        ({"tokens": 5, "words": 5}, UnknownUnit, "^no limit counts 'words': this limiter knows requests, tokens$"),
        ({"tokens": 12_000}, Unsatisfiable, NEVER),
        ({"tokens": math.nan}, CostError, "not nan"),
        ({"tokens": -1}, CostError, "not -1"),
        ({"tokens": "5"}, CostError, "not '5'"),
        ({"tokens": Decimal("NaN")}, CostError, r"not Decimal\('NaN'\)"),
        ({"tokens": None}, (MissingUnit, CostError), "tokens"),
    ],
)  # fmt: skip
async def test_a_wrong_cost_is_refused_in_every_form(cost, error, message):
    limiter = Limiter(requests=per_minute(10), tokens=per_minute(10_000))
    with pytest.raises(error, match=message):
        limiter.acquire_nowait(**cost)
    with pytest.raises(error, match=message):
        await limiter.acquire(**cost)
    with pytest.raises(error, match=message):
        async with limiter(**cost):
            pass
    with pytest.raises(error, match=message), limiter(**cost):
        pass
    assert limiter.statistics().granted == 0


@pytest.mark.parametrize(
    "limiter",
    [
        Limiter(tokens=per_minute(10), name="openai"),
        Limiter(tokens=per_minute(10), name="openai") & Limiter(calls=in_flight(5)),
        Keyed(tokens=per_minute(10))["openai"],
        Keyed(lambda _: {"tokens": per_minute(10)})["openai"],
    ],
    ids=["named", "joint", "key", "key of a function"],
)
def test_a_wrong_cost_names_the_limiter(limiter):
    """A program with twenty of them, or a key for each user, sees which one."""
    wrong = {
        MissingUnit: ('how many tokens of "openai" does this call cost?', limiter),
        Unsatisfiable: ('"tokens" of "openai" holds at most 10 at once', lambda: limiter.forecast(tokens=11)),
        UnknownUnit: ("no limit of \"openai\" counts 'words'", lambda: limiter.pause(1, "words")),
    }
    for kind, (message, call) in wrong.items():
        with pytest.raises(kind, match=message.replace("?", r"\?")) as caught:
            call()
        assert caught.value.limiter == "openai"
    with pytest.raises(UnknownUnit, match='no limit of "openai" counts'):
        limiter.acquire_nowait(tokens=1).settle(words=5)


async def test_one_name_has_one_set_of_limits():
    store = MemoryStore()
    one = Limiter(name="service", store=store, requests=per_minute(10))
    same = Limiter(name="service", store=store, requests=per_minute(10))
    one.acquire_nowait(requests=4)
    assert same.statistics().limits["requests"].level == pytest.approx(6, abs=0.1)
    with pytest.raises(penstock.ConfigurationConflict, match="requests=10/min there, requests=11/min here"):
        Limiter(name="service", store=store, requests=per_minute(11))


async def test_events_tell_what_happened_and_a_failing_hook_breaks_nothing(virtual_time, caplog):
    seen = []

    def hook(event):
        seen.append(type(event))
        raise RuntimeError("a bug in the hook")

    limiter = Limiter(requests=per_second(1, burst=1), on_event=hook)
    permit = await limiter.acquire()
    with pytest.raises(RateLimited):
        limiter.acquire_nowait()
    await limiter.acquire()
    permit.settle(requests=1)
    permit.observe(remaining={"requests": 1})
    limiter.pause(0.1)
    limiter.observe(remaining={"requests": 0})
    limiter.reconfigure(requests=per_second(2))
    permit.cancel()
    assert seen == [
        events.Granted, events.Refused, events.Granted, events.Settled, events.Observed, events.Paused,
        events.Observed, events.Reconfigured, events.Withdrawn,
    ]  # fmt: skip
    assert "a bug in the hook" in caplog.text


async def test_a_waiter_that_leaves_is_told_of_as_withdrawn(virtual_time):
    heard = []
    limiter = Limiter(requests=per_minute(1), on_event=heard.append)
    await limiter.acquire()
    async with anyio.create_task_group() as group:
        group.start_soon(limiter.acquire)
        await anyio.sleep(1)
        group.cancel_scope.cancel()
    assert heard[1:] == [events.Withdrawn(None, {"requests": 1})]


async def test_what_a_limiter_shows_is_frozen_and_can_be_sent_and_written_down(virtual_time):
    limiter = Limiter(requests=per_minute(10), tokens=[sliding(5, 1), calendar(9, "day")], calls=in_flight(3, ttl=60))
    for shown in (limiter.statistics(), limiter.limits, limiter.forecast(tokens=1)):
        for there in (pickle.loads(pickle.dumps(shown)), copy.copy(shown), copy.deepcopy(shown)):
            assert there == shown
    written = dataclasses.asdict(limiter.statistics())
    assert written["limits"]["requests"]["limit"] == {**dataclasses.asdict(per_minute(10))}
    for change in (
        lambda shown: shown.update(requests=1),
        lambda shown: shown.pop("requests"),
        lambda shown: shown.__setitem__("requests", 1),
        lambda shown: shown.__delitem__("requests"),
    ):
        with pytest.raises(TypeError, match="it cannot be changed"):
            change(limiter.statistics().limits)
    with pytest.raises(dataclasses.FrozenInstanceError):
        limiter.statistics().granted = 5


def test_a_grant_that_is_heard_of_is_a_frozen_value():
    heard = []
    limiter = Limiter(requests=per_second(5), name="api", on_event=heard.append)
    limiter.acquire_nowait(flow="alice")
    (event,) = heard
    assert event == events.Granted("api", {"requests": 1}, 0.0, "alice")
    assert repr(event) == "Granted(limiter='api', cost={'requests': 1}, waited=0.0, flow='alice')"
    assert pickle.loads(pickle.dumps(event)) == dataclasses.replace(event, call=1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        event.waited = 1.0


def test_a_subclass_of_a_users_stays_what_it_is():
    """No class is derived from it behind its back: that would be registered, and lack what such a class must say."""
    registered = []

    class Registered(Limiter):
        def __init_subclass__(cls, *, kind):
            registered.append(kind)

    class Ours(Registered, kind="ours"):
        label = "mine"

    limiter = Ours(requests="2/min", tokens="10/min")
    assert type(limiter) is Ours
    assert limiter.label == "mine"
    assert registered == ["ours"]
    with limiter(tokens=5) as permit:
        assert permit.cost == {"requests": 1, "tokens": 5}
    with pytest.raises(MissingUnit, match="how many tokens"):
        limiter()
