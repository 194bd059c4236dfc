"""Caps per user in front of a web application: 429 with `Retry-After`, and the IETF's RateLimit headers.

`QuotaMiddleware` goes around any ASGI application and depends on nothing. `quota_dependency` is for FastAPI's
`Depends`. The headers are those of draft-ietf-httpapi-ratelimit-headers-10: `RateLimit-Policy` says what is promised,
`RateLimit` what is left, each with an item per cap.
"""

from __future__ import annotations

import inspect
import json
import math
import re
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

from penstock import clock
from penstock._text import repr_of
from penstock.permit import Permit
from penstock.usage.quota import Quota, QuotaExceeded
from penstock.usage.quotas import Quotas, read_user

__all__ = ["QuotaMiddleware", "quota_dependency", "rate_limit_headers"]

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Cost = Callable[[Any], Mapping[str, float] | Awaitable[Mapping[str, float]]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_MOST = 999_999_999_999_999
"""The largest integer of a structured field (RFC 9651)."""

_PROBLEM = "https://iana.org/assignments/http-problem-types#quota-exceeded"


def rate_limit_headers(quotas: list[Quota], now: float, name: str = "quota") -> dict[str, str]:
    """`RateLimit-Policy` and `RateLimit` of a user's caps at the moment `now`; empty without caps. Dollars as cents.

    Policies are called by unit and period, `requests-day`, after the name of the quotas if that is not the usual one.
    """
    policies, limits = [], []
    for policy, quota in _by_policy(quotas, name).items():
        scale, unit = (100, "cents") if quota.unit == "dollars" else (1, _in_quotes(quota.unit))
        counts = "" if unit == "requests" else f';qu="{unit}"'
        policies.append(
            f'"{policy}";q={_whole(quota.limit * scale)}{counts};w={_whole(quota.resets_at - quota.began_at)}'
        )
        limits.append(f'"{policy}";r={_whole(quota.remaining * scale)};t={math.ceil(max(0.0, quota.resets_at - now))}')
    return {"ratelimit-policy": ", ".join(policies), "ratelimit": ", ".join(limits)} if policies else {}


def _by_policy(quotas: list[Quota], name: str) -> dict[str, Quota]:
    """Caps by what the headers call them, each otherwise."""
    found: dict[str, Quota] = {}
    before = "" if name == "quota" else f"{name}-"
    for quota in quotas:
        policy = _in_quotes(f"{before}{quota.unit}-{quota.period}")
        while policy in found:  # the same period in another time zone
            policy += "'"
        found[policy] = quota
    return found


def _in_quotes(text: str) -> str:
    """As a string of a structured field: printable ASCII, and neither a quote nor a backslash."""
    return re.sub(r"[^ !#-\[\]-~]", "?", text)


def _whole(amount: float) -> int:
    """Never more than there is; a sum of many parts that falls short of a whole number by rounding is that number."""
    return min(_MOST, math.floor(amount * (1 + 1e-12) + 1e-9))


def _headers_of_429(quotas: Quotas, error: QuotaExceeded) -> dict[str, str]:
    headers = _headers_now(quotas, error.user)
    if error.retry_after < math.inf:
        headers["retry-after"] = f"{max(1, math.ceil(error.retry_after))}"
    return headers


class QuotaMiddleware:
    """Charges each HTTP request to its user, and answers 429 for the application where the user has come to a cap.

    Answers get the RateLimit headers, streams as well. The permit is `request.state.permit`: the application settles
    the true cost on it. With one middleware inside another, each permit is in `request.state.permits`, by the name of
    its quotas. An invalid name of a user, such as an empty or an endless header, is answered with 400. Requests stay
    charged if the application fails or the client goes away. Websockets, lifespans and requests without a user pass
    through as they are.

    Args:
        app: The application.
        quotas: The caps.
        user: A function of the ASGI scope that returns the request's user, plain or async; None: it is not limited. It
            must not trust what a client can write at will.
        cost: A function of the scope, plain or async, that returns what the request costs at first, as
            `{"tokens": 500}`; one request, and the least of the other units, unless given.

    Raises:
        ValueError: An argument is wrong.
    """

    def __init__(
        self,
        app: App,
        quotas: Quotas,
        *,
        user: Callable[[Scope], Any],
        cost: Cost | None = None,
    ) -> None:
        _check(quotas, user, cost)
        self.app = app
        self.quotas = quotas
        self.user = user
        self.cost = cost

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, as ASGI says."""
        user = await _answer(self.user, scope) if scope["type"] == "http" else None
        if user is None:
            await self.app(scope, receive, send)
            return
        with_body = scope.get("method") != "HEAD"
        try:
            user = read_user(user)
        except ValueError as error:
            await _say_no(send, 400, {"title": "The request names no user", "detail": str(error)}, {}, with_body)
            return
        try:
            permit = await self.quotas.acquire(user, await _cost(self.cost, scope))
        except QuotaExceeded as error:
            await _refuse(send, error, self.quotas, with_body)
            return
        headers = [(name.encode(), value.encode()) for name, value in _headers_now(self.quotas, user).items()]

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), *headers]}
            await send(message)

        scope = dict(scope)
        state = scope.setdefault("state", {})
        state |= {"permit": permit, "permits": {**state.get("permits", {}), self.quotas.name: permit}}
        await self.app(scope, receive, send_with_headers)


async def _refuse(send: Send, error: QuotaExceeded, quotas: Quotas, with_body: bool) -> None:
    cap = error.unit, error.period, error.tz
    known = _by_policy(quotas.last(error.user), quotas.name)
    problem = {
        "type": _PROBLEM,
        "title": "Request cannot be satisfied as assigned quota has been exceeded",
        "detail": str(error),
        "violated-policies": [name for name, one in known.items() if (one.unit, one.period, one.tz) == cap],
    }
    await _say_no(send, 429, problem, _headers_of_429(quotas, error), with_body)


async def _say_no(
    send: Send, status: int, problem: Mapping[str, Any], headers: Mapping[str, str], with_body: bool
) -> None:
    """Answer a problem (RFC 9457)."""
    body = json.dumps({**problem, "status": status}).encode()
    fields = {"content-type": "application/problem+json", "content-length": f"{len(body)}", **headers}
    encoded = [(name.encode(), value.encode()) for name, value in fields.items()]
    await send({"type": "http.response.start", "status": status, "headers": encoded})
    await send({"type": "http.response.body", "body": body if with_body else b""})


def quota_dependency(
    quotas: Quotas,
    *,
    user: Callable[[Any], Any],
    cost: Cost | None = None,
) -> Callable[..., Awaitable[Permit | None]]:
    """A dependency for FastAPI: `permit: Annotated[Permit, Depends(quota_dependency(quotas, user=...))]`.

    It charges the request, adds the RateLimit headers to the answer, and gives the endpoint the permit, to `settle()`.
    Beyond a cap FastAPI answers 429, with `Retry-After`; to an invalid name of a user, 400. Websockets are not charged,
    and get None. FastAPI adds no header to a `Response` that an endpoint makes itself, such as a stream:
    `QuotaMiddleware` does.

    Args:
        quotas: The caps.
        user: A function of the `Request` that returns its user, plain or async. None: it is not limited, and the permit
            is None.
        cost: A function of the `Request`, plain or async, that returns what it costs at first, as `{"tokens": 500}`.

    Raises:
        ValueError: An argument is wrong. ImportError: FastAPI is not installed.
    """
    from fastapi import HTTPException, Response
    from fastapi.requests import HTTPConnection

    _check(quotas, user, cost)

    async def charge_user(request: Any, response: Any) -> Permit | None:
        name = await _answer(user, request) if request.scope["type"] == "http" else None
        if name is None:
            return None
        try:
            name = read_user(name)
        except ValueError as error:
            raise HTTPException(400, str(error)) from error
        try:
            permit = await quotas.acquire(name, await _cost(cost, request))
        except QuotaExceeded as error:
            raise HTTPException(429, str(error), _headers_of_429(quotas, error)) from error
        for header, value in _headers_now(quotas, name).items():
            response.headers.append(header, value)  # of another cap there may be some already
        return permit

    charge_user.__annotations__ = {"request": HTTPConnection, "response": Response}  # a Request, or a WebSocket
    return charge_user


def _check(quotas: object, user: object, cost: object) -> None:
    if not isinstance(quotas, Quotas):
        raise ValueError(f"quotas must be a Quotas, not {repr_of(quotas)}")
    if not callable(user) or not (cost is None or callable(cost)):
        raise ValueError("user= and cost= must be functions of the request")


async def _answer(function: Callable[[Any], Any], request: Any) -> Any:
    answer = function(request)
    return await answer if inspect.isawaitable(answer) else answer


async def _cost(cost: Cost | None, request: Any) -> Mapping[str, float]:
    return {} if cost is None else await _answer(cost, request)


def _headers_now(quotas: Quotas, user: object) -> dict[str, str]:
    return rate_limit_headers(quotas.last(user), clock.wall(), quotas.name)
