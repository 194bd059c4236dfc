"""What services say when they refuse: each row is one that was seen, and what is to be done about it."""

from __future__ import annotations

import json

import pytest

from penstock.llm.failures import Action, RateLimitInfo, judge, message_wait, retry_on
from tests.quiet import is_quick

WAIT, BACK_OFF, PERMANENT, STOP = Action.WAIT, Action.BACK_OFF, Action.PERMANENT, Action.STOP


def openai(message="", code=None, kind=None):
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def gemini(*details, code=429):
    return {
        "error": {"code": code, "message": "Quota exceeded", "status": "RESOURCE_EXHAUSTED", "details": list(details)}
    }


def quota_failure(quota_id, **more):
    return {"@type": "type.googleapis.com/google.rpc.QuotaFailure", "violations": [{"quotaId": quota_id, **more}]}


GUIDE = (
    "Rate limit reached for default-text-davinci-002 in organization org-abc on requests per min. "
    "Limit: 20.000000 / min. Current: 24.000000 / min."
)
TODAY = (
    "Rate limit reached for gpt-4o in organization org-x on tokens per min (TPM): Limit 30000, Used 14567, "
    "Requested 24754. Please try again in 18.642s."
)
GROQ = (
    "Request too large for model `llama` in organization `org_1` service tier `on_demand` on tokens per minute (TPM): "
    "Limit 6000, Requested ~9251"
)
RETRY = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "45.8s"}

ROWS = {
    "openai, a minute": (429, openai("Please try again in 6ms.", "rate_limit_exceeded"), WAIT, 0.006),
    "openai, slow_down": (429, openai("", "slow_down"), WAIT, None),
    "openai, no money": (429, openai("", "insufficient_quota"), STOP, None),
    "openai, overloaded": (503, openai("", "server_is_overloaded"), BACK_OFF, None),
    "anthropic, a minute": (429, {"type": "error", "error": {"type": "rate_limit_error", "message": "x"}}, WAIT, None),
    "anthropic, overloaded": (529, {"type": "error", "error": {"type": "overloaded_error"}}, BACK_OFF, None),
    "anthropic, spend": (
        429,
        {"error": {"type": "rate_limit_error", "code": "enforced_spend_limit_reached"}},
        STOP,
        None,
    ),
    "anthropic, spend in words": (
        429,
        {
            "error": {
                "type": "rate_limit_error",
                "message": "You have reached your specified API usage limits (spend limit).",
            }
        },
        STOP,
        None,
    ),
    "anthropic, credit": (
        400,
        {"error": {"type": "invalid_request_error", "message": "Your credit balance is too low to access the API."}},
        STOP,
        None,
    ),
    "gemini, a minute": (429, gemini(quota_failure("GenerateRequestsPerMinutePerProject"), RETRY), WAIT, 45.8),
    "gemini, a day": (
        429,
        gemini(quota_failure("GenerateRequestsPerDayPerProjectPerModel-FreeTier"), RETRY),
        PERMANENT,
        None,
    ),
    "gemini, none at all": (429, openai("Quota exceeded for metric: x, limit: 0"), PERMANENT, None),
    "gemini, in a list": (429, [gemini(RETRY)], WAIT, 45.8),
    "groq, too large": (
        413,
        openai(
            "Request too large: Limit 6000, Requested ~9251, please reduce your message size", "rate_limit_exceeded"
        ),
        PERMANENT,
        None,
    ),
    "groq, too large as a 429": (
        429,
        openai("on tokens per minute (TPM): Limit 6000, Requested ~9251"),
        PERMANENT,
        None,
    ),
    "groq, capacity": (498, openai("", "capacity_exceeded"), BACK_OFF, None),
    "gemini, a wrong key": (
        400,
        {
            "error": {
                "code": 400,
                "message": "API key not valid. Please pass a valid API key.",
                "status": "INVALID_ARGUMENT",
            }
        },
        STOP,
        None,
    ),
    "gemini, an old key": (
        400,
        {"error": {"code": 400, "message": "API key expired. Please renew the API key.", "status": "INVALID_ARGUMENT"}},
        STOP,
        None,
    ),
    "gemini, a key that leaked": (
        403,
        {"error": {"code": 403, "message": "Your API key was reported as leaked.", "status": "PERMISSION_DENIED"}},
        STOP,
        None,
    ),
    "z.ai": (429, {"error": {"code": "1113", "message": "Insufficient balance"}}, STOP, None),
    "moonshot": (429, openai("", None, "exceeded_current_quota_error"), STOP, None),
    "xai": (
        429,
        {"code": "Some resource has been exhausted", "error": "You reached your monthly spending limit."},
        STOP,
        None,
    ),
    "deepseek": (402, openai("Insufficient Balance"), STOP, None),
    "openrouter, one row": (
        402,
        {
            "error": {
                "code": 402,
                "message": "This request requires more credits, or fewer max_tokens. You requested up to 9",
            }
        },
        PERMANENT,
        None,
    ),
    "a 402 without words": (402, "", STOP, None),
    "xai, credit": (403, openai("Your team is out of credits, or at its monthly spending_limit"), STOP, None),
    "fireworks": (429, openai("Insufficient funds: add credit"), STOP, None),
    "gemini, the quota of now": (429, openai("You exceeded your current quota, please check your plan"), WAIT, None),
    "openrouter, a wait that it relays": (
        429,
        {"error": {"code": 429, "message": "Rate limited", "metadata": {"headers": {"Retry-After": "7"}}}},
        WAIT,
        7,
    ),
    "openrouter, all": (402, {"error": {"code": 402, "message": "Insufficient credits"}}, STOP, None),
    "openrouter, in a 200": (200, {"choices": None, "error": {"code": 429, "message": "Rate limited"}}, WAIT, None),
    "in a 200, broken": (200, {"error": {"code": 502, "message": "Provider returned error"}}, BACK_OFF, None),
    "azure": (429, {"error": {"code": "429", "message": "Please retry after 33 seconds."}}, WAIT, 33),
    "azure, a request above its quota": (
        429,
        {"error": {"code": "429", "message": "Please retry after 86400 seconds."}},
        PERMANENT,
        None,
    ),
    "vllm, and gateways that tell nothing": (429, {"object": "error", "message": "no", "code": 429}, WAIT, None),
    "openai, out of money in other words": (429, openai("", "organization_spend_limit_exceeded"), STOP, None),
    "html from a proxy": (502, "<html><body>502 Bad Gateway</body></html>", BACK_OFF, None),
    "an unknown status": (418, "", PERMANENT, None),
    "a wrong key": (401, openai("", "invalid_api_key"), STOP, None),
}


@pytest.mark.parametrize(("status", "body", "action", "wait"), ROWS.values(), ids=ROWS)
def test_every_dialect_is_understood(status, body, action, wait):
    verdict = judge(status, body)
    assert verdict.action is action
    assert verdict.wait == (None if wait is None else pytest.approx(wait))


@pytest.mark.parametrize(
    ("message", "seconds"),
    [
        ("Please wait 23 seconds before retrying", 23),
        ("Retry after: 30", 30),
        ("retry_after=12s", 12),
        ("Try again in about 3 minutes.", 180),
        ("Please try again in 1 minute and 30 seconds.", 90),
        ("Please retry in 1,000 ms", 1),
        ("retry after 1 hour, 2 minutes", 3_720),
        ("Please try again in 2m5.5s", 125.5),
        ("wait for it", None),
        ("retry after lunch", None),
        ("Retry after: 30 apples", None),
    ],
)
def test_waits_in_words(message, seconds):
    assert message_wait(message) == (None if seconds is None else pytest.approx(seconds))


@pytest.mark.parametrize(
    ("message", "info"),
    [
        (
            GUIDE,
            RateLimitInfo("requests", 60, 20, 24, None, "default-text-davinci-002", "org-abc", None),
        ),
        (
            TODAY,
            RateLimitInfo("tokens", 60, 30_000, 14_567, 24_754, "gpt-4o", "org-x", 18.642),
        ),
        (
            "Rate limit reached for gpt-4o-mini on requests per day (RPD): Limit 10000, Used 10000, Requested 1.",
            RateLimitInfo("requests", 86_400, 10_000, 10_000, 1, "gpt-4o-mini", None, None),
        ),
        (
            GROQ,
            RateLimitInfo("tokens", 60, 6_000, None, 9_251, "llama", "org_1", None),
        ),
        ("Limit 3 requests per min (RPM)", RateLimitInfo("requests", 60, 3, None, None, None, None, None)),
        ("Limit 25 requests per 10 s", RateLimitInfo("requests", 10, 25, None, None, None, None, None)),
        ("no", RateLimitInfo(None, None, None, None, None, None, None, None)),
    ],
)
def test_a_message_tells_which_limit_it_was(message, info):
    assert judge(429, openai(message)).info == info


@pytest.mark.parametrize(
    "words",
    [
        "Limit 1 " * 8_000,
        "Requested 1 Limit 1 " * 3_000,
        "try again in " * 5_000,
        "try again in 1s " * 4_000 + "x",
        "retry after 1 1 1 1 " * 3_000,
        "in organization " * 4_000,
        "9" * 65_536,
        "[" * 65_536,
        "1 minute and " * 5_000,
    ],
)
def test_no_message_takes_long_or_raises(words):
    told = openai(words)
    bodies = (told, words, json.dumps(told).encode(), {"error": words}, {"error": {"code": words}})

    def judgements():
        for body in bodies:
            for status in (200, 400, 402, 429, 500):
                judge(status, body)

    assert is_quick(judgements, 25 * 0.01)


@pytest.mark.parametrize(
    "body",
    [None, [], {}, {"error": None}, {"error": []}, {"error": {"details": 5}}, {"error": {"details": [None, {"retryDelay": 7}]}},
     {"error": {"code": {"a": 1}, "type": ["x"], "message": {"y": 2}}}, b"\xff\xfe", 5, {"error": {"details": [{"violations": [3]}]}}],
    ids=repr,
)  # fmt: skip
def test_no_body_breaks_it(body):
    assert judge(429, body).action is Action.WAIT
    assert judge(500, body).action is Action.BACK_OFF


class HTTPXStyleError(Exception):
    """As httpx's HTTPStatusError: all there is, is in the response."""

    def __init__(self, status, headers=None, text=""):
        super().__init__("no")
        self.response = type("Response", (), {"status_code": status, "headers": headers or {}, "text": text})()


class AiohttpStyleError(Exception):
    """As aiohttp's ClientResponseError: a status and headers of its own."""

    def __init__(self, status, headers=None):
        super().__init__("no")
        self.status, self.headers = status, headers or {}


class BotocoreStyleError(Exception):
    """As botocore's ClientError: a response that is a dict."""

    def __init__(self, code, status):
        super().__init__("no")
        self.response = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status, "HTTPHeaders": {}}}


class WrappedError(Exception):
    """As frameworks wrap what an SDK raised."""


def wrapped(error):
    outer = WrappedError("it failed")
    outer.__cause__ = error
    return outer


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (HTTPXStyleError(429, {"retry-after": "3"}), 3.0),
        (HTTPXStyleError(500), True),
        (HTTPXStyleError(400), False),
        (HTTPXStyleError(429, text='{"error": {"code": "insufficient_quota"}}'), False),
        (AiohttpStyleError(429, {"Retry-After": "3"}), 3.0),
        (AiohttpStyleError(503), True),
        (AiohttpStyleError(404), False),
        (BotocoreStyleError("ThrottlingException", 400), True),
        (BotocoreStyleError("ValidationException", 400), False),
        (wrapped(HTTPXStyleError(429, {"retry-after": "3"})), 3.0),
        (wrapped(ConnectionResetError()), True),
        (wrapped(ValueError()), False),
    ],
    ids=repr,
)
def test_errors_of_every_library_are_judged(error, again):
    assert retry_on(error) == again


@pytest.mark.parametrize(("words", "seconds"), [("950ms", 0.95), ("1m0.95s", 60.95), ("7.44ms", 0.00744)])
def test_a_wait_in_words_is_the_number_that_it_says(words, seconds):
    """Not a little more, as 950 thousandths are in binary."""
    assert message_wait(f"Please try again in {words}.") == seconds
