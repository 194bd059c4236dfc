"""The tokens that admission takes for a request, by the rules that services have had. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from penstock._text import repr_of
from penstock.simulator import _replies
from penstock.simulator._simulation import Charge


def _output(body: Mapping[str, Any]) -> int:
    """Tokens that an answer may have: what the request allows, or the 16 that were the default."""
    asked = (_count(body.get(name)) for name in ("max_completion_tokens", "max_output_tokens", "max_tokens"))
    return next(filter(None, asked), 16) * (_count(body.get("n")) or 1)


def _count(value: Any) -> int:
    """A number of tokens or choices; 0 where it is none."""
    return value if type(value) is int and 0 < value <= 10**9 else 0


def _sum(path: str, body: Mapping[str, Any]) -> int:
    return _replies.charge(path, body) + (0 if path == _replies.EMBEDDINGS else _output(body))


def _largest(path: str, body: Mapping[str, Any]) -> int:
    return max(_replies.charge(path, body), 0 if path == _replies.EMBEDDINGS else _output(body))


CHARGES: dict[str, Charge] = {"input": _replies.charge, "sum": _sum, "largest": _largest}
"""`input`: OpenAI's today. `sum`: input and all that may be answered, as Azure charges, and OpenAI did until 2025.
`largest`: the larger of both, as OpenAI's documentation has it."""


def charge_rule(text: str) -> Charge:
    """A rule by its name, with a factor or without: `"sum"`, `"input*1.15"`.

    Raises:
        ValueError: There is no such rule, or the factor is no number above 0.
    """
    name, star, times = text.partition("*")
    rule = CHARGES.get(name.strip())
    try:
        factor = float(times) if star else 1.0
    except ValueError:
        factor = 0.0
    if rule is None or not 0 < factor < math.inf:
        raise ValueError(
            f"there is no charge {repr_of(text)}: use one of {', '.join(CHARGES)}, or one of them like 'input*1.15'"
        )
    if factor == 1.0:
        return rule
    return lambda path, body: math.ceil(rule(path, body) * factor)
