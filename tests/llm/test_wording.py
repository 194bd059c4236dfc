"""What services' words say: how long to wait, and which limit it was. Each sentence is one that was seen."""

from __future__ import annotations

import pytest

from penstock import clock
from penstock.llm.failures import judge
from penstock.llm.wording import RateLimitInfo, info_of, message_wait, never_fits
from tests.quiet import is_quick

WAITS = [
    ("Request was throttled. Expected available in 5 seconds.", 5),
    ("Please retry in 14.123s.", 14.123),
    ("Please try again in 1h2m3s", 3723),
    ("Try again in 59 seconds.", 59),
    ("Rate limit exceeded, retry in 1m", 60),
    ("Please wait 20s before making another request", 20),
    ("try again in 2 min 3 sec", 123),
    ("retry after 1.5 seconds", 1.5),
    ("wait for 10 seconds", 10),
    ("Please try again in 8.64s.", 8.64),
    ("Please try again in 450ms.", 0.45),
    ("Please try again after 30 seconds", 30),
    ("retryDelay: 14s", 14),
    ("Retry-After: 7", 7),
    ("retry_after: 3.5", 3.5),
    ("retry-after-ms: 500", 0.5),
    ("Please try again in 1 minutes, 4 seconds", 64),
    ("please retry your request after 6 seconds", 6),
    ("available again in 12 seconds", 12),
    ("You can retry in 3 seconds", 3),
    ("limit resets in 45 seconds", 45),
    ("Please try again in 6m0s.", 360),
    ("try again in an hour", 3600),
    ("Please try again in 7m12s", 432),
    ("Please wait a minute", 60),
    ("in about 3 minutes", None),
    ("try again in -5s", None),
    ("try again in 1e3 seconds", None),
    ("wait 00:02:30", None),
    ("Inténtelo de nuevo en 20 segundos", None),
]

NUMBERS = [
    ("1,000", 1_000),
    ("10_000", 10_000),
    ("12.5k", 12_500),
    ("90K", 90_000),
    ("2M", 2_000_000),
    ("1e3", 1_000),
    ("1.5 million", 1_500_000),
    ("20.000000", 20),
    ("1.000.000", None),
    ("12.5kb", None),
    ("-5", None),
]


@pytest.mark.parametrize(("written", "number"), NUMBERS)
def test_a_number_is_read_whole_or_not_at_all(written, number):
    """A limit that is read a thousand times too small would be kept, and requests above it given up."""
    assert info_of(f"Rate limit reached. Limit {written} tokens per minute").limit == number
    assert info_of(f"You have a limit of {written} TPM").limit == number
    assert not never_fits(f"Limit {written}, Requested 4") or number is None


@pytest.mark.parametrize(
    ("message", "told"),
    [
        (
            'Not sent: 12000 tokens can never be granted: "tokens (10k/min)" of "org" holds at most 10000 at once. Split',
            RateLimitInfo("tokens", limit=10_000, requested=12_000),
        ),
        (
            "Not sent: requests=1 would have to wait 29.9 s for requests; max_wait is 1 s. Try again in 29.911 s.",
            RateLimitInfo("requests", wait=29.911),
        ),
    ],
)
def test_our_own_words_tell_it_too_where_an_error_keeps_nothing_else(message, told):
    assert info_of(message) == told


SENTENCES = [
    (
        (
            "Rate limit reached for default-text-davinci-002 in organization org-{id} on requests per "
            "min. Limit: 20.000000 / min. Current: 24.000000 / min."
        ),
        {
            "unit": "requests",
            "period": 60,
            "limit": 20,
            "current": 24,
            "model": "default-text-davinci-002",
            "organisation": "org-{id}",
        },
    ),
    (
        (
            "Rate limit reached for default-gpt-3.5-turbo in organization org-abc on tokens per min. "
            "Limit: 90000 / min. Current: 89512 / min. Contact us through our help center"
        ),
        {
            "unit": "tokens",
            "period": 60,
            "limit": 90000,
            "current": 89512,
            "model": "default-gpt-3.5-turbo",
            "organisation": "org-abc",
        },
    ),
    (
        (
            "Rate limit reached for gpt-4 in organization org-abc on requests per day. Limit: 200 / "
            "day. Please try again in 7m12s. Contact us"
        ),
        {"unit": "requests", "period": 86400, "limit": 200, "wait": 432},
    ),
    (
        "Rate limit reached for images per minute. Limit: 50 / 1min. Current: 51 / 1min.",
        {"unit": "images", "period": 60, "limit": 50, "current": 51},
    ),
    (
        (
            "Rate limit reached for gpt-3.5-turbo in organization org-x on requests per min (RPM): "
            "Limit 3, Used 3, Requested 1. Please try again in 20s."
        ),
        {"unit": "requests", "period": 60, "limit": 3, "current": 3, "requested": 1, "wait": 20},
    ),
    (
        (
            "Request too large for gpt-4o in organization org-x on tokens per min (TPM): Limit 10000, "
            "Requested 11454. The input"
        ),
        {"unit": "tokens", "limit": 10000, "requested": 11454, "model": "gpt-4o"},
    ),
    (
        (
            "Request too large for gpt-4-turbo-preview (for limit gpt-4-turbo) in organization org-x on "
            "tokens per min (TPM): Limit 30000, Requested 31000."
        ),
        {"model": "gpt-4-turbo-preview", "organisation": "org-x", "limit": 30000},
    ),
    (
        "This request would exceed your organization's rate limit of 40,000 input tokens per minute. For details",
        {"unit": "input_tokens", "period": 60, "limit": 40000},
    ),
    (
        "This request would exceed the rate limit for your organization (abc) of 8,000 output tokens per minute.",
        {"unit": "output_tokens", "period": 60, "limit": 8000},
    ),
    ("Number of request tokens has exceeded your per-minute rate limit", {"unit": "tokens", "period": 60}),
    ("Number of requests has exceeded your per-minute rate limit", {"unit": "requests", "period": 60}),
    (
        "You are past the per minute request limit, please wait and try again later.",
        {"unit": "requests", "period": 60},
    ),
    ("Too many tokens per day, please wait before trying again.", {"unit": "tokens", "period": 86_400}),
    ("Too many tokens, please wait before trying again.", {"unit": "tokens"}),
    ("Too Many Requests", {"unit": None}),  # so says whoever has no words of its own
    (
        "Rate limit reached for gpt-4o (for limit gpt-4) in organization org-x on tokens_usage_based per min: Limit 3",
        {"unit": "tokens", "period": 60, "limit": 3, "model": "gpt-4o"},
    ),
    (
        (
            "This request would exceed your organization's rate limit of 8,000 output tokens per minute (org: a-1, model: "
            "claude-sonnet-4-20250514)."
        ),
        {"unit": "output_tokens", "limit": 8000, "organisation": "a-1", "model": "claude-sonnet-4-20250514"},
    ),
    (
        (
            "Request was rejected due to request rate limiting. Your rate limits are 60 RPM (1 QPS) and 60000 TPM (1000 "
            "tokens per second)."
        ),
        {"unit": "requests", "period": 60, "limit": 60},
    ),
    (
        (
            "You have reached the rate limit specific to this model meta-llama/Llama-3.3. The maximum rate limit for this "
            "model is 6.0 queries and 180000 tokens per minute."
        ),
        {"unit": "requests", "period": 60, "limit": 6, "model": "meta-llama/Llama-3.3"},
    ),
    (
        "Your account org-a1<ak-x> request reached organization max RPM: 3, please try again after 1 seconds",
        {"unit": "requests", "period": 60, "limit": 3, "organisation": "org-a1", "wait": 1},
    ),
    (
        "Number of concurrent connections has exceeded your rate limit. Please try again later or contact sales",
        {"unit": "in_flight", "limit": None, "period": None},
    ),
    (
        "Your account org-a1<ak-x> request reached max organization concurrency: 3, please try again after 1 seconds",
        {"unit": "in_flight", "limit": 3, "wait": 1},
    ),
    ("Too many concurrent requests. Limit: 2 concurrent requests", {"unit": "in_flight", "limit": 2}),
    ("Maximum concurrent requests (8) exceeded", {"unit": "in_flight", "limit": 8}),
    ("The limit of 20 simultaneous requests is reached", {"unit": "in_flight", "limit": 20}),
    (
        "Rate limit exceeded for api_key: x. Limit type: max_parallel_requests. Current limit: 5, Remaining: 0.",
        {"unit": "in_flight", "limit": 5},
    ),
    ("您当前使用该API的并发数过高，请降低并发，或联系客服增加限额。", {"unit": "in_flight"}),
    ("Throttled: too many concurrent requests per minute", {"unit": "requests", "period": 60}),
    (
        "Crossed TPM / RPM / Max Parallel Request Limit. current rpm: 5, rpm limit: 5, current tpm: 9, tpm limit: 10",
        {"unit": None},
    ),
    (
        "Rate limit exceeded for api_key: x. Limit type: requests. Current limit: 60, Remaining: 0.",
        {"unit": "requests", "limit": 60},
    ),
    (
        "Too many requests for team ab-1 and model grok-4. Your team's rate limit is 480 requests per minute",
        {"unit": "requests", "limit": 480, "organisation": "ab-1", "model": "grok-4"},
    ),
    (
        "You have been rate limited. Your rate limit is 60 queries per minute. ",
        {"unit": "requests", "period": 60, "limit": 60},
    ),
    (
        "You are using a Trial key, which is limited to 10 API calls / minute.",
        {"unit": "requests", "limit": 10, "period": 60},
    ),
    (
        (
            "* Quota exceeded for metric: "
            "generativelanguage.googleapis.com/generate_content_free_tier_requests, limit: 15, model: "
            "gemini-2.0-flash\nPlease retry in 14.5s."
        ),
        {"unit": "requests", "limit": 15, "model": "gemini-2.0-flash", "wait": 14.5},
    ),
    (
        (
            "Requests to the ChatCompletions_Create Operation under Azure OpenAI API version 2023-05-15 "
            "have exceeded token rate limit of your current OpenAI S0 pricing tier. Please retry after "
            "6 seconds."
        ),
        {"unit": "tokens", "wait": 6},
    ),
    (
        (
            "Requests to the ChatCompletions_Create Operation under Azure OpenAI API version 2023-05-15 "
            "have exceeded call rate limit of your current OpenAI S0 pricing tier. Please retry after 6 "
            "seconds."
        ),
        {"unit": "requests", "wait": 6},
    ),
    (
        (
            "Rate limit reached for model `llama3-70b` in organization `org_01` service tier "
            "`on_demand` on tokens per minute (TPM): Limit 6000, Used 5998, Requested 251. Please try "
            "again in 2.49s."
        ),
        {
            "unit": "tokens",
            "limit": 6000,
            "current": 5998,
            "requested": 251,
            "model": "llama3-70b",
            "organisation": "org_01",
            "wait": 2.49,
        },
    ),
]


@pytest.mark.parametrize(("message", "seconds"), WAITS)
def test_a_wait_is_read_from_the_words_of_a_message(message, seconds):
    assert message_wait(message) == seconds


@pytest.mark.parametrize(("message", "told"), SENTENCES, ids=range(len(SENTENCES)))
def test_which_limit_it_was(message, told):
    info = info_of(message)
    assert {name: getattr(info, name) for name in told} == told


def test_gemini_tells_the_limit_in_details_and_not_in_words():
    violation = {
        "quotaId": "GenerateContentInputTokensPerModelPerMinute-FreeTier",
        "quotaDimensions": {"model": "gemini-2.0-flash"},
        "quotaValue": "250000",
    }
    details = [{"violations": [violation]}, {"retryDelay": "14s"}]
    body = {"error": {"code": 429, "status": "RESOURCE_EXHAUSTED", "message": "no", "details": details}}
    told = RateLimitInfo("input_tokens", 60, 250_000, model="gemini-2.0-flash", wait=14)
    assert judge(429, body).info == told


@pytest.mark.parametrize(
    ("body", "wait"),
    [
        ({"message": "You are being rate limited.", "retry_after": 64.57, "global": False}, 64.57),
        ({"ok": False, "description": "Too Many Requests", "parameters": {"retry_after": 35}}, 35),
        ({"error": {"message": "no", "retry_after": "12"}}, 12),
        ({"detail": {"error": "no", "retry_after": 5}}, 5),
        ({"retry_after": True}, None),
        ({"retry_after": "9" * 10_000}, None),
        ({"errors": [{"message": "Please try again in 3s", "code": 88}]}, 3),
        ({"type": "about:blank", "title": "Please try again in 3s"}, 3),
    ],
)
def test_a_body_tells_the_wait_beside_its_words(body, wait):
    verdict = judge(429, body)
    assert (verdict.action.value, verdict.wait) == ("wait", wait)


def test_openrouter_tells_in_the_body_what_other_services_tell_in_headers():
    until = f"{int((clock.wall() + 30) * 1000)}"
    headers = {"X-RateLimit-Limit": "20", "X-RateLimit-Remaining": "0", "X-RateLimit-Reset": until}
    error = {"message": "Rate limit exceeded: free-models-per-min.", "code": 429, "metadata": {"headers": headers}}
    info = judge(429, {"error": error}).info
    assert (info.unit, info.limit, info.current, info.period) == ("requests", 20, 20, 60)
    assert info.wait == pytest.approx(30, abs=2)
    raw = {"raw": '{"error":{"message":"Please try again in 7.5s"}}', "provider_name": "Groq"}
    assert judge(429, {"error": {"message": "Provider returned error", "code": 429, "metadata": raw}}).wait == 7.5


@pytest.mark.parametrize("body", [{"error": {"code": 10**5_000}}, {"errors": []}, {"errors": [5]}, {"metadata": 5}])
def test_a_strange_body_is_judged(body):
    assert judge(429, body).action.value == "wait"


@pytest.mark.parametrize(
    "words",
    ["metric: a" * 8_000, "metric: " + "_" * 65_536, "available again in " * 3_000,
     "retry-after-ms: " * 4_000, "in an hour " * 6_000, "of 1 a b " * 8_000,
     "input tokens / " * 4_000, "a" * 65_536,
     "for x (for limit " * 4_000, "per-1" * 13_000, "model: " * 9_000,
     "number of input " * 4_000, "limit for this model is 1 " * 2_500, "1 RPM" * 13_000, "your organization (" * 3_000,
     "limit 1" + "1" * 65_536, "limit " + "1," * 32_000, "1.1" * 20_000 + " RPM", "would have to wait " * 3_000],
    ids=range(19),
)  # fmt: skip
def test_no_sentence_takes_long(words):
    assert is_quick(lambda: info_of(words), 0.01)
