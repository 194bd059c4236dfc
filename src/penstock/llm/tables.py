"""The limits that a service has published: which of them a model has, for an account.

The numbers are data, with their source and date, in `openai_limits.toml` beside this file. Here is only how to find the
row. Nothing is guessed: a model that no row is for is an error that names those there are.
"""

from __future__ import annotations

import functools
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

from penstock._text import repr_of
from penstock.limits import Rate, per_day, per_minute

__all__ = ["PublishedLimits", "accounts", "family", "lookup", "tiers"]

_SNAPSHOT = re.compile(r"-(?:\d{4}-\d{2}-\d{2}|\d{4})$")  # gpt-4o-2024-08-06, gpt-4-0613


@dataclass(frozen=True, slots=True)
class PublishedLimits:
    """What was published for one model and one account.

    Attributes:
        limits: Rates per unit; a unit may have several.
        source: Where it says so.
        date: When it said so, as year-month or year-month-day.
    """

    limits: Mapping[str, tuple[Rate, ...]]
    source: str
    date: str


def accounts() -> tuple[str, ...]:
    """The account types of the early guide."""
    return tuple(_table()["guide"]["accounts"])


def tiers() -> tuple[str, ...]:
    """The usage tiers of today."""
    return tuple(_table()["tiers"]["names"])


def family(model: str) -> str:
    """The model whose limits a model shares.

    Dated snapshots and fine-tuned ones are limited together with what they are made of.
    """
    return _SNAPSHOT.sub("", _base(model))


def lookup(model: str, account: str) -> PublishedLimits:
    """The published limits of a model.

    Args:
        model: As requests name it; dated snapshots and fine-tuned models have the limits of what they are made of.
        account: One of `accounts()` or `tiers()`.

    Raises:
        ValueError: There is no row for the model; the message lists those there are.
    """
    base = _base(model)
    return _of_tier(base, model, account) if account in tiers() else _of_guide(base, model, account)


def _of_tier(base: str, model: str, tier: str) -> PublishedLimits:
    published = _table()["tiers"]
    models: dict[str, dict[str, list[int]]] = published["models"]
    row = models.get(base) or models.get(family(model))
    if row is None:
        raise ValueError(
            f"no limits are known for {repr_of(model)} in {tier}: there are some for {_list(models)}. "
            f'Write them down as a Limiter, or let limits="auto" learn them'
        )
    at = published["names"].index(tier)
    requests = [per_minute(row["requests"][at])]
    requests += [per_day(number) for number in row.get("requests-per-day", [])[at : at + 1]]
    return PublishedLimits(
        {"requests": tuple(requests), "tokens": (per_minute(row["tokens"][at]),)},
        published["source"] + base,
        published["date"],
    )


def _of_guide(base: str, model: str, account: str) -> PublishedLimits:
    guide = _table()["guide"]
    numbers = guide["models"].get(base) or guide["models"].get(family(model))
    unit = 1
    if numbers is None:
        kinds: dict[str, str] = guide["kinds"]
        beginning = max((name for name in kinds if base.startswith(name)), key=len, default=None)
        if beginning is None:
            raise ValueError(
                f"no limits are known for {repr_of(model)} in the guide of {guide['date']}: it has "
                f"{_list([*guide['models'], *(name + '…' for name in kinds)])}. For newer models give a usage tier "
                f'({_list(tiers())}), a Limiter, or let limits="auto" learn them'
            )
        numbers = guide["accounts"][account][kinds[beginning]]
        if kinds[beginning] == "text":
            unit = next((tokens for word, tokens in guide["units"].items() if word in base), 1)
    limits = {name: (per_minute(number * (unit if name == "tokens" else 1)),) for name, number in numbers.items()}
    return PublishedLimits(limits, guide["source"], guide["date"])


def _base(model: str) -> str:
    return model.removeprefix("ft:").partition(":")[0]


@functools.cache
def _table() -> dict[str, Any]:
    with resources.files(__package__).joinpath("openai_limits.toml").open("rb") as file:
        return tomllib.load(file)


def _list(names: Any) -> str:
    return ", ".join(names)
