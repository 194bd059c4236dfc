"""Who used how much: the ledger, per-user quotas, and the evidence for a higher limit."""

from penstock.usage.file import LedgerError
from penstock.usage.history import History, Minute, RecordedCall, Totals
from penstock.usage.ledger import Ledger, LedgerStatistics

__all__ = ["History", "Ledger", "LedgerError", "LedgerStatistics", "Minute", "RecordedCall", "Totals"]
