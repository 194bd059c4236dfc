"""Numbers of every kind, given everywhere: counted exactly, or refused with the number and nothing charged."""

from __future__ import annotations

import math
import re
import struct
from contextlib import contextmanager
from datetime import timedelta
from decimal import Decimal
from fractions import Fraction

import anyio
import pytest

from penstock import CostError, Keyed, Limiter, Rate, RateLimited, calendar, clock, in_flight, sliding, unlimited
from penstock.limits import Unlimited
from penstock.testing import manual_clock


class float32:  # noqa: N801 - as numpy's: no float, and a sum with it is one
    """24 bits of a number. `float + float32` is a float32, which forgets a small cost beside a large sum."""

    def __init__(self, value):
        self.value = struct.unpack("f", struct.pack("f", float(value)))[0]

    def __float__(self):
        return float(self.value)

    def __eq__(self, other):
        return self.value == other

    def __hash__(self):
        return hash(self.value)

    def __repr__(self):
        return f"float32({self.value})"

    def __add__(self, other):
        return type(self)(self.value + float(other))

    __radd__ = __add__

    def __sub__(self, other):
        return type(self)(self.value - float(other))

    def __rsub__(self, other):
        return type(self)(float(other) - self.value)

    def __mul__(self, other):
        return type(self)(self.value * float(other))

    __rmul__ = __mul__

    def __truediv__(self, other):
        return type(self)(self.value / float(other))

    def __rtruediv__(self, other):
        return type(self)(float(other) / self.value)

    def __mod__(self, other):
        return type(self)(self.value % float(other))

    def __lt__(self, other):
        return self.value < float(other)

    def __gt__(self, other):
        return self.value > float(other)

    def __le__(self, other):
        return self.value <= float(other)

    def __ge__(self, other):
        return self.value >= float(other)

    def __bool__(self):
        return bool(self.value)


class int64:  # noqa: N801 - as numpy's, which is no int
    def __init__(self, value):
        self.value = value

    def __index__(self):
        return self.value

    def __repr__(self):
        return f"int64({self.value})"


class Tensor(float32):
    """One number that may change, and is still the same key of a dict, as in PyTorch."""

    __hash__ = object.__hash__

    def __eq__(self, other):
        return self is other


class Array(float32):
    """One number that is no key of a dict, as in numpy."""

    __hash__ = None


ONES = [1, 1.0, True, float32(1), int64(1), Decimal(1), Fraction(1), Tensor(1), Array(1)]
NO_NUMBERS = [math.nan, float32(math.nan), Decimal("nan"), Decimal("snan"), math.inf, Decimal("inf"), -1, float32(-1), -0.001,
              10**400, 1j, "1", b"1", None, [1], object(), timedelta(seconds=1)]  # fmt: skip
UPTIMES = [0.0, 86_400.0, 1e9]

LIMITS = {
    "a rate": Rate(90_000, 60),
    "a rate with an overdraft": Rate(90_000, 60, overdraft=True),
    "sliding": sliding(90_000, 60),
    "calendar": calendar(90_000, "day"),
    "places": in_flight(90_000, default=None),
}


@contextmanager
def after(uptime):
    with manual_clock() as at:
        at.advance(uptime)
        yield


def with_mapping(limiter, amount):
    return limiter.acquire_nowait({"tokens": amount})


def with_keyword(limiter, amount):
    return limiter.acquire_nowait(tokens=amount)


def by_call(limiter, amount):
    permit = limiter(tokens=amount).__enter__()
    kept.append(permit)
    return permit


def by_function(limiter, amount):
    limiter(tokens=lambda: amount)(lambda: None)()


def by_settling(limiter, amount):
    limiter.acquire_nowait(tokens=5).settle(tokens=amount)


kept: list = []

CHARGES = [with_mapping, with_keyword, by_call, by_function, by_settling]


def level(limiter):
    return limiter.statistics().limits["tokens"].level


@pytest.mark.parametrize("uptime", UPTIMES, ids=["at the start", "after a day", "after thirty years"])
@pytest.mark.parametrize("charge", CHARGES)
@pytest.mark.parametrize("one", ONES, ids=repr)
def test_a_cost_of_one_is_one_whatever_kind_of_number_it_is(one, charge, uptime):
    """Sixty times, by a limiter and by a key; and what is counted afterwards is a Python number as well."""
    with after(uptime):
        per_user = Keyed(tokens=Rate(90_000, 1e12))
        for limiter in (Limiter(tokens=Rate(90_000, 1e12)), per_user["alice"]):
            for _ in range(60):
                charge(limiter, one)
            assert level(limiter) == pytest.approx(89_940, abs=2e-4)
            assert type(level(limiter)) in {int, float}
            for _ in range(10):
                limiter.acquire_nowait(tokens=1)
            assert level(limiter) == pytest.approx(89_930, abs=2e-4)


@pytest.mark.parametrize("limit", LIMITS.values(), ids=LIMITS)
@pytest.mark.parametrize("one", ONES, ids=repr)
def test_every_kind_of_limit_counts_every_kind_of_number(one, limit):
    with after(86_400.0):
        limiter = Limiter(tokens=limit)
        permits = [limiter.acquire_nowait(tokens=one) for _ in range(100)]
        assert level(limiter) == pytest.approx(89_900)
        for permit in permits:
            assert permit.cost == {"tokens": 1}
            assert type(permit.cost["tokens"]) in {int, float}
            permit.settle(tokens=one)
            permit.cancel()
        assert level(limiter) == pytest.approx(90_000)
        for _ in range(90):
            limiter.acquire_nowait(tokens=1_000)
        with pytest.raises(RateLimited):
            limiter.acquire_nowait(tokens=one)


@pytest.mark.parametrize("uptime", UPTIMES)
@pytest.mark.parametrize("one", ONES[:2] + ONES[3:], ids=repr)
def test_what_a_server_says_is_left_is_heard_in_every_kind_of_number(one, uptime):
    with after(uptime):
        limiter = Limiter(tokens=Rate(90_000, 60))
        permit = limiter.acquire_nowait(tokens=5)
        limiter.observe(remaining={"tokens": one})
        assert level(limiter) == pytest.approx(1, abs=1e-3)
        permit.observe(remaining={"tokens": one}, reset={"tokens": one})
        limiter.observe(reset={"tokens": one})
        assert type(level(limiter)) is float
        assert level(limiter) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("wrong", NO_NUMBERS, ids=repr)
def test_what_is_no_amount_is_refused_with_the_number_and_nothing_is_charged(wrong):
    with after(86_400.0):
        limiter, per_user = Limiter(tokens="90k/min", requests="10/min"), Keyed(tokens="90k/min", requests="10/min")
        permit = limiter.acquire_nowait(tokens=5)
        attempts = [
            *(lambda limiter=limiter, charge=charge: charge(limiter, wrong) for charge in CHARGES[:-1]),
            *(lambda charge=charge: charge(per_user["alice"], wrong) for charge in CHARGES[:-1]),
            lambda: limiter.forecast(tokens=wrong),
            lambda: permit.settle(tokens=wrong),
            lambda: permit.settle({"tokens": wrong}),
        ]
        for attempt in attempts:
            with pytest.raises(CostError, match=re.escape(f"{wrong!r}"[:40])):
                attempt()
        if not isinstance(wrong, timedelta):  # a reset may be one
            for hear in (limiter.observe, permit.observe):
                with pytest.raises(CostError, match=re.escape(f"{wrong!r}"[:40])):
                    hear(remaining={"tokens": wrong})
        assert level(limiter) == pytest.approx(89_995)
        assert level(per_user["alice"]) == 90_000
        assert limiter.statistics().limits["requests"].level == 9


BUILT = {
    "rate": lambda number: Rate(number, 60),
    "period": lambda number: Rate(10, number),
    "burst": lambda number: Rate(10, 60, number),
    "sliding amount": lambda number: sliding(number, 60),
    "sliding window": lambda number: sliding(5, number),
    "calendar": lambda number: calendar(number, "day"),
    "places": in_flight,
    "time to live": lambda number: in_flight(2, ttl=number),
    "default": lambda number: Rate(10, 60, default=number),
    "default of places": lambda number: in_flight(2, default=number),
    "default of no limit": lambda number: Unlimited(default=number),
}


@pytest.mark.parametrize("build", BUILT.values(), ids=BUILT)
def test_limits_are_made_of_every_kind_of_number_and_hold_python_numbers(build):
    exact = build(1)
    for one in ONES[:2] + ONES[3:]:
        built = build(one)
        assert built == exact
        assert {type(getattr(built, name)) for name in built.__dataclass_fields__} <= {
            int,
            float,
            bool,
            str,
            type(None),
        }


@pytest.mark.parametrize("what", BUILT)
@pytest.mark.parametrize("wrong", [*NO_NUMBERS[:13], [1]], ids=repr)
def test_limits_are_not_made_of_what_is_no_amount(what, wrong):
    with pytest.raises(ValueError, match=re.escape(f"{wrong!r}"[:40])):
        BUILT[what](wrong)


@pytest.mark.parametrize("build", [BUILT["period"], BUILT["sliding window"], BUILT["time to live"]])
def test_spans_may_be_timedeltas(build):
    assert build(timedelta(milliseconds=1_500)) == build(1.5)
    for wrong in (timedelta(0), timedelta(seconds=-1)):
        with pytest.raises(ValueError, match=r"above 0, not datetime\.timedelta"):
            build(wrong)


OPTIONS = {
    "max_wait": (lambda span: Limiter(requests="1/s")(max_wait=span), -1),
    "ageing": (lambda span: Limiter(requests="1/s", ageing=span), 0),
    "pause": (lambda span: Limiter(requests="1/s").pause(span), -1),
}


@pytest.mark.parametrize(("use", "least"), OPTIONS.values(), ids=OPTIONS)
def test_options_that_are_spans_take_numbers_of_every_kind_and_timedeltas(use, least):
    for span in (*ONES[:2], *ONES[3:], timedelta(seconds=1)):
        use(span)
    for wrong in (math.nan, "1", 1j, True, [1], Decimal("snan"), least, timedelta(seconds=least)):
        with pytest.raises(ValueError, match=re.escape(f"{wrong!r}")):
            use(wrong)


async def wait_for_turns(limiter, flows):
    order = []

    async def call(flow):
        async with limiter(flow=flow):
            order.append(flow)

    async with anyio.create_task_group() as group:
        for flow in flows:
            group.start_soon(call, flow)
            await anyio.wait_all_tasks_blocked()
    return order


@pytest.mark.anyio
@pytest.mark.parametrize("three", [3, float32(3), int64(3), Decimal(3), Fraction(3), Array(3)], ids=repr)
async def test_weights_of_flows_are_numbers_of_every_kind(virtual_time, three):
    """A Decimal failed in the middle of a decision, as it does not divide floats."""
    limiter = Limiter(requests=Rate(1, 1.0, 1), flow_weights={"large": three})
    limiter.acquire_nowait()
    order = await wait_for_turns(limiter, ["large", "small"] * 8)
    assert order[:8].count("large") == 6


@pytest.mark.parametrize("priority", [1.5, "1", None, Decimal(1), float32(1), [1], Array(1), 1j], ids=repr)
def test_a_priority_is_a_whole_number(priority):
    class Broken:
        def __index__(self):
            raise TypeError

    limiter = Limiter(requests="10/s")
    for wrong in (priority, Broken()):
        for use in (limiter, limiter.acquire_nowait):
            with pytest.raises(ValueError, match="priority must be a whole number"):
                use(priority=wrong)
    limiter.acquire_nowait(priority=int64(3))


def test_a_number_that_changes_is_read_at_every_call():
    """It is the same key of a dict as before: what had been charged for it was charged again."""
    tokens = Tensor(5)
    limiter, per_user = Limiter(tokens="100/day"), Keyed(tokens="100/day")
    for each in (limiter, per_user["alice"]):
        for amount in (5, 20):
            tokens.value = amount
            each.acquire_nowait(tokens=tokens)
            with each(tokens=tokens):
                pass
        assert round(level(each)) == 50


@pytest.mark.parametrize("word", ["flow", "priority", "max_wait", "block", "settle"])
def test_a_unit_that_is_called_as_a_keyword_is_never_taken_for_it(word):
    """Whichever was given first: a cost `{"flow": 5}` and the option `flow=5` were remembered as one."""
    value = {"settle": None, "block": True}.get(word, 5)
    for first in ("cost", "option"):
        limiter = Limiter({word: "100/day", "requests": Rate(100, 86_400, default=1)})
        keyed = Keyed({word: Rate(100, 86_400, default=1), "requests": "100/day"})
        fixed = Limiter({word: Rate(100, 86_400, default=1), "requests": "100/day"})
        for each in (fixed, keyed["alice"], limiter):
            default = 0 if each is limiter else 1
            uses = [
                lambda each=each: each.acquire_nowait({word: 5}),
                lambda each=each: each({word: 5}).__enter__(),
                lambda each=each, default=default: (
                    each(**{word: value}).__enter__() if default else each.acquire_nowait({word: 0})
                ),
            ]
            for use in uses if first == "cost" else reversed(uses):
                use()
            assert round(each.statistics().limits[word].level) == 100 - 10 - default


def test_equal_numbers_of_other_kinds_cost_the_same():
    limiter = Limiter(tokens="100/day")
    for five in (5, 5.0, Decimal(5), Fraction(5), float32(5)):
        with limiter(tokens=five) as permit:
            assert permit.cost == {"tokens": 5}
    limiter(tokens=1)
    with limiter(tokens=True) as permit:
        assert permit.cost == {"tokens": 1}
    assert round(level(limiter)) == 74


def test_unlimited_counts_nothing_of_any_number():
    limiter = Limiter(tokens=unlimited, requests="10/min")
    for one in (*ONES, 1e300):
        limiter.acquire_nowait(tokens=one, requests=0)
    with pytest.raises(CostError):
        limiter.acquire_nowait(tokens=math.nan, requests=0)
    assert level(limiter) == math.inf
    assert clock.now() > 0


@pytest.mark.parametrize(("amount", "per", "burst"), [(1e-300, 1e300, 1), (1e300, 1e-300, 1), (5e-324, 1, None)])
def test_a_rate_that_no_float_holds_is_refused(amount, per, burst):
    """It was 0 or infinity in units per second: a division by zero, later and without a word of the rate."""
    with pytest.raises(ValueError, match="beyond what a float can hold"):
        Rate(amount, per, burst)
