"""What rows and answers cost in dollars, by the prices in `penstock.llm.prices`."""

from __future__ import annotations

from typing import Any

from penstock.llm import prices as _prices
from penstock.llm.prices import Price, PriceFileError
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

    def paid(self, model: str, answer: bytes) -> float:
        """Dollars for an answer, by its usage; 0 where it or the price is not known."""
        usage = usage_of(answer) if self.price(model) is not None else None
        return 0.0 if usage is None else self.dollars(model, *usage) or 0.0


def output_bound(row: Row) -> float:
    """Tokens that the answers to a row may have at most; 0: it says nothing."""
    if b'"max_' not in row.body:
        return 0.0
    body = load_json(row.body)
    bound = next((body[name] for name in _OUTPUT_BOUNDS if _is_count(body.get(name))), 0)
    choices = body.get("n")
    return float(min(bound, 10**12) * (min(choices, 10**6) if _is_count(choices) else 1))


def usage_of(answer: bytes) -> tuple[float, float] | None:
    """Tokens of input and of output that an answer says it took; None: it says nothing."""
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
