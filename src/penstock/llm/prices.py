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
from typing import Any, Self

__all__ = ["Price", "PriceFileError", "Prices"]

_MOST_BYTES = 16 * 1024 * 1024
"""Of a file of prices. A device may go on for ever."""

_FORM = '{"per": 1000000, "models": {"gpt-4o-mini": {"input": 0.15, "output": 0.6}}}'

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
        except UnicodeDecodeError as error:
            raise PriceFileError(f"{path} is not a file of prices: byte {error.start + 1} is not UTF-8") from None
        except OSError as error:
            raise PriceFileError(f"cannot read {path}: {error.strerror or error}") from None

    @classmethod
    def _read(cls, text: str, name: str) -> Self:
        try:
            given = _object("it", json.loads(text))
            if "models" not in given:
                raise ValueError('it has no "models"')
            models = _object('"models"', given["models"])
            per, batch = _number('"per"', given.get("per", 1_000_000)), _number('"batch"', given.get("batch", 0.5))
            if per < 1:
                raise ValueError(f'"per", the tokens that the prices are for, is {per:g}: below 1')
            if batch > 1:
                raise ValueError(f'"batch", the share of the prices that the Batch API takes, is {batch:g}: above 1')
            return cls(
                {model: _price(model, price, per) for model, price in models.items()},
                str(given.get("as_of", "no date")),
                batch,
            )
        except json.JSONDecodeError as error:
            why = f"not JSON: {error.msg.removesuffix(' at')} at line {error.lineno}, column {error.colno}"
        except RecursionError:
            why = "it is nested too deeply"
        except ValueError as error:
            why = str(error)
        raise PriceFileError(f"{name} is not a file of prices: {why}; write it like {_FORM}")

    def price(self, model: str) -> Price | None:
        """What a model costs; None: unknown."""
        found = self._models.get(model)
        return found if found is not None else self._models.get(_SNAPSHOT.sub("", model))

    def dollars(self, model: str, input_tokens: float, output_tokens: float) -> float | None:
        """Dollars for so many tokens; None: the model's price is unknown."""
        price = self.price(model)
        return None if price is None else input_tokens * price.input + output_tokens * price.output


def _price(model: str, given: Any, per: float) -> Price:
    where = f"the price of {model!r}"
    price = _object(where, given)
    unknown = sorted(price.keys() - {"input", "output"})
    if unknown:  # a word that is wrong by a letter would make the answers free
        raise ValueError(f'{where} has {_shown(unknown[0])}: only "input" and "output" are known')
    if "input" not in price:
        raise ValueError(f'{where} has no "input"')
    return Price(*(_number(f'{where} for "{name}"', price.get(name, 0)) / per for name in ("input", "output")))


def _object(where: str, given: Any) -> dict[str, Any]:
    if not isinstance(given, dict):
        raise ValueError(f"{where} is not an object: {_shown(given)}")
    return given


def _number(where: str, given: Any) -> float:
    """A number of 0 or more, also as text."""
    try:
        number = math.nan if isinstance(given, bool) else float(given)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not 0 <= number < math.inf:
        raise ValueError(f"{where} is {_shown(given)}, not a number of 0 or more")
    return number


def _shown(given: Any) -> str:
    """A value of the file, as it stands there, shortened."""
    text = json.dumps(given)
    return text if len(text) <= 100 else text[:97] + "..."
