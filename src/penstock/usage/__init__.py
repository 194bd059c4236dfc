"""Who used how much: a ledger of every call, and how it is read."""

from penstock.usage.file import LedgerError
from penstock.usage.history import History, Minute, RecordedCall, Totals
from penstock.usage.ledger import Ledger, LedgerStatistics

__all__ = ["History", "Ledger", "LedgerError", "LedgerStatistics", "Minute", "RecordedCall", "Totals"]
