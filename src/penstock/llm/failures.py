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
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from penstock import clock
from penstock.errors import AttemptTimeout, CircuitOpen, CostError, PenstockError, RateLimited
from penstock.llm import headers as _headers

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Action", "Verdict", "judge", "message_wait", "retry_on"]


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
    }
)
"""Codes after which no request of the account does, whatever the status."""

OURS = "penstock"
"""The type of the errors that our own transport answers with, in the service's stead."""

_TOO_LARGE = re.compile(r"request too large", re.IGNORECASE)
_LIMIT_AND_REQUESTED = re.compile(r"\bLimit:? (\d[\d,]*)\b.*?\bRequested:? (\d[\d,]*)", re.IGNORECASE | re.DOTALL)
_AGAIN_IN = re.compile(r"(?:try|retry)(?: again)? (?:in|after) ((?:[\d.]+\s*[a-zµμ]+\s*)+)", re.IGNORECASE)
_WORDED = re.compile(r"([\d.]+)\s*([a-zµμ]+)", re.IGNORECASE)
_UNITS = {
    **dict.fromkeys(("ms", "millisecond", "milliseconds"), 0.001),
    **dict.fromkeys(("s", "sec", "secs", "second", "seconds"), 1.0),
    **dict.fromkeys(("m", "min", "mins", "minute", "minutes"), 60.0),
    **dict.fromkeys(("h", "hr", "hrs", "hour", "hours"), 3_600.0),
    **dict.fromkeys(("d", "day", "days"), 86_400.0),
}


def judge(status: int, body: Any = None, headers: Mapping[str, str] | None = None) -> Verdict:
    """Say what a failed response means.

    Args:
        status: 400 or above.
        body: As it came (bytes or text), as JSON, or the error object inside it, which is what SDKs keep.
        headers: Names in any case. Read for `retry-after-ms`, `retry-after`, `date` and `x-should-retry`.
    """
    code, kind, message = _error(body)
    asked = None if headers is None else _headers.retry_after(headers, wall=clock.wall())
    worded = message_wait(message)
    # Header and message round differently ("1" and "6ms"): believing the longer one is never too early. A hint of 0, or a
    # date that has passed, is none: who resends at once is refused again.
    wait = max(asked or 0.0, worded or 0.0) or None
    action = _action(status, code, kind, message)
    should_retry = _should_retry(headers)
    # Our own refusals forbid retries to SDKs, which would make the wait that was just refused. Others may know better.
    if should_retry is False and kind != OURS and action in {Action.WAIT, Action.BACK_OFF}:
        action = Action.PERMANENT
    elif should_retry is True and action is Action.PERMANENT:
        action = Action.BACK_OFF
    if action in {Action.PERMANENT, Action.STOP}:
        wait = None
    return Verdict(action=action, wait=wait, code=code or kind, message=message)


def message_wait(message: str) -> float | None:
    """Seconds in "Please try again in 6ms", "… in 2m5.5s", "Please retry after 33 seconds". None: nothing of the kind."""
    found = _AGAIN_IN.search(message)
    if found is None:
        return None
    seconds, known = 0.0, False
    for number, unit in _WORDED.findall(found[1]):
        step = _UNITS.get(unit.lower())
        if step is None:  # the sentence goes on: "in 5 s or less"
            break
        try:
            seconds += float(number.rstrip(".")) * step
        except ValueError:
            return None
        known = True
    return seconds if known and math.isfinite(seconds) else None


def retry_on(error: BaseException) -> bool | float:
    """Whether to try again after an SDK's error, for `Retry(on=retry_on)`: True, False, or the seconds to wait first.

    Reads what openai's errors, and those of SDKs made alike, carry (`status_code`, `body`, `response`); none of them is
    imported. Connections that failed or timed out are worth another try. So is our own `RateLimited`; a cost that can
    never be granted is not. Anything unknown is False: a bug is no reason to send again.
    """
    status = getattr(error, "status_code", None)
    if isinstance(status, int):
        if status < 400:
            return False  # an answer that could not be read: sending again costs the same and reads the same
        response = getattr(error, "response", None)
        verdict = judge(status, getattr(error, "body", None), getattr(response, "headers", None))
        if not verdict.retryable:
            return False
        return True if verdict.wait is None else verdict.wait
    ours = _first_of_ours(error)
    if isinstance(ours, CostError):
        return False
    if isinstance(ours, (RateLimited, CircuitOpen)):
        return ours.retry_after if math.isfinite(ours.retry_after) else True
    return isinstance(ours, AttemptTimeout) or (ours is None and _is_connection_trouble(error))


def _action(status: int, code: str, kind: str, message: str) -> Action:
    if code in STOPS or kind in STOPS:
        return Action.STOP
    if status == 429:
        return Action.PERMANENT if _never_fits(message) else Action.WAIT
    if status == 401:  # the key is wrong, and it is wrong for every request
        return Action.STOP
    if status in {408, 409, 425} or status >= 500:
        return Action.PERMANENT if status in {501, 505} else Action.BACK_OFF
    return Action.PERMANENT


def _never_fits(message: str) -> bool:
    """Whether the request alone is above the limit: "Request too large …: Limit 10000, Requested 11454"."""
    if _TOO_LARGE.search(message):
        return True
    numbers = _LIMIT_AND_REQUESTED.search(message)
    return numbers is not None and _plain(numbers[2]) > _plain(numbers[1])


def _plain(number: str) -> float:
    """The value of `10,000`. As a float: there is no end to the digits that a server may send."""
    return float(number.replace(",", ""))


def _error(body: Any) -> tuple[str, str, str]:
    """Code, type and message, from any of the shapes in use; empty strings for what is missing."""
    if isinstance(body, (bytes, bytearray)):
        body = bytes(body).decode("utf-8", "replace")
    if isinstance(body, str):
        text = body
        try:
            body = json.loads(text)
        except (ValueError, RecursionError):  # no JSON, or nested without end
            return "", "", text.strip()[:1_000]  # a proxy's page of HTML, as a rule
    if isinstance(body, list) and body:  # Gemini wraps its error in a list
        body = body[0]
    if not isinstance(body, dict):
        return "", "", body if isinstance(body, str) else ""
    error = body.get("error", body)
    if isinstance(error, str):
        return "", "", error
    if not isinstance(error, dict):
        return "", "", ""
    code, kind = error.get("code"), error.get("type") or error.get("status")
    message = error.get("message") or error.get("detail")
    return (
        "" if code is None else str(code),
        "" if kind is None else str(kind),
        message if isinstance(message, str) else "",
    )


def _should_retry(headers: Mapping[str, str] | None) -> bool | None:
    """What `x-should-retry` says. Servers, and our own transport, use it to overrule the status."""
    for name, value in (headers or {}).items():
        if name.lower() == "x-should-retry":
            return {"true": True, "false": False}.get(value.strip().lower())
    return None


def _first_of_ours(error: BaseException) -> PenstockError | None:
    """The first error of penstock's in the chain of causes: old SDKs wrap whatever a transport raises."""
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        if isinstance(link, PenstockError):
            return link
        seen.add(id(link))
        link = link.__cause__
    return None


def _is_connection_trouble(error: BaseException) -> bool:
    if isinstance(error, (ConnectionError, TimeoutError)):
        return True
    # By name, so that no SDK need be installed: openai and anthropic share the first, httpx and httpx2 the second.
    return any(
        base.__name__ == "APIConnectionError"
        or (base.__name__ == "TransportError" and base.__module__.partition(".")[0] in {"httpx", "httpx2"})
        for base in type(error).__mro__
    )
