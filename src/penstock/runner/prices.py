"""What rows and answers cost in dollars, by the prices in `penstock.llm.prices`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from penstock.llm import prices as _prices
from penstock.llm.prices import Price, PriceFileError
from penstock.llm.usage_reader import Usage, usage_in
from penstock.runner.source import Row, load_json

__all__ = ["Price", "PriceFileError", "Prices", "output_bound", "usage_of"]

_OUTPUT_BOUNDS = ("max_completion_tokens", "max_output_tokens", "max_tokens")


class Prices(_prices.Prices):
    """Prices by model, of rows and answers too."""

    def at_most(self, row: Row) -> float | None:
        """Dollars that a row costs, with the longest answer that it allows; None: its model's price is unknown.

        Where a row sets no bound, its answer counts as nothing.
        """
        return self.dollars(row.model, row.cost.get("tokens", 0.0), output_bound(row))

    def paid(self, model: str, answer: bytes) -> float | None:
        """Dollars for an answer, by its usage; None: it does not say what it used, or the price is not known."""
        usage = usage_of(answer) if self.price(model) is not None else None
        if usage is None:
            return None
        return self.dollars(model, (usage.input or 0.0) + usage.cached, usage.output or 0.0)


def output_bound(row: Row) -> float:
    """Tokens that the answers to a row may have at most; 0: it says nothing."""
    if b'"max_' not in row.body:
        return 0.0
    body = load_json(row.body)
    bound = next((body[name] for name in _OUTPUT_BOUNDS if _is_count(body.get(name))), 0)
    choices = body.get("n")
    return float(min(bound, 10**12) * (min(choices, 10**6) if _is_count(choices) else 1))


def usage_of(answer: bytes) -> Usage | None:
    """What an answer says it took; None: it says nothing.

    A service that tells a sum alone, as for embeddings, had all of it as input.
    """
    try:
        value = load_json(answer)
        fields = next(value[name] for name in ("usage", "usageMetadata") if isinstance(value.get(name), dict))
    except (ValueError, AttributeError, RecursionError, StopIteration):
        return None
    usage = usage_in(fields)
    if usage is None or not (usage.total or usage.output):
        return None
    if usage.input is None and usage.total is not None:
        return replace(usage, input=max(0.0, usage.total - (usage.output or 0.0)))
    return usage


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
