"""The answers of endpoints, at once or in a batch, if no limit refuses and no fault is asked for.

What they say is in `_replies` and `_media`.
"""

from __future__ import annotations

import json
import math
from random import Random
from typing import Any

from starlette.responses import JSONResponse

from penstock import clock
from penstock.simulator import _media, _replies
from penstock.simulator._simulation import Fault, Simulation

FAILURES: dict[Fault | None, tuple[int, _replies.Error]] = {
    "server_error": (500, _replies.server_error()),
    "overloaded": (503, _replies.overloaded()),
}
"""Status and body of faults that are answers."""


class Json(JSONResponse):
    """JSON in ASCII: requests may name what UTF-8 cannot carry (half of a surrogate pair), and answers repeat it."""

    def render(self, content: Any) -> bytes:
        return json.dumps(content, separators=(",", ":")).encode("ascii")


def parse(raw: bytes) -> dict[str, Any] | None:
    """A body as a JSON object; None if it is none."""
    try:
        body = json.loads(raw, parse_constant=_number, parse_float=_number)
    except (ValueError, RecursionError):  # what is no JSON, no UTF-8, or nested too deeply
        return None
    return body if isinstance(body, dict) else None


def answer_to(
    simulation: Simulation, path: str, body: dict[str, Any] | None, random: Random, *, shuffled: bool = False
) -> tuple[int, _replies.Answer | dict[str, Any] | bytes]:
    """Status and content of the answer to a body; None: it is no JSON object, and no form where one is expected."""
    if body is None:
        return 400, _replies.invalid("We could not parse the JSON body of your request: it must be a JSON object.")
    problem = _media.fault_in(path, body) if path in _media.MEDIA else _replies.fault_in(path, body)
    if problem is not None:
        return 400, problem
    model = body.get("model")
    if simulation.models and model is not None and model not in simulation.models:
        return 404, no_such_model(model)
    if path in _media.MEDIA:
        return 200, _media.answer(path, body, int(clock.wall()), f"{random.getrandbits(128):032x}")
    count = simulation.count_tokens
    if simulation.context_length is not None:
        problem = _replies.too_long(path, body, count, simulation.context_length)
        if problem is not None:
            return 400, problem
    if path == _replies.EMBEDDINGS:
        shuffle = random if shuffled or simulation.shuffle_embeddings else None
        return 200, _replies.embeddings(body, dimensions=simulation.dimensions, count=count, shuffle=shuffle)
    return 200, _replies.answer(
        path, body, tokens=simulation.output_tokens, count=count, random=random, created=int(clock.wall())
    )


def no_such_model(name: str) -> _replies.Error:
    """The answer to a request for a model that there is not."""
    return _replies.invalid(
        f"The model `{name}` does not exist or you do not have access to it.", "model_not_found", "model"
    )


def _number(text: str) -> float:
    """A number that JSON knows: `NaN`, `Infinity` and 1e400 are none, and could not be repeated in an answer."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is not a number in JSON")
    return value
