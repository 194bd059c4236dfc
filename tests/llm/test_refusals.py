"""A refusal of ours has the form of the service's own errors, and says which limit it was about."""

from __future__ import annotations

from dataclasses import replace

import httpx
import pytest

from penstock import Limiter, RateLimited, Unsatisfiable, in_flight, per_minute
from penstock.errors import StoreError, Unreachable
from penstock.llm import RateLimitInfo, rate_limit_info
from penstock.llm.failures import judge, retry_on
from penstock.llm.refusals import refusal
from tests.llm.clients import CHAT, HELLO, Server, limited

pytestmark = pytest.mark.anyio

LATE = RateLimited("too late", retry_after=3.0, blocked_by="tokens")
NEVER = Unsatisfiable("too large", unit="tokens", cost=200, capacity=100)


@pytest.fixture(autouse=True)
def _time(virtual_time):
    """Nothing here takes any time."""


def request_to(path, **headers):
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.Request("POST", f"http://api.test{path}", headers=headers)


OPENAI = request_to("/v1/chat/completions")
ANTHROPIC = request_to("/v1/messages", anthropic_version="2023-06-01")
GEMINI = request_to("/v1beta/models/m:generateContent")
VERTEX = request_to("/v1/projects/p/models/m", x_goog_api_client="genai")
OLLAMA = request_to("/api/chat")


def test_openais_form_is_that_of_most():
    late, never = refusal(LATE, OPENAI), refusal(NEVER, OPENAI)
    assert (late.status, late.body["error"]["code"]) == (429, "rate_limited")
    assert (never.status, never.body["error"]["code"]) == (400, "request_too_large")
    assert refusal(LATE).body == late.body
    assert "Try again in 3.000 s." in late.body["message"]


def test_refusals_have_the_form_of_anthropics_errors():
    late, never = refusal(LATE, ANTHROPIC).body, refusal(NEVER, ANTHROPIC).body
    assert (late["type"], late["error"]["type"]) == ("error", "rate_limit_error")
    assert never["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("request_", [GEMINI, VERTEX])
def test_refusals_have_the_form_of_googles_errors(request_):
    late, never = refusal(LATE, request_).body, refusal(NEVER, request_).body
    assert (late["error"]["code"], late["error"]["status"]) == (429, "RESOURCE_EXHAUSTED")
    assert never["error"]["status"] == "INVALID_ARGUMENT"


def test_refusals_have_the_form_of_ollamas_errors():
    assert refusal(LATE, OLLAMA).body["error"].startswith("Not sent: too late")


@pytest.mark.parametrize(
    ("request_", "kind"), [(OPENAI, "penstock"), (ANTHROPIC, "api_error"), (GEMINI, "UNAVAILABLE")]
)
@pytest.mark.parametrize(("error", "again"), [(Unreachable("no answer"), "true"), (StoreError("damaged"), "false")])
def test_a_store_that_cannot_decide_is_no_fault_of_the_requests(request_, kind, error, again):
    """SDKs send it again where the store may answer by then, and so does a `Retry`; nothing else is worth a try."""
    answer = refusal(error, request_)
    told = answer.body["error"]
    assert (answer.status, answer.headers["x-should-retry"]) == (503, again)
    assert kind in {told.get("type"), told.get("status")}
    assert told["message"] == f"Not sent: {error}"
    assert request_ is GEMINI or told["code"] == "store_error"
    assert judge(answer.status, answer.body, answer.headers).retryable is retry_on(error) is (again == "true")


@pytest.mark.parametrize("request_", [OPENAI, ANTHROPIC, GEMINI, OLLAMA])
def test_no_sdk_is_to_retry_it_and_everybody_is_told_how_long_it_would_have_been(request_):
    headers = refusal(LATE, request_).headers
    assert (headers["x-should-retry"], headers["retry-after"]) == ("false", "3.000")


async def test_which_limit_it_was_is_told_in_full(lib):
    limiter = Limiter(requests=per_minute(60), tokens=["90k/min", "100/day"])
    client = limited(lib, Server(lib), limiter, max_wait=1)
    answers = [await client.post(CHAT, json=HELLO) for _ in range(17)]
    assert answers[-1].status_code == 429
    error = lib.HTTPStatusError("429", request=answers[-1].request, response=answers[-1])
    info = rate_limit_info(error)
    assert (info.unit, info.limit, info.period, info.requested, info.model) == ("tokens", 100, 86_400, 6, "gpt-4o")
    assert info.wait > 60


async def test_a_request_that_can_never_fit_says_how_much_there_is(lib):
    answer = await limited(lib, Server(lib), Limiter(tokens=per_minute(5))).post(CHAT, json=HELLO)
    error = lib.HTTPStatusError("400", request=answer.request, response=answer)
    assert rate_limit_info(error) == RateLimitInfo(unit="tokens", limit=5, period=60, requested=6, model="gpt-4o")


async def test_a_place_in_flight_has_no_period(lib):
    limiter = Limiter(places=in_flight(1))
    client = limited(lib, Server(lib), limiter, max_wait=0)
    with limiter.acquire_nowait():
        answer = await client.post(CHAT, json=HELLO)
    info = rate_limit_info(lib.HTTPStatusError("429", request=answer.request, response=answer))
    assert (info.unit, info.limit, info.period) == ("places", None, None)


def test_the_limit_is_found_in_errors_that_wrap_it():
    def raised():
        try:
            try:
                raise LATE
            except RateLimited as inner:
                raise ConnectionError from inner
        except ConnectionError as middle:
            raise RuntimeError from middle

    with pytest.raises(RuntimeError) as caught:
        raised()
    assert rate_limit_info(caught.value) == RateLimitInfo(unit="tokens", wait=3.0)


def test_the_limit_is_found_in_a_text_that_quotes_our_answer():
    """As litellm's errors do, which keep nothing else of an answer."""
    error = RuntimeError(f"litellm.RateLimitError: AnthropicException - {refusal(LATE, ANTHROPIC).content.decode()}")
    error.status_code = 429
    assert rate_limit_info(error) == RateLimitInfo(unit="tokens", wait=3.0)
    error = RuntimeError('"rate_limit": {' * 100)
    error.status_code = 429
    assert rate_limit_info(error) == RateLimitInfo()


def test_the_guides_sentence_is_read_in_an_sdks_error():
    text = (
        "Rate limit reached for default-text-davinci-002 in organization org-1 on requests per min. "
        "Limit: 20.000000 / min. Current: 24.000000 / min."
    )
    error = RuntimeError(text)
    error.status_code, error.body = 429, {"error": {"message": text}}
    info = rate_limit_info(error)
    assert (info.unit, info.limit, info.current, info.period) == ("requests", 20, 24, 60)
    assert (info.model, info.organisation) == ("default-text-davinci-002", "org-1")


def test_what_is_about_no_limit_says_nothing():
    assert rate_limit_info(ValueError("x")) is None
    loop = ValueError("x")
    loop.__cause__ = loop
    assert rate_limit_info(loop) is None


def test_an_error_whose_cause_raises_says_what_it_says_itself():
    class Failed(Exception):  # noqa: N818
        __cause__ = property(lambda _: 1 / 0)

    assert (rate_limit_info(Failed()), retry_on(Failed())) == (None, False)


async def test_a_refusal_can_be_read_as_a_stream(lib):
    """As any answer of a service can."""
    client = limited(lib, Server(lib), Limiter(requests=per_minute(1)), max_wait=0)
    await client.post(CHAT, json=HELLO)
    async with client.stream("POST", CHAT, json=HELLO) as response:
        raw = b"".join([piece async for piece in response.aiter_raw()])
    assert (response.status_code, int(response.headers["content-length"])) == (429, len(raw))
    assert b"would have to wait" in raw


async def test_what_never_will_do_is_raised_where_an_sdk_would_send_its_answer_again(lib):
    """Cohere's SDK sends again whatever is answered with 429."""
    limiter = Limiter(requests=per_minute(60), places=in_flight(1))
    words = "You are using a Trial key, which is limited to 1000 API calls / month."
    server = Server(lib, lib.Response(429, json={"message": words}))
    client = limited(lib, server, limiter, hold=True)
    heard = []
    client._transport._rules = replace(
        client._transport._rules, raises=lambda answer: heard.append(answer) or KeyError()
    )
    with pytest.raises(KeyError):
        await client.post(CHAT, json=HELLO)
    assert (heard[0].status, heard[0].body) == (429, {"message": words})
    assert limiter.statistics().limits["places"].level == 1
    assert (await client.post(CHAT, json=HELLO)).status_code == 200


def test_which_limit_it_was_is_read_in_a_group():
    group = ExceptionGroup("tasks", [ValueError("a bug"), ExceptionGroup("inner", [LATE])])
    assert rate_limit_info(group) == rate_limit_info(LATE)
    assert rate_limit_info(ExceptionGroup("tasks", [ValueError()])) is None
