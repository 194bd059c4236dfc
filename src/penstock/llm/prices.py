"""What models cost in dollars, by a dated file of list prices or one of the user's in the same form.

    {"as_of": "2026-11-29", "per": 1000000, "batch": 0.5, "models": {"gpt-4o-mini": {"input": 0.15, "output": 0.60}}}

`batch` is the share of these prices that the Batch API takes; half of them unless given.

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
from typing import Self

__all__ = ["Price", "PriceFileError", "Prices"]

_MOST_BYTES = 16 * 1024 * 1024
"""Of a file of prices. A device may go on for ever."""

_SNAPSHOT = re.compile(r"-(?:\d{4}-\d{2}-\d{2}|\d{4})$")


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
        batch: The share of them that the Batch API takes.
    """

    def __init__(self, models: Mapping[str, Price], as_of: str, batch: float = 0.5) -> None:
        self.as_of = as_of
        self.batch = batch
        self._models = dict(models)

    @classmethod
    def listed(cls) -> Self:
        """Those that came with this version."""
        text = resources.files("penstock.llm").joinpath("prices.json").read_text(encoding="utf-8")
        return cls._read(text, "prices.json")

    @classmethod
    def of(cls, path: Path) -> Self:
        """Those of a file.

        Raises:
            PriceFileError: It cannot be read.
        """
        try:
            with path.open("rb") as file:
                text = file.read(_MOST_BYTES + 1)
            if len(text) > _MOST_BYTES:
                raise PriceFileError(f"{path} is not a file of prices: it is longer than {_MOST_BYTES:,} bytes")
            return cls._read(text.decode("utf-8-sig"), str(path))
        except (OSError, UnicodeDecodeError) as error:
            raise PriceFileError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None

    @classmethod
    def _read(cls, text: str, name: str) -> Self:
        try:
            given = json.loads(text)
            per, batch = float(given.get("per", 1_000_000)), float(given.get("batch", 0.5))
            models = {
                model: Price(float(price["input"]) / per, float(price.get("output", 0.0)) / per)
                for model, price in given["models"].items()
            }
        except (
            ValueError,
            TypeError,
            KeyError,
            AttributeError,
            ZeroDivisionError,
            OverflowError,
            RecursionError,
        ) as error:
            raise PriceFileError(
                f"{name} is not a file of prices ({type(error).__name__}: {error}): write it like "
                '{"per": 1000000, "models": {"gpt-4o-mini": {"input": 0.15, "output": 0.6}}}'
            ) from None
        wrong = [model for model, price in models.items() if not 0 <= price.input + price.output < math.inf]
        if wrong:
            raise PriceFileError(f"{name}: the price of {wrong[0]} is not an amount of dollars")
        return cls(models, str(given.get("as_of", "no date")), batch if 0 <= batch <= 1 else 0.5)

    def price(self, model: str) -> Price | None:
        """What a model costs; None: unknown."""
        found = self._models.get(model)
        return found if found is not None else self._models.get(_SNAPSHOT.sub("", model))

    def dollars(self, model: str, input_tokens: float, output_tokens: float) -> float | None:
        """Dollars for so many tokens; None: the model's price is unknown."""
        price = self.price(model)
        return None if price is None else input_tokens * price.input + output_tokens * price.output
