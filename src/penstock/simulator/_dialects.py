"""How services other than OpenAI write headers of limits, refusals, errors, requests and answers.

Pure. Inside the simulator everything is OpenAI's. Here it is translated: requests on the way in, answers on the way
out.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from fractions import Fraction
from typing import Any, Literal, NamedTuple, get_args

from penstock.simulator import _replies
from penstock.simulator._headers import rate_limit_headers, retry_headers

Dialect = Literal["openai", "azure", "anthropic", "groq", "mistral", "together", "gemini", "cohere", "vllm"]
DIALECTS: tuple[Dialect, ...] = get_args(Dialect)

MESSAGES = "/v1/messages"
GENERATE = "/v1beta/models/{model:path}:generateContent"
STREAM = "/v1beta/models/{model:path}:streamGenerateContent"
COHERE_CHAT = "/v2/chat"


class Shown(NamedTuple):
    """A limit as headers show it.

    Attributes:
        unit: `requests`, `tokens`, `output_tokens` or `images`.
        limit: Units per period.
        remaining: Whole units left.
        reset_ns: Nanoseconds until all is there again.
        per: The period in seconds.
        charged: Units of this request.
    """

    unit: str
    limit: float
    remaining: int
    reset_ns: int
    per: float
    charged: int


def headers_in(dialect: Dialect, shown: Sequence[Shown], wall: float) -> dict[str, str]:
    """The headers of limits.

    Args:
        dialect: The service's.
        shown: The limits that are shown.
        wall: Now, in seconds since 1970.
    """
    headers: dict[str, str] = {}
    for one in shown:
        headers |= _of_one(dialect, one, wall)
    return headers


def _of_one(dialect: Dialect, one: Shown, wall: float) -> dict[str, str]:
    limit, seconds = math.floor(one.limit), Fraction(one.reset_ns, 1_000_000_000)
    if dialect in {"gemini", "vllm"} or (one.unit == "output_tokens" and dialect != "anthropic"):
        return {}
    if one.unit == "images" and dialect not in {"openai", "azure"}:
        return {}
    if dialect == "anthropic":
        remaining = one.remaining if one.unit == "requests" else round(one.remaining / 1000) * 1000
        moment = datetime.fromtimestamp(math.ceil(wall + one.reset_ns / 1e9), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        units = {"requests": ("requests",), "output_tokens": ("output-tokens",)}.get(
            one.unit, ("tokens", "input-tokens")
        )
        told = {"limit": str(limit), "remaining": str(remaining), "reset": moment}
        return {f"anthropic-ratelimit-{unit}-{field}": value for unit in units for field, value in told.items()}
    if dialect == "azure":
        # Milliseconds, of a bucket that is full again; and the period beside them.
        told = rate_limit_headers(one.unit, one.limit, one.remaining, one.reset_ns)
        told[f"x-ratelimit-reset-{one.unit}"] = str(one.reset_ns // 1_000_000)
        return told | {f"x-ratelimit-renewalperiod-{one.unit}": f"{one.per:.0f}"}
    if dialect == "mistral":
        period = {1.0: "second", 60.0: "minute", 3600.0: "hour", 86_400.0: "day"}.get(one.per, f"{one.per:.0f}-second")
        name = f"{'req' if one.unit == 'requests' else 'tokens'}-{period}"
        told = {f"x-ratelimit-limit-{name}": str(limit), f"x-ratelimit-remaining-{name}": str(one.remaining)}
        return told | ({"x-ratelimit-tokens-query-cost": str(one.charged)} if one.unit == "tokens" else {})
    if dialect == "together":
        names = ("x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset")
        names = (
            names if one.unit == "requests" else ("x-tokenlimit-limit", "x-tokenlimit-remaining", "x-tokenlimit-reset")
        )
        return dict(zip(names, (str(limit), str(one.remaining), str(math.ceil(seconds))), strict=True))
    if dialect == "cohere":
        return {
            f"x-trial-endpoint-call-{field}": str(value)
            for field, value in (("limit", limit), ("remaining", one.remaining))
            if one.unit == "requests"
        }
    told = rate_limit_headers(one.unit, one.limit, one.remaining, one.reset_ns)
    if dialect == "groq" and seconds < 60:
        told[f"x-ratelimit-reset-{one.unit}"] = f"{float(seconds):.9f}".rstrip("0").rstrip(".") + "s"
    return told


def hints_in(dialect: Dialect, wait_ns: int) -> dict[str, str]:
    """The headers by which a service tells the wait, where it does."""
    if dialect in {"gemini", "vllm", "mistral"}:
        return {}
    told = retry_headers(wait_ns)
    return told if dialect in {"openai", "azure"} else {"retry-after": told["retry-after"]}


_NO_QUOTA = {
    "anthropic": "Your credit balance is too low to access the Anthropic API. Please go to Plans & Billing to upgrade.",
    "cohere": "You are using a Trial key, which is limited to 1000 API calls / month.",
    "mistral": "Your workspace has reached its monthly spending limit.",
    "vllm": "Insufficient credits.",
}
"""What services say to an account that has nothing left, where it is not a code that tells."""


def error_in(
    dialect: Dialect, status: int, body: Mapping[str, Any], wait_ns: int | None = None, named: Shown | None = None
) -> dict[str, Any]:
    """The body of an error.

    Args:
        dialect: The service's.
        status: Of the answer.
        body: As OpenAI says it.
        wait_ns: That the refusal tells; None: it is not one that a wait mends.
        named: The limit that it names.
    """
    inner = dict(body["error"])
    if inner.get("code") == "insufficient_quota":
        inner["message"] = _NO_QUOTA.get(dialect, inner["message"])
    message, wait = str(inner["message"]), None if wait_ns is None else wait_ns / 1e9
    if dialect == "azure" and wait is not None:
        unit = "token" if named is not None and named.unit == "tokens" else "call"
        words = (
            "Requests to the ChatCompletions_Create Operation under Azure OpenAI API have "
            f"exceeded {unit} rate limit of your current pricing tier. Please retry after {math.ceil(wait)} seconds."
        )
        return {"error": {"code": "429", "message": words}}
    if dialect == "anthropic":
        if wait is not None and named is not None:
            unit = {"tokens": "input tokens", "output_tokens": "output tokens"}.get(named.unit, named.unit)
            period = {60.0: "minute", 3_600.0: "hour", 86_400.0: "day"}.get(named.per, f"{named.per:g} s")
            message = (
                f"This request would exceed your organization's rate limit of {named.limit:,.0f} {unit} per {period}."
            )
        kinds = {
            429: "rate_limit_error",
            400: "invalid_request_error",
            401: "authentication_error",
            404: "not_found_error",
        }
        kinds |= {413: "request_too_large", 503: "overloaded_error"}
        return {"type": "error", "error": {"type": kinds.get(status, "api_error"), "message": message}}
    if dialect == "gemini":
        return _google(status, message, wait, named, for_good=inner.get("code") == "insufficient_quota")
    if dialect == "cohere":
        return {
            "message": message
            if wait is None
            else "You are past the per minute request limit, please wait and try again later."
        }
    if dialect == "mistral":
        words = "Requests rate limit exceeded" if wait is not None else message
        kind = "rate_limited" if status == 429 else "invalid_request_error"
        return {
            "object": "error",
            "message": words,
            "type": kind,
            "param": None,
            "code": "1300" if status == 429 else "3000",
        }
    if dialect == "together" and wait is not None:
        words = "You have reached the rate limit specific to this model. Please try again later."
        return {"id": None, "error": {"message": words, "type": "model_rate_limit", "param": None, "code": None}}
    if dialect == "vllm":
        kinds = {429: "TooManyRequestsError", 404: "NotFoundError"}
        words = "Too many requests" if wait is not None else message
        return {
            "object": "error",
            "message": words,
            "type": kinds.get(status, "BadRequestError"),
            "param": None,
            "code": status,
        }
    return {"error": inner}


def _google(status: int, message: str, wait: float | None, named: Shown | None, *, for_good: bool) -> dict[str, Any]:
    kinds = {
        400: "INVALID_ARGUMENT",
        401: "UNAUTHENTICATED",
        404: "NOT_FOUND",
        429: "RESOURCE_EXHAUSTED",
        503: "UNAVAILABLE",
    }
    error: dict[str, Any] = {"code": status, "message": message, "status": kinds.get(status, "INTERNAL")}
    if for_good:
        quota = {"quotaId": "GenerateRequestsPerDayPerProjectPerModel-FreeTier", "quotaValue": "50"}
        error["details"] = [{"@type": "type.googleapis.com/google.rpc.QuotaFailure", "violations": [quota]}]
    if wait is not None and named is not None:
        unit = "Requests" if named.unit == "requests" else "InputTokens"
        period = {60.0: "PerMinute", 86_400.0: "PerDay"}.get(named.per, "PerMinute")
        error["message"] = (
            f"You exceeded your current quota, please check your plan and billing details. Please retry in {wait:.9f}s."
        )
        error["details"] = [
            {
                "@type": "type.googleapis.com/google.rpc.QuotaFailure",
                "violations": [
                    {
                        "quotaId": f"Generate{unit}{period}PerProjectPerModel",
                        "quotaValue": str(math.floor(named.limit)),
                    }
                ],
            },
            {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": f"{wait:.9f}s"},
        ]
    return {"error": error}


# Requests and answers -------------------------------------------------------------------------------------------------


def request_in(path: str, body: dict[str, Any] | None, model: str | None) -> dict[str, Any] | None:
    """A request of a service's own endpoint as one for chat; None: it is none."""
    if body is None:
        return None
    if path == MESSAGES:
        system = body.get("system")
        first = [] if system is None else [{"role": "system", "content": system}]
        messages = body.get("messages")
        return body | {"messages": [*first, *messages] if isinstance(messages, list) else messages}
    if path in {GENERATE, STREAM}:
        contents = body.get("contents")
        system = body.get("systemInstruction")
        all_ = [*([system] if isinstance(system, dict) else []), *(contents if isinstance(contents, list) else [])]
        settings = body.get("generationConfig")
        most = settings.get("maxOutputTokens") if isinstance(settings, dict) else None
        return {
            "model": model,
            "messages": [
                {"role": one.get("role", "user"), "content": one.get("parts")} if isinstance(one, dict) else one
                for one in all_
            ],
            **({} if most is None else {"max_tokens": most}),
            **({"stream": True} if path == STREAM else {}),
            **_geminis_form(body, settings if isinstance(settings, dict) else {}),
        }
    if path == COHERE_CHAT:  # `functions` were never words of Cohere's
        return {name: value for name, value in body.items() if name != "functions"}
    return body


def _geminis_form(body: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """What Gemini's request says of the form of its answer, in OpenAI's words."""
    form: dict[str, Any] = {}
    schema = settings.get("responseJsonSchema", settings.get("responseSchema"))
    if schema is not None:
        form["response_format"] = {"type": "json_schema", "json_schema": {"schema": schema}}
    elif settings.get("responseMimeType") == "application/json":
        form["response_format"] = {"type": "json_object"}
    config = body.get("toolConfig")
    calling = config.get("functionCallingConfig") if isinstance(config, dict) else None
    if isinstance(calling, dict) and calling.get("mode") == "ANY":
        offered = body.get("tools") if isinstance(body.get("tools"), list) else ()
        declared = [each.get("functionDeclarations") for each in offered or () if isinstance(each, dict)]
        form["tools"] = [tool for those in declared if isinstance(those, list) for tool in those]
        form["tool_choice"] = "required"
    return form


def _called_with(reply: _replies.Answer) -> Any:
    """What a tool is called with; nothing, if that was cut off."""
    try:
        return json.loads(reply.text)
    except ValueError:
        return {}


def render_in(path: str, reply: _replies.Answer) -> dict[str, Any]:
    """An answer of a service's own endpoint; of any other, OpenAI's."""
    text, used, output = reply.text, reply.prompt_tokens, reply.output_tokens
    if path == MESSAGES:
        return {
            "id": f"msg_{reply.identity[:24]}",
            "type": "message",
            "role": "assistant",
            "model": reply.model,
            "content": [
                {
                    "type": "tool_use",
                    "id": f"toolu_{reply.identity[:24]}",
                    "name": reply.tool,
                    "input": _called_with(reply),
                }
                if reply.tool
                else {"type": "text", "text": text}
            ],
            "stop_reason": "max_tokens" if reply.cut else "tool_use" if reply.tool else "end_turn",
            "stop_sequence": None,
            "usage": {
                "input_tokens": used,
                "cache_creation_input_tokens": 0,
                "cache_read_input_tokens": 0,
                "output_tokens": output,
            },
        }
    if path in {GENERATE, STREAM}:
        return {
            "candidates": [
                {
                    "content": {
                        "parts": [
                            {"functionCall": {"name": reply.tool, "args": _called_with(reply)}}
                            if reply.tool
                            else {"text": text}
                        ],
                        "role": "model",
                    },
                    "finishReason": "MAX_TOKENS" if reply.cut else "STOP",
                    "index": 0,
                }
            ],
            "usageMetadata": {
                "promptTokenCount": used,
                "candidatesTokenCount": output,
                "totalTokenCount": used + output,
            },
            "modelVersion": reply.model,
            "responseId": reply.identity[:22],
        }
    if path == COHERE_CHAT:
        message: dict[str, Any] = {"role": "assistant", "content": [{"type": "text", "text": text}]}
        if reply.tool:
            message = {"role": "assistant", **_replies.call_of(reply)}
        return {
            "id": reply.identity,
            "finish_reason": "MAX_TOKENS" if reply.cut else "TOOL_CALL" if reply.tool else "COMPLETE",
            "message": message,
            "usage": {
                "billed_units": {"input_tokens": used, "output_tokens": output},
                "tokens": {"input_tokens": used, "output_tokens": output},
            },
        }
    return _replies.render(reply)
