"""Spans of time as users write them."""

from __future__ import annotations

import math
import operator
import re
from datetime import timedelta
from decimal import Decimal
from fractions import Fraction

import pytest

from penstock import Budget, CostError, Keyed, Limiter, RateLimited, Retry, amap, circuit_breaker, hedge, simulator
from penstock._numbers import exact, read_number, read_seconds, show_dollars, show_seconds
from penstock.batching import Batcher
from penstock.usage import Cap, Ledger


class float32:  # noqa: N801 - as numpy's, which is no subclass of float
    def __init__(self, value):
        self.value = value

    def __float__(self):
        return self.value

    def __repr__(self):
        return f"float32({self.value})"


class bool_(float32):  # noqa: N801 - numpy's has a `__float__` too
    pass


@pytest.mark.parametrize(
    ("given", "seconds"),
    [
        (0, 0),
        (5, 5),
        (2.5, 2.5),
        (-1, -1),
        (math.inf, math.inf),
        (timedelta(minutes=2, milliseconds=500), 120.5),
        (timedelta(seconds=-3), -3.0),
        (Decimal("0.25"), 0.25),
        (Fraction(1, 4), 0.25),
        (float32(0.5), 0.5),
    ],
    ids=repr,
)
def test_any_real_number_and_a_timedelta_are_spans(given, seconds):
    assert read_seconds(given) == seconds
    assert type(read_seconds(given)) is type(seconds)


@pytest.mark.parametrize(
    "given",
    [True, False, bool_(1.0), math.nan, Decimal("nan"), Decimal("snan"), "5", b"5", None, 5j, [5], object(), 10**400],
    ids=repr,
)  # fmt: skip
def test_what_is_no_time_is_none(given):
    assert read_seconds(given) is None


def test_an_object_whose_conversion_fails_is_none():
    class Broken:
        def __float__(self):
            raise TypeError

    assert read_seconds(Broken()) is None
    assert read_seconds(type("Index", (), {"__index__": lambda _: 3})()) == 3.0


def test_a_plain_number_is_no_timedelta():
    assert read_number(timedelta(seconds=1)) is None
    assert read_number(5) == 5


def test_a_tensor_of_one_fraction_keeps_it():
    """Arrays and tensors have an `__index__`, which refuses a fraction; `int()` would cut 5.5 to 5."""
    tensor = type("Tensor", (), {"__index__": operator.index, "__int__": lambda _: 5, "__float__": lambda _: 5.5})()
    assert exact(tensor) == 5.5


class Refuses(int):
    """A number of a user's that can be read, and refuses everything else."""

    def _refuse(self, *_):
        raise RuntimeError

    __eq__ = __hash__ = __lt__ = __le__ = __gt__ = __ge__ = __int__ = __add__ = __mul__ = _refuse


@pytest.mark.anyio
async def test_a_number_that_refuses_to_compare_is_read_all_the_same():
    limiter, per_user = Limiter(tokens="100/min"), Keyed(tokens="100/min")
    one = Refuses(1)
    for each in (limiter, per_user["alice"]):
        each.acquire_nowait(tokens=one, priority=one).settle(tokens=Refuses(2))
        with each(tokens=one, max_wait=one, priority=one, block=one):
            pass
        (await each.acquire(tokens=one, priority=one)).close()
        assert each.forecast(tokens=one).wait == 0
        assert round(each.statistics().limits["tokens"].level) == 96
    with pytest.raises(ValueError, match="flow must be hashable"):
        limiter(tokens=1, flow=one)
    with pytest.raises(ValueError, match="must be hashable"):
        per_user[one]
    with pytest.raises(ValueError, match="priority must be a whole number"):
        await limiter.acquire(tokens=1, priority=Decimal("sNaN"))


class int64:  # noqa: N801 - as numpy's, which is no subclass of int
    def __init__(self, value):
        self.value = value

    def __index__(self):
        return self.value


async def echo(item):
    return item


COUNTED = {
    "amap": lambda count: amap(echo, [], in_flight=count),
    "Batcher": lambda count: Batcher(echo, max_items=count),
    "Batches": lambda count: simulator.Batches(enqueued_tokens=count, max_rows=count, max_bytes=count),
    "Budget": lambda count: Budget(count, count, count),
    "Cap": lambda count: Cap(count, "day"),
    "circuit_breaker": lambda count: circuit_breaker(on=OSError, failures=count, probes=count),
    "Faults": lambda count: simulator.Faults(insufficient_quota_after=count),
    "hedge": lambda count: hedge(samples=count),
    "Ledger": lambda count: Ledger("usage.db", max_pending=count),
    "Retry": lambda count: Retry(on=OSError, attempts=count),
    "Simulation": lambda count: simulator.Simulation(
        output_tokens=count, dimensions=count, concurrency=count, context_length=count, max_body=count
    ),
}


@pytest.mark.parametrize("make", COUNTED.values(), ids=COUNTED)
def test_a_count_is_any_whole_number(make):
    """It is kept as Python's own: what comes of 30 shows the same."""
    at = r" at 0x\w+"
    assert re.sub(at, "", repr(make(int64(30)))) == re.sub(at, "", repr(make(30)))


@pytest.mark.parametrize("given", [True, math.nan, "30", -1, [30]], ids=repr)
@pytest.mark.parametrize("make", COUNTED.values(), ids=COUNTED)
def test_a_count_that_is_none_is_refused_in_words(make, given):
    with pytest.raises(ValueError, match=re.escape(repr(given))):
        make(given)


@pytest.mark.parametrize("amount", [Decimal("2.5"), Fraction(5, 2), float32(2.5)], ids=repr)
def test_a_cap_is_any_number(amount):
    assert Cap(amount, "day") == Cap(2.5, "day")
    assert type(Cap(amount, "day").amount) is float


@pytest.mark.parametrize("odd", [Decimal("0.25"), Fraction(1, 4), float32(0.25)], ids=repr)
def test_a_probability_is_any_number(odd):
    assert simulator.Faults(dropped=odd, gzip=odd) == simulator.Faults(dropped=0.25, gzip=0.25)


@pytest.mark.parametrize("odd", [True, math.nan, "0.5", None, 2], ids=repr)
def test_a_probability_that_is_none_is_refused_in_words(odd):
    with pytest.raises(ValueError, match=re.escape(f"not dropped={odd!r}")):
        simulator.Faults(dropped=odd)


def test_a_text_of_numpy_is_no_number():
    """It has a `__float__`, as its complex numbers have."""
    for kind in "cSUMm":
        text = type("Text", (), {"dtype": type("dtype", (), {"kind": kind}), "__float__": lambda _: 1.0})()
        assert read_seconds(text) is None
        with pytest.raises(CostError):
            Limiter(tokens="5/s").acquire_nowait(tokens=text)


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0, "0 s"),
        (1e-9, "less than 1 µs"),
        (0.0004, "0.4 ms"),
        (0.0123, "0.0123 s"),
        (59.96, "60 s"),
        (90, "90 s"),
        (185, "3 min 5 s"),
        (3_599.7, "1 h"),
        (3_600, "1 h"),
        (5_400, "1 h 30 min"),
        (86_399, "1 day"),
        (100_000, "1 day 4 h"),
        (1e9, "11,574 days 2 h"),
        (1e300, "over 1,000,000 days"),
        (math.inf, "inf s"),
        (math.nan, "nan s"),
        (-185, "-3 min 5 s"),
    ],
)
def test_spans_are_shown_as_people_read_them(seconds, shown):
    assert show_seconds(seconds) == shown


@pytest.mark.parametrize(
    ("dollars", "shown"),
    [
        (0, "$0.00"),
        (1_234.5, "$1,234.50"),
        (0.01, "$0.01"),
        (0.0042, "$0.0042"),
        (2.1e-7, "$0.00000021"),
        (-0.5, "$-0.50"),
    ],
)
def test_parts_of_a_cent_are_shown_as_more_than_nothing(dollars, shown):
    assert show_dollars(dollars) == shown
    assert show_dollars(0.00521, 4) == "$0.0052"


def test_no_error_and_no_log_shows_a_long_wait_in_powers_of_ten(caplog):
    """An hour is read as an hour: not as 3.6e+03 s."""
    caplog.set_level("DEBUG")
    limiter = Limiter(requests="1/hour", name="slow")
    limiter.acquire_nowait()
    with pytest.raises(RateLimited, match="would have to wait 1 h for requests"):
        limiter.acquire_nowait()
    limiter.pause(timedelta(days=2))
    assert str(RateLimited(retry_after=5_400, blocked_by="tokens")) == "wait 1 h 30 min for tokens"
    messages = [record.getMessage() for record in caplog.records]
    assert messages == [
        '"slow" refuses a call of its default cost: it would wait 1 h for requests',
        '"slow" is paused for 2 days',
    ]
