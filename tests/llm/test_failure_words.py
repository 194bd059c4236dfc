"""Errors that come in an answer with 200 or in a stream, and those that only a service's words or codes tell apart."""

from __future__ import annotations

import aiohttp
import httpx
import httpx2
import openai
import pytest
import requests
import urllib3

from penstock.errors import RateLimited
from penstock.llm.failures import judge, retry_on
from penstock.llm.refusals import rate_limit_info


def o(message="", code=None, kind=None):
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


ROWS = [
    ("200 code words", 200, o("", "rate_limit_exceeded"), "wait"),
    (
        "200 anthropic overloaded",
        200,
        {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}},
        "back off",
    ),
    ("200 anthropic rate", 200, {"type": "error", "error": {"type": "rate_limit_error", "message": "x"}}, "wait"),
    ("200 anthropic api_error", 200, {"type": "error", "error": {"type": "api_error", "message": "x"}}, "back off"),
    ("200 openai stream server_error", 200, o("The server had an error", None, "server_error"), "back off"),
    (
        "200 responses failed",
        200,
        {"type": "response.failed", "response": {"error": {"code": "server_error", "message": "x"}}},
        "back off",
    ),
    (
        "200 responses failed rl",
        200,
        {
            "type": "response.failed",
            "response": {"error": {"code": "rate_limit_exceeded", "message": "Please try again in 2s"}},
        },
        "wait",
    ),
    (
        "200 responses error event",
        200,
        {"type": "error", "code": "rate_limit_exceeded", "message": "Please try again in 2s", "param": None},
        "wait",
    ),
    ("200 slack", 200, {"ok": False, "error": "ratelimited"}, "wait"),
    ("200 server_is_overloaded", 200, o("", "server_is_overloaded"), "back off"),
    ("200 insufficient_quota", 200, o("", "insufficient_quota"), "stop"),
    ("200 invalid", 200, o("bad", "invalid_value", "invalid_request_error"), "permanent"),
    (
        "200 gemini",
        200,
        {"error": {"code": 503, "status": "UNAVAILABLE", "message": "The model is overloaded."}},
        "back off",
    ),
    (
        "azure a day",
        429,
        {
            "error": {
                "code": "429",
                "message": "Requests to the ChatCompletions_Create Operation under Azure OpenAI API version 2024 have "
                "exceeded token rate limit of your current OpenAI S0 pricing tier. Please retry after 86400 "
                "seconds.",
            }
        },
        "permanent",
    ),
    (
        "cohere trial month",
        429,
        {
            "message": "You are using a Trial key, which is limited to 1000 API calls / month. You can continue to "
            "use the Trial key for free or upgrade to a Production key"
        },
        "stop",
    ),
    (
        "cohere trial minute",
        429,
        {"message": "You are using a Trial key, which is limited to 10 API calls / minute. You can continue"},
        "wait",
    ),
    ("drf", 429, {"detail": "Request was throttled. Expected available in 5 seconds.", "status": 429}, "wait"),
    ("bedrock throttle", 429, {"message": "Too many tokens, please wait before trying again."}, "wait"),
    ("bedrock 400 throttle", 400, {"__type": "ThrottlingException", "message": "Too many requests"}, "wait"),
    ("hf loading", 503, {"error": "Model x is currently loading", "estimated_time": 20.0}, "back off"),
    (
        "context length",
        400,
        o(
            "This model's maximum context length is 2049 tokens, however you requested 3000",
            "context_length_exceeded",
            "invalid_request_error",
        ),
        "permanent",
    ),
    ("content filter", 400, o("The response was filtered", "content_filter"), "permanent"),
    ("anthropic 413", 413, {"type": "error", "error": {"type": "request_too_large", "message": "x"}}, "permanent"),
    ("403 perms", 403, o("no access to model", "model_not_found"), "permanent"),
    ("403 cloudflare html", 403, "<html>Attention Required! | Cloudflare</html>", "permanent"),
    ("520", 520, "<html>", "back off"),
    ("524", 524, "", "back off"),
    ("521", 521, "", "back off"),
    ("529", 529, "", "back off"),
    ("404 model", 404, o("no such model", "model_not_found"), "permanent"),
    ("409", 409, "", "back off"),
    ("425", 425, "", "back off"),
    ("422", 422, "", "permanent"),
    ("org deactivated 401", 401, o("", "account_deactivated"), "stop"),
    (
        "403 country",
        403,
        o("Country, region, or territory not supported", "unsupported_country_region_territory"),
        "stop",
    ),
    (
        "anthropic workspace limit",
        429,
        {
            "type": "error",
            "error": {
                "type": "rate_limit_error",
                "message": "You have reached your specified workspace API usage limits. You will regain access on "
                "2025-07-01 at 00:00 UTC.",
            },
        },
        "stop",
    ),
    (
        "anthropic usage limits 400",
        400,
        {
            "type": "error",
            "error": {
                "type": "invalid_request_error",
                "message": "You have reached your specified API usage limits. You will regain access on 2025-07-01 at "
                "00:00 UTC.",
            },
        },
        "stop",
    ),
    ("anthropic billing_error", 402, {"type": "error", "error": {"type": "billing_error", "message": "x"}}, "stop"),
    (
        "2023 engine overloaded",
        429,
        o(
            "That model is currently overloaded with other requests. You can retry your request, or contact us",
            None,
            "server_error",
        ),
        "wait",
    ),
    (
        "2023 quota",
        429,
        o("You exceeded your current quota, please check your plan and billing details.", None, "insufficient_quota"),
        "stop",
    ),
    (
        "hard limit 2023",
        429,
        o("Billing hard limit has been reached", "billing_hard_limit_reached", "invalid_request_error"),
        "stop",
    ),
    (
        "hard limit 400",
        400,
        o("Billing hard limit has been reached", "billing_hard_limit_reached", "invalid_request_error"),
        "stop",
    ),
    (
        "batch queue",
        429,
        o(
            "Enqueued token limit reached for gpt-4o in organization org-x. Limit: 90,000 enqueued tokens.",
            "token_limit_exceeded",
        ),
        "wait",
    ),
    (
        "openrouter key limit 403",
        403,
        {
            "error": {
                "code": 403,
                "message": "Key limit exceeded (monthly limit). Manage it using https://openrouter.ai/settings/keys",
            }
        },
        "stop",
    ),
    (
        "openrouter 402 never purchased",
        402,
        {"error": {"code": 402, "message": "Insufficient credits. This account never purchased credits."}},
        "stop",
    ),
    (
        "openrouter 402 afford",
        402,
        {
            "error": {
                "code": 402,
                "message": "This request requires more credits, or fewer max_tokens. You requested up to 65536 tokens, "
                "but can only afford 2000.",
            }
        },
        "permanent",
    ),
    (
        "openrouter free per day",
        429,
        {
            "error": {
                "code": 429,
                "message": "Rate limit exceeded: free-models-per-day. Add 10 credits to unlock 1000 free model "
                "requests per day",
                "metadata": {
                    "headers": {
                        "X-RateLimit-Limit": "50",
                        "X-RateLimit-Remaining": "0",
                        "X-RateLimit-Reset": "1750000000000",
                    }
                },
            }
        },
        "permanent",
    ),
    ("deepseek 402", 402, o("Insufficient Balance", "invalid_request_error", "unknown_error"), "stop"),
    (
        "moonshot",
        429,
        {
            "error": {
                "message": "Your account org-x is suspended, please check your plan and billing details",
                "type": "exceeded_current_quota_error",
            }
        },
        "stop",
    ),
    ("zai int", 429, {"error": {"code": 1113, "message": "x"}}, "stop"),
    ("mistral 429", 429, {"message": "Requests rate limit exceeded"}, "wait"),
    (
        "mistral capacity",
        429,
        {
            "object": "error",
            "message": "Service tier capacity exceeded for this model.",
            "type": "service_tier_capacity_exceeded",
            "param": None,
            "code": "3505",
        },
        "wait",
    ),
    (
        "gemini free zero",
        429,
        {
            "error": {
                "code": 429,
                "message": "* Quota exceeded for metric: "
                "generativelanguage.googleapis.com/generate_content_free_tier_requests, limit: 0, model: "
                "gemini-2.5-pro",
                "status": "RESOURCE_EXHAUSTED",
            }
        },
        "permanent",
    ),
    (
        "together 2",
        429,
        {
            "error": {
                "message": "You have been rate limited. Your rate limit is 60 queries per minute.",
                "type": "rate_limit",
            }
        },
        "wait",
    ),
    ("vllm", 429, {"object": "error", "message": "Too many requests", "type": "TooManyRequests", "code": 429}, "wait"),
    ("500 with quota words in html", 500, "<html>", "back off"),
    (
        "400 invalid_image_url",
        400,
        o("Timeout while downloading https://x", "invalid_image_url", "invalid_request_error"),
        "permanent",
    ),
]


@pytest.mark.parametrize(("status", "body", "action"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS])
def test_what_it_means(status, body, action):
    assert judge(status, body).action.value == action


@pytest.mark.parametrize(
    "body",
    [
        {"id": "msg_1", "type": "message", "role": "assistant", "content": [], "usage": {}},
        {"choices": [{"message": {"content": "x"}}], "error": None},
        {"object": "response", "status": "completed", "error": None},
        {"code": "x", "message": "y"},
    ],
)
def test_an_answer_is_no_error(body):
    """Sending again costs the same and reads the same."""
    assert not judge(200, body).retryable


def test_a_model_that_is_being_loaded_says_for_how_long():
    assert judge(503, {"error": "Model x is currently loading", "estimated_time": 20.0}).wait == 20
    assert judge(503, {"error": "loading", "estimated_time": True}).wait is None


def test_bedrock_says_in_a_header_that_it_throttles():
    assert judge(400, {"message": "Too many requests"}, {"x-amzn-errortype": "ThrottlingException:http://x"}).retryable


REQUEST = httpx2.Request("POST", "http://api.test/v1/responses")


def status_error(status, body, **headers):
    response = httpx2.Response(status, json=body, headers=headers, request=REQUEST)
    kind = openai.RateLimitError if status == 429 else openai.APIStatusError
    return kind("no", response=response, body=body["error"])


def event(**error):
    return openai.APIError("no", request=REQUEST, body=error)


def caused(error, by):
    error.__cause__ = by
    return error


AGAIN = {
    "an sdk's, with a wait": (status_error(429, o("Please try again in 2s", "rate_limit_exceeded")), 2.0),
    "an sdk's, with a header": (status_error(429, o("", "rate_limit_exceeded"), **{"retry-after": "7"}), 7.0),
    "an sdk's, no money": (status_error(429, o("", "insufficient_quota")), False),
    "an sdk's connection": (openai.APIConnectionError(request=REQUEST), True),
    "an sdk's patience": (openai.APITimeoutError(request=REQUEST), True),
    "an sdk's wrong address": (
        caused(openai.APIConnectionError(request=REQUEST), httpx2.UnsupportedProtocol("no")),
        False,
    ),
    "an event in a stream": (event(message="x", type="server_error", code=None), True),
    "a limit in a stream": (event(message="Please try again in 3s", code="rate_limit_exceeded"), 3.0),
    "no money in a stream": (event(message="x", code="insufficient_quota"), False),
    "a wrong request in a stream": (event(message="x", type="invalid_request_error", code="invalid_value"), False),
    "httpx, refused": (httpx.ConnectError("no"), True),
    "httpx, broken off": (httpx.RemoteProtocolError("no"), True),
    "httpx, no address": (httpx.UnsupportedProtocol("no"), False),
    "httpx, wrong headers": (httpx.LocalProtocolError("no"), False),
    "httpx, cannot be read": (httpx.DecodingError("no"), False),
    "httpx2, too late": (httpx2.ReadTimeout("no"), True),
    "aiohttp, refused": (aiohttp.ClientConnectionError(), True),
    "aiohttp, broken off": (aiohttp.ServerDisconnectedError(), True),
    "aiohttp, half an answer": (aiohttp.ClientPayloadError(), True),
    "aiohttp, too late": (aiohttp.ServerTimeoutError(), True),
    "aiohttp, no address": (aiohttp.InvalidURL("x"), False),
    "requests, refused": (requests.ConnectionError(), True),
    "requests, too late": (requests.Timeout(), True),
    "requests, half an answer": (requests.exceptions.ChunkedEncodingError(), True),
    "requests, no address": (requests.exceptions.InvalidURL(), False),
    "urllib3, broken off": (urllib3.exceptions.ProtocolError("no"), True),
    "urllib3, too late": (urllib3.exceptions.ReadTimeoutError(None, "/", "no"), True),
    "wrapped twice": (caused(RuntimeError(), caused(ValueError(), httpx.ReadTimeout("no"))), True),
    "a group": (ExceptionGroup("two", [httpx.ReadTimeout("no"), status_error(429, o("Please try again in 2s"))]), 2.0),
    "a group with a bug": (ExceptionGroup("two", [httpx.ReadTimeout("no"), ZeroDivisionError()]), False),
    "a group within one": (ExceptionGroup("one", [ExceptionGroup("two", [ConnectionResetError()])]), True),
    "a wrapped group": (caused(RuntimeError(), ExceptionGroup("one", [httpx.ReadTimeout("no")])), True),
    "ours": (RateLimited("no", retry_after=4.0, blocked_by="requests"), 4.0),
    "ours in a group": (ExceptionGroup("one", [RateLimited("no", retry_after=4.0, blocked_by="requests")]), 4.0),
    "a bug": (ZeroDivisionError(), False),
    "a missing file": (FileNotFoundError(), False),
}  # fmt: skip


@pytest.mark.parametrize(("error", "again"), AGAIN.values(), ids=AGAIN)
def test_what_libraries_raise_is_sent_again_where_that_may_help(error, again):
    answer = retry_on(error)
    assert (type(answer), answer) == (type(again), again)


class EventStreamError(Exception):
    """As botocore's: an event in a stream, which has no status."""

    def __init__(self, code):
        super().__init__("no")
        self.response = {"Error": {"Code": code, "Message": "x"}}


@pytest.mark.parametrize(
    ("code", "again"),
    [("modelStreamErrorException", True), ("internalServerException", True), ("throttlingException", True),
     ("validationException", False)],
)  # fmt: skip
def test_an_event_of_bedrocks_in_a_stream_is_judged_by_its_code(code, again):
    assert retry_on(EventStreamError(code)) is again


def test_the_wait_of_a_limit_is_the_headers_where_words_tell_none():
    error = status_error(429, o("Limit 3, Used 3, Requested 1.", "rate_limit_exceeded"), **{"retry-after": "7"})
    assert (rate_limit_info(error).limit, rate_limit_info(error).wait) == (3, 7)
    assert rate_limit_info(status_error(429, o("no"), **{"retry-after": "soon"})).wait is None


def test_the_limit_is_read_from_an_event_in_a_stream_too():
    info = rate_limit_info(event(message="Limit 3, Used 3, Requested 1. Please try again in 20s.", code="x"))
    assert (info.limit, info.current, info.wait) == (3, 3, 20)
