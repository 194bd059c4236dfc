"""Caps in front of web applications: 429s, headers, streams, websockets, clients that go away."""

from __future__ import annotations

import contextlib
import re
import threading
import time
from datetime import UTC, datetime

import anyio
import httpx
import pytest
import uvicorn
from fastapi import Depends, FastAPI, Request, WebSocket
from starlette.applications import Starlette
from starlette.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.testclient import TestClient

from penstock.testing import manual_clock
from penstock.usage import Quota, Quotas
from penstock.usage.asgi import QuotaMiddleware, quota_dependency, rate_limit_headers

NOON = datetime(2026, 5, 6, 12, tzinfo=UTC)


@pytest.fixture
def quotas(tmp_path):
    with Quotas(tmp_path / "quotas.db", {"requests": "3/day", "tokens": "100/hour"}) as made:
        yield made


def name_of(scope):
    name = dict(scope["headers"]).get(b"x-user")
    return None if name is None else name.decode("latin-1")


async def say(request):
    permit = getattr(request.state, "permit", None)
    if permit is not None:
        permit.settle(tokens=int(request.query_params.get("tokens", 1)))
    return PlainTextResponse("hello", headers={"x-mine": "1"})


async def fail(request):
    raise LookupError("broken")


async def stream(request):
    async def parts():
        for number in range(3):
            yield f"{number},"
            await anyio.sleep(0)

    return StreamingResponse(parts())


async def talk(websocket: WebSocket):
    await websocket.accept()
    await websocket.send_text(await websocket.receive_text())
    await websocket.close()


ROUTES = [Route("/", say), Route("/fail", fail), Route("/stream", stream), WebSocketRoute("/talk", talk)]


@pytest.fixture(params=["asyncio", "trio"])
def client(request, quotas):
    app = QuotaMiddleware(Starlette(routes=ROUTES), quotas, user=name_of)
    with TestClient(app, raise_server_exceptions=False, backend=request.param) as client:  # with its lifespan
        yield client


def get(client, path="/", user="alice", **options):
    return client.get(path, headers={"x-user": user}, **options)


def used(quotas, user):
    return [quota.used for quota in quotas.of(user)]


@pytest.mark.parametrize("name", ["", "a" * 1_001])
def test_a_name_that_is_none_is_a_bad_request_and_charges_nobody(client, quotas, name):
    """Clients write headers: what they write there is no failure of the application."""
    said = get(client, user=name)
    assert (said.status_code, said.headers["content-type"]) == (400, "application/problem+json")
    assert said.json()["detail"].startswith("a user must have a name of 1 to 1,000 characters, not ")
    assert quotas.all() == []


@pytest.mark.parametrize("name", ["", "a" * 1_001])
def test_a_name_that_is_none_is_a_bad_request_for_fastapi_too(quotas, name):
    charge = quota_dependency(quotas, user=lambda request: request.headers["x-user"])
    app = FastAPI(dependencies=[Depends(charge)])
    app.get("/")(lambda: "hello")
    said = get(TestClient(app), user=name)
    assert (said.status_code, said.json()["detail"][:18]) == (400, "a user must have a")


def test_an_answer_says_what_is_promised_and_what_is_left(client):
    answer = get(client)
    assert (answer.status_code, answer.text, answer.headers["x-mine"]) == (200, "hello", "1")
    assert answer.headers["ratelimit-policy"] == '"requests-day";q=3;w=86400, "tokens-hour";q=100;qu="tokens";w=3600'
    assert re.fullmatch(r'"requests-day";r=2;t=\d+, "tokens-hour";r=99;t=\d+', answer.headers["ratelimit"])
    assert "retry-after" not in answer.headers


def test_beyond_a_cap_the_answer_is_429_and_the_application_is_not_asked(client, quotas):
    assert [get(client).status_code for _ in range(4)] == [200, 200, 200, 429]
    answer = get(client)
    assert 1 <= int(answer.headers["retry-after"]) <= 86_400
    assert answer.headers["ratelimit"].startswith('"requests-day";r=0;t=')
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert (problem["status"], problem["violated-policies"]) == (429, ["requests-day"])
    assert "'alice' has used 3 of 3 requests a day" in problem["detail"]
    assert get(client, user="bob").status_code == 200
    assert client.head("/", headers={"x-user": "alice"}).status_code == 429
    assert used(quotas, "alice")[0] == 3


def test_the_application_says_what_a_request_took(client, quotas):
    assert get(client, "/?tokens=120").status_code == 200
    refused = get(client)
    assert refused.status_code == 429
    assert refused.json()["violated-policies"] == ["tokens-hour"]
    assert used(quotas, "alice") == [1, 120]


def test_a_request_that_can_never_go_has_no_retry_after(quotas):
    app = QuotaMiddleware(Starlette(routes=ROUTES), quotas, user=name_of, cost=lambda _: {"tokens": 500})
    answer = get(TestClient(app))
    assert (answer.status_code, "retry-after" in answer.headers) == (429, False)


def test_requests_of_nobody_and_websockets_pass_through(client, quotas):
    answer = client.get("/")
    assert (answer.status_code, "ratelimit" in answer.headers) == (200, False)
    with client.websocket_connect("/talk", headers={"x-user": "alice"}) as websocket:
        websocket.send_text("hi")
        assert websocket.receive_text() == "hi"
    assert quotas.all() == []


def test_a_stream_goes_through_as_it_comes(client):
    answer = get(client, "/stream")
    assert (answer.text, answer.headers["ratelimit"][:18]) == ("0,1,2,", '"requests-day";r=2')


def test_a_request_that_fails_stays_charged(client, quotas):
    assert get(client, "/fail").status_code == 500
    assert used(quotas, "alice")[0] == 1


@pytest.mark.parametrize("user", ["a%20b", "%7B{}", "*"])
def test_users_with_odd_names_are_told_apart(client, quotas, user):
    assert get(client, user=user).status_code == 200
    assert {quota.user for quota in quotas.all()} == {user}


@contextlib.contextmanager
def served(app):
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run)
    thread.start()
    until = time.monotonic() + 30
    while not server.started and time.monotonic() < until:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(30)


def test_a_client_that_goes_away_stays_charged_and_holds_nobody_up(quotas):
    """Over a real server: in the middle of a stream that would never end."""
    ended = threading.Event()

    async def endless(request):
        async def parts():
            try:
                while True:
                    yield b"x" * 1_000
                    await anyio.sleep(0.01)
            finally:
                ended.set()

        return StreamingResponse(parts())

    app = QuotaMiddleware(Starlette(routes=[Route("/", endless)]), quotas, user=name_of)
    with served(app) as url:
        for _ in range(3):
            with httpx.stream("GET", url, headers={"x-user": "alice"}, trust_env=False) as answer:
                assert answer.headers["ratelimit"]
                next(answer.iter_bytes())
        assert httpx.get(url, headers={"x-user": "alice"}, trust_env=False).status_code == 429
        assert ended.wait(30)
    assert used(quotas, "alice")[0] == 3


def test_many_at_once_get_what_the_cap_allows_and_no_more(quotas):
    async def main():
        app = QuotaMiddleware(Starlette(routes=ROUTES), quotas, user=name_of)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            answers = []

            async def ask():
                answers.append((await client.get("/", headers={"x-user": "alice"})).status_code)

            async with anyio.create_task_group() as group:
                for _ in range(20):
                    group.start_soon(ask)
            return answers

    answers = anyio.run(main)
    assert sorted(answers) == [200] * 3 + [429] * 17


async def root():
    return {}


async def user_of(request: Request) -> str | None:
    return request.headers.get("x-user")


def test_a_dependency_of_fastapi_gives_the_endpoint_its_permit(quotas):
    app = FastAPI()
    cap = quota_dependency(quotas, user=user_of)

    @app.get("/")
    async def ask(permit=Depends(cap), tokens: int = 1):  # noqa: B008 - as FastAPI has it
        if permit is not None:
            permit.settle(tokens=tokens)
        return {"ok": True}

    client = TestClient(app)
    assert get(client, "/?tokens=40").headers["ratelimit"].startswith('"requests-day";r=2;')
    assert client.get("/").json() == {"ok": True}
    assert get(client, "/?tokens=60").status_code == 200
    refused = get(client)
    assert refused.status_code == 429
    assert '"tokens-hour";r=0;t=' in refused.headers["ratelimit"]
    assert 1 <= int(refused.headers["retry-after"]) <= 3_600
    assert "'alice' has used 100 of 100 tokens an hour" in refused.json()["detail"]
    assert (
        app.openapi()["paths"]["/"]["get"]["parameters"][0]["name"] == "tokens"
    )  # nothing of ours is asked of clients


def test_two_caps_of_one_request_are_told_apart(quotas, tmp_path):
    """Of an organisation and of its users, by middlewares or by dependencies: the second one hid the first."""
    settled = []

    async def ask(request: Request):
        settled.append(sorted(request.state.permits))
        request.state.permits["org"].settle(tokens=7)
        return {}

    with Quotas(tmp_path / "org.db", {"requests": "2/day", "tokens": "9/day"}, name="org") as org:
        inside = FastAPI()
        inside.get("/")(ask)
        app = QuotaMiddleware(QuotaMiddleware(inside, quotas, user=name_of), org, user=lambda _: "acme")
        told = get(TestClient(app)).headers["ratelimit"]
        assert re.sub(r";t=\d+", "", told) == (
            '"requests-day";r=2, "tokens-hour";r=99, "org-requests-day";r=1, "org-tokens-day";r=8'
        )
        assert settled == [["org", "quota"]]
        both = FastAPI(dependencies=[Depends(quota_dependency(org, user=lambda _: "acme"))])
        both.get("/", dependencies=[Depends(quota_dependency(quotas, user=user_of))])(root)
        told = re.sub(r";t=\d+", "", get(TestClient(both)).headers["ratelimit"])
        assert told.startswith('"org-requests-day";r=0, "org-tokens-day";r=1, "requests-day";r=1')
        refused = get(TestClient(app))
        assert refused.json()["violated-policies"] == ["org-requests-day"]


def test_a_dependency_of_a_whole_application_lets_websockets_through(quotas):
    """As the middleware does: it was a TypeError."""
    app = FastAPI(dependencies=[Depends(quota_dependency(quotas, user=user_of))])
    app.websocket("/talk")(talk)
    with TestClient(app).websocket_connect("/talk", headers={"x-user": "alice"}) as socket:
        socket.send_text("hello")
        assert socket.receive_text() == "hello"
    assert used(quotas, "alice") == [0, 0]


@pytest.mark.parametrize("cost", [lambda _: {"tokens": 30}, None], ids=["plain", "async"])
def test_a_cost_may_be_found_out_by_either_kind_of_function(quotas, cost):
    async def later(_):
        return {"tokens": 30}

    app = QuotaMiddleware(Starlette(routes=ROUTES), quotas, user=name_of, cost=cost or later)
    assert '"tokens-hour";r=70' in get(TestClient(app), "/stream").headers["ratelimit"]


def test_headers_hold_whole_numbers_and_never_too_much():
    with manual_clock(NOON):
        day = Quota("alice", "dollars", "day", "UTC", 0.75, 0.1, NOON.timestamp() + 43_200.2, NOON.timestamp() - 43_200)
        month = Quota("alice", "größe", "month", "UTC", 1e20, 2e20, NOON.timestamp(), NOON.timestamp() - 86_400)
        headers = rate_limit_headers([day, day, month], NOON.timestamp())
    assert headers["ratelimit-policy"] == (
        '"dollars-day";q=75;qu="cents";w=86400, "dollars-day\'";q=75;qu="cents";w=86400, "gr??e-month";q=999999999999999;qu="gr??e";w=86400'
    )
    assert headers["ratelimit"] == '"dollars-day";r=65;t=43201, "dollars-day\'";r=65;t=43201, "gr??e-month";r=0;t=0'
    assert rate_limit_headers([], 0.0) == {}


@pytest.mark.parametrize("arguments", [{"user": "alice"}, {"user": len, "cost": 5}])
def test_what_is_no_function_is_refused(quotas, arguments):
    with pytest.raises(ValueError, match="must be functions of the request"):
        QuotaMiddleware(JSONResponse({}), quotas, **arguments)
    with pytest.raises(ValueError, match="quotas must be a Quotas"):
        QuotaMiddleware(JSONResponse({}), None, user=len)
