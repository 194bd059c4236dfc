"""Limits that nobody knows until the answers tell them, under an HTTP client. In virtual time, with both libraries."""

from __future__ import annotations

from random import Random

import anyio
import httpx
import httpx2
import pytest

from penstock import Rate
from penstock.llm.clients import limits_of
from penstock.simulator import Hidden, Latency, Simulation
from tests.llm.clients import CHAT, FOUR, HELLO, Server, account, at_once, limited, refusal

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def _time(virtual_time):
    """Nothing here takes any time."""


async def test_limits_are_learned_from_the_first_answer_and_kept(lib):
    """One request is in flight until the limits are known; then all go as fast as they allow, without one 429."""
    simulated, transport = account(lib, Simulation(requests="120/min", tokens="60k/min", tolerance=0))
    client = limited(lib, transport)
    key = {"authorization": "Bearer x"}
    answers = await at_once(*(client.post(CHAT, json=FOUR, headers=key) for _ in range(180)))
    assert {answer.status_code for answer in answers} == {200}
    statistics = simulated.statistics()
    assert statistics.refused == {}
    assert statistics.span < 1.1 * 30  # (180 - 120) / 2 a second, and what learning costs


async def test_while_limits_are_unknown_one_request_is_in_flight(lib):
    server = Server(
        lib, latency=3.0, headers={"x-ratelimit-limit-requests": "600", "x-ratelimit-remaining-requests": "599"}
    )
    client = limited(lib, server)
    await at_once(*(client.post(CHAT, json=HELLO) for _ in range(5)))
    assert server.times == [0, 3, 3, 3, 3]


async def test_each_model_has_limits_of_its_own(lib):
    server = Server(lib, latency=3.0)
    client = limited(lib, server)
    await at_once(*(client.post(CHAT, json={**HELLO, "model": model}) for model in "abab"))
    assert server.times == [0, 0, 3, 3]


async def test_a_server_that_tells_no_limits_is_sent_more_and_more_until_it_refuses(lib):
    """Eight at once, and then ten a second and more; a 429 stops everybody."""
    server = Server(lib, None, *[None] * 20, refusal(lib, retry_after="5"), latency=1.0)
    client = limited(lib, server)
    await client.post(CHAT, json=HELLO)
    await at_once(*(client.post(CHAT, json=HELLO) for _ in range(21)))
    assert server.times[1:9] == [1.0] * 8
    assert server.times[-1] == pytest.approx(1 + 13 / 10, abs=0.1)
    await client.post(CHAT, json=HELLO)
    assert server.times[-1] >= 3 + 5


async def test_limits_that_are_told_later_than_by_the_first_answer_are_kept_from_then_on(lib):
    """Not every endpoint tells them: one that counts tokens, or begins a fine-tuning, may be the first to be asked."""
    told = {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "2",
        "x-ratelimit-reset-requests": "58s",
    }
    server = Server(lib, None, None, lib.Response(200, headers=told), latency=1.0)
    client = limited(lib, server)
    for _ in range(3):
        await client.post(CHAT, json=HELLO)
    await at_once(*(client.post(CHAT, json=HELLO) for _ in range(6)))
    assert server.times[:3] == [0, 1, 2]
    assert server.times[3:] == pytest.approx([3, 3, 3.3, 4.3, 5.3, 6.3], abs=0.3)


async def test_those_who_wait_learn_of_limits_that_are_told_late(lib):
    """The first of many answers tells what the server had not told before, and who comes then is held to it."""
    told = lib.Response(
        200,
        headers={
            "x-ratelimit-limit-requests": "600",
            "x-ratelimit-remaining-requests": "0",
            "x-ratelimit-reset-requests": "60s",
        },
    )
    server = Server(lib, None, told, latency=1.0)
    client = limited(lib, server)
    await client.post(CHAT, json=HELLO)
    await at_once(*(client.post(CHAT, json=HELLO) for _ in range(60)))
    before = [time for time in server.times if time < 2]
    after = server.times[len(before) :]
    assert len(before) == pytest.approx(1 + 8 + 10, abs=2)
    assert after[-1] - after[0] >= (len(after) - 1) / 10 - 0.01


async def test_an_error_before_the_first_answer_teaches_nothing(lib):
    """A gateway's 502 has no headers; the next request asks again, alone."""
    script = [lib.Response(502), lib.ConnectError("no route"), refusal(lib, retry_after="5")]
    server = Server(lib, *script, latency=1.0)
    client = limited(lib, server)

    async def ask():
        try:
            return (await client.post(CHAT, json=HELLO)).status_code
        except lib.ConnectError:
            return None

    statuses = await at_once(*(ask() for _ in range(5)))
    assert sorted(map(str, statuses)) == ["200", "200", "429", "502", "None"]
    assert server.times[:3] == [0, 1, 2]
    assert 3 + 5 <= server.times[3] <= 3 + 5.6
    assert server.times[4] == server.times[3] + 1  # nobody knew before the fourth had answered


async def test_a_limit_that_changes_is_adopted_when_it_is_told(lib):
    def told(limit):
        return lib.Response(
            200,
            headers={
                "x-ratelimit-limit-requests": str(limit),
                "x-ratelimit-remaining-requests": str(limit - 1),
                "x-ratelimit-reset-requests": f"{60 / limit:.3f}s",
            },
        )

    client = limited(lib, Server(lib, *(told(limit) for limit in (500, 300, 600))))
    amounts = []
    for _ in range(3):
        await client.post(CHAT, json=HELLO)
        (rate,) = limits_of(client)["gpt-4o"].limits["requests"]
        amounts.append(rate.amount)
    assert amounts == [500, 300, 600]


async def test_what_an_older_answer_tells_is_not_put_over_what_a_newer_one_told(lib):
    """Two are on their way when the limit falls; the answer to the first comes last, and still tells the old one."""

    async def answer(request):
        number, limit, latency = answers.pop(0)
        await anyio.sleep(latency)
        order.append(number)
        return lib.Response(
            200,
            headers={"x-ratelimit-limit-requests": str(limit), "x-ratelimit-remaining-requests": str(limit - number)},
        )

    answers, order = [(1, 500, 0), (2, 500, 9), (3, 300, 1)], []
    client = limited(lib, answer)
    await client.post(CHAT, json=HELLO)

    async def later():
        await anyio.sleep(1)
        await client.post(CHAT, json=HELLO)

    await at_once(client.post(CHAT, json=HELLO), later())
    assert order == [1, 3, 2]
    assert limits_of(client)["gpt-4o"].limits["requests"][0].amount == 300


async def test_the_first_burst_is_capped_until_it_is_known_how_it_is_counted(lib):
    """600 a minute were promised; before it is known how they are counted, 20 leave at once, and the rest by and by."""
    simulated, transport = account(lib, Simulation(requests="600/min", tolerance=0))
    client = limited(lib, transport)
    key = {"authorization": "Bearer x"}
    await at_once(*(client.post(CHAT, json=HELLO, headers=key) for _ in range(100)))
    at_once_left = [
        a for a in simulated.statistics().admissions if a.at_ns == simulated.statistics().admissions[1].at_ns
    ]
    assert 15 <= len(at_once_left) <= 21


@pytest.mark.parametrize(("lib", "charges"), [(httpx2, 0.7), (httpx, 1.15), (httpx2, 2.0)])
async def test_those_who_waited_while_limits_were_learned_are_held_to_what_was_learned(lib, charges):
    """The service charges otherwise than we estimate. Hundreds of requests came before that was known; none is lost."""

    def charge(path, body):
        return round(charges * len(body["messages"][0]["content"]) / 4) + 4

    limits = {"requests": "5000/min", "tokens": "60k/min"}
    simulated, transport = account(lib, Simulation(**limits, charge=charge, latency=Latency(0.5, 0.5), tolerance=0))
    client = limited(lib, transport)
    chance = Random(3)
    texts = ["x" * int(chance.lognormvariate(6, 1)) for _ in range(600)]
    bodies = [{"model": "gpt-4o", "messages": [{"role": "user", "content": text}]} for text in texts]
    await at_once(*(client.post(CHAT, json=body, headers={"authorization": "Bearer x"}) for body in bodies))
    statistics = simulated.statistics()
    assert sum(statistics.refused.values()) <= 6  # trio draws who goes first; it was a hundred
    assert statistics.limits[1].share > 0.9


async def test_what_comes_out_is_learned_as_it_is_charged_when_the_answer_is_there(lib):
    """Anthropic's limit of output: what its headers say is left knows nothing of the answers that are on their way."""
    limits = {"requests": "1000/min", "tokens": "400k/min", "output": "6k/min"}
    waits = {"output_tokens": 120, "latency": Latency(2.0), "tolerance": 0}
    simulated, transport = account(lib, Simulation(dialect="anthropic", **limits, **waits))
    client = limited(lib, transport, hold=True)
    body = {"model": "claude", "max_tokens": 500, "messages": [{"role": "user", "content": "Hello"}]}
    answers = await at_once(
        *(client.post("http://s/v1/messages", json=body, headers={"x-api-key": "x"}) for _ in range(150))
    )
    assert {answer.status_code for answer in answers} == {200}
    assert sum(simulated.statistics().refused.values()) <= 2
    assert 0.9 * (6_000 + 100 * anyio.current_time()) < 150 * 120


async def test_a_limit_per_day_is_not_spread_over_the_day(lib):
    """Nothing tells of minutes, so there may be a hidden limit: faster and faster, and not one every eight seconds."""
    _, transport = account(lib, Simulation(requests="10000/day", latency=Latency(0.5), tolerance=0))
    client = limited(lib, transport)
    key = {"authorization": "Bearer x"}
    answers = await at_once(*(client.post(CHAT, json=HELLO, headers=key) for _ in range(300)))
    assert {answer.status_code for answer in answers} == {200}
    assert anyio.current_time() < 20  # at a limit's own pace it would take three quarters of an hour


async def test_a_large_request_that_waits_while_limits_are_learned_is_sent_all_the_same(lib):
    """Another client takes as much as we do, so each of our tokens counts as two. What fits the limit still fits."""
    simulated, transport = account(lib, Simulation(tokens="6k/min", tolerance=0.05, latency=Latency(0.1)))
    client = limited(lib, transport)
    key = {"authorization": "Bearer x"}

    async def ask(size):
        body = {"model": "gpt-4o", "messages": [{"role": "user", "content": "x" * 4 * (size - 4)}]}
        simulated.consume(tokens=size)
        return await client.post(CHAT, json=body, headers=key)

    answers = [ask(100) for _ in range(60)]
    answers.insert(30, ask(4_500))
    statuses = [answer.status_code for answer in await at_once(*answers)]
    assert 400 not in statuses


async def test_a_model_whose_limits_nobody_published_is_refused_with_those_there_are(lib):
    server = Server(lib)
    client = limited(lib, server, None, tier="tier-2")
    assert (await client.post(CHAT, json=HELLO)).status_code == 200
    answer = await client.post(CHAT, json={**HELLO, "model": "gpt-99"})
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "no_limits_known"
    assert "gpt-99" in answer.json()["error"]["message"]
    assert "gpt-4o-mini" in answer.json()["error"]["message"]
    assert len(server.times) == 1
    assert (await client.get("http://api.test/v1/models")).status_code == 200  # of no model: nobody says what it costs
    assert sum(endpoint.statistics().sent for endpoint in limits_of(client).values()) == 1


@pytest.mark.parametrize("other", ["gpt-4o-2024-08-06", "ft:gpt-4o:org::id", "ft:gpt-4o-2024-08-06:org::id"])
async def test_snapshots_share_the_published_limits_of_their_model(lib, other):
    """Else a client that uses both would send twice as much as was promised."""
    server = Server(lib)
    client = limited(lib, server, None, tier="tier-1")  # 500 a minute
    bodies = [{**HELLO, "model": model} for model in ("gpt-4o", other)]
    await at_once(*(client.post(CHAT, json=body) for body in bodies for _ in range(300)))
    assert server.times[-1] == pytest.approx(100 / 500 * 60, abs=0.3)


async def test_azures_path_names_the_model(lib):
    client = limited(lib, Server(lib))
    body = {"messages": HELLO["messages"]}
    await client.post("http://azure.test/openai/deployments/mine/chat/completions?api-version=1", json=body)
    assert limits_of(client).keys() == {"mine"}


async def test_each_of_azures_deployments_has_limits_of_its_own(lib):
    """Two of one model, which the bodies name, have two quotas."""
    client = limited(lib, Server(lib))
    for deployment in ("east", "west"):
        await client.post(f"http://azure.test/openai/deployments/{deployment}/chat/completions", json=HELLO)
    assert limits_of(client).keys() == {"east", "west"}


async def test_a_hidden_limit_that_a_message_names_is_kept_from_then_on(lib):
    """The header tells of a day, and 120 a minute are enforced; one refusal says so."""
    simulated, transport = account(lib, Simulation(requests=["10000/day", Hidden(Rate(120, 60))], tolerance=0))
    client = limited(lib, transport, hold=True)
    key = {"authorization": "Bearer x"}
    answers = await at_once(*(client.post(CHAT, json=HELLO, headers=key) for _ in range(300)))
    assert {answer.status_code for answer in answers} == {200}
    assert sum(simulated.statistics().refused.values()) <= 6
    assert anyio.current_time() < 1.15 * (300 - 120) / 2


@pytest.mark.parametrize("way", [0.003, 1.0])
async def test_a_window_that_begins_with_its_first_request_is_met_where_it_is(lib, way):
    """LiteLLM's proxy never tells when it ends, and always asks to stay away for a whole one.

    Under load it takes a second to decide, of many at once, in any order.
    """
    began, used, refused, chance = -60.0, 0, 0, Random(3)

    async def answer(_):
        nonlocal began, used, refused
        await anyio.sleep(way * chance.lognormvariate(0, 0.5))  # so that they overtake each other
        if anyio.current_time() - began >= 60:
            began, used = anyio.current_time(), 0
        if used >= 100:
            refused += 1
            return refusal(lib, retry_after="60")
        used += 1
        told = {
            "x-ratelimit-api_key-limit-requests": "100",
            "x-ratelimit-api_key-remaining-requests": str(100 - used),
        }
        await anyio.sleep(0.1)
        return lib.Response(200, json={}, headers=told)

    client = limited(lib, answer, hold=True)
    await at_once(*(client.post(CHAT, json=HELLO) for _ in range(450)))
    assert refused <= 2
    assert anyio.current_time() < 345  # 240, the minute that the refusal asked for, and some more of it
