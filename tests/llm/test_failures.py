"""Failures are sorted by what the service says in words; the status alone would be wrong."""

from __future__ import annotations

import json
import math
import types
from urllib.error import URLError

import pytest

from penstock.errors import AttemptTimeout, MissingUnit, RateLimited, Unsatisfiable
from penstock.llm.failures import Action, judge, message_wait, retry_on


def body(message="", code=None, kind=None):
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


LIMITED = (
    "Rate limit reached for gpt-4o in organization org-x on requests per min (RPM): Limit 500, Used 500, Requested 1. "
)
OLD = (
    "Rate limit reached for default-text-davinci-002 in organization org-{id} on requests per min. "
    "Limit: 20.000000 / min. Current: 24.000000 / min."
)
TOO_LARGE = (
    "Request too large for gpt-4o in organization org-x on tokens per min (TPM): Limit 10000, Requested 11454. "
    "The input or output tokens must be reduced in order to run successfully."
)


@pytest.mark.parametrize(
    ("words", "seconds"),
    [
        ("6ms", 0.006),
        ("1.2s", 1.2),
        ("2m5.5s", 125.5),
        ("1h2m3s", 3_723.0),
        ("20s", 20.0),
        ("20 seconds", 20.0),
        ("1 minute", 60.0),
        ("23h18m29.144s", 83_909.144),
    ],
)
def test_a_limit_reached_waits_for_what_the_message_says(words, seconds):
    verdict = judge(
        429, body(f"{LIMITED}Please try again in {words}. Visit https://x to learn more.", "rate_limit_exceeded")
    )
    assert verdict.action is Action.WAIT
    assert verdict.wait == pytest.approx(seconds)
    assert verdict.code == "rate_limit_exceeded"


@pytest.mark.parametrize(
    ("message", "seconds"),
    [
        ("Please retry after 33 seconds.", 33.0),
        ("Please retry in 14s", 14.0),
        ("Please try again in 5 s or less", 5.0),
        ("Please try again later", None),
        ("Please try again in a few minutes", None),
        ("Please try again in 1.2.3s", None),
        ("try again in 3 moons", None),
        ("try again in " + "9" * 400 + "s", None),
        ("", None),
    ],
)
def test_a_wait_is_read_from_words_only_where_it_is_a_time(message, seconds):
    assert message_wait(message) == seconds


def test_the_longer_of_header_and_message_counts():
    """Retry-After is whole seconds and the message is not; the shorter of the two would be too early."""
    message = body(f"{LIMITED}Please try again in 2.5s", "rate_limit_exceeded")
    assert judge(429, message, {"Retry-After": "2"}).wait == 2.5
    assert judge(429, message, {"Retry-After": "3"}).wait == 3.0
    assert judge(429, body("x"), {"retry-after-ms": "20"}).wait == 0.02


def test_the_early_guides_message_waits_without_saying_how_long():
    verdict = judge(429, body(OLD))
    assert (verdict.action, verdict.wait) == (Action.WAIT, None)


def test_a_request_larger_than_the_limit_is_permanent_and_its_retry_after_is_not_believed():
    verdict = judge(429, body(TOO_LARGE, "rate_limit_exceeded", "tokens"), {"retry-after": "1"})
    assert (verdict.action, verdict.wait, verdict.retryable) == (Action.PERMANENT, None, False)


def test_a_request_larger_than_the_limit_is_known_by_its_numbers_too():
    assert judge(429, body("on tokens per min: Limit 10,000, Used 9, Requested 11,454.")).action is Action.PERMANENT
    assert judge(429, body("on tokens per min: Limit 10,000, Used 9999, Requested 11.")).action is Action.WAIT


@pytest.mark.parametrize("digits", [",", ",5", "9" * 5_000])
@pytest.mark.parametrize("words", ["Limit {}, Requested 5", "Limit 5, Requested {}"])
def test_numbers_of_any_kind_in_a_message_break_nothing(words, digits):
    """A number without end is more than any limit; what is none says nothing."""
    never = words.endswith("{}") and digits[0] == "9"
    assert judge(429, body(words.format(digits))).action is (Action.PERMANENT if never else Action.WAIT)


def test_a_body_that_is_nested_without_end_is_words():
    assert judge(429, b"[" * 100_000).action is Action.WAIT


@pytest.mark.parametrize(
    "headers", [{"retry-after": "0"}, {"retry-after-ms": "0"}, {"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, {}]
)
@pytest.mark.parametrize("message", ["", "Please try again in 0s."])
def test_a_wait_of_nothing_is_none_that_was_told(headers, message):
    """It is no leave to resend at once: the next try backs off as if nothing had been said."""
    assert judge(429, body(message), headers).wait is None
    assert retry_on(StatusError(429, body(message)["error"], headers)) is True
    assert judge(429, body(message), headers | {"retry-after-ms": "7"}).wait == 0.007


@pytest.mark.parametrize(
    "code",
    [
        "insufficient_quota",
        "credit_balance_exhausted",
        "organization_usage_limit_exceeded",
        "organization_spend_limit_exceeded",
        "project_spend_limit_exceeded",
        "billing_hard_limit_reached",
    ],
)
@pytest.mark.parametrize("place", ["code", "kind"])
def test_an_account_without_money_stops_the_run(code, place):
    verdict = judge(429, body("You exceeded your current quota.", **{place: code}), {"retry-after": "1"})
    assert (verdict.action, verdict.wait, verdict.code) == (Action.STOP, None, code)


@pytest.mark.parametrize(
    ("status", "action"),
    [
        (400, Action.PERMANENT),
        (401, Action.STOP),
        (403, Action.PERMANENT),
        (404, Action.PERMANENT),
        (408, Action.BACK_OFF),
        (409, Action.BACK_OFF),
        (413, Action.PERMANENT),
        (422, Action.PERMANENT),
        (429, Action.WAIT),
        (500, Action.BACK_OFF),
        (501, Action.PERMANENT),
        (502, Action.BACK_OFF),
        (503, Action.BACK_OFF),
        (529, Action.BACK_OFF),
    ],
)
@pytest.mark.parametrize("words", [None, b"", "<html>nginx</html>", b"\xff", {}, [], 7, {"error": None}, {"error": []}])
def test_without_words_the_status_decides(status, action, words):
    assert judge(status, words).action is action


def test_slow_down_and_overloaded_are_told_apart():
    assert judge(429, body("Slow down", "slow_down"), {"retry-after": "15"}).action is Action.WAIT
    overloaded = judge(503, body("Overloaded", "server_is_overloaded"), {"retry-after": "2"})
    assert (overloaded.action, overloaded.wait) == (Action.BACK_OFF, 2.0)


@pytest.mark.parametrize(
    "shape",
    [
        pytest.param(lambda b: b, id="json"),
        pytest.param(lambda b: b["error"], id="the error alone, as SDKs keep it"),
        pytest.param(json.dumps, id="text"),
        pytest.param(lambda b: json.dumps(b).encode(), id="bytes"),
        pytest.param(lambda b: [b], id="in a list"),
    ],
)
def test_a_body_is_understood_in_every_shape_in_use(shape):
    verdict = judge(429, shape(body("No money", "insufficient_quota", "insufficient_quota")))
    assert (verdict.action, verdict.code, verdict.message) == (Action.STOP, "insufficient_quota", "No money")


def test_plain_words_are_the_message():
    assert judge(429, {"error": "please try again in 3s"}).wait == 3.0
    assert judge(429, "please try again in 3s").message == "please try again in 3s"
    assert judge(429, {"error": {"code": 429, "status": "RESOURCE_EXHAUSTED"}}).code == "429"


def test_what_is_nested_too_deeply_to_be_read_is_no_json():
    """The status decides, as for every other body without words."""
    verdict = judge(503, b"[" * 100_000)
    assert (verdict.action, verdict.code, len(verdict.message)) == (Action.BACK_OFF, "", 1_000)


def test_x_should_retry_overrules_the_status_but_not_an_empty_account():
    assert judge(429, body("x"), {"X-Should-Retry": "false"}).action is Action.PERMANENT
    assert judge(400, body("x"), {"x-should-retry": "true"}).action is Action.BACK_OFF
    assert judge(429, body("x", "insufficient_quota"), {"x-should-retry": "true"}).action is Action.STOP
    assert judge(429, body("x"), {"x-should-retry": "maybe"}).action is Action.WAIT


class StatusError(Exception):
    """As openai's and anthropic's SDKs raise them."""

    def __init__(self, status, error=None, headers=None):
        super().__init__(status)
        self.status_code, self.body = status, error
        self.response = types.SimpleNamespace(headers=headers or {})


class APIConnectionError(Exception):
    pass


class APITimeoutError(APIConnectionError):
    pass


class TransportError(Exception):
    pass


class ConnectError(TransportError):
    __module__ = "httpx2"


TransportError.__module__ = "httpx2"


def caused(error, cause):
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "answer"),
    [
        pytest.param(StatusError(429, body("x")["error"], {"retry-after": "7"}), 7.0, id="wait as told"),
        pytest.param(StatusError(429), True, id="wait, not told how long"),
        pytest.param(StatusError(503), True, id="back off"),
        pytest.param(StatusError(429, body("x", "insufficient_quota")["error"]), False, id="no money"),
        pytest.param(StatusError(429, body(TOO_LARGE)["error"]), False, id="too large"),
        pytest.param(StatusError(400), False, id="bad request"),
        pytest.param(StatusError(200), False, id="an answer that could not be read"),
        pytest.param(APITimeoutError(), True, id="the SDK's timeout"),
        pytest.param(ConnectError(), True, id="httpx2's connection"),
        pytest.param(ConnectionResetError(), True, id="the system's connection"),
        pytest.param(URLError(ConnectionRefusedError()), True, id="urllib's, of that"),
        pytest.param(TimeoutError(), True, id="a timeout"),
        pytest.param(AttemptTimeout("x", seconds=1), True, id="our own timeout"),
        pytest.param(RateLimited("x", retry_after=3.0, blocked_by="tokens"), 3.0, id="our limiter: not now"),
        pytest.param(
            RateLimited("x", retry_after=math.inf, blocked_by="calls"), True, id="our limiter: nobody knows when"
        ),
        pytest.param(Unsatisfiable("x", unit="tokens", cost=9, capacity=1), False, id="our limiter: never"),
        pytest.param(
            caused(APIConnectionError(), Unsatisfiable("x", unit="tokens", cost=9, capacity=1)),
            False,
            id="never, wrapped",
        ),
        pytest.param(caused(APIConnectionError(), MissingUnit("x", unit="tokens")), False, id="a wrong cost, wrapped"),
        pytest.param(ValueError("a bug"), False, id="a bug"),
        pytest.param(KeyboardInterrupt(), False, id="Ctrl-C"),
    ],
)
def test_retry_on_reads_what_errors_carry_and_imports_no_sdk(error, answer):
    assert retry_on(error) is answer if isinstance(answer, bool) else retry_on(error) == answer


@pytest.mark.parametrize(
    ("body", "message"), [(b"", ""), (b"<h1>Bad Gateway</h1>", "<h1>Bad Gateway</h1>"), (b"\xff", "\ufffd")]
)
def test_a_body_of_bytes_that_is_no_json_is_the_message_as_text(body, message):
    assert judge(401, body, {}).message == message
