"""Servers that work on so many requests at once and refuse the next, whatever rates they have beside that."""

from __future__ import annotations

import anyio
import openai
import pytest

from benchmarks.places import run
from penstock import Limiter, in_flight
from penstock.llm import limit_client, limits_of
from penstock.simulator import Latency, Simulation, serve

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("hint", [60, None], ids=["Retry-After", "no hint"])
@pytest.mark.parametrize(("places", "latency"), [(3, 2.0), (10, 20.0), (50, 2.0)])
def test_where_a_refusal_says_that_it_is_for_them_they_are_used(places, latency, hint):
    """With hardly a refusal after the first minute, and whatever it says when it may be sent again."""
    result = run(places, latency, said=True, hint=hint, seed=1)
    assert result.used >= 0.95
    assert result.refused <= (5 if places * SECONDS / latency > 500 else 15)


SECONDS = 540


@pytest.mark.parametrize("hint", [1, None], ids=["Retry-After", "no hint"])
@pytest.mark.parametrize(("places", "latency"), [(10, 20.0), (3, 2.0)])
def test_where_nothing_says_so_refusals_that_agree_do(places, latency, hint):
    """As a rate that was measured, they were used to a third, or refused as often as not."""
    result = run(places, latency, said=False, hint=hint, seed=1)
    assert result.used >= 0.9
    assert result.refused <= 40
    assert "at once" in result.learned


@pytest.mark.parametrize("later", [4, 20])
def test_it_follows_when_others_come_or_go(later):
    """In the second half there are fewer, or more."""
    result = run(10, 2.0, said=True, hint=None, seed=1, later=later)
    assert result.used >= 0.8
    assert f"{later} at once" in result.learned


GIVEN = {
    "auto": "auto",
    "a rate that is right": Limiter(requests="6000/min"),
    "more places than there are": Limiter(requests="6000/min", calls=in_flight(20)),
}


@pytest.mark.parametrize("anyio_backend", [("asyncio", {})], ids=["asyncio"])
@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize("limits", GIVEN.values(), ids=GIVEN.keys())
async def test_an_sdk_uses_a_service_with_four_places(limits, stream, anyio_backend):
    """No call fails, whether or not its answer is read in pieces; what is refused was sent at first."""
    simulation = Simulation(requests="6000/min", in_flight=4, latency=Latency(median=0.02, per_token=0.001))
    async with serve(simulation) as server:
        client = limit_client(openai.AsyncOpenAI(api_key="k", base_url=server.base_url), limits)
        texts: list[str] = []

        async def call() -> None:
            for _ in range(4):
                await once()

        async def once() -> None:
            messages = [{"role": "user", "content": "hello"}]
            answer = await client.chat.completions.create(model="m", messages=messages, stream=stream)
            if stream:
                texts.append("".join([each.choices[0].delta.content or "" async for each in answer if each.choices]))
            else:
                texts.append(answer.choices[0].message.content)

        async with client, anyio.create_task_group() as tasks:
            for _ in range(40):
                tasks.start_soon(call)
        seen = server.statistics()
        assert len(texts) == 160 == seen.answered
        assert all(texts)
        assert 1 <= seen.refused["in_flight"] <= 80  # as many as were sent at once, and a few
        learned = [told.statistics().learned.get("in_flight", "0") for told in limits_of(client).values()]
        assert 1 <= int(learned[0].split()[0]) <= 5  # a busy machine frees a place late, and one more may be tried
