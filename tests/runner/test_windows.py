"""Runs against windows, which give all that they have at once and then nothing for a while; in virtual time."""

from __future__ import annotations

import math

import anyio
import pytest

from penstock import Rate, calendar, clock, sliding
from penstock.simulator import Latency, Simulation, Window
from tests.runner.service import Service, chat, prepared

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("virtual_time")]

LIMIT = {"requests": (sliding(100, 10),)}
LATENCY = Latency(median=0.1, sigma=0.2)


def answering_to(this, limits):
    """Have a run keep these limits; None: learn them."""
    this.run.places[0].limits_of = lambda model: (model, limits)


@pytest.mark.parametrize("kind", [sliding, Window])
@pytest.mark.parametrize("headers", ["openai", "none"])
async def test_a_window_that_was_told_is_used_up_and_refuses_nothing(tmp_path, kind, headers):
    """One that slides is kept at any server's: it never sends more than any window of that length admits."""
    service = Service(Simulation(requests=kind(100, 10), latency=LATENCY, headers=headers))
    with prepared(tmp_path, [chat(number, 20) for number in range(300)], service) as this:
        answering_to(this, LIMIT)
        await this.run()
        assert (len(this.results()), this.counts.status_429) == (300, 0)
        assert 0.95 < this.summary()["efficiency"] <= 1
    assert 20 < clock.now() < 22.5


@pytest.mark.parametrize("headers", ["openai", "none"])
async def test_a_window_by_the_clock_is_used_up_before_and_after_its_end(tmp_path, headers):
    """A window that slides would take the second hundred ten seconds after the first."""
    service = Service(Simulation(requests=Window(100, 10), latency=LATENCY, headers=headers), way=0.03)
    await anyio.sleep(18 - clock.wall() % 10)
    began = clock.now()
    with prepared(tmp_path, [chat(number, 20) for number in range(300)], service) as this:
        answering_to(this, {"requests": (calendar(100, 10),)})
        await this.run()
        assert (len(this.results()), this.counts.status_429) == (300, 0)
        assert 0.8 < this.summary()["efficiency"] <= 1
    assert 12 < clock.now() - began < 13


async def test_a_row_may_take_all_of_a_window(tmp_path):
    """Also after a refusal, from when on less is used for a while."""
    service = Service(Simulation(tokens=sliding(1_000, 10), latency=LATENCY), [(429, {"retry-after": "1"}, b"")])
    with prepared(tmp_path, [chat(0, 20), chat(1, 3_980)], service) as this:
        answering_to(this, {"tokens": (sliding(1_000, 10),)})
        await this.run()
        assert (len(this.results()), this.errors()) == (2, [])


async def test_two_runs_in_one_window_lose_nothing(tmp_path):
    service = Service(Simulation(requests=sliding(100, 10), latency=LATENCY))
    rows = [chat(number, 20) for number in range(200)]
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    with prepared(tmp_path / "a", rows, service) as one, prepared(tmp_path / "b", rows, service) as two:
        async with anyio.create_task_group() as tasks:
            for each in (one, two):
                answering_to(each, LIMIT)
                tasks.start_soon(each.run)
        assert len(one.results()) == len(two.results()) == 200
        assert one.errors() == two.errors() == []
    assert clock.now() < 60


async def test_a_run_that_goes_on_finds_the_window_as_it_was_left(tmp_path):
    """All of it was used at once, so none of it is back as long as its length is not over; a bucket would have half."""
    service = Service(Simulation(requests=sliding(100, 10), latency=LATENCY))
    for rows, idle in ((100, math.inf), (150, 5.0)):
        with prepared(tmp_path, [chat(number, 20) for number in range(rows)], service, idle=idle) as this:
            answering_to(this, LIMIT)
            await this.run()
            assert (len(this.results()), this.counts.status_429) == (rows, 0)
            assert this.summary()["efficiency"] <= 1
        await anyio.sleep(5)


async def test_a_window_whose_length_nobody_tells_is_not_taken_for_a_minutes(tmp_path):
    """Without a reset, a limit is taken for one of a minute; but not by a run that got five times as much in one."""
    service = Service(Simulation(requests=sliding(100, 10), latency=LATENCY, headers="remaining"))
    with prepared(tmp_path, [chat(number, 20) for number in range(700)], service) as this:
        answering_to(this, None)
        await this.run()
        assert len(this.results()) == 700
        assert this.counts.status_429 <= 5
    assert clock.now() < 100  # 62 at best


@pytest.mark.parametrize(
    ("has", "given", "headers", "refused"),
    [
        (sliding(50, 10), sliding(500, 10), "none", 1_050),
        (Rate(50, 10, 10), Rate(500, 10, 10), "none", 150),
        (Rate(50, 10), Rate(500, 10), "openai", 600),
    ],
    ids=["window", "small bucket", "bucket that tells"],
)
async def test_limits_given_ten_times_too_high_are_doubted_and_learned(tmp_path, has, given, headers, refused):
    """Two bursts into a window are refused, or as many as fit on the way; then less is sent, as the service has."""
    service = Service(Simulation(requests=has, latency=LATENCY, headers=headers), way=0.03)
    with prepared(tmp_path, [chat(number, 20) for number in range(600)], service) as this:
        answering_to(this, {"requests": (given,)})
        await this.run()
        assert (len(this.results()), this.errors()) == (600, [])
    assert this.counts.status_429 <= refused
    assert clock.now() < 1.7 * 110
    assert sum("explain" in said for said in this.said) == 1
