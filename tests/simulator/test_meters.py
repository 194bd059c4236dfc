"""The kinds of limit that a simulated account may have. In virtual time; the ledger proves what was kept."""

from __future__ import annotations

import anyio
import pytest

from penstock import sliding
from penstock.simulator import Change, Hidden, Simulation, Stranger, Window
from penstock.simulator._account import Account

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def _time(virtual_time):
    """Nothing here takes any time."""


def admitted(account, number=1, tokens=0):
    """How many of so many requests at once were admitted."""
    return sum(isinstance(account.admit("m", tokens), dict) for _ in range(number))


async def test_a_window_gives_nothing_back_before_the_next_one_begins():
    account = Account(Simulation(requests=Window(10, 60), count_refused=False))
    await anyio.sleep(20)
    assert admitted(account, 15) == 10
    await anyio.sleep(39.9)
    assert admitted(account) == 0
    await anyio.sleep(0.1)
    assert admitted(account, 15) == 10


async def test_a_window_tells_the_seconds_to_its_end():
    account = Account(Simulation(requests=Window(10, 60)))
    await anyio.sleep(20)
    told = account.admit("m", 0)
    assert (told["x-ratelimit-remaining-requests"], told["x-ratelimit-reset-requests"]) == ("9", "40s")


async def test_a_sliding_window_gives_each_back_a_period_later():
    account = Account(Simulation(requests=sliding(3, 10), count_refused=False))
    for _ in range(3):
        assert admitted(account) == 1
        await anyio.sleep(2)
    assert admitted(account) == 0
    refused = account.admit("m", 0)
    assert refused.headers["retry-after-ms"] == "4000"
    await anyio.sleep(4)
    assert admitted(account, 2) == 1


async def test_a_large_request_waits_until_enough_of_a_sliding_window_is_back():
    """After the second of those that left: the first gives too little back, and the third is not needed."""
    account = Account(Simulation(tokens=sliding(90, 10), count_refused=False))
    for _ in range(3):
        assert admitted(account, tokens=30) == 1
        await anyio.sleep(2)
    assert account.admit("m", 60).headers["retry-after-ms"] == "6000"
    await anyio.sleep(6)
    assert admitted(account, tokens=60) == 1


async def test_a_hidden_limit_is_kept_and_not_told():
    account = Account(Simulation(requests=["10000/day", Hidden(Window(5, 1))]))
    assert admitted(account, 8) == 5
    refused = account.admit("m", 0)
    assert refused.headers["x-ratelimit-limit-requests"] == "10000"
    assert "requests per" in refused.body["error"]["message"]


async def test_limits_change_when_they_are_to():
    account = Account(
        Simulation(requests="60/min", changes=(Change(30, 0.5), Change(60, 4.0, "requests")), count_refused=False)
    )
    assert admitted(account, 70) == 60
    await anyio.sleep(30)
    assert admitted(account, 70) == 30
    await anyio.sleep(30)
    assert admitted(account, 70) == 15
    await anyio.sleep(30)
    assert admitted(account, 100) == 60
    assert account.admit("m", 0).headers["x-ratelimit-limit-requests"] == "120"


async def test_strangers_take_what_there_is_while_they_are_there():
    account = Account(Simulation(tokens="6000/min", strangers=(Stranger(tokens=12_000, begin=10, end=20),)))
    await anyio.sleep(10)
    assert account.statistics().limits[0].level == pytest.approx(6_000, abs=30)
    await anyio.sleep(10)
    assert account.statistics().limits[0].level == pytest.approx(6_000 - 1_000, abs=30)
    await anyio.sleep(10)
    assert account.statistics().limits[0].level == pytest.approx(6_000, abs=30)


@pytest.mark.parametrize(
    ("headers", "names"),
    [
        ("openai", {"x-ratelimit-limit-requests", "x-ratelimit-remaining-requests", "x-ratelimit-reset-requests"}),
        ("remaining", {"x-ratelimit-limit-requests", "x-ratelimit-remaining-requests"}),
        ("none", set()),
    ],
)
async def test_answers_tell_as_much_as_they_are_to(headers, names):
    assert Account(Simulation(requests="60/min", headers=headers)).admit("m", 0).keys() == names


@pytest.mark.parametrize(
    ("hints", "names", "words"),
    [("all", {"retry-after", "retry-after-ms"}, True), ("retry-after", {"retry-after"}, False), ("none", set(), False)],
)
async def test_refusals_tell_as_much_as_they_are_to(hints, names, words):
    account = Account(Simulation(requests="1/min", headers="none", hints=hints))
    account.admit("m", 0)
    refused = account.admit("m", 0)
    assert refused.headers.keys() == names
    assert ("try again in" in refused.body["error"]["message"]) is words


async def test_a_refused_request_takes_no_more_than_there_is():
    """Of a level of 0.9 it takes all, and of none nothing: who waits as told is served."""
    account = Account(Simulation(requests="60/min burst 1"))
    assert admitted(account) == 1
    await anyio.sleep(0.9)
    wait = float(account.admit("m", 0).headers["retry-after-ms"]) / 1000
    await anyio.sleep(wait)
    assert admitted(account) == 1


@pytest.mark.parametrize("wrong", [{"requests": 5}, {"tokens": Hidden("60/min")}, {"requests": [None]}])
async def test_what_is_no_limit_is_refused(wrong):
    with pytest.raises(ValueError, match="must be a Rate"):
        Simulation(**wrong)
