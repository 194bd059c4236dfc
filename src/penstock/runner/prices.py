"""What requests and answers cost in dollars, by a dated file of list prices or one of the user's in the same form.

    {"as_of": "2025-08-07", "per": 1000000, "models": {"gpt-4o-mini": {"input": 0.15, "output": 0.60}}}

Discounts, cached tokens and taxes are in no such file: this is what the price list says, and not the bill.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from penstock.runner.source import Row, load_json

__all__ = ["Price", "PriceFileError", "Prices", "output_bound"]

_SNAPSHOT = re.compile(r"-(?:\d{4}-\d{2}-\d{2}|\d{4})$")
_OUTPUT_BOUNDS = ("max_completion_tokens", "max_output_tokens", "max_tokens")


class PriceFileError(ValueError):
    """A file of prices cannot be read, and the message says why."""


@dataclass(frozen=True, slots=True)
class Price:
    """Dollars per token.

    Attributes:
        input: For what is sent.
        output: For what is answered.
    """

    input: float
    output: float


class Prices:
    """Prices by model. A dated snapshot of a model costs what the model does.

    Attributes:
        as_of: Their date, as the file has it.
    """

    def __init__(self, models: Mapping[str, Price], as_of: str) -> None:
        self.as_of = as_of
        self._models = dict(models)

    @classmethod
    def listed(cls) -> Prices:
        """Those that came with this version."""
        text = resources.files("penstock.runner").joinpath("prices.json").read_text(encoding="utf-8")
        return cls._read(text, "prices.json")

    @classmethod
    def of(cls, path: Path) -> Prices:
        """Those of a file.

        Raises:
            PriceFileError: It cannot be read.
        """
        try:
            return cls._read(path.read_text(encoding="utf-8"), str(path))
        except (OSError, UnicodeDecodeError) as error:
            raise PriceFileError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None

    @classmethod
    def _read(cls, text: str, name: str) -> Prices:
        try:
            given = json.loads(text)
            per = float(given.get("per", 1_000_000))
            models = {
                model: Price(float(price["input"]) / per, float(price.get("output", 0.0)) / per)
                for model, price in given["models"].items()
            }
        except (ValueError, TypeError, KeyError, AttributeError, ZeroDivisionError, OverflowError) as error:
            raise PriceFileError(
                f"{name} is no file of prices ({type(error).__name__}: {error}): write it like "
                '{"per": 1000000, "models": {"gpt-4o-mini": {"input": 0.15, "output": 0.6}}}'
            ) from None
        wrong = [model for model, price in models.items() if not 0 <= price.input + price.output < math.inf]
        if wrong:
            raise PriceFileError(f"{name}: the price of {wrong[0]} is no amount of dollars")
        return cls(models, str(given.get("as_of", "no date")))

    def price(self, model: str) -> Price | None:
        """What a model costs; None: nobody knows."""
        found = self._models.get(model)
        return found if found is not None else self._models.get(_SNAPSHOT.sub("", model))

    def at_most(self, row: Row) -> float | None:
        """Dollars that a row costs, with the longest answer that it allows; None: nobody knows its model's price.

        Where a row sets no bound, its answer counts as nothing.
        """
        price = self.price(row.model)
        if price is None:
            return None
        return row.cost.get("tokens", 0.0) * price.input + output_bound(row) * price.output

    def paid(self, model: str, answer: bytes) -> float:
        """Dollars for an answer, by its usage; 0 where it or the price is not known."""
        price = self.price(model)
        usage = _usage(answer) if price is not None else None
        if price is None or usage is None:
            return 0.0
        return usage[0] * price.input + usage[1] * price.output


def output_bound(row: Row) -> float:
    """Tokens that the answers to a row may have at most; 0: it says nothing."""
    if b'"max_' not in row.body:
        return 0.0
    body = load_json(row.body)
    bound = next((body[name] for name in _OUTPUT_BOUNDS if _is_count(body.get(name))), 0)
    choices = body.get("n")
    return float(min(bound, 10**12) * (min(choices, 10**6) if _is_count(choices) else 1))


def _usage(answer: bytes) -> tuple[float, float] | None:
    try:
        usage: Any = load_json(answer).get("usage")
        counts = [
            next((usage[name] for name in names if _is_count(usage.get(name))), 0)
            for names in (("prompt_tokens", "input_tokens"), ("completion_tokens", "output_tokens"))
        ]
        return float(min(counts[0], 10**15)), float(min(counts[1], 10**15))
    except (ValueError, AttributeError, RecursionError):
        return None


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
