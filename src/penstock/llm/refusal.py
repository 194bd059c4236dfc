"""The answer that we give in a service's stead, where a request must not be sent."""

from __future__ import annotations

import json
import math
import re
from typing import NamedTuple

from penstock.errors import PenstockError, RateLimited, Unsatisfiable
from penstock.llm.failures import OURS

__all__ = ["Refusal", "refusal"]


class Refusal(NamedTuple):
    """The answer that we give in the service's stead."""

    status: int
    headers: dict[str, str]
    content: bytes


def refusal(error: PenstockError) -> Refusal:
    """The answer to a request that must not be sent.

    An answer, and not an exception: SDKs retry what a transport raises, and wrap it as trouble with the connection. "Not
    now" is a 429 that says when, "never" a 400, which nobody retries. Its body is an error of every dialect at once.
    """
    status = 400
    headers = {"content-type": "application/json", "x-should-retry": "false"}
    if isinstance(error, RateLimited):
        status = 429
        if error.retry_after < math.inf:
            headers["retry-after"] = f"{error.retry_after:.3f}"
    code = "request_too_large" if isinstance(error, Unsatisfiable) else _snake(type(error).__name__)
    message = f"Not sent: {error}"
    body = {
        "type": "error",
        "error": {"message": message, "type": OURS, "param": None, "code": code},
        "message": message,
    }
    return Refusal(status, headers, json.dumps(body).encode())


def _snake(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()
