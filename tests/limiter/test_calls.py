"""`limiter(...)`: entered by many, in any order; a decorator; and what is computed from a call's arguments."""

from __future__ import annotations

import gc
import re
import weakref
from contextlib import AsyncExitStack

import anyio
import anyio.to_thread
import pytest

from penstock import (
    CostError,
    Keyed,
    Limiter,
    MissingUnit,
    Rate,
    RateLimited,
    UnknownUnit,
    Unsatisfiable,
    in_flight,
    per_minute,
    per_second,
)
from penstock._call_method import WORDS

pytestmark = pytest.mark.anyio


async def test_one_call_object_serves_many_tasks_at_once(virtual_time):
    limiter = Limiter(calls=in_flight(3))
    gate = limiter()
    inside = []

    async def call():
        async with gate:
            inside.append(limiter.statistics().in_flight)
            await anyio.sleep(1)

    async with anyio.create_task_group() as group:
        for _ in range(7):
            group.start_soon(call)
    assert max(inside) == 3
    assert limiter.statistics().in_flight == 0


def names_in_use():
    """Those that the written `__call__` of a limiter uses itself, with what Python keeps for itself."""
    code = type(Limiter(words="10/s")).__call__.__code__
    return sorted(
        {*code.co_names, *code.co_varnames, "__debug__", "None", "clock", "type", "object"} - {"words", *WORDS}
    )


@pytest.mark.parametrize("make", [Limiter, lambda **limits: Keyed(**limits)["alice"]], ids=["limiter", "key"])
@pytest.mark.parametrize("unit", names_in_use())
async def test_a_unit_may_be_called_like_anything_inside(make, unit, virtual_time):
    """Its cost is a parameter of a method that has names of its own."""
    limiter = make(**{unit: Rate(10, 60)})
    for cost in (3, 3, 4):
        with limiter({unit: cost}) if unit in {"self", "given"} else limiter(**{unit: cost}):
            pass
    with pytest.raises(RateLimited):
        limiter.acquire_nowait({unit: 1})


@pytest.mark.parametrize("cost", [(2, 5), (5,), [2, 5], "5", {}], ids=str)
async def test_a_cost_that_is_no_number_is_found_by_none_that_was_seen_before(cost, virtual_time):
    """A tuple equals the costs of all units, in their order, of a call before."""
    limiter = Limiter(requests="10/s", tokens="100/s")
    for _ in range(2):
        with limiter(requests=2, tokens=5):
            pass
    with pytest.raises(CostError):
        limiter(tokens=cost)
    assert limiter.statistics().granted == 2


async def test_a_decorator_computes_the_cost_and_settles_by_the_result(virtual_time):
    limiter = Limiter(requests=per_minute(10), tokens=per_minute(100))

    @limiter(tokens=len, settle=lambda reply: {"tokens": reply["used"]})
    async def ask(prompt):
        return {"used": 7, "text": prompt.upper()}

    assert (await ask("twelve chars"))["text"] == "TWELVE CHARS"
    assert ask.__name__ == "ask"
    assert limiter.statistics().limits["tokens"].level == pytest.approx(93)


async def test_a_result_that_tells_no_cost_leaves_the_charge_as_it_is(virtual_time, caplog):
    limiter = Limiter(tokens=per_minute(100))
    assert await limiter(tokens=10, settle=lambda _: None)(anyio.sleep)(0) is None
    assert limiter.statistics().limits["tokens"].level == 90
    assert caplog.records == []


async def test_generators_hold_their_permit_until_they_end(virtual_time):
    limiter = Limiter(calls=in_flight(1))

    @limiter
    async def stream():
        yield limiter.statistics().in_flight
        yield limiter.statistics().in_flight

    assert [n async for n in stream()] == [1, 1]
    assert limiter.statistics().in_flight == 0
    items = stream()
    assert await anext(items) == 1
    await items.aclose()
    assert limiter.statistics().in_flight == 0


def test_functions_that_would_have_to_be_awaited_are_refused_where_they_are_given():
    async def later(*_):
        return {}

    limiter = Limiter(tokens=per_second(5))
    for wrong in ({"tokens": later}, *({"tokens": 1, option: later} for option in ("settle", "priority", "flow"))):
        with pytest.raises(CostError, match="later: it is called and not awaited"):
            limiter(**wrong)
    with pytest.raises(ValueError, match=r"on_event=.*later: it is called and not awaited"):
        Limiter(tokens=per_second(5), on_event=later)


@pytest.mark.parametrize(
    ("turn", "message"),
    [
        ({"priority": lambda: "high"}, "priority must be a whole number .*, not 'high'"),
        ({"flow": lambda: ["alice"]}, r"flow must be hashable, such as a string or a tuple, not \['alice'\]"),
    ],
    ids=["priority", "flow"],
)
async def test_a_wrong_turn_that_a_function_returns_is_refused_and_leaves_no_trace_in_the_line(
    virtual_time, turn, message
):
    """The line was entered with it: it stood there for ever, and nobody else could go without a look at it."""
    limiter = Limiter(requests=per_second(1, burst=1))

    @limiter(**turn)
    async def call():
        pass

    await limiter.acquire()
    with pytest.raises(ValueError, match=message):
        await call()
    assert limiter.statistics().waiting == 0
    await limiter.acquire(max_wait=1)


async def test_a_wrong_turn_is_refused_where_it_is_given_whatever_else_is_a_function():
    limiter = Limiter(tokens=per_second(5))
    for wrong in ({"max_wait": -1}, {"priority": 1.5}, {"flow": ["alice"]}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            limiter(tokens=len, **wrong)


@pytest.mark.parametrize("option", ["tokens", "priority", "flow", "settle"])
async def test_functions_of_a_call_are_refused_where_there_is_no_call(option):
    limiter = Limiter(tokens=per_second(5, default=1))
    use = limiter(**{option: len})
    with pytest.raises(CostError, match=rf"{option}.* is a function of the call's .*: use it in a decorator"):
        async with use:
            pass
    with pytest.raises(CostError, match="use it in a decorator"), use:
        pass


async def test_the_context_is_left_as_it_was_entered_whatever_the_limits_are_by_then(virtual_time):
    limiter = Limiter(requests=per_second(10))
    async with limiter:
        limiter.reconfigure(requests=[per_second(10), per_minute(100)])
        async with limiter:
            pass
    async with limiter:
        limiter.reconfigure(requests=per_second(10))
    assert limiter._own._entered is None, "nothing is left of it"


async def test_a_call_that_tasks_share_closes_no_permit_of_another_task_after_a_rate_became_places(virtual_time):
    """The first entered when there was nothing to hold; leaving, it gave back the place of the second."""
    limiter = Limiter(calls=per_second(10, default=1))
    shared = limiter(calls=1)
    in_flight_then = []

    async def second():
        async with shared:
            await anyio.sleep(2)
            in_flight_then.append(limiter.statistics().in_flight)

    async with anyio.create_task_group() as group, shared:
        limiter.reconfigure(calls=in_flight(5))
        group.start_soon(second)
        await anyio.sleep(1)
    assert in_flight_then == [1]
    assert limiter.statistics().in_flight == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"priority": lambda _: None}, "priority must be a whole number (higher goes first), not None"),
        ({"priority": lambda _: "high"}, "priority must be a whole number (higher goes first), not 'high'"),
        (
            {"priority": lambda _: 10**400},
            "priority must be between -2**53 and 2**53, so that waiting still makes a difference",
        ),
        ({"flow": lambda _: []}, "flow must be hashable, such as a string or a tuple, not []"),
    ],
    ids=["no priority", "a word for a priority", "a priority without measure", "no name of a flow"],
)
async def test_a_wrong_answer_about_a_turn_is_refused_before_anybody_stands_in_line(virtual_time, options, message):
    """Also by the first call, which need not wait; and nobody is left in the line whom nobody will ever serve."""
    limiter = Limiter(requests=per_second(1, burst=1))

    @limiter(**options)
    async def fetch(url):
        return url

    for _ in range(2):
        with pytest.raises(ValueError, match=re.escape(message)):
            await fetch("a")
        await limiter.acquire()
    assert limiter.statistics().waiting == 0
    with pytest.raises(
        ValueError, match=r"is a function of the call's arguments: use it in a decorator, not in `with`"
    ):
        async with limiter(**options):
            pass


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"tokens": len, "max_wait": -1}, ValueError, "max_wait=-1: seconds or a timedelta, 0 or more"),
        ({"tokens": len, "priority": "high"}, ValueError, "priority must be a whole number"),
        ({"tokens": len, "requests": -1}, CostError, "the cost of requests must be a finite number, 0 or more, not -1"),
        (
            {"tokens": len, "requests": None},
            CostError,
            "the cost of requests must be a finite number, 0 or more, not None",
        ),
        ({"tokens": len, "requests": 11}, Unsatisfiable, "11 requests can never be granted"),
        ({"requests": len}, MissingUnit, "how many tokens does this call cost?"),
        ({"flow": str, "tokens": 5, "words": 5}, UnknownUnit, "no limit counts 'words'"),
    ],
)
def test_what_is_wrong_beside_a_function_is_refused_at_decoration(options, error, message):
    with pytest.raises(error, match=re.escape(message)):
        Limiter(requests="10/s", tokens="100/s")(**options)


@pytest.mark.parametrize("limits", [{"requests": "10/s"}, {"requests": ["10/s", "9/min"]}, {"calls": in_flight(2)}])
async def test_a_limiter_that_was_entered_by_itself_is_gone_with_its_last_holder(limits):
    """As a key of `Keyed` must be, which is kept while its limiter lives."""
    gc.disable()
    try:
        limiter = Limiter(**limits)
        gone = weakref.ref(limiter)
        async with limiter:
            pass
        with limiter:
            pass
        del limiter
        assert gone() is None
    finally:
        gc.enable()


async def test_a_limiter_entered_in_one_task_can_be_left_in_another(virtual_time):
    """As fixtures and exit stacks do."""
    limiter = Limiter(calls=in_flight(2))
    stack = AsyncExitStack()

    async def enter():
        await stack.enter_async_context(limiter)
        await stack.enter_async_context(limiter(calls=1))

    async with anyio.create_task_group() as group:
        group.start_soon(enter)
    assert limiter.statistics().in_flight == 2
    await stack.aclose()
    assert limiter.statistics().in_flight == 0


def test_a_call_shows_a_unit_that_is_called_like_an_option():
    """A mapping is the only way to give it, so it is shown as one."""
    limiter = Limiter({"priority": "5/min", "requests": "9/min"})
    cost = {"priority": 2, "requests": 1}
    assert repr(limiter(cost)).endswith("(" + repr(cost) + ")")
    assert repr(limiter(cost, priority=5, max_wait=3)).endswith("(" + repr(cost) + ", max_wait=3, priority=5)")
    assert repr(limiter(cost, settle=len)).endswith("(" + repr(cost) + ", settle=len)")
    assert repr(Limiter(tokens="5/min")(tokens=2)).endswith("(tokens=2)")


def test_a_missing_unit_that_is_called_like_an_option_is_asked_for_in_a_mapping():
    """The keyword would be the option."""
    limiter = Limiter({"priority": "5/min", "input tokens": "9/min", "requests": "9/min"})
    with pytest.raises(MissingUnit, match=r"Say limiter\(\{'priority': …\}\)"):
        limiter({"input tokens": 1})
    with pytest.raises(MissingUnit, match=r"Say limiter\(\{'input tokens': …\}\)"):
        limiter({"priority": 1})
