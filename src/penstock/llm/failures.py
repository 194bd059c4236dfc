"""What a failed request means: wait, back off, give this request up, or give the run up.

A status, a body and headers in, a `Verdict` out; the clock is asked only where a `Retry-After` names a date and the
response has none of its own. How the caller waits is decided by `transport` and by `Retry`.

The same status means opposite things: a 429 may say "in 6 ms", "this request is larger than your whole limit" or "there
is no money left". So the body's words decide, its code first, and the status only where the body says nothing.
"""

from __future__ import annotations

import enum
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

from penstock import clock
from penstock._retry_after import attribute_of
from penstock._stated_times import asked_by, duration
from penstock.errors import AttemptTimeout, CircuitOpen, CostError, PenstockError, RateLimited, Unreachable
from penstock.llm import headers as _headers
from penstock.llm.wording import LONGEST, RateLimitInfo, info_of, message_wait, never_fits, quota_named

__all__ = [
    "Action",
    "Failure",
    "RateLimitInfo",
    "Verdict",
    "body_of",
    "failure_of",
    "info_in",
    "judge",
    "message_wait",
    "retry_on",
]


class Action(enum.Enum):
    """What to do about a failure."""

    WAIT = "wait"
    """The limit is used up. All requests under it wait for a while; then the same one may go."""
    BACK_OFF = "back off"
    """The service has trouble. This request may go again, later each time."""
    PERMANENT = "permanent"
    """This request will never do, as it is. Others may."""
    STOP = "stop"
    """No request of this account will do until its owner acts: end the run."""


_UNKNOWN = RateLimitInfo()


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a failure means.

    Attributes:
        action: What to do.
        wait: Seconds to wait before the next try, as the server put it, above 0. None: it did not say.
        code: The service's own code or type, `""` if it gave none.
        message: The service's own words, `""` if it gave none.
        details: Which limit it was, as far as the body tells it beside its words.
    """

    action: Action
    wait: float | None
    code: str
    message: str
    details: RateLimitInfo = _UNKNOWN

    @property
    def info(self) -> RateLimitInfo:
        """Which limit it was, by the body's details and its message."""
        return self.details.completed_by(info_of(self.message))

    @property
    def retryable(self) -> bool:
        """Whether the same request may be sent again."""
        return self.action in {Action.WAIT, Action.BACK_OFF}


STOPS = frozenset(
    {
        "insufficient_quota",
        "credit_balance_exhausted",
        "organization_usage_limit_exceeded",
        "organization_spend_limit_exceeded",
        "project_spend_limit_exceeded",
        "billing_hard_limit_reached",
        "billing_not_active",
        "account_deactivated",
        "access_terminated",
        "invalid_api_key",
        "enforced_spend_limit_reached",  # Anthropic
        "exceeded_current_quota_error",  # Moonshot
        "1113",  # Z.ai: no balance
        "billing_error",  # Anthropic
        "unsupported_country_region_territory",
    }
)
"""Codes after which no request of the account does, whatever the status."""

_CONNECTION_TROUBLE = {
    ("TransportError", "httpx"),
    ("TransportError", "httpx2"),
    ("ClientConnectionError", "aiohttp"),
    ("ClientPayloadError", "aiohttp"),
    ("ConnectionError", "requests"),
    ("Timeout", "requests"),
    ("ChunkedEncodingError", "requests"),
    ("HTTPClientError", "botocore"),
    ("ConnectionError", "botocore"),
    ("ProtocolError", "urllib3"),
    ("TimeoutError", "urllib3"),
    ("NewConnectionError", "urllib3"),
    ("IncompleteRead", "http"),
    ("NoResponseError", "mistralai"),
}
_OUR_FAULT = {
    ("UnsupportedProtocol", "httpx"),
    ("UnsupportedProtocol", "httpx2"),
    ("LocalProtocolError", "httpx"),
    ("LocalProtocolError", "httpx2"),
    ("InvalidURL", "httpx"),
    ("InvalidURL", "httpx2"),
    ("InvalidURL", "requests"),
    ("InvalidURL", "aiohttp"),
    ("ClientConnectorCertificateError", "aiohttp"),
}
"""What looks like trouble with a connection, and is a wrong address or request: sending it again does not mend it."""

_STATUSES = {
    **dict.fromkeys(("rate_limit_exceeded", "rate_limit_error", "rate_limited", "slow_down", "too_many_requests"), 429),
    **dict.fromkeys(("RESOURCE_EXHAUSTED", "requests", "tokens", "ratelimited"), 429),
    **dict.fromkeys(("server_is_overloaded", "service_unavailable_error", "UNAVAILABLE"), 503),
    **dict.fromkeys(("overloaded", "overloaded_error"), 529),
    **dict.fromkeys(("server_error", "api_error", "internal_error", "internal_server_error", "INTERNAL"), 500),
    **dict.fromkeys(("timeout", "timeout_error", "DEADLINE_EXCEEDED"), 504),
    **dict.fromkeys(("invalid_request_error", "INVALID_ARGUMENT", "content_filter"), 400),
    "authentication_error": 401,
    "permission_error": 403,
    "not_found_error": 404,
    "request_too_large": 413,
}
"""The status that an error inside a success stands for, by its code or type."""

OURS = "penstock"
"""The type of the errors that our own transport answers with, in the service's stead."""

_STOPS_IN_WORDS = re.compile(
    r"credit balance|insufficient (?:balance|credits?|funds)|spend(?:ing)?[ _](?:limit|cap)|out of credits?"
    r"|exceeded[ _]current[ _]quota|billing (?:hard )?limit"
    r"|specified (?:workspace )?api usage limits|key limit exceeded"
    r"|\bcalls / month|\bapi key (?:not valid|expired|was reported)",
    re.IGNORECASE,
)
_ROWS_OWN = re.compile(r"fewer max_tokens|can only afford", re.IGNORECASE)
_FOR_A_DAY = re.compile(r"free-models-per-day", re.IGNORECASE)  # OpenRouter's
_DAY = 86_400.0
_TROUBLED = re.compile(r"internal(?:server|failure)|unavailable|modelstreamerror|modeltimeout", re.IGNORECASE)
_THROTTLED = re.compile(r"throttl|toomanyrequests|requestlimitexceeded|slowdown", re.IGNORECASE)


def judge(status: int, body: Any = None, headers: Mapping[str, str] | None = None) -> Verdict:
    """Say what a failed response means.

    Args:
        status: 400 or above; or that of an answer that holds an error.
        body: As it came (bytes or text), as JSON, or the error object inside it, which is what SDKs keep.
        headers: Names in any case. Read for `retry-after-ms`, `retry-after`, `date` and `x-should-retry`.
    """
    error = _error(body)
    asked = None if headers is None else asked_by(headers, wall=clock.wall())
    worded = message_wait(error.message)
    # Header and message round differently ("1" and "6ms"): believing the longer one is never too early. A hint of 0, or
    # a date that has passed, is none: a request that is sent again at once is refused again.
    wait = max(asked or 0.0, worded or 0.0, error.wait or 0.0) or None
    if status < 400:
        status = _status_inside(status, error)
    elif status == 403 and headers and _headers.read(headers, status, wall=clock.wall()).refuses:
        status = 429  # GitHub's way to say so
    elif status == 400 and (_THROTTLED.search(error.kind) or _THROTTLED.search(_header(headers, "x-amzn-errortype"))):
        status = 429
    action = _action(status, error)
    if action is Action.WAIT and error.code == "429" and (worded or 0.0) >= _DAY:
        action = Action.PERMANENT  # Azure's way to say that it is more than the whole quota
    should_retry = _should_retry(headers)
    # Our own "not now" forbids retries to SDKs, which would make the wait that was just refused. Others may know more.
    ours = error.kind == OURS or _header(headers, "x-refused-by") == OURS
    if should_retry is False and (action is Action.BACK_OFF or (action is Action.WAIT and not ours)):
        action = Action.PERMANENT
    elif should_retry is True and action is Action.PERMANENT:
        action = Action.BACK_OFF
    if action in {Action.PERMANENT, Action.STOP}:
        wait = None
    return Verdict(action, wait, error.code or error.kind, error.message, error.details)


def retry_on(error: BaseException) -> bool | float:
    """Whether to try again after an error, for `Retry(on=retry_on)`: True, False, or the seconds to wait first.

    Reads what the errors of SDKs, httpx, requests, aiohttp and botocore carry (`status_code`, `status`, `code`, `body`,
    `response`); none of them is imported. Of an error that wraps another (`raise … from`), the first that says
    something counts; of a group every one must be worth another try, after the longest of their waits. Connections that
    failed or timed out are worth another try. So are our own `RateLimited`, and a shared store that may answer again; a
    cost that can never be granted is not.
    Anything unknown is False, because it may be a bug.
    """
    links = _chain(error)
    for link in links:
        if isinstance(link, CostError):
            return False
        if isinstance(link, (RateLimited, CircuitOpen)):
            return link.retry_after if math.isfinite(link.retry_after) else True
        if isinstance(link, PenstockError):
            return isinstance(link, AttemptTimeout | Unreachable)
    for link in links:
        if isinstance(link, BaseExceptionGroup):
            return _retry_on_all(link.exceptions)
        failure = failure_of(link)
        if failure is not None:
            # A success is one that could not be read, and would read the same again, unless it holds an error.
            verdict = judge(failure.status, failure.body, failure.headers)
            wait = verdict.wait or _until_reset(failure, verdict)
            return verdict.retryable and (True if wait is None else wait)
    return not any(_is_of(link, _OUR_FAULT) for link in links) and any(_is_connection_trouble(link) for link in links)


def _until_reset(failure: Failure, verdict: Verdict) -> float | None:
    """Seconds until there is something left again, where headers say no more than that."""
    if verdict.action is not Action.WAIT or not failure.headers:
        return None
    return _headers.read(failure.headers, failure.status, wall=clock.wall()).empty_for


def _retry_on_all(errors: Sequence[BaseException]) -> bool | float:
    verdicts = [retry_on(each) for each in errors[:100]]
    if any(verdict is False for verdict in verdicts):
        return False
    return max((verdict for verdict in verdicts if verdict is not True), default=True)


class Failure(NamedTuple):
    """What an error of some library knows of the answer that it stands for."""

    status: int
    body: Any
    headers: Mapping[str, str] | None
    text: Any
    """The whole body, where `body` is only the error in it; None: it was not read."""


def failure_of(error: BaseException) -> Failure | None:
    """Status, body and headers, wherever an error of some library keeps them; None: it is no answer's."""
    response = attribute_of(error, "response")
    if isinstance(response, Mapping):  # botocore's
        return _botocores(response)
    for holder, name in ((error, "status_code"), (error, "status"), (response, "status_code"), (error, "code")):
        status = attribute_of(holder, name)
        if isinstance(status, int) and not isinstance(status, bool) and 100 <= status < 600:
            break
    else:
        body = attribute_of(error, "body")
        return Failure(200, body, None, None) if isinstance(body, Mapping) else None  # an error event in a stream
    headers = attribute_of(response, "headers") or attribute_of(error, "headers")
    text, body = attribute_of(response, "text"), attribute_of(error, "body")
    if body is None:
        others = (attribute_of(error, name) for name in ("details", "error"))  # Google's, Ollama's
        body = text if text is not None else next((each for each in others if isinstance(each, (str, Mapping))), None)
    return Failure(int(status), body, headers if callable(attribute_of(headers, "items")) else None, text)


def _botocores(response: Mapping[str, Any]) -> Failure | None:
    metadata, error = response.get("ResponseMetadata"), response.get("Error")
    metadata = metadata if isinstance(metadata, Mapping) else {}
    code = str(error.get("Code", "")) if isinstance(error, Mapping) else ""
    status = 429 if _THROTTLED.search(code) else metadata.get("HTTPStatusCode")
    headers = metadata.get("HTTPHeaders")
    if not isinstance(status, int) and _TROUBLED.search(code):  # an event in a stream, which has no status
        status = 500
    if not isinstance(status, int):
        return None
    return Failure(status, {"error": error}, headers if isinstance(headers, Mapping) else None, None)


def info_in(*bodies: Any) -> RateLimitInfo:
    """Which limit an error is about, by what our own transport noted in a body, or by the service's message."""
    for body in bodies:
        noted = _noted(body)
        if isinstance(noted, dict):
            values: Any = (noted.get(each.name) for each in fields(RateLimitInfo))
            return RateLimitInfo(*values)
    errors = [_error(body) for body in bodies]
    first = next((error for error in errors if error.message), _Error())
    return first.details.completed_by(info_of(first.message))


_NOTED = re.compile(r'"rate_limit":\s?(?=\{)')


def _noted(body: Any) -> Any:
    """What our own transport noted in a body, or in a text that quotes one, as litellm's errors do."""
    content = _json(body)
    if isinstance(content, dict):
        return content.get("rate_limit")
    found = _NOTED.search(body) if isinstance(body, str) else None
    if found is None:
        return None
    try:
        return json.JSONDecoder().raw_decode(body, found.end())[0]
    except (ValueError, RecursionError):  # cut off, or nested without end
        return None


def _status_inside(status: int, error: _Error) -> int:
    """The status that an error stands for which came in an answer with 200, or in the middle of a stream."""
    if error.status is not None:
        return error.status
    known = _STATUSES.get(error.code) or _STATUSES.get(error.kind)
    if known is None and error.is_one:
        return 500
    return status if known is None else known


def _action(status: int, error: _Error) -> Action:
    words = f"{error.code} {error.message}"
    if error.code in STOPS or error.kind in STOPS:
        return Action.STOP
    if _ROWS_OWN.search(words) and status in {400, 402, 403}:  # a smaller request would be served
        return Action.PERMANENT
    if status == 402 or (status in {400, 403, 429} and _STOPS_IN_WORDS.search(words)):
        return Action.STOP
    if status == 429:
        hopeless = error.for_the_day or _FOR_A_DAY.search(error.message) or never_fits(error.message)
        return Action.PERMANENT if hopeless else Action.WAIT
    if status == 401:  # the key is wrong, and it is wrong for every request
        return Action.STOP
    if status in {408, 409, 425, 498} or status >= 500:
        return Action.PERMANENT if status in {501, 505} else Action.BACK_OFF
    return Action.PERMANENT


@dataclass(frozen=True, slots=True)
class _Error:
    """What a body says: empty strings for what is missing."""

    code: str = ""
    kind: str = ""
    message: str = ""
    status: int | None = None
    wait: float | None = None
    for_the_day: bool = False
    is_one: bool = False  # and not a body that may be of anything
    details: RateLimitInfo = _UNKNOWN


def _error(body: Any) -> _Error:
    """The error in a body of any of the shapes in use."""
    content = _json(body)
    if content is None and body is not None:
        text = body.decode("utf-8", "replace") if isinstance(body, bytes | bytearray) else str(body)
        return _Error(message=text.strip()[:1_000])  # a proxy's page of HTML, as a rule
    body = content
    if isinstance(body, list) and body:  # Gemini wraps its error in a list
        body = body[0]
    if isinstance(body, dict) and isinstance(body.get("errors"), list) and body["errors"] and "error" not in body:
        body = {"error": body["errors"][0]}  # Twitter's
    if not isinstance(body, dict):
        return _Error(message=body[:LONGEST] if isinstance(body, str) else "")
    if isinstance(body.get("response"), dict) and body["response"].get("error"):
        body = body["response"]  # of an event that says that a response failed
    error = body.get("error") or body
    if isinstance(error, str):
        wait = _number(body.get("estimated_time"))  # Hugging Face's, until a model is loaded
        word = error if error.isidentifier() else ""  # "ratelimited" is Slack's
        return _Error(_word(body.get("code")), _word(word), error[:LONGEST], wait=wait or _asked_in(body), is_one=True)
    if not isinstance(error, dict):
        return _Error(is_one=True)
    code, kind = error.get("code") or error.get("Code"), error.get("type") or error.get("status") or error.get("__type")
    message = next((error[name] for name in _MESSAGES if isinstance(error.get(name), str) and error[name]), "")
    metadata = error.get("metadata")
    relayed = _relayed(metadata) if isinstance(metadata, dict) else _UNKNOWN
    if isinstance(metadata, dict) and isinstance(metadata.get("raw"), str):
        message = f"{message}: {metadata['raw'][:LONGEST]}"  # OpenRouter's, of the service behind it
    number = int(code) if isinstance(code, str) and code.isascii() and code.isdigit() and len(code) == 3 else code
    details, for_the_day = _details(error.get("details"))
    details = details.completed_by(relayed)
    return _Error(
        code=_word(code),
        kind=_word(kind),
        message=message[:LONGEST],
        status=number if isinstance(number, int) and 400 <= number < 600 else None,
        wait=details.wait or _asked_in(error, error.get("parameters"), error.get("detail"), body),
        for_the_day=for_the_day,
        is_one=error is not body or body.get("type") == "error",
        details=details,
    )


def body_of(raw: bytes) -> Any:
    """A body as SDKs keep it: JSON, or text where it is none."""
    content = _json(raw)
    return raw.decode("utf-8", "replace") if content is None else content


def _json(body: Any) -> Any:
    """A body that came as bytes or as text, read; None: it is no JSON, or nested without end.

    Others are left as they are.
    """
    if isinstance(body, (bytes, bytearray)):
        body = bytes(body).decode("utf-8", "replace")
    if not isinstance(body, str):
        return body
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


_MESSAGES = ("message", "detail", "Message", "description", "title")


_EVER = 1e9
"""Seconds that no service means."""


def _asked_in(*holders: Any) -> float | None:
    """Seconds to wait as a body says it beside its words: Discord's, Telegram's (in `parameters`)."""
    names = ("retry_after", "retryAfter", "retry_after_seconds")
    found = (_number(holder.get(name)) for holder in holders if isinstance(holder, dict) for name in names)
    return next((seconds for seconds in found if seconds and seconds < _EVER), None)


def _relayed(metadata: Mapping[str, Any]) -> RateLimitInfo:
    """The limit in the headers that OpenRouter puts into the body of its errors."""
    headers = metadata.get("headers")
    if not isinstance(headers, Mapping):
        return _UNKNOWN
    named = {name: _word(value) for name, value in headers.items() if isinstance(name, str)}
    reading = _headers.read(named, 429, wall=clock.wall())
    quota = next(iter(reading.quotas), None)
    if quota is None:
        return RateLimitInfo(wait=reading.retry_after)
    used = None if quota.limit is None or quota.remaining is None else quota.limit - quota.remaining
    wait = reading.retry_after or reading.empty_for
    return RateLimitInfo(quota.unit, quota.per, quota.limit, used, wait=wait)


def _word(value: Any) -> str:
    return str(value)[:200] if isinstance(value, str) or (isinstance(value, int) and abs(value) < 10**20) else ""


def _details(details: Any) -> tuple[RateLimitInfo, bool]:
    """Gemini's: the quota, the delay that it asks for, and whether that quota is a day's or zero."""
    info, for_the_day = RateLimitInfo(), False
    for detail in details[:20] if isinstance(details, list) else ():
        if not isinstance(detail, dict):
            continue
        delay = detail.get("retryDelay")
        if isinstance(delay, str):
            info = replace(info, wait=duration(delay[:50]))
        violations = detail.get("violations")
        for violation in violations[:20] if isinstance(violations, list) else ():
            if isinstance(violation, dict):
                quota, value = _word(violation.get("quotaId")), violation.get("quotaValue")
                for_the_day = for_the_day or "PerDay" in quota or value == "0"
                unit, period = quota_named(quota)
                where = violation.get("quotaDimensions")
                model = where.get("model") if isinstance(where, dict) else None
                violated = RateLimitInfo(unit, period, _number(value), model=_word(model) or None)
                info = info.completed_by(violated)
    return info, for_the_day


def _number(value: Any) -> float | None:
    """A number above 0, of JSON or in a text; None for what is none."""
    try:
        number = float(value[:30] if isinstance(value, str) else value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if 0 < number < math.inf and not isinstance(value, bool) else None


def _should_retry(headers: Mapping[str, str] | None) -> bool | None:
    """What `x-should-retry` says. Servers, and our own transport, use it to overrule the status."""
    return {"true": True, "false": False}.get(_header(headers, "x-should-retry").lower())


def _header(headers: Mapping[str, str] | None, wanted: str) -> str:
    """A header, named in any case; "" if there is none."""
    return next((str(value).strip() for name, value in (headers or {}).items() if str(name).lower() == wanted), "")


def _chain(error: BaseException) -> list[BaseException]:
    """An error and its causes: SDKs and frameworks wrap whatever a transport raises."""
    links: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and all(link is not each for each in links) and len(links) < 20:
        links.append(link)
        link = attribute_of(link, "__cause__")
    return links


def _is_connection_trouble(error: BaseException) -> bool:
    if isinstance(error, (ConnectionError, TimeoutError)):
        return True
    reason = attribute_of(error, "reason")  # urllib's
    if isinstance(error, OSError) and isinstance(reason, (ConnectionError, TimeoutError)):
        return True
    return _is_of(error, _CONNECTION_TROUBLE) or any(
        base.__name__ == "APIConnectionError" for base in type(error).__mro__
    )


def _is_of(error: BaseException, kinds: set[tuple[str, str]]) -> bool:
    """Whether it is one of these, by name and library, so that none need be installed."""
    return any((base.__name__, base.__module__.partition(".")[0]) in kinds for base in type(error).__mro__)
