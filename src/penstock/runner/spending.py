"""How many dollars a run may spend: what is under way is counted at the most that it may cost."""

from __future__ import annotations

from collections.abc import Iterable

from penstock._numbers import show_dollars
from penstock.runner.prices import Prices, output_bound
from penstock.runner.work import Work

__all__ = ["Spending"]


class Spending:
    """The dollars of `--max-cost`."""

    def __init__(self, limit: float, prices: Prices) -> None:
        self._limit = limit
        self._prices = prices
        self._dearest: float | None = None
        self._spent = self._unknown = 0.0

    @classmethod
    def of(cls, limit: float | None, prices: Prices | None) -> Spending | None:
        """What keeps a limit; None if there is none, or nothing to keep it by."""
        return None if limit is None or prices is None else cls(limit, prices)

    def set_aside(self, work: Work, works: Iterable[Work]) -> bool:
        """Set aside what an attempt of a row may cost, once; False if that may be more than is left.

        An answer without a bound may be as dear as the dearest until now; before the first, one row at a time goes.
        """
        if work.reserved:
            return True
        most = self._most(work)
        reserved = sum(each.reserved for each in works)
        is_known = self._dearest is not None or output_bound(work.row) > 0
        if self._spent + self._unknown + reserved + most > self._limit or (reserved and not is_known):
            return False
        work.reserved = most
        return True

    def paid(self, work: Work, dollars: float | None) -> None:
        """An attempt cost so much. None: it may have been billed, and nothing says how much: all that it may cost."""
        if dollars is None:
            self._unknown += work.reserved
        else:
            self._spent += dollars
            self._dearest = max(dollars, self._dearest or 0.0)
        work.reserved = 0.0

    def refusal(self, work: Work) -> str:
        """Why a row is not sent any more, in words."""
        most, limit = self._most(work), show_dollars(self._limit, 4)
        unknown = (
            f", and {show_dollars(self._unknown, 4)} may be, by attempts whose cost is not known"
            if self._unknown
            else ""
        )
        return (
            f"line {work.row.line} may cost {show_dollars(most, 4)}, "
            f"and of --max-cost {limit} {show_dollars(self._spent, 4)} are spent{unknown}"
        )

    def _most(self, work: Work) -> float:
        most = self._prices.at_most(work.row) or 0.0
        return most if output_bound(work.row) else max(most, self._dearest or 0.0)
