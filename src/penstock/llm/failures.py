"""What a failed request means: wait, back off, give this request up, or give the run up.

A status, a body and headers in, a `Verdict` out; the clock is asked only where a `Retry-After` names a date and the response
has none of its own. Who waits, and how, is decided by `transport` and by `Retry`.

The same status means opposite things: a 429 may say "in 6 ms", "this request is larger than your whole limit" or "there
is no money left". So the body's words decide, its code first, and the status only where the body says nothing.
"""

from __future__ import annotations

import enum
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from decimal import Decimal, InvalidOperation
from typing import Any, NamedTuple

from penstock import clock
from penstock._retry_after import attribute_of
from penstock.errors import AttemptTimeout, CircuitOpen, CostError, PenstockError, RateLimited
from penstock.llm import headers as _headers

__all__ = [
    "Action",
    "Failure",
    "RateLimitInfo",
    "Verdict",
    "failure_of",
    "info_in",
    "judge",
    "message_wait",
    "retry_on",
]


class Action(enum.Enum):
    """What to do about a failure."""

    WAIT = "wait"
    """The limit is used up. Everybody under it stays away for a while; then the same request may go."""
    BACK_OFF = "back off"
    """The service has trouble. This request may go again, later each time."""
    PERMANENT = "permanent"
    """This request will never do, as it is. Others may."""
    STOP = "stop"
    """No request of this account will do until somebody acts: end the run."""


@dataclass(frozen=True, slots=True)
class RateLimitInfo:
    """Which limit it was, as far as the service's words tell. None: they do not.

    Attributes:
        unit: `requests`, `tokens`, `images`…
        period: Of the limit, in seconds.
        limit: Units per period.
        current: Units that were used.
        requested: Units that the request would have taken.
        model: As the service names it.
        organisation: The same.
        wait: Seconds to wait.
    """

    unit: str | None = None
    period: float | None = None
    limit: float | None = None
    current: float | None = None
    requested: float | None = None
    model: str | None = None
    organisation: str | None = None
    wait: float | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a failure means.

    Attributes:
        action: What to do.
        wait: Seconds to wait before the next try, as the server put it, above 0. None: it did not say.
        code: The service's own code or type, `""` if it gave none.
        message: The service's own words, `""` if it gave none.
    """

    action: Action
    wait: float | None
    code: str
    message: str

    @property
    def info(self) -> RateLimitInfo:
        """Which limit it was, read from the message."""
        return _info(self.message)

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
    }
)
"""Codes after which no request of the account does, whatever the status."""

_CONNECTION_TROUBLE = {
    ("ClientConnectionError", "aiohttp"),
    ("ClientPayloadError", "aiohttp"),
    ("ConnectionError", "requests"),
    ("Timeout", "requests"),
    ("HTTPClientError", "botocore"),
}

OURS = "penstock"
"""The type of the errors that our own transport answers with, in the service's stead."""

_PERIODS = {
    **dict.fromkeys(("second", "sec", "s"), 1.0),
    **dict.fromkeys(("minute", "min"), 60.0),
    "hour": 3_600.0,
    "day": 86_400.0,
    "month": 2_592_000.0,
}

_STOPS_IN_WORDS = re.compile(
    r"credit balance|insufficient (?:balance|credits?|funds)|spend(?:ing)?[ _](?:limit|cap)|out of credits?"
    r"|exceeded[ _]current[ _]quota|billing (?:hard )?limit",
    re.IGNORECASE,
)
_ROWS_OWN = re.compile(r"fewer max_tokens|can only afford", re.IGNORECASE)
_THROTTLED = re.compile(r"throttl|toomanyrequests|requestlimitexceeded|slowdown", re.IGNORECASE)

_TOO_LARGE = re.compile(r"request too large", re.IGNORECASE)
_NEVER = re.compile(r"\blimit: 0(?![\d.])", re.IGNORECASE)
_LIMIT = re.compile(r"\bLimit:? (\d[\d,]*(?:\.\d+)?)", re.IGNORECASE)
_USED = re.compile(r"\b(?:Used|Current):? (\d[\d,]*(?:\.\d+)?)", re.IGNORECASE)
_REQUESTED = re.compile(r"\bRequested:? ~?(\d[\d,]*(?:\.\d+)?)", re.IGNORECASE)
_UNIT_AND_PERIOD = re.compile(
    r"\b([a-z]{1,30}) per (?:(\d{1,6})[ -]?)?(second|sec|s|minute|min|hour|day|month)s?\b", re.IGNORECASE
)
_FOR_MODEL = re.compile(r"\bfor (?:model )?`?([\w.:/-]{1,100})`? (?:in|on)\b")
_ORGANISATION = re.compile(r"\bin organization `?([\w-]{1,100})")
_AGAIN_IN = re.compile(
    r"(?:(?:try|retry)(?: again)?[ _](?:in|after)|\bwait)(?:\s*[:=]\s*|\s+)(?:about\s+)?(?=\d|\.\d)", re.IGNORECASE
)
_WORDED = re.compile(r"\s*(?:and\s+|,\s*)?(\d[\d,]*(?:\.\d+)*|\.\d+)\s*([a-zµμ]*)", re.IGNORECASE)
_BARE_ENDS = re.compile(r"\s*(?:[.,;!)]|$)")
_LONGEST = 2_000
"""Characters of a message that are read."""

_UNITS = {
    **dict.fromkeys(("ms", "millisecond", "milliseconds"), Decimal("0.001")),
    **dict.fromkeys(("s", "sec", "secs", "second", "seconds"), Decimal(1)),
    **dict.fromkeys(("m", "min", "mins", "minute", "minutes"), Decimal(60)),
    **dict.fromkeys(("h", "hr", "hrs", "hour", "hours"), Decimal(3_600)),
    **dict.fromkeys(("d", "day", "days"), Decimal(86_400)),
}


def judge(status: int, body: Any = None, headers: Mapping[str, str] | None = None) -> Verdict:
    """Say what a failed response means.

    Args:
        status: 400 or above; or that of an answer that holds an error.
        body: As it came (bytes or text), as JSON, or the error object inside it, which is what SDKs keep.
        headers: Names in any case. Read for `retry-after-ms`, `retry-after`, `date` and `x-should-retry`.
    """
    error = _error(body)
    asked = None if headers is None else _headers.retry_after(headers, wall=clock.wall())
    worded = message_wait(error.message)
    # Header and message round differently ("1" and "6ms"): believing the longer one is never too early. A hint of 0, or a
    # date that has passed, is none: who resends at once is refused again.
    wait = max(asked or 0.0, worded or 0.0, error.wait or 0.0) or None
    if status < 400 and error.status is not None:
        status = error.status  # an answer with 200 may hold an error
    action = _action(status, error)
    should_retry = _should_retry(headers)
    # Our own refusals forbid retries to SDKs, which would make the wait that was just refused. Others may know better.
    ours = error.kind == OURS or _header(headers, "x-refused-by") == OURS
    if should_retry is False and not ours and action in {Action.WAIT, Action.BACK_OFF}:
        action = Action.PERMANENT
    elif should_retry is True and action is Action.PERMANENT:
        action = Action.BACK_OFF
    if action in {Action.PERMANENT, Action.STOP}:
        wait = None
    return Verdict(action=action, wait=wait, code=error.code or error.kind, message=error.message)


def message_wait(message: str) -> float | None:
    """Seconds in "Please try again in 6ms", "… in 2m5.5s", "Please wait 23 seconds", "Retry after: 30". None: nothing of the kind."""
    message = message[:_LONGEST]
    found = _AGAIN_IN.search(message)
    if found is None:
        return None
    at, seconds, known = found.end(), Decimal(0), False  # in binary, 950 ms would be a little more than 0.95 s
    while (part := _WORDED.match(message, at)) is not None:
        number, unit = part[1].replace(",", ""), part[2].lower()
        # Without a unit it is seconds, if nothing else follows: not "30 apples".
        bare = not unit and not known and _BARE_ENDS.match(message, part.end())
        step = Decimal(1) if bare else _UNITS.get(unit)
        if step is None:  # the sentence goes on: "in 5 s or less"
            break
        try:
            seconds += Decimal(number) * step
        except InvalidOperation:
            return None
        known, at = True, part.end()
    return float(seconds) if known and math.isfinite(seconds) else None


def retry_on(error: BaseException) -> bool | float:
    """Whether to try again after an error, for `Retry(on=retry_on)`: True, False, or the seconds to wait first.

    Reads what the errors of SDKs, httpx, requests, aiohttp and botocore carry (`status_code`, `status`, `code`, `body`,
    `response`); none of them is imported. Of an error that wraps another (`raise … from`), the first that says something
    counts. Connections that failed or timed out are worth another try. So is our own `RateLimited`; a cost that can never be
    granted is not. Anything unknown is False: a bug is no reason to send again.
    """
    for link in _chain(error):
        if isinstance(link, CostError):
            return False
        if isinstance(link, (RateLimited, CircuitOpen)):
            return link.retry_after if math.isfinite(link.retry_after) else True
        if isinstance(link, PenstockError):
            return isinstance(link, AttemptTimeout)
    for link in _chain(error):
        failure = failure_of(link)
        if failure is not None:
            if failure.status < 400:
                return False  # an answer that could not be read: sending again costs the same and reads the same
            verdict = judge(failure.status, failure.body, failure.headers)
            return verdict.retryable and (True if verdict.wait is None else verdict.wait)
    return any(_is_connection_trouble(link) for link in _chain(error))


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
        return None
    headers = attribute_of(response, "headers") or attribute_of(error, "headers")
    text, body = attribute_of(response, "text"), attribute_of(error, "body")
    if body is None:
        others = (attribute_of(error, name) for name in ("details", "error"))  # Google's, Ollama's
        body = text if text is not None else next((each for each in others if isinstance(each, (str, Mapping))), None)
    return Failure(int(status), body, headers if callable(attribute_of(headers, "items")) else None, text)


def _botocores(response: Mapping[str, Any]) -> Failure | None:
    metadata, told = response.get("ResponseMetadata"), response.get("Error")
    metadata = metadata if isinstance(metadata, Mapping) else {}
    code = str(told.get("Code", "")) if isinstance(told, Mapping) else ""
    status = 429 if _THROTTLED.search(code) else metadata.get("HTTPStatusCode")
    headers = metadata.get("HTTPHeaders")
    if not isinstance(status, int):
        return None
    return Failure(status, {"error": told}, headers if isinstance(headers, Mapping) else None, None)


def info_in(*bodies: Any) -> RateLimitInfo:
    """Which limit an error is about, by what our own transport noted in a body, or by the service's message."""
    for body in bodies:
        noted = _noted(body)
        if isinstance(noted, dict):
            values: Any = (noted.get(each.name) for each in fields(RateLimitInfo))
            return RateLimitInfo(*values)
    return _info(next((message for body in bodies if (message := _error(body).message)), ""))


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


def _action(status: int, error: _Error) -> Action:
    words = f"{error.code} {error.message}"
    if error.code in STOPS or error.kind in STOPS:
        return Action.STOP
    if _ROWS_OWN.search(words) and status in {400, 402, 403}:  # a smaller request would be served
        return Action.PERMANENT
    if status == 402 or (status in {400, 403, 429} and _STOPS_IN_WORDS.search(words)):
        return Action.STOP
    if status == 429:
        return Action.PERMANENT if error.for_the_day or _never_fits(error.message) else Action.WAIT
    if status == 401:  # the key is wrong, and it is wrong for every request
        return Action.STOP
    if status in {408, 409, 425, 498} or status >= 500:
        return Action.PERMANENT if status in {501, 505} else Action.BACK_OFF
    return Action.PERMANENT


def _never_fits(message: str) -> bool:
    """Whether no wait would do: "Request too large …: Limit 10000, Requested 11454", "limit: 0"."""
    if _TOO_LARGE.search(message) or _NEVER.search(message):
        return True
    limit, requested = _number_after(_LIMIT, message), _number_after(_REQUESTED, message)
    return limit is not None and requested is not None and requested > limit


def _number_after(words: re.Pattern[str], message: str) -> float | None:
    """The number that a message has after a word. As a float: there is no end to the digits that a server may send."""
    found = words.search(message)
    return None if found is None else float(found[1].replace(",", ""))


def _info(message: str) -> RateLimitInfo:
    unit, model, organisation = (each.search(message) for each in (_UNIT_AND_PERIOD, _FOR_MODEL, _ORGANISATION))
    return RateLimitInfo(
        unit=unit[1].lower() if unit else None,
        period=_PERIODS[unit[3].lower()] * int(unit[2] or 1) if unit else None,
        limit=_number_after(_LIMIT, message),
        current=_number_after(_USED, message),
        requested=_number_after(_REQUESTED, message),
        model=model[1] if model else None,
        organisation=organisation[1] if organisation else None,
        wait=message_wait(message),
    )


@dataclass(frozen=True, slots=True)
class _Error:
    """What a body says: empty strings for what is missing."""

    code: str = ""
    kind: str = ""
    message: str = ""
    status: int | None = None
    wait: float | None = None
    for_the_day: bool = False


def _error(body: Any) -> _Error:
    """The error in a body of any of the shapes in use."""
    content = _json(body)
    if content is None and body is not None:
        text = body.decode("utf-8", "replace") if isinstance(body, bytes | bytearray) else str(body)
        return _Error(message=text.strip()[:1_000])  # a proxy's page of HTML, as a rule
    body = content
    if isinstance(body, list) and body:  # Gemini wraps its error in a list
        body = body[0]
    if not isinstance(body, dict):
        return _Error(message=body[:_LONGEST] if isinstance(body, str) else "")
    error = body.get("error", body)
    if isinstance(error, str):
        return _Error(code=_word(body.get("code")), message=error[:_LONGEST])
    if not isinstance(error, dict):
        return _Error()
    code, kind = error.get("code") or error.get("Code"), error.get("type") or error.get("status")
    message = error.get("message") or error.get("detail") or error.get("Message")
    wait, for_the_day = _details(error.get("details"))
    return _Error(
        code=_word(code),
        kind=_word(kind),
        message=message[:_LONGEST] if isinstance(message, str) else "",
        status=code if isinstance(code, int) and 400 <= code < 600 else None,
        wait=wait,
        for_the_day=for_the_day,
    )


def _json(body: Any) -> Any:
    """A body that came as bytes or as text, read; None: it is no JSON, or nested without end. Others are left as they are."""
    if isinstance(body, (bytes, bytearray)):
        body = bytes(body).decode("utf-8", "replace")
    if not isinstance(body, str):
        return body
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def _word(value: Any) -> str:
    return str(value)[:200] if isinstance(value, (str, int)) else ""


def _details(details: Any) -> tuple[float | None, bool]:
    """Gemini's: the delay that it asks for, and whether it is the quota of a day that is used up, or there is none."""
    wait, for_the_day = None, False
    for detail in details[:20] if isinstance(details, list) else ():
        if not isinstance(detail, dict):
            continue
        delay = detail.get("retryDelay")
        if isinstance(delay, str):
            wait = _headers.duration(delay[:50])
        violations = detail.get("violations")
        for violation in violations[:20] if isinstance(violations, list) else ():
            if isinstance(violation, dict):
                quota = _word(violation.get("quotaId"))
                for_the_day = for_the_day or "PerDay" in quota or violation.get("quotaValue") == "0"
    return wait, for_the_day


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
        link = link.__cause__
    return links


def _is_connection_trouble(error: BaseException) -> bool:
    if isinstance(error, (ConnectionError, TimeoutError)):
        return True
    # By name, so that no SDK need be installed: openai and anthropic share the first, httpx and httpx2 the second.
    return any(
        base.__name__ == "APIConnectionError"
        or (base.__name__ == "TransportError" and base.__module__.partition(".")[0] in {"httpx", "httpx2"})
        or (base.__name__, base.__module__.partition(".")[0]) in _CONNECTION_TROUBLE
        for base in type(error).__mro__
    )
