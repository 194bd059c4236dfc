"""Clients of one address and one key share what they learn; all others learn for themselves."""

from __future__ import annotations

import copy
import gc

import httpx
import httpx2
import openai
import pytest

from penstock.llm.clients import limit_client, limits_of
from tests.llm.clients import CHAT, HELLO, Server, limited, refusal

pytestmark = pytest.mark.anyio

TOLD = {"x-ratelimit-limit-requests": "60", "x-ratelimit-remaining-requests": "59", "x-ratelimit-reset-requests": "1s"}


@pytest.fixture(autouse=True)
def _time(virtual_time):
    """Nothing here takes any time."""


async def test_two_clients_of_one_key_have_one_endpoint_and_a_third_has_its_own(lib):
    server = Server(lib, headers=TOLD)
    one, other = limited(lib, server, key="ours"), limited(lib, server, key="ours")
    third = limited(lib, server, key="theirs")
    for client in (one, other, third):
        await client.post(CHAT, json=HELLO)
    assert limits_of(one)["gpt-4o"] is limits_of(other)["gpt-4o"]
    assert limits_of(one)["gpt-4o"].statistics().sent == 2
    assert limits_of(third)["gpt-4o"].statistics().sent == 1


@pytest.mark.parametrize("name", ["authorization", "x-api-key", "api-key", "x-goog-api-key"])
async def test_a_key_is_known_in_every_header_that_services_use(lib, name):
    server = Server(lib)
    clients = [limited(lib, server, key="same") for _ in range(2)]
    for number, client in enumerate(clients):
        del client.headers["authorization"]
        await client.post(CHAT, json=HELLO, headers={name: f"key {number}"})
    assert limits_of(clients[0])["gpt-4o"] is not limits_of(clients[1])["gpt-4o"]


async def test_another_address_is_another_account(lib):
    client = limited(lib, Server(lib))
    await client.post(CHAT, json=HELLO)
    await client.post(CHAT.replace("api.test", "other.test"), json=HELLO)
    assert sorted(limits_of(client)) == ["gpt-4o at http://api.test", "gpt-4o at http://other.test"]


async def test_models_that_share_limits_share_an_endpoint(lib):
    client = limited(lib, Server(lib))
    for model in ("gpt-4o", "gpt-4o-2024-08-06", "gpt-4o-mini"):
        await client.post(CHAT, json=HELLO | {"model": model})
    assert sorted(limits_of(client)) == ["gpt-4o", "gpt-4o-mini"]


@pytest.mark.parametrize(
    "path",
    ["/openai/deployments/mine/chat/completions", "/v1beta/models/mine:generateContent", "/models/mine/embeddings"],
)
async def test_a_model_is_known_by_its_path_where_services_name_it_there(lib, path):
    client = limited(lib, Server(lib))
    await client.post(f"http://api.test{path}", json={"contents": []})
    assert list(limits_of(client)) == ["mine"]


@pytest.mark.parametrize(
    ("path", "body", "name"),
    [
        ("/v1/chat", {"message": "hello"}, "chat"),  # Cohere's
        ("/v1/embed", {"texts": ["hello"]}, "embed"),
        ("/v1/moderations", {"input": "hello"}, "moderations"),
        ("/v1/agents/completions", {"agent_id": "ag:1", "messages": []}, "agents"),  # Mistral's
        ("/v1/conversations/c1", {"inputs": "hello"}, "conversations"),
        ("/v1/threads/t1/runs", {"assistant_id": "asst_1", "instructions": "hello"}, "threads"),
        ("/v1beta/cachedContents", {"model": "models/gemini-x", "contents": []}, "gemini-x"),
    ],
)
async def test_a_request_that_leaves_the_model_to_the_service_is_limited_too(lib, path, body, name):
    server = Server(lib, refusal(lib))
    client = limited(lib, server, hold=True)
    assert (await client.post(f"http://api.test{path}", json=body)).status_code == 200
    assert list(limits_of(client)) == [name]
    assert len(server.times) == 2


@pytest.mark.parametrize(("path", "body"), [("/v1/batches", {"input_file_id": "f"}), ("/v1/fine_tuning/jobs", {})])
async def test_a_request_to_no_model_is_not_limited(lib, path, body):
    client = limited(lib, Server(lib))
    await client.post(f"http://api.test{path}", json=body)
    assert not limits_of(client)


async def test_what_was_learned_is_forgotten_with_the_last_client(lib):
    server = Server(lib, headers=TOLD)
    client = limited(lib, server, key="gone")
    await client.post(CHAT, json=HELLO)
    del client
    gc.collect()
    again = limited(lib, server, key="gone")
    await again.post(CHAT, json=HELLO)
    assert limits_of(again)["gpt-4o"].statistics().sent == 1


@pytest.mark.parametrize(
    "copy",
    [
        copy.copy,
        lambda client: client.copy(),
        lambda client: client.with_options(timeout=9),
        lambda client: client.with_options(http_client=httpx2.AsyncClient()),
        lambda client: client.copy(http_client=httpx2.AsyncClient()),
        lambda client: client.copy(http_client=None),
        lambda client: client.copy(http_client=client._client),
    ],
)
async def test_a_copy_of_a_limited_client_has_its_limits(copy):
    sdk = openai.AsyncOpenAI(api_key="ours", http_client=httpx2.AsyncClient(transport=httpx2.MockTransport(_answer)))
    client = limit_client(sdk)
    await client.models.with_raw_response.retrieve("gpt-4o")
    await client.chat.completions.with_raw_response.create(model="gpt-4o", messages=[])
    assert limits_of(copy(client))["gpt-4o"] is limits_of(client)["gpt-4o"]
    assert limits_of(copy(copy(client))) == limits_of(client)
    with pytest.raises(ValueError, match="is not limited"):
        limits_of(copy(sdk))


def _answer(request):
    return httpx2.Response(200, json={}, headers=TOLD)


def test_only_limited_clients_have_limits():
    for client in (httpx.AsyncClient(), object(), []):
        with pytest.raises(ValueError, match="is not limited"):
            limits_of(client)
    assert limits_of(limit_client(httpx.AsyncClient())) == {}
