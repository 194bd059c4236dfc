"""Answers that a limited client gives in place of the service, and which limit an error is about.

    refusal            the answer to a request that must not be sent, in the form of its service's errors
    rate_limit_info    which limit an error is about: limit, used, requested, unit, period, model, organisation, wait

An answer, and not an exception: SDKs wrap what a transport raises as trouble with the connection, and hide its words.
"Not now" is a 429 that says when, "never" a 400, which no SDK retries. A shared store that cannot decide is a 503, as
nothing is wrong with the request: SDKs send it again where the store may answer by then. So what users catch already
catches ours.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from penstock import clock
from penstock._retry_after import attribute_of
from penstock._stated_times import asked_by
from penstock.errors import PenstockError, RateLimited, StoreError, Unreachable, Unsatisfiable
from penstock.limits import Rate
from penstock.llm.failures import OURS, Failure, RateLimitInfo, failure_of, info_in

if TYPE_CHECKING:
    from penstock import Limiter

__all__ = ["Refusal", "describe", "rate_limit_info", "refusal"]

_GOOGLE = re.compile(r":(?:generate|streamGenerate|embed|batchEmbed|count|predict)[A-Za-z]*$")
_OLLAMA = re.compile(r"/api/(?:chat|generate|embed|embeddings|pull|push|create|show|tags|ps|copy|delete)$")

_CODES = ((Unsatisfiable, "request_too_large"), (StoreError, "store_error"))
"""Codes of errors that are not called as their classes."""

_WORDS = {
    400: ("invalid_request_error", "INVALID_ARGUMENT"),
    429: ("rate_limit_error", "RESOURCE_EXHAUSTED"),
    503: ("api_error", "UNAVAILABLE"),
}
"""What Anthropic and Google call an error with that status."""


class Refusal(NamedTuple):
    """The answer that we give in the service's stead, or that it gave."""

    status: int
    headers: Mapping[str, str]
    body: Any

    @property
    def content(self) -> bytes:
        """The body as it would come over the wire."""
        return json.dumps(self.body).encode()


def refusal(error: PenstockError, request: Any = None) -> Refusal:
    """The answer to a request that must not be sent, in the form that the service of that request gives its errors.

    `request` is one of httpx or httpx2; None: OpenAI's form, which most others share.
    """
    status, message = 503 if isinstance(error, StoreError) else 400, f"Not sent: {error}"
    again = "true" if isinstance(error, Unreachable) else "false"
    headers = {"content-type": "application/json", "x-should-retry": again, "x-refused-by": OURS}
    if isinstance(error, RateLimited):
        status = 429
        if error.retry_after < math.inf:
            headers["retry-after"] = f"{error.retry_after:.3f}"
            message += f". Try again in {error.retry_after:.3f} s."  # for SDKs whose errors keep nothing but words
    code = next((code for kind, code in _CODES if isinstance(error, kind)), _snake(type(error).__name__))
    info = {name: value for name, value in asdict(_info_of(error)).items() if value is not None}
    return Refusal(status, headers, _in_the_form_of(_dialect_of(request), status, code, message) | {"rate_limit": info})


def describe(error: PenstockError, limiter: Limiter, charges: Mapping[str, float], model: str | None) -> None:
    """Note on an error of a limiter which limit it was, for `rate_limit_info`."""
    unit: str | None = getattr(error, "unit", None) or getattr(error, "blocked_by", "").partition(" ")[0] or None
    limit = period = None
    for each in limiter.limits.get(unit or "", ()):
        if isinstance(each, Rate) and (limit is None or each.amount / each.per < limit / (period or 1.0)):
            limit, period = float(each.amount), float(each.per)
    vars(error)["info"] = RateLimitInfo(
        unit=unit,
        limit=limit,
        period=period,
        requested=charges.get(unit or ""),
        model=model,
        wait=_finite(getattr(error, "retry_after", None)),
    )


def rate_limit_info(error: BaseException) -> RateLimitInfo | None:
    """Which limit an error is about, of any SDK or of ours; None: it is about none, or does not say.

    Reads the error, and those that it wraps (`raise … from`): what our own transport noted, or else the service's
    message, that of OpenAI's early guide included ("Limit: 20.000000 / min. Current: 24.000000 / min.").
    """
    link: BaseException | None = error
    for _ in range(20):
        if link is None:
            return None
        if isinstance(link, BaseExceptionGroup):  # of a task group: the first that says something
            inside = map(rate_limit_info, link.exceptions[:100])
            return next((info for info in inside if info is not None), None)
        if isinstance(link, (RateLimited, Unsatisfiable)):
            return _info_of(link)
        failure = failure_of(link)
        if failure is not None:
            info = info_in(failure.body, failure.text, _text_of(link))
            return info if info.wait is not None else replace(info, wait=_asked(failure))
        link = attribute_of(link, "__cause__")
    return None


def _asked(failure: Failure) -> float | None:
    """Seconds that the headers of an answer ask to wait; None: they do not."""
    if failure.headers is None or failure.status < 400:
        return None
    return asked_by(failure.headers, wall=clock.wall()) or None


def _text_of(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # noqa: BLE001 - an error of any library's
        return ""


def _info_of(error: PenstockError) -> RateLimitInfo:
    noted = vars(error).get("info")
    if isinstance(noted, RateLimitInfo):
        return noted
    if isinstance(error, Unsatisfiable):
        return RateLimitInfo(unit=error.unit, limit=error.capacity, requested=error.cost)
    if isinstance(error, RateLimited):
        return RateLimitInfo(unit=error.blocked_by.partition(" ")[0], wait=_finite(error.retry_after))
    return RateLimitInfo()


def _finite(seconds: float | None) -> float | None:
    return seconds if seconds is not None and math.isfinite(seconds) else None


def _dialect_of(request: Any) -> str:
    """The service whose form of error the request's SDK reads."""
    try:
        headers, path = request.headers, request.url.path
    except AttributeError:
        return "openai"
    if "anthropic-version" in headers:
        return "anthropic"
    if "x-goog-api-key" in headers or "x-goog-api-client" in headers or _GOOGLE.search(path):
        return "google"
    return "ollama" if _OLLAMA.search(path) else "openai"


def _in_the_form_of(dialect: str, status: int, code: str, message: str) -> dict[str, Any]:
    anthropics, googles = _WORDS[status]
    if dialect == "anthropic":
        return {"type": "error", "error": {"type": anthropics, "message": message, "code": code}}
    if dialect == "google":
        return {"error": {"code": status, "message": message, "status": googles}}
    if dialect == "ollama":
        return {"error": message}
    # OpenAI's, which most others share; Cohere and Mistral have their message at the top.
    return {"error": {"message": message, "type": OURS, "param": None, "code": code}, "message": message}


def _snake(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()
