"""Several places as one pool: each row goes to the one that can take it first."""

from __future__ import annotations

import anyio
import pytest

from penstock import Limiter, clock
from penstock.limits import parse
from penstock.runner.client import Lost, NotSent
from penstock.simulator import Latency, Simulation
from tests.runner.service import ANSWER, LIMITS, Service, chat, prepared, soon

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("virtual_time")]

ROWS = [chat(number) for number in range(300)]


def simulated(**options):
    return Service(Simulation(**{**LIMITS, "latency": Latency(median=1.0, sigma=0.3), **options}))


async def test_two_places_do_the_work_of_two(tmp_path):
    first, second = simulated(), simulated()
    with prepared(tmp_path, ROWS, first) as alone:
        await alone.run()
    first = simulated()
    with prepared(tmp_path, ROWS, first, others=[second], overwrite=True) as this:
        await this.run()
        assert len({result["custom_id"] for result in this.results()}) == len(this.results()) == 300
        assert (this.errors(), this.counts.status_429) == ([], 0)
    assert 100 < len(first.asked) < 200
    assert this.counts.makespan < 0.6 * alone.counts.makespan
    assert set(this.run.groups) == {"all at server-1", "all at server-2"}


async def test_a_place_with_more_room_does_more_of_the_work(tmp_path):
    small, large = simulated(), simulated(requests="3600/min burst 80", tokens="360k/min burst 24000")
    rates = Simulation(requests="3600/min burst 80", tokens="360k/min burst 24000").limits
    with prepared(tmp_path, ROWS, small, others=[large]) as this:
        this.run.places[1].limits_of = lambda _: ("", rates)
        await this.run()
        assert (len(this.results()), this.counts.status_429) == (300, 0)
    assert len(large.asked) > 2.5 * len(small.asked)


async def test_places_where_a_turn_takes_longer_than_a_look_around_lose_no_row(tmp_path):
    """Each row whose turn was more than five seconds away failed, as a mistake of our own."""
    services = [Service(answer=lambda _: (200, {}, ANSWER)) for _ in range(2)]
    slow = {"requests": "6/min burst 1"}
    with prepared(tmp_path, ROWS[:8], services[0], others=services[1:], limits=slow) as this:
        await this.run()
        assert (this.errors(), len(this.results())) == ([], 8)
    assert [len(service.asked) for service in services] == [4, 4]
    assert this.counts.makespan < 31  # three further turns of ten seconds


async def test_a_place_that_was_never_there_costs_nothing(tmp_path):
    """No row, no quota, and hardly any time."""

    class Gone(Service):
        async def connect(self):
            raise NotSent("cannot connect to gone:443")

    for places in ([simulated(), Gone()], [Gone(), simulated()]):
        with prepared(tmp_path, ROWS, places[0], others=places[1:], overwrite=True) as this:
            await this.run()
            assert (len(this.results()), this.errors(), this.run.stopped) == (300, [], None)
            assert this.counts.sent == 300
    assert this.counts.makespan < 60


async def test_a_place_that_goes_away_and_comes_back_is_used_again(tmp_path):
    class Away(Service):
        async def connect(self):
            if 3 < clock.now() - began < 8:
                raise NotSent("refused")

    began = clock.now()
    away = Away(Simulation(**LIMITS))
    with prepared(tmp_path, ROWS, simulated(), others=[away]) as this:
        await this.run()
        assert (len(this.results()), this.errors()) == (300, [])
    assert any(at - began < 3 for at, _ in away.asked)
    assert any(at - began > 8 for at, _ in away.asked)


async def test_an_account_that_is_at_its_end_leaves_the_rest_to_the_others(tmp_path):
    """And that is said, once."""
    body = b'{"error": {"code": "insufficient_quota", "message": "You exceeded your current quota"}}'
    poor = Service(answer=lambda _: (429, {}, body))
    with prepared(tmp_path, ROWS, simulated(), others=[poor]) as this:
        await this.run()
        assert (len(this.results()), this.errors(), this.run.stopped) == (300, [], None)
        assert this.said == [
            (
                "nothing more is sent to server-2, and the others go on: "
                "You exceeded your current quota (status 429, insufficient_quota)"
            )
        ]
    assert len(poor.asked) <= 4


async def test_the_last_place_ends_the_run(tmp_path):
    body = b'{"error": {"code": "insufficient_quota", "message": "no quota"}}'
    places = [Service(answer=lambda _: (429, {}, body)) for _ in range(3)]
    with prepared(tmp_path, ROWS, places[0], others=places[1:]) as this:
        await this.run()
        assert (this.run.stopped.code, this.results(), this.errors()) == ("account", [], [])


async def test_places_that_are_all_away_are_waited_for(tmp_path):
    class Away(Service):
        async def connect(self):
            if clock.now() - began < self.away:
                raise NotSent("refused")

    began = clock.now()
    first, second = Away(answer=lambda _: (200, {}, ANSWER)), Away(answer=lambda _: (200, {}, ANSWER))
    first.away, second.away = 200.0, 100.0
    with prepared(tmp_path, ROWS, first, others=[second], give_up_after=1_000.0) as this:
        await this.run()
        assert (len(this.results()), this.errors(), this.run.stopped) == (300, [], None)
    assert this.counts.makespan < 180  # the second is back earlier


async def test_a_row_that_is_too_large_for_one_place_goes_to_another(tmp_path):
    small, large = {"tokens": (parse("10k/min burst 100"),)}, {"tokens": (parse("100k/min"),)}
    services = [Service(answer=lambda _: (200, {}, ANSWER)) for _ in range(2)]
    with prepared(tmp_path, [chat(number, 2_000) for number in range(5)], services[0], others=services[1:]) as this:
        for place, limits in zip(this.run.places, (small, large), strict=True):
            place.limits_of = lambda _, limits=limits: ("", limits)
        await this.run()
        assert (len(this.results()), this.errors()) == (5, [])
    assert services[0].asked == []


async def test_a_row_that_becomes_too_large_for_its_place_goes_to_another(tmp_path):
    """While it waits there: the limits are another program's too, which has lowered them."""
    limiters = [Limiter(tokens="6k/min burst 600") for _ in range(2)]
    services = [Service(answer=lambda _: (200, {}, ANSWER)) for _ in range(2)]
    with prepared(tmp_path, [chat(number, 2_000) for number in range(8)], services[0], others=services[1:]) as this:
        for place, limiter in zip(this.run.places, limiters, strict=True):
            place.limits_of = lambda _, limiter=limiter: ("", limiter)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(soon, 1, lambda: limiters[0].reconfigure(tokens="6k/min burst 100"))
            await this.run()
        assert this.errors() == []
        assert len(this.results()) == 8
    assert (len(services[0].asked), len(services[1].asked)) == (1, 7)


async def test_rows_that_wait_for_one_place_go_to_another_that_is_back_before_it(tmp_path):
    class Away(Service):
        async def send(self, path, body, left):
            if 3 < clock.now() - began < self.away:
                left()
                raise Lost("the server hung up")
            return await super().send(path, body, left)

    began = clock.now()
    first, second = Away(answer=lambda _: (200, {}, ANSWER)), Away(answer=lambda _: (200, {}, ANSWER))
    first.away, second.away = 2_000.0, 100.0
    with prepared(tmp_path, ROWS, first, others=[second]) as this:
        await this.run()
        assert (len(this.results()), this.errors(), this.run.stopped) == (300, [], None)
    assert this.counts.makespan < 200
