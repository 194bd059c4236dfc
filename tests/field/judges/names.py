"""What the judges are called, and what all runs have in common."""

from __future__ import annotations

from typing import Any

FIXED, MOVING, COUNTER = "limits, fixed window", "limits, moving window", "limits, sliding-window counter"
GCRA, PYRATE = "throttled-py, GCRA", "pyrate-limiter, sliding window"
THROTTLED_FIXED, THROTTLED_SLIDING = "throttled-py, fixed window", "throttled-py, sliding window"
LITELLM_REQUESTS, LITELLM_TOKENS = "LiteLLM's proxy, rpm", "LiteLLM's proxy, tpm"

AMOUNT, SECONDS = 100, 10
"""The limit of every judge: requests, and the period in seconds. A thousand requests are ten of its windows."""

LATENCY = 0.1
"""Seconds to an answer. A refusal comes at once."""

STYLES = {"headers": "headers", "retry-after": "`Retry-After`", "nothing": "nothing"}
"""What an answer tells: all that the judge knows, on a refusal for how long to stay away, or nothing at all."""

ANSWER: dict[str, Any] = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 0,
    "model": "m",
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "yes"}}],
    "usage": {"prompt_tokens": 10, "completion_tokens": 1, "total_tokens": 11},
}
REFUSAL = {"error": {"message": "Too many requests.", "type": "requests", "code": "rate_limit_exceeded", "param": None}}
